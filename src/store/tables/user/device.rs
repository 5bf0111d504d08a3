//! Devices, their access tokens, and the log of changed device lists.
//!
//! A device has one access token at a time; only its SHA-256 is kept. A device id is chosen by the app, so it is
//! followed by a zero byte in every key and may not hold one.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::store::schema::{DEHYDRATED, DEVICE, DEVICE_CHANGE, DEVICE_CHANGE_LATEST, TOKEN};
use crate::store::{Change, Error, Get, Position, Result, UserNum, Write, tables};

/// One device's row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    pub created_ms: u64,
    /// When the device was last heard of; written lazily, so up to some minutes old, and lost in a power cut.
    pub seen_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_ip: Option<String>,
    /// SHA-256 of the access token, in hex; none for a device that is logged out but whose row remains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_hash: Option<String>,
}

/// The first bytes of every row that belongs to a device: user number, device id, a zero byte.
pub fn prefix(user: UserNum, device_id: &str) -> Vec<u8> {
    debug_assert!(!device_id.contains('\0'), "a device id holds no zero byte");
    let mut key = Vec::with_capacity(4 + device_id.len() + 1);
    key.extend_from_slice(&user.to_key());
    key.extend_from_slice(device_id.as_bytes());
    key.push(0);
    key
}

pub fn get(get: &impl Get, user: UserNum, device_id: &str) -> Result<Option<Device>> {
    tables::get_json(get, &DEVICE, &prefix(user, device_id))
}

pub fn put(w: &mut Write<'_>, user: UserNum, device_id: &str, device: &Device) -> Result<()> {
    tables::put_json(w, &DEVICE, &prefix(user, device_id), device)
}

pub fn remove(w: &mut Write<'_>, user: UserNum, device_id: &str) -> Result<()> {
    w.remove(&DEVICE, &prefix(user, device_id)).map(drop)
}

/// Visits a user's devices in the order of their ids. Bounded by the cap on devices of one user.
pub fn each(
    get: &impl Get,
    user: UserNum,
    visit: &mut dyn FnMut(&str, Device) -> Result<ControlFlow<()>>,
) -> Result<()> {
    get.prefix(&DEVICE, &user.to_key(), &mut |key, value| {
        let id = key.get(4..key.len().saturating_sub(1)).and_then(|id| std::str::from_utf8(id).ok());
        let id = id.ok_or_else(|| Error::corrupt(&DEVICE, key))?;
        visit(id, tables::parse(&DEVICE, key, value)?)
    })
}

/// The ids of a user's devices.
pub fn ids(get: &impl Get, user: UserNum) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    each(get, user, &mut |id, _| {
        ids.push(id.to_owned());
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(ids)
}

/// The dehydrated device of a user: a device without a session, whose private keys lie here encrypted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dehydrated {
    pub device_id: String,
    pub device_data: Box<RawValue>,
}

pub fn dehydrated(get: &impl Get, user: UserNum) -> Result<Option<Dehydrated>> {
    tables::get_json(get, &DEHYDRATED, &user.to_key())
}

pub fn set_dehydrated(w: &mut Write<'_>, user: UserNum, dehydrated: &Dehydrated) -> Result<()> {
    tables::put_json(w, &DEHYDRATED, &user.to_key(), dehydrated)
}

pub fn remove_dehydrated(w: &mut Write<'_>, user: UserNum) -> Result<()> {
    w.remove(&DEHYDRATED, &user.to_key()).map(drop)
}

/// Whether this is the dehydrated device of its user.
pub fn is_dehydrated(get: &impl Get, user: UserNum, device_id: &str) -> Result<bool> {
    Ok(dehydrated(get, user)?.is_some_and(|dehydrated| dehydrated.device_id == device_id))
}

/// The user and device of a token.
pub fn token(get: &impl Get, hash: &[u8; 32]) -> Result<Option<(UserNum, String)>> {
    let Some(value) = get.get(&TOKEN, hash)? else { return Ok(None) };
    let user = value.get(..4).and_then(UserNum::from_key);
    let device = value.get(4..).and_then(|id| std::str::from_utf8(id).ok());
    match (user, device) {
        (Some(user), Some(device)) => Ok(Some((user, device.to_owned()))),
        _ => Err(Error::corrupt(&TOKEN, hash)),
    }
}

pub fn put_token(w: &mut Write<'_>, hash: &[u8; 32], user: UserNum, device_id: &str) -> Result<()> {
    w.announce(Change { users: vec![user], sessions: true, ..Change::default() });
    w.put(&TOKEN, hash, &[&user.to_key()[..], device_id.as_bytes()].concat())
}

pub fn remove_token(w: &mut Write<'_>, hash: &[u8; 32]) -> Result<()> {
    // A poll that waits with the token is told that it has ended. A row that cannot be read is removed all the same.
    let users = match token(w, hash) {
        Ok(found) => found.map(|(user, _)| user).into_iter().collect(),
        Err(Error::Corrupt { .. }) => Vec::new(),
        Err(failed) => return Err(failed),
    };
    w.announce(Change { users, sessions: true, ..Change::default() });
    w.remove(&TOKEN, hash).map(drop)
}

/// Notes that a user's devices or keys changed, at a position of its own. Only the latest change of a user is kept, so
/// the log is never longer than the list of users.
pub fn changed(w: &mut Write<'_>, user: UserNum) -> Result<Position> {
    let position = w.next_position();
    if let Some(old) = w.get(&DEVICE_CHANGE_LATEST, &user.to_key())? {
        w.remove(&DEVICE_CHANGE, &old)?;
    }
    w.put(&DEVICE_CHANGE, &position.to_key(), &user.to_key())?;
    w.put(&DEVICE_CHANGE_LATEST, &user.to_key(), &position.to_key())?;
    Ok(position)
}

/// The position at which a user's devices last changed.
pub fn last_change(get: &impl Get, user: UserNum) -> Result<Option<Position>> {
    let Some(value) = get.get(&DEVICE_CHANGE_LATEST, &user.to_key())? else { return Ok(None) };
    Position::from_key(&value).map(Some).ok_or_else(|| Error::corrupt(&DEVICE_CHANGE_LATEST, &user.to_key()))
}

/// Visits the users whose devices changed after `since`, up to and with `to`, each with the position of their last change.
pub fn changes(
    get: &impl Get,
    since: Position,
    to: Position,
    visit: &mut dyn FnMut(Position, UserNum) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let (from, end) = tables::after_up_to(&[], since, to);
    get.range(&DEVICE_CHANGE, &from, Some(&end), false, &mut |key, value| {
        let corrupt = || Error::corrupt(&DEVICE_CHANGE, key);
        visit(Position::from_key(key).ok_or_else(corrupt)?, UserNum::from_key(value).ok_or_else(corrupt)?)
    })
}

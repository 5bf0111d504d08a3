//! Devices, their access tokens, and the log of changed device lists.
//!
//! A device has one access token at a time; only its SHA-256 is kept. One that refreshes its token has a refresh token
//! beside it, and at most one more pair: the one that was handed out last, until it is used. A device id is chosen by the
//! app, so it is followed by a zero byte in every key and may not hold one.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::store::schema::{DEHYDRATED, DEVICE, DEVICE_CHANGE, DEVICE_CHANGE_LATEST, REFRESH, TOKEN};
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
    /// Of a device that refreshes its token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh: Option<Refresh>,
}

/// How a device refreshes its access token. All hashes are SHA-256 in hex.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refresh {
    /// Of the refresh token that belongs to the device's access token.
    pub hash: String,
    /// The pair that was handed out and not used yet: its answer may have been lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Pair>,
}

/// An access token and its refresh token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    pub token_hash: String,
    pub refresh_hash: String,
}

/// What stands behind an access token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub user: UserNum,
    pub device_id: String,
    /// When it ends; never, for a device that does not refresh it.
    pub expires_ms: Option<u64>,
    /// Whether it is the one that was handed out last and was not used yet.
    pub is_unused: bool,
}

impl Token {
    fn encode(&self) -> Vec<u8> {
        let mut row = [&self.user.to_key()[..], self.device_id.as_bytes()].concat();
        if let Some(expires_ms) = self.expires_ms {
            row.push(0);
            row.extend_from_slice(&expires_ms.to_be_bytes());
            row.push(u8::from(self.is_unused));
        }
        row
    }

    fn decode(row: &[u8]) -> Option<Token> {
        let user = UserNum::from_key(row.get(..4)?)?;
        let (device_id, life) = split_at_zero(row.get(4..)?);
        let device_id = std::str::from_utf8(device_id).ok()?.to_owned();
        let (expires_ms, is_unused) = match life {
            None => (None, false),
            Some(life) => {
                let (expires_ms, is_unused) = life.split_first_chunk::<8>()?;
                (Some(u64::from_be_bytes(*expires_ms)), *is_unused.first()? != 0)
            }
        };
        Some(Token { user, device_id, expires_ms, is_unused })
    }
}

/// What stands before the first zero byte, and what behind it.
fn split_at_zero(row: &[u8]) -> (&[u8], Option<&[u8]>) {
    match row.iter().position(|byte| *byte == 0) {
        Some(at) => (&row[..at], Some(&row[at + 1..])),
        None => (row, None),
    }
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
    // A device of an application service has no token that ends with it.
    w.announce(Change { users: vec![user], sessions: true, ..Change::default() });
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

/// What stands behind an access token.
pub fn token(get: &impl Get, hash: &[u8; 32]) -> Result<Option<Token>> {
    let Some(value) = get.get(&TOKEN, hash)? else { return Ok(None) };
    Token::decode(&value).map(Some).ok_or_else(|| Error::corrupt(&TOKEN, hash))
}

pub fn put_token(w: &mut Write<'_>, hash: &[u8; 32], token: &Token) -> Result<()> {
    w.announce(Change { users: vec![token.user], sessions: true, ..Change::default() });
    w.put(&TOKEN, hash, &token.encode())
}

/// The user and device of a refresh token.
pub fn refresh_token(get: &impl Get, hash: &[u8; 32]) -> Result<Option<(UserNum, String)>> {
    let Some(value) = get.get(&REFRESH, hash)? else { return Ok(None) };
    let token = Token::decode(&value).ok_or_else(|| Error::corrupt(&REFRESH, hash))?;
    Ok(Some((token.user, token.device_id)))
}

pub fn put_refresh_token(w: &mut Write<'_>, hash: &[u8; 32], user: UserNum, device_id: &str) -> Result<()> {
    w.put(&REFRESH, hash, &[&user.to_key()[..], device_id.as_bytes()].concat())
}

/// Removes a pair of tokens, given as the row of a device has their hashes.
pub fn remove_pair(w: &mut Write<'_>, token_hash: Option<&str>, refresh_hash: Option<&str>) -> Result<()> {
    if let Some(hash) = token_hash.and_then(hash_of) {
        remove_token(w, &hash)?;
    }
    if let Some(hash) = refresh_hash.and_then(hash_of) {
        w.remove(&REFRESH, &hash)?;
    }
    Ok(())
}

/// Removes every token of a device: two pairs at most.
pub fn remove_tokens(w: &mut Write<'_>, device: &Device) -> Result<()> {
    let refresh = device.refresh.as_ref();
    remove_pair(w, device.token_hash.as_deref(), refresh.map(|refresh| refresh.hash.as_str()))?;
    match refresh.and_then(|refresh| refresh.next.as_ref()) {
        Some(next) => remove_pair(w, Some(&next.token_hash), Some(&next.refresh_hash)),
        None => Ok(()),
    }
}

/// The hash of a token from the hex in a device's row.
pub fn hash_of(hex: &str) -> Option<[u8; 32]> {
    let text = hex.as_bytes();
    let mut hash = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |at: usize| (pair[at] as char).to_digit(16);
        *byte = (digit(0)? * 16 + digit(1)?) as u8;
    }
    Some(hash)
}

pub fn remove_token(w: &mut Write<'_>, hash: &[u8; 32]) -> Result<()> {
    // A poll that waits with the token is told that it has ended. A row that cannot be read is removed all the same.
    let users = match token(w, hash) {
        Ok(found) => found.map(|token| token.user).into_iter().collect(),
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

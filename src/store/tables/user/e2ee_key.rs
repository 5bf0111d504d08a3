//! End-to-end keys: device identity keys, one-time and fallback keys, cross-signing keys and the signatures over them.
//!
//! Keys of local users only, except that signatures also hold those a local user made over a remote user's keys.
//! Everything is kept as the JSON the app uploaded, without other people's signatures.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::device;
use crate::store::schema::{CROSS_KEY, DEVICE_KEYS, FALLBACK_KEY, KEY_SIGNATURE, ONE_TIME_KEY};
use crate::store::{Error, Get, Result, UserNum, Write, tables};

/// A cross-signing key's purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    Master = 0,
    SelfSigning = 1,
    UserSigning = 2,
}

pub fn device_keys(get: &impl Get, user: UserNum, device_id: &str) -> Result<Option<Value>> {
    tables::get_json(get, &DEVICE_KEYS, &device::prefix(user, device_id))
}

pub fn set_device_keys(w: &mut Write<'_>, user: UserNum, device_id: &str, keys: &Value) -> Result<()> {
    tables::put_json(w, &DEVICE_KEYS, &device::prefix(user, device_id), keys)
}

/// Visits the identity keys of a user's devices. Bounded by the cap on devices of one user.
pub fn each_device_keys(
    get: &impl Get,
    user: UserNum,
    visit: &mut dyn FnMut(&str, Value) -> Result<ControlFlow<()>>,
) -> Result<()> {
    get.prefix(&DEVICE_KEYS, &user.to_key(), &mut |key, value| {
        let id = key.get(4..key.len().saturating_sub(1)).and_then(|id| std::str::from_utf8(id).ok());
        visit(id.ok_or_else(|| Error::corrupt(&DEVICE_KEYS, key))?, tables::parse(&DEVICE_KEYS, key, value)?)
    })
}

/// One one-time key as stored: the id without its algorithm, and the key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OneTimeKey {
    pub id: String,
    pub key: Value,
}

/// Visits a device's one-time keys: algorithm by algorithm, within one in the order of upload, which is the order they
/// are handed out in. Bounded by the cap on one-time keys of one device.
pub fn each_one_time(
    get: &impl Get,
    user: UserNum,
    device_id: &str,
    visit: &mut dyn FnMut(&str, &[u8], OneTimeKey) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let prefix = device::prefix(user, device_id);
    get.prefix(&ONE_TIME_KEY, &prefix, &mut |key, value| {
        let algorithm = one_time_algorithm(&prefix, key).ok_or_else(|| Error::corrupt(&ONE_TIME_KEY, key))?;
        visit(algorithm, key, tables::parse(&ONE_TIME_KEY, key, value)?)
    })
}

/// How many one-time keys a device has of each algorithm, without reading the keys.
pub fn one_time_counts(get: &impl Get, user: UserNum, device_id: &str) -> Result<Vec<(String, u64)>> {
    let prefix = device::prefix(user, device_id);
    let mut counts: Vec<(String, u64)> = Vec::new();
    get.prefix(&ONE_TIME_KEY, &prefix, &mut |key, _| {
        let algorithm = one_time_algorithm(&prefix, key).ok_or_else(|| Error::corrupt(&ONE_TIME_KEY, key))?;
        match counts.last_mut() {
            Some((last, count)) if last == algorithm => *count += 1,
            _ => counts.push((algorithm.to_owned(), 1)),
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(counts)
}

fn one_time_algorithm<'a>(prefix: &[u8], key: &'a [u8]) -> Option<&'a str> {
    // algorithm ‖ 0 ‖ eight bytes of position.
    let rest = key.get(prefix.len()..)?;
    std::str::from_utf8(rest.get(..rest.len().checked_sub(9)?)?).ok()
}

/// Adds a one-time key after all that are there.
pub fn add_one_time(
    w: &mut Write<'_>,
    user: UserNum,
    device_id: &str,
    algorithm: &str,
    key: &OneTimeKey,
) -> Result<()> {
    let mut row = device::prefix(user, device_id);
    row.extend_from_slice(algorithm.as_bytes());
    row.push(0);
    let last = w.last_in_prefix(&ONE_TIME_KEY, &row)?;
    let number = match last {
        Some((key, _)) => tables::u64_at_end(&key).ok_or_else(|| Error::corrupt(&ONE_TIME_KEY, &key))? + 1,
        None => 0,
    };
    row.extend_from_slice(&number.to_be_bytes());
    tables::put_json(w, &ONE_TIME_KEY, &row, key)
}

/// Takes the oldest one-time key of an algorithm, so it is handed out once.
pub fn take_one_time(w: &mut Write<'_>, user: UserNum, device_id: &str, algorithm: &str) -> Result<Option<OneTimeKey>> {
    let mut prefix = device::prefix(user, device_id);
    prefix.extend_from_slice(algorithm.as_bytes());
    prefix.push(0);
    let Some((row, value)) = w.first_in_prefix(&ONE_TIME_KEY, &prefix)? else { return Ok(None) };
    let key = tables::parse(&ONE_TIME_KEY, &row, &value)?;
    w.remove(&ONE_TIME_KEY, &row)?;
    Ok(Some(key))
}

/// The key that is handed out when the one-time keys have run out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FallbackKey {
    pub id: String,
    pub key: Value,
    pub used: bool,
}

pub fn fallback(get: &impl Get, user: UserNum, device_id: &str, algorithm: &str) -> Result<Option<FallbackKey>> {
    tables::get_json(get, &FALLBACK_KEY, &fallback_row(user, device_id, algorithm))
}

pub fn set_fallback(
    w: &mut Write<'_>,
    user: UserNum,
    device_id: &str,
    algorithm: &str,
    key: &FallbackKey,
) -> Result<()> {
    tables::put_json(w, &FALLBACK_KEY, &fallback_row(user, device_id, algorithm), key)
}

/// Marks at most `most` fallback keys behind a row as used, so that their apps upload new ones. Answers the last row.
pub fn use_fallbacks(w: &mut Write<'_>, after: &[u8], most: usize) -> Result<Option<Vec<u8>>> {
    let (mut found, from) = (Vec::new(), [after, &[0]].concat());
    w.range(&FALLBACK_KEY, if after.is_empty() { after } else { &from }, None, false, &mut |row, value| {
        found.push((row.to_vec(), tables::parse::<FallbackKey>(&FALLBACK_KEY, row, value)?));
        Ok(if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    for (row, key) in &mut found {
        key.used = true;
        tables::put_json(w, &FALLBACK_KEY, row, key)?;
    }
    Ok(found.pop().map(|(row, _)| row))
}

/// The algorithms for which a device has an unused fallback key; at most `most` are looked at.
pub fn unused_fallbacks(get: &impl Get, user: UserNum, device_id: &str, most: usize) -> Result<Vec<String>> {
    let prefix = device::prefix(user, device_id);
    let (mut algorithms, mut seen) = (Vec::new(), 0);
    get.prefix(&FALLBACK_KEY, &prefix, &mut |row, value| {
        let key: FallbackKey = tables::parse(&FALLBACK_KEY, row, value)?;
        if !key.used {
            algorithms.push(String::from_utf8_lossy(&row[prefix.len()..]).into_owned());
        }
        seen += 1;
        Ok(if seen < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(algorithms)
}

/// The number of algorithms for which a device has a fallback key.
pub fn fallback_count(get: &impl Get, user: UserNum, device_id: &str) -> Result<usize> {
    let mut count = 0;
    get.prefix(&FALLBACK_KEY, &device::prefix(user, device_id), &mut |_, _| {
        count += 1;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(count)
}

fn fallback_row(user: UserNum, device_id: &str, algorithm: &str) -> Vec<u8> {
    let mut row = device::prefix(user, device_id);
    row.extend_from_slice(algorithm.as_bytes());
    row
}

/// Forgets every key of a device, and the signatures by it and over it. Bounded by the cap on one-time keys.
pub fn remove_device(w: &mut Write<'_>, user: UserNum, device_id: &str) -> Result<()> {
    let prefix = device::prefix(user, device_id);
    w.remove(&DEVICE_KEYS, &prefix)?;
    tables::remove_all(w, &ONE_TIME_KEY, &prefix)?;
    tables::remove_all(w, &FALLBACK_KEY, &prefix)?;
    remove_signatures_of(w, user, device_id)
}

pub fn cross(get: &impl Get, user: UserNum, purpose: Purpose) -> Result<Option<Value>> {
    tables::get_json(get, &CROSS_KEY, &cross_row(user, purpose))
}

pub fn set_cross(w: &mut Write<'_>, user: UserNum, purpose: Purpose, key: &Value) -> Result<()> {
    tables::put_json(w, &CROSS_KEY, &cross_row(user, purpose), key)
}

/// Forgets a user's cross-signing keys.
pub fn remove_cross(w: &mut Write<'_>, user: UserNum) -> Result<()> {
    tables::remove_all(w, &CROSS_KEY, &user.to_key())
}

fn cross_row(user: UserNum, purpose: Purpose) -> Vec<u8> {
    [&user.to_key()[..], &[purpose as u8]].concat()
}

/// A signature that a user uploaded over a key of theirs or of another user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    pub signer: UserNum,
    /// With its algorithm: `ed25519:ABCDEF`.
    pub signing_key: String,
    pub signature: String,
}

/// Keeps a signature by `signer` over the key `key_id` (a device id, or a cross-signing key in base64) of `owner`. Of the
/// signatures by another user only the last is kept: an earlier one is by a key that was replaced.
pub fn add_signature(w: &mut Write<'_>, owner: UserNum, key_id: &str, signature: &Signature) -> Result<()> {
    let mut row = signed_prefix(owner, key_id);
    row.extend_from_slice(&signature.signer.to_key());
    if signature.signer != owner {
        tables::remove_all(w, &KEY_SIGNATURE, &row)?;
    }
    row.extend_from_slice(signature.signing_key.as_bytes());
    w.put(&KEY_SIGNATURE, &row, signature.signature.as_bytes())
}

/// Forgets the signatures that a user's key of that name made over the user's own keys, and those over a cross-signing key
/// that is gone. Bounded by the signatures over one user's keys.
pub fn remove_signatures_of(w: &mut Write<'_>, user: UserNum, key_id: &str) -> Result<()> {
    let (mut rows, made) = (Vec::new(), [&user.to_key()[..], b"ed25519:", key_id.as_bytes()].concat());
    let of_key = signed_prefix(user, key_id);
    w.prefix(&KEY_SIGNATURE, &user.to_key(), &mut |row, _| {
        let behind_key = row.iter().skip(4).position(|byte| *byte == 0).map_or(row.len(), |at| 4 + at + 1);
        if row[behind_key..] == made || row.starts_with(&of_key) {
            rows.push(row.to_vec());
        }
        Ok(ControlFlow::Continue(()))
    })?;
    rows.iter().try_for_each(|row| w.remove(&KEY_SIGNATURE, row).map(drop))
}

/// The signatures over a key by its owner and by `viewer`: signatures by other users are private to them. Bounded by
/// the cap on signatures over one key by one user.
pub fn signatures(get: &impl Get, owner: UserNum, key_id: &str, viewer: Option<UserNum>) -> Result<Vec<Signature>> {
    let mut found = Vec::new();
    let viewer = viewer.filter(|viewer| *viewer != owner);
    for signer in [Some(owner), viewer].into_iter().flatten() {
        let mut prefix = signed_prefix(owner, key_id);
        prefix.extend_from_slice(&signer.to_key());
        get.prefix(&KEY_SIGNATURE, &prefix, &mut |row, value| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            found.push(Signature { signer, signing_key: text(&row[prefix.len()..]), signature: text(value) });
            Ok(ControlFlow::Continue(()))
        })?;
    }
    Ok(found)
}

/// The number of a user's keys that a signer signed. Bounded by a cap for each signer, which is checked against this
/// number.
pub fn signed_by(get: &impl Get, owner: UserNum, signer: UserNum) -> Result<usize> {
    let mut count = 0;
    get.prefix(&KEY_SIGNATURE, &owner.to_key(), &mut |row, _| {
        let behind_key = row[4..].split(|byte| *byte == 0).next().map_or(row.len(), |key| 4 + key.len() + 1);
        count += usize::from(row.get(behind_key..).is_some_and(|rest| rest.starts_with(&signer.to_key())));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(count)
}

/// A device's identity keys as `viewer` may see them, with the signatures over them and its name.
pub fn shown_device_keys(
    get: &impl Get,
    user: UserNum,
    user_id: &str,
    device_id: &str,
    viewer: Option<UserNum>,
) -> Result<Option<Value>> {
    let Some(mut keys) = device_keys(get, user, device_id)? else { return Ok(None) };
    add_signatures(get, &mut keys, user, user_id, device_id, viewer)?;
    if let Some(name) = device::get(get, user, device_id)?.and_then(|row| row.display_name) {
        keys["unsigned"] = json!({ "device_display_name": name });
    }
    Ok(Some(keys))
}

/// Adds the signatures over a key that `viewer` may see.
pub fn add_signatures(
    get: &impl Get,
    signed: &mut Value,
    owner: UserNum,
    owner_id: &str,
    key_id: &str,
    viewer: Option<UserNum>,
) -> Result<()> {
    for one in signatures(get, owner, key_id, viewer)? {
        let signer = if one.signer == owner { owner_id.to_owned() } else { super::id_of(get, one.signer)? };
        show_signature(signed, &signer, &one.signing_key, one.signature);
    }
    Ok(())
}

/// Adds a signature to an object that may come from another server, so its shape is not trusted.
pub fn show_signature(signed: &mut Value, signer: &str, signing_key: &str, signature: String) {
    let Some(object) = signed.as_object_mut() else { return };
    let all = object.entry("signatures").or_insert_with(|| json!({}));
    let Some(by) = all.as_object_mut().map(|all| all.entry(signer).or_insert_with(|| json!({}))) else { return };
    if let Some(by) = by.as_object_mut() {
        by.insert(signing_key.to_owned(), signature.into());
    }
}

fn signed_prefix(owner: UserNum, key_id: &str) -> Vec<u8> {
    device::prefix(owner, key_id)
}

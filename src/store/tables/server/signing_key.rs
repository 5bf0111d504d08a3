//! Other servers' signing keys as they were published, and their last answer about them as they signed it.

use std::ops::ControlFlow;

use ruma::{OwnedServerName, ServerName};

use crate::store::{
    Error, Get, Result, Write,
    schema::{SERVER_KEY, SERVER_KEY_ANSWER},
};

/// One key of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    pub key: [u8; 32],
    /// Signatures made up to this time may be believed, in unix milliseconds.
    pub valid_until_ms: u64,
    /// The server has replaced it; `valid_until_ms` is when.
    pub expired: bool,
}

/// `server NUL key id`; neither holds a zero byte.
pub fn name(server: &ServerName, key_id: &str) -> String {
    format!("{server}\0{key_id}")
}

pub fn get(get: &impl Get, server: &ServerName, key_id: &str) -> Result<Option<Stored>> {
    let key = name(server, key_id);
    match get.get(&SERVER_KEY, key.as_bytes())? {
        Some(row) => decode(&row).map(Some).ok_or_else(|| Error::corrupt(&SERVER_KEY, key.as_bytes())),
        None => Ok(None),
    }
}

pub fn set(write: &mut Write, server: &ServerName, key_id: &str, stored: &Stored) -> Result<()> {
    write.put(&SERVER_KEY, name(server, key_id).as_bytes(), &encode(stored))
}

/// All keys of a server; one answer bounds how many it adds, and they accumulate as the server changes them.
pub fn list(get: &impl Get, server: &ServerName) -> Result<Vec<(String, Stored)>> {
    let prefix = name(server, "");
    let mut found = Vec::new();
    get.prefix(&SERVER_KEY, prefix.as_bytes(), &mut |key, row| {
        let corrupt = || Error::corrupt(&SERVER_KEY, key);
        let id = std::str::from_utf8(&key[prefix.len()..]).map_err(|_| corrupt())?;
        found.push((id.to_owned(), decode(row).ok_or_else(corrupt)?));
        Ok(if found.len() < LIST_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(found)
}

/// Keys of one server that are read; more are ignored.
const LIST_MAX: usize = 256;

/// Whether any key of the server is still believed at `at_ms`.
pub fn has_valid(get: &impl Get, server: &ServerName, at_ms: u64) -> Result<bool> {
    Ok(list(get, server)?.iter().any(|(_, stored)| !stored.expired && stored.valid_until_ms >= at_ms))
}

/// The server's last answer and when it was fetched, in unix milliseconds.
pub fn answer(get: &impl Get, server: &ServerName) -> Result<Option<(u64, Vec<u8>)>> {
    let Some(row) = get.get(&SERVER_KEY_ANSWER, server.as_bytes())? else { return Ok(None) };
    let (at, raw) =
        row.split_first_chunk::<8>().ok_or_else(|| Error::corrupt(&SERVER_KEY_ANSWER, server.as_bytes()))?;
    Ok(Some((u64::from_be_bytes(*at), raw.to_vec())))
}

/// Every server whose keys were fetched and when, in unix milliseconds, in order of name, behind `after`.
pub fn fetched(
    get: &impl Get,
    after: Option<&ServerName>,
    visit: &mut dyn FnMut(OwnedServerName, u64) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let from = after.map_or(Vec::new(), |after| [after.as_bytes(), &[0]].concat());
    get.range(&SERVER_KEY_ANSWER, &from, None, false, &mut |key, row| {
        let corrupt = || Error::corrupt(&SERVER_KEY_ANSWER, key);
        let server = std::str::from_utf8(key).ok().and_then(|name| name.try_into().ok()).ok_or_else(corrupt)?;
        let (at, _) = row.split_first_chunk::<8>().ok_or_else(corrupt)?;
        visit(server, u64::from_be_bytes(*at))
    })
}

/// Forgets a server's keys. With very many keys, the rest is removed the next time they are fetched and forgotten.
pub fn remove(write: &mut Write, server: &ServerName) -> Result<()> {
    write.remove_prefix(&SERVER_KEY, name(server, "").as_bytes(), LIST_MAX)?;
    write.remove(&SERVER_KEY_ANSWER, server.as_bytes()).map(drop)
}

/// Writes a server's answer down; an empty one says only when it was fetched.
pub fn set_answer(write: &mut Write, server: &ServerName, at_ms: u64, raw: &[u8]) -> Result<()> {
    write.put(&SERVER_KEY_ANSWER, server.as_bytes(), &[&at_ms.to_be_bytes()[..], raw].concat())
}

fn encode(stored: &Stored) -> [u8; 41] {
    let mut row = [0; 41];
    row[..8].copy_from_slice(&stored.valid_until_ms.to_be_bytes());
    row[8] = u8::from(stored.expired);
    row[9..].copy_from_slice(&stored.key);
    row
}

fn decode(row: &[u8]) -> Option<Stored> {
    let (valid_until, rest) = row.split_first_chunk::<8>()?;
    let (expired, key) = rest.split_first()?;
    let key = key.try_into().ok()?;
    Some(Stored { key, valid_until_ms: u64::from_be_bytes(*valid_until), expired: *expired == 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_are_a_row_or_damage() {
        crate::base::any_bytes::any_bytes(&[&[7; 50]], |bytes| {
            assert!(decode(bytes).is_none_or(|row| row.key.len() == 32))
        });
    }
}

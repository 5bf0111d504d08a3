//! Other servers: the ones to leave alone for now, and the progress of each in the outbound log.

use std::ops::ControlFlow;

use ruma::{OwnedServerName, ServerName};

use crate::store::{
    Error, Get, Position, Result, Write,
    schema::{SERVER_CURSOR, SERVER_STANDING},
};

pub mod follower;
pub mod outbox;
pub mod service;
pub mod signing_key;

/// Whether a server is worth asking.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Failures in a row, the last one included.
    pub failures: u32,
    /// Not before this time, in unix milliseconds.
    pub retry_at_ms: u64,
}

/// No failure makes a longer pause: half a day, and half of that again.
const PAUSE_MS_MAX: u64 = 24 * 3_600_000;

impl Standing {
    /// A pause that ends later than any was noted while the clock was ahead, and would last for years: it is over.
    pub fn within_reason(self, now_ms: u64) -> Standing {
        match self.retry_at_ms > now_ms + PAUSE_MS_MAX {
            true => Standing { retry_at_ms: now_ms, ..self },
            false => self,
        }
    }
}

/// The standing of a server that has failed lately.
pub fn standing(get: &impl Get, server: &ServerName) -> Result<Option<Standing>> {
    let key = server.as_bytes();
    let Some(row) = get.get(&SERVER_STANDING, key)? else { return Ok(None) };
    unpack_standing(&row).map(Some).ok_or_else(|| Error::corrupt(&SERVER_STANDING, key))
}

fn unpack_standing(row: &[u8]) -> Option<Standing> {
    let (failures, retry_at) = row.split_first_chunk::<4>()?;
    let retry_at: &[u8; 8] = retry_at.try_into().ok()?;
    Some(Standing { failures: u32::from_be_bytes(*failures), retry_at_ms: u64::from_be_bytes(*retry_at) })
}

/// A server in good standing has no row.
pub fn set_standing(write: &mut Write, server: &ServerName, standing: Standing) -> Result<()> {
    if standing.failures == 0 {
        return write.remove(&SERVER_STANDING, server.as_bytes()).map(drop);
    }
    let row = [&standing.failures.to_be_bytes()[..], &standing.retry_at_ms.to_be_bytes()[..]].concat();
    write.put(&SERVER_STANDING, server.as_bytes(), &row)
}

/// Every server that failed lately, in order of name, behind `after`.
pub fn standings(
    get: &impl Get,
    after: Option<&ServerName>,
    visit: &mut dyn FnMut(OwnedServerName, Standing) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let from = after.map_or(Vec::new(), |after| [after.as_bytes(), &[0]].concat());
    get.range(&SERVER_STANDING, &from, None, false, &mut |key, row| {
        let corrupt = || Error::corrupt(&SERVER_STANDING, key);
        let server = std::str::from_utf8(key).ok().and_then(|name| name.try_into().ok()).ok_or_else(corrupt)?;
        visit(server, unpack_standing(row).ok_or_else(corrupt)?)
    })
}

/// The progress of the outbound log's reader, and of each server that lags behind it. A server that has everything has
/// no row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// Everything up to here was delivered.
    pub position: Position,
    /// The time since which it lags, in unix milliseconds.
    pub since_ms: u64,
}

/// The row of the log's reader itself: no server name is empty.
const READER: &[u8] = b"";

pub fn reader(get: &impl Get) -> Result<Option<Position>> {
    let Some(row) = get.get(&SERVER_CURSOR, READER)? else { return Ok(None) };
    Position::from_key(&row).map(Some).ok_or_else(|| Error::corrupt(&SERVER_CURSOR, READER))
}

pub fn set_reader(write: &mut Write, position: Position) -> Result<()> {
    write.put(&SERVER_CURSOR, READER, &position.to_key())
}

pub fn set_cursor(write: &mut Write, server: &ServerName, cursor: Option<Cursor>) -> Result<()> {
    let Some(cursor) = cursor else { return write.remove(&SERVER_CURSOR, server.as_bytes()).map(drop) };
    let row = [cursor.position.to_key(), cursor.since_ms.to_be_bytes()].concat();
    write.put(&SERVER_CURSOR, server.as_bytes(), &row)
}

/// The progress of a server; none when it has everything.
pub fn cursor(get: &impl Get, server: &ServerName) -> Result<Option<Cursor>> {
    let key = server.as_bytes();
    let Some(row) = get.get(&SERVER_CURSOR, key)? else { return Ok(None) };
    unpack_cursor(&row).map(Some).ok_or_else(|| Error::corrupt(&SERVER_CURSOR, key))
}

fn unpack_cursor(row: &[u8]) -> Option<Cursor> {
    let (position, since) = row.split_first_chunk::<8>()?;
    let since: &[u8; 8] = since.try_into().ok()?;
    Some(Cursor { position: Position(u64::from_be_bytes(*position)), since_ms: u64::from_be_bytes(*since) })
}

/// Every server that lags, in order of name, behind `after`.
pub fn cursors(
    get: &impl Get,
    after: Option<&ServerName>,
    visit: &mut dyn FnMut(OwnedServerName, Cursor) -> Result<ControlFlow<()>>,
) -> Result<()> {
    // No name is empty, so the reader's row is before all of them.
    let from = [after.map_or(&b""[..], |after| after.as_bytes()), &[0]].concat();
    get.range(&SERVER_CURSOR, &from, None, false, &mut |key, row| {
        let corrupt = || Error::corrupt(&SERVER_CURSOR, key);
        let server = std::str::from_utf8(key).ok().and_then(|name| name.try_into().ok()).ok_or_else(corrupt)?;
        visit(server, unpack_cursor(row).ok_or_else(corrupt)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_are_a_standing_and_a_cursor_or_damage() {
        crate::base::any_bytes::any_bytes(&[b"\x01\x02\x03\x04", b"\x80\x01\xff\x01\x05"], |bytes| {
            let _ = (unpack_standing(bytes).is_some(), unpack_cursor(bytes).is_some());
        });
    }
}

//! Typed rows and their few verbs, a folder for each owner and a file for each noun; free functions over `&impl Get` and
//! `&mut Write`. Rooms may name users; `tests/it/floors.rs` holds that.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Error, Get, Position, Result, Table, Write};

pub mod backups;
pub mod media;
pub mod preview;
pub mod room;
pub mod server;
pub mod thumbnail;
pub mod user;

/// A hash as rows and the names of files have it.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A row that is a JSON value.
fn get_json<T: DeserializeOwned>(get: &impl Get, table: &Table, key: &[u8]) -> Result<Option<T>> {
    get.get(table, key)?.map(|value| parse(table, key, &value)).transpose()
}

fn put_json(w: &mut Write<'_>, table: &Table, key: &[u8], value: &impl Serialize) -> Result<()> {
    // Only values without maps of non-string keys are stored, so this cannot fail.
    let json = serde_json::to_vec(value).map_err(|_| Error::corrupt(table, key))?;
    w.put(table, key, &json)
}

fn parse<T: DeserializeOwned>(table: &Table, key: &[u8], value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|_| Error::corrupt(table, key))
}

/// Removes all rows under a prefix; a cap bounds their number.
fn remove_all(w: &mut Write<'_>, table: &Table, prefix: &[u8]) -> Result<()> {
    w.remove_prefix(table, prefix, usize::MAX).map(drop)
}

/// The range of positions after `since`, up to and with `to`, behind a prefix: from, and the end it does not reach.
fn after_up_to(prefix: &[u8], since: Position, to: Position) -> (Vec<u8>, Vec<u8>) {
    let at = |position: u64| [prefix, &position.saturating_add(1).to_be_bytes()].concat();
    (at(since.0), at(to.0))
}

/// The number a key ends with.
fn u64_at_end(key: &[u8]) -> Option<u64> {
    key.last_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

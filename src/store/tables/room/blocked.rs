//! Rooms that an administrator blocked: known here or not, nobody of this server may come into them.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::store::schema::ROOM_BLOCKED;
use crate::store::{Error, Get, Result, Write, tables};

/// Who blocked a room, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    pub by: String,
    pub at_ms: u64,
}

pub fn get(get: &impl Get, room_id: &str) -> Result<Option<Blocked>> {
    tables::get_json(get, &ROOM_BLOCKED, room_id.as_bytes())
}

/// At most `most` of them, from behind a room id on.
pub fn list_after(get: &impl Get, after: &str, most: usize) -> Result<Vec<(String, Blocked)>> {
    let (from, mut list) = ([after.as_bytes(), &[0]].concat(), Vec::new());
    get.range(&ROOM_BLOCKED, &from, None, false, &mut |key, value| {
        let room_id = std::str::from_utf8(key).map_err(|_| Error::corrupt(&ROOM_BLOCKED, key))?;
        list.push((room_id.to_owned(), tables::parse(&ROOM_BLOCKED, key, value)?));
        Ok(if list.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(list)
}

pub fn set(w: &mut Write<'_>, room_id: &str, blocked: Option<&Blocked>) -> Result<()> {
    match blocked {
        Some(blocked) => tables::put_json(w, &ROOM_BLOCKED, room_id.as_bytes(), blocked),
        None => w.remove(&ROOM_BLOCKED, room_id.as_bytes()).map(drop),
    }
}

//! Rooms that an administrator blocked: known here or not, nobody of this server may come into them.

use serde::{Deserialize, Serialize};

use crate::store::schema::ROOM_BLOCKED;
use crate::store::{Get, Result, Write, tables};

/// Who blocked a room, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocked {
    pub by: String,
    pub at_ms: u64,
}

pub fn get(get: &impl Get, room_id: &str) -> Result<Option<Blocked>> {
    tables::get_json(get, &ROOM_BLOCKED, room_id.as_bytes())
}

pub fn set(w: &mut Write<'_>, room_id: &str, blocked: Option<&Blocked>) -> Result<()> {
    match blocked {
        Some(blocked) => tables::put_json(w, &ROOM_BLOCKED, room_id.as_bytes(), blocked),
        None => w.remove(&ROOM_BLOCKED, room_id.as_bytes()).map(drop),
    }
}

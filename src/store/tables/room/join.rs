//! Journals of joins under way, and rooms that the operator let in.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::store::schema::{JOIN, ROOM_ALLOWED};
use crate::store::{Error, Get, Result, Write, tables};

/// The progress of a join. Each stage is written before the next one begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The join event may have been sent; no answer came yet.
    Asked,
    /// The resident accepted and left the members out. From here the room could be used before the rest arrives.
    Partial,
    /// Batches are being stored.
    Streaming,
    /// Everything needed is stored: the following stages need no other server.
    Ordered,
    /// Numbers are reserved and rows are being written under them.
    Indexed,
    /// The room is there; only the log is left to remove.
    Live,
    /// Given up; everything it wrote is to be removed.
    Cancelled,
}

/// A join's journal row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    pub room_id: String,
    pub user_id: String,
    /// The room's version, once a resident said it.
    #[serde(default)]
    pub version: String,
    pub stage: Stage,
    pub begun_ms: u64,
    /// Servers to ask, best first; the one that accepted our event comes to the front.
    pub residents: Vec<String>,
    /// The content of the join event as the client wants it: reason, name, picture.
    #[serde(default)]
    pub content: serde_json::Map<String, serde_json::Value>,
    /// The join event, once it was sent, as canonical JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// The number of times a body was streamed; state flags of an earlier body do not count.
    #[serde(default)]
    pub attempt: u32,
    /// Batches stored, over all attempts.
    #[serde(default)]
    pub batches: u32,
    #[serde(default)]
    pub events: u64,
    /// Bytes of those events' canonical JSON.
    #[serde(default)]
    pub bytes: u64,
    /// Nodes the log has, and whether some id may have several: known once everything is stored.
    #[serde(default)]
    pub nodes: u32,
    #[serde(default)]
    pub forgetful: bool,
    /// Estimate at admission: events and bytes on disk. The join is stopped when it goes well beyond the estimate.
    #[serde(default)]
    pub events_expected: u64,
    /// Whether an admin allowed this room whatever its size.
    #[serde(default)]
    pub override_size: bool,
    /// The room's number, reserved with the event numbers.
    #[serde(default)]
    pub room: Option<u32>,
    /// First and count of the reserved event numbers.
    #[serde(default)]
    pub event_nums: Option<(u32, u32)>,
}

/// A join's own small number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JoinNum(pub u32);

impl JoinNum {
    fn key(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }

    pub fn batch_key(self, batch: u32) -> [u8; 8] {
        let mut key = [0; 8];
        key[..4].copy_from_slice(&self.key());
        key[4..].copy_from_slice(&batch.to_be_bytes());
        key
    }
}

/// A new join's number.
pub fn new_join(w: &mut Write<'_>) -> Result<JoinNum> {
    w.next_numbers("join", 1).map(JoinNum)
}

pub fn journal(get: &impl Get, join: JoinNum) -> Result<Option<Journal>> {
    tables::get_json(get, &JOIN, &join.key())
}

pub fn set_journal(w: &mut Write<'_>, join: JoinNum, journal: &Journal) -> Result<()> {
    tables::put_json(w, &JOIN, &join.key(), journal)
}

/// The last row of the journal to be removed: a join without one never was.
pub fn remove_journal(w: &mut Write<'_>, join: JoinNum) -> Result<()> {
    w.remove(&JOIN, &join.key()).map(drop)
}

/// All joins under way or to be cleaned up: as many as the join account runs at once, and those left by crashes.
pub fn journals(get: &impl Get) -> Result<Vec<(JoinNum, Journal)>> {
    let mut list = Vec::new();
    get.range(&JOIN, &[], None, false, &mut |key, value| {
        let num = key.try_into().map(u32::from_be_bytes).map_err(|_| Error::corrupt(&JOIN, key))?;
        list.push((JoinNum(num), tables::parse(&JOIN, key, value)?));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(list)
}

/// The decision, made or still open, about a room too large to join without asking.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowed {
    pub allowed: bool,
    /// The first user who asked, the size that the room claimed, and the time.
    #[serde(default)]
    pub user_id: String,
    #[serde(default)]
    pub events: u64,
    #[serde(default)]
    pub at_ms: u64,
}

pub fn allowed(get: &impl Get, room_id: &str) -> Result<Option<Allowed>> {
    tables::get_json(get, &ROOM_ALLOWED, room_id.as_bytes())
}

pub fn set_allowed(w: &mut Write<'_>, room_id: &str, allowed: Option<&Allowed>) -> Result<()> {
    match allowed {
        Some(allowed) => tables::put_json(w, &ROOM_ALLOWED, room_id.as_bytes(), allowed),
        None => w.remove(&ROOM_ALLOWED, room_id.as_bytes()).map(drop),
    }
}

/// Rooms that a user asked for or an admin allowed, at most `most`.
pub fn list_allowed(get: &impl Get, most: usize) -> Result<Vec<(String, Allowed)>> {
    let mut list = Vec::new();
    get.range(&ROOM_ALLOWED, &[], None, false, &mut |key, value| {
        if list.len() == most {
            return Ok(ControlFlow::Break(()));
        }
        let room_id = std::str::from_utf8(key).map_err(|_| Error::corrupt(&ROOM_ALLOWED, key))?;
        list.push((room_id.to_owned(), tables::parse(&ROOM_ALLOWED, key, value)?));
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(list)
}

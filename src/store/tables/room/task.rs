//! What administrators asked to be done with rooms and takes longer than a request: closing one, removing old messages. The row
//! says how far it is, and stays for a while when it is over, so that it can be asked after; a start goes on with what is not.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::store::schema::ROOM_TASK;
use crate::store::{Error, Get, Result, Write, tables};

/// The key of a task: when it began, and 64 bits of chance, which make its name one that is not guessed.
pub type Key = [u8; 16];

fn key(begun_ms: u64, chance: u64) -> Key {
    (u128::from(begun_ms) << 64 | u128::from(chance)).to_be_bytes()
}

/// Adds a task that begins now, behind all others: of those of one millisecond, chance would say which was first.
pub fn add(w: &mut Write<'_>, begun_ms: u64, chance: u64, task: &Task) -> Result<Key> {
    let mut new = key(begun_ms, chance);
    w.range(&ROOM_TASK, &[], None, true, &mut |last, _| {
        if last >= &new[..] {
            let last_ms = last.first_chunk().map_or(begun_ms, |ms| u64::from_be_bytes(*ms));
            new = key(last_ms + 1, chance);
        }
        Ok(ControlFlow::Break(()))
    })?;
    put(w, &new, task)?;
    Ok(new)
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Empty for old messages of all rooms.
    pub room_id: String,
    /// The administrator who asked, or nobody: the owner at the command line.
    pub by: Option<String>,
    pub what: What,
    pub stage: Stage,
    /// Why it came to nothing.
    pub error: Option<String>,
    /// When it was over.
    pub ended_ms: Option<u64>,
    #[serde(default)]
    pub gone: Gone,
}

/// What a removal of old messages has removed, as far as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    pub events: u64,
    pub bytes: u64,
    /// Of all rooms, those up to this one are done.
    pub after: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Waiting,
    /// People here leave the room, and other servers are told since then.
    Telling {
        since_ms: u64,
    },
    /// Its rows go.
    Removing,
    Done,
    Failed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Close(Box<Close>),
    /// Removes the messages before a time and before an event, other servers' alone unless `own` too.
    History {
        before_ms: Option<u64>,
        before_event: Option<String>,
        own: bool,
    },
}

/// A room that people of this server leave.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Close {
    /// Who makes the room into which people come instead.
    pub new_room_by: Option<String>,
    pub new_room_name: Option<String>,
    pub message: Option<String>,
    /// Whether all of it is removed afterwards.
    pub purge: bool,
    /// What came of it, as far as it is: those of the names that there is room for.
    pub new_room_id: Option<String>,
    pub kicked: Vec<String>,
    pub failed: Vec<String>,
    pub aliases: Vec<String>,
}

impl Task {
    pub fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Done | Stage::Failed)
    }

    pub fn is_closing(&self) -> bool {
        self.closing().is_some()
    }

    pub fn closing(&self) -> Option<&Close> {
        match &self.what {
            What::Close(close) => Some(close),
            What::History { .. } => None,
        }
    }
}

pub fn get(get: &impl Get, key: &Key) -> Result<Option<Task>> {
    tables::get_json(get, &ROOM_TASK, key)
}

pub fn put(w: &mut Write<'_>, key: &Key, task: &Task) -> Result<()> {
    tables::put_json(w, &ROOM_TASK, key, task)
}

pub fn remove(w: &mut Write<'_>, key: &Key) -> Result<()> {
    w.remove(&ROOM_TASK, key).map(drop)
}

/// Visits the tasks behind one, the oldest first.
pub fn each(
    get: &impl Get,
    after: Option<&Key>,
    visit: &mut dyn FnMut(Key, Task) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let from = after.map_or(Vec::new(), |after| [&after[..], &[0]].concat());
    get.range(&ROOM_TASK, &from, None, false, &mut |key, value| {
        let at = key.try_into().map_err(|_| Error::corrupt(&ROOM_TASK, key))?;
        visit(at, tables::parse(&ROOM_TASK, key, value)?)
    })
}

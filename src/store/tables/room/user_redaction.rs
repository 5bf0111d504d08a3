//! What an administrator asked to be redacted of one user: a task with how far it is, and for a while what came of it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::store::schema::USER_REDACTION;
use crate::store::tables;
use crate::store::{Get, Result, Write};

/// A task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRedaction {
    pub user: String,
    /// The administrator.
    pub by: String,
    /// Whether the administrator sends the redactions, instead of the user.
    pub as_admin: bool,
    pub reason: Option<String>,
    pub before_ms: Option<u64>,
    pub after_ms: Option<u64>,
    /// Events of each room.
    pub most: u32,
    /// The rooms, where they are named; otherwise all.
    pub rooms: Vec<String>,
    pub asked_ms: u64,
    pub done_ms: Option<u64>,
    /// The next of the named rooms, or the number of the one before the next.
    pub at: u32,
    /// Events of that room before this place are still to be looked at.
    pub before: Option<i64>,
    /// Events of that room that were taken.
    pub taken: u32,
    pub redacted: u64,
    /// Why events were not redacted.
    pub failed: BTreeMap<String, String>,
}

pub fn get(get: &impl Get, id: &str) -> Result<Option<UserRedaction>> {
    tables::get_json(get, &USER_REDACTION, id.as_bytes())
}

pub fn put(w: &mut Write<'_>, id: &str, task: &UserRedaction) -> Result<()> {
    tables::put_json(w, &USER_REDACTION, id.as_bytes(), task)
}

pub fn remove(w: &mut Write<'_>, id: &str) -> Result<()> {
    w.remove(&USER_REDACTION, id.as_bytes()).map(drop)
}

/// Visits all tasks, with one in memory at a time: a row may have 200 KiB. How many there are is bounded by who puts them.
pub fn each(get: &impl Get, visit: &mut dyn FnMut(String, UserRedaction)) -> Result<()> {
    get.prefix(&USER_REDACTION, b"", &mut |key, value| {
        visit(String::from_utf8_lossy(key).into_owned(), tables::parse(&USER_REDACTION, key, value)?);
        Ok(ControlFlow::Continue(()))
    })
}

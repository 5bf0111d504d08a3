//! Events that are sent later (MSC4140): those that wait, by when they are due, and those that are over, for a while.
//!
//! `delayed_user` and a row for all have the number and bytes of the events that are kept, so that bounds are held without
//! walking them.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::store::schema::{DELAYED, DELAYED_DUE, DELAYED_USER};
use crate::store::{Error, Get, Result, UserNum, Write, tables};

/// An event that is sent later, or was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delayed {
    pub user: u32,
    pub room_id: String,
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_key: Option<String>,
    /// JSON.
    pub content: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky_ms: Option<u64>,
    pub delay_ms: u64,
    /// When it was scheduled, or last restarted.
    pub since_ms: u64,
    /// When it stands in the list of what is due: later than it should be after a passing failure; when it is forgotten, for
    /// one that is over.
    pub due_ms: u64,
    /// The connection to a media server with which it ends: while that is there, the event waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<Call>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
}

/// Somebody's connection to a media server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    pub alias: String,
    pub identity: String,
    /// Whether it was ever seen there.
    #[serde(default)]
    pub seen: bool,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// Code and sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<(String, String)>,
}

impl Delayed {
    /// What counts for the bounds.
    pub fn bytes(&self) -> u64 {
        let texts = [self.room_id.len(), self.kind.len(), self.state_key.as_ref().map_or(0, String::len)];
        (self.content.len() + texts.iter().sum::<usize>()) as u64
    }
}

/// How many there are, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub count: u64,
    pub bytes: u64,
}

pub fn get(get: &impl Get, id: &str) -> Result<Option<Delayed>> {
    tables::get_json(get, &DELAYED, id.as_bytes())
}

/// Stores a new event, or changes one: its place in the lists follows.
pub fn put(w: &mut Write<'_>, id: &str, delayed: &Delayed) -> Result<()> {
    let user = UserNum(delayed.user);
    match get(w, id)? {
        Some(before) => {
            w.remove(&DELAYED_DUE, &due_key(before.due_ms, id))?;
        }
        None => weigh(w, user, |held| Held { count: held.count + 1, bytes: held.bytes + delayed.bytes() })?,
    }
    let ended_ms = delayed.end.as_ref().map_or(0, |end| end.at_ms);
    w.put(&DELAYED_DUE, &due_key(delayed.due_ms, id), &[])?;
    w.put(&DELAYED_USER, &user_key(user, id), &ended_ms.to_be_bytes())?;
    tables::put_json(w, &DELAYED, id.as_bytes(), delayed)
}

/// Forgets an event.
pub fn remove(w: &mut Write<'_>, id: &str) -> Result<()> {
    let Some(before) = get(w, id)? else { return Ok(()) };
    let (user, bytes) = (UserNum(before.user), before.bytes());
    let less = |held: Held| Held { count: held.count.saturating_sub(1), bytes: held.bytes.saturating_sub(bytes) };
    weigh(w, user, less)?;
    w.remove(&DELAYED_DUE, &due_key(before.due_ms, id))?;
    w.remove(&DELAYED_USER, &user_key(user, id))?;
    w.remove(&DELAYED, id.as_bytes())?;
    Ok(())
}

/// The event that is due first, and when.
pub fn first_due(get: &impl Get) -> Result<Option<(u64, String)>> {
    let Some((key, _)) = get.first(&DELAYED_DUE, &[], None, false)? else { return Ok(None) };
    due_of(&key).map(Some)
}

/// The first ids of those that are due behind a time, `max` at most.
pub fn due_after(get: &impl Get, after_ms: u64, max: usize) -> Result<Vec<String>> {
    let (mut found, from) = (Vec::new(), due_key(after_ms.saturating_add(1), ""));
    get.range(&DELAYED_DUE, &from, None, false, &mut |key, _| {
        found.push(due_of(key)?.1);
        Ok(if found.len() < max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(found)
}

fn due_of(key: &[u8]) -> Result<(u64, String)> {
    let corrupt = || Error::corrupt(&DELAYED_DUE, key);
    let (due, id) = key.split_at_checked(8).ok_or_else(corrupt)?;
    let due = u64::from_be_bytes(due.try_into().map_err(|_| corrupt())?);
    Ok((due, String::from_utf8(id.to_vec()).map_err(|_| corrupt())?))
}

/// The ids of a user's events, and when each ended; 0 for one that waits. Bounded by what one user may have.
pub fn list(get: &impl Get, user: UserNum) -> Result<Vec<(String, u64)>> {
    let mut found = Vec::new();
    get.prefix(&DELAYED_USER, &user.to_key(), &mut |key, value| {
        let corrupt = || Error::corrupt(&DELAYED_USER, key);
        if key.len() > 4 {
            let ended = u64::from_be_bytes(value.try_into().map_err(|_| corrupt())?);
            let id = std::str::from_utf8(&key[4..]).map_err(|_| corrupt())?;
            found.push((id.to_owned(), ended));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// What a user holds, or everybody together.
pub fn held(get: &impl Get, user: Option<UserNum>) -> Result<Held> {
    let key = held_key(user);
    let Some(row) = get.get(&DELAYED_USER, &key)? else { return Ok(Held::default()) };
    let (count, bytes) = row.split_at_checked(8).ok_or_else(|| Error::corrupt(&DELAYED_USER, &key))?;
    let number = |part: &[u8]| part.try_into().map(u64::from_be_bytes).map_err(|_| Error::corrupt(&DELAYED_USER, &key));
    Ok(Held { count: number(count)?, bytes: number(bytes)? })
}

fn weigh(w: &mut Write<'_>, user: UserNum, change: impl Fn(Held) -> Held) -> Result<()> {
    for of in [Some(user), None] {
        let Held { count, bytes } = change(held(w, of)?);
        w.put(&DELAYED_USER, &held_key(of), &[count.to_be_bytes(), bytes.to_be_bytes()].concat())?;
    }
    Ok(())
}

fn held_key(user: Option<UserNum>) -> Vec<u8> {
    user.map_or(Vec::new(), |user| user.to_key().to_vec())
}

fn user_key(user: UserNum, id: &str) -> Vec<u8> {
    [&user.to_key()[..], id.as_bytes()].concat()
}

fn due_key(due_ms: u64, id: &str) -> Vec<u8> {
    [&due_ms.to_be_bytes()[..], id.as_bytes()].concat()
}

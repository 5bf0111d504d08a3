//! Account data: the entries an app keeps for its user, global or for one room; each has a type and a JSON object.
//!
//! Push rules are the row of type `m.push_rules` and tags the room rows of type `m.tag`; only their own endpoints
//! write those. Beside the rows stands a log of the latest change of each, for `/sync`. The row of an entry that was removed
//! has no text, until many others were removed: apps that saw the entry are told that it is empty.

use std::ops::ControlFlow;

use crate::store::schema::{ACCOUNT_DATA, ACCOUNT_DATA_LOG};
use crate::store::{Error, Get, Position, Result, RoomNum, UserNum, Write, tables};

/// The room number that stands for "all rooms together"; rooms are counted from one.
pub const GLOBAL: RoomNum = RoomNum(0);

/// Removed entries of which each user's removal is remembered, those removed last: at most 64 rows of 300 bytes, and as many
/// in the log. An app that asks since before an older removal goes on with what it has.
const REMOVED_MAX: usize = 64;

/// The JSON text of one entry.
pub fn get(get: &impl Get, user: UserNum, room: RoomNum, kind: &str) -> Result<Option<Vec<u8>>> {
    Ok(told(get, user, room, kind)?.filter(|json| !json.is_empty()))
}

/// The JSON text of one entry, empty for one that was removed.
pub fn told(get: &impl Get, user: UserNum, room: RoomNum, kind: &str) -> Result<Option<Vec<u8>>> {
    let Some(mut value) = get.get(&ACCOUNT_DATA, &row(user, room, kind))? else { return Ok(None) };
    if value.len() < 8 {
        return Err(Error::corrupt(&ACCOUNT_DATA, &row(user, room, kind)));
    }
    Ok(Some(value.split_off(8)))
}

/// When one entry was last set; none where it is empty or was never set.
pub fn set_at(get: &impl Get, user: UserNum, room: RoomNum, kind: &str) -> Result<Option<Position>> {
    let Some(value) = get.get(&ACCOUNT_DATA, &row(user, room, kind))? else { return Ok(None) };
    match value.get(..8).and_then(Position::from_key) {
        Some(at) => Ok((value.len() > 8).then_some(at)),
        None => Err(Error::corrupt(&ACCOUNT_DATA, &row(user, room, kind))),
    }
}

/// Sets one entry, at a position of its own.
pub fn set(w: &mut Write<'_>, user: UserNum, room: RoomNum, kind: &str, json: &[u8]) -> Result<Position> {
    let row = row(user, room, kind);
    let old = w.get(&ACCOUNT_DATA, &row)?;
    if let Some(at) = old.as_deref().and_then(|value| value.get(..8)) {
        let log = [&user.to_key()[..], at].concat();
        w.remove(&ACCOUNT_DATA_LOG, &log)?;
    }
    let position = w.next_position();
    w.put(&ACCOUNT_DATA, &row, &[&position.to_key()[..], json].concat())?;
    w.put(&ACCOUNT_DATA_LOG, &[user.to_key().as_slice(), &position.to_key()].concat(), &row[4..])?;
    Ok(position)
}

/// Removes one entry; syncs tell that it is empty. Answers whether there was one. Bounded by the cap on entries of one user.
pub fn remove(w: &mut Write<'_>, user: UserNum, room: RoomNum, kind: &str) -> Result<bool> {
    if get(w, user, room, kind)?.is_none() {
        return Ok(false);
    }
    set_empty(w, user, room, kind)?;
    Ok(true)
}

/// Lets syncs tell that an entry is empty, also when there was none. Bounded by the cap on entries of one user.
pub fn set_empty(w: &mut Write<'_>, user: UserNum, room: RoomNum, kind: &str) -> Result<()> {
    set(w, user, room, kind, b"")?;
    let mut removed = Vec::new();
    w.prefix(&ACCOUNT_DATA, &user.to_key(), &mut |row, value| {
        if value.len() == 8 {
            removed.push((value.to_vec(), row.to_vec()));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    removed.sort_unstable();
    for (at, row) in &removed[..removed.len().saturating_sub(REMOVED_MAX)] {
        w.remove(&ACCOUNT_DATA_LOG, &[&user.to_key()[..], at].concat())?;
        w.remove(&ACCOUNT_DATA, row)?;
    }
    Ok(())
}

/// Visits a user's entries for one room, or for [`GLOBAL`], with the position each was last set at; the text of one that was
/// removed is empty. Bounded by the cap on entries of one user.
pub fn each(
    get: &impl Get,
    user: UserNum,
    room: RoomNum,
    visit: &mut dyn FnMut(&str, Position, &[u8]) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let prefix = row(user, room, "");
    get.prefix(&ACCOUNT_DATA, &prefix, &mut |row, value| {
        let kind = std::str::from_utf8(&row[prefix.len()..]).map_err(|_| Error::corrupt(&ACCOUNT_DATA, row))?;
        let position = value.get(..8).and_then(Position::from_key);
        visit(kind, position.ok_or_else(|| Error::corrupt(&ACCOUNT_DATA, row))?, &value[8..])
    })
}

/// The next room behind `after` for which a user has an entry; [`GLOBAL`] is none. Rows of removed entries count.
pub fn next_room(get: &impl Get, user: UserNum, after: Option<RoomNum>) -> Result<Option<RoomNum>> {
    let next = RoomNum(after.unwrap_or(GLOBAL).0.saturating_add(1));
    let mut found = None;
    let (from, end) = (row(user, next, ""), crate::store::after_prefix(&user.to_key()));
    get.range(&ACCOUNT_DATA, &from, end.as_deref(), false, &mut |key, _| {
        let room = key.get(4..8).and_then(RoomNum::from_key);
        found = Some(room.ok_or_else(|| Error::corrupt(&ACCOUNT_DATA, key))?);
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}

/// The type of the first entry behind one type, in one room; one that was removed has no text.
pub fn next_kind(get: &impl Get, user: UserNum, room: RoomNum, after: &str) -> Result<Option<String>> {
    let (prefix, mut found) = (row(user, room, ""), None);
    let from = [&row(user, room, after)[..], b"\0"].concat();
    get.range(&ACCOUNT_DATA, &from, crate::store::after_prefix(&prefix).as_deref(), false, &mut |key, _| {
        let kind = std::str::from_utf8(&key[prefix.len()..]).map_err(|_| Error::corrupt(&ACCOUNT_DATA, key))?;
        found = Some(kind.to_owned());
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}

/// Visits the entries set after `since`, up to and with `to`: room ([`GLOBAL`] for none) and type, oldest change first.
pub fn changes(
    get: &impl Get,
    user: UserNum,
    since: Position,
    to: Position,
    visit: &mut dyn FnMut(RoomNum, &str) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let (from, end) = tables::after_up_to(&user.to_key(), since, to);
    get.range(&ACCOUNT_DATA_LOG, &from, Some(&end), false, &mut |key, value| {
        let room = value.get(..4).and_then(RoomNum::from_key);
        let kind = value.get(4..).and_then(|kind| std::str::from_utf8(kind).ok());
        match (room, kind) {
            (Some(room), Some(kind)) => visit(room, kind),
            _ => Err(Error::corrupt(&ACCOUNT_DATA_LOG, key)),
        }
    })
}

/// The number of a user's entries, and their bytes; what was removed does not count. Bounded by the cap that is checked
/// against these numbers.
pub fn size(get: &impl Get, user: UserNum) -> Result<(usize, usize)> {
    let mut size = (0, 0);
    get.prefix(&ACCOUNT_DATA, &user.to_key(), &mut |row, value| {
        if value.len() > 8 {
            size = (size.0 + 1, size.1 + row.len() + value.len());
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(size)
}

/// Forgets all account data of a user.
pub fn remove_user(w: &mut Write<'_>, user: UserNum) -> Result<()> {
    tables::remove_all(w, &ACCOUNT_DATA, &user.to_key())?;
    tables::remove_all(w, &ACCOUNT_DATA_LOG, &user.to_key())
}

/// Forgets what a user has for a room that is removed. A handful of rows. Answers how many.
pub fn remove_room(w: &mut Write<'_>, user: UserNum, room: RoomNum) -> Result<usize> {
    let (mut kinds, prefix) = (Vec::new(), [user.to_key(), room.to_key()].concat());
    w.prefix(&ACCOUNT_DATA, &prefix, &mut |key, value| {
        let corrupt = || Error::corrupt(&ACCOUNT_DATA, key);
        let at = value.get(..8).ok_or_else(corrupt)?.to_vec();
        kinds.push((key.to_vec(), at));
        Ok(ControlFlow::Continue(()))
    })?;
    for (key, at) in &kinds {
        w.remove(&ACCOUNT_DATA_LOG, &[&user.to_key()[..], at].concat())?;
        w.remove(&ACCOUNT_DATA, key)?;
    }
    Ok(2 * kinds.len())
}

fn row(user: UserNum, room: RoomNum, kind: &str) -> Vec<u8> {
    [&user.to_key()[..], &room.to_key()[..], kind.as_bytes()].concat()
}

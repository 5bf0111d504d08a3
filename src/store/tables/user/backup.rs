//! Backups of room keys: the versions of each user, and their keys, which only the user's apps can read.
//!
//! The keys of a version stand under its generation: deleting all of them is one row more in the list of what is to be
//! swept, and a new generation, whatever their number. Versions are numbered for each user and no number is given twice,
//! so that an app that knows an old one never meets another's keys under it.

use std::cmp::Reverse;
use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::store::schema::{BACKUP, BACKUP_GONE, BACKUP_KEY};
use crate::store::{Error, Get, Result, UserNum, Write, after_prefix, tables};

/// A version's row.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Version {
    pub algorithm: String,
    pub auth_data: Box<RawValue>,
    /// Where its keys stand.
    pub generation: u32,
    /// Its keys, and their bytes with those of their names.
    pub size: Size,
    /// Grows with each change of its keys.
    pub etag: u64,
}

/// How much is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    pub count: u64,
    pub bytes: u64,
}

impl Size {
    fn plus(self, other: Size) -> Size {
        Size { count: self.count + other.count, bytes: self.bytes + other.bytes }
    }

    pub fn minus(self, other: Size) -> Size {
        Size { count: self.count.saturating_sub(other.count), bytes: self.bytes.saturating_sub(other.bytes) }
    }
}

/// What decides between two copies of a key; the rest of a copy is opaque.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merit {
    pub is_verified: bool,
    pub first_message_index: u64,
    pub forwarded_count: u64,
}

impl Merit {
    /// Whether this copy takes the place of the other: the one that was verified, then the one that reads from an earlier
    /// message on, then the one that was forwarded less often (client-server API, "Server-side key backups").
    pub fn beats(&self, other: &Merit) -> bool {
        let rank = |one: &Merit| (one.is_verified, Reverse(one.first_message_index), Reverse(one.forwarded_count));
        rank(self) > rank(other)
    }

    fn of_row(row: &[u8]) -> Option<(Merit, &[u8])> {
        let (head, data) = row.split_first_chunk::<MERIT_BYTES>()?;
        let [is_verified, numbers @ ..] = head;
        let ([first_message_index, forwarded_count], []) = numbers.as_chunks::<8>() else { return None };
        let [first_message_index, forwarded_count] =
            [first_message_index, forwarded_count].map(|number| u64::from_be_bytes(*number));
        Some((Merit { is_verified: *is_verified != 0, first_message_index, forwarded_count }, data))
    }
}

const MERIT_BYTES: usize = 17;

/// A key as it is put: where, and what.
#[derive(Clone, Debug)]
pub struct Key {
    pub room: String,
    pub session: String,
    pub merit: Merit,
    /// The JSON text of its `session_data`.
    pub data: Vec<u8>,
}

/// The keys of a version, of one room of it, or one of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    All,
    Room(String),
    Session(String, String),
}

/// Where the keys of one generation of a version stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shelf {
    pub user: UserNum,
    pub version: u32,
    pub generation: u32,
}

impl Shelf {
    fn prefix(self) -> Vec<u8> {
        [self.user.to_key(), self.version.to_be_bytes(), self.generation.to_be_bytes()].concat()
    }

    fn of_key(key: &[u8]) -> Option<Shelf> {
        let ([user, version, generation], []) = key.as_chunks::<4>() else { return None };
        let [version, generation] = [version, generation].map(|number| u32::from_be_bytes(*number));
        Some(Shelf { user: UserNum::from_key(user)?, version, generation })
    }

    /// The rows of a scope: a prefix of their keys, and for one session the key itself.
    fn rows(self, scope: &Scope) -> Vec<u8> {
        let mut row = self.prefix();
        let (room, session) = match scope {
            Scope::All => return row,
            Scope::Room(room) => (room, ""),
            Scope::Session(room, session) => (room, session.as_str()),
        };
        debug_assert!(!room.contains('\0'), "a room id holds no zero byte");
        row.extend_from_slice(room.as_bytes());
        row.push(0);
        row.extend_from_slice(session.as_bytes());
        row
    }
}

/// A version of a user's backup.
pub fn version(get: &impl Get, user: UserNum, version: u32) -> Result<Option<Version>> {
    tables::get_json(get, &BACKUP, &version_row(user, version))
}

pub fn set_version(w: &mut Write<'_>, user: UserNum, number: u32, version: &Version) -> Result<()> {
    tables::put_json(w, &BACKUP, &version_row(user, number), version)
}

/// The newest version of a user, when there is one.
pub fn latest(get: &impl Get, user: UserNum) -> Result<Option<(u32, Version)>> {
    let Some((key, value)) = get.last_in_prefix(&BACKUP, &user.to_key())? else { return Ok(None) };
    match number_of(&key)? {
        0 => Ok(None),
        number => Ok(Some((number, tables::parse(&BACKUP, &key, &value)?))),
    }
}

/// Visits the versions of a user, oldest first. Bounded by the cap on backups of one user.
pub fn each_version(
    get: &impl Get,
    user: UserNum,
    visit: &mut dyn FnMut(u32, Version) -> Result<ControlFlow<()>>,
) -> Result<()> {
    get.prefix(&BACKUP, &user.to_key(), &mut |key, value| match number_of(key)? {
        0 => Ok(ControlFlow::Continue(())),
        number => visit(number, tables::parse(&BACKUP, key, value)?),
    })
}

/// The number given to a user's newest version, deleted ones included; 0 before the first.
pub fn last_number(get: &impl Get, user: UserNum) -> Result<u32> {
    let row = version_row(user, 0);
    let Some(value) = get.get(&BACKUP, &row)? else { return Ok(0) };
    value.try_into().map(u32::from_be_bytes).map_err(|_| Error::corrupt(&BACKUP, &row))
}

/// Adds a version and answers its number.
pub fn add_version(w: &mut Write<'_>, user: UserNum, version: &Version) -> Result<u32> {
    let row = version_row(user, 0);
    let number = last_number(w, user)?.checked_add(1).ok_or_else(|| Error::corrupt(&BACKUP, &row))?;
    w.put(&BACKUP, &row, &number.to_be_bytes())?;
    set_version(w, user, number, version)?;
    Ok(number)
}

/// Removes a version; its keys are left to be swept.
pub fn remove_version(w: &mut Write<'_>, user: UserNum, number: u32, version: &Version) -> Result<()> {
    w.remove(&BACKUP, &version_row(user, number))?;
    give_up(w, Shelf { user, version: number, generation: version.generation }, version.size)
}

/// Leaves all keys of a version to be swept. The version's row is for the caller to put.
pub fn clear_version(w: &mut Write<'_>, user: UserNum, number: u32, version: &mut Version) -> Result<()> {
    give_up(w, Shelf { user, version: number, generation: version.generation }, version.size)?;
    version.generation += 1;
    version.size = Size::default();
    Ok(())
}

fn give_up(w: &mut Write<'_>, shelf: Shelf, size: Size) -> Result<()> {
    if size.count == 0 {
        return Ok(());
    }
    tables::put_json(w, &BACKUP_GONE, &shelf.prefix(), &size)
}

/// All that is kept of a user's keys, with those that are not swept yet.
pub fn size(get: &impl Get, user: UserNum) -> Result<Size> {
    let mut size = Size::default();
    each_version(get, user, &mut |_, version| {
        size = size.plus(version.size);
        Ok(ControlFlow::Continue(()))
    })?;
    get.prefix(&BACKUP_GONE, &user.to_key(), &mut |key, value| {
        size = size.plus(tables::parse(&BACKUP_GONE, key, value)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(size)
}

/// Some keys that are to be swept.
pub fn next_gone(get: &impl Get) -> Result<Option<Shelf>> {
    let Some((key, _)) = get.first_in_prefix(&BACKUP_GONE, &[])? else { return Ok(None) };
    Shelf::of_key(&key).map(Some).ok_or_else(|| Error::corrupt(&BACKUP_GONE, &key))
}

/// Removes at most `most` keys that are to be swept, and answers how many there were; with the last of them the note of it.
pub fn sweep(w: &mut Write<'_>, shelf: Shelf, most: usize) -> Result<usize> {
    let prefix = shelf.prefix();
    let Some(mut size) = tables::get_json::<Size>(w, &BACKUP_GONE, &prefix)? else { return Ok(0) };
    let removed = remove_rows(w, &prefix, most)?;
    size = size.minus(removed);
    match (removed.count as usize) < most {
        true => drop(w.remove(&BACKUP_GONE, &prefix)?),
        false => tables::put_json(w, &BACKUP_GONE, &prefix, &size)?,
    }
    Ok(removed.count as usize)
}

/// Removes at most `most` keys of a scope, and answers what went. Fewer than `most` means that none are left.
pub fn remove(w: &mut Write<'_>, shelf: Shelf, scope: &Scope, most: usize) -> Result<Size> {
    let rows = shelf.rows(scope);
    match scope {
        Scope::All | Scope::Room(_) => remove_rows(w, &rows, most),
        Scope::Session(..) => {
            let mut size = Size::default();
            w.with(&BACKUP_KEY, &rows, &mut |value| size = row_size(&rows, value))?;
            w.remove(&BACKUP_KEY, &rows)?;
            Ok(size)
        }
    }
}

fn remove_rows(w: &mut Write<'_>, prefix: &[u8], most: usize) -> Result<Size> {
    let (mut keys, mut size) = (Vec::new(), Size::default());
    w.prefix(&BACKUP_KEY, prefix, &mut |key, value| {
        if keys.len() == most {
            return Ok(ControlFlow::Break(()));
        }
        size = size.plus(row_size(key, value));
        keys.push(key.to_vec());
        Ok(ControlFlow::Continue(()))
    })?;
    for key in &keys {
        w.remove(&BACKUP_KEY, key)?;
    }
    Ok(size)
}

fn row_size(key: &[u8], value: &[u8]) -> Size {
    Size { count: 1, bytes: (key.len() + value.len()) as u64 }
}

/// What putting keys did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Put {
    pub size: Size,
    pub changed: bool,
}

/// Puts each key that is new, or beats the one kept, and answers the size of the version afterwards. Bounded by the list.
pub fn put(w: &mut Write<'_>, shelf: Shelf, before: Size, mut keys: Vec<Key>) -> Result<Put> {
    keys.sort_by(|one, other| (&one.room, &one.session).cmp(&(&other.room, &other.session)));
    let mut rows: Vec<(Vec<u8>, Merit, Vec<u8>)> = Vec::with_capacity(keys.len());
    for key in keys {
        let row = shelf.rows(&Scope::Session(key.room, key.session));
        match rows.last_mut() {
            Some((last, merit, data)) if *last == row => {
                if key.merit.beats(merit) {
                    (*merit, *data) = (key.merit, key.data);
                }
            }
            _ => rows.push((row, key.merit, key.data)),
        }
    }
    let mut size = before;
    let mut put = Vec::with_capacity(rows.len());
    for (row, merit, data) in rows {
        let mut kept = None;
        w.with(&BACKUP_KEY, &row, &mut |value| {
            kept = Some((Merit::of_row(value).map(|(merit, _)| merit), row_size(&row, value)));
        })?;
        if let Some((kept, kept_size)) = kept {
            if !merit.beats(&kept.ok_or_else(|| Error::corrupt(&BACKUP_KEY, &row))?) {
                continue;
            }
            size = size.minus(kept_size);
        }
        let mut value = Vec::with_capacity(MERIT_BYTES + data.len());
        value.push(u8::from(merit.is_verified));
        value.extend_from_slice(&merit.first_message_index.to_be_bytes());
        value.extend_from_slice(&merit.forwarded_count.to_be_bytes());
        value.extend_from_slice(&data);
        size = size.plus(row_size(&row, &value));
        put.push((row, value));
    }
    w.put_sorted(&BACKUP_KEY, &put)?;
    Ok(Put { size, changed: !put.is_empty() })
}

/// One key: its merit and the JSON text of its `session_data`.
pub fn key(get: &impl Get, shelf: Shelf, room: String, session: String) -> Result<Option<(Merit, Vec<u8>)>> {
    let row = shelf.rows(&Scope::Session(room, session));
    let Some(value) = get.get(&BACKUP_KEY, &row)? else { return Ok(None) };
    let (merit, data) = Merit::of_row(&value).ok_or_else(|| Error::corrupt(&BACKUP_KEY, &row))?;
    Ok(Some((merit, data.to_vec())))
}

/// Called with a room, a session, its merit and the JSON text of its `session_data`.
pub type Visit<'v> = dyn FnMut(&str, &str, &Merit, &[u8]) -> ControlFlow<()> + 'v;

/// Visits keys of a scope in the order of rooms and sessions, behind the last place, until `visit` breaks; `place` is then
/// where it broke. True when it broke.
pub fn each(get: &impl Get, shelf: Shelf, scope: &Scope, place: &mut Vec<u8>, visit: &mut Visit<'_>) -> Result<bool> {
    let (prefix, all) = (shelf.prefix(), shelf.rows(scope));
    let mut from = all.clone();
    if !place.is_empty() {
        from = [place, &[0][..]].concat();
    }
    let (mut broke, end) = (false, after_prefix(&all));
    get.range(&BACKUP_KEY, &from, end.as_deref(), false, &mut |row, value| {
        let corrupt = || Error::corrupt(&BACKUP_KEY, row);
        let name = row.get(prefix.len()..).and_then(|name| std::str::from_utf8(name).ok()).ok_or_else(corrupt)?;
        let (room, session) = name.split_once('\0').ok_or_else(corrupt)?;
        let (merit, data) = Merit::of_row(value).ok_or_else(corrupt)?;
        let on = visit(room, session, &merit, data);
        broke = on.is_break();
        if broke {
            *place = row.to_vec();
        }
        Ok(on)
    })?;
    Ok(broke)
}

fn version_row(user: UserNum, number: u32) -> Vec<u8> {
    [user.to_key(), number.to_be_bytes()].concat()
}

fn number_of(key: &[u8]) -> Result<u32> {
    let number = key.get(4..).and_then(|number| number.try_into().ok()).map(u32::from_be_bytes);
    number.ok_or_else(|| Error::corrupt(&BACKUP, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_better_copy_of_a_key_is_kept() {
        let merit = |is_verified, first_message_index, forwarded_count| Merit {
            is_verified,
            first_message_index,
            forwarded_count,
        };
        let rising = [
            merit(false, 7, 7),
            merit(false, 7, 2),
            merit(false, 3, 9),
            merit(true, 9, 9),
            merit(true, 9, 1),
            merit(true, 0, 5),
        ];
        for (at, one) in rising.iter().enumerate() {
            for (other_at, other) in rising.iter().enumerate() {
                assert_eq!(one.beats(other), at > other_at, "{one:?} {other:?}");
            }
        }
    }
}

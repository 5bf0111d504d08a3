//! Backups of room keys: the versions of each user, and their keys, which only the user's apps can read.
//!
//! The keys of a version stand on a shelf, by its generation: deleting all of them is a note of that shelf and a new
//! generation, whatever their number, and what notes name is swept later. How much a version has, and a user altogether,
//! stands in rows of its own, changed with the keys and never counted. Versions are numbered for each user and no
//! number is given twice, so that an app that knows an old one never meets another's keys under it.

use std::cmp::Reverse;
use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::store::schema::{BACKUP_GONE, BACKUP_INFO, BACKUP_KEY, BACKUP_USER, BACKUP_VERSION};
use crate::store::{Error, Get, Result, Table, UserNum, Write, after_prefix, tables};

/// What an app says of a version.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Info {
    pub algorithm: String,
    pub auth_data: Box<RawValue>,
}

/// What a version has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    pub shelf: Shelf,
    pub size: Size,
    /// Grows with each change of its keys.
    pub etag: u64,
}

/// How many keys, and their bytes with those of their names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub count: u64,
    pub bytes: u64,
}

impl Size {
    fn of_row(key: &[u8], value: &[u8]) -> Size {
        Size { count: 1, bytes: (key.len() + value.len()) as u64 }
    }

    pub fn plus(self, other: Size) -> Size {
        Size { count: self.count + other.count, bytes: self.bytes + other.bytes }
    }

    pub fn minus(self, other: Size) -> Size {
        Size { count: self.count.saturating_sub(other.count), bytes: self.bytes.saturating_sub(other.bytes) }
    }

    /// Whether it has as many keys as another, or as many bytes.
    pub fn reaches(self, other: Size) -> bool {
        self.count >= other.count || self.bytes >= other.bytes
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

    fn to_row(self, data: &[u8]) -> Vec<u8> {
        let mut row = Vec::with_capacity(MERIT_BYTES + data.len());
        row.push(u8::from(self.is_verified));
        row.extend_from_slice(&self.first_message_index.to_be_bytes());
        row.extend_from_slice(&self.forwarded_count.to_be_bytes());
        row.extend_from_slice(data);
        row
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

/// What an app says of a version of a user's backup.
pub fn info(get: &impl Get, user: UserNum, number: u32) -> Result<Option<Info>> {
    tables::get_json(get, &BACKUP_INFO, &version_row(user, number))
}

pub fn set_info(w: &mut Write<'_>, user: UserNum, number: u32, info: &Info) -> Result<()> {
    tables::put_json(w, &BACKUP_INFO, &version_row(user, number), info)
}

/// A version of a user's backup.
pub fn version(get: &impl Get, user: UserNum, number: u32) -> Result<Option<Version>> {
    let row = version_row(user, number);
    get.get(&BACKUP_VERSION, &row)?.map(|value| parse(&row, &value)).transpose()
}

/// The newest version of a user, when there is one.
pub fn latest(get: &impl Get, user: UserNum) -> Result<Option<Version>> {
    let row = get.last_in_prefix(&BACKUP_VERSION, &user.to_key())?;
    row.map(|(key, value)| parse(&key, &value)).transpose()
}

/// The versions of a user, oldest first. Bounded by the cap on backups of one user.
pub fn versions(get: &impl Get, user: UserNum) -> Result<Vec<Version>> {
    let mut all = Vec::new();
    get.prefix(&BACKUP_VERSION, &user.to_key(), &mut |key, value| {
        all.push(parse(key, value)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(all)
}

/// The number given to a user's newest version, deleted ones included; 0 before the first.
pub fn last_number(get: &impl Get, user: UserNum) -> Result<u32> {
    Ok(account(get, user)?.0)
}

/// All that is kept of a user's keys, with those that are not swept yet.
pub fn size(get: &impl Get, user: UserNum) -> Result<Size> {
    Ok(account(get, user)?.1)
}

/// Adds a version and answers its number.
pub fn add_version(w: &mut Write<'_>, user: UserNum, info: &Info) -> Result<u32> {
    let (last, size) = account(w, user)?;
    let number = last.checked_add(1).ok_or_else(|| Error::corrupt(&BACKUP_USER, &user.to_key()))?;
    set_account(w, user, number, size)?;
    set_info(w, user, number, info)?;
    set_version(w, &Version { shelf: Shelf { user, version: number, generation: 0 }, size: Size::default(), etag: 0 })?;
    Ok(number)
}

/// Leaves numbers of versions free that a user may have been given and that are not known any more.
pub fn skip_numbers(w: &mut Write<'_>, user: UserNum, count: u32) -> Result<()> {
    let (last, size) = account(w, user)?;
    set_account(w, user, last.saturating_add(count), size)
}

/// Removes a version; its keys are left to be swept.
pub fn remove_version(w: &mut Write<'_>, version: &Version) -> Result<()> {
    let row = version_row(version.shelf.user, version.shelf.version);
    w.remove(&BACKUP_VERSION, &row)?;
    w.remove(&BACKUP_INFO, &row)?;
    w.put(&BACKUP_GONE, &version.shelf.prefix(), &[])
}

/// Leaves all keys of a version to be swept.
pub fn clear_version(w: &mut Write<'_>, version: &mut Version) -> Result<()> {
    if version.size.count == 0 {
        return Ok(());
    }
    w.put(&BACKUP_GONE, &version.shelf.prefix(), &[])?;
    version.shelf.generation += 1;
    version.size = Size::default();
    version.etag += 1;
    set_version(w, version)
}

/// The note behind another of keys that are to be swept, or the first of all when there is none behind it.
pub fn next_gone(get: &impl Get, note: &[u8]) -> Result<Option<Vec<u8>>> {
    let behind = get.first(&BACKUP_GONE, &[note, &[0]].concat(), None, false)?;
    let next = if behind.is_some() { behind } else { get.first(&BACKUP_GONE, &[], None, false)? };
    Ok(next.map(|(note, _)| note))
}

/// Removes keys that a note names, until `most` are gone, and the note with the last of them. Answers what went.
pub fn sweep(w: &mut Write<'_>, note: &[u8], most: Size) -> Result<Size> {
    let shelf = Shelf::of_key(note).ok_or_else(|| Error::corrupt(&BACKUP_GONE, note))?;
    let (gone, is_done) = remove_rows(w, note, most)?;
    if is_done {
        w.remove(&BACKUP_GONE, note)?;
    }
    if gone.count > 0 {
        let (last, size) = account(w, shelf.user)?;
        set_account(w, shelf.user, last, size.minus(gone))?;
    }
    Ok(gone)
}

/// Removes keys of a version, `most` at most; true when none of the scope are left.
pub fn remove(w: &mut Write<'_>, version: &mut Version, scope: &Scope, most: Size) -> Result<bool> {
    let rows = version.shelf.rows(scope);
    let (gone, is_done) = match scope {
        Scope::All | Scope::Room(_) => remove_rows(w, &rows, most)?,
        Scope::Session(..) => {
            let mut gone = Size::default();
            w.with(&BACKUP_KEY, &rows, &mut |value| gone = Size::of_row(&rows, value))?;
            w.remove(&BACKUP_KEY, &rows)?;
            (gone, true)
        }
    };
    if gone.count > 0 {
        change(w, version, gone, Size::default())?;
    }
    Ok(is_done)
}

/// Removes the first rows of a prefix, until `most` are gone, and answers what went and whether that were all of them. It
/// reads each value, since its length is to be known.
fn remove_rows(w: &mut Write<'_>, prefix: &[u8], most: Size) -> Result<(Size, bool)> {
    let (mut keys, mut gone, mut is_done) = (Vec::new(), Size::default(), true);
    w.prefix(&BACKUP_KEY, prefix, &mut |key, value| {
        if gone.reaches(most) {
            is_done = false;
            return Ok(ControlFlow::Break(()));
        }
        gone = gone.plus(Size::of_row(key, value));
        keys.push(key.to_vec());
        Ok(ControlFlow::Continue(()))
    })?;
    for key in &keys {
        w.remove(&BACKUP_KEY, key)?;
    }
    Ok((gone, is_done))
}

/// Those of some keys that are to be put.
pub struct Better {
    /// In the order of their keys.
    rows: Vec<(Vec<u8>, Vec<u8>)>,
    /// What they add, and what they take the place of.
    pub new: Size,
    pub old: Size,
}

/// The keys that a version does not have, and those that beat its own. Bounded by the list.
pub fn better(get: &impl Get, shelf: Shelf, mut keys: Vec<Key>) -> Result<Better> {
    keys.sort_by(|one, other| (&one.room, &one.session).cmp(&(&other.room, &other.session)));
    let mut best: Vec<Key> = Vec::with_capacity(keys.len());
    for key in keys {
        match best.last_mut() {
            Some(last) if (&last.room, &last.session) == (&key.room, &key.session) => {
                if key.merit.beats(&last.merit) {
                    *last = key;
                }
            }
            _ => best.push(key),
        }
    }
    let mut better = Better { rows: Vec::with_capacity(best.len()), new: Size::default(), old: Size::default() };
    for Key { room, session, merit, data } in best {
        let row = shelf.rows(&Scope::Session(room, session));
        let mut kept = None;
        get.with(&BACKUP_KEY, &row, &mut |value| {
            kept = Some((Merit::of_row(value).map(|(merit, _)| merit), Size::of_row(&row, value)));
        })?;
        if let Some((kept, size)) = kept {
            if !merit.beats(&kept.ok_or_else(|| Error::corrupt(&BACKUP_KEY, &row))?) {
                continue;
            }
            better.old = better.old.plus(size);
        }
        let value = merit.to_row(&data);
        better.new = better.new.plus(Size::of_row(&row, &value));
        better.rows.push((row, value));
    }
    Ok(better)
}

/// Puts keys that were found better than those of a version.
pub fn put(w: &mut Write<'_>, version: &mut Version, better: &Better) -> Result<()> {
    if better.rows.is_empty() {
        return Ok(());
    }
    w.put_sorted(&BACKUP_KEY, &better.rows)?;
    change(w, version, better.old, better.new)
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

/// Counts keys that went from a version and others that came to it.
fn change(w: &mut Write<'_>, version: &mut Version, less: Size, more: Size) -> Result<()> {
    version.size = version.size.minus(less).plus(more);
    version.etag += 1;
    set_version(w, version)?;
    let (last, size) = account(w, version.shelf.user)?;
    set_account(w, version.shelf.user, last, size.minus(less).plus(more))
}

/// The number of the newest version of a user, and the size of all.
fn account(get: &impl Get, user: UserNum) -> Result<(u32, Size)> {
    let key = user.to_key();
    let Some(row) = get.get(&BACKUP_USER, &key)? else { return Ok((0, Size::default())) };
    let [last, count, bytes] = numbers(&BACKUP_USER, &key, &row)?;
    let last = last.try_into().map_err(|_| Error::corrupt(&BACKUP_USER, &key))?;
    Ok((last, Size { count, bytes }))
}

fn set_account(w: &mut Write<'_>, user: UserNum, last: u32, size: Size) -> Result<()> {
    w.put(&BACKUP_USER, &user.to_key(), &row([u64::from(last), size.count, size.bytes]))
}

fn set_version(w: &mut Write<'_>, version: &Version) -> Result<()> {
    let Version { shelf, size, etag } = version;
    let value = row([u64::from(shelf.generation), size.count, size.bytes, *etag]);
    w.put(&BACKUP_VERSION, &version_row(shelf.user, shelf.version), &value)
}

fn parse(key: &[u8], value: &[u8]) -> Result<Version> {
    let corrupt = || Error::corrupt(&BACKUP_VERSION, key);
    let ([user, version], []) = key.as_chunks::<4>() else { return Err(corrupt()) };
    let [generation, count, bytes, etag] = numbers(&BACKUP_VERSION, key, value)?;
    let user = UserNum::from_key(user).ok_or_else(corrupt)?;
    let generation = generation.try_into().map_err(|_| corrupt())?;
    let shelf = Shelf { user, version: u32::from_be_bytes(*version), generation };
    Ok(Version { shelf, size: Size { count, bytes }, etag })
}

fn version_row(user: UserNum, number: u32) -> Vec<u8> {
    [user.to_key(), number.to_be_bytes()].concat()
}

fn row<const N: usize>(numbers: [u64; N]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

fn numbers<const N: usize>(table: &Table, key: &[u8], row: &[u8]) -> Result<[u64; N]> {
    let (numbers, rest) = row.as_chunks::<8>();
    let numbers: Option<[[u8; 8]; N]> = numbers.try_into().ok().filter(|_| rest.is_empty());
    Ok(numbers.ok_or_else(|| Error::corrupt(table, key))?.map(u64::from_be_bytes))
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

//! Device lists of other servers' users, as those servers told them.
//!
//! Bounded on disk: all lists together, those of one server, and one list. Beyond a bound the lists that were not used
//! for longest are forgotten; they are asked for again when somebody wants them.

use std::ops::ControlFlow;

use crate::store::row_encoding::{Unpack, put_u64};
use crate::store::schema::{REMOTE_KEY, REMOTE_LIST, REMOTE_LIST_SHARE, REMOTE_LIST_USED};
use crate::store::{Error, Get, Position, Result, UserNum, Write};

/// All lists together, in bytes: some 10,000 devices. On the card, and no memory.
const ALL_BYTES_MAX: u64 = 16 << 20;
/// The lists of one server; the other half stays for the users of all others.
const SERVER_BYTES_MAX: u64 = ALL_BYTES_MAX / 2;
/// One list; a longer one is not kept. Some 150 devices.
pub const LIST_BYTES_MAX: u64 = 256 << 10;
/// Devices with a longer id are not kept.
const DEVICE_ID_BYTES_MAX: usize = 255;
/// What a row costs beside its key and value.
const ROW_BYTES: u64 = 32;

/// A kept list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List {
    /// An update was missed, so the list has to be asked for again.
    pub stale: bool,
    /// The last update in it, by its server's count; none when the server did not say.
    pub stream_id: Option<u64>,
    /// It was asked for at this position.
    pub at: Position,
    /// The day it was last used, since 1970.
    pub day: u32,
    weight: u64,
    server: [u8; 4],
}

/// One key of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key<'a> {
    /// The identity keys of a device.
    Device(&'a str),
    Master,
    SelfSigning,
}

impl<'a> Key<'a> {
    fn row(self, user: UserNum) -> Vec<u8> {
        let (kind, id) = match self {
            Key::Device(id) => (0, id),
            Key::Master => (1, ""),
            Key::SelfSigning => (2, ""),
        };
        [&user.to_key()[..], &[kind], id.as_bytes()].concat()
    }

    fn of_row(row: &'a [u8]) -> Option<Key<'a>> {
        match row.get(4)? {
            0 => std::str::from_utf8(&row[5..]).ok().map(Key::Device),
            1 => Some(Key::Master),
            2 => Some(Key::SelfSigning),
            _ => None,
        }
    }
}

/// A user's kept list.
pub fn get(get: &impl Get, user: UserNum) -> Result<Option<List>> {
    let Some(row) = get.get(&REMOTE_LIST, &user.to_key())? else { return Ok(None) };
    decode(&row).map(Some).ok_or_else(|| Error::corrupt(&REMOTE_LIST, &user.to_key()))
}

/// Marks at most `most` kept lists behind `after` as stale: each is asked for again before it is used. Answers the last, and
/// how many they are.
pub fn make_stale(w: &mut Write<'_>, after: Option<UserNum>, most: usize) -> Result<Option<(UserNum, usize)>> {
    let (mut found, from) = (Vec::new(), after.map_or(0, |after| after.0.saturating_add(1)).to_be_bytes());
    w.range(&REMOTE_LIST, &from, None, false, &mut |key, value| {
        let corrupt = || Error::corrupt(&REMOTE_LIST, key);
        found.push((UserNum::from_key(key).ok_or_else(corrupt)?, decode(value).ok_or_else(corrupt)?));
        Ok(if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    for (user, list) in &found {
        put(w, *user, &List { stale: true, ..*list })?;
    }
    Ok(found.last().map(|(user, _)| (*user, found.len())))
}

/// Visits the keys of a kept list. Bounded by [`LIST_BYTES_MAX`].
pub fn each_key(
    get: &impl Get,
    user: UserNum,
    visit: &mut dyn FnMut(Key<'_>, &[u8]) -> Result<ControlFlow<()>>,
) -> Result<()> {
    get.prefix(&REMOTE_KEY, &user.to_key(), &mut |row, json| {
        visit(Key::of_row(row).ok_or_else(|| Error::corrupt(&REMOTE_KEY, row))?, json)
    })
}

/// Begins an empty list in place of the one there is.
pub fn begin(
    w: &mut Write<'_>,
    user: UserNum,
    server: &str,
    stream_id: Option<u64>,
    at: Position,
    day: u32,
) -> Result<()> {
    forget(w, user)?;
    let [a, b, c, d, ..] = w.hash128(&[server.as_bytes()]);
    put(w, user, &List { stale: false, stream_id, at, day, weight: 0, server: [a, b, c, d] })
}

/// Puts a key into a list, or removes it. Without a list nothing is done; a list that becomes too long is forgotten.
pub fn set_key(w: &mut Write<'_>, user: UserNum, key: Key<'_>, json: Option<&[u8]>) -> Result<()> {
    let Some(mut list) = get(w, user)? else { return Ok(()) };
    let row = key.row(user);
    if row.len() > 5 + DEVICE_ID_BYTES_MAX {
        return Ok(());
    }
    let price = |value: &[u8]| ROW_BYTES + (row.len() + value.len()) as u64;
    let before = w.get(&REMOTE_KEY, &row)?.map_or(0, |old| price(&old));
    match json {
        Some(json) => w.put(&REMOTE_KEY, &row, json)?,
        None => drop(w.remove(&REMOTE_KEY, &row)?),
    }
    let after = json.map_or(0, price);
    list.weight = (list.weight + after).saturating_sub(before);
    add_share(w, list.server, after as i64 - before as i64)?;
    put(w, user, &list)?;
    if list.weight > LIST_BYTES_MAX { forget(w, user) } else { Ok(()) }
}

/// Notes how far a list follows the updates of its server.
pub fn followed(w: &mut Write<'_>, user: UserNum, stale: bool, stream_id: Option<u64>) -> Result<()> {
    let Some(list) = get(w, user)? else { return Ok(()) };
    put(w, user, &List { stale, stream_id, ..list })
}

/// Notes that a list was used.
pub fn used(w: &mut Write<'_>, user: UserNum, day: u32) -> Result<()> {
    let Some(list) = get(w, user)? else { return Ok(()) };
    w.remove(&REMOTE_LIST_USED, &used_key(list.day, user))?;
    put(w, user, &List { day, ..list })
}

/// Forgets a list.
pub fn forget(w: &mut Write<'_>, user: UserNum) -> Result<()> {
    let Some(list) = get(w, user)? else { return Ok(()) };
    w.remove_prefix(&REMOTE_KEY, &user.to_key(), usize::MAX)?;
    w.remove(&REMOTE_LIST, &user.to_key())?;
    w.remove(&REMOTE_LIST_USED, &used_key(list.day, user))?;
    add_share(w, list.server, -(list.weight as i64))
}

/// Forgets the lists that were not used for longest, until those of a server and all together are within their bounds.
/// Bounded by the number of lists, of which only the short rows about their use are read.
pub fn make_room(w: &mut Write<'_>, server: &str) -> Result<()> {
    let [a, b, c, d, ..] = w.hash128(&[server.as_bytes()]);
    let server = [a, b, c, d];
    for (whose, most) in [(Some(server), SERVER_BYTES_MAX), (None, ALL_BYTES_MAX)] {
        let held = share(w, whose.as_ref().map_or(&[][..], |server| server))?;
        if held <= most {
            continue;
        }
        // A sixteenth more, so that not every new list needs a search.
        let mut surplus = held - (most - most / 16);
        let mut gone = Vec::new();
        w.range(&REMOTE_LIST_USED, &[], None, false, &mut |key, value| {
            let corrupt = || Error::corrupt(&REMOTE_LIST_USED, key);
            let (owner, weight) = value.split_first_chunk::<4>().ok_or_else(corrupt)?;
            if whose.is_none_or(|whose| whose == *owner) {
                gone.push(key.get(4..).and_then(UserNum::from_key).ok_or_else(corrupt)?);
                let weight = u32::from_be_bytes(weight.try_into().map_err(|_| corrupt())?);
                surplus = surplus.saturating_sub(weight.into());
            }
            Ok(if surplus == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        for user in gone {
            forget(w, user)?;
        }
    }
    Ok(())
}

fn put(w: &mut Write<'_>, user: UserNum, list: &List) -> Result<()> {
    let mut row = vec![u8::from(list.stale) | u8::from(list.stream_id.is_some()) << 1];
    row.extend_from_slice(&list.server);
    for number in [list.stream_id.unwrap_or(0), list.at.0, list.day.into(), list.weight] {
        put_u64(&mut row, number);
    }
    w.put(&REMOTE_LIST, &user.to_key(), &row)?;
    let weight = u32::try_from(list.weight + ROW_BYTES).unwrap_or(u32::MAX).to_be_bytes();
    w.put(&REMOTE_LIST_USED, &used_key(list.day, user), &[list.server, weight].concat())
}

fn decode(row: &[u8]) -> Option<List> {
    let (flags, rest) = row.split_first()?;
    let (server, rest) = rest.split_first_chunk::<4>()?;
    let mut unpack = Unpack::new(rest);
    Some(List {
        stale: flags & 1 != 0,
        stream_id: Some(unpack.u64()?).filter(|_| flags & 2 != 0),
        at: Position(unpack.u64()?),
        day: unpack.u32()?,
        weight: unpack.u64()?,
        server: *server,
    })
}

fn used_key(day: u32, user: UserNum) -> [u8; 8] {
    let mut key = [0; 8];
    key[..4].copy_from_slice(&day.to_be_bytes());
    key[4..].copy_from_slice(&user.to_key());
    key
}

fn share(get: &impl Get, whose: &[u8]) -> Result<u64> {
    let Some(row) = get.get(&REMOTE_LIST_SHARE, whose)? else { return Ok(0) };
    row.try_into().map(u64::from_be_bytes).map_err(|_| Error::corrupt(&REMOTE_LIST_SHARE, whose))
}

fn add_share(w: &mut Write<'_>, server: [u8; 4], change: i64) -> Result<()> {
    for whose in [&server[..], &[]] {
        match share(w, whose)?.saturating_add_signed(change) {
            0 => drop(w.remove(&REMOTE_LIST_SHARE, whose)?),
            held => w.put(&REMOTE_LIST_SHARE, whose, &held.to_be_bytes())?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::tables::user;

    #[test]
    fn the_lists_not_used_for_longest_go_first_and_a_server_has_only_half() {
        let store = Store::in_memory();
        let job = |w: &mut Write<'_>| {
            let key = vec![b'x'; 200 << 10];
            let mut keep = |name: &str, server: &str, day: u32| {
                let num = user::intern(w, name)?;
                begin(w, num, server, None, Position(1), day)?;
                set_key(w, num, Key::Device("D"), Some(&key))?;
                make_room(w, server)?;
                Ok::<_, Error>(num)
            };
            let friend = keep("@friend:a.test", "a.test", 0)?;
            let first = keep("@first:b.test", "b.test", 1)?;
            for n in 0..100 {
                keep(&format!("@{n}:b.test"), "b.test", 2 + n)?;
            }
            let last = keep("@last:b.test", "b.test", 200)?;
            assert_eq!([friend, first, last].map(|num| get(w, num).unwrap().is_some()), [true, false, true]);
            assert!(share(w, &[])? <= ALL_BYTES_MAX);
            // Used again, it is no longer the oldest; forgotten, it leaves nothing.
            used(w, friend, 300)?;
            assert_eq!(get(w, friend)?.unwrap().day, 300);
            forget(w, friend)?;
            assert_eq!(share(w, &w.hash128(&[b"a.test"])[..4])?, 0);
            // A list that is too long is not kept.
            begin(w, friend, "a.test", None, Position(1), 1)?;
            set_key(w, friend, Key::Device("A"), Some(&key))?;
            set_key(w, friend, Key::Device("B"), Some(&key))?;
            assert_eq!(get(w, friend)?, None);
            Ok::<_, Error>(())
        };
        store.write_blocking(job).unwrap();
    }
}

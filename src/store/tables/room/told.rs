//! What other servers told of rooms we are not in, kept for a while: a hierarchy is read page by page, and each page comes by the
//! same rooms again.

use std::ops::ControlFlow;

use crate::store::schema::{TOLD_ROOM, TOLD_ROOM_AGE};
use crate::store::{Error, Get, Result, Write};

/// What is kept at most: the latest told, within this many rooms and this much of the card.
const ROOMS_MAX: usize = 1024;
const ALL_BYTES_MAX: u64 = 4 << 20;
/// What is kept of one room at most.
pub const BYTES_MAX: usize = 64 * 1024;
/// How long it is kept.
pub const KEPT_MS: u64 = 60 * 60 * 1000;

/// A room's name among them: part of the keyed hash of its id, and of whose word sent us to the servers that told.
pub type Name = [u8; 16];

/// What was told of a room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub at_ms: u64,
    /// JSON; empty when nobody who was asked told anything.
    pub text: Vec<u8>,
}

/// The name of a room of which servers were asked that we know of ourselves.
pub fn name(get: &impl Get, room_id: &str) -> Name {
    get.hash128(&[room_id.as_bytes()])
}

/// The name of a room of which those servers told that somebody else named: a space, by its own name, or a user. What they told
/// is good for whoever trusts in that word and for nobody else: a space may name a server that tells lies about others' rooms.
pub fn name_within(get: &impl Get, within: &[u8], room_id: &str) -> Name {
    get.hash128(&[room_id.as_bytes(), within])
}

/// What was told of a room.
pub fn get(get: &impl Get, name: &Name) -> Result<Option<Told>> {
    let Some(row) = get.get(&TOLD_ROOM, name)? else { return Ok(None) };
    let (at, text) = row.split_first_chunk::<8>().ok_or_else(|| Error::corrupt(&TOLD_ROOM, name))?;
    Ok(Some(Told { at_ms: u64::from_be_bytes(*at), text: text.to_vec() }))
}

/// Keeps what was told of some rooms, and lets what is old or too much go. Reads the ages of all that is kept, 36 bytes each, and
/// writes two rows for each room; as many go as there are too many, which in the long run is as many.
pub fn put(w: &mut Write<'_>, rooms: &[(Name, Told)]) -> Result<()> {
    let Some(now_ms) = rooms.iter().map(|(_, told)| told.at_ms).max() else { return Ok(()) };
    for (name, told) in rooms {
        debug_assert!(told.text.len() <= BYTES_MAX, "what is kept of a room has a bound");
        remove(w, name)?;
        w.put(&TOLD_ROOM, name, &[&told.at_ms.to_be_bytes(), &told.text[..]].concat())?;
        w.put(&TOLD_ROOM_AGE, &age_key(told.at_ms, name), &(told.text.len() as u32).to_be_bytes())?;
    }
    let (mut ages, mut bytes) = (Vec::new(), 0);
    w.range(&TOLD_ROOM_AGE, &[], None, false, &mut |key, length| {
        let corrupt = || Error::corrupt(&TOLD_ROOM_AGE, key);
        let (at, name) = key.split_first_chunk::<8>().ok_or_else(corrupt)?;
        let name: Name = name.try_into().map_err(|_| corrupt())?;
        let length = u64::from(u32::from_be_bytes(length.try_into().map_err(|_| corrupt())?));
        bytes += length;
        ages.push((u64::from_be_bytes(*at), length, name));
        Ok(ControlFlow::Continue(()))
    })?;
    let mut left = ages.len();
    for (at_ms, length, name) in ages {
        if left <= ROOMS_MAX && bytes <= ALL_BYTES_MAX && at_ms.saturating_add(KEPT_MS) >= now_ms {
            break;
        }
        remove(w, &name)?;
        left -= 1;
        bytes -= length;
    }
    Ok(())
}

fn remove(w: &mut Write<'_>, name: &Name) -> Result<()> {
    let mut at = None;
    w.with(&TOLD_ROOM, name, &mut |row| at = row.first_chunk::<8>().map(|at| u64::from_be_bytes(*at)))?;
    if let Some(at) = at {
        w.remove(&TOLD_ROOM, name)?;
        w.remove(&TOLD_ROOM_AGE, &age_key(at, name))?;
    }
    Ok(())
}

fn age_key(at_ms: u64, name: &Name) -> [u8; 24] {
    let mut key = [0; 24];
    key[..8].copy_from_slice(&at_ms.to_be_bytes());
    key[8..].copy_from_slice(name);
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store, WriteError};

    #[tokio::test]
    async fn the_latest_rooms_are_kept() {
        let store = Store::in_memory();
        let put_one = async |nth: u16, at_ms: u64| {
            let name: Name = std::array::from_fn(|at| nth.to_be_bytes().get(at).copied().unwrap_or(0));
            let told = Told { at_ms, text: nth.to_string().into_bytes() };
            let written = store.write(move |w| put(w, &[(name, told)])).await;
            written.map_err(|failed: WriteError<Error>| failed.into_inner()).unwrap();
            name
        };
        let first = put_one(0, 1).await;
        for nth in 1..=ROOMS_MAX as u16 {
            put_one(nth, u64::from(nth)).await;
        }
        let read = store.read().unwrap();
        assert_eq!(get(&read, &first).unwrap(), None, "the oldest made room");
        let second = put_one(1, 5000).await;
        assert_eq!(get(&store.read().unwrap(), &second).unwrap().unwrap().at_ms, 5000);
        put_one(9999, 6000 + KEPT_MS).await;
        assert_eq!(get(&store.read().unwrap(), &second).unwrap(), None, "and what is old goes anyway");
        let read = store.read().unwrap();
        let mut left = 0;
        for table in [&TOLD_ROOM, &TOLD_ROOM_AGE] {
            read.range(table, &[], None, false, &mut |_, _| {
                left += 1;
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        }
        assert_eq!(left, 2);
    }
}

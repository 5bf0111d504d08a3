//! Relations: which events annotate, replace, answer or refer to an event.

use std::ops::ControlFlow;

use super::event;
use crate::store::schema::{RELATION, RELATION_PENDING};
use crate::store::{Error, Get, Result, Write};
use crate::store::{EventNum, RoomNum};

/// A relation type as one byte. On disk: append, never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rel(pub u8);

impl Rel {
    pub const OTHER: Rel = Rel(0);
    pub const ANNOTATION: Rel = Rel(1);
    pub const REPLACE: Rel = Rel(2);
    pub const THREAD: Rel = Rel(3);
    pub const REFERENCE: Rel = Rel(4);

    /// The code of a `rel_type`; all others share [`Rel::OTHER`], their name stands in the event.
    pub fn of(rel_type: &str) -> Rel {
        match rel_type {
            "m.annotation" => Rel::ANNOTATION,
            "m.replace" => Rel::REPLACE,
            "m.thread" => Rel::THREAD,
            "m.reference" => Rel::REFERENCE,
            _ => Rel::OTHER,
        }
    }
}

fn key(room: RoomNum, target: EventNum, rel: Rel, order: i64) -> [u8; 17] {
    let mut key = [0; 17];
    key[..4].copy_from_slice(&room.to_key());
    key[4..8].copy_from_slice(&target.to_key());
    key[8] = rel.0;
    key[9..].copy_from_slice(&((order as u64) ^ (1 << 63)).to_be_bytes());
    key
}

/// Remembers that the event at `order` relates to `target`.
pub fn put(w: &mut Write, room: RoomNum, target: EventNum, rel: Rel, order: i64, event: EventNum) -> Result<()> {
    w.put(&RELATION, &key(room, target, rel, order), &event.to_key())
}

/// Takes a relation back: its event was redacted.
pub fn remove(w: &mut Write, room: RoomNum, target: EventNum, rel: Rel, order: i64) -> Result<()> {
    w.remove(&RELATION, &key(room, target, rel, order))?;
    Ok(())
}

/// Forgets at most `most` relations to an event that is removed.
pub fn remove_all(w: &mut Write, room: RoomNum, target: EventNum, most: usize) -> Result<usize> {
    w.remove_prefix(&RELATION, &key(room, target, Rel::OTHER, i64::MIN)[..8], most)
}

/// Visits the events related to `target`, of one type or all, oldest first within a type.
pub fn list(
    get: &impl Get,
    room: RoomNum,
    target: EventNum,
    only: Option<Rel>,
    visit: &mut dyn FnMut(Rel, i64, EventNum) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let whole = key(room, target, only.unwrap_or(Rel::OTHER), i64::MIN);
    let prefix = if only.is_some() { &whole[..9] } else { &whole[..8] };
    get.prefix(&RELATION, prefix, &mut |key, value| {
        let corrupt = || Error::corrupt(&RELATION, key);
        let rel = Rel(*key.get(8).ok_or_else(corrupt)?);
        visit(rel, order_of(key).ok_or_else(corrupt)?, EventNum::from_key(value).ok_or_else(corrupt)?)
    })
}

/// Visits the events related to `target` behind a place, oldest first within a type.
pub fn list_behind(
    get: &impl Get,
    room: RoomNum,
    target: EventNum,
    after: Option<(Rel, i64)>,
    visit: &mut dyn FnMut(Rel, i64, EventNum) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let all = key(room, target, Rel::OTHER, i64::MIN);
    let from = after.map(|(rel, order)| [&key(room, target, rel, order)[..], &[0]].concat());
    let mut last = all;
    last[8..].fill(u8::MAX);
    get.range(&RELATION, from.as_deref().unwrap_or(&all[..8]), Some(&last), false, &mut |key, value| {
        let corrupt = || Error::corrupt(&RELATION, key);
        let rel = Rel(*key.get(8).ok_or_else(corrupt)?);
        visit(rel, order_of(key).ok_or_else(corrupt)?, EventNum::from_key(value).ok_or_else(corrupt)?)
    })
}

/// Visits one type of relation in the whole room, by target, oldest first within one: target, order, event.
pub fn list_of_room(
    get: &impl Get,
    room: RoomNum,
    only: Rel,
    visit: &mut dyn FnMut(EventNum, i64, EventNum) -> Result<ControlFlow<()>>,
) -> Result<()> {
    get.prefix(&RELATION, &room.to_key(), &mut |key, value| {
        let corrupt = || Error::corrupt(&RELATION, key);
        if key.get(8) != Some(&only.0) {
            return Ok(ControlFlow::Continue(()));
        }
        let target = key.get(4..8).and_then(EventNum::from_key).ok_or_else(corrupt)?;
        visit(target, order_of(key).ok_or_else(corrupt)?, EventNum::from_key(value).ok_or_else(corrupt)?)
    })
}

/// Visits the events related to `target` by one type at or before `upto`, newest first.
pub fn list_newest(
    get: &impl Get,
    room: RoomNum,
    target: EventNum,
    only: Rel,
    upto: i64,
    visit: &mut dyn FnMut(i64, EventNum) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let whole = key(room, target, only, i64::MIN);
    let end = key(room, target, only, upto.saturating_add(1));
    get.range(&RELATION, &whole[..9], Some(&end), true, &mut |key, value| {
        let corrupt = || Error::corrupt(&RELATION, key);
        let order = order_of(key).ok_or_else(corrupt)?;
        visit(order, EventNum::from_key(value).ok_or_else(corrupt)?)
    })
}

/// Relations that wait for one event: the answers of a day in a thread.
const PENDING_MAX: usize = 256;
/// A type and an event's number.
const PENDING_BYTES: usize = 5;

/// Remembers an event that relates to one that is not here yet. When there are too many, a sixteenth is forgotten: the
/// first events of the servers that sent most.
pub fn add_pending(w: &mut Write, room: RoomNum, target: &str, rel: Rel, event: EventNum) -> Result<()> {
    let hash = w.hash128(&[&room.to_key(), target.as_bytes()]);
    let mut waiting = w.get(&RELATION_PENDING, &hash)?.unwrap_or_default();
    if waiting.len() >= PENDING_MAX * PENDING_BYTES {
        let events = waiting.chunks_exact(PENDING_BYTES).filter_map(|one| EventNum::from_key(&one[1..])).collect();
        let gone = event::of_the_busiest_server(w, events, event, PENDING_MAX / 16)?;
        let (kept, _) = waiting.as_chunks::<PENDING_BYTES>();
        let kept = kept.iter().filter(|one| EventNum::from_key(&one[1..]).is_none_or(|num| !gone.contains(&num)));
        waiting = kept.flatten().copied().collect();
    }
    waiting.push(rel.0);
    waiting.extend_from_slice(&event.to_key());
    w.put(&RELATION_PENDING, &hash, &waiting)
}

/// Whether some relation waits for this event.
pub fn is_awaited(get: &impl Get, room: RoomNum, target: &str) -> Result<bool> {
    let hash = get.hash128(&[&room.to_key(), target.as_bytes()]);
    Ok(get.get(&RELATION_PENDING, &hash)?.is_some())
}

/// Takes the relations that were waiting for an event of the room.
pub fn take_pending(w: &mut Write, room: RoomNum, target: &str) -> Result<Vec<(Rel, EventNum)>> {
    let hash = w.hash128(&[&room.to_key(), target.as_bytes()]);
    let Some(value) = w.get(&RELATION_PENDING, &hash)? else { return Ok(Vec::new()) };
    w.remove(&RELATION_PENDING, &hash)?;
    let waiting = value.chunks(PENDING_BYTES).map(|one| Some((Rel(one[0]), EventNum::from_key(&one[1..])?)));
    waiting.collect::<Option<_>>().ok_or_else(|| Error::corrupt(&RELATION_PENDING, &hash))
}

fn order_of(key: &[u8]) -> Option<i64> {
    Some((u64::from_be_bytes(key.get(9..17)?.try_into().ok()?) ^ (1 << 63)) as i64)
}

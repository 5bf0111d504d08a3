//! Sticky events (MSC4354): which events of a room are told to everybody who is joined, until when.
//!
//! A row for each sticky event, none for others. Those that are over are removed a few at a time as new ones come.

use std::ops::ControlFlow;

use crate::store::key_encoding::after_prefix;
use crate::store::schema::STICKY;
use crate::store::{Error, EventNum, Get, Result, RoomNum, Write};

/// The most sticky events of a room; a further one takes the place of the oldest. A call of a hundred people renews as many
/// within five minutes.
const ROOM_MAX: usize = 1_000;

/// A sticky event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sticky {
    pub order: u64,
    pub event: EventNum,
    pub until_ms: u64,
}

/// Notes a sticky event at its place in the timeline. Walks the room's, which are [`ROOM_MAX`] at most.
pub fn put(w: &mut Write<'_>, room: RoomNum, new: Sticky, now_ms: u64) -> Result<()> {
    let mut all = Vec::new();
    each(w, room, 0, &mut |sticky| {
        all.push(sticky);
        Ok(ControlFlow::Continue(()))
    })?;
    let surplus = (all.len() + 1).saturating_sub(ROOM_MAX);
    for (at, sticky) in all.into_iter().enumerate() {
        if at < surplus || sticky.until_ms <= now_ms {
            remove(w, room, sticky.order)?;
        }
    }
    let value = [&new.until_ms.to_be_bytes()[..], &new.event.to_key()].concat();
    w.put(&STICKY, &key(room, new.order), &value)
}

pub fn remove(w: &mut Write<'_>, room: RoomNum, order: u64) -> Result<()> {
    w.remove(&STICKY, &key(room, order)).map(drop)
}

/// The sticky event at a place.
pub fn get(get: &impl Get, room: RoomNum, order: u64) -> Result<Option<Sticky>> {
    let key = key(room, order);
    let Some(value) = get.get(&STICKY, &key)? else { return Ok(None) };
    decode(&key, &value).map(Some)
}

/// Visits the sticky events of a room behind a place, over ones too, until `visit` breaks.
pub fn each(
    get: &impl Get,
    room: RoomNum,
    after: u64,
    visit: &mut dyn FnMut(Sticky) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let (from, end) = (key(room, after.saturating_add(1)), after_prefix(&room.to_key()));
    get.range(&STICKY, &from, end.as_deref(), false, &mut |key, value| visit(decode(key, value)?))
}

fn decode(key: &[u8], value: &[u8]) -> Result<Sticky> {
    let corrupt = || Error::corrupt(&STICKY, key);
    let order = key.get(4..).and_then(|order| order.try_into().ok()).map(u64::from_be_bytes).ok_or_else(corrupt)?;
    let (until, event) = value.split_at_checked(8).ok_or_else(corrupt)?;
    let until_ms = until.try_into().map(u64::from_be_bytes).map_err(|_| corrupt())?;
    Ok(Sticky { order, event: EventNum::from_key(event).ok_or_else(corrupt)?, until_ms })
}

fn key(room: RoomNum, order: u64) -> Vec<u8> {
    [&room.to_key()[..], &order.to_be_bytes()].concat()
}

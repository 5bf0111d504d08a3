//! The timeline: the events of a room that are shown, their order, and the state that each change led to.
//!
//! An event that arrives has its commit's position as its order, so "since a position" is a range. An event fetched
//! from before our own history gets an order below all others in the room: negative, counting down. Where a part is
//! missing in the middle, orders are left free for it (`room::Hole`).

use std::ops::ControlFlow;

use super::event_row::Root;
use crate::store::schema::{STATE_LOG, TIMELINE};
use crate::store::{Error, Get, Result, Write};
use crate::store::{EventNum, Position, RoomNum};

fn key(room: RoomNum, order: i64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&room.to_key());
    // The sign bit flipped puts negative orders before positive ones.
    key[4..].copy_from_slice(&((order as u64) ^ (1 << 63)).to_be_bytes());
    key
}

fn order_of(key: &[u8]) -> Option<i64> {
    Some((u64::from_be_bytes(key.get(4..12)?.try_into().ok()?) ^ (1 << 63)) as i64)
}

/// Shows an event at a place. The event's row must name the same order.
pub fn put(w: &mut Write, room: RoomNum, order: i64, event: EventNum) -> Result<()> {
    w.put(&TIMELINE, &key(room, order), &event.to_key())
}

/// Takes an event out of the timeline; only a purge does.
pub fn remove(w: &mut Write, room: RoomNum, order: i64) -> Result<()> {
    w.remove(&TIMELINE, &key(room, order))?;
    Ok(())
}

/// Visits events with `from < order ≤ to` in rising order, until the visitor breaks.
pub fn forward(
    get: &impl Get,
    room: RoomNum,
    from: i64,
    to: i64,
    visit: &mut dyn FnMut(i64, EventNum) -> Result<ControlFlow<()>>,
) -> Result<()> {
    range(get, room, from, to, false, visit)
}

/// Visits events with `from < order ≤ to` in falling order, until the visitor breaks.
pub fn backward(
    get: &impl Get,
    room: RoomNum,
    from: i64,
    to: i64,
    visit: &mut dyn FnMut(i64, EventNum) -> Result<ControlFlow<()>>,
) -> Result<()> {
    range(get, room, from, to, true, visit)
}

fn range(
    get: &impl Get,
    room: RoomNum,
    from: i64,
    to: i64,
    falling: bool,
    visit: &mut dyn FnMut(i64, EventNum) -> Result<ControlFlow<()>>,
) -> Result<()> {
    if from >= to {
        return Ok(());
    }
    // No order is ever i64::MAX, so one more does not overflow in practice; saturating keeps an invalid token harmless.
    let (start, end) = (key(room, from.saturating_add(1)), key(room, to.saturating_add(1)));
    get.range(&TIMELINE, &start, Some(&end), falling, &mut |key, value| {
        let corrupt = || Error::corrupt(&TIMELINE, key);
        let order = order_of(key).ok_or_else(corrupt)?;
        visit(order, EventNum::from_key(value).ok_or_else(corrupt)?)
    })
}

/// The newest event at or before a place.
pub fn at_or_before(get: &impl Get, room: RoomNum, order: i64) -> Result<Option<(i64, EventNum)>> {
    first_of(|visit| backward(get, room, i64::MIN, order, visit))
}

/// The oldest event after a place.
pub fn first_after(get: &impl Get, room: RoomNum, order: i64) -> Result<Option<(i64, EventNum)>> {
    first_of(|visit| forward(get, room, order, i64::MAX - 1, visit))
}

type Visit<'a> = &'a mut dyn FnMut(i64, EventNum) -> Result<ControlFlow<()>>;

fn first_of(walk: impl FnOnce(Visit<'_>) -> Result<()>) -> Result<Option<(i64, EventNum)>> {
    let mut found = None;
    walk(&mut |order, event| {
        found = Some((order, event));
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}

/// Remembers the room's state as of a position. Written only when the state changes.
pub fn put_state(w: &mut Write, room: RoomNum, at: Position, root: Root) -> Result<()> {
    w.put(&STATE_LOG, &key(room, at.0 as i64), &root.0.to_be_bytes())
}

/// The room's state as of a position: the newest change at or before it. `None` before our history of the room began.
pub fn state_at(get: &impl Get, room: RoomNum, at: Position) -> Result<Option<(Position, Root)>> {
    let end = key(room, (at.0 as i64).saturating_add(1));
    let mut found = None;
    get.range(&STATE_LOG, &key(room, i64::MIN), Some(&end), true, &mut |key, value| {
        let corrupt = || Error::corrupt(&STATE_LOG, key);
        let at = Position(order_of(key).ok_or_else(corrupt)? as u64);
        found = Some((at, Root(u32::from_be_bytes(value.try_into().map_err(|_| corrupt())?))));
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}

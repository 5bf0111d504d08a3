//! Sticky events (MSC4354): which events of a room are told to everybody who is joined, until when.
//!
//! A row for each sticky event, none for others. Those that are over are removed a few at a time as new ones come.
//! Behind them stand the ones that are held back: the room's present state does not allow their sender to say them, which
//! can change as long as they are sticky.

use std::ops::ControlFlow;

use crate::base::shares::{Held, of_the_busiest};
use crate::store::key_encoding::after_prefix;
use crate::store::schema::STICKY;
use crate::store::{Error, EventNum, Get, Result, RoomNum, UserNum, Write};

/// The most sticky events of a room; a further one takes the place of the oldest of whoever has most there, so that nobody
/// pushes out those of others. A call of a hundred people renews as many within five minutes.
const ROOM_MAX: usize = 1_000;

/// The most of a room that are held back. They are judged again whenever the room's state changes, so they are few; of who
/// was removed from a room, nobody needs more than what a call or two have.
const HELD_MAX: usize = 32;
/// From here on an order is no place, but that of an event held back.
const HELD: u64 = 1 << 63;

/// A sticky event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sticky {
    pub order: u64,
    pub event: EventNum,
    pub sender: UserNum,
    pub until_ms: u64,
}

/// Notes a sticky event at its place in the timeline. Walks the room's, which are [`ROOM_MAX`] at most.
pub fn put(w: &mut Write<'_>, room: RoomNum, new: Sticky, now_ms: u64) -> Result<()> {
    let mut all = Vec::new();
    each(w, room, 0, &mut |sticky| {
        all.push(sticky);
        Ok(ControlFlow::Continue(()))
    })?;
    put_among(w, room, all, new, ROOM_MAX, now_ms)
}

/// Holds a sticky event back.
pub fn hold(w: &mut Write<'_>, room: RoomNum, held: Sticky, now_ms: u64) -> Result<()> {
    let all = held_back(w, room)?;
    let held = Sticky { order: HELD | u64::from(held.event.0), ..held };
    put_among(w, room, all, held, HELD_MAX, now_ms)
}

/// The sticky events of a room that are held back: [`HELD_MAX`] at most, over ones too.
pub fn held_back(get: &impl Get, room: RoomNum) -> Result<Vec<Sticky>> {
    let mut held = Vec::new();
    range(get, room, HELD, &mut |sticky| {
        held.push(sticky);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(held)
}

fn put_among(
    w: &mut Write<'_>,
    room: RoomNum,
    mut all: Vec<Sticky>,
    new: Sticky,
    most: usize,
    now_ms: u64,
) -> Result<()> {
    for over in all.extract_if(.., |sticky| sticky.until_ms <= now_ms) {
        remove(w, room, over.order)?;
    }
    all.push(new);
    if let Some(surplus) = all.len().checked_sub(most).filter(|surplus| *surplus > 0) {
        let held = |one: Sticky| Held { owner: one.sender.0, within: 0, age: one.order, weight: 1, key: one.order };
        for order in of_the_busiest(all.into_iter().map(held).collect(), surplus as u64) {
            if order == new.order {
                return Ok(());
            }
            remove(w, room, order)?;
        }
    }
    let value = [&new.until_ms.to_be_bytes()[..], &new.event.to_key(), &new.sender.to_key()].concat();
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

/// Visits the sticky events of a room behind a place, over ones too, until `visit` breaks. Not those that are held back.
pub fn each(
    get: &impl Get,
    room: RoomNum,
    after: u64,
    visit: &mut dyn FnMut(Sticky) -> Result<ControlFlow<()>>,
) -> Result<()> {
    range(get, room, after.saturating_add(1), &mut |sticky| match sticky.order < HELD {
        true => visit(sticky),
        false => Ok(ControlFlow::Break(())),
    })
}

/// Takes an event out, wherever it stands. Walks the room's.
pub fn remove_event(w: &mut Write<'_>, room: RoomNum, event: EventNum) -> Result<()> {
    let mut orders = Vec::new();
    range(w, room, 0, &mut |sticky| {
        orders.extend((sticky.event == event).then_some(sticky.order));
        Ok(ControlFlow::Continue(()))
    })?;
    orders.into_iter().try_for_each(|order| remove(w, room, order))
}

fn range(
    get: &impl Get,
    room: RoomNum,
    from: u64,
    visit: &mut dyn FnMut(Sticky) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let (from, end) = (key(room, from), after_prefix(&room.to_key()));
    get.range(&STICKY, &from, end.as_deref(), false, &mut |key, value| visit(decode(key, value)?))
}

fn decode(key: &[u8], value: &[u8]) -> Result<Sticky> {
    let corrupt = || Error::corrupt(&STICKY, key);
    let order = key.get(4..).and_then(|order| order.try_into().ok()).map(u64::from_be_bytes).ok_or_else(corrupt)?;
    let (until, event) = value.split_at_checked(8).ok_or_else(corrupt)?;
    let until_ms = until.try_into().map(u64::from_be_bytes).map_err(|_| corrupt())?;
    let (event, sender) = event.split_at_checked(4).ok_or_else(corrupt)?;
    let (event, sender) = EventNum::from_key(event).zip(UserNum::from_key(sender)).ok_or_else(corrupt)?;
    Ok(Sticky { order, event, sender, until_ms })
}

fn key(room: RoomNum, order: u64) -> Vec<u8> {
    [&room.to_key()[..], &order.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Store, WriteError};

    #[tokio::test]
    async fn nobody_pushes_out_the_sticky_events_of_others() {
        let (store, room) = (Store::in_memory(), RoomNum(1));
        let told = async |sender: u32, orders: std::ops::Range<u64>, until_ms: u64, now_ms: u64| {
            let job = move |w: &mut Write<'_>| {
                for order in orders {
                    let (event, sender) = (EventNum(order as u32), UserNum(sender));
                    put(w, room, Sticky { order, event, sender, until_ms }, now_ms)?;
                }
                Ok(())
            };
            store.write(job).await.map_err(|failed: WriteError<Error>| failed.into_inner()).unwrap();
        };
        let held = || {
            let (read, mut senders) = (store.read().unwrap(), Vec::new());
            each(&read, room, 0, &mut |sticky| {
                senders.push((sticky.sender.0, sticky.order));
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
            senders
        };
        let most = ROOM_MAX as u64;
        told(1, 1..4, 5_000, 0).await;
        told(2, 10..most + 20, 5_000, 0).await;
        let kept = held();
        assert_eq!(kept.len(), ROOM_MAX);
        assert_eq!(kept.iter().filter(|(sender, _)| *sender == 1).count(), 3, "of who has few, all are kept");
        assert_eq!(kept.last(), Some(&(2, most + 19)), "the newest of who has many");
        // Who is held back takes no place of those who are not.
        let job = move |w: &mut Write<'_>| {
            (1..100).try_for_each(|event| {
                let held = Sticky { order: 0, event: EventNum(event), sender: UserNum(4), until_ms: 5_000 };
                hold(w, room, held, 0)
            })
        };
        store.write(job).await.map_err(|failed: WriteError<Error>| failed.into_inner()).unwrap();
        let back: Vec<u32> = held_back(&store.read().unwrap(), room).unwrap().iter().map(|one| one.event.0).collect();
        assert_eq!((back.len(), back[0], held().len()), (HELD_MAX, 100 - HELD_MAX as u32, ROOM_MAX));
        told(3, 9_000..9_001, 9_000, 5_000).await;
        assert_eq!(held(), [(3, 9_000)], "what is over goes");
    }
}

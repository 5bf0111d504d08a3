//! Sticky events (MSC4354): which events of a room are told to everybody who is joined, until when.
//!
//! A row for each sticky event, none for others. Those that are over are removed a few at a time as new ones come.

use std::ops::ControlFlow;

use crate::base::shares::{Held, of_the_busiest};
use crate::store::key_encoding::after_prefix;
use crate::store::schema::STICKY;
use crate::store::{Error, EventNum, Get, Result, RoomNum, UserNum, Write};

/// The most sticky events of a room; a further one takes the place of the oldest of whoever has most there, so that nobody
/// pushes out those of others. A call of a hundred people renews as many within five minutes.
const ROOM_MAX: usize = 1_000;

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
    for over in all.extract_if(.., |sticky| sticky.until_ms <= now_ms) {
        remove(w, room, over.order)?;
    }
    all.push(new);
    if let Some(surplus) = all.len().checked_sub(ROOM_MAX).filter(|surplus| *surplus > 0) {
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
        told(3, 9_000..9_001, 9_000, 5_000).await;
        assert_eq!(held(), [(3, 9_000)], "what is over goes");
    }
}

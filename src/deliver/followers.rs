//! Readers of the outbound log that are no servers: push gateways, application services.
//!
//! A follower has a name and a position on disk. From the moment it begins, the log has a row for every new event that
//! is shown in any room, whoever sent it and whether or not another server is in the room. A follower takes what is
//! behind its position, does its work, and moves on; what it did not finish comes again after a restart.
//!
//! A follower that stands still does not let the log grow without bound: rows further than [`BEHIND_MAX`] positions
//! behind the newest are dropped, and it is told that it missed some.

use std::ops::ControlFlow;

use crate::store::tables::server::follower;
use crate::store::tables::server::outbox::{self, Outbound};
use crate::store::{Error, EventNum, Get, Position, Result, RoomNum, Write};

/// Followers at most: each is a row that is looked at when rows are dropped.
pub const FOLLOWERS_MAX: usize = 64;
/// How far behind the newest position a follower may be. About 20 bytes a row: 4 MB at the most.
pub const BEHIND_MAX: u64 = 200_000;
/// Rows looked at in one go.
const LOOK_ROWS: usize = 1_000;

/// What a follower reads.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// New events in the order in which they came.
    pub events: Vec<(RoomNum, EventNum)>,
    /// The position after these events.
    pub reached: Position,
    /// Whether there may be more.
    pub more: bool,
    /// Whether rows were dropped that this follower had not read.
    pub missed: bool,
}

/// Begins a follower at the end of the log; one that is there already stays where it is. False when there are
/// [`FOLLOWERS_MAX`] others.
pub fn begin(w: &mut Write<'_>, name: &str) -> Result<bool> {
    if follower::position(w, name)?.is_some() {
        return Ok(true);
    }
    if follower::rearmost(w)?.0 >= FOLLOWERS_MAX {
        return Ok(false);
    }
    let now = w.position()?;
    follower::set_position(w, name, Some(now))?;
    Ok(true)
}

/// Ends a follower: nothing is kept for it any more.
pub fn end(w: &mut Write<'_>, name: &str) -> Result<()> {
    follower::set_position(w, name, None)
}

/// The next events of a follower, `events_max` at most. Nothing for one that was never begun.
pub fn read(get: &impl Get, name: &str, events_max: usize) -> Result<Read> {
    let Some(from) = follower::position(get, name)? else { return Ok(Read::default()) };
    let kept = Position(outbox::newest(get)?.map_or(0, |newest| newest.0.saturating_sub(BEHIND_MAX)));
    let from_kept = from.max(kept);
    let mut read = Read { reached: from_kept, missed: from_kept != from, ..Read::default() };
    let mut looked = 0;
    outbox::list_after(get, from_kept, &mut |at, row| {
        if looked == LOOK_ROWS || read.events.len() >= events_max {
            read.more = true;
            return Ok(ControlFlow::Break(()));
        }
        looked += 1;
        if let Outbound::Event { room, event, .. } | Outbound::Followed { room, event } = row {
            read.events.push((room, event));
        }
        read.reached = at;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(read)
}

/// Moves a follower on, never back. Does nothing for one that has ended.
pub fn advance(w: &mut Write<'_>, name: &str, reached: Position) -> Result<()> {
    match follower::position(w, name)? {
        Some(at) if at < reached => follower::set_position(w, name, Some(reached)),
        _ => Ok(()),
    }
}

/// The position from which rows are kept for followers; none without followers.
pub(in crate::deliver) fn kept_from(get: &impl Get) -> Result<Option<Position>, Error> {
    let Some(rearmost) = follower::rearmost(get)?.1 else { return Ok(None) };
    let newest = outbox::newest(get)?.unwrap_or_default();
    Ok(Some(rearmost.max(Position(newest.0.saturating_sub(BEHIND_MAX)))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    async fn post(store: &Store, rows: u32) {
        let job = move |w: &mut Write<'_>| {
            for event in 0..rows {
                let at = w.next_position();
                outbox::post(w, at, &Outbound::Followed { room: RoomNum(1), event: EventNum(event) })?;
            }
            Ok::<_, Error>(())
        };
        store.write(job).await.unwrap();
    }

    #[tokio::test]
    async fn each_follower_reads_from_where_it_was() {
        let store = Store::in_memory();
        post(&store, 3).await;
        store.write(|w| begin(w, "push")).await.unwrap();
        post(&store, 5).await;
        store.write(|w| begin(w, "bridge")).await.unwrap();
        let first = read(&store.read().unwrap(), "push", 2).unwrap();
        assert_eq!((first.events.len(), first.more, first.missed), (2, true, false));
        let reached = first.reached;
        store.write(move |w| advance(w, "push", reached)).await.unwrap();
        let rest = read(&store.read().unwrap(), "push", 100).unwrap();
        assert_eq!(rest.events, [2, 3, 4].map(|event| (RoomNum(1), EventNum(event))));
        assert_eq!(read(&store.read().unwrap(), "bridge", 100).unwrap().events, []);
        assert_eq!(read(&store.read().unwrap(), "nobody", 100).unwrap(), Read::default());
    }

    #[tokio::test]
    async fn rows_are_kept_for_the_rearmost_follower_and_no_further_than_the_bound() {
        let store = Store::in_memory();
        assert_eq!(kept_from(&store.read().unwrap()).unwrap(), None);
        store.write(|w| begin(w, "slow")).await.unwrap();
        let began = follower::position(&store.read().unwrap(), "slow").unwrap().unwrap();
        post(&store, 10).await;
        assert_eq!(kept_from(&store.read().unwrap()).unwrap(), Some(began));
        let job = |w: &mut Write<'_>| {
            let far = Position(w.next_position().0 + 2 * BEHIND_MAX);
            outbox::post(w, far, &Outbound::Followed { room: RoomNum(1), event: EventNum(99) })
        };
        store.write(job).await.unwrap();
        assert!(kept_from(&store.read().unwrap()).unwrap().unwrap() > began);
        let late = read(&store.read().unwrap(), "slow", 100).unwrap();
        assert!(late.missed);
        assert_eq!(late.events, [(RoomNum(1), EventNum(99))]);
        store.write(|w| end(w, "slow")).await.unwrap();
        assert_eq!(kept_from(&store.read().unwrap()).unwrap(), None);
    }

    #[tokio::test]
    async fn no_more_followers_begin_than_the_bound() {
        let store = Store::in_memory();
        let begun = store.write(|w| {
            let mut begun = 0;
            for number in 0..FOLLOWERS_MAX + 1 {
                begun += usize::from(begin(w, &number.to_string())?);
            }
            Ok::<_, Error>(begun)
        });
        assert_eq!(begun.await.unwrap().0, FOLLOWERS_MAX);
    }
}

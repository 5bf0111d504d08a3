//! What waits for a pusher: the unread notifications and invites of its user behind a position.
//!
//! No row is written for it. The unread counts keep the places of the newest 128 notifications of each room, and what is
//! read on another device is gone from there.

use std::ops::ControlFlow;

use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::{unread, user_room};
use crate::store::{Get, Position, Result, RoomNum, UserNum};

/// A notification that was not told yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Waiting {
    /// Its place, which is the position at which it came.
    pub at: Position,
    pub room: RoomNum,
    pub invite: bool,
}

/// What there is to tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// The oldest notification behind the position.
    pub first: Option<Waiting>,
    /// The number of rooms with something unread, and of invites.
    pub badge: u64,
}

/// Walks all rooms of a user: three rows for each.
pub fn find(get: &impl Get, user: UserNum, reached: Position) -> Result<Found> {
    let mut found = Found::default();
    let after = place(reached);
    unread::list_of_user(get, user, after, &mut |room, first| {
        found.badge += 1;
        let at = first.and_then(|order| u64::try_from(order).ok()).map(Position);
        found.consider(at.map(|at| Waiting { at, room, invite: false }));
        Ok(ControlFlow::Continue(()))
    })?;
    user_room::list_mine(get, user, None, &mut |room, mine| {
        if mine.membership == Membership::Invite {
            found.badge += 1;
            let waiting = Waiting { at: mine.since, room, invite: true };
            found.consider(Some(waiting).filter(|waiting| waiting.at > reached));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

impl Found {
    fn consider(&mut self, waiting: Option<Waiting>) {
        self.first = [self.first, waiting].into_iter().flatten().min();
    }
}

/// Whether anything waits in one of the rooms. Three rows for each.
pub fn is_any_in(get: &impl Get, user: UserNum, rooms: &[RoomNum], reached: Position) -> Result<bool> {
    for room in rooms {
        let invite = user_room::mine(get, user, *room)?
            .is_some_and(|mine| mine.membership == Membership::Invite && mine.since > reached);
        if invite || unread::first_after(get, user, *room, place(reached))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn place(position: Position) -> i64 {
    i64::try_from(position.0).unwrap_or(i64::MAX)
}

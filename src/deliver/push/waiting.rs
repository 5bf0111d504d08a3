//! What waits for a pusher: the unread notifications and invites of its user behind a position.
//!
//! No row is written for it. The unread counts keep the places of the newest 128 notifications of each room, and what is
//! read on another device is gone from there.

use std::collections::BTreeSet;
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The oldest notifications behind the position, as many as were asked for.
    pub oldest: BTreeSet<Waiting>,
    /// The place of the newest.
    pub newest: Option<Position>,
    /// The number of rooms with something unread, and of invites.
    pub badge: u64,
}

/// Walks all rooms of a user: three rows for each, and the places of 128 notifications in each. `is_hidden`: whether the
/// invite to a room is one that the user's apps are not shown.
pub fn find(
    get: &impl Get,
    user: UserNum,
    reached: Position,
    most: usize,
    is_hidden: &dyn Fn(RoomNum) -> Result<bool>,
) -> Result<Found> {
    let mut found = Found::default();
    unread::list_of_user(get, user, &mut |room, unread| {
        found.badge += 1;
        for at in unread.orders_after(order(reached)).filter_map(position) {
            found.consider(Waiting { at, room, invite: false }, most);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    user_room::list_mine(get, user, None, &mut |room, mine| {
        if mine.membership == Membership::Invite && !is_hidden(room)? {
            found.badge += 1;
            if mine.since > reached {
                found.consider(Waiting { at: mine.since, room, invite: true }, most);
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

impl Found {
    fn consider(&mut self, waiting: Waiting, most: usize) {
        self.newest = self.newest.max(Some(waiting.at));
        self.oldest.insert(waiting);
        if self.oldest.len() > most {
            self.oldest.pop_last();
        }
    }
}

/// The place of the newest notification in the rooms. Three rows for each.
pub fn newest_in(get: &impl Get, user: UserNum, rooms: &[RoomNum]) -> Result<Option<Position>> {
    let mut newest = None;
    for room in rooms {
        let invite = user_room::mine(get, user, *room)?.filter(|mine| mine.membership == Membership::Invite);
        let event = unread::get(get, user, *room)?.orders_after(i64::MIN).next_back().and_then(position);
        newest = newest.max(invite.map(|mine| mine.since)).max(event);
    }
    Ok(newest)
}

fn order(position: Position) -> i64 {
    i64::try_from(position.0).unwrap_or(i64::MAX)
}

/// Events from before our own history have places below zero, and nothing there waits.
fn position(order: i64) -> Option<Position> {
    u64::try_from(order).ok().map(Position)
}

//! The facts about a user's rooms that any kind of sync tells (client-server API, "Syncing"), as of one snapshot.
//!
//! A sync tells the changes between a position that the app knows and the one of the snapshot. The timeline is a range
//! of orders, the state the difference of two trees, receipts a range of their log. Nothing is remembered between two
//! syncs. Each fact takes the position it is asked since: version 3 of `/sync` asks every room since one token, a
//! connection of a sliding sync asks each room since the answer that last told of it.
//!
//! The layout of an answer stands in `client/sync/`. Here only the items of long lists are written, with commas between
//! them and a pause after each: a room decides how many there are.
//!
//! This file: which rooms there are, and which of them have news. `activity.rs`: their order, and what lists of them are
//! filtered by. `delta.rs`: timeline and state. `required.rs`: the part of the state that is asked for. `summary.rs`: counts,
//! heroes, and what users outside are shown. `read_marks.rs`: receipts, typing, unread counts.

use std::sync::{Arc, OnceLock};

use super::event_json::Format;
use super::filter::Filter;
use super::token::SyncToken;
use super::{Reader, RoomView, until};
use crate::room::Rooms;
use crate::room::error::Result;
use crate::room::ignored::Ignored;
use crate::room::invite_rules::Rules;
use crate::room::state::stripped::read_stripped;
use crate::store::schema::ROOM;
use crate::store::tables::room::event_row::{Kind, Membership, Root};
use crate::store::tables::room::user_room::Mine;
use crate::store::tables::room::{self, current_state, event, state_tree, user_room};
use crate::store::tables::user;
use crate::store::{self, EventNum, Get, Position, Read, RoomNum, UserNum};

mod activity;
mod delta;
mod read_marks;
mod required;
mod sticky;
mod summary;

pub use activity::Activity;
pub use delta::{DeltaQuery, RoomDelta};
#[cfg(test)]
pub use read_marks::RECEIPTS_MAX;
pub use read_marks::ReadMark;
pub use required::{Reach, StateMoved, StateQuery, StateWish};
pub use summary::Hero;

/// One app's view of all its rooms, in one snapshot.
#[derive(Clone)]
pub struct SyncView {
    pub read: Arc<Read>,
    pub reader: Reader,
    /// The position up to which this sync tells the app.
    pub now: SyncToken,
    rooms: Rooms,
    ignored: Ignored,
    /// Whose invites the reader takes, once an invite is met.
    rules: OnceLock<Option<Rules>>,
}

/// A room of the app's user, whatever the membership; forgotten rooms too.
#[derive(Clone, Copy, Debug)]
pub struct UserRoom {
    pub num: RoomNum,
    mine: Mine,
}

impl UserRoom {
    pub fn membership(&self) -> Membership {
        self.mine.membership
    }

    /// The position of the latest change of the membership.
    pub fn since(&self) -> Position {
        self.mine.since
    }

    /// The position at which the user last stopped being joined.
    pub fn left_at(&self) -> Option<Position> {
        self.mine.left_at
    }

    /// The user asked not to see the room any more.
    pub fn is_forgotten(&self) -> bool {
        self.mine.forgotten
    }
}

impl Rooms {
    /// The rooms in which typing changed after a typing serial; none when that is not known.
    pub fn typing_rooms(&self, since: u64) -> Option<Vec<RoomNum>> {
        self.0.typing.rooms_changed(since)
    }

    /// Prepares a sync over a snapshot taken now.
    pub fn sync_view(&self, reader: Reader) -> Result<SyncView> {
        // The typing serial is read first: a change in between is told twice rather than never.
        let typing = self.0.typing.serial();
        let read = Arc::new(self.read()?);
        let at = Get::position(&*read)?;
        let now = SyncToken { at, typing, messages: at, presence: 0 };
        let ignored = Ignored::of(&*read, reader.user)?;
        Ok(SyncView { rooms: self.clone(), read, reader, now, ignored, rules: OnceLock::new() })
    }
}

impl SyncView {
    /// The user's next wanted room behind `after`. Reads one row for each room on the way.
    pub fn find_room(
        &self,
        after: Option<RoomNum>,
        mut is_wanted: impl FnMut(&UserRoom) -> Result<bool>,
    ) -> Result<Option<UserRoom>> {
        let mut found = Ok(None);
        user_room::list_mine(&*self.read, self.reader.user, after, &mut |num, mine| {
            let room = UserRoom { num, mine };
            found = is_wanted(&room).map(|wanted| wanted.then_some(room));
            Ok(until(!matches!(found, Ok(None))))
        })?;
        found
    }

    /// As [`SyncView::find_room`], among rooms that are at hand, in order.
    pub fn find_room_of(
        &self,
        rooms: &[RoomNum],
        after: Option<RoomNum>,
        mut is_wanted: impl FnMut(&UserRoom) -> Result<bool>,
    ) -> Result<Option<UserRoom>> {
        for num in rooms.iter().copied().filter(|num| after.is_none_or(|after| *num > after)) {
            let Some(mine) = user_room::mine(&*self.read, self.reader.user, num)? else { continue };
            let room = UserRoom { num, mine };
            if is_wanted(&room)? {
                return Ok(Some(room));
            }
        }
        Ok(None)
    }

    /// The rooms in which typing changed after a typing serial; none when that is not known.
    pub fn typing_rooms(&self, since: u64) -> Option<Vec<RoomNum>> {
        self.rooms.typing_rooms(since)
    }

    pub fn room_id(&self, room: RoomNum) -> Result<String> {
        Ok(room::id(&*self.read, room)?.ok_or_else(|| store::Error::corrupt(&ROOM, &room.to_key()))?)
    }

    pub fn user_id(&self, user: UserNum) -> Result<String> {
        Ok(user::id_of(&*self.read, user)?)
    }

    pub fn event_id(&self, event: EventNum) -> Result<String> {
        Ok(event::row_of(&*self.read, event)?.id.text())
    }

    /// Whether anything happened in a room after a position. Reads the room's row.
    pub fn has_moved(&self, room: RoomNum, since: Position) -> Result<bool> {
        Ok(room::get_of(&*self.read, room)?.latest > since)
    }

    /// Whether an invite is one that the reader is not shown.
    pub fn is_invite_hidden(&self, room: &UserRoom) -> Result<bool> {
        let rules = match self.rules.get() {
            Some(rules) => rules.as_ref(),
            None => {
                let rules = Rules::of(&*self.read, self.reader.user)?;
                self.rules.get_or_init(|| rules).as_ref()
            }
        };
        Ok(hides(&self.rooms, &self.read, rules, self.reader.user, room.num, &room.mine)?)
    }

    /// Opens a room; its events get the shape that the filter asks for.
    pub fn open(&self, room: RoomNum, filter: &Filter) -> Result<RoomView> {
        let format = Format {
            now_ms: self.rooms.0.parts.clock.now_ms(),
            user: self.reader.user,
            device: self.reader.device.clone(),
            room_id: None,
            fields: filter.fields(),
            federation: filter.is_federation(),
            ignored: self.ignored.clone(),
            ..Format::default()
        };
        Ok(RoomView::new(&self.rooms, self.read.clone(), room, self.reader.user_id.as_str(), format)?)
    }
}

impl Rooms {
    /// Whether a user's invite to a room is one that their apps are not shown: its sender is ignored, or the user takes no
    /// invites from them.
    pub fn is_invite_hidden(&self, get: &Read, user: UserNum, room: RoomNum) -> store::Result<bool> {
        match user_room::mine(get, user, room)? {
            Some(mine) => hides(self, get, Rules::of(get, user)?.as_ref(), user, room, &mine),
            None => Ok(false),
        }
    }
}

fn hides(
    rooms: &Rooms,
    get: &Read,
    rules: Option<&Rules>,
    user: UserNum,
    room: RoomNum,
    mine: &Mine,
) -> store::Result<bool> {
    if rules.is_none() {
        return Ok(false);
    }
    let verdicts = &rooms.0.verdicts;
    if let Some(own) = mine.event {
        return verdicts.hide(get, rules, &user::id_of(get, event::row_of(get, own)?.sender)?);
    }
    // For an invite from outside: the member event is the last of its stripped state. By id: the inviter may be met by
    // nothing but this invite, and has no number then.
    let stripped = user_room::stripped(get, user, room)?.unwrap_or_default();
    let Some(own) = read_stripped(&stripped).pop() else { return Ok(false) };
    verdicts.hide(get, rules, &own.sender)
}

/// The event of a state for a type and key.
fn present_in(read: &Read, root: Option<Root>, kind: &str, state_key: &str) -> store::Result<Option<EventNum>> {
    match (root, state_tree::key(read, kind, state_key)?) {
        (Some(root), Some(key)) => state_tree::get(read, root, key),
        _ => Ok(None),
    }
}

/// The event that is a room's state now for a type and key.
fn present(read: &Read, num: RoomNum, kind: &str, state_key: &str) -> store::Result<Option<EventNum>> {
    match state_tree::key(read, kind, state_key)? {
        Some(key) => current_state::state(read, num, Kind::of(kind), key),
        None => Ok(None),
    }
}

//! The order of a user's rooms, and what a sliding sync filters its lists of them by (MSC4186).

use super::{SyncView, UserRoom, present};
use crate::matrix::json;
use crate::room::error::Result;
use crate::room::read::event_json;
use crate::store::tables::room::current_state::{self, StateCursor};
use crate::store::tables::room::event_row::{Kind, Membership};
use crate::store::tables::room::{self, event, user_room};
use crate::store::{Position, RoomNum};

/// When something last happened in a room, as far as its user may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity {
    /// Anything at all: what lists are sorted by.
    pub latest: Position,
    /// Something that people look for: the `bump_stamp`.
    pub bump: Position,
}

impl SyncView {
    /// One room of the user by its number.
    pub fn user_room(&self, num: RoomNum) -> Result<Option<UserRoom>> {
        Ok(user_room::mine(&*self.read, self.reader.user, num)?.map(|mine| UserRoom { num, mine }))
    }

    /// The number of a room id, when it has one.
    pub fn room_num(&self, id: &str) -> Result<Option<RoomNum>> {
        Ok(room::num(&*self.read, id)?)
    }

    /// When something last happened in a room. Reads a part of the room's row, for a joined room.
    pub fn activity(&self, room: &UserRoom) -> Result<Activity> {
        let since = room.mine.since;
        if room.mine.membership != Membership::Join {
            return Ok(Activity { latest: since, bump: since });
        }
        let (latest, bump) = room::activity(&*self.read, room.num)?;
        // Of a room that was joined elsewhere, nothing came here before the user did.
        Ok(Activity { latest: latest.max(since), bump: if bump.0 == 0 { since } else { bump } })
    }

    /// Whether the user's own leave ended the membership: nobody else did.
    pub fn left_by_self(&self, room: &UserRoom) -> Result<bool> {
        if room.mine.membership != Membership::Leave {
            return Ok(false);
        }
        match room.mine.event {
            Some(own) => Ok(event::row_of(&*self.read, own)?.sender == self.reader.user),
            None => Ok(true),
        }
    }

    /// Whether the user was ever joined to a room.
    pub fn was_in(&self, room: &UserRoom) -> bool {
        room.mine.membership == Membership::Join || room.mine.left_at.is_some()
    }

    /// Whether a room is encrypted; for one seen from outside, as far as its stripped state tells.
    pub fn is_encrypted(&self, room: &UserRoom) -> Result<bool> {
        if room.mine.outside {
            return Ok(self.stripped_content(room, "m.room.encryption")?.is_some());
        }
        Ok(present(&self.read, room.num, "m.room.encryption", "")?.is_some())
    }

    /// The `type` in a room's create event; as [`SyncView::is_encrypted`].
    pub fn room_type(&self, room: &UserRoom) -> Result<Option<String>> {
        let content = if room.mine.outside {
            self.stripped_content(room, "m.room.create")?
        } else if let Some(known) = room::sort(&*self.read, room.num)?.room_type() {
            return Ok(known.map(str::to_owned));
        } else {
            match present(&self.read, room.num, "m.room.create", "")? {
                Some(create) => Some(event_json::content(&*self.read, &event::row_of(&*self.read, create)?)?),
                None => None,
            }
        };
        let kind = content.as_deref().and_then(|content| json::read::get_text(content, "type"));
        Ok(kind.map(|kind| kind.into_owned()))
    }

    fn stripped_content(&self, room: &UserRoom, kind: &str) -> Result<Option<Vec<u8>>> {
        let stripped = user_room::stripped(&*self.read, self.reader.user, room.num)?.unwrap_or_default();
        let text = |event, key| json::read::get_text(event, key).unwrap_or_default();
        let event = json::read::items(&stripped)
            .find(|event| text(event, "type") == kind && text(event, "state_key").is_empty());
        Ok(event.and_then(|event| json::read::get(event, "content")).map(<[u8]>::to_vec))
    }

    /// The rooms that a space names, when the user is joined to it: those that the first `rooms_max` entries of its state
    /// name. Reads a body for each.
    pub fn children(&self, space: &str, rooms_max: usize) -> Result<Vec<RoomNum>> {
        if rooms_max == 0 {
            return Ok(Vec::new());
        }
        let Some(num) = room::num(&*self.read, space)? else { return Ok(Vec::new()) };
        let mine = user_room::mine(&*self.read, self.reader.user, num)?;
        if mine.is_none_or(|mine| mine.membership != Membership::Join) {
            return Ok(Vec::new());
        }
        let mut events = Vec::new();
        let only = Some(Kind::SPACE_CHILD);
        current_state::list_state(&*self.read, num, only, StateCursor::default(), &mut |_, _, event| {
            events.push(event);
            Ok(super::until(events.len() == rooms_max))
        })?;
        let mut children = Vec::new();
        for child in events {
            let body = event::shown(&*self.read, &event::row_of(&*self.read, child)?)?;
            // One without servers was taken out of the space.
            let has_via = json::read::get_path(&body, &["content", "via"]).is_some_and(|via| via.starts_with(b"["));
            if let Some(id) = json::read::get_text(&body, "state_key").filter(|_| has_via) {
                children.extend(room::num(&*self.read, &id)?);
            }
        }
        Ok(children)
    }
}

//! A room's counts and heroes, and the stripped state that users outside are shown.

use super::super::{RoomView, until};
use super::super::{event_json, filter::Events};
use super::{SyncView, UserRoom, present};
use crate::base::{ChunkError, ChunkWriter, comma};
use crate::matrix::json;
use crate::room::error::Result;
use crate::room::state::stripped;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::{event, member, user_room};
use crate::store::tables::user;
use crate::store::{self, UserNum};

/// The most `m.heroes`: members that name a room without a name.
const HEROES: usize = 5;

/// The numbers of members, and the members that stand for the name of a room without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub joined: u64,
    pub invited: u64,
    /// User ids, at most five; none for a room that has a name or an alias.
    pub heroes: Option<Vec<String>>,
}

/// A member that stands for the name of a room without one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hero {
    pub user_id: String,
    pub displayname: Option<String>,
    pub avatar_url: Option<String>,
}

impl RoomView {
    /// The room's summary as of the snapshot.
    pub fn summary(&self) -> Result<Summary> {
        let ids = |heroes: Vec<UserNum>| heroes.iter().map(|hero| user::id_of(&*self.read, *hero)).collect();
        let heroes = self.heroes()?.map(ids).transpose()?;
        Ok(Summary { joined: self.room.joined, invited: self.room.invited, heroes })
    }

    /// The members that stand for a room without a name or alias; none for a room that has one.
    pub(super) fn heroes(&self) -> store::Result<Option<Vec<UserNum>>> {
        for (kind, field) in [("m.room.name", "name"), ("m.room.canonical_alias", "alias")] {
            let Some(named) = present(&self.read, self.num, kind, "")? else { continue };
            let content = event_json::content(&*self.read, &event::row_of(&*self.read, named)?)?;
            // A removed name is an event without a name.
            if json::read::get_text(&content, field).is_some_and(|name| !name.is_empty()) {
                return Ok(None);
            }
        }
        self.first_members().map(Some)
    }

    /// The first members of a room beside the reader, at most [`HEROES`]: those who are there, else those who were.
    fn first_members(&self) -> store::Result<Vec<UserNum>> {
        let mut heroes = Vec::new();
        let present = [Membership::Join, Membership::Invite];
        for membership in present.into_iter().chain([Membership::Leave, Membership::Ban]) {
            if !present.contains(&membership) && !heroes.is_empty() {
                break;
            }
            member::list(&*self.read, self.num, membership, None, &mut |user, _| {
                if user != self.viewer.user && heroes.len() < HEROES {
                    heroes.push(user);
                }
                Ok(until(heroes.len() == HEROES))
            })?;
        }
        Ok(heroes)
    }

    /// The numbers of joined and invited members.
    pub fn counts(&self) -> (u64, u64) {
        (self.room.joined, self.room.invited)
    }

    /// The first members beside the reader as their member events show them: at most five, whether the room has a name or
    /// not.
    pub fn hero_profiles(&self) -> Result<Vec<Hero>> {
        let mut heroes = Vec::new();
        for user in self.first_members()? {
            let user_id = user::id_of(&*self.read, user)?;
            let Some(num) = present(&self.read, self.num, "m.room.member", &user_id)? else { continue };
            let content = event_json::content(&*self.read, &event::row_of(&*self.read, num)?)?;
            let text = |field| json::read::get_text(&content, field).map(|text| text.into_owned());
            heroes.push(Hero { user_id, displayname: text("displayname"), avatar_url: text("avatar_url") });
        }
        Ok(heroes)
    }

    /// Writes the user's own member event, if it is here and the filter wants it. Of an invite or knock from outside that
    /// is over, it is what was kept of the event that ended it.
    pub async fn write_own_member(
        &mut self,
        pen: &ChunkWriter,
        room: &UserRoom,
        filter: &Events,
    ) -> Result<(), ChunkError> {
        if let Some(own) = room.mine.event.filter(|_| !room.mine.outside)
            && filter.wants(&*self.read, &event::row_of(&*self.read, own)?)?
        {
            self.write_events(pen, &[(0, own)]).await?;
        }
        let is_over = matches!(room.mine.membership, Membership::Leave | Membership::Ban);
        if room.mine.outside
            && is_over
            && let Some(kept) = user_room::stripped(&*self.read, self.viewer.user, self.num)?
            && let Some(leave) = json::read::items(&kept).next()
            && filter.wants_shown(leave)
        {
            pen.bytes(leave);
        }
        Ok(())
    }
}

impl SyncView {
    /// Writes the stripped state of a room to which the user is invited or knocked, as an array.
    pub fn write_stripped(&self, pen: &ChunkWriter, room: &UserRoom) -> Result<()> {
        match user_room::stripped(&*self.read, self.reader.user, room.num)? {
            Some(stripped) => pen.bytes(&stripped),
            None => self.write_own_stripped(pen, room)?,
        }
        Ok(())
    }

    /// Stripped state of a room we hold: the state shown to users outside, and the invite itself.
    fn write_own_stripped(&self, pen: &ChunkWriter, room: &UserRoom) -> store::Result<()> {
        let mut shown = Vec::with_capacity(stripped::SHOWN.len() + 2);
        for kind in stripped::SHOWN {
            shown.extend(present(&self.read, room.num, kind.name().unwrap_or_default(), "")?);
        }
        if let Some(own) = room.mine.event {
            let inviter = user::id_of(&*self.read, event::row_of(&*self.read, own)?.sender)?;
            if inviter != self.reader.user_id.as_str() {
                shown.extend(present(&self.read, room.num, "m.room.member", &inviter)?);
            }
            shown.push(own);
        }
        pen.with(|out| {
            out.push(b'[');
            let mut first = true;
            for num in shown {
                comma(out, &mut first);
                event_json::write_stripped(&*self.read, &event::row_of(&*self.read, num)?, out)?;
            }
            out.push(b']');
            Ok(())
        })
    }
}

//! The part of a room's state that a sliding sync asks for (MSC4186, `required_state`): as it is now, or what changed of it.

use std::ops::ControlFlow;

use super::super::RoomView;
use super::super::event_json::{self, Detail};
use super::delta::RoomDelta;
use super::present_in;
use crate::base::{ChunkError, ChunkWriter, comma};
use crate::matrix::json;
use crate::room::error::Result;
use crate::store::tables::room::event_pile::ListVisitor;
use crate::store::tables::room::event_row::{Kind, Row};
use crate::store::tables::room::{event, state_tree};
use crate::store::tables::user;
use crate::store::{self, EventNum, UserNum};

/// Deleted keys told of one room: 8 bytes each.
const STUBS_MAX: usize = 1_024;

/// Whether a state event is wanted, by its type and key. Asked without the key first; `None` when the key decides.
pub type Wants<'a> = &'a (dyn Fn(&str, Option<&str>) -> Option<bool> + Send + Sync);

/// What may be among the state that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reach {
    /// Only what is named by type and key.
    Named,
    /// Anything but members that are not named.
    NoMembers,
    All,
}

/// State that is wanted, whatever else it is called.
pub struct StateWish<'a> {
    pub wants: Wants<'a>,
    pub reach: Reach,
    /// What is named by type and key.
    pub named: &'a [(String, String)],
}

/// Which state of a room to write.
pub struct StateQuery<'a> {
    pub wish: StateWish<'a>,
    /// Of what changed: all members, though they are not wanted.
    pub moved_members: bool,
    /// Wanted now and not before: written whether it changed or not.
    pub added: Option<StateWish<'a>>,
    /// Members whose event is written in any case.
    pub members: &'a [UserNum],
    /// Tell keys that were taken out of the state.
    pub stubs: bool,
}

/// What was found out on the way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateMoved {
    /// Anything at all changed.
    pub any: bool,
    pub name: bool,
    pub avatar: bool,
    pub members: bool,
}

impl RoomDelta {
    /// Writes the wanted state at the end, or what changed of it, with commas between.
    pub async fn write_required(
        &self,
        pen: &ChunkWriter,
        room: &mut RoomView,
        query: &StateQuery<'_>,
    ) -> Result<StateMoved, ChunkError> {
        let mut first = true;
        let mut moved = StateMoved { any: true, name: true, avatar: true, members: true };
        if self.is_whole() {
            self.write_wish(pen, room, &query.wish, None, &mut first).await?;
        } else {
            moved = self.write_changes(pen, room, query, &mut first).await?;
            if let Some(added) = &query.added {
                self.write_wish(pen, room, added, Some(query), &mut first).await?;
            }
        }
        for member in query.members {
            self.write_member(pen, room, query, *member, &mut first)?;
            pen.pause().await;
        }
        Ok(moved)
    }

    /// Writes all that is wanted of the state at the end. `beside`: but for what its changes wrote already.
    async fn write_wish(
        &self,
        pen: &ChunkWriter,
        room: &mut RoomView,
        wish: &StateWish<'_>,
        beside: Option<&StateQuery<'_>>,
        first: &mut bool,
    ) -> Result<(), ChunkError> {
        let Some(end) = self.end() else { return Ok(()) };
        let is_told = |row: &Row, num: EventNum| -> store::Result<bool> {
            let (Some(query), Some(key)) = (beside, row.state_key) else { return Ok(false) };
            let known = self.known().map_or(Ok(None), |known| state_tree::get(&*room.read, known, key))?;
            Ok(known != Some(num) && self.is_change_wanted(room, query, row)?)
        };
        if wish.reach == Reach::Named {
            for (kind, state_key) in wish.named {
                let Some(num) = present_in(&room.read, Some(end), kind, state_key)? else { continue };
                let row = event::row_of(&*room.read, num)?;
                if !is_told(&row, num)? {
                    room.write_row(pen, num, &row, Detail::State, first)?;
                    pen.pause().await;
                }
            }
            return Ok(());
        }
        let without_members = wish.reach == Reach::NoMembers;
        let mut pile = room.pile();
        while let Some((num, row)) =
            pile.next(&*room.read, &mut |visit| room.list_state(end, without_members, visit))?
        {
            let is_skipped = without_members && row.kind == Kind::MEMBER;
            if !is_skipped && is_wanted(room, wish.wants, &row)? && !is_told(&row, num)? {
                room.write_row(pen, num, &row, Detail::State, first)?;
            }
            pen.pause().await;
        }
        if without_members {
            for (kind, state_key) in wish.named.iter().filter(|(kind, _)| kind == "m.room.member") {
                let Some(num) = present_in(&room.read, Some(end), kind, state_key)? else { continue };
                let row = event::row_of(&*room.read, num)?;
                if !is_told(&row, num)? {
                    room.write_row(pen, num, &row, Detail::State, first)?;
                    pen.pause().await;
                }
            }
        }
        Ok(())
    }

    async fn write_changes(
        &self,
        pen: &ChunkWriter,
        room: &mut RoomView,
        query: &StateQuery<'_>,
        first: &mut bool,
    ) -> Result<StateMoved, ChunkError> {
        let mut moved = StateMoved::default();
        if self.known() == self.end() {
            return Ok(moved);
        }
        moved.any = true;
        let mut pile = room.pile();
        while let Some((num, row)) = pile.next(&*room.read, &mut |visit| self.list_changed(room, visit))? {
            moved.members |= row.kind == Kind::MEMBER;
            moved.name |= row.kind == Kind::NAME;
            moved.avatar |= row.kind == Kind::AVATAR;
            if self.is_change_wanted(room, query, &row)? {
                room.write_row(pen, num, &row, Detail::State, first)?;
            }
            pen.pause().await;
        }
        let gone = self.gone(room)?;
        for num in gone {
            let row = event::row_of(&*room.read, num)?;
            moved.members |= row.kind == Kind::MEMBER;
            moved.name |= row.kind == Kind::NAME;
            moved.avatar |= row.kind == Kind::AVATAR;
            if query.stubs && self.is_change_wanted(room, query, &row)? {
                write_stub(pen, room, &row, first)?;
                pen.pause().await;
            }
        }
        Ok(moved)
    }

    fn list_changed(&self, room: &RoomView, visit: ListVisitor) -> store::Result<()> {
        state_tree::diff(&*room.read, self.known(), self.end(), &mut |_, _, new| {
            new.into_iter().for_each(&mut *visit);
            Ok(ControlFlow::Continue(()))
        })
    }

    /// The events whose keys were taken out of the state, as a resolution of forks may do.
    fn gone(&self, room: &RoomView) -> store::Result<Vec<EventNum>> {
        let mut gone = Vec::new();
        state_tree::diff(&*room.read, self.known(), self.end(), &mut |_, old, new| {
            if new.is_none() {
                gone.extend(old);
            }
            Ok(super::until(gone.len() >= STUBS_MAX))
        })?;
        Ok(gone)
    }

    fn is_change_wanted(&self, room: &RoomView, query: &StateQuery<'_>, row: &Row) -> store::Result<bool> {
        Ok(query.moved_members && row.kind == Kind::MEMBER || is_wanted(room, query.wish.wants, row)?)
    }

    /// A member's event, unless it was written with the rest.
    fn write_member(
        &self,
        pen: &ChunkWriter,
        room: &RoomView,
        query: &StateQuery<'_>,
        member: UserNum,
        first: &mut bool,
    ) -> store::Result<()> {
        let user_id = user::id_of(&*room.read, member)?;
        let Some(num) = present_in(&room.read, self.end(), "m.room.member", &user_id)? else { return Ok(()) };
        let row = event::row_of(&*room.read, num)?;
        let is_wanted = (query.wish.wants)("m.room.member", Some(&user_id)) == Some(true);
        let is_told = match self.is_whole() {
            true => is_wanted,
            false => {
                let known = present_in(&room.read, self.known(), "m.room.member", &user_id)?;
                known != Some(num) && (is_wanted || query.moved_members)
            }
        };
        if is_told {
            return Ok(());
        }
        room.write_row(pen, num, &row, Detail::State, first)
    }
}

fn is_wanted(room: &RoomView, wants: Wants<'_>, row: &Row) -> store::Result<bool> {
    if let (Some((_, target)), Kind::MEMBER) = (row.member, row.kind) {
        return Ok(match wants("m.room.member", None) {
            Some(decided) => decided,
            None => wants("m.room.member", Some(&user::id_of(&*room.read, target)?)).unwrap_or(false),
        });
    }
    if let Some(decided) = row.kind.name().and_then(|kind| wants(kind, None)) {
        return Ok(decided);
    }
    let body = event::shown(&*room.read, row)?;
    let text = |key: &str| json::read::get_text(&body, key).unwrap_or_default();
    Ok(wants(&text("type"), Some(&text("state_key"))).unwrap_or(false))
}

/// What tells that a key was taken out of the state.
fn write_stub(pen: &ChunkWriter, room: &RoomView, row: &Row, first: &mut bool) -> store::Result<()> {
    let body = event::shown(&*room.read, row)?;
    let text = |key: &str| json::read::get_text(&body, key).unwrap_or_default();
    pen.with(|out| {
        comma(out, first);
        out.extend_from_slice(b"{\"type\":");
        json::write_string(out, &text("type"));
        out.extend_from_slice(b",\"state_key\":");
        json::write_string(out, &text("state_key"));
        out.push(b'}');
    });
    Ok(())
}

impl RoomView {
    /// The text of a state event's content at the end of what is told, as JSON text with its quotes; none when it is
    /// missing or empty.
    pub fn text_of(&self, delta: &RoomDelta, kind: &str, field: &str) -> Result<Option<String>> {
        let Some(num) = present_in(&self.read, delta.end(), kind, "")? else { return Ok(None) };
        let content = event_json::content(&*self.read, &event::row_of(&*self.read, num)?)?;
        let text = json::read::get_text(&content, field);
        Ok(text.filter(|text| !text.is_empty()).map(|text| text.into_owned()))
    }
}

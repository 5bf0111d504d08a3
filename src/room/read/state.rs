//! A room's state and members, in the form clients get.
//!
//! A list of state is written in the order in which its events lie in the database (`event_pile.rs`); it has no order of
//! its own.

use std::ops::ControlFlow;

use ruma::RoomId;

use super::event_json::{Detail, content, write, write_key};
use super::filter::Events;
use super::token::Token;
use super::{Reader, RoomView, visit, visiting};
use crate::base::{self, ChunkError, ChunkWriter, Chunks, comma};
use crate::matrix::json;
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::store::tables::room::current_state;
use crate::store::tables::room::current_state::StateCursor;
use crate::store::tables::room::event;
use crate::store::tables::room::event_pile::{EventPile, ListVisitor};
use crate::store::tables::room::event_row::{Kind, Membership, Root, Row};
use crate::store::tables::room::member;
use crate::store::tables::room::{state_tree, timeline};
use crate::store::tables::user;
use crate::store::{self, EventNum, UserNum};

/// Entries of a state's tree looked at together.
const PAGE: usize = 256;

/// Which members to list.
#[derive(Clone, Debug, Default)]
pub struct MemberQuery {
    pub at: Option<Token>,
    pub only: Option<Membership>,
    pub not: Option<Membership>,
}

impl Rooms {
    /// The whole state: the present one, or the one at the time the user left.
    pub async fn state(&self, reader: &Reader, room_id: &RoomId) -> Result<impl Chunks> {
        let mut visit = visit(self, reader, room_id).await?;
        Ok(base::written(move |pen| async move {
            let root = visit.root()?;
            pen.text("[");
            visit.write_state(&pen, &StateList { root, ..StateList::default() }).await?;
            pen.text("]");
            Ok(())
        }))
    }

    /// The same within an object, of one type alone if one is named.
    pub async fn state_of(&self, reader: &Reader, room_id: &RoomId, kind: Option<String>) -> Result<impl Chunks> {
        let mut visit = visit(self, reader, room_id).await?;
        Ok(base::written(move |pen| async move {
            let (root, filter) = (visit.root()?, kind.map(Events::of_type));
            pen.text("{\"state\":[");
            visit.write_state(&pen, &StateList { root, filter: filter.as_ref(), ..StateList::default() }).await?;
            pen.text("]}");
            Ok(())
        }))
    }

    /// One state event's content, or all of it.
    pub async fn state_event(
        &self,
        reader: &Reader,
        room_id: &RoomId,
        kind: &str,
        state_key: &str,
        whole: bool,
    ) -> Result<Vec<u8>> {
        let (kind, state_key) = (kind.to_owned(), state_key.to_owned());
        visiting(self, reader, room_id, move |visit| {
            let key = state_tree::key(&*visit.read, &kind, &state_key)?.ok_or(Error::NotFound)?;
            let root = visit.root()?.ok_or(Error::NotFound)?;
            let num = state_tree::get(&*visit.read, root, key)?.ok_or(Error::NotFound)?;
            let row = event::row_of(&*visit.read, num)?;
            if !whole {
                return Ok(content(&*visit.read, &row)?);
            }
            let mut out = Vec::new();
            write(&*visit.read, num, &row, &visit.format, Detail::State, &mut out)?;
            Ok(out)
        })
        .await
    }

    /// The member events, at present or at a place in the timeline.
    pub async fn members(&self, reader: &Reader, room_id: &RoomId, who: MemberQuery) -> Result<impl Chunks> {
        let mut visit = visit(self, reader, room_id).await?;
        Ok(base::written(move |pen| async move {
            pen.text("{\"chunk\":[");
            visit.write_members(&pen, &who).await?;
            pen.text("]}");
            Ok(())
        }))
    }

    /// The joined members with their display names and avatars.
    pub async fn joined_members(&self, reader: &Reader, room_id: &RoomId) -> Result<impl Chunks> {
        let mut visit = visit(self, reader, room_id).await?;
        if !visit.viewer.is_joined() {
            return Err(Error::Forbidden("You are not in this room".to_owned()));
        }
        Ok(base::written(move |pen| async move {
            pen.text("{\"joined\":{");
            visit.write_joined_members(&pen).await?;
            pen.text("}}");
            Ok(())
        }))
    }
}

/// Which state to write, and which part of it.
#[derive(Default)]
pub(super) struct StateList<'a> {
    pub root: Option<Root>,
    /// Only these users' member events; all when none is given.
    pub members: Option<&'a [UserNum]>,
    pub filter: Option<&'a Events>,
    /// Events already written elsewhere; in their place stands the event of the state `before`.
    pub told: &'a [(i64, EventNum)],
    pub before: Option<Root>,
}

impl RoomView {
    /// Writes a state's events with commas between them.
    pub(super) async fn write_state(&mut self, pen: &ChunkWriter, list: &StateList<'_>) -> Result<(), ChunkError> {
        let Some(root) = list.root else { return Ok(()) };
        let (mut first, mut pile) = (true, self.pile());
        let is_lazy = list.members.is_some();
        while let Some((num, row)) = pile.next(&*self.read, &mut |visit| self.list_state(root, is_lazy, visit))? {
            if is_lazy && row.kind == Kind::MEMBER {
                continue;
            }
            self.write_state_event(pen, list, (num, row), &mut first)?;
            pen.pause().await;
        }
        if let Some(members) = list.members {
            self.write_members_of(pen, list, members, &mut first).await?;
        }
        Ok(())
    }

    /// A pile for a list of this room's events.
    pub(super) fn pile(&self) -> EventPile {
        EventPile::new(&self.memory)
    }

    /// Visits the events of a state; without the members' when that is known before an event is read.
    pub(super) fn list_state(&self, root: Root, without_members: bool, visit: ListVisitor) -> store::Result<()> {
        if self.room.state == Some(root) {
            return self.list_present(without_members, visit);
        }
        self.list_tree(root, &mut |is_member, num| {
            if !(is_member && without_members) {
                visit(num);
            }
        })
    }

    /// The present state stands in a table ordered by type, where all member events can be stepped over at once.
    fn list_present(&self, without_members: bool, visit: ListVisitor) -> store::Result<()> {
        let mut after = StateCursor::default();
        loop {
            let mut is_at_members = false;
            current_state::list_state(&*self.read, self.num, None, after, &mut |_, kind, num| {
                if kind == Kind::MEMBER && without_members {
                    is_at_members = true;
                    return Ok(ControlFlow::Break(()));
                }
                visit(num);
                Ok(ControlFlow::Continue(()))
            })?;
            if !is_at_members {
                return Ok(());
            }
            after = StateCursor::after_all_of(Kind::MEMBER);
        }
    }

    /// Visits the events of a state's tree, and whether their keys are of members.
    fn list_tree(&self, root: Root, visit: &mut dyn FnMut(bool, EventNum)) -> store::Result<()> {
        let (mut after, mut page) = (None, Vec::with_capacity(PAGE));
        loop {
            page.clear();
            let is_end = state_tree::page(&*self.read, root, after, PAGE, &mut page)?;
            for entry in &page {
                after = Some(entry.key);
                visit(entry.key.is_of_member(), entry.event);
            }
            if is_end {
                return Ok(());
            }
        }
    }

    /// The member events of some users.
    pub(super) async fn write_members_of(
        &mut self,
        pen: &ChunkWriter,
        list: &StateList<'_>,
        users: &[UserNum],
        first: &mut bool,
    ) -> Result<(), ChunkError> {
        let Some(root) = list.root else { return Ok(()) };
        for user in users {
            let user_id = user::id_of(&*self.read, *user)?;
            let Some(key) = state_tree::key(&*self.read, "m.room.member", &user_id)? else { continue };
            if let Some(num) = state_tree::get(&*self.read, root, key)? {
                self.write_state_event(pen, list, (num, event::row_of(&*self.read, num)?), first)?;
                pen.pause().await;
            }
        }
        Ok(())
    }

    /// One event of a state, or the one it replaced.
    pub(super) fn write_state_event(
        &self,
        pen: &ChunkWriter,
        list: &StateList<'_>,
        (mut num, mut row): (EventNum, Row),
        first: &mut bool,
    ) -> store::Result<()> {
        if list.told.iter().any(|(_, told)| *told == num) {
            let (Some(before), Some(key)) = (list.before, row.state_key) else { return Ok(()) };
            let Some(old) = state_tree::get(&*self.read, before, key)? else { return Ok(()) };
            if list.told.iter().any(|(_, told)| *told == old) {
                return Ok(());
            }
            (num, row) = (old, event::row_of(&*self.read, old)?);
        }
        if let Some(filter) = list.filter
            && !filter.wants(&*self.read, &row)?
        {
            return Ok(());
        }
        pen.with(|out| {
            comma(out, first);
            write(&*self.read, num, &row, &self.format, Detail::State, out)
        })
    }

    async fn write_members(&mut self, pen: &ChunkWriter, who: &MemberQuery) -> Result<(), ChunkError> {
        let wanted = |membership: Membership| {
            who.only.is_none_or(|only| only == membership) && who.not.is_none_or(|not| not != membership)
        };
        let root = match who.at {
            Some(at) if self.viewer.is_joined() => self.root_at(self.after_creation(at)?)?,
            _ => self.root()?,
        };
        let (mut first, mut pile) = (true, self.pile());
        while let Some((num, row)) = pile.next(&*self.read, &mut |visit| self.list_members(root, &wanted, visit))? {
            if row.kind == Kind::MEMBER && row.member.is_some_and(|(membership, _)| wanted(membership)) {
                self.write_row(pen, num, &row, Detail::State, &mut first)?;
                pen.pause().await;
            }
        }
        Ok(())
    }

    /// A place in the timeline where the room has a member: a first sync that begins with the creation of the room gives a
    /// place before it to go on from, and apps list the members there.
    fn after_creation(&self, at: Token) -> store::Result<i64> {
        let Some(create) = self.room.create else { return Ok(at.0) };
        let created = event::row_of(&*self.read, create)?.order.filter(|created| at.0 <= *created);
        let Some(created) = created else { return Ok(at.0) };
        Ok(timeline::first_after(&*self.read, self.num, created)?.map_or(at.0, |(joined, _)| joined))
    }

    /// Visits the member events of a state; of the present one only the wanted ones.
    fn list_members(
        &self,
        root: Option<Root>,
        wanted: &dyn Fn(Membership) -> bool,
        visit: ListVisitor,
    ) -> store::Result<()> {
        if root == self.room.state {
            for membership in Membership::ALL.into_iter().filter(|membership| wanted(*membership)) {
                member::list(&*self.read, self.num, membership, None, &mut |_, num| {
                    visit(num);
                    Ok(ControlFlow::Continue(()))
                })?;
            }
            return Ok(());
        }
        let Some(root) = root else { return Ok(()) };
        self.list_tree(root, &mut |is_member, num| {
            if is_member {
                visit(num);
            }
        })
    }

    async fn write_joined_members(&mut self, pen: &ChunkWriter) -> Result<(), ChunkError> {
        let (mut first, mut pile) = (true, self.pile());
        let is_joined = |membership| membership == Membership::Join;
        while let Some((_, row)) =
            pile.next(&*self.read, &mut |visit| self.list_members(self.room.state, &is_joined, visit))?
        {
            let Some((_, user)) = row.member else { continue };
            let user_id = user::id_of(&*self.read, user)?;
            let content = content(&*self.read, &row)?;
            pen.with(|out| {
                comma(out, &mut first);
                json::write_string(out, &user_id);
                write_profile(&content, out);
            });
            pen.pause().await;
        }
        Ok(())
    }
}

fn write_profile(content: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b":{");
    let first = out.len();
    for (ours, theirs) in [("display_name", "displayname"), ("avatar_url", "avatar_url")] {
        // Some apps insist on both being there.
        write_key(out, first, ours);
        out.extend_from_slice(
            json::read::get(content, theirs).filter(|value| value.starts_with(b"\"")).unwrap_or(b"null"),
        );
    }
    out.push(b'}');
}

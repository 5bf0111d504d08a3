//! A room's state and members, in the form clients get.

use std::ops::ControlFlow;

use ruma::RoomId;

use super::event_json::{Detail, content, write, write_key};
use super::filter::Events;
use super::token::Token;
use super::{Reader, RoomView, until, visit, visiting};
use crate::base::{self, ChunkError, ChunkWriter, Chunks, comma};
use crate::matrix::json;
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::store::tables::room::current_state;
use crate::store::tables::room::current_state::StateCursor;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::{Kind, Membership, Root};
use crate::store::tables::room::member;
use crate::store::tables::room::state_tree;
use crate::store::tables::user;
use crate::store::{self, EventNum, Read, RoomNum, UserNum};

/// Numbers read ahead of what is being written.
const BATCH: usize = 128;

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
        let mut first = true;
        if self.room.state == Some(root) {
            self.write_present(pen, list, &mut first).await?;
        } else {
            self.write_tree(pen, list, root, &mut first).await?;
        }
        if let Some(members) = list.members {
            self.write_members_of(pen, list, members, &mut first).await?;
        }
        Ok(())
    }

    /// The present state stands in a table ordered by type, where all member events can be stepped over at once.
    async fn write_present(
        &mut self,
        pen: &ChunkWriter,
        list: &StateList<'_>,
        first: &mut bool,
    ) -> Result<(), ChunkError> {
        let mut after = StateCursor::default();
        loop {
            let mut batch = Vec::with_capacity(BATCH);
            let mut skip = false;
            current_state::list_state(&*self.read, self.num, None, after, &mut |cursor, kind, num| {
                if kind == Kind::MEMBER && list.members.is_some() {
                    skip = true;
                    return Ok(ControlFlow::Break(()));
                }
                batch.push((cursor, num));
                Ok(until(batch.len() == BATCH))
            })?;
            let whole = batch.len() == BATCH;
            for (cursor, num) in batch {
                after = cursor;
                self.write_state_event(pen, list, num, first)?;
                pen.pause().await;
            }
            if skip {
                after = StateCursor::after_all_of(Kind::MEMBER);
            } else if !whole {
                return Ok(());
            }
        }
    }

    async fn write_tree(
        &mut self,
        pen: &ChunkWriter,
        list: &StateList<'_>,
        root: Root,
        first: &mut bool,
    ) -> Result<(), ChunkError> {
        let (mut after, mut batch) = (None, Vec::with_capacity(BATCH));
        loop {
            batch.clear();
            let end = state_tree::page(&*self.read, root, after, BATCH, &mut batch)?;
            for entry in &batch {
                after = Some(entry.key);
                if list.members.is_some() && event::row_of(&*self.read, entry.event)?.kind == Kind::MEMBER {
                    continue;
                }
                self.write_state_event(pen, list, entry.event, first)?;
                pen.pause().await;
            }
            if end {
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
                self.write_state_event(pen, list, num, first)?;
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
        num: EventNum,
        first: &mut bool,
    ) -> store::Result<()> {
        let mut num = num;
        let mut row = event::row_of(&*self.read, num)?;
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
            Some(at) if self.viewer.is_joined() => self.root_at(at.0)?,
            _ => self.root()?,
        };
        let mut first = true;
        if root == self.room.state {
            for membership in Membership::ALL.into_iter().filter(|membership| wanted(*membership)) {
                self.write_present_members(pen, membership, &mut first).await?;
            }
            return Ok(());
        }
        let Some(root) = root else { return Ok(()) };
        let (mut after, mut batch) = (None, Vec::with_capacity(BATCH));
        loop {
            batch.clear();
            let end = state_tree::page(&*self.read, root, after, BATCH, &mut batch)?;
            for entry in &batch {
                after = Some(entry.key);
                let row = event::row_of(&*self.read, entry.event)?;
                if row.kind == Kind::MEMBER && row.member.is_some_and(|(membership, _)| wanted(membership)) {
                    self.write_event(pen, entry.event, Detail::State, &mut first)?;
                    pen.pause().await;
                }
            }
            if end {
                return Ok(());
            }
        }
    }

    async fn write_present_members(
        &mut self,
        pen: &ChunkWriter,
        membership: Membership,
        first: &mut bool,
    ) -> Result<(), ChunkError> {
        let mut after = None;
        loop {
            let batch = members_behind(&self.read, self.num, membership, after)?;
            for (_, num) in &batch {
                self.write_event(pen, *num, Detail::State, first)?;
                pen.pause().await;
            }
            match batch.last() {
                Some((user, _)) if batch.len() == BATCH => after = Some(*user),
                _ => return Ok(()),
            }
        }
    }

    async fn write_joined_members(&mut self, pen: &ChunkWriter) -> Result<(), ChunkError> {
        let (mut after, mut first) = (None, true);
        loop {
            let batch = members_behind(&self.read, self.num, Membership::Join, after)?;
            for (user, num) in &batch {
                let user_id = user::id_of(&*self.read, *user)?;
                let content = content(&*self.read, &event::row_of(&*self.read, *num)?)?;
                pen.with(|out| {
                    comma(out, &mut first);
                    json::write_string(out, &user_id);
                    write_profile(&content, out);
                });
                pen.pause().await;
            }
            match batch.last() {
                Some((user, _)) if batch.len() == BATCH => after = Some(*user),
                _ => return Ok(()),
            }
        }
    }
}

fn members_behind(
    read: &Read,
    room: RoomNum,
    membership: Membership,
    after: Option<UserNum>,
) -> store::Result<Vec<(UserNum, EventNum)>> {
    let mut batch = Vec::with_capacity(BATCH);
    member::list(read, room, membership, after, &mut |user, num| {
        batch.push((user, num));
        Ok(until(batch.len() == BATCH))
    })?;
    Ok(batch)
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

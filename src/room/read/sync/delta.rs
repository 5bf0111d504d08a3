//! Timeline and state of one room between two positions, which must fit together.

use std::ops::ControlFlow;

use super::super::state::StateList;
use super::super::timeline::Page;
use super::super::{RoomView, filter::Events, token::Token, until};
use crate::base::{ChunkError, ChunkWriter};
use crate::room::error::Result;
use crate::store::tables::room::event_pile::ListVisitor;
use crate::store::tables::room::event_row::{Kind, Membership, Root, Row};
use crate::store::tables::room::{event, state_tree, timeline};
use crate::store::tables::user;
use crate::store::{self, EventNum, Position, StateKeyNum, UserNum};

/// Keys of a difference of states read ahead of what is being written: 16 bytes each.
const DIFFERENCE_BATCH: usize = 1_024;

/// Which timeline and state of a room to tell.
pub struct DeltaQuery<'a> {
    /// The timeline's events after this position; none for the newest of the whole timeline.
    pub since: Option<Position>,
    /// The changes of the state after this position; none for the whole state.
    pub known: Option<Position>,
    /// Nothing after this position is told.
    pub upto: Position,
    /// The most events in the timeline; 12 bytes each are held.
    pub limit: usize,
    /// The events that are wanted in the timeline; none for no timeline.
    pub timeline: Option<&'a Events>,
}

/// Timeline and state of one room.
pub struct RoomDelta {
    /// There are events between the position asked since and the timeline.
    pub limited: bool,
    /// Where a page of the events before the timeline begins.
    pub prev_batch: Token,
    /// The whole state is told, not only the changes.
    whole: bool,
    page: Page,
    /// The state the app knows, the one at the timeline's start, and the one at its end.
    known: Option<Root>,
    start: Option<Root>,
    end: Option<Root>,
}

impl RoomView {
    /// Reads which events a timeline has, and which states belong to it.
    pub fn delta(&mut self, query: &DeltaQuery<'_>) -> Result<RoomDelta> {
        let upto = query.upto.0 as i64;
        let from = query.since.map_or(i64::MIN, |since| since.0 as i64);
        let hole = self.end_of_hole(from, upto);
        let from = hole.unwrap_or(from);
        let mut page = match query.timeline {
            Some(filter) => self.between(from, upto, true, query.limit, filter)?,
            None => self.between(from, from, true, query.limit, &Events::default())?,
        };
        // The page ends at the first event beyond the limit, which the filter may not want.
        if page.events.len() == query.limit
            && let (Some(next), Some(filter)) = (page.next, query.timeline)
        {
            let more = self.between(from, next.0, true, 1, filter)?;
            page.next = page.next.filter(|_| !more.events.is_empty() || more.next.is_some());
        }
        let end = self.state_at(query.upto)?;
        self.cut_outdated(&mut page, end)?;
        page.events.reverse();
        let begins_elsewhere = from == i64::MIN && self.begins_elsewhere()?;
        let limited = page.next.is_some() || hole.is_some() || begins_elsewhere;
        let oldest = page.events.first().map(|(order, _)| *order);
        let prev_batch = match (oldest, page.next) {
            (Some(oldest), _) => Token(oldest - 1),
            (None, Some(next)) => next,
            (None, None) => Token(if query.since.is_none() && hole.is_none() { upto } else { from }),
        };
        let start = match page.events.first() {
            None => end,
            Some((order, _)) if *order > 0 => self.state_at(Position(*order as u64 - 1))?,
            Some((_, num)) => event::row_of(&*self.read, *num)?.before,
        };
        let known = match query.known {
            Some(known) => self.state_at(known)?,
            None => None,
        };
        Ok(RoomDelta { limited, prev_batch, whole: query.known.is_none(), page, known, start, end })
    }

    /// The order before the first event behind the newest hole, when that is after `from`. The missing events are
    /// fetched when the app pages back from there.
    fn end_of_hole(&self, from: i64, upto: i64) -> Option<i64> {
        self.room.hole_below(upto).map(|hole| hole.next - 1).filter(|end| *end > from)
    }

    /// Ends a page, newest event first, before a state event that was replaced by one the page leaves out because the
    /// reader may not see it or the filter does not want it. The newer one stands in the state, which apps apply before
    /// the timeline: they would go on with the older one.
    fn cut_outdated(&self, page: &mut Page, end: Option<Root>) -> store::Result<()> {
        let Some(end) = end else { return Ok(()) };
        for (at, (order, num)) in page.events.iter().enumerate() {
            let Some(key) = event::row_of(&*self.read, *num)?.state_key else { continue };
            let Some(now) = state_tree::get(&*self.read, end, key)? else { continue };
            if page.events.iter().any(|(_, told)| *told == now) {
                continue;
            }
            if event::row_of(&*self.read, now)?.order.is_some_and(|replaced_at| replaced_at > *order) {
                page.next = Some(Token(*order));
                page.events.truncate(at);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether there are events to tell after a position: some for the timeline, a hole in it, or changes of the state.
    pub fn has_events(
        &mut self,
        since: Position,
        upto: Position,
        timeline: Option<&Events>,
        state: &Events,
    ) -> Result<bool> {
        if let Some(filter) = timeline {
            // The app has to page back, though it may not be shown what comes behind the hole.
            if self.end_of_hole(since.0 as i64, upto.0 as i64).is_some() {
                return Ok(true);
            }
            let page = self.between(since.0 as i64, upto.0 as i64, true, 1, filter)?;
            if !page.events.is_empty() || page.next.is_some() {
                return Ok(true);
            }
        }
        let (known, end) = (self.state_at(since)?, self.state_at(upto)?);
        let (mut after, mut more) = (None, known != end);
        while more {
            let batch = difference(self, known, end, after)?;
            for (key, _, new) in &batch {
                after = Some(*key);
                if state.wants(&*self.read, &event::row_of(&*self.read, *new)?)? {
                    return Ok(true);
                }
            }
            more = batch.len() == DIFFERENCE_BATCH;
        }
        Ok(false)
    }

    /// The room's state as of a position; the newest is the row's own.
    fn state_at(&self, at: Position) -> store::Result<Option<Root>> {
        if at >= self.room.latest && self.room.latest != Position(0) && self.room.state.is_some() {
            return Ok(self.room.state);
        }
        Ok(timeline::state_at(&*self.read, self.num, at)?.map(|(_, root)| root))
    }

    /// Whether the reader was joined as of a position.
    pub fn was_joined(&self, at: Position) -> Result<bool> {
        let (Some(root), Some(key)) = (self.state_at(at)?, self.viewer.member_key) else { return Ok(false) };
        let Some(event) = state_tree::get(&*self.read, root, key)? else { return Ok(false) };
        let member = event::row_of(&*self.read, event)?.member;
        Ok(member.is_some_and(|(membership, _)| membership == Membership::Join))
    }
}

impl RoomDelta {
    /// Whether the whole state is told, not only the changes.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// The state the app knows.
    pub(super) fn known(&self) -> Option<Root> {
        self.known
    }

    /// The state at the end.
    pub(super) fn end(&self) -> Option<Root> {
        self.end
    }

    /// Whether the timeline has the event with this order.
    pub(super) fn has(&self, order: i64) -> bool {
        self.page.events.iter().any(|(told, _)| *told == order)
    }

    /// Whether the timeline has no events.
    pub fn is_empty(&self) -> bool {
        self.page.events.is_empty()
    }

    /// Whether the state differs from the one the app knows.
    pub fn has_moved(&self) -> bool {
        self.known != self.end
    }

    /// The number of the timeline's events that came after a position.
    pub fn live(&self, since: Position) -> usize {
        self.page.events.iter().rev().take_while(|(order, _)| *order > since.0 as i64).count()
    }

    /// The users of whom the timeline's member events are, whoever sent them. Bounded by the timeline.
    pub fn targets(&self, room: &RoomView) -> Result<Vec<UserNum>> {
        let mut targets = Vec::new();
        for (_, num) in &self.page.events {
            targets.extend(event::row_of(&*room.read, *num)?.member.map(|(_, target)| target));
        }
        Ok(targets)
    }

    /// Writes the timeline's events. Answers their senders.
    pub async fn write_timeline(&self, pen: &ChunkWriter, room: &mut RoomView) -> Result<Vec<UserNum>, ChunkError> {
        room.write_events(pen, &self.page.events).await
    }

    /// Writes the state that belongs to the timeline: the whole state or its changes. Answers whether members changed.
    /// For a filter that loads members lazily, `senders` are those whose member events the timeline needs. `after`: as of
    /// the timeline's end, what stands in the timeline included; else what an app has to know before it reads the timeline.
    pub async fn write_state(
        &self,
        pen: &ChunkWriter,
        room: &mut RoomView,
        filter: &Events,
        senders: Vec<UserNum>,
        after: bool,
    ) -> Result<bool, ChunkError> {
        let list = |members| StateList {
            root: self.end,
            members,
            filter: Some(filter),
            told: if after { &[] } else { &self.page.events },
            before: self.start,
        };
        let mut members = senders;
        let mut first = true;
        let moved = !self.whole && self.write_difference(pen, room, &list(None), &mut first).await?;
        if filter.lazy_load_members {
            if self.whole || moved {
                members.extend(room.heroes()?.unwrap_or_default());
            }
            if self.whole {
                members.push(room.viewer.user);
            }
            members.sort_unstable();
            members.dedup();
        }
        let members = filter.lazy_load_members.then_some(&members[..]);
        match (self.whole, members) {
            (true, _) if filter.wants_nothing() => {}
            (true, _) => room.write_state(pen, &list(members)).await?,
            (false, Some(members)) => {
                let unchanged = self.unchanged(room, members)?;
                room.write_members_of(pen, &list(None), &unchanged, &mut first).await?;
            }
            (false, None) => {}
        }
        Ok(moved)
    }

    /// Those users whose member event no difference contains.
    fn unchanged(&self, room: &RoomView, users: &[UserNum]) -> store::Result<Vec<UserNum>> {
        let mut unchanged = Vec::with_capacity(users.len());
        for user in users {
            let user_id = user::id_of(&*room.read, *user)?;
            let Some(key) = state_tree::key(&*room.read, "m.room.member", &user_id)? else { continue };
            let event = |root: Option<Root>| root.map_or(Ok(None), |root| state_tree::get(&*room.read, root, key));
            if event(self.known)? == event(self.end)? {
                unchanged.push(*user);
            }
        }
        Ok(unchanged)
    }

    /// Writes the state that changed between the state the app knows and the end, except for events in the timeline.
    /// Member events are included even for lazy loading: nothing else would tell such an app of joins and leaves in a
    /// gap. Answers whether the joined members changed.
    async fn write_difference(
        &self,
        pen: &ChunkWriter,
        room: &mut RoomView,
        list: &StateList<'_>,
        first: &mut bool,
    ) -> Result<bool, ChunkError> {
        let (mut moved, mut pile) = (false, room.pile());
        while let Some((num, row)) = pile.next(&*room.read, &mut |visit| self.list_difference(room, visit))? {
            moved |= row.kind == Kind::MEMBER;
            if !list.told.is_empty() && self.is_told(room, num, &row)? {
                continue;
            }
            room.write_state_event(pen, list, (num, row), first)?;
            pen.pause().await;
        }
        Ok(moved)
    }

    /// Visits the events of the state at the end that the state the app knows has not.
    fn list_difference(&self, room: &RoomView, visit: ListVisitor) -> store::Result<()> {
        if self.known == self.end {
            return Ok(());
        }
        state_tree::diff(&*room.read, self.known, self.end, &mut |_, _, new| {
            new.into_iter().for_each(&mut *visit);
            Ok(ControlFlow::Continue(()))
        })
    }

    /// Whether the timeline contains the new event, and the state at the timeline's start has the event the app knows.
    fn is_told(&self, room: &RoomView, new: EventNum, row: &Row) -> store::Result<bool> {
        if !self.page.events.iter().any(|(_, told)| *told == new) {
            return Ok(false);
        }
        let at = |root: Option<Root>| match (root, row.state_key) {
            (Some(root), Some(key)) => state_tree::get(&*room.read, root, key),
            _ => Ok(None),
        };
        Ok(at(self.start)? == at(self.known)?)
    }
}

/// The keys after `after` in which two states differ and the second state has an event.
fn difference(
    room: &RoomView,
    known: Option<Root>,
    end: Option<Root>,
    after: Option<StateKeyNum>,
) -> store::Result<Vec<(StateKeyNum, Option<EventNum>, EventNum)>> {
    let mut batch = Vec::new();
    state_tree::diff(&*room.read, known, end, &mut |key, old, new| {
        if after.is_none_or(|after| key > after)
            && let Some(new) = new
        {
            batch.push((key, old, new));
        }
        Ok(until(batch.len() == DIFFERENCE_BATCH))
    })?;
    Ok(batch)
}

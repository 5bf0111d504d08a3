//! The state before a gap, as the server that sent the event behind it tells it.
//!
//! For an event that was given as a missing one and follows a single event: the state before that event, and its own
//! change. A server can be asked for it that has no state of the event itself, and what the event changed is judged here.
//! Else, and where the previous event cannot be had, the state before the event. Its ids come first (`state_ids`), then
//! single events or the whole `state` for the unknown part.

use std::collections::HashMap;
use std::sync::Arc;

use ruma::{EventId, OwnedEventId};

use super::fetch::Fetch;
use super::gap::{GapFill, hold};
use super::inbox::Given;
use crate::budget::Grant;
use crate::matrix::{Event, Reject, auth};
use crate::remote::Failed;
use crate::room::error::{Error, Result};
use crate::room::state;
use crate::room::state::tree::Tree;
use crate::room::state::{RoomRef, StateView, known_num};
use crate::store::tables::room::event_row::Root;
use crate::store::tables::room::state_tree;
use crate::store::{self, EventNum, Get, RoomNum, StateKeyNum};

/// From this many unknown events of a state on, the whole state is fetched instead of each event.
const SINGLE_EVENTS_MAX: usize = 60;
/// Keys in which a state differs from the present one, charged as they come: so many at once. A key has 12 bytes in the
/// list, and as much again while the list grows or a copy of it is judged.
const CHANGES_AT_ONCE: usize = 256;
const CHANGE_BYTES: u64 = 24;

impl<F: Fetch> GapFill<'_, F> {
    /// The state before an event that follows events that are not here.
    pub(super) async fn state_for(
        &mut self,
        event: &Event,
        missing: &[OwnedEventId],
        is_pulled: bool,
    ) -> Result<Given> {
        // Two, since the event's own may be needed then.
        if let [prev] = missing
            && is_pulled
            && self.states_left >= 2
            && event.prev_events().count() == 1
        {
            match self.state_after(prev).await {
                Ok(Some(given)) => return Ok(given),
                Ok(None) | Err(Error::Reject(_)) => {}
                Err(Error::Remote(failed)) if failed.is_refusal() || matches!(failed, Failed::BadAnswer(_)) => {}
                Err(failed) => return Err(failed),
            }
            let cited = event.auth_events().map(ToOwned::to_owned).collect();
            if self.count_unknown(cited).await? > 0 {
                return Err(Reject::missing("an auth event cannot be fetched").into());
            }
        }
        self.state_before(event.id()).await
    }

    /// How many of these events are not here.
    async fn count_unknown(&self, ids: Vec<OwnedEventId>) -> Result<usize> {
        let unknown = self.inbox.rooms.reading(move |_, read| {
            let mut unknown = 0;
            for id in ids {
                unknown += usize::from(state::event::stored(read, id.as_str())?.is_none());
            }
            Ok(unknown)
        });
        unknown.await
    }

    /// The state after an event that is not here. None when the event cannot be had.
    async fn state_after(&mut self, id: &EventId) -> Result<Option<Given>> {
        if self.lost.contains(id) {
            return Ok(None);
        }
        let held = self.grant.bytes();
        let given = self.state_after_fetched(id).await;
        self.grant.shrink(self.grant.bytes().saturating_sub(held));
        given
    }

    async fn state_after_fetched(&mut self, id: &EventId) -> Result<Option<Given>> {
        let Some(event) = self.fetch_one(id).await? else {
            self.lose(id);
            return Ok(None);
        };
        let event = match self.inbox.check(vec![event]).await.pop() {
            Some((_, Ok(event))) => Arc::new(event),
            Some((_, Err(failed))) if failed.is_passing() => return Err(failed),
            _ => {
                self.lose(id);
                return Ok(None);
            }
        };
        let given = self.state_before(id).await?;
        let found = HashMap::from([(id.to_owned(), event.clone())]);
        if !self.store_outliers(found).await?.is_empty() {
            self.lose(id);
            return Ok(None);
        }
        let num = self.room.num;
        let after = self.inbox.rooms.reading(move |_, read| changed_by(read, &known_num(read, num)?, &event, given));
        after.await
    }

    /// The state before an event, as the server that sent it tells. Events of it that cannot be had, or whose signing
    /// keys cannot be had, are left out: a server that is gone must not keep all others out of the room.
    pub(super) async fn state_before(&mut self, id: &EventId) -> Result<Given> {
        self.check_time()?;
        self.check_intake()?;
        self.states_left = self
            .states_left
            .checked_sub(1)
            .ok_or_else(|| Reject::missing("the history before the event has too many gaps"))?;
        let mut survey = self.survey(id).await?;
        let unknown = std::mem::take(&mut survey.unknown);
        if unknown.len() > SINGLE_EVENTS_MAX {
            drop(survey);
            self.fetch_whole_state(id).await?;
            survey = self.survey(id).await?;
        } else if !unknown.is_empty() {
            match self.fetch_singly(unknown.clone()).await {
                // More events are unknown than can be requested singly.
                Err(Error::Reject(_)) => self.fetch_whole_state(id).await?,
                fetched => drop(fetched?),
            }
            let look_again = move |_: &crate::room::Rooms, read: &store::Read| {
                unknown.into_iter().try_for_each(|id| survey.look_at(read, id))?;
                Ok(survey)
            };
            survey = self.inbox.rooms.reading(look_again).await?;
        }
        let left_out = survey.unknown.len();
        if left_out > 0 {
            tracing::warn!(%id, room_id = %self.room_id, origin = %self.origin, left_out, "the room state fetched for \
             a gap is not complete");
        }
        let create = self.room.row.create;
        let given = self.inbox.rooms.reading(move |_, read| {
            let (tree, paid) = survey.finish(read, left_out == 0)?;
            let key = state_tree::key(read, "m.room.create", "")?.ok_or(Error::NotFound)?;
            match tree.get(read, key)? == create {
                true => Ok(Given { tree, is_whole: left_out == 0, _paid: Some(Arc::new(paid)) }),
                false => Err(Reject::auth("the state before the event has another create event").into()),
            }
        });
        given.await
    }

    /// Compares another server's state with our present one, id by id as they come.
    async fn survey(&self, id: &EventId) -> Result<Survey> {
        let num = self.room.num;
        let most = self.inbox.means().changes_max();
        let grant = self.own.try_take(0)?;
        let present = self.inbox.rooms.reading(move |_, read| Ok(known_num(read, num)?.row.state)).await?;
        let mut survey = Survey::new(num, present, most, grant);
        let (out, mut pieces) = tokio::sync::mpsc::channel(1);
        let asking = self.in_time(self.inbox.fetch.state_ids(&self.origin, &self.room_id, id, out));
        let taking = async move {
            while let Some(ids) = pieces.recv().await {
                let look = move |_: &crate::room::Rooms, read: &store::Read| {
                    for raw in ids {
                        // A string that is no event id names no event.
                        let Ok(id) = serde_json::from_slice(&raw) else { continue };
                        survey.look_at(read, id)?;
                    }
                    Ok(survey)
                };
                survey = self.inbox.rooms.reading(look).await?;
            }
            Ok::<_, Error>(survey)
        };
        let (asked, survey) = tokio::join!(asking, taking);
        let survey = survey?;
        asked?;
        Ok(survey)
    }
}

/// The state after an event, by the one before it. None when it is another event than the one that is here.
fn changed_by(get: &impl Get, room: &RoomRef, event: &Event, mut given: Given) -> Result<Option<Given>> {
    let Some((num, row)) = state::event::stored(get, event.id().as_str())? else { return Ok(None) };
    if !state::event::is_same(get, &row, room.num, event)? {
        return Ok(None);
    }
    if let Some(key) = row.state_key.filter(|_| row.is_state()) {
        let view = StateView::overlaid(get, room.num, room.version, given.tree.clone());
        match auth::check(room.version, &event.subject(), &view) {
            Ok(()) => given.tree.set(get, key, Some(num))?,
            // Without a change, as everybody has it who rejected it.
            Err(Error::Reject(_)) => {}
            Err(failed) => return Err(failed),
        }
    }
    Ok(Some(given))
}

/// Another server's state beside our present one.
struct Survey {
    room: RoomNum,
    present: Option<Root>,
    /// A bit for each state key it has.
    seen: Vec<u64>,
    /// Each key once: `seen` makes sure of that.
    changes: Vec<(StateKeyNum, Option<EventNum>)>,
    changes_max: usize,
    /// Events that are not here, as many as may be fetched one by one and one more.
    unknown: Vec<OwnedEventId>,
    grant: Grant,
}

impl Survey {
    fn new(room: RoomNum, present: Option<Root>, changes_max: usize, grant: Grant) -> Survey {
        let (seen, changes, unknown) = (Vec::new(), Vec::new(), Vec::new());
        Survey { room, present, seen, changes, changes_max, unknown, grant }
    }

    fn look_at(&mut self, get: &impl Get, id: OwnedEventId) -> Result<()> {
        let Some((num, row)) = state::event::stored(get, id.as_str())? else {
            // One more says that there are too many.
            if self.unknown.len() <= SINGLE_EVENTS_MAX {
                hold(&mut self.grant, 96)?;
                self.unknown.push(id);
            }
            return Ok(());
        };
        let key = row.state_key.filter(|_| row.room == self.room);
        let key = key.ok_or_else(|| {
            Reject::auth("the state before the event contains an event that is not state of the room")
        })?;
        if row.flags.rejected {
            return Ok(());
        }
        if self.was_seen(key)? {
            return Err(Reject::auth("the state before the event has two events for one state key").into());
        }
        if self.present.map_or(Ok(None), |root| state_tree::get(get, root, key))? != Some(num) {
            self.change(key, Some(num))?;
        }
        Ok(())
    }

    fn was_seen(&mut self, key: StateKeyNum) -> Result<bool> {
        let (word, bit) = ((key.0 / 64) as usize, 1u64 << (key.0 % 64));
        if word >= self.seen.len() {
            let words = (word + 1).next_power_of_two().max(1024);
            hold(&mut self.grant, ((words - self.seen.len()) * 8) as u64)?;
            self.seen.resize(words, 0);
        }
        let seen = self.seen[word] & bit != 0;
        self.seen[word] |= bit;
        Ok(seen)
    }

    fn change(&mut self, key: StateKeyNum, event: Option<EventNum>) -> Result<()> {
        if self.changes.len() == self.changes_max {
            return Err(Reject::auth("the state before the event differs too much from the current state").into());
        }
        if self.changes.len() == self.changes.capacity() {
            hold(&mut self.grant, CHANGES_AT_ONCE as u64 * CHANGE_BYTES)?;
            self.changes.reserve_exact(CHANGES_AT_ONCE);
        }
        self.changes.push((key, event));
        Ok(())
    }

    /// The state, and what pays for it. A key that the other server's state lacks is not in the result, unless that state is
    /// not whole: what was left out may be a newer event of the key, and its user no stranger to the room.
    fn finish(mut self, get: &impl Get, is_whole: bool) -> Result<(Tree, Grant)> {
        let (mut page, mut after, mut ended) = (Vec::with_capacity(512), None, self.present.is_none() || !is_whole);
        while !ended {
            page.clear();
            let Some(root) = self.present else { break };
            ended = state_tree::page(get, root, after, 512, &mut page)?;
            after = page.last().map(|entry| entry.key).or(after);
            for entry in &page {
                if !self.was_seen(entry.key)? {
                    self.change(entry.key, None)?;
                }
            }
        }
        Ok((Tree::over(self.present, self.changes), self.grant))
    }
}

//! The forward extremities of a room, and the state that they resolve to.

use ruma::EventId;

use super::event::load_row;
use super::tree::{self, Tree};
use crate::budget::Grant;
use crate::matrix::{Event, state};
use crate::room::error::{Error, Result};
use crate::room::state::RoomRef;
use crate::room::state::resolve::{self, Means, Of};
use crate::store::tables::room::{event, state_tree};
use crate::store::{self, EventNum, Get, StateKeyNum};

/// The event's effect on the room's present state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Current {
    /// The present state is the state after the event: it follows all extremities.
    Follow,
    /// Resolution decided: these keys change, and, when `wins`, the event itself is the state for its key.
    Resolved { changes: Vec<(StateKeyNum, Option<EventNum>)>, wins: bool },
    /// Nothing: outliers, rejected and soft-failed events, events from before our history.
    Keep,
}

/// Refused events behind which extremities are looked for, for one event.
const REFUSED_LOOKED_AT_MAX: usize = 64;

/// The extremities that an event replaces: those it follows, also behind events that were rejected or soft-failed,
/// which replaced none.
pub fn superseded(get: &impl Get, extremities: &[EventNum], event: &Event) -> store::Result<Vec<EventNum>> {
    let mut superseded = Vec::with_capacity(extremities.len());
    let mut open = nums_of(get, event.prev_events())?;
    let mut looked_at = 0;
    while let Some(prev) = open.pop() {
        if extremities.contains(&prev) {
            superseded.push(prev);
            continue;
        }
        let row = event::row_of(get, prev)?;
        if (row.flags.rejected || row.flags.soft_failed) && looked_at < REFUSED_LOOKED_AT_MAX {
            looked_at += 1;
            open.extend(nums_of(get, load_row(get, event.version(), &row)?.prev_events())?);
        }
    }
    Ok(superseded)
}

fn nums_of<'a>(get: &impl Get, ids: impl Iterator<Item = &'a EventId>) -> store::Result<Vec<EventNum>> {
    ids.filter_map(|id| event::num(get, id.as_str()).transpose()).collect()
}

/// Events that the extremities may differ in and still be resolved for every new event: about a millisecond.
const SHORT_FORK: usize = 32;

/// The room as resolving needs it.
pub fn of(room: &RoomRef) -> Result<Of> {
    let create = room.row.create.ok_or(Error::NotFound)?;
    Ok(Of { version: room.version, create })
}

/// The effect of an accepted event that does not simply follow the present state.
pub struct Ends<'a, G> {
    pub get: &'a G,
    pub room: &'a RoomRef,
    pub event: &'a Event,
    pub num: Option<EventNum>,
    pub before: &'a Tree,
    /// The state before it was requested from its server.
    pub is_given: bool,
    pub means: &'a Means,
}

impl<G: Get> Ends<'_, G> {
    /// `None`: the event needs a number.
    pub fn current(&self, mut grant: Option<&mut Grant>) -> Result<Option<Current>> {
        let (get, room) = (self.get, self.room);
        let (mut old, mut others) = (Vec::new(), Vec::new());
        let superseded = superseded(get, &room.row.extremities, self.event)?;
        for extremity in &room.row.extremities {
            let tree = tree::after(get, *extremity, &event::row_of(get, *extremity)?)?;
            if !superseded.contains(extremity) {
                others.push(tree.clone());
            }
            old.push(tree);
        }
        if !others.is_empty() && event::is_followed(get, room.num, self.event.id().as_str())? {
            return self.behind(old, others, grant).map(Some);
        }
        let with = |own: &Tree| others.iter().chain([own]).cloned().collect::<Vec<Tree>>();
        let key = match self.event.state_key() {
            Some(state_key) => Some(state_tree::key(get, self.event.kind(), state_key)?),
            None => None,
        };
        let mut own = self.before.clone();
        if key.is_none() {
            let states = with(&own);
            if states.iter().all(|tree| old.contains(tree)) && old.iter().all(|tree| states.contains(tree)) {
                return Ok(Some(Current::Resolved { changes: Vec::new(), wins: false }));
            }
        }
        let is_ordinary = !self.is_given && !state::is_power_event(self.event);
        let goes_on = is_ordinary && resolve::differ_in_more(get, with(&own), SHORT_FORK)?;
        if goes_on && self.is_unopposed(key)? {
            return Ok(Some(Current::Resolved { changes: Vec::new(), wins: key.is_some() }));
        }
        if let Some(key) = key {
            let (Some(num), Some(key)) = (self.num, key) else { return Ok(None) };
            own.set(get, key, Some(num))?;
        }
        if !goes_on {
            // Should the extremities differ in too much: their last resolved state, and the event's side.
            for states in [with(&own), vec![Tree::stored(room.row.state), own]] {
                if let Some(changes) = self.changes(states, grant.as_deref_mut())? {
                    return Ok(Some(Current::Resolved { changes, wins: false }));
                }
            }
        }
        let (Some(key), Some(num)) = (key.flatten(), self.num) else { return Ok(Some(Current::Keep)) };
        let present = Tree::stored(room.row.state);
        let mut next = present.clone();
        next.set(get, key, Some(num))?;
        let changes = self.changes(vec![present, next], grant)?.unwrap_or_default();
        Ok(Some(Current::Resolved { changes, wins: false }))
    }

    /// Events that follow it are here already: it is no extremity, and its change is in the states of the extremities.
    fn behind(&self, old: Vec<Tree>, others: Vec<Tree>, grant: Option<&mut Grant>) -> Result<Current> {
        let changes = match old == others {
            true => Vec::new(),
            false => self.changes(others, grant)?.unwrap_or_default(),
        };
        Ok(Current::Resolved { changes, wins: false })
    }

    /// Whether the state it replaces on its own side is the room's present one, or it is no state.
    fn is_unopposed(&self, key: Option<Option<StateKeyNum>>) -> Result<bool> {
        match key {
            Some(Some(key)) => {
                let present = Tree::stored(self.room.row.state).get(self.get, key)?;
                Ok(self.before.get(self.get, key)? == present)
            }
            // The key is new.
            Some(None) | None => Ok(true),
        }
    }

    /// The changes to the present state that make it the resolution of the states.
    fn changes(&self, states: Vec<Tree>, grant: Option<&mut Grant>) -> Result<Option<Changes>> {
        let Some(resolved) = resolve::resolve(self.get, of(self.room)?, states, self.means, grant)? else {
            return Ok(None);
        };
        Ok(resolved.changes_since(self.get, self.room.row.state, self.means.changes_max())?)
    }
}

type Changes = Vec<(StateKeyNum, Option<EventNum>)>;

/// The changes to the room's present state before an event follows all extremities: on a long fork it went on without
/// their being resolved. Nothing when it is right, or when they differ in too much.
pub fn resolve_ends(get: &impl Get, room: &RoomRef, means: &Means) -> Result<Changes> {
    if room.row.extremities.len() < 2 {
        return Ok(Vec::new());
    }
    let ends = room.row.extremities.iter().map(|num| tree::after(get, *num, &event::row_of(get, *num)?));
    let ends = ends.collect::<store::Result<Vec<Tree>>>()?;
    let Some(resolved) = resolve::resolve(get, of(room)?, ends, means, None)? else { return Ok(Vec::new()) };
    Ok(resolved.changes_since(get, room.row.state, means.changes_max())?.unwrap_or_default())
}

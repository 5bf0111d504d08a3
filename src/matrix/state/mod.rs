//! State resolution, v2 and v2.1 (room versions 2–11 and 12; each page's section "State resolution").
//!
//! The caller has already split the states: unconflicted keys are looked up through a closure and never collected, the
//! conflicted ones come with their candidates, and the rest of the full conflicted set (the auth difference; in v2.1
//! the conflicted subgraph) comes as a list of ids. Memory is about 150 bytes for each event of the full conflicted
//! set. Events are read through [`Source`], a few times each, so a small cache under it pays.
//!
//! Files, a step each: `power_order.rs` (reverse topological power ordering), `mainline.rs` (mainline ordering),
//! `replay.rs` (the iterative auth checks); `conflict.rs` splits whole states held in memory, for tests.

#[cfg(test)]
mod conflict;
mod mainline;
mod power_order;
mod replay;
#[cfg(test)]
pub(crate) mod tests;

use super::Reject;
use super::event::Event;
use super::version::{RoomVersion, StateRes};
use replay::Replay;
use ruma::OwnedEventId;
use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

/// Where events come from, by the caller's own small ids.
pub trait Source {
    type Id: Copy + Eq + Ord + Hash + Debug;
    type Error: From<Reject>;

    /// None for an event we do not have; it takes no part.
    fn event(&self, id: Self::Id) -> Result<Option<Arc<Event>>, Self::Error>;
    /// Appends the events it cites, as far as we have them.
    fn auth_events(&self, id: Self::Id, out: &mut Vec<Self::Id>) -> Result<(), Self::Error>;
    fn is_rejected(&self, id: Self::Id) -> Result<bool, Self::Error>;
    /// The room's create event.
    fn create(&self) -> Result<Self::Id, Self::Error>;
    /// Whether this is `m.room.power_levels`; best answered from a column where there is one.
    fn is_power_levels(&self, id: Self::Id) -> Result<bool, Self::Error> {
        Ok(self.event(id)?.is_some_and(|e| e.is("m.room.power_levels", "")))
    }
}

/// One member of the full conflicted set.
struct Member<Id> {
    id: Id,
    event_id: OwnedEventId,
    origin_server_ts: u64,
    is_power_event: bool,
}

/// The changes to the state; unconflicted keys stay as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved<Id> {
    /// For each conflicted key, in the order given: its event, or none if the key falls out of the state.
    pub winners: Vec<Option<Id>>,
    /// Events under keys that none of the states had: the replay can bring back a key that every branch had moved past.
    pub added: Vec<Id>,
}

/// Resolves the conflicted keys. `conflicts`: the candidates of each key, at least one each. `others`: the rest of the full
/// conflicted set, in any order, doubles allowed. `unconflicted`: the event all states agree on under a type and key.
/// `decided`: where the conflicts are resolved in parts, the event an earlier part has put under a type and key.
pub fn resolve<S: Source>(
    version: &RoomVersion,
    source: &S,
    unconflicted: impl Fn(&str, &str) -> Result<Option<S::Id>, S::Error>,
    decided: impl Fn(&str, &str) -> Result<Option<S::Id>, S::Error>,
    conflicts: &[Vec<S::Id>],
    others: &[S::Id],
) -> Result<Resolved<S::Id>, S::Error> {
    let from_nothing = match version.state_res {
        StateRes::V1 => return Err(Reject::auth("state resolution of room version 1 is not there").into()),
        StateRes::V2 => false,
        StateRes::V2_1 => true,
    };
    let full = full_conflicted_set(source, conflicts, others)?;
    let start = |kind: &str, key: &str| match decided(kind, key)? {
        None if !from_nothing => unconflicted(kind, key),
        decided => Ok(decided),
    };
    let mut replay = Replay::new(version, source, &start);

    let power = power_order::sort(&mut replay, &full)?;
    for at in &power {
        replay.event(full[*at as usize].id)?;
    }
    let mut rest = vec![true; full.len()];
    power.iter().for_each(|at| rest[*at as usize] = false);
    let levels = replay.current("m.room.power_levels", "")?;
    for at in mainline::sort(source, &full, rest, levels)? {
        replay.event(full[at as usize].id)?;
    }
    let known = |kind: &str, key: &str| Ok(decided(kind, key)?.or(unconflicted(kind, key)?));
    outcome(source, replay.into_set(), known, conflicts)
}

/// Sorts the events set by the replay into winners and additions.
fn outcome<S: Source>(
    source: &S,
    mut set: HashMap<(Box<str>, Box<str>), S::Id>,
    known: impl Fn(&str, &str) -> Result<Option<S::Id>, S::Error>,
    conflicts: &[Vec<S::Id>],
) -> Result<Resolved<S::Id>, S::Error> {
    let mut winners = Vec::with_capacity(conflicts.len());
    for candidates in conflicts {
        let mut winner = None;
        for id in candidates {
            // All candidates have the same key; the first one found gives it.
            if let Some(event) = source.event(*id)? {
                winner = event.state_key().and_then(|key| set.remove(&(event.kind().into(), key.into())));
                break;
            }
        }
        winners.push(winner);
    }
    let mut added = Vec::new();
    for ((kind, key), id) in set {
        if known(&kind, &key)?.is_none() {
            added.push(id);
        }
    }
    added.sort_unstable();
    Ok(Resolved { winners, added })
}

/// All events that take part, sorted by id, once each, with the values the orderings need.
fn full_conflicted_set<S: Source>(
    source: &S,
    conflicts: &[Vec<S::Id>],
    others: &[S::Id],
) -> Result<Vec<Member<S::Id>>, S::Error> {
    let mut ids: Vec<S::Id> = conflicts.iter().flatten().chain(others).copied().collect();
    ids.sort_unstable();
    ids.dedup();
    let mut members = Vec::with_capacity(ids.len());
    for id in ids {
        if let Some(event) = source.event(id)? {
            members.push(Member {
                id,
                event_id: event.id().to_owned(),
                origin_server_ts: event.origin_server_ts(),
                is_power_event: is_power_event(&event),
            });
        }
    }
    Ok(members)
}

/// Power events: levels, join rules, and removing or banning another user.
pub fn is_power_event(event: &Event) -> bool {
    match event.kind() {
        "m.room.power_levels" | "m.room.join_rules" | "m.room.create" => event.state_key() == Some(""),
        "m.room.member" => {
            event.membership().is_some_and(|m| m == "leave" || m == "ban")
                && event.state_key().is_some_and(|key| key != event.sender())
        }
        _ => false,
    }
}

/// The position of an id in the full conflicted set.
fn position<Id: Ord>(full: &[Member<Id>], id: &Id) -> Option<u32> {
    full.binary_search_by(|m| m.id.cmp(id)).ok().map(|at| at as u32)
}

/// Parsed contents by id, dropped all together when they grow beyond a bound in bytes.
struct Parsed<Id, T> {
    held: HashMap<Id, Arc<T>>,
    weight: usize,
    weight_max: usize,
}

impl<Id: Eq + Hash + Copy, T> Parsed<Id, T> {
    fn new(weight_max: usize) -> Parsed<Id, T> {
        Parsed { held: HashMap::new(), weight: 0, weight_max }
    }
    fn get(&self, id: Id) -> Option<Arc<T>> {
        self.held.get(&id).cloned()
    }
    fn put(&mut self, id: Id, value: T, weight: usize) -> Arc<T> {
        if self.weight + weight > self.weight_max {
            self.held.clear();
            self.weight = 0;
        }
        self.weight += weight;
        let value = Arc::new(value);
        self.held.insert(id, value.clone());
        value
    }
}

//! The state of a room where its history forks.
//!
//! Several states become one (each room version's section "State resolution"). Only the entries that the states do not
//! agree on are ever held: the rest is found in the stored trees when a rule asks for it. The outcome is a [`Tree`]: a
//! stored tree and the few keys that differ from it, which the calling write stores.
//!
//! Bounded by the profile's `state_conflicts_max`, the events that are resolved together. States that differ in more
//! are resolved in parts, with the same result unless an event of one part decides about one of another: first every
//! key with an event that can take power away, then other state, then memberships. States that differ in a multiple of
//! that are not resolved; `receive/authorize.rs` has a way on.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use lru::LruCache;

use super::event::load_row;
use super::tree::Tree;
use crate::budget::{Account, Budget, Grant};
use crate::matrix::state::{self, Source};
use crate::matrix::version::StateRes;
use crate::matrix::{Event, RoomVersion};
use crate::room::error::{Error, Result};
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::{Kind, Membership, Root, Row};
use crate::store::tables::room::{auth_graph, state_tree};
use crate::store::{self, EventNum, Get, StateKeyNum};

/// Rows of events looked at instead of a whole state: a few milliseconds.
const RECENT_MAX: usize = 2048;
/// Memory of one conflicted event in `matrix::state` and here, its cached body left out.
const CONFLICT_BYTES: u64 = 192;
/// Events read most recently, of which the replay asks again and again.
const CACHE_BYTES: usize = 128 * 1024;
/// Keys that states may differ in at all, as a multiple of the conflicts that are resolved together.
const CHANGES_PER_CONFLICT: usize = 4;
/// Memory of one such key while parts are resolved: its place in the list, and in the outcome.
const CHANGE_BYTES: u64 = 32;

/// The bounds of a resolution.
#[derive(Clone)]
pub struct Means {
    pub account: Account,
    /// Conflicted events that are resolved together.
    pub conflicts_max: usize,
}

impl Means {
    pub fn new(budget: &Budget) -> Means {
        let conflicts_max = budget.size("state_conflicts_max") as usize;
        Means { account: budget.account("state_resolution"), conflicts_max }
    }

    /// Keys that states may differ in.
    pub fn changes_max(&self) -> usize {
        self.conflicts_max * CHANGES_PER_CONFLICT
    }

    /// Memory of one resolution at most, walks of the auth graph left out, which pay as they go.
    fn bytes(&self) -> u64 {
        let (conflicts, changes) = (self.conflicts_max as u64, self.changes_max() as u64);
        // Parts are half as large, and their outcome stands beside them.
        let bytes = (conflicts * CONFLICT_BYTES).max(conflicts / 2 * CONFLICT_BYTES + changes * CHANGE_BYTES);
        (bytes + CACHE_BYTES as u64).min(self.account.limit() / 4 * 3)
    }

    /// Waits for the memory of one resolution. Never with a lock held.
    pub async fn wait(&self) -> Result<Grant> {
        Ok(self.account.take(self.bytes()).await?)
    }
}

/// The room as resolving needs it.
#[derive(Clone, Copy)]
pub struct Of {
    pub version: &'static RoomVersion,
    pub create: EventNum,
}

/// Resolves several states into one. Equal ones cost nothing. The memory is that of `grant`, or taken at once. `None`
/// when they differ in more keys than [`Means::changes_max`], or in too many that decide about power.
///
/// Plain work for a blocking thread: the conflicts, a few reads for each, and the part of the auth graph they differ in.
pub fn resolve(
    get: &impl Get,
    of: Of,
    trees: Vec<Tree>,
    means: &Means,
    grant: Option<&mut Grant>,
) -> Result<Option<Tree>> {
    let trees = distinct(trees);
    let Some(first) = trees.first() else { return Ok(Some(Tree::stored(None))) };
    if trees.len() == 1 {
        return Ok(Some(first.clone()));
    }
    let mut own = None;
    let grant = match grant {
        Some(grant) => grant,
        None => own.insert(means.account.try_take(means.bytes())?),
    };
    let mut parts = Parts::new(get, of, &trees, grant)?;
    if let Some(conflicts) = conflicts(get, &trees, means.conflicts_max)? {
        parts.is_whole = true;
        if parts.resolve(&conflicts, means.conflicts_max)? {
            return Ok(Some(parts.tree));
        }
        parts.is_whole = false;
    }
    let Some(listed) = list(get, &trees, means.changes_max())? else { return Ok(None) };
    // A key has at most as many candidates as there are states.
    let at_once = (means.conflicts_max / 2 / trees.len()).max(1);
    for of_a_kind in listed.chunk_by(|one, other| one.0 == other.0) {
        if of_a_kind[0].0 == Part::Power && of_a_kind.len() > at_once {
            return Ok(None);
        }
        for part in of_a_kind.chunks(at_once) {
            let conflicts = part.iter().map(|(_, key)| Ok((*key, values(get, &trees, *key)?)));
            let conflicts = conflicts.collect::<store::Result<Conflicts>>()?;
            if !parts.resolve(&conflicts, means.conflicts_max)? {
                return Ok(None);
            }
        }
    }
    Ok(Some(parts.tree))
}

/// Whether the states differ in more than so many events: never more work than that.
pub fn differ_in_more(get: &impl Get, trees: Vec<Tree>, most: usize) -> Result<bool> {
    let trees = distinct(trees);
    Ok(trees.len() > 1 && conflicts(get, &trees, most)?.is_none())
}

fn distinct(trees: Vec<Tree>) -> Vec<Tree> {
    let mut distinct: Vec<Tree> = Vec::with_capacity(trees.len());
    for tree in trees {
        if !distinct.contains(&tree) {
            distinct.push(tree);
        }
    }
    distinct
}

/// A resolution, in one part or several.
struct Parts<'a, G> {
    of: Of,
    trees: &'a [Tree],
    grant: &'a mut Grant,
    events: Events<'a, G>,
    /// There is one part only: all states agree on the rest.
    is_whole: bool,
    /// The outcome so far, and its keys.
    tree: Tree,
    decided: BTreeSet<StateKeyNum>,
}

impl<'a, G: Get> Parts<'a, G> {
    fn new(get: &'a G, of: Of, trees: &'a [Tree], grant: &'a mut Grant) -> Result<Self> {
        let events = Events::new(get, of)?;
        Ok(Parts { of, trees, grant, events, is_whole: false, tree: trees[0].clone(), decided: BTreeSet::new() })
    }

    /// Resolves a part; `false` when more than `most` events take part in it.
    fn resolve(&mut self, conflicts: &Conflicts, most: usize) -> Result<bool> {
        if conflicts.is_empty() {
            return Ok(true);
        }
        let (get, trees) = (self.events.get, self.trees);
        let (is_whole, tree, decided) = (self.is_whole, &self.tree, &self.decided);
        let agreed = |key: StateKeyNum| match () {
            () if conflicts.contains_key(&key) => Ok(None),
            () if is_whole => trees[0].get(get, key),
            () if decided.contains(&key) => tree.get(get, key),
            () => {
                let values = values(get, trees, key)?;
                Ok(values[0].filter(|_| values.iter().all(|value| *value == values[0])))
            }
        };
        let others = others(get, self.of, trees, conflicts, agreed, self.grant)?;
        if others.len() > most {
            return Ok(false);
        }
        let numbered = |kind: &str, state_key: &str| state_tree::key(get, kind, state_key);
        let unconflicted = |kind: &str, state_key: &str| match numbered(kind, state_key)? {
            Some(key) => Ok(agreed(key)?),
            None => Ok(None),
        };
        let before = |kind: &str, state_key: &str| match numbered(kind, state_key)? {
            Some(key) if decided.contains(&key) && !conflicts.contains_key(&key) => Ok(tree.get(get, key)?),
            _ => Ok(None),
        };
        let candidates: Vec<Vec<EventNum>> = conflicts.values().map(|values| distinct_of(values)).collect();
        let resolved = state::resolve(self.of.version, &self.events, unconflicted, before, &candidates, &others)?;
        for (key, winner) in conflicts.keys().zip(resolved.winners) {
            self.tree.set(get, *key, winner)?;
        }
        if !is_whole {
            self.decided.extend(conflicts.keys());
        }
        for added in resolved.added {
            let Some(key) = event::row_of(get, added)?.state_key else { continue };
            let values = values(get, trees, key)?;
            // A key that the states do not agree on has a part of its own.
            if is_whole || values.iter().all(|value| *value == values[0]) {
                self.tree.set(get, key, Some(added))?;
            }
        }
        Ok(true)
    }
}

/// The event of each tree, for each key they do not agree on.
type Conflicts = BTreeMap<StateKeyNum, Vec<Option<EventNum>>>;

fn values(get: &impl Get, trees: &[Tree], key: StateKeyNum) -> store::Result<Vec<Option<EventNum>>> {
    trees.iter().map(|tree| tree.get(get, key)).collect()
}

fn distinct_of(values: &[Option<EventNum>]) -> Vec<EventNum> {
    let distinct: BTreeSet<EventNum> = values.iter().flatten().copied().collect();
    distinct.into_iter().collect()
}

/// The keys the trees do not agree on; `None` when they have more than `most` events.
fn conflicts(get: &impl Get, trees: &[Tree], most: usize) -> Result<Option<Conflicts>> {
    let mut found = Conflicts::new();
    let mut room = most;
    let fits = differences(get, trees, &mut |key, values| {
        let count = distinct_of(values).len();
        if count > room {
            return Ok(ControlFlow::Break(()));
        }
        room -= count;
        found.insert(key, values.to_vec());
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(fits.then_some(found))
}

/// Which part a key that the states do not agree on is resolved in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Power,
    /// Before memberships: its sender may have left since.
    Other,
    Member,
}

/// The keys the trees do not agree on, in the order they are resolved in; `None` when there are more than `most`.
fn list(get: &impl Get, trees: &[Tree], most: usize) -> Result<Option<Vec<(Part, StateKeyNum)>>> {
    let mut found = Vec::new();
    let fits = differences(get, trees, &mut |key, values| {
        if found.len() == most {
            return Ok(ControlFlow::Break(()));
        }
        let mut part = Part::Member;
        for event in distinct_of(values) {
            let row = event::row_of(get, event)?;
            part = part.min(match row.kind {
                _ if takes_power(&row) => Part::Power,
                Kind::MEMBER => Part::Member,
                _ => Part::Other,
            });
        }
        found.push((part, key));
        Ok(ControlFlow::Continue(()))
    })?;
    found.sort_unstable();
    Ok(fits.then_some(found))
}

/// Whether the algorithm puts the event before all others: it can take power away from a user.
fn takes_power(row: &Row) -> bool {
    match row.kind {
        Kind::CREATE | Kind::POWER_LEVELS | Kind::JOIN_RULES => true,
        _ => row.member.is_some_and(|(membership, target)| {
            matches!(membership, Membership::Leave | Membership::Ban) && target != row.sender
        }),
    }
}

/// Goes through the keys the trees do not agree on, each once; `false` when it was broken off.
fn differences(
    get: &impl Get,
    trees: &[Tree],
    visit: &mut dyn FnMut(StateKeyNum, &[Option<EventNum>]) -> store::Result<ControlFlow<()>>,
) -> Result<bool> {
    let bases: Vec<Option<Root>> = trees.iter().map(|tree| tree.base).collect();
    let changed: BTreeSet<StateKeyNum> = trees.iter().flat_map(|tree| tree.changes.iter().map(|c| c.0)).collect();
    let mut fits = true;
    state_tree::conflicts(get, &bases, &mut |key, values| {
        if changed.contains(&key) {
            return Ok(ControlFlow::Continue(()));
        }
        let flow = visit(key, values)?;
        fits = flow.is_continue();
        Ok(flow)
    })?;
    for key in changed {
        let values = values(get, trees, key)?;
        if fits && values.windows(2).any(|pair| pair[0] != pair[1]) {
            fits = visit(key, &values)?.is_continue();
        }
    }
    Ok(fits)
}

/// The other events that take part: the auth difference, and the conflicted subgraph where the version has it.
fn others(
    get: &impl Get,
    of: Of,
    trees: &[Tree],
    conflicts: &Conflicts,
    agreed: impl Fn(StateKeyNum) -> store::Result<Option<EventNum>>,
    grant: &mut Grant,
) -> Result<Vec<EventNum>> {
    let conflicted: BTreeSet<EventNum> = conflicts.values().flatten().flatten().copied().collect();
    let conflicted: Vec<EventNum> = conflicted.into_iter().collect();
    let mut others = difference(get, of, trees, conflicts, &conflicted, agreed, grant)?;
    if of.version.state_res == StateRes::V2_1 {
        others.extend(auth_graph::conflicted_subgraph(get, &conflicted, grant)?);
    }
    Ok(others)
}

/// The auth difference, without the conflicted events, which take part anyway.
fn difference(
    get: &impl Get,
    of: Of,
    trees: &[Tree],
    conflicts: &Conflicts,
    conflicted: &[EventNum],
    agreed: impl Fn(StateKeyNum) -> store::Result<Option<EventNum>>,
    grant: &mut Grant,
) -> Result<Vec<EventNum>> {
    let mut sets: Vec<Vec<EventNum>> =
        (0..trees.len()).map(|at| conflicts.values().filter_map(|values| values[at]).collect()).collect();
    // An event that all states have and a conflicted event cites is put into every set: it changes no difference, and
    // the walk ends there instead of going down the history of, say, the power levels.
    let mut common = BTreeSet::new();
    for event in conflicted {
        for auth in event::row_of(get, *event)?.auth {
            if let Some(key) = event::row_of(get, auth)?.state_key
                && agreed(key)? == Some(auth)
            {
                common.insert(auth);
            }
        }
    }
    // Agreed, but not in the stored tree that stands for the common state.
    for (key, event) in &trees[0].changes {
        if event.is_some() && agreed(*key)? == *event {
            common.extend(*event);
        }
    }
    for set in &mut sets {
        set.extend(&common);
        set.sort_unstable();
        set.dedup();
    }
    let mut found = auth_graph::auth_difference(get, &sets, None, grant)?;
    found.retain(|event| conflicted.binary_search(event).is_err());
    retain_unshared(get, &mut found, &agreed)?;
    if found.is_empty() {
        return Ok(found);
    }
    if let Some(found) = retain_uncited(get, of, &found, &agreed)? {
        return Ok(found);
    }
    // Some are old, and may be in the auth chain of the rest of the state: only a look at all of it tells.
    let Some(root) = trees[0].base else { return Ok(found) };
    let outside: BTreeSet<StateKeyNum> =
        conflicts.keys().copied().chain(trees[0].changes.iter().map(|change| change.0)).collect();
    let outside: Vec<StateKeyNum> = outside.into_iter().collect();
    let common = auth_graph::Common { root, conflicted: &outside };
    let mut found = auth_graph::auth_difference(get, &sets, Some(common), grant)?;
    found.retain(|event| conflicted.binary_search(event).is_err());
    Ok(found)
}

/// The events, in falling order, without those in the auth chain of an event that all states have. A citing event is
/// newer, so that only events since the oldest of them are looked at; `None` when those are too many.
fn retain_uncited(
    get: &impl Get,
    of: Of,
    events: &[EventNum],
    agreed: impl Fn(StateKeyNum) -> store::Result<Option<EventNum>>,
) -> store::Result<Option<Vec<EventNum>>> {
    let Some(&lowest) = events.last() else { return Ok(Some(Vec::new())) };
    let room = event::row_of(get, of.create)?.room;
    let mut cited: BTreeSet<EventNum> = BTreeSet::new();
    let (mut looked, mut recent) = (0, true);
    event::rows_down(get, EventNum(u32::MAX - 1), &mut |num, row| {
        looked += 1;
        recent = looked <= RECENT_MAX;
        if num < lowest || !recent {
            return Ok(ControlFlow::Break(()));
        }
        let is_state = row.room == room && row.state_key.map_or(Ok(None), &agreed)? == Some(num);
        if is_state || cited.contains(&num) {
            cited.extend(row.auth.iter().filter(|auth| **auth >= lowest));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(recent.then(|| events.iter().filter(|event| !cited.contains(*event)).copied().collect()))
}

/// Removes events that are part of all states, and their auth chains. In falling order.
fn retain_unshared(
    get: &impl Get,
    found: &mut Vec<EventNum>,
    agreed: impl Fn(StateKeyNum) -> store::Result<Option<EventNum>>,
) -> store::Result<()> {
    let mut shared = BTreeSet::new();
    let mut unshared = Vec::with_capacity(found.len());
    for event in found.drain(..) {
        let row = event::row_of(get, event)?;
        let is_state = row.state_key.map_or(Ok(None), &agreed)? == Some(event);
        if is_state || shared.contains(&event) {
            shared.extend(row.auth);
        } else {
            unshared.push(event);
        }
    }
    *found = unshared;
    Ok(())
}

impl From<auth_graph::Failed> for Error {
    fn from(failed: auth_graph::Failed) -> Error {
        match failed {
            auth_graph::Failed::Store(failed) => Error::Store(failed),
            auth_graph::Failed::Refused(refused) => Error::Refused(refused),
        }
    }
}

/// The store as `matrix::state` asks it.
struct Events<'g, G> {
    get: &'g G,
    of: Of,
    levels_key: Option<StateKeyNum>,
    cache: RefCell<Cache>,
}

struct Cache {
    events: LruCache<EventNum, Option<Arc<Event>>>,
    bytes: usize,
}

impl<'g, G: Get> Events<'g, G> {
    fn new(get: &'g G, of: Of) -> Result<Self> {
        let cache = RefCell::new(Cache { events: LruCache::unbounded(), bytes: 0 });
        Ok(Events { get, of, levels_key: state_tree::key(get, "m.room.power_levels", "")?, cache })
    }
}

fn weight(event: &Option<Arc<Event>>) -> usize {
    event.as_ref().map_or(0, |event| event.weight()) + 64
}

impl<G: Get> Source for Events<'_, G> {
    type Id = EventNum;
    type Error = Error;

    fn event(&self, id: EventNum) -> Result<Option<Arc<Event>>> {
        if let Some(event) = self.cache.borrow_mut().events.get(&id) {
            return Ok(event.clone());
        }
        let row = event::row(self.get, id)?;
        let event = row.map(|row| load_row(self.get, self.of.version, &row)).transpose()?.map(Arc::new);
        let mut cache = self.cache.borrow_mut();
        cache.bytes += weight(&event);
        cache.events.put(id, event.clone());
        while cache.bytes > CACHE_BYTES
            && let Some((_, old)) = cache.events.pop_lru()
        {
            cache.bytes -= weight(&old);
        }
        Ok(event)
    }

    fn auth_events(&self, id: EventNum, out: &mut Vec<EventNum>) -> Result<()> {
        if let Some(row) = event::row(self.get, id)? {
            out.extend(row.auth);
        }
        Ok(())
    }

    fn is_rejected(&self, id: EventNum) -> Result<bool> {
        Ok(event::row(self.get, id)?.is_none_or(|row| row.flags.rejected))
    }

    fn create(&self) -> Result<EventNum> {
        Ok(self.of.create)
    }

    fn is_power_levels(&self, id: EventNum) -> Result<bool> {
        let row = event::row(self.get, id)?;
        Ok(row.is_some_and(|row| row.kind == Kind::POWER_LEVELS && row.state_key == self.levels_key))
    }
}

#[cfg(test)]
mod tests;

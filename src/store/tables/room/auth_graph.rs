//! Walks over the auth edges of stored events.
//!
//! In a room every event has a larger number than its auth events. So a walk that always takes the largest number still
//! to visit has met all events that lead to an event before the event itself. It keeps the numbers to come and never
//! those behind it. A grant pays for the memory of a walk, which grows with the width of the graph or with the request;
//! a grant that cannot grow ends the walk.

use std::collections::BTreeMap;

use super::event;
use super::event_row::Root;
use super::event_set::{CHUNK_BYTES, EventSet};
use super::state_tree;
use crate::budget::{Grant, Refused};
use crate::store::{Error, EventNum, Get, StateKeyNum};

/// Why a walk ended early.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error(transparent)]
    Store(#[from] Error),
    #[error(transparent)]
    Refused(#[from] Refused),
}

type Result<T, E = Failed> = std::result::Result<T, E>;

/// States that can be compared at once: one bit each.
pub const SETS_MAX: usize = 64;

/// The auth chain of events, largest number first: all their ancestors; the events themselves only where others of them
/// depend on them. Holds the numbers still to come, a few bytes for each or one bit where they are dense.
pub struct AuthChain {
    pending: Numbers,
}

/// The auth chain of a few events. More can be added with [`AuthChain::add`] before the first is taken.
pub fn auth_chain(get: &impl Get, from: &[EventNum], grant: Grant) -> Result<AuthChain> {
    let mut chain = AuthChain { pending: Numbers::new(grant) };
    from.iter().try_for_each(|event| chain.add(get, *event))?;
    Ok(chain)
}

impl AuthChain {
    /// Adds the auth events of an event.
    pub fn add(&mut self, get: &impl Get, event: EventNum) -> Result<()> {
        event::row_of(get, event)?.auth.into_iter().try_for_each(|auth| self.pending.insert(auth))?;
        Ok(())
    }

    /// The next event of the chain.
    pub fn next(&mut self, get: &impl Get) -> Result<Option<EventNum>> {
        let Some(event) = self.pending.set.pop_last() else { return Ok(None) };
        self.add(get, event)?;
        Ok(Some(event))
    }
}

/// The entries all the states agree on: the entries of any one of them without the conflicted keys, which are sorted.
#[derive(Clone, Copy, Debug)]
pub struct Common<'c> {
    pub root: Root,
    pub conflicted: &'c [StateKeyNum],
}

/// The events in the auth chain of some of the states but not of all of them, in falling order. `sets` has the entries
/// of each state under the conflicted keys; an event counts into its own chain. Reads the chains of the conflicted
/// events down to where they meet; of the rest of the state, only events not older than the oldest event found.
pub fn auth_difference(
    get: &impl Get,
    sets: &[Vec<EventNum>],
    common: Option<Common>,
    grant: &mut Grant,
) -> Result<Vec<EventNum>> {
    let mut found = unlike(get, sets, grant)?;
    if let (Some(&lowest), Some(common)) = (found.last(), common) {
        let rests_on = below(get, common, lowest, grant)?;
        found.retain(|event| !rests_on.set.has(*event));
    }
    Ok(found)
}

/// Bytes an entry of a map from number to mask takes, with its part of the map's nodes.
const MASK_BYTES: u64 = 28;
const FOUND_BYTES: u64 = 2 * size_of::<EventNum>() as u64;

/// The events in the chains of some of the sets, but not of all.
fn unlike(get: &impl Get, sets: &[Vec<EventNum>], grant: &mut Grant) -> Result<Vec<EventNum>> {
    assert!(sets.len() <= SETS_MAX, "who merges states bounds their number");
    let all = if sets.len() == SETS_MAX { u64::MAX } else { (1 << sets.len()) - 1 };
    let mut pending = Masks { masks: BTreeMap::new(), all, partial: 0, paid: 0 };
    for (at, set) in sets.iter().enumerate() {
        set.iter().try_for_each(|event| pending.add(*event, 1 << at, grant))?;
    }
    let mut found = Vec::new();
    // An event common to all sets has only common ancestors: when no other events are left, the walk is over.
    while pending.partial > 0 {
        let Some((event, mask)) = pending.pop_last() else { break };
        if mask != all {
            if found.len() % 128 == 0 {
                grant.grow(128 * FOUND_BYTES)?;
            }
            found.push(event);
        }
        for auth in event::row_of(get, event)?.auth {
            pending.add(auth, mask, grant)?;
        }
    }
    grant.shrink(pending.paid as u64 * MASK_BYTES);
    Ok(found)
}

/// Numbers to come, and the sets that lead to each.
struct Masks {
    masks: BTreeMap<EventNum, u64>,
    all: u64,
    /// The number of events that not all sets lead to.
    partial: usize,
    /// The number of entries the grant has grown for.
    paid: usize,
}

impl Masks {
    fn add(&mut self, event: EventNum, mask: u64, grant: &mut Grant) -> Result<(), Refused> {
        if self.masks.len() == self.paid {
            grant.grow(128 * MASK_BYTES)?;
            self.paid += 128;
        }
        let now = self.masks.entry(event).or_insert(0);
        let was_partial = *now != 0 && *now != self.all;
        *now |= mask;
        let is_partial = *now != self.all;
        self.partial = self.partial + usize::from(is_partial) - usize::from(was_partial);
        Ok(())
    }

    fn pop_last(&mut self) -> Option<(EventNum, u64)> {
        let (event, mask) = self.masks.pop_last()?;
        self.partial -= usize::from(mask != self.all);
        Some((event, mask))
    }
}

/// The auth chains of the common entries, the entries included, down to `lowest`.
fn below(get: &impl Get, common: Common, lowest: EventNum, grant: &mut Grant) -> Result<Numbers> {
    let mut pending = Numbers::new(grant.split(0));
    let (mut page, mut after) = (Vec::with_capacity(PAGE_ENTRIES), None);
    loop {
        page.clear();
        let ended = state_tree::page(get, common.root, after, PAGE_ENTRIES, &mut page)?;
        for entry in page.iter().filter(|entry| entry.event >= lowest) {
            if common.conflicted.binary_search(&entry.key).is_err() {
                pending.insert(entry.event)?;
            }
        }
        after = page.last().map(|entry| entry.key).or(after);
        if ended {
            break;
        }
    }
    closure(get, pending, lowest)
}

/// Entries of the common state looked at together; 4 KiB.
const PAGE_ENTRIES: usize = 512;

/// The numbers and all their ancestors, down to `lowest`.
fn closure(get: &impl Get, mut numbers: Numbers, lowest: EventNum) -> Result<Numbers> {
    let mut next = numbers.set.last_below(None);
    while let Some(event) = next {
        for auth in event::row_of(get, event)?.auth {
            if auth >= lowest {
                numbers.insert(auth)?;
            }
        }
        next = numbers.set.last_below(Some(event));
    }
    Ok(numbers)
}

/// The events that have a conflicted event among their ancestors and one among their descendants, in rising order; the
/// conflicted ones are among them. Reads the ancestors of the conflicted events, down to the smallest of these.
pub fn conflicted_subgraph(get: &impl Get, conflicted: &[EventNum], grant: &mut Grant) -> Result<Vec<EventNum>> {
    let Some(&lowest) = conflicted.iter().min() else { return Ok(Vec::new()) };
    let mut ends = Numbers::new(grant.split(0));
    let mut above = Numbers::new(grant.split(0));
    for &event in conflicted {
        ends.insert(event)?;
        above.insert(event)?;
    }
    let above = closure(get, above, lowest)?;
    let mut found = Vec::new();
    let mut between = ends;
    let mut next = above.set.first_from(lowest);
    while let Some(event) = next {
        let is_between =
            between.set.has(event) || event::row_of(get, event)?.auth.iter().any(|auth| between.set.has(*auth));
        if is_between {
            between.insert(event)?;
            if found.len() % 128 == 0 {
                grant.grow(128 * FOUND_BYTES)?;
            }
            found.push(event);
        }
        next = event.0.checked_add(1).and_then(|from| above.set.first_from(EventNum(from)));
    }
    Ok(found)
}

/// A set whose chunks are paid for.
struct Numbers {
    set: EventSet,
    grant: Grant,
    /// The number of chunks the grant has grown for.
    paid: usize,
}

const CHUNKS_AT_A_TIME: usize = 64;

impl Numbers {
    fn new(grant: Grant) -> Self {
        Numbers { set: EventSet::default(), grant, paid: 0 }
    }

    fn insert(&mut self, event: EventNum) -> Result<(), Refused> {
        if self.set.chunks() == self.paid {
            self.grant.grow(CHUNKS_AT_A_TIME as u64 * CHUNK_BYTES)?;
            self.paid += CHUNKS_AT_A_TIME;
        }
        self.set.insert(event);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::store::tables::room::{event, state_tree};
    use std::collections::BTreeSet;

    use super::*;
    use crate::base::Random;
    use crate::budget::Budget;
    use crate::store::tables::room::event_row::{Flags, Id, Kind, Row};
    use crate::store::{BodyNum, Read, RoomNum, Store, UserNum};

    /// Edges of a random graph by number; the first event is 1 and has no auth events.
    fn graph(random: &Random, events: u32) -> Vec<Vec<u32>> {
        let mut edges = vec![Vec::new(), Vec::new()];
        for num in 2..=events {
            let reach = if random.below(4) == 0 { num - 1 } else { (num - 1).min(30) };
            let mut auth: Vec<u32> =
                (0..random.below(4)).map(|_| num - 1 - random.below(reach.into()) as u32).collect();
            auth.dedup();
            edges.push(auth);
        }
        edges
    }

    fn stored(edges: &[Vec<u32>]) -> Store {
        let store = Store::in_memory();
        let edges = edges.to_vec();
        let write = move |w: &mut crate::store::Write| {
            for (num, auth) in edges.iter().enumerate().skip(1) {
                let row = Row {
                    room: RoomNum(1),
                    body: BodyNum(num as u32),
                    id: Id::Hash([num as u8; 32]),
                    kind: Kind::MEMBER,
                    state_key: None,
                    sender: UserNum(1),
                    member: None,
                    flags: Flags::default(),
                    depth: 1,
                    origin_server_ts: 1,
                    auth: auth.iter().map(|auth| EventNum(*auth)).collect(),
                    before: None,
                    order: None,
                    redacted_by: None,
                };
                event::put_row(w, EventNum(num as u32), &row)?;
            }
            Ok::<_, Error>(())
        };
        store.write_blocking(write).unwrap();
        store
    }

    fn grant() -> Grant {
        Budget::for_tests().account("state_resolution").try_take(0).unwrap()
    }

    /// All ancestors of events, the events included.
    fn chain(edges: &[Vec<u32>], of: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
        let mut open: Vec<u32> = of.into_iter().collect();
        let mut seen: BTreeSet<u32> = open.iter().copied().collect();
        while let Some(num) = open.pop() {
            open.extend(edges[num as usize].iter().filter(|auth| seen.insert(**auth)));
        }
        seen
    }

    fn some(random: &Random, events: u32, most: u64) -> Vec<u32> {
        (0..random.below(most + 1)).map(|_| 1 + random.below(events.into()) as u32).collect()
    }

    fn nums(list: &[u32]) -> Vec<EventNum> {
        list.iter().map(|num| EventNum(*num)).collect()
    }

    fn walked(read: &Read, from: &[u32]) -> Vec<u32> {
        let mut chain = auth_chain(read, &nums(from), grant()).unwrap();
        let mut all = Vec::new();
        while let Some(event) = chain.next(read).unwrap() {
            all.push(event.0);
        }
        all
    }

    #[test]
    fn walks_over_random_graphs_find_what_plain_sets_find() {
        for seed in 0..200 {
            let random = Random::seeded(seed);
            let events = 2 + random.below(700) as u32;
            let edges = graph(&random, events);
            let store = stored(&edges);
            let read = store.read().unwrap();

            let from = some(&random, events, 5);
            let below = from.iter().flat_map(|num| edges[*num as usize].clone());
            assert_eq!(walked(&read, &from), chain(&edges, below).into_iter().rev().collect::<Vec<_>>());

            // States: keys up to 50 hold the same in all, those above differ or are absent.
            let common = some(&random, events, 50);
            let sets: Vec<Vec<u32>> = (0..2 + random.below(4)).map(|_| some(&random, events, 6)).collect();
            let chains: Vec<_> = sets.iter().map(|set| chain(&edges, set.iter().chain(&common).copied())).collect();
            let expected: BTreeSet<u32> = chains.iter().flatten().copied().collect();
            let expected: Vec<u32> =
                expected.into_iter().rev().filter(|num| !chains.iter().all(|chain| chain.contains(num))).collect();
            let entries = common.iter().zip(0..).chain(sets[0].iter().zip(100..));
            let changes: Vec<_> = entries.map(|(num, key)| (StateKeyNum(key), Some(EventNum(*num)))).collect();
            let root = store.write_blocking(move |w| state_tree::set(w, None, &changes)).unwrap().0;
            let conflicted: Vec<_> = (100..106).map(StateKeyNum).collect();
            let common = Some(Common { root, conflicted: &conflicted });
            let of_sets: Vec<_> = sets.iter().map(|set| nums(set)).collect();
            let found = auth_difference(&store.read().unwrap(), &of_sets, common, &mut grant()).unwrap();
            assert_eq!(found, nums(&expected), "seed {seed}");

            let ends = some(&random, events, 8);
            let expected: Vec<u32> = chain(&edges, ends.iter().copied())
                .into_iter()
                .filter(|num| chain(&edges, [*num]).iter().any(|below| ends.contains(below)))
                .collect();
            let found = conflicted_subgraph(&read, &nums(&ends), &mut grant()).unwrap();
            assert_eq!(found, nums(&expected), "seed {seed}");
        }
    }

    #[test]
    fn a_refused_grant_ends_a_walk_and_comes_back_whole() {
        let random = Random::seeded(7);
        let edges = graph(&random, 600);
        let store = stored(&edges);
        let read = store.read().unwrap();
        let sets = [nums(&[600, 590, 20]), nums(&[580, 3])];
        for n in 1.. {
            let budget = Budget::for_tests();
            let account = budget.account("state_resolution");
            let mut grant = account.try_take(0).unwrap();
            budget.refuse_nth(n);
            let done = auth_difference(&read, &sets, None, &mut grant)
                .and_then(|_| conflicted_subgraph(&read, &sets[0], &mut grant))
                .and_then(|_| auth_chain(&read, &sets[1], grant.split(0))?.next(&read));
            drop(grant);
            assert_eq!(account.used(), 0);
            match done {
                Err(Failed::Refused(_)) => assert!(!budget.refusal_pending()),
                Err(Failed::Store(failed)) => panic!("{failed}"),
                Ok(_) => {
                    assert!(budget.refusal_pending() && n > 3);
                    return;
                }
            }
        }
    }
}

//! Splitting whole states held in memory, the auth difference and the conflicted subgraph by plain sets: the definition, to
//! test the streaming versions and the resolution against.

use super::Source;
use std::collections::{BTreeMap, BTreeSet};

pub type StateMap<Id> = BTreeMap<(String, String), Id>;

pub struct Split<Id> {
    pub unconflicted: StateMap<Id>,
    /// Candidates by key.
    pub conflicted: BTreeMap<(String, String), Vec<Id>>,
}

pub fn split<Id: Copy + Ord>(states: &[StateMap<Id>]) -> Split<Id> {
    let keys: BTreeSet<_> = states.iter().flat_map(|s| s.keys()).collect();
    let mut split = Split { unconflicted: StateMap::new(), conflicted: BTreeMap::new() };
    for key in keys {
        let values: BTreeSet<Option<Id>> = states.iter().map(|s| s.get(key).copied()).collect();
        let candidates: Vec<Id> = values.iter().flatten().copied().collect();
        match values.len() {
            1 => drop(split.unconflicted.insert(key.clone(), candidates[0])),
            _ => drop(split.conflicted.insert(key.clone(), candidates)),
        }
    }
    split
}

/// All ancestors of an event, the event included.
pub fn chain<S: Source>(source: &S, of: impl IntoIterator<Item = S::Id>) -> Result<BTreeSet<S::Id>, S::Error> {
    let mut open: Vec<S::Id> = of.into_iter().collect();
    let mut seen: BTreeSet<S::Id> = open.iter().copied().collect();
    while let Some(id) = open.pop() {
        let mut cited = Vec::new();
        source.auth_events(id, &mut cited)?;
        open.extend(cited.into_iter().filter(|id| seen.insert(*id)));
    }
    Ok(seen)
}

/// Events in some state's auth chain but not in every one's.
pub fn auth_difference<S: Source>(source: &S, states: &[StateMap<S::Id>]) -> Result<Vec<S::Id>, S::Error> {
    let chains: Vec<BTreeSet<S::Id>> =
        states.iter().map(|s| chain(source, s.values().copied())).collect::<Result<_, _>>()?;
    let all: BTreeSet<S::Id> = chains.iter().flatten().copied().collect();
    Ok(all.into_iter().filter(|id| !chains.iter().all(|c| c.contains(id))).collect())
}

/// Events on a path of citations from one conflicted event to another.
pub fn subgraph<S: Source>(source: &S, conflicted: &BTreeSet<S::Id>) -> Result<Vec<S::Id>, S::Error> {
    let mut found = Vec::new();
    for id in chain(source, conflicted.iter().copied())? {
        if chain(source, [id])?.iter().any(|below| conflicted.contains(below)) {
            found.push(id);
        }
    }
    Ok(found)
}

/// Resolves whole states.
pub fn resolve_states<S: Source>(
    version: &crate::matrix::RoomVersion,
    source: &S,
    states: &[StateMap<S::Id>],
) -> Result<StateMap<S::Id>, S::Error> {
    let split = split(states);
    let mut others = auth_difference(source, states)?;
    if version.state_res == crate::matrix::version::StateRes::V2_1 {
        let conflicted = split.conflicted.values().flatten().copied().collect();
        others.extend(subgraph(source, &conflicted)?);
    }
    let candidates: Vec<Vec<S::Id>> = split.conflicted.values().cloned().collect();
    let find = |kind: &str, key: &str| Ok(split.unconflicted.get(&(kind.to_owned(), key.to_owned())).copied());
    let outcome = super::resolve(version, source, find, |_, _| Ok(None), &candidates, &others)?;
    let mut resolved = split.unconflicted.clone();
    let won = split.conflicted.into_keys().zip(outcome.winners).filter_map(|(key, winner)| Some((key, winner?)));
    resolved.extend(won);
    for id in outcome.added {
        let event = source.event(id)?.expect("what was replayed is there");
        let key = event.state_key().expect("what was replayed is state");
        assert!(resolved.insert((event.kind().to_owned(), key.to_owned()), id).is_none());
    }
    Ok(resolved)
}

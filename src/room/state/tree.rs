//! The state of a room as a tree on disk with changes laid over it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::store::tables::room::event_row::{Root, Row};
use crate::store::tables::room::state_tree;
use crate::store::{self, EventNum, Get, StateKeyNum, Write};

/// A state that need not be stored yet: a stored tree and its changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    pub base: Option<Root>,
    /// In order of the key; each differs from what the base has.
    pub changes: Vec<(StateKeyNum, Option<EventNum>)>,
}

impl Tree {
    pub fn stored(base: Option<Root>) -> Tree {
        Tree { base, changes: Vec::new() }
    }

    /// A state of so many entries and nothing else.
    pub fn of(entries: impl IntoIterator<Item = (StateKeyNum, EventNum)>) -> Tree {
        let entries: BTreeMap<_, _> = entries.into_iter().map(|(key, event)| (key, Some(event))).collect();
        Tree { base: None, changes: entries.into_iter().collect() }
    }

    /// A stored state with changes, each of which is one and of another key, in any order.
    pub fn over(base: Option<Root>, mut changes: Vec<(StateKeyNum, Option<EventNum>)>) -> Tree {
        changes.sort_unstable_by_key(|change| change.0);
        Tree { base, changes }
    }

    /// The event in force for a key.
    pub fn get(&self, get: &impl Get, key: StateKeyNum) -> store::Result<Option<EventNum>> {
        match self.changes.binary_search_by_key(&key, |change| change.0) {
            Ok(at) => Ok(self.changes[at].1),
            Err(_) => self.base.map_or(Ok(None), |root| state_tree::get(get, root, key)),
        }
    }

    /// Sets the event in force for a key, or none.
    pub fn set(&mut self, get: &impl Get, key: StateKeyNum, event: Option<EventNum>) -> store::Result<()> {
        let base = self.base.map_or(Ok(None), |root| state_tree::get(get, root, key))?;
        let place = self.changes.binary_search_by_key(&key, |change| change.0);
        match (place, base == event) {
            (Ok(at), true) => drop(self.changes.remove(at)),
            (Ok(at), false) => self.changes[at].1 = event,
            (Err(_), true) => {}
            (Err(at), false) => self.changes.insert(at, (key, event)),
        }
        Ok(())
    }

    /// Stores it.
    pub fn write(&self, w: &mut Write<'_>) -> store::Result<Root> {
        match self.base {
            Some(root) if self.changes.is_empty() => Ok(root),
            base => state_tree::set(w, base, &self.changes),
        }
    }

    /// The changes that turn the stored state `from` into this one; `most` keys at most, else `None`.
    pub fn changes_since(
        &self,
        get: &impl Get,
        from: Option<Root>,
        most: usize,
    ) -> store::Result<Option<Vec<(StateKeyNum, Option<EventNum>)>>> {
        let mut changes = BTreeMap::new();
        let mut fits = true;
        if from != self.base {
            state_tree::diff(get, from, self.base, &mut |key, _, after| {
                fits = changes.len() < most;
                changes.insert(key, after);
                Ok(if fits { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
            })?;
        }
        for (key, event) in &self.changes {
            match from.map_or(Ok(None), |root| state_tree::get(get, root, *key))? == *event {
                true => changes.remove(key),
                false => changes.insert(*key, *event),
            };
        }
        Ok((fits && changes.len() <= most).then(|| changes.into_iter().collect()))
    }
}

/// The state before an event with a place in the history.
pub fn before(row: &Row) -> Tree {
    Tree::stored(row.before)
}

/// The state after an event with a place in the history: the one before, and the event itself when it is state.
pub fn after(get: &impl Get, num: EventNum, row: &Row) -> store::Result<Tree> {
    let mut tree = before(row);
    if row.is_state()
        && let Some(key) = row.state_key
    {
        tree.set(get, key, Some(num))?;
    }
    Ok(tree)
}

//! The order of a joined room's events: auth events before those that name them.
//!
//! The join writes down every event as a node and its parents' nodes (`intern.rs` gives the numbers); this file turns
//! that log into places in a topological order, reading it front to back, never keeping more of it than the `join`
//! account pays for. Per node four bytes, always. An event whose parents all have their place takes the next one in
//! passing, which is nearly all of them in the order servers send. The others wait as edges in memory, twelve bytes
//! each; those that do not fit go to a scratch file with the parents they lack, which is read instead of the log the next
//! time. Each reading places more and leaves a shorter file.
//!
//! Of the events that waited, those that others refer to come first, round by round; the others, which are nearly all of a
//! room's state, come last. Each round is in the order of arrival, which is that of the bodies on disk: what is later read
//! in the order of its numbers is read as it lies.
//!
//! Events in a cycle, or above a reference to an event that was never sent, get no place: they cannot be accepted.
//!
//! Reading order: this file, `intern.rs`, `sort.rs`.

mod intern;
mod sort;

use std::path::PathBuf;

use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;

use crate::budget::spill::{self, Spill, SpillError, SpillReader};
use crate::budget::{Account, Budget, Grant, Refused};
use crate::store;

pub use intern::{Intern, NODES_MAX, Node, Seen};
pub use sort::{BYTES_MIN as SORTER_BYTES_MIN, Sorted, Sorter, take_up_to};

/// The room to work in: memory on the `join` account, and scratch files when that is not enough.
#[derive(Clone)]
pub struct Scratch {
    pub memory: Account,
    pub disk: Account,
    pub folder: PathBuf,
}

impl Scratch {
    pub fn new(budget: &Budget, folder: PathBuf) -> Scratch {
        Scratch { memory: budget.account("join"), disk: budget.account("spill_disk"), folder }
    }

    #[cfg(test)]
    pub fn for_tests() -> Scratch {
        Scratch::new(&Budget::for_tests(), std::env::temp_dir())
    }
}

/// Why the events have no order.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Spill(SpillError),
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Its events refer to each other in more rounds than `PASSES_MAX` readings can follow in the memory there is.
    #[error("the events of the room cannot be put in order within this server's memory budget")]
    TooTangled,
}

/// The log written while the events came in, readable as often as needed.
pub trait Log {
    /// Visits each event in arrival order: its node and its parents'.
    fn events(&mut self, visit: &mut dyn FnMut(Node, &[Node]) -> Result<(), OrderError>) -> Result<(), OrderError>;
    /// Visits each node with the id it stands for.
    fn ids(&mut self, visit: &mut dyn FnMut(Node, &[u8]) -> Result<(), OrderError>) -> Result<(), OrderError>;
}

/// The outcome for a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its place in the order, from 0; every parent's is smaller.
    Placed(u32),
    /// An event refers to it, but it was not sent.
    Missing,
    /// It is in a cycle, or above a missing event.
    Stuck,
}

/// Readings before giving up. A log in sending order takes one; a shuffled one takes about half its longest chain of
/// parents, and only as long as its edges do not fit in memory.
const PASSES_MAX: usize = 1000;
/// An edge that waits: parent, child, and the child's place in the queue once it is free.
const EDGE_BYTES: u64 = 12;
const EDGES_MIN: usize = 64;

/// A waiting event's slot: how many parents it lacks, and its turn among the events that the reading showed.
const LACKING_BITS: u32 = 7;
const LACKING: u32 = (1 << LACKING_BITS) - 1;
/// Events that arrive later share the last turn.
const TURN_MAX: u32 = (1 << (30 - LACKING_BITS)) - 1;

const TAGS: u32 = 3 << 30;
const WAITING: u32 = 1 << 30;
const DOUBLE: u32 = 2 << 30;
const PLACED: u32 = 3 << 30;

/// Places in the order by node. Four bytes a node, on the `join` account.
pub struct Order {
    /// Two tag bits: nothing known (0), waiting for parents, double of node n, placed as n.
    slots: Vec<u32>,
    count: u32,
    passes: usize,
    _grant: Grant,
}

impl Order {
    /// Orders a log of `nodes` nodes. `forgetful`: ids may have several nodes, which are merged first, told apart by
    /// a hash under this key.
    pub fn of(
        log: &mut impl Log,
        nodes: u32,
        forgetful: Option<[u8; 16]>,
        scratch: &Scratch,
    ) -> Result<Order, OrderError> {
        let grant = scratch.memory.try_take(u64::from(nodes) * 4)?;
        let mut order = Order { slots: vec![0; nodes as usize], count: 0, passes: 0, _grant: grant };
        if let Some(key) = forgetful {
            order.merge_doubles(log, key, scratch)?;
        }
        let _buffers = scratch.memory.try_take(2 * spill::BUFFER_BYTES as u64)?;
        let mut late = order.pass(scratch, &mut |visit| log.events(visit))?;
        while let Some(file) = late {
            if order.passes == PASSES_MAX {
                return Err(OrderError::TooTangled);
            }
            let mut file = file.into_reader()?;
            late = order.pass(scratch, &mut |visit| read_late(&mut file, visit))?;
        }
        Ok(order)
    }

    /// How many events have a place.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// How often the log, or the rest of it, was read.
    pub fn passes(&self) -> usize {
        self.passes
    }

    /// The one node for all doubles of an id.
    pub fn canonical(&self, node: Node) -> Node {
        let slot = self.slots[node as usize];
        if slot & TAGS == DOUBLE { slot & !TAGS } else { node }
    }

    pub fn fate(&self, node: Node) -> Fate {
        let slot = self.slots[self.canonical(node) as usize];
        match slot & TAGS {
            PLACED => Fate::Placed(slot & !TAGS),
            WAITING => Fate::Stuck,
            _ => Fate::Missing,
        }
    }

    /// The place of a node that has one.
    pub fn place(&self, node: Node) -> Option<u32> {
        match self.fate(node) {
            Fate::Placed(place) => Some(place),
            _ => None,
        }
    }

    /// Nodes whose events were not sent, smallest first.
    pub fn missing(&self) -> impl Iterator<Item = Node> + '_ {
        self.slots.iter().enumerate().filter(|(_, slot)| **slot == 0).map(|(node, _)| node as Node)
    }

    /// Reads once: places every event that can be placed, and those that wait for it as far as memory reaches. Answers
    /// the file to read the next time; none when no more events can be placed.
    fn pass(&mut self, scratch: &Scratch, events: &mut Events<'_>) -> Result<Option<Spill>, OrderError> {
        let count_before = self.count;
        self.passes += 1;
        let mut edges = Edges::new(&scratch.memory)?;
        let (mut late, mut turn): (Option<Spill>, u32) = (None, 0);
        events(&mut |node, parents| {
            turn = (turn + 1).min(TURN_MAX);
            if self.look_at(node, parents, turn, &mut edges) {
                return Ok(());
            }
            if late.is_none() {
                late = Some(Spill::create(&scratch.folder, &scratch.disk)?);
            }
            self.put_off(node, parents, late.as_mut().expect("made above"))
        })?;
        self.release(&mut edges);
        let Some(mut late) = late else { return Ok(None) };
        if self.count == count_before {
            return Ok(None); // an event that lacks no parent would have found its place
        }
        edges.list.sort_unstable_by_key(|&(parent, child)| (child, parent));
        let mut parents = Vec::new();
        for family in edges.list.chunk_by(|one, next| one.1 == next.1) {
            let child = family[0].1;
            if self.slots[child as usize] & TAGS == WAITING {
                parents.clear();
                parents.extend(family.iter().map(|edge| edge.0));
                self.put_off(child, &parents, &mut late)?;
            }
        }
        self.forget_waiting();
        Ok(Some(late))
    }

    /// False when the event has to be looked at once more.
    fn look_at(&mut self, node: Node, parents: &[Node], turn: u32, edges: &mut Edges) -> bool {
        let node = self.canonical(node);
        if self.slots[node as usize] != 0 {
            return true; // placed by an earlier reading, or the second copy of one event
        }
        let (mut waiting, before) = (0, edges.list.len());
        for parent in parents.iter().map(|parent| self.canonical(*parent)) {
            if self.slots[parent as usize] & TAGS == PLACED {
                continue;
            }
            // No event that was let in here has so many.
            if waiting == LACKING || !edges.push(parent, node) {
                edges.list.truncate(before);
                self.slots[node as usize] = WAITING;
                return false;
            }
            waiting += 1;
        }
        if waiting == 0 {
            self.put_next(node);
        } else {
            self.slots[node as usize] = WAITING | turn << LACKING_BITS | waiting;
        }
        true
    }

    /// Writes down an event and which of its parents it waits for.
    fn put_off(&self, node: Node, parents: &[Node], late: &mut Spill) -> Result<(), OrderError> {
        let is_lacking = |parent: &Node| self.slots[*parent as usize] & TAGS != PLACED;
        let lacking = parents.iter().map(|parent| self.canonical(*parent)).filter(is_lacking);
        let frame: Vec<u8> = std::iter::once(node).chain(lacking).flat_map(u32::to_le_bytes).collect();
        Ok(late.append(&frame)?)
    }

    fn put_next(&mut self, node: Node) {
        self.slots[node as usize] = PLACED | self.count;
        self.count += 1;
    }

    /// Places the events whose parents have their places, round by round, and last those without children here. An edge
    /// that did not fit only keeps its child waiting.
    fn release(&mut self, edges: &mut Edges) {
        edges.list.sort_unstable();
        let mut free: Vec<Node> = Vec::with_capacity(edges.list.len());
        let mut from = 0;
        while from < edges.list.len() {
            let parent = edges.list[from].0;
            let children = edges.of(parent, from);
            if self.slots[parent as usize] & TAGS == PLACED {
                self.free_children(&edges.list[children.clone()], &mut free);
            }
            from = children.end;
        }
        let mut start = 0;
        while start < free.len() {
            let end = free.len();
            self.sort_by_turn(&mut free[start..end]);
            for at in start..end {
                let node = free[at];
                let from = edges.list.partition_point(|edge| edge.0 < node);
                let children = edges.of(node, from);
                if !children.is_empty() {
                    self.put_next(node);
                    self.free_children(&edges.list[children], &mut free);
                }
            }
            start = end;
        }
        free.retain(|node| self.slots[*node as usize] & TAGS == WAITING);
        self.sort_by_turn(&mut free);
        for node in free {
            self.put_next(node);
        }
    }

    fn sort_by_turn(&self, waiting: &mut [Node]) {
        waiting.sort_unstable_by_key(|node| (self.slots[*node as usize], *node));
    }

    fn free_children(&mut self, edges: &[(Node, Node)], free: &mut Vec<Node>) {
        for &(_, child) in edges {
            let slot = &mut self.slots[child as usize];
            *slot -= 1;
            if *slot & LACKING == 0 {
                free.push(child);
            }
        }
    }

    fn forget_waiting(&mut self) {
        for slot in self.slots.iter_mut().filter(|slot| **slot & TAGS == WAITING) {
            *slot = 0;
        }
    }

    /// Points every further node of an id at its first one: an external sort by a keyed hash of the id.
    fn merge_doubles(&mut self, log: &mut impl Log, key: [u8; 16], scratch: &Scratch) -> Result<(), OrderError> {
        let bytes = u64::from(self.slots.len() as u32) * 48;
        let mut sorter = Sorter::new(scratch, bytes)?;
        log.ids(&mut |node, id| {
            let mut hasher = SipHasher13::new_with_key(&key);
            hasher.write(id);
            let mut record = [0; 20];
            record[..16].copy_from_slice(&hasher.finish128().as_bytes());
            record[16..].copy_from_slice(&node.to_be_bytes());
            sorter.push(&record)
        })?;
        let mut sorted = sorter.finish()?;
        let mut first = ([0u8; 16], 0u32);
        let mut is_any = false;
        while let Some(record) = sorted.next()? {
            let (hash, node) = record.split_at(16);
            let node = Node::from_be_bytes(node.try_into().expect("records of doubles have 20 bytes"));
            if is_any && first.0 == hash {
                if node != first.1 {
                    self.slots[node as usize] = DOUBLE | first.1;
                }
            } else {
                first = (hash.try_into().expect("records of doubles have 20 bytes"), node);
                is_any = true;
            }
        }
        Ok(())
    }
}

/// Shows each event to its visitor, with its parents.
type Events<'a> = dyn FnMut(&mut dyn FnMut(Node, &[Node]) -> Result<(), OrderError>) -> Result<(), OrderError> + 'a;

fn read_late(
    file: &mut SpillReader,
    visit: &mut dyn FnMut(Node, &[Node]) -> Result<(), OrderError>,
) -> Result<(), OrderError> {
    let (mut frame, mut nodes) = (Vec::new(), Vec::new());
    while file.next(&mut frame)? {
        nodes.clear();
        nodes.extend(frame.as_chunks::<4>().0.iter().map(|node| Node::from_le_bytes(*node)));
        if let Some((node, parents)) = nodes.split_first() {
            visit(*node, parents)?;
        }
    }
    Ok(())
}

/// Edges whose parent has no place yet, as many as the account pays for.
struct Edges {
    list: Vec<(Node, Node)>,
    may_grow: bool,
    grant: Grant,
}

impl Edges {
    fn new(memory: &Account) -> Result<Edges, Refused> {
        let grant = memory.try_take(EDGES_MIN as u64 * EDGE_BYTES)?;
        Ok(Edges { list: Vec::with_capacity(EDGES_MIN), may_grow: true, grant })
    }

    /// False when there is no room for it.
    fn push(&mut self, parent: Node, child: Node) -> bool {
        if self.list.len() == self.list.capacity() && !(self.may_grow && self.grow()) {
            self.may_grow = false;
            return false;
        }
        self.list.push((parent, child));
        true
    }

    /// Half as large again; old and new are on account while they are both there.
    fn grow(&mut self) -> bool {
        let capacity = self.list.capacity();
        let larger = capacity + capacity / 2;
        if self.grant.grow(larger as u64 * EDGE_BYTES).is_err() {
            return false;
        }
        self.list.reserve_exact(larger - self.list.len());
        self.grant.shrink(capacity as u64 * EDGE_BYTES);
        true
    }

    /// The edges of a parent, which begin at `from` if there are any.
    fn of(&self, parent: Node, from: usize) -> std::ops::Range<usize> {
        let count = self.list[from..].iter().take_while(|edge| edge.0 == parent).count();
        from..from + count
    }
}

impl From<SpillError> for OrderError {
    fn from(failed: SpillError) -> Self {
        match failed {
            SpillError::Refused(refused) => OrderError::Refused(refused),
            failed => OrderError::Spill(failed),
        }
    }
}

#[cfg(test)]
mod tests;

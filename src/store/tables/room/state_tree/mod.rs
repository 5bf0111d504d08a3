//! States of rooms: trees from state key to event that share their common parts.
//!
//! A state never changes: [`set`] answers a new tree that shares all but a path with the old one. A node is a row under
//! a small number and is stored once, whatever trees it is part of (an index leads from a keyed hash of its bytes to
//! its number, and the bytes are compared). The shape of a tree follows from its content alone, so equal content gives
//! an equal [`Root`], and two trees are compared by reading only the nodes that differ.
//!
//! The shape: up to [`LEAF_MAX`] entries are a leaf; more are a branch on the highest hexadecimal digit of the key in
//! which any two of them differ, with up to sixteen children of one entry or more. State keys of one room have
//! neighbouring numbers for the most part, so leaves are nearly full. In a tree of 85,000 entries a change writes one
//! leaf and four branches.
//!
//! Every step down lowers the digit, which bounds all recursion here by eight.

pub mod sweep;

use std::ops::ControlFlow;
use std::rc::Rc;

use super::event;
use super::event_row::Root;
use crate::store::row_encoding::{Unpack, put_i64, put_u64};
use crate::store::schema::{STATE_NAME, STATE_NODE};
use crate::store::{Error, EventNum, Get, Result, StateKeyNum, Write};

/// Entries of a leaf at most. Twice the sixteen that a leaf of neighbouring keys has, for the sake of small rooms.
const LEAF_MAX: usize = 32;

/// Numbers a [`Builder`] sets aside at a time.
const NUMBERS_AT_A_TIME: u32 = 256;

/// One entry of a state: the event that is in force for a type and state key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: StateKeyNum,
    pub event: EventNum,
}

/// Called with a key that differs and the event each state has there; breaks to stop.
pub type ConflictVisitor<'v> = &'v mut dyn FnMut(StateKeyNum, &[Option<EventNum>]) -> Result<ControlFlow<()>>;

/// Called with a key, its old event and its new one; breaks to stop.
pub type DiffVisitor<'v> =
    &'v mut dyn FnMut(StateKeyNum, Option<EventNum>, Option<EventNum>) -> Result<ControlFlow<()>>;

/// The number of (type, state key), when any event ever used it.
pub fn key(get: &impl Get, kind: &str, state_key: &str) -> Result<Option<StateKeyNum>> {
    event::state_key(get, kind, state_key)
}

/// The number of (type, state key), given out now when it had none.
pub fn intern_key(w: &mut Write, kind: &str, state_key: &str) -> Result<StateKeyNum> {
    event::intern_state_key(w, kind, state_key)
}

/// The event a state has for a key.
pub fn get(reads: &impl Get, root: Root, key: StateKeyNum) -> Result<Option<EventNum>> {
    let mut node = load(reads, root.0)?;
    loop {
        match node {
            Node::Leaf(entries) => {
                let found = entries.binary_search_by_key(&key, |entry| entry.key);
                return Ok(found.ok().map(|at| entries[at].event));
            }
            Node::Branch(branch) => match branch.child_for(key) {
                Some(child) => node = load_below(reads, child, branch.level)?,
                None => return Ok(None),
            },
        }
    }
}

/// The state after `changes`: an event put in force for a key, or none (`None`). In any order; of two changes to one
/// key the later holds. The changes are in memory, so they are a batch and not a room; see [`Builder`].
pub fn set(w: &mut Write, root: Option<Root>, changes: &[(StateKeyNum, Option<EventNum>)]) -> Result<Root> {
    let mut sorted: Vec<Change> = changes.to_vec();
    sorted.sort_by_key(|(key, _)| *key);
    // Of equal keys the last stays: the dropped one is overwritten first.
    sorted.dedup_by(|later, kept| {
        let same = later.0 == kept.0;
        if same {
            kept.1 = later.1;
        }
        same
    });
    let from = root.map_or(Base::Nothing, |root| Base::Node(root.0));
    let mut nodes = Nodes { w, numbers: 0..0, at_a_time: 1 };
    let done = nodes.apply(from, &sorted)?;
    nodes.store(done).map(Root)
}

/// Appends the entries behind `after` to `out` in order of their keys, `max` at most. True when the end was reached.
pub fn page(
    reads: &impl Get,
    root: Root,
    after: Option<StateKeyNum>,
    max: usize,
    out: &mut Vec<Entry>,
) -> Result<bool> {
    let from = match after {
        None => StateKeyNum(0),
        Some(StateKeyNum(u32::MAX)) => return Ok(true),
        Some(after) => StateKeyNum(after.0 + 1),
    };
    let node = load(reads, root.0)?;
    page_of(reads, node, from, out.len().saturating_add(max), out)
}

fn page_of(reads: &impl Get, node: Node, from: StateKeyNum, full: usize, out: &mut Vec<Entry>) -> Result<bool> {
    match node {
        Node::Leaf(entries) => {
            let rest = &entries[entries.partition_point(|entry| entry.key < from)..];
            let taken = rest.len().min(full.saturating_sub(out.len()));
            out.extend_from_slice(&rest[..taken]);
            Ok(taken == rest.len())
        }
        Node::Branch(branch) => {
            for &(digit, child) in &branch.children {
                if branch.child_end(digit) < from {
                    continue;
                }
                if !page_of(reads, load_below(reads, child, branch.level)?, from, full, out)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
    }
}

/// Visits the keys whose event differs between two states, in order. `None` is the empty state.
pub fn diff(reads: &impl Get, before: Option<Root>, after: Option<Root>, visit: DiffVisitor) -> Result<()> {
    conflicts(reads, &[before, after], &mut |key, events| visit(key, events[0], events[1]))
}

/// Visits the keys on which the states do not all agree, in order, with the event each has. Reads only the nodes that
/// are not common to all; holds eight nodes of each state at most.
pub fn conflicts(reads: &impl Get, roots: &[Option<Root>], visit: ConflictVisitor) -> Result<()> {
    let views = roots.iter().map(|root| root.map_or(View::Nothing, |root| View::Node(root.0))).collect();
    walk(reads, views, 8, visit).map(drop)
}

/// One state's part of a range of keys.
#[derive(Clone)]
enum View {
    Nothing,
    Node(u32),
    Branch(u32, Rc<Branch>),
    Entries(Rc<Vec<Entry>>, usize, usize),
}

impl View {
    fn entries(&self) -> &[Entry] {
        match self {
            View::Entries(entries, from, to) => &entries[*from..*to],
            _ => &[],
        }
    }

    fn is_same(&self, other: &View) -> bool {
        match (self, other) {
            (View::Nothing, View::Nothing) => true,
            (View::Node(one) | View::Branch(one, _), View::Node(other) | View::Branch(other, _)) => one == other,
            (View::Entries(..), View::Entries(..)) => self.entries() == other.entries(),
            _ => false,
        }
    }

    /// The first and the last key it can have.
    fn span(&self) -> Option<(u32, u32)> {
        match self {
            View::Branch(_, branch) => Some(branch.span()),
            View::Entries(..) => Some((self.entries().first()?.key.0, self.entries().last()?.key.0)),
            View::Nothing | View::Node(_) => None,
        }
    }

    /// The part of it under the keys with `digit` at `level`; its span lies within one such branch.
    fn part(&self, level: u8, digit: u8) -> View {
        match self {
            View::Branch(_, branch) if branch.level == level => branch.child(digit).map_or(View::Nothing, View::Node),
            View::Branch(_, branch) if digit_of(branch.span().0, level) == digit => self.clone(),
            View::Entries(all, from, to) => {
                let slice = &all[*from..*to];
                let start = from + slice.partition_point(|entry| digit_of(entry.key.0, level) < digit);
                let end = from + slice.partition_point(|entry| digit_of(entry.key.0, level) <= digit);
                if start < end { View::Entries(all.clone(), start, end) } else { View::Nothing }
            }
            _ => View::Nothing,
        }
    }
}

/// Views of the states over one range of keys, of which digits below `above` are still open.
fn walk(reads: &impl Get, mut views: Vec<View>, above: u8, visit: ConflictVisitor) -> Result<ControlFlow<()>> {
    if views.windows(2).all(|pair| pair[0].is_same(&pair[1])) {
        return Ok(ControlFlow::Continue(()));
    }
    open(reads, &mut views, above)?;
    let level =
        views.iter().filter_map(|view| if let View::Branch(_, branch) = view { Some(branch.level) } else { None });
    let Some(level) = level.max() else { return merge(&views, visit) };
    let spans = views.iter().filter_map(View::span);
    let (first, last) = spans.fold((u32::MAX, 0), |all, span| (all.0.min(span.0), all.1.max(span.1)));
    let level = level.max(level_of(first, last));
    for digit in 0..16 {
        let parts = views.iter().map(|view| view.part(level, digit)).collect();
        if walk(reads, parts, level, visit)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Reads the nodes among the views, each only once.
fn open(reads: &impl Get, views: &mut [View], above: u8) -> Result<()> {
    for at in 0..views.len() {
        let View::Node(num) = views[at] else { continue };
        let opened = match load_below(reads, num, above)? {
            Node::Branch(branch) => View::Branch(num, Rc::new(branch)),
            Node::Leaf(entries) => {
                let count = entries.len();
                View::Entries(Rc::new(entries), 0, count)
            }
        };
        for view in &mut views[at..] {
            if matches!(view, View::Node(other) if *other == num) {
                *view = opened.clone();
            }
        }
    }
    Ok(())
}

/// Visits the differences between views that are all entries.
fn merge(views: &[View], visit: ConflictVisitor) -> Result<ControlFlow<()>> {
    let mut rests: Vec<&[Entry]> = views.iter().map(View::entries).collect();
    let mut events = Vec::with_capacity(rests.len());
    while let Some(key) = rests.iter().filter_map(|rest| rest.first()).map(|entry| entry.key).min() {
        events.clear();
        for rest in &mut rests {
            match rest.split_first() {
                Some((entry, after)) if entry.key == key => {
                    events.push(Some(entry.event));
                    *rest = after;
                }
                _ => events.push(None),
            }
        }
        if events.windows(2).any(|pair| pair[0] != pair[1]) && visit(key, &events)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Makes a whole tree from entries in rising order of their keys, handed over batch by batch, each batch in a write of
/// its own. No row refers to the stored nodes until one names the finished root: after a power cut or a refusal the
/// build starts again and finds the nodes it stored then. Holds eight branches of unfinished leaves, 32 KiB at most.
#[derive(Default)]
pub struct Builder {
    /// Parts of the branches that are not complete yet; `open[level]` are children of a branch at that level.
    open: [Vec<(u8, Sub)>; 8],
    /// Entries whose keys share all digits but the last.
    leaf: Vec<Entry>,
    /// Numbers set aside and not used yet.
    numbers: std::ops::Range<u32>,
}

impl Builder {
    /// Adds the next entries; their keys rise, over all batches.
    pub fn push(&mut self, w: &mut Write, entries: &[Entry]) -> Result<()> {
        let mut nodes = Nodes { w, numbers: self.numbers.clone(), at_a_time: NUMBERS_AT_A_TIME };
        for &entry in entries {
            if let Some(last) = self.leaf.last().map(|last| last.key) {
                assert!(last < entry.key, "entries are added in order of their keys");
                let level = level_of(last.0, entry.key.0);
                close(&mut nodes, &mut self.open, &mut self.leaf, last, level)?;
            }
            self.leaf.push(entry);
        }
        self.numbers = nodes.numbers;
        Ok(())
    }

    /// Completes the tree.
    pub fn finish(mut self, w: &mut Write) -> Result<Root> {
        let mut nodes = Nodes { w, numbers: self.numbers.clone(), at_a_time: NUMBERS_AT_A_TIME };
        let last = self.leaf.last().map_or(StateKeyNum(0), |last| last.key);
        close(&mut nodes, &mut self.open, &mut self.leaf, last, 8)?;
        let whole = self.open[7].pop().map_or(Sub::Leaf(Vec::new()), |(_, sub)| sub);
        nodes.store(whole).map(Root)
    }
}

/// Completes the branches below `level`, which have had all their keys, and makes them a child at `level`.
fn close(
    nodes: &mut Nodes,
    open: &mut [Vec<(u8, Sub)>; 8],
    leaf: &mut Vec<Entry>,
    last: StateKeyNum,
    level: u8,
) -> Result<()> {
    if level == 0 {
        return Ok(());
    }
    let mut sub = Sub::Leaf(std::mem::take(leaf));
    for at in 1..level {
        open[at as usize].push((digit_of(last.0, at), sub));
        let children = std::mem::take(&mut open[at as usize]);
        sub = nodes.combine(at, last, children, false)?;
    }
    // Level 8 is the whole tree; its only part is in the last place.
    let place = level.min(7);
    open[place as usize].push((digit_of(last.0, place), sub));
    Ok(())
}

type Change = (StateKeyNum, Option<EventNum>);

/// A part of a tree that is being made.
enum Sub {
    /// [`LEAF_MAX`] entries at most, not stored: they may yet become part of a larger leaf.
    Leaf(Vec<Entry>),
    /// A stored branch.
    Branch(u32),
    /// A stored node of the tree before, whichever it is.
    Kept(u32),
}

/// The input of a changed part of a tree.
#[derive(Clone, Copy)]
enum Base {
    Nothing,
    Node(u32),
}

/// Makes nodes.
struct Nodes<'n, 't> {
    w: &'n mut Write<'t>,
    /// Numbers set aside and not used yet.
    numbers: std::ops::Range<u32>,
    at_a_time: u32,
}

impl Nodes<'_, '_> {
    /// A part of a tree with changes made to it. They are sorted and not repeated.
    fn apply(&mut self, from: Base, changes: &[Change]) -> Result<Sub> {
        let (num, branch) = match from {
            Base::Nothing => return self.build(changed(&[], changes)),
            Base::Node(num) if changes.is_empty() => return Ok(Sub::Kept(num)),
            Base::Node(num) => match load(self.w, num)? {
                Node::Leaf(entries) => return self.build(changed(&entries, changes)),
                Node::Branch(branch) => (num, branch),
            },
        };
        // The changes may lie outside the keys the branch covers: then it is a part of a higher one.
        let (first, last) = branch.span();
        let lowest = changes.first().map_or(first, |change| change.0.0.min(first));
        let highest = changes.last().map_or(last, |change| change.0.0.max(last));
        let level = branch.level.max(level_of(lowest, highest));
        let mut children = Vec::with_capacity(16);
        let mut rest = changes;
        for digit in 0..16 {
            let of_digit = rest.partition_point(|change| digit_of(change.0.0, level) <= digit);
            let (here, after) = rest.split_at(of_digit);
            rest = after;
            let from = match () {
                () if level == branch.level => branch.child(digit).map_or(Base::Nothing, Base::Node),
                () if digit_of(first, level) == digit => Base::Node(num),
                () => Base::Nothing,
            };
            match from {
                Base::Nothing if here.is_empty() => {}
                Base::Node(child) if here.is_empty() => children.push((digit, Sub::Kept(child))),
                from => children.push((digit, self.apply(from, here)?)),
            }
        }
        let shrinks = changes.iter().any(|change| change.1.is_none());
        self.combine(level, StateKeyNum(lowest), children, shrinks)
    }

    /// A part of a tree of these entries.
    fn build(&mut self, entries: Vec<Entry>) -> Result<Sub> {
        if entries.len() <= LEAF_MAX {
            return Ok(Sub::Leaf(entries));
        }
        let some_key = entries[0].key;
        let level = level_of(some_key.0, entries[entries.len() - 1].key.0);
        let mut children = Vec::with_capacity(16);
        for part in entries.chunk_by(|one, next| digit_of(one.key.0, level) == digit_of(next.key.0, level)) {
            children.push((digit_of(part[0].key.0, level), self.build(part.to_vec())?));
        }
        self.combine(level, some_key, children, false)
    }

    /// Makes one part of those below it. `some_key` is any key of its range; `shrinks`: kept parts may now be few
    /// enough for a leaf.
    fn combine(
        &mut self,
        level: u8,
        some_key: StateKeyNum,
        mut children: Vec<(u8, Sub)>,
        shrinks: bool,
    ) -> Result<Sub> {
        children.retain(|(_, sub)| !matches!(sub, Sub::Leaf(entries) if entries.is_empty()));
        if children.len() <= 1 {
            return Ok(children.pop().map_or(Sub::Leaf(Vec::new()), |(_, sub)| sub));
        }
        if let Some(leaf) = self.as_leaf(&children, shrinks)? {
            return Ok(Sub::Leaf(leaf));
        }
        let mut stored = Vec::with_capacity(children.len());
        for (digit, sub) in children {
            stored.push((digit, self.store(sub)?));
        }
        let branch = Branch { level, prefix: above(some_key.0, level), children: stored };
        self.intern(&branch.encode()).map(Sub::Branch)
    }

    /// The entries of the parts when they are few enough.
    fn as_leaf(&self, children: &[(u8, Sub)], shrinks: bool) -> Result<Option<Vec<Entry>>> {
        let mut all = Vec::with_capacity(LEAF_MAX);
        for (_, sub) in children {
            match sub {
                Sub::Leaf(entries) => all.extend_from_slice(entries),
                Sub::Kept(num) if shrinks => match load(self.w, *num)? {
                    Node::Leaf(entries) => all.extend_from_slice(&entries),
                    Node::Branch(_) => return Ok(None),
                },
                // A new branch has too many entries, and so has a kept branch when the tree only grew.
                Sub::Branch(_) | Sub::Kept(_) => return Ok(None),
            }
            if all.len() > LEAF_MAX {
                return Ok(None);
            }
        }
        Ok(Some(all))
    }

    fn store(&mut self, sub: Sub) -> Result<u32> {
        match sub {
            Sub::Leaf(entries) => self.intern(&encode_leaf(&entries)),
            Sub::Branch(num) | Sub::Kept(num) => Ok(num),
        }
    }

    /// The number of a node: the one it has, or a new one.
    fn intern(&mut self, node: &[u8]) -> Result<u32> {
        let name = name(self.w, node);
        if let Some(value) = self.w.get(&STATE_NAME, &name)? {
            let num = num_of(&value).ok_or_else(|| Error::corrupt(&STATE_NAME, &name))?;
            let mut same = false;
            self.w.with(&STATE_NODE, &num.to_be_bytes(), &mut |stored| same = stored == node)?;
            // With 2^32 nodes two may share a name; the later one then takes it over.
            if same {
                sweep::note_use(self.w, num)?;
                return Ok(num);
            }
        }
        if self.numbers.is_empty() {
            let first = self.w.next_numbers("state_node", self.at_a_time)?;
            self.numbers = first..first + self.at_a_time;
        }
        let num = self.numbers.start;
        self.numbers.start += 1;
        self.w.put(&STATE_NODE, &num.to_be_bytes(), node)?;
        self.w.put(&STATE_NAME, &name, &num.to_be_bytes())?;
        Ok(num)
    }
}

/// The key of a node in the index. Eight bytes are enough for a hash, since every hit is compared.
fn name(get: &impl Get, node: &[u8]) -> [u8; 8] {
    let hash = get.hash128(&[node]);
    std::array::from_fn(|at| hash[at])
}

fn num_of(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// Entries with changes made to them; both are sorted.
fn changed(entries: &[Entry], changes: &[Change]) -> Vec<Entry> {
    let mut out = Vec::with_capacity(entries.len() + changes.len());
    let mut entries = entries.iter().peekable();
    for &(key, event) in changes {
        while let Some(entry) = entries.next_if(|entry| entry.key < key) {
            out.push(*entry);
        }
        entries.next_if(|entry| entry.key == key);
        out.extend(event.map(|event| Entry { key, event }));
    }
    out.extend(entries);
    out
}

// ---- nodes -------------------------------------------------------------------------------------------------------

enum Node {
    Leaf(Vec<Entry>),
    Branch(Branch),
}

/// A node with two children or more.
struct Branch {
    /// Which hexadecimal digit of the key it branches on; 0 is the lowest.
    level: u8,
    /// The digits above, which all its keys share.
    prefix: u32,
    /// In order of the digit.
    children: Vec<(u8, u32)>,
}

impl Branch {
    fn child(&self, digit: u8) -> Option<u32> {
        let found = self.children.binary_search_by_key(&digit, |child| child.0);
        found.ok().map(|at| self.children[at].1)
    }

    fn child_for(&self, key: StateKeyNum) -> Option<u32> {
        if above(key.0, self.level) == self.prefix { self.child(digit_of(key.0, self.level)) } else { None }
    }

    /// The first and the last key it can have.
    fn span(&self) -> (u32, u32) {
        let first = self.prefix.checked_shl(u32::from(self.level) * 4 + 4).unwrap_or(0);
        (first, first | below_mask(self.level + 1))
    }

    /// The last key the child of a digit can have.
    fn child_end(&self, digit: u8) -> StateKeyNum {
        StateKeyNum(self.span().0 | u32::from(digit) << (self.level * 4) | below_mask(self.level))
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + self.children.len() * 3);
        out.push(self.level);
        put_u64(&mut out, self.prefix.into());
        let bits = self.children.iter().fold(0u16, |bits, (digit, _)| bits | 1 << digit);
        out.extend_from_slice(&bits.to_le_bytes());
        put_rising_and_falling(&mut out, self.children.iter().map(|child| child.1));
        out
    }
}

/// First byte of a leaf whose keys differ in the last digit alone: the other digits, a bit for each key, the events.
const DENSE: u8 = 0x10;
/// First byte of any other leaf: the number of entries, the steps from key to key, the events.
const SPARSE: u8 = 0x11;

fn encode_leaf(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + entries.len() * 4);
    let ends = entries.first().zip(entries.last());
    match ends.filter(|(first, last)| first.key.0 >> 4 == last.key.0 >> 4) {
        Some((first, _)) => {
            out.push(DENSE);
            put_u64(&mut out, (first.key.0 >> 4).into());
            let bits = entries.iter().fold(0u16, |bits, entry| bits | 1 << (entry.key.0 & 15));
            out.extend_from_slice(&bits.to_le_bytes());
        }
        None => {
            out.push(SPARSE);
            put_u64(&mut out, entries.len() as u64);
            let mut next = 0;
            for entry in entries {
                put_u64(&mut out, u64::from(entry.key.0) - next);
                next = u64::from(entry.key.0) + 1;
            }
        }
    }
    put_rising_and_falling(&mut out, entries.iter().map(|entry| entry.event.0));
    out
}

/// Numbers that are near each other more often than not: each as its step from the one before.
fn put_rising_and_falling(out: &mut Vec<u8>, numbers: impl Iterator<Item = u32>) {
    let mut before = 0;
    for number in numbers {
        put_i64(out, i64::from(number) - before);
        before = i64::from(number);
    }
}

fn take_rising_and_falling(unpack: &mut Unpack, count: usize) -> Option<Vec<u32>> {
    let mut before = 0i64;
    let mut numbers = Vec::with_capacity(count);
    for _ in 0..count {
        before = before.checked_add(unpack.i64()?)?;
        numbers.push(u32::try_from(before).ok()?);
    }
    unpack.is_empty().then_some(numbers)
}

fn decode(row: &[u8]) -> Option<Node> {
    let mut unpack = Unpack::new(row);
    let first = unpack.u8()?;
    let keys: Vec<u32> = match first {
        0..8 => {
            let prefix = unpack.u32()?;
            let digits = take_digits(&mut unpack)?;
            let numbers = take_rising_and_falling(&mut unpack, digits.len())?;
            let children = digits.into_iter().zip(numbers).collect();
            return Some(Node::Branch(Branch { level: first, prefix, children }));
        }
        DENSE => {
            let upper = unpack.u32()?;
            take_digits(&mut unpack)?.into_iter().map(|digit| upper << 4 | u32::from(digit)).collect()
        }
        SPARSE => {
            let count = usize::try_from(unpack.u64()?).ok().filter(|count| *count <= LEAF_MAX)?;
            let mut next = 0u64;
            let mut keys = Vec::with_capacity(count);
            for _ in 0..count {
                let key = u32::try_from(next.checked_add(unpack.u64()?)?).ok()?;
                next = u64::from(key) + 1;
                keys.push(key);
            }
            keys
        }
        _ => return None,
    };
    let events = take_rising_and_falling(&mut unpack, keys.len())?;
    let entry = |(key, event)| Entry { key: StateKeyNum(key), event: EventNum(event) };
    Some(Node::Leaf(keys.into_iter().zip(events).map(entry).collect()))
}

fn take_digits(unpack: &mut Unpack) -> Option<Vec<u8>> {
    let bits = u16::from_le_bytes(unpack.array()?);
    Some((0..16).filter(|digit| bits & 1 << digit != 0).collect())
}

fn load(reads: &impl Get, num: u32) -> Result<Node> {
    load_below(reads, num, 8)
}

/// Reads a node that stands below a branch at a level. Its own level must be lower, so that no cycle is followed.
fn load_below(reads: &impl Get, num: u32, above: u8) -> Result<Node> {
    let key = num.to_be_bytes();
    let mut node = None;
    reads.with(&STATE_NODE, &key, &mut |row| node = decode(row))?;
    node.filter(|node| !matches!(node, Node::Branch(branch) if branch.level >= above))
        .ok_or_else(|| Error::corrupt(&STATE_NODE, &key))
}

/// The highest digit in which two keys differ.
fn level_of(one: u32, other: u32) -> u8 {
    ((31 - ((one ^ other) | 1).leading_zeros()) / 4) as u8
}

fn digit_of(key: u32, level: u8) -> u8 {
    (key >> (level * 4)) as u8 & 15
}

/// The digits above a level.
fn above(key: u32, level: u8) -> u32 {
    key.checked_shr(u32::from(level) * 4 + 4).unwrap_or(0)
}

/// The bits of the digits below a level.
fn below_mask(level: u8) -> u32 {
    1u32.checked_shl(u32::from(level) * 4).map_or(u32::MAX, |bit| bit - 1)
}

#[cfg(test)]
mod tests;

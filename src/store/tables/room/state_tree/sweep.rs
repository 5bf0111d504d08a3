//! Freeing the nodes that no state in use reaches.
//!
//! A sweep marks the nodes reached from the rows that name states, as of one snapshot, then frees the unmarked nodes in
//! small writes. Changes meanwhile are safe. New nodes have numbers from `limit` on, which the sweep leaves alone. A
//! node that is found by its name and used again is recorded (see `Nodes::intern`) before it could be freed. All other
//! nodes of a new tree are shared with a tree that was in use. The one danger is a tree that no row named yet when the
//! snapshot was taken. So a sweep waits between [`begin`] and the marking for longer than a procedure keeps such a tree
//! to itself, and does not begin while a join, which keeps one for minutes, is under way.
//!
//! A power cut leaves a row that says a sweep is under way; until [`give_up`] removes it, nodes used again are
//! recorded.

use std::ops::ControlFlow;

use super::{Node, load, name, num_of};
use crate::budget::{Grant, Refused};
use crate::store::schema::{EVENT, JOIN, ROOM, STATE_LOG, STATE_NAME, STATE_NODE, STATE_SWEEP, Table};
use crate::store::tables::room;
use crate::store::tables::room::event_row;
use crate::store::tables::room::event_row::Root;
use crate::store::{Error, EventNum, Get, Read, Result, RoomNum, Write};

// Longer than the numbers beside them.
const LIMIT_ROW: &[u8] = b"limit";
const DONE_ROW: &[u8] = b"limit_done";

/// Recorded numbers that an ending sweep forgets; more stay until a later one, and keep their nodes.
const FORGOTTEN_MAX: usize = 4096;

/// A sweep: marks, then frees. Holds one bit for each node ever made and a snapshot while it marks.
pub struct Sweep {
    limit: u32,
    marks: Vec<u64>,
    /// Gone when the marking is complete.
    marking: Option<Marking>,
    next: u32,
    freed: u64,
    _grant: Grant,
}

/// Where the marking stands: the table and the last row it looked at.
struct Marking {
    read: Read,
    table: usize,
    after: Option<Vec<u8>>,
}

/// The tables whose rows name states.
const NAMING: [&Table; 3] = [&ROOM, &STATE_LOG, &EVENT];

/// Nodes made since the last sweep ended: the most that could be freed.
pub fn made_since_last(get: &impl Get) -> Result<u32> {
    let done = get.get(&STATE_SWEEP, DONE_ROW)?.and_then(|value| num_of(&value)).unwrap_or(1);
    Ok(next_number(get)?.saturating_sub(done))
}

/// Nodes ever made: a sweep begun now leaves later ones alone.
pub fn made(get: &impl Get) -> Result<u32> {
    next_number(get)
}

/// Whether a sweep is declared, by this process or by one before a power cut.
pub fn is_declared(get: &impl Get) -> Result<bool> {
    get.has(&STATE_SWEEP, LIMIT_ROW)
}

/// Takes the declaration back. The recorded numbers stay: those nodes are kept once more, which does no harm.
pub fn give_up(w: &mut Write) -> Result<()> {
    w.remove(&STATE_SWEEP, LIMIT_ROW).map(drop)
}

/// Declares a sweep: from now on, nodes that are used again are recorded. Answers the first number that the sweep
/// leaves alone; `None` while a join is under way.
pub fn begin(w: &mut Write) -> Result<Option<u32>> {
    if w.first(&JOIN, &[], None, false)?.is_some() {
        return Ok(None);
    }
    let limit = next_number(w)?;
    w.put(&STATE_SWEEP, LIMIT_ROW, &limit.to_be_bytes())?;
    Ok(Some(limit))
}

/// Bytes of the grant a sweep needs.
pub fn bytes_needed(limit: u32) -> u64 {
    u64::from(limit).div_ceil(64) * 8
}

/// Called for each node that is found by its name: during a sweep, it is kept.
pub(super) fn note_use(w: &mut Write, num: u32) -> Result<()> {
    let limit = w.get(&STATE_SWEEP, LIMIT_ROW)?;
    if limit.and_then(|value| num_of(&value)).is_some_and(|limit| num < limit) {
        w.put(&STATE_SWEEP, &num.to_be_bytes(), &[])?;
    }
    Ok(())
}

impl Sweep {
    /// A sweep that was begun a while ago, over a snapshot taken since.
    pub fn over(read: Read, limit: u32, mut grant: Grant) -> Result<Sweep, Refused> {
        let missing = bytes_needed(limit).saturating_sub(grant.bytes());
        grant.grow(missing)?;
        let marks = vec![0; limit.div_ceil(64) as usize];
        let marking = Some(Marking { read, table: 0, after: None });
        Ok(Sweep { limit, marks, marking, next: 0, freed: 0, _grant: grant })
    }

    /// Looks at `rows_max` rows more and marks their states; true when all is marked. Between two rows of a table most
    /// states differ little, so a row costs little more than reading it.
    pub fn mark(&mut self, rows_max: usize) -> Result<bool> {
        let Some(mut marking) = self.marking.take() else { return Ok(true) };
        let mut rows = 0;
        while let Some(table) = NAMING.get(marking.table) {
            let from = marking.after.as_ref().map_or(Vec::new(), |after| [&after[..], &[0]].concat());
            let mut roots = Vec::new();
            let mut last = None;
            marking.read.range(table, &from, None, false, &mut |key, value| {
                if rows == rows_max {
                    return Ok(ControlFlow::Break(()));
                }
                rows += 1;
                roots.extend(root_of(table, key, value)?);
                roots.dedup();
                last = Some(key.to_vec());
                Ok(ControlFlow::Continue(()))
            })?;
            for Root(root) in roots {
                self.mark_tree(&marking.read, root)?;
            }
            if rows == rows_max {
                marking.after = last.or(marking.after);
                self.marking = Some(marking);
                return Ok(false);
            }
            (marking.table, marking.after) = (marking.table + 1, None);
        }
        Ok(true)
    }

    /// The tree's depth bounds the recursion; the number of nodes bounds all calls together.
    fn mark_tree(&mut self, read: &Read, num: u32) -> Result<()> {
        let (word, bit) = (num as usize / 64, 1u64 << (num % 64));
        match self.marks.get_mut(word).filter(|_| num < self.limit) {
            // Made after the sweep began: left alone, but its children may be older.
            None => {}
            Some(marks) if *marks & bit != 0 => return Ok(()),
            Some(marks) => *marks |= bit,
        }
        if let Node::Branch(branch) = load(read, num)? {
            for (_, child) in branch.children {
                self.mark_tree(read, child)?;
            }
        }
        Ok(())
    }

    /// Looks at `nodes_max` nodes more and frees those that are not marked; true when it has seen all, and the sweep is
    /// then over.
    pub fn free(&mut self, w: &mut Write, nodes_max: usize) -> Result<bool> {
        assert!(self.marking.is_none(), "nothing is freed before all is marked");
        let mut doomed = Vec::new();
        let mut seen = 0;
        let end = self.limit.to_be_bytes();
        w.range(&STATE_NODE, &self.next.to_be_bytes(), Some(&end), false, &mut |key, node| {
            if seen == nodes_max {
                return Ok(ControlFlow::Break(()));
            }
            seen += 1;
            let num = num_of(key).ok_or_else(|| Error::corrupt(&STATE_NODE, key))?;
            self.next = num + 1;
            if self.marks[num as usize / 64] & 1 << (num % 64) == 0 {
                doomed.push((num, name(w, node)));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        for (num, name) in doomed {
            let key = num.to_be_bytes();
            if w.has(&STATE_SWEEP, &key)? {
                continue;
            }
            w.remove(&STATE_NODE, &key)?;
            if w.get(&STATE_NAME, &name)?.is_some_and(|value| value == key) {
                w.remove(&STATE_NAME, &name)?;
            }
            self.freed += 1;
        }
        if seen == nodes_max {
            return Ok(false);
        }
        end_of(w, self.limit)?;
        Ok(true)
    }

    /// Nodes freed so far.
    pub fn freed(&self) -> u64 {
        self.freed
    }
}

/// Takes the declaration back and forgets the recorded numbers.
fn end_of(w: &mut Write, limit: u32) -> Result<()> {
    w.remove(&STATE_SWEEP, LIMIT_ROW)?;
    w.remove_prefix(&STATE_SWEEP, b"", FORGOTTEN_MAX)?;
    w.put(&STATE_SWEEP, DONE_ROW, &limit.to_be_bytes())
}

fn next_number(get: &impl Get) -> Result<u32> {
    get.next_number("state_node")
}

/// The state a row names.
fn root_of(table: &Table, key: &[u8], value: &[u8]) -> Result<Option<Root>> {
    let corrupt = || Error::corrupt(table, key);
    match table.name {
        name if name == ROOM.name => {
            RoomNum::from_key(key).ok_or_else(corrupt)?;
            Ok(room::state_of_row(value).ok_or_else(corrupt)?)
        }
        name if name == EVENT.name => {
            let num = EventNum::from_key(key).ok_or_else(corrupt)?;
            Ok(event_row::Row::decode(num, value).ok_or_else(corrupt)?.before)
        }
        _ => num_of(value).map(|num| Some(Root(num))).ok_or_else(corrupt),
    }
}

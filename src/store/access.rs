//! Reading and writing rows.
//!
//! `Get` is the interface shared by `Read` (a snapshot) and `Write` (a job, which sees its own writes), so that a verb
//! that only looks is written once.

use std::cell::{Cell, RefCell};
use std::hash::Hasher;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;

use parking_lot::Mutex;
use redb::{ReadTransaction, WriteTransaction};
use siphasher::sip128::{Hasher128, SipHasher13};

use super::counters::Counters;
use super::journal::{Record, RecordMark};
use super::key_encoding::after_prefix;
use super::schema::META;
use super::shape::{Row, Visitor};
use super::shape::{SurveyRows, WriteRows, open_to_read, open_to_write};
use super::{Change, Error, Position, Result, Table};
use crate::base;

pub(super) type ReadTable = Arc<dyn SurveyRows + Send + Sync>;
type WriteTable<'t> = Rc<RefCell<dyn WriteRows + 't>>;

pub(super) const HASH_KEY_ROW: &[u8] = b"hash_key";

pub trait Get {
    /// Calls `f` with the value without copying it; false when there is none.
    fn with(&self, table: &Table, key: &[u8], f: &mut dyn FnMut(&[u8])) -> Result<bool>;

    /// Calls `f` with each row from `from` on, up to but without `to_exclusive` (the end of the table when `None`),
    /// backwards when `rev`.
    fn range(&self, table: &Table, from: &[u8], to_exclusive: Option<&[u8]>, rev: bool, f: Visitor) -> Result<()>;

    /// How many rows the table has; read from one place.
    fn count(&self, table: &Table) -> Result<u64>;

    /// The random key that ids are hashed with; each database has its own.
    fn hash_key(&self) -> &[u8; 16];

    fn get(&self, table: &Table, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let mut value = None;
        self.with(table, key, &mut |found| value = Some(found.to_vec()))?;
        Ok(value)
    }

    fn has(&self, table: &Table, key: &[u8]) -> Result<bool> {
        self.with(table, key, &mut |_| ())
    }

    /// Calls `f` with each row whose key starts with `prefix`, in order.
    fn prefix(&self, table: &Table, prefix: &[u8], f: Visitor) -> Result<()> {
        self.range(table, prefix, after_prefix(prefix).as_deref(), false, f)
    }

    fn first_in_prefix(&self, table: &Table, prefix: &[u8]) -> Result<Option<Row>> {
        self.first(table, prefix, after_prefix(prefix).as_deref(), false)
    }

    fn last_in_prefix(&self, table: &Table, prefix: &[u8]) -> Result<Option<Row>> {
        self.first(table, prefix, after_prefix(prefix).as_deref(), true)
    }

    /// The first row of a range, or the last one when `rev`.
    fn first(&self, table: &Table, from: &[u8], to_exclusive: Option<&[u8]>, rev: bool) -> Result<Option<Row>> {
        let mut row = None;
        self.range(table, from, to_exclusive, rev, &mut |key, value| {
            row = Some((key.to_vec(), value.to_vec()));
            Ok(ControlFlow::Break(()))
        })?;
        Ok(row)
    }

    /// The position of the latest change this can see.
    fn position(&self) -> Result<Position>
    where
        Self: Sized,
    {
        Counters::stored(self).map(|counters| counters.position)
    }

    /// The number that a counter gives next, as far as this can see.
    fn next_number(&self, counter: &str) -> Result<u32>
    where
        Self: Sized,
    {
        Counters::stored(self).map(|counters| counters.next(counter))
    }

    /// A 128-bit keyed hash of the parts, each with its length, so that no two lists of parts coincide. An outsider who
    /// chooses the parts cannot choose the hash.
    fn hash128(&self, parts: &[&[u8]]) -> [u8; 16] {
        hash128(self.hash_key(), parts)
    }
}

/// [`Get::hash128`] under a key in hand, for threads that hash without a snapshot.
pub fn hash128(key: &[u8; 16], parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = SipHasher13::new_with_key(key);
    for part in parts {
        hasher.write_u32(part.len() as u32);
        hasher.write(part);
    }
    hasher.finish128().as_bytes()
}

/// A snapshot. `Send`, and it keeps nothing locked; but the pages it sees are not reused while it lives.
pub struct Read {
    txn: ReadTransaction,
    /// Tables opened so far, with their roots in this snapshot.
    tables: Mutex<Vec<(&'static str, Option<ReadTable>)>>,
    hash_key: [u8; 16],
    /// Held for as long as the snapshot lives, which the writer can tell.
    _held: Arc<()>,
}

impl Read {
    pub(super) fn new(txn: ReadTransaction, hash_key: [u8; 16], held: Arc<()>) -> Self {
        Read { txn, tables: Mutex::new(Vec::with_capacity(8)), hash_key, _held: held }
    }

    /// The table in this snapshot; `None` when nothing was ever written to it.
    pub(super) fn table(&self, table: &Table) -> Result<Option<ReadTable>> {
        let mut tables = self.tables.lock();
        if let Some((_, open)) = tables.iter().find(|(name, _)| same(name, table.name)) {
            return Ok(open.clone());
        }
        let open = open_to_read(&self.txn, table)?;
        tables.push((table.name, open.clone()));
        Ok(open)
    }
}

impl Get for Read {
    fn with(&self, table: &Table, key: &[u8], f: &mut dyn FnMut(&[u8])) -> Result<bool> {
        match self.table(table)? {
            Some(open) => open.with(key, f),
            None => Ok(false),
        }
    }

    fn range(&self, table: &Table, from: &[u8], to_exclusive: Option<&[u8]>, rev: bool, f: Visitor) -> Result<()> {
        match self.table(table)? {
            Some(open) => open.walk(from, to_exclusive, rev, f),
            None => Ok(()),
        }
    }

    fn count(&self, table: &Table) -> Result<u64> {
        self.table(table)?.map_or(Ok(0), |open| open.count())
    }

    fn hash_key(&self) -> &[u8; 16] {
        &self.hash_key
    }
}

/// A job's view of the database: it reads what it and the jobs before it in the commit wrote, and writes.
pub struct Write<'t> {
    txn: &'t WriteTransaction,
    /// Tables stay open for the whole commit: opening one for each put would cost as much as the put.
    tables: RefCell<Vec<(&'static str, WriteTable<'t>)>>,
    hash_key: [u8; 16],
    position: Position,
    /// Once a number was given out.
    counters: Cell<Option<Counters>>,
    /// Puts and removes tried so far, by all jobs of this commit.
    writes: u64,
    changes: Vec<Change>,
    /// The database's own failure, if one occurred: a job may have wrapped it in an error of its own.
    failure: RefCell<Option<Error>>,
    /// A change failed half-way: the transaction can only be aborted.
    is_broken: Cell<bool>,
    /// The rows the present job overwrote, when it shares its commit with others.
    undo: Option<Undo>,
    #[cfg(test)]
    pub(super) counted: super::RowCounts,
    /// The rows changed by all jobs of this commit, when it may go into the journal.
    record: Option<Record>,
}

impl<'t> Write<'t> {
    pub(super) fn new(txn: &'t WriteTransaction, hash_key: [u8; 16], position: Position) -> Self {
        let tables = RefCell::new(Vec::with_capacity(16));
        Write {
            txn,
            tables,
            hash_key,
            position,
            counters: Cell::new(None),
            writes: 0,
            changes: Vec::new(),
            failure: RefCell::new(None),
            is_broken: Cell::new(false),
            undo: None,
            #[cfg(test)]
            counted: super::RowCounts::default(),
            record: None,
        }
    }

    pub fn put(&mut self, table: &Table, key: &[u8], value: &[u8]) -> Result<()> {
        self.writes += 1;
        #[cfg(test)]
        self.counted.put(table, key, value);
        let (at, open) = self.table(table)?;
        let undo = &mut self.undo;
        let put = open.borrow_mut().put(key, value, &mut |old| note(undo, at, key, old));
        self.record(table, key, Some(value));
        self.changing(put)
    }

    /// Puts rows that come in rising order of their keys. Where several fall between two existing rows, they are laid
    /// out in full pages; single puts there would leave every page half empty. Bounded by the list.
    pub fn put_sorted<K: AsRef<[u8]>, V: AsRef<[u8]>>(&mut self, table: &Table, rows: &[(K, V)]) -> Result<()> {
        debug_assert!(rows.is_sorted_by(|one, next| one.0.as_ref() < next.0.as_ref()), "rows are sorted by their keys");
        self.writes += rows.len() as u64;
        #[cfg(test)]
        rows.iter().for_each(|(key, value)| self.counted.put(table, key.as_ref(), value.as_ref()));
        let (at, open) = self.table(table)?;
        let mut open = open.borrow_mut();
        let mut rest = rows;
        while let Some((first, _)) = rest.first() {
            let next = self.noting(open.next_key(first.as_ref()))?;
            let in_gap = |(key, _): &&(K, V)| next.as_deref().is_none_or(|next| key.as_ref() < next);
            let run = rest.iter().take_while(in_gap).count().max(1);
            let (now, later) = rest.split_at(run);
            let mut pairs = now.iter().map(|(key, value)| (key.as_ref(), value.as_ref()));
            let undo = &mut self.undo;
            let put = match run {
                RUN_ROWS_MIN.. => {
                    now.iter().for_each(|(key, _)| note(undo, at, key.as_ref(), None));
                    open.put_run(&mut pairs)
                }
                _ => pairs.try_for_each(|(key, value)| open.put(key, value, &mut |old| note(undo, at, key, old))),
            };
            self.changing(put)?;
            rest = later;
        }
        rows.iter().for_each(|(key, value)| self.record(table, key.as_ref(), Some(value.as_ref())));
        Ok(())
    }

    /// Removes the row if it is there; true when it was.
    pub fn remove(&mut self, table: &Table, key: &[u8]) -> Result<bool> {
        self.writes += 1;
        let (at, open) = self.table(table)?;
        let undo = &mut self.undo;
        let removed = open.borrow_mut().remove(key, &mut |old| note(undo, at, key, Some(old)));
        #[cfg(test)]
        removed.iter().for_each(|removed| self.counted.remove(table, *removed));
        if let Ok(true) = removed {
            self.record(table, key, None);
        }
        self.changing(removed)
    }

    fn record(&mut self, table: &Table, key: &[u8], value: Option<&[u8]>) {
        if let Some(record) = &mut self.record {
            record.note(table, key, value);
        }
    }

    /// Removes at most `rows_max` rows whose key starts with `prefix`; returns how many there were. Fewer than
    /// `rows_max` means that none are left.
    pub fn remove_prefix(&mut self, table: &Table, prefix: &[u8], rows_max: usize) -> Result<usize> {
        let mut keys = Vec::new();
        self.prefix(table, prefix, &mut |key, _| {
            if keys.len() == rows_max {
                return Ok(ControlFlow::Break(()));
            }
            keys.push(key.to_vec());
            Ok(ControlFlow::Continue(()))
        })?;
        for key in &keys {
            self.remove(table, key)?;
        }
        Ok(keys.len())
    }

    /// The next position, for a change that clients or servers may follow.
    pub fn next_position(&mut self) -> Position {
        self.position.0 += 1;
        self.position
    }

    /// Leaves `count` positions free and takes the one behind them.
    pub fn skip_positions(&mut self, count: u64) -> Position {
        self.position.0 += count + 1;
        self.position
    }

    /// Makes a change known once the commit is durable.
    pub fn announce(&mut self, change: Change) {
        self.changes.push(change);
    }

    /// Takes `count` numbers of a counter and returns the first; counters start at 1, so 0 is never a number.
    /// Fails as corrupt when the numbers are used up.
    pub fn next_numbers(&mut self, counter: &str, count: u32) -> Result<u32> {
        self.next_numbers_below(counter, count, u32::MAX)
    }

    /// [`Write::next_numbers`] of a counter that has fewer numbers to give.
    pub fn next_numbers_below(&mut self, counter: &str, count: u32, end: u32) -> Result<u32> {
        let mut counters = self.counters()?;
        let first = counters.take(counter, count, end).ok_or_else(|| Error::corrupt(&META, counter.as_bytes()))?;
        self.counters.set(Some(counters));
        // A job that took numbers has something to commit.
        self.writes += 1;
        Ok(first)
    }

    /// With the numbers given out by this commit so far.
    fn counters(&self) -> Result<Counters> {
        self.counters.get().map_or_else(|| Counters::stored(self), Ok)
    }

    /// Writes the position and the counters, once for all jobs of the commit, when they changed since the mark at its
    /// beginning.
    pub(super) fn put_counters(&mut self, begin: &Mark) -> Result<()> {
        if self.position == begin.position && self.counters.get().is_none() {
            return Ok(());
        }
        let mut counters = self.counters()?;
        counters.position = counters.position.max(self.position);
        counters.put(self)
    }

    /// The table and its place in the list.
    fn table(&self, table: &Table) -> Result<(usize, WriteTable<'t>)> {
        let mut tables = self.tables.borrow_mut();
        if let Some(at) = tables.iter().position(|(name, _)| same(name, table.name)) {
            return Ok((at, tables[at].1.clone()));
        }
        let open = self.changing(open_to_write(self.txn, table))?;
        tables.push((table.name, open.clone()));
        Ok((tables.len() - 1, open))
    }

    /// Passes on the result of a change. A failed change may be half done.
    fn changing<T>(&self, result: Result<T>) -> Result<T> {
        if result.is_err() {
            self.is_broken.set(true);
        }
        self.noting(result)
    }

    /// Remembers a failure of the database.
    fn noting<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(failed @ (Error::Io(_) | Error::Full | Error::Damaged(_))) = &result {
            *self.failure.borrow_mut() = Some(failed.clone());
        }
        result
    }

    pub(in crate::store) fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// Whether the transaction can only be aborted.
    pub(super) fn is_broken(&self) -> bool {
        self.is_broken.get()
    }

    /// Several jobs will share the commit: the rows that each overwrites are kept until the next job begins.
    pub(super) fn keep_undo(&mut self) {
        self.undo = Some(Undo::default());
    }

    /// From now on the changed rows are noted for the journal, behind those in the record.
    pub(super) fn keep_record(&mut self, record: Record) {
        self.record = Some(record);
    }

    /// The rows noted so far, and the end of noting.
    pub(super) fn take_record(&mut self) -> Option<Record> {
        self.record.take()
    }

    /// The starting point of a job, to see later whether it wrote, and to take its writes back.
    pub(super) fn mark(&mut self) -> Mark {
        self.undo.as_mut().map(Undo::clear);
        self.failure.take();
        Mark {
            writes: self.writes,
            position: self.position,
            counters: self.counters.get(),
            record: self.record.as_ref().map(Record::mark),
        }
    }

    /// Takes back every row the present job changed, and leaves those of the jobs before it. False when some of the
    /// overwritten rows were not kept.
    pub(super) fn take_back(&mut self) -> Result<bool> {
        let Some(undo) = self.undo.take().filter(|undo| !undo.is_too_much) else { return Ok(false) };
        let tables: Vec<_> = self.tables.borrow().iter().map(|(_, open)| open.clone()).collect();
        for (at, key, old) in undo.latest_first() {
            let mut open = tables[at].borrow_mut();
            let done = match old {
                Some(old) => open.put(key, old, &mut |_| ()),
                None => open.remove(key, &mut |_| ()).map(|_| ()),
            };
            self.changing(done)?;
        }
        self.undo = Some(undo);
        Ok(true)
    }

    /// Whether anything was written since the mark.
    pub(super) fn wrote_since(&self, mark: &Mark) -> bool {
        self.puts_since(mark) > 0
    }

    pub(super) fn puts_since(&self, mark: &Mark) -> u64 {
        self.writes - mark.writes
    }

    /// Forgets the positions, the numbers, the changes and the record of a job that returned an error.
    pub(super) fn back_to(&mut self, mark: &Mark) {
        self.position = mark.position;
        self.counters.set(mark.counters);
        self.changes.clear();
        if let (Some(record), Some(mark)) = (&mut self.record, mark.record) {
            record.back_to(mark);
        }
    }

    pub(super) fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    pub(super) fn current_position(&self) -> Position {
        self.position
    }
}

impl Drop for Write<'_> {
    fn drop(&mut self) {
        for table in self.tables.get_mut().drain(..) {
            // Each is dropped under its own guard: after a panic of redb all of them may panic, and two panics at once
            // would end the process.
            let _ = base::caught(|| drop(table)).map_err(|panicked| panicked.say());
        }
    }
}

/// Bytes kept of the rows that one job overwrote, until the next job begins. A usual job has some kilobytes. A larger
/// job that fails half-way fails its whole commit.
const UNDO_BYTES_MAX: usize = 128 << 10;
/// Bytes noted for a row beside its key and value.
const UNDO_ROW_BYTES: usize = 16;

/// The rows a job overwrote, in order.
#[derive(Default)]
struct Undo {
    /// Place of the table, bytes of the key, and bytes of the old value.
    rows: Vec<(u16, u32, Option<u32>)>,
    bytes: Vec<u8>,
    is_too_much: bool,
}

impl Undo {
    fn clear(&mut self) {
        self.rows.clear();
        self.bytes.clear();
        self.is_too_much = false;
    }

    fn note(&mut self, at: usize, key: &[u8], old: Option<&[u8]>) {
        let more = key.len() + old.map_or(0, <[u8]>::len);
        let kept = self.bytes.len() + self.rows.len() * UNDO_ROW_BYTES;
        if self.is_too_much || kept + more + UNDO_ROW_BYTES > UNDO_BYTES_MAX {
            self.is_too_much = true;
            return;
        }
        self.rows.push((at as u16, key.len() as u32, old.map(|old| old.len() as u32)));
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(old.unwrap_or_default());
    }

    fn latest_first(&self) -> impl Iterator<Item = (usize, &[u8], Option<&[u8]>)> {
        let mut rest = &self.bytes[..];
        self.rows.iter().rev().map(move |&(at, key, old)| {
            let (before, row) = rest.split_at(rest.len() - key as usize - old.unwrap_or(0) as usize);
            rest = before;
            let (key, was) = row.split_at(key as usize);
            (usize::from(at), key, old.map(|_| was))
        })
    }
}

fn note(undo: &mut Option<Undo>, at: usize, key: &[u8], old: Option<&[u8]>) {
    if let Some(undo) = undo {
        undo.note(at, key, old);
    }
}

/// Fewer rows than this between two others are put one by one, which is quicker and costs a page at most.
const RUN_ROWS_MIN: usize = 8;

pub(super) struct Mark {
    writes: u64,
    position: Position,
    counters: Option<Counters>,
    record: Option<RecordMark>,
}

impl Get for Write<'_> {
    fn with(&self, table: &Table, key: &[u8], f: &mut dyn FnMut(&[u8])) -> Result<bool> {
        let (_, open) = self.table(table)?;
        let open = open.borrow();
        self.noting(open.with(key, f))
    }

    fn range(&self, table: &Table, from: &[u8], to_exclusive: Option<&[u8]>, rev: bool, f: Visitor) -> Result<()> {
        let (_, open) = self.table(table)?;
        let open = open.borrow();
        self.noting(open.walk(from, to_exclusive, rev, f))
    }

    fn count(&self, table: &Table) -> Result<u64> {
        let (_, open) = self.table(table)?;
        let open = open.borrow();
        self.noting(open.count())
    }

    fn hash_key(&self) -> &[u8; 16] {
        &self.hash_key
    }

    /// The position after the writes of this job so far, committed or not.
    fn position(&self) -> Result<Position> {
        Ok(self.position)
    }

    fn next_number(&self, counter: &str) -> Result<u32> {
        self.counters().map(|counters| counters.next(counter))
    }
}

/// Names are compared by address first, which nearly always decides.
fn same(one: &'static str, other: &'static str) -> bool {
    std::ptr::eq(one, other) || one == other
}

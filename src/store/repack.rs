//! Makes the database's file smaller while the server runs.
//!
//! Rows that go leave room in their pages, which is used again by rows that fall there, and pages near the file's end hold
//! the end however much is free before them. redb's own compacting moves whole pages, all in one go, in a database that
//! nobody reads. Here the rows are taken table by table, a bounded run of neighbours at a time, removed and put back in full
//! pages: one short bulk commit. redb puts a new page into the lowest of the single free places, and divides larger ones when there
//! is none, so most of what lies at the end moves down as well. Not all of it does, where large parts at the front are free and
//! single places at the end: that is for `compact`. A run whose pages are nearly full and not near the end is only read.
//!
//! What it cannot do: redb fills single free pages wherever they are before it divides a large free part, so a file with one large
//! hole at its front, and little else free, hardly becomes smaller, and in others some of the free pages stay. `snug compact` gives back
//! all of them, with the server stopped.
//!
//! redb gives the end of the file back by itself once half of it is free, and all that is free when it is closed. So at last
//! the database is closed and opened again, at a moment when nobody holds a snapshot ([`Store::trim`]): readers that come
//! meanwhile wait for as long as a start takes, some tens of milliseconds.
//!
//! What was written last may lie in the last pages of the file, where redb puts single pages when all others are in use, and in the
//! cache, where no step sees where it lies. So there are two walks, with an opening between them.
//!
//! A power cut leaves the database as after one of the steps. Nothing of it is noted anywhere: who begins again finds the
//! pages of before full, and passes them by.

use std::ops::ControlFlow;

use tokio::sync::oneshot;

use super::access::{Get, Write};
use super::disk::{self, Seen};
use super::schema::{META, TABLES};
use super::writer::{Kind, Message};
use super::{Error, Result, Store, Table};
use crate::base::blocking;

/// Bytes of keys and values in one step, and rows.
const STEP_BYTES: usize = 64 << 10;
const STEP_ROWS: usize = 512;
/// A longer row is a step of its own; one that is longer still stays where it is. Events and account data have 64 KiB at most.
const LONG_BYTES: usize = 128 << 10;
/// What a step holds at most: the bytes, those of the shorter buffer while it grows, and 40 for each row.
pub const STEP_BYTES_MAX: u64 = 200 << 10;

/// redb's page, and what it notes for a row beside its bytes: the ends of its key and of its value, unless all have one length.
const PAGE_BYTES: u64 = 4096;
const END_BYTES: usize = 4;

/// A place between two rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    table: usize,
    after: Vec<u8>,
}

/// What one step did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// Rows that were looked at.
    pub rows: u64,
    /// Bytes that were put into other pages.
    pub moved_bytes: u64,
    /// Where the next step begins; none behind the last row.
    pub next: Option<Place>,
}

impl Store {
    /// All rows that a walk by [`Store::repack`] passes.
    pub fn repack_rows(&self) -> Result<u64> {
        let read = self.read()?;
        TABLES.iter().filter(|table| table.name != META.name).map(|table| read.count(table)).sum()
    }

    /// Whether the snapshots that were there at the latest true answer are gone. Pages that a snapshot sees are not used again, so
    /// beside an old one each step of a walk takes new ones, and the file grows by all that is moved.
    pub fn are_old_snapshots_gone(&self) -> bool {
        self.0.are_old_snapshots_gone()
    }

    /// Lays the rows behind a place out in full pages, at most [`STEP_BYTES`] of them, where that is worth it. Works on a
    /// full disk too: what it takes is free in the file.
    pub async fn repack(&self, from: Place) -> Result<Step> {
        let store = self.clone();
        let found = blocking(move || store.first_table_with_rows(from)).await?;
        let Some((table, from)) = found else { return Ok(Step::default()) };
        let end_bytes = self.file_bytes() / 4 * 3;
        let kind = if self.spare_bytes() == 0 { Kind::Freeing } else { Kind::Bulk };
        let done = self.send(kind, move |w| step(w, table, from, end_bytes)).await;
        Ok(done.map_err(Error::from)?.0)
    }

    /// Tables without rows are not opened for writing, which would make them.
    fn first_table_with_rows(&self, mut from: Place) -> Result<Option<(&'static Table, Place)>> {
        let read = self.read()?;
        while let Some(table) = TABLES.get(from.table).copied() {
            // The rows of the store itself are written with each commit.
            if table.name != META.name && read.count(table)? > 0 {
                return Ok(Some((table, from)));
            }
            from = Place { table: from.table + 1, after: Vec::new() };
        }
        Ok(None)
    }

    /// Gives what is free at the file's end back to the file system. False when somebody held a snapshot, or the journal cannot
    /// be used, and nothing was done: there is a better moment.
    pub async fn trim(&self) -> Result<bool> {
        let (reply, done) = oneshot::channel();
        self.0.queue().send(Message::Trim(reply)).await.map_err(|_| Error::Closed)?;
        done.await.map_err(|_| Error::Closed)?
    }
}

/// A run of rows as it lies in its table.
struct Run {
    bytes: Vec<u8>,
    /// Where each key and each value ends.
    ends: Vec<(u32, u32)>,
}

impl Run {
    fn new() -> Run {
        Run { bytes: Vec::with_capacity(STEP_BYTES), ends: Vec::with_capacity(STEP_ROWS) }
    }

    fn fits(&self, more: usize) -> bool {
        let is_long = self.ends.is_empty() && more <= LONG_BYTES;
        is_long || self.ends.len() < STEP_ROWS && self.bytes.len() + more <= STEP_BYTES
    }

    fn push(&mut self, key: &[u8], value: &[u8]) {
        self.bytes.reserve_exact(key.len() + value.len());
        self.bytes.extend_from_slice(key);
        let key_end = self.bytes.len() as u32;
        self.bytes.extend_from_slice(value);
        self.ends.push((key_end, self.bytes.len() as u32));
    }

    fn rows(&self) -> impl DoubleEndedIterator<Item = (&[u8], &[u8])> {
        (0..self.ends.len()).map(|at| {
            let begin = at.checked_sub(1).map_or(0, |before| self.ends[before].1) as usize;
            let (key_end, end) = self.ends[at];
            (&self.bytes[begin..key_end as usize], &self.bytes[key_end as usize..end as usize])
        })
    }

    /// Whether other pages would be fewer, or further from the file's end. Pages that redb had in its cache are not among those
    /// seen: when most of them were there, little is known, and little is lost.
    fn is_worth_moving(&self, table: &Table, seen: &Seen, end_bytes: u64) -> bool {
        let (keys, values) = table.lengths();
        let extra = END_BYTES * (usize::from(keys.is_none()) + usize::from(values.is_none()));
        let full_bytes = (self.bytes.len() + self.ends.len() * extra) as u64;
        let is_loose = seen.bytes.get() > full_bytes / 4 * 5 + 2 * PAGE_BYTES;
        let is_unknown = seen.bytes.get() < full_bytes / 2;
        is_loose || is_unknown || seen.highest.get() >= end_bytes
    }
}

fn step(w: &mut Write<'_>, table: &'static Table, from: Place, end_bytes: u64) -> Result<Step> {
    let (mut run, mut long, mut is_last) = (Run::new(), None, true);
    // The key after a key is that key with a zero behind it.
    let begin = if from.after.is_empty() { Vec::new() } else { [&from.after[..], &[0]].concat() };
    let (read, seen) = disk::seeing(|| {
        w.range(table, &begin, None, false, &mut |key, value| {
            if !run.fits(key.len() + value.len()) {
                is_last = false;
                if run.ends.is_empty() {
                    long = Some(key.to_vec());
                }
                return Ok(ControlFlow::Break(()));
            }
            run.push(key, value);
            Ok(ControlFlow::Continue(()))
        })
    });
    read?;
    // What is longer than that has pages of its own.
    let last = long.or_else(|| run.rows().next_back().map(|(key, _)| key.to_vec()));
    let next = match last {
        Some(after) if !is_last => Place { after, ..from },
        _ => Place { table: from.table + 1, after: Vec::new() },
    };
    let mut done = Step { rows: run.ends.len() as u64, moved_bytes: 0, next: Some(next) };
    if !run.ends.is_empty() && run.is_worth_moving(table, &seen, end_bytes) {
        for (key, _) in run.rows() {
            w.remove(table, key)?;
        }
        let rows: Vec<_> = run.rows().collect();
        w.put_sorted(table, &rows)?;
        done.moved_bytes = run.bytes.len() as u64;
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema::{EVENT_BODY, STATE_NODE, TIMELINE};
    use crate::store::{Disk, Medium, MemoryMedium, StoreOptions};

    const ROWS: u32 = 12_000;

    fn value(n: u32) -> Vec<u8> {
        vec![n as u8; 200 + n as usize % 300]
    }

    /// A database of which every other row is gone, and then everything in a part of it.
    async fn purged(card: MemoryMedium) -> Store {
        tokio::task::spawn_blocking(move || fill_and_purge(&card)).await.unwrap()
    }

    fn open(card: &MemoryMedium) -> Store {
        let mut options = StoreOptions::new("");
        options.cache_bytes = 256 << 10;
        options.journal_bytes = 64 << 10;
        options.random = crate::base::Random::seeded(1);
        Store::open_on(std::sync::Arc::new(Card(card.clone())), options).unwrap()
    }

    /// A card that tells how long the file is.
    struct Card(MemoryMedium);

    impl Medium for Card {
        fn open(&self) -> std::io::Result<Box<dyn Disk>> {
            self.0.open()
        }

        fn open_journal(&self) -> std::io::Result<Option<Box<dyn Disk>>> {
            self.0.open_journal()
        }

        fn make_journal(&self, bytes: u64) -> std::io::Result<Box<dyn Disk>> {
            self.0.make_journal(bytes)
        }

        fn free_bytes(&self) -> std::io::Result<u64> {
            self.0.free_bytes()
        }

        fn file_bytes(&self) -> std::io::Result<u64> {
            self.0.open()?.len()
        }
    }

    fn fill_and_purge(card: &MemoryMedium) -> Store {
        let store = open(card);
        store.write_blocking(|w| w.put(&STATE_NODE, b"longest", &vec![7; LONG_BYTES + 1])).unwrap();
        for first in (0..ROWS).step_by(500) {
            let job = move |w: &mut Write<'_>| {
                (first..first + 500).try_for_each(|n| {
                    w.put(&EVENT_BODY, &n.to_be_bytes(), &value(n))?;
                    w.put(&TIMELINE, &[n.wrapping_mul(2_654_435_761).to_be_bytes(), n.to_be_bytes()].concat(), b"row")
                })
            };
            store.write_blocking(job).unwrap();
        }
        for first in (0..ROWS).step_by(500) {
            let gone = move |w: &mut Write<'_>| {
                (first..first + 500).filter(|n| !is_left(*n)).try_for_each(|n| {
                    w.remove(&EVENT_BODY, &n.to_be_bytes())?;
                    w.remove(&TIMELINE, &[n.wrapping_mul(2_654_435_761).to_be_bytes(), n.to_be_bytes()].concat())?;
                    Ok::<_, Error>(())
                })
            };
            store.write_freeing_blocking(gone).unwrap();
        }
        // Longer than a step, and far behind.
        store.write_blocking(|w| w.put(&STATE_NODE, b"long", &vec![7; STEP_BYTES + 1])).unwrap();
        store
    }

    /// Evenly, as removed rooms and messages lie among others.
    fn is_left(n: u32) -> bool {
        n.is_multiple_of(3)
    }

    fn check(store: &Store) {
        let read = store.read().unwrap();
        for n in 0..ROWS {
            let body = read.get(&EVENT_BODY, &n.to_be_bytes()).unwrap();
            assert_eq!(body, is_left(n).then(|| value(n)), "{n}");
        }
        let left = (0..ROWS).filter(|n| is_left(*n)).count() as u64;
        assert_eq!(read.count(&TIMELINE), Ok(left));
        assert_eq!(read.get(&STATE_NODE, b"long").unwrap().unwrap().len(), STEP_BYTES + 1);
    }

    async fn walk(store: &Store) -> Step {
        let (mut all, mut from) = (Step::default(), Some(Place::default()));
        while let Some(place) = from {
            let step = store.repack(place).await.unwrap();
            (all.rows, all.moved_bytes) = (all.rows + step.rows, all.moved_bytes + step.moved_bytes);
            from = step.next;
        }
        all
    }

    #[tokio::test]
    async fn a_file_becomes_smaller_while_it_is_in_use() {
        let card = MemoryMedium::default();
        let store = purged(card.clone()).await;
        let before = store.file_bytes();
        let rows = store.repack_rows().unwrap();
        let done = walk(&store).await;
        assert_eq!(done.rows + 1, rows, "the longest one is passed by");
        assert!(done.moved_bytes > 500_000, "{}", done.moved_bytes);
        check(&store);

        let held = store.read().unwrap();
        assert_eq!(store.trim().await, Ok(false), "somebody reads");
        assert_eq!(held.count(&STATE_NODE), Ok(2));
        drop(held);
        assert_eq!(store.trim().await, Ok(true));
        // What found no place further to the front is moved by the next walk, which sees it, since nothing is in the cache.
        walk(&store).await;
        assert_eq!(store.trim().await, Ok(true));
        let after = store.file_bytes();
        // With the server stopped half of it could be given back; here single free pages near the end are filled first.
        assert!(after * 5 < before * 4, "{before} {after}");
        check(&store);
        // It is in use as before.
        store.write(|w| w.put(&STATE_NODE, b"more", b"row")).await.unwrap();
        assert_eq!((store.read().unwrap().count(&STATE_NODE), store.reopened()), (Ok(3), 0));
        store.close().await;
        drop(store);
        let store = Store::on_memory(card);
        check(&store);
        assert_eq!(store.read().unwrap().count(&STATE_NODE), Ok(3));
    }

    #[test]
    fn snapshots_of_before_the_latest_answer_are_told_from_later_ones() {
        let store = Store::in_memory();
        let early = store.read().unwrap();
        assert!(store.are_old_snapshots_gone(), "the first answer is about none");
        assert!(!store.are_old_snapshots_gone() && !store.are_old_snapshots_gone());
        let late = store.read().unwrap();
        drop(early);
        assert!(store.are_old_snapshots_gone());
        assert!(!store.are_old_snapshots_gone());
        drop(late);
        assert!(store.are_old_snapshots_gone() && store.are_old_snapshots_gone());
    }

    #[tokio::test]
    async fn what_is_full_already_stays_where_it_is() {
        let store = purged(MemoryMedium::default()).await;
        let first = walk(&store).await;
        walk(&store).await;
        assert_eq!(store.trim().await, Ok(true));
        let second = walk(&store).await;
        assert!(second.moved_bytes * 4 < first.moved_bytes * 3, "{} {}", first.moved_bytes, second.moved_bytes);
        check(&store);
    }
}

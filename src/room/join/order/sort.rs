//! Sorting more records than fit in memory: sorted runs in scratch files, merged while they are read.
//!
//! Records are bytes in the order of bytes, so keys stand in front, big-endian. Memory is the granted arena; while
//! merging, a buffer for each run takes its place. Where there are more runs than buffers fit, as many as fit are
//! merged to one of the next level, so that a record is read again a few times only.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use crate::budget::spill::{self, Spill, SpillReader, Spilled};
use crate::budget::{Account, Grant, Refused};

use super::{OrderError, Scratch};

/// Memory of one record beside its bytes: its place in the index.
const INDEX_BYTES: usize = size_of::<Place>();
/// A record while runs are merged, about.
const RECORD_BYTES: usize = 128;
/// Memory of a run that is being read, or written.
const RUN_BYTES: usize = spill::BUFFER_BYTES + RECORD_BYTES;
/// Runs merged at once.
const MERGED_MIN: usize = 3;
const MERGED_MAX: usize = 12;
/// A sorter has at least the memory of the smallest merge.
pub const BYTES_MIN: u64 = ((MERGED_MIN + 1) * RUN_BYTES) as u64;

/// Where a record is: its first eight bytes, which decide most comparisons, then its span in the arena.
#[derive(Clone, Copy)]
struct Place {
    prefix: u64,
    start: u32,
    length: u32,
}

/// Takes records in any order.
pub struct Sorter {
    scratch: Scratch,
    arena: Vec<u8>,
    index: Vec<Place>,
    /// Of arena and index; beside them a run is being written.
    bytes_max: usize,
    /// Runs by how often their records were merged; fewer than `merged_max` of each.
    levels: Vec<Vec<Spilled>>,
    count: u64,
    grant: Grant,
}

impl Sorter {
    /// A sorter of up to `bytes_wanted` of memory, or of the rest of the account.
    pub fn new(scratch: &Scratch, bytes_wanted: u64) -> Result<Sorter, Refused> {
        let grant = take_up_to(&scratch.memory, bytes_wanted.clamp(BYTES_MIN, u64::from(u32::MAX)), BYTES_MIN)?;
        let bytes_max = grant.bytes() as usize - RUN_BYTES;
        Ok(Sorter {
            scratch: scratch.clone(),
            arena: Vec::new(),
            index: Vec::new(),
            bytes_max,
            levels: Vec::new(),
            count: 0,
            grant,
        })
    }

    /// Records taken.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn push(&mut self, record: &[u8]) -> Result<(), OrderError> {
        self.make_room(record.len())?;
        self.index.push(Place { prefix: prefix(record), start: self.arena.len() as u32, length: record.len() as u32 });
        self.arena.extend_from_slice(record);
        self.count += 1;
        Ok(())
    }

    /// The records in order. Equal records stay as many as they were.
    pub fn finish(mut self) -> Result<Sorted, OrderError> {
        self.sort();
        if self.levels.is_empty() {
            return Ok(Sorted { at: 0, merge: None, spare: Vec::new(), sorter: self });
        }
        self.spill()?;
        (self.arena, self.index) = (Vec::new(), Vec::new());
        // Short runs first: they are read again most cheaply.
        let mut runs: Vec<Spilled> = std::mem::take(&mut self.levels).into_iter().flatten().collect();
        while runs.len() > self.merged_max() {
            let rest = runs.split_off(self.merged_max());
            let merged = self.merge(std::mem::replace(&mut runs, rest))?;
            runs.push(merged);
        }
        let buffers = (runs.len() * RUN_BYTES) as u64;
        self.grant.shrink(self.grant.bytes().saturating_sub(buffers));
        Ok(Sorted { at: 0, merge: Some(Merge::of(runs)?), spare: Vec::new(), sorter: self })
    }

    /// How many runs fit the grant, with their buffers and that of the run they become.
    fn merged_max(&self) -> usize {
        (self.bytes_max / RUN_BYTES).clamp(MERGED_MIN, MERGED_MAX)
    }

    fn merge(&self, runs: Vec<Spilled>) -> Result<Spilled, OrderError> {
        let mut merged = Spill::create(&self.scratch.folder, &self.scratch.disk)?;
        let (mut merge, mut record) = (Merge::of(runs)?, Vec::new());
        while merge.next(&mut record)? {
            merged.append(&record)?;
        }
        Ok(merged.close()?)
    }

    /// Capacities grow by doubling, so they are sized by hand: arena and index together never pass the grant.
    fn make_room(&mut self, length: usize) -> Result<(), OrderError> {
        if self.arena.len() + length + (self.index.len() + 1) * INDEX_BYTES > self.bytes_max && !self.index.is_empty() {
            self.sort();
            self.spill()?;
        }
        let bytes_left = self.bytes_max.saturating_sub(self.arena.capacity() + self.index.capacity() * INDEX_BYTES);
        if self.arena.len() + length > self.arena.capacity() {
            let more = (self.arena.capacity() / 2).clamp(length, bytes_left.max(length));
            self.arena.reserve_exact(more + self.arena.capacity() - self.arena.len());
        }
        if self.index.len() == self.index.capacity() {
            let more = (self.index.capacity() / 2).clamp(8, (bytes_left / INDEX_BYTES).max(8));
            self.index.reserve_exact(more);
        }
        Ok(())
    }

    fn sort(&mut self) {
        let arena = &self.arena;
        self.index.sort_unstable_by(|a, b| match a.prefix.cmp(&b.prefix) {
            Ordering::Equal => bytes(arena, a).cmp(bytes(arena, b)),
            decided => decided,
        });
    }

    fn spill(&mut self) -> Result<(), OrderError> {
        let mut run = Spill::create(&self.scratch.folder, &self.scratch.disk)?;
        for place in &self.index {
            run.append(bytes(&self.arena, place))?;
        }
        let mut run = run.close()?;
        self.arena.clear();
        self.index.clear();
        for level in 0.. {
            if level == self.levels.len() {
                self.levels.push(Vec::new());
            }
            self.levels[level].push(run);
            if self.levels[level].len() < self.merged_max() {
                break;
            }
            // The buffers stand where the arena stood.
            (self.arena, self.index) = (Vec::new(), Vec::new());
            let runs = std::mem::take(&mut self.levels[level]);
            run = self.merge(runs)?;
        }
        Ok(())
    }
}

fn prefix(record: &[u8]) -> u64 {
    let mut first = [0; 8];
    let length = record.len().min(8);
    first[..length].copy_from_slice(&record[..length]);
    u64::from_be_bytes(first)
}

fn bytes<'a>(arena: &'a [u8], place: &Place) -> &'a [u8] {
    &arena[place.start as usize..(place.start + place.length) as usize]
}

/// As much of `wanted` as the account has, halving until it fits; less than `least` is refused.
pub fn take_up_to(account: &Account, wanted: u64, least: u64) -> Result<Grant, Refused> {
    let mut bytes = wanted.max(least);
    loop {
        match account.try_take(bytes) {
            Ok(grant) => return Ok(grant),
            Err(refused) if bytes == least => return Err(refused),
            Err(_) => bytes = (bytes / 2).max(least),
        }
    }
}

/// The records of a [`Sorter`], smallest first.
pub struct Sorted {
    sorter: Sorter,
    at: usize,
    merge: Option<Merge>,
    spare: Vec<u8>,
}

/// Several runs read as one.
struct Merge {
    runs: Vec<SpillReader>,
    heads: BinaryHeap<Reverse<Head>>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    record: Vec<u8>,
    run: usize,
}

impl Merge {
    fn of(runs: Vec<Spilled>) -> Result<Merge, OrderError> {
        let runs: Result<Vec<SpillReader>, _> = runs.into_iter().map(Spilled::into_reader).collect();
        let mut merge = Merge { runs: runs?, heads: BinaryHeap::new() };
        for (run, reader) in merge.runs.iter_mut().enumerate() {
            let mut record = Vec::new();
            if reader.next(&mut record)? {
                merge.heads.push(Reverse(Head { record, run }));
            }
        }
        Ok(merge)
    }

    /// Puts the next record into `record`; `false` after the last.
    fn next(&mut self, record: &mut Vec<u8>) -> Result<bool, OrderError> {
        let Some(mut head) = self.heads.peek_mut() else { return Ok(false) };
        let run = head.0.run;
        std::mem::swap(record, &mut head.0.record);
        if self.runs[run].next(&mut head.0.record)? {
            drop(head); // sifts down
        } else {
            std::collections::binary_heap::PeekMut::pop(head);
        }
        Ok(true)
    }
}

impl Sorted {
    /// The next record, or `None` after the last.
    pub fn next(&mut self) -> Result<Option<&[u8]>, OrderError> {
        if let Some(merge) = &mut self.merge {
            return Ok(merge.next(&mut self.spare)?.then_some(&*self.spare));
        }
        let Some(place) = self.sorter.index.get(self.at) else { return Ok(None) };
        self.at += 1;
        Ok(Some(bytes(&self.sorter.arena, place)))
    }

    /// Memory held, for tests and logs.
    pub fn granted_bytes(&self) -> u64 {
        self.sorter.grant.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(n: u64) -> Vec<Vec<u8>> {
        let mut dice = 5u64;
        (0..n)
            .map(|_| {
                dice = dice.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                dice.to_be_bytes()[..(dice % 9) as usize].repeat(1 + (dice >> 60) as usize % 3)
            })
            .collect()
    }

    fn sorted(scratch: &Scratch, bytes: u64, records: &[Vec<u8>]) -> (Vec<Vec<u8>>, bool) {
        let mut sorter = Sorter::new(scratch, bytes).unwrap();
        for record in records {
            sorter.push(record).unwrap();
        }
        let mut sorted = sorter.finish().unwrap();
        let mut list = Vec::new();
        while let Some(record) = sorted.next().unwrap() {
            list.push(record.to_vec());
        }
        (list, sorted.merge.is_some())
    }

    #[test]
    fn runs_merge_to_what_memory_sorts() {
        let scratch = Scratch::for_tests();
        for n in [0, 1, 2, 1000, 5000] {
            let input = records(n);
            let mut want = input.clone();
            want.sort();
            assert_eq!(sorted(&scratch, 1 << 20, &input), (want.clone(), false));
            let (got, spilled) = sorted(&scratch, 1, &input);
            assert_eq!(got, want);
            assert_eq!(spilled, n > 2000);
        }
        assert_eq!(scratch.memory.used(), 0);
    }

    /// Many more runs than can be merged at once.
    #[test]
    fn runs_are_merged_a_few_at_a_time() {
        let scratch = Scratch::for_tests();
        let input: Vec<Vec<u8>> = records(60_000).into_iter().map(|record| [record, vec![7; 40]].concat()).collect();
        let mut sorter = Sorter::new(&scratch, 1).unwrap();
        for record in &input {
            sorter.push(record).unwrap();
            assert!(sorter.levels.iter().all(|level| level.len() < MERGED_MIN));
        }
        assert!(sorter.levels.len() > 3, "{}", sorter.levels.len());
        let mut sorted = sorter.finish().unwrap();
        assert!(sorted.granted_bytes() <= BYTES_MIN && sorted.merge.as_ref().unwrap().runs.len() <= MERGED_MIN);
        let mut want = input;
        want.sort();
        for record in want {
            assert_eq!(sorted.next().unwrap(), Some(&*record));
        }
        assert_eq!(sorted.next().unwrap(), None);
    }
}

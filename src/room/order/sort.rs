//! Sorting more records than fit in memory: sorted runs in scratch files, merged while they are read.
//!
//! Records are bytes and their order is the order of bytes, so keys stand in front, big-endian. Memory is the arena
//! that was granted, and while merging one read buffer per run.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use crate::budget::spill::{self, Spill, SpillReader};
use crate::budget::{Account, Grant, Refused};

use super::{OrderError, Scratch};

/// What one record costs in memory beside its bytes: its place in the index.
const INDEX_BYTES: usize = size_of::<Place>();
/// A sorter with less than this would make more runs than it sorts.
const BYTES_MIN: u64 = 4 * 1024;

/// A record while runs are merged, about.
const RECORD_BYTES: usize = 128;

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
    bytes_max: usize,
    runs: Vec<SpillReader>,
    count: u64,
    grant: Grant,
}

impl Sorter {
    /// A sorter of up to `bytes_wanted` of memory, or of what is left on the account.
    pub fn new(scratch: &Scratch, bytes_wanted: u64) -> Result<Sorter, Refused> {
        let grant = take_up_to(&scratch.memory, bytes_wanted.clamp(BYTES_MIN, u64::from(u32::MAX)), BYTES_MIN)?;
        let bytes_max = grant.bytes() as usize;
        Ok(Sorter {
            scratch: scratch.clone(),
            arena: Vec::new(),
            index: Vec::new(),
            bytes_max,
            runs: Vec::new(),
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
        if self.runs.is_empty() {
            return Ok(Sorted { at: 0, heads: BinaryHeap::new(), spare: Vec::new(), sorter: self });
        }
        self.spill()?;
        self.arena = Vec::new();
        self.index = Vec::new();
        // The arena made place for the read buffers; what is not needed for them goes back.
        let buffers = self.runs.len() as u64 * (spill::BUFFER_BYTES + RECORD_BYTES) as u64;
        self.grant.shrink(self.grant.bytes().saturating_sub(buffers));
        let mut heads = BinaryHeap::new();
        for run in 0..self.runs.len() {
            let mut record = Vec::new();
            if self.runs[run].next(&mut record)? {
                heads.push(Reverse(Head { record, run }));
            }
        }
        Ok(Sorted { at: 0, heads, spare: Vec::new(), sorter: self })
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
        self.runs.push(run.into_reader()?);
        self.arena.clear();
        self.index.clear();
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
    heads: BinaryHeap<Reverse<Head>>,
    spare: Vec<u8>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    record: Vec<u8>,
    run: usize,
}

impl Sorted {
    /// The next record, or `None` after the last.
    pub fn next(&mut self) -> Result<Option<&[u8]>, OrderError> {
        if self.sorter.runs.is_empty() {
            let Some(place) = self.sorter.index.get(self.at) else { return Ok(None) };
            self.at += 1;
            return Ok(Some(bytes(&self.sorter.arena, place)));
        }
        let Some(mut head) = self.heads.peek_mut() else { return Ok(None) };
        let run = head.0.run;
        std::mem::swap(&mut self.spare, &mut head.0.record);
        if self.sorter.runs[run].next(&mut head.0.record)? {
            drop(head); // sifts down
        } else {
            std::collections::binary_heap::PeekMut::pop(head);
        }
        Ok(Some(&self.spare))
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
        (list, !sorted.sorter.runs.is_empty())
    }

    #[test]
    fn runs_merge_to_what_memory_sorts() {
        let scratch = Scratch::for_tests();
        for n in [0, 1, 2, 1000, 5000] {
            let input = records(n);
            let mut want = input.clone();
            want.sort();
            assert_eq!(sorted(&scratch, 1 << 20, &input), (want.clone(), false));
            let (got, spilled) = sorted(&scratch, 4096, &input);
            assert_eq!(got, want);
            assert_eq!(spilled, n > 500);
        }
        assert_eq!(scratch.memory.used(), 0);
    }
}

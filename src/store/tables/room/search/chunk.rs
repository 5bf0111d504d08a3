//! How the index packs its postings: a chunk is a row, and holds the postings of many words.
//!
//! A posting says that an event has a word. Postings stand in the order of their words' hashes, within a word by room, and
//! within a room the newest event first. A chunk is a list of entries, one for each word and room, in varints:
//!
//! - how much the hash is larger than that of the entry before (than that in the key, for the first);
//! - the room, or how much larger it is when the hash is the same;
//! - how many events, and the place of the first: its distance from the segment's base;
//! - the distances between the others.

use crate::store::Result;
use crate::store::row_encoding::{Unpack, put_i64, put_u64};
use crate::store::schema::SEARCH;
use crate::store::{Error, RoomNum};

/// Four of these with their keys fill a page of 4 KiB.
pub const CHUNK_BYTES_MAX: usize = 980;
/// The most that an entry has before its distances: four varints of 5, 5, 2 and 10 bytes.
const HEAD_BYTES_MAX: usize = 22;
/// A segment's number, a hash, a room and a place.
pub const KEY_BYTES: usize = 20;

/// The place of an event in its room's timeline, such that the newest is the smallest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Down(pub u64);

impl Down {
    pub const MIN: Down = Down(0);

    pub fn of(order: i64) -> Down {
        Down(u64::MAX - ((order as u64) ^ (1 << 63)))
    }

    pub fn order(self) -> i64 {
        ((u64::MAX - self.0) ^ (1 << 63)) as i64
    }

    /// The place before, which is the next that can follow.
    pub fn next(self) -> Down {
        Down(self.0.saturating_add(1))
    }
}

/// An event with a word. The order of these is that of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Posting {
    pub hash: u32,
    pub room: RoomNum,
    pub down: Down,
}

pub fn key(segment: u32, first: Posting) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..4].copy_from_slice(&segment.to_be_bytes());
    key[4..8].copy_from_slice(&first.hash.to_be_bytes());
    key[8..12].copy_from_slice(&first.room.to_key());
    key[12..].copy_from_slice(&first.down.0.to_be_bytes());
    key
}

/// The first posting of a chunk, by its key.
pub fn first_of(key: &[u8]) -> Result<Posting> {
    let corrupt = || Error::corrupt(&SEARCH, key);
    let key: &[u8; KEY_BYTES] = key.try_into().map_err(|_| corrupt())?;
    let number = |at: usize| u32::from_be_bytes([key[at], key[at + 1], key[at + 2], key[at + 3]]);
    let down = u64::from(number(12)) << 32 | u64::from(number(16));
    Ok(Posting { hash: number(4), room: RoomNum(number(8)), down: Down(down) })
}

/// A chunk that is full, with its first posting.
pub type Packed = (Posting, Vec<u8>);

/// Packs postings, which come in order, into chunks. Holds one chunk.
pub struct Packer {
    base: Down,
    full: Vec<Packed>,
    /// The first posting of the chunk that is being filled, and the finished entries.
    first: Option<Posting>,
    chunk: Vec<u8>,
    /// Hash and room of the last finished entry.
    before: (u32, RoomNum),
    entry: Option<Entry>,
}

struct Entry {
    first: Posting,
    last: Down,
    count: u64,
    distances: Vec<u8>,
}

impl Packer {
    pub fn new(base: Down) -> Packer {
        let before = (0, RoomNum(0));
        Packer { base, full: Vec::new(), first: None, chunk: Vec::new(), before, entry: None }
    }

    /// Adds a posting, which comes behind all others. One that is there already is left out.
    pub fn push(&mut self, posting: Posting) {
        if let Some(entry) = &mut self.entry
            && (entry.first.hash, entry.first.room) == (posting.hash, posting.room)
        {
            if entry.last == posting.down {
                return;
            }
            if self.chunk.len() + entry.distances.len() + HEAD_BYTES_MAX + 10 <= CHUNK_BYTES_MAX {
                put_u64(&mut entry.distances, posting.down.0.wrapping_sub(entry.last.0));
                (entry.last, entry.count) = (posting.down, entry.count + 1);
                return;
            }
            self.end_chunk();
        }
        self.end_entry();
        if self.chunk.len() + HEAD_BYTES_MAX + 10 > CHUNK_BYTES_MAX {
            self.end_chunk();
        }
        self.first.get_or_insert(posting);
        self.entry = Some(Entry { first: posting, last: posting.down, count: 1, distances: Vec::new() });
    }

    /// Chunks that were filled.
    pub fn full(&mut self) -> &mut Vec<Packed> {
        &mut self.full
    }

    /// All chunks.
    pub fn finish(mut self) -> Vec<Packed> {
        self.end_chunk();
        self.full
    }

    fn end_entry(&mut self) {
        let (Some(entry), Some(chunk_first)) = (self.entry.take(), self.first) else { return };
        let (hash, room) = match self.chunk.is_empty() {
            true => (chunk_first.hash, chunk_first.room),
            false => self.before,
        };
        put_u64(&mut self.chunk, u64::from(entry.first.hash - hash));
        let same_hash = entry.first.hash == hash;
        put_u64(&mut self.chunk, u64::from(if same_hash { entry.first.room.0 - room.0 } else { entry.first.room.0 }));
        put_u64(&mut self.chunk, entry.count);
        put_i64(&mut self.chunk, entry.first.down.0.wrapping_sub(self.base.0) as i64);
        self.chunk.extend_from_slice(&entry.distances);
        self.before = (entry.first.hash, entry.first.room);
    }

    fn end_chunk(&mut self) {
        self.end_entry();
        if let Some(first) = self.first.take() {
            self.full.push((first, std::mem::take(&mut self.chunk)));
        }
    }
}

/// Reads a chunk's postings from front to back.
pub struct Postings {
    chunk: Vec<u8>,
    at: usize,
    base: Down,
    now: Posting,
    left: u64,
}

impl Postings {
    pub fn new(first: Posting, base: Down, chunk: Vec<u8>) -> Postings {
        Postings { chunk, at: 0, base, now: first, left: 0 }
    }

    /// The next posting; none at the end. `Err` when the chunk is damaged.
    pub fn next(&mut self) -> Result<Option<Posting>, Damaged> {
        let mut unpack = Unpack::new(self.chunk.get(self.at..).unwrap_or_default());
        if self.left == 0 {
            if unpack.is_empty() {
                return Ok(None);
            }
            let mut head = || {
                let hash = unpack.u32()?;
                let room = unpack.u32()?;
                Some((hash, room, unpack.u64().filter(|count| *count > 0)?, unpack.i64()?))
            };
            let (hash, room, count, first) = head().ok_or(Damaged)?;
            let room = if hash == 0 { self.now.room.0.checked_add(room).ok_or(Damaged)? } else { room };
            let hash = self.now.hash.checked_add(hash).ok_or(Damaged)?;
            let down = Down(self.base.0.wrapping_add(first as u64));
            (self.now, self.left) = (Posting { hash, room: RoomNum(room), down }, count - 1);
        } else {
            let distance = unpack.u64().ok_or(Damaged)?;
            self.now.down = Down(self.now.down.0.wrapping_add(distance));
            self.left -= 1;
        }
        self.at = self.chunk.len() - unpack.rest().len();
        Ok(Some(self.now))
    }
}

/// A chunk that is none.
#[derive(Debug)]
pub struct Damaged;

#[cfg(test)]
mod tests {
    use super::*;

    fn all(base: Down, packed: Vec<Packed>) -> Vec<Posting> {
        let mut found = Vec::new();
        for (first, chunk) in packed {
            assert!(chunk.len() <= CHUNK_BYTES_MAX, "{}", chunk.len());
            let (from, mut postings) = (found.len(), Postings::new(first, base, chunk));
            while let Some(posting) = postings.next().unwrap() {
                found.push(posting);
            }
            assert_eq!(found[from], first);
        }
        found
    }

    #[test]
    fn places_are_in_order_from_the_newest() {
        let orders = [i64::MAX - 1, 1 << 40, 7, 1, 0, -1, -70, i64::MIN + 1];
        let downs: Vec<_> = orders.iter().map(|order| Down::of(*order)).collect();
        assert!(downs.is_sorted());
        assert!(orders.iter().zip(&downs).all(|(order, down)| down.order() == *order));
    }

    #[test]
    fn postings_come_back_in_full_chunks() {
        let random = crate::base::Random::seeded(5);
        let number = |below: u64| random.below(below);
        let mut postings = Vec::new();
        for _ in 0..20_000 {
            let hash = number(300) as u32 * 10_000_000;
            let order = number(100_000) as i64 - 20_000;
            postings.push(Posting { hash, room: RoomNum(number(4) as u32 + 1), down: Down::of(order) });
        }
        // One word that is everywhere.
        postings.extend((0..5_000).map(|n| Posting { hash: u32::MAX, room: RoomNum(3), down: Down::of(n) }));
        postings.sort_unstable();
        let base = Down::of(50_000);
        let mut packer = Packer::new(base);
        for posting in &postings {
            packer.push(*posting);
            packer.push(*posting);
        }
        let packed = packer.finish();
        let bytes: usize = packed.iter().map(|(_, chunk)| chunk.len()).sum();
        postings.dedup();
        assert!(packed.len() < bytes / 800, "{} chunks of {bytes} bytes", packed.len());
        assert_eq!(all(base, packed), postings);
    }

    #[test]
    fn any_bytes_are_postings_or_damage() {
        let first = Posting { hash: 70, room: RoomNum(1), down: Down::of(3) };
        let mut packer = Packer::new(Down::of(9));
        for order in [3, 1, -4] {
            packer.push(Posting { down: Down::of(order), ..first });
        }
        packer.push(Posting { hash: 90, ..first });
        let seed = packer.finish().remove(0).1;
        crate::base::any_bytes::any_bytes(&[&seed], |bytes| {
            let mut postings = Postings::new(first, Down::of(9), bytes.to_vec());
            while let Ok(Some(_)) = postings.next() {}
            let _ = first_of(bytes);
        });
    }
}

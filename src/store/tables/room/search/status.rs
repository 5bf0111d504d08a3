//! What the index has: which events, in which segments, and the merge under way. One row, which its worker writes, and the
//! removal of a room as its words go.

use super::chunk::{Down, Posting};
use crate::store::row_encoding::{Unpack, put_i64, put_u64};
use crate::store::schema::SEARCH_STATUS;
use crate::store::{Error, EventNum, Get, Result, RoomNum, Write};

/// A part of the index that is whole: the postings of some events. Never changed but for words that are taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub id: u32,
    /// How often what is in it was merged.
    pub level: u8,
    pub events: u64,
    /// Of its chunks, with their keys.
    pub bytes: u64,
    pub base: Down,
    /// The newest and the oldest place in it.
    pub newest: Down,
    pub oldest: Down,
}

/// Segments that become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merge {
    pub inputs: Vec<u32>,
    pub into: Segment,
    /// The last posting that was written; the rest follows.
    pub upto: Option<Posting>,
    /// Places behind this one are left out, for want of room.
    pub oldest_kept: Down,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Events with these numbers are in the index, as far as they have words: `low ≤ num < high`.
    pub low: EventNum,
    pub high: EventNum,
    /// The bound of its size was reached: what is older stays out.
    pub is_full: bool,
    /// Whether each removal of events since it was begun is noted (`stale.rs`), or what was there before has been looked at.
    pub is_checked: bool,
    pub next_segment: u32,
    pub segments: Vec<Segment>,
    pub merge: Option<Merge>,
    /// Segments whose rows are to be removed.
    pub gone: Vec<u32>,
}

/// The key of the only row.
const KEY: &[u8] = b"";
/// More segments than this are damage: eight of each level, of which there are few.
const SEGMENTS_MAX: u64 = 1_000;

/// What the index has; none when there is no index.
pub fn get(get: &impl Get) -> Result<Option<Status>> {
    let Some(row) = get.get(&SEARCH_STATUS, KEY)? else { return Ok(None) };
    Status::decode(&row).map(Some).ok_or_else(|| Error::corrupt(&SEARCH_STATUS, KEY))
}

/// Whether there is an index.
pub fn is_there(get: &impl Get) -> Result<bool> {
    get.has(&SEARCH_STATUS, KEY)
}

pub fn set(w: &mut Write<'_>, status: Option<&Status>) -> Result<()> {
    match status {
        Some(status) => w.put(&SEARCH_STATUS, KEY, &status.encode()),
        None => w.remove(&SEARCH_STATUS, KEY).map(drop),
    }
}

impl Status {
    /// Bytes of all chunks.
    pub fn bytes(&self) -> u64 {
        let merging = self.merge.as_ref().map_or(0, |merge| merge.into.bytes);
        self.segments.iter().map(|segment| segment.bytes).sum::<u64>() + merging
    }

    /// Every segment that has rows a search or a merge reads.
    pub fn all(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().chain(self.merge.iter().map(|merge| &merge.into))
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 + 32 * self.segments.len());
        out.push(u8::from(self.is_full) | u8::from(self.merge.is_some()) << 1 | u8::from(self.is_checked) << 2);
        for number in [self.low.0, self.high.0, self.next_segment] {
            put_u64(&mut out, number.into());
        }
        put_u64(&mut out, self.segments.len() as u64);
        self.segments.iter().for_each(|segment| segment.encode(&mut out));
        put_u64(&mut out, self.gone.len() as u64);
        self.gone.iter().for_each(|id| put_u64(&mut out, (*id).into()));
        if let Some(merge) = &self.merge {
            put_u64(&mut out, merge.inputs.len() as u64);
            merge.inputs.iter().for_each(|id| put_u64(&mut out, (*id).into()));
            merge.into.encode(&mut out);
            put_u64(&mut out, merge.oldest_kept.0);
            if let Some(upto) = merge.upto {
                put_u64(&mut out, upto.hash.into());
                put_u64(&mut out, upto.room.0.into());
                put_i64(&mut out, upto.down.0 as i64);
            }
        }
        out
    }

    fn decode(row: &[u8]) -> Option<Status> {
        let mut unpack = Unpack::new(row);
        let first = unpack.u8()?;
        let mut status = Status {
            low: EventNum(unpack.u32()?),
            high: EventNum(unpack.u32()?),
            is_full: first & 1 != 0,
            is_checked: first & 4 != 0,
            next_segment: unpack.u32()?,
            ..Status::default()
        };
        let count = |unpack: &mut Unpack<'_>| unpack.u64().filter(|count| *count <= SEGMENTS_MAX);
        for _ in 0..count(&mut unpack)? {
            status.segments.push(Segment::decode(&mut unpack)?);
        }
        for _ in 0..count(&mut unpack)? {
            status.gone.push(unpack.u32()?);
        }
        if first & 2 != 0 {
            let inputs = (0..count(&mut unpack)?).map(|_| unpack.u32()).collect::<Option<_>>()?;
            let (into, oldest_kept) = (Segment::decode(&mut unpack)?, Down(unpack.u64()?));
            let mut merge = Merge { inputs, into, upto: None, oldest_kept };
            if !unpack.is_empty() {
                let (hash, room) = (unpack.u32()?, RoomNum(unpack.u32()?));
                merge.upto = Some(Posting { hash, room, down: Down(unpack.i64()? as u64) });
            }
            status.merge = Some(merge);
        }
        Some(status)
    }
}

impl Segment {
    fn encode(&self, out: &mut Vec<u8>) {
        put_u64(out, self.id.into());
        out.push(self.level);
        for number in [self.events, self.bytes, self.base.0, self.newest.0, self.oldest.0] {
            put_u64(out, number);
        }
    }

    fn decode(unpack: &mut Unpack<'_>) -> Option<Segment> {
        Some(Segment {
            id: unpack.u32().filter(|id| *id < u32::MAX)?,
            level: unpack.u8()?,
            events: unpack.u64()?,
            bytes: unpack.u64()?,
            base: Down(unpack.u64()?),
            newest: Down(unpack.u64()?),
            oldest: Down(unpack.u64()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_comes_back_as_it_was() {
        let segment = |id| Segment {
            id,
            level: 2,
            events: 700,
            bytes: 9_000,
            base: Down::of(70),
            newest: Down::of(90),
            oldest: Down::of(-70),
        };
        let mut status = Status { low: EventNum(7), high: EventNum(900), next_segment: 4, ..Status::default() };
        assert_eq!(Status::decode(&status.encode()).as_ref(), Some(&status));
        (status.is_full, status.is_checked) = (true, true);
        (status.segments, status.gone) = (vec![segment(1), segment(2)], vec![0]);
        let upto = Some(Posting { hash: u32::MAX, room: RoomNum(3), down: Down::of(-1) });
        for upto in [None, upto] {
            status.merge = Some(Merge { inputs: vec![1, 2], into: segment(3), upto, oldest_kept: Down(u64::MAX) });
            assert_eq!(Status::decode(&status.encode()).as_ref(), Some(&status));
        }
        assert_eq!((status.bytes(), status.all().count()), (27_000, 3));
    }

    #[test]
    fn any_bytes_are_a_row_or_damage() {
        crate::base::any_bytes::any_bytes(&[&[2; 60]], |bytes| {
            if let Some(status) = Status::decode(bytes) {
                assert_eq!(Status::decode(&status.encode()), Some(status));
            }
        });
    }
}

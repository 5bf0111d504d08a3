//! The index of words: which events of which rooms have a word.
//!
//! It stands in segments, as search engines' indexes do. Some hundreds of events become a segment of level 0, in one short
//! write of a few full pages; eight segments of a level become one of the next, in short steps. So a posting is written some five
//! times in all, always next to others, where rows by word would cost a page for each rare word of each message. A word is 32 bits of a
//! keyed hash: who finds an event by it compares the event's text.
//!
//! A posting's event is named by its place in the room's timeline. An event stands in one segment with all of its words,
//! so words are intersected segment by segment.
//!
//! `chunk.rs`: how postings are packed; `cursor.rs`: reading them; `status.rs`: which segments there are; `stale.rs`: words of events
//! that were removed; here: the other verbs.

use std::ops::ControlFlow;

use crate::store::schema::{SEARCH, SEARCH_GONE, SEARCH_LATE, SEARCH_STALE};
use crate::store::{Error, EventNum, Get, Parts, Result, RoomNum, Write};
pub use chunk::{Down, Posting};
use chunk::{Packed, Packer};
pub use cursor::Place;
use cursor::{Cursor, Scan, chunk_with};
pub use status::{Merge, Segment, Status};

mod chunk;
mod cursor;
pub mod stale;
pub mod status;
#[cfg(test)]
mod tests;

/// Segments of one level that become one of the next.
pub const MERGED: usize = 8;

/// Adds the postings of some events, sorted, as a segment of level 0.
pub fn add(w: &mut Write<'_>, status: &mut Status, postings: &[Posting], events: u64) -> Result<()> {
    let Some(first) = postings.first() else { return Ok(()) };
    let mut segment = segment(status, 0, first.down);
    segment.events = events;
    let mut packer = Packer::new(segment.base);
    for posting in postings {
        packer.push(*posting);
        segment.newest = segment.newest.min(posting.down);
        segment.oldest = segment.oldest.max(posting.down);
    }
    segment.bytes = put_chunks(w, segment.id, packer.finish())?;
    status.segments.push(segment);
    Ok(())
}

fn segment(status: &mut Status, level: u8, base: Down) -> Segment {
    let id = status.next_segment;
    status.next_segment += 1;
    Segment { id, level, events: 0, bytes: 0, base, newest: base, oldest: base }
}

fn put_chunks(w: &mut Write<'_>, segment: u32, chunks: Vec<Packed>) -> Result<u64> {
    let rows: Vec<_> = chunks.into_iter().map(|(first, chunk)| (chunk::key(segment, first), chunk)).collect();
    w.put_sorted(&SEARCH, &rows)?;
    Ok(rows.iter().map(|(key, chunk)| (key.len() + chunk.len()) as u64).sum())
}

/// Begins the merge that is due, if one is: of eight segments of a level, or of what is to be made smaller. True when it did.
pub fn begin_merge(status: &mut Status, bytes_max: u64) -> bool {
    if status.merge.is_some() {
        return false;
    }
    if status.bytes() > bytes_max
        && let Some(largest) = status.segments.iter().max_by_key(|segment| segment.bytes).cloned()
    {
        // The older half of its places goes.
        let middle = if largest.newest < largest.oldest { largest.newest.0 / 2 + largest.oldest.0 / 2 } else { 0 };
        let into = segment(status, largest.level, largest.base);
        status.is_full = true;
        status.merge = Some(Merge { inputs: vec![largest.id], into, upto: None, oldest_kept: Down(middle) });
        return true;
    }
    let full = |level: u8| status.segments.iter().filter(|segment| segment.level == level).count() >= MERGED;
    let Some(level) = status.segments.iter().map(|segment| segment.level).filter(|level| full(*level)).min() else {
        return false;
    };
    let inputs: Vec<_> =
        status.segments.iter().filter(|segment| segment.level == level).take(MERGED).cloned().collect();
    let into = segment(status, level.saturating_add(1), inputs[0].base);
    let inputs = inputs.iter().map(|segment| segment.id).collect();
    status.merge = Some(Merge { inputs, into, upto: None, oldest_kept: Down(u64::MAX) });
    true
}

/// Goes on with a merge: writes about `chunks_max` chunks. True when it is done, and the new segment stands for the others.
/// Holds a chunk of each input and those it writes.
pub fn merge_step(w: &mut Write<'_>, status: &mut Status, chunks_max: usize) -> Result<bool> {
    let Some(mut merge) = status.merge.take() else { return Ok(true) };
    let inputs: Vec<_> = status.segments.iter().filter(|segment| merge.inputs.contains(&segment.id)).cloned().collect();
    let mut packer = Packer::new(merge.into.base);
    let mut scans = inputs.iter().map(|input| Scan::new(&*w, input, merge.upto)).collect::<Result<Vec<_>>>()?;
    let mut looked_at = 0;
    let mut upto = merge.upto;
    let ended = loop {
        let least = scans.iter().enumerate().filter_map(|(at, scan)| Some((scan.now()?, at))).min();
        let Some((posting, at)) = least else { break true };
        // A step ends between two words: an entry that began is whole, unless it is longer than a step.
        let is_new = upto.is_none_or(|upto: Posting| upto.hash != posting.hash);
        let full = packer.full().len();
        if (full >= chunks_max && is_new) || full >= 2 * chunks_max || looked_at >= chunks_max * POSTINGS_A_CHUNK {
            break false;
        }
        looked_at += 1;
        upto = Some(posting);
        if posting.down <= merge.oldest_kept {
            packer.push(posting);
        }
        scans[at].step()?;
    };
    drop(scans);
    merge.upto = upto;
    merge.into.bytes += put_chunks(w, merge.into.id, packer.finish())?;
    if !ended {
        status.merge = Some(merge);
        return Ok(false);
    }
    let mut into = merge.into;
    into.events = inputs.iter().map(|input| input.events).sum();
    into.newest = inputs.iter().map(|input| input.newest).min().unwrap_or(into.base);
    into.oldest = inputs.iter().map(|input| input.oldest).max().unwrap_or(into.base).min(merge.oldest_kept);
    status.segments.retain(|segment| !merge.inputs.contains(&segment.id));
    status.gone.extend(merge.inputs);
    match into.bytes {
        0 => status.gone.push(into.id),
        _ => status.segments.push(into),
    }
    Ok(true)
}

/// Postings that a step of a merge looks at, for each chunk it may write: those of a word that is everywhere have a byte each.
const POSTINGS_A_CHUNK: usize = 1_000;

/// Removes at most `rows_max` rows of segments that are gone. True when none are left.
pub fn sweep(w: &mut Write<'_>, status: &mut Status, rows_max: usize) -> Result<bool> {
    let mut left = rows_max;
    while let Some(id) = status.gone.last() {
        let removed = w.remove_prefix(&SEARCH, &id.to_be_bytes(), left)?;
        left -= removed;
        if left == 0 {
            return Ok(false);
        }
        status.gone.pop();
    }
    Ok(true)
}

/// Removes at most `rows_max` rows of the whole index. True when none are left.
pub fn clear(w: &mut Write<'_>, rows_max: usize) -> Result<bool> {
    let mut left = rows_max;
    for table in [&SEARCH, &SEARCH_LATE, &SEARCH_GONE, &SEARCH_STALE] {
        left -= w.remove_prefix(table, &[], left)?;
    }
    if left > 0 {
        status::set(w, None)?;
    }
    Ok(left > 0)
}

/// The key of a chunk.
pub type ChunkKey = [u8; chunk::KEY_BYTES];

/// Shows all postings of all segments. For tests.
#[cfg(test)]
pub(crate) fn each(get: &impl Get, visit: &mut dyn FnMut(Posting)) -> Result<()> {
    for segment in status::get(get)?.unwrap_or_default().all() {
        let mut scan = Scan::new(get, segment, None)?;
        while let Some(posting) = scan.now() {
            visit(posting);
            scan.step()?;
        }
    }
    Ok(())
}

/// What a search does after a place it was shown.
pub enum Onward {
    Next,
    /// Nothing more of this room is wanted.
    NextRoom,
    Stop,
}

/// Shows the events of one segment that have all of the words, in rooms that are allowed: each with the first place that is
/// wanted, in rising order. Within a room the newest comes first. Leaps over what one of the words does not have.
/// Holds a chunk for each word.
pub fn matches(
    get: &impl Get,
    segment: &Segment,
    hashes: &[u32],
    rooms: &[Place],
    visit: &mut dyn FnMut(Place) -> Result<Onward>,
) -> Result<()> {
    let mut words: Vec<_> = hashes.iter().map(|hash| Cursor::new(get, segment, *hash)).collect();
    let mut room = 0;
    let Some(mut place) = rooms.first().copied() else { return Ok(()) };
    if words.is_empty() {
        return Ok(());
    }
    'places: loop {
        for word in &mut words {
            let Some(found) = word.seek(place)? else { return Ok(()) };
            if found > place {
                // The next room that is allowed, and there nothing newer than what is wanted.
                room += rooms[room..].partition_point(|(allowed, _)| *allowed < found.0);
                let Some(allowed) = rooms.get(room) else { return Ok(()) };
                place = found.max(*allowed);
                continue 'places;
            }
        }
        place = match visit(place)? {
            Onward::Next => (place.0, place.1.next()),
            Onward::Stop => return Ok(()),
            Onward::NextRoom => {
                room += 1;
                let Some(allowed) = rooms.get(room) else { return Ok(()) };
                *allowed
            }
        };
    }
}

/// Notes an event that got its place when the index had already passed its number.
pub fn add_late(w: &mut Write<'_>, num: EventNum) -> Result<()> {
    w.put(&SEARCH_LATE, &num.to_key(), &[])
}

/// At most `most` of those events.
pub fn list_late(get: &impl Get, most: usize) -> Result<Vec<EventNum>> {
    let mut nums = Vec::new();
    get.prefix(&SEARCH_LATE, &[], &mut |key, _| {
        if nums.len() >= most {
            return Ok(ControlFlow::Break(()));
        }
        nums.push(EventNum::from_key(key).ok_or_else(|| Error::corrupt(&SEARCH_LATE, key))?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(nums)
}

pub fn remove_late(w: &mut Write<'_>, num: EventNum) -> Result<()> {
    w.remove(&SEARCH_LATE, &num.to_key()).map(drop)
}

/// Words that an event no longer has.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone {
    pub place: Place,
    pub hashes: Vec<u32>,
}

fn gone_key((room, down): Place) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&room.to_key());
    key[4..].copy_from_slice(&down.0.to_be_bytes());
    key
}

/// Notes the words of an event that loses its text.
pub fn add_gone(w: &mut Write<'_>, gone: &Gone) -> Result<()> {
    let row: Vec<u8> = gone.hashes.iter().flat_map(|hash| hash.to_be_bytes()).collect();
    w.put(&SEARCH_GONE, &gone_key(gone.place), &row)
}

/// The first event whose words are to be taken out.
pub fn first_gone(get: &impl Get) -> Result<Option<Gone>> {
    let Some((key, row)) = get.first_in_prefix(&SEARCH_GONE, &[])? else { return Ok(None) };
    let mut parts = Parts(&key);
    let place = parts.u32().map(RoomNum).zip(parts.u64().map(Down));
    let place = place.ok_or_else(|| Error::corrupt(&SEARCH_GONE, &key))?;
    let (hashes, _) = row.as_chunks::<4>();
    Ok(Some(Gone { place, hashes: hashes.iter().map(|hash| u32::from_be_bytes(*hash)).collect() }))
}

/// Takes out at most `most` of an event's words, wherever they are, and notes which are left.
pub fn take_out(w: &mut Write<'_>, status: &Status, mut gone: Gone, most: usize) -> Result<()> {
    let left = gone.hashes.split_off(gone.hashes.len().min(most));
    for hash in gone.hashes {
        let posting = Posting { hash, room: gone.place.0, down: gone.place.1 };
        for segment in status.all() {
            take_out_of(w, segment, posting)?;
        }
    }
    match left.is_empty() {
        true => w.remove(&SEARCH_GONE, &gone_key(gone.place)).map(drop),
        false => add_gone(w, &Gone { hashes: left, ..gone }),
    }
}

fn take_out_of(w: &mut Write<'_>, segment: &Segment, posting: Posting) -> Result<()> {
    let Some((first, mut postings)) = chunk_with(w, segment, posting)? else { return Ok(()) };
    let Ok(at) = postings.binary_search(&posting) else { return Ok(()) };
    postings.remove(at);
    w.remove(&SEARCH, &chunk::key(segment.id, first))?;
    let mut packer = Packer::new(segment.base);
    postings.into_iter().for_each(|posting| packer.push(posting));
    put_chunks(w, segment.id, packer.finish()).map(drop)
}

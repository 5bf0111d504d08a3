//! Words of events that were removed, with their room or for their age.
//!
//! Whether an event is there is said by its room's timeline alone: a posting whose place has no event there is taken out. So a removal
//! notes the room, in the write that removes, and no row for each event; one walk over the index then takes out the words of all of
//! them, in whichever way and however many they were. The notes go when the walk has ended, so a power cut in the middle of it makes it
//! begin anew, and what it had taken out is out.

use std::ops::ControlFlow;

use super::chunk::{self, Down, Packer, Posting, Postings};
use super::status::{self, Segment, Status};
use super::{ChunkKey, put_chunks};
use crate::base::sort_few_by;
use crate::store::schema::{SEARCH, SEARCH_STALE};
use crate::store::tables::room::timeline;
use crate::store::{Error, Get, Parts, Result, RoomNum, Write};

/// Places that one step of a walk looks up in timelines, of about a microsecond each: behind so many it ends with the chunk.
const LOOKED_UP_MAX: usize = 20_000;

/// What a walk over the index looks for.
#[derive(Clone, Debug)]
pub struct Stale {
    /// Events may be gone from any room.
    is_any: bool,
    /// The rooms, in order.
    rooms: Vec<(RoomNum, Note)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Note {
    /// The newest place that lost its event.
    newest: Down,
    /// How often events were removed.
    times: u64,
}

impl Note {
    fn get(get: &impl Get, room: RoomNum) -> Result<Option<Note>> {
        let Some(row) = get.get(&SEARCH_STALE, &room.to_key())? else { return Ok(None) };
        Note::decode(&room.to_key(), &row).map(Some)
    }

    fn decode(key: &[u8], row: &[u8]) -> Result<Note> {
        let mut parts = Parts(row);
        let note = parts.u64().zip(parts.u64());
        let (newest, times) = note.ok_or_else(|| Error::corrupt(&SEARCH_STALE, key))?;
        Ok(Note { newest: Down(newest), times })
    }
}

/// Notes that a room's timeline lost events, of which the newest stood at a place.
pub fn note(w: &mut Write<'_>, room: RoomNum, newest: Down) -> Result<()> {
    if !status::is_there(w)? {
        return Ok(());
    }
    let noted = Note::get(w, room)?.unwrap_or(Note { newest, times: 0 });
    let (newest, times) = (newest.min(noted.newest), noted.times + 1);
    w.put(&SEARCH_STALE, &room.to_key(), &[newest.0.to_be_bytes(), times.to_be_bytes()].concat())
}

/// What the next walk looks for, in at most `rooms_max` rooms that were noted; none when there is nothing. An index from before
/// removals were noted may have words of any event, so its first walk looks at all.
pub fn next(get: &impl Get, rooms_max: usize) -> Result<Option<Stale>> {
    let Some(status) = status::get(get)? else { return Ok(None) };
    let mut rooms = Vec::new();
    get.range(&SEARCH_STALE, &[], None, false, &mut |key, row| {
        let room = RoomNum::from_key(key).ok_or_else(|| Error::corrupt(&SEARCH_STALE, key))?;
        rooms.push((room, Note::decode(key, row)?));
        Ok(if rooms.len() < rooms_max { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    let is_any = !status.is_checked;
    Ok((is_any || !rooms.is_empty()).then_some(Stale { is_any, rooms }))
}

/// Ends a walk. A room that lost more events meanwhile stays noted; false when all of them did.
pub fn end(w: &mut Write<'_>, stale: &Stale) -> Result<bool> {
    let mut is_any_done = false;
    for (room, note) in &stale.rooms {
        if Note::get(w, *room)?.as_ref() == Some(note) {
            w.remove(&SEARCH_STALE, &room.to_key())?;
            is_any_done = true;
        }
    }
    if stale.is_any
        && let Some(status) = status::get(w)?.filter(|status| !status.is_checked)
    {
        status::set(w, Some(&Status { is_checked: true, ..status }))?;
        is_any_done = true;
    }
    Ok(is_any_done)
}

impl Stale {
    /// Whether the event of a posting may be gone.
    fn concerns(&self, posting: Posting) -> bool {
        let note = || self.rooms.binary_search_by_key(&posting.room, |(room, _)| *room).ok().map(|at| self.rooms[at].1);
        self.is_any || note().is_some_and(|note| posting.down >= note.newest)
    }

    /// Whether a segment may have words of such an event: one that only has newer places is not read.
    pub(super) fn concerns_segment(&self, segment: &Segment) -> bool {
        self.is_any || self.rooms.iter().any(|(_, note)| segment.oldest >= note.newest)
    }
}

/// Which places of timelines have an event. Keeps the last stretch that has none, as it is where old messages were.
#[derive(Default)]
struct Places {
    /// A room, and places from the first to before the second.
    empty: Option<(RoomNum, Down, Down)>,
    looked_up: usize,
}

impl Places {
    fn has(&mut self, get: &impl Get, room: RoomNum, down: Down) -> Result<bool> {
        if self.empty.is_some_and(|(of, from, to)| of == room && from <= down && down < to) {
            return Ok(false);
        }
        self.looked_up += 1;
        let older = timeline::at_or_before(get, room, down.order())?;
        let to = older.map_or(Down(u64::MAX), |(order, _)| Down::of(order));
        if to == down {
            return Ok(true);
        }
        self.empty = Some((room, down, to));
        Ok(false)
    }

    fn is_stale(&mut self, get: &impl Get, stale: &Stale, posting: Posting) -> Result<bool> {
        Ok(stale.concerns(posting) && !self.has(get, posting.room, posting.down)?)
    }
}

/// The chunks that have words of removed events, at most `most`, among the `looked_at_max` from a key on; and where to go on, none
/// at the end. Holds one chunk.
///
/// Segments are numbered as they are made, and a merge writes into one with a higher number than those it reads. So whoever
/// takes the words out of what this finds, and goes on, has all that were there at the beginning, also those that were
/// merged meanwhile. What becomes a segment meanwhile has none ([`leave_out`]).
pub fn chunks(
    get: &impl Get,
    stale: &Stale,
    from: &[u8],
    looked_at_max: usize,
    most: usize,
) -> Result<(Vec<ChunkKey>, Option<Vec<u8>>)> {
    let Some(status) = status::get(get)? else { return Ok((Vec::new(), None)) };
    // What a merge has written by now is not known before it ends.
    let merging = status.merge.iter().map(|merge| &merge.into);
    let mut segments: Vec<_> =
        status.segments.iter().filter(|segment| stale.concerns_segment(segment)).chain(merging).collect();
    sort_few_by(&mut segments, |segment| segment.id);
    let (mut found, mut looked_at, mut next, mut places) = (Vec::new(), 0, None, Places::default());
    for segment in segments {
        let (start, end) = (segment.id.to_be_bytes(), (segment.id + 1).to_be_bytes());
        if from >= &end[..] {
            continue;
        }
        get.range(&SEARCH, from.max(&start[..]), Some(&end), false, &mut |key, chunk| {
            if looked_at == looked_at_max || found.len() == most || places.looked_up >= LOOKED_UP_MAX {
                next = Some(key.to_vec());
                return Ok(ControlFlow::Break(()));
            }
            looked_at += 1;
            let (Ok(key), Ok(first)) = (ChunkKey::try_from(key), chunk::first_of(key)) else {
                return Ok(ControlFlow::Continue(()));
            };
            let mut postings = Postings::new(first, segment.base, chunk.to_vec());
            // What a damaged chunk had is lost for searches, too.
            while let Ok(Some(posting)) = postings.next() {
                if places.is_stale(get, stale, posting)? {
                    found.push(key);
                    break;
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if next.is_some() {
            break;
        }
    }
    Ok((found, next))
}

/// Takes the words of removed events out of chunks.
pub fn take_out(w: &mut Write<'_>, stale: &Stale, chunks: &[ChunkKey]) -> Result<()> {
    let Some(mut status) = status::get(w)? else { return Ok(()) };
    let mut places = Places::default();
    for key in chunks {
        let Some(chunk) = w.get(&SEARCH, key)? else { continue };
        let mut segments = status.segments.iter_mut().chain(status.merge.iter_mut().map(|merge| &mut merge.into));
        let Some(segment) = segments.find(|segment| segment.id.to_be_bytes() == key[..4]) else { continue };
        let bytes = (key.len() + chunk.len()) as u64;
        let (mut packer, mut postings) =
            (Packer::new(segment.base), Postings::new(chunk::first_of(key)?, segment.base, chunk));
        // Of a damaged chunk stays what can be read.
        while let Ok(Some(posting)) = postings.next() {
            if !places.is_stale(w, stale, posting)? {
                packer.push(posting);
            }
        }
        w.remove(&SEARCH, key)?;
        let left = put_chunks(w, segment.id, packer.finish())?;
        segment.bytes = (segment.bytes + left).saturating_sub(bytes);
    }
    status::set(w, Some(&status))
}

/// Leaves out of what becomes a segment the words of events that were removed since they were read: a walk over the index may be past
/// them. Those of one event stand together.
pub fn leave_out(get: &impl Get, postings: &mut Vec<Posting>) -> Result<()> {
    let (mut places, mut last, mut kept) = (Places::default(), None, 0);
    for at in 0..postings.len() {
        let Posting { room, down, .. } = postings[at];
        let has = match last {
            Some((place, has)) if place == (room, down) => has,
            _ => places.has(get, room, down)?,
        };
        last = Some(((room, down), has));
        if has {
            postings[kept] = postings[at];
            kept += 1;
        }
    }
    postings.truncate(kept);
    Ok(())
}

//! Our history of a room, for servers in it: `backfill` and `get_missing_events`.
//!
//! A walk down the `prev_events`, deepest first, bounded by a count. The events found are then written one by one, each
//! whole or redacted, as the history visibility at the event allows the asking server.

use std::collections::{BTreeSet, BinaryHeap, VecDeque};

use ruma::{OwnedEventId, RoomId, ServerName};

use super::long_answer::Served;
use crate::base::{ChunkError, Chunks};
use crate::room::Rooms;
use crate::room::error::Result;
use crate::room::state;
use crate::room::state::RoomRef;
use crate::room::state::event::load_row;
use crate::room::state::server_access;
use crate::store::tables::room::event;
use crate::store::{EventNum, Get, Read};

/// The most events of one `backfill` answer.
const BACKFILL_MAX: usize = 100;
/// The most events of one `get_missing_events` answer.
const MISSING_MAX: usize = 20;
/// The most events looked at beside those: rejected ones are skipped, and a room may be full of them.
const PASSED_BY_MAX: usize = 200;
/// The most events named in a request.
const NAMED_MAX: usize = 50;
/// A piece is full at this size; the event that fills it may be 64 KiB, and is held twice more while it is read.
const PIECE_BYTES: usize = 16 * 1024;
const PIECE_BYTES_MAX: u64 = 16 * 1024 + 3 * 64 * 1024;

/// The request of a server that lacks events: the events it has, and those that lead to the missing ones.
#[derive(Debug, Clone, Default)]
pub struct Missing {
    pub earliest: Vec<OwnedEventId>,
    pub latest: Vec<OwnedEventId>,
    pub limit: usize,
    pub min_depth: u64,
}

impl Rooms {
    /// `GET /backfill`: the named events and those before them, the deepest first. `head` begins the answer, up to the
    /// list.
    pub async fn serve_backfill(
        &self,
        origin: &ServerName,
        room: &RoomId,
        from: Vec<OwnedEventId>,
        limit: usize,
        head: String,
    ) -> Result<Served> {
        serve_events(self, origin, room, head, move |read, room| {
            let mut walk = Walk::new(limit.min(BACKFILL_MAX), 0);
            walk.add(read, room, from.iter().take(NAMED_MAX).map(|id| id.as_str()))?;
            walk.run(read, room)
        })
        .await
    }

    /// `POST /get_missing_events`: the events in between, oldest first.
    pub async fn serve_missing_events(
        &self,
        origin: &ServerName,
        room: &RoomId,
        asked: Missing,
        head: String,
    ) -> Result<Served> {
        serve_events(self, origin, room, head, move |read, room| {
            let mut walk = Walk::new(asked.limit.min(MISSING_MAX), asked.min_depth);
            for id in asked.earliest.iter().take(NAMED_MAX) {
                walk.seen.extend(event::num(read, id.as_str())?);
            }
            for id in asked.latest.iter().take(NAMED_MAX) {
                if let Some((num, row)) = state::event::stored(read, id.as_str())?
                    && row.room == room.num
                    && walk.seen.insert(num)
                {
                    let event = load_row(read, room.version, &row)?;
                    walk.add(read, room, event.prev_events().map(|id| id.as_str()))?;
                }
            }
            let mut found = walk.run(read, room)?;
            found.make_contiguous().reverse();
            Ok(found)
        })
        .await
    }
}

async fn serve_events(
    rooms: &Rooms,
    origin: &ServerName,
    room: &RoomId,
    head: String,
    find: impl FnOnce(&Read, &RoomRef) -> Result<VecDeque<EventNum>> + Send + 'static,
) -> Result<Served> {
    let grant = rooms.0.parts.budget.account("response_bodies").take(PIECE_BYTES_MAX).await?;
    let (origin, room) = (origin.to_owned(), room.to_owned());
    let chunks = rooms
        .reading(move |rooms, read| {
            let room = server_access::for_member_server(read, &origin, &room)?;
            let left = find(read, &room)?;
            Ok(Batch { rooms: rooms.clone(), origin, room, left, head: Some(head) })
        })
        .await?;
    Ok(Served { grant, chunks: Box::new(chunks) })
}

/// A walk from events to their predecessors, the deepest first.
struct Walk {
    open: BinaryHeap<(u64, EventNum)>,
    seen: BTreeSet<EventNum>,
    limit: usize,
    min_depth: u64,
}

impl Walk {
    fn new(limit: usize, min_depth: u64) -> Walk {
        Walk { open: BinaryHeap::new(), seen: BTreeSet::new(), limit, min_depth }
    }

    fn add<'a>(&mut self, get: &impl Get, room: &RoomRef, ids: impl Iterator<Item = &'a str>) -> Result<()> {
        for id in ids {
            if let Some((num, row)) = state::event::stored(get, id)?
                && row.room == room.num
                && state::event::is_placed(&row)
                && row.depth >= self.min_depth
                && self.seen.insert(num)
            {
                self.open.push((row.depth, num));
            }
        }
        Ok(())
    }

    /// An event has at most twenty `prev_events`, so the queue is bounded by the events looked at.
    fn run(mut self, get: &impl Get, room: &RoomRef) -> Result<VecDeque<EventNum>> {
        let mut found = VecDeque::with_capacity(self.limit);
        let mut looked_at = 0;
        while found.len() < self.limit
            && looked_at < self.limit + PASSED_BY_MAX
            && let Some((_, num)) = self.open.pop()
        {
            looked_at += 1;
            let row = event::row_of(get, num)?;
            let event = load_row(get, room.version, &row)?;
            self.add(get, room, event.prev_events().map(|id| id.as_str()))?;
            if !row.flags.rejected {
                found.push_back(num);
            }
        }
        Ok(found)
    }
}

/// The answer, written a few events at a time.
struct Batch {
    rooms: Rooms,
    origin: ruma::OwnedServerName,
    room: RoomRef,
    left: VecDeque<EventNum>,
    head: Option<String>,
}

impl Chunks for Batch {
    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, ChunkError> {
        let read = self.rooms.read()?;
        let mut first = false;
        if let Some(head) = self.head.take() {
            out.extend_from_slice(head.as_bytes());
            first = true;
        }
        let before = out.len();
        while let Some(num) = self.left.pop_front() {
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            let row = event::row_of(&read, num)?;
            let event = load_row(&read, self.room.version, &row)?;
            match server_access::may_see_event(&read, &self.room, &row, &self.origin)? {
                true => out.extend_from_slice(event.to_federation()),
                false => out.extend_from_slice(event.redacted().to_federation()),
            }
            if out.len() - before >= PIECE_BYTES && !self.left.is_empty() {
                return Ok(true);
            }
        }
        out.extend_from_slice(b"]}");
        Ok(false)
    }
}

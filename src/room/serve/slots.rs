//! Slots for long answers to other servers: [`AT_ONCE`] of them, and one for each server.
//!
//! A slow reader keeps other servers waiting. An answer therefore has a minimum pace, and a quicker one while another
//! server waits. Only the reader's time counts, not the time we take to write a piece.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ruma::ServerName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::base::{self, ChunkError, Clock, KeyedGuard, KeyedLock};
use crate::budget::{Budget, Grant, Refused};
use crate::room::Rooms;
use crate::room::error::Result;
use crate::store::tables::room::event;
use crate::store::{self, EventNum};

/// The most answers of this kind at once; each reads the whole of a room.
const AT_ONCE: usize = 2;
/// The time a reader may take below any pace.
const GRACE: Duration = Duration::from_secs(30);
/// Bytes per second, on average over the whole answer. The state of the largest rooms is 150 MB: five hours, or an hour
/// and a quarter while others wait.
const PACE_MIN: u64 = 8 * 1024;
const PACE_AWAITED_MIN: u64 = 32 * 1024;

#[derive(Clone)]
pub(in crate::room) struct Slots(Arc<Inner>);

struct Inner {
    places: Arc<Semaphore>,
    /// Servers that have a slot or wait for one: as many as there are requests.
    served: KeyedLock,
    /// The number of servers that wait because all slots are taken.
    waiting: AtomicUsize,
}

impl Default for Slots {
    fn default() -> Slots {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        Slots(Arc::new(Inner { places, served: KeyedLock::default(), waiting: AtomicUsize::new(0) }))
    }
}

/// A server's slot; released by drop.
pub(in crate::room) struct Slot {
    _permit: OwnedSemaphorePermit,
    turns: Slots,
    only: KeyedGuard,
}

impl Slots {
    /// Waits until the server's previous answer has ended, and then for a slot.
    pub async fn take(&self, server: &ServerName) -> Slot {
        let only = self.0.served.take(server.as_str()).await;
        let _waiting = Waiting::new(&self.0.waiting);
        let permit = self.0.places.clone().acquire_owned().await.expect("it is never closed");
        Slot { _permit: permit, turns: self.clone(), only }
    }

    fn is_awaited(&self) -> bool {
        self.0.waiting.load(Ordering::Relaxed) > 0
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    fn new(count: &AtomicUsize) -> Waiting<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        Waiting(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Measures how fast an answer is read, and holds its slot meanwhile.
pub(in crate::room) struct Reader {
    place: Slot,
    clock: Clock,
    handed_over: Option<Duration>,
    waited: Duration,
    bytes: u64,
}

impl Reader {
    pub fn new(place: Slot, clock: Clock) -> Reader {
        Reader { place, clock, handed_over: None, waited: Duration::ZERO, bytes: 0 }
    }

    /// The reader asks for the next piece; an error when it took too long over the pieces before.
    pub fn asks(&mut self) -> Result<(), ChunkError> {
        let Some(since) = self.handed_over.take() else { return Ok(()) };
        self.waited += self.clock.instant().saturating_sub(since);
        let pace = if self.place.turns.is_awaited() { PACE_AWAITED_MIN } else { PACE_MIN };
        if self.waited > GRACE && self.bytes < self.waited.as_secs() * pace {
            let why = format!("{} reads less than {pace} bytes a second", self.place.only.name());
            return Err(ChunkError::new(why));
        }
        Ok(())
    }

    pub fn is_given(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.handed_over = Some(self.clock.instant());
    }
}

/// How long a request waits for a slot before it is told to come back, in milliseconds.
const TURN_MS: u64 = 60_000;

/// A bitmap larger than this is charged to the `join` account: a room of the size that account is for is being handed
/// over.
const SMALL_BITMAP_BYTES: u64 = 64 * 1024;

/// Waits for a server's slot. The caller holds no grant or lock, and has checked that the server may ask.
pub async fn acquire(rooms: &Rooms, origin: &ServerName) -> Result<Turn> {
    let parts = &rooms.0.parts;
    let waiting = rooms.0.turns.take(origin);
    let place = parts.clock.timeout(std::time::Duration::from_millis(TURN_MS), waiting).await;
    let place = place.ok_or_else(|| busy(&parts.budget))?;
    let rooms = rooms.clone();
    let bits_max = base::blocking(move || highest_event(&rooms)).await?;
    let bytes = u64::from(bits_max) / 8 + 64;
    let (small, bitmap) = match bytes <= SMALL_BITMAP_BYTES {
        true => (bytes, None),
        false => (0, Some(parts.budget.account("join").take(bytes).await?)),
    };
    let grant = parts.budget.account("response_bodies").take(PIECE_BYTES_MAX + small).await?;
    Ok(Turn { place, grant, bitmap, bits_max })
}

/// The highest event number; the events of this answer have at most this number.
fn highest_event(rooms: &Rooms) -> store::Result<u32> {
    let mut highest = 0;
    event::rows_down(&rooms.0.parts.store.read()?, EventNum(u32::MAX - 1), &mut |num, _| {
        highest = num.0;
        Ok(ControlFlow::Break(()))
    })?;
    // Headroom for events appended before the answer begins: the joining event itself.
    Ok(highest.saturating_add(64))
}

fn busy(budget: &Budget) -> Refused {
    Refused {
        account: "response_bodies".to_owned(),
        asked: PIECE_BYTES_MAX,
        limit: budget.account("response_bodies").limit(),
        retry_after_ms: TURN_MS,
        too_large: false,
    }
}

pub const PIECE_BYTES_MAX: u64 = 16 * 1024 + 3 * 64 * 1024;

/// A slot, and the memory for the answer.
pub(in crate::room) struct Turn {
    pub place: Slot,
    pub grant: Grant,
    pub bitmap: Option<Grant>,
    pub bits_max: u32,
}

#[cfg(test)]
mod tests {
    use ruma::OwnedServerName;

    use super::*;

    fn name(text: &str) -> OwnedServerName {
        text.try_into().unwrap()
    }

    async fn waits<T>(turn: impl Future<Output = T>) -> bool {
        tokio::time::timeout(Duration::from_millis(20), turn).await.is_err()
    }

    #[tokio::test]
    async fn one_server_has_one_turn() {
        let turns = Slots::default();
        let one = turns.take(&name("one.example")).await;
        assert!(waits(turns.take(&name("one.example"))).await);
        let two = turns.take(&name("two.example")).await;
        assert!(waits(turns.take(&name("three.example"))).await);
        assert!(!turns.is_awaited(), "nobody waits any more");
        drop(one);
        let _three = turns.take(&name("three.example")).await;
        drop(two);
        let _one = turns.take(&name("one.example")).await;
        assert!(waits(turns.take(&name("two.example"))).await);
    }

    #[tokio::test]
    async fn slow_readers_lose_their_place_sooner_while_others_wait() {
        let (turns, clock) = (Slots::default(), Clock::simulated(0));
        let mut reader = Reader::new(turns.take(&name("one.example")).await, clock.clone());
        let read = |reader: &mut Reader, seconds: u64| {
            reader.is_given(16 * 1024);
            clock.advance(Duration::from_secs(seconds));
            reader.asks().is_ok()
        };
        assert!(reader.asks().is_ok());
        assert!((0..100).all(|_| read(&mut reader, 1)));
        let _two = turns.take(&name("two.example")).await;
        let waiting = name("three.example");
        let three = turns.take(&waiting);
        tokio::pin!(three);
        assert!(waits(three.as_mut()).await);
        assert!(!read(&mut reader, 1), "16 KiB a second is too slow now");
        drop(reader);
        three.await;
        let mut slow = Reader::new(turns.take(&name("one.example")).await, clock.clone());
        assert!(read(&mut slow, 16) && !read(&mut slow, 16), "a KiB a second always is");
    }
}

//! How much of the disk other servers may fill in an hour.
//!
//! Everything another server makes us store counts in bytes, for that server and for the room: the events it pushes,
//! and the events we fetch from it to understand those. A server beyond its hour is asked to come again later, before
//! any of its events is read, and keeps them in its own queue. A room beyond its hour, which takes several such
//! servers, is left alone for a while: the other rooms of a transaction go on, and the events left out are fetched like
//! any other gap when the room's next event comes.
//!
//! A bucket leaks all the time, at a rate that empties a full one in an hour; so one large piece may overfill it.
//! Bounded: [`BUCKETS_MAX`] of them, some 40 bytes each. Where there are more, the least full bucket is forgotten, so a
//! server cannot empty its own by pushing it out.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::{Mutex, MutexGuard};
use ruma::ServerName;

use crate::base::Clock;
use crate::budget::{Refused, human};
use crate::matrix::Reject;
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::store::RoomNum;

const BUCKETS_MAX: usize = 1024;
const HOUR_MS: u64 = 60 * 60 * 1000;
/// A room is filled by many servers, none of which may fill it alone.
const ROOM_TIMES: u64 = 2;
/// A server that is put off is asked to wait at least so long.
const RETRY_MS_MIN: u64 = 60_000;

/// The buckets of servers and rooms.
pub(in crate::room) struct Intake {
    clock: Clock,
    hasher: RandomState,
    /// The bytes one server may fill in an hour.
    hourly_bytes_max: AtomicU64,
    buckets: Mutex<HashMap<u64, Bucket>>,
}

#[derive(Clone, Copy)]
struct Bucket {
    bytes: u64,
    at_ms: u64,
    bytes_max: u64,
    /// A full bucket has been logged.
    is_said: bool,
}

impl Bucket {
    fn leak(&mut self, now_ms: u64) {
        let leaked = self.bytes_max as f64 / HOUR_MS as f64 * now_ms.saturating_sub(self.at_ms) as f64;
        // A part of a byte waits for the next time.
        if leaked >= 1.0 {
            self.bytes = self.bytes.saturating_sub(leaked as u64);
            self.at_ms = now_ms;
        }
        self.is_said &= self.bytes > self.bytes_max / 2;
    }

    fn is_full(&self) -> bool {
        self.bytes >= self.bytes_max
    }

    /// The time until an eighth of the bucket is free again.
    fn retry_ms(&self) -> u64 {
        let over = self.bytes.saturating_sub(self.bytes_max / 8 * 7);
        ((over as f64 / self.bytes_max.max(1) as f64 * HOUR_MS as f64) as u64).max(RETRY_MS_MIN)
    }
}

impl Intake {
    pub(in crate::room) fn new(clock: Clock) -> Intake {
        let (hasher, hourly_bytes_max) = (RandomState::new(), AtomicU64::new(u64::MAX / 4));
        Intake { clock, hasher, hourly_bytes_max, buckets: Mutex::default() }
    }

    /// Whether a server may send something now; if not, after how many milliseconds.
    fn check_server(&self, server: &ServerName) -> Result<(), u64> {
        match self.look(self.of_server(server)) {
            Some(bucket) if bucket.is_full() => Err(bucket.retry_ms()),
            _ => Ok(()),
        }
    }

    fn charge_server(&self, server: &ServerName, bytes: u64) {
        if let Some(full) = self.charge(self.of_server(server), 1, bytes) {
            tracing::warn!(
                %server,
                "the server sent {} within an hour, which is the limit (federation.hourly_bytes_max): its events are \
                 refused until less was sent within the last hour",
                human(full)
            );
        }
    }

    fn is_room_full(&self, room: RoomNum) -> bool {
        self.look(self.of_room(room)).is_some_and(|bucket| bucket.is_full())
    }

    fn charge_room(&self, room: RoomNum, room_id: &str, bytes: u64) {
        if let Some(full) = self.charge(self.of_room(room), ROOM_TIMES, bytes) {
            tracing::warn!(
                room_id,
                "the room received {} within an hour, which is the limit (twice federation.hourly_bytes_max): its \
                 events are refused until less was received within the last hour",
                human(full)
            );
        }
    }

    /// Keyed hashes: no server can choose with which others it shares a bucket.
    fn of_server(&self, server: &ServerName) -> u64 {
        self.hasher.hash_one(("server", server.as_str()))
    }

    fn of_room(&self, room: RoomNum) -> u64 {
        self.hasher.hash_one(("room", room.0))
    }

    fn look(&self, key: u64) -> Option<Bucket> {
        let now_ms = self.now_ms();
        let mut bucket = *self.lock().get(&key)?;
        bucket.leak(now_ms);
        Some(bucket)
    }

    /// Adds to a bucket. Answers its content when this filled it and that is not logged yet.
    fn charge(&self, key: u64, times: u64, bytes: u64) -> Option<u64> {
        let (now_ms, bytes_max) = (self.now_ms(), self.hourly_bytes_max.load(Relaxed) * times);
        let mut buckets = self.lock();
        if !buckets.contains_key(&key) && buckets.len() >= BUCKETS_MAX {
            make_room(&mut buckets, now_ms);
        }
        let new = Bucket { bytes: 0, at_ms: now_ms, bytes_max, is_said: false };
        let bucket = buckets.entry(key).or_insert(new);
        bucket.bytes_max = bytes_max;
        bucket.leak(now_ms);
        bucket.bytes = bucket.bytes.saturating_add(bytes);
        let is_news = bucket.is_full() && !bucket.is_said;
        bucket.is_said |= is_news;
        is_news.then_some(bucket.bytes)
    }

    fn now_ms(&self) -> u64 {
        self.clock.instant().as_millis() as u64
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Bucket>> {
        self.buckets.lock()
    }
}

/// Forgets the empty buckets, or else the one that is least full.
fn make_room(buckets: &mut HashMap<u64, Bucket>, now_ms: u64) {
    buckets.values_mut().for_each(|bucket| bucket.leak(now_ms));
    buckets.retain(|_, bucket| bucket.bytes > 0);
    if buckets.len() >= BUCKETS_MAX
        && let Some(least) = buckets.iter().min_by_key(|(_, bucket)| bucket.bytes).map(|(key, _)| *key)
    {
        buckets.remove(&least);
    }
}

impl Rooms {
    /// Sets the bytes that one server may make us store in an hour. `serve` does so once.
    pub fn set_hourly_bytes_max(&self, bytes: u64) {
        self.0.intake.hourly_bytes_max.store(bytes, Relaxed);
    }

    /// Whether an event of another server may be stored now. Fails only with [`Error::is_passing`].
    pub fn check_intake(&self, server: &ServerName) -> Result<()> {
        self.0.parts.store.check_spare()?;
        self.0.intake.check_server(server).map_err(put_off)
    }

    /// Counts bytes that a server sent.
    pub fn charge_intake(&self, server: &ServerName, bytes: u64) {
        self.0.intake.charge_server(server, bytes);
    }
}

/// Whether more of a room may be fetched from a server, to understand the events it sent.
pub fn check_fetching(rooms: &Rooms, server: &ServerName, room: RoomNum) -> Result<()> {
    rooms.check_intake(server)?;
    if rooms.0.intake.is_room_full(room) {
        return Err(Reject::auth(ROOM_FULL).into());
    }
    Ok(())
}

/// Counts bytes fetched for that.
pub fn charge_fetched(rooms: &Rooms, server: &ServerName, (room, room_id): (RoomNum, &str), bytes: u64) {
    rooms.0.intake.charge_server(server, bytes);
    rooms.0.intake.charge_room(room, room_id, bytes);
}

/// Counts events that were sent to a room, unless it is full.
pub fn charge_room(rooms: &Rooms, room: RoomNum, room_id: &str, bytes: u64) -> Result<(), &'static str> {
    if rooms.0.intake.is_room_full(room) {
        return Err(ROOM_FULL);
    }
    rooms.0.intake.charge_room(room, room_id, bytes);
    Ok(())
}

const ROOM_FULL: &str = "the room received more within an hour than this server accepts; the event is fetched later";

/// A refusal for a while: the same words as where memory is short.
fn put_off(retry_after_ms: u64) -> Error {
    let account = "federation.hourly_bytes_max".to_owned();
    Error::Refused(Refused { account, asked: 0, limit: 0, retry_after_ms, too_large: false })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn intake(hourly_bytes_max: u64) -> (Intake, Clock) {
        let clock = Clock::simulated(0);
        let intake = Intake::new(clock.clone());
        intake.hourly_bytes_max.store(hourly_bytes_max, Relaxed);
        (intake, clock)
    }

    fn server(name: &str) -> ruma::OwnedServerName {
        ServerName::parse(name).unwrap()
    }

    /// One server wrote 9 MB/s for ever.
    #[test]
    fn a_server_fills_no_more_than_its_hour() {
        let (intake, clock) = intake(128 << 20);
        let (flood, calm) = (server("flood.example"), server("calm.example"));
        let mut taken = 0;
        for second in 0..6 * 3600u32 {
            if intake.check_server(&flood).is_ok() {
                intake.charge_server(&flood, 9_000_000);
                taken += 9_000_000u64;
            }
            // A busy room of an honest server: five events a second.
            assert_eq!(intake.check_server(&calm), Ok(()), "{second}");
            intake.charge_server(&calm, 5_000);
            clock.advance(Duration::from_secs(1));
        }
        // The bucket once, and the leak of six hours.
        assert!((7 * (128 << 20) - 9_000_000..=7 * (128 << 20) + 9_000_000).contains(&taken), "{taken}");
        intake.charge_server(&flood, 16 << 20);
        let retry_ms = intake.check_server(&flood).unwrap_err();
        clock.advance(Duration::from_millis(retry_ms));
        assert_eq!(intake.check_server(&flood), Ok(()), "after as long as it was told");
    }

    #[test]
    fn a_room_is_full_for_all_and_others_are_not() {
        let (intake, clock) = intake(1000);
        intake.charge_room(RoomNum(1), "!a:b.example", 1999);
        assert!(!intake.is_room_full(RoomNum(1)));
        assert_eq!(intake.charge(intake.of_room(RoomNum(1)), ROOM_TIMES, 1), Some(2000), "it is said once");
        assert_eq!(intake.charge(intake.of_room(RoomNum(1)), ROOM_TIMES, 1), None);
        assert!(intake.is_room_full(RoomNum(1)) && !intake.is_room_full(RoomNum(2)));
        clock.advance(Duration::from_secs(60));
        assert!(!intake.is_room_full(RoomNum(1)));
    }

    /// A table that forgets the oldest buckets first can be emptied with many server names.
    #[test]
    fn many_names_do_not_push_out_who_took_most() {
        let (intake, _clock) = intake(1000);
        let flood = server("flood.example");
        intake.charge_server(&flood, 1000);
        for n in 0..3 * BUCKETS_MAX {
            intake.charge_server(&server(&format!("s{n}.example")), 10);
        }
        assert!(intake.check_server(&flood).is_err());
        assert!(intake.lock().len() <= BUCKETS_MAX);
    }
}

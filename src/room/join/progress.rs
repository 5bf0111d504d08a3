//! The progress of a join, for the log and for `snug rooms`.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::Notify;

/// Counters of one join, written by its threads and tasks.
#[derive(Default)]
pub struct Progress {
    phase: AtomicU8,
    /// Events in the answer so far, duplicates included.
    pub seen: AtomicU64,
    /// Events whose hashes and signatures were looked at.
    pub checked: AtomicU64,
    /// Events stored, by earlier attempts too.
    pub stored: AtomicU64,
    /// Events refused: malformed, forged, or signed with keys that cannot be had.
    pub refused: AtomicU64,
    /// Events that wait for a key.
    pub pending: AtomicU64,
    pub bytes: AtomicU64,
    /// Size of the whole answer; 0 when the resident server does not say.
    pub bytes_total: AtomicU64,
    pub events_expected: AtomicU64,
    /// An admin cancelled the join.
    cancelled: AtomicBool,
    wake: Notify,
    /// A resident server accepted our event: when the join fails, that server is told that we leave again.
    pub accepted: AtomicBool,
}

/// The present step of a join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    Asking = 0,
    Receiving = 1,
    Keys = 2,
    Ordering = 3,
    Judging = 4,
    Indexing = 5,
    Cleaning = 6,
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Asking => "asking",
            Phase::Receiving => "receiving",
            Phase::Keys => "fetching keys",
            Phase::Ordering => "ordering",
            Phase::Judging => "judging",
            Phase::Indexing => "indexing",
            Phase::Cleaning => "cleaning up",
        }
    }

    fn of(code: u8) -> Phase {
        match code {
            1 => Phase::Receiving,
            2 => Phase::Keys,
            3 => Phase::Ordering,
            4 => Phase::Judging,
            5 => Phase::Indexing,
            6 => Phase::Cleaning,
            _ => Phase::Asking,
        }
    }
}

/// A join under way, in the form shown to admins and users.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct JoinStatus {
    pub room_id: String,
    pub user_id: String,
    pub phase: String,
    pub seen: u64,
    pub checked: u64,
    pub stored: u64,
    pub refused: u64,
    pub pending: u64,
    pub bytes: u64,
    pub bytes_total: u64,
    pub seconds: u64,
    pub seconds_left: Option<u64>,
}

impl Progress {
    pub fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    pub fn phase(&self) -> Phase {
        Phase::of(self.phase.load(Relaxed))
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Relaxed)
    }

    pub fn cancel(&self) {
        self.cancelled.store(true, Relaxed);
        self.wake.notify_waiters();
    }

    /// Waits for another server, or until the join is cancelled.
    pub async fn unless_cancelled<T>(&self, work: impl Future<Output = T>) -> Result<T, super::error::JoinError> {
        let woken = self.wake.notified();
        tokio::pin!(woken);
        // Registered before the mark is read: a cancel in between would otherwise be slept through.
        woken.as_mut().enable();
        if self.is_cancelled() {
            return Err(super::error::JoinError::Cancelled);
        }
        tokio::select! {
            done = work => Ok(done),
            () = woken => Err(super::error::JoinError::Cancelled),
        }
    }

    pub fn add(counter: &AtomicU64, more: u64) {
        counter.fetch_add(more, Relaxed);
    }

    pub fn underway(&self, room_id: &str, user_id: &str, since: Duration) -> JoinStatus {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        JoinStatus {
            room_id: room_id.to_owned(),
            user_id: user_id.to_owned(),
            phase: self.phase().as_str().to_owned(),
            seen: of(&self.seen),
            checked: of(&self.checked),
            stored: of(&self.stored),
            refused: of(&self.refused),
            pending: of(&self.pending),
            bytes: of(&self.bytes),
            bytes_total: of(&self.bytes_total),
            seconds: since.as_secs(),
            seconds_left: self.left(since),
        }
    }

    /// By the bytes when the resident server gave their number, else by the events its complexity foretold.
    fn left(&self, since: Duration) -> Option<u64> {
        let of = |counter: &AtomicU64| counter.load(Relaxed);
        let (done, total) = match of(&self.bytes_total) {
            0 => (of(&self.seen), of(&self.events_expected)),
            total => (of(&self.bytes), total),
        };
        if self.phase() != Phase::Receiving || done == 0 || total == 0 {
            return None;
        }
        Some((since.as_millis() as u64).saturating_mul(total.saturating_sub(done)) / done / 1000)
    }
}

impl std::fmt::Display for JoinStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let JoinStatus { room_id, phase, seen, checked, stored, refused, pending, bytes, seconds, .. } = self;
        write!(
            f,
            "{room_id}: {phase}, {seen} events seen, {checked} checked, {stored} stored, {refused} refused, {pending} \
             waiting for keys, {:.1} MB, {seconds} s",
            *bytes as f64 / 1e6
        )?;
        match self.seconds_left {
            Some(left) => write!(f, ", about {left} s left"),
            None => Ok(()),
        }
    }
}

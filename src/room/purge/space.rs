//! Gives the space of removed rows back to the disk while the server runs, by itself after much was removed, or when asked.
//!
//! A walk lays the rows of the database out in full pages, a bounded step at a time (`store/repack.rs`), and waits four times
//! as long as it worked; then the file's free end is given back. What a walk moved into places near the new end moves again in
//! the next. It waits beside a backup. A restart ends it; nothing is lost by that, and whoever asks again goes on with what is left.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Notify;

use crate::base::{StopWatch, Worker, blocking};
use crate::budget::Grant;
use crate::room::Rooms;
use crate::room::error::Result;
use crate::store::{Place, STEP_BYTES_MAX};

/// What has no hurry leaves four parts of five to others.
const PATIENCE: u32 = 4;
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Walks at least, and at most. The first makes room at the front, in which the second finds place for what lies at the end; a third
/// follows when that gained a sixteenth. They mostly read.
const WALKS_MIN: u32 = 2;
const WALKS_MAX: u32 = 3;
/// Tries to find a moment without a snapshot, and between two.
const TRIMS_MAX: u32 = 60;
const TRIM_AGAIN: Duration = Duration::from_secs(1);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(60);
/// Times that a step waits for its memory: an hour.
const GRANTS_MAX: u32 = 60;
/// Tries before it is given up until somebody asks again.
const FAILURES_MAX: u32 = 3;

/// What a removed event leaves free, in round figures: its row, body, id and place.
const EVENT_BYTES: u64 = 400;
/// Less than this is not worth reading the whole database for.
const REMOVED_BYTES_MIN: u64 = 8 << 20;

/// The database's size, and whether it is being made smaller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Space {
    pub is_under_way: bool,
    /// Of the present walk.
    pub part: f64,
    /// Bytes of the file when it began, and at its end; of the last time while none is under way.
    pub before_bytes: u64,
    pub after_bytes: u64,
    pub outcome: Outcome,
}

/// How it ended the last time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    #[default]
    Done,
    /// All was laid out anew, and there was no moment without a snapshot to give the end of the file back.
    Held,
    /// It failed several times, and was given up.
    Failed,
}

#[derive(Default)]
pub struct Keeper {
    wake: Notify,
    space: Mutex<Space>,
    /// Events removed since the database was last made smaller, or the start.
    removed: AtomicU64,
}

impl Rooms {
    /// Begins to make the database's file smaller; goes on when that is under way.
    pub fn make_space(&self) {
        let keeper = &self.0.space;
        {
            let mut space = keeper.space.lock();
            if space.is_under_way {
                return;
            }
            *space = Space { is_under_way: true, before_bytes: self.database_bytes(), ..Space::default() };
        }
        keeper.removed.store(0, Relaxed);
        keeper.wake.notify_one();
    }

    pub fn space(&self) -> Space {
        *self.0.space.space.lock()
    }

    /// Notes that events were removed.
    pub(super) fn note_removed(&self, events: u64) {
        self.0.space.removed.fetch_add(events, Relaxed);
    }

    /// Makes the database smaller when an eighth of it or more was removed.
    pub(super) fn make_space_after_much(&self) {
        let bytes = self.0.space.removed.load(Relaxed) * EVENT_BYTES;
        if bytes >= REMOVED_BYTES_MIN.max(self.database_bytes() / 8) {
            self.make_space();
        }
    }

    /// Makes the database smaller when asked, as long as the server runs. A unit of the worker is a row that was looked at.
    pub async fn keep_small(&self, worker: &Worker) {
        let keeper = &self.0.space;
        loop {
            worker.idle();
            // What was begun goes on after a panic, and a wake-up may be of what is done already.
            while !self.space().is_under_way {
                keeper.wake.notified().await;
            }
            let outcome = self.make_small_or_give_up(worker).await;
            let (before, after) = {
                let mut space = keeper.space.lock();
                (space.is_under_way, space.after_bytes, space.outcome) = (false, self.database_bytes(), outcome);
                (space.before_bytes, space.after_bytes)
            };
            match outcome {
                Outcome::Done => tracing::info!(before, after, "the database was made smaller"),
                Outcome::Held => tracing::info!(
                    before,
                    after,
                    "rows of the database were laid out anew; the end of its file goes back to the disk when the server is \
                     stopped, since something was read all the while"
                ),
                Outcome::Failed => tracing::warn!(
                    before,
                    after,
                    "that the database becomes smaller is given up until it is asked for again"
                ),
            }
        }
    }

    async fn make_small_or_give_up(&self, worker: &Worker) -> Outcome {
        let mut failures = 0;
        loop {
            match self.make_small(worker).await {
                Ok(true) => return Outcome::Done,
                Ok(false) => return Outcome::Held,
                Err(failed) => {
                    tracing::warn!(%failed, "the database could not be made smaller");
                    worker.failed(failed);
                    failures += 1;
                }
            }
            if failures == FAILURES_MAX {
                return Outcome::Failed;
            }
            worker.idle_for(AGAIN);
            self.0.parts.clock.sleep(AGAIN).await;
        }
    }

    /// Walks through the database until that gains little. Answers whether the end of the file was given back.
    pub(super) async fn make_small(&self, worker: &Worker) -> Result<bool> {
        let mut is_given_back = false;
        for walk in 1..=WALKS_MAX {
            let before = self.database_bytes();
            self.walk(worker).await?;
            is_given_back = self.trim(worker).await?;
            if walk >= WALKS_MIN && self.database_bytes() > before / 16 * 15 {
                break;
            }
        }
        Ok(is_given_back)
    }

    async fn walk(&self, worker: &Worker) -> Result<()> {
        let (parts, space) = (&self.0.parts, &self.0.space.space);
        let store = parts.store.clone();
        let rows = blocking(move || store.repack_rows()).await?.max(1);
        let (mut from, mut done) = (Some(Place::default()), 0);
        while let Some(place) = from {
            self.wait_for_snapshots(worker).await;
            worker.works_on("making the database smaller");
            let watch = StopWatch::start();
            let step = {
                let _grant = self.step_grant(worker).await?;
                parts.store.repack(place).await?
            };
            worker.done(step.rows);
            done += step.rows;
            from = step.next;
            space.lock().part = (done as f64 / rows as f64).min(1.0);
            // What is only read costs little; what is written is written for others to wait for.
            let pause = (watch.elapsed() * PATIENCE).clamp(PAUSE_MIN, PAUSE_MAX);
            worker.idle_for(pause);
            parts.clock.sleep(pause).await;
        }
        Ok(())
    }

    /// Waits until what the step before left free can be used: a backup holds a snapshot for as long as it takes, and beside it
    /// a walk would write the database once more behind its end.
    async fn wait_for_snapshots(&self, worker: &Worker) {
        let mut pause = PAUSE_MIN;
        while !self.0.parts.store.are_old_snapshots_gone() {
            worker.works_on("waiting for the end of a backup, or a long answer");
            self.0.parts.clock.sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// The memory of a step: where the sweep of state trees has its own, for minutes. They take turns, and a walk waits at the
    /// place that it has reached.
    async fn step_grant(&self, worker: &Worker) -> Result<Grant> {
        let account = self.0.parts.budget.account("state_nodes");
        for _ in 0..GRANTS_MAX {
            if let Ok(grant) = account.take(STEP_BYTES_MAX).await {
                return Ok(grant);
            }
            worker.idle_for(AGAIN);
            self.0.parts.clock.sleep(AGAIN).await;
        }
        Ok(account.take(STEP_BYTES_MAX).await?)
    }

    /// Gives the file's end back at the first moment without a snapshot. A backup holds one for as long as it takes: then the
    /// next clean end of the server does it, and the answer is false.
    async fn trim(&self, worker: &Worker) -> Result<bool> {
        worker.works_on("waiting for a moment to give the free space back");
        for _ in 0..TRIMS_MAX {
            if self.0.parts.store.trim().await? {
                return Ok(true);
            }
            self.0.parts.clock.sleep(TRIM_AGAIN).await;
        }
        Ok(false)
    }
}

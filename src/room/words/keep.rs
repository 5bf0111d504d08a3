//! Keeps the index of words.
//!
//! It follows the numbers of the events, some hundreds behind: a message writes no row more than without it, and costs nothing
//! before the next flush. A search reads by itself what is not in the index yet. What was there before the index is
//! taken in from the newest to the oldest. Merging and that wait ten times as long as they worked.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;

use super::{Key, hashes};
use crate::base::{StopWatch, Worker};
use crate::matrix::json;
use crate::room::Rooms;
use crate::room::error::Result;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::Row;
use crate::store::tables::room::search::{self, Down, Posting, Status, stale, status};
use crate::store::{self, Change, EventNum, Follower, Get, Position, Read, Store, Write};

/// Events behind the index, of all kinds, that make a flush worthwhile. A search reads those of them that have words.
pub const BEHIND: u64 = 256;
/// Postings gathered for a segment, 16 bytes each; the last event may add [`super::WORDS_MAX`].
const POSTINGS_MAX: usize = 4_096;
/// Events looked at for one: most have no words, and of some the body is read.
const LOOKED_AT_MAX: usize = 2_000;
/// Late events taken in with a segment.
const LATE_MAX: usize = 64;
/// What a step holds: 6,144 postings of 16 bytes, and the segment of half of that which is made of them; or nine chunks of a
/// merge and the 64 it writes.
const STEP_BYTES: u64 = 160 * 1024;
/// Chunks that a step of a merge writes, and rows that are removed at once.
const CHUNKS_A_STEP: usize = 32;
const ROWS_A_STEP: usize = 128;
/// Words taken out at once: each is looked up in every segment.
const WORDS_A_STEP: usize = 32;

/// What has no hurry leaves ten parts of eleven to others.
const PATIENCE: u32 = 10;
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(60);

/// Whether rooms can be searched, and how large the index may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SearchOptions {
    pub enabled: bool,
    pub bytes_max: u64,
}

impl Default for SearchOptions {
    fn default() -> SearchOptions {
        SearchOptions { enabled: true, bytes_max: 256 << 20 }
    }
}

/// What wakes the index's worker.
pub struct Keeper {
    wake: Arc<Wake>,
    options: OnceLock<SearchOptions>,
}

#[derive(Default)]
struct Wake {
    /// Changes of rooms since the worker was last woken.
    changes: AtomicU64,
    notify: Notify,
}

impl Keeper {
    pub fn new(store: &Store) -> Keeper {
        let wake = Arc::new(Wake::default());
        store.follow(wake.clone());
        Keeper { wake, options: OnceLock::new() }
    }

    /// A search found much that is not in the index.
    pub fn is_behind(&self) {
        self.wake.notify.notify_one();
    }

    pub fn options(&self) -> SearchOptions {
        self.options.get().copied().unwrap_or_default()
    }
}

impl Follower for Wake {
    fn committed(&self, changes: &[&Change], _: Position) {
        let rooms = changes.iter().filter(|change| change.room.is_some()).count() as u64;
        let all = self.changes.fetch_add(rooms, Ordering::Relaxed) + rooms;
        if all >= BEHIND || changes.iter().any(|change| change.words) {
            self.changes.store(0, Ordering::Relaxed);
            self.notify.notify_one();
        }
    }

    fn lost(&self, _: Position) {
        self.notify.notify_one();
    }
}

/// What a step of the worker was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// There is nothing to do.
    Nothing,
    /// Somebody may look for it.
    Soon(u64),
    /// It can wait.
    Whenever(u64),
}

impl Rooms {
    /// Sets once, at the start, whether rooms can be searched.
    pub fn set_search(&self, options: SearchOptions) {
        let _ = self.0.words.options.set(options);
    }

    /// Keeps the index of words as long as the server runs. A unit of the worker is an event that was taken in.
    pub async fn keep_indexed(&self, worker: &Worker) {
        let clock = &self.0.parts.clock;
        loop {
            worker.works_on("the index of words");
            let watch = StopWatch::start();
            match step(self).await {
                Ok(Step::Nothing) => {
                    worker.idle();
                    self.0.words.wake.notify.notified().await;
                }
                Ok(Step::Soon(events)) => worker.done(events),
                Ok(Step::Whenever(events)) => {
                    worker.done(events);
                    let pause = (watch.elapsed() * PATIENCE).clamp(PAUSE_MIN, PAUSE_MAX);
                    worker.idle_for(pause);
                    clock.sleep(pause).await;
                }
                Err(failed) => {
                    tracing::warn!(%failed, "the index of words could not be kept; it is tried again in a minute");
                    worker.failed(failed);
                    worker.idle_for(RETRY);
                    clock.sleep(RETRY).await;
                }
            }
        }
    }

    /// Whether the index has all it is going to have. For tests.
    #[cfg(test)]
    pub(crate) async fn index_all(&self) {
        while step(self).await.expect("the store of a test does not fail") != Step::Nothing {}
    }
}

/// One step: the most urgent.
async fn step(rooms: &Rooms) -> Result<Step> {
    let options = rooms.0.words.options();
    let found = rooms.reading(|_, read| Ok((status::get(read)?, read.next_number("event")?))).await?;
    let (status, next) = match found {
        (None, _) if !options.enabled => return Ok(Step::Nothing),
        (None, _) => {
            let begin = |w: &mut Write<'_>| {
                let next = EventNum(w.next_number("event")?);
                status::set(w, Some(&Status { low: next, high: next, is_checked: true, ..Status::default() }))
            };
            writing(rooms, begin).await?;
            return Ok(Step::Soon(0));
        }
        (Some(_), _) if !options.enabled => {
            let cleared = rooms.0.parts.store.write_freeing(|w| search::clear(w, ROWS_A_STEP)).await;
            cleared.map_err(store::Error::from)?;
            return Ok(Step::Whenever(0));
        }
        (Some(status), next) => (status, next),
    };
    let _grant = rooms.0.parts.budget.account("search").take(STEP_BYTES).await?;
    if forget_words(rooms).await? {
        return Ok(Step::Soon(0));
    }
    let has_late = rooms.reading(|_, read| Ok(!search::list_late(read, 1)?.is_empty())).await?;
    if u64::from(next.saturating_sub(status.high.0)) >= BEHIND || has_late {
        return take_in(rooms, true).await.map(Step::Soon);
    }
    // What follows needs room on the disk for a while.
    if rooms.0.parts.store.spare_bytes() == 0 {
        return Ok(Step::Nothing);
    }
    let bytes_max = options.bytes_max;
    let is_due =
        !status.gone.is_empty() || search::begin_merge(&mut status.clone(), bytes_max) || status.merge.is_some();
    if is_due {
        merge(rooms, bytes_max).await?;
        return Ok(Step::Whenever(0));
    }
    // A quarter of the room is for what is still to come.
    if status.low.0 > 1 && !status.is_full && status.bytes() < bytes_max / 4 * 3 {
        return take_in(rooms, false).await.map(Step::Whenever);
    }
    Ok(Step::Nothing)
}

/// Goes on with merging, or removes what was merged.
async fn merge(rooms: &Rooms, bytes_max: u64) -> Result<()> {
    writing(rooms, move |w| {
        let Some(mut status) = status::get(w)? else { return Ok(()) };
        if !status.gone.is_empty() {
            search::sweep(w, &mut status, ROWS_A_STEP)?;
        } else if status.merge.is_some() {
            search::merge_step(w, &mut status, CHUNKS_A_STEP)?;
        } else {
            search::begin_merge(&mut status, bytes_max);
        }
        status::set(w, Some(&status))
    })
    .await
}

async fn writing<T: Send + 'static>(
    rooms: &Rooms,
    job: impl FnOnce(&mut Write<'_>) -> store::Result<T> + Send + 'static,
) -> Result<T> {
    Ok(rooms.0.parts.store.write(job).await.map_err(store::Error::from)?.0)
}

/// Takes words of redacted events out of the index. False when there are none.
async fn forget_words(rooms: &Rooms) -> Result<bool> {
    if rooms.reading(|_, read| Ok(search::first_gone(read)?.is_none())).await? {
        return Ok(false);
    }
    writing(rooms, |w| {
        if let (Some(gone), Some(status)) = (search::first_gone(w)?, status::get(w)?) {
            search::take_out(w, &status, gone, WORDS_A_STEP)?;
        }
        Ok(true)
    })
    .await
}

/// What becomes a segment.
struct Batch {
    postings: Vec<Posting>,
    events: u64,
    looked_at: usize,
}

impl Batch {
    /// Adds an event. False when the batch is large enough.
    fn add(&mut self, get: &impl Get, row: &Row) -> store::Result<bool> {
        self.looked_at += 1;
        if let (Some(key), Some(order)) = (searchable(row), row.order) {
            let body = event::shown(get, row)?;
            let content = json::read::get(&body, "content").unwrap_or(b"{}");
            let (room, down) = (row.room, Down::of(order));
            self.postings.extend(hashes(get, key, content).into_iter().map(|hash| Posting { hash, room, down }));
            self.events += 1;
        }
        Ok(self.postings.len() < POSTINGS_MAX && self.looked_at < LOOKED_AT_MAX)
    }
}

/// What an event can be found by, if it can.
pub fn searchable(row: &Row) -> Option<Key> {
    let flags = row.flags;
    Key::of_row(row).filter(|_| !flags.redacted && !flags.rejected && !flags.soft_failed && row.order.is_some())
}

/// Makes a segment of the events that come next: the new ones, or the newest of those from before the index. Answers how
/// many have words.
async fn take_in(rooms: &Rooms, forwards: bool) -> Result<u64> {
    let gathered = rooms.reading(move |_, read| Ok(gather(read, forwards)?)).await?;
    let Some((was, now, late, mut batch)) = gathered else { return Ok(0) };
    let events = batch.events;
    writing(rooms, move |w| {
        let Some(mut status) = status::get(w)?.filter(|status| (status.low, status.high) == was) else { return Ok(0) };
        stale::leave_out(w, &mut batch.postings)?;
        batch.postings.sort_unstable();
        (status.low, status.high) = now;
        late.into_iter().try_for_each(|num| search::remove_late(w, num))?;
        search::add(w, &mut status, &batch.postings, batch.events)?;
        status::set(w, Some(&status))?;
        Ok(events)
    })
    .await
}

type Range = (EventNum, EventNum);

fn gather(read: &Read, forwards: bool) -> store::Result<Option<(Range, Range, Vec<EventNum>, Batch)>> {
    let Some(Status { low, high, .. }) = status::get(read)? else { return Ok(None) };
    let mut batch = Batch { postings: Vec::new(), events: 0, looked_at: 0 };
    let mut late = Vec::new();
    let (mut new_low, mut new_high) = (low, high);
    if forwards {
        for num in search::list_late(read, LATE_MAX)? {
            if batch.postings.len() >= POSTINGS_MAX {
                break;
            }
            late.push(num);
            if let Some(row) = event::row(read, num)? {
                batch.add(read, &row)?;
            }
        }
        // Numbers that were set aside and have no row yet belong to a join: such events get their place later.
        let mut ended = true;
        event::rows_up(read, high, &mut |num, row| {
            new_high = EventNum(num.0 + 1);
            ended = batch.add(read, &row)?;
            Ok(if ended { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        if ended {
            new_high = EventNum(read.next_number("event")?);
        }
    } else {
        let mut ended = true;
        event::rows_down(read, EventNum(low.0.saturating_sub(1)), &mut |num, row| {
            new_low = num;
            ended = batch.add(read, &row)?;
            Ok(if ended { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        if ended {
            new_low = EventNum(1);
        }
    }
    Ok(Some(((low, high), (new_low, new_high), late, batch)))
}

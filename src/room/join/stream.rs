//! Receives a large answer: from the socket through the tokeniser and the workers into staged rows.
//!
//! ```text
//! socket → tokeniser → raw batches → workers → checked batches → the thread that stores
//!                                      └ events without a key → a scratch file, and their servers' keys are requested
//! ```
//!
//! Everything in between is a queue of a fixed size on the join's account: a slow step makes the others wait, back to
//! the socket. No lock is held while waiting.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use ruma::OwnedServerName;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::Span;

use super::batch::{CheckedBatch, RawBatch};
use super::check::Checker;
use super::error::JoinError;
use super::lane::MemoryLane;
use super::order::Scratch;
use super::progress::{Phase, Progress};
use super::stage::Stager;
use crate::base::{blocking, caught_in};
use crate::budget::queue::{self, NotSent};
use crate::budget::spill::{self, Spill};
use crate::budget::{Account, Grant};
use crate::matrix::scan::EventScanner;
use crate::remote::json_stream::{Events, Item, Limits, Malformed};
use crate::remote::{Body, Failed, Keys};

/// Each of the two queues. One batch with one event of the largest size fits.
const QUEUE_BYTES: u64 = 320 * 1024;
/// Memory of a worker's buffers beside its batches: four times a usual large event.
const WORKER_BYTES: u64 = 128 * 1024;
/// The tokeniser's held item and the frame in hand.
const WINDOW_BYTES: u64 = 128 * 1024;
/// Servers whose keys one join requests. The largest rooms have some ten thousand; a set of so many fills its table.
const SERVERS_MAX: usize = 14 * 1024;
const SERVER_BYTES: u64 = 11;
/// Key names that wait to be requested; about 100 bytes each.
const WANTED_MAX: usize = 512;
/// Names in one round of requests.
const ROUND_NAMES: usize = 256;
/// Number of events waiting for keys from which on they are tried again beside the stream.
const RETRY_FRAMES: u64 = 512;
/// How long after the stream keys are waited for; a server that has not answered by then vouches for nothing.
const KEYS_PATIENCE: Duration = Duration::from_secs(180);
/// White space behind the answer's end that is still read.
const TAIL_BYTES_MAX: u64 = 16 * 1024;
/// From this many refused events on, an answer that consists mostly of them is given up.
const REFUSED_MIN: u64 = 20_000;
const WORKER_STACK: usize = 512 * 1024;

/// A pipeline's part of a lane, the table of ids aside.
pub fn fixed_bytes(lane: &MemoryLane) -> u64 {
    let servers = servers_max(lane) as u64 * SERVER_BYTES + 2 * WANTED_MAX as u64 * 100;
    let works = WORKER_BYTES * lane.workers as u64 + 2 * spill::BUFFER_BYTES as u64 + 2 * QUEUE_BYTES;
    works + servers + WINDOW_BYTES + super::stage::bytes(&lane.memory)
}

fn servers_max(lane: &MemoryLane) -> usize {
    if lane.workers > 1 { SERVERS_MAX } else { SERVERS_MAX / 16 }
}

/// The fields of an answer beside its events.
#[derive(Default, Debug)]
pub struct Said {
    /// Our event as the resident server has it, with that server's signature where the rules require one.
    pub event: Option<Vec<u8>>,
    pub members_omitted: bool,
}

/// Receives one body. After `Err` the stored events stay: another attempt goes on from there.
pub async fn take(
    body: &mut Body,
    checker: Arc<Checker>,
    stager: Stager,
    lane: &MemoryLane,
    scratch: &Scratch,
    progress: &Arc<Progress>,
    body_bytes_max: u64,
) -> (Result<Said, JoinError>, Option<Stager>) {
    let works = match Works::start(checker.clone(), stager, lane, scratch, progress) {
        Ok(works) => works,
        Err(stop) => return (Err(stop), None),
    };
    let taken = caught_in(Box::pin(receive(body, &works, progress, body_bytes_max))).await;
    let taken = taken.unwrap_or_else(|panicked| Err(JoinError::Panicked(panicked.say())));
    let (finished, stager) = works.finish(taken.is_ok()).await;
    (taken.and_then(|said| finished.map(|()| said)), stager)
}

async fn receive(
    body: &mut Body,
    works: &Works,
    progress: &Arc<Progress>,
    body_bytes_max: u64,
) -> Result<Said, JoinError> {
    progress.enter(Phase::Receiving);
    progress.bytes.store(0, Relaxed);
    progress.bytes_total.store(body.length().unwrap_or(0), Relaxed);
    let _window = works.memory.take(WINDOW_BYTES).await?;
    let mut events = Events::new(Limits::events(body_bytes_max));
    let (mut said, mut batch, mut full) = (Said::default(), RawBatch::roomy(), Vec::new());
    let (mut tail, mut retries) = (0, Retries { round: 0, frames: RETRY_FRAMES });
    while let Some(frame) = progress.unless_cancelled(body.next()).await?? {
        let was_done = events.finish().is_ok();
        let (mut seen, mut refused) = (0, 0);
        events.feed::<JoinError>(&frame, &mut |item| {
            match item {
                Item::Element { array: "state" | "pdus", raw } => batch.push(raw, true),
                Item::Element { array: "auth_chain", raw } => batch.push(raw, false),
                Item::TooLarge { key: "state" | "pdus" | "auth_chain" } => refused += 1,
                Item::Element { .. } | Item::TooLarge { .. } => return Ok(()),
                Item::Value { key: "event", raw } => {
                    said.event = Some(raw.to_vec());
                    return Ok(());
                }
                Item::Value { key: "members_omitted", raw } => {
                    said.members_omitted = raw == b"true";
                    return Ok(());
                }
                Item::Value { .. } => return Ok(()),
            }
            seen += 1;
            if batch.is_full() {
                full.push(std::mem::replace(&mut batch, RawBatch::roomy()));
            }
            Ok(())
        })?;
        Progress::add(&progress.seen, seen);
        Progress::add(&progress.refused, refused);
        progress.bytes.store(events.bytes(), Relaxed);
        for batch in full.drain(..) {
            works.send(batch).await?;
        }
        works.check_on()?;
        works.retry(&mut retries).await?;
        if was_done {
            tail += frame.len() as u64;
            if tail > TAIL_BYTES_MAX {
                break;
            }
        }
    }
    // A body that ends too early is incomplete, whether its server meant it or not: it is requested again.
    events.finish().map_err(|malformed| Failed::BadAnswer(malformed.to_string()))?;
    if !batch.ends.is_empty() {
        works.send(batch).await?;
    }
    Ok(said)
}

/// When the events that wait for keys are worth another try. Each time twice as many must have gathered, so that events
/// whose keys cannot be had are not read again and again.
struct Retries {
    /// The last round of requests that was made use of.
    round: u64,
    frames: u64,
}

/// The threads of one body, and their shared data.
struct Works {
    memory: Account,
    raw: Option<queue::Sender<RawBatch>>,
    shared: Arc<Shared>,
    workers: Vec<std::thread::JoinHandle<()>>,
    storing: std::thread::JoinHandle<Stager>,
    /// Ended with the rest, however that ends.
    fetching: JoinSet<()>,
    _grant: Grant,
}

struct Shared {
    checker: Arc<Checker>,
    progress: Arc<Progress>,
    wanted: Mutex<Wanted>,
    wake_fetcher: Notify,
    wake_direct: Notify,
    /// How often a server has answered.
    rounds: AtomicU64,
    /// Signalled when no more keys are wanted.
    pending: Mutex<Option<Spill>>,
    trouble: Mutex<Option<JoinError>>,
    /// Batches sent and not stored yet.
    in_flight: Mutex<u64>,
    idle: Notify,
    scratch: Scratch,
}

/// Keys to be requested. A key is requested once in a join.
struct Wanted {
    asked: HashSet<u64>,
    hasher: RandomState,
    /// To be requested from notaries; keys that the notaries lack are requested from each server itself.
    names: Vec<(OwnedServerName, String)>,
    direct: Vec<(OwnedServerName, String)>,
    /// Servers that are being asked themselves.
    asked_directly: usize,
    asking: bool,
    closed: bool,
    _grant: Grant,
}

impl Shared {
    fn stop(&self, stop: JoinError) {
        let mut trouble = self.trouble.lock();
        trouble.get_or_insert(stop);
        self.idle.notify_waiters();
    }

    fn trouble(&self) -> Option<JoinError> {
        self.trouble.lock().take()
    }

    fn is_troubled(&self) -> bool {
        self.trouble.lock().is_some()
    }

    fn flight(&self, change: i64) -> u64 {
        let mut in_flight = self.in_flight.lock();
        *in_flight = in_flight.saturating_add_signed(change);
        if *in_flight == 0 {
            self.idle.notify_waiters();
        }
        *in_flight
    }

    fn want(&self, names: &[(String, String)]) {
        let mut wanted = self.wanted.lock();
        for (server, key_id) in names {
            let print = wanted.hasher.hash_one((server, key_id));
            if wanted.names.len() >= WANTED_MAX || wanted.asked.len() >= wanted.asked.capacity() {
                break; // requested when its event comes by the next time
            }
            if let Ok(name) = OwnedServerName::try_from(server.as_str())
                && wanted.asked.insert(print)
            {
                wanted.names.push((name, key_id.clone()));
            }
        }
        if !wanted.names.is_empty() {
            self.wake_fetcher.notify_one();
        }
    }

    /// Puts raw events aside until their keys are known.
    fn put_aside(&self, batch: &RawBatch) -> Result<(), JoinError> {
        let mut pending = self.pending.lock();
        if pending.is_none() {
            *pending = Some(Spill::create(&self.scratch.folder, &self.scratch.disk)?);
        }
        let spill = pending.as_mut().expect("made above");
        let mut from = 0;
        for &(end, in_state) in &batch.ends {
            let raw = &batch.bytes[from..end as usize];
            from = end as usize;
            let mut frame = Vec::with_capacity(raw.len() + 1);
            frame.push(u8::from(in_state));
            frame.extend_from_slice(raw);
            spill.append(&frame)?;
        }
        Progress::add(&self.progress.pending, batch.ends.len() as u64);
        Ok(())
    }
}

impl Works {
    fn start(
        checker: Arc<Checker>,
        stager: Stager,
        lane: &MemoryLane,
        scratch: &Scratch,
        progress: &Arc<Progress>,
    ) -> Result<Works, JoinError> {
        let memory = lane.memory.clone();
        let servers_max = servers_max(lane);
        let grant = memory.try_take(WORKER_BYTES * lane.workers as u64 + 2 * spill::BUFFER_BYTES as u64)?;
        let wanted = Wanted {
            asked: HashSet::with_capacity(servers_max),
            hasher: RandomState::new(),
            names: Vec::new(),
            direct: Vec::new(),
            asked_directly: 0,
            asking: false,
            closed: false,
            _grant: memory.try_take(servers_max as u64 * SERVER_BYTES + 2 * WANTED_MAX as u64 * 100)?,
        };
        let (raw, raw_out) = queue::channel::<RawBatch>(&memory, QUEUE_BYTES)?;
        let (done, done_out) = queue::channel::<CheckedBatch>(&memory, QUEUE_BYTES)?;
        let shared = Arc::new(Shared {
            checker: checker.clone(),
            progress: progress.clone(),
            wanted: Mutex::new(wanted),
            wake_fetcher: Notify::new(),
            wake_direct: Notify::new(),
            rounds: AtomicU64::new(0),
            pending: Mutex::new(None),
            trouble: Mutex::new(None),
            in_flight: Mutex::new(0),
            idle: Notify::new(),
            scratch: scratch.clone(),
        });
        let raw_out = Arc::new(Mutex::new(raw_out));
        let mut workers = Vec::new();
        for number in 0..lane.workers {
            let (shared, raw_out, done) = (shared.clone(), raw_out.clone(), done.clone());
            let thread = std::thread::Builder::new().name(format!("snug-join-{number}")).stack_size(WORKER_STACK);
            let span = Span::current();
            workers.push(thread.spawn(move || span.in_scope(|| work(&shared, &raw_out, &done)))?);
        }
        let storing = {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name("snug-join-store".into()).stack_size(WORKER_STACK);
            let span = Span::current();
            thread.spawn(move || span.in_scope(|| store(&shared, done_out, stager)))?
        };
        let mut fetching = JoinSet::new();
        let (shared_of, keys) = (shared.clone(), checker.keys.keys.clone());
        fetching.spawn(async move {
            let asking = caught_in(Box::pin(async {
                // Four at once, each on its own: a slow server holds up only the names behind it.
                let direct = || fetch_directly(&shared_of, &keys);
                tokio::join!(fetch_of_notaries(&shared_of, &keys), direct(), direct(), direct(), direct());
            }));
            if let Err(panicked) = asking.await {
                shared_of.stop(JoinError::Panicked(panicked.say()));
            }
        });
        Ok(Works { memory, raw: Some(raw), shared, workers, storing, fetching, _grant: grant })
    }

    async fn send(&self, batch: RawBatch) -> Result<(), JoinError> {
        let raw = self.raw.as_ref().expect("the queue is open until the end");
        self.shared.flight(1);
        let weight = batch.weight().min(QUEUE_BYTES);
        match raw.send(batch, weight).await {
            Ok(()) => Ok(()),
            Err(NotSent::Refused(_, refused)) => Err(self.shared.trouble().unwrap_or(refused.into())),
            Err(NotSent::Closed(_)) => Err(self.shared.trouble().unwrap_or(JoinError::Cancelled)),
        }
    }

    /// Whether the threads are well, and the answer worth going on with.
    fn check_on(&self) -> Result<(), JoinError> {
        if let Some(stop) = self.shared.trouble() {
            return Err(stop);
        }
        if self.shared.progress.is_cancelled() {
            return Err(JoinError::Cancelled);
        }
        let progress = &self.shared.progress;
        let (refused, stored) = (progress.refused.load(Relaxed), progress.stored.load(Relaxed));
        if refused > REFUSED_MIN && refused > 10 * stored {
            return Err(JoinError::Lying(format!("{refused} of the events are malformed or forged")));
        }
        Ok(())
    }

    /// Waits until every event that was sent to the threads is stored.
    async fn all_stored(&self) -> Result<(), JoinError> {
        loop {
            let idle = self.shared.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            self.check_on()?;
            if self.shared.flight(0) == 0 {
                return self.check_on();
            }
            idle.await;
        }
    }

    /// Finishes the events that wait for keys, stores the rest, ends the threads.
    async fn finish(mut self, whole: bool) -> (Result<(), JoinError>, Option<Stager>) {
        let mut result = Ok(());
        if whole {
            result = self.finish_pending().await;
        }
        self.raw = None;
        {
            let mut wanted = self.shared.wanted.lock();
            wanted.closed = true;
        }
        self.shared.wake_fetcher.notify_one();
        self.shared.wake_direct.notify_waiters();
        self.fetching.abort_all();
        let Works { workers, storing, shared, .. } = self;
        let ended = blocking(move || {
            for worker in workers {
                let _ = worker.join();
            }
            storing.join().ok()
        });
        let stager = ended.await;
        let result = result.and_then(|()| shared.trouble().map_or(Ok(()), Err));
        (result, stager)
    }

    /// Rounds over the waiting events: each requests the keys still missing. The last round drops events without a key.
    async fn finish_pending(&self) -> Result<(), JoinError> {
        let clock = &self.shared.checker.clock;
        let until = clock.instant() + KEYS_PATIENCE;
        for round in 0.. {
            self.all_stored().await?;
            let Some(spill) = self.shared.pending.lock().take() else {
                return Ok(());
            };
            self.shared.progress.enter(Phase::Keys);
            let patience = until.saturating_sub(clock.instant());
            self.all_asked(patience).await;
            // Every server is asked once, and the scratch file shrinks with each round; an attacker with very many
            // server names gets no more rounds than that.
            let last_chance = round > SERVERS_MAX / WANTED_MAX || self.is_full_of_names() || patience.is_zero();
            self.send_again(spill, last_chance).await?;
        }
        Ok(())
    }

    /// Tries the events that wait for keys again while the stream goes on, once they are many and notaries have
    /// answered: a stored event need not come twice should the join be interrupted.
    async fn retry(&self, retries: &mut Retries) -> Result<(), JoinError> {
        let round = self.shared.rounds.load(Relaxed);
        if round == retries.round {
            return Ok(());
        }
        let is_much = |spill: &mut Spill| spill.frames() >= retries.frames;
        let spill = self.shared.pending.lock().take_if(is_much);
        let Some(spill) = spill else { return Ok(()) };
        *retries = Retries { round, frames: retries.frames * 2 };
        self.send_again(spill, false).await
    }

    async fn send_again(&self, spill: Spill, last_chance: bool) -> Result<(), JoinError> {
        let mut reader = spill.into_reader()?;
        let mut frame = Vec::new();
        let mut batch = RawBatch { is_late: true, last_chance, ..RawBatch::roomy() };
        self.shared.progress.pending.store(0, Relaxed);
        while reader.next(&mut frame)? {
            if let Some((in_state, raw)) = frame.split_first() {
                batch.push(raw, *in_state == 1);
            }
            if batch.is_full() {
                let next = RawBatch { is_late: true, last_chance, ..RawBatch::roomy() };
                self.send(std::mem::replace(&mut batch, next)).await?;
                self.check_on()?;
            }
        }
        if !batch.ends.is_empty() {
            self.send(batch).await?;
        }
        Ok(())
    }

    /// No new key was wanted since all were requested: an event that lacks its key now lacks it for good.
    fn is_full_of_names(&self) -> bool {
        let mut wanted = self.shared.wanted.lock();
        let is_full = wanted.asked.len() == wanted.asked.capacity();
        is_full || !std::mem::take(&mut wanted.asking)
    }

    /// Waits until every wanted key has been requested, as long as that makes sense.
    async fn all_asked(&self, patience: Duration) {
        let asked = self.all_asked_at_last();
        if self.shared.checker.clock.timeout(patience, asked).await.is_none() {
            tracing::info!(room_id = %self.shared.checker.room_id, "some signing keys did not come in time");
        }
    }

    async fn all_asked_at_last(&self) {
        loop {
            let idle = self.shared.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            let busy = {
                let wanted = self.shared.wanted.lock();
                let is_wanted = !wanted.names.is_empty() || !wanted.direct.is_empty() || wanted.asked_directly > 0;
                is_wanted && !wanted.closed && !self.shared.is_troubled()
            };
            if !busy {
                return;
            }
            idle.await;
        }
    }
}

/// Tells the other threads when one panics, so that they do not wait for its batch.
struct PanicGuard<'a>(&'a Shared);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop(JoinError::Panicked("one of its threads".to_owned()));
        }
    }
}

/// One worker: a batch at a time until the queue is closed.
fn work(shared: &Shared, raw: &Mutex<queue::Receiver<RawBatch>>, done: &queue::Sender<CheckedBatch>) {
    let _mourner = PanicGuard(shared);
    let mut scan = EventScanner::new();
    loop {
        let next = raw.lock().recv_blocking();
        let Some((batch, room)) = next else { return };
        if shared.is_troubled() {
            shared.flight(-1);
            continue; // drains the queue, so that no sender waits for room in it
        }
        let checked = match shared.checker.check(&mut scan, &batch) {
            Ok(checked) => checked,
            Err(failed) => {
                shared.stop(failed.into());
                shared.flight(-1);
                continue;
            }
        };
        drop((batch, room));
        let progress = &shared.progress;
        Progress::add(&progress.checked, checked.looked_at);
        Progress::add(&progress.refused, checked.refused);
        if let Some(why) = &checked.sample {
            tracing::debug!(room_id = %shared.checker.room_id, %why, "events refused");
        }
        shared.want(&checked.wanted);
        let weight = checked.weight().min(QUEUE_BYTES);
        match done.send_blocking(checked, weight) {
            Ok(()) => {}
            Err(NotSent::Refused(_, refused)) => {
                shared.stop(refused.into());
                shared.flight(-1);
            }
            Err(NotSent::Closed(_)) => drop(shared.flight(-1)),
        }
    }
}

/// The thread that stores, until every worker is gone. Batches after a failure are dropped; stored events stay.
fn store(shared: &Shared, mut done: queue::Receiver<CheckedBatch>, mut stager: Stager) -> Stager {
    let _mourner = PanicGuard(shared);
    while let Some((batch, _room)) = done.recv_blocking() {
        if !shared.is_troubled() {
            let pending = if batch.pending.ends.is_empty() { Ok(()) } else { shared.put_aside(&batch.pending) };
            if let Err(stop) = pending.and_then(|()| stager.take(&batch)) {
                shared.stop(stop);
            }
        }
        shared.flight(-1);
    }
    if let Err(stop) = stager.flush() {
        shared.stop(stop);
    }
    stager
}

/// Requests keys beside the stream, some hundred at a time.
async fn fetch_of_notaries(shared: &Shared, keys: &Keys) {
    loop {
        let names = {
            let wanted = shared.wanted.lock();
            if wanted.closed {
                return;
            }
            // Names for direct requests hold this up once as many wait as may wait.
            let count = wanted.names.len().min(ROUND_NAMES).min(WANTED_MAX.saturating_sub(wanted.direct.len()));
            wanted.names[..count].to_vec()
        };
        if names.is_empty() {
            shared.idle.notify_waiters();
            shared.wake_fetcher.notified().await;
            continue;
        }
        let now_ms = shared.checker.clock.now_ms();
        let left = match keys.fetch_of_notaries(&names, now_ms).await {
            Ok(left) => left,
            Err(failed) => return shared.stop(failed.into()),
        };
        // Only now, so that empty lists mean that every key has been requested.
        let mut wanted = shared.wanted.lock();
        wanted.names.drain(..names.len());
        wanted.direct.extend(left);
        wanted.asking = true;
        shared.rounds.fetch_add(1, Relaxed);
        shared.wake_direct.notify_waiters();
    }
}

/// Requests servers' own keys, one after the other.
async fn fetch_directly(shared: &Shared, keys: &Keys) {
    loop {
        let woken = shared.wake_direct.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        let name = {
            let mut wanted = shared.wanted.lock();
            if wanted.closed {
                return;
            }
            let name = wanted.direct.pop();
            wanted.asked_directly += usize::from(name.is_some());
            name
        };
        let Some(name) = name else {
            shared.idle.notify_waiters();
            woken.await;
            continue;
        };
        if let Err(failed) = keys.fetch_directly(vec![name]).await {
            return shared.stop(failed.into());
        }
        let mut wanted = shared.wanted.lock();
        wanted.asked_directly -= 1;
        wanted.asking = true;
        shared.rounds.fetch_add(1, Relaxed);
        shared.wake_fetcher.notify_one();
    }
}

impl From<Malformed> for JoinError {
    fn from(malformed: Malformed) -> JoinError {
        JoinError::Lying(malformed.to_string())
    }
}

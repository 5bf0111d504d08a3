//! The writer: one thread that groups waiting jobs into one durable commit, and opens the database again when the disk
//! failed or was full.
//!
//! What a power cut leaves at each step: before the commit's last sync, the database of the commit before; after it,
//! the new one. The jobs of a group share their fate.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use redb::{Database, Durability, ReadableDatabase};
use tokio::sync::{mpsc, oneshot};

use super::access::{Get, HASH_KEY_ROW, POSITION_ROW, Read, Write};
use super::disk::{FREE_BYTES_MIN, Guarded, Medium, Spare};
use super::schema::META;
use super::{Change, Changes, Error, Position, Result, StoreOptions, WriteError, migrate};
use crate::base::{Random, StopWatch};

/// Jobs in one commit at most. A job is short, so a group takes a few milliseconds beside the sync itself.
const GROUP_JOBS_MAX: usize = 64;

/// A commit that is worth a line in the log: people notice.
const SLOW: Duration = Duration::from_millis(250);

/// What a job is allowed to expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ordinary,
    /// In a commit of its own.
    Bulk,
    /// Also when the disk is full.
    Freeing,
}

pub(super) enum Message {
    Job(Kind, Box<dyn Job>),
    Compact(oneshot::Sender<Result<bool>>),
    Close(oneshot::Sender<()>),
}

/// Whether writing works, in words for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    Working,
    /// New work is refused until there is room again.
    Full,
    /// The database could not be opened again yet; the next write tries.
    Failed(Error),
    Closed,
}

/// What readers, writers and the writer's thread share.
pub(super) struct Engine {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Message>,
}

struct Shared {
    medium: Arc<dyn Medium>,
    cache_bytes: usize,
    /// `None` while the database is closed, or could not be opened again.
    open: RwLock<Option<Open>>,
    hash_key: [u8; 16],
    status: Mutex<Status>,
    reopened: AtomicU64,
    spare: Spare,
}

struct Open {
    db: Database,
    /// Set when another database takes this one's place.
    retired: Arc<AtomicBool>,
}

impl Engine {
    pub(super) fn start(medium: Arc<dyn Medium>, options: &StoreOptions) -> Result<Self> {
        let open = open(&*medium, options.cache_bytes)?;
        let (hash_key, position) = prepare(&open.db, &options.random)?;
        // A disk too full for the reserve can still be read; the first write says that it is full.
        let _ = medium.take_reserve();
        let shared = Arc::new(Shared {
            medium,
            cache_bytes: options.cache_bytes,
            open: RwLock::new(Some(open)),
            hash_key,
            status: Mutex::new(Status::Working),
            reopened: AtomicU64::new(0),
            spare: Spare::default(),
        });
        let (queue, jobs) = mpsc::channel(options.queue_jobs.max(1));
        let writer = Writer { shared: shared.clone(), jobs, position, next: None, seen_reopened: 0 };
        std::thread::Builder::new()
            .name("snug-writer".into())
            .stack_size(options.stack_bytes)
            .spawn(move || writer.run())
            .map_err(|failed| Error::from_io(&failed))?;
        Ok(Engine { shared, queue })
    }

    pub(super) fn queue(&self) -> &mpsc::Sender<Message> {
        &self.queue
    }

    pub(super) fn read(&self) -> Result<Read> {
        if matches!(self.status(), Status::Failed(_)) {
            self.shared.reopen()?;
        }
        match &*self.shared.open.read().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            Some(open) => Ok(Read::new(open.db.begin_read().map_err(Error::of)?, self.shared.hash_key)),
            None => Err(Error::Closed),
        }
    }

    pub(super) fn status(&self) -> Status {
        self.shared.lock_status().clone()
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.shared.free_bytes()
    }

    pub(super) fn spare_bytes(&self) -> u64 {
        self.shared.spare.bytes(&*self.shared.medium)
    }

    pub(super) fn reopened(&self) -> u64 {
        self.shared.reopened.load(Ordering::Relaxed)
    }
}

fn open(medium: &dyn Medium, cache_bytes: usize) -> Result<Open> {
    let retired = Arc::new(AtomicBool::new(false));
    let disk = medium.open().map_err(|failed| Error::from_io(&failed))?;
    forget_unfinished(&*disk).map_err(|failed| Error::from_io(&failed))?;
    let guarded = Guarded { disk, retired: retired.clone() };
    let db = Database::builder().set_cache_size(cache_bytes).create_with_backend(guarded).map_err(Error::of)?;
    Ok(Open { db, retired })
}

/// Bytes redb's header takes; all that there is before a new database has its first mark.
const HEADER_BYTES: u64 = 320;

/// Empties a database whose making was cut short: redb marks a new file as its own last, and without the mark it takes
/// it for a stranger's. Such a file has nothing behind the header.
fn forget_unfinished(disk: &dyn redb::StorageBackend) -> std::io::Result<()> {
    let length = disk.len()?;
    let mut mark = [0; 9];
    disk.read(0, &mut mark[..length.min(9) as usize])?;
    if length == 0 || mark != [0; 9] {
        return Ok(());
    }
    let mut piece = vec![0; 64 << 10];
    for at in (HEADER_BYTES..length).step_by(piece.len()) {
        let piece = &mut piece[..(length - at).min(64 << 10) as usize];
        disk.read(at, piece)?;
        if piece.iter().any(|byte| *byte != 0) {
            return Ok(());
        }
    }
    tracing::warn!("the making of the database was cut short; it is begun again");
    disk.set_len(0)
}

/// Migrates, makes the hash key of a new database, and reads where it stands.
fn prepare(db: &Database, random: &Random) -> Result<([u8; 16], Position)> {
    while !in_transaction(db, migrate::step)? {}
    in_transaction(db, |w| {
        let key = match w.get(&META, HASH_KEY_ROW)? {
            Some(row) => row.try_into().map_err(|_| Error::corrupt(&META, HASH_KEY_ROW))?,
            None => {
                let mut key = [0; 16];
                random.fill(&mut key);
                w.put(&META, HASH_KEY_ROW, &key)?;
                key
            }
        };
        Ok((key, stored_position(w)?))
    })
}

/// A transaction outside the queue, before the writer runs.
fn in_transaction<T>(db: &Database, job: impl FnOnce(&mut Write) -> Result<T>) -> Result<T> {
    let txn = begin(db)?;
    let mut w = Write::new(&txn, [0; 16], Position(0));
    let start = w.mark();
    let done = job(&mut w)?;
    let wrote = w.wrote_since(&start);
    drop(w);
    if wrote {
        txn.commit().map_err(Error::of)?
    } else {
        txn.abort().map_err(Error::of)?
    }
    Ok(done)
}

fn begin(db: &Database) -> Result<redb::WriteTransaction> {
    let mut txn = db.begin_write().map_err(Error::of)?;
    // Each commit records which pages are in use, so that a start after a power cut has nothing to work out.
    txn.set_quick_repair(true);
    txn.set_durability(Durability::Immediate).map_err(|failed| Error::Damaged(failed.to_string()))?;
    Ok(txn)
}

fn stored_position(w: &Write) -> Result<Position> {
    match w.get(&META, POSITION_ROW)? {
        None => Ok(Position(0)),
        Some(row) => Position::from_key(&row).ok_or_else(|| Error::corrupt(&META, POSITION_ROW)),
    }
}

/// The thread that owns all writing.
struct Writer {
    shared: Arc<Shared>,
    jobs: mpsc::Receiver<Message>,
    position: Position,
    /// A message that must not share the commit of those before it.
    next: Option<Message>,
    /// How many openings `position` takes account of.
    seen_reopened: u64,
}

type Group = Vec<(Kind, Box<dyn Job>)>;

impl Writer {
    /// Ends when the store is closed or every handle is gone.
    fn run(mut self) {
        while let Some(message) = self.next.take().or_else(|| self.jobs.blocking_recv()) {
            match message {
                Message::Job(Kind::Bulk, job) => self.commit(vec![(Kind::Bulk, job)]),
                Message::Job(kind, job) => {
                    let group = self.gather(kind, job);
                    self.commit(group);
                }
                Message::Compact(reply) => {
                    let _ = reply.send(self.compact());
                }
                Message::Close(reply) => {
                    self.close();
                    // The claim on the file goes with the last handle; whoever waited may open it again at once.
                    drop(self);
                    let _ = reply.send(());
                    return;
                }
            }
        }
        self.close();
    }

    /// Everything that is waiting already and may share a commit. A message of another kind goes after the group; who
    /// queued behind it is not kept waiting for it, up to the group's size.
    fn gather(&mut self, kind: Kind, job: Box<dyn Job>) -> Group {
        let mut group = vec![(kind, job)];
        while group.len() < GROUP_JOBS_MAX && self.next.is_none() {
            match self.jobs.try_recv() {
                Ok(Message::Job(kind @ (Kind::Ordinary | Kind::Freeing), job)) => group.push((kind, job)),
                Ok(other) => self.next = Some(other),
                Err(_) => break,
            }
        }
        group
    }

    fn commit(&mut self, group: Group) {
        let group = match self.shared.admit(group) {
            Ok(group) if !group.is_empty() => group,
            _ => return,
        };
        let mut jobs: Vec<_> = group.into_iter().map(|(_, job)| Ran { job, changes: Vec::new() }).collect();
        if self.shared.reopened.load(Ordering::Relaxed) != self.seen_reopened {
            self.catch_up();
        }
        let done = self.try_commit(&mut jobs);
        if let Err(failed) = &done {
            tracing::error!(error = %failed, jobs = jobs.len(), "a commit failed");
            if failed.needs_reopening() {
                self.shared.recover(failed);
            }
        }
        let position = self.position;
        for ran in jobs {
            ran.job.finish(done.clone().map(|()| Changes { list: ran.changes, position }));
        }
    }

    /// Runs the jobs and commits. `self.position` moves only when the commit is durable.
    fn try_commit(&mut self, jobs: &mut [Ran]) -> Result<()> {
        let shared = self.shared.clone();
        let open = shared.open.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some(open) = &*open else { return Err(Error::Closed) };
        let txn = begin(&open.db)?;
        let mut w = Write::new(&txn, shared.hash_key, self.position);
        let start = w.mark();
        let watch = StopWatch::start();
        for ran in jobs.iter_mut() {
            ran.run(&mut w)?;
        }
        if !w.wrote_since(&start) {
            drop(w);
            txn.abort().map_err(Error::of)?;
            return Ok(());
        }
        let position = w.current_position();
        if position != start.position {
            w.put(&META, POSITION_ROW, &position.to_key())?;
        }
        let puts = w.puts_since(&start);
        drop(w);
        let work = watch.elapsed();
        txn.commit().map_err(Error::of)?;
        self.position = position;
        if watch.elapsed() >= SLOW {
            let (work_ms, sync_ms) = (work.as_millis() as u64, (watch.elapsed() - work).as_millis() as u64);
            tracing::info!(jobs = jobs.len(), puts, work_ms, sync_ms, "a commit took long; writing waits meanwhile");
        }
        Ok(())
    }

    /// After the database was opened again: a commit that reported a failure may have reached the card all the same, and
    /// its positions are not given out twice.
    fn catch_up(&mut self) {
        self.seen_reopened = self.shared.reopened.load(Ordering::Relaxed);
        let open = self.shared.open.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        let stored = open.as_ref().and_then(|open| in_transaction(&open.db, |w| stored_position(w)).ok());
        self.position = self.position.max(stored.unwrap_or_default());
    }

    fn compact(&mut self) -> Result<bool> {
        let mut open = self.shared.open.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        let Some(open) = &mut *open else { return Err(Error::Closed) };
        match open.db.compact() {
            Ok(_) => Ok(true),
            Err(redb::CompactionError::TransactionInProgress) => Ok(false),
            Err(failed) => Err(Error::of(failed)),
        }
    }

    fn close(&mut self) {
        *self.shared.lock_status() = Status::Closed;
        *self.shared.open.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = None;
        // Whoever queued in the meantime is told so by the drop of their job.
        self.jobs.close();
    }
}

/// A job and what it announced.
struct Ran {
    job: Box<dyn Job>,
    changes: Vec<Change>,
}

impl Ran {
    /// Runs the job. Fails, for the whole group, when it broke the rule to check before it writes.
    fn run(&mut self, w: &mut Write) -> Result<()> {
        let mark = w.mark();
        let outcome = catch_unwind(AssertUnwindSafe(|| self.job.run(w))).unwrap_or(Outcome::Panicked);
        match outcome {
            Outcome::Done => self.changes = w.take_changes(),
            Outcome::Refused if w.wrote_since(&mark) => {
                tracing::error!("a write job failed after its first put; its commit is given up");
                return Err(Error::Aborted);
            }
            // A put that failed has an error of the database itself, which the whole commit shares.
            Outcome::Failed(failed) if w.wrote_since(&mark) || failed.needs_reopening() => return Err(failed),
            Outcome::Panicked => return Err(Error::Aborted),
            Outcome::Refused | Outcome::Failed(_) => w.back_to(&mark),
        }
        Ok(())
    }
}

impl Shared {
    /// Lets jobs through that may write now; the others are told that the disk is full, or how it failed.
    fn admit(&self, group: Group) -> Result<Group> {
        let refusal = self.refusal();
        let Some(failed) = refusal else { return Ok(group) };
        let usable = failed == Error::Full;
        let (through, refused): (Group, Group) =
            group.into_iter().partition(|(kind, _)| usable && *kind == Kind::Freeing);
        refused.into_iter().for_each(|(_, job)| job.finish(Err(failed.clone())));
        Ok(through)
    }

    /// Why ordinary jobs cannot be run now, after trying to mend it.
    fn refusal(&self) -> Option<Error> {
        let status = self.lock_status().clone();
        match status {
            Status::Working if self.free_bytes() >= FREE_BYTES_MIN => None,
            Status::Working => {
                *self.lock_status() = Status::Full;
                tracing::warn!("the disk is nearly full: new work is refused until there is room");
                Some(Error::Full)
            }
            Status::Full if self.is_roomy_again() => {
                *self.lock_status() = Status::Working;
                tracing::info!("there is room on the disk again");
                None
            }
            Status::Full => Some(Error::Full),
            Status::Failed(failed) => self.reopen().err().map(|_| failed),
            Status::Closed => Some(Error::Closed),
        }
    }

    /// There is room for the reserve and some work beside it, and the reserve is back.
    fn is_roomy_again(&self) -> bool {
        self.free_bytes() >= 2 * FREE_BYTES_MIN
            && self.medium.take_reserve().is_ok()
            && self.free_bytes() >= FREE_BYTES_MIN
    }

    fn free_bytes(&self) -> u64 {
        // A file system that does not say is tried.
        self.medium.free_bytes().unwrap_or(u64::MAX)
    }

    /// After a failure: gives the reserve up when the disk is full, and opens the database again. The failed commit is in
    /// it whole or not at all.
    fn recover(&self, failed: &Error) {
        if *failed == Error::Full {
            self.medium.give_up_reserve();
        }
        match self.reopen() {
            Ok(()) if *failed == Error::Full => *self.lock_status() = Status::Full,
            Ok(()) => *self.lock_status() = Status::Working,
            Err(again) => {
                tracing::error!(error = %again, "the database could not be opened again; the next write tries");
                *self.lock_status() = Status::Failed(again);
            }
        }
    }

    /// Puts a new database in the place of the old one. Snapshots of the old one keep the pages they have in memory and
    /// fail beyond them.
    fn reopen(&self) -> Result<()> {
        let mut place = self.open.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if place.is_some() && !matches!(*self.lock_status(), Status::Working | Status::Full) {
            return Ok(()); // another thread was faster
        }
        if let Some(old) = place.take() {
            old.retired.store(true, Ordering::Release);
        }
        *place = Some(open(&*self.medium, self.cache_bytes)?);
        self.reopened.fetch_add(1, Ordering::Relaxed);
        *self.lock_status() = Status::Working;
        tracing::warn!("the database was opened again after a failure");
        Ok(())
    }

    fn lock_status(&self) -> std::sync::MutexGuard<'_, Status> {
        self.status.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A write job without its types.
pub(super) trait Job: Send {
    /// Called once, in the transaction.
    fn run(&mut self, w: &mut Write) -> Outcome;

    /// Called once, after the commit or instead of it.
    fn finish(self: Box<Self>, committed: Result<Changes>);
}

pub(super) enum Outcome {
    Done,
    /// The job's own error.
    Refused,
    /// The database failed under it.
    Failed(Error),
    Panicked,
}

type Reply<T, E> = std::result::Result<(T, Changes), WriteError<E>>;

/// A job with its types: the closure, then its result, then the answer.
pub(super) struct Typed<F, T, E> {
    work: Option<F>,
    result: Option<std::result::Result<T, E>>,
    reply: oneshot::Sender<Reply<T, E>>,
}

impl<F, T, E> Typed<F, T, E>
where
    F: FnOnce(&mut Write) -> std::result::Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    pub(super) fn boxed(work: F) -> (Box<dyn Job>, oneshot::Receiver<Reply<T, E>>) {
        let (reply, done) = oneshot::channel();
        (Box::new(Typed { work: Some(work), result: None, reply }), done)
    }
}

impl<F, T, E> Job for Typed<F, T, E>
where
    F: FnOnce(&mut Write) -> std::result::Result<T, E> + Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
{
    fn run(&mut self, w: &mut Write) -> Outcome {
        let Some(work) = self.work.take() else { return Outcome::Refused };
        let result = work(w);
        let outcome =
            if result.is_ok() { Outcome::Done } else { w.take_failure().map_or(Outcome::Refused, Outcome::Failed) };
        self.result = Some(result);
        outcome
    }

    fn finish(self: Box<Self>, committed: Result<Changes>) {
        let answer = match (self.result, committed) {
            (Some(Ok(value)), Ok(changes)) => Ok((value, changes)),
            (Some(Err(failed)), _) => Err(WriteError::Job(failed)),
            (_, Err(failed)) => Err(WriteError::Store(failed)),
            (None, Ok(_)) => Err(WriteError::Store(Error::Aborted)),
        };
        // Whoever asked may have gone; the write is done all the same.
        let _ = self.reply.send(answer);
    }
}

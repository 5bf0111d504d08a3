//! The writer: one thread that groups waiting jobs into one durable commit, and opens the database again when the disk
//! failed or was full.
//!
//! An ordinary group is written to the journal, synced there, and then committed by redb in memory; a power cut before
//! the sync's end leaves the database of the commit before, after it the new one, once the start has applied the
//! journal. A bulk job, a large group, and whatever comes when the journal is full or the disk nearly, is a checkpoint:
//! a commit that redb makes durable, with all that the journal had.
//!
//! The jobs of a group share the commit's fate. A job that fails or panics half-way is taken back alone, row by row.
//! Only when the transaction itself breaks, the jobs that ran in it fail together, and the others run in another one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use redb::{Durability, ReadableDatabase};
use tokio::sync::{mpsc, oneshot};
use tracing::Span;

use super::access::{Read, Write};
use super::copy::{self, Lost};
use super::disk::{FREE_BYTES_MIN, Medium, Spare};
use super::journal::{Journal, PLACE_ROW, Record};
use super::opening::{self, Beside, How, Open, shut};
use super::schema::META;
use super::{Change, Changes, Error, Follower, Position, Result, StoreOptions, WriteError, guard};
use crate::base::{self, StopWatch};

/// Jobs in one commit at most. A job is short, so a group takes a few milliseconds beside the sync itself.
const GROUP_JOBS_MAX: usize = 64;

/// After a transaction broke on a damaged page, this many commits have one job each, so that a job that needs the page
/// fails alone.
const ALONE_COMMITS: u32 = 1024;

/// While less than this is free, each commit is a checkpoint.
const TIGHT_BYTES: u64 = 8 * FREE_BYTES_MIN;

/// A journal that could not be used is tried again after this time; until then each commit is a checkpoint.
const JOURNAL_AGAIN: Duration = Duration::from_secs(3600);

/// A commit of this length is logged: people notice it.
const SLOW: Duration = Duration::from_millis(250);

/// The guarantees that a job gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Ordinary,
    /// In a commit of its own.
    Bulk,
    /// Also when the disk is full.
    Freeing,
}

pub(super) enum Message {
    Job(Kind, Box<Job>),
    Compact(oneshot::Sender<Result<bool>>),
    Trim(oneshot::Sender<Result<bool>>),
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

/// The state shared by readers, writers and the writer's thread.
pub(super) struct Engine {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Message>,
    lost: Lost,
}

struct Shared {
    medium: Arc<dyn Medium>,
    how: How,
    /// `None` while the database is closed, or could not be opened again.
    open: RwLock<Option<Open>>,
    hash_key: [u8; 16],
    status: Mutex<Status>,
    reopened: AtomicU64,
    /// Why a record could not be written: the database does without the journal after it is opened again.
    journal_failed: Mutex<Option<Error>>,
    spare: Spare,
    followers: RwLock<Vec<Arc<dyn Follower>>>,
    snapshots: Mutex<Snapshots>,
    #[cfg(test)]
    counted: Mutex<super::RowCounts>,
}

/// The snapshots in use: each has a share of the part of time in which it was taken.
#[derive(Default)]
struct Snapshots {
    present: Arc<()>,
    before: Arc<()>,
}

impl Snapshots {
    fn are_none(&self) -> bool {
        Arc::strong_count(&self.present) == 1 && Arc::strong_count(&self.before) == 1
    }

    /// Begins a new part of time, unless snapshots of the one before the present are still held: then false.
    fn turn(&mut self) -> bool {
        let are_gone = Arc::strong_count(&self.before) == 1;
        if are_gone {
            self.before = std::mem::take(&mut self.present);
        }
        are_gone
    }
}

impl Engine {
    pub(super) fn start(medium: Arc<dyn Medium>, options: &StoreOptions) -> Result<Self> {
        let how = How::of(options);
        let open = opening::open(&*medium, &how)?;
        let (hash_key, position) = (open.hash_key, open.position);
        // A disk too full for the reserve can still be read; the first write reports that it is full.
        let _ = medium.take_reserve();
        let shared = Arc::new(Shared {
            medium,
            how,
            open: RwLock::new(Some(open)),
            hash_key,
            status: Mutex::new(Status::Working),
            reopened: AtomicU64::new(0),
            journal_failed: Mutex::default(),
            spare: Spare::default(),
            followers: RwLock::default(),
            snapshots: Mutex::default(),
            #[cfg(test)]
            counted: Mutex::default(),
        });
        let (queue, jobs) = mpsc::channel(options.queue_jobs.max(1));
        let writer = Writer {
            shared: shared.clone(),
            jobs,
            position,
            next: None,
            seen_reopened: 0,
            alone: 0,
            record: Record::default(),
        };
        std::thread::Builder::new()
            .name("snug-writer".into())
            .stack_size(options.stack_bytes)
            .spawn(move || writer.run())
            .map_err(|failed| Error::from_io(&failed))?;
        let mut engine = Engine { shared, queue, lost: Lost::new() };
        // Rows that cannot be read tell of no loss; the database is read for what it has.
        engine.lost = engine.read().and_then(|read| copy::lost(&read)).unwrap_or_default();
        Ok(engine)
    }

    /// The times that were lost when the database was restored.
    pub(super) fn lost(&self) -> &Lost {
        &self.lost
    }

    pub(super) fn queue(&self) -> &mpsc::Sender<Message> {
        &self.queue
    }

    pub(super) fn read(&self) -> Result<Read> {
        if matches!(self.status(), Status::Failed(_)) {
            self.shared.try_again()?;
        }
        match &*self.shared.open.read() {
            Some(open) => {
                let txn = guard::whole("a snapshot cannot be taken", || open.db.begin_read().map_err(Error::of))?;
                let held = self.shared.snapshots.lock().present.clone();
                Ok(Read::new(txn, self.shared.hash_key, held))
            }
            // Opening it again failed while this waited.
            None => Err(match self.status() {
                Status::Failed(failed) => failed,
                _ => Error::Closed,
            }),
        }
    }

    pub(super) fn are_old_snapshots_gone(&self) -> bool {
        self.shared.snapshots.lock().turn()
    }

    pub(super) fn follow(&self, follower: Arc<dyn Follower>) {
        self.shared.followers.write().push(follower);
    }

    pub(super) fn status(&self) -> Status {
        self.shared.lock_status().clone()
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.shared.free_bytes()
    }

    pub(super) fn file_bytes(&self) -> u64 {
        self.shared.medium.file_bytes().unwrap_or(0)
    }

    pub(super) fn total_bytes(&self) -> u64 {
        self.shared.medium.total_bytes().unwrap_or(u64::MAX)
    }

    pub(super) fn spare_bytes(&self) -> u64 {
        self.shared.spare.bytes(&*self.shared.medium)
    }

    /// The rows that commits changed since this was last called.
    #[cfg(test)]
    pub(super) fn take_counted(&self) -> super::RowCounts {
        std::mem::take(&mut self.shared.counted.lock())
    }

    pub(super) fn has_journal_aside(&self) -> bool {
        self.shared.medium.has_journal_aside()
    }

    pub(super) fn reopened(&self) -> u64 {
        self.shared.reopened.load(Ordering::Relaxed)
    }
}

/// The thread that owns all writing.
struct Writer {
    shared: Arc<Shared>,
    jobs: mpsc::Receiver<Message>,
    position: Position,
    /// A message that must not share the commit of those before it.
    next: Option<Message>,
    /// The number of openings that `position` takes account of.
    seen_reopened: u64,
    /// Commits to come that have one job each.
    alone: u32,
    /// The memory of the journal's records.
    record: Record,
}

type Group = Vec<(Kind, Box<Job>)>;

impl Writer {
    /// Ends when the store is closed or every handle is gone.
    fn run(mut self) {
        while let Some(message) = self.next.take().or_else(|| self.jobs.blocking_recv()) {
            if let Message::Close(reply) = message {
                self.close();
                // The claim on the file goes with the last handle; a waiting caller may open it again at once.
                drop(self);
                let _ = reply.send(());
                return;
            }
            if let Err(panicked) = base::caught(|| self.handle(message)) {
                tracing::error!("the writer panicked and goes on: {}", panicked.say());
                self.shared.recover(&Error::Io("the writer panicked".to_owned()));
            }
        }
        self.close();
    }

    fn handle(&mut self, message: Message) {
        match message {
            Message::Job(Kind::Bulk, job) => self.commit(vec![(Kind::Bulk, job)]),
            Message::Job(kind, job) => {
                let group = self.gather(kind, job);
                self.commit(group);
            }
            Message::Compact(reply) => {
                let _ = reply.send(self.compact());
            }
            Message::Trim(reply) => {
                let _ = reply.send(self.trim());
            }
            Message::Close(_) => unreachable!("the loop above ends with it"),
        }
    }

    /// Collects all waiting jobs that may share a commit. A message of another kind goes after the group; jobs queued
    /// behind it still join the group, up to its size.
    fn gather(&mut self, kind: Kind, job: Box<Job>) -> Group {
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

    /// Commits a group. When its transaction breaks, the jobs that ran in it get the error, and the others go into
    /// another one.
    fn commit(&mut self, mut group: Group) {
        loop {
            group = match self.shared.admit(group) {
                Ok(group) if !group.is_empty() => group,
                _ => return,
            };
            if self.shared.reopened.load(Ordering::Relaxed) != self.seen_reopened {
                self.catch_up();
            }
            let later = if self.alone > 0 { group.split_off(1) } else { Vec::new() };
            self.alone = self.alone.saturating_sub(1);
            let mut jobs: Vec<_> = group.into_iter().map(Ran::new).collect();
            let done = self.try_commit(&mut jobs);
            let ran = done.as_ref().err().map_or(jobs.len(), |broken| broken.ran.min(jobs.len()));
            group = jobs.split_off(ran).into_iter().map(|not_run| (not_run.kind, not_run.job)).chain(later).collect();
            if let Err(broken) = &done {
                self.mend(broken, jobs.len());
            }
            let (position, done) = (self.position, done.map_err(|broken| broken.failed));
            if done.is_ok() {
                self.shared.tell(&jobs, position);
            }
            for ran in jobs {
                let own = ran.failed.map_or_else(|| done.clone(), Err);
                ran.job.finish(own.map(|()| Changes { list: ran.changes, position }));
            }
        }
    }

    /// After a transaction broke.
    fn mend(&mut self, broken: &Broken, jobs: usize) {
        tracing::error!(error = %broken.failed, jobs, "a commit failed");
        if matches!(broken.failed, Error::Damaged(_)) {
            self.alone = ALONE_COMMITS;
        }
        if broken.reopen {
            self.shared.recover(&broken.failed);
        }
    }

    /// Runs the jobs and commits. `self.position` moves only when the commit is durable.
    fn try_commit(&mut self, jobs: &mut [Ran]) -> Result<(), Broken> {
        let all = |failed: Error| Broken { ran: usize::MAX, reopen: failed != Error::Closed, failed };
        let shared = self.shared.clone();
        let open = shared.open.read();
        let Some(open) = &*open else { return Err(all(Error::Closed)) };
        let mut beside = open.journal.lock();
        let txn = guard::whole("a transaction cannot be started", || opening::begin(&open.db)).map_err(all)?;
        let mut w = Write::new(&txn, shared.hash_key, self.position);
        if jobs.len() > 1 {
            w.keep_undo();
        }
        if beside.journal.is_some() && shared.may_wait(jobs) {
            w.keep_record(std::mem::take(&mut self.record).again());
        }
        let start = w.mark();
        let watch = StopWatch::start();
        for (before, ran) in jobs.iter_mut().enumerate() {
            if let Err(failed) = ran.run(&mut w) {
                drop(w);
                let reopen = abort(txn).is_err() || failed.needs_reopening();
                return Err(Broken { ran: before + 1, reopen, failed });
            }
        }
        if !w.wrote_since(&start) {
            drop(w);
            return abort(txn).map_err(all);
        }
        let position = w.current_position();
        let noted = w.put_counters(&start);
        let puts = w.puts_since(&start);
        let journal = &beside.journal;
        let record = w.take_record().filter(|record| journal.as_ref().is_some_and(|journal| journal.has_room(record)));
        let noted = noted.and_then(|()| match journal {
            Some(journal) => w.put(&META, PLACE_ROW, &journal.next(record.as_ref()).to_row()),
            // No record that the old file has, or gets later, may follow this commit.
            None => w.remove(&META, PLACE_ROW).map(drop),
        });
        let is_checkpoint = journal.is_none() || record.is_none();
        let noted = noted.and_then(|()| if is_checkpoint { shared.how.keep_time(&mut w) } else { Ok(()) });
        #[cfg(test)]
        shared.counted.lock().add(std::mem::take(&mut w.counted));
        drop(w);
        if let Err(failed) = noted {
            let _ = abort(txn);
            return Err(all(failed));
        }
        let work = watch.elapsed();
        match (&mut beside.journal, record) {
            (Some(journal), Some(record)) => self.record = shared.write_ahead(txn, journal, record).map_err(all)?,
            _ => {
                guard::whole("the commit cannot be made", || txn.commit().map_err(Error::of)).map_err(all)?;
                shared.after_checkpoint(&mut beside);
            }
        }
        self.position = position;
        if watch.elapsed() >= SLOW {
            let (work_ms, sync_ms) = (work.as_millis() as u64, (watch.elapsed() - work).as_millis() as u64);
            tracing::info!(jobs = jobs.len(), puts, work_ms, sync_ms, "a commit took long; other writes waited for it");
        }
        Ok(())
    }

    /// After the database was opened again: a commit that reported a failure may still have reached the card, and its
    /// positions are not given out twice.
    fn catch_up(&mut self) {
        self.seen_reopened = self.shared.reopened.load(Ordering::Relaxed);
        let open = self.shared.open.read();
        self.position = self.position.max(open.as_ref().map(|open| open.position).unwrap_or_default());
    }

    fn compact(&mut self) -> Result<bool> {
        let done = {
            let mut open = self.shared.open.write();
            let Some(open) = &mut *open else { return Err(Error::Closed) };
            let done = checkpoint(open, &self.shared.how, false).and_then(|()| {
                guard::whole("the database cannot be compacted", || match open.db.compact() {
                    Ok(_) => Ok(true),
                    Err(redb::CompactionError::TransactionInProgress) => Ok(false),
                    Err(failed) => Err(Error::of(failed)),
                })
            });
            // Compacting leaves no list of the pages in use, and a start after a power cut would have to look for them.
            done.and_then(|done| checkpoint(open, &self.shared.how, false).map(|()| done))
        };
        done.inspect_err(|failed| self.shared.recover(failed))
    }

    /// Closes the database and opens it again, which gives back what is free at the file's end. Nobody has a snapshot at this
    /// moment, and whoever wants one waits.
    fn trim(&mut self) -> Result<bool> {
        let shared = self.shared.clone();
        // Most of what there is to write, while readers go on.
        let begun = match &*shared.open.read() {
            Some(open) if shared.may_trim(open) => checkpoint(open, &shared.how, false),
            Some(_) => return Ok(false),
            None => return Err(Error::Closed),
        };
        begun.inspect_err(|failed| shared.recover(failed))?;
        let mut place = shared.open.write();
        let Some(open) = &*place else { return Err(Error::Closed) };
        if !shared.may_trim(open) {
            return Ok(false);
        }
        if let Err(failed) = checkpoint(open, &shared.how, true) {
            drop(place);
            shared.recover(&failed);
            return Err(failed);
        }
        if let Some(old) = place.take() {
            shut(old.db);
            // Nor may what is left of it, after an error, write to the file.
            *old.retired.write() = true;
        }
        let open = opening::open(&*shared.medium, &shared.how)
            .inspect_err(|failed| *shared.lock_status() = Status::Failed(failed.clone()))?;
        *place = Some(open);
        Ok(true)
    }

    fn close(&mut self) {
        let open = {
            let mut place = self.shared.open.write();
            *self.shared.lock_status() = Status::Closed;
            place.take()
        };
        if let Some(open) = open {
            if let Err(failed) = checkpoint(&open, &self.shared.how, true) {
                tracing::warn!(error = %failed, "the last changes stay in the journal until the next start");
            }
            shut(open.db);
        }
        // Jobs queued in the meantime report the closing when they are dropped.
        self.jobs.close();
    }
}

/// Makes durable what only the journal has. At the last one nothing is left for the next start to look for.
fn checkpoint(open: &Open, how: &How, is_last: bool) -> Result<()> {
    let mut beside = open.journal.lock();
    let place = beside.journal.as_ref().map(|journal| journal.next(None));
    guard::whole("the changes of the journal cannot be committed", || {
        opening::in_transaction(&open.db, Durability::Immediate, |w| {
            how.keep_time(w)?;
            match place {
                Some(place) if !is_last => w.put(&META, PLACE_ROW, &place.to_row()),
                _ => w.remove(&META, PLACE_ROW).map(drop),
            }
        })
    })?;
    beside.journal.as_mut().map(Journal::begin);
    Ok(())
}

fn abort(txn: redb::WriteTransaction) -> Result<()> {
    guard::whole("a transaction cannot be aborted", || txn.abort().map_err(Error::of))
}

/// A failed transaction.
struct Broken {
    /// The jobs that ran in it; the later ones may go into another transaction.
    ran: usize,
    failed: Error,
    /// The database cannot be used any further.
    reopen: bool,
}

/// A job and the changes it announced.
struct Ran {
    kind: Kind,
    job: Box<Job>,
    changes: Vec<Change>,
    /// The error of this job alone, when the job does not know it.
    failed: Option<Error>,
}

impl Ran {
    fn new((kind, job): (Kind, Box<Job>)) -> Ran {
        Ran { kind, job, changes: Vec::new(), failed: None }
    }

    /// Runs the job; a job that returns an error, fails or panics leaves nothing behind. Fails when the transaction
    /// broke, or when the job's writes cannot be taken back alone.
    fn run(&mut self, w: &mut Write) -> Result<()> {
        let about = self.job.about.clone();
        let _about = about.enter();
        let mark = w.mark();
        let outcome = base::caught(|| self.job.run(w)).unwrap_or_else(|panicked| Outcome::Panicked(panicked.say()));
        let failed = match outcome {
            Outcome::Done if !w.is_broken() => {
                self.changes = w.take_changes();
                return Ok(());
            }
            Outcome::Failed(failed) => Some(failed),
            Outcome::Panicked(what) => {
                tracing::error!("a write job panicked; its writes are undone: {what}");
                self.failed = Some(Error::Panicked(what));
                w.take_failure()
            }
            Outcome::Done | Outcome::Refused => w.take_failure(),
        };
        match failed {
            Some(failed) if w.is_broken() || failed.needs_reopening() => return Err(failed),
            None if w.is_broken() => return Err(Error::Aborted),
            _ => {}
        }
        if w.wrote_since(&mark) {
            tracing::error!("a write job failed after its first put; its writes are undone");
            if !w.take_back()? {
                return Err(Error::Aborted);
            }
        }
        w.back_to(&mark);
        Ok(())
    }
}

impl Shared {
    /// Selects the jobs that may write now; the others get the error: a full disk, or the failure.
    fn admit(&self, group: Group) -> Result<Group> {
        let refusal = self.refusal();
        let Some(failed) = refusal else { return Ok(group) };
        let usable = failed == Error::Full;
        let (through, refused): (Group, Group) =
            group.into_iter().partition(|(kind, _)| usable && *kind == Kind::Freeing);
        refused.into_iter().for_each(|(_, job)| job.finish(Err(failed.clone())));
        Ok(through)
    }

    /// The reason ordinary jobs cannot run now, after an attempt to repair it.
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
                tracing::info!("the disk has room again");
                None
            }
            Status::Full => Some(Error::Full),
            Status::Failed(failed) => self.try_again().err().map(|_| failed),
            Status::Closed => Some(Error::Closed),
        }
    }

    /// Whether these jobs may wait in the journal for the next checkpoint.
    fn may_wait(&self, jobs: &[Ran]) -> bool {
        // Pages that the state on the card has are not used again before a checkpoint, so the file grows until then.
        jobs.iter().all(|ran| ran.kind != Kind::Bulk) && self.free_bytes() >= TIGHT_BYTES
    }

    /// Nobody has a snapshot, and the journal can be used.
    fn may_trim(&self, open: &Open) -> bool {
        open.journal.lock().journal.is_some() && self.snapshots.lock().are_none()
    }

    /// The group's changes in the journal, durable, and then in the database as readers see it. Answers the record's
    /// memory.
    fn write_ahead(
        &self,
        mut txn: redb::WriteTransaction,
        journal: &mut Journal,
        mut record: Record,
    ) -> Result<Record> {
        opening::in_memory(&mut txn)?;
        if let Err(failed) = journal.append(&mut record) {
            *self.journal_failed.lock() = Some(failed.clone());
            let _ = abort(txn);
            return Err(failed);
        }
        guard::whole("the commit cannot be made", || txn.commit().map_err(Error::of))?;
        Ok(record)
    }

    /// The journal begins again. One that could not be used is tried again after a while, now that nothing in its file is
    /// needed.
    fn after_checkpoint(&self, beside: &mut Beside) {
        if let Some(journal) = &mut beside.journal {
            return journal.begin();
        }
        if std::mem::take(&mut beside.is_bad) {
            opening::set_journal_aside(&*self.medium);
        }
        if !self.medium.is_for_looking() && beside.tried.elapsed() >= JOURNAL_AGAIN {
            let journal = opening::make_journal(&*self.medium, &self.how, self.hash_key);
            *beside = Beside { journal, tried: StopWatch::start(), is_bad: false };
        }
    }

    /// There is room for the reserve and some work beside it, and the reserve is back.
    fn is_roomy_again(&self) -> bool {
        self.free_bytes() >= 2 * FREE_BYTES_MIN
            && self.medium.take_reserve().is_ok()
            && self.free_bytes() >= FREE_BYTES_MIN
    }

    /// Tells the followers of a commit.
    fn tell(&self, jobs: &[Ran], position: Position) {
        let changes: Vec<_> = jobs.iter().flat_map(|ran| &ran.changes).collect();
        let followers = self.followers.read();
        followers.iter().for_each(|follower| follower.committed(&changes, position));
        followers.iter().for_each(|follower| follower.noted_by_all(&changes));
    }

    fn free_bytes(&self) -> u64 {
        // When the file system does not report its free space, writing is attempted.
        self.medium.free_bytes().unwrap_or(u64::MAX)
    }

    /// After a failure: gives the reserve up when the disk is full, and opens the database again. The failed commit is in
    /// it whole or not at all.
    fn recover(&self, failed: &Error) {
        let is_full = *failed == Error::Full;
        if is_full {
            self.medium.give_up_reserve();
        }
        let status = if is_full { Status::Full } else { Status::Working };
        if let Err(again) = self.reopen(&mut self.open.write(), status) {
            tracing::error!(error = %again, "the database could not be opened again; the next write tries");
        }
    }

    /// Opens a database that could not be opened again before.
    fn try_again(&self) -> Result<()> {
        let mut place = self.open.write();
        match place.is_some() {
            true => Ok(()), // another thread was faster
            false => self.reopen(&mut place, Status::Working),
        }
    }

    /// Puts a new database in the place of the old one. Snapshots of the old one keep the pages they have in memory and
    /// fail beyond them.
    fn reopen(&self, place: &mut Option<Open>, status: Status) -> Result<()> {
        if *self.lock_status() == Status::Closed {
            return Err(Error::Closed);
        }
        if let Some(old) = place.take() {
            // Waits for what it is reading or writing at this moment.
            *old.retired.write() = true;
            shut(old.db);
        }
        let mut open = opening::open(&*self.medium, &self.how)
            .inspect_err(|failed| *self.lock_status() = Status::Failed(failed.clone()))?;
        if let Some(failed) = self.journal_failed.lock().take() {
            *open.journal.get_mut() =
                Beside { journal: None, tried: StopWatch::start(), is_bad: failed != Error::Full };
        }
        let position = open.position;
        *place = Some(open);
        self.followers.read().iter().for_each(|follower| follower.lost(position));
        self.reopened.fetch_add(1, Ordering::Relaxed);
        *self.lock_status() = status;
        tracing::warn!("the database was opened again after a failure");
        Ok(())
    }

    fn lock_status(&self) -> parking_lot::MutexGuard<'_, Status> {
        self.status.lock()
    }
}

/// A write job without its types: what it makes stays between its closure and the caller. One type for all of them, since a
/// compiled copy for each job would cost memory.
pub(super) struct Job {
    /// What lines of the log are about that come from this job.
    about: Span,
    work: Option<Work>,
    reply: oneshot::Sender<Result<Changes>>,
}

type Work = Box<dyn FnOnce(&mut Write) -> Outcome + Send>;

pub(super) enum Outcome {
    Done,
    /// The job's own error.
    Refused,
    /// The database failed under it.
    Failed(Error),
    /// The panic's message.
    Panicked(String),
}

/// The place where a job leaves its result for the caller.
pub(super) struct Made<T, E>(Arc<Mutex<Option<std::result::Result<T, E>>>>);

impl Job {
    /// A job, the news of its commit, and the place of its result.
    pub(super) fn of<T, E>(
        work: impl FnOnce(&mut Write) -> std::result::Result<T, E> + Send + 'static,
    ) -> (Box<Job>, oneshot::Receiver<Result<Changes>>, Made<T, E>)
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        let (made, (reply, done)) = (Made(Arc::default()), oneshot::channel());
        let place = made.0.clone();
        let work: Work = Box::new(move |w| {
            let result = work(w);
            let is_done = result.is_ok();
            *place.lock() = Some(result);
            if is_done { Outcome::Done } else { w.take_failure().map_or(Outcome::Refused, Outcome::Failed) }
        });
        (Box::new(Job { about: Span::current(), work: Some(work), reply }), done, made)
    }

    /// Called once, in the transaction.
    fn run(&mut self, w: &mut Write) -> Outcome {
        self.work.take().map_or(Outcome::Refused, |work| work(w))
    }

    /// Called once, after the commit or instead of it.
    fn finish(self, committed: Result<Changes>) {
        // The caller may be gone; the write is done all the same.
        let _ = self.reply.send(committed);
    }
}

impl<T, E> Made<T, E> {
    /// The answer to the caller, once the job is finished.
    pub(super) fn answer(self, committed: Result<Changes>) -> std::result::Result<(T, Changes), WriteError<E>> {
        match (self.0.lock().take(), committed) {
            (Some(Ok(value)), Ok(changes)) => Ok((value, changes)),
            (Some(Err(failed)), _) => Err(WriteError::Job(failed)),
            (_, Err(failed)) => Err(WriteError::Store(failed)),
            (None, Ok(_)) => Err(WriteError::Store(Error::Aborted)),
        }
    }
}

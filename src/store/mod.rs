//! The one database file.
//!
//! Owns redb, which no other part names: tables of bytes, snapshots to read from, one writer that groups waiting jobs
//! into one durable commit, and the `Changes` that only a commit can make. Knows nothing of the meaning of rows; typed
//! rows and their verbs are in `tables/`, one file a noun, each owned by the part that writes it. Never decides which
//! part may write a row.
//!
//! A job checks before it writes: an `Err` from a job must come before its first put. Keep writes short, since there
//! is one writer; large changes are staged in `write_bulk` batches and flipped by one small write.
//!
//! Reading order: this file, `schema.rs`, `key_encoding.rs`, `row_encoding.rs`, `num.rs`, `access.rs` (reading and
//! writing rows), `guard.rs` (pages that cannot be read), `writer.rs` (the writer, and opening again after a failure),
//! `opening.rs`, `journal.rs` (changes before redb has them), `disk.rs`, `migrate.rs`, `survey.rs`, `copy.rs` (all rows, out of
//! a database and into a new one), `repack.rs` (a smaller file), then `tables/`.

mod access;
pub mod copy;
mod counters;
mod disk;
mod writer;
mod guard;
mod journal;
mod key_encoding;
mod migrate;
mod num;
#[cfg(test)]
mod row_counts;
mod opening;
mod repack;
pub mod schema;
mod shape;
mod survey;
pub mod tables;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;

pub use access::{Get, Read, Write, hash128};
pub use disk::{FREE_BYTES_MIN, FileMedium, Medium, MemoryMedium, RESERVE_BYTES};
pub use key_encoding::{Key, Parts, after_prefix};
/// The file that a [`Medium`] opens.
pub use redb::StorageBackend as Disk;
pub use writer::Status;

pub use num::{BodyNum, EventNum, Position, RoomNum, ServerNum, StateKeyNum, UserNum};
pub use repack::{Place, STEP_BYTES_MAX, Step};
#[cfg(test)]
pub(crate) use row_counts::RowCounts;
pub use schema::Table;
pub use survey::{Gap, Measured, Survey, TableFound};

use crate::base::{Clock, KeptTime, Random};
use writer::{Engine, Job, Kind, Message};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How the database is opened.
pub struct StoreOptions {
    pub path: PathBuf,
    /// redb's cache; the reason of its account names the memory redb needs beside it.
    pub cache_bytes: usize,
    /// Jobs waiting for the writer at most; later callers wait to queue.
    pub queue_jobs: usize,
    /// Stack of the writer's thread.
    pub stack_bytes: usize,
    /// Length of the journal beside the database, in whole blocks of 4 KiB.
    pub journal_bytes: u64,
    /// The source of a new database's hash key, and of what tells the journal's records of one run from another's.
    pub random: Random,
    /// With a clock, each checkpoint writes down the latest time it has given out.
    pub clock: Option<Clock>,
}

impl StoreOptions {
    pub fn new(path: impl AsRef<Path>) -> Self {
        StoreOptions {
            path: path.as_ref().to_owned(),
            cache_bytes: 8 << 20,
            queue_jobs: 64,
            stack_bytes: 1 << 20,
            journal_bytes: journal::JOURNAL_BYTES,
            random: Random::os(),
            clock: None,
        }
    }
}

/// The database. Cloning is cheap and gives the same one.
#[derive(Clone)]
pub struct Store(Arc<Engine>);

impl Store {
    /// Opens or makes the database; blocks. After a power cut this takes well under a second.
    pub fn open(options: StoreOptions) -> Result<Self> {
        let medium = FileMedium::claim(&options.path).map_err(|failed| match failed.kind() {
            std::io::ErrorKind::WouldBlock => Error::Busy,
            _ => Error::from_io(&failed),
        })?;
        Self::open_on(Arc::new(medium), options)
    }

    /// The same on a medium of the caller's, for tests that cut the power or fill the disk.
    pub fn open_on(medium: Arc<dyn Medium>, options: StoreOptions) -> Result<Self> {
        Engine::start(medium, &options).map(|engine| Store(Arc::new(engine)))
    }

    /// A database in memory with a fixed hash key, for tests.
    pub fn in_memory() -> Self {
        Self::on_memory(MemoryMedium::default())
    }

    /// The same on a card with a free space that the test sets.
    pub fn on_memory(medium: MemoryMedium) -> Self {
        let mut options = StoreOptions::new("");
        options.random = Random::seeded(1);
        options.journal_bytes = 64 << 10;
        Self::open_on(Arc::new(medium), options).expect("memory does not fail")
    }

    /// A snapshot of everything committed so far. It keeps the pages it sees from being reused: do not hold one longer
    /// than an answer takes.
    pub fn read(&self) -> Result<Read> {
        self.0.read()
    }

    /// The time that a checkpoint wrote down.
    pub fn time_kept(&self) -> Result<Option<KeptTime>> {
        opening::time_kept(&self.read()?)
    }

    /// Runs `job` in the next commit, together with the other waiting jobs. When this returns `Ok`, it is durable.
    pub async fn write<T, E>(
        &self,
        job: impl FnOnce(&mut Write) -> Result<T, E> + Send + 'static,
    ) -> Result<(T, Changes), WriteError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        self.send(Kind::Ordinary, job).await
    }

    /// Runs `job` in a commit of its own, after those already waiting: for staged batches, so that a batch and other
    /// rooms' writes do not lengthen each other. `Full` when the space for other servers' data is used up, since
    /// batches belong to it.
    pub async fn write_bulk<T, E>(
        &self,
        job: impl FnOnce(&mut Write) -> Result<T, E> + Send + 'static,
    ) -> Result<(T, Changes), WriteError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        self.check_spare().map_err(WriteError::Store)?;
        self.send(Kind::Bulk, job).await
    }

    /// Like `write`, and also when the disk is full: for jobs that free more than they write.
    pub async fn write_freeing<T, E>(
        &self,
        job: impl FnOnce(&mut Write) -> Result<T, E> + Send + 'static,
    ) -> Result<(T, Changes), WriteError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        self.send(Kind::Freeing, job).await
    }

    /// `write` from a thread that may block.
    pub fn write_blocking<T, E>(
        &self,
        job: impl FnOnce(&mut Write) -> Result<T, E> + Send + 'static,
    ) -> Result<(T, Changes), WriteError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        self.send_blocking(Kind::Ordinary, job)
    }

    /// `write_bulk` from a thread that may block.
    pub fn write_bulk_blocking<T, E>(
        &self,
        job: impl FnOnce(&mut Write) -> Result<T, E> + Send + 'static,
    ) -> Result<(T, Changes), WriteError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        self.check_spare().map_err(WriteError::Store)?;
        self.send_blocking(Kind::Bulk, job)
    }

    /// `write_freeing` from a thread that may block.
    pub fn write_freeing_blocking<T, E>(
        &self,
        job: impl FnOnce(&mut Write) -> Result<T, E> + Send + 'static,
    ) -> Result<(T, Changes), WriteError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        self.send_blocking(Kind::Freeing, job)
    }

    /// Tells a follower of every commit from now on.
    pub fn follow(&self, follower: Arc<dyn Follower>) {
        self.0.follow(follower);
    }

    /// Whether writing works at the moment, for the admin page.
    pub fn status(&self) -> Status {
        self.0.status()
    }

    /// Bytes the file system still has for the database.
    pub fn free_bytes(&self) -> u64 {
        self.0.free_bytes()
    }

    /// Bytes that the database's file takes: a part at its end that was never written is not among them.
    pub fn file_bytes(&self) -> u64 {
        self.0.file_bytes()
    }

    /// Bytes of them that other servers' data may still use: the rest is for the household.
    pub fn spare_bytes(&self) -> u64 {
        self.0.spare_bytes()
    }

    /// Bytes of the file system, used or not.
    pub fn total_bytes(&self) -> u64 {
        self.0.total_bytes()
    }

    /// `Full` when the space for other servers' data is used up.
    pub fn check_spare(&self) -> Result<()> {
        if self.spare_bytes() == 0 { Err(Error::Full) } else { Ok(()) }
    }

    /// The rows that commits changed since this was last called.
    #[cfg(test)]
    pub(crate) fn take_counted(&self) -> RowCounts {
        self.0.take_counted()
    }

    /// A position that a token of an app has; none when it is of a time that was lost, since the database was restored from an
    /// older copy. What came then is not here, and what is here may not be what the app was told.
    pub fn known(&self, position: Position) -> Option<Position> {
        let is_lost = |(from, to): &(Position, Position)| position > *from && position < *to;
        (!self.0.lost().iter().any(is_lost)).then_some(position)
    }

    /// The position itself, or that of the copy for one of a lost time: everything up to there is as it was.
    pub fn before_loss(&self, position: Position) -> Position {
        let loss = self.0.lost().iter().find(|(from, to)| position > *from && position < *to);
        loss.map_or(position, |(from, _)| *from)
    }

    /// How often the database had to be opened again since the start.
    pub fn reopened(&self) -> u64 {
        self.0.reopened()
    }

    /// Whether a journal that the disk failed in lies beside the database. One look at the file system.
    pub fn has_journal_aside(&self) -> bool {
        self.0.has_journal_aside()
    }

    /// Gives freed pages back to the file system; blocks, and stops all writing meanwhile. False when a snapshot was
    /// in use and nothing could be done.
    pub fn compact_blocking(&self) -> Result<bool> {
        let (reply, done) = oneshot::channel();
        self.0.queue().blocking_send(Message::Compact(reply)).map_err(|_| Error::Closed)?;
        done.blocking_recv().map_err(|_| Error::Closed)?
    }

    /// Finishes the waiting jobs, closes the file and ends the writer. Later calls get `Closed`.
    pub async fn close(&self) {
        let (reply, done) = oneshot::channel();
        if self.0.queue().send(Message::Close(reply)).await.is_ok() {
            let _ = done.await;
        }
    }

    /// `close` from a thread that may block.
    pub fn close_blocking(&self) {
        let (reply, done) = oneshot::channel();
        if self.0.queue().blocking_send(Message::Close(reply)).is_ok() {
            let _ = done.blocking_recv();
        }
    }

    async fn send<T, E>(
        &self,
        kind: Kind,
        job: impl FnOnce(&mut Write) -> Result<T, E> + Send + 'static,
    ) -> Result<(T, Changes), WriteError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        let (job, done, made) = Job::of(job);
        made.answer(self.through(kind, job, done).await)
    }

    async fn through(&self, kind: Kind, job: Box<Job>, done: oneshot::Receiver<Result<Changes>>) -> Result<Changes> {
        #[cfg(test)]
        let _aside = crate::base::testing::Waits::begin();
        self.0.queue().send(Message::Job(kind, job)).await.map_err(|_| Error::Closed)?;
        done.await.unwrap_or(Err(Error::Closed))
    }

    fn send_blocking<T, E>(
        &self,
        kind: Kind,
        job: impl FnOnce(&mut Write) -> Result<T, E> + Send + 'static,
    ) -> Result<(T, Changes), WriteError<E>>
    where
        T: Send + 'static,
        E: Send + 'static,
    {
        let (job, done, made) = Job::of(job);
        let queued = self.0.queue().blocking_send(Message::Job(kind, job));
        made.answer(queued.map_err(|_| Error::Closed).and_then(|()| done.blocking_recv().unwrap_or(Err(Error::Closed))))
    }
}

/// A change that clients or servers may want to know of, announced by a job and made public by its commit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Change {
    /// Users of this server whose sync has something new. Bounded by the number of local users.
    pub users: Vec<UserNum>,
    pub room: Option<RoomNum>,
    /// A message that is new, and not part of a history: it is counted.
    pub message: bool,
    /// Of what a sync tells, it touches the room's own part and nothing else: no membership, no devices, no messages to
    /// them, no account data.
    pub only_room: bool,
    /// The sync of others than `users` may have something new, which they are not woken for.
    pub anybody: bool,
    /// Access tokens or accounts are others than before.
    pub sessions: bool,
    /// Guests may have to leave a room.
    pub guests: bool,
    /// This user of this server is invited to the room.
    pub invited: Option<UserNum>,
    /// There are rows for other servers.
    pub outbound: bool,
    /// There are rows for appservices.
    pub appservices: bool,
    /// The events of a user are to be redacted.
    pub redacts: bool,
    /// What push gateways are told of `users` may be other than before.
    pub push: Push,
    /// The index of words has to be mended: an event lost its text, or got its place late.
    pub words: bool,
    /// Rules of policy lists that the server follows are others than before.
    pub policies: bool,
}

/// What a change means for push gateways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Push {
    #[default]
    Nothing,
    /// Some of the users have a new notification in the room.
    Notified,
    /// The users have read a notification there.
    Read,
    /// The users set or removed pushers.
    Pushers,
}

/// The changes that a commit made known. Only a commit can make one, so nothing is announced that is not durable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    list: Vec<Change>,
    position: Position,
}

impl Changes {
    pub fn list(&self) -> &[Change] {
        &self.list
    }

    /// The position of the commit: a snapshot taken from now on has it or a later one.
    pub fn position(&self) -> Position {
        self.position
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// Told of commits, in their order: by the writer's thread, when a snapshot shows the commit and before any caller of its
/// jobs has an answer. What it does is short and does not wait.
pub trait Follower: Send + Sync {
    /// Everything up to `position` is there, with these changes since the position told before.
    fn committed(&self, changes: &[&Change], position: Position);

    /// Every follower has noted the commit: whom it concerns may be woken.
    fn noted_by_all(&self, _changes: &[&Change]) {}

    /// Something may be there up to `position` that no commit announced: the database was opened again after a failure.
    /// No reader sees it before.
    fn lost(&self, position: Position);
}

/// The failures of the database itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The card failed; the database is opened again by itself.
    #[error("the disk failed: {0}")]
    Io(String),
    /// The disk is full; new work is refused, reading goes on.
    #[error("the disk is full")]
    Full,
    /// Our own data is wrong.
    #[error("a row of {table} is corrupt: {key:02x?}")]
    Corrupt { table: &'static str, key: Vec<u8> },
    /// A page cannot be read, or redb says that its own structure is wrong.
    #[error("the database is damaged: {0}")]
    Damaged(String),
    /// Another process has the file.
    #[error("the database is in use by another process")]
    Busy,
    /// The file was written by a newer program.
    #[error("the database has format {found}, {}", advice(*found, *known))]
    Version { found: u32, known: u32 },
    /// The journal has a change that this program does not know.
    #[error(
        "the journal of the database was written by another version of this program: start that version and stop it in \
         order"
    )]
    OtherVersion,
    /// A job in the same group broke the rule to check before it writes; nothing of the group was written.
    #[error("another write of the same commit failed; nothing of the commit was written")]
    Aborted,
    /// The operation panicked with this message and is given up.
    #[error("the operation panicked: {0}")]
    Panicked(String),
    /// The server is shutting down.
    #[error("the database is closed")]
    Closed,
}

impl Error {
    /// Whether the same work may succeed later: not after a wrong row or page, nor after a job that panics.
    pub fn is_passing(&self) -> bool {
        !matches!(self, Error::Corrupt { .. } | Error::Damaged(_) | Error::Aborted | Error::Panicked(_))
    }

    /// Whether the disk is full.
    pub fn is_full(&self) -> bool {
        matches!(self, Error::Full)
    }

    pub fn corrupt(table: &Table, key: &[u8]) -> Self {
        Error::Corrupt { table: table.name, key: key.to_vec() }
    }

    /// From an error of the file system, also for our files beside the database.
    pub fn from_io(failed: &std::io::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        match failed.kind() {
            StorageFull | QuotaExceeded => Error::Full,
            _ => Error::Io(failed.to_string()),
        }
    }

    /// Any of redb's errors.
    fn of(failed: impl Into<redb::Error>) -> Self {
        match failed.into() {
            redb::Error::Io(failed) => Error::from_io(&failed),
            redb::Error::PreviousIo => Error::Io("an earlier error stopped this database".into()),
            redb::Error::DatabaseClosed => Error::Closed,
            redb::Error::DatabaseAlreadyOpen => Error::Busy,
            other => Error::Damaged(other.to_string()),
        }
    }

    /// Whether the database has to be opened again before it can be used.
    fn needs_reopening(&self) -> bool {
        matches!(self, Error::Io(_) | Error::Full)
    }
}

/// What to do about a file of another format.
fn advice(found: u32, known: u32) -> String {
    match found > known {
        true => format!("and this program knows formats up to {known}: use a newer version"),
        false => "of a version before the first release, which this program does not read".to_owned(),
    }
}

/// Why a write did not happen: the job returned an error, or the database failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError<E> {
    #[error("{0}")]
    Job(E),
    #[error(transparent)]
    Store(Error),
}

impl<E: From<Error>> WriteError<E> {
    /// One error for callers whose own error knows the database's.
    pub fn into_inner(self) -> E {
        match self {
            WriteError::Job(failed) => failed,
            WriteError::Store(failed) => failed.into(),
        }
    }
}

impl From<WriteError<Error>> for Error {
    fn from(failed: WriteError<Error>) -> Self {
        failed.into_inner()
    }
}

#[cfg(test)]
mod tests;
pub mod row_encoding;

//! Backups: a copy of the whole server that is made while it runs, in a folder of many or in one file.
//!
//! A copy is the rows of one snapshot (`store/copy.rs`), the media files they refer to, and the small files of the data
//! folder, which are its keys and settings. Its list (`list.rs`) has the SHA-256 of each; nothing is believed that it does not
//! name. In a folder each thing is there once, whatever number of backups has it.
//!
//! The snapshot lasts while the rows are copied, not the files. Meanwhile the database grows by the pages that change; a
//! bound on that ends a backup to a target that is too slow (`run.rs`).
//!
//! Reading order: this file (what runs, when), `list.rs`, `run.rs` (making one), `folder.rs` and `archive.rs` (where to),
//! `seal.rs` (sealing), `check.rs` (reading one). Restoring is in `serve/restore.rs`, since a server that restores does not run.

mod archive;
mod check;
mod folder;
mod list;
mod run;
mod seal;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::base::{Clock, Random, StopWatch, Worker, blocking, date, read_small};
use crate::budget::{Budget, Refused};
pub use crate::store::tables::backups::Made;
use crate::store::tables::backups::{self as noted, Noted};
use crate::store::{self, Store};

pub use check::{Sink, Source, bad_piece, identity_file};
pub use folder::{Found, check_names, has_identity, identity, list as backups_in, set_aside, stamp};
pub use list::{Entry, Head};
pub use run::{OUTSIDE, STEP_BYTES};
pub use seal::{Identity, Key, PASSPHRASE_BYTES, PASSPHRASE_CHARS_MIN, Recipient};

use archive::Archive;
use folder::{Folder, Seal};
use run::{Run, Step, Target};

/// How hard zstd tries: most rows are packed already, and pictures do not get smaller.
const LEVEL: i32 = 1;
/// What a file's name ends with to be one archive.
const ARCHIVES: [&str; 2] = [".tar.zst", ".tar.zst.age"];
/// The longest pause between two steps beside other work, which is as long as the step took.
const PAUSE_MAX: Duration = Duration::from_millis(250);
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// A passphrase, and what its owner noted beside it.
const PASSPHRASE_FILE_BYTES_MAX: u64 = 4096;
/// After a failure it is tried again at these intervals until the next time of day.
const AGAIN: Duration = Duration::from_secs(60 * 60);
/// A scheduled backup that is older is told to the administrators.
pub const OLD_MS: u64 = 2 * DAY_MS;
/// How often it is looked whether one is due.
const LOOK_MAX: Duration = Duration::from_secs(60 * 60);
/// Whoever looks into the target on the page does not wait longer: for the list of backups, and for all that is in one.
const LIST_WITHIN: Duration = Duration::from_secs(3);
const LOOK_WITHIN: Duration = Duration::from_secs(30);

/// The parts that backups are made from.
pub struct Parts {
    pub store: Store,
    pub clock: Clock,
    pub random: Random,
    pub budget: Budget,
    pub server: String,
    /// The data folder, and where in it media and scratch files are.
    pub folder: PathBuf,
    pub media: PathBuf,
    pub scratch: PathBuf,
    /// The config file, when it is not in the data folder.
    pub config_outside: Option<PathBuf>,
}

/// Which media files a backup has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Media {
    /// What people here uploaded. Other servers' files are fetched again.
    #[default]
    Own,
    All,
    None,
}

impl Media {
    pub const NAMES: [(&str, Media); 3] = [("own", Media::Own), ("all", Media::All), ("none", Media::None)];

    fn name(self) -> &'static str {
        Media::NAMES.iter().find(|(_, media)| *media == self).map_or("own", |(name, _)| name)
    }

    fn named(name: &str) -> Option<Media> {
        Media::NAMES.iter().find(|(known, _)| *known == name).map(|(_, media)| *media)
    }
}

/// What to back up, and where to.
#[derive(Clone, Default, Serialize, Deserialize)]
pub struct Order {
    /// An absolute path: a folder, or a file that ends with `.tar.zst`.
    pub target: PathBuf,
    #[serde(default)]
    pub media: Media,
    /// Sealed to this recipient of age.
    #[serde(default)]
    pub recipient: Option<String>,
    /// Sealed to this passphrase.
    #[serde(default)]
    pub passphrase: Option<String>,
    /// How many days backups of the folder are kept; none for ever.
    #[serde(default)]
    pub keep_days: Option<u32>,
}

/// Without the passphrase.
impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Order");
        shown.field("target", &self.target).field("media", &self.media).field("recipient", &self.recipient);
        shown.field("keep_days", &self.keep_days).finish_non_exhaustive()
    }
}

/// `[backup]`.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub target: Option<PathBuf>,
    /// Minutes after midnight, UTC.
    pub minute: u64,
    pub keep_days: Option<u32>,
    pub media: Media,
    pub recipient: Option<String>,
    pub passphrase_file: Option<PathBuf>,
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    #[default]
    Files,
    Rows,
    Media,
    List,
    Check,
}

/// How far it is.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Progress {
    pub stage: Stage,
    pub rows_done: u64,
    pub rows: u64,
    pub media_done: u64,
    pub media_bytes: u64,
    /// Bytes that were not in the target before.
    pub written_bytes: u64,
    pub checked_bytes: u64,
    /// Of all that is in it so far, as it is here.
    pub bytes: u64,
    /// Media files that are not what they were.
    pub damaged: u64,
    /// Files and folders of the data folder that are not in it.
    pub left_out: u64,
    /// It lies on the disk that the server is on.
    pub is_beside: bool,
}

/// A thing as it lies in the target.
pub struct Stored {
    path: PathBuf,
    hash: [u8; 32],
    bytes: u64,
}

/// What there is to know of the backups of a running server.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Status {
    /// Of the one that is being made.
    pub running: Option<Progress>,
    /// How the last one ended since the start of the server, in words; none while there was none.
    pub ended: Option<Result<String, String>>,
    /// The times of the last whole ones and the last failure, of all times.
    #[serde(flatten)]
    pub noted: Noted,
    /// Whether one is made each day.
    pub is_scheduled: bool,
}

/// The backups. Cheap to clone.
#[derive(Clone)]
pub struct Backups(Arc<Inner>);

struct Inner {
    parts: Arc<Parts>,
    options: Options,
    now: Mutex<Now>,
    /// Somebody looks into the target: a disk that went away may keep them for long.
    is_looked_at: AtomicBool,
}

#[derive(Default)]
struct Now {
    progress: Option<Progress>,
    is_cancelled: bool,
    ended: Option<Result<String, String>>,
}

/// The right to make a backup: one at a time. Ends with its drop, also after a panic.
pub struct Turn(Arc<Inner>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.now.lock().progress = None;
    }
}

impl Backups {
    pub fn new(parts: Parts, options: Options) -> Backups {
        Backups(Arc::new(Inner {
            parts: Arc::new(parts),
            options,
            now: Mutex::default(),
            is_looked_at: AtomicBool::new(false),
        }))
    }

    pub fn options(&self) -> &Options {
        &self.0.options
    }

    /// What is being done, and how the last one ended.
    pub fn status(&self) -> Result<Status, Error> {
        let mut noted = noted::get(&self.0.parts.store.read()?)?;
        let target = self.0.options.target.as_ref().map(|target| target.to_string_lossy().into_owned());
        if noted.scheduled_ms.is_none() && noted.target == target {
            // Noted before the two were told apart.
            noted.scheduled_ms = noted.made_ms;
        }
        let now = self.0.now.lock();
        let is_scheduled = self.0.options.target.is_some();
        Ok(Status { running: now.progress, ended: now.ended.clone(), noted, is_scheduled })
    }

    /// Ends the one that is being made at its next step. False when there is none.
    pub fn cancel(&self) -> bool {
        let mut now = self.0.now.lock();
        now.is_cancelled = now.progress.is_some();
        now.is_cancelled
    }

    /// Takes the turn. `Running` while another backup is being made.
    pub fn begin(&self) -> Result<Turn, Error> {
        let mut now = self.0.now.lock();
        if now.progress.is_some() {
            return Err(Error::Running);
        }
        *now = Now { progress: Some(Progress::default()), ..Now::default() };
        Ok(Turn(self.0.clone()))
    }

    /// Makes a backup.
    pub async fn make(&self, order: Order) -> Result<String, Error> {
        self.make_in(self.begin()?, order).await
    }

    /// Makes a backup in a turn that was taken.
    pub async fn make_in(&self, turn: Turn, order: Order) -> Result<String, Error> {
        self.make_as(turn, order, false).await
    }

    async fn make_as(&self, turn: Turn, order: Order, is_scheduled: bool) -> Result<String, Error> {
        let target = order.target.clone();
        let done = self.run(order).await.map_err(|failed| of_target(failed, &target));
        let at_ms = self.0.parts.clock.settled_ms();
        let said = done.as_ref().map(|(said, _)| said.clone()).map_err(ToString::to_string);
        self.0.now.lock().ended = Some(said.clone());
        drop(turn);
        match &said {
            Ok(said) => tracing::info!("{said}"),
            Err(why) => tracing::warn!("the backup to {} failed: {why}", target.display()),
        }
        let new = match &done {
            Ok((_, made)) => Ok(Made { at_ms, target: target.to_string_lossy().into_owned(), ..made.clone() }),
            Err(why) => Err(why.to_string()),
        };
        let note = self.0.parts.store.write(move |w| match new {
            Ok(made) => noted::made(w, made, is_scheduled),
            Err(why) => noted::failed(w, at_ms, &why),
        });
        if let Err(failed) = note.await {
            tracing::warn!(%failed, "when the last backup was made cannot be noted");
        }
        done.map(|(said, _)| said)
    }

    /// What is said of it, and what is noted but for the time.
    async fn run(&self, order: Order) -> Result<(String, Made), Error> {
        let parts = &self.0.parts;
        let watch = StopWatch::start();
        let account = parts.budget.account("backup");
        let sealing = match order.passphrase {
            Some(_) => PASSPHRASE_BYTES,
            None => 0,
        };
        let grant = account.take(STEP_BYTES.max(sealing)).await?;
        let (begun, keep_days) = (parts.clone(), order.keep_days);
        let at_ms = parts.clock.settled_ms();
        let mut run = blocking(move || begin(begun, &order, at_ms)).await?;
        drop(grant);
        let mut bytes = STEP_BYTES;
        loop {
            let grant = account.take(bytes).await?;
            let step = StopWatch::start();
            let (back, done) = blocking(move || {
                let done = run.step(bytes);
                (run, done)
            })
            .await;
            run = back;
            drop(grant);
            bytes = STEP_BYTES;
            match done? {
                Step::Again => {}
                Step::Needs(more) => bytes = more,
                Step::Over(stored) => {
                    if let Some(days) = keep_days {
                        let before = run.made_ms().saturating_sub(u64::from(days) * DAY_MS);
                        let grant = account.take(STEP_BYTES.max(folder::FILTER_BYTES)).await?;
                        let expired = blocking(move || (run.expire(before), run)).await;
                        drop(grant);
                        if let Err(failed) = expired.0 {
                            tracing::warn!(%failed, "old backups could not be removed");
                        }
                        run = expired.1;
                    }
                    let (bytes, new_bytes) = (run.progress.bytes, run.progress.written_bytes);
                    let made = Made {
                        begun_ms: run.made_ms(),
                        bytes,
                        new_bytes,
                        is_apart: !run.progress.is_beside,
                        ..Made::default()
                    };
                    return Ok((said(&stored, &run.progress, watch.elapsed()), made));
                }
            }
            {
                let mut now = self.0.now.lock();
                now.progress = Some(run.progress);
                if now.is_cancelled {
                    return Err(Error::Cancelled);
                }
            }
            parts.clock.sleep(step.elapsed().min(PAUSE_MAX)).await;
        }
    }

    /// Makes the backups of the schedule. `tell` is given a sentence for the administrators.
    pub async fn keep<Told: Future<Output = ()>>(&self, worker: &Worker, tell: impl Fn(String) -> Told) {
        let (Some(target), options) = (self.0.options.target.clone(), &self.0.options) else { return };
        let clock = &self.0.parts.clock;
        let mut told_ms = 0;
        loop {
            let now_ms = clock.settled_ms();
            let noted = self.status().map(|status| status.noted).unwrap_or_default();
            let due_ms = latest_due(now_ms, options.minute);
            // One of a clock that was ahead keeps none from being made.
            let made_ms = noted.scheduled_ms.filter(|made_ms| *made_ms <= now_ms).unwrap_or(0);
            if made_ms < due_ms {
                worker.works_on("making a backup");
                match self.make_scheduled().await {
                    Ok(_) => {
                        told_ms = 0;
                        worker.done(1);
                    }
                    // One by hand is being made: this one follows.
                    Err(Error::Running) => {}
                    Err(failed) => {
                        worker.failed(&failed);
                        let age = match made_ms {
                            0 => "There is no backup yet.".to_owned(),
                            made_ms => format!("The last one is of {}.", date(made_ms)),
                        };
                        if told_ms < due_ms {
                            told_ms = now_ms;
                            tell(format!("The backup to {} failed: {failed}. {age}", target.display())).await;
                        }
                    }
                }
            }
            let now_ms = clock.settled_ms();
            let made = self.status().ok().and_then(|status| status.noted.scheduled_ms);
            let made = made.filter(|made_ms| *made_ms <= now_ms).unwrap_or(0);
            let next = match made >= latest_due(now_ms, options.minute) {
                true => Duration::from_millis(latest_due(now_ms, options.minute) + DAY_MS - now_ms).min(LOOK_MAX),
                false => AGAIN,
            };
            worker.idle_for(next);
            clock.sleep(next).await;
        }
    }

    async fn make_scheduled(&self) -> Result<String, Error> {
        let order = self.order().await?;
        self.make_as(self.begin()?, order, true).await
    }

    /// Makes the backup of the schedule now, in a turn that was taken; it counts as one of the schedule.
    pub async fn make_now(&self, turn: Turn) -> Result<String, Error> {
        let order = self.order().await?;
        self.make_as(turn, order, true).await
    }

    /// What the schedule says. `Bad` when there is none.
    async fn order(&self) -> Result<Order, Error> {
        let options = &self.0.options;
        let target = options.target.clone();
        let target = target.ok_or_else(|| Error::Bad("no folder for backups is set: backup.target".to_owned()))?;
        let passphrase = match self.passphrase().await {
            Ok(passphrase) => passphrase,
            Err(failed) => {
                let (at_ms, why) = (self.0.parts.clock.settled_ms(), failed.to_string());
                if let Err(failed) = self.0.parts.store.write(move |w| noted::failed(w, at_ms, &why)).await {
                    tracing::warn!(%failed, "that a backup failed cannot be noted");
                }
                return Err(failed);
            }
        };
        let (media, recipient, keep_days) = (options.media, options.recipient.clone(), options.keep_days);
        Ok(Order { target, media, recipient, passphrase, keep_days })
    }

    /// What the backups of the schedule are sealed to.
    async fn passphrase(&self) -> Result<Option<String>, Error> {
        let Some(path) = self.0.options.passphrase_file.clone() else { return Ok(None) };
        let file = path.clone();
        let text = blocking(move || read_small(&file, PASSPHRASE_FILE_BYTES_MAX)).await.map_err(at(&path))?;
        let text = String::from_utf8(text);
        let text = text.map_err(|_| Error::Bad(format!("{} is no text in UTF-8", path.display())))?;
        // As `snug restore` reads it.
        Ok(Some(text.lines().next().unwrap_or_default().to_owned()))
    }

    /// When the schedule makes the next one, if nothing fails.
    pub fn next_ms(&self) -> Option<u64> {
        self.0.options.target.as_ref()?;
        Some(latest_due(self.0.parts.clock.settled_ms(), self.0.options.minute) + DAY_MS)
    }

    /// The backups in the folder of the schedule, the newest first, or why they cannot be listed.
    pub async fn scheduled(&self) -> Result<Vec<Found>, Error> {
        let Some(target) = self.0.options.target.clone() else { return Ok(Vec::new()) };
        let mut found = self
            .looking(LIST_WITHIN, move || match folder::list(&target) {
                Err(Error::File(_, failed)) if failed.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
                found => found,
            })
            .await?;
        found.reverse();
        Ok(found)
    }

    /// Looks whether all things of a backup of the schedule's folder are there, each in its length when it is not sealed. Answers
    /// how many, and their bytes. `Bad` when something is missing.
    pub async fn look(&self, backup: Found) -> Result<(u64, u64), Error> {
        let target = self.0.options.target.clone();
        let target = target.ok_or_else(|| Error::Bad("no folder for backups is set: backup.target".to_owned()))?;
        self.looking(LOOK_WITHIN, move || check_names(&target, &backup)).await
    }

    /// Looks into the target, one at a time.
    async fn looking<T: Send + 'static>(
        &self,
        within: Duration,
        look: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = self.0.clone();
        if inner.is_looked_at.swap(true, Ordering::AcqRel) {
            return Err(Error::Slow);
        }
        let done = blocking(move || {
            let _end = Looking(inner);
            look()
        });
        tokio::select! {
            done = done => done,
            () = self.0.parts.clock.sleep(within) => Err(Error::Slow),
        }
    }
}

/// Given back by drop.
struct Looking(Arc<Inner>);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.is_looked_at.store(false, Ordering::Release);
    }
}

/// The last time of day that has come, in Unix time.
fn latest_due(now_ms: u64, minute: u64) -> u64 {
    let today = now_ms / DAY_MS * DAY_MS + minute * 60_000;
    if today <= now_ms { today } else { today.saturating_sub(DAY_MS) }
}

fn said(stored: &Stored, progress: &Progress, took: Duration) -> String {
    let human = crate::budget::human;
    let mut said = format!(
        "The backup {} is whole and was read back: {} rows, {} of files; {} of it is new. It took {}.",
        stored.path.display(),
        progress.rows_done,
        human(progress.media_done),
        human(progress.written_bytes),
        crate::base::span(took.as_millis() as u64),
    );
    if progress.damaged > 0 {
        said += &format!(" {} media files are damaged and not in it: the log names them.", progress.damaged);
    }
    if progress.left_out > 0 {
        said += &format!(" {} files in the data folder are not in it: the log names them.", progress.left_out);
    }
    if progress.is_beside {
        said += " It is on the same disk as the server, and is lost with it.";
    }
    said
}

/// The longest piece of a backup's rows that an account of so many bytes has room for: it is held twice, and once more packed.
pub fn piece_bytes_max(account_bytes: u64) -> u64 {
    account_bytes.saturating_sub(seal::SEAL_BYTES) / 3
}

/// Whether a target is one file.
pub fn is_archive(target: &Path) -> bool {
    let name = target.to_string_lossy();
    ARCHIVES.iter().any(|end| name.ends_with(end))
}

fn begin(parts: Arc<Parts>, order: &Order, now_ms: u64) -> Result<Run, Error> {
    let target = &order.target;
    if !target.is_absolute() {
        return Err(Error::Bad(format!("{} is not an absolute path", target.display())));
    }
    if target.starts_with(&parts.folder) {
        return Err(Error::Bad("a backup inside of the data folder would be lost with it".to_owned()));
    }
    check_mounted(&parts, target)?;
    let passphrase = order.passphrase.as_deref();
    if passphrase.is_some_and(|words| words.chars().count() < PASSPHRASE_CHARS_MIN) {
        return Err(Error::Bad(format!(
            "the passphrase is too short: what it seals can be guessed at by whoever has it, so it needs \
             {PASSPHRASE_CHARS_MIN} letters or more"
        )));
    }
    let recipient = order.recipient.as_deref().map(|text| {
        Recipient::parse(text).ok_or_else(|| Error::Bad(format!("{text:?} is not a recipient of age such as age1…")))
    });
    let recipient = recipient.transpose()?;
    if recipient.is_some() && passphrase.is_some() {
        return Err(Error::Bad("a backup is sealed to a recipient or to a passphrase, not to both".to_owned()));
    }
    let names = || Ok::<_, Error>(names_key(&parts.store.copy_out()?.hash_key()));
    if is_archive(target) {
        let is_sealed = recipient.is_some() || passphrase.is_some();
        if is_sealed != target.to_string_lossy().ends_with(".age") {
            let why =
                if is_sealed { "a sealed file ends with .tar.zst.age" } else { "only a sealed file ends with .age" };
            return Err(Error::Bad(why.to_owned()));
        }
        let seal = recipient.map(|recipient| Seal { recipient, names: [0; 32] });
        let to = run::to_of(seal.as_ref(), order.passphrase.clone());
        let archive = Archive::begin(target, to.as_ref(), &parts.random)?;
        let is_beside = is_same_disk(target.parent().unwrap_or(target), &parts.folder);
        let mut run = Run::begin(parts, order.media, Target::Archive(archive), None, now_ms)?;
        run.progress.is_beside = is_beside;
        return Ok(run);
    }
    let recipient = match passphrase {
        Some(words) => Some(identity(target, words, Some(&parts.random))?.recipient()),
        None => recipient,
    };
    let seal = recipient.map(|recipient| Ok::<_, Error>(Seal { recipient, names: names()? })).transpose()?;
    let folder = Folder::open(target, seal, &parts.random)?;
    let is_beside = is_same_disk(target, &parts.folder);
    let mut run = Run::begin(parts, order.media, Target::Folder(folder), seal, now_ms)?;
    run.progress.is_beside = is_beside;
    Ok(run)
}

/// Refuses a target that had a disk of its own when the last backup was made there, and has none now: that disk is not there, and a
/// backup would fill the server's.
fn check_mounted(parts: &Parts, target: &Path) -> Result<(), Error> {
    if !is_same_disk(target, &parts.folder) {
        return Ok(());
    }
    let name = target.to_string_lossy();
    let noted = noted::get(&parts.store.read()?)?;
    match noted.made.iter().rev().find(|made| made.target == name).is_some_and(|made| made.is_apart) {
        false => Ok(()),
        true => Err(Error::Bad(format!(
            "{name} was on a disk of its own when the last backup was made there, and now it is on the server's: that disk seems not \
             to be mounted. Nothing was written. If this is meant, name another folder"
        ))),
    }
}

/// Whether two places are on one file system, such as a target whose own disk is not there. What does not exist is where it would be
/// made.
fn is_same_disk(one: &Path, other: &Path) -> bool {
    let disk = |path: &Path| path.ancestors().find_map(|at| std::fs::metadata(at).ok()).map(|found| found.dev());
    disk(one).is_some_and(|of_one| disk(other) == Some(of_one))
}

/// What the names of sealed things are keyed with: the same for each backup of this database, and known to nobody else.
fn names_key(hash_key: &[u8; 16]) -> [u8; 32] {
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, hash_key);
    ring::hmac::sign(&key, b"names of sealed backups").as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Why there is no backup, or why one cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Bad(String),
    /// Of a thing that may be just as it was written: this version or its memory budget cannot take it.
    #[error("{0}")]
    Unusable(String),
    #[error("it is sealed: its passphrase or identity is needed")]
    Sealed,
    #[error("another backup is being made")]
    Running,
    #[error("its disk or network does not answer in time, or somebody else waits for it")]
    Slow,
    #[error("another server makes a backup to {}", .0.display())]
    Busy(PathBuf),
    #[error("{} is there already", .0.display())]
    Exists(PathBuf),
    #[error("it was cancelled; a folder keeps what is written, and the next backup goes on with it")]
    Cancelled,
    #[error(
        "too much was written to the database while its rows were copied, and the disk would fill up: the target is too slow. A \
         folder keeps what is written, so that the next backup is shorter"
    )]
    Grew,
    #[error(
        "the disk of the database is nearly full, and the database grows while its rows are copied: make room there first, such as \
         with `snug purge`"
    )]
    Low,
    #[error(
        "the disk of {} is full: make room there, or keep backups for fewer days; what a folder has of it is gone on with",
        .0.display()
    )]
    Full(PathBuf),
    #[error("{}: {}", .0.display(), .1)]
    File(PathBuf, io::Error),
    #[error("it cannot be read or written: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// Says which disk is full: there are two.
fn of_target(failed: Error, target: &Path) -> Error {
    match failed {
        Error::Io(why) if why.kind() == io::ErrorKind::StorageFull => Error::Full(target.to_owned()),
        Error::File(path, why) if why.kind() == io::ErrorKind::StorageFull && path.starts_with(target) => {
            Error::Full(target.to_owned())
        }
        other => other,
    }
}

fn at(path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |failed| Error::File(path.clone(), failed)
}

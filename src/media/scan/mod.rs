//! Files that wait until a scanner has called them clean, where the owner has set one (`media.scanner`).
//!
//! Every file that is given out, whole, smaller, or to another server, is opened through `kept`, which asks here: one that was called
//! clean has a row; any other is sent to the scanner (`remote/scanner/`) and waits. What is found infected is quarantined as an
//! administrator would have it (`quarantine.rs`), whose name is [`SCANNER`], and the administrators are told. Uploads are scanned when
//! they come, others when somebody asks for them. So nothing has to be remembered that is still to be scanned: what was not
//! judged, since the scanner or this server was away, is scanned when it is asked for again.
//!
//! What was called clean is asked about again when it is next asked for: after a day, and then whenever it has been here for twice as long,
//! since what is new is known to scanners last; at most [`ScanOptions::verdict_days`] later. Nothing is sent where the scanner's
//! database is still the one that it judged by. While the scanner is away the old word counts, up to those days.
//!
//! A scanner that judges nothing is seen by that it does not judge a few words either (`standing.rs`), which it is sent when a file
//! was not judged, or while it says nothing for [`QUIET`]. Files wait then without asking it each for itself.
//!
//! Bounds: [`Scans::turns`] at a time, each [`SCAN_BYTES`] of the account `media`; [`WAITING_MAX`] that wait; a row of some 100 bytes for a
//! clean file, which goes with it. What the scanner would not judge is not sent there again for [`UNJUDGED_PAUSE`].

use std::collections::VecDeque;
use std::fs::File;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{Error, Media};
use crate::base::{KeyedLock, Live, blocking, detached, unbroken};
use crate::budget::{Budget, turn_with_memory};
use crate::remote::scanner::{PROBE_BYTES, SCAN_BYTES, ScanFailed, Scanned, Scanner, Signs};
use crate::store::WriteError;
use crate::store::tables::media::{self, Clean, Mark};
use standing::{May, Standing};

mod standing;
#[cfg(test)]
mod tests;

pub use standing::ScannerAway;

/// Who withholds what the scanner found, among the administrators who do.
pub const SCANNER: &str = "scanner";
/// The account has room for one scan beside what else it pays for, or for two.
const ONE_BYTES: u64 = 128 << 10;
/// Files that are scanned or wait for their turn. Beyond that a file is scanned when somebody asks again.
const WAITING_MAX: usize = 32;
/// The longest wait of who asks for a file; the scan goes on.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// The same for a file that was called clean before.
const AGAIN_PATIENCE: Duration = Duration::from_secs(10);
/// A scanner that takes and says nothing for so long is seen after.
const QUIET: Duration = Duration::from_secs(20);
const UNJUDGED_PAUSE: Duration = Duration::from_secs(300);
/// So many of those are remembered.
const UNJUDGED_MAX: usize = 64;
/// So long after a scanner was asked for its database it is taken to have the same.
const EDITION_TIME: Duration = Duration::from_secs(3600);
/// The day's length.
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// So many files are told to the administrators within [`TOLD_TIME`]: whoever brings harmful ones on purpose would fill their rooms.
const TOLD_MAX: u32 = 20;
const TOLD_TIME: Duration = Duration::from_secs(3600);
/// When whoever asked for a file that is being scanned, or fetched to be, may ask again.
const SOON_MS: u64 = 5_000;

/// What the owner chose about scans. A change is in force at once.
#[derive(Debug, Clone, Default)]
pub struct ScanOptions {
    /// Who has to call a file clean before anybody gets it.
    pub scanner: Option<Scanner>,
    /// Whether that holds only as far as the scanner says anything.
    pub gives_out_unscanned: bool,
    /// How long its word counts at most; none: for ever.
    pub verdict_days: Option<u32>,
}

/// What is told to the administrators of a file.
#[derive(Debug, Clone)]
pub struct Harmful {
    pub server: String,
    pub media_id: String,
    pub found: String,
    /// Nothing is told of what is found in the rest of the hour.
    pub is_last: bool,
}

/// Files that the scanner was sent since the start, by what it said.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScanCounts {
    pub clean: u64,
    pub harmful: u64,
    pub unjudged: u64,
}

type Tell = Box<dyn Fn(Harmful) + Send + Sync>;

/// What scans are bounded by.
pub(super) struct Scans {
    options: Live<ScanOptions>,
    turns: Arc<Semaphore>,
    /// By the hash of the file.
    of_files: KeyedLock,
    waiting: Arc<AtomicUsize>,
    standing: Standing,
    unjudged: Mutex<VecDeque<(String, Duration)>>,
    /// What stands for the scanner's database, if it says, and when it was asked.
    edition: Mutex<Option<(Option<u64>, Duration)>>,
    /// Clean, harmful, not judged.
    counts: [AtomicU64; 3],
    tell: OnceLock<Tell>,
    /// Files that were told of, and since when they are counted.
    told: Mutex<(u32, Duration)>,
}

/// A place among those who wait.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What an earlier word of the scanner is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It said nothing yet.
    None,
    Counts,
    /// To be asked again if it is there, with what stood for its database.
    Due(u64),
    /// Worth nothing any more unless its database is still the same.
    Over(u64),
}

impl Verdict {
    fn of(clean: Option<Clean>, days: Option<u32>, now_ms: u64) -> Verdict {
        let (Some(Clean { first_ms, last_ms, edition }), Some(days)) = (clean, days) else {
            return if clean.is_some() { Verdict::Counts } else { Verdict::None };
        };
        let most_ms = u64::from(days) * DAY_MS;
        let soon_ms = last_ms.saturating_sub(first_ms).clamp(DAY_MS.min(most_ms), most_ms);
        match now_ms.saturating_sub(last_ms) {
            age_ms if age_ms >= most_ms => Verdict::Over(edition),
            age_ms if age_ms >= soon_ms => Verdict::Due(edition),
            _ => Verdict::Counts,
        }
    }

    /// Whether it was given by this database.
    fn is_by(self, now: Option<u64>) -> bool {
        match self {
            Verdict::Due(edition) | Verdict::Over(edition) => edition != 0 && now == Some(edition),
            Verdict::None | Verdict::Counts => false,
        }
    }
}

impl Scans {
    pub(super) fn new(budget: &Budget, options: ScanOptions) -> Scans {
        let turns = (budget.account("media").limit() / ONE_BYTES).clamp(1, 2) as usize;
        Scans {
            options: Live::new(options),
            turns: Arc::new(Semaphore::new(turns)),
            of_files: KeyedLock::default(),
            waiting: Arc::default(),
            standing: Standing::default(),
            unjudged: Mutex::default(),
            edition: Mutex::default(),
            counts: Default::default(),
            tell: OnceLock::new(),
            told: Mutex::default(),
        }
    }

    /// Whether what comes of asking a scanner still matters: another one may have been set meanwhile.
    fn is_set(&self, scanner: &Scanner) -> bool {
        self.options.get().scanner.as_ref() == Some(scanner)
    }

    fn place(&self) -> Option<Place> {
        let taken = self.waiting.fetch_add(1, Ordering::AcqRel);
        let place = Place(self.waiting.clone());
        (taken < WAITING_MAX).then_some(place)
    }

    /// Whether one more file is told of: none when it is not, else whether it is the last for a while.
    fn tells_of_one(&self, now: Duration) -> Option<bool> {
        let mut told = self.told.lock();
        if told.0 == 0 || now.saturating_sub(told.1) >= TOLD_TIME {
            *told = (0, now);
        }
        if told.0 >= TOLD_MAX {
            return None;
        }
        told.0 += 1;
        Some(told.0 == TOLD_MAX)
    }

    /// How long until a file that was not judged is sent again.
    fn unjudged_for(&self, hash: &str, now: Duration) -> Option<Duration> {
        let mut unjudged = self.unjudged.lock();
        unjudged.retain(|(_, until)| *until > now);
        unjudged.iter().find(|(of, _)| of == hash).map(|(_, until)| until.saturating_sub(now))
    }

    fn note_unjudged(&self, hash: &str, now: Duration) {
        let mut unjudged = self.unjudged.lock();
        if unjudged.len() >= UNJUDGED_MAX {
            unjudged.pop_front();
        }
        unjudged.push_back((hash.to_owned(), now + UNJUDGED_PAUSE));
    }
}

/// It is being scanned, or waits for that.
fn still_scanned() -> Error {
    let why = "This file is still being scanned for viruses: try again in a moment";
    Error::Unscanned { why, retry_after_ms: SOON_MS }
}

fn not_judged(left: Duration) -> Error {
    let why = "The server's virus scanner did not judge this file, so that it is withheld. It is asked again later";
    Error::Unscanned { why, retry_after_ms: left.as_millis() as u64 }
}

fn scanner_is_away(left: Duration) -> Error {
    let why = "This file waits for the server's virus scanner, which does not answer now: try again later";
    Error::Unscanned { why, retry_after_ms: (left.as_millis() as u64).max(SOON_MS) }
}

/// It is on its way to this server, where it is scanned.
pub(super) fn still_coming() -> Error {
    let why =
        "This file is still on its way from the other server, and is scanned for viruses first: try again in a moment";
    Error::Unscanned { why, retry_after_ms: SOON_MS }
}

impl Media {
    /// Whether files wait for a scanner.
    pub fn is_scanned(&self) -> bool {
        self.0.scans.options.get().scanner.is_some()
    }

    /// Whether files are given out that the scanner does not judge.
    pub(super) fn gives_out_unscanned(&self) -> bool {
        self.0.scans.options.get().gives_out_unscanned
    }

    /// From now on. A scanner that was away, and what it would not judge, are tried at once.
    pub fn set_scanning(&self, options: ScanOptions) {
        let scans = &self.0.scans;
        scans.options.set(options);
        scans.standing.answers();
        scans.unjudged.lock().clear();
        *scans.edition.lock() = None;
    }

    /// Who is told of a harmful file. Once, at the start.
    pub fn tell_of_harmful(&self, tell: impl Fn(Harmful) + Send + Sync + 'static) {
        let _ = self.0.scans.tell.set(Box::new(tell));
    }

    /// That the scanner does not answer, for the operator; none when it does, or there is none.
    pub fn scanner_away(&self) -> Option<ScannerAway> {
        self.0.scans.standing.away(self.0.parts.clock.instant())
    }

    pub fn scan_counts(&self) -> ScanCounts {
        let [clean, harmful, unjudged] = [0, 1, 2].map(|at| self.0.scans.counts[at].load(Ordering::Relaxed));
        ScanCounts { clean, harmful, unjudged }
    }

    /// Waits until a file was called clean, where there is a scanner, and no longer than `patience`. `NotFound` for one that it found
    /// harmful; `Unscanned` when it does not say, unless the owner has such files given out.
    pub(super) async fn cleared(
        &self,
        server: &str,
        media_id: &str,
        row: &media::Media,
        patience: Duration,
    ) -> Result<(), Error> {
        let options = self.0.scans.options.get();
        let Some(scanner) = options.scanner.clone() else { return Ok(()) };
        let verdict = self.verdict(&row.file).await?;
        let (patience, counts_till_then) = match verdict {
            Verdict::Counts => return Ok(()),
            Verdict::Due(_) => (patience.min(AGAIN_PATIENCE), true),
            Verdict::Over(_) | Verdict::None => (patience, false),
        };
        let scanned = self.0.parts.clock.timeout(patience, self.scanned(scanner, server, media_id, row)).await;
        match scanned.unwrap_or_else(|| Err(still_scanned())) {
            Err(Error::Unscanned { .. }) if counts_till_then || options.gives_out_unscanned => Ok(()),
            scanned => scanned,
        }
    }

    /// Has a file scanned, one at a time of those with the same bytes. Who waits for another's scan takes no place: one file that takes
    /// long, asked for again and again, would have all of them.
    async fn scanned(&self, scanner: Scanner, server: &str, media_id: &str, row: &media::Media) -> Result<(), Error> {
        let one = self.0.scans.of_files.take(&row.file).await;
        let (media, of, id, hash, bytes) =
            (self.clone(), server.to_owned(), media_id.to_owned(), row.file.clone(), row.bytes);
        // Whoever waits may go away; what was begun is seen through.
        let scan = unbroken(async move {
            let _one = one;
            media.scan(&scanner, &of, &id, &hash, bytes).await
        });
        scan.await
    }

    /// Has a file scanned that has just come, if there is a scanner. Nobody waits for it.
    pub(super) fn scan_soon(&self, server: &str, media_id: &str, hash: &str, bytes: u64) {
        let scans = &self.0.scans;
        let Some(scanner) = scans.options.get().scanner.clone() else { return };
        // It is being scanned.
        let Some(one) = scans.of_files.try_take(hash) else { return };
        let (media, of, id) = (self.clone(), server.to_owned(), media_id.to_owned());
        let scan = async move {
            if let Err(failed) = media.scan(&scanner, &of, &id, one.name(), bytes).await {
                tracing::debug!("a file that came was not called clean: {failed}");
            }
        };
        detached(scan);
    }

    /// What was said of a file so far. `NotFound` for one that is withheld.
    async fn verdict(&self, hash: &str) -> Result<Verdict, Error> {
        let (media, hash) = (self.clone(), hash.to_owned());
        let (days, now_ms) = (self.0.scans.options.get().verdict_days, self.0.parts.clock.now_ms());
        blocking(move || {
            let read = media.0.parts.store.read()?;
            let mark = media::mark(&read, &hash)?;
            match mark.quarantined_by {
                Some(_) => Err(Error::NotFound),
                None if mark.is_cleared => Ok(Verdict::Counts),
                None => Ok(Verdict::of(media::clean(&read, &hash)?, days, now_ms)),
            }
        })
        .await
    }

    /// The caller holds the file among [`Scans::of_files`].
    async fn scan(&self, scanner: &Scanner, server: &str, media_id: &str, hash: &str, bytes: u64) -> Result<(), Error> {
        let (scans, clock) = (&self.0.scans, &self.0.parts.clock);
        let _place = scans.place().ok_or_else(still_scanned)?;
        // Perhaps it was scanned meanwhile.
        let verdict = self.verdict(hash).await?;
        if verdict == Verdict::Counts {
            return Ok(());
        }
        if let Some(left) = scans.unjudged_for(hash, clock.instant()) {
            return Err(not_judged(left));
        }
        self.is_there(scanner).await?;
        let account = self.0.parts.budget.account("media");
        let Ok((_turn, _grant)) = turn_with_memory(clock, &scans.turns, &account, SCAN_BYTES).await else {
            return Err(still_scanned());
        };
        // One before it may have waited for the scanner in vain.
        if !scans.standing.is_well() {
            return Err(scanner_is_away(scans.standing.pause(clock.instant()).unwrap_or_default()));
        }
        let edition = self.edition(scanner).await;
        if verdict.is_by(edition) {
            self.note_clean(hash, edition).await;
            return Ok(());
        }
        let path = self.path(hash);
        let file = match blocking(move || File::open(path)).await {
            Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => return Err(Error::NotFound),
            file => Arc::new(file?),
        };
        let said = self.watched(scanner, file, bytes).await;
        let count = |at: usize| scans.counts[at].fetch_add(1, Ordering::Relaxed);
        match said {
            Ok(Scanned::Clean) => {
                count(0);
                self.answers(scanner);
                self.note_clean(hash, edition).await;
                Ok(())
            }
            Ok(Scanned::Infected(found)) => {
                count(1);
                self.answers(scanner);
                self.found(server, media_id, hash, found).await
            }
            Err(ScanFailed::Away(why)) => Err(self.does_not_answer(scanner, why)),
            Err(ScanFailed::Unjudged(what)) => {
                count(2);
                // Also when it is the scanner's fault: it may be this file that ends it.
                scans.note_unjudged(hash, clock.instant());
                // Paid by what paid for the scan.
                match self.0.parts.remote.probe_scanner(scanner).await {
                    Ok(()) => {
                        self.answers(scanner);
                        tracing::warn!("mxc://{server}/{media_id} was not judged: the scanner {what}");
                        Err(not_judged(UNJUDGED_PAUSE))
                    }
                    Err(why) => Err(self.does_not_answer(scanner, why)),
                }
            }
        }
    }

    /// Has a file judged, and sees after a scanner that is quiet meanwhile: whether it judges anything is known long before the scan
    /// is given up.
    async fn watched(&self, scanner: &Scanner, file: Arc<File>, bytes: u64) -> Result<Scanned, ScanFailed> {
        let (signs, clock) = (Signs::default(), &self.0.parts.clock);
        let mut scan = pin!(self.0.parts.remote.scan(scanner, file, bytes, &signs));
        let mut seen = 0;
        loop {
            if let Some(said) = clock.timeout(QUIET, scan.as_mut()).await {
                return said;
            }
            if std::mem::replace(&mut seen, signs.count()) != signs.count() {
                continue;
            }
            tokio::select! {
                said = scan.as_mut() => return said,
                () = self.see_after(scanner) => {}
            }
        }
    }

    /// Sees whether the scanner judges anything, beside a scan; another time when there is no memory for that now.
    async fn see_after(&self, scanner: &Scanner) {
        let account = self.0.parts.budget.account("media");
        let Some(Ok(_grant)) = self.0.parts.clock.timeout(Duration::ZERO, account.take(PROBE_BYTES)).await else {
            return;
        };
        match self.0.parts.remote.probe_scanner(scanner).await {
            Ok(()) => self.answers(scanner),
            Err(why) => drop(self.does_not_answer(scanner, why)),
        }
    }

    /// Whether the scanner can be asked. One that did not answer is tried by one of those who ask, after a while that grows.
    async fn is_there(&self, scanner: &Scanner) -> Result<(), Error> {
        let (standing, clock) = (&self.0.scans.standing, &self.0.parts.clock);
        if standing.is_well() {
            return Ok(());
        }
        if let Some(left) = standing.pause(clock.instant()) {
            return Err(scanner_is_away(left));
        }
        let grant = self.0.parts.budget.account("media").take(PROBE_BYTES).await;
        let _grant = grant.map_err(|_| still_scanned())?;
        match standing.may_ask(clock.instant()) {
            May::Ask => Ok(()),
            May::Wait(left) => Err(scanner_is_away(left)),
            May::Try(_one) => match self.0.parts.remote.probe_scanner(scanner).await {
                Ok(()) => {
                    self.answers(scanner);
                    Ok(())
                }
                Err(why) => Err(self.does_not_answer(scanner, why)),
            },
        }
    }

    fn answers(&self, scanner: &Scanner) {
        if self.0.scans.is_set(scanner) && self.0.scans.standing.answers() {
            tracing::info!("the scanner for files answers again");
        }
    }

    fn does_not_answer(&self, scanner: &Scanner, why: String) -> Error {
        let (scans, now) = (&self.0.scans, self.0.parts.clock.instant());
        if !scans.is_set(scanner) {
            return still_scanned();
        }
        scanner_is_away(scans.standing.does_not_answer(why, now))
    }

    /// What stands for the scanner's database, asked for now and then.
    async fn edition(&self, scanner: &Scanner) -> Option<u64> {
        let (scans, now) = (&self.0.scans, self.0.parts.clock.instant());
        let known = *scans.edition.lock();
        if let Some((edition, asked)) = known
            && now.saturating_sub(asked) < EDITION_TIME
        {
            return edition;
        }
        let edition = self.0.parts.remote.scanner_edition(scanner).await;
        if scans.is_set(scanner) {
            *scans.edition.lock() = Some((edition, now));
        }
        edition
    }

    async fn note_clean(&self, hash: &str, edition: Option<u64>) {
        let (hash, now_ms) = (hash.to_owned(), self.0.parts.clock.now_ms());
        let written = self
            .0
            .parts
            .store
            .write(move |w| Ok::<_, Error>(media::set_clean(w, &hash, now_ms, edition.unwrap_or(0))?));
        if let Err(failed) = written.await.map_err(WriteError::into_inner) {
            // It is clean all the same.
            tracing::warn!("a file was called clean, and that could not be noted: {failed}");
        }
    }

    /// A scanner found something. A file that an administrator calls safe is given out all the same.
    async fn found(&self, server: &str, media_id: &str, hash: &str, found: String) -> Result<(), Error> {
        let (of, now_ms) = (hash.to_owned(), self.0.parts.clock.now_ms());
        // Another server's file by its name too, or it would be fetched again when it is kept no more, and could not be given out
        // again by its name.
        let is_elsewhere = server != self.0.parts.server.as_str();
        let (from, id) = (server.to_owned(), media_id.to_owned());
        let written = self.0.parts.store.write(move |w| {
            let mark = media::mark(w, &of)?;
            if mark.is_safe || mark.is_cleared {
                media::set_clean(w, &of, now_ms, 0)?;
                return Ok(true);
            }
            media::forget_clean(w, &of)?;
            let by = Some(SCANNER.to_owned());
            media::set_mark(w, &of, &Mark { quarantined_by: by.clone(), ..mark })?;
            if is_elsewhere {
                let mark = media::mark_of_name(w, &from, &id)?;
                media::set_mark_of_name(w, &from, &id, &Mark { quarantined_by: by, file: Some(of), ..mark })?;
            }
            Ok::<_, Error>(false)
        });
        let (is_safe, _) = written.await.map_err(WriteError::into_inner)?;
        tracing::warn!("the scanner found {found} in mxc://{server}/{media_id}");
        if is_safe {
            return Ok(());
        }
        let scans = &self.0.scans;
        if let Some(tell) = scans.tell.get()
            && let Some(is_last) = scans.tells_of_one(self.0.parts.clock.instant())
        {
            tell(Harmful { server: server.to_owned(), media_id: media_id.to_owned(), found, is_last });
        }
        Err(Error::NotFound)
    }
}

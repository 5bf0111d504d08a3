//! Files that wait until a scanner has called them clean, where the owner has set one (`media.scanner`).
//!
//! Every file that is given out, whole, smaller, or to another server, is opened through `kept`, which asks here: one that was called
//! clean has a row; any other is sent to the scanner (`remote/scanner.rs`) and waits. What is found infected is quarantined as an
//! administrator would have it (`quarantine.rs`), whose name is [`SCANNER`], and the administrators are told. Uploads are scanned when
//! they come, others when somebody asks for them. So nothing has to be remembered that is still to be scanned: what was not
//! judged, since the scanner or this server was away, is scanned when it is asked for again.
//!
//! Bounds: [`Scans::turns`] at a time, each [`SCAN_BYTES`] of the account `media`; [`WAITING_MAX`] that wait; a row of some 80 bytes for a
//! clean file, which goes with it. What the scanner would not judge is not sent there again for [`UNJUDGED_PAUSE`].

use std::collections::VecDeque;
use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::{Error, Media};
use crate::base::{KeyedLock, blocking, detached, unbroken};
use crate::budget::Budget;
use crate::remote::scanner::{SCAN_BYTES, ScanFailed, Scanned, Scanner};
use crate::store::WriteError;
use crate::store::tables::media::{self, Mark};

/// Who withholds what the scanner found, among the administrators who do.
pub const SCANNER: &str = "scanner";
/// The account has room for one scan beside what else it pays for, or for two.
const ONE_BYTES: u64 = 128 << 10;
/// Files that are scanned or wait for their turn. Beyond that a file is scanned when somebody asks again.
const WAITING_MAX: usize = 32;
/// The longest wait of who asks for a file; the scan goes on.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// A scanner that was away is not asked for so long.
const AWAY_PAUSE: Duration = Duration::from_secs(10);
const UNJUDGED_PAUSE: Duration = Duration::from_secs(300);
/// So many of those are remembered.
const UNJUDGED_MAX: usize = 64;
/// So many files are told to the administrators within [`TOLD_TIME`]: whoever brings harmful ones on purpose would fill their rooms.
const TOLD_MAX: u32 = 20;
const TOLD_TIME: Duration = Duration::from_secs(3600);

/// What is told to the administrators of a file.
#[derive(Debug, Clone)]
pub struct Harmful {
    pub server: String,
    pub media_id: String,
    pub found: String,
    /// Nothing is told of what is found in the rest of the hour.
    pub is_last: bool,
}

type Tell = Box<dyn Fn(Harmful) + Send + Sync>;

/// What scans are bounded by.
pub(super) struct Scans {
    turns: Semaphore,
    /// By the hash of the file.
    of_files: KeyedLock,
    waiting: Arc<AtomicUsize>,
    /// Why the scanner says nothing, and until when it is not asked.
    away: Mutex<Option<(String, Duration)>>,
    unjudged: Mutex<VecDeque<(String, Duration)>>,
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

impl Scans {
    pub(super) fn new(budget: &Budget) -> Scans {
        let turns = (budget.account("media").limit() / ONE_BYTES).clamp(1, 2) as usize;
        Scans {
            turns: Semaphore::new(turns),
            of_files: KeyedLock::default(),
            waiting: Arc::default(),
            away: Mutex::default(),
            unjudged: Mutex::default(),
            tell: OnceLock::new(),
            told: Mutex::default(),
        }
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

    fn was_unjudged(&self, hash: &str, now: Duration) -> bool {
        let mut unjudged = self.unjudged.lock();
        unjudged.retain(|(_, until)| *until > now);
        unjudged.iter().any(|(of, _)| of == hash)
    }
}

impl Media {
    /// Whether files wait for a scanner.
    pub fn is_scanned(&self) -> bool {
        self.0.parts.options.scanner.is_some()
    }

    /// Who is told of a harmful file. Once, at the start.
    pub fn tell_of_harmful(&self, tell: impl Fn(Harmful) + Send + Sync + 'static) {
        let _ = self.0.scans.tell.set(Box::new(tell));
    }

    /// Why the scanner was not there, for the operator; none when it was, or there is none.
    pub fn scanner_away(&self) -> Option<String> {
        self.0.scans.away.lock().as_ref().map(|(why, _)| why.clone())
    }

    /// Waits until a file was called clean, where there is a scanner, and no longer than `patience`. `NotFound` for one that it found
    /// harmful; `NotYet` when it does not say, unless the owner has such files given out.
    pub(super) async fn cleared(
        &self,
        server: &str,
        media_id: &str,
        row: &media::Media,
        patience: Duration,
    ) -> Result<(), Error> {
        let Some(scanner) = self.0.parts.options.scanner.clone() else { return Ok(()) };
        if self.is_clean(&row.file).await? {
            return Ok(());
        }
        let scanned = self.0.parts.clock.timeout(patience, self.scanned(scanner, server, media_id, row)).await;
        match scanned.unwrap_or(Err(Error::NotYet)) {
            Err(Error::NotYet) if self.0.parts.options.give_out_unscanned => Ok(()),
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

    /// Has an upload scanned that has just come, if there is a scanner. Nobody waits for it.
    pub(super) fn scan_soon(&self, media_id: &str) {
        if !self.is_scanned() {
            return;
        }
        let (media, id) = (self.clone(), media_id.to_owned());
        let scan = async move {
            let here = media.0.parts.server.clone();
            if let Err(failed) = media.kept(&here, &id).await {
                tracing::debug!("an upload was not called clean: {failed}");
            }
        };
        detached(scan);
    }

    async fn is_clean(&self, hash: &str) -> Result<bool, Error> {
        let (media, hash) = (self.clone(), hash.to_owned());
        blocking(move || {
            let read = media.0.parts.store.read()?;
            let mark = media::mark(&read, &hash)?;
            match mark.quarantined_by {
                Some(_) => Err(Error::NotFound),
                None => Ok(media::is_clean(&read, &hash)?),
            }
        })
        .await
    }

    /// The caller holds the file among [`Scans::of_files`].
    async fn scan(&self, scanner: &Scanner, server: &str, media_id: &str, hash: &str, bytes: u64) -> Result<(), Error> {
        let (scans, clock) = (&self.0.scans, &self.0.parts.clock);
        let _place = scans.place().ok_or(Error::NotYet)?;
        // Perhaps it was scanned meanwhile.
        if self.is_clean(hash).await? {
            return Ok(());
        }
        let Ok(_turn) = scans.turns.acquire().await else { return Err(Error::NotYet) };
        let now = clock.instant();
        let is_away = scans.away.lock().as_ref().is_some_and(|(_, until)| *until > now);
        if is_away || scans.was_unjudged(hash, now) {
            return Err(Error::NotYet);
        }
        let _grant = self.0.parts.budget.account("media").take(SCAN_BYTES).await?;
        let path = self.path(hash);
        let file = Arc::new(blocking(move || File::open(path)).await.map_err(Error::from)?);
        let said = self.0.parts.remote.scan(scanner, file, bytes).await;
        if !matches!(said, Err(ScanFailed::Away(_))) && scans.away.lock().take().is_some() {
            tracing::info!("the scanner for files is there again");
        }
        match said {
            Ok(Scanned::Clean) => {
                let (hash, now_ms) = (hash.to_owned(), clock.now_ms());
                let written = self.0.parts.store.write(move |w| Ok::<_, Error>(media::set_clean(w, &hash, now_ms)?));
                if let Err(failed) = written.await.map_err(WriteError::into_inner) {
                    // It is clean all the same.
                    tracing::warn!("a file was called clean, and that could not be noted: {failed}");
                }
                Ok(())
            }
            Ok(Scanned::Infected(found)) => self.found(server, media_id, hash, found).await,
            Err(ScanFailed::Away(why)) => {
                let mut away = scans.away.lock();
                if away.is_none() {
                    tracing::warn!("{why}");
                }
                *away = Some((why, clock.instant() + AWAY_PAUSE));
                Err(Error::NotYet)
            }
            Err(ScanFailed::Unjudged(why)) => {
                tracing::warn!("mxc://{server}/{media_id} was not judged: the scanner {why}");
                let mut unjudged = scans.unjudged.lock();
                if unjudged.len() >= UNJUDGED_MAX {
                    unjudged.pop_front();
                }
                unjudged.push_back((hash.to_owned(), clock.instant() + UNJUDGED_PAUSE));
                Err(Error::NotYet)
            }
        }
    }

    /// A scanner found something. A file that an administrator calls safe is given out all the same.
    async fn found(&self, server: &str, media_id: &str, hash: &str, found: String) -> Result<(), Error> {
        let (of, now_ms) = (hash.to_owned(), self.0.parts.clock.now_ms());
        // Another server's file by its name too, or it would be fetched again when it is kept no more. A thumbnail that the other
        // server made is kept under a name of ours.
        let is_elsewhere = server != self.0.parts.server.as_str() && !media_id.contains('?');
        let (from, id) = (server.to_owned(), media_id.to_owned());
        let written = self.0.parts.store.write(move |w| {
            let mark = media::mark(w, &of)?;
            if mark.is_safe {
                media::set_clean(w, &of, now_ms)?;
                return Ok(true);
            }
            let withheld = |mark: Mark| Mark { quarantined_by: Some(SCANNER.to_owned()), ..mark };
            media::set_mark(w, &of, &withheld(mark))?;
            if is_elsewhere {
                let mark = media::mark_of_name(w, &from, &id)?;
                media::set_mark_of_name(w, &from, &id, &withheld(mark))?;
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

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::base::Clock;
    use crate::media::tests::media_with;
    use crate::media::{About, Options};
    use crate::store::UserNum;
    use crate::store::tables::hex;

    /// One file that a scanner took long over, asked for again and again, had all places, and no other was scanned.
    #[tokio::test]
    async fn who_waits_for_a_file_that_is_being_scanned_takes_no_place() {
        let (clock, budget) = (Clock::simulated(1_000_000), Budget::for_tests());
        let scanner = Some(Scanner::ClamdSocket("/nowhere/clamd.ctl".into()));
        let media = media_with(&clock, &budget, Options { upload_bytes_max: 1000, scanner, ..Options::default() });
        let held = media.0.scans.of_files.take(&hex(&Sha256::digest(b"abc"))).await;
        let mut upload = media.begin(UserNum(1), None).await.unwrap();
        upload.write(b"abc".as_slice().into()).await.unwrap();
        let id = upload.finish(About::default(), None).await.unwrap();
        for _ in 0..3 {
            let (asking, id) = (media.clone(), id.clone());
            let asked = tokio::spawn(async move { asking.open(&id, Duration::ZERO).await.map(drop) });
            while !asked.is_finished() {
                clock.pass(Duration::from_secs(1)).await;
            }
            assert!(matches!(asked.await.unwrap(), Err(Error::NotYet)));
        }
        assert_eq!(media.0.scans.waiting.load(Ordering::Acquire), 0);
        drop(held);
        let _ = std::fs::remove_dir_all(&media.0.parts.folder);
    }

    /// Who uploaded one harmful file after the other filled the rooms of the administrators.
    #[test]
    fn administrators_are_told_of_a_few_within_an_hour() {
        let scans = Scans::new(&Budget::for_tests());
        let at = Duration::from_secs;
        let told = (0..TOLD_MAX).map(|_| scans.tells_of_one(at(5))).collect::<Vec<_>>();
        assert_eq!((told[0], told.last().copied().flatten()), (Some(false), Some(true)));
        assert_eq!((scans.tells_of_one(at(3604)), scans.tells_of_one(at(3605))), (None, Some(false)));
    }

    /// Whoever had less patience than the scanner took got nothing, though the owner has files given out that were not judged.
    #[tokio::test]
    async fn what_is_given_out_unscanned_does_not_wait_longer_than_who_asks() {
        let (clock, budget) = (Clock::simulated(1_000_000), Budget::for_tests());
        let scanner = Some(Scanner::ClamdSocket("/nowhere/clamd.ctl".into()));
        let options = Options { upload_bytes_max: 1000, scanner, give_out_unscanned: true, ..Options::default() };
        let media = media_with(&clock, &budget, options);
        // The scan that is under way does not end.
        let held = media.0.scans.of_files.take(&hex(&Sha256::digest(b"abc"))).await;
        let mut upload = media.begin(UserNum(1), None).await.unwrap();
        upload.write(b"abc".as_slice().into()).await.unwrap();
        let id = upload.finish(About::default(), None).await.unwrap();
        let asking = media.clone();
        let asked =
            tokio::spawn(async move { asking.open(&id, Duration::from_secs(20)).await.map(|opened| opened.bytes) });
        while !asked.is_finished() {
            clock.pass(Duration::from_secs(1)).await;
        }
        assert!(matches!(asked.await.unwrap(), Ok(3)));
        drop(held);
        let _ = std::fs::remove_dir_all(&media.0.parts.folder);
    }
}

//! Files: content-addressed on disk beside the database, streamed in and out, never held.
//!
//! A file is named by the SHA-256 of its bytes, so identical uploads share one file. It is whole and in its place
//! before the database knows of it: a power cut leaves a file that no row refers to, never a row without its file.
//! Files of other servers are passed through, not stored.
//!
//! Reading order: this file (the stored files), `upload.rs` (in), `quota.rs` (how much), `remote.rs` (from other
//! servers).

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};
use tokio::sync::Notify;

use crate::base::{Clock, Owner, Random, Shares, blocking};
use crate::budget::{Budget, Card, Grant, Refused};
use crate::remote::{Failed, Remote};
use crate::store::tables::media;
use crate::store::{self, Store, UserNum};

mod remote;
mod quota;
mod upload;

use quota::Quotas;

pub use remote::{Fetched, Scaled};
pub use upload::{About, Upload};

/// The memory of one transfer: a piece on its way, and a little.
const TRANSFER_BYTES: u64 = 40 << 10;
/// Media ids given out before their files, each about 150 bytes; beyond that, the user with most ids loses the oldest.
const PROMISED_MAX: usize = 256;
const PROMISED_MS: u64 = 60 * 60 * 1000;
const MEDIA_ID_CHARS: usize = 24;
/// One part of this many of the card is the share of an account, unless the operator sets another.
const CARD_PART: u64 = 10;

/// The parts that the media are built from.
pub struct Parts {
    pub store: Store,
    pub clock: Clock,
    pub random: Random,
    pub budget: Budget,
    pub remote: Remote,
    pub server: OwnedServerName,
    /// Where the files lie.
    pub folder: PathBuf,
    /// Largest upload in bytes.
    pub upload_bytes_max: u64,
    /// The most that one account may keep here; none: a share of the card the files lie on.
    pub account_bytes_max: Option<u64>,
}

/// The files. Cheap to clone.
#[derive(Clone)]
pub struct Media(Arc<Inner>);

struct Inner {
    parts: Parts,
    promised: Mutex<Shares<String, Promised>>,
    quotas: Quotas,
    /// A promised file has arrived.
    arrived: Notify,
}

/// A media id without its file yet.
struct Promised {
    to: UserNum,
    expires_ms: u64,
}

/// A local file, ready to be read.
pub struct Opened {
    pub file: File,
    pub bytes: u64,
    pub content_type: Option<String>,
    pub name: Option<String>,
    /// The SHA-256 in hex, which names these bytes and no others.
    pub hash: String,
    /// Pays for the transfer.
    pub grant: Grant,
}

impl Media {
    /// Removes the remains of interrupted uploads.
    pub fn new(parts: Parts) -> Media {
        let _ = std::fs::remove_dir_all(parts.folder.join(upload::INCOMING));
        let promised = Mutex::new(Shares::new(PROMISED_MAX, 0));
        // A family of five can keep a tenth each, and half of the card is left.
        let share = || Card::at(&parts.folder).map_or(u64::MAX, |card| card.total_bytes / CARD_PART);
        let quotas = Quotas::new(parts.account_bytes_max.unwrap_or_else(share));
        Media(Arc::new(Inner { parts, promised, quotas, arrived: Notify::new() }))
    }

    pub fn is_here(&self, server: &ServerName) -> bool {
        *server == *self.0.parts.server
    }

    pub fn upload_bytes_max(&self) -> u64 {
        self.0.parts.upload_bytes_max
    }

    /// Opens a file of this server. Waits for a promised one.
    pub async fn open(&self, media_id: &str, patience: Duration) -> Result<Opened, Error> {
        let clock = self.0.parts.clock.clone();
        let deadline = clock.instant() + patience;
        loop {
            let arrived = self.0.arrived.notified();
            let (media, id) = (self.clone(), media_id.to_owned());
            match blocking(move || media.open_blocking(&id)).await? {
                Some((file, row)) => {
                    // Taken only now: a request that waits for a promised file takes no memory from readers.
                    let grant = self.0.parts.budget.account("media").take(TRANSFER_BYTES).await?;
                    let media::Media { file: hash, bytes, content_type, name, .. } = row;
                    return Ok(Opened { file, bytes, content_type, name, hash, grant });
                }
                None if !self.is_promised(media_id) => return Err(Error::NotFound),
                None => {}
            }
            let left = deadline.saturating_sub(clock.instant());
            if left.is_zero() || clock.timeout(left, arrived).await.is_none() {
                return Err(Error::NotYet);
            }
        }
    }

    fn open_blocking(&self, media_id: &str) -> Result<Option<(File, media::Media)>, Error> {
        let Some(row) = media::get(&self.0.parts.store.read()?, self.0.parts.server.as_str(), media_id)? else {
            return Ok(None);
        };
        match File::open(self.path(&row.file)) {
            Ok(file) => Ok(Some((file, row))),
            Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(failed) => Err(failed.into()),
        }
    }

    /// Gives out a media id whose file comes later. Answers the id and the deadline for the file, in Unix milliseconds.
    pub fn promise(&self, to: UserNum) -> (String, u64) {
        let now_ms = self.0.parts.clock.now_ms();
        let expires_ms = now_ms + PROMISED_MS;
        let media_id = self.0.parts.random.token(MEDIA_ID_CHARS);
        let mut all = self.promised();
        all.retain(|_, promised| promised.expires_ms > now_ms);
        all.put(Owner::Known(to), media_id.clone(), Promised { to, expires_ms });
        (media_id, expires_ms)
    }

    /// Whether a media id was given out to this user; `Taken` when its file is there already.
    pub async fn check_promise(&self, media_id: &str, user: UserNum) -> Result<(), Error> {
        let now_ms = self.0.parts.clock.now_ms();
        let promised = self.promised().get(media_id).map(|promised| (promised.to, promised.expires_ms));
        match promised {
            Some((to, expires_ms)) if expires_ms > now_ms && to == user => return Ok(()),
            Some((to, _)) if to != user => {
                return Err(Error::Forbidden("This media ID was created by another user".to_owned()));
            }
            _ => {}
        }
        let (media, id) = (self.clone(), media_id.to_owned());
        let known = blocking(move || media.open_blocking(&id)).await?.is_some();
        Err(if known { Error::Taken } else { Error::NotFound })
    }

    fn is_promised(&self, media_id: &str) -> bool {
        let now_ms = self.0.parts.clock.now_ms();
        self.promised().peek(media_id).is_some_and(|promised| promised.expires_ms > now_ms)
    }

    fn promised(&self) -> parking_lot::MutexGuard<'_, Shares<String, Promised>> {
        self.0.promised.lock()
    }

    /// The path of a file: `ab/abcdef…`, so that no folder gets long.
    fn path(&self, hash: &str) -> PathBuf {
        self.0.parts.folder.join(hash.get(..2).unwrap_or("00")).join(hash)
    }
}

/// Why a file could not be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the file does not exist")]
    NotFound,
    /// The media id was given out, its file is still to come.
    #[error("the file has not been uploaded yet")]
    NotYet,
    #[error("{0}")]
    Forbidden(String),
    /// The media id has its file already.
    #[error("a file was uploaded under this media ID already")]
    Taken,
    #[error("a file may have {bytes_max} bytes at most")]
    TooLarge { bytes_max: u64 },
    /// The disk, or the share of one user, is used up; a sentence for that user.
    #[error("{0}")]
    Full(String),
    #[error("the other server {0}")]
    Remote(#[from] Failed),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("a media file cannot be read or written: {0}")]
    Io(std::io::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl From<std::io::Error> for Error {
    fn from(failed: std::io::Error) -> Error {
        match failed.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Error::Full("The server's disk is full".to_owned())
            }
            _ => Error::Io(failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::sign::Key;
    use crate::remote::RemoteOptions;

    fn media(clock: &Clock, budget: &Budget) -> Media {
        let (clock, random, budget) = (clock.clone(), Random::seeded(1), budget.clone());
        let (store, server) = (Store::in_memory(), OwnedServerName::try_from("here.test").unwrap());
        let options = RemoteOptions::new(server.clone(), Arc::new(Key::from_seed("1", [1; 32])));
        let remote = Remote::new(options, clock.clone(), random.clone(), &budget, store.clone()).unwrap();
        let folder = std::env::temp_dir().join(format!("snug-media-{}", std::process::id()));
        let (upload_bytes_max, account_bytes_max) = (1000, None);
        Media::new(Parts { store, clock, random, budget, remote, server, folder, upload_bytes_max, account_bytes_max })
    }

    /// The 256 ids were shared by all users: one user who asked for that many ended the uploads of all others.
    #[tokio::test]
    async fn who_asks_for_many_ids_loses_their_own() {
        let clock = Clock::simulated(1_000_000);
        let media = media(&clock, &Budget::for_tests());
        let (friends, first) = (media.promise(UserNum(1)).0, media.promise(UserNum(2)).0);
        for _ in 0..1000 {
            media.promise(UserNum(2));
        }
        assert!(media.check_promise(&friends, UserNum(1)).await.is_ok());
        assert!(media.check_promise(&first, UserNum(2)).await.is_err());
        assert!(media.promised().len() <= PROMISED_MAX);
        clock.advance(Duration::from_millis(PROMISED_MS));
        media.promise(UserNum(2));
        assert_eq!(media.promised().len(), 1, "what is over goes first");
    }

    /// Six requests that waited for one missing file held all the memory for media on the smallest board.
    #[tokio::test]
    async fn waiting_for_what_was_promised_takes_nothing_from_those_who_read() {
        let (clock, budget) = (Clock::simulated(1_000_000), Budget::for_tests());
        let (account, media) = (budget.account("media"), media(&clock, &budget));
        let (id, _) = media.promise(UserNum(1));
        let waiting = tokio::spawn(async move { media.open(&id, Duration::from_secs(60)).await.map(drop) });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!((waiting.is_finished(), account.used()), (false, 0));
        clock.advance(Duration::from_secs(61));
        assert!(matches!(waiting.await.unwrap(), Err(Error::NotYet)));
    }
}

//! Files: content-addressed on disk beside the database, streamed in and out, never held.
//!
//! A file is named by the SHA-256 of its bytes, so identical uploads share one file. Files of other servers are kept the
//! same way, as long as there is room for them and somebody asks for them.
//!
//! Reading order: this file (the stored files), `place.rs` (how a file gets its place and leaves it), `upload.rs` (in),
//! `promise.rs` (media ids before their files), `quota.rs` and `limits.rs` (how much), `remote.rs` (the transfer from
//! another server), `quarantine.rs` (files that administrators look through and withhold), `scan/` (files that wait for a scanner), `arriving.rs` (one transfer for all who ask), `elsewhere.rs` (their memory), `tidy.rs` (what goes again), `thumbnail.rs` and `picture/`
//! (made smaller), `preview/` (of links).

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ruma::{OwnedServerName, ServerName};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::base::{Clock, KeyedLock, Random, blocking};
use crate::budget::{Budget, Card, Grant, Refused};
use crate::remote::{Failed, Remote};
use crate::store::tables::{hex, media};
use crate::store::{self, Store};

mod arriving;
mod elsewhere;
mod limits;
mod picture;
mod place;
mod preview;
mod promise;
mod quarantine;
mod remote;
mod quota;
mod scan;
mod thumbnail;
mod tidy;
mod upload;

use arriving::Fetches;
use elsewhere::{Elsewhere, Held};
use limits::Limits;
use preview::Previews;
use promise::Promised;
use quota::Quotas;
use scan::Scans;
use thumbnail::Thumbnails;
use tidy::Touched;

pub use crate::remote::scanner::Scanner;
pub use arriving::{Coming, Found};
pub use elsewhere::Share;
pub use limits::Options;
pub use preview::{Looked, NoPreview, PreviewOptions};
pub use quarantine::{ListedFile, MediaOrder};
pub use remote::{Fetched, Scaled};
pub use scan::{Harmful, SCANNER, ScanCounts, ScanOptions, ScannerAway};
pub use tidy::Usage;
pub use upload::{About, Upload};

/// The memory of one file on its way out: a piece of 16 KiB, and a little. Seven readers of a file and the transfer that
/// brings it (40 KiB) fit what the smallest account, of 256 KiB, has for those (`elsewhere.rs`).
const TRANSFER_BYTES: u64 = 20 << 10;
const MEDIA_ID_CHARS: usize = 24;
/// Who has no patience waits so long for a scanner: for one that is in the house and idle.
const SCAN_LEAST: Duration = Duration::from_millis(500);

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
    pub options: Options,
}

/// The files. Cheap to clone.
#[derive(Clone)]
pub struct Media(Arc<Inner>);

struct Inner {
    parts: Parts,
    limits: Limits,
    promised: Promised,
    quotas: Quotas,
    thumbnails: Thumbnails,
    previews: Previews,
    fetches: Fetches,
    elsewhere: Elsewhere,
    scans: Scans,
    touched: Touched,
    /// Files that are about to get their place or to be removed, by hash.
    places: KeyedLock,
    sweeping: tokio::sync::Mutex<()>,
    /// A promised file has arrived.
    arrived: Notify,
    /// There may be something to remove.
    untidy: Notify,
}

/// Who reads a file.
#[derive(Debug, Clone, Copy)]
enum Reader {
    Known,
    /// Nobody knows who it is.
    Outside,
}

/// A whole file, ready to be read.
pub struct Opened {
    pub file: File,
    pub bytes: u64,
    pub content_type: Option<String>,
    pub name: Option<String>,
    /// The SHA-256 in hex, which names these bytes and no others.
    pub hash: String,
    /// What tells whether a reader has the same file already.
    pub etag: String,
    /// Whether it is given out to those alone who show an access token.
    pub authenticated: bool,
    /// Pays for the transfer.
    pub grant: Grant,
    /// Held as long as somebody from outside reads it.
    pub share: Option<Share>,
}

impl Media {
    /// Removes the remains of interrupted uploads and transfers.
    pub fn new(parts: Parts) -> Media {
        let _ = std::fs::remove_dir_all(parts.folder.join(place::INCOMING));
        let limits = Limits::new(&parts.options, &parts.folder);
        let promised = Promised::load(&parts.store);
        Media(Arc::new(Inner {
            quotas: Quotas::new(limits.account_bytes_max),
            thumbnails: Thumbnails::new(&parts.budget, &parts.folder),
            previews: Previews::new(),
            elsewhere: Elsewhere::new(&parts.budget.account("media")),
            scans: Scans::new(&parts.budget, parts.options.scan.clone()),
            parts,
            limits,
            promised,
            fetches: Fetches::default(),
            touched: Touched::default(),
            places: KeyedLock::default(),
            sweeping: tokio::sync::Mutex::default(),
            arrived: Notify::new(),
            untidy: Notify::new(),
        }))
    }

    pub fn is_here(&self, server: &ServerName) -> bool {
        *server == *self.0.parts.server
    }

    /// Whether files are given out to those alone who show an access token, from now on.
    pub fn is_authenticated(&self) -> bool {
        self.0.parts.options.authenticated
    }

    pub fn upload_bytes_max(&self) -> u64 {
        self.0.parts.options.upload_bytes_max
    }

    /// What the files of one account may take, in bytes, that has no quota of its own.
    pub fn account_bytes_max(&self) -> u64 {
        self.0.limits.account_bytes_max
    }

    /// Opens a file of this server. Waits for a promised one.
    pub async fn open(&self, media_id: &str, patience: Duration) -> Result<Opened, Error> {
        self.open_for(Reader::Known, media_id, patience).await
    }

    /// The same for another server, or somebody without an access token.
    pub async fn open_outside(&self, media_id: &str, patience: Duration) -> Result<Opened, Error> {
        self.open_for(Reader::Outside, media_id, patience).await
    }

    async fn open_for(&self, reader: Reader, media_id: &str, patience: Duration) -> Result<Opened, Error> {
        let clock = self.0.parts.clock.clone();
        let deadline = clock.instant() + patience;
        let here = self.0.parts.server.clone();
        loop {
            let arrived = self.0.arrived.notified();
            let left = deadline.saturating_sub(clock.instant());
            // It may wait for a scanner; with no patience at all it is looked at once.
            if let Some(opened) = self.kept_within(reader, &here, media_id, left.max(SCAN_LEAST)).await? {
                return Ok(opened);
            }
            if !self.is_promised(media_id) {
                return Err(Error::NotFound);
            }
            let left = deadline.saturating_sub(clock.instant());
            if left.is_zero() || clock.timeout(left, arrived).await.is_none() {
                return Err(Error::NotYet);
            }
        }
    }

    /// Opens a file of any server that is on this disk, all of it. Waits until it was called clean, where there is a scanner.
    pub async fn kept(&self, server: &ServerName, media_id: &str) -> Result<Option<Opened>, Error> {
        self.kept_within(Reader::Known, server, media_id, scan::PATIENCE).await
    }

    /// The same for somebody without an access token.
    pub async fn kept_outside(&self, server: &ServerName, media_id: &str) -> Result<Option<Opened>, Error> {
        self.kept_within(Reader::Outside, server, media_id, scan::PATIENCE).await
    }

    /// The same, and waits no longer than so for a scanner.
    async fn kept_within(
        &self,
        reader: Reader,
        server: &ServerName,
        media_id: &str,
        patience: Duration,
    ) -> Result<Option<Opened>, Error> {
        let (media, of, id) = (self.clone(), server.to_owned(), media_id.to_owned());
        let Some((file, row)) = blocking(move || media.open_blocking(&of, &id)).await? else { return Ok(None) };
        self.cleared(server.as_str(), media_id, &row, patience).await?;
        self.touch(server, media_id, &row);
        // Taken only now: a request that waits for a promised file takes no memory from readers.
        let (grant, share) = match reader {
            Reader::Known => (self.0.parts.budget.account("media").take(TRANSFER_BYTES).await?, None),
            Reader::Outside => {
                let Held { grant, share } = self.take_outside(TRANSFER_BYTES).await?;
                (grant, Some(share))
            }
        };
        let media::Media { file: hash, bytes, content_type, name, authenticated, .. } = row;
        let etag = self.etag(server, media_id, &hash);
        Ok(Some(Opened { file, bytes, content_type, name, hash, etag, authenticated, grant, share }))
    }

    /// A whole file of any server, for what is made from it. Waits for a promised one, and until all of another server's
    /// has arrived; `TooLarge` for one that is not kept.
    pub async fn whole(&self, server: &ServerName, media_id: &str, patience: Duration) -> Result<Opened, Error> {
        if self.is_here(server) {
            return self.open(media_id, patience).await;
        }
        match self.find(server, media_id).await? {
            Found::Kept(opened) => Ok(opened),
            Found::Coming(coming) => {
                coming.all().await?;
                drop(coming);
                self.kept(server, media_id).await?.ok_or(Error::NotFound)
            }
            Found::Passing(_) => Err(Error::TooLarge { bytes_max: self.0.limits.remote_file_bytes_max() }),
        }
    }

    fn open_blocking(&self, server: &ServerName, media_id: &str) -> Result<Option<(File, media::Media)>, Error> {
        let read = self.0.parts.store.read()?;
        let Some(row) = media::get(&read, server.as_str(), media_id)? else {
            return Ok(None);
        };
        if media::mark(&read, &row.file)?.quarantined_by.is_some() {
            return Err(Error::NotFound);
        }
        match File::open(self.path(&row.file)) {
            Ok(file) => Ok(Some((file, row))),
            Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(failed) => Err(failed.into()),
        }
    }

    /// The hash of the bytes for a file of this server. Another server's is named by what it is asked for under, which
    /// means the same bytes for ever, and is known before they have come.
    fn etag(&self, server: &ServerName, media_id: &str, hash: &str) -> String {
        match self.is_here(server) {
            true => format!("\"{hash}\""),
            false => {
                let name = hex(&Sha256::digest(format!("{server}/{media_id}")));
                format!("\"{}\"", &name[..32])
            }
        }
    }

    /// Bytes that files may still take of the card.
    fn spare_bytes(&self) -> Result<u64, Error> {
        let card = Card::at(&self.0.parts.folder)?;
        let left_free = card.household_bytes().max(self.0.parts.options.free_bytes_min);
        Ok(card.free_bytes.saturating_sub(left_free))
    }

    /// The path of a file: `ab/abcdef…`, so that no folder gets long.
    fn path(&self, hash: &str) -> PathBuf {
        self.0.parts.folder.join(hash.get(..2).unwrap_or("00")).join(hash)
    }
}

impl Opened {
    /// Whether it is something to look at, by what its uploader says.
    pub fn is_seen(&self) -> bool {
        let kind = self.content_type.as_deref().unwrap_or_default();
        kind.starts_with("image/") || kind.starts_with("video/")
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
    /// The file is withheld until it is here and was scanned; a sentence for a user.
    #[error("{why}")]
    Unscanned { why: &'static str, retry_after_ms: u64 },
    #[error("{0}")]
    Forbidden(String),
    /// The media id has its file already.
    #[error("a file was uploaded under this media ID already")]
    Taken,
    #[error("a file may have {bytes_max} bytes at most")]
    TooLarge { bytes_max: u64 },
    /// The share of one user is used up; a sentence for that user.
    #[error("{0}")]
    Full(String),
    /// The disk, or what all users may have of it, is used up; a sentence for a user.
    #[error("{0}")]
    NoRoom(String),
    /// The user has as many media ids without files as one may have.
    #[error("too many media IDs were asked for and have no file yet")]
    TooMany { retry_after_ms: u64 },
    /// A transfer that was begun again brought other bytes than before.
    #[error("the other server sent another file than a moment ago")]
    Changed,
    #[error("the other server {0}")]
    Remote(#[from] Failed),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("a media file cannot be read or written: {0}")]
    Io(std::io::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// The same for another who waits for the same file.
    fn copy(&self) -> Error {
        match self {
            Error::NotFound => Error::NotFound,
            Error::NotYet => Error::NotYet,
            Error::Unscanned { why, retry_after_ms } => Error::Unscanned { why, retry_after_ms: *retry_after_ms },
            Error::TooLarge { bytes_max } => Error::TooLarge { bytes_max: *bytes_max },
            Error::Full(why) => Error::Full(why.clone()),
            Error::NoRoom(why) => Error::NoRoom(why.clone()),
            Error::Changed => Error::Changed,
            Error::Remote(failed) => Error::Remote(failed.clone()),
            Error::Refused(refused) => Error::Refused(refused.clone()),
            other => Error::Io(std::io::Error::other(other.to_string())),
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(failed: std::io::Error) -> Error {
        match failed.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Error::NoRoom("The server's disk is full".to_owned())
            }
            _ => Error::Io(failed),
        }
    }
}

#[cfg(test)]
mod tests;

//! Files: content-addressed on disk beside the database, streamed in and out, never held.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use ruma::OwnedServerName;

use crate::base::{Clock, Random};
use crate::budget::{Budget, Refused};
use crate::remote::{Failed, Remote};
use crate::store::{self, Store};

/// What the media are built from.
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
}

/// The files. Cheap to clone.
#[derive(Clone)]
pub struct Media(Arc<Inner>);

struct Inner {
    parts: Parts,
}

impl Media {
    pub fn new(parts: Parts) -> Media {
        Media(Arc::new(Inner { parts }))
    }
}

/// Why a file could not be had or kept.
#[derive(Debug)]
pub enum Error {
    NotFound,
    /// The media id was given out, its file is still to come.
    NotYet,
    Forbidden(String),
    /// The media id has its file already.
    Taken,
    TooLarge {
        bytes_max: u64,
    },
    /// The disk, or the share of one user, is used up; a sentence for that user.
    Full(String),
    Remote(Failed),
    Refused(Refused),
    Io(std::io::Error),
    Store(store::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NotFound => f.write_str("there is no such file"),
            Error::NotYet => f.write_str("this file has not been uploaded yet"),
            Error::Forbidden(why) => f.write_str(why),
            Error::Taken => f.write_str("this media id has its file already"),
            Error::TooLarge { bytes_max } => write!(f, "a file may have {bytes_max} bytes at most"),
            Error::Full(why) => f.write_str(why),
            Error::Remote(failed) => write!(f, "the other server {failed}"),
            Error::Refused(refused) => refused.fmt(f),
            Error::Io(failed) => write!(f, "a file of the media: {failed}"),
            Error::Store(failed) => failed.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<store::Error> for Error {
    fn from(failed: store::Error) -> Error {
        Error::Store(failed)
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Error {
        Error::Refused(refused)
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Error {
        Error::Remote(failed)
    }
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

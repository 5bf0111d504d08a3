//! Files: content-addressed on disk beside the database, streamed in and out, never held.

use std::path::PathBuf;
use std::sync::Arc;

use ruma::OwnedServerName;

use crate::base::{Clock, Random};
use crate::budget::Budget;
use crate::remote::Remote;
use crate::store::Store;

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

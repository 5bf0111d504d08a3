//! How much may be kept, and for how long.

use std::path::Path;

use super::{Error, ScanOptions};
use crate::budget::{Card, human};

/// One part of this many of the card is the share of an account, unless the operator sets another.
const CARD_PART: u64 = 10;
/// The same for other servers' files, within a bound: what is not kept can be fetched again.
const REMOTE_CARD_PART: u64 = 10;
const REMOTE_BYTES_MAX: u64 = 4 << 30;
/// One file of another server takes at most this part of what all of them may.
const REMOTE_FILE_PART: u64 = 4;

/// The operator's choices.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Largest upload in bytes.
    pub upload_bytes_max: u64,
    /// The most that one account may keep here; none: a share of the card the files lie on.
    pub account_bytes_max: Option<u64>,
    /// The most that all uploads may take; none: as long as the card has room.
    pub local_bytes_max: Option<u64>,
    /// The most that files of other servers may take; none: a share of the card. With 0 they are not kept.
    pub remote_bytes_max: Option<u64>,
    /// Bytes of the card that files leave free, where that is more than the household's share.
    pub free_bytes_min: u64,
    /// An upload that nobody asked for in as many days is removed.
    pub local_unused_days: Option<u32>,
    /// The same for a file of another server.
    pub remote_unused_days: Option<u32>,
    /// Whether a new upload is given out to those alone who show an access token.
    pub authenticated: bool,
    /// As it is at the start.
    pub scan: ScanOptions,
}

/// The bounds in bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) account_bytes_max: u64,
    pub(super) local_bytes_max: u64,
    pub(super) remote_bytes_max: u64,
}

impl Limits {
    pub(super) fn new(options: &Options, folder: &Path) -> Limits {
        let total = Card::at(folder).map_or(u64::MAX, |card| card.total_bytes);
        Limits {
            // A family of five can keep a tenth each, and half of the card is left.
            account_bytes_max: options.account_bytes_max.unwrap_or(total / CARD_PART),
            local_bytes_max: options.local_bytes_max.unwrap_or(u64::MAX),
            remote_bytes_max: options.remote_bytes_max.unwrap_or((total / REMOTE_CARD_PART).min(REMOTE_BYTES_MAX)),
        }
    }

    /// The largest file of another server that is kept. Larger ones are passed through.
    pub(super) fn remote_file_bytes_max(&self) -> u64 {
        self.remote_bytes_max / REMOTE_FILE_PART
    }

    /// Whether all uploads together have room for some bytes more.
    pub(super) fn check_local(&self, used: u64, more: u64) -> Result<(), Error> {
        match used.saturating_add(more) > self.local_bytes_max {
            true => Err(Error::NoRoom(format!(
                "The files of all accounts would take more than the {} they may have on this server. Its administrator can \
                 allow more (media.local_bytes_max) or remove some (snug media)",
                human(self.local_bytes_max)
            ))),
            false => Ok(()),
        }
    }
}

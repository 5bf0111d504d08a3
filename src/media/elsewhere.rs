//! The memory for transfers from other servers: all that the account has but for what files of this disk need.
//!
//! Another server may send as slowly as is allowed, for hours, and a few such transfers are all that the account of the
//! smallest board has room for. Files that are here and uploads must not wait for it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::{Error, Media};
use crate::budget::{Account, Grant, Refused};

/// What is left for those: an upload (40 KiB) and a reader (20 KiB) at once.
pub(super) const LOCAL_BYTES_MIN: u64 = 60 << 10;
/// The least that transfers have: one, with its first reader.
const ELSEWHERE_BYTES_MIN: u64 = 60 << 10;

/// One transfer for so much of the account may go on for long although nobody waits for it: one where the account is smallest.
const ASIDE_PART: u64 = 256 << 10;
const ASIDE_MAX: u64 = 4;

/// Bounds the transfers from other servers, with those who read them.
pub(super) struct Elsewhere {
    /// In KiB.
    shares: Arc<Semaphore>,
    /// Of those that go on aside.
    aside: Semaphore,
}

/// What a transfer or its reader holds.
pub(super) struct Held {
    pub(super) grant: Grant,
    pub(super) share: Share,
}

/// A part of what all transfers may have.
pub(super) struct Share(OwnedSemaphorePermit);

impl Elsewhere {
    pub(super) fn new(account: &Account) -> Elsewhere {
        let bytes = account.limit().saturating_sub(LOCAL_BYTES_MIN).max(ELSEWHERE_BYTES_MIN);
        let aside = (account.limit() / ASIDE_PART).clamp(1, ASIDE_MAX);
        let (shares, aside) = (Arc::new(Semaphore::new((bytes >> 10) as usize)), Semaphore::new(aside as usize));
        Elsewhere { shares, aside }
    }

    /// A place among the transfers that go on although nobody waits for them; none when all are taken.
    pub(super) fn aside(&self) -> Option<SemaphorePermit<'_>> {
        self.aside.try_acquire().ok()
    }

    #[cfg(test)]
    pub(super) fn left(&self) -> u64 {
        (self.shares.available_permits() as u64) << 10
    }
}

impl Media {
    /// Memory for a transfer from another server, or for one who reads it as it comes. Waits as long as the account lets
    /// wait.
    pub(super) async fn take_elsewhere(&self, bytes: u64) -> Result<Held, Error> {
        let (account, shares) = (self.0.parts.budget.account("media"), self.0.elsewhere.shares.clone());
        let wait_ms = account.row().wait_ms;
        let share = shares.acquire_many_owned(kib(bytes));
        let share = self.0.parts.clock.timeout(Duration::from_millis(wait_ms), share).await;
        let Some(Ok(share)) = share else {
            let (account, limit) = (account.name().to_owned(), account.limit());
            return Err(Refused { account, asked: bytes, limit, retry_after_ms: wait_ms, too_large: false }.into());
        };
        Ok(Held { grant: account.take(bytes).await?, share: Share(share) })
    }
}

impl Held {
    /// Takes a part out, for another holder.
    pub(super) fn split(&mut self, bytes: u64) -> Option<Held> {
        let share = Share(self.share.0.split(kib(bytes) as usize)?);
        Some(Held { grant: self.grant.split(bytes), share })
    }
}

fn kib(bytes: u64) -> u32 {
    bytes.div_ceil(1 << 10) as u32
}

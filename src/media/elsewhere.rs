//! The memory for transfers from other servers: all that the account has but for what files of this disk need.
//!
//! Another server may send as slowly as is allowed, for hours, and a few such transfers are all that the account of the
//! smallest board has room for. Files that are here and uploads must not wait for it. Nor must they wait for another server that reads a
//! file of this one as slowly, or for whoever needs no access token; and no server for another that is asked and says nothing, or as
//! little as is allowed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ruma::OwnedServerName;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use super::{Error, Media};
use crate::budget::{Account, Grant, Refused};

/// What is left for those: an upload that writes (40 KiB) and a reader (20 KiB) at once.
pub(super) const LOCAL_BYTES_MIN: u64 = 60 << 10;
/// The least that transfers have: one, with its first reader.
const ELSEWHERE_BYTES_MIN: u64 = 60 << 10;

/// One transfer for so much of the account may go on for long although nobody waits for it: one where the account is smallest.
const ASIDE_PART: u64 = 256 << 10;
const ASIDE_MAX: u64 = 4;

/// One part of this many of what those have is the most for readers of the files here who are not known here.
const OUTSIDE_PART: u64 = 2;

/// What a transfer takes with its first reader, and how many of one server may wait for their answers to begin: half of all that have
/// memory. One that takes requests and says nothing would have it all.
const ONE_BYTES: u64 = 60 << 10;
const OF_SERVER_MAX: u64 = 8;
/// Of the memory for all, what the transfers of one server leave for those of others: one. Those who read a file that arrives
/// already are not its transfers: all of a household may ask for the same film.
const OF_OTHERS_BYTES: u64 = ONE_BYTES;

/// Bounds the transfers from other servers, with those who read them, and readers from outside.
pub(super) struct Elsewhere {
    /// In KiB.
    shares: Arc<Semaphore>,
    /// The same, of readers from outside.
    outside: Arc<Semaphore>,
    /// Of those that go on aside.
    aside: Semaphore,
    /// By the server that is asked; present while somebody asks it.
    asking: ByServer,
    of_server_max: usize,
    /// The same of what its transfers take of `shares`, in KiB.
    taking: ByServer,
    of_server_kib: usize,
}

type ByServer = Arc<Mutex<HashMap<OwnedServerName, Arc<Semaphore>>>>;

/// A turn at a server until its answer begins, or a part of what its transfers may take.
pub(super) struct Asking {
    turn: Option<OwnedSemaphorePermit>,
    server: OwnedServerName,
    all: ByServer,
}

impl Asking {
    /// Waits for as many of what one server may have. Its entry is made before the wait, and taken away again when nothing comes of it.
    async fn wait(all: &ByServer, server: &OwnedServerName, max: usize, count: u32) -> Result<Asking, AcquireError> {
        let turns = all.lock().entry(server.clone()).or_insert_with(|| Arc::new(Semaphore::new(max))).clone();
        let mut asking = Asking { turn: None, server: server.clone(), all: all.clone() };
        asking.turn = Some(turns.acquire_many_owned(count).await?);
        Ok(asking)
    }

    fn split(&mut self, count: usize) -> Option<Asking> {
        let turn = self.turn.as_mut()?.split(count)?;
        Some(Asking { turn: Some(turn), server: self.server.clone(), all: self.all.clone() })
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        drop(self.turn.take());
        let mut all = self.all.lock();
        // The map's own is the last: whoever takes or waits for a turn has one.
        if all.get(&self.server).is_some_and(|turns| Arc::strong_count(turns) == 1) {
            all.remove(&self.server);
        }
    }
}

/// What a transfer or its reader holds.
pub(super) struct Held {
    pub(super) grant: Grant,
    pub(super) share: Share,
}

/// A part of what all transfers may have, and of what those of readers from outside may.
pub struct Share {
    any: OwnedSemaphorePermit,
    _outside: Option<OwnedSemaphorePermit>,
    /// Of what one server's transfers may have.
    of_server: Option<Asking>,
}

/// Who takes a share.
enum Whose<'a> {
    Transfer(&'a OwnedServerName),
    Reader,
    Outside,
}

impl Elsewhere {
    pub(super) fn new(account: &Account) -> Elsewhere {
        let bytes = account.limit().saturating_sub(LOCAL_BYTES_MIN).max(ELSEWHERE_BYTES_MIN);
        let aside = (account.limit() / ASIDE_PART).clamp(1, ASIDE_MAX);
        let shares = |bytes: u64| Arc::new(Semaphore::new((bytes >> 10) as usize));
        Elsewhere {
            shares: shares(bytes),
            outside: shares(bytes / OUTSIDE_PART),
            aside: Semaphore::new(aside as usize),
            asking: Arc::default(),
            of_server_max: (bytes / 2 / ONE_BYTES).clamp(1, OF_SERVER_MAX) as usize,
            taking: Arc::default(),
            of_server_kib: (bytes.saturating_sub(OF_OTHERS_BYTES).max(ONE_BYTES) >> 10) as usize,
        }
    }

    /// A place among the transfers that go on although nobody waits for them; none when all are taken.
    pub(super) fn aside(&self) -> Option<SemaphorePermit<'_>> {
        self.aside.try_acquire().ok()
    }

    #[cfg(test)]
    pub(super) fn of_server_max(&self) -> usize {
        self.of_server_max
    }

    #[cfg(test)]
    pub(super) fn is_asking(&self) -> bool {
        !self.asking.lock().is_empty()
    }

    #[cfg(test)]
    pub(super) fn left(&self) -> u64 {
        (self.shares.available_permits() as u64) << 10
    }
}

impl Media {
    /// A turn to ask a server for a file, until its answer begins. Waits as long as for the memory, which is taken after it.
    pub(super) async fn turn_to_ask(&self, server: &OwnedServerName) -> Result<Asking, Error> {
        let (account, elsewhere) = (self.0.parts.budget.account("media"), &self.0.elsewhere);
        let wait_ms = account.row().wait_ms;
        let turn = Asking::wait(&elsewhere.asking, server, elsewhere.of_server_max, 1);
        match self.0.parts.clock.timeout(Duration::from_millis(wait_ms), turn).await {
            Some(Ok(asking)) => Ok(asking),
            _ => {
                let (account, limit) = (account.name().to_owned(), account.limit());
                Err(Refused { account, asked: ONE_BYTES, limit, retry_after_ms: wait_ms, too_large: false }.into())
            }
        }
    }

    /// Memory for a transfer from another server. Waits as long as the account lets wait.
    pub(super) async fn take_elsewhere(&self, server: &OwnedServerName, bytes: u64) -> Result<Held, Error> {
        self.take_share(bytes, Whose::Transfer(server)).await
    }

    /// The same for one more who reads a transfer as it comes.
    pub(super) async fn take_beside(&self, bytes: u64) -> Result<Held, Error> {
        self.take_share(bytes, Whose::Reader).await
    }

    /// Memory for somebody who is not known here, and reads a file of this disk: other servers, and whoever needs no access token.
    /// However slowly they read, files are read by people here meanwhile.
    pub(super) async fn take_outside(&self, bytes: u64) -> Result<Held, Error> {
        self.take_share(bytes, Whose::Outside).await
    }

    async fn take_share(&self, bytes: u64, whose: Whose<'_>) -> Result<Held, Error> {
        let (account, elsewhere) = (self.0.parts.budget.account("media"), &self.0.elsewhere);
        let wait_ms = account.row().wait_ms;
        let share = async {
            let (mut of_server, mut _outside) = (None, None);
            match whose {
                Whose::Transfer(server) => {
                    let (all, max) = (&elsewhere.taking, elsewhere.of_server_kib);
                    of_server = Some(Asking::wait(all, server, max, kib(bytes)).await?);
                }
                Whose::Reader => {}
                Whose::Outside => _outside = Some(elsewhere.outside.clone().acquire_many_owned(kib(bytes)).await?),
            }
            let any = elsewhere.shares.clone().acquire_many_owned(kib(bytes)).await?;
            Ok::<_, AcquireError>(Share { any, _outside, of_server })
        };
        let share = self.0.parts.clock.timeout(Duration::from_millis(wait_ms), share).await;
        let Some(Ok(share)) = share else {
            let (account, limit) = (account.name().to_owned(), account.limit());
            return Err(Refused { account, asked: bytes, limit, retry_after_ms: wait_ms, too_large: false }.into());
        };
        Ok(Held { grant: account.take(bytes).await?, share })
    }
}

impl Held {
    /// Takes a part out, for another holder.
    pub(super) fn split(&mut self, bytes: u64) -> Option<Held> {
        let kib = kib(bytes) as usize;
        let of_server = self.share.of_server.as_mut().and_then(|of_server| of_server.split(kib));
        let share = Share { any: self.share.any.split(kib)?, _outside: None, of_server };
        Some(Held { grant: self.grant.split(bytes), share })
    }
}

fn kib(bytes: u64) -> u32 {
    bytes.div_ceil(1 << 10) as u32
}

//! Guests who do not come back: their accounts are closed, so that others find a place.

use std::time::Duration;

use super::deactivate;
use crate::base::{Clock, Worker};
use crate::room::Rooms;
use crate::user::{Error, Users};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Between two looks at all guests.
const LOOK: Duration = Duration::from_secs(6 * 60 * 60);

/// Until the server stops: closes the accounts of guests of whom nothing was heard for so many days.
pub async fn keep_guests(users: &Users, rooms: &Rooms, unused_days: u64, clock: &Clock, worker: &Worker) {
    loop {
        worker.works_on("closing the accounts of guests who are gone");
        let before_ms = clock.settled_ms().saturating_sub(unused_days.saturating_mul(DAY_MS));
        if let Err(failed) = close_unused(users, rooms, before_ms, worker).await {
            tracing::warn!(%failed, "accounts of guests could not be closed; this is tried again");
            worker.failed(failed);
        }
        worker.idle_for(LOOK);
        clock.sleep(LOOK).await;
    }
}

/// One that cannot be closed keeps no other open.
async fn close_unused(users: &Users, rooms: &Rooms, before_ms: u64, worker: &Worker) -> Result<(), Error> {
    let mut after = None;
    loop {
        let (unused, last) = users.unused_guests(after, before_ms).await?;
        for guest in unused {
            match deactivate(users, rooms, &guest, false).await {
                Ok(()) => worker.done(1),
                Err(failed) => {
                    tracing::info!("the account of the guest {guest} is not closed yet: {failed}");
                    worker.failed(failed);
                }
            }
        }
        match last {
            Some(_) => after = last,
            None => return Ok(()),
        }
    }
}

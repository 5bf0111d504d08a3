//! Opening the database file.

use std::path::Path;
use std::time::Duration;

use super::folder::DATABASE;
use super::{Failed, failed};
use crate::base::Clock;
use crate::budget::{Budget, Grant};
use crate::store::{self, Store, StoreOptions};

/// A command that looks at the database, such as `snug check`, has it for a moment: so often is tried again, after so
/// long.
const BUSY_TRIES: u32 = 10;
const BUSY_PAUSE: Duration = Duration::from_millis(200);

/// Opens the database of a server that starts. Waits while a command has it, for two seconds at most.
pub(super) async fn open_when_free(folder: &Path, budget: &Budget, time: &Clock) -> Result<(Store, Grant), Failed> {
    open_within(BUSY_TRIES, folder, budget, time).await
}

async fn open_within(tries: u32, folder: &Path, budget: &Budget, time: &Clock) -> Result<(Store, Grant), Failed> {
    // Another process is waited for, which no simulated clock moves on.
    let clock = Clock::real();
    for _ in 0..tries {
        match open(folder, budget, Some(time))? {
            (Err(store::Error::Busy), _) => clock.sleep(BUSY_PAUSE).await,
            (opened, grant) => return finished(folder, opened, grant),
        }
    }
    let (opened, grant) = open(folder, budget, Some(time))?;
    finished(folder, opened, grant)
}

/// Opens the database.
pub(super) fn open_store(folder: &Path, budget: &Budget) -> Result<(Store, Grant), Failed> {
    let (opened, grant) = open(folder, budget, None)?;
    finished(folder, opened, grant)
}

fn open(folder: &Path, budget: &Budget, time: Option<&Clock>) -> Result<(store::Result<Store>, Grant), Failed> {
    let cache = budget.account("database_cache");
    let grant = cache.try_take(cache.limit()).map_err(|refused| failed("the database's memory", refused))?;
    let mut options = store_options(&folder.join(DATABASE), budget);
    options.clock = time.cloned();
    Ok((Store::open(options), grant))
}

fn finished(folder: &Path, opened: store::Result<Store>, grant: Grant) -> Result<(Store, Grant), Failed> {
    Ok((opened.map_err(|error| unopened(&folder.join(DATABASE), error))?, grant))
}

pub(super) fn store_options(path: &Path, budget: &Budget) -> StoreOptions {
    let mut options = StoreOptions::new(path);
    options.cache_bytes = budget.size("redb_cache") as usize;
    options.queue_jobs = budget.size("write_queue_jobs") as usize;
    options.stack_bytes = budget.size("writer_stack") as usize;
    options
}

/// The error of a database that does not open, with advice for a damaged one and for one that is in use.
fn unopened(path: &Path, error: store::Error) -> Failed {
    let advice = match error {
        store::Error::Damaged(_) | store::Error::Corrupt { .. } => {
            ". Put a backup of the data folder in its place, or see with `snug check --database` what can still be read"
        }
        store::Error::Busy => {
            ". Snug seems to run already: `snug check` says where it is open. A second server needs a data folder of its own \
             (--data-dir)"
        }
        _ => "",
    };
    failed(path.display(), format_args!("{error}{advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that was started beside `snug check` did not start.
    #[tokio::test]
    async fn a_command_that_has_the_database_for_a_moment_is_waited_for() {
        let folder = std::env::temp_dir().join(format!("snug-busy-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (budget, clock) = (Budget::for_tests(), Clock::real());
        let (first, grant) = open_store(&folder, &budget).unwrap();
        drop(grant);
        assert!(open_store(&folder, &budget).is_err_and(|failed| failed.to_string().contains("run already")));
        let closing = async move {
            tokio::task::yield_now().await;
            first.close().await;
            drop(first);
        };
        let (opened, ()) = tokio::join!(open_within(BUSY_TRIES * 60, &folder, &budget, &clock), closing);
        opened.unwrap().0.close().await;
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

//! Opening the database file.

use std::path::Path;
use std::time::Duration;

use super::folder::DATABASE;
use super::{Failed, failed};
use crate::budget::{Budget, Grant};
use crate::store::{self, Store, StoreOptions};

/// A command that looks at the database, such as `snug check`, has it for a moment: so often is tried again, after so
/// long.
const BUSY_TRIES: u32 = 10;
const BUSY_PAUSE: Duration = Duration::from_millis(200);

/// Opens the database. Blocks while another program has it, for two seconds at most.
pub(super) fn open_store(folder: &Path, budget: &Budget) -> Result<(Store, Grant), Failed> {
    let cache = budget.account("database_cache");
    let grant = cache.try_take(cache.limit()).map_err(|refused| failed("the database's memory", refused))?;
    let path = folder.join(DATABASE);
    let mut tries_left = BUSY_TRIES;
    loop {
        match Store::open(store_options(&path, budget)) {
            Ok(store) => return Ok((store, grant)),
            Err(store::Error::Busy) if tries_left > 0 => {
                tries_left -= 1;
                std::thread::sleep(BUSY_PAUSE);
            }
            Err(error) => return Err(unopened(&path, error)),
        }
    }
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
    #[test]
    fn a_command_that_has_the_database_for_a_moment_is_waited_for() {
        let folder = std::env::temp_dir().join(format!("snug-busy-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let budget = Budget::for_tests();
        let (first, grant) = open_store(&folder, &budget).unwrap();
        drop(grant);
        let closing = std::thread::spawn(move || {
            std::thread::sleep(BUSY_PAUSE / 2);
            first.close_blocking();
        });
        let (second, _grant) = open_store(&folder, &budget).unwrap();
        closing.join().unwrap();
        second.close_blocking();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

//! Compacting the database of a stopped server.

use std::time::Duration;

use super::folder::{DATABASE, check_owner};
use super::{Failed, failed, open_store, profile};
use crate::budget::{self, Budget};
use crate::config::Config;
use crate::store;

/// The interval between progress messages of `compact`.
const COMPACT_SAYS: Duration = Duration::from_secs(10);

/// Gives freed pages of a stopped server's database back to the file system. `say` receives the progress messages.
/// Answers the bytes of the file before and after. When interrupted, it leaves the database as it was or partly
/// smaller.
pub fn compact(config: &Config, say: &mut dyn FnMut(&str)) -> Result<(u64, u64), Failed> {
    let file = config.data_dir.join(DATABASE);
    let bytes = || std::fs::metadata(&file).map(|found| found.len()).map_err(|error| failed(file.display(), error));
    check_owner(&config.data_dir)?;
    let before = bytes()?;
    let (store, _grant) = open_store(&config.data_dir, &Budget::from_profile(profile(config)?))?;
    say(&format!("{} has {}; what is free in it goes back to the disk …", file.display(), budget::human(before)));
    let (done, wait) = std::sync::mpsc::channel();
    let worker = std::thread::spawn({
        let store = store.clone();
        move || {
            let compacted = store.compact_blocking();
            store.close_blocking();
            let _ = done.send(compacted);
        }
    });
    let compacted = loop {
        match wait.recv_timeout(COMPACT_SAYS) {
            Ok(compacted) => break compacted,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => say(&format!("… {} now", budget::human(bytes()?))),
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break Err(store::Error::Closed),
        }
    };
    let _ = worker.join();
    compacted.map_err(|error| failed(file.display(), error))?;
    Ok((before, bytes()?))
}

//! What a restored server does so that its past harms nobody: it was somebody once who knew more than it does now.
//!
//! Left out of the copy already (`store/copy.rs`): one-time keys, links that set a password, connections of sliding sync,
//! delayed events. Positions go on far behind any that was given out. What is here is the rest, in short writes, before the
//! server starts for the first time.

use std::path::Path;

use ruma::{ServerName, UserId};

use super::{Failed, failed};
use crate::base::{Clock, date, span};
use crate::store::tables::backups;
use crate::store::tables::media::{self, Remote};
use crate::store::tables::user::{self as users, backup as key_backup, e2ee_key, remote_list};
use crate::store::{self, Store, Write};
use crate::user;

/// Rows of one write.
const ROWS: usize = 500;
/// More key backups than a user made in the lost time: an app that has the key of one must not find another's under its number.
const KEY_BACKUPS_LOST: u32 = 1000;
/// For so long a server says at its start that it was restored.
const SAID_MS: u64 = 7 * 24 * 60 * 60 * 1000;

/// What was done, for the operator.
#[derive(Debug, Default)]
pub(super) struct Settled {
    pub accounts: u64,
    pub lists: u64,
    /// Files of other servers that are fetched again.
    pub remote_files: u64,
    /// Files of people here that are not in the backup.
    pub missing_files: u64,
}

/// Does the safe thing about everything that the rows of an old backup would get wrong.
pub(super) fn settle(
    store: &Store,
    server: &ServerName,
    media_folder: &Path,
    now_ms: u64,
    made_ms: u64,
) -> Result<Settled, Failed> {
    let mut done = Settled::default();
    let wrong = |error: store::Error| failed("the restored database", error);
    // Lists of other servers' devices: changes that came meanwhile are not in them.
    let mut after = None;
    while let Some((last, count)) = write(store, move |w| remote_list::make_stale(w, after, ROWS)).map_err(wrong)? {
        after = Some(last);
        done.lists += count as u64;
    }
    // Fallback keys: the app may have put another one in place meanwhile.
    let mut after = Vec::new();
    while let Some(last) = write(store, move |w| e2ee_key::use_fallbacks(w, &after, ROWS)).map_err(wrong)? {
        after = last;
    }
    // Our people's devices may be others than everybody knows, and their apps may have versions of key backups that are not here.
    let mut after = None;
    loop {
        let mut found = None;
        let read = store.read().map_err(wrong)?;
        users::accounts_after(&read, after, &mut |num, _| {
            found = Some(num);
            Ok(std::ops::ControlFlow::Break(()))
        })
        .map_err(wrong)?;
        let Some(num) = found else { break };
        let id = users::id_of(&read, num).map_err(wrong)?;
        drop(read);
        after = Some(num);
        let Ok(user_id) = UserId::parse(&id) else { continue };
        let server = server.to_owned();
        let told = store.write_freeing_blocking(move |w| {
            key_backup::skip_numbers(w, num, KEY_BACKUPS_LOST)?;
            user::announce_restored(w, &server, num, &user_id)
        });
        told.map_err(|error| failed("the restored database", error))?;
        done.accounts += 1;
    }
    missing_files(store, media_folder, &mut done).map_err(wrong)?;
    write(store, move |w| backups::restored(w, now_ms, made_ms)).map_err(wrong)?;
    Ok(done)
}

/// Forgets what is kept of other servers and is not in the backup, and counts what is missing of our own.
fn missing_files(store: &Store, folder: &Path, done: &mut Settled) -> store::Result<()> {
    let mut after: Option<Remote> = None;
    loop {
        let found = media::ids_after(&store.read()?, after.as_ref(), ROWS)?;
        let Some((last, _)) = found.last() else { return Ok(()) };
        after = Some(last.clone());
        let is_here = |file: &str| folder.join(file.get(..2).unwrap_or("00")).join(file).exists();
        let (mut gone, mut missing) = (Vec::new(), 0);
        for (id, row) in found {
            match (is_here(&row.file), row.uploader) {
                (true, _) => {}
                (false, None) => gone.push(id),
                (false, Some(_)) => missing += 1,
            }
        }
        done.missing_files += missing;
        done.remote_files += gone.len() as u64;
        if !gone.is_empty() {
            let job = move |w: &mut Write<'_>| {
                gone.iter().try_for_each(|id| media::remove(w, &id.server, &id.media_id).map(drop))
            };
            write(store, job)?;
        }
    }
}

fn write<T: Send + 'static>(
    store: &Store,
    job: impl FnOnce(&mut Write<'_>) -> store::Result<T> + Send + 'static,
) -> store::Result<T> {
    // As the rows before it: a card that has just room for the server is no reason to have none.
    store.write_freeing_blocking(job).map(|(done, _)| done).map_err(Into::into)
}

/// Says in the log, for some days, that the server was restored.
pub(super) fn say(store: &Store, clock: &Clock) {
    let Ok(noted) = store.read().and_then(|read| backups::get(&read)) else { return };
    let (Some(at_ms), Some(from_ms)) = (noted.restored_ms, noted.restored_from_ms) else { return };
    let ago = clock.now_ms().saturating_sub(at_ms);
    if ago < SAID_MS {
        tracing::warn!(
            "this server was restored {} ago from a backup of {}: what came in between is gone. Apps are told everything anew and \
             upload new one-time keys, and other servers ask for the devices of people here again",
            span(ago),
            date(from_ms)
        );
    }
}

/// What being restored means, for whoever did it.
pub(super) const MEANS: &str = "\
Before you start it, make sure that the old server does not run any more: two servers with one name and key harm each other.
What came after the backup was made is gone here. Other servers still have it, and send messages of rooms you share when
somebody there speaks. What was done about it:
- One-time keys are gone, and fallback keys count as used: apps upload new ones, so that no key is handed out twice.
- Positions begin far behind the old ones. An app that was told something later than the backup is told everything anew.
- Lists of other servers' devices are asked for again, and other servers ask for those of people here.
- Messages that were still to be sent to other servers are sent; those that got them already leave them out.
- Delayed events are forgotten, since they were sent or taken back meanwhile.
- Links with which people choose a password work no more, since they may have been used meanwhile: make new ones.
What you should know:
- Passwords, sessions, administrators and locks are as they were: a session that was ended since works again. End what should
  not be there with `snug user password NAME`.
- Devices that logged in since have to log in again, and keys they alone had are lost if no key backup has them.
- Cross-signing keys and key backups that were made anew since are the old ones again: those users set them up again.
- Rooms that people left or joined since are as they were: leave or join them again.
";

//! What lies in the data folder, and whose it is: the names of its files, the signing keys, the config of a first start.
//!
//! Everything in it belongs to one user and is nobody else's to read. A command that another user runs, root included, is
//! refused: what it made would be out of the server's reach.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Failed, failed};
use crate::base::{Clock, Random};
use crate::config::{Config, FILE_NAME};
use crate::federation::OldKey;
use crate::matrix::sign;

pub(super) const DATABASE: &str = "database";
pub(super) const SCRATCH: &str = "scratch";
pub(super) const MEDIA: &str = "media";
const SIGNING_KEY: &str = "signing.key";
const OLD_SIGNING_KEYS: &str = "old-signing-keys";
/// Where the commands find the running server.
pub const SOCKET: &str = "admin.sock";

/// File systems round times.
const CLOCK_SLACK_MS: u64 = 5_000;

/// Whether a server has its data there. A folder that cannot be looked into is an error.
pub fn has_data(folder: &Path) -> Result<bool, Failed> {
    check_owner(folder)?;
    let database = folder.join(DATABASE);
    match std::fs::metadata(&database) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(database.display(), error)),
    }
}

/// What a server keeps there besides its socket, whether it is there or not.
pub fn kept(folder: &Path) -> [PathBuf; 5] {
    [DATABASE, "database.reserve", SIGNING_KEY, MEDIA, SCRATCH].map(|name| folder.join(name))
}

/// Refuses to work in a folder of another user. One that is not there yet is nobody's.
pub fn check_owner(folder: &Path) -> Result<(), Failed> {
    let owner = match std::fs::metadata(folder) {
        Ok(found) => found.uid(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(folder.display(), error)),
    };
    let me = rustix::process::geteuid().as_raw();
    if owner == me {
        return Ok(());
    }
    let (owner, me) = (user_name(owner), user_name(me));
    let why = format!(
        "it belongs to {owner}, and what {me} makes there would be out of the server's reach. Run this as its owner: \
         sudo -u {owner} snug …"
    );
    Err(failed(folder.display(), why))
}

/// The name of a user of this machine, or the number as `sudo -u` takes it.
pub fn user_name(uid: u32) -> String {
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    user_in(&users, uid).map_or(format!("'#{uid}'"), str::to_owned)
}

/// A line is `name:x:uid:gid:…`.
fn user_in(users: &str, uid: u32) -> Option<&str> {
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })
}

/// Makes what is missing. Nobody else on the machine may read what is in there.
pub(super) fn make(folder: &Path) -> Result<(), Failed> {
    check_owner(folder)?;
    make_private(folder)?;
    make_private(&folder.join(MEDIA))
}

/// Removes what an earlier run left there. Only who holds the database may: the readers of it are gone then.
pub(super) fn empty_scratch(folder: &Path) -> Result<(), Failed> {
    let scratch = folder.join(SCRATCH);
    match std::fs::remove_dir_all(&scratch) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(scratch.display(), error)),
        _ => make_private(&scratch),
    }
}

fn make_private(folder: &Path) -> Result<(), Failed> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.map_err(|error| failed(format_args!("the folder {} cannot be made", folder.display()), error))
}

/// A board without a clock battery wakes up in the past. It is at least as late as when the database was last written.
pub(super) fn remember_time(folder: &Path, clock: &Clock) {
    let written = std::fs::metadata(folder.join(DATABASE)).and_then(|found| found.modified()).ok();
    let Some(since) = written.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok()) else { return };
    let written_ms = since.as_millis() as u64;
    if written_ms > clock.read_ms() + CLOCK_SLACK_MS {
        tracing::warn!("the clock stands before the last time this server ran: is the date right?");
    }
    clock.remember_ms(written_ms);
}

/// The key every event and request of this server is signed with; made at the first start.
pub(super) fn signing_key(folder: &Path, random: &Random) -> Result<sign::Key, Failed> {
    if let Some(key) = known_signing_key(folder)? {
        return Ok(key);
    }
    let file = folder.join(SIGNING_KEY);
    let mut seed = [0; 32];
    random.fill(&mut seed);
    let key = sign::Key::from_seed(&format!("a_{}", random.token(4)), seed);
    write_secret(&file, &key.to_file()).map_err(|error| failed(file.display(), error))?;
    Ok(key)
}

/// The signing key of a data folder, when there is one.
pub fn known_signing_key(folder: &Path) -> Result<Option<sign::Key>, Failed> {
    let file = folder.join(SIGNING_KEY);
    match std::fs::read_to_string(&file) {
        Ok(text) => sign::Key::parse(&text).map(Some).map_err(|error| failed(file.display(), error)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(file.display(), error)),
    }
}

/// Written beside and moved, so that a power cut leaves no half of a key.
fn write_secret(file: &Path, text: &str) -> std::io::Result<()> {
    let beside = file.with_extension("new");
    // What a power cut left of an earlier try may have another mode.
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    made.write_all(text.as_bytes())?;
    made.sync_all()?;
    std::fs::rename(&beside, file)
}

/// Keys this server signed with before, one on a line: `ed25519:NAME PUBLIC_KEY EXPIRED_MS`.
pub fn old_signing_keys(folder: &Path) -> Result<Vec<OldKey>, Failed> {
    let file = folder.join(OLD_SIGNING_KEYS);
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(file.display(), error)),
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .map(|(at, line)| {
            old_signing_key(line).ok_or_else(|| {
                let wrong = "a line must be `ed25519:NAME PUBLIC_KEY EXPIRED_MS`";
                failed(format_args!("{}:{}", file.display(), at + 1), wrong)
            })
        })
        .collect()
}

fn old_signing_key(line: &str) -> Option<OldKey> {
    let mut words = line.split_whitespace();
    let (id, public, expired_ms) = (words.next()?, words.next()?, words.next()?);
    let public = sign::PublicKey::from_base64(public.trim_end_matches('='))?;
    id.strip_prefix("ed25519:").filter(|name| !name.is_empty())?;
    Some(OldKey { id: id.to_owned(), public, expired_ms: expired_ms.parse().ok()? })
}

/// At the very first start: a short config file in the data folder. Answers where it was written.
pub(super) fn first_file(config: &Config) -> Result<Option<PathBuf>, Failed> {
    let file = config.data_dir.join(FILE_NAME);
    let there = file.try_exists().map_err(|error| failed(file.display(), error))?;
    if config.file.is_some() || there {
        return Ok(None);
    }
    check_owner(&config.data_dir)?;
    make_private(&config.data_dir)?;
    write_secret(&file, &config.first_file()).map_err(|error| failed(file.display(), error))?;
    Ok(Some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_names() {
        let users = "root:x:0:0:root:/root:/bin/bash\nbroken\nsnug:x:997:997::/var/lib/snug:/usr/sbin/nologin\n";
        assert_eq!((user_in(users, 997), user_in(users, 0), user_in(users, 5)), (Some("snug"), Some("root"), None));
    }
}

//! The data folder and its owner: the names of its files, the signing keys, the config file of a first start.
//!
//! Everything in it belongs to one user, and no other user may read it. A command that another user runs, root
//! included, is refused: the server could not use the files that such a command made.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Failed, failed};
use crate::base::private::{make_folder, write_secret};
use crate::base::{Clock, Random, sort_few_by};
use crate::config::{Config, FILE_NAME};
use crate::federation::OldKey;
use crate::matrix::sign;
use crate::store::Store;

pub(super) const DATABASE: &str = "database";
pub(super) const SCRATCH: &str = "scratch";
pub(super) const MEDIA: &str = "media";
/// Keys and certificates that the server got or made by itself.
pub const CERTIFICATES: &str = "certificates";
const SIGNING_KEY: &str = "signing.key";
const OLD_SIGNING_KEYS: &str = "old-signing-keys";
const RESERVE: &str = "database.reserve";
const JOURNAL: &str = "database.journal";
/// Where a restore works until all of it was verified, and the mark that it was.
pub(super) const RESTORING: &str = "restoring";
pub(super) const VERIFIED: &str = "verified";
/// The socket on which the running server takes commands.
pub const SOCKET: &str = "admin.sock";

/// Tolerance for file systems that round times.
const CLOCK_SLACK_MS: u64 = 5_000;

/// Whether the folder has a server's data. A folder that cannot be read is an error.
pub fn has_data(folder: &Path) -> Result<bool, Failed> {
    check_owner(folder)?;
    let database = folder.join(DATABASE);
    match std::fs::metadata(&database) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(database.display(), error)),
    }
}

/// The paths of a server's files besides its socket, whether they exist or not.
pub fn kept(folder: &Path) -> [PathBuf; 7] {
    [DATABASE, JOURNAL, RESERVE, SIGNING_KEY, MEDIA, SCRATCH, CERTIFICATES].map(|name| folder.join(name))
}

/// Refuses to make a new database where a signing key and the files of an earlier database are: all accounts and rooms
/// would be gone without a word. The key is made after the database, so an interrupted first start is not mistaken for
/// this.
pub fn check_database(folder: &Path) -> Result<(), Failed> {
    let (database, key) = (folder.join(DATABASE), folder.join(SIGNING_KEY));
    let has_key = key.try_exists().map_err(|error| failed(key.display(), error))?;
    if has_database(folder)? || !has_key || !was_used(folder)? {
        return Ok(());
    }
    let why = "it is missing or empty, although the folder has a signing key and media files of an earlier database. \
     Put it back from a backup. Without a backup, `snug new database` begins without accounts and rooms";
    Err(failed(database.display(), why))
}

/// The error for a missing signing key on a server with accounts, which other servers know by that key.
pub(super) fn key_missing(folder: &Path) -> Failed {
    let why = "it is missing, although there are accounts. Other servers know this server by that key: put it back \
     from a backup. Without a backup, `snug new signing-key` makes a new one";
    failed(folder.join(SIGNING_KEY).display(), why)
}

/// Whether there is a database with anything in it. A file of zeros is a database whose making was interrupted; the
/// store makes it again.
pub fn has_database(folder: &Path) -> Result<bool, Failed> {
    let database = folder.join(DATABASE);
    let mut mark = Vec::new();
    let read = match File::open(&database) {
        Ok(file) => file.take(9).read_to_end(&mut mark),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    };
    read.map_err(|error| failed(database.display(), error))?;
    Ok(mark.iter().any(|byte| *byte != 0))
}

/// Whether a server has run in this folder: there are uploaded files, or the reserve of the database, which is made
/// after the database.
fn was_used(folder: &Path) -> Result<bool, Failed> {
    let (reserve, media) = (folder.join(RESERVE), folder.join(MEDIA));
    let files = match std::fs::read_dir(&media) {
        Ok(mut files) => files.next().is_some(),
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => return Err(failed(media.display(), error)),
    };
    Ok(files || reserve.try_exists().map_err(|error| failed(reserve.display(), error))?)
}

/// Warnings about secret files that other users may read. Files in the data folder must be for their owner alone. Files
/// elsewhere may be for a group too, such as that of the server's user.
pub fn open_files(config: &Config) -> Vec<String> {
    let inside = kept(&config.data_dir).into_iter().map(|file| (file, 0o077, "go="));
    let outside = config.secret_files.iter().map(|file| (file.clone(), 0o007, "o="));
    let open = |(file, bits, mend): (PathBuf, u32, &str)| {
        let found = std::fs::metadata(&file).ok().filter(Metadata::is_file)?;
        let (mode, file) = (found.mode() & 0o777, file.display());
        (mode & bits != 0).then(|| {
            format!("{file} has secrets in it that other users of this machine may read (mode {mode:o}): chmod {mend} {file}")
        })
    };
    inside.chain(outside).filter_map(open).collect()
}

/// The other user to whom a folder belongs. A folder that does not exist yet has no owner.
pub fn other_owner(folder: &Path) -> Result<Option<String>, Failed> {
    let owner = match std::fs::metadata(folder) {
        Ok(found) => found.uid(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(folder.display(), error)),
    };
    Ok((owner != rustix::process::geteuid().as_raw()).then(|| user_name(owner)))
}

/// Refuses to work in a folder of another user.
pub fn check_owner(folder: &Path) -> Result<(), Failed> {
    let Some(owner) = other_owner(folder)? else { return Ok(()) };
    let me = user_name(rustix::process::geteuid().as_raw());
    let why = format!(
        "it belongs to {owner}, and the server could not use files that {me} makes there. Run this as its owner: sudo \
         -u {owner} snug …"
    );
    Err(failed(folder.display(), why))
}

/// The name of a user of this machine; without a name, the number in the form that `sudo -u` takes.
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

/// Makes the data folder and the media folder if they are missing. No other user of the machine may read what is in
/// them.
pub(super) fn make(folder: &Path) -> Result<(), Failed> {
    check_owner(folder)?;
    make_private(folder)?;
    make_private(&folder.join(MEDIA))
}

/// Moves what a restore has verified to its place, the database last. False when there is nothing to move. An error for a
/// restore that was cut short before.
pub(super) fn finish_restore(folder: &Path) -> Result<bool, Failed> {
    let from = folder.join(RESTORING);
    let verified = from.join(VERIFIED);
    if !from.is_dir() {
        return Ok(false);
    }
    if !verified.exists() {
        // Cut short behind the last move: only the empty folder is left.
        if has_database(folder)? && std::fs::remove_dir(&from).is_ok() {
            return Ok(true);
        }
        let why = "a restore into this folder was cut short: run `snug restore` again, or remove this folder to begin a new \
             server";
        return Err(failed(from.display(), why));
    }
    let moved = || {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&from)? {
            names.push(entry?.file_name());
        }
        names.retain(|name| name != VERIFIED);
        // The settings first: a start in between knows its name. The database last: without it no server starts here.
        sort_few_by(&mut names, |name| (name == DATABASE, name != FILE_NAME));
        for name in &names {
            std::fs::rename(from.join(name), folder.join(name))?;
        }
        File::open(folder)?.sync_all()?;
        std::fs::remove_file(&verified)?;
        std::fs::remove_dir(&from)?;
        File::open(folder)?.sync_all()
    };
    moved().map_err(|error: std::io::Error| failed(from.display(), error))?;
    Ok(true)
}

/// Removes what an earlier run left in the scratch folder. The caller holds the database, so no other process uses
/// those files.
pub(super) fn empty_scratch(folder: &Path) -> Result<(), Failed> {
    let scratch = folder.join(SCRATCH);
    match std::fs::remove_dir_all(&scratch) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(scratch.display(), error)),
        _ => make_private(&scratch),
    }
}

fn make_private(folder: &Path) -> Result<(), Failed> {
    let wrong = |error: std::io::Error| {
        let hint = match error.kind() {
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                ". Start Snug in a folder that you may write in, or name one with --data-dir"
            }
            _ => "",
        };
        failed(format_args!("the folder {} cannot be made", folder.display()), format_args!("{error}{hint}"))
    };
    make_folder(folder).map_err(wrong)
}

/// Corrects the clock of a board without a clock battery, which starts in the past. The time is at least that of the
/// last write to the database.
pub(super) fn remember_time(folder: &Path, clock: &Clock) {
    let written = std::fs::metadata(folder.join(DATABASE)).and_then(|found| found.modified()).ok();
    let Some(since) = written.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok()) else { return };
    let written_ms = since.as_millis() as u64;
    say_time(clock.remember_ms(written_ms), written_ms, clock);
}

/// The same with the time that the database has kept.
pub(super) fn remember_time_kept(store: &Store, clock: &Clock) {
    match store.time_kept() {
        Ok(Some(kept)) => say_time(clock.remember(kept), kept.latest_ms, clock),
        Ok(None) => {}
        Err(error) => tracing::error!("the latest time known cannot be read: {error}"),
    }
}

fn say_time(is_right: bool, kept_ms: u64, clock: &Clock) {
    if !is_right {
        tracing::warn!(
            "the clock of this machine was once ahead; it is right now, and what was kept of then is forgotten"
        );
    } else if kept_ms > clock.read_ms() + CLOCK_SLACK_MS {
        tracing::warn!("the system clock is earlier than the last run of this server: check the date");
    }
}

/// The key that signs every event and request of this server. It is made at the first start, before there are
/// `accounts`.
pub(super) fn signing_key(folder: &Path, accounts: bool, random: &Random) -> Result<sign::Key, Failed> {
    match known_signing_key(folder)? {
        Some(key) => Ok(key),
        None if accounts => Err(key_missing(folder)),
        None => make_signing_key(folder, random),
    }
}

fn make_signing_key(folder: &Path, random: &Random) -> Result<sign::Key, Failed> {
    let file = folder.join(SIGNING_KEY);
    let mut seed = [0; 32];
    random.fill(&mut seed);
    let key = sign::Key::from_seed(&format!("a_{}", random.token(4)), seed);
    write_secret(&file, &key.to_file()).map_err(|error| failed(file.display(), error))?;
    Ok(key)
}

/// Makes a new signing key on purpose. An existing key is first written to the old keys, where its signatures stay
/// valid, so a power cut in between does no harm. The caller holds the database.
pub(super) fn new_signing_key(folder: &Path, clock: &Clock, random: &Random) -> Result<sign::Key, Failed> {
    if let Some(old) = known_signing_key(folder)? {
        let file = folder.join(OLD_SIGNING_KEYS);
        let wrong = |error: std::io::Error| failed(file.display(), error);
        old_signing_keys(folder)?;
        let known = match std::fs::read_to_string(&file) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            known => known.map_err(wrong)?,
        };
        let known = if known.is_empty() || known.ends_with('\n') { known } else { known + "\n" };
        let line = format!("{} {} {}\n", old.id(), old.public().to_base64(), clock.now_ms());
        write_secret(&file, &(known + &line)).map_err(wrong)?;
    }
    make_signing_key(folder, random)
}

/// The signing key of a data folder, if it has one.
pub fn known_signing_key(folder: &Path) -> Result<Option<sign::Key>, Failed> {
    let file = folder.join(SIGNING_KEY);
    match std::fs::read_to_string(&file) {
        Ok(text) => sign::Key::parse(&text).map(Some).map_err(|error| failed(file.display(), error)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(file.display(), error)),
    }
}

/// The keys that this server signed with before, one a line: `ed25519:NAME PUBLIC_KEY EXPIRED_MS`.
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

/// Writes a short config file into the data folder at the very first start. Answers its path.
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

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let folder = std::env::temp_dir().join(format!("snug-folder-{}-{name}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            Folder(folder)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// A missing database was made anew, although the signing key and uploaded files were there.
    #[test]
    fn a_database_that_is_gone_is_missed() {
        let folder = Folder::new("gone");
        let at = |name: &str| folder.0.join(name);
        let write = |name: &str, text: &[u8]| std::fs::write(at(name), text).unwrap();
        let said = || check_database(&folder.0).err().map(|wrong| wrong.to_string()).unwrap_or_default();
        assert_eq!(said(), "", "a new server");
        std::fs::create_dir(at(MEDIA)).unwrap();
        for empty in [None, Some(&b""[..]), Some(&[0; 4096])] {
            let _ = std::fs::remove_file(at(SIGNING_KEY));
            let _ = std::fs::remove_file(at(DATABASE));
            if let Some(empty) = empty {
                write(DATABASE, empty);
            }
            assert_eq!(said(), "", "its making was cut short");
            write(SIGNING_KEY, b"key");
            assert_eq!(said(), "", "a key somebody brought along");
            for used in [RESERVE, "media/ab"] {
                write(used, b"");
                assert!(said().contains("database: it is missing or empty"), "{used}: {}", said());
                assert!(said().contains("snug new database"), "{}", said());
                std::fs::remove_file(at(used)).unwrap();
            }
        }
        write(DATABASE, b"redb and more");
        write(RESERVE, b"");
        assert_eq!(said(), "", "it is whole");
    }

    /// The power went between the mark of a restore and its folder, and the server did not start.
    #[test]
    fn a_restore_is_finished_wherever_it_was_cut_short() {
        let folder = Folder::new("restored");
        let from = folder.0.join(RESTORING);
        std::fs::create_dir(&from).unwrap();
        assert!(finish_restore(&folder.0).err().unwrap().to_string().contains("cut short"), "nothing was verified");
        for name in [DATABASE, VERIFIED] {
            std::fs::write(from.join(name), "rows").unwrap();
        }
        assert!(finish_restore(&folder.0).unwrap() && !from.exists() && has_database(&folder.0).unwrap());
        std::fs::create_dir(&from).unwrap();
        assert!(finish_restore(&folder.0).unwrap() && !from.exists());
        assert!(!finish_restore(&folder.0).unwrap());
        std::fs::create_dir(&from).unwrap();
        std::fs::write(from.join(DATABASE), "other rows").unwrap();
        assert!(finish_restore(&folder.0).is_err(), "a restore that was never verified");
    }

    /// A missing signing key was made anew, although there were accounts and rooms, and other servers no longer
    /// accepted this one's signatures.
    #[test]
    fn a_key_that_is_gone_is_missed() {
        let folder = Folder::new("key");
        let said = signing_key(&folder.0, true, &Random::seeded(1)).err().unwrap().to_string();
        assert!(said.contains("signing.key: it is missing") && said.contains("snug new signing-key"), "{said}");
        let made = signing_key(&folder.0, false, &Random::seeded(1)).unwrap();
        assert_eq!(signing_key(&folder.0, true, &Random::seeded(2)).unwrap().id(), made.id());
    }

    #[test]
    fn a_key_that_is_replaced_stays_known() {
        let folder = Folder::new("replaced");
        let (clock, random) = (Clock::simulated(1_000), Random::seeded(1));
        let first = signing_key(&folder.0, false, &random).unwrap();
        std::fs::write(folder.0.join(OLD_SIGNING_KEYS), "# mine").unwrap();
        let second = new_signing_key(&folder.0, &clock, &random).unwrap();
        assert_eq!(known_signing_key(&folder.0).unwrap().unwrap().id(), second.id());
        let old = old_signing_keys(&folder.0).unwrap();
        let [old] = &old[..] else { panic!("{old:?}") };
        assert_eq!((&*old.id, old.public.to_bytes(), old.expired_ms), (first.id(), first.public().to_bytes(), 1_000));
        assert_ne!(first.id(), second.id());
    }
}

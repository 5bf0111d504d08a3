//! Restoring a server from a backup, into an empty folder.
//!
//! Everything is put into the folder `restoring` inside it, compared with the backup's list, and settled (`restored.rs`). Then it
//! is marked as verified and moved to its place, the database last. Cut short before the mark, nothing of it counts; behind it
//! the next start, or the next restore, moves the rest.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ruma::ServerName;

use super::database::store_options;
use super::folder::{DATABASE, MEDIA, RESTORING, VERIFIED, check_owner, finish_restore};
use super::restored::{MEANS, Settled, settle};
use super::{Failed, failed, profile};
use crate::backup::{self, Error, Head, OUTSIDE, Progress, STEP_BYTES, Sink, Source, bad_piece};
use crate::base::{Clock, date};
use crate::budget::{Budget, Card, human};
use crate::config::Config;
use crate::store::Store;
use crate::store::copy::{CopyIn, check_format};

/// What stays free on the disk: a backup that says less than it has does not fill it.
const FREE_BYTES_MIN: u64 = 64 << 20;
/// How often the free disk is looked at.
const LOOK_EVERY_BYTES: u64 = 8 << 20;
/// The memory of unpacking one file: zstd's window and buffers.
const UNPACK_BYTES: u64 = 1 << 20;
/// The name of a config file that was not in the data folder.
const CONFIG_OUTSIDE: &str = "snug.toml.from-backup";

/// Restores a server into the data folder of `config`, which must be empty. Answers what the operator should know.
pub fn restore(config: &Config, source: &Source, tell: &mut dyn FnMut(&Progress)) -> Result<String, Failed> {
    let folder = &config.data_dir;
    check_owner(folder)?;
    if folder.join(RESTORING).join(VERIFIED).exists() {
        finish_restore(folder)?;
        return Ok(format!("The restore that was interrupted is finished: {} is ready.\n\n{MEANS}", folder.display()));
    }
    check_empty(folder)?;
    let budget = Budget::from_profile(profile(config)?);
    let grant = |name: &str, bytes: u64| {
        budget.account(name).try_take(bytes).map_err(|refused| failed("the memory of a restore", refused))
    };
    let account = budget.account("backup");
    let _grants = (
        grant("database_cache", budget.account("database_cache").limit())?,
        account.try_take((STEP_BYTES + UNPACK_BYTES).min(account.limit())).ok(),
    );
    let begin = folder.join(RESTORING);
    let wrong = |path: &Path, error: io::Error| failed(path.display(), error);
    match fs::remove_dir_all(&begin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(wrong(&begin, error)),
        _ => {}
    }
    for made in [folder, &begin, &begin.join(MEDIA)] {
        DirBuilder::new().recursive(true).mode(0o700).create(made).map_err(|error| wrong(made, error))?;
    }
    let options = store_options(&begin.join(DATABASE), &budget);
    let copy = CopyIn::begin(options).map_err(|error| {
        let _ = fs::remove_dir_all(&begin);
        failed(begin.join(DATABASE).display(), format_args!("{error}. Nothing was restored"))
    })?;
    let mut into = Into { folder: begin.clone(), copy, looked_at: 0 };
    let read = source.read(&mut into, tell);
    let (head, progress) = match read {
        Ok(read) => read,
        Err(error) => {
            into.copy.give_up();
            let _ = fs::remove_dir_all(&begin);
            return Err(failed(source.path.display(), format_args!("{error}. Nothing was restored")));
        }
    };
    let settled = finish(into.copy, &head, &source.path, &begin, &budget).map_err(|error| {
        let _ = fs::remove_dir_all(&begin);
        Failed(format!("{error}. Nothing was restored"))
    })?;
    let marked = || {
        rustix::fs::syncfs(File::open(&begin)?)?;
        File::create(begin.join(VERIFIED))?.sync_all()?;
        File::open(&begin)?.sync_all()
    };
    marked().map_err(|error| wrong(&begin, error))?;
    finish_restore(folder)?;
    let mut said = format!(
        "{} is what {} was on {}: {} rows and {} of files, all verified.\n",
        folder.display(),
        head.server,
        date(head.made_ms),
        progress.rows_done,
        human(progress.media_done),
    );
    if folder.join(CONFIG_OUTSIDE).exists() {
        said += &format!(
            "Its config file was not in the data folder: it is {} now. Put it where the server looks for it, such as \
             /etc/snug/snug.toml.\n",
            folder.join(CONFIG_OUTSIDE).display()
        );
    }
    if settled.remote_files > 0 {
        said += &format!("{} files of other servers are fetched again when asked for.\n", settled.remote_files);
    }
    if settled.missing_files > 0 {
        said += &format!("{} files that people here uploaded are not in this backup.\n", settled.missing_files);
    }
    tracing::warn!(
        accounts = settled.accounts,
        lists = settled.lists,
        "restored from a backup of {}: one-time keys are left out, positions go on far behind, device lists are announced",
        date(head.made_ms)
    );
    Ok(said + "\n" + MEANS)
}

/// Makes a database of the rows that were read, and settles it.
fn finish(copy: CopyIn, head: &Head, source: &Path, begin: &Path, budget: &Budget) -> Result<Settled, Failed> {
    copy.finish().map_err(|error| failed(source.display(), error))?;
    let server = ServerName::parse(&head.server).map_err(|_| failed(source.display(), "its server has no name"))?;
    // Opened as a server does it: what an older version wrote is brought up to date.
    let file = begin.join(DATABASE);
    let store = Store::open(store_options(&file, budget)).map_err(|error| failed(file.display(), error))?;
    let settled = settle(&store, &server, &begin.join(MEDIA), Clock::real().now_ms(), head.made_ms);
    store.close_blocking();
    settled
}

/// Refuses a folder with anything in it but the beginning of a restore.
fn check_empty(folder: &Path) -> Result<(), Failed> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(folder.display(), error)),
    };
    for entry in entries {
        let name = entry.map_err(|error| failed(folder.display(), error))?.file_name();
        if name != RESTORING && name != "lost+found" {
            let why = format!(
                "it is not empty, it has {}. A backup is restored into an empty folder: move away what is there, or name another \
                 folder with --data-dir",
                name.display()
            );
            return Err(failed(folder.display(), why));
        }
    }
    Ok(())
}

/// Takes a backup's things into the folder.
struct Into {
    folder: PathBuf,
    copy: CopyIn,
    looked_at: u64,
}

impl Into {
    fn look(&mut self, bytes: u64) -> Result<(), Error> {
        self.looked_at += bytes;
        if self.looked_at >= LOOK_EVERY_BYTES {
            self.looked_at = 0;
            if Card::at(&self.folder)?.free_bytes < FREE_BYTES_MIN {
                return Err(Error::Bad("the disk has no room for it".to_owned()));
            }
        }
        Ok(())
    }

    fn make(&self, path: &Path) -> Result<File, Error> {
        let wrong = |error| Error::File(path.to_owned(), error);
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(wrong)?;
        }
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(wrong)
    }
}

impl Sink for Into {
    fn head(&mut self, head: &Head) -> Result<(), Error> {
        // Before anything is written; the end of it is checked again.
        self.looked_at = LOOK_EVERY_BYTES;
        ServerName::parse(&head.server).map_err(|_| Error::Bad("its server has no name".to_owned()))?;
        check_format(head.format)?;
        self.look(0)
    }

    fn file(&mut self, name: &str, text: Vec<u8>) -> Result<(), Error> {
        let name = if name == OUTSIDE { CONFIG_OUTSIDE } else { name };
        let path = self.folder.join(name);
        let mut file = self.make(&path)?;
        file.write_all(&text).map_err(|error| Error::File(path, error))
    }

    fn rows(&mut self, piece: Vec<u8>) -> Result<u64, Error> {
        self.look(piece.len() as u64)?;
        self.copy.put(piece).map_err(bad_piece)
    }

    fn media(&mut self, hash: &str, input: &mut dyn Read) -> Result<(), Error> {
        let path = self.folder.join(MEDIA).join(&hash[..2]).join(hash);
        let mut file = self.make(&path)?;
        let mut piece = vec![0; 64 << 10];
        loop {
            let read = input.read(&mut piece).map_err(|error| Error::File(path.clone(), error))?;
            if read == 0 {
                return Ok(());
            }
            file.write_all(&piece[..read]).map_err(|error| Error::File(path.clone(), error))?;
            self.look(read as u64)?;
        }
    }
}

/// The part of a backup that is read at once on a board with such a budget.
pub fn piece_bytes_max(config: &Config) -> Result<u64, Failed> {
    let budget = Budget::from_profile(profile(config)?);
    Ok(backup::piece_bytes_max(budget.account("backup").limit()))
}

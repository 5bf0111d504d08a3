//! Making one backup, in steps of at most a piece each.
//!
//! Order: keys and settings, the rows out of one snapshot, then, without it, the media files as they are, the list, and last
//! everything written is read back. An interrupted one leaves what is written under its name: the next finds it there.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::archive::Archive;
use super::folder::{Folder, Seal};
use super::list::{Entry, FILE_BYTES_MAX, Head, Kind, NO_FILES, end_line, is_file_name, unhex};
use super::seal::{SEAL_BYTES, To};
use super::{Error, LEVEL, Media, Parts, Progress, Stage, Stored, at};
use crate::store::copy::{Copied, CopyOut, PIECE_BYTES_MAX};
use crate::store::tables::media;

/// The memory of a step: a piece, the same packed with what zstd needs for it (some 200 KiB), and the sealing.
pub const STEP_BYTES: u64 = 3 * PIECE_BYTES_MAX as u64 + SEAL_BYTES;
/// Of a media file in one step.
const MEDIA_STEP: usize = PIECE_BYTES_MAX;
/// Media ids looked up in one step.
const LOOKED_AT: usize = 100;
/// Files of the data folder besides the database and media.
const FILES_MAX: usize = 256;
/// Of what is left out as many are named in the log.
const LEFT_OUT_NAMED: usize = 20;
/// While the rows are copied the database may grow by a quarter, or by this if that is more; then the backup is given up, so that a
/// slow target does not fill the disk. What it wrote shortens the next try.
const GROWTH_BYTES_MIN: u64 = 64 << 20;

/// Where it is written.
pub enum Target {
    Folder(Folder),
    Archive(Archive),
}

/// What to do next.
pub enum Step {
    /// Call again, with the memory of a step.
    Again,
    /// The next row needs so much.
    Needs(u64),
    Over(Stored),
}

pub struct Run {
    parts: Arc<Parts>,
    target: Target,
    head: Head,
    stage: Stage,
    files: Vec<String>,
    rows: Option<CopyOut>,
    rows_grown_max: u64,
    pieces: u64,
    media_after: String,
    media_next: Vec<String>,
    sending: Option<Sending>,
    /// The lines of the list, in a file without a name.
    lines: File,
    hash: Sha256,
    entries: u64,
    /// What was written: path and hash, a line each, to read back.
    written: File,
    checked: Option<io::BufReader<File>>,
    checking: Option<(File, Stored, Sha256)>,
    list: Option<Stored>,
    pub progress: Progress,
}

/// A media file on its way.
struct Sending {
    file: File,
    entry: Entry,
    hash: Sha256,
    /// An archive has no way back: the file is looked at first.
    is_look: bool,
}

impl Run {
    /// Begins. Takes the snapshot.
    pub fn begin(
        parts: Arc<Parts>,
        kept: Media,
        target: Target,
        seal: Option<Seal>,
        now_ms: u64,
    ) -> Result<Run, Error> {
        let rows = parts.store.copy_out()?;
        let head = Head {
            server: parts.server.clone(),
            made_ms: now_ms,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            format: rows.format()?,
            media: kept,
            rows: rows.rows()?,
            names: seal.map(|seal| seal.names),
        };
        let used = media::used(&parts.store.read()?)?;
        let media_bytes = match kept {
            Media::None => 0,
            Media::Own => used.local,
            Media::All => used.all,
        };
        let scratch = &parts.scratch;
        fs::create_dir_all(scratch).map_err(at(scratch))?;
        let lines = crate::budget::spill::nameless(scratch).map_err(at(scratch))?;
        let written = crate::budget::spill::nameless(scratch).map_err(at(scratch))?;
        let length = parts.store.file_bytes();
        let (files, left_out) = files(&parts.folder)?;
        if !left_out.is_empty() {
            let named = left_out[..left_out.len().min(LEFT_OUT_NAMED)].join(", ");
            tracing::warn!(
                "{} things in the data folder are too deep, too many or have names that no backup takes: {named}",
                left_out.len()
            );
        }
        let left_out = left_out.len() as u64;
        let mut run = Run {
            progress: Progress { rows: head.rows, media_bytes, left_out, ..Progress::default() },
            target,
            stage: Stage::Files,
            files,
            rows: Some(rows),
            rows_grown_max: length + GROWTH_BYTES_MIN.max(length / 4),
            pieces: 0,
            media_after: String::new(),
            media_next: Vec::new(),
            sending: None,
            lines,
            hash: Sha256::new(),
            entries: 0,
            written,
            checked: None,
            checking: None,
            list: None,
            head,
            parts,
        };
        let head = run.head.text();
        run.hash.update(&head);
        run.lines.write_all(head.as_bytes()).map_err(at(&run.parts.scratch))?;
        if let Target::Archive(archive) = &mut run.target {
            let written = archive
                .begin_named("head", head.len() as u64)
                .and_then(|()| archive.write(head.as_bytes()))
                .and_then(|()| archive.end())
                .and_then(|()| archive.rest());
            written.map_err(Error::Io)?;
        }
        Ok(run)
    }

    /// One step, in memory of `bytes`. Behind it the run holds little: of a sealed file the piece that was begun, 64 KiB.
    pub fn step(&mut self, bytes: u64) -> Result<Step, Error> {
        let done = self.next(bytes)?;
        if let Target::Archive(archive) = &mut self.target {
            archive.rest().map_err(Error::Io)?;
        }
        Ok(done)
    }

    fn next(&mut self, bytes: u64) -> Result<Step, Error> {
        self.progress.stage = self.stage;
        match self.stage {
            Stage::Files => self.file()?,
            Stage::Rows => return self.piece(bytes),
            Stage::Media => self.media()?,
            Stage::List => self.finish()?,
            Stage::Check => {
                if self.check()? {
                    let list = self.list.take().ok_or_else(|| Error::Bad("its list was not written".to_owned()))?;
                    return Ok(Step::Over(list));
                }
            }
        }
        Ok(Step::Again)
    }

    pub fn made_ms(&self) -> u64 {
        self.head.made_ms
    }

    /// Removes what is old, once everything is there.
    pub fn expire(&self, before_ms: u64) -> Result<u64, Error> {
        match &self.target {
            Target::Folder(folder) => folder.expire(before_ms),
            Target::Archive(_) => Ok(0),
        }
    }

    fn file(&mut self) -> Result<(), Error> {
        let Some(name) = self.files.pop() else {
            self.stage = Stage::Rows;
            return Ok(());
        };
        let path = match name.as_str() {
            OUTSIDE => self.parts.config_outside.clone().unwrap_or_default(),
            name => self.parts.folder.join(name),
        };
        let mut text = Vec::new();
        match File::open(&path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut text)) {
            Err(failed) if failed.kind() == io::ErrorKind::NotFound => return Ok(()),
            read => read.map_err(at(&path))?,
        };
        if text.len() as u64 > FILE_BYTES_MAX {
            tracing::warn!("{} is longer than a file of the data folder may be in a backup", path.display());
            self.progress.left_out += 1;
            return Ok(());
        }
        let entry = Entry { kind: Kind::File, name, hash: Sha256::digest(&text).into(), bytes: text.len() as u64 };
        self.put(entry, &text)
    }

    /// The next piece of the rows.
    fn piece(&mut self, bytes: u64) -> Result<Step, Error> {
        let Some(rows) = &mut self.rows else {
            self.stage = Stage::Media;
            return Ok(Step::Again);
        };
        if self.parts.store.file_bytes() > self.rows_grown_max {
            return Err(Error::Grew);
        }
        if self.parts.store.check_spare().is_err() {
            return Err(Error::Low);
        }
        let most = (bytes.saturating_sub(SEAL_BYTES) / 3) as usize;
        let (piece, count) = match rows.next(most.max(PIECE_BYTES_MAX))? {
            Copied::Long(row) => return Ok(Step::Needs(3 * row + SEAL_BYTES + 4096)),
            Copied::Piece { bytes, rows } => (bytes, rows),
            Copied::End => {
                // The snapshot ends here: pages are used again from now on.
                self.rows = None;
                return Ok(Step::Again);
            }
        };
        self.pieces += 1;
        let (name, hash) = (format!("{:06}", self.pieces), Sha256::digest(&piece).into());
        self.put(Entry { kind: Kind::Rows, name, hash, bytes: piece.len() as u64 }, &piece)?;
        self.progress.rows_done += count;
        Ok(Step::Again)
    }

    /// Writes a thing that is in memory, unless it is there.
    fn put(&mut self, entry: Entry, bytes: &[u8]) -> Result<(), Error> {
        match &mut self.target {
            Target::Folder(folder) if folder.has(&entry) => {}
            Target::Folder(folder) => {
                let written = (|| {
                    folder.begin(&entry)?;
                    match entry.kind {
                        Kind::Rows => folder.write(&zstd::bulk::compress(bytes, LEVEL)?)?,
                        _ => folder.write(bytes)?,
                    }
                    folder.end()
                })();
                let stored = written.map_err(Error::Io)?;
                self.note_written(&stored)?;
            }
            Target::Archive(archive) => {
                let written = archive.begin_entry(&entry).and_then(|()| archive.write(bytes));
                written.and_then(|()| archive.end()).map_err(Error::Io)?;
            }
        }
        self.note(&entry)
    }

    fn note(&mut self, entry: &Entry) -> Result<(), Error> {
        let line = entry.line();
        self.hash.update(&line);
        self.entries += 1;
        self.progress.bytes += entry.bytes;
        self.lines.write_all(line.as_bytes()).map_err(at(&self.parts.scratch))
    }

    fn note_written(&mut self, stored: &Stored) -> Result<(), Error> {
        self.progress.written_bytes += stored.bytes;
        let line = format!("{} {} {}\n", super::list::hex(&stored.hash), stored.bytes, stored.path.display());
        self.written.write_all(line.as_bytes()).map_err(at(&self.parts.scratch))
    }

    fn media(&mut self) -> Result<(), Error> {
        if self.sending.is_some() {
            return self.send();
        }
        if let Some(hash) = self.media_next.pop() {
            return self.begin_media(&hash);
        }
        let (read, after) = (self.parts.store.read()?, &self.media_after);
        let (next, last) = match self.head.media {
            Media::None => (Vec::new(), None),
            Media::All => {
                let files = media::files_after(&read, after, LOOKED_AT)?;
                let last = files.last().cloned();
                (files, last)
            }
            Media::Own => {
                let rows = media::of_server(&read, &self.parts.server, after, LOOKED_AT)?;
                let last = rows.last().map(|(id, _)| id.clone());
                let own = rows.into_iter().filter(|(_, row)| row.uploader.is_some());
                (own.map(|(_, row)| row.file).collect(), last)
            }
        };
        match last {
            Some(last) => (self.media_next, self.media_after) = (next, last),
            None => self.stage = Stage::List,
        }
        Ok(())
    }

    fn begin_media(&mut self, hash: &str) -> Result<(), Error> {
        let Some(named) = unhex(hash) else { return Ok(()) };
        let path = self.parts.media.join(&hash[..2]).join(hash);
        let file = match File::open(&path) {
            Ok(file) => file,
            // Removed a moment ago.
            Err(failed) if failed.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(failed) => return Err(at(&path)(failed)),
        };
        let bytes = file.metadata().map_err(at(&path))?.len();
        let entry = Entry { kind: Kind::Media, name: String::new(), hash: named, bytes };
        let is_look = match &mut self.target {
            Target::Folder(folder) if folder.has(&entry) => {
                self.progress.media_done += bytes;
                return self.note(&entry);
            }
            Target::Folder(folder) => {
                folder.begin(&entry).map_err(Error::Io)?;
                false
            }
            Target::Archive(_) => true,
        };
        self.sending = Some(Sending { file, entry, hash: Sha256::new(), is_look });
        Ok(())
    }

    fn send(&mut self) -> Result<(), Error> {
        let Some(mut sending) = self.sending.take() else { return Ok(()) };
        // All of it at once: a buffer that grows would be twice as long in the end.
        let mut piece = Vec::with_capacity(MEDIA_STEP);
        (&sending.file).take(MEDIA_STEP as u64).read_to_end(&mut piece)?;
        sending.hash.update(&piece);
        if !piece.is_empty() {
            if !sending.is_look {
                self.progress.media_done += piece.len() as u64;
                match &mut self.target {
                    Target::Folder(folder) => folder.write(&piece).map_err(Error::Io)?,
                    Target::Archive(archive) => archive.write(&piece).map_err(Error::Io)?,
                }
            }
            self.sending = Some(sending);
            return Ok(());
        }
        let hash: [u8; 32] = std::mem::take(&mut sending.hash).finalize().into();
        let is_whole = hash == sending.entry.hash;
        if !is_whole {
            tracing::warn!(
                "the media file {} is not what was stored; it is left out of the backup",
                super::list::hex(&sending.entry.hash)
            );
            self.progress.damaged += 1;
        }
        match &mut self.target {
            Target::Folder(folder) if is_whole => {
                let stored = folder.end().map_err(Error::Io)?;
                self.note_written(&stored)?;
                self.note(&sending.entry)
            }
            Target::Folder(folder) => Ok(folder.give_up()),
            Target::Archive(_) if sending.is_look && !is_whole => Ok(()),
            Target::Archive(archive) if sending.is_look => {
                sending.file.rewind()?;
                archive.begin_entry(&sending.entry).map_err(Error::Io)?;
                sending.is_look = false;
                self.sending = Some(sending);
                Ok(())
            }
            Target::Archive(archive) if is_whole => {
                archive.end().map_err(Error::Io)?;
                self.note(&sending.entry)
            }
            Target::Archive(_) => Err(Error::Bad("a media file changed while it was copied".to_owned())),
        }
    }

    fn finish(&mut self) -> Result<(), Error> {
        let end = end_line(self.entries, self.hash.clone());
        self.lines.write_all(end.as_bytes()).map_err(at(&self.parts.scratch))?;
        let bytes = self.lines.stream_position()?;
        self.lines.rewind()?;
        let stored = match &mut self.target {
            Target::Folder(folder) => folder.finish(self.head.made_ms, &mut self.lines)?,
            Target::Archive(archive) => {
                archive.begin_named("list", bytes).map_err(Error::Io)?;
                super::folder::copy(&mut self.lines, &mut |piece| archive.write(piece)).map_err(Error::Io)?;
                archive.end().map_err(Error::Io)?;
                archive.finish()?
            }
        };
        self.note_written(&stored)?;
        self.list = Some(stored);
        self.stage = Stage::Check;
        self.written.rewind()?;
        self.checked = Some(io::BufReader::with_capacity(4096, self.written.try_clone()?));
        Ok(())
    }

    /// Reads back what was written. True when all of it is as it should be.
    fn check(&mut self) -> Result<bool, Error> {
        let Some((file, stored, mut hash)) = self.checking.take() else {
            let mut line = String::new();
            let Some(lines) = &mut self.checked else { return Ok(true) };
            io::BufRead::read_line(lines, &mut line)?;
            if line.is_empty() {
                return Ok(true);
            }
            let damaged = || Error::Bad("the notes of the backup are damaged".to_owned());
            let mut words = line.trim_end_matches('\n').splitn(3, ' ');
            let hash = words.next().and_then(unhex).ok_or_else(damaged)?;
            let bytes = words.next().and_then(|bytes| bytes.parse().ok()).ok_or_else(damaged)?;
            let path = PathBuf::from(words.next().ok_or_else(damaged)?);
            let file = File::open(&path).map_err(at(&path))?;
            // What is in memory would only tell what was written, not what is on the disk.
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
            self.checking = Some((file, Stored { path, hash, bytes }, Sha256::new()));
            return Ok(false);
        };
        let mut piece = Vec::with_capacity(MEDIA_STEP);
        (&file).take(MEDIA_STEP as u64).read_to_end(&mut piece).map_err(at(&stored.path))?;
        hash.update(&piece);
        self.progress.checked_bytes += piece.len() as u64;
        if !piece.is_empty() {
            self.checking = Some((file, stored, hash));
            return Ok(false);
        }
        if <[u8; 32]>::from(hash.finalize()) != stored.hash {
            // Not there for the next backup either.
            let _ = fs::remove_file(&stored.path);
            return Err(Error::Bad(format!(
                "{} is not what was written a moment ago: the disk of the backup is failing",
                stored.path.display()
            )));
        }
        Ok(false)
    }
}

/// The name under which a config file outside of the data folder is in a backup.
pub const OUTSIDE: &str = "config-outside.toml";

/// The small files of the data folder and its own small folders, such as keys and settings, also where a link leads to them; and
/// the names of what is left out. A folder that cannot be looked into is an error: its keys would be missing.
fn files(folder: &Path) -> Result<(Vec<String>, Vec<String>), Error> {
    let (mut found, mut left_out) = (vec![OUTSIDE.to_owned()], Vec::new());
    let mut folders = vec![String::new()];
    while let Some(inside) = folders.pop() {
        let place = folder.join(&inside);
        for entry in fs::read_dir(&place).map_err(at(&place))? {
            let entry = entry.map_err(at(&place))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if inside.is_empty() { name } else { format!("{inside}/{name}") };
            if is_aside(&path) {
                continue;
            }
            let kind = match fs::metadata(entry.path()) {
                // Removed a moment ago, or a link that leads nowhere.
                Err(failed) if failed.kind() == io::ErrorKind::NotFound => continue,
                kind => kind.map_err(at(&entry.path()))?,
            };
            let fits = is_file_name(&path) && found.len() + folders.len() < FILES_MAX;
            if kind.is_dir() && fits && path.matches('/').count() < 2 {
                folders.push(path);
            } else if kind.is_file() && fits {
                found.push(path);
            } else if (kind.is_dir() || kind.is_file()) && left_out.len() < FILES_MAX {
                left_out.push(path);
            }
        }
    }
    Ok((found, left_out))
}

/// What a backup has elsewhere, what is hidden or half written, and the folder that a file system has for itself.
fn is_aside(path: &str) -> bool {
    let first = path.split(['/', '.']).next().unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    NO_FILES.contains(&first)
        || last == "lost+found"
        || last.starts_with('.')
        || last.ends_with(".new")
        || last.ends_with(".part")
}

/// Who a file is sealed to, as a whole archive.
pub fn to_of(seal: Option<&Seal>, passphrase: Option<String>) -> Option<To> {
    passphrase.map(To::Passphrase).or_else(|| seal.map(|seal| To::Recipient(seal.recipient)))
}

//! Reading a backup, from a folder or one file: everything is compared with the list, and handed on only as what it must be.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::archive::Reader;
use super::folder::{self, Found};
use super::list::{Entry, FILE_BYTES_MAX, Head, Kind, Lines, end_line, hash_of, hex, is_file_name, unhex};
use super::seal::{Input, Key};
use super::{Error, Progress, Stage, at};
use crate::store::copy::{BadPiece, Order, each_row};

const TOO_LONG: &str =
    "it has a row that is longer than the memory budget has room for: name a larger one with --budget";

/// A backup.
pub struct Source {
    pub path: PathBuf,
    /// Which one of a folder; none for the newest.
    pub stamp: Option<String>,
    pub key: Option<Key>,
    /// The longest piece that is read ([`super::piece_bytes_max`]).
    pub piece_bytes_max: u64,
}

/// Takes what a backup has, in its order: head, files and rows, media.
pub trait Sink {
    fn head(&mut self, head: &Head) -> Result<(), Error>;
    fn file(&mut self, name: &str, text: Vec<u8>) -> Result<(), Error>;
    /// The rows of a piece, whose SHA-256 was compared already.
    fn rows(&mut self, piece: Vec<u8>) -> Result<u64, Error>;
    /// A media file; what it brings is believed only when this returned and no error follows.
    fn media(&mut self, hash: &str, input: &mut dyn Read) -> Result<(), Error>;
}

impl Source {
    /// Whether it needs a key.
    pub fn is_sealed(&self) -> Result<bool, Error> {
        match self.path.is_dir() {
            true => Ok(self.found()?.is_sealed),
            false => {
                let mut begin = [0; 4];
                let read = File::open(&self.path).and_then(|mut file| file.read_exact(&mut begin));
                read.map_err(at(&self.path))?;
                Ok(&begin == b"age-")
            }
        }
    }

    fn found(&self) -> Result<Found, Error> {
        let all = folder::list(&self.path)?;
        let found = match &self.stamp {
            Some(stamp) => all.into_iter().find(|one| one.stamp == *stamp),
            None => all.into_iter().next_back(),
        };
        found.ok_or_else(|| match &self.stamp {
            Some(stamp) => Error::Bad(format!("there is no backup {stamp} in {}", self.path.display())),
            None => Error::Bad(format!("there is no backup in {}", self.path.display())),
        })
    }

    /// Reads all of it. `tell` is called now and then.
    pub fn read(&self, sink: &mut dyn Sink, tell: &mut dyn FnMut(&Progress)) -> Result<(Head, Progress), Error> {
        match self.path.is_dir() {
            true => self.read_folder(sink, tell, None),
            false => self.read_archive(sink, tell),
        }
    }

    /// Reads all of a folder's backup, past what is damaged or [`Error::Unusable`]: those things are told to `bad`.
    pub fn survey(
        &self,
        tell: &mut dyn FnMut(&Progress),
        bad: &mut dyn FnMut(&Head, &Entry, Error),
    ) -> Result<(Head, Progress), Error> {
        match self.path.is_dir() {
            true => self.read_folder(&mut Looking::default(), tell, Some(bad)),
            false => self.read_archive(&mut Looking::default(), tell),
        }
    }

    fn read_folder(
        &self,
        sink: &mut dyn Sink,
        tell: &mut dyn FnMut(&Progress),
        mut bad: Option<&mut dyn FnMut(&Head, &Entry, Error)>,
    ) -> Result<(Head, Progress), Error> {
        let (root, found, key) = (&self.path, self.found()?, self.key.as_ref());
        let mut progress = Progress::default();
        // Once for whether it is whole, before anything is done.
        let (mut lines, _) = Lines::begin(folder::open_list(root, &found, key)?)?;
        while let Some(entry) = lines.next()? {
            let bytes = if entry.kind == Kind::Media { entry.bytes } else { 0 };
            progress.media_bytes = progress.media_bytes.saturating_add(bytes);
        }
        let (mut lines, head) = Lines::begin(folder::open_list(root, &found, key)?)?;
        progress.rows = head.rows;
        sink.head(&head)?;
        let mut taking = Taking { sink, progress, pieces: 0, piece_bytes_max: self.piece_bytes_max };
        while let Some(entry) = lines.next()? {
            let taken = folder::open_entry(root, &head, &entry, key).and_then(|mut input| {
                let is_packed = entry.kind == Kind::Rows;
                taking.take(&entry, &mut input, is_packed)
            });
            match (taken, &mut bad) {
                (Err(failed), Some(bad)) if !matches!(failed, Error::Store(_)) => {
                    if entry.kind == Kind::Rows {
                        // What follows a bad piece is not bad for that.
                        taking.pieces = entry.name.parse().unwrap_or(taking.pieces);
                    }
                    bad(&head, &entry, named(&entry, failed));
                }
                (taken, _) => taken.map_err(|failed| named(&entry, failed))?,
            }
            tell(&taking.progress);
        }
        Ok((head, taking.progress))
    }

    fn read_archive(&self, sink: &mut dyn Sink, tell: &mut dyn FnMut(&Progress)) -> Result<(Head, Progress), Error> {
        let file = File::open(&self.path).map_err(at(&self.path))?;
        let input = match (self.is_sealed()?, &self.key) {
            (false, _) => Input::plain(file),
            (true, Some(key)) => Input::sealed(file, key).map_err(at(&self.path))?,
            (true, None) => return Err(Error::Sealed),
        };
        let mut reader = Reader::begin(input).map_err(at(&self.path))?;
        let wrong = || Error::Bad("it is damaged, or was not made by `snug backup`".to_owned());
        let text_max = 16 << 10;
        let head = match reader.next()? {
            Some((name, bytes)) if name == "head" && bytes <= text_max => {
                let mut text = String::new();
                reader.read_to_string(&mut text).map_err(|_| wrong())?;
                text
            }
            _ => return Err(wrong()),
        };
        let (mut hash, mut entries) = (Sha256::new(), 0u64);
        hash.update(&head);
        // The list at the end has every line that its things make.
        let mut whole = Sha256::new();
        whole.update(&head);
        let head = Head::parse(&head)?;
        sink.head(&head)?;
        let progress = Progress { rows: head.rows, ..Progress::default() };
        let mut taking = Taking { sink, progress, pieces: 0, piece_bytes_max: self.piece_bytes_max };
        loop {
            let (name, bytes) = reader.next()?.ok_or_else(|| Error::Bad("it is not whole".to_owned()))?;
            if name == "list" {
                break;
            }
            let mut entry = entry_of(&name, bytes).ok_or_else(wrong)?;
            match entry.kind {
                // Its hash is known once it was read; the list says later whether it is the right one.
                Kind::File | Kind::Rows => {
                    let most = if entry.kind == Kind::File { FILE_BYTES_MAX } else { self.piece_bytes_max };
                    if bytes > most {
                        return Err(named(&entry, Error::Unusable(TOO_LONG.to_owned())));
                    }
                    let mut text = Vec::with_capacity(bytes as usize);
                    reader.read_to_end(&mut text).map_err(|failed| Error::Bad(format!("it is damaged: {failed}")))?;
                    entry.hash = Sha256::digest(&text).into();
                    taking.taken(&entry, text).map_err(|failed| named(&entry, failed))?;
                }
                Kind::Media => taking.take(&entry, &mut reader, false).map_err(|failed| named(&entry, failed))?,
            }
            let line = entry.line();
            hash.update(&line);
            whole.update(&line);
            entries += 1;
            tell(&taking.progress);
        }
        whole.update(end_line(entries, hash));
        let (found, _) = hash_of(&mut reader).map_err(|failed| Error::Bad(format!("it is damaged: {failed}")))?;
        if found != <[u8; 32]>::from(whole.finalize()) {
            return Err(Error::Bad("it has other things in it than its list says".to_owned()));
        }
        match reader.next()? {
            None => Ok((head, taking.progress)),
            Some(_) => Err(wrong()),
        }
    }
}

fn named(entry: &Entry, failed: Error) -> Error {
    let what = match entry.kind {
        Kind::File => format!("the file {}", entry.name),
        Kind::Rows => format!("piece {} of the database", entry.name),
        Kind::Media => format!("the media file {}", hex(&entry.hash)),
    };
    match failed {
        Error::Bad(why) => Error::Bad(format!("{what}: {why}")),
        Error::Unusable(why) => Error::Unusable(format!("{what}: {why}")),
        Error::Io(why) | Error::File(_, why) if why.kind() == io::ErrorKind::UnexpectedEof => {
            Error::Bad(format!("{what}: its end is missing"))
        }
        Error::Io(why) | Error::File(_, why) if why.kind() == io::ErrorKind::InvalidData => {
            Error::Bad(format!("{what}: {why}"))
        }
        other => other,
    }
}

/// What a name in an archive is.
fn entry_of(name: &str, bytes: u64) -> Option<Entry> {
    let (kind, rest) = name.split_once('/')?;
    let entry = |kind, name: &str, hash| Some(Entry { kind, name: name.to_owned(), hash, bytes });
    match kind {
        "files" if is_file_name(rest) => entry(Kind::File, rest, [0; 32]),
        "rows" if rest.len() >= 6 && rest.bytes().all(|byte| byte.is_ascii_digit()) => entry(Kind::Rows, rest, [0; 32]),
        "media" => {
            let (folder, hash) = rest.split_once('/')?;
            let bytes = unhex(hash)?;
            if hash.starts_with(folder) { entry(Kind::Media, "", bytes) } else { None }
        }
        _ => None,
    }
}

struct Taking<'s> {
    sink: &'s mut dyn Sink,
    progress: Progress,
    pieces: u64,
    piece_bytes_max: u64,
}

impl Taking<'_> {
    fn take(&mut self, entry: &Entry, input: &mut dyn Read, is_packed: bool) -> Result<(), Error> {
        if entry.kind == Kind::Media {
            self.progress.stage = Stage::Media;
            // No further than it was long: what is there now may have no end.
            let input = &mut input.take(entry.bytes.saturating_add(1));
            let mut hashed = Hashed { input, hash: Sha256::new(), bytes: 0 };
            self.sink.media(&hex(&entry.hash), &mut hashed)?;
            io::copy(&mut hashed, &mut io::sink())?;
            self.progress.media_done += hashed.bytes;
            return same(entry, hashed.hash.finalize().into(), hashed.bytes);
        }
        let most = if entry.kind == Kind::File { FILE_BYTES_MAX } else { self.piece_bytes_max };
        if entry.bytes > most {
            return Err(Error::Unusable(TOO_LONG.to_owned()));
        }
        // What is packed is at most a little longer than what it unpacks to.
        let packed_max = entry.bytes + entry.bytes / 128 + 1024;
        let mut text = Vec::with_capacity(packed_max as usize);
        input.take(packed_max).read_to_end(&mut text)?;
        if is_packed {
            let unpacked = zstd::bulk::decompress(&text, entry.bytes as usize);
            text = unpacked.map_err(|failed| Error::Bad(format!("it cannot be unpacked: {failed}")))?;
        }
        same(entry, Sha256::digest(&text).into(), text.len() as u64)?;
        self.taken(entry, text)
    }

    fn taken(&mut self, entry: &Entry, text: Vec<u8>) -> Result<(), Error> {
        match entry.kind {
            Kind::File => self.sink.file(&entry.name, text),
            _ => {
                self.progress.stage = Stage::Rows;
                self.pieces += 1;
                if entry.name.parse() != Ok(self.pieces) {
                    return Err(Error::Bad("a piece before it is missing".to_owned()));
                }
                self.progress.rows_done += self.sink.rows(text)?;
                Ok(())
            }
        }
    }
}

fn same(entry: &Entry, hash: [u8; 32], bytes: u64) -> Result<(), Error> {
    match (hash, bytes) == (entry.hash, entry.bytes) {
        true => Ok(()),
        false => Err(Error::Bad("it is damaged: it has another SHA-256 than when it was written".to_owned())),
    }
}

struct Hashed<'i> {
    input: &'i mut dyn Read,
    hash: Sha256,
    bytes: u64,
}

impl Read for Hashed<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(out)?;
        self.hash.update(&out[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

/// Looks at everything and keeps nothing.
#[derive(Default)]
pub struct Looking {
    order: Order,
}

impl Sink for Looking {
    fn head(&mut self, _: &Head) -> Result<(), Error> {
        Ok(())
    }

    fn file(&mut self, _: &str, _: Vec<u8>) -> Result<(), Error> {
        Ok(())
    }

    fn rows(&mut self, piece: Vec<u8>) -> Result<u64, Error> {
        let rows = each_row(&piece, &mut |table, key, _| self.order.check(table, key));
        rows.map_err(bad_piece)
    }

    fn media(&mut self, _: &str, _: &mut dyn Read) -> Result<(), Error> {
        Ok(())
    }
}

pub fn bad_piece(bad: BadPiece) -> Error {
    match bad {
        BadPiece::Store(failed) => Error::Store(failed),
        other => Error::Unusable(other.to_string()),
    }
}

/// What a path of a passphrase or key gives.
pub fn identity_file(path: &Path) -> Result<Key, Error> {
    let mut text = String::new();
    let file = File::open(path).map_err(at(path))?;
    file.take(4096).read_to_string(&mut text).map_err(at(path))?;
    let identity = super::seal::Identity::parse(&text);
    identity.map(Key::Identity).ok_or_else(|| Error::Bad(format!("{} has no identity of age in it", path.display())))
}

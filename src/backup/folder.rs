//! A folder of backups: each thing once, under a name that follows from what it is, and a list for each backup.
//!
//! ```text
//! 2026-11-30T002517Z.list    what is in that backup; `.list.age` when sealed, with the names alone in `.names`
//! files/ab/abcd…             keys and settings
//! rows/ab/abcd….zst          pieces of the database
//! media/ab/abcd…             media files
//! identity.age               what opens the others, sealed to a passphrase, when there is one
//! ```
//! The name is the SHA-256 of the thing; of a sealed one it is keyed, so that whoever keeps the folder cannot tell which
//! known files are in it. A thing gets its name when all of it is on the disk, so what is there is whole; a list is written
//! last.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ring::hmac;
use sha2::{Digest, Sha256};

use super::list::{Entry, Head, Kind, LINE_BYTES_MAX, Lines, end_line, hex};
use super::seal::{Identity, Input, Key, Output, Recipient, To, mode};
use super::{Error, Stored, at};
use crate::base::{Random, open_file, sort_few, timestamp};

const INCOMING: &str = "incoming";
/// Letters and digits of a name in there.
const INCOMING_CHARS: usize = 16;
const LOCK: &str = "lock";
const IDENTITY: &str = "identity.age";
const LIST: &str = ".list";
const SEALED: &str = ".age";
const NAMES: &str = ".names";

/// A bit for each name that some list has, many names to a bit: 2^21 bits in 256 KiB. Of 100,000 names that are in no list about
/// 1,500 are kept by mistake, and other ones the next time.
const FILTER_BITS: u64 = 1 << 21;
pub const FILTER_BYTES: u64 = FILTER_BITS / 8;
const FILTER_HASHES: u32 = 4;

/// How the things of a folder are named and sealed.
#[derive(Clone, Copy)]
pub struct Seal {
    pub recipient: Recipient,
    /// What names are keyed with.
    pub names: [u8; 32],
}

/// A folder that a backup is written to.
pub struct Folder {
    root: PathBuf,
    seal: Option<Seal>,
    random: Random,
    writing: Option<Writing>,
    /// Held while it is written to.
    _lock: File,
}

struct Writing {
    out: Output,
    path: PathBuf,
    place: PathBuf,
}

/// A backup in a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// When it was made, as its name tells: `2026-11-30T002517Z`.
    pub stamp: String,
    pub is_sealed: bool,
}

impl Folder {
    /// Makes the folder, and claims it. What an interrupted backup left half is removed.
    pub fn open(root: &Path, seal: Option<Seal>, random: &Random) -> Result<Folder, Error> {
        let incoming = root.join(INCOMING);
        fs::create_dir_all(root).map_err(at(root))?;
        let path = root.join(LOCK);
        let lock = File::options().write(true).create(true).truncate(false).open(&path).map_err(at(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(Error::Busy(root.to_owned())),
            // A file system without locks, such as some network folders.
            Err(fs::TryLockError::Error(_)) => {}
        }
        fs::create_dir_all(&incoming).map_err(at(&incoming))?;
        remove_halves(&incoming).map_err(at(&incoming))?;
        Ok(Folder { root: root.to_owned(), seal, random: random.clone(), writing: None, _lock: lock })
    }

    /// Whether a thing is there already. Of a file that is not packed the length tells too.
    pub fn has(&self, entry: &Entry) -> bool {
        let found = fs::metadata(place(&self.root, self.seal.map(|seal| seal.names).as_ref(), entry));
        found.is_ok_and(|found| match (entry.kind, self.seal) {
            (Kind::Rows, _) | (_, Some(_)) => found.len() > 0,
            _ => found.len() == entry.bytes,
        })
    }

    pub fn begin(&mut self, entry: &Entry) -> io::Result<()> {
        let place = place(&self.root, self.seal.map(|seal| seal.names).as_ref(), entry);
        self.begin_at(place)
    }

    fn begin_at(&mut self, place: PathBuf) -> io::Result<()> {
        let path = self.root.join(INCOMING).join(self.random.token(INCOMING_CHARS));
        let to = self.seal.map(|seal| To::Recipient(seal.recipient));
        let file = File::options().write(true).create_new(true).mode(mode(to.as_ref())).open(&path)?;
        self.writing = Some(Writing { out: Output::begin(file, to.as_ref(), &self.random)?, path, place });
        Ok(())
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match &mut self.writing {
            Some(writing) => writing.out.write_all(bytes),
            None => Err(io::Error::other("nothing was begun")),
        }
    }

    /// Gives what was written its name, once it is on the disk.
    pub fn end(&mut self) -> io::Result<Stored> {
        let Some(Writing { out, path, place }) = self.writing.take() else {
            return Err(io::Error::other("nothing was begun"));
        };
        let (hash, bytes) = out.finish()?;
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::rename(path, &place)?;
        Ok(Stored { path: place, hash, bytes })
    }

    /// Forgets what was begun.
    pub fn give_up(&mut self) {
        if let Some(writing) = self.writing.take() {
            let _ = fs::remove_file(writing.path);
        }
    }

    /// Writes the list, out of a file at its beginning; with it the backup is there.
    pub fn finish(&mut self, made_ms: u64, list: &mut File) -> Result<Stored, Error> {
        let root = self.root.clone();
        let synced = File::open(&root).and_then(|root| Ok(rustix::fs::syncfs(&root)?));
        synced.map_err(at(&root))?;
        let stamp = stamp(made_ms);
        if let Some(seal) = self.seal {
            self.write_names(&seal, &stamp, list).map_err(at(&root))?;
            io::Seek::rewind(list).map_err(at(&root))?;
        }
        let name = if self.seal.is_some() { format!("{stamp}{LIST}{SEALED}") } else { format!("{stamp}{LIST}") };
        let written = (|| {
            self.begin_at(root.join(name))?;
            copy(list, &mut |piece| self.write(piece))?;
            let stored = self.end()?;
            File::open(&root)?.sync_all()?;
            Ok(stored)
        })();
        written.map_err(at(&root))
    }

    /// The names of a sealed backup, for those who cannot read its list.
    fn write_names(&self, seal: &Seal, stamp: &str, list: &mut File) -> io::Result<()> {
        let path = self.root.join(INCOMING).join(self.random.token(INCOMING_CHARS));
        let mut out = io::BufWriter::new(File::options().write(true).create_new(true).open(&path)?);
        let (mut lines, _) = Lines::begin(list).map_err(io::Error::other)?;
        let (mut hash, mut names) = (Sha256::new(), 0);
        while let Some(entry) = lines.next().map_err(io::Error::other)? {
            let line = format!("{}\n", place(Path::new(""), Some(&seal.names), &entry).display());
            hash.update(&line);
            names += 1;
            out.write_all(line.as_bytes())?;
        }
        out.write_all(end_line(names, hash).as_bytes())?;
        out.into_inner()?.sync_all()?;
        fs::rename(path, self.root.join(format!("{stamp}{NAMES}")))
    }

    /// Removes backups older than a time, but never the newest, and what no other refers to. Answers how many backups.
    pub fn expire(&self, before_ms: u64) -> Result<u64, Error> {
        let root = &self.root;
        let (oldest, all) = (stamp(before_ms), list(root)?);
        let old: Vec<&Found> = all[..all.len().saturating_sub(1)].iter().filter(|one| one.stamp < oldest).collect();
        for one in &old {
            // The names before the list: nobody would find them without it, were the power cut in between.
            for suffix in [NAMES.to_owned(), format!("{LIST}{SEALED}"), LIST.to_owned()] {
                let path = root.join(format!("{}{suffix}", one.stamp));
                match fs::remove_file(&path) {
                    Err(failed) if failed.kind() != io::ErrorKind::NotFound => return Err(at(&path)(failed)),
                    _ => {}
                }
            }
        }
        if !old.is_empty() {
            self.sweep()?;
        }
        Ok(old.len() as u64)
    }

    /// Removes what no list has.
    fn sweep(&self) -> Result<(), Error> {
        let root = &self.root;
        let mut filter = Filter::new(&self.random);
        for one in list(root)? {
            let add = |path: &str| filter_add(&mut filter, path);
            each_name(root, &one, add)?;
        }
        for kind in [Kind::File, Kind::Rows, Kind::Media] {
            let of_kind = root.join(kind.name());
            let Ok(folders) = fs::read_dir(&of_kind) else { continue };
            for folder in folders {
                let folder = folder.map_err(at(&of_kind))?.path();
                // A disk may have a folder `media` of its owner's: what has no name of ours is not ours to remove.
                if !is_ours(&folder, 2) {
                    continue;
                }
                for file in fs::read_dir(&folder).map_err(at(&folder))? {
                    let path = file.map_err(at(&folder))?.path();
                    if !is_ours(&path, 64) {
                        continue;
                    }
                    let name = path.strip_prefix(root).map(|name| name.display().to_string()).unwrap_or_default();
                    if !filter.has(&name) {
                        fs::remove_file(&path).map_err(at(&path))?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Removes what an interrupted backup left. A disk may have a folder of that name of its owner's: only files with names as ours
/// have them go.
fn remove_halves(incoming: &Path) -> io::Result<()> {
    for file in fs::read_dir(incoming)? {
        let file = file?;
        let name = file.file_name();
        let name = name.as_encoded_bytes();
        let is_ours = name.len() == INCOMING_CHARS && name.iter().all(u8::is_ascii_alphanumeric);
        if is_ours && file.file_type()?.is_file() {
            fs::remove_file(file.path())?;
        }
    }
    Ok(())
}

/// Whether a name begins with so many digits of a hash, behind which is nothing or a suffix.
fn is_ours(path: &Path, digits: usize) -> bool {
    let name = path.file_name().map(|name| name.as_encoded_bytes()).unwrap_or_default();
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    name.iter().take_while(|byte| is_digit(byte)).count() == digits && matches!(name.get(digits), None | Some(b'.'))
}

fn filter_add(filter: &mut Filter, path: &str) {
    filter.add(path);
}

/// Which names were seen, with some that were not.
struct Filter {
    bits: Vec<u8>,
    key: [u8; 16],
}

impl Filter {
    fn new(random: &Random) -> Filter {
        let mut key = [0; 16];
        random.fill(&mut key);
        Filter { bits: vec![0; FILTER_BYTES as usize], key }
    }

    fn places(&self, name: &str) -> impl Iterator<Item = (usize, u8)> + use<> {
        let hash = u128::from_be_bytes(crate::store::hash128(&self.key, &[name.as_bytes()]));
        (0..FILTER_HASHES).map(move |n| {
            let bit = (hash >> (32 * n)) as u64 % FILTER_BITS;
            ((bit / 8) as usize, 1 << (bit % 8))
        })
    }

    fn add(&mut self, name: &str) {
        for (byte, bit) in self.places(name) {
            self.bits[byte] |= bit;
        }
    }

    fn has(&self, name: &str) -> bool {
        self.places(name).all(|(byte, bit)| self.bits[byte] & bit != 0)
    }
}

/// Visits the names, from the folder on, of all things of a backup.
fn each_name(root: &Path, backup: &Found, mut visit: impl FnMut(&str)) -> Result<(), Error> {
    let name = if backup.is_sealed { NAMES } else { LIST };
    let path = root.join(format!("{}{name}", backup.stamp));
    let file = open_file(&path).map_err(at(&path))?;
    if backup.is_sealed {
        // Whoever keeps a sealed backup may have changed them: no line is longer than ours. Names that are missing would be swept
        // away with what no list has, so none is believed without the end.
        let damaged = |why: &str| Error::Bad(format!("{} is damaged: {why}", path.display()));
        let (mut input, mut line) = (BufReader::with_capacity(4096, file), Vec::new());
        let (mut hash, mut names) = (Sha256::new(), 0);
        while input.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line).map_err(at(&path))? > 0 {
            let text = std::str::from_utf8(&line).ok().filter(|text| text.ends_with('\n'));
            let text = text.ok_or_else(|| damaged("it has a line that is no name"))?;
            if text.starts_with("end ") {
                let is_over = input.fill_buf().map_err(at(&path))?.is_empty();
                return match is_over && text == end_line(names, hash) {
                    true => Ok(()),
                    false => Err(damaged("it has another SHA-256 than when it was written")),
                };
            }
            hash.update(text);
            names += 1;
            visit(text.trim_end_matches('\n'));
            line.clear();
        }
        return Err(damaged("its end is missing"));
    }
    let (mut lines, _) = Lines::begin(file)?;
    while let Some(entry) = lines.next()? {
        visit(&place(Path::new(""), None, &entry).display().to_string());
    }
    Ok(())
}

/// Checks of a sealed backup that all its things are there, without what opens them. Answers how many, and their bytes.
pub fn check_names(root: &Path, backup: &Found) -> Result<(u64, u64), Error> {
    let (mut things, mut bytes, mut missing) = (0, 0, None);
    each_name(root, backup, |name| match fs::metadata(root.join(name)) {
        Ok(found) if found.len() > 0 => (things, bytes) = (things + 1, bytes + found.len()),
        _ => drop(missing.get_or_insert_with(|| root.join(name))),
    })?;
    match missing {
        Some(path) => Err(Error::Bad(format!("{} is missing", path.display()))),
        None => Ok((things, bytes)),
    }
}

/// The backups of a folder, the oldest first. At most one for each second, as many as are kept.
pub fn list(root: &Path) -> Result<Vec<Found>, Error> {
    let mut found = Vec::new();
    for file in fs::read_dir(root).map_err(at(root))? {
        let name = file.map_err(at(root))?.file_name();
        let name = name.to_string_lossy();
        let (stamp, is_sealed) = match name.strip_suffix(SEALED) {
            Some(name) => (name.strip_suffix(LIST), true),
            None => (name.strip_suffix(LIST), false),
        };
        found.extend(stamp.filter(|stamp| is_stamp(stamp)).map(|stamp| Found { stamp: stamp.to_owned(), is_sealed }));
    }
    sort_few(&mut found, |one, other| one.stamp.cmp(&other.stamp));
    Ok(found)
}

/// Opens the list of a backup.
pub fn open_list(root: &Path, backup: &Found, key: Option<&Key>) -> Result<Input, Error> {
    let name = if backup.is_sealed { format!("{LIST}{SEALED}") } else { LIST.to_owned() };
    open(&root.join(format!("{}{name}", backup.stamp)), backup.is_sealed, key)
}

/// Opens one thing of a backup.
pub fn open_entry(root: &Path, head: &Head, entry: &Entry, key: Option<&Key>) -> Result<Input, Error> {
    open(&place(root, head.names.as_ref(), entry), head.names.is_some(), key)
}

/// Sets a thing aside that is not what it should be, so that the next backup writes it again.
pub fn set_aside(root: &Path, head: &Head, entry: &Entry) {
    let path = place(root, head.names.as_ref(), entry);
    let mut bad = path.clone().into_os_string();
    bad.push(".bad");
    let _ = fs::rename(path, bad);
}

fn open(path: &Path, is_sealed: bool, key: Option<&Key>) -> Result<Input, Error> {
    let file = open_file(path).map_err(at(path))?;
    match (is_sealed, key) {
        (false, _) => Ok(Input::plain(file)),
        (true, Some(key)) => Input::sealed(file, key).map_err(at(path)),
        (true, None) => Err(Error::Sealed),
    }
}

/// The key that a passphrase opens, made when there is none and `make` says so.
pub fn identity(root: &Path, passphrase: &str, make: Option<&Random>) -> Result<Identity, Error> {
    let path = root.join(IDENTITY);
    let key = Key::Passphrase(passphrase.to_owned());
    let mut text = String::new();
    match (open_file(&path), make) {
        (Ok(file), _) => {
            let mut input = Input::sealed(file, &key).map_err(at(&path))?.take(1024);
            input.read_to_string(&mut text).map_err(at(&path))?;
            Identity::parse(&text).ok_or_else(|| Error::Bad(format!("{} has no key in it", path.display())))
        }
        (Err(failed), Some(random)) if failed.kind() == io::ErrorKind::NotFound => {
            let identity = Identity::new(random);
            let beside = root.join(format!("{IDENTITY}.new"));
            let written = (|| {
                fs::create_dir_all(root)?;
                let to = To::Passphrase(passphrase.to_owned());
                let mut out = Output::begin(File::create(&beside)?, Some(&to), random)?;
                writeln!(out, "# opens this backup\n{}", identity.to_text())?;
                out.finish()?;
                fs::rename(&beside, &path)?;
                File::open(root)?.sync_all()
            })();
            written.map_err(at(&path))?;
            Ok(identity)
        }
        (Err(failed), _) => Err(at(&path)(failed)),
    }
}

/// Whether a passphrase opens what is in the folder.
pub fn has_identity(root: &Path) -> bool {
    root.join(IDENTITY).exists()
}

/// Where a thing is. Nothing of the path is the backup's own text: it is a hash.
fn place(root: &Path, names: Option<&[u8; 32]>, entry: &Entry) -> PathBuf {
    let packed = if entry.kind == Kind::Rows { ".zst" } else { "" };
    let (name, sealed) = match names {
        Some(key) => (hex(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &entry.hash).as_ref()), SEALED),
        None => (hex(&entry.hash), ""),
    };
    root.join(entry.kind.name()).join(&name[..2]).join(format!("{name}{packed}{sealed}"))
}

/// The name of a backup: its time, without what a FAT file system does not take.
pub fn stamp(made_ms: u64) -> String {
    timestamp(made_ms).replace(':', "")
}

/// Whether a text is one that [`stamp`] makes: another file `….list` in the folder is no backup.
fn is_stamp(text: &str) -> bool {
    let form = b"0000-00-00T000000Z";
    let fits = |(byte, form): (u8, &u8)| if *form == b'0' { byte.is_ascii_digit() } else { byte == *form };
    text.len() == form.len() && text.bytes().zip(form).all(fits)
}

pub fn copy(from: &mut dyn Read, to: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut piece = vec![0; 16 << 10];
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(()),
            read => to(&piece[..read])?,
        }
    }
}

//! A backup in one file: a tar, packed with zstd, sealed when asked.
//!
//! ```text
//! snug-backup/head            the head of the list
//! snug-backup/files/…         keys and settings
//! snug-backup/rows/000001 …   pieces of the database, as they are
//! snug-backup/media/ab/abcd…  media files
//! snug-backup/list            what was in it
//! ```
//! `tar --zstd -xf` opens it. It is packed in parts of 128 KiB at most, each by itself, so that neither side holds more; a reader
//! takes parts of 256 KiB and no longer ones, and nothing but plain files.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::list::{Entry, Kind, hex};
use super::seal::{Input, Output, To, mode};
use super::{Error, LEVEL, Stored, at};
use crate::base::Random;

pub const ROOT: &str = "snug-backup/";
const BLOCK: usize = 512;
/// What is packed at once. With the same packed, what zstd needs for it, the sealing, and a piece of 256 KiB that is written it
/// fits a step (`run.rs`).
const PART: usize = 128 << 10;
/// The longest window a reader allows a part, as a power of two: 256 KiB.
const WINDOW_LOG_MAX: u32 = 18;

/// A file that is written.
pub struct Archive {
    path: PathBuf,
    beside: PathBuf,
    out: Option<Output>,
    part: Vec<u8>,
    /// Bytes of the present thing.
    left: u64,
    padding: usize,
}

impl Archive {
    /// Begins the file, under another name until it is whole.
    pub fn begin(path: &Path, to: Option<&To>, random: &Random) -> Result<Archive, Error> {
        if path.exists() {
            return Err(Error::Exists(path.to_owned()));
        }
        let mut beside = path.to_owned().into_os_string();
        beside.push(".part");
        let beside = PathBuf::from(beside);
        let file = File::options().write(true).create(true).truncate(true).mode(mode(to)).open(&beside);
        let out = file.and_then(|file| Output::begin(file, to, random)).map_err(at(&beside))?;
        Ok(Archive { path: path.to_owned(), beside, out: Some(out), part: Vec::new(), left: 0, padding: 0 })
    }

    pub fn begin_entry(&mut self, entry: &Entry) -> io::Result<()> {
        let hash = hex(&entry.hash);
        let name = match entry.kind {
            Kind::Media => format!("{}/{}/{hash}", entry.kind.name(), &hash[..2]),
            _ => format!("{}/{}", entry.kind.name(), entry.name),
        };
        self.begin_named(&name, entry.bytes)
    }

    pub fn begin_named(&mut self, name: &str, bytes: u64) -> io::Result<()> {
        let head = tar_head(&format!("{ROOT}{name}"), bytes)?;
        self.left = bytes;
        self.padding = (BLOCK - (bytes % BLOCK as u64) as usize) % BLOCK;
        self.pack(&head)
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(|| io::Error::other("a file grew"))?;
        self.pack(bytes)
    }

    pub fn end(&mut self) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::Error::other("a file became shorter"));
        }
        self.pack(&[0; BLOCK][..self.padding])
    }

    /// Packs what has come so far, and holds nothing of it: between two steps nobody pays for that.
    pub fn rest(&mut self) -> io::Result<()> {
        let part = std::mem::take(&mut self.part);
        match &mut self.out {
            Some(out) if !part.is_empty() => pack_part(out, &part),
            _ => Ok(()),
        }
    }

    /// Ends the file and gives it its name.
    pub fn finish(&mut self) -> Result<Stored, Error> {
        let Some(mut out) = self.out.take() else { return Err(Error::Bad("it was finished before".to_owned())) };
        let done = (|| {
            self.part.extend_from_slice(&[0; 2 * BLOCK]);
            self.part.chunks(PART).try_for_each(|part| pack_part(&mut out, part))?;
            let (hash, bytes) = out.finish()?;
            fs::rename(&self.beside, &self.path)?;
            let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(folder)?.sync_all()?;
            Ok(Stored { path: self.path.clone(), hash, bytes })
        })();
        done.map_err(at(&self.path))
    }

    fn pack(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let Some(out) = &mut self.out else { return Err(io::Error::other("it was finished before")) };
        if self.part.capacity() == 0 {
            self.part.reserve_exact(PART);
        }
        while !bytes.is_empty() {
            let taken = bytes.len().min(PART - self.part.len());
            self.part.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.part.len() == PART {
                pack_part(out, &self.part)?;
                self.part.clear();
            }
        }
        Ok(())
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        // Not there when it was finished.
        let _ = fs::remove_file(&self.beside);
    }
}

fn pack_part(out: &mut Output, part: &[u8]) -> io::Result<()> {
    out.write_all(&zstd::bulk::compress(part, LEVEL)?)
}

/// A head of the POSIX format "ustar".
fn tar_head(name: &str, bytes: u64) -> io::Result<[u8; BLOCK]> {
    let mut head = [0; BLOCK];
    if name.len() > 100 {
        return Err(io::Error::other(format!("the name {name} is too long for an archive")));
    }
    head[..name.len()].copy_from_slice(name.as_bytes());
    head[100..108].copy_from_slice(b"0000600\0");
    head[108..116].copy_from_slice(b"0000000\0");
    head[116..124].copy_from_slice(b"0000000\0");
    match bytes >> 33 {
        0 => head[124..136].copy_from_slice(format!("{bytes:011o}\0").as_bytes()),
        // GNU's form for large ones.
        _ => {
            head[124] = 0x80;
            head[128..136].copy_from_slice(&bytes.to_be_bytes());
        }
    }
    head[136..148].copy_from_slice(b"00000000000\0");
    head[156] = b'0';
    head[257..265].copy_from_slice(b"ustar\x0000");
    let sum = sum(&head);
    head[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Ok(head)
}

/// The checksum of a head, whose own place counts as blanks.
fn sum(head: &[u8; BLOCK]) -> u32 {
    head.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) }).sum()
}

/// An archive that is read, a thing at a time.
pub struct Reader {
    input: zstd::stream::read::Decoder<'static, io::BufReader<Input>>,
    left: u64,
    padding: u64,
}

impl Reader {
    pub fn begin(input: Input) -> io::Result<Reader> {
        let mut input = zstd::stream::read::Decoder::with_buffer(io::BufReader::with_capacity(16 << 10, input))?;
        input.window_log_max(WINDOW_LOG_MAX)?;
        Ok(Reader { input, left: 0, padding: 0 })
    }

    /// The name and the length of the next thing; none at the end.
    pub fn next(&mut self) -> Result<Option<(String, u64)>, Error> {
        let rest = self.left + self.padding;
        let skipped = io::copy(&mut self.input.by_ref().take(rest), &mut io::sink());
        if skipped.map_err(damaged)? != rest {
            return Err(cut());
        }
        let mut head = [0; BLOCK];
        self.input.read_exact(&mut head).map_err(|failed| match failed.kind() {
            io::ErrorKind::UnexpectedEof => cut(),
            _ => damaged(failed),
        })?;
        if head == [0; BLOCK] {
            return Ok(None);
        }
        let wrong = || Error::Bad("it is damaged, or was not made by `snug backup`".to_owned());
        let number = |field: &[u8]| {
            let digits = std::str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
            u64::from_str_radix(digits, 8).ok()
        };
        if number(&head[148..156]) != Some(sum(&head).into()) || head[156] != b'0' {
            return Err(wrong());
        }
        let bytes = match head[124] {
            0x80 => head[128..136].try_into().ok().map(u64::from_be_bytes).filter(|bytes| *bytes < 1 << 50),
            _ => number(&head[124..136]),
        };
        let name = head[..100].split(|byte| *byte == 0).next().and_then(|name| std::str::from_utf8(name).ok());
        let name = name.and_then(|name| name.strip_prefix(ROOT)).ok_or_else(wrong)?.to_owned();
        let bytes = bytes.ok_or_else(wrong)?;
        (self.left, self.padding) = (bytes, (BLOCK as u64 - bytes % BLOCK as u64) % BLOCK as u64);
        Ok(Some((name, bytes)))
    }
}

/// Reads the present thing.
impl Read for Reader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let most = self.left.min(out.len() as u64) as usize;
        let read = self.input.read(&mut out[..most])?;
        if read == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

fn cut() -> Error {
    Error::Bad("it is not whole: its end is missing".to_owned())
}

fn damaged(failed: io::Error) -> Error {
    Error::Bad(format!("it is damaged: {failed}"))
}

//! A scratch file: append frames, read them back in order; gone on drop, or with the process.
//!
//! The file has no name once it is open, so a crash leaves nothing to sweep. Its length is charged to an account of
//! disk in steps, as long as the household's share of the card stays free. Its two buffers are `BUFFER_BYTES` each and
//! belong to the owner of the spill.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::account::{Account, Grant, Refused};
use super::card::Card;

/// Charge this to the account of the work that spills, once while writing and once while reading.
pub const BUFFER_BYTES: usize = 16 << 10;

/// Disk is charged in steps of this size.
const STEP_BYTES: u64 = 1 << 20;

/// No frame is larger: longer than any event, and a corrupt length can never ask for much.
pub const FRAME_BYTES_MAX: usize = 1 << 20;

pub struct Spill {
    file: BufWriter<File>,
    disk: Grant,
    bytes: u64,
    frames: u64,
}

/// A spill that is complete and not read yet: without buffers.
pub struct Spilled {
    file: File,
    frames: u64,
    disk: Grant,
}

pub struct SpillReader {
    file: BufReader<File>,
    frames: u64,
    frames_left: u64,
    _disk: Grant,
}

#[derive(Debug, thiserror::Error)]
pub enum SpillError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("scratch file: {0}")]
    Io(#[from] io::Error),
}

impl Spill {
    /// An empty scratch file in `folder`, paid for by an account of disk.
    pub fn create(folder: &Path, disk: &Account) -> Result<Self, SpillError> {
        let grant = disk.try_take(STEP_BYTES)?;
        let file = BufWriter::with_capacity(BUFFER_BYTES, nameless(folder)?);
        check_spare(file.get_ref())?;
        Ok(Spill { file, disk: grant, bytes: 0, frames: 0 })
    }

    /// Appends one frame of at most `FRAME_BYTES_MAX`.
    pub fn append(&mut self, frame: &[u8]) -> Result<(), SpillError> {
        assert!(frame.len() <= FRAME_BYTES_MAX, "a frame is at most {FRAME_BYTES_MAX} bytes");
        let after = self.bytes + 4 + frame.len() as u64;
        if after > self.disk.bytes() {
            check_spare(self.file.get_ref())?;
            self.disk.grow((after - self.disk.bytes()).max(STEP_BYTES))?;
        }
        self.file.write_all(&(frame.len() as u32).to_le_bytes())?;
        self.file.write_all(frame)?;
        self.bytes = after;
        self.frames += 1;
        Ok(())
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Ends the writing and gives the buffer back.
    pub fn close(self) -> Result<Spilled, SpillError> {
        let file = self.file.into_inner().map_err(|failed| failed.into_error())?;
        Ok(Spilled { file, frames: self.frames, disk: self.disk })
    }

    /// Turns to reading, from the first frame on.
    pub fn into_reader(self) -> Result<SpillReader, SpillError> {
        self.close()?.into_reader()
    }
}

impl Spilled {
    /// Reads from the first frame on.
    pub fn into_reader(mut self) -> Result<SpillReader, SpillError> {
        self.file.seek(SeekFrom::Start(0))?;
        let file = BufReader::with_capacity(BUFFER_BYTES, self.file);
        Ok(SpillReader { file, frames: self.frames, frames_left: self.frames, _disk: self.disk })
    }
}

impl SpillReader {
    /// Reads the next frame into `frame`, replacing what was there; false when there are no more.
    pub fn next(&mut self, frame: &mut Vec<u8>) -> Result<bool, SpillError> {
        frame.clear();
        if self.frames_left == 0 {
            return Ok(false);
        }
        let mut length = [0; 4];
        self.file.read_exact(&mut length)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a scratch file was damaged").into());
        }
        frame.resize(length, 0);
        self.file.read_exact(frame)?;
        self.frames_left -= 1;
        Ok(true)
    }

    /// Goes back to the first frame.
    pub fn rewind(&mut self) -> Result<(), SpillError> {
        self.file.seek(SeekFrom::Start(0))?;
        self.frames_left = self.frames;
        Ok(())
    }

    pub fn frames_left(&self) -> u64 {
        self.frames_left
    }
}

/// Spilled data came from others, so it leaves the household its share. When the file system does not report its free
/// space, spilling is attempted.
fn check_spare(file: &File) -> io::Result<()> {
    match Card::under(file) {
        Ok(card) if card.spare_bytes() < STEP_BYTES => Err(io::ErrorKind::StorageFull.into()),
        _ => Ok(()),
    }
}

/// A file without a name: made and unlinked at once, which every file system of a board can do.
pub fn nameless(folder: &Path) -> io::Result<File> {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = folder.join(format!(".snug-scratch-{}-{number}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;

    #[test]
    fn frames_come_back_in_order_and_the_disk_is_given_back() {
        let disk = Budget::for_tests().account("spill_disk");
        let mut spill = Spill::create(&std::env::temp_dir(), &disk).unwrap();
        for n in 0..5_000u32 {
            spill.append(&vec![n as u8; (n % 700) as usize]).unwrap();
        }
        assert!(disk.used() >= spill.bytes());
        let mut reader = spill.into_reader().unwrap();
        let mut frame = Vec::new();
        for n in 0..5_000u32 {
            assert!(reader.next(&mut frame).unwrap());
            assert_eq!(frame, vec![n as u8; (n % 700) as usize]);
        }
        assert!(!reader.next(&mut frame).unwrap());
        reader.rewind().unwrap();
        assert!(reader.next(&mut frame).unwrap() && frame.is_empty() && reader.frames_left() == 4_999);
        drop(reader);
        assert_eq!(disk.used(), 0);
    }
}

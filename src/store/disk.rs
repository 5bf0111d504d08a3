//! The medium under the database and its journal: files on the card, or memory in tests.
//!
//! Also the reserve: a file of real blocks that is given up first when the disk is full, so that the database can be
//! opened again and rows can be freed.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard, RwLock};
use redb::StorageBackend;
use redb::backends::InMemoryBackend;

use super::{Error, Result, guard};
use crate::budget::{Card, human};

/// Bytes kept free for the worst moment.
pub const RESERVE_BYTES: u64 = 16 << 20;

/// Below this, jobs that add to the database are refused before they try.
pub const FREE_BYTES_MIN: u64 = 8 << 20;

/// A place where a database can be opened, and opened again after a failure.
pub trait Medium: Send + Sync + 'static {
    /// Opens the existing database, or an empty one.
    fn open(&self) -> io::Result<Box<dyn StorageBackend>>;

    /// Opens the journal as it lies; `None` when there is none.
    fn open_journal(&self) -> io::Result<Option<Box<dyn StorageBackend>>> {
        Ok(None)
    }

    /// Opens the journal, of exactly `bytes` real blocks: makes it, or brings it to that length.
    fn make_journal(&self, _bytes: u64) -> io::Result<Box<dyn StorageBackend>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Keeps the journal under another name, so that its blocks are not used again. An earlier one is deleted.
    fn set_journal_aside(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether there is such a journal set aside.
    fn has_journal_aside(&self) -> bool {
        false
    }

    /// Whether writes are kept in memory and dropped: then the journal is left for the next start.
    fn is_for_looking(&self) -> bool {
        false
    }

    /// Bytes a file could still grow by.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Bytes that the database's file takes.
    fn file_bytes(&self) -> io::Result<u64> {
        Ok(0)
    }

    /// Bytes of the whole card, free or not.
    fn total_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    /// Frees the reserve; nothing happens when it is gone already.
    fn give_up_reserve(&self) {}

    /// Makes the reserve, of real blocks; nothing happens when it is there.
    fn take_reserve(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The usual medium: one file, with its journal and its reserve beside it.
pub struct FileMedium {
    path: PathBuf,
    /// Held as long as the medium lives, so that no second process opens the database.
    _lock: File,
}

impl FileMedium {
    /// Claims the file; `WouldBlock` when another process has it.
    pub fn claim(path: &Path) -> io::Result<Self> {
        let is_new = !path.try_exists()?;
        let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        lock.try_lock().map_err(|failed| match failed {
            std::fs::TryLockError::WouldBlock => io::Error::from(io::ErrorKind::WouldBlock),
            std::fs::TryLockError::Error(failed) => failed,
        })?;
        let medium = FileMedium { path: path.to_owned(), _lock: lock };
        if is_new {
            // If a power cut loses the database's name, everything synced into it is lost too.
            File::open(medium.folder())?.sync_all()?;
        }
        Ok(medium)
    }

    fn folder(&self) -> &Path {
        self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    fn reserve(&self) -> PathBuf {
        self.path.with_extension("reserve")
    }

    fn journal(&self) -> PathBuf {
        self.path.with_extension("journal")
    }
}

impl Medium for FileMedium {
    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&self.path)?;
        Ok(Box::new(FileDisk(file)))
    }

    fn open_journal(&self) -> io::Result<Option<Box<dyn StorageBackend>>> {
        match OpenOptions::new().read(true).write(true).open(self.journal()) {
            Ok(file) => Ok(Some(Box::new(FileDisk(file)))),
            Err(failed) if failed.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(failed) => Err(failed),
        }
    }

    fn make_journal(&self, bytes: u64) -> io::Result<Box<dyn StorageBackend>> {
        let path = self.journal();
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        if file.metadata()?.len() != bytes {
            let filled = file.set_len(0).and_then(|()| fill(&file, bytes, JOURNAL_PIECE));
            // A part of a journal takes space that others need.
            filled.and_then(|()| file.sync_all()).inspect_err(|_| drop(std::fs::remove_file(&path)))?;
        }
        // A process that made the journal may have ended before its name was on the card.
        File::open(self.folder())?.sync_all()?;
        Ok(Box::new(FileDisk(file)))
    }

    fn set_journal_aside(&self) -> io::Result<()> {
        std::fs::rename(self.journal(), self.path.with_extension("journal-bad"))?;
        File::open(self.folder())?.sync_all()
    }

    fn has_journal_aside(&self) -> bool {
        self.path.with_extension("journal-bad").exists()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(Card::at(self.folder())?.free_bytes)
    }

    fn file_bytes(&self) -> io::Result<u64> {
        // redb makes the file twice as long when it needs a page more, and what was never written takes no room. Some file
        // systems do not tell blocks.
        let found = std::fs::metadata(&self.path)?;
        Ok(match found.blocks() * 512 {
            0 => found.len(),
            bytes => found.len().min(bytes),
        })
    }

    fn total_bytes(&self) -> io::Result<u64> {
        Ok(Card::at(self.folder())?.total_bytes)
    }

    fn give_up_reserve(&self) {
        let _ = std::fs::remove_file(self.reserve());
    }

    fn take_reserve(&self) -> io::Result<()> {
        let path = self.reserve();
        if std::fs::metadata(&path).is_ok_and(|file| file.len() == RESERVE_BYTES) {
            return Ok(());
        }
        let made = make_reserve(&path);
        if made.is_err() {
            self.give_up_reserve();
        }
        made
    }
}

fn make_reserve(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVE_BYTES) {
        Ok(()) => Ok(()),
        // FAT and some network file systems do not support this: writing zeros takes real blocks there.
        Err(rustix::io::Errno::OPNOTSUPP) => fill(&file, RESERVE_BYTES, RESERVE_PIECE),
        Err(failed) => Err(failed.into()),
    }
}

const RESERVE_PIECE: usize = 64 << 10;
/// The kernel writes a file's memory back in the pieces it came in: larger ones would be written whole for each record.
const JOURNAL_PIECE: usize = 4096;

/// Writes zeros, since blocks that were only promised cost a sync more when they are written for the first time.
fn fill(file: &File, bytes: u64, piece: usize) -> io::Result<()> {
    let zeros = vec![0; piece];
    (0..bytes).step_by(piece).try_for_each(|at| {
        let length = (bytes - at).min(piece as u64) as usize;
        file.write_all_at(&zeros[..length], at)
    })
}

/// A plain file. The lock is the medium's, so that the file can be opened again while an old reader still has it.
#[derive(Debug)]
struct FileDisk(File);

impl StorageBackend for FileDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

/// A file opened for reading only: writes to it stay in memory and are dropped with it.
pub(super) struct LookMedium(FileMedium);

impl LookMedium {
    /// Claims a file that is there.
    pub(super) fn claim(path: &Path) -> Result<Self> {
        std::fs::metadata(path).map_err(|failed| Error::from_io(&failed))?;
        FileMedium::claim(path).map(LookMedium).map_err(|failed| match failed.kind() {
            io::ErrorKind::WouldBlock => Error::Busy,
            _ => Error::from_io(&failed),
        })
    }
}

impl Medium for LookMedium {
    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        let file = File::open(&self.0.path)?;
        let length = file.metadata()?.len();
        Ok(Box::new(Look { file, inner: Mutex::new(Looked { length, on_card: length, blocks: BTreeMap::new() }) }))
    }

    fn open_journal(&self) -> io::Result<Option<Box<dyn StorageBackend>>> {
        match File::open(self.0.journal()) {
            Ok(file) => Ok(Some(Box::new(FileDisk(file)))),
            Err(failed) if failed.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(failed) => Err(failed),
        }
    }

    fn is_for_looking(&self) -> bool {
        true
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

const BLOCK: usize = 4096;
/// Opening writes a header and the list of pages in use: some blocks for each GiB.
const LOOK_BLOCKS_MAX: usize = 4096;

#[derive(Debug)]
struct Look {
    file: File,
    inner: Mutex<Looked>,
}

#[derive(Debug)]
struct Looked {
    length: u64,
    /// Bytes of the file that still count; a part that was cut off and grown again reads as zeros.
    on_card: u64,
    blocks: BTreeMap<u64, Box<[u8; BLOCK]>>,
}

impl Look {
    fn lock(&self) -> MutexGuard<'_, Looked> {
        self.inner.lock()
    }

    /// The bytes of the file, and zeros beyond its end.
    fn read_card(&self, offset: u64, out: &mut [u8], on_card: u64) -> io::Result<()> {
        let there = on_card.saturating_sub(offset).min(out.len() as u64) as usize;
        let (there, beyond) = out.split_at_mut(there);
        beyond.fill(0);
        self.file.read_exact_at(there, offset)
    }
}

impl StorageBackend for Look {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.lock();
        let end = offset + out.len() as u64;
        if end > inner.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read_card(offset, out, inner.on_card)?;
        for (at, block) in inner.blocks.range(offset / BLOCK as u64..end.div_ceil(BLOCK as u64)) {
            let begin = at * BLOCK as u64;
            let (from, to) = (offset.max(begin), end.min(begin + BLOCK as u64));
            let written = &block[(from - begin) as usize..(to - begin) as usize];
            out[(from - offset) as usize..(to - offset) as usize].copy_from_slice(written);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.lock();
        inner.length = len;
        inner.on_card = inner.on_card.min(len);
        inner.blocks.split_off(&len.div_ceil(BLOCK as u64));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut inner = self.lock();
        let (end, on_card) = (offset + data.len() as u64, inner.on_card);
        for at in offset / BLOCK as u64..end.div_ceil(BLOCK as u64) {
            let begin = at * BLOCK as u64;
            if !inner.blocks.contains_key(&at) {
                if inner.blocks.len() >= LOOK_BLOCKS_MAX {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                let mut block = Box::new([0; BLOCK]);
                self.read_card(begin, &mut block[..], on_card)?;
                inner.blocks.insert(at, block);
            }
            let (from, to) = (offset.max(begin), end.min(begin + BLOCK as u64));
            if let Some(block) = inner.blocks.get_mut(&at) {
                block[(from - begin) as usize..(to - begin) as usize]
                    .copy_from_slice(&data[(from - offset) as usize..(to - offset) as usize]);
            }
        }
        inner.length = inner.length.max(end);
        Ok(())
    }
}

/// Whether the card has room for other servers' data, and whether that was logged.
#[derive(Default)]
pub(super) struct Spare(AtomicBool);

impl Spare {
    /// Once there is none, an eighth more than the household's share must be free before writing is allowed again. When
    /// the card does not report its free space, writing is attempted.
    pub(super) fn bytes(&self, medium: &dyn Medium) -> u64 {
        let card = Card {
            total_bytes: medium.total_bytes().unwrap_or(u64::MAX),
            free_bytes: medium.free_bytes().unwrap_or(u64::MAX),
        };
        let (spare, kept) = (card.spare_bytes(), card.household_bytes());
        let was_short = self.0.load(Ordering::Relaxed);
        let is_short = spare <= if was_short { kept / 8 } else { 0 };
        if is_short != was_short && self.0.swap(is_short, Ordering::Relaxed) == was_short {
            match is_short {
                true => tracing::warn!(
                    "only {} are free on the disk: they are reserved for local users' messages, and events of other \
                     servers and key backups are refused until there is room",
                    human(card.free_bytes)
                ),
                false => tracing::info!("the disk has room again for events of other servers and key backups"),
            }
        }
        if is_short { 0 } else { spare }
    }
}

/// A database in memory, for tests; it survives being opened again.
#[derive(Clone)]
pub struct MemoryMedium {
    disk: Arc<InMemoryBackend>,
    journal: Arc<InMemoryBackend>,
    free_bytes: Arc<AtomicU64>,
}

impl Default for MemoryMedium {
    fn default() -> Self {
        let free_bytes = Arc::new(AtomicU64::new(u64::MAX));
        MemoryMedium { disk: Arc::default(), journal: Arc::default(), free_bytes }
    }
}

impl MemoryMedium {
    /// Reports this many free bytes from now on.
    pub fn set_free_bytes(&self, bytes: u64) {
        self.free_bytes.store(bytes, Ordering::Relaxed);
    }
}

impl Medium for MemoryMedium {
    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(Shared(self.disk.clone())))
    }

    fn open_journal(&self) -> io::Result<Option<Box<dyn StorageBackend>>> {
        Ok((self.journal.len()? > 0).then(|| Box::new(Shared(self.journal.clone())) as Box<dyn StorageBackend>))
    }

    fn make_journal(&self, bytes: u64) -> io::Result<Box<dyn StorageBackend>> {
        self.journal.set_len(bytes)?;
        Ok(Box::new(Shared(self.journal.clone())))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.free_bytes.load(Ordering::Relaxed))
    }
}

#[derive(Debug)]
struct Shared(Arc<InMemoryBackend>);

impl StorageBackend for Shared {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

/// Cuts a database off from its file when another takes its place: an old snapshot may go on with the pages it has
/// in memory, but must neither read pages that are being reused nor write anything. Readers write too: a page that a
/// commit left in memory goes to the file when the cache is full.
#[derive(Debug)]
pub(super) struct Guarded {
    pub(super) disk: Box<dyn StorageBackend>,
    pub(super) retired: Arc<RwLock<bool>>,
}

thread_local! {
    /// What this thread read of the file.
    static SEEN: Seen = const { Seen { bytes: Cell::new(0), highest: Cell::new(0) } };
}

/// Parts of the database's file that were read, by a thread or in a call. What redb had in its cache is not among them.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) bytes: Cell<u64>,
    /// Where the highest part began.
    pub(super) highest: Cell<u64>,
}

impl Seen {
    fn note(&self, offset: u64, length: usize) {
        self.bytes.set(self.bytes.get() + length as u64);
        self.highest.set(self.highest.get().max(offset));
    }
}

/// Does something, and tells what it read of the file on this thread.
pub(super) fn seeing<T>(call: impl FnOnce() -> T) -> (T, Seen) {
    SEEN.with(|seen| (seen.bytes.set(0), seen.highest.set(0)));
    let done = call();
    let seen = SEEN.with(|seen| Seen { bytes: seen.bytes.clone(), highest: seen.highest.clone() });
    (done, seen)
}

impl Guarded {
    /// The lock is held until the file has answered, so that nothing happens to it after the database was cut off.
    fn with<T>(&self, call: impl FnOnce(&dyn StorageBackend) -> io::Result<T>) -> io::Result<T> {
        let retired = self.retired.read();
        if *retired {
            return Err(io::Error::other("the database was opened again"));
        }
        call(&*self.disk)
    }
}

impl StorageBackend for Guarded {
    fn len(&self) -> io::Result<u64> {
        self.with(|disk| disk.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        SEEN.with(|seen| seen.note(offset, out.len()));
        guard::read_from_card(self.with(|disk| disk.read(offset, out)))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|disk| disk.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|disk| disk.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|disk| disk.write(offset, data))
    }
}

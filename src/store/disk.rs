//! What the database lies on: a file on the card, or memory in tests.
//!
//! Also the reserve: a file of real blocks that is given up first when the disk is full, so that the database can be
//! opened again and rows can be freed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::StorageBackend;
use redb::backends::InMemoryBackend;

/// What is kept free for the worst moment.
pub const RESERVE_BYTES: u64 = 16 << 20;

/// Below this, jobs that add to the database are refused before they try.
pub const FREE_BYTES_MIN: u64 = 8 << 20;

/// Where a database can be opened, and opened again after a failure.
pub trait Medium: Send + Sync + 'static {
    /// Opens what is there, or something empty.
    fn open(&self) -> io::Result<Box<dyn StorageBackend>>;

    /// Bytes a file could still grow by.
    fn free_bytes(&self) -> io::Result<u64>;

    /// Frees the reserve; nothing happens when it is gone already.
    fn give_up_reserve(&self) {}

    /// Makes the reserve, of real blocks; nothing happens when it is there.
    fn take_reserve(&self) -> io::Result<()> {
        Ok(())
    }
}

/// The usual medium: one file, with its reserve beside it.
pub struct FileMedium {
    path: PathBuf,
    /// Held as long as the medium lives, so that no second process opens the database.
    _lock: File,
}

impl FileMedium {
    /// Claims the file; `WouldBlock` when another process has it.
    pub fn claim(path: &Path) -> io::Result<Self> {
        let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        lock.try_lock().map_err(|failed| match failed {
            std::fs::TryLockError::WouldBlock => io::Error::from(io::ErrorKind::WouldBlock),
            std::fs::TryLockError::Error(failed) => failed,
        })?;
        Ok(FileMedium { path: path.to_owned(), _lock: lock })
    }

    fn folder(&self) -> &Path {
        self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    fn reserve(&self) -> PathBuf {
        self.path.with_extension("reserve")
    }
}

impl Medium for FileMedium {
    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&self.path)?;
        Ok(Box::new(FileDisk(file)))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(self.folder())?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
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
        // FAT and some network file systems cannot: writing zeros takes real blocks there.
        Err(rustix::io::Errno::OPNOTSUPP) => write_zeros(&file),
        Err(failed) => Err(failed.into()),
    }
}

fn write_zeros(file: &File) -> io::Result<()> {
    let zeros = vec![0; 64 << 10];
    (0..RESERVE_BYTES).step_by(zeros.len()).try_for_each(|at| file.write_all_at(&zeros, at))
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

/// A database in memory, for tests; it survives being opened again.
#[derive(Default)]
pub struct MemoryMedium(Arc<InMemoryBackend>);

impl Medium for MemoryMedium {
    fn open(&self) -> io::Result<Box<dyn StorageBackend>> {
        Ok(Box::new(Shared(self.0.clone())))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
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
/// in memory, but must neither read pages that are being reused nor write anything.
#[derive(Debug)]
pub(super) struct Guarded {
    pub(super) disk: Box<dyn StorageBackend>,
    pub(super) retired: Arc<AtomicBool>,
}

impl Guarded {
    fn check(&self) -> io::Result<&dyn StorageBackend> {
        if self.retired.load(Ordering::Acquire) {
            return Err(io::Error::other("the database was opened again"));
        }
        Ok(&*self.disk)
    }
}

impl StorageBackend for Guarded {
    fn len(&self) -> io::Result<u64> {
        self.check()?.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check()?.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check()?.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?.write(offset, data)
    }
}

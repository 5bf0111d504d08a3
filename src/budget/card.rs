//! The card under all files, and the part of it that other servers' data may fill.
//!
//! Data of other servers, and files, stop while a share of the card is still free: the household's own messages, logins
//! and keys can use that share until the store itself has no room.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

/// The household's share is an eighth of the card, within these bounds.
const HOUSEHOLD_BYTES_MAX: u64 = 256 << 20;
const HOUSEHOLD_BYTES_MIN: u64 = 16 << 20;

/// A file system as it is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    pub total_bytes: u64,
    pub free_bytes: u64,
}

impl Card {
    /// The file system of a path.
    pub fn at(path: &Path) -> io::Result<Card> {
        Ok(Card::of(rustix::fs::statvfs(path)?))
    }

    /// The file system of a file, whether the file has a name or not.
    pub fn under(file: impl AsFd) -> io::Result<Card> {
        Ok(Card::of(rustix::fs::fstatvfs(file)?))
    }

    fn of(stat: rustix::fs::StatVfs) -> Card {
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Card { total_bytes: bytes(stat.f_blocks), free_bytes: bytes(stat.f_bavail) }
    }

    /// Bytes kept for the household.
    pub fn household_bytes(&self) -> u64 {
        (self.total_bytes / 8).clamp(HOUSEHOLD_BYTES_MIN, HOUSEHOLD_BYTES_MAX)
    }

    /// Bytes that other servers' data may still take.
    pub fn spare_bytes(&self) -> u64 {
        self.free_bytes.saturating_sub(self.household_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_kept_for_the_household() {
        const MIB: u64 = 1 << 20;
        for (total, free, spare) in [
            (32 << 30, 10 << 30, (10 << 30) - 256 * MIB),
            (32 << 30, 256 * MIB, 0),
            (512 * MIB, 100 * MIB, 36 * MIB),
            (64 * MIB, 30 * MIB, 14 * MIB),
            (64 * MIB, 10 * MIB, 0),
        ] {
            assert_eq!(Card { total_bytes: total, free_bytes: free }.spare_bytes(), spare, "{total} {free}");
        }
        let here = Card::at(&std::env::temp_dir()).unwrap();
        assert!(here.total_bytes >= here.free_bytes);
    }
}

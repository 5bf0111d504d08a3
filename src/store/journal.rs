//! The journal: a file beside the database, where a group's changes are on the card before redb has them.
//!
//! One record holds the row changes of one group: table, key, and value or removal. It is written and synced, and only
//! then redb commits the same changes in memory, so that an ordinary commit costs one short write and one sync. A
//! checkpoint, which is a commit that redb makes durable itself, begins the file again at its first block.
//!
//! A record begins at a block of its own, so that writing one never touches a block of another: a head (bytes, number
//! and checksum) and the rows. The checksum is keyed with the database's own key and covers the epoch, which is random
//! and new after each opening. So neither a record of another database, nor of another copy's history, nor of an
//! earlier round matches. [`Place`] says which record comes next and where; it is a row of the database, in the same
//! transaction as the changes before it, so whatever state redb has on the card, its place fits it.
//!
//! The file has its length and its blocks from the beginning: a sync has nothing to write but the record.

use std::hash::Hasher;
use std::io;
use std::time::Duration;

use redb::StorageBackend;
use siphasher::sip128::{Hasher128, SipHasher13};

use super::schema::META;
use super::{Error, Result, Table};
use crate::base::{Random, StopWatch};

/// Length of the journal of a server: 2,048 records of one block.
pub(super) const JOURNAL_BYTES: u64 = 8 << 20;

/// Bytes of one record at most, and of the buffer it is made in. A larger group is committed by redb alone.
pub(super) const RECORD_BYTES_MAX: usize = 256 << 10;

/// Rows between two checkpoints at most, of some 500 messages. A start after a power cut reads the pages that they change. Of a
/// message's twelve rows few have a page of their own; where a third has, such as memberships of many rooms, a card of 1,500
/// reads a second takes a second and a half. redb remembers each page that is changed, some 64 bytes for one, and the file
/// grows by these pages.
const ROWS_MAX: u32 = 6 << 10;

/// Changes lie in the journal alone for this long at most; a server where nothing is written is not woken for it.
const CHECKPOINT_AFTER: Duration = Duration::from_secs(3600);

/// No record begins inside such a block; the page of a file system and of a card.
pub(super) const BLOCK: usize = 4096;

/// Bytes of the rows, the record's number, the checksum.
const HEAD_BYTES: usize = 4 + 8 + 16;

pub(super) const PLACE_ROW: &[u8] = b"journal";

/// Which record comes next, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    epoch: [u8; 16],
    number: u64,
    block: u32,
}

impl Place {
    /// The beginning of a new epoch: no record that was ever written belongs to it.
    pub(super) fn new(random: &Random) -> Place {
        let mut epoch = [0; 16];
        random.fill(&mut epoch);
        Place { epoch, number: 1, block: 0 }
    }

    pub(super) fn to_row(self) -> [u8; 28] {
        let mut row = [0; 28];
        row[..16].copy_from_slice(&self.epoch);
        row[16..24].copy_from_slice(&self.number.to_be_bytes());
        row[24..].copy_from_slice(&self.block.to_be_bytes());
        row
    }

    pub(super) fn from_row(row: &[u8]) -> Result<Place> {
        let parts = row.split_first_chunk().and_then(|(epoch, rest)| {
            let (number, block) = rest.split_first_chunk()?;
            Some((*epoch, u64::from_be_bytes(*number), u32::from_be_bytes(block.try_into().ok()?)))
        });
        let (epoch, number, block) = parts.ok_or_else(|| Error::corrupt(&META, PLACE_ROW))?;
        Ok(Place { epoch, number, block })
    }

    pub(super) fn number(self) -> u64 {
        self.number
    }

    /// The place behind a record of so many bytes with its head.
    fn behind(self, bytes: usize) -> Place {
        Place { number: self.number + 1, block: self.block.saturating_add(blocks(bytes)), ..self }
    }

    fn offset(self) -> u64 {
        u64::from(self.block) * BLOCK as u64
    }

    fn sum(self, hash_key: &[u8; 16], rows: &[u8]) -> [u8; 16] {
        // Epoch and number have one length each, so no two records are hashed alike.
        let mut hasher = SipHasher13::new_with_key(hash_key);
        [&self.epoch[..], &self.number.to_be_bytes(), rows].iter().for_each(|part| hasher.write(part));
        hasher.finish128().as_bytes()
    }
}

fn blocks(bytes: usize) -> u32 {
    bytes.div_ceil(BLOCK) as u32
}

/// The row changes of a group while its jobs run. At most [`RECORD_BYTES_MAX`], which the memory doubles up to.
#[derive(Default)]
pub(super) struct Record {
    /// Room for the head, then the rows.
    bytes: Vec<u8>,
    rows: u32,
    is_too_long: bool,
}

/// The length of a record before a job.
#[derive(Clone, Copy)]
pub(super) struct RecordMark {
    bytes: usize,
    rows: u32,
    is_too_long: bool,
}

impl Record {
    /// An empty record in the memory of the one before.
    pub(super) fn again(mut self) -> Record {
        self.bytes.clear();
        self.bytes.resize(HEAD_BYTES, 0);
        Record { bytes: self.bytes, rows: 0, is_too_long: false }
    }

    /// Notes a row, or its removal.
    pub(super) fn note(&mut self, table: &Table, key: &[u8], value: Option<&[u8]>) {
        let more = 1 + table.name.len() + 2 + key.len() + 4 + value.map_or(0, <[u8]>::len);
        let fits = self.bytes.len() + more <= RECORD_BYTES_MAX && key.len() <= usize::from(u16::MAX);
        if self.is_too_long || !fits {
            self.is_too_long = true;
            return;
        }
        let room = (self.bytes.len() + more).next_power_of_two();
        self.bytes.reserve_exact(room - self.bytes.len());
        self.rows += 1;
        self.bytes.push(table.name.len() as u8);
        self.bytes.extend_from_slice(table.name.as_bytes());
        self.bytes.extend_from_slice(&(key.len() as u16).to_be_bytes());
        self.bytes.extend_from_slice(key);
        self.bytes.extend_from_slice(&value.map_or(REMOVED, |value| value.len() as u32).to_be_bytes());
        self.bytes.extend_from_slice(value.unwrap_or_default());
    }

    pub(super) fn mark(&self) -> RecordMark {
        RecordMark { bytes: self.bytes.len(), rows: self.rows, is_too_long: self.is_too_long }
    }

    /// Forgets what a job noted.
    pub(super) fn back_to(&mut self, mark: RecordMark) {
        self.bytes.truncate(mark.bytes);
        (self.rows, self.is_too_long) = (mark.rows, mark.is_too_long);
    }

    /// The finished record, in whole blocks.
    fn finish(&mut self, place: Place, hash_key: &[u8; 16]) -> &[u8] {
        let rows = &self.bytes[HEAD_BYTES..];
        let (length, sum) = ((rows.len() as u32).to_be_bytes(), place.sum(hash_key, rows));
        self.bytes[..4].copy_from_slice(&length);
        self.bytes[4..12].copy_from_slice(&place.number.to_be_bytes());
        self.bytes[12..HEAD_BYTES].copy_from_slice(&sum);
        let whole = self.bytes.len().next_multiple_of(BLOCK);
        self.bytes.reserve_exact(whole - self.bytes.len());
        self.bytes.resize(whole, 0);
        &self.bytes
    }
}

/// The length of a value that stands for the row's removal.
const REMOVED: u32 = u32::MAX;

/// The rows that [`Record::note`] put into a record: table's name, key, and value or removal. `OtherVersion` for others.
pub(super) fn next_row<'r>(rows: &mut &'r [u8]) -> Result<NotedRow<'r>> {
    split_row(rows).ok_or(Error::OtherVersion)
}

pub(super) type NotedRow<'r> = (&'r [u8], &'r [u8], Option<&'r [u8]>);

fn split_row<'r>(rows: &mut &'r [u8]) -> Option<NotedRow<'r>> {
    let name = rows.split_off_first().map(|length| usize::from(*length))?;
    let name = rows.split_off(..name)?;
    let (key, rest) = rows.split_first_chunk()?;
    *rows = rest;
    let key = rows.split_off(..usize::from(u16::from_be_bytes(*key)))?;
    let (value, rest) = rows.split_first_chunk()?;
    *rows = rest;
    let value = match u32::from_be_bytes(*value) {
        REMOVED => None,
        length => Some(rows.split_off(..length as usize)?),
    };
    Some((name, key, value))
}

/// The journal that the writer appends to.
pub(super) struct Journal {
    disk: Box<dyn StorageBackend>,
    hash_key: [u8; 16],
    blocks: u32,
    place: Place,
    /// Whether the database has the place on the card; the first commit after an opening takes it there.
    is_begun: bool,
    /// Rows since the last checkpoint, and how long the first has been there.
    rows: u32,
    since: Option<StopWatch>,
}

impl Journal {
    /// In a new epoch, which begins with the next checkpoint.
    pub(super) fn new(disk: Box<dyn StorageBackend>, bytes: u64, hash_key: [u8; 16], random: &Random) -> Journal {
        let blocks = (bytes / BLOCK as u64) as u32;
        Journal { disk, hash_key, blocks, place: Place::new(random), is_begun: false, rows: 0, since: None }
    }

    /// Whether the group may go into the journal; else it is for a checkpoint.
    pub(super) fn has_room(&self, record: &Record) -> bool {
        self.is_begun
            && !record.is_too_long
            && self.place.behind(record.bytes.len()).block <= self.blocks
            && self.rows.saturating_add(record.rows) <= ROWS_MAX
            && self.since.is_none_or(|since| since.elapsed() < CHECKPOINT_AFTER)
    }

    /// The place that the database has after this record, or after a checkpoint.
    pub(super) fn next(&self, record: Option<&Record>) -> Place {
        match record {
            Some(record) => self.place.behind(record.bytes.len()),
            None => Place { block: 0, ..self.place },
        }
    }

    /// Writes the record and syncs it. After a failure it may be on the card or not.
    pub(super) fn append(&mut self, record: &mut Record) -> Result<()> {
        let (place, behind) = (self.place, self.next(Some(record)));
        let written = self.disk.write(place.offset(), record.finish(place, &self.hash_key));
        written.and_then(|()| self.disk.sync_data()).map_err(|failed| Error::from_io(&failed))?;
        self.place = behind;
        self.rows = self.rows.saturating_add(record.rows);
        self.since.get_or_insert_with(StopWatch::start);
        Ok(())
    }

    /// After a checkpoint: its place is on the card.
    pub(super) fn begin(&mut self) {
        self.place = self.next(None);
        (self.is_begun, self.rows, self.since) = (true, 0, None);
    }
}

/// The records from a place on, as they lie.
pub(super) struct Replay<'j> {
    disk: &'j dyn StorageBackend,
    hash_key: &'j [u8; 16],
    length: u64,
    pub(super) place: Place,
    bytes: Vec<u8>,
    /// Why the record at the place cannot be read.
    pub(super) unreadable: Option<io::Error>,
}

impl<'j> Replay<'j> {
    pub(super) fn new(disk: &'j dyn StorageBackend, hash_key: &'j [u8; 16], place: Place) -> io::Result<Replay<'j>> {
        Ok(Replay { disk, hash_key, length: disk.len()?, place, bytes: Vec::new(), unreadable: None })
    }

    /// The rows of the next record, and moves on behind it; `None` at the first that is not the expected one, whole, and
    /// at one that cannot be read.
    pub(super) fn next(&mut self) -> Option<&[u8]> {
        match self.try_next() {
            Ok(true) => Some(&self.bytes),
            Ok(false) => None,
            Err(failed) => {
                self.unreadable = Some(failed);
                None
            }
        }
    }

    fn try_next(&mut self) -> io::Result<bool> {
        let left = self.length.saturating_sub(self.place.offset());
        let mut head = [0; HEAD_BYTES];
        if left < HEAD_BYTES as u64 {
            return Ok(false);
        }
        self.read(self.place.offset(), &mut head)?;
        let (length, rest) = head.split_at(4);
        let (number, sum) = rest.split_at(8);
        let length = u32::from_be_bytes(length.try_into().unwrap_or_default()) as usize;
        let is_possible = length <= RECORD_BYTES_MAX - HEAD_BYTES && (HEAD_BYTES + length) as u64 <= left;
        if !is_possible || number != self.place.number.to_be_bytes() {
            return Ok(false);
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize(length, 0);
        self.read(self.place.offset() + HEAD_BYTES as u64, &mut bytes)?;
        self.bytes = bytes;
        if sum != self.place.sum(self.hash_key, &self.bytes) {
            return Ok(false);
        }
        self.place = self.place.behind(HEAD_BYTES + length);
        Ok(true)
    }

    /// A card may not return a block at once.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, out).or_else(|_| self.disk.read(offset, out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema::STATE_NODE;

    /// A vector that grows by itself may take twice what it holds.
    #[test]
    fn a_record_takes_no_more_memory_than_its_bound() {
        let place = Place::new(&Random::seeded(1));
        for value in [1, 100, 3_000, 50_000] {
            let mut record = Record::default().again();
            while !record.is_too_long {
                record.note(&STATE_NODE, b"key", Some(&vec![0; value]));
            }
            assert!(record.finish(place, &[0; 16]).len() <= RECORD_BYTES_MAX);
            assert!(record.bytes.capacity() <= RECORD_BYTES_MAX, "{value}: {}", record.bytes.capacity());
        }
    }
}

//! Opening the database: an unfinished creation forgotten, the journal applied, the format brought up to date.
//!
//! The changes in the journal are made durable in one transaction, together with the beginning of a new epoch in which
//! none of its records counts. A start that is cut short before that commit's last sync applies them again.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use redb::{Database, Durability, WriteTransaction};

use super::access::{Get, HASH_KEY_ROW, Write};
use super::counters::Counters;
use super::disk::{FREE_BYTES_MIN, Guarded, Medium};
use super::journal::{self, Journal, PLACE_ROW, Place, Replay};
use super::schema::{META, TABLES};
use super::{Error, Position, Result, StoreOptions, guard, migrate};
use crate::base::{Clock, KeptTime, Random, StopWatch};

/// What an opening needs to know, the first and each later one.
pub(super) struct How {
    cache_bytes: usize,
    journal_bytes: u64,
    random: Random,
    clock: Option<Clock>,
}

impl How {
    pub(super) fn of(options: &StoreOptions) -> How {
        let journal_bytes = options.journal_bytes / journal::BLOCK as u64 * journal::BLOCK as u64;
        How {
            cache_bytes: options.cache_bytes,
            journal_bytes,
            random: options.random.clone(),
            clock: options.clock.clone(),
        }
    }
}

/// The row of the latest time.
const TIME_ROW: &[u8] = b"time";

impl How {
    /// Writes down the time, with a checkpoint: a board without a battery knows no later one at its next start.
    pub(super) fn keep_time(&self, w: &mut Write) -> Result<()> {
        let Some(clock) = &self.clock else { return Ok(()) };
        // A checkpoint may come before the clock was told what the last run wrote.
        if !clock.is_settled()
            && let Ok(Some(kept)) = time_kept(w)
        {
            clock.settle(kept);
        }
        w.put(&META, TIME_ROW, &time_row(clock.to_keep()))
    }
}

/// The latest time; behind it, once it is known, the settled one and how the clock is doubted.
fn time_row(kept: KeptTime) -> Vec<u8> {
    let more = kept.settled_ms.map(|settled_ms| [settled_ms, kept.ahead_ms, kept.stood_ms]);
    std::iter::once(kept.latest_ms).chain(more.into_iter().flatten()).flat_map(u64::to_be_bytes).collect()
}

/// The time as it was written down.
pub(super) fn time_kept(get: &impl Get) -> Result<Option<KeptTime>> {
    let Some(row) = get.get(&META, TIME_ROW)? else { return Ok(None) };
    let numbers: Vec<u64> =
        row.chunks_exact(8).filter_map(|number| number.try_into().ok().map(u64::from_be_bytes)).collect();
    let (latest_ms, settled_ms, ahead_ms, stood_ms) = match (&numbers[..], row.len() % 8) {
        (&[latest_ms], 0) => (latest_ms, None, 0, 0),
        (&[latest_ms, settled_ms, ahead_ms, stood_ms], 0) => (latest_ms, Some(settled_ms), ahead_ms, stood_ms),
        _ => return Err(Error::corrupt(&META, TIME_ROW)),
    };
    Ok(Some(KeptTime { latest_ms, settled_ms, ahead_ms, stood_ms }))
}

pub(super) struct Open {
    pub(super) db: Database,
    /// Set when another database replaces this one.
    pub(super) retired: Arc<RwLock<bool>>,
    /// The journal, unless it cannot be used; the lock is the writer's.
    pub(super) journal: Mutex<Beside>,
    pub(super) hash_key: [u8; 16],
    pub(super) position: Position,
}

/// The journal of an open database.
pub(super) struct Beside {
    /// `None` when there is none, or when it failed: then each commit is a checkpoint.
    pub(super) journal: Option<Journal>,
    /// When it was last tried to have one.
    pub(super) tried: StopWatch,
    /// The file is to be set aside once nothing in it is needed.
    pub(super) is_bad: bool,
}

/// Opens the database and applies its journal. Gives up the reserve when there is no space for that.
pub(super) fn open(medium: &dyn Medium, how: &How) -> Result<Open> {
    let mut pace = Pace::default();
    loop {
        let (db, retired) = open_database(medium, how.cache_bytes)?;
        let prepared =
            guard::whole("the database's first rows cannot be read", || prepare(&db, medium, how, &mut pace));
        match prepared {
            Ok(Prepared { hash_key, position, journal }) => {
                let journal = Mutex::new(Beside { journal, tried: StopWatch::start(), is_bad: false });
                return Ok(Open { db, retired, journal, hash_key, position });
            }
            Err(failed) => {
                shut(db);
                pace.slow_down(medium, failed)?;
            }
        }
    }
}

/// The database as it lies.
pub(super) fn open_database(medium: &dyn Medium, cache_bytes: usize) -> Result<(Database, Arc<RwLock<bool>>)> {
    let retired = Arc::new(RwLock::new(false));
    let disk = medium.open().map_err(|failed| Error::from_io(&failed))?;
    forget_unfinished(&*disk).map_err(|failed| Error::from_io(&failed))?;
    let guarded = Guarded { disk, retired: retired.clone() };
    let db = guard::whole("the database cannot be opened", || {
        Database::builder().set_cache_size(cache_bytes).create_with_backend(guarded).map_err(Error::of)
    })?;
    Ok((db, retired))
}

/// Closes a database; errors from a damaged one are ignored.
pub(super) fn shut(db: Database) {
    let shut = guard::whole("the database cannot be closed", || {
        drop(db);
        Ok(())
    });
    if let Err(failed) = shut {
        tracing::debug!(error = %failed, "closing the database");
    }
}

/// Bytes of redb's header; the file of a new database has no more until its first mark.
const HEADER_BYTES: u64 = 320;

/// Empties a database whose creation was cut short: redb writes its mark into a new file last, and refuses a file
/// without the mark as not its own. Such a file has nothing behind the header.
fn forget_unfinished(disk: &dyn redb::StorageBackend) -> std::io::Result<()> {
    let length = disk.len()?;
    let mut mark = [0; 9];
    disk.read(0, &mut mark[..length.min(9) as usize])?;
    if length == 0 || mark != [0; 9] {
        return Ok(());
    }
    let mut piece = vec![0; 64 << 10];
    for at in (HEADER_BYTES..length).step_by(piece.len()) {
        let piece = &mut piece[..(length - at).min(64 << 10) as usize];
        disk.read(at, piece)?;
        if piece.iter().any(|byte| *byte != 0) {
            return Ok(());
        }
    }
    tracing::warn!("the creation of the database was interrupted; it is created again");
    disk.set_len(0)
}

struct Prepared {
    hash_key: [u8; 16],
    position: Position,
    journal: Option<Journal>,
}

/// Applies the journal, migrates, and makes the hash key of a new database.
fn prepare(db: &Database, medium: &dyn Medium, how: &How, pace: &mut Pace) -> Result<Prepared> {
    let is_for_looking = medium.is_for_looking();
    if !is_for_looking {
        replay(db, medium, pace)?;
    }
    while !in_transaction(db, Durability::Immediate, migrate::step)? {}
    let (hash_key, position) = in_transaction(db, Durability::Immediate, |w| {
        let key = match hash_key(w)? {
            Some(key) => key,
            None => {
                let mut key = [0; 16];
                how.random.fill(&mut key);
                w.put(&META, HASH_KEY_ROW, &key)?;
                key
            }
        };
        Ok((key, Counters::stored(w)?.position))
    })?;
    let is_free = !is_for_looking && !pace.is_in_memory;
    let journal = if is_free { make_journal(medium, how, hash_key) } else { None };
    Ok(Prepared { hash_key, position, journal })
}

fn hash_key(get: &impl Get) -> Result<Option<[u8; 16]>> {
    let row = get.get(&META, HASH_KEY_ROW)?;
    row.map(|row| row.try_into().map_err(|_| Error::corrupt(&META, HASH_KEY_ROW))).transpose()
}

/// The journal in a new epoch, of the length it should have. Without one the database works too, only slower.
pub(super) fn make_journal(medium: &dyn Medium, how: &How, hash_key: [u8; 16]) -> Option<Journal> {
    let length = || medium.open_journal().ok().flatten().and_then(|disk| disk.len().ok());
    let is_roomy = || medium.free_bytes().is_ok_and(|free| free >= 2 * FREE_BYTES_MIN + how.journal_bytes);
    if length() != Some(how.journal_bytes) && !is_roomy() {
        tracing::warn!("the disk has no room for the journal of the database: each write costs more without it");
        return None;
    }
    match medium.make_journal(how.journal_bytes) {
        Ok(disk) => Some(Journal::new(disk, how.journal_bytes, hash_key, &how.random)),
        Err(failed) if failed.kind() == std::io::ErrorKind::Unsupported => None,
        Err(failed) => {
            tracing::warn!(error = %failed, "the journal of the database cannot be made: each write costs more without it");
            None
        }
    }
}

/// How the journal is applied: all of it at once, or with more care after a failure.
#[derive(Default)]
struct Pace {
    /// The row that is being applied.
    at: Option<RowOf>,
    /// Failures since the beginning, or since a row was left out.
    failures: u32,
    /// Each record is in a transaction of its own, so that one fails alone.
    is_alone: bool,
    /// The rows that cannot be applied: the record's number and the row's. At most `ROWS_MAX` of the journal.
    left_out: BTreeSet<(u64, u32)>,
    /// The disk was full, and the reserve was given up.
    is_tight: bool,
    /// There is no room for a durable commit, or it fails: the journal stays as it is, and is applied in memory.
    is_in_memory: bool,
}

/// A row of a record.
#[derive(Clone, Copy)]
struct RowOf {
    number: u64,
    row: u32,
    table: &'static str,
}

/// After so many failures the row that failed is left out: the card may not return a page at once.
const ATTEMPTS: u32 = 3;

impl Pace {
    /// After a failure: whether another attempt may help, else the failure.
    fn slow_down(&mut self, medium: &dyn Medium, failed: Error) -> Result<()> {
        match (&failed, self.at.take()) {
            (Error::Full, _) if !self.is_tight => {
                medium.give_up_reserve();
                self.is_tight = true;
            }
            (Error::Full, _) if !self.is_in_memory => self.is_in_memory = true,
            (Error::Damaged(_) | Error::Corrupt { .. } | Error::Io(_), Some(at)) => self.leave_out(at, &failed),
            // Nothing can be written then, but the rest of the database can be read.
            (Error::Damaged(_) | Error::Io(_), None) if !self.is_in_memory => {
                tracing::error!(error = %failed, "the changes of the journal cannot be committed: they stay in it");
                self.is_in_memory = true;
            }
            _ => return Err(failed),
        }
        Ok(())
    }

    fn leave_out(&mut self, at: RowOf, failed: &Error) {
        self.is_alone = true;
        self.failures += 1;
        if self.failures >= ATTEMPTS {
            self.failures = 0;
            self.left_out.insert((at.number, at.row));
            tracing::error!(
                table = at.table,
                error = %failed,
                "a row of a change that was acknowledged cannot be applied, and is lost"
            );
        }
    }
}

/// Applies what the journal has behind the database's state on the card.
fn replay(db: &Database, medium: &dyn Medium, pace: &mut Pace) -> Result<()> {
    let (hash_key, place) = in_transaction(db, Durability::Immediate, |w| {
        // What a newer program wrote is not for this one.
        migrate::found(w)?;
        Ok((hash_key(w)?, stored_place(w)?))
    })?;
    let (Some(hash_key), Some(place)) = (hash_key, place) else { return Ok(()) };
    let Some(disk) = medium.open_journal().map_err(unreadable)? else {
        tracing::warn!(
            "the journal of the database is missing, and the server was not stopped in order: what was written in the \
             last hour before may be lost"
        );
        return Ok(());
    };
    let mut records = Replay::new(&*disk, &hash_key, place).map_err(unreadable)?;
    let durability = if pace.is_in_memory { Durability::None } else { Durability::Immediate };
    let mut count = 0;
    while in_transaction(db, durability, |w| apply_some(w, &mut records, pace))? {
        count = records.place.number() - place.number();
    }
    if count > 0 {
        tracing::info!(commits = count, "the database has the changes of its journal");
    }
    if let Some(failed) = records.unreadable {
        // Usually it was being written when the power went, and its callers had no answer.
        tracing::error!(error = %failed, "the journal of the database cannot be read to its end: the latest changes may be lost");
        if !pace.is_in_memory {
            set_journal_aside(medium);
        }
    }
    Ok(())
}

/// Has the place of the journal on the card not used again. Its changes are durable elsewhere.
pub(super) fn set_journal_aside(medium: &dyn Medium) {
    match medium.set_journal_aside() {
        Ok(()) => tracing::warn!(
            "the disk failed in the journal of the database: the file is kept beside it as `journal-bad`, so that its \
             place is not used again"
        ),
        Err(failed) => tracing::warn!(error = %failed, "the journal of the database cannot be renamed"),
    }
}

/// Applies all records, or one with a pace alone; false when there is none.
fn apply_some(w: &mut Write, records: &mut Replay, pace: &mut Pace) -> Result<bool> {
    let begin = records.place;
    loop {
        let number = records.place.number();
        let Some(rows) = records.next() else { break };
        apply(w, number, rows, pace)?;
        if pace.is_alone {
            break;
        }
    }
    if records.place == begin {
        return Ok(false);
    }
    w.put(&META, PLACE_ROW, &records.place.to_row())?;
    Ok(true)
}

/// Puts the rows of a record but for those left out. `OtherVersion` when they are of a table that there is not: the
/// checksum says that the record is what was written.
fn apply(w: &mut Write, number: u64, mut rows: &[u8], pace: &mut Pace) -> Result<()> {
    for row in 0.. {
        if rows.is_empty() {
            break;
        }
        let (name, key, value) = journal::next_row(&mut rows)?;
        let table = TABLES.iter().find(|table| table.name.as_bytes() == name).ok_or(Error::OtherVersion)?;
        if pace.left_out.contains(&(number, row)) {
            continue;
        }
        pace.at = Some(RowOf { number, row, table: table.name });
        match value {
            Some(value) => w.put(table, key, value)?,
            None => drop(w.remove(table, key)?),
        }
    }
    pace.at = None;
    Ok(())
}

/// The commits in the journal that the next start will apply.
pub(super) fn waiting(medium: &dyn Medium, get: &impl Get) -> Result<u64> {
    let (Some(place), Some(disk)) = (stored_place(get)?, medium.open_journal().map_err(unreadable)?) else {
        return Ok(0);
    };
    let mut records = Replay::new(&*disk, get.hash_key(), place).map_err(unreadable)?;
    while records.next().is_some() {}
    match records.unreadable {
        Some(failed) => Err(unreadable(failed)),
        None => Ok(records.place.number() - place.number()),
    }
}

/// The latest changes may be in it, so it is not passed over.
fn unreadable(failed: std::io::Error) -> Error {
    Error::Io(format!("the journal of the database, which may have its latest changes, cannot be read: {failed}"))
}

/// A transaction beside the queue. An error of the job aborts it.
pub(super) fn in_transaction<T>(
    db: &Database,
    durability: Durability,
    job: impl FnOnce(&mut Write) -> Result<T>,
) -> Result<T> {
    let mut txn = begin(db)?;
    let mut w = Write::new(&txn, [0; 16], Position(0));
    let start = w.mark();
    let done = job(&mut w)?;
    let wrote = w.wrote_since(&start);
    w.put_counters(&start)?;
    drop(w);
    if !wrote {
        txn.abort().map_err(Error::of)?;
        return Ok(done);
    }
    if matches!(durability, Durability::None) {
        in_memory(&mut txn)?;
    }
    txn.commit().map_err(Error::of)?;
    Ok(done)
}

/// A transaction whose commit is durable.
pub(super) fn begin(db: &Database) -> Result<WriteTransaction> {
    let mut txn = db.begin_write().map_err(Error::of)?;
    // Each durable commit records the pages in use, so that a start after a power cut needs no recovery scan.
    txn.set_quick_repair(true);
    txn.set_durability(Durability::Immediate).map_err(|failed| Error::Damaged(failed.to_string()))?;
    Ok(txn)
}

/// Makes its commit one that readers see, and that is on the card with the next durable one.
pub(super) fn in_memory(txn: &mut WriteTransaction) -> Result<()> {
    txn.set_quick_repair(false);
    txn.set_durability(Durability::None).map_err(|failed| Error::Damaged(failed.to_string()))
}

fn stored_place(get: &impl Get) -> Result<Option<Place>> {
    get.get(&META, PLACE_ROW)?.map(|row| Place::from_row(&row)).transpose()
}

//! Copies of the whole database, row by row: out of a snapshot in pieces, and into a new file.
//!
//! A piece is a part of the rows in the order of tables and keys, each row under a checksum of its own. It ends where a key's
//! hash says so, so that a part of the database that did not change makes the same piece again: who keeps pieces by their
//! hash writes only what is new. What is put back in that order is a compact database, whatever the first one looked
//! like.
//!
//! Some tables stay out of copies: caches, and what must not come back ([`LEFT_OUT`]).

use std::hash::Hasher;
use std::ops::ControlFlow;

use siphasher::sip::SipHasher13;

use super::access::{Get, HASH_KEY_ROW, Read, Write};
use super::counters::{self, Counters};
use super::journal::PLACE_ROW;
use super::row_encoding::{Unpack, put_bytes};
use super::schema::{
    DELAYED, DELAYED_DUE, DELAYED_USER, META, ONE_TIME_KEY, PASSWORD_LINK, PREVIEW, PREVIEW_END, SLIDING_CONNECTION,
    SLIDING_ROOM, SLIDING_STATE, TABLES, THUMBNAIL, TOLD_ROOM, TOLD_ROOM_AGE,
};
use super::{Error, Position, Result, Store, StoreOptions, Table, WriteError, migrate};

/// Tables that no copy has. One-time keys: a key that was handed out since would be handed out again, and the message under it
/// could not be read; apps upload new ones when the server has none. Links that set a password: one that was used since would
/// work once more. Connections of sliding sync: an app whose connection is not known begins again. Delayed events, which were
/// sent or taken back since. The others are made again when asked for.
pub const LEFT_OUT: &[&Table] = &[
    &ONE_TIME_KEY,
    &PASSWORD_LINK,
    &SLIDING_CONNECTION,
    &SLIDING_ROOM,
    &SLIDING_STATE,
    &DELAYED,
    &DELAYED_DUE,
    &DELAYED_USER,
    &THUMBNAIL,
    &PREVIEW,
    &PREVIEW_END,
    &TOLD_ROOM,
    &TOLD_ROOM_AGE,
];

/// A piece is at most so long, unless it is one row.
pub const PIECE_BYTES_MAX: usize = 256 << 10;
/// Shorter pieces end only with the database. Behind that, one key in [`CUT`] ends a piece.
const PIECE_BYTES_MIN: usize = 128 << 10;
const CUT: u64 = 512;
/// What a row takes in a piece beside its key and value: a mark, two lengths, a checksum.
const ROW_EXTRA: usize = 1 + 5 + 5 + 4;

/// The positions that a restored database leaves free: more than were given out since the copy was made, so that none
/// is given out twice. A thousand million changes are 2^30; a gap in a room's history takes 2^18.
const JUMP: u64 = 1 << 40;
/// Lost times that are remembered: a database restored more often forgets the earliest.
const LOST_MAX: usize = 32;
const LOST_ROW: &[u8] = b"lost";

/// Marks of a piece.
const TABLE: u8 = 0;
const ROW: u8 = 1;

/// Bounds for the rows of the store itself in a copy, which are held until the end.
const META_ROWS_MAX: usize = 64;
const META_BYTES_MAX: usize = 4096;

/// Rows of a snapshot, a piece at a time.
pub struct CopyOut {
    read: Read,
    table: usize,
    /// The last key of the present table that was copied.
    after: Option<Vec<u8>>,
}

/// The next part of a copy.
pub enum Copied {
    Piece {
        bytes: Vec<u8>,
        rows: u64,
    },
    /// The next row alone is so long.
    Long(u64),
    End,
}

impl Store {
    /// Begins a copy of everything committed so far. While it lasts the file grows by each page that is changed.
    pub fn copy_out(&self) -> Result<CopyOut> {
        Ok(CopyOut { read: self.read()?, table: 0, after: None })
    }
}

impl CopyOut {
    /// The random key of the database.
    pub fn hash_key(&self) -> [u8; 16] {
        *self.read.hash_key()
    }

    /// The format of its rows.
    pub fn format(&self) -> Result<u32> {
        Ok(migrate::found(&self.read)?.unwrap_or(migrate::FORMAT))
    }

    /// Rows in all, as the tables tell.
    pub fn rows(&self) -> Result<u64> {
        copied_tables().map(|table| self.read.table(table)?.map_or(Ok(0), |open| open.count())).sum()
    }

    /// The next piece, into memory of at most `bytes_max` (at least [`PIECE_BYTES_MAX`]).
    pub fn next(&mut self, bytes_max: usize) -> Result<Copied> {
        let (mut out, mut rows) = (Vec::new(), 0);
        while let Some(table) = TABLES.get(self.table) {
            if is_left_out(table) {
                self.table += 1;
                continue;
            }
            let mut named = false;
            let (mut long, mut is_full) = (None, false);
            // The key after a key is that key with a zero behind it.
            let from = self.after.as_ref().map(|after| [after, &[0][..]].concat()).unwrap_or_default();
            let after = &mut self.after;
            self.read.range(table, &from, None, false, &mut |key, value| {
                if table.name == META.name && key == PLACE_ROW {
                    return Ok(ControlFlow::Continue(()));
                }
                let more = 2 + table.name.len() + ROW_EXTRA + key.len() + value.len();
                if out.len() + more > if rows == 0 { bytes_max } else { PIECE_BYTES_MAX } {
                    (long, is_full) = ((rows == 0).then_some(more as u64), true);
                    return Ok(ControlFlow::Break(()));
                }
                if out.is_empty() {
                    // It does not grow behind this, which would take twice as much.
                    out.reserve_exact(more.max(PIECE_BYTES_MAX));
                }
                if !named {
                    named = true;
                    out.extend_from_slice(&[TABLE, table.name.len() as u8]);
                    out.extend_from_slice(table.name.as_bytes());
                }
                put_row(&mut out, table, key, value);
                rows += 1;
                let after = after.get_or_insert_default();
                after.clear();
                after.extend_from_slice(key);
                is_full = out.len() >= PIECE_BYTES_MIN && is_cut(key);
                Ok(if is_full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            if let Some(bytes) = long {
                return Ok(Copied::Long(bytes));
            }
            if is_full {
                return Ok(Copied::Piece { bytes: out, rows });
            }
            (self.table, self.after) = (self.table + 1, None);
        }
        Ok(if rows == 0 { Copied::End } else { Copied::Piece { bytes: out, rows } })
    }
}

fn copied_tables() -> impl Iterator<Item = &'static Table> {
    TABLES.iter().copied().filter(|table| !is_left_out(table))
}

fn is_left_out(table: &Table) -> bool {
    LEFT_OUT.iter().any(|left| left.name == table.name)
}

fn put_row(out: &mut Vec<u8>, table: &Table, key: &[u8], value: &[u8]) {
    out.push(ROW);
    put_bytes(out, key);
    put_bytes(out, value);
    out.extend_from_slice(&sum(table, key, value).to_be_bytes());
}

fn sum(table: &Table, key: &[u8], value: &[u8]) -> u32 {
    let mut hasher = SipHasher13::new();
    for part in [table.name.as_bytes(), key, value] {
        hasher.write_u32(part.len() as u32);
        hasher.write(part);
    }
    hasher.finish() as u32
}

fn is_cut(key: &[u8]) -> bool {
    let mut hasher = SipHasher13::new();
    hasher.write(key);
    hasher.finish().is_multiple_of(CUT)
}

/// Refuses the format of a copy's rows that this version cannot read.
pub fn check_format(format: u32) -> Result<()> {
    migrate::check(format).map(drop)
}

/// Why a piece cannot be put back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPiece {
    #[error("its rows are not as they were written")]
    Rows,
    #[error("a row of {0} has another checksum")]
    Sum(&'static str),
    #[error("it has the table {0:?}, which this version does not know: use a newer one")]
    Table(String),
    #[error("the rows of {0} are out of order")]
    Order(&'static str),
    #[error("its first rows are missing")]
    NoBeginning,
    #[error(transparent)]
    Store(#[from] Error),
}

/// Visits the rows of a piece, but for those of a table that an older version copied and that is left out now. Answers how many
/// rows it has.
pub fn each_row<'p>(
    piece: &'p [u8],
    visit: &mut dyn FnMut(&'static Table, &'p [u8], &'p [u8]) -> Result<(), BadPiece>,
) -> Result<u64, BadPiece> {
    let (mut unpack, mut table, mut rows) = (Unpack::new(piece), None, 0);
    while let Some(mark) = unpack.u8() {
        if mark == TABLE {
            let name = unpack.u8().and_then(|length| unpack.take(length.into())).ok_or(BadPiece::Rows)?;
            let known = TABLES.iter().copied().find(|known| known.name.as_bytes() == name);
            table = Some(known.ok_or_else(|| BadPiece::Table(String::from_utf8_lossy(name).into_owned()))?);
            continue;
        }
        let table = table.filter(|_| mark == ROW).ok_or(BadPiece::Rows)?;
        let (key, value) = (unpack.bytes().ok_or(BadPiece::Rows)?, unpack.bytes().ok_or(BadPiece::Rows)?);
        let told = unpack.array().map(u32::from_be_bytes).ok_or(BadPiece::Rows)?;
        if told != sum(table, key, value) {
            return Err(BadPiece::Sum(table.name));
        }
        if !table.shape.fits(key, value) {
            return Err(BadPiece::Rows);
        }
        if !is_left_out(table) {
            visit(table, key, value)?;
        }
        rows += 1;
    }
    Ok(rows)
}

/// The order of rows from piece to piece: each table once, its keys rising.
#[derive(Default)]
pub struct Order {
    table: &'static str,
    last: Vec<u8>,
    done: Vec<&'static str>,
}

impl Order {
    /// Checks the next row.
    pub fn check(&mut self, table: &'static Table, key: &[u8]) -> Result<(), BadPiece> {
        if self.table != table.name {
            if self.done.contains(&table.name) {
                return Err(BadPiece::Order(table.name));
            }
            self.done.push(table.name);
            self.table = table.name;
        } else if *key <= *self.last {
            return Err(BadPiece::Order(table.name));
        }
        self.last.clear();
        self.last.extend_from_slice(key);
        Ok(())
    }
}

/// A new database that a copy is put into, a piece at a time.
pub struct CopyIn {
    store: Store,
    order: Order,
    /// The rows of the store itself, which make the rest valid: written last.
    meta: Vec<(Vec<u8>, Vec<u8>)>,
}

impl CopyIn {
    /// Makes the file, which must be new.
    pub fn begin(options: StoreOptions) -> Result<CopyIn> {
        Ok(CopyIn { store: Store::open(options)?, order: Order::default(), meta: Vec::new() })
    }

    #[cfg(test)]
    fn begin_on(medium: super::MemoryMedium) -> CopyIn {
        CopyIn { store: Store::on_memory(medium), order: Order::default(), meta: Vec::new() }
    }

    /// Puts the rows of a piece, all of them or none; blocks until they are on the card. Answers how many.
    pub fn put(&mut self, piece: Vec<u8>) -> Result<u64, BadPiece> {
        let (order, meta) = (&mut self.order, &mut self.meta);
        let rows = each_row(&piece, &mut |table, key, value| {
            order.check(table, key)?;
            if table.name == META.name {
                if meta.len() == META_ROWS_MAX || key.len() + value.len() > META_BYTES_MAX {
                    return Err(BadPiece::Rows);
                }
                meta.push((key.to_vec(), value.to_vec()));
            }
            Ok(())
        })?;
        let job = move |w: &mut Write<'_>| {
            let mut run: Vec<(&[u8], &[u8])> = Vec::new();
            let mut of: Option<&'static Table> = None;
            let mut puts = |table: &'static Table, run: &mut Vec<(&[u8], &[u8])>| {
                let put = if table.name == META.name { Ok(()) } else { w.put_sorted(table, run) };
                run.clear();
                put
            };
            each_row(&piece, &mut |table, key, value| {
                if let Some(before) = of.replace(table).filter(|before| before.name != table.name) {
                    puts(before, &mut run)?;
                }
                run.push((key, value));
                Ok(())
            })?;
            of.map_or(Ok(()), |table| puts(table, &mut run)).map_err(BadPiece::Store)
        };
        self.store.write_freeing_blocking(job).map_err(|failed| match failed {
            WriteError::Job(bad) => bad,
            WriteError::Store(failed) => BadPiece::Store(failed),
        })?;
        Ok(rows)
    }

    /// Makes the rows a database and closes it. Positions begin anew far behind those of the copy, and the time between is
    /// remembered as lost ([`Store::known`]).
    pub fn finish(self) -> Result<(), BadPiece> {
        let row = |name: &[u8]| self.meta.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let (Some(key), Some(counted)) = (row(HASH_KEY_ROW), row(counters::ROW)) else {
            return Err(BadPiece::NoBeginning);
        };
        let format = row(migrate::FORMAT_ROW).and_then(|row| row.try_into().ok().map(u32::from_be_bytes));
        let (Some(mut counters), Some(format), 16) = (Counters::decode(&counted), format, key.len()) else {
            return Err(BadPiece::Rows);
        };
        migrate::check(format)?;
        let (begin, end) = (counters.position, counters.position.0.checked_add(JUMP).ok_or(BadPiece::Rows)?);
        counters.position = Position(end);
        let mut lost = lost_of(&row(LOST_ROW).unwrap_or_default());
        lost.push((begin, Position(end)));
        let lost: Vec<u8> = lost[lost.len().saturating_sub(LOST_MAX)..]
            .iter()
            .flat_map(|(from, to)| [from.to_key(), to.to_key()].concat())
            .collect();
        let store = self.store.clone();
        let job = move |w: &mut Write<'_>| {
            for (name, value) in &self.meta {
                w.put(&META, name, value)?;
            }
            w.put(&META, LOST_ROW, &lost)?;
            counters.put(w)
        };
        store.write_freeing_blocking(job).map_err(|failed| BadPiece::Store(failed.into()))?;
        store.close_blocking();
        Ok(())
    }

    /// Closes what was begun.
    pub fn give_up(self) {
        self.store.close_blocking();
    }
}

/// The times that were lost: between the two positions something was once that is not here.
pub(super) type Lost = Vec<(Position, Position)>;

fn lost_of(row: &[u8]) -> Lost {
    let (pairs, _) = row.as_chunks::<16>();
    let at = |bytes: &[u8]| Position::from_key(bytes).unwrap_or_default();
    pairs.iter().map(|pair| (at(&pair[..8]), at(&pair[8..]))).collect()
}

pub(super) fn lost(get: &impl Get) -> Result<Lost> {
    Ok(get.get(&META, LOST_ROW)?.map(|row| lost_of(&row)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::super::MemoryMedium;
    use super::super::schema::{ACCOUNT, EVENT_ID, TIMELINE};
    use super::*;

    fn pieces(store: &Store) -> Vec<Vec<u8>> {
        let mut out = store.copy_out().unwrap();
        let mut pieces = Vec::new();
        loop {
            match out.next(PIECE_BYTES_MAX).unwrap() {
                Copied::Piece { bytes, .. } => pieces.push(bytes),
                Copied::Long(_) => panic!("no row is long"),
                Copied::End => return pieces,
            }
        }
    }

    fn filled(rows: u32) -> Store {
        let store = Store::in_memory();
        for from in (0..rows).step_by(1000) {
            let job = move |w: &mut Write<'_>| {
                for at in from..(from + 1000).min(rows) {
                    w.put(&TIMELINE, &at.to_be_bytes(), &at.to_le_bytes().repeat(20))?;
                    w.put(&EVENT_ID, &[&[0; 6][..], &at.to_be_bytes()].concat(), b"")?;
                }
                w.put(&ONE_TIME_KEY, b"a", b"secret")?;
                w.next_position();
                Ok::<_, Error>(())
            };
            store.write_blocking(job).unwrap();
        }
        store
    }

    fn restored(pieces: &[Vec<u8>]) -> Result<Store, BadPiece> {
        let card = MemoryMedium::default();
        let mut copy = CopyIn::begin_on(card.clone());
        for piece in pieces {
            copy.put(piece.clone())?;
        }
        copy.finish()?;
        Ok(Store::on_memory(card))
    }

    #[test]
    fn what_is_put_back_is_what_was_there_but_for_what_is_left_out() {
        let store = filled(10_000);
        let before = pieces(&store);
        assert!(before.len() > 4 && before.iter().all(|piece| piece.len() <= PIECE_BYTES_MAX));
        let copy = restored(&before).unwrap();
        let (old, new) = (store.read().unwrap(), copy.read().unwrap());
        assert_eq!(old.hash_key(), new.hash_key());
        assert!(!new.has(&ONE_TIME_KEY, b"a").unwrap() && old.has(&ONE_TIME_KEY, b"a").unwrap());
        assert_eq!(new.get(&TIMELINE, &77u32.to_be_bytes()), old.get(&TIMELINE, &77u32.to_be_bytes()));
        let (was, now) = (old.position().unwrap(), new.position().unwrap());
        assert_eq!(now.0, was.0 + JUMP);
        let lost = Position(was.0 + 1);
        assert_eq!((copy.known(was), copy.known(lost), copy.known(now)), (Some(was), None, Some(now)));
        assert_eq!(copy.before_loss(lost), was);
        let later = Position(now.0 + 1);
        assert_eq!((copy.known(later), store.known(lost)), (Some(later), Some(lost)));
        drop((old, new));
        let rows = |store: &Store| store.copy_out().unwrap().rows().unwrap();
        assert_eq!(rows(&copy), rows(&store), "the row of the lost time is there, that of the journal not yet");
    }

    /// A copy of an older version has rows of tables that are left out now.
    #[test]
    fn what_is_left_out_does_not_come_back_from_an_older_copy() {
        let mut piece = vec![TABLE, PASSWORD_LINK.name.len() as u8];
        piece.extend_from_slice(PASSWORD_LINK.name.as_bytes());
        put_row(&mut piece, &PASSWORD_LINK, &[7; 32], b"{}");
        assert_eq!(each_row(&piece, &mut |_, _, _| Err(BadPiece::Rows)), Ok(1));
    }

    #[test]
    fn a_change_makes_few_new_pieces() {
        let store = filled(20_000);
        let before = pieces(&store);
        let job = |w: &mut Write<'_>| w.put(&TIMELINE, &[0, 0, 40, 1, 7], b"between");
        store.write_blocking(job).unwrap();
        let after = pieces(&store);
        let new = after.iter().filter(|piece| !before.contains(piece)).count();
        assert!(before.len() > 10 && new <= 2, "{new} of {}", after.len());
    }

    #[test]
    fn a_row_that_is_longer_than_a_piece_is_one() {
        let store = Store::in_memory();
        store.write_blocking(|w| w.put(&ACCOUNT, &[1], &[7; 400_000])).unwrap();
        let mut out = store.copy_out().unwrap();
        let Copied::Piece { .. } = out.next(PIECE_BYTES_MAX).unwrap() else { panic!("the rows before it") };
        let Copied::Long(bytes) = out.next(PIECE_BYTES_MAX).unwrap() else { panic!("it is long") };
        let Copied::Piece { bytes: piece, rows: 1 } = out.next(bytes as usize).unwrap() else { panic!("it fits") };
        assert_eq!(each_row(&piece, &mut |_, _, value| Ok(assert_eq!(value.len(), 400_000))), Ok(1));
    }

    #[test]
    fn no_piece_that_was_changed_passes() {
        let whole = pieces(&filled(300));
        let [piece] = &whole[..] else { panic!("{}", whole.len()) };
        for at in (0..piece.len()).step_by(173) {
            let mut wrong = piece.clone();
            wrong[at] ^= 1 << (at % 8);
            assert!(restored(&[wrong]).is_err(), "{at}");
        }
        for cut in (0..piece.len()).step_by(211) {
            let all = each_row(piece, &mut |_, _, _| Ok(())).unwrap();
            assert!(
                each_row(&piece[..cut], &mut |_, _, _| Ok(())).is_ok_and(|kept| kept < all)
                    || restored(&[piece[..cut].to_vec()]).is_err(),
                "{cut}"
            );
        }
        assert_eq!(restored(&[]).err(), Some(BadPiece::NoBeginning));
        assert!(matches!(restored(&[piece.clone(), piece.clone()]).err(), Some(BadPiece::Order(_))));
    }

    #[test]
    fn any_bytes_are_rows_or_none() {
        let whole = pieces(&filled(3));
        crate::base::any_bytes::any_bytes(&[&whole[0]], |bytes| {
            let _ = each_row(bytes, &mut |_, _, _| Ok(()));
        });
    }
}

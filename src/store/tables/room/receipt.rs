//! Receipts and read markers: how far someone has read.

use std::ops::ControlFlow;

use crate::store::row_encoding::{Unpack, put_bytes, put_u64};
use crate::store::schema::{RECEIPT, RECEIPT_LOG};
use crate::store::{Error, Get, Result, Write};
use crate::store::{Position, RoomNum, UserNum};

/// The kind of a mark. On disk: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// `m.read`: everyone sees it.
    Read = 0,
    /// `m.read.private`: only its user does.
    Private = 1,
    /// `m.fully_read`: the user's own marker, shown as room account data.
    FullyRead = 2,
}

impl Kind {
    pub fn of(name: &str) -> Option<Kind> {
        match name {
            "m.read" => Some(Kind::Read),
            "m.read.private" => Some(Kind::Private),
            "m.fully_read" => Some(Kind::FullyRead),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Read => "m.read",
            Kind::Private => "m.read.private",
            Kind::FullyRead => "m.fully_read",
        }
    }

    fn from_code(code: u8) -> Option<Kind> {
        [Kind::Read, Kind::Private, Kind::FullyRead].into_iter().find(|kind| *kind as u8 == code)
    }
}

/// The user, kind and thread of a mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whose {
    pub user: UserNum,
    pub kind: Kind,
    /// Empty for a receipt without a thread; `main` or a thread root's event id otherwise. At most 255 bytes.
    pub thread: String,
}

/// A mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    pub event_id: String,
    pub ts: u64,
    /// When it was stored; the sync token to compare with.
    pub at: Position,
}

fn key(room: RoomNum, whose: &Whose) -> Vec<u8> {
    let mut key = Vec::with_capacity(9 + whose.thread.len());
    key.extend_from_slice(&room.to_key());
    key.extend_from_slice(&whose.user.to_key());
    key.push(whose.kind as u8);
    key.extend_from_slice(whose.thread.as_bytes());
    key
}

fn whose_of(key: &[u8]) -> Option<Whose> {
    let user = key.get(4..8).and_then(UserNum::from_key)?;
    let kind = Kind::from_code(*key.get(8)?)?;
    Some(Whose { user, kind, thread: std::str::from_utf8(&key[9..]).ok()?.to_owned() })
}

fn log_key(room: RoomNum, at: Position) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&room.to_key());
    key[4..].copy_from_slice(&at.to_key());
    key
}

/// A mark, when there is one.
pub fn get(get: &impl Get, room: RoomNum, whose: &Whose) -> Result<Option<Receipt>> {
    let key = key(room, whose);
    let Some(row) = get.get(&RECEIPT, &key)? else { return Ok(None) };
    unpack(&row).map(Some).ok_or_else(|| Error::corrupt(&RECEIPT, &key))
}

fn unpack(row: &[u8]) -> Option<Receipt> {
    let mut unpack = Unpack::new(row);
    let (at, ts) = (Position(unpack.u64()?), unpack.u64()?);
    Some(Receipt { event_id: unpack.text()?.to_owned(), ts, at })
}

/// Sets a mark, in the log of the room's marks too. `receipt.at` must be a position of this write, used for this alone.
pub fn put(w: &mut Write, room: RoomNum, whose: &Whose, receipt: &Receipt) -> Result<()> {
    if let Some(old) = get(w, room, whose)? {
        w.remove(&RECEIPT_LOG, &log_key(room, old.at))?;
    }
    let key = key(room, whose);
    let mut row = Vec::with_capacity(64);
    put_u64(&mut row, receipt.at.0);
    put_u64(&mut row, receipt.ts);
    put_bytes(&mut row, receipt.event_id.as_bytes());
    w.put(&RECEIPT, &key, &row)?;
    w.put(&RECEIPT_LOG, &log_key(room, receipt.at), &key[4..])
}

/// Drops a user's oldest marks of the kind in threads when there are more than `most`. Bounded by that number.
pub fn keep_threads(w: &mut Write, room: RoomNum, of: &Whose, most: usize) -> Result<()> {
    let prefix = key(room, &Whose { thread: String::new(), ..of.clone() });
    let (mut count, mut oldest) = (0, None);
    w.prefix(&RECEIPT, &prefix, &mut |key, row| {
        // The mark of the whole room does not count.
        if key.len() > prefix.len() {
            let at = unpack(row).ok_or_else(|| Error::corrupt(&RECEIPT, key))?.at;
            count += 1;
            if oldest.as_ref().is_none_or(|(oldest, _)| at < *oldest) {
                oldest = Some((at, key.to_vec()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if let Some((at, key)) = oldest.filter(|_| count > most) {
        w.remove(&RECEIPT, &key)?;
        w.remove(&RECEIPT_LOG, &log_key(room, at))?;
    }
    Ok(())
}

/// Visits a user's marks in a room. Bounded by the marks in threads that are kept.
pub fn list_of(
    reads: &impl Get,
    room: RoomNum,
    user: UserNum,
    visit: &mut dyn FnMut(Whose, Receipt) -> Result<ControlFlow<()>>,
) -> Result<()> {
    reads.prefix(&RECEIPT, &[room.to_key(), user.to_key()].concat(), &mut |key, row| {
        let (whose, receipt) = whose_of(key).zip(unpack(row)).ok_or_else(|| Error::corrupt(&RECEIPT, key))?;
        visit(whose, receipt)
    })
}

/// Visits a room's marks set after `after` and up to `to`, newest first, until the visitor breaks. Private ones too:
/// the caller shows them only to their user.
pub fn list_newest(
    reads: &impl Get,
    room: RoomNum,
    after: Position,
    to: Position,
    visit: &mut dyn FnMut(Whose, Receipt) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let from = log_key(room, Position(after.0.saturating_add(1)));
    let end = log_key(room, Position(to.0.saturating_add(1)));
    reads.range(&RECEIPT_LOG, &from, Some(&end), true, &mut |key, value| {
        let corrupt = || Error::corrupt(&RECEIPT_LOG, key);
        let row_key = [&room.to_key()[..], value].concat();
        let whose = whose_of(&row_key).ok_or_else(corrupt)?;
        let receipt = get(reads, room, &whose)?.ok_or_else(corrupt)?;
        visit(whose, receipt)
    })
}

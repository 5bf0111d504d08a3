//! Transaction ids: a repeated send gets the first one's answer, and the sending device its own id back.
//!
//! Kept for a day, which outlives any client's retries; expired ones are dropped a few at a time as new ones come.

use std::ops::ControlFlow;

use crate::store::row_encoding::{Unpack, put_bytes, put_u64};
use crate::store::schema::{TXN, TXN_EVENT};
use crate::store::{Error, Get, Result, Write};
use crate::store::{EventNum, RoomNum, UserNum};

/// How long a transaction id is remembered, in milliseconds.
pub const KEPT_MS: u64 = 24 * 60 * 60 * 1000;

/// Expired rows dropped with each new one: more than one, so that the table shrinks to the rows of a day.
const SWEPT_PER_PUT: usize = 4;

/// The sender of a transaction and its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Txn {
    pub user: UserNum,
    /// A client may use the same id again in another room: that is another request.
    pub room: RoomNum,
    pub device: String,
    /// The client's transaction id.
    pub id: String,
    /// The kind of request, as far as the path tells: the same id used for another kind is another request.
    pub what: String,
}

fn txn_key(get: &impl Get, txn: &Txn) -> Result<[u8; 20]> {
    let mut name = Vec::with_capacity(txn.device.len() + txn.id.len() + 8);
    name.extend_from_slice(&txn.room.to_key());
    put_bytes(&mut name, txn.device.as_bytes());
    // Rows of earlier versions have none.
    if !txn.what.is_empty() {
        put_bytes(&mut name, txn.what.as_bytes());
    }
    name.extend_from_slice(txn.id.as_bytes());
    let mut out = [0; 20];
    out[..4].copy_from_slice(&txn.user.to_key());
    out[4..].copy_from_slice(&get.hash128(&[&name]));
    Ok(out)
}

/// The event a transaction made earlier.
pub fn get(get: &impl Get, txn: &Txn) -> Result<Option<EventNum>> {
    let key = txn_key(get, txn)?;
    let Some(value) = get.get(&TXN, &key)? else { return Ok(None) };
    EventNum::from_key(&value).map(Some).ok_or_else(|| Error::corrupt(&TXN, &key))
}

/// The transaction that made an event, for `unsigned.transaction_id` to the device that sent it.
pub fn of_event(get: &impl Get, event: EventNum) -> Result<Option<Txn>> {
    let key = event.to_key();
    let Some(value) = get.get(&TXN_EVENT, &key)? else { return Ok(None) };
    unpack(&value).map(|(_, txn)| Some(txn)).ok_or_else(|| Error::corrupt(&TXN_EVENT, &key))
}

/// Remembers a transaction until `now_ms` + [`KEPT_MS`].
pub fn put(w: &mut Write, txn: &Txn, event: EventNum, now_ms: u64) -> Result<()> {
    sweep(w, now_ms)?;
    let key = txn_key(w, txn)?;
    w.put(&TXN, &key, &event.to_key())?;
    let mut row = Vec::with_capacity(32);
    put_u64(&mut row, now_ms + KEPT_MS);
    put_u64(&mut row, txn.user.0.into());
    put_u64(&mut row, txn.room.0.into());
    put_bytes(&mut row, txn.device.as_bytes());
    put_bytes(&mut row, txn.id.as_bytes());
    put_bytes(&mut row, txn.what.as_bytes());
    w.put(&TXN_EVENT, &event.to_key(), &row)
}

fn unpack(row: &[u8]) -> Option<(u64, Txn)> {
    let mut unpack = Unpack::new(row);
    let expires_ms = unpack.u64()?;
    let (user, room) = (UserNum(unpack.u32()?), RoomNum(unpack.u32()?));
    let (device, id) = (unpack.text()?.to_owned(), unpack.text()?.to_owned());
    let what = if unpack.is_empty() { String::new() } else { unpack.text()?.to_owned() };
    Some((expires_ms, Txn { user, room, device, id, what }))
}

/// Drops a few of the oldest rows when they have expired. Event numbers rise with time, so the first rows are oldest.
fn sweep(w: &mut Write, now_ms: u64) -> Result<()> {
    let mut expired = Vec::new();
    w.range(&TXN_EVENT, &[], None, false, &mut |key, value| {
        let (expires_ms, txn) = unpack(value).ok_or_else(|| Error::corrupt(&TXN_EVENT, key))?;
        if expires_ms > now_ms || expired.len() == SWEPT_PER_PUT {
            return Ok(ControlFlow::Break(()));
        }
        expired.push((key.to_vec(), txn));
        Ok(ControlFlow::Continue(()))
    })?;
    for (event, txn) in expired {
        let key = txn_key(w, &txn)?;
        w.remove(&TXN, &key)?;
        w.remove(&TXN_EVENT, &event)?;
    }
    Ok(())
}

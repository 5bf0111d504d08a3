//! Transaction ids: a repeated send gets the first one's answer, and the sending device its own id back.
//!
//! Kept for a day, which outlives any client's retries; expired ones are dropped some at a time as new ones come.
//!
//! A device's ids stand together, in the order of their text. Many clients count, or begin with the time, and each of their ids
//! comes beside the one before; those that draw lots have few pages for a day. So messages share pages here, which a hash
//! would spread.

use std::ops::ControlFlow;

use crate::store::row_encoding::{Unpack, put_bytes, put_u64};
use crate::store::schema::{TXN, TXN_EVENT, TXN_ID};
use crate::store::{Error, Get, Key, Result, Write};
use crate::store::{EventNum, RoomNum, UserNum};

/// How long a transaction id is remembered, in milliseconds.
pub const KEPT_MS: u64 = 24 * 60 * 60 * 1000;

/// Expired rows dropped at once, by the first transaction an hour after the oldest expired, and by those after it while there are
/// such: in 64 transactions more go than come.
const SWEPT_AT_ONCE: usize = 64;
const SWEPT_AFTER_MS: u64 = 60 * 60 * 1000;
/// Nothing expires later than this from now: such a row is of a clock that was wrong, and would keep all behind it. A clock that is
/// behind goes on from the time written down at most an hour before.
const AHEAD_MS: u64 = KEPT_MS + 2 * 60 * 60 * 1000;
/// No more follow when those are longer: an app chooses its ids, which only the head of a request bounds, to 8 KiB.
const SWEPT_BYTES: usize = 32 << 10;

/// This much of an id is in its key: the time, or a count, with a name before it.
const TEXT_BYTES: usize = 32;

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

impl Txn {
    /// All that makes it another one, but for the user.
    fn hash(&self, get: &impl Get) -> [u8; 16] {
        let mut name = Vec::with_capacity(self.device.len() + self.id.len() + 8);
        name.extend_from_slice(&self.room.to_key());
        put_bytes(&mut name, self.device.as_bytes());
        // Rows of earlier versions have none.
        if !self.what.is_empty() {
            put_bytes(&mut name, self.what.as_bytes());
        }
        name.extend_from_slice(self.id.as_bytes());
        get.hash128(&[&name])
    }

    fn key(&self, get: &impl Get) -> Key {
        let device = get.hash128(&[self.device.as_bytes()]);
        let text = &self.id.as_bytes()[..self.id.len().min(TEXT_BYTES)];
        Key::new().raw(self.user.to_key()).raw(&device[..4]).raw(text).raw(&self.hash(get)[..8])
    }

    /// Its key in format 3.
    fn old_key(&self, get: &impl Get) -> Key {
        Key::new().raw(self.user.to_key()).raw(self.hash(get))
    }
}

/// The event a transaction made less than a day ago, which may have been removed since.
pub fn get(get: &impl Get, txn: &Txn, now_ms: u64) -> Result<Option<EventNum>> {
    let mut found = (&TXN_ID, txn.key(get));
    let mut value = get.get(&TXN_ID, &found.1)?;
    if value.is_none() && get.count(&TXN)? > 0 {
        found = (&TXN, txn.old_key(get));
        value = get.get(&TXN, &found.1)?;
    }
    let Some(value) = value else { return Ok(None) };
    let event = EventNum::from_key(&value).ok_or_else(|| Error::corrupt(found.0, &found.1))?;
    // Where little is sent, one that expired may still be here.
    let row = get.get(&TXN_EVENT, &event.to_key())?;
    let expires_ms = row.and_then(|row| Unpack::new(&row).u64()).unwrap_or(0);
    Ok((expires_ms > now_ms).then_some(event))
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
    let key = txn.key(w);
    w.put(&TXN_ID, &key, &event.to_key())?;
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

/// Drops some of the oldest rows when they have expired. Event numbers rise with time, so the first rows are oldest.
fn sweep(w: &mut Write, now_ms: u64) -> Result<()> {
    let (mut expired, mut bytes) = (Vec::new(), 0);
    w.range(&TXN_EVENT, &[], None, false, &mut |key, value| {
        let (expires_ms, txn) = unpack(value).ok_or_else(|| Error::corrupt(&TXN_EVENT, key))?;
        let since = if expired.is_empty() { SWEPT_AFTER_MS } else { 0 };
        let is_kept = expires_ms.saturating_add(since) > now_ms && expires_ms <= now_ms.saturating_add(AHEAD_MS);
        if is_kept || expired.len() == SWEPT_AT_ONCE || bytes > SWEPT_BYTES {
            return Ok(ControlFlow::Break(()));
        }
        bytes += value.len();
        expired.push((key.to_vec(), txn));
        Ok(ControlFlow::Continue(()))
    })?;
    for (event, txn) in expired {
        for (table, key) in [(&TXN_ID, txn.key(w)), (&TXN, txn.old_key(w))] {
            // The same transaction may have come again since, and made a later event.
            if w.get(table, &key)?.is_some_and(|value| value == event) {
                w.remove(table, &key)?;
                break;
            }
        }
        w.remove(&TXN_EVENT, &event)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    const MINUTE: u64 = 60_000;

    fn txn(n: u64) -> Txn {
        let device = if n.is_multiple_of(2) { "PHONE" } else { "DESK" };
        Txn { user: UserNum(1), room: RoomNum(1), device: device.into(), id: format!("m{n}"), what: "m.x".into() }
    }

    fn event_of(n: u64) -> EventNum {
        EventNum(n as u32 + 1)
    }

    #[test]
    fn a_transaction_is_remembered_for_a_day_and_not_for_ever() {
        let store = Store::in_memory();
        for n in 0..5_000 {
            store.write_blocking(move |w| put(w, &txn(n), event_of(n), n * MINUTE)).unwrap();
        }
        let read = store.read().unwrap();
        let (day, now) = (KEPT_MS / MINUTE, 4_999 * MINUTE);
        for n in 5_000 - day..5_000 {
            assert_eq!(get(&read, &txn(n), now), Ok(Some(event_of(n))));
            assert_eq!(of_event(&read, event_of(n)), Ok(Some(txn(n))));
        }
        let most = day + SWEPT_AFTER_MS / MINUTE + SWEPT_AT_ONCE as u64;
        for table in [&TXN_ID, &TXN_EVENT] {
            assert!(read.count(table).unwrap() <= most);
        }
        assert_eq!(get(&read, &txn(100), now), Ok(None));
    }

    /// A script that numbers its messages from 1 at each start had the first ones of a later day taken for those of before, and
    /// they were never sent, where nobody else had sent enough meanwhile.
    #[test]
    fn a_transaction_that_comes_again_after_a_day_is_another_one() {
        let store = Store::in_memory();
        store.write_blocking(|w| put(w, &txn(0), event_of(0), 0)).unwrap();
        let read = store.read().unwrap();
        assert_eq!(get(&read, &txn(0), KEPT_MS - 1), Ok(Some(event_of(0))));
        assert_eq!(get(&read, &txn(0), KEPT_MS), Ok(None));
        store.write_blocking(|w| put(w, &txn(0), event_of(1), KEPT_MS + 1)).unwrap();
        // The row of the first is dropped, and the second is still remembered.
        let later = KEPT_MS + 2 * SWEPT_AFTER_MS;
        store.write_blocking(move |w| put(w, &txn(2), event_of(2), later)).unwrap();
        let read = store.read().unwrap();
        assert_eq!(of_event(&read, event_of(0)), Ok(None));
        assert_eq!(get(&read, &txn(0), later), Ok(Some(event_of(1))));
    }

    /// One message of a clock that was a year ahead had the transactions of a year kept.
    #[test]
    fn a_clock_that_was_ahead_keeps_no_transactions() {
        let store = Store::in_memory();
        store.write_blocking(|w| put(w, &txn(0), event_of(0), 366 * KEPT_MS)).unwrap();
        store.write_blocking(|w| put(w, &txn(1), event_of(1), KEPT_MS)).unwrap();
        let read = store.read().unwrap();
        assert_eq!((of_event(&read, event_of(0)), read.count(&TXN_ID)), (Ok(None), Ok(1)));
        assert_eq!(get(&read, &txn(1), KEPT_MS), Ok(Some(event_of(1))));
    }

    #[test]
    fn whatever_is_in_a_request_makes_it_another() {
        let store = Store::in_memory();
        let long = Txn { id: "m".repeat(200), ..txn(0) };
        let named = long.clone();
        store.write_blocking(move |w| put(w, &named, EventNum(7), 0)).unwrap();
        let read = store.read().unwrap();
        assert_eq!(get(&read, &long, 0), Ok(Some(EventNum(7))));
        let others = [
            Txn { user: UserNum(2), ..long.clone() },
            Txn { room: RoomNum(2), ..long.clone() },
            Txn { device: "DESK".into(), ..long.clone() },
            Txn { id: "m".repeat(199), ..long.clone() },
            Txn { what: "m.y".into(), ..long.clone() },
        ];
        assert!(others.iter().all(|other| get(&read, other, 0) == Ok(None)));
    }

    /// A client sends again after the server was made a newer one, and gets the answer of before.
    #[test]
    fn a_transaction_of_format_3_is_remembered_to_its_end() {
        let store = Store::in_memory();
        let before = |w: &mut Write<'_>| {
            for n in 0..200 {
                put(w, &txn(n), event_of(n), n)?;
                let (new, old) = (txn(n).key(w), txn(n).old_key(w));
                w.remove(&TXN_ID, &new)?;
                w.put(&TXN, &old, &event_of(n).to_key())?;
            }
            put(w, &txn(200), event_of(200), 200)
        };
        store.write_blocking(before).unwrap();
        let read = store.read().unwrap();
        assert!((0..=200).all(|n| get(&read, &txn(n), 200) == Ok(Some(event_of(n)))));
        for n in 201..205 {
            store.write_blocking(move |w| put(w, &txn(n), event_of(n), 2 * KEPT_MS)).unwrap();
        }
        let read = store.read().unwrap();
        assert_eq!((read.count(&TXN), read.count(&TXN_ID), read.count(&TXN_EVENT)), (Ok(0), Ok(4), Ok(4)));
    }
}

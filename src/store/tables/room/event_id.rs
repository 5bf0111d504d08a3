//! Event ids: from a keyed hash of an id to the event's number.
//!
//! Hashes fall anywhere. In one large table each new id changes a page of its own, and by the next checkpoint some hundred
//! messages have changed some hundred pages for ten bytes each. So new ids go into a small table, whose few pages
//! every checkpoint writes for many ids. When that is full, the ids of a part of it go over into the large table, neighbours
//! together: with 200,000 events six or more of them share a page there. Look-ups ask both, the small one first; an id is in
//! one of them.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::store::schema::{EVENT_ID, EVENT_ID_RECENT};
use crate::store::{Error, EventNum, Get, Result, Table, Write};

/// Ids in the small table: some 30 pages. With twice as many each checkpoint would write twice as many pages of it, with
/// half as many those that go over would be half as dense in the large one.
pub(super) const RECENT_MAX: u64 = 8 << 10;
/// Ids that go over at once, with the one that finds the table full: twice as many rows are written, of which few have pages of
/// their own.
pub(super) const OVER: usize = 64;

/// This much of an id's hash leads to its event: a hit is compared with the event's row.
const HASH_BYTES: usize = 6;
const KEY_BYTES: usize = HASH_BYTES + 4;
type Key = [u8; KEY_BYTES];

fn key(hash: &[u8; 16], num: EventNum) -> Key {
    let mut key = [0; KEY_BYTES];
    key[..HASH_BYTES].copy_from_slice(&hash[..HASH_BYTES]);
    key[HASH_BYTES..].copy_from_slice(&num.to_key());
    key
}

/// The event with this id, as `is_it` says of those that may have it. What is asked for is mostly recent: then no page of the
/// large table has to be read, which is another one each time.
pub(super) fn find(get: &impl Get, id: &str, is_it: &dyn Fn(EventNum) -> Result<bool>) -> Result<Option<EventNum>> {
    let hash = get.hash128(&[id.as_bytes()]);
    for table in [&EVENT_ID_RECENT, &EVENT_ID] {
        for num in candidates(get, table, &hash)? {
            if is_it(num)? {
                return Ok(Some(num));
            }
        }
    }
    Ok(None)
}

/// The events in a table whose id may be the one with this hash. Nearly always one or none: others can share these few bits of
/// it, which an outsider cannot aim at.
fn candidates(get: &impl Get, table: &Table, hash: &[u8; 16]) -> Result<Vec<EventNum>> {
    let mut found = Vec::new();
    get.prefix(table, &hash[..HASH_BYTES], &mut |key, _| {
        found.push(EventNum::from_key(&key[HASH_BYTES..]).ok_or_else(|| Error::corrupt(table, key))?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

/// Makes the id lead to the number. When the small table is full, [`OVER`] others go over into the large one.
pub(super) fn put(w: &mut Write, id: &str, num: EventNum) -> Result<()> {
    let key = key(&w.hash128(&[id.as_bytes()]), num);
    if w.count(&EVENT_ID_RECENT)? >= RECENT_MAX {
        go_over(w, &key)?;
    }
    w.put(&EVENT_ID_RECENT, &key, &[])
}

/// Takes the ids over that follow this place, which is anywhere as the hash is: so none is left for long, and nothing has to
/// be remembered between two times.
///
/// The event that finds the table full has nothing to do with them. A page that is damaged is no reason to refuse it: the
/// ids that belong there stay where they are, of new ones as large a part as the page is of the large table.
fn go_over(w: &mut Write, from: &Key) -> Result<()> {
    let Some(keys) = unless_damaged(w, |w| neighbours(w, from))? else { return Ok(()) };
    for key in &keys {
        // A change that meets the page would break the transaction, with all who are in it. A look does not.
        if unless_damaged(w, |w| around(w, key))?.is_none() {
            continue;
        }
        w.remove(&EVENT_ID_RECENT, key)?;
        w.put(&EVENT_ID, key, &[])?;
    }
    Ok(())
}

/// None when a page is damaged, which is said in the log: once, and then at the second time, the fourth, the eighth.
fn unless_damaged<T>(w: &mut Write, look: impl FnOnce(&Write) -> Result<T>) -> Result<Option<T>> {
    static TIMES: AtomicU64 = AtomicU64::new(0);
    match look(w) {
        Err(failed @ Error::Damaged(_)) => {
            // It is not what the job fails of, should it fail.
            w.take_failure();
            let times = TIMES.fetch_add(1, Ordering::Relaxed) + 1;
            if times.is_power_of_two() {
                tracing::error!(error = %failed, times, "the ids of some events stay where new ones are");
            }
            Ok(None)
        }
        looked => looked.map(Some),
    }
}

fn neighbours(w: &Write, from: &Key) -> Result<Vec<Key>> {
    let mut keys: Vec<Key> = Vec::with_capacity(OVER);
    collect(w, from, &mut keys)?;
    if keys.len() < OVER {
        collect(w, &[0; KEY_BYTES], &mut keys)?;
        keys.sort_unstable();
        keys.dedup();
    }
    Ok(keys)
}

/// Reads what the place of a key in the large table lies between.
fn around(w: &Write, key: &Key) -> Result<()> {
    w.has(&EVENT_ID, key)?;
    w.first(&EVENT_ID, key, None, false)?;
    w.first(&EVENT_ID, &[], Some(key), true).map(drop)
}

/// Fills `keys` up with those from a place on.
fn collect(get: &impl Get, from: &Key, keys: &mut Vec<Key>) -> Result<()> {
    get.range(&EVENT_ID_RECENT, from, None, false, &mut |key, _| {
        if keys.len() == OVER {
            return Ok(ControlFlow::Break(()));
        }
        keys.push(key.try_into().map_err(|_| Error::corrupt(&EVENT_ID_RECENT, key))?);
        Ok(ControlFlow::Continue(()))
    })
}

/// Makes many ids, whose hashes are sorted, lead to their numbers: in the large table at once, since their neighbours come
/// with them.
pub(super) fn put_hashes(w: &mut Write, sorted: &[([u8; 16], EventNum)]) -> Result<()> {
    let mut rows: Vec<_> = sorted.iter().map(|(hash, num)| (key(hash, *num), [])).collect();
    rows.sort_unstable(); // those whose kept part of the hash is the same
    w.put_sorted(&EVENT_ID, &rows)
}

pub(super) fn remove(w: &mut Write, id: &str, num: EventNum) -> Result<()> {
    let key = key(&w.hash128(&[id.as_bytes()]), num);
    let tables: [&Table; 2] = [&EVENT_ID_RECENT, &EVENT_ID];
    for table in tables {
        if w.remove(table, &key)? {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{MemoryMedium, Store};

    fn id(n: u32) -> String {
        format!("$event{n}")
    }

    fn put_all(store: &Store, nums: std::ops::Range<u32>) {
        let put_some = |w: &mut Write<'_>, nums: std::ops::Range<u32>| {
            nums.into_iter().try_for_each(|n| put(w, &id(n), EventNum(n)))
        };
        for first in nums.clone().step_by(1_000) {
            let some = first..(first + 1_000).min(nums.end);
            store.write_blocking(move |w| put_some(w, some)).unwrap();
        }
    }

    /// What both tables have for an id.
    fn found(get: &impl Get, id: &str) -> Result<Vec<EventNum>> {
        let hash = get.hash128(&[id.as_bytes()]);
        Ok([candidates(get, &EVENT_ID_RECENT, &hash)?, candidates(get, &EVENT_ID, &hash)?].concat())
    }

    /// Rows of the small table and of the large one; each number leads to exactly one.
    fn rows(store: &Store, nums: std::ops::Range<u32>) -> [u64; 2] {
        let read = store.read().unwrap();
        for n in nums {
            assert_eq!(found(&read, &id(n)), Ok(vec![EventNum(n)]));
        }
        [&EVENT_ID_RECENT, &EVENT_ID].map(|table| read.count(table).unwrap())
    }

    #[test]
    fn every_id_is_found_once_while_ids_go_over() {
        let card = MemoryMedium::default();
        let store = Store::on_memory(card.clone());
        let many = 3 * RECENT_MAX as u32;
        put_all(&store, 1..many);
        let [recent, large] = rows(&store, 1..many);
        assert!(recent <= RECENT_MAX && large > RECENT_MAX, "{recent} {large}");
        assert_eq!(recent + large, u64::from(many) - 1);
        store.close_blocking();
        let store = Store::on_memory(card);
        assert_eq!(rows(&store, 1..many), [recent, large]);

        let job = move |w: &mut Write<'_>| (1..many).step_by(2).try_for_each(|n| remove(w, &id(n), EventNum(n)));
        store.write_blocking(job).unwrap();
        let read = store.read().unwrap();
        for n in 1..many {
            let expected = if n % 2 == 1 { vec![] } else { vec![EventNum(n)] };
            assert_eq!(found(&read, &id(n)), Ok(expected));
        }
        assert!(rows(&store, 0..0).iter().sum::<u64>() == u64::from(many) / 2 - u64::from(many.is_multiple_of(2)));
    }

    /// The last ones go over together with the first.
    #[test]
    fn ids_go_over_around_the_end() {
        let store = Store::in_memory();
        put_all(&store, 1..RECENT_MAX as u32 + 1);
        store.write_blocking(|w| go_over(w, &[0xff; KEY_BYTES])).unwrap();
        assert_eq!(rows(&store, 1..RECENT_MAX as u32 + 1), [RECENT_MAX - OVER as u64, OVER as u64]);
    }
}

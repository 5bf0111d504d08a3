//! What redacted events said before, kept for moderators for as long as the settings say.

use std::ops::ControlFlow;

use crate::store::schema::{REDACTED, REDACTED_AGE};
use crate::store::{Error, EventNum, Get, Result, Write};

/// What is kept at most, the latest: some 30,000 messages.
const ALL_BYTES_MAX: u64 = 16 << 20;
/// Removed along with one that is kept, for being old: some 250 rows.
const SWEPT_MAX: usize = 64;
/// The row of the bytes that are kept: no event has this number.
const HELD: &[u8] = &[0; 4];

/// Keeps what an event said, for so long. What is older goes, [`SWEPT_MAX`] at a time, and what is too much.
pub fn keep(w: &mut Write<'_>, event: EventNum, json: &[u8], now_ms: u64, kept_ms: u64) -> Result<()> {
    remove(w, event)?;
    let held = held(w)? + json.len() as u64;
    w.put(&REDACTED, HELD, &held.to_be_bytes())?;
    w.put(&REDACTED, &event.to_key(), &[&now_ms.to_be_bytes(), json].concat())?;
    w.put(&REDACTED_AGE, &age_key(now_ms, event), &[])?;
    // What is left after a shorter time was set goes by the sweep of every day; it is shown to nobody.
    sweep(w, now_ms.saturating_sub(kept_ms), SWEPT_MAX)?;
    while self::held(w)? > ALL_BYTES_MAX && sweep(w, u64::MAX, 1)? == 1 {}
    Ok(())
}

/// What an event said that was redacted after `since_ms`, if that is kept.
pub fn get(get: &impl Get, event: EventNum, since_ms: u64) -> Result<Option<Vec<u8>>> {
    let Some(mut row) = get.get(&REDACTED, &event.to_key())? else { return Ok(None) };
    let at_ms = at_of(&row).ok_or_else(|| Error::corrupt(&REDACTED, &event.to_key()))?;
    Ok((at_ms > since_ms).then(|| row.split_off(8)))
}

/// Whether anything was redacted at or before a time and is kept.
pub fn is_any(get: &impl Get, upto_ms: u64) -> Result<bool> {
    let mut is = false;
    get.range(&REDACTED_AGE, &[], None, false, &mut |key, _| {
        is = at_of(key).ok_or_else(|| Error::corrupt(&REDACTED_AGE, key))? <= upto_ms;
        Ok(ControlFlow::Break(()))
    })?;
    Ok(is)
}

/// Removes what was redacted at or before a time, the oldest first; answers how many.
pub fn sweep(w: &mut Write<'_>, upto_ms: u64, most: usize) -> Result<usize> {
    let mut old = Vec::new();
    w.range(&REDACTED_AGE, &[], None, false, &mut |key, _| {
        let corrupt = || Error::corrupt(&REDACTED_AGE, key);
        if old.len() == most || at_of(key).ok_or_else(corrupt)? > upto_ms {
            return Ok(ControlFlow::Break(()));
        }
        old.push(EventNum::from_key(&key[8..]).ok_or_else(corrupt)?);
        Ok(ControlFlow::Continue(()))
    })?;
    for event in &old {
        remove(w, *event)?;
    }
    Ok(old.len())
}

/// Forgets what an event said, such as one that is removed itself.
pub fn remove(w: &mut Write<'_>, event: EventNum) -> Result<()> {
    let Some(row) = w.get(&REDACTED, &event.to_key())? else { return Ok(()) };
    let at_ms = at_of(&row).ok_or_else(|| Error::corrupt(&REDACTED, &event.to_key()))?;
    let held = held(w)?.saturating_sub(row.len() as u64 - 8);
    w.put(&REDACTED, HELD, &held.to_be_bytes())?;
    w.remove(&REDACTED, &event.to_key())?;
    w.remove(&REDACTED_AGE, &age_key(at_ms, event))?;
    Ok(())
}

fn held(get: &impl Get) -> Result<u64> {
    Ok(get.get(&REDACTED, HELD)?.as_deref().and_then(at_of).unwrap_or(0))
}

/// The number that a row or a key of age begins with.
fn at_of(row: &[u8]) -> Option<u64> {
    row.first_chunk::<8>().map(|at| u64::from_be_bytes(*at))
}

fn age_key(at_ms: u64, event: EventNum) -> Vec<u8> {
    [&at_ms.to_be_bytes()[..], &event.to_key()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn write(store: &Store, work: impl FnOnce(&mut Write<'_>) -> Result<()> + Send + 'static) {
        assert!(store.write_blocking(work).is_ok());
    }

    #[test]
    fn what_is_old_or_too_much_goes() {
        let store = Store::in_memory();
        let (hour, kept) = (3_600_000, 24 * 3_600_000);
        write(&store, move |w| (1..=30).try_for_each(|n| keep(w, EventNum(n), b"said", u64::from(n) * hour, kept)));
        let read = store.read().unwrap();
        let there = |n| get(&read, EventNum(n), 0).unwrap();
        assert_eq!((there(6), there(7)), (None, Some(b"said".to_vec())));
        assert_eq!(get(&read, EventNum(7), 7 * hour).unwrap(), None, "its time is over");
        assert_eq!(held(&read).unwrap(), 24 * 4);
        let large = vec![b'x'; 60_000];
        write(&store, move |w| (100..500).try_for_each(|n| keep(w, EventNum(n), &large, 31 * hour, kept)));
        let read = store.read().unwrap();
        assert!(held(&read).unwrap() <= ALL_BYTES_MAX && get(&read, EventNum(499), 0).unwrap().is_some());
        assert!(get(&read, EventNum(100), 0).unwrap().is_none());
        write(&store, |w| sweep(w, u64::MAX, 10_000).map(drop));
        assert_eq!(held(&store.read().unwrap()).unwrap(), 0);
    }
}

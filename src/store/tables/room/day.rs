//! What each day brought: days since 1970 → messages, bytes written. The last [`DAYS_MAX`] are kept.

use std::ops::{Add, ControlFlow};

use crate::store::schema::DAY;
use crate::store::{Error, Get, Result, Write};

/// A year, and a day.
const DAYS_MAX: u32 = 366;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Day {
    pub messages: u64,
    pub bytes: u64,
}

impl Add for Day {
    type Output = Day;

    fn add(self, more: Day) -> Day {
        Day { messages: self.messages.saturating_add(more.messages), bytes: self.bytes.saturating_add(more.bytes) }
    }
}

/// Adds to a day. Bounded: the rows of a year.
pub fn add(w: &mut Write<'_>, day: u32, more: Day) -> Result<()> {
    let key = day.to_be_bytes();
    let known = match w.get(&DAY, &key)? {
        Some(row) => read(&key, &row)?,
        None => Day::default(),
    };
    let Day { messages, bytes } = known + more;
    let row = [messages.to_be_bytes(), bytes.to_be_bytes()].concat();
    w.put(&DAY, &key, &row)?;
    // Also those of a clock that was wrong once: what is beyond today by more than a day never was.
    let mut gone = Vec::new();
    w.prefix(&DAY, b"", &mut |key, _| {
        let of = number(key)?;
        if of.saturating_add(DAYS_MAX) <= day || of > day.saturating_add(1) {
            gone.push(key.to_vec());
        }
        Ok(ControlFlow::Continue(()))
    })?;
    gone.iter().try_for_each(|key| w.remove(&DAY, key).map(drop))
}

/// At most `most` of the last days that have a count, in their order. Bounded: the rows of a year.
pub fn last(get: &impl Get, most: usize) -> Result<Vec<(u32, Day)>> {
    let mut days = Vec::new();
    get.prefix(&DAY, b"", &mut |key, row| {
        days.push((number(key)?, read(key, row)?));
        Ok(ControlFlow::Continue(()))
    })?;
    let surplus = days.len().saturating_sub(most);
    Ok(days.split_off(surplus))
}

fn number(key: &[u8]) -> Result<u32> {
    Ok(u32::from_be_bytes(key.try_into().map_err(|_| Error::corrupt(&DAY, key))?))
}

fn read(key: &[u8], row: &[u8]) -> Result<Day> {
    let half = |at: usize| row.get(at..at + 8).and_then(|half| half.try_into().ok()).map(u64::from_be_bytes);
    match (half(0), half(8)) {
        (Some(messages), Some(bytes)) => Ok(Day { messages, bytes }),
        _ => Err(Error::corrupt(&DAY, key)),
    }
}

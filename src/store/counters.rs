//! The numbers that are given out once: the position, and the next number of each counter.
//!
//! They are one row, which a commit writes once, after its jobs. Each message takes several of them.

use super::schema::META;
use super::{Error, Get, Position, Result, Write};

/// The names of the counters in the row's order. On disk: append, never take one out.
const NAMES: [&str; 7] = ["room", "event", "body", "user", "state_key", "state_node", "join"];

pub(super) const ROW: &[u8] = b"counters";

/// The position of the latest change, and the next number of each counter; the first number is 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) position: Position,
    next: [u32; NAMES.len()],
}

impl Counters {
    const NEW: Counters = Counters { position: Position(0), next: [1; NAMES.len()] };

    /// As the last commit left them.
    pub(super) fn stored(get: &impl Get) -> Result<Counters> {
        let mut counters = None;
        let found = get.with(&META, ROW, &mut |row| counters = Counters::decode(row))?;
        match counters {
            None if found => Err(Error::corrupt(&META, ROW)),
            counters => Ok(counters.unwrap_or(Counters::NEW)),
        }
    }

    pub(super) fn put(&self, w: &mut Write) -> Result<()> {
        let mut row = Vec::with_capacity(8 + 4 * NAMES.len());
        row.extend_from_slice(&self.position.to_key());
        self.next.iter().for_each(|next| row.extend_from_slice(&next.to_be_bytes()));
        w.put(&META, ROW, &row)
    }

    pub(super) fn decode(row: &[u8]) -> Option<Counters> {
        let (position, rest) = row.split_at_checked(8)?;
        let mut counters = Counters { position: Position::from_key(position)?, ..Counters::NEW };
        let (numbers, []) = rest.as_chunks::<4>() else { return None };
        if numbers.len() > NAMES.len() {
            return None;
        }
        for (next, number) in counters.next.iter_mut().zip(numbers) {
            *next = u32::from_be_bytes(*number);
        }
        Some(counters)
    }

    /// The number that a counter gives next.
    pub(super) fn next(&self, name: &str) -> u32 {
        self.next[place(name)]
    }

    /// Takes `count` numbers and answers the first, when there are so many below `end`.
    pub(super) fn take(&mut self, name: &str, count: u32, end: u32) -> Option<u32> {
        let next = &mut self.next[place(name)];
        let first = *next;
        *next = first.checked_add(count).filter(|next| *next <= end)?;
        Some(first)
    }
}

fn place(name: &str) -> usize {
    NAMES.iter().position(|known| *known == name).expect("a counter stands in the list of counters")
}

/// Format 2 had a row for the position and one for each counter.
pub(super) fn gather(w: &mut Write) -> Result<()> {
    let old = |row: &[u8]| [b"next/", row].concat();
    let mut counters = Counters::stored(w)?;
    if let Some(row) = w.get(&META, b"position")? {
        counters.position = Position::from_key(&row).ok_or_else(|| Error::corrupt(&META, b"position"))?;
    }
    for (name, next) in NAMES.iter().zip(&mut counters.next) {
        let key = old(name.as_bytes());
        if let Some(row) = w.get(&META, &key)? {
            *next = u32::from_be_bytes(row.try_into().map_err(|_| Error::corrupt(&META, &key))?);
        }
    }
    counters.put(w)?;
    w.remove(&META, b"position")?;
    NAMES.iter().try_for_each(|name| w.remove(&META, &old(name.as_bytes())).map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_comes_back_as_it_was_and_a_later_counter_begins_at_one() {
        let mut counters = Counters { position: Position(70_000), ..Counters::NEW };
        assert_eq!(counters.take("event", 5, u32::MAX), Some(1));
        assert_eq!(counters.take("event", 1, 6), None);
        assert_eq!(counters.take("join", 1, u32::MAX), Some(1));
        let store = super::super::Store::in_memory();
        let job = move |w: &mut Write| {
            counters.put(w)?;
            assert_eq!(Counters::stored(w)?, counters);
            Ok::<_, Error>(w.get(&META, ROW)?.unwrap())
        };
        let row = store.write_blocking(job).unwrap().0;
        let shorter = Counters::decode(&row[..row.len() - 4]).unwrap();
        assert_eq!((shorter.next("event"), shorter.next("join")), (6, 1));
        assert_eq!(Counters::decode(&row[..row.len() - 1]), None);
    }

    #[test]
    fn any_bytes_are_a_row_or_damage() {
        crate::base::any_bytes::any_bytes(&[&[1; 36]], |bytes| {
            Counters::decode(bytes);
        });
    }
}

//! Unread counts: how much of a room a local user has not read, and how much of that is for them.
//!
//! A row holds the totals and the places of the newest counted events, so that a read receipt in the middle of them
//! leaves the exact rest. Receipts further back than the places kept leave the totals as they are, which errs on the
//! side of "there is something to read".

use super::pack::{Unpack, put_i64, put_u64};
use crate::store::schema::UNREAD;
use crate::store::{Error, Get, Result, Write};
use crate::store::{RoomNum, UserNum};

/// Places kept in a row. At about three bytes each, a row stays below half a kilobyte.
const PLACES_MAX: usize = 128;

/// What a user has not read in a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    pub notifications: u64,
    pub highlights: u64,
    /// Order and whether it was a highlight, oldest first.
    places: Vec<(i64, bool)>,
}

impl Unread {
    fn add(&mut self, order: i64, highlight: bool) {
        self.notifications += 1;
        self.highlights += u64::from(highlight);
        if self.places.len() == PLACES_MAX {
            self.places.remove(0);
        }
        self.places.push((order, highlight));
    }

    /// Forgets what stands at or before a place.
    fn read_up_to(&mut self, order: i64) {
        let reaches = self.places.first().is_none_or(|(oldest, _)| *oldest <= order);
        if !reaches {
            return;
        }
        self.places.retain(|(place, _)| *place > order);
        self.notifications = self.places.len() as u64;
        self.highlights = self.places.iter().filter(|(_, highlight)| *highlight).count() as u64;
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + self.places.len() * 3);
        put_u64(&mut out, self.notifications);
        put_u64(&mut out, self.highlights);
        let mut previous = 0;
        for (order, highlight) in &self.places {
            put_i64(&mut out, (order - previous) * 2 + i64::from(*highlight));
            previous = *order;
        }
        out
    }

    fn decode(row: &[u8]) -> Option<Unread> {
        let mut unpack = Unpack::new(row);
        let mut unread = Unread { notifications: unpack.u64()?, highlights: unpack.u64()?, places: Vec::new() };
        let mut previous = 0i64;
        while !unpack.is_empty() {
            let packed = unpack.i64()?;
            previous = previous.checked_add(packed >> 1)?;
            unread.places.push((previous, packed & 1 != 0));
        }
        Some(unread)
    }
}

fn key(user: UserNum, room: RoomNum) -> [u8; 8] {
    let mut key = [0; 8];
    key[..4].copy_from_slice(&user.to_key());
    key[4..].copy_from_slice(&room.to_key());
    key
}

/// What a user has not read in a room.
pub fn get(get: &impl Get, user: UserNum, room: RoomNum) -> Result<Unread> {
    let key = key(user, room);
    let Some(row) = get.get(&UNREAD, &key)? else { return Ok(Unread::default()) };
    Unread::decode(&row).ok_or_else(|| Error::corrupt(&UNREAD, &key))
}

/// Counts an event at a place.
pub fn add(w: &mut Write, user: UserNum, room: RoomNum, order: i64, highlight: bool) -> Result<()> {
    let mut unread = get(w, user, room)?;
    unread.add(order, highlight);
    w.put(&UNREAD, &key(user, room), &unread.encode())
}

/// The user has read up to a place.
pub fn read_up_to(w: &mut Write, user: UserNum, room: RoomNum, order: i64) -> Result<()> {
    let mut unread = get(w, user, room)?;
    let before = unread.clone();
    unread.read_up_to(order);
    match unread == before {
        true => Ok(()),
        false if unread == Unread::default() => clear(w, user, room),
        false => w.put(&UNREAD, &key(user, room), &unread.encode()),
    }
}

/// Nothing is unread any more: the user left, or the room goes.
pub fn clear(w: &mut Write, user: UserNum, room: RoomNum) -> Result<()> {
    w.remove(&UNREAD, &key(user, room))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_half_leaves_half() {
        let mut unread = Unread::default();
        for order in 1..=10 {
            unread.add(order * 1000, order % 5 == 0);
        }
        assert_eq!(Unread::decode(&unread.encode()), Some(unread.clone()));
        unread.read_up_to(5_500);
        assert_eq!((unread.notifications, unread.highlights), (5, 1));
        unread.read_up_to(10_000);
        assert_eq!(unread, Unread::default());
    }

    #[test]
    fn a_row_stays_small_and_a_far_receipt_errs_on_the_side_of_unread() {
        let mut unread = Unread::default();
        for order in 1..=1_000 {
            unread.add(order, false);
        }
        assert!(unread.encode().len() < 512);
        unread.read_up_to(10);
        assert_eq!(unread.notifications, 1_000);
        unread.read_up_to(990);
        assert_eq!(unread.notifications, 10);
    }
}

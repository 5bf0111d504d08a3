//! Unread counts: the unread events of a local user in a room, and the highlights among them.
//!
//! A row holds the totals and the places of the newest counted events, so that a read receipt in the middle of them
//! leaves the exact rest. Receipts further back than the places kept leave the totals as they are, which errs on the
//! side of "there is something to read".

use std::collections::BTreeMap;

use crate::store::row_encoding::{Unpack, put_i64, put_u64};
use crate::store::schema::UNREAD;
use crate::store::{Error, Get, Result, Write};
use crate::store::{EventNum, RoomNum, UserNum};

/// Places kept in a row. At three to six bytes each, a row stays below a kilobyte.
const PLACES_MAX: usize = 128;

/// The places that a receipt is about (client-server API, "Threaded read receipts").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of them.
    Whole,
    /// Those in no thread.
    Main,
    /// Those in the thread with this root.
    Thread(EventNum),
}

/// A counted event: its order, whether it was a highlight, and the root of its thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    order: i64,
    highlight: bool,
    thread: Option<EventNum>,
}

/// The unread events of a user in a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    pub notifications: u64,
    pub highlights: u64,
    /// Oldest first.
    places: Vec<Place>,
}

impl Unread {
    fn add(&mut self, place: Place) {
        self.notifications += 1;
        self.highlights += u64::from(place.highlight);
        if self.places.len() == PLACES_MAX {
            self.places.remove(0);
        }
        self.places.push(place);
    }

    /// Forgets the events at or before a place. Counted events older than the places kept are treated as part of no
    /// thread.
    fn read_up_to(&mut self, order: i64, part: Part) {
        let (further, further_highlights) = self.further_back();
        let reaches = self.places.first().is_none_or(|oldest| oldest.order <= order);
        self.places.retain(|place| {
            let meant = match part {
                Part::Whole => true,
                Part::Main => place.thread.is_none(),
                Part::Thread(root) => place.thread == Some(root),
            };
            !meant || place.order > order
        });
        (self.notifications, self.highlights) = sum(self.places.iter());
        if !reaches || matches!(part, Part::Thread(_)) {
            self.notifications += further;
            self.highlights += further_highlights;
        }
    }

    fn further_back(&self) -> (u64, u64) {
        let (notifications, highlights) = sum(self.places.iter());
        (self.notifications.saturating_sub(notifications), self.highlights.saturating_sub(highlights))
    }

    /// Notifications and highlights in no thread, and by thread. Bounded by the places kept.
    pub fn by_thread(&self) -> ((u64, u64), BTreeMap<EventNum, (u64, u64)>) {
        let mut main = self.further_back();
        let mut threads: BTreeMap<EventNum, (u64, u64)> = BTreeMap::new();
        for place in &self.places {
            let counts = place.thread.map_or(&mut main, |root| threads.entry(root).or_default());
            counts.0 += 1;
            counts.1 += u64::from(place.highlight);
        }
        (main, threads)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + self.places.len() * 3);
        // Rows from before threads were told apart begin with a number of notifications, which is never zero.
        put_u64(&mut out, 0);
        put_u64(&mut out, self.notifications);
        put_u64(&mut out, self.highlights);
        let mut previous = 0;
        for place in &self.places {
            let flags = i64::from(place.highlight) | i64::from(place.thread.is_some()) << 1;
            put_i64(&mut out, (place.order - previous) * 4 + flags);
            if let Some(root) = place.thread {
                put_u64(&mut out, root.0.into());
            }
            previous = place.order;
        }
        out
    }

    fn decode(row: &[u8]) -> Option<Unread> {
        let mut unpack = Unpack::new(row);
        let mut notifications = unpack.u64()?;
        let threads = notifications == 0;
        if threads {
            notifications = unpack.u64()?;
        }
        let mut unread = Unread { notifications, highlights: unpack.u64()?, places: Vec::new() };
        let mut previous = 0i64;
        while !unpack.is_empty() {
            let packed = unpack.i64()?;
            previous = previous.checked_add(packed >> if threads { 2 } else { 1 })?;
            let thread = match threads && packed & 2 != 0 {
                true => Some(EventNum(unpack.u32()?)),
                false => None,
            };
            unread.places.push(Place { order: previous, highlight: packed & 1 != 0, thread });
        }
        Some(unread)
    }
}

fn sum<'a>(places: impl Iterator<Item = &'a Place>) -> (u64, u64) {
    places.fold((0, 0), |(all, highlights), place| (all + 1, highlights + u64::from(place.highlight)))
}

fn key(user: UserNum, room: RoomNum) -> [u8; 8] {
    let mut key = [0; 8];
    key[..4].copy_from_slice(&user.to_key());
    key[4..].copy_from_slice(&room.to_key());
    key
}

/// The unread events of a user in a room.
pub fn get(get: &impl Get, user: UserNum, room: RoomNum) -> Result<Unread> {
    let key = key(user, room);
    let Some(row) = get.get(&UNREAD, &key)? else { return Ok(Unread::default()) };
    Unread::decode(&row).ok_or_else(|| Error::corrupt(&UNREAD, &key))
}

/// Counts an event at a place, in the thread with that root or in none.
pub fn add(
    w: &mut Write,
    user: UserNum,
    room: RoomNum,
    order: i64,
    highlight: bool,
    thread: Option<EventNum>,
) -> Result<()> {
    let mut unread = get(w, user, room)?;
    unread.add(Place { order, highlight, thread });
    w.put(&UNREAD, &key(user, room), &unread.encode())
}

/// The user has read a part of the room up to a place.
pub fn read_up_to(w: &mut Write, user: UserNum, room: RoomNum, order: i64, part: Part) -> Result<()> {
    let mut unread = get(w, user, room)?;
    let before = unread.clone();
    unread.read_up_to(order, part);
    match unread == before {
        true => Ok(()),
        false if unread == Unread::default() => clear(w, user, room),
        false => w.put(&UNREAD, &key(user, room), &unread.encode()),
    }
}

/// Clears the count: the user left, or the room is removed.
pub fn clear(w: &mut Write, user: UserNum, room: RoomNum) -> Result<()> {
    w.remove(&UNREAD, &key(user, room))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(order: i64, highlight: bool, thread: Option<u32>) -> Place {
        Place { order, highlight, thread: thread.map(EventNum) }
    }

    #[test]
    fn reading_half_leaves_half() {
        let mut unread = Unread::default();
        for order in 1..=10 {
            unread.add(place(order * 1000, order % 5 == 0, None));
        }
        assert_eq!(Unread::decode(&unread.encode()), Some(unread.clone()));
        unread.read_up_to(5_500, Part::Whole);
        assert_eq!((unread.notifications, unread.highlights), (5, 1));
        unread.read_up_to(10_000, Part::Whole);
        assert_eq!(unread, Unread::default());
    }

    #[test]
    fn a_row_stays_small_and_a_far_receipt_errs_on_the_side_of_unread() {
        let mut unread = Unread::default();
        for order in 1..=1_000 {
            unread.add(place(order, false, Some(1_000_000)));
        }
        assert!(unread.encode().len() < 1024);
        unread.read_up_to(10, Part::Whole);
        assert_eq!(unread.notifications, 1_000);
        unread.read_up_to(990, Part::Thread(EventNum(1_000_000)));
        assert_eq!(unread.notifications, 872 + 10, "what is further back may be in any thread");
        unread.read_up_to(980, Part::Main);
        assert_eq!(unread.notifications, 872 + 10, "no place that is left shows that it reaches that far");
        unread.read_up_to(991, Part::Main);
        assert_eq!(unread.notifications, 10);
        unread.read_up_to(991, Part::Whole);
        assert_eq!(unread.notifications, 9);
    }

    #[test]
    fn a_receipt_in_a_thread_leaves_the_rest_of_the_room_unread() {
        // It cleared the whole room's count, so that messages were missed.
        let mut unread = Unread::default();
        for order in 1..=4 {
            unread.add(place(order, order == 1, None));
            unread.add(place(order + 10, order == 2, Some(order as u32 % 2 + 7)));
        }
        assert_eq!(Unread::decode(&unread.encode()), Some(unread.clone()));
        let threads =
            |unread: &Unread| unread.by_thread().1.into_iter().map(|(root, n)| (root.0, n)).collect::<Vec<_>>();
        assert_eq!(unread.by_thread().0, (4, 1));
        assert_eq!(threads(&unread), [(7, (2, 1)), (8, (2, 0))]);
        unread.read_up_to(100, Part::Thread(EventNum(7)));
        assert_eq!((unread.by_thread().0, threads(&unread)), ((4, 1), vec![(8, (2, 0))]));
        unread.read_up_to(3, Part::Main);
        assert_eq!((unread.by_thread().0, threads(&unread)), ((1, 0), vec![(8, (2, 0))]));
        unread.read_up_to(100, Part::Whole);
        assert_eq!(unread, Unread::default());
    }

    #[test]
    fn rows_from_before_threads_are_read() {
        let mut row = Vec::new();
        for number in [3, 1] {
            put_u64(&mut row, number);
        }
        for packed in [1000 * 2 + 1, 500 * 2] {
            put_i64(&mut row, packed);
        }
        let places = vec![place(1000, true, None), place(1500, false, None)];
        assert_eq!(Unread::decode(&row), Some(Unread { notifications: 3, highlights: 1, places }));
    }
}

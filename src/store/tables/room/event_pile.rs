//! Many events, read in the order in which they lie.
//!
//! A list of a room's state names its events in the order of its keys. Read in that order, each row and each body is a
//! page of its own, which a small cache does not have and a card has to look for. A pile takes the numbers of the list
//! as a set, reads the rows in the order of the numbers, some at a time, and hands those out in the order of their
//! bodies. Rows of one room are neighbours, and bodies lie in the order in which the events came, so that a page is read
//! once for many events.
//!
//! The events of a list come in no other order; what has one that matters (a timeline) is not read through a pile.

use super::event_row::Row;
use super::event_set::{CHUNK_BYTES, Smallest};
use crate::budget::{Account, Grant};
use crate::store::schema::EVENT;
use crate::store::{BodyNum, Error, EventNum, Get, Result};

/// The memory of a pile that its holder pays for: the state of a usual room fits in it.
pub const PILE_BYTES: u64 = 16 << 10;
/// The most that a pile takes beside that, when the list is longer and an account has it.
const MORE_BYTES_MAX: u64 = 64 << 10;
/// Of what is left in the account, the part that one pile may take.
const PART_OF_THE_REST: u64 = 8;
/// Lists of fewer events are not worth asking for more.
const LONG_LIST_EVENTS: u64 = 500;

/// Events on their way out. Holds [`PILE_BYTES`] and what its grant says.
pub struct EventPile {
    /// Numbers whose rows were not read yet.
    numbers: Smallest,
    chunks_max: usize,
    /// The number up to which all rows were read.
    after: Option<EventNum>,
    /// The list was visited before.
    is_begun: bool,
    rows: Batch,
    account: Account,
    grant: Option<Grant>,
}

/// Visits the numbers of a list, in any order.
pub type ListVisitor<'v> = &'v mut dyn FnMut(EventNum);

impl EventPile {
    /// A pile that takes more memory from the account for a long list, without waiting, as long as most of what is left
    /// there stays with others. With less it reads in smaller parts.
    pub fn new(account: &Account) -> EventPile {
        let mut pile = EventPile {
            numbers: Smallest::behind(None, 1),
            chunks_max: 1,
            after: None,
            is_begun: false,
            rows: Batch::default(),
            account: account.clone(),
            grant: None,
        };
        pile.divide(PILE_BYTES);
        pile
    }

    /// A third for the numbers: in 27 KiB those of 120,000 events that are neighbours.
    fn divide(&mut self, bytes: u64) {
        self.chunks_max = (bytes / 3 / CHUNK_BYTES) as usize;
        self.rows.bytes_max = (bytes - bytes / 3) as usize;
    }

    /// The next event of the list. `list` visits all of it, the same one each time; it is asked again when not all
    /// numbers fit. Snapshots may differ from call to call as long as all have the list's events.
    pub fn next(
        &mut self,
        get: &impl Get,
        list: &mut dyn FnMut(ListVisitor) -> Result<()>,
    ) -> Result<Option<(EventNum, Row)>> {
        loop {
            if let Some(found) = self.rows.pop()? {
                return Ok(Some(found));
            }
            if self.fill(get)? {
                continue;
            }
            if self.is_begun && self.numbers.is_all() {
                return Ok(None);
            }
            self.choose(list)?;
        }
    }

    /// Visits the list for the numbers to read next.
    fn choose(&mut self, list: &mut dyn FnMut(ListVisitor) -> Result<()>) -> Result<()> {
        let is_first = !std::mem::replace(&mut self.is_begun, true);
        let mut count = 0;
        self.numbers = Smallest::behind(self.after, self.chunks_max);
        list(&mut |event| {
            count += 1;
            self.numbers.offer(event);
        })?;
        if is_first && count > LONG_LIST_EVENTS && self.take_more() && !self.numbers.is_all() {
            self.numbers = Smallest::behind(self.after, self.chunks_max);
            list(&mut |event| self.numbers.offer(event))?;
        }
        Ok(())
    }

    fn take_more(&mut self) -> bool {
        let left = self.account.limit().saturating_sub(self.account.used());
        let wanted = (left / PART_OF_THE_REST).min(MORE_BYTES_MAX);
        if wanted >= PILE_BYTES {
            self.grant = self.account.try_take(wanted).ok();
        }
        self.divide(PILE_BYTES + self.grant.as_ref().map_or(0, Grant::bytes));
        self.grant.is_some()
    }

    /// Reads as many rows as fit; false when no number is left.
    fn fill(&mut self, get: &impl Get) -> Result<bool> {
        while !self.rows.is_full()
            && let Some(event) = self.numbers.pop_first()
        {
            self.rows.read(get, event)?;
            self.after = Some(event);
        }
        Ok(self.rows.order())
    }

    /// The memory of its rows, for numbers from elsewhere, once the list is at its end.
    pub fn batch(&mut self) -> &mut Batch {
        &mut self.rows
    }
}

/// Some rows as they are stored, to be taken in the order of their bodies.
#[derive(Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// The last to be taken first.
    places: Vec<Place>,
    bytes_max: usize,
}

#[derive(Clone, Copy)]
struct Place {
    body: BodyNum,
    event: EventNum,
    from: u32,
    to: u32,
}

/// A usual row. A longer one, which may have an id of 255 bytes and 64 auth events, comes on top of a full batch.
const ROW_BYTES: usize = 64;
/// A part of the batch that is reserved at once.
const STEP_ROWS: usize = 64;

impl Batch {
    /// Whether another row must wait for the next batch; never of an empty batch.
    pub fn is_full(&self) -> bool {
        let places = self.places.len() * size_of::<Place>();
        !self.places.is_empty() && self.bytes.len() + places + ROW_BYTES + size_of::<Place>() > self.bytes_max
    }

    /// Reads a row into it; its bytes until the next call.
    pub fn read(&mut self, get: &impl Get, event: EventNum) -> Result<&[u8]> {
        let corrupt = || Error::corrupt(&EVENT, &event.to_key());
        // In steps: a vector that grows by itself doubles, also beyond what is paid for.
        if self.places.len() == self.places.capacity() {
            self.places.reserve_exact(STEP_ROWS);
        }
        let (from, bytes) = (self.bytes.len(), &mut self.bytes);
        let found = get.with(&EVENT, &event.to_key(), &mut |row| {
            if bytes.len() + row.len() > bytes.capacity() {
                bytes.reserve_exact(row.len().max(STEP_ROWS * ROW_BYTES));
            }
            bytes.extend_from_slice(row);
        })?;
        let body = Row::decode_body(&self.bytes[from..]).filter(|_| found).ok_or_else(corrupt)?;
        self.places.push(Place { body, event, from: from as u32, to: self.bytes.len() as u32 });
        Ok(&self.bytes[from..])
    }

    /// Puts what was read in order; false when that is nothing.
    pub fn order(&mut self) -> bool {
        self.places.sort_unstable_by_key(|place| std::cmp::Reverse(place.body));
        !self.places.is_empty()
    }

    pub fn pop(&mut self) -> Result<Option<(EventNum, Row)>> {
        let Some(place) = self.places.pop() else {
            self.bytes.clear();
            return Ok(None);
        };
        let row = Row::decode(place.event, &self.bytes[place.from as usize..place.to as usize]);
        Ok(Some((place.event, row.ok_or_else(|| Error::corrupt(&EVENT, &place.event.to_key()))?)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::io;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::base::Random;
    use crate::budget::Budget;
    use crate::store::tables::room::event::{put_body, put_row, row_of, stored_body};
    use crate::store::tables::room::event_row::{Flags, Id, Kind};
    use crate::store::{Disk, Medium, MemoryMedium, Read, RoomNum, Store, StoreOptions, UserNum, Write};

    fn row(num: EventNum, body: BodyNum) -> Row {
        Row {
            room: RoomNum(1),
            body,
            id: if num.0.is_multiple_of(7) { Id::Named("$".repeat(200)) } else { Id::Hash([num.0 as u8; 32]) },
            kind: Kind::MEMBER,
            state_key: None,
            sender: UserNum(num.0),
            member: None,
            flags: Flags { guessed: num.0.is_multiple_of(5), ..Flags::default() },
            depth: 1,
            origin_server_ts: 1,
            auth: Vec::new(),
            before: None,
            order: None,
            redacted_by: None,
        }
    }

    /// Events with numbers below `spread` and the numbers of their bodies in another order.
    fn stored(random: &Random, count: u32, spread: u64) -> (Store, BTreeMap<EventNum, BodyNum>) {
        let mut events = BTreeMap::new();
        for _ in 0..count {
            events.insert(EventNum(1 + random.below(spread) as u32), BodyNum(random.below(1 << 30) as u32));
        }
        let (store, rows) = (Store::in_memory(), events.clone());
        let job = move |w: &mut Write<'_>| rows.iter().try_for_each(|(num, body)| put_row(w, *num, &row(*num, *body)));
        store.write_blocking(job).unwrap();
        (store, events)
    }

    /// All events of a list, and how often it was visited.
    fn read_all(pile: &mut EventPile, read: &Read, list: &[EventNum]) -> Result<(Vec<(EventNum, Row)>, u32)> {
        let (mut found, mut visits) = (Vec::new(), 0);
        let mut visit_all = |visit: ListVisitor| {
            visits += 1;
            list.iter().for_each(|event| visit(*event));
            Ok(())
        };
        while let Some(next) = pile.next(read, &mut visit_all)? {
            found.push(next);
        }
        Ok((found, visits))
    }

    fn shuffled(random: &Random, events: &BTreeMap<EventNum, BodyNum>) -> Vec<EventNum> {
        let mut list: Vec<(u64, EventNum)> = events.keys().map(|num| (random.below(1 << 40), *num)).collect();
        list.sort_unstable();
        list.into_iter().map(|(_, num)| num).collect()
    }

    #[test]
    fn a_list_is_read_whole_and_once_whatever_its_numbers_and_the_memory() {
        let random = Random::seeded(11);
        for (count, spread) in [(0, 1), (1, 1), (40, 1 << 31), (400, 400), (3_000, 6_000), (3_000, 1 << 31)] {
            let (store, events) = stored(&random, count, spread);
            let (read, list) = (store.read().unwrap(), shuffled(&random, &events));
            for left in [u64::MAX, 150 << 10, 0] {
                let budget = Budget::for_tests();
                let account = budget.account("response_bodies");
                let _others = account.try_take(account.limit().saturating_sub(left)).unwrap();
                let before = account.used();
                let mut pile = EventPile::new(&account);
                let (found, visits) = read_all(&mut pile, &read, &list).unwrap();
                assert!(account.used() - before <= left.min(MORE_BYTES_MAX));
                drop(pile);
                assert_eq!(account.used(), before);
                for (num, row) in &found {
                    assert_eq!(*row, self::row(*num, events[num]));
                }
                let nums: BTreeSet<EventNum> = found.iter().map(|(num, _)| *num).collect();
                assert!(nums.len() == found.len() && nums.iter().eq(events.keys()), "{count} of {spread}, {left}");
                let are_far = count > 500 && spread > 6_000;
                assert_eq!(visits > 1, are_far, "{count} of {spread}, {left}: {visits}");
            }
        }
    }

    #[test]
    fn what_is_read_together_comes_in_the_order_of_the_bodies() {
        let random = Random::seeded(12);
        let (store, events) = stored(&random, 2_000, 2_500);
        let budget = Budget::for_tests();
        let mut pile = EventPile::new(&budget.account("response_bodies"));
        let list = shuffled(&random, &events);
        let (found, visits) = read_all(&mut pile, &store.read().unwrap(), &list).unwrap();
        let runs = found.windows(2).filter(|pair| pair[0].1.body > pair[1].1.body).count() + 1;
        assert!(runs <= 4, "{runs}");
        assert_eq!(visits, 1, "the numbers are neighbours");
    }

    #[test]
    fn a_list_that_names_an_event_twice_or_one_that_is_not_there() {
        let random = Random::seeded(13);
        let (store, events) = stored(&random, 100, 1_000);
        let (read, mut list) = (store.read().unwrap(), shuffled(&random, &events));
        let budget = Budget::for_tests();
        let pile = || EventPile::new(&budget.account("response_bodies"));
        list.extend_from_within(..);
        assert_eq!(read_all(&mut pile(), &read, &list).unwrap().0.len(), events.len());
        list.push(EventNum(1_001));
        assert!(matches!(read_all(&mut pile(), &read, &list), Err(Error::Corrupt { .. })));
    }

    /// A card that counts what is read from it.
    #[derive(Clone, Default)]
    struct Counting {
        card: MemoryMedium,
        reads: Arc<AtomicU64>,
    }

    impl Medium for Counting {
        fn open(&self) -> io::Result<Box<dyn Disk>> {
            Ok(Box::new(Counted { disk: self.card.open()?, reads: self.reads.clone() }))
        }

        fn free_bytes(&self) -> io::Result<u64> {
            Ok(u64::MAX)
        }
    }

    #[derive(Debug)]
    struct Counted {
        disk: Box<dyn Disk>,
        reads: Arc<AtomicU64>,
    }

    impl Disk for Counted {
        fn len(&self) -> io::Result<u64> {
            self.disk.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.reads.fetch_add(1, Ordering::Relaxed);
            self.disk.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.disk.set_len(len)
        }

        fn sync_data(&self) -> io::Result<()> {
            self.disk.sync_data()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.disk.write(offset, data)
        }
    }

    /// Each event of a large room was two pages of its own.
    #[test]
    fn a_page_is_read_once_for_many_events() {
        const EVENTS: u32 = 20_000;
        let (medium, mut options) = (Counting::default(), StoreOptions::new(""));
        options.random = Random::seeded(1);
        options.cache_bytes = 1 << 20;
        let store = Store::open_on(Arc::new(medium.clone()), options).unwrap();
        // Numbered as they came, as a join does it.
        for part in (1..=EVENTS).collect::<Vec<_>>().chunks(2_000) {
            let part = part.to_vec();
            let job = move |w: &mut Write<'_>| {
                part.iter().try_for_each(|num| {
                    put_row(w, EventNum(*num), &row(EventNum(*num), BodyNum(*num)))?;
                    put_body(w, BodyNum(*num), &[7; 250])
                })
            };
            store.write_bulk_blocking(job).unwrap();
        }
        let random = Random::seeded(14);
        let list = shuffled(&random, &(1..=EVENTS).map(|num| (EventNum(num), BodyNum(num))).collect());
        let read = store.read().unwrap();
        let counted = |work: &mut dyn FnMut()| {
            let before = medium.reads.load(Ordering::Relaxed);
            work();
            medium.reads.load(Ordering::Relaxed) - before
        };
        let one_by_one = counted(&mut || {
            for event in &list {
                stored_body(&read, row_of(&read, *event).unwrap().body).unwrap();
            }
        });
        let budget = Budget::for_tests();
        let together = counted(&mut || {
            let mut pile = EventPile::new(&budget.account("response_bodies"));
            let mut visit_all = |visit: ListVisitor| {
                list.iter().for_each(|event| visit(*event));
                Ok(())
            };
            while let Some((_, row)) = pile.next(&read, &mut visit_all).unwrap() {
                stored_body(&read, row.body).unwrap();
            }
        });
        assert!(one_by_one > 5 * together, "{together} against {one_by_one}");
    }
}

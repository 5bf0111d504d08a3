//! Unread counts: the unread events of a local user in a room, and the highlights among them.
//!
//! A row holds the totals and the places of the newest counted events, so that a read receipt in the middle of them
//! leaves the exact rest. Receipts further back than the places kept leave the totals as they are, which errs on the
//! side of "there is something to read".
//!
//! Most events count for most members, and without a highlight. Such an event is counted once, in a row of the room; a
//! member's own row then says only how many of those were read, and stays as it is from one message to the next. A
//! member for whom events count otherwise (a highlight, rules of their own, a thread read before the rest) has a row
//! apart, with places of its own, until all of them are read.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::store::row_encoding::{Unpack, put_i64, put_u64};
use crate::store::schema::UNREAD;
use crate::store::{Change, Error, Get, Push, Result, Write};
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

    /// Takes the event at a place out, if it is among those kept.
    fn remove(&mut self, order: i64) {
        if let Some(at) = self.places.iter().position(|place| place.order == order) {
            let place = self.places.remove(at);
            self.notifications -= 1;
            self.highlights = self.highlights.saturating_sub(place.highlight.into());
        }
    }

    /// The events behind the first `read` of all, with so many highlights among those further back than the places.
    fn since(&self, read: u64, highlights: u64) -> Unread {
        let notifications = self.notifications.saturating_sub(read);
        let kept = self.places.len().min(usize::try_from(notifications).unwrap_or(usize::MAX));
        Unread { notifications, highlights, places: self.places[self.places.len() - kept..].to_vec() }
    }

    /// Forgets the places before the newest `count`.
    fn keep_places(&mut self, count: usize) {
        self.places.drain(..self.places.len().saturating_sub(count));
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

/// In the place of a user: the room's row. Numbers of users begin at 1.
const ROOM: UserNum = UserNum(0);

/// An event is counted in the room's row when it counts for so many members alike; the row costs as much as one of theirs.
const ALIKE_MIN: usize = 2;

/// A user's row. None is as `Apart` with nothing to read.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Own {
    /// The events that the room's row counted, but for the first `read` of them. `highlights`: among those further back
    /// than the places.
    Since { read: u64, highlights: u64 },
    /// Other events than the room's row has.
    Apart(Unread),
}

impl Own {
    fn encode(&self) -> Vec<u8> {
        match self {
            Own::Apart(unread) => unread.encode(),
            Own::Since { read, highlights } => {
                let mut out = Vec::with_capacity(8);
                // As a row apart without a notification, which is never written.
                put_u64(&mut out, 0);
                put_u64(&mut out, 0);
                put_u64(&mut out, *read);
                if *highlights > 0 {
                    put_u64(&mut out, *highlights);
                }
                out
            }
        }
    }

    fn decode(row: &[u8]) -> Option<Own> {
        let mut unpack = Unpack::new(row);
        match (unpack.u64()?, unpack.u64()?) {
            (0, 0) => {
                let read = unpack.u64()?;
                Some(Own::Since { read, highlights: if unpack.is_empty() { 0 } else { unpack.u64()? } })
            }
            _ => Unread::decode(row).map(Own::Apart),
        }
    }
}

fn own(get: &impl Get, user: UserNum, room: RoomNum) -> Result<Option<Own>> {
    let key = key(user, room);
    let Some(row) = get.get(&UNREAD, &key)? else { return Ok(None) };
    Own::decode(&row).map(Some).ok_or_else(|| Error::corrupt(&UNREAD, &key))
}

/// The number that a room's row begins with: members who had more unread events before there was one may follow it.
const BEGIN: u64 = 1 << 32;

/// The events that count for many: their number, and the newest places, as many as a member needs.
fn of_room(get: &impl Get, room: RoomNum) -> Result<Unread> {
    match own(get, ROOM, room)? {
        None => Ok(Unread { notifications: BEGIN, ..Unread::default() }),
        Some(Own::Apart(unread)) => Ok(unread),
        Some(Own::Since { .. }) => Err(Error::corrupt(&UNREAD, &key(ROOM, room))),
    }
}

fn seen_by(own: Option<&Own>, of_room: &Unread) -> Unread {
    match own {
        None => Unread::default(),
        Some(Own::Apart(unread)) => unread.clone(),
        Some(Own::Since { read, highlights }) => of_room.since(*read, *highlights),
    }
}

/// The unread events of a user in a room.
pub fn get(get: &impl Get, user: UserNum, room: RoomNum) -> Result<Unread> {
    Ok(match own(get, user, room)? {
        None => Unread::default(),
        Some(Own::Apart(unread)) => unread,
        Some(Own::Since { read, highlights }) => of_room(get, room)?.since(read, highlights),
    })
}

/// What an event is to a local member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Their own: they have read that part of the room up to it.
    Own(Option<Part>),
    /// It does not count.
    Quiet,
    Notify,
    Highlight,
}

/// Counts the event at a place, in the thread with that root or in none, for the members named. One row for all of them
/// that it notifies alike, and one for each that differs.
pub fn count(
    w: &mut Write,
    room: RoomNum,
    order: i64,
    thread: Option<EventNum>,
    members: &[(UserNum, Outcome)],
) -> Result<()> {
    let alike = members.iter().filter(|(_, outcome)| *outcome == Outcome::Notify).count() >= ALIKE_MIN;
    let rows = members.iter().map(|(user, _)| own(w, *user, room)).collect::<Result<Vec<_>>>()?;
    let before = match alike || rows.iter().any(follows) {
        true => of_room(w, room)?,
        false => Unread::default(),
    };
    let mut after = before.clone();
    if alike {
        after.add(Place { order, highlight: false, thread });
    }
    let mut places = 0;
    for (&(user, outcome), was) in members.iter().zip(rows) {
        if let (true, Outcome::Notify, Some(Own::Since { read, .. })) = (alike, outcome, &was) {
            places = places.max(after.notifications.saturating_sub(*read));
            continue;
        }
        let mut unread = seen_by(was.as_ref(), &before);
        let had = unread.notifications;
        match outcome {
            Outcome::Own(part) => {
                part.into_iter().for_each(|part| unread.read_up_to(order, part));
                announce_read(w, user, room, had, unread.notifications);
            }
            Outcome::Quiet => {}
            Outcome::Notify => unread.add(Place { order, highlight: false, thread }),
            Outcome::Highlight => unread.add(Place { order, highlight: true, thread }),
        }
        places = places.max(unread.places.len() as u64);
        // Rules that keep an event quiet which others hear of do so again: a row that follows would change with each.
        let follows = follows(&was) && (outcome != Outcome::Quiet || !alike);
        set(w, user, room, was, unread, &after, follows)?;
    }
    if alike {
        after.keep_places(places.min(PLACES_MAX as u64) as usize);
        w.put(&UNREAD, &key(ROOM, room), &after.encode())?;
    }
    Ok(())
}

/// The event at a place lost its content: it counts for nobody any more, as far as the places tell. A row for each of the
/// members who had read it or count apart, and none when nobody's places have it.
pub fn uncount(w: &mut Write, room: RoomNum, order: i64, members: &[UserNum]) -> Result<()> {
    let before = match own(w, ROOM, room)? {
        Some(Own::Apart(of_room)) => of_room,
        _ => Unread { notifications: BEGIN, ..Unread::default() },
    };
    let mut after = before.clone();
    after.remove(order);
    for user in members {
        let was = own(w, *user, room)?;
        let unread = seen_by(was.as_ref(), &before);
        let mut rest = unread.clone();
        rest.remove(order);
        if rest == unread && (after == before || !follows(&was)) {
            continue;
        }
        announce_read(w, *user, room, unread.notifications, rest.notifications);
        let follows = follows(&was);
        set(w, *user, room, was, rest, &after, follows)?;
    }
    if after != before {
        w.put(&UNREAD, &key(ROOM, room), &after.encode())?;
    }
    Ok(())
}

/// Whether the row goes with the room's.
fn follows(own: &Option<Own>) -> bool {
    matches!(own, Some(Own::Since { .. }))
}

/// The user has read a part of the room up to a place.
pub fn read_up_to(w: &mut Write, user: UserNum, room: RoomNum, order: i64, part: Part) -> Result<()> {
    let was = own(w, user, room)?;
    if was.is_none() {
        return Ok(());
    }
    let of_room = of_room(w, room)?;
    let mut unread = seen_by(was.as_ref(), &of_room);
    let before = unread.notifications;
    unread.read_up_to(order, part);
    announce_read(w, user, room, before, unread.notifications);
    let follows = follows(&was);
    set(w, user, room, was, unread, &of_room, follows)
}

/// Writes a user's row where it changes. `follows`: a user with nothing to read goes on with the room's row.
fn set(
    w: &mut Write,
    user: UserNum,
    room: RoomNum,
    was: Option<Own>,
    unread: Unread,
    of_room: &Unread,
    follows: bool,
) -> Result<()> {
    let read = of_room.notifications.checked_sub(unread.notifications);
    let read = read.filter(|read| of_room.since(*read, unread.highlights) == unread);
    let new = match read {
        _ if unread == Unread::default() && !follows => None,
        Some(read) => Some(Own::Since { read, highlights: unread.highlights }),
        None => Some(Own::Apart(unread)),
    };
    match new {
        _ if new == was => Ok(()),
        None => clear(w, user, room),
        Some(new) => w.put(&UNREAD, &key(user, room), &new.encode()),
    }
}

/// The badge of a user's phone may be another one now.
fn announce_read(w: &mut Write, user: UserNum, room: RoomNum, before: u64, after: u64) {
    if after < before {
        let (users, room) = (vec![user], Some(room));
        w.announce(Change { users, room, only_room: true, push: Push::Read, ..Change::default() });
    }
}

/// Clears the count: the user left, or the room is removed.
pub fn clear(w: &mut Write, user: UserNum, room: RoomNum) -> Result<()> {
    let was = w.remove(&UNREAD, &key(user, room))?;
    announce_read(w, user, room, was.into(), 0);
    Ok(())
}

impl Unread {
    /// The places of counted events behind a place, among those kept, in order. At most 128.
    pub fn orders_after(&self, order: i64) -> impl DoubleEndedIterator<Item = i64> {
        self.places.iter().map(|place| place.order).filter(move |place| *place > order)
    }

    /// Whether a counted event is read, as far as the places tell.
    pub fn has_read(&self, order: i64) -> bool {
        let is_kept = self.places.iter().any(|place| place.order == order);
        let is_further_back = self.further_back().0 > 0 && self.places.first().is_some_and(|first| order < first.order);
        !is_kept && !is_further_back
    }
}

/// Visits the rooms in which a user has unread events that notify. Two rows for each room in which anything was ever
/// counted for the user.
pub fn list_of_user(
    get: &impl Get,
    user: UserNum,
    visit: &mut dyn FnMut(RoomNum, &Unread) -> Result<ControlFlow<()>>,
) -> Result<()> {
    get.prefix(&UNREAD, &user.to_key(), &mut |row, value| {
        let corrupt = || Error::corrupt(&UNREAD, row);
        let room = row.get(4..).and_then(RoomNum::from_key).ok_or_else(corrupt)?;
        let unread = match Own::decode(value).ok_or_else(corrupt)? {
            Own::Apart(unread) => unread,
            Own::Since { read, highlights } => of_room(get, room)?.since(read, highlights),
        };
        if unread.notifications == 0 {
            return Ok(ControlFlow::Continue(()));
        }
        visit(room, &unread)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(order: i64, highlight: bool, thread: Option<u32>) -> Place {
        Place { order, highlight, thread: thread.map(EventNum) }
    }

    /// Against a plain list for each member.
    #[test]
    fn what_lost_its_content_counts_for_nobody() {
        let store = crate::store::Store::in_memory();
        let job = |w: &mut Write<'_>| {
            let (room, users) = (RoomNum(1), [UserNum(1), UserNum(2), UserNum(3), UserNum(4)]);
            let mut model: Vec<Vec<i64>> = vec![Vec::new(); users.len()];
            let mut random = 7u64;
            let mut below = |most: u64| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (random >> 33) % most
            };
            for order in 1..400i64 {
                let outcomes: Vec<_> = users
                    .iter()
                    .map(|user| {
                        let outcome = match (below(12), user.0) {
                            (0, _) => Outcome::Highlight,
                            (1, 4) => Outcome::Quiet,
                            _ => Outcome::Notify,
                        };
                        (*user, outcome)
                    })
                    .collect();
                count(w, room, order, None, &outcomes)?;
                for ((_, outcome), list) in outcomes.iter().zip(&mut model) {
                    list.extend((*outcome != Outcome::Quiet).then_some(order));
                }
                if below(3) == 0 {
                    let gone = order - below(20) as i64;
                    uncount(w, room, gone, &users)?;
                    model.iter_mut().for_each(|list| list.retain(|at| *at != gone));
                }
                if below(4) == 0 {
                    let (at, upto) = (below(4) as usize, order - below(10) as i64);
                    read_up_to(w, users[at], room, upto, Part::Whole)?;
                    model[at].retain(|at| *at > upto);
                }
                for (user, list) in users.iter().zip(&model) {
                    assert_eq!(super::get(w, *user, room)?.notifications, list.len() as u64, "{user:?} at {order}");
                }
            }
            Ok::<_, Error>(())
        };
        store.write_blocking(job).unwrap();
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

    /// Every member's count is the one that a row of their own would give, whatever their rules and receipts; and a
    /// message that is nothing special changes the row of the room and those of its sender alone.
    #[test]
    fn a_count_for_many_is_for_each_what_a_count_of_their_own_would_be() {
        let room = RoomNum(7);
        let random = crate::base::Random::seeded(5);
        let pick = move |n: u64| {
            let mut bytes = [0; 8];
            random.fill(&mut bytes);
            u64::from_le_bytes(bytes) % n
        };
        let job = move |w: &mut Write<'_>| {
            let mut alone: Vec<Unread> = vec![Unread::default(); 5];
            for order in 1..=4_000 {
                let sender = pick(5);
                let thread = Some(pick(6) as u32).filter(|root| (1..=2).contains(root)).map(EventNum);
                let part = thread.map_or(Part::Main, Part::Thread);
                let special = pick(10);
                let members: Vec<_> = (0..5)
                    .map(|user| match user {
                        _ if user == sender => (user, Outcome::Own((special != 1).then_some(part))),
                        _ if special == 0 && pick(2) == 0 => (user, Outcome::Highlight),
                        // Somebody who muted the room for a while.
                        4 if order % 1_000 < 300 => (user, Outcome::Quiet),
                        _ if special == 2 => (user, Outcome::Quiet),
                        _ => (user, Outcome::Notify),
                    })
                    .collect();
                for &(user, outcome) in &members {
                    let unread = &mut alone[user as usize];
                    match outcome {
                        Outcome::Own(part) => part.into_iter().for_each(|part| unread.read_up_to(order, part)),
                        Outcome::Quiet => {}
                        _ => unread.add(Place { order, highlight: outcome == Outcome::Highlight, thread }),
                    }
                }
                let members: Vec<_> = members.iter().map(|(user, what)| (UserNum(*user as u32 + 1), *what)).collect();
                count(w, room, order, thread, &members)?;
                // Sometimes nothing is read for so long that places are forgotten.
                if pick(if order > 2_000 { 400 } else { 20 }) == 0 {
                    let (user, upto) = (pick(5), order - pick(30).min(order as u64 - 1) as i64);
                    let part = [Part::Whole, Part::Main, Part::Thread(EventNum(1))][pick(3) as usize];
                    alone[user as usize].read_up_to(upto, part);
                    read_up_to(w, UserNum(user as u32 + 1), room, upto, part)?;
                }
                for (user, unread) in alone.iter().enumerate() {
                    assert_eq!(&get(w, UserNum(user as u32 + 1), room)?, unread, "of user {user} at {order}");
                }
            }
            Ok::<_, Error>(())
        };
        crate::store::Store::in_memory().write_blocking(job).unwrap();
    }

    /// Counts an event that is to all but its sender what `outcome` says, and answers which rows that changed.
    fn say(store: &crate::store::Store, order: i64, sender: u32, outcome: Outcome) -> String {
        let others = (1..=8).filter(|user| *user != sender).map(|user| (UserNum(user), outcome));
        let own = (UserNum(sender), Outcome::Own(Some(Part::Main)));
        let members: Vec<_> = std::iter::once(own).chain(others).collect();
        store.take_counted();
        store.write_blocking(move |w| count(w, RoomNum(1), order, None, &members)).unwrap();
        store.take_counted().of("unread")
    }

    #[test]
    fn a_message_for_many_changes_no_row_of_those_who_follow() {
        let store = crate::store::Store::in_memory();
        let say = |order, sender| say(&store, order, sender, Outcome::Notify);
        assert_eq!(say(1, 1), "unread+8", "the room's row, and the first one of each other member");
        assert_eq!(say(2, 1), "unread");
        assert_eq!(say(3, 2), "unread+3", "the sender's, and the first one of the other sender");
        assert_eq!((say(4, 2), say(5, 3)), ("unread+2".to_owned(), "unread+2".to_owned()));
        let unread = |user| get(&store.read().unwrap(), UserNum(user), RoomNum(1)).unwrap().notifications;
        assert_eq!([unread(1), unread(2), unread(3), unread(8)], [3, 1, 0, 5]);
    }

    /// A reaction removed the row of everybody who had read all, and the next message wrote them again.
    #[test]
    fn an_event_that_is_quiet_for_all_changes_nothing() {
        let store = crate::store::Store::in_memory();
        for sender in 1..=8 {
            say(&store, sender.into(), sender, Outcome::Notify);
        }
        let read_all =
            |w: &mut Write<'_>| (1..=8).try_for_each(|user| read_up_to(w, UserNum(user), RoomNum(1), 8, Part::Whole));
        store.write_blocking(read_all).unwrap();
        assert_eq!(say(&store, 9, 1, Outcome::Quiet), "");
        assert_eq!(say(&store, 10, 1, Outcome::Notify), "unread+2");
    }

    /// The room's row grew to all places that a row may have, also when all members read along.
    #[test]
    fn a_rooms_row_has_the_places_that_its_members_need() {
        let store = crate::store::Store::in_memory();
        let places = || of_room(&store.read().unwrap(), RoomNum(1)).unwrap().places.len();
        for order in 1..=300 {
            say(&store, order, order as u32 % 8 + 1, Outcome::Notify);
        }
        assert!(places() <= 8, "everybody has said something since: {}", places());
        for order in 301..=310 {
            say(&store, order, 1, Outcome::Notify);
        }
        assert!((10..=17).contains(&places()), "{}", places());
    }

    /// Members with more unread events than a new row of their room counted had a row of their own for ever, and so had
    /// those with a highlight far back.
    #[test]
    fn members_who_are_away_for_long_come_to_follow_the_rooms_row() {
        let store = crate::store::Store::in_memory();
        let mut away = Unread::default();
        (1..=1_000).for_each(|order| away.add(place(order, order == 990, None)));
        let row = away.encode();
        store.write_blocking(move |w| w.put(&UNREAD, &key(UserNum(8), RoomNum(1)), &row)).unwrap();
        for order in 1_001..=1_140 {
            say(&store, order, 1 + order as u32 % 2, Outcome::Notify);
        }
        assert_eq!(say(&store, 1_141, 1, Outcome::Notify), "unread+2");
        let unread = get(&store.read().unwrap(), UserNum(8), RoomNum(1)).unwrap();
        assert_eq!((unread.notifications, unread.highlights, unread.places.len()), (1_141, 1, PLACES_MAX));
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

//! Rooms: their numbers, and the one row that changes with every event. Aliases and the public list: `directory.rs`.

use std::ops::ControlFlow;

use crate::store::row_encoding::{Unpack, put_bytes, put_i64, put_u64};
use crate::store::schema::{ROOM, ROOM_NUM};
use crate::store::{Error, Get, Result, Write};
use crate::store::{EventNum, Position, RoomNum};
use event_row::Root;

pub mod auth_graph;
pub mod blocked;
pub mod body;
pub mod event;
mod event_id;
pub mod event_pile;
pub mod event_set;
pub mod mass_redaction;
pub mod purge;
pub mod member;
pub mod receipt;
pub mod relation;
pub mod search;
pub mod staged;
pub mod state_tree;
pub mod sticky;
pub mod task;
pub mod thread_subscription;
pub mod timeline;
pub mod redacted;
pub mod told;
pub mod txn;
pub mod unread;
pub mod current_state;
pub mod day;
pub mod delayed;
pub mod directory;
pub mod event_row;
pub mod join;
pub mod policy;
pub mod user_redaction;
pub mod user_room;

/// The relation of this server to a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Known by name only: an invite or a knock from outside, an alias, a join that is under way.
    Stub = 0,
    /// A local user is joined, or all of it happened here; we hold the room's state and follow it.
    Resident = 1,
    /// No local user is joined any more; our data is history.
    Left = 2,
}

impl Status {
    fn from_code(code: u8) -> Option<Status> {
        [Status::Stub, Status::Resident, Status::Left].into_iter().find(|status| *status as u8 == code)
    }
}

/// What a room is for, as far as its `m.room.create` tells: its type is read without the event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Sort {
    /// Not known without the event.
    #[default]
    Unknown = 0,
    /// A room without a type.
    Plain = 1,
    Space = 2,
    /// A room of another type.
    Other = 3,
}

impl Sort {
    /// The sort of a room whose create event has a type.
    pub fn of(room_type: Option<&str>) -> Sort {
        match room_type {
            None => Sort::Plain,
            Some(SPACE) => Sort::Space,
            Some(_) => Sort::Other,
        }
    }

    /// The type in the create event, when it follows.
    pub fn room_type(self) -> Option<Option<&'static str>> {
        match self {
            Sort::Plain => Some(None),
            Sort::Space => Some(Some(SPACE)),
            Sort::Unknown | Sort::Other => None,
        }
    }

    fn from_code(code: u8) -> Option<Sort> {
        [Sort::Unknown, Sort::Plain, Sort::Space, Sort::Other].into_iter().find(|sort| *sort as u8 == code)
    }
}

const SPACE: &str = "m.space";

/// A part of the timeline that is missing and may be fetched: its events get orders from `next` down to `bottom`, both
/// left out, the newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hole {
    pub bottom: i64,
    pub next: i64,
}

/// Orders kept free for the events of one hole. Of 2^53 positions, the integers of JSON, that leaves enough for a hole
/// every 10 ms for ten years.
pub const HOLE_ORDERS: u64 = 1 << 18;

/// Holes remembered for one room; the oldest hole beyond that is forgotten and never filled.
pub const HOLES_MAX: usize = 16;

/// Extremities beyond this number are merged by the next event sent here; see `room::append`.
pub const EXTREMITIES_MAX: usize = 20;

/// A room's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    pub id: String,
    /// Empty while the version is unknown (a stub made from an alias or an old invite).
    pub version: String,
    pub status: Status,
    /// In the public room list of this server.
    pub public: bool,
    pub create: Option<EventNum>,
    /// The events that no other event refers to yet; at most [`EXTREMITIES_MAX`].
    pub extremities: Vec<EventNum>,
    /// The present state's tree.
    pub state: Option<Root>,
    pub joined: u64,
    pub invited: u64,
    /// Events stored and the bytes of their canonical JSON; shown in the complexity answer and by `snug rooms`.
    pub events: u64,
    pub bytes: u64,
    /// When something in the room's timeline or state last changed.
    pub latest: Position,
    /// When an event last came for which people look into a room; what `latest` was for a row of an earlier version.
    pub bump: Position,
    pub sort: Sort,
    /// The lowest order in its timeline: the next event from before our history goes below it.
    pub min_order: i64,
    /// The present depth: the next event gets one more than this.
    pub depth: u64,
    /// The missing parts of its timeline, oldest first; at most [`HOLES_MAX`].
    pub holes: Vec<Hole>,
}

impl Room {
    /// The first hole that a client reaches when it reads backwards from `order`.
    pub fn hole_below(&self, order: i64) -> Option<Hole> {
        self.holes.iter().rev().find(|hole| hole.bottom < order).copied()
    }

    fn stub(id: &str, version: &str) -> Room {
        Room {
            id: id.to_owned(),
            version: version.to_owned(),
            status: Status::Stub,
            public: false,
            create: None,
            extremities: Vec::new(),
            state: None,
            joined: 0,
            invited: 0,
            events: 0,
            bytes: 0,
            latest: Position(0),
            bump: Position(0),
            sort: Sort::Unknown,
            min_order: 0,
            depth: 0,
            holes: Vec::new(),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(160);
        out.push(self.status as u8 | HAS_BUMP | if self.public { PUBLIC } else { 0 });
        put_bytes(&mut out, self.id.as_bytes());
        put_bytes(&mut out, self.version.as_bytes());
        put_u64(&mut out, self.create.map_or(0, |num| num.0.into()));
        put_u64(&mut out, self.extremities.len() as u64);
        for extremity in &self.extremities {
            put_u64(&mut out, extremity.0.into());
        }
        put_u64(&mut out, self.state.map_or(0, |root| root.0.into()));
        for number in [self.joined, self.invited, self.events, self.bytes, self.latest.0, self.depth] {
            put_u64(&mut out, number);
        }
        put_i64(&mut out, self.min_order);
        put_u64(&mut out, self.bump.0);
        out.push(self.sort as u8);
        for hole in &self.holes {
            put_i64(&mut out, hole.bottom);
            put_i64(&mut out, hole.next);
        }
        out
    }

    fn decode(row: &[u8]) -> Option<Room> {
        let mut unpack = Unpack::new(row);
        let first = unpack.u8()?;
        let id = unpack.text()?.to_owned();
        let version = unpack.text()?.to_owned();
        let create = Some(EventNum(unpack.u32()?)).filter(|num| num.0 != 0);
        let count = unpack.u64()?;
        let extremities = (0..count).map(|_| unpack.u32().map(EventNum)).collect::<Option<_>>()?;
        let state = Some(Root(unpack.u32()?)).filter(|root| root.0 != 0);
        let mut room = Room {
            id,
            version,
            status: Status::from_code(first & !(PUBLIC | HAS_BUMP))?,
            public: first & PUBLIC != 0,
            create,
            extremities,
            state,
            joined: unpack.u64()?,
            invited: unpack.u64()?,
            events: unpack.u64()?,
            bytes: unpack.u64()?,
            latest: Position(unpack.u64()?),
            bump: Position(0),
            sort: Sort::Unknown,
            depth: unpack.u64()?,
            min_order: unpack.i64()?,
            holes: Vec::new(),
        };
        room.bump = room.latest;
        if first & HAS_BUMP != 0 {
            (room.bump, room.sort) = (Position(unpack.u64()?), Sort::from_code(unpack.u8()?)?);
        }
        while !unpack.is_empty() {
            room.holes.push(Hole { bottom: unpack.i64()?, next: unpack.i64()? });
        }
        Some(room)
    }
}

/// Bits beside the status.
const PUBLIC: u8 = 0x80;
/// The row has `bump` and `sort`.
const HAS_BUMP: u8 = 0x40;

/// The numbers of a row that [`activity`] and [`sort`] ask for, without the rest.
fn decode_activity(row: &[u8]) -> Option<(Position, Position, Sort)> {
    let mut unpack = Unpack::new(row);
    let first = unpack.u8()?;
    // Id, version, create event.
    unpack.bytes()?;
    unpack.bytes()?;
    unpack.u64()?;
    for _ in 0..unpack.u64()? {
        unpack.u64()?;
    }
    // State; joined, invited, events, bytes.
    for _ in 0..5 {
        unpack.u64()?;
    }
    let latest = Position(unpack.u64()?);
    // Depth and the lowest order.
    unpack.u64()?;
    unpack.i64()?;
    Some(match first & HAS_BUMP {
        0 => (latest, latest, Sort::Unknown),
        _ => (latest, Position(unpack.u64()?), Sort::from_code(unpack.u8()?)?),
    })
}

/// The state a packed row names.
pub(super) fn state_of_row(row: &[u8]) -> Option<Option<Root>> {
    Room::decode(row).map(|room| room.state)
}

/// The number of a room id, when it has one.
pub fn num(get: &impl Get, room_id: &str) -> Result<Option<RoomNum>> {
    let hash = get.hash128(&[room_id.as_bytes()]);
    let Some(value) = get.get(&ROOM_NUM, &hash)? else { return Ok(None) };
    RoomNum::from_key(&value).map(Some).ok_or_else(|| Error::corrupt(&ROOM_NUM, &hash))
}

/// The number of a room id, given out now when it had none: the room is then a [`Status::Stub`] of that version
/// (empty when unknown). A known room's row is not touched.
pub fn intern(w: &mut Write, room_id: &str, version: &str) -> Result<RoomNum> {
    if let Some(num) = num(w, room_id)? {
        return Ok(num);
    }
    let num = RoomNum(w.next_numbers("room", 1)?);
    let hash = w.hash128(&[room_id.as_bytes()]);
    w.put(&ROOM_NUM, &hash, &num.to_key())?;
    put(w, num, &Room::stub(room_id, version))?;
    Ok(num)
}

/// A room's row.
pub fn get(get: &impl Get, num: RoomNum) -> Result<Option<Room>> {
    let Some(row) = get.get(&ROOM, &num.to_key())? else { return Ok(None) };
    Room::decode(&row).map(Some).ok_or_else(|| Error::corrupt(&ROOM, &num.to_key()))
}

/// The id behind a room's number.
pub fn id(get: &impl Get, num: RoomNum) -> Result<Option<String>> {
    let mut id = None;
    let found = get.with(&ROOM, &num.to_key(), &mut |row| {
        id = row.get(1..).and_then(|row| Unpack::new(row).text().map(str::to_owned));
    })?;
    if found && id.is_none() {
        return Err(Error::corrupt(&ROOM, &num.to_key()));
    }
    Ok(id)
}

/// When something in a room last changed, and when an event last came for which people look into it.
pub fn activity(get: &impl Get, num: RoomNum) -> Result<(Position, Position)> {
    activity_row(get, num).map(|(latest, bump, _)| (latest, bump))
}

/// What a room is for.
pub fn sort(get: &impl Get, num: RoomNum) -> Result<Sort> {
    activity_row(get, num).map(|(_, _, sort)| sort)
}

fn activity_row(get: &impl Get, num: RoomNum) -> Result<(Position, Position, Sort)> {
    let mut found = None;
    get.with(&ROOM, &num.to_key(), &mut |row| found = decode_activity(row))?;
    found.ok_or_else(|| Error::corrupt(&ROOM, &num.to_key()))
}

/// The row of a room that one of our own rows mentions.
pub fn get_of(reads: &impl Get, num: RoomNum) -> Result<Room> {
    get(reads, num)?.ok_or_else(|| Error::corrupt(&ROOM, &num.to_key()))
}

/// Replaces a room's row.
pub fn put(w: &mut Write, num: RoomNum, room: &Room) -> Result<()> {
    w.put(&ROOM, &num.to_key(), &room.encode())
}

/// Forgets a room's name and row. All rows that refer to it must be gone already.
pub fn remove(w: &mut Write, num: RoomNum) -> Result<()> {
    let Some(room) = get(w, num)? else { return Ok(()) };
    let hash = w.hash128(&[room.id.as_bytes()]);
    w.remove(&ROOM_NUM, &hash)?;
    w.remove(&ROOM, &num.to_key())?;
    Ok(())
}

/// Visits all known rooms, stubs included, in the order they were first heard of.
pub fn list(reads: &impl Get, visit: &mut dyn FnMut(RoomNum, Room) -> Result<ControlFlow<()>>) -> Result<()> {
    list_after(reads, None, visit)
}

/// As [`list`], beginning behind `after`.
pub fn list_after(
    reads: &impl Get,
    after: Option<RoomNum>,
    visit: &mut dyn FnMut(RoomNum, Room) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let from = RoomNum(after.map_or(0, |num| num.0.saturating_add(1))).to_key();
    reads.range(&ROOM, &from, None, false, &mut |key, value| {
        let corrupt = || Error::corrupt(&ROOM, key);
        visit(RoomNum::from_key(key).ok_or_else(corrupt)?, Room::decode(value).ok_or_else(corrupt)?)
    })
}

#[cfg(test)]
mod tests {
    use super::directory::public_key;
    use super::*;

    #[test]
    fn a_row_comes_back_as_it_was() {
        let mut room = Room::stub("!a:example.org", "11");
        assert_eq!(Room::decode(&room.encode()).as_ref(), Some(&room));
        room.status = Status::Resident;
        room.public = true;
        room.create = Some(EventNum(9));
        room.extremities = vec![EventNum(10), EventNum(70_000)];
        room.state = Some(Root(300_000));
        room.min_order = -70;
        room.joined = 40_000;
        room.latest = Position(1 << 40);
        room.bump = Position(1 << 39);
        room.sort = Sort::Space;
        room.holes = vec![Hole { bottom: 3, next: 70 }, Hole { bottom: 100, next: 1 << 30 }];
        assert_eq!(Room::decode(&room.encode()).as_ref(), Some(&room));
        assert_eq!(decode_activity(&room.encode()), Some((room.latest, room.bump, Sort::Space)));
    }

    /// Rows of earlier versions have no `bump`.
    #[test]
    fn a_room_of_an_earlier_version_was_last_looked_into_when_it_last_changed() {
        let mut room = Room::stub("!a:example.org", "11");
        (room.latest, room.min_order, room.public) = (Position(70), -70, true);
        let mut row = room.encode();
        row[0] &= !HAS_BUMP;
        row.truncate(row.len() - 2);
        let found = Room::decode(&row).unwrap();
        assert_eq!((found.bump, found.sort, found.public), (Position(70), Sort::Unknown, true));
        assert_eq!(decode_activity(&row), Some((Position(70), Position(70), Sort::Unknown)));
    }

    #[test]
    fn the_public_list_has_large_rooms_first() {
        assert!(public_key(40_000, RoomNum(9)) < public_key(3, RoomNum(1)));
        assert!(public_key(3, RoomNum(1)) < public_key(3, RoomNum(2)));
    }

    #[test]
    fn any_bytes_are_a_row_or_damage() {
        let mut room = Room::stub("!a:example.org", "11");
        room.extremities = vec![EventNum(10), EventNum(70_000)];
        crate::base::any_bytes::any_bytes(&[&room.encode()], |bytes| {
            if let Some(room) = Room::decode(bytes) {
                assert_eq!(decode_activity(bytes), Some((room.latest, room.bump, room.sort)));
                assert_eq!(Room::decode(&room.encode()), Some(room));
            }
        });
    }
}

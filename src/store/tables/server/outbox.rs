//! The outbound log: the data that other servers must receive, once each, however many servers that is.
//!
//! A destination is a cursor into this log (`deliver` keeps those). The delivery worker derives the receivers of a row
//! from the servers in its room, so a message to a room of 5,000 servers is one row here. Readers that are no servers
//! (`follower.rs`) have cursors of their own. Any part may post; only `deliver` takes rows away, once every cursor has
//! passed them.

use std::ops::ControlFlow;

use crate::store::row_encoding::{Unpack, put_bytes, put_u64};
use crate::store::schema::OUTBOX;
use crate::store::{Error, Get, Result, Write};
use crate::store::{EventNum, Position, RoomNum};

/// One row of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// An event of ours: to every server in the room, and to the named servers, which left by the event (a kick must
    /// still reach the kicked user) or are being invited.
    Event { room: RoomNum, event: EventNum, also: Vec<String> },
    /// An ephemeral unit to every server in a room. `json` is the whole EDU, `edu_type` and `content`.
    RoomEdu { room: RoomNum, json: Vec<u8> },
    /// A unit to the named servers.
    Edu { to: Vec<String>, json: Vec<u8> },
    /// A shown event that no server is sent: another server's, or one in a room without others. Written only while
    /// somebody follows the log.
    Followed { room: RoomNum, event: EventNum },
    /// An event of ours to one server, which came into the room after it.
    EventTo { room: RoomNum, event: EventNum, to: String },
}

const EVENT: u8 = 0;
const ROOM_EDU: u8 = 1;
const EDU: u8 = 2;
const FOLLOWED: u8 = 3;
const EVENT_TO: u8 = 4;

impl Outbound {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16);
        match self {
            Outbound::Event { room, event, also } => {
                out.push(EVENT);
                put_u64(&mut out, room.0.into());
                put_u64(&mut out, event.0.into());
                put_names(&mut out, also);
            }
            Outbound::RoomEdu { room, json } => {
                out.push(ROOM_EDU);
                put_u64(&mut out, room.0.into());
                put_bytes(&mut out, json);
            }
            Outbound::Edu { to, json } => {
                out.push(EDU);
                put_names(&mut out, to);
                put_bytes(&mut out, json);
            }
            Outbound::Followed { room, event } => {
                out.push(FOLLOWED);
                put_u64(&mut out, room.0.into());
                put_u64(&mut out, event.0.into());
            }
            Outbound::EventTo { room, event, to } => {
                out.push(EVENT_TO);
                put_u64(&mut out, room.0.into());
                put_u64(&mut out, event.0.into());
                put_bytes(&mut out, to.as_bytes());
            }
        }
        out
    }

    fn decode(row: &[u8]) -> Option<Outbound> {
        let mut unpack = Unpack::new(row);
        Some(match unpack.u8()? {
            EVENT => Outbound::Event {
                room: RoomNum(unpack.u32()?),
                event: EventNum(unpack.u32()?),
                also: names(&mut unpack)?,
            },
            ROOM_EDU => Outbound::RoomEdu { room: RoomNum(unpack.u32()?), json: unpack.bytes()?.to_vec() },
            EDU => Outbound::Edu { to: names(&mut unpack)?, json: unpack.bytes()?.to_vec() },
            FOLLOWED => Outbound::Followed { room: RoomNum(unpack.u32()?), event: EventNum(unpack.u32()?) },
            EVENT_TO => Outbound::EventTo {
                room: RoomNum(unpack.u32()?),
                event: EventNum(unpack.u32()?),
                to: unpack.text()?.to_owned(),
            },
            _ => return None,
        })
    }
}

fn put_names(out: &mut Vec<u8>, names: &[String]) {
    put_u64(out, names.len() as u64);
    for name in names {
        put_bytes(out, name.as_bytes());
    }
}

fn names(unpack: &mut Unpack<'_>) -> Option<Vec<String>> {
    let count = unpack.u64()?;
    (0..count).map(|_| unpack.text().map(str::to_owned)).collect()
}

/// Posts a row at a position taken from this write.
pub fn post(w: &mut Write, at: Position, row: &Outbound) -> Result<()> {
    w.put(&OUTBOX, &at.to_key(), &row.encode())
}

/// Visits the log behind a position, oldest first, until the visitor breaks.
pub fn list_after(
    get: &impl Get,
    after: Position,
    visit: &mut dyn FnMut(Position, Outbound) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let from = Position(after.0.saturating_add(1)).to_key();
    get.range(&OUTBOX, &from, None, false, &mut |key, value| {
        let corrupt = || Error::corrupt(&OUTBOX, key);
        visit(Position::from_key(key).ok_or_else(corrupt)?, Outbound::decode(value).ok_or_else(corrupt)?)
    })
}

/// Whether the log has an event of a room that is still to be sent. Bounded by the log.
pub fn has_room(get: &impl Get, room: RoomNum) -> Result<bool> {
    let mut has = false;
    list_after(get, Position(0), &mut |_, row| {
        has = matches!(&row, Outbound::Event { room: of, .. } | Outbound::EventTo { room: of, .. } if *of == room);
        Ok(if has { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(has)
}

/// The newest row's position; a new destination begins behind it.
pub fn newest(get: &impl Get) -> Result<Option<Position>> {
    let mut newest = None;
    get.range(&OUTBOX, &[], None, true, &mut |key, _| {
        newest = Some(Position::from_key(key).ok_or_else(|| Error::corrupt(&OUTBOX, key))?);
        Ok(ControlFlow::Break(()))
    })?;
    Ok(newest)
}

/// Drops at most `most` rows at or before a position that every cursor has passed. Answers the number dropped.
pub fn drop_up_to(w: &mut Write, up_to: Position, most: usize) -> Result<usize> {
    let mut passed = Vec::new();
    let end = Position(up_to.0.saturating_add(1)).to_key();
    w.range(&OUTBOX, &[], Some(&end), false, &mut |key, _| {
        passed.push(key.to_vec());
        Ok(if passed.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    for key in &passed {
        w.remove(&OUTBOX, key)?;
    }
    Ok(passed.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_they_were() {
        for row in [
            Outbound::Event { room: RoomNum(1), event: EventNum(2), also: vec!["example.org".to_owned()] },
            Outbound::RoomEdu { room: RoomNum(9), json: b"{}".to_vec() },
            Outbound::Edu { to: vec!["a".to_owned(), "b:8448".to_owned()], json: b"{\"a\":1}".to_vec() },
            Outbound::Followed { room: RoomNum(3), event: EventNum(70_000) },
            Outbound::EventTo { room: RoomNum(3), event: EventNum(7), to: "example.org".to_owned() },
        ] {
            assert_eq!(Outbound::decode(&row.encode()), Some(row));
        }
    }

    #[test]
    fn any_bytes_are_a_row_or_damage() {
        let row = Outbound::Edu { to: vec!["a".to_owned(), "b:8448".to_owned()], json: b"{\"a\":1}".to_vec() };
        let one = Outbound::EventTo { room: RoomNum(3), event: EventNum(7), to: "example.org".to_owned() };
        crate::base::any_bytes::any_bytes(&[&row.encode(), &one.encode()], |bytes| {
            if let Some(row) = Outbound::decode(bytes) {
                assert_eq!(Outbound::decode(&row.encode()), Some(row));
            }
        });
    }
}

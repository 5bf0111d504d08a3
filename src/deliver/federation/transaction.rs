//! The next transaction for one server, read from the log behind a position.
//!
//! Bounded: at most [`PDUS_MAX`] events and [`EDUS_MAX`] EDUs (the specification's limits), a given number of bytes,
//! and [`ROWS_MAX`] rows looked at.

use std::{
    collections::HashMap,
    ops::{ControlFlow, Range},
};

use ruma::ServerName;

use crate::store::tables::room::{event, member};
use crate::store::tables::server::outbox::{self, Outbound};
use crate::store::tables::user;
use crate::store::{self, EventNum, Get, Position, RoomNum};

pub(in crate::deliver) const PDUS_MAX: usize = 50;
pub(in crate::deliver) const EDUS_MAX: usize = 100;
const ROWS_MAX: usize = 4096;
/// A server that has missed more events than one transaction holds, for longer than this, gets only the newest event of
/// each room; it can ask for the events between.
const STALE_MS: u64 = 3_600_000;
/// Rooms told apart when catching up; events of further rooms are sent one by one.
const ROOMS_MAX: usize = 512;

/// One transaction's content.
#[derive(Debug, Default)]
pub(in crate::deliver) struct Unit {
    /// JSON objects, separated by commas.
    pub pdus: Vec<u8>,
    pub edus: Vec<u8>,
    pub pdu_count: usize,
    pub edu_count: usize,
    /// Everything for the server up to here is in this unit or an earlier one.
    pub reached: Position,
    /// The log has more rows behind `reached` that were not looked at.
    pub more: bool,
}

impl Unit {
    pub(in crate::deliver) fn is_empty(&self) -> bool {
        self.items() == 0
    }

    pub(in crate::deliver) fn items(&self) -> usize {
        self.pdu_count + self.edu_count
    }

    fn add_pdu(&mut self, json: &[u8]) {
        push(&mut self.pdus, json);
        self.pdu_count += 1;
    }

    fn add_edu(&mut self, json: &[u8]) {
        push(&mut self.edus, json);
        self.edu_count += 1;
    }

    fn has_place_for(&self, bytes: usize, bytes_max: usize) -> bool {
        self.is_empty() || self.pdus.len() + self.edus.len() + bytes <= bytes_max
    }
}

fn push(list: &mut Vec<u8>, json: &[u8]) {
    if !list.is_empty() {
        list.push(b',');
    }
    list.extend_from_slice(json);
}

/// Whether a row of the log is for a server: it is named, or it has been in the room since before the row was written.
/// An event of a user of that server came to us from there (`send_join` and the like), and is not sent back.
fn is_for(get: &impl Get, server: &str, at: Position, row: &Outbound) -> store::Result<bool> {
    let in_room = |room: RoomNum| Ok(member::server(get, room, server)?.is_some_and(|(_, since)| since <= at));
    match row {
        Outbound::Event { room, event, also } => {
            let is_told = also.iter().any(|name| name == server) || in_room(*room)?;
            Ok(is_told && !is_from(get, server, *event)?)
        }
        Outbound::RoomEdu { room, .. } => in_room(*room),
        Outbound::Edu { to, .. } => Ok(to.iter().any(|name| name == server)),
        Outbound::EventTo { room, to, .. } => Ok(to == server && in_room(*room)?),
        Outbound::Followed { .. } => Ok(false),
    }
}

/// Whether an event's sender is a user of the server.
fn is_from(get: &impl Get, server: &str, event: EventNum) -> store::Result<bool> {
    let Some(row) = event::row(get, event)? else { return Ok(false) };
    Ok(user::id_of(get, row.sender)?.split_once(':').is_some_and(|(_, of)| of == server))
}

/// The next unit for `server` out of the rows behind `rows.start`, up to `rows.end`. `lag_ms` is the time the server
/// has been behind. At most `items_max` events and messages together.
pub(in crate::deliver) fn next(
    get: &impl Get,
    server: &ServerName,
    rows: Range<Position>,
    lag_ms: u64,
    items_max: usize,
    bytes_max: usize,
) -> store::Result<Unit> {
    let newest = if lag_ms > STALE_MS { newest_by_room(get, server.as_str(), rows.start)? } else { None };
    let mut unit = Unit { reached: rows.start, ..Unit::default() };
    let mut looked = 0;
    outbox::list_after(get, rows.start, &mut |at, row| {
        if at > rows.end {
            return Ok(ControlFlow::Break(()));
        }
        looked += 1;
        if looked > ROWS_MAX {
            unit.more = true;
            return Ok(ControlFlow::Break(()));
        }
        if is_for(get, server.as_str(), at, &row)?
            && !is_superseded(&newest, at, &row)
            && (unit.items() >= items_max || !add(get, &mut unit, &row, bytes_max)?)
        {
            unit.more = true;
            return Ok(ControlFlow::Break(()));
        }
        unit.reached = at;
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(unit)
}

/// Adds a row; false when it no longer fits.
fn add(get: &impl Get, unit: &mut Unit, row: &Outbound, bytes_max: usize) -> store::Result<bool> {
    match row {
        Outbound::Event { event, .. } | Outbound::EventTo { event, .. } => {
            if unit.pdu_count == PDUS_MAX {
                return Ok(false);
            }
            let Some(body) = body(get, *event)? else { return Ok(true) };
            let fits = unit.has_place_for(body.len(), bytes_max);
            if fits {
                unit.add_pdu(&body);
            }
            Ok(fits)
        }
        Outbound::Followed { .. } => Ok(true),
        Outbound::RoomEdu { json, .. } | Outbound::Edu { json, .. } => {
            let fits = unit.edu_count < EDUS_MAX && unit.has_place_for(json.len(), bytes_max);
            if fits {
                unit.add_edu(json);
            }
            Ok(fits)
        }
    }
}

/// An event's JSON; none when its room was purged meanwhile.
fn body(get: &impl Get, event: EventNum) -> store::Result<Option<Vec<u8>>> {
    match event::row(get, event)? {
        Some(row) => event::body(get, &row).map(Some),
        None => Ok(None),
    }
}

type Newest = HashMap<RoomNum, Position>;

/// The newest event of each room for a server far behind; none when one transaction holds all missed events.
fn newest_by_room(get: &impl Get, server: &str, from: Position) -> store::Result<Option<Newest>> {
    let mut newest = Newest::new();
    let (mut events, mut looked) = (0, 0);
    outbox::list_after(get, from, &mut |at, row| {
        looked += 1;
        if let Outbound::Event { room, .. } = &row
            && is_for(get, server, at, &row)?
        {
            events += 1;
            if newest.len() < ROOMS_MAX || newest.contains_key(room) {
                newest.insert(*room, at);
            }
        }
        Ok(if looked < 4 * ROWS_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok((events > PDUS_MAX).then_some(newest))
}

/// Whether a server catching up can do without a row: an event with a newer one after it, or what was true for a while.
fn is_superseded(newest: &Option<Newest>, at: Position, row: &Outbound) -> bool {
    let Some(newest) = newest else { return false };
    match row {
        Outbound::Event { room, .. } => newest.get(room).is_some_and(|newest| at < *newest),
        Outbound::RoomEdu { json, .. } | Outbound::Edu { json, .. } => is_ephemeral(json),
        // What was sticky is over after an hour, and the server is further behind.
        Outbound::EventTo { .. } => true,
        Outbound::Followed { .. } => false,
    }
}

fn is_ephemeral(edu: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Kind<'a> {
        #[serde(borrow)]
        edu_type: std::borrow::Cow<'a, str>,
    }
    serde_json::from_slice::<Kind<'_>>(edu)
        .is_ok_and(|kind| matches!(&*kind.edu_type, "m.typing" | "m.receipt" | "m.presence"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tables::room::event_row::{Flags, Id, Kind, Row};
    use crate::store::tables::user;
    use crate::store::{BodyNum, Store, Write};

    /// A joining server got its own join event back, often before the answer to its request.
    #[test]
    fn a_server_is_not_sent_what_it_sent_us() {
        let store = Store::in_memory();
        let room = RoomNum(3);
        let job = move |w: &mut Write<'_>| {
            let mut first = None;
            for (n, sender) in ["@a:home.example", "@b:far.example", "@c:other.example"].into_iter().enumerate() {
                let row = Row {
                    room,
                    body: BodyNum(0),
                    id: Id::Hash([n as u8; 32]),
                    kind: Kind::MESSAGE,
                    state_key: None,
                    sender: user::intern(w, sender)?,
                    member: None,
                    flags: Flags::default(),
                    depth: 1,
                    origin_server_ts: 1,
                    auth: Vec::new(),
                    before: None,
                    order: None,
                    redacted_by: None,
                };
                let (event, _) = event::insert(w, row, format!("{{\"from\":\"{sender}\"}}").as_bytes())?;
                first = first.or(Some(event));
                let also = vec!["far.example".to_owned()];
                outbox::post(w, Position(n as u64 + 1), &Outbound::Event { room, event, also })?;
            }
            let event = first.unwrap();
            let late = |to: &str| Outbound::EventTo { room, event, to: to.to_owned() };
            // Only to whom it says, while they are in the room.
            outbox::post(w, Position(4), &late("other.example"))?;
            outbox::post(w, Position(5), &late("far.example"))?;
            member::put_server(w, room, "other.example", 1, Position(0))
        };
        store.write_blocking(job).unwrap();
        let sent = |server: &str| {
            let rows = Position(0)..Position(9);
            let server = <&ServerName>::try_from(server).unwrap();
            let unit = next(&store.read().unwrap(), server, rows, 0, 100, 10_000).unwrap();
            assert_eq!((unit.reached, unit.more), (Position(5), false));
            String::from_utf8(unit.pdus).unwrap()
        };
        assert_eq!(sent("far.example"), r#"{"from":"@a:home.example"},{"from":"@c:other.example"}"#);
        assert_eq!(
            sent("other.example"),
            r#"{"from":"@a:home.example"},{"from":"@b:far.example"},{"from":"@a:home.example"}"#
        );
    }
}

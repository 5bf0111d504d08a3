//! The children of a space we are in, in their order ("Ordering of children within a space").

use std::cmp::Ordering;
use std::ops::ControlFlow;

use ruma::{OwnedRoomId, OwnedServerName};

use crate::base::{ChunkError, ChunkWriter, comma, sort_few};
use crate::matrix::json;
use crate::room::error::Result;
use crate::room::read::event_json;
use crate::store::tables::room::current_state::{StateCursor, list_state};
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::Kind;
use crate::store::{self, EventNum, Get, RoomNum};

/// Children of one space that are looked at. While they are put in order each has 32 bytes and its `order`, at most 64 more.
pub const CHILDREN_MAX: usize = 1_000;
/// Events of one space that are looked at for them: those of rooms that were taken out of it again stay in its state. Each is a read of
/// some microseconds.
pub const CHILD_ROWS_MAX: usize = 5_000;
/// The longest `order` that counts.
const ORDER_CHARS_MAX: usize = 50;
/// Servers to ask about a child.
pub const VIA_MAX: usize = 5;

/// A room that a space names.
#[derive(Debug, PartialEq, Eq)]
pub struct Child {
    pub room_id: OwnedRoomId,
    pub via: Vec<OwnedServerName>,
}

impl Child {
    /// Out of its `m.space.child` event; none when that names no room any more.
    pub fn of(event: &[u8]) -> Option<Child> {
        let room_id = OwnedRoomId::try_from(&*json::read::get_text(event, "state_key")?).ok()?;
        let via = via_of(event)?;
        Some(Child { room_id, via })
    }
}

/// The servers in a child's event: none when the child was taken out of the space.
fn via_of(event: &[u8]) -> Option<Vec<OwnedServerName>> {
    let via = json::read::get_path(event, &["content", "via"]).filter(|via| via.starts_with(b"["))?;
    let mut servers = Vec::new();
    for name in json::read::items(via) {
        let name = json::read::text(name)?;
        if servers.len() < VIA_MAX {
            servers.extend(OwnedServerName::try_from(&*name));
        }
    }
    json::read::items(via).next()?;
    Some(servers)
}

pub fn is_suggested(event: &[u8]) -> bool {
    json::read::get_path(event, &["content", "suggested"]) == Some(b"true")
}

/// What decides a child's place: a valid `order`, then the time of its event.
struct Place {
    order: Option<Box<str>>,
    ts: u64,
    event: EventNum,
}

impl Place {
    fn cmp(&self, other: &Place) -> Ordering {
        let no_order = |place: &Place| place.order.is_none();
        (no_order(self), &self.order, self.ts).cmp(&(no_order(other), &other.order, other.ts))
    }
}

/// The events that name a space's children, in the order of these: at most [`CHILDREN_MAX`], of each its body is read once. At most
/// `rows_max` events are looked at. Answers how many were.
pub fn child_events(
    get: &impl Get,
    room: RoomNum,
    suggested_only: bool,
    rows_max: usize,
) -> Result<(Vec<EventNum>, usize)> {
    let (mut places, mut looked) = (Vec::new(), 0);
    list_state(get, room, Some(Kind::SPACE_CHILD), StateCursor::default(), &mut |_, _, event| {
        if looked == rows_max || places.len() == CHILDREN_MAX {
            return Ok(ControlFlow::Break(()));
        }
        looked += 1;
        places.extend(place_of(get, event, suggested_only)?);
        Ok(ControlFlow::Continue(()))
    })?;
    sort_few(&mut places, Place::cmp);
    let mut sorted: Vec<EventNum> = places.iter().map(|place| place.event).collect();
    // Where both are the same the rooms' ids decide; seldom, so they are read again then.
    let mut from = 0;
    for run in places.chunk_by(|one, other| one.cmp(other).is_eq()) {
        let to = from + run.len();
        if run.len() > 1 {
            by_id(get, &mut sorted[from..to])?;
        }
        from = to;
    }
    Ok((sorted, looked))
}

fn place_of(get: &impl Get, num: EventNum, suggested_only: bool) -> store::Result<Option<Place>> {
    let row = event::row_of(get, num)?;
    let body = event::shown(get, &row)?;
    if Child::of(&body).is_none() || (suggested_only && !is_suggested(&body)) {
        return Ok(None);
    }
    let order = json::read::get_path(&body, &["content", "order"]).and_then(json::read::text);
    let is_valid =
        |order: &str| order.len() <= ORDER_CHARS_MAX && order.bytes().all(|byte| (0x20..=0x7e).contains(&byte));
    let order = order.filter(|order| is_valid(order)).map(|order| order.into_owned().into_boxed_str());
    Ok(Some(Place { order, ts: row.origin_server_ts, event: num }))
}

fn by_id(get: &impl Get, run: &mut [EventNum]) -> store::Result<()> {
    let mut named = Vec::with_capacity(run.len());
    for num in run.iter() {
        let body = event::shown(get, &event::row_of(get, *num)?)?;
        named.push((json::read::get_text(&body, "state_key").unwrap_or_default().into_owned(), *num));
    }
    sort_few(&mut named, Ord::cmp);
    for (place, (_, num)) in run.iter_mut().zip(named) {
        *place = num;
    }
    Ok(())
}

/// The child that an event names.
pub fn child(get: &impl Get, num: EventNum) -> store::Result<Option<Child>> {
    Ok(Child::of(&event::shown(get, &event::row_of(get, num)?)?))
}

/// Writes the events as stripped state, with commas between them.
pub async fn write_children(get: &impl Get, pen: &ChunkWriter, events: &[EventNum]) -> Result<(), ChunkError> {
    let mut first = true;
    for num in events {
        let row = event::row_of(get, *num)?;
        pen.with(|out| {
            comma(out, &mut first);
            event_json::write_stripped(get, &row, out)
        })?;
        pen.pause().await;
    }
    Ok(())
}

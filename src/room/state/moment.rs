//! The event of a room nearest to a time ("Finding an event by its timestamp").
//!
//! A timeline is in the order in which events came, and their times nearly follow that order; nothing is kept in the order of their
//! times, which would be a row more for each message. So the place is looked for by halving, by the middle one of a few times so
//! that one wrong clock does not lead astray, and around the place all times are looked at.

use std::ops::ControlFlow;

use super::RoomRef;
use crate::store::tables::room::event_row::Row;
use crate::store::tables::room::{event, timeline};
use crate::store::{self, EventNum, Get};

/// Times looked at to decide on which side of a place to go on.
const SAMPLE: usize = 5;
/// Events before and behind the place whose times are compared: 24 bytes each are held.
const WINDOW: usize = 300;
/// Events behind those that are passed by to find one of the wanted side.
const PASSED_BY_MAX: usize = 2_000;

/// From a time onwards, or backwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Backwards,
    Forwards,
}

impl Direction {
    pub fn of(text: &str) -> Option<Direction> {
        match text {
            "b" => Some(Direction::Backwards),
            "f" => Some(Direction::Forwards),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Direction::Backwards => "b",
            Direction::Forwards => "f",
        }
    }

    /// Whether an event of a time is on this side of the wanted one.
    pub fn allows(self, wanted_ms: u64, ts: u64) -> bool {
        match self {
            Direction::Backwards => ts <= wanted_ms,
            Direction::Forwards => ts >= wanted_ms,
        }
    }
}

/// An event of the timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    pub num: EventNum,
    pub order: i64,
    pub ts: u64,
}

/// The event nearest to a time in a direction, of those that `sees` allows; none when there is none near the place. Bounded: some
/// hundred rows for the place, [`WINDOW`] on both sides, and at most [`PASSED_BY_MAX`] on one.
pub fn near<G: Get>(
    get: &G,
    room: &RoomRef,
    wanted_ms: u64,
    direction: Direction,
    sees: &mut dyn FnMut(&G, &Row) -> store::Result<bool>,
) -> store::Result<Option<Moment>> {
    let Some(place) = place_of(get, room, wanted_ms)? else { return Ok(None) };
    near_place(get, room, place, wanted_ms, direction, sees)
}

/// The same, among the events around a place.
pub fn near_place<G: Get>(
    get: &G,
    room: &RoomRef,
    place: i64,
    wanted_ms: u64,
    direction: Direction,
    sees: &mut dyn FnMut(&G, &Row) -> store::Result<bool>,
) -> store::Result<Option<Moment>> {
    let (most_before, most_behind) = match direction {
        Direction::Backwards => (WINDOW + PASSED_BY_MAX, WINDOW),
        Direction::Forwards => (WINDOW, WINDOW + PASSED_BY_MAX),
    };
    let mut found = Vec::new();
    let mut look = Look { wanted_ms, direction, most: most_before, looked: 0 };
    let before = |order, num| look.at(get, order, num, &mut found);
    timeline::backward(get, room.num, i64::MIN, place - 1, &mut { before })?;
    let mut look = Look { wanted_ms, direction, most: most_behind, looked: 0 };
    let behind = |order, num| look.at(get, order, num, &mut found);
    timeline::forward(get, room.num, place - 1, i64::MAX - 1, &mut { behind })?;
    // Of events of one time the first on the way.
    found.sort_unstable_by_key(|moment| {
        let way = if direction == Direction::Forwards { moment.order } else { -moment.order };
        (moment.ts.abs_diff(wanted_ms), way)
    });
    for moment in found {
        let row = event::row_of(get, moment.num)?;
        if !row.flags.rejected && !row.flags.soft_failed && sees(get, &row)? {
            return Ok(Some(moment));
        }
    }
    Ok(None)
}

/// One way from the place.
struct Look {
    wanted_ms: u64,
    direction: Direction,
    most: usize,
    looked: usize,
}

impl Look {
    fn at(
        &mut self,
        get: &impl Get,
        order: i64,
        num: EventNum,
        found: &mut Vec<Moment>,
    ) -> store::Result<ControlFlow<()>> {
        let ts = event::row_of(get, num)?.origin_server_ts;
        if self.direction.allows(self.wanted_ms, ts) {
            found.push(Moment { num, order, ts });
        }
        self.looked += 1;
        // A long way only until something is found.
        let is_enough = self.looked >= self.most || (self.looked >= WINDOW && !found.is_empty());
        Ok(if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}

/// The order from which on events are mostly not from before a time; none in an empty timeline.
fn place_of(get: &impl Get, room: &RoomRef, wanted_ms: u64) -> store::Result<Option<i64>> {
    let Some((mut low, _)) = timeline::first_after(get, room.num, i64::MIN)? else { return Ok(None) };
    let mut high = timeline::at_or_before(get, room.num, i64::MAX - 1)?.map_or(low, |(order, _)| order) + 1;
    while low < high {
        let middle = low + (high - low) / 2;
        let (mut first, mut times) = (None, Vec::with_capacity(SAMPLE));
        timeline::forward(get, room.num, middle - 1, high - 1, &mut |order, num| {
            first = first.or(Some(order));
            times.push(event::row_of(get, num)?.origin_server_ts);
            Ok(if times.len() < SAMPLE { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        times.sort_unstable();
        match (first, times.get(times.len() / 2)) {
            (Some(first), Some(time)) if *time < wanted_ms => low = first + 1,
            _ => high = middle,
        }
    }
    Ok(Some(low))
}

//! Relations between events, also to those that come later.

use super::derived::{Appended, Derived};
use crate::matrix::{Event, json};
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::Row;
use crate::store::tables::room::relation::{self, Rel};
use crate::store::{EventNum, Get, Result, RoomNum, Write};

/// Which event annotates, replaces or answers which.
pub struct Relations;

impl Derived for Relations {
    fn on_append(&self, w: &mut Write<'_>, appended: &mut Appended<'_>) -> Result<()> {
        let Appended { new, num, row, .. } = appended;
        if let Some(order) = row.order {
            relate(w, new.room, &new.event, order, *num)?;
        }
        match new.cites {
            Some(_) => Ok(()),
            None => relate_waiting(w, new.room, &new.event, *num),
        }
    }

    fn on_redact(&self, w: &mut Write<'_>, event: &Event, row: &Row) -> Result<()> {
        match (row.order, relation_of(w, row.room, event)?) {
            (Some(order), Some((rel, target))) => relation::remove(w, row.room, target, rel, order),
            _ => Ok(()),
        }
    }
}

/// Remembers which event this one annotates, replaces or answers. That event may come later: events from before our
/// time in the room are fetched newest first.
fn relate(w: &mut Write<'_>, room: RoomNum, event: &Event, order: i64, num: EventNum) -> Result<()> {
    let Some((rel, target)) = relation_in(event) else { return Ok(()) };
    match event::num(w, &target)? {
        Some(target) if is_of(w, room, target)? => relation::put(w, room, target, rel, order, num),
        Some(_) => Ok(()),
        None => relation::add_pending(w, room, &target, rel, num),
    }
}

/// Stores the relations that waited for an event. An event redacted meanwhile has no relation.
fn relate_waiting(w: &mut Write<'_>, room: RoomNum, event: &Event, target: EventNum) -> Result<()> {
    for (rel, num) in relation::take_pending(w, room, event.id().as_str())? {
        if let Some(row) = event::row(w, num)?
            && let Some(order) = row.order.filter(|_| row.room == room && !row.flags.redacted)
        {
            relation::put(w, room, target, rel, order, num)?;
        }
    }
    Ok(())
}

/// The relation an event states, when its target is stored and in the same room.
pub fn relation_of(get: &impl Get, room: RoomNum, event: &Event) -> Result<Option<(Rel, EventNum)>> {
    let Some((rel, target)) = relation_in(event) else { return Ok(None) };
    let Some(target) = event::num(get, &target)? else { return Ok(None) };
    Ok(is_of(get, room, target)?.then_some((rel, target)))
}

/// The relation that an event's content states, and its target.
fn relation_in(event: &Event) -> Option<(Rel, String)> {
    let relates = json::read::get(event.content().as_bytes(), "m.relates_to")?;
    let (rel, target) = (json::read::get_text(relates, "rel_type")?, json::read::get_text(relates, "event_id")?);
    Some((Rel::of(&rel), target.into_owned()))
}

fn is_of(get: &impl Get, room: RoomNum, num: EventNum) -> Result<bool> {
    Ok(event::row(get, num)?.is_some_and(|row| row.room == room))
}

//! The forward extremities of the history, and the holes behind them.

use super::new_event::Append;
use crate::room::state;
use crate::room::state::fork::superseded;
use crate::store::tables::room::{EXTREMITIES_MAX, HOLE_ORDERS, HOLES_MAX, Hole, Room, event, timeline};
use crate::store::{EventNum, Get, Position, Result, Write};

/// Whether events are missing between our history of the room and an event: it follows events that we do not have, and
/// is deeper than those alone explain. Forks from before our time in the room are no holes.
pub fn leaves_hole(get: &impl Get, room: &Room, new: &Append) -> Result<bool> {
    // A room joined again begins without extremities.
    let is_beyond = new.event.depth() > room.depth + 1 || room.extremities.is_empty();
    if !new.is_new() || !is_beyond || timeline::first_after(get, new.room, i64::MIN)?.is_none() {
        return Ok(false);
    }
    for prev in new.event.prev_events() {
        if !state::event::stored(get, prev.as_str())?.is_some_and(|(_, row)| state::event::is_placed(&row)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Leaves orders free for the missing events; answers the position behind them.
pub fn open_hole(w: &mut Write<'_>, room: &mut Room) -> Position {
    let bottom = w.next_position().0 as i64;
    let at = w.skip_positions(HOLE_ORDERS);
    if room.holes.len() == HOLES_MAX {
        room.holes.remove(0);
    }
    room.holes.push(Hole { bottom, next: at.0 as i64 });
    at
}

/// Remembers the followed events that have no place here: when one of them comes, it is no extremity.
pub fn note_followed(w: &mut Write<'_>, room: &Room, new: &Append) -> Result<()> {
    for prev in new.event.prev_events() {
        let stored = event::num(w, prev.as_str())?;
        let is_placed = match stored {
            Some(num) => room.extremities.contains(&num) || state::event::is_placed(&event::row_of(w, num)?),
            None => false,
        };
        if !is_placed {
            event::set_followed(w, new.room, prev.as_str())?;
        }
    }
    Ok(())
}

/// The event replaces the events it follows among the extremities; it is no extremity itself when others that follow it
/// are here. A room is never left without extremities.
pub fn follow(w: &mut Write<'_>, room: &mut Room, new: &Append, num: EventNum, is_followed: bool) -> Result<()> {
    if new.cites.is_some() {
        room.extremities.clear();
    } else {
        let superseded = superseded(w, &room.extremities, &new.event)?;
        room.extremities.retain(|extremity| !superseded.contains(extremity));
    }
    if is_followed && !room.extremities.is_empty() {
        return Ok(());
    }
    room.extremities.push(num);
    if room.extremities.len() > EXTREMITIES_MAX {
        // The oldest goes: its state was part of every resolution since it came, so only its place as a parent of our
        // next event is lost, and other servers' events make up for that.
        room.extremities.sort_unstable();
        room.extremities.remove(0);
    }
    Ok(())
}

//! What follows from an event, and the four moments at which it is written.
//!
//! A derived thing is a file of its own beside this one, with one `impl Derived`, and stands in the list in `mod.rs`. What
//! it writes is in the same commit as the event, so that a power cut leaves both or neither.

use super::new_event::{Append, Here};
use crate::matrix::Event;
use crate::store::tables::room::Room;
use crate::store::tables::room::current_state::NewState;
use crate::store::tables::room::event_row::{Kind, Row};
use crate::store::{Change, EventNum, Position, Result, RoomNum, UserNum, Write};

/// Something that follows from the events of a room. Every verb is bounded by the event and by the users of this server,
/// never by the room.
pub trait Derived: Sync {
    /// An event was stored, or an outlier got its place. The present state is changed already.
    fn on_append(&self, _: &mut Write<'_>, _: &mut Appended<'_>) -> Result<()> {
        Ok(())
    }

    /// A key of the present state changed: by an event, or because forks were resolved.
    fn on_state(&self, _: &mut Write<'_>, _: &mut StateChange<'_>) -> Result<()> {
        Ok(())
    }

    /// An event is about to lose its content. `event` and `row` are as they were.
    fn on_redact(&self, _: &mut Write<'_>, _event: &Event, _row: &Row) -> Result<()> {
        Ok(())
    }

    /// A part of the state of a room that is joined through another server, in the order of the keys. Only the join's
    /// last write makes the room; a part can come again after a crash.
    fn build_from_state(&self, _: &mut Write<'_>, _: RoomNum, _: &[NewState]) -> Result<()> {
        Ok(())
    }

    /// Removes what was built from a room's state, at most `rows_max` rows at a time. Answers how many; fewer means
    /// that none are left. For a room that is built anew, or was never finished.
    fn forget(&self, _: &mut Write<'_>, _: RoomNum, _rows_max: usize) -> Result<usize> {
        Ok(0)
    }
}

/// An event that was just stored.
pub struct Appended<'a> {
    pub here: &'a Here,
    pub room: &'a Room,
    pub new: &'a Append,
    pub num: EventNum,
    pub row: &'a Row,
    pub at: Position,
    /// What is announced after the commit.
    pub change: Change,
}

/// A key of the present state that changes.
pub struct StateChange<'a> {
    pub here: &'a Here,
    pub num: RoomNum,
    pub room: &'a mut Room,
    pub kind: Kind,
    pub before: Option<&'a Row>,
    pub after: Option<(EventNum, Row)>,
    pub at: Position,
    /// The local user whose own membership changed.
    pub local: Option<UserNum>,
}

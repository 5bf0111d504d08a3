//! Guests who have to leave a room that is closed to them ("Guest Access").
//!
//! What is written here is only that they must: each leaves by an event of their own, which `room/guests.rs` sends.

use super::derived::{Appended, Derived, StateChange};
use crate::store::tables::room::event_row::Kind;
use crate::store::tables::room::user_room;
use crate::store::{Result, Write};

/// Which rooms are to be looked at for guests who may not stay.
pub struct Guests;

impl Derived for Guests {
    fn on_state(&self, w: &mut Write<'_>, change: &mut StateChange<'_>) -> Result<()> {
        match change.kind {
            Kind::GUEST_ACCESS => user_room::note_guests(w, change.num),
            _ => Ok(()),
        }
    }

    fn on_append(&self, w: &mut Write<'_>, appended: &mut Appended<'_>) -> Result<()> {
        appended.change.guests = appended.row.state_key.is_some() && user_room::are_guests_noted(w, appended.new.room)?;
        Ok(())
    }
}

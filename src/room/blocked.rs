//! Rooms that an administrator blocked: nobody of this server comes into them, and nobody comes into them by this server.

use crate::room::error::{Error, Result};
use crate::store::Get;
use crate::store::tables::room::blocked;
use crate::store::tables::room::event_row::Membership;

/// `Forbidden` for a blocked room.
pub fn check(get: &impl Get, room_id: &str) -> Result<()> {
    match blocked::get(get, room_id)? {
        None => Ok(()),
        Some(_) => Err(Error::forbidden("This room has been blocked on this server")),
    }
}

/// The same for a change to this membership: who is inside may go.
pub fn check_entry(get: &impl Get, room_id: &str, membership: Option<&str>) -> Result<()> {
    match membership.and_then(Membership::of) {
        Some(Membership::Leave | Membership::Ban) | None => Ok(()),
        Some(_) => check(get, room_id),
    }
}

//! Whether a redaction takes effect (each room version's section "Handling redactions").

use super::event::{load_row, stored};
use super::{RoomRef, StateView, known_num};
use crate::matrix::{Event, RoomVersion, auth};
use crate::room::error::Error;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::Row;
use crate::store::{Get, Result, RoomNum};

/// Whether a redaction takes effect on an event of the same room, by the room's present state.
pub fn applies(
    get: &impl Get,
    room: RoomNum,
    version: &'static RoomVersion,
    redaction: &Event,
    target: &Event,
) -> Result<bool> {
    let view = StateView::present(get, room, version);
    match view.with_powers(|powers| auth::redaction_applies(version, redaction, target, powers)) {
        Ok(applies) => Ok(applies.unwrap_or(false)),
        Err(Error::Store(failed)) => Err(failed),
        // Power levels that cannot be read give no user power.
        Err(_) => Ok(false),
    }
}

/// Whether a stored redaction took effect: its target is an event of its room and was redacted by it, or before it by
/// another one. A redacted redaction names no target any more in most room versions.
pub fn took_effect(get: &impl Get, row: &Row) -> Result<bool> {
    let RoomRef { num: room, version, .. } = match known_num(get, row.room) {
        Ok(room) => room,
        Err(Error::Store(failed)) => return Err(failed),
        Err(_) => return Ok(false),
    };
    let redaction = load_row(get, version, row)?;
    let Some(target_id) = redaction.redacts() else { return Ok(false) };
    let Some((_, target)) = stored(get, target_id.as_str())? else { return Ok(false) };
    if target.room != room || !target.flags.redacted {
        return Ok(false);
    }
    if target.redacted_by.is_some() && target.redacted_by == event::num(get, &row.id.text())? {
        return Ok(true);
    }
    applies(get, room, version, &redaction, &load_row(get, version, &target)?)
}

//! Redacts an event, as soon as both the redaction and its target are here.
//!
//! Redactions that came before their target wait in a row of their own. Whether a redaction is allowed is checked once,
//! when the two meet, by the room's present state (each room version's section "Redactions").

use super::DERIVED;
use super::new_event::{Append, Here};
use crate::matrix::Event;
use crate::room::state::event::load_row;
use crate::room::state::redaction::applies;
use crate::store::tables::room::event_row::{Kind, Row};
use crate::store::tables::room::{event, redacted};
use crate::store::{EventNum, Result, Write};

/// Handles redactions for an event that was just stored: it may be one, or the target of one that waited. Answers whether
/// it redacted a state event, which may be state that is told otherwise from now on.
pub fn apply(w: &mut Write<'_>, here: &Here, new: &Append, num: EventNum, row: &Row) -> Result<bool> {
    let event = &new.event;
    let is_of_state = row.kind == Kind::REDACTION && new.is_shown() && strike_target(w, here, event, num, row)?;
    if new.cites.is_some() {
        return Ok(is_of_state);
    }
    for waiting in event::take_pending_redactions(w, row.room, event.id().as_str())? {
        // Gone when the room was removed for good and somebody was invited to it meanwhile.
        let Some(redaction_row) = event::row(w, waiting)? else { continue };
        let redaction = load_row(w, event.version(), &redaction_row)?;
        // Read again: the newest version of the row may be in the store alone.
        let row = event::row_of(w, num)?;
        if applies(w, row.room, event.version(), &redaction, event)? {
            strike(w, here, event, num, row, waiting)?;
            break;
        }
    }
    Ok(is_of_state)
}

/// Answers whether the target is a state event.
fn strike_target(w: &mut Write<'_>, here: &Here, redaction: &Event, num: EventNum, row: &Row) -> Result<bool> {
    let Some(target_id) = redaction.redacts() else { return Ok(false) };
    let Some(target) = event::num(w, target_id.as_str())? else {
        event::add_pending_redaction(w, row.room, target_id.as_str(), num)?;
        return Ok(false);
    };
    let target_row = event::row_of(w, target)?;
    if target_row.room != row.room || target_row.flags.redacted {
        return Ok(false);
    }
    let event = load_row(w, redaction.version(), &target_row)?;
    let is_of_state = target_row.state_key.is_some();
    if applies(w, row.room, redaction.version(), redaction, &event)? {
        strike(w, here, &event, target, target_row, num)?;
    }
    Ok(is_of_state)
}

/// Replaces the body by its redacted form. Always bounded: two rows and what follows from them, and two more where the settings
/// let moderators see for a while what it said.
pub fn strike(w: &mut Write<'_>, here: &Here, event: &Event, num: EventNum, mut row: Row, by: EventNum) -> Result<()> {
    for derived in DERIVED {
        derived.on_redact(w, event, &row)?;
    }
    if here.redacted_kept_ms > 0 {
        redacted::keep(w, num, event.to_federation(), here.now_ms, here.redacted_kept_ms)?;
    }
    event::replace_body(w, &row, event.redacted().to_federation())?;
    row.flags.redacted = true;
    row.redacted_by = Some(by);
    event::put_row(w, num, &row)
}

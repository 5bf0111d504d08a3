//! Sticky events (MSC4354): an event that says so is told to everybody who is joined, for an hour at most.

use super::derived::{Appended, Derived};
use crate::matrix::{Event, json};
use crate::store::tables::room::event_row::Row;
use crate::store::tables::room::sticky::{self, Sticky};
use crate::store::{Result, Write};

/// The longest stickiness that counts.
pub const STICKY_MS_MAX: u64 = 60 * 60 * 1000;

/// The list of sticky events.
pub struct StickyEvents;

impl Derived for StickyEvents {
    fn on_append(&self, w: &mut Write<'_>, appended: &mut Appended<'_>) -> Result<()> {
        let Appended { here, new, num, row, .. } = appended;
        let order = row.order.and_then(|order| u64::try_from(order).ok());
        let (Some(order), Some(duration_ms)) = (order.filter(|_| new.is_shown()), duration_ms(&new.event)) else {
            return Ok(());
        };
        // A time in the future makes it no longer.
        let since_ms = new.event.origin_server_ts().min(here.now_ms);
        let until_ms = since_ms.saturating_add(duration_ms.min(STICKY_MS_MAX));
        if until_ms <= here.now_ms {
            return Ok(());
        }
        sticky::put(w, new.room, Sticky { order, event: *num, sender: row.sender, until_ms }, here.now_ms)
    }

    fn on_redact(&self, w: &mut Write<'_>, _: &Event, row: &Row) -> Result<()> {
        match row.order.and_then(|order| u64::try_from(order).ok()) {
            Some(order) if sticky::get(w, row.room, order)?.is_some() => sticky::remove(w, row.room, order),
            _ => Ok(()),
        }
    }
}

/// How long an event asks to be sticky.
fn duration_ms(event: &Event) -> Option<u64> {
    let sticky = event.get("msc4354_sticky")?;
    let duration = json::read::get(sticky.as_bytes(), "duration_ms")?;
    std::str::from_utf8(duration).ok()?.parse().ok()
}

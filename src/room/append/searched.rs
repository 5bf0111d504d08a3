//! What the index of words must hear of beside new events, which it finds by their numbers.

use super::derived::{Appended, Derived};
use crate::matrix::Event;
use crate::room::words::{self, Key};
use crate::store::tables::room::event_row::Row;
use crate::store::tables::room::search::{self, Down, Gone};
use crate::store::{Change, Get, Result, Write};

/// Events that lose their text, and those that get their place late.
pub struct Searched;

impl Derived for Searched {
    /// A new event has the last number of all, and costs no row. An outlier that gets its place may have a number that the
    /// index has passed.
    fn on_append(&self, w: &mut Write<'_>, appended: &mut Appended<'_>) -> Result<()> {
        let Appended { num, row, .. } = *appended;
        if row.order.is_none() || Key::of_row(row).is_none() || w.next_number("event")? == num.0 + 1 {
            return Ok(());
        }
        if search::status::get(w)?.is_some_and(|status| status.low <= num && num < status.high) {
            search::add_late(w, num)?;
            appended.change.words = true;
        }
        Ok(())
    }

    fn on_redact(&self, w: &mut Write<'_>, event: &Event, row: &Row) -> Result<()> {
        let (Some(key), Some(order)) = (Key::of_row(row), row.order) else { return Ok(()) };
        if !search::status::is_there(w)? {
            return Ok(());
        }
        let hashes = words::hashes(w, key, event.content().as_bytes());
        if !hashes.is_empty() {
            search::add_gone(w, &Gone { place: (row.room, Down::of(order)), hashes })?;
            w.announce(Change { room: Some(row.room), only_room: true, words: true, ..Change::default() });
        }
        Ok(())
    }
}

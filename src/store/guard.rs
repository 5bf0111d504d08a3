//! Guarded calls of redb, which panics when a page is not as it expects.
//!
//! A page that is damaged, or that the card does not return, is an error of its table: operations that need the page
//! fail, and the rest goes on. redb verifies no checksums when it reads, so a page that is wrong without being
//! impossible shows only in its rows, or under `snug check --database`.

use std::cell::Cell;
use std::io;

use super::{Error, Result};
use crate::base;

thread_local! {
    /// Whether this thread only reads rows, with nothing half done below it.
    static READING: Cell<bool> = const { Cell::new(false) };
}

/// The message of redb's panics once an earlier panic has poisoned one of its locks.
const POISONED: &str = "PoisonError";

/// Reads of one table. A page that the card does not return fails only this call; redb would treat every later call as
/// failed too.
pub(super) fn reading<T, E: Into<redb::Error>>(table: &str, read: impl FnOnce() -> Result<T, E>) -> Result<T> {
    let before = READING.replace(true);
    let done = calling(table, read);
    READING.set(before);
    done
}

/// Any call about one table.
pub(super) fn calling<T, E: Into<redb::Error>>(table: &str, call: impl FnOnce() -> Result<T, E>) -> Result<T> {
    match base::caught(call) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(failed)) => Err(match Error::of(failed) {
            Error::Damaged(what) => Error::Damaged(format!("the table {table}: {what}")),
            other => other,
        }),
        Err(panicked) => Err(of_panic(&format!("a page of the table {table} is damaged"), panicked)),
    }
}

/// Calls about the database as a whole: opening, beginning and ending transactions.
pub(super) fn whole<T>(doing: &str, call: impl FnOnce() -> Result<T>) -> Result<T> {
    base::caught(call).unwrap_or_else(|panicked| Err(of_panic(doing, panicked)))
}

fn of_panic(what: &str, panicked: base::Panicked) -> Error {
    let said = panicked.say();
    match said.contains(POISONED) {
        // The page is intact: the database is to be opened again.
        true => Error::Io("an earlier panic stopped this database".to_owned()),
        false => Error::Damaged(format!("{what} ({said})")),
    }
}

/// The result of a read of the card. A failed one ends the row reading on this thread, without an error that redb
/// keeps.
pub(super) fn read_from_card(read: io::Result<()>) -> io::Result<()> {
    match read {
        Err(failed) if READING.get() => base::unwind(format!("the disk cannot read it: {failed}")),
        read => read,
    }
}

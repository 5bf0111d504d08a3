//! The rows that commits change, counted for tests by table.

use std::collections::BTreeMap;
use std::fmt;

use super::Table;

/// Rows put and removed, and the bytes of the keys and values put, by the table's name. A row put twice counts twice.
#[derive(Debug, Default)]
pub(crate) struct RowCounts(BTreeMap<&'static str, Counts>);

#[derive(Debug, Default)]
struct Counts {
    put: usize,
    removed: usize,
    bytes: usize,
}

impl RowCounts {
    pub(super) fn put(&mut self, table: &Table, key: &[u8], value: &[u8]) {
        let counts = self.0.entry(table.name).or_default();
        counts.put += 1;
        counts.bytes += key.len() + value.len();
    }

    pub(super) fn remove(&mut self, table: &Table, was_there: bool) {
        if was_there {
            self.0.entry(table.name).or_default().removed += 1;
        }
    }

    pub(super) fn add(&mut self, other: RowCounts) {
        for (name, more) in other.0 {
            let counts = self.0.entry(name).or_default();
            counts.put += more.put;
            counts.removed += more.removed;
            counts.bytes += more.bytes;
        }
    }

    /// As they are shown, of one table.
    pub(crate) fn of(mut self, table: &str) -> String {
        self.0.retain(|name, _| *name == table);
        self.to_string()
    }

    /// Bytes of the keys and values put.
    pub(crate) fn bytes(&self) -> usize {
        self.0.values().map(|counts| counts.bytes).sum()
    }
}

/// `table+PUT-REMOVED` for each table, by name; a single put is not numbered.
impl fmt::Display for RowCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, counts)) in self.0.iter().enumerate() {
            write!(f, "{}{name}", if at > 0 { " " } else { "" })?;
            if counts.put != 1 {
                write!(f, "+{}", counts.put)?;
            }
            if counts.removed > 0 {
                write!(f, "-{}", counts.removed)?;
            }
        }
        Ok(())
    }
}

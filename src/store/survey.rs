//! Reads the undamaged part of a damaged database: every row of every table, around the unreadable pages.
//!
//! Nothing is changed on the card: the writes of opening a database stay in memory. One row is held at a time, and a
//! bounded list of gaps for each table.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use super::access::{Get, Read, ReadTable};
use super::disk::{LookMedium, Medium};
use super::opening;
use super::schema::{EVENT, ROOM, TABLES, TIMELINE, USER_ID};
use super::tables::{room, user};
use super::{Error, EventNum, Result, RoomNum, Store, StoreOptions, Table, UserNum, guard};

/// Gaps of one table that are skipped; the table is not read beyond the last of them.
const GAPS_MAX: usize = 256;
/// Rooms and users that are named for one table.
const NAMES_MAX: usize = 40;
/// The key to search from when not even the first row of a table can be read.
const FIRST_KEY: [u8; 12] = [0; 12];

/// The findings.
pub struct Survey {
    /// Every table that has rows, or that cannot be opened.
    pub tables: Vec<TableFound>,
    /// Whether all pages are as written; if not, readable rows may be wrong too.
    pub sums: Result<()>,
    /// Commits in the journal, which the next start applies; the survey is of the database without them.
    pub waiting: Result<u64>,
}

/// The findings for one table.
pub struct TableFound {
    pub table: &'static Table,
    /// Rows that could be read.
    pub rows: u64,
    /// Rows it should have.
    pub told: Option<u64>,
    /// Where rows are missing.
    pub gaps: Vec<Gap>,
    /// The cause of the first gap.
    pub why: Option<Error>,
    /// Rooms and users the lost rows belong to, as far as the keys tell; a bounded number.
    pub concerned: BTreeSet<String>,
}

/// Rows that cannot be read, between two that can; `None` is the table's own end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    pub after: Option<Vec<u8>>,
    pub before: Option<Vec<u8>>,
}

impl Survey {
    pub fn is_whole(&self) -> bool {
        self.sums.is_ok() && self.tables.iter().all(TableFound::is_whole)
    }
}

impl TableFound {
    pub fn is_whole(&self) -> bool {
        self.gaps.is_empty() && self.why.is_none()
    }

    fn nothing(table: &'static Table) -> TableFound {
        TableFound { table, rows: 0, told: None, gaps: Vec::new(), why: None, concerned: BTreeSet::new() }
    }
}

impl Store {
    /// Reads everything in the file of a stopped server; `say` is called with each table as it is done. Fails when
    /// nothing of the file can be read.
    pub fn survey(options: StoreOptions, say: &mut dyn FnMut(&TableFound)) -> Result<Survey> {
        let medium = Arc::new(LookMedium::claim(&options.path)?);
        Self::survey_on(medium, options, say)
    }

    /// The same on a medium that keeps its writes in memory.
    pub(super) fn survey_on(
        medium: Arc<dyn Medium>,
        options: StoreOptions,
        say: &mut dyn FnMut(&TableFound),
    ) -> Result<Survey> {
        let sums = guard::whole("a page is not what was written", || {
            let (mut db, _) = opening::open_database(&*medium, options.cache_bytes)?;
            db.check_integrity().map(|_| ()).map_err(Error::of)
        });
        let store = Store::open_on(medium.clone(), options)?;
        let read = store.read()?;
        let waiting = opening::waiting(&*medium, &read);
        let mut tables = Vec::new();
        for table in TABLES.iter().copied() {
            let mut found = of_table(&read, table);
            name(&read, &mut found);
            say(&found);
            tables.push(found);
        }
        drop(read);
        store.close_blocking();
        Ok(Survey { tables, sums, waiting })
    }
}

/// What a part of a table's rows takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measured {
    pub table: &'static str,
    pub rows: u64,
    /// Bytes of keys and values; pages and what is free in them come on top.
    pub bytes: u64,
    /// Where the next part begins: the table's place in the schema, and the last key.
    pub next: Option<(usize, Vec<u8>)>,
}

impl Store {
    /// Measures at most `rows_max` rows of one table, from a place on; none behind the last table.
    pub fn measure(&self, from: (usize, Vec<u8>), rows_max: u64) -> Result<Option<Measured>> {
        let (at, after) = from;
        let Some(table) = TABLES.get(at) else { return Ok(None) };
        let (mut rows, mut bytes, mut last) = (0, 0, None);
        let start = if after.is_empty() { after } else { [&after[..], &[0]].concat() };
        self.read()?.range(table, &start, None, false, &mut |key, value| {
            (rows, bytes) = (rows + 1, bytes + (key.len() + value.len()) as u64);
            if rows == rows_max {
                last = Some(key.to_vec());
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        let next = Some(last.map_or((at + 1, Vec::new()), |last| (at, last)));
        Ok(Some(Measured { table: table.name, rows, bytes, next }))
    }
}

fn of_table(read: &Read, table: &'static Table) -> TableFound {
    let mut found = TableFound::nothing(table);
    match read.table(table) {
        Ok(Some(open)) => {
            found.told = open.count().ok();
            walk(&open, &mut found);
        }
        Ok(None) => {}
        Err(failed) => {
            found.why = Some(failed);
            found.gaps.push(Gap { after: None, before: None });
        }
    }
    found
}

/// Row after row. At a damaged page it goes on at the nearest readable key behind the page, and from there back to the
/// page.
fn walk(open: &ReadTable, found: &mut TableFound) {
    let mut from = Vec::new();
    loop {
        let mut last: Option<Vec<u8>> = None;
        let walked = open.onward(&from, &mut |key, _| {
            found.rows += 1;
            let last = last.get_or_insert_default();
            last.clear();
            last.extend_from_slice(key);
            Ok(ControlFlow::Continue(()))
        });
        let Err(failed) = walked else { return };
        found.why.get_or_insert(failed);
        // Not even the first row can be read: it was readable a moment ago, so this happens only at the very beginning.
        let after = last.or_else(|| (!from.is_empty()).then(|| from.clone()));
        let start = match found.gaps.len() < GAPS_MAX {
            true => next_readable(open, after.as_deref().unwrap_or(&FIRST_KEY)),
            false => None,
        };
        let Some(start) = start else { return found.gaps.push(Gap { after, before: None }) };
        let mut before = start.clone();
        // Ends in the damaged page.
        let _ = open.backward(Some(&start), &mut |key, _| {
            if after.as_deref().is_some_and(|after| key <= after) {
                return Ok(ControlFlow::Break(()));
            }
            found.rows += 1;
            before = key.to_vec();
            Ok(ControlFlow::Continue(()))
        });
        found.gaps.push(Gap { after, before: Some(before) });
        from = start;
    }
}

/// The first readable row behind a key, searched for at growing distances. At most eight reads for each byte of the
/// key.
fn next_readable(open: &ReadTable, after: &[u8]) -> Option<Vec<u8>> {
    for at in (0..after.len()).rev() {
        for step in (0..8).map(|bit| 1u8 << bit) {
            let Some(byte) = after[at].checked_add(step) else { break };
            let from = [&after[..at], &[byte]].concat();
            let mut first = None;
            let looked = open.onward(&from, &mut |key, _| {
                first = Some(key.to_vec());
                Ok(ControlFlow::Break(()))
            });
            if looked.is_ok() {
                return first;
            }
        }
    }
    None
}

/// The owner of a table's rows: the room or user in the first part of the key.
fn begins_with(table: &Table, part: &str) -> bool {
    let first = table.doc.split(['→', ',']).next().unwrap_or_default().trim();
    first.ends_with(part) && !first.contains("hash")
}

/// Names the rooms or users that the gaps concern.
fn name(read: &Read, found: &mut TableFound) {
    for gap in &found.gaps {
        let number = |key: &Option<Vec<u8>>, otherwise: u32| {
            key.as_ref().and_then(|key| Some(u32::from_be_bytes(key.get(..4)?.try_into().ok()?))).unwrap_or(otherwise)
        };
        let (first, last) = (number(&gap.after, 0), number(&gap.before, u32::MAX));
        if begins_with(found.table, "RoomNum") {
            each_number(read, &ROOM, first, last, &mut |num| {
                found.concerned.extend(room::id(read, RoomNum(num)).ok().flatten());
                found.concerned.len() < NAMES_MAX
            });
        } else if begins_with(found.table, "UserNum") {
            each_number(read, &USER_ID, first, last, &mut |num| {
                found.concerned.extend(user::id(read, UserNum(num)).ok().flatten());
                found.concerned.len() < NAMES_MAX
            });
        } else if found.table.name == EVENT.name {
            found.concerned.extend(rooms_of_events(read, first, last));
        }
    }
}

fn each_number(read: &Read, table: &Table, first: u32, last: u32, each: &mut dyn FnMut(u32) -> bool) {
    let end = last.checked_add(1).map(u32::to_be_bytes);
    // Rows that cannot be read here name no room or user.
    let _ = read.range(table, &first.to_be_bytes(), end.as_ref().map(|end| &end[..]), false, &mut |key, _| {
        let more = match key.try_into().map(u32::from_be_bytes) {
            Ok(num) => each(num),
            Err(_) => true,
        };
        Ok(if more { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    });
}

/// Rooms whose timelines have events with such numbers.
fn rooms_of_events(read: &Read, first: u32, last: u32) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    let _ = read.range(&TIMELINE, &[], None, false, &mut |key, value| {
        let event = EventNum::from_key(value).map(|num| num.0);
        let room = key.get(..4).and_then(RoomNum::from_key);
        if let Some(room) = room
            && event.is_some_and(|event| (first..=last).contains(&event))
            && rooms.len() < NAMES_MAX
        {
            rooms.extend(room::id(read, room).ok().flatten());
        }
        Ok(ControlFlow::Continue(()))
    });
    rooms
}

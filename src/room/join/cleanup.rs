//! Removes the remains of a join that ended.

use std::ops::ControlFlow;

use super::error::JoinError;
use super::{Error, Join, Phase};
use crate::base;
use crate::budget::spill::Spill;
use crate::room::append;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::Id;
use crate::store::tables::room::join;
use crate::store::tables::room::join::{JoinNum, Journal, Stage};
use crate::store::tables::room::staged::{self, Entry};
use crate::store::tables::room::{self, Status};
use crate::store::{self, BodyNum, EventNum, Get, RoomNum, Store};

/// Rows removed in one write.
const ROWS_MAX: usize = 1000;

/// The log's rows in one write; a page each.
const LOG_ROWS_MAX: u32 = 60;

impl Join<'_> {
    /// After the flip: removes the log, and the bodies of events that were left out.
    pub(super) async fn clean_after(&self, num: JoinNum, journal: Journal, left_out: LeftOut) -> Result<(), JoinError> {
        self.progress.enter(Phase::Cleaning);
        let store = self.rooms.0.parts.store.clone();
        // The room is there: the client does not wait for the cleaning.
        let cleaning = async move {
            let done = base::blocking(move || clean(&store, num, journal.batches, left_out));
            if let Err(stop) = done.await {
                tracing::warn!(%stop, "the log of a finished join could not be removed; the next start removes it");
            }
        };
        base::detached(cleaning);
        Ok(())
    }

    /// Removes everything a join wrote. Starts from the beginning after a crash.
    pub(super) async fn clean_up(&self, num: JoinNum) -> Result<(), JoinError> {
        self.progress.enter(Phase::Cleaning);
        let store = self.rooms.0.parts.store.clone();
        base::blocking(move || take_back(&store, num)).await
    }
}

/// A join may neither clear nor flip a room in which this server is resident: it has members here.
pub(super) fn check_not_here(get: &impl Get, room: RoomNum) -> Result<(), Error> {
    match is_here(get, room)? {
        true => Err(Error::Forbidden("the room was joined in another way meanwhile".into())),
        false => Ok(()),
    }
}

fn is_here(get: &impl Get, room: RoomNum) -> store::Result<bool> {
    Ok(room::get(get, room)?.is_some_and(|row| row.status == Status::Resident))
}

/// Stored bodies that no event of the room has.
pub(super) enum LeftOut {
    Listed(Option<Spill>),
    /// A crash lost the list.
    Unknown,
}

/// Which of the bodies that the log names are removed with it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bodies {
    Keep,
    RemoveUnnamed,
    RemoveAll,
}

fn clean(store: &Store, num: JoinNum, batches: u32, left_out: LeftOut) -> Result<(), JoinError> {
    let bodies = match left_out {
        LeftOut::Listed(list) => {
            list.map_or(Ok(()), |list| remove_bodies(store, list))?;
            Bodies::Keep
        }
        LeftOut::Unknown => Bodies::RemoveUnnamed,
    };
    remove_log(store, num, batches, bodies)?;
    remove_journal(store, num)
}

fn take_back(store: &Store, num: JoinNum) -> Result<(), JoinError> {
    let Some(mut journal) = join::journal(&store.read()?, num)? else { return Ok(()) };
    let read = store.read()?;
    let room = room::num(&read, &journal.room_id)?;
    if journal.stage == Stage::Live || room.map_or(Ok(false), |room| is_here(&read, room))? {
        // The room is there; only the cleaning behind it failed. Or another join made the room, and may have taken over
        // rows that this one wrote: they stay.
        drop(read);
        return clean(store, num, journal.batches, LeftOut::Unknown);
    }
    drop(read);
    journal.stage = Stage::Cancelled;
    let cancelled = journal.clone();
    freeing(store, move |w| join::set_journal(w, num, &cancelled))?;
    if let Some((first, count)) = journal.event_nums {
        let mut at = first;
        while at < first + count {
            let end = (at + ROWS_MAX as u32).min(first + count);
            freeing(store, move |w| (at..end).try_for_each(|num| event::remove_row(w, EventNum(num))))?;
            at = end;
        }
    }
    if let Some(room) = journal.room.map(RoomNum) {
        clear_room(store, room)?;
    }
    remove_log(store, num, journal.batches, Bodies::RemoveAll)?;
    remove_journal(store, num)
}

/// Removes the rows of an unfinished room. A room from an earlier stay keeps its own row and history.
fn clear_room(store: &Store, room: RoomNum) -> Result<(), JoinError> {
    if is_here(&store.read()?, room)? {
        return Ok(());
    }
    while freeing(store, move |w| append::forget(w, room, ROWS_MAX))? == ROWS_MAX {}
    Ok(())
}

/// Removes the log, some batches in a write, and bodies it stored.
fn remove_log(store: &Store, num: JoinNum, batches: u32, bodies: Bodies) -> Result<(), JoinError> {
    let mut from = 0;
    while from < batches {
        // Batches that an earlier try removed are passed over.
        let (mut to, mut list) = (batches, Vec::new());
        let read = store.read()?;
        staged::batches(&read, num, from, &mut |found, mut batch| {
            let mut body = batch.first_body;
            while bodies != Bodies::Keep
                && let Some(entry) = batch.next().map_err(|_| staged::corrupt(num, found))?
            {
                if let Entry::Event(event) = entry {
                    if bodies == Bodies::RemoveAll || !is_named(&read, &event.id, body)? {
                        list.push(body);
                    }
                    body = BodyNum(body.0 + 1);
                }
            }
            let is_enough = list.len() >= ROWS_MAX || found - from >= LOG_ROWS_MAX;
            to = if is_enough { found + 1 } else { batches };
            Ok(if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        drop(read);
        freeing(store, move |w| {
            list.into_iter().try_for_each(|body| event::remove_body(w, body))?;
            (from..to).try_for_each(|number| staged::remove_batch(w, num, number))
        })?;
        from = to;
    }
    Ok(())
}

/// Whether an event has this body.
fn is_named(get: &impl Get, id: &Id, body: BodyNum) -> store::Result<bool> {
    match event::num(get, &id.text())? {
        Some(num) => Ok(event::row_of(get, num)?.body == body),
        None => Ok(false),
    }
}

fn remove_bodies(store: &Store, dead: Spill) -> Result<(), JoinError> {
    let mut reader = dead.into_reader()?;
    let (mut frame, mut list) = (Vec::new(), Vec::new());
    loop {
        let more = reader.next(&mut frame)?;
        if more {
            list.extend(BodyNum::from_key(&frame));
        }
        if list.len() >= ROWS_MAX || !more {
            let batch = std::mem::take(&mut list);
            freeing(store, move |w| batch.into_iter().try_for_each(|body| event::remove_body(w, body)))?;
        }
        if !more {
            return Ok(());
        }
    }
}

fn remove_journal(store: &Store, num: JoinNum) -> Result<(), JoinError> {
    freeing(store, move |w| join::remove_journal(w, num))
}

fn freeing<T: Send + 'static>(
    store: &Store,
    job: impl FnOnce(&mut store::Write<'_>) -> store::Result<T> + Send + 'static,
) -> Result<T, JoinError> {
    Ok(store.write_freeing_blocking(job).map_err(store::Error::from)?.0)
}

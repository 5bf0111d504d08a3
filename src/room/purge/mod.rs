//! Removes rooms for good, those that nobody here is in any more, and old messages (`history.rs`).
//!
//! One room at a time, in writes of at most a thousand rows with pauses between them. How far it is lies in the store
//! (`store/tables/room/purge.rs`), so that a start goes on with it. What its state trees took is freed by the next sweep
//! (`state/sweep.rs`), which follows. The words of what was removed go out of the index of the search (`words.rs`). What all
//! of that leaves free goes back to the disk (`space.rs`).

mod history;
pub(in crate::room) mod space;
mod words;

use std::time::Duration;

use ruma::RoomId;
use serde::Serialize;

use super::Rooms;
use super::error::{Error, Result};
use crate::base::{Worker, blocking};
use crate::store::tables::room::purge::{self, Purge};
use crate::store::tables::room::{self, Status, event_row::Membership, join, member};
use crate::store::tables::user;
use crate::store::{EventNum, RoomNum, WriteError};

pub use history::{Keeping, Lifetimes, Reach};
pub use space::Space;

/// Rows of one write.
const ROWS_MAX: usize = 1000;
/// Events in one write, of three rows each.
const EVENTS_MAX: usize = 300;
/// Events of all rooms looked at in one step.
const LOOKED_AT: usize = 4000;
/// Between two writes, for others'.
const PAUSE: Duration = Duration::from_millis(40);
/// After a failure, and between two looks for rooms that nobody is in.
const AGAIN: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_secs(60 * 60);
/// Rooms that are begun in one look, and shown.
const ROOMS_MAX: usize = 1000;
/// Rooms that are gone through at once: so many with a fault would hold up the others.
const BEGUN_MAX: usize = 100;

/// A room on its way out.
#[derive(Debug, Clone, Serialize)]
pub struct Purging {
    pub room_id: String,
    pub rows: u64,
    pub events: u64,
    /// Of all events of the server, how many were looked at.
    pub part: f64,
}

/// What the rooms take that nobody here is in or invited to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LeftRooms {
    pub rooms: u64,
    /// Events stored, and the bytes of their bodies.
    pub events: u64,
    pub bytes: u64,
}

impl Rooms {
    /// The rooms that [`Rooms::purge_left`] would remove. One walk over all rooms.
    pub async fn left_rooms(&self) -> Result<LeftRooms> {
        self.reading(|_, read| {
            let mut left = LeftRooms::default();
            room::list_after(read, None, &mut |num, row| {
                let may_go = row.status == Status::Left && purge::may_go(read, num, &row, false)?;
                if may_go && purge::get(read, num)?.is_none() {
                    left.rooms += 1;
                    left.events += row.events;
                    left.bytes += row.bytes;
                }
                Ok(std::ops::ControlFlow::Continue(()))
            })?;
            Ok(left)
        })
        .await
    }

    /// Whether rooms go by themselves once everybody here has left and forgotten them. `serve` says so once.
    pub fn set_purges_left_rooms(&self, purges: bool) {
        self.0.keeping.left.store(purges, std::sync::atomic::Ordering::Relaxed);
    }

    /// Begins to remove a room. `Forbidden` while somebody here is in it, or invited: [`Rooms::close`] has them leave first.
    /// `NotFound` for a room that is not known here.
    pub async fn purge(&self, room_id: &RoomId) -> Result<()> {
        let id = room_id.to_owned();
        let (count, first) = self
            .reading(move |_, read| {
                let num = room::num(read, id.as_str())?.ok_or(Error::NotFound)?;
                let (mut count, mut first) = (0, None);
                member::list_local(read, num, &mut |user, membership| {
                    if matches!(membership, Membership::Join | Membership::Invite | Membership::Knock) {
                        (count, first) = (count + 1, first.or(Some(user)));
                    }
                    Ok(std::ops::ControlFlow::Continue(()))
                })?;
                Ok((count, first.map(|user| user::id_of(read, user)).transpose()?))
            })
            .await?;
        if let Some(who) = first {
            return Err(Error::Forbidden(format!(
                "{count} of this server are in that room, or invited to it, such as {who}: with force they leave it first"
            )));
        }
        let (id, now_ms) = (room_id.to_owned(), self.0.parts.clock.now_ms());
        super::state::forget_num(self, room_id);
        let begun = self.0.parts.store.write_freeing(move |w| {
            let num = room::num(w, id.as_str())?.ok_or(Error::NotFound)?;
            let row = room::get_of(w, num)?;
            let is_joining = join::journals(w)?.iter().any(|(_, journal)| journal.room_id == id.as_str());
            if is_joining || !purge::may_go(w, num, &row, false)? {
                return Err(Error::Forbidden("somebody here is in that room, or joining it".to_owned()));
            }
            if purge::get(w, num)?.is_none() {
                purge::begin(w, num, &row, now_ms)?;
            }
            Ok::<_, Error>(())
        });
        begun.await.map_err(WriteError::into_inner)?;
        super::state::forget_num(self, room_id);
        self.0.purge.notify_one();
        Ok(())
    }

    /// Begins to remove every room that nobody here is in or invited to; only those that everybody has forgotten, when
    /// `only_forgotten`. Answers how many.
    pub async fn purge_left(&self, only_forgotten: bool) -> Result<u64> {
        let mut begun = 0;
        let mut after = None;
        loop {
            let page = self.reading(move |_, read| {
                let (mut page, mut looked, mut last) = (Vec::new(), 0, None);
                room::list_after(read, after, &mut |num, row| {
                    (looked, last) = (looked + 1, Some(num));
                    if row.status == Status::Left && purge::may_go(read, num, &row, only_forgotten)? {
                        page.push(row.id);
                    }
                    Ok(if looked < 100 {
                        std::ops::ControlFlow::Continue(())
                    } else {
                        std::ops::ControlFlow::Break(())
                    })
                })?;
                Ok((page, last))
            });
            let (page, last) = page.await?;
            let Some(last) = last else { return Ok(begun) };
            after = Some(last);
            for room_id in page {
                let Ok(room_id) = RoomId::parse(&room_id) else { continue };
                match self.purge(&room_id).await {
                    Ok(()) => begun += 1,
                    // Somebody joined it meanwhile.
                    Err(Error::Forbidden(_) | Error::NotFound) => {}
                    Err(failed) => return Err(failed),
                }
            }
        }
    }

    /// The rooms that are being removed.
    pub async fn purging(&self) -> Result<Vec<Purging>> {
        let found = self.reading(|_, read| Ok(purge::list(read, ROOMS_MAX)?)).await?;
        let shown = |(_, purge): (RoomNum, Purge)| Purging {
            part: purge.cursor.map_or(0.0, |at| f64::from(at) / f64::from(purge.end.max(1))),
            room_id: purge.room_id,
            rows: purge.rows,
            events: purge.events,
        };
        Ok(found.into_iter().map(shown).collect())
    }

    /// Whether a room is being removed: nobody joins it meanwhile.
    pub(super) async fn is_purging(&self, room_id: &RoomId) -> Result<bool> {
        let id = room_id.to_owned();
        self.reading(move |_, read| match room::num(read, id.as_str())? {
            Some(num) => Ok(purge::get(read, num)?.is_some()),
            None => Ok(false),
        })
        .await
    }

    /// Removes what is to go, as long as the server runs. A unit of the worker is an event.
    pub async fn keep_purged(&self, worker: &Worker) {
        loop {
            let mut pause = LOOK;
            let purged = async {
                if self.0.keeping.left.load(std::sync::atomic::Ordering::Relaxed) {
                    self.purge_left(true).await?;
                }
                self.purge_begun(worker).await
            };
            if let Err(failed) = purged.await {
                tracing::warn!(%failed, "a room could not be removed; this is tried again");
                worker.failed(failed);
                pause = AGAIN;
            }
            if let Err(failed) = self.keep_history(worker).await {
                tracing::warn!(%failed, "old messages could not be removed; this is tried again");
                worker.failed(failed);
            }
            if let Err(failed) = self.forget_words(worker).await {
                tracing::warn!(%failed, "words of removed messages could not be taken out of the index; this is tried again");
                worker.failed(failed);
            }
            worker.idle_for(pause);
            tokio::select! {
                () = self.0.parts.clock.sleep(pause) => {}
                () = self.0.purge.notified() => {}
            }
        }
    }

    /// Removes the rooms that were begun. One that cannot be removed holds up none of the others.
    pub(super) async fn purge_begun(&self, worker: &Worker) -> Result<()> {
        let (mut is_any, mut failed) = (false, None);
        loop {
            let begun = self.reading(|_, read| Ok(purge::list(read, BEGUN_MAX)?)).await?;
            if begun.is_empty() || failed.is_some() {
                break;
            }
            is_any = true;
            for (num, purge) in begun {
                if let Err(error) = self.purge_one(worker, num, purge).await {
                    failed = failed.or(Some(error));
                }
            }
        }
        if is_any {
            self.make_space_after_much();
            self.0.sweep.notify_one();
        }
        failed.map_or(Ok(()), Err)
    }

    async fn purge_one(&self, worker: &Worker, num: RoomNum, purge: Purge) -> Result<()> {
        worker.works_on(format_args!("removing {}", purge.room_id));
        if purge.cursor.is_none() {
            while !self.freed(move |w| purge::clear(w, num, ROWS_MAX)).await? {
                self.0.parts.clock.sleep(PAUSE).await;
            }
        }
        let mut reached = EventNum(purge.cursor.unwrap_or(0));
        loop {
            let (rooms, end) = (self.clone(), purge.end);
            let (events, last) =
                blocking(move || purge::events(&rooms.0.parts.store.read()?, num, reached, end, LOOKED_AT, EVENTS_MAX))
                    .await?;
            let to = last.or(events.last().copied()).unwrap_or(reached);
            if !events.is_empty() {
                worker.done(events.len() as u64);
                self.note_removed(events.len() as u64);
                self.freed(move |w| purge::remove_events(w, num, &events, to)).await?;
            }
            let Some(last) = last else { break };
            reached = last;
            self.0.parts.clock.sleep(PAUSE).await;
        }
        if let Some(done) = self.freed(move |w| purge::end(w, num)).await? {
            tracing::info!(room = %done.room_id, events = done.events, rows = done.rows, "a room was removed");
        }
        Ok(())
    }

    async fn freed<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut crate::store::Write<'_>) -> Result<T, crate::store::Error> + Send + 'static,
    ) -> Result<T> {
        Ok(self.0.parts.store.write_freeing(job).await.map_err(WriteError::into_inner)?.0)
    }
}

#[cfg(test)]
mod tests;

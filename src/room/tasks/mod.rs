//! What administrators have done with rooms, and takes longer than a request: closing a room (`close.rs`), removing old messages.
//!
//! A task is a row from the start, which says how far it is (`store/tables/room/task.rs`). One worker goes through those that are not
//! over, a step of each at a time, also after a restart; each step may be done again. Whoever asked looks at the row, for a day after
//! the end.

use std::ops::ControlFlow;
use std::time::Duration;

use ruma::{EventId, OwnedRoomId, RoomId, UserId};

use super::Rooms;
use super::error::{Error, Result};
use super::purge::Reach;
use super::state;
use crate::base::Worker;
use crate::store::tables::hex;
use crate::store::tables::room::task::{self, Close, Gone, Key, Stage, Task, What};
use crate::store::tables::room::{self, event};
use crate::store::{Read, RoomNum, Write};

mod close;
#[cfg(test)]
mod tests;

/// Tasks that are not over: a row of up to 8 KiB each, most of a few hundred bytes.
const WAITING_MAX: usize = 1_000;
/// Tasks that are over and still asked after, at most so many and for so long; the lists of names in each are 12 KiB at most.
const OVER_MAX: usize = 200;
/// All that there are.
pub const TASKS_MAX: usize = WAITING_MAX + OVER_MAX;
const KEPT_MS: u64 = 24 * 60 * 60 * 1000;
/// After a step that failed for want of something.
const AGAIN: Duration = Duration::from_secs(60);
/// Between two looks of somebody who waits for the end.
const OVER_LOOK: Duration = Duration::from_millis(200);
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Rooms of one step through all of them: most have nothing that is old.
const ROOMS_A_STEP: usize = 50;
/// Between two steps through all rooms.
const PAUSE: Duration = Duration::from_millis(40);
/// While rows go.
const LOOK: Duration = Duration::from_secs(1);

impl Rooms {
    /// Begins to close a room: people of this server leave it, and come into another room that is made for it, if there is to be
    /// one; afterwards it is removed for good, if so wished. Answers the task's name.
    ///
    /// `NotFound` for a room that is not known here. `M_UNKNOWN` while it is being closed already.
    pub async fn close(&self, room_id: &RoomId, by: Option<&UserId>, close: Close) -> Result<String> {
        let id = room_id.to_owned();
        self.reading(move |_, read| {
            room::num(read, id.as_str())?.ok_or(Error::NotFound)?;
            check_free(read, id.as_str(), true)
        })
        .await?;
        self.begin(room_id.as_str(), by, What::Close(Box::new(close))).await
    }

    /// Begins to remove the messages of a room that were sent before a time or before an event; those of people here too when
    /// `own`. Answers the task's name.
    ///
    /// `NotFound` for a room or an event that is not known here.
    pub async fn begin_purge_history(
        &self,
        room_id: &RoomId,
        by: &UserId,
        before_ms: Option<u64>,
        before: Option<&EventId>,
        own: bool,
    ) -> Result<String> {
        let before_event = before.map(ToString::to_string);
        let what = What::History { before_ms, before_event, own };
        let (id, asked) = (room_id.to_owned(), what.clone());
        self.reading(move |_, read| {
            reach_of(read, id.as_str(), &asked)?;
            check_free(read, id.as_str(), false)
        })
        .await?;
        self.begin(room_id.as_str(), Some(by), what).await
    }

    /// The same for all messages older than so many days, of one room or of all that people here are in.
    pub async fn begin_purge_by_age(&self, room_id: Option<&RoomId>, by: Option<&UserId>, days: u32) -> Result<String> {
        let before_ms = self.0.parts.clock.settled_ms().saturating_sub(u64::from(days) * DAY_MS);
        let what = What::History { before_ms: Some(before_ms), before_event: None, own: true };
        let (id, asked) = (room_id.map_or(String::new(), ToString::to_string), what.clone());
        let of = id.clone();
        self.reading(move |_, read| {
            if !of.is_empty() {
                reach_of(read, &of, &asked)?;
            }
            check_free(read, &of, false)
        })
        .await?;
        self.begin(&id, by, what).await
    }

    /// A task once it is over, however long that takes: whoever waits may go, the task goes on.
    pub async fn task_over(&self, name: &str) -> Result<Task> {
        loop {
            match self.task(name).await? {
                Some(task) if task.is_over() => return Ok(task),
                Some(_) => self.0.parts.clock.sleep(OVER_LOOK).await,
                None => return Err(Error::NotFound),
            }
        }
    }

    /// A task that is not over, or not for long. None for a name that is none.
    pub async fn task(&self, name: &str) -> Result<Option<Task>> {
        let Some(key) = key_of(name) else { return Ok(None) };
        self.reading(move |_, read| Ok(task::get(read, &key)?)).await
    }

    /// Notes that a room which is not known here was asked to be closed: there was nobody to leave it, and so that is over. Answers the
    /// task's name.
    pub async fn note_closed(&self, room_id: &RoomId, by: &UserId) -> Result<String> {
        let what = What::Close(Box::default());
        let ended_ms = Some(self.0.parts.clock.now_ms());
        let (room_id, by) = (room_id.to_string(), Some(by.to_string()));
        let task = Task { room_id, by, what, stage: Stage::Done, error: None, ended_ms, gone: Gone::default() };
        let key = self.add(task).await?;
        self.forget_old().await?;
        Ok(hex(&key))
    }

    /// The names of the latest `most` closings of a room, the oldest first.
    pub async fn closings(&self, room_id: &RoomId, most: usize) -> Result<Vec<String>> {
        let room_id = room_id.to_owned();
        self.reading(move |_, read| {
            let mut found = std::collections::VecDeque::new();
            task::each(read, None, &mut |key, task| {
                if task.room_id == room_id.as_str() && matches!(task.what, What::Close(_)) {
                    if found.len() == most {
                        found.pop_front();
                    }
                    found.push_back(hex(&key));
                }
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(found.into())
        })
        .await
    }

    /// As [`Rooms::task`], for a long answer: it blocks.
    pub fn task_now(&self, name: &str) -> Result<Option<Task>> {
        let Some(key) = key_of(name) else { return Ok(None) };
        Ok(task::get(&self.read()?, &key)?)
    }

    /// The task that began next behind the one of this name, or the first, and its name, for a long answer: it blocks.
    pub fn next_task(&self, after: Option<&str>) -> Result<Option<(String, Task)>> {
        let (read, mut found) = (self.read()?, None);
        task::each(&read, after.and_then(key_of).as_ref(), &mut |key, task| {
            found = Some((hex(&key), task));
            Ok(ControlFlow::Break(()))
        })?;
        Ok(found)
    }

    /// Does what is to be done, as long as the server runs. A unit of the worker is a task that is over.
    pub async fn keep_tasks(&self, worker: &Worker) {
        loop {
            match self.do_tasks(worker).await {
                Ok(None) => {
                    worker.idle();
                    // What was begun since the look has left a permit here.
                    self.0.tasks.notified().await;
                }
                Ok(Some(pause)) => {
                    worker.idle_for(pause);
                    tokio::select! {
                        () = self.0.parts.clock.sleep(pause) => {}
                        () = self.0.tasks.notified() => {}
                    }
                }
                Err(failed) => {
                    tracing::warn!(%failed, "what administrators asked to be done with rooms could not be read; this is tried again");
                    worker.failed(failed);
                    self.0.parts.clock.sleep(AGAIN).await;
                }
            }
        }
    }

    /// A step of each task that is not over. When to go on; never when there is none.
    pub(super) async fn do_tasks(&self, worker: &Worker) -> Result<Option<Duration>> {
        let (mut after, mut again) = (None, None::<Duration>);
        while let Some((key, mut task)) = self.reading(move |_, read| next(read, after)).await? {
            after = Some(key);
            worker.works_on(format_args!("{}", task.room_id));
            let pause = match self.step(&key, &mut task).await {
                Ok(pause) => pause,
                Err(failed) if failed.is_passing() => {
                    worker.failed(failed);
                    Some(AGAIN)
                }
                Err(failed) => {
                    tracing::warn!(room = %task.room_id, %failed, "what an administrator asked for could not be done");
                    (task.stage, task.error) = (Stage::Failed, Some(crate::base::brief(failed)));
                    None
                }
            };
            if task.is_over() {
                worker.done(1);
                task.ended_ms = Some(self.0.parts.clock.now_ms());
                self.note(&key, &task).await?;
                self.forget_old().await?;
            }
            again = match (pause, again) {
                (Some(pause), Some(again)) => Some(again.min(pause)),
                (one, other) => one.or(other),
            };
        }
        Ok(again)
    }

    /// One step of a task, noted in it. The pause until its next; none when it is over.
    async fn step(&self, key: &Key, task: &mut Task) -> Result<Option<Duration>> {
        if task.room_id.is_empty() {
            return self.step_through_rooms(key, task).await;
        }
        let room_id = OwnedRoomId::try_from(task.room_id.as_str()).map_err(|_| Error::NotFound)?;
        match &mut task.what {
            What::Close(_) => self.step_of_closing(key, task, &room_id).await,
            what @ What::History { .. } => {
                let (id, asked) = (room_id.clone(), what.clone());
                let (num, reach) = self.reading(move |_, read| reach_of(read, id.as_str(), &asked)).await?;
                let (events, bytes) = self.purge_room_history(num, reach).await?;
                tracing::info!(room = %room_id, events, bytes, "old messages were removed");
                (task.gone.events, task.gone.bytes) = (events, bytes);
                task.stage = Stage::Done;
                // Its words are next.
                self.0.purge.notify_one();
                Ok(None)
            }
        }
    }

    /// Removes the old messages of some rooms more, and notes behind which.
    async fn step_through_rooms(&self, key: &Key, task: &mut Task) -> Result<Option<Duration>> {
        let What::History { before_ms: Some(before_ms), .. } = task.what else { return Err(Error::NotFound) };
        for _ in 0..ROOMS_A_STEP {
            let Some((num, _)) = self.resident_after(task.gone.after.map(RoomNum)).await? else {
                let Gone { events, bytes, .. } = task.gone;
                tracing::info!(events, bytes, "old messages were removed");
                task.stage = Stage::Done;
                self.0.purge.notify_one();
                return Ok(None);
            };
            let (events, bytes) = self.purge_room_history(num, Reach::before(before_ms)).await?;
            let gone = task.gone;
            task.gone = Gone { events: gone.events + events, bytes: gone.bytes + bytes, after: Some(num.0) };
        }
        self.note(key, task).await?;
        Ok(Some(PAUSE))
    }

    async fn begin(&self, room_id: &str, by: Option<&UserId>, what: What) -> Result<String> {
        let (room_id, by) = (room_id.to_owned(), by.map(ToString::to_string));
        let task =
            Task { room_id, by, what, stage: Stage::Waiting, error: None, ended_ms: None, gone: Gone::default() };
        let key = self.add(task).await?;
        self.0.tasks.notify_one();
        Ok(hex(&key))
    }

    async fn add(&self, task: Task) -> Result<Key> {
        let (now_ms, chance) = (self.0.parts.clock.now_ms(), self.0.parts.random.u64());
        self.write(move |w| Ok(task::add(w, now_ms, chance, &task)?)).await
    }

    async fn note(&self, key: &Key, task: &Task) -> Result<()> {
        let (key, task) = (*key, task.clone());
        self.write(move |w| Ok(task::put(w, &key, &task)?)).await
    }

    /// Forgets the tasks that were over a day ago, and the oldest of too many.
    async fn forget_old(&self) -> Result<()> {
        let since_ms = self.0.parts.clock.now_ms().saturating_sub(KEPT_MS);
        let gone = self.reading(move |_, read| {
            let mut over = Vec::new();
            task::each(read, None, &mut |key, task| {
                over.extend(task.ended_ms.map(|ended_ms| (key, ended_ms)));
                Ok(ControlFlow::Continue(()))
            })?;
            let too_many = over.len().saturating_sub(OVER_MAX);
            let old = over.into_iter().enumerate().filter(|(at, (_, ended_ms))| *at < too_many || *ended_ms < since_ms);
            Ok(old.map(|(_, (key, _))| key).collect::<Vec<_>>())
        });
        let gone = gone.await?;
        if gone.is_empty() {
            return Ok(());
        }
        self.write(move |w: &mut Write<'_>| Ok(gone.iter().try_for_each(|key| task::remove(w, key))?)).await
    }
}

/// When a task began, in Unix milliseconds, which its name tells.
pub fn task_begun_ms(name: &str) -> u64 {
    key_of(name).map_or(0, |key| (u128::from_be_bytes(key) >> 64) as u64)
}

/// The name of a task is its key in hex.
fn key_of(name: &str) -> Option<Key> {
    let number = u128::from_str_radix(name, 16).ok().filter(|_| name.len() == 32)?;
    Some(number.to_be_bytes())
}

/// The next task that is not over.
fn next(read: &Read, after: Option<Key>) -> Result<Option<(Key, Task)>> {
    let mut found = None;
    task::each(read, after.as_ref(), &mut |key, task| {
        if task.is_over() {
            return Ok(ControlFlow::Continue(()));
        }
        found = Some((key, task));
        Ok(ControlFlow::Break(()))
    })?;
    Ok(found)
}

/// Whether a task of a kind may begin: there is none of the room, and not too many in all.
fn check_free(read: &Read, room_id: &str, closes: bool) -> Result<()> {
    let (mut waiting, mut is_begun) = (0, false);
    task::each(read, None, &mut |_, task| {
        if !task.is_over() {
            waiting += 1;
            is_begun |= task.room_id == room_id && matches!(task.what, What::Close(_)) == closes;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if is_begun {
        let of = if room_id.is_empty() { "all rooms" } else { room_id };
        return Err(Error::bad("M_UNKNOWN", format!("Purge already in progress for {of}")));
    }
    match waiting < WAITING_MAX {
        true => Ok(()),
        false => Err(Error::bad("M_UNKNOWN", format!("{WAITING_MAX} of these are not done yet: try again later"))),
    }
}

/// Which messages of a room a task removes.
fn reach_of(read: &Read, room_id: &str, what: &What) -> Result<(RoomNum, Reach)> {
    let num = state::known(read, room_id)?.num;
    let What::History { before_ms, before_event, own } = what else { return Err(Error::NotFound) };
    let before_order = match before_event {
        None => i64::MAX,
        Some(id) => {
            let row = event::row_of(read, event::num(read, id)?.ok_or(Error::NotFound)?)?;
            row.order.filter(|_| row.room == num).ok_or(Error::NotFound)?
        }
    };
    Ok((num, Reach { before_ms: before_ms.unwrap_or(u64::MAX), before_order, keeps_own: !own }))
}

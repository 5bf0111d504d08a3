//! Subscriptions to threads (MSC4306), and the list of their changes (MSC4308).

use std::ops::ControlFlow;

use ruma::{EventId, RoomId, UserId};

use super::Rooms;
use super::error::{Error, Result};
use super::read::{Reader, visiting};
use crate::store::tables::room as table;
use crate::store::tables::room::event;
use crate::store::tables::room::thread_subscription::{self, Status, Subscription};
use crate::store::tables::user;
use crate::store::{self, Change, EventNum, Get, Position, RoomNum, UserNum};

/// Rows of a closed account that are removed in one write.
const FORGOTTEN_PER_WRITE: usize = 500;

/// What became of a subscription that an app made by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscribed {
    Done,
    /// The user had unsubscribed when the event was there already.
    Skipped,
}

/// A thread whose subscription changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadChange {
    pub room_id: String,
    pub root_id: String,
    pub is_subscribed: bool,
    pub is_automatic: bool,
    /// When it changed; the later of two changes of a thread has the greater one.
    pub at: Position,
}

/// Some changes, the latest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ThreadChanges {
    pub list: Vec<ThreadChange>,
    /// Where those before these end, when there are more: the `to` of the next call.
    pub next: Option<Position>,
}

impl Rooms {
    /// Whether an app made the reader's subscription to a thread by itself; none when the reader is not subscribed.
    /// `NotFound` when there is no such event or the reader may not see it.
    pub async fn thread_subscription(&self, reader: &Reader, room: &RoomId, root: &EventId) -> Result<Option<bool>> {
        let (num, root, _) = thread(self, reader, room, root, None).await?;
        let user = reader.user;
        self.reading(move |_, read| {
            let now = thread_subscription::get(read, user, num, root)?.map(|now| now.status);
            Ok(now.filter(|now| *now != Status::Unsubscribed).map(|now| now == Status::Automatic))
        })
        .await
    }

    /// Subscribes the reader to a thread; `cause`: an app does so by itself, because of that event. A subscription of the
    /// user stays one when an app subscribes too. `NotFound` when one of the events is not there or the reader may not see
    /// it; 400 when the cause is not in the thread.
    pub async fn subscribe_to_thread(
        &self,
        reader: &Reader,
        room: &RoomId,
        root: &EventId,
        cause: Option<&EventId>,
    ) -> Result<Subscribed> {
        let (num, root, order) = thread(self, reader, room, root, cause).await?;
        let status = if cause.is_some() { Status::Automatic } else { Status::Manual };
        let user = reader.user;
        let (done, _) = self
            .0
            .parts
            .store
            .write(move |w| {
                // The account may have been closed meanwhile, and what it had forgotten.
                if user::account(w, user)?.is_some_and(|account| account.standing == user::Standing::Deactivated) {
                    return Ok(Subscribed::Done);
                }
                match thread_subscription::get(w, user, num, root)? {
                    // An event without a place in the history came before everything that has one.
                    Some(Subscription { status: Status::Unsubscribed, at }) if cause_is_old(status, order, at) => {
                        return Ok(Subscribed::Skipped);
                    }
                    Some(now) if now.status == Status::Manual || now.status == status => return Ok(Subscribed::Done),
                    _ => {}
                }
                thread_subscription::set(w, user, num, root, status)?;
                w.announce(Change { users: vec![user], ..Change::default() });
                Ok::<_, store::Error>(Subscribed::Done)
            })
            .await
            .map_err(store::WriteError::into_inner)?;
        Ok(done)
    }

    /// Ends the reader's subscription to a thread; one that is not there is no error. `NotFound` when there is no such event
    /// or the reader may not see it.
    pub async fn unsubscribe_from_thread(&self, reader: &Reader, room: &RoomId, root: &EventId) -> Result<()> {
        let (num, root, _) = thread(self, reader, room, root, None).await?;
        let user = reader.user;
        let job = move |w: &mut store::Write<'_>| {
            let now = thread_subscription::get(w, user, num, root)?.map(|now| now.status);
            if now.is_none_or(|now| now == Status::Unsubscribed) {
                return Ok::<_, store::Error>(());
            }
            thread_subscription::set(w, user, num, root, Status::Unsubscribed)?;
            w.announce(Change { users: vec![user], ..Change::default() });
            Ok(())
        };
        self.0.parts.store.write(job).await.map_err(store::WriteError::into_inner)?;
        Ok(())
    }

    /// A user's changed threads after `after`, up to `to` or now; see [`thread_changes`].
    pub async fn list_thread_changes(
        &self,
        user: UserNum,
        after: Position,
        to: Option<Position>,
        most: usize,
    ) -> Result<ThreadChanges> {
        self.reading(move |_, read| {
            let now = read.position()?;
            Ok(thread_changes(read, user, after, to.map_or(now, |to| to.min(now)), most)?)
        })
        .await
    }

    /// Forgets the subscriptions of a user whose account is closed, in short writes.
    pub async fn forget_thread_subscriptions(&self, user_id: &UserId) -> Result<()> {
        let user_id = user_id.to_owned();
        let Some(user) = self.reading(move |_, read| Ok(user::num(read, user_id.as_str())?)).await? else {
            return Ok(());
        };
        loop {
            let job = move |w: &mut store::Write<'_>| thread_subscription::remove_user(w, user, FORGOTTEN_PER_WRITE);
            let (more, _) = self.0.parts.store.write_freeing(job).await.map_err(store::WriteError::into_inner)?;
            if !more {
                return Ok(());
            }
        }
    }
}

/// A user's threads whose subscription changed after `after`, up to and with `to`: the latest `most` of them, latest first. A
/// thread of a room that is gone from here is left out. Bounded by `most`: about 200 bytes each.
pub fn thread_changes(
    get: &impl Get,
    user: UserNum,
    after: Position,
    to: Position,
    most: usize,
) -> store::Result<ThreadChanges> {
    let mut changes = ThreadChanges::default();
    let mut found: Vec<(RoomNum, EventNum, Subscription)> = Vec::new();
    thread_subscription::list_newest(get, user, after, to, &mut |room, root, now| {
        if found.len() == most {
            changes.next = Some(now.at);
            return Ok(ControlFlow::Break(()));
        }
        found.push((room, root, now));
        Ok(ControlFlow::Continue(()))
    })?;
    for (room, root, now) in found {
        let (Some(room), Some(_)) = (table::get(get, room)?, event::row(get, root)?) else { continue };
        changes.list.push(ThreadChange {
            room_id: room.id,
            root_id: event::id_of(get, root)?,
            is_subscribed: now.status != Status::Unsubscribed,
            is_automatic: now.status == Status::Automatic,
            at: now.at,
        });
    }
    Ok(changes)
}

/// Whether an event that makes an app subscribe came before its user unsubscribed: the place of an event in the timeline is
/// the position at which it came, and lower for history that was fetched later.
fn cause_is_old(status: Status, order: Option<i64>, unsubscribed: Position) -> bool {
    status == Status::Automatic && order.is_none_or(|order| order <= unsubscribed.0 as i64)
}

/// The room and the root of a thread that the reader may see, and the place of an event in it when one is named.
async fn thread(
    rooms: &Rooms,
    reader: &Reader,
    room: &RoomId,
    root: &EventId,
    cause: Option<&EventId>,
) -> Result<(RoomNum, EventNum, Option<i64>)> {
    let (root, cause) = (root.to_owned(), cause.map(ToOwned::to_owned));
    let found = visiting(rooms, reader, room, move |view| {
        let (num, _) = view.visible(root.as_str())?;
        let Some(cause) = cause else { return Ok((view.num(), num, None)) };
        let (_, row) = view.visible(cause.as_str())?;
        if !view.is_in_thread(&row, root.as_str())? {
            let message = "The event that is the reason for the subscription is not in the thread";
            return Err(Error::bad("IO.ELEMENT.MSC4306.M_NOT_IN_THREAD", message));
        }
        Ok((view.num(), num, row.order))
    });
    match found.await {
        // A room that the reader may not see is one that does not exist.
        Err(Error::Forbidden(_)) => Err(Error::NotFound),
        found => found,
    }
}

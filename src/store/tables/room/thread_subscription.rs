//! The threads that local users follow, or follow no more (MSC4306), and the log of these changes (MSC4308).
//!
//! Only the latest change of each thread is kept, and of each user those of the threads changed last.

use std::ops::ControlFlow;

use crate::store::schema::{THREAD_SUBSCRIPTION, THREAD_SUBSCRIPTION_LOG};
use crate::store::{Error, EventNum, Get, Position, Result, RoomNum, UserNum, Write, tables};

/// Threads kept for one user; beyond that the one changed first is forgotten. Two rows of some 30 bytes each.
const THREADS_MAX: u32 = 10_000;

/// Whether a user follows a thread. On disk: never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Not any more: known, so that an app that is behind does not subscribe again by itself.
    Unsubscribed = 0,
    /// An app subscribed, because of an event in the thread.
    Automatic = 1,
    /// The user subscribed.
    Manual = 2,
}

impl Status {
    fn from_code(code: u8) -> Option<Status> {
        [Status::Unsubscribed, Status::Automatic, Status::Manual].into_iter().find(|status| *status as u8 == code)
    }
}

/// A thread of a user, and when that last changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscription {
    pub status: Status,
    pub at: Position,
}

impl Subscription {
    fn decode(row: &[u8]) -> Option<Subscription> {
        let (status, at) = row.split_first()?;
        Some(Subscription { status: Status::from_code(*status)?, at: Position::from_key(at)? })
    }
}

/// What is known of a user and the thread of a root.
pub fn get(get: &impl Get, user: UserNum, room: RoomNum, root: EventNum) -> Result<Option<Subscription>> {
    let key = key(user, room, root);
    let Some(row) = get.get(&THREAD_SUBSCRIPTION, &key)? else { return Ok(None) };
    Subscription::decode(&row).map(Some).ok_or_else(|| Error::corrupt(&THREAD_SUBSCRIPTION, &key))
}

/// Whether anything is known of any thread of a user.
pub fn has_any(get: &impl Get, user: UserNum) -> Result<bool> {
    get.has(&THREAD_SUBSCRIPTION, &user.to_key())
}

/// Notes a change of a thread, at a position of its own. Five rows at most.
pub fn set(w: &mut Write<'_>, user: UserNum, room: RoomNum, root: EventNum, status: Status) -> Result<Position> {
    let key = key(user, room, root);
    match get(w, user, room, root)? {
        Some(before) => drop(w.remove(&THREAD_SUBSCRIPTION_LOG, &log_key(user, before.at))?),
        None => make_room(w, user)?,
    }
    let at = w.next_position();
    w.put(&THREAD_SUBSCRIPTION, &key, &[&[status as u8][..], &at.to_key()].concat())?;
    w.put(&THREAD_SUBSCRIPTION_LOG, &log_key(user, at), &key[4..])?;
    Ok(at)
}

/// Counts one more thread of a user, in the place of the oldest when there are too many.
fn make_room(w: &mut Write<'_>, user: UserNum) -> Result<()> {
    let count = count(w, user)?;
    if count < THREADS_MAX {
        return w.put(&THREAD_SUBSCRIPTION, &user.to_key(), &(count + 1).to_be_bytes());
    }
    let Some((log, thread)) = w.first_in_prefix(&THREAD_SUBSCRIPTION_LOG, &user.to_key())? else { return Ok(()) };
    w.remove(&THREAD_SUBSCRIPTION_LOG, &log)?;
    w.remove(&THREAD_SUBSCRIPTION, &[&user.to_key()[..], &thread].concat()).map(drop)
}

/// How many threads of a user are known.
fn count(get: &impl Get, user: UserNum) -> Result<u32> {
    let Some(row) = get.get(&THREAD_SUBSCRIPTION, &user.to_key())? else { return Ok(0) };
    let count: [u8; 4] = row.try_into().map_err(|_| Error::corrupt(&THREAD_SUBSCRIPTION, &user.to_key()))?;
    Ok(u32::from_be_bytes(count))
}

/// Visits the threads of a user that changed after `after`, up to and with `to`, the latest change first, until `visit`
/// breaks.
pub fn list_newest(
    reads: &impl Get,
    user: UserNum,
    after: Position,
    to: Position,
    visit: &mut dyn FnMut(RoomNum, EventNum, Subscription) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let (from, end) = tables::after_up_to(&user.to_key(), after, to);
    reads.range(&THREAD_SUBSCRIPTION_LOG, &from, Some(&end), true, &mut |key, value| {
        let corrupt = || Error::corrupt(&THREAD_SUBSCRIPTION_LOG, key);
        let room = value.get(..4).and_then(RoomNum::from_key).ok_or_else(corrupt)?;
        let root = value.get(4..).and_then(EventNum::from_key).ok_or_else(corrupt)?;
        visit(room, root, get(reads, user, room, root)?.ok_or_else(corrupt)?)
    })
}

/// Forgets at most `most` threads that a user has in a room that is removed. Answers how many.
pub fn remove_room(w: &mut Write<'_>, user: UserNum, room: RoomNum, most: usize) -> Result<usize> {
    let (mut found, prefix) = (Vec::new(), [user.to_key(), room.to_key()].concat());
    w.prefix(&THREAD_SUBSCRIPTION, &prefix, &mut |key, row| {
        if found.len() == most {
            return Ok(ControlFlow::Break(()));
        }
        let known = Subscription::decode(row).ok_or_else(|| Error::corrupt(&THREAD_SUBSCRIPTION, key))?;
        found.push((key.to_vec(), known.at));
        Ok(ControlFlow::Continue(()))
    })?;
    for (key, at) in &found {
        w.remove(&THREAD_SUBSCRIPTION_LOG, &log_key(user, *at))?;
        w.remove(&THREAD_SUBSCRIPTION, key)?;
    }
    if !found.is_empty() {
        let left = count(w, user)?.saturating_sub(found.len() as u32);
        w.put(&THREAD_SUBSCRIPTION, &user.to_key(), &left.to_be_bytes())?;
    }
    Ok(found.len())
}

/// Forgets at most `most` threads of a user whose account is closed; true when there may be more.
pub fn remove_user(w: &mut Write<'_>, user: UserNum, most: usize) -> Result<bool> {
    let log = w.remove_prefix(&THREAD_SUBSCRIPTION_LOG, &user.to_key(), most)?;
    let rows = w.remove_prefix(&THREAD_SUBSCRIPTION, &user.to_key(), most)?;
    Ok(log == most || rows == most)
}

fn key(user: UserNum, room: RoomNum, root: EventNum) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&user.to_key());
    key[4..8].copy_from_slice(&room.to_key());
    key[8..].copy_from_slice(&root.to_key());
    key
}

fn log_key(user: UserNum, at: Position) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&user.to_key());
    key[4..].copy_from_slice(&at.to_key());
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    fn roots(get: &impl Get, user: UserNum, after: u64, to: u64, most: usize) -> Vec<(u32, Status)> {
        let mut found = Vec::new();
        list_newest(get, user, Position(after), Position(to), &mut |_, root, now| {
            found.push((root.0, now.status));
            Ok(if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })
        .unwrap();
        found
    }

    #[test]
    fn the_latest_change_of_each_thread_is_listed() {
        let store = Store::in_memory();
        let job = |w: &mut Write<'_>| {
            let (anna, bob, room) = (UserNum(1), UserNum(2), RoomNum(1));
            let mut set = |user, root, status| set(w, user, room, EventNum(root), status).unwrap();
            let first = set(anna, 1, Status::Manual);
            set(anna, 2, Status::Automatic);
            set(bob, 3, Status::Manual);
            let last = set(anna, 1, Status::Unsubscribed);
            let [now, one] = [(1, Status::Unsubscribed), (2, Status::Automatic)];
            assert_eq!(roots(w, anna, 0, last.0, 9), [now, one]);
            assert_eq!(roots(w, anna, 0, last.0, 1), [now]);
            assert_eq!(roots(w, anna, first.0, last.0 - 1, 9), [one]);
            assert_eq!(get(w, anna, room, EventNum(1))?.map(|now| now.status), Some(Status::Unsubscribed));
            assert!(get(w, bob, room, EventNum(1))?.is_none() && !has_any(w, UserNum(3))?);
            assert!(remove_user(w, anna, 2)? && !remove_user(w, anna, 9)?);
            assert_eq!((roots(w, anna, 0, last.0, 9).len(), roots(w, bob, 0, last.0, 9).len()), (0, 1));
            Ok::<_, Error>(())
        };
        store.write_blocking(job).unwrap();
    }

    #[test]
    fn a_room_that_is_removed_takes_its_threads_along() {
        let store = Store::in_memory();
        let job = |w: &mut Write<'_>| {
            let (anna, gone, stays) = (UserNum(1), RoomNum(7), RoomNum(8));
            for root in 1..=3 {
                set(w, anna, gone, EventNum(root), Status::Manual)?;
            }
            set(w, anna, stays, EventNum(9), Status::Manual)?;
            assert_eq!((remove_room(w, anna, gone, 2)?, remove_room(w, anna, gone, 2)?), (2, 1));
            assert_eq!(roots(w, anna, 0, u64::MAX - 1, 9), [(9, Status::Manual)]);
            assert_eq!(count(w, anna)?, 1);
            Ok::<_, Error>(())
        };
        store.write_blocking(job).unwrap();
    }

    #[test]
    fn the_oldest_thread_is_forgotten() {
        let store = Store::in_memory();
        let job = |w: &mut Write<'_>| {
            for root in 1..THREADS_MAX + 3 {
                set(w, UserNum(1), RoomNum(1), EventNum(root), Status::Manual)?;
            }
            let all = roots(w, UserNum(1), 0, u64::MAX - 1, usize::MAX);
            assert_eq!((all.len(), all[0].0, all[all.len() - 1].0), (THREADS_MAX as usize, THREADS_MAX + 2, 3));
            Ok::<_, Error>(())
        };
        store.write_blocking(job).unwrap();
    }
}

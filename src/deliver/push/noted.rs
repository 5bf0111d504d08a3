//! What commits changed for users with pushers, noted until the worker looks.
//!
//! Bounds: [`USERS_MAX`] users with [`ROOMS_MAX`] rooms each; beyond that everybody is looked at, in as many rooms. The set of users with
//! pushers has an entry of 8 bytes for each and [`KNOWN_MAX`] entries; with more, every user counts as having some.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::store::{Change, Follower, Position, Push, RoomNum, UserNum};

/// About 100 bytes each.
const USERS_MAX: usize = 128;
const ROOMS_MAX: usize = 8;
const KNOWN_MAX: usize = 1024;
/// The memory that all of this takes at most: both tables, with the room that they keep free.
pub const NOTED_BYTES: u64 = (USERS_MAX * 100 + KNOWN_MAX * 16) as u64;

/// What changed for one user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct News {
    /// Rooms with new notifications, when they are few enough to be named.
    pub rooms: Vec<RoomNum>,
    /// New notifications may be anywhere.
    pub anywhere: bool,
    /// Something was read: the badge may be another one.
    pub read: bool,
    /// Pushers were set or removed.
    pub pushers: bool,
}

impl News {
    /// Anything may have changed.
    pub fn all() -> News {
        News { anywhere: true, read: true, ..News::default() }
    }

    fn add(&mut self, push: Push, room: Option<RoomNum>) {
        match (push, room) {
            (Push::Pushers, _) => self.pushers = true,
            (Push::Read, _) => self.read = true,
            (_, Some(room)) if self.rooms.contains(&room) => {}
            (_, Some(room)) if self.rooms.len() < ROOMS_MAX => self.rooms.push(room),
            _ => self.anywhere = true,
        }
    }

    /// Both together.
    pub fn and(mut self, other: News) -> News {
        for room in other.rooms {
            self.add(Push::Notified, Some(room));
        }
        self.anywhere |= other.anywhere;
        self.read |= other.read;
        self.pushers |= other.pushers;
        self
    }
}

#[derive(Default)]
struct Inner {
    news: BTreeMap<UserNum, News>,
    /// The user who was taken last.
    last: UserNum,
    /// What changed for users who found no place there.
    all: Option<News>,
    /// Users with pushers, and perhaps some who had one.
    known: HashSet<UserNum>,
    /// Not all of them had a place in `known`.
    overflown: bool,
}

#[derive(Default)]
pub struct Noted {
    inner: Mutex<Inner>,
    notify: Notify,
}

impl Noted {
    /// A user with a pusher.
    pub fn know(&self, user: UserNum) {
        self.inner.lock().know(user);
    }

    /// A user without any. One who set a pusher meanwhile is noted again by that.
    pub fn forget(&self, user: UserNum) {
        let mut inner = self.inner.lock();
        if !inner.news.get(&user).is_some_and(|news| news.pushers) {
            inner.known.remove(&user);
        }
    }

    /// Whether anybody is known to have a pusher.
    pub fn is_any(&self) -> bool {
        !self.inner.lock().known.is_empty()
    }

    /// What changed for anybody beyond what is noted by user; said once.
    pub fn take_all(&self) -> Option<News> {
        self.inner.lock().all.take()
    }

    /// The next user for whom something changed, one after the other.
    pub fn take(&self) -> Option<(UserNum, News)> {
        let mut inner = self.inner.lock();
        let behind = inner.news.range((Bound::Excluded(inner.last), Bound::Unbounded)).next().map(|(user, _)| *user);
        let user = behind.or_else(|| inner.news.keys().next().copied())?;
        inner.last = user;
        inner.news.remove_entry(&user)
    }

    /// Resolves when something was noted since the last call. For one waiter.
    pub async fn noted(&self) {
        self.notify.notified().await;
    }
}

impl Inner {
    fn know(&mut self, user: UserNum) {
        match self.known.len() < KNOWN_MAX {
            true => drop(self.known.insert(user)),
            false => self.overflown |= !self.known.contains(&user),
        }
    }

    /// Answers whether there is something to look at.
    fn note(&mut self, change: &Change) -> bool {
        let mut noted = false;
        for user in &change.users {
            if change.push == Push::Pushers {
                self.know(*user);
            } else if !self.overflown && !self.known.contains(user) {
                continue;
            }
            noted = true;
            if self.news.len() >= USERS_MAX && !self.news.contains_key(user) {
                self.all.get_or_insert_default().add(change.push, change.room);
                continue;
            }
            self.news.entry(*user).or_default().add(change.push, change.room);
        }
        noted
    }
}

impl Follower for Noted {
    fn committed(&self, changes: &[&Change], _: Position) {
        if changes.iter().all(|change| change.push == Push::Nothing) {
            return;
        }
        let mut inner = self.inner.lock();
        let telling = changes.iter().filter(|change| change.push != Push::Nothing);
        let noted = telling.fold(false, |noted, change| inner.note(change) | noted);
        drop(inner);
        if noted {
            self.notify.notify_one();
        }
    }

    fn lost(&self, _: Position) {
        self.inner.lock().all = Some(News::all());
        self.notify.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(push: Push, users: &[u32], room: Option<u32>) -> Change {
        let users = users.iter().map(|user| UserNum(*user)).collect();
        Change { users, room: room.map(RoomNum), push, ..Change::default() }
    }

    fn commit(noted: &Noted, change: &Change) {
        noted.committed(&[change], Position(1));
    }

    #[test]
    fn only_users_with_pushers_are_noted() {
        let noted = Noted::default();
        commit(&noted, &change(Push::Notified, &[1, 2], Some(7)));
        assert_eq!(noted.take(), None);
        noted.know(UserNum(2));
        commit(&noted, &change(Push::Notified, &[1, 2], Some(7)));
        commit(&noted, &change(Push::Notified, &[1, 2], Some(7)));
        commit(&noted, &change(Push::Read, &[2], Some(7)));
        let (user, news) = noted.take().unwrap();
        assert_eq!((user, news), (UserNum(2), News { rooms: vec![RoomNum(7)], read: true, ..News::default() }));
        noted.forget(UserNum(2));
        commit(&noted, &change(Push::Notified, &[2], Some(7)));
        assert_eq!(noted.take(), None);
    }

    #[test]
    fn what_finds_no_place_makes_everybody_be_looked_at() {
        let noted = Noted::default();
        for user in 1..=USERS_MAX as u32 + 1 {
            noted.know(UserNum(user));
            commit(&noted, &change(Push::Notified, &[user], Some(1)));
        }
        let all = News { rooms: vec![RoomNum(1)], ..News::default() };
        assert_eq!((noted.take_all(), noted.take_all()), (Some(all), None), "of the rooms that it is about");
        for room in 0..ROOMS_MAX as u32 + 1 {
            commit(&noted, &change(Push::Notified, &[1], Some(room)));
        }
        let (user, news) = noted.take().unwrap();
        assert!(user == UserNum(1) && news.anywhere && news.rooms.len() == ROOMS_MAX);
        // Nobody waits for those with lower numbers, whatever they do.
        commit(&noted, &change(Push::Notified, &[1], Some(1)));
        assert_eq!(noted.take().unwrap().0, UserNum(2));
        noted.lost(Position(1));
        assert_eq!(noted.take_all(), Some(News::all()));
    }

    #[test]
    fn more_users_than_are_known_are_all_looked_at() {
        let noted = Noted::default();
        (1..=KNOWN_MAX as u32).for_each(|user| noted.know(UserNum(user)));
        let stranger = KNOWN_MAX as u32 + 5;
        commit(&noted, &change(Push::Notified, &[stranger], Some(1)));
        assert_eq!(noted.take(), None);
        noted.know(UserNum(stranger));
        commit(&noted, &change(Push::Notified, &[stranger], Some(1)));
        assert_eq!(noted.take().unwrap().0, UserNum(stranger));
    }
}

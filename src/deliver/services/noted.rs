//! What commits changed since the worker looked: the rooms, and the users for whom more than a room's part changed.
//!
//! Bounds: [`ROOMS_MAX`] rooms and [`USERS_MAX`] users; beyond that everything is looked at. Without a service that is told
//! anything, nothing is noted.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::store::{Change, Follower, Position, RoomNum, UserNum};

/// Four bytes each, and some for the tree. A transaction holds 100 events: with more rooms than this changed there are several to
/// tell, of which each look finds the oldest.
const ROOMS_MAX: usize = 128;
const USERS_MAX: usize = 128;
/// What one [`News`] takes at most, 4 KiB. There is one here, and some for each service.
pub const NEWS_BYTES: u64 = 16 * (ROOMS_MAX + USERS_MAX) as u64;

/// What is to be looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct News {
    pub rooms: BTreeSet<RoomNum>,
    pub users: BTreeSet<UserNum>,
    /// Anything may have changed.
    pub all: bool,
    /// Every commit up to here was noted.
    pub upto: Position,
}

impl News {
    /// Everything.
    pub fn all() -> News {
        News { all: true, ..News::default() }
    }

    pub fn is_empty(&self) -> bool {
        self.rooms.is_empty() && self.users.is_empty() && !self.all
    }

    /// Both together.
    pub fn add(&mut self, other: &News) {
        self.all |= other.all;
        self.upto = self.upto.max(other.upto);
        self.rooms.extend(&other.rooms);
        self.users.extend(&other.users);
        self.bound();
    }

    fn bound(&mut self) {
        if self.rooms.len() > ROOMS_MAX || self.users.len() > USERS_MAX {
            self.all = true;
        }
        // What looks at everything needs no list.
        if self.all {
            self.rooms.clear();
            self.users.clear();
        }
    }

    fn note(&mut self, change: &Change) {
        if self.all {
            return;
        }
        self.rooms.extend(change.room);
        if !change.only_room {
            self.users.extend(change.users.iter().copied());
        }
        self.bound();
    }
}

#[derive(Default)]
pub struct Noted {
    news: Mutex<News>,
    /// Some service is told something.
    active: AtomicBool,
    /// Some service is told of what is not stored.
    ephemeral: AtomicBool,
    /// Something changed that is not stored.
    passing: AtomicBool,
    notify: Notify,
}

impl Noted {
    /// Whether services are told anything, and whether of what is not stored.
    pub fn set_active(&self, active: bool, ephemeral: bool) {
        self.ephemeral.store(ephemeral, Ordering::Relaxed);
        if self.active.swap(active, Ordering::SeqCst) != active {
            *self.news.lock() = if active { News::all() } else { News::default() };
        }
    }

    /// What was noted since the last call.
    pub fn take(&self) -> News {
        let mut news = self.news.lock();
        let upto = news.upto;
        std::mem::replace(&mut *news, News { upto, ..News::default() })
    }

    /// Whether something changed since the last call that is not stored.
    pub fn take_passing(&self) -> bool {
        self.passing.swap(false, Ordering::Relaxed)
    }

    /// Typing or presence changed somewhere.
    pub fn note_passing(&self) {
        if self.ephemeral.load(Ordering::Relaxed) {
            self.passing.store(true, Ordering::Relaxed);
            self.notify.notify_one();
        }
    }

    /// Resolves when something was noted since the last call. For one waiter.
    pub async fn noted(&self) {
        self.notify.notified().await;
    }
}

impl Follower for Noted {
    fn committed(&self, changes: &[&Change], position: Position) {
        if !self.active.load(Ordering::SeqCst) {
            return;
        }
        let mut news = self.news.lock();
        changes.iter().for_each(|change| news.note(change));
        news.upto = news.upto.max(position);
        let any = !news.is_empty();
        drop(news);
        if any {
            self.notify.notify_one();
        }
    }

    fn lost(&self, position: Position) {
        let mut news = self.news.lock();
        news.all = true;
        news.upto = news.upto.max(position);
        news.bound();
        drop(news);
        self.notify.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(room: u32, users: &[u32], only_room: bool) -> Change {
        let users = users.iter().map(|user| UserNum(*user)).collect();
        Change { room: Some(RoomNum(room)), users, only_room, ..Change::default() }
    }

    #[test]
    fn rooms_are_noted_and_users_of_whom_more_changed() {
        let noted = Noted::default();
        noted.committed(&[&change(1, &[1], true)], Position(1));
        assert!(noted.take().is_empty(), "nobody is told anything");
        noted.set_active(true, false);
        assert!(noted.take().all, "what came before was not noted");
        noted.committed(&[&change(1, &[1, 2], true), &change(2, &[3], false)], Position(7));
        let news = noted.take();
        assert_eq!(news.rooms, BTreeSet::from([RoomNum(1), RoomNum(2)]));
        assert_eq!((news.users, news.upto), (BTreeSet::from([UserNum(3)]), Position(7)));
        assert!(noted.take().is_empty());
    }

    #[test]
    fn too_much_is_everything() {
        let noted = Noted::default();
        noted.set_active(true, false);
        noted.take();
        for room in 0..=ROOMS_MAX as u32 {
            noted.committed(&[&change(room, &[], true)], Position(1));
        }
        let news = noted.take();
        assert!(news.all && news.rooms.is_empty());
        noted.lost(Position(9));
        assert_eq!(noted.take(), News { upto: Position(9), ..News::all() });
    }
}

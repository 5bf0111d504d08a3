//! One lock per room. Its guard proves that no other task changes the room meanwhile; or, when it is shared, that whoever
//! does holds a share too.
//!
//! A lock exists while a task holds it or waits for it, so the map is bounded by the requests in flight. Never wait for
//! a memory grant or another server while holding one longer than the work needs; never take two.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::store::RoomNum;

/// The rooms' locks.
#[derive(Clone, Default)]
pub struct Locks {
    rooms: Arc<Mutex<HashMap<RoomNum, Turn>>>,
}

type Turn = Arc<RwLock<()>>;

impl Locks {
    /// Waits for the room's lock; first come, first served.
    pub async fn lock(&self, room: RoomNum) -> Guard {
        let held = self.turn(room).write_owned().await;
        Guard(Kept { locks: self.clone(), room, held: Some(held) })
    }

    /// Waits for a share of the room's lock: for changes that are read, judged and written in one job of the writer, and
    /// that leave the room's state as it is. First come, first served here too.
    pub async fn share(&self, room: RoomNum) -> Share {
        let held = self.turn(room).read_owned().await;
        Share { _kept: Kept { locks: self.clone(), room, held: Some(held) } }
    }

    fn turn(&self, room: RoomNum) -> Turn {
        self.with(|rooms| rooms.entry(room).or_default().clone())
    }

    fn with<T>(&self, look: impl FnOnce(&mut HashMap<RoomNum, Turn>) -> T) -> T {
        look(&mut self.rooms.lock())
    }
}

/// The proof. Pass it by reference to what changes the room.
pub struct Guard(Kept<OwnedRwLockWriteGuard<()>>);

/// A share of a room's lock, to be kept until the change is durable.
pub struct Share {
    _kept: Kept<OwnedRwLockReadGuard<()>>,
}

/// A room's lock, whole or a share.
struct Kept<Held> {
    locks: Locks,
    room: RoomNum,
    held: Option<Held>,
}

impl Guard {
    /// The room the guard is for.
    pub fn room(&self) -> RoomNum {
        self.0.room
    }
}

impl<Held> Drop for Kept<Held> {
    fn drop(&mut self) {
        self.locks.with(|rooms| {
            drop(self.held.take());
            // The map's own reference is the last one: no task waits.
            if rooms.get(&self.room).is_some_and(|turn| Arc::strong_count(turn) == 1) {
                rooms.remove(&self.room);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_room_has_one_holder_and_rooms_do_not_wait_for_each_other() {
        let locks = Locks::default();
        let first = locks.lock(RoomNum(1)).await;
        let other = locks.lock(RoomNum(2)).await;
        let second = tokio::spawn({
            let locks = locks.clone();
            async move { locks.lock(RoomNum(1)).await.room() }
        });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(first);
        assert_eq!(second.await.unwrap(), RoomNum(1));
        drop(other);
        assert!(locks.with(|rooms| rooms.is_empty()), "locks nobody holds are gone");
    }

    #[tokio::test]
    async fn shares_are_held_together_and_never_beside_the_whole_lock() {
        let locks = Locks::default();
        let (one, two) = (locks.share(RoomNum(1)).await, locks.share(RoomNum(1)).await);
        let whole = tokio::spawn({
            let locks = locks.clone();
            async move { locks.lock(RoomNum(1)).await }
        });
        tokio::task::yield_now().await;
        let later = tokio::spawn({
            let locks = locks.clone();
            async move { locks.share(RoomNum(1)).await }
        });
        tokio::task::yield_now().await;
        drop(one);
        tokio::task::yield_now().await;
        assert!(!whole.is_finished() && !later.is_finished(), "a share does not overtake who waits for the whole");
        drop(two);
        drop(whole.await.unwrap());
        drop(later.await.unwrap());
        assert!(locks.with(|rooms| rooms.is_empty()), "locks nobody holds are gone");
    }
}

//! One lock per room. Its guard proves that no other task changes the room meanwhile.
//!
//! A lock exists while a task holds it or waits for it, so the map is bounded by the requests in flight. Never wait for
//! a memory grant or another server while holding one longer than the work needs; never take two.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};

use crate::store::RoomNum;

/// The rooms' locks.
#[derive(Clone, Default)]
pub struct Locks {
    rooms: Arc<Mutex<HashMap<RoomNum, Arc<Turn<()>>>>>,
}

impl Locks {
    /// Waits for the room's lock; first come, first served.
    pub async fn lock(&self, room: RoomNum) -> Guard {
        let turn = self.with(|rooms| rooms.entry(room).or_default().clone());
        let held = Some(turn.lock_owned().await);
        Guard { locks: self.clone(), room, held }
    }

    fn with<T>(&self, look: impl FnOnce(&mut HashMap<RoomNum, Arc<Turn<()>>>) -> T) -> T {
        look(&mut self.rooms.lock())
    }
}

/// The proof. Pass it by reference to what changes the room.
pub struct Guard {
    locks: Locks,
    room: RoomNum,
    held: Option<OwnedMutexGuard<()>>,
}

impl Guard {
    /// The room the guard is for.
    pub fn room(&self) -> RoomNum {
        self.room
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.locks.with(|rooms| {
            self.held = None;
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
}

//! The joins under way.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use tokio::sync::{Semaphore, watch};

use super::admission::Policy;
use super::progress::{JoinStatus, Progress};
use crate::base::sort_few;
use crate::room::Rooms;

/// Joins under way and in line. Each is a task and a journal row.
const UNDERWAY_MAX: usize = 32;

/// Joins under way, and the policy for new ones.
pub struct Joins {
    pub policy: Mutex<Policy>,
    running: Mutex<HashMap<OwnedRoomId, Arc<Running>>>,
    /// The server is shutting down: joins end where they are.
    pub stopping: AtomicBool,
    pub large: Arc<Semaphore>,
    pub small: Arc<Semaphore>,
}

pub struct Running {
    pub user: OwnedUserId,
    pub progress: Arc<Progress>,
    since: Duration,
    over: watch::Sender<bool>,
}

impl Default for Joins {
    fn default() -> Self {
        Joins {
            policy: Mutex::default(),
            running: Mutex::default(),
            stopping: AtomicBool::new(false),
            large: Arc::new(Semaphore::new(1)),
            small: Arc::new(Semaphore::new(1)),
        }
    }
}

impl Joins {
    pub fn list(&self, now: Duration) -> Vec<JoinStatus> {
        let running = self.running.lock();
        let mut list: Vec<_> = running
            .iter()
            .map(|(room, one)| one.progress.underway(room.as_str(), one.user.as_str(), now.saturating_sub(one.since)))
            .collect();
        sort_few(&mut list, |a, b| a.room_id.cmp(&b.room_id));
        list
    }

    /// Ends a join under way, at its next step. Its writes are removed. False when there is no such join.
    pub fn cancel(&self, room_id: &RoomId) -> bool {
        let running = self.running.lock();
        running.get(room_id).map(|one| one.progress.cancel()).is_some()
    }

    /// Ends all joins at their next step and leaves their writes: the next start goes on there.
    pub async fn stop(&self) {
        self.stopping.store(true, Relaxed);
        let mut over: Vec<_> = {
            let running = self.running.lock();
            running.values().map(|one| (one.progress.clone(), one.over.subscribe())).collect()
        };
        for (progress, over) in &mut over {
            progress.cancel();
            let _ = over.wait_for(|over| *over).await;
        }
    }

    /// Enters a join in the list, or answers the one under way for that room.
    pub fn enter(&self, room_id: &RoomId, user: &UserId, since: Duration) -> Entered {
        let mut running = self.running.lock();
        if let Some(other) = running.get(room_id) {
            return Entered::Behind(other.over.subscribe());
        }
        if running.len() >= UNDERWAY_MAX {
            return Entered::Full;
        }
        let over = watch::Sender::new(false);
        let one = Arc::new(Running { user: user.to_owned(), progress: Arc::default(), since, over });
        running.insert(room_id.to_owned(), one.clone());
        Entered::First(one)
    }

    /// Tells when the join of a room is over; none when there is none.
    pub fn under_way(&self, room_id: &RoomId) -> Option<watch::Receiver<bool>> {
        self.running.lock().get(room_id).map(|one| one.over.subscribe())
    }

    fn leave(&self, room_id: &RoomId) {
        let over = self.running.lock().remove(room_id);
        if let Some(over) = over {
            over.over.send_replace(true);
        }
    }
}

pub enum Entered {
    First(Arc<Running>),
    /// Another join of the room is under way; the receiver tells when it is over.
    Behind(watch::Receiver<bool>),
    Full,
}

/// Takes a join off the list however it ends, with the leave event that follows a failed one: a leave that is sent
/// after the next join of the same user would end that one.
pub struct Watched {
    pub rooms: Rooms,
    pub room_id: OwnedRoomId,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.rooms.0.joins.leave(&self.room_id);
    }
}

//! Wake-ups: they tell each user's waiters that there is something new.
//!
//! A wake-up carries no data: a woken waiter reads on from its own position, so a lost or doubled wake-up does no harm.
//! A waiter registers, *then* looks, then waits; a change that lands between looking and waiting is not slept through,
//! because the wake-up is kept for the waiter until it waits.
//!
//! Owns nothing on disk. It follows the commits of the store, so nothing is announced that is not durable, and several
//! changes of one commit wake a waiter once; typing, which is never durable, is only a [`Feed::wake`].
//!
//! Beside the wake-ups it notes, for users who lately waited, which rooms changed: [`Feed::rooms_changed`]. That saves
//! reading what has not changed. When it does not know, it says so.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

use crate::base::{Clock, Recent};
use crate::store::{self, Change, Follower, Get, Position, RoomNum, Store, UserNum};

/// Users whose changes are noted, those who waited last: about 250 bytes each. For others everything is read.
const NOTED_USERS_MAX: usize = 64;
/// Rooms noted for one user: those that changed last.
const NOTED_ROOMS: usize = 12;

/// The wake-ups of the house. Clones share one.
#[derive(Clone)]
pub struct Feed {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Clock,
    slots: Mutex<Slots>,
    outbound: watch::Sender<u64>,
    /// Told of wake-ups for what is not stored.
    passing: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct Slots {
    /// One entry per user that has a waiter, so bounded by the connections that wait.
    waiting: HashMap<UserNum, Vec<Arc<Notify>>>,
    /// One entry per room that a waiter looks into from outside, bounded in the same way.
    watched: HashMap<RoomNum, Vec<Arc<Notify>>>,
    /// At most [`NOTED_USERS_MAX`].
    noted: HashMap<UserNum, Noted>,
    /// Every commit up to here was noted.
    upto: Position,
    /// Counts the uses of `noted`.
    uses: u64,
}

/// The changes that one user may see.
struct Noted {
    rooms: Recent<RoomNum, NOTED_ROOMS>,
    used: u64,
}

impl Feed {
    /// Follows the commits of `store` from now on; blocks for the reading of one row.
    pub fn new(clock: Clock, store: &Store) -> store::Result<Self> {
        let inner = Arc::new(Inner {
            clock,
            slots: Mutex::default(),
            outbound: watch::Sender::new(0),
            passing: OnceLock::new(),
        });
        store.follow(inner.clone());
        inner.committed(&[], store.read()?.position()?);
        Ok(Self { inner })
    }

    /// Wakes users' waiters for something that is not stored, such as typing.
    pub fn wake(&self, users: &[UserNum]) {
        if let Some(passing) = self.inner.passing.get() {
            passing();
        }
        self.slots().wake(users);
    }

    /// From now on `told` is called at each [`Feed::wake`]: who follows commits learns nothing of typing and presence. It does not
    /// wait. Only the first call of this counts.
    pub fn on_wake(&self, told: Box<dyn Fn() + Send + Sync>) {
        let _ = self.inner.passing.set(told);
    }

    /// Begins to listen for a user. Register before reading what is there.
    pub fn register(&self, user: UserNum) -> Waiter {
        let notify = Arc::new(Notify::new());
        self.slots().waiting.entry(user).or_default().push(notify.clone());
        Waiter { feed: self.clone(), user, room: None, notify }
    }

    /// The rooms that changed for a user after `since` up to `now`, the position of a snapshot, when nothing else
    /// changed of what the user's sync tells: no membership, no account data, no devices, no messages to them. `None`
    /// when more than that changed, or when it is not known: from then on it will be.
    pub fn rooms_changed(&self, user: UserNum, since: Position, now: Position) -> Option<Vec<RoomNum>> {
        let mut slots = self.slots();
        // The snapshot may show a commit that is being noted just now.
        if slots.upto < now {
            return None;
        }
        slots.noted(user).rooms.since(since.0).map(Iterator::collect)
    }

    /// Tells delivery workers of new rows in the outbound log; the number only ever rises and means nothing else.
    pub fn outbound(&self) -> watch::Receiver<u64> {
        self.inner.outbound.subscribe()
    }

    /// The users who wait for something new. Bounded by the connections that wait.
    pub fn listening(&self) -> Vec<UserNum> {
        self.slots().waiting.keys().copied().collect()
    }

    /// How many waiters there are, for the metrics.
    pub fn waiters(&self) -> usize {
        self.slots().waiting.values().map(Vec::len).sum()
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        // Nothing panics while holding the lock, and a map of wake-ups cannot be left half changed.
        self.inner.slots.lock()
    }
}

impl Follower for Inner {
    fn committed(&self, changes: &[&Change], position: Position) {
        let mut slots = self.slots.lock();
        for change in changes {
            slots.note(change, position);
        }
        slots.upto = slots.upto.max(position);
    }

    fn noted_by_all(&self, changes: &[&Change]) {
        let slots = self.slots.lock();
        for change in changes {
            slots.wake(&change.users);
            if let Some(watching) = change.room.and_then(|room| slots.watched.get(&room)) {
                watching.iter().for_each(|watching| watching.notify_one());
            }
        }
        drop(slots);
        if changes.iter().any(|change| change.outbound) {
            self.outbound.send_modify(|count| *count += 1);
        }
    }

    fn lost(&self, position: Position) {
        let mut slots = self.slots.lock();
        slots.noted.clear();
        // What begins to be noted now leaves out what came before.
        slots.upto = slots.upto.max(position);
        slots.waiting.values().flatten().for_each(|waiter| waiter.notify_one());
        drop(slots);
        self.outbound.send_modify(|count| *count += 1);
    }
}

impl Slots {
    fn wake(&self, users: &[UserNum]) {
        for waiter in users.iter().filter_map(|user| self.waiting.get(user)).flatten() {
            // `notify_one` keeps the wake-up for a waiter that is still looking.
            waiter.notify_one();
        }
    }

    /// Notes a change of the commit that ends at `position`.
    fn note(&mut self, change: &Change, position: Position) {
        if change.anybody {
            self.noted.values_mut().for_each(|noted| noted.rooms.forget(position.0));
        }
        for user in &change.users {
            let Some(noted) = self.noted.get_mut(user) else { continue };
            match change.room.filter(|_| change.only_room) {
                Some(room) => noted.rooms.note(room, position.0),
                None => noted.rooms.forget(position.0),
            }
        }
    }

    /// The notes for a user, which begin now when there were none.
    fn noted(&mut self, user: UserNum) -> &Noted {
        if self.noted.len() >= NOTED_USERS_MAX && !self.noted.contains_key(&user) {
            let oldest = self.noted.iter().min_by_key(|(_, noted)| noted.used).map(|(user, _)| *user);
            oldest.map(|oldest| self.noted.remove(&oldest));
        }
        self.uses += 1;
        let noted = self.noted.entry(user).or_insert_with(|| Noted { rooms: Recent::new(self.upto.0), used: 0 });
        noted.used = self.uses;
        noted
    }
}

/// One slot for one waiting request, whatever the number of rooms. Gone on drop.
pub struct Waiter {
    feed: Feed,
    user: UserNum,
    room: Option<RoomNum>,
    notify: Arc<Notify>,
}

impl Waiter {
    /// Wakes for what happens in a room too, whether the user is in it or not. Watch before reading what is there.
    pub fn watch(&mut self, room: RoomNum) {
        self.unwatch();
        self.feed.slots().watched.entry(room).or_default().push(self.notify.clone());
        self.room = Some(room);
    }

    fn unwatch(&mut self) {
        if let Some(room) = self.room.take() {
            leave(&mut self.feed.slots().watched, &room, &self.notify);
        }
    }

    /// Waits for something new since it was registered or last woke, at most until `deadline` on the clock's monotonic
    /// time ([`Clock::instant`]). Returns whether there was anything.
    pub async fn wait(&self, deadline: Duration) -> bool {
        let clock = &self.feed.inner.clock;
        let left = deadline.saturating_sub(clock.instant());
        tokio::select! {
            biased;
            () = self.notify.notified() => true,
            () = clock.sleep(left) => false,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.unwatch();
        leave(&mut self.feed.slots().waiting, &self.user, &self.notify);
    }
}

/// Takes a waiter out, and the entry with the last.
fn leave<K: std::hash::Hash + Eq>(of: &mut HashMap<K, Vec<Arc<Notify>>>, at: &K, notify: &Arc<Notify>) {
    if let Some(waiters) = of.get_mut(at) {
        waiters.retain(|waiter| !Arc::ptr_eq(waiter, notify));
        if waiters.is_empty() {
            of.remove(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema::META;

    fn feed() -> (Feed, Store) {
        let store = Store::in_memory();
        (Feed::new(Clock::simulated(0), &store).unwrap(), store)
    }

    #[tokio::test]
    async fn a_wake_up_between_looking_and_waiting_is_kept() {
        let (feed, _store) = feed();
        let waiter = feed.register(UserNum(1));
        feed.wake(&[UserNum(1), UserNum(2)]);
        feed.wake(&[UserNum(1)]);
        assert!(waiter.wait(Duration::from_secs(3600)).await);
        assert!(!waiter.wait(Duration::ZERO).await, "two wake-ups before waiting are one");
    }

    #[tokio::test]
    async fn every_waiter_of_a_user_wakes_and_leaves_nothing_behind() {
        let (feed, _store) = feed();
        let (one, two) = (feed.register(UserNum(1)), feed.register(UserNum(1)));
        feed.wake(&[UserNum(1)]);
        assert!(one.wait(Duration::from_secs(1)).await && two.wait(Duration::from_secs(1)).await);
        drop((one, two));
        assert_eq!(feed.waiters(), 0);
        assert!(feed.slots().waiting.is_empty());
    }

    #[tokio::test]
    async fn who_watches_a_room_wakes_for_it_alone() {
        let (feed, store) = feed();
        let mut watcher = feed.register(UserNum(9));
        watcher.watch(RoomNum(1));
        commit(&store, &[1], 2, true).await;
        assert!(!watcher.wait(Duration::ZERO).await);
        commit(&store, &[1], 1, true).await;
        assert!(watcher.wait(Duration::ZERO).await);
        watcher.watch(RoomNum(2));
        commit(&store, &[1], 1, true).await;
        assert!(!watcher.wait(Duration::ZERO).await);
        drop(watcher);
        assert!(feed.slots().watched.is_empty() && feed.slots().waiting.is_empty());
    }

    async fn commit(store: &Store, users: &[u32], room: u32, only_room: bool) -> Position {
        let users = users.iter().map(|user| UserNum(*user)).collect();
        let change = Change { users, room: Some(RoomNum(room)), only_room, ..Change::default() };
        let done = store.write(move |w| {
            let at = w.next_position();
            w.put(&META, b"test", &at.to_key())?;
            w.announce(change);
            Ok::<_, store::Error>(at)
        });
        done.await.unwrap().0
    }

    #[tokio::test]
    async fn a_commit_wakes_the_users_it_concerns_before_its_caller_goes_on() {
        let (feed, store) = feed();
        let (one, other) = (feed.register(UserNum(1)), feed.register(UserNum(2)));
        commit(&store, &[1], 1, true).await;
        assert!(one.wait(Duration::ZERO).await);
        assert!(!other.wait(Duration::ZERO).await);
    }

    #[tokio::test]
    async fn it_is_known_which_rooms_changed_while_nothing_else_did() {
        let (feed, store) = feed();
        let begun = commit(&store, &[1], 7, true).await;
        let changed = |since, now| feed.rooms_changed(UserNum(1), since, now);
        assert_eq!(changed(Position(0), begun), None, "the user was not noted before");
        assert_eq!(changed(begun, begun), Some(vec![]));
        let first = commit(&store, &[1, 2], 8, true).await;
        commit(&store, &[2], 9, true).await;
        let last = commit(&store, &[1], 7, true).await;
        assert_eq!(changed(begun, last), Some(vec![RoomNum(8), RoomNum(7)]));
        assert_eq!(changed(first, last), Some(vec![RoomNum(7)]));
        assert_eq!(changed(last, Position(last.0 + 1)), None, "a commit was not noted yet");
        let more = commit(&store, &[1], 7, false).await;
        assert_eq!(changed(last, more), None, "a change of more than the room");
        assert_eq!(changed(more, more), Some(vec![]));
    }

    /// A commit that reported a failure and was there after all: the next commit passed for all that came since.
    #[tokio::test]
    async fn what_was_lost_is_never_thought_quiet() {
        let (feed, store) = feed();
        let begun = commit(&store, &[1], 7, true).await;
        let changed = |since, now| feed.rooms_changed(UserNum(1), since, now);
        assert_eq!(changed(begun, begun), Some(vec![]));
        let (waiter, outbound) = (feed.register(UserNum(1)), feed.outbound());
        let lost = Position(begun.0 + 1);
        feed.inner.lost(lost);
        assert!(waiter.wait(Duration::ZERO).await && outbound.has_changed().unwrap());
        assert_eq!(changed(begun, begun), None);
        let next = Position(lost.0 + 1);
        let change = Change { users: vec![UserNum(1)], room: Some(RoomNum(8)), only_room: true, ..Change::default() };
        feed.inner.committed(&[&change], next);
        assert_eq!(changed(begun, next), None);
        assert_eq!(changed(lost, next), Some(vec![RoomNum(8)]));
    }

    #[tokio::test]
    async fn rooms_and_users_without_number_are_forgotten_and_never_thought_quiet() {
        let (feed, store) = feed();
        let begun = commit(&store, &[1], 1, true).await;
        assert_eq!(feed.rooms_changed(UserNum(1), begun, begun), Some(vec![]));
        for room in 0..20 {
            commit(&store, &[1], room, true).await;
        }
        let now = commit(&store, &[3], 1, true).await;
        assert_eq!(feed.rooms_changed(UserNum(1), begun, now), None);
        for user in 2..1000 {
            feed.rooms_changed(UserNum(user), begun, now);
        }
        let later = commit(&store, &[1], 5, true).await;
        assert_eq!(feed.rooms_changed(UserNum(1), now, later), None);
        assert!(feed.slots().noted.len() <= NOTED_USERS_MAX);
    }
}

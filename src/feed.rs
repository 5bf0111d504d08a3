//! Wake-ups: they tell each user's waiters that there is something new.
//!
//! A wake-up carries no data: a woken waiter reads on from its own position, so a lost or doubled wake-up does no harm.
//! A waiter registers, *then* looks, then waits; a change that lands between looking and waiting is not slept through,
//! because the wake-up is kept for the waiter until it waits.
//!
//! Owns nothing on disk. Only the [`Changes`] of a commit can be published, so nothing is announced that is not
//! durable; typing and presence, which are never durable, only [`Feed::wake`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::base::Clock;
use crate::store::{Changes, UserNum};

/// The wake-ups of the house. Clones share one.
#[derive(Clone)]
pub struct Feed {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Clock,
    /// One entry per user that has a waiter, so bounded by the connections that wait.
    slots: Mutex<HashMap<UserNum, Vec<Arc<Notify>>>>,
    outbound: watch::Sender<u64>,
}

impl Feed {
    pub fn new(clock: Clock) -> Self {
        Self { inner: Arc::new(Inner { clock, slots: Mutex::default(), outbound: watch::Sender::new(0) }) }
    }

    /// Wakes the waiters of the users that the changes concern. Call with the changes of a commit, after it.
    pub fn publish(&self, changes: &Changes) {
        let mut outbound = false;
        for change in changes.list() {
            self.wake(&change.users);
            outbound |= change.outbound;
        }
        if outbound {
            self.inner.outbound.send_modify(|count| *count += 1);
        }
    }

    /// Wakes users' waiters for something that is not stored, such as typing.
    pub fn wake(&self, users: &[UserNum]) {
        let slots = self.slots();
        for waiter in users.iter().filter_map(|user| slots.get(user)).flatten() {
            // `notify_one` keeps the wake-up for a waiter that is still looking.
            waiter.notify_one();
        }
    }

    /// Begins to listen for a user. Register before reading what is there.
    pub fn register(&self, user: UserNum) -> Waiter {
        let notify = Arc::new(Notify::new());
        self.slots().entry(user).or_default().push(notify.clone());
        Waiter { feed: self.clone(), user, notify }
    }

    /// Tells delivery workers of new rows in the outbound log; the number only ever rises and means nothing else.
    pub fn outbound(&self) -> watch::Receiver<u64> {
        self.inner.outbound.subscribe()
    }

    /// How many waiters there are, for the metrics.
    pub fn waiters(&self) -> usize {
        self.slots().values().map(Vec::len).sum()
    }

    fn slots(&self) -> parking_lot::MutexGuard<'_, HashMap<UserNum, Vec<Arc<Notify>>>> {
        // Nothing panics while holding the lock, and a map of wake-ups cannot be left half changed.
        self.inner.slots.lock()
    }
}

/// One slot for one waiting request, whatever the number of rooms. Gone on drop.
pub struct Waiter {
    feed: Feed,
    user: UserNum,
    notify: Arc<Notify>,
}

impl Waiter {
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
        let mut slots = self.feed.slots();
        if let Some(waiters) = slots.get_mut(&self.user) {
            waiters.retain(|waiter| !Arc::ptr_eq(waiter, &self.notify));
            if waiters.is_empty() {
                slots.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wake_up_between_looking_and_waiting_is_kept() {
        let feed = Feed::new(Clock::simulated(0));
        let waiter = feed.register(UserNum(1));
        feed.wake(&[UserNum(1), UserNum(2)]);
        feed.wake(&[UserNum(1)]);
        assert!(waiter.wait(Duration::from_secs(3600)).await);
        assert!(!waiter.wait(Duration::ZERO).await, "two wake-ups before waiting are one");
    }

    #[tokio::test]
    async fn every_waiter_of_a_user_wakes_and_leaves_nothing_behind() {
        let feed = Feed::new(Clock::simulated(0));
        let (one, two) = (feed.register(UserNum(1)), feed.register(UserNum(1)));
        feed.wake(&[UserNum(1)]);
        assert!(one.wait(Duration::from_secs(1)).await && two.wait(Duration::from_secs(1)).await);
        drop((one, two));
        assert_eq!(feed.waiters(), 0);
        assert!(feed.slots().is_empty());
    }
}

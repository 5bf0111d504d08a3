//! Typing notifications: never stored, forgotten after a while.
//!
//! Typing users are charged to the `ephemeral` account. Local users have places of their own; when the places for
//! remote users are all taken, in a room or on the account, the server with most of them loses one. Beside that stays a
//! serial of about 60 bytes for each room of ours in which a user ever typed, so that apps learn of the end of the
//! typing. Serial numbers only rise, over restarts too, since they begin at the time of the start; a sync token holds
//! the last one seen.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use parking_lot::{Mutex, MutexGuard};

use crate::base::shares::{Held, of_the_busiest};
use crate::base::{Clock, Recent};
use crate::budget::{Account, Grant};
use crate::store::{RoomNum, UserNum};

/// The cost of one typing user: an entry, its share of the room's, and the tables' slack.
const TYPIST_BYTES: u64 = 160;
/// The most local and the most remote users shown as typing in one room: no user reads a longer list.
const TYPISTS_MAX: usize = 50;
/// Other servers forget a typing user after a minute or half of one, so the notification is repeated this often.
const REPEAT: Duration = Duration::from_secs(25);
/// Rooms in which typing changed last, for syncs to look at no others.
const RECENT_ROOMS: usize = 32;

#[derive(Clone)]
pub struct Typing(Arc<Inner>);

struct Inner {
    account: Account,
    clock: Clock,
    hasher: RandomState,
    book: Mutex<Book>,
}

struct Book {
    /// The serial at the start. An app with an older one may still show users as typing whom this server forgot.
    started: u64,
    serial: u64,
    rooms: HashMap<RoomNum, Room>,
    recent: Recent<RoomNum, RECENT_ROOMS>,
}

#[derive(Default)]
struct Room {
    serial: u64,
    typists: Vec<Typist>,
    /// Tells the task that waits for the next time to run out in this room of an earlier one; none without a task.
    watcher: Option<Arc<Notify>>,
}

impl Room {
    /// The next time at which something is to be done.
    fn due(&self) -> Option<Duration> {
        self.typists.iter().map(Typist::next).min()
    }
}

struct Typist {
    user: UserNum,
    until: Duration,
    /// A hash of the remote user's server; none for a local user.
    server: Option<u32>,
    /// For a local user: the time of the last notification to other servers.
    told: Option<Duration>,
    grant: Grant,
}

impl Typist {
    fn next(&self) -> Duration {
        self.told.map_or(self.until, |told| self.until.min(told + REPEAT))
    }
}

/// The changes in a room that the passing of time made.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Local users whose time is up.
    pub ended: Vec<UserNum>,
    /// Local users who still type: other servers need a repeat.
    pub repeat: Vec<UserNum>,
    /// The time of a user is up, local or remote.
    pub changed: bool,
}

/// The outcome of setting a user's typing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set {
    /// Other users would see a difference.
    pub changed: bool,
    /// No task watches the room's times yet: the caller must start one with [`Typing::watch`].
    pub unwatched: bool,
}

impl Typing {
    pub fn new(account: Account, clock: Clock) -> Typing {
        let started = clock.now_ms();
        let book = Book { started, serial: started, rooms: HashMap::new(), recent: Recent::new(started) };
        let book = Mutex::new(book);
        Typing(Arc::new(Inner { account, clock, hasher: RandomState::new(), book }))
    }

    /// The serial of the newest change.
    pub fn serial(&self) -> u64 {
        self.book().serial
    }

    /// The rooms in which typing changed after `since`; none when that is not known any more.
    pub fn rooms_changed(&self, since: u64) -> Option<Vec<RoomNum>> {
        self.book().recent.since(since).map(Iterator::collect)
    }

    /// The users typing in a room, when that changed after `since`; none when it did not.
    pub fn changed(&self, room: RoomNum, since: u64) -> Option<Vec<UserNum>> {
        let book = self.book();
        let room = book.rooms.get(&room).filter(|room| room.serial > since)?;
        let now = self.0.clock.instant();
        Some(room.typists.iter().filter(|typist| typist.until > now).map(|typist| typist.user).collect())
    }

    /// Whether an app may still show users who typed before the last start, which this server no longer knows of.
    pub fn may_be_stale(&self, room: RoomNum, since: u64) -> bool {
        let book = self.book();
        since < book.started && !book.rooms.contains_key(&room)
    }

    /// Sets a user as typing for the next `length`, or as stopped. `server`: a remote user's server, none for a local
    /// user.
    pub fn set(&self, num: RoomNum, user: UserNum, length: Option<Duration>, server: Option<&str>) -> Set {
        let now = self.0.clock.instant();
        let until = length.map(|length| now + length);
        let server = server.map(|name| self.0.hasher.hash_one(name) as u32);
        let mut book = self.book();
        let is_new = until.is_some() && !book.types(num, user);
        let grant = if is_new { self.place(&mut book, num, server) } else { None };
        let next = book.serial + 1;
        let room = book.rooms.entry(num).or_default();
        let due = room.due();
        let at = room.typists.iter().position(|typist| typist.user == user);
        let changed = match (at, until) {
            (Some(at), Some(until)) => {
                room.typists[at].until = until;
                false
            }
            (Some(at), None) => {
                room.typists.remove(at);
                true
            }
            (None, Some(until)) => match grant {
                Some(grant) => {
                    let told = server.is_none().then_some(now);
                    room.typists.push(Typist { user, until, server, told, grant });
                    true
                }
                None => false,
            },
            (None, None) => false,
        };
        if changed {
            room.serial = next;
        }
        let unwatched = !room.typists.is_empty() && room.watcher.is_none();
        let is_earlier = due.zip(room.due()).is_some_and(|(before, now)| now < before);
        if unwatched {
            room.watcher = Some(Arc::default());
        }
        if let Some(watcher) = room.watcher.as_ref().filter(|_| is_earlier) {
            // Kept for a task that is not waiting just now.
            watcher.notify_one();
        }
        if changed {
            book.serial = next;
            book.recent.note(num, next);
        }
        Set { changed, unwatched }
    }

    /// Takes a place in a room for one more user. When there is none, a remote user's place is taken for it.
    fn place(&self, book: &mut Book, room: RoomNum, server: Option<u32>) -> Option<Grant> {
        let of_same_kind = |typist: &&Typist| typist.server.is_some() == server.is_some();
        let in_room = book.rooms.get(&room).map_or(0, |room| room.typists.iter().filter(of_same_kind).count());
        match (in_room >= TYPISTS_MAX, server) {
            (false, _) => match self.0.account.try_take(TYPIST_BYTES) {
                Ok(grant) => Some(grant),
                Err(_) => book.give_up(None, server),
            },
            (true, Some(_)) => book.give_up(Some(room), server),
            (true, None) => None,
        }
    }

    /// Waits for the next user whose time is up, who is then removed, or for whom a repeat is due; none when no user
    /// types in the room any more.
    pub async fn watch(&self, num: RoomNum) -> Option<Passed> {
        loop {
            let (next, watcher) = {
                let mut book = self.book();
                let room = book.rooms.get_mut(&num)?;
                let Some(next) = room.due() else {
                    room.watcher = None;
                    return None;
                };
                (next, room.watcher.get_or_insert_default().clone())
            };
            tokio::select! {
                () = self.0.clock.sleep(next.saturating_sub(self.0.clock.instant())) => {}
                () = watcher.notified() => continue,
            }
            let passed = self.pass(num);
            if passed != Passed::default() {
                return Some(passed);
            }
        }
    }

    fn pass(&self, num: RoomNum) -> Passed {
        let (now, mut passed) = (self.0.clock.instant(), Passed::default());
        let mut book = self.book();
        let next = book.serial + 1;
        let Some(room) = book.rooms.get_mut(&num) else { return passed };
        room.typists.retain_mut(|typist| {
            let types = typist.until > now;
            passed.changed |= !types;
            match &mut typist.told {
                Some(told) if types && *told + REPEAT <= now => {
                    *told = now;
                    passed.repeat.push(typist.user);
                }
                Some(_) if !types => passed.ended.push(typist.user),
                _ => {}
            }
            types
        });
        if passed.changed {
            room.serial = next;
            book.serial = next;
            book.recent.note(num, next);
        }
        passed
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock()
    }
}

impl Book {
    fn types(&self, room: RoomNum, user: UserNum) -> bool {
        self.rooms.get(&room).is_some_and(|room| room.typists.iter().any(|typist| typist.user == user))
    }

    /// Removes, from the server with most typing users in one room or in all, the user who would stop first. The
    /// newcomer's server is counted with the newcomer; none when the newcomer would be the one to remove.
    fn give_up(&mut self, only: Option<RoomNum>, newcomer: Option<u32>) -> Option<Grant> {
        let held = |owner, age, key| Held { owner, within: 0, age, weight: 1, key };
        let mut all: Vec<_> = newcomer.map(|owner| held(owner, u64::MAX, None)).into_iter().collect();
        for (num, room) in self.rooms.iter().filter(|(num, _)| only.is_none_or(|only| only == **num)) {
            let others = room.typists.iter().filter_map(|typist| Some((typist.server?, typist)));
            all.extend(others.map(|(owner, one)| held(owner, one.until.as_millis() as u64, Some((*num, one.user)))));
        }
        let (num, user) = of_the_busiest(all, 1).pop()??;
        self.serial += 1;
        let room = self.rooms.get_mut(&num)?;
        room.serial = self.serial;
        self.recent.note(num, self.serial);
        let at = room.typists.iter().position(|typist| typist.user == user)?;
        Some(room.typists.remove(at).grant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;

    #[test]
    fn who_typed_before_a_restart_may_still_be_shown() {
        let clock = Clock::simulated(1_000);
        let typing = || Typing::new(Budget::for_tests().account("ephemeral"), clock.clone());
        let before = typing();
        before.set(RoomNum(1), UserNum(1), Some(Duration::from_secs(30)), None);
        let told = before.serial();
        assert!(!before.may_be_stale(RoomNum(2), told));
        clock.advance(Duration::from_secs(5));
        let after = typing();
        assert!(after.may_be_stale(RoomNum(1), told) && after.changed(RoomNum(1), told).is_none());
        assert!(!after.may_be_stale(RoomNum(1), after.serial()));
    }

    /// The task slept until the time of the user who typed for longer, and only then told of both.
    #[tokio::test]
    async fn typing_ends_in_time_while_another_user_types_for_longer() {
        use std::future::Future;
        use std::task::{Context, Poll, Waker};
        let clock = Clock::simulated(1_000);
        let typing = Typing::new(Budget::for_tests().account("ephemeral"), clock.clone());
        typing.set(RoomNum(1), UserNum(1), Some(Duration::from_secs(20)), None);
        let mut watching = Box::pin(typing.watch(RoomNum(1)));
        let mut poll = || watching.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert_eq!(poll(), Poll::Pending);
        typing.set(RoomNum(1), UserNum(2), Some(Duration::from_secs(5)), None);
        assert_eq!(poll(), Poll::Pending);
        clock.advance(Duration::from_secs(5));
        let ended = Passed { ended: vec![UserNum(2)], repeat: vec![], changed: true };
        assert_eq!(poll(), Poll::Ready(Some(ended)));
    }

    /// Fifty users of one server who typed all the time filled the whole list of a room.
    #[test]
    fn a_server_with_many_typists_pushes_out_its_own() {
        let (budget, clock) = (Budget::for_tests(), Clock::simulated(1_000));
        let (account, typing) = (budget.account("ephemeral"), Typing::new(budget.account("ephemeral"), clock.clone()));
        let long = Some(Duration::from_secs(30));
        let shown = |room| typing.changed(RoomNum(room), 0).unwrap_or_default();
        assert!(typing.set(RoomNum(1), UserNum(1), long, Some("friend.example")).changed);
        assert!(typing.set(RoomNum(1), UserNum(2), long, None).changed);
        for n in 100..300 {
            clock.advance(Duration::from_millis(1));
            assert!(typing.set(RoomNum(1), UserNum(n), long, Some("busy.example")).changed);
        }
        let now = shown(1);
        assert!(now.contains(&UserNum(1)) && now.contains(&UserNum(2)) && now.contains(&UserNum(299)));
        assert_eq!((now.contains(&UserNum(100)), now.len()), (false, TYPISTS_MAX + 1));
        // One server cannot take the whole account either.
        for n in 0..(account.limit() / TYPIST_BYTES) as u32 + 200 {
            typing.set(RoomNum(2 + n / 50), UserNum(1000 + n), long, Some("busy.example"));
        }
        assert!(account.used() <= account.limit());
        assert!(typing.set(RoomNum(9999), UserNum(3), long, None).changed);
        assert!(typing.set(RoomNum(9999), UserNum(4), long, Some("friend.example")).changed);
        assert!(shown(1).contains(&UserNum(1)) && shown(1).contains(&UserNum(2)));
    }
}

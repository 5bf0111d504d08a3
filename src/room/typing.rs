//! Who is typing: never stored, forgotten after a while.
//!
//! Who types is on the `ephemeral` account; when that is empty the next one to type is not shown. Beside that stays a
//! serial of about 60 bytes for each room of ours in which somebody ever typed, so that apps hear of the end of it. Serial numbers only rise,
//! over restarts too, since they begin at the time of the start; a sync token holds the one it has seen.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::base::Clock;
use crate::budget::{Account, Grant};
use crate::store::{RoomNum, UserNum};

/// One who types: an entry, its share of the room's, and the tables' slack.
const TYPIST_BYTES: u64 = 160;
/// Shown of one room at most: nobody reads a longer list.
const TYPISTS_MAX: usize = 50;
/// Other servers forget who types after a minute or half of one; they are told again this often.
const REPEAT: Duration = Duration::from_secs(25);

#[derive(Clone)]
pub struct Typing(Arc<Inner>);

struct Inner {
    account: Account,
    clock: Clock,
    book: Mutex<Book>,
}

struct Book {
    /// Who was told of something before it may have been told of people nobody here remembers.
    started: u64,
    serial: u64,
    rooms: HashMap<RoomNum, Room>,
}

#[derive(Default)]
struct Room {
    serial: u64,
    typists: Vec<Typist>,
    /// Somebody watches for the end of the last one's time.
    watched: bool,
}

struct Typist {
    user: UserNum,
    until: Duration,
    /// Of somebody of this server: when others were last told.
    told: Option<Duration>,
    _grant: Grant,
}

impl Typist {
    fn next(&self) -> Duration {
        self.told.map_or(self.until, |told| self.until.min(told + REPEAT))
    }
}

/// What time brought about in a room.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// People of this server whose time is up.
    pub ended: Vec<UserNum>,
    /// People of this server who still type: others must hear it again.
    pub repeat: Vec<UserNum>,
    /// Somebody's time is up, of this server or another.
    pub changed: bool,
}

/// What came of setting somebody's typing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Set {
    /// Others would see a difference.
    pub changed: bool,
    /// Nobody watches the room's times yet: the caller must, by [`Typing::watch`].
    pub unwatched: bool,
}

impl Typing {
    pub fn new(account: Account, clock: Clock) -> Typing {
        let started = clock.now_ms();
        let book = Mutex::new(Book { started, serial: started, rooms: HashMap::new() });
        Typing(Arc::new(Inner { account, clock, book }))
    }

    /// The newest change's number.
    pub fn serial(&self) -> u64 {
        self.book().serial
    }

    /// Who types in a room, when that changed after `since`; none when it did not.
    pub fn changed(&self, room: RoomNum, since: u64) -> Option<Vec<UserNum>> {
        let book = self.book();
        let room = book.rooms.get(&room).filter(|room| room.serial > since)?;
        let now = self.0.clock.instant();
        Some(room.typists.iter().filter(|typist| typist.until > now).map(|typist| typist.user).collect())
    }

    /// Whether an app may still show people of before the last start, of whom nothing is known here any more.
    pub fn may_be_stale(&self, room: RoomNum, since: u64) -> bool {
        let book = self.book();
        since < book.started && !book.rooms.contains_key(&room)
    }

    /// Somebody types for the next `length`, or stopped. `ours`: somebody of this server.
    pub fn set(&self, num: RoomNum, user: UserNum, length: Option<Duration>, ours: bool) -> Set {
        let now = self.0.clock.instant();
        let until = length.map(|length| now + length);
        let grant = self.0.account.try_take(TYPIST_BYTES).ok();
        let mut book = self.book();
        let next = book.serial + 1;
        let room = book.rooms.entry(num).or_default();
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
                Some(grant) if room.typists.len() < TYPISTS_MAX => {
                    room.typists.push(Typist { user, until, told: ours.then_some(now), _grant: grant });
                    true
                }
                _ => false,
            },
            (None, None) => false,
        };
        if changed {
            room.serial = next;
        }
        let unwatched = !room.typists.is_empty() && !room.watched;
        room.watched |= unwatched;
        if changed {
            book.serial = next;
        }
        Set { changed, unwatched }
    }

    /// Waits for the next typist whose time is up and takes them out, or of whom others must hear again; none when nobody
    /// types in the room any more.
    pub async fn watch(&self, num: RoomNum) -> Option<Passed> {
        loop {
            let next = {
                let mut book = self.book();
                let room = book.rooms.get_mut(&num)?;
                match room.typists.iter().map(Typist::next).min() {
                    Some(next) => next,
                    None => {
                        room.watched = false;
                        return None;
                    }
                }
            };
            self.0.clock.sleep(next.saturating_sub(self.0.clock.instant())).await;
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
        }
        passed
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
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
        before.set(RoomNum(1), UserNum(1), Some(Duration::from_secs(30)), true);
        let told = before.serial();
        assert!(!before.may_be_stale(RoomNum(2), told));
        clock.advance(Duration::from_secs(5));
        let after = typing();
        assert!(after.may_be_stale(RoomNum(1), told) && after.changed(RoomNum(1), told).is_none());
        assert!(!after.may_be_stale(RoomNum(1), after.serial()));
    }
}

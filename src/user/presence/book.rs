//! Who is there: a table in memory, bounded in bytes.
//!
//! People are charged to the `ephemeral` account, at most a share of it. When there is no place left a person of another
//! server gives up theirs, of the server with most people; a person here takes the place of such a one, or else of whoever of
//! this server was active least lately. Serial numbers only rise, over restarts too, since they begin at the time of the
//! start; a sync token holds the last one seen.
//!
//! Time is that of spans ([`crate::base::Clock::instant`]) in milliseconds, so that a board whose clock is set late does not
//! have everybody gone for years.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;

use crate::base::shares::{Held, of_the_busiest};
use crate::budget::{Account, Grant};
use crate::store::UserNum;

/// The cost of one person without a status message: 150 bytes of the entry and its place in the table, whose slack is as
/// much again, and up to four devices. More devices are displaced by newer ones.
const PERSON_BYTES: u64 = 512;
const DEVICES_MAX: usize = 4;
/// Changes of one local user that other servers are told of without a pause: somebody who comes, and says what they do.
const TOLD_IN_A_ROW: i64 = 3;
/// One part in this many of the people elsewhere is given up at once.
const PART_GIVEN_UP: usize = 16;
/// People may take this part of the account; the rest is for who types.
const PART_OF_ACCOUNT: u64 = 2;

/// The times of Synapse, in milliseconds: how long somebody counts as active after doing something; as online without doing
/// anything; as there without a sync, and as busy; and how long without a word from another server its people count as there.
pub const ACTIVE_MS: i64 = 60_000;
pub const IDLE_MS: i64 = 5 * 60_000;
pub const GONE_MS: i64 = 30_000;
pub const BUSY_GONE_MS: i64 = 60 * 60_000;
pub const FORGOTTEN_MS: i64 = 30 * 60_000;

/// A state of presence, the weakest first: of a user's devices the strongest counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum PresenceStatus {
    #[default]
    Offline,
    Unavailable,
    Online,
    Busy,
}

impl PresenceStatus {
    pub fn of(name: &str) -> Option<PresenceStatus> {
        Some(match name {
            "offline" => PresenceStatus::Offline,
            "unavailable" => PresenceStatus::Unavailable,
            "online" => PresenceStatus::Online,
            "busy" | "org.matrix.msc3026.busy" => PresenceStatus::Busy,
            _ => return None,
        })
    }

    pub fn as_str(self) -> &'static str {
        match self {
            PresenceStatus::Offline => "offline",
            PresenceStatus::Unavailable => "unavailable",
            PresenceStatus::Online => "online",
            PresenceStatus::Busy => "org.matrix.msc3026.busy",
        }
    }
}

/// What others are shown of somebody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Presence {
    pub status: PresenceStatus,
    pub active_ms: Option<i64>,
    pub currently_active: bool,
    pub message: Option<Box<str>>,
}

#[derive(Debug)]
struct Device {
    /// A hash of its id.
    id: u64,
    status: PresenceStatus,
    active_ms: i64,
    synced_ms: i64,
    /// Syncs that wait just now.
    syncing: u32,
}

struct Person {
    shown: Presence,
    serial: u64,
    devices: Vec<Device>,
    /// A hash of the remote user's server; none for a local user.
    server: Option<u32>,
    /// When another server last told of them; for a local user, when other servers were last told.
    told_ms: i64,
    /// Until when a local user's changes that other servers were told of are paid for, at one each pause.
    paid_ms: i64,
    /// A change of which other servers were not told yet.
    owes: bool,
    grant: Grant,
}

pub struct Book {
    account: Account,
    hasher: RandomState,
    serial: u64,
    people: HashMap<UserNum, Person>,
    bytes: u64,
    /// Who changed and was not announced yet. Never more than there are people, or were.
    pending: HashSet<UserNum>,
}

/// An announcement that is due.
#[derive(Debug, PartialEq, Eq)]
pub struct News {
    pub user: UserNum,
    pub is_local: bool,
}

impl Book {
    pub fn new(account: Account, started_ms: u64) -> Book {
        Book {
            account,
            hasher: RandomState::new(),
            serial: started_ms,
            people: HashMap::new(),
            bytes: 0,
            pending: HashSet::new(),
        }
    }

    pub fn serial(&self) -> u64 {
        self.serial
    }

    pub fn has(&self, user: UserNum) -> bool {
        self.people.contains_key(&user)
    }

    pub fn get(&self, user: UserNum) -> Option<Presence> {
        self.people.get(&user).map(|person| person.shown.clone())
    }

    /// Whose presence changed after a serial; of a serial from the future, everybody's. `whole`: everybody who is there.
    pub fn changed(&self, since: Option<u64>) -> Vec<UserNum> {
        let since = since.filter(|since| *since <= self.serial);
        let is_told = |person: &Person| match since {
            Some(since) => person.serial > since,
            None => person.shown.status != PresenceStatus::Offline,
        };
        self.people.iter().filter(|(_, person)| is_told(person)).map(|(user, _)| *user).collect()
    }

    /// Everybody who is there.
    pub fn there(&self) -> Vec<UserNum> {
        self.changed(None)
    }

    /// Changes a device of a local user. `message` is that of a user who had no place yet.
    fn device(
        &mut self,
        user: UserNum,
        device: &str,
        now_ms: i64,
        message: impl FnOnce() -> Option<Box<str>>,
        change: impl FnOnce(&mut Device, &mut Presence),
    ) {
        let id = self.hasher.hash_one(device);
        if !self.has(user) && !self.place(user, None, now_ms, message()) {
            return;
        }
        let Some(person) = self.people.get_mut(&user) else { return };
        let at = match person.devices.iter().position(|device| device.id == id) {
            Some(at) => at,
            None => {
                if person.devices.len() >= DEVICES_MAX {
                    let oldest = person.devices.iter().enumerate();
                    let oldest = oldest.min_by_key(|(_, device)| (device.syncing, device.active_ms)).map(|(at, _)| at);
                    oldest.map(|at| person.devices.swap_remove(at));
                }
                let new =
                    Device { id, status: PresenceStatus::Offline, active_ms: now_ms, synced_ms: i64::MIN, syncing: 0 };
                person.devices.push(new);
                person.devices.len() - 1
            }
        };
        let mut next = person.shown.clone();
        change(&mut person.devices[at], &mut next);
        person.combine(&mut next, now_ms);
        self.show(user, next);
    }

    /// An app sets its user's presence.
    pub fn set(&mut self, user: UserNum, device: &str, status: PresenceStatus, message: Option<Box<str>>, now_ms: i64) {
        self.device(
            user,
            device,
            now_ms,
            || None,
            |device, next| {
                device.status = status;
                device.active_ms = now_ms;
                next.active_ms = if status >= PresenceStatus::Online { Some(now_ms) } else { next.active_ms };
                next.message = message;
            },
        );
        self.recount(user);
    }

    /// A sync of a device begins. It leaves somebody busy who is.
    pub fn sync_begins(
        &mut self,
        user: UserNum,
        device: &str,
        status: PresenceStatus,
        now_ms: i64,
        message: impl FnOnce() -> Option<Box<str>>,
    ) {
        self.device(user, device, now_ms, message, |device, next| {
            let is_busy = next.status == PresenceStatus::Busy;
            device.status = if is_busy { PresenceStatus::Busy } else { status };
            (device.active_ms, device.synced_ms) = (now_ms, now_ms);
            device.syncing += 1;
            next.active_ms = if device.status >= PresenceStatus::Online { Some(now_ms) } else { next.active_ms };
        });
    }

    pub fn sync_ends(&mut self, user: UserNum, device: &str, now_ms: i64) {
        let id = self.hasher.hash_one(device);
        let Some(person) = self.people.get_mut(&user) else { return };
        let Some(device) = person.devices.iter_mut().find(|device| device.id == id) else { return };
        device.syncing = device.syncing.saturating_sub(1);
        device.synced_ms = now_ms;
        if device.status >= PresenceStatus::Online {
            device.active_ms = now_ms;
            person.shown.active_ms = Some(now_ms);
        }
    }

    /// A local user did something. An app that asks to be shown as offline shows nothing by it.
    pub fn acted(&mut self, user: UserNum, device: &str, now_ms: i64) {
        let id = self.hasher.hash_one(device);
        let is_there = |one: &Device| one.id == id && one.status != PresenceStatus::Offline;
        if !self.people.get(&user).is_some_and(|person| person.devices.iter().any(is_there)) {
            return;
        }
        let change = |device: &mut Device, next: &mut Presence| {
            device.active_ms = now_ms;
            if device.status == PresenceStatus::Unavailable {
                device.status = PresenceStatus::Online;
            }
            next.active_ms = Some(now_ms);
        };
        self.device(user, device, now_ms, || None, change);
    }

    /// Another server tells of one of its people.
    pub fn heard(&mut self, user: UserNum, server: &str, presence: Presence, now_ms: i64) {
        let server = self.hasher.hash_one(server) as u32;
        if !self.has(user) {
            let is_there = presence.status != PresenceStatus::Offline;
            // Who is not there is what nobody is known of.
            if !is_there || !self.place(user, Some(server), now_ms, None) {
                return;
            }
        }
        if let Some(person) = self.people.get_mut(&user).filter(|person| person.server == Some(server)) {
            person.told_ms = now_ms;
            self.show(user, presence);
            self.recount(user);
        }
    }

    /// Tells of somebody once more: who comes into a room is shown to those there.
    pub fn tell_again(&mut self, user: UserNum) {
        if let Some(person) = self.people.get_mut(&user) {
            self.serial += 1;
            person.serial = self.serial;
            self.pending.insert(user);
        }
    }

    /// Shows somebody otherwise than before. Who sees a difference is told of it.
    fn show(&mut self, user: UserNum, next: Presence) {
        let Some(person) = self.people.get_mut(&user) else { return };
        let before = std::mem::replace(&mut person.shown, next);
        if is_news(&before, &person.shown) {
            self.serial += 1;
            person.serial = self.serial;
            self.pending.insert(user);
        }
    }

    /// Lets time pass: who did nothing for long, and who went. Answers who was not announced yet.
    pub fn pass(&mut self, now_ms: i64) -> Vec<News> {
        let due: Vec<_> = self
            .people
            .iter()
            .filter(|(_, person)| person.due_ms().is_some_and(|due| due <= now_ms))
            .map(|(user, _)| *user)
            .collect();
        for user in due {
            let Some(person) = self.people.get_mut(&user) else { continue };
            let mut next = person.shown.clone();
            match person.server {
                Some(_) => next = Presence { status: PresenceStatus::Offline, currently_active: false, ..next },
                None => {
                    for device in &mut person.devices {
                        if device.syncing == 0
                            && device.status == PresenceStatus::Online
                            && device.active_ms + IDLE_MS <= now_ms
                        {
                            device.status = PresenceStatus::Unavailable;
                        }
                    }
                    person.devices.retain(|device| device.gone_ms().is_none_or(|gone| gone > now_ms));
                    person.combine(&mut next, now_ms);
                }
            }
            self.show(user, next);
        }
        let pending = std::mem::take(&mut self.pending);
        let known = |user: UserNum| {
            let person = self.people.get(&user)?;
            Some(News { user, is_local: person.server.is_none() })
        };
        pending.into_iter().filter_map(known).collect()
    }

    /// The same as [`Book::next`] as far as one person is concerned.
    pub fn next_of(&self, user: UserNum) -> (bool, Option<i64>) {
        (!self.pending.is_empty(), self.people.get(&user).and_then(Person::due_ms))
    }

    /// Whether somebody was not announced yet; and when time will have passed for somebody.
    pub fn next(&self) -> (bool, Option<i64>) {
        (!self.pending.is_empty(), self.people.values().filter_map(Person::due_ms).min())
    }

    /// Notes that other servers are to be told of a local user.
    pub fn owe(&mut self, user: UserNum) {
        if let Some(person) = self.people.get_mut(&user) {
            person.owes = true;
        }
    }

    /// The local people of whom other servers are to be told now, who are noted as told: of each not more often than every
    /// `pause_ms` in the long run, but [`TOLD_IN_A_ROW`] changes at once; and of who is there at least every `ping_ms`.
    pub fn told_outside(&mut self, pause_ms: i64, ping_ms: i64, now_ms: i64) -> Vec<(UserNum, Presence)> {
        let mut told = Vec::new();
        for (user, person) in &mut self.people {
            if person.outside_ms(pause_ms, ping_ms).is_some_and(|due| due <= now_ms) {
                person.paid_ms = person.paid_ms.max(now_ms).saturating_add(pause_ms);
                (person.told_ms, person.owes) = (now_ms, false);
                told.push((*user, person.shown.clone()));
            }
        }
        told
    }

    /// When [`Book::told_outside`] will have something to tell.
    pub fn next_outside(&self, pause_ms: i64, ping_ms: i64) -> Option<i64> {
        self.people.values().filter_map(|person| person.outside_ms(pause_ms, ping_ms)).min()
    }

    /// Charges what the status message of somebody takes now. Without memory for it within the table's part, there is none.
    fn recount(&mut self, user: UserNum) {
        let most = self.account.limit() / PART_OF_ACCOUNT;
        let Some(person) = self.people.get_mut(&user) else { return };
        let wanted = PERSON_BYTES + person.shown.message.as_ref().map_or(0, |message| message.len() as u64);
        let held = person.grant.bytes();
        if wanted > held {
            if self.bytes - held + wanted > most || person.grant.grow(wanted - held).is_err() {
                person.shown.message = None;
            }
        } else if wanted < held {
            person.grant.shrink(held - wanted);
        }
        self.bytes = self.bytes - held + person.grant.bytes();
    }

    /// Takes a place for somebody; false when there is none.
    fn place(&mut self, user: UserNum, server: Option<u32>, now_ms: i64, message: Option<Box<str>>) -> bool {
        let most = self.account.limit() / PART_OF_ACCOUNT;
        let bytes = PERSON_BYTES + message.as_ref().map_or(0, |message| message.len() as u64);
        loop {
            let taken = if self.bytes + bytes <= most { self.account.try_take(bytes).ok() } else { None };
            if let Some(grant) = taken {
                self.bytes += bytes;
                let shown = Presence { message, ..Presence::default() };
                let told_ms = if server.is_some() { now_ms } else { i64::MIN };
                let (devices, paid_ms) = (Vec::new(), i64::MIN);
                let person = Person { shown, serial: 0, devices, server, told_ms, paid_ms, owes: false, grant };
                self.people.insert(user, person);
                return true;
            }
            let mut gone = self.busiest(server);
            if gone.is_empty() {
                gone.extend(self.longest_gone(server));
            }
            if gone.is_empty() {
                return false;
            }
            for user in gone {
                if let Some(person) = self.people.remove(&user) {
                    self.bytes -= person.grant.bytes();
                }
            }
        }
    }

    /// Of the server with most people here, those told of least lately; none when the newcomer is that one. A sixteenth at
    /// once, so that not every newcomer needs a search of the whole table.
    fn busiest(&self, newcomer: Option<u32>) -> Vec<UserNum> {
        let held = |owner, age, key| Held { owner, within: 0, age, weight: 1, key };
        let mut all: Vec<_> = newcomer.map(|owner| held(owner, u64::MAX, None)).into_iter().collect();
        let others = self
            .people
            .iter()
            .filter_map(|(user, person)| Some(held(person.server?, person.told_ms.max(0) as u64, Some(*user))));
        all.extend(others);
        let surplus = (all.len() / PART_GIVEN_UP).max(1);
        of_the_busiest(all, surplus as u64).into_iter().flatten().collect()
    }

    /// The person of this server who was active least lately and has no sync open, for another one of this server.
    fn longest_gone(&self, newcomer: Option<u32>) -> Option<UserNum> {
        let is_idle = |person: &&Person| person.devices.iter().all(|device| device.syncing == 0);
        let ours = self.people.iter().filter(|(_, person)| newcomer.is_none() && person.server.is_none());
        let idle = ours.filter(|(_, person)| is_idle(person));
        idle.min_by_key(|(_, person)| (person.shown.status, person.shown.active_ms)).map(|(user, _)| *user)
    }
}

impl Person {
    /// What the devices of a local user come to.
    fn combine(&self, next: &mut Presence, now_ms: i64) {
        next.status = self.devices.iter().map(|device| device.status).max().unwrap_or_default();
        let syncs = self.devices.iter().any(|device| device.syncing > 0 && device.status == PresenceStatus::Online);
        let lately = next.active_ms.is_some_and(|active| active + ACTIVE_MS > now_ms);
        next.currently_active = next.status == PresenceStatus::Online && (syncs || lately);
    }

    fn outside_ms(&self, pause_ms: i64, ping_ms: i64) -> Option<i64> {
        let is_there = self.shown.status != PresenceStatus::Offline;
        let due_ms = match self.owes {
            true => Some(self.paid_ms.saturating_sub(TOLD_IN_A_ROW.saturating_sub(1).saturating_mul(pause_ms))),
            false => is_there.then(|| self.told_ms.saturating_add(ping_ms)),
        };
        due_ms.filter(|_| self.server.is_none())
    }

    /// When time will have changed something: never for who has a sync open.
    fn due_ms(&self) -> Option<i64> {
        if self.server.is_some() {
            let is_there = self.shown.status != PresenceStatus::Offline;
            return is_there.then_some(self.told_ms + FORGOTTEN_MS);
        }
        let syncs = self.devices.iter().any(|device| device.syncing > 0 && device.status == PresenceStatus::Online);
        let active = self.shown.active_ms.filter(|_| self.shown.currently_active && !syncs);
        let idle = |device: &&Device| device.syncing == 0 && device.status == PresenceStatus::Online;
        let idle = self.devices.iter().filter(idle).map(|device| device.active_ms + IDLE_MS);
        let gone = self.devices.iter().filter_map(Device::gone_ms);
        idle.chain(gone).chain(active.map(|active| active + ACTIVE_MS)).min()
    }
}

impl Device {
    /// When it will be gone without another sync; never while it has one open.
    fn gone_ms(&self) -> Option<i64> {
        let after = if self.status == PresenceStatus::Busy { BUSY_GONE_MS } else { GONE_MS };
        (self.syncing == 0).then(|| self.synced_ms.max(self.active_ms) + after)
    }
}

/// Whether anybody is told of a difference (as Synapse decides it).
fn is_news(before: &Presence, now: &Presence) -> bool {
    let active =
        now.active_ms.zip(before.active_ms).is_some_and(|(now, before)| now.saturating_sub(before) > ACTIVE_MS);
    before.message != now.message
        || before.status != now.status
        || (now.status == PresenceStatus::Online && before.currently_active != now.currently_active)
        || (active && !now.currently_active)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Budget, Profile};

    const ANNA: UserNum = UserNum(1);

    fn book() -> Book {
        Book::new(Budget::for_tests().account("ephemeral"), 1_000)
    }

    fn status(book: &Book, user: UserNum) -> (PresenceStatus, bool) {
        book.get(user).map(|shown| (shown.status, shown.currently_active)).unwrap_or_default()
    }

    #[test]
    fn time_makes_people_idle_and_gone_and_only_when_they_have_no_sync_open() {
        use PresenceStatus::{Busy, Offline, Online, Unavailable};
        let mut book = book();
        book.sync_begins(ANNA, "A", Online, 0, || Some("hello".into()));
        assert_eq!(status(&book, ANNA), (Online, true));
        assert_eq!(book.next(), (true, None), "an open sync needs no timer");
        assert_eq!(book.pass(1_000), [News { user: ANNA, is_local: true }]);
        assert_eq!(book.pass(500_000), []);
        let told = book.serial();
        book.sync_ends(ANNA, "A", 500_000);
        assert_eq!(book.next(), (false, Some(530_000)));
        book.sync_begins(ANNA, "A", Online, 501_000, || None);
        book.sync_ends(ANNA, "A", 502_000);
        assert_eq!((book.serial(), book.pass(531_000)), (told, vec![]), "the next sync is no news");
        // Another device is set to be there without syncing.
        book.set(ANNA, "B", Busy, Some("in a call".into()), 531_000);
        book.pass(532_000);
        assert_eq!((status(&book, ANNA), book.people[&ANNA].devices.len()), ((Busy, false), 1));
        book.sync_begins(ANNA, "A", Online, 540_000, || None);
        assert_eq!(status(&book, ANNA).0, Busy, "a sync leaves somebody busy");
        book.set(ANNA, "A", Unavailable, None, 541_000);
        book.set(ANNA, "B", Unavailable, None, 541_000);
        book.acted(ANNA, "A", 542_000);
        assert_eq!(status(&book, ANNA), (Online, true));
        book.sync_ends(ANNA, "A", 543_000);
        book.pass(571_000);
        assert_eq!(book.people[&ANNA].devices.len(), 1, "the other device is gone");
        assert_eq!(book.pass(573_000).len(), 1);
        assert_eq!((status(&book, ANNA), book.next()), ((Offline, false), (false, None)));
    }

    #[test]
    fn an_app_that_is_shown_as_offline_shows_nothing_by_what_it_does() {
        let mut book = book();
        book.set(ANNA, "A", PresenceStatus::Offline, None, 0);
        book.pass(1);
        let told = book.serial();
        book.acted(ANNA, "A", 200_000);
        book.acted(ANNA, "B", 400_000);
        assert_eq!((book.serial(), book.get(ANNA).unwrap().active_ms), (told, None));
        book.set(ANNA, "A", PresenceStatus::Online, None, 500_000);
        book.pass(500_001);
        book.acted(ANNA, "B", 600_000);
        assert_eq!(book.get(ANNA).unwrap().active_ms, Some(500_000), "nor beside another that is there");
    }

    #[test]
    fn who_does_nothing_is_idle() {
        let mut book = book();
        book.set(ANNA, "A", PresenceStatus::Online, None, 0);
        book.pass(10);
        // Its syncs ask for nothing to be changed but that it is there.
        for n in 1..40 {
            let person = book.people.get_mut(&ANNA).unwrap();
            person.devices[0].synced_ms = n * 10_000;
            book.pass(n * 10_000);
        }
        assert_eq!(status(&book, ANNA), (PresenceStatus::Unavailable, false));
    }

    /// Any number of people elsewhere takes the bytes of a share of the account, and no place from people here.
    #[test]
    fn people_elsewhere_take_a_fixed_number_of_bytes() {
        let budget = Budget::from_profile(Profile::named("pi-zero-2w").unwrap());
        let account = budget.account("ephemeral");
        let mut book = Book::new(account.clone(), 1_000);
        book.sync_begins(ANNA, "A", PresenceStatus::Online, 0, || None);
        let there = |message: &str| Presence {
            status: PresenceStatus::Online,
            message: Some(message.into()),
            ..Presence::default()
        };
        book.heard(UserNum(2), "friend.example", there("hi"), 1);
        for n in 10..40_010 {
            book.heard(UserNum(n), "busy.example", there("so many of us"), i64::from(n));
        }
        assert!(book.bytes <= account.limit() / PART_OF_ACCOUNT && book.people.len() > 10);
        assert!(book.has(ANNA) && book.has(UserNum(2)) && book.has(UserNum(40_009)) && !book.has(UserNum(10)));
        let held: u64 = book.people.values().map(|person| person.grant.bytes()).sum();
        assert_eq!(held, book.bytes);
        // People here take the places of people elsewhere, and then of those who left.
        for n in 50_000..60_000 {
            book.set(UserNum(n), "A", PresenceStatus::Online, Some("here".into()), i64::from(n));
        }
        assert!(book.bytes <= account.limit() / PART_OF_ACCOUNT && book.has(ANNA) && book.has(UserNum(59_999)));
        assert!(!book.has(UserNum(50_000)));
        // Nor do long messages of those who have a place take more.
        let long = "x".repeat(512);
        for n in 50_000..60_000 {
            book.set(UserNum(n), "A", PresenceStatus::Online, Some((&*long).into()), 60_000);
        }
        assert!(book.bytes <= account.limit() / PART_OF_ACCOUNT, "{} of {}", book.bytes, account.limit());
        let mut book = Book::new(account.clone(), 1_000);
        for _ in 0..3 {
            for n in 10..100 {
                book.heard(UserNum(n), "busy.example", there(&long), 1);
            }
            for n in 10..100 {
                book.heard(UserNum(n), "busy.example", there("x"), 1);
            }
            assert!(book.bytes <= account.limit() / PART_OF_ACCOUNT, "{} of {}", book.bytes, account.limit());
        }
        book.set(ANNA, "A", PresenceStatus::Online, None, 1);
        for n in 50_000..60_000 {
            book.set(UserNum(n), "A", PresenceStatus::Online, None, i64::from(n));
        }
        book.heard(UserNum(3), "new.example", there("late"), 60_000);
        assert!(!book.has(UserNum(3)), "nobody here goes for somebody elsewhere");
    }

    /// Somebody who came online and went idle a second later was online elsewhere for half a minute.
    #[test]
    fn a_few_changes_are_told_at_once_and_more_of_them_not() {
        let (pause, ping) = (30_000, 1_500_000);
        let mut book = book();
        let told = |book: &mut Book, at: i64| {
            book.owe(ANNA);
            book.told_outside(pause, ping, at).len()
        };
        book.set(ANNA, "A", PresenceStatus::Online, None, 100_000);
        assert_eq!([0, 1, 2, 3, 4].map(|n| told(&mut book, 100_000 + n)), [1, 1, 1, 0, 0]);
        assert_eq!(book.next_outside(pause, ping), Some(130_000));
        assert_eq!([130_000, 130_001, 160_000, 160_001].map(|at| told(&mut book, at)), [1, 0, 1, 0]);
        assert_eq!([400_000, 400_001, 400_002, 400_003].map(|at| told(&mut book, at)), [1, 1, 1, 0]);
    }

    #[test]
    fn who_is_not_heard_of_any_more_is_gone() {
        let mut book = book();
        let there = Presence { status: PresenceStatus::Online, currently_active: true, ..Presence::default() };
        book.heard(ANNA, "far.example", there.clone(), 0);
        book.heard(ANNA, "other.example", Presence::default(), 5);
        assert_eq!(book.next(), (true, Some(FORGOTTEN_MS)));
        assert_eq!(book.pass(10), [News { user: ANNA, is_local: false }]);
        book.heard(ANNA, "far.example", there, 60_000);
        assert_eq!(book.pass(70_000), [], "the same again");
        assert_eq!(book.pass(60_000 + FORGOTTEN_MS).len(), 1);
        assert_eq!((status(&book, ANNA), book.next()), ((PresenceStatus::Offline, false), (false, None)));
        assert_eq!((book.changed(Some(0)), book.there()), (vec![ANNA], vec![]));
    }
}

//! Users and events by their ids, while a room is built.

use std::cell::RefCell;

use ruma::{OwnedEventId, OwnedUserId, UserId};

use super::SORT_BYTES;
use super::authorize::Bodies;
use crate::budget::Grant;
use crate::matrix::{Event, RoomVersion};
use crate::room::join::error::JoinError;
use crate::room::join::order::{Scratch, take_up_to};
use crate::store::tables::room::staged::UserPrint;
use crate::store::tables::room::{body, event};
use crate::store::tables::user::{self, Met};
use crate::store::{self, BodyNum, Read, StateKeyNum, Store, UserNum};

/// Numbers by print. A user without a place in this table is looked up in the store.
pub struct Users {
    slots: Vec<Slot>,
    used: usize,
    store: Store,
    read: std::cell::OnceCell<Read>,
    _grant: Grant,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    print: [u32; 2],
    user: u32,
    key: u32,
}

impl Users {
    pub fn new(store: &Store, users: u64, scratch: &Scratch) -> Result<Users, JoinError> {
        let wanted = (users + users / 4 + 16) * size_of::<Slot>() as u64;
        // The sorters that come next need their memory.
        let left = scratch.memory.limit().saturating_sub(scratch.memory.used()).saturating_sub(SORT_BYTES);
        let grant = take_up_to(&scratch.memory, wanted.min(left), 4096)?;
        let slots = vec![Slot::default(); grant.bytes() as usize / size_of::<Slot>()];
        Ok(Users { slots, used: 0, store: store.clone(), read: Default::default(), _grant: grant })
    }

    pub fn put(&mut self, print: UserPrint, met: Met) {
        if self.used * 10 >= self.slots.len() * 9 {
            return;
        }
        let parts = [print as u32, (print >> 32) as u32];
        let mut at = self.home(print);
        while self.slots[at].user != 0 {
            if self.slots[at].print == parts {
                return;
            }
            at = (at + 1) % self.slots.len();
        }
        self.slots[at] = Slot { print: parts, user: met.user.0, key: met.member_key.0 };
        self.used += 1;
    }

    fn home(&self, print: UserPrint) -> usize {
        ((print as u32 as u64 * self.slots.len() as u64) >> 32) as usize
    }

    pub fn get(&self, print: UserPrint) -> Result<Met, JoinError> {
        let parts = [print as u32, (print >> 32) as u32];
        let mut at = self.home(print);
        while self.slots[at].user != 0 {
            let slot = self.slots[at];
            if slot.print == parts {
                return Ok(Met { user: UserNum(slot.user), member_key: StateKeyNum(slot.key) });
            }
            at = (at + 1) % self.slots.len();
        }
        if self.read.get().is_none() {
            let _ = self.read.set(self.store.read()?);
        }
        let read = self.read.get().expect("set above");
        user::met(read, print)?.ok_or(JoinError::Corrupt)
    }
}

/// Bodies and names from the store.
pub struct FromStore {
    pub store: Store,
    pub version: &'static RoomVersion,
    pub room_id: String,
    /// A snapshot and how often it was used. Renewed now and then, so that pages written meanwhile can be used again.
    pub read: RefCell<(Option<Read>, u32)>,
}

const READ_USES_MAX: u32 = 2000;

impl FromStore {
    fn with<T>(&self, f: impl FnOnce(&Read) -> store::Result<T>) -> Result<T, JoinError> {
        let mut held = self.read.borrow_mut();
        if held.1 == 0 {
            *held = (Some(self.store.read()?), READ_USES_MAX);
        }
        held.1 -= 1;
        let read = held.0.as_ref().expect("taken above");
        Ok(f(read)?)
    }
}

impl Bodies for FromStore {
    type Error = JoinError;

    fn event(&self, num: BodyNum, sender: UserNum, target: Option<UserNum>) -> Result<Event, JoinError> {
        let stored = self.with(|read| event::stored_body(read, num))?;
        let opened = body::open(&stored).ok_or(JoinError::Corrupt)?;
        let sender = self.with(|read| user::id_of(read, sender))?;
        let target = match target.filter(|_| opened.wants().target()) {
            Some(target) => self.with(|read| user::id_of(read, target))?,
            None => String::new(),
        };
        let known = body::Known { room_id: &self.room_id, sender: &sender, target: &target, ..body::Known::default() };
        let bytes = opened.restore(&known).ok_or(JoinError::Corrupt)?;
        // Authorised by its content and by the places of its auth events: neither its id nor their ids matter.
        let id = OwnedEventId::try_from("$id").map_err(|_| JoinError::Corrupt)?;
        Event::from_stored(self.version, bytes, id).map_err(|_| JoinError::Corrupt)
    }

    fn user(&self, num: UserNum) -> Result<OwnedUserId, JoinError> {
        let id = self.with(|read| user::id_of(read, num))?;
        UserId::parse(&id).map_err(|_| JoinError::Corrupt)
    }
}

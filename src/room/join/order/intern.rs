//! Event ids become small numbers on first sight, as event or as reference.
//!
//! Ids are hashes that a remote server can grind, so they are told apart by 96 bits of a SipHash under a key drawn for
//! this join, never by a prefix. A slot is 16 bytes; the table grows while its account lets it. Once the account is
//! empty it turns into a cache: a forgotten id gets a second number, and `Order` merges the doubles afterwards.

use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;

use crate::budget::{Account, Grant, Refused};

/// A node of the join graph: an event, or an id that an event refers to.
pub type Node = u32;

/// The table's entry for an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Before(Node),
    First(Node),
}

impl Seen {
    pub fn node(self) -> Node {
        match self {
            Seen::Before(node) | Seen::First(node) => node,
        }
    }
}

/// `print[0]` decides the place; a `mark` of zero is an empty slot, else `node + 1` with the recently-used bit.
#[derive(Clone, Copy, Default)]
struct Slot {
    print: [u32; 3],
    mark: u32,
}

const SLOT_BYTES: u64 = size_of::<Slot>() as u64;
const USED_RECENTLY: u32 = 1 << 31;
/// Slots that a full table looks at before it forgets an id.
const WINDOW: usize = 8;
/// Nodes are kept beside two tag bits in `Order`, hence the bound: a billion of anything fits no board.
pub const NODES_MAX: u32 = (1 << 30) - 2;
const SLOTS_MIN: usize = 64;

/// The table. Bounded by its grant.
pub struct Intern {
    key: [u8; 16],
    slots: Vec<Slot>,
    used: usize,
    nodes: u32,
    /// Some id may have two numbers.
    forgetful: bool,
    account: Account,
    grant: Grant,
}

impl Intern {
    /// Sized for `nodes_expected` where the account allows it, and for at least a handful.
    pub fn new(key: [u8; 16], nodes_expected: u64, account: &Account) -> Result<Intern, Refused> {
        let mut slots = usize::try_from(nodes_expected + nodes_expected / 3).unwrap_or(usize::MAX >> 8).max(SLOTS_MIN);
        let grant = loop {
            match account.try_take(slots as u64 * SLOT_BYTES) {
                Ok(grant) => break grant,
                Err(refused) if slots == SLOTS_MIN => return Err(refused),
                Err(_) => slots = (slots / 4 * 3).max(SLOTS_MIN),
            }
        };
        Ok(Intern {
            key,
            slots: vec![Slot::default(); slots],
            used: 0,
            nodes: 0,
            forgetful: false,
            account: account.clone(),
            grant,
        })
    }

    /// Node numbers given out so far.
    pub fn nodes(&self) -> u32 {
        self.nodes
    }

    /// Whether some id may have been given two numbers.
    pub fn is_forgetful(&self) -> bool {
        self.forgetful
    }

    /// The number of an id if it is remembered.
    pub fn find(&self, id: &[u8]) -> Option<Node> {
        let print = self.print(id);
        self.probe(&print).ok().map(|at| (self.slots[at].mark & !USED_RECENTLY) - 1)
    }

    /// The number of an id, given out now if it is new (or forgotten). `None` when there are no numbers left.
    pub fn node(&mut self, id: &[u8]) -> Option<Seen> {
        let print = self.print(id);
        if let Ok(at) = self.probe(&print) {
            self.slots[at].mark |= USED_RECENTLY;
            return Some(Seen::Before((self.slots[at].mark & !USED_RECENTLY) - 1));
        }
        if self.nodes == NODES_MAX {
            return None;
        }
        if !self.forgetful && self.used * 8 >= self.slots.len() * 7 {
            self.grow();
        }
        let node = self.nodes;
        self.nodes += 1;
        self.insert(Slot { print, mark: node + 1 });
        Some(Seen::First(node))
    }

    /// Gives the next number to an id whether it is remembered or not: how a log is read back, whose writer may have
    /// forgotten what this table remembers. An id it remembers keeps its first number here.
    pub fn next(&mut self, id: &[u8]) -> Option<Node> {
        match self.node(id)? {
            Seen::First(node) => Some(node),
            Seen::Before(_) if self.nodes == NODES_MAX => None,
            Seen::Before(_) => {
                self.nodes += 1;
                self.forgetful = true;
                Some(self.nodes - 1)
            }
        }
    }

    fn print(&self, id: &[u8]) -> [u32; 3] {
        let mut hasher = SipHasher13::new_with_key(&self.key);
        hasher.write(id);
        let hash = hasher.finish128();
        [hash.h1 as u32, (hash.h1 >> 32) as u32, hash.h2 as u32]
    }

    /// The slot of a print, or the empty slot (or, in a full window, the home slot) where it would go.
    fn probe(&self, print: &[u32; 3]) -> Result<usize, usize> {
        let home = ((u64::from(print[0]) * self.slots.len() as u64) >> 32) as usize;
        let window = if self.forgetful { WINDOW } else { self.slots.len() };
        for step in 0..window {
            let at = (home + step) % self.slots.len();
            let slot = &self.slots[at];
            if slot.mark == 0 {
                return Err(at);
            }
            if slot.print == *print {
                return Ok(at);
            }
        }
        Err(home)
    }

    fn insert(&mut self, slot: Slot) {
        let Err(at) = self.probe(&slot.print) else { return };
        if self.slots[at].mark == 0 {
            self.used += 1;
            self.slots[at] = slot;
        } else {
            let victim = self.victim(at);
            self.slots[victim] = slot;
        }
    }

    /// The first slot of the window without a recent use; the slots passed over lose their recently-used bit.
    fn victim(&mut self, home: usize) -> usize {
        for step in 0..WINDOW {
            let at = (home + step) % self.slots.len();
            if self.slots[at].mark & USED_RECENTLY == 0 {
                return at;
            }
            self.slots[at].mark &= !USED_RECENTLY;
        }
        home
    }

    /// Half as large again, or forgetful from now on. Both tables are on account while the slots move.
    fn grow(&mut self) {
        let slots = self.slots.len() + self.slots.len() / 2;
        let Ok(grant) = self.account.try_take(slots as u64 * SLOT_BYTES) else {
            self.forgetful = true;
            return;
        };
        let old = std::mem::replace(&mut self.slots, vec![Slot::default(); slots]);
        self.used = 0;
        for slot in old.into_iter().filter(|slot| slot.mark != 0) {
            self.insert(slot);
        }
        self.grant = grant;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;

    fn ids(n: u32) -> impl Iterator<Item = [u8; 32]> {
        (0..n).map(|n| {
            let mut id = [7; 32]; // one prefix for all: the hash must not care
            id[28..].copy_from_slice(&n.to_be_bytes());
            id
        })
    }

    #[test]
    fn every_id_keeps_its_number_while_the_table_can_grow() {
        let mut intern = Intern::new([3; 16], 10, &Budget::for_tests().account("join")).unwrap();
        for (n, id) in ids(5000).enumerate() {
            assert_eq!(intern.node(&id), Some(Seen::First(n as u32)));
        }
        for (n, id) in ids(5000).enumerate() {
            assert_eq!(intern.node(&id), Some(Seen::Before(n as u32)));
            assert_eq!(intern.find(&id), Some(n as u32));
        }
        assert!(!intern.is_forgetful());
        assert_eq!(intern.find(b"stranger"), None);
    }

    #[test]
    fn a_full_table_forgets_but_never_mixes_up() {
        let account = Budget::for_tests().account("join");
        let _rest = account.try_take(account.limit() - account.used() - 3000).unwrap();
        let mut intern = Intern::new([3; 16], 1_000_000, &account).unwrap();
        let mut of = std::collections::HashMap::new();
        for id in ids(2000).chain(ids(2000)) {
            match intern.node(&id).unwrap() {
                Seen::Before(node) => assert_eq!(of[&node], id),
                Seen::First(node) => assert!(of.insert(node, id).is_none()),
            }
        }
        assert!(intern.is_forgetful());
        assert!(intern.nodes() > 2000);
    }

    #[test]
    fn what_is_asked_for_often_is_not_forgotten() {
        let account = Budget::for_tests().account("join");
        let _rest = account.try_take(account.limit() - account.used() - 3000).unwrap();
        let mut intern = Intern::new([3; 16], 1_000_000, &account).unwrap();
        let mut again = 0;
        for id in ids(3000) {
            intern.node(&id);
            again += u32::from(matches!(intern.node(b"create"), Some(Seen::First(_))));
        }
        assert!(again < 100, "a hot id was forgotten {again} times");
    }
}

//! Which ids a join has met, and which of them it has stored: the numbers of the log's nodes.

use parking_lot::RwLock;

use super::order::{Intern, Node, Seen};
use crate::budget::{Account, Grant, Refused};
use crate::store::tables::room::event_row::Id;

/// Shared by the workers, which read, and the one thread that stores, which writes.
pub struct Graph(RwLock<Inner>);

struct Inner {
    intern: Intern,
    /// A bit for each node: its event is stored; this body has it in the state.
    stored: Bits,
    in_state: Bits,
}

/// An id in the table's form: a hash as it is, anything else as text, told apart by length or by a byte.
pub fn with_bytes<T>(id: &Id, f: impl FnOnce(&[u8]) -> T) -> T {
    match id {
        Id::Hash(hash) => f(hash),
        Id::HashStandard(hash) => {
            let mut bytes = [1; 33];
            bytes[1..].copy_from_slice(hash);
            f(&bytes)
        }
        Id::Named(name) => f(name.as_bytes()),
    }
}

impl Graph {
    pub fn new(key: [u8; 16], nodes_expected: u64, account: &Account) -> Result<Graph, Refused> {
        let intern = Intern::new(key, nodes_expected, account)?;
        Ok(Graph(RwLock::new(Inner { intern, stored: Bits::new(account)?, in_state: Bits::new(account)? })))
    }

    /// Whether the event is stored already, as far as is remembered.
    pub fn has(&self, id: &Id) -> bool {
        let inner = self.0.read();
        with_bytes(id, |bytes| inner.intern.find(bytes)).is_some_and(|node| inner.stored.get(node))
    }

    /// Calls `f` with the table locked. Must be short: workers wait meanwhile.
    pub fn with<T>(&self, f: impl FnOnce(&mut Open<'_>) -> T) -> T {
        let mut inner = self.0.write();
        f(&mut Open(&mut inner))
    }

    pub fn nodes(&self) -> u32 {
        self.0.read().intern.nodes()
    }

    pub fn is_forgetful(&self) -> bool {
        self.0.read().intern.is_forgetful()
    }
}

/// The table, locked for one thread.
pub struct Open<'a>(&'a mut Inner);

impl Open<'_> {
    /// The id's node; `None` when there are more than can be counted.
    pub fn node(&mut self, id: &Id) -> Option<Seen> {
        with_bytes(id, |bytes| self.0.intern.node(bytes))
    }

    /// Gives this id the next node, as the log says, whatever the table remembers.
    pub fn again(&mut self, id: &Id) -> Option<Node> {
        with_bytes(id, |bytes| self.0.intern.next(bytes))
    }

    pub fn is_stored(&self, node: Node) -> bool {
        self.0.stored.get(node)
    }

    pub fn set_stored(&mut self, node: Node) -> Result<(), Refused> {
        self.0.stored.set(node)
    }

    /// True when it was not known before.
    pub fn set_in_state(&mut self, node: Node) -> Result<bool, Refused> {
        let new = !self.0.in_state.get(node);
        self.0.in_state.set(node)?;
        Ok(new)
    }
}

/// A bit for each number, on account.
pub struct Bits {
    words: Vec<u64>,
    grant: Grant,
}

const STEP_WORDS: usize = 512;

impl Bits {
    pub fn new(account: &Account) -> Result<Bits, Refused> {
        Ok(Bits { words: Vec::new(), grant: account.try_take(0)? })
    }

    pub fn get(&self, at: u32) -> bool {
        self.words.get(at as usize / 64).is_some_and(|word| word >> (at % 64) & 1 != 0)
    }

    pub fn set(&mut self, at: u32) -> Result<(), Refused> {
        let word = at as usize / 64;
        if word >= self.words.len() {
            let words = (word + 1).next_multiple_of(STEP_WORDS).max(self.words.len() + self.words.len() / 4);
            self.grant.grow(((words - self.words.len()) * 8) as u64)?;
            self.words.reserve_exact(words - self.words.len());
            self.words.resize(words, 0);
        }
        self.words[word] |= 1 << (at % 64);
        Ok(())
    }
}

//! Everything that changes or reads a room.
//!
//! `append.rs` is the one door in; nothing but it (and the flip of a big join) makes an event part of a room. Read `mod.rs` for
//! what one can ask, then `send.rs` → `append.rs`; `receive.rs` for what other servers send; `join/` and `order/` for the big
//! join. Reading is `read.rs` (pages, cursors) and `share.rs` (a room's share of a sync).

use std::path::PathBuf;
use std::sync::Arc;

use ruma::OwnedServerName;

use crate::base::{Clock, Random};
use crate::budget::Budget;
use crate::feed::Feed;
use crate::matrix::sign;
use crate::remote::Remote;
use crate::store::Store;

mod lock;
pub mod order;

/// What the rooms are built from.
pub struct Parts {
    pub store: Store,
    pub feed: Feed,
    pub clock: Clock,
    pub random: Random,
    pub budget: Budget,
    pub remote: Remote,
    pub server: OwnedServerName,
    pub key: Arc<sign::Key>,
    /// Where spill files may lie.
    pub scratch: PathBuf,
}

/// The rooms. Cheap to clone.
#[derive(Clone)]
pub struct Rooms(Arc<Inner>);

struct Inner {
    parts: Parts,
    locks: lock::Locks,
}

impl Rooms {
    pub fn new(parts: Parts) -> Rooms {
        Rooms(Arc::new(Inner { parts, locks: lock::Locks::default() }))
    }
}

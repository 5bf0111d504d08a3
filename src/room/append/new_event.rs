//! The input of an append: an event, its place, and its outcome.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use ruma::OwnedServerName;

use super::rules_cache;
use crate::matrix::Event;
use crate::room::state::fork::Current;
use crate::store::tables::room::event_row::{Flags, Root};
use crate::store::tables::room::txn::Txn;
use crate::store::{EventNum, Position, RoomNum};

/// The server and the time, for the parts of a write that depend on more than the event.
#[derive(Clone)]
pub struct Here {
    /// This server: its users are the local ones.
    pub server: OwnedServerName,
    pub now_ms: u64,
    /// The push rules of its users.
    pub rules: Arc<rules_cache::Rules>,
    /// Whoever leaves a room forgets it too.
    pub forgets: bool,
    /// For how long moderators see what redacted events said.
    pub redacted_kept_ms: u64,
    pub counts: Arc<Counts>,
}

/// Events that entered rooms since the start.
#[derive(Default)]
pub struct Counts {
    /// Of people here.
    pub sent: AtomicU64,
    pub received: AtomicU64,
}

impl Here {
    pub fn is_local(&self, user_id: &str) -> bool {
        server_of(user_id) == self.server.as_str()
    }
}

/// The server of a user id: the part behind the first colon.
pub fn server_of(user_id: &str) -> &str {
    user_id.split_once(':').map_or("", |(_, server)| server)
}

/// The state before the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// The room's state when the write runs: for events that follow all extremities.
    Present,
    /// A tree that exists already: for events that came in elsewhere in the history.
    At(Root),
    /// Not known: outliers.
    Unknown,
}

/// Where the event stands in the timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At its end.
    Newest,
    /// Before everything we have: fetched by backfilling, newest first.
    Older,
    /// In the hole with this bottom, newest first.
    InHole(i64),
    /// Outside: an outlier.
    Nowhere,
}

/// A checked event on its way in.
#[derive(Clone, Debug)]
pub struct Append {
    pub room: RoomNum,
    pub event: Event,
    /// `rejected` and `soft_failed` as the checks found. `outlier` follows from the place, `redacted` from the stored
    /// rows.
    pub flags: Flags,
    pub before: Before,
    pub current: Current,
    pub place: Place,
    /// The device's transaction, for events sent here by a client.
    pub txn: Option<Txn>,
    /// Post it to other servers: for our own events.
    pub outbound: bool,
    /// For an event built in the write that appends it, upon all ends of the room: the numbers of its auth events in its
    /// own order. No other event names its id yet, and whatever it names is here.
    pub cites: Option<Vec<EventNum>>,
}

impl Append {
    /// An accepted event that follows all extremities, as ours do.
    pub fn next(room: RoomNum, event: Event) -> Append {
        Append {
            room,
            event,
            flags: Flags::default(),
            before: Before::Present,
            current: Current::Follow,
            place: Place::Newest,
            txn: None,
            outbound: false,
            cites: None,
        }
    }

    /// An outlier: state and auth events of a join, late auth events.
    pub fn outlier(room: RoomNum, event: Event) -> Append {
        Append { before: Before::Unknown, current: Current::Keep, place: Place::Nowhere, ..Append::next(room, event) }
    }

    pub fn is_shown(&self) -> bool {
        !self.flags.rejected && !self.flags.soft_failed && self.place != Place::Nowhere
    }

    /// Whether the event takes part in the room's state from now on.
    pub fn is_new(&self) -> bool {
        self.is_shown() && self.place == Place::Newest
    }
}

/// An event that was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    pub num: EventNum,
    /// Its place in the timeline, when it is shown.
    pub order: Option<i64>,
    pub at: Position,
}

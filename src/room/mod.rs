//! Everything that changes or reads a room.
//!
//! Owns the events, timelines, states, memberships, counts, relations, receipts and aliases of every room, and posts to
//! the outbound log. Never calls `user`: what both need (who has which number, push rules) is read from the store. Never
//! decides what a surface answers.
//!
//! Changes are async procedures of [`Rooms`]: they take the room's lock, read, judge and write in blocking jobs. Reads
//! are plain functions over a store [`Read`](crate::store::Read), to be called where blocking is allowed, and show only
//! what the asking user may see; what a room decides the length of comes as [`Chunks`](crate::base::Chunks).
//!
//! Reading order: `append.rs` (the one door into a room: what is true once an event exists), `lock.rs`, `snapshot.rs`
//! (the state before and after), `send.rs` (a local event: build, judge, append), `membership.rs` and `create.rs`
//! (which are made of sends), `read.rs` and `format.rs` (what is seen, and how it is written), then the small ones:
//! `redact.rs`, `unread.rs`, `receipt.rs`, `typing.rs`, `alias.rs`, `directory.rs`.

mod alias;
mod append;
mod create;
mod directory;
mod format;
mod lock;
mod membership;
mod read;
mod receipt;
mod redact;
mod send;
mod snapshot;
mod typing;
mod unread;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use ruma::{OwnedServerName, ServerName, UserId};

use crate::base::{Clock, Random};
use crate::budget::Refused;
use crate::feed::Feed;
use crate::matrix::{Reject, RoomVersion, sign, version};
use crate::store::{self, Changes, RoomNum, Store, Write, WriteError};

pub use alias::Alias;
pub use append::{Append, Before, Current, Done, Place, append, set_present_state};
pub use create::{Create, Invite3pid, Preset, Visibility};
pub use directory::{PublicPage, PublicQuery};
pub use format::{Format, write_event, write_stripped};
pub use lock::{Guard, Locks};
pub use membership::Member;
pub use read::{
    Context, Delta, Direction, Filter, MemberChunks, MemberQuery, Page, PageQuery, StateChunks, Summary, Timeline, Token,
    Viewer,
};
pub use receipt::{Receipts, Unread};
pub use send::{Sending, Txn};
pub use snapshot::{Fork, State};
pub use typing::Typing;

/// What the rooms are made from. `serve` fills it in, bottom to top.
pub struct Parts {
    pub store: Store,
    pub feed: Feed,
    pub clock: Clock,
    pub random: Random,
    /// This server's name: whose users are local.
    pub server: OwnedServerName,
    pub key: Arc<sign::Key>,
}

/// The rooms. Cloning is cheap and gives the same ones.
#[derive(Clone)]
pub struct Rooms(Arc<Inner>);

/// What the files of this part share.
struct Inner {
    store: Store,
    feed: Feed,
    clock: Clock,
    random: Random,
    server: OwnedServerName,
    key: Arc<sign::Key>,
    locks: Locks,
    typing: Typing,
}

impl Rooms {
    pub fn new(parts: Parts) -> Self {
        let typing = Typing::new(parts.clock.clone());
        let Parts { store, feed, clock, random, server, key } = parts;
        Rooms(Arc::new(Inner { store, feed, clock, random, server, key, locks: Locks::default(), typing }))
    }

    /// This server's name.
    pub fn server(&self) -> &ServerName {
        &self.0.server
    }

    /// Whether a user belongs to this server, account or not.
    pub fn is_local(&self, user: &UserId) -> bool {
        user.server_name() == self.0.server
    }

    /// A snapshot to read from.
    pub fn store(&self) -> &Store {
        &self.0.store
    }

    /// Waits for a room's turn. Whoever changes a room holds its guard; see `lock.rs`.
    pub async fn lock(&self, room: RoomNum) -> Guard {
        self.0.locks.lock(room).await
    }

    /// Writes, and announces what the commit made known.
    pub async fn write<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Write<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (done, changes) = self.0.store.write(job).await.map_err(|failed| match failed {
            WriteError::Job(refused) => refused,
            WriteError::Store(failed) => Error::Store(failed),
        })?;
        self.published(&changes);
        Ok(done)
    }

    fn published(&self, changes: &Changes) {
        self.0.feed.publish(changes);
    }
}

/// The rules of a room version we know.
fn version_of(id: &str) -> Result<&'static RoomVersion> {
    version::get(id).ok_or_else(|| Error::UnsupportedVersion(id.to_owned()))
}

/// What can go wrong with a room. Each surface turns it into its own status and code.
#[derive(Debug)]
pub enum Error {
    /// No such room, event, state or alias, or not for this user to know of (`M_NOT_FOUND`).
    NotFound(&'static str),
    /// The user may not do or see this (`M_FORBIDDEN`).
    Forbidden(String),
    /// The request makes no sense (`M_INVALID_PARAM`).
    Invalid(String),
    /// The rules or the format say no: `M_FORBIDDEN`, `M_BAD_JSON` or `M_TOO_LARGE` by its kind.
    Reject(Reject),
    /// The alias is taken (`M_ROOM_IN_USE`).
    AliasInUse,
    /// The alias in a canonical alias event does not lead to the room (`M_BAD_ALIAS`).
    BadAlias(String),
    /// We cannot take part in rooms of this version (`M_UNSUPPORTED_ROOM_VERSION`, or `M_INCOMPATIBLE_ROOM_VERSION`).
    UnsupportedVersion(String),
    /// The first state of a new room contradicts itself (`M_INVALID_ROOM_STATE`).
    InvalidState(String),
    /// None of the servers that could help did (502, or `M_NOT_FOUND` when there was none to ask).
    Unreachable(String),
    /// More than this board or its owner takes on (`M_RESOURCE_LIMIT_EXCEEDED`).
    TooBig(String),
    /// No memory for it now.
    Refused(Refused),
    /// Our own database failed.
    Store(store::Error),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<store::Error> for Error {
    fn from(failed: store::Error) -> Self {
        Error::Store(failed)
    }
}

impl From<Reject> for Error {
    fn from(reject: Reject) -> Self {
        Error::Reject(reject)
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Error::Refused(refused)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::NotFound(what) => write!(f, "{what} not found"),
            Error::Forbidden(why) | Error::Invalid(why) | Error::BadAlias(why) | Error::InvalidState(why) => {
                f.write_str(why)
            }
            Error::Reject(reject) => reject.fmt(f),
            Error::AliasInUse => f.write_str("that alias is taken"),
            Error::UnsupportedVersion(version) => write!(f, "room version {version:?} is not known here"),
            Error::Unreachable(why) | Error::TooBig(why) => f.write_str(why),
            Error::Refused(refused) => refused.fmt(f),
            Error::Store(failed) => failed.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

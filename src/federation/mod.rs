//! The server-server API: the endpoints that other servers call.
//!
//! `auth.rs` finds out which server asks (`lookup.rs`: in which line it waits when its key is not here); then a file
//! per endpoint family, listed in `routes.rs`; `rates.rs`: how
//! often one server may do what; `error.rs` turns the errors of the parts below into answers.

use std::path::PathBuf;
use std::sync::Arc;

use ruma::OwnedServerName;

use crate::base::{Clock, KeyedLock, Live};
use crate::budget::{Account, Budget};
use crate::matrix::sign;
use crate::media::Media;
use crate::remote::Remote;
use crate::room::Rooms;
use crate::user::Users;

pub mod auth;
mod calls;
mod error;
pub mod gateway;
mod history;
pub mod key;
mod lookup;
mod media;
mod membership;
pub mod postage;
mod query;
mod rates;
pub mod routes;
pub mod send;
mod space;
mod state;
#[cfg(test)]
mod tests;
mod user;

pub use error::Error;
pub use lookup::Lookups;

/// A former signing key of this server.
#[derive(Debug, Clone)]
pub struct OldKey {
    pub id: String,
    pub public: sign::PublicKey,
    pub expired_ms: u64,
}

/// The parts that the handlers use.
pub struct Federation {
    pub rooms: Rooms,
    pub users: Users,
    pub media: Media,
    pub remote: Remote,
    pub clock: Clock,
    pub budget: Budget,
    /// Pays for answers that are made whole (`response_bodies`).
    pub answers: Account,
    pub server_name: OwnedServerName,
    pub key: Arc<sign::Key>,
    pub old_keys: Vec<OldKey>,
    /// The directory for bodies too long for memory.
    pub scratch: PathBuf,
    /// Turns to look up servers that callers name.
    pub lookups: Lookups,
    /// The allowances for EDUs.
    pub postage: postage::Postage,
    /// The servers with a transaction under way.
    pub senders: KeyedLock,
    /// Transactions that were answered already.
    pub transactions: send::transaction::Transactions,
    /// `host:port` served at `/.well-known/matrix/server`; none: 404.
    pub well_known_server: Live<Option<String>>,
}

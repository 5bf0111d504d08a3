//! What other servers call: the server-server API.
//!
//! `auth.rs` says which server asks (`lookup.rs`: in which line it stands when its key is not here); then a file per endpoint family, listed in `routes.rs`; `error.rs` turns the errors of the
//! parts below into answers.

use std::path::PathBuf;
use std::sync::Arc;

use ruma::OwnedServerName;

use crate::base::{Clock, KeyedLock};
use crate::budget::{Account, Budget};
use crate::matrix::sign;
use crate::media::Media;
use crate::remote::Remote;
use crate::room::Rooms;
use crate::user::Users;

pub mod auth;
mod error;
mod history;
pub mod key;
mod lookup;
mod media;
mod membership;
pub mod postage;
mod query;
pub mod routes;
pub mod send;
mod state;
#[cfg(test)]
mod tests;
mod user;

pub use error::Error;
pub use lookup::Lookups;

/// A key this server signed with before.
#[derive(Debug, Clone)]
pub struct OldKey {
    pub id: String,
    pub public: sign::PublicKey,
    pub expired_ms: u64,
}

/// What the handlers are given.
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
    /// Where bodies too long for memory are put for a moment.
    pub scratch: PathBuf,
    /// Turns to look for servers that callers name.
    pub lookups: Lookups,
    /// What small messages may carry.
    pub postage: postage::Postage,
    /// Who has a transaction under way.
    pub senders: KeyedLock,
    /// Transactions answered already.
    pub transactions: send::transaction::Transactions,
    /// `host:port` told at `/.well-known/matrix/server`; none: 404.
    pub well_known_server: Option<String>,
}

//! The client-server API.
//!
//! `routes.rs` lists every endpoint. An endpoint, or a family of close ones, is a file. `auth.rs` authenticates
//! requests. `error.rs` turns the errors of the parts below into answers, and lists those that all endpoints share.
//! `rates.rs`
//! says how often one caller may do what. `sync/` is the longest part.

use std::path::PathBuf;
use std::sync::Arc;

use crate::base::{Clock, Lane, Live, Random};
use crate::budget::Budget;
use crate::feed::Feed;
use crate::flow::Notices;
use crate::matrix::version;
use crate::media::Media;
use crate::room::Rooms;
use crate::user::Users;

mod admin;
mod server;
mod service;
mod account;
mod auth;
mod error;
mod guests;
mod dehydrated_device;
mod calls;
mod keys;
mod presence;
mod room_keys;
mod to_device;
pub mod rates;
mod report;
pub mod media;
mod preview;
mod sync;
mod terms;
mod third_party;
pub mod routes;
mod search;
mod synapse;
mod room;

pub use crate::user::{Calls, LiveKit, PresenceMode, TurnLogin};
pub use auth::{Requester, requester};
pub use error::Error;
pub use server::{Contact, Support};
pub use synapse::Nonces;
#[cfg(test)]
pub(crate) use sync::v3::tests::synced;
pub use terms::{PATH as TERMS_PATH, Policy, PolicyPlace, PolicyText, TEXT_BYTES_MAX as TERMS_BYTES_MAX, Terms};

/// Largest body of a request without an access token, in bytes: a name, a password and a description of the app.
const STRANGER_BYTES_MAX: u64 = 16 * 1024;

/// The condition for making an account over the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Registration {
    /// Anybody may make an account.
    Open,
    /// Registration is off; the server's owner makes accounts with `snug user add`.
    #[default]
    Closed,
    /// One of the registration tokens is needed.
    Token,
}

/// The settings that concern apps.
#[derive(Debug, Clone, Default)]
pub struct Options {
    pub registration: Registration,
    /// The tokens of [`Registration::Token`].
    pub registration_tokens: Vec<String>,
    /// The secret with which `register_new_matrix_user` makes accounts.
    pub registration_shared_secret: Option<String>,
    /// Whether administrators have Synapse's administration API.
    pub synapse_admin_api: bool,
    /// Whether anybody may be a guest here.
    pub guests: bool,
    /// The `https://…` in `/.well-known/matrix/client`. Without it that endpoint answers 404.
    pub public_url: Option<String>,
    /// Whose presence is told to whom.
    pub presence: PresenceMode,
    /// Servers that carry calls.
    pub calls: Calls,
    /// The version of a new room for which the app names none; when absent, [`version::DEFAULT`].
    pub room_version: Option<&'static str>,
    /// The user directory finds every user of this server, not only those whom the searching user could meet.
    pub search_all_users: bool,
    /// How long an access token lasts that its app refreshes.
    pub access_token_lifetime_ms: u64,
    pub terms: Terms,
    pub support: Support,
}

/// A version of which rooms are made here.
pub fn room_version(name: &str) -> Option<&'static str> {
    version::get_offered(name).map(|version| version.id)
}

impl Options {
    fn room_version(&self) -> &'static str {
        self.room_version.unwrap_or(version::DEFAULT)
    }

    /// How long the access token of a new session lasts; as long as the session, for an app that does not refresh it.
    pub fn lifetime_ms(&self, refreshes: bool) -> Option<u64> {
        refreshes.then_some(self.access_token_lifetime_ms)
    }
}

impl Client {
    /// The settings in force.
    pub fn options(&self) -> Arc<Options> {
        self.settings.get()
    }
}

/// The parts that the handlers use.
pub struct Client {
    pub rooms: Rooms,
    pub users: Users,
    pub notices: Notices,
    pub media: Media,
    pub feed: Feed,
    pub clock: Clock,
    pub random: Random,
    pub budget: Budget,
    /// What [`Client::options`] gives.
    pub settings: Live<Options>,
    /// Runs what syncs read.
    pub looks: Lane,
    /// The folder for scratch files.
    pub scratch: PathBuf,
    /// Of registrations with the shared secret.
    pub nonces: Nonces,
}

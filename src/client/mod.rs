//! What apps call: the client-server API.
//!
//! `routes.rs` lists every endpoint; an endpoint or a close family is a file. `auth.rs` says who asks, `error.rs` turns the
//! errors of the parts below into answers. `sync/` is the long one.

use crate::base::{Clock, Random};
use crate::budget::Budget;
use crate::feed::Feed;
use crate::media::Media;
use crate::room::Rooms;
use crate::user::Users;

mod server;
mod account;
mod auth;
mod error;
mod keys;
pub mod media;
mod sync;
pub mod routes;
mod room;

pub use auth::{Requester, requester};
pub use error::Error;

/// Largest body of who has not shown a token yet, in bytes: a name, a password and what an app says of itself.
const STRANGER_BYTES_MAX: u64 = 16 * 1024;

/// Who may make an account over the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registration {
    /// Anybody who reaches the server.
    Open,
    /// Nobody; the owner makes accounts with `snug user add`.
    Closed,
    /// Who knows one of these tokens.
    Token(Vec<String>),
}

/// The settings apps are told of or feel.
#[derive(Debug, Clone)]
pub struct Options {
    pub registration: Registration,
    /// `https://…` that apps are told in `/.well-known/matrix/client`; none: not told.
    pub public_url: Option<String>,
}

/// What the handlers are given.
pub struct Client {
    pub rooms: Rooms,
    pub users: Users,
    pub media: Media,
    pub feed: Feed,
    pub clock: Clock,
    pub random: Random,
    pub budget: Budget,
    pub options: Options,
}

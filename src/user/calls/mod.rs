//! What calls need of a server that carries none of them: credentials for a TURN server, proof to others of who somebody is,
//! and tokens for a LiveKit media server.
//!
//! Nothing here is stored: each is a text that its reader checks with a key, and that ends by itself.
//!
//! `openid.rs`: who somebody is; `turn.rs`: TURN; `livekit.rs`: LiveKit (MSC4195).

use std::sync::Arc;

use parking_lot::RwLock;
use ring::hmac;

use crate::base::Random;

pub mod livekit;
pub mod openid;
pub mod turn;

pub use livekit::{LiveKit, Member as CallMember};
pub use turn::{OwnRelay, Turn, TurnLogin};

/// The settings.
#[derive(Debug, Clone, Default)]
pub struct Calls {
    pub turn: Turn,
    /// Token services of other LiveKit servers that apps may use, the best first.
    pub service_urls: Vec<String>,
    pub livekit: Option<LiveKit>,
}

/// What is kept in memory of it.
pub(super) struct Desk {
    calls: RwLock<Arc<Calls>>,
    /// Signs OpenID tokens, which end with the process at the latest.
    openid: hmac::Key,
}

impl Desk {
    pub(super) fn new(random: &Random) -> Desk {
        let mut secret = [0; 32];
        random.fill(&mut secret);
        Desk { calls: RwLock::default(), openid: hmac::Key::new(hmac::HMAC_SHA256, &secret) }
    }
}

impl super::Users {
    /// Sets what calls may use. Before the first request, and when the settings were read again. The relay inside stays as
    /// it was, unless they say what it is now.
    pub fn set_calls(&self, mut calls: Calls) {
        let mut place = self.0.desk.calls.write();
        if calls.turn.own.is_none() {
            calls.turn.own = place.turn.own.clone();
        }
        *place = Arc::new(calls);
    }

    pub fn calls(&self) -> Arc<Calls> {
        self.0.desk.calls.read().clone()
    }
}

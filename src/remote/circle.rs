//! The known servers: those with users in a room with local users. Memory and disk they fill are charged apart from
//! unknown servers (strangers).
//!
//! Looked up in the store, and remembered for a while.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use parking_lot::{Mutex, MutexGuard};
use ruma::ServerName;

use super::Remote;
use crate::base::shares::neighbourhood;
use crate::base::{Clock, Owner, Shares, blocking};
use crate::store::tables::room::member;
use crate::store::{self, Store};

/// Servers whose standing is remembered, about 60 bytes each.
const KNOWN_MAX: usize = 512;
const STRANGERS_MAX: usize = 512;
/// Looked up again after so long, so that a stranger may soon count as known.
const KNOWN_MS: u64 = 3_600_000;
const STRANGER_MS: u64 = 60_000;

pub(super) struct Circle {
    store: Store,
    clock: Clock,
    hasher: RandomState,
    seen: Mutex<Shares<u64, Seen>>,
}

#[derive(Clone, Copy)]
struct Seen {
    is_known: bool,
    until_ms: u64,
}

impl Circle {
    pub(super) fn new(store: Store, clock: Clock) -> Circle {
        let seen = Mutex::new(Shares::new(KNOWN_MAX, STRANGERS_MAX));
        Circle { store, clock, hasher: RandomState::new(), seen }
    }

    /// The remembered result; a stranger when the server was not looked up. Does not read the store.
    pub(super) fn remembered(&self, server: &ServerName) -> Owner<String> {
        owner(server, self.lately(server).is_some_and(|seen| seen.is_known))
    }

    /// Looks the server up in the store when it is not remembered. Plain code for blocking threads.
    pub(super) fn look(&self, server: &ServerName) -> store::Result<bool> {
        if let Some(seen) = self.lately(server) {
            return Ok(seen.is_known);
        }
        let is_known = member::shares_room(&self.store.read()?, server.as_str())?;
        let until_ms = self.clock.now_ms() + if is_known { KNOWN_MS } else { STRANGER_MS };
        let seen = Seen { is_known, until_ms };
        self.seen().put(owner(server, is_known), self.hasher.hash_one(server.as_str()), seen);
        Ok(is_known)
    }

    fn lately(&self, server: &ServerName) -> Option<Seen> {
        let now_ms = self.clock.now_ms();
        let seen = self.seen().get(&self.hasher.hash_one(server.as_str())).copied();
        seen.filter(|seen| seen.until_ms > now_ms)
    }

    fn seen(&self) -> MutexGuard<'_, Shares<u64, Seen>> {
        self.seen.lock()
    }
}

/// The share that is charged for a server: each known server has its own, strangers share one by neighbourhood.
fn owner(server: &ServerName, is_known: bool) -> Owner<String> {
    match is_known {
        true => Owner::Known(server.to_string()),
        false => Owner::Stranger(neighbourhood(server.as_str())),
    }
}

impl Remote {
    /// The share that is charged for a server. A server with users in a room with local users is known; when the store
    /// cannot be read, no server newly counts as known.
    pub async fn owner_of(&self, server: &ServerName) -> Owner<String> {
        let (circle, name) = (self.0.circle.clone(), server.to_owned());
        if circle.lately(server).is_none()
            && let Err(error) = blocking(move || circle.look(&name)).await
        {
            tracing::debug!(%error, %server, "the rooms shared with a server could not be read");
        }
        self.0.circle.remembered(server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::tests::{Lab, name, share_room, us};
    use std::time::Duration;

    #[tokio::test]
    async fn who_shares_a_room_is_known_and_stays_so_beside_strangers_without_number() {
        let us = us(&Lab::new(), &[], &[]);
        let friend = name("matrix.friend.example:8448");
        let owner = async || us.remote.owner_of(&friend).await;
        assert!(matches!(owner().await, Owner::Stranger(name) if name == "friend.example"));
        share_room(&us.store, friend.as_str()).await;
        us.clock.advance(Duration::from_millis(STRANGER_MS));
        assert!(matches!(owner().await, Owner::Known(name) if name == friend.as_str()));
        for n in 0..2000 {
            us.remote.owner_of(&name(&format!("s{n}.evil.example"))).await;
        }
        let circle = &us.remote.0.circle;
        assert!(matches!(circle.remembered(&friend), Owner::Known(_)));
        assert!(circle.seen().len() <= KNOWN_MAX + STRANGERS_MAX);
    }
}

//! What services are asked beside transactions and what `networks.rs` has: whether a user or an alias is theirs to make, keys,
//! and whether they can be reached at all. No answer is waited for long, and one that is late, too long or no JSON counts
//! as none; a service that gave none is not waited for again at once.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use ruma::{RoomAliasId, UserId};
use serde_json::{Value, json};

use super::{ASKED_BYTES_MAX, AWAY_MS, Answer, Answered, SILENT_MS, Service, Services, UNKNOWN_PATH_MS, Until, part};
use crate::matrix::appservice::Registration;
use crate::remote::web::WebFailed;

/// Making a user or a room takes a bridge several requests to us, and perhaps one to its network.
const MAKE_TIME: Duration = Duration::from_secs(30);
/// A ping is answered to the service itself.
const PING_TIME: Duration = Duration::from_secs(10);
/// Apps wait for the keys of others before they send.
const KEYS_TIME: Duration = Duration::from_secs(3);
/// A name that no service wanted to make is not asked for again for so long; of the last ones that is kept.
const UNMADE_MS: u64 = 10_000;
const UNMADE_MAX: usize = 128;
/// One that answered the question to make something with an error is asked nothing for so long.
const ILL_MS: u64 = 1_000;

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// The service has made it by now.
    Made,
    Nothing,
}

impl Services {
    /// Asks the services in whose namespace an unknown user of this server is to make it.
    pub async fn make_user(&self, user: &UserId) -> Asked {
        let of = |service: &Registration| service.users.has(user.as_str());
        self.make(of, "users", user.as_str()).await
    }

    /// Asks the services in whose namespace an unknown alias of this server is to make its room.
    pub async fn make_room(&self, alias: &RoomAliasId) -> Asked {
        let of = |service: &Registration| service.aliases.has(alias.as_str());
        self.make(of, "rooms", alias.as_str()).await
    }

    async fn make(&self, concerns: impl Fn(&Registration) -> bool, kind: &str, name: &str) -> Asked {
        if !self.list().iter().any(|service| service.url.is_some() && concerns(service)) {
            return Asked::Nothing;
        }
        let (hash, now_ms) = (self.0.hasher.hash_one(name), self.0.passed_ms());
        let is_unmade = self.0.unmade.lock().iter().any(|(one, until_ms)| *one == hash && *until_ms > now_ms);
        let Ok(_place) = self.0.making.try_acquire() else { return Asked::Nothing };
        if is_unmade || self.ask_to_make(concerns, kind, name).await == Asked::Made {
            return if is_unmade { Asked::Nothing } else { Asked::Made };
        }
        let mut unmade = self.0.unmade.lock();
        if unmade.len() >= UNMADE_MAX {
            unmade.pop_front();
        }
        unmade.push_back((hash, now_ms + UNMADE_MS));
        Asked::Nothing
    }

    async fn ask_to_make(&self, concerns: impl Fn(&Registration) -> bool, kind: &str, name: &str) -> Asked {
        for service in self.list().iter().filter(|service| service.url.is_some() && concerns(service)) {
            // Whoever asks for many names neither fills the log nor waits for a dead service with each.
            let pause = |ms: u64| service.away.set(self.0.passed_ms() + ms);
            if service.away.is_before(self.0.passed_ms()) {
                continue;
            }
            // One that hangs leaves a place for the others'.
            let Ok(_place) = service.making.try_acquire() else { continue };
            let name = part(name);
            let (new, old) = (format!("/_matrix/app/v1/{kind}/{name}"), format!("/{kind}/{name}"));
            match self.either(service, Method::GET, (&new, &old), Bytes::new(), MAKE_TIME, Answer::Status).await {
                Ok(answered) if answered.is_success() => return Asked::Made,
                Ok(answered) if answered.status == 404 => {}
                Ok(answered) => {
                    let says = answered.says(service);
                    tracing::warn!("the application service {} was asked for {name}: {says}", service.id);
                    pause(ILL_MS);
                }
                Err(failed) => {
                    tracing::warn!("the application service {} was asked for {name} and {failed}", service.id);
                    pause(match failed {
                        WebFailed::Unreachable { .. } => AWAY_MS,
                        WebFailed::Timeout => SILENT_MS,
                        _ => ILL_MS,
                    });
                }
            }
        }
        Asked::Nothing
    }

    /// Whether a service can be reached with its token: what it answers to a ping.
    pub async fn ping(&self, service: &Service, transaction_id: Option<&str>) -> Result<Answered, WebFailed> {
        let body = match transaction_id {
            Some(id) => json!({ "transaction_id": id }),
            None => json!({}),
        };
        let body = Bytes::from(body.to_string());
        self.ask(service, Method::POST, "/_matrix/app/v1/ping", body, PING_TIME, ASKED_BYTES_MAX).await
    }

    /// Asks a service for one-time keys of its users' devices (MSC3983): its answer, `{user: {device: {key id: key}}}`.
    pub async fn claim_keys(&self, service: &Service, claims: &Value) -> Option<Answered> {
        let path = "/_matrix/app/unstable/org.matrix.msc3983/keys/claim";
        self.keys(service, path, claims, &service.no_claims).await
    }

    /// Asks a service for the keys of its users' devices (MSC3984), as `/keys/query` answers.
    pub async fn query_keys(&self, service: &Service, users: &Value) -> Option<Answered> {
        let path = "/_matrix/app/unstable/org.matrix.msc3984/keys/query";
        self.keys(service, path, users, &service.no_queries).await
    }

    /// A service that does not know the path, as most, is not asked again for a while.
    async fn keys(&self, service: &Service, path: &str, body: &Value, not_before: &Until) -> Option<Answered> {
        if service.url.is_none() || not_before.is_before(self.0.passed_ms()) {
            return None;
        }
        let body = Bytes::from(body.to_string());
        match self.ask(service, Method::POST, path, body, KEYS_TIME, ASKED_BYTES_MAX).await {
            Ok(answered) if answered.is_success() => Some(answered),
            Ok(answered) => {
                if answered.is_unknown_path() {
                    not_before.set(self.0.passed_ms() + UNKNOWN_PATH_MS);
                }
                None
            }
            Err(failed) => {
                // The apps that ask wait for it: a dead service is not waited for by each.
                not_before.set(self.0.passed_ms() + if failed.is_silence() { SILENT_MS } else { AWAY_MS });
                tracing::debug!("the application service {} was asked for keys and {failed}", service.id);
                None
            }
        }
    }

    /// The service whose the user is alone, if it can be asked for keys.
    pub fn with_keys_of(&self, user: &UserId) -> Option<Arc<Service>> {
        self.list().iter().find(|service| service.url.is_some() && service.is_alone(user)).cloned()
    }
}

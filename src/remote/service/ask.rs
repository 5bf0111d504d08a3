//! What services are asked beside transactions: whether a user or an alias is theirs to make, rooms and users of other
//! networks, keys, and whether they can be reached at all. No answer is waited for long, and one that is late, too long or
//! no JSON counts as none.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use ruma::{RoomAliasId, UserId};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::{Answer, Answered, Service, Services, UNKNOWN_PATH_MS, part};
use crate::base::comma;
use crate::budget::{Grant, parsed_bytes_max};
use crate::matrix::appservice::Registration;
use crate::matrix::json::partial;
use crate::remote::web::WebFailed;

/// Making a user or a room takes a bridge several requests to us, and perhaps one to its network.
const MAKE_TIME: Duration = Duration::from_secs(30);
const ASK_TIME: Duration = Duration::from_secs(10);
/// A name that no service wanted to make is not asked for again for so long; of the last ones that is kept.
const UNMADE_MS: u64 = 10_000;
const UNMADE_MAX: usize = 128;
/// A service that could not be reached is asked nothing that people look up for so long; one that answered the question to make
/// something with an error, for less.
const AWAY_MS: u64 = 10_000;
const ILL_MS: u64 = 1_000;
/// The answer about a network: protocols have icons as URLs and a dozen fields.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// An item of a list that is read in place: where it is, in a list that doubles.
const ITEM_BYTES: u64 = 48;

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// The service has made it by now.
    Made,
    Nothing,
}

/// What is looked up in another network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThirdParty {
    User,
    Location,
}

impl ThirdParty {
    fn name(self) -> &'static str {
        match self {
            ThirdParty::User => "user",
            ThirdParty::Location => "location",
        }
    }

    /// The field without which an answer means nothing.
    fn field(self) -> &'static str {
        match self {
            ThirdParty::User => "userid",
            ThirdParty::Location => "alias",
        }
    }
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
        let (hash, now_ms) = (self.0.hasher.hash_one(name), self.0.clock.now_ms());
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
            let pause = |ms: u64| service.away_until_ms.store(self.0.clock.now_ms() + ms, Relaxed);
            if service.is_away(self.0.clock.now_ms()) {
                continue;
            }
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
        self.ask(service, Method::POST, "/_matrix/app/v1/ping", body, ASK_TIME, ANSWER_BYTES_MAX).await
    }

    /// The protocols of all services, or one of them: name, and what its services say of it, put together; and what pays
    /// for that.
    pub async fn protocols(&self, only: Option<&str>) -> (Vec<(String, Value)>, Option<Grant>) {
        let (mut all, mut paid): (Vec<(String, Value)>, _) = (Vec::new(), None);
        for service in self.list().iter().filter(|service| service.url.is_some()) {
            for protocol in service.protocols.iter().filter(|protocol| only.is_none_or(|only| only == **protocol)) {
                let Some((mut told, grant)) = self.protocol(service, protocol).await else { continue };
                pay(&mut paid, grant);
                for instance in told["instances"].as_array_mut().into_iter().flatten() {
                    if let Some(network) = instance["network_id"].as_str().map(|network| instance_id(service, network))
                    {
                        instance["instance_id"] = network.into();
                    }
                }
                match all.iter_mut().find(|(name, _)| name == protocol) {
                    None => all.push((protocol.clone(), told)),
                    Some((_, before)) => {
                        let more = told["instances"].take();
                        if let (Some(list), Value::Array(more)) = (before["instances"].as_array_mut(), more) {
                            list.extend(more);
                        }
                    }
                }
            }
        }
        (all, paid)
    }

    async fn protocol(&self, service: &Service, protocol: &str) -> Option<(Value, Grant)> {
        let told = self.told(service, "protocol", protocol, "").await?;
        let Answered { body, grant: Some(mut grant), .. } = told else { return None };
        if let Err(refused) = grant.grow(parsed_bytes_max(&body)) {
            tracing::warn!("what the application service {} says of {protocol} is left out: {refused}", service.id);
            return None;
        }
        let told: Value = serde_json::from_slice(&body).ok()?;
        let has = |field: &str, is: fn(&Value) -> bool| told.get(field).is_some_and(is);
        let fits = has("user_fields", Value::is_array)
            && has("location_fields", Value::is_array)
            && has("instances", Value::is_array)
            && has("field_types", Value::is_object);
        if !fits {
            tracing::warn!("the application service {} says of {protocol} what is no protocol", service.id);
        }
        fits.then_some((told, grant))
    }

    /// Users or rooms of other networks: of one protocol by its fields, or of all by a Matrix ID or alias. `query` is the
    /// encoded query without the access token. Answers a list in JSON, and what pays for it.
    pub async fn third_party(&self, kind: ThirdParty, protocol: Option<&str>, query: &str) -> (Vec<u8>, Option<Grant>) {
        let (mut list, mut paid, mut first) = (vec![b'['], None, true);
        for service in self.list().iter().filter(|service| service.url.is_some() && !service.protocols.is_empty()) {
            if protocol.is_some_and(|protocol| !service.protocols.iter().any(|own| own == protocol)) {
                continue;
            }
            let Some(told) = self.told(service, kind.name(), protocol.unwrap_or(""), query).await else { continue };
            let Answered { body, grant: Some(mut grant), .. } = told else { continue };
            // Beside the answer: what stays of it, and its items while it is read.
            let items = memchr::memchr_iter(b',', &body).count() as u64 + 1;
            let reading = body.len() as u64 + ITEM_BYTES * items;
            if let Err(refused) = grant.grow(reading) {
                tracing::warn!("what the application service {} found is left out: {refused}", service.id);
                continue;
            }
            list.reserve_exact(body.len() + 1);
            if !add_fitting(&body, kind, &mut list, &mut first) {
                tracing::warn!("the application service {} answers a look-up with what is no list", service.id);
            }
            drop(body);
            grant.shrink(reading);
            pay(&mut paid, grant);
        }
        list.push(b']');
        (list, paid)
    }

    async fn told(&self, service: &Service, kind: &str, name: &str, query: &str) -> Option<Answered> {
        if service.is_away(self.0.clock.now_ms()) {
            return None;
        }
        let name = if name.is_empty() { String::new() } else { format!("/{}", part(name)) };
        let query = if query.is_empty() { String::new() } else { format!("?{query}") };
        let mut last = None;
        for prefix in ["v1", "unstable"] {
            let path = format!("/_matrix/app/{prefix}/thirdparty/{kind}{name}{query}");
            match self.ask(service, Method::GET, &path, Bytes::new(), ASK_TIME, ANSWER_BYTES_MAX).await {
                Ok(answered) if answered.is_success() => return Some(answered),
                Ok(answered) if answered.is_unknown_path() => last = Some(answered.says(service)),
                Ok(answered) => {
                    last = Some(answered.says(service));
                    break;
                }
                Err(failed) => {
                    // The other protocols of a dead service are not waited for.
                    if matches!(failed, WebFailed::Unreachable { .. }) {
                        service.away_until_ms.store(self.0.clock.now_ms() + AWAY_MS, Relaxed);
                    }
                    last = Some(failed.to_string());
                    break;
                }
            }
        }
        let why = last.unwrap_or_default();
        tracing::debug!("the application service {} was asked for {kind}{name}: {why}", service.id);
        None
    }

    /// Asks a service for one-time keys of its users' devices (MSC3983): its answer, `{user: {device: {key id: key}}}`.
    pub async fn claim_keys(&self, service: &Service, claims: &Value) -> Option<Answered> {
        let path = "/_matrix/app/unstable/org.matrix.msc3983/keys/claim";
        self.keys(service, path, claims, &service.no_claims_until_ms).await
    }

    /// Asks a service for the keys of its users' devices (MSC3984), as `/keys/query` answers.
    pub async fn query_keys(&self, service: &Service, users: &Value) -> Option<Answered> {
        let path = "/_matrix/app/unstable/org.matrix.msc3984/keys/query";
        self.keys(service, path, users, &service.no_queries_until_ms).await
    }

    /// A service that does not know the path, as most, is not asked again for a while.
    async fn keys(&self, service: &Service, path: &str, body: &Value, not_until: &AtomicU64) -> Option<Answered> {
        let now_ms = self.0.clock.now_ms();
        if service.url.is_none() || not_until.load(Relaxed) > now_ms {
            return None;
        }
        let body = Bytes::from(body.to_string());
        match self.ask(service, Method::POST, path, body, ASK_TIME, ANSWER_BYTES_MAX).await {
            Ok(answered) if answered.is_success() => Some(answered),
            Ok(answered) => {
                if answered.is_unknown_path() {
                    not_until.store(now_ms + UNKNOWN_PATH_MS, Relaxed);
                }
                None
            }
            Err(failed) => {
                // The apps that ask wait for it: a dead service is not waited for by each.
                not_until.store(now_ms + ASK_TIME.as_millis() as u64, Relaxed);
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

/// Writes the items of a list that mean something, as they stand. False for what is no list.
fn add_fitting(answer: &[u8], kind: ThirdParty, list: &mut Vec<u8>, first: &mut bool) -> bool {
    let Ok(items) = serde_json::from_slice::<Vec<&RawValue>>(answer) else { return false };
    for item in items {
        let text = item.get().as_bytes();
        if ["protocol", kind.field()].iter().all(|field| partial::member::<String>(text, field).is_some()) {
            comma(list, first);
            list.extend_from_slice(text);
        }
    }
    true
}

/// Puts a grant to those that pay already.
fn pay(paid: &mut Option<Grant>, more: Grant) {
    match paid {
        Some(paid) => paid.absorb(more),
        None => *paid = Some(more),
    }
}

/// The name of a network in the lists of rooms, as apps give it back.
pub fn instance_id(service: &Service, network: &str) -> String {
    format!("{}|{network}", service.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bridges in Python write blanks between the members, and everything they found was left out.
    #[test]
    fn what_fits_is_told_however_it_is_written() {
        let (mut list, mut first) = (Vec::new(), true);
        let spaced =
            br#"[ {"userid": "@irc_b:here.test", "protocol": "irc", "fields": {}}, {"userid": 5, "protocol": "irc"} ]"#;
        assert!(add_fitting(spaced, ThirdParty::User, &mut list, &mut first));
        let compact = br#"[{"protocol":"irc","userid":"@irc_c:here.test"},7,{}]"#;
        assert!(add_fitting(compact, ThirdParty::User, &mut list, &mut first));
        assert!(!add_fitting(br#"{"userid":1}"#, ThirdParty::User, &mut list, &mut first));
        let wanted = br#"{"userid": "@irc_b:here.test", "protocol": "irc", "fields": {}},{"protocol":"irc","userid":"@irc_c:here.test"}"#;
        assert_eq!(list, wanted);
    }
}

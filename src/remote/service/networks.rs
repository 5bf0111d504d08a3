//! The networks behind services (application service API, "Third-party networks"): their protocols, and the rooms and users
//! of them that people look up.
//!
//! Services are asked side by side, and none is waited for longer than [`LOOK_UP_TIME`]: people wait for the answer, and one
//! bridge that hangs is no reason to show nothing of the others. What a service said of a protocol is kept for an hour, and
//! shown beyond that while it does not answer.
//!
//! Bounded: [`LOOK_UPS_MAX`](super::LOOK_UPS_MAX) questions to one service at once, [`QUESTIONS_MAX`] for one look-up,
//! [`KEPT_BYTES_MAX`] and [`KEPT_MAX`] of what is kept, which the account of requests to others pays for.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::task::JoinSet;

use super::{ASKED_BYTES_MAX, AWAY_MS, Answered, SILENT_MS, Service, Services, part};
use crate::base::comma;
use crate::budget::{Grant, parsed_bytes_max};
use crate::matrix::json::partial;
use crate::remote::web::WebFailed;

/// A look-up as a whole, however many services are asked.
const LOOK_UP_TIME: Duration = Duration::from_secs(3);
/// For our own memory, which is waited for before a service is asked.
const SPARE_TIME: Duration = Duration::from_millis(500);
/// Questions for one look-up. A home has two or three bridges with a protocol each.
const QUESTIONS_MAX: usize = 64;
/// An item of a list that is read in place: where it is, in a list that doubles.
const ITEM_BYTES: u64 = 48;
/// What a service said of a protocol is not asked again for so long.
const FRESH_MS: u64 = 3_600_000;
/// Of what services said of their protocols, so much is kept. A protocol takes one or two KiB; the account has half a MiB on
/// the smallest board. What does not fit is asked each time.
const KEPT_BYTES_MAX: usize = 32 << 10;
const KEPT_MAX: usize = 64;

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

/// What a service said of a protocol: a protocol in JSON.
pub(super) struct Kept {
    service: String,
    protocol: String,
    text: Arc<Vec<u8>>,
    /// On the clock of spans.
    fresh_until_ms: u64,
    _paid: Grant,
}

impl Kept {
    fn is_of(&self, service: &Service, protocol: &str) -> bool {
        self.service == service.id && self.protocol == protocol
    }
}

struct Question {
    service: Arc<Service>,
    /// Below `thirdparty`, with its query.
    path: String,
}

impl Question {
    fn new(service: &Arc<Service>, kind: &str, name: &str, query: &str) -> Question {
        let name = if name.is_empty() { String::new() } else { format!("/{}", part(name)) };
        let query = if query.is_empty() { String::new() } else { format!("?{query}") };
        Question { service: service.clone(), path: format!("{kind}{name}{query}") }
    }
}

impl Services {
    /// The protocols of all services, or one of them: name, and what its services say of it, put together; and what pays
    /// for that.
    pub async fn protocols(&self, only: Option<&str>) -> (Vec<(String, Value)>, Option<Grant>) {
        let services = self.list();
        let wanted: Vec<(&Arc<Service>, &String)> = services
            .iter()
            .filter(|service| service.url.is_some())
            .flat_map(|service| service.protocols.iter().map(move |protocol| (service, protocol)))
            .filter(|(_, protocol)| only.is_none_or(|only| only == **protocol))
            .collect();
        let is_old = |(service, protocol): &&(&Arc<Service>, &String)| self.kept(service, protocol, true).is_none();
        let old: Vec<_> = wanted.iter().filter(is_old).take(QUESTIONS_MAX).collect();
        let questions =
            old.iter().map(|(service, protocol)| Question::new(service, "protocol", protocol, "")).collect();
        let mut answers = self.ask_all(questions).await;
        let (mut all, mut paid): (Vec<(String, Value)>, _) = (Vec::new(), None);
        for (service, protocol) in &wanted {
            let at = old.iter().position(|(one, name)| one.id == service.id && name == protocol);
            let answered = at.and_then(|at| answers[at].take());
            let Some((mut told, grant)) = self.protocol(service, protocol, answered) else { continue };
            pay(&mut paid, grant);
            for instance in told["instances"].as_array_mut().into_iter().flatten() {
                if let Some(network) = instance["network_id"].as_str().map(|network| instance_id(service, network)) {
                    instance["instance_id"] = network.into();
                }
            }
            match all.iter_mut().find(|(name, _)| name == *protocol) {
                None => all.push(((*protocol).clone(), told)),
                Some((_, before)) => {
                    let more = told["instances"].take();
                    if let (Some(list), Value::Array(more)) = (before["instances"].as_array_mut(), more) {
                        list.extend(more);
                    }
                }
            }
        }
        (all, paid)
    }

    /// What a service says of a protocol now, or said before; and what pays for it as a value.
    fn protocol(&self, service: &Service, protocol: &str, answered: Option<Answered>) -> Option<(Value, Grant)> {
        match answered {
            Some(Answered { status: 200..300, body, grant: Some(grant) }) => {
                if let Some(told) = self.read(service, protocol, &body) {
                    self.keep(service, protocol, body, grant);
                    return Some(told);
                }
            }
            // It does not have it any more.
            Some(answered) if answered.is_unknown_path() => {
                self.0.kept.lock().retain(|kept| !kept.is_of(service, protocol));
                return None;
            }
            _ => {}
        }
        let text = self.kept(service, protocol, false)?;
        self.read(service, protocol, &text)
    }

    fn read(&self, service: &Service, protocol: &str, text: &[u8]) -> Option<(Value, Grant)> {
        let grant = match self.0.web.account().try_take(text.len() as u64 + parsed_bytes_max(text)) {
            Ok(grant) => grant,
            Err(refused) => {
                tracing::warn!("what the application service {} says of {protocol} is left out: {refused}", service.id);
                return None;
            }
        };
        let told: Value = serde_json::from_slice(text).unwrap_or_default();
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

    fn kept(&self, service: &Service, protocol: &str, is_fresh: bool) -> Option<Arc<Vec<u8>>> {
        let (kept, passed_ms) = (self.0.kept.lock(), self.0.passed_ms());
        let found = kept.iter().find(|kept| kept.is_of(service, protocol))?;
        (!is_fresh || found.fresh_until_ms > passed_ms).then(|| found.text.clone())
    }

    fn keep(&self, service: &Service, protocol: &str, mut text: Vec<u8>, mut paid: Grant) {
        text.shrink_to_fit();
        paid.shrink(paid.bytes().saturating_sub(text.len() as u64));
        let mut kept = self.0.kept.lock();
        kept.retain(|kept| !kept.is_of(service, protocol));
        let bytes: usize = kept.iter().map(|kept| kept.text.len()).sum();
        if kept.len() < KEPT_MAX && bytes + text.len() <= KEPT_BYTES_MAX {
            kept.push(Kept {
                service: service.id.clone(),
                protocol: protocol.to_owned(),
                text: Arc::new(text),
                fresh_until_ms: self.0.passed_ms() + FRESH_MS,
                _paid: paid,
            });
        }
    }

    /// What a service said is asked again the next time, but shown while it does not answer: it has started anew.
    pub(super) fn ask_anew(&self, service: &Service) {
        self.0
            .kept
            .lock()
            .iter_mut()
            .filter(|kept| kept.service == service.id)
            .for_each(|kept| kept.fresh_until_ms = 0);
    }

    /// Nothing is kept of services that are none any more, and what the others said is asked again.
    pub(super) fn forget_others(&self, services: &[Service]) {
        let mut kept = self.0.kept.lock();
        kept.retain(|kept| services.iter().any(|of| of.id == kept.service && of.protocols.contains(&kept.protocol)));
        kept.iter_mut().for_each(|kept| kept.fresh_until_ms = 0);
    }

    /// Users or rooms of other networks: of one protocol by its fields, or of all by a Matrix ID or alias. `query` is the
    /// encoded query without the access token. Answers a list in JSON, and what pays for it.
    pub async fn third_party(&self, kind: ThirdParty, protocol: Option<&str>, query: &str) -> (Vec<u8>, Option<Grant>) {
        let (mut list, mut paid, mut first) = (vec![b'['], None, true);
        let services = self.list();
        let of_protocol = |service: &&Arc<Service>| match protocol {
            Some(protocol) => service.protocols.iter().any(|own| own == protocol),
            None => !service.protocols.is_empty(),
        };
        let asked: Vec<_> = services.iter().filter(|service| service.url.is_some()).filter(of_protocol).collect();
        let question = |service: &&Arc<Service>| Question::new(service, kind.name(), protocol.unwrap_or(""), query);
        let answers = self.ask_all(asked.iter().map(question).collect()).await;
        for (service, answered) in asked.iter().zip(answers) {
            let Some(Answered { status: 200..300, body, grant: Some(mut grant) }) = answered else { continue };
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

    /// Asks services side by side, for [`LOOK_UP_TIME`] at most. None where there is no answer by then.
    async fn ask_all(&self, questions: Vec<Question>) -> Vec<Option<Answered>> {
        let mut answers: Vec<Option<Answered>> = questions.iter().map(|_| None).collect();
        let until = self.0.clock.instant() + LOOK_UP_TIME;
        let mut asking = JoinSet::new();
        for (at, question) in questions.into_iter().enumerate() {
            if question.is_worthwhile(self.0.passed_ms()) {
                let services = self.clone();
                asking.spawn(async move { (at, services.told(question, until).await) });
            }
        }
        while let Some(done) = asking.join_next().await {
            if let Ok((at, answered)) = done {
                answers[at] = answered;
            }
        }
        answers
    }

    async fn told(&self, question: Question, until: Duration) -> Option<Answered> {
        let (clock, service) = (&self.0.clock, &question.service);
        let left = || until.saturating_sub(clock.instant());
        let _place = clock.timeout(left(), service.looking_up.acquire()).await?.ok()?;
        let mut last = None;
        for prefix in ["v1", "unstable"] {
            // Who waited for a place learns of those before that the service does not answer.
            if !question.is_worthwhile(self.0.passed_ms()) {
                return None;
            }
            let path = format!("/_matrix/app/{prefix}/thirdparty/{}", question.path);
            let asking = self.ask(service, Method::GET, &path, Bytes::new(), left(), ASKED_BYTES_MAX);
            let why = match clock.timeout(left() + SPARE_TIME, asking).await {
                Some(Ok(answered)) if answered.is_unknown_path() => {
                    let says = answered.says(service);
                    last = Some(answered);
                    says
                }
                Some(Ok(answered)) if answered.is_success() => return Some(answered),
                Some(Ok(answered)) => answered.says(service),
                Some(Err(failed)) => {
                    match failed {
                        WebFailed::Unreachable { .. } => service.away.set(self.0.passed_ms() + AWAY_MS),
                        WebFailed::Timeout => service.silent.set(self.0.passed_ms() + SILENT_MS),
                        _ => {}
                    }
                    failed.to_string()
                }
                None => "there is no memory to ask it".to_owned(),
            };
            tracing::debug!("the application service {} was asked for {}: {why}", service.id, question.path);
            last.as_ref()?;
        }
        last
    }
}

impl Question {
    /// Whether the service may answer: it did not fail to a moment ago.
    fn is_worthwhile(&self, passed_ms: u64) -> bool {
        !self.service.away.is_before(passed_ms) && !self.service.silent.is_before(passed_ms)
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
mod tests;

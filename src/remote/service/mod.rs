//! Application services: those that are registered, and the way to them (application service API).
//!
//! Owns the list of registrations, which is replaced as a whole when its files change. Each request to a service has its
//! token in the `Authorization` header, a time, and a bound on the answer; its URL is an operator's, so it may be at a
//! private address. `ask.rs` has the questions beside transactions, `networks.rs` those about the networks behind them.
//!
//! Bounded: [`SERVICES_MAX`] registrations of at most 64 KiB each, which an operator wrote, with patterns of
//! [`PATTERNS_BYTES_MAX`] in memory; what is kept of their protocols.

mod ask;
mod networks;

use std::collections::VecDeque;
use std::collections::hash_map::RandomState;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ruma::UserId;
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, watch};

pub use self::ask::Asked;
use self::networks::Kept;
pub use self::networks::{ThirdParty, instance_id};
use super::web::{Plain, Web, WebAnswer, WebFailed, WebLimits, WebRequest};
use crate::base::{Clock, bounded};
use crate::budget::Grant;
pub use crate::matrix::appservice::{BYTES_MAX, PATTERNS_BYTES_MAX, Registration};

/// Registrations at most. A home has two or three.
pub const SERVICES_MAX: usize = 32;
/// What a service answers to a transaction means nothing; its errors are read for the log, so far.
const ANSWER_BYTES_MAX: u64 = 16 << 10;
/// Of that what is kept: the words of an error.
const SAID_BYTES: usize = 1024;
/// And how long it is waited for, once the status is there.
const SAID_TIME: Duration = Duration::from_secs(1);
/// Questions to make users and rooms at once, of all services and of one: who is behind them is anybody. Beyond that they
/// count as answered with no.
const MAKING_MAX: usize = 4;
const MAKING_OF_ONE_MAX: usize = 3;
/// Look-ups of one service at once; who comes after waits for a place, as long as for an answer.
const LOOK_UPS_MAX: usize = 2;
/// A service that could not be reached is not waited for for so long; one that took the question and did not answer in
/// time, for longer. Either is over when it pings us.
const AWAY_MS: u64 = 10_000;
const SILENT_MS: u64 = 60_000;
/// The answer to a question: protocols have icons as URLs and a dozen fields.
const ASKED_BYTES_MAX: u64 = 64 << 10;
/// A path that a service did not know is not asked for again for so long.
const UNKNOWN_PATH_MS: u64 = 3_600_000;
/// The characters of a path's part that stand for themselves.
const PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A registered service.
#[derive(Debug)]
pub struct Service {
    registration: Registration,
    token_hash: [u8; 32],
    /// Until when the paths of the specification are not tried, for one that knows only those from before.
    old_paths: Until,
    /// Until when it is not asked for keys.
    no_claims: Until,
    no_queries: Until,
    /// Until when it is asked nothing that somebody waits for, after it could not be reached.
    away: Until,
    /// Until when it is not asked what people look up, after it did not answer that in time.
    silent: Until,
    making: Semaphore,
    looking_up: Semaphore,
    /// It was heard of: what failed is to be tried again now.
    poked: AtomicBool,
}

/// Until when something is not tried, in milliseconds on the clock of spans: no clock that is set moves it.
#[derive(Debug, Default)]
struct Until(AtomicU64);

impl Until {
    fn set(&self, until_ms: u64) {
        self.0.store(until_ms, Relaxed);
    }

    fn is_before(&self, passed_ms: u64) -> bool {
        self.0.load(Relaxed) > passed_ms
    }
}

impl Deref for Service {
    type Target = Registration;

    fn deref(&self) -> &Registration {
        &self.registration
    }
}

impl Service {
    pub fn new(registration: Registration) -> Service {
        let token_hash = Sha256::digest(registration.as_token.as_bytes()).into();
        Service {
            registration,
            token_hash,
            old_paths: Until::default(),
            no_claims: Until::default(),
            no_queries: Until::default(),
            away: Until::default(),
            silent: Until::default(),
            making: Semaphore::new(MAKING_OF_ONE_MAX),
            looking_up: Semaphore::new(LOOK_UPS_MAX),
            poked: AtomicBool::new(false),
        }
    }
}

/// The application services. Cheap to clone.
#[derive(Clone)]
pub struct Services(Arc<Inner>);

struct Inner {
    web: Web,
    clock: Clock,
    list: Mutex<Arc<[Arc<Service>]>>,
    changed: watch::Sender<u64>,
    /// Questions to make users and rooms under way.
    making: Semaphore,
    /// Names that were not made, as hashes, and until when they are not asked for again.
    unmade: Mutex<VecDeque<(u64, u64)>>,
    hasher: RandomState,
    /// What services said of their protocols.
    kept: Mutex<Vec<Kept>>,
}

impl Inner {
    fn passed_ms(&self) -> u64 {
        self.clock.instant().as_millis() as u64
    }
}

/// What a service answered.
pub struct Answered {
    pub status: u16,
    pub body: Vec<u8>,
    /// None for the beginning of an answer, which the connection's own share pays for.
    grant: Option<Grant>,
}

/// What is wanted of an answer.
#[derive(Debug, Clone, Copy)]
enum Answer {
    /// All of it, or it is none.
    Whole { bytes_max: u64 },
    /// Its status, and a few words for the log.
    Status,
}

/// Reads an answer to its end, or to [`ANSWER_BYTES_MAX`], so that its sender sees it taken; keeps [`SAID_BYTES`].
async fn read_beginning(mut answer: WebAnswer, kept: &mut Vec<u8>) {
    let mut read = 0;
    while read < ANSWER_BYTES_MAX
        && let Ok(Some(piece)) = answer.next().await
    {
        read += piece.len() as u64;
        kept.extend_from_slice(&piece[..piece.len().min(SAID_BYTES - kept.len())]);
    }
}

impl Answered {
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Whether it does not know the path.
    pub fn is_unknown_path(&self) -> bool {
        matches!(self.status, 404 | 405 | 501)
    }

    /// What it says, for the log: its status and the beginning of its answer.
    pub fn says(&self, service: &Service) -> String {
        let text = bounded(String::from_utf8_lossy(&self.body[..self.body.len().min(512)]), 200);
        let hint = match self.status {
            401 | 403 if service.query_token => {
                ". Is the hs_token in its registration the one that it has in its own configuration?"
            }
            401 | 403 => {
                ". Is the hs_token in its registration the one that it has in its own configuration? Some older bridges look \
                 for the token in the query only: for those, add the line  snug.query_token: true  to the registration"
            }
            _ => "",
        };
        format!("HTTP {}: {text}{hint}", self.status)
    }
}

impl Services {
    pub(super) fn new(web: Web, clock: Clock) -> Services {
        let list = Mutex::new(Arc::from([]));
        Services(Arc::new(Inner {
            web,
            clock,
            list,
            changed: watch::Sender::new(0),
            making: Semaphore::new(MAKING_MAX),
            unmade: Mutex::default(),
            hasher: RandomState::new(),
            kept: Mutex::default(),
        }))
    }

    /// All of them.
    pub fn list(&self) -> Arc<[Arc<Service>]> {
        self.0.list.lock().clone()
    }

    /// Replaces the list. The caller has checked that ids and tokens are unique.
    pub fn set(&self, services: Vec<Service>) {
        self.forget_others(&services);
        *self.0.list.lock() = services.into_iter().map(Arc::new).collect();
        self.0.changed.send_modify(|count| *count += 1);
    }

    /// Tells when the list was replaced.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// Notes that a service can be reached: what failed is to be tried again now.
    pub fn poke(&self, service: &Service) {
        service.poked.store(true, Relaxed);
        for over in [&service.away, &service.silent, &service.no_claims, &service.no_queries] {
            over.set(0);
        }
        self.ask_anew(service);
        self.0.changed.send_modify(|count| *count += 1);
    }

    /// Whether that was noted since the last call.
    pub fn take_poke(&self, service: &Service) -> bool {
        service.poked.swap(false, Relaxed)
    }

    /// The service of an `as_token`. Compared by its hash, so that the time tells nothing of the token.
    pub fn by_token(&self, token: &str) -> Option<Arc<Service>> {
        let list = self.list();
        if list.is_empty() {
            return None;
        }
        let hash: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        list.iter().find(|service| service.token_hash == hash).cloned()
    }

    pub fn by_id(&self, id: &str) -> Option<Arc<Service>> {
        self.list().iter().find(|service| service.id == id).cloned()
    }

    /// The service whose the user is alone, other than `except`.
    pub fn owner_of_user(&self, user: &UserId, except: Option<&str>) -> Option<Arc<Service>> {
        self.list().iter().find(|service| Some(service.id.as_str()) != except && service.is_alone(user)).cloned()
    }

    /// The service whose the alias is alone, other than `except`.
    pub fn owner_of_alias(&self, alias: &str, except: Option<&str>) -> Option<Arc<Service>> {
        let owns = |service: &&Arc<Service>| Some(service.id.as_str()) != except && service.aliases.has_alone(alias);
        self.list().iter().find(owns).cloned()
    }

    /// Sends a transaction.
    pub async fn put(&self, service: &Service, id: &str, body: Bytes, time: Duration) -> Result<Answered, WebFailed> {
        let id = part(id);
        let (new, old) = (format!("/_matrix/app/v1/transactions/{id}"), format!("/transactions/{id}"));
        self.either(service, Method::PUT, (&new, &old), body, time, Answer::Status).await
    }

    /// Asks at the path of the specification, and at the one from before when that is not known.
    async fn either(
        &self,
        service: &Service,
        method: Method,
        (new, old): (&str, &str),
        body: Bytes,
        time: Duration,
        wanted: Answer,
    ) -> Result<Answered, WebFailed> {
        let is_old = service.old_paths.is_before(self.0.passed_ms());
        let first = if is_old { old } else { new };
        let answered = self.request(service, method.clone(), first, body.clone(), time, wanted).await?;
        // A user or alias that is not known is a 404 with an errcode of its own.
        let unknown = answered.is_unknown_path() && memchr::memmem::find(&answered.body, b"M_NOT_FOUND").is_none();
        if is_old || !unknown {
            return Ok(answered);
        }
        let second = self.request(service, method, old, body, time, wanted).await?;
        if second.is_success() {
            service.old_paths.set(self.0.passed_ms() + UNKNOWN_PATH_MS);
            return Ok(second);
        }
        Ok(answered)
    }

    /// One question, whose answer is read whole. The path may have a query.
    pub(in crate::remote) async fn ask(
        &self,
        service: &Service,
        method: Method,
        path: &str,
        body: Bytes,
        time: Duration,
        bytes_max: u64,
    ) -> Result<Answered, WebFailed> {
        self.request(service, method, path, body, time, Answer::Whole { bytes_max }).await
    }

    async fn request(
        &self,
        service: &Service,
        method: Method,
        path: &str,
        body: Bytes,
        time: Duration,
        wanted: Answer,
    ) -> Result<Answered, WebFailed> {
        let Some(url) = &service.url else { return Err(WebFailed::BadUrl("the service has no url".to_owned())) };
        let mut url = format!("{url}{path}");
        if service.query_token {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str("access_token=");
            url.extend(utf8_percent_encode(&service.hs_token, PART));
        }
        let mut headers = HeaderMap::new();
        if let Ok(mut token) = HeaderValue::from_str(&format!("Bearer {}", service.hs_token)) {
            token.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, token);
        }
        if !body.is_empty() {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let limits = WebLimits {
            time,
            body_bytes_max: match wanted {
                Answer::Whole { bytes_max } => bytes_max,
                Answer::Status => u64::MAX,
            },
            redirects_max: 0,
            plain: Plain::WhereGiven,
            allow_private: true,
            ..WebLimits::default()
        };
        let answer = self.0.web.ask(WebRequest { method, url, headers, body }, limits).await?;
        let status = answer.status;
        let (body, grant) = match wanted {
            Answer::Whole { .. } => {
                let (body, grant) = answer.read().await?;
                (body, Some(grant))
            }
            // What it did is told by now: neither a long answer nor one that breaks off undoes it.
            Answer::Status => {
                let mut kept = Vec::new();
                self.0.clock.timeout(SAID_TIME, read_beginning(answer, &mut kept)).await;
                (kept, None)
            }
        };
        Ok(Answered { status, body, grant })
    }
}

/// A part of a path.
fn part(text: &str) -> String {
    utf8_percent_encode(text, PART).to_string()
}

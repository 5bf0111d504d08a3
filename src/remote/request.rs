//! A signed request to another server, and its small answer.
//!
//! Server-server API, "Request Authentication": the signature covers the request target exactly as it is sent.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ruma::ServerName;
use serde::de::DeserializeOwned;

use super::connect::{Lease, Outgoing};
use super::contact::{Contact, Whence};
use super::lookup::Miss;
use super::{Deed, Remote, USER_AGENT};
use crate::base::brief;
use crate::budget::{Grant, Refused, parsed_bytes_max};
use crate::matrix::json::partial;
use crate::matrix::sign;

/// An error answer is read this far and no further.
const ERROR_BYTES_MAX: u64 = 16 * 1024;

/// The time limit and the size limit of a request.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The time for the whole exchange, the connection included.
    pub timeout: Duration,
    /// The bytes of the answer's body.
    pub max_bytes: u64,
    pub urgency: Urgency,
}

/// Which pauses a request keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Nothing is lost by waiting: a server that failed is left alone.
    Later,
    /// A person waits: a server that failed is asked again, but not one that gave no sign a moment ago.
    Person,
    /// The server has just contacted us, or its key is needed to check what came: it is asked whatever failed before.
    Contacted,
}

impl Default for Options {
    fn default() -> Options {
        Options { timeout: Duration::from_secs(30), max_bytes: 512 * 1024, urgency: Urgency::Later }
    }
}

impl Options {
    pub fn insisting() -> Options {
        Options { urgency: Urgency::Person, ..Options::default() }
    }
}

/// Why another server gave no usable answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Failed {
    /// No connection. `silent`: there was no answer at all, so our own network may be gone.
    #[error("cannot be reached: {why}")]
    Unreachable { why: String, silent: bool },
    /// Connected, but the answer did not come, or stalled.
    #[error("does not answer in time")]
    Timeout,
    /// The server answered with an error of its own.
    #[error("answers {status} {errcode}: {message}")]
    Status {
        status: u16,
        errcode: String,
        message: String,
        retry_after_ms: Option<u64>,
        /// The room's version, where that is the matter.
        room_version: Option<String>,
    },
    /// The answer is not of the expected form.
    #[error("gave an invalid answer: {0}")]
    BadAnswer(String),
    /// The connection ended before the answer did: as good as no answer.
    #[error("ended the connection before its answer was whole: {0}")]
    BrokenOff(String),
    /// The content has no canonical form, which a signature covers; the server was not asked.
    #[error("was not asked, since the request has no canonical JSON: {0}")]
    Unsendable(String),
    /// The answer is longer than we take.
    #[error("answers with more than the {max_bytes} bytes allowed")]
    TooLarge { max_bytes: u64 },
    /// The server failed lately and was not asked.
    #[error("failed recently and is asked again in {} s at the earliest", .retry_after_ms / 1000)]
    BackingOff { retry_after_ms: u64 },
    /// The Internet is gone; not asked.
    #[error("cannot be reached: this server has no Internet connection")]
    Offline { retry_after_ms: u64 },
    /// This machine's clock has not been set, so that no certificate can be judged; not asked.
    #[error("was not asked: the clock of this server has not been set yet")]
    NoTime { retry_after_ms: u64 },
    /// The owner of this server denies it, or a policy list names it that this server follows; not asked.
    #[error("was not asked: {0}")]
    Barred(String),
    /// Our own memory does not suffice.
    #[error("was not asked, for lack of memory: {0}")]
    Refused(#[from] Refused),
}

impl Failed {
    pub(super) fn unreachable(why: String) -> Failed {
        Failed::Unreachable { why, silent: false }
    }

    /// The server was not asked, since it or the Internet failed lately.
    pub fn is_a_pause(&self) -> bool {
        matches!(self, Failed::BackingOff { .. } | Failed::Offline { .. } | Failed::NoTime { .. } | Failed::Barred(_))
    }

    /// There are no dealings with the server: it was not asked.
    pub fn is_barred(&self) -> bool {
        matches!(self, Failed::Barred(_))
    }

    /// The peer understood and said no: asking the same again will not help.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Failed::Status { status, .. } if (400..500).contains(status) && *status != 429)
    }

    /// The request or its answer was lost on the way, or the server could not answer just now: it has not said no.
    pub fn is_of_the_way(&self) -> bool {
        match self {
            Failed::Unreachable { .. } | Failed::Timeout | Failed::BrokenOff(_) => true,
            Failed::BackingOff { .. } | Failed::Offline { .. } | Failed::NoTime { .. } => true,
            Failed::Status { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }

    /// Our own memory did not suffice to ask: not the other server's failure.
    pub fn own_refusal(&self) -> Option<Refused> {
        match self {
            Failed::Refused(refused) => Some(refused.clone()),
            _ => None,
        }
    }

    /// The same with more said about it.
    pub fn with(self, more: &str) -> Failed {
        match self {
            Failed::Status { status, errcode, message, retry_after_ms, room_version } => {
                Failed::Status { status, errcode, message: message + more, retry_after_ms, room_version }
            }
            Failed::Unreachable { why, silent } => Failed::Unreachable { why: why + more, silent },
            Failed::BadAnswer(why) => Failed::BadAnswer(why + more),
            Failed::BrokenOff(why) => Failed::BrokenOff(why + more),
            Failed::Timeout | Failed::BackingOff { .. } | Failed::Offline { .. } | Failed::NoTime { .. } => {
                Failed::Unreachable { why: format!("it {self}{more}"), silent: false }
            }
            Failed::Unsendable(_) | Failed::TooLarge { .. } | Failed::Barred(_) | Failed::Refused(_) => self,
        }
    }

    pub fn errcode(&self) -> Option<&str> {
        match self {
            Failed::Status { errcode, .. } if !errcode.is_empty() => Some(errcode),
            Failed::Barred(_) => Some("M_FORBIDDEN"),
            _ => None,
        }
    }

    /// The version of the room, as the server that refused names it.
    pub fn room_version(&self) -> Option<&str> {
        match self {
            Failed::Status { room_version, .. } => room_version.as_deref(),
            _ => None,
        }
    }

    pub fn status(&self) -> Option<u16> {
        match self {
            Failed::Status { status, .. } => Some(*status),
            _ => None,
        }
    }
}

impl From<serde_json::Error> for Failed {
    fn from(wrong: serde_json::Error) -> Failed {
        Failed::BadAnswer(brief(wrong))
    }
}

impl From<Miss> for Failed {
    fn from(miss: Miss) -> Failed {
        match miss {
            Miss::Absent(why) => Failed::Unreachable { why, silent: false },
            Miss::Silent(why) => Failed::Unreachable { why, silent: true },
        }
    }
}

/// A small answer, paid for while it is kept.
pub struct Answer {
    pub body: Vec<u8>,
    grant: Grant,
}

impl Answer {
    /// The bytes and the grant that pays for them, to be handed on together.
    pub fn into_parts(self) -> (Vec<u8>, Grant) {
        (self.body, self.grant)
    }

    /// The parsed answer and the grant that pays for it. Refused when our memory does not hold the most that such a
    /// text may become.
    pub fn json<T: DeserializeOwned>(mut self) -> Result<(T, Grant), Failed> {
        self.grant.grow(parsed_bytes_max(&self.body))?;
        Ok((serde_json::from_slice(&self.body)?, self.grant))
    }
}

impl Remote {
    /// Asks `server` and reads the answer, at most `options.max_bytes` of it. `target` is the path and query exactly as it goes
    /// on the wire; `content` is JSON.
    pub async fn request(
        &self,
        server: &ServerName,
        method: Method,
        target: &str,
        content: Option<Vec<u8>>,
        options: Options,
    ) -> Result<Answer, Failed> {
        let contact = self.admit(server, options.urgency).await?;
        let exchange = async {
            let (lease, response) = self.exchange(server, &method, target, content, false, &contact).await?;
            let answer = self.read_small(response.into_body(), options.max_bytes).await?;
            lease.give_back();
            Ok(answer)
        };
        let outcome = self.0.clock.timeout(options.timeout, exchange).await.unwrap_or(Err(Failed::Timeout));
        self.judge(server, self.whence(server, &contact), &outcome);
        outcome
    }

    /// Whether the server may be asked now, and how long it may be without a sign.
    pub(super) async fn admit(&self, server: &ServerName, urgency: Urgency) -> Result<Contact, Failed> {
        if let Some(named) = self.0.barred.server(server, Deed::Asking).await {
            return Err(named.into());
        }
        self.0.backoff.admit(server, self.0.resolver.is_fixed(server), urgency).await.map(Contact::new)
    }

    /// Notes what an outcome shows about the server and about our own network.
    pub(super) fn judge<T>(&self, server: &ServerName, whence: Whence, outcome: &Result<T, Failed>) {
        let (backoff, is_fixed) = (&self.0.backoff, self.0.resolver.is_fixed(server));
        if matches!(outcome, Err(Failed::Unreachable { .. })) {
            // Its address of a moment ago no longer answers: the server may have moved.
            self.0.resolver.forget_later(server);
        }
        match outcome {
            Ok(_) => backoff.success(server, whence),
            Err(Failed::Unreachable { silent: true, .. }) => {
                // A machine that takes connections and goes no further is no sign of the server, but one of the Internet.
                backoff.answered(whence);
                backoff.silence(server, is_fixed);
                if !is_fixed {
                    self.suspect();
                }
            }
            // What it had begun to answer was cut off.
            Err(Failed::Timeout) if !is_fixed && backoff.is_cut_off(server) => {}
            // It gave a sign, which was noted then: one answer that takes too long does not hold back what people ask of
            // it.
            Err(Failed::Timeout) => backoff.failure(server, Whence::Nowhere, None),
            Err(Failed::Unreachable { .. }) => backoff.failure(server, whence, None),
            Err(Failed::Status { status: 429, retry_after_ms, .. }) => {
                backoff.failure(server, whence, *retry_after_ms);
            }
            Err(Failed::Status { status, .. }) if *status >= 500 => backoff.failure(server, whence, None),
            // A machine answered, but such an answer does not show whether it is a homeserver.
            Err(Failed::Status { .. } | Failed::TooLarge { .. }) => backoff.answered(whence),
            // It may have broken off long after the last sign.
            Err(Failed::BadAnswer(_) | Failed::BrokenOff(_)) => {}
            Err(Failed::BackingOff { .. } | Failed::Offline { .. } | Failed::NoTime { .. }) => {}
            Err(Failed::Refused(_) | Failed::Unsendable(_) | Failed::Barred(_)) => {}
        }
    }

    /// Counts an answer against the server that ordinary requests forgive: a refusal where every homeserver agrees, or
    /// an unusable answer. Failures that count anyway, and our own, are left as they are.
    pub fn hold_against(&self, server: &ServerName, failed: &Failed) {
        if matches!(
            failed,
            Failed::Status { .. } | Failed::BadAnswer(_) | Failed::BrokenOff(_) | Failed::TooLarge { .. }
        ) {
            self.0.backoff.failure(server, Whence::Nowhere, None);
        }
    }

    /// Sends the request and waits for a successful head. The peer may have closed a reused connection meanwhile, so
    /// that one failure is answered with a fresh connection, once.
    pub(super) async fn exchange(
        &self,
        server: &ServerName,
        method: &Method,
        target: &str,
        content: Option<Vec<u8>>,
        long: bool,
        contact: &Contact,
    ) -> Result<(Lease, Response<Incoming>), Failed> {
        let content = content.map(Bytes::from);
        // Kept while the request may have to be sent again.
        let _grant = match &content {
            Some(content) => Some(self.0.account.take(content.len() as u64).await?),
            None => None,
        };
        let authorization =
            sign::request::sign(&self.0.key, &self.0.server_name, server, method.as_str(), target, content.as_deref())
                .map_err(|reject| Failed::Unsendable(reject.to_string()))?;
        let mut fresh = false;
        loop {
            let connect = |grant| self.connect(server, grant, contact);
            let mut lease = self.0.pool.lease(server, fresh, long, connect).await?;
            // A reused connection goes where the resolver pointed when it was made; only the value of the `Host` header
            // is looked up again (from the cache).
            let host = match contact.host() {
                Some(host) => host.to_owned(),
                None => self.find(server, contact).await?.host,
            };
            let request = build(method, target, &host, &authorization, content.clone())?;
            let sent = match lease.is_reused() {
                true => self.send_on_kept(server, &mut lease, request, contact).await?,
                false => lease.send(request).await,
            };
            match sent {
                Ok(response) if response.status().is_success() => return Ok((lease, response)),
                Ok(response) => return Err(self.read_error(lease, response).await),
                Err(_) if lease.is_reused() => fresh = true,
                Err(error) => return Err(Failed::BrokenOff(error.to_string())),
            }
        }
    }

    /// The body so far is on account, and so is the next frame before it is kept.
    pub(super) async fn read_small(&self, mut body: Incoming, max_bytes: u64) -> Result<Answer, Failed> {
        let mut grant = self.0.account.take(1024).await?;
        // Half the account at most, so that one answer never blocks all others.
        let max_bytes = max_bytes.min(self.0.account.limit() / 2);
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Failed::BrokenOff(error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            let length = (bytes.len() + data.len()) as u64;
            if length > max_bytes {
                return Err(Failed::TooLarge { max_bytes });
            }
            if length > grant.bytes() {
                grow(&mut bytes, &mut grant, length, max_bytes)?;
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Answer { body: bytes, grant })
    }

    async fn read_error(&self, lease: Lease, response: Response<Incoming>) -> Failed {
        let status = response.status().as_u16();
        let body = match self.read_small(response.into_body(), ERROR_BYTES_MAX).await {
            Ok(answer) => {
                lease.give_back();
                answer.body
            }
            Err(_) => Vec::new(),
        };
        let word = |name: &str| partial::member::<String>(&body, name).unwrap_or_default();
        let (errcode, message) = (shorten(&word("errcode"), 100), shorten(&word("error"), 300));
        let room_version = partial::member::<String>(&body, "room_version").map(|version| shorten(&version, 100));
        let retry_after_ms = partial::member(&body, "retry_after_ms");
        Failed::Status { status, errcode, message, retry_after_ms, room_version }
    }
}

/// Makes room for `length` bytes, charged first. While the buffer moves both copies exist: so it grows by half, and the
/// charge covers the larger.
pub(super) fn grow(bytes: &mut Vec<u8>, grant: &mut Grant, length: u64, max_bytes: u64) -> Result<(), Refused> {
    let wanted = (length + length / 2).clamp(4096, max_bytes.max(4096));
    grant.grow(wanted - grant.bytes())?;
    bytes.reserve_exact(wanted as usize - bytes.len());
    Ok(())
}

/// A peer's text, made fit for a log line.
fn shorten(text: &str, chars_max: usize) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(chars_max).collect()
}

pub(super) fn build(
    method: &Method,
    target: &str,
    host: &str,
    authorization: &str,
    content: Option<Bytes>,
) -> Result<Request<Outgoing>, Failed> {
    let mut request = Request::builder()
        .method(method)
        .uri(target)
        .header(header::HOST, host)
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::AUTHORIZATION, authorization)
        .header(header::ACCEPT, "application/json");
    if content.is_some() {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    request
        .body(content.map(Outgoing::new).unwrap_or_default())
        .map_err(|error| Failed::BadAnswer(format!("our own request cannot be built: {error}")))
}

/// All but the unreserved characters (RFC 3986).
pub const ENCODED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One path segment or query value, percent-encoded down to the unreserved characters.
pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, &ENCODED).to_string()
}

//! The request a handler gets: the head as received, and a body that is charged before it is read.

use super::connection_limits::Places;
use super::error::{BadBody, ErrorResponse};
use super::limit::{AttemptRates, Limits, Rate, Try};
use super::peer_watch::PeerWatch;
use super::{HeaderMap, HeaderName, HeaderValue, Method, header};
use crate::base::Clock;
use crate::budget::{Account, Grant, parsed_bytes_max};
use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use std::borrow::Cow;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tracing::Span;
use tracing::field::Empty;

/// A pause in a body longer than this ends it.
const BODY_STALL: Duration = Duration::from_secs(30);
/// After `BODY_STALL`, a body slower than this on average ends too: a buffer is not held for a byte a second.
const BODY_BYTES_PER_S_MIN: u64 = 2 * 1024;
/// This much of a body is charged before the first byte is read, and the rest as it comes, so that a peer holds no
/// memory by only announcing a body.
const BODY_AHEAD_MAX: u64 = 32 * 1024;
/// A message, a receipt, a filter: bodies announced as no longer than this have a part of the account for themselves, so
/// that none waits behind large ones.
const SMALL_BODY_BYTES: u64 = 8 * 1024;
/// What one of them may take of that part, its parsed form included; a message takes about 6 KiB. Beyond, it is as
/// others.
const SMALL_PAID_BYTES: u64 = 16 * 1024;
/// That part: ten messages at once, of the 768 KiB or more that the account has.
pub(super) const SMALL_BODIES_BYTES: u64 = 64 * 1024;
/// The headers that any handler reads; the others, up to a whole head of them, are not kept while a request waits.
static KEPT_HEADERS: [HeaderName; 16] = [
    header::ACCEPT_ENCODING,
    header::AUTHORIZATION,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::COOKIE,
    header::EXPECT,
    header::FORWARDED,
    header::HOST,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::RANGE,
    header::VIA,
    HeaderName::from_static("sec-fetch-site"),
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-real-ip"),
];
/// The longest host of a request that is shown to the caller: a name of 253, a colon and a port.
const HOST_BYTES_MAX: usize = 259;
/// How much of a refused body is read and discarded, so that the peer gets to see the refusal.
const DISCARD_BYTES_MAX: u64 = 1 << 20;
/// How long that may take.
const DISCARD_TIME_MAX: Duration = Duration::from_secs(2);

/// The other end of the connection.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// The caller's address, taken from `X-Forwarded-For` when a trusted proxy connected.
    pub ip: IpAddr,
    /// Whether the caller's connection was encrypted, taken from `X-Forwarded-Proto` when a trusted proxy connected.
    pub tls: bool,
}

/// The parts of `http` that a request carries along.
#[derive(Clone)]
pub(super) struct Tools {
    pub clock: Clock,
    pub bodies: Account,
    pub limits: Arc<Limits>,
    pub places: Arc<Places>,
    pub json_bytes_max: u64,
}

pub struct Request {
    method: Method,
    target: String,
    path_len: usize,
    headers: HeaderMap,
    peer: Peer,
    template: String,
    params: Vec<(String, String)>,
    inbound: Inbound,
    tools: Tools,
    /// The connection it came on.
    watch: Option<Arc<PeerWatch>>,
    /// Pays for the body and what is parsed from it, until the request is dropped.
    grant: Option<Grant>,
    /// Rates do not hold for it.
    unlimited: AtomicBool,
}

enum Inbound {
    Wire(Incoming),
    /// Read whole, or given whole by a test.
    Whole(Bytes),
}

impl Request {
    pub(super) fn new(request: hyper::Request<Incoming>, peer: Peer, tools: Tools, watch: Arc<PeerWatch>) -> Self {
        let (head, body) = request.into_parts();
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        let is_read = !matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS);
        // Over HTTP/1 an unread body stands before the next request and must be read past.
        let inbound = if is_read || head.version < hyper::Version::HTTP_2 {
            Inbound::Wire(body)
        } else {
            Inbound::Whole(Bytes::new())
        };
        let mut headers = kept(&head.headers);
        // HTTP/2 has the host in the target.
        if let Some(host) = head.uri.authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok()) {
            headers.entry(header::HOST).or_insert(host);
        }
        let request = Self::build(head.method, target, headers, peer, inbound, tools);
        Self { watch: Some(watch), ..request }
    }

    fn build(method: Method, target: String, headers: HeaderMap, peer: Peer, inbound: Inbound, tools: Tools) -> Self {
        let path_len = target.find('?').unwrap_or(target.len());
        let (template, params) = (String::new(), Vec::new());
        Self {
            method,
            target,
            path_len,
            headers,
            peer,
            template,
            params,
            inbound,
            tools,
            watch: None,
            grant: None,
            unlimited: AtomicBool::new(false),
        }
    }

    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Path and query exactly as received: another server's signature covers them.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The path as received, still percent-encoded.
    pub fn path(&self) -> &str {
        &self.target[..self.path_len]
    }

    /// The template this request was matched with, for logs: it has no ids and no tokens in it.
    pub fn template(&self) -> &str {
        &self.template
    }

    pub fn peer(&self) -> Peer {
        self.peer
    }

    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// A header's value, when it is text. Only those of `KEPT_HEADERS` are there.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The address of this server as the caller wrote it: `http://example.org:8008`. At most 270 bytes, and none that
    /// means something in HTML; nothing when the caller named no proper host.
    pub fn origin(&self) -> Option<String> {
        let host = self.header("host").filter(|host| !host.is_empty() && host.len() <= HOST_BYTES_MAX)?;
        let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'[' | b']');
        let scheme = if self.peer.tls { "https" } else { "http" };
        host.bytes().all(is_fine).then(|| format!("{scheme}://{host}"))
    }

    /// The value of a cookie. Over HTTP/2 each cookie may come in a line of its own (RFC 9113, 8.2.3), and browsers send them so.
    pub fn cookie(&self, name: &str) -> Option<&str> {
        let lines = self.headers.get_all(header::COOKIE).into_iter().filter_map(|line| line.to_str().ok());
        let pairs = lines.flat_map(|line| line.split(';'));
        pairs.filter_map(|pair| pair.trim().split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// Whether a browser says that a page of another site made it send this request.
    pub fn is_cross_site(&self) -> bool {
        self.header("sec-fetch-site").is_some_and(|site| !matches!(site, "same-origin" | "none"))
    }

    /// The access token: `Authorization: Bearer`, or the older `access_token` in the query.
    pub fn access_token(&self) -> Option<Cow<'_, str>> {
        let bearer = self.header("authorization").and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
        bearer.map(Cow::Borrowed).or_else(|| self.query("access_token").map(Cow::Owned))
    }

    /// A path parameter, percent-decoded.
    ///
    /// # Panics
    /// When the template has no such parameter.
    pub fn param(&self, name: &str) -> &str {
        self.param_maybe(name).unwrap_or_else(|| panic!("{} has a parameter {name}", self.template))
    }

    /// A path parameter of a handler that serves several templates.
    pub fn param_maybe(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A path parameter as an identifier or number; 400 `M_INVALID_PARAM` when it is none.
    pub fn param_as<T: FromStr>(&self, name: &str) -> Result<T, ErrorResponse> {
        self.param(name)
            .parse()
            .map_err(|_| ErrorResponse::invalid_param(format!("The path parameter {name} is not valid")))
    }

    pub fn raw_query(&self) -> Option<&str> {
        self.target.get(self.path_len + 1..)
    }

    /// The first value of a query parameter, decoded.
    pub fn query(&self, name: &str) -> Option<String> {
        self.query_all(name).next()
    }

    /// Every value of a query parameter, decoded, in order.
    pub fn query_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = String> + 'a {
        let pairs = form_urlencoded::parse(self.raw_query().unwrap_or("").as_bytes());
        pairs.filter(move |(key, _)| key == name).map(|(_, value)| value.into_owned())
    }

    /// A query parameter as a number, a bool or an identifier; 400 `M_INVALID_PARAM` when it is there but none.
    pub fn query_as<T: FromStr>(&self, name: &str) -> Result<Option<T>, ErrorResponse> {
        self.query(name)
            .map(|value| {
                value.parse().map_err(|_| {
                    ErrorResponse::invalid_param(format!("The query parameter {name} is missing or not valid"))
                })
            })
            .transpose()
    }

    /// From here on the request ends when its peer leaves: for requests that wait long, and may end anywhere. Others
    /// are answered even when an HTTP/1 peer has closed its side, as some versions of nc do after sending a request.
    pub fn cancel_when_peer_leaves(&self) {
        if let Some(watch) = &self.watch {
            watch.report_eof();
            self.tools.places.waits(watch);
        }
    }

    /// Waits until the place of this request's connection is needed for another, or the server stops: a request that
    /// waits for news should answer then.
    pub async fn hurried(&self) {
        match &self.watch {
            Some(watch) => watch.hurried().await,
            None => std::future::pending().await,
        }
    }

    /// The request has shown a good token of `user`: its address is no longer a stranger's.
    pub fn note_guest(&self, user: &str) {
        Span::current().record("user", user);
        self.tools.places.note_guest(self.peer.ip, user);
    }

    /// An unauthenticated password attempt for `user`. Only wrong attempts count for long: by address, and for the user
    /// from all addresses together. An address where the user was lately is counted apart from all others.
    pub fn attempt(&self, rates: &AttemptRates, user: &str) -> Result<Try, ErrorResponse> {
        let (limits, ip) = (&self.tools.limits, self.peer.ip);
        if self.tools.places.is_guest(ip, user) {
            return limits.attempt(rates, &[limits.pair(ip, user)]);
        }
        limits.attempt(rates, &[limits.address(ip), limits.stranger(user)])
    }

    /// A password attempt for `user` from a session of that user on `device`: it counts for that session alone.
    pub fn attempt_in_session(&self, rates: &AttemptRates, user: &str, device: &str) -> Result<Try, ErrorResponse> {
        let limits = &self.tools.limits;
        limits.attempt(rates, &[limits.known(&format!("{user} {device}"))])
    }

    /// The rates of users and addresses do not hold for this request: an operator trusts who makes it.
    pub fn lift_limits(&self) {
        self.unlimited.store(true, Ordering::Relaxed);
    }

    fn is_unlimited(&self) -> bool {
        self.unlimited.load(Ordering::Relaxed)
    }

    /// Takes one request from the caller's allowance, by address; 429 when it is used up.
    pub fn limit(&self, rate: &Rate) -> Result<(), ErrorResponse> {
        if self.is_unlimited() {
            return Ok(());
        }
        self.tools.limits.take_ip(rate, self.peer.ip)
    }

    /// Takes one request from the allowance of the user whose access token the request has shown.
    pub fn limit_user(&self, rate: &Rate, user: &str) -> Result<(), ErrorResponse> {
        if self.is_unlimited() {
            return Ok(());
        }
        self.tools.limits.take_user(rate, user)
    }

    /// As [`Request::limit_user`], at a rate that is this user's own.
    pub fn limit_user_at(&self, own: &Rate, user: &str) -> Result<(), ErrorResponse> {
        if self.is_unlimited() {
            return Ok(());
        }
        self.tools.limits.take_user_at(own, user)
    }

    /// Takes one request from the allowance of the server that has signed the request.
    pub fn limit_server(&self, rate: &Rate, server: &str) -> Result<(), ErrorResponse> {
        self.tools.limits.take_server(rate, server)
    }

    /// The allowances of all callers, for tasks that outlive the request.
    pub fn limits(&self) -> Arc<Limits> {
        self.tools.limits.clone()
    }

    /// The body as JSON, at most the profile's usual size. The grant for it stays with the request.
    pub async fn json<T: DeserializeOwned>(&mut self) -> Result<T, BadBody> {
        self.json_max(self.tools.json_bytes_max).await
    }

    /// Like [`Request::json`]; an absent body counts as `{}`.
    pub async fn json_or_empty<T: DeserializeOwned>(&mut self) -> Result<T, BadBody> {
        self.json_or_empty_max(self.tools.json_bytes_max).await
    }

    /// Like [`Request::json_or_empty`], of at most `bytes_max` bytes.
    pub async fn json_or_empty_max<T: DeserializeOwned>(&mut self, bytes_max: u64) -> Result<T, BadBody> {
        if self.bytes(bytes_max).await?.is_empty() {
            return parse(b"{}");
        }
        self.json_max(bytes_max).await
    }

    /// The body as JSON of at most `bytes_max` bytes, for the few endpoints that take more or much less.
    pub async fn json_max<T: DeserializeOwned>(&mut self, bytes_max: u64) -> Result<T, BadBody> {
        let body = self.bytes(bytes_max).await?;
        self.charge(parsed_bytes_max(&body)).await?;
        parse(&body)
    }

    /// The whole body, at most `bytes_max`. Charged as it comes; asking again gives the same bytes.
    pub async fn bytes(&mut self, bytes_max: u64) -> Result<Bytes, BadBody> {
        if let Inbound::Whole(bytes) = &self.inbound {
            return if bytes.len() as u64 > bytes_max {
                Err(BadBody::TooLarge { bytes_max })
            } else {
                Ok(bytes.clone())
            };
        }
        match self.read_whole(bytes_max).await {
            Ok(bytes) => {
                self.inbound = Inbound::Whole(bytes.clone());
                Ok(bytes)
            }
            // No more bytes will come.
            Err(BadBody::Gone) => Err(BadBody::Gone),
            Err(bad) => {
                self.discard().await;
                Err(bad)
            }
        }
    }

    /// The grant for the body, for work on what was read of it that may outlast the request.
    pub fn take_grant(&mut self) -> Option<Grant> {
        self.grant.take()
    }

    /// Memory for `bytes` more that are derived from the body, for as long as the result is kept.
    pub async fn pay(&self, bytes: u64) -> Result<Grant, BadBody> {
        self.tools.bodies.take(bytes).await.map_err(BadBody::Refused)
    }

    /// Hands the body over piece by piece, for uploads and the like. Nothing is kept and nothing is charged: a piece is
    /// as large as the connection's buffer. `Content-Length` over `bytes_max` is refused here, a longer body on the
    /// way.
    pub fn into_stream(mut self, bytes_max: u64) -> Result<InboundStream, BadBody> {
        if self.content_length().is_some_and(|len| len > bytes_max) {
            return Err(BadBody::TooLarge { bytes_max });
        }
        let inbound = std::mem::replace(&mut self.inbound, Inbound::Whole(Bytes::new()));
        let started = self.tools.clock.instant();
        let (clock, watch) = (self.tools.clock, self.watch);
        Ok(InboundStream { inbound: Some(inbound), clock, watch, received: 0, bytes_max, started })
    }

    /// The declared length of the body.
    pub fn content_length(&self) -> Option<u64> {
        self.header(header::CONTENT_LENGTH.as_str()).and_then(|value| value.parse().ok())
    }

    async fn read_whole(&mut self, bytes_max: u64) -> Result<Bytes, BadBody> {
        let declared = self.content_length();
        if declared.is_some_and(|len| len > bytes_max) {
            return Err(BadBody::TooLarge { bytes_max });
        }
        let (ahead, most) = (declared.unwrap_or(0).min(BODY_AHEAD_MAX), declared.unwrap_or(bytes_max));
        self.charge(ahead).await?;
        let mut whole = Vec::with_capacity(ahead as usize);
        let (clock, started) = (self.tools.clock.clone(), self.tools.clock.instant());
        while let Inbound::Wire(body) = &mut self.inbound {
            let Some(piece) = next_piece(body, &clock, self.watch.as_deref(), started, whole.len() as u64).await?
            else {
                break;
            };
            let len = (whole.len() + piece.len()) as u64;
            if len > bytes_max {
                return Err(BadBody::TooLarge { bytes_max });
            }
            // Doubling, as the vector itself grows, so that the charge equals the allocation.
            if len > whole.capacity() as u64 {
                let more = len.max(2 * whole.capacity() as u64).min(most) - whole.capacity() as u64;
                self.charge(more).await?;
                whole.reserve_exact(whole.capacity() + more as usize - whole.len());
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.into())
    }

    /// Waits for memory as long as the account allows; never longer, since the earlier charge is kept meanwhile.
    async fn charge(&mut self, bytes: u64) -> Result<(), BadBody> {
        let is_small = self.content_length().is_some_and(|length| length <= SMALL_BODY_BYTES)
            && self.grant.as_ref().map_or(0, Grant::bytes).saturating_add(bytes) <= SMALL_PAID_BYTES;
        let more = match is_small {
            true => self.tools.bodies.take_small(bytes).await,
            false => self.tools.bodies.take(bytes).await,
        };
        let more = more.map_err(BadBody::Refused)?;
        match &mut self.grant {
            Some(grant) => grant.absorb(more),
            None => self.grant = Some(more),
        }
        Ok(())
    }

    /// Reads on a little without keeping anything: a peer that is still writing when the connection closes may never
    /// see the refusal.
    async fn discard(&mut self) {
        // A peer that sends `Expect` waits for an answer before it sends a body.
        if self.headers.contains_key(header::EXPECT) {
            return;
        }
        let clock = self.tools.clock.clone();
        let Inbound::Wire(body) = &mut self.inbound else { return };
        let drain = async {
            let mut seen = 0;
            while let Some(Ok(frame)) = body.frame().await {
                seen += frame.data_ref().map_or(0, |data| data.len() as u64);
                if seen > DISCARD_BYTES_MAX {
                    break;
                }
            }
        };
        tokio::select! { () = drain => {}, () = clock.sleep(DISCARD_TIME_MAX) => {} }
    }

    pub(super) fn set_route(&mut self, template: &str, names: &[String], values: Vec<String>) {
        self.template = template.to_owned();
        self.params = names.iter().cloned().zip(values.iter().map(|value| decoded(value))).collect();
    }

    /// What the lines of the log are about that come from this request. The caller is added when it is known: `user` by
    /// [`Request::note_guest`], `server` when a signature was right.
    pub(super) fn span(&self) -> Span {
        let room = ["room_id", "room", "room_id_or_alias"].iter().find_map(|name| self.param_maybe(name));
        tracing::info_span!(
            "request",
            method = self.method.as_str(),
            path = self.template,
            user = Empty,
            server = Empty,
            room
        )
    }

    /// A request that never was on a wire.
    pub fn for_tests(method: Method, target: &str, body: &str) -> Self {
        let clock = Clock::simulated(1_700_000_000_000);
        let tools = Tools {
            limits: Arc::new(Limits::new(clock.clone())),
            places: Places::new(clock.clone(), 1 << 20),
            clock,
            bodies: crate::budget::Budget::for_tests().account("request_bodies"),
            json_bytes_max: 1 << 20,
        };
        let peer = Peer { ip: IpAddr::from([127, 0, 0, 1]), tls: false };
        let body = Inbound::Whole(Bytes::copy_from_slice(body.as_bytes()));
        Self::build(method, target.to_owned(), HeaderMap::new(), peer, body, tools)
    }

    /// Makes a request for tests one of many.
    #[cfg(test)]
    pub fn with_limits(mut self, limits: &Arc<Limits>) -> Self {
        self.tools.limits = limits.clone();
        self
    }

    /// Sets a path parameter of a request for tests.
    pub fn with_param(mut self, name: &str, value: &str) -> Self {
        self.params.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets a header of a request for tests.
    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = value.parse() {
            self.headers.insert(name, value);
        }
        self
    }
}

/// A body handed over piece by piece.
pub struct InboundStream {
    inbound: Option<Inbound>,
    clock: Clock,
    watch: Option<Arc<PeerWatch>>,
    received: u64,
    bytes_max: u64,
    started: Duration,
}

impl InboundStream {
    /// The next piece, or nothing when the body is complete. A broken, stalled or too long body is an error, never an end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BadBody> {
        let piece = match &mut self.inbound {
            None => None,
            Some(Inbound::Whole(bytes)) => {
                let bytes = std::mem::take(bytes);
                self.inbound = None;
                (!bytes.is_empty()).then_some(bytes)
            }
            Some(Inbound::Wire(body)) => {
                next_piece(body, &self.clock, self.watch.as_deref(), self.started, self.received).await?
            }
        };
        self.received += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        if self.received > self.bytes_max {
            return Err(BadBody::TooLarge { bytes_max: self.bytes_max });
        }
        Ok(piece)
    }
}

/// The next data frame; trailers are passed over.
async fn next_piece(
    body: &mut Incoming,
    clock: &Clock,
    watch: Option<&PeerWatch>,
    started: Duration,
    received: u64,
) -> Result<Option<Bytes>, BadBody> {
    let closed = async {
        match watch {
            Some(watch) => watch.closed().await,
            None => std::future::pending().await,
        }
    };
    let mut closed = std::pin::pin!(closed);
    let _reading = watch.map(PeerWatch::read);
    loop {
        let frame = tokio::select! {
            // Bytes that came before the peer closed its side are still to be read.
            biased;
            frame = body.frame() => frame,
            () = &mut closed => return Err(BadBody::Gone),
            () = clock.sleep(BODY_STALL) => return Err(BadBody::Stalled),
        };
        let spent = clock.instant().saturating_sub(started);
        if spent > BODY_STALL && received < spent.as_secs() * BODY_BYTES_PER_S_MIN {
            return Err(BadBody::Stalled);
        }
        match frame {
            None => return Ok(None),
            Some(Err(_)) => return Err(BadBody::Gone),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data()
                    && data.has_remaining()
                {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// The kept headers, copied into buffers of their own: the originals would hold on to the buffer they were read into.
fn kept(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for name in &KEPT_HEADERS {
        for value in headers.get_all(name) {
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                kept.append(name, value);
            }
        }
    }
    kept
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, BadBody> {
    // Checked as a whole: the parser does not validate strings that no field takes.
    let text = std::str::from_utf8(body).map_err(|error| BadBody::NotJson(error.to_string()))?;
    Ok(serde_json::from_str(text)?)
}

/// A text as one part of a path.
pub fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// Undoes the percent-encoding of a path. Invalid UTF-8 becomes U+FFFD, a stray `%` stays.
fn decoded(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn percent_decoding() {
        for (text, plain) in [
            ("a%20b", "a b"),
            ("a+b", "a+b"),
            ("%zz%4", "%zz%4"),
            ("%c3%A4", "ä"),
            ("%ff", "\u{fffd}"),
            ("a%2", "a%2"),
            ("%", "%"),
        ] {
            assert_eq!(decoded(text), plain);
        }
    }

    /// Whoever signed in to the page over HTTPS with Chromium was asked to sign in again: only the first line was read.
    #[test]
    fn cookies_come_in_one_line_or_in_several() {
        let mut request = Request::for_tests(Method::GET, "/x", "");
        assert_eq!(request.cookie("a"), None);
        for line in ["a=1; b=2", "c=3=3", "d"] {
            request.headers.append(header::COOKIE, HeaderValue::from_static(line));
        }
        let found = ["a", "b", "c", "d"].map(|name| request.cookie(name));
        assert_eq!(found, [Some("1"), Some("2"), Some("3=3"), None]);
    }

    #[test]
    fn query_parameters() {
        let request = Request::for_tests(Method::GET, "/x?via=a&limit=10&via=b%3A1&&flag&bad=x&t%65xt=a+b%zz%ff", "");
        assert_eq!(request.query_all("via").collect::<Vec<_>>(), ["a", "b:1"]);
        assert_eq!(request.query_as::<u32>("limit").unwrap(), Some(10));
        assert_eq!(request.query("flag").as_deref(), Some(""));
        assert_eq!(request.query_as::<u32>("bad").unwrap_err().errcode, "M_INVALID_PARAM");
        assert_eq!(request.query("text").as_deref(), Some("a b%zz\u{fffd}"));
        assert_eq!(request.path(), "/x");
    }

    #[tokio::test]
    async fn json_bodies_and_what_is_wrong_with_them() {
        async fn code(body: &str) -> String {
            let mut request = Request::for_tests(Method::POST, "/x", body);
            match request.json::<std::collections::BTreeMap<String, u32>>().await {
                Ok(_) => "ok".to_owned(),
                Err(bad) => ErrorResponse::from(bad).errcode.into_owned(),
            }
        }
        assert_eq!(code(r#"{"a":1}"#).await, "ok");
        assert_eq!(code(r#"{"a":"#).await, "M_NOT_JSON");
        assert_eq!(code("").await, "M_NOT_JSON");
        // Not even in a string that no field takes.
        assert_eq!(
            parse::<serde::de::IgnoredAny>(b"{\"x\":\"\xff\"}")
                .map_err(|bad| ErrorResponse::from(bad).errcode)
                .unwrap_err(),
            "M_NOT_JSON"
        );
        assert_eq!(code(r#"{"a":"b"}"#).await, "M_BAD_JSON");
        let mut request = Request::for_tests(Method::POST, "/x", "");
        assert_eq!(request.json_or_empty::<Value>().await.unwrap(), serde_json::json!({}));
        let mut request = Request::for_tests(Method::POST, "/x", "0123456789");
        assert_eq!(ErrorResponse::from(request.bytes(9).await.unwrap_err()).errcode, "M_TOO_LARGE");
    }

    /// The parser's error quotes the string it did not want, with six bytes for each of DEL. The answer once had all of it,
    /// in buffers that nothing paid for.
    #[tokio::test]
    async fn a_refusal_does_not_repeat_the_body() {
        let body = format!("{{\"a\":\"{}\"}}", "\x7f".repeat(10_000));
        let mut request = Request::for_tests(Method::POST, "/x", &body);
        let bad = request.json::<std::collections::BTreeMap<String, u32>>().await.unwrap_err();
        assert!(matches!(&bad, BadBody::BadJson(reason) if reason.len() < 2_000), "{bad}");
        let account = &request.tools.bodies;
        assert!(account.used() > 120_000, "the quoted string is paid for: {}", account.used());
    }

    #[test]
    fn headers_nobody_asks_for_are_not_kept() {
        let mut came = HeaderMap::new();
        for n in 0..90 {
            came.insert(HeaderName::try_from(format!("x-{n}")).unwrap(), HeaderValue::from_static("much"));
        }
        came.append("authorization", HeaderValue::from_static("X-Matrix one"));
        came.append("authorization", HeaderValue::from_static("X-Matrix two"));
        came.insert("range", HeaderValue::from_static("bytes=0-"));
        let kept = kept(&came);
        assert_eq!((kept.len(), kept.get_all("authorization").iter().count()), (3, 2));
    }

    #[test]
    fn the_address_of_this_server_is_as_the_caller_wrote_it() {
        let of = |host: &str| Request::for_tests(Method::GET, "/", "").with_header("host", host).origin();
        assert_eq!(of("example.org").as_deref(), Some("http://example.org"));
        assert_eq!(of("[fd00::2]:8008").as_deref(), Some("http://[fd00::2]:8008"));
        for wrong in ["", "a b", "a/b", "a\"b", "<b>", "u@h", &"x".repeat(300)] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        assert_eq!(Request::for_tests(Method::GET, "/", "").origin(), None);
    }

    #[test]
    fn tokens_come_from_the_header_or_the_query() {
        let request = Request::for_tests(Method::GET, "/x?access_token=q", "");
        assert_eq!(request.access_token().as_deref(), Some("q"));
        assert_eq!(request.with_header("authorization", "bearer h").access_token().as_deref(), Some("h"));
    }

    #[test]
    fn any_bytes_are_a_query_and_a_token() {
        crate::base::any_bytes::any_bytes(&[b"a=1&b=%20+x&a=2", b"Bearer abc", b"%c3%a4%zz%"], |bytes| {
            let text = String::from_utf8_lossy(bytes);
            decoded(&text);
            let printable: String = text.chars().filter(|c| c.is_ascii_graphic()).collect();
            let request = Request::for_tests(Method::GET, &format!("/x?{printable}"), "");
            let request = request.with_header("authorization", &printable);
            let _ = (request.access_token(), request.query("a"), request.query_all("a").count(), request.path());
        });
    }
}

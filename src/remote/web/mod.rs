//! One bounded web request to any URL, for what is no homeserver: push gateways, previews, sign-in, certificates,
//! application services. The resolver's well-known files come through it, too.
//!
//! Everything a web server or a URL could choose has a bound: the time of the whole exchange, the time without a sign,
//! the bytes of the body, the number of redirects. A head is at most 16 KiB with 100 headers. A connection (40 KiB), the
//! body sent, and the body read are on the `outbound` account. Each URL on the way is looked at anew: its scheme, its
//! form, and the very addresses that are connected to, so that neither a redirect nor a second DNS answer leads to
//! a machine of the home network. Connections are not kept.

#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use rustls::pki_types;
use url::{Host, Url};

use crate::base::Clock;
use crate::budget::{Account, Grant, Refused};
use crate::remote::address::is_private;
use crate::remote::backoff::Backoff;
use crate::remote::connect::{CONNECTION_BYTES, Connection, Dialer, Outgoing, roots};
use crate::remote::contact::{Contact, PATIENCE};
use crate::remote::dns::ADDRESSES_MAX;
use crate::remote::lookup::{Miss, Names};
use crate::remote::outage::TRIAL;
use crate::remote::request::grow;
use crate::remote::resolve::{Target, order_families};
use crate::remote::{Failed, USER_AGENT};

/// A longer URL is refused.
const URL_BYTES_MAX: usize = 8 * 1024;

/// What is asked.
#[derive(Debug, Clone)]
pub struct WebRequest {
    pub method: Method,
    /// `https:` or `http:`, without a user name or password.
    pub url: String,
    /// `Host`, `User-Agent` and the length are added. `Authorization` and `Cookie` go to the first host only.
    pub headers: HeaderMap,
    /// Charged while the request runs.
    pub body: Bytes,
}

impl WebRequest {
    pub fn get(url: String) -> WebRequest {
        WebRequest { method: Method::GET, url, headers: HeaderMap::new(), body: Bytes::new() }
    }
}

/// Where plain HTTP is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plain {
    Never,
    /// For a URL that is given so, and for redirects from such a one; never from `https:` to `http:`.
    WhereGiven,
    /// Also by a redirect from `https:`.
    Everywhere,
}

/// The bounds of one request.
#[derive(Debug, Clone, Copy)]
pub struct WebLimits {
    /// The whole exchange: look-ups, redirects, and reading the body.
    pub time: Duration,
    /// The time until the web server gives a sign, once for each URL.
    pub patience: Duration,
    /// The body of the answer. A body that is read whole is at most half of the account, too.
    pub body_bytes_max: u64,
    /// With 0 a redirect is an answer like any other.
    pub redirects_max: u32,
    pub plain: Plain,
    /// Whether addresses of a home or company network, and this machine's own, may be connected to.
    pub allow_private: bool,
}

impl Default for WebLimits {
    /// Half a minute, 64 KiB, three redirects, HTTPS alone, public addresses alone.
    fn default() -> WebLimits {
        WebLimits {
            time: Duration::from_secs(30),
            patience: PATIENCE,
            body_bytes_max: 64 * 1024,
            redirects_max: 3,
            plain: Plain::Never,
            allow_private: false,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WebFailed {
    /// Not a URL that can be asked; the text says why.
    #[error("not a URL that can be asked: {0}")]
    BadUrl(String),
    /// The address policy forbids it, or plain HTTP is not allowed there.
    #[error("not allowed: {0}")]
    Forbidden(String),
    /// The look-up or the connection failed. `silent`: there was no answer at all.
    #[error("cannot be reached: {why}")]
    Unreachable { why: String, silent: bool },
    /// The time is up.
    #[error("does not answer in time")]
    Timeout,
    #[error("redirects too often")]
    TooManyRedirects,
    /// Something that is not HTTP, a head that is too long, a body that breaks off.
    #[error("answers something unusable: {0}")]
    BadAnswer(String),
    /// The body is longer than was allowed.
    #[error("answers with more than the {max_bytes} bytes allowed")]
    TooLarge { max_bytes: u64 },
    /// Our own memory does not suffice.
    #[error("cannot be asked just now: {0}")]
    Refused(#[from] Refused),
}

impl WebFailed {
    /// Whether the failure may be that of our own network, so that it says nothing about the web server.
    pub fn is_silence(&self) -> bool {
        matches!(self, WebFailed::Unreachable { silent: true, .. } | WebFailed::Timeout | WebFailed::Refused(_))
    }
}

impl From<Failed> for WebFailed {
    fn from(failed: Failed) -> WebFailed {
        match failed {
            Failed::Unreachable { why, silent } => WebFailed::Unreachable { why, silent },
            Failed::Refused(refused) => WebFailed::Refused(refused),
            other => WebFailed::BadAnswer(other.to_string()),
        }
    }
}

/// Asks URLs. Cheap to clone.
#[derive(Clone)]
pub struct Web {
    names: Arc<dyn Names>,
    dialer: Dialer,
    clock: Clock,
    outages: Option<Backoff>,
    is_private: fn(IpAddr) -> bool,
}

impl Web {
    pub(in crate::remote) fn new(names: Arc<dyn Names>, dialer: Dialer, clock: Clock) -> Web {
        Web { names, dialer, clock, outages: None, is_private }
    }

    /// The same way, on which web servers are believed under these roots in PEM too.
    pub fn trusting(&self, pem: &[u8]) -> Result<Web, String> {
        let dialer = Dialer::new(roots(Some(pem))?, self.dialer.account.clone(), self.clock.clone());
        Ok(Web { dialer, ..self.clone() })
    }

    /// While the Internet is gone, no request waits long for a sign.
    pub(in crate::remote) fn during_outages_of(mut self, backoff: Backoff) -> Web {
        self.outages = Some(backoff);
        self
    }

    pub(in crate::remote) fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// What pays for requests and their answers.
    pub(in crate::remote) fn account(&self) -> &Account {
        &self.dialer.account
    }

    /// The addresses of a host, private ones among them.
    pub(in crate::remote) async fn addresses_of(&self, host: &str) -> Result<Vec<IpAddr>, Miss> {
        self.names.all_addresses(host).await
    }

    /// Asks, follows redirects, and returns the answer with its body still to be read. Any status is an answer.
    pub async fn ask(&self, request: WebRequest, limits: WebLimits) -> Result<WebAnswer, WebFailed> {
        self.ask_noting(request, limits, &Contact::default()).await
    }

    /// The same, and notes in `contact` that a web server gave a sign.
    pub(in crate::remote) async fn ask_noting(
        &self,
        request: WebRequest,
        limits: WebLimits,
        contact: &Contact,
    ) -> Result<WebAnswer, WebFailed> {
        let _body = self.dialer.account.take(request.body.len() as u64).await?;
        // Waiting for our own memory takes no time from the web server's.
        let grant = self.dialer.account.take(CONNECTION_BYTES).await?;
        let until = self.clock.instant() + limits.time;
        let asked = self.follow(request, limits, until, contact, grant);
        self.clock.timeout(limits.time, asked).await.unwrap_or(Err(WebFailed::Timeout))
    }

    async fn follow(
        &self,
        mut request: WebRequest,
        limits: WebLimits,
        until: Duration,
        contact: &Contact,
        grant: Grant,
    ) -> Result<WebAnswer, WebFailed> {
        let mut grant = Some(grant);
        let mut url = parse(&request.url)?;
        let mut redirects = 0;
        loop {
            if url.scheme() == "http" && limits.plain == Plain::Never {
                // Without the path, which may be a secret.
                return Err(WebFailed::Forbidden(format!("{} is not https", url.origin().ascii_serialization())));
            }
            let grant = match grant.take() {
                Some(first) => first,
                None => self.dialer.account.take(CONNECTION_BYTES).await?,
            };
            let (response, connection) = self.once(&url, &request, &limits, contact, grant).await?;
            let Some(to) = redirect(&response).filter(|_| limits.redirects_max > 0) else {
                return self.answer(response, connection, url, limits.body_bytes_max, until);
            };
            if redirects == limits.redirects_max {
                return Err(WebFailed::TooManyRedirects);
            }
            redirects += 1;
            let next = check(url.join(&to).map_err(|error| WebFailed::BadUrl(error.to_string()))?)?;
            if url.scheme() == "https" && next.scheme() == "http" && limits.plain != Plain::Everywhere {
                return Err(WebFailed::Forbidden(format!("it redirects from https to {next}")));
            }
            redirected(&mut request, response.status().as_u16(), url.origin() == next.origin());
            url = next;
        }
    }

    /// One request, without following.
    async fn once(
        &self,
        url: &Url,
        request: &WebRequest,
        limits: &WebLimits,
        contact: &Contact,
        grant: Grant,
    ) -> Result<(Response<Incoming>, Connection), WebFailed> {
        if url.scheme() == "https" && !self.clock.is_plausible() {
            let why = "the clock of this server has not been set yet".to_owned();
            return Err(WebFailed::Unreachable { why, silent: true });
        }
        let outage = self.outages.as_ref().is_some_and(Backoff::is_offline);
        let patience = if outage { limits.patience.min(TRIAL) } else { limits.patience };
        let connected = self.clock.timeout(patience, self.connect(url, limits.allow_private, grant, contact)).await;
        let mut connection = connected.unwrap_or_else(|| {
            let why = format!("no sign of it within {} ms", patience.as_millis());
            Err(WebFailed::Unreachable { why, silent: true })
        })?;
        contact.note_made();
        let message = build(url, request)?;
        let response = connection.sender.send_request(message).await;
        Ok((response.map_err(|error| WebFailed::BadAnswer(error.to_string()))?, connection))
    }

    async fn connect(
        &self,
        url: &Url,
        allow_private: bool,
        grant: Grant,
        contact: &Contact,
    ) -> Result<Connection, WebFailed> {
        let (ips, tls_name): (Vec<IpAddr>, pki_types::ServerName<'static>) = match url.host() {
            Some(Host::Domain(name)) => {
                let found = self.names.all_addresses(name).await.map_err(missed)?;
                let name = name.trim_end_matches('.').to_owned();
                let tls_name = pki_types::ServerName::try_from(name);
                (found, tls_name.map_err(|error| WebFailed::BadUrl(error.to_string()))?)
            }
            Some(Host::Ipv4(ip)) => (vec![ip.into()], IpAddr::from(ip).into()),
            Some(Host::Ipv6(ip)) => (vec![ip.into()], IpAddr::from(ip).into()),
            None => return Err(WebFailed::BadUrl("it has no host".into())),
        };
        let port = url.port_or_known_default().unwrap_or(443);
        // These addresses are what is connected to: nothing looks the name up again.
        let allowed = ips.into_iter().filter(|ip| allow_private || !(self.is_private)(*ip));
        let mut addresses: Vec<SocketAddr> = allowed.take(ADDRESSES_MAX).map(|ip| (ip, port).into()).collect();
        order_families(&mut addresses);
        if addresses.is_empty() {
            let host = url.host_str().unwrap_or_default();
            return Err(WebFailed::Forbidden(format!("{host} is at a private address")));
        }
        let target = Target { addresses, tls_name, host: String::new() };
        Ok(match url.scheme() {
            "http" => self.dialer.dial_plain(&target, grant, contact).await?,
            _ => self.dialer.dial(&target, grant, contact).await?,
        })
    }

    fn answer(
        &self,
        response: Response<Incoming>,
        connection: Connection,
        url: Url,
        max_bytes: u64,
        until: Duration,
    ) -> Result<WebAnswer, WebFailed> {
        let (head, incoming) = response.into_parts();
        let length = head.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if length.is_some_and(|length: u64| length > max_bytes) {
            return Err(WebFailed::TooLarge { max_bytes });
        }
        Ok(WebAnswer {
            status: head.status.as_u16(),
            headers: head.headers,
            url: url.into(),
            incoming,
            account: self.dialer.account.clone(),
            clock: self.clock.clone(),
            until,
            max_bytes,
            received: 0,
            _connection: connection,
        })
    }
}

/// An answer whose body is still to be read. Dropping it closes the connection.
pub struct WebAnswer {
    pub status: u16,
    /// Bounded by the connection's buffer of 16 KiB.
    pub headers: HeaderMap,
    /// The URL that answered, after all redirects.
    pub url: String,
    incoming: Incoming,
    account: Account,
    clock: Clock,
    until: Duration,
    max_bytes: u64,
    received: u64,
    /// Its grant pays for the piece of the body that is read.
    _connection: Connection,
}

impl WebAnswer {
    /// The next piece of the body, at most 16 KiB or so; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, WebFailed> {
        loop {
            let left = self.until.saturating_sub(self.clock.instant());
            let frame = self.clock.timeout(left, self.incoming.frame()).await.ok_or(WebFailed::Timeout)?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|error| WebFailed::BadAnswer(format!("the body broke off: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            self.received += data.len() as u64;
            if self.received > self.max_bytes {
                return Err(WebFailed::TooLarge { max_bytes: self.max_bytes });
            }
            return Ok(Some(data));
        }
    }

    /// With a lower bound of the body than was asked for, once the head says what the body is.
    pub fn at_most(mut self, bytes: u64) -> WebAnswer {
        self.max_bytes = self.max_bytes.min(bytes);
        self
    }

    /// The whole body, and the grant that pays for it.
    pub async fn read(mut self) -> Result<(Vec<u8>, Grant), WebFailed> {
        let mut grant = self.account.take(1024).await?;
        // Half the account at most, so that one answer never blocks all others.
        self.max_bytes = self.max_bytes.min(self.account.limit() / 2);
        let mut body = Vec::new();
        while let Some(data) = self.next().await? {
            let length = (body.len() + data.len()) as u64;
            if length > grant.bytes() {
                grow(&mut body, &mut grant, length, self.max_bytes)?;
            }
            body.extend_from_slice(&data);
        }
        Ok((body, grant))
    }
}

fn missed(miss: Miss) -> WebFailed {
    match miss {
        Miss::Absent(why) => WebFailed::Unreachable { why, silent: false },
        Miss::Silent(why) => WebFailed::Unreachable { why, silent: true },
    }
}

fn parse(text: &str) -> Result<Url, WebFailed> {
    if text.len() > URL_BYTES_MAX {
        return Err(WebFailed::BadUrl(format!("longer than {URL_BYTES_MAX} bytes")));
    }
    check(Url::parse(text).map_err(|error| WebFailed::BadUrl(error.to_string()))?)
}

fn check(url: Url) -> Result<Url, WebFailed> {
    let why = if !matches!(url.scheme(), "https" | "http") {
        "neither https nor http"
    } else if !url.username().is_empty() || url.password().is_some() {
        "it holds a user name or a password"
    } else if url.as_str().len() > URL_BYTES_MAX {
        "it is too long"
    } else {
        return Ok(url);
    };
    Err(WebFailed::BadUrl(why.to_owned()))
}

/// Where a 30x answer points.
fn redirect(response: &Response<Incoming>) -> Option<String> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    Some(response.headers().get(header::LOCATION)?.to_str().ok()?.to_owned())
}

/// Fits the request for the next URL, as browsers do: 301, 302 and 303 make a `GET` of what had a body. What proves who
/// asks is only for the host that it was meant for.
fn redirected(request: &mut WebRequest, status: u16, same_origin: bool) {
    if matches!(status, 301..=303) && request.method != Method::HEAD {
        request.method = Method::GET;
        request.body = Bytes::new();
        request.headers.remove(header::CONTENT_TYPE);
    }
    if !same_origin {
        request.headers.remove(header::AUTHORIZATION);
        request.headers.remove(header::COOKIE);
    }
}

fn build(url: &Url, request: &WebRequest) -> Result<Request<Outgoing>, WebFailed> {
    let target = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let host = match url.port() {
        Some(port) => format!("{}:{port}", url.host_str().unwrap_or_default()),
        None => url.host_str().unwrap_or_default().to_owned(),
    };
    let bad = |error: &dyn std::fmt::Display| WebFailed::BadUrl(error.to_string());
    let mut message = Request::builder().method(&request.method).uri(target).body(Outgoing::new(request.body.clone()));
    let message = message.as_mut().map_err(|error| bad(error))?;
    let mut headers = request.headers.clone();
    headers.insert(header::HOST, HeaderValue::try_from(host).map_err(|error| bad(&error))?);
    headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
    *message.headers_mut() = headers;
    Ok(std::mem::take(message))
}

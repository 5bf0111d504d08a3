//! Authentication of the requesting server (server-server API, "Request Authentication").
//!
//! The signature covers the request target exactly as it was received. When it is wrong, rewritings common to reverse
//! proxies are tried, but only to tell the operator in the log what to change.

use percent_encoding::{AsciiSet, percent_decode_str, utf8_percent_encode};
use ruma::{OwnedServerName, ServerName};
use serde::de::DeserializeOwned;

use super::lookup::{Missed, Standing, TURN_MAX};
use super::{Federation, rates};
use crate::{
    base::{self, bounded},
    http::{ErrorResponse, Request},
    matrix::{
        Reject,
        sign::{
            self, PublicKey,
            request::{InPieces, XMatrix},
        },
    },
    remote::{Deed, ENCODED, Known, MYSELF},
};

/// The body limit of all endpoints but transactions: an invite with its stripped state, a key query of a large
/// household.
pub const CONTENT_BYTES_MAX: u64 = 192 * 1024;
/// The copies of a body while its signature is checked: its canonical form twice, and the signed text.
const COPIES_CHECKED: u64 = 3;

/// A request's claim and the key to check it with. Made before the body is read, so that a server without a key costs
/// no memory.
pub struct Claim {
    header: XMatrix,
    pub origin: OwnedServerName,
    key: PublicKey,
    /// Up to when the key vouches for the server, in unix milliseconds.
    valid_until_ms: u64,
    method: String,
    target: String,
}

/// Reads the claim and finds the key. Until the claim is checked only the caller's address is certain, and the limits
/// are charged to that: a caller may write any server's name.
pub async fn claim(federation: &Federation, request: &Request) -> Result<Claim, ErrorResponse> {
    request.limit(&rates::CLAIM)?;
    let header = header(federation, request)?;
    let origin: OwnedServerName =
        header.origin.as_str().try_into().map_err(|_| unauthorized("The origin is not a server name"))?;
    if federation.remote.is_me(&origin) {
        return Err(of_ourselves(federation, request, header));
    }
    if let Some(named) = federation.remote.barred().server(&origin, Deed::Request).await {
        return Err(ErrorResponse::forbidden(named.sentence()));
    }
    let known = match known(federation, &origin, &header.key).await? {
        Some(known) => Some(known),
        None => fetched(federation, request, &origin, &header.key).await?,
    };
    let known = known.ok_or_else(|| unauthorized(format!("The key {} of {origin} cannot be found", header.key)))?;
    let (method, target) = (request.method().as_str().to_owned(), request.target().to_owned());
    let (key, valid_until_ms) = ((*known.key).clone(), known.valid_until_ms);
    Ok(Claim { header, origin, key, valid_until_ms, method, target })
}

/// The refusal of a request in this server's own name. Whether its signature is right tells the operator, who has sent it
/// to the public address, whether a proxy on the way has rewritten it (`remote/examine.rs`).
fn of_ourselves(federation: &Federation, request: &Request, header: XMatrix) -> ErrorResponse {
    let (method, target) = (request.method().to_string(), request.target().to_owned());
    let key = federation.key.public();
    match sign::request::check(&header, &key, &federation.server_name, &method, &target, None) {
        Ok(()) => unauthorized(MYSELF),
        Err(_) => unauthorized(format!("The signature is not that of {method} {}", bounded(target, 300))),
    }
}

/// A key that is already stored and may be believed now.
async fn known(federation: &Federation, origin: &ServerName, key: &str) -> Result<Option<Known>, ErrorResponse> {
    let (keys, origin, key) = (federation.remote.keys(), origin.to_owned(), key.to_owned());
    let known = base::blocking(move || keys.cached(&origin, &key)).await.map_err(ErrorResponse::internal)?;
    Ok(known.filter(|known| known.is_valid_at(federation.clock.now_ms())))
}

/// A key that must be fetched. A caller may name any server here, so only few are fetched at once, and not often for
/// the same address.
async fn fetched(
    federation: &Federation,
    request: &Request,
    origin: &ServerName,
    key: &str,
) -> Result<Option<Known>, ErrorResponse> {
    request.limit(&rates::STRANGER)?;
    let (standing, keys) = (standing(federation, origin).await?, federation.remote.keys());
    // The turn before may have fetched the same key.
    let asking = keys.get_of_caller(origin, key, federation.clock.now_ms());
    match federation.lookups.run(standing, request.peer().ip, origin, TURN_MAX, asking).await {
        Ok(found) => found.map_err(ErrorResponse::internal),
        Err(Missed::NoTurn) => Err(ErrorResponse::limit_exceeded(TURN_MAX.as_millis() as u64)),
        Err(Missed::Silent) => {
            keys.give_up(origin);
            Ok(None)
        }
    }
}

/// The standing of a server whose key is to be fetched.
pub async fn standing(federation: &Federation, server: &ServerName) -> Result<Standing, ErrorResponse> {
    let (rooms, keys, server) = (federation.rooms.clone(), federation.remote.keys(), server.to_owned());
    base::blocking(move || {
        if rooms.is_with(&server).map_err(ErrorResponse::internal)? {
            return Ok(Standing::InOurRooms);
        }
        let is_known = keys.were_known(&server).map_err(ErrorResponse::internal)?;
        Ok(if is_known { Standing::SeenBefore } else { Standing::Stranger })
    })
    .await
}

/// A server has sent a correctly signed request. Its key is renewed before it runs out, if the server is in one of our
/// rooms, so that it need not wait for a lookup turn then.
pub async fn heard_from(federation: &Federation, origin: &ServerName, valid_until_ms: u64) {
    tracing::Span::current().record("server", origin.as_str());
    federation.remote.backoff().heard_from(origin).await;
    let keys = federation.remote.keys();
    if !keys.is_renewal_due(origin, valid_until_ms) {
        return;
    }
    let (rooms, server) = (federation.rooms.clone(), origin.to_owned());
    match base::blocking(move || rooms.is_with(&server)).await {
        Ok(true) => keys.renew_soon(origin),
        Ok(false) => {}
        Err(failed) => tracing::warn!(%origin, %failed, "the rooms shared with a server could not be read"),
    }
}

/// The request's authorization header that is meant for this server.
fn header(federation: &Federation, request: &Request) -> Result<XMatrix, ErrorResponse> {
    let mut why = "Missing X-Matrix authorization".to_owned();
    for value in request.headers().get_all("authorization") {
        let parsed = value.to_str().map_err(|_| "not text".to_owned());
        match parsed.and_then(|text| sign::request::parse(text).map_err(|reject| reject.to_string())) {
            Ok(header) if header.destination.as_deref().is_none_or(|to| to == federation.server_name.as_str()) => {
                return Ok(header);
            }
            Ok(header) => {
                let to = header.destination.unwrap_or_default();
                why = format!("The destination of the request is {to}, and this server is {}", federation.server_name);
            }
            Err(error) => why = error,
        }
    }
    Err(unauthorized(why))
}

impl Claim {
    #[cfg(test)]
    pub fn for_tests(header: &str, origin: &ServerName, key: &sign::Key, method: &str, target: &str) -> Claim {
        let (header, key) = (sign::request::parse(header).expect("a header of ours"), key.public());
        let (method, target) = (method.to_owned(), target.to_owned());
        Claim { header, origin: origin.to_owned(), key, valid_until_ms: u64::MAX, method, target }
    }

    /// Up to when the key vouches for the server, in unix milliseconds.
    pub fn valid_until_ms(&self) -> u64 {
        self.valid_until_ms
    }

    /// Whether the claimed server signed this request with this body.
    pub fn check(&self, us: &ServerName, content: &[u8]) -> Result<(), ErrorResponse> {
        let content = (!content.is_empty()).then_some(content);
        let checked = sign::request::check(&self.header, &self.key, us, &self.method, &self.target, content);
        checked.map_err(|reject| self.refusal(reject, || self.explain(us, content)))
    }

    /// Like `check`, for a body in canonical form that passes a piece at a time.
    pub fn in_pieces(&self, us: &ServerName) -> Result<InPieces, Reject> {
        InPieces::new(&self.header, &self.key, us, &self.method, &self.target)
    }

    /// The answer to a request whose signature is wrong. `explain`: the target under which it would have been right.
    pub fn refusal(&self, reject: Reject, explain: impl FnOnce() -> Option<String>) -> ErrorResponse {
        if reject.kind == crate::matrix::Kind::Json {
            return ErrorResponse::bad("M_NOT_JSON", format!("The body is not JSON: {reject}"));
        }
        match explain() {
            Some(signed) => tracing::warn!(
                origin = %self.origin, received = %self.target, %signed,
                "a reverse proxy rewrites the path of requests: it must pass it on unchanged (nginx: `proxy_pass` without a path; Apache: `nocanon`)"
            ),
            None => tracing::info!(origin = %self.origin, target = %self.target, "wrong signature on a request"),
        }
        unauthorized(format!("The signature of {} on this request is wrong", self.origin))
    }

    /// The target under which the signature would have been right.
    fn explain(&self, us: &ServerName, content: Option<&[u8]>) -> Option<String> {
        rewritings(&self.target)
            .into_iter()
            .find(|target| sign::request::check(&self.header, &self.key, us, &self.method, target, content).is_ok())
    }
}

/// Checks a request with a body of ordinary size; the body stays with the request.
pub async fn origin(federation: &Federation, request: &mut Request) -> Result<OwnedServerName, ErrorResponse> {
    let claim = claim(federation, request).await?;
    let content = request.bytes(CONTENT_BYTES_MAX).await?;
    let copies = request.pay(COPIES_CHECKED * content.len() as u64).await?;
    claim.check(&federation.server_name, &content)?;
    drop(copies);
    request.limit_server(&rates::REQUEST, claim.origin.as_str())?;
    heard_from(federation, &claim.origin, claim.valid_until_ms).await;
    Ok(claim.origin)
}

/// Like `origin`, with the body as JSON.
pub async fn origin_and_json<T: DeserializeOwned>(
    federation: &Federation,
    request: &mut Request,
) -> Result<(OwnedServerName, T), ErrorResponse> {
    let origin = origin(federation, request).await?;
    Ok((origin, request.json_max(CONTENT_BYTES_MAX).await?))
}

fn unauthorized(why: impl Into<String>) -> ErrorResponse {
    ErrorResponse::unauthorized("M_UNAUTHORIZED", why)
}

/// What proxies encode in a path.
const PATH: AsciiSet = ENCODED.remove(b'/');
const PATH_WITH_IDS: AsciiSet = PATH.remove(b':').remove(b'@');
const PATH_WITH_SIGILS: AsciiSet = PATH_WITH_IDS.remove(b'!').remove(b'$');

/// The targets a proxy may have changed into this one: decoded, encoded anew, or encoded twice.
fn rewritings(target: &str) -> Vec<String> {
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, format!("?{query}")),
        None => (target, String::new()),
    };
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let encode = |text: &str, but: &'static AsciiSet| utf8_percent_encode(text, but).to_string();
    let decoded = decode(path);
    let mut found = vec![
        decoded.clone(),
        encode(&decoded, &PATH),
        encode(&decoded, &PATH_WITH_IDS),
        encode(&decoded, &PATH_WITH_SIGILS),
        decode(&decoded),
        format!("{path}/"),
        path.trim_end_matches('/').to_owned(),
    ];
    found.retain(|other| other != path);
    found.dedup();
    found.into_iter().map(|path| format!("{path}{query}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxys_rewriting_is_recognised() {
        let key = sign::Key::from_seed("1", [1; 32]);
        let us: &ServerName = "us.example".try_into().unwrap();
        let them: &ServerName = "them.example".try_into().unwrap();
        let signed = "/_matrix/federation/v1/state/%21room%3Athem.example?event_id=%24x";
        let header = sign::request::sign(&key, them, us, "GET", signed, None).unwrap();
        let claim = |target: &str| Claim::for_tests(&header, them, &key, "GET", target);
        assert!(claim(signed).check(us, b"").is_ok());
        let rewritten = claim("/_matrix/federation/v1/state/!room:them.example?event_id=%24x");
        assert!(rewritten.check(us, b"").is_err());
        assert_eq!(rewritten.explain(us, None).as_deref(), Some(signed));
        assert_eq!(claim("/other").explain(us, None), None);
    }

    /// Any caller could write a server's name into requests and so use up its allowance: it was refused with 429 then.
    #[tokio::test]
    async fn forged_requests_cost_the_forged_server_nothing() {
        let house = crate::room::testing::house();
        let federation = super::super::tests::federation(&house, &crate::budget::Budget::for_tests());
        let key = sign::Key::from_seed("1", [1; 32]);
        let them: &ServerName = "them.example".try_into().unwrap();
        let (id, public) = (key.id().to_owned(), key.public().to_bytes());
        let known = house.store.write(move |w| {
            let (key, valid_until_ms) = (public, u64::MAX / 2);
            let stored = crate::store::tables::server::signing_key::Stored { key, valid_until_ms, expired: false };
            crate::store::tables::server::signing_key::set(w, them, &id, &stored)
        });
        known.await.map_err(|failed: crate::store::WriteError<crate::store::Error>| failed.into_inner()).unwrap();
        let target = "/_matrix/federation/v1/event/%24x";
        let right = sign::request::sign(&key, them, &house.server, "GET", target, None).unwrap();
        let forged = right.replacen("sig=\"", "sig=\"AAAA", 1);
        let first = Request::for_tests(crate::http::Method::GET, target, "");
        let limits = first.limits();
        let ask = async |header: &str| {
            let request = Request::for_tests(crate::http::Method::GET, target, "").with_limits(&limits);
            origin(&federation, &mut request.with_header("authorization", header)).await
        };
        let mut refused = 0;
        for _ in 0..399 {
            let answer = ask(&forged).await.unwrap_err();
            refused += usize::from(answer.errcode == "M_UNAUTHORIZED");
        }
        assert_eq!(refused, 399);
        assert_eq!(ask(&right).await.unwrap(), them);
        assert_eq!(ask(&forged).await.unwrap_err().errcode, "M_LIMIT_EXCEEDED", "the address has paid");
    }
}

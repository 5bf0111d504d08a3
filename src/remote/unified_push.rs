//! Messages to UnifiedPush endpoints (UnifiedPush, "Application server"): one bounded request each.
//!
//! The endpoint's URL is somebody's free choice, so it goes through [`super::web`] with its policy of addresses. No
//! redirect is followed.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};

use super::web::{Plain, Web, WebFailed, WebLimits, WebRequest};

/// The whole exchange.
const TIME_MAX: Duration = Duration::from_secs(20);
/// Of the answer, which nobody reads.
const ANSWER_BYTES_MAX: u64 = 4 << 10;
/// How long the push service keeps a message for a phone that is away, in seconds.
const KEEP_SECONDS: &str = "86400";

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    Taken,
    /// There is no such endpoint, or no longer.
    Rejected,
}

/// Sends a message. `near`: the operator named this place, so it may be in the home network and without TLS.
pub async fn send(web: &Web, endpoint: &str, message: Vec<u8>, near: bool) -> Result<Sent, WebFailed> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert("ttl", HeaderValue::from_static(KEEP_SECONDS));
    let body = Bytes::from(message);
    let request = WebRequest { method: Method::POST, url: endpoint.to_owned(), headers, body };
    let limits = WebLimits {
        time: TIME_MAX,
        body_bytes_max: ANSWER_BYTES_MAX,
        redirects_max: 0,
        plain: if near { Plain::WhereGiven } else { Plain::Never },
        allow_private: near,
        ..WebLimits::default()
    };
    match web.ask(request, limits).await {
        Ok(answer) => match answer.status {
            200..=299 => Ok(Sent::Taken),
            404 | 410 => Ok(Sent::Rejected),
            status => Err(WebFailed::BadAnswer(format!("status {status}"))),
        },
        Err(WebFailed::BadUrl(_)) => Ok(Sent::Rejected),
        // An answer of any length is an answer.
        Err(WebFailed::TooLarge { .. }) => Ok(Sent::Taken),
        Err(failed) => Err(failed),
    }
}

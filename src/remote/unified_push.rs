//! Messages to UnifiedPush endpoints (UnifiedPush, "Application server"): one bounded request each.
//!
//! The endpoint's URL is somebody's free choice, so it goes through [`super::web`] with its policy of addresses. No
//! redirect is followed.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};

use super::web::{Plain, Web, WebAnswer, WebFailed, WebLimits, WebRequest};

/// The whole exchange.
const TIME_MAX: Duration = Duration::from_secs(15);
/// How long the push service keeps a message for a phone that is away, in seconds.
const KEEP_SECONDS: &str = "86400";

/// A longer wait that an answer asks for is not heard.
const WAIT_MS_MAX: u64 = 3_600_000;

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    Taken,
    /// There is no such endpoint, or no longer.
    Rejected,
    /// This message is not taken, and would not be another time.
    Unfit {
        status: u16,
    },
    /// It may be another time.
    Failed {
        status: u16,
        /// How long the answer says to wait, in milliseconds; 0 when it does not.
        wait_ms: u64,
    },
}

impl Sent {
    /// What the head of an answer says, for what is no endpoint.
    pub fn of(answer: &WebAnswer) -> Sent {
        match answer.status {
            200..=299 => Sent::Taken,
            // What is wrong, too long, or makes no sense is that again.
            status @ (400 | 413 | 422) => Sent::Unfit { status },
            status => Sent::Failed { status, wait_ms: wait_ms(&answer.headers) },
        }
    }
}

/// Of `Retry-After` in seconds; a date is not read.
fn wait_ms(headers: &HeaderMap) -> u64 {
    let seconds = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
    seconds.map_or(0, |seconds| seconds.saturating_mul(1000).min(WAIT_MS_MAX))
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
        // The status says all. Nobody reads the body, so any length of it will do.
        body_bytes_max: u64::MAX,
        redirects_max: 0,
        plain: if near { Plain::WhereGiven } else { Plain::Never },
        allow_private: near,
        ..WebLimits::default()
    };
    match web.ask(request, limits).await {
        Ok(answer) => match answer.status {
            404 | 410 => Ok(Sent::Rejected),
            _ => Ok(Sent::of(&answer)),
        },
        Err(WebFailed::BadUrl(_)) => Ok(Sent::Rejected),
        Err(failed) => Err(failed),
    }
}

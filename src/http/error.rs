//! Status, code and message of a refusal, and the one place an internal cause is logged.

use super::{Response, StatusCode};
use crate::base::brief;
use crate::budget::Refused;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::fmt::Display;

/// A refusal as the peer sees it: `{"errcode", "error", …extra}` under a status.
///
/// Each surface's `error.rs` turns the errors of the parts it calls into one of these.
#[derive(Debug, Clone)]
pub struct ErrorResponse {
    pub status: StatusCode,
    pub errcode: Cow<'static, str>,
    pub message: String,
    pub extra: Map<String, Value>,
}

impl ErrorResponse {
    pub fn new(status: StatusCode, errcode: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { status, errcode: errcode.into(), message: message.into(), extra: Map::new() }
    }

    /// Adds a field beside `errcode` and `error`, such as `soft_logout` or `room_version`.
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(field.to_owned(), value.into());
        self
    }

    /// 400 with the code given.
    pub fn bad(errcode: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, errcode, message)
    }

    pub fn invalid_param(message: impl Into<String>) -> Self {
        Self::bad("M_INVALID_PARAM", message)
    }

    pub fn missing_param(name: &str) -> Self {
        Self::bad("M_MISSING_PARAM", format!("The parameter {name} is missing"))
    }

    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "M_FORBIDDEN", message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "M_NOT_FOUND", message)
    }

    pub fn unauthorized(errcode: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, errcode, message)
    }

    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", message)
    }

    /// 429 with the time after which trying again makes sense; `Retry-After` is set from it when the answer is sent.
    pub fn limit_exceeded(retry_after_ms: u64) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "M_LIMIT_EXCEEDED", "Too many requests, try again later")
            .with("retry_after_ms", retry_after_ms)
    }

    /// 503 for a caller that found no place, with the time after which trying again makes sense, also in `Retry-After`.
    pub fn no_place(retry_after_ms: u64) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "M_LIMIT_EXCEEDED", "The server is busy, try again later")
            .with("retry_after_ms", retry_after_ms)
    }

    /// No endpoint has this path.
    pub fn unrecognized() -> Self {
        Self::new(StatusCode::NOT_FOUND, "M_UNRECOGNIZED", "Unrecognized request")
    }

    /// The path exists, but not for this method.
    pub fn wrong_method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "M_UNRECOGNIZED", "Unrecognized method for this path")
    }

    /// 500 for a cause that is ours. The cause goes to the log, once, here; the peer learns nothing of it.
    pub fn internal(cause: impl Display) -> Self {
        tracing::error!("internal error: {cause}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "M_UNKNOWN", "Internal server error")
    }

    pub fn into_response(self) -> Response {
        let mut fields = self.extra;
        let retry_after_ms = fields.get("retry_after_ms").and_then(Value::as_u64);
        fields.insert("errcode".to_owned(), self.errcode.into_owned().into());
        fields.insert("error".to_owned(), self.message.into());
        let response = Response::json_with(self.status, &fields);
        match retry_after_ms {
            Some(ms) => response.header("retry-after", &ms.div_ceil(1000).max(1).to_string()),
            None => response,
        }
    }
}

impl From<Refused> for ErrorResponse {
    fn from(refused: Refused) -> Self {
        if refused.too_large {
            return Self::too_large("This request needs more memory than the server's memory budget allows");
        }
        tracing::debug!(account = %refused.account, asked = refused.asked, "request refused for lack of memory");
        Self::limit_exceeded(refused.retry_after_ms)
    }
}

/// Why a request's body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum BadBody {
    /// Longer than this endpoint takes, in bytes.
    #[error("the body has more than {bytes_max} bytes")]
    TooLarge { bytes_max: u64 },
    /// No memory for it now.
    #[error(transparent)]
    Refused(Refused),
    /// Not JSON at all.
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    /// JSON, but not of the shape this endpoint takes.
    #[error("{0}")]
    BadJson(String),
    /// The peer stopped sending, or sends too slowly to be worth a buffer.
    #[error("the body stalled")]
    Stalled,
    /// The peer went away, or broke the framing.
    #[error("the body ended early")]
    Gone,
}

impl From<serde_json::Error> for BadBody {
    fn from(wrong: serde_json::Error) -> Self {
        let reason = brief(&wrong);
        if wrong.is_data() { BadBody::BadJson(reason) } else { BadBody::NotJson(reason) }
    }
}

impl From<BadBody> for ErrorResponse {
    fn from(bad: BadBody) -> Self {
        match bad {
            BadBody::TooLarge { bytes_max } => Self::too_large(format!("The body may have {bytes_max} bytes at most")),
            BadBody::Refused(refused) => refused.into(),
            BadBody::NotJson(reason) => Self::bad("M_NOT_JSON", format!("The body is not JSON: {reason}")),
            BadBody::BadJson(reason) => Self::bad("M_BAD_JSON", reason),
            BadBody::Stalled => Self::new(StatusCode::REQUEST_TIMEOUT, "M_UNKNOWN", "The body took too long to arrive"),
            BadBody::Gone => Self::bad("M_UNKNOWN", "The body ended early"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_answer_carries_its_time_twice() {
        let response = ErrorResponse::limit_exceeded(1500).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers().get("retry-after").unwrap(), "2");
        let body: Value = serde_json::from_slice(response.body_bytes().unwrap()).unwrap();
        assert_eq!(body["retry_after_ms"], 1500);
        assert_eq!(body["errcode"], "M_LIMIT_EXCEEDED");
    }
}

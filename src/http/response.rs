//! The response a handler returns.

use super::body::{self, Body};
use super::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use crate::base::Chunks;
use crate::budget::Grant;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Serialize;
use sha2::{Digest, Sha256};

/// Status, headers and a body that is small, or streamed with a grant.
pub struct Response {
    status: StatusCode,
    headers: HeaderMap,
    body: Body,
}

impl Response {
    /// An answer without a body.
    pub fn empty(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), body: Body::empty() }
    }

    /// `{}`, which many endpoints answer.
    pub fn ok() -> Self {
        Self::json_bytes(StatusCode::OK, Bytes::from_static(b"{}"))
    }

    /// 200 with a small value. A value whose length depends on a room goes to [`Response::stream`] instead.
    pub fn json(value: &impl Serialize) -> Self {
        Self::json_with(StatusCode::OK, value)
    }

    pub fn json_with(status: StatusCode, value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(bytes) => Self::json_bytes(status, bytes),
            Err(cause) => super::ErrorResponse::internal(format_args!("an answer cannot be written as JSON: {cause}"))
                .into_response(),
        }
    }

    /// JSON that is already written.
    pub fn json_bytes(status: StatusCode, bytes: impl Into<Bytes>) -> Self {
        Self::bytes(status, "application/json", bytes)
    }

    pub fn bytes(status: StatusCode, content_type: &str, bytes: impl Into<Bytes>) -> Self {
        Self::of(status, content_type, Body::small(bytes.into(), None))
    }

    /// Bytes with the grant that pays for them; it is returned when the last of them has been sent.
    pub fn charged(status: StatusCode, content_type: &str, bytes: Vec<u8>, grant: Grant) -> Self {
        Self::of(status, content_type, Body::small(bytes.into(), Some(grant)))
    }

    /// A small page of our own, with the style sheet and the script that stand in it. No other may be used in it, it may
    /// load nothing, and no page may frame it. Pictures may stand in it as `data:` URLs.
    pub fn html(page: impl Into<Bytes>, style: &str, script: &str) -> Self {
        Self::html_that(page.into(), style, script, "")
    }

    /// The same, and its script may ask this server.
    pub fn html_asking(page: impl Into<Bytes>, style: &str, script: &str) -> Self {
        Self::html_that(page.into(), style, script, "connect-src 'self'; ")
    }

    fn html_that(page: Bytes, style: &str, script: &str, may: &str) -> Self {
        let hash = |text: &str| STANDARD.encode(Sha256::digest(text));
        let policy = format!(
            "default-src 'none'; {may}style-src 'sha256-{}'; script-src 'sha256-{}'; img-src data:; base-uri 'none'; form-action 'self'; \
             frame-ancestors 'none'",
            hash(style),
            hash(script)
        );
        Self::bytes(StatusCode::OK, "text/html; charset=utf-8", page)
            .header("content-security-policy", &policy)
            .header("x-content-type-options", "nosniff")
            .header("x-frame-options", "DENY")
            .header("referrer-policy", "no-referrer")
            .header("cache-control", "no-store")
    }

    /// 200 with JSON made a bounded piece at a time, see [`super::stream`].
    pub fn stream(grant: Grant, chunks: impl Chunks) -> Self {
        Self::of(StatusCode::OK, "application/json", body::stream(grant, chunks))
    }

    /// A body of any kind.
    pub fn of(status: StatusCode, content_type: &str, body: Body) -> Self {
        Self { status, headers: HeaderMap::new(), body }.header("content-type", content_type)
    }

    /// Sets a header. An invalid value (it may come from an untrusted peer) is left out.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
            self.headers.insert(name, value);
        }
        self
    }

    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// The answer with the grant that pays for its small body, until the last of it has been sent.
    pub fn paid_by(mut self, grant: Grant) -> Self {
        self.body = self.body.paid_by(grant);
        self
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The body when it is a small one.
    pub fn body_bytes(&self) -> Option<&[u8]> {
        self.body.as_small()
    }

    /// The response to a HEAD: the same head, without a body.
    pub(super) fn into_head(mut self) -> Self {
        if let Some(len) = self.body.len()
            && !self.headers.contains_key(header::CONTENT_LENGTH)
        {
            self.headers.insert(header::CONTENT_LENGTH, len.into());
        }
        self.body = Body::empty();
        self
    }

    pub(super) fn into_hyper(self) -> hyper::Response<Body> {
        let mut response = hyper::Response::new(self.body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_runs_no_other_style_or_script_than_its_own() {
        let page = Response::html("", "", "a");
        let policy = page.headers().get("content-security-policy").unwrap().to_str().unwrap();
        for part in [
            "default-src 'none'",
            "style-src 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='",
            "script-src 'sha256-ypeBEsobvcr6wjGzmiPcTaeG7/gUfE5yuYB3ha/uSLs='",
            "form-action 'self'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(part), "{part}: {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
    }
}

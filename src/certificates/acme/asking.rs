//! Requests to an ACME authority, over the server's own way to the web.
//!
//! What an authority sends is bounded before the ACME library parses it: the bytes of an answer and the number of its
//! parts (the library keeps 120 bytes for each entry of a list), and the time it asks to wait, which the library adds
//! to the clock.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full};
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};

use crate::remote::web::{Plain, Web, WebFailed, WebLimits, WebRequest};

/// A directory, an order or an authorization has one or two KiB, a chain of certificates four or five.
const JSON_BYTES_MAX: u64 = 16 * 1024;
const CHAIN_BYTES_MAX: u64 = 64 * 1024;
/// Commas in a text: an order of 24 names has some fifty.
const PARTS_MAX: usize = 256;
/// The longest that an authority may make us wait between two looks.
const WAIT_S_MAX: u64 = 24 * 3600;

/// The way to one authority. Cheap to clone.
#[derive(Clone)]
pub struct Asking {
    web: Web,
    limits: WebLimits,
    /// The last `Retry-After`, in seconds; 0 for none.
    wait_s: Arc<AtomicU64>,
}

impl Asking {
    /// `is_named`: the operator chose the authority, which may be in the own network.
    pub fn new(web: Web, is_named: bool) -> Asking {
        let limits = WebLimits {
            time: Duration::from_secs(60),
            patience: Duration::from_secs(20),
            body_bytes_max: CHAIN_BYTES_MAX,
            redirects_max: 0,
            plain: Plain::Never,
            allow_private: is_named,
        };
        Asking { web, limits, wait_s: Arc::default() }
    }

    /// What the authority last asked to wait.
    pub fn told_to_wait_ms(&self) -> Option<u64> {
        Some(self.wait_s.load(Ordering::Relaxed) * 1000).filter(|ms| *ms > 0)
    }

    /// `GET` of a small JSON text; the status and the text.
    pub async fn get(&self, url: &str) -> Result<(u16, Bytes), WebFailed> {
        let (status, _, body) = self.ask(WebRequest::get(url.to_owned())).await?;
        Ok((status, body))
    }

    async fn ask(&self, request: WebRequest) -> Result<(u16, HeaderMap, Bytes), WebFailed> {
        let answer = self.web.ask(request, self.limits).await?;
        let (status, mut headers) = (answer.status, answer.headers.clone());
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let is_chain = kind.starts_with("application/pem-certificate-chain");
        let (body, _paid) = answer.at_most(if is_chain { CHAIN_BYTES_MAX } else { JSON_BYTES_MAX }).read().await?;
        if !is_chain && memchr::memchr_iter(b',', &body).nth(PARTS_MAX).is_some() {
            return Err(WebFailed::BadAnswer(format!("it has more than {PARTS_MAX} parts")));
        }
        let wait_s = wait_s(&headers);
        headers.remove(header::RETRY_AFTER);
        if wait_s > 0 {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait_s));
        }
        self.wait_s.store(wait_s, Ordering::Relaxed);
        Ok((status, headers, body.into()))
    }
}

/// The seconds of a `Retry-After`, bounded. A date, which no authority sends, counts as none.
fn wait_s(headers: &HeaderMap) -> u64 {
    let told = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
    told.unwrap_or(0).min(WAIT_S_MAX)
}

impl HttpClient for Asking {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let asking = self.clone();
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let Ok(body) = body.collect().await;
            let request = WebRequest {
                method: head.method,
                url: head.uri.to_string(),
                headers: head.headers,
                body: body.to_bytes(),
            };
            let (status, headers, body) = asking.ask(request).await.map_err(|failed| Error::Other(failed.into()))?;
            let mut response = Response::builder().status(status).body(Full::new(body))?;
            *response.headers_mut() = headers;
            Ok(BytesResponse::from(response))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_bounded() {
        let of =
            |text: &'static str| wait_s(&HeaderMap::from_iter([(header::RETRY_AFTER, HeaderValue::from_static(text))]));
        assert_eq!([of("5"), of(" 7 "), of("x"), of("-1")], [5, 7, 0, 0]);
        assert_eq!(of("18446744073709551615"), WAIT_S_MAX);
        assert_eq!(of("Fri, 31 Dec 1999 23:59:59 GMT"), 0);
        assert_eq!(wait_s(&HeaderMap::new()), 0);
    }
}

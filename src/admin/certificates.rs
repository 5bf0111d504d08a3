//! What is said of certificates: to the authority that asks, to `snug check`, and to browsers that come without HTTPS.

use std::sync::Arc;

use serde_json::json;

use super::{Admin, error::Error};
use crate::certificates::ending;
use crate::http::{ErrorResponse, Request, Response, StatusCode};

/// `GET /certificates`: where certificates come from, how that goes, and until when those in use are valid. Times are
/// Unix milliseconds. Bounded by the names of a certificate and a few sentences.
pub async fn show(admin: Arc<Admin>, _: Request) -> Result<Response, Error> {
    let status = admin.certificates.status();
    let shown = admin.shown.iter().map(|(what, certificate)| {
        let validity = certificate.validity_ms();
        let ending = ending(what, certificate, &admin.certificates, &admin.clock);
        json!({
            "what": what,
            "file": certificate.file(),
            "from_ms": validity.map(|(from_ms, _)| from_ms),
            "until_ms": validity.map(|(_, until_ms)| until_ms),
            "warning": ending.map(|ending| ending.sentence),
        })
    });
    Ok(Response::json(&json!({
        "from": status.from,
        "names": status.names,
        "missing": status.missing,
        "said": status.said,
        "next_ms": status.next_ms,
        "awaits_clock": status.awaits_clock,
        "root": admin.certificates.root().map(|root| root.fingerprint()),
        "shown": shown.collect::<Vec<_>>(),
        "now_ms": admin.clock.now_ms(),
    })))
}

/// `GET /.well-known/acme-challenge/{token}`: the answer to an authority that checks a name (RFC 8555, section 8.3). 404
/// for a token that no order of ours has.
pub async fn challenge(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let answer = admin.certificates.answer(request.param("token"));
    let answer = answer.ok_or_else(|| ErrorResponse::not_found("There is no such challenge"))?;
    Ok(Response::bytes(StatusCode::OK, "application/octet-stream", answer))
}

/// Any other path where nothing is encrypted: leads a browser to HTTPS. An app gets no answer that it would follow with
/// a password.
pub async fn to_https(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let secure = admin.addresses.get().and_then(|known| known.secure);
    let place = request.origin().zip(secure).and_then(|(origin, port)| https(&origin, port));
    let place = place.ok_or_else(ErrorResponse::unrecognized)?;
    let to = format!("{place}{}", request.target());
    Ok(Response::empty(StatusCode::MOVED_PERMANENTLY).header("location", &to).header("cache-control", "no-store"))
}

/// The same host with HTTPS on another port.
fn https(origin: &str, port: u16) -> Option<String> {
    let (host, _) = crate::matrix::id::split_port(origin.strip_prefix("http://")?);
    Some(if port == 443 { format!("https://{host}") } else { format!("https://{host}:{port}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_led_to_the_same_host() {
        assert_eq!(https("http://example.org", 443).unwrap(), "https://example.org");
        assert_eq!(https("http://192.168.1.20:8080", 8443).unwrap(), "https://192.168.1.20:8443");
        assert_eq!(https("http://[fd00::2]:80", 443).unwrap(), "https://[fd00::2]");
        assert_eq!(https("https://example.org", 443), None);
    }
}

//! When an authority wants a certificate renewed (ACME Renewal Information, RFC 9773).
//!
//! An authority that has to take certificates back says so here, and says when else a renewal suits it. The answer can
//! only bring a renewal forward: nobody makes us miss an end.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use instant_acme::CertificateIdentifier;
use rustls::pki_types::Der;
use serde::Deserialize;

use super::asking::Asking;
use crate::base::brief;
use crate::http::x509;

/// A longer key identifier or serial number is none (RFC 5280 allows 20 bytes of both).
const ID_BYTES_MAX: usize = 64;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Directory {
    renewal_info: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    suggested_window: Window,
}

#[derive(Deserialize)]
struct Window {
    start: String,
    end: String,
}

/// The window in Unix milliseconds; none when the authority has no such thing. Two requests.
pub async fn asked(asking: &Asking, directory: &str, leaf: &[u8]) -> Result<Option<(u64, u64)>, String> {
    let Some(id) = id(leaf) else { return Ok(None) };
    let directory: Directory = json(asking, directory).await?;
    let Some(url) = directory.renewal_info else { return Ok(None) };
    let info: Info = json(asking, &format!("{url}/{id}")).await?;
    let window = (time_ms(&info.suggested_window.start), time_ms(&info.suggested_window.end));
    match window {
        (Some(from_ms), Some(to_ms)) => Ok(Some((from_ms, to_ms))),
        _ => Err("its dates cannot be read".to_owned()),
    }
}

async fn json<T: for<'a> Deserialize<'a>>(asking: &Asking, url: &str) -> Result<T, String> {
    let (status, body) = asking.get(url).await.map_err(|failed| failed.to_string())?;
    if status != 200 {
        return Err(format!("it answers {status}"));
    }
    serde_json::from_slice(&body).map_err(brief)
}

fn parts(leaf: &[u8]) -> Option<(&[u8], &[u8])> {
    let (key, serial) = (x509::authority_key(leaf)?, x509::serial(leaf)?);
    (key.len() <= ID_BYTES_MAX && serial.len() <= ID_BYTES_MAX).then_some((key, serial))
}

/// The name of a certificate: its issuer's key and its serial number.
fn id(leaf: &[u8]) -> Option<String> {
    let (key, serial) = parts(leaf)?;
    Some(format!("{}.{}", URL_SAFE_NO_PAD.encode(key), URL_SAFE_NO_PAD.encode(serial)))
}

/// The same for an order that replaces the certificate.
pub fn replaced(leaf: &[u8]) -> Option<CertificateIdentifier<'static>> {
    let (key, serial) = parts(leaf)?;
    Some(CertificateIdentifier::new(Der::from_slice(key), Der::from_slice(serial)).into_owned())
}

/// `2026-01-02T04:00:00Z`, also with parts of a second.
fn time_ms(text: &str) -> Option<u64> {
    let text = text.strip_suffix('Z').or_else(|| text.strip_suffix("+00:00"))?;
    let digits: String = text.get(..19)?.chars().filter(char::is_ascii_digit).collect();
    x509::time_ms(0x18, format!("{digits}Z").as_bytes()).filter(|_| digits.len() == 14)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_read() {
        assert_eq!(time_ms("2024-02-29T12:34:56Z"), Some(1_709_210_096_000));
        assert_eq!(time_ms("2024-02-29T12:34:56.123456Z"), Some(1_709_210_096_000));
        assert_eq!(time_ms("2024-02-29T12:34:56+00:00"), Some(1_709_210_096_000));
        for wrong in ["", "Z", "2024-02-29", "2024-02-29T12:34:56+02:00", "\u{e4}024-02-29T12:34:56Z", "9-9-9T9:9:9Z"] {
            assert_eq!(time_ms(wrong), None, "{wrong}");
        }
    }

    /// The example of RFC 9773, section 4.1.
    #[test]
    fn a_certificate_is_named_by_its_issuers_key_and_its_number() {
        let mut parameters = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        let key_id = b"\x69\x88\x5b\x6b\x87\x46\x40\x41\xe1\xb3\x7b\x84\x7b\xa0\xae\x2c\xde\x01\xc8\xd4".to_vec();
        parameters.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(key_id);
        parameters.use_authority_key_identifier_extension = true;
        parameters.serial_number = Some(rcgen::SerialNumber::from_slice(b"\x87\x65\x43\x21"));
        let made = parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        assert_eq!(id(made.der()).unwrap(), "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE");
        assert_eq!(replaced(made.der()).unwrap().to_string(), "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE");
        assert_eq!(id(b"rubbish"), None);
    }
}

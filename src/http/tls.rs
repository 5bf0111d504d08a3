//! Certificates: read from PEM files, swapped when the files change, without a restart.
//!
//! A renewal that cannot be read keeps the certificate that works and says why in the log, once for each broken version.

use parking_lot::RwLock;

use crate::base::{self, Clock, Worker};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, ServerConfig};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How often the files' times are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Resumable sessions remembered, about 300 bytes each.
const SESSIONS_MAX: usize = 128;
/// Certificate files are small; a larger one is a mistake.
const PEM_BYTES_MAX: u64 = 256 * 1024;

/// A certificate chain with its key, as last read from its files.
pub struct Certificate {
    chain_file: PathBuf,
    key_file: PathBuf,
    current: RwLock<Arc<CertifiedKey>>,
}

/// Why a certificate cannot be used: a sentence that names the file.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(String);

/// Names of protocols, as TLS negotiates them (RFC 7301).
pub(super) const HTTP_2: &[u8] = b"h2";
pub(super) const HTTP_1: &[u8] = b"http/1.1";

impl Certificate {
    /// Reads both files; blocking.
    pub fn read(chain_file: &Path, key_file: &Path) -> Result<Arc<Self>, Unusable> {
        let current = RwLock::new(Arc::new(read_pair(chain_file, key_file)?));
        Ok(Arc::new(Self { chain_file: chain_file.to_owned(), key_file: key_file.to_owned(), current }))
    }

    /// The server side of TLS with this certificate, for HTTP/2 and 1.1.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, Unusable> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| Unusable(error.to_string()))?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![HTTP_2.to_vec(), HTTP_1.to_vec()];
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS_MAX);
        config.send_tls13_tickets = 1;
        // Our order puts the fastest cipher for this board first; for a phone either is fine.
        config.ignore_client_order = true;
        Ok(Arc::new(config))
    }

    /// From when until when it is valid, in unix milliseconds; none when the certificate has no known form of it.
    pub fn validity_ms(&self) -> Option<(u64, u64)> {
        let current = self.current.read().clone();
        validity_ms(current.cert.first()?)
    }

    /// Whether it is for a host: a name, or an address without brackets.
    pub fn is_for(&self, host: &str) -> bool {
        let current = self.current.read().clone();
        let certificate = current.cert.first().and_then(|leaf| ParsedCertificate::try_from(leaf).ok());
        let name = ServerName::try_from(host).ok();
        certificate.zip(name).is_some_and(|(certificate, name)| verify_server_name(&certificate, &name).is_ok())
    }

    /// Looks at the files now and then, for ever; run as a task. A unit of the worker is a certificate
    /// that was read again.
    pub async fn keep_current(self: Arc<Self>, worker: &Worker, clock: Clock) {
        let mut seen = self.stamp().await;
        loop {
            worker.idle_for(LOOK_EVERY);
            clock.sleep(LOOK_EVERY).await;
            let stamp = self.stamp().await;
            if stamp != seen {
                seen = stamp;
                let this = self.clone();
                match base::blocking(move || this.reread()).await {
                    Ok(()) => worker.done(1),
                    Err(error) => worker.failed(error),
                }
            }
        }
    }

    /// Reads the files again; blocking. The old certificate stays when they are not usable, which is logged
    /// here.
    pub fn reread(&self) -> Result<(), Unusable> {
        match read_pair(&self.chain_file, &self.key_file) {
            Ok(pair) => {
                *self.current.write() = Arc::new(pair);
                tracing::info!("the certificate {} was loaded again", self.chain_file.display());
            }
            Err(error) => {
                tracing::error!("the new certificate cannot be used, and the old one stays in use: {error}");
                return Err(error);
            }
        }
        Ok(())
    }

    async fn stamp(&self) -> [Option<(SystemTime, u64)>; 2] {
        let files = [self.chain_file.clone(), self.key_file.clone()];
        base::blocking(move || {
            files.map(|file| std::fs::metadata(file).ok().and_then(|meta| Some((meta.modified().ok()?, meta.len()))))
        })
        .await
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({})", self.chain_file.display())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().clone())
    }
}

/// Ring's algorithms, ChaCha20-Poly1305 first on processors without AES instructions (a Pi before the 5): three to five
/// times faster there, and constant-time.
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    if !has_aes() {
        let chacha = |suite: CipherSuite| {
            matches!(
                suite,
                CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
                    | CipherSuite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
                    | CipherSuite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256
            )
        };
        provider.cipher_suites.sort_by_key(|suite| !chacha(suite.suite()));
    }
    Arc::new(provider)
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

fn read_pair(chain_file: &Path, key_file: &Path) -> Result<CertifiedKey, Unusable> {
    let chain = CertificateDer::pem_slice_iter(&read_small(chain_file)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unusable(chain_file, error))?;
    if chain.is_empty() {
        return Err(unusable(chain_file, "it contains no certificate"));
    }
    let key = PrivateKeyDer::from_pem_slice(&read_small(key_file)?).map_err(|error| unusable(key_file, error))?;
    let key = ring::sign::any_supported_type(&key).map_err(|error| unusable(key_file, error))?;
    let pair = CertifiedKey::new(chain, key);
    match pair.keys_match() {
        // "Unknown" is a key that cannot derive its public half, which is no sign of a mismatch.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(pair),
        Err(error) => Err(unusable(key_file, format_args!("it does not belong to {}: {error}", chain_file.display()))),
    }
}

fn read_small(file: &Path) -> Result<Vec<u8>, Unusable> {
    let wrong = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            let hint = "the user the server runs as must be able to read it (board/README.md has a hook for certbot)";
            unusable(file, format_args!("{error}; {hint}"))
        }
        _ => unusable(file, error),
    };
    let len = std::fs::metadata(file).map_err(wrong)?.len();
    if len > PEM_BYTES_MAX {
        return Err(unusable(file, "it is too large to be a PEM file"));
    }
    std::fs::read(file).map_err(wrong)
}

fn unusable(file: &Path, why: impl fmt::Display) -> Unusable {
    Unusable(format!("{}: {why}", file.display()))
}

/// The two times of an X.509 certificate (RFC 5280, section 4.1): certificate → signed part → version, serial number,
/// algorithm, issuer, and then the validity.
fn validity_ms(der: &[u8]) -> Option<(u64, u64)> {
    let (_, certificate, _) = element(der)?;
    let (_, mut rest, _) = element(certificate)?;
    // The version is left out in version 1.
    if rest.first() == Some(&0xa0) {
        rest = element(rest)?.2;
    }
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (_, validity, _) = element(rest)?;
    let (kind, from, rest) = element(validity)?;
    let (kind_until, until, _) = element(rest)?;
    Some((time_ms(kind, from)?, time_ms(kind_until, until)?))
}

/// The first DER element: its tag, its content, and the bytes behind it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk::<2>()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (inside, behind) = rest.split_at_checked(len)?;
    Some((tag, inside, behind))
}

/// `YYMMDDhhmmssZ` or `YYYYMMDDhhmmssZ`.
fn time_ms(tag: u8, text: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        0x17 => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: u64 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        0x18 => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let part = |at: usize| rest.get(at..at + 2)?.parse::<u64>().ok();
    let (month, day) = (part(0)?, part(2)?);
    let seconds = part(4)? * 3600 + part(6)? * 60 + part(8)?;
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) || year < 1970 {
        return None;
    }
    // Years counted from March end with the leap day, which makes the months before it 153 days in each five.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    let unix_days = days.checked_sub(719_468)?;
    Some((unix_days * 86_400 + seconds) * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_pair(folder: &Path) -> (PathBuf, PathBuf) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let (chain, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        std::fs::write(&chain, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (chain, key)
    }

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("snug-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn leaf(certificate: &Certificate) -> Vec<u8> {
        certificate.current.read().cert[0].to_vec()
    }

    #[test]
    fn a_renewal_is_taken_and_a_broken_one_is_not() {
        let folder = scratch("renewal");
        let (chain, key) = write_pair(&folder);
        let certificate = Certificate::read(&chain, &key).unwrap();
        certificate.server_config().unwrap();
        let first = leaf(&certificate);
        write_pair(&folder);
        certificate.reread().unwrap();
        let second = leaf(&certificate);
        assert_ne!(first, second);
        std::fs::write(&chain, "rubbish").unwrap();
        assert!(certificate.reread().is_err());
        assert_eq!(leaf(&certificate), second);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn dates_are_read() {
        assert_eq!(time_ms(0x17, b"700101000000Z"), Some(0));
        assert_eq!(time_ms(0x18, b"20240229123456Z"), Some(1_709_210_096_000));
        assert_eq!(time_ms(0x17, b"rubbish"), None);
        let folder = scratch("dates");
        let (chain, key) = write_pair(&folder);
        let (from, until) = Certificate::read(&chain, &key).unwrap().validity_ms().unwrap();
        // rcgen's default validity: from 1975 to 4096.
        assert_eq!((from, until), (157_766_400_000, 67_090_118_400_000));
        let certificate = Certificate::read(&chain, &key).unwrap();
        assert!(certificate.is_for("localhost") && !certificate.is_for("example.org") && !certificate.is_for("::1"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (one, two) = (scratch("one"), scratch("two"));
        let ((chain, _), (_, key)) = (write_pair(&one), write_pair(&two));
        let error = Certificate::read(&chain, &key).unwrap_err().to_string();
        assert!(error.contains("does not belong to"), "{error}");
        std::fs::remove_dir_all(one).unwrap();
        std::fs::remove_dir_all(two).unwrap();
    }

    #[test]
    fn any_bytes_have_dates_or_none() {
        let mut parameters = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        parameters.not_after = rcgen::date_time_ymd(2060, 1, 1);
        let made = parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        assert!(validity_ms(made.der()).is_some());
        crate::base::any_bytes::any_bytes(&[made.der(), b"240101000000Z", b"20600101000000Z"], |bytes| {
            let _ = (validity_ms(bytes), element(bytes), time_ms(0x17, bytes), time_ms(0x18, bytes));
        });
    }
}

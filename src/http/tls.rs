//! Certificates: read from PEM files and swapped when the files change, or put here by who got them, without a restart.
//!
//! A renewal that cannot be read keeps the certificate that works and says why in the log, once for each broken version.

use parking_lot::RwLock;

use super::x509;
use crate::base::{self, Clock, Worker, sort_few_by};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, ServerSessionMemoryCache};
use rustls::sign::{CertifiedKey, SigningKey};
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

/// Certificates of one chain; a leaf and what leads to its root are two to four.
const CHAIN_MAX: usize = 10;
/// Challenges shown at a time: one for each name of an order. Each is a certificate of half a KiB and its key.
pub const CHALLENGES_MAX: usize = 24;

/// A certificate chain with its key, that listeners show: as last read from its files, or as last put here.
pub struct Certificate {
    files: Option<(PathBuf, PathBuf)>,
    /// None until the first one is there: until then no handshake succeeds.
    current: RwLock<Option<Arc<CertifiedKey>>>,
    /// The names that the first one will be for.
    awaited: Vec<String>,
    /// What an authority that asks for a name by TLS is shown (RFC 8737), by that name.
    challenges: RwLock<Vec<(String, Arc<CertifiedKey>)>>,
}

/// A chain and the key that belongs to its first certificate.
pub struct Pair(CertifiedKey);

/// Why a certificate cannot be used: a sentence that names the file.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(String);

/// Names of protocols, as TLS negotiates them (RFC 7301).
pub(super) const HTTP_2: &[u8] = b"h2";
pub(super) const HTTP_1: &[u8] = b"http/1.1";
/// Only an authority that checks a name asks for it, and nothing is said over it.
pub(super) const CHALLENGE: &[u8] = b"acme-tls/1";

impl Certificate {
    /// Reads both files; blocking.
    pub fn read(chain_file: &Path, key_file: &Path) -> Result<Arc<Self>, Unusable> {
        let pair = read_pair(chain_file, key_file)?;
        let made = Self::made(Some((chain_file.to_owned(), key_file.to_owned())), Vec::new());
        made.put(pair);
        Ok(Arc::new(made))
    }

    /// One that is put here later, for these names.
    pub fn awaited(names: Vec<String>) -> Arc<Self> {
        Arc::new(Self::made(None, names))
    }

    fn made(files: Option<(PathBuf, PathBuf)>, awaited: Vec<String>) -> Self {
        Self { files, current: RwLock::default(), awaited, challenges: RwLock::default() }
    }

    /// Shows another certificate from the next handshake on; what is open stays open.
    pub fn put(&self, pair: Pair) {
        *self.current.write() = Some(Arc::new(pair.0));
    }

    /// Whether there is one to show.
    pub fn is_there(&self) -> bool {
        self.current.read().is_some()
    }

    /// The file it is read from.
    pub fn file(&self) -> Option<&Path> {
        self.files.as_ref().map(|(chain, _)| &**chain)
    }

    /// What an authority that asks for `name` is shown, until [`Certificate::end_challenges`].
    pub fn answer_challenge(&self, name: &str, pair: Pair) {
        let mut challenges = self.challenges.write();
        challenges.retain(|(known, _)| known != name);
        if challenges.len() < CHALLENGES_MAX {
            challenges.push((name.to_owned(), Arc::new(pair.0)));
        }
    }

    pub fn end_challenges(&self) {
        self.challenges.write().clear();
    }

    /// The first certificate of the chain, DER.
    pub fn leaf(&self) -> Option<CertificateDer<'static>> {
        self.current.read().as_ref()?.cert.first().map(|leaf| leaf.clone().into_owned())
    }

    /// The server side of TLS with this certificate, for HTTP/2 and 1.1.
    pub fn server_config(self: &Arc<Self>) -> Result<Arc<ServerConfig>, Unusable> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| Unusable(error.to_string()))?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![HTTP_2.to_vec(), HTTP_1.to_vec()];
        if self.files.is_none() {
            config.alpn_protocols.push(CHALLENGE.to_vec());
        }
        config.session_storage = ServerSessionMemoryCache::new(SESSIONS_MAX);
        config.send_tls13_tickets = 1;
        // Our order puts the fastest cipher for this board first; for a phone either is fine.
        config.ignore_client_order = true;
        Ok(Arc::new(config))
    }

    /// From when until when it is valid, in unix milliseconds; none when the certificate has no known form of it.
    pub fn validity_ms(&self) -> Option<(u64, u64)> {
        x509::validity_ms(&self.leaf()?)
    }

    /// Whether it is for a host: a name, or an address without brackets. One that is awaited is for its names.
    pub fn is_for(&self, host: &str) -> bool {
        match self.leaf() {
            Some(leaf) => is_for(&leaf, host),
            None => self.awaited.iter().any(|name| name == host),
        }
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
        let Some((chain_file, key_file)) = &self.files else { return Ok(()) };
        match read_pair(chain_file, key_file) {
            Ok(pair) => {
                self.put(pair);
                tracing::info!("the certificate {} was loaded again", chain_file.display());
            }
            Err(error) => {
                tracing::error!("the new certificate cannot be used, and the old one stays in use: {error}");
                return Err(error);
            }
        }
        Ok(())
    }

    async fn stamp(&self) -> Option<[Option<(SystemTime, u64)>; 2]> {
        let (chain, key) = self.files.clone()?;
        let stamp = base::blocking(move || {
            [chain, key]
                .map(|file| std::fs::metadata(file).ok().and_then(|meta| Some((meta.modified().ok()?, meta.len()))))
        });
        Some(stamp.await)
    }
}

impl Pair {
    /// Reads a chain and a key in PEM. An error names `what` they are.
    pub fn parse(chain: &[u8], key: &[u8], what: &str) -> Result<Pair, Unusable> {
        let wrong = |why: &dyn fmt::Display| Unusable(format!("{what}: {why}"));
        let chain = chain_of(chain).map_err(|error| wrong(&error))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| wrong(&error))?;
        let key = ring::sign::any_supported_type(&key).map_err(|error| wrong(&error))?;
        fitting(chain, key).map_err(|error| wrong(&error))
    }

    /// A certificate of our own making, with its key in PKCS #8.
    pub fn of(leaf: CertificateDer<'static>, key: Vec<u8>) -> Result<Pair, Unusable> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key));
        let key = ring::sign::any_supported_type(&key).map_err(|error| Unusable(error.to_string()))?;
        Ok(Pair(CertifiedKey::new(vec![leaf], key)))
    }

    pub fn is_for(&self, host: &str) -> bool {
        self.0.cert.first().is_some_and(|leaf| is_for(leaf, host))
    }

    pub fn validity_ms(&self) -> Option<(u64, u64)> {
        x509::validity_ms(self.0.cert.first()?)
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Certificate({:?})", self.file())
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let is_challenge = hello.alpn().is_some_and(|mut asked| asked.any(|protocol| protocol == CHALLENGE));
        if !is_challenge || self.files.is_some() {
            return self.current.read().clone();
        }
        let name = hello.server_name()?;
        let challenges = self.challenges.read();
        let found = challenges.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, shown)| shown.clone())
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
        sort_few_by(&mut provider.cipher_suites, |suite| !chacha(suite.suite()));
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

fn read_pair(chain_file: &Path, key_file: &Path) -> Result<Pair, Unusable> {
    let chain = chain_of(&read_small(chain_file)?).map_err(|error| unusable(chain_file, error))?;
    let key = PrivateKeyDer::from_pem_slice(&read_small(key_file)?).map_err(|error| unusable(key_file, error))?;
    let key = ring::sign::any_supported_type(&key).map_err(|error| unusable(key_file, error))?;
    fitting(chain, key)
        .map_err(|error| unusable(key_file, format_args!("it does not belong to {}: {error}", chain_file.display())))
}

fn chain_of(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut chain = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        if chain.len() == CHAIN_MAX {
            return Err(format!("it contains more than {CHAIN_MAX} certificates"));
        }
        chain.push(certificate.map_err(|error| error.to_string())?);
    }
    if chain.is_empty() { Err("it contains no certificate".to_owned()) } else { Ok(chain) }
}

fn fitting(chain: Vec<CertificateDer<'static>>, key: Arc<dyn SigningKey>) -> Result<Pair, rustls::Error> {
    let pair = CertifiedKey::new(chain, key);
    match pair.keys_match() {
        // "Unknown" is a key that cannot derive its public half, which is no sign of a mismatch.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(Pair(pair)),
        Err(error) => Err(error),
    }
}

fn is_for(leaf: &CertificateDer<'_>, host: &str) -> bool {
    let certificate = ParsedCertificate::try_from(leaf).ok();
    let name = ServerName::try_from(host).ok();
    certificate.zip(name).is_some_and(|(certificate, name)| verify_server_name(&certificate, &name).is_ok())
}

fn read_small(file: &Path) -> Result<Vec<u8>, Unusable> {
    let wrong = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            let hint = "the user the server runs as must be able to read it (board/README.md has a hook for certbot)";
            unusable(file, format_args!("{error}; {hint}"))
        }
        _ => unusable(file, error),
    };
    base::read_small(file, PEM_BYTES_MAX).map_err(wrong)
}

fn unusable(file: &Path, why: impl fmt::Display) -> Unusable {
    Unusable(format!("{}: {why}", file.display()))
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
        certificate.leaf().unwrap().to_vec()
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
    fn a_certificate_says_its_dates_and_its_names() {
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

    /// What a client that asks for these protocols and believes anything is shown.
    async fn shown(certificate: &Arc<Certificate>, protocols: &[&[u8]], name: &str) -> Option<Vec<u8>> {
        let config = certificate.server_config().unwrap();
        let (near, far) = tokio::io::duplex(64 * 1024);
        let server = tokio::spawn(tokio_rustls::TlsAcceptor::from(config).accept(near));
        let client = rustls::ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let mut client =
            client.unwrap().dangerous().with_custom_certificate_verifier(Arc::new(Anything)).with_no_client_auth();
        client.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connected = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, far).await;
        let _ = server.await;
        let connected = connected.ok()?;
        Some(connected.get_ref().1.peer_certificates()?.first()?.to_vec())
    }

    #[derive(Debug)]
    struct Anything;

    impl rustls::client::danger::ServerCertVerifier for Anything {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            provider().signature_verification_algorithms.supported_schemes()
        }
    }

    fn pair(name: &str) -> (Pair, Vec<u8>) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let pair = Pair::of(made.cert.der().clone(), made.signing_key.serialize_der()).unwrap();
        (pair, made.cert.der().to_vec())
    }

    /// Only who asks for the protocol of challenges is shown the answer to one, and nobody else's certificate is shown
    /// there.
    #[tokio::test]
    async fn a_challenge_is_answered_beside_the_certificate() {
        let certificate = Certificate::awaited(vec!["a.example".to_owned()]);
        assert!(certificate.is_for("a.example") && !certificate.is_for("b.example"));
        assert_eq!(shown(&certificate, &[HTTP_1], "a.example").await, None, "there is none yet");
        let ((answer, answer_der), (used, used_der)) = (pair("a.example"), pair("a.example"));
        certificate.answer_challenge("a.example", answer);
        assert_eq!(shown(&certificate, &[CHALLENGE], "a.example").await.unwrap(), answer_der);
        assert_eq!(shown(&certificate, &[CHALLENGE], "b.example").await, None);
        certificate.put(used);
        assert_eq!(shown(&certificate, &[HTTP_2, HTTP_1], "b.example").await.unwrap(), used_der);
        assert_eq!(shown(&certificate, &[CHALLENGE], "a.example").await.unwrap(), answer_der);
        certificate.end_challenges();
        assert_eq!(shown(&certificate, &[CHALLENGE], "a.example").await, None);
        assert_eq!(shown(&certificate, &[], "a.example").await.unwrap(), used_der);
        let names: Vec<String> = (0..CHALLENGES_MAX).map(|at| format!("{at}.example")).collect();
        names.iter().for_each(|name| certificate.answer_challenge(name, pair(name).0));
        assert!(shown(&certificate, &[CHALLENGE], names.last().unwrap()).await.is_some(), "an order of all names");
    }
}

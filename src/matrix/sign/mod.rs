//! Signatures: our own key, checking others', on events, on JSON objects and on requests (specification appendices "Signing
//! JSON" and "Signing Events", server-server API "Request Authentication").

use super::Reject;
use super::comb::Comb;
use super::event::Event;
use super::json::{self, Mode};
use super::reject::Kind;
use super::scan::{BASE64, Signer};
use super::version::RoomVersion;
use base64::Engine;
use curve25519_dalek::edwards::EdwardsPoint;
use curve25519_dalek::scalar::Scalar;
use ed25519_dalek::{Signature, Signer as _, SigningKey, StreamVerifier, Verifier as _, VerifyingKey};
use ruma::ServerName;
use serde_json::{Map, Value};
use sha2::{Digest, Sha512};
use std::fmt;

/// Our own signing key.
#[derive(Clone)]
pub struct Key {
    signing: SigningKey,
    id: String,
}

impl Key {
    /// `version` is what stands after `ed25519:` in the key id.
    pub fn from_seed(version: &str, seed: [u8; 32]) -> Key {
        Key { signing: SigningKey::from_bytes(&seed), id: format!("ed25519:{version}") }
    }

    /// A key file as Synapse and others write it: `ed25519 a_AbCd <base64 of the seed>`; the first line counts.
    pub fn parse(file: &str) -> Result<Key, String> {
        let line = file.lines().find(|l| !l.trim().is_empty()).ok_or("the key file is empty")?;
        let mut words = line.split_whitespace();
        let (algorithm, version, seed) = (words.next(), words.next(), words.next());
        if algorithm != Some("ed25519") {
            return Err("a key file starts with the word ed25519".into());
        }
        let version = version.filter(|v| v.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
        let version = version.ok_or("the key's name may hold only letters, digits and _")?;
        let seed = BASE64.decode(seed.unwrap_or("")).map_err(|e| format!("the key is no base64: {e}"))?;
        let seed = seed.try_into().map_err(|_| "the key does not hold 32 bytes")?;
        Ok(Key::from_seed(version, seed))
    }

    /// What [`Key::parse`] reads.
    pub fn to_file(&self) -> String {
        format!("ed25519 {} {}\n", &self.id["ed25519:".len()..], BASE64.encode(self.signing.to_bytes()))
    }

    /// `ed25519:a_AbCd`
    pub fn id(&self) -> &str {
        &self.id
    }
    pub fn public(&self) -> PublicKey {
        PublicKey(self.signing.verifying_key())
    }
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.signing.sign(message).to_bytes()
    }
    pub fn sign_base64(&self, message: &[u8]) -> String {
        BASE64.encode(self.sign(message))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

/// Somebody's public key, decompressed and ready: 3 µs the first time, so worth keeping. About 200 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    pub fn from_bytes(bytes: &[u8; 32]) -> Option<PublicKey> {
        VerifyingKey::from_bytes(bytes).ok().map(PublicKey)
    }
    pub fn from_base64(text: &str) -> Option<PublicKey> {
        PublicKey::from_bytes(&BASE64.decode(text).ok()?.try_into().ok()?)
    }
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }
    pub fn to_base64(&self) -> String {
        BASE64.encode(self.to_bytes())
    }
    /// One at a time and not "strict", exactly the predicate other implementations use: batches can be told apart under weak
    /// keys, which would split a room.
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify(message, &Signature::from_bytes(signature)).is_ok()
    }
    /// The same predicate over a message that passes a piece at a time; none for what can be nobody's signature.
    fn verify_stream(&self, signature: &[u8; 64]) -> Option<StreamVerifier> {
        self.0.verify_stream(&Signature::from_bytes(signature)).ok()
    }
}

/// What makes many signatures under one key cheaper; worth making from about ten on.
pub struct Often(Comb);

impl Often {
    /// Bytes of memory it takes.
    pub const BYTES: u64 = super::comb::COMB_BYTES;

    pub fn new(key: &PublicKey) -> Often {
        Often(Comb::new(&key.0.to_edwards()))
    }
}

/// Signatures checked together: each by itself and as [`PublicKey::verify`] does it, but for one costly division that all
/// share. 200 bytes each.
#[derive(Default)]
pub struct Claims {
    /// What each signature's first half must be the encoding of, and what it is.
    points: Vec<EdwardsPoint>,
    halves: Vec<[u8; 32]>,
}

impl Claims {
    /// Takes one more. False, and nothing is taken, when it can be seen at once that the signature is wrong.
    pub fn push(&mut self, key: &PublicKey, often: Option<&Often>, message: &[u8], signature: &[u8; 64]) -> bool {
        let (half, s) = signature.split_at(32);
        let (half, s): ([u8; 32], [u8; 32]) = match (half.try_into(), s.try_into()) {
            (Ok(half), Ok(s)) => (half, s),
            _ => return false,
        };
        let Some(scalar) = Option::<Scalar>::from(Scalar::from_canonical_bytes(s)) else { return false };
        let hash = Sha512::new().chain_update(half).chain_update(key.0.as_bytes()).chain_update(message).finalize();
        let k = Scalar::from_bytes_mod_order_wide(&hash.into());
        self.points.push(match often {
            Some(often) => often.0.base_minus_key(&s, k.as_bytes()),
            None => EdwardsPoint::vartime_double_scalar_mul_basepoint(&k, &-key.0.to_edwards(), &scalar),
        });
        self.halves.push(half);
        true
    }

    pub fn len(&self) -> usize {
        self.points.len()
    }

    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// Forgets those taken last.
    pub fn truncate(&mut self, len: usize) {
        self.points.truncate(len);
        self.halves.truncate(len);
    }

    /// Whether each is right, in the order in which they were taken.
    pub fn judge(&self) -> Vec<bool> {
        let points = EdwardsPoint::compress_batch_alloc(&self.points);
        points.iter().zip(&self.halves).map(|(point, half)| point.as_bytes() == half).collect()
    }
}

/// Where public keys come from: only those that may be used for something signed at `at_ts` (milliseconds).
pub trait Keys {
    fn get(&self, server: &str, key_id: &str, at_ts: u64) -> Option<PublicKey>;
}

impl<F: Fn(&str, &str, u64) -> Option<PublicKey>> Keys for F {
    fn get(&self, server: &str, key_id: &str, at_ts: u64) -> Option<PublicKey> {
        self(server, key_id, at_ts)
    }
}

/// What a checked event may be used as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    Intact,
    /// Signed by the right servers, but the content hash is wrong: keep the redacted form.
    RedactNeeded,
}

/// Checks that every server that must have signed has, then the content hash.
pub fn check_event(event: &Event, keys: &impl Keys) -> Result<Checked, Reject> {
    let message = event.signed_message();
    // Versions before 5 accept a key whatever its validity, as the specification has it.
    let at_ts = if event.version().enforce_key_validity { event.origin_server_ts() } else { 0 };
    for signer in event.signers()? {
        check_signer(&signer, &message, at_ts, keys)?;
    }
    Ok(if event.is_intact() { Checked::Intact } else { Checked::RedactNeeded })
}

/// One of the signatures must verify under a key we know; with no key known at all it is [`Kind::Key`].
pub fn check_signer(signer: &Signer<'_>, message: &[u8], at_ts: u64, keys: &impl Keys) -> Result<(), Reject> {
    let mut known = false;
    for (key_id, signature) in &signer.signatures {
        if let Some(key) = keys.get(signer.server, key_id, at_ts) {
            known = true;
            if key.verify(message, signature) {
                return Ok(());
            }
        }
    }
    match known {
        true => Err(Reject::signature(format!("wrong signature by {}", signer.server))),
        false => Err(Reject::new(Kind::Key, format!("no signing key of {} is known", signer.server))),
    }
}

/// A further server's signature on a finished event, as the server that lets somebody into a restricted room adds.
pub fn add_signature(event: &Event, server: &ServerName, key: &Key) -> Result<Event, Reject> {
    let signature = key.sign_base64(&event.signed_message());
    let bytes = merge_signature(event.to_federation(), server, key.id(), &signature)?;
    Event::from_stored(event.version(), bytes, event.id().to_owned())
}

// ---- JSON objects ----

/// The bytes a signature on a JSON object is over: canonical, without `signatures` and `unsigned`. Floats are let through, as
/// key answers and the like are not events.
pub fn json_message(raw: &[u8]) -> Result<Vec<u8>, Reject> {
    let mut canon = json::Canon::new();
    canon.read(raw, Mode::Lenient, &["signatures", "unsigned"])?;
    if canon.bytes().first() != Some(&b'{') {
        return Err(Reject::shape("not a JSON object"));
    }
    Ok(canon.bytes().to_vec())
}

/// Adds our signature beside those that are there.
pub fn sign_json(object: &mut Map<String, Value>, server: &ServerName, key: &Key) -> Result<(), Reject> {
    let message = json_message(Value::Object(object.clone()).to_string().as_bytes())?;
    let signatures = object.entry("signatures").or_insert_with(|| Value::Object(Map::new()));
    let Value::Object(signatures) = signatures else { return Err(Reject::shape("signatures is no object")) };
    let ours = signatures.entry(server.as_str()).or_insert_with(|| Value::Object(Map::new()));
    let Value::Object(ours) = ours else { return Err(Reject::shape("signatures is no object of objects")) };
    ours.insert(key.id().to_owned(), key.sign_base64(&message).into());
    Ok(())
}

/// Checks one server's signature on a JSON object given as text, under one key.
pub fn check_json(raw: &[u8], server: &str, key_id: &str, key: &PublicKey) -> Result<(), Reject> {
    let canonical = json::canonical(raw, Mode::Lenient)?;
    let signature = json::get_path(&canonical, &["signatures", server, key_id]).and_then(json::text);
    let signature = signature.and_then(|s| BASE64.decode(&*s).ok()).and_then(|s| s.try_into().ok());
    let signature = signature.ok_or_else(|| Reject::signature(format!("not signed by {server} with {key_id}")))?;
    match key.verify(&json_message(raw)?, &signature) {
        true => Ok(()),
        false => Err(Reject::signature(format!("wrong signature by {server} with {key_id}"))),
    }
}

/// The key ids under which `server` is said to have signed a JSON object; at most 16.
pub fn json_key_ids(raw: &[u8], server: &str) -> Vec<String> {
    let Ok(canonical) = json::canonical(raw, Mode::Lenient) else { return Vec::new() };
    let by = json::get_path(&canonical, &["signatures", server]).unwrap_or(b"{}");
    json::members(by).take(16).filter_map(|(id, _)| String::from_utf8(id.to_vec()).ok()).collect()
}

/// Text by text: what other servers wrote beside it may be of any shape inside.
fn merge_signature(object: &[u8], server: &ServerName, key_id: &str, signature: &str) -> Result<Vec<u8>, Reject> {
    let all = json::get(object, "signatures").unwrap_or(b"{}");
    let ours = json::get(all, server.as_str()).unwrap_or(b"{}");
    if !all.starts_with(b"{") || !ours.starts_with(b"{") {
        return Err(Reject::shape("signatures is no object of objects"));
    }
    let ours = set_member(ours, key_id, format!("\"{signature}\"").as_bytes());
    let all = set_member(all, server.as_str(), &ours);
    json::canonical(&set_member(object, "signatures", &all), Mode::Lenient)
}

/// A canonical object with one member set; it comes last, so the result is not in canonical order.
fn set_member(object: &[u8], key: &str, value: &[u8]) -> Vec<u8> {
    let mut name = Vec::new();
    json::write_string(&mut name, key);
    let mut out = b"{".to_vec();
    for (other, kept) in json::members(object).filter(|(other, _)| *other != &name[1..name.len() - 1]) {
        out.extend_from_slice(&[b"\"", other, b"\":", kept, b","].concat());
    }
    out.extend_from_slice(&[&name, &b":"[..], value, b"}"].concat());
    out
}

/// Room versions that check when a key was valid need the key at the event's time; `RoomVersion` decides.
pub fn key_time(version: &RoomVersion, origin_server_ts: u64) -> u64 {
    if version.enforce_key_validity { origin_server_ts } else { 0 }
}

// ---- Requests between servers ----

pub mod request {
    //! The `X-Matrix` authorization header.

    use super::*;

    /// What a header says; nothing in it is checked yet.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct XMatrix {
        pub origin: String,
        /// Missing from very old servers.
        pub destination: Option<String>,
        pub key: String,
        pub sig: String,
    }

    /// The header value for a request of ours. `target` is the path and query exactly as sent; `content` the JSON body.
    pub fn sign(
        key: &Key,
        origin: &ServerName,
        destination: &ServerName,
        method: &str,
        target: &str,
        content: Option<&[u8]>,
    ) -> Result<String, Reject> {
        let message = message(method, target, origin.as_str(), Some(destination.as_str()), content)?;
        let (sig, id) = (key.sign_base64(&message), key.id());
        Ok(format!("X-Matrix origin=\"{origin}\",destination=\"{destination}\",key=\"{id}\",sig=\"{sig}\""))
    }

    /// Checks a request sent to us. `target` is the raw request target, before any decoding; `us` our server name, which the
    /// header must name if it names one; `content` the raw body, none if it is empty.
    pub fn check(
        header: &XMatrix,
        key: &PublicKey,
        us: &ServerName,
        method: &str,
        target: &str,
        content: Option<&[u8]>,
    ) -> Result<(), Reject> {
        if header.destination.as_deref().is_some_and(|d| d != us.as_str()) {
            return Err(Reject::signature("the request is meant for another server"));
        }
        // A header without a destination was signed over our name all the same.
        let message = message(method, target, &header.origin, Some(us.as_str()), content)?;
        let wrong = || Reject::signature(format!("wrong signature on the request by {}", header.origin));
        let signature = BASE64.decode(&header.sig).ok().and_then(|s| s.try_into().ok()).ok_or_else(wrong)?;
        if key.verify(&message, &signature) { Ok(()) } else { Err(wrong()) }
    }

    /// A request checked while its content passes, for bodies too long to hold. Nothing of the content may be believed before
    /// [`InPieces::finish`] has said so.
    pub struct InPieces {
        verifier: StreamVerifier,
        /// What the signed text has behind the content.
        behind: Vec<u8>,
        wrong: Reject,
    }

    impl InPieces {
        /// As [`check`], of a request with content.
        pub fn new(
            header: &XMatrix,
            key: &PublicKey,
            us: &ServerName,
            method: &str,
            target: &str,
        ) -> Result<InPieces, Reject> {
            if header.destination.as_deref().is_some_and(|d| d != us.as_str()) {
                return Err(Reject::signature("the request is meant for another server"));
            }
            let wrong = Reject::signature(format!("wrong signature on the request by {}", header.origin));
            let signature = BASE64.decode(&header.sig).ok().and_then(|s| s.try_into().ok());
            let verifier = signature.and_then(|signature| key.verify_stream(&signature));
            let mut verifier = verifier.ok_or_else(|| wrong.clone())?;
            verifier.update(b"{\"content\":");
            let mut behind = message(method, target, &header.origin, Some(us.as_str()), None)?;
            behind[0] = b',';
            Ok(InPieces { verifier, behind, wrong })
        }

        /// The next piece of the content in canonical form.
        pub fn update(&mut self, content: &[u8]) {
            self.verifier.update(content);
        }

        pub fn finish(mut self) -> Result<(), Reject> {
            self.verifier.update(&self.behind);
            self.verifier.finalize_and_verify().map_err(|_| self.wrong)
        }
    }

    /// The object a request's signature is over.
    fn message(
        method: &str,
        target: &str,
        origin: &str,
        destination: Option<&str>,
        content: Option<&[u8]>,
    ) -> Result<Vec<u8>, Reject> {
        let mut text = Vec::with_capacity(256 + content.map_or(0, <[u8]>::len));
        text.push(b'{');
        if let Some(content) = content {
            text.extend_from_slice(b"\"content\":");
            text.extend_from_slice(&json::canonical(content, Mode::Lenient)?);
            text.push(b',');
        }
        if let Some(destination) = destination {
            text.extend_from_slice(b"\"destination\":");
            json::write_string(&mut text, destination);
            text.push(b',');
        }
        for (name, value) in [("method", method), ("origin", origin), ("uri", target)] {
            if name != "method" {
                text.push(b',');
            }
            text.extend_from_slice(format!("\"{name}\":").as_bytes());
            json::write_string(&mut text, value);
        }
        text.push(b'}');
        Ok(text)
    }

    /// Reads an `Authorization` header: case-insensitive names, quoted strings with escapes or bare words (colons too, as old
    /// servers write), blanks round commas, unknown parameters.
    pub fn parse(header: &str) -> Result<XMatrix, Reject> {
        let wrong = || Reject::shape("malformed X-Matrix authorization header");
        let (scheme, mut rest) = header.trim().split_once([' ', '\t']).ok_or_else(wrong)?;
        if !scheme.eq_ignore_ascii_case("x-matrix") {
            return Err(Reject::shape("the authorization scheme is not X-Matrix"));
        }
        let (mut origin, mut destination, mut key, mut sig) = (None, None, None, None);
        loop {
            rest = rest.trim_start_matches([' ', '\t', ',']);
            if rest.is_empty() {
                break;
            }
            let (name, after) = rest.split_once('=').ok_or_else(wrong)?;
            let (value, after) = parameter(after.trim_start()).ok_or_else(wrong)?;
            rest = after.trim_start();
            if !rest.is_empty() && !rest.starts_with(',') {
                return Err(wrong());
            }
            match name.trim().to_ascii_lowercase().as_str() {
                "origin" => origin = Some(value),
                "destination" => destination = Some(value),
                "key" => key = Some(value),
                "sig" => sig = Some(value),
                _ => {}
            }
        }
        let (Some(origin), Some(key), Some(sig)) = (origin, key, sig) else { return Err(wrong()) };
        <&ServerName>::try_from(origin.as_str()).map_err(|_| wrong())?;
        Ok(XMatrix { origin, destination, key, sig })
    }

    /// A value and what follows it.
    fn parameter(text: &str) -> Option<(String, &str)> {
        let Some(quoted) = text.strip_prefix('"') else {
            let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
            return Some((text[..end].to_owned(), &text[end..]));
        };
        let mut value = String::new();
        let mut chars = quoted.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => return Some((value, &quoted[at + 1..])),
                '\\' => value.push(chars.next()?.1),
                c => value.push(c),
            }
        }
        None
    }
}

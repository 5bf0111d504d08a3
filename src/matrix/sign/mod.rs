//! Signatures: our own key, checking others', on events, on JSON objects and on requests (specification appendices "Signing
//! JSON" and "Signing Events", server-server API "Request Authentication").

use super::Reject;
use super::comb::Comb;
use super::json::{self, Mode};
use super::scan::BASE64;
use base64::Engine;
use curve25519_dalek::edwards::EdwardsPoint;
use curve25519_dalek::scalar::Scalar;
use ed25519_dalek::{Signature, Signer as _, SigningKey, StreamVerifier, Verifier as _, VerifyingKey};
use ruma::ServerName;
use serde_json::{Map, Value};
use sha2::{Digest, Sha512};
use std::fmt;

pub mod request;
pub mod event;

/// Our own signing key.
#[derive(Clone)]
pub struct Key {
    signing: SigningKey,
    id: String,
}

impl Key {
    /// `version` is the part after `ed25519:` in the key id.
    pub fn from_seed(version: &str, seed: [u8; 32]) -> Key {
        Key { signing: SigningKey::from_bytes(&seed), id: format!("ed25519:{version}") }
    }

    /// A key file as Synapse and others write it: `ed25519 a_AbCd <base64 of the seed>`; the first line counts.
    pub fn parse(file: &str) -> Result<Key, String> {
        let line = file.lines().find(|l| !l.trim().is_empty()).ok_or("the key file is empty")?;
        let mut words = line.split_whitespace();
        let (algorithm, version, seed) = (words.next(), words.next(), words.next());
        if algorithm != Some("ed25519") {
            return Err("the key file does not begin with the word ed25519".into());
        }
        let version = version.filter(|v| v.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'));
        let version = version.ok_or("the key's name may contain only letters, digits and _")?;
        let seed = BASE64.decode(seed.unwrap_or("")).map_err(|e| format!("the key is not base64: {e}"))?;
        let seed = seed.try_into().map_err(|_| "the key does not have 32 bytes")?;
        Ok(Key::from_seed(version, seed))
    }

    /// The text that [`Key::parse`] reads.
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

/// A server's public key, decompressed and ready: 3 µs the first time, so worth keeping. About 200 bytes.
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
    /// One at a time and not "strict", exactly the predicate of other implementations: under weak keys, batch checks
    /// give other results, which would split a room.
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify(message, &Signature::from_bytes(signature)).is_ok()
    }
    /// The same predicate over a message that passes a piece at a time; none for a signature that cannot be valid.
    fn verify_stream(&self, signature: &[u8; 64]) -> Option<StreamVerifier> {
        self.0.verify_stream(&Signature::from_bytes(signature)).ok()
    }
}

/// A table that makes many signatures under one key cheaper; worth making from about ten on.
pub struct Often(Comb);

impl Often {
    /// Bytes of memory it takes.
    pub const BYTES: u64 = super::comb::COMB_BYTES;

    pub fn new(key: &PublicKey) -> Often {
        Often(Comb::new(&key.0.to_edwards()))
    }
}

/// Signatures checked together: each by itself and as [`PublicKey::verify`] does it, except for one costly division
/// that all share. 200 bytes each.
#[derive(Default)]
pub struct Claims {
    /// The point that each signature's first half must encode, and that half.
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

// ---- JSON objects ----

/// The bytes that a signature on a JSON object covers: canonical, without `signatures` and `unsigned`. Floats are let
/// through, as key answers and the like are not events.
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
    let Value::Object(signatures) = signatures else { return Err(Reject::shape("signatures is not an object")) };
    let ours = signatures.entry(server.as_str()).or_insert_with(|| Value::Object(Map::new()));
    let Value::Object(ours) = ours else { return Err(Reject::shape("signatures is not an object of objects")) };
    ours.insert(key.id().to_owned(), key.sign_base64(&message).into());
    Ok(())
}

/// Checks one server's signature on a JSON object given as text, under one key.
pub fn check_json(raw: &[u8], server: &str, key_id: &str, key: &PublicKey) -> Result<(), Reject> {
    let canonical = json::canonical(raw, Mode::Lenient)?;
    let signature = json::read::get_path(&canonical, &["signatures", server, key_id]).and_then(json::read::text);
    let signature = signature.and_then(|s| BASE64.decode(&*s).ok()).and_then(|s| s.try_into().ok());
    let signature =
        signature.ok_or_else(|| Reject::signature(format!("there is no signature by {server} with {key_id}")))?;
    match key.verify(&json_message(raw)?, &signature) {
        true => Ok(()),
        false => Err(Reject::signature(format!("the signature by {server} with {key_id} is wrong"))),
    }
}

/// The key ids under which `server` is said to have signed a JSON object; at most 16.
pub fn json_key_ids(raw: &[u8], server: &str) -> Vec<String> {
    let Ok(canonical) = json::canonical(raw, Mode::Lenient) else { return Vec::new() };
    let by = json::read::get_path(&canonical, &["signatures", server]).unwrap_or(b"{}");
    json::read::members(by).take(16).filter_map(|(id, _)| String::from_utf8(id.to_vec()).ok()).collect()
}

// ---- Requests between servers ----

//! One event: content hash, redaction, event id and signatures, by the letter of the specification and without ruma.
//!
//! Room versions 10, 11 and 12. The redacted form is made by naming what stays (server-server API, "Redactions"), so this is a
//! second opinion on the server's own table.

use super::json::{Json, Manners, Text, map, write_text};
use super::random::Stream;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer, SigningKey};
use sha2::{Digest, Sha256};
use std::borrow::Cow;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    V10,
    V11,
    V12,
}

impl Version {
    pub fn name(self) -> &'static str {
        match self {
            Version::V10 => "10",
            Version::V11 => "11",
            Version::V12 => "12",
        }
    }

    pub fn from_name(name: &str) -> Option<Version> {
        [Version::V10, Version::V11, Version::V12].into_iter().find(|version| version.name() == name)
    }

    /// Whether the room's id is the hash of its create event, which then is named by no other event.
    pub fn room_id_is_create(self) -> bool {
        self == Version::V12
    }
}

pub type Hash = [u8; 32];

/// `$` and the reference hash, as room versions 4 and later write it.
pub fn event_id(hash: &Hash) -> String {
    let mut id = String::with_capacity(44);
    id.push('$');
    URL_SAFE_NO_PAD.encode_string(hash, &mut id);
    id
}

pub fn hash_of_id(id: &str) -> Option<Hash> {
    URL_SAFE_NO_PAD.decode(id.strip_prefix('$')?).ok()?.try_into().ok()
}

/// A signing key with the name it is published under.
#[derive(Clone)]
pub struct Key {
    pub server: String,
    /// `ed25519:something`
    pub id: String,
    pub secret: SigningKey,
}

impl Key {
    pub fn new(server: &str, version: &str, seed: [u8; 32]) -> Key {
        Key { server: server.to_owned(), id: format!("ed25519:{version}"), secret: SigningKey::from_bytes(&seed) }
    }

    pub fn public(&self) -> String {
        STANDARD_NO_PAD.encode(self.secret.verifying_key().as_bytes())
    }

    pub fn sign(&self, bytes: &[u8]) -> String {
        STANDARD_NO_PAD.encode(self.secret.sign(bytes).to_bytes())
    }

    /// Adds `signatures` over the canonical form without `signatures` and `unsigned`.
    pub fn sign_json(&self, object: &mut serde_json::Value) {
        let mut bare = object.clone();
        let fields = bare.as_object_mut().expect("only objects are signed");
        fields.remove("signatures");
        fields.remove("unsigned");
        let signature = self.sign(&canonical_value(&bare));
        object["signatures"][&self.server][&self.id] = signature.into();
    }
}

/// Canonical JSON of a value that holds no floats; serde_json's maps are sorted by key bytes already.
pub fn canonical_value(value: &serde_json::Value) -> Vec<u8> {
    from_value(value).canonical()
}

pub fn from_value(value: &serde_json::Value) -> Json {
    match value {
        serde_json::Value::Null => Json::Null,
        serde_json::Value::Bool(yes) => Json::Bool(*yes),
        serde_json::Value::Number(number) => Json::Int(number.as_i64().expect("canonical JSON has whole numbers only")),
        serde_json::Value::String(text) => Json::Text(Cow::Owned(text.clone())),
        serde_json::Value::Array(list) => Json::List(list.iter().map(from_value).collect()),
        serde_json::Value::Object(object) => {
            Json::Map(object.iter().map(|(key, value)| (Cow::Owned(key.clone()), from_value(value))).collect())
        }
    }
}

/// An event before it has an id. `content` may be in any order.
#[derive(Clone)]
pub struct Draft {
    pub kind: Text,
    pub state_key: Option<String>,
    pub sender: String,
    /// None for the create event of a version 12 room.
    pub room_id: Option<String>,
    pub content: Json,
    pub origin_server_ts: u64,
    pub depth: u64,
    pub prev_events: Vec<Hash>,
    pub auth_events: Vec<Hash>,
}

/// An event with its id and everything a signature covers; signing and rendering are left, and can be done on another core.
pub struct Sealed {
    pub id: Hash,
    /// The redacted event without `signatures` and `unsigned`: what the id is a hash of, and what is signed.
    pub signed_bytes: Vec<u8>,
    /// The length the specification's limit is about, save signatures.
    fields: Vec<(&'static str, Vec<u8>)>,
    content: Json,
}

impl Draft {
    /// Computes the content hash and the event id.
    pub fn seal(self, version: Version) -> Sealed {
        let redacted_content = redact_content(&self.kind, &self.content, version);
        let fields = self.fields();
        let hash: Hash = Sha256::digest(object_of(&fields, None)).into();
        let hashes = map([("sha256", STANDARD_NO_PAD.encode(hash).into())]).canonical();
        let mut fields = fields;
        fields.push(("hashes", hashes));
        fields.sort_unstable_by_key(|(key, _)| *key);
        let signed_bytes = object_of(&fields, Some(&redacted_content));
        let id = Sha256::digest(&signed_bytes).into();
        Sealed { id, signed_bytes, fields, content: self.content }
    }

    /// Every top-level field as canonical JSON, sorted, without `hashes`.
    fn fields(&self) -> Vec<(&'static str, Vec<u8>)> {
        let text = |text: &str| {
            let mut out = Vec::with_capacity(text.len() + 8);
            write_text(text, &mut out);
            out
        };
        let mut fields = vec![
            ("auth_events", ids(&self.auth_events)),
            ("content", self.content.canonical()),
            ("depth", self.depth.to_string().into_bytes()),
            ("origin_server_ts", self.origin_server_ts.to_string().into_bytes()),
            ("prev_events", ids(&self.prev_events)),
        ];
        if let Some(room_id) = &self.room_id {
            fields.push(("room_id", text(room_id)));
        }
        fields.push(("sender", text(&self.sender)));
        if let Some(state_key) = &self.state_key {
            fields.push(("state_key", text(state_key)));
        }
        fields.push(("type", text(&self.kind)));
        fields
    }
}

fn ids(hashes: &[Hash]) -> Vec<u8> {
    let mut out = Vec::with_capacity(2 + hashes.len() * 47);
    out.push(b'[');
    for (i, hash) in hashes.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.push(b'"');
        out.extend_from_slice(event_id(hash).as_bytes());
        out.push(b'"');
    }
    out.push(b']');
    out
}

/// An object of fields in the given order, `content` replaced when asked for.
fn object_of(fields: &[(&'static str, Vec<u8>)], content: Option<&[u8]>) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + fields.iter().map(|(key, value)| key.len() + value.len() + 4).sum::<usize>());
    out.push(b'{');
    for (i, (key, value)) in fields.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.push(b'"');
        out.extend_from_slice(key.as_bytes());
        out.extend_from_slice(b"\":");
        match content {
            Some(content) if *key == "content" => out.extend_from_slice(content),
            _ => out.extend_from_slice(value),
        }
    }
    out.push(b'}');
    out
}

/// What stays of a content after redaction.
fn redact_content(kind: &str, content: &Json, version: Version) -> Vec<u8> {
    let newer = version != Version::V10;
    let keep: &[&str] = match kind {
        "m.room.create" if newer => return content.canonical(),
        "m.room.create" => &["creator"],
        "m.room.member" => &["membership", "join_authorised_via_users_server"],
        "m.room.join_rules" => &["join_rule", "allow"],
        "m.room.power_levels" if newer => {
            &["ban", "events", "events_default", "invite", "kick", "redact", "state_default", "users", "users_default"]
        }
        "m.room.power_levels" => {
            &["ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default"]
        }
        "m.room.history_visibility" => &["history_visibility"],
        "m.room.redaction" if newer => &["redacts"],
        _ => &[],
    };
    let Json::Map(pairs) = content else { panic!("the content of an event is a map") };
    Json::Map(pairs.iter().filter(|(key, _)| keep.contains(&key.as_ref())).cloned().collect()).canonical()
}

impl Sealed {
    /// Makes the content say more than was hashed.
    pub fn tamper(&mut self) {
        self.content.set("org.example.tampered", true);
    }

    /// Signatures by `keys` as one canonical object; more than one key where a second server vouches.
    pub fn signatures(&self, keys: &[&Key]) -> Vec<u8> {
        let pairs = keys
            .iter()
            .map(|key| {
                (
                    Cow::Owned(key.server.clone()),
                    Json::Map(vec![(Cow::Owned(key.id.clone()), key.sign(&self.signed_bytes).into())]),
                )
            })
            .collect();
        Json::Map(pairs).canonical()
    }

    /// The event in canonical JSON.
    pub fn canonical(&self, signatures: Vec<u8>) -> Vec<u8> {
        let mut fields: Vec<(&'static str, Vec<u8>)> = self.fields.clone();
        fields.push(("signatures", signatures));
        fields.sort_unstable_by_key(|(key, _)| *key);
        object_of(&fields, None)
    }

    /// The event as a careless server sends it: fields in another order, content too, and an `unsigned` nobody signed.
    pub fn careless(&self, signatures: Vec<u8>, unsigned: Vec<u8>, stream: Stream, out: &mut Vec<u8>) {
        let mut manners = Manners::new(stream);
        let mut fields: Vec<(&str, &[u8])> = self.fields.iter().map(|(key, value)| (*key, value.as_slice())).collect();
        fields.push(("signatures", &signatures));
        fields.push(("unsigned", &unsigned));
        manners.stream.shuffle(&mut fields);
        out.push(b'{');
        for (i, (key, value)) in fields.into_iter().enumerate() {
            if i > 0 {
                out.extend_from_slice(manners.comma());
            }
            out.push(b'"');
            out.extend_from_slice(key.as_bytes());
            out.push(b'"');
            out.extend_from_slice(manners.colon());
            match key {
                "content" => self.content.write_careless(&mut manners, out),
                _ => out.extend_from_slice(value),
            }
        }
        out.push(b'}');
    }
}

/// What another server must have signed for us to believe an event it sends, computed from the event alone.
pub struct Opened {
    pub id: Hash,
    pub signed_bytes: Vec<u8>,
    pub hash_matches: bool,
}

/// Reads an event made elsewhere: its id, what its signatures cover, and whether its content hash is right.
pub fn open(event: &serde_json::Value, version: Version) -> Option<Opened> {
    let mut bare = event.as_object()?.clone();
    for key in ["signatures", "unsigned"] {
        bare.remove(key);
    }
    let claimed = bare.get("hashes")?.get("sha256")?.as_str()?.to_owned();
    let kind = bare.get("type")?.as_str()?.to_owned();
    let hashes = bare.remove("hashes")?;
    let hash = STANDARD_NO_PAD.encode(Sha256::digest(canonical_value(&bare.clone().into())));
    const KEPT: [&str; 10] = [
        "auth_events",
        "content",
        "depth",
        "origin_server_ts",
        "prev_events",
        "room_id",
        "sender",
        "state_key",
        "type",
        "hashes",
    ];
    const KEPT_BEFORE_V11: [&str; 3] = ["origin", "membership", "prev_state"];
    bare.insert("hashes".to_owned(), hashes);
    bare.retain(|key, _| {
        KEPT.contains(&key.as_str()) || (version == Version::V10 && KEPT_BEFORE_V11.contains(&key.as_str()))
    });
    let content = redact_content(&kind, &from_value(bare.get("content")?), version);
    bare.insert("content".to_owned(), serde_json::from_slice(&content).ok()?);
    let signed_bytes = canonical_value(&bare.into());
    Some(Opened { id: Sha256::digest(&signed_bytes).into(), signed_bytes, hash_matches: hash == claimed })
}

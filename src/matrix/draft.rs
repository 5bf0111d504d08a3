//! An event of ours before it is hashed and signed.

use base64::Engine;
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId};

use super::event::Event;
use super::header::Header;
use super::redact::{self, Signatures};
use super::scan::{self, text_of};
use super::sign::Key;
use super::version::RoomVersion;
use super::{Reject, format, json};

/// The member of an event that says how long it is sticky, while MSC4354 is a proposal.
pub const STICKY: &str = "msc4354_sticky";

/// An event of our own before it has hashes, signatures and an id.
#[derive(Debug, Clone)]
pub struct Draft {
    pub kind: String,
    pub state_key: Option<String>,
    pub sender: OwnedUserId,
    /// None only for the create event of a version 12 room.
    pub room_id: Option<OwnedRoomId>,
    pub content: serde_json::Value,
    pub prev_events: Vec<OwnedEventId>,
    pub auth_events: Vec<OwnedEventId>,
    pub depth: u64,
    pub origin_server_ts: u64,
    /// For `m.room.redaction`; put where the room version wants it.
    pub redacts: Option<OwnedEventId>,
    /// How long the event is sticky (MSC4354).
    pub sticky_ms: Option<u64>,
    /// Versions 1 and 2: the part of the event id before the colon, without `$`, chosen by the caller.
    pub opaque_id: String,
    /// Versions 1 and 2: reference hashes of the events named above, as far as they are known.
    pub reference_hashes: Vec<(OwnedEventId, [u8; 32])>,
}

impl Draft {
    /// Hashes, signs, and checks the result as if another server had sent it.
    /// Lengths are in bytes, whatever the version lets others send.
    pub fn build(self, version: &'static RoomVersion, server: &OwnedServerName, key: &Key) -> Result<Event, Reject> {
        if !format::is_short(&self.kind) || !self.state_key.as_deref().is_none_or(format::is_short) {
            return Err(Reject::too_large("the type or state key is longer than 255 bytes"));
        }
        let unsigned = self.write(version, server);
        sign_new(version, &unsigned, server, key)
    }

    /// The event without hashes and signatures, as `make_join` and its like hand out. Not canonical.
    pub fn template(&self, version: &RoomVersion) -> serde_json::Value {
        let mut event = serde_json::Map::new();
        let mut content = self.content.clone();
        if let Some(redacts) = &self.redacts {
            match &mut content {
                serde_json::Value::Object(content) if version.redacts_in_content() => {
                    content.insert("redacts".into(), redacts.as_str().into());
                }
                _ => drop(event.insert("redacts".into(), redacts.as_str().into())),
            }
        }
        event.insert("type".into(), self.kind.as_str().into());
        if let Some(state_key) = &self.state_key {
            event.insert("state_key".into(), state_key.as_str().into());
        }
        event.insert("sender".into(), self.sender.as_str().into());
        if let Some(room_id) = &self.room_id {
            event.insert("room_id".into(), room_id.as_str().into());
        }
        event.insert("content".into(), content);
        event.insert("prev_events".into(), self.references(version, &self.prev_events));
        event.insert("auth_events".into(), self.references(version, &self.auth_events));
        event.insert("depth".into(), self.depth.into());
        event.insert("origin_server_ts".into(), self.origin_server_ts.into());
        if let Some(duration_ms) = self.sticky_ms {
            event.insert(STICKY.into(), serde_json::json!({ "duration_ms": duration_ms }));
        }
        event.into()
    }

    fn write(&self, version: &RoomVersion, server: &OwnedServerName) -> Vec<u8> {
        let mut event = self.template(version);
        if version.event_id_in_event() {
            event["event_id"] = format!("${}:{server}", self.opaque_id).into();
        }
        event.to_string().into_bytes()
    }

    fn references(&self, version: &RoomVersion, ids: &[OwnedEventId]) -> serde_json::Value {
        let one = |id: &OwnedEventId| -> serde_json::Value {
            if !version.event_id_in_event() {
                return id.as_str().into();
            }
            let hash = self.reference_hashes.iter().find(|(of, _)| of == id);
            let hash =
                hash.map_or(serde_json::json!({}), |(_, h)| serde_json::json!({ "sha256": scan::BASE64.encode(h) }));
            serde_json::json!([id.as_str(), hash])
        };
        ids.iter().map(one).collect()
    }
}

/// Hashes and signs an event given without either, as the answer to `make_join` is; hashes and signatures already in it
/// are replaced. A large event is refused as [`Event::from_wire`] would.
pub fn sign_new(
    version: &'static RoomVersion,
    raw: &[u8],
    server: &OwnedServerName,
    key: &Key,
) -> Result<Event, Reject> {
    let mut canon = json::Canon::new();
    canon.read(raw, version.json_mode(), &["unsigned", "hashes", "signatures"])?;
    let hash = scan::content_hash(canon.members(), &mut Vec::new());
    let mut signed = serde_json::Map::new();
    signed.insert("hashes".into(), serde_json::json!({ "sha256": scan::BASE64.encode(hash) }));
    let bytes = with_members(canon.bytes(), &signed)?;
    if bytes.len() > format::EVENT_BYTES_MAX {
        return Err(Reject::too_large("the event is larger than 65536 bytes"));
    }
    let header = Header::scan(&bytes);
    let mut message = Vec::new();
    let kind = text_of(header.kind.of(&bytes));
    redact::write(version, &kind, json::read::members(&bytes), Signatures::Drop, &mut message);
    signed.insert("signatures".into(), serde_json::json!({ server.as_str(): { key.id(): key.sign_base64(&message) } }));
    Event::from_wire(version, &with_members(canon.bytes(), &signed)?)
}

/// A canonical object with a few members more, canonical again. None of them may be there already.
fn with_members(object: &[u8], more: &serde_json::Map<String, serde_json::Value>) -> Result<Vec<u8>, Reject> {
    let inner = object.strip_prefix(b"{").and_then(|o| o.strip_suffix(b"}"));
    let inner = inner.ok_or_else(|| Reject::shape("not a JSON object"))?;
    let mut text = vec![b'{'];
    text.extend_from_slice(inner);
    for (key, value) in more {
        if text.len() > 1 {
            text.push(b',');
        }
        json::write_string(&mut text, key);
        text.push(b':');
        text.extend_from_slice(value.to_string().as_bytes());
    }
    text.push(b'}');
    json::canonical(&text, json::Mode::Lenient)
}

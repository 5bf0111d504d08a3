//! An event as the rest of the house holds it: its canonical bytes once, and a small header into them.

use super::header::{Header, references};
use super::json;
use super::redact::{self, Signatures};
use super::scan::{self, Scan, counter, text_of, utf8};
use super::sign::Key;
use super::version::RoomVersion;
use super::{Reject, format};
use base64::Engine;
use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, UserId};
use std::borrow::Cow;
use std::fmt;

/// A checked event. About 350 bytes beside its canonical JSON, which is one allocation.
#[derive(Clone)]
pub struct Event {
    version: &'static RoomVersion,
    bytes: Box<[u8]>,
    header: Header,
    id: OwnedEventId,
    room_id: OwnedRoomId,
    sender: OwnedUserId,
    /// Type and state key, kept apart only where one of them needs escapes in JSON.
    odd: Option<Box<(String, Option<String>)>>,
}

impl Event {
    /// Reads an event as another server sends it: any key order, `unsigned` present or not. Checks shape and sizes and
    /// works out the id. The content hash ([`Event::is_intact`]) and the signatures are the caller's next steps
    /// ([`super::sign::check_event`]).
    pub fn from_wire(version: &'static RoomVersion, raw: &[u8]) -> Result<Event, Reject> {
        Event::read(&mut Scan::new(), version, raw)
    }

    /// The same with buffers used before.
    pub fn read(scan: &mut Scan, version: &'static RoomVersion, raw: &[u8]) -> Result<Event, Reject> {
        let seen = scan.read(version, raw)?;
        Event::from_stored(version, seen.canonical.to_vec(), seen.event_id())
    }

    /// An event from its canonical bytes as we stored them. Nothing is checked again beyond what is needed to read it.
    pub fn from_stored(version: &'static RoomVersion, bytes: Vec<u8>, id: OwnedEventId) -> Result<Event, Reject> {
        let header = Header::scan(&bytes);
        let sender = text_of(header.sender.of(&bytes));
        let sender =
            OwnedUserId::try_from(&*sender).map_err(|e| Reject::shape(format!("sender is no user id: {e}")))?;
        let kind = text_of(header.kind.of(&bytes));
        let room_id = match header.room_id.of(&bytes).and_then(json::text) {
            Some(room_id) => room_id.into_owned(),
            // Only a create event of version 12 has none; the room is named after it.
            None if kind == "m.room.create" => format!("!{}", id.as_str().trim_start_matches('$')),
            None => return Err(Reject::shape("event without a room_id")),
        };
        let room_id = OwnedRoomId::try_from(room_id).map_err(|e| Reject::shape(format!("no room id: {e}")))?;
        let state_key = header.state_key.of(&bytes).and_then(json::text);
        let owned = matches!(kind, Cow::Owned(_)) || matches!(state_key, Some(Cow::Owned(_)));
        let odd = owned.then(|| Box::new((kind.to_string(), state_key.as_deref().map(str::to_owned))));
        Ok(Event { version, bytes: bytes.into_boxed_slice(), header, id, room_id, sender, odd })
    }

    pub fn version(&self) -> &'static RoomVersion {
        self.version
    }
    pub fn id(&self) -> &EventId {
        &self.id
    }
    pub fn room_id(&self) -> &RoomId {
        &self.room_id
    }
    pub fn sender(&self) -> &UserId {
        &self.sender
    }
    /// The event's `type`.
    pub fn kind(&self) -> &str {
        match &self.odd {
            Some(odd) => &odd.0,
            None => plain(self.header.kind.of(&self.bytes)).unwrap_or(""),
        }
    }
    pub fn state_key(&self) -> Option<&str> {
        match &self.odd {
            Some(odd) => odd.1.as_deref(),
            None => plain(self.header.state_key.of(&self.bytes)),
        }
    }
    pub fn is_state(&self) -> bool {
        self.header.state_key.is_some()
    }
    /// True if this is the state event of that type and key.
    pub fn is(&self, kind: &str, state_key: &str) -> bool {
        self.kind() == kind && self.state_key() == Some(state_key)
    }
    /// Milliseconds since 1970, as the sender says.
    pub fn origin_server_ts(&self) -> u64 {
        counter(self.header.origin_server_ts.of(&self.bytes))
    }
    pub fn depth(&self) -> u64 {
        counter(self.header.depth.of(&self.bytes))
    }
    /// At most 20.
    pub fn prev_events(&self) -> impl Iterator<Item = &EventId> + Clone {
        ids(self.header.prev_events.of(&self.bytes))
    }
    /// At most 10.
    pub fn auth_events(&self) -> impl Iterator<Item = &EventId> + Clone {
        ids(self.header.auth_events.of(&self.bytes))
    }
    /// The event a redaction is aimed at, wherever the room version puts it.
    pub fn redacts(&self) -> Option<&EventId> {
        let value = match self.version.redacts_in_content() {
            true => json::get(self.content().as_bytes(), "redacts"),
            false => self.header.redacts.of(&self.bytes),
        };
        plain(value).and_then(|id| <&EventId>::try_from(id).ok())
    }
    /// Canonical JSON text of the content, an object.
    pub fn content(&self) -> &str {
        utf8(self.header.content.of(&self.bytes).unwrap_or(b"{}"))
    }
    /// The content as serde_json reads it.
    pub fn content_as<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.content())
    }
    /// A string in the content.
    pub fn content_text(&self, key: &str) -> Option<Cow<'_, str>> {
        json::get_text(self.content().as_bytes(), key)
    }
    /// `content.membership` as written.
    pub fn membership(&self) -> Option<Cow<'_, str>> {
        self.content_text("membership")
    }
    /// The canonical JSON text under a top-level key.
    pub fn get(&self, key: &str) -> Option<&str> {
        json::get(&self.bytes, key).map(utf8)
    }
    /// All top-level members in order: the key still escaped, the value as canonical JSON text.
    pub fn members(&self) -> impl Iterator<Item = (&str, &str)> {
        json::members(&self.bytes).map(|(k, v)| (utf8(k), utf8(v)))
    }
    /// What other servers are given, and what is stored: canonical JSON without `unsigned`.
    pub fn to_federation(&self) -> &[u8] {
        &self.bytes
    }
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes.into_vec()
    }
    /// Memory held, for the account that pays for it.
    pub fn weight(&self) -> usize {
        self.bytes.len() + size_of::<Event>()
    }

    /// The content hash matches; if not, only [`Event::redacted`] may be used.
    pub fn is_intact(&self) -> bool {
        let claimed = self.header.hashes.of(&self.bytes).and_then(scan::claimed_hash);
        claimed == Some(scan::content_hash(json::members(&self.bytes), &mut Vec::new()))
    }
    /// What survives of the event. The id stays, since it is the hash of just that.
    pub fn redacted(&self) -> Event {
        let mut bytes = Vec::with_capacity(self.bytes.len());
        redact::write(self.version, self.kind(), json::members(&self.bytes), Signatures::Keep, &mut bytes);
        Event { header: Header::scan(&bytes), bytes: bytes.into_boxed_slice(), ..self.clone() }
    }
    /// The bytes servers sign: the redacted form without signatures.
    pub fn signed_message(&self) -> Vec<u8> {
        let mut message = Vec::with_capacity(self.bytes.len());
        redact::write(self.version, self.kind(), json::members(&self.bytes), Signatures::Drop, &mut message);
        message
    }
    pub fn reference_hash(&self) -> [u8; 32] {
        use sha2::Digest;
        sha2::Sha256::digest(self.signed_message()).into()
    }
    /// The servers that must have signed, with their signatures.
    pub fn signers(&self) -> Result<Vec<scan::Signer<'_>>, Reject> {
        scan::signers(self.version, &self.bytes, &self.header)
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Event({} {} {:?} by {})", self.id, self.kind(), self.state_key(), self.sender)
    }
}

fn ids(list: Option<&[u8]>) -> impl Iterator<Item = &EventId> + Clone {
    references(list.unwrap_or(b"[]")).filter_map(|id| <&EventId>::try_from(id).ok())
}

/// A canonical string without escapes.
fn plain(value: Option<&[u8]>) -> Option<&str> {
    let inner = value?.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    std::str::from_utf8(inner).ok()
}

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
    /// Versions 1 and 2: the part of the event id before the colon, without `$`, chosen by the caller.
    pub opaque_id: String,
    /// Versions 1 and 2: reference hashes of the events named above, as far as they are known.
    pub reference_hashes: Vec<(OwnedEventId, [u8; 32])>,
}

impl Draft {
    /// Hashes, signs, and checks the result as if another server had sent it.
    pub fn build(self, version: &'static RoomVersion, server: &OwnedServerName, key: &Key) -> Result<Event, Reject> {
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

/// Hashes and signs an event given without either, as the answer to `make_join` is; whatever hashes and signatures it came
/// with are replaced. A large event is refused as [`Event::from_wire`] would.
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
        return Err(Reject::too_large("event larger than 65536 bytes"));
    }
    let header = Header::scan(&bytes);
    let mut message = Vec::new();
    let kind = text_of(header.kind.of(&bytes));
    redact::write(version, &kind, json::members(&bytes), Signatures::Drop, &mut message);
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

//! An event as the other parts hold it: its canonical bytes once, and a small header into them.

use super::Reject;
use super::header::{Header, references};
use super::json;
use super::redact::{self, Signatures};
use super::scan::{self, EventScanner, counter, text_of, utf8};
use super::version::RoomVersion;
use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
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
        Event::read(&mut EventScanner::new(), version, raw)
    }

    /// The same with buffers used before.
    pub fn read(scan: &mut EventScanner, version: &'static RoomVersion, raw: &[u8]) -> Result<Event, Reject> {
        let seen = scan.read(version, raw)?;
        Event::from_stored(version, seen.canonical.to_vec(), seen.event_id())
    }

    /// An event from its stored canonical bytes. Only the checks needed to read it are repeated.
    pub fn from_stored(version: &'static RoomVersion, bytes: Vec<u8>, id: OwnedEventId) -> Result<Event, Reject> {
        let header = Header::scan(&bytes);
        let sender = text_of(header.sender.of(&bytes));
        let sender =
            OwnedUserId::try_from(&*sender).map_err(|e| Reject::shape(format!("sender is not a user ID: {e}")))?;
        let kind = text_of(header.kind.of(&bytes));
        let room_id = match header.room_id.of(&bytes).and_then(json::read::text) {
            Some(room_id) => room_id.into_owned(),
            // Only a create event of version 12 has none; the room is named after it.
            None if kind == "m.room.create" => format!("!{}", id.as_str().trim_start_matches('$')),
            None => return Err(Reject::shape("the event has no room_id")),
        };
        let room_id =
            OwnedRoomId::try_from(room_id).map_err(|e| Reject::shape(format!("room_id is not a room ID: {e}")))?;
        let state_key = header.state_key.of(&bytes).and_then(json::read::text);
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
            true => json::read::get(self.content().as_bytes(), "redacts"),
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
        json::read::get_text(self.content().as_bytes(), key)
    }
    /// `content.membership` as written.
    pub fn membership(&self) -> Option<Cow<'_, str>> {
        self.content_text("membership")
    }
    /// The canonical JSON text under a top-level key.
    pub fn get(&self, key: &str) -> Option<&str> {
        json::read::get(&self.bytes, key).map(utf8)
    }
    /// All top-level members in order: the key still escaped, the value as canonical JSON text.
    pub fn members(&self) -> impl Iterator<Item = (&str, &str)> {
        json::read::members(&self.bytes).map(|(k, v)| (utf8(k), utf8(v)))
    }
    /// The form that is sent to other servers and stored: canonical JSON without `unsigned`.
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
        claimed == Some(scan::content_hash(json::read::members(&self.bytes), &mut Vec::new()))
    }
    /// The redacted form of the event. The id stays, since it is the hash of exactly that form.
    pub fn redacted(&self) -> Event {
        let mut bytes = Vec::with_capacity(self.bytes.len());
        redact::write(self.version, self.kind(), json::read::members(&self.bytes), Signatures::Keep, &mut bytes);
        Event { header: Header::scan(&bytes), bytes: bytes.into_boxed_slice(), ..self.clone() }
    }
    /// The bytes servers sign: the redacted form without signatures.
    pub fn signed_message(&self) -> Vec<u8> {
        let mut message = Vec::with_capacity(self.bytes.len());
        redact::write(self.version, self.kind(), json::read::members(&self.bytes), Signatures::Drop, &mut message);
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

pub fn ids(list: Option<&[u8]>) -> impl Iterator<Item = &EventId> + Clone {
    references(list.unwrap_or(b"[]")).filter_map(|id| <&EventId>::try_from(id).ok())
}

/// A canonical string without escapes.
fn plain(value: Option<&[u8]>) -> Option<&str> {
    let inner = value?.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    std::str::from_utf8(inner).ok()
}

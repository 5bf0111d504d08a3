//! One event from another server, once through: canonical form, shape, content hash, redacted form, event id, and the
//! servers that must have signed.
//!
//! [`EventScanner`] owns the buffers; [`ScannedEvent`] borrows from it until the next event. This is the join's inner
//! loop (a few microseconds an event beside the signature) and the one implementation: [`super::Event::from_wire`] is
//! made of it.

use super::header::{Header, references};
use super::json::{self, Canon};
use super::redact::{self, Signatures};
use super::version::{IdFormat, RoomVersion};
use super::{Reject, format};
use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use ruma::OwnedEventId;
use sha2::{Digest, Sha256};
use std::borrow::Cow;

/// Signatures of one server that are tried at most; the event's author chooses how many there are.
pub const SIGNATURES_TRIED_MAX: usize = 8;

const TOLERANT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_encode_padding(false)
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
/// Unpadded standard base64; reads padded text too, as other servers do.
pub const BASE64: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, TOLERANT);
pub const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, TOLERANT);

/// Buffers for reading events one after the other. Holds about four times the largest event it saw.
#[derive(Default)]
pub struct EventScanner {
    canon: Canon,
    message: Vec<u8>,
    hashed: Vec<u8>,
    header: Header,
}

/// One event, borrowed from its [`EventScanner`]. Its shape has been checked; its signatures have not.
pub struct ScannedEvent<'a> {
    version: &'static RoomVersion,
    header: &'a Header,
    /// Without `unsigned`; this form is stored.
    pub canonical: &'a [u8],
    /// The bytes that the required servers must have signed: the redacted form without signatures.
    pub message: &'a [u8],
    /// The content hash matches. If not, only the redacted form may be used.
    pub intact: bool,
    pub reference_hash: [u8; 32],
}

/// A server that must have signed, and the signatures it is said to have made.
#[derive(Debug, Clone)]
pub struct Signer<'a> {
    pub server: &'a str,
    /// Key id (`ed25519:…`) and signature; unusable ones are left out; at most [`SIGNATURES_TRIED_MAX`].
    pub signatures: Vec<(&'a str, [u8; 64])>,
}

impl EventScanner {
    pub fn new() -> EventScanner {
        EventScanner::default()
    }

    /// Reads one event's JSON. Bounded by `raw`, which the caller has bounded.
    pub fn read(&mut self, version: &'static RoomVersion, raw: &[u8]) -> Result<ScannedEvent<'_>, Reject> {
        self.canon.read(raw, version.json_mode(), &["unsigned"])?;
        if self.canon.deepest() > json::EVENT_DEPTH_MAX {
            return Err(Reject::json(format!("the event is nested deeper than {} levels", json::EVENT_DEPTH_MAX)));
        }
        if self.canon.bytes().first() != Some(&b'{') {
            return Err(Reject::shape("the event is not a JSON object"));
        }
        self.header = Header::default();
        let canonical = self.canon.bytes();
        for slot in self.canon.slots() {
            self.header.note(slot.key(canonical), slot.value_range());
        }
        format::check(version, canonical, &self.header)?;
        let kind = text_of(self.header.kind.of(canonical));
        self.message.clear();
        redact::write(version, &kind, self.canon.members(), Signatures::Drop, &mut self.message);
        let claimed = self.header.hashes.of(canonical).unwrap_or(b"{}");
        let intact = claimed_hash(claimed) == Some(content_hash(self.canon.members(), &mut self.hashed));
        let reference_hash = Sha256::digest(&self.message).into();
        let (header, canonical, message) = (&self.header, self.canon.bytes(), &self.message[..]);
        Ok(ScannedEvent { version, header, canonical, message, intact, reference_hash })
    }
}

impl<'a> ScannedEvent<'a> {
    pub fn version(&self) -> &'static RoomVersion {
        self.version
    }
    pub fn event_id(&self) -> OwnedEventId {
        event_id(self.version, &self.reference_hash, self.header.event_id.of(self.canonical))
    }
    pub fn kind(&self) -> Cow<'a, str> {
        text_of(self.header.kind.of(self.canonical))
    }
    pub fn state_key(&self) -> Option<Cow<'a, str>> {
        self.header.state_key.of(self.canonical).and_then(json::read::text)
    }
    pub fn sender(&self) -> Cow<'a, str> {
        text_of(self.header.sender.of(self.canonical))
    }
    /// None in the create event of a version 12 room.
    pub fn room_id(&self) -> Option<Cow<'a, str>> {
        self.header.room_id.of(self.canonical).and_then(json::read::text)
    }
    /// Canonical JSON text.
    pub fn content(&self) -> &'a str {
        utf8(self.header.content.of(self.canonical).unwrap_or(b"{}"))
    }
    /// `content.membership`.
    pub fn membership(&self) -> Option<Cow<'a, str>> {
        json::read::get_text(self.content().as_bytes(), "membership")
    }
    pub fn auth_events(&self) -> impl Iterator<Item = &'a str> + Clone + use<'a> {
        references(self.header.auth_events.of(self.canonical).unwrap_or(b"[]"))
    }
    pub fn prev_events(&self) -> impl Iterator<Item = &'a str> + Clone + use<'a> {
        references(self.header.prev_events.of(self.canonical).unwrap_or(b"[]"))
    }
    pub fn depth(&self) -> u64 {
        counter(self.header.depth.of(self.canonical))
    }
    /// Milliseconds.
    pub fn origin_server_ts(&self) -> u64 {
        counter(self.header.origin_server_ts.of(self.canonical))
    }

    /// The servers that must have signed this event, each with its signatures. Refuses an event that lacks one altogether.
    pub fn signers(&self) -> Result<Vec<Signer<'a>>, Reject> {
        signers(self.version, self.canonical, self.header)
    }

    /// The redacted form with signatures, kept instead of an event whose content hash is wrong.
    pub fn write_redacted(&self, out: &mut Vec<u8>) {
        redact::write(self.version, &self.kind(), json::read::members(self.canonical), Signatures::Keep, out);
    }
}

/// The id of an event, from its reference hash, or from the event itself in versions 1 and 2.
pub(super) fn event_id(version: &RoomVersion, hash: &[u8; 32], written: Option<&[u8]>) -> OwnedEventId {
    let mut id = [b'$'; 44];
    let engine = match version.id_format {
        IdFormat::Opaque => {
            let id = text_of(written);
            return OwnedEventId::try_from(&*id).expect("the format check has parsed the event_id member");
        }
        IdFormat::Standard => &BASE64,
        IdFormat::UrlSafe => &BASE64_URL,
    };
    engine.encode_slice(hash, &mut id[1..]).expect("32 bytes are 43 characters of unpadded base64");
    OwnedEventId::try_from(utf8(&id)).expect("$ and base64 is an event id")
}

/// SHA-256 of the event without `hashes`, `signatures` and `unsigned`. `buffer` is scratch.
pub(super) fn content_hash<'a>(members: impl Iterator<Item = (&'a [u8], &'a [u8])>, buffer: &mut Vec<u8>) -> [u8; 32] {
    buffer.clear();
    buffer.push(b'{');
    for (key, value) in members.filter(|(key, _)| !matches!(*key, b"hashes" | b"signatures" | b"unsigned")) {
        if buffer.len() > 1 {
            buffer.push(b',');
        }
        buffer.push(b'"');
        buffer.extend_from_slice(key);
        buffer.extend_from_slice(b"\":");
        buffer.extend_from_slice(value);
    }
    buffer.push(b'}');
    Sha256::digest(&buffer).into()
}

pub(super) fn claimed_hash(hashes: &[u8]) -> Option<[u8; 32]> {
    decode(json::read::get(hashes, "sha256")?)
}

/// A canonical string of base64 that holds exactly `N` bytes, `N` at most 64.
fn decode<const N: usize>(value: &[u8]) -> Option<[u8; N]> {
    let text = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    // Room for the longest text let through: the engine wants its output estimated generously.
    let mut wide = [0u8; 96];
    if text.len() > 96 || BASE64.decode_slice(text, &mut wide).ok()? != N {
        return None;
    }
    wide[..N].try_into().ok()
}

pub(super) fn signers<'a>(
    version: &RoomVersion,
    canonical: &'a [u8],
    header: &Header,
) -> Result<Vec<Signer<'a>>, Reject> {
    let mut found: Vec<Signer<'a>> = Vec::with_capacity(1);
    let signatures = header.signatures.of(canonical).unwrap_or(b"{}");
    required_servers(version, canonical, header, |server| {
        if found.iter().any(|s| s.server == server) {
            return Ok(());
        }
        let by_key = json::read::get(signatures, server)
            .ok_or_else(|| Reject::signature(format!("the event is not signed by {server}")))?;
        let usable = json::read::members(by_key).filter(|(id, _)| id.starts_with(b"ed25519:"));
        let usable = usable.filter_map(|(id, value)| Some((std::str::from_utf8(id).ok()?, decode(value)?)));
        let signatures: Vec<_> = usable.take(SIGNATURES_TRIED_MAX).collect();
        if signatures.is_empty() {
            return Err(Reject::signature(format!("the event has no usable signature by {server}")));
        }
        found.push(Signer { server, signatures });
        Ok(())
    })?;
    Ok(found)
}

/// Names each server that must have signed: the sender's (except for an invite by e-mail or telephone, which the event
/// itself proves), the event id's in versions 1 and 2, and the server that authorised a join of a restricted room.
fn required_servers<'a>(
    version: &RoomVersion,
    canonical: &'a [u8],
    header: &Header,
    mut need: impl FnMut(&'a str) -> Result<(), Reject>,
) -> Result<(), Reject> {
    let member = header.kind.of(canonical) == Some(b"\"m.room.member\"");
    let content = header.content.of(canonical).unwrap_or(b"{}");
    let third_party = member
        && json::read::get(content, "membership") == Some(b"\"invite\"")
        && json::read::get(content, "third_party_invite").is_some_and(|v| v.first() == Some(&b'{'));
    if !third_party {
        need(server_part(header.sender.of(canonical).unwrap_or_default(), "sender")?)?;
    }
    if version.event_id_in_event() {
        need(server_part(header.event_id.of(canonical).unwrap_or_default(), "event_id")?)?;
    }
    if version.restricted
        && member
        && let Some(user) = json::read::get(content, "join_authorised_via_users_server")
    {
        need(server_part(user, "join_authorised_via_users_server")?)?;
    }
    Ok(())
}

/// The text after the first colon of an id, still as it stands in the event: a server name needs no escapes.
fn server_part<'a>(value: &'a [u8], name: &str) -> Result<&'a str, Reject> {
    let wrong = || Reject::shape(format!("{name} has no server name"));
    let inner = value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")).ok_or_else(wrong)?;
    let colon = inner.iter().position(|b| *b == b':').ok_or_else(wrong)?;
    let server = std::str::from_utf8(&inner[colon + 1..]).map_err(|_| wrong())?;
    if server.is_empty() || server.contains('\\') { Err(wrong()) } else { Ok(server) }
}

pub(super) fn text_of(value: Option<&[u8]>) -> Cow<'_, str> {
    value.and_then(json::read::text).unwrap_or(Cow::Borrowed(""))
}

pub(super) fn counter(value: Option<&[u8]>) -> u64 {
    value.and_then(json::read::integer).map_or(0, |n| n.max(0) as u64)
}

/// Canonical bytes were checked as a whole; every member of them is UTF-8 too.
pub(super) fn utf8(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or("{}")
}

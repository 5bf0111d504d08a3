//! Size and shape of an event (specification: server-server API "PDUs", client-server API "Size limits").
//!
//! Synapse counted characters instead of bytes for years, so rooms up to version 10 contain longer texts than the
//! specification allows. An event that cites one of those would have to be refused without it. So the event is taken,
//! and the authorisation rules reject it, as Synapse does now.

use super::Reject;
use super::header::{Header, Span, reference};
use super::json;
use super::version::RoomVersion;
use ruma::{EventId, RoomId, UserId};
use std::borrow::Cow;

/// Canonical JSON with signatures, without `unsigned`.
pub const EVENT_BYTES_MAX: usize = 65_536;
/// Type, state key, sender, room id, event id: each. In characters too, where bytes are not counted.
pub const ID_BYTES_MAX: usize = 255;
pub const PREV_EVENTS_MAX: usize = 20;
pub const AUTH_EVENTS_MAX: usize = 10;

/// Checks an event from anywhere before anything else looks at it.
pub(super) fn check(version: &RoomVersion, bytes: &[u8], header: &Header) -> Result<(), Reject> {
    if bytes.len() > EVENT_BYTES_MAX {
        return Err(Reject::too_large("the event is larger than 65536 bytes"));
    }
    let kind = required_text(version, bytes, header.kind, "type")?;
    let sender = required_text(version, bytes, header.sender, "sender")?;
    <&UserId>::try_from(&*sender).map_err(|e| Reject::shape(format!("sender is not a user ID: {e}")))?;
    if header.state_key.is_some() {
        required_text(version, bytes, header.state_key, "state_key")?;
    }
    check_room_id(version, bytes, header, &kind)?;
    if version.event_id_in_event() {
        check_event_id(&required_text(version, bytes, header.event_id, "event_id")?)?;
    }
    check_references(version, bytes, header.prev_events, "prev_events", PREV_EVENTS_MAX)?;
    check_references(version, bytes, header.auth_events, "auth_events", AUTH_EVENTS_MAX)?;
    check_counter(bytes, header.depth, "depth")?;
    check_counter(bytes, header.origin_server_ts, "origin_server_ts")?;
    check_objects(bytes, header)
}

fn check_room_id(version: &RoomVersion, bytes: &[u8], header: &Header, kind: &str) -> Result<(), Reject> {
    if version.room_id_is_create_hash() && kind == "m.room.create" {
        return match header.room_id.is_some() {
            true => Err(Reject::shape("the create event of a version 12 room carries a room_id")),
            false => Ok(()),
        };
    }
    let room_id = required_text(version, bytes, header.room_id, "room_id")?;
    <&RoomId>::try_from(&*room_id).map_err(|e| Reject::shape(format!("room_id is not a room ID: {e}")))?;
    Ok(())
}

fn check_event_id(id: &str) -> Result<(), Reject> {
    let parsed = <&EventId>::try_from(id).map_err(|e| Reject::shape(format!("event_id is not an event ID: {e}")))?;
    if parsed.server_name().is_none() { Err(Reject::shape("event_id has no server name")) } else { Ok(()) }
}

fn check_references(v: &RoomVersion, bytes: &[u8], list: Span, name: &str, max: usize) -> Result<(), Reject> {
    let wrong = || Reject::shape(format!("{name} is not a list of event IDs"));
    let list = list.of(bytes).filter(|l| l.first() == Some(&b'[')).ok_or_else(wrong)?;
    let mut count = 0;
    for item in json::read::items(list) {
        count += 1;
        if (item.first() == Some(&b'[')) != v.event_id_in_event() {
            return Err(wrong());
        }
        let id = reference(item).ok_or_else(wrong)?;
        if id.len() > ID_BYTES_MAX || <&EventId>::try_from(id).is_err() {
            return Err(wrong());
        }
    }
    if count > max { Err(Reject::shape(format!("the event has more than {max} {name}"))) } else { Ok(()) }
}

fn check_counter(bytes: &[u8], span: Span, name: &str) -> Result<(), Reject> {
    match span.of(bytes).and_then(json::read::integer) {
        Some(n) if n >= 0 => Ok(()),
        _ => Err(Reject::shape(format!("{name} is not an integer of 0 or more"))),
    }
}

fn check_objects(bytes: &[u8], header: &Header) -> Result<(), Reject> {
    for (span, name) in [(header.content, "content"), (header.hashes, "hashes"), (header.signatures, "signatures")] {
        if span.of(bytes).and_then(|v| v.first()) != Some(&b'{') {
            return Err(Reject::shape(format!("{name} is not an object")));
        }
    }
    Ok(())
}

/// Whether a type, a state key or an id has at most [`ID_BYTES_MAX`] bytes.
pub(super) fn is_short(text: &str) -> bool {
    text.len() <= ID_BYTES_MAX
}

fn required_text<'a>(version: &RoomVersion, bytes: &'a [u8], span: Span, name: &str) -> Result<Cow<'a, str>, Reject> {
    let text =
        span.of(bytes).and_then(json::read::text).ok_or_else(|| Reject::shape(format!("{name} is not a string")))?;
    if is_short(&text) {
        return Ok(text);
    }
    if version.lengths_in_bytes {
        return Err(Reject::too_large(format!("{name} is longer than 255 bytes")));
    }
    match text.chars().count() <= ID_BYTES_MAX {
        true => Ok(text),
        false => Err(Reject::too_large(format!("{name} is longer than 255 characters"))),
    }
}

//! The redacted form of an event (each room version's section "Redactions").
//!
//! Servers sign this form, without signatures, and the reference hash is taken of it.

use super::json;
use super::version::RoomVersion;

/// Whether signatures go into the redacted form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signatures {
    Keep,
    Drop,
}

/// Appends the redacted form of an event, given its members in canonical order. `kind` is the event's type.
pub fn write<'a>(
    version: &RoomVersion,
    kind: &str,
    members: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    signatures: Signatures,
    out: &mut Vec<u8>,
) {
    out.push(b'{');
    let first = out.len();
    for (key, value) in members {
        if !keeps_member(version, key) || (key == b"signatures" && signatures == Signatures::Drop) {
            continue;
        }
        begin_member(out, first, key);
        if key == b"content" { write_content(version, kind, value, out) } else { out.extend_from_slice(value) }
    }
    out.push(b'}');
}

/// Appends the redacted content of an event of type `kind`. `content` is a canonical object.
pub fn write_content(version: &RoomVersion, kind: &str, content: &[u8], out: &mut Vec<u8>) {
    if kind == "m.room.create" && version.redaction_v11 {
        return out.extend_from_slice(content);
    }
    out.push(b'{');
    let first = out.len();
    if has_kept_content(kind) {
        for (key, value) in json::read::members(content) {
            if keeps_content(version, kind, key) {
                begin_member(out, first, key);
                out.extend_from_slice(value);
            } else if key == b"third_party_invite" && kind == "m.room.member" && version.redaction_v11
                // Synapse leaves out a value that is no object, and the hash must be the same everywhere.
                && value.first() == Some(&b'{')
            {
                begin_member(out, first, key);
                write_signed_only(value, out);
            }
        }
    }
    out.push(b'}');
}

/// A third-party invite keeps only `signed`.
fn write_signed_only(invite: &[u8], out: &mut Vec<u8>) {
    out.push(b'{');
    if let Some(signed) = json::read::get(invite, "signed") {
        out.extend_from_slice(b"\"signed\":");
        out.extend_from_slice(signed);
    }
    out.push(b'}');
}

fn begin_member(out: &mut Vec<u8>, first: usize, key: &[u8]) {
    if out.len() > first {
        out.push(b',');
    }
    out.push(b'"');
    out.extend_from_slice(key);
    out.extend_from_slice(b"\":");
}

fn keeps_member(version: &RoomVersion, key: &[u8]) -> bool {
    match key {
        b"auth_events" | b"content" | b"depth" | b"event_id" | b"hashes" | b"origin_server_ts" | b"prev_events"
        | b"room_id" | b"sender" | b"signatures" | b"state_key" | b"type" => true,
        b"membership" | b"origin" | b"prev_state" => version.keeps_old_top_level,
        _ => false,
    }
}

fn has_kept_content(kind: &str) -> bool {
    matches!(
        kind,
        "m.room.member"
            | "m.room.create"
            | "m.room.join_rules"
            | "m.room.power_levels"
            | "m.room.history_visibility"
            | "m.room.redaction"
            | "m.room.aliases"
    )
}

fn keeps_content(version: &RoomVersion, kind: &str, key: &[u8]) -> bool {
    match (kind, key) {
        ("m.room.member", b"membership") => true,
        ("m.room.member", b"join_authorised_via_users_server") => version.keeps_join_authorised,
        ("m.room.create", b"creator") => true,
        ("m.room.join_rules", b"join_rule") => true,
        ("m.room.join_rules", b"allow") => version.keeps_join_allow,
        ("m.room.power_levels", b"invite") => version.redaction_v11,
        (
            "m.room.power_levels",
            b"ban" | b"events" | b"events_default" | b"kick" | b"redact" | b"state_default" | b"users"
            | b"users_default",
        ) => true,
        ("m.room.history_visibility", b"history_visibility") => true,
        ("m.room.redaction", b"redacts") => version.redaction_v11,
        ("m.room.aliases", b"aliases") => version.keeps_aliases,
        _ => false,
    }
}

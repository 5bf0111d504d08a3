//! Room versions 1 to 12 as data: one row of rules each.
//!
//! Each row differs from the one before only in the changes that the specification's page for that version names, so
//! the rows are written that way.

use std::fmt;

/// The version new rooms get.
pub const DEFAULT: &str = "12";

/// The form of an event's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdFormat {
    /// `$opaque:server`, chosen by the server, written in the event (1, 2). References are `[id, {hash}]` pairs.
    Opaque,
    /// `$` and the reference hash in standard base64 (3).
    Standard,
    /// `$` and the reference hash in URL-safe base64 (4 and later).
    UrlSafe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StateRes {
    V1,
    V2,
    /// Starts from nothing and replays the conflicted subgraph (12).
    V2_1,
}

/// The rules of one room version. All fields are plain flags; the meaning of each stands beside it.
#[derive(Debug)]
pub struct RoomVersion {
    pub id: &'static str,
    pub id_format: IdFormat,
    pub state_res: StateRes,
    /// Integers within ±(2^53−1), no floats; anything else is dropped (6).
    pub strict_json: bool,
    /// Signing keys must have been valid when the event says it was sent (5).
    pub enforce_key_validity: bool,

    // Authorisation.
    /// `m.room.aliases` may be set by any server for its own domain (1–5).
    pub aliases_special: bool,
    /// Redactions are authorised as events (1, 2); later they are always allowed and only *applied* under conditions.
    pub redaction_authorised: bool,
    /// `notifications` levels are guarded like `events` levels (6).
    pub guards_notification_levels: bool,
    pub knock: bool,
    pub restricted: bool,
    pub knock_restricted: bool,
    /// Types, state keys and ids have 255 bytes at most (11). Earlier rooms contain some with 255 characters in more bytes:
    /// such an event is kept, and rejected.
    pub lengths_in_bytes: bool,
    /// Power levels must be JSON integers (10); earlier strings are understood.
    pub integer_levels: bool,
    /// The create event's sender is the creator, not its `creator` field (11).
    pub creator_is_sender: bool,
    /// Creators, the additional ones too, have infinite power, and the room id is the create event's hash (12).
    pub creators_infinite: bool,

    // Redaction: the members kept beyond the base set.
    pub keeps_aliases: bool,
    pub keeps_join_allow: bool,
    pub keeps_join_authorised: bool,
    /// `origin`, `membership` and `prev_state` at top level (1–10).
    pub keeps_old_top_level: bool,
    /// All of create, `invite` level, `redacts`, `third_party_invite.signed`; and `redacts` lives in `content` (11).
    pub redaction_v11: bool,
}

const V1: RoomVersion = RoomVersion {
    id: "1",
    id_format: IdFormat::Opaque,
    state_res: StateRes::V1,
    strict_json: false,
    enforce_key_validity: false,
    aliases_special: true,
    redaction_authorised: true,
    guards_notification_levels: false,
    knock: false,
    restricted: false,
    knock_restricted: false,
    lengths_in_bytes: false,
    integer_levels: false,
    creator_is_sender: false,
    creators_infinite: false,
    keeps_aliases: true,
    keeps_join_allow: false,
    keeps_join_authorised: false,
    keeps_old_top_level: true,
    redaction_v11: false,
};
const V2: RoomVersion = RoomVersion { id: "2", state_res: StateRes::V2, ..V1 };
const V3: RoomVersion = RoomVersion { id: "3", id_format: IdFormat::Standard, redaction_authorised: false, ..V2 };
const V4: RoomVersion = RoomVersion { id: "4", id_format: IdFormat::UrlSafe, ..V3 };
const V5: RoomVersion = RoomVersion { id: "5", enforce_key_validity: true, ..V4 };
const V6: RoomVersion = RoomVersion {
    id: "6",
    strict_json: true,
    aliases_special: false,
    keeps_aliases: false,
    guards_notification_levels: true,
    ..V5
};
const V7: RoomVersion = RoomVersion { id: "7", knock: true, ..V6 };
const V8: RoomVersion = RoomVersion { id: "8", restricted: true, keeps_join_allow: true, ..V7 };
const V9: RoomVersion = RoomVersion { id: "9", keeps_join_authorised: true, ..V8 };
const V10: RoomVersion = RoomVersion { id: "10", knock_restricted: true, integer_levels: true, ..V9 };
const V11: RoomVersion = RoomVersion {
    id: "11",
    creator_is_sender: true,
    keeps_old_top_level: false,
    lengths_in_bytes: true,
    redaction_v11: true,
    ..V10
};
const V12: RoomVersion = RoomVersion { id: "12", state_res: StateRes::V2_1, creators_infinite: true, ..V11 };

static ROWS: [RoomVersion; 12] = [V1, V2, V3, V4, V5, V6, V7, V8, V9, V10, V11, V12];

/// The rules of room version `id`, if we know it.
pub fn get(id: &str) -> Option<&'static RoomVersion> {
    ROWS.iter().find(|row| row.id == id)
}

/// All versions, oldest first.
pub fn list() -> &'static [RoomVersion] {
    &ROWS
}

/// The versions of rooms that are made here, joined and advertised, oldest first. Version 1 is only read: its state
/// resolution is not implemented, so such a room could not continue after its first fork.
pub fn offered() -> impl Iterator<Item = &'static RoomVersion> {
    ROWS.iter().filter(|row| row.state_res != StateRes::V1)
}

/// One of the supported versions.
pub fn get_offered(id: &str) -> Option<&'static RoomVersion> {
    offered().find(|row| row.id == id)
}

/// The version a create event's content names; "1" when it names none.
pub fn of_create(content: &str) -> Option<&'static RoomVersion> {
    match super::json::read::get(content.as_bytes(), "room_version") {
        None => get("1"),
        Some(raw) => get(&super::json::read::text(raw)?),
    }
}

impl RoomVersion {
    /// The room id is `!` and the create event's reference hash; the create event carries none (12).
    pub fn room_id_is_create_hash(&self) -> bool {
        self.creators_infinite
    }

    /// The event itself names its id, and references are pairs (1, 2).
    pub fn event_id_in_event(&self) -> bool {
        self.id_format == IdFormat::Opaque
    }

    /// `redacts` stands in the content of a redaction (11 and later), not at the top level.
    pub fn redacts_in_content(&self) -> bool {
        self.redaction_v11
    }

    /// A small number for columns and rows: 1 to 12.
    pub fn number(&self) -> u8 {
        self.id.parse().expect("room version ids in the table are small numbers")
    }

    pub fn json_mode(&self) -> super::json::Mode {
        if self.strict_json { super::json::Mode::Strict } else { super::json::Mode::Lenient }
    }
}

impl PartialEq for RoomVersion {
    fn eq(&self, other: &RoomVersion) -> bool {
        self.id == other.id
    }
}

impl Eq for RoomVersion {}

impl fmt::Display for RoomVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id)
    }
}

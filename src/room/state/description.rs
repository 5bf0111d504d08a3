//! A room as users outside it are shown it: in public lists, in the hierarchy of a space, in a summary.
//!
//! Client-server API, "Public rooms", "Spaces", "Room summary". All of them read a room here, and what other servers tell of theirs
//! is kept in the same form.

use serde::{Deserialize, Serialize};

use super::RoomRef;
use super::join_conditions::allowed_rooms;
use crate::matrix::json;
use crate::store::{self, Get};

/// The longest text of a room shown to users outside.
pub const TEXT_CHARS_MAX: usize = 2000;

/// A room as users outside it are shown it. At most seven texts of [`TEXT_CHARS_MAX`] letters and a hundred ids.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Description {
    pub room_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canonical_alias: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub avatar_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join_rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_type: Option<String>,
    pub num_joined_members: u64,
    pub world_readable: bool,
    pub guest_can_join: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
    /// The rooms whose members may join a restricted room.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_room_ids: Vec<String>,
}

impl Description {
    /// What public lists show of a room. A handful of lookups.
    pub fn listed(get: &impl Get, room: &RoomRef) -> store::Result<Description> {
        let history = text(get, room, "m.room.history_visibility", "history_visibility")?;
        Ok(Description {
            room_id: room.row.id.clone(),
            name: text(get, room, "m.room.name", "name")?,
            topic: text(get, room, "m.room.topic", "topic")?,
            canonical_alias: text(get, room, "m.room.canonical_alias", "alias")?,
            avatar_url: text(get, room, "m.room.avatar", "url")?,
            join_rule: text(get, room, "m.room.join_rules", "join_rule")?,
            room_type: text(get, room, "m.room.create", "type")?,
            num_joined_members: room.row.joined,
            world_readable: history.as_deref() == Some("world_readable"),
            guest_can_join: are_guests_let_in(get, room)?,
            ..Description::default()
        })
    }

    /// What a hierarchy and a summary show beside that.
    pub fn whole(get: &impl Get, room: &RoomRef) -> store::Result<Description> {
        let mut shown = Description::listed(get, room)?;
        shown.room_version = Some(room.version.id.to_owned());
        shown.encryption = text(get, room, "m.room.encryption", "algorithm")?;
        if matches!(shown.join_rule.as_deref(), Some("restricted" | "knock_restricted")) {
            shown.allowed_room_ids = allowed_rooms(get, room)?;
        }
        Ok(shown)
    }

    pub fn is_space(&self) -> bool {
        self.room_type.as_deref() == Some("m.space")
    }
}

/// A text shortened to what is shown of it; none when there is nothing to show.
pub fn shown_text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.chars().take(TEXT_CHARS_MAX).collect())
}

/// Whether guests may join a room. One event is read.
pub fn are_guests_let_in(get: &impl Get, room: &RoomRef) -> store::Result<bool> {
    Ok(text(get, room, "m.room.guest_access", "guest_access")?.as_deref() == Some("can_join"))
}

/// Whether the room is a space. One event is read.
pub fn is_space(get: &impl Get, room: &RoomRef) -> store::Result<bool> {
    Ok(text(get, room, "m.room.create", "type")?.as_deref() == Some("m.space"))
}

/// A non-empty text out of the room's state.
fn text(get: &impl Get, room: &RoomRef, kind: &str, field: &str) -> store::Result<Option<String>> {
    let Some(event) = room.view(get).event(kind, "")? else { return Ok(None) };
    Ok(json::read::get_text(event.content().as_bytes(), field).and_then(|text| shown_text(&text)))
}

//! The content of member events.

use ruma::{OwnedServerName, UserId};
use serde_json::{Map, Value};

use crate::room::error::Result;
use crate::room::state::RoomRef;
use crate::room::state::join_conditions::authorising_user;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::user;
use crate::store::{Get, Read};

/// The options of a join.
#[derive(Debug, Clone, Default)]
pub struct Joining {
    /// Servers that may know the room, the best first.
    pub via: Vec<OwnedServerName>,
    pub reason: Option<String>,
    /// Further fields of the member event's content.
    pub content_extra: Map<String, Value>,
    /// The operator wants it: what the user may do is not asked.
    pub by_server: bool,
}

pub fn content_of(membership: Membership, reason: Option<String>) -> Map<String, Value> {
    let mut content = Map::new();
    content.insert("membership".into(), membership.as_str().into());
    if let Some(reason) = reason {
        content.insert("reason".into(), reason.into());
    }
    content
}

/// Adds the display name and avatar of a local user, unless the content has its own.
pub fn with_profile(get: &impl Get, user_id: &UserId, mut content: Map<String, Value>) -> Result<Map<String, Value>> {
    let Some(num) = user::num(get, user_id.as_str())? else { return Ok(content) };
    for field in ["displayname", "avatar_url"] {
        if !content.contains_key(field)
            && let Some(value) = user::profile_field(get, num, field)?
            && !value.is_null()
        {
            content.insert(field.into(), value);
        }
    }
    Ok(content)
}

/// The content of a join: the app's fields, the profile, and the authorising user when the room needs one.
pub fn join_content(read: &Read, room: &RoomRef, user: &UserId, joining: Joining) -> Result<Map<String, Value>> {
    let mut content = joining.content_extra;
    // Only servers may set this field, for users they authorise.
    content.remove("join_authorised_via_users_server");
    content.insert("membership".into(), "join".into());
    if let Some(reason) = joining.reason {
        content.insert("reason".into(), reason.into());
    }
    let mut content = with_profile(read, user, content)?;
    if let Some(by) = authorising_user(read, room, user)? {
        content.insert("join_authorised_via_users_server".into(), by.as_str().into());
    }
    Ok(content)
}

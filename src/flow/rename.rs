//! A new name or picture, and telling the rooms.

use ruma::UserId;
use serde_json::Value;

use crate::room::Rooms;
use crate::user::{Error, Users};

/// Sets (or removes) a profile field. The rooms hear of a new name or picture afterwards, one after the other, each from
/// what the profile says at that moment; a power cut may leave some with the old one until the next change.
pub async fn rename(
    users: &Users,
    rooms: &Rooms,
    user_id: &UserId,
    field: &str,
    value: Option<Value>,
) -> Result<(), Error> {
    let changed = users.set_profile_field(user_id, field, value).await?;
    if changed && matches!(field, "displayname" | "avatar_url") {
        rooms.renew_profile(user_id);
    }
    Ok(())
}

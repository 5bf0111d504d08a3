//! Changing a profile field, and the member events that show it.

use ruma::UserId;
use serde_json::Value;

use crate::room::Rooms;
use crate::user::{Error, Users};

/// Sets or removes a profile field. A new `displayname` or `avatar_url` is sent to the user's rooms afterwards, one
/// room after the other, each with the profile's values at that moment. After a power cut some rooms may show the old
/// values until the next change.
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

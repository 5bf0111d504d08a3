//! A new name or picture, and telling the rooms.

use ruma::UserId;
use serde_json::Value;

use crate::room::{Joining, Rooms};
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
        let (rooms, user_id) = (rooms.clone(), user_id.to_owned());
        tokio::spawn(async move { tell(&rooms, &user_id).await });
    }
    Ok(())
}

/// Joining again says what the profile says now. Bounded by the rooms of one user, one at a time.
async fn tell(rooms: &Rooms, user_id: &UserId) {
    let joined = match rooms.joined_rooms(user_id).await {
        Ok(joined) => joined,
        Err(failed) => return tracing::warn!("the rooms of {user_id} cannot be listed: {failed}"),
    };
    for room_id in joined {
        if let Err(failed) = rooms.join(user_id, &room_id, Joining::default()).await {
            tracing::debug!("{room_id} was not told of a new name of {user_id}: {failed}");
        }
    }
}

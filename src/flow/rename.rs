//! Changing a profile field, and the member events that show it.

use ruma::UserId;
use serde_json::Value;

use crate::room::{Renewal, Rooms};
use crate::user::{Error, Users};

/// Which rooms show a new display name or avatar (MSC4466).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagate {
    #[default]
    All,
    /// Those in which the member event has what the profile had.
    Unchanged,
    None,
}

/// Sets or removes a profile field. A new `displayname` or `avatar_url` is sent to the user's rooms afterwards, one
/// room after the other, each with the profile's values at that moment. After a power cut some rooms may show the old
/// values until the next change.
pub async fn rename(
    users: &Users,
    rooms: &Rooms,
    user_id: &UserId,
    field: &str,
    value: Option<Value>,
    propagate: Propagate,
) -> Result<(), Error> {
    let changed = users.set_profile_field(user_id, field, value).await?;
    if let Some(before) = changed
        && matches!(field, "displayname" | "avatar_url")
    {
        match propagate {
            Propagate::All => rooms.renew_profile(user_id, Renewal::All),
            Propagate::Unchanged => rooms.renew_profile(user_id, Renewal::of_unchanged(field, before)),
            Propagate::None => {}
        }
    }
    Ok(())
}

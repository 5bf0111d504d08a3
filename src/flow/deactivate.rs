//! Closing an account for good.

use ruma::UserId;

use crate::base::unbroken;
use crate::room::Rooms;
use crate::user::{Error, Users};

/// Leaves every room and closes the account. A room that cannot be left (its server is gone) does not keep an account
/// open. A power cut in between leaves an open account that is in fewer rooms; asking again does the rest.
pub async fn deactivate(users: &Users, rooms: &Rooms, user_id: &UserId) -> Result<(), Error> {
    let (users, rooms, user_id) = (users.clone(), rooms.clone(), user_id.to_owned());
    // Leaving takes long, and an app that gave up waiting has no token any more to ask again with.
    unbroken(async move { close(&users, &rooms, &user_id).await }).await
}

async fn close(users: &Users, rooms: &Rooms, user_id: &UserId) -> Result<(), Error> {
    // No session begins anew while the rooms are left.
    users.logout_all(user_id, None).await?;
    for room_id in users.rooms_to_leave(user_id).await? {
        if let Err(failed) = rooms.leave(user_id, &room_id, None).await {
            tracing::info!("{user_id} is deactivated but could not leave {room_id}: {failed}");
        }
    }
    users.close(user_id).await?;
    tracing::info!("{user_id} is deactivated");
    Ok(())
}

//! Deactivating an account, which cannot be undone.

use ruma::UserId;

use crate::base::unbroken;
use crate::room::Rooms;
use crate::user::{Error, Users};

/// Leaves every room and closes the account. A room that cannot be left, such as one whose server is gone, does not
/// keep the account open. After a power cut in between, the account is open and in fewer rooms; a second request does
/// the rest. `erase`: from then on who was not in a room at an event of the user is given that event redacted.
pub async fn deactivate(users: &Users, rooms: &Rooms, user_id: &UserId, erase: bool) -> Result<(), Error> {
    let (users, rooms, user_id) = (users.clone(), rooms.clone(), user_id.to_owned());
    // Not cancelled when the client disconnects: leaving takes long, and the client's access token has been removed by
    // then.
    unbroken(async move { close(&users, &rooms, &user_id, erase).await }).await
}

async fn close(users: &Users, rooms: &Rooms, user_id: &UserId, erase: bool) -> Result<(), Error> {
    // First, so that no session acts for the user while the rooms are left.
    users.logout_all(user_id, None).await?;
    // Nor what it left behind.
    if let Err(failed) = rooms.forget_delayed(user_id).await {
        tracing::info!("{user_id} is deactivated but some delayed events are left: {failed}");
    }
    for room_id in users.rooms_to_leave(user_id).await? {
        if let Err(failed) = rooms.leave(user_id, &room_id, None).await {
            tracing::info!("{user_id} is deactivated but could not leave {room_id}: {failed}");
        }
    }
    users.close(user_id, erase).await?;
    if let Err(failed) = rooms.forget_thread_subscriptions(user_id).await {
        tracing::info!("{user_id} is deactivated but some thread subscriptions are left: {failed}");
    }
    tracing::info!("{user_id} is deactivated");
    Ok(())
}

//! Joining rooms and replacing them: what a user keeps for a room goes on with the room that replaces it.

use ruma::{OwnedRoomId, OwnedUserId, RoomId};

use crate::base::unbroken;
use crate::room::{Error, Joining, Rooms};
use crate::user::{Requester, Users};

/// Joins a room. When it replaces a room, the user's tags, direct chats and push rules of that go on in it. After a power
/// cut in between they stay where they were.
pub async fn join(
    users: &Users,
    rooms: &Rooms,
    requester: &Requester,
    room_id: &RoomId,
    joining: Joining,
) -> Result<(), Error> {
    let (users, rooms, requester, room_id) = (users.clone(), rooms.clone(), requester.clone(), room_id.to_owned());
    // Not cancelled when the client disconnects: a large room is joined nevertheless.
    unbroken(async move {
        rooms.join(&requester.user_id, &room_id, joining).await?;
        if let Ok(Some(old)) = rooms.predecessor(&room_id).await {
            follow(&users, &requester, &old, &room_id).await;
        }
        Ok(())
    })
    .await
}

/// Replaces a room by one of another version, and answers the new room. The user's tags, direct chats and push rules go
/// on in it.
pub async fn upgrade(
    users: &Users,
    rooms: &Rooms,
    requester: &Requester,
    room_id: &RoomId,
    version: &str,
    additional_creators: Vec<OwnedUserId>,
) -> Result<OwnedRoomId, Error> {
    let new = rooms.upgrade(&requester.user_id, room_id, version, additional_creators).await?;
    follow(users, requester, room_id, &new).await;
    Ok(new)
}

/// After a user closed a room in favour of another: as for [`join`], when the other says that it replaces this one.
pub async fn close(users: &Users, rooms: &Rooms, requester: &Requester, room_id: &RoomId) {
    let Ok(Some(new)) = rooms.replacement(room_id).await else { return };
    if rooms.predecessor(&new).await.is_ok_and(|old| old.as_deref() == Some(room_id)) {
        follow(users, requester, room_id, &new).await;
    }
}

async fn follow(users: &Users, requester: &Requester, old: &RoomId, new: &RoomId) {
    if let Err(error) = users.follow_upgrade(requester.user_num, old, new).await {
        tracing::warn!(%old, %new, %error, "what a user keeps for a room did not go on in the new one");
    }
}

//! Copies a local user's new display name or avatar to the member events of that user's rooms.
//!
//! One room after the other, each judged under its own lock by the membership at that moment: a user who left or was
//! removed meanwhile stays out.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use parking_lot::Mutex;
use ruma::{OwnedUserId, RoomId, UserId};
use serde_json::Value;
use tracing::Instrument;

use crate::base;
use crate::room::error::Result;
use crate::room::send;
use crate::room::send::New;
use crate::room::send::member::join_content;
use crate::room::state;
use crate::room::state::known_to_member;
use crate::room::{Joining, Membership, Rooms};

/// The users whose rooms are being updated, and whether the profile changed again since. Bounded by the local users.
#[derive(Default)]
pub(in crate::room) struct Renewals(Mutex<HashMap<OwnedUserId, bool>>);

impl Renewals {
    /// Whether no task runs for the user yet; a running task goes through the rooms once more.
    fn begin(&self, user: &UserId) -> bool {
        match self.lock().entry(user.to_owned()) {
            Entry::Occupied(mut again) => {
                again.insert(true);
                false
            }
            Entry::Vacant(free) => {
                free.insert(false);
                true
            }
        }
    }

    /// Whether another round is due; if not, the user's entry is removed.
    fn again(&self, user: &UserId) -> bool {
        let mut users = self.lock();
        let again = users.get_mut(user).is_some_and(std::mem::take);
        if !again {
            users.remove(user);
        }
        again
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, HashMap<OwnedUserId, bool>> {
        self.0.lock()
    }
}

impl Rooms {
    /// Updates the member event in all rooms of a user to the profile as it is at that moment. Returns at once; one
    /// task per user.
    pub fn renew_profile(&self, user: &UserId) {
        if !self.0.renewals.begin(user) {
            return;
        }
        let (rooms, user) = (self.clone(), user.to_owned());
        let renewing = async move {
            loop {
                let (round, who) = (rooms.clone(), user.clone());
                // In a task of its own: a round that panics ends no other.
                let _ = tokio::spawn(async move { renew_everywhere(&round, &who).await }.in_current_span()).await;
                if !rooms.0.renewals.again(&user) {
                    return;
                }
            }
        };
        tokio::spawn(renewing.in_current_span());
    }
}

async fn renew_everywhere(rooms: &Rooms, user: &UserId) {
    let joined = match rooms.joined_rooms(user).await {
        Ok(joined) => joined,
        Err(failed) => return tracing::warn!("the rooms of {user} cannot be listed: {failed}"),
    };
    for room_id in joined {
        if let Err(failed) = renew_in(rooms, user, &room_id).await {
            tracing::debug!("the new profile of {user} could not be sent to {room_id}: {failed}");
        }
    }
}

/// Sends a member's present name and avatar to a room; does nothing when the user is not joined.
pub async fn renew_in(rooms: &Rooms, user: &UserId, room_id: &RoomId) -> Result<()> {
    let (rooms, user, room_id) = (rooms.clone(), user.to_owned(), room_id.to_owned());
    base::unbroken(async move {
        let guard = rooms.lock(state::num_of(&rooms, &room_id).await?).await;
        let who = user.clone();
        let content = rooms
            .reading(move |_, read| {
                let room = known_to_member(read, &room_id)?;
                match room.view(read).member(&who)? {
                    Some((Membership::Join, _)) => join_content(read, &room, &who, Joining::default()).map(Some),
                    _ => Ok(None),
                }
            })
            .await?;
        if let Some(content) = content {
            let new = New::state("m.room.member", user.as_str(), &user, Value::Object(content));
            send::send_locked(&rooms, &guard, new, None).await?;
        }
        Ok(())
    })
    .await
}

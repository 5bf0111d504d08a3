//! Copies a local user's new display name or avatar to the member events of that user's rooms.
//!
//! One room after the other, each judged under its own lock by the membership at that moment: a user who left or was
//! removed meanwhile stays out.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use parking_lot::Mutex;
use ruma::{OwnedUserId, RoomId, UserId};
use serde_json::{Map, Value};

use crate::base;
use crate::room::error::Result;
use crate::room::send;
use crate::room::send::New;
use crate::room::send::member::join_content;
use crate::room::state;
use crate::room::state::join_conditions::authorising_user;
use crate::room::state::{RoomRef, known_to_member};
use crate::room::{Joining, Membership, Rooms};
use crate::store::Read;
use crate::store::tables::user;

/// Former values that are remembered for one round: at most a kilobyte each.
const FORMER_MAX: usize = 8;

/// Which rooms show the new profile.
#[derive(Clone, Debug, PartialEq)]
pub enum Renewal {
    All,
    /// Those that show one of these former values of a field, and of those only that field.
    Unchanged(Vec<(String, Option<Value>)>),
}

impl Renewal {
    pub fn of_unchanged(field: &str, before: Option<Value>) -> Renewal {
        Renewal::Unchanged(vec![(field.to_owned(), before)])
    }

    fn and(self, other: Renewal) -> Renewal {
        match (self, other) {
            (Renewal::Unchanged(mut former), Renewal::Unchanged(more)) => {
                former.extend(more);
                former.drain(..former.len().saturating_sub(FORMER_MAX));
                Renewal::Unchanged(former)
            }
            _ => Renewal::All,
        }
    }
}

/// The users whose rooms are being updated, and what is to be done when the profile changed again since. Bounded by the
/// local users.
#[derive(Default)]
pub(in crate::room) struct Renewals(Mutex<HashMap<OwnedUserId, Option<Renewal>>>);

impl Renewals {
    /// What to begin with when no task runs for the user yet; a running task goes through the rooms once more.
    fn begin(&self, user: &UserId, renewal: Renewal) -> Option<Renewal> {
        match self.lock().entry(user.to_owned()) {
            Entry::Occupied(mut again) => {
                let next = match again.get_mut().take() {
                    Some(waiting) => waiting.and(renewal),
                    None => renewal,
                };
                again.insert(Some(next));
                None
            }
            Entry::Vacant(free) => {
                free.insert(None);
                Some(renewal)
            }
        }
    }

    /// Another round, if one is due; if not, the user's entry is removed.
    fn again(&self, user: &UserId) -> Option<Renewal> {
        let mut users = self.lock();
        let again = users.get_mut(user).and_then(Option::take);
        if again.is_none() {
            users.remove(user);
        }
        again
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, HashMap<OwnedUserId, Option<Renewal>>> {
        self.0.lock()
    }
}

impl Rooms {
    /// Updates the member event in rooms of a user to the profile as it is at that moment. Returns at once; one task per
    /// user.
    pub fn renew_profile(&self, user: &UserId, renewal: Renewal) {
        let Some(mut renewal) = self.0.renewals.begin(user, renewal) else { return };
        let (rooms, user) = (self.clone(), user.to_owned());
        let renewing = async move {
            loop {
                let (round, who) = (rooms.clone(), user.clone());
                // In a task of its own: a round that panics ends no other.
                let renewing = async move { renew_everywhere(&round, &who, &renewal).await };
                let _ = base::detached(renewing).await;
                match rooms.0.renewals.again(&user) {
                    Some(again) => renewal = again,
                    None => return,
                }
            }
        };
        base::detached(renewing);
    }
}

async fn renew_everywhere(rooms: &Rooms, user: &UserId, renewal: &Renewal) {
    let joined = match rooms.joined_rooms(user).await {
        Ok(joined) => joined,
        Err(failed) => return tracing::warn!("the rooms of {user} cannot be listed: {failed}"),
    };
    for room_id in joined {
        if let Err(failed) = renew_as(rooms, user, &room_id, renewal.clone()).await {
            tracing::debug!("the new profile of {user} could not be sent to {room_id}: {failed}");
        }
    }
}

/// As for all rooms, in one.
#[cfg(test)]
pub async fn renew_in(rooms: &Rooms, user: &UserId, room_id: &RoomId) -> Result<()> {
    renew_as(rooms, user, room_id, Renewal::All).await
}

/// Sends a member's present name and avatar to a room, or the fields in which it shows former ones; does nothing when the
/// user is not joined.
async fn renew_as(rooms: &Rooms, user: &UserId, room_id: &RoomId, renewal: Renewal) -> Result<()> {
    let (rooms, user, room_id) = (rooms.clone(), user.to_owned(), room_id.to_owned());
    base::unbroken(async move {
        let guard = rooms.lock(state::num_of(&rooms, &room_id).await?).await;
        let who = user.clone();
        let content = rooms
            .reading(move |_, read| {
                let room = known_to_member(read, &room_id)?;
                match (room.view(read).member(&who)?, renewal) {
                    (Some((Membership::Join, _)), Renewal::All) => {
                        join_content(read, &room, &who, Joining::default()).map(Some)
                    }
                    (Some((Membership::Join, _)), Renewal::Unchanged(former)) => {
                        with_new_fields(read, &room, &who, &former)
                    }
                    _ => Ok(None),
                }
            })
            .await?;
        if let Some(content) = content {
            let new = New::state("m.room.member", user.as_str(), &user, Value::Object(content));
            send::send_locked(&rooms, guard, new, None).await?;
        }
        Ok(())
    })
    .await
}

/// A member's content with the present values of the fields in which it shows a former one; none when it shows others. What
/// else is in it stays, but for the reason of the join and who let them in.
fn with_new_fields(
    read: &Read,
    room: &RoomRef,
    user_id: &UserId,
    former: &[(String, Option<Value>)],
) -> Result<Option<Map<String, Value>>> {
    let Some(event) = room.view(read).event("m.room.member", user_id.as_str())? else { return Ok(None) };
    let mut content: Map<String, Value> = serde_json::from_str(event.content()).unwrap_or_default();
    let num = user::num(read, user_id.as_str())?;
    let before = content.clone();
    for (field, former) in former {
        if before.get(field).filter(|value| !value.is_null()) != former.as_ref() {
            continue;
        }
        match num.map_or(Ok(None), |num| user::profile_field(read, num, field))? {
            Some(value) => content.insert(field.clone(), value),
            None => content.remove(field),
        };
    }
    if content == before {
        return Ok(None);
    }
    content.remove("reason");
    content.remove("join_authorised_via_users_server");
    if let Some(by) = authorising_user(read, room, user_id)? {
        content.insert("join_authorised_via_users_server".into(), by.as_str().into());
    }
    Ok(Some(content))
}

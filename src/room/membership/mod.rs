//! Memberships: joins, leaves, invites, kicks, bans and knocks.
//!
//! In rooms we hold, a membership is a state event like others, sent through `send/` with the content that the server
//! is responsible for. For rooms we do not hold, `handshake/` knows which servers to ask.

use ruma::{OwnedEventId, OwnedServerName, OwnedUserId, RoomId, UserId};
use serde_json::{Map, Value};

use super::Rooms;
use super::error::{Error, Result};
use super::send::New;
use super::send::member::{content_of, join_content, with_profile};
use super::state::{known, known_to_member, not_in_room};
use crate::base;
use crate::remote::Deed;
use crate::room::Joining;
use crate::room::blocked;
use crate::room::handshake::{self, invite};
use crate::room::invite_rules::{self, Verdict};
use crate::room::join;
use crate::room::policies::Act;
use crate::room::send;
use crate::room::state;
use crate::store::tables::room;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::user_room;
use crate::store::tables::user;
use crate::store::{Change, Read};

pub mod profile;
pub mod restricted;
#[cfg(test)]
mod tests;

/// The memberships that a kick can end.
const INSIDE: [Membership; 3] = [Membership::Join, Membership::Invite, Membership::Knock];

impl Rooms {
    /// Joins a room; through another server when this server is not in it. Returns when the room can be used.
    pub async fn join(&self, user: &UserId, room_id: &RoomId, mut joining: Joining) -> Result<()> {
        self.check_not_blocked(room_id).await?;
        if self.is_purging(room_id).await? {
            return Err(Error::Forbidden(
                "That room is being removed from this server: try again in some minutes".to_owned(),
            ));
        }
        self.check_not_barred(room_id.as_str()).await?;
        while !is_resident(self, room_id).await? {
            if !joining.by_server {
                self.check_policy(Act::JoinRemoteRooms, user).await?;
            }
            match join::from_outside(self, user, room_id, joining).await? {
                Some(again) => joining = again,
                None => return Ok(()),
            }
        }
        let (rooms, who, id, asked) = (self.clone(), user.to_owned(), room_id.to_owned(), joining.clone());
        match base::unbroken(async move { join_here(&rooms, &who, &id, asked, None).await }).await {
            Err(why @ Error::Bad { errcode: "M_UNABLE_TO_AUTHORISE_JOIN" | "M_UNABLE_TO_GRANT_JOIN", .. }) => {
                // Not cancelled when the client disconnects: the other server may have accepted the event already.
                let (rooms, who, id) = (self.clone(), user.to_owned(), room_id.to_owned());
                base::unbroken(async move { restricted::join_restricted(&rooms, &who, &id, joining, why).await }).await
            }
            joined => joined.map(drop),
        }
    }

    /// An error when a policy list that the server follows names the room, by its id or an alias.
    pub async fn check_not_barred(&self, room: &str) -> Result<()> {
        let room = room.to_owned();
        self.reading(move |rooms, read| Error::barred(rooms.0.parts.remote.barred().room(read, &room, Deed::Join)?))
            .await
    }

    /// Leaves a room, declines an invite, or takes a knock back.
    pub async fn leave(&self, user: &UserId, room_id: &RoomId, reason: Option<String>) -> Result<()> {
        let (asked, room) = (user.to_owned(), room_id.to_owned());
        let place = self.reading(move |_, read| place_of(read, &asked, &room)).await?;
        match place {
            Place::Gone => Ok(()),
            Place::Nowhere => Err(not_in_room()),
            Place::Outside => leave_from_outside(self, user, room_id, reason).await,
            Place::Here => change_member(
                self,
                user,
                room_id,
                user,
                (Membership::Leave, None),
                content_of(Membership::Leave, reason),
            )
            .await
            .map(drop),
        }
    }

    /// Invites a user.
    pub async fn invite(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        target: &UserId,
        reason: Option<String>,
    ) -> Result<()> {
        invite_with(self, sender, room_id, target, content_of(Membership::Invite, reason), None).await.map(drop)
    }

    /// Kicks a user, or takes that user's invite back. `redacts`: under this name the event says that the user's events are
    /// redacted along with it (MSC4293).
    pub async fn kick(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        target: &UserId,
        reason: Option<String>,
        redacts: Option<&str>,
    ) -> Result<()> {
        check_membership(self, sender, room_id, target, &INSIDE, "that user is not in the room").await?;
        let content = removal(Membership::Leave, reason, redacts);
        change_member(self, sender, room_id, target, (Membership::Leave, None), content).await.map(drop)
    }

    /// Bans a user; `redacts` as in a kick.
    pub async fn ban(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        target: &UserId,
        reason: Option<String>,
        redacts: Option<&str>,
    ) -> Result<()> {
        let content = removal(Membership::Ban, reason, redacts);
        change_member(self, sender, room_id, target, (Membership::Ban, None), content).await.map(drop)
    }

    pub async fn unban(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        target: &UserId,
        reason: Option<String>,
    ) -> Result<()> {
        check_membership(self, sender, room_id, target, &[Membership::Ban], "that user is not banned").await?;
        change_member(self, sender, room_id, target, (Membership::Leave, None), content_of(Membership::Leave, reason))
            .await
            .map(drop)
    }

    /// Knocks at a room.
    pub async fn knock(
        &self,
        user: &UserId,
        room_id: &RoomId,
        via: Vec<OwnedServerName>,
        reason: Option<String>,
    ) -> Result<()> {
        self.check_not_barred(room_id.as_str()).await?;
        self.check_not_blocked(room_id).await?;
        if !is_resident(self, room_id).await? {
            self.check_policy(Act::JoinRemoteRooms, user).await?;
            return knock_from_outside(self, user, room_id, via, reason).await;
        }
        let content = content_of(Membership::Knock, reason);
        change_member(self, user, room_id, user, (Membership::Knock, None), content).await.map(drop)
    }

    async fn check_not_blocked(&self, room_id: &RoomId) -> Result<()> {
        let room_id = room_id.to_owned();
        self.reading(move |_, read| blocked::check(read, room_id.as_str())).await
    }

    /// Hides a room that was left from the user for good.
    pub async fn forget(&self, user: &UserId, room_id: &RoomId) -> Result<()> {
        let (user, room_id) = (user.to_owned(), room_id.to_owned());
        self.write(move |w| {
            let (Some(user), Some(room)) = (user::num(w, user.as_str())?, room::num(w, room_id.as_str())?) else {
                return Err(Error::NotFound);
            };
            let mut mine = user_room::mine(w, user, room)?.ok_or(Error::NotFound)?;
            if !matches!(mine.membership, Membership::Leave | Membership::Ban) {
                return Err(Error::bad("M_UNKNOWN", "a room can be forgotten only after leaving it"));
            }
            if !mine.forgotten {
                mine.forgotten = true;
                user_room::set_mine(w, user, room, &mine)?;
                w.announce(Change { users: vec![user], room: Some(room), ..Change::default() });
            }
            Ok(())
        })
        .await
    }

    /// What a user of this server is to a room; nothing when it never had to do with them.
    pub async fn membership(&self, user: &UserId, room_id: &RoomId) -> Result<Option<Membership>> {
        let (user, room_id) = (user.to_owned(), room_id.to_owned());
        self.reading(move |_, read| {
            let (Some(user), Some(room)) = (user::num(read, user.as_str())?, room::num(read, room_id.as_str())?) else {
                return Ok(None);
            };
            Ok(user_room::mine(read, user, room)?.map(|mine| mine.membership))
        })
        .await
    }

    /// The rooms a user of this server is joined to. Bounded by the rooms one user is in.
    pub async fn joined_rooms(&self, user: &UserId) -> Result<Vec<ruma::OwnedRoomId>> {
        let user = user.to_owned();
        self.reading(move |_, read| {
            let Some(user) = user::num(read, user.as_str())? else { return Ok(Vec::new()) };
            let mut joined = Vec::new();
            user_room::list_mine(read, user, None, &mut |num, mine| {
                if mine.membership == Membership::Join {
                    joined.push(num);
                }
                Ok(std::ops::ControlFlow::Continue(()))
            })?;
            let id = |num| room::get_of(read, num)?.id.try_into().map_err(|_| Error::NotFound);
            joined.into_iter().map(id).collect()
        })
        .await
    }
}

/// Sends a membership event that an app sent as state: by the same paths as above, with the app's content.
pub(super) async fn send_member(
    rooms: &Rooms,
    sender: &UserId,
    room_id: &RoomId,
    target: &str,
    content: Value,
    ts: Option<u64>,
) -> Result<OwnedEventId> {
    let bad = |why| Error::bad("M_BAD_JSON", why);
    let target = OwnedUserId::try_from(target).map_err(|_| bad("the state key is not a user ID"))?;
    let membership = content.get("membership").and_then(Value::as_str).and_then(Membership::of);
    let membership = membership.ok_or_else(|| bad("a member event needs a membership"))?;
    let Value::Object(content) = content else { return Err(bad("the content is not an object")) };
    match membership {
        Membership::Join if sender == target => {
            rooms.check_not_barred(room_id.as_str()).await?;
            let joining = Joining { content_extra: content, ..Joining::default() };
            let (rooms, room_id) = (rooms.clone(), room_id.to_owned());
            base::unbroken(async move { join_here(&rooms, &target, &room_id, joining, ts).await }).await
        }
        Membership::Invite => invite_with(rooms, sender, room_id, &target, content, ts).await,
        _ => change_member(rooms, sender, room_id, &target, (membership, ts), content).await,
    }
}

fn removal(membership: Membership, reason: Option<String>, redacts: Option<&str>) -> Map<String, Value> {
    let mut content = content_of(membership, reason);
    content.extend(redacts.map(|flag| (flag.to_owned(), true.into())));
    content
}

async fn is_resident(rooms: &Rooms, room_id: &RoomId) -> Result<bool> {
    let room_id = room_id.to_owned();
    rooms
        .reading(move |_, read| match known(read, room_id.as_str()) {
            Ok(room) => Ok(room.is_resident()),
            Err(Error::NotFound) => Ok(false),
            Err(failed) => Err(failed),
        })
        .await
}

/// Joins a room this server is in.
async fn join_here(
    rooms: &Rooms,
    user: &UserId,
    room_id: &RoomId,
    joining: Joining,
    ts: Option<u64>,
) -> Result<OwnedEventId> {
    let num = state::num_of(rooms, room_id).await?;
    let guard = rooms.lock(num).await;
    let (asked, room_id, again) = (user.to_owned(), room_id.to_owned(), joining.clone());
    let made = rooms
        .reading(move |_, read| {
            let room = known_to_member(read, &room_id)?;
            join_content(read, &room, &asked, again)
        })
        .await;
    match made {
        Ok(content) => {
            let new = New::state("m.room.member", user.as_str(), user, Value::Object(content)).at(ts);
            send::send_locked(rooms, guard, new, None).await
        }
        Err(failed) => Err(failed),
    }
}

pub(super) async fn invite_with(
    rooms: &Rooms,
    sender: &UserId,
    room_id: &RoomId,
    target: &UserId,
    content: Map<String, Value>,
    ts: Option<u64>,
) -> Result<OwnedEventId> {
    rooms.check_policy(Act::Invite, sender).await?;
    if target.server_name() == rooms.server() {
        handshake::make_if_unknown(rooms, target).await?;
        return change_member(rooms, sender, room_id, target, (Membership::Invite, ts), content).await;
    }
    let new = New::state("m.room.member", target.as_str(), sender, Value::Object(content)).at(ts);
    invite_elsewhere(rooms, room_id, new).await
}

/// Sends a membership event for `target` into a room we hold.
pub(super) async fn change_member(
    rooms: &Rooms,
    sender: &UserId,
    room_id: &RoomId,
    target: &UserId,
    (membership, ts): (Membership, Option<u64>),
    mut content: Map<String, Value>,
) -> Result<OwnedEventId> {
    content.insert("membership".into(), membership.as_str().into());
    let (rooms, room_id) = (rooms.clone(), room_id.to_owned());
    let (sender, target) = (sender.to_owned(), target.to_owned());
    let shows_profile = matches!(membership, Membership::Invite | Membership::Knock);
    base::unbroken(async move {
        if shows_profile {
            let (who, asked) = (target.clone(), content);
            let by = (membership == Membership::Invite).then(|| sender.clone());
            let work = move |_: &Rooms, read: &Read| {
                if let Some(by) = by {
                    check_invitable(read, &who, &by)?;
                }
                with_profile(read, &who, asked)
            };
            content = rooms.reading(work).await?;
        }
        let new = New::state("m.room.member", target.as_str(), &sender, Value::Object(content)).at(ts);
        send::send_new(&rooms, &room_id, new, None).await
    })
    .await
}

/// An error when a user of this server takes no invites from another user. Administrators are let through, as Synapse does.
pub(super) fn check_invitable(read: &Read, target: &UserId, inviter: &UserId) -> Result<()> {
    let Some(target) = user::num(read, target.as_str())? else { return Ok(()) };
    if let Some(num) = user::num(read, inviter.as_str())?
        && user::account(read, num)?.is_some_and(|account| account.admin)
    {
        return Ok(());
    }
    match invite_rules::verdict(read, target, inviter.as_str())? {
        Verdict::Block(errcode) => Err(Error::InviteBlocked(errcode)),
        Verdict::Allow | Verdict::Ignore => Ok(()),
    }
}

/// An error unless the target's membership is one of these. A user outside the room learns nothing of its members.
async fn check_membership(
    rooms: &Rooms,
    sender: &UserId,
    room_id: &RoomId,
    target: &UserId,
    wanted: &'static [Membership],
    otherwise: &'static str,
) -> Result<()> {
    let (sender, room_id, target) = (sender.to_owned(), room_id.to_owned(), target.to_owned());
    rooms
        .reading(move |_, read| {
            let room = known_to_member(read, &room_id)?;
            let view = room.view(read);
            if !matches!(view.member(&sender)?, Some((Membership::Join, _))) {
                return Err(not_in_room());
            }
            let membership = view.member(&target)?.map(|(membership, _)| membership);
            match membership.is_some_and(|membership| wanted.contains(&membership)) {
                true => Ok(()),
                false => Err(Error::forbidden(otherwise)),
            }
        })
        .await
}

/// The standing of a user who wants to leave.
enum Place {
    /// In a room we hold.
    Here,
    /// Invited or knocking in a room without local members.
    Outside,
    /// Left already.
    Gone,
    Nowhere,
}

fn place_of(read: &Read, user: &UserId, room_id: &RoomId) -> Result<Place> {
    let (Some(user), Some(room)) = (user::num(read, user.as_str())?, room::num(read, room_id.as_str())?) else {
        return Ok(Place::Nowhere);
    };
    let Some(mine) = user_room::mine(read, user, room)? else { return Ok(Place::Nowhere) };
    Ok(match mine.membership {
        Membership::Leave => Place::Gone,
        Membership::Ban => Place::Nowhere,
        _ if mine.outside => Place::Outside,
        _ => Place::Here,
    })
}

async fn leave_from_outside(rooms: &Rooms, user: &UserId, room_id: &RoomId, reason: Option<String>) -> Result<()> {
    let (asking, user, room_id) = (rooms.clone(), user.to_owned(), room_id.to_owned());
    // Not cancelled when the client disconnects: the other server may have accepted the event already.
    base::unbroken(async move { handshake::leave(&asking, &user, &room_id, reason.as_deref()).await }).await
}

async fn knock_from_outside(
    rooms: &Rooms,
    user: &UserId,
    room_id: &RoomId,
    mut via: Vec<OwnedServerName>,
    reason: Option<String>,
) -> Result<()> {
    via.extend(room_id.server_name().filter(|server| !via.iter().any(|known| known == server)).map(ToOwned::to_owned));
    let (who, content) = (user.to_owned(), content_of(Membership::Knock, reason));
    let content = rooms.reading(move |_, read| with_profile(read, &who, content)).await?;
    let (asking, user, room_id) = (rooms.clone(), user.to_owned(), room_id.to_owned());
    base::unbroken(async move { handshake::knock(&asking, &user, &room_id, &via, content).await }).await
}

/// Invites a remote user, whose server must sign the invite first.
async fn invite_elsewhere(rooms: &Rooms, room_id: &RoomId, new: New) -> Result<OwnedEventId> {
    let (asking, room_id) = (rooms.clone(), room_id.to_owned());
    // Once the other server has signed, the room must get the event, whether or not the client is still connected.
    base::unbroken(async move { invite::offer(&asking, &room_id, new).await }).await
}

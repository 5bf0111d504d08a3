//! Rooms that nobody of this server is in: asked in from outside, joined through another server.

use ruma::{OwnedEventId, OwnedServerName, RoomId, UserId};

use super::append::Append;
use super::membership::{content_of, with_profile};
use super::send::{Built, New, known_to_member};
use super::state::known_num;
use super::{Error, Joining, Result, Rooms};
use crate::store::Change;
use crate::store::tables::event::Membership;
use crate::store::tables::member::{self, Mine};
use crate::store::tables::room::{self, Status};
use crate::store::tables::user;

/// Stripped state kept of one room at most: a name, a topic, a picture, the rules and two members fit ten times over.
const STRIPPED_BYTES_MAX: usize = 64 * 1024;

pub(super) async fn join(rooms: &Rooms, user: &UserId, room_id: &RoomId, joining: Joining) -> Result<()> {
    super::join::from_outside(rooms, user, room_id, joining).await
}

pub(super) async fn leave(rooms: &Rooms, user: &UserId, room_id: &RoomId, reason: Option<String>) -> Result<()> {
    rooms.leave_outside(user, room_id, reason.as_deref()).await
}

pub(super) async fn knock(
    rooms: &Rooms,
    user: &UserId,
    room_id: &RoomId,
    mut via: Vec<OwnedServerName>,
    reason: Option<String>,
) -> Result<()> {
    via.extend(room_id.server_name().filter(|server| !via.iter().any(|known| known == server)).map(ToOwned::to_owned));
    let (who, content) = (user.to_owned(), content_of(Membership::Knock, reason));
    let content = rooms.reading(move |_, read| with_profile(read, &who, content)).await?;
    rooms.knock_outside(user, room_id, &via, content).await
}

/// Invites somebody of another server, which must hear of it and agree first.
pub(super) async fn invite(rooms: &Rooms, room_id: &RoomId, new: New) -> Result<OwnedEventId> {
    let (asking, room_id) = (rooms.clone(), room_id.to_owned());
    // Once the other server has agreed, the room must hear of it, whether or not the app still listens.
    rooms.unbroken(async move { asking.invite_outside(&room_id, new).await }).await
}

impl Rooms {
    async fn invite_outside(&self, room_id: &RoomId, new: New) -> Result<OwnedEventId> {
        let inviter = new.sender.clone();
        let built = self.build_for_others(room_id, new).await?;
        let shown = self.shown_state_of(room_id, Some(&inviter)).await?;
        let event = self.sign_invite(&built.event, shown).await?;
        self.append_built(Built { event, ..built }).await
    }

    /// Notes that a user of this server was invited to, or knocks at, a room nobody here is in: `stripped` is a JSON
    /// array of what the other server tells of it. `version` is empty when it is not known.
    pub(super) async fn set_outside(
        &self,
        user: &UserId,
        room_id: &RoomId,
        version: &str,
        membership: Membership,
        stripped: Vec<u8>,
    ) -> Result<()> {
        if stripped.len() > STRIPPED_BYTES_MAX {
            return Err(Error::TooLarge);
        }
        let (user, room_id, version) = (user.to_owned(), room_id.to_owned(), version.to_owned());
        self.write(move |w| {
            if let Some(num) = room::num(w, room_id.as_str())?
                && room::get_of(w, num)?.status == Status::Resident
            {
                return Err(Error::forbidden("this server is in the room"));
            }
            let user = user::intern(w, user.as_str())?;
            let num = room::intern(w, room_id.as_str(), &version)?;
            let old = member::mine(w, user, num)?;
            let mine = Mine {
                membership,
                since: w.next_position(),
                event: None,
                forgotten: false,
                outside: true,
                before: old.map(|old| old.membership),
                left_at: old.and_then(|old| old.left_at),
            };
            member::set_mine(w, user, num, &mine)?;
            member::set_stripped(w, user, num, Some(&stripped))?;
            w.announce(Change { users: vec![user], room: Some(num), ..Change::default() });
            Ok(())
        })
        .await
    }

    /// An invite or knock from outside is over: declined, taken back, or refused.
    pub(super) async fn drop_outside(&self, user: &UserId, room_id: &RoomId) -> Result<()> {
        let (user, room_id) = (user.to_owned(), room_id.to_owned());
        self.write(move |w| {
            let (Some(user), Some(num)) = (user::num(w, user.as_str())?, room::num(w, room_id.as_str())?) else {
                return Ok(());
            };
            let Some(old) = member::mine(w, user, num)?.filter(|mine| mine.outside) else { return Ok(()) };
            let since = w.next_position();
            let mine = Mine { membership: Membership::Leave, since, before: Some(old.membership), ..old };
            member::set_mine(w, user, num, &mine)?;
            member::set_stripped(w, user, num, None)?;
            w.announce(Change { users: vec![user], room: Some(num), ..Change::default() });
            Ok(())
        })
        .await
    }

    /// Builds an event of ours under the room's lock, to be shown to another server before it is appended.
    pub(super) async fn build_for_others(&self, room_id: &RoomId, new: New) -> Result<Built> {
        let num = self.num_of(room_id).await?;
        let guard = self.lock(num).await;
        self.settle_ends(&guard).await?;
        let room_id = room_id.to_owned();
        self.reading(move |rooms, read| {
            let room = known_to_member(read, &room_id)?;
            rooms.build(read, &room, new)
        })
        .await
    }

    /// Appends an event of [`Rooms::build_for_others`], perhaps signed by the other server too. The room may have gone on
    /// meanwhile: then the event is judged again by its present state, and follows what it was built upon.
    pub(super) async fn append_built(&self, built: Built) -> Result<OwnedEventId> {
        let rooms = self.clone();
        self.unbroken(async move {
            let guard = rooms.lock(built.room).await;
            let id = built.event.id().to_owned();
            let append = rooms.reading(move |_, read| rejudged(read, built)).await?;
            rooms.append_locked(&guard, append).await?;
            Ok(id)
        })
        .await
    }
}

fn rejudged(read: &crate::store::Read, built: Built) -> Result<Append> {
    use super::append::{Before, Current};
    let room = known_num(read, built.room)?;
    let append = Append { outbound: true, ..Append::next(built.room, built.event) };
    if room.row.extremities == built.extremities {
        return Ok(append);
    }
    crate::matrix::auth::check(room.version, &append.event.subject(), &room.view(read))?;
    let before = built.before.map_or(Before::Present, Before::At);
    Ok(Append { before, current: Current::Resolved { changes: Vec::new(), wins: true }, ..append })
}

//! The members of a room: rows by membership, counts, the servers they are on, and each local user's own rooms.

use super::derived::{Derived, StateChange};
use super::new_event::{Here, server_of};
use crate::room::state::join_conditions::local_joined;
use crate::store::tables::room::current_state::NewState;
use crate::store::tables::room::event_row::{Kind, Membership};
use crate::store::tables::room::user_room::{self, Mine};
use crate::store::tables::room::{Status, member, unread};
use crate::store::tables::user;
use crate::store::{Change, EventNum, Get, Position, Push, Result, RoomNum, UserNum, Write};

/// The members of a room.
pub struct Members;

impl Derived for Members {
    fn on_state(&self, w: &mut Write<'_>, change: &mut StateChange<'_>) -> Result<()> {
        if change.kind != Kind::MEMBER {
            return Ok(());
        }
        let before = change.before.and_then(|row| row.member);
        let after = change.after.as_ref();
        let after = after.and_then(|(event, row)| row.member.map(|(membership, target)| (membership, target, *event)));
        let Some(target) = after.map(|(_, target, _)| target).or(before.map(|(_, target)| target)) else {
            return Ok(());
        };
        let before = before.map(|(membership, _)| membership);
        let after = after.map(|(membership, _, event)| (membership, event));
        change.local = move_member(w, change, target, before, after)?;
        Ok(())
    }

    fn build_from_state(&self, w: &mut Write<'_>, room: RoomNum, batch: &[NewState]) -> Result<()> {
        member::put_new(w, room, batch)
    }

    fn forget(&self, w: &mut Write<'_>, room: RoomNum, rows_max: usize) -> Result<usize> {
        member::clear(w, room, rows_max)
    }
}

/// A user's membership changes: rows, counts, servers; and, for a local user, the row of their own rooms. Answers a
/// local user.
fn move_member(
    w: &mut Write<'_>,
    change: &mut StateChange<'_>,
    target: UserNum,
    before: Option<Membership>,
    after: Option<(Membership, EventNum)>,
) -> Result<Option<UserNum>> {
    let StateChange { here, num, room, at, .. } = change;
    let (num, at) = (*num, *at);
    member::set(w, num, target, before, after)?;
    let membership = after.map(|(membership, _)| membership);
    let moved = |which| i64::from(membership == Some(which)) - i64::from(before == Some(which));
    room.joined = room.joined.saturating_add_signed(moved(Membership::Join));
    room.invited = room.invited.saturating_add_signed(moved(Membership::Invite));
    let user_id = user::id_of(w, target)?;
    if moved(Membership::Join) != 0 {
        member::count_server(w, num, server_of(&user_id), moved(Membership::Join), at)?;
    }
    if !here.is_local(&user_id) {
        return Ok(None);
    }
    room.status = match member::server(w, num, here.server.as_str())? {
        Some(_) => Status::Resident,
        None => Status::Left,
    };
    // A name without an account has no rooms: others may invite any number of those, and each message walks the list.
    if !user::is_local(w, target)? {
        return Ok(None);
    }
    set_mine(w, here, num, target, (before, after), at)?;
    Ok(Some(target))
}

/// Sets a local user's row for a room, after a change of membership that we hold the event of.
fn set_mine(
    w: &mut Write<'_>,
    here: &Here,
    room: RoomNum,
    user: UserNum,
    (before, after): (Option<Membership>, Option<(Membership, EventNum)>),
    at: Position,
) -> Result<()> {
    let old = user_room::mine(w, user, room)?;
    let Some((membership, event)) = after else {
        unread::clear(w, user, room)?;
        return user_room::remove_mine(w, user, room);
    };
    let was_joined = before == Some(Membership::Join);
    let stays = before == Some(membership);
    let left_at = match membership == Membership::Join || !was_joined {
        true => old.and_then(|old| old.left_at),
        false => Some(at),
    };
    let mine = Mine {
        membership,
        // A changed display name is a new event in the timeline, not a new membership.
        since: old.filter(|_| stays).map_or(at, |old| old.since),
        event: Some(event),
        forgotten: here.forgets && matches!(membership, Membership::Leave | Membership::Ban),
        outside: false,
        before: if stays { old.and_then(|old| old.before) } else { before },
        left_at,
    };
    if old.is_some_and(|old| old.membership == Membership::Invite && old.membership != membership) {
        // An invite counts in the badges of the user's phones.
        w.announce(Change { users: vec![user], push: Push::Read, ..Change::default() });
    }
    if membership == Membership::Invite && !stays {
        w.announce(Change { room: Some(room), invited: Some(user), ..Change::default() });
    }
    user_room::set_stripped(w, user, room, None)?;
    if membership != Membership::Join {
        unread::clear(w, user, room)?;
    }
    user_room::set_mine(w, user, room, &mine)
}

/// Writes and announces the rows of local users other than the joining one, for a room that was joined through another
/// server. Bounded by the users of this server.
pub fn build_own_rooms(
    w: &mut Write<'_>,
    room: RoomNum,
    locals: Vec<(UserNum, Membership, EventNum)>,
    at: Position,
) -> Result<()> {
    let mut users = Vec::new();
    for (user, membership, event) in locals {
        let before = user_room::mine(w, user, room)?.filter(|mine| !mine.outside);
        if before.as_ref().is_some_and(|mine| mine.membership == membership) {
            continue;
        }
        let left_at = before.as_ref().and_then(|mine| mine.left_at);
        let before = before.map(|mine| mine.membership);
        if membership != Membership::Join {
            unread::clear(w, user, room)?;
        }
        let mine =
            Mine { membership, since: at, event: Some(event), forgotten: false, outside: false, before, left_at };
        user_room::set_mine(w, user, room, &mine)?;
        users.push(user);
    }
    w.announce(Change { users, room: Some(room), ..Change::default() });
    Ok(())
}

/// Adds the room's local members to `users`, each once.
pub fn add_local_joined(get: &impl Get, room: RoomNum, users: &mut Vec<UserNum>) -> Result<()> {
    for user in local_joined(get, room)? {
        if !users.contains(&user) {
            users.push(user);
        }
    }
    Ok(())
}

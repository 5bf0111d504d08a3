//! Memberships in rooms without local members: invites from other servers, and joins through them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::ControlFlow;

use ruma::{OwnedUserId, RoomId, UserId};
use serde_json::{Map, Value, json};

use crate::base::shares::{Held, neighbourhood, of_the_busiest};
use crate::matrix::Event;
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::room::state::stripped::inviter;
use crate::room::state::stripped::{STRIPPED_BYTES_MAX, inviting_server};
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::member;
use crate::store::tables::room::user_room::Mine;
use crate::store::tables::room::{self, Status};
use crate::store::tables::room::{join, user_room};
use crate::store::tables::user::{self, account_data};
use crate::store::{Change, Get, Position, Push, RoomNum, UserNum, Write};

/// Open invites of one user: from servers that share a room with us, and from unknown servers. Beyond that an eighth of
/// them is removed: of the servers that sent most, the oldest.
const INVITES_KNOWN_MAX: usize = 50;
const INVITES_STRANGERS_MAX: usize = 150;
/// Ended invites and knocks of one user. Older ones are removed.
const OVER_MAX: usize = 200;

/// Stores that a local user was invited to, or knocks at, a room without local members. `stripped` is the JSON
/// array of stripped state from the other server. `version` is empty when it is not known. An open invite is not
/// replaced by one of another server: a server that knows the room's id could otherwise replace a friend's invite
/// by its own.
pub async fn record(
    rooms: &Rooms,
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
    let (whose, is_invite) = (user.clone(), membership == Membership::Invite);
    let by = if is_invite { inviting_server(&stripped, &user) } else { String::new() };
    let inviting = by.clone();
    let surplus = rooms.reading(move |_, read| surplus(read, &whose, is_invite.then_some(&*inviting))).await?;
    rooms
        .write(move |w| {
            if let Some(num) = room::num(w, room_id.as_str())?
                && room::get_of(w, num)?.status == Status::Resident
            {
                return Err(Error::forbidden("this server is in the room"));
            }
            let user_id = user;
            let user = user::intern(w, user_id.as_str())?;
            if is_invite
                && let Some(num) = room::num(w, room_id.as_str())?
                && user_room::mine(w, user, num)?.is_some_and(|old| old.outside && old.membership == Membership::Invite)
            {
                let before = inviting_server(&user_room::stripped(w, user, num)?.unwrap_or_default(), &user_id);
                if !before.is_empty() && before != by {
                    return Ok(());
                }
            }
            for invite in surplus.invites {
                remove_rows(w, user, invite, None)?;
            }
            for over in surplus.over {
                forget(w, user, over)?;
            }
            let num = room::intern(w, room_id.as_str(), &version)?;
            let old = user_room::mine(w, user, num)?;
            let mine = Mine {
                membership,
                since: w.next_position(),
                event: None,
                forgotten: false,
                outside: true,
                before: old.map(|old| old.membership),
                left_at: old.and_then(|old| old.left_at),
            };
            user_room::set_mine(w, user, num, &mine)?;
            user_room::set_stripped(w, user, num, Some(&stripped))?;
            let invited = is_invite.then_some(user);
            w.announce(Change {
                users: vec![user],
                room: Some(num),
                push: Push::Notified,
                invited,
                ..Change::default()
            });
            Ok(())
        })
        .await
}

/// Ends an invite or knock from outside: declined, taken back, or refused. `inviter`: ends an invite only if that
/// user sent it. `leave`: the event that ends it, which apps are shown.
pub async fn end(
    rooms: &Rooms,
    user: &UserId,
    room_id: &RoomId,
    inviter: Option<OwnedUserId>,
    leave: Option<Leave>,
) -> Result<()> {
    let (user_id, room_id) = (user.to_owned(), room_id.to_owned());
    rooms
        .write(move |w| {
            let (Some(user), Some(num)) = (user::num(w, user_id.as_str())?, room::num(w, room_id.as_str())?) else {
                return Ok(());
            };
            match inviter {
                Some(inviter) if !may_end(w, user, num, &user_id, &inviter)? => Ok(()),
                _ => remove_rows(w, user, num, leave.as_ref()),
            }
        })
        .await
}

/// Whether a remote user may end a local user's invite or knock: an invite only the user who sent it. For a knock the
/// caller has checked that the server is involved in the room.
pub(in crate::room) fn may_end(
    get: &impl Get,
    user: UserNum,
    room: RoomNum,
    user_id: &UserId,
    by: &UserId,
) -> Result<bool> {
    if user_room::mine(get, user, room)?.is_none_or(|mine| mine.membership != Membership::Invite) {
        return Ok(true);
    }
    let stripped = user_room::stripped(get, user, room)?.unwrap_or_default();
    Ok(inviter(&stripped, user_id).is_some_and(|inviter| inviter == by.as_str()))
}

/// The member event that ends an invite or knock from outside, as apps see it: a JSON array of one. Kept where the
/// stripped state was.
pub struct Leave(Vec<u8>);

/// The content of such an event that is kept; of a longer one only the membership. A person may have
/// [`OVER_MAX`] of them, and others choose how long they are.
const LEAVE_BYTES_MAX: usize = 4096;

impl Leave {
    pub fn of(event: &Event) -> Leave {
        let membership = event.membership().unwrap_or(Cow::Borrowed("leave"));
        let content = match event.content() {
            content if content.len() <= LEAVE_BYTES_MAX => content.to_owned(),
            _ => json!({ "membership": membership }).to_string(),
        };
        let state_key = event.state_key().unwrap_or_default();
        Leave::written(&content, event.id().as_str(), event.origin_server_ts(), event.sender().as_str(), state_key)
    }

    /// For a user whose leave no other server was told of: an event that is in no room.
    pub fn unsent(rooms: &Rooms, user: &UserId, content: &Map<String, Value>) -> Leave {
        let parts = &rooms.0.parts;
        let id = format!("${}", parts.random.token(43));
        let content = match serde_json::to_string(content).unwrap_or_default() {
            content if (1..=LEAVE_BYTES_MAX).contains(&content.len()) => content,
            _ => json!({ "membership": "leave" }).to_string(),
        };
        Leave::written(&content, &id, parts.clock.now_ms(), user.as_str(), user.as_str())
    }

    fn written(content: &str, id: &str, ts: u64, sender: &str, state_key: &str) -> Leave {
        let (id, sender, state_key) = (json!(id), json!(sender), json!(state_key));
        let text = format!(
            "[{{\"content\":{content},\"event_id\":{id},\"origin_server_ts\":{ts},\"sender\":{sender},\
             \"state_key\":{state_key},\"type\":\"m.room.member\"}}]"
        );
        Leave(text.into_bytes())
    }
}

/// Ends an invite or knock from outside, and notifies the user.
fn remove_rows(w: &mut Write<'_>, user: UserNum, num: RoomNum, leave: Option<&Leave>) -> Result<()> {
    let Some(old) = user_room::mine(w, user, num)?.filter(|mine| mine.outside) else { return Ok(()) };
    let since = w.next_position();
    let mine = Mine { membership: Membership::Leave, since, before: Some(old.membership), ..old };
    user_room::set_mine(w, user, num, &mine)?;
    user_room::set_stripped(w, user, num, leave.map(|leave| &leave.0[..]))?;
    w.announce(Change { users: vec![user], room: Some(num), push: Push::Read, ..Change::default() });
    Ok(())
}

// ---- bounds ------------------------------------------------------------------------------------------------------

/// The entries to remove before a user may have one more invite: unknown servers could otherwise send any number.
#[derive(Debug, Default, PartialEq, Eq)]
struct Surplus {
    invites: Vec<RoomNum>,
    over: Vec<RoomNum>,
}

/// One pass over the user's rooms; with many invites one more over their stripped state, one at a time. `inviting`: the
/// server of the further invite. Bounded by the rooms of one user.
fn surplus(get: &impl Get, user_id: &UserId, inviting: Option<&str>) -> Result<Surplus> {
    let Some(user) = user::num(get, user_id.as_str())? else { return Ok(Surplus::default()) };
    let (mut invites, mut over): (Vec<(Position, RoomNum)>, Vec<(Position, RoomNum)>) = Default::default();
    user_room::list_mine(get, user, None, &mut |num, mine| {
        match mine.membership {
            Membership::Invite if mine.outside => invites.push((mine.since, num)),
            Membership::Leave | Membership::Ban if mine.outside => over.push((mine.since, num)),
            _ => {}
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let mut surplus = Surplus::default();
    if let Some(inviting) = inviting
        && invites.len() >= INVITES_KNOWN_MAX.min(INVITES_STRANGERS_MAX)
    {
        surplus.invites = invites_too_many(get, user, user_id, inviting, invites)?;
    }
    over.sort_unstable();
    over.truncate(over.len().saturating_sub(OVER_MAX));
    surplus.over = over.into_iter().map(|(_, num)| num).collect();
    Ok(surplus)
}

/// The invites to remove when the share of the inviting server is full: an eighth of that share. Servers that share a
/// room with us have one share, unknown servers another.
fn invites_too_many(
    get: &impl Get,
    user: UserNum,
    user_id: &UserId,
    inviting: &str,
    invites: Vec<(Position, RoomNum)>,
) -> Result<Vec<RoomNum>> {
    let mut known: HashMap<String, bool> = HashMap::new();
    let mut is_known = |server: &str| match known.get(server) {
        Some(known) => Ok(*known),
        None => {
            let found = member::shares_room(get, server)?;
            known.insert(server.to_owned(), found);
            Ok::<_, Error>(found)
        }
    };
    let side = is_known(inviting)?;
    let held = |server: &str, age, key| {
        let [a, b, c, d, ..] = match side {
            true => get.hash128(&[server.as_bytes()]),
            false => get.hash128(&[neighbourhood(server).as_bytes()]),
        };
        Held { owner: u32::from_be_bytes([a, b, c, d]), within: 0, age, weight: 1, key }
    };
    // The new invite is counted already, and would be the last to go.
    let mut all = vec![held(inviting, u64::MAX, None)];
    for (since, num) in invites {
        let server = inviting_server(&user_room::stripped(get, user, num)?.unwrap_or_default(), user_id);
        if is_known(&server)? == side {
            all.push(held(&server, since.0, Some(num)));
        }
    }
    let most = if side { INVITES_KNOWN_MAX } else { INVITES_STRANGERS_MAX };
    let surplus = if all.len() > most { most / 8 } else { 0 };
    Ok(of_the_busiest(all, surplus as u64).into_iter().flatten().collect())
}

/// Removes an ended invite, and with the last of a room's invites the room, unless other data of it was kept on
/// purpose.
fn forget(w: &mut Write<'_>, user: UserNum, num: RoomNum) -> Result<()> {
    let is_over = |mine: &Mine| mine.outside && matches!(mine.membership, Membership::Leave | Membership::Ban);
    let mut kept = !user_room::mine(w, user, num)?.as_ref().is_some_and(is_over);
    account_data::each(w, user, num, &mut |_, _, _| {
        kept = true;
        Ok(ControlFlow::Break(()))
    })?;
    if kept {
        return Ok(());
    }
    user_room::remove_mine(w, user, num)?;
    let Some(room) = room::get(w, num)? else { return Ok(()) };
    let mut needed = room.status != Status::Stub
        || room.events > 0
        || !room::directory::aliases(w, num, 1)?.is_empty()
        || join::journals(w)?.iter().any(|(_, journal)| journal.room_id == room.id);
    member::list_local(w, num, &mut |_, _| {
        needed = true;
        Ok(ControlFlow::Break(()))
    })?;
    if !needed {
        room::remove(w, num)?;
    }
    Ok(())
}

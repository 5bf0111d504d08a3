//! Who shares rooms with whom, and telling them that somebody's devices or keys changed.
//!
//! Server-server API, "Device Management". The memberships are read from the store; nothing here changes a room.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use ruma::{OwnedRoomId, OwnedServerName, ServerName, UserId};
use serde_json::{Value, json};

use super::{Error, Users, account};
use crate::store::tables::room::event::Membership;
use crate::store::tables::room::{self, member};
use crate::store::tables::server::outbox::{self, Outbound};
use crate::store::tables::user::to_device::Circle;
use crate::store::tables::user::{self, device, e2ee_key};
use crate::store::{Change, Get, Position, RoomNum, UserNum, Write};

/// Names of servers collected for one unit; beyond that it goes to whole rooms instead. About 40 KiB.
const SERVERS_MAX: usize = 1000;

impl Users {
    /// The rooms a local user is in, is asked into, or asks to be let into. Bounded by the rooms of one user.
    pub async fn rooms_to_leave(&self, user_id: &UserId) -> Result<Vec<OwnedRoomId>, Error> {
        let user_id = user_id.to_owned();
        self.read(move |get| {
            let num = account::local(get, &user_id)?;
            let mut rooms = Vec::new();
            member::list_mine(get, num, None, &mut |room, mine| {
                if !matches!(mine.membership, Membership::Leave | Membership::Ban) {
                    rooms.push(room);
                }
                Ok(ControlFlow::Continue(()))
            })?;
            let mut ids = Vec::new();
            for room in rooms {
                ids.extend(OwnedRoomId::try_from(room::get_of(get, room)?.id).ok());
            }
            Ok(ids)
        })
        .await
    }
}

/// The rooms a local user is joined to. Bounded by what one user joins; four bytes each.
pub(super) fn rooms(get: &impl Get, user: UserNum) -> Result<Vec<RoomNum>, Error> {
    let mut rooms = Vec::new();
    member::list_mine(get, user, None, &mut |room, mine| {
        if mine.membership == Membership::Join {
            rooms.push(room);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(rooms)
}

/// The local users who share a room with a local user, and that user. Bounded by the people of this server.
pub(super) fn locals(get: &impl Get, user: UserNum) -> Result<Vec<UserNum>, Error> {
    let mut locals = BTreeSet::from([user]);
    for room in rooms(get, user)? {
        member::list_local(get, room, &mut |other, membership| {
            if membership == Membership::Join {
                locals.insert(other);
            }
            Ok(ControlFlow::Continue(()))
        })?;
    }
    Ok(locals.into_iter().collect())
}

/// The local users who share a room with a user of another server.
pub(super) fn locals_of_remote(get: &impl Get, remote: UserNum) -> Result<Vec<UserNum>, Error> {
    let mut accounts = Vec::new();
    user::accounts_after(get, None, &mut |num, _| {
        accounts.push(num);
        Ok(ControlFlow::Continue(()))
    })?;
    let mut sharing = Vec::new();
    for num in accounts {
        if shares_room(get, num, remote)? {
            sharing.push(num);
        }
    }
    Ok(sharing)
}

/// Whether a local user is joined to a room together with somebody.
pub(super) fn shares_room(get: &impl Get, user: UserNum, other: UserNum) -> Result<bool, Error> {
    let mut shares = false;
    member::list_mine(get, user, None, &mut |room, mine| {
        shares = mine.membership == Membership::Join && member::is_joined(get, room, other)?;
        Ok(if shares { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(shares)
}

/// How near a user of another server is to a local user. Bounded by the rooms of that one.
pub(super) fn of_sender(
    get: &impl Get,
    user: UserNum,
    server: &ServerName,
    sender: Option<UserNum>,
) -> Result<Circle, Error> {
    let mut circle = Circle::Stranger;
    member::list_mine(get, user, None, &mut |room, mine| {
        if mine.membership == Membership::Join && member::server(get, room, server.as_str())?.is_some() {
            let is_there = sender.map_or(Ok(false), |sender| member::is_joined(get, room, sender))?;
            circle = if is_there { Circle::Near } else { Circle::Acquainted };
        }
        Ok(if circle == Circle::Near { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(circle)
}

/// Notes that a device has new keys or a new name, and tells whoever shares a room.
pub(super) fn device_changed(
    w: &mut Write<'_>,
    server: &ServerName,
    user: UserNum,
    user_id: &UserId,
    device_id: &str,
) -> Result<(), Error> {
    let mut content = json!({ "device_id": device_id });
    if let Some(name) = device::get(w, user, device_id)?.and_then(|row| row.display_name) {
        content["device_display_name"] = name.into();
    }
    if let Some(keys) = super::device::keys::device_keys(w, user, user_id, device_id, None)? {
        content["keys"] = keys;
    }
    tell(w, server, user, user_id, "m.device_list_update", content)
}

/// Notes that a device is no more, and tells whoever shares a room.
pub(super) fn device_gone(
    w: &mut Write<'_>,
    server: &ServerName,
    user: UserNum,
    user_id: &UserId,
    device_id: &str,
) -> Result<(), Error> {
    let content = json!({ "device_id": device_id, "deleted": true });
    tell(w, server, user, user_id, "m.device_list_update", content)
}

/// Notes that a user has new cross-signing keys or signatures over them, and tells whoever shares a room.
pub(super) fn cross_keys_changed(
    w: &mut Write<'_>,
    server: &ServerName,
    user: UserNum,
    user_id: &UserId,
) -> Result<(), Error> {
    let mut content = json!({});
    for (name, purpose) in
        [("master_key", e2ee_key::Purpose::Master), ("self_signing_key", e2ee_key::Purpose::SelfSigning)]
    {
        if let Some(found) = super::device::keys::cross_key(w, user, user_id, purpose, None)? {
            content[name] = found;
        }
    }
    tell(w, server, user, user_id, "m.signing_key_update", content)
}

/// One position for the change, a unit for other servers, a wake-up for the people here.
fn tell(
    w: &mut Write<'_>,
    server: &ServerName,
    user: UserNum,
    user_id: &UserId,
    edu_type: &str,
    mut content: Value,
) -> Result<(), Error> {
    let before = device::last_change(w, user)?;
    let at = device::changed(w, user)?;
    content["user_id"] = user_id.as_str().into();
    if edu_type == "m.device_list_update" {
        content["stream_id"] = at.0.into();
        content["prev_id"] = before.map(|before| before.0).into_iter().collect();
    }
    let edu = json!({ "edu_type": edu_type, "content": content });
    let outbound = post(w, server, user, &edu)?;
    let users = locals(w, user)?;
    w.announce(Change { users, outbound, ..Change::default() });
    Ok(())
}

/// Posts a unit for every other server that shares a room with a local user. Answers whether there is one.
pub(super) fn post(w: &mut Write<'_>, server: &ServerName, user: UserNum, edu: &Value) -> Result<bool, Error> {
    let json = edu.to_string().into_bytes();
    let rooms = rooms(w, user)?;
    let mut servers = BTreeSet::new();
    for room in &rooms {
        member::list_servers(w, *room, None, &mut |name, _| {
            if name != server.as_str() {
                servers.insert(name.to_owned());
            }
            let enough = servers.len() > SERVERS_MAX;
            Ok(if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
    }
    if servers.is_empty() {
        return Ok(false);
    }
    if servers.len() <= SERVERS_MAX {
        let at = w.next_position();
        outbox::post(w, at, &Outbound::Edu { to: servers.into_iter().collect(), json })?;
        return Ok(true);
    }
    // A server in several of the rooms hears it several times, which does no harm.
    for room in rooms {
        let at = w.next_position();
        outbox::post(w, at, &Outbound::RoomEdu { room, json: json.clone() })?;
    }
    Ok(true)
}

/// Posts a unit for one other server.
pub(super) fn post_to(w: &mut Write<'_>, server: OwnedServerName, edu: Vec<u8>) -> Result<Position, Error> {
    let at = w.next_position();
    outbox::post(w, at, &Outbound::Edu { to: vec![server.to_string()], json: edu })?;
    Ok(at)
}

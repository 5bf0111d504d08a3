//! Which other servers are in a room, and which to ask about it first.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use ruma::{OwnedServerName, OwnedUserId, RoomId, ServerName, UserId};

use super::stripped::read_stripped;
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::room::state::known_num;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::user_room;
use crate::store::tables::room::{self, member};
use crate::store::tables::user;
use crate::store::{Get, Read, RoomNum};

/// Servers asked before we give up, and looked at to choose them.
const SERVERS_MAX: usize = 4;
const SERVERS_LOOKED_AT: usize = 64;

/// The servers to ask: the one that the room's history begins with as far as its name tells, then others in the room.
pub(in crate::room) fn servers(get: &Read, num: RoomNum, us: &ServerName) -> Result<Vec<OwnedServerName>> {
    let room = known_num(get, num)?;
    let mut sizes: BTreeMap<std::cmp::Reverse<u64>, BTreeSet<String>> = BTreeMap::new();
    let mut looked = 0;
    member::list_servers(get, num, None, &mut |server, joined| {
        looked += 1;
        if server != us.as_str() {
            sizes.entry(std::cmp::Reverse(joined)).or_default().insert(server.to_owned());
        }
        Ok(if looked < SERVERS_LOOKED_AT { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    let home = room.row.id.split_once(':').map(|(_, server)| server.to_owned());
    let home = home.filter(|home| sizes.values().any(|names| names.contains(home)));
    let mut names: Vec<String> = home.into_iter().chain(sizes.into_values().flatten()).collect();
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names.truncate(SERVERS_MAX);
    Ok(names.into_iter().filter_map(|name| OwnedServerName::try_from(name).ok()).collect())
}

/// The servers to tell when a local user leaves a room we are not in: the inviter's, then the room id's.
pub fn out_of_band_of(rooms: &Rooms, read: &Read, user: &UserId, room: &RoomId) -> Result<Vec<OwnedServerName>> {
    let nums = user::num(read, user.as_str())?.zip(room::num(read, room.as_str())?);
    let (user_num, room_num) = nums.ok_or(Error::NotFound)?;
    let mine = user_room::mine(read, user_num, room_num)?.ok_or(Error::NotFound)?;
    if !matches!(mine.membership, Membership::Invite | Membership::Knock) {
        return Err(Error::forbidden("the user is neither invited to the room nor knocking"));
    }
    let stripped = user_room::stripped(read, user_num, room_num)?.unwrap_or_default();
    let stripped = read_stripped(&stripped);
    let inviters = stripped.iter().filter(|event| event.kind == "m.room.member" && event.state_key == user.as_str());
    let senders = inviters.filter_map(|event| OwnedUserId::try_from(&*event.sender).ok());
    let mut servers: Vec<OwnedServerName> = senders.map(|sender| sender.server_name().to_owned()).collect();
    servers.extend(room.server_name().map(ToOwned::to_owned));
    // A version 12 room id names no server; the other users named in the state are in the room too.
    let others = stripped.iter().filter_map(|event| OwnedUserId::try_from(&*event.sender).ok());
    servers.extend(others.map(|sender| sender.server_name().to_owned()));
    let mut seen = Vec::new();
    servers.retain(|server| {
        !rooms.0.parts.remote.is_me(server) && !seen.contains(server) && {
            seen.push(server.clone());
            true
        }
    });
    servers.truncate(SERVERS_MAX);
    Ok(servers)
}

/// Servers told with an alias, at most: enough to join through when some are down.
const TOLD_MAX: usize = 50;

/// Some servers that are in a room, this one first if it is.
pub fn servers_of(rooms: &Rooms, get: &impl Get, num: RoomNum) -> Result<Vec<OwnedServerName>> {
    let mut servers = Vec::new();
    if member::server(get, num, rooms.server().as_str())?.is_some() {
        servers.push(rooms.server().to_owned());
    }
    member::list_servers(get, num, None, &mut |name, _| {
        if name != rooms.server().as_str() {
            servers.extend(OwnedServerName::try_from(name));
        }
        Ok(match servers.len() < TOLD_MAX {
            true => std::ops::ControlFlow::Continue(()),
            false => std::ops::ControlFlow::Break(()),
        })
    })?;
    Ok(servers)
}

//! Announcements of changed devices and keys to the users who share a room.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use ruma::{OwnedServerName, ServerName, UserId};
use serde_json::{Value, json};

use crate::store::tables::room::member;
use crate::store::tables::server::outbox::{self, Outbound};
use crate::store::tables::user::{device, e2ee_key};
use crate::store::{Change, Position, UserNum, Write};
use crate::user::Error;
use crate::user::sharing::{locals, rooms};

/// The most server names collected for one EDU; beyond that it is sent to whole rooms instead. About 40 KiB.
const SERVERS_MAX: usize = 1000;

/// Records a device's new keys or name, and tells the users who share a room.
pub(in crate::user) fn device_changed(
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
    if let Some(keys) = e2ee_key::shown_device_keys(w, user, user_id.as_str(), device_id, None)? {
        content["keys"] = keys;
    }
    tell(w, server, user, user_id, "m.device_list_update", content)
}

/// After the server was restored from a backup: tells everybody who shares a room that a user's devices may be others than
/// they know. The position before is not the one they have, so that other servers ask for the whole list.
pub fn restored(w: &mut Write<'_>, server: &ServerName, user: UserNum, user_id: &UserId) -> Result<(), Error> {
    match device::ids(w, user)?.first() {
        Some(device_id) => device_changed(w, server, user, user_id, device_id),
        None => Ok(()),
    }
}

/// Records a device's removal, and tells the users who share a room.
pub fn device_gone(
    w: &mut Write<'_>,
    server: &ServerName,
    user: UserNum,
    user_id: &UserId,
    device_id: &str,
) -> Result<(), Error> {
    let content = json!({ "device_id": device_id, "deleted": true });
    tell(w, server, user, user_id, "m.device_list_update", content)
}

/// Records a user's new cross-signing keys or signatures over them, and tells the users who share a room.
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
        if let Some(found) = super::key_query::cross_key(w, user, user_id, purpose, None)? {
            content[name] = found;
        }
    }
    tell(w, server, user, user_id, "m.signing_key_update", content)
}

/// Takes one position for the change, posts an EDU for other servers, and wakes the local users.
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

/// Posts an EDU for every other server that shares a room with a local user. Answers whether there is one.
pub(in crate::user) fn post(w: &mut Write<'_>, server: &ServerName, user: UserNum, edu: &Value) -> Result<bool, Error> {
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
    // A server in several of the rooms gets it several times, which does no harm.
    for room in rooms {
        let at = w.next_position();
        outbox::post(w, at, &Outbound::RoomEdu { room, json: json.clone() })?;
    }
    Ok(true)
}

/// Posts an EDU for one other server.
pub(super) fn post_to(w: &mut Write<'_>, server: OwnedServerName, edu: Vec<u8>) -> Result<Position, Error> {
    let at = w.next_position();
    outbox::post(w, at, &Outbound::Edu { to: vec![server.to_string()], json: edu })?;
    Ok(at)
}

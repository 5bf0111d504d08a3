//! Gives somebody in a room as much power as anybody of this server has there, for an administrator who looks after a room whose own
//! are gone.

use ruma::{OwnedUserId, RoomId, UserId};
use serde_json::value::RawValue;

use super::Rooms;
use super::error::{Error, Result};
use super::send::Sending;
use super::state::{self, RoomRef};
use crate::base::sort_few_by;
use crate::budget::parsed_bytes_max;
use crate::matrix::auth::{JoinRule, State as _};
use crate::matrix::json;
use crate::store::Read;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::user;

/// The level of creators, who stand above all levels.
const CREATOR_LEVEL: i64 = 100;

struct Change {
    by: OwnedUserId,
    content: String,
    /// Has to be invited to come in.
    needs_invite: bool,
}

impl Rooms {
    /// Has the most powerful user of this server in a room give the same power to another user, and invite them where they are not in
    /// it and cannot come in by themselves.
    ///
    /// `NotFound` for a room that is not known; `M_UNKNOWN` when nobody of this server is in it who may do that.
    pub async fn make_admin(&self, room_id: &RoomId, user: &UserId) -> Result<()> {
        let (id, target) = (room_id.to_owned(), user.to_owned());
        let Change { by, content, needs_invite } = self.reading(move |_, read| change(read, &id, &target)).await?;
        let paid = self.0.parts.budget.account("request_bodies").take(parsed_bytes_max(content.as_bytes())).await?;
        let content = RawValue::from_string(content).map_err(|failed| Error::bad("M_BAD_JSON", failed.to_string()))?;
        let (kind, state_key) = ("m.room.power_levels".to_owned(), Some(String::new()));
        let (redacts, sticky_ms, ts, txn, paid) = (None, None, None, None, Some(paid.into()));
        let sent =
            self.send(&by, room_id, Sending { kind, state_key, content, redacts, sticky_ms, ts, txn, paid }).await;
        match sent {
            Ok(_) => {}
            Err(Error::Reject(_) | Error::Forbidden(_)) => {
                return Err(none_here("No local admin user in room with power to update power levels."));
            }
            Err(failed) => return Err(failed),
        }
        match needs_invite {
            true => self.invite(&by, room_id, user, None).await,
            false => Ok(()),
        }
    }
}

fn none_here(why: &str) -> Error {
    Error::bad("M_UNKNOWN", why)
}

fn change(read: &Read, room_id: &RoomId, target: &UserId) -> Result<Change> {
    let room = state::known(read, room_id.as_str())?;
    if !room.is_resident() {
        return Err(none_here("Server not in room"));
    }
    let (by, level) = strongest(read, &room)?.ok_or_else(|| none_here("No local admin user in room"))?;
    let view = room.view(read);
    let levels = view.event("m.room.power_levels", "")?;
    let content = with_level(levels.as_ref().map_or("{}", |event| event.content()), target, &by, level);
    let membership = view.member(target)?.map(|(membership, _)| membership);
    let is_inside = matches!(membership, Some(Membership::Join | Membership::Invite));
    let is_public = matches!(view.join_rule(), Ok(Some(JoinRule::Public)));
    Ok(Change { by, content, needs_invite: !is_inside && !is_public })
}

/// Who of this server has the most power among those who are in the room, and the level that they can give.
fn strongest(read: &Read, room: &RoomRef) -> Result<Option<(OwnedUserId, i64)>> {
    let view = room.view(read);
    let levels = view.power_levels()?;
    let mut named: Vec<(OwnedUserId, i64)> = Vec::new();
    if room.version.creators_infinite || levels.is_none() {
        let creators = view.create()?.map(|create| create.creators.clone()).unwrap_or_default();
        named.extend(creators.into_iter().map(|creator| (creator, i64::MAX)));
    }
    for (id, level) in levels.iter().flat_map(|levels| levels.users()) {
        named.extend(OwnedUserId::try_from(id).ok().map(|id| (id, level)));
    }
    sort_few_by(&mut named, |(_, level)| std::cmp::Reverse(*level));
    for (id, level) in named {
        let Some(num) = user::num(read, id.as_str())? else { continue };
        let is_here = user::is_local(read, num)?;
        if is_here && matches!(view.member(&id)?, Some((Membership::Join, _))) {
            return Ok(Some((id, if level == i64::MAX { CREATOR_LEVEL } else { level })));
        }
    }
    Ok(None)
}

/// The power levels with one more of a user: everything else as it was written. Where there were none, whoever made the room keeps
/// what they had.
fn with_level(content: &str, user: &UserId, by: &UserId, level: i64) -> String {
    let users = json::read::get(content.as_bytes(), "users").filter(|users| users.first() == Some(&b'{'));
    let mut out = b"{\"users\":{".to_vec();
    json::write_string(&mut out, user.as_str());
    out.extend_from_slice(format!(":{level}").as_bytes());
    if content == "{}" && by != user {
        out.push(b',');
        json::write_string(&mut out, by.as_str());
        out.extend_from_slice(format!(":{level}").as_bytes());
    }
    let others = json::read::members(users.unwrap_or(b"{}")).filter(|(id, _)| *id != user.as_bytes());
    others.for_each(|member| write_member(&mut out, member));
    out.push(b'}');
    let rest = json::read::members(content.as_bytes()).filter(|(key, _)| *key != b"users");
    rest.for_each(|member| write_member(&mut out, member));
    out.push(b'}');
    String::from_utf8(out).unwrap_or_default()
}

fn write_member(out: &mut Vec<u8>, (key, value): (&[u8], &[u8])) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(key);
    out.extend_from_slice(b"\":");
    out.extend_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_added_and_the_rest_stays() {
        let (anna, ben) = (ruma::user_id!("@anna:x"), ruma::user_id!("@ben:x"));
        for (before, after) in [
            (r#"{}"#, r#"{"users":{"@ben:x":100,"@anna:x":100}}"#),
            (
                r#"{"ban":50,"users":{"@anna:x":100,"@ben:x":0},"x":{"users":1}}"#,
                r#"{"users":{"@ben:x":100,"@anna:x":100},"ban":50,"x":{"users":1}}"#,
            ),
        ] {
            assert_eq!(with_level(before, ben, anna, 100), after);
        }
    }
}

//! Aliases of this server.

use ruma::{OwnedRoomId, OwnedServerName, RoomAliasId, RoomId, UserId};
use serde_json::Value;

use crate::base;
use crate::remote::service::Asked;
use crate::room::Rooms;
use crate::room::blocked;
use crate::room::error::{Error, Result};
use crate::room::policies::Act;
use crate::room::send;
use crate::room::send::New;
use crate::room::state::known_to_member;
use crate::room::state::servers;
use crate::store::tables::room::{self, member};
use crate::store::tables::user;
use crate::store::{Get, RoomNum};

/// The most aliases listed for one room, and made for one.
const ALIASES_MAX: usize = 100;
const CANONICAL_ALIAS: &str = "m.room.canonical_alias";

/// The target of an alias.
#[derive(Debug, Clone)]
pub struct Resolved {
    pub room_id: OwnedRoomId,
    /// Servers that are in the room, this one first if it is among them.
    pub servers: Vec<OwnedServerName>,
}

impl Rooms {
    /// Points a new alias of this server at a room the user is in.
    pub async fn set_alias(&self, user: &UserId, alias: &RoomAliasId, room_id: &RoomId) -> Result<()> {
        check_ours(self, alias)?;
        self.check_policy(Act::PublishAliases, user).await?;
        let (user_id, alias, room_id) = (user.to_owned(), alias.to_owned(), room_id.to_owned());
        self.write(move |w| {
            let room = known_to_member(w, &room_id)?;
            blocked::check(w, room_id.as_str())?;
            let Some(user) = user::num(w, user_id.as_str())? else { return Err(crate::room::state::not_in_room()) };
            if !member::is_joined(w, room.num, user)? {
                return Err(crate::room::state::not_in_room());
            }
            if room::directory::alias(w, alias.as_str())?.is_some() {
                return Err(Error::Taken);
            }
            if room::directory::aliases(w, room.num, ALIASES_MAX)?.len() == ALIASES_MAX {
                return Err(Error::forbidden("the room has too many aliases"));
            }
            Ok(room::directory::put_alias(w, alias.as_str(), room.num, user)?)
        })
        .await
    }

    /// Removes an alias. Allowed to its creator and to users who may set the room's canonical alias; with `is_admin`
    /// always.
    pub async fn remove_alias(&self, user: &UserId, alias: &RoomAliasId, is_admin: bool) -> Result<()> {
        check_ours(self, alias)?;
        let (by, gone) = (user.to_owned(), alias.to_owned());
        let room = self.write(move |w| {
            let (user, alias) = (by, gone);
            let (room, creator) = room::directory::alias(w, alias.as_str())?.ok_or(Error::NotFound)?;
            let own = user::num(w, user.as_str())? == Some(creator);
            if !is_admin && !own && !may_list(w, room, &user)? {
                return Err(Error::forbidden("the alias was created by another user"));
            }
            room::directory::remove_alias(w, alias.as_str())?;
            Ok(room)
        });
        let room = room.await?;
        if let Err(failed) = unlist(self, room, user, alias).await {
            // The alias is gone all the same; the room names it until a user with the power to do so changes that.
            tracing::debug!(%alias, %failed, "m.room.canonical_alias still contains an alias that was removed");
        }
        Ok(())
    }

    /// The room an alias of this server leads to. An application service in whose namespace it is, is asked to make a room that is
    /// not there.
    pub async fn resolve_here(&self, alias: &RoomAliasId) -> Result<Resolved> {
        check_ours(self, alias).map_err(|_| Error::NotFound)?;
        match self.resolve_known(alias).await {
            Err(Error::NotFound) => match self.0.parts.remote.app_services().make_room(alias).await {
                Asked::Made => self.resolve_known(alias).await,
                Asked::Nothing => Err(Error::NotFound),
            },
            resolved => resolved,
        }
    }

    async fn resolve_known(&self, alias: &RoomAliasId) -> Result<Resolved> {
        let alias = alias.to_owned();
        self.reading(move |rooms, read| {
            let (num, _) = room::directory::alias(read, alias.as_str())?.ok_or(Error::NotFound)?;
            let row = room::get_of(read, num)?;
            let room_id = OwnedRoomId::try_from(row.id).map_err(|_| Error::NotFound)?;
            Ok(Resolved { room_id, servers: servers::servers_of(rooms, read, num)? })
        })
        .await
    }

    /// The aliases of this server that lead to a room, for a user who may know them.
    pub async fn aliases(&self, user: Option<&UserId>, room_id: &RoomId) -> Result<Vec<String>> {
        let (user, room_id) = (user.map(ToOwned::to_owned), room_id.to_owned());
        self.reading(move |_, read| {
            let room = known_to_member(read, &room_id)?;
            let view = room.view(read);
            let joined = match &user {
                Some(user) => {
                    view.member(user)?.is_some_and(|(membership, _)| membership == crate::room::Membership::Join)
                }
                None => true,
            };
            let open =
                view.text("m.room.history_visibility", "history_visibility")?.as_deref() == Some("world_readable");
            match joined || open {
                true => Ok(room::directory::aliases(read, room.num, ALIASES_MAX)?),
                false => Err(crate::room::state::not_in_room()),
            }
        })
        .await
    }
}

/// Removes a deleted alias from the room's canonical alias event, when the user may.
async fn unlist(rooms: &Rooms, num: RoomNum, user: &UserId, alias: &RoomAliasId) -> Result<()> {
    let (asked, gone) = (user.to_owned(), alias.to_owned());
    let left = rooms.reading(move |_, read| {
        let room = crate::room::state::known_num(read, num)?;
        if !may_list(read, num, &asked)? {
            return Ok(None);
        }
        let content = crate::room::state::event::content(read, &room, CANONICAL_ALIAS)?;
        Ok(content.and_then(|content| without(content, gone.as_str())).map(|content| (room.row.id, content)))
    });
    let Some((room_id, content)) = left.await? else { return Ok(()) };
    let room_id = OwnedRoomId::try_from(room_id).map_err(|_| Error::NotFound)?;
    let (rooms, new) = (rooms.clone(), New::state(CANONICAL_ALIAS, "", user, content));
    base::unbroken(async move { send::send_new(&rooms, &room_id, new, None).await }).await.map(drop)
}

fn check_ours(rooms: &Rooms, alias: &RoomAliasId) -> Result<()> {
    match alias.server_name() == rooms.server() {
        true => Ok(()),
        false => Err(Error::bad("M_INVALID_PARAM", "the alias belongs to another server")),
    }
}

/// The content of a canonical alias event without one of its aliases; none when it does not contain that alias.
fn without(mut content: Value, gone: &str) -> Option<Value> {
    let object = content.as_object_mut()?;
    let mut named = false;
    if object.get("alias").and_then(Value::as_str) == Some(gone) {
        object.remove("alias");
        named = true;
    }
    if let Some(others) = object.get_mut("alt_aliases").and_then(Value::as_array_mut) {
        let before = others.len();
        others.retain(|other| other.as_str() != Some(gone));
        named |= others.len() < before;
    }
    named.then_some(content)
}

/// Whether a user may set the aliases and the listing of a room: requires the power to set its canonical alias.
pub(in crate::room) fn may_list(get: &impl Get, num: RoomNum, user: &UserId) -> Result<bool> {
    let room = match crate::room::state::known_num(get, num) {
        Ok(room) => room,
        Err(Error::NotFound) => return Ok(false),
        Err(failed) => return Err(failed),
    };
    let view = room.view(get);
    let joined = view.member(user)?.is_some_and(|(membership, _)| membership == crate::room::Membership::Join);
    let enough = view.with_powers(|powers| powers.user(user) >= powers.event(CANONICAL_ALIAS, true))?;
    Ok(joined && enough == Some(true))
}

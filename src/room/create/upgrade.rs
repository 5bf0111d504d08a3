//! Moving a room to another version (client-server API, "Room Upgrades").
//!
//! The new room is made whole first, then the old one is closed with a tombstone that leads to it. A power cut in
//! between leaves a new room that no user was told of, and the upgrade can be asked for again.

use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::{Map, Value, json};

use crate::base;
use crate::matrix::auth::{Named, State as _};
use crate::matrix::{RoomVersion, version};
use crate::room::error::{Error, Result};
use crate::room::send;
use crate::room::send::New;
use crate::room::state::RoomRef;
use crate::room::state::event::content;
use crate::room::state::event::id_of;
use crate::room::state::{known_to_member, not_in_room};
use crate::room::{Create, Membership, Rooms, StateDraft};
use crate::store::Read;
use crate::store::tables::room::{self, member};
use crate::store::tables::user;

/// State copied to the new room, all with an empty key. Power levels, the create event and the alias are handled apart.
const CARRIED: [&str; 9] = [
    "m.room.server_acl",
    "m.room.encryption",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.guest_access",
    "m.room.history_visibility",
    "m.room.join_rules",
    "m.room.pinned_events",
];
/// The most bans copied: each is an event.
const BANS_MAX: usize = 200;
const ALIASES_MAX: usize = 100;

/// The old room, as far as the new one needs it.
struct Old {
    create: Create,
    /// The new room's final power levels; none when it has them from the start.
    levels: Option<Value>,
    canonical_alias: Option<Value>,
    public: bool,
    bans: Vec<(OwnedUserId, Option<String>)>,
    /// The old room's power levels, changed so that only moderators may speak.
    closed: Value,
}

impl Rooms {
    /// Replaces a room by one of another version. The user must be allowed to close the old room.
    pub async fn upgrade(
        &self,
        user: &UserId,
        room_id: &RoomId,
        new_version: &str,
        additional_creators: Vec<OwnedUserId>,
    ) -> Result<OwnedRoomId> {
        let version = version::get_offered(new_version).ok_or_else(|| {
            Error::bad(
                "M_UNSUPPORTED_ROOM_VERSION",
                format!("this server does not create rooms of version {new_version}"),
            )
        })?;
        let (rooms, user, room_id) = (self.clone(), user.to_owned(), room_id.to_owned());
        base::unbroken(async move { move_room(&rooms, &user, &room_id, version, additional_creators).await }).await
    }
}

async fn move_room(
    rooms: &Rooms,
    user: &UserId,
    room_id: &RoomId,
    version: &'static RoomVersion,
    creators: Vec<OwnedUserId>,
) -> Result<OwnedRoomId> {
    let (asked, from) = (user.to_owned(), room_id.to_owned());
    let old = rooms.reading(move |_, read| old_room(read, &from, &asked, version, creators)).await?;
    let new = rooms.create(user, old.create).await?;
    let content = json!({ "body": "The room has been upgraded already", "replacement_room": new });
    send::send_new(rooms, room_id, New::state("m.room.tombstone", "", user, content), None).await?;
    move_names(rooms, user, room_id, &new).await?;
    // From here on an error no longer fails the upgrade: the rooms lead to each other.
    let mut rest = Vec::new();
    if let Some(alias) = old.canonical_alias {
        rest.push((room_id, New::state("m.room.canonical_alias", "", user, json!({}))));
        rest.push((&*new, New::state("m.room.canonical_alias", "", user, alias)));
    }
    for (target, reason) in old.bans {
        let mut content = json!({ "membership": "ban" });
        if let Some(reason) = reason {
            content["reason"] = reason.into();
        }
        rest.push((&*new, New::state("m.room.member", target.as_str(), user, content)));
    }
    rest.extend(old.levels.map(|levels| (&*new, New::state("m.room.power_levels", "", user, levels))));
    rest.push((room_id, New::state("m.room.power_levels", "", user, old.closed)));
    for (room, event) in rest {
        let kind = event.kind.clone();
        if let Err(failed) = send::send_new(rooms, room, event, None).await {
            tracing::info!(%room, kind, error = %failed, "a part of the room could not be copied to the upgraded room");
        }
    }
    if old.public {
        rooms.set_public(user, &new, true, true).await?;
        rooms.set_public(user, room_id, false, true).await?;
    }
    Ok(new)
}

impl Rooms {
    /// The room that replaces a room, as its tombstone says.
    pub async fn replacement(&self, room_id: &RoomId) -> Result<Option<OwnedRoomId>> {
        let room_id = room_id.to_owned();
        self.reading(move |_, read| {
            let tombstone = content(read, &known_to_member(read, &room_id)?, "m.room.tombstone")?.unwrap_or_default();
            Ok(tombstone["replacement_room"].as_str().and_then(|id| OwnedRoomId::try_from(id).ok()))
        })
        .await
    }

    /// The room that a room replaces: it is known here, and says that it was replaced by this one.
    pub async fn predecessor(&self, room_id: &RoomId) -> Result<Option<OwnedRoomId>> {
        let room_id = room_id.to_owned();
        self.reading(move |_, read| {
            let room = known_to_member(read, &room_id)?;
            let create = content(read, &room, "m.room.create")?.unwrap_or_default();
            let old = create["predecessor"]["room_id"].as_str().and_then(|id| OwnedRoomId::try_from(id).ok());
            let Some(old) = old else { return Ok(None) };
            let Ok(closed) = known_to_member(read, &old) else { return Ok(None) };
            let tombstone = content(read, &closed, "m.room.tombstone")?.unwrap_or_default();
            Ok((tombstone["replacement_room"] == room_id.as_str()).then_some(old))
        })
        .await
    }
}

/// Points the aliases of this server to the new room.
async fn move_names(rooms: &Rooms, user: &UserId, from: &RoomId, to: &RoomId) -> Result<()> {
    let (user, from, to) = (user.to_owned(), from.to_owned(), to.to_owned());
    rooms
        .write(move |w| {
            let (Some(from), Some(to)) = (room::num(w, from.as_str())?, room::num(w, to.as_str())?) else {
                return Err(Error::NotFound);
            };
            let user = user::num(w, user.as_str())?.ok_or_else(not_in_room)?;
            for alias in room::directory::aliases(w, from, ALIASES_MAX)? {
                let creator = room::directory::alias(w, &alias)?.map_or(user, |(_, creator)| creator);
                room::directory::remove_alias(w, &alias)?;
                room::directory::put_alias(w, &alias, to, creator)?;
            }
            Ok(())
        })
        .await
}

fn old_room(
    read: &Read,
    room_id: &RoomId,
    user: &UserId,
    version: &'static RoomVersion,
    creators: Vec<OwnedUserId>,
) -> Result<Old> {
    let room = known_to_member(read, room_id)?;
    let view = room.view(read);
    let joined = view.member(user)?.is_some_and(|(membership, _)| membership == Membership::Join);
    if !joined {
        return Err(not_in_room());
    }
    let may = view.with_powers(|powers| powers.user(user) >= powers.event("m.room.tombstone", true))?;
    if may != Some(true) {
        return Err(Error::forbidden("the user may not send m.room.tombstone in the room"));
    }
    let levels = content(read, &room, "m.room.power_levels")?.unwrap_or_else(|| json!({}));
    let wanted = levels_for(read, &room, levels.clone(), version, user, &creators)?;
    let (first, later) = first_levels(wanted, version, user);
    let mut initial_state = vec![draft("m.room.power_levels", first)];
    for kind in CARRIED {
        initial_state.extend(content(read, &room, kind)?.map(|content| draft(kind, content)));
    }
    let mut creation_content = match content(read, &room, "m.room.create")? {
        Some(Value::Object(content)) => content,
        _ => Map::new(),
    };
    for ours in ["creator", "room_version", "additional_creators", "predecessor"] {
        creation_content.remove(ours);
    }
    let mut predecessor = json!({ "room_id": room_id });
    // In such a version the new room's id is that of its create event, which would have to exist before this tombstone.
    if let Some(last) = room.row.extremities.last().filter(|_| !version.creators_infinite) {
        predecessor["event_id"] = id_of(read, *last)?.as_str().into();
    }
    creation_content.insert("predecessor".into(), predecessor);
    if version.creators_infinite && !creators.is_empty() {
        creation_content.insert("additional_creators".into(), json!(creators));
    }
    let create =
        Create { room_version: Some(version.id.to_owned()), initial_state, creation_content, ..Create::default() };
    Ok(Old {
        create,
        levels: later,
        canonical_alias: content(read, &room, "m.room.canonical_alias")?
            .filter(|content| content.get("alias").and_then(Value::as_str).is_some_and(|alias| !alias.is_empty())),
        public: room.row.public,
        bans: bans(read, &room)?,
        closed: closed(levels),
    })
}

fn draft(kind: &str, content: Value) -> StateDraft {
    StateDraft { kind: kind.to_owned(), state_key: String::new(), content }
}

/// The old room's power levels in a form the new version accepts: creators above all levels are not named. Where no
/// creator is above all levels any more, those who were get the highest usual level; else no level is made up.
fn levels_for(
    read: &Read,
    room: &RoomRef,
    mut levels: Value,
    version: &RoomVersion,
    user: &UserId,
    creators: &[OwnedUserId],
) -> Result<Value> {
    if !levels.is_object() {
        levels = json!({});
    }
    if !levels["users"].is_object() {
        levels["users"] = json!({});
    }
    let old_creators = room.view(read).create()?.map(|create| create.creators.clone()).unwrap_or_default();
    let Some(users) = levels["users"].as_object_mut() else { return Ok(levels) };
    if version.creators_infinite {
        users.remove(user.as_str());
        creators.iter().for_each(|creator| drop(users.remove(creator.as_str())));
    }
    if room.version.creators_infinite && !version.creators_infinite {
        users.extend(old_creators.iter().map(|creator| (creator.to_string(), 100.into())));
    }
    Ok(levels)
}

/// The upgrading user needs power to set the new room up; power that user lacked before is given back at the end.
fn first_levels(levels: Value, version: &RoomVersion, user: &UserId) -> (Value, Option<Value>) {
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    let own = levels["users"].get(user.as_str()).or(levels.get("users_default")).map_or(0, number);
    let needed = levels.get("events").and_then(Value::as_object);
    let needed = needed.into_iter().flat_map(|events| events.values().map(number)).max().unwrap_or(0).max(100);
    if version.creators_infinite || own >= needed {
        return (levels, None);
    }
    let mut first = levels.clone();
    first["users"][user.as_str()] = needed.into();
    (first, Some(levels))
}

/// From now on only moderators may speak and invite.
fn closed(mut levels: Value) -> Value {
    if !levels.is_object() {
        levels = json!({});
    }
    let level =
        |levels: &Value, named: Named| levels.get(named.key()).and_then(Value::as_i64).unwrap_or(named.default());
    let quiet = (level(&levels, Named::UsersDefault) + 1).max(50);
    for named in [Named::EventsDefault, Named::Invite] {
        levels[named.key()] = level(&levels, named).max(quiet).into();
    }
    levels
}

fn bans(read: &Read, room: &RoomRef) -> Result<Vec<(OwnedUserId, Option<String>)>> {
    let mut banned = Vec::new();
    member::list(read, room.num, Membership::Ban, None, &mut |user, event| {
        banned.push((user, event));
        Ok(match banned.len() < BANS_MAX {
            true => std::ops::ControlFlow::Continue(()),
            false => std::ops::ControlFlow::Break(()),
        })
    })?;
    let mut out = Vec::with_capacity(banned.len());
    for (num, event) in banned {
        let Ok(id) = OwnedUserId::try_from(user::id_of(read, num)?) else { continue };
        let event = crate::room::state::event::load(read, room.version, event)?;
        out.push((id, event.content_text("reason").map(|reason| reason.into_owned())));
    }
    Ok(out)
}

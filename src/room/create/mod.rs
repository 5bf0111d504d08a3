//! New rooms (client-server API, "Creation").
//!
//! The whole chain of first events is made and judged in memory, then appended in one write: a room exists with all it
//! was asked to have, or not at all. People of other servers are asked in afterwards, one by one.

use std::sync::Arc;

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::{Map, Value, json};

use super::Rooms;
use super::append;
use super::append::new_event::Append;
use super::error::{Error, Result};
use super::send::checks::check_levels;
use super::send::member::{content_of, with_profile};
use crate::matrix::auth::{self, Lookup};
use crate::matrix::{Draft, Event, Reject, RoomVersion, id, version};
use crate::store::Read;
use crate::store::tables::room::event::Membership;
use crate::store::tables::{room, user};

pub mod upgrade;

/// People asked in with the creation, at most: each is an event of the one write.
const INVITES_MAX: usize = 100;
/// State set with the creation, at most.
const STATE_MAX: usize = 200;
/// Two rooms of version 12 with the same creator, content and time would be one; then the next millisecond is tried.
const TRIES_MAX: u64 = 5;

/// What a new room is to be.
#[derive(Debug, Clone, Default)]
pub struct Create {
    /// In the public list of this server.
    pub public: bool,
    /// By default, what fits `public`.
    pub preset: Option<Preset>,
    /// By default [`version::DEFAULT`].
    pub room_version: Option<String>,
    /// The local part of an alias of this server.
    pub room_alias_name: Option<String>,
    pub name: Option<String>,
    pub topic: Option<String>,
    pub invite: Vec<OwnedUserId>,
    pub creation_content: Map<String, Value>,
    pub initial_state: Vec<StateDraft>,
    pub power_level_content_override: Map<String, Value>,
    pub is_direct: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    Private,
    /// Everybody invited may do what the creator may.
    TrustedPrivate,
    Public,
}

impl Preset {
    pub fn of(name: &str) -> Option<Preset> {
        match name {
            "private_chat" => Some(Preset::Private),
            "trusted_private_chat" => Some(Preset::TrustedPrivate),
            "public_chat" => Some(Preset::Public),
            _ => None,
        }
    }
}

/// A state event to be.
#[derive(Debug, Clone)]
pub struct StateDraft {
    pub kind: String,
    pub state_key: String,
    pub content: Value,
}

impl StateDraft {
    fn new(kind: &str, content: Value) -> StateDraft {
        StateDraft { kind: kind.to_owned(), state_key: String::new(), content }
    }
}

impl Rooms {
    pub async fn create(&self, creator: &UserId, create: Create) -> Result<OwnedRoomId> {
        let (rooms, user) = (self.clone(), creator.to_owned());
        let away: Vec<_> = create.invite.iter().filter(|user| user.server_name() != self.server()).cloned().collect();
        let direct = create.is_direct;
        self.unbroken(async move {
            let room_id = rooms.create_here(&user, create).await?;
            for target in away {
                // The room stands; somebody who cannot be reached can be asked again from within it.
                if let Err(failed) = rooms.invite_new(&user, &room_id, &target, direct).await {
                    tracing::info!(%target, %room_id, error = %failed, "could not invite into a new room");
                }
            }
            Ok(room_id)
        })
        .await
    }

    async fn invite_new(&self, creator: &UserId, room_id: &RoomId, target: &UserId, direct: bool) -> Result<()> {
        self.invite_with(creator, room_id, target, invite_content(direct)).await.map(drop)
    }

    async fn create_here(&self, creator: &UserId, create: Create) -> Result<OwnedRoomId> {
        let plan = Plan::new(self, creator, create)?;
        for later_ms in 0..TRIES_MAX {
            let again = plan.clone();
            let events = self.reading(move |rooms, read| again.build(rooms, read, later_ms)).await?;
            let (here, creator) = (self.here(), creator.to_owned());
            let (alias, public, version) = (plan.alias.clone(), plan.create.public, plan.version);
            let room_id = events[0].room_id().to_owned();
            let id = room_id.clone();
            let made = self
                .write(move |w| {
                    if room::num(w, id.as_str())?.is_some() {
                        return Ok(false);
                    }
                    if let Some(alias) = &alias
                        && room::alias(w, alias)?.is_some()
                    {
                        return Err(Error::Taken);
                    }
                    let num = room::intern(w, id.as_str(), version.id)?;
                    if let Some(alias) = &alias {
                        let creator = user::intern(w, creator.as_str())?;
                        room::put_alias(w, alias, num, creator)?;
                    }
                    for event in events {
                        append::append(w, &here, Append { outbound: true, ..Append::next(num, event) })?;
                    }
                    if public {
                        let mut row = room::get_of(w, num)?;
                        row.public = true;
                        room::set_public(w, num, None, Some(row.joined))?;
                        room::put(w, num, &row)?;
                    }
                    Ok(true)
                })
                .await?;
            if made {
                return Ok(room_id);
            }
        }
        Err(Error::Taken)
    }
}

/// What was asked for, checked.
#[derive(Clone)]
struct Plan {
    version: &'static RoomVersion,
    creator: OwnedUserId,
    preset: Preset,
    alias: Option<String>,
    create: Create,
}

impl Plan {
    fn new(rooms: &Rooms, creator: &UserId, mut create: Create) -> Result<Plan> {
        let wanted = create.room_version.as_deref().unwrap_or(version::DEFAULT);
        let version = version::get_offered(wanted).ok_or_else(|| {
            Error::bad("M_UNSUPPORTED_ROOM_VERSION", format!("rooms of version {wanted} are not made here"))
        })?;
        if create.invite.len() > INVITES_MAX || create.initial_state.len() > STATE_MAX {
            return Err(Error::bad(
                "M_INVALID_PARAM",
                "too many invites or too much state at once; send the rest later",
            ));
        }
        let mut seen = std::collections::HashSet::new();
        create.invite.retain(|user| *user != creator && seen.insert(user.clone()));
        let alias = match &create.room_alias_name {
            Some(name) => {
                let alias = id::new_alias(name, rooms.server());
                Some(alias.map_err(|reject| Error::bad("M_INVALID_PARAM", reject.to_string()))?.to_string())
            }
            None => None,
        };
        let preset = create.preset.unwrap_or(if create.public { Preset::Public } else { Preset::Private });
        Ok(Plan { version, creator: creator.to_owned(), preset, alias, create })
    }

    /// All first events, in their order. `later_ms` is added to the time.
    fn build(self, rooms: &Rooms, read: &Read, later_ms: u64) -> Result<Vec<Event>> {
        let mut chain = Chain::new(rooms, self.version, self.creator.clone(), later_ms);
        chain.add(&StateDraft::new("m.room.create", self.create_content()))?;
        let join = with_profile(read, &self.creator, content_of(Membership::Join, None))?;
        chain.add_member(&self.creator, join)?;
        let levels = match self.given("m.room.power_levels") {
            Some(given) => given.content.clone(),
            None => self.power_levels(),
        };
        if self.version.creators_infinite {
            let others = self.create.creation_content.get("additional_creators").and_then(Value::as_array);
            let others = others.into_iter().flatten().filter_map(Value::as_str);
            check_levels(&levels, others.chain([self.creator.as_str()]))?;
        }
        chain.add(&StateDraft::new("m.room.power_levels", levels))?;
        if let Some(alias) = &self.alias
            && self.given("m.room.canonical_alias").is_none()
        {
            chain.add(&StateDraft::new("m.room.canonical_alias", json!({ "alias": alias })))?;
        }
        for draft in self.preset_state() {
            if self.given(&draft.kind).is_none() {
                chain.add(&draft)?;
            }
        }
        for draft in &self.create.initial_state {
            let done =
                matches!(draft.kind.as_str(), "m.room.create" | "m.room.power_levels") && draft.state_key.is_empty();
            if draft.kind == "m.room.member" {
                return Err(Error::bad("M_INVALID_ROOM_STATE", "memberships cannot be initial state; invite people"));
            }
            if !done {
                chain.add(draft)?;
            }
        }
        if let Some(name) = &self.create.name {
            chain.add(&StateDraft::new("m.room.name", json!({ "name": name })))?;
        }
        if let Some(topic) = &self.create.topic {
            let content = json!({ "topic": topic, "m.topic": { "m.text": [{ "body": topic }] } });
            chain.add(&StateDraft::new("m.room.topic", content))?;
        }
        for target in self.create.invite.iter().filter(|user| user.server_name() == rooms.server()) {
            let content = with_profile(read, target, invite_content(self.create.is_direct))?;
            chain.add_member(target, content)?;
        }
        Ok(chain.events)
    }

    /// What the app gave for a state event with an empty key that we would make ourselves.
    fn given(&self, kind: &str) -> Option<&StateDraft> {
        self.create.initial_state.iter().find(|draft| draft.kind == kind && draft.state_key.is_empty())
    }

    fn create_content(&self) -> Value {
        let mut content = self.create.creation_content.clone();
        content.remove("creator");
        if !self.version.creator_is_sender {
            content.insert("creator".into(), self.creator.as_str().into());
        }
        if self.version.creators_infinite && self.preset == Preset::TrustedPrivate {
            let mut more: Vec<Value> = match content.remove("additional_creators") {
                Some(Value::Array(given)) => given,
                _ => Vec::new(),
            };
            for user in &self.create.invite {
                if !more.iter().any(|given| given == user.as_str()) {
                    more.push(user.as_str().into());
                }
            }
            if !more.is_empty() {
                content.insert("additional_creators".into(), more.into());
            }
        }
        content.insert("room_version".into(), self.version.id.into());
        Value::Object(content)
    }

    /// The usual levels, with what the app wants otherwise in their place.
    fn power_levels(&self) -> Value {
        let mut users = Map::new();
        // Creators of a version 12 room stand above all levels and may not be named among them.
        if !self.version.creators_infinite {
            users.insert(self.creator.to_string(), 100.into());
            if self.preset == Preset::TrustedPrivate {
                users.extend(self.create.invite.iter().map(|user| (user.to_string(), 100.into())));
            }
        }
        let replaces_rooms = if self.version.creators_infinite { 150 } else { 100 };
        let levels = json!({
            "users": users,
            "users_default": 0,
            "events": {
                "m.room.name": 50,
                "m.room.avatar": 50,
                "m.room.canonical_alias": 50,
                "m.room.power_levels": 100,
                "m.room.history_visibility": 100,
                "m.room.encryption": 100,
                "m.room.server_acl": 100,
                "m.room.tombstone": replaces_rooms,
            },
            "events_default": 0,
            "state_default": 50,
            "ban": 50,
            "kick": 50,
            "redact": 50,
            "invite": if self.preset == Preset::Public { 50 } else { 0 },
            "historical": 100,
        });
        let Value::Object(mut levels) = levels else { return levels };
        for (key, value) in &self.create.power_level_content_override {
            levels.insert(key.clone(), value.clone());
        }
        Value::Object(levels)
    }

    fn preset_state(&self) -> Vec<StateDraft> {
        let (join_rule, guests) = match self.preset {
            Preset::Private | Preset::TrustedPrivate => ("invite", "can_join"),
            Preset::Public => ("public", "forbidden"),
        };
        vec![
            StateDraft::new("m.room.join_rules", json!({ "join_rule": join_rule })),
            StateDraft::new("m.room.history_visibility", json!({ "history_visibility": "shared" })),
            StateDraft::new("m.room.guest_access", json!({ "guest_access": guests })),
        ]
    }
}

fn invite_content(direct: bool) -> Map<String, Value> {
    let mut content = content_of(Membership::Invite, None);
    if direct {
        content.insert("is_direct".into(), true.into());
    }
    content
}

/// The first events of a room, each following the one before and judged by what they have built up so far.
struct Chain<'r> {
    rooms: &'r Rooms,
    version: &'static RoomVersion,
    creator: OwnedUserId,
    room_id: Option<OwnedRoomId>,
    ts: u64,
    events: Vec<Event>,
    /// The newest of each state, as places in `events`. Bounded as they are.
    state: Vec<usize>,
}

impl<'r> Chain<'r> {
    fn new(rooms: &'r Rooms, version: &'static RoomVersion, creator: OwnedUserId, later_ms: u64) -> Chain<'r> {
        let parts = &rooms.0.parts;
        let room_id = (!version.room_id_is_create_hash())
            .then(|| format!("!{}:{}", parts.random.token(18), parts.server))
            .and_then(|id| OwnedRoomId::try_from(id).ok());
        let ts = parts.clock.now_ms() + later_ms;
        Chain { rooms, version, creator, room_id, ts, events: Vec::new(), state: Vec::new() }
    }

    fn add_member(&mut self, target: &UserId, content: Map<String, Value>) -> Result<()> {
        let (kind, state_key) = ("m.room.member".to_owned(), target.to_string());
        self.add(&StateDraft { kind, state_key, content: Value::Object(content) })
    }

    fn find(&self, kind: &str, state_key: &str) -> Option<usize> {
        self.state.iter().copied().find(|at| self.events[*at].is(kind, state_key))
    }

    fn add(&mut self, draft: &StateDraft) -> Result<()> {
        let wrong = |reject: Reject| Error::bad("M_INVALID_ROOM_STATE", format!("{}: {reject}", draft.kind));
        let content = draft.content.to_string();
        if !draft.content.is_object() {
            return Err(Error::bad("M_BAD_JSON", format!("the content of {} is no object", draft.kind)));
        }
        let cited =
            auth::auth_types_for_event(self.version, &draft.kind, &self.creator, Some(&draft.state_key), &content)
                .map_err(wrong)?;
        let cited: Vec<usize> = cited.iter().filter_map(|(kind, key)| self.find(kind, key)).collect();
        let previous: Vec<usize> = self.events.len().checked_sub(1).into_iter().collect();
        let id_of = |at: &usize| self.events[*at].id().to_owned();
        let mut reference_hashes: Vec<(OwnedEventId, [u8; 32])> = Vec::new();
        if self.version.event_id_in_event() {
            let all = cited.iter().chain(&previous);
            reference_hashes.extend(all.map(|at| (id_of(at), self.events[*at].reference_hash())));
        }
        let parts = &self.rooms.0.parts;
        let event = Draft {
            kind: draft.kind.clone(),
            state_key: Some(draft.state_key.clone()),
            sender: self.creator.clone(),
            room_id: self.room_id.clone(),
            content: draft.content.clone(),
            prev_events: previous.iter().map(id_of).collect(),
            auth_events: cited.iter().map(id_of).collect(),
            depth: self.events.len() as u64 + 1,
            origin_server_ts: self.ts,
            redacts: None,
            opaque_id: parts.random.token(18),
            reference_hashes,
        };
        let event = event.build(self.version, &parts.server, &parts.key).map_err(|reject| match reject.kind {
            crate::matrix::Kind::TooLarge => Error::TooLarge,
            _ => wrong(reject),
        })?;
        self.check(&event).map_err(wrong)?;
        self.room_id.get_or_insert_with(|| event.room_id().to_owned());
        let at = self.events.len();
        match self.state.iter().position(|old| self.events[*old].is(&draft.kind, &draft.state_key)) {
            Some(old) => self.state[old] = at,
            None => self.state.push(at),
        }
        self.events.push(event);
        Ok(())
    }

    fn check(&self, event: &Event) -> std::result::Result<(), Reject> {
        let state = Lookup::new(self.version, |kind: &str, key: &str| {
            Ok::<_, Reject>(self.find(kind, key).map(|at| Arc::new(self.events[at].clone())))
        });
        auth::check(self.version, &event.subject(), &state)
    }
}

//! The first events of a new room, drawn up before anything is written ("Creation").

use ruma::{OwnedUserId, UserId};
use serde_json::{Map, Value, json};

use super::{Chain, Create, StateDraft};
use crate::matrix::{Event, RoomVersion, id, version};
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::room::membership::check_invitable;
use crate::room::send::checks::{check_acl, check_levels};
use crate::room::send::member::{content_of, with_profile};
use crate::store::Read;
use crate::store::tables::room::event_row::Membership;

/// The most users invited with the creation: each is an event of the one write.
const INVITES_MAX: usize = 100;

/// The most `initial_state` events.
const STATE_MAX: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preset {
    Private,
    /// Every invited user gets the power level of the creator.
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

/// The request, checked.
#[derive(Clone)]
pub struct Plan {
    pub version: &'static RoomVersion,
    creator: OwnedUserId,
    preset: Preset,
    pub alias: Option<String>,
    pub create: Create,
}

impl Plan {
    pub fn new(rooms: &Rooms, creator: &UserId, mut create: Create) -> Result<Plan> {
        let wanted = create.room_version.as_deref().unwrap_or(version::DEFAULT);
        let version = version::get_offered(wanted).ok_or_else(|| {
            Error::bad("M_UNSUPPORTED_ROOM_VERSION", format!("this server does not create rooms of version {wanted}"))
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
    pub fn build(self, rooms: &Rooms, read: &Read, later_ms: u64) -> Result<Vec<Event>> {
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
                return Err(Error::bad(
                    "M_INVALID_ROOM_STATE",
                    "initial_state may not contain memberships; use invite instead",
                ));
            }
            if draft.kind == "m.room.server_acl" && draft.state_key.is_empty() {
                check_acl(rooms.server(), &draft.content)?;
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
            check_invitable(read, target, &self.creator)?;
            let content = with_profile(read, target, self.create.invite_content())?;
            chain.add_member(target, content)?;
        }
        Ok(chain.events)
    }

    /// The event of `initial_state`, with an empty key, that replaces one this server would make itself.
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

    /// The usual power levels, with the app's override in their place.
    fn power_levels(&self) -> Value {
        let mut users = Map::new();
        // Creators of a version 12 room stand above all levels and may not be named among `users`.
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
        if self.preset != Preset::Public
            && let Some(events) = levels.get_mut("events")
        {
            // Whoever takes part in a call of Element Call says so by a state event of their own (MSC3401). In a public room
            // anybody could write any number of those.
            events["org.matrix.msc3401.call.member"] = 0.into();
        }
        for (key, value) in &self.create.power_level_content_override {
            levels.insert(key.clone(), value.clone());
        }
        Value::Object(levels)
    }

    fn preset_state(&self) -> Vec<StateDraft> {
        let join_rule = if self.preset == Preset::Public { "public" } else { "invite" };
        let mut state = vec![
            StateDraft::new("m.room.join_rules", json!({ "join_rule": join_rule })),
            StateDraft::new("m.room.history_visibility", json!({ "history_visibility": "shared" })),
        ];
        // Without the event guests are forbidden.
        if self.preset != Preset::Public {
            state.push(StateDraft::new("m.room.guest_access", json!({ "guest_access": "can_join" })));
        }
        state
    }
}

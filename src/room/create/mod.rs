//! New rooms (client-server API, "Creation").
//!
//! The whole chain of first events is made and judged in memory, then appended in one write: a room exists with
//! everything asked for, or not at all. Remote users are invited afterwards, one by one.

use std::sync::Arc;

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, UserId};
use serde_json::{Map, Value};

use super::Rooms;
use super::append;
use super::append::new_event::Append;
use super::error::{Error, Result};
use super::send::member::content_of;
use crate::base;
use crate::matrix::auth::{self, Lookup};
use crate::matrix::{Draft, Event, Reject, RoomVersion};
use crate::room::membership;
use crate::room::policies::Act;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::{room, user};
use plan::{Plan, Preset};

pub mod upgrade;
pub mod plan;
#[cfg(test)]
mod tests;

/// Two rooms of version 12 with the same creator, content and time would have the same id; then the next millisecond is
/// tried.
const TRIES_MAX: u64 = 5;

/// The request to create a room.
#[derive(Debug, Clone, Default)]
pub struct Create {
    /// In the public list of this server.
    pub public: bool,
    /// When absent, the preset that fits `public`.
    pub preset: Option<Preset>,
    /// When absent, [`version::DEFAULT`].
    pub room_version: Option<String>,
    /// The local part of an alias on this server.
    pub room_alias_name: Option<String>,
    pub name: Option<String>,
    pub topic: Option<String>,
    pub invite: Vec<OwnedUserId>,
    pub creation_content: Map<String, Value>,
    pub initial_state: Vec<StateDraft>,
    pub power_level_content_override: Map<String, Value>,
    pub is_direct: bool,
    /// The reason in the invites (MSC4491).
    pub invite_reason: Option<String>,
    /// The server makes it by itself: what the creator may do is not asked.
    pub by_server: bool,
}

impl Create {
    /// The content of the invites that come with the creation.
    fn invite_content(&self) -> Map<String, Value> {
        let mut content = content_of(Membership::Invite, self.invite_reason.clone());
        if self.is_direct {
            content.insert("is_direct".into(), true.into());
        }
        content
    }
}

/// A state event to be made.
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
        let content = create.invite_content();
        base::unbroken(async move {
            check_policies(&rooms, &user, &create).await?;
            let room_id = create_here(&rooms, &user, create).await?;
            for target in away {
                // The room exists already; a user whose server cannot be reached can be invited again from within it.
                let invited = membership::invite_with(&rooms, &user, &room_id, &target, content.clone(), None).await;
                if let Err(failed) = invited {
                    tracing::info!(%target, %room_id, error = %failed, "could not invite into a new room");
                }
            }
            Ok(room_id)
        })
        .await
    }
}

/// Whether the creator may make such a room, by the settings.
async fn check_policies(rooms: &Rooms, creator: &UserId, create: &Create) -> Result<()> {
    if create.by_server {
        return Ok(());
    }
    let is_encrypted = create.initial_state.iter().any(|draft| draft.kind == "m.room.encryption");
    let acts = [
        (Act::CreateRooms, true),
        (Act::PublishRooms, create.public),
        (Act::EncryptRooms, is_encrypted),
        (Act::Invite, !create.invite.is_empty()),
        (Act::PublishAliases, create.room_alias_name.is_some()),
    ];
    for (act, _) in acts.into_iter().filter(|(_, is)| *is) {
        rooms.check_policy(act, creator).await?;
    }
    Ok(())
}

async fn create_here(rooms: &Rooms, creator: &UserId, create: Create) -> Result<OwnedRoomId> {
    let plan = Plan::new(rooms, creator, create)?;
    for later_ms in 0..TRIES_MAX {
        let again = plan.clone();
        let events = rooms.reading(move |rooms, read| again.build(rooms, read, later_ms)).await?;
        let (here, creator) = (rooms.here(), creator.to_owned());
        let (alias, public, version) = (plan.alias.clone(), plan.create.public, plan.version);
        let room_id = events[0].room_id().to_owned();
        let id = room_id.clone();
        let made = rooms
            .write(move |w| {
                if room::num(w, id.as_str())?.is_some() {
                    return Ok(false);
                }
                if let Some(alias) = &alias
                    && room::directory::alias(w, alias)?.is_some()
                {
                    return Err(Error::Taken);
                }
                let num = room::intern(w, id.as_str(), version.id)?;
                if let Some(alias) = &alias {
                    let creator = user::intern(w, creator.as_str())?;
                    room::directory::put_alias(w, alias, num, creator)?;
                }
                for event in events {
                    append::append(w, &here, Append { outbound: true, ..Append::next(num, event) })?;
                }
                if public {
                    let mut row = room::get_of(w, num)?;
                    row.public = true;
                    room::directory::set_public(w, num, None, Some(row.joined))?;
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

/// The first events of a room, each following the one before and judged by the state built up so far.
struct Chain<'r> {
    rooms: &'r Rooms,
    version: &'static RoomVersion,
    creator: OwnedUserId,
    room_id: Option<OwnedRoomId>,
    ts: u64,
    events: Vec<Event>,
    /// The newest event of each state key, as places in `events`. Bounded as those are.
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
            sticky_ms: None,
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

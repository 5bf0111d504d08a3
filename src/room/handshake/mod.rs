//! What passes between us and another server about a room we are not in: invites that come and go, leaving, knocking,
//! names, and lists of rooms.
//!
//! Server-server API, "Inviting to a room", "Leaving Rooms (Rejecting Invites)", "Knocking upon a room". Every answer is
//! a small one with a cap and a time; nothing here waits for a server while holding a room's lock.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomAliasId, RoomId, ServerName, UserId};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::Rooms;
use super::error::{Error, Result};
use super::receive::KEYS_TIME_MAX;
use super::receive::fetch::signing_keys;
use super::state::server_access;
use super::state::stripped::strip;
use crate::base;
use crate::budget::Grant;
use crate::matrix::json::partial;
use crate::matrix::scan::{self, Signer};
use crate::matrix::{Event, Reject, RoomVersion, event as wire, json as text, sign, version};
use crate::remote::{Failed, Options, encode};
use crate::store::Read;
use crate::store::tables::room::event::Membership;
use crate::store::tables::room::{self};
use crate::store::tables::user;
use out_of_band::may_end;

pub mod out_of_band;

/// Servers asked for one thing at most, one after the other.
const SERVERS_MAX: usize = 5;
/// How long each may take.
const EACH: Duration = Duration::from_secs(20);
/// Events of stripped state kept with an invite or a knock. The specification names nine kinds.
pub const STRIPPED_EVENTS_MAX: usize = 32;
/// Servers of a remote alias that are remembered for the join.
const ALIAS_SERVERS_MAX: usize = 20;

/// A membership event somebody else's server drew up for one of our users.
pub struct Template {
    pub version: &'static RoomVersion,
    /// Who drew it up, and so who is sent the event.
    pub server: OwnedServerName,
    event: Map<String, Value>,
    /// Pays for the event.
    _paid: Grant,
}

/// A verb of the `make_`/`send_` pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Join,
    Leave,
    Knock,
}

impl Verb {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Verb::Join => "join",
            Verb::Leave => "leave",
            Verb::Knock => "knock",
        }
    }
}

// ---- templates ---------------------------------------------------------------------------------------------------

impl Rooms {
    /// Asks one server for a membership event's template: `make_join` and its like.
    pub(super) async fn ask_template(
        &self,
        server: &ServerName,
        verb: Verb,
        room: &RoomId,
        user: &UserId,
    ) -> Result<Template, Failed> {
        let mut target = format!(
            "/_matrix/federation/v1/make_{}/{}/{}",
            verb.as_str(),
            encode(room.as_str()),
            encode(user.as_str())
        );
        if verb != Verb::Leave {
            let versions: Vec<_> = version::offered().map(|version| format!("ver={}", version.id)).collect();
            target = format!("{target}?{}", versions.join("&"));
        }
        let answer = self.0.parts.remote.request(server, Method::GET, &target, None, asking()).await?;
        let (said, paid) = answer.json()?;
        Template::read(server, said, paid, verb, room, user).map_err(|why| Failed::BadAnswer(why.to_string()))
    }

    /// Makes a template our own event: `content` is what the user says, everything else is checked already.
    pub(super) fn sign_template(&self, template: &Template, content: Map<String, Value>) -> Result<Event> {
        let parts = &self.0.parts;
        let (content, now_ms) = (Value::from(content), Value::from(parts.clock.now_ms()));
        let id = Value::from(format!("${}:{}", parts.random.token(18), parts.server));
        let mut event: BTreeMap<&str, &Value> =
            template.event.iter().map(|(key, value)| (key.as_str(), value)).collect();
        event.insert("content", &content);
        event.insert("origin_server_ts", &now_ms);
        if template.version.event_id_in_event() {
            event.insert("event_id", &id);
        }
        let raw = serde_json::to_vec(&event).map_err(|error| Reject::json(error.to_string()))?;
        Ok(wire::sign_new(template.version, &raw, &parts.server, &parts.key)?)
    }
}

impl Template {
    /// Takes what an event is made from and refuses what the server has no business choosing.
    fn read(
        server: &ServerName,
        mut said: Map<String, Value>,
        paid: Grant,
        verb: Verb,
        room: &RoomId,
        user: &UserId,
    ) -> Result<Template, Reject> {
        let named = said.get("room_version").and_then(Value::as_str).unwrap_or("1");
        let version =
            version::get(named).ok_or_else(|| Reject::shape(format!("room version {named} is not known here")))?;
        let Some(Value::Object(drawn)) = said.remove("event") else {
            return Err(Reject::shape("the template has no event"));
        };
        let is = |key: &str, wanted: &str| drawn.get(key).and_then(Value::as_str) == Some(wanted);
        let membership = drawn.get("content").and_then(|content| content.get("membership")).and_then(Value::as_str);
        let fits = is("type", "m.room.member")
            && is("room_id", room.as_str())
            && is("sender", user.as_str())
            && is("state_key", user.as_str())
            && membership == Some(verb.as_str());
        if !fits {
            return Err(Reject::shape("the template is for something else than was asked"));
        }
        let keep = ["type", "room_id", "sender", "state_key", "content", "prev_events", "auth_events", "depth"];
        let event = drawn.into_iter().filter(|(key, _)| keep.contains(&key.as_str())).collect();
        Ok(Template { version, server: server.to_owned(), event, _paid: paid })
    }

    /// The local part of the restricted rooms' rules: who of that server lets our user in.
    pub(super) fn authorised_via(&self) -> Option<&str> {
        self.event.get("content")?.get("join_authorised_via_users_server")?.as_str()
    }
}

/// A person is waiting, but not for ever.
fn asking() -> Options {
    Options { timeout: EACH, max_bytes: 256 * 1024, insist: true }
}

// ---- leaving and knocking from outside ---------------------------------------------------------------------------

impl Rooms {
    /// Refuses an invite, or takes back a knock, of a room we are not in. The servers that would want to know are told;
    /// when none of them can be, the user is rid of it all the same.
    pub(super) async fn leave_outside(&self, user: &UserId, room: &RoomId, reason: Option<&str>) -> Result<()> {
        let (asked, of) = (user.to_owned(), room.to_owned());
        let servers = self.reading(move |rooms, read| rooms.outside_of(read, &asked, &of)).await?;
        let mut content = Map::from_iter([("membership".to_owned(), json!("leave"))]);
        if let Some(reason) = reason {
            content.insert("reason".into(), reason.into());
        }
        for server in &servers {
            match self.leave_through(server, user, room, content.clone()).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::info!(%server, %room, "the server could not be told that {user} leaves: {error}")
                }
            }
        }
        self.drop_outside(user, room, None).await
    }

    pub(super) async fn leave_through(
        &self,
        server: &ServerName,
        user: &UserId,
        room: &RoomId,
        content: Map<String, Value>,
    ) -> Result<()> {
        let template = self.ask_template(server, Verb::Leave, room, user).await?;
        let event = self.sign_template(&template, content)?;
        self.hand_over(server, Verb::Leave, &event).await.map(drop)
    }

    /// Asks to be let into a room through the servers named.
    pub(super) async fn knock_outside(
        &self,
        user: &UserId,
        room: &RoomId,
        via: &[OwnedServerName],
        mut content: Map<String, Value>,
    ) -> Result<()> {
        content.insert("membership".into(), "knock".into());
        let mut failed = Error::NotFound;
        for server in via.iter().filter(|server| !self.0.parts.remote.is_me(server)).take(SERVERS_MAX) {
            match self.knock_through(server, user, room, content.clone()).await {
                Ok((version, stripped)) => {
                    return self.set_outside(user, room, version, Membership::Knock, stripped).await;
                }
                Err(error @ Error::Remote(Failed::Status { status: 403, .. })) => return Err(error),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    async fn knock_through(
        &self,
        server: &ServerName,
        user: &UserId,
        room: &RoomId,
        content: Map<String, Value>,
    ) -> Result<(&'static str, Vec<u8>)> {
        let template = self.ask_template(server, Verb::Knock, room, user).await?;
        let event = self.sign_template(&template, content)?;
        #[derive(serde::Deserialize, Default)]
        struct Shown {
            #[serde(default, deserialize_with = "partial::first::<STRIPPED_EVENTS_MAX, _, _>")]
            knock_room_state: Vec<Box<RawValue>>,
        }
        let (answer, _paid) = self.hand_over(server, Verb::Knock, &event).await?.unzip();
        // Asked is asked, whatever the server shows of the room.
        let shown: Shown = answer.and_then(|answer| serde_json::from_slice(&answer).ok()).unwrap_or_default();
        Ok((template.version.id, strip(&shown.knock_room_state, &event)))
    }

    /// `send_leave` or `send_knock`; both answer with little. Nothing where the old version of the API took it.
    async fn hand_over(&self, server: &ServerName, verb: Verb, event: &Event) -> Result<Option<(Vec<u8>, Grant)>> {
        let target = |api: &str| {
            let (room, id) = (encode(event.room_id().as_str()), encode(event.id().as_str()));
            format!("/_matrix/federation/{api}/send_{}/{room}/{id}", verb.as_str())
        };
        let api = if verb == Verb::Knock { "v1" } else { "v2" };
        let content = || Some(event.to_federation().to_vec());
        let remote = &self.0.parts.remote;
        let answer = match remote.request(server, Method::PUT, &target(api), content(), asking()).await {
            Err(failed) if verb == Verb::Leave && is_unknown_path(&failed) => {
                // Version 1 of the API answers `[200, {}]`.
                remote.request(server, Method::PUT, &target("v1"), content(), asking()).await?;
                return Ok(None);
            }
            other => other?,
        };
        Ok(Some(answer.into_parts()))
    }
}

fn is_unknown_path(failed: &Failed) -> bool {
    matches!(failed.status(), Some(400 | 404 | 405)) && failed.errcode().is_none_or(|code| code == "M_UNRECOGNIZED")
}

// ---- invites -----------------------------------------------------------------------------------------------------

/// An invite another server brings, as its request says it.
pub struct Invitation {
    pub room: OwnedRoomId,
    pub version: String,
    pub event: Box<RawValue>,
    pub stripped: Vec<Box<RawValue>>,
}

impl Rooms {
    /// Takes an invite of a local user from another server. Answers the event with our signature beside theirs.
    ///
    /// For a room that people of this server are in, the invite becomes part of the room when it arrives there; here it is
    /// only signed.
    pub async fn receive_invite(
        &self,
        origin: &ServerName,
        id: Option<&EventId>,
        invitation: Invitation,
    ) -> Result<Event> {
        let version = version::get_offered(&invitation.version).ok_or_else(|| {
            let message = format!("rooms of version {} cannot be joined from here", invitation.version);
            Error::bad("M_INCOMPATIBLE_ROOM_VERSION", message)
        })?;
        let event = Event::from_wire(version, invitation.event.get().as_bytes())?;
        let target = self.check_invite(origin, id, &invitation, &event)?;
        let (by, asked, of) = (origin.to_owned(), target.clone(), invitation.room.clone());
        let is_ours = self.reading(move |_, read| {
            server_access::check_acl(read, &by, &of)?;
            is_ours_already(read, &asked, &of)
        });
        let is_ours = is_ours.await?;
        self.check_signed(&event).await?;
        let parts = &self.0.parts;
        let signed = sign::add_signature(&event, &parts.server, &parts.key)?;
        let stripped = strip(&invitation.stripped, &event);
        if !is_ours {
            self.set_outside(&target, &invitation.room, version.id, Membership::Invite, stripped).await?;
        }
        Ok(signed)
    }

    fn check_invite(
        &self,
        origin: &ServerName,
        id: Option<&EventId>,
        invitation: &Invitation,
        event: &Event,
    ) -> Result<OwnedUserId> {
        let bad = |message: &str| Error::bad("M_INVALID_PARAM", message);
        if id.is_some_and(|id| id != event.id()) {
            return Err(bad("the event's id is not the one in the path"));
        }
        if event.room_id() != invitation.room {
            return Err(bad("the event is of another room"));
        }
        if event.kind() != "m.room.member" || event.membership().as_deref() != Some("invite") {
            return Err(bad("the event is no invite"));
        }
        if event.sender().server_name() != origin {
            return Err(Error::forbidden("the invite's sender is of another server"));
        }
        let target = event.state_key().and_then(|key| OwnedUserId::try_from(key).ok());
        match target {
            Some(target) if target.server_name() == self.0.parts.server => Ok(target),
            _ => Err(bad("the invite is for nobody of this server")),
        }
    }

    /// An event about a room nobody here is in: taken when it ends an invite of one of our users, by whoever sent that, or a
    /// knock, by a server that has to do with it. Nothing of it is kept but that.
    pub(super) async fn end_outside(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        raw: Box<RawValue>,
    ) -> Result<OwnedEventId> {
        let (origin, id) = (origin.to_owned(), room_id.to_owned());
        let read = self.reading(move |rooms, read| {
            let num = room::num(read, id.as_str())?.ok_or(Error::NotFound)?;
            let version = version::get(&room::get_of(read, num)?.version).ok_or(Error::NotFound)?;
            let event = Event::from_wire(version, raw.get().as_bytes())?;
            let target = event.state_key().and_then(|key| OwnedUserId::try_from(key).ok()).ok_or(Error::NotFound)?;
            let is_end = event.kind() == "m.room.member"
                && matches!(event.membership().as_deref(), Some("leave" | "ban"))
                && event.room_id() == id
                && event.sender().server_name() == origin;
            let user = user::num(read, target.as_str())?.ok_or(Error::NotFound)?;
            match is_end
                && rooms.outside_of(read, &target, &id)?.contains(&origin)
                && may_end(read, user, num, &target, event.sender())?
            {
                true => Ok((event, target)),
                false => Err(Error::NotFound),
            }
        });
        let (event, target) = read.await?;
        self.check_signed(&event).await?;
        self.drop_outside(&target, room_id, Some(event.sender().to_owned())).await?;
        Ok(event.id().to_owned())
    }

    /// That the servers which must have signed an event have, and that its content is whole. Keys are fetched when need be.
    pub(super) async fn check_signed(&self, event: &Event) -> Result<()> {
        self.fetch_signing_keys(event).await?;
        let keys = self.0.parts.remote.keys();
        let event = event.clone();
        match base::blocking(move || sign::check_event(&event, &keys)).await? {
            sign::Checked::Intact => Ok(()),
            sign::Checked::RedactNeeded => Err(Reject::signature("the content hash is wrong").into()),
        }
    }

    /// Asks for the keys an event is signed with, where they are not known. After a while those that are here must do.
    pub(super) async fn fetch_signing_keys(&self, event: &Event) -> Result<()> {
        let parts = &self.0.parts;
        let (names, at_ms) = signing_keys(event, parts.clock.now_ms())?;
        let keys = parts.remote.keys();
        Ok(parts.clock.timeout(KEYS_TIME_MAX, keys.fetch(&names, at_ms)).await.unwrap_or(Ok(()))?)
    }

    /// Has the invited user's server sign our invite, which makes it known there too. `room_state` is the stripped state
    /// the invited user is shown.
    ///
    /// Never call it with the room's lock held: the other server takes its time.
    pub(super) async fn sign_invite(&self, event: &Event, room_state: Vec<Box<RawValue>>) -> Result<Event> {
        let target = event.state_key().and_then(|key| OwnedUserId::try_from(key).ok());
        let target = target.ok_or_else(|| Reject::shape("the invited user's id is no user id"))?;
        let server = target.server_name();
        let signed = self.ask_signature(server, event, room_state).await?;
        let signed = Event::from_wire(event.version(), signed.get().as_bytes())?;
        if signed.id() != event.id() || !signed.is_intact() {
            return Err(Error::Remote(Failed::BadAnswer("the invite came back as another event".to_owned())));
        }
        let theirs = signature_of(&signed, server)?;
        let signer =
            Signer { server: server.as_str(), signatures: theirs.iter().map(|(id, s)| (id.as_str(), *s)).collect() };
        let at_ms = sign::key_time(event.version(), event.origin_server_ts());
        let names: Vec<_> = theirs.iter().map(|(id, _)| (server.to_owned(), id.clone())).collect();
        let keys = self.0.parts.remote.keys();
        keys.fetch(&names, at_ms).await?;
        // A handful of signatures of one event: not worth a thread.
        sign::check_signer(&signer, &event.signed_message(), at_ms, &keys)?;
        // Ours must still be on it; that it is the same event is known.
        sign::check_event(&signed, &keys)?;
        Ok(signed)
    }

    async fn ask_signature(
        &self,
        server: &ServerName,
        event: &Event,
        room_state: Vec<Box<RawValue>>,
    ) -> Result<Box<RawValue>> {
        #[derive(serde::Deserialize)]
        struct Signed {
            event: Box<RawValue>,
        }
        let target = |api: &str| {
            let (room, id) = (encode(event.room_id().as_str()), encode(event.id().as_str()));
            format!("/_matrix/federation/{api}/invite/{room}/{id}")
        };
        let raw = std::str::from_utf8(event.to_federation()).map_err(|_| Reject::json("not text"))?;
        let state: Vec<&str> = room_state.iter().map(|event| event.get()).collect();
        let (version, state) = (json!(event.version().id), format!("[{}]", state.join(",")));
        let body = format!("{{\"event\":{raw},\"room_version\":{version},\"invite_room_state\":{state}}}");
        let remote = &self.0.parts.remote;
        let answer = remote.request(server, Method::PUT, &target("v2"), Some(body.into_bytes()), asking()).await;
        match answer {
            Err(failed) if event.version().event_id_in_event() && is_unknown_path(&failed) => {
                let inner = raw.strip_suffix('}').ok_or_else(|| Reject::json("not an object"))?;
                let body = format!("{inner},\"unsigned\":{{\"invite_room_state\":{state}}}}}").into_bytes();
                let answer = remote.request(server, Method::PUT, &target("v1"), Some(body), asking()).await?;
                let ((_, signed), _paid) = answer.json::<(u16, Signed)>()?;
                Ok(signed.event)
            }
            answer => {
                let (signed, _paid) = answer?.json::<Signed>()?;
                Ok(signed.event)
            }
        }
    }
}

/// One server's signatures on an event.
fn signature_of(event: &Event, server: &ServerName) -> Result<Vec<(String, [u8; 64])>> {
    use base64::Engine;
    let by = text::get_path(event.to_federation(), &["signatures", server.as_str()]).unwrap_or(b"{}");
    let each = text::members(by).take(scan::SIGNATURES_TRIED_MAX).filter_map(|(id, signature)| {
        let signature = scan::BASE64.decode(&*text::text(signature)?).ok()?.try_into().ok()?;
        Some((String::from_utf8(id.to_vec()).ok()?, signature))
    });
    let found: Vec<_> = each.collect();
    match found.is_empty() {
        true => Err(Error::Remote(Failed::BadAnswer(format!("{server} did not sign the invite")))),
        false => Ok(found),
    }
}

/// Whether people of this server are in the room. Refuses an invite of nobody here.
fn is_ours_already(read: &Read, target: &UserId, room_id: &RoomId) -> Result<bool> {
    let account = match user::num(read, target.as_str())? {
        Some(num) => user::account(read, num)?,
        None => None,
    };
    if account.is_none_or(|account| account.standing != user::Standing::Active) {
        return Err(Error::NotFound);
    }
    match room::num(read, room_id.as_str())? {
        Some(num) => Ok(room::get_of(read, num)?.status == room::Status::Resident),
        None => Ok(false),
    }
}

// ---- names and lists of other servers ----------------------------------------------------------------------------

impl Rooms {
    /// Where an alias of another server leads, and which servers are in that room.
    pub async fn resolve_remote_alias(&self, alias: &RoomAliasId) -> Result<(OwnedRoomId, Vec<OwnedServerName>)> {
        #[derive(serde::Deserialize)]
        struct Found {
            room_id: OwnedRoomId,
            #[serde(default)]
            servers: Vec<String>,
        }
        let target = format!("/_matrix/federation/v1/query/directory?room_alias={}", encode(alias.as_str()));
        let answer = self.0.parts.remote.request(alias.server_name(), Method::GET, &target, None, asking()).await;
        let (found, _paid) = not_found(answer)?.json::<Found>()?;
        let servers = found.servers.into_iter().filter_map(|name| OwnedServerName::try_from(name).ok());
        let mut servers: Vec<_> = servers.take(ALIAS_SERVERS_MAX).collect();
        if servers.is_empty() {
            servers.push(alias.server_name().to_owned());
        }
        Ok((found.room_id, servers))
    }

    /// A page of another server's public rooms as it answers it: one JSON object, with what pays for it. `asked` is the
    /// body of the `POST`.
    pub async fn remote_public_rooms(
        &self,
        server: &ServerName,
        asked: &Map<String, Value>,
    ) -> Result<(Vec<u8>, Grant)> {
        let body = serde_json::to_vec(asked).map_err(|error| Reject::json(error.to_string()))?;
        let target = "/_matrix/federation/v1/publicRooms";
        let options = Options { max_bytes: 512 * 1024, ..asking() };
        let answer = self.0.parts.remote.request(server, Method::POST, target, Some(body), options).await?;
        let (body, grant) = answer.into_parts();
        match serde_json::from_slice::<serde::de::IgnoredAny>(&body) {
            Ok(_) if body.first() == Some(&b'{') => Ok((body, grant)),
            _ => Err(Error::Remote(Failed::BadAnswer("the list of rooms is no JSON object".to_owned()))),
        }
    }
}

/// A peer's 404 is our own "not there".
fn not_found<T>(answer: Result<T, Failed>) -> Result<T> {
    answer.map_err(|failed| match failed.status() {
        Some(404) => Error::NotFound,
        _ => Error::Remote(failed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One odd event among what is shown of a room made the invite itself unreadable.
    #[test]
    fn odd_stripped_events_are_left_out_alone() {
        let own = br#"{"content":{},"room_id":"!r","sender":"@a:x","state_key":"@b:y","type":"m.room.member"}"#;
        let own = Event::from_stored(version::get("12").unwrap(), own.to_vec(), "$e".try_into().unwrap()).unwrap();
        let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        let event = |kind: &str, content: &str| {
            format!(
                r#"{{"type":"{kind}","sender":"@a:x","state_key":"","content":{content},"more":{}}}"#,
                nested(2_000)
            )
        };
        let deep = format!(r#"{{"x":{}}}"#, nested(700));
        let state = [
            "7".to_owned(),
            event("m.room.name", &deep),
            event("m.room.topic", &format!(r#"{{"x":{}}}"#, nested(2_000))),
            event("m.room.avatar", r#"{"x":"\ud800"}"#),
            event("m.room.create", "[]"),
            event("m.room.join_rules", r#"{ "b" : 1, "a" : 1.5 }"#),
            r#"{"type":"m.room.member","sender":"@a:x","state_key":"@b:y","content":{"n":1}}"#.to_owned(),
        ];
        let state = state.map(|text| RawValue::from_string(text).unwrap());
        let kept = String::from_utf8(strip(&state, &own)).unwrap();
        let expected = [
            format!(r#"{{"content":{deep},"sender":"@a:x","state_key":"","type":"m.room.name"}}"#),
            r#"{"content":{"a":1.5,"b":1},"sender":"@a:x","state_key":"","type":"m.room.join_rules"}"#.to_owned(),
            r#"{"content":{},"sender":"@a:x","state_key":"@b:y","type":"m.room.member"}"#.to_owned(),
        ];
        assert_eq!(kept, format!("[{}]", expected.join(",")));
    }
}

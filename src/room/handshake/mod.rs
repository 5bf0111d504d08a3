//! Requests between us and another server about a room we are not in: invites sent and withdrawn, leaves, knocks,
//! aliases, and room lists.
//!
//! Server-server API, "Inviting to a room", "Leaving Rooms (Rejecting Invites)", "Knocking upon a room". Every answer
//! is small and bounded in bytes and time; nothing here waits for a server while holding a room's lock.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use ruma::{OwnedServerName, RoomId, ServerName, UserId};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::Rooms;
use super::error::{Error, Result};
use super::state::stripped::{STRIPPED_EVENTS_MAX, strip};
use crate::base::gathered;
use crate::budget::Grant;
use crate::matrix::draft;
use crate::matrix::json::partial;
use crate::matrix::{Event, Reject, RoomVersion, version};
use crate::remote::{Failed, Options, Urgency, encode};
use crate::room::state::servers;
use crate::store::Read;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::user;

use out_of_band::Leave;

pub mod out_of_band;
pub mod invite;

/// The most servers asked for one request, one after the other.
const SERVERS_MAX: usize = 5;
/// The time limit of each request.
const EACH: Duration = Duration::from_secs(20);

/// Has an application service make a user of this server that is not there, when it is one of its own: it must be there before
/// the service is told of the invite.
pub(in crate::room) async fn make_if_unknown(rooms: &Rooms, user: &UserId) -> Result<()> {
    if rooms.0.parts.remote.app_services().list().is_empty() {
        return Ok(());
    }
    let asked = user.to_owned();
    let is_known = move |_: &Rooms, read: &Read| match user::num(read, asked.as_str())? {
        Some(num) => Ok(user::is_local(read, num)?),
        None => Ok(false),
    };
    if !rooms.reading(is_known).await? {
        rooms.0.parts.remote.app_services().make_user(user).await;
    }
    Ok(())
}

/// A membership event drawn up by another server for one of our users.
pub struct Template {
    pub version: &'static RoomVersion,
    /// The server that drew up the template, to which the event is sent.
    pub server: OwnedServerName,
    event: Map<String, Value>,
    /// The grant that pays for the event.
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

/// Asks one server for a membership event's template: `make_join` and its like.
pub(super) async fn ask_template(
    rooms: &Rooms,
    server: &ServerName,
    verb: Verb,
    room: &RoomId,
    user: &UserId,
) -> Result<Template, Failed> {
    let mut target =
        format!("/_matrix/federation/v1/make_{}/{}/{}", verb.as_str(), encode(room.as_str()), encode(user.as_str()));
    if verb != Verb::Leave {
        let versions: Vec<_> = version::offered().map(|version| format!("ver={}", version.id)).collect();
        target = format!("{target}?{}", versions.join("&"));
    }
    let answer = rooms.0.parts.remote.request(server, Method::GET, &target, None, asking()).await?;
    let (said, paid) = answer.json()?;
    Template::read(server, said, paid, verb, room, user).map_err(|why| Failed::BadAnswer(why.to_string()))
}

/// Turns a template into our own event: `content` holds the user's fields; everything else is checked already.
pub(super) fn sign_template(rooms: &Rooms, template: &Template, content: Map<String, Value>) -> Result<Event> {
    let parts = &rooms.0.parts;
    let (content, now_ms) = (Value::from(content), Value::from(parts.clock.now_ms()));
    let id = Value::from(format!("${}:{}", parts.random.token(18), parts.server));
    let mut event: BTreeMap<&str, &Value> = gathered(template.event.iter().map(|(key, value)| (key.as_str(), value)));
    event.insert("content", &content);
    event.insert("origin_server_ts", &now_ms);
    if template.version.event_id_in_event() {
        event.insert("event_id", &id);
    }
    let raw = serde_json::to_vec(&event).map_err(|error| Reject::json(error.to_string()))?;
    Ok(draft::sign_new(template.version, &raw, &parts.server, &parts.key)?)
}

impl Template {
    /// Reads the fields of a template and refuses those the other server may not choose.
    fn read(
        server: &ServerName,
        mut said: Map<String, Value>,
        paid: Grant,
        verb: Verb,
        room: &RoomId,
        user: &UserId,
    ) -> Result<Template, Reject> {
        let named = said.get("room_version").and_then(Value::as_str).unwrap_or("1");
        let version = version::get(named)
            .ok_or_else(|| Reject::shape(format!("this server does not know room version {named}")))?;
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
            return Err(Reject::shape("the template is not for the requested user and membership"));
        }
        let keep = ["type", "room_id", "sender", "state_key", "content", "prev_events", "auth_events", "depth"];
        let event = gathered(drawn.into_iter().filter(|(key, _)| keep.contains(&key.as_str())));
        Ok(Template { version, server: server.to_owned(), event, _paid: paid })
    }

    /// The user of that server who authorises our user's join of a restricted room.
    pub(super) fn authorised_via(&self) -> Option<&str> {
        self.event.get("content")?.get("join_authorised_via_users_server")?.as_str()
    }
}

/// Whether a server said that the user may not do this, or that it cannot let the user in: asking others that the user did
/// not name would only look for one that knows less.
pub fn is_no(failed: &Failed) -> bool {
    failed.status() == Some(403)
        || matches!(failed.errcode(), Some("M_UNABLE_TO_AUTHORISE_JOIN" | "M_UNABLE_TO_GRANT_JOIN"))
}

/// One failure for those of several servers: the one that says most, and what each of the others said.
pub fn of_all(mut failures: Vec<(OwnedServerName, Failed)>) -> Option<Failed> {
    // A refusal says more about the room than a failure to reach a server.
    let weight = |failed: &Failed| (is_no(failed), failed.is_refusal());
    let chief = (0..failures.len()).max_by_key(|at| weight(&failures[*at].1))?;
    let (server, chief) = failures.remove(chief);
    if failures.is_empty() {
        return Some(chief);
    }
    let others: String = failures.iter().map(|(server, failed)| format!("; {server} {failed}")).collect();
    Some(chief.with(&format!(" (so says {server}{others})")))
}

/// A person waits: with a time limit, and whatever failed before.
pub fn asking() -> Options {
    Options { timeout: EACH, max_bytes: 256 * 1024, urgency: Urgency::Person }
}

// ---- leaving and knocking from outside ---------------------------------------------------------------------------

/// Declines an invite, or takes back a knock, of a room we are not in. The servers involved are told; when none of
/// them can be reached, the invite or knock is removed all the same.
pub(super) async fn leave(rooms: &Rooms, user: &UserId, room: &RoomId, reason: Option<&str>) -> Result<()> {
    let (asked, of) = (user.to_owned(), room.to_owned());
    let servers = rooms.reading(move |rooms, read| servers::out_of_band_of(rooms, read, &asked, &of)).await?;
    let mut content = gathered::<_, Map<_, _>>([("membership".to_owned(), json!("leave"))]);
    if let Some(reason) = reason {
        content.insert("reason".into(), reason.into());
    }
    for server in &servers {
        match leave_through(rooms, server, user, room, content.clone()).await {
            Ok(event) => {
                let leave = Leave::of(&event);
                return out_of_band::end(rooms, user, room, None, Some(leave)).await;
            }
            Err(error) => {
                tracing::info!(%server, %room, "the leave event of {user} could not be sent to the server: {error}")
            }
        }
    }
    let leave = Leave::unsent(rooms, user, &content);
    out_of_band::end(rooms, user, room, None, Some(leave)).await
}

pub(super) async fn leave_through(
    rooms: &Rooms,
    server: &ServerName,
    user: &UserId,
    room: &RoomId,
    content: Map<String, Value>,
) -> Result<Event> {
    let template = ask_template(rooms, server, Verb::Leave, room, user).await?;
    let event = sign_template(rooms, &template, content)?;
    hand_over(rooms, server, Verb::Leave, &event).await?;
    Ok(event)
}

/// Knocks at a room through the named servers.
pub(super) async fn knock(
    rooms: &Rooms,
    user: &UserId,
    room: &RoomId,
    via: &[OwnedServerName],
    mut content: Map<String, Value>,
) -> Result<()> {
    content.insert("membership".into(), "knock".into());
    let (mut failures, mut other) = (Vec::new(), None);
    for server in via.iter().filter(|server| !rooms.0.parts.remote.is_me(server)).take(SERVERS_MAX) {
        match knock_through(rooms, server, user, room, content.clone()).await {
            Ok((version, stripped)) => {
                return out_of_band::record(rooms, user, room, version, Membership::Knock, stripped).await;
            }
            Err(Error::Remote(failed)) => {
                let is_last = is_no(&failed);
                failures.push((server.clone(), failed));
                if is_last {
                    break;
                }
            }
            Err(error) => other = Some(error),
        }
    }
    Err(of_all(failures).map(Error::Remote).or(other).unwrap_or(Error::NotFound))
}

async fn knock_through(
    rooms: &Rooms,
    server: &ServerName,
    user: &UserId,
    room: &RoomId,
    content: Map<String, Value>,
) -> Result<(&'static str, Vec<u8>)> {
    let template = ask_template(rooms, server, Verb::Knock, room, user).await?;
    let event = sign_template(rooms, &template, content)?;
    #[derive(serde::Deserialize, Default)]
    struct Shown {
        #[serde(default, deserialize_with = "partial::first::<STRIPPED_EVENTS_MAX, _, _>")]
        knock_room_state: Vec<Box<RawValue>>,
    }
    let (answer, _paid) = hand_over(rooms, server, Verb::Knock, &event).await?.unzip();
    // The knock is accepted, whatever the server shows of the room.
    let shown: Shown = answer.and_then(|answer| serde_json::from_slice(&answer).ok()).unwrap_or_default();
    Ok((template.version.id, strip(&shown.knock_room_state, &event)))
}

/// Sends `send_leave` or `send_knock`, whose answers are small. None when the old version of the API was used.
async fn hand_over(rooms: &Rooms, server: &ServerName, verb: Verb, event: &Event) -> Result<Option<(Vec<u8>, Grant)>> {
    let target = |api: &str| {
        let (room, id) = (encode(event.room_id().as_str()), encode(event.id().as_str()));
        format!("/_matrix/federation/{api}/send_{}/{room}/{id}", verb.as_str())
    };
    let api = if verb == Verb::Knock { "v1" } else { "v2" };
    let content = || Some(event.to_federation().to_vec());
    let remote = &rooms.0.parts.remote;
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

fn is_unknown_path(failed: &Failed) -> bool {
    matches!(failed.status(), Some(400 | 404 | 405)) && failed.errcode().is_none_or(|code| code == "M_UNRECOGNIZED")
}

// ---- invites -----------------------------------------------------------------------------------------------------

impl Rooms {}

// ---- names and lists of other servers ----------------------------------------------------------------------------

#[cfg(test)]
mod tests;

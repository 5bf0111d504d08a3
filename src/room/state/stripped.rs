//! Stripped state: the part of a room that is shown to users outside it ("Stripped state").

use std::borrow::Cow;

use ruma::{RoomId, UserId};
use serde_json::json;
use serde_json::value::RawValue;

use crate::matrix::{Event, json as text};
use crate::room::Rooms;
use crate::room::error::Result;
use crate::room::state::{RoomRef, known};
use crate::store::Get;
use crate::store::tables::room::event_row::Kind;

/// Stripped state kept of one room at most: a name, a topic, a picture, the rules and two members fit ten times over.
pub(in crate::room) const STRIPPED_BYTES_MAX: usize = 64 * 1024;

/// An event of stripped state. Its other fields are another server's choice, and are not looked at.
#[derive(serde::Deserialize)]
pub(in crate::room) struct Stripped<'a> {
    #[serde(rename = "type", borrow)]
    pub kind: Cow<'a, str>,
    #[serde(borrow)]
    pub state_key: Cow<'a, str>,
    #[serde(borrow)]
    pub sender: Cow<'a, str>,
}

/// Stripped state in its stored form.
pub(in crate::room) fn read_stripped(stripped: &[u8]) -> Vec<Stripped<'_>> {
    serde_json::from_slice(stripped).unwrap_or_default()
}

/// The inviter's server; empty when the state does not name one.
pub fn inviting_server(stripped: &[u8], user_id: &UserId) -> String {
    let inviter = inviter(stripped, user_id);
    inviter.and_then(|id| Some(id.split_once(':')?.1.to_owned())).unwrap_or_default()
}

/// Stripped state in its stored form: a JSON array of the events' four fields and their times where they have one, the member
/// event itself last, with its id too, by which apps are notified of it. An event beyond the bounds, or an element that is no event, is left out.
pub fn strip(state: &[Box<RawValue>], own: &Event) -> Vec<u8> {
    let last = strip_own(own);
    let mut left = STRIPPED_BYTES_MAX.saturating_sub(last.len() + 2);
    let mut kept = Vec::new();
    for event in state.iter().take(STRIPPED_EVENTS_MAX) {
        let Some(stripped) = strip_one(event, own).filter(|stripped| stripped.len() < left) else { continue };
        left -= stripped.len() + 1;
        kept.push(stripped);
    }
    kept.push(last);
    format!("[{}]", kept.join(",")).into_bytes()
}

/// The member event itself, whose text is copied: it may be of any shape inside.
fn strip_own(own: &Event) -> String {
    let (kind, state_key, sender) = (json!(own.kind()), json!(own.state_key()), json!(own.sender()));
    let (content, ts, id) = (own.content(), own.origin_server_ts(), json!(own.id()));
    format!(
        "{{\"content\":{content},\"event_id\":{id},\"origin_server_ts\":{ts},\"sender\":{sender},\
         \"state_key\":{state_key},\"type\":{kind}}}"
    )
}

/// `None` for an element that is no event, for an event that clients could not read, and for the member event `own`.
fn strip_one(event: &RawValue, own: &Event) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Given<'a> {
        #[serde(rename = "type", borrow)]
        kind: Cow<'a, str>,
        #[serde(borrow)]
        state_key: Cow<'a, str>,
        #[serde(borrow)]
        sender: Cow<'a, str>,
        #[serde(borrow)]
        content: &'a RawValue,
        #[serde(borrow)]
        origin_server_ts: Option<&'a RawValue>,
    }
    let Given { kind, state_key, sender, content, origin_server_ts } = serde_json::from_str(event.get()).ok()?;
    <&UserId>::try_from(&*sender).ok()?;
    if kind == "m.room.member" && Some(&*state_key) == own.state_key() {
        return None;
    }
    let content = text::canonical_shown(content.get().as_bytes(), text::Mode::Lenient).ok()?;
    let content = String::from_utf8(content).ok().filter(|content| content.starts_with('{'))?;
    let (kind, state_key, sender) = (json!(kind), json!(state_key), json!(sender));
    // Rooms of others have it since the whole events are sent (MSC4311), as ours have it: apps read one form.
    let ts = origin_server_ts.and_then(|ts| ts.get().parse::<u64>().ok());
    let ts = ts.map(|ts| format!(",\"origin_server_ts\":{ts}")).unwrap_or_default();
    Some(format!("{{\"content\":{content}{ts},\"sender\":{sender},\"state_key\":{state_key},\"type\":{kind}}}"))
}

/// Size of one such event; larger ones (a page of text as a topic) are left out.
const SHOWN_BYTES_MAX: usize = 16 * 1024;

/// The stripped state of a room of ours for a user whom `inviter` invites.
pub async fn shown_state_of(rooms: &Rooms, room_id: &RoomId, inviter: Option<&UserId>) -> Result<Vec<Box<RawValue>>> {
    let (room_id, inviter) = (room_id.to_owned(), inviter.map(ToOwned::to_owned));
    rooms
        .reading(move |_, read| {
            let room = known(read, room_id.as_str())?;
            let mut shown = shown_state(read, &room)?;
            if let Some(inviter) = inviter
                && let Some(event) = room.view(read).event("m.room.member", inviter.as_str())?
            {
                shown.extend(serde_json::from_slice::<Box<RawValue>>(event.to_federation()));
            }
            Ok(shown)
        })
        .await
}

/// The stripped state of a room, in the form servers exchange.
pub fn shown_state(get: &impl Get, room: &RoomRef) -> Result<Vec<Box<RawValue>>> {
    let view = room.view(get);
    let mut shown = Vec::with_capacity(SHOWN.len());
    for kind in SHOWN {
        let Some(event) = view.event(kind.name().unwrap_or_default(), "")? else { continue };
        if event.to_federation().len() <= SHOWN_BYTES_MAX {
            shown.extend(serde_json::from_slice::<Box<RawValue>>(event.to_federation()));
        }
    }
    Ok(shown)
}

/// The state shown to users outside a room.
pub(in crate::room) const SHOWN: [Kind; 8] = [
    Kind::CREATE,
    Kind::JOIN_RULES,
    Kind::NAME,
    Kind::CANONICAL_ALIAS,
    Kind::AVATAR,
    Kind::TOPIC,
    Kind::ENCRYPTION,
    Kind::TOMBSTONE,
];

/// Events of stripped state kept with an invite or a knock. The specification names nine kinds.
pub const STRIPPED_EVENTS_MAX: usize = 32;

/// The user's inviter, as the stripped state has it.
pub fn inviter(stripped: &[u8], user_id: &UserId) -> Option<String> {
    let stripped = read_stripped(stripped);
    let own = stripped.iter().rev().find(|event| event.kind == "m.room.member" && event.state_key == user_id.as_str());
    own.map(|event| event.sender.clone().into_owned())
}

//! Checks on our own events beside the authorisation rules.

use std::ops::ControlFlow;

use ruma::{OwnedEventId, ServerName};
use serde_json::Value;

use super::New;
use crate::matrix::acl::Acl;
use crate::matrix::{auth, json};
use crate::room::Rooms;
use crate::room::append::unread::CALL_INVITE;
use crate::room::blocked;
use crate::room::error::{Error, Result};
use crate::room::policies::Act;
use crate::room::state::RoomRef;
use crate::store::tables::room::event_row::Kind;
use crate::store::tables::room::relation::{self, Rel};
use crate::store::tables::room::{self, event};
use crate::store::tables::user;
use crate::store::{EventNum, Get, Read};

/// The most annotations of one event that are looked through for the sender's own.
const ANNOTATIONS_LOOKED_AT: usize = 1_000;

/// The checks a server makes on its own users' events beyond the authorisation rules.
pub fn check_beyond_rules(rooms: &Rooms, read: &Read, room: &RoomRef, new: &New) -> Result<()> {
    check_relation(read, room, new)?;
    if new.kind == "m.room.member" {
        blocked::check_entry(read, &room.row.id, new.content["membership"].as_str())?;
    }
    match new.kind.as_str() {
        "m.room.encryption" => rooms.check_policy_in(read, Act::EncryptRooms, &new.sender),
        "m.room.create" => Err(Error::bad("M_BAD_JSON", "the room has a create event already")),
        "m.room.power_levels" if room.version.creators_infinite => {
            let creators =
                auth::State::create(&room.view(read))?.map(|create| create.creators.clone()).unwrap_or_default();
            check_levels(&new.content, creators.iter().map(|creator| creator.as_str()))
        }
        "m.room.server_acl" if new.state_key.as_deref() == Some("") => check_acl(rooms.server(), &new.content),
        "m.room.redaction" => check_redaction(read, room, new),
        CALL_INVITE if new.state_key.is_none() && is_open_to_anybody(read, room)? => {
            Err(Error::Forbidden("In a public room nobody is called: everybody's phone would ring".to_owned()))
        }
        "m.room.canonical_alias" if new.state_key.as_deref() == Some("") => check_aliases(rooms, read, room, new),
        _ => Ok(()),
    }
}

/// What an event may relate to (client-server API, "Forming relationships", "Threading", "Avoiding duplicate
/// annotations"). An event that is not here may be older than our time in the room; nothing is known about it.
pub fn check_relation(read: &impl Get, room: &RoomRef, new: &New) -> Result<()> {
    let Some(relates) = new.content.get("m.relates_to") else { return Ok(()) };
    let text = |name: &str| relates.get(name).and_then(Value::as_str);
    let (Some(rel_type), Some(target)) = (text("rel_type"), text("event_id")) else { return Ok(()) };
    let Some(num) = event::num(read, target)? else { return Ok(()) };
    let row = event::row_of(read, num)?;
    if row.room != room.num {
        return Err(Error::bad("M_UNKNOWN", "an event relates to one of the same room"));
    }
    if rel_type == "m.thread" {
        let body = event::body(read, &row)?;
        if json::read::get_path(&body, &["content", "m.relates_to", "rel_type"]).is_some() {
            return Err(Error::bad("M_UNKNOWN", "a thread does not begin at an event that relates to another"));
        }
    }
    if rel_type == "m.annotation"
        && let Some(key) = text("key")
        && has_annotated(read, room, new, num, key)?
    {
        return Err(Error::bad("M_DUPLICATE_ANNOTATION", "the sender has annotated the event with that already"));
    }
    Ok(())
}

/// Whether anybody may come into a room who knows of it.
pub fn is_open_to_anybody(get: &impl Get, room: &RoomRef) -> Result<bool> {
    Ok(matches!(auth::State::join_rule(&room.view(get))?, Some(auth::JoinRule::Public)))
}

/// Whether an event that sets no state needs only [`check_relation`], by a few rows.
pub fn is_plain(new: &New) -> bool {
    let of_state = ["m.room.create", "m.room.power_levels", "m.room.server_acl", "m.room.canonical_alias"];
    let is_annotation = new.content.pointer("/m.relates_to/rel_type").is_some_and(|rel| rel == "m.annotation");
    new.state_key.is_none()
        && new.redacts.is_none()
        && !["m.room.redaction", CALL_INVITE].contains(&new.kind.as_str())
        && !of_state.contains(&new.kind.as_str())
        && !is_annotation
}

/// Whether the sender's annotation stands among the newest of an event.
fn has_annotated(read: &impl Get, room: &RoomRef, new: &New, target: EventNum, key: &str) -> Result<bool> {
    let Some(sender) = user::num(read, new.sender.as_str())? else { return Ok(false) };
    let (mut found, mut looked_at) = (false, 0);
    relation::list_newest(read, room.num, target, Rel::ANNOTATION, i64::MAX, &mut |_, other| {
        looked_at += 1;
        let row = event::row_of(read, other)?;
        if row.sender == sender {
            let body = event::body(read, &row)?;
            let its_key = json::read::get_path(&body, &["content", "m.relates_to", "key"]).and_then(json::read::text);
            found = its_key.as_deref() == Some(key)
                && json::read::get_text(&body, "type").as_deref() == Some(new.kind.as_str());
        }
        Ok(match found || looked_at == ANNOTATIONS_LOOKED_AT {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        })
    })?;
    Ok(found)
}

/// An access control list that denies this server would end the room for everybody here: nothing they send is taken any
/// more, not even another list.
pub fn check_acl(server: &ServerName, content: &Value) -> Result<()> {
    match Acl::parse(&content.to_string()).allows(server.as_str()) {
        true => Ok(()),
        false => Err(Error::bad(
            "M_INVALID_PARAM",
            format!(
                "this access control list denies {server}, the server it is sent from: nobody here could take it back"
            ),
        )),
    }
}

/// A local alias in a room's canonical alias event must lead to that room.
fn check_aliases(rooms: &Rooms, read: &Read, room: &RoomRef, new: &New) -> Result<()> {
    let old = room.view(read).event("m.room.canonical_alias", "")?;
    let old: Value = old.and_then(|event| serde_json::from_str(event.content()).ok()).unwrap_or_default();
    let had: Vec<_> = alias_names(&old).collect();
    for name in alias_names(&new.content).filter(|name| !had.contains(name)) {
        let bad = |why: &str| Error::bad("M_BAD_ALIAS", format!("{name} {why}"));
        let id = <&ruma::RoomAliasId>::try_from(name)
            .map_err(|_| Error::bad("M_INVALID_PARAM", format!("{name} is not a room alias")))?;
        if id.server_name() == rooms.server() {
            match room::directory::alias(read, name)? {
                Some((leads_to, _)) if leads_to == room.num => {}
                _ => return Err(bad("is not an alias of this room")),
            }
        }
    }
    Ok(())
}

fn alias_names(content: &Value) -> impl Iterator<Item = &str> {
    let alternatives = content.get("alt_aliases").and_then(Value::as_array).into_iter().flatten();
    // An empty alias is none.
    let main = content.get("alias").filter(|alias| *alias != "");
    main.into_iter().chain(alternatives).filter_map(Value::as_str)
}

/// Creators who stand above all levels must not be named among the users of the power levels.
pub fn check_levels<'a>(levels: &Value, mut creators: impl Iterator<Item = &'a str>) -> Result<()> {
    let users = levels.get("users").and_then(Value::as_object);
    match users.and_then(|users| creators.find(|creator| users.contains_key(*creator))) {
        Some(creator) => {
            Err(Error::bad("M_BAD_JSON", format!("{creator} is a creator of the room and cannot have a power level")))
        }
        None => Ok(()),
    }
}

/// A user may redact own events, and with the `redact` power level all events (client-server API, "Redactions"), those too
/// that have not come yet. An access control list cannot be redacted: what is left of it denies every server.
fn check_redaction(read: &Read, room: &RoomRef, new: &New) -> Result<()> {
    let in_content = new.content.get("redacts").and_then(Value::as_str);
    let target =
        new.redacts.as_ref().map(|id| id.as_str()).or(in_content.filter(|_| room.version.redacts_in_content()));
    let Some(target) = target else { return Ok(()) };
    let powerful =
        room.view(read).with_powers(|powers| powers.user(&new.sender) >= powers.named(auth::Named::Redact))?;
    let Some(target) = event::num(read, target)? else {
        return if powerful == Some(true) { Ok(()) } else { Err(Error::NotFound) };
    };
    let row = event::row_of(read, target)?;
    if row.room != room.num {
        return Err(Error::bad("M_INVALID_PARAM", "the event belongs to another room"));
    }
    if row.kind == Kind::SERVER_ACL {
        return Err(Error::forbidden("a redacted access control list would deny every server: send another one"));
    }
    let own = user::num(read, new.sender.as_str())? == Some(row.sender);
    match own || powerful == Some(true) {
        true => Ok(()),
        false => Err(Error::forbidden("the sender may not redact that event")),
    }
}

/// The state event with the same content and sender that the room has already: sending it again changes nothing.
pub fn unchanged(read: &Read, room: &RoomRef, new: &New) -> Result<Option<OwnedEventId>> {
    let Some(state_key) = &new.state_key else { return Ok(None) };
    let Some(event) = room.view(read).event(&new.kind, state_key)? else { return Ok(None) };
    let content = json::canonical_value(&new.content, room.version.json_mode())?;
    let same = event.sender() == new.sender && event.content().as_bytes() == content;
    Ok(same.then(|| event.id().to_owned()))
}

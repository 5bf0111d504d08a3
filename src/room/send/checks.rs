//! What an event of ours must satisfy beside the authorisation rules.

use ruma::OwnedEventId;
use serde_json::Value;

use super::New;
use crate::matrix::{auth, json};
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::room::state::RoomRef;
use crate::store::Read;
use crate::store::tables::room::{self, event};
use crate::store::tables::user;

impl Rooms {
    /// What a server asks of its own people beyond the authorisation rules.
    pub fn check_beyond_rules(&self, read: &Read, room: &RoomRef, new: &New) -> Result<()> {
        match new.kind.as_str() {
            "m.room.create" => Err(Error::bad("M_BAD_JSON", "the room has been created")),
            "m.room.power_levels" if room.version.creators_infinite => {
                let creators =
                    auth::State::create(&room.view(read))?.map(|create| create.creators.clone()).unwrap_or_default();
                check_levels(&new.content, creators.iter().map(|creator| creator.as_str()))
            }
            "m.room.redaction" => check_redaction(read, room, new),
            "m.room.canonical_alias" if new.state_key.as_deref() == Some("") => self.check_aliases(read, room, new),
            _ => Ok(()),
        }
    }

    /// An alias of ours that a room calls its own must lead to it.
    fn check_aliases(&self, read: &Read, room: &RoomRef, new: &New) -> Result<()> {
        let old = room.view(read).event("m.room.canonical_alias", "")?;
        let old: Value = old.and_then(|event| serde_json::from_str(event.content()).ok()).unwrap_or_default();
        let had: Vec<_> = alias_names(&old).collect();
        for name in alias_names(&new.content).filter(|name| !had.contains(name)) {
            let bad = |why: &str| Error::bad("M_BAD_ALIAS", format!("{name} {why}"));
            let id = <&ruma::RoomAliasId>::try_from(name)
                .map_err(|_| Error::bad("M_INVALID_PARAM", format!("{name} is no room alias")))?;
            if id.server_name() == self.server() {
                match room::directory::alias(read, name)? {
                    Some((leads_to, _)) if leads_to == room.num => {}
                    _ => return Err(bad("does not lead to this room")),
                }
            }
        }
        Ok(())
    }
}

fn alias_names(content: &Value) -> impl Iterator<Item = &str> {
    let alternatives = content.get("alt_aliases").and_then(Value::as_array).into_iter().flatten();
    content.get("alias").into_iter().chain(alternatives).filter_map(Value::as_str)
}

/// The creators of a room in which they stand above all levels are not named among them.
pub fn check_levels<'a>(levels: &Value, mut creators: impl Iterator<Item = &'a str>) -> Result<()> {
    let users = levels.get("users").and_then(Value::as_object);
    match users.and_then(|users| creators.find(|creator| users.contains_key(*creator))) {
        Some(creator) => Err(Error::bad("M_BAD_JSON", format!("{creator} created the room and has no power level"))),
        None => Ok(()),
    }
}

/// One's own events may be redacted, and with the power to redact everyone's (client-server API, "Redactions").
fn check_redaction(read: &Read, room: &RoomRef, new: &New) -> Result<()> {
    let in_content = new.content.get("redacts").and_then(Value::as_str);
    let target =
        new.redacts.as_ref().map(|id| id.as_str()).or(in_content.filter(|_| room.version.redacts_in_content()));
    let Some(target) = target else { return Ok(()) };
    let target = event::num(read, target)?.ok_or(Error::NotFound)?;
    let row = event::row_of(read, target)?;
    if row.room != room.num {
        return Err(Error::bad("M_INVALID_PARAM", "that event is of another room"));
    }
    let powerful =
        room.view(read).with_powers(|powers| powers.user(&new.sender) >= powers.named(auth::Named::Redact))?;
    let own = user::num(read, new.sender.as_str())? == Some(row.sender);
    match own || powerful == Some(true) {
        true => Ok(()),
        false => Err(Error::forbidden("the sender may not redact that event")),
    }
}

/// The state event that says just this already, sent by the same user: sending it again changes nothing.
pub fn unchanged(read: &Read, room: &RoomRef, new: &New) -> Result<Option<OwnedEventId>> {
    let Some(state_key) = &new.state_key else { return Ok(None) };
    let Some(event) = room.view(read).event(&new.kind, state_key)? else { return Ok(None) };
    let content = json::canonical_value(&new.content, room.version.json_mode())?;
    let same = event.sender() == new.sender && event.content().as_bytes() == content;
    Ok(same.then(|| event.id().to_owned()))
}

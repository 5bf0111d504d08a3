//! Events as application services are told of them: as apps see them, with the room's id; an invite with what is shown of
//! the room to whom it is for.

use ruma::UserId;
use serde_json::value::RawValue;

use super::event_json::{self, Detail, Format};
use crate::matrix::json;
use crate::room::Rooms;
use crate::room::state::known_num;
use crate::room::state::stripped::{inviter, shown_state};
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::{self, event, user_room};
use crate::store::tables::user;
use crate::store::{self, EventNum, Read, RoomNum, UserNum};

impl Rooms {
    /// Writes an event; false when it is gone, or was refused. Bounded by the event.
    pub fn told_event(&self, get: &Read, num: EventNum, out: &mut Vec<u8>) -> store::Result<bool> {
        let Some(row) = event::row(get, num)?.filter(|row| !row.flags.rejected && !row.flags.soft_failed) else {
            return Ok(false);
        };
        let room_id = Some(room::get_of(get, row.room)?.id);
        let format = Format { now_ms: self.0.parts.clock.now_ms(), room_id, ..Format::default() };
        event_json::write(get, num, &row, &format, Detail::Timeline, out)?;
        if let Some((Membership::Invite | Membership::Knock, _)) = row.member {
            self.add_state(get, row.room, out)?;
        }
        Ok(true)
    }

    /// Adds stripped state to the `unsigned` at the end of an event.
    fn add_state(&self, get: &Read, num: RoomNum, out: &mut Vec<u8>) -> store::Result<()> {
        let shown = match known_num(get, num) {
            Ok(known) => match shown_state(get, &known) {
                Ok(shown) => shown,
                Err(crate::room::Error::Store(failed)) => return Err(failed),
                Err(_) => return Ok(()),
            },
            _ => return Ok(()),
        };
        if out.ends_with(b"}}") {
            out.truncate(out.len() - 2);
            out.extend_from_slice(b",\"invite_room_state\":[");
            out.extend_from_slice(stripped(&shown).as_bytes());
            out.extend_from_slice(b"]}}");
        }
        Ok(())
    }

    /// Writes the event of an invite to a room of other servers, of which only stripped state is known; false when there is
    /// none any more.
    pub fn told_invite(&self, get: &Read, user: UserNum, num: RoomNum, out: &mut Vec<u8>) -> store::Result<bool> {
        let is_invite = |mine: &user_room::Mine| mine.membership == Membership::Invite && mine.outside;
        if !user_room::mine(get, user, num)?.as_ref().is_some_and(is_invite) {
            return Ok(false);
        }
        let (user_id, room_id) = (user::id_of(get, user)?, room::get_of(get, num)?.id);
        let state = user_room::stripped(get, user, num)?.unwrap_or_default();
        let events: Vec<&RawValue> = serde_json::from_slice(&state).unwrap_or_default();
        let Some((own, shown)) = events.split_last() else { return Ok(false) };
        let sender = <&UserId>::try_from(user_id.as_str()).ok().and_then(|id| inviter(&state, id));
        let Some(sender) = sender else { return Ok(false) };
        let field =
            |name: &str| json::read::get(own.get().as_bytes(), name).and_then(|text| std::str::from_utf8(text).ok());
        let content = field("content").unwrap_or("{\"membership\":\"invite\"}");
        let (id, ts) = (field("event_id").unwrap_or("\"$invite\""), field("origin_server_ts").unwrap_or("0"));
        let shown: Vec<&str> = shown.iter().map(|event| event.get()).collect();
        let [sender, user_id, room_id] = [sender, user_id, room_id].map(|text| serde_json::json!(text));
        out.extend_from_slice(
            format!(
                "{{\"content\":{content},\"event_id\":{id},\"origin_server_ts\":{ts},\"room_id\":{room_id},\"sender\":{sender},\
                 \"state_key\":{user_id},\"type\":\"m.room.member\",\"unsigned\":{{\"invite_room_state\":[{}]}}}}",
                shown.join(",")
            )
            .as_bytes(),
        );
        Ok(true)
    }

    /// The serial of the newest typing, and the rooms where it changed after another one.
    pub fn typing_since(&self, since: u64) -> (u64, Option<Vec<RoomNum>>) {
        let typing = &self.0.typing;
        // The serial first: what comes meanwhile is told again.
        let serial = typing.serial();
        (serial, (since <= serial).then(|| typing.rooms_changed(since)).flatten())
    }

    /// Who types in a room.
    pub fn typists(&self, num: RoomNum) -> Vec<UserNum> {
        self.0.typing.changed(num, 0).unwrap_or_default()
    }
}

/// The four fields of stripped state, of each event.
fn stripped(events: &[Box<RawValue>]) -> String {
    let mut out = String::new();
    for event in events {
        let text = event.get().as_bytes();
        let mut fields = Vec::new();
        for name in ["content", "sender", "state_key", "type"] {
            let value = json::read::get(text, name).and_then(|value| std::str::from_utf8(value).ok());
            fields.extend(value.map(|value| format!("\"{name}\":{value}")));
        }
        if !out.is_empty() {
            out.push(',');
        }
        out.push_str(&format!("{{{}}}", fields.join(",")));
    }
    out
}

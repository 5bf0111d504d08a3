//! What a redacted event said, for those who moderate the room (MSC2815).

use ruma::{EventId, RoomId};

use super::event_json::{self, Detail};
use super::{Reader, visiting};
use crate::matrix::auth::Named;
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::room::state::{StateView, known_num};
use crate::store::tables::room::redacted;
use crate::store::tables::user;

impl Rooms {
    /// One event with what it said before it was redacted (MSC2815); none when that is not kept (any more). `is_admin`: of this
    /// server. `NotFound` as for [`Rooms::event`]; `Forbidden` when the reader may not redact the events of others.
    pub async fn unredacted(
        &self,
        reader: &Reader,
        room_id: &RoomId,
        event_id: &EventId,
        is_admin: bool,
    ) -> Result<Option<Vec<u8>>> {
        let (event_id, user_id) = (event_id.to_owned(), reader.user_id.clone());
        let since_ms = match self.redacted_kept_ms() {
            0 => u64::MAX,
            kept_ms => self.0.parts.clock.settled_ms().saturating_sub(kept_ms),
        };
        let found = visiting(self, reader, room_id, move |visit| {
            let (num, row) = visit.visible(event_id.as_str())?;
            let read = &*visit.read;
            let version = known_num(read, row.room)?.version;
            let may = StateView::present(read, row.room, version)
                .with_powers(|powers| powers.user(&user_id) >= powers.named(Named::Redact))?;
            if !is_admin && may != Some(true) {
                return Ok(Err("You need the power to redact the events of others in this room"));
            }
            let body = match row.flags.redacted {
                false => event_json::readable_body(read, &row, &visit.format)?,
                true if user::is_erased(read, row.sender)? => return Ok(Ok(None)),
                true => match redacted::get(read, num, since_ms)? {
                    Some(body) => body,
                    None => return Ok(Ok(None)),
                },
            };
            let mut out = Vec::new();
            event_json::write_with(read, (num, &row, body), &visit.format, Detail::Timeline, &mut out)?;
            Ok(Ok(Some(out)))
        });
        match found.await {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(why)) => Err(Error::forbidden(why)),
            Err(Error::Forbidden(_)) => Err(Error::NotFound),
            Err(failed) => Err(failed),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::room::state::sweep;
    use crate::room::testing::{House, house, is_forbidden, sending};

    const DAY: Duration = Duration::from_secs(24 * 3600);

    async fn look(
        house: &House,
        who: &ruma::UserId,
        room: &RoomId,
        id: &EventId,
        is_admin: bool,
    ) -> Result<Option<Value>> {
        let reader =
            Reader { user: house.user_num(who), user_id: who.to_owned(), device: "D".to_owned(), sees_all: false };
        let found = house.rooms.unredacted(&reader, room, id, is_admin).await?;
        Ok(found.map(|json| serde_json::from_slice(&json).unwrap()))
    }

    async fn redact(house: &House, who: &ruma::UserId, room: &RoomId, id: &EventId) {
        let redaction =
            crate::room::Sending { redacts: Some(id.to_owned()), ..sending("m.room.redaction", None, json!({})) };
        house.rooms.send(who, room, redaction).await.unwrap();
    }

    #[tokio::test]
    async fn moderators_see_for_a_while_what_was_deleted() {
        let house = house();
        house.rooms.set_redacted_kept(Some(7));
        let (anna, ben, eve) = (house.user("anna").await, house.user("ben").await, house.user("eve").await);
        let room = house.public_room(&anna).await;
        house.join(&ben, &room).await.unwrap();
        let said = house.say(&ben, &room, "rude").await;
        let shown = look(&house, &anna, &room, &said, false).await.unwrap().unwrap();
        assert_eq!(shown["content"]["body"], "rude", "it is not redacted yet");
        redact(&house, &ben, &room, &said).await;
        let shown = look(&house, &anna, &room, &said, false).await.unwrap().unwrap();
        assert_eq!((&shown["content"]["body"], &shown["event_id"]), (&json!("rude"), &json!(said)));
        assert_eq!(shown["unsigned"]["redacted_because"]["type"], "m.room.redaction");
        assert!(is_forbidden(look(&house, &ben, &room, &said, false).await), "not who wrote it");
        assert!(look(&house, &ben, &room, &said, true).await.unwrap().is_some(), "but an administrator in the room");
        assert!(matches!(look(&house, &eve, &room, &said, true).await, Err(Error::NotFound)), "nor where one is not");
        house.clock.advance(7 * DAY);
        assert_eq!(look(&house, &anna, &room, &said, false).await.unwrap(), None);
        sweep::forget_redacted(&house.rooms).await.unwrap();
        assert!(!redacted::is_any(&house.read(), u64::MAX).unwrap());

        // Not where the owner keeps nothing, and of what is kept nothing stays.
        let said = house.say(&ben, &room, "rude again").await;
        redact(&house, &ben, &room, &said).await;
        house.rooms.set_redacted_kept(None);
        assert_eq!(look(&house, &anna, &room, &said, false).await.unwrap(), None);
        sweep::forget_redacted(&house.rooms).await.unwrap();
        assert!(!redacted::is_any(&house.read(), u64::MAX).unwrap());
        let said = house.say(&ben, &room, "and again").await;
        redact(&house, &ben, &room, &said).await;
        assert!(!redacted::is_any(&house.read(), u64::MAX).unwrap());
    }
}

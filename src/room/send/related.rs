//! Redactions of what relates to a redacted event (MSC3912): the reactions to a message, its edits, the answers of a thread.

use std::ops::ControlFlow;

use ruma::{EventId, OwnedEventId, RoomId, UserId};
use serde_json::Value;
use serde_json::value::RawValue;

use super::{New, send_new};
use crate::base;
use crate::matrix::json;
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::store::tables::room::event;
use crate::store::tables::room::relation::{self, Rel};
use crate::store::{EventNum, Read};

/// The most events redacted with one: each redaction is an event of its own, and a few milliseconds.
const RELATED_MAX: usize = 1_000;
/// Events that are looked up together.
const BATCH: usize = 64;
/// Rows looked at for them in one read: others may relate to an event without end.
const LOOKED_AT: usize = 1_000;

impl Rooms {
    /// Redacts the events that relate to one in any of these ways (`*`: in any way at all), as far as the sender may; one
    /// after the other, at most [`RELATED_MAX`]. Goes on when the app leaves.
    pub async fn redact_related(
        &self,
        sender: &UserId,
        room_id: &RoomId,
        target: &EventId,
        rel_types: Vec<String>,
        content: Box<RawValue>,
    ) -> Result<()> {
        let content: Value = serde_json::from_str(content.get()).unwrap_or_default();
        let (rooms, sender, room_id) = (self.clone(), sender.to_owned(), room_id.to_owned());
        let target = target.to_owned();
        base::unbroken(async move {
            let (mut after, mut left) = (None, RELATED_MAX);
            loop {
                let (target, types) = (target.clone(), rel_types.clone());
                let found = rooms.reading(move |_, read| next_related(read, &target, &types, after)).await?;
                for id in found.events.iter().take(left) {
                    let new = New {
                        kind: "m.room.redaction".to_owned(),
                        state_key: None,
                        sender: sender.clone(),
                        content: content.clone(),
                        redacts: Some(id.clone()),
                        sticky_ms: None,
                        ts: None,
                    };
                    match send_new(&rooms, &room_id, new, None).await {
                        Err(failed @ (Error::Refused(_) | Error::Store(_))) => return Err(failed),
                        Ok(_) => {}
                        // Of another user.
                        Err(refused) => tracing::debug!(%id, %refused, "a related event was not redacted"),
                    }
                }
                left = left.saturating_sub(found.events.len());
                match found.next {
                    Some(next) if left > 0 => after = Some(next),
                    _ => return Ok(()),
                }
            }
        })
        .await
    }
}

/// Events that relate to one, and behind which place there may be more.
#[derive(Debug, Default)]
struct Found {
    events: Vec<OwnedEventId>,
    next: Option<(Rel, i64)>,
}

/// The next events behind a place that relate to one in a wanted way and are not redacted. Looks at [`LOOKED_AT`] rows at most.
fn next_related(read: &Read, target: &EventId, rel_types: &[String], after: Option<(Rel, i64)>) -> Result<Found> {
    let num = event::num(read, target.as_str())?.ok_or(Error::NotFound)?;
    let room = event::row_of(read, num)?.room;
    let is_any = rel_types.iter().any(|rel| rel == "*");
    let (mut found, mut looked_at) = (Found::default(), 0);
    relation::list_behind(read, room, num, after, &mut |rel, order, other| {
        if (is_any || rel_types.iter().any(|wanted| Rel::of(wanted) == rel))
            && let Some(id) = wanted_id(read, other, rel, rel_types, is_any)?
        {
            found.events.push(id);
        }
        looked_at += 1;
        if found.events.len() == BATCH || looked_at == LOOKED_AT {
            found.next = Some((rel, order));
            return Ok(ControlFlow::Break(()));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

fn wanted_id(
    read: &Read,
    num: EventNum,
    rel: Rel,
    rel_types: &[String],
    is_any: bool,
) -> crate::store::Result<Option<OwnedEventId>> {
    let row = event::row_of(read, num)?;
    // The name of a relation without a code of its own stands in the event.
    if rel == Rel::OTHER && !is_any {
        let body = event::shown(read, &row)?;
        let name = json::read::get_path(&body, &["content", "m.relates_to", "rel_type"]).and_then(json::read::text);
        if !name.is_some_and(|name| rel_types.iter().any(|wanted| *wanted == name)) {
            return Ok(None);
        }
    }
    Ok(row.id.text().try_into().ok().filter(|_| !row.flags.redacted))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::room::testing::house;

    /// Each part of the relations was looked for from the first on.
    #[tokio::test]
    async fn relations_are_read_a_part_at_a_time_each_once() {
        let house = house();
        let anna = house.user("anna").await;
        let room = house.public_room(&anna).await;
        let target = house.say(&anna, &room, "much liked").await;
        let react = async |key: usize| {
            let content =
                json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": target, "key": key.to_string() } });
            house.send(&anna, &room, "m.reaction", None, content).await.unwrap()
        };
        let mut sent = Vec::new();
        for number in 0..BATCH + 3 {
            sent.push(react(number).await);
        }
        let types = ["m.annotation".to_owned()];
        let parts = || {
            let (mut parts, mut after) = (Vec::new(), None);
            loop {
                let found = next_related(&house.read(), &target, &types, after).unwrap();
                parts.push(found.events);
                match found.next {
                    Some(_) => after = found.next,
                    None => return parts,
                }
            }
        };
        assert_eq!(parts().iter().map(Vec::len).collect::<Vec<_>>(), [BATCH, 3]);
        assert_eq!(parts().concat(), sent);
        let content = RawValue::from_string("{}".to_owned()).unwrap();
        house.rooms.redact_related(&anna, &room, &target, types.to_vec(), content).await.unwrap();
        assert_eq!(parts().concat(), [] as [OwnedEventId; 0]);
    }
}

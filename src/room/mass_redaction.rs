//! Redacts all events of a user who was kicked or banned so (MSC4293): from the kick back to where the user's stay began.
//!
//! A step looks at some rows of the room's timeline, and redacts what it found in one short write under the room's lock. What
//! is left is a row, so that the next start goes on from there.

use std::ops::ControlFlow;
use std::time::Duration;

use tokio::sync::Notify;

use crate::base::Worker;
use crate::room::Rooms;
use crate::room::append::redact::strike;
use crate::room::error::Result;
use crate::room::state::event::load_row;
use crate::room::state::join_conditions::local_joined;
use crate::room::state::known_num;
use crate::store::tables::room::event_row::{Kind, Membership};
use crate::store::tables::room::mass_redaction::{self, MassRedaction};
use crate::store::tables::room::{self, event, timeline};
use crate::store::{Change, EventNum, Follower, Position, Read};

/// Rows looked at in a step: a few milliseconds on a small board.
const ROWS_A_STEP: usize = 2_000;
/// Events redacted in a write: two rows each, and for each a look at the unread counts of the local members.
const EVENTS_A_STEP: usize = 20;
const PAUSE: Duration = Duration::from_millis(20);
/// What stays, whoever sent it: what is left of a redacted access control list denies every server, apps take a room whose encryption
/// names no algorithm for one that is not encrypted, and a room's first event says which type it has and who may come in from elsewhere.
const KEPT: [Kind; 3] = [Kind::SERVER_ACL, Kind::ENCRYPTION, Kind::CREATE];
/// After a failed step.
const FAILED_PAUSE: Duration = Duration::from_secs(60);

/// Wakes the worker when a commit noted something for it.
#[derive(Default)]
pub struct Waiting(Notify);

impl Follower for Waiting {
    fn committed(&self, changes: &[&Change], _: Position) {
        if changes.iter().any(|change| change.redacts) {
            self.0.notify_one();
        }
    }

    fn lost(&self, _: Position) {
        self.0.notify_one();
    }
}

/// What a look found.
struct Step {
    task: MassRedaction,
    events: Vec<EventNum>,
    /// Where the next look begins; none at the end.
    next: Option<i64>,
}

impl Rooms {
    /// Redacts as long as the server runs. A unit of the worker is an event that was redacted.
    pub async fn redact_noted(&self, worker: &Worker) {
        loop {
            worker.works_on("redacting the events of somebody who was removed");
            let pause = match step(self).await {
                Ok(Some(redacted)) => {
                    worker.done(redacted);
                    PAUSE
                }
                Ok(None) => {
                    worker.idle();
                    // What was noted since the look has left a permit here.
                    self.0.redactions.0.notified().await;
                    continue;
                }
                Err(failed) => {
                    tracing::warn!(%failed, "the events of somebody who was removed could not be redacted; this is tried again");
                    worker.failed(failed);
                    FAILED_PAUSE
                }
            };
            self.0.parts.clock.sleep(pause).await;
        }
    }
}

/// One step; answers how many events it redacted, or none when there is nothing to do.
async fn step(rooms: &Rooms) -> Result<Option<u64>> {
    let Some(Step { task, events, next }) = rooms.reading(|_, read| look(read)).await? else { return Ok(None) };
    let guard = rooms.lock(task.room).await;
    let here = rooms.here();
    let work = move |w: &mut crate::store::Write<'_>| {
        let mut redacted = 0;
        let version = known_num(w, task.room)?.version;
        for num in events {
            let row = event::row_of(w, num)?;
            if !row.flags.redacted {
                let event = load_row(w, version, &row)?;
                strike(w, &here, &event, num, row, task.by)?;
                redacted += 1;
            }
        }
        match next {
            Some(before) => mass_redaction::put(w, &MassRedaction { before, ..task })?,
            None => mass_redaction::remove(w, &task)?,
        }
        if redacted > 0 {
            // State may read otherwise from now on, and less is unread.
            let users = local_joined(w, task.room)?;
            w.announce(Change { users, room: Some(task.room), ..Change::default() });
        }
        Ok(redacted)
    };
    let redacted = rooms.write(work).await?;
    drop(guard);
    Ok(Some(redacted))
}

fn look(read: &Read) -> Result<Option<Step>> {
    let Some(task) = mass_redaction::first(read)? else { return Ok(None) };
    let mut step = Step { task, events: Vec::new(), next: None };
    if room::get(read, task.room)?.is_none() {
        return Ok(Some(step));
    }
    let mut looked_at = 0;
    timeline::backward(read, task.room, i64::MIN, task.before - 1, &mut |order, num| {
        if looked_at == ROWS_A_STEP || step.events.len() == EVENTS_A_STEP {
            // Behind the place looked at last.
            step.next = Some(order + 1);
            return Ok(ControlFlow::Break(()));
        }
        looked_at += 1;
        let row = event::row_of(read, num)?;
        // Before this the user was not in the room: what they wrote in an earlier stay is not meant.
        if row.member.is_some_and(|(membership, user)| user == task.user && membership != Membership::Join) {
            return Ok(ControlFlow::Break(()));
        }
        if row.sender == task.user && !row.flags.redacted && !KEPT.contains(&row.kind) {
            step.events.push(num);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(Some(step))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::room::Reader;
    use crate::room::testing::house;

    #[tokio::test]
    async fn a_ban_takes_the_events_of_the_last_stay_along() {
        let house = house();
        let (anna, bad) = (house.user("anna").await, house.user("bad").await);
        let room = house.public_room(&anna).await;
        house.join(&bad, &room).await.unwrap();
        let earlier = house.say(&bad, &room, "an earlier stay").await;
        house.rooms.leave(&bad, &room, None).await.unwrap();
        house.join(&bad, &room).await.unwrap();
        let mut spam = Vec::new();
        for number in 0..EVENTS_A_STEP + 10 {
            spam.push(house.say(&bad, &room, &format!("spam {number}")).await);
        }
        let other = house.say(&anna, &room, "stop").await;
        let reader =
            Reader { user: house.user_num(&anna), user_id: anna.clone(), device: "D".to_owned(), sees_all: false };
        let shown = async |id: &ruma::EventId| -> Value {
            serde_json::from_slice(&house.rooms.event(&reader, &room, id).await.unwrap()).unwrap()
        };
        assert_eq!(step(&house.rooms).await.unwrap(), None);
        let flag = Some(super::super::append::mass_redaction::FLAGS[1]);
        house.rooms.ban(&anna, &room, &bad, Some("spam".to_owned()), flag).await.unwrap();
        let mut steps = Vec::new();
        while let Some(redacted) = step(&house.rooms).await.unwrap() {
            steps.push(redacted);
        }
        assert_eq!(steps, [EVENTS_A_STEP as u64, 11], "the join is one of them");
        for id in [&spam[0], &spam[EVENTS_A_STEP + 9]] {
            let event = shown(id).await;
            assert_eq!(event["content"], json!({}));
            let because = &event["unsigned"]["redacted_because"];
            assert_eq!((&because["type"], &because["content"]["reason"]), (&json!("m.room.member"), &json!("spam")));
        }
        assert_eq!(shown(&earlier).await["content"]["body"], "an earlier stay");
        assert_eq!(shown(&other).await["content"]["body"], "stop");
    }

    #[tokio::test]
    async fn what_keeps_a_room_safe_stays() {
        let house = house();
        let (anna, bad) = (house.user("anna").await, house.user("bad").await);
        let room = house.public_room(&anna).await;
        house.join(&bad, &room).await.unwrap();
        let levels = json!({ "users": { &bad: 90 }, "state_default": 50 });
        house.send(&anna, &room, "m.room.power_levels", Some(""), levels).await.unwrap();
        let encryption = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
        house.send(&bad, &room, "m.room.encryption", Some(""), encryption.clone()).await.unwrap();
        house.send(&bad, &room, "m.room.name", Some(""), json!({ "name": "spam" })).await.unwrap();
        house.rooms.ban(&anna, &room, &bad, None, Some("redact_events")).await.unwrap();
        while step(&house.rooms).await.unwrap().is_some() {}
        let read = house.read();
        let num = house.room_num(&room);
        let content = |kind: &str| -> Value {
            let known = known_num(&read, num).unwrap();
            let event = known.view(&read).event(kind, "").unwrap().unwrap();
            serde_json::from_str(event.content()).unwrap()
        };
        assert_eq!(content("m.room.encryption"), encryption);
        assert_eq!(content("m.room.name"), json!({}));
    }

    #[tokio::test]
    async fn only_who_may_redact_takes_events_along() {
        let house = house();
        let (anna, mild, bad) = (house.user("anna").await, house.user("mild").await, house.user("bad").await);
        let room = house.public_room(&anna).await;
        house.join(&mild, &room).await.unwrap();
        house.join(&bad, &room).await.unwrap();
        let levels = json!({ "users": { &mild: 50 }, "redact": 75, "ban": 50, "kick": 50 });
        house.send(&anna, &room, "m.room.power_levels", Some(""), levels).await.unwrap();
        house.say(&bad, &room, "spam").await;
        house.rooms.kick(&mild, &room, &bad, None, Some("redact_events")).await.unwrap();
        assert_eq!(step(&house.rooms).await.unwrap(), None);
        // A leave of one's own redacts nothing.
        house.join(&bad, &room).await.unwrap();
        let leave = json!({ "membership": "leave", "redact_events": true });
        house.send(&bad, &room, "m.room.member", Some(bad.as_str()), leave).await.unwrap();
        assert_eq!(step(&house.rooms).await.unwrap(), None);
    }
}

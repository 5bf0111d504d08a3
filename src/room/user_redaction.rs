//! Redacts what one user said, in some rooms or all, as an administrator asked for: each by an event of its own that other servers
//! take too, unlike what a ban takes along (`mass_redaction.rs`).
//!
//! A step looks at some rows of a room's timeline and sends some redactions; how far it is stands in the task's row, so that the next
//! start goes on from there. What was redacted twice by that is redacted once.

use std::ops::ControlFlow;
use std::time::Duration;

use ruma::{EventId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};
use serde_json::json;
use serde_json::value::to_raw_value;
use tokio::sync::Notify;

use super::error::{Error, Result};
use super::state::event::load_row;
use super::state::known_num;
use super::{Rooms, Sending};
use crate::base::{Worker, bounded};
use crate::store::tables::room::event_row::{Kind, Membership};
use crate::store::tables::room::user_redaction as row;
use crate::store::tables::room::user_redaction::UserRedaction;
use crate::store::tables::room::{self, event, timeline};
use crate::store::tables::user;
use crate::store::{Read, RoomNum};

/// Tasks that are kept, done or not: the oldest that are done go first.
const TASKS_MAX: usize = 64;
/// How long one says what came of it.
const KEPT_MS: u64 = 7 * 24 * 3600 * 1000;
/// The rooms that one may name, the bytes of its reason, and the events that it says were not redacted: 200 KiB if all ids are as
/// long as they can be, some 40 in practice.
const ROOMS_MAX: usize = 500;
const REASON_BYTES_MAX: usize = 1024;
const FAILED_MAX: usize = 100;
const WHY_CHARS: usize = 100;
/// Events of a room without a limit, as Synapse has it.
const MOST: u32 = 1_000;
/// Rows looked at in a step, rooms passed over, and events redacted, each with a commit.
const ROWS_A_STEP: usize = 2_000;
const ROOMS_A_STEP: usize = 200;
const EVENTS_A_STEP: usize = 10;
const PAUSE: Duration = Duration::from_millis(20);
const FAILED_PAUSE: Duration = Duration::from_secs(60);
/// What is redacted, as Synapse does.
const KINDS: [Kind; 3] = [Kind::MEMBER, Kind::MESSAGE, Kind::ENCRYPTED];

/// What an administrator asks to be redacted.
#[derive(Debug, Clone, Default)]
pub struct RedactUser {
    /// Only in these rooms; in all, when there is none.
    pub rooms: Vec<OwnedRoomId>,
    pub reason: Option<String>,
    /// Of each room, the newest.
    pub most: Option<u32>,
    /// The administrator sends the redactions; otherwise a user of this server does so.
    pub as_admin: bool,
    pub before_ms: Option<u64>,
    pub after_ms: Option<u64>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedactStatus {
    pub is_done: bool,
    pub failed: Vec<(String, String)>,
}

/// Wakes the worker.
#[derive(Default)]
pub(super) struct Asked(Notify);

impl Rooms {
    /// Begins to redact what a user said. Answers the id under which [`Rooms::redact_status`] knows it.
    pub async fn redact_user(&self, user: &UserId, by: &UserId, wanted: RedactUser) -> Result<String> {
        if wanted.rooms.len() > ROOMS_MAX {
            return Err(Error::bad("M_INVALID_PARAM", format!("at most {ROOMS_MAX} rooms can be named at once")));
        }
        if wanted.reason.as_ref().is_some_and(|reason| reason.len() > REASON_BYTES_MAX) {
            return Err(Error::bad("M_INVALID_PARAM", format!("the reason may have {REASON_BYTES_MAX} bytes")));
        }
        let (id, now_ms) = (self.0.parts.random.token(16), self.0.parts.clock.now_ms());
        let task = UserRedaction {
            user: user.to_string(),
            by: by.to_string(),
            as_admin: wanted.as_admin || user.server_name() != self.server(),
            reason: wanted.reason,
            before_ms: wanted.before_ms,
            after_ms: wanted.after_ms,
            most: wanted.most.unwrap_or(MOST),
            rooms: wanted.rooms.iter().map(ToString::to_string).collect(),
            asked_ms: now_ms,
            ..UserRedaction::default()
        };
        let key = id.clone();
        self.write(move |w| {
            let mut known = Vec::new();
            row::each(w, &mut |id, task| known.push((task.done_ms.is_none(), task.asked_ms, id, task.done_ms)))?;
            known.sort_unstable();
            let mut left = known.len();
            for (_, _, id, done_ms) in known {
                let is_old = done_ms.is_some_and(|done_ms| done_ms + KEPT_MS < now_ms);
                if done_ms.is_some() && (is_old || left >= TASKS_MAX) {
                    row::remove(w, &id)?;
                    left -= 1;
                }
            }
            match left < TASKS_MAX {
                true => Ok(row::put(w, &key, &task)?),
                false => Err(Error::forbidden("too many such redactions are under way: wait until some are done")),
            }
        })
        .await?;
        self.0.asked_redactions.0.notify_one();
        Ok(id)
    }

    /// Redacts one event at once: in the name of who sent it, if that is somebody here who is still in the room, or else in that
    /// of `by`. `Forbidden` or `Reject` when neither may.
    pub async fn redact_event(&self, room_id: &RoomId, event: &EventId, sender: &UserId, by: &UserId) -> Result<()> {
        let is_here = sender.server_name() == self.0.parts.server;
        redact(self, is_here.then_some(sender), by, None, room_id, event).await
    }

    /// How far it is; none for an unknown id.
    pub async fn redact_status(&self, id: &str) -> Result<Option<RedactStatus>> {
        let id = id.to_owned();
        let task = self.reading(move |_, read| Ok(row::get(read, &id)?)).await?;
        Ok(task.map(|task| RedactStatus { is_done: task.done_ms.is_some(), failed: task.failed.into_iter().collect() }))
    }

    /// Redacts as long as the server runs. A unit of the worker is an event that was redacted.
    pub async fn redact_asked(&self, worker: &Worker) {
        loop {
            worker.works_on("redacting what a user said");
            let pause = match step(self).await {
                Ok(Some(redacted)) => {
                    worker.done(redacted);
                    PAUSE
                }
                Ok(None) => {
                    worker.idle();
                    self.0.asked_redactions.0.notified().await;
                    continue;
                }
                Err(failed) => {
                    tracing::warn!(%failed, "what a user said could not be redacted; this is tried again");
                    worker.failed(failed);
                    FAILED_PAUSE
                }
            };
            self.0.parts.clock.sleep(pause).await;
        }
    }
}

/// What a look found.
struct Step {
    id: String,
    task: UserRedaction,
    room_id: Option<OwnedRoomId>,
    events: Vec<OwnedEventId>,
}

/// One step; answers how many events it redacted, or none when there is nothing to do.
async fn step(rooms: &Rooms) -> Result<Option<u64>> {
    let Some(Step { id, mut task, room_id, events }) = rooms.reading(|_, read| look(read)).await? else {
        return Ok(None);
    };
    let mut redacted = 0;
    for event in events {
        let Some(room_id) = &room_id else { break };
        let (user, by) = (user_id(&task.user)?, user_id(&task.by)?);
        let first = (!task.as_admin).then_some(&*user);
        match redact(rooms, first, &by, task.reason.as_deref(), room_id, &event).await {
            Ok(()) => redacted += 1,
            Err(failed) if failed.is_passing() => return Err(failed),
            Err(failed) if task.failed.len() < FAILED_MAX => {
                task.failed.insert(event.to_string(), bounded(failed, WHY_CHARS));
            }
            Err(_) => {}
        }
    }
    task.redacted += redacted;
    if task.done_ms.is_some() {
        task.done_ms = Some(rooms.0.parts.clock.now_ms());
        tracing::info!("{} events of {} were redacted for {}", task.redacted, task.user, task.by);
    }
    rooms.write(move |w| Ok(row::put(w, &id, &task)?)).await?;
    Ok(Some(redacted))
}

/// By the first if that one may, or else by the second.
async fn redact(
    rooms: &Rooms,
    first: Option<&UserId>,
    by: &UserId,
    reason: Option<&str>,
    room_id: &RoomId,
    event: &EventId,
) -> Result<()> {
    let content = match reason {
        Some(reason) => json!({ "reason": reason }),
        None => json!({}),
    };
    let sending = Sending {
        kind: "m.room.redaction".to_owned(),
        state_key: None,
        content: to_raw_value(&content).map_err(|_| Error::NotFound)?,
        redacts: Some(event.to_owned()),
        sticky_ms: None,
        ts: None,
        txn: None,
        paid: None,
    };
    if let Some(user) = first {
        match rooms.send(user, room_id, sending.clone()).await {
            // Who was removed from the room says nothing in it any more.
            Err(Error::Reject(_) | Error::Forbidden(_) | Error::NotFound) => {}
            sent => return sent.map(drop),
        }
    }
    rooms.send(by, room_id, sending).await.map(drop)
}

fn user_id(text: &str) -> Result<OwnedUserId> {
    OwnedUserId::try_from(text).map_err(|_| Error::NotFound)
}

/// The first task that is not done, and the next events of it; the task is as it is after them.
fn look(read: &Read) -> Result<Option<Step>> {
    let mut first = None::<(String, UserRedaction)>;
    row::each(read, &mut |id, task| {
        if task.done_ms.is_none() && first.as_ref().is_none_or(|(_, first)| task.asked_ms < first.asked_ms) {
            first = Some((id, task));
        }
    })?;
    let Some((id, mut task)) = first else { return Ok(None) };
    let Some(user) = user::num(read, &task.user)? else {
        task.done_ms = Some(task.asked_ms);
        return Ok(Some(Step { id, task, room_id: None, events: Vec::new() }));
    };
    let mut rooms_passed = 0;
    loop {
        let Some((num, room_id)) = next_room(read, &task)? else {
            // Noted with the time when the step is.
            task.done_ms = Some(task.asked_ms);
            return Ok(Some(Step { id, task, room_id: None, events: Vec::new() }));
        };
        rooms_passed += 1;
        let is_theirs = match num {
            Some(num) => room::member::get(read, num, user)?.is_some(),
            None => false,
        };
        let (Some(num), true) = (num, is_theirs) else {
            pass(&mut task, num);
            if rooms_passed == ROOMS_A_STEP {
                return Ok(Some(Step { id, task, room_id: None, events: Vec::new() }));
            }
            continue;
        };
        let events = events_of(read, num, user, &mut task)?;
        return Ok(Some(Step { id, task, room_id: Some(room_id), events }));
    }
}

/// The room that is being looked through; its number only when it is known here.
fn next_room(read: &Read, task: &UserRedaction) -> Result<Option<(Option<RoomNum>, OwnedRoomId)>> {
    if !task.rooms.is_empty() {
        let Some(id) = task.rooms.get(task.at as usize) else { return Ok(None) };
        let num = room::num(read, id)?;
        return Ok(OwnedRoomId::try_from(id.as_str()).ok().map(|id| (num, id)));
    }
    let mut found = None;
    let after = Some(RoomNum(task.at)).filter(|room| room.0 > 0);
    room::list_after(read, after, &mut |num, row| {
        found = OwnedRoomId::try_from(row.id).ok().map(|id| (Some(num), id));
        Ok(if found.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    Ok(found)
}

/// Goes on with the next room.
fn pass(task: &mut UserRedaction, num: Option<RoomNum>) {
    task.at = match num.filter(|_| task.rooms.is_empty()) {
        Some(num) => num.0,
        None => task.at + 1,
    };
    (task.before, task.taken) = (None, 0);
}

/// The next events of a user in a room, the newest first, and moves the task behind them.
fn events_of(
    read: &Read,
    num: RoomNum,
    user: crate::store::UserNum,
    task: &mut UserRedaction,
) -> Result<Vec<OwnedEventId>> {
    let version = match known_num(read, num) {
        Ok(room) => room.version,
        Err(Error::NotFound) => {
            pass(task, Some(num));
            return Ok(Vec::new());
        }
        Err(failed) => return Err(failed),
    };
    let (mut found, mut looked_at, mut next) = (Vec::new(), 0, None);
    let (from, most) = (task.before.unwrap_or(i64::MAX), task.most - task.taken.min(task.most));
    timeline::backward(read, num, i64::MIN, from.saturating_sub(1), &mut |order, event_num| {
        if looked_at == ROWS_A_STEP || found.len() == EVENTS_A_STEP.min(most as usize) {
            next = Some(order + 1);
            return Ok(ControlFlow::Break(()));
        }
        looked_at += 1;
        let row = event::row_of(read, event_num)?;
        let is_join = row.member.is_none_or(|(membership, _)| membership == Membership::Join);
        if row.sender == user && !row.flags.redacted && KINDS.contains(&row.kind) && is_join {
            found.push(row);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    task.taken += found.len() as u32;
    match next {
        Some(before) if task.taken < task.most => task.before = Some(before),
        _ => pass(task, Some(num)),
    }
    let mut ids = Vec::new();
    for row in found {
        let event = load_row(read, version, &row)?;
        let at = event.origin_server_ts();
        if task.before_ms.is_none_or(|before| at <= before) && task.after_ms.is_none_or(|after| at >= after) {
            ids.push(event.id().to_owned());
        }
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::room::Reader;
    use crate::room::testing::house;

    #[tokio::test]
    async fn what_a_user_said_is_redacted_everywhere() {
        let house = house();
        let (anna, bad) = (house.user("anna").await, house.user("bad").await);
        let (one, two) = (house.public_room(&anna).await, house.public_room(&anna).await);
        house.join(&bad, &one).await.unwrap();
        house.join(&bad, &two).await.unwrap();
        let mut spam = Vec::new();
        for number in 0..EVENTS_A_STEP + 5 {
            spam.push((&one, house.say(&bad, &one, &format!("spam {number}")).await));
        }
        spam.push((&two, house.say(&bad, &two, "more").await));
        let kept = house.say(&anna, &one, "kept").await;
        house.rooms.kick(&anna, &one, &bad, None, None).await.unwrap();
        let reader =
            Reader { user: house.user_num(&anna), user_id: anna.clone(), device: "D".to_owned(), sees_all: false };
        let shown = async |room: &ruma::RoomId, id: &ruma::EventId| -> Value {
            serde_json::from_slice(&house.rooms.event(&reader, room, id).await.unwrap()).unwrap()
        };
        let wanted = RedactUser { reason: Some("spam".to_owned()), ..RedactUser::default() };
        let id = house.rooms.redact_user(&bad, &anna, wanted).await.unwrap();
        assert!(!house.rooms.redact_status(&id).await.unwrap().unwrap().is_done);
        while step(&house.rooms).await.unwrap().is_some() {}
        let status = house.rooms.redact_status(&id).await.unwrap().unwrap();
        assert_eq!(status, RedactStatus { is_done: true, failed: Vec::new() });
        for (room, id) in &spam {
            let event = shown(room, id).await;
            assert_eq!(event["content"], json!({}), "{event}");
            assert_eq!(event["unsigned"]["redacted_because"]["content"]["reason"], "spam");
        }
        assert_eq!(shown(&one, &kept).await["content"]["body"], "kept");
        assert_eq!(house.rooms.redact_status("other").await.unwrap(), None);
    }

    #[tokio::test]
    async fn one_event_is_redacted_in_the_name_of_its_sender_or_by_power() {
        let house = house();
        let (anna, bad) = (house.user("anna").await, house.user("bad").await);
        let (hers, his) = (house.public_room(&anna).await, house.public_room(&bad).await);
        house.join(&bad, &hers).await.unwrap();
        let (here, there) = (house.say(&bad, &hers, "one").await, house.say(&bad, &his, "two").await);
        let reader =
            Reader { user: house.user_num(&bad), user_id: bad.clone(), device: "D".to_owned(), sees_all: false };
        let content = async |room: &ruma::RoomId, id: &ruma::EventId| -> Value {
            let event = house.rooms.event(&reader, room, id).await.unwrap();
            serde_json::from_slice::<Value>(&event).unwrap()["content"].clone()
        };
        // Nobody else is in his room.
        house.rooms.redact_event(&his, &there, &bad, &anna).await.unwrap();
        assert_eq!(content(&his, &there).await, json!({}));
        // To this room somebody of another server might have written.
        let stranger = ruma::user_id!("@x:elsewhere.example");
        house.rooms.redact_event(&hers, &here, stranger, &anna).await.unwrap();
        assert_eq!(content(&hers, &here).await, json!({}));
        let more = house.say(&bad, &his, "three").await;
        house.rooms.redact_event(&his, &more, stranger, &anna).await.unwrap_err();
        assert_ne!(content(&his, &more).await, json!({}));
    }

    #[tokio::test]
    async fn only_so_many_and_only_where_it_is_wanted() {
        let house = house();
        let (anna, bad) = (house.user("anna").await, house.user("bad").await);
        let (one, two) = (house.public_room(&anna).await, house.public_room(&bad).await);
        house.join(&bad, &one).await.unwrap();
        for number in 0..5 {
            house.say(&bad, &one, &format!("spam {number}")).await;
        }
        // The administrator is not in the second.
        house.say(&bad, &two, "mine").await;
        let redacted = async |wanted: RedactUser| {
            let id = house.rooms.redact_user(&bad, &anna, wanted).await.unwrap();
            let mut sum = 0;
            while let Some(redacted) = step(&house.rooms).await.unwrap() {
                sum += redacted;
            }
            (sum, house.rooms.redact_status(&id).await.unwrap().unwrap().failed.len())
        };
        let here = vec![one.clone()];
        assert_eq!(redacted(RedactUser { rooms: here.clone(), most: Some(2), ..RedactUser::default() }).await, (2, 0));
        assert_eq!(redacted(RedactUser { before_ms: Some(1), rooms: here, ..RedactUser::default() }).await, (0, 0));
        let there = RedactUser { rooms: vec![two], as_admin: true, ..RedactUser::default() };
        let (sum, failed) = redacted(there).await;
        assert!(sum == 0 && failed > 0);
    }
}

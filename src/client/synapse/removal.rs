//! Rooms that go: deleting and blocking them, and removing their old messages.

use std::sync::Arc;
use std::time::Duration;

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{administrator, administrator_with_memory, listed};
use crate::client::{Client, Error};
use crate::http::{ErrorResponse, Request, Response};
use crate::room::{Close, TASKS_MAX, Task, TaskStage, task_begun_ms};

/// The name of the room into which people come, and what they are told there, in bytes.
const NAME_BYTES_MAX: usize = 255;
const MESSAGE_BYTES_MAX: usize = 4 * 1024;
const NAME: &str = "Content Violation Notification";
const MESSAGE: &str = "Sharing illegal content on this server is not permitted and rooms in violation will be blocked.";
/// How long the first version of the call waits for the room to be gone; what is left then goes behind the answer.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);
/// Of one room, the latest. The names in each take 12 KiB at most.
const CLOSINGS_MAX: usize = 8;
/// Synapse's words for what is done.
const CLOSING: &str = "shutdown_and_purge_room";
const PURGING: &str = "purge_history";

#[derive(Deserialize)]
struct Delete {
    #[serde(default)]
    block: bool,
    #[serde(default = "yes")]
    purge: bool,
    #[serde(default)]
    force_purge: bool,
    new_room_user_id: Option<OwnedUserId>,
    room_name: Option<String>,
    message: Option<String>,
}

fn yes() -> bool {
    true
}

/// DELETE /_synapse/admin/v2/rooms/{room_id}: begins, and answers with the name under which to ask.
///
/// 404 `M_NOT_FOUND` for a room that is not known, unless it is to be blocked; 400 `M_UNKNOWN` while it is being deleted already, and
/// for `force_purge`, since a room never goes while somebody here is in it.
pub async fn delete(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let name = begin(&client, &mut request).await?;
    Ok(Response::json(&json!({ "delete_id": name })))
}

/// DELETE /_synapse/admin/v1/rooms/{room_id}: answers once it is done, or after a minute with what is done by then. A room that is
/// not known can be blocked.
pub async fn delete_at_once(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    request.cancel_when_peer_leaves();
    let name = begin(&client, &mut request).await?;
    let until = client.clock.instant() + PATIENCE;
    loop {
        let task = client.rooms.task(&name).await?.ok_or_else(unknown_room)?;
        if let Some(why) = &task.error {
            return Err(ErrorResponse::bad("M_UNKNOWN", why.clone()).into());
        }
        if task.is_over() || client.clock.instant() >= until {
            return Ok(Response::json(&shut_down(&task)));
        }
        client.clock.sleep(LOOK).await;
    }
}

/// Begins to close a room. One that is not known and is to be blocked is closed with that.
async fn begin(client: &Client, request: &mut Request) -> Result<String, Error> {
    let by = administrator(client, request).await?;
    let room_id: OwnedRoomId = request.param_as("room_id")?;
    let asked: Delete = request.json().await?;
    if asked.force_purge {
        let message = "A room is never removed here while somebody of this server is in it: leave force_purge away";
        return Err(ErrorResponse::bad("M_UNKNOWN", message).into());
    }
    let name = asked.room_name.unwrap_or_else(|| NAME.to_owned());
    let message = asked.message.unwrap_or_else(|| MESSAGE.to_owned());
    if name.len() > NAME_BYTES_MAX || message.len() > MESSAGE_BYTES_MAX {
        let message = format!("room_name may have {NAME_BYTES_MAX} bytes, message {MESSAGE_BYTES_MAX}");
        return Err(ErrorResponse::invalid_param(message).into());
    }
    if let Some(user_id) = &asked.new_room_user_id
        && client.users.account(user_id).await?.is_none()
    {
        return Err(ErrorResponse::bad("M_UNKNOWN", "new_room_user_id must be a user of this server").into());
    }
    let is_known = client.rooms.is_known(&room_id).await?;
    if !is_known && !asked.block {
        return Err(unknown_room().into());
    }
    let makes_room = asked.new_room_user_id.is_some();
    let close = Close {
        new_room_by: asked.new_room_user_id.map(|user_id| user_id.to_string()),
        new_room_name: makes_room.then_some(name),
        message: makes_room.then_some(message),
        purge: asked.purge,
        ..Close::default()
    };
    // First, so that a power cut leaves no room deleted that anybody may come back into.
    if asked.block {
        client.rooms.block(&room_id, Some(&by.user_id)).await?;
    }
    let begun = match is_known {
        true => client.rooms.close(&room_id, Some(&by.user_id), close).await?,
        false => client.rooms.note_closed(&room_id, &by.user_id).await?,
    };
    tracing::info!("{} had the room {room_id} {}", by.user_id, if is_known { "deleted" } else { "blocked" });
    Ok(begun)
}

fn unknown_room() -> ErrorResponse {
    ErrorResponse::not_found("Unknown room")
}

/// GET /_synapse/admin/v2/rooms/{room_id}/delete_status
pub async fn statuses(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (_, grant) = administrator_with_memory(&client, &request).await?;
    let room_id: OwnedRoomId = request.param_as("room_id")?;
    let found = client.rooms.closings(&room_id, CLOSINGS_MAX).await?;
    if found.is_empty() {
        return Err(ErrorResponse::not_found(format!("No delete task for room_id '{room_id}' found")).into());
    }
    let many = found.len();
    let row = Box::new(move |at: usize| Ok(client.rooms.task_now(&found[at])?.map(|task| status(&found[at], &task))));
    Ok(listed(grant, "results", many, json!({}), row))
}

/// GET /_synapse/admin/v2/rooms/delete_status/{delete_id}
pub async fn status_of(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let name = request.param("delete_id");
    let task = client.rooms.task(name).await?.filter(Task::is_closing);
    let task = task.ok_or_else(|| ErrorResponse::not_found(format!("delete id '{name}' not found")))?;
    Ok(Response::json(&status(name, &task)))
}

fn status(name: &str, task: &Task) -> Value {
    let mut shown = json!({
        "delete_id": name, "room_id": task.room_id, "status": word(task), "shutdown_room": shut_down(task),
    });
    if let Some(why) = &task.error {
        shown["error"] = why.as_str().into();
    }
    shown
}

/// Synapse's word for how far a task is.
fn word(task: &Task) -> &'static str {
    match task.stage {
        TaskStage::Waiting => "scheduled",
        TaskStage::Telling { .. } | TaskStage::Removing => "active",
        TaskStage::Done => "complete",
        TaskStage::Failed => "failed",
    }
}

fn shut_down(task: &Task) -> Value {
    let none = Close::default();
    let close = task.closing().unwrap_or(&none);
    json!({
        "kicked_users": close.kicked, "failed_to_kick_users": close.failed, "local_aliases": close.aliases,
        "new_room_id": close.new_room_id,
    })
}

/// GET /_synapse/admin/v1/rooms/{room_id}/block
pub async fn is_blocked(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let room_id: OwnedRoomId = request.param_as("room_id")?;
    Ok(Response::json(&match client.rooms.blocked(&room_id).await? {
        Some(blocked) => json!({ "block": true, "user_id": blocked.by }),
        None => json!({ "block": false }),
    }))
}

#[derive(Deserialize)]
struct Block {
    block: bool,
}

/// PUT /_synapse/admin/v1/rooms/{room_id}/block: known here or not.
pub async fn block(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let room_id: OwnedRoomId = request.param_as("room_id")?;
    let Block { block } = request.json().await?;
    client.rooms.block(&room_id, block.then_some(&by.user_id)).await?;
    tracing::info!("{} {} the room {room_id}", by.user_id, if block { "blocked" } else { "unblocked" });
    Ok(Response::json(&json!({ "block": block })))
}

/// GET /_synapse/admin/v1/scheduled_tasks: what administrators had done with rooms and is not over, or not for a day, in the order in
/// which it began, which `timestamp_ms` tells. 1,200 at most.
pub async fn tasks(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (_, grant) = administrator_with_memory(&client, &request).await?;
    let (action, of) = (request.query("action_name"), request.query("resource_id"));
    let (stage, before_ms) = (request.query("job_status"), request.query_as::<u64>("max_timestamp")?);
    let is = |wanted: &Option<String>, word: &str| wanted.as_deref().is_none_or(|wanted| wanted == word);
    let (mut after, mut is_over) = (None::<String>, false);
    let row = Box::new(move |_| {
        while !is_over && let Some((name, task)) = client.rooms.next_task(after.as_deref())? {
            let begun_ms = task_begun_ms(&name);
            after = Some(name.clone());
            let (doing, word) = (if task.is_closing() { CLOSING } else { PURGING }, word(&task));
            if is(&action, doing)
                && is(&of, &task.room_id)
                && is(&stage, word)
                && before_ms.is_none_or(|before_ms| begun_ms <= before_ms)
            {
                let result = if task.is_closing() { shut_down(&task) } else { Value::Null };
                return Ok(Some(json!({
                    "id": name, "action": doing, "status": word, "timestamp_ms": begun_ms, "resource_id": task.room_id,
                    "result": result, "error": task.error,
                })));
            }
        }
        is_over = true;
        Ok(None)
    });
    Ok(listed(grant, "scheduled_tasks", TASKS_MAX, json!({}), row))
}

#[derive(Deserialize, Default)]
struct History {
    #[serde(default)]
    delete_local_events: bool,
    purge_up_to_event_id: Option<OwnedEventId>,
    purge_up_to_ts: Option<u64>,
}

/// POST /_synapse/admin/v1/purge_history/{room_id}[/{event_id}]: what the room needs to go on stays, and what newer events relate to.
///
/// 404 `M_NOT_FOUND` for a room or an event that is not known; 400 `M_BAD_JSON` when neither an event nor a time is named; 400
/// `M_UNKNOWN` while messages of the room are being removed already.
pub async fn purge_history(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let room_id: OwnedRoomId = request.param_as("room_id")?;
    let asked: History = request.json_or_empty().await?;
    let event_id = match request.param_maybe("event_id") {
        Some(_) => Some(request.param_as("event_id")?),
        None => asked.purge_up_to_event_id,
    };
    // As in Synapse, the event goes before the time.
    let before_ms = asked.purge_up_to_ts.filter(|_| event_id.is_none());
    if event_id.is_none() && before_ms.is_none() {
        return Err(ErrorResponse::bad("M_BAD_JSON", "must specify purge_up_to_event_id or purge_up_to_ts").into());
    }
    let own = asked.delete_local_events;
    let rooms = &client.rooms;
    let name = rooms.begin_purge_history(&room_id, &by.user_id, before_ms, event_id.as_deref(), own).await?;
    tracing::info!("{} has old messages of {room_id} removed", by.user_id);
    Ok(Response::json(&json!({ "purge_id": name })))
}

/// GET /_synapse/admin/v1/purge_history_status/{purge_id}
pub async fn purge_history_status(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let name = request.param("purge_id");
    let task = client.rooms.task(name).await?.filter(|task| !task.is_closing());
    let task = task.ok_or_else(|| ErrorResponse::not_found(format!("purge id '{name}' not found")))?;
    let mut shown = json!({ "status": word(&task) });
    if let Some(why) = task.error {
        shown["error"] = why.into();
    }
    Ok(Response::json(&shown))
}

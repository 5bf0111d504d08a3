//! Reports to the administrator: POST rooms/{room_id}/report/{event_id}, rooms/{room_id}/report, users/{user_id}/report.

use std::sync::Arc;

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};
use serde::Deserialize;

use super::room::timeline::reader;
use super::{Client, Error, auth, rates};
use crate::base::detached;
use crate::http::{ErrorResponse, Request, Response};
use crate::matrix::json;
use crate::user::{REASON_CHARS_MAX, Reported, Requester};

#[derive(Deserialize, Default)]
struct EventReport {
    reason: Option<String>,
    score: Option<i64>,
}

#[derive(Deserialize)]
struct Report {
    reason: String,
}

/// POST /_matrix/client/v3/rooms/{room_id}/report/{event_id}
///
/// 404 `M_NOT_FOUND` when the event does not exist or the user may not see it; 400 `M_BAD_JSON` when the reason is too long.
pub async fn event(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::REPORT, requester.user_id.as_str())?;
    let EventReport { reason, score } = request.json_or_empty().await?;
    check(reason.as_deref())?;
    let (room_id, event_id): (OwnedRoomId, OwnedEventId) =
        (request.param_as("room_id")?, request.param_as("event_id")?);
    let event = client.rooms.event(&reader(requester.clone()), &room_id, &event_id).await?;
    let text = |path: &[&str]| {
        let found = json::read::get_path(&event, path).and_then(json::read::text);
        found.map(|text| text.into_owned())
    };
    let reported = Reported {
        room_id: Some(room_id.into()),
        event_id: Some(event_id.into()),
        user_id: text(&["sender"]),
        reason,
        score,
        text: text(&["content", "body"]),
    };
    keep(&client, &requester, reported).await?;
    Ok(Response::ok())
}

/// POST /_matrix/client/v3/rooms/{room_id}/report. Whoever reports need not be in the room.
///
/// 404 `M_NOT_FOUND` when this server does not know the room; 400 `M_BAD_JSON` without a reason, or when it is too long.
pub async fn room(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::REPORT, requester.user_id.as_str())?;
    let Report { reason } = request.json().await?;
    check(Some(&reason))?;
    let room_id: OwnedRoomId = request.param_as("room_id")?;
    if !client.rooms.is_known(&room_id).await? {
        return Err(ErrorResponse::not_found("This server does not know the room").into());
    }
    let reported = Reported { room_id: Some(room_id.into()), reason: Some(reason), ..Reported::default() };
    keep(&client, &requester, reported).await?;
    Ok(Response::ok())
}

/// POST /_matrix/client/v3/users/{user_id}/report. The answer does not tell whether there is such a user.
///
/// 400 `M_BAD_JSON` without a reason, or when it is too long.
pub async fn user(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::REPORT, requester.user_id.as_str())?;
    let Report { reason } = request.json().await?;
    check(Some(&reason))?;
    let user_id: OwnedUserId = request.param_as("user_id")?;
    if client.users.is_known(&user_id).await? {
        let reported = Reported { user_id: Some(user_id.into()), reason: Some(reason), ..Reported::default() };
        keep(&client, &requester, reported).await?;
    }
    Ok(Response::ok())
}

/// Keeps a report, and tells the administrators of it in their rooms of notices, which the reporter does not wait for.
async fn keep(client: &Client, requester: &Requester, reported: Reported) -> Result<(), Error> {
    let about = match (&reported.event_id, &reported.room_id, &reported.user_id) {
        (Some(event_id), Some(room_id), sender) => {
            let sender = sender.as_deref().unwrap_or("somebody");
            format!("the event {event_id} of {sender} in the room {room_id}")
        }
        (_, Some(room_id), _) => format!("the room {room_id}"),
        (_, _, user_id) => format!("the user {}", user_id.as_deref().unwrap_or_default()),
    };
    let because = match reported.reason.as_deref() {
        Some(reason) if !reason.is_empty() => format!(", saying: {reason}"),
        _ => String::new(),
    };
    let number = client.users.report(requester, reported).await?;
    let by = &requester.user_id;
    let text = format!("{by} reported {about}{because}\n`snug reports` shows it as number {number}.");
    let notices = client.notices.clone();
    detached(async move {
        let _reached = notices.tell_administrators(&text).await;
    });
    Ok(())
}

fn check(reason: Option<&str>) -> Result<(), ErrorResponse> {
    match reason.is_some_and(|reason| reason.chars().count() > REASON_CHARS_MAX) {
        true => {
            let message = format!("A reason has at most {REASON_CHARS_MAX} characters");
            Err(ErrorResponse::bad("M_BAD_JSON", message))
        }
        false => Ok(()),
    }
}

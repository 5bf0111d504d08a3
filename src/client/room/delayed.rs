//! Delayed events (MSC4140): scheduling one, and what becomes of it.
//!
//! - `PUT /rooms/{room_id}/delayed_event/{type}/{txn_id}`, and `?org.matrix.msc4140.delay=` of send and state (`send.rs`)
//! - `GET /delayed_events`, `GET /delayed_events/{delay_id}`
//! - `POST /delayed_events/{delay_id}/{restart,cancel,send}`, and the older form with the action in the body. The id is a
//!   secret of 128 bits: a media server that the app trusts with it restarts and sends without an access token.

use std::borrow::Cow;
use std::sync::Arc;

use ruma::OwnedRoomId;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::base::{self, ChunkError, ChunkWriter, comma};
use crate::client::{Client, Error, Requester, auth, rates};
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::room::{ANSWER_BYTES, DELAY_MS_MAX, Delay, DelayAction, DelayedEvent, Managed, STICKY_MS_MAX, Scheduled};

#[derive(Deserialize)]
struct Wanted {
    delay_ms: u64,
    state_key: Option<String>,
    content: Box<RawValue>,
}

/// PUT /_matrix/client/unstable/org.matrix.msc4140/rooms/{room_id}/delayed_event/{type}/{txn_id}
///
/// 400 `M_INVALID_PARAM` for no delay; 403 `M_FORBIDDEN` for one that is too long, `M_GUEST_ACCESS_FORBIDDEN` for guests; 404 `M_NOT_FOUND` for an unknown room;
/// 413 `M_TOO_LARGE` when the content is larger than an event; 429 `M_LIMIT_EXCEEDED` when the user has too many.
pub async fn put(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    rates::limit_send(&request, &requester)?;
    let Wanted { delay_ms, state_key, content } = request.json().await?;
    let delay = Delay {
        kind: request.param("type").to_owned(),
        state_key,
        content,
        sticky_ms: sticky(&request)?,
        delay_ms,
        txn: Some((device_of(&requester), request.param("txn_id").to_owned())),
    };
    schedule(&client, &requester, &request, delay).await
}

/// Under which device a transaction id is kept: an application service may send without one. Without any name stand events
/// that were scheduled.
pub fn device_of(requester: &Requester) -> String {
    match requester.device_id.as_str() {
        "" => " ".to_owned(),
        device => device.to_owned(),
    }
}

/// The delay in the query of a send; none for an event that is sent at once. 400 `M_INVALID_PARAM` when it is no number.
pub fn in_query(request: &Request) -> Result<Option<u64>, ErrorResponse> {
    request.query_as("org.matrix.msc4140.delay")
}

/// How long an event is sticky (MSC4354), of the query. 400 `M_INVALID_PARAM` when it is no number or more than an
/// hour.
pub fn sticky(request: &Request) -> Result<Option<u64>, ErrorResponse> {
    let given = match request.query_as("org.matrix.msc4354.sticky_duration_ms")? {
        Some(ms) => Some(ms),
        None => request.query_as("sticky_duration_ms")?,
    };
    match given {
        Some(ms) if ms > STICKY_MS_MAX => {
            Err(ErrorResponse::invalid_param(format!("An event is sticky for {STICKY_MS_MAX} milliseconds at most")))
        }
        given => Ok(given),
    }
}

/// The answer to a send with a delay that was answered before, which needs no content again.
pub async fn again(client: &Client, requester: &Requester, request: &Request) -> Result<Option<Response>, Error> {
    if in_query(request)?.is_none() {
        return Ok(None);
    }
    let (room_id, kind) = (request.param_as::<OwnedRoomId>("room_id")?, request.param("type"));
    let device = device_of(requester);
    let txn = (device.as_str(), request.param("txn_id"));
    let id = client.rooms.scheduled(&requester.user_id, &room_id, kind, txn).await?;
    Ok(id.map(|id| Response::json(&json!({ "delay_id": id }))))
}

/// Schedules an event; errors as [`put`].
pub async fn schedule(
    client: &Client,
    requester: &Requester,
    request: &Request,
    delay: Delay,
) -> Result<Response, Error> {
    // Anybody may be many guests, and all delayed events together have a bound.
    if requester.is_guest {
        return Err(auth::guests_forbidden("Guests may not delay events: an account is needed").into());
    }
    auth::check_may_speak(client, request, requester).await?;
    if delay.delay_ms == 0 {
        return Err(ErrorResponse::invalid_param("The delay is a number of milliseconds above 0").into());
    }
    if delay.delay_ms > DELAY_MS_MAX {
        let why = format!("The delay may be {DELAY_MS_MAX} milliseconds at most");
        // Apps know the older code by these members.
        return Err(ErrorResponse::forbidden(why)
            .with("org.matrix.msc4140.errcode", "M_MAX_DELAY_EXCEEDED")
            .with("org.matrix.msc4140.max_delay", DELAY_MS_MAX)
            .into());
    }
    if !delay.content.get().trim_start().starts_with('{') {
        return Err(ErrorResponse::bad("M_BAD_JSON", "The content of an event must be an object").into());
    }
    let room_id = request.param_as::<OwnedRoomId>("room_id")?;
    match client.rooms.schedule(&requester.user_id, &room_id, delay).await? {
        Scheduled::Done(id) => Ok(Response::json(&json!({ "delay_id": id }))),
        Scheduled::Full { retry_after_ms } => Err(ErrorResponse::limit_exceeded(retry_after_ms).into()),
    }
}

/// GET /_matrix/client/v1/delayed_events
pub async fn list(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let waiting = client.rooms.list_delayed(&requester.user_id).await?;
    let grant = client.budget.account("response_bodies").take(ANSWER_BYTES).await?;
    Ok(Response::stream(grant, base::written(|pen| write_list(pen, client, requester, waiting))))
}

async fn write_list(
    pen: ChunkWriter,
    client: Arc<Client>,
    requester: Requester,
    waiting: Vec<String>,
) -> Result<(), ChunkError> {
    pen.text("{\"delayed_events\":[");
    let mut first = true;
    for id in waiting {
        // It may be over by now.
        let Ok(found) = client.rooms.delayed_event_now(&requester.user_id, &id) else { continue };
        pen.with(|out| {
            comma(out, &mut first);
            out.extend_from_slice(shown(found, false).to_string().as_bytes());
        });
        pen.pause().await;
    }
    pen.text("]}");
    Ok(())
}

/// GET /_matrix/client/v1/delayed_events/{delay_id}
///
/// 404 `M_NOT_FOUND` when the user has no such event.
pub async fn get(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let found = client.rooms.delayed_event(&requester.user_id, request.param("delay_id")).await?;
    Ok(Response::json(&shown(found, true)))
}

/// A delayed event; `whole` tells how it ended too.
fn shown(DelayedEvent { id, event }: DelayedEvent, whole: bool) -> Value {
    let content: Value = serde_json::from_str(&event.content).unwrap_or_default();
    let mut shown = json!({
        "delay_id": id,
        "room_id": event.room_id,
        "type": event.kind,
        "delay_ms": event.delay_ms,
        "delay": event.delay_ms,
        "scheduled_at": event.since_ms,
        "running_since": event.since_ms,
        "content": content,
    });
    if let Some(key) = event.state_key {
        shown["state_key"] = key.into();
    }
    if let Some(end) = event.end.filter(|_| whole) {
        shown["finalised_ts"] = end.at_ms.into();
        if let Some(event_id) = end.event_id {
            shown["event_id"] = event_id.into();
        }
        if let Some((errcode, error)) = end.error {
            shown["error"] = json!({ "errcode": errcode, "error": error });
        }
    }
    shown
}

/// POST /_matrix/client/v1/delayed_events/{delay_id}/restart
///
/// 404 `M_NOT_FOUND` when there is no such event; 409 `M_UNKNOWN` when it is over.
pub async fn restart(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    manage(&client, &request, DelayAction::Restart).await
}

/// POST /_matrix/client/v1/delayed_events/{delay_id}/cancel; errors as [`restart`].
pub async fn cancel(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    manage(&client, &request, DelayAction::Cancel).await
}

/// POST /_matrix/client/v1/delayed_events/{delay_id}/send; errors as [`restart`], and those of sending the event.
pub async fn send(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    manage(&client, &request, DelayAction::Send).await
}

#[derive(Deserialize)]
struct Action<'a> {
    #[serde(borrow)]
    action: Option<Cow<'a, str>>,
}

/// POST /_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delay_id}: the older form.
///
/// 400 `M_MISSING_PARAM` without `action`, `M_INVALID_PARAM` for an unknown one; errors as [`send`].
pub async fn act(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let body: Box<RawValue> = request.json().await?;
    let Action { action } = serde_json::from_str(body.get())
        .map_err(|wrong| ErrorResponse::bad("M_BAD_JSON", format!("The body is no action: {}", base::brief(wrong))))?;
    let action = match action.as_deref() {
        Some("restart") => DelayAction::Restart,
        Some("cancel") => DelayAction::Cancel,
        Some("send") => DelayAction::Send,
        Some(_) => return Err(ErrorResponse::invalid_param("action is restart, cancel or send").into()),
        None => return Err(ErrorResponse::bad("M_MISSING_PARAM", "action is missing").into()),
    };
    manage(&client, &request, action).await
}

async fn manage(client: &Client, request: &Request, action: DelayAction) -> Result<Response, Error> {
    let requester = auth::maybe(client, request).await?;
    match &requester {
        Some(requester) => request.limit_user(&rates::NOTE, requester.user_id.as_str())?,
        None => request.limit(&rates::DELAYED)?,
    }
    let user = requester.as_ref().map(|requester| &*requester.user_id);
    match client.rooms.manage_delayed(request.param("delay_id"), user, action).await? {
        Managed::Done => Ok(Response::ok()),
        Managed::Conflict => {
            let why = "The delayed event was sent or cancelled already";
            Err(ErrorResponse::new(StatusCode::CONFLICT, "M_UNKNOWN", why).into())
        }
    }
}

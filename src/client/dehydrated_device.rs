//! The dehydrated device (MSC3814): PUT, GET and DELETE dehydrated_device, GET and POST dehydrated_device/{device_id}/events.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::{Client, Error, auth, rates};
use crate::base::{self, ChunkError, ChunkWriter, comma};
use crate::http::{Request, Response};
use crate::matrix::json as text;
use crate::room::ANSWER_BYTES;
use crate::user::{DehydratedMessages, NewDehydrated};

/// Messages in one answer when the app does not say how many.
const MESSAGES: usize = 100;

/// PUT /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device
///
/// 400 `M_BAD_JSON` when `device_id`, `device_data`, its `algorithm` or `device_keys` is missing or of another kind; 400
/// `M_INVALID_PARAM` when the id is that of another device or the keys are of another one; 413 `M_TOO_LARGE` when the data or
/// the name is too long, or there are too many keys.
pub async fn put(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let new: NewDehydrated = request.json().await?;
    let device_id = client.users.dehydrate(&requester, new).await?;
    Ok(Response::json(&json!({ "device_id": device_id })))
}

/// GET /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device
///
/// 404 `M_NOT_FOUND` when there is none.
pub async fn get(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    #[derive(Serialize)]
    struct Shown {
        device_id: String,
        device_data: Box<RawValue>,
    }
    let requester = auth::requester(&client, &request).await?;
    let (device_id, device_data) = client.users.dehydrated(requester.user_num).await?;
    Ok(Response::json(&Shown { device_id, device_data }))
}

/// DELETE /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device
///
/// 404 `M_NOT_FOUND` when there is none.
pub async fn delete(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let device_id = client.users.remove_dehydrated(&requester).await?;
    Ok(Response::json(&json!({ "device_id": device_id })))
}

/// GET /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device/{device_id}/events: `next_batch` is there as long as
/// more follow.
///
/// 403 `M_FORBIDDEN` when this is not the dehydrated device; 400 `M_INVALID_PARAM` when `from` is no `next_batch`.
pub async fn events(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let from = request.query("from");
    answer(&client, &request, from, false).await
}

#[derive(Deserialize)]
struct EventsBody {
    #[serde(default)]
    next_batch: Option<String>,
}

/// POST of the same path, from an earlier version of the proposal: the place is in the body, and `next_batch` is always there;
/// an app has them all when it gets none.
///
/// 403 `M_FORBIDDEN` when this is not the dehydrated device; 400 `M_INVALID_PARAM` for another `next_batch`.
pub async fn post_events(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let body: EventsBody = request.json_or_empty().await?;
    answer(&client, &request, body.next_batch, true).await
}

async fn answer(client: &Client, request: &Request, from: Option<String>, always: bool) -> Result<Response, Error> {
    let requester = auth::requester(client, request).await?;
    let most = request.query_as::<usize>("limit")?.unwrap_or(MESSAGES);
    let grant = client.budget.account("response_bodies").take(ANSWER_BYTES).await?;
    let device_id = request.param("device_id");
    let messages = client.users.dehydrated_messages(requester.user_num, device_id, from.as_deref(), most).await?;
    Ok(Response::stream(grant, base::written(move |pen| write(pen, messages, always))))
}

async fn write(pen: ChunkWriter, mut messages: DehydratedMessages, always: bool) -> Result<(), ChunkError> {
    pen.text("{\"events\":[");
    let mut first = true;
    while let Some(message) = messages.next()? {
        pen.with(|out| comma(out, &mut first));
        pen.long(&message).await;
        pen.pause().await;
    }
    pen.text("]");
    if always || messages.is_limited {
        pen.text(",\"next_batch\":");
        pen.with(|out| text::write_string(out, &messages.next_batch()));
    }
    pen.text("}");
    Ok(())
}

//! Reading the timeline: one event, pages of it, the context of an event, its relations, and threads.
//!
//! - `GET /rooms/{room_id}/event/{event_id}`
//! - `GET /rooms/{room_id}/messages`
//! - `GET /rooms/{room_id}/context/{event_id}`
//! - `GET /rooms/{room_id}/relations/{event_id}[/{rel_type}[/{event_type}]]`, under v1
//! - `GET /rooms/{room_id}/threads`, under v1
//! - `GET /rooms/{room_id}/timestamp_to_event`, under v1

use std::sync::Arc;

use ruma::{OwnedEventId, OwnedRoomId};

use crate::base::Chunks;
use crate::client::{Client, Error, Requester, auth, rates};
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::room::{ANSWER_BYTES, Direction, Events, PAGE_EVENTS_MAX, Paging, Reader, Related, Threads, Token};

/// 404 `M_NOT_FOUND` when the room or event is not known or the user may not see it. What a redacted event said (MSC2815): 403
/// `M_FORBIDDEN` when the user may not redact events of others; 404 when it is not kept.
pub async fn event(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (room_id, event_id) = (room_id(&request)?, event_id(&request)?);
    let requester = auth::even_reporter(&client, &request, Some((&room_id, &event_id))).await?;
    let is_admin = requester.is_admin;
    let reader = reader(requester);
    let event = match unredacted(&request)? {
        false => client.rooms.event(&reader, &room_id, &event_id).await?,
        true => match client.rooms.unredacted(&reader, &room_id, &event_id, is_admin).await? {
            Some(event) => event,
            None => {
                let why = "What this event said is not kept any more";
                let gone = ErrorResponse::new(StatusCode::NOT_FOUND, "FI.MAU.MSC2815_UNREDACTED_CONTENT_DELETED", why);
                return Err(gone.with("fi.mau.msc2815.content_keep_ms", client.rooms.redacted_kept_ms()).into());
            }
        },
    };
    Ok(Response::json_bytes(StatusCode::OK, event))
}

fn unredacted(request: &Request) -> Result<bool, ErrorResponse> {
    let of = |name| Ok::<_, ErrorResponse>(request.query_as::<bool>(name)? == Some(true));
    Ok(of("fi.mau.msc2815.include_unredacted_content")? || of("include_unredacted_content")?)
}

/// 400 `M_INVALID_PARAM` when `dir`, `from`, `to` or `filter` is not valid; 403
/// `M_FORBIDDEN` when the room is not known or the user may not see it. When the page would be empty only because
/// history is missing here: 429 `M_LIMIT_EXCEEDED` over the rate limit, else the error of fetching that history.
pub async fn messages(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let reader = reader(auth::requester(&client, &request).await?);
    messages_for(&client, &request, reader).await
}

/// The same for a reader.
pub(in crate::client) async fn messages_for(
    client: &Client,
    request: &Request,
    reader: Reader,
) -> Result<Response, Error> {
    let (asking, room_id) = (reader.user_id.clone(), room_id(request)?);
    let filter = filter(request)?;
    let backwards = match request.query("dir").as_deref() {
        Some("b") => true,
        // The specification requires it; apps that leave it out were written against servers that take this for it.
        Some("f") | None => false,
        Some(_) => return Err(ErrorResponse::invalid_param("dir must be \"b\" or \"f\"").into()),
    };
    let limit = limit(request, &filter, 10)?;
    let filter = filter.of_room(room_id.as_str()).into_owned();
    let paging = Paging { from: token(request, "from")?, to: token(request, "to")?, backwards, limit, filter };
    // Over the rate limit, the answer has only events that are stored here, and a token to go on with later.
    let may_ask = || {
        // Answers of other servers may take minutes.
        request.cancel_when_peer_leaves();
        request.limit_user(&rates::HISTORY, asking.as_str()).is_ok()
    };
    let page = client.rooms.messages(&reader, &room_id, paging, may_ask).await?;
    stream(client, page).await
}

/// 400 `M_INVALID_PARAM` when `filter` is not valid; 403 `M_FORBIDDEN` when the room is not known or the user may not
/// see it; 404 `M_NOT_FOUND` when the event is not known or the user may not see it.
pub async fn context(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let reader = reader(auth::requester(&client, &request).await?);
    context_for(&client, &request, reader).await
}

/// The same for a reader.
pub(in crate::client) async fn context_for(
    client: &Client,
    request: &Request,
    reader: Reader,
) -> Result<Response, Error> {
    let (room_id, event_id) = (room_id(request)?, event_id(request)?);
    let filter = filter(request)?;
    let limit = limit(request, &filter, 10)?;
    let filter = filter.of_room(room_id.as_str()).into_owned();
    let context = client.rooms.context(&reader, &room_id, &event_id, limit, filter).await?;
    stream(client, context).await
}

/// 400 `M_INVALID_PARAM` when `from` or `to` is no token; 403 `M_FORBIDDEN` when the room is not known or the user
/// may not see it; 404 `M_NOT_FOUND` when the event is not known or the user may not see it.
pub async fn relations(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let reader = reader(auth::requester(&client, &request).await?);
    let room_id = room_id(&request)?;
    let related = Related {
        event_id: event_id(&request)?.to_string(),
        rel_type: request.param_maybe("rel_type").map(str::to_owned),
        kind: request.param_maybe("event_type").map(str::to_owned),
        from: token(&request, "from")?,
        to: token(&request, "to")?,
        backwards: request.query("dir").as_deref() != Some("f"),
        limit: limit(&request, &Events::default(), 50)?,
        recurse: request.query_as("recurse")?.unwrap_or(false),
    };
    let page = client.rooms.relations(&reader, &room_id, related).await?;
    stream(&client, page).await
}

/// 400 `M_INVALID_PARAM` for an unknown `include`, or when `from` is no token; 403 `M_FORBIDDEN` when the room is not
/// known or the user may not see it.
pub async fn threads(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let reader = reader(auth::requester(&client, &request).await?);
    let participated = match request.query("include").as_deref() {
        None | Some("all") => false,
        Some("participated") => true,
        Some(_) => return Err(ErrorResponse::invalid_param("include must be \"all\" or \"participated\"").into()),
    };
    let limit = limit(&request, &Events::default(), 50)?.max(1);
    let threads = Threads { participated, from: token(&request, "from")?, limit };
    let page = client.rooms.threads(&reader, &room_id(&request)?, threads).await?;
    stream(&client, page).await
}

/// 400 `M_MISSING_PARAM` without `ts`; 400 `M_INVALID_PARAM` for a time or direction that is none; 403 `M_FORBIDDEN` when the room is not
/// known or the user may not see it; 404 `M_NOT_FOUND` when it has no event on that side of the time.
pub async fn nearest(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let reader = reader(auth::requester(&client, &request).await?);
    nearest_for(&client, &request, reader).await
}

/// The same for a reader.
pub(in crate::client) async fn nearest_for(
    client: &Client,
    request: &Request,
    reader: Reader,
) -> Result<Response, Error> {
    let (asking, room_id) = (reader.user_id.clone(), room_id(request)?);
    let wanted_ms = request.query_as::<u64>("ts")?.ok_or_else(|| ErrorResponse::missing_param("ts"))?;
    let direction = match request.query("dir") {
        None => Direction::Forwards,
        Some(dir) => Direction::of(&dir).ok_or_else(|| ErrorResponse::invalid_param("dir must be \"b\" or \"f\""))?,
    };
    let may_ask = || {
        request.cancel_when_peer_leaves();
        request.limit_user(&rates::HISTORY, asking.as_str()).is_ok()
    };
    Ok(Response::json(&client.rooms.event_near(&reader, &room_id, wanted_ms, direction, may_ask).await?))
}

/// Streams a long answer under a grant.
pub(in crate::client) async fn stream(client: &Client, chunks: impl Chunks) -> Result<Response, Error> {
    let grant = client.budget.account("response_bodies").take(ANSWER_BYTES).await?;
    Ok(Response::stream(grant, chunks))
}

pub(in crate::client) fn reader(requester: Requester) -> Reader {
    Reader { user: requester.user_num, user_id: requester.user_id, device: requester.device_id, sees_all: false }
}

pub(in crate::client) fn room_id(request: &Request) -> Result<OwnedRoomId, ErrorResponse> {
    request.param_as("room_id")
}

fn event_id(request: &Request) -> Result<OwnedEventId, ErrorResponse> {
    request.param_as("event_id")
}

/// A pagination token in the query; an empty value counts as none.
pub(in crate::client) fn token(request: &Request, name: &str) -> Result<Option<Token>, ErrorResponse> {
    let Some(text) = request.query(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    Token::parse(&text)
        .map(Some)
        .ok_or_else(|| ErrorResponse::invalid_param(format!("{name} is not a pagination token of this server")))
}

fn filter(request: &Request) -> Result<Events, ErrorResponse> {
    match request.query("filter").filter(|text| !text.is_empty()) {
        Some(text) => Events::parse(text.as_bytes())
            .ok_or_else(|| ErrorResponse::invalid_param("The query parameter filter is missing or not valid")),
        None => Ok(Events::default()),
    }
}

/// The `limit` of the query, else that of the filter, else `default`.
fn limit(request: &Request, filter: &Events, default: usize) -> Result<usize, ErrorResponse> {
    let limit = request.query_as::<usize>("limit")?;
    Ok(limit.unwrap_or_else(|| filter.limit(default, PAGE_EVENTS_MAX)).min(PAGE_EVENTS_MAX))
}

//! `GET /_matrix/client/v3/sync`: changes since a token, or everything (client-server API, "Syncing").
//!
//! The handler registers a waiter, then looks for changes, then waits. The answer is written while it is sent, a piece
//! at a time under one grant: its memory does not depend on the number or size of the rooms.
//!
//! `rooms.rs` is the object `rooms`: which rooms stand in it, and each one's layout.

use std::sync::Arc;
use std::time::Duration;

use super::super::{Client, Error, Requester, auth};
use super::user;
use crate::base::{self, ChunkError, ChunkWriter};
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::matrix::json;
use crate::room::{ANSWER_BYTES, Filter, Reader, RoomNum, SyncToken};
use crate::user::UserSync;
use rooms::{ChangedRoom, RoomSections, Section};

mod rooms;
#[cfg(test)]
pub(crate) mod tests;

/// The longest wait, whatever `timeout` the app asks for: proxies cut idle connections after about this time.
const TIMEOUT_MS_MAX: u64 = 90_000;
/// Memory of one waiting request: its entry in the feed, the request, the task.
const WAITER_BYTES: u64 = 2 * 1024;

/// The parsed request.
struct Query {
    requester: Requester,
    since: Option<SyncToken>,
    full_state: bool,
    filter: Arc<Filter>,
    timeout: Duration,
}

/// 400 `M_INVALID_PARAM` when `since` or `filter` is not valid; 404 `M_NOT_FOUND` when there is no saved filter of
/// that number.
pub async fn sync(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let query = query(&client, &request).await?;
    if let Some(since) = query.since {
        let requester = &query.requester;
        let (user, device) = (requester.user_num, &requester.device_id);
        client.users.to_device_arrived(user, device, since.messages, since.at).await?;
    }
    let slot = client.budget.account("sync_waiters").take(WAITER_BYTES + query.filter.bytes()).await?;
    // Registered before anything is read: a change that lands in between would otherwise be missed.
    let waiter = client.feed.register(query.requester.user_num);
    let deadline = client.clock.instant() + query.timeout;
    loop {
        let news = look(&client, &query).await?;
        if news.is_none() {
            break;
        }
        request.cancel_when_peer_leaves();
        let came = tokio::select! {
            came = waiter.wait(deadline) => came,
            // Another connection needs this one's place: answer now, without news.
            () = request.hurried() => false,
        };
        if !came {
            return Ok(Response::json_bytes(StatusCode::OK, news.unwrap_or_default()));
        }
    }
    drop((waiter, slot));
    let grant = client.budget.account("response_bodies").take(ANSWER_BYTES + query.filter.bytes()).await?;
    let (rooms, own) = open(&client, &query).await?;
    Ok(Response::stream(grant, base::written(move |pen| write(pen, rooms, own))))
}

async fn query(client: &Client, request: &Request) -> Result<Query, Error> {
    let requester = auth::requester(client, request).await?;
    let since = match request.query("since").filter(|since| !since.is_empty()) {
        Some(since) => Some(
            SyncToken::parse(&since)
                .ok_or_else(|| ErrorResponse::invalid_param("The sync token is not one of this server"))?,
        ),
        None => None,
    };
    let timeout = request.query_as::<u64>("timeout")?.unwrap_or(0).min(TIMEOUT_MS_MAX);
    Ok(Query {
        since,
        full_state: request.query_as("full_state")?.unwrap_or(false),
        filter: Arc::new(filter(client, &requester, request).await?),
        timeout: Duration::from_millis(timeout),
        requester,
    })
}

/// The filter in the query, or the saved one whose number the query has.
async fn filter(client: &Client, requester: &Requester, request: &Request) -> Result<Filter, Error> {
    let bad = || ErrorResponse::invalid_param("There is no filter with this ID");
    let text = match request.query("filter") {
        None => return Ok(Filter::default()),
        Some(text) if text.starts_with('{') => text.into_bytes(),
        Some(text) if text.is_empty() => return Ok(Filter::default()),
        Some(number) => client.users.filter(requester.user_num, &number).await?,
    };
    Ok(Filter::parse(&text).ok_or_else(bad)?)
}

/// `None` when there are changes to report; otherwise the body of the answer without changes.
async fn look(client: &Arc<Client>, query: &Query) -> Result<Option<Vec<u8>>, Error> {
    let (rooms, own) = open(client, query).await?;
    base::blocking(move || {
        let also = own.rooms(|kind| rooms.filter.room.account_data.wants_type(kind))?;
        if rooms.is_whole() || own.any(|kind| rooms.filter.account_data.wants_type(kind))? || rooms.any(&also)? {
            return Ok(None);
        }
        let mut answer = format!("{{\"next_batch\":\"{}\",", rooms.view.now).into_bytes();
        user::write_keys(&mut answer, &own)?;
        answer.push(b'}');
        Ok(Some(answer))
    })
    .await
}

async fn open(client: &Arc<Client>, query: &Query) -> Result<(RoomSections, UserSync), Error> {
    let reader = Reader {
        user: query.requester.user_num,
        user_id: query.requester.user_id.clone(),
        device: query.requester.device_id.clone(),
    };
    let (since, full_state, filter) = (query.since, query.full_state, query.filter.clone());
    let (client, requester) = (client.clone(), query.requester.clone());
    base::blocking(move || {
        let rooms = RoomSections::new(client.rooms.sync_view(reader)?, since, full_state, filter);
        let (since, received) = rooms.since.map(|since| (since.at, since.messages)).unzip();
        let received = received.unwrap_or_default();
        let own = client.users.own(rooms.view.read.clone(), &requester, since, received, rooms.view.now.at);
        Ok((rooms, own))
    })
    .await
}

async fn write(pen: ChunkWriter, rooms: RoomSections, own: UserSync) -> Result<(), ChunkError> {
    let now = SyncToken { messages: own.messages_end()?, ..rooms.view.now };
    pen.text(&format!("{{\"next_batch\":\"{now}\",\"account_data\":{{\"events\":["));
    let wants = |kind: &str| rooms.filter.account_data.wants_type(kind);
    user::write_account_data(&pen, &own, None, rooms.is_whole(), wants, true).await?;
    pen.text("]},\"to_device\":{\"events\":[");
    user::write_to_device(&pen, &own, now.messages).await?;
    pen.text("]},\"device_lists\":{");
    user::write_device_lists(&pen, &own).await?;
    pen.text("},");
    pen.with(|out| user::write_keys(out, &own))?;
    pen.text(",\"rooms\":{");
    let also = own.rooms(|kind| rooms.filter.room.account_data.wants_type(kind))?;
    for section in Section::ALL {
        pen.text(if section == Section::Join { "" } else { "," });
        pen.text(&format!("\"{}\":{{", section.as_str()));
        write_rooms(&pen, section, &rooms, &own, &also).await?;
        pen.text("}");
    }
    pen.text("}}");
    Ok(())
}

async fn write_rooms(
    pen: &ChunkWriter,
    section: Section,
    rooms: &RoomSections,
    own: &UserSync,
    also: &[RoomNum],
) -> Result<(), ChunkError> {
    let mut after = None;
    while let Some(changed) = rooms.next(section, after, also)? {
        pen.text(if after.is_none() { "" } else { "," });
        pen.with(|out| json::write_string(out, &changed.id));
        pen.text(":{");
        rooms.write(pen, section, &changed).await?;
        if section == Section::Join {
            write_account_data(pen, rooms, own, &changed).await?;
        }
        pen.text("}");
        pen.pause().await;
        after = Some(changed.room.num);
    }
    Ok(())
}

/// A room's account data. Its `m.fully_read` is stored by the room part, the rest by the user part.
async fn write_account_data(
    pen: &ChunkWriter,
    rooms: &RoomSections,
    own: &UserSync,
    changed: &ChangedRoom,
) -> Result<(), ChunkError> {
    let filter = &rooms.filter.room.account_data;
    pen.text(",\"account_data\":{\"events\":[");
    if filter.wants_room(&changed.id) {
        let (num, whole) = (changed.room.num, rooms.is_told_whole(&changed.room));
        let known = rooms.since.filter(|_| !whole).map(|since| since.at);
        let marker = rooms.view.fully_read(num, known)?.filter(|_| filter.wants_type("m.fully_read"));
        if let Some(event_id) = &marker {
            pen.text("{\"type\":\"m.fully_read\",\"content\":{\"event_id\":");
            pen.with(|out| json::write_string(out, event_id));
            pen.text("}}");
        }
        let wants = |kind: &str| filter.wants_type(kind);
        user::write_account_data(pen, own, Some(num), whole, wants, marker.is_none()).await?;
    }
    pen.text("]}");
    Ok(())
}

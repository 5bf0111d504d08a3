//! Calls of version 1 of the API, which old bots make, and which let a user look into a room without being in it
//! ("Room Previews").
//!
//! - `GET /events`, `GET /events/{event_id}`
//! - `GET /initialSync`, `GET /rooms/{room_id}/initialSync`
//!
//! Presence, receipts and typing users are left out of them: their lists are empty.

use std::sync::Arc;
use std::time::Duration;

use ruma::{OwnedEventId, OwnedRoomId};

use super::timeline::{reader, room_id, stream};
use crate::base::{self, ChunkError, ChunkWriter, comma};
use crate::client::sync::user::write_account_data;
use crate::client::{Client, Error, auth};
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::matrix::json;
use crate::room::{Membership, Position, RoomNum, SyncToken, SyncView, Token, UserRoom};
use crate::user::UserSync;

/// How long a request waits when it does not say, and at most.
const TIMEOUT_MS: u64 = 30_000;
const TIMEOUT_MS_MAX: u64 = 90_000;
/// Memory of one waiting request: its entry in the feed, the request, the task.
const WAITER_BYTES: u64 = 2 * 1024;
/// Events of each room in a snapshot.
const EVENTS: usize = 10;
const EVENTS_MAX: usize = 100;

/// 400 `M_INVALID_PARAM` when `from` is no token; 400 `M_MISSING_PARAM` for a guest who names no room; 403 `M_FORBIDDEN` when the user may
/// not see the room named.
pub async fn events(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let room = request.query_as::<OwnedRoomId>("room_id")?;
    if requester.is_guest && room.is_none() {
        return Err(ErrorResponse::missing_param("room_id").into());
    }
    let from = match request.query("from").filter(|from| !from.is_empty()) {
        Some(from) => Some(place(&from)?),
        None => None,
    };
    let timeout = request.query_as::<u64>("timeout")?.unwrap_or(TIMEOUT_MS).min(TIMEOUT_MS_MAX);
    let slot = client.budget.account("sync_waiters").take(WAITER_BYTES).await?;
    let mut waiter = client.feed.register(requester.user_num);
    if let Some(room) = &room {
        // Nothing else wakes whoever is not in it.
        waiter.watch(client.rooms.may_look_into(&reader(requester.clone()), room).await?);
    }
    let deadline = client.clock.instant() + Duration::from_millis(timeout);
    let reader = reader(requester);
    let mut from = from;
    let page = loop {
        let page = client.rooms.events_after(&reader, room.as_deref(), from).await?;
        if !page.is_empty() || client.clock.instant() >= deadline {
            break page;
        }
        // Up to there everything was looked at. The snapshot goes: pages that it sees are not used again while it lives.
        from = Some(page.end);
        let is_whole = page.is_whole;
        drop(page);
        request.cancel_when_peer_leaves();
        if !is_whole {
            continue;
        }
        let hurried = tokio::select! {
            _ = waiter.wait(deadline) => false,
            () = request.hurried() => true,
        };
        // The session may have ended meanwhile.
        auth::requester(&client, &request).await?;
        if hurried {
            break client.rooms.events_after(&reader, room.as_deref(), from).await?;
        }
    };
    drop((waiter, slot));
    let written = base::written(move |pen| async move {
        let (start, end) = (position(page.from), position(page.end));
        pen.text(&format!("{{\"start\":\"{start}\",\"end\":\"{end}\",\"chunk\":["));
        page.write(&pen).await?;
        pen.text("]}");
        Ok(())
    });
    stream(&client, written).await
}

/// A place in the stream: the token of a sync, or of a page.
fn place(token: &str) -> Result<Position, ErrorResponse> {
    let place = Token::parse(token).map(|token| Position(token.0.max(0) as u64));
    place.ok_or_else(|| ErrorResponse::invalid_param("from is not a token of this server"))
}

fn position(at: Position) -> SyncToken {
    SyncToken { at, typing: 0, messages: at, presence: 0 }
}

/// 404 `M_NOT_FOUND` when the event is not known or the user may not see it.
pub async fn event(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let reader = reader(auth::requester(&client, &request).await?);
    let event_id = request.param_as::<OwnedEventId>("event_id")?;
    Ok(Response::json_bytes(StatusCode::OK, client.rooms.event_anywhere(&reader, &event_id).await?))
}

/// 403 `M_FORBIDDEN` when the room is not known or the user may not see it.
pub async fn room(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let (room_id, limit) = (room_id(&request)?, limit(&request)?);
    let (view, mut room) = client.rooms.look_into(&reader(requester.clone()), &room_id).await?;
    let own = client.users.own(room.snapshot(), &requester, None, view.now.at, view.now.at);
    let written = base::written(move |pen| async move {
        let end = view.now;
        pen.text("{\"room_id\":");
        pen.with(|out| json::write_string(out, room_id.as_str()));
        write_membership(&pen, view.membership_in(room.num())?);
        pen.text(",");
        room.write_snapshot(&pen, limit, &end.to_string()).await?;
        write_own(&pen, &own, room.num()).await?;
        pen.text(",\"presence\":[],\"receipts\":[]}");
        Ok(())
    });
    stream(&client, written).await
}

/// A snapshot of all rooms: those the user is in, with their newest events, and invites.
pub async fn all(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let limit = limit(&request)?;
    let archived = request.query_as::<bool>("archived")?.unwrap_or(false);
    let view = client.rooms.sync_view(reader(requester.clone()))?;
    let own = client.users.own(view.read.clone(), &requester, None, view.now.at, view.now.at);
    let written = base::written(move |pen| async move {
        pen.text(&format!("{{\"end\":\"{}\",\"presence\":[],\"receipts\":[],\"account_data\":[", view.now));
        write_account_data(&pen, &own, None, true, |_| true, true).await?;
        pen.text("],\"rooms\":[");
        let (mut first, mut after) = (true, None);
        let is_wanted = |membership| match membership {
            Membership::Join | Membership::Invite => true,
            Membership::Leave | Membership::Ban => archived,
            Membership::Knock => false,
        };
        let is_shown = |room: &UserRoom| {
            let is_hidden = room.membership() == Membership::Invite && view.is_invite_hidden(room)?;
            Ok(is_wanted(room.membership()) && !room.is_forgotten() && !is_hidden)
        };
        while let Some(room) = view.find_room(after, is_shown)? {
            after = Some(room.num);
            pen.with(|out| comma(out, &mut first));
            write_room(&pen, &view, &own, room.num, room.membership(), limit).await?;
            pen.pause().await;
        }
        pen.text("]}");
        Ok(())
    });
    stream(&client, written).await
}

async fn write_room(
    pen: &ChunkWriter,
    view: &SyncView,
    own: &UserSync,
    num: RoomNum,
    membership: Membership,
    limit: usize,
) -> Result<(), ChunkError> {
    let id = view.room_id(num)?;
    pen.text("{\"room_id\":");
    pen.with(|out| json::write_string(out, &id));
    write_membership(pen, Some(membership));
    let mut room = view.open_named(num)?;
    match membership {
        Membership::Invite => room.write_invite(pen)?,
        // Somebody who was banned before they ever came in has nothing to see.
        Membership::Leave | Membership::Ban if !room.may_enter() => {}
        _ => {
            pen.text(",");
            room.write_snapshot(pen, limit, &view.now.to_string()).await?;
        }
    }
    write_own(pen, own, num).await?;
    pen.text("}");
    Ok(())
}

fn write_membership(pen: &ChunkWriter, membership: Option<Membership>) {
    if let Some(membership) = membership {
        pen.text(&format!(",\"membership\":\"{}\"", membership.as_str()));
    }
}

async fn write_own(pen: &ChunkWriter, own: &UserSync, num: RoomNum) -> Result<(), ChunkError> {
    pen.text(",\"account_data\":[");
    write_account_data(pen, own, Some(num), true, |_| true, true).await?;
    pen.text("]");
    Ok(())
}

fn limit(request: &Request) -> Result<usize, ErrorResponse> {
    Ok(request.query_as::<usize>("limit")?.unwrap_or(EVENTS).min(EVENTS_MAX))
}

//! Spaces, and rooms seen from outside.
//!
//! - `GET /rooms/{room_id}/hierarchy`, under v1
//! - `GET /room_summary/{room_id_or_alias}`, under v1 and two older names
//! - `GET /mutual_rooms`, under v1 and an older name

use std::sync::Arc;

use ruma::{OwnedRoomAliasId, OwnedRoomId, OwnedServerName, OwnedUserId};
use serde_json::json;

use super::directory::resolve;
use super::timeline::{room_id, stream};
use crate::client::{Client, Error, auth, rates};
use crate::http::{ErrorResponse, Request, Response};
use crate::room::{HierarchyQuery, RoomSummary};

/// 403 `M_FORBIDDEN` when the user may not see the room; 400 `M_INVALID_PARAM` for a `limit` or `max_depth` that is no number of that
/// kind, or a `from` that is no token of the same question.
pub async fn hierarchy(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::SPACE, requester.user_id.as_str())?;
    let limit = request.query_as::<usize>("limit")?;
    if limit == Some(0) {
        return Err(ErrorResponse::invalid_param("limit must be greater than zero").into());
    }
    let query = HierarchyQuery {
        max_depth: request.query_as::<u64>("max_depth")?.map(|depth| depth.min(u16::MAX.into()) as u16),
        suggested_only: request.query_as("suggested_only")?.unwrap_or(false),
        limit,
        from: request.query("from").filter(|from| !from.is_empty()),
        sees_all: false,
    };
    let may_ask = || {
        request.cancel_when_peer_leaves();
        request.limit_user(&rates::ASK, requester.user_id.as_str()).is_ok()
    };
    let page = client.rooms.hierarchy(&requester.user_id, &room_id(&request)?, query, may_ask).await?;
    stream(&client, page).await
}

/// Needs no token for rooms of this server. Requests without one are limited by address.
///
/// 404 `M_NOT_FOUND` when there is no such room or alias, or it is not open to who asks; 401 `M_MISSING_TOKEN` without an access token
/// when other servers have to be asked.
pub async fn summary(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    Ok(Response::json(&summary_of(&client, &request).await?))
}

/// The same under the names from before a release of the specification had it: apps made for those look for two of its fields
/// under names of their own (MSC3266).
pub async fn old_summary(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let summary = summary_of(&client, &request).await?;
    let (version, encryption) = (summary.room.room_version.clone(), summary.room.encryption.clone());
    let mut answer = serde_json::to_value(summary).unwrap_or_default();
    for (name, value) in [("room_version", &version), ("version", &version), ("encryption", &encryption)] {
        if let Some(value) = value {
            answer[format!("im.nheko.summary.{name}")] = value.as_str().into();
        }
    }
    Ok(Response::json(&answer))
}

async fn summary_of(client: &Client, request: &Request) -> Result<RoomSummary, Error> {
    let requester = auth::maybe(client, request).await?;
    let user = requester.as_ref().map(|requester| &*requester.user_id);
    match user {
        Some(user) => request.limit_user(&rates::SPACE, user.as_str())?,
        None => request.limit(&rates::BROWSE)?,
    }
    let wanted = request.param("room_id_or_alias");
    let mut via: Vec<OwnedServerName> =
        request.query_all("via").filter_map(|name| OwnedServerName::try_from(name).ok()).take(VIA_MAX).collect();
    let room_id = match OwnedRoomAliasId::try_from(wanted) {
        Ok(alias) => {
            if alias.server_name() != client.rooms.server() {
                let user = user.ok_or_else(missing_token)?;
                request.limit_user(&rates::ASK, user.as_str())?;
            }
            let (room_id, servers) = resolve(&client.rooms, &alias).await?;
            via.extend(servers);
            room_id
        }
        Err(_) => request.param_as::<OwnedRoomId>("room_id_or_alias")?,
    };
    let may_ask = || user.is_some_and(|user| request.limit_user(&rates::ASK, user.as_str()).is_ok());
    match client.rooms.summary(user, &room_id, via, may_ask).await {
        Ok(summary) => Ok(summary),
        Err(crate::room::Error::Refused(_)) if user.is_none() => Err(missing_token().into()),
        Err(failed) => Err(failed.into()),
    }
}

/// Servers of a request that are taken up.
const VIA_MAX: usize = 20;

fn missing_token() -> ErrorResponse {
    ErrorResponse::unauthorized("M_MISSING_TOKEN", "Other servers are asked for users of this server only")
}

/// 400 `M_MISSING_PARAM` without `user_id`; 400 `M_INVALID_PARAM` for an id that is none or one's own, or a `from` of another server.
pub async fn mutual_rooms(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::FIND, requester.user_id.as_str())?;
    let mut named = request.query_all("user_id");
    let other = named.next().ok_or_else(|| ErrorResponse::missing_param("user_id"))?;
    if named.next().is_some() || OwnedUserId::try_from(other.as_str()).is_err() {
        return Err(ErrorResponse::invalid_param("user_id must be one user's ID").into());
    }
    if other == requester.user_id.as_str() {
        return Err(ErrorResponse::invalid_param("All rooms are shared with oneself").into());
    }
    let from = request.query("from").filter(|from| !from.is_empty());
    let (joined, count, next) = client.rooms.mutual_rooms(&requester.user_id, &other, from.as_deref()).await?;
    let mut answer = json!({ "joined": joined, "count": count });
    if let Some(next) = next {
        answer["next_batch"] = next.into();
    }
    Ok(Response::json(&answer))
}

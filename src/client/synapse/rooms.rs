//! Rooms: list, details, members, extremities, joining a user, an administrator for a room.

use std::sync::Arc;

use ruma::{OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Page, administrator, administrator_with_memory, administrator_with_stream, flag};
use crate::client::room::membership::named_room;
use crate::client::{Client, Error};
use crate::http::{ErrorResponse, Request, Response};
use crate::room::{Joining, ListedRoom, RoomOrder, WantedRooms};

/// GET /_synapse/admin/v1/rooms
pub async fn list(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (_, grant) = administrator_with_memory(&client, &request).await?;
    let page = Page::of(&request)?;
    let term = request.query("search_term");
    if term.as_deref() == Some("") {
        return Err(ErrorResponse::invalid_param("search_term cannot be an empty string").into());
    }
    let wanted = WantedRooms { term, public: flag(&request, "public_rooms")?, empty: flag(&request, "empty_rooms")? };
    let order = order(request.query("order_by").as_deref())?;
    let (found, total) = client.rooms.find(wanted, order, page.backwards, page.from, page.most).await?;
    let (many, next) = (found.len(), page.from + found.len());
    let mut rest = json!({ "offset": page.from, "total_rooms": total });
    if next < total && many > 0 {
        rest["next_batch"] = next.into();
    }
    if page.from > 0 {
        rest["prev_batch"] = page.from.saturating_sub(page.most).into();
    }
    let row = Box::new(move |at: usize| Ok(client.rooms.listed_now(found[at])?.map(|room| shown(&room))));
    Ok(super::listed(grant, "rooms", many, rest, row))
}

fn order(name: Option<&str>) -> Result<RoomOrder, ErrorResponse> {
    Ok(match name {
        None | Some("name" | "alphabetical") => RoomOrder::Name,
        Some("canonical_alias") => RoomOrder::Alias,
        Some("joined_members" | "size") => RoomOrder::Joined,
        Some("joined_local_members") => RoomOrder::LocalJoined,
        Some("version") => RoomOrder::Version,
        Some("creator") => RoomOrder::Creator,
        Some("encryption") => RoomOrder::Encryption,
        Some("federatable") => RoomOrder::Federated,
        Some("public") => RoomOrder::Public,
        Some("join_rules") => RoomOrder::JoinRule,
        Some("guest_access") => RoomOrder::GuestAccess,
        Some("history_visibility") => RoomOrder::History,
        Some("state_events") => RoomOrder::StateEvents,
        Some(_) => return Err(ErrorResponse::invalid_param("order_by names nothing that rooms can be ordered by")),
    })
}

/// `state_events` is the number of all events that are stored: the house counts no others.
fn shown(room: &ListedRoom) -> Value {
    let about = &room.description;
    json!({
        "room_id": about.room_id, "name": about.name, "canonical_alias": about.canonical_alias,
        "joined_members": about.num_joined_members, "joined_local_members": room.local_joined,
        "version": room.version, "creator": room.creator, "encryption": about.encryption,
        "federatable": room.federated, "public": room.public, "join_rules": about.join_rule,
        "guest_access": room.guest_access, "history_visibility": room.history_visibility,
        "state_events": room.events, "room_type": about.room_type,
    })
}

/// GET /_synapse/admin/v1/rooms/{room_id}
pub async fn details(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let room_id: OwnedRoomId = request.param_as("room_id")?;
    let room = client.rooms.listed(&room_id).await?;
    let devices = client.rooms.local_devices(&room_id).await?;
    let mut value = shown(&room);
    let more = json!({
        "topic": room.description.topic, "avatar": room.description.avatar_url, "joined_local_devices": devices,
        "forgotten": false, "tombstoned": room.replaced_by.is_some(), "replacement_room": room.replaced_by.flatten(),
    });
    if let (Some(value), Value::Object(more)) = (value.as_object_mut(), more) {
        value.extend(more);
    }
    Ok(Response::json(&value))
}

/// GET /_synapse/admin/v1/rooms/{room_id}/members
pub async fn members(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (_, grant) = administrator_with_stream(&client, &request).await?;
    let room_id: OwnedRoomId = request.param_as("room_id")?;
    Ok(Response::stream(grant, client.rooms.list_members(&room_id).await?))
}

/// GET /_synapse/admin/v1/rooms/{room_id}/forward_extremities
pub async fn extremities(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let room_id: OwnedRoomId = request.param_as("room_id")?;
    let found = client.rooms.extremities(&room_id).await?;
    let results: Vec<_> = found.iter().map(|(id, depth)| json!({ "event_id": id, "depth": depth })).collect();
    Ok(Response::json(&json!({ "count": results.len(), "results": results })))
}

#[derive(Deserialize)]
struct Joins {
    user_id: OwnedUserId,
}

/// POST /_synapse/admin/v1/join/{room_id_or_alias}: joins a user of this server. Where the administrator is in the room and may
/// invite, the user is invited first.
///
/// 400 `M_UNKNOWN` for a user of another server; otherwise the errors of joining.
pub async fn join(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let Joins { user_id } = request.json().await?;
    if user_id.server_name() != client.users.server() {
        return Err(ErrorResponse::bad("M_UNKNOWN", "This endpoint can only be used with local users").into());
    }
    client.users.listed(&user_id).await?;
    let (room_id, via) = named_room(&client, &request).await?;
    let is_inside = client.rooms.is_in_room(&user_id, &room_id).await?;
    if !is_inside && client.rooms.is_in_room(&by.user_id, &room_id).await? {
        // Where the administrator may not invite, the join says whether it goes without.
        if let Err(refused) = client.rooms.invite(&by.user_id, &room_id, &user_id, None).await {
            tracing::debug!(%refused, %room_id, "the administrator may not invite");
        }
    }
    let joining = Joining { via, by_server: true, ..Joining::default() };
    client.rooms.join(&user_id, &room_id, joining).await?;
    Ok(Response::json(&json!({ "room_id": room_id })))
}

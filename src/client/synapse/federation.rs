//! The servers with which this one shares rooms: how they do, which rooms those are, and trying one again.

use std::sync::Arc;

use ruma::OwnedServerName;
use serde_json::{Value, json};

use super::{NAMED_ROWS_MAX, Page, administrator, administrator_with_memory, beside, done};
use crate::client::{Client, Error};
use crate::http::{ErrorResponse, Request, Response};
use crate::room::{Destination, DestinationOrder};

/// GET /_synapse/admin/v1/federation/destinations: of servers that share a room with this one. `destination` has to be part of a name.
pub async fn list(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (_, grant) = administrator_with_memory(&client, &request).await?;
    let page = Page::of(&request)?;
    let order = match request.query("order_by").as_deref() {
        None | Some("destination") => DestinationOrder::Name,
        // When it was tried last follows from when it is tried next.
        Some("retry_last_ts") => DestinationOrder::RetriedLast,
        Some("retry_interval") => DestinationOrder::Failures,
        Some("failure_ts") => DestinationOrder::BehindSince,
        Some("last_successful_stream_ordering") => DestinationOrder::Position,
        Some(_) => {
            return Err(ErrorResponse::invalid_param("order_by names nothing that servers can be ordered by").into());
        }
    };
    let part = request.query("destination").unwrap_or_default();
    let (found, total) =
        client.rooms.destinations(part, order, page.backwards, page.from, page.most.min(NAMED_ROWS_MAX)).await?;
    let (many, rest) = (found.len(), beside(page, found.len(), total, |next| next.to_string().into()));
    let row = Box::new(move |at: usize| Ok(Some(shown(&found[at]))));
    Ok(super::listed(grant, "destinations", many, rest, row))
}

fn shown(one: &Destination) -> Value {
    json!({
        "destination": one.server, "retry_last_ts": one.retry_last_ms, "retry_interval": one.retry_interval_ms,
        "failure_ts": one.failing_since_ms, "last_successful_stream_ordering": one.position,
    })
}

/// GET /_synapse/admin/v1/federation/destinations/{destination}
pub async fn get(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    Ok(Response::json(&shown(&known(&client, &request).await?)))
}

async fn known(client: &Client, request: &Request) -> Result<Destination, Error> {
    let server: OwnedServerName = request.param_as("destination")?;
    let found = client.rooms.destination(&server).await?;
    Ok(found.ok_or_else(|| ErrorResponse::not_found("Unknown destination"))?)
}

/// GET /_synapse/admin/v1/federation/destinations/{destination}/rooms
pub async fn rooms(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (_, grant) = administrator_with_memory(&client, &request).await?;
    let page = Page::of(&request)?;
    let one = known(&client, &request).await?;
    let server: OwnedServerName = request.param_as("destination")?;
    let (found, total) =
        client.rooms.rooms_by_id_with(&server, page.backwards, page.from, page.most.min(NAMED_ROWS_MAX)).await?;
    let (many, rest) = (found.len(), beside(page, found.len(), total, |next| next.to_string().into()));
    // What it has of a room is what it has of everything.
    let row = Box::new(move |at: usize| {
        let (room_id, latest) = &found[at];
        Ok(Some(json!({ "room_id": room_id, "stream_ordering": *latest.min(&one.position) })))
    });
    Ok(super::listed(grant, "rooms", many, rest, row))
}

/// POST /_synapse/admin/v1/federation/destinations/{destination}/reset_connection: it is tried with the next thing there is for it.
///
/// 400 `M_UNKNOWN` for a server that is not waited for.
pub async fn reset(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let one = known(&client, &request).await?;
    if one.retry_last_ms == 0 {
        let message = "The retry timing does not need to be reset for this destination.";
        return Err(ErrorResponse::bad("M_UNKNOWN", message).into());
    }
    let server: OwnedServerName = request.param_as("destination")?;
    client.rooms.try_server_now(&server);
    tracing::info!("{} has {server} tried now", by.user_id);
    Ok(done())
}

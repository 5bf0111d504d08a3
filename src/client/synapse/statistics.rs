//! Statistics: what users have uploaded, the largest rooms.

use std::sync::Arc;

use serde_json::json;

use super::{Page, administrator, administrator_with_memory, beside, listed};
use crate::client::{Client, Error};
use crate::http::{ErrorResponse, Request, Response};
use crate::room::{RoomOrder, WantedRooms};
use crate::user::{Order, Wanted};

/// Rooms that are named, the largest; Synapse's number.
const ROOMS: usize = 10;

/// GET /_synapse/admin/v1/statistics/users/media: what users have uploaded, by user. With `from_ts` or `until_ts`, what they uploaded
/// then and is still there, which costs a walk over all uploads, as the number of files does.
///
/// 400 `M_INVALID_PARAM` for `order_by=media_count`: what is kept of users are bytes.
pub async fn media(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (_, grant) = administrator_with_memory(&client, &request).await?;
    let page = Page::of(&request)?;
    let order = match request.query("order_by").as_deref() {
        None | Some("user_id") => Order::Name,
        Some("displayname") => Order::DisplayName,
        Some("media_length") => Order::Uploaded,
        Some(_) => {
            let message =
                "order_by names nothing that users can be ordered by: it is user_id, displayname or media_length";
            return Err(ErrorResponse::invalid_param(message).into());
        }
    };
    let from_ms = request.query_as::<u64>("from_ts")?;
    let until_ms = request.query_as::<u64>("until_ts")?;
    let times_ms = from_ms.unwrap_or(0)..until_ms.unwrap_or(u64::MAX);
    if until_ms.is_some() && times_ms.is_empty() {
        return Err(ErrorResponse::invalid_param("Query parameter until_ts must be greater than from_ts.").into());
    }
    let wanted = Wanted { name: request.query("search_term"), uploaders: true, ..Wanted::default() };
    if wanted.name.as_deref() == Some("") {
        return Err(ErrorResponse::invalid_param("Query parameter search_term cannot be an empty string.").into());
    }
    let (found, total) = client.users.find(wanted, order, page.backwards, page.from, page.most).await?;
    let rest = beside(page, found.len(), total, |next| next.into());
    let mut found = client.media.uploads_by(found, times_ms).await?;
    if from_ms.is_some() || until_ms.is_some() {
        found.retain(|(_, files, _)| *files > 0);
    }
    let many = found.len();
    let row = Box::new(move |at: usize| {
        let (num, files, bytes) = found[at];
        Ok(client.users.listed_now(num)?.map(|listed| {
            json!({
                "user_id": listed.account.user_id, "displayname": listed.display_name, "media_count": files,
                "media_length": bytes,
            })
        }))
    });
    Ok(listed(grant, "users", many, rest, row))
}

/// GET /_synapse/admin/v1/statistics/database/rooms: those with the most bytes of events.
pub async fn rooms(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let (found, _) = client.rooms.find_brief(WantedRooms::default(), RoomOrder::Bytes, 0, ROOMS).await?;
    let found: Vec<_> =
        found.iter().map(|room| json!({ "room_id": room.room_id, "estimated_size": room.bytes })).collect();
    Ok(Response::json(&json!({ "rooms": found })))
}

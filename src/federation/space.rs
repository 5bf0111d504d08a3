//! A space and the rooms in it, for servers that are in none of them.

use std::sync::Arc;

use ruma::OwnedRoomId;

use super::{Error, Federation, auth};
use crate::http::{Request, Response};
use crate::room::ANSWER_BYTES;

/// `GET /hierarchy/{roomId}?suggested_only=`
pub async fn hierarchy(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    let origin = auth::origin(&federation, &mut request).await?;
    let room: OwnedRoomId = request.param_as("room_id")?;
    let suggested_only = request.query_as("suggested_only")?.unwrap_or(false);
    let grant = federation.answers.take(ANSWER_BYTES).await?;
    let told = federation.rooms.serve_hierarchy(&origin, &room, suggested_only).await?;
    Ok(Response::stream(grant, told))
}

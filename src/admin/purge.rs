//! The commands of `snug purge` and `snug disk`.

use std::sync::Arc;

use ruma::OwnedRoomId;
use serde::Deserialize;
use serde_json::json;

use super::{Admin, error::Error, page};
use crate::http::{ErrorResponse, Request, Response};
use crate::room::Close;

/// `GET /purge`: the rooms that are being removed, the bytes of the database's file, and whether it is being made smaller.
pub async fn list(admin: Arc<Admin>, _: Request) -> Result<Response, Error> {
    let purging = admin.rooms.purging().await?;
    let shown: Vec<_> = purging.iter().take(super::PAGE_ROWS).collect();
    let database_bytes = admin.rooms.database_bytes();
    let space = admin.rooms.space();
    let answer = json!({ "rooms": shown, "count": purging.len(), "database_bytes": database_bytes, "space": space });
    Ok(page(&admin, &answer).await?)
}

#[derive(Deserialize)]
struct Force {
    #[serde(default)]
    force: bool,
}

/// `POST /rooms/{room}/purge`: removes a room for good. Begins, and answers at once. With `force: true` people of this server
/// leave it first, and it goes once other servers were told, after ten minutes at most; a restart goes on with that.
pub async fn room(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    let room_id: OwnedRoomId = request.param_as("room")?;
    let Force { force } = request.json().await?;
    begin(&admin, room_id, force).await?;
    Ok(Response::ok())
}

/// Begins to remove a room. With `force` people of this server leave it first.
pub async fn begin(admin: &Admin, room_id: OwnedRoomId, force: bool) -> Result<(), Error> {
    match force {
        false => admin.rooms.purge(&room_id).await?,
        true => {
            admin.rooms.close(&room_id, None, Close { purge: true, ..Close::default() }).await?;
        }
    }
    Ok(())
}

/// `POST /purge/left`: begins to remove every room that nobody here is in or invited to. Answers how many.
pub async fn left(admin: Arc<Admin>, _: Request) -> Result<Response, Error> {
    let count = admin.rooms.purge_left(false).await?;
    Ok(Response::json(&json!({ "count": count })))
}

#[derive(Deserialize)]
struct Unused {
    unused_days: u32,
}

/// `POST /purge/devices`: removes the devices of people here that were not used for so many days. Answers how many.
pub async fn devices(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    let Unused { unused_days } = request.json().await?;
    if unused_days == 0 {
        return Err(
            ErrorResponse::bad("M_INVALID_PARAM", "Devices that were used today stay: name a day or more").into()
        );
    }
    let count = admin.users.remove_unused_devices(unused_days).await?;
    Ok(Response::json(&json!({ "count": count })))
}

#[derive(Deserialize)]
struct Older {
    days: u32,
    #[serde(default)]
    room_id: Option<OwnedRoomId>,
}

/// `POST /purge/history`: removes messages that are older than `days`, of one room or of all. Answers once they are gone; it
/// goes on when the caller goes away, also after a restart.
pub async fn history(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    let Older { days, room_id } = request.json().await?;
    let name = admin.rooms.begin_purge_by_age(room_id.as_deref(), None, days).await?;
    let (events, bytes) = purged(&admin, &name).await?;
    Ok(Response::json(&json!({ "events": events, "bytes": bytes })))
}

/// How many messages a removal took, and their bytes, once it is over.
pub async fn purged(admin: &Admin, name: &str) -> Result<(u64, u64), Error> {
    let task = admin.rooms.task_over(name).await?;
    match task.error {
        None => Ok((task.gone.events, task.gone.bytes)),
        Some(why) => Err(ErrorResponse::bad("M_UNKNOWN", why).into()),
    }
}

/// `POST /purge/space`: begins to give what is free in the database back to the disk. Answers at once; `GET /purge` tells how far
/// it is.
pub async fn space(admin: Arc<Admin>, _: Request) -> Result<Response, Error> {
    admin.rooms.make_space();
    Ok(Response::ok())
}

/// `GET /disk?from=`: what a table's rows take, some thousand rows at a time, and where the next part begins.
pub async fn disk(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let from = request.query("from").unwrap_or_default();
    let database_bytes = admin.rooms.database_bytes();
    let part = admin.rooms.measure(&from).await?;
    Ok(Response::json(&json!({ "part": part, "database_bytes": database_bytes })))
}

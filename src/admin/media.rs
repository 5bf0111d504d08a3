//! The commands of `snug media`.

use std::sync::Arc;

use ruma::OwnedServerName;
use serde::Deserialize;
use serde_json::json;

use super::{Admin, error::Error};
use crate::http::{ErrorResponse, Request, Response};

/// `GET /media`: what the files take, and may; bytes.
pub async fn usage(admin: Arc<Admin>, _: Request) -> Result<Response, Error> {
    let usage = admin.media.usage().await?;
    Ok(Response::json(&json!({
        "local_bytes": usage.local_bytes, "local_bytes_max": usage.local_bytes_max,
        "remote_bytes": usage.remote_bytes, "remote_bytes_max": usage.remote_bytes_max,
        "disk_bytes": usage.disk_bytes, "spare_bytes": usage.spare_bytes, "free_bytes": usage.free_bytes,
    })))
}

/// `POST /media/{server}/{media_id}/remove`: removes one file for good, or the kept one of another server. 404 when there
/// is none.
pub async fn remove(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    let server: OwnedServerName = request.param_as("server")?;
    let media_id = request.param("media_id");
    match admin.media.remove(&server, media_id).await? {
        true => Ok(Response::ok()),
        false => Err(ErrorResponse::not_found(format!("there is no file mxc://{server}/{media_id} here")).into()),
    }
}

#[derive(Deserialize)]
struct Unused {
    unused_days: u32,
}

/// `POST /media/remove-remote`: removes what is kept of other servers and nobody asked for in `unused_days`. Answers once
/// all of it is gone.
pub async fn remove_remote(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    let Unused { unused_days } = request.json().await?;
    let (count, bytes) = admin.media.remove_remote(unused_days).await?;
    Ok(Response::json(&json!({ "count": count, "bytes": bytes })))
}

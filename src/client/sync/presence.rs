//! The presence of an app that syncs.

use crate::client::{Client, Error, Requester};
use crate::http::ErrorResponse;
use crate::user::{PresenceStatus, Syncing};

/// Notes that a device syncs. `wish`: the request's `set_presence`; 400 `M_INVALID_PARAM` when that is no state.
pub async fn begin(client: &Client, of: &Requester, wish: Option<String>) -> Result<Option<Syncing>, Error> {
    let status = match wish.as_deref() {
        None | Some("") => PresenceStatus::Online,
        Some(name) => PresenceStatus::of(name)
            .ok_or_else(|| ErrorResponse::invalid_param("set_presence is online, offline or unavailable"))?,
    };
    Ok(client.users.sync_begins(of, status).await?)
}

//! How this server, or another, is reached by federation: for `snug check` and the page.

use std::sync::Arc;

use ruma::OwnedServerName;
use serde::Deserialize;
use serde_json::json;

use super::{Admin, error::Error};
use crate::http::{Request, Response};

#[derive(Deserialize)]
struct Which {
    /// Absent: signed requests to this server itself and nothing else.
    server: Option<OwnedServerName>,
}

/// `POST /examine`: the steps, in order. Takes up to a minute.
pub async fn examine(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    let Which { server } = request.json().await?;
    let steps = match server {
        Some(server) => admin.remote.examine(&server).await,
        None => admin.remote.examine_myself().await,
    };
    Ok(Response::json(&json!({ "steps": steps })))
}

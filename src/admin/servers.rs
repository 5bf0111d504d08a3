//! The commands of `snug servers`: with which other servers there are no dealings.

use std::sync::Arc;

use ruma::{OwnedServerName, ServerName};
use serde::Deserialize;
use serde_json::json;

use super::{Admin, error::Error, page, reload::whole};
use crate::http::{ErrorResponse, Request, Response};

/// The setting that names them.
const SETTING: &str = "federation.denied_servers";

/// `GET /servers/denied`: names and patterns, as the setting has them.
pub async fn denied(admin: Arc<Admin>, _: Request) -> Result<Response, Error> {
    let denied = admin.remote.barred().denied();
    Ok(page(&admin, &json!({ "denied": &denied[..] })).await?)
}

/// `POST /servers/{server}/deny`: denies a server; with `denied: false` it is let in again.
pub async fn set(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    #[derive(Deserialize)]
    struct Deny {
        denied: bool,
    }
    let server: OwnedServerName = request.param_as("server")?;
    let Deny { denied } = request.json().await?;
    deny(&admin, &server, denied).await?;
    Ok(Response::ok())
}

/// Writes a server into the setting, or takes it out; it is in force at once. What is there already is no error. An error says
/// why the config file cannot be written, or what denies the server otherwise.
pub async fn deny(admin: &Admin, server: &ServerName, denied: bool) -> Result<(), Error> {
    let name = server.as_str().to_ascii_lowercase();
    if admin.remote.is_me(server) {
        return Err(ErrorResponse::invalid_param(format!("{name} is this server itself")).into());
    }
    let reload = whole(admin)?;
    let _turn = admin.denying.lock().await;
    let mut list: Vec<String> = admin.remote.barred().denied().to_vec();
    match (list.contains(&name), denied) {
        (false, true) => list.push(name),
        (true, false) => list.retain(|known| *known != name),
        (true, true) | (false, false) => return Ok(()),
    }
    // The last one takes the setting out of the file.
    let typed = (!list.is_empty()).then(|| list.join("\n"));
    reload.change(SETTING, typed.as_deref()).await.map_err(|wrong| ErrorResponse::bad("M_UNKNOWN", wrong))?;
    if !denied {
        admin.remote.backoff().try_now(server);
    }
    Ok(())
}

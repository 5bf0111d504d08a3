//! What administrators ask for from their apps ("Server administration"): GET admin/whois, GET and PUT admin/suspend and
//! admin/lock.

use std::sync::Arc;

use ruma::OwnedUserId;
use serde::Deserialize;
use serde_json::{Map, json};

use super::{Client, Error, auth};
use crate::http::{ErrorResponse, Request, Response};
use crate::user::{Account, Standing};

/// GET /_matrix/client/v3/admin/whois/{user_id}: where the user's devices were last seen. For oneself, and for
/// administrators.
///
/// 403 `M_FORBIDDEN` for another user, unless the requester is an administrator; 400 `M_INVALID_PARAM` for a user of
/// another server; 404 `M_NOT_FOUND` when there is no such account.
pub async fn whois(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let user_id: OwnedUserId = request.param_as("user_id")?;
    if user_id != requester.user_id && !requester.is_admin {
        return Err(not_an_administrator().into());
    }
    if user_id.server_name() != client.users.server() {
        return Err(of_another_server().into());
    }
    let mut devices = Map::new();
    for device in client.users.devices_of(&user_id).await? {
        let connection = json!({ "ip": device["last_seen_ip"], "last_seen": device["last_seen_ts"] });
        let sessions = json!([{ "connections": [connection] }]);
        if let Some(id) = device["device_id"].as_str() {
            devices.insert(id.to_owned(), json!({ "sessions": sessions }));
        }
    }
    Ok(Response::json(&json!({ "user_id": user_id, "devices": devices })))
}

#[derive(Deserialize)]
struct Suspended {
    suspended: bool,
}

#[derive(Deserialize)]
struct Locked {
    locked: bool,
}

/// GET /_matrix/client/v1/admin/suspend/{user_id}
///
/// 403 `M_FORBIDDEN` for who is no administrator, and about other administrators; 400 `M_INVALID_PARAM` for a user of
/// another server; 404 `M_NOT_FOUND` when there is no such account, or not any more.
pub async fn suspended(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (account, _) = moderated(&client, &request).await?;
    Ok(Response::json(&json!({ "suspended": account.suspended })))
}

/// PUT /_matrix/client/v1/admin/suspend/{user_id}
///
/// As [`suspended`]; also 403 `M_FORBIDDEN` for the administrator's own account.
pub async fn suspend(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let (account, by) = moderated(&client, &request).await?;
    let Suspended { suspended } = request.json().await?;
    check_not_own(&account, &by)?;
    client.users.set_suspended(&account.user_id, suspended).await?;
    tracing::info!("{by} {} {}", if suspended { "suspended" } else { "unsuspended" }, account.user_id);
    Ok(Response::json(&json!({ "suspended": suspended })))
}

/// GET /_matrix/client/v1/admin/lock/{user_id}: refused as [`suspended`].
pub async fn locked(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (account, _) = moderated(&client, &request).await?;
    Ok(Response::json(&json!({ "locked": account.locked })))
}

/// PUT /_matrix/client/v1/admin/lock/{user_id}: refused as [`suspend`].
pub async fn lock(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let (account, by) = moderated(&client, &request).await?;
    let Locked { locked } = request.json().await?;
    check_not_own(&account, &by)?;
    client.users.set_locked(&account.user_id, locked).await?;
    tracing::info!("{by} {} {}", if locked { "locked" } else { "unlocked" }, account.user_id);
    Ok(Response::json(&json!({ "locked": locked })))
}

/// The account that an administrator asks about, and the administrator. What they may do is looked at before the account:
/// others must not learn which there are.
async fn moderated(client: &Client, request: &Request) -> Result<(Account, OwnedUserId), Error> {
    let requester = auth::requester(client, request).await?;
    if !requester.is_admin {
        return Err(not_an_administrator().into());
    }
    let user_id: OwnedUserId = request.param_as("user_id")?;
    if user_id.server_name() != client.users.server() {
        return Err(of_another_server().into());
    }
    let account = client.users.account(&user_id).await?;
    let account = account.filter(|account| account.standing == Standing::Active);
    let account = account.ok_or_else(|| ErrorResponse::not_found("This server has no such account"))?;
    match account.admin && user_id != requester.user_id {
        true => Err(ErrorResponse::forbidden("Administrators neither lock nor suspend each other").into()),
        false => Ok((account, requester.user_id)),
    }
}

fn check_not_own(account: &Account, by: &OwnedUserId) -> Result<(), ErrorResponse> {
    match account.user_id == *by {
        true => Err(ErrorResponse::forbidden("Administrators neither lock nor suspend themselves")),
        false => Ok(()),
    }
}

fn not_an_administrator() -> ErrorResponse {
    ErrorResponse::forbidden("Only administrators of this server may ask this")
}

fn of_another_server() -> ErrorResponse {
    ErrorResponse::invalid_param("That user is not one of this server")
}

//! End-to-end keys: POST keys/upload, keys/query, keys/claim, GET keys/changes, POST keys/device_signing/upload,
//! POST keys/signatures/upload.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ruma::OwnedUserId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::sync::user::write_device_lists;
use super::{Client, Error, auth, rates};
use crate::base::{self, ChunkError, ChunkWriter, blocking};
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::room::{ANSWER_BYTES, SyncToken};
use crate::user::{Claims, CrossKeys, CrossUpload, KeyUpload, Stage, UiaRequest, UserSync, Viewer};

/// POST /_matrix/client/v3/keys/upload
///
/// 400 `M_MISSING_PARAM` for an application service that names no device; 400 `M_BAD_JSON` when a key lacks a required member, `signatures` included; 400 `M_INVALID_PARAM` when the device keys
/// are not those of this device, when a one-time key has a bad name, or when its id exists with another value; 413 `M_TOO_LARGE` for more keys or bytes than a device may have.
pub async fn upload(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    if requester.device_id.is_empty() {
        return Err(ErrorResponse::missing_param("device_id").into());
    }
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let body: KeyUpload = request.json_or_empty().await?;
    let counts = client.users.upload_keys(&requester, body).await?;
    Ok(Response::json(&json!({ "one_time_key_counts": counts })))
}

#[derive(Deserialize)]
struct QueryBody {
    device_keys: BTreeMap<OwnedUserId, Vec<String>>,
    /// How long to wait for other servers, in milliseconds.
    #[serde(default)]
    timeout: Option<u64>,
}

/// POST /_matrix/client/v3/keys/query
///
/// Another server's failure stands under `failures` and is no error of the request.
pub async fn query(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let body: QueryBody = request.json().await?;
    if body.device_keys.keys().any(|user| user.server_name() != client.users.server()) {
        request.limit_user(&rates::ASK, requester.user_id.as_str())?;
    }
    let (viewer, timeout) = (Viewer::Local(requester.user_num), body.timeout.map(Duration::from_millis));
    let (json, grant) = client.users.keys_query(viewer, body.device_keys, timeout).await?.into_json();
    Ok(Response::charged(StatusCode::OK, "application/json", json, grant))
}

#[derive(Deserialize)]
struct ClaimBody {
    one_time_keys: Claims,
    #[serde(default)]
    timeout: Option<u64>,
}

/// POST /_matrix/client/v3/keys/claim
///
/// Another server's failure stands under `failures` and is no error of the request.
pub async fn claim(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let body: ClaimBody = request.json().await?;
    if body.one_time_keys.keys().any(|user| user.server_name() != client.users.server()) {
        request.limit_user(&rates::ASK, requester.user_id.as_str())?;
    }
    let (viewer, timeout) = (Viewer::Local(requester.user_num), body.timeout.map(Duration::from_millis));
    let (json, grant) = client.users.keys_claim(viewer, body.one_time_keys, timeout).await?.into_json();
    Ok(Response::charged(StatusCode::OK, "application/json", json, grant))
}

/// GET /_matrix/client/v3/keys/changes: the changes of device lists in the syncs between two tokens.
///
/// 400 `M_MISSING_PARAM` without `from` or `to`; 400 `M_INVALID_PARAM` when one of them is no sync token.
pub async fn changes(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let place = |name: &str| {
        let token = request.query(name).ok_or_else(|| ErrorResponse::missing_param(name))?;
        SyncToken::parse(&token)
            .ok_or_else(|| ErrorResponse::invalid_param(format!("The query parameter {name} is missing or not valid")))
    };
    let (from, to) = (place("from")?, place("to")?);
    let from = client.rooms.before_loss(from).unwrap_or(from);
    let grant = client.budget.account("response_bodies").take(ANSWER_BYTES).await?;
    let own = blocking(move || {
        let read = Arc::new(client.rooms.read()?);
        Ok::<_, Error>(client.users.own(read, &requester, Some(from.at), to.at, to.at))
    })
    .await?;
    Ok(Response::stream(grant, base::written(move |pen| changed(pen, own))))
}

async fn changed(pen: ChunkWriter, own: UserSync) -> Result<(), ChunkError> {
    pen.text("{");
    write_device_lists(&pen, &own).await?;
    pen.text("}");
    Ok(())
}

#[derive(Deserialize)]
struct SigningBody {
    #[serde(flatten)]
    keys: CrossKeys,
    #[serde(default)]
    auth: Option<Value>,
}

/// POST /_matrix/client/v3/keys/device_signing/upload. Only replacing keys needs user-interactive authentication.
///
/// 401 with the flows of user-interactive authentication until it is complete; 403 `M_FORBIDDEN` when `auth` names
/// another user; 429 `M_LIMIT_EXCEEDED` after too many wrong passwords; 400 `M_INVALID_PARAM` when a key has the wrong
/// shape; 400 `M_MISSING_PARAM` without a master key; 400 `M_INVALID_SIGNATURE` when a key is not signed by the
/// master key; 413 `M_TOO_LARGE` when a key is too long.
pub async fn device_signing(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let body: SigningBody = request.json().await?;
    let mut is_proved = false;
    loop {
        match client.users.would_upload(&requester, &body.keys).await? {
            CrossUpload::Same => return Ok(Response::ok()),
            CrossUpload::First => {}
            CrossUpload::Replaces => {
                let demand = UiaRequest {
                    operation: "device_signing",
                    target: body.keys.target(),
                    user: Some(&requester.user_id),
                    stages: &[Stage::Password],
                    tokens: &[],
                };
                if let Some(asked) =
                    auth::authenticate(&client, &request, Some(&requester), demand, body.auth.as_ref()).await?
                {
                    return Ok(asked);
                }
                is_proved = true;
            }
        }
        // Otherwise others were uploaded meanwhile, and these replace them.
        if client.users.upload_cross_keys(&requester, body.keys.clone(), is_proved).await? {
            return Ok(Response::ok());
        }
    }
}

/// POST /_matrix/client/v3/keys/signatures/upload
///
/// 413 `M_TOO_LARGE` for too many signatures at once. A signature that is not accepted stands under `failures`.
pub async fn signatures(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let body: BTreeMap<OwnedUserId, BTreeMap<String, Value>> = request.json().await?;
    let failures = client.users.upload_signatures(&requester, body).await?;
    Ok(Response::json(&json!({ "failures": failures })))
}

//! Devices: GET devices, GET, PUT and DELETE devices/{id}, POST delete_devices.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::{Client, Error, Requester, auth, rates};
use crate::http::{Request, Response, StatusCode};
use crate::user::{Stage, Target, UiaRequest};

/// GET /_matrix/client/v3/devices
pub async fn list(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let devices = client.users.devices(requester.user_num).await?;
    Ok(Response::json(&json!({ "devices": devices })))
}

/// GET /_matrix/client/v3/devices/{device_id}
///
/// 404 `M_NOT_FOUND` when the user has no such device.
pub async fn get(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    Ok(Response::json(&client.users.device(requester.user_num, request.param("device_id")).await?))
}

#[derive(Deserialize)]
struct NameBody {
    #[serde(default)]
    display_name: Option<String>,
}

/// PUT /_matrix/client/v3/devices/{device_id}
///
/// 404 `M_NOT_FOUND` when the user has no such device; 413 `M_TOO_LARGE` when the name is too long. For an application service it
/// makes the device, and answers 201 then.
pub async fn put(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let body: NameBody = request.json().await?;
    let device_id = request.param("device_id");
    if requester.service.is_some() {
        request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
        let created =
            client.users.create_device(requester.user_num, &requester.user_id, device_id, body.display_name).await?;
        let status = if created { StatusCode::CREATED } else { StatusCode::OK };
        return Ok(Response::json_with(status, &json!({})));
    }
    match body.display_name {
        Some(name) => {
            client.users.name_device(requester.user_num, &requester.user_id, device_id, Some(name)).await?;
        }
        // Nothing to change, but an unknown device is a 404.
        None => drop(client.users.device(requester.user_num, device_id).await?),
    }
    Ok(Response::ok())
}

#[derive(Deserialize)]
struct DeleteBody {
    #[serde(default)]
    devices: Vec<String>,
    #[serde(default)]
    auth: Option<Value>,
}

/// DELETE /_matrix/client/v3/devices/{device_id}
///
/// 401 with the flows of user-interactive authentication until it is complete; 403 `M_FORBIDDEN` when `auth` names
/// another user; 429 `M_LIMIT_EXCEEDED` after too many wrong passwords. An unknown device is no error.
pub async fn delete(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let mut body: DeleteBody = request.json_or_empty().await?;
    body.devices = vec![request.param("device_id").to_owned()];
    remove(&client, &request, &requester, body).await
}

/// POST /_matrix/client/v3/delete_devices
///
/// 401 with the flows of user-interactive authentication until it is complete; 403 `M_FORBIDDEN` when `auth` names
/// another user; 429 `M_LIMIT_EXCEEDED` after too many wrong passwords. Unknown devices are no error.
pub async fn delete_many(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let body: DeleteBody = request.json().await?;
    remove(&client, &request, &requester, body).await
}

async fn remove(
    client: &Client,
    request: &Request,
    requester: &Requester,
    body: DeleteBody,
) -> Result<Response, Error> {
    let mut devices: Vec<_> = body.devices.iter().map(String::as_str).collect();
    devices.sort_unstable();
    let demand = UiaRequest {
        operation: "delete_devices",
        target: Target::of(devices),
        user: Some(&requester.user_id),
        stages: &[Stage::Password],
        tokens: &[],
    };
    if let Some(asked) = auth::authenticate(client, request, Some(requester), demand, body.auth.as_ref()).await? {
        return Ok(asked);
    }
    client.users.remove_devices(requester.user_num, &requester.user_id, body.devices).await?;
    Ok(Response::ok())
}

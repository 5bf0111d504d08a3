//! What application services alone may ask (application service API, "Client-Server API Extensions"): POST
//! appservice/{id}/ping, PUT directory/list/appservice/{network_id}/{room_id}.

use std::sync::Arc;

use ruma::OwnedRoomId;
use serde::Deserialize;
use serde_json::json;

use super::{Client, Error, auth};
use crate::http::{ErrorResponse, Request, Response, StatusCode};

#[derive(Deserialize, Default)]
struct PingBody {
    #[serde(default)]
    transaction_id: Option<String>,
}

/// POST /_matrix/client/v1/appservice/{service_id}/ping: asks the service itself, as everything that it is told does.
///
/// 401 without the token of a service; 403 `M_FORBIDDEN` when the id is another service's; 400 `M_URL_NOT_SET`; 502
/// `M_BAD_STATUS` with the status and the beginning of the body when it does not answer with 2xx; 502 `M_CONNECTION_FAILED`;
/// 504 `M_CONNECTION_TIMEOUT`.
pub async fn ping(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let service = auth::service(&client, &request)?;
    if request.param("service_id") != service.id {
        return Err(ErrorResponse::forbidden("The ID in the path is not that of the access token's service").into());
    }
    let PingBody { transaction_id } = request.json_or_empty().await?;
    if service.url.is_none() {
        return Err(ErrorResponse::bad("M_URL_NOT_SET", "The registration of this service has no url").into());
    }
    let began = client.clock.instant();
    let answered = client.users.services().ping(&service, transaction_id.as_deref()).await;
    let duration_ms = client.clock.instant().saturating_sub(began).as_millis() as u64;
    match answered {
        Ok(answered) if answered.is_success() => {
            client.users.services().poke(&service);
            Ok(Response::json(&json!({ "duration_ms": duration_ms })))
        }
        Ok(answered) => {
            let says = answered.says(&service);
            tracing::warn!("the application service {} answers a ping with {says}", service.id);
            let body: String = String::from_utf8_lossy(&answered.body).chars().take(1024).collect();
            let message = format!("The service answers with {says}");
            Err(ErrorResponse::new(StatusCode::BAD_GATEWAY, "M_BAD_STATUS", message)
                .with("status", answered.status)
                .with("body", body)
                .into())
        }
        Err(crate::user::ServiceFailed::Timeout) => {
            let message = "The service does not answer in time";
            Err(ErrorResponse::new(StatusCode::GATEWAY_TIMEOUT, "M_CONNECTION_TIMEOUT", message).into())
        }
        Err(failed) => {
            let message = format!("The service {failed}");
            Err(ErrorResponse::new(StatusCode::BAD_GATEWAY, "M_CONNECTION_FAILED", message).into())
        }
    }
}

#[derive(Deserialize)]
struct Visibility {
    visibility: String,
}

/// PUT /_matrix/client/v3/directory/list/appservice/{network_id}/{room_id}
///
/// 401 without the token of a service; 400 `M_INVALID_PARAM` for an unknown visibility; 404 `M_NOT_FOUND` for an unknown
/// room; 403 `M_FORBIDDEN` when the network has too many.
pub async fn list_room(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let service = auth::service(&client, &request)?;
    let Visibility { visibility } = request.json().await?;
    let listed = match visibility.as_str() {
        "public" => true,
        "private" => false,
        _ => return Err(ErrorResponse::invalid_param("visibility must be \"public\" or \"private\"").into()),
    };
    let network = crate::user::network_instance(&service, request.param("network_id"));
    client.rooms.set_public_in(&network, &request.param_as::<OwnedRoomId>("room_id")?, listed).await?;
    Ok(Response::ok())
}

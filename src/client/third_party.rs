//! Looking up rooms and users of other networks ("Third-party Networks"): GET thirdparty/protocols, protocol, location and
//! user. They are what the application services say, each of which is asked then.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Client, Error, auth, rates};
use crate::base::gathered;
use crate::budget::Grant;
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::user::ThirdParty;

/// GET /_matrix/client/v3/thirdparty/protocols
pub async fn protocols(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    asking(&client, &request).await?;
    let (all, paid) = client.users.services().protocols(None).await;
    let all: Map<String, Value> = gathered(all);
    Ok(paid_by(serde_json::to_vec(&all).map_err(ErrorResponse::internal)?, paid))
}

/// GET /_matrix/client/v3/thirdparty/protocol/{protocol}
///
/// 404 `M_NOT_FOUND` when no service of this server has this protocol.
pub async fn protocol(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    asking(&client, &request).await?;
    let (mut all, paid) = client.users.services().protocols(Some(request.param("protocol"))).await;
    match all.pop() {
        Some((_, told)) => Ok(paid_by(serde_json::to_vec(&told).map_err(ErrorResponse::internal)?, paid)),
        None => Err(ErrorResponse::not_found("No bridge of this server has this protocol").into()),
    }
}

/// GET /_matrix/client/v3/thirdparty/location[/{protocol}]
///
/// 400 `M_MISSING_PARAM` without a protocol and without `alias`.
pub async fn locations(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    found(&client, &request, ThirdParty::Location, "alias").await
}

/// GET /_matrix/client/v3/thirdparty/user[/{protocol}]
///
/// 400 `M_MISSING_PARAM` without a protocol and without `userid`.
pub async fn users(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    found(&client, &request, ThirdParty::User, "userid").await
}

async fn found(client: &Client, request: &Request, kind: ThirdParty, by: &'static str) -> Result<Response, Error> {
    asking(client, request).await?;
    let protocol = request.param_maybe("protocol");
    if protocol.is_none() && request.query(by).is_none() {
        return Err(ErrorResponse::missing_param(by).into());
    }
    // The services are asked with the fields that the app gave, but for what was meant for us.
    let own = |name: &str| matches!(name, "access_token" | "user_id" | "device_id" | "org.matrix.msc3202.device_id");
    let pairs = form_urlencoded::parse(request.raw_query().unwrap_or_default().as_bytes());
    let query =
        form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs.filter(|(name, _)| !own(name))).finish();
    let (list, paid) = client.users.services().third_party(kind, protocol, &query).await;
    Ok(paid_by(list, paid))
}

/// The answer, which is paid for until the app has it. What it was made from is gone, and of the grant no more stays than it needs.
fn paid_by(text: Vec<u8>, grant: Option<Grant>) -> Response {
    let Some(mut grant) = grant else { return Response::json_bytes(StatusCode::OK, text) };
    let spare = grant.bytes().saturating_sub(text.len() as u64);
    grant.shrink(spare);
    Response::charged(StatusCode::OK, "application/json", text, grant)
}

/// Each of these makes this server ask the services.
async fn asking(client: &Client, request: &Request) -> Result<(), Error> {
    let requester = auth::requester(client, request).await?;
    Ok(request.limit_user(&rates::ASK, requester.user_id.as_str())?)
}

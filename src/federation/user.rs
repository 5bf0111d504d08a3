//! Devices and keys of local users: `user/devices`, `user/keys/query`, `user/keys/claim`.

use std::collections::BTreeMap;
use std::sync::Arc;

use ruma::OwnedUserId;
use serde::Deserialize;

use super::{Error, Federation, auth};
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::user::{Claims, Viewer};

/// Users in one query; each may have many devices.
const USERS_MAX: usize = 250;

/// `GET /user/devices/{userId}`
pub async fn devices(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    auth::origin(&federation, &mut request).await?;
    let user: OwnedUserId = request.param_as("user_id")?;
    if user.server_name() != federation.server_name {
        return Err(ErrorResponse::not_found("The user belongs to another server").into());
    }
    let (json, grant) = federation.users.devices_for_server(&user).await?;
    Ok(Response::charged(StatusCode::OK, "application/json", json, grant))
}

/// `POST /user/keys/query`
pub async fn query(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    #[derive(Deserialize)]
    struct Asked {
        device_keys: BTreeMap<OwnedUserId, Vec<String>>,
    }
    let (_, mut asked) = auth::origin_and_json::<Asked>(&federation, &mut request).await?;
    asked.device_keys.retain(|user, _| user.server_name() == federation.server_name);
    check_count(asked.device_keys.len())?;
    let (json, grant) = federation.users.keys_query(Viewer::OtherServer, asked.device_keys, None).await?.into_json();
    Ok(Response::charged(StatusCode::OK, "application/json", json, grant))
}

/// `POST /user/keys/claim`
pub async fn claim(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    #[derive(Deserialize)]
    struct Asked {
        one_time_keys: Claims,
    }
    let (_, mut asked) = auth::origin_and_json::<Asked>(&federation, &mut request).await?;
    asked.one_time_keys.retain(|user, _| user.server_name() == federation.server_name);
    check_count(asked.one_time_keys.len())?;
    let (json, grant) = federation.users.keys_claim(Viewer::OtherServer, asked.one_time_keys, None).await?.into_json();
    Ok(Response::charged(StatusCode::OK, "application/json", json, grant))
}

fn check_count(users: usize) -> Result<(), ErrorResponse> {
    match users <= USERS_MAX {
        true => Ok(()),
        false => Err(ErrorResponse::bad("M_TOO_LARGE", format!("A request may name {USERS_MAX} users at most"))),
    }
}

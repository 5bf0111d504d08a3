//! What one account may do, and what becomes of what it sends: rates of its own, shadow bans.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use super::{administrator, done, local_user};
use crate::client::{Client, Error};
use crate::http::{ErrorResponse, Request, Response};
use crate::user::Pace;

/// GET /_synapse/admin/v1/users/{user_id}/override_ratelimit: an empty object for an account that has everybody's rates.
///
/// 404 `M_NOT_FOUND` for an unknown account; 400 `M_UNKNOWN` for one of another server.
pub async fn pace(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let user_id = local_user(&client, &request)?;
    Ok(match client.users.listed(&user_id).await?.account.pace {
        Some(pace) => shown(pace),
        None => done(),
    })
}

fn shown(pace: Pace) -> Response {
    Response::json(&json!({ "messages_per_second": pace.per_second, "burst_count": pace.burst }))
}

#[derive(Deserialize)]
struct Limit {
    #[serde(default)]
    messages_per_second: i64,
    #[serde(default)]
    burst_count: i64,
}

/// POST /_synapse/admin/v1/users/{user_id}/override_ratelimit: from now on this is how often the account may send; with
/// `messages_per_second` 0 no rate holds for it at all.
///
/// 400 `M_INVALID_PARAM` for a negative number; 404 `M_NOT_FOUND` for an unknown account.
pub async fn set_pace(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let user_id = local_user(&client, &request)?;
    let Limit { messages_per_second, burst_count } = request
        .json_or_empty()
        .await
        .map_err(|_| ErrorResponse::invalid_param("messages_per_second and burst_count are whole numbers"))?;
    let number = |number: i64| {
        u32::try_from(number)
            .map_err(|_| ErrorResponse::invalid_param("messages_per_second and burst_count are 0 or more"))
    };
    let pace = Pace { per_second: number(messages_per_second)?, burst: number(burst_count)? };
    client.users.set_pace(&user_id, Some(pace)).await?;
    tracing::info!("{} set how often {user_id} may send: {pace:?}", by.user_id);
    Ok(shown(pace))
}

/// DELETE /_synapse/admin/v1/users/{user_id}/override_ratelimit: the account has everybody's rates.
pub async fn unset_pace(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let user_id = local_user(&client, &request)?;
    client.users.set_pace(&user_id, None).await?;
    tracing::info!("{} gave {user_id} the rates that everybody has", by.user_id);
    Ok(done())
}

/// POST /_synapse/admin/v1/users/{user_id}/shadow_ban: the account is answered as if what it sends were sent, and it reaches
/// nobody. It still joins and leaves rooms.
///
/// 404 `M_NOT_FOUND` for an unknown account; 400 `M_UNKNOWN` for one of another server.
pub async fn shadow_ban(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    set_shadow_banned(&client, &request, true).await
}

/// DELETE /_synapse/admin/v1/users/{user_id}/shadow_ban
pub async fn shadow_unban(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    set_shadow_banned(&client, &request, false).await
}

async fn set_shadow_banned(client: &Client, request: &Request, banned: bool) -> Result<Response, Error> {
    let by = administrator(client, request).await?;
    let user_id = local_user(client, request)?;
    client.users.set_shadow_banned(&user_id, banned).await?;
    tracing::info!("{} {} {user_id}", by.user_id, if banned { "shadow-banned" } else { "took the shadow ban from" });
    Ok(done())
}

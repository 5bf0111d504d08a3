//! What one account may do, and what becomes of what it sends: rates of its own, shadow bans, redactions.

use std::sync::Arc;

use ruma::OwnedRoomId;
use serde::Deserialize;
use serde_json::json;

use super::{administrator, done, local_user, user};
use crate::base::gathered;
use crate::client::{Client, Error};
use crate::http::{ErrorResponse, Request, Response};
use crate::room::RedactUser;
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

#[derive(Deserialize)]
struct Redact {
    rooms: Vec<OwnedRoomId>,
    reason: Option<String>,
    limit: Option<i64>,
    #[serde(default)]
    use_admin: bool,
    before_ts: Option<u64>,
    after_ts: Option<u64>,
}

/// POST /_synapse/admin/v1/user/{user_id}/redact: what a user, of any server, said in the named rooms, or in all when none is named.
/// It is done aside, and goes on after a restart.
///
/// 400 `M_UNKNOWN` for a limit of none, 400 `M_INVALID_PARAM` for too many rooms; 403 `M_FORBIDDEN` when too many such are under way.
pub async fn redact(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let user_id = user(&request)?;
    let Redact { rooms, reason, limit, use_admin, before_ts, after_ts } = request.json().await?;
    let most = match limit {
        None | Some(0) => None,
        Some(limit) => {
            Some(u32::try_from(limit).map_err(|_| ErrorResponse::bad("M_UNKNOWN", "limit must be greater than 0"))?)
        }
    };
    let wanted = RedactUser { rooms, reason, most, as_admin: use_admin, before_ms: before_ts, after_ms: after_ts };
    let id = client.rooms.redact_user(&user_id, &by.user_id, wanted).await?;
    tracing::info!("{} has what {user_id} said redacted", by.user_id);
    Ok(Response::json(&json!({ "redact_id": id })))
}

/// GET /_synapse/admin/v1/user/redact_status/{redact_id}
///
/// 404 `M_NOT_FOUND` for an id that was not given out, or a week ago.
pub async fn redact_status(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let id = request.param("redact_id");
    let status = client.rooms.redact_status(id).await?;
    let status = status.ok_or_else(|| ErrorResponse::not_found("There is no redaction of this ID"))?;
    Ok(Response::json(&match status.is_done {
        true => {
            let failed: serde_json::Map<_, _> = gathered(status.failed.into_iter().map(|(id, why)| (id, why.into())));
            json!({ "status": "complete", "failed_redactions": failed })
        }
        false => json!({ "status": "active" }),
    }))
}

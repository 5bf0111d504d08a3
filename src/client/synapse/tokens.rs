//! Registration tokens. Those of the config (`registration_tokens`) are no part of this: they are good for ever and for everybody,
//! and are changed in the config. Tokens are asked for while the setting `registration` is `"token"`.

use std::sync::Arc;

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::{administrator, administrator_with_memory, done, flag, listed};
use crate::client::{Client, Error};
use crate::http::{ErrorResponse, Request, Response};
use crate::user::{RegistrationToken, TOKEN_CHARS_MAX, TOKENS_MAX};

/// Characters of a token that is made up.
const LENGTH: usize = 16;

/// A token is counted when an account is made with it, so none is ever pending.
fn shown(token: &str, row: &RegistrationToken) -> Value {
    json!({
        "token": token, "uses_allowed": row.uses_allowed, "pending": 0, "completed": row.completed,
        "expiry_time": row.expires_ms,
    })
}

/// GET /_synapse/admin/v1/registration_tokens: those that are valid, or are not, with `valid`. A thousand at most.
pub async fn list(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (_, grant) = administrator_with_memory(&client, &request).await?;
    let (valid, mut after) = (flag(&request, "valid")?, Some(String::new()));
    let row = Box::new(move |_| {
        let Some(last) = after.take() else { return Ok(None) };
        let Some((token, row)) = client.users.next_registration_token(&last, valid)? else { return Ok(None) };
        let value = shown(&token, &row);
        after = Some(token);
        Ok(Some(value))
    });
    Ok(listed(grant, "registration_tokens", TOKENS_MAX, json!({}), row))
}

/// GET /_synapse/admin/v1/registration_tokens/{token}
pub async fn get(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let token = request.param("token");
    let row = client.users.registration_token(token).await?.ok_or_else(|| unknown(token))?;
    Ok(Response::json(&shown(token, &row)))
}

fn unknown(token: &str) -> ErrorResponse {
    ErrorResponse::not_found(format!("No such registration token: {token}"))
}

#[derive(Deserialize, Default)]
struct New {
    token: Option<String>,
    length: Option<usize>,
    uses_allowed: Option<u64>,
    expiry_time: Option<u64>,
}

/// POST /_synapse/admin/v1/registration_tokens/new
///
/// 400 `M_INVALID_PARAM` for a token that there is, or that has other characters than `A-Za-z0-9._~-`, for a time that has passed and
/// a length that is not between 1 and 64.
pub async fn make(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let New { token, length, uses_allowed, expiry_time } = request.json_or_empty().await?;
    check_time(&client, expiry_time)?;
    let length = length.unwrap_or(LENGTH);
    if !(1..=TOKEN_CHARS_MAX).contains(&length) {
        return Err(ErrorResponse::invalid_param("length must be greater than zero and not greater than 64").into());
    }
    let token = token.unwrap_or_else(|| client.random.token(length));
    let row = RegistrationToken { uses_allowed, completed: 0, expires_ms: expiry_time };
    client.users.add_registration_token(&token, row.clone()).await?;
    tracing::info!("{} made a registration token", by.user_id);
    Ok(Response::json(&shown(&token, &row)))
}

fn check_time(client: &Client, expiry_time: Option<u64>) -> Result<(), ErrorResponse> {
    match expiry_time.is_some_and(|expires_ms| expires_ms < client.clock.now_ms()) {
        true => Err(ErrorResponse::invalid_param("expiry_time must not be in the past")),
        false => Ok(()),
    }
}

/// What is there as `null` is something else than what is not there.
#[derive(Deserialize, Default)]
struct Change {
    #[serde(default, deserialize_with = "given")]
    uses_allowed: Option<Option<u64>>,
    #[serde(default, deserialize_with = "given")]
    expiry_time: Option<Option<u64>>,
}

fn given<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(from).map(Some)
}

/// PUT /_synapse/admin/v1/registration_tokens/{token}
pub async fn change(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let Change { uses_allowed, expiry_time } = request.json_or_empty().await?;
    check_time(&client, expiry_time.flatten())?;
    let token = request.param("token");
    let row = client.users.change_registration_token(token, uses_allowed, expiry_time).await?;
    let row = row.ok_or_else(|| unknown(token))?;
    tracing::info!("{} changed a registration token", by.user_id);
    Ok(Response::json(&shown(token, &row)))
}

/// DELETE /_synapse/admin/v1/registration_tokens/{token}
pub async fn delete(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let by = administrator(&client, &request).await?;
    let token = request.param("token");
    if !client.users.remove_registration_token(token).await? {
        return Err(unknown(token).into());
    }
    tracing::info!("{} deleted a registration token", by.user_id);
    Ok(done())
}

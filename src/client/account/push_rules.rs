//! Push rules: GET pushrules, GET, PUT and DELETE of one, its `enabled` and `actions`.

use std::sync::Arc;

use ruma::push::Action;
use serde::Deserialize;
use serde_json::json;

use crate::client::{Client, Error, auth};
use crate::http::{Request, Response};
use crate::user::NewRule;

/// GET /_matrix/client/v3/pushrules/
pub async fn all(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    Ok(Response::json(&json!({ "global": client.users.push_rules(requester.user_num).await? })))
}

/// GET /_matrix/client/v3/pushrules/global/
pub async fn global(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    Ok(Response::json(&client.users.push_rules(requester.user_num).await?))
}

/// GET /_matrix/client/v3/pushrules/global/{kind}/{rule_id}
///
/// 404 `M_NOT_FOUND` for an unknown kind and when there is no such rule.
pub async fn get(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let (kind, rule_id) = (request.param("kind"), request.param("rule_id"));
    Ok(Response::json(&client.users.push_rule(requester.user_num, kind, rule_id).await?))
}

/// PUT /_matrix/client/v3/pushrules/global/{kind}/{rule_id}
///
/// 400 `M_INVALID_PARAM` for a rule id that is not valid, or an `after` and `before` that do not fit; 400
/// `M_MISSING_PARAM` for a content rule without a pattern; 404 `M_NOT_FOUND` for an unknown kind and when there is no
/// rule `after` or `before`; 413 `M_TOO_LARGE` for too many rules.
pub async fn put(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let rule: NewRule = request.json().await?;
    let (after, before) = (request.query("after"), request.query("before"));
    let (kind, rule_id) = (request.param("kind"), request.param("rule_id"));
    client.users.set_push_rule(&requester, kind, rule_id, rule, after, before).await?;
    Ok(Response::ok())
}

/// DELETE /_matrix/client/v3/pushrules/global/{kind}/{rule_id}
///
/// 400 `M_INVALID_PARAM` for a default rule of the server; 404 `M_NOT_FOUND` for an unknown kind and when there is no
/// such rule.
pub async fn delete(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    client.users.remove_push_rule(&requester, request.param("kind"), request.param("rule_id")).await?;
    Ok(Response::ok())
}

/// GET /_matrix/client/v3/pushrules/global/{kind}/{rule_id}/enabled
///
/// 404 `M_NOT_FOUND` for an unknown kind and when there is no such rule.
pub async fn get_enabled(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    part(&client, &request, "enabled").await
}

/// GET /_matrix/client/v3/pushrules/global/{kind}/{rule_id}/actions
///
/// 404 `M_NOT_FOUND` for an unknown kind and when there is no such rule.
pub async fn get_actions(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    part(&client, &request, "actions").await
}

async fn part(client: &Client, request: &Request, field: &str) -> Result<Response, Error> {
    let requester = auth::requester(client, request).await?;
    let (kind, rule_id) = (request.param("kind"), request.param("rule_id"));
    let rule = client.users.push_rule(requester.user_num, kind, rule_id).await?;
    Ok(Response::json(&json!({ field: rule[field] })))
}

#[derive(Deserialize)]
struct EnabledBody {
    enabled: bool,
}

/// PUT /_matrix/client/v3/pushrules/global/{kind}/{rule_id}/enabled
///
/// 404 `M_NOT_FOUND` for an unknown kind and when there is no such rule.
pub async fn put_enabled(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let body: EnabledBody = request.json().await?;
    let (kind, rule_id) = (request.param("kind"), request.param("rule_id"));
    client.users.enable_push_rule(&requester, kind, rule_id, body.enabled).await?;
    Ok(Response::ok())
}

#[derive(Deserialize)]
struct ActionsBody {
    actions: Vec<Action>,
}

/// PUT /_matrix/client/v3/pushrules/global/{kind}/{rule_id}/actions
///
/// 404 `M_NOT_FOUND` for an unknown kind and when there is no such rule; 413 `M_TOO_LARGE` when all rules together
/// would be too long.
pub async fn put_actions(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let body: ActionsBody = request.json().await?;
    let (kind, rule_id) = (request.param("kind"), request.param("rule_id"));
    client.users.set_push_actions(&requester, kind, rule_id, body.actions).await?;
    Ok(Response::ok())
}

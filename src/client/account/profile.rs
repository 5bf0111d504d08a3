//! Profiles: GET profile/{user}, GET, PUT and DELETE of one field; POST user_directory/search.

use std::sync::Arc;

use ruma::OwnedUserId;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::budget::Grant;
use crate::client::{Client, Error, Requester, auth, rates};
use crate::flow::{self, Propagate};
use crate::http::{ErrorResponse, Request, Response};
use crate::user::SEARCH_BYTES;

/// The most results of one search.
const FOUND_MAX: usize = 50;

/// GET /_matrix/client/v3/profile/{user_id}
///
/// 404 `M_NOT_FOUND` when there is no such user, or the other server refuses; 502 `M_UNKNOWN` when the other server
/// gives no usable answer, and the user with the access token shares no room with that user.
pub async fn get(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (profile, _paid) = profile(&client, &request).await?;
    Ok(Response::json(&profile))
}

/// GET /_matrix/client/v3/profile/{user_id}/{field}
///
/// 404 `M_NOT_FOUND` when there is no such user or field, or the other server refuses; 502 `M_UNKNOWN` when the other
/// server gives no usable answer, and the user with the access token shares no room with that user.
pub async fn get_field(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let (mut profile, _paid) = profile(&client, &request).await?;
    let field = request.param("field");
    match profile.remove(field) {
        Some(value) => Ok(Response::json(&json!({ field: value }))),
        // Apps written before there were other fields read an absent name as a user without a name, and a 404 as an
        // unknown user.
        None if matches!(field, "displayname" | "avatar_url") => Ok(Response::ok()),
        None => Err(ErrorResponse::not_found("The profile has no such field").into()),
    }
}

async fn profile(client: &Client, request: &Request) -> Result<(Map<String, Value>, Option<Grant>), Error> {
    let user_id: OwnedUserId = request.param_as("user_id")?;
    if user_id.server_name() == client.users.server() {
        return Ok(client.users.profile(&user_id, None).await?);
    }
    request.limit(&rates::ASK)?;
    // A token is not needed, so that a wrong one does no harm.
    let viewer = auth::maybe(client, request).await.ok().flatten();
    Ok(client.users.profile(&user_id, viewer.map(|viewer| viewer.user_num)).await?)
}

/// PUT /_matrix/client/v3/profile/{user_id}/{field}
///
/// 403 `M_FORBIDDEN` when the path names another user; 400 `M_MISSING_PARAM` without the field in the body; 400
/// `M_KEY_TOO_LARGE` when the name of the field is too long; 400 `M_PROFILE_TOO_LARGE` when the profile would be; 400
/// `M_BAD_JSON` or `M_INVALID_PARAM` when a `displayname` or `avatar_url` is no text or is too long, and for an unknown
/// `propagate_to`.
pub async fn put_field(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::own(&client, &request).await?;
    auth::check_not_suspended(&requester)?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let mut body: Map<String, Value> = request.json().await?;
    let field = request.param("field");
    let value = body.remove(field).ok_or_else(|| ErrorResponse::missing_param(field))?;
    let propagate = propagate(&request, &requester)?;
    flow::rename(&client.users, &client.rooms, &requester.user_id, field, Some(value), propagate).await?;
    Ok(Response::ok())
}

/// Which rooms show it, by the query; all when it says nothing.
fn propagate(request: &Request, requester: &Requester) -> Result<Propagate, ErrorResponse> {
    let wanted = request.query("propagate_to").or_else(|| request.query("computer.gingershaped.msc4466.propagate_to"));
    match wanted.as_deref() {
        // Of a shadow-banned account no room hears.
        None | Some("all" | "unchanged" | "none") if requester.is_shadow_banned => Ok(Propagate::None),
        None | Some("all") => Ok(Propagate::All),
        Some("unchanged") => Ok(Propagate::Unchanged),
        Some("none") => Ok(Propagate::None),
        // For other fields the parameter means nothing.
        Some(_) if !matches!(request.param("field"), "displayname" | "avatar_url") => Ok(Propagate::All),
        Some(_) => Err(ErrorResponse::invalid_param("propagate_to must be all, unchanged or none")),
    }
}

/// DELETE /_matrix/client/v3/profile/{user_id}/{field}
///
/// 403 `M_FORBIDDEN` when the path names another user; 400 `M_KEY_TOO_LARGE` when the name of the field is too long.
pub async fn delete_field(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::own(&client, &request).await?;
    auth::check_not_suspended(&requester)?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let (field, propagate) = (request.param("field"), propagate(&request, &requester)?);
    flow::rename(&client.users, &client.rooms, &requester.user_id, field, None, propagate).await?;
    Ok(Response::ok())
}

#[derive(Deserialize)]
struct SearchBody {
    search_term: String,
    #[serde(default)]
    limit: Option<usize>,
}

/// POST /_matrix/client/v3/user_directory/search
pub async fn search(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::FIND, requester.user_id.as_str())?;
    let body: SearchBody = request.json().await?;
    let most = body.limit.unwrap_or(10).clamp(1, FOUND_MAX);
    let _grant = client.budget.account("response_bodies").take(SEARCH_BYTES).await?;
    let (results, limited) =
        client.users.search(requester.user_num, &body.search_term, most, client.options().search_all_users).await?;
    Ok(Response::json(&json!({ "results": results, "limited": limited })))
}

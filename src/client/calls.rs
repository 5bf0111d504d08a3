//! Calls: TURN credentials, OpenID tokens, and the media servers that calls may use.
//!
//! - `GET /voip/turnServer`, `POST /user/{user_id}/openid/request_token`
//! - `GET /rtc/transports` (MSC4143), `POST /rtc/livekit/get_token`,
//!   `POST /rtc/livekit/delegate_delayed_leave` (MSC4195)
//! - `POST /_snug/livekit/{sfu/get,get_token,delegate_delayed_leave}`: the same for apps that ask a service beside the
//!   homeserver, with an OpenID token in place of an access token. People of other servers ask here too: what they get lets
//!   them into a room that people here have made, for a room in which they are with this server.

use std::sync::Arc;

use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Client, Error, auth, rates};
use crate::http::{ErrorResponse, Request, Response};
use crate::user::livekit;
use crate::user::{CallMember, LiveKit, OPENID_MS};

/// Where the token service stands, below the public address.
pub const LIVEKIT_PATH: &str = "/_snug/livekit";
/// The longest request to it: some ids and a token.
const BODY_BYTES_MAX: u64 = 8 * 1024;

/// GET /_matrix/client/v3/voip/turnServer: `{}`, the specification's answer, when no TURN server is set up.
///
/// 403 `M_GUEST_ACCESS_FORBIDDEN` for guests, if they get no credentials here.
pub async fn turn_server(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    let calls = client.users.calls();
    if requester.is_guest && !calls.turn.guests {
        return Err(auth::guests_forbidden("Guests get no credentials for the TURN server here").into());
    }
    let uris = calls.turn.uris_at(host(&client, &request).as_deref());
    if uris.is_empty() {
        return Ok(Response::ok());
    }
    let (username, password) = client.users.turn_credentials(&calls.turn, &requester.user_id);
    Ok(Response::json(&json!({
        "username": username, "password": password, "uris": uris, "ttl": calls.turn.ttl_s,
    })))
}

/// The host that an app reaches this server at, as it is written in a URL: where it asked, or else the public one.
fn host(client: &Client, request: &Request) -> Option<String> {
    let origin = request.origin().or_else(|| client.options().public_url.clone())?;
    url::Url::parse(&origin).ok()?.host_str().map(ToOwned::to_owned)
}

/// POST /_matrix/client/v3/user/{user_id}/openid/request_token
///
/// 403 `M_FORBIDDEN` when the path names another user.
pub async fn openid_token(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::own(&client, &request).await?;
    Ok(Response::json(&json!({
        "access_token": client.users.openid_token(&requester),
        "token_type": "Bearer",
        "matrix_server_name": client.users.server(),
        "expires_in": OPENID_MS / 1000,
    })))
}

/// GET /_matrix/client/v1/rtc/transports
///
/// 404 `M_NOT_FOUND` when this server names no media server: apps then look for one elsewhere.
pub async fn transports(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    auth::requester(&client, &request).await?;
    let transports = offered(&client, &request);
    match transports.is_empty() {
        true => Err(ErrorResponse::not_found("This server names no media server for calls ([rtc])").into()),
        false => Ok(Response::json(&json!({ "rtc_transports": transports }))),
    }
}

/// The media servers for calls, the best first. Without a public address this one's tokens are given out where the app asks.
pub fn offered(client: &Client, request: &Request) -> Vec<Value> {
    let calls = client.users.calls();
    let livekit = |url: String| json!({ "type": "livekit", "livekit_service_url": url });
    let public = || client.options().public_url.clone().or_else(|| request.origin());
    let own = calls.livekit.as_ref().and_then(|_| public());
    let own = own.map(|url| livekit(format!("{url}{LIVEKIT_PATH}")));
    own.into_iter().chain(calls.service_urls.iter().map(|url| livekit(url.clone()))).collect()
}

#[derive(Deserialize)]
struct Wanted {
    server_name: Option<OwnedServerName>,
    room_id: OwnedRoomId,
    slot_id: String,
    member: CallMember,
}

/// POST /_matrix/client/v1/rtc/livekit/get_token
///
/// 401 `M_UNAUTHORIZED` when the user is not in the room; 404 `M_NOT_FOUND` when this server has no media server; another
/// server's error as `error.rs` maps it.
pub async fn get_token(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::ASK, requester.user_id.as_str())?;
    let Wanted { server_name, room_id, slot_id, member } = request.json_max(BODY_BYTES_MAX).await?;
    if !client.rooms.is_in_room(&requester.user_id, &room_id).await? {
        return Err(unauthorized().into());
    }
    match server_name.filter(|server| server != client.users.server()) {
        Some(server) => {
            let asked = livekit::Asked { room_id: room_id.to_string(), slot_id, member };
            let (url, jwt) = client.users.livekit_token_of(&server, &requester.user_id, asked).await?;
            Ok(Response::json(&json!({ "url": url, "jwt": jwt })))
        }
        None => {
            let alias = livekit::alias(room_id.as_str(), &slot_id);
            Ok(token(&client, &alias, &livekit::identity(requester.user_id.as_str(), &member), true)?)
        }
    }
}

fn token(client: &Client, alias: &str, identity: &str, is_ours: bool) -> Result<Response, ErrorResponse> {
    let calls = client.users.calls();
    let livekit: &LiveKit =
        calls.livekit.as_ref().ok_or_else(|| ErrorResponse::not_found("This server has no media server"))?;
    let jwt = livekit.token(alias, identity, is_ours, client.clock.now_ms() / 1000);
    Ok(Response::json(&json!({ "url": livekit.url, "jwt": jwt })))
}

#[derive(Deserialize)]
struct Delegated {
    room_id: OwnedRoomId,
    slot_id: String,
    member: CallMember,
    delay_id: String,
}

/// POST /_matrix/client/v1/rtc/livekit/delegate_delayed_leave
///
/// 404 `M_NOT_FOUND` when the user has no such delayed event, or there is no media server here.
pub async fn delegate(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let Delegated { room_id, slot_id, member, delay_id } = request.json_max(BODY_BYTES_MAX).await?;
    let alias = livekit::alias(room_id.as_str(), &slot_id);
    let identity = livekit::identity(requester.user_id.as_str(), &member);
    look_after(&client, &requester.user_id, &delay_id, alias, identity).await?;
    Ok(Response::ok())
}

/// Sends a delayed event when its sender's connection to the media server ends, and not before.
async fn look_after(
    client: &Client,
    user: &OwnedUserId,
    delay_id: &str,
    alias: String,
    identity: String,
) -> Result<(), Error> {
    if client.users.calls().livekit.is_none() {
        return Err(ErrorResponse::not_found("This server has no media server").into());
    }
    Ok(client.rooms.delegate_delayed(user, delay_id, alias, identity).await?)
}

/// Says nothing of what is wrong, nor whether there is such a room.
fn unauthorized() -> ErrorResponse {
    ErrorResponse::unauthorized("M_UNAUTHORIZED", "The request could not be authorised")
}

// ---- the service that apps ask today -----------------------------------------------------------------------------------

#[derive(Deserialize)]
struct OpenId {
    access_token: String,
    matrix_server_name: OwnedServerName,
}

/// A request of apps that know no slots.
#[derive(Deserialize)]
struct Older {
    room: OwnedRoomId,
    openid_token: OpenId,
    #[serde(default)]
    device_id: String,
    delay_id: Option<String>,
}

#[derive(Deserialize)]
struct Newer {
    room_id: OwnedRoomId,
    slot_id: String,
    openid_token: OpenId,
    member: CallMember,
    delay_id: Option<String>,
}

/// POST /_snug/livekit/sfu/get
///
/// 401 `M_UNAUTHORIZED` for a token that its server does not know, and when the user is not in the room; 400 `M_BAD_JSON` for
/// a delayed event of another server; 404 `M_NOT_FOUND` for one that the user does not have.
pub async fn sfu_get(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    request.limit(&rates::CALL)?;
    let Older { room, openid_token, device_id, delay_id } = request.json_max(BODY_BYTES_MAX).await?;
    let (user, is_ours) = proven(&client, &openid_token, &room).await?;
    let (alias, identity) = (livekit::room_alias(room.as_str()), format!("{user}:{device_id}"));
    look_after_if(&client, delay_id.as_deref(), (&user, is_ours), &alias, &identity).await?;
    Ok(token(&client, &alias, &identity, is_ours)?)
}

/// POST /_snug/livekit/get_token; errors as [`sfu_get`].
pub async fn service_token(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    request.limit(&rates::CALL)?;
    let Newer { room_id, slot_id, openid_token, member, delay_id } = request.json_max(BODY_BYTES_MAX).await?;
    let (alias, identity, user, is_ours) = member_of(&client, &room_id, &slot_id, &openid_token, &member).await?;
    look_after_if(&client, delay_id.as_deref(), (&user, is_ours), &alias, &identity).await?;
    Ok(token(&client, &alias, &identity, is_ours)?)
}

/// POST /_snug/livekit/delegate_delayed_leave; errors as [`sfu_get`], and 404 `M_NOT_FOUND` when the user has no such delayed
/// event.
pub async fn service_delegate(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    request.limit(&rates::CALL)?;
    let Newer { room_id, slot_id, openid_token, member, delay_id } = request.json_max(BODY_BYTES_MAX).await?;
    let (alias, identity, user, is_ours) = member_of(&client, &room_id, &slot_id, &openid_token, &member).await?;
    if delay_id.as_ref().is_none_or(String::is_empty) {
        return Err(ErrorResponse::bad("M_BAD_JSON", "delay_id is missing").into());
    }
    look_after_if(&client, delay_id.as_deref(), (&user, is_ours), &alias, &identity).await?;
    Ok(Response::ok())
}

/// The names at the media server of who asks and of the room; whose they are, and whether of this server.
async fn member_of(
    client: &Client,
    room: &OwnedRoomId,
    slot_id: &str,
    openid_token: &OpenId,
    member: &CallMember,
) -> Result<(String, String, OwnedUserId, bool), Error> {
    let (user, is_ours) = proven(client, openid_token, room).await?;
    if member.claimed_user_id.as_ref().is_some_and(|claimed| *claimed != user) {
        return Err(unauthorized().into());
    }
    let (alias, identity) = (livekit::alias(room.as_str(), slot_id), livekit::identity(user.as_str(), member));
    Ok((alias, identity, user, is_ours))
}

/// The delayed event that a request names, if it names one. Those of other servers' people are not here.
async fn look_after_if(
    client: &Client,
    delay_id: Option<&str>,
    (user, is_ours): (&OwnedUserId, bool),
    alias: &str,
    identity: &str,
) -> Result<(), Error> {
    match delay_id {
        None | Some("") => Ok(()),
        Some(id) if is_ours => look_after(client, user, id, alias.to_owned(), identity.to_owned()).await,
        Some(_) => Err(ErrorResponse::bad("M_BAD_JSON", "The delayed event is another server's").into()),
    }
}

/// Whose token it is, and whether they belong here. Other servers are asked when they share a room with this one.
async fn proven(client: &Client, token: &OpenId, room: &OwnedRoomId) -> Result<(OwnedUserId, bool), Error> {
    if client.users.calls().livekit.is_none() {
        return Err(ErrorResponse::not_found("This server has no media server").into());
    }
    let server = &token.matrix_server_name;
    let is_ours = server == client.users.server();
    if !is_ours && !client.rooms.is_server_in_room(server, room).await? {
        return Err(unauthorized().into());
    }
    let user = match client.users.openid_user_of(server, &token.access_token).await {
        Ok(user) => user,
        Err(failed) if failed.is_passing() => return Err(failed.into()),
        Err(_) => return Err(unauthorized().into()),
    };
    if !client.rooms.is_in_room(&user, room).await? {
        return Err(unauthorized().into());
    }
    Ok((user, is_ours))
}

//! Calls: whose an OpenID token is, and tokens for the media server here (MSC4195).

use std::sync::Arc;

use ruma::UserId;
use serde::Deserialize;
use serde_json::json;

use super::{Error, Federation, auth, rates};
use crate::http::{ErrorResponse, Request, Response};
use crate::user::livekit;

/// `GET /openid/userinfo?access_token=`: anybody to whom a user gave the token may ask.
///
/// 401 `M_MISSING_TOKEN` without a token, `M_UNKNOWN_TOKEN` for one that is not valid.
pub async fn userinfo(federation: Arc<Federation>, request: Request) -> Result<Response, Error> {
    request.limit(&rates::OPENID)?;
    let unauthorized = ErrorResponse::unauthorized;
    let token =
        request.query("access_token").ok_or_else(|| unauthorized("M_MISSING_TOKEN", "access_token is missing"))?;
    match federation.users.openid_user(&token).await {
        Ok(user) => Ok(Response::json(&json!({ "sub": user }))),
        Err(failed) if failed.is_passing() => Err(failed.into()),
        Err(_) => Err(unauthorized("M_UNKNOWN_TOKEN", "The token is not valid, or has ended").into()),
    }
}

#[derive(Deserialize)]
struct Asked {
    room_id: ruma::OwnedRoomId,
    slot_id: String,
    member: livekit::Member,
}

/// `POST /rtc/livekit/get_token`
///
/// 401 `M_UNAUTHORIZED` when the user or this server is not in the room; 400 `M_BAD_JSON` without the user it is for,
/// as `claimed_user_id`; 404 `M_NOT_FOUND` when there is no media server here.
pub async fn get_token(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    let (origin, asked) = auth::origin_and_json::<Asked>(&federation, &mut request).await?;
    let calls = federation.users.calls();
    let server = calls.livekit.as_ref().ok_or_else(|| ErrorResponse::not_found("This server has no media server"))?;
    let user = asked.member.claimed_user_id.as_ref();
    let user =
        user.and_then(|user| <&UserId>::try_from(user.as_str()).ok()).filter(|user| user.server_name() == origin);
    let user = user.ok_or_else(|| {
        ErrorResponse::bad("M_BAD_JSON", "member.claimed_user_id must be a user of the server that asks")
    })?;
    let is_there = federation.rooms.is_server_in_room(&origin, &asked.room_id).await?
        && federation.rooms.is_in_room(user, &asked.room_id).await?;
    if !is_there {
        return Err(ErrorResponse::unauthorized("M_UNAUTHORIZED", "The request could not be authorised").into());
    }
    let alias = livekit::alias(asked.room_id.as_str(), &asked.slot_id);
    let identity = livekit::identity(user.as_str(), &asked.member);
    let jwt = server.token(&alias, &identity, false, federation.clock.now_ms() / 1000);
    Ok(Response::json(&json!({ "url": server.url, "jwt": jwt })))
}

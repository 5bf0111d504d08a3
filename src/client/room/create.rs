//! POST createRoom.

use std::sync::Arc;

use ruma::OwnedUserId;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::directory::check_alias;
use crate::client::{Client, Error, auth, rates};
use crate::http::{ErrorResponse, Request, Response};
use crate::room::{Create, Preset, StateDraft};

#[derive(Deserialize)]
struct Body {
    visibility: Option<String>,
    preset: Option<String>,
    room_version: Option<String>,
    room_alias_name: Option<String>,
    name: Option<String>,
    topic: Option<String>,
    #[serde(default)]
    invite: Vec<OwnedUserId>,
    #[serde(default)]
    invite_3pid: Vec<IgnoredAny>,
    #[serde(default)]
    creation_content: Map<String, Value>,
    #[serde(default)]
    initial_state: Vec<State>,
    #[serde(default)]
    power_level_content_override: Map<String, Value>,
    #[serde(default)]
    is_direct: bool,
    #[serde(alias = "uk.timedout.msc4491.invite_reason")]
    invite_reason: Option<String>,
}

#[derive(Deserialize)]
struct State {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    state_key: String,
    content: Value,
}

/// POST /_matrix/client/v3/createRoom
///
/// 400 `M_THREEPID_DENIED` for invites by e-mail or number; 400 `M_INVALID_PARAM` for an unknown `visibility` or
/// `preset`, an alias that is not valid, too many invites or state events, or an access control list that denies this
/// server; 400 `M_UNSUPPORTED_ROOM_VERSION`; 400
/// `M_ROOM_IN_USE` when the alias is taken; 400 `M_EXCLUSIVE` when it is an application service's; 400 `M_INVALID_ROOM_STATE` when an event does not pass the authorisation
/// rules, or `initial_state` has a membership; 400 `M_BAD_JSON` when a content is no object, or the power levels name
/// a creator of a room whose version forbids it; 403 `M_INVITE_BLOCKED` when an invited user of this server takes no invites
/// from the creator; 413 `M_TOO_LARGE` when an event is too large.
pub async fn create(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::speaker(&client, &request).await?;
    request.limit_user(&rates::CREATE, requester.user_id.as_str())?;
    let mut body: Body = request.json_or_empty().await?;
    if requester.is_shadow_banned {
        body.invite.clear();
    }
    for _ in body.invite.iter().filter(|user| user.server_name() != client.rooms.server()) {
        request.limit_user(&rates::INVITE, requester.user_id.as_str())?;
    }
    if let Some(name) = &body.room_alias_name {
        check_alias(&client, &requester, &format!("#{name}:{}", client.rooms.server()))?;
    }
    let mut wanted = wanted(&client, body)?;
    if requester.is_shadow_banned && wanted.public {
        // The room is as open, and no list shows it.
        wanted.preset.get_or_insert(Preset::Public);
        wanted.public = false;
    }
    let room_id = client.rooms.create(&requester.user_id, wanted).await?;
    Ok(Response::json(&json!({ "room_id": room_id })))
}

fn wanted(client: &Client, body: Body) -> Result<Create, ErrorResponse> {
    if !body.invite_3pid.is_empty() {
        let message = "This server uses no identity server, so it cannot invite by e-mail address or phone number";
        return Err(ErrorResponse::bad("M_THREEPID_DENIED", message));
    }
    let public = match body.visibility.as_deref() {
        None | Some("private") => false,
        Some("public") => true,
        Some(other) => {
            return Err(ErrorResponse::invalid_param(format!(
                "visibility must be \"public\" or \"private\", not {other}"
            )));
        }
    };
    let preset = match &body.preset {
        None => None,
        Some(name) => Some(
            Preset::of(name)
                .ok_or_else(|| ErrorResponse::invalid_param(format!("There is no preset called {name}")))?,
        ),
    };
    let state = |state: State| StateDraft { kind: state.kind, state_key: state.state_key, content: state.content };
    Ok(Create {
        public,
        preset,
        room_version: Some(body.room_version.unwrap_or_else(|| client.options().room_version().to_owned())),
        room_alias_name: body.room_alias_name,
        name: body.name,
        topic: body.topic,
        invite: body.invite,
        creation_content: body.creation_content,
        initial_state: body.initial_state.into_iter().map(state).collect(),
        power_level_content_override: body.power_level_content_override,
        is_direct: body.is_direct,
        invite_reason: body.invite_reason,
        by_server: false,
    })
}

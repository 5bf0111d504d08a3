//! Sending: PUT send, PUT state, PUT and POST redact.

use std::borrow::Cow;
use std::sync::Arc;

use ruma::{OwnedEventId, OwnedRoomId};
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};

use super::membership::{check_guest, check_may_decline};
use super::{delayed, unsent};
use crate::budget::Grant;
use crate::client::{Client, Error, Requester, auth, rates};
use crate::flow;
use crate::http::{ErrorResponse, Request, Response};
use crate::matrix::json::partial;
use crate::room::{Delay, Reader, Sending};

const REDACTION: &str = "m.room.redaction";

/// PUT /_matrix/client/v3/rooms/{room_id}/send/{type}/{txn_id}
///
/// 400 `M_BAD_JSON` when the content is no object; 403 `M_FORBIDDEN` when the user is not in the room or the
/// authorisation rules refuse the event; 413 `M_TOO_LARGE` when the event is too large.
pub async fn message(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = asking(&client, &request).await?;
    let mut content = match content(&mut request).await {
        Ok(content) => content,
        Err(failed) => return delayed::again(&client, &requester, &request).await?.ok_or(failed),
    };
    let txn = Some((delayed::device_of(&requester), request.param("txn_id").to_owned()));
    let ts = auth::massaged_time(&requester, &request)?;
    let (kind, sticky_ms) = (request.param("type").to_owned(), delayed::sticky(&request)?);
    if let Some(delay_ms) = delayed::in_query(&request)? {
        let delay = Delay { kind, state_key: None, content, sticky_ms, delay_ms, txn };
        return delayed::schedule(&client, &requester, &request, delay).await;
    }
    let mut redacts = None;
    if kind == REDACTION {
        (redacts, content) = without_target(&content)?;
        check_may_redact(&client, &requester, &request, redacts.clone()).await?;
    } else {
        auth::check_may_speak(&client, &request, &requester).await?;
    }
    let paid = paid(&mut request);
    let sending = Sending { kind, state_key: None, content, redacts, sticky_ms, ts, txn, paid };
    sent(&client, &requester, &request, sending).await
}

/// PUT /_matrix/client/v3/rooms/{room_id}/state/{type}[/{state_key}]
///
/// 400 `M_BAD_JSON` when the content is no object, for an `m.room.create`, for a member event without a valid user or
/// membership, and for power levels that name a creator where the room version forbids it; 400 `M_BAD_ALIAS` or
/// `M_INVALID_PARAM` for a canonical alias that does not lead to the room or is no alias; 400 `M_INVALID_PARAM` for an
/// access control list that denies this server; 403 `M_FORBIDDEN` when the user is not in the room or the authorisation
/// rules refuse the event; 413 `M_TOO_LARGE` when the event is too large. Joining a restricted room: 400
/// `M_UNABLE_TO_AUTHORISE_JOIN` or `M_UNABLE_TO_GRANT_JOIN`. Inviting a user of another server: that server's error as
/// `error.rs` maps it.
pub async fn state(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = asking(&client, &request).await?;
    let content = content(&mut request).await?;
    let kind = request.param("type").to_owned();
    let state_key = Some(request.param_maybe("state_key").unwrap_or("").to_owned());
    let membership = (kind == "m.room.member").then(|| membership_in(&content)).flatten();
    if membership.as_deref() == Some("invite") {
        request.limit_user(&rates::INVITE, requester.user_id.as_str())?;
    }
    if kind == "m.room.member" {
        check_guest(&client, &request, &requester, &request.param_as::<OwnedRoomId>("room_id")?, Vec::new()).await?;
    }
    if membership.as_deref() == Some("leave") && state_key.as_deref() == Some(requester.user_id.as_str()) {
        check_may_decline(&client, &requester, &request.param_as("room_id")?).await?;
    } else {
        auth::check_may_speak(&client, &request, &requester).await?;
    }
    let sticky_ms = delayed::sticky(&request)?;
    if let Some(delay_ms) = delayed::in_query(&request)? {
        let delay = Delay { kind, state_key, content, sticky_ms, delay_ms, txn: None };
        return delayed::schedule(&client, &requester, &request, delay).await;
    }
    let (paid, closes) = (paid(&mut request), kind == "m.room.tombstone");
    let ts = auth::massaged_time(&requester, &request)?;
    let sending = Sending { kind, state_key, content, redacts: None, sticky_ms, ts, txn: None, paid };
    let answer = sent(&client, &requester, &request, sending).await?;
    if closes && !requester.is_shadow_banned {
        flow::close(&client.users, &client.rooms, &requester, &request.param_as::<OwnedRoomId>("room_id")?).await;
    }
    Ok(answer)
}

/// The event that a redaction names in its content, whatever the room's version (MSC4169), and the rest of the content: the
/// room's version says where the event's id stands.
fn without_target(content: &RawValue) -> Result<(Option<OwnedEventId>, Box<RawValue>), ErrorResponse> {
    let bad = |_| ErrorResponse::bad("M_BAD_JSON", "A redaction has the ID of the event in redacts");
    let mut content: Map<String, Value> = serde_json::from_str(content.get()).map_err(bad)?;
    let redacts = content.remove("redacts").map(serde_json::from_value).transpose().map_err(bad)?;
    Ok((redacts, to_raw_value(&content).map_err(ErrorResponse::internal)?))
}

#[derive(Deserialize, Default)]
struct Redaction {
    reason: Option<String>,
    /// Events that relate to the target in one of these ways are redacted too; `*` stands for any (MSC3912).
    #[serde(default, alias = "org.matrix.msc3912.with_relations")]
    with_rel_types: Vec<String>,
}

/// PUT /_matrix/client/v3/rooms/{room_id}/redact/{event_id}/{txn_id}
///
/// 404 `M_NOT_FOUND` when the event is not known and the user may not redact the events of others; 400
/// `M_INVALID_PARAM` when it is of another room; 403 `M_FORBIDDEN` when the user is not in the room, or may not redact
/// it, and for an access control list. What relates to the event is redacted afterwards, as far as the user may.
pub async fn redact(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = asking(&client, &request).await?;
    let Redaction { reason, with_rel_types } = request.json_or_empty().await?;
    let target: OwnedEventId = request.param_as("event_id")?;
    check_may_redact(&client, &requester, &request, Some(target.clone())).await?;
    let mut content = json!({});
    if let Some(reason) = reason {
        content["reason"] = reason.into();
    }
    let content = to_raw_value(&content).map_err(ErrorResponse::internal)?;
    let related = (target.clone(), content.clone());
    let txn = request.param_maybe("txn_id").map(|txn| (delayed::device_of(&requester), txn.to_owned()));
    let ts = auth::massaged_time(&requester, &request)?;
    let (kind, paid) = ("m.room.redaction".to_owned(), paid(&mut request));
    let sending = Sending { kind, state_key: None, content, redacts: Some(target), sticky_ms: None, ts, txn, paid };
    let answer = sent(&client, &requester, &request, sending).await?;
    if !with_rel_types.is_empty() && !requester.is_shadow_banned {
        let room_id = request.param_as::<OwnedRoomId>("room_id")?;
        let (target, content) = related;
        client.rooms.redact_related(&requester.user_id, &room_id, &target, with_rel_types, content).await?;
    }
    Ok(answer)
}

async fn asking(client: &Client, request: &Request) -> Result<Requester, Error> {
    let requester = auth::requester(client, request).await?;
    rates::limit_send(request, &requester)?;
    Ok(requester)
}

/// As [`auth::check_may_speak`], but a suspended account may redact what it sent itself and sees.
async fn check_may_redact(
    client: &Client,
    requester: &Requester,
    request: &Request,
    target: Option<OwnedEventId>,
) -> Result<(), Error> {
    if !requester.is_suspended {
        return auth::check_may_speak(client, request, requester).await;
    }
    let Requester { user_id, user_num, device_id, .. } = requester.clone();
    let reader = Reader { user: user_num, user_id: user_id.clone(), device: device_id, sees_all: false };
    let room_id = request.param_as::<OwnedRoomId>("room_id")?;
    let event = match target {
        Some(target) => client.rooms.event(&reader, &room_id, &target).await.ok(),
        None => None,
    };
    match event.and_then(|event| partial::member::<String>(&event, "sender")).as_deref() == Some(user_id.as_str()) {
        true => Ok(()),
        false => Ok(auth::check_not_suspended(requester)?),
    }
}

async fn content(request: &mut Request) -> Result<Box<RawValue>, Error> {
    let content: Box<RawValue> = request.json().await?;
    match content.get().trim_start().starts_with('{') {
        true => Ok(content),
        false => Err(ErrorResponse::bad("M_BAD_JSON", "The content of an event must be an object").into()),
    }
}

/// The memory of the content, which the sending keeps though the app may leave before its end.
fn paid(request: &mut Request) -> Option<Arc<Grant>> {
    request.take_grant().map(Arc::new)
}

/// The membership in the content of a member event.
fn membership_in(member: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Member<'a> {
        #[serde(borrow)]
        membership: Cow<'a, str>,
    }
    serde_json::from_str(member.get()).ok().map(|member: Member<'_>| member.membership.into_owned())
}

async fn sent(client: &Client, requester: &Requester, request: &Request, sending: Sending) -> Result<Response, Error> {
    let room_id = request.param_as::<OwnedRoomId>("room_id")?;
    if requester.is_shadow_banned {
        let membership = membership_in(&sending.content);
        let event_id = match unsent::own(requester, &sending, membership.as_deref()) {
            Some(sending) => client.rooms.send(&requester.user_id, &room_id, sending).await?,
            None => client.rooms.send_to_nobody(&requester.user_id, &room_id, sending).await?,
        };
        return Ok(Response::json(&json!({ "event_id": event_id })));
    }
    let event_id = client.rooms.send(&requester.user_id, &room_id, sending).await?;
    client.users.acted(requester);
    Ok(Response::json(&json!({ "event_id": event_id })))
}

//! Subscriptions to threads (MSC4306): GET, PUT and DELETE rooms/{room_id}/thread/{event_id}/subscription; and GET
//! thread_subscriptions (MSC4308), the list of their changes.

use std::sync::Arc;

use ruma::{OwnedEventId, OwnedRoomId};
use serde::Deserialize;
use serde_json::json;

use super::timeline::reader;
use crate::base::{comma, sort_few};
use crate::client::{Client, Error, auth, rates};
use crate::http::{ErrorResponse, Request, Response, StatusCode};
use crate::matrix::json as text;
use crate::room::{self, ANSWER_BYTES, Position, SlidingToken, Subscribed, SyncToken, ThreadChange};

/// Changes in one answer when the app does not say how many, and the most: 200 bytes each, and as many as text.
const CHANGES: usize = 100;
const CHANGES_MAX: usize = 200;

/// GET …/subscription
///
/// 404 `M_NOT_FOUND` when the user is not subscribed, the event is not known, or the user may not see it.
pub async fn get(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let reader = reader(auth::requester(&client, &request).await?);
    let (room, root) = thread(&request)?;
    match client.rooms.thread_subscription(&reader, &room, &root).await? {
        Some(automatic) => Ok(Response::json(&json!({ "automatic": automatic }))),
        None => Err(ErrorResponse::not_found("You are not subscribed to this thread").into()),
    }
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    automatic: Option<OwnedEventId>,
}

/// PUT …/subscription
///
/// The errcodes have no prefix below `/v1`. 404 `M_NOT_FOUND` when an event is not known or the user may not see it; 400 `IO.ELEMENT.MSC4306.M_NOT_IN_THREAD` when the
/// event in `automatic` is not in the thread; 409 `IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION` when the user unsubscribed
/// after it.
pub async fn put(client: Arc<Client>, mut request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let body: Body = request.json_or_empty().await?;
    let (reader, (room, root)) = (reader(requester), thread(&request)?);
    match client.rooms.subscribe_to_thread(&reader, &room, &root, body.automatic.as_deref()).await {
        Ok(Subscribed::Done) => Ok(Response::ok()),
        Ok(Subscribed::Skipped) => {
            let message = "The thread was unsubscribed from after that event";
            let code = named(&request, "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION");
            Err(ErrorResponse::new(StatusCode::CONFLICT, code, message).into())
        }
        Err(room::Error::Bad { errcode, message }) => Err(ErrorResponse::bad(named(&request, errcode), message).into()),
        Err(failed) => Err(failed.into()),
    }
}

/// An errcode without its prefix, where the path has none either.
fn named(request: &Request, errcode: &'static str) -> &'static str {
    match request.template().starts_with("/_matrix/client/v1/") {
        true => errcode.strip_prefix("IO.ELEMENT.MSC4306.").unwrap_or(errcode),
        false => errcode,
    }
}

/// DELETE …/subscription. A thread that is not subscribed to is no error.
///
/// 404 `M_NOT_FOUND` when the event is not known or the user may not see it.
pub async fn delete(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    request.limit_user(&rates::NOTE, requester.user_id.as_str())?;
    let (reader, (room, root)) = (reader(requester), thread(&request)?);
    client.rooms.unsubscribe_from_thread(&reader, &room, &root).await?;
    Ok(Response::ok())
}

/// GET /_matrix/client/unstable/io.element.msc4308/thread_subscriptions: the changes of all threads, the latest first.
///
/// 400 `M_MISSING_PARAM` without `dir`; 400 `M_INVALID_PARAM` when it is not `b`, or `from`, `to` or `limit` is not valid.
pub async fn list(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    let requester = auth::requester(&client, &request).await?;
    match request.query("dir").as_deref() {
        Some("b") => {}
        Some(_) => return Err(ErrorResponse::invalid_param("dir must be \"b\"").into()),
        None => return Err(ErrorResponse::missing_param("dir").into()),
    }
    let limit = request.query_as::<usize>("limit")?.unwrap_or(CHANGES).min(CHANGES_MAX);
    if limit == 0 {
        return Err(ErrorResponse::invalid_param("limit must be greater than 0").into());
    }
    let (from, to) = (place(&request, "from")?, place(&request, "to")?);
    let grant = client.budget.account("response_bodies").take(ANSWER_BYTES).await?;
    let after = to.unwrap_or(Position(0));
    let changes = client.rooms.list_thread_changes(requester.user_num, after, from, limit).await?;
    let mut out = Vec::with_capacity(changes.list.len() * 160 + 64);
    out.push(b'{');
    let mut first = true;
    write_changes(&mut out, &mut first, changes.list);
    if let Some(next) = changes.next {
        comma(&mut out, &mut first);
        out.extend_from_slice(format!("\"end\":\"{}\"", token(next)).as_bytes());
    }
    out.push(b'}');
    Ok(Response::charged(StatusCode::OK, "application/json", out, grant))
}

/// The token of a place in the list of changes, for `from`.
pub fn token(at: Position) -> String {
    format!("h{at}")
}

/// A place in the list: what [`token`] made, or a token of a sync.
fn place(request: &Request, name: &str) -> Result<Option<Position>, ErrorResponse> {
    let Some(token) = request.query(name) else { return Ok(None) };
    let at = match token.strip_prefix('h') {
        Some(at) => at.parse().ok().map(Position),
        None => {
            SlidingToken::parse(&token).map(|token| token.at).or_else(|| SyncToken::parse(&token).map(|token| token.at))
        }
    };
    let wrong = || ErrorResponse::invalid_param(format!("The query parameter {name} is missing or not valid"));
    at.map(Some).ok_or_else(wrong)
}

/// Appends the members `subscribed` and `unsubscribed` of a list of changes, each when there is one of them.
pub fn write_changes(out: &mut Vec<u8>, first: &mut bool, mut changes: Vec<ThreadChange>) {
    sort_few(&mut changes, |one, other| one.room_id.cmp(&other.room_id));
    for (name, is_subscribed) in [("subscribed", true), ("unsubscribed", false)] {
        let mut room = None;
        for change in changes.iter().filter(|change| change.is_subscribed == is_subscribed) {
            match room {
                None => {
                    comma(out, first);
                    text::write_string(out, name);
                    out.extend_from_slice(b":{");
                }
                Some(open) if open != change.room_id => out.extend_from_slice(b"},"),
                Some(_) => out.push(b','),
            }
            if room != Some(change.room_id.as_str()) {
                text::write_string(out, &change.room_id);
                out.extend_from_slice(b":{");
                room = Some(change.room_id.as_str());
            }
            text::write_string(out, &change.root_id);
            let automatic = match is_subscribed {
                true => format!("\"automatic\":{},", change.is_automatic),
                false => String::new(),
            };
            out.extend_from_slice(format!(":{{{automatic}\"bump_stamp\":{}}}", change.at).as_bytes());
        }
        if room.is_some() {
            out.extend_from_slice(b"}}");
        }
    }
}

fn thread(request: &Request) -> Result<(OwnedRoomId, OwnedEventId), ErrorResponse> {
    Ok((request.param_as("room_id")?, request.param_as("event_id")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_stand_by_room() {
        let change = |room: &str, root: &str, status: (bool, bool), at| ThreadChange {
            room_id: room.to_owned(),
            root_id: root.to_owned(),
            is_subscribed: status.0,
            is_automatic: status.1,
            at: Position(at),
        };
        let changes = vec![
            change("!a", "$1", (true, true), 9),
            change("!b", "$2", (true, false), 8),
            change("!a", "$3", (true, false), 7),
            change("!a", "$4", (false, false), 6),
        ];
        let (mut out, mut first) = (b"{".to_vec(), true);
        write_changes(&mut out, &mut first, changes);
        out.push(b'}');
        let expected = json!({
            "subscribed": {
                "!a": { "$1": { "automatic": true, "bump_stamp": 9 }, "$3": { "automatic": false, "bump_stamp": 7 } },
                "!b": { "$2": { "automatic": false, "bump_stamp": 8 } },
            },
            "unsubscribed": { "!a": { "$4": { "bump_stamp": 6 } } },
        });
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&out).unwrap(), expected);
        let (mut out, mut first) = (Vec::new(), true);
        write_changes(&mut out, &mut first, Vec::new());
        assert!(out.is_empty() && first);
    }
}

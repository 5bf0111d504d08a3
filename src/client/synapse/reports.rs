//! What users reported: list, one, removed.

use std::sync::Arc;

use ruma::OwnedEventId;
use serde_json::{Map, Value, json};

use super::{Page, administrator, administrator_with_memory, beside, done, listed};
use crate::client::{Client, Error};
use crate::http::{ErrorResponse, Request, Response};
use crate::user::Report;

/// What is reported; each kind has a list of its own. The numbers are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Event,
    Room,
    User,
}

fn kind(report: &Report) -> Kind {
    match (&report.event_id, &report.room_id) {
        (Some(_), _) => Kind::Event,
        (None, Some(_)) => Kind::Room,
        (None, None) => Kind::User,
    }
}

/// GET /_synapse/admin/v1/event_reports: the newest first, unless `dir=f`. Reports of rooms and of users, which Synapse lists apart,
/// are no part of it.
pub async fn list(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    listing(client, request, "event_reports", Kind::Event).await
}

/// GET /_synapse/admin/v1/room_reports: reports of rooms, in a form like it. Synapse has no such call.
pub async fn of_rooms(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    listing(client, request, "room_reports", Kind::Room).await
}

/// GET /_synapse/admin/v1/user_reports: reports of users, the newest first, unless `dir=f`.
pub async fn of_users(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    listing(client, request, "user_reports", Kind::User).await
}

async fn listing(client: Arc<Client>, request: Request, name: &'static str, of: Kind) -> Result<Response, Error> {
    let (_, grant) = administrator_with_memory(&client, &request).await?;
    let page = Page::of(&request)?;
    let backwards = request.query("dir").is_none() || page.backwards;
    let (by, room_id) = (request.query("user_id"), request.query("room_id"));
    let about = request.query("target_user_id").or_else(|| request.query("event_sender_user_id"));
    let wanted = move |report: &Report| {
        let has = |text: Option<&str>, part: &Option<String>| {
            part.as_deref().is_none_or(|part| text.is_some_and(|text| text.contains(part)))
        };
        kind(report) == of
            && has(Some(&report.by), &by)
            && has(report.room_id.as_deref(), &room_id)
            && has(report.user_id.as_deref(), &about)
    };
    let (found, total) = client.users.find_reports(wanted, backwards, page.from, page.most).await?;
    let (many, rest) = (found.len(), beside(page, found.len(), total, |next| next.into()));
    let row = Box::new(move |at: usize| {
        let Some(report) = client.users.report_now(found[at])? else { return Ok(None) };
        let names = report.room_id.as_deref().map(|room_id| client.rooms.names_now(room_id)).transpose()?;
        Ok(Some(shown(found[at], &report, names.unwrap_or_default())))
    });
    Ok(listed(grant, name, many, rest, row))
}

/// GET /_synapse/admin/v1/event_reports/{report_id}: with the event as it is stored, or what was kept of its text where it is gone.
pub async fn get(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let (number, report) = one(&client, &request, Kind::Event).await?;
    let names = match &report.room_id {
        Some(room_id) => client.rooms.names(room_id).await?,
        None => (None, None),
    };
    let mut value = shown(number, &report, names);
    let event_id = report.event_id.as_deref().and_then(|id| OwnedEventId::try_from(id).ok());
    let stored = match event_id {
        Some(event_id) => client.rooms.stored_event(&event_id).await.ok(),
        None => None,
    };
    value["event_json"] = match stored.and_then(|event| serde_json::from_slice::<Map<_, _>>(&event).ok()) {
        Some(mut event) => {
            event.remove("event_id");
            event.into()
        }
        None => json!({ "event_id": report.event_id, "room_id": report.room_id, "sender": report.user_id,
            "content": { "body": report.excerpt } }),
    };
    Ok(Response::json(&value))
}

/// GET /_synapse/admin/v1/user_reports/{report_id}
pub async fn get_of_user(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let (number, report) = one(&client, &request, Kind::User).await?;
    Ok(Response::json(&shown(number, &report, (None, None))))
}

/// DELETE /_synapse/admin/v1/event_reports/{report_id}
pub async fn delete(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    remove(&client, &request, Kind::Event).await
}

/// DELETE /_synapse/admin/v1/user_reports/{report_id}
pub async fn delete_of_user(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    remove(&client, &request, Kind::User).await
}

async fn remove(client: &Client, request: &Request, of: Kind) -> Result<Response, Error> {
    administrator(client, request).await?;
    let (number, _) = one(client, request, of).await?;
    client.users.remove_report(number).await?;
    Ok(done())
}

async fn one(client: &Client, request: &Request, of: Kind) -> Result<(u32, Report), Error> {
    let wrong =
        || ErrorResponse::invalid_param("The report_id parameter must be a string representing a positive integer.");
    let number: u32 = request.param("report_id").parse().map_err(|_| wrong())?;
    let found = client.users.reports(number.saturating_sub(1), 1).await?.pop();
    let found = found.filter(|(at, report)| *at == number && kind(report) == of);
    Ok(found.ok_or_else(|| ErrorResponse::not_found("Report not found"))?)
}

fn shown(number: u32, report: &Report, (name, canonical_alias): (Option<String>, Option<String>)) -> Value {
    let mut value = json!({
        "id": number, "received_ts": report.at_ms, "user_id": report.by, "reason": report.reason,
    });
    if kind(report) == Kind::User {
        value["target_user_id"] = report.user_id.clone().into();
        return value;
    }
    value["room_id"] = report.room_id.clone().into();
    (value["name"], value["canonical_alias"]) = (name.into(), canonical_alias.into());
    if kind(report) == Kind::Event {
        value["event_id"] = report.event_id.clone().into();
        value["sender"] = report.user_id.clone().into();
        value["score"] = report.score.into();
    }
    value
}

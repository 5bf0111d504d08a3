//! What users reported: list, one, removed.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Page, administrator, administrator_with_memory, answer, done};
use crate::client::{Client, Error};
use crate::http::{ErrorResponse, Request, Response};
use crate::user::Report;

/// GET /_synapse/admin/v1/event_reports: the newest first, unless `dir=f`. Reports of rooms and of users, which Synapse lists apart,
/// are no part of it.
pub async fn list(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    listed(client, request, "event_reports", |report| report.event_id.is_some()).await
}

/// GET /_synapse/admin/v1/room_reports: reports of rooms, in the same form.
pub async fn of_rooms(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    listed(client, request, "room_reports", |report| report.event_id.is_none() && report.room_id.is_some()).await
}

/// GET /_synapse/admin/v1/user_reports: reports of users, in the same form.
pub async fn of_users(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    listed(client, request, "user_reports", |report| report.event_id.is_none() && report.room_id.is_none()).await
}

async fn listed(
    client: Arc<Client>,
    request: Request,
    name: &'static str,
    is_of_kind: fn(&Report) -> bool,
) -> Result<Response, Error> {
    let (_, grant) = administrator_with_memory(&client, &request).await?;
    let page = Page::of(&request)?;
    let backwards = request.query("dir").is_none() || page.backwards;
    let (by, room_id) = (request.query("user_id"), request.query("room_id"));
    let wanted = move |report: &Report| {
        let has = |text: Option<&str>, part: &Option<String>| {
            part.as_deref().is_none_or(|part| text.is_some_and(|text| text.contains(part)))
        };
        is_of_kind(report) && has(Some(&report.by), &by) && has(report.room_id.as_deref(), &room_id)
    };
    let (found, total) = client.users.find_reports(wanted, backwards, page.from, page.most).await?;
    let (reports, count) = super::list(name, found, |(number, report)| shown(*number, report));
    let next = page.from + count;
    let mut value = json!({ "total": total });
    if next < total && page.most > 0 {
        value["next_token"] = next.into();
    }
    answer(reports, value, grant)
}

/// GET /_synapse/admin/v1/event_reports/{number}
pub async fn get(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    let number = number(&request)?;
    let report = client.users.reports(number.saturating_sub(1), 1).await?.pop().filter(|(found, _)| *found == number);
    let (_, report) = report.ok_or_else(|| ErrorResponse::not_found("Event report not found"))?;
    let mut value = shown(number, &report);
    value["event_json"] = json!({ "event_id": report.event_id, "room_id": report.room_id, "sender": report.user_id,
        "content": { "body": report.excerpt } });
    Ok(Response::json(&value))
}

/// DELETE /_synapse/admin/v1/event_reports/{number}
pub async fn delete(client: Arc<Client>, request: Request) -> Result<Response, Error> {
    administrator(&client, &request).await?;
    client.users.remove_report(number(&request)?).await?;
    Ok(done())
}

fn number(request: &Request) -> Result<u32, ErrorResponse> {
    let wrong =
        || ErrorResponse::invalid_param("The report_id parameter must be a string representing a positive integer.");
    request.param("report_id").parse().map_err(|_| wrong())
}

fn shown(number: u32, report: &Report) -> Value {
    json!({
        "id": number, "received_ts": report.at_ms, "user_id": report.by, "reason": report.reason, "score": report.score,
        "room_id": report.room_id, "event_id": report.event_id, "sender": report.user_id,
        "target_user_id": report.user_id, "canonical_alias": null, "name": null,
    })
}

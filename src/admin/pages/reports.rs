//! Reports: what people here find wrong, and what an administrator may do about it.

use askama::Template;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId};

use super::frame::{Form, Frame, Pages, Visit};
use super::people::ago;
use super::rooms::{self, Who};
use crate::admin::{Admin, error::Error};
use crate::base::bounded;
use crate::http::{ErrorResponse, Response};
use crate::room;
use crate::user::{Report, Standing};

/// Reports on a page: of the longest, 6 KiB each as kept, five are 30 KiB in memory; each is cut to [`TEXT_CHARS_MAX`] for the
/// page, of which five bytes in HTML twice, and ids five times, are 9 KiB.
const ROWS: usize = 5;
const TEXT_CHARS_MAX: usize = 400;
/// Counted up to here.
const COUNT_MAX: usize = 100;

pub fn routes(pages: &mut Pages<'_>) {
    pages.show("reports/", show).act("reports/", change);
}

#[derive(Template)]
#[template(path = "reports.html")]
struct Page {
    frame: Frame,
    count: String,
    rows: Vec<Row>,
    next: Option<u32>,
    is_first: bool,
}

struct Row {
    number: u32,
    when: String,
    by: Who,
    about: Option<Who>,
    room: Option<(String, String)>,
    reason: Option<String>,
    excerpt: Option<String>,
    /// The person is of this server, and may be suspended or locked.
    may_act: bool,
    is_suspended: bool,
    is_locked: bool,
    is_message: bool,
    /// What was reported is a message that may be removed.
    may_redact: bool,
}

async fn row(admin: &Admin, number: u32, report: Report) -> Result<Row, Error> {
    let may_redact = reported_message(&report).is_some();
    let mut row = Row {
        number,
        when: ago(report.at_ms, admin.clock.now_ms()),
        by: Who::new(admin, &report.by),
        about: report.user_id.as_deref().map(|user_id| Who::new(admin, user_id)),
        room: report.room_id.map(|room_id| (rooms::path(&room_id), bounded(&room_id, 255))),
        reason: report.reason.map(|reason| bounded(reason, TEXT_CHARS_MAX)),
        excerpt: report.excerpt.map(|excerpt| bounded(excerpt, TEXT_CHARS_MAX)),
        may_act: false,
        is_suspended: false,
        is_locked: false,
        is_message: report.event_id.is_some(),
        may_redact,
    };
    if let Some((_, name)) = &mut row.room
        && let Ok(room_id) = OwnedRoomId::try_from(name.as_str())
        && let Ok(room) = admin.rooms.brief(&room_id).await
        && let Some(found) = room.name
    {
        *name = found;
    }
    let user_id = report.user_id.and_then(|user_id| OwnedUserId::try_from(user_id).ok());
    if let Some(user_id) = user_id.filter(|user_id| user_id.server_name() == admin.users.server())
        && let Some(person) = admin.users.person(&user_id).await?
    {
        row.may_act = person.account.standing == Standing::Active;
        row.is_suspended = person.account.suspended;
        row.is_locked = person.account.locked;
    }
    Ok(row)
}

/// The room, the event and its sender.
fn reported_message(report: &Report) -> Option<(OwnedRoomId, OwnedEventId, OwnedUserId)> {
    let room_id = OwnedRoomId::try_from(report.room_id.as_deref()?).ok()?;
    let event_id = OwnedEventId::try_from(report.event_id.as_deref()?).ok()?;
    Some((room_id, event_id, OwnedUserId::try_from(report.user_id.as_deref()?).ok()?))
}

/// `GET reports/?after=1`: oldest first.
pub async fn show(visit: Visit) -> Result<Response, Error> {
    let users = &visit.admin.users;
    let after = visit.request.query_as::<u32>("after")?.unwrap_or(0);
    let found = users.reports(after, ROWS).await?;
    let next = (found.len() == ROWS).then(|| found.last().map(|(number, _)| *number)).flatten();
    let mut rows = Vec::with_capacity(found.len());
    for (number, report) in found {
        rows.push(row(&visit.admin, number, report).await?);
    }
    let count = match users.count_reports_up_to(COUNT_MAX).await? {
        COUNT_MAX => format!("{COUNT_MAX} reports or more"),
        count => rooms::many(count as u64, "report"),
    };
    let frame = visit.frame("reports", "Reports");
    visit.page(&Page { frame, count, rows, next, is_first: after == 0 }).await
}

/// `POST reports/`: removes a report, or the message it is about, or suspends or locks whom it is about, by the fields `what` and
/// `number`.
pub async fn change(visit: Visit, form: Form) -> Result<Response, Error> {
    let users = &visit.admin.users;
    let wrong = |_| ErrorResponse::invalid_param("a report has a number");
    let number: u32 = form.text("number").parse().map_err(wrong)?;
    let what = form.text("what");
    if what == "remove-report" {
        users.remove_report(number).await?;
        return Ok(visit.done("reports/", &what));
    }
    let report = users.reports(number.saturating_sub(1), 1).await?.pop().filter(|(found, _)| *found == number);
    if what == "redact" {
        let message = report.and_then(|(_, report)| reported_message(&report));
        let Some((room_id, event_id, sender)) = message else {
            return Err(ErrorResponse::not_found("this report is about no message").into());
        };
        match visit.admin.rooms.redact_event(&room_id, &event_id, &sender, &visit.user_id).await {
            Ok(()) => {}
            Err(room::Error::Forbidden(_) | room::Error::Reject(_) | room::Error::NotFound) => {
                let why = "You may not remove this message: it takes somebody in the room with the power to, and you are not. Block the \
                           room, or ask its moderators.";
                return Err(ErrorResponse::forbidden(why).into());
            }
            Err(failed) => return Err(failed.into()),
        }
        tracing::info!("{} on the page, after a report: redact {event_id} of {sender} in {room_id}", visit.user_id);
        return Ok(visit.done("reports/", &what));
    }
    let about = report.and_then(|(_, report)| OwnedUserId::try_from(report.user_id?).ok());
    let about = about.filter(|user_id| user_id.server_name() == users.server());
    let Some(user_id) = about else { return Err(ErrorResponse::not_found("this report is about nobody here").into()) };
    if matches!(what.as_str(), "lock" | "suspend") && users.is_last_admin(&user_id).await? {
        return Err(ErrorResponse::forbidden(format!(
            "{user_id} is the only administrator: without one nobody could open this page"
        ))
        .into());
    }
    match what.as_str() {
        "lock" => users.set_locked(&user_id, true).await?,
        "unlock" => users.set_locked(&user_id, false).await?,
        "suspend" => users.set_suspended(&user_id, true).await?,
        "unsuspend" => users.set_suspended(&user_id, false).await?,
        _ => return Err(ErrorResponse::invalid_param("this page has no such button").into()),
    }
    tracing::info!("{} on the page, after a report: {what} {user_id}", visit.user_id);
    Ok(visit.done("reports/", &what))
}

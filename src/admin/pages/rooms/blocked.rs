//! Rooms that nobody of this server may come into, known here or not.

use askama::Template;
use ruma::OwnedRoomId;

use super::path;
use crate::admin::pages::frame::{Form, Frame, Visit};
use crate::admin::pages::people::{ago, encoded};
use crate::admin::{Admin, error::Error};
use crate::base::bounded;
use crate::http::{ErrorResponse, Response};
use crate::room::Blocked;

/// Blocked rooms on a page: ids of 255 bytes twice, five bytes for a letter, and who blocked them, are 48 KiB.
const ROWS: usize = 12;

#[derive(Template)]
#[template(path = "rooms_blocked.html")]
struct Page {
    frame: Frame,
    rows: Vec<Row>,
    next: Option<String>,
    is_first: bool,
}

struct Row {
    room_id: String,
    by: String,
}

/// Who blocked a room, and when.
pub fn by(admin: &Admin, blocked: &Blocked) -> String {
    format!("blocked by {} {}", bounded(&blocked.by, 255), ago(blocked.at_ms, admin.clock.now_ms()))
}

/// `GET rooms/blocked?after=room`
pub async fn show(visit: Visit) -> Result<Response, Error> {
    let after = visit.request.query("after").unwrap_or_default();
    let found = visit.admin.rooms.blocked_rooms(&after, ROWS).await?;
    let page = Page {
        frame: visit.frame("rooms", "Blocked rooms"),
        next: (found.len() == ROWS).then(|| found.last().map(|(room_id, _)| encoded(room_id))).flatten(),
        rows: found.into_iter().map(|(room_id, row)| Row { by: by(&visit.admin, &row), room_id }).collect(),
        is_first: after.is_empty(),
    };
    visit.page(&page).await
}

/// `POST rooms/blocked`: blocks the room of the field `room`, or takes that back, by the field `what`.
pub async fn change(visit: Visit, form: Form) -> Result<Response, Error> {
    let room = form.text("room");
    let wrong = || {
        ErrorResponse::invalid_param(format!(
            "{:?} is no room's id, such as !abc:example.org: apps show it in the room's settings",
            bounded(&room, 80)
        ))
    };
    let room_id: OwnedRoomId = room.parse().map_err(|_| wrong())?;
    let word = set(&visit, &form, &room_id).await?;
    Ok(visit.done("rooms/blocked", word))
}

/// `POST rooms/of/{room}`: the same for this room.
pub async fn change_one(visit: Visit, form: Form) -> Result<Response, Error> {
    let room_id: OwnedRoomId = visit.request.param_as("room")?;
    let word = set(&visit, &form, &room_id).await?;
    Ok(visit.done(&path(room_id.as_str()), word))
}

async fn set(visit: &Visit, form: &Form, room_id: &OwnedRoomId) -> Result<&'static str, Error> {
    let (word, by) = match form.text("what").as_str() {
        "block-room" => ("block-room", Some(&*visit.user_id)),
        "unblock-room" => ("unblock-room", None),
        _ => return Err(ErrorResponse::invalid_param("this page has no such button").into()),
    };
    visit.admin.rooms.block(room_id, by).await?;
    tracing::info!("{} on the page: {word} {room_id}", visit.user_id);
    Ok(word)
}

//! What takes rooms, or their old messages, away for good: each is asked again, with what it takes before and after.

use std::time::Duration;

use askama::Template;
use ruma::OwnedRoomId;

use super::{grouped, many, path};
use crate::admin::pages::frame::{Form, Frame, NAME_CHARS_MAX, Removal, Visit};
use crate::admin::{Admin, error::Error, purge};
use crate::base::{bounded, date, detached};
use crate::budget::human;
use crate::http::{ErrorResponse, Response};
use crate::room::{BriefRoom, LeftRooms, Purging};

/// Rooms on their way out that are shown: 2 KiB with the longest ids.
const PURGING_SHOWN: usize = 3;
/// A hundred years.
const DAYS_MAX: u32 = 36_500;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Whoever shortens a room's history waits so long for the figures; it goes on without them.
const SHORTEN_WITHIN: Duration = Duration::from_secs(20);

#[derive(Template)]
#[template(path = "purging.html")]
struct Under {
    rows: Vec<Row>,
    more: usize,
    said: Option<String>,
    hint: bool,
}

struct Row {
    name: String,
    about: String,
    /// Of a thousand.
    done: u64,
}

impl Row {
    fn new(purging: &Purging) -> Row {
        Row {
            name: bounded(&purging.room_id, NAME_CHARS_MAX),
            about: format!("{} and {} are gone", many(purging.events, "event"), many(purging.rows, "other row")),
            done: (purging.part.clamp(0.0, 1.0) * 1000.0) as u64,
        }
    }
}

/// Rooms on their way out, and what the last removal gave back.
pub async fn under_way(admin: &Admin) -> Result<String, Error> {
    let purging = admin.rooms.purging().await?;
    let removal = admin.page.removal.lock().clone();
    let (mut said, mut hint) = (None, false);
    if let Some(Removal { room_id, name, before_bytes }) = removal {
        let now_bytes = admin.rooms.database_bytes();
        let is_there = match &room_id {
            Some(room_id) => admin.rooms.is_known(room_id).await?,
            None => !purging.is_empty(),
        };
        let sizes = format!("The database took {} before, and takes {} now.", human(before_bytes), human(now_bytes));
        hint = !is_there && now_bytes >= before_bytes;
        said = Some(match (is_there, purging.is_empty()) {
            (true, true) => format!("{name} goes once other servers know that people here left it. {sizes}"),
            (true, false) => sizes,
            (false, _) => format!("{name} is removed. {sizes}"),
        });
    }
    let mut rows: Vec<_> = purging.iter().take(PURGING_SHOWN).map(Row::new).collect();
    let space = admin.rooms.space();
    if space.is_under_way {
        hint = false;
        rows.push(Row {
            name: "What is free in the database".to_owned(),
            about: format!(
                "It goes back to the disk: the database took {} before, and takes {} now",
                human(space.before_bytes),
                human(admin.rooms.database_bytes())
            ),
            done: (space.part.clamp(0.0, 1.0) * 1000.0) as u64,
        });
    }
    let page = Under { rows, more: purging.len().saturating_sub(PURGING_SHOWN), said, hint };
    Ok(page.render().map_err(ErrorResponse::internal)?)
}

#[derive(Template)]
#[template(path = "room_remove.html")]
struct Remove {
    frame: Frame,
    path: String,
    name: String,
    events: String,
    bytes: String,
    database: String,
    local_joined: u64,
}

async fn named(visit: &Visit) -> Result<(OwnedRoomId, String, BriefRoom), Error> {
    let room_id: OwnedRoomId = visit.request.param_as("room")?;
    let room = visit.admin.rooms.brief(&room_id).await?;
    let name = room.name.clone().unwrap_or_else(|| bounded(&room_id, NAME_CHARS_MAX));
    Ok((room_id, name, room))
}

/// `GET rooms/of/{room}/remove`: what removing a room does.
pub async fn ask(visit: Visit) -> Result<Response, Error> {
    let (room_id, name, room) = named(&visit).await?;
    let page = Remove {
        frame: visit.frame("rooms", format!("Remove {name}")),
        path: path(room_id.as_str()),
        events: many(room.events, "event"),
        bytes: human(room.bytes),
        database: human(visit.admin.rooms.database_bytes()),
        local_joined: room.local_joined,
        name,
    };
    visit.page(&page).await
}

/// `POST rooms/of/{room}/remove`: begins. People here leave it first; who came since the page was shown does not: 403.
pub async fn remove(visit: Visit, form: Form) -> Result<Response, Error> {
    let (room_id, name, room) = named(&visit).await?;
    let agreed: u64 = form.text("leave").parse().unwrap_or(0);
    if room.local_joined > agreed {
        return Err(ErrorResponse::forbidden(
            "More people here are in this room than when you were asked. Nothing was changed: look again",
        )
        .into());
    }
    let before_bytes = visit.admin.rooms.database_bytes();
    purge::begin(&visit.admin, room_id.clone(), agreed > 0).await?;
    tracing::info!("{} removes the room {room_id} on the page", visit.user_id);
    *visit.admin.page.removal.lock() = Some(Removal { room_id: Some(room_id), name, before_bytes });
    Ok(visit.done("rooms/", "remove-room"))
}

#[derive(Template)]
#[template(path = "rooms_left.html")]
struct Left {
    frame: Frame,
    rooms: String,
    events: String,
    bytes: String,
    database: String,
    is_none: bool,
}

/// `GET rooms/left`: what the rooms that nobody here is in take.
pub async fn ask_left(visit: Visit) -> Result<Response, Error> {
    let LeftRooms { rooms, events, bytes } = visit.admin.rooms.left_rooms().await?;
    let page = Left {
        frame: visit.frame("rooms", "Remove what nobody is in"),
        rooms: many(rooms, "room"),
        events: many(events, "event"),
        bytes: human(bytes),
        database: human(visit.admin.rooms.database_bytes()),
        is_none: rooms == 0,
    };
    visit.page(&page).await
}

/// `POST rooms/left`: begins to remove all of them.
pub async fn remove_left(visit: Visit, _: Form) -> Result<Response, Error> {
    let found = visit.admin.rooms.left_rooms().await?;
    let before_bytes = visit.admin.rooms.database_bytes();
    let name = many(found.rooms, "room");
    let rooms = visit.admin.rooms.clone();
    detached(async move {
        if let Err(failed) = rooms.purge_left(false).await {
            tracing::warn!(%failed, "not all rooms that nobody is in could be removed");
        }
    });
    tracing::info!("{} removes the rooms that nobody here is in on the page", visit.user_id);
    *visit.admin.page.removal.lock() = Some(Removal { room_id: None, name, before_bytes });
    Ok(visit.done("rooms/", "remove-room"))
}

#[derive(Template)]
#[template(path = "room_shorten.html")]
struct Shorten {
    frame: Frame,
    path: String,
    name: String,
    days: u32,
    /// Messages before this day go.
    before: String,
    events: String,
    bytes: String,
    said: Option<String>,
}

fn days(text: &str) -> Result<u32, Error> {
    let days = text.trim().parse().ok().filter(|days| (1..=DAYS_MAX).contains(days));
    Ok(days.ok_or_else(|| {
        ErrorResponse::invalid_param("Messages of the last day stay: name a number of days, such as 365")
    })?)
}

fn shorten_page(visit: &Visit, days: u32, name: String, room: &BriefRoom, said: Option<String>) -> Shorten {
    let before_ms = visit.admin.clock.settled_ms().saturating_sub(u64::from(days) * DAY_MS);
    Shorten {
        frame: visit.frame("rooms", format!("Shorten {name}")),
        path: path(&room.room_id),
        name,
        days,
        before: date(before_ms),
        events: many(room.events, "event"),
        bytes: human(room.bytes),
        said,
    }
}

/// `GET rooms/of/{room}/shorten?days=365`: what removing a room's old messages does.
pub async fn ask_shorten(visit: Visit) -> Result<Response, Error> {
    let (_, name, room) = named(&visit).await?;
    let days = days(&visit.request.query("days").unwrap_or_default())?;
    visit.page(&shorten_page(&visit, days, name, &room, None)).await
}

/// `POST rooms/of/{room}/shorten`: removes messages older than the field `days`, and says what that gave back. 400 while messages
/// of the room are being removed already.
pub async fn shorten(visit: Visit, form: Form) -> Result<Response, Error> {
    let (room_id, name, before) = named(&visit).await?;
    let days = days(&form.text("days"))?;
    let task = visit.admin.rooms.begin_purge_by_age(Some(&room_id), Some(&visit.user_id), days).await?;
    tracing::info!("{} removes messages of {room_id} older than {days} days on the page", visit.user_id);
    let said = tokio::select! {
        done = purge::purged(&visit.admin, &task) => {
            let (events, bytes) = done?;
            let after = visit.admin.rooms.brief(&room_id).await?;
            let had = format!("The room had {} events in {}", grouped(before.events), human(before.bytes));
            let has = format!("{} in {}", grouped(after.events), human(after.bytes));
            format!("{} went, {}. {had}, and has {has} now.", many(events, "message"), human(bytes))
        }
        () = visit.admin.clock.sleep(SHORTEN_WITHIN) => {
            "It is being done, and goes on by itself, also after a restart: look at the room again later.".to_owned()
        }
    };
    let room = visit.admin.rooms.brief(&room_id).await?;
    visit.page(&shorten_page(&visit, days, name, &room, Some(said))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn todays_messages_stay() {
        assert_eq!((days("1").unwrap(), days(" 365 ").unwrap()), (1, 365));
        for wrong in ["", "0", "-1", "a", "36501", "4294967296"] {
            days(wrong).unwrap_err();
        }
    }
}

//! What notifies a user: one event as a push gateway is told of it, and the list of all (client-server API,
//! "Push Notifications", `/notifications`).
//!
//! Which events notify whom was found when they came (`append/unread.rs`) and stands in the unread counts, without a
//! row for each. What the rules say beyond that (a sound, a highlight) is found again, by the rules of today. So is the
//! whole list: the timelines of the user's rooms are walked from the newest event back. That costs reading for the few
//! apps that ask, and nothing for everybody else.
//!
//! Bounds of one page: [`PAGE_MAX`] entries, [`LOOKED_MAX`] events judged, [`WALKED_MAX`] passed, [`HEADS_MAX`] rooms at
//! a time; two rows for each joined room.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use serde_json::json;
use serde_json::value::RawValue;

use super::Rooms;
use super::append::unread::judge;
use super::error::Result;
use super::read::Reader;
use super::read::event_json::{self, Detail, Format};
use super::state::StateView;
use super::state::event::load_row;
use super::state::stripped::inviter;
use crate::base::{self, ChunkError, ChunkWriter, Chunks, comma};
use crate::matrix::push::notice::{Notice, actions};
use crate::matrix::version::{self, RoomVersion};
use crate::matrix::{Event, json, push};
use crate::store::tables::room::event_row::{Membership, Row};
use crate::store::tables::room::{self as table, Room, event, timeline, unread, user_room};
use crate::store::tables::user;
use crate::store::{self, EventNum, Get, Read, RoomNum, UserNum};

/// Entries of one page: about 150 bytes each, and the events are written one after the other.
pub const PAGE_MAX: usize = 100;
/// Events judged for one page; then it ends early, with a token to go on from there. Judging one takes some 50 µs.
const LOOKED_MAX: usize = 300;
/// Events passed for one page, those included of which a row tells that they notify nobody: own and redacted ones. Two
/// rows for each.
const WALKED_MAX: usize = 2_000;
/// Rooms whose timelines are walked at the same time: those with the newest events.
const HEADS_MAX: usize = 64;

/// An unread event that waits to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waiting {
    /// At this place of the room's timeline.
    Event(i64),
    Invite,
}

/// The notifications that are asked for.
#[derive(Debug, Clone, Copy)]
pub struct NotificationQuery {
    /// Those older than this place.
    pub from: Option<u64>,
    pub limit: usize,
    pub only_highlight: bool,
}

struct Entry {
    room: RoomNum,
    event: EventNum,
    outcome: push::Outcome,
    read: bool,
}

struct Page {
    entries: Vec<Entry>,
    next: Option<i64>,
}

impl Rooms {
    /// What is to be told of a waiting event; `None` when it notifies no more: it is redacted, its sender ignored, or
    /// the rules are others by now. Blocks; bounded by the event.
    pub fn notice(&self, get: &Read, user: UserNum, room: RoomNum, waiting: Waiting) -> store::Result<Option<Notice>> {
        let row = table::get_of(get, room)?;
        let event = match waiting {
            Waiting::Event(order) => match timeline::at_or_before(get, room, order)?.filter(|at| at.0 == order) {
                Some((_, num)) => loaded(get, &row.version, num)?,
                None => None,
            },
            Waiting::Invite => match user_room::mine(get, user, room)?.filter(is_invite).map(|mine| mine.event) {
                Some(Some(num)) => loaded(get, &row.version, num)?,
                Some(None) => return self.invite_from_outside(get, user, room, row),
                None => None,
            },
        };
        let Some(event) = event else { return Ok(None) };
        let outcome = judge(get, &self.0.rules, room, &event, user)?;
        if !outcome.notify {
            return Ok(None);
        }
        let view = StateView::present(get, room, event.version());
        let sender = view.member(event.sender())?;
        let sender = sender.map(|(_, member)| event::row_of(get, member)).transpose()?;
        let sender = sender.map(|row| load_row(get, event.version(), &row)).transpose()?;
        let user_id = user::id_of(get, user)?;
        let membership = (event.kind() == "m.room.member").then(|| event.content_text("membership")).flatten();
        Ok(Some(Notice {
            event_id: Some(event.id().to_string()),
            sender_display_name: sender.and_then(|sender| text(&sender, "displayname")),
            room_name: view.text("m.room.name", "name")?.filter(|name| !name.is_empty()),
            room_alias: view.text("m.room.canonical_alias", "alias")?.filter(|alias| alias.len() <= 255),
            target: membership.map(|is| (event.state_key() == Some(&*user_id), is.chars().take(16).collect())),
            ..told(&event, row.id, outcome)
        }))
    }

    /// An invite to a room of other servers, of which only stripped state is known.
    fn invite_from_outside(
        &self,
        get: &Read,
        user: UserNum,
        num: RoomNum,
        room: Room,
    ) -> store::Result<Option<Notice>> {
        let user_id = user::id_of(get, user)?;
        let stripped = user_room::stripped(get, user, num)?.unwrap_or_default();
        // At most 64 KiB of at most 33 events.
        let state: Vec<&RawValue> = serde_json::from_slice(&stripped).unwrap_or_default();
        let Some(own) = state.last() else { return Ok(None) };
        let Ok(id) = <&ruma::UserId>::try_from(user_id.as_str()) else { return Ok(None) };
        let content = json::read::get(own.get().as_bytes(), "content").and_then(|text| std::str::from_utf8(text).ok());
        let (Some(sender), Some(content)) = (inviter(&stripped, id), content) else { return Ok(None) };
        // With what the rules look at; it is kept nowhere.
        let (room_json, sender_json, key_json) = (json!(room.id), json!(sender), json!(user_id));
        let Some(version) = version::get(&room.version).or(version::list().last()) else { return Ok(None) };
        let bytes = format!(
            "{{\"content\":{content},\"room_id\":{room_json},\"sender\":{sender_json},\"state_key\":{key_json},\
             \"type\":\"m.room.member\"}}"
        );
        // Ours, of the event that came; invites of former versions have none.
        let own_id = json::read::get(own.get().as_bytes(), "event_id").and_then(json::read::text);
        let own_id = own_id.map(|id| id.into_owned());
        let Ok(event_id) = ruma::OwnedEventId::try_from(own_id.as_deref().unwrap_or("$invite")) else {
            return Ok(None);
        };
        let Ok(event) = Event::from_stored(version, bytes.into_bytes(), event_id) else { return Ok(None) };
        let outcome = judge(get, &self.0.rules, num, &event, user)?;
        if !outcome.notify {
            return Ok(None);
        }
        let field = |kind: &str, path: &[&str]| {
            let of_kind = state
                .iter()
                .map(|event| event.get().as_bytes())
                .find(|event| json::read::get(event, "type").and_then(json::read::text).is_some_and(|is| is == kind));
            let value = of_kind.and_then(|event| json::read::get_path(event, path)).and_then(json::read::text);
            value.map(|text| text.into_owned()).filter(|text| !text.is_empty())
        };
        Ok(Some(Notice {
            room_name: field("m.room.name", &["content", "name"]),
            room_alias: field("m.room.canonical_alias", &["content", "alias"]).filter(|alias| alias.len() <= 255),
            event_id: own_id,
            target: Some((true, "invite".to_owned())),
            ..told(&event, room.id, outcome)
        }))
    }

    /// A page of what notified a user, newest first: `{"notifications": [...], "next_token": "..."}`. Events of joined
    /// rooms, since the user joined; read ones too.
    pub async fn notifications(&self, reader: Reader, query: NotificationQuery) -> Result<impl Chunks> {
        let rules = self.0.rules.clone();
        let work = move |_: &Rooms, read: &Read| Ok(page(read, &rules, reader.user, &query, WALKED_MAX)?);
        let page = self.reading(work).await?;
        let format = Format {
            now_ms: self.0.parts.clock.now_ms(),
            user: reader.user,
            device: reader.device,
            ..Format::default()
        };
        let read = Arc::new(self.read()?);
        Ok(base::written(move |pen| write_page(pen, read, page, format)))
    }
}

fn is_invite(mine: &user_room::Mine) -> bool {
    mine.membership == Membership::Invite
}

/// An event that can still notify.
fn loaded(get: &Read, version: &str, num: EventNum) -> store::Result<Option<Event>> {
    let row = event::row_of(get, num)?;
    match version::get(version) {
        Some(version) if is_shown(&row) => Ok(Some(load_row(get, version, &row)?)),
        _ => Ok(None),
    }
}

fn is_shown(row: &Row) -> bool {
    !row.flags.rejected && !row.flags.soft_failed && !row.flags.redacted
}

fn told(event: &Event, room_id: String, outcome: push::Outcome) -> Notice {
    Notice {
        room_id,
        kind: event.kind().to_owned(),
        sender: event.sender().to_string(),
        content: Some(event.content().to_owned()),
        outcome,
        ..Notice::default()
    }
}

fn text(event: &Event, field: &str) -> Option<String> {
    event.content_text(field).map(|text| text.into_owned()).filter(|text| !text.is_empty())
}

/// Walks the timelines of a user's rooms together, newest event first.
fn page(
    get: &Read,
    rules: &super::append::rules_cache::Rules,
    user: UserNum,
    query: &NotificationQuery,
    walked_max: usize,
) -> store::Result<Page> {
    let before = query.from.map_or(i64::MAX, |from| i64::try_from(from).unwrap_or(i64::MAX));
    let (mut heads, mut floor) = heads(get, user, before)?;
    let (mut page, mut looked, mut walked) = (Page { entries: Vec::new(), next: None }, 0, 0);
    while let Some((order, room, num, since)) = heads.pop_last() {
        if order < floor.unwrap_or(i64::MIN) {
            break;
        }
        if page.entries.len() == query.limit || looked == LOOKED_MAX || walked == walked_max {
            // Going on before the place behind this one.
            floor = Some(order);
            break;
        }
        walked += 1;
        if let Some((order, num)) = timeline::at_or_before(get, room, order - 1)?.filter(|(order, _)| *order > since) {
            heads.insert((order, room, num, since));
        }
        let row = event::row_of(get, num)?;
        if row.sender == user || !is_shown(&row) {
            continue;
        }
        looked += 1;
        let Some(version) = version_of(get, room)? else { continue };
        let event = load_row(get, version, &row)?;
        let outcome = judge(get, rules, room, &event, user)?;
        if outcome.notify && (outcome.highlight || !query.only_highlight) {
            let read = unread::get(get, user, room)?.has_read(order);
            page.entries.push(Entry { room, event: num, outcome, read });
        }
    }
    page.next = floor.map(|floor| floor + 1);
    Ok(page)
}

/// The newest events, one of each room: the place, and that since which its user is there. And the place of the newest
/// event that was left out.
#[allow(clippy::type_complexity)] // an event with its places
fn heads(
    get: &Read,
    user: UserNum,
    before: i64,
) -> store::Result<(BTreeSet<(i64, RoomNum, EventNum, i64)>, Option<i64>)> {
    let (mut heads, mut floor) = (BTreeSet::new(), None);
    user_room::list_mine(get, user, None, &mut |room, mine| {
        if mine.membership == Membership::Join {
            let since = i64::try_from(mine.since.0).unwrap_or(i64::MAX);
            let newest = timeline::at_or_before(get, room, before.saturating_sub(1))?;
            heads.extend(newest.filter(|(order, _)| *order > since).map(|(order, num)| (order, room, num, since)));
            if heads.len() > HEADS_MAX {
                floor = floor.max(heads.pop_first().map(|(order, ..)| order));
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok((heads, floor))
}

fn version_of(get: &impl Get, room: RoomNum) -> store::Result<Option<&'static RoomVersion>> {
    Ok(version::get(&table::get_of(get, room)?.version))
}

async fn write_page(pen: ChunkWriter, read: Arc<Read>, page: Page, format: Format) -> Result<(), ChunkError> {
    let mut first = true;
    pen.text("{\"notifications\":[");
    for entry in &page.entries {
        let row = event::row_of(&*read, entry.event)?;
        let room_id = table::id(&*read, entry.room)?.unwrap_or_default();
        let about = json!({
            "actions": actions(&entry.outcome), "read": entry.read, "room_id": room_id, "ts": row.origin_server_ts,
        });
        pen.with(|out| {
            comma(out, &mut first);
            let about = about.to_string();
            out.extend_from_slice(&about.as_bytes()[..about.len() - 1]);
            out.extend_from_slice(b",\"event\":");
            event_json::write(&*read, entry.event, &row, &format, Detail::Timeline, out)?;
            out.push(b'}');
            Ok::<_, store::Error>(())
        })?;
        pen.pause().await;
    }
    pen.text("]");
    if let Some(next) = page.next {
        pen.text(&format!(",\"next_token\":\"{next}\""));
    }
    pen.text("}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::testing::house;

    /// Whoever writes alone has nothing that notifies, however long it is looked for.
    #[tokio::test]
    async fn a_page_passes_so_many_own_events_and_goes_on_from_there() {
        let house = house();
        let (anna, ben) = (house.user("anna").await, house.user("ben").await);
        let room = house.public_room(&anna).await;
        house.join(&ben, &room).await.unwrap();
        house.say(&anna, &room, "for ben").await;
        for number in 0..12 {
            house.say(&ben, &room, &number.to_string()).await;
        }
        let (get, user, mut from) = (house.read(), house.user_num(&ben), None);
        for pages in 0.. {
            let query = NotificationQuery { from, limit: 5, only_highlight: false };
            let page = page(&get, &house.rooms.0.rules, user, &query, 5).unwrap();
            if !page.entries.is_empty() {
                assert_eq!((pages, page.entries.len()), (2, 1));
                break;
            }
            from = Some(u64::try_from(page.next.unwrap()).unwrap());
        }
    }
}

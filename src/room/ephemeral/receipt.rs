//! Receipts and typing notifications of a room.

use std::time::Duration;

use ruma::{EventId, OwnedEventId, OwnedUserId, RoomId, ServerName, UserId};
use serde_json::json;

use super::typing::Passed;
use crate::base;
use crate::room::Rooms;
use crate::room::append::outbound::has_other_servers;
use crate::room::error::{Error, Result};
use crate::room::state::RoomRef;
use crate::room::state::join_conditions::local_joined;
use crate::room::state::{known_to_member, not_in_room};
use crate::store::tables::room::receipt::{self, Kind, Receipt, Whose};
use crate::store::tables::room::unread::Part;
use crate::store::tables::room::{self, event, member, relation, unread};
use crate::store::tables::server::outbox::{self, Outbound};
use crate::store::tables::user;
use crate::store::{Change, EventNum, Get, Read, RoomNum, UserNum, Write};

/// Longest name of a thread: an event id, or `main`.
const THREAD_BYTES_MAX: usize = 255;
/// The most threads of a room in which one user's receipts of a kind are kept; the oldest goes.
const THREADS_MAX: usize = 100;
/// The longest time a user is shown as typing, whatever the app asks for.
const TYPING_MAX: Duration = Duration::from_secs(120);

/// A read marker of one kind.
#[derive(Debug, Clone)]
pub struct Marker {
    /// `m.read`, `m.read.private` or `m.fully_read`.
    pub kind: String,
    pub event_id: OwnedEventId,
    /// `main` or a thread's root; without it the marker holds for the whole room.
    pub thread: Option<String>,
    /// `m.fully_read` may go back to an older event.
    pub allow_backward: bool,
}

/// Several markers set at once.
#[derive(Debug, Clone, Default)]
pub struct ReadMarkers {
    pub fully_read: Option<OwnedEventId>,
    pub read: Option<OwnedEventId>,
    pub read_private: Option<OwnedEventId>,
    /// `fully_read` may go back to an older event.
    pub allow_backward: bool,
}

impl Rooms {
    /// Stores a local user's read marker.
    pub async fn set_receipt(&self, user: &UserId, room_id: &RoomId, marker: Marker) -> Result<()> {
        let kind = Kind::of(&marker.kind)
            .ok_or_else(|| Error::bad("M_INVALID_PARAM", format!("{} is not a type of receipt", marker.kind)))?;
        match marker.thread.as_deref() {
            Some("") => return Err(Error::bad("M_INVALID_PARAM", "a thread has a name")),
            Some(_) if kind == Kind::FullyRead => {
                return Err(Error::bad("M_INVALID_PARAM", "m.fully_read is for the whole room"));
            }
            _ if marker.allow_backward && kind != Kind::FullyRead => {
                return Err(Error::bad("M_INVALID_PARAM", "allow_backward is for m.fully_read alone"));
            }
            _ => {}
        }
        let one = vec![(kind, marker.event_id, marker.thread.unwrap_or_default())];
        set_markers(self, user, room_id, one, marker.allow_backward).await
    }

    pub async fn set_read_markers(&self, user: &UserId, room_id: &RoomId, markers: ReadMarkers) -> Result<()> {
        let all =
            [(Kind::FullyRead, markers.fully_read), (Kind::Read, markers.read), (Kind::Private, markers.read_private)];
        let all = all.into_iter().filter_map(|(kind, id)| id.map(|id| (kind, id, String::new())));
        set_markers(self, user, room_id, all.collect(), markers.allow_backward).await
    }

    /// The `m.fully_read` marker of a local user, in a room that user is joined to; none when it was never set.
    pub async fn fully_read(&self, user: &UserId, room_id: &RoomId) -> Result<Option<String>> {
        let (user, room_id) = (user.to_owned(), room_id.to_owned());
        self.reading(move |_, read| {
            let (room, user) = joined(read, &room_id, &user)?;
            let whose = Whose { user, kind: Kind::FullyRead, thread: String::new() };
            Ok(receipt::get(read, room.num, &whose)?.map(|marker| marker.event_id))
        })
        .await
    }

    /// Sets a local user as typing for the next `length`, or as stopped.
    pub async fn set_typing(&self, user: &UserId, room_id: &RoomId, length: Option<Duration>) -> Result<()> {
        let (asked, room) = (user.to_owned(), room_id.to_owned());
        let joined = self.reading(move |_, read| joined(read, &room, &asked));
        let (room, user) = joined.await.map(|(room, user)| (room.num, user))?;
        if show_typing(self, room, user, length, None).await? {
            tell_typing(self, room, vec![user], length.is_some()).await?;
        }
        Ok(())
    }
}

/// Tells the other servers in a room whether local users type.
async fn tell_typing(rooms: &Rooms, room: RoomNum, users: Vec<UserNum>, typing: bool) -> Result<()> {
    let edus = rooms.reading(move |rooms, read| {
        let mut edus = Vec::with_capacity(users.len());
        if has_other_servers(read, room, rooms.server())? {
            let room_id = room::get_of(read, room)?.id;
            for user in users {
                let content = json!({ "room_id": room_id, "user_id": user::id_of(read, user)?, "typing": typing });
                edus.push(json!({ "edu_type": "m.typing", "content": content }).to_string().into_bytes());
            }
        }
        Ok(edus)
    });
    let edus = edus.await?;
    if edus.is_empty() {
        return Ok(());
    }
    rooms
        .write(move |w| {
            for edu in edus {
                post_to_room(w, room, edu)?;
            }
            w.announce(Change { outbound: true, ..Change::default() });
            Ok(())
        })
        .await
}

/// Shows a user as typing, or as stopped, and wakes the users who see it. Answers whether that is a change.
/// `server`: the remote user's server. For a local user the other servers get repeats while it lasts, and a notice
/// when it ends by itself.
pub async fn show_typing(
    rooms: &Rooms,
    room: RoomNum,
    user: UserNum,
    length: Option<Duration>,
    server: Option<&ServerName>,
) -> Result<bool> {
    let set =
        rooms.0.typing.set(room, user, length.map(|length| length.min(TYPING_MAX)), server.map(ServerName::as_str));
    if set.unwatched {
        let rooms = rooms.clone();
        // The task ends when no user types in the room any more, at the latest TYPING_MAX after the last one began.
        tokio::spawn(async move {
            while let Some(passed) = rooms.0.typing.watch(room).await {
                // A panic is logged and ends only this round: no other task watches the room.
                let told = base::caught_in(Box::pin(typing_passed(&rooms, room, passed))).await;
                if let Ok(Err(error)) = told {
                    tracing::debug!(%error, "typing notifications could not be sent");
                }
            }
        });
    }
    if set.changed {
        wake_room(rooms, room).await?;
    }
    Ok(set.changed)
}

async fn typing_passed(rooms: &Rooms, room: RoomNum, passed: Passed) -> Result<()> {
    if passed.changed {
        wake_room(rooms, room).await?;
    }
    for (users, typing) in [(passed.ended, false), (passed.repeat, true)] {
        if !users.is_empty() {
            tell_typing(rooms, room, users, typing).await?;
        }
    }
    Ok(())
}

/// Wakes the local members of a room for something that is not stored.
async fn wake_room(rooms: &Rooms, room: RoomNum) -> Result<()> {
    let users = rooms.reading(move |_, read| Ok(local_joined(read, room)?)).await?;
    rooms.0.parts.feed.wake(&users);
    Ok(())
}

/// `may_go_back`: so may `m.fully_read`, the only one that no count and no other server depends on.
async fn set_markers(
    rooms: &Rooms,
    user: &UserId,
    room_id: &RoomId,
    markers: Vec<(Kind, OwnedEventId, String)>,
    may_go_back: bool,
) -> Result<()> {
    let (user, room_id, here) = (user.to_owned(), room_id.to_owned(), rooms.here());
    rooms
        .write(move |w| {
            let (room, num) = joined_in(w, &room_id, &user)?;
            // Checked before the first put.
            let mut wanted = Vec::with_capacity(markers.len());
            for (kind, event_id, thread) in markers {
                if !is_thread(w, room.num, &thread)? && !is_older(w, room.num, &thread)? {
                    return Err(Error::bad("M_INVALID_PARAM", "there is no such thread"));
                }
                let event = position_of(w, room.num, &event_id)?;
                wanted.push((Whose { user: num, kind, thread }, event_id, event));
            }
            let mut edu = None;
            for (whose, event_id, order) in wanted {
                let Some(order) = order else { continue };
                let moves = match may_go_back && whose.kind == Kind::FullyRead {
                    true => receipt::get(w, room.num, &whose)?.is_none_or(|old| old.event_id != event_id.as_str()),
                    false => is_forward(w, room.num, &whose, order)?,
                };
                if !moves {
                    continue;
                }
                put(w, room.num, &whose, &event_id, here.now_ms)?;
                if whose.kind != Kind::FullyRead
                    && let Some(part) = part_of(w, &whose.thread)?
                {
                    unread::read_up_to(w, num, room.num, order, part)?;
                }
                if whose.kind == Kind::Read {
                    edu = Some(receipt_edu(&room_id, &user, &whose, &event_id, here.now_ms));
                }
            }
            if let Some(edu) = edu
                && has_other_servers(w, room.num, &here.server)?
            {
                post_to_room(w, room.num, edu)?;
                w.announce(Change { outbound: true, ..Change::default() });
            }
            Ok(())
        })
        .await
}

/// Stores receipts of remote users; receipts for unknown users are skipped. The caller has checked that
/// each is of the server that sent it. One write, when anything is new.
pub async fn receipts_from_outside(rooms: &Rooms, heard: Vec<Heard>) -> Result<()> {
    let news = rooms.reading(move |_, read| {
        let mut news = Vec::with_capacity(heard.len());
        for heard in heard {
            if let Some(whose) = is_news(read, &heard)? {
                news.push((whose, heard));
            }
        }
        Ok(news)
    });
    let news = news.await?;
    if news.is_empty() {
        return Ok(());
    }
    rooms
        .write(move |w| {
            for (whose, heard) in news {
                // A newer receipt may have arrived from another server meanwhile.
                if is_news(w, &heard)?.is_some() {
                    put(w, heard.room, &whose, &heard.event, heard.ts)?;
                }
            }
            Ok(())
        })
        .await
}

/// A receipt of a remote user.
pub(in crate::room) struct Heard {
    pub room: RoomNum,
    pub user: OwnedUserId,
    pub event: OwnedEventId,
    /// Empty for a receipt of the whole room.
    pub thread: String,
    pub ts: u64,
}

/// The marker a receipt moves, if the receipt is new, of a member, and about a thread we know.
fn is_news(get: &impl Get, heard: &Heard) -> Result<Option<Whose>> {
    let Some(user) = user::num(get, heard.user.as_str())? else { return Ok(None) };
    if !member::is_joined(get, heard.room, user)? || !is_thread(get, heard.room, &heard.thread)? {
        return Ok(None);
    }
    let whose = Whose { user, kind: Kind::Read, thread: heard.thread.clone() };
    let is_forward = match order_in(get, heard.room, heard.event.as_str())? {
        Some(order) => is_forward(get, heard.room, &whose, order)?,
        // The event may be on its way from its own server. Until it is here, the times decide.
        None if event::num(get, heard.event.as_str())?.is_none() => {
            receipt::get(get, heard.room, &whose)?.is_none_or(|old| old.ts < heard.ts)
        }
        None => false,
    };
    Ok(is_forward.then_some(whose))
}

/// Whether a receipt may name this thread: none, `main`, or an event of the room.
fn is_thread(get: &impl Get, room: RoomNum, thread: &str) -> Result<bool> {
    match thread {
        "" | "main" => Ok(true),
        _ if thread.len() > THREAD_BYTES_MAX => Ok(false),
        _ => match event::num(get, thread)? {
            Some(num) => Ok(event::row_of(get, num)?.room == room),
            None => Ok(false),
        },
    }
}

/// Whether the thread began before our history of the room: an app that shows one of its replies sends receipts for
/// them.
fn is_older(get: &impl Get, room: RoomNum, thread: &str) -> Result<bool> {
    Ok(thread.len() <= THREAD_BYTES_MAX && relation::is_awaited(get, room, thread)?)
}

fn joined(read: &Read, room_id: &RoomId, user: &UserId) -> Result<(RoomRef, UserNum)> {
    joined_in(read, room_id, user)
}

/// The room and the user's number, when the user is joined.
fn joined_in(get: &impl Get, room_id: &RoomId, user: &UserId) -> Result<(RoomRef, UserNum)> {
    let room = known_to_member(get, room_id)?;
    match user::num(get, user.as_str())? {
        Some(num) if member::is_joined(get, room.num, num)? => Ok((room, num)),
        _ => Err(not_in_room()),
    }
}

/// The place of an event in the room's timeline; `NotFound` when the event is not of this room.
fn position_of(get: &impl Get, room: RoomNum, event_id: &EventId) -> Result<Option<i64>> {
    let num: EventNum = event::num(get, event_id.as_str())?.ok_or(Error::NotFound)?;
    let row = event::row_of(get, num)?;
    if row.room == room { Ok(row.order) } else { Err(Error::NotFound) }
}

fn order_in(get: &impl Get, room: RoomNum, event_id: &str) -> Result<Option<i64>> {
    let Some(num) = event::num(get, event_id)? else { return Ok(None) };
    let row = event::row_of(get, num)?;
    Ok(row.order.filter(|_| row.room == room))
}

/// The part of the room a receipt with this thread covers; none when there is no such thread.
fn part_of(get: &impl Get, thread: &str) -> Result<Option<Part>> {
    Ok(match thread {
        "" => Some(Part::Whole),
        "main" => Some(Part::Main),
        root => event::num(get, root)?.map(Part::Thread),
    })
}

/// Whether a marker moves forward; others are ignored.
fn is_forward(get: &impl Get, room: RoomNum, whose: &Whose, order: i64) -> Result<bool> {
    let Some(old) = receipt::get(get, room, whose)? else { return Ok(true) };
    Ok(order_in(get, room, &old.event_id)?.is_none_or(|old| old < order))
}

/// Writes a marker and announces it to the users who may see it.
fn put(w: &mut Write<'_>, room: RoomNum, whose: &Whose, event_id: &EventId, ts: u64) -> Result<()> {
    let at = w.next_position();
    receipt::put(w, room, whose, &Receipt { event_id: event_id.to_string(), ts, at })?;
    if !whose.thread.is_empty() {
        receipt::keep_threads(w, room, whose, THREADS_MAX)?;
    }
    let users = match whose.kind {
        Kind::Read => local_joined(w, room)?,
        Kind::Private | Kind::FullyRead => vec![whose.user],
    };
    w.announce(Change { users, room: Some(room), only_room: true, ..Change::default() });
    Ok(())
}

fn receipt_edu(room_id: &RoomId, user: &UserId, whose: &Whose, event_id: &EventId, ts: u64) -> Vec<u8> {
    let mut data = json!({ "ts": ts });
    if !whose.thread.is_empty() {
        data["thread_id"] = whose.thread.as_str().into();
    }
    let receipt = json!({ "data": data, "event_ids": [event_id] });
    let content = json!({ room_id.as_str(): { "m.read": { user.as_str(): receipt } } });
    json!({ "edu_type": "m.receipt", "content": content }).to_string().into_bytes()
}

fn post_to_room(w: &mut Write<'_>, room: RoomNum, json: Vec<u8>) -> Result<()> {
    let at = w.next_position();
    Ok(outbox::post(w, at, &Outbound::RoomEdu { room, json })?)
}

//! How far people have read, and who is typing.

use std::time::Duration;

use ruma::{EventId, OwnedEventId, RoomId, UserId};
use serde_json::json;

use super::append::{has_other_servers, local_joined};
use super::send::{known_to_member, not_in_room};
use super::state::Known;
use super::{Error, Result, Rooms};
use crate::store::tables::outbox::{self, Outbound};
use crate::store::tables::receipt::{self, Kind, Receipt, Whose};
use crate::store::tables::{count, event, member, user};
use crate::store::{Change, EventNum, Get, Read, RoomNum, UserNum, Write};

/// Longest name of a thread: an event id, or `main`.
const THREAD_BYTES_MAX: usize = 255;
/// Somebody is shown as typing for so long at most, whatever the app asks for.
const TYPING_MAX: Duration = Duration::from_secs(120);

/// How far somebody has read, of which kind.
#[derive(Debug, Clone)]
pub struct Marker {
    /// `m.read`, `m.read.private` or `m.fully_read`.
    pub kind: String,
    pub event_id: OwnedEventId,
    /// `main` or a thread's root; without one it holds for the whole room.
    pub thread: Option<String>,
}

/// Several markers set at once.
#[derive(Debug, Clone, Default)]
pub struct ReadMarkers {
    pub fully_read: Option<OwnedEventId>,
    pub read: Option<OwnedEventId>,
    pub read_private: Option<OwnedEventId>,
}

impl Rooms {
    /// Notes how far a user of this server has read.
    pub async fn set_receipt(&self, user: &UserId, room_id: &RoomId, marker: Marker) -> Result<()> {
        let kind = Kind::of(&marker.kind)
            .ok_or_else(|| Error::bad("M_INVALID_PARAM", format!("{} is no kind of receipt", marker.kind)))?;
        self.set_markers(user, room_id, vec![(kind, marker.event_id, marker.thread.unwrap_or_default())]).await
    }

    pub async fn set_read_markers(&self, user: &UserId, room_id: &RoomId, markers: ReadMarkers) -> Result<()> {
        let all =
            [(Kind::FullyRead, markers.fully_read), (Kind::Read, markers.read), (Kind::Private, markers.read_private)];
        let all = all.into_iter().filter_map(|(kind, id)| id.map(|id| (kind, id, String::new())));
        self.set_markers(user, room_id, all.collect()).await
    }

    /// Somebody of this server is typing for the next `length`, or no more.
    pub async fn set_typing(&self, user: &UserId, room_id: &RoomId, length: Option<Duration>) -> Result<()> {
        let (asked, room) = (user.to_owned(), room_id.to_owned());
        let (num, user_num, others) = self
            .reading(move |rooms, read| {
                let (room, user) = joined(read, &room, &asked)?;
                Ok((room.num, user, has_other_servers(read, room.num, rooms.server())?))
            })
            .await?;
        if !self.show_typing(num, user_num, length).await? || !others {
            return Ok(());
        }
        let content = json!({ "room_id": room_id, "user_id": user, "typing": length.is_some() });
        let edu = json!({ "edu_type": "m.typing", "content": content }).to_string().into_bytes();
        self.write(move |w| {
            post_to_room(w, num, edu)?;
            w.announce(Change { outbound: true, ..Change::default() });
            Ok(())
        })
        .await
    }

    /// Shows somebody of any server as typing, or not any more, and wakes who would see it. Answers whether that is new.
    pub(super) async fn show_typing(&self, room: RoomNum, user: UserNum, length: Option<Duration>) -> Result<bool> {
        let set = self.0.typing.set(room, user, length.map(|length| length.min(TYPING_MAX)));
        if set.unwatched {
            let rooms = self.clone();
            // Ends when nobody types in the room any more, at the latest TYPING_MAX after the last one began.
            tokio::spawn(async move {
                while rooms.0.typing.watch(room).await {
                    if rooms.wake_room(room).await.is_err() {
                        // They see it with the next thing they are told.
                        continue;
                    }
                }
            });
        }
        if set.changed {
            self.wake_room(room).await?;
        }
        Ok(set.changed)
    }

    /// Wakes the local members of a room for something that is not stored.
    async fn wake_room(&self, room: RoomNum) -> Result<()> {
        let users = self.reading(move |_, read| Ok(local_joined(read, room)?)).await?;
        self.0.parts.feed.wake(&users);
        Ok(())
    }

    async fn set_markers(
        &self,
        user: &UserId,
        room_id: &RoomId,
        markers: Vec<(Kind, OwnedEventId, String)>,
    ) -> Result<()> {
        if markers.iter().any(|(_, _, thread)| thread.len() > THREAD_BYTES_MAX) {
            return Err(Error::bad("M_INVALID_PARAM", "the thread's name is too long"));
        }
        let (user, room_id, here) = (user.to_owned(), room_id.to_owned(), self.here());
        self.write(move |w| {
            let (room, num) = joined_in(w, &room_id, &user)?;
            // Looked at before the first put.
            let mut wanted = Vec::with_capacity(markers.len());
            for (kind, event_id, thread) in markers {
                let event = placed(w, room.num, &event_id)?;
                wanted.push((Whose { user: num, kind, thread }, event_id, event));
            }
            let mut edu = None;
            for (whose, event_id, order) in wanted {
                let Some(order) = order else { continue };
                if !is_forward(w, room.num, &whose, order)? {
                    continue;
                }
                put(w, room.num, &whose, &event_id, here.now_ms)?;
                if whose.kind != Kind::FullyRead {
                    count::read_up_to(w, num, room.num, order)?;
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

    /// Notes that somebody of another server has read up to an event; what we do not know is passed over. The caller has
    /// made sure that the user is of the server that says so.
    pub(super) async fn receipt_from_outside(
        &self,
        room: RoomNum,
        user_id: &UserId,
        event_id: &EventId,
        thread: Option<String>,
        ts: u64,
    ) -> Result<()> {
        let thread = thread.unwrap_or_default();
        if thread.len() > THREAD_BYTES_MAX {
            return Ok(());
        }
        let (user_id, event_id) = (user_id.to_owned(), event_id.to_owned());
        self.write(move |w| {
            let Some(user) = user::num(w, user_id.as_str())? else { return Ok(()) };
            if !member::is_joined(w, room, user)? {
                return Ok(());
            }
            let whose = Whose { user, kind: Kind::Read, thread };
            let Some(order) = order_in(w, room, event_id.as_str())? else { return Ok(()) };
            match is_forward(w, room, &whose, order)? {
                true => put(w, room, &whose, &event_id, ts),
                false => Ok(()),
            }
        })
        .await
    }
}

fn joined(read: &Read, room_id: &RoomId, user: &UserId) -> Result<(Known, UserNum)> {
    joined_in(read, room_id, user)
}

/// The room and the user's number, when they are joined.
fn joined_in(get: &impl Get, room_id: &RoomId, user: &UserId) -> Result<(Known, UserNum)> {
    let room = known_to_member(get, room_id)?;
    match user::num(get, user.as_str())? {
        Some(num) if member::is_joined(get, room.num, num)? => Ok((room, num)),
        _ => Err(not_in_room()),
    }
}

/// The place of an event in the room's timeline; `NotFound` for an event that is not of this room.
fn placed(get: &impl Get, room: RoomNum, event_id: &EventId) -> Result<Option<i64>> {
    let num: EventNum = event::num(get, event_id.as_str())?.ok_or(Error::NotFound)?;
    let row = event::row_of(get, num)?;
    if row.room == room { Ok(row.order) } else { Err(Error::NotFound) }
}

fn order_in(get: &impl Get, room: RoomNum, event_id: &str) -> Result<Option<i64>> {
    let Some(num) = event::num(get, event_id)? else { return Ok(None) };
    let row = event::row_of(get, num)?;
    Ok(row.order.filter(|_| row.room == room))
}

/// A marker only moves forward.
fn is_forward(get: &impl Get, room: RoomNum, whose: &Whose, order: i64) -> Result<bool> {
    let Some(old) = receipt::get(get, room, whose)? else { return Ok(true) };
    Ok(order_in(get, room, &old.event_id)?.is_none_or(|old| old < order))
}

/// Writes a marker and says so to those who may see it.
fn put(w: &mut Write<'_>, room: RoomNum, whose: &Whose, event_id: &EventId, ts: u64) -> Result<()> {
    let at = w.next_position();
    receipt::put(w, room, whose, &Receipt { event_id: event_id.to_string(), ts, at })?;
    let users = match whose.kind {
        Kind::Read => local_joined(w, room)?,
        Kind::Private | Kind::FullyRead => vec![whose.user],
    };
    w.announce(Change { users, room: Some(room), ..Change::default() });
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

//! Rooms in the form of version 1 of the API: a snapshot of a room, and a stream of events of all rooms or of one.
//!
//! Client-server API, "Room Previews", and the deprecated calls of "Syncing". Old bots use them, and whoever looks into a room without
//! being in it. Nothing is remembered between two calls: a place in the stream is a position, and what is behind it a range of each
//! room's timeline.

use std::ops::ControlFlow;
use std::sync::Arc;

use ruma::{EventId, RoomId};

use super::event_json::Detail;
use super::filter::{Events, Filter};
use super::state::StateList;
use super::sync::SyncView;
use super::{Reader, RoomView, visit};
use crate::base::{self, ChunkError, ChunkWriter};
use crate::matrix::json;
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::store::tables::room;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::Membership;
use crate::store::tables::room::timeline;
use crate::store::tables::room::user_room;
use crate::store::{EventNum, Position, RoomNum};

/// Events of one piece of the stream: 16 bytes each are held, twice while the rooms are gone through.
const STREAM_EVENTS_MAX: usize = 200;
/// Rows of one room looked at for a piece of the stream.
const STREAM_ROWS_MAX: usize = 1_000;

/// A piece of the stream.
pub struct StreamPage {
    view: SyncView,
    events: Vec<(i64, RoomNum, EventNum)>,
    pub from: Position,
    /// Where the next piece begins.
    pub end: Position,
    /// Whether everything up to now was looked at; if not, the next piece may have more at once.
    pub is_whole: bool,
}

impl StreamPage {
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Writes the events with commas between them.
    pub async fn write(self, pen: &ChunkWriter) -> Result<(), ChunkError> {
        let mut first = true;
        let mut open: Option<RoomView> = None;
        for (_, num, event) in self.events {
            let room = match open.take().filter(|room| room.num == num) {
                Some(room) => room,
                None => self.view.open_named(num)?,
            };
            room.write_event(pen, event, Detail::Timeline, &mut first)?;
            open = Some(room);
            pen.pause().await;
        }
        Ok(())
    }
}

impl Rooms {
    /// The events after a position in the rooms a user is in, or in one room that the user may look into: in the order in which they
    /// came, at most some hundred. `Forbidden` for a room that the user may not see.
    pub async fn events_after(
        &self,
        reader: &Reader,
        room_id: Option<&RoomId>,
        from: Option<Position>,
    ) -> Result<StreamPage> {
        let room = match room_id {
            Some(room_id) => Some(visit(self, reader, room_id).await?.num),
            None => None,
        };
        let (rooms, reader) = (self.clone(), reader.clone());
        base::blocking(move || {
            let view = rooms.sync_view(reader)?;
            let now = view.now.at;
            // A position from the future comes from a database that was since restored.
            let from = from.filter(|from| *from <= now).unwrap_or(now);
            let (mut events, mut looked_upto) = (Vec::new(), i64::MAX);
            let mut collect = |num| {
                let stopped = collect(&view, num, from, &mut events)?;
                looked_upto = looked_upto.min(stopped.unwrap_or(i64::MAX));
                Ok::<_, Error>(())
            };
            match room {
                Some(room) => collect(room)?,
                None => {
                    let mut after = None;
                    while let Some(room) = view.find_room(after, |room| {
                        Ok(room.membership() == Membership::Join && view.has_moved(room.num, from)?)
                    })? {
                        after = Some(room.num);
                        collect(room.num)?;
                    }
                }
            }
            if events.len() == STREAM_EVENTS_MAX {
                looked_upto = looked_upto.min(events.last().map_or(i64::MAX, |(order, ..)| *order));
            }
            // What is behind comes with the next piece.
            events.retain(|(order, ..)| *order <= looked_upto);
            let end = now.min(Position(looked_upto.max(0) as u64));
            Ok(StreamPage { view, events, from, end, is_whole: end == now })
        })
        .await
    }

    /// One event of any room that the user may see it in; `NotFound` otherwise.
    pub async fn event_anywhere(&self, reader: &Reader, event_id: &EventId) -> Result<Vec<u8>> {
        let id = event_id.to_owned();
        let room_id = self.reading(move |_, read| {
            let num = event::num(read, id.as_str())?.ok_or(Error::NotFound)?;
            Ok(room::get_of(read, event::row_of(read, num)?.room)?.id)
        });
        let room_id = room_id.await?;
        let room_id = <&RoomId>::try_from(room_id.as_str()).map_err(|_| Error::NotFound)?;
        self.event(reader, room_id, event_id).await
    }

    /// The number of a room that the user may see. `Forbidden` when they may not.
    pub async fn may_look_into(&self, reader: &Reader, room_id: &RoomId) -> Result<RoomNum> {
        Ok(visit(self, reader, room_id).await?.num)
    }

    /// A room that the user may see, for a snapshot of it. `Forbidden` when they may not.
    pub async fn look_into(&self, reader: &Reader, room_id: &RoomId) -> Result<(SyncView, RoomView)> {
        // The view first: what comes in between is told twice rather than never.
        let view = self.sync_view(reader.clone())?;
        Ok((view, visit(self, reader, room_id).await?))
    }
}

/// Adds a room's events behind a position to those found, of which the earliest are kept. Answers the place up to which was looked, when
/// there were too many rows to look at.
fn collect(
    view: &SyncView,
    num: RoomNum,
    from: Position,
    events: &mut Vec<(i64, RoomNum, EventNum)>,
) -> Result<Option<i64>> {
    let mut room = view.open_named(num)?;
    let until = match events.last() {
        Some((order, ..)) if events.len() == STREAM_EVENTS_MAX => *order,
        _ => view.now.at.0 as i64,
    };
    let until = room.viewer.sees_upto().unwrap_or(i64::MAX).min(until);
    let (read, viewer, ignored) = (room.read.clone(), &mut room.viewer, &room.format.ignored);
    let (mut found, mut looked, mut stopped) = (Vec::new(), 0, None);
    timeline::forward(&*read, num, from.0 as i64, until, &mut |order, event| {
        looked += 1;
        let row = event::row_of(&*read, event)?;
        let is_ignored = row.state_key.is_none() && ignored.contains(row.sender);
        if !is_ignored && viewer.sees(&*read, &row)? {
            found.push((order, num, event));
        }
        if looked == STREAM_ROWS_MAX {
            stopped = Some(order);
        }
        Ok(match found.len() < STREAM_EVENTS_MAX && stopped.is_none() {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        })
    })?;
    events.extend(found);
    events.sort_unstable_by_key(|(order, ..)| *order);
    events.truncate(STREAM_EVENTS_MAX);
    Ok(stopped)
}

impl SyncView {
    /// Opens a room; its events name it.
    pub fn open_named(&self, num: RoomNum) -> Result<RoomView> {
        let mut room = self.open(num, &Filter::default())?;
        room.format.room_id = Some(self.room_id(num)?);
        Ok(room)
    }

    /// The user's membership in a room, when they ever had one.
    pub fn membership_in(&self, num: RoomNum) -> Result<Option<Membership>> {
        Ok(user_room::mine(&*self.read, self.reader.user, num)?.map(|mine| mine.membership))
    }
}

impl RoomView {
    /// Writes the members `messages` and `state`: the newest events that the user may see, at most `limit`, and the state that they
    /// may see. Then whether the room is in the public list.
    pub async fn write_snapshot(&mut self, pen: &ChunkWriter, limit: usize, end: &str) -> Result<(), ChunkError> {
        let upto = self.viewer.sees_upto().unwrap_or(i64::MAX - 1);
        let from = self.room.hole_below(upto).map_or(i64::MIN, |hole| hole.next - 1);
        let mut page = self.between(from, upto, true, limit, &Events::default())?;
        page.events.reverse();
        let start = page.events.first().map_or(upto.min(self.room.latest.0 as i64), |(order, _)| order - 1);
        pen.text(&format!("\"messages\":{{\"start\":\"t{start}\",\"end\":\"{end}\",\"chunk\":["));
        self.write_events(pen, &page.events).await?;
        pen.text("]},\"state\":[");
        let root = self.root()?;
        self.write_state(pen, &StateList { root, ..StateList::default() }).await?;
        let visibility = if self.room.public { "public" } else { "private" };
        pen.text(&format!("],\"visibility\":\"{visibility}\""));
        Ok(())
    }

    /// Writes the user's own member event as `invite`, and who sent it as `inviter`, each with a comma before it.
    pub fn write_invite(&self, pen: &ChunkWriter) -> Result<(), ChunkError> {
        let Some(num) = self.viewer.mine.and_then(|mine| mine.event) else { return Ok(()) };
        let row = event::row_of(&*self.read, num)?;
        let inviter = crate::store::tables::user::id_of(&*self.read, row.sender)?;
        pen.text(",\"inviter\":");
        pen.with(|out| json::write_string(out, &inviter));
        pen.text(",\"invite\":");
        self.write_row(pen, num, &row, Detail::State, &mut true)?;
        Ok(())
    }

    /// The snapshot that the room is read in.
    pub fn snapshot(&self) -> Arc<crate::store::Read> {
        self.read.clone()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::room::testing::house;
    use crate::store::tables::user::account_data;

    #[tokio::test]
    async fn nothing_is_lost_behind_many_events_that_are_not_shown() {
        let house = house();
        let (anna, loud) = (house.user("anna").await, house.user("loud").await);
        let (room, other) = (house.public_room(&anna).await, house.public_room(&anna).await);
        house.join(&loud, &room).await.unwrap();
        let reader =
            Reader { user: house.user_num(&anna), user_id: anna.clone(), device: "D".to_owned(), sees_all: false };
        let from = house.rooms.events_after(&reader, None, None).await.unwrap().end;
        let (user, ignored) = (house.user_num(&anna), json!({ "ignored_users": { &loud: {} } }).to_string());
        let ignoring = house.store.write(move |w| {
            account_data::set(w, user, account_data::GLOBAL, "m.ignored_user_list", ignored.as_bytes())
        });
        ignoring.await.map_err(|failed| failed.into_inner()).unwrap();
        for nth in 0..STREAM_ROWS_MAX + 5 {
            house.say(&loud, &room, &nth.to_string()).await;
        }
        house.say(&anna, &room, "seen").await;
        house.say(&anna, &other, "seen too").await;
        let (mut at, mut rooms) = (from, Vec::new());
        loop {
            let page = house.rooms.events_after(&reader, None, Some(at)).await.unwrap();
            rooms.extend(page.events.iter().map(|(_, num, _)| *num));
            at = page.end;
            if page.is_whole {
                break;
            }
        }
        assert_eq!(rooms, [house.room_num(&room), house.room_num(&other)]);
    }
}

//! Reading a room: one event, pages of its timeline, its state, its members.
//!
//! Everything whose length a room decides is written piece by piece from a cursor. A page holds the numbers of its
//! events, never the events.

use std::ops::ControlFlow;
use std::sync::Arc;

use ruma::{EventId, OwnedUserId, RoomId};

use super::Rooms;
use super::error::{Error, Result};
use super::ignored::Ignored;
use crate::base::{self, ChunkWriter, comma};
use crate::budget::Account;
use crate::matrix::visibility::History;
use crate::store::tables::room::event_row::{Root, Row};
use crate::store::tables::room::{self, Room, event};
use crate::store::{self, EventNum, Position, Read, RoomNum, UserNum};
use event_json::{Detail, Format};
use token::SyncToken;
use visibility::Viewer;

pub mod event_json;
pub mod filter;
pub mod jump;
mod media;
pub mod sync;
pub mod visibility;
pub mod relations;
mod service;
pub mod search;
pub mod state;
pub mod stream;
pub mod timeline;
pub mod token;
mod unredacted;

/// The grant for writing an answer: a piece, the event that goes beyond it, and the cursor.
pub const ANSWER_BYTES: u64 = 96 * 1024;
/// Events of one page; twelve bytes each are held.
pub const PAGE_EVENTS_MAX: usize = 500;

/// The user and device on whose behalf a room is read.
#[derive(Clone, Debug)]
pub struct Reader {
    pub user: UserNum,
    pub user_id: OwnedUserId,
    pub device: String,
    /// An administrator looks into a matter: in the room or not, everything is shown that was not refused.
    pub sees_all: bool,
}

impl Rooms {
    /// The token from which an app is told everything anew, when its own is of a time that was lost: this server was restored
    /// from a backup that is older.
    pub fn before_loss(&self, token: SyncToken) -> Option<SyncToken> {
        let store = &self.0.parts.store;
        let at = store.before_loss(token.at);
        (at != token.at).then(|| SyncToken { at, typing: 0, messages: store.before_loss(token.messages), presence: 0 })
    }

    /// Whether a position was told in a time that was lost.
    pub fn is_lost(&self, position: Position) -> bool {
        self.0.parts.store.known(position).is_none()
    }

    /// One event; `NotFound` when it does not exist or the reader may not see it or its room.
    pub async fn event(&self, reader: &Reader, room_id: &RoomId, event_id: &EventId) -> Result<Vec<u8>> {
        let event_id = event_id.to_owned();
        visiting(self, reader, room_id, move |visit| {
            let (num, row) = visit.visible(event_id.as_str())?;
            let mut out = Vec::new();
            event_json::write(&*visit.read, num, &row, &visit.format, Detail::Timeline, &mut out)?;
            Ok(out)
        })
        .await
        .map_err(|refused| if matches!(refused, Error::Forbidden(_)) { Error::NotFound } else { refused })
    }
}

/// Opens a room for a reader who may see some of it; `Forbidden` otherwise.
async fn visit(rooms: &Rooms, reader: &Reader, room_id: &RoomId) -> Result<RoomView> {
    let (rooms, reader, room_id) = (rooms.clone(), reader.clone(), room_id.to_owned());
    base::blocking(move || RoomView::open(&rooms, &reader, &room_id)).await
}

/// Opens a room as [`visit`] does, and reads in it on the thread that may block.
pub(in crate::room) async fn visiting<T: Send + 'static>(
    rooms: &Rooms,
    reader: &Reader,
    room_id: &RoomId,
    work: impl FnOnce(&mut RoomView) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (rooms, reader, room_id) = (rooms.clone(), reader.clone(), room_id.to_owned());
    base::blocking(move || work(&mut RoomView::open(&rooms, &reader, &room_id)?)).await
}

/// A room in one snapshot, as one user sees it.
pub struct RoomView {
    pub(super) read: Arc<Read>,
    pub(super) num: RoomNum,
    pub(super) room: Room,
    pub(super) viewer: Viewer,
    pub(super) format: Format,
    /// What pays for reading long lists together.
    memory: Account,
}

impl RoomView {
    fn open(rooms: &Rooms, reader: &Reader, room_id: &RoomId) -> Result<RoomView> {
        let read = rooms.read()?;
        let no = || match reader.sees_all {
            true => Error::NotFound,
            false => Error::Forbidden("You are not in this room".to_owned()),
        };
        let num = room::num(&read, room_id.as_str())?.ok_or_else(no)?;
        if reader.sees_all {
            return RoomView::whole(rooms, reader, read, num);
        }
        let format = Format {
            now_ms: rooms.0.parts.clock.now_ms(),
            user: reader.user,
            device: reader.device.clone(),
            room_id: Some(room_id.to_string()),
            ignored: Ignored::of(&read, reader.user)?,
            ..Format::default()
        };
        let visit = RoomView::new(rooms, Arc::new(read), num, reader.user_id.as_str(), format)?;
        if !visit.viewer.may_enter() {
            return Err(no());
        }
        Ok(visit)
    }

    /// A room as an administrator sees it who looks into a matter.
    fn whole(rooms: &Rooms, reader: &Reader, read: Read, num: RoomNum) -> Result<RoomView> {
        let format = Format {
            now_ms: rooms.0.parts.clock.now_ms(),
            user: reader.user,
            room_id: Some(room::get_of(&read, num)?.id),
            ..Format::default()
        };
        let mut visit = RoomView::new(rooms, Arc::new(read), num, reader.user_id.as_str(), format)?;
        if visit.room.status == room::Status::Stub {
            return Err(Error::NotFound);
        }
        (visit.viewer.sees_all, visit.format.upto) = (true, None);
        Ok(visit)
    }

    /// Whether the reader may see anything of the room.
    pub fn may_enter(&self) -> bool {
        self.viewer.may_enter()
    }

    /// The room's number.
    pub fn num(&self) -> RoomNum {
        self.num
    }

    pub(super) fn new(
        rooms: &Rooms,
        read: Arc<Read>,
        num: RoomNum,
        user_id: &str,
        mut format: Format,
    ) -> store::Result<RoomView> {
        let room = room::get_of(&*read, num)?;
        let viewer = Viewer::new(&*read, num, format.user, user_id)?;
        (format.upto, format.member_key) = (viewer.sees_upto(), viewer.member_key);
        let memory = rooms.0.parts.budget.account("response_bodies");
        Ok(RoomView { read, num, room, viewer, format, memory })
    }

    /// The state the reader may see: the present one, or the one at the time of the leave.
    fn root(&self) -> store::Result<Option<Root>> {
        if self.viewer.sees_all || self.viewer.is_joined() || self.viewer.present == History::WorldReadable {
            return Ok(self.room.state);
        }
        match self.viewer.left_at() {
            Some(at) => Ok(room::timeline::state_at(&*self.read, self.num, at)?.map(|(_, root)| root)),
            None => Ok(None),
        }
    }

    /// The state at a place in the timeline; before our own history of the room, the state before the next event.
    fn root_at(&self, order: i64) -> store::Result<Option<Root>> {
        if let Ok(at) = u64::try_from(order)
            && let Some((_, root)) = room::timeline::state_at(&*self.read, self.num, Position(at))?
        {
            return Ok(Some(root));
        }
        match room::timeline::first_after(&*self.read, self.num, order)? {
            Some((_, next)) => Ok(event::row_of(&*self.read, next)?.before),
            None => Ok(self.room.state),
        }
    }

    /// An event of this room that the reader may see.
    pub(in crate::room) fn visible(&mut self, event_id: &str) -> Result<(EventNum, Row)> {
        let num = event::num(&*self.read, event_id)?.ok_or(Error::NotFound)?;
        let row = event::row_of(&*self.read, num)?;
        if row.room != self.num || !self.viewer.sees(&*self.read, &row)? {
            return Err(Error::NotFound);
        }
        Ok((num, row))
    }

    /// Whether an event says that it is in the thread of a root.
    pub(in crate::room) fn is_in_thread(&self, row: &Row, root: &str) -> Result<bool> {
        Ok(event_json::relation_of(&*self.read, row)?
            .is_some_and(|(kind, target)| kind == "m.thread" && target == root))
    }

    fn write_event(
        &self,
        pen: &ChunkWriter,
        num: EventNum,
        detail: Detail,
        first: &mut bool,
    ) -> store::Result<UserNum> {
        let row = event::row_of(&*self.read, num)?;
        self.write_row(pen, num, &row, detail, first)?;
        Ok(row.sender)
    }

    /// An event whose columns are at hand.
    fn write_row(
        &self,
        pen: &ChunkWriter,
        num: EventNum,
        row: &Row,
        detail: Detail,
        first: &mut bool,
    ) -> store::Result<()> {
        pen.with(|out| {
            comma(out, first);
            event_json::write(&*self.read, num, row, &self.format, detail, out)
        })
    }
}

pub(super) fn until(enough: bool) -> ControlFlow<()> {
    if enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

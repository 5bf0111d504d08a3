//! The flip, and the cleaning behind it.

use super::Join;
use super::build::BuiltRoom;
use super::cleanup::{LeftOut, check_not_here};
use super::error::JoinError;
use crate::matrix::{Event, RoomVersion, auth};
use crate::room::append;
use crate::room::append::new_event::Append;
use crate::room::state::StateView;
use crate::store;
use crate::store::tables::room::join;
use crate::store::tables::room::join::{JoinNum, Journal, Stage};
use crate::store::tables::room::timeline;
use crate::store::tables::room::{self, Status};

impl Join<'_> {
    /// One small write makes the room: its row, the state before our event, then the event itself.
    pub(super) async fn flip(
        &self,
        num: JoinNum,
        built: BuiltRoom,
        event: Event,
        version: &'static RoomVersion,
    ) -> Result<(Journal, LeftOut), JoinError> {
        let BuiltRoom { room: room_num, root, create, joined, invited, events, locals, dead, mut journal } = built;
        let guard = self.rooms.lock(room_num).await;
        let mut here = self.rooms.here();
        here.now_ms = self.rooms.0.parts.clock.now_ms();
        // The resident server accepted our event; whether the state it sent allows the event is for us to check.
        let (checked, of) = (event.clone(), room_num);
        self.rooms
            .reading(move |_, read| {
                let state = StateView::tree(read, of, version, root);
                auth::check(version, &checked.subject(), &state)
            })
            .await?;
        journal.stage = Stage::Live;
        let (bytes, live) = (journal.bytes, journal.clone());
        let job = move |w: &mut store::Write<'_>| {
            check_not_here(w, room_num)?;
            let at = w.next_position();
            let mut row = room::get_of(w, room_num)?;
            row.version = live.version.clone();
            row.status = Status::Resident;
            row.create = Some(create);
            row.extremities.clear();
            row.state = root;
            (row.joined, row.invited) = (joined, invited);
            row.events = row.events.max(events);
            row.bytes = row.bytes.max(bytes);
            row.depth = row.depth.max(event.depth());
            room::put(w, room_num, &row)?;
            if let Some(root) = root {
                timeline::put_state(w, room_num, at, root)?;
            }
            append::members::build_own_rooms(w, room_num, locals, at)?;
            append::append(w, &here, Append::next(room_num, event))?;
            Ok(join::set_journal(w, num, &live)?)
        };
        self.rooms.write(job).await?;
        drop(guard);
        Ok((journal, LeftOut::Listed(dead)))
    }
}

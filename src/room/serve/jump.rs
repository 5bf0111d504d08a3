//! The event nearest to a time, for servers in the room.

use ruma::{OwnedEventId, RoomId, ServerName};

use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::room::state::event::id_of;
use crate::room::state::moment::{Direction, near};
use crate::room::state::server_access::{for_member_server, may_see_event};

impl Rooms {
    /// `GET /timestamp_to_event`: the nearest event here that the server may see, and its time. No other server is asked.
    pub async fn serve_event_near(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        wanted_ms: u64,
        direction: Direction,
    ) -> Result<(OwnedEventId, u64)> {
        let (origin, room_id) = (origin.to_owned(), room_id.to_owned());
        self.reading(move |_, read| {
            let room = for_member_server(read, &origin, &room_id)?;
            let mut failure = None;
            let found = near(read, &room, wanted_ms, direction, &mut |read, row| {
                let sees = may_see_event(read, &room, row, &origin);
                Ok(sees.unwrap_or_else(|failed| {
                    failure = Some(failed);
                    false
                }))
            })?;
            if let Some(failed) = failure.filter(|_| found.is_none()) {
                return Err(failed);
            }
            let found = found.ok_or(Error::NotFound)?;
            Ok((id_of(read, found.num)?, found.ts))
        })
        .await
    }
}

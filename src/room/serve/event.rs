//! Single events of a room, for servers that may see them.

use ruma::{EventId, RoomId, ServerName};

use crate::matrix::auth::{JoinRule, State as _};
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::room::state::event::load_row;
use crate::room::state::server_access::{for_member_server, for_server, is_expected, may_see_event};
use crate::store::tables::room::{self, event, state_tree};

/// The number of state entries counted at once.
const PAGE: usize = 512;

impl Rooms {
    /// The version of a room that a server may ask about.
    pub async fn version_for(&self, origin: &ServerName, room_id: &RoomId) -> Result<&'static str> {
        let (origin, room_id) = (origin.to_owned(), room_id.to_owned());
        self.reading(move |_, read| Ok(for_server(read, &origin, &room_id)?.version.id)).await
    }

    /// One event for a server in its room: canonical JSON, in full or redacted.
    pub async fn event_for(&self, origin: &ServerName, id: &EventId) -> Result<Vec<u8>> {
        let (origin, id) = (origin.to_owned(), id.to_owned());
        self.reading(move |_, read| {
            let num = event::num(read, id.as_str())?.ok_or(Error::NotFound)?;
            let row = event::row_of(read, num)?;
            let room_id = room::get_of(read, row.room)?.id;
            let room_id = <&RoomId>::try_from(room_id.as_str()).map_err(|_| Error::NotFound)?;
            // A server outside the room does not learn that we know the event.
            let room = for_member_server(read, &origin, room_id).map_err(|_| Error::NotFound)?;
            if row.flags.rejected {
                return Err(Error::NotFound);
            }
            let event = load_row(read, room.version, &row)?;
            match may_see_event(read, &room, &row, &origin)? {
                true => Ok(event.into_bytes()),
                false => Ok(event.redacted().into_bytes()),
            }
        })
        .await
    }

    /// The number of state events of a room, for a server that may be about to join it. One pass over the state's tree,
    /// a page at a time.
    pub async fn state_events_for(&self, origin: &ServerName, room_id: &RoomId) -> Result<u64> {
        let (origin, room_id) = (origin.to_owned(), room_id.to_owned());
        self.reading(move |_, read| {
            let room = for_server(read, &origin, &room_id)?;
            let rule = room.view(read).join_rule()?;
            let open = matches!(
                rule,
                Some(JoinRule::Public | JoinRule::Knock | JoinRule::Restricted | JoinRule::KnockRestricted)
            );
            if !open && !is_expected(read, room.num, &origin)? {
                return Err(Error::NotFound);
            }
            let Some(root) = room.row.state else { return Ok(0) };
            let (mut count, mut after, mut page) = (0, None, Vec::with_capacity(PAGE));
            loop {
                page.clear();
                let ended = state_tree::page(read, root, after, PAGE, &mut page)?;
                count += page.len() as u64;
                after = page.last().map(|entry| entry.key).or(after);
                if ended {
                    return Ok(count);
                }
            }
        })
        .await
    }
}

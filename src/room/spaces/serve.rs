//! A space of ours and the rooms in it, for other servers.

use std::sync::Arc;

use ruma::{OwnedServerName, RoomId, ServerName};

use super::children::{CHILD_ROWS_MAX, child, child_events, write_children};
use super::open_ended;
use crate::base::{self, Chunks, comma};
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::room::state::description::Description;
use crate::room::state::preview::{Asker, is_shown, resident};
use crate::store::Read;
use crate::store::tables::room;
use crate::store::{EventNum, RoomNum};

/// Children that are described; a server asks about others by themselves.
const CHILDREN_MAX: usize = 100;

impl Rooms {
    /// A room and the rooms it names, as far as a server or any of its users may see them. `NotFound` when that is not so for the
    /// room itself.
    pub async fn serve_hierarchy(
        &self,
        origin: &ServerName,
        room_id: &RoomId,
        suggested_only: bool,
    ) -> Result<impl Chunks> {
        let (origin, id) = (origin.to_owned(), room_id.to_owned());
        let found = self.reading(move |_, read| {
            let room = resident(read, id.as_str())?.ok_or(Error::NotFound)?;
            if !is_shown(read, &room, Asker::Server(&origin))? {
                return Err(Error::NotFound);
            }
            let shown = Description::whole(read, &room)?;
            let events = match shown.is_space() {
                true => child_events(read, room.num, suggested_only, CHILD_ROWS_MAX)?.0,
                false => Vec::new(),
            };
            let (shown_children, hidden) = children(read, &origin, &events)?;
            Ok((shown, events, shown_children, hidden))
        });
        let (shown, events, shown_children, hidden) = found.await?;
        let read = Arc::new(self.read()?);
        Ok(base::written(move |pen| async move {
            pen.text("{\"room\":");
            pen.bytes(&open_ended(&shown));
            pen.text("\"children_state\":[");
            write_children(&*read, &pen, &events).await?;
            pen.text("]},\"children\":[");
            let mut first = true;
            for num in shown_children {
                let Ok(room) = crate::room::state::known_num(&*read, num) else { continue };
                let shown = Description::whole(&*read, &room)?;
                pen.with(|out| {
                    comma(out, &mut first);
                    out.extend(serde_json::to_vec(&shown).unwrap_or_default());
                });
                pen.pause().await;
            }
            pen.text("],\"inaccessible_children\":[");
            let mut first = true;
            for num in hidden {
                let id = room::get_of(&*read, num)?.id;
                pen.with(|out| {
                    comma(out, &mut first);
                    crate::matrix::json::write_string(out, &id);
                });
                pen.pause().await;
            }
            pen.text("]}");
            Ok(())
        }))
    }
}

/// The first children that we are in: those the server may see, and those it may not.
fn children(read: &Read, origin: &OwnedServerName, events: &[EventNum]) -> Result<(Vec<RoomNum>, Vec<RoomNum>)> {
    let (mut shown, mut hidden) = (Vec::new(), Vec::new());
    for event in events {
        if shown.len() + hidden.len() == CHILDREN_MAX {
            break;
        }
        let Some(child) = child(read, *event)? else { continue };
        let Some(room) = resident(read, child.room_id.as_str())? else { continue };
        match is_shown(read, &room, Asker::Server(origin))? {
            true => shown.push(room.num),
            false => hidden.push(room.num),
        }
    }
    Ok((shown, hidden))
}

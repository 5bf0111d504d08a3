//! The files that the events of a room name, for administrators.

use std::ops::ControlFlow;

use ruma::RoomId;

use super::event_json::content;
use crate::matrix::json;
use crate::room::Rooms;
use crate::room::error::Result;
use crate::room::state;
use crate::store::tables::room::event_row::Kind;
use crate::store::tables::room::{event, timeline};

/// Events looked at at once, and names found: 160 KiB of names are possible, 10 are usual.
const EVENTS_A_STEP: usize = 400;
const NAMES_A_STEP: usize = 100;
/// A name that is longer is none: that of a server has 255 bytes.
const NAME_BYTES_MAX: usize = 600;

impl Rooms {
    /// The `mxc://` addresses in some events of a room behind a place, oldest first, and the place to go on from; none at the end.
    /// Encrypted events do not say theirs. `NotFound` for a room that is not known here.
    pub async fn media_in(&self, room_id: &RoomId, after: i64) -> Result<(Vec<String>, Option<i64>)> {
        let room_id = room_id.to_owned();
        self.reading(move |_, read| {
            let num = state::known(read, room_id.as_str())?.num;
            let (mut found, mut looked, mut next) = (Vec::new(), 0, None);
            timeline::forward(read, num, after, i64::MAX - 1, &mut |order, at| {
                (looked, next) = (looked + 1, Some(order));
                let row = event::row_of(read, at)?;
                if ![Kind::MEMBER, Kind::ENCRYPTED, Kind::REACTION, Kind::REDACTION].contains(&row.kind) {
                    let content = content(read, &row)?;
                    for path in [&["url"][..], &["info", "thumbnail_url"]] {
                        let named = json::read::get_path(&content, path).and_then(json::read::text);
                        let is_name = |name: &str| name.starts_with("mxc://") && name.len() <= NAME_BYTES_MAX;
                        found.extend(named.filter(|name| is_name(name)).map(|name| name.into_owned()));
                    }
                }
                let is_enough = looked >= EVENTS_A_STEP || found.len() >= NAMES_A_STEP;
                Ok(if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            let is_over = looked < EVENTS_A_STEP && found.len() < NAMES_A_STEP;
            Ok((found, next.filter(|_| !is_over)))
        })
        .await
    }

    /// Of some `mxc://` addresses those that are no room's picture. A look at each room.
    pub async fn not_room_pictures(&self, mut uris: Vec<String>) -> Result<Vec<String>> {
        self.reading(move |_, read| {
            crate::store::tables::room::list_after(read, None, &mut |num, _| {
                if let Ok(room) = state::known_num(read, num)
                    && let Some(picture) = room.view(read).text("m.room.avatar", "url")?
                {
                    uris.retain(|uri| *uri != picture);
                }
                Ok(if uris.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            Ok(uris)
        })
        .await
    }
}

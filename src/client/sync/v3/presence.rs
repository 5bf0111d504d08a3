//! The `m.presence` events of a sync.

use std::sync::Arc;

use super::rooms::RoomSections;
use crate::base::{ChunkError, ChunkWriter, comma};
use crate::client::{Client, Requester};
use crate::room::SyncView;
use crate::user::{self, UserNum, UserSync};

/// Whose presence the app is told.
pub fn news(
    client: &Client,
    of: &Requester,
    rooms: &RoomSections,
    own: &UserSync,
) -> Result<Vec<UserNum>, user::Error> {
    if !rooms.filter.presence.wants_type("m.presence") {
        return Ok(Vec::new());
    }
    let since = rooms.since.filter(|_| !rooms.full_state).map(|since| (since.at, since.presence));
    client.users.presence_news(&rooms.view.read, of, since, own.is_quiet() || rooms.only.is_some())
}

/// The `m.presence` events of one answer: four bytes for each, until they are written.
pub struct Present {
    client: Arc<Client>,
    view: SyncView,
    news: Vec<UserNum>,
}

impl Present {
    pub fn new(
        client: &Arc<Client>,
        of: &Requester,
        rooms: &RoomSections,
        own: &UserSync,
    ) -> Result<Present, user::Error> {
        let news = news(client, of, rooms, own)?;
        Ok(Present { client: client.clone(), view: rooms.view.clone(), news })
    }

    pub async fn write(&self, pen: &ChunkWriter) -> Result<(), ChunkError> {
        let mut first = true;
        for user in &self.news {
            let event = self.client.users.presence_event(&self.view.read, *user)?;
            pen.with(|out| {
                comma(out, &mut first);
                out.extend_from_slice(event.to_string().as_bytes());
            });
            pen.pause().await;
        }
        Ok(())
    }
}

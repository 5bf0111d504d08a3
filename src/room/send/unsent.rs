//! Events of a shadow-banned account: built and judged as others are, and then sent to nobody.
//!
//! The account must not learn what became of it, so that its answers are those that it would have had: the rules refuse what
//! they refuse, and what they let pass has an ID as any event of that room.

use ruma::{OwnedEventId, RoomId, UserId};
use serde_json::Value;

use super::{New, Sending, Step, prepare};
use crate::base::brief;
use crate::room::Rooms;
use crate::room::error::{Error, Result};
use crate::room::state;

impl Rooms {
    /// The answer of [`Rooms::send`], without sending.
    pub async fn send_to_nobody(&self, sender: &UserId, room_id: &RoomId, sending: Sending) -> Result<OwnedEventId> {
        let content: Value = serde_json::from_str(sending.content.get())
            .map_err(|failed| Error::bad("M_BAD_JSON", format!("the content is not JSON: {}", brief(failed))))?;
        let Sending { kind, state_key, redacts, sticky_ms, ts, .. } = sending;
        let new = New { kind, state_key, sender: sender.to_owned(), content, redacts, sticky_ms, ts };
        let num = state::num_of(self, room_id).await?;
        // A room of several ends is judged by the state it has: nothing is written here.
        self.reading(move |rooms, read| match prepare(rooms, read, num, new, None)? {
            Step::Repeated(id) => Ok(id),
            Step::Built(built, _) | Step::Unsigned(_, built, _) => Ok(built.event.id().to_owned()),
        })
        .await
    }
}

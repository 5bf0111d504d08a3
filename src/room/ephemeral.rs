//! Small messages of other servers about our rooms: who is typing, how far people have read.
//!
//! Server-server API, "Typing Notifications", "Receipts". A server speaks for its own users alone, and only in rooms whose
//! access control list lets it.

use std::collections::BTreeMap;
use std::time::Duration;

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, ServerName};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Error, Result, Rooms, visitor};
use crate::matrix::Reject;
use crate::store::tables::{member, user};

/// How long somebody is shown as typing when their server says no more.
const TYPING: Duration = Duration::from_secs(30);
/// Receipts of one message.
const RECEIPTS_MAX: usize = 200;

#[derive(Deserialize)]
struct Typing {
    room_id: OwnedRoomId,
    user_id: OwnedUserId,
    typing: bool,
}

#[derive(Deserialize)]
struct Receipt {
    data: Data,
    event_ids: Vec<OwnedEventId>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    ts: u64,
    thread_id: Option<String>,
}

/// Room → kind → user → receipt; other kinds than `m.read` do not travel.
type Receipts = BTreeMap<OwnedRoomId, BTreeMap<String, BTreeMap<OwnedUserId, Receipt>>>;

fn read<'a, T: Deserialize<'a>>(content: &'a RawValue) -> Result<T> {
    Ok(serde_json::from_str(content.get()).map_err(|wrong| Reject::shape(wrong.to_string()))?)
}

impl Rooms {
    /// An `m.typing` message.
    pub async fn typing_received(&self, origin: &ServerName, content: &RawValue) -> Result<()> {
        let Typing { room_id, user_id, typing } = read(content)?;
        if user_id.server_name() != origin {
            return Err(Error::forbidden("a server speaks for its own users alone"));
        }
        let origin = origin.to_owned();
        let found = self.reading(move |_, read| {
            let room = visitor::enter(read, &origin, &room_id)?;
            let num = user::num(read, user_id.as_str())?.ok_or(Error::NotFound)?;
            Ok(member::is_joined(read, room.num, num)?.then_some((room.num, num)))
        });
        let Some((room, user)) = found.await? else { return Ok(()) };
        self.show_typing(room, user, typing.then_some(TYPING)).await.map(drop)
    }

    /// An `m.receipt` message.
    pub async fn receipt_received(&self, origin: &ServerName, content: &RawValue) -> Result<()> {
        let receipts: Receipts = read(content)?;
        let mut left = RECEIPTS_MAX;
        for (room_id, mut kinds) in receipts {
            let Some(users) = kinds.remove("m.read") else { continue };
            let owned = origin.to_owned();
            let entered = self.reading(move |_, read| Ok(visitor::enter(read, &owned, &room_id)?.num)).await;
            // A room we do not share with it says nothing about the others.
            let Ok(room) = entered else { continue };
            for (user, receipt) in users.into_iter().filter(|(user, _)| user.server_name() == origin) {
                let Some(event) = receipt.event_ids.first() else { continue };
                left = match left.checked_sub(1) {
                    Some(left) => left,
                    None => return Ok(()),
                };
                let (thread, ts) = (receipt.data.thread_id, receipt.data.ts);
                self.receipt_from_outside(room, &user, event, thread, ts).await?;
            }
        }
        Ok(())
    }
}

//! Small messages of other servers about our rooms: who is typing, how far people have read.
//!
//! Server-server API, "Typing Notifications", "Receipts". A server speaks for its own users alone, and only in rooms whose
//! access control list lets it.

use std::collections::BTreeMap;
use std::time::Duration;

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, ServerName};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::receipt::Heard;
use super::{Error, Result, Rooms, visitor};
use crate::matrix::Reject;
use crate::store::Get;
use crate::store::tables::{member, user};

/// How long somebody is shown as typing when their server says no more. Others repeat it every 40 s.
const TYPING: Duration = Duration::from_secs(60);
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
        self.show_typing(room, user, typing.then_some(TYPING), false).await.map(drop)
    }

    /// An `m.receipt` message: one write at most, whatever is in it.
    pub async fn receipt_received(&self, origin: &ServerName, content: &RawValue) -> Result<()> {
        let receipts: Receipts = read(content)?;
        let origin = origin.to_owned();
        let heard = self.reading(move |_, read| heard(read, &origin, receipts)).await?;
        self.receipts_from_outside(heard).await
    }
}

/// The receipts a server may send: of its own users, in rooms it may speak in. A room we do not share with it says
/// nothing about the others.
fn heard(get: &impl Get, origin: &ServerName, receipts: Receipts) -> Result<Vec<Heard>> {
    let mut heard = Vec::new();
    for (room_id, mut kinds) in receipts {
        let Some(users) = kinds.remove("m.read") else { continue };
        let room = match visitor::enter(get, origin, &room_id) {
            Ok(room) => room.num,
            Err(Error::Store(failed)) => return Err(failed.into()),
            Err(_) => continue,
        };
        for (user, receipt) in users.into_iter().filter(|(user, _)| user.server_name() == origin) {
            if heard.len() == RECEIPTS_MAX {
                return Ok(heard);
            }
            let Some(event) = receipt.event_ids.into_iter().next() else { continue };
            let thread = receipt.data.thread_id.unwrap_or_default();
            heard.push(Heard { room, user, event, thread, ts: receipt.data.ts });
        }
    }
    Ok(heard)
}

//! EDUs of other servers about our rooms: typing notifications and receipts.
//!
//! Server-server API, "Typing Notifications", "Receipts". A server speaks for its own users alone, and only in rooms
//! whose access control list allows it.

use std::collections::BTreeMap;
use std::time::Duration;

use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, ServerName};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::receipt::Heard;
use crate::base::brief;
use crate::matrix::Reject;
use crate::matrix::json::partial;
use crate::room::Rooms;
use crate::room::ephemeral::receipt;
use crate::room::error::{Error, Result};
use crate::room::state::server_access;
use crate::store::Get;
use crate::store::tables::room::member;
use crate::store::tables::user;

/// How long a remote user is shown as typing without a repeat. Other servers repeat it every 40 s.
const TYPING: Duration = Duration::from_secs(60);
/// The largest integer of canonical JSON.
const TS_MAX: u64 = (1 << 53) - 1;
/// The most receipts of one EDU.
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

/// Room → user → receipt.
type Receipts = BTreeMap<OwnedRoomId, BTreeMap<OwnedUserId, Receipt>>;

fn read<'a, T: Deserialize<'a>>(content: &'a RawValue) -> Result<T> {
    Ok(serde_json::from_str(content.get()).map_err(|wrong| Reject::shape(brief(wrong)))?)
}

impl Rooms {
    /// An `m.typing` EDU.
    pub async fn typing_received(&self, origin: &ServerName, content: &RawValue) -> Result<()> {
        let Typing { room_id, user_id, typing } = read(content)?;
        if user_id.server_name() != origin {
            return Err(Error::forbidden("the user of the EDU belongs to another server than its sender"));
        }
        let by = origin.to_owned();
        let found = self.reading(move |_, read| {
            let room = server_access::for_server(read, &by, &room_id)?;
            let num = user::num(read, user_id.as_str())?.ok_or(Error::NotFound)?;
            Ok(member::is_joined(read, room.num, num)?.then_some((room.num, num)))
        });
        let Some((room, user)) = found.await? else { return Ok(()) };
        receipt::show_typing(self, room, user, typing.then_some(TYPING), Some(origin)).await.map(drop)
    }

    /// An `m.receipt` EDU: one write at most, whatever its content.
    pub async fn receipt_received(&self, origin: &ServerName, content: &RawValue) -> Result<()> {
        let receipts = receipts(content, origin).map_err(|wrong| Reject::shape(brief(wrong)))?;
        let origin = origin.to_owned();
        let heard = self.reading(move |_, read| heard(read, &origin, receipts)).await?;
        receipt::receipts_from_outside(self, heard).await
    }
}

/// The receipts of an EDU, as room → user → receipt, of the sending server's own users. Only `m.read` is exchanged
/// between servers. A malformed receipt, room id or user id is skipped.
fn receipts(content: &RawValue, origin: &ServerName) -> Result<Receipts, serde_json::Error> {
    let mut receipts = Receipts::new();
    partial::each_member(content.get().as_bytes(), &mut |room_id, kinds| {
        let Ok(room_id) = OwnedRoomId::try_from(room_id) else { return Ok(()) };
        let kinds = kinds.get().as_bytes();
        let Some(users) = partial::member::<Box<RawValue>>(kinds, "m.read") else { return Ok(()) };
        let mut each = |user: &str, receipt: &RawValue| {
            let user = OwnedUserId::try_from(user).ok().filter(|user| user.server_name() == origin);
            if let Some((user, receipt)) = user.zip(serde_json::from_str(receipt.get()).ok()) {
                receipts.entry(room_id.clone()).or_default().insert(user, receipt);
            }
            Ok::<_, serde_json::Error>(())
        };
        // A value that is no object has no receipts.
        let _ = partial::each_member(users.get().as_bytes(), &mut each);
        Ok(())
    })?;
    Ok(receipts)
}

/// The receipts a server may send: of its own users, in rooms it may speak in. A receipt for a room we do not share
/// with it does not affect the others.
fn heard(get: &impl Get, origin: &ServerName, receipts: Receipts) -> Result<Vec<Heard>> {
    let mut heard = Vec::new();
    for (room_id, users) in receipts {
        let room = match server_access::for_server(get, origin, &room_id) {
            Ok(room) => room.num,
            Err(Error::Store(failed)) => return Err(failed.into()),
            Err(_) => continue,
        };
        for (user, receipt) in users {
            if heard.len() == RECEIPTS_MAX {
                return Ok(heard);
            }
            // Not every reader takes a larger number.
            if receipt.data.ts > TS_MAX {
                continue;
            }
            let Some(event) = receipt.event_ids.into_iter().next() else { continue };
            let thread = receipt.data.thread_id.unwrap_or_default();
            heard.push(Heard { room, user, event, thread, ts: receipt.data.ts });
        }
    }
    Ok(heard)
}

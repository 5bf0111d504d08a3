//! What a shadow-banned account does in a room: it is answered as anybody, and nobody else hears of it.
//!
//! It still joins and leaves, without a reason and with the profile that everybody has seen, as Synapse has it.

use ruma::{OwnedRoomId, UserId};
use serde_json::json;
use serde_json::value::to_raw_value;

use crate::client::{Client, Error, Requester};
use crate::http::ErrorResponse;
use crate::room::Sending;

/// A change of another one's membership, which is not made.
pub async fn member(
    client: &Client,
    requester: &Requester,
    room_id: &OwnedRoomId,
    target: &UserId,
    membership: &str,
) -> Result<(), Error> {
    let content = to_raw_value(&json!({ "membership": membership })).map_err(ErrorResponse::internal)?;
    let sending = Sending {
        kind: "m.room.member".to_owned(),
        state_key: Some(target.to_string()),
        content,
        redacts: None,
        sticky_ms: None,
        ts: None,
        txn: None,
        paid: None,
    };
    client.rooms.send_to_nobody(&requester.user_id, room_id, sending).await?;
    Ok(())
}

/// The membership event of a shadow-banned account itself that is sent, with nothing in it that it chose; none when nothing is.
pub fn own(requester: &Requester, sending: &Sending, membership: Option<&str>) -> Option<Sending> {
    let is_own = sending.kind == "m.room.member" && sending.state_key.as_deref() == Some(requester.user_id.as_str());
    let membership = membership.filter(|membership| is_own && matches!(*membership, "join" | "leave"))?;
    let content = to_raw_value(&json!({ "membership": membership })).ok()?;
    Some(Sending { content, ..sending.clone() })
}

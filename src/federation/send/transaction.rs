//! A transaction while it is being read: its events and EDUs, and the remembered answers for repeated ones.

use super::{EDUS_MAX, PDUS_MAX};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use ruma::{OwnedRoomId, OwnedServerName, ServerName};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;
use tracing::Instrument;

use super::edu::take_edu;
use super::{REMEMBERED_BYTES_MAX, REMEMBERED_MAX, REMEMBERED_STRANGERS_MAX};
use crate::base::{self, KeyedGuard, Owner, Shares};
use crate::budget::{Account, Grant};
use crate::federation::{Error, Federation};
use crate::http::ErrorResponse;
use crate::matrix::json::partial;
use crate::room::NotTaken;

const BEFORE_RETRY: Duration = Duration::from_secs(30);

/// The length of the reason given for an event's refusal.
const REASON_CHARS_MAX: usize = 200;

/// The last transaction of each server and its answer: a repeated one is answered from here. Bounded by count, and by the
/// account that pays.
pub struct Transactions(Mutex<Shares<OwnedServerName, Answered>>);

struct Answered {
    id: String,
    body: Vec<u8>,
    _grant: Grant,
}

impl Default for Transactions {
    fn default() -> Transactions {
        Transactions(Mutex::new(Shares::new(REMEMBERED_MAX, REMEMBERED_STRANGERS_MAX)))
    }
}

impl Transactions {
    pub fn get(&self, origin: &ServerName, id: &str) -> Option<Vec<u8>> {
        let mut all = self.0.lock();
        all.get(origin).filter(|answered| answered.id == id).map(|answered| answered.body.clone())
    }

    /// Returns the memory of all remembered answers: accepting a transaction goes before recognising an old one.
    pub fn forget(&self) {
        self.0.lock().clear();
    }

    /// Remembers an answer if there is memory for it: without, a repeated transaction is processed again, which changes
    /// nothing.
    pub fn put(&self, account: &Account, owner: Owner<String>, origin: &ServerName, id: &str, body: &[u8]) {
        if body.len() + id.len() > REMEMBERED_BYTES_MAX {
            return;
        }
        let Ok(grant) = account.try_take((body.len() + id.len() + 256) as u64) else { return };
        let answered = Answered { id: id.to_owned(), body: body.to_vec(), _grant: grant };
        self.0.lock().put(owner, origin.to_owned(), answered);
    }
}

#[derive(Deserialize)]
pub(super) struct Transaction {
    #[serde(default, deserialize_with = "partial::first::<{ PDUS_MAX + 1 }, _, _>")]
    pub pdus: Vec<Box<RawValue>>,
    #[serde(default, deserialize_with = "partial::first::<{ EDUS_MAX + 1 }, _, _>")]
    pub edus: Vec<Box<RawValue>>,
}

/// Marks that a transaction of the server is under way; a second one at the same time is one too many.
pub(super) fn begin(federation: &Federation, origin: &ServerName) -> Result<KeyedGuard, Error> {
    federation.senders.try_take(origin.as_str()).ok_or_else(too_soon)
}

pub fn too_soon() -> Error {
    ErrorResponse::limit_exceeded(BEFORE_RETRY.as_millis() as u64).into()
}

/// Processes a transaction. Returns for each event that has an id whether it was taken. Fails when we could not take an
/// event or EDU now but may be able to later. Other servers are waited for until `until`, on the monotonic clock.
pub(super) async fn process(
    federation: &Arc<Federation>,
    origin: &ServerName,
    transaction: Transaction,
    until: Duration,
) -> Result<Map<String, Value>, Error> {
    let mut rooms: HashMap<OwnedRoomId, Vec<Box<RawValue>>> = HashMap::new();
    for pdu in transaction.pdus {
        // An event without a room id cannot be for one of our rooms: only create events of version 12 have none.
        if let Some(room_id) = partial::member::<OwnedRoomId>(pdu.get().as_bytes(), "room_id") {
            rooms.entry(room_id).or_default().push(pdu);
        }
    }
    let mut taking = JoinSet::new();
    for (room, pdus) in rooms {
        let (federation, origin) = (federation.clone(), origin.to_owned());
        let span = tracing::info_span!("events", room = room.as_str());
        let receiving = async move {
            let receiving = base::caught_in(Box::pin(federation.rooms.receive(&origin, &room, pdus, until))).await;
            receiving.unwrap_or_else(|panicked| {
                // These events are fetched again later as missing ones. If refused, the whole transaction would come
                // again, and panic again.
                tracing::error!(%origin, room_id = %room, "receiving a server's events panicked: {}", panicked.say());
                Ok(Default::default())
            })
        };
        taking.spawn(receiving.instrument(span));
    }
    let (mut outcomes, mut put_off) = (Map::new(), None);
    while let Some(done) = taking.join_next().await {
        let taken = match done.map_err(ErrorResponse::internal)? {
            Ok(taken) => taken,
            Err(failed) => {
                put_off = Some(failed);
                continue;
            }
        };
        for (id, outcome) in taken {
            let told = told(outcome.inspect_err(|why| tracing::debug!(%origin, %id, "an event is not taken: {why}")));
            outcomes.insert(id.to_string(), told);
        }
    }
    // EDUs come again with the events.
    if let Some(failed) = put_off {
        return Err(failed.into());
    }
    if transaction.edus.is_empty() {
        return Ok(outcomes);
    }
    let owner = federation.remote.owner_of(origin).await;
    for edu in transaction.edus {
        if !federation.postage.may_bring(origin, &owner) {
            continue;
        }
        let taken = base::caught_in(Box::pin(take_edu(federation, origin, &edu))).await;
        let brought = taken.unwrap_or_else(|panicked| {
            tracing::error!(%origin, "processing an EDU panicked: {}", panicked.say());
            Ok(0)
        })?;
        federation.postage.charge(&owner, brought.max(edu.get().len()));
    }
    Ok(outcomes)
}

/// What the sender is told of an event. Of one that cannot be judged, nothing, as servers have it that answer before they look
/// for what is missing: whether it is found is no fault of the event's sender, and need not be the last word.
fn told(outcome: Result<(), NotTaken>) -> Value {
    match outcome {
        Ok(()) | Err(NotTaken::Unjudged(_)) => json!({}),
        Err(NotTaken::Refused(why)) => json!({ "error": why.chars().take(REASON_CHARS_MAX).collect::<String>() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The specification's "no error" is "handled"; servers that answer first say it of all that is signed.
    #[test]
    fn what_could_not_be_judged_is_no_error_of_its_sender() {
        assert_eq!(told(Ok(())), json!({}));
        assert_eq!(told(Err(NotTaken::Unjudged("an auth event cannot be fetched".to_owned()))), json!({}));
        let refused = NotTaken::Refused("the sender is not in the room".to_owned());
        assert_eq!(told(Err(refused)), json!({ "error": "the sender is not in the room" }));
    }
}

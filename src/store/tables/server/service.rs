//! What application services were told: a row for each, with the transaction that is under way.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::store::schema::SERVICE;
use crate::store::{Error, Get, Position, Result, Write};

/// How far a service was told. The row is written before each transaction, so that one that was cut off is sent again with
/// the same id and the same content.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Everything up to here was told, or did not concern it.
    pub position: u64,
    /// The number of the last transaction.
    pub number: u64,
    /// The transaction that it has not confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
    /// Since when it is registered no more, in Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_ms: Option<u64>,
}

/// What a transaction tells. Bounded by its makers: a hundred of each kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    pub id: String,
    /// The position when it is confirmed.
    pub to: u64,
    /// The numbers of events.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<u32>,
    /// Invites from outside: user and room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub invites: Vec<(u32, u32)>,
    /// Messages to devices: user, device, position; and whether the service is who they are for, so that they end with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<(u32, String, u64, bool)>,
    /// Users whose devices changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changed: Vec<u32>,
    /// Events that are not stored, as JSON with commas between.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ephemeral: String,
}

impl Pending {
    /// Whether it tells nothing that would be missed.
    pub fn is_fleeting(&self) -> bool {
        self.events.is_empty() && self.invites.is_empty() && self.messages.is_empty() && self.changed.is_empty()
    }
}

/// How far a service was told; none before its first.
pub fn get(get: &impl Get, id: &str) -> Result<Option<Status>> {
    let Some(row) = get.get(&SERVICE, id.as_bytes())? else { return Ok(None) };
    serde_json::from_slice(&row).map(Some).map_err(|_| Error::corrupt(&SERVICE, id.as_bytes()))
}

/// Those that did not end. A row for each service that was ever registered.
pub fn list_open(get: &impl Get) -> Result<Vec<(String, Status)>> {
    let mut found = Vec::new();
    get.range(&SERVICE, &[], None, false, &mut |key, row| {
        let corrupt = || Error::corrupt(&SERVICE, key);
        let status: Status = serde_json::from_slice(row).map_err(|_| corrupt())?;
        if status.ended_ms.is_none() {
            found.push((String::from_utf8(key.to_vec()).map_err(|_| corrupt())?, status));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(found)
}

pub fn put(w: &mut Write<'_>, id: &str, status: &Status) -> Result<()> {
    let row = serde_json::to_vec(status).map_err(|_| Error::corrupt(&SERVICE, id.as_bytes()))?;
    w.put(&SERVICE, id.as_bytes(), &row)
}

/// The row of a service that begins now.
pub fn begin(w: &mut Write<'_>, id: &str) -> Result<Status> {
    let Position(position) = w.position()?;
    let status = Status { position, ..Status::default() };
    put(w, id, &status)?;
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[test]
    fn those_that_ended_are_not_listed() {
        let store = Store::in_memory();
        let work = |w: &mut Write<'_>| {
            let status = begin(w, "gone")?;
            put(w, "gone", &Status { ended_ms: Some(1), ..status })?;
            begin(w, "here").map(drop)
        };
        assert!(store.write_blocking(work).is_ok());
        let open = list_open(&store.read().unwrap()).unwrap();
        assert_eq!(open.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>(), ["here"]);
    }
}

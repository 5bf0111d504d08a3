//! Saved sync filters.

use ruma::{OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Error, Users};
use crate::store::UserNum;
use crate::store::tables::filter;

/// Filters one user keeps; the oldest goes when there are more.
const FILTERS_MAX: u32 = 100;
const FILTER_BYTES_MAX: usize = 16 << 10;

/// The fields of a filter that may be wrong; what a sync makes of them is its own affair.
#[expect(dead_code, reason = "parsed only to see whether it can be")]
#[derive(Deserialize)]
struct Shape {
    #[serde(default)]
    event_fields: Option<Vec<String>>,
    #[serde(default)]
    event_format: Option<Format>,
    #[serde(default)]
    presence: Option<Events>,
    #[serde(default)]
    account_data: Option<Events>,
    #[serde(default)]
    room: Option<Room>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    Client,
    Federation,
}

#[expect(dead_code, reason = "parsed only to see whether it can be")]
#[derive(Deserialize)]
struct Events {
    #[serde(default)]
    limit: Option<u64>,
    #[serde(default)]
    types: Option<Vec<String>>,
    #[serde(default)]
    not_types: Option<Vec<String>>,
    #[serde(default)]
    senders: Option<Vec<OwnedUserId>>,
    #[serde(default)]
    not_senders: Option<Vec<OwnedUserId>>,
    #[serde(default)]
    rooms: Option<Vec<OwnedRoomId>>,
    #[serde(default)]
    not_rooms: Option<Vec<OwnedRoomId>>,
}

#[expect(dead_code, reason = "parsed only to see whether it can be")]
#[derive(Deserialize)]
struct Room {
    #[serde(default)]
    rooms: Option<Vec<OwnedRoomId>>,
    #[serde(default)]
    not_rooms: Option<Vec<OwnedRoomId>>,
    #[serde(default)]
    state: Option<Events>,
    #[serde(default)]
    timeline: Option<Events>,
    #[serde(default)]
    ephemeral: Option<Events>,
    #[serde(default)]
    account_data: Option<Events>,
    #[serde(default)]
    include_leave: Option<bool>,
}

impl Users {
    /// Keeps a filter and tells its number; one that is kept already has the number it had.
    pub async fn add_filter(&self, user: UserNum, content: &RawValue) -> Result<u32, Error> {
        let json = content.get().as_bytes().to_vec();
        check_filter(&json)?;
        self.write(move |w| match filter::find(w, user, &json)? {
            Some(number) => Ok(number),
            None => Ok(filter::add(w, user, &json, FILTERS_MAX)?),
        })
        .await
    }

    /// The JSON of a kept filter.
    pub async fn filter(&self, user: UserNum, number: &str) -> Result<Vec<u8>, Error> {
        let number: u32 = number.parse().map_err(|_| Error::NotFound("filter"))?;
        self.read(move |get| filter::get(get, user, number)?.ok_or(Error::NotFound("filter"))).await
    }
}

/// Whether a filter is one.
fn check_filter(json: &[u8]) -> Result<(), Error> {
    if json.len() > FILTER_BYTES_MAX {
        return Err(Error::TooLarge(format!("A filter may have {FILTER_BYTES_MAX} bytes")));
    }
    if !json.starts_with(b"{") {
        return Err(Error::bad("M_BAD_JSON", "A filter is a JSON object"));
    }
    serde_json::from_slice::<Shape>(json).map(drop).map_err(|wrong| Error::bad("M_BAD_JSON", wrong.to_string()))
}

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

/// The fields of a filter that may be wrong. A sync must be able to read whatever passes here.
#[expect(dead_code, reason = "parsed only to see whether it can be")]
#[derive(Deserialize)]
struct Shape {
    #[serde(default)]
    event_fields: Option<Vec<String>>,
    #[serde(default)]
    event_format: Option<Format>,
    #[serde(default)]
    presence: Events,
    #[serde(default)]
    account_data: Events,
    #[serde(default)]
    room: Room,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    Client,
    Federation,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Events {
    limit: Option<u64>,
    types: Option<Vec<String>>,
    not_types: Vec<String>,
    senders: Option<Vec<OwnedUserId>>,
    not_senders: Vec<OwnedUserId>,
    rooms: Option<Vec<OwnedRoomId>>,
    not_rooms: Vec<OwnedRoomId>,
    contains_url: Option<bool>,
    lazy_load_members: bool,
    unread_thread_notifications: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Room {
    rooms: Option<Vec<OwnedRoomId>>,
    not_rooms: Vec<OwnedRoomId>,
    state: Events,
    timeline: Events,
    ephemeral: Events,
    account_data: Events,
    include_leave: bool,
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

//! Saved sync filters: JSON texts, which the surface has validated.

use serde_json::value::RawValue;

use crate::store::UserNum;
use crate::store::tables::user::filter;
use crate::user::{Error, Users};

/// The most filters of one user; beyond that the oldest is removed.
const FILTERS_MAX: u32 = 100;
const FILTER_BYTES_MAX: usize = 16 << 10;

impl Users {
    /// Stores a filter and answers its number; a filter that is stored already keeps its number.
    pub async fn add_filter(&self, user: UserNum, content: &RawValue) -> Result<u32, Error> {
        let json = content.get().as_bytes().to_vec();
        if json.len() > FILTER_BYTES_MAX {
            return Err(Error::TooLarge(format!("A filter may have {FILTER_BYTES_MAX} bytes at most")));
        }
        self.write(move |w| match filter::find(w, user, &json)? {
            Some(number) => Ok(number),
            None => Ok(filter::add(w, user, &json, FILTERS_MAX)?),
        })
        .await
    }

    /// The JSON of a stored filter.
    pub async fn filter(&self, user: UserNum, number: &str) -> Result<Vec<u8>, Error> {
        let number: u32 = number.parse().map_err(|_| Error::NotFound("filter"))?;
        self.read(move |get| filter::get(get, user, number)?.ok_or(Error::NotFound("filter"))).await
    }
}

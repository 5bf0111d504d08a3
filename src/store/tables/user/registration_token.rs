//! Registration tokens that administrators make over the API: how often each may be used, until when, and how often it was.
//!
//! Those of the config are no rows: they are good for ever and for everybody.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use crate::store::schema::REGISTRATION_TOKEN;
use crate::store::{Error, Get, Result, Write, tables};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegistrationToken {
    /// For so many accounts; none: for any number.
    pub uses_allowed: Option<u64>,
    /// Accounts that were made with it.
    pub completed: u64,
    pub expires_ms: Option<u64>,
}

impl RegistrationToken {
    pub fn is_valid(&self, now_ms: u64) -> bool {
        self.uses_allowed.is_none_or(|allowed| self.completed < allowed)
            && self.expires_ms.is_none_or(|expires_ms| now_ms < expires_ms)
    }
}

pub fn get(get: &impl Get, token: &str) -> Result<Option<RegistrationToken>> {
    tables::get_json(get, &REGISTRATION_TOKEN, token.as_bytes())
}

pub fn put(w: &mut Write<'_>, token: &str, row: &RegistrationToken) -> Result<()> {
    tables::put_json(w, &REGISTRATION_TOKEN, token.as_bytes(), row)
}

pub fn remove(w: &mut Write<'_>, token: &str) -> Result<bool> {
    w.remove(&REGISTRATION_TOKEN, token.as_bytes())
}

/// Visits those behind a text, by their text.
pub fn each(
    get: &impl Get,
    after: &str,
    visit: &mut dyn FnMut(&str, RegistrationToken) -> Result<ControlFlow<()>>,
) -> Result<()> {
    let from = if after.is_empty() { Vec::new() } else { [after.as_bytes(), &[0]].concat() };
    get.range(&REGISTRATION_TOKEN, &from, None, false, &mut |key, value| {
        let token = std::str::from_utf8(key).map_err(|_| Error::corrupt(&REGISTRATION_TOKEN, key))?;
        visit(token, tables::parse(&REGISTRATION_TOKEN, key, value)?)
    })
}

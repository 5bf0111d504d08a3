//! A user's push rules: the account data entry `m.push_rules`, or the specification's defaults when nothing was changed.

use ruma::UserId;
use ruma::push::Ruleset;
use serde::{Deserialize, Serialize};

use super::account_data::{self, GLOBAL};
use crate::store::schema::ACCOUNT_DATA;
use crate::store::{Error, Get, Position, Result, UserNum, Write};

/// The account data type that holds them.
pub const KIND: &str = "m.push_rules";

/// The content of `m.push_rules`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Content {
    pub global: Ruleset,
}

/// The rules that hold for a user.
pub fn get(get: &impl Get, user: UserNum, user_id: &UserId) -> Result<Ruleset> {
    match account_data::get(get, user, GLOBAL, KIND)? {
        Some(json) => parse(user, &json),
        None => Ok(Ruleset::server_default(user_id)),
    }
}

/// Whether the user changed any rule; a user without changes shares the defaults.
pub fn is_default(get: &impl Get, user: UserNum) -> Result<bool> {
    Ok(account_data::get(get, user, GLOBAL, KIND)?.is_none())
}

pub fn set(w: &mut Write<'_>, user: UserNum, rules: Ruleset) -> Result<Position> {
    let json = to_json(rules)?;
    account_data::set(w, user, GLOBAL, KIND, &json)
}

/// The content of `m.push_rules` as JSON text.
pub fn to_json(rules: Ruleset) -> Result<Vec<u8>> {
    serde_json::to_vec(&Content { global: rules }).map_err(|_| Error::corrupt(&ACCOUNT_DATA, KIND.as_bytes()))
}

fn parse(user: UserNum, json: &[u8]) -> Result<Ruleset> {
    let content: Content = serde_json::from_slice(json).map_err(|_| Error::corrupt(&ACCOUNT_DATA, &user.to_key()))?;
    Ok(content.global)
}

//! The status message of local users: the one part of their presence that is kept.

use crate::store::schema::PRESENCE;
use crate::store::{Get, Result, UserNum, Write};

/// The status message of a local user, when there is one.
pub fn message(get: &impl Get, user: UserNum) -> Result<Option<String>> {
    // It was text when it was written.
    Ok(get.get(&PRESENCE, &user.to_key())?.map(|text| String::from_utf8_lossy(&text).into_owned()))
}

/// Sets or removes the status message of a local user.
pub fn set_message(w: &mut Write<'_>, user: UserNum, message: Option<&str>) -> Result<()> {
    match message {
        Some(message) => w.put(&PRESENCE, &user.to_key(), message.as_bytes()),
        None => w.remove(&PRESENCE, &user.to_key()).map(drop),
    }
}

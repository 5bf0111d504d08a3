//! Answers about keys: read from other servers, and paid for.

use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::matrix::json::partial;
use crate::remote::Failed;

/// A key is held as it was received, and once more in the answer being written.
pub const COPIES: u64 = 2;

/// The memory of a key beside its text: its place in a map, its name.
pub const ENTRY_BYTES: u64 = 256;

/// Visits the members of one member of an object.
pub fn each_of(
    object: &[u8],
    name: &str,
    visit: &mut dyn FnMut(&str, &RawValue) -> Result<(), Failed>,
) -> Result<(), Failed> {
    partial::each_member(object, &mut |key, value| match key == name {
        true => each_in(value, visit),
        false => Ok(()),
    })
}

/// The bytes charged for a key in an answer.
pub fn price(bytes: usize) -> u64 {
    bytes as u64 * COPIES + ENTRY_BYTES
}

pub fn failure(failed: &Failed) -> Value {
    json!({ "errcode": "M_UNKNOWN", "error": format!("The server {failed}") })
}

/// The number of other servers asked at once for one request.
pub const ASKED_AT_ONCE: usize = 4;
pub const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);

/// The grant taken before any lookup.
pub const ANSWER_BYTES: u64 = 16 << 10;

/// Visits the members of a server's answer, for one user or for all. A value that is no object has no members, and does
/// not spoil the values beside it.
pub fn each_in(object: &RawValue, visit: &mut dyn FnMut(&str, &RawValue) -> Result<(), Failed>) -> Result<(), Failed> {
    match partial::each_member(object.get().as_bytes(), visit) {
        Err(Failed::BadAnswer(_)) => Ok(()),
        told => told,
    }
}

/// Whether a key is nested too deep: apps get it beside others, in one answer.
pub fn is_too_deep(key: &RawValue) -> bool {
    crate::matrix::json::is_deeper_than(key.get().as_bytes(), crate::matrix::json::EVENT_DEPTH_MAX)
}

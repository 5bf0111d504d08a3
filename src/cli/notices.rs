//! `snug notice`.

use std::io::Read;

use serde_json::{Value, json};

use super::admin_socket::Local;
use super::{load, text, with_local};
use crate::config::Overrides;

/// The text of a notice from standard input is read up to here; the server takes less.
const STDIN_BYTES_MAX: u64 = 64 * 1024;

pub fn notice(overrides: &Overrides, all: bool, mut words: Vec<String>) -> Result<(), String> {
    let mut said = words.pop().unwrap_or_default();
    let user = words.pop();
    match (&user, all) {
        (None, false) => {
            return Err("the user and the text, or --all and the text: snug notice alice 'Hello'".to_owned());
        }
        (Some(user), true) => return Err(format!("with --all there is no user, and {user:?} stands before the text")),
        _ => {}
    }
    if said == "-" {
        said.clear();
        let read = std::io::stdin().lock().take(STDIN_BYTES_MAX).read_to_string(&mut said);
        read.map_err(|error| format!("the text cannot be read from standard input: {error}"))?;
    }
    let said = said.trim_end();
    with_local(Local::connect(&load(overrides)?)?, |local| match user {
        Some(user) => {
            let told = local.post("/notices", json!({ "user": user, "text": said }))?;
            Ok(format!("{} was told.\n", text(&told, "user_id")))
        }
        None => everybody(local, said),
    })
}

/// Tells all accounts, a page after the other.
fn everybody(local: &mut Local, said: &str) -> Result<String, String> {
    let (mut told, mut out, mut after) = (0, String::new(), Value::Null);
    loop {
        let page = local.post("/notices/all", json!({ "text": said, "after": after }));
        let page = page.map_err(|error| match after.as_str() {
            Some(last) => format!("{told} users were told, up to {last}; then: {error}"),
            None => error,
        })?;
        told += page["told"].as_u64().unwrap_or(0);
        for failed in page["failed"].as_array().into_iter().flatten() {
            out.push_str(&format!("{} could not be told: {}\n", text(failed, "user_id"), text(failed, "error")));
        }
        after = page["next"].clone();
        if after.is_null() {
            out.push_str(&format!("{told} {} told.\n", if told == 1 { "user was" } else { "users were" }));
            return Ok(out);
        }
    }
}

//! People: who has an account here, and what an administrator may do about it.

mod add;
mod list;
mod person;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ruma::UserId;

use super::frame::Pages;
use crate::base::{date, timestamp};
use crate::user::{Account, Standing};

/// What stands in a path as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'=');

pub fn routes(pages: &mut Pages<'_>) {
    pages
        .show("people/", list::show)
        .show("people/add", add::show)
        .act("people/add", add::make)
        .show("people/of/{user}", person::show)
        .act("people/of/{user}", person::change)
        .show("people/of/{user}/close", person::ask_close)
        .act("people/of/{user}/close", person::close);
}

/// The page of a person, below the root.
pub(super) fn path(user_id: &UserId) -> String {
    format!("people/of/{}", encoded(user_id.localpart()))
}

pub(super) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

/// The letter for a face.
fn letter(name: &str) -> String {
    name.trim_start_matches('@').chars().next().map(String::from).unwrap_or_default()
}

/// A word about an account that is not an ordinary one, and the class of its badge.
struct Badge {
    word: &'static str,
    class: &'static str,
}

fn badges(account: &Account, has_link: bool, is_service: bool) -> Vec<Badge> {
    let is_active = account.standing == Standing::Active;
    let words = [
        (account.admin, "administrator", ""),
        (account.bot, "bot", ""),
        (is_service, "bridge", ""),
        (account.standing == Standing::Deactivated, "closed", "wrong"),
        (account.locked && is_active, "locked", "wrong"),
        (account.suspended && is_active, "suspended", "look"),
        (is_active && !account.has_password && has_link, "invited", "look"),
    ];
    words.into_iter().filter(|(is, ..)| *is).map(|(_, word, class)| Badge { word, class }).collect()
}

/// When a device was last seen, in words that need no arithmetic.
pub(super) fn ago(then_ms: u64, now_ms: u64) -> String {
    const MINUTE: u64 = 60_000;
    match now_ms.saturating_sub(then_ms) / MINUTE {
        0..15 => "just now".to_owned(),
        minutes @ 15..120 => format!("{minutes} minutes ago"),
        minutes @ 120..2880 => format!("{} hours ago", minutes / 60),
        minutes @ 2880..43_200 => format!("{} days ago", minutes / 1440),
        _ => format!("on {}", date(then_ms)),
    }
}

/// Such as `2026-12-07 10:15 UTC`.
pub(super) fn moment(unix_ms: u64) -> String {
    let text = timestamp(unix_ms);
    format!("{} {} UTC", &text[..10], &text[11..16])
}

//! `[rooms]`: which rooms of other servers users may join, and what becomes of rooms they leave.

use super::setting::{Setting, setting};
use crate::room::Policy;

/// `[rooms]`: which rooms of other servers users may join, and what becomes of rooms they leave.
#[derive(Debug, Clone, Default)]
pub struct Rooms {
    pub admission: Policy,
    pub forget_left: bool,
}

pub const SETTINGS: &[Setting] = &[
    setting(
        "rooms.admission",
        r#""allow""#,
        "What happens when somebody joins a room of another server that is too large for this machine by its estimate: \"allow\" \
             (try, as long as it fits the disk), \"ask\" (until you allow it with `snug rooms allow ROOM`) or \"refuse\".",
        |config, given| {
            let known = [("allow", Policy::Allow), ("ask", Policy::Ask), ("refuse", Policy::Refuse)];
            Ok(config.rooms.admission = given.one_of(&known)?)
        },
    ),
    setting(
        "rooms.forget_left",
        "false",
        "Whether a room that somebody leaves, or is removed from, is forgotten at once: no app of theirs shows it or its history any \
             more. Otherwise that is for each of them to say.",
        |config, given| Ok(config.rooms.forget_left = given.flag()?),
    ),
];

//! `[rooms]`: which rooms of other servers users may join.

use super::setting::{Setting, setting};
use crate::room::Policy;

/// `[rooms]`: which rooms of other servers users may join.
#[derive(Debug, Clone, Default)]
pub struct Rooms {
    pub admission: Policy,
}

pub const SETTINGS: &[Setting] = &[setting(
    "rooms.admission",
    r#""allow""#,
    "What happens when somebody joins a room of another server that is too large for this machine by its estimate: \"allow\" (try, \
         as long as it fits the disk), \"ask\" (until you allow it with `snug rooms allow ROOM`) or \"refuse\".",
    |config, given| {
        let known = [("allow", Policy::Allow), ("ask", Policy::Ask), ("refuse", Policy::Refuse)];
        Ok(config.rooms.admission = given.one_of(&known)?)
    },
)];

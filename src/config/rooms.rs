//! `[rooms]`: which rooms of other servers users may join.

use super::Admission;
use super::setting::{Setting, setting};

/// `[rooms]`: which rooms of other servers users may join.
#[derive(Debug, Clone, Default)]
pub struct Rooms {
    pub admission: Admission,
}

pub const SETTINGS: &[Setting] = &[setting(
    "rooms.admission",
    r#""allow""#,
    "What happens when somebody joins a room of another server that is too large for this machine by its estimate: \"allow\" (try, \
         as long as it fits the disk), \"ask\" (until you allow it with `snug rooms allow ROOM`) or \"refuse\".",
    |config, given| {
        let known = [("allow", Admission::Allow), ("ask", Admission::Ask), ("refuse", Admission::Refuse)];
        Ok(config.rooms.admission = given.one_of(&known)?)
    },
)];

//! `[moderation]`: whom this server keeps out, on whose word.

use ruma::{RoomAliasId, RoomId};

use super::setting::{Setting, setting};
use crate::http::page::Input;
use crate::room::POLICY_LISTS_MAX;

/// `[moderation]`: see above.
#[derive(Debug, Clone, Default)]
pub struct Moderation {
    /// Room ids and aliases.
    pub policy_lists: Vec<String>,
}

pub const SETTINGS: &[Setting] = &[setting(
    "moderation.policy_lists",
    "[]",
    "Rooms with policy lists that this server follows by itself, such as [\"#bans:example.org\", \"!abc:example.org\"]. Somebody here \
     must be in each of them: join it with any account. Users and servers that its rules name cannot invite people here, nor join \
     rooms through this server; with servers that they name nothing is exchanged at all; rooms that they name cannot be joined. \
     Nobody is removed from where they are, and nobody of this server is ever meant. `snug moderation` shows the rules and whom \
     they kept out. Who may change the list decides with whom people here can talk.",
    |config, given| Ok(config.moderation.policy_lists = given.texts()?.into_iter().map(list).collect::<Result<_, _>>()?),
)
.on_page(Input::List)
.live()];

fn list(text: &str) -> Result<String, String> {
    match RoomId::parse(text).is_ok() || RoomAliasId::parse(text).is_ok() {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no room, such as \"#bans:example.org\" or \"!abc:example.org\"")),
    }
}

/// More lists than are followed.
pub fn check(moderation: &Moderation) -> Result<(), String> {
    match moderation.policy_lists.len() > POLICY_LISTS_MAX {
        true => Err(format!("this server follows at most {POLICY_LISTS_MAX} lists")),
        false => Ok(()),
    }
}

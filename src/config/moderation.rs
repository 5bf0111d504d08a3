//! `[moderation]`: whom this server keeps out, on whose word.

use ruma::{RoomAliasId, RoomId};

use super::setting::{Setting, optional, setting, url};
use crate::http::page::Input;
use crate::room::POLICY_LISTS_MAX;

/// `[moderation]`: see above.
#[derive(Debug, Clone, Default)]
pub struct Moderation {
    /// Room ids and aliases.
    pub policy_lists: Vec<String>,
    /// The address of a bot.
    pub reports_to: Option<String>,
}

pub const SETTINGS: &[Setting] = &[
    setting(
        "moderation.policy_lists",
        "[]",
        "Rooms with policy lists that this server follows by itself, such as [\"#bans:example.org\", \"!abc:example.org\"]. Somebody \
         here must be in each of them: join it with any account. Users and servers that its rules name cannot invite people here, nor \
         join rooms through this server; with servers that they name nothing is exchanged at all; rooms that they name cannot be \
         joined. Nobody is removed from where they are, and nobody of this server is ever meant. `snug moderation` shows the rules \
         and whom they kept out. Who may change the list decides with whom people here can talk.",
        |config, given| {
            Ok(config.moderation.policy_lists = given.texts()?.into_iter().map(list).collect::<Result<_, _>>()?)
        },
    )
    .on_page(Input::List)
    .live(),
    optional(
        "moderation.reports_to",
        r#""http://127.0.0.1:8080""#,
        "The address of a moderation bot that is told what people report of events: Draupnir or Mjolnir with web.abuseReporting \
         switched on, at web.address and web.port of its settings. No proxy has to rewrite anything for that. The bot gets what \
         the reporter wrote, and a token with which it asks this server who that is and what the event says; the token is \
         good for nothing else, and ends with the request. So whoever listens there learns of each report who made it and what an \
         unencrypted message said, and nobody's own access token. Reports wait while the bot is away. Those of rooms \
         and users, which such bots do not take, reach the administrators as all do.",
        |config, given| Ok(config.moderation.reports_to = Some(url(given.text()?)?)),
    )
    .live(),
];

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

//! `[previews]`: previews of links.

use super::setting::{Setting, setting};

/// `[previews]`: previews of links.
#[derive(Debug, Clone, Default)]
pub struct Previews {
    pub enabled: bool,
    pub deny: Vec<String>,
    /// Whether the home network may be asked: no setting, for tests that have all servers on the loopback.
    pub allow_private: bool,
}

pub const SETTINGS: &[Setting] = &[
    setting(
        "previews.enabled",
        "true",
        "Whether links in messages get a preview: this server fetches the page when an app asks for it, so the page's owner sees \
         this server's address, which other servers can look up anyway, and when somebody here came across the link. Addresses of \
         the home network are never asked. Apps do not ask for links in encrypted rooms unless told to.",
        |config, given| Ok(config.previews.enabled = given.flag()?),
    )
    .live(),
    setting(
        "previews.deny",
        "[]",
        "Sites that are never asked for a preview, such as [\"example.org\"]: the host and all below it.",
        |config, given| Ok(config.previews.deny = given.texts()?.into_iter().map(ToOwned::to_owned).collect()),
    )
    .live(),
];

//! `[previews]`: previews of links.

use super::setting::{Setting, setting};
use crate::http::page::Input;

/// `[previews]`: previews of links.
#[derive(Debug, Clone, Default)]
pub struct Previews {
    pub enabled: bool,
    pub deny: Vec<String>,
    pub private_hosts: Vec<String>,
    pub robots_txt: bool,
    /// Whether the home network may be asked: no setting, for tests that have all servers on the loopback.
    pub allow_private: bool,
}

pub const SETTINGS: &[Setting] = &[
    setting(
        "previews.enabled",
        "true",
        "Whether links in messages get a preview: this server fetches the page when an app asks for it, so the page's owner sees \
         this server's address, which other servers can look up anyway, and when somebody here came across the link. Addresses of \
         the home network are not asked. Apps do not ask for links in encrypted rooms unless told to.",
        |config, given| Ok(config.previews.enabled = given.flag()?),
    )
    .on_page(Input::Flag)
    .live(),
    setting(
        "previews.deny",
        "[]",
        "Sites that are never asked for a preview, such as [\"example.org\"]: the host and all below it.",
        |config, given| Ok(config.previews.deny = given.texts()?.into_iter().map(ToOwned::to_owned).collect()),
    )
    .on_page(Input::List)
    .live(),
    setting(
        "previews.private_hosts",
        "[]",
        "Hosts of your own network that links may lead to, such as [\"wiki.lan\", \"192.168.1.5\"] for a wiki there: each is \
         asked on any port, and everybody with an account here sees what it shows to somebody who has not logged in.",
        |config, given| {
            Ok(config.previews.private_hosts = given.texts()?.into_iter().map(host).collect::<Result<_, _>>()?)
        },
    )
    .live(),
    setting(
        "previews.robots_txt",
        "true",
        "Whether a page has no preview when its site asks programs not to read it (robots.txt, RFC 9309). Most sites leave what people link to open; those that forbid all of it mostly show programs a page to log in, so that little is missed, and a guest does as it is asked. With false every link is asked for, as Synapse does. Hosts under previews.private_hosts are asked in any case.",
        |config, given| Ok(config.previews.robots_txt = given.flag()?),
    )
    .on_page(Input::Flag)
    .live(),
];

/// A host as it stands in a URL: a name or an address, without scheme, port or path.
fn host(text: &str) -> Result<String, String> {
    let is = text.trim_end_matches('.').to_ascii_lowercase();
    match url::Host::parse(&is) {
        Ok(host) if host.to_string() == is => Ok(is),
        _ => Err(format!("{text:?} is no host such as \"wiki.lan\" or \"192.168.1.5\"")),
    }
}

//! `[push]`: push notifications.

use super::setting::{Setting, setting, url};

/// `[push]`: push notifications.
#[derive(Debug, Clone, Default)]
pub struct Push {
    pub gateway: bool,
    pub private_urls: Vec<String>,
}

pub const SETTINGS: &[Setting] = &[
    setting(
        "push.gateway",
        "true",
        "Whether this server is a push gateway for UnifiedPush, at /_matrix/push/v1/notify of its own address: apps and other \
         servers can name it, and what is pushed goes to the URL that the app got from its distributor (ntfy, for example). \
         Others' notifications are only brought to public addresses with HTTPS.",
        |config, given| Ok(config.push.gateway = given.flag()?),
    ),
    setting(
        "push.private_urls",
        "[]",
        "Gateways and UnifiedPush endpoints of your own network that the notifications of people here may be sent to, such as \
         [\"http://192.168.1.5:8080\"] for an ntfy there: scheme, host and port. Anywhere else, addresses of a home or company \
         network are not connected to, since any user may name a gateway.",
        |config, given| Ok(config.push.private_urls = given.texts()?.into_iter().map(url).collect::<Result<_, _>>()?),
    ),
];

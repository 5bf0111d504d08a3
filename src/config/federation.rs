//! `[federation]`: settings about other servers.

use std::net::SocketAddr;
use std::path::PathBuf;

use ruma::{OwnedServerName, ServerName};

use super::setting::{Setting, addresses, optional, server_name, setting};
use crate::http::page::Input;

/// The least intake per hour. A transaction of large events is 3 MiB; with less than this hardly one would fit in an
/// hour.
const HOURLY_BYTES_MIN: u64 = 1 << 20;
/// Names and patterns of denied servers: 64 KiB of the longest names, and a few microseconds to compare with. Who wants more
/// follows a policy list.
const DENIED_MAX: usize = 256;

/// `[federation]`: settings about other servers.
#[derive(Debug, Clone, Default)]
pub struct Federation {
    pub enabled: bool,
    pub listen: Vec<SocketAddr>,
    pub tls_certificate: Option<PathBuf>,
    pub tls_private_key: Option<PathBuf>,
    pub name: Option<String>,
    pub extra_ca_file: Option<PathBuf>,
    pub allow_private_addresses: bool,
    pub notaries: Vec<OwnedServerName>,
    pub overrides: Vec<(String, String)>,
    /// Files with the roots of servers that have an authority of their own.
    pub roots: Vec<(String, PathBuf)>,
    pub hourly_bytes_max: u64,
    /// Names and patterns.
    pub denied_servers: Vec<String>,
}

pub const SETTINGS: &[Setting] = &[
    setting("federation.enabled", "true", "Whether this server federates with other servers.", |config, given| {
        Ok(config.federation.enabled = given.flag()?)
    }),
    setting(
        "federation.listen",
        r#"["[::]:8448"]"#,
        "Addresses and ports for other servers. They are opened when there is a certificate.",
        |config, given| Ok(config.federation.listen = addresses(given)?),
    ),
    optional(
        "federation.tls_certificate",
        r#""/etc/snug/tls/fullchain.pem""#,
        "The certificate for the name other servers connect to: the server name, or the name in /.well-known/matrix/server. Read \
         again when the file changes.",
        |config, given| Ok(config.federation.tls_certificate = Some(given.path()?)),
    ),
    optional(
        "federation.tls_private_key",
        r#""/etc/snug/tls/privkey.pem""#,
        "The certificate's private key.",
        |config, given| {
            config.secret_files.push(given.path()?);
            Ok(config.federation.tls_private_key = Some(given.path()?))
        },
    ),
    optional(
        "federation.name",
        r#""matrix.example.org:443""#,
        "Where other servers connect instead of the server name's port 8448: published in /.well-known/matrix/server.",
        |config, given| {
            let text = given.text()?;
            server_name(text)?;
            Ok(config.federation.name = Some(text.to_owned()))
        },
    )
    .live(),
    optional(
        "federation.extra_ca_file",
        r#""/etc/snug/lab-ca.pem""#,
        "Certificate authorities of a closed network, trusted besides the usual ones.",
        |config, given| Ok(config.federation.extra_ca_file = Some(given.path()?)),
    ),
    setting(
        "federation.allow_private_addresses",
        "false",
        "Whether servers at addresses of a home or company network may be connected to.",
        |config, given| Ok(config.federation.allow_private_addresses = given.flag()?),
    ),
    setting(
        "federation.notaries",
        "[]",
        "Servers asked for the signing keys of servers that do not answer themselves, such as [\"matrix.org\"].",
        |config, given| {
            Ok(config.federation.notaries = given.texts()?.into_iter().map(server_name).collect::<Result<_, _>>()?)
        },
    ),
    optional(
        "federation.overrides",
        r#"{ "friend.lan" = "192.168.1.20:8448" }"#,
        "Where single servers are found, for closed networks without DNS: an address, or another name. A server with an authority of \
         its own, such as another Snug with certificates = \"own\", is believed under its root: \
         { \"friend.lan\" = { address = \"192.168.1.20:8448\", root = \"/etc/snug/friend.pem\" } }.",
        |config, given| {
            let places = given.places()?;
            let root = |(name, _, root): &(String, String, Option<PathBuf>)| Some((name.clone(), root.clone()?));
            config.federation.roots = places.iter().filter_map(root).collect();
            Ok(config.federation.overrides = places.into_iter().map(|(name, to, _)| (name, to)).collect())
        },
    ),
    setting(
        "federation.denied_servers",
        "[]",
        "Servers with which nothing is exchanged, by name or pattern: [\"bad.example\", \"*.spam.example\"]. Their requests are refused, \
         nothing is sent to them, and their people cannot be invited, invite or join here; who is in a room stays there. A pattern \
         with ! names servers that are let in all the same: [\"*\", \"!friend.example\"] federates with that one alone. The page and \
         `snug servers deny` change it too.",
        |config, given| {
            let servers: Result<Vec<_>, _> = given.texts()?.into_iter().map(server_pattern).collect();
            match servers? {
                servers if servers.len() > DENIED_MAX => {
                    Err(format!("can be at most {DENIED_MAX} names and patterns: a policy list has room for more"))
                }
                servers => Ok(config.federation.denied_servers = servers),
            }
        },
    )
    .on_page(Input::List)
    .live(),
    setting(
        "federation.hourly_bytes_max",
        r#""128 MiB""#,
        "What one other server may make this one store within an hour, in all its rooms together; a room may grow by \
         twice that. A very busy room of 40,000 people takes about 20 MiB. A server that sends more is asked to try \
        again later.",
        |config, given| match given.bytes()? {
            HOURLY_BYTES_MIN.. => Ok(config.federation.hourly_bytes_max = given.bytes()?),
            _ => Err("must be \"1 MiB\" or more: an ordinary room has more traffic than less would allow".to_owned()),
        },
    )
    .on_page(Input::Line)
    .live(),
];

/// A server's name with `*` and `?` in it, and with `!` before it, in small letters.
fn server_pattern(text: &str) -> Result<String, String> {
    let name = text.strip_prefix('!').unwrap_or(text);
    let fits = (1..=255).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.:[]*?".contains(&byte));
    match fits {
        true => Ok(text.to_ascii_lowercase()),
        false => Err(format!("{text:?} is no server, such as \"bad.example\" or \"*.spam.example\"")),
    }
}

/// A server that denies itself is a mistake.
pub fn check(federation: &Federation, own: &ServerName) -> Result<(), String> {
    match federation.denied_servers.iter().any(|name| name == own.as_str()) {
        true => Err(format!("{own} is this server itself")),
        false => Ok(()),
    }
}

//! The relay for calls inside this server, in `[turn]`.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::setting::{Setting, addresses, setting};

/// Less would not carry one call.
const BYTES_MIN: u64 = 64 * 1024;

pub const SETTINGS: &[Setting] = &[
    setting(
        "turn.listen",
        "[]",
        "Addresses and ports of the relay inside this server, for UDP and TCP: [\"[::]:3478\"] in place of a TURN server of your own. \
         Apps are told of it at the host that they reach this server at, and log in with shared_secret, or with a secret of this \
         run. Let the ports through the router, UDP and TCP, and those of turn.ports, UDP. For two people; a group call of \
         Element Call needs a LiveKit server (see [rtc]).",
        |config, given| Ok(config.relay.listen = addresses(given)?),
    ),
    setting(
        "turn.listen_tls",
        "[]",
        "The same with TLS, for networks that let nothing else out: [\"[::]:5349\"]. It has the certificate of [client].",
        |config, given| Ok(config.relay.listen_tls = addresses(given)?),
    ),
    setting(
        "turn.external_addresses",
        "[]",
        "The public addresses of this machine, of IPv4 and of IPv6, where it is behind a router: [\"203.0.113.7\"]. Peers are told to send \
         there. When not set: the address on the way to who asks.",
        |config, given| {
            let address = |text: &str| text.parse::<IpAddr>().map_err(|_| format!("{text:?} is not an IP address"));
            Ok(config.relay.external_addresses = given.texts()?.into_iter().map(address).collect::<Result<_, _>>()?)
        },
    ),
    setting(
        "turn.ports",
        r#""49152-49407""#,
        "The UDP ports that the relay gives out, one for each way of a phone.",
        |config, given| Ok(config.relay.ports = ports(given.text()?)?),
    ),
    setting(
        "turn.home_peers",
        "false",
        "Whether the relay may also send to private addresses: for phones in two of your networks that do not reach each other. This \
         machine itself is never reached through it, and two phones that both use the relay need no such thing.",
        |config, given| Ok(config.relay.home_peers = given.flag()?),
    ),
    setting(
        "turn.bandwidth",
        r#""8 MiB""#,
        "What the relay carries in a second, of all calls together; a call with video is about half a MiB.",
        |config, given| Ok(config.relay.bytes_max = enough(given.bytes()?)?),
    ),
    setting("turn.user_bandwidth", r#""2 MiB""#, "The same for one person.", |config, given| {
        Ok(config.relay.user_bytes_max = enough(given.bytes()?)?)
    }),
];

fn enough(bytes: u64) -> Result<u64, String> {
    if bytes >= BYTES_MIN { Ok(bytes) } else { Err("must be at least \"64 KiB\"".to_owned()) }
}

fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let wrong = || format!("{text:?} is not a range of ports such as \"49152-49407\"");
    let (first, last) = text.split_once('-').ok_or_else(wrong)?;
    let port = |text: &str| text.trim().parse::<u16>().ok().filter(|port| *port >= 1024);
    match (port(first), port(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => Err(wrong()),
    }
}

//! Addresses that requests must not be led to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses that have a meaning only inside some network, or none at all: an unknown server could use us to reach our
/// neighbours. An IPv6 address that a translator or a tunnel turns into one of IPv4 is as private as that one.
pub fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => is_private_v4(ip),
        IpAddr::V6(ip) => is_private_v6(ip),
    }
}

/// The addresses that IANA's registry of special IPv4 addresses does not call globally reachable, and multicast.
fn is_private_v4(ip: Ipv4Addr) -> bool {
    match ip.octets() {
        // "This" network; private use; loopback; link-local.
        [0 | 10 | 127, ..] | [169, 254, ..] | [172, 16..=31, ..] | [192, 168, ..] => true,
        // Behind a provider's translator; protocol assignments; the relays of 6to4; benchmarks.
        [100, 64..=127, ..] | [192, 0, 0, _] | [192, 88, 99, _] | [198, 18 | 19, ..] => true,
        // Documentation.
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => true,
        // Multicast, reserved, broadcast.
        [224..=255, ..] => true,
        _ => false,
    }
}

/// The same for IPv6.
fn is_private_v6(ip: Ipv6Addr) -> bool {
    let high_and_low = |high: u16, low: u16| is_private_v4(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)));
    match ip.segments() {
        // IPv4-compatible with `::` and `::1`, which are 0.0.0.0 and 0.0.0.1; IPv4-mapped; IPv4-translated.
        [0, 0, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0, 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low] => {
            high_and_low(high, low)
        }
        // NAT64 under the well-known prefix; that of some network alone, wherever the IPv4 address stands in it.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => high_and_low(high, low),
        [0x64, 0xff9b, ..] => true,
        // 6to4.
        [0x2002, high, low, ..] => high_and_low(high, low),
        // Teredo: its server, and the client with all bits turned over.
        [0x2001, 0, server_high, server_low, _, _, high, low] => {
            high_and_low(server_high, server_low) || high_and_low(!high, !low)
        }
        // ISATAP, in whatever network.
        [_, _, _, _, 0 | 0x200, 0x5efe, high, low] if high_and_low(high, low) => true,
        // Protocol assignments; documentation, old and new; discarded; segment routing.
        [0x2001, 1..=0x1ff, ..]
        | [0x2001, 0xdb8, ..]
        | [0x3fff, 0..=0xfff, ..]
        | [0x100, 0, 0, _, ..]
        | [0x5f00, ..] => true,
        // Unique local; link-local; site-local; multicast.
        [0xfc00..=0xfdff | 0xfe80..=0xfeff | 0xff00..=0xffff, ..] => true,
        _ => false,
    }
}

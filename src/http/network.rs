//! A network of addresses, as an operator writes it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// An address, or all that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// As IPv6; IPv4 is mapped into it.
    bits: u128,
    length: u32,
}

impl Network {
    /// The machine itself.
    pub const LOOPBACK: [Network; 2] = [Network::v4([127, 0, 0, 0], 8), Network { bits: 1, length: 128 }];
    /// Networks of homes and companies (RFC 1918, RFC 4193), those of carriers and VPNs between (RFC 6598), and links.
    pub const PRIVATE: [Network; 7] = [
        Network::v4([10, 0, 0, 0], 8),
        Network::v4([172, 16, 0, 0], 12),
        Network::v4([192, 168, 0, 0], 16),
        Network::v4([100, 64, 0, 0], 10),
        Network::v4([169, 254, 0, 0], 16),
        Network { bits: 0xfc << 120, length: 7 },
        Network { bits: 0xfe80 << 112, length: 10 },
    ];

    const fn v4(bytes: [u8; 4], length: u32) -> Network {
        Network { bits: (0xffff << 32) | u32::from_be_bytes(bytes) as u128, length: 96 + length }
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        let bits = mapped(ip);
        self.length == 0 || (bits ^ self.bits) >> (128 - self.length) == 0
    }
}

fn mapped(ip: IpAddr) -> u128 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let wrong = || format!("{text:?} is not an address or a network such as 192.168.1.0/24 or fd00::/8");
        let (ip, length) = text.split_once('/').map_or((text, None), |(ip, length)| (ip, Some(length)));
        let ip: IpAddr = ip.parse().map_err(|_| wrong())?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let length = length.map_or(Ok(most), |length| length.parse().map_err(|_| wrong()))?;
        if length > most {
            return Err(wrong());
        }
        let length = length + (128 - most);
        let mask = if length == 0 { 0 } else { u128::MAX << (128 - length) };
        let bits = match ip {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
            IpAddr::V6(ip) => ip.to_bits(),
        };
        Ok(Network { bits: bits & mask, length })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = Ipv6Addr::from_bits(self.bits);
        match ip.to_ipv4_mapped() {
            Some(ip) if self.length >= 96 => write!(f, "{ip}/{}", self.length - 96),
            _ => write!(f, "{ip}/{}", self.length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_in_their_networks() {
        let has = |network: &str, ip: &str| network.parse::<Network>().unwrap().contains(ip.parse().unwrap());
        for (network, inside, outside) in [
            ("192.168.1.0/24", "192.168.1.255", "192.168.2.0"),
            ("192.168.1.7/24", "192.168.1.255", "192.168.2.0"),
            ("10.0.0.1", "10.0.0.1", "10.0.0.2"),
            ("10.0.0.0/8", "::ffff:10.1.2.3", "::a00:1"),
            ("fd00::/8", "fd12::1", "fe80::1"),
            ("0.0.0.0/0", "8.8.8.8", "2001:db8::1"),
        ] {
            assert!(has(network, inside) && !has(network, outside), "{network}");
        }
        assert!(has("::/0", "8.8.8.8") && has("::/0", "::1"));
        for wrong in ["", "10.0.0.0/33", "::/129", "10.0.0/8", "example.org", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
        assert_eq!("192.168.1.7/24".parse::<Network>().unwrap().to_string(), "192.168.1.0/24");
        let named = |networks: &[Network], ip: &str| networks.iter().any(|of| of.contains(ip.parse().unwrap()));
        assert!(named(&Network::LOOPBACK, "127.0.0.1") && named(&Network::LOOPBACK, "::1"));
        assert!(named(&Network::PRIVATE, "192.168.178.20") && named(&Network::PRIVATE, "fd00::5"));
        assert!(!named(&Network::PRIVATE, "172.32.0.1") && !named(&Network::PRIVATE, "2001:db8::1"));
    }
}

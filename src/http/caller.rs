//! A caller, as far as an address identifies it.

use std::net::IpAddr;

/// An address; of IPv6 its /64, the block one customer gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Caller {
    V4(u32),
    V6(u64),
}

impl Caller {
    pub(super) fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.to_bits()),
            IpAddr::V6(v6) => Self::V6((v6.to_bits() >> 64) as u64),
        }
    }

    /// A block that a provider assigns together: a /24, of IPv6 a /48.
    pub fn network(self) -> Self {
        match self {
            Self::V4(address) => Self::V4(address & !0xff),
            Self::V6(network) => Self::V6(network & !0xffff),
        }
    }
}

//! What resolving a server name asks of the world.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;

pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What the steps ask of the world.
pub trait Lookup: Send + Sync + 'static {
    /// IPv6 and IPv4 addresses of a host.
    fn addresses<'a>(&'a self, host: &'a str) -> Boxed<'a, Result<Vec<IpAddr>, Miss>>;
    /// The SRV records under a name such as `_matrix-fed._tcp.example.org`.
    fn services<'a>(&'a self, name: &'a str) -> Boxed<'a, Result<Vec<Service>, Miss>>;
    /// `https://HOST/.well-known/matrix/server`.
    fn well_known<'a>(&'a self, host: &'a str) -> Boxed<'a, Result<WellKnown, Miss>>;
}

/// Why a lookup gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Miss {
    /// Somebody answered, and the answer is that there is nothing (or nothing usable).
    Absent(String),
    /// Nobody answered. Says nothing about the server: the Internet may be gone.
    Silent(String),
}

/// One SRV record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub priority: u16,
    pub weight: u16,
    pub host: String,
    pub port: u16,
}

/// A well-known answer as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WellKnown {
    /// The value of `m.server`.
    pub server: String,
    /// What the answer's headers say about keeping it.
    pub max_age_ms: Option<u64>,
}

//! The look-ups that resolving a server name needs.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;

use super::contact::Contact;

pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// DNS and well-known look-ups, as the resolver's steps need them.
pub trait Lookup: Send + Sync + 'static {
    /// IPv6 and IPv4 addresses of a host, those of a home or company network only where `allow_private`.
    fn addresses<'a>(&'a self, host: &'a str, allow_private: bool) -> Boxed<'a, Result<Vec<IpAddr>, Miss>>;
    /// The SRV records under a name such as `_matrix-fed._tcp.example.org`.
    fn services<'a>(&'a self, name: &'a str) -> Boxed<'a, Result<Vec<Service>, Miss>>;
    /// `https://HOST/.well-known/matrix/server`. A web server that answers is noted in `contact`.
    fn well_known<'a>(&'a self, host: &'a str, contact: &'a Contact) -> Boxed<'a, Result<WellKnown, Miss>>;
    /// Whether the name server answers for a name that it must ask others about.
    fn has_name_server(&self) -> Boxed<'_, bool>;
}

/// The addresses of hosts, private ones among them.
pub trait Names: Send + Sync + 'static {
    fn all_addresses<'a>(&'a self, host: &'a str) -> Boxed<'a, Result<Vec<IpAddr>, Miss>>;
}

/// Why a lookup gave nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Miss {
    /// There was an answer, and it says that there is nothing (or nothing usable).
    Absent(String),
    /// There was no answer. Says nothing about the server: the Internet may be gone.
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
    /// The lifetime that the answer's headers give.
    pub max_age_ms: Option<u64>,
}

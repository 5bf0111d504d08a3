//! The ports that the server listens on, and their certificates.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use super::{Failed, failed};
use crate::http::Listener;
use crate::http::tls::Certificate;

pub fn certificate(chain: &Option<PathBuf>, key: &Option<PathBuf>) -> Result<Option<Arc<Certificate>>, Failed> {
    let (Some(chain), Some(key)) = (chain, key) else { return Ok(None) };
    Certificate::read(chain, key).map(Some).map_err(|error| Failed(error.to_string()))
}

/// The first of these addresses that another program listens on.
pub fn taken(addresses: &[SocketAddr]) -> Option<SocketAddr> {
    let is_taken = |address: &&SocketAddr| {
        std::net::TcpListener::bind(address).is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse)
    };
    addresses.iter().find(is_taken).copied()
}

/// The address that takes the place of `[::]` where that cannot be opened, which is so on a machine without IPv6.
pub fn instead(address: SocketAddr, error: &std::io::Error) -> Option<SocketAddr> {
    let is_everywhere = address.ip() == IpAddr::from([0u16; 8]);
    let is_other = is_everywhere && error.kind() != std::io::ErrorKind::AddrInUse;
    is_other.then(|| SocketAddr::new(IpAddr::from([0; 4]), address.port()))
}

/// Binds an address. `[::]` becomes `0.0.0.0` on a machine without IPv6.
pub async fn bind(address: SocketAddr) -> Result<Listener, Failed> {
    let error = match Listener::tcp(address).await {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    if let Some(plain) = instead(address, &error)
        && let Ok(listener) = Listener::tcp(plain).await
    {
        return Ok(listener);
    }
    let hint = match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            " (another program, or another Snug, has this port: stop it, or choose another port in the config file)"
        }
        std::io::ErrorKind::AddrNotAvailable => " (this machine has no such address)",
        std::io::ErrorKind::PermissionDenied => " (ports below 1024 need the capability CAP_NET_BIND_SERVICE)",
        _ => "",
    };
    Err(failed(format_args!("cannot listen on {address}"), format_args!("{error}{hint}")))
}

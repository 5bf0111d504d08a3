//! Whether a listener takes up connections: by knocking at it.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use crate::base::Clock;

/// How often it is looked whether a listener has taken up a connection.
const BEAT_PAUSE: Duration = Duration::from_millis(20);

/// Whether the listener on an address takes up a connection within `patience`, which its `beats` tell; its address when not.
pub async fn is_taken_up(
    clock: Clock,
    address: SocketAddr,
    beats: Arc<AtomicU64>,
    patience: Duration,
) -> Result<(), SocketAddr> {
    let before = beats.load(SeqCst);
    let knock = async {
        // Kept until it is taken up. With a full queue it waits, while the listener takes up others.
        let _knock = tokio::net::TcpStream::connect(from_here(address)).await;
        std::future::pending::<()>().await;
    };
    let taken_up = async {
        while beats.load(SeqCst) == before {
            clock.sleep(BEAT_PAUSE).await;
        }
    };
    let heard = async {
        tokio::select! {
            () = knock => {}
            () = taken_up => {}
        }
    };
    match clock.timeout(patience, heard).await {
        Some(()) => Ok(()),
        // Nobody can connect to it, and the listener is no worse for that: it hears again when the address is back.
        None if has_left(address) => Ok(()),
        None => Err(address),
    }
}

/// Whether this machine has an address no more, such as one that the router has given to another.
fn has_left(address: SocketAddr) -> bool {
    let mut here = from_here(address);
    here.set_port(0);
    UdpSocket::bind(here).is_err_and(|error| {
        let no_interface = rustix::io::Errno::NODEV.raw_os_error();
        error.kind() == ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(no_interface)
    })
}

/// Where this machine reaches what listens on an address: "all addresses" becomes the loopback address.
pub fn from_here(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => SocketAddr::from((Ipv4Addr::LOCALHOST, v4.port())),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => SocketAddr::from((Ipv6Addr::LOCALHOST, v6.port())),
        // With its interface, without which a link-local one leads nowhere.
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_another_machine_is_none_of_ours() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert!(has_left(at("192.0.2.1:8448")));
        assert!(!has_left(at("127.0.0.1:8448")) && !has_left(at("0.0.0.0:8448")));
        assert_eq!(from_here(at("[::]:80")), at("[::1]:80"));
        assert_eq!(from_here(at("[fe80::1%3]:80")), at("[fe80::1%3]:80"));
    }
}

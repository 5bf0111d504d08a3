//! Sockets that connections come from, and the connection with or without TLS.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};

use crate::base::Clock;
use crate::budget::Grant;

/// After `accept` fails (no file descriptors left, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A bound socket.
pub struct Listener {
    pub socket: Socket,
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

pub enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    pub async fn tcp(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { socket: Socket::Tcp(TcpListener::bind(address).await?), tls: None })
    }

    /// A socket in the file system; its file permissions decide who may connect.
    pub fn unix(socket: UnixListener) -> Self {
        Self { socket: Socket::Unix(socket), tls: None }
    }

    pub fn with_tls(mut self, config: Arc<rustls::ServerConfig>) -> Self {
        self.tls = Some(config);
        self
    }

    /// The address bound, with the port the system chose for port 0.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().ok(),
            Socket::Unix(_) => None,
        }
    }
}

pub enum Protocol {
    Http1,
    Http2 {
        /// The additional memory it may hold, for as long as it is served.
        _share: Grant,
    },
}

pub enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

/// A connection that has just come.
pub struct Accepted {
    pub stream: Stream,
    pub ip: IpAddr,
    /// Which of our addresses it reached.
    pub here: Option<IpAddr>,
}

impl Listener {
    /// The next connection. Errors of one attempt are waited out, since the socket itself is fine.
    pub async fn accept(&self, clock: &Clock) -> Accepted {
        loop {
            let accepted = match &self.socket {
                Socket::Tcp(listener) => listener.accept().await.map(|(stream, from)| {
                    let _ = stream.set_nodelay(true);
                    let here = stream.local_addr().ok().map(|here| here.ip());
                    Accepted { stream: Stream::Tcp(stream), ip: from.ip(), here }
                }),
                Socket::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                    let ip = IpAddr::from([127, 0, 0, 1]);
                    Accepted { stream: Stream::Unix(stream), ip, here: None }
                }),
            };
            match accepted {
                Ok(accepted) => return accepted,
                Err(error) => {
                    tracing::warn!("could not accept a connection: {error}");
                    clock.sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

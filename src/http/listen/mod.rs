//! Sockets: a permit first, then accept.
//!
//! A connection's memory (its buffers, TLS included) is taken from the `connections` account before it is accepted; when
//! none is left the kernel's backlog waits, and idle connections are asked to make room. Everything a peer can keep us
//! waiting for has an end: handshakes, heads, bodies, answers it does not read, and idleness.

use super::body::Body;
use super::limit::Limits;
use super::request::{Peer, Request, Tools};
use super::route::Router;
use super::watch::{Watch, Watched};
use crate::base::Clock;
use crate::budget::{Account, Budget, Grant};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, watch};
use tokio_rustls::TlsAcceptor;

/// A TLS handshake takes a few round trips; a board doing RSA takes half a second of its own.
const HANDSHAKE_MAX: Duration = Duration::from_secs(15);
/// From the connection or the last answer to the end of the next head.
const HEAD_MAX: Duration = Duration::from_secs(60);
/// A connection nothing is asked on is closed after this.
const IDLE_MAX: Duration = Duration::from_secs(90);
/// …and after this when others wait for its place.
const IDLE_PRESSED_MAX: Duration = Duration::from_secs(2);
/// Bytes waiting this long for a peer that does not read: it is gone. A piece has 64 KiB at most, so this is a
/// kilobyte a second.
const UNREAD_MAX: Duration = Duration::from_secs(60);
/// How often a connection is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often idle connections are asked to go while somebody waits for a permit.
const PRESS_EVERY: Duration = Duration::from_millis(500);
/// After `accept` fails (no file descriptors left, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Sizes of one connection, from the profile.
#[derive(Debug, Clone)]
pub struct Sizes {
    /// What one connection is charged, whatever it does.
    pub connection_bytes: u64,
    /// HTTP/1 read and write buffer, each; at least 8 KiB. A longer head is answered with 431.
    pub http1_buffer_bytes: usize,
    /// HTTP/2 streams a connection may have open.
    pub http2_streams_max: u32,
    /// HTTP/2 receive window of a stream.
    pub http2_stream_window_bytes: u32,
    /// HTTP/2 receive window of a connection.
    pub http2_connection_window_bytes: u32,
    /// What HTTP/2 may buffer of a stream's answer.
    pub http2_send_buffer_bytes: usize,
    /// TLS records may be buffered up to this.
    pub tls_buffer_bytes: usize,
    /// The usual limit for JSON bodies.
    pub json_body_bytes_max: u64,
}

impl Sizes {
    /// As the profile has them. A connection is charged its equal share of the `connections` account.
    pub fn of(budget: &Budget) -> Self {
        let small = |name: &str| u32::try_from(budget.size(name)).unwrap_or(u32::MAX);
        Self {
            connection_bytes: budget.account("connections").limit() / budget.size("connections_max").max(1),
            http1_buffer_bytes: budget.size("http1_buffer").max(8 * 1024) as usize,
            http2_streams_max: small("h2_streams_max"),
            http2_stream_window_bytes: small("h2_stream_window"),
            http2_connection_window_bytes: small("h2_connection_window"),
            http2_send_buffer_bytes: budget.size("h2_send_buffer") as usize,
            tls_buffer_bytes: budget.size("tls_buffer") as usize,
            json_body_bytes_max: budget.size("request_body_max"),
        }
    }
}

/// Where requests come in: shared by all listeners.
pub struct Door {
    clock: Clock,
    connections: Account,
    tools: Tools,
    sizes: Sizes,
    trusted_proxies: Vec<IpAddr>,
    pressed: Notify,
    phase: watch::Sender<Phase>,
    open: AtomicUsize,
    /// Told whenever a connection has ended.
    left: Notify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Open,
    /// No new requests; those under way may finish.
    Closing,
    /// Hang up.
    Cut,
}

/// A bound socket.
pub struct Listener {
    socket: Socket,
    tls: Option<Arc<rustls::ServerConfig>>,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    pub async fn tcp(address: SocketAddr) -> io::Result<Self> {
        Ok(Self { socket: Socket::Tcp(TcpListener::bind(address).await?), tls: None })
    }

    /// A socket in the file system; who may open the file may speak.
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

impl Door {
    /// Uses the accounts `connections` and `request_bodies`. `X-Forwarded-For` is believed from `trusted_proxies` only.
    pub fn new(clock: Clock, budget: &Budget, limits: Arc<Limits>, trusted_proxies: Vec<IpAddr>) -> Arc<Self> {
        let sizes = Sizes::of(budget);
        let bodies = budget.account("request_bodies");
        let tools = Tools { clock: clock.clone(), bodies, limits, json_bytes_max: sizes.json_body_bytes_max };
        Arc::new(Self {
            clock,
            connections: budget.account("connections"),
            tools,
            sizes,
            trusted_proxies,
            pressed: Notify::new(),
            phase: watch::Sender::new(Phase::Open),
            open: AtomicUsize::new(0),
            left: Notify::new(),
        })
    }

    /// Accepts on one socket until the door closes; run as a task.
    pub async fn serve(self: Arc<Self>, listener: Listener, router: Arc<Router>) {
        let mut phase = self.phase.subscribe();
        loop {
            let accepted = async {
                let permit = self.permit().await;
                (listener.accept(&self.clock).await, permit)
            };
            tokio::select! {
                _ = phase.wait_for(|phase| *phase != Phase::Open) => return,
                ((stream, ip), permit) = accepted => self.spawn(stream, ip, &listener, &router, permit),
            }
        }
    }

    /// Stops accepting, lets answers under way finish for at most `grace`, then hangs up.
    pub async fn close(&self, grace: Duration) {
        self.phase.send_replace(Phase::Closing);
        self.clock.timeout(grace, self.empty()).await;
        self.phase.send_replace(Phase::Cut);
        self.empty().await;
    }

    /// Connections open now.
    pub fn connections_open(&self) -> usize {
        self.open.load(SeqCst)
    }

    async fn empty(&self) {
        loop {
            let left = self.left.notified();
            if self.open.load(SeqCst) == 0 {
                return;
            }
            left.await;
        }
    }

    /// Memory for one connection, however long it takes; meanwhile idle connections are asked to go.
    async fn permit(&self) -> Grant {
        loop {
            // Before looking, so that a connection that ends in between is not missed.
            let left = self.left.notified();
            if let Ok(grant) = self.connections.try_take(self.sizes.connection_bytes) {
                return grant;
            }
            self.pressed.notify_waiters();
            tokio::select! {
                () = left => {}
                () = self.clock.sleep(PRESS_EVERY) => {}
            }
        }
    }

    fn spawn(self: &Arc<Self>, stream: Stream, ip: IpAddr, listener: &Listener, router: &Arc<Router>, permit: Grant) {
        let (door, router, tls) = (self.clone(), router.clone(), listener.tls.clone());
        let counted = Counted::new(&door);
        tokio::spawn(async move {
            // Dropped last to first: whoever is told that a connection ended finds its memory free.
            let (_counted, _permit) = (counted, permit);
            match (stream, tls) {
                (Stream::Tcp(stream), None) => door.run(stream, Peer { ip, tls: false }, router).await,
                (Stream::Tcp(stream), Some(config)) => {
                    let limit = door.sizes.tls_buffer_bytes;
                    let handshake = TlsAcceptor::from(config)
                        .accept_with(stream, |connection| connection.set_buffer_limit(Some(limit)));
                    match door.clock.timeout(HANDSHAKE_MAX, handshake).await {
                        Some(Ok(stream)) => door.run(stream, Peer { ip, tls: true }, router).await,
                        Some(Err(error)) => tracing::debug!("no TLS with {ip}: {error}"),
                        None => tracing::debug!("no TLS with {ip} in time"),
                    }
                }
                (Stream::Unix(stream), _) => door.run(stream, Peer { ip, tls: false }, router).await,
            }
        });
    }

    /// One connection from its first byte to its last.
    async fn run<T>(self: &Arc<Self>, stream: T, peer: Peer, router: Arc<Router>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let watch = Watch::new(self.clock.clone());
        let io = TokioIo::new(Watched::new(stream, watch.clone()));
        let builder = self.builder();
        let service = service_fn({
            let (door, watch) = (self.clone(), watch.clone());
            move |request| door.clone().answer(request, peer, router.clone(), watch.clone())
        });
        let mut connection = std::pin::pin!(builder.serve_connection(io, service));
        let mut phase = self.phase.subscribe();
        let mut closing = false;
        loop {
            tokio::select! {
                _ = connection.as_mut() => return,
                _ = phase.wait_for(|phase| *phase == Phase::Cut) => return,
                _ = self.closing(), if !closing => {
                    closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = self.pressed.notified() => {
                    if watch.idle().is_some_and(|idle| idle > IDLE_PRESSED_MAX) {
                        return;
                    }
                }
                () = self.clock.sleep(LOOK_EVERY) => {
                    if watch.stalled() > UNREAD_MAX {
                        tracing::debug!("{} reads nothing, hanging up", peer.ip);
                        return;
                    }
                    if watch.idle().is_some_and(|idle| idle > IDLE_MAX) {
                        return;
                    }
                }
            }
        }
    }

    async fn closing(&self) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.phase.subscribe().wait_for(|phase| *phase >= Phase::Closing).await;
    }

    fn builder(&self) -> auto::Builder<TokioExecutor> {
        let sizes = &self.sizes;
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_MAX)
            .max_buf_size(sizes.http1_buffer_bytes)
            // `printf … | nc` closes its side once it has asked, and still wants the answer.
            .half_close(true);
        builder
            .http2()
            .timer(TokioTimer::new())
            .initial_stream_window_size(sizes.http2_stream_window_bytes)
            .initial_connection_window_size(sizes.http2_connection_window_bytes)
            .max_concurrent_streams(sizes.http2_streams_max)
            .max_frame_size(16 * 1024)
            .max_header_list_size(sizes.http1_buffer_bytes as u32)
            .max_send_buf_size(sizes.http2_send_buffer_bytes)
            .max_pending_accept_reset_streams(sizes.http2_streams_max as usize)
            .keep_alive_interval(Some(Duration::from_secs(30)))
            .keep_alive_timeout(Duration::from_secs(20));
        builder
    }

    async fn answer(
        self: Arc<Self>,
        request: hyper::Request<Incoming>,
        peer: Peer,
        router: Arc<Router>,
        watch: Arc<Watch>,
    ) -> Result<hyper::Response<Body>, Infallible> {
        let active = watch.begin();
        let started = self.clock.instant();
        let peer = Peer { ip: self.caller(&request, peer.ip), ..peer };
        let method = request.method().clone();
        // The path alone: a query may carry a token.
        let path =
            if tracing::enabled!(tracing::Level::DEBUG) { request.uri().path().to_owned() } else { String::new() };
        let mut response = router.dispatch(Request::new(request, peer, self.tools.clone())).await.into_hyper();
        let took_ms = self.clock.instant().saturating_sub(started).as_millis();
        tracing::debug!(%method, path, status = response.status().as_u16(), took_ms, "answered");
        response.body_mut().attach(watch, active);
        Ok(response)
    }

    /// Who asks: the last address a trusted proxy added, or the other end itself.
    fn caller(&self, request: &hyper::Request<Incoming>, ip: IpAddr) -> IpAddr {
        if !self.trusted_proxies.contains(&ip.to_canonical()) {
            return ip;
        }
        let forwarded = request.headers().get("x-forwarded-for").and_then(|value| value.to_str().ok());
        forwarded.and_then(|list| list.rsplit(',').next()?.trim().parse().ok()).unwrap_or(ip)
    }
}

enum Stream {
    Tcp(tokio::net::TcpStream),
    Unix(tokio::net::UnixStream),
}

impl Listener {
    /// The next connection; errors of one attempt are waited out, since the socket itself is fine.
    async fn accept(&self, clock: &Clock) -> (Stream, IpAddr) {
        loop {
            let accepted = match &self.socket {
                Socket::Tcp(listener) => listener.accept().await.map(|(stream, from)| {
                    let _ = stream.set_nodelay(true);
                    (Stream::Tcp(stream), from.ip())
                }),
                Socket::Unix(listener) => {
                    listener.accept().await.map(|(stream, _)| (Stream::Unix(stream), IpAddr::from([127, 0, 0, 1])))
                }
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

/// A connection among those open.
struct Counted(Arc<Door>);

impl Counted {
    fn new(door: &Arc<Door>) -> Self {
        door.open.fetch_add(1, SeqCst);
        Self(door.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
        self.0.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests;

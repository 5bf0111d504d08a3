//! Sockets: a permit first, then accept.
//!
//! A connection's memory (its maximum, TLS and one request included) is taken from the `connections` account before it
//! is accepted; when none is left the kernel's backlog waits, and the least useful connection is told to go. The socket
//! of the commands has its places on the `admin` account, so that no crowd outside keeps the owner out.
//! `connection_limits.rs` keeps any caller from taking all places, and decides which connection gives way. Everything a
//! peer can keep us waiting for has an end: handshakes, heads, bodies, unread answers, and idleness.
//!
//! A share covers HTTP/1, a request at a time. HTTP/2 keeps far more for a peer (several requests, and a frame for each
//! unread byte), so a connection that is to speak it takes [`HTTP_2_BYTES`] more. That is allowed only while it leaves
//! a part of the account to others and half of the caller's share to the caller's other connections. Otherwise TLS
//! offers HTTP/1.1 alone, and a connection without TLS is closed.

use super::body::Body;
use super::connection_limits::{Origin, Place, Places};
use super::limit::Limits;
use super::peer_watch::{PeerWatch, Watched, Wire};
use super::request::{Peer, Request, SMALL_BODIES_BYTES, Tools};
use super::route::Router;
use super::tls::{CHALLENGE, HTTP_2};
use super::turned_away::TurnedAway;
use super::{ErrorResponse, HeaderMap};
use crate::base::{Clock, Live, Worker};
use crate::budget::{Account, Budget, Grant};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use socket::{Accepted, Listener, Protocol, Socket, Stream};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

pub use knock::from_here;

/// A TLS handshake takes a few round trips; a board doing RSA takes half a second of its own.
const HANDSHAKE_MAX: Duration = Duration::from_secs(15);
/// From the connection or the last answer to the end of the next head.
const HEAD_MAX: Duration = Duration::from_secs(60);
/// A connection without a request is closed after this.
const IDLE_MAX: Duration = Duration::from_secs(90);
/// A peer that leaves bytes unread for this long is gone. A piece has 64 KiB at most, so this is a kilobyte a second.
const UNREAD_MAX: Duration = Duration::from_secs(60);
/// A peer that has closed its side and is sent nothing for so long is gone too, whatever its request.
const CLOSED_MAX: Duration = Duration::from_secs(60);
/// A whole answer up to this is within the connection's share.
const ANSWER_FREE_BYTES: u64 = 8 * 1024;
/// What HTTP/2 may hold beside a connection's share: the streams' requests and tasks, their unsent answers, and their
/// windows. A small frame in a window keeps the whole buffer it came in until it is read. Few windows fill: unwanted
/// bodies are released at once, the others are read as they come.
const HTTP_2_BYTES: u64 = 384 * 1024;
const HTTP_2_STREAMS_MAX: u32 = 8;
/// Unread bytes of a stream, and of all streams together.
const HTTP_2_WINDOW_BYTES: u32 = 16 * 1024;
const HTTP_2_HEAD_BYTES: u32 = 8 * 1024;
const HTTP_2_UNSENT_BYTES: usize = 8 * 1024;
/// How an HTTP/2 connection without TLS begins (RFC 9113, section 3.4): enough of it to rule out any HTTP/1 method.
const HTTP_2_PREFACE: &[u8] = b"PRI";
/// How often a connection is checked while its first bytes come one by one.
const PREFACE_PAUSE: Duration = Duration::from_millis(10);
/// How often a connection is checked.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How often a connection is told to go while a listener waits for a permit.
const PRESS_EVERY: Duration = Duration::from_millis(250);
/// A request has so long to be answered once its connection has been told to go.
const LEAVE_MAX: Duration = Duration::from_millis(500);
/// The retry time told to a caller that has no place left.
const NO_PLACE_RETRY_MS: u64 = 2000;
/// What a caller without a place is told where there is no TLS: nothing is read or kept for it. Apps read the error code
/// and the time; a page of another origin is let see them.
const NO_PLACE_ANSWER: &str = concat!(
    "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 2\r\nContent-Type: application/json\r\nContent-Length: 98\r\n",
    "Access-Control-Allow-Origin: *\r\nAccess-Control-Expose-Headers: Retry-After\r\nConnection: close\r\n\r\n",
    r#"{"errcode":"M_LIMIT_EXCEEDED","error":"The server is busy, try again later","retry_after_ms":2000}"#
);
/// A listener has waited so often for memory when the log says so: 5 s.
const PRESSES_QUIET: u32 = 20;

/// Sizes of one connection, from the profile.
#[derive(Debug, Clone)]
pub struct Sizes {
    /// The charge for a connection without TLS, whatever it does.
    pub plain_bytes: u64,
    /// The charge for a connection with TLS.
    pub tls_bytes: u64,
    /// The read buffer, at least 8 KiB. A longer head is answered with 431.
    pub buffer_bytes: usize,
    /// TLS records may be buffered up to this.
    pub tls_buffer_bytes: usize,
    /// The usual limit for JSON bodies.
    pub json_body_bytes_max: u64,
}

impl Sizes {
    /// As the profile has them.
    pub fn of(budget: &Budget) -> Self {
        Self {
            plain_bytes: budget.profile().connection_bytes(false),
            tls_bytes: budget.profile().connection_bytes(true),
            buffer_bytes: budget.size("http1_buffer").max(8 * 1024) as usize,
            tls_buffer_bytes: budget.size("tls_buffer") as usize,
            json_body_bytes_max: budget.size("request_body_max"),
        }
    }
}

/// Where requests come in: shared by all listeners.
pub struct HttpServer {
    clock: Clock,
    connections: Account,
    /// Pays for the connections of commands.
    admin: Account,
    /// Pays for answers that are not small.
    answers: Account,
    places: Arc<Places>,
    /// The places of commands.
    admin_places: Arc<Places>,
    turned_away: TurnedAway,
    tools: Tools,
    sizes: Sizes,
    trusted_proxies: Live<Vec<IpAddr>>,
    /// The listeners on the network, and how often each has taken up a connection or looked for memory for one.
    listening: parking_lot::Mutex<Vec<(SocketAddr, Arc<AtomicU64>)>>,
    /// The origin of a caller, from its address and ours; tests use loopback addresses as strangers.
    origin: fn(IpAddr, Option<IpAddr>, &[IpAddr]) -> Origin,
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

impl HttpServer {
    /// Uses the accounts `connections`, `admin`, `request_bodies` and `response_bodies`. `X-Forwarded-For` is believed
    /// from `trusted_proxies` only.
    pub fn new(clock: Clock, budget: &Budget, limits: Arc<Limits>, trusted_proxies: Vec<IpAddr>) -> Arc<Self> {
        let sizes = Sizes::of(budget);
        let bodies = budget.account("request_bodies");
        bodies.keep_for_small(SMALL_BODIES_BYTES);
        let places = Places::new(clock.clone(), budget.account("connections").limit());
        let admin_places = Places::new(clock.clone(), budget.account("admin").limit());
        let json_bytes_max = sizes.json_body_bytes_max;
        let tools = Tools { clock: clock.clone(), bodies, limits, places: places.clone(), json_bytes_max };
        Arc::new(Self {
            places,
            admin_places,
            turned_away: TurnedAway::new(clock.clone()),
            connections: budget.account("connections"),
            admin: budget.account("admin"),
            answers: budget.account("response_bodies"),
            tools,
            sizes,
            trusted_proxies: Live::new(trusted_proxies),
            listening: parking_lot::Mutex::default(),
            origin: Origin::of,
            phase: watch::Sender::new(Phase::Open),
            open: AtomicUsize::new(0),
            left: Notify::new(),
            clock,
        })
    }

    /// Accepts on one socket until the door closes; run as a task.
    pub async fn serve(self: Arc<Self>, listener: Listener, router: Arc<Router>) {
        let mut phase = self.phase.subscribe();
        let beats = Arc::<AtomicU64>::default();
        self.listening.lock().extend(listener.address().map(|address| (address, beats.clone())));
        let accepting = || self.accept_all(&listener, &router, &beats);
        let worker = Worker::new("accepting connections", &self.clock);
        tokio::select! {
            _ = phase.wait_for(|phase| *phase != Phase::Open) => {}
            () = worker.keep_going(std::future::pending(), accepting) => {}
        }
    }

    async fn accept_all(self: &Arc<Self>, listener: &Listener, router: &Arc<Router>, beats: &AtomicU64) {
        loop {
            let permit = self.permit(listener, beats).await;
            let accepted = listener.accept(&self.clock).await;
            beats.fetch_add(1, SeqCst);
            self.spawn(accepted, listener, router, permit);
        }
    }

    /// Stops accepting, lets answers under way finish for at most `grace`, then hangs up.
    pub async fn close(&self, grace: Duration) {
        self.phase.send_replace(Phase::Closing);
        self.clock.timeout(grace, self.empty()).await;
        self.phase.send_replace(Phase::Cut);
        self.empty().await;
    }

    /// Believes other proxies from now on; connections under way stay whose they are.
    pub fn set_trusted_proxies(&self, proxies: Vec<IpAddr>) {
        self.trusted_proxies.set(proxies);
    }

    /// Whether every listener on the network takes up a connection within `patience`, or waits for memory for one. An
    /// error is the address of one that does not.
    pub async fn is_accepting(&self, patience: Duration) -> Result<(), SocketAddr> {
        let listening = self.listening.lock().clone();
        // All at once: each has the whole time.
        let mut looking = JoinSet::new();
        for (address, beats) in listening {
            looking.spawn(knock::is_taken_up(self.clock.clone(), address, beats, patience));
        }
        while let Some(looked) = looking.join_next().await {
            if let Ok(Err(address)) = looked {
                return Err(address);
            }
        }
        Ok(())
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

    /// Memory for one connection, however long it takes; meanwhile connections are told to go, one at a time.
    async fn permit(&self, listener: &Listener, beats: &AtomicU64) -> Grant {
        let (account, places, bytes) = match (&listener.socket, &listener.tls) {
            (Socket::Unix(_), _) => (&self.admin, &self.admin_places, self.sizes.plain_bytes),
            (Socket::Tcp(_), None) => (&self.connections, &self.places, self.sizes.plain_bytes),
            (Socket::Tcp(_), Some(_)) => (&self.connections, &self.places, self.sizes.tls_bytes),
        };
        let mut presses = 0_u32;
        loop {
            // Before looking, so that a connection that ends in between is not missed.
            let left = self.left.notified();
            if let Ok(grant) = account.try_take(bytes) {
                return grant;
            }
            places.press(bytes);
            beats.fetch_add(1, SeqCst);
            presses = presses.saturating_add(1);
            if presses > PRESSES_QUIET {
                self.turned_away.note_waiting(self.connections_open());
            }
            tokio::select! {
                () = left => {}
                () = self.clock.sleep(PRESS_EVERY) => {}
            }
        }
    }

    fn spawn(self: &Arc<Self>, accepted: Accepted, listener: &Listener, router: &Arc<Router>, permit: Grant) {
        let Accepted { stream, ip, here } = accepted;
        let watch = PeerWatch::new(self.clock.clone());
        let (places, origin) = match &stream {
            Stream::Unix(_) => (&self.admin_places, Origin::Proxy),
            Stream::Tcp(_) => (&self.places, (self.origin)(ip, here, &self.trusted_proxies.get())),
        };
        let Some(place) = places.enter(ip, origin, permit.bytes(), &watch) else {
            self.turned_away.note(ip, self.connections_open());
            if let (Stream::Tcp(stream), None) = (&stream, &listener.tls) {
                // What does not go out at once is not worth waiting for.
                let _ = stream.try_write(NO_PLACE_ANSWER.as_bytes());
            }
            return;
        };
        if matches!(stream, Stream::Tcp(_)) {
            place.mark(&watch);
        }
        let (door, router, tls) = (self.clone(), router.clone(), listener.tls.clone());
        let counted = Counted::new(&door);
        tokio::spawn(async move {
            // Dropped in reverse order: a task told that a connection ended finds its memory free.
            let (_counted, _permit, place) = (counted, permit, place);
            let mut served = std::pin::pin!(door.run_any(stream, ip, tls, router, watch.clone(), &place));
            tokio::select! {
                () = &mut served => return,
                () = place.wanted_back() => {}
            }
            // An app that waited for news gets an answer rather than a broken connection, and so does a request that is
            // nearly done.
            if !watch.doing().lingers(Duration::ZERO) {
                watch.hurry();
                door.clock.timeout(LEAVE_MAX, served).await;
            }
        });
    }

    async fn run_any(
        self: &Arc<Self>,
        stream: Stream,
        ip: IpAddr,
        tls: Option<Arc<rustls::ServerConfig>>,
        router: Arc<Router>,
        watch: Arc<PeerWatch>,
        place: &Place,
    ) {
        match (stream, tls) {
            (Stream::Tcp(stream), None) => {
                let protocol = match self.is_http_2(&stream, &watch).await {
                    Some(true) => match self.http_2_share(place) {
                        Some(share) => Protocol::Http2 { _share: share },
                        None => return tracing::debug!("no memory for HTTP/2 with {ip}"),
                    },
                    Some(false) => Protocol::Http1,
                    None => return,
                };
                self.run(stream, Peer { ip, tls: false }, router, watch, protocol).await;
            }
            (Stream::Tcp(stream), Some(mut config)) => {
                // Nothing is reserved for a handshake that may never end.
                if !self.may_speak_http_2(place) {
                    Arc::make_mut(&mut config).alpn_protocols.retain(|protocol| protocol != HTTP_2);
                }
                let limit = self.sizes.tls_buffer_bytes;
                let handshake = TlsAcceptor::from(config).accept_with(Wire::new(stream, watch.clone()), |connection| {
                    connection.set_buffer_limit(Some(limit))
                });
                match self.clock.timeout(HANDSHAKE_MAX, handshake).await {
                    Some(Ok(stream)) => {
                        watch.decided();
                        let spoken = stream.get_ref().1.alpn_protocol();
                        if spoken == Some(CHALLENGE) {
                            return tracing::debug!("{ip} was shown the answer to a challenge");
                        }
                        let protocol = match spoken == Some(HTTP_2) {
                            true => match self.http_2_share(place) {
                                Some(share) => Protocol::Http2 { _share: share },
                                None => return tracing::debug!("no memory for HTTP/2 with {ip} any more"),
                            },
                            false => Protocol::Http1,
                        };
                        self.run(stream, Peer { ip, tls: true }, router, watch, protocol).await;
                    }
                    Some(Err(error)) => tracing::debug!("no TLS with {ip}: {error}"),
                    None => tracing::debug!("no TLS with {ip} in time"),
                }
            }
            (Stream::Unix(stream), _) => {
                self.run(stream, Peer { ip, tls: false }, router, watch, Protocol::Http1).await;
            }
        }
    }

    /// Whether there is memory for HTTP/2, with a quarter of the account left to others.
    fn may_speak_http_2(&self, place: &Place) -> bool {
        let most = self.connections.limit() / 4 * 3;
        place.may_hold(HTTP_2_BYTES) && self.connections.used() + HTTP_2_BYTES <= most
    }

    /// The additional memory for HTTP/2.
    fn http_2_share(&self, place: &Place) -> Option<Grant> {
        let share = self.may_speak_http_2(place).then(|| self.connections.try_take(HTTP_2_BYTES).ok()).flatten()?;
        place.hold(HTTP_2_BYTES);
        Some(share)
    }

    /// Whether a connection begins as HTTP/2 does. `None`: it ended before it could be told.
    async fn is_http_2(&self, stream: &tokio::net::TcpStream, watch: &PeerWatch) -> Option<bool> {
        let first = async {
            let mut bytes = [0; HTTP_2_PREFACE.len()];
            loop {
                match stream.peek(&mut bytes).await {
                    Ok(read) if read > 0 && read < bytes.len() && HTTP_2_PREFACE.starts_with(&bytes[..read]) => {
                        self.clock.sleep(PREFACE_PAUSE).await;
                    }
                    Ok(read) => return bytes[..read] == *HTTP_2_PREFACE,
                    Err(_) => return false,
                }
            }
        };
        let mut first = std::pin::pin!(first);
        loop {
            tokio::select! {
                is_http_2 = first.as_mut() => return Some(is_http_2),
                () = self.closing() => return None,
                () = self.clock.sleep(LOOK_EVERY) => {
                    if watch.idle().is_some_and(|idle| idle > HEAD_MAX) {
                        return None;
                    }
                }
            }
        }
    }

    /// One connection from its first byte to its last.
    async fn run<T>(
        self: &Arc<Self>,
        stream: T,
        peer: Peer,
        router: Arc<Router>,
        watch: Arc<PeerWatch>,
        protocol: Protocol,
    ) where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let io = TokioIo::new(Watched::new(stream, watch.clone()));
        let service = service_fn({
            let (door, watch) = (self.clone(), watch.clone());
            let is_http_1 = matches!(protocol, Protocol::Http1);
            move |request| {
                // Set before the HTTP library looks for the end of the peer's bytes.
                if is_http_1 {
                    watch.hide_end();
                }
                door.clone().answer(request, peer, router.clone(), watch.clone())
            }
        });
        match protocol {
            Protocol::Http1 => {
                let connection = self.http_1().serve_connection(io, service);
                self.look_after(connection, |connection| connection.graceful_shutdown(), peer, &watch).await;
            }
            Protocol::Http2 { _share } => {
                let connection = self.http_2().serve_connection(io, service);
                self.look_after(connection, |connection| connection.graceful_shutdown(), peer, &watch).await;
            }
        }
    }

    /// Serves until either side ends it, or until nothing more is to be expected of the peer.
    async fn look_after<C: Future>(
        &self,
        connection: C,
        shut_down: impl Fn(std::pin::Pin<&mut C>),
        peer: Peer,
        watch: &PeerWatch,
    ) {
        let mut connection = std::pin::pin!(connection);
        let mut phase = self.phase.subscribe();
        let mut closing = false;
        loop {
            tokio::select! {
                _ = connection.as_mut() => return,
                _ = phase.wait_for(|phase| *phase == Phase::Cut) => return,
                _ = self.closing(), if !closing => {
                    closing = true;
                    // A request that waits for news answers without any.
                    watch.hurry();
                    shut_down(connection.as_mut());
                    continue;
                }
                () = watch.hurried(), if !closing => {
                    closing = true;
                    shut_down(connection.as_mut());
                    continue;
                }
                () = self.clock.sleep(LOOK_EVERY) => {}
            }
            if watch.stalled() > UNREAD_MAX {
                tracing::debug!("{} does not read its answer; the connection is closed", peer.ip);
                return;
            }
            if watch.idle().is_some_and(|idle| idle > IDLE_MAX) {
                return;
            }
            if watch.closed_for() > CLOSED_MAX {
                watch.report_eof();
            }
        }
    }

    async fn closing(&self) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.phase.subscribe().wait_for(|phase| *phase >= Phase::Closing).await;
    }

    fn http_2(&self) -> http2::Builder<TokioExecutor> {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(HTTP_2_WINDOW_BYTES)
            .initial_connection_window_size(HTTP_2_WINDOW_BYTES)
            .max_concurrent_streams(HTTP_2_STREAMS_MAX)
            .max_frame_size(16 * 1024)
            .max_header_list_size(HTTP_2_HEAD_BYTES)
            .max_send_buf_size(HTTP_2_UNSENT_BYTES)
            .max_pending_accept_reset_streams(HTTP_2_STREAMS_MAX as usize)
            .keep_alive_interval(Some(Duration::from_secs(30)))
            .keep_alive_timeout(Duration::from_secs(20));
        builder
    }

    fn http_1(&self) -> http1::Builder {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX).max_buf_size(self.sizes.buffer_bytes);
        builder
    }

    async fn answer(
        self: Arc<Self>,
        request: hyper::Request<Incoming>,
        peer: Peer,
        router: Arc<Router>,
        watch: Arc<PeerWatch>,
    ) -> Result<hyper::Response<Body>, Infallible> {
        let active = watch.begin();
        let started = self.clock.instant();
        let from = peer.ip;
        let peer = self.caller(&request, peer);
        let method = request.method().clone();
        // The path alone: a query may carry a token.
        let path =
            if tracing::enabled!(tracing::Level::DEBUG) { request.uri().path().to_owned() } else { String::new() };
        let has_place = peer.ip == from
            || self.places.lend(&watch, peer.ip, (self.origin)(peer.ip, None, &self.trusted_proxies.get()));
        let response = match has_place {
            true => router.dispatch(Request::new(request, peer, self.tools.clone(), watch.clone())).await,
            false => {
                self.turned_away.note(peer.ip, self.connections_open());
                router.refuse(request.uri().path(), ErrorResponse::no_place(NO_PLACE_RETRY_MS))
            }
        };
        let response = response.into_hyper();
        let mut response = self.paid(response);
        let took_ms = self.clock.instant().saturating_sub(started).as_millis();
        tracing::debug!(%method, path, status = response.status().as_u16(), took_ms, "answered");
        response.body_mut().attach(watch, active);
        Ok(response)
    }

    /// A whole answer may wait for a slow reader as long as any other. One larger than the connection's own share
    /// covers is charged to `response_bodies`; without memory it becomes 429.
    fn paid(&self, mut response: hyper::Response<Body>) -> hyper::Response<Body> {
        let unpaid = response.body().unpaid();
        if unpaid > ANSWER_FREE_BYTES {
            match self.answers.try_take(unpaid) {
                Ok(grant) => response.body_mut().paid_with(grant),
                Err(refused) => {
                    let mut refusal =
                        ErrorResponse::limit_exceeded(refused.retry_after_ms).into_response().into_hyper();
                    // Web apps of other origins may see it too.
                    let cors =
                        response.headers().iter().filter(|(name, _)| name.as_str().starts_with("access-control-"));
                    refusal.headers_mut().extend(cors.map(|(name, value)| (name.clone(), value.clone())));
                    return refusal;
                }
            }
        }
        response
    }

    /// The caller: as a trusted proxy says it, or the other end itself.
    fn caller(&self, request: &hyper::Request<Incoming>, peer: Peer) -> Peer {
        if !self.trusted_proxies.get().contains(&peer.ip.to_canonical()) {
            return peer;
        }
        let proto = request.headers().get_all("x-forwarded-proto").into_iter().next_back();
        let tls = proto.map_or(peer.tls, |proto| proto.as_bytes().eq_ignore_ascii_case(b"https"));
        Peer { ip: forwarded_for(request.headers()).unwrap_or(peer.ip), tls }
    }
}

/// The last address of the last `X-Forwarded-For` line: the caller may have written everything before it. A proxy that
/// adds a line of its own leaves the caller's line above it.
fn forwarded_for(headers: &HeaderMap) -> Option<IpAddr> {
    let last = headers.get_all("x-forwarded-for").into_iter().next_back()?.to_str().ok()?;
    let last = last.rsplit(',').next()?.trim();
    // Some add the port, and brackets around an IPv6 address.
    let bare = last.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(last);
    bare.parse().ok().or_else(|| last.parse().ok().map(|address: SocketAddr| address.ip()))
}

/// A connection among those open.
struct Counted(Arc<HttpServer>);

impl Counted {
    fn new(door: &Arc<HttpServer>) -> Self {
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
mod knock;
pub mod socket;

//! Connections to other servers: dialled over TLS, kept for a while, bounded in number and in bytes.
//!
//! HTTP/1.1 only. One connection costs at most [`CONNECTION_BYTES`], charged to the `outbound` account before it is
//! dialled; there are at most `connections_max` of them, `per_host_max` to one server. Idle ones are closed when an active
//! one needs their place, and after [`IDLE`] anyway.

use std::{collections::HashMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use ruma::{OwnedServerName, ServerName};
use rustls::{ClientConfig, RootCertStore, crypto::CryptoProvider};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use super::Failed;
use super::contact::{Contact, Whence};
use super::resolve::Target;
use crate::base::sort_few_by;
use crate::{
    base::Clock,
    budget::{Account, Grant, turn_with_memory},
};

/// A TLS record being read (16 KiB and its header), hyper's read buffer (16 KiB), the session and the task (8 KiB).
pub const CONNECTION_BYTES: u64 = 40 * 1024;
/// The head of an answer; also the size of the frames of a body.
const READ_BUFFER_BYTES: usize = 16 * 1024;
/// Encrypted bytes that wait to be sent.
const SEND_BUFFER_BYTES: usize = 8 * 1024;
const CONNECT: Duration = Duration::from_secs(5);
/// Before the next address of a server is tried beside the one that does not answer.
const NEXT_ADDRESS: Duration = Duration::from_millis(300);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Shorter than the idle timeouts common at peers (Synapse: 120 s, nginx: 75 s), so that a reused connection is seldom
/// closed already.
const IDLE: Duration = Duration::from_secs(50);

/// TLS sessions remembered for cheaper handshakes, about 2 KiB each.
const SESSIONS_MAX: usize = 64;

pub type Outgoing = Full<Bytes>;

/// Bounds of the pool, from the profile.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub connections_max: usize,
    pub per_host_max: usize,
}

/// Opens connections. Cheap to clone.
#[derive(Clone)]
pub struct Dialer {
    tls: TlsConnector,
    /// Hosts whose certificates are believed under a root of their own alone.
    friends: Arc<Vec<(String, TlsConnector)>>,
    pub account: Account,
    clock: Clock,
}

impl Dialer {
    pub fn new(roots: RootCertStore, account: Account, clock: Clock) -> Dialer {
        let tls = TlsConnector::from(Arc::new(client_config(roots, SESSIONS_MAX)));
        Dialer { tls, friends: Arc::default(), account, clock }
    }

    /// The same for hosts that have an authority of their own, each with its root in PEM. Nobody else is believed under
    /// that root, and such a host under no other.
    pub fn with_friends(self, friends: &[(String, Vec<u8>)]) -> Result<Dialer, String> {
        let friend = |(host, pem): &(String, Vec<u8>)| {
            let mut roots = RootCertStore::empty();
            add_roots(&mut roots, pem).map_err(|error| format!("the root of {host} {error}"))?;
            let config = client_config(roots, 2);
            Ok::<_, String>((host.to_ascii_lowercase(), TlsConnector::from(Arc::new(config))))
        };
        let friends = friends.iter().map(friend).collect::<Result<_, _>>()?;
        Ok(Dialer { friends: Arc::new(friends), ..self })
    }

    fn connector(&self, target: &Target) -> &TlsConnector {
        let host = target.tls_name.to_str();
        let friend = self.friends.iter().find(|(friend, _)| friend.eq_ignore_ascii_case(&host));
        friend.map_or(&self.tls, |(_, connector)| connector)
    }

    /// Connects to the first address that answers and checks its certificate. At most [`CONNECT`] and the pauses between
    /// addresses, then one [`HANDSHAKE`]. The machine that answered is noted in `contact`.
    pub async fn dial(&self, target: &Target, grant: Grant, contact: &Contact) -> Result<Connection, Failed> {
        let (address, stream) = self.reach(&target.addresses, contact).await?;
        // Of a long body, only the bytes that go out soon are encrypted; rustls would take 64 KiB.
        let shake = self.connector(target).connect_with(target.tls_name.clone(), stream, |session| {
            session.set_buffer_limit(Some(SEND_BUFFER_BYTES));
        });
        match self.clock.timeout(HANDSHAKE, shake).await {
            Some(Ok(stream)) => speak_http(stream, address, grant).await,
            Some(Err(error)) => {
                Err(Failed::unreachable(format!("the TLS handshake with {} failed: {error}", target.host)))
            }
            None => Err(Failed::unreachable(format!("{} does not finish the TLS handshake", target.host))),
        }
    }

    /// The same without TLS.
    pub async fn dial_plain(&self, target: &Target, grant: Grant, contact: &Contact) -> Result<Connection, Failed> {
        let (address, stream) = self.reach(&target.addresses, contact).await?;
        speak_http(stream, address, grant).await
    }

    /// A connection to the first address that takes one. An address that does not answer at once keeps the next one
    /// waiting for [`NEXT_ADDRESS`] only ("Happy Eyeballs", RFC 8305).
    async fn reach(&self, addresses: &[SocketAddr], contact: &Contact) -> Result<(SocketAddr, TcpStream), Failed> {
        let mut asking = JoinSet::new();
        let mut why = "no address".to_owned();
        for address in addresses.iter().copied() {
            let clock = self.clock.clone();
            asking.spawn(async move {
                let connected = clock.timeout(CONNECT, TcpStream::connect(address)).await;
                (address, connected)
            });
            let pause = self.clock.timeout(NEXT_ADDRESS, asking.join_next()).await;
            if let Some(Some(Ok(tried))) = pause
                && let (address, Some(stream)) = (tried.0, taken(tried, contact, &mut why))
            {
                return Ok((address, stream));
            }
        }
        while let Some(tried) = asking.join_next().await {
            if let Ok(tried) = tried
                && let (address, Some(stream)) = (tried.0, taken(tried, contact, &mut why))
            {
                return Ok((address, stream));
            }
        }
        Err(Failed::Unreachable { why, silent: contact.whence() == Whence::Nowhere })
    }
}

/// The stream of one attempt to connect; else says in `why` what was wrong with it.
fn taken(
    (address, connected): (SocketAddr, Option<std::io::Result<TcpStream>>),
    contact: &Contact,
    why: &mut String,
) -> Option<TcpStream> {
    match connected {
        Some(Ok(stream)) => {
            contact.note_answer(address);
            // Small requests and their answers must not wait for Nagle's algorithm.
            stream.set_nodelay(true).ok();
            return Some(stream);
        }
        Some(Err(error)) => {
            if error.kind() == std::io::ErrorKind::ConnectionRefused {
                contact.note_answer(address);
            }
            *why = format!("{address}: {error}");
        }
        None => *why = format!("{address} does not answer"),
    }
    None
}

async fn speak_http(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    address: SocketAddr,
    grant: Grant,
) -> Result<Connection, Failed> {
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(READ_BUFFER_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| Failed::unreachable(error.to_string()))?;
    // Ends when `sender` is dropped or the peer closes; an error shows at the request it concerns.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(Connection { sender, address, _grant: grant })
}

pub struct Connection {
    pub sender: http1::SendRequest<Outgoing>,
    /// Of the other end.
    address: SocketAddr,
    /// Pays for the connection's buffers.
    _grant: Grant,
}

/// The webpki roots and, for closed networks, the certificates of a PEM file.
pub fn roots(extra_ca_pem: Option<&[u8]>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(pem) = extra_ca_pem {
        add_roots(&mut roots, pem).map_err(|error| format!("the extra CA file {error}"))?;
    }
    Ok(roots)
}

fn add_roots(roots: &mut RootCertStore, pem: &[u8]) -> Result<(), String> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    for found in CertificateDer::pem_slice_iter(pem) {
        let certificate = found.map_err(|error| format!("is not PEM: {error}"))?;
        roots.add(certificate).map_err(|error| format!("contains an unusable certificate: {error}"))?;
    }
    Ok(())
}

fn client_config(roots: RootCertStore, sessions_max: usize) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has suites for TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = rustls::client::Resumption::in_memory_sessions(sessions_max);
    config
}

/// ChaCha20 is offered first where the processor has no AES instructions: there it is several times cheaper.
fn provider() -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    if !has_aes() {
        let aside = |suite: &rustls::SupportedCipherSuite| !format!("{:?}", suite.suite()).contains("CHACHA20");
        sort_few_by(&mut provider.cipher_suites, aside);
    }
    provider
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// The pool of connections. Cheap to clone.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    account: Account,
    all: Arc<Semaphore>,
    per_host_max: usize,
    hosts: Mutex<HashMap<OwnedServerName, Host>>,
    clock: Clock,
}

/// Present while a server has a connection in use or idle.
struct Host {
    turns: Arc<Semaphore>,
    /// Of those, the ones for answers that may go on for an hour; the rest is for short requests meanwhile.
    long: Arc<Semaphore>,
    idle: Vec<Idle>,
}

struct Idle {
    connection: Connection,
    permit: OwnedSemaphorePermit,
    since: Duration,
}

/// A connection in use. Returned to the pool by [`Lease::give_back`]; a dropped lease closes it.
pub struct Lease {
    pool: Pool,
    server: OwnedServerName,
    connection: Option<Connection>,
    /// Declared after the connection: the place is free once the connection is gone.
    permit: Option<OwnedSemaphorePermit>,
    _turns: Turns,
    reused: bool,
}

/// Turns at one server.
struct Turns {
    _any: OwnedSemaphorePermit,
    _long: Option<OwnedSemaphorePermit>,
}

impl Pool {
    pub fn new(account: Account, limits: Limits, clock: Clock) -> Pool {
        Pool(Arc::new(Inner {
            account,
            all: Arc::new(Semaphore::new(limits.connections_max.max(1))),
            per_host_max: limits.per_host_max.max(1),
            hosts: Mutex::new(HashMap::new()),
            clock,
        }))
    }

    /// A connection to a server: an idle one, or the one that `connect` makes. Waits for a turn when the server or the
    /// pool has all it may have. Requests for `long` answers leave one of a server's connections free.
    pub async fn lease<F>(
        &self,
        server: &ServerName,
        fresh: bool,
        long: bool,
        connect: impl FnOnce(Grant) -> F,
    ) -> Result<Lease, Failed>
    where
        F: Future<Output = Result<Connection, Failed>>,
    {
        let turns = self.turns(server, long).await;
        if !fresh && let Some(idle) = self.take_idle(server) {
            return Ok(self.leased(server, idle.connection, idle.permit, turns, true));
        }
        let (permit, grant) = self.place().await?;
        // One that was given back meanwhile costs nothing more.
        if !fresh && let Some(idle) = self.take_idle(server) {
            return Ok(self.leased(server, idle.connection, idle.permit, turns, true));
        }
        let connection = connect(grant).await?;
        Ok(self.leased(server, connection, permit, turns, false))
    }

    fn leased(
        &self,
        server: &ServerName,
        connection: Connection,
        permit: OwnedSemaphorePermit,
        turns: Turns,
        reused: bool,
    ) -> Lease {
        let (connection, permit) = (Some(connection), Some(permit));
        Lease { pool: self.clone(), server: server.to_owned(), connection, permit, _turns: turns, reused }
    }

    async fn turns(&self, server: &ServerName, long: bool) -> Turns {
        let (all, long_ones) = {
            let mut hosts = self.0.hosts.lock();
            let host = hosts.entry(server.to_owned()).or_insert_with(|| Host {
                turns: Arc::new(Semaphore::new(self.0.per_host_max)),
                long: Arc::new(Semaphore::new((self.0.per_host_max - 1).max(1))),
                idle: Vec::new(),
            });
            (host.turns.clone(), long.then(|| host.long.clone()))
        };
        let _long = match long_ones {
            Some(long) => Some(long.acquire_owned().await.expect("never closed")),
            None => None,
        };
        Turns { _any: all.acquire_owned().await.expect("never closed"), _long }
    }

    /// A place in the pool, with the bytes of one connection; the oldest idle connection makes room for either. Whoever waits for
    /// memory leaves the place to others.
    async fn place(&self) -> Result<(OwnedSemaphorePermit, Grant), Failed> {
        let Inner { account, all, clock, .. } = &*self.0;
        if all.available_permits() == 0 || !account.has_now(CONNECTION_BYTES) {
            self.close_oldest_idle();
        }
        Ok(turn_with_memory(clock, all, account, CONNECTION_BYTES).await?)
    }

    /// Whether somebody may wait for a place, or for the memory that one holds.
    fn is_awaited(&self) -> bool {
        self.0.all.available_permits() == 0 || self.0.account.is_awaited()
    }

    fn take_idle(&self, server: &ServerName) -> Option<Idle> {
        let now = self.0.clock.instant();
        let mut hosts = self.0.hosts.lock();
        let idle = &mut hosts.get_mut(server)?.idle;
        idle.retain(|idle| idle.usable(now));
        idle.pop()
    }

    fn close_oldest_idle(&self) {
        let mut hosts = self.0.hosts.lock();
        let oldest = hosts.values_mut().filter(|host| !host.idle.is_empty()).min_by_key(|host| host.idle[0].since);
        if let Some(host) = oldest {
            host.idle.remove(0);
        }
    }

    /// Closes connections that have been idle too long and forgets servers without connections. Called now and then;
    /// bounded by the pool.
    pub fn tidy(&self) {
        let now = self.0.clock.instant();
        let per_host_max = self.0.per_host_max;
        self.0.hosts.lock().retain(|_, host| {
            host.idle.retain(|idle| idle.usable(now));
            // A clone elsewhere means that a task is about to ask for a turn.
            let unused = host.turns.available_permits() == per_host_max && Arc::strong_count(&host.turns) == 1;
            !(host.idle.is_empty() && unused)
        });
    }
}

impl Idle {
    fn usable(&self, now: Duration) -> bool {
        self.connection.sender.is_ready() && now.saturating_sub(self.since) < IDLE
    }
}

impl Lease {
    /// Whether this connection has already answered before: a failure on it may only mean that the peer closed it meanwhile.
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    /// Where the other end is, as long as the connection was not given back.
    pub fn address(&self) -> Option<SocketAddr> {
        self.connection.as_ref().map(|connection| connection.address)
    }

    /// Sends a request and waits for the head of the answer.
    pub async fn send(&mut self, request: Request<Outgoing>) -> Result<Response<Incoming>, hyper::Error> {
        let connection = self.connection.as_mut().expect("present until given back");
        connection.sender.send_request(request).await
    }

    /// After the whole answer was read: the connection may serve the next request.
    pub fn give_back(mut self) {
        let (Some(connection), Some(permit)) = (self.connection.take(), self.permit.take()) else { return };
        // A task may be waiting for the place or its memory: then they are worth more than a warm connection.
        if connection.sender.is_closed() || self.pool.is_awaited() {
            return;
        }
        let since = self.pool.0.clock.instant();
        let mut hosts = self.pool.0.hosts.lock();
        if let Some(host) = hosts.get_mut(&self.server) {
            host.idle.push(Idle { connection, permit, since });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::testing::settled;
    use crate::budget::Budget;

    /// One that waited for memory kept its place in the pool: nobody else had one for half a minute.
    #[tokio::test]
    async fn who_waits_for_memory_leaves_the_place_to_others() {
        let (clock, account) = (Clock::simulated(1_000_000), Budget::for_tests().account("outbound"));
        let limits = Limits { connections_max: 1, per_host_max: 1 };
        let pool = Pool::new(account.clone(), limits, clock);
        let all = account.try_take(account.limit()).unwrap();
        let waiting = pool.clone();
        let waits = tokio::spawn(async move {
            let server = OwnedServerName::try_from("a.test").unwrap();
            let connect = |grant: Grant| async move { Err(Failed::Unsendable(grant.bytes().to_string())) };
            waiting.lease(&server, false, false, connect).await.err().map(|failed| failed.to_string())
        });
        settled().await;
        assert!(account.is_awaited() && !waits.is_finished());
        assert_eq!(pool.0.all.available_permits(), 1);
        // Its memory comes while another has the place.
        let place = pool.0.all.clone().acquire_owned().await.unwrap();
        drop(all);
        settled().await;
        assert_eq!((waits.is_finished(), account.used()), (false, 0));
        drop(place);
        let said = waits.await.unwrap().unwrap();
        assert!(said.contains(&CONNECTION_BYTES.to_string()), "{said}");
        assert_eq!((pool.0.all.available_permits(), account.used()), (1, 0));
    }
}

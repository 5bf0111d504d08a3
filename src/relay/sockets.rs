//! Where messages come in: UDP sockets, and streams over TCP and TLS.
//!
//! A stream that has logged nobody in is closed after [`UNPROVEN`], and all of those together take half of the account at
//! most. When that is taken, one that comes gets the place of another: of the network that has most of them, or of one that has had
//! its time ([`YIELDS_AFTER`]). So no network keeps the others out, and none is shut out by what does not log in. A stream
//! that has is closed as long after the end of its allocation.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::message::{MESSAGE_BYTES_MAX, length_in_stream};
use super::table::Client;
use super::way::{Queue, Way};
use super::{Charge, Inner, Relay, network};

/// A stream: twice its queue, what is read, the task.
const STREAM_BYTES: u64 = 56 * 1024;
/// With TLS: a record on its way in and one on its way out besides.
const TLS_STREAM_BYTES: u64 = 96 * 1024;
const TLS_SEND_BYTES: usize = 16 * 1024;
/// Until somebody has an allocation, and after it.
const UNPROVEN: Duration = Duration::from_secs(15);
/// Until another may have its place: a phone logs in within a few answers.
const YIELDS_AFTER: Duration = Duration::from_secs(3);
/// A client that takes nothing for so long is gone.
const WRITE: Duration = Duration::from_secs(20);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// When no more files can be opened.
const PAUSE: Duration = Duration::from_millis(500);
/// Datagrams in a row, before others have their turn.
const TURN: usize = 32;

/// A connection of bytes in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Relay {
    /// Opens a UDP socket. Answers its address, and the task that serves it.
    pub async fn serve_udp(&self, address: SocketAddr) -> io::Result<(SocketAddr, JoinHandle<()>)> {
        let socket = UdpSocket::bind(address).await?;
        let address = socket.local_addr()?;
        let (relay, listener) = (self.0.clone(), self.0.listeners.fetch_add(1, Ordering::Relaxed));
        Ok((address, tokio::spawn(relay.receive(Arc::new(socket), listener))))
    }

    /// Opens a port for streams, with TLS when there is a certificate.
    pub async fn serve_tcp(
        &self,
        address: SocketAddr,
        tls: Option<Arc<ServerConfig>>,
    ) -> io::Result<(SocketAddr, JoinHandle<()>)> {
        let socket = TcpListener::bind(address).await?;
        let address = socket.local_addr()?;
        let (relay, listener) = (self.0.clone(), self.0.listeners.fetch_add(1, Ordering::Relaxed));
        Ok((address, tokio::spawn(relay.accept(socket, tls.map(without_http), listener))))
    }
}

/// What is spoken here has another name than HTTP (RFC 7443); browsers say none.
fn without_http(config: Arc<ServerConfig>) -> TlsAcceptor {
    let mut config = Arc::unwrap_or_clone(config);
    config.alpn_protocols.clear();
    TlsAcceptor::from(Arc::new(config))
}

impl Inner {
    async fn receive(self: Arc<Inner>, socket: Arc<UdpSocket>, listener: u16) {
        let mut stopping = self.stopping.subscribe();
        loop {
            tokio::select! {
                ready = socket.readable() => if ready.is_err() { self.parts.clock.sleep(PAUSE).await },
                () = stopped(&mut stopping) => return,
            }
            self.take_datagrams(&socket, listener);
        }
    }

    fn take_datagrams(self: &Arc<Inner>, socket: &Arc<UdpSocket>, listener: u16) {
        let mut bytes = [0; MESSAGE_BYTES_MAX + 1];
        for _ in 0..TURN {
            match socket.try_recv_from(&mut bytes) {
                Ok((length, from)) if length <= MESSAGE_BYTES_MAX => {
                    self.arrived(&bytes[..length], (listener, from), &Way::Datagrams(socket.clone(), from));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {}
            }
        }
    }

    async fn accept(self: Arc<Inner>, listener: TcpListener, tls: Option<TlsAcceptor>, number: u16) {
        let mut stopping = self.stopping.subscribe();
        let bytes = if tls.is_some() { TLS_STREAM_BYTES } else { STREAM_BYTES };
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stopped(&mut stopping) => return,
            };
            let Ok((stream, from)) = accepted else {
                self.parts.clock.sleep(PAUSE).await;
                continue;
            };
            // Without memory the connection is closed at once: the app tries UDP, or later.
            let Some(unproven) = Unproven::new(&self, bytes, from.ip()) else { continue };
            let Some(charge) = self.charge(bytes) else { continue };
            let (relay, tls) = (self.clone(), tls.clone());
            tokio::spawn(async move { relay.greet(stream, tls, (number, from), unproven, charge).await });
        }
    }

    async fn greet(
        self: Arc<Inner>,
        stream: TcpStream,
        tls: Option<TlsAcceptor>,
        client: Client,
        unproven: Unproven,
        _charge: Charge,
    ) {
        let _ = stream.set_nodelay(true);
        let gone = unproven.gone.clone();
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(stream),
            Some(tls) => {
                let shake = tls.accept_with(stream, |session| session.set_buffer_limit(Some(TLS_SEND_BYTES)));
                let shaken = tokio::select! {
                    shaken = self.parts.clock.timeout(HANDSHAKE, shake) => shaken,
                    () = gone.notified() => return,
                };
                match shaken {
                    Some(Ok(stream)) => Box::new(stream),
                    _ => return,
                }
            }
        };
        let mut stopping = self.stopping.subscribe();
        tokio::select! {
            _ = self.talk(stream, client, unproven) => {}
            // Nobody has logged in yet, or there would be no place to take.
            () = gone.notified() => {}
            () = stopped(&mut stopping) => {}
        }
        // The allocation ends with its stream (RFC 8656, section 3.1).
        let left = self.table.lock().by_client.get(&client).cloned();
        if let Some(left) = left {
            self.table.lock().remove(&left);
            left.state().until = Duration::ZERO;
            left.shortened.notify_one();
        }
    }

    /// Reads messages and writes what waits, until the stream ends.
    async fn talk(self: &Arc<Inner>, stream: Box<dyn Stream>, client: Client, unproven: Unproven) -> Option<()> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let (queue, clock) = (Arc::new(Queue::default()), &self.parts.clock);
        let way = Way::Stream(queue.clone());
        let mut held = vec![0; MESSAGE_BYTES_MAX];
        let (mut length, mut unproven) = (0, Some(unproven));
        // Since when there is no allocation.
        let mut idle_since = clock.instant();
        loop {
            let known = self.table.lock().by_client.get(&client).cloned();
            let until = known.map(|allocation| allocation.state().until);
            let patience = match until {
                // It asks for more time before its allocation ends.
                Some(until) => until.saturating_sub(clock.instant()) + UNPROVEN,
                None => (idle_since + UNPROVEN).saturating_sub(clock.instant()),
            };
            // Who sends without a pause is never waited for, and would otherwise stay for ever.
            if patience.is_zero() {
                return None;
            }
            let read = tokio::select! {
                read = clock.timeout(patience, reader.read(&mut held[length..])) => Some(read?.ok()?),
                waiting = queue.take() => {
                    // Each message is a TLS record of its own, since coturn's client reads one message a record.
                    let mut rest = &waiting[..];
                    while !rest.is_empty() {
                        let length = length_in_stream(rest).ok().flatten().unwrap_or(rest.len());
                        let (message, after) = rest.split_at(length.min(rest.len()));
                        clock.timeout(WRITE, writer.write_all(message)).await?.ok()?;
                        rest = after;
                    }
                    clock.timeout(WRITE, writer.flush()).await?.ok()?;
                    None
                }
            };
            if until.is_some() {
                idle_since = clock.instant();
            }
            let Some(read) = read else { continue };
            if read == 0 {
                return None;
            }
            length += read;
            while let Some(message) = length_in_stream(&held[..length]).ok()?.filter(|message| *message <= length) {
                self.arrived(&held[..message], client, &way);
                held.copy_within(message..length, 0);
                length -= message;
            }
            if unproven.is_some() && self.table.lock().by_client.contains_key(&client) {
                unproven = None;
            }
        }
    }
}

async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// The streams that have logged nobody in: as many as half of the account pays for, some tens.
#[derive(Default)]
pub(super) struct Strangers {
    places: Vec<Place>,
    /// Of the next place.
    next: u64,
}

struct Place {
    id: u64,
    network: [u8; 9],
    since: Duration,
    bytes: u64,
    /// Told when it has to go.
    gone: Arc<Notify>,
}

impl Strangers {
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.places.len()
    }

    fn bytes(&self) -> u64 {
        self.places.iter().map(|place| place.bytes).sum()
    }

    /// Makes room for so many bytes within `limit`; false, and nobody goes, when there is not enough for `network`.
    fn make_room(&mut self, bytes: u64, limit: u64, network: &[u8; 9], now: Duration) -> bool {
        let mut going = Vec::new();
        while !self.places.is_empty() && self.bytes() + bytes > limit {
            let of = |network: &[u8; 9]| self.places.iter().filter(|place| place.network == *network).count();
            let own = of(network);
            // Of each network the oldest stands first.
            let goes = self.places.iter().enumerate().filter(|(_, place)| {
                let has_more = of(&place.network) > own + 1;
                has_more || now.saturating_sub(place.since) >= YIELDS_AFTER
            });
            let Some((at, _)) = goes.max_by_key(|(at, place)| (of(&place.network), usize::MAX - at)) else {
                // Each back where it stood.
                while let Some((at, place)) = going.pop() {
                    self.places.insert(at, place);
                }
                return false;
            };
            going.push((at, self.places.remove(at)));
        }
        going.iter().for_each(|(_, place)| place.gone.notify_one());
        true
    }
}

/// A stream that has logged nobody in.
struct Unproven {
    relay: Arc<Inner>,
    id: u64,
    gone: Arc<Notify>,
}

impl Unproven {
    fn new(relay: &Arc<Inner>, bytes: u64, ip: IpAddr) -> Option<Unproven> {
        let (limit, network) = ((relay.parts.account.limit() / 2).max(bytes), household(ip));
        let (since, gone) = (relay.parts.clock.instant(), Arc::new(Notify::new()));
        let mut strangers = relay.unproven.lock();
        if !strangers.make_room(bytes, limit, &network, since) {
            return None;
        }
        let id = strangers.next;
        strangers.next += 1;
        strangers.places.push(Place { id, network, since, bytes, gone: gone.clone() });
        Some(Unproven { relay: relay.clone(), id, gone })
    }
}

impl Drop for Unproven {
    fn drop(&mut self) {
        self.relay.unproven.lock().places.retain(|place| place.id != self.id);
    }
}

/// Who may open many streams for nothing: a /24 of IPv4, a /48 of IPv6.
fn household(ip: IpAddr) -> [u8; 9] {
    let mut network = network(ip);
    network[6..8].fill(0);
    network
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// One network opened as many streams as there were places for, and nobody else's phone could log in.
    #[test]
    fn no_network_keeps_the_others_out() {
        let mut strangers = Strangers::default();
        let mut come = |ip: &str, now: Duration| {
            let network = household(ip.parse().unwrap());
            let has_place = strangers.make_room(1, 4, &network, now);
            if has_place {
                let (id, gone) = (strangers.next, Arc::default());
                strangers.next += 1;
                strangers.places.push(Place { id, network, since: now, bytes: 1, gone });
            }
            let ids = strangers.places.iter().map(|place| place.id).collect::<Vec<_>>();
            (has_place, ids)
        };
        for n in 0..4 {
            assert!(come(&format!("198.51.100.{n}"), at(10)).0);
        }
        assert_eq!(come("198.51.100.9", at(10)), (false, vec![0, 1, 2, 3]), "its own places are all young");
        assert_eq!(come("2001:db8:1::1", at(10)), (true, vec![1, 2, 3, 4]));
        assert_eq!(come("2001:db8:1:ffff::1", at(10)), (true, vec![2, 3, 4, 5]), "two of each now");
        assert_eq!(come("2001:db8:1:2::1", at(12)), (false, vec![2, 3, 4, 5]));
        assert_eq!(come("203.0.113.1", at(12)), (true, vec![3, 4, 5, 6]), "a third has one");
        assert_eq!(come("203.0.113.1", at(13)), (true, vec![3, 5, 6, 7]), "those that had their time go");
    }

    /// A stream with TLS takes more than one without: where one place was too little for it, that one was lost for nothing.
    #[test]
    fn nobody_goes_when_that_is_not_enough() {
        let mut strangers = Strangers::default();
        let (a, b) = ([1; 9], [2; 9]);
        for id in 0..2 {
            strangers.places.push(Place { id, network: a, since: at(10), bytes: 2, gone: Arc::default() });
        }
        assert!(!strangers.make_room(3, 4, &b, at(10)));
        assert_eq!(strangers.places.iter().map(|place| place.id).collect::<Vec<_>>(), [0, 1]);
        assert!(strangers.make_room(3, 4, &b, at(13)));
        assert_eq!(strangers.count(), 0);
    }
}

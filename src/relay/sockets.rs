//! Where messages come in: UDP sockets, and streams over TCP and TLS.
//!
//! A stream that has logged nobody in is closed after [`UNPROVEN`], and all of those together take half of the account at
//! most. One that has is closed as long after the end of its allocation.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::message::{MESSAGE_BYTES_MAX, length_in_stream};
use super::table::Client;
use super::way::{Queue, Way};
use super::{Charge, Inner, Relay};

/// A stream: twice its queue, what is read, the task.
const STREAM_BYTES: u64 = 56 * 1024;
/// With TLS: a record on its way in and one on its way out besides.
const TLS_STREAM_BYTES: u64 = 96 * 1024;
const TLS_SEND_BYTES: usize = 16 * 1024;
/// Until somebody has an allocation, and after it.
const UNPROVEN: Duration = Duration::from_secs(15);
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
            let Some(unproven) = Unproven::new(&self, bytes) else { continue };
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
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(stream),
            Some(tls) => {
                let shake = tls.accept_with(stream, |session| session.set_buffer_limit(Some(TLS_SEND_BYTES)));
                match self.parts.clock.timeout(HANDSHAKE, shake).await {
                    Some(Ok(stream)) => Box::new(stream),
                    _ => return,
                }
            }
        };
        let mut stopping = self.stopping.subscribe();
        tokio::select! {
            _ = self.talk(stream, client, unproven) => {}
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

/// A stream that has logged nobody in.
struct Unproven(Arc<Inner>, u64);

impl Unproven {
    fn new(relay: &Arc<Inner>, bytes: u64) -> Option<Unproven> {
        let limit = relay.parts.account.limit() / 2;
        let is_room = |taken: u64| taken.checked_add(bytes).filter(|taken| *taken <= limit.max(bytes));
        relay.unproven.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_room).ok()?;
        Some(Unproven(relay.clone(), bytes))
    }
}

impl Drop for Unproven {
    fn drop(&mut self) {
        self.0.unproven.fetch_sub(self.1, Ordering::Relaxed);
    }
}

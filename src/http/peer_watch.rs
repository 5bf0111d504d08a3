//! What a connection expects from its peer, and since when.
//!
//! One per connection. Response pieces hold a ticket from the moment they are handed to the HTTP library until their
//! last byte has left; the socket notes when a write would block. The connection's own loop looks every few seconds and
//! hangs up on a peer that reads nothing, even where the protocol version hides that.
//!
//! When another caller needs the connection's place, the watch tells what the connection is doing: nothing, waiting for
//! news, or transferring bytes, and how fast ([`Doing`]).
//!
//! A peer that closes its side while an HTTP/1 request is answered may be gone, or may be `printf … | nc`, which still
//! wants the answer. The HTTP library would drop the request, so the end is hidden from it until the answer has left
//! (most answers come soon), or nothing has been sent for too long. A request that waits only while its peer listens
//! says so, and ends at once.

use parking_lot::{Mutex, MutexGuard};

use crate::base::Clock;
use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// The largest record, and the 4 KiB that rustls reads at once besides.
const UNDECIDED_MAX: usize = 24 * 1024;

/// The window over which a peer's pace is measured.
const PACE_WINDOW: Duration = Duration::from_secs(2);
/// A peer slower than this, in either direction, loses its place while others wait for it.
const SLOW_BYTES_PER_S: u64 = 8 * 1024;

pub struct PeerWatch {
    clock: Clock,
    /// Encrypted bytes taken from the socket since the last complete record or handshake step.
    undecided: AtomicUsize,
    /// The maximum of undecided bytes was reached, and the reader was told to process what it has.
    told_enough: AtomicBool,
    /// When the first write blocked, in ms + 1; zero while writes do not block.
    write_blocked_ms: AtomicU64,
    /// Requests whose answers are not finished.
    active: AtomicUsize,
    /// When the first of the active requests began, in ms.
    busy_since_ms: AtomicU64,
    /// Whether the last of the active requests waits for something new.
    waiting: AtomicBool,
    /// Bodies whose next piece is being waited for.
    reading: AtomicUsize,
    pace: Mutex<Pace>,
    /// The number of the connection's place, plus one; zero for none.
    seat: AtomicU64,
    /// Whether a waiting request is to be answered now.
    hurried: AtomicBool,
    hurry: Notify,
    /// When the last request finished, or the connection began, in ms.
    quiet_since_ms: AtomicU64,
    /// Ticket → when it was taken, in ms. Bounded by the pieces the HTTP library buffers: a few for each stream.
    tickets: Mutex<BTreeMap<u64, u64>>,
    next: AtomicU64,
    end: Mutex<End>,
    /// Told when the peer has closed its side and the HTTP library does not know yet.
    closed: Notify,
}

/// What a connection is doing, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// No request, or an incomplete head.
    Idle(Duration),
    /// The peer takes or sends the expected bytes, at this many bytes a second.
    Slow(u64),
    /// The peer takes or sends the expected bytes.
    Moves(Duration),
    /// The request waits for something new to report.
    Waits(Duration),
    /// The request is being worked on.
    Works(Duration),
}

impl Doing {
    /// Whether ending the connection loses little: idle for that long, or hardly moving.
    pub fn lingers(self, least: Duration) -> bool {
        match self {
            Self::Idle(since) => since >= least,
            Self::Slow(_) => true,
            _ => false,
        }
    }

    /// Whether it lingers, or waits for news that its client can ask for again.
    pub fn waits_for(self, least: Duration) -> bool {
        self.lingers(least) || matches!(self, Self::Waits(since) if since >= least)
    }

    /// Whether its peer has been served for that long, and can come again.
    pub fn lasts(self, least: Duration) -> bool {
        matches!(self, Self::Moves(since) | Self::Waits(since) if since >= least)
    }

    /// A higher rank means less is lost by ending the connection.
    pub fn rank(self) -> u8 {
        match self {
            Self::Idle(_) => 4,
            Self::Slow(_) => 3,
            Self::Waits(_) => 2,
            Self::Moves(_) => 1,
            Self::Works(_) => 0,
        }
    }

    /// Orders connections of one rank: the longer, or the slower, the higher.
    pub fn measure(self) -> u64 {
        match self {
            Self::Slow(per_s) => u64::MAX - per_s,
            Self::Idle(since) | Self::Moves(since) | Self::Waits(since) | Self::Works(since) => {
                since.as_millis() as u64
            }
        }
    }
}

/// How fast the peer takes and sends bytes, in windows of [`PACE_WINDOW`].
#[derive(Default)]
struct Pace {
    since_ms: u64,
    bytes: u64,
    /// When bytes last moved or something was last expected, in ms.
    at_ms: u64,
    /// The pace in the window before.
    per_s: Option<u64>,
}

impl Pace {
    /// From now on bytes are expected of the peer, where none were before.
    fn expect(&mut self, now_ms: u64) {
        if now_ms.saturating_sub(self.at_ms) >= PACE_WINDOW.as_millis() as u64 {
            *self = Self { since_ms: now_ms, ..Self::default() };
        }
        self.at_ms = now_ms;
    }

    fn moved(&mut self, bytes: u64, now_ms: u64) {
        if now_ms.saturating_sub(self.since_ms) >= PACE_WINDOW.as_millis() as u64 {
            *self = Self { per_s: self.per_s(now_ms), since_ms: now_ms, bytes: 0, at_ms: now_ms };
        }
        self.bytes += bytes;
        self.at_ms = now_ms;
    }

    /// None until the first window is over.
    fn per_s(&self, now_ms: u64) -> Option<u64> {
        if now_ms.saturating_sub(self.at_ms) >= PACE_WINDOW.as_millis() as u64 {
            return Some(0);
        }
        let length = now_ms.saturating_sub(self.since_ms);
        if length >= PACE_WINDOW.as_millis() as u64 { Some(self.bytes * 1000 / length) } else { self.per_s }
    }
}

/// The end of the peer's bytes.
#[derive(Default)]
struct End {
    /// Whether the end is kept from the HTTP library.
    hidden: bool,
    /// Whether the end came while it was hidden.
    came: bool,
    /// Since when nothing has been sent to a peer that has closed its side, in ms.
    silent_since_ms: u64,
    /// The connection's task, which reads on when the end is no longer hidden.
    reader: Option<Waker>,
}

impl PeerWatch {
    pub fn new(clock: Clock) -> Arc<Self> {
        let now = millis(&clock);
        Arc::new(Self {
            clock,
            undecided: AtomicUsize::new(0),
            told_enough: AtomicBool::new(false),
            write_blocked_ms: AtomicU64::new(0),
            active: AtomicUsize::new(0),
            busy_since_ms: AtomicU64::new(now),
            waiting: AtomicBool::new(false),
            reading: AtomicUsize::new(0),
            pace: Mutex::default(),
            seat: AtomicU64::new(0),
            hurried: AtomicBool::new(false),
            hurry: Notify::new(),
            quiet_since_ms: AtomicU64::new(now),
            tickets: Mutex::default(),
            next: AtomicU64::new(0),
            end: Mutex::default(),
            closed: Notify::new(),
        })
    }

    /// A request begins; it ends when the result is dropped.
    pub fn begin(self: &Arc<Self>) -> Active {
        if self.active.fetch_add(1, Relaxed) == 0 {
            self.busy_since_ms.store(millis(&self.clock), Relaxed);
        }
        self.waiting.store(false, Relaxed);
        Active(self.clone())
    }

    /// From here on the request waits for something new.
    pub fn wait(&self) {
        self.waiting.store(true, Relaxed);
    }

    /// Waits for the next piece of a body, until the result is dropped.
    pub fn read(&self) -> Reading<'_> {
        if self.reading.fetch_add(1, Relaxed) == 0 {
            self.expect();
        }
        Reading(self)
    }

    /// What the connection is doing now.
    pub fn doing(&self) -> Doing {
        if let Some(idle) = self.idle() {
            return Doing::Idle(idle);
        }
        let now = millis(&self.clock);
        let since = Duration::from_millis(now.saturating_sub(self.busy_since_ms.load(Relaxed)));
        let is_up_to_peer = self.reading.load(Relaxed) > 0
            || self.write_blocked_ms.load(Relaxed) > 0
            || !self.tickets.lock().is_empty();
        match self.pace().per_s(now) {
            Some(per_s) if is_up_to_peer && per_s < SLOW_BYTES_PER_S => Doing::Slow(per_s),
            _ if is_up_to_peer => Doing::Moves(since),
            _ if self.waiting.load(Relaxed) => Doing::Waits(since),
            _ => Doing::Works(since),
        }
    }

    /// Notes the connection's number among the places.
    pub fn sit(&self, seat: u64) {
        self.seat.store(seat + 1, Relaxed);
    }

    pub fn seat(&self) -> Option<u64> {
        self.seat.load(Relaxed).checked_sub(1)
    }

    /// The place is needed: a waiting request is to be answered now.
    pub fn hurry(&self) {
        self.hurried.store(true, SeqCst);
        self.hurry.notify_waiters();
    }

    /// Waits until the connection's place is needed.
    pub async fn hurried(&self) {
        loop {
            let mut hurry = std::pin::pin!(self.hurry.notified());
            hurry.as_mut().enable();
            if self.hurried.load(SeqCst) {
                return;
            }
            hurry.await;
        }
    }

    fn expect(&self) {
        self.pace().expect(millis(&self.clock));
    }

    pub(super) fn moved(&self, bytes: usize) {
        if bytes > 0 {
            self.pace().moved(bytes as u64, millis(&self.clock));
        }
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock()
    }

    /// From now on a peer that closes its side gets its answer first. HTTP/1 only: an HTTP/2 peer that closes is gone.
    pub fn hide_end(&self) {
        self.lock_end().hidden = true;
    }

    /// From now on a peer that has closed its side counts as gone.
    pub fn report_eof(&self) {
        let mut end = self.lock_end();
        (end.hidden, end.came) = (false, false);
        if let Some(reader) = end.reader.take() {
            reader.wake();
        }
    }

    /// How long nothing has been sent to a peer that has closed its side while the HTTP library does not know.
    pub fn closed_for(&self) -> Duration {
        let end = self.lock_end();
        let silent = if end.came { millis(&self.clock).saturating_sub(end.silent_since_ms) } else { 0 };
        Duration::from_millis(silent)
    }

    /// Waits until the peer has closed its side while the HTTP library does not know: no more bytes will come.
    pub async fn closed(&self) {
        loop {
            let closed = self.closed.notified();
            if self.lock_end().came {
                return;
            }
            closed.await;
        }
    }

    /// Passes a read's result to the HTTP library, except for a hidden end.
    fn told(&self, result: Poll<io::Result<()>>, is_end: bool, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut end = self.lock_end();
        if !is_end || !end.hidden {
            return result;
        }
        end.reader = Some(cx.waker().clone());
        if !std::mem::replace(&mut end.came, true) {
            end.silent_since_ms = millis(&self.clock);
            self.closed.notify_waiters();
        }
        Poll::Pending
    }

    /// All written bytes have left.
    fn flushed(&self) {
        if self.active.load(Relaxed) == 0 && self.lock_end().hidden {
            self.report_eof();
        }
    }

    fn lock_end(&self) -> MutexGuard<'_, End> {
        self.end.lock()
    }

    /// A piece is handed over; the ticket is dropped with its bytes.
    pub fn ticket(self: &Arc<Self>) -> Ticket {
        let id = self.next.fetch_add(1, Relaxed);
        let now = millis(&self.clock);
        self.lock_end().silent_since_ms = now;
        let mut tickets = self.tickets.lock();
        if tickets.is_empty() {
            self.expect();
        }
        tickets.insert(id, now);
        drop(tickets);
        Ticket { watch: self.clone(), id }
    }

    /// How long there has been no request; none while one is being answered.
    pub fn idle(&self) -> Option<Duration> {
        let quiet = millis(&self.clock).saturating_sub(self.quiet_since_ms.load(Relaxed));
        (self.active.load(Relaxed) == 0).then(|| Duration::from_millis(quiet))
    }

    /// How long the peer has left bytes unread.
    pub fn stalled(&self) -> Duration {
        let now = millis(&self.clock);
        let blocked = match self.write_blocked_ms.load(Relaxed) {
            0 => now,
            since => since - 1,
        };
        // Ids ascend with time, so the first is the oldest.
        let tickets = self.tickets.lock();
        let oldest = tickets.first_key_value().map_or(now, |(_, since)| *since);
        Duration::from_millis(now.saturating_sub(blocked.min(oldest)))
    }

    /// The encrypted bytes so far are processed: the handshake is over, or a record is complete.
    pub fn decided(&self) {
        self.undecided.store(0, Relaxed);
        self.told_enough.store(false, Relaxed);
    }

    fn wrote_some(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &result {
            self.moved(*bytes);
        }
        self.wrote(result)
    }

    fn wrote<T>(&self, result: Poll<T>) -> Poll<T> {
        if result.is_ready() {
            self.write_blocked_ms.store(0, Relaxed);
        } else if self.write_blocked_ms.load(Relaxed) == 0 {
            self.write_blocked_ms.store(millis(&self.clock) + 1, Relaxed);
        }
        result
    }
}

fn millis(clock: &Clock) -> u64 {
    clock.instant().as_millis() as u64
}

pub struct Active(Arc<PeerWatch>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.quiet_since_ms.store(millis(&self.0.clock), Relaxed);
        self.0.active.fetch_sub(1, Relaxed);
    }
}

/// A body whose next piece is being waited for.
pub struct Reading<'a>(&'a PeerWatch);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.reading.fetch_sub(1, Relaxed);
    }
}

pub struct Ticket {
    watch: Arc<PeerWatch>,
    id: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.watch.tickets.lock().remove(&self.id);
    }
}

/// A socket that tells its watch when a write blocks, and asks the watch whether to report its end.
pub struct Watched<T> {
    inner: T,
    watch: Arc<PeerWatch>,
}

impl<T> Watched<T> {
    pub fn new(inner: T, watch: Arc<PeerWatch>) -> Self {
        Self { inner, watch }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (before, room) = (buf.filled().len(), buf.remaining());
        let result = Pin::new(&mut self.inner).poll_read(cx, buf);
        if result.is_ready() {
            self.watch.decided();
        }
        self.watch.moved(buf.filled().len() - before);
        let is_end = match &result {
            Poll::Ready(Ok(())) => room > 0 && buf.filled().len() == before,
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        };
        self.watch.told(result, is_end, cx)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.watch.wrote_some(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.watch.wrote_some(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        let result = self.watch.wrote(result);
        if result.is_ready() {
            self.watch.flushed();
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.watch.wrote(result)
    }
}

/// The socket below TLS. A record has 18 KiB at most and can then be decrypted. rustls would collect up to 64 KiB of
/// handshake that never completes, in the handshake or after it.
pub struct Wire<T> {
    inner: T,
    watch: Arc<PeerWatch>,
}

impl<T> Wire<T> {
    pub fn new(inner: T, watch: Arc<PeerWatch>) -> Self {
        Self { inner, watch }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Wire<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let left = UNDECIDED_MAX.saturating_sub(self.watch.undecided.load(Relaxed));
        if left == 0 {
            // One read for plain text may take many records, and only its end shows that they were valid. So the read
            // ends here with the bytes it has, as if no more had come; a second such read in a row fails.
            if self.watch.told_enough.swap(true, Relaxed) {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, "encrypted bytes without an end")));
            }
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut part = buf.take(left);
        let result = Pin::new(&mut self.inner).poll_read(cx, &mut part);
        let read = part.filled().len();
        // SAFETY: the part is the buffer's own, and so many bytes of it are filled.
        unsafe { buf.assume_init(read) };
        buf.advance(read);
        self.watch.undecided.fetch_add(read, Relaxed);
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_wait_counts() {
        let clock = Clock::simulated(0);
        let watch = PeerWatch::new(clock.clone());
        let first = watch.ticket();
        clock.advance(Duration::from_secs(3));
        let second = watch.ticket();
        clock.advance(Duration::from_secs(2));
        assert_eq!(watch.stalled(), Duration::from_secs(5));
        drop(first);
        assert_eq!(watch.stalled(), Duration::from_secs(2));
        drop(second);
        assert_eq!(watch.stalled(), Duration::ZERO);
    }

    /// A peer that keeps sending bytes that never make a complete record.
    #[tokio::test]
    async fn encrypted_bytes_must_come_to_something() {
        use tokio::io::AsyncReadExt;
        let watch = PeerWatch::new(Clock::simulated(0));
        let mut wire = Wire::new(tokio::io::repeat(22), watch.clone());
        let mut buffer = [0; 4096];
        for _ in 0..UNDECIDED_MAX / 4096 {
            wire.read_exact(&mut buffer).await.unwrap();
        }
        watch.decided();
        for _ in 0..UNDECIDED_MAX / 4096 {
            wire.read_exact(&mut buffer).await.unwrap();
        }
        assert_eq!(wire.read(&mut buffer).await.unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    /// The TLS configurations of both ends of a connection to localhost.
    fn both_ends() -> (Arc<rustls::ServerConfig>, Arc<rustls::ClientConfig>) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = made.signing_key.serialize_der().try_into().unwrap();
        let server =
            rustls::ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
        let server =
            server.unwrap().with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let client = client.unwrap().with_root_certificates(roots).with_no_client_auth();
        (Arc::new(server), Arc::new(client))
    }

    /// Where one read had room for more than a record, as under the larger budgets, peers that sent a long body were
    /// cut off.
    #[tokio::test]
    async fn one_read_may_take_many_records() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (server, client) = both_ends();
        let (near, far) = tokio::io::duplex(1 << 20);
        let watch = PeerWatch::new(Clock::simulated(0));
        let sending = tokio::spawn(async move {
            let name = "localhost".try_into().unwrap();
            let mut stream = tokio_rustls::TlsConnector::from(client).connect(name, far).await.unwrap();
            stream.write_all(&[1; 300_000]).await.unwrap();
            for _ in 0..5_000 {
                stream.write_all(&[2]).await.unwrap();
            }
            stream.flush().await.unwrap();
            stream.shutdown().await.unwrap();
        });
        let stream = tokio_rustls::TlsAcceptor::from(server).accept(Wire::new(near, watch.clone())).await.unwrap();
        watch.decided();
        let mut stream = Watched::new(stream, watch);
        let (mut buffer, mut got) = (vec![0; 64 << 10], 0);
        loop {
            match stream.read(&mut buffer).await.unwrap() {
                0 => break,
                read => got += read,
            }
        }
        sending.await.unwrap();
        assert_eq!(got, 305_000);
    }

    #[test]
    fn idle_only_between_requests() {
        let clock = Clock::simulated(0);
        let watch = PeerWatch::new(clock.clone());
        let active = watch.begin();
        clock.advance(Duration::from_secs(3));
        assert_eq!(watch.idle(), None);
        drop(active);
        clock.advance(Duration::from_secs(1));
        assert_eq!(watch.idle(), Some(Duration::from_secs(1)));
    }

    #[test]
    fn what_is_done_and_how_fast() {
        let clock = Clock::simulated(0);
        let (watch, second) = (PeerWatch::new(clock.clone()), Duration::from_secs(1));
        clock.advance(second);
        assert_eq!(watch.doing(), Doing::Idle(second));
        let active = watch.begin();
        clock.advance(10 * second);
        assert_eq!(watch.doing(), Doing::Works(10 * second));
        watch.wait();
        assert_eq!(watch.doing(), Doing::Waits(10 * second));
        // The peer gets the full time, however long the work took.
        let ticket = watch.ticket();
        assert_eq!(watch.doing(), Doing::Moves(10 * second));
        for _ in 0..4 {
            watch.moved(100);
            clock.advance(second);
        }
        assert_eq!(watch.doing(), Doing::Slow(100));
        assert!(watch.doing().lingers(second) && Doing::Slow(5).measure() > Doing::Slow(6).measure());
        for _ in 0..4 {
            watch.moved(100_000);
            clock.advance(second);
        }
        assert!(matches!(watch.doing(), Doing::Moves(_)));
        drop(ticket);
        let reading = watch.read();
        clock.advance(3 * second);
        assert!(matches!(watch.doing(), Doing::Slow(_)), "a body of which nothing comes");
        drop((reading, active));
        assert_eq!(watch.doing(), Doing::Idle(Duration::ZERO));
    }
}

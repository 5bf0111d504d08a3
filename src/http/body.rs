//! Outbound bodies: small bytes, or pieces made one at a time under a grant.
//!
//! A streamed body has one buffer. A piece is made as a blocking job, leaves, and only when its last byte is gone does the
//! buffer come back and the next piece get made: the memory of an answer is its grant, whatever its length, and a slow
//! reader slows its own answer alone. An error on the way closes the connection (or resets the stream), so that a cut-off
//! answer never looks complete.

use parking_lot::{Mutex, MutexGuard};

use super::peer_watch::{Active, PeerWatch, Ticket};
use crate::base::{self, ChunkError, Chunks};
use crate::budget::Grant;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use std::fs::File;
use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use tokio::sync::mpsc;

/// Small bodies leave in frames of this size, so that a slow reader can be told from one that reads nothing.
const FRAME_BYTES: usize = 32 * 1024;
/// The most that the buffer of a long answer keeps between two pieces.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// The size of the pieces a file is read in: what TLS takes at once.
const FILE_PIECE_BYTES: usize = 16 * 1024;

/// The body of a response.
pub struct Body {
    source: Source,
    watch: Option<Arc<PeerWatch>>,
    /// The request this answers; it ends with its body.
    _active: Option<Active>,
}

enum Source {
    Empty,
    Small { left: Bytes, grant: Option<Arc<Grant>> },
    Made(Made),
    Sent(mpsc::Receiver<Sent>, Option<Arc<Grant>>),
}

/// Why a body ended early. Hyper only needs to know that it did.
#[derive(Debug, thiserror::Error)]
#[error("the answer was cut off: {0}")]
pub struct CutOff(String);

/// A long answer, made a bounded piece at a time; `grant` pays for the piece buffer and what the cursor keeps.
pub fn stream(grant: Grant, chunks: impl Chunks) -> Body {
    Body::made(grant, Box::new(chunks), None)
}

/// The same with its length known: more pieces than that are an error of the caller.
pub fn stream_of(grant: Grant, chunks: impl Chunks, len: u64) -> Body {
    Body::made(grant, Box::new(chunks), Some(len))
}

/// A file, from where it stands, with its length known; read in blocking jobs like every other stream. What is `held` is dropped when
/// it is over.
pub fn file(grant: Grant, file: File, len: u64, held: Option<Box<dyn Send + Sync>>) -> Body {
    Body::made(grant, Box::new(FilePieces { file, left: len, _held: held }), Some(len))
}

/// A body whose pieces come from elsewhere, such as another server's media passed through. One piece waits at most.
///
/// Unless [`BodySender::finish`] is called the receiver sees a broken body, never a short one.
pub fn channel(grant: Option<Grant>) -> (BodySender, Body) {
    let (sender, receiver) = mpsc::channel(1);
    (BodySender(sender), Body::of(Source::Sent(receiver, grant.map(Arc::new))))
}

enum Sent {
    Piece(Bytes),
    End,
}

/// The far end of [`channel`].
pub struct BodySender(mpsc::Sender<Sent>);

impl BodySender {
    /// Waits until the piece before has been taken. False when the body is no longer read.
    pub async fn send(&self, piece: Bytes) -> bool {
        self.0.send(Sent::Piece(piece)).await.is_ok()
    }

    /// Waits until the body is no longer read: its peer has gone.
    pub async fn closed(&self) {
        self.0.closed().await;
    }

    /// The body is complete.
    pub async fn finish(self) {
        let _ = self.0.send(Sent::End).await;
    }
}

impl Body {
    pub(super) fn empty() -> Self {
        Self::of(Source::Empty)
    }

    pub(super) fn small(left: Bytes, grant: Option<Grant>) -> Self {
        Self::of(Source::Small { left, grant: grant.map(Arc::new) })
    }

    fn made(grant: Grant, chunks: Box<dyn Chunks>, len: Option<u64>) -> Self {
        let slot = Arc::new(Slot { _grant: grant, inner: Mutex::new((Some(Vec::new()), None)) });
        Self::of(Source::Made(Made { step: Step::Ready(chunks), slot, left: len }))
    }

    fn of(source: Source) -> Self {
        Self { source, watch: None, _active: None }
    }

    /// Ties the body to its connection and its request.
    pub(super) fn attach(&mut self, watch: Arc<PeerWatch>, active: Active) {
        self.watch = Some(watch);
        self._active = Some(active);
    }

    pub(super) fn len(&self) -> Option<u64> {
        match &self.source {
            Source::Empty => Some(0),
            Source::Small { left, .. } => Some(left.len() as u64),
            Source::Made(made) => made.left,
            Source::Sent(..) => None,
        }
    }

    /// The bytes held here without a grant.
    pub(super) fn unpaid(&self) -> u64 {
        match &self.source {
            Source::Small { left, grant: None } => left.len() as u64,
            _ => 0,
        }
    }

    /// Pays for the unpaid bytes, until the last has left.
    pub(super) fn paid_with(&mut self, paid: Grant) {
        if let Source::Small { grant, .. } = &mut self.source {
            *grant = Some(Arc::new(paid));
        }
    }

    /// A small body with the grant that pays for it.
    pub(super) fn paid_by(mut self, by: Grant) -> Self {
        if let Source::Small { grant, .. } = &mut self.source {
            *grant = Some(Arc::new(by));
        }
        self
    }

    pub(super) fn as_small(&self) -> Option<&[u8]> {
        match &self.source {
            Source::Empty => Some(&[]),
            Source::Small { left, .. } => Some(left),
            _ => None,
        }
    }

    fn lease<T: AsRef<[u8]> + Send + 'static>(&self, bytes: T) -> Frame<Bytes> {
        let ticket = self.watch.as_ref().map(|watch| watch.ticket());
        Frame::data(Bytes::from_owner(Lease { bytes, _ticket: ticket }))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = CutOff;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, CutOff>>> {
        let this = &mut *self;
        match &mut this.source {
            Source::Empty => Poll::Ready(None),
            Source::Small { left, .. } if left.is_empty() => Poll::Ready(None),
            Source::Small { left, grant } => {
                let piece = left.split_to(left.len().min(FRAME_BYTES));
                let paid = Paid { bytes: piece, _grant: grant.clone() };
                Poll::Ready(Some(Ok(this.lease(paid))))
            }
            Source::Made(made) => match ready!(made.poll(cx)) {
                Some(Ok(piece)) => Poll::Ready(Some(Ok(this.lease(piece)))),
                Some(Err(cut)) => Poll::Ready(Some(Err(cut))),
                None => Poll::Ready(None),
            },
            Source::Sent(receiver, grant) => {
                let paid = grant.clone();
                match ready!(receiver.poll_recv(cx)) {
                    Some(Sent::Piece(bytes)) => Poll::Ready(Some(Ok(this.lease(Paid { bytes, _grant: paid })))),
                    Some(Sent::End) => {
                        this.source = Source::Empty;
                        Poll::Ready(None)
                    }
                    None => Poll::Ready(Some(Err(CutOff("its source ended early".to_owned())))),
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Small { left, .. } => left.is_empty(),
            Source::Made(made) => matches!(made.step, Step::Done),
            Source::Sent(..) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.len().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// A stream under way.
struct Made {
    step: Step,
    slot: Arc<Slot>,
    /// Bytes still promised, when the length was known at the start.
    left: Option<u64>,
}

enum Step {
    Ready(Box<dyn Chunks>),
    Working(Pin<Box<dyn Future<Output = Worked> + Send>>),
    Done,
}

struct Worked {
    chunks: Box<dyn Chunks>,
    buffer: Vec<u8>,
    result: Result<bool, ChunkError>,
}

/// Where the one buffer lives between pieces, with the grant that pays for it: both stay until the last piece has left.
struct Slot {
    _grant: Grant,
    inner: Mutex<(Option<Vec<u8>>, Option<Waker>)>,
}

impl Made {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, CutOff>>> {
        loop {
            match std::mem::replace(&mut self.step, Step::Done) {
                Step::Done => return Poll::Ready(None),
                Step::Ready(mut chunks) => {
                    let Some(mut buffer) = self.slot.take(cx.waker()) else {
                        self.step = Step::Ready(chunks);
                        return Poll::Pending;
                    };
                    let awaited = chunks.wait();
                    self.step = Step::Working(Box::pin(async move {
                        if let Some(awaited) = awaited {
                            awaited.await;
                        }
                        base::blocking(move || {
                            // A panic ends this answer alone, and no other stream of the connection.
                            let result = base::caught(|| chunks.next(&mut buffer)).unwrap_or_else(|panicked| {
                                Err(ChunkError::new(format!("a panic: {}", panicked.say())))
                            });
                            Worked { chunks, buffer, result }
                        })
                        .await
                    }));
                }
                Step::Working(mut work) => match work.as_mut().poll(cx) {
                    Poll::Pending => {
                        self.step = Step::Working(work);
                        return Poll::Pending;
                    }
                    Poll::Ready(worked) => {
                        if let Some(out) = self.finish(worked) {
                            return Poll::Ready(Some(out));
                        }
                    }
                },
            }
        }
    }

    /// The result of one blocking job; none when another one must run first, or there is no result.
    fn finish(&mut self, worked: Worked) -> Option<Result<Piece, CutOff>> {
        let Worked { chunks, buffer, result } = worked;
        match result {
            Err(error) => {
                match error.is_ours() {
                    true => tracing::error!("an answer was cut off: {error}"),
                    false => tracing::debug!("an answer was cut off: {error}"),
                }
                return Some(Err(CutOff(error.to_string())));
            }
            Ok(true) => self.step = Step::Ready(chunks),
            Ok(false) => {}
        }
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(buffer.len() as u64);
        }
        if buffer.is_empty() {
            self.slot.put(buffer);
            return None;
        }
        Some(Ok(Piece { buffer, slot: self.slot.clone() }))
    }
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, (Option<Vec<u8>>, Option<Waker>)> {
        self.inner.lock()
    }

    /// The buffer, or nothing and a promise to wake when it is back.
    fn take(&self, waker: &Waker) -> Option<Vec<u8>> {
        let mut inner = self.lock();
        if inner.0.is_none() {
            inner.1 = Some(waker.clone());
        }
        inner.0.take()
    }

    fn put(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        // One long piece must not keep its memory until the answer ends.
        buffer.shrink_to(BUFFER_BYTES_MAX);
        let waker = {
            let mut inner = self.lock();
            inner.0 = Some(buffer);
            inner.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The filled buffer on its way out.
struct Piece {
    buffer: Vec<u8>,
    slot: Arc<Slot>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.slot.put(std::mem::take(&mut self.buffer));
    }
}

struct Paid {
    bytes: Bytes,
    _grant: Option<Arc<Grant>>,
}

impl AsRef<[u8]> for Paid {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

struct Lease<T> {
    bytes: T,
    _ticket: Option<Ticket>,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Lease<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

struct FilePieces {
    file: File,
    left: u64,
    _held: Option<Box<dyn Send + Sync>>,
}

impl Chunks for FilePieces {
    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, ChunkError> {
        let len = (FILE_PIECE_BYTES as u64).min(self.left) as usize;
        let start = out.len();
        out.resize(start + len, 0);
        self.file.read_exact(&mut out[start..]).map_err(ChunkError::new)?;
        self.left -= len as u64;
        Ok(self.left > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use http_body_util::BodyExt;

    /// Counts down; the piece for zero is the last, or an error.
    struct Countdown(u32, bool);

    impl Chunks for Countdown {
        fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, ChunkError> {
            if self.0 == 0 && self.1 {
                return Err(ChunkError::new("broken on purpose"));
            }
            out.extend_from_slice(self.0.to_string().as_bytes());
            self.0 = self.0.saturating_sub(1);
            Ok(out.as_slice() != b"0")
        }
    }

    /// Reads as a socket would send: each frame is copied and released before the next is asked for.
    async fn collect(mut body: Body) -> Result<String, CutOff> {
        let mut all = String::new();
        while let Some(frame) = body.frame().await {
            all.push_str(std::str::from_utf8(frame?.data_ref().unwrap()).unwrap());
        }
        Ok(all)
    }

    #[tokio::test]
    async fn pieces_come_in_order_and_the_grant_goes_back() {
        let account = Budget::for_tests().account("response_bodies");
        let body = stream(account.try_take(1000).unwrap(), Countdown(3, false));
        assert_eq!(account.used(), 1000);
        assert_eq!(collect(body).await.unwrap(), "3210");
        assert_eq!(account.used(), 0);
    }

    #[tokio::test]
    async fn the_next_piece_waits_for_the_one_before() {
        let account = Budget::for_tests().account("response_bodies");
        let mut body = stream(account.try_take(1000).unwrap(), Countdown(3, false));
        let first = body.frame().await.unwrap().unwrap();
        let second = tokio::spawn(async move { body.frame().await.unwrap().unwrap().into_data().unwrap() });
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        drop(first);
        assert_eq!(second.await.unwrap(), "2");
    }

    #[tokio::test]
    async fn an_error_breaks_the_body() {
        let account = Budget::for_tests().account("response_bodies");
        let body = stream(account.try_take(1000).unwrap(), Countdown(2, true));
        assert!(collect(body).await.is_err());
        assert_eq!(account.used(), 0);
    }

    /// A panic in a piece ended the connection's task, and with it the other HTTP/2 streams on it.
    #[tokio::test]
    async fn a_panic_breaks_the_body_and_no_more() {
        struct Breaks;
        impl Chunks for Breaks {
            fn next(&mut self, _: &mut Vec<u8>) -> Result<bool, ChunkError> {
                panic!("on purpose")
            }
        }
        let account = Budget::for_tests().account("response_bodies");
        let broken = collect(stream(account.try_take(1000).unwrap(), Breaks)).await.unwrap_err();
        assert!(broken.to_string().contains("on purpose"), "{broken}");
        assert_eq!(account.used(), 0);
    }

    #[tokio::test]
    async fn a_sender_that_vanishes_breaks_the_body() {
        let (sender, body) = channel(None);
        sender.send(Bytes::from_static(b"abc")).await;
        drop(sender);
        assert!(collect(body).await.is_err());
        let (sender, body) = channel(None);
        let sending = tokio::spawn(async move {
            sender.send(Bytes::from_static(b"abc")).await;
            sender.finish().await;
        });
        assert_eq!(collect(body).await.unwrap(), "abc");
        sending.await.unwrap();
    }
}

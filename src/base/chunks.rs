//! A long answer, made a bounded piece at a time.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::{Mutex, MutexGuard};

/// A cursor that writes its answer as the reader takes it: never a collection whose length a room decides.
///
/// Plain blocking code, called on a blocking thread. One call appends about 16 to 64 KiB at most.
pub trait Chunks: Send + 'static {
    /// Appends the next piece to `out`; true when there is more to come.
    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, ChunkError>;

    /// What the next piece waits for, if that is still to come: awaited before `next`, on no thread of its own.
    fn wait(&mut self) -> Option<Awaited> {
        None
    }
}

/// Done when there is something for the next piece.
pub type Awaited = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Chunks for Box<dyn Chunks> {
    fn wait(&mut self) -> Option<Awaited> {
        (**self).wait()
    }

    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, ChunkError> {
        (**self).next(out)
    }
}

/// Puts a comma before all but the first of a list.
pub fn comma(out: &mut Vec<u8>, first: &mut bool) {
    if !std::mem::take(first) {
        out.push(b',');
    }
}

/// Why an answer could not be finished. The status line has gone out by then: the connection is cut, so that no client
/// takes half an answer for a whole one, and the surface logs the cause.
pub struct ChunkError {
    cause: Box<dyn std::error::Error + Send + Sync>,
    is_ours: bool,
}

// Like every box of errors this one is not an `Error` itself, so that `?` turns any error into it.
impl<E: std::error::Error + Send + Sync + 'static> From<E> for ChunkError {
    fn from(cause: E) -> Self {
        ChunkError { cause: Box::new(cause), is_ours: true }
    }
}

impl ChunkError {
    pub fn new(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        ChunkError { cause: cause.into(), is_ours: true }
    }

    /// Another server broke off what is passed on: no fault of this one.
    pub fn elsewhere(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        ChunkError { cause: cause.into(), is_ours: false }
    }

    pub fn is_ours(&self) -> bool {
        self.is_ours
    }

    pub fn into_inner(self) -> Box<dyn std::error::Error + Send + Sync> {
        self.cause
    }
}

impl fmt::Display for ChunkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl fmt::Debug for ChunkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.cause, f)
    }
}

/// A short answer in the shape of a long one.
pub struct OneChunk(pub Vec<u8>);

impl Chunks for OneChunk {
    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, ChunkError> {
        out.append(&mut self.0);
        Ok(false)
    }
}

/// An answer whose first piece is made already.
pub fn begun(first: Vec<u8>, rest: impl Chunks) -> impl Chunks {
    Begun { first: Some(first), rest }
}

struct Begun<C> {
    first: Option<Vec<u8>>,
    rest: C,
}

impl<C: Chunks> Chunks for Begun<C> {
    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, ChunkError> {
        match self.first.take() {
            Some(mut first) => {
                out.append(&mut first);
                Ok(true)
            }
            None => self.rest.next(out),
        }
    }

    fn wait(&mut self) -> Option<Awaited> {
        match self.first {
            Some(_) => None,
            None => self.rest.wait(),
        }
    }
}

/// A long answer from code that writes from top to bottom and pauses after each item.
///
/// `write` gets a [`ChunkWriter`] and calls [`ChunkWriter::pause`] after every item. Nothing else may be awaited in it,
/// since no waker would be called. The memory it holds between two pauses is the memory of the answer.
pub fn written<F>(write: impl FnOnce(ChunkWriter) -> F) -> impl Chunks
where
    F: Future<Output = Result<(), ChunkError>> + Send + 'static,
{
    let pen = ChunkWriter::default();
    Written { work: Box::pin(write(pen.clone())), pen }
}

/// A pause comes when this much has been written; the last item may exceed it by a piece.
const PAUSE_BYTES: usize = 16 * 1024;

/// The writer passed to the code of [`written`].
#[derive(Clone, Default)]
pub struct ChunkWriter(Arc<Mutex<Vec<u8>>>);

impl ChunkWriter {
    pub fn text(&self, text: &str) {
        self.paper().extend_from_slice(text.as_bytes());
    }

    pub fn bytes(&self, bytes: &[u8]) {
        self.paper().extend_from_slice(bytes);
    }

    /// Lets `append` write at the end.
    pub fn with<T>(&self, append: impl FnOnce(&mut Vec<u8>) -> T) -> T {
        append(&mut self.paper())
    }

    /// Writes an item that may be longer than a piece, over several of them.
    pub async fn long(&self, bytes: &[u8]) {
        for part in bytes.chunks(PAUSE_BYTES) {
            self.pause().await;
            self.bytes(part);
        }
    }

    /// Ends the piece when it is long enough.
    pub async fn pause(&self) {
        self.pause_at(PAUSE_BYTES).await;
    }

    /// Ends the piece when it has so many bytes.
    pub async fn pause_at(&self, bytes: usize) {
        let mut paused = false;
        std::future::poll_fn(|_| match !paused && self.paper().len() >= bytes {
            true => {
                paused = true;
                Poll::Pending
            }
            false => Poll::Ready(()),
        })
        .await
    }

    fn paper(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock()
    }
}

struct Written<F> {
    work: Pin<Box<F>>,
    pen: ChunkWriter,
}

impl<F: Future<Output = Result<(), ChunkError>> + Send + 'static> Chunks for Written<F> {
    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, ChunkError> {
        std::mem::swap(&mut *self.pen.paper(), out);
        let polled = self.work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        std::mem::swap(&mut *self.pen.paper(), out);
        match polled {
            Poll::Pending => Ok(true),
            Poll::Ready(done) => done.map(|()| false),
        }
    }
}

/// A long answer of which each piece comes from work that is awaited: `step` gets the writer, writes a piece, and says whether there
/// is more to come.
pub fn stepped<F>(step: impl FnMut(ChunkWriter) -> F + Send + 'static) -> impl Chunks
where
    F: Future<Output = Result<bool, ChunkError>> + Send + 'static,
{
    Stepped { step, pen: ChunkWriter::default(), done: Arc::default() }
}

struct Stepped<S> {
    step: S,
    pen: ChunkWriter,
    /// What came of the step before the next piece.
    done: Arc<Mutex<Option<Result<bool, ChunkError>>>>,
}

impl<F, S> Chunks for Stepped<S>
where
    F: Future<Output = Result<bool, ChunkError>> + Send + 'static,
    S: FnMut(ChunkWriter) -> F + Send + 'static,
{
    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, ChunkError> {
        out.append(&mut self.pen.paper());
        self.done.lock().take().unwrap_or(Ok(true))
    }

    fn wait(&mut self) -> Option<Awaited> {
        let (work, done) = ((self.step)(self.pen.clone()), self.done.clone());
        Some(Box::pin(async move {
            let came = work.await;
            *done.lock() = Some(came);
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_goes_over_several_pieces() {
        let all: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        let wanted = all.clone();
        let mut chunks = written(move |pen| async move {
            pen.text("<");
            pen.long(&all).await;
            pen.text(">");
            Ok(())
        });
        let (mut whole, mut more) = (Vec::new(), true);
        while more {
            let mut piece = Vec::new();
            more = chunks.next(&mut piece).unwrap();
            assert!(piece.len() < 2 * PAUSE_BYTES + 2);
            whole.append(&mut piece);
        }
        assert_eq!(whole, [b"<", &wanted[..], b">"].concat());
    }

    #[test]
    fn a_written_answer_comes_in_pieces() {
        let mut chunks = written(|pen| async move {
            for number in 0..10_000 {
                pen.text(&format!("{number},"));
                pen.pause().await;
            }
            Ok(())
        });
        let (mut all, mut pieces) = (Vec::new(), 0);
        loop {
            let mut piece = Vec::new();
            let more = chunks.next(&mut piece).unwrap();
            assert!(piece.len() <= PAUSE_BYTES + 16);
            all.extend_from_slice(&piece);
            pieces += 1;
            if !more {
                break;
            }
        }
        assert!(pieces > 2);
        assert_eq!(all.split(|b| *b == b',').count(), 10_001);
    }
}

//! A long answer, made a bounded piece at a time.

use std::fmt;

/// A cursor that writes its answer as the reader takes it: never a collection of what a room decides the length of.
///
/// Plain blocking code, called on a blocking thread. One call appends about 16 to 64 KiB at most.
pub trait Chunks: Send + 'static {
    /// Appends the next piece to `out`; true when there is more to come.
    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, ChunkError>;
}

impl Chunks for Box<dyn Chunks> {
    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, ChunkError> {
        (**self).next(out)
    }
}

/// Why an answer could not be finished. The status line has gone out by then: the connection is cut, so that nobody
/// takes half an answer for a whole one, and the surface logs the cause.
pub struct ChunkError(Box<dyn std::error::Error + Send + Sync>);

// Like every box of errors this one is not an `Error` itself, so that `?` turns any error into it.
impl<E: std::error::Error + Send + Sync + 'static> From<E> for ChunkError {
    fn from(cause: E) -> Self {
        ChunkError(Box::new(cause))
    }
}

impl ChunkError {
    pub fn new(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        ChunkError(cause.into())
    }

    pub fn into_inner(self) -> Box<dyn std::error::Error + Send + Sync> {
        self.0
    }
}

impl fmt::Display for ChunkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ChunkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
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

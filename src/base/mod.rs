//! The ground everything stands on: time, randomness, work that may block, panics that end where they are caught,
//! background workers, a lock for each name, bounded tables that others fill, what changed lately, pages of lists in any order, long
//! answers in pieces, short lists, small files, and files for their owner alone.
//!
//! Owns the only calls to the system's clocks, to its randomness and to the runtime's blocking pool, so that tests
//! can hand in their own. Names no other part.
//!
//! Reading order: `clock.rs`, `settled.rs`, `random.rs`, `pace.rs`, `quiet.rs`, `blocking.rs`, `lane.rs`, `live.rs`, `panics.rs`, `worker.rs`, `keyed_lock.rs`,
//! `shares.rs`, `recent.rs`, `chunks.rs`, `ranked.rs`, `few.rs`, `hex.rs`, `small_file.rs`, `private.rs`.

#[cfg(test)]
pub mod any_bytes;
mod blocking;
mod chunks;
mod clock;
mod date;
mod few;
mod fold;
mod hex;
mod keyed_lock;
mod lane;
mod live;
mod pace;
mod panics;
pub mod private;
mod quiet;
mod random;
mod ranked;
mod recent;
mod settled;
pub mod shares;
mod small_file;
#[cfg(test)]
pub mod testing;
mod worker;

pub use blocking::{block_on_until, blocking, detached, joined, unbroken};
pub use chunks::{Awaited, ChunkError, ChunkWriter, Chunks, OneChunk, begun, comma, stepped, written};
pub use clock::{Clock, Deadline, Doubted, EARLIEST_MS, KeptTime, StopWatch};
pub use date::{date, span, timestamp};
pub use few::{gathered, sort_few, sort_few_by};
pub use fold::fold;
pub use hex::unhex;
pub use keyed_lock::{KeyedGuard, KeyedLock};
pub use lane::Lane;
pub use live::Live;
pub use pace::BatchSize;
pub use panics::{Panicked, caught, caught_in, log_panics, unwind};
pub use quiet::WORK;
pub use random::Random;
pub use ranked::{Place, Ranked, ranked, rows_ranked};
pub use recent::Recent;
pub use shares::{Owner, Shares};
pub use small_file::{open_file, read_small};
pub use worker::{Doing, Status, Worker, Workers, bounded, brief};

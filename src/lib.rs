//! Snug, a Matrix homeserver that never outgrows the memory it was given.
//!
//! The floors in reading order, lowest first; `src/README.md` is the map with a line for each part.
//! Chapter titles in quotes are those of the Matrix specification 1.15, <https://spec.matrix.org/v1.15/>.

pub mod base; //       clock, randomness, blocking work, long answers in pieces
pub mod budget; //     the account book for memory
pub mod matrix; //     the protocol, pure
pub mod store; //      the one database file
pub mod feed; //       what is new, for whom
pub mod remote; //     talking to other servers
pub mod relay; //      calls of phones that cannot reach each other
pub mod mdns; //       being found on the home network
pub mod room; //       everything that changes or reads a room
pub mod user; //       accounts and devices
pub mod media; //      files
pub mod deliver; //    getting things out
pub mod backup; //     copies of the whole server, and reading them
pub mod flow; //       procedures that span rooms and users
pub mod http; //       the front hall
pub mod certificates; // those the server gets or makes by itself
pub mod client; //     what apps call
pub mod federation; // what servers call
pub mod web; //        the operator's folders
pub mod admin; //      what the operator calls
pub mod config; //     every setting once
pub mod serve; //      the boot sequence
pub mod cli; //        the command line

/// Counts the bytes on the heap, to check the accounts of the budget against them (`budget/meter.rs`).
#[global_allocator]
static METER: budget::meter::Meter = budget::meter::Meter;

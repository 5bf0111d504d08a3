//! The protocol, pure.
//!
//! The Matrix specification's rules on one event, one room, one signature: no input or output, no clock, no lock, no
//! knowledge of any other part. Read `version` (the differences between room versions, as data), then `json` (bytes),
//! `scan` (one event from another server, once through), `event` (an event as the other parts hold it), `sign`, then
//! `auth`, `state` and the small ones.

mod reject;

pub mod version;
pub mod json;
pub mod redact;
pub mod format;
pub mod scan;
mod header;
pub mod event;
mod comb;
pub mod sign;
pub mod auth;
pub mod state;
pub mod visibility;
pub mod push;
pub mod acl;
pub mod policy;
pub mod appservice;
pub mod id;

pub use draft::Draft;
pub use event::Event;
pub use reject::{Kind, Reject};
pub use version::RoomVersion;

#[cfg(test)]
mod tests;
pub mod draft;

//! The lab: rooms that are really signed, a resident server that is in them already, a hostile one, and what drives a real `snug` process
//! against them within a memory limit.
//!
//! Nothing here uses the library's own signing, hashing or JSON code: a mistake made on both sides would go unseen. Rooms are
//! judged by ruma in the tests of `room.rs`, and the server under test is judged by the rooms.
//!
//! Read in this order: `room` (what a room is made of), `event` and `json` (how one event is written and signed), `render`
//! (a room as files), `wire` (blocking HTTP over TLS, both ways), `resident` (the server that is already in the room), `drive`
//! (processes, memory cgroups, a client), and then the benchmarks.
//! Included by path from benches, the example and the integration tests, each of which uses a part of it.
#![allow(dead_code, unused_imports)]

pub mod control;
pub mod drive;
pub mod event;
pub mod hostile;
pub mod json;
pub mod picture;
pub mod certificates;
pub mod push;
pub mod random;
pub mod render;
pub mod resident;
pub mod room;
pub mod together;
pub mod wire;

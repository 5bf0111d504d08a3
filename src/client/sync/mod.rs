//! Telling apps what is new. `v3.rs` is the long poll every app knows.

pub mod v3;

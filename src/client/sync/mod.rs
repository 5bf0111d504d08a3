//! Sync. `v3.rs` is the long poll that every app uses.

pub mod v3;

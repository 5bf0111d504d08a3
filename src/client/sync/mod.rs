//! Sync. `v3/` is the long poll that every app uses, `sliding/` the one that tells of the rooms an app shows.
//!
//! The facts come from `room` and `user`; a layout of them is a folder here. `user.rs` and `ephemeral.rs` write the parts
//! that any layout has in the same form: account data, to-device messages, keys, receipts, typing users.

mod ephemeral;
mod presence;
pub mod sliding;
pub mod user;
pub mod v3;

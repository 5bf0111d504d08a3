//! Outbound delivery.
//!
//! Owns each destination's position in the outbound log. Never decides what is sent: every row was put into the log by
//! the write that made it true.
//!
//! One worker shape: take the rows due for one destination, try, and report. The dispatcher keeps the destinations that
//! lag and chooses the next. `federation/` is the one for servers: `destinations.rs` keeps the lagging servers and
//! their positions, `transaction.rs` makes a transaction from the log. `followers.rs` is the way in for readers that
//! are no servers. `services/` tells application services, and `push/` is the worker for push gateways, which need no log: rooms and
//! unread counts are what waits for them.

mod federation;
pub mod followers;
pub mod push;
pub mod services;
#[cfg(test)]
mod tests;

pub use self::federation::{Sender, SenderOptions};

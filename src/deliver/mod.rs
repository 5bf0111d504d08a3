//! Outbound delivery.
//!
//! Owns each destination's position in the outbound log. Never decides what is sent: every row was put into the log by
//! the write that made it true.
//!
//! One worker shape: take the rows due for one destination, try, and report. The dispatcher keeps the destinations that
//! lag and chooses the next. `federation/` is the one for servers: `destinations.rs` keeps the lagging servers and
//! their positions, `transaction.rs` makes a transaction from the log. `followers.rs` is the way in for readers that
//! are no servers.

mod federation;
pub mod followers;
#[cfg(test)]
mod tests;

pub use self::federation::{Sender, SenderOptions};

//! Getting things out.
//!
//! Owns how far each destination has come in the outbound log. Never decides what is said: everything sent was put into
//! the log by the write that made it true.
//!
//! One worker shape: take what is due for one destination, try, and report; the dispatcher keeps the destinations that lag
//! and decides who is next. `federation/` is the one for servers: `destinations.rs` knows who lags and where, `transaction.rs`
//! makes a transaction from the log.

mod federation;
#[cfg(test)]
mod tests;

pub use self::federation::{Sender, SenderOptions};

//! Room data outside of events: typing notifications, receipts, and the EDUs about them.

pub mod edu;
pub mod receipt;
pub mod typing;
#[cfg(test)]
mod tests;

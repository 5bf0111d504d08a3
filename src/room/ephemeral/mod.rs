//! What is told about a room and kept by no event: typing, receipts, and the EDUs about them.

pub mod edu;
pub mod receipt;
pub mod typing;

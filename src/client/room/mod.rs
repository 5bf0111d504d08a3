//! The endpoints about rooms: a file for each family.

pub mod create;
pub mod delayed;
pub mod directory;
pub mod membership;
pub mod old;
pub mod receipt;
pub mod send;
pub mod space;
pub mod state;
pub mod thread;
pub mod timeline;
mod unsent;
pub mod upgrade;

//! Procedures that span users and rooms.

mod arrivals;
mod deactivate;
mod guests;
mod notices;
mod register;
mod rename;
mod terms;
mod upgrade;

pub use arrivals::{accept_invites, welcome};
pub use deactivate::deactivate;
pub use guests::keep_guests;
pub use notices::{NOTICE_BYTES_MAX, NotTold, NoticeOptions, Notices};
pub use register::{Registered, register, register_guest, upgrade_guest};
pub use rename::{Propagate, rename};
pub use terms::{NewTerms, tell_newcomer, tell_of_terms};
pub use upgrade::{close, join, upgrade};

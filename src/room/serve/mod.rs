//! What other servers ask of us about rooms: history, state, and how they join, leave and knock through us.

pub mod history;
pub mod membership;
pub mod slots;
pub mod state;
pub mod event;
pub mod long_answer;

//! Requests of other servers about rooms: history, state, and joins, leaves and knocks through us.

pub mod history;
pub mod jump;
pub mod membership;
pub mod slots;
pub mod state;
pub mod event;
pub mod long_answer;
#[cfg(test)]
mod tests;

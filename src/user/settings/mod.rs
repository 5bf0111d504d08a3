//! Settings of users and their apps: account data, filters, push rules, pushers.

pub mod account_data;
pub mod filter;
pub mod push_rules;
pub mod pushers;
pub mod upgrade;

//! Settings of users and their apps: account data, filters, push rules.

pub mod account_data;
pub mod filter;
pub mod push_rules;
pub mod upgrade;

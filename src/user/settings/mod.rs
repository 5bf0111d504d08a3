//! What people and their apps keep here: account data, filters, push rules.

pub mod account_data;
pub mod filter;
pub mod push_rules;

//! The one integration binary; each module is a family of behaviour.

mod crash;
mod accounts;
mod appservice_rows;
mod appservices;
mod backup;
mod bots;
mod calls;
mod commands;
mod devices;
mod federation_history;
mod federation_outages;
mod federation_rooms;
mod floors;
mod guests;
mod http;
mod rooms;
mod scanner;
mod search;
mod sessions;
mod server;
mod sliding;
mod sliding_extensions;
mod spaces;
mod sync;
mod synapse_admin;
mod keys;
mod media;
mod moderation;
mod notices;
mod memory;
mod admin_page;
mod pages;
mod policy_lists;
mod watching;
mod previews;
mod push;
mod restore;
mod threads;
mod terms;
mod tidy;
mod join;
mod net;
mod wire;
mod federation_storms;
mod refusals;
mod rest;
mod peaks;

// The lab's own tests run here; the benchmarks include the same files.
#[path = "../lab/mod.rs"]
mod lab;

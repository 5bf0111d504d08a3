//! The one integration binary; each module is a family of behaviour.

mod crash;
mod accounts;
mod commands;
mod federation;
mod floors;
mod hall;
mod house;
mod sync;
mod keys;
mod media;
mod neighbours;
mod memory;
mod pair;
mod tidy;
mod join;

// The load generator's own tests run here; the benchmarks include the same files.
#[path = "../load/mod.rs"]
mod load;

//! The one integration binary; each module is a family of behaviour.

mod crash;
mod commands;
mod hall;
mod house;
mod sync;
mod tidy;
mod join;

// The load generator's own tests run here; the benchmarks include the same files.
#[path = "../load/mod.rs"]
mod load;

//! The resident server by itself, for trying a server by hand: `cargo run --example resident -- --help`.

#[path = "../tests/load/mod.rs"]
mod load;

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    load::control::run(&arguments)
}

//! The resident server by itself, for trying a server by hand: `cargo run --example resident -- --help`.

#[path = "../tests/lab/mod.rs"]
mod lab;

fn main() -> std::io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    lab::control::run(&arguments)
}

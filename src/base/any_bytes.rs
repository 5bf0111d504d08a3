//! Odd bytes for parsers of what others wrote, for tests: seeds that are changed at random, and a failure that names its input.
//!
//! In an ordinary run each parser gets [`INPUTS`] inputs, the same every time. `SNUG_FUZZ_SECONDS=60 cargo test --lib any_bytes`
//! gives each so many seconds instead, beginning with the randomness of that moment or with `SNUG_FUZZ_SEED`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use super::{Random, StopWatch};

const INPUTS: u64 = 1_000;
const LENGTH_MAX: usize = 8 << 10;
/// Changed inputs that are changed further.
const KEPT_MAX: u64 = 64;
/// What means something to some parser.
const PIECES: [&[u8]; 40] = [
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"=",
    b";",
    b"-",
    b"--",
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b"\0",
    b"\xff",
    b"\xc3",
    b"\\u0000",
    b"\\ud800",
    b"\\udc00\\ud83d",
    b"null",
    b"true",
    b"0",
    b"-0",
    b"1e999",
    b"1.5",
    b"9007199254740992",
    b"-9223372036854775808",
    b"18446744073709551616",
    b"\"\":",
    b"{}",
    b"[[",
    b"{\"a\":",
    b"%",
    b"%f",
    b"\xf0\x9f\x98\x80",
    b"''",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
];

/// Calls `check` with the seeds and with what becomes of them. It must not panic.
pub fn any_bytes(seeds: &[&[u8]], check: impl Fn(&[u8])) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let length = number("SNUG_FUZZ_SECONDS").map(Duration::from_secs);
    let seed = number("SNUG_FUZZ_SEED").unwrap_or_else(|| length.map_or(1, |_| Random::os().below(1 << 32)));
    let (random, watch) = (Random::seeded(seed), StopWatch::start());
    let mut kept: Vec<Vec<u8>> = seeds.iter().map(|seed| seed.to_vec()).collect();
    kept.push(Vec::new());
    let is_over = |nth: u64| match length {
        Some(length) => watch.elapsed() >= length,
        None => nth >= INPUTS,
    };
    let mut nth = 0;
    while !is_over(nth) {
        let input = match kept.get(nth as usize) {
            Some(input) if nth < seeds.len() as u64 => input.clone(),
            _ => changed(&kept, &random),
        };
        if catch_unwind(AssertUnwindSafe(|| check(&input))).is_err() {
            let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
            panic!(
                "input {nth} of SNUG_FUZZ_SEED={seed}, {} bytes: {:?}\nin hex: {hex}",
                input.len(),
                input.escape_ascii().to_string()
            );
        }
        // The seeds stay; behind them what was made lately is changed further.
        let place = seeds.len() + 1 + (nth % KEPT_MAX) as usize;
        match kept.get_mut(place) {
            Some(old) => *old = input,
            None => kept.push(input),
        }
        nth += 1;
    }
}

/// One of them, changed in one to eight places.
fn changed(kept: &[Vec<u8>], random: &Random) -> Vec<u8> {
    let one = |random: &Random| &kept[random.below(kept.len() as u64) as usize];
    let mut bytes = one(random).clone();
    for _ in 0..=random.below(8) {
        change(&mut bytes, one(random), random);
    }
    bytes.truncate(LENGTH_MAX);
    bytes
}

fn change(bytes: &mut Vec<u8>, other: &[u8], random: &Random) {
    let place = |length: usize| random.below(length as u64 + 1) as usize;
    let at = place(bytes.len());
    let end = at + random.below((bytes.len() - at).min(24) as u64 + 1) as usize;
    match random.below(8) {
        0 => drop(bytes.drain(at..end)),
        1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
        1 | 2 => bytes.insert(at, random.below(256) as u8),
        3 | 4 => drop(bytes.splice(at..at, PIECES[random.below(PIECES.len() as u64) as usize].iter().copied())),
        5 => {
            let again = bytes[at..end].repeat(1 + random.below(200) as usize);
            drop(bytes.splice(at..at, again));
        }
        6 => {
            let from = place(other.len());
            let to = from + random.below((other.len() - from) as u64 + 1) as usize;
            drop(bytes.splice(at..end, other[from..to].iter().copied()));
        }
        _ => bytes.truncate(at),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The canary: one input of many is wrong, and it is found and named.
    #[test]
    fn a_parser_that_panics_is_found() {
        let broken = |bytes: &[u8]| assert!(!bytes.windows(2).any(|two| two == b"[["), "nested");
        let found = catch_unwind(|| any_bytes(&[b"{\"a\":[1]}"], broken)).unwrap_err();
        let said = found.downcast_ref::<String>().unwrap();
        assert!(said.contains("SNUG_FUZZ_SEED=") && said.contains("5b5b"), "{said}");
    }
}

//! Eight people chatting in one room: `cargo bench --bench chat -- [--budget BUDGET] [--seconds N]`.
//!
//! The yardstick of the same run is a bare durable write: a line appended to a file in the same folder and synced to disk, and a
//! signature. A send cannot be faster than one of each.

#[path = "../tests/lab/mod.rs"]
mod lab;

use lab::drive::{self, Person, Setup, Snug};
use std::fs;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

const PEOPLE: usize = 8;

fn main() -> io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let after = |name: &str| words.iter().position(|word| word == name).and_then(|at| words.get(at + 1)).cloned();
    let budget = after("--budget").unwrap_or_else(|| "pi-zero-2w".into());
    let seconds = after("--seconds").and_then(|text| text.parse().ok()).unwrap_or(10);
    let profile = snug::budget::Profile::named(&budget).map_err(|error| io::Error::other(error.to_string()))?;
    let setup = Setup {
        binary: env!("CARGO_BIN_EXE_snug").into(),
        budget,
        cap: Some(profile.total),
        disk: None,
        resident_port: 1,
        log: "warn".to_owned(),
    };
    let snug = Snug::start(&setup)?;
    let yardstick = yardstick(&snug)?;
    let mut people =
        (0..PEOPLE).map(|number| snug.register(&format!("user{number}"))).collect::<io::Result<Vec<_>>>()?;
    let room = people[0].create_room()?;
    for person in &mut people[1..] {
        person.join(&room, drive::NAME)?.good("join")?;
    }
    let before = snug.usage();
    let one = alone(&mut people[0], &room)?;
    let (sends, syncs, wall) = together(&snug, people, &room, Duration::from_secs(seconds))?;
    let usage = snug.usage();

    println!("yardstick: append and sync one line {yardstick:.2} ms");
    println!("one person, one message after the other: {:.2} ms each, {:.1} × the yardstick", one, one / yardstick);
    println!(
        "{PEOPLE} people: {:.0} sends/s, {:.1} × the yardstick's {:.0}/s",
        sends.len() as f64 / wall,
        sends.len() as f64 / wall * yardstick / 1e3,
        1e3 / yardstick
    );
    for (what, list) in [("send", &sends), ("until all others saw it", &syncs)] {
        println!(
            "  {what}: p50 {:.1} ms, p99 {:.1} ms, longest {:.1} ms ({} of them)",
            at(list, 50),
            at(list, 99),
            at(list, 100),
            list.len()
        );
    }
    println!(
        "peak resident {:.1} MiB, CPU {:.2} ms a send (its {} syncs included)",
        usage.peak as f64 / f64::from(1 << 20),
        (usage.cpu - before.cpu) * 1e3 / sends.len().max(1) as f64,
        PEOPLE
    );
    if usage.peak > profile.total {
        eprintln!("above the cap of {} MiB", profile.total >> 20);
        std::process::exit(1);
    }
    Ok(())
}

fn at(sorted: &[f64], percent: usize) -> f64 {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

/// Milliseconds for one durable line.
fn yardstick(snug: &Snug) -> io::Result<f64> {
    const LINES: u32 = 200;
    let mut file = fs::File::create(snug.folder.join("yardstick"))?;
    let began = Instant::now();
    for _ in 0..LINES {
        file.write_all(&[b'x'; 700])?;
        file.sync_data()?;
    }
    Ok(began.elapsed().as_secs_f64() * 1e3 / f64::from(LINES))
}

fn alone(person: &mut Person, room: &str) -> io::Result<f64> {
    const MESSAGES: u32 = 100;
    let began = Instant::now();
    for _ in 0..MESSAGES {
        person.say(room, "alone")?;
    }
    Ok(began.elapsed().as_secs_f64() * 1e3 / f64::from(MESSAGES))
}

type Times = Vec<f64>;

/// Everyone sends as fast as it is answered, and waits in a sync of their own.
fn together(snug: &Snug, people: Vec<Person>, room: &str, length: Duration) -> io::Result<(Times, Times, f64)> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut syncing = Vec::new();
    for person in &people {
        let (mut person, stop) = (person.again(snug), stop.clone());
        let mut since = person.sync(None, 0)?["next_batch"].as_str().unwrap_or_default().to_owned();
        syncing.push(thread::spawn(move || -> io::Result<Times> {
            let mut took = Vec::new();
            while !stop.load(Relaxed) {
                let answer = person.sync(Some(&since), 1000)?;
                let now = now_us();
                since = answer["next_batch"].as_str().unwrap_or_default().to_owned();
                for room in answer["rooms"]["join"].as_object().into_iter().flat_map(|rooms| rooms.values()) {
                    for event in room["timeline"]["events"].as_array().into_iter().flatten() {
                        let sent = event["content"]["body"].as_str().and_then(|body| body.parse::<u64>().ok());
                        took.extend(sent.map(|sent| now.saturating_sub(sent) as f64 / 1e3));
                    }
                }
            }
            Ok(took)
        }));
    }
    let began = Instant::now();
    let mut sending = Vec::new();
    for mut person in people {
        let room = room.to_owned();
        sending.push(thread::spawn(move || -> io::Result<Times> {
            let mut took = Vec::new();
            while began.elapsed() < length {
                let start = Instant::now();
                person.say(&room, &now_us().to_string())?;
                took.push(start.elapsed().as_secs_f64() * 1e3);
            }
            Ok(took)
        }));
    }
    let sends = gather(sending)?;
    let wall = began.elapsed().as_secs_f64();
    stop.store(true, Relaxed);
    Ok((sends, gather(syncing)?, wall))
}

fn gather(threads: Vec<thread::JoinHandle<io::Result<Times>>>) -> io::Result<Times> {
    let mut all = Vec::new();
    for thread in threads {
        all.extend(thread.join().map_err(|_| io::Error::other("a client failed"))??);
    }
    all.sort_by(f64::total_cmp);
    Ok(all)
}

fn now_us() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

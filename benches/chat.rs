//! What a message costs: `cargo bench --bench chat -- [--budget BUDGET] [--messages N] [--behind N] [--kills N] [--binary FILE]`.
//!
//! One person and eight people send messages, with nobody and with eight people syncing; printed are bytes to disk, processor
//! time and context switches for each message, and what the server takes to start after kills at random moments. The yardstick of
//! the same run is a block of 4 KiB appended to a file in the same folder and synced: a durable send cannot be cheaper than one of
//! those. `--behind` messages are sent to other rooms before anything is measured, so that the database is larger than its cache.

#[path = "../tests/lab/mod.rs"]
mod lab;

use lab::drive::{self, Person, Setup, Snug, Usage};
use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

const PEOPLE: usize = 8;
/// A small room's worth of words.
const TEXT: &str = "fifty bytes of what people say to one another here";

fn main() -> io::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let after = |name: &str| words.iter().position(|word| word == name).and_then(|at| words.get(at + 1)).cloned();
    let number = |name: &str, or: u64| after(name).and_then(|text| text.parse().ok()).unwrap_or(or);
    let budget = after("--budget").unwrap_or_else(|| "pi-zero-2w".into());
    let messages = number("--messages", 10_000);
    let profile = snug::budget::Profile::named(&budget).map_err(|error| io::Error::other(error.to_string()))?;
    let setup = Setup {
        binary: after("--binary").map_or_else(|| env!("CARGO_BIN_EXE_snug").into(), Into::into),
        budget,
        cap: Some(profile.total),
        disk: None,
        resident_port: 1,
        log: "warn".to_owned(),
    };
    let mut snug = Snug::start(&setup)?;
    let mut people =
        (0..PEOPLE).map(|number| snug.register(&format!("user{number}"))).collect::<io::Result<Vec<_>>>()?;
    let own = people[0].create_room()?;
    let room = people[0].create_room()?;
    for person in &mut people[1..] {
        person.join(&room, drive::NAME)?.good("join")?;
    }
    fill(&snug, &mut people, number("--behind", 0))?;

    let block = yardstick(&snug)?;
    println!("a block of 4 KiB appended and synced: {:.0} a second, {:.0} µs CPU", block.a_second, block.cpu_us);
    let one = measure(&snug, &mut people[..1], &own, messages, false)?;
    let block = block.and(&yardstick(&snug)?);
    one.print("one person", &block);
    let quiet = measure(&snug, &mut people, &room, messages, false)?;
    let block = block.and(&yardstick(&snug)?);
    quiet.print("8 people", &block);
    let loud = measure(&snug, &mut people, &room, messages / 4, true)?;
    loud.print("8 people, all of them syncing", &block.and(&yardstick(&snug)?));
    one_sync(&snug, &mut people, &room, (messages / 10).max(1))?;
    let usage = snug.usage();
    let peak = usage.peak as f64 / f64::from(1 << 20);
    println!("peak resident {peak:.1} MiB, database and journal {} KiB on disk", snug.disk_bytes() >> 10);
    println!("10,000 messages a day are {:.1} GB a year", quiet.each(quiet.used.written) * 365.0 * 1e4 / 1e9);
    kills(&mut snug, &people, &room, number("--kills", 20))?;
    if usage.peak > profile.total {
        eprintln!("above the cap of {} MiB", profile.total >> 20);
        std::process::exit(1);
    }
    Ok(())
}

struct Block {
    a_second: f64,
    cpu_us: f64,
    runs: f64,
}

impl Block {
    /// The mean of several runs.
    fn and(&self, other: &Block) -> Block {
        let runs = self.runs + other.runs;
        let mean = |own: f64, others: f64| (own * self.runs + others * other.runs) / runs;
        Block { a_second: mean(self.a_second, other.a_second), cpu_us: mean(self.cpu_us, other.cpu_us), runs }
    }
}

fn yardstick(snug: &Snug) -> io::Result<Block> {
    const BLOCKS: u32 = 500;
    let path = snug.folder.join("yardstick");
    let mut file = fs::File::create(&path)?;
    let (began, before) = (Instant::now(), Usage::of_this_process());
    for _ in 0..BLOCKS {
        file.write_all(&[b'x'; 4096])?;
        file.sync_data()?;
    }
    let (seconds, cpu) = (began.elapsed().as_secs_f64(), Usage::of_this_process().cpu - before.cpu);
    fs::remove_file(path)?;
    Ok(Block { a_second: f64::from(BLOCKS) / seconds, cpu_us: cpu * 1e6 / f64::from(BLOCKS), runs: 1.0 })
}

/// Messages to rooms that nobody looks at any more.
fn fill(snug: &Snug, people: &mut [Person], count: u64) -> io::Result<()> {
    let began = Instant::now();
    if count == 0 {
        return Ok(());
    }
    let rooms = people.iter_mut().map(Person::create_room).collect::<io::Result<Vec<_>>>()?;
    let each = count / PEOPLE as u64;
    let senders: Vec<_> = people
        .iter()
        .zip(rooms)
        .map(|(person, room)| {
            let mut person = person.again(snug);
            thread::spawn(move || (0..each).try_for_each(|_| person.say(&room, TEXT).map(drop)))
        })
        .collect();
    for sender in senders {
        sender.join().map_err(|_| io::Error::other("a client failed"))??;
    }
    println!("{count} messages behind it, in {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

struct Measured {
    messages: u64,
    seconds: f64,
    used: Usage,
    /// Milliseconds from a call to its answer, sorted.
    sends: Vec<f64>,
    /// Milliseconds until another person had the message.
    seen: Vec<f64>,
}

impl Measured {
    fn each(&self, count: u64) -> f64 {
        count as f64 / self.messages as f64
    }

    fn print(&self, what: &str, block: &Block) {
        let (cpu, writer) =
            (self.used.cpu * 1e3 / self.messages as f64, self.used.writer_cpu * 1e3 / self.messages as f64);
        let a_second = self.messages as f64 / self.seconds;
        println!("{what}, {} messages:", self.messages);
        println!(
            "  each {:.1} KB to disk, {cpu:.2} ms CPU ({writer:.2} in the writer's thread), {:.1} context switches",
            self.each(self.used.written) / 1e3,
            self.each(self.used.switches)
        );
        println!("  {a_second:.0} a second, {:.2} x the synced blocks", a_second / block.a_second);
        for (what, list) in [("answered", &self.sends), ("seen by another", &self.seen)] {
            if !list.is_empty() {
                let [half, most, all] = [50, 99, 100].map(|percent| at(list, percent));
                println!("  {what}: p50 {half:.1} ms, p99 {most:.1} ms, longest {all:.1} ms");
            }
        }
    }
}

fn at(sorted: &[f64], percent: usize) -> f64 {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

fn difference(now: Usage, before: Usage) -> Usage {
    Usage {
        cpu: now.cpu - before.cpu,
        writer_cpu: now.writer_cpu - before.writer_cpu,
        written: now.written - before.written,
        switches: now.switches.saturating_sub(before.switches),
        ..now
    }
}

type Times = Vec<f64>;

/// Everyone sends as fast as it is answered, and when `syncing` waits in a sync of their own.
fn measure(snug: &Snug, people: &mut [Person], room: &str, messages: u64, syncing: bool) -> io::Result<Measured> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut readers = Vec::new();
    for person in people.iter().filter(|_| syncing) {
        let (mut person, stop) = (person.again(snug), stop.clone());
        let mut since = person.sync(None, 0)?["next_batch"].as_str().unwrap_or_default().to_owned();
        readers.push(thread::spawn(move || -> io::Result<Times> {
            let mut took = Vec::new();
            while !stop.load(Relaxed) {
                let answer = person.sync(Some(&since), 1000)?;
                let now = now_us();
                since = answer["next_batch"].as_str().unwrap_or_default().to_owned();
                for room in answer["rooms"]["join"].as_object().into_iter().flat_map(|rooms| rooms.values()) {
                    for event in room["timeline"]["events"].as_array().into_iter().flatten() {
                        let body = event["content"]["body"].as_str().unwrap_or_default();
                        let sent = body.split_once(' ').and_then(|(sent, _)| sent.parse::<u64>().ok());
                        took.extend(sent.map(|sent| now.saturating_sub(sent) as f64 / 1e3));
                    }
                }
            }
            Ok(took)
        }));
    }
    let left = Arc::new(AtomicU64::new(messages));
    let (began, before) = (Instant::now(), snug.usage());
    let mut senders = Vec::new();
    for person in people.iter() {
        let (mut person, room, left) = (person.again(snug), room.to_owned(), left.clone());
        senders.push(thread::spawn(move || -> io::Result<Times> {
            let mut took = Vec::new();
            while left.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok() {
                let start = Instant::now();
                person.say(&room, &format!("{} {TEXT}", now_us()))?;
                took.push(start.elapsed().as_secs_f64() * 1e3);
            }
            Ok(took)
        }));
    }
    let sends = gather(senders)?;
    let seconds = began.elapsed().as_secs_f64();
    stop.store(true, Relaxed);
    let seen = gather(readers)?;
    Ok(Measured { messages, seconds, used: difference(snug.usage(), before), sends, seen })
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

/// What one sync costs that has one new message: a message and eight syncs, then as many messages alone.
fn one_sync(snug: &Snug, people: &mut [Person], room: &str, rounds: u64) -> io::Result<()> {
    let mut since = Vec::new();
    for person in people.iter_mut() {
        since.push(person.sync(None, 0)?["next_batch"].as_str().unwrap_or_default().to_owned());
    }
    let mut cpu = [0.0; 2];
    for (with_syncs, cpu) in [true, false].into_iter().zip(&mut cpu) {
        let before = snug.usage();
        for _ in 0..rounds {
            people[0].say(room, TEXT)?;
            for (person, since) in people.iter_mut().zip(&mut since).filter(|_| with_syncs) {
                *since = person.sync(Some(since), 0)?["next_batch"].as_str().unwrap_or_default().to_owned();
            }
        }
        *cpu = snug.usage().cpu - before.cpu;
    }
    let each = (cpu[0] - cpu[1]) * 1e3 / (rounds * PEOPLE as u64) as f64;
    println!("an incremental sync of one message: {each:.3} ms CPU");
    Ok(())
}

/// Kills the server at random moments while all of them send, starts it again, and looks for every message it has acknowledged.
fn kills(snug: &mut Snug, people: &[Person], room: &str, count: u64) -> io::Result<()> {
    let (mut longest, mut acknowledged) = (0f64, 0);
    let random = snug::base::Random::seeded(now_us());
    for _ in 0..count {
        let senders: Vec<_> = people.iter().map(|person| send_until_it_ends(person.again(snug), room)).collect();
        // Mostly short, at most two seconds: each kill finds another amount in the journal.
        let part = random.below(1000) as f64 / 1000.0;
        thread::sleep(Duration::from_secs_f64(2.0 * part.powi(3)));
        snug.kill();
        let mut sent = HashSet::new();
        for sender in senders {
            sent.extend(sender.join().map_err(|_| io::Error::other("a client failed"))?);
        }
        acknowledged += sent.len();
        let began = Instant::now();
        snug.run()?;
        longest = longest.max(began.elapsed().as_secs_f64());
        let lost = not_found(&mut people[0].again(snug), room, sent)?;
        if lost > 0 {
            eprintln!("{lost} acknowledged messages are lost");
            std::process::exit(1);
        }
    }
    println!("{count} kills, {acknowledged} messages acknowledged, none lost; started again in {longest:.2} s at most");
    Ok(())
}

/// Sends until the server is gone; answers the ids of what it acknowledged.
fn send_until_it_ends(mut person: Person, room: &str) -> thread::JoinHandle<Vec<String>> {
    let room = room.to_owned();
    thread::spawn(move || {
        let mut sent = Vec::new();
        while let Ok(answer) = person.say(&room, TEXT) {
            sent.extend(answer["event_id"].as_str().map(str::to_owned));
        }
        sent
    })
}

/// How many of these events the room's history does not have.
fn not_found(person: &mut Person, room: &str, mut ids: HashSet<String>) -> io::Result<usize> {
    let mut from = String::new();
    while !ids.is_empty() {
        let path =
            format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=100{from}", lab::wire::percent_encode(room));
        let page = person.call("GET", &path, None)?;
        let events = page["chunk"].as_array().cloned().unwrap_or_default();
        for id in events.iter().filter_map(|event| event["event_id"].as_str()) {
            ids.remove(id);
        }
        match page["end"].as_str() {
            Some(end) if !events.is_empty() => from = format!("&from={}", lab::wire::percent_encode(end)),
            _ => break,
        }
    }
    Ok(ids.len())
}

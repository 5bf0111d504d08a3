//! Odd requests against a real server, to see whether any of them harms it: `cargo bench --bench fuzz -- --help`.
//!
//! Read in this order: `table` (every endpoint), `known` (honest values), `odd` (JSON made odd), `request` (one request), `caller`
//! (who sends and judges), `peers` and `elsewhere` (other servers, and what they answer).

#[path = "../lab/mod.rs"]
mod lab;

mod caller;
mod elsewhere;
mod known;
mod odd;
mod peers;
mod request;
mod table;

use caller::{Caller, Diary};
use elsewhere::Elsewhere;
use lab::certificates::Certificates;
use lab::drive::{Setup, Snug};
use lab::resident::lock;
use lab::room::{GUEST, RESIDENT};
use peers::Peers;
use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use table::{Endpoint, TABLE};

const USAGE: &str = "\
Sends random and odd requests to a server under a memory budget, to every endpoint that apps and servers call.

    cargo bench --bench fuzz -- [--seconds N] [--seed N] [--connections N] [--requests N] [--budget BUDGET]
                                [--only TEXT] [--without TEXT] [--memory] [--list] [--binary FILE]

--seconds     how long; 60 without it
--seed        what is sent follows from it; a new one without it
--connections how many ask at once; 6 without it, each with randomness of its own
--requests    how many each of them sends at most
--only        endpoints whose method and path contain the text; --without: all but those
--memory      resident memory above the budget's total is a fault too
--list        says how often each endpoint was asked, and how often it answered well
--binary      another program than the one just built

Ends with status 1 at the first fault: the process ends or panics, a status 5xx that is not its to give, an answer that is not
JSON, none within a minute. Says then what was sent, and how to send it again.
";

/// Names of other servers beside the two of the load generator.
const NAMES: usize = 18;

struct Arguments {
    seconds: u64,
    seed: u64,
    connections: u64,
    requests: u64,
    budget: String,
    only: Option<String>,
    without: Vec<String>,
    memory: bool,
    list: bool,
    binary: String,
}

fn main() -> io::Result<()> {
    let given = arguments()?;
    match run(&given) {
        Ok(faults) if faults.is_empty() => Ok(()),
        Ok(faults) => {
            eprintln!("\n{}\n\nagain: {}", faults.join("\n"), given.again());
            std::process::exit(1);
        }
        Err(error) => Err(error),
    }
}

fn arguments() -> io::Result<Arguments> {
    let mut given = Arguments {
        seconds: 60,
        seed: lab::resident::now_ms() % 1_000_000_007,
        connections: 6,
        requests: u64::MAX,
        budget: "pi-zero-2w".into(),
        only: None,
        without: Vec::new(),
        memory: false,
        list: false,
        binary: env!("CARGO_BIN_EXE_snug").into(),
    };
    let wrong = |what: &str| io::Error::other(format!("{what}\n\n{USAGE}"));
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| wrong(&format!("{word} needs a value")));
        let number = |text: String| text.parse::<u64>().map_err(|_| wrong(&format!("{text} is not a number")));
        match word.as_str() {
            "--seconds" => given.seconds = number(value()?)?,
            "--seed" => given.seed = number(value()?)?,
            "--connections" => given.connections = number(value()?)?.max(1),
            "--requests" => given.requests = number(value()?)?,
            "--budget" => given.budget = value()?,
            "--only" => given.only = Some(value()?),
            "--without" => given.without.push(value()?),
            "--memory" => given.memory = true,
            "--list" => given.list = true,
            "--binary" => given.binary = value()?,
            // Given by cargo.
            "--bench" => {}
            "--help" => {
                print!("{USAGE}");
                std::process::exit(0);
            }
            other => return Err(wrong(&format!("{other} is not understood"))),
        }
    }
    Ok(given)
}

impl Arguments {
    fn again(&self) -> String {
        let mut line = format!(
            "cargo bench --bench fuzz -- --seed {} --seconds {} --connections {} --budget {}",
            self.seed, self.seconds, self.connections, self.budget
        );
        self.only.iter().for_each(|text| line += &format!(" --only {text:?}"));
        self.without.iter().for_each(|text| line += &format!(" --without {text:?}"));
        line
    }

    fn table(&self) -> Vec<&'static Endpoint> {
        let wanted = |endpoint: &&Endpoint| {
            let name = format!("{} {}", endpoint.method, endpoint.templates().collect::<Vec<_>>().join(" "));
            let only = self.only.as_ref().is_none_or(|text| name.contains(text));
            only && !self.without.iter().any(|text| name.contains(text))
        };
        TABLE.iter().filter(wanted).collect()
    }
}

/// The whole run; what was wrong.
fn run(given: &Arguments) -> io::Result<Vec<String>> {
    let profile = snug::budget::Profile::named(&given.budget).map_err(|error| io::Error::other(error.to_string()))?;
    let certificates = Certificates::get(&lab::control::cache().join("certificates"))?;
    let listeners = (0..NAMES).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<Vec<_>>>()?;
    let ports = listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect::<io::Result<Vec<_>>>()?;
    let names = [RESIDENT.to_owned(), GUEST.to_owned()];
    let names = names.into_iter().chain(ports.iter().map(|port| format!("127.0.0.1:{port}"))).collect();
    let peers = Arc::new(Peers::new(given.seed, names));
    let elsewhere = Elsewhere::new(peers.clone());
    for listener in listeners {
        elsewhere.listen(listener, &certificates)?;
    }
    let setup = Setup {
        binary: given.binary.clone().into(),
        budget: given.budget.clone(),
        cap: None,
        disk: None,
        resident_port: ports[0],
        log: "warn".to_owned(),
    };
    let mut snug = Snug::start(&setup)?;
    println!("seed {}, {} connections, {} s, budget {}", given.seed, given.connections, given.seconds, given.budget);
    let table = given.table();
    if table.is_empty() {
        return Err(io::Error::other("no endpoint is left"));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut diaries = Vec::new();
    let mut threads = Vec::new();
    for number in 0..given.connections {
        let tls = if number % 4 == 3 { Some(certificates.client_config()?) } else { None };
        let caller = Caller::new(number, given.seed, &peers, &snug, tls);
        diaries.push(caller.diary());
        let (table, requests, stop) = (table.clone(), given.requests, stop.clone());
        threads.push(thread::spawn(move || caller.run(&table, requests, &stop)));
    }
    let mut faults = watch(&mut snug, given, &diaries, &threads);
    stop.store(true, Relaxed);
    let peak = snug.usage().peak;
    report(given, &diaries, &elsewhere, peak);
    if !faults.is_empty() {
        faults.push(last_requests(&diaries, faults.iter().any(|fault| fault.starts_with("the server "))));
        faults.push(format!("the server's log ends:\n{}", snug.log_tail()));
        return Ok(faults);
    }
    for thread in threads {
        thread.join().map_err(|_| io::Error::other("a caller panicked"))?;
    }
    snug.stop()?;
    snug.run().map_err(|error| io::Error::other(format!("after the run it does not start again: {error}")))?;
    snug.stop()?;
    if given.memory && peak > profile.total {
        faults.push(format!("{} MiB resident, the budget is {}", peak >> 20, profile.total >> 20));
    }
    Ok(faults)
}

/// Waits for the end or for the first fault.
fn watch(
    snug: &mut Snug,
    given: &Arguments,
    diaries: &[Arc<Mutex<Diary>>],
    threads: &[thread::JoinHandle<()>],
) -> Vec<String> {
    let began = Instant::now();
    let mut read = 0;
    loop {
        thread::sleep(Duration::from_millis(200));
        if let Some(status) = snug.ended() {
            return vec![format!("the server ended by itself: {status}")];
        }
        if let Some(line) = snug.log_since(&mut read).lines().find(|line| line.contains("panicked at")) {
            let fault = format!("the server panicked: {line}");
            // Those whose request it was learn of it, and the log is written to its end.
            thread::sleep(Duration::from_millis(500));
            return vec![fault];
        }
        let faults: Vec<String> = diaries.iter().filter_map(|diary| lock(diary).fault.clone()).collect();
        if !faults.is_empty() {
            // An answer that fails to come may be the first sign of an end.
            thread::sleep(Duration::from_millis(500));
            let ended = snug.ended().map(|status| format!("the server ended by itself: {status}"));
            return ended.into_iter().chain(faults).collect();
        }
        let done = threads.iter().all(thread::JoinHandle::is_finished);
        if done || began.elapsed() > Duration::from_secs(given.seconds) {
            return Vec::new();
        }
    }
}

fn report(given: &Arguments, diaries: &[Arc<Mutex<Diary>>], elsewhere: &Elsewhere, peak: u64) {
    let mut endpoints: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut statuses: BTreeMap<u16, u64> = BTreeMap::new();
    let (mut slowest, mut slowest_label) = (Duration::ZERO, String::new());
    for diary in diaries {
        let diary = lock(diary);
        for (name, (asked, well)) in &diary.endpoints {
            let sum = endpoints.entry(name.clone()).or_default();
            *sum = (sum.0 + asked, sum.1 + well);
        }
        diary.statuses.iter().for_each(|(status, count)| *statuses.entry(*status).or_default() += count);
        if diary.slowest > slowest {
            (slowest, slowest_label) = (diary.slowest, diary.slowest_label.clone());
        }
    }
    let all: u64 = endpoints.values().map(|(asked, _)| asked).sum();
    println!(
        "{all} requests to {} endpoints, {} questions answered as other servers; peak {:.1} MiB resident",
        endpoints.len(),
        elsewhere.asked.load(Relaxed),
        peak as f64 / f64::from(1 << 20),
    );
    println!("slowest answer {:.1} s: {slowest_label}", slowest.as_secs_f64());
    let statuses: Vec<String> = statuses.iter().map(|(status, count)| format!("{status}: {count}")).collect();
    println!("answers by status: {}", statuses.join(", "));
    if given.list {
        endpoints.iter().for_each(|(name, (asked, well))| println!("{asked:>7} {well:>7}  {name}"));
        println!("asked of other servers:");
        lock(&elsewhere.questions).iter().for_each(|(question, count)| println!("{count:>7}  {question}"));
    }
}

/// The requests before the fault: of the connection that has it, or of all when the process ended.
fn last_requests(diaries: &[Arc<Mutex<Diary>>], ended: bool) -> String {
    let mut out = String::new();
    for (number, diary) in diaries.iter().enumerate() {
        let diary = lock(diary);
        let count = match (diary.fault.is_some(), ended) {
            (true, _) => usize::MAX,
            (false, true) => 2,
            (false, false) => 0,
        };
        for sent in diary.recent.iter().skip(diary.recent.len().saturating_sub(count)) {
            let text: String = sent.bytes.escape_ascii().to_string().replace("\\r\\n", "\n    ");
            let outcome = sent.outcome.as_deref().unwrap_or("not answered");
            out += &format!("connection {number}, request {}:\n    {text}\n  → {outcome}\n", sent.number);
        }
    }
    out
}

//! What the store writes and how long it makes others wait: `cargo bench --bench store`.
//!
//! Prints bytes of a state tree and of one later change, the time of the tree's main operations, and the longest stall
//! of small writes beside bulk ones, on a real file in the folder of `SNUG_BENCH_DIR` (the system's temporary folder
//! when unset; that may be memory, the stalls then say little).

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use snug::budget::{Budget, meter};
use snug::store::schema::{STATE_NAME, STATE_NODE};
use snug::store::tables::room::event;
use snug::store::tables::room::event_row::{Flags, Id, Kind, Membership, Root, Row};
use snug::store::tables::room::{auth_graph, body, state_tree};
use snug::store::{BodyNum, EventNum, Get, RoomNum, StateKeyNum, Store, StoreOptions, UserNum, Write};

const KEYS: u32 = 85_000;
const EVENTS: u32 = 194_000;

fn main() {
    // `cargo test` runs benches too, to see that they build and start.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let folder = std::env::var_os("SNUG_BENCH_DIR").map_or(std::env::temp_dir(), PathBuf::from).join("snug-bench");
    std::fs::create_dir_all(&folder).expect("a folder to write to");
    for cache_mib in [1, 4, 16] {
        memory(&folder, cache_mib << 20);
    }
    trees(&folder);
    walks(&folder);
    for events in [500, 2000, 4000] {
        stalls(&folder, events);
    }
    let _ = std::fs::remove_dir_all(&folder);
}

fn open(folder: &Path, name: &str) -> Store {
    let path = folder.join(name);
    let _ = std::fs::remove_file(&path);
    Store::open(StoreOptions::new(path)).expect("a new database")
}

fn write<T: Send + 'static>(
    store: &Store,
    job: impl FnOnce(&mut Write<'_>) -> snug::store::Result<T> + Send + 'static,
) -> T {
    store.write_blocking(job).expect("there is room on the disk").0
}

/// Rows and bytes of the nodes and their index.
fn stored(store: &Store) -> (u64, u64) {
    let read = store.read().unwrap();
    let (mut rows, mut bytes) = (0, 0);
    for table in [&STATE_NODE, &STATE_NAME] {
        let mut visit = |key: &[u8], value: &[u8]| {
            rows += 1;
            bytes += (key.len() + value.len()) as u64;
            Ok(ControlFlow::Continue(()))
        };
        read.prefix(table, b"", &mut visit).unwrap();
    }
    (rows, bytes)
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    println!("{what}: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    done
}

fn length(folder: &Path, name: &str) -> u64 {
    std::fs::metadata(folder.join(name)).map_or(0, |file| file.len())
}

/// What is allocated at most beside the cache: small commits at random places, bulk rows and reads, with a snapshot held open.
fn memory(folder: &Path, cache_bytes: usize) {
    let path = folder.join("memory");
    let _ = std::fs::remove_file(&path);
    let mut options = StoreOptions::new(path);
    options.cache_bytes = cache_bytes;
    let before = meter::live_bytes();
    let store = Store::open(options).expect("a new database");
    let mut place = 1u64;
    let mut next = move || {
        place = place.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        place >> 20
    };
    let held = store.read().unwrap();
    meter::reset_high_water();
    for round in 0..200u64 {
        let keys: Vec<u64> = (0..500).map(|_| next()).collect();
        let bulk =
            move |w: &mut Write<'_>| keys.iter().try_for_each(|key| w.put(&STATE_NODE, &key.to_be_bytes(), &[7; 300]));
        store.write_bulk_blocking(bulk).expect("there is room on the disk");
        for _ in 0..5 {
            let key = next();
            write(&store, move |w| w.put(&STATE_NODE, &key.to_be_bytes(), &[1; 100]));
        }
        let (read, mut rows) = (store.read().unwrap(), 0);
        let mut visit = |_: &[u8], _: &[u8]| {
            rows += 1;
            Ok(if rows < 2000 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        };
        read.range(&STATE_NODE, &next().to_be_bytes(), None, false, &mut visit).unwrap();
        drop((round, read));
    }
    drop(held);
    let beside = || (meter::high_water_bytes() as i64 - before as i64 - cache_bytes as i64) as f64 / 1048576.0;
    let bulk = beside();
    // Each row changes a page of its own, which redb remembers until the next checkpoint.
    meter::reset_high_water();
    for _ in 0..4000 {
        let keys: Vec<u64> = (0..20).map(|_| next()).collect();
        write(&store, move |w| keys.iter().try_for_each(|key| w.put(&STATE_NODE, &key.to_be_bytes(), &[1; 100])));
    }
    println!(
        "memory with a cache of {} MiB: at most {bulk:.2} MiB beside it with bulk writes, {:.2} MiB with small ones",
        cache_bytes >> 20,
        beside()
    );
}

fn trees(folder: &Path) {
    println!("-- a state of {KEYS} keys");
    let store = open(folder, "trees.db");
    // State events are a part of all, in an order of their own.
    let event = |key: u32| EventNum(key.wrapping_mul(2_654_435_761) % EVENTS + 1);
    let root = timed("built in batches of 4096", || {
        let mut builder = state_tree::Builder::default();
        for first in (1..=KEYS).step_by(4096) {
            let keys = first..(first + 4096).min(KEYS + 1);
            let batch: Vec<_> =
                keys.map(|key| state_tree::Entry { key: StateKeyNum(key), event: event(key) }).collect();
            builder = write(&store, move |w| {
                builder.push(w, &batch)?;
                Ok(builder)
            });
        }
        write(&store, move |w| builder.finish(w))
    });
    let (rows, bytes) = stored(&store);
    println!("whole tree: {} nodes, {bytes} bytes with the index", rows / 2);
    let later = later_changes(&store, root, 1000);
    let (rows_after, bytes_after) = stored(&store);
    println!(
        "one later change: {} bytes in {} nodes",
        (bytes_after - bytes) / 1000,
        (rows_after - rows) as f64 / 2000.0
    );
    let read = store.read().unwrap();
    let mut differ = 0;
    timed("difference of 1000 keys", || {
        let mut visit = |_, _, _| {
            differ += 1;
            Ok(ControlFlow::Continue(()))
        };
        state_tree::diff(&read, Some(root), Some(later), &mut visit).unwrap();
    });
    timed("read in pages of 512", || {
        let (mut page, mut after) = (Vec::new(), None);
        loop {
            page.clear();
            let ended = state_tree::page(&read, later, after, 512, &mut page).unwrap();
            after = page.last().map(|entry| entry.key);
            if ended {
                break;
            }
        }
    });
    timed("10000 lookups", || {
        (0..10_000).for_each(|n| assert!(state_tree::get(&read, later, StateKeyNum(n * 8 + 1)).is_ok()));
    });
    drop(read);
    store.compact_blocking().unwrap();
    println!("the file, compacted: {} bytes", length(folder, "trees.db"));
    store.close_blocking();
}

fn later_changes(store: &Store, mut root: Root, count: u32) -> Root {
    let start = Instant::now();
    for n in 0..count {
        let key = StateKeyNum(n.wrapping_mul(2_246_822_519) % KEYS + 1);
        root = write(store, move |w| state_tree::set(w, Some(root), &[(key, Some(EventNum(EVENTS + n)))]));
    }
    println!("one later change: {:.2} ms with its commit", start.elapsed().as_secs_f64() * 1e3 / f64::from(count));
    root
}

fn member(num: u32) -> Row {
    // Who joins early is cited later: create, power levels, join rules, the member event before.
    let auth = [1, 2 + num / 10_000, 3, num / 2].into_iter().filter(|auth| *auth < num && *auth > 0).map(EventNum);
    let mut id = [0; 32];
    id[..4].copy_from_slice(&num.wrapping_mul(2_654_435_761).to_le_bytes());
    Row {
        room: RoomNum(1),
        body: BodyNum(num),
        id: Id::Hash(id),
        kind: Kind::MEMBER,
        state_key: Some(StateKeyNum(num)),
        sender: UserNum(num),
        member: Some((Membership::Join, UserNum(num))),
        flags: Flags::default(),
        depth: num.into(),
        origin_server_ts: 1_700_000_000_000,
        auth: auth.collect(),
        before: None,
        order: None,
        redacted_by: None,
    }
}

fn walks(folder: &Path) {
    println!("-- auth edges of {EVENTS} events");
    let store = open(folder, "walks.db");
    timed("rows written in batches of 4096", || {
        for first in (1..=EVENTS).step_by(4096) {
            write(&store, move |w| {
                let nums = first..(first + 4096).min(EVENTS + 1);
                nums.into_iter().try_for_each(|num| event::put_row(w, EventNum(num), &member(num)))
            });
        }
    });
    let read = store.read().unwrap();
    let account = Budget::for_tests().account("state_resolution");
    let grant = || account.try_take(0).unwrap();
    timed("auth chain of the last 85000", || {
        let mut chain = auth_graph::auth_chain(&read, &[], grant()).unwrap();
        (EVENTS - KEYS..=EVENTS).for_each(|num| chain.add(&read, EventNum(num)).unwrap());
        while chain.next(&read).unwrap().is_some() {}
    });
    let sets: Vec<Vec<_>> =
        (0..8).map(|set| (0..500).map(|n| EventNum(EVENTS - set * 7919 - n * 13)).collect()).collect();
    timed("auth difference of 8 sets of 500", || {
        auth_graph::auth_difference(&read, &sets, None, &mut grant()).unwrap();
    });
    timed("subgraph of 4000 conflicted", || {
        auth_graph::conflicted_subgraph(&read, &sets.concat(), &mut grant()).unwrap();
    });
    println!("most held: {} bytes", account.high_water());
    drop(read);
    store.close_blocking();
}

/// Bulk writes of so many events each, small writes beside them.
fn stalls(folder: &Path, events: u32) {
    let store = open(folder, "stalls.db");
    let done = Arc::new(AtomicBool::new(false));
    let small = {
        let (store, done) = (store.clone(), done.clone());
        std::thread::spawn(move || {
            let mut times = Vec::new();
            let mut num = 10_000_000;
            while !done.load(Ordering::Relaxed) {
                let start = Instant::now();
                num += 1;
                write(&store, move |w| event::put_row(w, EventNum(num), &member(num)));
                times.push(start.elapsed());
                std::thread::sleep(Duration::from_millis(5));
            }
            times.sort();
            times
        })
    };
    let start = Instant::now();
    let json = |num: u32| {
        format!(
            r#"{{"auth_events":[],"content":{{"avatar_url":"mxc://example.org/{num}","displayname":"User {num}","membership":"join"}},"depth":{num},"hashes":{{"sha256":"{num:064}"}},"origin_server_ts":1700000000000,"prev_events":[],"room_id":"!a:example.org","sender":"@u{num}:example.org","signatures":{{"example.org":{{"ed25519:1":"{num:086}"}}}},"state_key":"@u{num}:example.org","type":"m.room.member"}}"#
        )
    };
    let mut bulks = Vec::new();
    for first in (1..=40_000u32).step_by(events as usize) {
        let packed: Vec<_> = (first..first + events)
            .map(|num| body::encode(json(num).as_bytes(), &body::Known::default(), false))
            .collect();
        let start = Instant::now();
        let bulk = move |w: &mut Write<'_>| {
            for (num, packed) in (first..).zip(packed) {
                event::put_body(w, BodyNum(num), &packed)?;
                event::put_row(w, EventNum(num), &member(num))?;
                event::put_id(w, &member(num).id.text(), EventNum(num))?;
            }
            Ok::<_, snug::store::Error>(())
        };
        store.write_bulk_blocking(bulk).expect("there is room on the disk");
        bulks.push(start.elapsed());
    }
    let whole = start.elapsed();
    done.store(true, Ordering::Relaxed);
    let times = small.join().expect("the small writes succeed");
    let ms = |time: &Duration| time.as_secs_f64() * 1e3;
    println!(
        "-- bulk writes of {events} events: 40000 in {:.0} ms, longest {:.0} ms; of {} small writes beside them: median {:.1} ms, 99 % within {:.0} ms, longest {:.0} ms",
        ms(&whole),
        bulks.iter().max().map_or(0.0, ms),
        times.len(),
        ms(&times[times.len() / 2]),
        ms(&times[times.len() * 99 / 100]),
        times.last().map_or(0.0, ms),
    );
    store.close_blocking();
}

//! A room as files: made once, kept in a cache, mapped to the answers a resident server gives.
//!
//! A room's folder holds `log` (every event in order of making, as sent), `rows` (one fixed row for each), `body` (the arrays of a
//! `send_join` answer, ready to be copied) and `about.json`. A folder without `about.json` is a broken attempt and is made again.

use super::event::{Hash, event_id};
use super::json::Json;
use super::random::Stream;
use super::room::{Dials, Fault, Job, Kind, Order, Reach, Room, Row, Tamper, World, play};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// Raise when the same dials give another room, so that caches are made anew.
const FORMAT: u32 = 1;

/// Where an event's bytes are in the log.
#[derive(Clone, Copy)]
pub struct Place {
    pub offset: u64,
    pub bytes: u32,
}

/// Parts of the `body` file, by where they begin; each ends where the next begins.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
pub struct Segments {
    pub state: u64,
    pub chain: u64,
    pub partial_state: u64,
    pub partial_chain: u64,
    pub end: u64,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct About {
    format: u32,
    dials: Dials,
    room_id: String,
    extremities: Vec<u32>,
    faults: Vec<Fault>,
    segments: Segments,
    servers_joined: Vec<String>,
    auth_depth: u32,
    rotten_joined: u32,
    rotten_events: u32,
    census: std::collections::BTreeMap<String, usize>,
    digest: String,
}

/// A room whose bytes are on disk.
pub struct Rendered {
    pub folder: PathBuf,
    pub room: Room,
    pub places: Vec<Place>,
    pub segments: Segments,
    /// Servers with somebody joined.
    pub servers_joined: Vec<String>,
    pub auth_depth: u32,
    /// Joined users, and events, whose server's key nobody has.
    pub rotten_joined: u32,
    pub rotten_events: u32,
    pub census: std::collections::BTreeMap<String, usize>,
    /// Hash of log and body.
    pub digest: String,
    log: File,
}

impl Rendered {
    /// The room for these dials, from the cache or made now. One at a time in a process: two tests may want the same room.
    pub fn get(cache: &Path, dials: &Dials) -> io::Result<Rendered> {
        static MAKING: Mutex<()> = Mutex::new(());
        let _alone = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("{}-v{}-{:016x}", dials.name, dials.version, fingerprint(dials));
        let folder = cache.join(name);
        if folder.join("about.json").exists() {
            return Rendered::open(&folder);
        }
        let attempt = cache.join(format!(".making-{}-{}", dials.name, std::process::id()));
        fs::create_dir_all(&attempt)?;
        make(&attempt, dials)?;
        // Somebody else may have made it meanwhile; theirs is the same.
        if fs::rename(&attempt, &folder).is_err() {
            fs::remove_dir_all(&attempt)?;
        }
        Rendered::open(&folder)
    }

    fn open(folder: &Path) -> io::Result<Rendered> {
        let about: About = serde_json::from_slice(&fs::read(folder.join("about.json"))?)?;
        let (rows, places) = read_rows(&fs::read(folder.join("rows"))?);
        let room = Room::from_parts(about.dials, about.room_id, rows, about.extremities, about.faults);
        Ok(Rendered {
            folder: folder.to_owned(),
            room,
            places,
            segments: about.segments,
            servers_joined: about.servers_joined,
            auth_depth: about.auth_depth,
            rotten_joined: about.rotten_joined,
            rotten_events: about.rotten_events,
            census: about.census,
            digest: about.digest,
            log: File::open(folder.join("log"))?,
        })
    }

    pub fn event(&self, row: u32) -> io::Result<Vec<u8>> {
        read_place(&self.log, self.places[row as usize])
    }

    pub fn body(&self) -> io::Result<File> {
        File::open(self.folder.join("body"))
    }

    /// Users who have to be in the room after a join, the joining user not counted.
    pub fn joined_expected(&self) -> usize {
        let joined = self.room.rows.iter().filter(|row| row.in_state && row.kind == Kind::Join).count();
        let dropped =
            self.room.faults.iter().filter(|fault| fault.expect == "dropped" && fault.kind != "not allowed").count();
        joined - dropped - self.rotten_joined as usize
    }

    /// Distinct events in state and auth chain.
    pub fn events(&self) -> usize {
        self.room.rows.iter().filter(|row| (row.in_state || row.in_chain) && !row.withheld).count()
    }

    pub fn body_bytes(&self) -> u64 {
        self.segments.partial_state
    }
}

fn fingerprint(dials: &Dials) -> u64 {
    let hash = Sha256::digest(format!("{FORMAT} {dials:?}"));
    u64::from_be_bytes(hash[..8].try_into().expect("eight bytes"))
}

fn read_place(log: &File, place: Place) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; place.bytes as usize];
    log.read_exact_at(&mut bytes, place.offset)?;
    Ok(bytes)
}

/// Plays the room into `folder`. Memory: some 70 bytes an event; the events themselves go to the log as they are made.
fn make(folder: &Path, dials: &Dials) -> io::Result<()> {
    let log = File::create(folder.join("log"))?;
    let (room, places, log_hash) = record(dials, BufWriter::with_capacity(1 << 20, log))?;
    let log = File::open(folder.join("log"))?;
    let body = BufWriter::with_capacity(1 << 20, File::create(folder.join("body"))?);
    let (segments, body_hash) = write_body(&room, &|row| read_place(&log, places[row as usize]), body)?;
    fs::write(folder.join("rows"), write_rows(&room.rows, &places))?;
    let (rotten_joined, rotten_events) = rotten(&room);
    let about = About {
        format: FORMAT,
        servers_joined: servers_joined(&room),
        auth_depth: room.auth_depth(),
        census: super::room::census(&room),
        segments,
        rotten_joined,
        rotten_events,
        digest: hex(&Sha256::digest([log_hash, body_hash].concat())),
        dials: room.dials,
        room_id: room.room_id,
        extremities: room.extremities,
        faults: room.faults,
    };
    fs::write(folder.join("about.json"), serde_json::to_vec_pretty(&about)?)
}

/// The same in memory, for small rooms in tests: the room and each event as sent.
pub fn in_memory(dials: &Dials) -> (Room, Vec<Vec<u8>>, String) {
    let mut log = Vec::new();
    let (room, places, log_hash) = record(dials, &mut log).expect("memory does not fail");
    let events: Vec<Vec<u8>> =
        places.iter().map(|place| log[place.offset as usize..][..place.bytes as usize].to_vec()).collect();
    let (_, body_hash) =
        write_body(&room, &|row| Ok(events[row as usize].clone()), &mut Vec::new()).expect("memory does not fail");
    let digest = hex(&Sha256::digest([log_hash, body_hash].concat()));
    (room, events, digest)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Events that travel between threads together.
const BATCH: usize = 128;

/// Plays the room on this thread, signs on others, and writes the log in order on one more.
fn record(dials: &Dials, log: impl Write + Send) -> io::Result<(Room, Vec<Place>, Hash)> {
    let workers = thread::available_parallelism().map_or(1, usize::from).clamp(1, 8);
    let world = Arc::new(World::new(dials.seed, dials.servers));
    thread::scope(|scope| {
        let (mut to_workers, mut from_workers) = (Vec::new(), Vec::new());
        for _ in 0..workers {
            let (jobs_in, jobs) = sync_channel::<(u64, Vec<Job>)>(2);
            let (done, done_out) = sync_channel::<Vec<Vec<u8>>>(2);
            let (world, seed) = (world.clone(), dials.seed);
            scope.spawn(move || sign_batches(&world, seed, &jobs, &done));
            to_workers.push(jobs_in);
            from_workers.push(done_out);
        }
        let writer = scope.spawn(move || write_log(&from_workers, log));
        let mut batch = Vec::with_capacity(BATCH);
        let mut sent = 0usize;
        let room = play(dials, &mut |job| {
            batch.push(job);
            if batch.len() == BATCH {
                send_batch(&to_workers, &mut sent, std::mem::take(&mut batch));
            }
        });
        send_batch(&to_workers, &mut sent, batch);
        drop(to_workers);
        let (places, hash) = writer.join().expect("the writer does not panic")?;
        Ok((room, places, hash))
    })
}

fn send_batch(workers: &[SyncSender<(u64, Vec<Job>)>], sent: &mut usize, batch: Vec<Job>) {
    let first = (*sent * BATCH) as u64;
    // A closed channel means the writer failed; it tells why.
    let _ = workers[*sent % workers.len()].send((first, batch));
    *sent += 1;
}

fn sign_batches(world: &World, seed: u64, jobs: &Receiver<(u64, Vec<Job>)>, done: &SyncSender<Vec<Vec<u8>>>) {
    while let Ok((first, batch)) = jobs.recv() {
        let events = (first..).zip(batch).map(|(row, job)| render_job(world, seed, row, job)).collect();
        if done.send(events).is_err() {
            return;
        }
    }
}

fn render_job(world: &World, seed: u64, row: u64, mut job: Job) -> Vec<u8> {
    let keys: Vec<_> = job
        .signers
        .iter()
        .map(|signer| {
            let server = &world.servers[signer.server as usize];
            if signer.old { &server.old.as_ref().expect("an old key signs where there is one").0 } else { &server.key }
        })
        .collect();
    if job.tamper == Tamper::Signature {
        job.sealed.signed_bytes[1] ^= 1;
    }
    let signatures = job.sealed.signatures(&keys);
    if job.tamper == Tamper::Content {
        job.sealed.tamper();
    }
    let mut out = Vec::with_capacity(1024);
    job.sealed.careless(signatures, job.unsigned.canonical(), Stream::new(seed, "manners", row), &mut out);
    out
}

/// Takes batches from the workers in turn, which is the order they were dealt in.
fn write_log(from: &[Receiver<Vec<Vec<u8>>>], mut log: impl Write) -> io::Result<(Vec<Place>, Hash)> {
    let (mut places, mut offset, mut hash) = (Vec::new(), 0, Sha256::new());
    'all: loop {
        for worker in from {
            let Ok(batch) = worker.recv() else { break 'all };
            for event in batch {
                hash.update(&event);
                log.write_all(&event)?;
                places.push(Place { offset, bytes: event.len() as u32 });
                offset += event.len() as u64;
            }
        }
    }
    log.flush()?;
    Ok((places, hash.finalize().into()))
}

struct Counted<W> {
    out: W,
    at: u64,
    hash: Sha256,
}

impl<W: Write> Counted<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.hash.update(bytes);
        self.out.write_all(bytes)
    }

    fn array(&mut self, rows: &[u32], read: &dyn Fn(u32) -> io::Result<Vec<u8>>) -> io::Result<()> {
        self.put(b"[")?;
        for (i, &row) in rows.iter().enumerate() {
            if i > 0 {
                self.put(b",")?;
            }
            self.put(&read(row)?)?;
        }
        self.put(b"]")
    }
}

/// The four arrays of the two kinds of `send_join` answer.
fn write_body(room: &Room, read: &dyn Fn(u32) -> io::Result<Vec<u8>>, out: impl Write) -> io::Result<(Segments, Hash)> {
    let mut out = Counted { out, at: 0, hash: Sha256::new() };
    let state = in_order(room, room.state(), "state order");
    let mut chain = room.chain_only();
    let mut repeats = Stream::new(room.dials.seed, "duplicates", 0);
    let mut both = room.state();
    both.retain(|&row| room.rows[row as usize].in_chain && repeats.chance(room.dials.duplicates));
    chain.extend(both);
    out.array(&state, read)?;
    let chain_at = out.at;
    out.array(&in_order(room, chain, "chain order"), read)?;
    let partial_state_at = out.at;
    let partial: Vec<u32> = state.iter().copied().filter(|&row| !room.rows[row as usize].kind.is_member()).collect();
    out.array(&partial, read)?;
    let partial_chain_at = out.at;
    out.array(&in_order(room, partial_chain(room, &partial), "partial order"), read)?;
    out.out.flush()?;
    let segments = Segments {
        state: 0,
        chain: chain_at,
        partial_state: partial_state_at,
        partial_chain: partial_chain_at,
        end: out.at,
    };
    Ok((segments, out.hash.finalize().into()))
}

/// The auth chain of what is left of the state without members.
fn partial_chain(room: &Room, partial: &[u32]) -> Vec<u32> {
    let reached = room.chain_of(partial);
    (0..room.rows.len() as u32)
        .filter(|&row| reached[row as usize] && !room.rows[row as usize].withheld && !partial.contains(&row))
        .collect()
}

fn in_order(room: &Room, mut rows: Vec<u32>, purpose: &str) -> Vec<u32> {
    match room.dials.order {
        Order::Shuffled => Stream::new(room.dials.seed, purpose, 0).shuffle(&mut rows),
        Order::ParentsFirst => rows.sort_unstable(),
        Order::ParentsLast => rows.sort_unstable_by(|a, b| b.cmp(a)),
    }
    rows
}

fn servers_joined(room: &Room) -> Vec<String> {
    let mut seen = vec![false; room.world.servers.len()];
    for row in room.rows.iter().filter(|row| row.in_state && row.kind == Kind::Join) {
        seen[room.home(row.user) as usize] = true;
    }
    room.world.servers.iter().zip(seen).filter(|(_, seen)| *seen).map(|(server, _)| server.name.clone()).collect()
}

/// Joined users on servers whose key is lost, and member events about such users.
fn rotten(room: &Room) -> (u32, u32) {
    let (mut joined, mut events) = (0, 0);
    for row in room.rows.iter().filter(|row| row.kind.is_member() && (row.in_state || row.in_chain)) {
        if room.world.servers[room.home(row.user) as usize].reach == Reach::Nowhere {
            events += 1;
            joined += u32::from(row.in_state && row.kind == Kind::Join);
        }
    }
    (joined, events)
}

/// 32 bytes of id, then offset, length, user, depth, kind and marks.
const ROW_BYTES: usize = 56;

fn write_rows(rows: &[Row], places: &[Place]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len() * ROW_BYTES);
    for (row, place) in rows.iter().zip(places) {
        out.extend_from_slice(&row.id);
        out.extend_from_slice(&place.offset.to_le_bytes());
        out.extend_from_slice(&place.bytes.to_le_bytes());
        out.extend_from_slice(&row.user.to_le_bytes());
        out.extend_from_slice(&row.depth.to_le_bytes());
        out.extend_from_slice(&[row.kind as u8, row.in_state.into(), row.in_chain.into(), row.withheld.into()]);
    }
    out
}

fn read_rows(bytes: &[u8]) -> (Vec<Row>, Vec<Place>) {
    let u32_at = |row: &[u8], at: usize| u32::from_le_bytes(row[at..at + 4].try_into().expect("four bytes"));
    bytes
        .chunks_exact(ROW_BYTES)
        .map(|row| {
            let place = Place {
                offset: u64::from_le_bytes(row[32..40].try_into().expect("eight bytes")),
                bytes: u32_at(row, 40),
            };
            let row = Row {
                id: row[..32].try_into().expect("32 bytes"),
                user: u32_at(row, 44),
                depth: u32_at(row, 48),
                kind: Kind::ALL[row[52] as usize],
                in_state: row[53] != 0,
                in_chain: row[54] != 0,
                withheld: row[55] != 0,
            };
            (row, place)
        })
        .unzip()
}

/// A line about a room for people.
pub fn describe(rendered: &Rendered) -> String {
    let room = &rendered.room;
    format!(
        "{} (version {}): {} events, {} in state, body {:.1} MB, {} servers joined, auth depth {}, {} events of lost servers; {:?}",
        room.dials.name,
        room.dials.version,
        rendered.events(),
        room.state().len(),
        rendered.body_bytes() as f64 / 1e6,
        rendered.servers_joined.len(),
        rendered.auth_depth,
        rendered.rotten_events,
        rendered.census,
    )
}

/// The id of a row as a string.
pub fn id(room: &Room, row: u32) -> String {
    event_id(&room.rows[row as usize].id)
}

/// Unsigned content for events made while running.
pub fn no_unsigned() -> Vec<u8> {
    Json::Map(Vec::new()).canonical()
}

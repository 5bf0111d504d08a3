//! A server that is already in the room: over TLS, from files made beforehand, with dials for everything that can go wrong.
//!
//! It answers what a joining server asks (`make_join`, `send_join`, `state`, keys, single events), keeps what it is sent, pushes
//! further events into the room (`push`), and misbehaves on request (`hostile`). One blocking thread for each connection.
//! Bodies are copied from a file, so that it takes no processor time worth speaking of from the server under test.

use super::certificates::Certificates;
use super::event::{Draft, Hash, Key, Version, event_id, hash_of_id, open};
use super::hostile::{self, Mode};
use super::json::{Json, map};
use super::random::Stream;
use super::render::{Rendered, id};
use super::room::{GUEST, Kind, RESIDENT, Reach, Server, World};
use super::wire::{Pipe, Request, Target, parse_x_matrix, read_request, request_bytes, write_json};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ed25519_dalek::{Signature, VerifyingKey};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How the resident behaves; can be changed while it runs.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Dials {
    /// Bytes of a large body each second; 0 is as fast as it goes.
    pub bytes_per_second: u64,
    /// Closes the connection after this share of a large body.
    pub cut_at_percent: Option<u64>,
    /// How often `cut_at_percent` is done; 0 is always.
    pub cuts: u64,
    /// Stops sending after this share and keeps the connection open.
    pub hang_at_percent: Option<u64>,
    /// What it says of its rooms' complexity, in place of the truth.
    pub complexity: Option<f64>,
    /// Leaves members out when asked to.
    pub omit_members: bool,
    /// Hangs up on whoever asks for a room.
    pub deaf: bool,
    pub hostile: Option<Mode>,
}

/// Counters since the start, for benches and assertions.
#[derive(Default)]
pub struct Stats {
    /// Requests by endpoint.
    pub calls: Mutex<BTreeMap<String, u64>>,
    /// Of the large body now or last being sent.
    pub body_sent: AtomicU64,
    pub body_total: AtomicU64,
    pub cuts: AtomicU64,
    /// Requests with a good and with a bad `X-Matrix` signature.
    pub signed: AtomicU64,
    pub forged: AtomicU64,
    /// Events the server under test sent that were right, and what was wrong with others.
    pub events_taken: AtomicU64,
    pub complaints: Mutex<Vec<String>>,
}

/// A room and what happened in it since it was rendered.
pub struct Live {
    pub rendered: Rendered,
    rows: HashMap<Hash, u32>,
    pub create: u32,
    pub power: u32,
    pub join_rules: u32,
    pub tail: Mutex<Tail>,
}

/// Events after those of the rendered room. Starts anew with each join, so that a join can be tried again.
#[derive(Default)]
pub struct Tail {
    pub events: Vec<(Hash, Vec<u8>)>,
    pub extremities: Vec<Hash>,
    pub depth: u64,
    /// The newest member event of each user it has changed.
    pub members: HashMap<String, Hash>,
}

impl Live {
    fn new(rendered: Rendered) -> Live {
        let rows = rendered.room.rows.iter().enumerate().map(|(row, it)| (it.id, row as u32)).collect();
        let current = |kind: Kind| {
            let at = rendered.room.rows.iter().position(|row| row.in_state && row.kind == kind);
            at.expect("every room has these") as u32
        };
        let (create, power, join_rules) = (current(Kind::Create), current(Kind::Power), current(Kind::JoinRules));
        let live = Live { create, power, join_rules, rows, tail: Mutex::default(), rendered };
        live.reset();
        live
    }

    pub fn version(&self) -> Version {
        self.rendered.room.dials.version()
    }

    pub fn room_id(&self) -> &str {
        &self.rendered.room.room_id
    }

    /// Forgets everything after the rendered room.
    pub fn reset(&self) {
        let room = &self.rendered.room;
        let extremities: Vec<Hash> = room.extremities.iter().map(|&row| room.rows[row as usize].id).collect();
        let depth = room.extremities.iter().map(|&row| room.rows[row as usize].depth).max().unwrap_or(1).into();
        *lock(&self.tail) = Tail { extremities, depth, ..Tail::default() };
    }

    /// Where an event stands in the order of making, tail included.
    fn find(&self, id: &Hash) -> Option<usize> {
        if let Some(&row) = self.rows.get(id) {
            return Some(row as usize).filter(|&row| !self.rendered.room.rows[row].withheld);
        }
        let at = lock(&self.tail).events.iter().position(|(known, _)| known == id)?;
        Some(self.rendered.room.rows.len() + at)
    }

    fn read(&self, at: usize) -> io::Result<Vec<u8>> {
        match at.checked_sub(self.rendered.room.rows.len()) {
            None => self.rendered.event(at as u32),
            Some(at) => Ok(lock(&self.tail).events[at].1.clone()),
        }
    }

    /// An event made now by `key`'s server: what it follows and its depth come from the tail, which then ends with it.
    pub fn make(
        &self,
        key: &Key,
        kind: &'static str,
        sender: &str,
        state_key: Option<&str>,
        content: Json,
        auth: Vec<Hash>,
    ) -> Vec<u8> {
        let mut tail = lock(&self.tail);
        let draft = Draft {
            kind: kind.into(),
            state_key: state_key.map(str::to_owned),
            sender: sender.to_owned(),
            room_id: Some(self.room_id().to_owned()),
            content,
            origin_server_ts: now_ms(),
            depth: tail.depth + 1,
            prev_events: tail.extremities.clone(),
            auth_events: auth,
        };
        let sealed = draft.seal(self.version());
        let wire = sealed.canonical(sealed.signatures(&[key]));
        tail.depth += 1;
        tail.extremities = vec![sealed.id];
        tail.events.push((sealed.id, wire.clone()));
        if let Some(user) = state_key.filter(|_| kind == "m.room.member") {
            tail.members.insert(user.to_owned(), sealed.id);
        }
        wire
    }

    /// Create (where named), power levels and, for joins, join rules; the rest is the caller's.
    pub fn auth_base(&self, joining: bool) -> Vec<Hash> {
        let rows = [
            (!self.version().room_id_is_create()).then_some(self.create),
            Some(self.power),
            joining.then_some(self.join_rules),
        ];
        rows.into_iter().flatten().map(|row| self.rendered.room.rows[row as usize].id).collect()
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The running server. Threads end with the process; a dropped resident refuses new connections.
pub struct Resident {
    pub address: SocketAddr,
    pub shared: Arc<Shared>,
    stopping: Arc<AtomicBool>,
}

pub struct Shared {
    pub world: World,
    pub guest: Key,
    pub rooms: HashMap<String, Live>,
    pub dials: Mutex<Dials>,
    pub stats: Stats,
    /// The server under test: its name and how to reach it.
    pub peer: Mutex<Option<Target>>,
    /// Its public keys by key id, once asked for.
    peer_keys: Mutex<HashMap<String, VerifyingKey>>,
    /// Key answers without `valid_until_ts`, signed once: name → JSON.
    key_answers: Mutex<HashMap<String, Value>>,
    certificates: Certificates,
}

impl Resident {
    /// Listens on `listen` and serves until the process ends. All rooms must come from one seed.
    pub fn start(listen: &str, certificates: Certificates, rooms: Vec<Rendered>, dials: Dials) -> io::Result<Resident> {
        let seed = rooms.first().map_or(1, |room| room.room.dials.seed);
        assert!(rooms.iter().all(|room| room.room.dials.seed == seed), "rooms of one resident share their servers");
        let servers = rooms.iter().map(|room| room.room.dials.servers).max().unwrap_or(1);
        let config = certificates.server_config()?;
        let rooms = rooms.into_iter().map(|room| (room.room.room_id.clone(), Live::new(room))).collect();
        let shared = Arc::new(Shared {
            world: World::new(seed, servers),
            guest: World::guest(seed),
            rooms,
            dials: Mutex::new(dials),
            stats: Stats::default(),
            peer: Mutex::default(),
            peer_keys: Mutex::default(),
            key_answers: Mutex::default(),
            certificates,
        });
        let listener = TcpListener::bind(listen)?;
        let address = listener.local_addr()?;
        let stopping = Arc::new(AtomicBool::new(false));
        let (accepting, stop) = (shared.clone(), stopping.clone());
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                if stop.load(Relaxed) {
                    return;
                }
                let (shared, config) = (accepting.clone(), config.clone());
                // A client that goes away ends its thread; there is nobody to tell.
                thread::spawn(move || shared.connection(socket, config));
            }
        });
        Ok(Resident { address, shared, stopping })
    }

    /// Tells where the server under test is: `http://address` or `https://address`.
    pub fn meet(&self, name: &str, url: &str) -> io::Result<()> {
        let (scheme, address) = url.split_once("://").ok_or_else(|| io::Error::other("a URL has a scheme"))?;
        let tls = if scheme == "https" { Some(self.shared.certificates.client_config()?) } else { None };
        let address = address.parse().map_err(io::Error::other)?;
        *lock(&self.shared.peer) = Some(Target { address, host: name.to_owned(), tls });
        lock(&self.shared.peer_keys).clear();
        Ok(())
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        self.stopping.store(true, Relaxed);
        // Wakes the accepting thread so that it sees the mark.
        let _ = TcpStream::connect(self.address);
    }
}

type Out = BufReader<Box<dyn Pipe>>;

impl Shared {
    pub fn key(&self) -> &Key {
        &self.world.servers[0].key
    }

    fn connection(&self, socket: TcpStream, config: Arc<rustls::ServerConfig>) -> Option<()> {
        socket.set_nodelay(true).ok()?;
        socket.set_write_timeout(Some(Duration::from_secs(600))).ok()?;
        let tls = rustls::ServerConnection::new(config).ok()?;
        let pipe: Box<dyn Pipe> = Box::new(rustls::StreamOwned::new(tls, socket));
        let mut pipe = BufReader::with_capacity(64 << 10, pipe);
        while let Some(request) = read_request(&mut pipe).ok()? {
            self.answer(&request, &mut pipe).ok()?;
        }
        Some(())
    }

    fn count(&self, name: &str) {
        *lock(&self.stats.calls).entry(name.to_owned()).or_default() += 1;
    }

    pub fn calls(&self, name: &str) -> u64 {
        lock(&self.stats.calls).get(name).copied().unwrap_or(0)
    }

    pub fn complain(&self, what: String) {
        lock(&self.stats.complaints).push(what);
    }

    fn answer(&self, request: &Request, out: &mut Out) -> io::Result<()> {
        let segments = request.segments();
        let path: Vec<&str> = segments.iter().map(String::as_str).collect();
        if let ["_matrix", "federation", "v1" | "v2", endpoint, ..] = path[..] {
            self.count(endpoint);
            if endpoint != "version" && !self.check_signature(request) {
                return refuse(out, 401, "M_UNAUTHORIZED", "the request is not signed as it must be");
            }
        } else {
            self.count(&path.iter().take(4).copied().collect::<Vec<_>>().join("/"));
        }
        match (request.method.as_str(), &path[..]) {
            ("GET", ["_matrix", "key", "v2", "server", ..]) => self.own_keys(request, out),
            ("POST", ["_matrix", "key", "v2", "query"]) => self.notary(&asked_servers(&request.json()), out),
            ("GET", ["_matrix", "key", "v2", "query", server, ..]) => self.notary(&[(*server).to_owned()], out),
            ("GET", ["_matrix", "federation", "v1", "version"]) => {
                write_json(out.get_mut(), 200, &json!({"server": {"name": "snug load resident", "version": "1"}}))
            }
            ("GET", ["_matrix", "federation", "v1", "query", "profile"]) => {
                write_json(out.get_mut(), 200, &json!({"displayname": "somebody"}))
            }
            ("GET", ["_matrix", "federation", "v1", "query", "directory"]) => self.directory(request, out),
            ("GET", ["_matrix", "federation", "v1", "user", "devices", user]) => {
                write_json(out.get_mut(), 200, &json!({"user_id": user, "stream_id": 1, "devices": []}))
            }
            ("PUT", ["_matrix", "federation", "v1", "send", _]) => self.receive(&request.json(), out),
            ("GET", ["_matrix", "federation", "v1", "event", id]) => self.single_event(id, out),
            ("GET", ["_matrix", "federation", "unstable" | "v1", "rooms", room, "complexity"]) => {
                let said = lock(&self.dials).complexity;
                self.in_room(room, out, |live, out| complexity(live, said, out))
            }
            ("GET", ["_matrix", "federation", "v1", "make_join", room, user]) => {
                self.in_room(room, out, |live, out| self.make_join(live, user, request, out))
            }
            ("PUT", ["_matrix", "federation", "v2", "send_join", room, id]) => {
                self.in_room(room, out, |live, out| self.send_join(live, id, request, out))
            }
            ("GET", ["_matrix", "federation", "v1", "make_leave", room, user]) => {
                self.in_room(room, out, |live, out| make_leave(live, user, out))
            }
            ("PUT", ["_matrix", "federation", "v2", "send_leave", ..]) => write_json(out.get_mut(), 200, &json!({})),
            ("GET", ["_matrix", "federation", "v1", "state", room]) => {
                self.in_room(room, out, |live, out| self.state(live, request, out))
            }
            ("GET", ["_matrix", "federation", "v1", "state_ids", room]) => {
                self.in_room(room, out, |live, out| self.state_ids(live, request, out))
            }
            ("GET", ["_matrix", "federation", "v1", "backfill", room]) => {
                self.in_room(room, out, |live, out| backfill(live, request, out))
            }
            ("GET", ["_matrix", "federation", "v1", "media", "download", id]) => self.media(id, out),
            ("GET", ["_matrix", "media", "v3", "download", _, id]) => self.old_media(id, out),
            ("POST", ["_matrix", "federation", "v1", "get_missing_events", room]) => {
                self.in_room(room, out, |live, out| missing_events(live, &request.json(), out))
            }
            _ => refuse(out, 404, "M_UNRECOGNIZED", "not an endpoint of the resident"),
        }
    }

    /// A file of as many bytes as its id says ([`media_bytes`]), at the pace and to the point the dials say; or that it is
    /// somewhere else, or as a server answers that knows the old path alone.
    fn media(&self, id: &str, out: &mut Out) -> io::Result<()> {
        if let Some(to) = id.strip_prefix("moved") {
            let body = format!(
                "--b\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--b\r\nLocation: https://{to}/file\r\n\r\n\r\n--b--"
            );
            let kind = "multipart/mixed; boundary=b";
            write!(
                out.get_mut(),
                "HTTP/1.1 200 .\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )?;
            return out.get_mut().flush();
        }
        if id.starts_with("old") {
            return refuse(out, 404, "M_UNRECOGNIZED", "not an endpoint of an old server");
        }
        let Some(length) = id.strip_prefix("bytes").and_then(|bytes| bytes.parse::<u64>().ok()) else {
            return refuse(out, 404, "M_NOT_FOUND", "no such file");
        };
        let head = "--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\nContent-Type: video/mp4\r\n\r\n";
        let (tail, dials) = ("\r\n--b--\r\n", lock(&self.dials).clone());
        let all = head.len() as u64 + length + tail.len() as u64;
        let mut to = buffered(out);
        let kind = "multipart/mixed; boundary=b";
        write!(to, "HTTP/1.1 200 .\r\ncontent-type: {kind}\r\ncontent-length: {all}\r\n\r\n{head}")?;
        self.write_media(length, &dials, &mut to)?;
        to.write_all(tail.as_bytes())?;
        to.flush()
    }

    /// The same from the path of before downloads were authenticated.
    fn old_media(&self, id: &str, out: &mut Out) -> io::Result<()> {
        let Some(length) = id.strip_prefix("old").and_then(|bytes| bytes.parse::<u64>().ok()) else {
            return refuse(out, 404, "M_NOT_FOUND", "no such file");
        };
        let (dials, mut to) = (lock(&self.dials).clone(), buffered(out));
        write!(to, "HTTP/1.1 200 .\r\ncontent-type: video/mp4\r\ncontent-length: {length}\r\n\r\n")?;
        self.write_media(length, &dials, &mut to)?;
        to.flush()
    }

    fn write_media(&self, length: u64, dials: &Dials, to: &mut dyn Write) -> io::Result<()> {
        let mut pace = Pace::new(self, dials, length);
        let mut sent = 0;
        while sent < length {
            let now = (length - sent).min(16 << 10);
            pace.write(to, &media_bytes(sent, now))?;
            sent += now;
        }
        Ok(())
    }

    fn in_room(
        &self,
        room: &str,
        out: &mut Out,
        then: impl FnOnce(&Live, &mut Out) -> io::Result<()>,
    ) -> io::Result<()> {
        if lock(&self.dials).deaf {
            return Err(io::Error::other("deaf"));
        }
        match self.rooms.get(room) {
            Some(live) => then(live, out),
            None => refuse(out, 404, "M_NOT_FOUND", "the resident is not in that room"),
        }
    }

    fn directory(&self, request: &Request, out: &mut Out) -> io::Result<()> {
        let alias = request.query("room_alias").unwrap_or_default();
        let room = self.rooms.values().find(|live| alias == format!("#{}:{RESIDENT}", live.rendered.room.dials.name));
        match room {
            Some(live) => write_json(out.get_mut(), 200, &json!({"room_id": live.room_id(), "servers": [RESIDENT]})),
            None => refuse(out, 404, "M_NOT_FOUND", "no such alias"),
        }
    }
}

// Keys.

impl Shared {
    /// Answers for whichever generated server is called; one whose key only notaries have does not answer.
    fn own_keys(&self, request: &Request, out: &mut Out) -> io::Result<()> {
        let host = request.header("host").unwrap_or_default();
        let known = self.world.find(host).map(|server| server.reach) == Some(Reach::Live) || host == GUEST;
        // Reached by address and port, it is the resident itself.
        let name = if known { host } else { RESIDENT };
        if self.world.find(host).is_some() && !known {
            return Err(io::Error::other("this server is gone"));
        }
        let answer = self.key_answer(name).expect("a known server has keys");
        write_json(out.get_mut(), 200, &answer)
    }

    /// A notary's answer: the keys of all that are known, signed by their server and by the resident.
    fn notary(&self, names: &[String], out: &mut Out) -> io::Result<()> {
        let mut list = Vec::new();
        for name in names {
            if let Some(mut answer) = self.key_answer(name) {
                if name != RESIDENT {
                    self.key().sign_json(&mut answer);
                }
                list.push(answer);
            }
        }
        write_json(out.get_mut(), 200, &json!({"server_keys": list}))
    }

    fn key_answer(&self, name: &str) -> Option<Value> {
        if let Some(known) = lock(&self.key_answers).get(name) {
            return Some(known.clone());
        }
        let guest = Server { name: GUEST.to_owned(), key: self.guest.clone(), old: None, reach: Reach::Live };
        let server = if name == GUEST { &guest } else { self.world.find(name)? };
        if server.reach == Reach::Nowhere {
            return None;
        }
        let old =
            server.old.as_ref().map(|(key, until)| (key.id.clone(), json!({"key": key.public(), "expired_ts": until})));
        let mut answer = json!({
            "server_name": name,
            "valid_until_ts": now_ms() + 6 * 24 * 3_600_000,
            "verify_keys": {&server.key.id: {"key": server.key.public()}},
            "old_verify_keys": old.into_iter().collect::<serde_json::Map<String, Value>>(),
        });
        server.key.sign_json(&mut answer);
        lock(&self.key_answers).insert(name.to_owned(), answer.clone());
        Some(answer)
    }

    /// Whether a request is signed by the server under test; true when that is not known.
    fn check_signature(&self, request: &Request) -> bool {
        let Some(peer) = lock(&self.peer).clone() else { return true };
        let Some(fields) = request.header("authorization").and_then(parse_x_matrix) else {
            self.complain(format!("{} {} came without X-Matrix", request.method, request.target));
            return false;
        };
        let field = |name: &str| fields.get(name).map_or("", String::as_str);
        if field("origin") != peer.host {
            // Another server may be in the lab; its requests are not judged.
            return true;
        }
        let content = (!request.body.is_empty()).then(|| request.json());
        let bytes = request_bytes(&peer.host, field("destination"), &request.method, &request.target, content.as_ref());
        let good = self.verify(field("key"), field("sig"), &bytes);
        if good {
            self.stats.signed.fetch_add(1, Relaxed);
        } else {
            self.stats.forged.fetch_add(1, Relaxed);
            self.complain(format!("{} {} has a bad X-Matrix signature", request.method, request.target));
        }
        good
    }

    /// Checks a signature of the server under test, asking it for its keys when they are not known.
    fn verify(&self, key_id: &str, signature: &str, bytes: &[u8]) -> bool {
        let known = lock(&self.peer_keys).get(key_id).copied();
        let key = known.or_else(|| {
            self.fetch_peer_keys();
            lock(&self.peer_keys).get(key_id).copied()
        });
        let signature = STANDARD_NO_PAD.decode(signature).ok().and_then(|bytes| Signature::from_slice(&bytes).ok());
        key.zip(signature).is_some_and(|(key, signature)| key.verify_strict(bytes, &signature).is_ok())
    }

    fn fetch_peer_keys(&self) {
        let Some(mut client) = self.client() else { return };
        let answer = client.call("GET", "/_matrix/key/v2/server", &[], None);
        let answer = match answer.and_then(|answer| answer.good("keys of the server under test")) {
            Ok(answer) => answer,
            Err(error) => return self.complain(error.to_string()),
        };
        for (id, key) in answer["verify_keys"].as_object().into_iter().flatten() {
            let bytes = key["key"].as_str().and_then(|text| STANDARD_NO_PAD.decode(text).ok());
            let key = bytes.and_then(|bytes| VerifyingKey::from_bytes(&bytes.try_into().ok()?).ok());
            if let Some(key) = key {
                lock(&self.peer_keys).insert(id.clone(), key);
            }
        }
    }

    /// A connection to the server under test.
    pub fn client(&self) -> Option<super::wire::Client> {
        Some(super::wire::Client::new(lock(&self.peer).clone()?))
    }
}

fn asked_servers(query: &Value) -> Vec<String> {
    query["server_keys"].as_object().map_or(Vec::new(), |servers| servers.keys().cloned().collect())
}

// Joining.

/// The depth of an event in a room whose complexity is a claim.
const LONG_DEPTH: u64 = 100_000;

impl Shared {
    fn make_join(&self, live: &Live, user: &str, request: &Request, out: &mut Out) -> io::Result<()> {
        if !request.query_all("ver").any(|version| version == live.version().name()) {
            let body =
                json!({"errcode": "M_INCOMPATIBLE_ROOM_VERSION", "error": "no", "room_version": live.version().name()});
            return write_json(out.get_mut(), 400, &body);
        }
        live.reset();
        // A room that is said to be large is long, too: of a short one nobody asks.
        let said = lock(&self.dials).complexity.map_or(0, |_| LONG_DEPTH);
        let tail = lock(&live.tail);
        let event = json!({
            "type": "m.room.member",
            "room_id": live.room_id(),
            "sender": user,
            "state_key": user,
            "content": {"membership": "join"},
            "origin_server_ts": now_ms(),
            "origin": RESIDENT,
            "depth": (tail.depth + 1).max(said),
            "prev_events": tail.extremities.iter().map(event_id).collect::<Vec<_>>(),
            "auth_events": live.auth_base(true).iter().map(event_id).collect::<Vec<_>>(),
        });
        drop(tail);
        write_json(out.get_mut(), 200, &json!({"room_version": live.version().name(), "event": event}))
    }

    fn send_join(&self, live: &Live, id: &str, request: &Request, out: &mut Out) -> io::Result<()> {
        let dials = lock(&self.dials).clone();
        let event = request.json();
        if let Err(why) = self.take(live, &event, Some(id)) {
            self.complain(format!("send_join: {why}"));
            return refuse(out, 400, "M_INVALID_PARAM", &why);
        }
        let head = format!("{{\"origin\":\"{RESIDENT}\",\"event\":{event},\"state\":");
        if let Some(mode) = &dials.hostile {
            return hostile::answer(mode, live, head, out);
        }
        let segments = live.rendered.segments;
        let partial = dials.omit_members && request.query("omit_members").as_deref() == Some("true");
        if !partial {
            let parts = [(segments.state, segments.chain), (segments.chain, segments.partial_state)];
            return self.send_large(live, &dials, head, parts, ",\"members_omitted\":false}".to_owned(), out);
        }
        let servers = serde_json::to_string(&live.rendered.servers_joined)?;
        let end = format!(",\"members_omitted\":true,\"servers_in_room\":{servers}}}");
        let parts = [(segments.partial_state, segments.partial_chain), (segments.partial_chain, segments.end)];
        self.send_large(live, &Dials::default(), head, parts, end, out)
    }

    fn state(&self, live: &Live, request: &Request, out: &mut Out) -> io::Result<()> {
        let known = request.query("event_id").and_then(|id| hash_of_id(&id)).and_then(|id| live.find(&id));
        if known.is_none() {
            return refuse(out, 404, "M_NOT_FOUND", "no such event");
        }
        let dials = lock(&self.dials).clone();
        let segments = live.rendered.segments;
        let parts = [(segments.state, segments.chain), (segments.chain, segments.partial_state)];
        self.send_large(live, &dials, "{\"pdus\":".to_owned(), parts, "}".to_owned(), out)
    }

    fn state_ids(&self, live: &Live, request: &Request, out: &mut Out) -> io::Result<()> {
        let known = request.query("event_id").and_then(|id| hash_of_id(&id)).and_then(|id| live.find(&id));
        if known.is_none() {
            return refuse(out, 404, "M_NOT_FOUND", "no such event");
        }
        let room = &live.rendered.room;
        let ids = |rows: Vec<u32>| rows.into_iter().map(|row| id(room, row)).collect::<Vec<_>>();
        let chain = (0..room.rows.len() as u32)
            .filter(|&row| room.rows[row as usize].in_chain && !room.rows[row as usize].withheld);
        write_json(out.get_mut(), 200, &json!({"pdu_ids": ids(room.state()), "auth_chain_ids": ids(chain.collect())}))
    }

    /// Two arrays of the rendered body within a head and an end, at the pace and to the point the dials say.
    fn send_large(
        &self,
        live: &Live,
        dials: &Dials,
        head: String,
        parts: [(u64, u64); 2],
        end: String,
        out: &mut Out,
    ) -> io::Result<()> {
        const BETWEEN: &str = ",\"auth_chain\":";
        let arrays: u64 = parts.iter().map(|(from, to)| to - from).sum();
        let total = (head.len() + BETWEEN.len() + end.len()) as u64 + arrays;
        let mut pace = Pace::new(self, dials, total);
        self.stats.body_total.store(total, Relaxed);
        self.stats.body_sent.store(0, Relaxed);
        let out = out.get_mut();
        write!(out, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {total}\r\n\r\n")?;
        pace.write(out, head.as_bytes())?;
        let mut file = live.rendered.body()?;
        let mut buffer = vec![0; 64 << 10];
        for (i, (from, to)) in parts.into_iter().enumerate() {
            if i > 0 {
                pace.write(out, BETWEEN.as_bytes())?;
            }
            file.seek(SeekFrom::Start(from))?;
            let mut part = (&file).take(to - from);
            loop {
                let read = part.read(&mut buffer)?;
                if read == 0 {
                    break;
                }
                pace.write(out, &buffer[..read])?;
            }
        }
        pace.write(out, end.as_bytes())?;
        out.flush()
    }

    /// Takes an event of the server under test into the room's tail after checking its id, hash and signature.
    fn take(&self, live: &Live, event: &Value, id: Option<&str>) -> Result<(), String> {
        let opened = open(event, live.version()).ok_or("not an event")?;
        let found = event_id(&opened.id);
        if id.is_some_and(|id| id != found) {
            return Err(format!("the event's id is {found}, not {}", id.unwrap_or_default()));
        }
        if !opened.hash_matches {
            return Err(format!("{found}: the content hash does not match"));
        }
        let sender = event["sender"].as_str().unwrap_or_default();
        let server = sender.split_once(':').map_or("", |(_, server)| server);
        if lock(&self.peer).as_ref().is_some_and(|peer| peer.host == server) {
            let signatures = event["signatures"][server].as_object().cloned().unwrap_or_default();
            let good = |(key, signature): (&String, &Value)| {
                self.verify(key, signature.as_str().unwrap_or_default(), &opened.signed_bytes)
            };
            if !signatures.iter().any(good) {
                return Err(format!("{found}: no good signature of {server}"));
            }
        }
        let mut tail = lock(&live.tail);
        if tail.events.iter().any(|(known, _)| *known == opened.id) {
            return Ok(());
        }
        let prevs: Vec<Hash> =
            event["prev_events"].as_array().into_iter().flatten().filter_map(|id| hash_of_id(id.as_str()?)).collect();
        tail.extremities.retain(|id| !prevs.contains(id));
        tail.extremities.push(opened.id);
        tail.depth = tail.depth.max(event["depth"].as_u64().unwrap_or(0));
        if let Some(user) = event["state_key"].as_str().filter(|_| event["type"] == "m.room.member") {
            tail.members.insert(user.to_owned(), opened.id);
        }
        tail.events.push((opened.id, event.to_string().into_bytes()));
        self.stats.events_taken.fetch_add(1, Relaxed);
        Ok(())
    }

    /// A transaction: every event is checked, and what is wrong is kept as a complaint.
    fn receive(&self, transaction: &Value, out: &mut Out) -> io::Result<()> {
        let mut results = serde_json::Map::new();
        for event in transaction["pdus"].as_array().into_iter().flatten() {
            let room = event["room_id"].as_str().unwrap_or_default();
            let taken = self.rooms.get(room).ok_or_else(|| "not a room of the resident".to_owned());
            let id = taken.as_ref().ok().and_then(|live| Some(event_id(&open(event, live.version())?.id)));
            let result = match taken.and_then(|live| self.take(live, event, None)) {
                Ok(()) => json!({}),
                Err(why) => {
                    self.complain(format!("send: {why}"));
                    json!({"error": why})
                }
            };
            results.insert(id.unwrap_or_default(), result);
        }
        write_json(out.get_mut(), 200, &json!({"pdus": results}))
    }

    fn single_event(&self, id: &str, out: &mut Out) -> io::Result<()> {
        let hash = hash_of_id(id);
        let found = self.rooms.values().find_map(|live| Some((live, live.find(&hash?)?)));
        match found {
            Some((live, at)) => write_pdus(live, &[at], out),
            None => refuse(out, 404, "M_NOT_FOUND", "no such event"),
        }
    }
}

fn refuse(out: &mut Out, status: u16, errcode: &str, error: &str) -> io::Result<()> {
    write_json(out.get_mut(), status, &json!({"errcode": errcode, "error": error}))
}

fn complexity(live: &Live, said: Option<f64>, out: &mut Out) -> io::Result<()> {
    let entries = live.rendered.room.state().len();
    write_json(out.get_mut(), 200, &json!({"v1": said.unwrap_or((entries as f64 / 5.0).round() / 100.0)}))
}

fn make_leave(live: &Live, user: &str, out: &mut Out) -> io::Result<()> {
    let tail = lock(&live.tail);
    let mut auth = live.auth_base(false);
    auth.extend(tail.members.get(user));
    let event = json!({
        "type": "m.room.member", "room_id": live.room_id(), "sender": user, "state_key": user,
        "content": {"membership": "leave"}, "origin_server_ts": now_ms(), "depth": tail.depth + 1,
        "prev_events": tail.extremities.iter().map(event_id).collect::<Vec<_>>(),
        "auth_events": auth.iter().map(event_id).collect::<Vec<_>>(),
    });
    drop(tail);
    write_json(out.get_mut(), 200, &json!({"room_version": live.version().name(), "event": event}))
}

/// Events up to those named, newest first. The order of making stands in for walking the graph.
fn backfill(live: &Live, request: &Request, out: &mut Out) -> io::Result<()> {
    let limit = request.query("limit").and_then(|limit| limit.parse().ok()).unwrap_or(10usize).min(100);
    let newest = request.query_all("v").filter_map(|id| live.find(&hash_of_id(&id)?)).max();
    let list: Vec<usize> =
        newest.into_iter().flat_map(|at| (0..=at).rev()).filter(|&at| !is_withheld(live, at)).take(limit).collect();
    write_pdus(live, &list, out)
}

fn is_withheld(live: &Live, at: usize) -> bool {
    live.rendered.room.rows.get(at).is_some_and(|row| row.withheld)
}

/// Events between those the asker has and those it saw.
fn missing_events(live: &Live, query: &Value, out: &mut Out) -> io::Result<()> {
    let places = |name: &str| -> Vec<usize> {
        query[name].as_array().into_iter().flatten().filter_map(|id| live.find(&hash_of_id(id.as_str()?)?)).collect()
    };
    let earliest = places("earliest_events").into_iter().max().map_or(0, |at| at + 1);
    let latest = places("latest_events").into_iter().min().unwrap_or(0);
    let limit = query["limit"].as_u64().unwrap_or(10).min(100) as usize;
    let list: Vec<usize> = (earliest..latest).rev().take(limit).collect();
    write_pdus_as(live, &list.into_iter().rev().collect::<Vec<_>>(), "events", out)
}

fn write_pdus(live: &Live, list: &[usize], out: &mut Out) -> io::Result<()> {
    write_pdus_as(live, list, "pdus", out)
}

fn write_pdus_as(live: &Live, list: &[usize], field: &str, out: &mut Out) -> io::Result<()> {
    let mut body = format!("{{\"origin\":\"{RESIDENT}\",\"origin_server_ts\":{},\"{field}\":[", now_ms()).into_bytes();
    for (i, &at) in list.iter().enumerate() {
        if i > 0 {
            body.push(b',');
        }
        body.extend_from_slice(&live.read(at)?);
    }
    body.extend_from_slice(b"]}");
    let out = out.get_mut();
    write!(out, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len())?;
    out.write_all(&body)?;
    out.flush()
}

/// Sends a body at a pace, and stops where the dials say.
struct Pace<'a> {
    shared: &'a Shared,
    start: Instant,
    sent: u64,
    bytes_per_second: u64,
    cut_at: Option<u64>,
    hang_at: Option<u64>,
}

impl<'a> Pace<'a> {
    fn new(shared: &'a Shared, dials: &Dials, total: u64) -> Pace<'a> {
        let cuts_left = dials.cuts == 0 || shared.stats.cuts.load(Relaxed) < dials.cuts;
        Pace {
            shared,
            start: Instant::now(),
            sent: 0,
            bytes_per_second: dials.bytes_per_second,
            cut_at: dials.cut_at_percent.filter(|_| cuts_left).map(|percent| total / 100 * percent),
            hang_at: dials.hang_at_percent.map(|percent| total / 100 * percent),
        }
    }

    fn write(&mut self, out: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
        if self.cut_at.is_some_and(|at| self.sent >= at) {
            self.shared.stats.cuts.fetch_add(1, Relaxed);
            return Err(io::Error::other("cut as told"));
        }
        while self.hang_at.is_some_and(|at| self.sent >= at) {
            out.flush()?;
            if lock(&self.shared.dials).hang_at_percent.is_none() {
                self.hang_at = None;
            }
            thread::sleep(Duration::from_millis(20));
        }
        out.write_all(bytes)?;
        self.sent += bytes.len() as u64;
        self.shared.stats.body_sent.store(self.sent, Relaxed);
        if let Some(due_ms) = (self.sent * 1000).checked_div(self.bytes_per_second) {
            let due = Duration::from_millis(due_ms);
            thread::sleep(due.saturating_sub(self.start.elapsed()));
        }
        Ok(())
    }
}

/// A part of each file that is served, from one place on.
pub fn media_bytes(from: u64, count: u64) -> Vec<u8> {
    (from..from + count).map(|at| (at % 251) as u8 ^ (at >> 16) as u8).collect()
}

/// The public part of a member's content, for events made while running.
pub fn member_content(name: &str) -> Json {
    map([("membership", "join".into()), ("displayname", name.to_owned().into())])
}

/// A different word each time, the same in each run.
pub fn word(purpose: &str, number: u64) -> String {
    Stream::new(0, purpose, number).token(12, false)
}

/// Keeps small writes together; used where a body is made piece by piece.
pub fn buffered(out: &mut Out) -> BufWriter<&mut Box<dyn Pipe>> {
    BufWriter::with_capacity(64 << 10, out.get_mut())
}

#[cfg(test)]
mod tests;

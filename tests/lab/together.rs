//! Everything at once: a large join, while people log in, sync for the first time, page, search, upload, look at pictures and at previews of links,
//! and poll, and another server sends large events.
//!
//! Each of these alone stays within the cap; the promise is that all of them together do, and that somebody else's message is
//! answered meanwhile.

use super::drive::{Person, SLIDING_SYNC, Snug};
use super::room;
use super::wire::percent_encode;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// How much of each kind there is, and how many do it at once.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    pub account_data: u64,
    pub to_device: u64,
    pub rooms: u64,
    pub messages: u64,
    pub upload_bytes: usize,
    pub at_once: u64,
    /// What goes on before the join and after it.
    pub beside: Duration,
}

impl Amount {
    /// For an optimised server.
    pub fn large() -> Amount {
        Amount {
            account_data: 60,
            to_device: 150,
            rooms: 150,
            messages: 100,
            upload_bytes: 4 << 20,
            at_once: 3,
            beside: Duration::from_secs(5),
        }
    }

    /// For one that is built without optimisation: the same kinds, fewer of each.
    pub fn small() -> Amount {
        Amount { account_data: 20, to_device: 40, rooms: 20, messages: 40, ..Amount::large() }
    }

    /// The smallest boards have no places for so many: three quarters are a household's (`http/connection_limits.rs`), of which
    /// the joining person, the one who chats and the other server need theirs too.
    pub fn within(self, profile: &snug::budget::Profile) -> Amount {
        let (secret, plain) = (profile.connection_bytes(true), profile.connection_bytes(false));
        let households = profile.account("connections") * 3 / 4;
        let places = households.saturating_sub(secret) / plain;
        Amount { at_once: (places.saturating_sub(2) / JOBS.len() as u64).clamp(1, self.at_once), ..self }
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Status of the join, and how long it took.
    pub joined: u16,
    pub join_seconds: f64,
    /// Milliseconds of each message in a room nobody else is in, in order of size.
    pub messages: Vec<f64>,
    pub messages_failed: u64,
    /// For each kind of work how often it was answered with which status; 0: not at all.
    pub answers: BTreeMap<&'static str, BTreeMap<u16, u64>>,
}

impl Outcome {
    fn note(&mut self, what: &'static str, status: u16) {
        *self.answers.entry(what).or_default().entry(status).or_default() += 1;
    }

    /// Answers a server that works never gives: those of a fault of its own, and none at all.
    pub fn faults(&self) -> Vec<String> {
        let bad = |status: u16| status == 0 || status == 500 || status == 502;
        let each = self.answers.iter().flat_map(|(what, statuses)| statuses.iter().map(move |it| (what, it)));
        each.filter(|(_, it)| bad(*it.0))
            .map(|(what, (status, count))| format!("{what}: {status}, {count} times"))
            .collect()
    }
}

/// Somebody with much to read.
pub struct Heavy {
    person: Person,
    room: String,
}

impl Heavy {
    pub fn new(snug: &Snug, amount: &Amount) -> io::Result<Heavy> {
        let mut person = snug.register("heavy")?;
        let (user, big) = (percent_encode(&person.user_id), "x".repeat(60_000));
        for number in 0..amount.account_data {
            let path = format!("/_matrix/client/v3/user/{user}/account_data/k{number}");
            person.call("PUT", &path, Some(&json!({ "v": big })))?;
        }
        for number in 0..amount.to_device {
            let messages = json!({"messages": {&person.user_id: {"*": {"v": big}}}});
            person.call("PUT", &format!("/_matrix/client/v3/sendToDevice/x/{number}"), Some(&messages))?;
        }
        let backup = json!({
            "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2",
            "auth_data": {"public_key": "k".repeat(43), "signatures": {}}
        });
        person.call("POST", &format!("{BACKUP}/version"), Some(&backup))?;
        let room = person.create_room()?;
        for number in 0..amount.rooms {
            let about = json!({"name": format!("r{number}"), "topic": "t".repeat(30_000)});
            person.call("POST", "/_matrix/client/v3/createRoom", Some(&about))?;
        }
        for number in 0..amount.messages {
            person.say(&room, &noise(number, 45_000))?;
        }
        Ok(Heavy { person, room })
    }
}

/// Text that does not compress.
fn noise(seed: u64, bytes: usize) -> String {
    super::random::Stream::new(1, "noise", seed).token(bytes, false)
}

type Job = (&'static str, fn(&mut Person, &str, u64, &Amount) -> io::Result<u16>);

const JOBS: &[Job] = &[
    ("login", |person, _, _, _| {
        let user = json!({"type": "m.id.user", "user": person.user_id});
        let login = json!({"type": "m.login.password", "identifier": user, "password": "not this one"});
        Ok(person.ask("POST", "/_matrix/client/v3/login", Some(&login))?.status)
    }),
    ("first sync", |person, _, _, _| Ok(person.stream("/_matrix/client/v3/sync?timeout=0", &mut |_| {})?.0)),
    ("upload", |person, _, number, amount| {
        let file = Value::String(noise(number, 1000).repeat(amount.upload_bytes / 1000));
        Ok(person.ask("POST", "/_matrix/media/v3/upload", Some(&file))?.status)
    }),
    // A new picture each time: what was made before is only read.
    ("thumbnail", |person, _, number, _| {
        let id = person.upload("image/jpeg", &super::picture::jpeg(1600, 1200, number))?;
        let path = format!("/_matrix/client/v1/media/thumbnail/{id}?width=800&height=600&method=scale");
        Ok(person.stream(&path, &mut |_| {})?.0)
    }),
    // A new page each time, with a picture of its own.
    ("preview", |person, _, number, _| {
        let link = percent_encode(&format!("http://127.0.0.1:{}/{number}", site()?));
        let path = format!("/_matrix/client/v1/media/preview_url?url={link}");
        Ok(person.ask("GET", &path, None)?.status)
    }),
    ("large JSON", |person, _, _, _| {
        let path = format!("/_matrix/client/v3/user/{}/account_data/j", percent_encode(&person.user_id));
        let many: Vec<Value> = (0..20_000).map(|_| json!({"": 0})).collect();
        Ok(person.ask("PUT", &path, Some(&json!({ "a": many })))?.status)
    }),
    ("messages", |person, room, _, _| {
        let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=500", percent_encode(room));
        Ok(person.stream(&path, &mut |_| {})?.0)
    }),
    ("keys", |person, _, number, _| {
        let key = |at| (format!("signed_curve25519:{number}_{at}"), json!({"key": "k".repeat(43), "signatures": {}}));
        let keys: serde_json::Map<String, Value> = (0..300).map(key).collect();
        Ok(person.ask("POST", "/_matrix/client/v3/keys/upload", Some(&json!({ "one_time_keys": keys })))?.status)
    }),
    ("poll", |person, _, _, _| Ok(person.stream("/_matrix/client/v3/sync?timeout=3000&since=s99_0", &mut |_| {})?.0)),
    ("state", |person, room, _, _| {
        let path = format!("/_matrix/client/v3/rooms/{}/state", percent_encode(room));
        Ok(person.stream(&path, &mut |_| {})?.0)
    }),
    // Some are on their way, some kept already.
    ("other server's file", |person, _, number, _| {
        let file = format!("bytes{}", 1_000_000 + number % 40);
        let path = format!("/_matrix/client/v1/media/download/{}/{file}", room::RESIDENT);
        Ok(person.stream(&path, &mut |_| {})?.0)
    }),
    ("search", |person, _, number, _| {
        let term = json!({"search_term": format!("r{}", number % 20), "include_state": true,
            "order_by": if number % 3 == 0 { "rank" } else { "recent" }, "filter": {"limit": 100},
            "event_context": {"before_limit": 20, "after_limit": 20, "include_profile": true}});
        let body = json!({"search_categories": {"room_events": term}});
        Ok(person.stream_to("POST", "/_matrix/client/v3/search", Some(&body), &mut |_| {})?.0)
    }),
    // A request of the same connection would end the one before it.
    ("sliding sync", |person, _, number, _| {
        let whole = json!({"ranges": [[0, 999]], "timeline_limit": 20, "required_state": [["*", "*"]]});
        let extensions = ["to_device", "e2ee", "account_data", "receipts", "typing"];
        let extensions: Value =
            extensions.map(|name| (name.to_owned(), json!({"enabled": true}))).into_iter().collect();
        let body = json!({"conn_id": format!("c{number}"), "lists": {"all": whole}, "extensions": extensions});
        Ok(person.stream_to("POST", &format!("{SLIDING_SYNC}?timeout=0"), Some(&body), &mut |_| {})?.0)
    }),
    ("backup", |person, _, number, _| {
        let sessions: serde_json::Map<String, Value> = (0..200).map(|at| backed_up(number % 20 * 200 + at)).collect();
        let rooms = json!({"rooms": {"!r:snug.load.test": {"sessions": sessions}}});
        Ok(person.ask("PUT", &format!("{BACKUP}/keys?version=1"), Some(&rooms))?.status)
    }),
    ("presence", |person, _, number, _| {
        let path = format!("/_matrix/client/v3/presence/{}/status", percent_encode(&person.user_id));
        let presence = if number.is_multiple_of(2) { "online" } else { "unavailable" };
        let status = json!({"presence": presence, "status_msg": noise(number, 400)});
        Ok(person.ask("PUT", &path, Some(&status))?.status)
    }),
    ("restore", |person, _, _, _| Ok(person.stream(&format!("{BACKUP}/keys?version=1"), &mut |_| {})?.0)),
];

/// The port of a web server with a page and a picture for each number, which runs as long as the process.
fn site() -> io::Result<u16> {
    static PORT: OnceLock<u16> = OnceLock::new();
    if let Some(port) = PORT.get() {
        return Ok(*port);
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || shown(stream));
        }
    });
    // Of two that are started at once one is asked.
    Ok(*PORT.get_or_init(|| port))
}

/// Answers one request: `/7.jpg` is the picture of `/7`.
fn shown(mut stream: TcpStream) -> io::Result<()> {
    let (mut head, mut piece) = (Vec::new(), [0; 1024]);
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            read => head.extend_from_slice(&piece[..read]),
        }
    }
    let head = String::from_utf8_lossy(&head);
    let path = head.split(' ').nth(1).unwrap_or_default();
    let number: u64 = path.trim_matches(|letter: char| !letter.is_ascii_digit()).parse().unwrap_or(0);
    let (kind, body) = match path.ends_with(".jpg") {
        true => ("image/jpeg", super::picture::jpeg(1600, 1200, number)),
        false => {
            let words = noise(number, 60_000);
            let page = format!(
                "<title>{number}</title><meta property=og:image content=/{number}.jpg><script>{words}</script><body>{words}"
            );
            ("text/html", page.into_bytes())
        }
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    stream.write_all(&[head.as_bytes(), &body].concat())
}

const BACKUP: &str = "/_matrix/client/v3/room_keys";

/// A key as an app backs it up, by its session.
fn backed_up(number: u64) -> (String, Value) {
    let data = json!({"ciphertext": noise(number, 900), "ephemeral": "e".repeat(43), "mac": "m".repeat(11)});
    let key = json!({"first_message_index": 0, "forwarded_count": 0, "is_verified": true, "session_data": data});
    (format!("{number:043}"), key)
}

/// Joins `room` while everything else goes on. `push` sends one transaction of large events into a room that the server is in.
pub fn run(
    snug: &Snug,
    heavy: &Heavy,
    room: &str,
    amount: &Amount,
    mut push: impl FnMut() -> io::Result<()> + Send,
) -> io::Result<Outcome> {
    let mut joiner = snug.register("joiner")?;
    let mut canary = snug.register("canary")?;
    let own = canary.create_room()?;
    let (stop, numbers, outcome) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::new(Outcome::default()));
    let note = |what, status| outcome.lock().expect("no thread of these panics").note(what, status);
    let result = thread::scope(|scope| {
        for (what, job) in JOBS {
            for _ in 0..amount.at_once {
                let (mut person, much) = (heavy.person.again(snug), heavy.room.as_str());
                let (stop, numbers, note) = (&stop, &numbers, &note);
                scope.spawn(move || {
                    while !stop.load(Relaxed) {
                        let status = job(&mut person, much, numbers.fetch_add(1, Relaxed), amount).unwrap_or(0);
                        note(what, status);
                        if status == 0 {
                            person = person.again(snug);
                        }
                        if status != 200 {
                            thread::sleep(Duration::from_millis(100));
                        }
                    }
                });
            }
        }
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                let pushed = push();
                note("transactions", if pushed.is_ok() { 200 } else { 0 });
                if let Err(error) = pushed {
                    eprintln!("a transaction: {error}");
                    thread::sleep(Duration::from_millis(100));
                }
            }
        });
        let chatting = scope.spawn(|| {
            let (mut took, mut failed) = (Vec::new(), 0);
            while !stop.load(Relaxed) {
                let began = Instant::now();
                if canary.say(&own, "x").is_err() {
                    failed += 1;
                    canary = canary.again(snug);
                }
                took.push(began.elapsed().as_secs_f64() * 1e3);
                thread::sleep(Duration::from_millis(100));
            }
            took.sort_by(f64::total_cmp);
            (took, failed)
        });
        thread::sleep(amount.beside);
        let began = Instant::now();
        let joined = joiner.join(room, room::RESIDENT);
        let join_seconds = began.elapsed().as_secs_f64();
        thread::sleep(amount.beside);
        stop.store(true, Relaxed);
        let chatted = chatting.join().map_err(|_| io::Error::other("a client failed"))?;
        Ok::<_, io::Error>((joined?.status, join_seconds, chatted))
    });
    let (joined, join_seconds, (messages, messages_failed)) = result?;
    let outcome = outcome.into_inner().expect("no thread of these panics");
    Ok(Outcome { joined, join_seconds, messages, messages_failed, ..outcome })
}

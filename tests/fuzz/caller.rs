//! One of those who ask at once: an account, a server's name, a connection, and the rules by which answers are judged.

use super::known::{Known, PASSWORD};
use super::lab::drive::{self, Snug};
use super::lab::random::Stream;
use super::lab::resident::lock;
use super::lab::wire::{Answer, Client, Pipe, Target, percent_encode, read_answer};
use super::odd::Tree;
use super::peers::{Draft, Peers, Room, seal};
use super::request::{Built, Maker};
use super::table::{Endpoint, Who};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// How long any answer may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long something is waited for that need not come.
const GLANCE: Duration = Duration::from_millis(700);
/// How long a request is sent again on one new connection after the other.
const PLACES_RETURN: Duration = Duration::from_secs(100);
/// Requests of a connection that are kept for the report.
const RECENT_MAX: usize = 12;
/// Requests after which there is a new room, and after which there is a new account.
const ROOM_EVERY: u64 = 250;
const ACCOUNT_EVERY: u64 = 2500;
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// A request and what became of it.
#[derive(Clone)]
pub struct Sent {
    pub number: u64,
    pub bytes: Arc<Vec<u8>>,
    pub outcome: Option<String>,
}

/// What the main thread may look at while a caller works.
#[derive(Default)]
pub struct Diary {
    pub recent: VecDeque<Sent>,
    /// By endpoint: how often asked, how often answered well.
    pub endpoints: BTreeMap<String, (u64, u64)>,
    pub statuses: BTreeMap<u16, u64>,
    pub fault: Option<String>,
    pub slowest: Duration,
    pub slowest_label: String,
}

pub struct Caller {
    number: u64,
    random: Stream,
    known: Known,
    peers: Arc<Peers>,
    target: Target,
    /// Where servers are listened to, over TLS.
    federation: SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    /// The connection, and the socket below it.
    pipe: Option<(BufReader<Box<dyn Pipe>>, TcpStream)>,
    diary: Arc<Mutex<Diary>>,
    sent: u64,
    /// Whether the account is gone.
    homeless: bool,
}

enum Got {
    Answer(Answer),
    /// Nothing within the time, or nothing at all.
    Nothing(io::Error),
    Silence,
}

impl Caller {
    pub fn new(number: u64, seed: u64, peers: &Arc<Peers>, snug: &Snug, tls: Option<Arc<ClientConfig>>) -> Caller {
        let origin = &peers.names[number as usize % peers.names.len().min(super::elsewhere::GOOD_NAMES)];
        Caller {
            number,
            random: Stream::new(seed, "caller", number),
            known: Known::new(origin, peers.names.clone()),
            peers: peers.clone(),
            target: Target { address: snug.client, host: drive::NAME.to_owned(), tls: None },
            federation: snug.federation,
            tls,
            pipe: None,
            diary: Arc::default(),
            sent: 0,
            homeless: true,
        }
    }

    pub fn diary(&self) -> Arc<Mutex<Diary>> {
        self.diary.clone()
    }

    /// Asks until told to stop, or until something is wrong. Goes through every endpoint in an order of its own, again and again.
    pub fn run(mut self, table: &[&'static Endpoint], requests: u64, stop: &AtomicBool) {
        let mut order: Vec<&'static Endpoint> = Vec::new();
        while !stop.load(Relaxed) && self.sent < requests {
            if self.homeless || self.sent % ACCOUNT_EVERY == ACCOUNT_EVERY - 1 {
                // What goes wrong while the server is ending is seen elsewhere.
                self.homeless = self.settle().is_err();
            } else if self.sent % ROOM_EVERY == ROOM_EVERY - 1 {
                let _ = self.open_room();
            }
            if order.is_empty() {
                order = table.iter().flat_map(|&endpoint| std::iter::repeat_n(endpoint, endpoint.weight)).collect();
                self.random.shuffle(&mut order);
            }
            if let Some(endpoint) = order.pop() {
                self.ask(endpoint);
            }
            if lock(&self.diary).fault.is_some() {
                return;
            }
        }
    }

    fn ask(&mut self, endpoint: &'static Endpoint) {
        let mut maker = Maker { known: &mut self.known, random: &mut self.random, peers: &self.peers };
        let built = maker.make(endpoint);
        self.sent += 1;
        let bytes = Arc::new(built.bytes.clone());
        {
            let mut diary = lock(&self.diary);
            if diary.recent.len() == RECENT_MAX {
                diary.recent.pop_front();
            }
            diary.recent.push_back(Sent { number: self.sent, bytes, outcome: None });
            diary.endpoints.entry(built.label.clone()).or_default().0 += 1;
        }
        let began = Instant::now();
        let got = self.exchange(&built);
        self.note(endpoint, &built, got, began.elapsed());
    }

    fn note(&mut self, endpoint: &Endpoint, built: &Built, got: Got, took: Duration) {
        let (outcome, wrong) = match &got {
            Got::Answer(answer) => {
                let text: String = String::from_utf8_lossy(&answer.body).chars().take(200).collect();
                (format!("{} {text}", answer.status), judge(endpoint, built, answer))
            }
            Got::Silence => ("hung up on".to_owned(), None),
            Got::Nothing(error) => (error.to_string(), self.judge_nothing(built, error)),
        };
        {
            let mut diary = lock(&self.diary);
            if let Some(sent) = diary.recent.back_mut() {
                sent.outcome = Some(outcome);
            }
            if took > diary.slowest && !built.broken {
                diary.slowest = took;
                diary.slowest_label = built.label.clone();
            }
            if let Got::Answer(answer) = &got {
                *diary.statuses.entry(answer.status).or_default() += 1;
                if answer.status < 300 {
                    diary.endpoints.entry(built.label.clone()).or_default().1 += 1;
                }
            }
            diary.fault = wrong.map(|why| format!("{}: {why}", built.label));
        }
        if let Got::Answer(answer) = got {
            self.learn(endpoint, built, &answer);
        }
    }

    fn learn(&mut self, endpoint: &Endpoint, built: &Built, answer: &Answer) {
        if answer.status == 401 && built.honest && endpoint.who == Who::User {
            let errcode = answer.json()["errcode"].as_str().unwrap_or_default().to_owned();
            self.homeless |= errcode == "M_UNKNOWN_TOKEN";
        }
        if answer.status != 200 && answer.status != 401 {
            return;
        }
        let said = answer.json();
        self.known.learn(&said, built.room.as_deref());
        for (room, id, event) in &built.events {
            let refused = said["pdus"].get(id).is_none_or(|result| result.get("error").is_some());
            if !refused {
                self.known.note_event(room, id);
                self.peers.took(room, id, event.clone());
            }
        }
    }

    /// A request that got no answer.
    fn judge_nothing(&self, built: &Built, error: &io::Error) -> Option<String> {
        match (built.broken, is_late(error)) {
            (true, _) => None,
            (false, true) => Some(format!("no answer within {} s", PATIENCE.as_secs())),
            // A body that is too long is refused before it has come, and the rest of it meets a closed door.
            (false, false) if built.bytes.len() > 8000 => None,
            (false, false) => Some(format!("no answer: {error}")),
        }
    }

    // ---- the wire ----

    fn exchange(&mut self, built: &Built) -> Got {
        let patience = if built.broken || built.waits { GLANCE } else { PATIENCE };
        let began = Instant::now();
        loop {
            let kept = self.pipe.is_some();
            let error = match self.attempt(built, patience) {
                Ok(answer) => return Got::Answer(answer),
                Err(error) if is_late(&error) && built.waits => return Got::Silence,
                Err(error) if is_late(&error) || built.broken => return Got::Nothing(error),
                Err(error) => error,
            };
            // A kept connection may have been closed meanwhile. A new one has no such excuse, unless places are taken by
            // those that were hung up on, which the server may believe in for a minute and a half.
            if !kept && (began.elapsed() > PLACES_RETURN || !self.has_place()) {
                return Got::Nothing(error);
            }
        }
    }

    /// Waits until somebody who asks for something simple is heard.
    fn has_place(&self) -> bool {
        let began = Instant::now();
        let probe = || -> io::Result<(Answer, bool)> {
            let (mut pipe, socket) = self.connect()?;
            socket.set_read_timeout(Some(Duration::from_secs(10)))?;
            let head = format!("GET /_matrix/client/versions HTTP/1.1\r\nhost: {}\r\n\r\n", drive::NAME);
            pipe.get_mut().write_all(head.as_bytes())?;
            pipe.get_mut().flush()?;
            read_answer(&mut pipe, false, ANSWER_BYTES_MAX)
        };
        while began.elapsed() < PLACES_RETURN {
            thread::sleep(Duration::from_millis(300));
            if probe().is_ok() {
                return true;
            }
        }
        false
    }

    fn attempt(&mut self, built: &Built, patience: Duration) -> io::Result<Answer> {
        let (mut pipe, socket) = match self.pipe.take() {
            Some(kept) => kept,
            None => self.connect()?,
        };
        socket.set_read_timeout(Some(patience))?;
        // The answer may be there before all is written.
        let written = pipe.get_mut().write_all(&built.bytes).and_then(|()| pipe.get_mut().flush());
        let answer = read_answer(&mut pipe, built.bodiless, ANSWER_BYTES_MAX);
        let (answer, reusable) = match (answer, written) {
            (Ok(answer), _) => answer,
            (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(error),
        };
        if reusable && !built.broken && self.random.chance(0.98) {
            self.pipe = Some((pipe, socket));
        }
        Ok(answer)
    }

    fn connect(&self) -> io::Result<(BufReader<Box<dyn Pipe>>, TcpStream)> {
        let address = if self.tls.is_some() { self.federation } else { self.target.address };
        let socket = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(Duration::from_secs(20)))?;
        let below = socket.try_clone()?;
        let pipe: Box<dyn Pipe> = match &self.tls {
            None => Box::new(socket),
            Some(config) => {
                let name = ServerName::try_from(drive::NAME).map_err(io::Error::other)?;
                let tls = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
                Box::new(StreamOwned::new(tls, socket))
            }
        };
        Ok((BufReader::with_capacity(16 << 10, pipe), below))
    }

    // ---- what honest callers do first ----

    /// A new account, with rooms of its own and of others.
    fn settle(&mut self) -> io::Result<()> {
        let name = format!("u{}n{}", self.number, self.random.token(10, true));
        let body = json!({"username": name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}});
        let answer = self.plain().call("POST", "/_matrix/client/v3/register", &[], Some(&body))?.good("register")?;
        self.known.begin_anew();
        self.known.me = answer["user_id"].as_str().unwrap_or_default().to_owned();
        self.known.token = answer["access_token"].as_str().unwrap_or_default().to_owned();
        self.known.note("device_id", answer["device_id"].as_str().unwrap_or_default());
        let me = self.known.me.clone();
        self.known.own_key = self.peers.key(&me).public();
        self.known.note("user_id", &me);
        for rule in ["x", "y", ".m.rule.master"] {
            self.known.note("rule_id", rule);
        }
        self.open_room()
    }

    /// A room here that a peer joins, and a room of a peer's that is joined from here.
    fn open_room(&mut self) -> io::Result<()> {
        let version = *self.random.pick(&["11", "12", "10", "11", "9", "8", "7", "6"]);
        let body = json!({"preset": "public_chat", "room_version": version});
        let created = self.own("POST", "/_matrix/client/v3/createRoom", Some(&body))?.good("createRoom")?;
        let room = created["room_id"].as_str().unwrap_or_default().to_owned();
        self.known.note("room_id", &room);
        self.known.note("home", &room);
        let txn = self.random.token(8, true);
        let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/{txn}", percent_encode(&room));
        let said = self.own("PUT", &path, Some(&json!({"msgtype": "m.text", "body": "hello"})))?;
        self.known.learn(&said.json(), Some(&room));
        self.join_here(&room, version.parse().unwrap_or(11))?;
        if self.random.chance(0.3) && version != "6" {
            let path = format!("/_matrix/client/v3/rooms/{}/state/m.room.join_rules/", percent_encode(&room));
            self.own("PUT", &path, Some(&json!({"join_rule": "knock"})))?;
        }
        let host = self.random.pick(&self.peers.names).clone();
        let theirs = self.peers.found_room(&host, &mut self.random);
        self.known.note("room_id", &theirs.id);
        // May fail: what the peer answers is not always in order.
        let path = format!("/_matrix/client/v3/join/{}?via={}", percent_encode(&theirs.id), percent_encode(&host));
        if self.own("POST", &path, Some(&json!({}))).is_ok_and(|answer| answer.status == 200) {
            self.known.note("home", &theirs.id);
        }
        Ok(())
    }

    /// The peer's person enters a room of the server under test, as servers do.
    fn join_here(&mut self, room: &str, version: u8) -> io::Result<()> {
        let key = self.peers.key(&self.known.origin);
        let user = format!("@p0:{}", self.known.origin);
        let mut client = self.plain();
        let path = format!(
            "/_matrix/federation/v1/make_join/{}/{}?ver={version}",
            percent_encode(room),
            percent_encode(&user)
        );
        let template = client.signed(&key, "GET", &path, None)?.good("make_join")?;
        let mut event = Tree::of(&template["event"]);
        event.set("origin_server_ts", Tree::number(super::lab::resident::now_ms()));
        let (id, event) = seal(event, version, &key);
        let body: Value = serde_json::from_slice(&event.bytes())?;
        let path = format!("/_matrix/federation/v2/send_join/{}/{}", percent_encode(room), percent_encode(&id));
        let answer = client.signed(&key, "PUT", &path, Some(&body))?.good("send_join")?;
        let mut answer = answer;
        answer["event"] = body;
        let mut joined = Room::joined(room, version, &answer);
        // A second person, and a word.
        let content = Tree::map([("membership", Tree::text("join"))]);
        let other = format!("@p1:{}", self.known.origin);
        let draft = Draft { kind: "m.room.member".into(), state_key: Some(other.clone()), sender: other, content };
        let (id, event) = seal(joined.honest(&draft, None), version, &key);
        joined.take(&id, event.clone());
        let pdu: Value = serde_json::from_slice(&event.bytes())?;
        let body = json!({"origin": key.server, "origin_server_ts": super::lab::resident::now_ms(), "pdus": [pdu]});
        let path = format!("/_matrix/federation/v1/send/{}", self.random.token(12, false));
        client.signed(&key, "PUT", &path, Some(&body))?;
        self.peers.put(joined);
        Ok(())
    }

    fn plain(&self) -> Client {
        Client::new(self.target.clone())
    }

    fn own(&mut self, method: &str, path: &str, body: Option<&Value>) -> io::Result<Answer> {
        let authorization = format!("Bearer {}", self.known.token);
        self.plain().call(method, path, &[("authorization", &authorization)], body)
    }
}

fn is_late(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// What is wrong with an answer.
fn judge(endpoint: &Endpoint, built: &Built, answer: &Answer) -> Option<String> {
    // 501, 502 and 504 are said of other servers, 503 and 507 of a full disk.
    if answer.status >= 500 && ![501, 502, 503, 504, 507].contains(&answer.status) {
        return Some(format!("status {}", answer.status));
    }
    let other_text =
        endpoint.path.contains("/media/") || endpoint.path.contains("_snug") || endpoint.path.contains("load/");
    let has_no_text = answer.status == 204 || (other_text && answer.status == 304 && answer.body.is_empty());
    if built.bodiless || (other_text && answer.status < 300) || has_no_text {
        return None;
    }
    // The front hall itself answers what is no HTTP, without a body.
    if answer.body.is_empty() && (built.broken || answer.status >= 400 && !built.honest) {
        return None;
    }
    let is = |wanted: &str| {
        let mut headers = answer.headers.iter();
        headers.any(|(name, value)| name.eq_ignore_ascii_case("content-type") && value.starts_with(wanted))
    };
    let is_of_pages = endpoint.path == "/"
        || endpoint.path.contains("_snug")
        || endpoint.path.contains("/static/")
        || endpoint.path.ends_with("/fallback/web");
    // An odd path may lead to the front page.
    if is_of_pages && !is("application/json") || !built.honest && is("text/html") {
        return None;
    }
    if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(&answer.body) {
        return Some(format!("the answer is not JSON: {error}"));
    }
    let code = answer.status < 400 || answer.json()["errcode"].is_string() || answer.json()["flows"].is_array();
    (!code).then(|| format!("status {} without an errcode", answer.status))
}

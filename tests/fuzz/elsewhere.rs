//! What the peers answer when the server under test asks them: what it should be, and often something odd.

use super::lab::certificates::Certificates;
use super::lab::random::Stream;
use super::lab::resident::{lock, now_ms};
use super::lab::wire::{Pipe, Request, read_request};
use super::odd::{self, Tree};
use super::peers::{self, Draft, Peers, Room};
use std::collections::BTreeMap;
use std::io::{self, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Names whose answers are mostly in order.
pub const GOOD_NAMES: usize = 6;

pub struct Elsewhere {
    peers: Arc<Peers>,
    seed: u64,
    /// Questions so far; each answer has randomness of its own.
    pub asked: AtomicU64,
    /// How often, by what was asked.
    pub questions: Mutex<BTreeMap<String, u64>>,
}

struct Reply {
    status: u16,
    content_type: &'static str,
    body: Body,
}

enum Body {
    Json(Tree),
    Bytes(Vec<u8>),
}

impl Elsewhere {
    pub fn new(peers: Arc<Peers>) -> Arc<Elsewhere> {
        let seed = peers.seed;
        Arc::new(Elsewhere { peers, seed, asked: AtomicU64::new(0), questions: Mutex::default() })
    }

    /// Answers on a listener until the process ends; one blocking thread for each connection.
    pub fn listen(self: &Arc<Elsewhere>, listener: TcpListener, certificates: &Certificates) -> io::Result<()> {
        let (config, own) = (certificates.server_config()?, self.clone());
        thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (own, config) = (own.clone(), config.clone());
                // Whoever hangs up ends the thread; there is nobody to tell.
                thread::spawn(move || own.connection(socket, config));
            }
        });
        Ok(())
    }

    fn connection(&self, socket: TcpStream, config: Arc<rustls::ServerConfig>) -> Option<()> {
        socket.set_read_timeout(Some(Duration::from_secs(120))).ok()?;
        socket.set_write_timeout(Some(Duration::from_secs(20))).ok()?;
        let tls = rustls::ServerConnection::new(config).ok()?;
        let pipe: Box<dyn Pipe> = Box::new(rustls::StreamOwned::new(tls, socket));
        let mut pipe = BufReader::with_capacity(16 << 10, pipe);
        while let Some(request) = read_request(&mut pipe).ok()? {
            let mut random = Stream::new(self.seed, "answer", self.asked.fetch_add(1, Relaxed));
            self.answer(&request, &mut random, pipe.get_mut()).ok()?;
        }
        Some(())
    }

    fn answer(&self, request: &Request, random: &mut Stream, out: &mut Box<dyn Pipe>) -> io::Result<()> {
        let name = request.header("host").unwrap_or_default().to_owned();
        let good = self.peers.names.iter().position(|known| *known == name).is_none_or(|at| at < GOOD_NAMES);
        let path = request.segments();
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        let question = format!("{} /{}", request.method, path.get(..path.len().min(5)).unwrap_or_default().join("/"));
        *lock(&self.questions).entry(shorten(&question)).or_default() += 1;
        let mut reply = self.right(&name, &path, request, random);
        // Without their keys nothing else of theirs would be looked at.
        let keys = path.get(1) == Some(&"key");
        let odd = match (keys, good) {
            (true, true) => 0.0,
            (true, false) => 0.1,
            (false, true) => 0.15,
            (false, false) => 0.6,
        };
        if !random.chance(odd) {
            return write(out, &reply, None);
        }
        if let Body::Json(tree) = &mut reply.body {
            for _ in 0..random.below(4) {
                tree.make_odd(random, &[]);
            }
        }
        match random.below(12) {
            0 => reply.status = *random.pick(&[204, 301, 400, 401, 403, 404, 429, 500, 502, 999]),
            1 => {
                reply.content_type =
                    *random.pick(&["text/html", "", "application/json; charset=latin1", "multipart/mixed"])
            }
            _ => {}
        }
        write(out, &reply, Some(random))
    }

    /// What a careful server answers.
    fn right(&self, name: &str, path: &[&str], request: &Request, random: &mut Stream) -> Reply {
        let text = Tree::text;
        let none = || refused(404, "M_NOT_FOUND");
        match path {
            ["_matrix", "key", "v2", "server", ..] => json(self.keys(name)),
            ["_matrix", "key", "v2", "query", asked, ..] => {
                json(Tree::map([("server_keys", Tree::list([self.vouched(name, asked)]))]))
            }
            ["_matrix", "key", "v2", "query"] => {
                let asked = request.json()["server_keys"].as_object().cloned().unwrap_or_default();
                let ours = asked.keys().filter(|name| self.peers.names.contains(name));
                json(Tree::map([("server_keys", Tree::list(ours.map(|asked| self.vouched(name, asked))))]))
            }
            ["_matrix", "federation", _, "version"] => {
                json(Tree::map([("server", Tree::map([("name", text("fuzz")), ("version", text("1"))]))]))
            }
            ["_matrix", "federation", _, "query", "profile"] => {
                json(Tree::map([("displayname", text("somebody")), ("avatar_url", text("mxc://a.example/b"))]))
            }
            ["_matrix", "federation", _, "query", "directory"] => match self.peers.any_room(random) {
                Some(room) => json(Tree::map([("room_id", text(&room.id)), ("servers", Tree::list([text(name)]))])),
                None => none(),
            },
            ["_matrix", "federation", _, "publicRooms"] => json(self.public_rooms(random)),
            ["_matrix", "federation", _, "hierarchy", room] => json(self.space(name, room, random)),
            ["_matrix", "federation", _, "timestamp_to_event", _] => json(Tree::map([
                ("event_id", text(&format!("${}", "A".repeat(43)))),
                ("origin_server_ts", Tree::number(now_ms() - 1000)),
            ])),
            ["_matrix", "federation", _, "user", "devices", user] => json(devices(user)),
            ["_matrix", "federation", _, "user", "keys", "query"] => json(self.device_keys(name, request)),
            ["_matrix", "federation", _, "user", "keys", "claim"] => json(claimed(request)),
            ["_matrix", "federation", _, "media", ..] => file(random),
            ["_matrix", "media", ..] => {
                Reply { status: 200, content_type: "image/png", body: Body::Bytes(b"\x89PNG abc".to_vec()) }
            }
            ["_matrix", "federation", _, "send", _] => {
                self.take(request);
                json(Tree::map([("pdus", Tree::map([]))]))
            }
            ["_matrix", "federation", _, "event", id] => match self.peers.event(id) {
                Some(event) => pdus([event]),
                None => none(),
            },
            ["_matrix", "federation", _, "invite", _, _] => self.invited(name, path, request),
            ["_matrix", "federation", "unstable" | "v1", "rooms", _, "complexity"] => {
                json(Tree::map([("v1", Tree::Raw(b"0.25".to_vec()))]))
            }
            ["_matrix", "federation", _, verb, room, rest @ ..] => match self.peers.room(room) {
                Some(room) => self.about_room(name, verb, room, rest, request, random),
                None => none(),
            },
            _ => refused(404, "M_UNRECOGNIZED"),
        }
    }

    /// Events made by the server under test belong to what the peers know of their rooms.
    fn take(&self, request: &Request) {
        for event in request.json()["pdus"].as_array().into_iter().flatten() {
            let room = event["room_id"].as_str().and_then(|room| self.peers.room(room));
            if let Some(room) = room {
                let event = Tree::of(event);
                self.peers.took(&room.id, &peers::event_id(&event, room.version), event);
            }
        }
    }

    fn about_room(
        &self,
        name: &str,
        verb: &str,
        room: Room,
        rest: &[&str],
        request: &Request,
        random: &mut Stream,
    ) -> Reply {
        let text = Tree::text;
        let list = |ids: Vec<String>| Tree::list(ids.iter().map(|id| text(id)));
        let user = rest.first().copied().unwrap_or_default();
        match verb {
            "make_join" | "make_leave" | "make_knock" => {
                let membership = verb.trim_start_matches("make_");
                let content = Tree::map([("membership", text(membership))]);
                let draft = Draft {
                    kind: "m.room.member".to_owned(),
                    state_key: Some(user.to_owned()),
                    sender: user.to_owned(),
                    content,
                };
                let event = room.honest(&draft, None);
                json(Tree::map([("room_version", text(&room.version.to_string())), ("event", event)]))
            }
            "send_join" => {
                let event = Tree::of(&request.json());
                let state = Tree::List(room.state_events());
                self.peers.took(&room.id, user, event.clone());
                json(Tree::map([
                    ("origin", text(name)),
                    ("event", event),
                    ("state", state.clone()),
                    ("auth_chain", state),
                    ("members_omitted", Tree::Raw(b"false".to_vec())),
                ]))
            }
            "send_leave" => json(Tree::map([])),
            "send_knock" => json(Tree::map([("knock_room_state", Tree::List(room.state_events()))])),
            "state" => {
                let state = Tree::List(room.state_events());
                json(Tree::map([("pdus", state.clone()), ("auth_chain", state)]))
            }
            "state_ids" => {
                json(Tree::map([("pdu_ids", list(room.state_ids())), ("auth_chain_ids", list(room.state_ids()))]))
            }
            "event_auth" => json(Tree::map([("auth_chain", Tree::List(room.state_events()))])),
            "backfill" => pdus(room.newest(1 + random.below(30)).into_iter().map(|(_, event)| event)),
            "get_missing_events" => {
                let events = room.newest(1 + random.below(10)).into_iter().rev().map(|(_, event)| event);
                json(Tree::map([("events", Tree::list(events))]))
            }
            _ => refused(404, "M_UNRECOGNIZED"),
        }
    }

    fn keys(&self, name: &str) -> Tree {
        let key = self.peers.key(name);
        let mut keys = Tree::map([
            ("server_name", Tree::text(name)),
            ("valid_until_ts", Tree::number(now_ms() + 7 * 86_400_000)),
            ("verify_keys", Tree::map([(key.id.as_str(), Tree::map([("key", Tree::text(&key.public()))]))])),
            ("old_verify_keys", Tree::map([])),
        ]);
        let signature = Tree::text(&key.sign(&keys.canonical()));
        keys.set("signatures", Tree::map([(name, Tree::map([(key.id.as_str(), signature)]))]));
        keys
    }

    /// Another name's keys under one's own signature too.
    fn vouched(&self, name: &str, asked: &str) -> Tree {
        let mut keys = self.keys(asked);
        let key = self.peers.key(name);
        let signature = Tree::text(&key.sign(&keys.without(&["signatures"]).canonical()));
        let mut all = keys.get("signatures").cloned().unwrap_or(Tree::map([]));
        all.set(name, Tree::map([(key.id.as_str(), signature)]));
        keys.set("signatures", all);
        keys
    }

    fn public_rooms(&self, random: &mut Stream) -> Tree {
        let rooms = self.peers.any_room(random).into_iter().map(|room| {
            Tree::map([
                ("room_id", Tree::text(&room.id)),
                ("name", Tree::text("a")),
                ("num_joined_members", Tree::number(2)),
                ("world_readable", Tree::Raw(b"true".to_vec())),
                ("guest_can_join", Tree::Raw(b"false".to_vec())),
                ("aliases", Tree::list([Tree::text("#a:b.example")])),
            ])
        });
        Tree::map([
            ("chunk", Tree::list(rooms)),
            ("next_batch", Tree::text("n")),
            ("total_room_count_estimate", Tree::number(1)),
        ])
    }

    /// A space in which another of the rooms is, and itself.
    fn space(&self, name: &str, room: &str, random: &mut Stream) -> Tree {
        let described = |id: &str| {
            Tree::map([
                ("room_id", Tree::text(id)),
                ("name", Tree::text("a")),
                ("topic", Tree::text(&"t".repeat(300))),
                ("room_type", Tree::text("m.space")),
                ("join_rule", Tree::text("restricted")),
                ("allowed_room_ids", Tree::list([Tree::text(room)])),
                ("num_joined_members", Tree::number(2)),
                ("world_readable", Tree::Raw(b"true".to_vec())),
                ("guest_can_join", Tree::Raw(b"true".to_vec())),
            ])
        };
        let child = |id: &str| {
            let content = Tree::map([("via", Tree::list([Tree::text(name)])), ("order", Tree::text("b"))]);
            Tree::map([
                ("type", Tree::text("m.space.child")),
                ("state_key", Tree::text(id)),
                ("sender", Tree::text(&format!("@a:{name}"))),
                ("origin_server_ts", Tree::number(now_ms())),
                ("content", content),
            ])
        };
        let other = self.peers.any_room(random).map_or_else(|| format!("!b:{name}"), |room| room.id.clone());
        let mut space = described(room);
        space.set("children_state", Tree::list([child(&other), child(room)]));
        Tree::map([
            ("room", space),
            ("children", Tree::list([described(&other)])),
            ("inaccessible_children", Tree::list([Tree::text("!c:d.example")])),
        ])
    }

    fn device_keys(&self, name: &str, request: &Request) -> Tree {
        let asked = request.json()["device_keys"].as_object().cloned().unwrap_or_default();
        let mut all = Tree::map([]);
        let mut masters = Tree::map([]);
        for user in asked.keys() {
            all.set(user, Tree::map([("D", device(user, "D"))]));
            let key = self.peers.key(name).public();
            let id = format!("ed25519:{key}");
            let keys = Tree::map([(id.as_str(), Tree::text(&key))]);
            let usage = Tree::list([Tree::text("master")]);
            masters.set(user, Tree::map([("user_id", Tree::text(user)), ("usage", usage), ("keys", keys)]));
        }
        Tree::map([("device_keys", all), ("master_keys", masters), ("self_signing_keys", Tree::map([]))])
    }

    /// An invitation that is taken: the same event with the invited server's signature.
    fn invited(&self, name: &str, path: &[&str], request: &Request) -> Reply {
        let body = request.json();
        let (event, version) = match path[2] {
            "v2" => (&body["event"], body["room_version"].as_str().and_then(|version| version.parse().ok())),
            _ => (&body, Some(10)),
        };
        let mut event = Tree::of(event);
        peers::sign_event(&mut event, version.unwrap_or(11), &self.peers.key(name));
        let answer = Tree::map([("event", event.clone())]);
        match path[2] {
            "v2" => json(answer),
            _ => json(Tree::list([Tree::number(200), answer])),
        }
    }
}

/// Without the ids in it.
fn shorten(question: &str) -> String {
    let is_id = |part: &&str| part.starts_with(['!', '@', '$', '#']) || part.len() > 22;
    question.split('/').filter(|part| !is_id(part)).collect::<Vec<_>>().join("/")
}

fn devices(user: &str) -> Tree {
    let device = Tree::map([("device_id", Tree::text("D")), ("keys", device(user, "D"))]);
    Tree::map([("user_id", Tree::text(user)), ("stream_id", Tree::number(5)), ("devices", Tree::list([device]))])
}

fn device(user: &str, id: &str) -> Tree {
    let (curve, ed) = (format!("curve25519:{id}"), format!("ed25519:{id}"));
    let key = Tree::text(&"A".repeat(43));
    Tree::map([
        ("user_id", Tree::text(user)),
        ("device_id", Tree::text(id)),
        ("algorithms", Tree::list([Tree::text("m.olm.v1.curve25519-aes-sha2")])),
        ("keys", Tree::map([(curve.as_str(), key.clone()), (ed.as_str(), key)])),
        ("signatures", Tree::map([(user, Tree::map([(ed.as_str(), Tree::text(&"A".repeat(86)))]))])),
    ])
}

fn claimed(request: &Request) -> Tree {
    let mut all = Tree::map([]);
    for (user, devices) in request.json()["one_time_keys"].as_object().into_iter().flatten() {
        let mut keys = Tree::map([]);
        for device in devices.as_object().into_iter().flatten().map(|(device, _)| device) {
            let key = Tree::map([("key", Tree::text(&"A".repeat(43)))]);
            keys.set(device, Tree::map([("signed_curve25519:AAAA", key)]));
        }
        all.set(user, keys);
    }
    Tree::map([("one_time_keys", all)])
}

fn json(tree: Tree) -> Reply {
    Reply { status: 200, content_type: "application/json", body: Body::Json(tree) }
}

fn refused(status: u16, errcode: &str) -> Reply {
    let body = Tree::map([("errcode", Tree::text(errcode)), ("error", Tree::text("no"))]);
    Reply { status, ..json(body) }
}

fn pdus(events: impl IntoIterator<Item = Tree>) -> Reply {
    json(Tree::map([
        ("origin", Tree::text("a.example")),
        ("origin_server_ts", Tree::number(now_ms())),
        ("pdus", Tree::list(events)),
    ]))
}

/// A file, or where it is said to be; its length may be a lie.
fn file(random: &mut Stream) -> Reply {
    let more = *random.pick(&[
        "",
        "content-disposition: inline; filename=\"a.png\"\r\n",
        "content-length: 8\r\n",
        "content-length: 9000000\r\n",
        "location: https://127.0.0.1/a\r\n",
        "location: \r\n",
    ]);
    let bytes = *random.pick(&[8, 8, 0, 70_000, 500_000]);
    let head = "--b\r\ncontent-type: application/json\r\n\r\n{}\r\n--b\r\ncontent-type: image/png\r\n";
    let tail = *random.pick(&["\r\n--b--\r\n", "\r\n--b--\r\n", "\r\n--b", ""]);
    let body = [head.as_bytes(), more.as_bytes(), b"\r\n", &b"\x89PNG abc".repeat(bytes / 8), tail.as_bytes()].concat();
    Reply { status: 200, content_type: "multipart/mixed; boundary=b", body: Body::Bytes(body) }
}

/// Sends an answer; `odd`: perhaps with a framing that is wrong.
fn write(out: &mut Box<dyn Pipe>, reply: &Reply, odd: Option<&mut Stream>) -> io::Result<()> {
    let mut body = match &reply.body {
        Body::Json(tree) => tree.bytes(),
        Body::Bytes(bytes) => bytes.clone(),
    };
    let (mut length, mut extra, mut ends) = (body.len() as u64, String::new(), false);
    if let Some(random) = odd {
        if random.chance(0.1) {
            odd::damage(&mut body, random);
            length = body.len() as u64;
        }
        match random.below(40) {
            0 => (length, ends) = (length + 10, true),
            1 => length = length.saturating_sub(3),
            2 => length = u64::MAX,
            3 => extra = "transfer-encoding: chunked\r\n".to_owned(),
            4 => extra = format!("x-long: {}\r\n", "a".repeat(100_000)),
            5 => extra = "x-many: a\r\n".repeat(500),
            6 => extra = "content-encoding: gzip\r\n".to_owned(),
            7 => extra = "connection: close\r\n".to_owned(),
            8 => thread::sleep(Duration::from_millis(1500)),
            9 => return Err(io::Error::other("hung up instead of an answer")),
            _ => {}
        }
    }
    let head = format!(
        "HTTP/1.1 {} .\r\ncontent-type: {}\r\n{extra}content-length: {length}\r\n\r\n",
        reply.status, reply.content_type
    );
    out.write_all(&[head.as_bytes(), &body].concat())?;
    out.flush()?;
    if ends { Err(io::Error::other("the body ends early")) } else { Ok(()) }
}

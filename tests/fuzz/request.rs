//! One request: what an honest caller sends to an endpoint, and then perhaps some of it made odd.

use super::known::{Known, STATE_TYPES};
use super::lab::drive;
use super::lab::event::Key;
use super::lab::random::Stream;
use super::lab::resident::now_ms;
use super::lab::wire::percent_encode;
use super::odd::{self, Tree};
use super::peers::{Draft, Peers, Room, seal, sign_marks};
use super::table::{self, EDUS, Endpoint, Holds, Who};
use serde_json::Value;

/// Parts of paths and queries as they are sent.
const ODD_PARTS: &[&str] = &[
    "",
    ".",
    "..",
    "%2E%2E",
    "%2F",
    "%00",
    "%",
    "%zz",
    "%ff",
    "%F0%9F%98%80",
    "%C0%80",
    "+",
    "*",
    "%7Bx%7D",
    "a%2Fb",
    "%21",
    "%24",
    "%40",
    "%23",
    "%40a%3Ab",
    "%21a%3Ab",
    "%23a%3Ab",
    "%24a",
    "-1",
    "0",
    "1",
    "18446744073709551616",
    "9223372036854775807",
    "4294967296",
    "1.5",
    "1e9",
    "null",
    "true",
    "NaN",
    "_",
    "s",
    "s_0",
    "0_0",
    "%20",
    "%0A",
    "a%3A99999",
    "%5B%3A%3A1%5D",
    "127.0.0.1",
    "%7B%7D",
    "%5B%5D",
    "%7B",
    "%22%22",
    "%7B%22room%22%3A%5B%5D%7D",
    "%7B%22limit%22%3A-1%7D",
    "%7B%22room%22%3A%7B%22timeline%22%3A%7B%22limit%22%3A1e99%7D%7D%7D",
];

pub struct Built {
    pub label: String,
    pub bytes: Vec<u8>,
    /// Nothing was made odd.
    pub honest: bool,
    /// The framing is wrong on purpose: hanging up on it is as good as an answer.
    pub broken: bool,
    /// It may rightly wait for longer than we do.
    pub waits: bool,
    /// Answered without a body.
    pub bodiless: bool,
    /// The room it is about.
    pub room: Option<String>,
    /// Events that are shared once they are taken: room, id, event.
    pub events: Vec<(String, String, Tree)>,
}

pub struct Maker<'a> {
    pub known: &'a mut Known,
    pub random: &'a mut Stream,
    pub peers: &'a Peers,
}

/// What is made odd.
#[derive(Clone, Copy, Default)]
struct Oddness {
    path: usize,
    query: usize,
    body: usize,
    damage: bool,
    head: bool,
    method: bool,
}

impl Oddness {
    fn pick(endpoint: &Endpoint, random: &mut Stream) -> Oddness {
        let mut odd = Oddness::default();
        if random.chance(0.4) {
            return odd;
        }
        let with_body = endpoint.body != Holds::Nothing;
        for _ in 0..1 + random.below(3) {
            match random.below(16) {
                0..=2 => odd.path += 1,
                3..=6 if !endpoint.query.is_empty() => odd.query += 1,
                7..=13 if with_body => odd.body += 1,
                3..=13 if random.chance(0.5) => odd.path += 1,
                14 if with_body => odd.damage = random.chance(0.4),
                15 => odd.head = true,
                _ => odd.method = random.chance(0.1),
            }
        }
        odd
    }

    fn is_none(&self) -> bool {
        self.path + self.query + self.body == 0 && !self.damage && !self.head && !self.method
    }
}

impl Maker<'_> {
    pub fn make(&mut self, endpoint: &Endpoint) -> Built {
        let odd = Oddness::pick(endpoint, self.random);
        self.known.begin_request();
        if endpoint.who == Who::Server && self.random.chance(0.9) {
            self.pick_room();
        }
        let template = format!("{}{}", self.random.pick(endpoint.prefixes), endpoint.path);
        let mut events = Vec::new();
        // Events have ids of their own, which the path repeats.
        let (mut body, own_id) = self.event_body(endpoint, odd.body > 0, &mut events);
        let (path, mut near) = self.path(&template, own_id, odd.path);
        let query = self.query(endpoint, &mut near, odd.query);
        let target = if query.is_empty() { path } else { format!("{path}?{query}") };
        if let Holds::Json(samples) = endpoint.body {
            body = Some(self.json(endpoint, samples, &near, odd.body));
        }
        let method = match odd.method {
            true => (*self.random.pick(&["HEAD", "OPTIONS", "PATCH", "GET", "POST", "PUT", "DELETE", "put", "TRACE"]))
                .to_owned(),
            false => endpoint.method.to_owned(),
        };
        let mut bytes = body.as_ref().map(Tree::bytes);
        if endpoint.body == Holds::Bytes {
            let length = *self.random.pick(&[0, 10, 1000, 60_000]);
            bytes = Some((0..length).map(|_| self.random.next() as u8).collect());
        }
        let authorization = self.authorization(endpoint, &method, &target, body.as_ref());
        if let Some(bytes) = bytes.as_mut().filter(|_| odd.damage) {
            odd::damage(bytes, self.random);
        }
        let mut built = Built {
            label: format!("{} {template}", endpoint.method),
            bytes: Vec::new(),
            honest: odd.is_none(),
            broken: false,
            waits: target.contains("timeout")
                || target.contains("/media/")
                || body.as_ref().is_some_and(|body| body.get("timeout").is_some()),
            bodiless: method == "HEAD",
            room: self.known.room().map(str::to_owned),
            events,
        };
        self.write(&mut built, &method, &target, authorization, bytes, odd.head);
        built
    }

    /// A request of another server is about a room it is in.
    fn pick_room(&mut self) {
        let own = if self.random.chance(0.8) { self.peers.room_of(&self.known.origin, self.random) } else { None };
        if let Some(room) = own.or_else(|| self.peers.any_room(self.random)) {
            let events: Vec<String> = room.newest(5).into_iter().map(|(id, _)| id).collect();
            self.known.begin_in(&room.id, &events);
            self.known.note_event(&room.id, &room.any_event(self.random));
        }
    }

    fn path(&mut self, template: &str, own_id: Option<String>, odd: usize) -> (String, Vec<String>) {
        let mut near = Vec::new();
        let mut parts: Vec<String> = Vec::new();
        for part in template.split('/').skip(1) {
            let Some(kind) = part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) else {
                parts.push(part.to_owned());
                continue;
            };
            let value = match &own_id {
                Some(id) if kind == "event_id" && self.random.chance(0.95) => id.clone(),
                _ => self.known.value(kind, self.random),
            };
            parts.push(percent_encode(&value));
            near.push(value);
        }
        for _ in 0..odd {
            let named: Vec<usize> = (0..parts.len())
                .filter(|&at| template.split('/').nth(at + 1).is_some_and(|part| part.starts_with('{')))
                .collect();
            let at = match named.is_empty() || self.random.chance(0.05) {
                true => self.random.below(parts.len()),
                false => *self.random.pick(&named),
            };
            parts[at] = self.odd_part(&parts[at], &near);
        }
        ("/".to_owned() + &parts.join("/"), near)
    }

    /// In place of a part of a path or a value of a query, as it is sent.
    fn odd_part(&mut self, part: &str, near: &[String]) -> String {
        match self.random.below(8) {
            0..=2 => (*self.random.pick(ODD_PARTS)).to_owned(),
            3 => percent_encode(&odd::long_text(self.random)),
            4 if !near.is_empty() => percent_encode(self.random.pick::<String>(near)),
            5 => format!("{part}/"),
            _ => percent_encode(&odd::tweak_text(&super::lab::wire::percent_decode(part), self.random)),
        }
    }

    fn query(&mut self, endpoint: &Endpoint, near: &mut Vec<String>, odd: usize) -> String {
        let likely = if endpoint.who == Who::Server { 0.9 } else { 0.5 };
        let mut pairs: Vec<(String, String)> = Vec::new();
        for (name, kind) in table::pairs(endpoint.query) {
            if self.random.chance(likely) {
                let value = self.known.value(kind, self.random);
                pairs.push((name.to_owned(), percent_encode(&value)));
                near.push(value);
            }
        }
        let names: Vec<(&str, &str)> = table::pairs(endpoint.query).collect();
        for _ in 0..odd {
            let (name, kind) = *self.random.pick(&names);
            match self.random.below(8) {
                0 => pairs.retain(|(known, _)| known != name),
                1 => pairs.extend_from_within(..),
                2 => pairs.push((self.odd_part(name, near), "1".to_owned())),
                3 if !near.is_empty() => {
                    pairs.push((name.to_owned(), percent_encode(self.random.pick::<String>(near))))
                }
                _ => {
                    let value = percent_encode(&self.known.value(kind, self.random));
                    let value = self.odd_part(&value, near);
                    pairs.retain(|(known, _)| known != name);
                    pairs.push((name.to_owned(), value));
                }
            }
        }
        pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
    }

    fn json(&mut self, endpoint: &Endpoint, samples: &'static [&'static str], near: &[String], odd: usize) -> Tree {
        let mut samples = samples;
        // State events mostly say what their type is about.
        if endpoint.path.contains("{state_type}")
            && let Some(kind) = near.iter().find(|value| STATE_TYPES.contains(&value.as_str()))
            && self.random.chance(0.8)
        {
            samples = table::state_contents(kind);
        }
        let mut tree = self.sample(samples);
        for _ in 0..odd {
            tree.make_odd(self.random, near);
        }
        tree
    }

    fn sample(&mut self, samples: &[&str]) -> Tree {
        let text = *self.random.pick(samples);
        let value: Value =
            serde_json::from_str(text).unwrap_or_else(|error| panic!("a sample is JSON: {text}: {error}"));
        let (known, random) = (&mut *self.known, &mut *self.random);
        let mut tree = Tree::filled(&value, &mut |kind| known.value(kind, random));
        if text.contains("SIGN") {
            let key = self.peers.key(&self.known.me);
            sign_marks(&mut tree, &key);
        }
        tree
    }

    // ---- events ----

    fn event_body(
        &mut self,
        endpoint: &Endpoint,
        odd: bool,
        events: &mut Vec<(String, String, Tree)>,
    ) -> (Option<Tree>, Option<String>) {
        match endpoint.body {
            Holds::Transaction => (Some(self.transaction(odd, events)), None),
            Holds::Event(membership) => match self.member_event(membership, odd, events) {
                Some((id, event)) => (Some(event), Some(id)),
                None => (Some(Tree::map([])), None),
            },
            Holds::Invite => match self.member_event("invite", odd, events) {
                Some((id, event)) => {
                    let room = self.known.room().and_then(|room| self.peers.room(room));
                    let (version, state) = room.map_or((11, Vec::new()), |room| (room.version, room.state_events()));
                    let mut body = Tree::map([
                        ("room_version", Tree::text(&version.to_string())),
                        ("event", event),
                        ("invite_room_state", Tree::List(state)),
                    ]);
                    if odd && self.random.chance(0.5) {
                        body.make_odd(self.random, &[]);
                    }
                    (Some(body), Some(id))
                }
                None => (Some(Tree::map([])), None),
            },
            _ => (None, None),
        }
    }

    fn present_room(&mut self) -> Option<Room> {
        self.known.room().and_then(|room| self.peers.room(room)).or_else(|| self.peers.any_room(self.random))
    }

    fn member_event(
        &mut self,
        membership: &str,
        odd: bool,
        events: &mut Vec<(String, String, Tree)>,
    ) -> Option<(String, Tree)> {
        let room = self.present_room()?;
        self.known.begin_in(&room.id, &[]);
        let sender = match membership {
            "invite" => format!("@p0:{}", if room.host == drive::NAME { &self.known.origin } else { &room.host }),
            _ => self.known.value("their_user", self.random),
        };
        let target = if membership == "invite" { self.known.me.clone() } else { sender.clone() };
        let content = Tree::map([("membership", Tree::text(membership)), ("displayname", Tree::text("p"))]);
        let draft = Draft { kind: "m.room.member".to_owned(), state_key: Some(target), sender, content };
        let (id, event) = self.sealed(&room, &draft, odd);
        events.push((room.id, id.clone(), event.clone()));
        Some((id, event))
    }

    fn transaction(&mut self, odd: bool, events: &mut Vec<(String, String, Tree)>) -> Tree {
        let count = match self.random.below(60) {
            0 => 51,
            1..=20 => 0,
            _ => 1 + self.random.below(5),
        };
        let mut pdus = Vec::new();
        let mut room = self.present_room();
        for _ in 0..count {
            let Some(here) = room.as_mut() else { break };
            let draft = self.draft(here);
            let is_odd = self.random.chance(0.6);
            let (id, event) = self.sealed(here, &draft, is_odd);
            here.take(&id, event.clone());
            events.push((here.id.clone(), id, event.clone()));
            pdus.push(event);
        }
        let edus = if self.random.chance(0.5) { 0 } else { *self.random.pick(&[1, 2, 3, 3, 101]) };
        let edus: Vec<Tree> = (0..edus)
            .map(|_| {
                let mut edu = self.sample(EDUS);
                for _ in 0..self.random.below(3) {
                    edu.make_odd(self.random, &[]);
                }
                edu
            })
            .collect();
        let mut all = Tree::map([
            ("origin", Tree::text(&self.known.origin)),
            ("origin_server_ts", Tree::number(now_ms())),
            ("pdus", Tree::List(pdus)),
            ("edus", Tree::List(edus)),
        ]);
        if odd && self.random.chance(0.3) {
            all.make_odd(self.random, &[]);
        }
        all
    }

    fn draft(&mut self, room: &Room) -> Draft {
        let sender = match self.random.below(8) {
            0 => self.known.value("user_id", self.random),
            _ if room.host == drive::NAME => format!("@p0:{}", self.known.origin),
            _ => format!("@p0:{}", room.host),
        };
        if self.random.chance(0.5) {
            let kind = self.known.value("event_type", self.random);
            let content = self.sample(table::contents());
            return Draft { kind, state_key: None, sender, content };
        }
        let kind = self.known.value("state_type", self.random);
        let content = match self.random.chance(0.85) {
            true => table::state_contents(&kind),
            false => table::state_contents(""),
        };
        let content = self.sample(content);
        let state_key = match (kind.as_str(), self.random.below(10)) {
            ("m.room.member", 0..=5) => sender.clone(),
            ("m.room.member", 6 | 7) => self.known.me.clone(),
            (_, 9) => self.known.value("state_key", self.random),
            _ => String::new(),
        };
        Draft { kind, state_key: Some(state_key), sender, content }
    }

    /// A signed event; odd ones are signed like all others, and some are changed behind that.
    fn sealed(&mut self, room: &Room, draft: &Draft, odd: bool) -> (String, Tree) {
        let mut event = room.honest(draft, Some(self.random));
        if odd {
            self.make_event_odd(room, &mut event);
        }
        let server = draft.sender.split_once(':').map_or("", |(_, server)| server);
        let key = self.peers.key(if server == drive::NAME { &self.known.origin } else { server });
        let (id, mut event) = seal(event, room.version, &key);
        if odd && self.random.chance(0.15) {
            event.make_odd(self.random, &[]);
        }
        if self.random.chance(0.1) {
            event.set("unsigned", odd::odd_value(self.random));
        }
        (id, event)
    }

    fn make_event_odd(&mut self, room: &Room, event: &mut Tree) {
        for _ in 0..1 + self.random.below(2) {
            match self.random.below(8) {
                0 => event.set("prev_events", self.event_list(room)),
                1 => event.set("auth_events", self.event_list(room)),
                2 => {
                    let depth =
                        *self.random.pick(&["0", "-1", "9223372036854775807", "9007199254740991", "1", "1e3", "\"5\""]);
                    event.set("depth", Tree::Raw(depth.as_bytes().to_vec()));
                }
                3 | 4 => {
                    let mut content = event.get("content").cloned().unwrap_or(Tree::map([]));
                    content.make_odd(self.random, &[]);
                    event.set("content", content);
                }
                _ => event.make_odd(self.random, &[]),
            }
        }
    }

    /// Ids to follow: some of the room, some of nothing, one twice, too many.
    fn event_list(&mut self, room: &Room) -> Tree {
        let count = *self.random.pick(&[0, 1, 2, 3, 10, 11, 20, 21, 60]);
        let mut ids: Vec<String> = (0..count)
            .map(|_| match self.random.below(10) {
                0 => format!("${}", self.random.token(43, false)),
                1 => self.known.value("event_id", self.random),
                _ => room.any_event(self.random),
            })
            .collect();
        if self.random.chance(0.3) {
            ids.extend(ids.first().cloned());
        }
        Tree::list(ids.iter().map(|id| Tree::text(id)))
    }

    // ---- heads ----

    fn authorization(
        &mut self,
        endpoint: &Endpoint,
        method: &str,
        target: &str,
        body: Option<&Tree>,
    ) -> Option<String> {
        match endpoint.who {
            Who::Anybody => None,
            Who::User => Some(format!("Bearer {}", self.known.token)),
            Who::Server => {
                let other = self.random.chance(0.05);
                let name = if other { self.random.pick(&self.peers.names).clone() } else { self.known.origin.clone() };
                Some(x_matrix(&self.peers.key(&name), method, target, body))
            }
        }
    }

    fn write(
        &mut self,
        built: &mut Built,
        method: &str,
        target: &str,
        authorization: Option<String>,
        body: Option<Vec<u8>>,
        odd: bool,
    ) {
        let mut head: Vec<(String, String)> = vec![("host".to_owned(), drive::NAME.to_owned())];
        head.extend(authorization.map(|value| ("authorization".to_owned(), value)));
        let mut body = body;
        if let Some(bytes) = &body {
            head.push(("content-type".to_owned(), "application/json".to_owned()));
            head.push(("content-length".to_owned(), bytes.len().to_string()));
        }
        let (mut target, mut version) = (target.to_owned(), "HTTP/1.1");
        if odd {
            self.make_head_odd(built, &mut head, &mut target, &mut version, &mut body);
        }
        let mut bytes = format!("{method} {target} {version}\r\n").into_bytes();
        for (name, value) in head {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(&body.unwrap_or_default());
        built.bytes = bytes;
    }

    fn make_head_odd(
        &mut self,
        built: &mut Built,
        head: &mut Vec<(String, String)>,
        target: &mut String,
        version: &mut &str,
        body: &mut Option<Vec<u8>>,
    ) {
        let mut add = |name: &str, value: &str| head.push((name.to_owned(), value.to_owned()));
        match self.random.below(24) {
            0 => head.retain(|(name, _)| name != "authorization"),
            1 => add("authorization", &format!("Bearer {}", self.known.token)),
            2 => add("authorization", "X-Matrix origin=a,key=\"ed25519:1\",sig=\"\""),
            3 | 4 => {
                if let Some((_, value)) = head.iter_mut().find(|(name, _)| name == "authorization") {
                    *value = odd::tweak_text(value, self.random).replace(['\r', '\n', '\0'], "");
                }
            }
            5 => {
                *target += &format!("{}access_token={}", if target.contains('?') { '&' } else { '?' }, self.known.token)
            }
            6 => add("content-type", "text/plain; charset=utf-16"),
            7 => {
                add("x-forwarded-for", self.random.pick::<&str>(&["::1, a, ,", "1.2.3.4", "999.1.1.1", "unknown", ""]))
            }
            8 => add("cookie", &"a".repeat(*self.random.pick(&[100, 9000, 70_000]))),
            9 => (0..*self.random.pick(&[10, 99, 101, 300])).for_each(|n| add(&format!("x-{n}"), "1")),
            10 => add("expect", "100-continue"),
            11 => add("upgrade", "h2c"),
            12 => add("range", "bytes=5-1"),
            13 => add("accept-encoding", "gzip, br, zstd"),
            14 => add("if-none-match", "*"),
            15 => *version = "HTTP/1.0",
            16 => head.retain(|(name, _)| name != "host"),
            17 => add("origin", "null"),
            18 => {
                // A body in chunks is as good as any.
                if let Some(bytes) = body {
                    head.retain(|(name, _)| name != "content-length");
                    head.push(("transfer-encoding".to_owned(), "chunked".to_owned()));
                    *bytes = chunked(bytes, self.random);
                }
            }
            _ => {
                built.broken = true;
                match self.random.below(7) {
                    0 => *version = *self.random.pick(&["HTTP/9.9", "", "HTTP/1.1 x", "http/1.1"]),
                    1 => add(
                        "content-length",
                        self.random.pick::<&str>(&["5", "-1", "abc", "18446744073709551616", "1, 1"]),
                    ),
                    2 => add("transfer-encoding", self.random.pick::<&str>(&["gzip", "chunked, chunked", "chunked"])),
                    3 => add("a b", "c\u{0}\u{1}\u{e9}"),
                    4 => add("connection", "close"),
                    5 => target.insert_str(
                        self.random.below(2),
                        self.random.pick::<&str>(&["\u{e9}", "#", "http://a", "\t", "*", "//", "\\"]),
                    ),
                    _ => {
                        head.retain(|(name, _)| name != "content-length");
                        add_length(head, body.as_ref().map_or(7, |body| body.len() + 7));
                    }
                }
            }
        }
    }
}

fn add_length(head: &mut Vec<(String, String)>, length: usize) {
    head.push(("content-length".to_owned(), length.to_string()));
}

fn chunked(bytes: &[u8], random: &mut Stream) -> Vec<u8> {
    let size = *random.pick(&[1, 7, 1000, 100_000]);
    let mut out = Vec::new();
    for chunk in bytes.chunks(size) {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

/// Server-server API, "Request authentication", over a body that need not be JSON.
pub fn x_matrix(key: &Key, method: &str, target: &str, body: Option<&Tree>) -> String {
    let mut request = Tree::map([
        ("method", Tree::text(method)),
        ("uri", Tree::text(target)),
        ("origin", Tree::text(&key.server)),
        ("destination", Tree::text(drive::NAME)),
    ]);
    if let Some(body) = body {
        request.set("content", body.clone());
    }
    let signature = key.sign(&request.canonical());
    format!("X-Matrix origin=\"{}\",destination=\"{}\",key=\"{}\",sig=\"{signature}\"", key.server, drive::NAME, key.id)
}

//! What one caller knows of the server: ids, tokens and pages it was given, and honest values of every other kind.

use super::lab::drive;
use super::lab::random::Stream;
use serde_json::Value;
use std::collections::HashMap;

/// Values of one kind and of one room that are remembered; later ones take the places of earlier ones by turns.
const KEPT_MAX: usize = 48;
/// No id (255 bytes at most) and no token of the server is longer.
const ID_BYTES_MAX: usize = 512;
pub const PASSWORD: &str = "correct horse";

pub struct Known {
    pools: HashMap<&'static str, Vec<String>>,
    /// Events by room.
    events: HashMap<String, Vec<String>>,
    turn: usize,
    /// The room that the present request is about.
    room: Option<String>,
    pub me: String,
    pub token: String,
    /// The public key with which everything of this caller's devices is signed.
    pub own_key: String,
    /// The server this caller speaks for, and those it has heard of.
    pub origin: String,
    servers: Vec<String>,
}

impl Known {
    pub fn new(origin: &str, servers: Vec<String>) -> Known {
        Known {
            pools: HashMap::new(),
            events: HashMap::new(),
            turn: 0,
            room: None,
            me: String::new(),
            token: String::new(),
            own_key: String::new(),
            origin: origin.to_owned(),
            servers,
        }
    }

    pub fn note(&mut self, kind: &'static str, value: &str) {
        if value.is_empty() {
            return;
        }
        self.turn += 1;
        keep(self.pools.entry(kind).or_default(), value, self.turn);
    }

    pub fn note_event(&mut self, room: &str, event: &str) {
        self.turn += 1;
        if self.events.len() >= KEPT_MAX && !self.events.contains_key(room) {
            self.events.clear();
        }
        keep(self.events.entry(room.to_owned()).or_default(), event, self.turn);
    }

    /// Forgets what a new account has nothing to do with.
    pub fn begin_anew(&mut self) {
        for kind in ["sync", "pos", "filter_id", "device_id", "rule_id", "home"] {
            self.pools.remove(kind);
        }
    }

    /// The next request may be about another room.
    pub fn begin_request(&mut self) {
        self.room = None;
    }

    /// The next request is about this room.
    pub fn begin_in(&mut self, room: &str, events: &[String]) {
        self.room = Some(room.to_owned());
        events.iter().for_each(|event| self.note_event(room, event));
    }

    pub fn room(&self) -> Option<&str> {
        self.room.as_deref()
    }

    /// Takes in an answer. `room`: what the question was about.
    pub fn learn(&mut self, answer: &Value, room: Option<&str>) {
        match answer {
            Value::Array(list) => list.iter().take(100).for_each(|item| self.learn(item, room)),
            Value::Object(map) => {
                let room = map.get("room_id").and_then(Value::as_str).or(room);
                for (key, value) in map.iter().take(100) {
                    if let Some(text) = value.as_str() {
                        self.learn_text(key, text, room);
                    }
                    let room = if key.starts_with('!') { Some(key.as_str()) } else { room };
                    self.learn(value, room);
                }
            }
            _ => {}
        }
    }

    fn learn_text(&mut self, key: &str, text: &str, room: Option<&str>) {
        // Odd content comes back in answers, and an honest caller sends none of it as an id.
        if text.len() > ID_BYTES_MAX {
            return;
        }
        match key {
            "event_id" => match room {
                Some(room) => self.note_event(room, text),
                None => self.note("event_id", text),
            },
            "room_id" | "replacement_room" => self.note("room_id", text),
            "next_batch" => {
                self.note("sync", text);
                self.note("page", text);
            }
            "pos" => {
                self.note("pos", text);
                self.note("page", text);
            }
            "prev_batch" | "start" | "end" => self.note("page", text),
            "filter_id" => self.note("filter_id", text),
            "device_id" => self.note("device_id", text),
            "session" => self.note("session", text),
            "delay_id" => self.note("delay_id", text),
            "rule_id" => self.note("rule_id", text),
            "canonical_alias" | "alias" | "room_alias" => self.note("alias", text),
            "sender" | "user_id" => self.note("user_id", text),
            "content_uri" => {
                self.note("mxc", text);
                self.note("media_id", text.rsplit('/').next().unwrap_or_default());
            }
            _ => {}
        }
    }

    fn pooled(&mut self, kind: &'static str, random: &mut Stream) -> Option<String> {
        let pool = self.pools.get(kind).filter(|pool| !pool.is_empty())?;
        Some(random.pick(pool).clone())
    }

    /// The server in the present room's id, where there is one.
    fn room_server(&self) -> String {
        let server = self.room.as_deref().and_then(|room| room.split_once(':')).map(|(_, server)| server);
        server.unwrap_or(&self.origin).to_owned()
    }

    /// An honest value of a kind.
    pub fn value(&mut self, kind: &str, random: &mut Stream) -> String {
        let one = |list: &[&str], random: &mut Stream| (*random.pick(list)).to_owned();
        match kind {
            "me" => self.me.clone(),
            "password" => PASSWORD.to_owned(),
            "user_id" => match random.below(4) {
                0 => self.pooled("user_id", random).unwrap_or_else(|| self.me.clone()),
                1 => self.value("their_user", random),
                _ => self.me.clone(),
            },
            "their_user" => format!("@p{}:{}", random.below(5), self.origin),
            "room_id" => {
                if self.room.is_none() || random.chance(0.2) {
                    let pool = if random.chance(0.6) { "home" } else { "room_id" };
                    let room = self.pooled(pool, random).unwrap_or_else(|| "!nowhere:load.test".to_owned());
                    self.room.get_or_insert_with(|| room.clone());
                    return room;
                }
                self.room.clone().unwrap_or_default()
            }
            "room_id_or_alias" if random.chance(0.3) => self.value("alias", random),
            "room_id_or_alias" => self.value("room_id", random),
            "event_id" => {
                let here = self.room.as_ref().and_then(|room| self.events.get(room)).filter(|list| !list.is_empty());
                match here {
                    Some(list) if random.chance(0.9) => random.pick(list).clone(),
                    _ => self.pooled("event_id", random).unwrap_or_else(|| format!("${}", random.token(43, false))),
                }
            }
            "alias" if random.chance(0.2) => format!("#{}:{}", random.token(3, true), random.pick(&self.servers)),
            "alias" => {
                self.pooled("alias", random).unwrap_or_else(|| format!("#{}:{}", random.token(3, true), drive::NAME))
            }
            "device_id" => self.pooled("device_id", random).unwrap_or_else(|| "DEVICE".to_owned()),
            "sync" => self.pooled("sync", random).unwrap_or_default(),
            "pos" => self.pooled("pos", random).unwrap_or_default(),
            "page" => self.pooled("page", random).unwrap_or_default(),
            "filter_id" => self.pooled("filter_id", random).unwrap_or_else(|| "1".to_owned()),
            "session" => self.pooled("session", random).unwrap_or_default(),
            "delay_id" => self.pooled("delay_id", random).unwrap_or_else(|| random.token(22, false)),
            "delay" => one(&["1", "50", "1000", "60000", "0", "90000000"], random),
            "rule_id" => match self.pooled("rule_id", random) {
                Some(rule) if random.chance(0.6) => rule,
                _ => one(&["x", "y", "z"], random),
            },
            "mxc" => self.pooled("mxc", random).unwrap_or_else(|| format!("mxc://{}/abc", self.origin)),
            "media_id" => match self.pooled("media_id", random) {
                Some(id) if random.chance(0.7) => id,
                _ => random.token(8, false),
            },
            "filter" => match self.pooled("filter_id", random) {
                Some(id) if random.chance(0.5) => id,
                _ => self.value("filter_text", random),
            },
            "filter_text" => one(
                &[
                    r#"{"room":{"state":{"lazy_load_members":true}}}"#,
                    r#"{"lazy_load_members":true,"types":["m.room.message"],"limit":3}"#,
                    r#"{"room":{"timeline":{"limit":2}},"event_format":"federation"}"#,
                    r#"{"contains_url":false,"not_senders":["*"],"related_by_rel_types":["m.thread"]}"#,
                ],
                random,
            ),
            "server" => match random.below(6) {
                0..=2 => drive::NAME.to_owned(),
                3 => random.pick(&self.servers).clone(),
                4 => self.origin.clone(),
                _ => self.room_server(),
            },
            "event_type" => one(
                &[
                    "m.room.message",
                    "m.room.encrypted",
                    "m.reaction",
                    "m.room.member",
                    "m.room_key",
                    "org.example.a",
                    "m.room.redaction",
                    "m.room.name",
                ],
                random,
            ),
            "state_type" => one(STATE_TYPES, random),
            "state_key" => match random.below(4) {
                0 => self.value("user_id", random),
                1 => random.token(4, true),
                2 => self.value("room_id", random),
                _ => self.me.clone(),
            },
            "txn_id" => random.below(500).to_string(),
            "tag" => one(&["m.favourite", "u.work", "m.lowpriority"], random),
            "kind" => one(
                &[
                    "m.direct",
                    "m.ignored_user_list",
                    "m.fully_read",
                    "m.push_rules",
                    "m.invite_permission_config",
                    "org.matrix.msc4155.invite_permission_config",
                    "m.tag",
                    "org.example.data",
                    "m.marked_unread",
                ],
                random,
            ),
            "rule_kind" => one(&["content", "override", "underride", "room", "sender", "postcontent"], random),
            "field" => one(&["displayname", "avatar_url", "m.tz", "org.example.field", "m.status"], random),
            "propagate_to" => one(&["all", "unchanged", "none"], random),
            "receipt_type" => one(&["m.read", "m.read.private", "m.fully_read"], random),
            "rel_type" => one(&["m.thread", "m.annotation", "m.replace", "m.reference"], random),
            "membership" => one(&["join", "leave", "invite", "ban", "knock"], random),
            "join_rule" => one(&["public", "invite", "knock", "restricted", "knock_restricted", "private"], random),
            "visibility" => one(&["world_readable", "shared", "invited", "joined"], random),
            "version" => one(&["11", "12", "10", "9", "8", "7", "6", "5", "3", "1"], random),
            "number" => one(&["0", "1", "2", "5", "10", "50", "100", "1000", "50"], random),
            "fraction" => one(&["0", "1", "0.5", "0.25"], random),
            "count" => one(&["2", ">1", "<=10", "==0"], random),
            "bool" => one(&["true", "false"], random),
            "wait" => one(&["0", "0", "0", "1", "20", "100"], random),
            "dir" => one(&["b", "f"], random),
            "presence" => one(&["online", "offline", "unavailable"], random),
            "include" => one(&["all", "participated"], random),
            // Nothing there is asked: a private address, no address, no host.
            "url" => one(
                &["http://127.0.0.1:1/a", "https://[::1]/", "https://push.invalid/a?b=c#d", "//x", "ftp://a/"],
                random,
            ),
            "format" => one(&["event", "content"], random),
            "method" => one(&["crop", "scale"], random),
            "ts" => one(&["0", "1700000000000", "1900000000000"], random),
            "register_kind" => one(&["user", "guest"], random),
            "query_type" => one(&["profile", "directory", "other"], random),
            "name" => one(&["a.png", "b", "c.html"], random),
            "server_key" => one(&["ed25519:1", "ed25519:a", "ed25519:auto"], random),
            "own_key" => self.own_key.clone(),
            "key_id" => random.token(6, false),
            "base64" => random.token(43, false),
            "signature" => random.token(86, false),
            "localpart" => format!("n{}", random.below(200)),
            "code" | "token" => random.token(20, false),
            "auth_type" => one(&["m.login.terms", "m.login.registration_token", "m.login.dummy"], random),
            "policy" => one(&["privacy_policy", "terms_of_service"], random),
            "language" => one(&["en", "de"], random),
            _ => one(&["a", "hello world", "A", "\u{e9}", "\u{1f600}", "*", "x y", "test"], random),
        }
    }
}

pub const STATE_TYPES: &[&str] = &[
    "m.room.member",
    "m.room.member",
    "m.room.power_levels",
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.name",
    "m.room.topic",
    "m.room.avatar",
    "m.room.canonical_alias",
    "m.room.pinned_events",
    "m.room.encryption",
    "m.room.server_acl",
    "m.room.tombstone",
    "m.space.child",
    "m.space.parent",
    "m.room.create",
    "m.room.third_party_invite",
    "m.room.aliases",
    "org.example.state",
];

fn keep(pool: &mut Vec<String>, value: &str, turn: usize) {
    if value.len() > 4096 || pool.iter().any(|known| known == value) {
        return;
    }
    if pool.len() < KEPT_MAX {
        pool.push(value.to_owned());
    } else {
        let at = turn % KEPT_MAX;
        pool[at] = value.to_owned();
    }
}

//! Other servers: names with keys of their own, rooms they share with the server under test, and events that are really signed
//! and seldom ordinary.
//!
//! All names lead to one program, which knows from `Host` whom it is. Keys follow from names, so that no list is needed.

use super::lab::drive;
use super::lab::event::Key;
use super::lab::random::{Stream, key_seed};
use super::lab::resident::{lock, now_ms};
use super::odd::Tree;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::Mutex;

/// Rooms that are remembered, and events of each.
const ROOMS_MAX: usize = 64;
const EVENTS_MAX: usize = 400;

pub struct Peers {
    pub seed: u64,
    /// Under which names they are found.
    pub names: Vec<String>,
    rooms: Mutex<Vec<Room>>,
}

/// A room as its peers know it.
#[derive(Clone)]
pub struct Room {
    pub id: String,
    pub version: u8,
    /// The name of the server that made it, when that was one of the peers.
    pub host: String,
    /// Present state by type and state key.
    state: HashMap<(String, String), String>,
    /// Events by id, in the order they came.
    events: Vec<(String, Tree)>,
    extremities: Vec<String>,
    depth: u64,
}

/// What an event says and where it stands.
pub struct Draft {
    pub kind: String,
    pub state_key: Option<String>,
    pub sender: String,
    pub content: Tree,
}

pub fn key(seed: u64, name: &str) -> Key {
    Key::new(name, "1", key_seed(seed, name, 0))
}

impl Peers {
    pub fn new(seed: u64, names: Vec<String>) -> Peers {
        Peers { seed, names, rooms: Mutex::default() }
    }

    pub fn key(&self, name: &str) -> Key {
        key(self.seed, name)
    }

    pub fn room(&self, id: &str) -> Option<Room> {
        lock(&self.rooms).iter().find(|room| room.id == id).cloned()
    }

    pub fn any_room(&self, random: &mut Stream) -> Option<Room> {
        let rooms = lock(&self.rooms);
        (!rooms.is_empty()).then(|| random.pick(&rooms).clone())
    }

    /// A room in which a server has somebody.
    pub fn room_of(&self, server: &str, random: &mut Stream) -> Option<Room> {
        let person = format!("@p0:{server}");
        let rooms = lock(&self.rooms);
        let own: Vec<&Room> = rooms.iter().filter(|room| room.state("m.room.member", &person).is_some()).collect();
        (!own.is_empty()).then(|| (*random.pick(&own)).clone())
    }

    pub fn put(&self, room: Room) {
        let mut rooms = lock(&self.rooms);
        rooms.retain(|known| known.id != room.id);
        if rooms.len() >= ROOMS_MAX {
            rooms.remove(0);
        }
        rooms.push(room);
    }

    /// Notes an event that the server under test has taken, or made.
    pub fn took(&self, room: &str, id: &str, event: Tree) {
        if let Some(room) = lock(&self.rooms).iter_mut().find(|known| known.id == room) {
            room.take(id, event);
        }
    }

    pub fn event(&self, id: &str) -> Option<Tree> {
        let rooms = lock(&self.rooms);
        rooms.iter().flat_map(|room| &room.events).find(|(known, _)| known == id).map(|(_, event)| event.clone())
    }

    /// A new room on a peer with some people in it.
    pub fn found_room(&self, host: &str, random: &mut Stream) -> Room {
        let version = *random.pick(&[10u8, 11, 12, 11, 9, 8, 7, 6]);
        let creator = format!("@p0:{host}");
        let mut room = Room {
            id: format!("!{}:{host}", random.token(18, false)),
            version,
            host: host.to_owned(),
            state: HashMap::new(),
            events: Vec::new(),
            extremities: Vec::new(),
            depth: 0,
        };
        let text = Tree::text;
        let mut create = Tree::map([("room_version", text(&version.to_string()))]);
        if version < 11 {
            create.set("creator", text(&creator));
        }
        let users = if version == 12 { Tree::map([]) } else { Tree::map([(creator.as_str(), Tree::number(100))]) };
        let key = self.key(host);
        let mut add = |kind: &str, state_key: &str, content: Tree| {
            let sender = creator.clone();
            let draft = Draft { kind: kind.to_owned(), state_key: Some(state_key.to_owned()), sender, content };
            let (id, event) = seal(room.honest(&draft, None), room.version, &key);
            if kind == "m.room.create" && version == 12 {
                room.id = format!("!{}", id.trim_start_matches('$'));
            }
            room.take(&id, event);
        };
        add("m.room.create", "", create);
        add("m.room.member", &creator, Tree::map([("membership", text("join"))]));
        add("m.room.power_levels", "", Tree::map([("users", users), ("invite", Tree::number(0))]));
        let rule = if version > 6 { *random.pick(&["public", "public", "knock", "invite"]) } else { "public" };
        add("m.room.join_rules", "", Tree::map([("join_rule", text(rule))]));
        add("m.room.history_visibility", "", Tree::map([("history_visibility", text("shared"))]));
        add("m.room.name", "", Tree::map([("name", text("A room"))]));
        self.put(room.clone());
        room
    }
}

impl Room {
    /// A room of the server under test, from what `send_join` answered.
    pub fn joined(id: &str, version: u8, answer: &Value) -> Room {
        let mut room = Room {
            id: id.to_owned(),
            version,
            host: drive::NAME.to_owned(),
            state: HashMap::new(),
            events: Vec::new(),
            extremities: Vec::new(),
            depth: 0,
        };
        for event in answer["state"].as_array().into_iter().flatten() {
            let event = Tree::of(event);
            room.take(&event_id(&event, version), event);
        }
        let event = Tree::of(&answer["event"]);
        room.extremities.clear();
        room.take(&event_id(&event, version), event);
        room
    }

    pub fn take(&mut self, id: &str, event: Tree) {
        if self.events.iter().any(|(known, _)| known == id) {
            return;
        }
        let text = |key: &str| event.get(key).and_then(plain_text);
        if let (Some(kind), Some(state_key)) = (text("type"), text("state_key")) {
            self.state.insert((kind, state_key), id.to_owned());
        }
        let prevs = ids(event.get("prev_events"));
        self.extremities.retain(|known| !prevs.contains(known));
        self.extremities.push(id.to_owned());
        let extra = self.extremities.len().saturating_sub(5);
        self.extremities.drain(..extra);
        self.depth = (self.depth + 1).max(event.get("depth").and_then(number).unwrap_or(0)).min(1 << 40);
        self.events.push((id.to_owned(), event));
        if self.events.len() > EVENTS_MAX {
            let held: Vec<String> = self.state.values().cloned().collect();
            let at = self.events.iter().position(|(id, _)| !held.contains(id)).unwrap_or(0);
            self.events.remove(at);
        }
    }

    pub fn state(&self, kind: &str, state_key: &str) -> Option<&String> {
        self.state.get(&(kind.to_owned(), state_key.to_owned()))
    }

    pub fn state_events(&self) -> Vec<Tree> {
        let of = |id: &String| self.events.iter().find(|(known, _)| known == id).map(|(_, event)| event.clone());
        let mut ids: Vec<&String> = self.state.values().collect();
        ids.sort();
        ids.into_iter().filter_map(of).collect()
    }

    pub fn state_ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = self.state.values().cloned().collect();
        ids.sort();
        ids
    }

    /// The newest events, newest first.
    pub fn newest(&self, count: usize) -> Vec<(String, Tree)> {
        self.events.iter().rev().take(count).cloned().collect()
    }

    pub fn any_event(&self, random: &mut Stream) -> String {
        match self.events.is_empty() {
            true => "$none".to_owned(),
            false => random.pick(&self.events).0.clone(),
        }
    }

    pub fn auth_of(&self, draft: &Draft) -> Vec<String> {
        let mut wanted = vec![("m.room.power_levels", ""), ("m.room.member", draft.sender.as_str())];
        if self.version < 12 {
            wanted.push(("m.room.create", ""));
        }
        if draft.kind == "m.room.member" {
            let membership = draft.content.get("membership").and_then(plain_text).unwrap_or_default();
            if ["join", "invite", "knock"].contains(&membership.as_str()) {
                wanted.push(("m.room.join_rules", ""));
            }
            wanted.extend(draft.state_key.as_deref().map(|user| ("m.room.member", user)));
        }
        let mut ids: Vec<String> =
            wanted.into_iter().filter_map(|(kind, key)| self.state(kind, key).cloned()).collect();
        ids.sort();
        ids.dedup();
        ids
    }

    /// The event as a careful server makes it, without hashes and signatures. `random`: lets it follow what is older.
    pub fn honest(&self, draft: &Draft, random: Option<&mut Stream>) -> Tree {
        let text = Tree::text;
        let mut prevs = self.extremities.clone();
        if let Some(random) = random
            && random.chance(0.15)
        {
            prevs = vec![self.any_event(random)];
        }
        let refs = |ids: Vec<String>| Tree::list(ids.iter().map(|id| text(id)));
        let create = draft.kind == "m.room.create";
        let auth = if create { Vec::new() } else { self.auth_of(draft) };
        let mut event = Tree::map([
            ("type", text(&draft.kind)),
            ("sender", text(&draft.sender)),
            ("content", draft.content.clone()),
            ("origin_server_ts", Tree::number(now_ms())),
            ("depth", Tree::number(self.depth + 1)),
            ("prev_events", refs(prevs)),
            ("auth_events", refs(auth)),
        ]);
        if !(create && self.version == 12) {
            event.set("room_id", text(&self.id));
        }
        if let Some(key) = &draft.state_key {
            event.set("state_key", text(key));
        }
        event
    }
}

/// The text of a tree that is one.
pub fn plain_text(tree: &Tree) -> Option<String> {
    let Tree::Raw(raw) = tree else { return None };
    serde_json::from_slice(raw).ok()
}

fn number(tree: &Tree) -> Option<u64> {
    let Tree::Raw(raw) = tree else { return None };
    serde_json::from_slice(raw).ok()
}

fn ids(list: Option<&Tree>) -> Vec<String> {
    let Some(Tree::List(list)) = list else { return Vec::new() };
    list.iter().filter_map(plain_text).collect()
}

/// Adds the content hash and a signature, and tells the event's id. Works on anything.
pub fn seal(event: Tree, version: u8, key: &Key) -> (String, Tree) {
    let mut event = event.without(&["hashes", "signatures"]);
    let hash = Sha256::digest(event.without(&["unsigned"]).canonical());
    event.set("hashes", Tree::map([("sha256", Tree::text(&STANDARD_NO_PAD.encode(hash)))]));
    sign_event(&mut event, version, key);
    (event_id(&event, version), event)
}

/// Adds a signature to those an event has.
pub fn sign_event(event: &mut Tree, version: u8, key: &Key) {
    let signature = Tree::text(&key.sign(&redacted(event, version).canonical()));
    let mut all = event.get("signatures").cloned().filter(|all| matches!(all, Tree::Map(_))).unwrap_or(Tree::map([]));
    all.set(&key.server, Tree::Map(vec![(super::odd::quoted(&key.id), signature)]));
    event.set("signatures", all);
}

pub fn event_id(event: &Tree, version: u8) -> String {
    let hash = Sha256::digest(redacted(event, version).canonical());
    match version {
        3 => format!("${}", STANDARD_NO_PAD.encode(hash)),
        _ => format!("${}", URL_SAFE_NO_PAD.encode(hash)),
    }
}

/// What is hashed for an event's id and signed: the redacted form without signatures (room versions 3 and later).
fn redacted(event: &Tree, version: u8) -> Tree {
    let mut keep = vec![
        "auth_events",
        "content",
        "depth",
        "hashes",
        "origin_server_ts",
        "prev_events",
        "room_id",
        "sender",
        "state_key",
        "type",
    ];
    if version < 11 {
        keep.extend(["membership", "origin", "prev_state"]);
    }
    let kind = event.get("type").and_then(plain_text).unwrap_or_default();
    let mut bare = only(event, &keep);
    let content = event.get("content").cloned().unwrap_or(Tree::map([]));
    bare.set("content", redacted_content(&kind, &content, version));
    bare
}

/// Puts a signature where `SIGN` stands, over the object that holds it.
pub fn sign_marks(tree: &mut Tree, key: &Key) {
    let signature = key.sign(&tree.without(&["signatures", "unsigned"]).canonical());
    match tree {
        Tree::Raw(_) => {}
        Tree::List(list) => list.iter_mut().for_each(|item| sign_marks(item, key)),
        Tree::Map(pairs) => {
            for (name, value) in pairs {
                match name.as_slice() {
                    b"\"signatures\"" => replace_marks(value, &signature),
                    _ => sign_marks(value, key),
                }
            }
        }
    }
}

fn replace_marks(tree: &mut Tree, signature: &str) {
    match tree {
        Tree::Raw(raw) if raw == b"\"SIGN\"" => *raw = super::odd::quoted(signature),
        Tree::Raw(_) => {}
        Tree::List(list) => list.iter_mut().for_each(|item| replace_marks(item, signature)),
        Tree::Map(pairs) => pairs.iter_mut().for_each(|(_, value)| replace_marks(value, signature)),
    }
}

fn redacted_content(kind: &str, content: &Tree, version: u8) -> Tree {
    let mut keep: Vec<&str> = match kind {
        "m.room.create" if version >= 11 => return content.clone(),
        "m.room.create" => vec!["creator"],
        "m.room.member" => vec!["membership"],
        "m.room.join_rules" => vec!["join_rule"],
        "m.room.power_levels" => {
            vec!["ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default"]
        }
        "m.room.history_visibility" => vec!["history_visibility"],
        _ => Vec::new(),
    };
    match kind {
        "m.room.join_rules" if version >= 8 => keep.push("allow"),
        "m.room.member" if version >= 9 => keep.push("join_authorised_via_users_server"),
        "m.room.power_levels" if version >= 11 => keep.push("invite"),
        "m.room.redaction" if version >= 11 => keep.push("redacts"),
        "m.room.aliases" if version < 6 => keep.push("aliases"),
        _ => {}
    }
    let mut bare = only(content, &keep);
    let invited = content.get("third_party_invite").and_then(|invite| invite.get("signed"));
    if let Some(signed) = invited.filter(|_| version >= 11 && kind == "m.room.member") {
        bare.set("third_party_invite", Tree::map([("signed", signed.clone())]));
    }
    bare
}

fn only(tree: &Tree, keys: &[&str]) -> Tree {
    let mut kept = Tree::map([]);
    for key in keys {
        if let Some(value) = tree.get(key) {
            kept.set(key, value.clone());
        }
    }
    kept
}

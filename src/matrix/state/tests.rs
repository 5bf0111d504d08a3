//! The vectors, and random rooms resolved by us and by ruma.

pub(crate) use super::conflict::StateMap;
use super::conflict::{chain, resolve_states, split, subgraph};
use super::*;
use crate::matrix::tests::ruma::{self as oracle, Pdu};
use crate::matrix::tests::{Rng, list, str, vectors};
use crate::matrix::{auth, version};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// A room's events in memory; ids are places in the list.
#[derive(Default)]
pub(crate) struct Room {
    pub events: Vec<Arc<Event>>,
    auth: Vec<Vec<u32>>,
    by_id: HashMap<OwnedEventId, u32>,
}

impl Room {
    fn add(&mut self, event: Arc<Event>) -> u32 {
        let at = self.events.len() as u32;
        self.auth.push(event.auth_events().map(|id| self.by_id[id]).collect());
        self.by_id.insert(event.id().to_owned(), at);
        self.events.push(event);
        at
    }
}

impl Source for Room {
    type Id = u32;
    type Error = Reject;

    fn event(&self, id: u32) -> Result<Option<Arc<Event>>, Reject> {
        Ok(self.events.get(id as usize).cloned())
    }
    fn auth_events(&self, id: u32, out: &mut Vec<u32>) -> Result<(), Reject> {
        out.extend(&self.auth[id as usize]);
        Ok(())
    }
    fn is_rejected(&self, _: u32) -> Result<bool, Reject> {
        Ok(false)
    }
    fn create(&self) -> Result<u32, Reject> {
        Ok(0)
    }
}

#[test]
fn vector_cases() {
    for case in list(&vectors()["state_resolution"], "cases") {
        let version = version::get(str(case, "room_version")).unwrap();
        let mut room = Room::default();
        let mut labels: HashMap<&str, u32> = HashMap::new();
        for e in list(case, "events") {
            let cited: Vec<Value> = list(e, "auth")
                .iter()
                .map(|l| room.events[labels[l.as_str().unwrap()] as usize].id().as_str().into())
                .collect();
            let mut value = json!({ "type": e["type"], "state_key": e["key"], "sender": e["sender"], "content": e["content"],
                "origin_server_ts": e["ts"], "auth_events": cited, "prev_events": ["$x", "$y"] });
            if !(version.room_id_is_create_hash() && e["type"] == "m.room.create") {
                value["room_id"] = case["room_id"].clone();
            }
            let at = room.add(oracle::event(version, str(e, "id"), &value));
            labels.insert(str(e, "l"), at);
        }
        let map = |value: &Value| -> StateMap<u32> {
            let entry = |(key, label): (&String, &Value)| {
                let (kind, key) = key.split_once('|').unwrap();
                ((kind.to_owned(), key.to_owned()), labels[label.as_str().unwrap()])
            };
            value.as_object().unwrap().iter().map(entry).collect()
        };
        let mut states: Vec<StateMap<u32>> = list(case, "state_sets").iter().map(map).collect();
        let expected = map(&case["resolved"]);
        for _ in 0..states.len() {
            assert_eq!(resolve_states(version, &room, &states).unwrap(), expected, "{}", case["name"]);
            states.rotate_left(1);
        }
    }
}

const USERS: [&str; 6] = ["@a:x.org", "@b:x.org", "@c:y.org", "@d:y.org", "@e:z.org", "@f:z.org"];

/// A random room: a trunk, then branches that do not know of each other, each event allowed on its own branch.
pub(crate) struct Grower {
    pub version: &'static RoomVersion,
    pub rng: Rng,
    pub room: Room,
    ts: u64,
}

impl Grower {
    pub fn new(seed: u64) -> Grower {
        let version = version::get(["2", "6", "9", "11", "12", "12"][seed as usize % 6]).unwrap();
        let mut grower = Grower { version, rng: Rng(seed), room: Room::default(), ts: 1000 };
        let mut create = json!({ "room_version": version.id, "creator": "@a:x.org" });
        if version.creators_infinite && grower.rng.chance(30) {
            create["additional_creators"] = json!(["@b:x.org"]);
        }
        grower.make(&StateMap::new(), "m.room.create", "", "@a:x.org", create).unwrap();
        grower
    }

    /// Makes an event citing the state, if the rules allow it there.
    fn make(&mut self, state: &StateMap<u32>, kind: &str, key: &str, sender: &str, content: Value) -> Option<u32> {
        let content_text = content.to_string();
        let canonical =
            crate::matrix::json::canonical(content_text.as_bytes(), crate::matrix::json::Mode::Lenient).unwrap();
        let sender_id = <&ruma::UserId>::try_from(sender).unwrap();
        let text = std::str::from_utf8(&canonical).unwrap();
        let types = auth::auth_types_for_event(self.version, kind, sender_id, Some(key), text).ok()?;
        let found = types.iter().filter_map(|(k, s)| state.get(&(k.to_string(), s.to_string())));
        let ids: Vec<String> = found.map(|at| self.room.events[*at as usize].id().to_string()).collect();
        let references = |ids: Vec<String>| -> Value {
            match self.version.event_id_in_event() {
                true => ids.into_iter().map(|id| json!([id, {}])).collect(),
                false => ids.into_iter().map(Value::from).collect(),
            }
        };
        // Times are sometimes wrong, and often the same.
        let ts = self.ts + [0, 0, 5, 10, 100][self.rng.below(5)];
        self.ts += self.rng.below(2) as u64;
        let create = kind == "m.room.create";
        let first = self.room.events.len() == 1;
        let prev = match (create, first) {
            (true, _) => vec![],
            (_, true) => vec![self.room.events[0].id().to_string()],
            _ => vec!["$p:x".to_owned(), "$q:x".to_owned()],
        };
        let mut value = json!({ "type": kind, "state_key": key, "sender": sender, "content": content,
            "origin_server_ts": ts, "auth_events": references(ids), "prev_events": references(prev) });
        if !(create && self.version.room_id_is_create_hash()) {
            value["room_id"] = if self.version.room_id_is_create_hash() { "!create" } else { "!r:x.org" }.into();
        }
        let salt = self.rng.below(1000);
        let id = match (create, self.version.event_id_in_event()) {
            (true, false) => "$create".to_owned(),
            (_, pairs) => format!("${salt:03}-{}{}", self.room.events.len(), if pairs { ":x.org" } else { "" }),
        };
        let event = oracle::event(self.version, &id, &value);
        let lookup = auth::Lookup::new(self.version, |kind: &str, key: &str| {
            // The create event of version 12 is not cited but always there.
            let at = state.get(&(kind.to_owned(), key.to_owned()));
            Ok::<_, Reject>(at.map(|at| self.room.events[*at as usize].clone()))
        });
        auth::check(self.version, &event.subject(), &lookup).ok()?;
        Some(self.room.add(event))
    }

    pub fn step(&mut self, state: &mut StateMap<u32>) {
        let user = |rng: &mut Rng| USERS[rng.below(USERS.len())];
        let sender = if self.rng.chance(40) { "@a:x.org" } else { user(&mut self.rng) };
        let (kind, key, content) = match self.rng.below(12) {
            0..=3 => {
                ("m.room.member", sender, json!({ "membership": if self.rng.chance(75) { "join" } else { "leave" } }))
            }
            4 | 5 => {
                let membership = ["ban", "leave", "invite"][self.rng.below(3)];
                ("m.room.member", user(&mut self.rng), json!({ "membership": membership }))
            }
            6 | 7 => {
                let mut users = json!({});
                for user in USERS.iter().skip(self.version.creators_infinite as usize * 2) {
                    if self.rng.chance(50) {
                        users[*user] = [0, 50, 50, 100][self.rng.below(4)].into();
                    }
                }
                if !self.version.creators_infinite {
                    users["@a:x.org"] = 100.into();
                }
                ("m.room.power_levels", "", json!({ "users": users, "users_default": self.rng.below(2) * 50 }))
            }
            8 => {
                let rule = ["public", "public", "invite", "knock", "restricted"][self.rng.below(5)];
                ("m.room.join_rules", "", json!({ "join_rule": rule }))
            }
            9 => ("m.room.topic", "", json!({ "topic": self.rng.below(99) })),
            10 => ("m.room.name", "", json!({ "name": self.rng.below(99) })),
            _ => ("m.x", ["k", "l"][self.rng.below(2)], json!({ "n": self.rng.below(99) })),
        };
        if let Some(at) = self.make(state, kind, key, sender, content) {
            state.insert((kind.to_owned(), key.to_owned()), at);
        }
    }

    pub fn trunk(&mut self) -> StateMap<u32> {
        let mut state = StateMap::from([(("m.room.create".to_owned(), String::new()), 0)]);
        for (kind, key, content) in [
            ("m.room.member", "@a:x.org", json!({ "membership": "join" })),
            (
                "m.room.power_levels",
                "",
                json!({ "users": if self.version.creators_infinite { json!({}) } else { json!({ "@a:x.org": 100 }) } }),
            ),
            ("m.room.join_rules", "", json!({ "join_rule": "public" })),
        ] {
            let at = self.make(&state, kind, key, "@a:x.org", content).expect("the first events are allowed");
            state.insert((kind.to_owned(), key.to_owned()), at);
        }
        for _ in 0..self.rng.below(20) {
            self.step(&mut state);
        }
        state
    }
}

/// Ruma's result for the same states, by the definition.
pub(crate) fn ruma_resolves(
    version: &RoomVersion,
    room: &Room,
    states: &[StateMap<u32>],
) -> Result<StateMap<u32>, String> {
    use ruma::state_res::utils::event_id_set::EventIdSet;
    let rules = oracle::rules(version);
    let id = |at: &u32| room.events[*at as usize].id().to_owned();
    let theirs: Vec<ruma::state_res::StateMap<OwnedEventId>> = states
        .iter()
        .map(|s| s.iter().map(|((k, s), at)| ((k.as_str().into(), s.clone()), id(at))).collect())
        .collect();
    let chains: Vec<EventIdSet<OwnedEventId>> =
        states.iter().map(|s| chain(room, s.values().copied()).unwrap().iter().map(id).collect()).collect();
    let resolved = ruma::state_res::resolve(
        &rules.authorization,
        rules.state_res.v2_rules().unwrap(),
        &theirs,
        chains,
        |event_id| room.by_id.get(event_id).map(|at| Pdu::new(&room.events[*at as usize], false)),
        |conflicted| {
            let conflicted: BTreeSet<u32> = conflicted.values().flatten().map(|id| room.by_id[id]).collect();
            Some(subgraph(room, &conflicted).unwrap().iter().map(id).collect())
        },
    );
    let resolved = resolved.map_err(|e| e.to_string())?;
    Ok(resolved.into_iter().map(|((kind, key), id)| ((kind.to_string(), key), room.by_id[&id])).collect())
}

#[test]
fn random_rooms_resolve_as_ruma_resolves_them() {
    let mut conflicted = 0;
    for seed in 0..1500 {
        let mut grower = Grower::new(seed);
        let trunk = grower.trunk();
        let branches = 2 + grower.rng.below(3);
        let mut states = vec![trunk; branches];
        for round in 0..1 + grower.rng.below(2) {
            for state in &mut states {
                for _ in 0..grower.rng.below(12) {
                    grower.step(state);
                }
            }
            let version = grower.version;
            let ours = resolve_states(version, &grower.room, &states).unwrap();
            let theirs = ruma_resolves(version, &grower.room, &states).unwrap();
            let show = |map: &StateMap<u32>| format!("{map:?}");
            assert_eq!(
                ours,
                theirs,
                "seed {seed} version {version} round {round} {}",
                states.iter().map(show).collect::<Vec<_>>().join("\n")
            );
            let split = split(&states);
            conflicted += split.conflicted.len();
            // One branch has seen the others and goes on from there.
            states[0] = ours;
        }
    }
    assert!(conflicted > 5_000, "hardly anything was in conflict: {conflicted}");
}

//! Our judgement against ruma's, on random states and events of all versions; and the vectors on levels.

use super::*;
use crate::matrix::sign::Key;
use crate::matrix::tests::ruma::{self as oracle, Pdu};
use crate::matrix::tests::{Rng, list, str, vectors};
use crate::matrix::version;
use ruma::state_res::{check_state_dependent_auth_rules, check_state_independent_auth_rules};
use serde_json::{Value, json};
use std::collections::HashMap;

const USERS: [&str; 5] = ["@a:x.org", "@b:x.org", "@c:y.org", "@d:y.org", "@e:z.org"];

struct World {
    version: &'static RoomVersion,
    rng: Rng,
    state: HashMap<(String, String), Arc<Event>>,
    made: usize,
}

impl World {
    fn new(seed: u64) -> World {
        let mut world =
            World { version: &version::list()[(seed % 12) as usize], rng: Rng(seed), state: HashMap::new(), made: 0 };
        world.make_state();
        world
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.rng.below(of.len())]
    }

    fn user(&mut self) -> &'static str {
        self.one(&USERS)
    }

    fn room_id(&self) -> &'static str {
        if self.version.room_id_is_create_hash() { "!create" } else { "!r:x.org" }
    }

    fn event(&mut self, mut value: Value) -> Arc<Event> {
        self.made += 1;
        let create = value["type"] == "m.room.create";
        let server = self.one(&["x.org", "y.org"]);
        let id = match (create, self.version.event_id_in_event()) {
            (true, false) => "$create".to_owned(),
            (false, false) => format!("$e{}", self.made),
            (_, true) => format!("$e{}:{server}", self.made),
        };
        if !(create && self.version.room_id_is_create_hash()) {
            value["room_id"] = self.room_id().into();
        }
        value["origin_server_ts"] = 1.into();
        oracle::event(self.version, &id, &value)
    }

    fn put(&mut self, kind: &str, key: &str, sender: &str, content: Value) {
        let event = json!({ "type": kind, "state_key": key, "sender": sender, "content": content });
        let event = self.event(event);
        self.state.insert((kind.into(), key.into()), event);
    }

    fn make_state(&mut self) {
        let mut create = json!({ "room_version": self.version.id });
        if !self.version.creator_is_sender || self.rng.chance(20) {
            create["creator"] = "@a:x.org".into();
        }
        if self.rng.chance(20) {
            create["m.federate"] = self.rng.chance(50).into();
        }
        if self.rng.chance(30) {
            create["additional_creators"] = json!([self.user()]);
        }
        if self.rng.chance(97) {
            self.put("m.room.create", "", "@a:x.org", create);
        }
        for user in USERS {
            if self.rng.chance(80) {
                let membership = self.one(&["join", "join", "join", "join", "invite", "leave", "ban", "knock"]);
                self.put("m.room.member", user, user, json!({ "membership": membership }));
            }
        }
        if self.rng.chance(80) {
            let (levels, by) = (self.levels(false), self.user());
            self.put("m.room.power_levels", "", by, levels);
        }
        if self.rng.chance(90) {
            let rules = ["public", "invite", "knock", "restricted", "knock_restricted", "private", "strange"];
            let rule = self.one(&rules);
            self.put("m.room.join_rules", "", "@a:x.org", json!({ "join_rule": rule }));
        }
        if self.rng.chance(60) {
            let (by, keys) = (self.user(), json!({ "public_key": identity().public().to_base64() }));
            let keys =
                if self.rng.chance(50) { json!({ "public_keys": [keys, { "public_key": "AA" }] }) } else { keys };
            self.put("m.room.third_party_invite", "token", by, keys);
        }
    }

    fn level(&mut self, odd: bool) -> Value {
        let level = [0, 1, 50, 50, 99, 100, 100, 101, -1][self.rng.below(9)];
        match self.rng.below(if odd { 12 } else { 40 }) {
            0 if !self.version.integer_levels => json!(format!(" +{} ", level.max(0))),
            1 if !self.version.integer_levels => json!(level.to_string()),
            2 if odd => json!(level.to_string()),
            3 if odd => json!(null),
            4 if odd => json!({}),
            _ => json!(level),
        }
    }

    /// A power levels content. `odd` allows values that the rules should refuse.
    fn levels(&mut self, odd: bool) -> Value {
        let mut levels = json!({});
        for key in ["users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"] {
            if self.rng.chance(30) {
                levels[key] = self.level(odd);
            }
        }
        for (list, keys) in [
            ("users", &USERS[..]),
            ("events", &["m.room.message", "m.room.power_levels", "m.room.topic", "m.room.redaction"]),
            ("notifications", &["room"]),
        ] {
            if self.rng.chance(80) {
                levels[list] = json!({});
                for key in keys {
                    if self.rng.chance(40) {
                        levels[list][*key] = self.level(odd);
                    }
                }
                if odd && self.rng.chance(4) {
                    levels[list] = self.one(&["no object"]).into();
                }
                if odd && self.rng.chance(4) && list == "users" && levels[list].is_object() {
                    levels[list]["nobody"] = 1.into();
                }
            }
        }
        levels
    }

    /// The levels as they stand with one thing changed, or new ones.
    fn changed_levels(&mut self) -> Value {
        let old = self.state.get(&("m.room.power_levels".into(), String::new())).cloned();
        let Some(old) = old.filter(|_| self.rng.chance(80)) else { return self.levels(true) };
        let mut levels: Value = serde_json::from_str(old.content()).unwrap();
        for _ in 0..1 + self.rng.below(2) {
            let (list, key) = match self.rng.below(4) {
                0 => ("users", self.user()),
                1 => ("events", self.one(&["m.room.message", "m.x"])),
                2 => ("notifications", "room"),
                _ => ("", self.one(&["ban", "kick", "invite", "redact", "users_default", "state_default"])),
            };
            let level = self.level(true);
            let place = if list.is_empty() { &mut levels } else { &mut levels[list] };
            if !place.is_object() {
                *place = json!({});
            }
            if self.rng.chance(20) { drop(place.as_object_mut().unwrap().remove(key)) } else { place[key] = level }
        }
        levels
    }

    fn member_content(&mut self, target: &str) -> Value {
        let membership = self.one(&["join", "join", "invite", "leave", "ban", "knock", "strange"]);
        let mut content = json!({ "membership": membership });
        if self.rng.chance(30) {
            content["join_authorised_via_users_server"] = self.user().into();
        }
        if self.rng.chance(30) {
            content["third_party_invite"] = self.third_party(target);
        }
        content
    }

    fn third_party(&mut self, target: &str) -> Value {
        let mut signed = json!({ "mxid": if self.rng.chance(90) { target } else { "@q:q" } });
        if self.rng.chance(95) {
            signed["token"] = self.one(&["token", "token", "token", "other"]).into();
        }
        let mut object = signed.as_object().unwrap().clone();
        crate::matrix::sign::sign_json(&mut object, <&ruma::ServerName>::try_from("id.org").unwrap(), &identity())
            .unwrap();
        if self.rng.chance(20) {
            object["signatures"]["id.org"] = json!({ "ed25519:0": "AAAA" });
        }
        if self.rng.chance(90) {
            json!({ "display_name": "d", "signed": object })
        } else {
            json!({ "signed": object, "x": 1 })
        }
    }

    fn candidate(&mut self) -> Arc<Event> {
        let sender = self.user();
        let create = self.state.get(&("m.room.create".into(), String::new())).map(|e| e.id().to_string());
        let create = create.unwrap_or("$none".into());
        let mut event = match self.rng.below(10) {
            0..=4 => {
                let target = if self.rng.chance(50) { sender } else { self.user() };
                let content = self.member_content(target);
                json!({ "type": "m.room.member", "state_key": target, "content": content })
            }
            5 | 6 => json!({ "type": "m.room.power_levels", "state_key": "", "content": self.changed_levels() }),
            7 => {
                json!({ "type": "m.room.redaction", "redacts": self.one(&["$x:x.org", "$x:y.org", "$x"]), "content": {} })
            }
            8 => {
                let kind = self.one(&["m.room.aliases", "m.room.topic", "m.room.third_party_invite", "m.x"]);
                let key = self.one(&["", "x.org", "@a:x.org", "@b:x.org", "token"]);
                json!({ "type": kind, "state_key": key, "content": {} })
            }
            _ => json!({ "type": self.one(&["m.room.message", "m.x"]), "content": {} }),
        };
        event["sender"] = sender.into();
        let prev = if self.rng.chance(20) { vec![create] } else { vec!["$p1".into(), "$p2".into()] };
        event["prev_events"] = self.references(prev);
        self.event(event)
    }

    fn references(&self, ids: Vec<String>) -> Value {
        match self.version.event_id_in_event() {
            true => ids.into_iter().map(|id| json!([id, {}])).collect(),
            false => ids.into_iter().map(Value::from).collect(),
        }
    }
}

fn identity() -> Key {
    Key::from_seed("0", [9; 32])
}

#[test]
fn judgements_are_ruma_s() {
    let (mut allowed, mut refused) = (0, 0);
    for seed in 0..20_000 {
        let mut world = World::new(seed);
        let event = world.candidate();
        let rules = oracle::rules(world.version).authorization;
        let state = Lookup::new(world.version, |kind: &str, key: &str| {
            Ok::<_, Reject>(world.state.get(&(kind.to_owned(), key.to_owned())).cloned())
        });
        let ours = check(world.version, &event.subject(), &state);
        let theirs = check_state_dependent_auth_rules(&rules, Pdu::new(&event, false), |kind, key| {
            world.state.get(&(kind.to_string(), key.to_owned())).map(|e| Pdu::new(e, false))
        });
        let story = || format!("version {} {event:?} {} in {:#?}", world.version, event.content(), world.state);
        assert_eq!(ours.is_ok(), theirs.is_ok(), "ours {ours:?} theirs {theirs:?}\n{}", story());
        *(if ours.is_ok() { &mut allowed } else { &mut refused }) += 1;
    }
    assert!(allowed > 2_000 && refused > 2_000, "the cases are lopsided: {allowed} allowed, {refused} refused");
}

#[test]
fn cited_events_are_judged_as_ruma_judges_them() {
    let mut allowed = 0;
    for seed in 0..20_000 {
        let mut world = World::new(seed);
        let event = world.candidate();
        let types =
            auth_types_for_event(world.version, event.kind(), event.sender(), event.state_key(), event.content());
        let mut cited: Vec<Arc<Event>> = types
            .unwrap_or_default()
            .iter()
            .filter_map(|(kind, key)| world.state.get(&(kind.to_string(), key.to_string())).cloned())
            .collect();
        let all: Vec<_> = world.state.values().cloned().collect();
        match world.rng.below(8) {
            0 if !all.is_empty() => cited.push(all[world.rng.below(all.len())].clone()),
            1 => drop(cited.pop()),
            2 if !cited.is_empty() => cited.push(cited[0].clone()),
            _ => {}
        }
        let reject = world.rng.chance(10).then(|| world.rng.below(6));
        let mut value: Value = serde_json::from_slice(event.to_federation()).unwrap();
        value["auth_events"] = world.references(cited.iter().map(|e| e.id().to_string()).collect());
        let event = oracle::event(world.version, event.id().as_str(), &value);
        let create = world.state.get(&("m.room.create".into(), String::new()));
        let rejected = |id: &EventId| reject.is_some_and(|n| cited.get(n).is_some_and(|e| e.id() == id));
        let entries = cited.iter().map(|e| Cited {
            kind: e.kind(),
            state_key: e.state_key(),
            same_room: e.get("room_id").is_some(), // ruma puts the create event of version 12 in no room
            rejected: rejected(e.id()),
        });
        let ours =
            check_auth_events(world.version, &event.subject(), entries, create.is_some_and(|c| !rejected(c.id())));
        let rules = oracle::rules(world.version).authorization;
        let theirs = check_state_independent_auth_rules(&rules, Pdu::new(&event, false), |id| {
            let found = cited.iter().chain(create).find(|e| e.id() == id);
            found.map(|e| Pdu::new(e, rejected(id)))
        });
        assert_eq!(ours.is_ok(), theirs.is_ok(), "ours {ours:?} theirs {theirs:?} {event:?} cites {cited:?}");
        allowed += ours.is_ok() as usize;
    }
    assert!(allowed > 5_000, "{allowed}");
}

#[test]
fn create_events_are_judged_as_ruma_judges_them() {
    for version in version::list() {
        for content in [
            json!({}),
            json!({ "creator": "@a:x.org" }),
            json!({ "creator": null }),
            json!({ "room_version": "11" }),
            json!({ "creator": "x", "additional_creators": ["@b:x.org"] }),
            json!({ "additional_creators": ["b"] }),
            json!({ "additional_creators": "b" }),
            json!({ "additional_creators": [] }),
        ] {
            for (room, prev) in [
                (Some("!r:x.org"), false),
                (Some("!r:y.org"), false),
                (Some("!r"), false),
                (Some("!r:x.org"), true),
                (None, false),
            ] {
                if room.is_none() && !version.room_id_is_create_hash() {
                    continue; // has no shape of an event before version 12
                }
                let mut value =
                    json!({ "type": "m.room.create", "state_key": "", "sender": "@a:x.org", "content": content });
                if let Some(room) = room {
                    value["room_id"] = room.into();
                }
                if prev {
                    value["prev_events"] =
                        if version.event_id_in_event() { json!([["$p:x", {}]]) } else { json!(["$p"]) };
                }
                let event = oracle::event(version, "$create:x.org", &value);
                let ours = Lookup::new(version, |_: &str, _: &str| Ok::<_, Reject>(None));
                let ours = check(version, &event.subject(), &ours);
                let rules = oracle::rules(version).authorization;
                let theirs = check_state_independent_auth_rules(&rules, Pdu::new(&event, false), |_| None::<Pdu>);
                assert_eq!(ours.is_ok(), theirs.is_ok(), "{version} {content} {room:?} {ours:?} {theirs:?}");
            }
        }
    }
    let value =
        json!({ "type": "m.room.create", "state_key": "", "sender": "@a:x.org", "content": { "room_version": "99" } });
    let version = version::get("12").unwrap();
    let state = Lookup::new(version, |_: &str, _: &str| Ok::<_, Reject>(None));
    assert!(check(version, &oracle::event(version, "$create", &value).subject(), &state).is_err());
}

#[test]
fn levels_as_the_specification_lists_them() {
    let vectors = &vectors()["power_level_values"];
    let parse = |version: &str, value: &str| {
        let content = json::canonical(format!("{{\"ban\":{value}}}").as_bytes(), json::Mode::Lenient).unwrap();
        PowerLevels::parse(version::get(version).unwrap(), std::str::from_utf8(&content).unwrap())
            .map(|l| l.named(Named::Ban))
    };
    for case in list(vectors, "room_versions_1_to_9") {
        for version in ["1", "9"] {
            assert_eq!(parse(version, str(case, "in")).unwrap(), case["int"].as_i64().unwrap(), "{case}");
        }
        assert!(parse("10", str(case, "in")).is_err());
    }
    for case in list(vectors, "floats_only_room_versions_1_to_5") {
        assert_eq!(parse("5", str(case, "in")).unwrap(), case["int"].as_i64().unwrap(), "{case}");
    }
}

/// Version 12: no user can lower, remove or ban a creator, and a creator can do anything.
#[test]
fn creators_stand_above_every_level() {
    let version = version::get("12").unwrap();
    let create = Create {
        id: "$c".try_into().unwrap(),
        sender: "@a:x".try_into().unwrap(),
        federate: true,
        creators: vec!["@a:x".try_into().unwrap(), "@b:x".try_into().unwrap()],
    };
    let levels = PowerLevels::parse(version, r#"{"users":{"@c:x":9007199254740991},"users_default":100}"#).unwrap();
    let powers = Powers::new(version, &create, Some(&levels));
    let user = |id: &str| powers.user(<&UserId>::try_from(id).unwrap());
    assert_eq!((user("@a:x"), user("@b:x")), (INFINITE, INFINITE));
    assert!(user("@c:x") < INFINITE && user("@d:x") == 100);
}

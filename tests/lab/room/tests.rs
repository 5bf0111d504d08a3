//! The generator judged by ruma: every event verifies, is allowed, and names the auth events the rules ask for.

use super::super::event::event_id;
use super::super::render::in_memory;
use super::*;
use ruma::canonical_json::CanonicalJsonObject;
use ruma::events::{StateEventType, TimelineEventType};
use ruma::serde::Base64;
use ruma::signatures::{PublicKeyMap, Verified, reference_hash, verify_event};
use ruma::state_res;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, RoomVersionId, UserId,
    room_version_rules::RoomVersionRules,
};
use serde_json::value::RawValue;
use std::collections::HashSet;
use std::sync::Arc;

/// As much of an event as the rules read.
#[derive(serde::Deserialize)]
struct Pdu {
    #[serde(skip, default = "no_id")]
    event_id: OwnedEventId,
    room_id: Option<OwnedRoomId>,
    sender: OwnedUserId,
    origin_server_ts: MilliSecondsSinceUnixEpoch,
    #[serde(rename = "type")]
    kind: TimelineEventType,
    content: Box<RawValue>,
    state_key: Option<String>,
    prev_events: Vec<OwnedEventId>,
    auth_events: Vec<OwnedEventId>,
}

fn no_id() -> OwnedEventId {
    "$none".try_into().expect("an id")
}

impl state_res::Event for Pdu {
    type Id = OwnedEventId;

    fn event_id(&self) -> &OwnedEventId {
        &self.event_id
    }
    fn room_id(&self) -> Option<&RoomId> {
        self.room_id.as_deref()
    }
    fn sender(&self) -> &UserId {
        &self.sender
    }
    fn origin_server_ts(&self) -> MilliSecondsSinceUnixEpoch {
        self.origin_server_ts
    }
    fn event_type(&self) -> &TimelineEventType {
        &self.kind
    }
    fn content(&self) -> &RawValue {
        &self.content
    }
    fn state_key(&self) -> Option<&str> {
        self.state_key.as_deref()
    }
    fn prev_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.prev_events.iter())
    }
    fn auth_events(&self) -> Box<dyn DoubleEndedIterator<Item = &OwnedEventId> + '_> {
        Box::new(self.auth_events.iter())
    }
    fn redacts(&self) -> Option<&OwnedEventId> {
        None
    }
    fn rejected(&self) -> bool {
        false
    }
}

fn rules(version: Version) -> RoomVersionRules {
    RoomVersionId::try_from(version.name()).expect("a version").rules().expect("rules")
}

fn public_keys(world: &World) -> PublicKeyMap {
    let mut keys = PublicKeyMap::new();
    for server in &world.servers {
        let set = keys.entry(server.name.clone()).or_default();
        for key in [Some(&server.key), server.old.as_ref().map(|(key, _)| key)].into_iter().flatten() {
            set.insert(key.id.clone(), Base64::parse(key.public()).expect("base64"));
        }
    }
    keys
}

/// Follows the room event by event, with the state before each.
struct Judge {
    rules: RoomVersionRules,
    keys: PublicKeyMap,
    events: HashMap<OwnedEventId, Arc<Pdu>>,
    state: HashMap<(StateEventType, String), Arc<Pdu>>,
}

impl Judge {
    fn check(&mut self, id: &str, bytes: &[u8]) -> Result<(), String> {
        let object: CanonicalJsonObject = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let verified = verify_event(&self.keys, &object, &self.rules).map_err(|e| format!("signature: {e}"))?;
        if verified != Verified::All {
            return Err("content hash".to_owned());
        }
        if format!("${}", reference_hash(&object, &self.rules).map_err(|e| e.to_string())?) != id {
            return Err("event id".to_owned());
        }
        state_res::check_pdu_format(&object, &self.rules.event_format).map_err(|e| format!("format: {e}"))?;
        let mut pdu: Pdu = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        pdu.event_id = id.try_into().expect("an id");
        self.check_auth(&pdu)?;
        let pdu = Arc::new(pdu);
        self.events.insert(pdu.event_id.clone(), pdu.clone());
        if let Some(state_key) = &pdu.state_key {
            self.state.insert((pdu.kind.to_string().into(), state_key.clone()), pdu.clone());
        }
        Ok(())
    }

    fn check_auth(&self, pdu: &Pdu) -> Result<(), String> {
        let by_id = |id: &ruma::EventId| self.events.get(id).cloned();
        let auth = &self.rules.authorization;
        state_res::check_state_independent_auth_rules(auth, pdu, by_id).map_err(|e| format!("auth events: {e}"))?;
        let before = |kind: &StateEventType, key: &str| self.state.get(&(kind.clone(), key.to_owned())).cloned();
        state_res::check_state_dependent_auth_rules(auth, pdu, before).map_err(|e| format!("state before: {e}"))?;
        let wanted =
            state_res::auth_types_for_event(&pdu.kind, &pdu.sender, pdu.state_key.as_deref(), &pdu.content, auth)?;
        let wanted: HashSet<_> =
            wanted.into_iter().filter_map(|key| self.state.get(&key).map(|e| e.event_id.clone())).collect();
        let named: HashSet<_> = pdu.auth_events.iter().cloned().collect();
        if wanted != named || named.len() != pdu.auth_events.len() {
            return Err(format!("names {named:?} instead of {wanted:?}"));
        }
        if pdu.prev_events.iter().any(|id| !self.events.contains_key(id)) {
            return Err("follows an event that is not there".to_owned());
        }
        Ok(())
    }
}

fn judge(dials: &Dials) -> (Room, Vec<(u32, String)>) {
    let (room, events, _) = in_memory(dials);
    let version = dials.version();
    let mut judge =
        Judge { rules: rules(version), keys: public_keys(&room.world), events: HashMap::new(), state: HashMap::new() };
    let mut refused = Vec::new();
    for (row, bytes) in events.iter().enumerate() {
        if let Err(why) = judge.check(&event_id(&room.rows[row].id), bytes) {
            refused.push((row as u32, why));
        }
    }
    for &row in &room.state() {
        let accepted = refused.iter().all(|(bad, _)| *bad != row);
        let current = judge.state.values().any(|pdu| pdu.event_id.as_str() == event_id(&room.rows[row as usize].id));
        assert!(current || !accepted, "row {row} is in the state and was accepted, but is not current");
    }
    (room, refused)
}

#[test]
fn ruma_accepts_every_event() {
    for version in [Version::V10, Version::V11, Version::V12] {
        let (room, refused) = judge(&Dials::xs().with_version(version));
        assert_eq!(refused, [], "version {version:?}");
        assert!((250..450).contains(&room.rows.len()), "{} events", room.rows.len());
    }
}

#[test]
fn ruma_refuses_the_faults_and_nothing_else() {
    let dials = Dials::xs().with_faults(2);
    let (room, refused) = judge(&dials);
    // Being named by a withheld event is no fault for a judge who has seen it.
    let expected: HashSet<&str> = room
        .faults
        .iter()
        .filter(|fault| fault.kind != "auth event missing")
        .map(|fault| fault.event_id.as_str())
        .collect();
    let refused: HashMap<String, String> =
        refused.into_iter().map(|(row, why)| (event_id(&room.rows[row as usize].id), why)).collect();
    assert_eq!(refused.keys().map(String::as_str).collect::<HashSet<_>>(), expected, "{refused:?}");
    assert_eq!(room.rows.iter().filter(|row| row.withheld).count(), 2);
}

#[test]
fn the_room_is_as_varied_as_it_says() {
    let (room, events, _) = in_memory(&Dials { joined: 1500, gone: 700, servers: 400, ..Dials::xs() });
    let counts = census(&room);
    for kind in ["create", "power", "joinrules", "otherstate", "join", "leave", "ban", "invite", "knock"] {
        assert!(counts.contains_key(kind), "no {kind} in {counts:?}");
    }
    let forks = events
        .iter()
        .filter(|bytes| serde_json::from_slice::<Pdu>(bytes).expect("an event").prev_events.len() == 2)
        .count();
    let share = forks as f64 / events.len() as f64;
    assert!((0.10..0.20).contains(&share), "{share} of the events follow two");
    assert!(room.world.servers.iter().any(|server| server.reach == Reach::NotaryOnly));
    assert!(room.world.servers.iter().any(|server| server.old.is_some()));
    let at_home = (0..2000).filter(|&user| room.home(user) == 0).count();
    assert!((800..1000).contains(&at_home), "{at_home} of 2000 users are on the first server");
    assert!(events.iter().any(|bytes| bytes.len() > 58_000));
    assert!(events.iter().all(|bytes| bytes.len() < 65_536));
}

#[test]
fn depth_is_a_dial() {
    let (room, ..) = in_memory(&Dials { serial_changes: 300, ..Dials::xs() });
    assert!(room.auth_depth() > 300, "depth {}", room.auth_depth());
}

/// Another digest means other rooms, and figures that cannot be compared: raise `FORMAT` in `render.rs` and say so in the commit.
#[test]
fn the_same_seed_gives_the_same_room() {
    let digests =
        [Version::V10, Version::V11, Version::V12].map(|version| in_memory(&Dials::xs().with_version(version)).2);
    assert_eq!(
        digests,
        [
            "87a87d6c90a2da153a6a44d9babdb6a004f8740f2fd45f9b6660e77e20208805",
            "ecf3b0600e50e4dc4ff0ff83db12fe0ce277e8b5fdc46b2fb2441fbcb1621df9",
            "7603dbc672fa9416ada4376a6e76cbbbcc6a058570e20fdc47265fa01e40a51e",
        ]
    );
}

#[test]
fn a_rendered_room_is_read_back() {
    let cache = std::env::temp_dir().join(format!("snug-load-test-{}", std::process::id()));
    let made = super::super::render::Rendered::get(&cache, &Dials::xs()).expect("rendered");
    let again = super::super::render::Rendered::get(&cache, &Dials::xs()).expect("read back");
    let (room, events, digest) = in_memory(&Dials::xs());
    assert_eq!([&made.digest, &again.digest], [&digest, &digest]);
    let last = room.rows.len() as u32 - 1;
    assert_eq!(again.event(last).expect("an event"), events[last as usize]);
    assert_eq!(again.room.state(), room.state());
    assert_eq!(again.joined_expected(), room.rows.iter().filter(|row| row.in_state && row.kind == Kind::Join).count());
    std::fs::remove_dir_all(cache).expect("cleaned up");
}

//! The resident as a joining server sees it, judged by ruma where it can be.

use super::super::push::Scanner;
use super::super::room;
use super::super::wire::{Client, percent_encode};
use super::*;
use ruma::signatures::{PublicKeyMap, verify_json};
use std::collections::HashSet;

fn start(dials: super::Dials) -> (Resident, Client, std::path::PathBuf) {
    use std::sync::atomic::AtomicU64;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let folder =
        std::env::temp_dir().join(format!("snug-resident-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed)));
    let certificates = Certificates::get(&folder).expect("certificates");
    let tls = Some(certificates.client_config().expect("a client's settings"));
    let room = Rendered::get(&folder, &room::Dials::xs()).expect("a room");
    let resident = Resident::start("127.0.0.1:0", certificates, vec![room], dials).expect("a resident");
    let client = Client::new(Target { address: resident.address, host: RESIDENT.to_owned(), tls });
    (resident, client, folder)
}

/// A joining server that is nobody else's.
fn joiner() -> Key {
    Key::new("joiner.load.test", "1", [7; 32])
}

/// `make_join`, and the event it leads to.
fn prepare(resident: &Resident, client: &mut Client) -> (String, Value) {
    let live = resident.shared.rooms.values().next().expect("a room");
    let path = format!(
        "/_matrix/federation/v1/make_join/{}/{}?ver=10&ver=11",
        percent_encode(live.room_id()),
        "%40a:joiner.load.test"
    );
    let template = client.call("GET", &path, &[], None).expect("an answer").good("make_join").expect("a template");
    assert_eq!(template["room_version"], "11");
    let hashes = |field: &str| {
        let ids = template["event"][field].as_array().expect("a list").iter();
        ids.map(|id| hash_of_id(id.as_str().expect("an id")).expect("a hash")).collect::<Vec<_>>()
    };
    let user = "@a:joiner.load.test";
    let draft = Draft {
        kind: "m.room.member".into(),
        state_key: Some(user.to_owned()),
        sender: user.to_owned(),
        room_id: Some(live.room_id().to_owned()),
        content: member_content("a"),
        origin_server_ts: now_ms(),
        depth: template["event"]["depth"].as_u64().expect("a depth"),
        prev_events: hashes("prev_events"),
        auth_events: hashes("auth_events"),
    };
    let sealed = draft.seal(live.version());
    let event = serde_json::from_slice(&sealed.canonical(sealed.signatures(&[&joiner()]))).expect("JSON");
    (
        format!(
            "/_matrix/federation/v2/send_join/{}/{}",
            percent_encode(live.room_id()),
            percent_encode(&event_id(&sealed.id))
        ),
        event,
    )
}

/// Joins and collects the ids of state and auth chain.
fn join(resident: &Resident, client: &mut Client, query: &str) -> io::Result<(HashSet<Hash>, HashSet<Hash>)> {
    let (path, event) = prepare(resident, client);
    let (mut state, mut chain) = (HashSet::new(), HashSet::new());
    let mut seen = |list: &str, bytes: &[u8]| {
        let event = serde_json::from_slice(bytes).expect("an event");
        let opened = open(&event, Version::V11).expect("an event");
        assert!(opened.hash_matches);
        if list == "state" { &mut state } else { &mut chain }.insert(opened.id);
    };
    let mut scanner = Scanner::new(&mut seen);
    let body = event.to_string().into_bytes();
    let (status, _) =
        client.stream("PUT", &format!("{path}{query}"), &[], Some(&body), &mut |piece| scanner.take(piece))?;
    assert_eq!((status, scanner.is_complete()), (200, true));
    Ok((state, chain))
}

fn ids(live: &Live, wanted: impl Fn(&room::Row) -> bool) -> HashSet<Hash> {
    live.rendered.room.rows.iter().filter(|row| wanted(row)).map(|row| row.id).collect()
}

#[test]
fn a_join_gets_the_whole_state_and_its_chain() {
    let (resident, mut client, folder) = start(super::Dials::default());
    let (state, chain) = join(&resident, &mut client, "").expect("joined");
    let live = resident.shared.rooms.values().next().expect("a room");
    assert_eq!(state, ids(live, |row| row.in_state));
    let all: HashSet<Hash> = chain.union(&state).copied().collect();
    assert_eq!(all, ids(live, |row| row.in_state || row.in_chain));
    assert!(!chain.is_disjoint(&state), "some events come twice");
    std::fs::remove_dir_all(folder).expect("cleaned up");
}

#[test]
fn members_are_left_out_when_asked_and_state_has_them() {
    let (resident, mut client, folder) = start(super::Dials { omit_members: true, ..super::Dials::default() });
    let (state, chain) = join(&resident, &mut client, "?omit_members=true").expect("joined");
    let live = resident.shared.rooms.values().next().expect("a room");
    assert_eq!(state, ids(live, |row| row.in_state && !row.kind.is_member()));
    let partial: Vec<u32> = live
        .rendered
        .room
        .state()
        .into_iter()
        .filter(|&row| !live.rendered.room.rows[row as usize].kind.is_member())
        .collect();
    assert!(!partial.is_empty() && !chain.is_empty());
    let last = event_id(lock(&live.tail).extremities.last().expect("the join"));
    let path = format!(
        "/_matrix/federation/v1/state_ids/{}?event_id={}",
        percent_encode(live.room_id()),
        percent_encode(&last)
    );
    let answer = client.call("GET", &path, &[], None).expect("an answer").good("state_ids").expect("ids");
    assert_eq!(answer["pdu_ids"].as_array().expect("a list").len(), live.rendered.room.state().len());
    std::fs::remove_dir_all(folder).expect("cleaned up");
}

#[test]
fn a_cut_body_ends_early_and_only_as_often_as_told() {
    let (resident, mut client, folder) =
        start(super::Dials { cut_at_percent: Some(50), cuts: 1, ..super::Dials::default() });
    let (path, event) = prepare(&resident, &mut client);
    let mut fresh = Client::new(lock(&resident.shared.peer).clone().unwrap_or_else(|| {
        Target {
            address: resident.address,
            host: RESIDENT.to_owned(),
            tls: Some(
                Certificates::get(&folder)
                    .and_then(|certificates| certificates.client_config())
                    .expect("a client's settings"),
            ),
        }
    }));
    assert!(fresh.call("PUT", &path, &[], Some(&event)).is_err());
    assert!(join(&resident, &mut client, "").is_ok());
    std::fs::remove_dir_all(folder).expect("cleaned up");
}

#[test]
fn a_forged_event_is_refused() {
    let (resident, mut client, folder) = start(super::Dials::default());
    let (path, mut event) = prepare(&resident, &mut client);
    event["content"]["displayname"] = "someone else".into();
    assert_eq!(client.call("PUT", &path, &[], Some(&event)).expect("an answer").status, 400);
    assert_eq!(lock(&resident.shared.stats.complaints).len(), 1);
    std::fs::remove_dir_all(folder).expect("cleaned up");
}

#[test]
fn keys_are_signed_by_their_server_and_by_the_notary() {
    let (resident, mut client, folder) = start(super::Dials::default());
    let names: Vec<&str> = resident.shared.world.servers.iter().map(|server| server.name.as_str()).collect();
    let asked: serde_json::Map<String, Value> = names.iter().map(|name| ((*name).to_owned(), json!({}))).collect();
    let answer =
        client.call("POST", "/_matrix/key/v2/query", &[], Some(&json!({"server_keys": asked}))).expect("an answer");
    let answer = answer.good("the notary").expect("keys");
    let list = answer["server_keys"].as_array().expect("a list");
    assert_eq!(list.len(), names.len());
    let mut keys = PublicKeyMap::new();
    for server in &resident.shared.world.servers {
        let public = ruma::serde::Base64::parse(server.key.public()).expect("base64");
        keys.entry(server.name.clone()).or_default().insert(server.key.id.clone(), public);
    }
    for answer in list {
        assert!(answer["signatures"][RESIDENT].is_object());
        let object = serde_json::from_value(answer.clone()).expect("canonical");
        verify_json(&keys, &object).expect("signed by its server and the notary");
    }
    std::fs::remove_dir_all(folder).expect("cleaned up");
}

#[test]
fn single_events_and_the_past_are_given_out() {
    let (resident, mut client, folder) = start(super::Dials::default());
    let live = resident.shared.rooms.values().next().expect("a room");
    let rows = &live.rendered.room.rows;
    let newest = percent_encode(&event_id(&rows.last().expect("rows").id));
    let one = client.call("GET", &format!("/_matrix/federation/v1/event/{newest}"), &[], None).expect("an answer");
    assert_eq!(one.json()["pdus"].as_array().expect("a list").len(), 1);
    let path = format!("/_matrix/federation/v1/backfill/{}?v={newest}&limit=15", percent_encode(live.room_id()));
    let past = client.call("GET", &path, &[], None).expect("an answer").json();
    let found: Vec<Hash> = past["pdus"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|event| open(event, Version::V11).expect("an event").id)
        .collect();
    assert_eq!(found, rows.iter().rev().take(15).map(|row| row.id).collect::<Vec<_>>());
    std::fs::remove_dir_all(folder).expect("cleaned up");
}

//! What people do in rooms, and what they are then shown.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::server::{TestServer, TestUser};

/// Percent-encodes a path segment.
pub fn q(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { (byte as char).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

pub async fn create(house: &TestServer, who: &TestUser, options: Value) -> String {
    house.post("/createRoom", who, options).await.ok()["room_id"].as_str().unwrap().to_owned()
}

pub async fn say(house: &TestServer, who: &TestUser, room: &str, text: &str) {
    let path = format!("/rooms/{}/send/m.room.message/{}", q(room), q(text));
    house.put(&path, who, json!({ "msgtype": "m.text", "body": text })).await.ok();
}

/// How long a test waits for what must come, on whatever machine beside whatever load.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Looks until `found` gives something; what travels between servers takes its time.
pub async fn eventually<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = found().await {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

pub async fn membership(house: &TestServer, who: &TestUser, room: &str, of: &TestUser) -> Option<String> {
    let reply = house.get(&format!("/rooms/{}/state/m.room.member/{}", q(room), q(&of.id)), who).await;
    (reply.status == 200).then(|| reply.json()["membership"].as_str().unwrap().to_owned())
}

pub async fn sees_membership(house: &TestServer, who: &TestUser, room: &str, of: &TestUser, wanted: &str) {
    eventually(&format!("{} sees {} as {wanted}", who.id, of.id), async || {
        membership(house, who, room, of).await.filter(|is| is == wanted)
    })
    .await;
}

pub async fn texts(house: &TestServer, who: &TestUser, room: &str) -> Vec<String> {
    let page = house.get(&format!("/rooms/{}/messages?dir=b&limit=100", q(room)), who).await.ok();
    let events = page["chunk"].as_array().unwrap().iter().rev();
    events.filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)).collect()
}

pub async fn sees_text(house: &TestServer, who: &TestUser, room: &str, text: &str) {
    eventually(&format!("{} sees {text:?}", who.id), async || {
        texts(house, who, room).await.contains(&text.to_owned()).then_some(())
    })
    .await;
}

pub async fn is_invited(house: &TestServer, who: &TestUser, room: &str) {
    eventually(&format!("{} is invited", who.id), async || {
        let answer = house.get("/sync", who).await.ok();
        let state = answer["rooms"]["invite"][room]["invite_state"]["events"].as_array()?.clone();
        let own = state.iter().any(|event| event["type"] == "m.room.member" && event["state_key"] == who.id.as_str());
        assert!(own, "the invite itself is shown: {state:?}");
        Some(())
    })
    .await;
}

pub async fn same_state(one: (&TestServer, &TestUser), other: (&TestServer, &TestUser), room: &str) {
    let ids = async |(house, who): (&TestServer, &TestUser)| {
        let state = house.get(&format!("/rooms/{}/state", q(room)), who).await.ok();
        let mut ids: Vec<String> =
            state.as_array().unwrap().iter().map(|event| event["event_id"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids
    };
    eventually("both hold the same state", async || (ids(one).await == ids(other).await).then_some(())).await;
}

/// A state event of a new room.
pub fn initial(kind: &str, content: Value) -> Value {
    json!({ "type": kind, "state_key": "", "content": content })
}

pub async fn set(house: &TestServer, who: &TestUser, room: &str, kind: &str, content: Value) {
    house.put(&format!("/rooms/{}/state/{kind}", q(room)), who, content).await.ok();
}

pub async fn state(house: &TestServer, who: &TestUser, room: &str, kind: &str) -> Value {
    house.get(&format!("/rooms/{}/state/{kind}", q(room)), who).await.ok()
}

pub async fn join(house: &TestServer, who: &TestUser, room: &str, via: &TestServer) -> crate::server::Reply {
    house.post(&format!("/join/{}?via={}", q(room), via.name()), who, json!({})).await
}

pub async fn leave(house: &TestServer, who: &TestUser, room: &str) {
    house.post(&format!("/rooms/{}/leave", q(room)), who, json!({})).await.ok();
}

pub async fn invite(house: &TestServer, who: &TestUser, room: &str, whom: &TestUser) {
    house.post(&format!("/rooms/{}/invite", q(room)), who, json!({ "user_id": whom.id })).await.ok();
}

/// Everything a person sees who scrolls back from the end to where there is no more: oldest first.
pub async fn scrolled(house: &TestServer, who: &TestUser, room: &str) -> Vec<Value> {
    let (mut events, mut from) = (Vec::new(), String::new());
    for _ in 0..200 {
        let page = house.get(&format!("/rooms/{}/messages?dir=b&limit=20{from}", q(room)), who).await.ok();
        events.extend(page["chunk"].as_array().unwrap().iter().cloned());
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => {
                events.reverse();
                return events;
            }
        }
    }
    panic!("scrolling back has no end");
}

pub fn bodies(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

pub fn no_doubles(events: &[Value]) {
    let mut ids: Vec<&str> = events.iter().map(|event| event["event_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    let all = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), all, "no event is shown twice");
}

pub fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|nth| format!("{nth:03}")).collect()
}

pub async fn say_all(house: &TestServer, who: &TestUser, room: &str, range: std::ops::Range<usize>) {
    for text in numbered(range) {
        say(house, who, room, &text).await;
    }
}

/// The entry of a room in one of the lists of a first sync.
pub async fn listed(house: &TestServer, who: &TestUser, list: &str, room: &str) -> Value {
    house.get("/sync", who).await.ok()["rooms"][list][room].clone()
}

/// Servers and apps that replace rooms by hand make the new room first and close the old one then: whoever did so lost what
/// was kept for the old room.
#[tokio::test]
async fn a_room_that_is_replaced_by_hand_goes_on_in_the_new_one() {
    let house = TestServer::start_with(|config| config.apps.room_version = Some("11")).await;
    let alice = house.register("alice").await;
    let versions = house.get("/capabilities", &alice).await.ok()["capabilities"]["m.room_versions"].clone();
    assert_eq!(versions["default"], "11");
    let create = async |content: Value| {
        let made = house.post("/createRoom", &alice, json!({ "creation_content": content })).await.ok();
        made["room_id"].as_str().unwrap().to_owned()
    };
    let old = create(json!({})).await;
    let created = house.get(&format!("/rooms/{}/state/m.room.create", q(&old)), &alice).await.ok();
    assert_eq!(created["room_version"], "11");
    let rule = |room: &str| format!("/pushrules/global/room/{}", q(room));
    house.put(&rule(&old), &alice, json!({ "actions": [] })).await.ok();
    let new = create(json!({ "predecessor": { "room_id": old } })).await;
    house.get(&rule(&new), &alice).await.refused(404, "M_NOT_FOUND");
    let tombstone = json!({ "body": "moved", "replacement_room": new });
    house.put(&format!("/rooms/{}/state/m.room.tombstone", q(&old)), &alice, tombstone).await.ok();
    house.get(&rule(&new), &alice).await.ok();
    // The direction of a page may be left out.
    let page = house.get(&format!("/rooms/{}/messages", q(&old)), &alice).await.ok();
    assert_eq!(page["chunk"][0]["type"], "m.room.create");
    house.stop().await;
}

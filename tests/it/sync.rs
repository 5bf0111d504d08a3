//! What an app sees: syncs, pages of history, state and members.

use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::random::Stream;
use crate::rooms::eventually;
use crate::server::{TestServer, TestUser};

/// A text as part of a path or a query.
fn escaped(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if keep(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") }).collect()
}

async fn room(house: &TestServer, who: &TestUser, more: Value) -> String {
    let mut body = json!({ "preset": "public_chat" });
    if let (Some(body), Some(more)) = (body.as_object_mut(), more.as_object()) {
        body.extend(more.clone());
    }
    house.post("/createRoom", who, body).await.ok()["room_id"].as_str().unwrap().to_owned()
}

async fn say(house: &TestServer, who: &TestUser, room: &str, text: &str) -> String {
    let path = format!("/rooms/{}/send/m.room.message/{}", escaped(room), escaped(&format!("{text} {room}")));
    let sent = house.put(&path, who, json!({ "msgtype": "m.text", "body": text })).await.ok();
    sent["event_id"].as_str().unwrap().to_owned()
}

async fn act(house: &TestServer, who: &TestUser, room: &str, verb: &str, body: Value) {
    house.post(&format!("/rooms/{}/{verb}", escaped(room)), who, body).await.ok();
}

async fn sync(house: &TestServer, who: &TestUser, query: &str) -> Value {
    house.get(&format!("/sync?{query}"), who).await.ok()
}

async fn since(house: &TestServer, who: &TestUser, before: &Value) -> Value {
    sync(house, who, &format!("since={}", token(before))).await
}

fn token(sync: &Value) -> &str {
    sync["next_batch"].as_str().unwrap()
}

fn filter(filter: Value) -> String {
    format!("filter={}", escaped(&filter.to_string()))
}

/// The bodies of messages in a list of events.
fn bodies(events: &Value) -> Vec<&str> {
    let events = events.as_array().unwrap();
    events.iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

/// Type and state key of the events of a list, sorted.
fn keys(events: &Value) -> Vec<String> {
    let key =
        |event: &Value| format!("{} {}", event["type"].as_str().unwrap(), event["state_key"].as_str().unwrap_or("-"));
    let mut keys: Vec<_> = events.as_array().unwrap().iter().map(key).collect();
    keys.sort();
    keys
}

fn find<'a>(events: &'a Value, kind: &str) -> &'a Value {
    let events = events.as_array().unwrap();
    events.iter().find(|event| event["type"] == kind).unwrap_or_else(|| panic!("{kind} in {events:?}"))
}

#[tokio::test]
async fn the_first_sync_tells_everything_and_the_next_what_is_new() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let room = room(&house, &alice, json!({ "name": "Kitchen" })).await;
    say(&house, &alice, &room, "one").await;
    let first = sync(&house, &alice, "").await;
    let share = &first["rooms"]["join"][&room];
    let told = [&share["state"]["events"], &share["timeline"]["events"]].map(keys).concat();
    for key in ["m.room.create ", "m.room.name ", "m.room.power_levels ", &format!("m.room.member {}", alice.id)] {
        assert_eq!(told.iter().filter(|told| *told == key).count(), 1, "{key} once in {told:?}");
    }
    assert_eq!(share["summary"]["m.joined_member_count"], 1);
    let message = find(&share["timeline"]["events"], "m.room.message");
    assert_eq!(message["unsigned"]["transaction_id"], format!("one {room}"));
    assert!(message.get("room_id").is_none());
    assert_eq!(
        find(&first["account_data"]["events"], "m.push_rules")["content"]["global"]["override"][0]["rule_id"],
        ".m.rule.master"
    );
    assert_eq!(first["device_one_time_keys_count"]["signed_curve25519"], 0);

    let nothing = since(&house, &alice, &first).await;
    assert!(nothing.get("rooms").is_none(), "{nothing}");
    say(&house, &alice, &room, "two").await;
    let next = since(&house, &alice, &nothing).await;
    let share = &next["rooms"]["join"][&room];
    assert_eq!(bodies(&share["timeline"]["events"]), ["two"]);
    assert_eq!(share["timeline"]["limited"], false);
    assert_eq!(share["state"]["events"], json!([]));

    let path = format!("/rooms/{}/state/m.room.topic", escaped(&room));
    house.put(&path, &alice, json!({ "topic": "soup" })).await.ok();
    let after = since(&house, &alice, &next).await;
    let topic = find(&after["rooms"]["join"][&room]["timeline"]["events"], "m.room.topic");
    assert_eq!(topic["content"]["topic"], "soup");
    let whole = sync(&house, &alice, &format!("since={}&full_state=true", token(&after))).await;
    assert!(keys(&whole["rooms"]["join"][&room]["state"]["events"]).contains(&"m.room.topic ".to_owned()));
}

#[tokio::test]
async fn a_gap_is_said_and_read_back() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let room = room(&house, &alice, json!({})).await;
    let first = sync(&house, &alice, "").await;
    for number in 0..8 {
        say(&house, &alice, &room, &format!("message {number}")).await;
    }
    let path = format!("/rooms/{}/state/m.room.topic", escaped(&room));
    house.put(&path, &alice, json!({ "topic": "missed" })).await.ok();
    for number in 8..20 {
        say(&house, &alice, &room, &format!("message {number}")).await;
    }
    let query = format!("since={}&{}", token(&first), filter(json!({ "room": { "timeline": { "limit": 5 } } })));
    let next = sync(&house, &alice, &query).await;
    let share = &next["rooms"]["join"][&room];
    assert_eq!(share["timeline"]["limited"], true);
    assert_eq!(bodies(&share["timeline"]["events"]), (15..20).map(|n| format!("message {n}")).collect::<Vec<_>>());
    assert_eq!(keys(&share["state"]["events"]), ["m.room.topic "], "what changed in the gap is told as state");

    // Backwards from the gap, a page at a time, every event comes once.
    let mut from = share["timeline"]["prev_batch"].as_str().unwrap().to_owned();
    let mut seen = Vec::new();
    loop {
        let path = format!("/rooms/{}/messages?dir=b&limit=4&from={from}", escaped(&room));
        let page = house.get(&path, &alice).await.ok();
        seen.extend(
            page["chunk"].as_array().unwrap().iter().map(|event| event["event_id"].as_str().unwrap().to_owned()),
        );
        match page["end"].as_str() {
            Some(end) => from = end.to_owned(),
            None => break,
        }
    }
    let distinct: std::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!(distinct.len(), seen.len());
    let path = format!("/rooms/{}/messages?dir=f&limit=100", escaped(&room));
    let all = house.get(&path, &alice).await.ok();
    assert_eq!(all["chunk"].as_array().unwrap().len(), seen.len() + 5);
    assert_eq!(all["chunk"][0]["type"], "m.room.create");
}

#[tokio::test]
async fn lazily_loaded_members_are_those_who_speak() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let room = room(&house, &alice, json!({ "name": "many" })).await;
    let mut people = Vec::new();
    for name in ["bob", "carol", "dave"] {
        let person = house.register(name).await;
        house.post(&format!("/join/{}", escaped(&room)), &person, json!({})).await.ok();
        people.push(person);
    }
    let bob = &people[0];
    for number in 0..3 {
        say(&house, bob, &room, &format!("message {number}")).await;
    }
    let lazy = json!({ "room": { "state": { "lazy_load_members": true }, "timeline": { "limit": 2 } } });
    let first = sync(&house, &alice, &filter(lazy)).await;
    let state = &first["rooms"]["join"][&room]["state"]["events"];
    let members = |state: &Value| {
        let mut keys = keys(state);
        keys.retain(|key| key.starts_with("m.room.member "));
        keys
    };
    assert_eq!(members(state), [format!("m.room.member {}", alice.id), format!("m.room.member {}", bob.id)]);
    assert!(keys(state).contains(&"m.room.create ".to_owned()));
    assert_eq!(first["rooms"]["join"][&room]["summary"]["m.joined_member_count"], 4);
    let eager = sync(&house, &alice, &filter(json!({ "room": { "timeline": { "limit": 2 } } }))).await;
    assert_eq!(members(&eager["rooms"]["join"][&room]["state"]["events"]).len(), 4);

    let path = format!("/rooms/{}/members", escaped(&room));
    assert_eq!(house.get(&path, &alice).await.ok()["chunk"].as_array().unwrap().len(), 4);
    act(&house, &people[2], &room, "leave", json!({})).await;
    let of = async |query: &str| {
        let found = house.get(&format!("{path}?{query}"), &alice).await.ok();
        found["chunk"].as_array().unwrap().len()
    };
    assert_eq!(of("membership=join").await, 3);
    assert_eq!(of("not_membership=leave").await, 3);
    assert_eq!(of("membership=leave").await, 1);
    assert_eq!(of(&format!("membership=join&at={}", token(&first))).await, 4);
    let joined = house.get(&format!("/rooms/{}/joined_members", escaped(&room)), &alice).await.ok();
    assert_eq!(joined["joined"].as_object().unwrap().len(), 3);
    let page = format!(
        "/rooms/{}/messages?dir=b&limit=2&from={}&{}",
        escaped(&room),
        token(&first),
        filter(json!({ "lazy_load_members": true }))
    );
    assert_eq!(keys(&house.get(&page, &alice).await.ok()["state"]), [format!("m.room.member {}", bob.id)]);
}

#[tokio::test]
async fn invites_leaves_and_bans() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let room = room(&house, &alice, json!({ "name": "Cellar", "preset": "private_chat" })).await;
    let before = sync(&house, &bob, "").await;
    act(&house, &alice, &room, "invite", json!({ "user_id": bob.id })).await;
    let invited = since(&house, &bob, &before).await;
    let shown = &invited["rooms"]["invite"][&room]["invite_state"]["events"];
    assert_eq!(find(shown, "m.room.name")["content"]["name"], "Cellar");
    assert!(keys(shown).contains(&format!("m.room.member {}", bob.id)));
    let invite = shown.as_array().unwrap().iter().find(|event| event["state_key"] == bob.id.as_str()).unwrap();
    assert!(invite["origin_server_ts"].as_u64().is_some_and(|ts| ts > 0), "apps dated it 1970");
    assert!(since(&house, &bob, &invited).await.get("rooms").is_none());

    house.post(&format!("/join/{}", escaped(&room)), &bob, json!({})).await.ok();
    let joined = since(&house, &bob, &invited).await;
    let share = &joined["rooms"]["join"][&room];
    let told = [&share["state"]["events"], &share["timeline"]["events"]].map(keys).concat();
    assert!(told.contains(&"m.room.create ".to_owned()), "{told:?}");

    act(&house, &alice, &room, "kick", json!({ "user_id": bob.id, "reason": "soup" })).await;
    say(&house, &alice, &room, "not for bob").await;
    let kicked = since(&house, &bob, &joined).await;
    let left = &kicked["rooms"]["leave"][&room];
    assert_eq!(left["timeline"]["events"].as_array().unwrap().last().unwrap()["content"]["reason"], "soup");
    assert!(bodies(&left["timeline"]["events"]).is_empty());
    assert!(kicked["rooms"].get("join").is_none(), "a list without rooms is left out");
    act(&house, &alice, &room, "ban", json!({ "user_id": bob.id })).await;
    assert!(since(&house, &bob, &kicked).await["rooms"]["leave"].get(&room).is_some());

    // Long gone rooms are told of only when asked for.
    let fresh = sync(&house, &bob, "").await;
    assert!(fresh["rooms"].get("leave").is_none());
    let with = sync(&house, &bob, &filter(json!({ "room": { "include_leave": true } }))).await;
    assert!(with["rooms"]["leave"].get(&room).is_some());
    let path = format!("/rooms/{}/messages?dir=b&limit=50", escaped(&room));
    let page = house.get(&path, &bob).await.ok();
    assert!(!page.to_string().contains("not for bob"));
    house.get(&format!("/rooms/{}/state", escaped(&room)), &bob).await.ok();
    let carol = house.register("carol").await;
    house.get(&path, &carol).await.refused(403, "M_FORBIDDEN");

    // An invite that is declined goes away.
    act(&house, &alice, &room, "invite", json!({ "user_id": carol.id })).await;
    let invited = sync(&house, &carol, "").await;
    assert!(invited["rooms"]["invite"].get(&room).is_some());
    act(&house, &carol, &room, "leave", json!({})).await;
    let declined = since(&house, &carol, &invited).await;
    assert!(declined["rooms"]["leave"].get(&room).is_some(), "{declined}");
}

#[tokio::test]
async fn filters_and_the_fields_they_name() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let (one, two) = (room(&house, &alice, json!({})).await, room(&house, &alice, json!({})).await);
    say(&house, &alice, &one, "kept").await;
    let wanted = json!({
        "event_fields": ["type", "content.body"],
        "account_data": { "types": [] },
        "room": { "rooms": [&one], "timeline": { "types": ["m.room.mess*"] }, "state": { "types": ["m.room.create"] } },
    });
    let saved = house.post(&format!("/user/{}/filter", escaped(&alice.id)), &alice, wanted.clone()).await.ok();
    for query in [filter(wanted), format!("filter={}", saved["filter_id"].as_str().unwrap())] {
        let first = sync(&house, &alice, &query).await;
        assert!(first["rooms"]["join"].get(&two).is_none());
        let share = &first["rooms"]["join"][&one];
        assert_eq!(share["timeline"]["events"], json!([{ "type": "m.room.message", "content": { "body": "kept" } }]));
        assert_eq!(share["state"]["events"].as_array().unwrap().len(), 1);
        assert_eq!(first["account_data"]["events"], json!([]));
    }
    house.get("/sync?filter=%7Bno", &alice).await.refused(400, "M_INVALID_PARAM");
}

/// `rooms` and `not_rooms` of the filter of the state were read and forgotten, and so were those of a page of events.
#[tokio::test]
async fn a_filter_of_events_names_the_rooms_it_wants() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let (one, two) = (room(&house, &alice, json!({})).await, room(&house, &alice, json!({})).await);
    let only_one = filter(json!({ "room": { "timeline": { "limit": 1 }, "state": { "rooms": [&one] } } }));
    let first = sync(&house, &alice, &only_one).await;
    let state_of = |answer: &Value, room: &str| answer["rooms"]["join"][room]["state"]["events"].clone();
    assert!(!state_of(&first, &one).as_array().unwrap().is_empty());
    assert_eq!(state_of(&first, &two), json!([]));
    let neither = json!({ "not_rooms": [&two] });
    let query = filter(json!({ "room": { "timeline": neither, "state": neither, "ephemeral": neither } }));
    house.put(&format!("/rooms/{}/state/m.room.topic/", escaped(&two)), &alice, json!({ "topic": "?" })).await.ok();
    let next = sync(&house, &alice, &format!("{query}&since={}", token(&first))).await;
    assert!(next["rooms"]["join"].get(&two).is_none(), "{next}");
    let path = |room: &str| format!("/rooms/{}/messages?dir=b&{}", escaped(room), filter(neither.clone()));
    let page = house.get(&path(&one), &alice).await.ok();
    assert!(!page["chunk"].as_array().unwrap().is_empty());
    let page = house.get(&path(&two), &alice).await.ok();
    assert_eq!(page["chunk"], json!([]));
}

#[tokio::test]
async fn receipts_typing_counts_and_account_data() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let room = room(&house, &alice, json!({})).await;
    house.post(&format!("/join/{}", escaped(&room)), &bob, json!({})).await.ok();
    let first = sync(&house, &alice, "").await;
    let event = say(&house, &bob, &room, "hello alice").await;
    let next = since(&house, &alice, &first).await;
    let counts = &next["rooms"]["join"][&room]["unread_notifications"];
    assert_eq!(counts["notification_count"], 1, "{counts}");

    act(&house, &alice, &room, &format!("receipt/m.read/{}", escaped(&event)), json!({})).await;
    let read = since(&house, &alice, &next).await;
    let share = &read["rooms"]["join"][&room];
    assert_eq!(share["unread_notifications"]["notification_count"], 0);
    let receipt = find(&share["ephemeral"]["events"], "m.receipt");
    assert!(receipt["content"][&event]["m.read"][&alice.id]["ts"].is_u64(), "{receipt}");

    let path = format!("/rooms/{}/typing/{}", escaped(&room), escaped(&bob.id));
    house.put(&path, &bob, json!({ "typing": true, "timeout": 30_000 })).await.ok();
    let typing = since(&house, &alice, &read).await;
    let shown = find(&typing["rooms"]["join"][&room]["ephemeral"]["events"], "m.typing");
    assert_eq!(shown["content"]["user_ids"], json!([bob.id]));
    house.put(&path, &bob, json!({ "typing": false })).await.ok();
    let stopped = since(&house, &alice, &typing).await;
    let shown = find(&stopped["rooms"]["join"][&room]["ephemeral"]["events"], "m.typing");
    assert_eq!(shown["content"]["user_ids"], json!([]));

    let own = format!("/user/{}", escaped(&alice.id));
    let marker = format!("{own}/rooms/{}/account_data/m.fully_read", escaped(&room));
    house.get(&marker, &alice).await.refused(404, "M_NOT_FOUND");
    house.put(&format!("{own}/account_data/com.example"), &alice, json!({ "a": 1 })).await.ok();
    let tag = format!("{own}/rooms/{}/tags/m.favourite", escaped(&room));
    house.put(&tag, &alice, json!({ "order": 0.5 })).await.ok();
    act(&house, &alice, &room, "read_markers", json!({ "m.fully_read": event })).await;
    let data = since(&house, &alice, &stopped).await;
    assert_eq!(find(&data["account_data"]["events"], "com.example")["content"]["a"], 1);
    let of_room = &data["rooms"]["join"][&room]["account_data"]["events"];
    assert_eq!(find(of_room, "m.tag")["content"]["tags"]["m.favourite"]["order"], 0.5);
    assert_eq!(find(of_room, "m.fully_read")["content"]["event_id"], event);
    assert_eq!(house.get(&marker, &alice).await.ok(), json!({ "event_id": event }));
    let again = sync(&house, &alice, "").await;
    let of_room = &again["rooms"]["join"][&room]["account_data"]["events"];
    assert_eq!(of_room.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn messages_to_devices_stay_until_they_are_acknowledged() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let first = sync(&house, &alice, "").await;
    let body = json!({ "messages": { &alice.id: { "*": { "secret": 1 } } } });
    house.put("/sendToDevice/com.example/1", &bob, body).await.ok();
    for _ in 0..2 {
        let next = since(&house, &alice, &first).await;
        let message = &next["to_device"]["events"][0];
        assert_eq!((message["type"].as_str(), &message["sender"]), (Some("com.example"), &json!(bob.id)));
    }
    let next = since(&house, &alice, &first).await;
    since(&house, &alice, &next).await;
    let gone = since(&house, &alice, &first).await;
    assert!(gone.get("to_device").is_none(), "acknowledged by the token after it: {gone}");
}

#[tokio::test]
async fn device_lists_follow_who_shares_an_encrypted_room() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let encryption = json!([{ "type": "m.room.encryption", "content": { "algorithm": "m.megolm.v1.aes-sha2" } }]);
    let room = room(&house, &alice, json!({ "initial_state": encryption })).await;
    let first = sync(&house, &alice, "").await;
    house.post(&format!("/join/{}", escaped(&room)), &bob, json!({})).await.ok();
    let joined = since(&house, &alice, &first).await;
    assert_eq!(joined["device_lists"]["changed"], json!([bob.id]));
    act(&house, &bob, &room, "leave", json!({})).await;
    let left = since(&house, &alice, &joined).await;
    assert_eq!(left["device_lists"], json!({ "changed": [], "left": [bob.id] }));
    // So does a small room that is not encrypted; who shares any room has not gone.
    let plain = self::room(&house, &alice, json!({})).await;
    house.post(&format!("/join/{}", escaped(&room)), &bob, json!({})).await.ok();
    let both = sync(&house, &alice, "").await;
    house.post(&format!("/join/{}", escaped(&plain)), &bob, json!({})).await.ok();
    let joined = since(&house, &alice, &both).await;
    assert_eq!(joined["device_lists"], json!({ "changed": [bob.id], "left": [] }));
    act(&house, &bob, &room, "leave", json!({})).await;
    let left = since(&house, &alice, &joined).await;
    assert!(left["device_lists"]["left"].as_array().is_none_or(Vec::is_empty), "{left}");
    act(&house, &bob, &plain, "leave", json!({})).await;
    let left = since(&house, &alice, &left).await;
    assert_eq!(left["device_lists"]["left"], json!([bob.id]));
    // Who went and came back within a gap may have done so with another device.
    for _ in 0..2 {
        house.post(&format!("/join/{}", escaped(&room)), &bob, json!({})).await.ok();
        let there = sync(&house, &alice, "").await;
        act(&house, &bob, &room, "leave", json!({})).await;
        house.post(&format!("/join/{}", escaped(&room)), &bob, json!({})).await.ok();
        let back = since(&house, &alice, &there).await;
        assert_eq!(back["device_lists"], json!({ "changed": [bob.id], "left": [] }));
    }
}

/// A long poll went on from each position at which it had found nothing for its app, and so never told of the devices of
/// users whose join its filter hides: an encrypting bot left them out for ever.
#[tokio::test]
async fn a_bot_that_hides_members_is_told_of_their_devices() {
    let house = TestServer::start().await;
    let (alice, bob, carol) =
        (house.register("alice").await, house.register("bob").await, house.register("carol").await);
    let encryption = json!([{ "type": "m.room.encryption", "content": { "algorithm": "m.megolm.v1.aes-sha2" } }]);
    let room = room(&house, &alice, json!({ "initial_state": encryption })).await;
    let hidden = json!({ "not_types": ["m.room.member"] });
    let filter = filter(json!({ "room": { "timeline": hidden, "state": hidden } }));
    let first = sync(&house, &alice, &filter).await;
    let query = format!("{filter}&timeout=30000&since={}", token(&first));
    let (woken, _) = tokio::join!(sync(&house, &alice, &query), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        house.post(&format!("/join/{}", escaped(&room)), &bob, json!({})).await.ok();
        tokio::time::sleep(Duration::from_millis(100)).await;
        say(&house, &bob, &room, "hello").await
    });
    assert_eq!(bodies(&woken["rooms"]["join"][&room]["timeline"]["events"]), ["hello"]);
    assert_eq!(woken["device_lists"]["changed"], json!([bob.id]));
    let query = format!("{filter}&timeout=300&since={}", token(&woken));
    let (waited, _) = tokio::join!(sync(&house, &alice, &query), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        house.post(&format!("/join/{}", escaped(&room)), &carol, json!({})).await.ok()
    });
    let told = match waited.get("device_lists") {
        // On a slow machine the wait was over first.
        None => sync(&house, &alice, &format!("{filter}&since={}", token(&waited))).await,
        Some(_) => waited,
    };
    assert_eq!(told["device_lists"]["changed"], json!([carol.id]));
    assert!(told.get("rooms").is_none());
}

#[tokio::test]
async fn a_long_poll_wakes_when_something_comes() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let room = room(&house, &alice, json!({})).await;
    let first = sync(&house, &alice, "").await;
    let started = std::time::Instant::now();
    let query = format!("timeout=90000&since={}", token(&first));
    let (woken, _) = tokio::join!(sync(&house, &alice, &query), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        say(&house, &alice, &room, "wake up").await
    });
    assert_eq!(bodies(&woken["rooms"]["join"][&room]["timeline"]["events"]), ["wake up"]);
    assert!(started.elapsed() < Duration::from_secs(80), "woken, and not at the end of its wait");
    let nothing = sync(&house, &alice, &format!("timeout=50&since={}", token(&woken))).await;
    assert!(nothing.get("rooms").is_none());
}

#[tokio::test]
async fn a_long_poll_ends_with_its_session() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let first = sync(&house, &alice, "").await;
    let path = format!("/sync?timeout=60000&since={}", token(&first));
    let (ended, _) = tokio::join!(house.get(&path, &alice), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        house.post("/logout", &alice, json!({})).await.ok()
    });
    ended.refused(401, "M_UNKNOWN_TOKEN");
    house.get(&path, &alice).await.refused(401, "M_UNKNOWN_TOKEN");
}

/// A poll that waited for memory told its news to a session that had ended meanwhile.
#[tokio::test]
async fn a_poll_that_waits_for_memory_ends_with_its_session() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let first = sync(&house, &alice, "").await;
    room(&house, &alice, json!({})).await;
    let answers = house.server().budget.account("response_bodies");
    eventually("what was answered is paid back", async || (answers.used() == 0).then_some(())).await;
    let all = answers.try_take(answers.limit() - answers.used()).expect("nothing else is answered");
    let path = format!("/sync?timeout=60000&since={}", token(&first));
    let (ended, _) = tokio::join!(house.get(&path, &alice), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        house.post("/logout", &alice, json!({})).await.ok();
        drop(all);
    });
    ended.refused(401, "M_UNKNOWN_TOKEN");
}

/// What changed is mostly told from what was noted in memory, without looking elsewhere. A server built for tests compares
/// that with reading everything; here, whatever happens, each message comes once.
#[tokio::test]
async fn nothing_is_missed_whatever_happens_between_syncs() {
    let house = TestServer::start().await;
    let mut random = Stream::new(7, "syncs", 0);
    let people = [house.register("alice").await, house.register("bob").await, house.register("carol").await];
    let encryption = json!([{ "type": "m.room.encryption", "content": { "algorithm": "m.megolm.v1.aes-sha2" } }]);
    let rooms = [
        room(&house, &people[0], json!({})).await,
        room(&house, &people[0], json!({ "initial_state": encryption })).await,
        room(&house, &people[1], json!({})).await,
    ];
    let mut told = Vec::new();
    for person in &people[..2] {
        for room in &rooms {
            house.post(&format!("/join/{}", escaped(room)), person, json!({})).await.ok();
        }
        told.push(sync(&house, person, "").await);
    }
    let mut seen = vec![Vec::new(); 2];
    let mut sent = Vec::new();
    for number in 0..150 {
        let (person, room) = (random.pick(&people[..2]).clone(), random.pick(&rooms).clone());
        let (carol, at) = (&people[2], escaped(&room));
        match random.below(12) {
            0..4 => sent.push(say(&house, &person, &room, &format!("message {number}")).await),
            4 => {
                let name = json!({ "name": format!("name {number}") });
                house.put(&format!("/rooms/{at}/state/org.example.name"), &person, name).await;
            }
            5 if sent.is_empty() => {}
            5 => {
                let event = escaped(&sent[random.below(sent.len())]);
                house.post(&format!("/rooms/{at}/receipt/m.read/{event}"), &person, json!({})).await;
            }
            6 => {
                let typing = json!({ "typing": random.chance(0.5), "timeout": 30_000 });
                house.put(&format!("/rooms/{at}/typing/{}", escaped(&person.id)), &person, typing).await.ok();
            }
            7 => {
                let path = format!("/user/{}/account_data/org.example.{}", escaped(&person.id), random.below(3));
                house.put(&path, &person, json!({ "number": number })).await.ok();
            }
            8 => {
                let messages = json!({ "messages": { &person.id: { "*": { "number": number } } } });
                house.put(&format!("/sendToDevice/org.example/{number}"), carol, messages).await.ok();
            }
            9 => drop(house.post(&format!("/join/{at}"), carol, json!({})).await),
            10 => drop(house.post(&format!("/rooms/{at}/leave"), carol, json!({})).await),
            _ => {
                let name = json!({ "display_name": format!("device {number}") });
                house.put(&format!("/devices/{}", escaped(&person.device)), &person, name).await.ok();
            }
        }
        for who in 0..2 {
            if random.chance(0.6) || number == 149 {
                let next = since(&house, &people[who], &told[who]).await;
                for (_, room) in next["rooms"]["join"].as_object().into_iter().flatten() {
                    assert_eq!(room["timeline"]["limited"], false);
                    let events = room["timeline"]["events"].as_array().unwrap().iter();
                    let messages = events.filter(|event| event["type"] == "m.room.message");
                    seen[who].extend(messages.map(|event| event["event_id"].as_str().unwrap().to_owned()));
                }
                told[who] = next;
            }
        }
    }
    sent.sort();
    for mut seen in seen {
        seen.sort();
        assert_eq!(seen, sent);
    }
}

#[tokio::test]
async fn one_event_what_stands_around_it_and_what_relates_to_it() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let room = room(&house, &alice, json!({})).await;
    let mut ids = Vec::new();
    for number in 0..7 {
        ids.push(say(&house, &alice, &room, &format!("message {number}")).await);
    }
    let base = format!("/rooms/{}", escaped(&room));
    let event = house.get(&format!("{base}/event/{}", escaped(&ids[3])), &alice).await.ok();
    assert_eq!((event["content"]["body"].as_str(), event["room_id"].as_str()), (Some("message 3"), Some(&room[..])));
    let around = house.get(&format!("{base}/context/{}?limit=4", escaped(&ids[3])), &alice).await.ok();
    assert_eq!(bodies(&around["events_before"]), ["message 2", "message 1"]);
    assert_eq!(bodies(&around["events_after"]), ["message 4", "message 5"]);
    assert!(keys(&around["state"]).contains(&"m.room.create ".to_owned()));
    let end = around["end"].as_str().unwrap();
    let on = house.get(&format!("{base}/messages?dir=f&from={end}"), &alice).await.ok();
    assert_eq!(bodies(&on["chunk"]), ["message 6"]);

    let edit = json!({ "msgtype": "m.text", "body": "* better", "m.new_content": { "msgtype": "m.text", "body": "better" },
        "m.relates_to": { "rel_type": "m.replace", "event_id": ids[3] } });
    house.put(&format!("{base}/send/m.room.message/edit"), &alice, edit).await.ok();
    let event = house.get(&format!("{base}/event/{}", escaped(&ids[3])), &alice).await.ok();
    assert_eq!(event["unsigned"]["m.relations"]["m.replace"]["content"]["body"], "* better");
    let path = format!("/_matrix/client/v1/rooms/{}/relations/{}", escaped(&room), escaped(&ids[3]));
    let related = house.get(&format!("{path}/m.replace"), &alice).await.ok();
    assert_eq!(bodies(&related["chunk"]), ["* better"]);
    assert_eq!(house.get(&format!("{path}/m.thread"), &alice).await.ok()["chunk"], json!([]));

    let redact = format!("{base}/redact/{}/txn", escaped(&ids[0]));
    house.put(&redact, &alice, json!({ "reason": "typo" })).await.ok();
    let gone = house.get(&format!("{base}/event/{}", escaped(&ids[0])), &alice).await.ok();
    assert_eq!(gone["content"], json!({}));
    assert_eq!(gone["unsigned"]["redacted_because"]["content"]["reason"], "typo");
}

#[tokio::test]
async fn state_by_type_and_key() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let room = room(&house, &alice, json!({ "name": "Attic" })).await;
    for path in ["m.room.name", "m.room.name/"] {
        let found = house.get(&format!("/rooms/{}/state/{path}", escaped(&room)), &alice).await.ok();
        assert_eq!(found, json!({ "name": "Attic" }));
    }
    let path = format!("/rooms/{}/state/m.room.member/{}?format=event", escaped(&room), escaped(&alice.id));
    assert_eq!(house.get(&path, &alice).await.ok()["state_key"], json!(alice.id));
    let none = format!("/rooms/{}/state/m.room.topic/", escaped(&room));
    house.get(&none, &alice).await.refused(404, "M_NOT_FOUND");
    let all = house.get(&format!("/_matrix/client/r0/rooms/{}/state", escaped(&room)), &alice).await.ok();
    assert!(keys(&all).contains(&"m.room.name ".to_owned()));
    assert_eq!(house.get("/joined_rooms", &alice).await.ok()["joined_rooms"], json!([room]));
}

#[tokio::test]
async fn history_is_as_visible_as_the_room_says() {
    let house = TestServer::start().await;
    let (alice, bob, carol) =
        (house.register("alice").await, house.register("bob").await, house.register("carol").await);
    for (visibility, newcomer, stranger) in
        [("shared", true, false), ("joined", false, false), ("world_readable", true, true)]
    {
        let content = json!({ "history_visibility": visibility });
        let state = json!([{ "type": "m.room.history_visibility", "content": content }]);
        let room = room(&house, &alice, json!({ "initial_state": state })).await;
        let event = say(&house, &alice, &room, "from before").await;
        let path = format!("/rooms/{}/messages?dir=b&limit=50", escaped(&room));
        let page = house.get(&path, &carol).await;
        assert_eq!(page.status == 200 && page.json().to_string().contains("from before"), stranger, "{visibility}");
        house.post(&format!("/join/{}", escaped(&room)), &bob, json!({})).await.ok();
        say(&house, &alice, &room, "from after").await;
        let page = house.get(&path, &bob).await.ok();
        let seen = bodies(&page["chunk"]);
        assert_eq!(seen.contains(&"from before"), newcomer, "{visibility}: {seen:?}");
        assert!(seen.contains(&"from after"), "{visibility}: {seen:?}");
        let one = house.get(&format!("/rooms/{}/event/{}", escaped(&room), escaped(&event)), &bob).await;
        assert_eq!(one.status, if newcomer { 200 } else { 404 }, "{visibility}");
        let synced = sync(&house, &bob, "").await;
        let told = bodies(&synced["rooms"]["join"][&room]["timeline"]["events"]).contains(&"from before");
        assert_eq!(told, newcomer, "{visibility}");
    }
}

#[tokio::test]
async fn what_apps_take_for_granted() {
    let house = TestServer::start().await;
    let alice = house.register("ALICE").await;
    assert_eq!(alice.id, "@alice:localhost", "who asks for capitals gets none");
    let body = json!({ "type": "m.login.password", "password": "secret ALICE",
        "identifier": { "type": "m.id.user", "user": "@Alice:localhost" } });
    house.request("POST", "/_matrix/client/v3/login", None, body).await.ok();
    let by_mail = json!({ "invite_3pid": [{ "medium": "email", "address": "bob@example.org" }] });
    house.post("/createRoom", &alice, by_mail).await.refused(400, "M_THREEPID_DENIED");
    let bob = house.register("bob").await;
    let room = room(&house, &alice, json!({})).await;
    house
        .post(&format!("/rooms/{}/join", escaped(&room)), &bob, json!({ "reason": "soup", "com.example": 5 }))
        .await
        .ok();
    let member = format!("/rooms/{}/state/m.room.member/{}", escaped(&room), escaped(&bob.id));
    let content = house.get(&member, &alice).await.ok();
    assert_eq!((&content["com.example"], &content["reason"]), (&json!(5), &json!("soup")));
    let joined = house.get(&format!("/rooms/{}/joined_members", escaped(&room)), &alice).await.ok();
    assert_eq!(joined["joined"][&bob.id].get("avatar_url"), Some(&Value::Null), "{joined}");
    let threads = house.get(&format!("/_matrix/client/v1/rooms/{}/threads", escaped(&room)), &bob).await.ok();
    assert_eq!(threads, json!({ "chunk": [] }));
}

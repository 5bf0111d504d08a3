//! What a sliding sync tells beside the events of rooms, as apps see it, and that it is what `/sync` tells.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::random::Stream;
use crate::server::{Reply, TestServer, TestUser};

const UNSTABLE: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
const PROFILES: &str = "org.matrix.msc4262.profiles";
const THREADS: &str = "io.element.msc4308.thread_subscriptions";

fn escaped(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if keep(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// A room that everybody may join, and some who have.
async fn room(house: &TestServer, who: &[&TestUser], more: Value) -> String {
    let mut body = json!({ "preset": "public_chat" });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let room = house.post("/createRoom", who[0], body).await.ok()["room_id"].as_str().unwrap().to_owned();
    for guest in &who[1..] {
        act(house, guest, &room, "join", json!({})).await;
    }
    room
}

fn encrypted() -> Value {
    let content = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
    json!({ "initial_state": [{ "type": "m.room.encryption", "content": content }] })
}

async fn say(house: &TestServer, who: &TestUser, room: &str, text: &str) -> String {
    let path = format!("/rooms/{}/send/m.room.message/{}", escaped(room), escaped(&format!("{text} {room}")));
    let sent = house.put(&path, who, json!({ "msgtype": "m.text", "body": text })).await.ok();
    sent["event_id"].as_str().unwrap().to_owned()
}

async fn act(house: &TestServer, who: &TestUser, room: &str, verb: &str, body: Value) {
    house.post(&format!("/rooms/{}/{verb}", escaped(room)), who, body).await.ok();
}

async fn read(house: &TestServer, who: &TestUser, room: &str, kind: &str, event: &str) {
    act(house, who, room, &format!("receipt/{kind}/{}", escaped(event)), json!({})).await;
}

async fn types(house: &TestServer, who: &TestUser, room: &str, is_typing: bool) {
    let path = format!("/rooms/{}/typing/{}", escaped(room), escaped(&who.id));
    house.put(&path, who, json!({ "typing": is_typing, "timeout": 120_000 })).await.ok();
}

async fn keep(house: &TestServer, who: &TestUser, room: Option<&str>, kind: &str, content: Value) {
    let room = room.map(|room| format!("/rooms/{}", escaped(room))).unwrap_or_default();
    house.put(&format!("/user/{}{room}/account_data/{kind}", escaped(&who.id)), who, content).await.ok();
}

async fn post_to(house: &TestServer, from: &TestUser, to: &TestUser, number: usize) {
    let messages = json!({ "messages": { &to.id: { "*": { "number": number } } } });
    house.put(&format!("/sendToDevice/org.example/{number}"), from, messages).await.ok();
}

async fn profile(house: &TestServer, who: &TestUser, field: &str, value: Option<Value>) {
    let path = format!("/profile/{}/{field}", escaped(&who.id));
    match value {
        Some(value) => house.put(&path, who, json!({ field: value })).await.ok(),
        None => house.delete(&path, who).await.ok(),
    };
}

async fn ask(house: &TestServer, who: &TestUser, pos: Option<&str>, timeout: u64, body: &Value) -> Reply {
    let path = pos.map_or_else(|| UNSTABLE.to_owned(), |pos| format!("{UNSTABLE}?pos={pos}&timeout={timeout}"));
    house.post(&path, who, body.clone()).await
}

async fn begin(house: &TestServer, who: &TestUser, body: &Value) -> Value {
    ask(house, who, None, 0, body).await.ok()
}

async fn next(house: &TestServer, who: &TestUser, before: &Value, body: &Value) -> Value {
    ask(house, who, before["pos"].as_str(), 0, body).await.ok()
}

/// A request for rooms, with the extensions that are named.
fn asking(timeline: usize, extensions: &[&str]) -> Value {
    let extensions: BTreeMap<_, _> = extensions.iter().map(|name| (*name, json!({ "enabled": true }))).collect();
    let all = json!({ "ranges": [[0, 99]], "timeline_limit": timeline, "required_state": [] });
    json!({ "lists": { "all": all }, "extensions": extensions })
}

fn only(extensions: Value) -> Value {
    json!({ "extensions": extensions })
}

/// The contents of account data events by type.
fn by_type(events: &Value) -> BTreeMap<String, Value> {
    let events = events.as_array().unwrap().iter();
    events.map(|event| (event["type"].as_str().unwrap().to_owned(), event["content"].clone())).collect()
}

#[tokio::test]
async fn messages_to_the_device_come_until_they_are_acknowledged() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let asking = |since: Option<&Value>, limit: usize| {
        only(json!({ "to_device": { "enabled": true, "limit": limit, "since": since } }))
    };
    let told = |answer: &Value| {
        let events = answer["extensions"]["to_device"]["events"].as_array().unwrap().iter();
        events.map(|event| event["content"]["number"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    let end = |answer: &Value| answer["extensions"]["to_device"]["next_batch"].clone();
    let first = begin(&house, &alice, &asking(None, 100)).await;
    assert!(told(&first).is_empty());
    for number in 0..5 {
        post_to(&house, &bob, &alice, number).await;
    }
    // As often as one asks, by whichever connection.
    for pos in [first["pos"].as_str(), first["pos"].as_str(), None] {
        let again = ask(&house, &alice, pos, 0, &asking(Some(&end(&first)), 100)).await.ok();
        assert_eq!(told(&again), [0, 1, 2, 3, 4]);
    }
    let first = begin(&house, &alice, &asking(None, 2)).await;
    assert_eq!(told(&first), [0, 1]);
    let second = next(&house, &alice, &first, &asking(Some(&end(&first)), 2)).await;
    assert_eq!(told(&second), [2, 3]);
    let again = begin(&house, &alice, &asking(None, 0)).await;
    assert_eq!(told(&again), [2], "the first two were acknowledged");
    let third = begin(&house, &alice, &asking(Some(&end(&second)), 100)).await;
    assert_eq!(told(&third), [4]);
    // A token of a database that was since restored takes nothing away.
    let future = begin(&house, &alice, &asking(Some(&json!("99999999")), 100)).await;
    assert_eq!(told(&future), [4]);
    let last = next(&house, &alice, &future, &asking(Some(&end(&future)), 100)).await;
    assert!(told(&last).is_empty());
    for wrong in [json!("x"), json!(5), json!("-1")] {
        let refused = ask(&house, &alice, None, 0, &asking(Some(&wrong), 1)).await;
        assert_eq!(refused.status, 400, "{wrong}");
    }
    house.stop().await;
}

#[tokio::test]
async fn keys_are_counted_and_changed_devices_told() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let room = room(&house, &[&alice, &bob], encrypted()).await;
    let asked = only(json!({ "e2ee": { "enabled": true } }));
    let first = begin(&house, &alice, &asked).await;
    let keys =
        json!({ "device_one_time_keys_count": { "signed_curve25519": 0 }, "device_unused_fallback_key_types": [] });
    assert_eq!(first["extensions"], json!({ "e2ee": keys }));
    let renamed = json!({ "display_name": "Bob's new phone" });
    house.put(&format!("/devices/{}", escaped(&bob.device)), &bob, renamed).await.ok();
    let second = next(&house, &alice, &first, &asked).await;
    assert_eq!(second["extensions"]["e2ee"]["device_lists"], json!({ "changed": [bob.id], "left": [] }));
    assert_eq!(second["extensions"]["e2ee"]["device_one_time_keys_count"]["signed_curve25519"], 0);
    act(&house, &bob, &room, "leave", json!({})).await;
    let third = next(&house, &alice, &second, &asked).await;
    assert_eq!(third["extensions"]["e2ee"]["device_lists"], json!({ "changed": [], "left": [bob.id] }));
    // What was not asked for is not in the answer.
    let none = next(&house, &alice, &third, &only(json!({ "e2ee": { "enabled": false }, "org.unknown": 5 }))).await;
    assert_eq!(none["extensions"], json!({}));
    // Who goes on and asks for it later misses nothing since then.
    act(&house, &bob, &room, "join", json!({})).await;
    let later = next(&house, &alice, &none, &asked).await;
    assert_eq!(later["extensions"]["e2ee"]["device_lists"], json!({ "changed": [bob.id], "left": [] }));
    // An app that is told no rooms hears at once of who comes to share an encrypted one.
    let carol = house.register("carol").await;
    let began = std::time::Instant::now();
    let (woken, _) = tokio::join!(ask(&house, &alice, later["pos"].as_str(), 90_000, &asked), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        say(&house, &bob, &room, "nothing for it").await;
        act(&house, &carol, &room, "join", json!({})).await;
    });
    assert_eq!(woken.ok()["extensions"]["e2ee"]["device_lists"], json!({ "changed": [carol.id], "left": [] }));
    assert!(began.elapsed() < Duration::from_secs(80), "woken, and not at the end of its wait");
    house.stop().await;
}

#[tokio::test]
async fn account_data_is_told_whole_and_then_by_its_changes() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let kitchen = room(&house, &[&alice, &bob], json!({})).await;
    let cellar = room(&house, &[&alice], json!({})).await;
    let event = say(&house, &bob, &kitchen, "hello").await;
    keep(&house, &alice, None, "org.example.a", json!({ "a": 1 })).await;
    keep(&house, &alice, Some(&kitchen), "org.example.r", json!({ "r": 1 })).await;
    act(&house, &alice, &kitchen, "read_markers", json!({ "m.fully_read": event })).await;
    let asked = asking(1, &["account_data"]);
    let first = begin(&house, &alice, &asked).await;
    let told = &first["extensions"]["account_data"];
    let global = by_type(&told["global"]);
    assert_eq!((&global["org.example.a"]["a"], global.contains_key("m.push_rules")), (&json!(1), true));
    assert_eq!(
        by_type(&told["rooms"][&kitchen]),
        [("m.fully_read".to_owned(), json!({ "event_id": event })), ("org.example.r".to_owned(), json!({ "r": 1 }))]
            .into()
    );
    assert_eq!(told["rooms"].get(&cellar), None);
    let none = next(&house, &alice, &first, &asked).await;
    assert_eq!(none["extensions"]["account_data"], json!({ "global": [], "rooms": {} }));

    keep(&house, &alice, None, "org.example.b", json!({ "b": 2 })).await;
    keep(&house, &alice, Some(&cellar), "org.example.r", json!({ "r": 2 })).await;
    let second = next(&house, &alice, &none, &asked).await;
    let of = json!([{ "type": "org.example.r", "content": { "r": 2 } }]);
    let global = json!([{ "type": "org.example.b", "content": { "b": 2 } }]);
    assert_eq!(second["extensions"]["account_data"], json!({ "global": global, "rooms": { &cellar: of } }));
    // For some rooms only.
    let mut narrow = asked.clone();
    narrow["extensions"]["account_data"] = json!({ "enabled": true, "lists": [], "rooms": ["*"] });
    narrow["room_subscriptions"] = json!({ &kitchen: { "timeline_limit": 1, "required_state": [] } });
    for room in [&kitchen, &cellar] {
        keep(&house, &alice, Some(room), "org.example.r", json!({ "r": 3 })).await;
    }
    let third = next(&house, &alice, &second, &narrow).await;
    let rooms = third["extensions"]["account_data"]["rooms"].as_object().unwrap();
    assert_eq!(rooms.keys().collect::<Vec<_>>(), [&kitchen]);
    narrow["extensions"]["account_data"] = json!({ "enabled": true, "lists": ["all"], "rooms": [] });
    let third = next(&house, &alice, &second, &narrow).await;
    assert_eq!(third["extensions"]["account_data"]["rooms"].as_object().unwrap().len(), 2);
    narrow["extensions"]["account_data"] = json!({ "enabled": true, "lists": ["none"], "rooms": [] });
    let third = next(&house, &alice, &second, &narrow).await;
    assert_eq!(third["extensions"]["account_data"]["rooms"], json!({}));
    house.stop().await;
}

#[tokio::test]
async fn receipts_of_a_new_room_are_those_of_its_timeline_and_ones_own() {
    let house = TestServer::start().await;
    let (alice, bob, carol) =
        (house.register("alice").await, house.register("bob").await, house.register("carol").await);
    let kitchen = room(&house, &[&alice, &bob, &carol], json!({})).await;
    let mut events = Vec::new();
    for number in 0..4 {
        events.push(say(&house, &bob, &kitchen, &number.to_string()).await);
        match number {
            0 => read(&house, &alice, &kitchen, "m.read.private", &events[0]).await,
            1 => read(&house, &carol, &kitchen, "m.read", &events[1]).await,
            _ => {}
        }
    }
    let asked = asking(2, &["receipts"]);
    let first = begin(&house, &alice, &asked).await;
    let told = &first["extensions"]["receipts"]["rooms"][&kitchen];
    assert_eq!(told["type"], "m.receipt");
    let keys = |told: &Value| {
        let mut keys = Vec::new();
        for (event, kinds) in told["content"].as_object().into_iter().flatten() {
            for (kind, users) in kinds.as_object().unwrap() {
                keys.extend(users.as_object().unwrap().keys().map(|user| format!("{event} {kind} {user}")));
            }
        }
        keys.sort();
        keys
    };
    assert_eq!(keys(told), [format!("{} m.read.private {}", events[0], alice.id)], "the other is of no shown event");
    read(&house, &carol, &kitchen, "m.read.private", &events[2]).await;
    let second = next(&house, &alice, &first, &asked).await;
    assert_eq!(second["extensions"]["receipts"]["rooms"], json!({}), "private ones are their user's");
    read(&house, &carol, &kitchen, "m.read", &events[3]).await;
    let third = next(&house, &alice, &second, &asked).await;
    let by_carol = format!("{} m.read {}", events[3], carol.id);
    assert_eq!(keys(&third["extensions"]["receipts"]["rooms"][&kitchen]), std::slice::from_ref(&by_carol));
    assert_eq!(third["rooms"], json!({}));
    let fourth = next(&house, &alice, &third, &asked).await;
    assert_eq!(fourth["extensions"]["receipts"]["rooms"], json!({}));
    // A longer timeline comes with its receipts, and so does a new connection.
    let fifth = next(&house, &alice, &fourth, &asking(3, &["receipts"])).await;
    let own = format!("{} m.read.private {}", events[0], alice.id);
    let mut both = [own, by_carol];
    both.sort();
    assert_eq!(keys(&fifth["extensions"]["receipts"]["rooms"][&kitchen]), both);
    let mut other = asking(1, &["receipts"]);
    other["conn_id"] = "other".into();
    let again = begin(&house, &alice, &other).await;
    assert_eq!(keys(&again["extensions"]["receipts"]["rooms"][&kitchen]), both);
    // Who left hears no more.
    act(&house, &alice, &kitchen, "leave", json!({})).await;
    read(&house, &bob, &kitchen, "m.read", &events[3]).await;
    let gone = next(&house, &alice, &fifth, &asking(3, &["receipts"])).await;
    assert_eq!(gone["extensions"]["receipts"]["rooms"], json!({}));
    house.stop().await;
}

#[tokio::test]
async fn typing_wakes_and_is_told_while_it_lasts() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let kitchen = room(&house, &[&alice, &bob], json!({})).await;
    let asked = asking(1, &["typing"]);
    let first = begin(&house, &alice, &asked).await;
    assert_eq!(first["extensions"]["typing"]["rooms"], json!({}));
    let pos = first["pos"].as_str();
    let (woken, _) = tokio::join!(ask(&house, &alice, pos, 30_000, &asked), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        types(&house, &bob, &kitchen, true).await
    });
    let woken = woken.ok();
    let typing = |ids: &[&str]| json!({ &kitchen: { "type": "m.typing", "content": { "user_ids": ids } } });
    assert_eq!(woken["extensions"]["typing"]["rooms"], typing(&[&bob.id]));
    let quiet = next(&house, &alice, &woken, &asked).await;
    assert_eq!(quiet["extensions"]["typing"]["rooms"], json!({}));
    let new = begin(&house, &alice, &asked).await;
    assert_eq!(new["extensions"]["typing"]["rooms"], typing(&[&bob.id]));
    types(&house, &bob, &kitchen, false).await;
    let stopped = next(&house, &alice, &new, &asked).await;
    assert_eq!(stopped["extensions"]["typing"]["rooms"], typing(&[]));
    house.stop().await;
}

#[tokio::test]
async fn what_is_asked_for_later_is_told_whole_at_first() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let kitchen = room(&house, &[&alice, &bob], json!({})).await;
    keep(&house, &alice, None, "org.example.a", json!({ "a": 1 })).await;
    keep(&house, &alice, Some(&kitchen), "org.example.r", json!({ "r": 1 })).await;
    let event = say(&house, &bob, &kitchen, "hello").await;
    read(&house, &alice, &kitchen, "m.read", &event).await;
    types(&house, &bob, &kitchen, true).await;
    let first = begin(&house, &alice, &asking(1, &[])).await;
    assert_eq!(first["extensions"], json!({}));
    // At once, though nothing has changed.
    let all = asking(1, &["account_data", "receipts", "typing", PROFILES]);
    let second = ask(&house, &alice, first["pos"].as_str(), 60_000, &all).await.ok();
    assert_eq!(second["rooms"], json!({}));
    let told = &second["extensions"];
    assert_eq!(by_type(&told["account_data"]["global"])["org.example.a"]["a"], 1);
    assert_eq!(by_type(&told["account_data"]["rooms"][&kitchen])["org.example.r"]["r"], 1);
    assert!(told["receipts"]["rooms"][&kitchen]["content"][&event]["m.read"][&alice.id].is_object(), "{told}");
    assert_eq!(told["typing"]["rooms"][&kitchen]["content"]["user_ids"], json!([bob.id]));
    assert_eq!(told[PROFILES]["users"].as_object().unwrap().len(), 2);
    let third = next(&house, &alice, &second, &all).await;
    let nothing = json!({
        "account_data": { "global": [], "rooms": {} }, "receipts": { "rooms": {} }, "typing": { "rooms": {} },
        PROFILES: { "users": {} },
    });
    assert_eq!(third["extensions"], nothing);
    // Left out for a while, it begins anew.
    let fourth = next(&house, &alice, &third, &asking(1, &["receipts"])).await;
    let fifth = next(&house, &alice, &fourth, &all).await;
    assert_eq!(by_type(&fifth["extensions"]["account_data"]["global"])["org.example.a"]["a"], 1);
    assert_eq!(fifth["extensions"]["receipts"]["rooms"], json!({}));
    house.stop().await;
}

#[tokio::test]
async fn profiles_follow_who_shares_a_room() {
    let house = TestServer::start().await;
    let (alice, bob, carol) =
        (house.register("alice").await, house.register("bob").await, house.register("carol").await);
    let kitchen = room(&house, &[&alice, &bob], json!({})).await;
    let status = json!({ "text": "cooking", "emoji": "🍲" });
    profile(&house, &bob, "m.status", Some(status.clone())).await;
    let asking = |fields: &[&str]| only(json!({ PROFILES: { "enabled": true, "fields": fields } }));
    let asked = asking(&["displayname", "m.status"]);
    let first = begin(&house, &alice, &asked).await;
    let users = |answer: &Value| answer["extensions"][PROFILES]["users"].clone();
    let bobs = json!({ "updated": { "displayname": "bob", "m.status": status } });
    assert_eq!(users(&first), json!({ &alice.id: { "updated": { "displayname": "alice" } }, &bob.id: bobs }));

    profile(&house, &bob, "m.status", None).await;
    profile(&house, &bob, "m.tz", Some(json!("UTC"))).await;
    profile(&house, &carol, "m.status", Some(json!("unseen"))).await;
    profile(&house, &alice, "m.status", Some(json!("busy"))).await;
    let second = next(&house, &alice, &first, &asked).await;
    let own = json!({ "updated": { "m.status": "busy" } });
    assert_eq!(users(&second), json!({ &alice.id: own, &bob.id: { "removed": ["m.status"] } }));
    assert_eq!(users(&next(&house, &alice, &first, &asked).await), users(&second), "until it is acknowledged");
    // More fields are told for everybody.
    let more = asking(&["m.tz"]);
    let third = next(&house, &alice, &second, &more).await;
    assert_eq!(users(&third), json!({ &bob.id: { "updated": { "m.tz": "UTC" } } }));
    let asked = asking(&["m.status"]);
    let third = next(&house, &alice, &third, &asked).await;

    act(&house, &carol, &kitchen, "join", json!({})).await;
    let fourth = next(&house, &alice, &third, &asked).await;
    assert_eq!(users(&fourth), json!({ &carol.id: { "updated": { "m.status": "unseen" } } }));
    act(&house, &carol, &kitchen, "leave", json!({})).await;
    let fifth = next(&house, &alice, &fourth, &asked).await;
    assert_eq!(users(&fifth), json!({ &carol.id: null }));
    assert_eq!(users(&next(&house, &alice, &fifth, &asked).await), json!({}));
    // Who leaves is told the same of those who stay, and of nobody who came later.
    let cellar = room(&house, &[&bob, &alice], json!({})).await;
    let there = next(&house, &alice, &fifth, &asked).await;
    act(&house, &alice, &kitchen, "leave", json!({})).await;
    assert_eq!(users(&next(&house, &alice, &there, &asked).await), json!({}), "another room is shared with Bob");
    act(&house, &alice, &cellar, "leave", json!({})).await;
    act(&house, &carol, &cellar, "join", json!({})).await;
    assert_eq!(users(&next(&house, &alice, &there, &asked).await), json!({ &bob.id: null }));
    house.stop().await;
}

#[tokio::test]
async fn followed_threads_are_told_latest_first_and_the_rest_is_paged() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let kitchen = room(&house, &[&alice, &bob], json!({})).await;
    let mut roots = Vec::new();
    for number in 0..4 {
        roots.push(say(&house, &bob, &kitchen, &number.to_string()).await);
    }
    let thread = |root: &str| {
        let of = "/_matrix/client/unstable/io.element.msc4306/rooms";
        format!("{of}/{}/thread/{}/subscription", escaped(&kitchen), escaped(root))
    };
    let asked = only(json!({ THREADS: { "enabled": true, "limit": 2 } }));
    let first = begin(&house, &alice, &asked).await;
    assert_eq!(first["extensions"], json!({}));
    for root in &roots[..3] {
        house.put(&thread(root), &alice, json!({})).await.ok();
    }
    house.delete(&thread(&roots[2]), &alice).await.ok();
    let second = next(&house, &alice, &first, &asked).await;
    let told = &second["extensions"][THREADS];
    let keys = |threads: &Value| threads[&kitchen].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&told["subscribed"]), [roots[1].clone()]);
    assert_eq!(keys(&told["unsubscribed"]), [roots[2].clone()]);
    assert_eq!(told["subscribed"][&kitchen][&roots[1]]["automatic"], false);
    assert!(told["unsubscribed"][&kitchen][&roots[2]]["bump_stamp"].is_u64());
    let list = "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions?dir=b";
    let (from, to) = (told["prev_batch"].as_str().unwrap(), first["pos"].as_str().unwrap());
    let rest = house.get(&format!("{list}&from={from}&to={to}"), &alice).await.ok();
    assert_eq!((keys(&rest["subscribed"]), rest.get("end")), (vec![roots[0].clone()], None));
    let third = next(&house, &alice, &second, &asked).await;
    assert_eq!(third["extensions"], json!({}));
    let (woken, _) = tokio::join!(ask(&house, &alice, third["pos"].as_str(), 30_000, &asked), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        house.put(&thread(&roots[3]), &alice, json!({})).await.ok()
    });
    let woken = woken.ok();
    assert_eq!(keys(&woken["extensions"][THREADS]["subscribed"]), [roots[3].clone()]);
    assert_eq!(woken["extensions"][THREADS].get("prev_batch"), None);
    house.stop().await;
}

#[tokio::test]
async fn a_request_waits_for_what_it_asks_for_alone() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    room(&house, &[&alice, &bob], json!({})).await;
    let asked = only(json!({ "e2ee": { "enabled": true }, "to_device": { "enabled": true } }));
    let first = begin(&house, &alice, &asked).await;
    let mut asked = asked;
    asked["extensions"]["to_device"]["since"] = first["extensions"]["to_device"]["next_batch"].clone();
    let (woken, _) = tokio::join!(ask(&house, &alice, first["pos"].as_str(), 30_000, &asked), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        keep(&house, &alice, None, "org.example.a", json!({ "a": 1 })).await;
        profile(&house, &bob, "m.status", Some(json!("out"))).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        post_to(&house, &bob, &alice, 7).await
    });
    assert_eq!(woken.ok()["extensions"]["to_device"]["events"][0]["content"]["number"], 7);
    let account = only(json!({ "account_data": { "enabled": true }, PROFILES: { "enabled": true } }));
    let first = begin(&house, &bob, &account).await;
    for by_profile in [true, false] {
        let (woken, _) = tokio::join!(ask(&house, &bob, first["pos"].as_str(), 30_000, &account), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            match by_profile {
                true => profile(&house, &alice, "m.status", Some(json!("in"))).await,
                false => keep(&house, &bob, None, "org.example.b", json!({ "b": 1 })).await,
            }
        });
        assert_eq!(woken.ok()["extensions"][PROFILES]["users"][&alice.id]["updated"]["m.status"], "in");
    }
    house.stop().await;
}

/// What one app knows, whichever way it syncs.
#[derive(Default)]
struct App {
    since: Option<String>,
    messages_since: Option<Value>,
    messages: Vec<u64>,
    account_data: BTreeMap<String, Value>,
    receipts: BTreeMap<String, String>,
    typing: BTreeMap<String, Value>,
    /// The last that was said of each user's devices.
    devices: BTreeMap<String, &'static str>,
}

impl App {
    fn hear_account_data(&mut self, room: &str, events: &Value) {
        for (kind, content) in events.as_array().is_some().then(|| by_type(events)).into_iter().flatten() {
            self.account_data.insert(format!("{room} {kind}"), content);
        }
    }

    fn hear_ephemeral(&mut self, room: &str, event: &Value) {
        if event["type"] == "m.typing" {
            self.typing.insert(room.to_owned(), event["content"]["user_ids"].clone());
            return;
        }
        for (id, kinds) in event["content"].as_object().into_iter().flatten() {
            for (kind, users) in kinds.as_object().unwrap() {
                for user in users.as_object().unwrap().keys() {
                    self.receipts.insert(format!("{room} {kind} {user}"), id.clone());
                }
            }
        }
    }

    fn hear_messages(&mut self, events: &Value) {
        let numbers = events.as_array().into_iter().flatten().map(|event| event["content"]["number"].as_u64().unwrap());
        self.messages.extend(numbers);
    }

    fn hear_devices(&mut self, lists: &Value) {
        for kind in ["left", "changed"] {
            let users = lists[kind].as_array().into_iter().flatten();
            self.devices.extend(users.map(|user| (user.as_str().unwrap().to_owned(), kind)));
        }
    }

    /// Syncs by `/sync`. `is_lost`: the answer does not arrive.
    async fn old(&mut self, house: &TestServer, who: &TestUser, is_lost: bool) {
        let since = self.since.as_ref().map(|since| format!("since={since}")).unwrap_or_default();
        let answer = house.get(&format!("/sync?{since}"), who).await.ok();
        if is_lost {
            return;
        }
        self.since = Some(answer["next_batch"].as_str().unwrap().to_owned());
        self.hear_messages(&answer["to_device"]["events"]);
        self.hear_devices(&answer["device_lists"]);
        self.hear_account_data("", &answer["account_data"]["events"]);
        for (room, share) in answer["rooms"]["join"].as_object().into_iter().flatten() {
            self.hear_account_data(room, &share["account_data"]["events"]);
            for event in share["ephemeral"]["events"].as_array().into_iter().flatten() {
                self.hear_ephemeral(room, event);
            }
        }
    }

    /// Syncs by sliding sync, with a window over some of the rooms.
    async fn sliding(&mut self, house: &TestServer, who: &TestUser, is_lost: bool, window: usize) {
        let mut asked = asking(20, &["account_data", "receipts", "typing", "e2ee", "to_device"]);
        asked["lists"]["all"]["ranges"] = json!([[0, window - 1]]);
        asked["extensions"]["to_device"]["since"] = self.messages_since.clone().unwrap_or(Value::Null);
        let answer = ask(house, who, self.since.as_deref(), 0, &asked).await.ok();
        if is_lost {
            return;
        }
        self.since = Some(answer["pos"].as_str().unwrap().to_owned());
        let told = &answer["extensions"];
        self.messages_since = Some(told["to_device"]["next_batch"].clone());
        self.hear_messages(&told["to_device"]["events"]);
        self.hear_devices(&told["e2ee"]["device_lists"]);
        self.hear_account_data("", &told["account_data"]["global"]);
        for (room, events) in told["account_data"]["rooms"].as_object().into_iter().flatten() {
            self.hear_account_data(room, events);
        }
        for kind in ["receipts", "typing"] {
            for (room, event) in told[kind]["rooms"].as_object().into_iter().flatten() {
                self.hear_ephemeral(room, event);
            }
        }
    }
}

/// Whatever happens, answers that get lost included, both kinds of sync tell the same.
#[tokio::test]
async fn both_kinds_of_sync_tell_the_same() {
    for seed in 0..3 {
        let house = TestServer::start().await;
        let mut random = Stream::new(seed, "sliding extensions", 0);
        let people = [house.register("alice").await, house.register("bob").await, house.register("carol").await];
        let alice = &people[0];
        let login = json!({
            "type": "m.login.password", "password": "secret alice",
            "identifier": { "type": "m.id.user", "user": "alice" },
        });
        let session = house.request("POST", "/_matrix/client/v3/login", None, login).await.ok();
        let text = |field: &str| session[field].as_str().unwrap().to_owned();
        let second = TestUser { id: alice.id.clone(), token: text("access_token"), device: text("device_id") };
        let everybody = [&people[0], &people[1], &people[2]];
        let mut rooms = vec![
            room(&house, &everybody, json!({})).await,
            room(&house, &everybody, encrypted()).await,
            room(&house, &everybody[..2], encrypted()).await,
        ];
        let (mut old, mut new) = (App::default(), App::default());
        let mut events: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for number in 0..160 {
            let (person, room_id) = (random.pick(&people).clone(), random.pick(&rooms).clone());
            let at = escaped(&room_id);
            match random.below(12) {
                0..2 => {
                    let path = format!("/rooms/{at}/send/m.room.message/{number}");
                    let sent = house.put(&path, &person, json!({ "msgtype": "m.text", "body": "x" })).await;
                    if sent.status == 200 {
                        let id = sent.json()["event_id"].as_str().unwrap().to_owned();
                        events.entry(room_id).or_default().push(id);
                    }
                }
                2..4 => {
                    let Some(event) = events.get(&room_id).and_then(|events| events.last()) else { continue };
                    let kind = if random.chance(0.3) { "m.read.private" } else { "m.read" };
                    house.post(&format!("/rooms/{at}/receipt/{kind}/{}", escaped(event)), &person, json!({})).await;
                }
                4 => {
                    let typing = json!({ "typing": random.chance(0.5), "timeout": 120_000 });
                    house.put(&format!("/rooms/{at}/typing/{}", escaped(&person.id)), &person, typing).await;
                }
                5 => {
                    let kind = format!("org.example.{}", random.below(3));
                    let room = random.chance(0.5).then_some(&*room_id);
                    keep(&house, alice, room, &kind, json!({ "number": number })).await;
                }
                6 => {
                    let Some(event) = events.get(&room_id).and_then(|events| events.last()) else { continue };
                    act(&house, alice, &room_id, "read_markers", json!({ "m.fully_read": event })).await;
                }
                7 => post_to(&house, &people[1], alice, number).await,
                8 => {
                    let name = json!({ "display_name": format!("device {number}") });
                    house.put(&format!("/devices/{}", escaped(&person.device)), &person, name).await.ok();
                }
                9 => drop(house.post(&format!("/join/{at}"), &people[2], json!({})).await),
                10 => drop(house.post(&format!("/rooms/{at}/leave"), &people[2], json!({})).await),
                _ if rooms.len() < 6 => rooms.push(room(&house, &[&people[1], alice], json!({})).await),
                _ => {}
            }
            // What both have heard by now is compared at times when all was told.
            let is_full = number % 20 == 19;
            if random.chance(0.4) || is_full {
                old.old(&house, alice, !is_full && random.chance(0.3)).await;
            }
            if random.chance(0.4) || is_full {
                let window = if is_full { 20 } else { 1 + random.below(4) };
                new.sliding(&house, &second, !is_full && random.chance(0.3), window).await;
            }
            if is_full {
                assert_eq!(old.messages, new.messages, "seed {seed}, step {number}");
                assert_eq!(old.account_data, new.account_data, "seed {seed}, step {number}");
                assert_eq!(old.receipts, new.receipts, "seed {seed}, step {number}");
                old.typing.retain(|_, users| *users != json!([]));
                new.typing.retain(|_, users| *users != json!([]));
                assert_eq!(old.typing, new.typing, "seed {seed}, step {number}");
                if number > 19 {
                    assert_eq!(old.devices, new.devices, "seed {seed}, step {number}");
                }
                old.devices.clear();
                new.devices.clear();
            }
        }
        house.stop().await;
    }
}

//! End-to-end keys and messages to devices, here and between two servers.

use serde_json::{Value, json};

use crate::rooms::eventually;
use crate::server::{Pair, TestServer, TestUser};

fn signed(who: &TestUser, key: &str) -> Value {
    json!({ "key": key, "signatures": { &who.id: { format!("ed25519:{}", who.device): "ghi" } } })
}

fn device_keys(who: &TestUser) -> Value {
    json!({
        "user_id": who.id, "device_id": who.device, "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": { format!("ed25519:{}", who.device): "abc", format!("curve25519:{}", who.device): "def" },
        "signatures": { &who.id: { format!("ed25519:{}", who.device): "ghi" } },
    })
}

async fn upload(house: &TestServer, who: &TestUser) -> Value {
    let body = json!({
        "device_keys": device_keys(who),
        "one_time_keys": { "signed_curve25519:A": signed(who, "one"), "signed_curve25519:B": signed(who, "two") },
        "fallback_keys": { "signed_curve25519:F": signed(who, "last") },
    });
    house.post("/keys/upload", who, body).await.ok()
}

fn claim_of(who: &TestUser) -> Value {
    json!({ "one_time_keys": { &who.id: { &who.device: "signed_curve25519" } } })
}

#[tokio::test]
async fn one_time_keys_are_handed_out_once_and_then_the_fallback() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let counts = upload(&house, &alice).await;
    assert_eq!(counts, json!({ "one_time_key_counts": { "signed_curve25519": 2 } }));
    assert_eq!(upload(&house, &alice).await, counts, "the same keys again are the same keys");
    let other = json!({ "one_time_keys": { "signed_curve25519:A": signed(&alice, "another") } });
    house.post("/keys/upload", &alice, other).await.refused(400, "M_INVALID_PARAM");
    for expected in ["signed_curve25519:A", "signed_curve25519:B", "signed_curve25519:F", "signed_curve25519:F"] {
        let claimed = house.post("/keys/claim", &bob, claim_of(&alice)).await.ok();
        let of_device = claimed["one_time_keys"][&alice.id][&alice.device].as_object().unwrap().clone();
        assert_eq!(of_device.keys().collect::<Vec<_>>(), [expected]);
    }
    let empty = house.post("/keys/upload", &alice, json!({})).await.ok();
    assert_eq!(empty, json!({ "one_time_key_counts": { "signed_curve25519": 0 } }));
}

#[tokio::test]
async fn device_keys_are_of_the_device_that_uploads_them() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    upload(&house, &alice).await;
    house
        .post("/keys/upload", &bob, json!({ "device_keys": device_keys(&alice) }))
        .await
        .refused(400, "M_INVALID_PARAM");
    house.put(&format!("/devices/{}", alice.device), &alice, json!({ "display_name": "Phone" })).await.ok();
    let query = json!({ "device_keys": { &alice.id: [] } });
    let answer = house.post("/keys/query", &bob, query.clone()).await.ok();
    let mut expected = device_keys(&alice);
    expected["unsigned"] = json!({ "device_display_name": "Phone" });
    assert_eq!(answer["device_keys"][&alice.id][&alice.device], expected);
    house.post("/logout", &alice, Value::Null).await.ok();
    let answer = house.post("/keys/query", &bob, query).await.ok();
    assert_eq!(answer["device_keys"][&alice.id], json!({}), "a device that is gone has no keys");
}

/// Keys that nobody could check were taken and handed out.
#[tokio::test]
async fn keys_without_a_required_member_are_refused() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    for member in ["user_id", "device_id", "algorithms", "keys", "signatures"] {
        let mut keys = device_keys(&alice);
        keys.as_object_mut().unwrap().remove(member);
        house.post("/keys/upload", &alice, json!({ "device_keys": keys })).await.refused(400, "M_BAD_JSON");
    }
    for kind in ["one_time_keys", "fallback_keys"] {
        for member in ["key", "signatures"] {
            let mut key = signed(&alice, "one");
            key.as_object_mut().unwrap().remove(member);
            let body = json!({ kind: { "signed_curve25519:A": key } });
            house.post("/keys/upload", &alice, body).await.refused(400, "M_BAD_JSON");
        }
    }
    house.post("/keys/upload", &alice, json!({ "one_time_keys": { "curve25519:A": "bare" } })).await.ok();
}

#[tokio::test]
async fn messages_to_devices_arrive_once() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let body = json!({ "messages": { &bob.id: { "*": { "hello": "bob" } } } });
    for _ in 0..2 {
        house.put("/sendToDevice/org.example/txn1", &alice, body.clone()).await.ok();
    }
    let sync = house.get("/sync?timeout=0", &bob).await.ok();
    let expected = json!([{ "type": "org.example", "sender": alice.id, "content": { "hello": "bob" } }]);
    assert_eq!(sync["to_device"]["events"], expected);
    let next = sync["next_batch"].as_str().unwrap();
    let later = house.get(&format!("/sync?timeout=0&since={next}"), &bob).await.ok();
    assert_eq!(later.pointer("/to_device/events").map_or(0, |events| events.as_array().unwrap().len()), 0);
}

/// Of a long request the first parts were sent before a later one was refused.
#[tokio::test]
async fn of_a_long_request_all_messages_are_sent_or_none() {
    let house = TestServer::start_under("pi-zero-2w").await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let mut devices = serde_json::Map::new();
    devices.insert(bob.device.clone(), json!({ "hello": "bob" }));
    devices.extend((0..15).map(|n| (format!("other{n:02}"), json!({ "text": "x".repeat(60_000) }))));
    let deep = (0..1_000).fold(json!(1), |inner, _| json!({ "a": inner }));
    devices.insert("zz".to_owned(), deep);
    assert!(devices.keys().next() == Some(&bob.device) && devices.keys().next_back().unwrap() == "zz");
    let sent = async |devices: &serde_json::Map<String, Value>| {
        let body = json!({ "messages": { &bob.id: devices } });
        let answer = house.put("/sendToDevice/org.example/1", &alice, body).await;
        let sync = house.get("/sync?timeout=0", &bob).await.ok();
        (answer, sync.pointer("/to_device/events").map_or(0, |events| events.as_array().unwrap().len()))
    };
    let (answer, count) = sent(&devices).await;
    answer.refused(400, "M_INVALID_PARAM");
    assert_eq!(count, 0);
    devices.remove("zz");
    for _ in 0..2 {
        let (answer, count) = sent(&devices).await;
        answer.ok();
        assert_eq!(count, 1);
    }
}

/// A phone on a poor line never got through: all that waited was in one answer, and each try began at its beginning.
#[tokio::test]
async fn many_messages_to_a_device_come_a_few_at_a_time() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let sync = async |since: String| house.get(&format!("/sync?timeout=0{since}"), &alice).await.ok();
    let before = sync(String::new()).await;
    let text = "x".repeat(60_000);
    for n in 0..7 {
        let messages = json!({ "messages": { &alice.id: { &alice.device: { "n": n, "text": text } } } });
        house.put(&format!("/sendToDevice/m.test/{n}"), &bob, messages).await.ok();
    }
    let told = |answer: &Value| -> Vec<u64> {
        let events = answer["to_device"]["events"].as_array().into_iter().flatten();
        events.map(|event| event["content"]["n"].as_u64().unwrap()).collect()
    };
    let since = |answer: &Value| format!("&since={}", answer["next_batch"].as_str().unwrap());
    let first = sync(since(&before)).await;
    assert_eq!(told(&first), [0, 1, 2, 3]);
    assert_eq!(told(&sync(since(&before)).await), [0, 1, 2, 3], "it did not arrive");
    let second = sync(since(&first)).await;
    assert_eq!(told(&second), [4, 5, 6]);
    let third = sync(since(&second)).await;
    assert_eq!((told(&third), sync(String::new()).await["to_device"]["events"].clone()), (vec![], json!([])));
}

#[tokio::test]
async fn keys_and_messages_of_another_server() {
    let pair = Pair::start().await;
    let (alice, bob) = (pair.one.register("alice").await, pair.two.register("bob").await);
    upload(&pair.two, &bob).await;
    let query = json!({ "device_keys": { &bob.id: [], "@nobody:gone.load.test": [] }, "timeout": 60_000 });
    let answer = pair.one.post("/keys/query", &alice, query).await.ok();
    assert_eq!(answer["device_keys"][&bob.id][&bob.device]["keys"], device_keys(&bob)["keys"]);
    assert!(answer["failures"]["gone.load.test"].is_object());
    let claimed = pair.one.post("/keys/claim", &alice, claim_of(&bob)).await.ok();
    assert_eq!(claimed["one_time_keys"][&bob.id][&bob.device]["signed_curve25519:A"], signed(&bob, "one"));
    let profile = pair.one.get(&format!("/profile/{}", bob.id), &alice).await.ok();
    assert_eq!(profile["displayname"], "bob");

    let body = json!({ "messages": { &bob.id: { &bob.device: { "over": "there" } } } });
    pair.one.put("/sendToDevice/org.example/1", &alice, body).await.ok();
    let mut since = String::new();
    let event = eventually("the message arrives", async || {
        let sync = pair.two.get(&format!("/sync?timeout=1000{since}"), &bob).await.ok();
        since = format!("&since={}", sync["next_batch"].as_str().unwrap());
        sync.pointer("/to_device/events/0").cloned()
    })
    .await;
    assert_eq!(event["content"], json!({ "over": "there" }));
}

#[tokio::test]
async fn new_keys_of_somebody_elsewhere_are_told_to_whom_they_share_a_room_with() {
    let pair = Pair::start().await;
    let (alice, bob) = (pair.one.register("alice").await, pair.two.register("bob").await);
    let body = json!({ "preset": "public_chat", "invite": [bob.id] });
    let room = pair.one.post("/createRoom", &alice, body).await.ok()["room_id"].as_str().unwrap().to_owned();
    pair.two.post(&format!("/join/{room}?server_name=one.load.test"), &bob, json!({})).await.ok();
    let mut since = pair.one.get("/sync?timeout=0", &alice).await.ok()["next_batch"].as_str().unwrap().to_owned();
    upload(&pair.two, &bob).await;
    let (from, to) = eventually("alice is told of the new keys", async || {
        let sync = pair.one.get(&format!("/sync?timeout=1000&since={since}"), &alice).await.ok();
        let changed = sync.pointer("/device_lists/changed").and_then(Value::as_array).cloned().unwrap_or_default();
        let from = std::mem::replace(&mut since, sync["next_batch"].as_str().unwrap().to_owned());
        changed.contains(&json!(bob.id)).then(|| (from, since.clone()))
    })
    .await;
    let changes = pair.one.get(&format!("/keys/changes?from={from}&to={to}"), &alice).await.ok();
    assert_eq!(changes["changed"], json!([bob.id]));
}

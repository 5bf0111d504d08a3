//! Cross-signing, the dehydrated device, and what ends with a device.

use serde_json::{Value, json};
use snug::matrix::sign::{self, Key};

use crate::server::{TestServer, TestUser};

fn public(key: &Key) -> String {
    key.public().to_base64()
}

fn signed(mut object: Value, who: &TestUser, name: &str, by: &Key) -> Value {
    let message = sign::json_message(object.to_string().as_bytes()).unwrap();
    object["signatures"][&who.id][format!("ed25519:{name}")] = by.sign_base64(&message).into();
    object
}

fn cross_key(who: &TestUser, usage: &str, key: &Key) -> Value {
    let public = public(key);
    json!({ "user_id": who.id, "usage": [usage], "keys": { format!("ed25519:{public}"): public } })
}

pub fn cross_keys(who: &TestUser, master: &Key, own: &Key) -> Value {
    json!({
        "master_key": cross_key(who, "master", master),
        "self_signing_key": signed(cross_key(who, "self_signing", own), who, &public(master), master),
    })
}

pub fn device_keys(who: &TestUser, device: &str, key: &Key) -> Value {
    let keys = json!({
        "user_id": who.id, "device_id": device, "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": { format!("ed25519:{device}"): public(key) },
    });
    signed(keys, who, device, key)
}

fn password(who: &TestUser) -> Value {
    let identifier = json!({ "type": "m.id.user", "user": who.id });
    json!({ "type": "m.login.password", "identifier": identifier, "password": format!("secret {}", name(who)) })
}

fn name(who: &TestUser) -> &str {
    who.id[1..].split(':').next().unwrap()
}

async fn another_device(house: &TestServer, who: &TestUser, device: &str) -> TestUser {
    let body = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": who.id }, "device_id": device,
        "password": format!("secret {}", name(who)),
    });
    let answer = house.request("POST", "/login", None, body).await.ok();
    let token = answer["access_token"].as_str().unwrap().to_owned();
    TestUser { id: who.id.clone(), token, device: device.to_owned() }
}

async fn shown(house: &TestServer, viewer: &TestUser, who: &TestUser) -> Value {
    house.post("/keys/query", viewer, json!({ "device_keys": { &who.id: [] } })).await.ok()
}

/// Client-server API, "Cross-signing": the first keys need no password, nor do the same keys again; replacing them does.
#[tokio::test]
async fn cross_signing_is_set_up_without_a_password_and_reset_with_one() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let [master, own, other, device] = [2, 3, 4, 5].map(|n| Key::from_seed("1", [n; 32]));
    house
        .post("/keys/upload", &alice, json!({ "device_keys": device_keys(&alice, &alice.device, &device) }))
        .await
        .ok();
    let first = cross_keys(&alice, &master, &own);
    for _ in 0..2 {
        house.post("/keys/device_signing/upload", &alice, first.clone()).await.ok();
    }
    // The device is signed by the self-signing key, and the master key by the device.
    let of_device = signed(device_keys(&alice, &alice.device, &device), &alice, &public(&own), &own);
    let of_master = signed(cross_key(&alice, "master", &master), &alice, &alice.device, &device);
    let uploaded = json!({ &alice.id: { &alice.device: of_device, public(&master): of_master } });
    let answer = house.post("/keys/signatures/upload", &alice, uploaded).await.ok();
    assert_eq!(answer, json!({ "failures": {} }));
    let before = shown(&house, &alice, &alice).await;
    let on_device = |all: &Value, key: &Key| {
        let signatures = &all["device_keys"][&alice.id][&alice.device]["signatures"][&alice.id];
        signatures.get(format!("ed25519:{}", public(key))).is_some()
    };
    assert!(on_device(&before, &own));
    let on_master = &before["master_keys"][&alice.id]["signatures"][&alice.id];
    assert!(on_master.get(format!("ed25519:{}", alice.device)).is_some());

    let mut reset = cross_keys(&alice, &other, &other);
    let asked = house.post("/keys/device_signing/upload", &alice, reset.clone()).await;
    assert_eq!((asked.status, &asked.json()["flows"]), (401, &json!([{ "stages": ["m.login.password"] }])));
    let mut wrong = password(&alice);
    wrong["password"] = "wrong".into();
    reset["auth"] = wrong;
    assert_eq!(house.post("/keys/device_signing/upload", &alice, reset.clone()).await.status, 401);
    assert_eq!(shown(&house, &alice, &alice).await, before);
    reset["auth"] = password(&alice);
    house.post("/keys/device_signing/upload", &alice, reset).await.ok();
    let after = shown(&house, &alice, &alice).await;
    assert_eq!(after["master_keys"][&alice.id], cross_key(&alice, "master", &other), "without the old signatures");
    assert!(!on_device(&after, &own), "a key that was replaced signs nothing any more");
    house.stop().await;
}

#[tokio::test]
async fn what_belongs_to_a_device_ends_with_it() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let [master, own, device] = [2, 3, 5].map(|n| Key::from_seed("1", [n; 32]));
    let phone = another_device(&house, &alice, "PHONE").await;
    house.post("/keys/device_signing/upload", &alice, cross_keys(&alice, &master, &own)).await.ok();
    let keys = json!({
        "device_keys": device_keys(&phone, "PHONE", &device),
        "one_time_keys": { "signed_curve25519:A": { "key": "a", "signatures": {} } },
        "fallback_keys": { "signed_curve25519:F": { "key": "f", "signatures": {} } },
    });
    house.post("/keys/upload", &phone, keys).await.ok();
    let of_master = signed(cross_key(&alice, "master", &master), &alice, "PHONE", &device);
    house.post("/keys/signatures/upload", &phone, json!({ &alice.id: { public(&master): of_master } })).await.ok();
    let account_data = |kind: &str| format!("/user/{}/account_data/{kind}", alice.id);
    let local = ["m.local_notification_settings.PHONE", "org.matrix.msc3890.local_notification_settings.PHONE"]
        .map(account_data);
    let kept = account_data("m.local_notification_settings.OTHER");
    for path in local.iter().chain([&kept]) {
        house.put(path, &alice, json!({ "is_silenced": true })).await.ok();
    }
    let message = json!({ "messages": { &alice.id: { "PHONE": { "a": 1 } } } });
    house.put("/sendToDevice/org.example/1", &bob, message).await.ok();

    let path = "/devices/PHONE";
    assert_eq!(house.request("DELETE", path, Some(&alice.token), json!({})).await.status, 401);
    house.request("DELETE", path, Some(&alice.token), json!({ "auth": password(&alice) })).await.ok();
    house.get("/account/whoami", &phone).await.refused(401, "M_UNKNOWN_TOKEN");
    let seen = shown(&house, &alice, &alice).await;
    assert_eq!(seen["device_keys"][&alice.id], json!({}));
    assert!(seen["master_keys"][&alice.id].get("signatures").is_none(), "{seen}");
    for path in &local {
        house.get(path, &alice).await.refused(404, "M_NOT_FOUND");
    }
    house.get(&kept, &alice).await.ok();
    let phone = another_device(&house, &alice, "PHONE").await;
    let sync = house.get("/sync?timeout=0", &phone).await.ok();
    assert_eq!(sync["device_one_time_keys_count"], json!({ "signed_curve25519": 0 }));
    assert_eq!(sync["device_unused_fallback_key_types"], json!([]));
    assert_eq!(sync.pointer("/to_device/events").map_or(0, |events| events.as_array().unwrap().len()), 0);
    house.stop().await;
}

const DRY: &str = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device";

fn dry(who: &TestUser, device: &str, key: &Key) -> Value {
    let mut keys = device_keys(who, device, key);
    keys["dehydrated"] = true.into();
    keys.as_object_mut().unwrap().remove("signatures");
    json!({
        "device_id": device, "device_data": { "algorithm": "m.dehydration.v2", "device_pickle": "abc", "nonce": "n" },
        "initial_device_display_name": "Dry", "device_keys": signed(keys, who, device, key),
        "one_time_keys": { "signed_curve25519:A": { "key": "a", "signatures": {} } },
        "fallback_keys": { "signed_curve25519:F": { "key": "f", "fallback": true, "signatures": {} } },
    })
}

#[tokio::test]
async fn a_dehydrated_device_gets_keys_while_nobody_is_logged_in() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let key = Key::from_seed("1", [5; 32]);
    let ask = async |method: &str, rest: &str, body: Value| {
        house.request(method, &format!("{DRY}{rest}"), Some(&alice.token), body).await
    };
    ask("GET", "", Value::Null).await.refused(404, "M_NOT_FOUND");
    ask("DELETE", "", Value::Null).await.refused(404, "M_NOT_FOUND");
    ask("GET", "/dry%2F1/events", Value::Null).await.refused(403, "M_FORBIDDEN");
    ask("PUT", "", dry(&alice, &alice.device, &key)).await.refused(400, "M_INVALID_PARAM");
    for member in ["device_keys", "device_data", "device_id"] {
        let mut body = dry(&alice, "dry/1", &key);
        body.as_object_mut().unwrap().remove(member);
        ask("PUT", "", body).await.refused(400, "M_BAD_JSON");
    }
    let mut of_another = dry(&alice, "dry/1", &key);
    of_another["device_keys"]["device_id"] = "X".into();
    ask("PUT", "", of_another).await.refused(400, "M_INVALID_PARAM");

    let body = dry(&alice, "dry/1", &key);
    assert_eq!(ask("PUT", "", body.clone()).await.ok(), json!({ "device_id": "dry/1" }));
    let expected = json!({ "device_id": "dry/1", "device_data": body["device_data"] });
    assert_eq!(ask("GET", "", Value::Null).await.ok(), expected);
    let seen = shown(&house, &bob, &alice).await;
    assert_eq!(seen["device_keys"][&alice.id]["dry/1"]["dehydrated"], true);
    let claim = json!({ "one_time_keys": { &alice.id: { "dry/1": "signed_curve25519" } } });
    for id in ["A", "F", "F"] {
        let claimed = house.post("/keys/claim", &bob, claim.clone()).await.ok();
        let keys = claimed["one_time_keys"][&alice.id]["dry/1"].as_object().unwrap().clone();
        assert_eq!(keys.keys().collect::<Vec<_>>(), [&format!("signed_curve25519:{id}")]);
    }
    for nth in 0..5 {
        let messages = json!({ "messages": { &alice.id: { "dry/1": { "nth": nth } } } });
        house.put(&format!("/sendToDevice/m.room.encrypted/{nth}"), &bob, messages).await.ok();
    }
    // Both ways of paging give all, again and again.
    let nths = |answer: &Value| -> Vec<u64> {
        answer["events"].as_array().unwrap().iter().map(|event| event["content"]["nth"].as_u64().unwrap()).collect()
    };
    for _ in 0..2 {
        let (mut from, mut all, mut pages) = (String::new(), Vec::new(), 0);
        loop {
            let answer = ask("GET", &format!("/dry%2F1/events?limit=2{from}"), Value::Null).await.ok();
            all.extend(nths(&answer));
            pages += 1;
            let Some(next) = answer["next_batch"].as_str() else { break };
            from = format!("&from={next}");
        }
        assert_eq!((all, pages), (vec![0, 1, 2, 3, 4], 3));
        let (mut body, mut all) = (json!({}), Vec::new());
        loop {
            let answer = ask("POST", "/dry%2F1/events", body).await.ok();
            if nths(&answer).is_empty() {
                break;
            }
            all.extend(nths(&answer));
            body = json!({ "next_batch": answer["next_batch"] });
        }
        assert_eq!(all, [0, 1, 2, 3, 4]);
    }
    ask("GET", "/dry%2F1/events?from=x", Value::Null).await.refused(400, "M_INVALID_PARAM");

    // The next one takes its place, with nothing of the one before.
    ask("PUT", "", dry(&alice, "dry/2", &key)).await.ok();
    ask("GET", "/dry%2F1/events", Value::Null).await.refused(403, "M_FORBIDDEN");
    let seen = shown(&house, &bob, &alice).await;
    let devices = seen["device_keys"][&alice.id].as_object().unwrap().clone();
    assert_eq!(devices.keys().collect::<Vec<_>>(), ["dry/2"]);
    assert_eq!(ask("GET", "/dry%2F2/events", Value::Null).await.ok(), json!({ "events": [] }));
    assert_eq!(house.get("/devices", &alice).await.ok()["devices"].as_array().unwrap().len(), 2);
    assert_eq!(ask("DELETE", "", Value::Null).await.ok(), json!({ "device_id": "dry/2" }));
    assert_eq!(shown(&house, &bob, &alice).await["device_keys"][&alice.id], json!({}));

    // A new password ends it with all other devices, and so does a log-in that takes its id.
    ask("PUT", "", dry(&alice, "dry/3", &key)).await.ok();
    let change = json!({ "new_password": "secret alice", "auth": password(&alice) });
    house.post("/account/password", &alice, change).await.ok();
    ask("GET", "", Value::Null).await.refused(404, "M_NOT_FOUND");
    ask("PUT", "", dry(&alice, "dry/4", &key)).await.ok();
    another_device(&house, &alice, "dry/4").await;
    ask("GET", "", Value::Null).await.refused(404, "M_NOT_FOUND");
    assert_eq!(shown(&house, &bob, &alice).await["device_keys"][&alice.id], json!({}));
    house.stop().await;
}

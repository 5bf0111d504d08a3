//! Key backups, as apps use them.

use serde_json::{Value, json};

use crate::server::{TestServer, TestUser};

const ALGORITHM: &str = "m.megolm_backup.v1.curve25519-aes-sha2";

fn info(public_key: &str) -> Value {
    json!({ "algorithm": ALGORITHM, "auth_data": { "public_key": public_key, "signatures": {} } })
}

fn key(first_message_index: u64, forwarded_count: u64, is_verified: bool) -> Value {
    json!({
        "first_message_index": first_message_index, "forwarded_count": forwarded_count, "is_verified": is_verified,
        "session_data": { "ephemeral": "abc", "ciphertext": "def", "mac": format!("{first_message_index}") },
    })
}

async fn create(house: &TestServer, who: &TestUser) -> String {
    let made = house.post("/room_keys/version", who, info("one")).await.ok();
    made["version"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_backup_is_made_changed_and_deleted() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    house.get("/room_keys/version", &alice).await.refused(404, "M_NOT_FOUND");
    house.post("/room_keys/version", &alice, json!({ "algorithm": ALGORITHM })).await.refused(400, "M_BAD_JSON");
    house
        .post("/room_keys/version", &alice, json!({ "algorithm": ALGORITHM, "auth_data": "abc" }))
        .await
        .refused(400, "M_BAD_JSON");
    let version = create(&house, &alice).await;
    let path = format!("/room_keys/version/{version}");
    let mut expected = info("one");
    for (name, value) in [("version", json!(version)), ("count", json!(0)), ("etag", json!("0"))] {
        expected[name] = value;
    }
    assert_eq!(house.get("/room_keys/version", &alice).await.ok(), expected);
    assert_eq!(house.get(&path, &alice).await.ok(), expected);
    house.get(&path, &bob).await.refused(404, "M_NOT_FOUND");

    house.put(&path, &alice, info("two")).await.ok();
    let mut other = info("three");
    other["version"] = json!("77");
    house.put(&path, &alice, other.clone()).await.refused(400, "M_INVALID_PARAM");
    other["version"] = json!(version);
    other["algorithm"] = json!("org.example");
    house.put(&path, &alice, other).await.refused(400, "M_INVALID_PARAM");
    house.put("/room_keys/version/77", &alice, info("two")).await.refused(404, "M_NOT_FOUND");
    let now = house.get("/room_keys/version", &alice).await.ok();
    assert_eq!(now["auth_data"]["public_key"], "two");

    let second = create(&house, &alice).await;
    let put = json!({ "rooms": {} });
    let refused = house.put(&format!("/room_keys/keys?version={version}"), &alice, put.clone()).await;
    assert_eq!(refused.refused(403, "M_WRONG_ROOM_KEYS_VERSION")["current_version"], json!(second));
    house.put("/room_keys/keys?version=77", &alice, put.clone()).await.refused(404, "M_NOT_FOUND");
    house.put("/room_keys/keys", &alice, put).await.refused(400, "M_MISSING_PARAM");
    for _ in 0..2 {
        house.delete(&format!("/room_keys/version/{second}"), &alice).await.ok();
    }
    house.delete("/room_keys/version/77", &alice).await.refused(404, "M_NOT_FOUND");
    assert_eq!(house.get("/room_keys/version", &alice).await.ok()["version"], json!(version));
}

#[tokio::test]
async fn keys_are_kept_by_room_and_session() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let version = create(&house, &alice).await;
    let at = |rest: &str| format!("/room_keys/keys{rest}?version={version}");
    house.get(&at("/!a:x/s"), &alice).await.refused(404, "M_NOT_FOUND");
    assert_eq!(house.get(&at("/!a:x"), &alice).await.ok(), json!({ "sessions": {} }));
    assert_eq!(house.get(&at(""), &alice).await.ok(), json!({ "rooms": {} }));

    let (a, b) = (json!({ "sessions": { "s": key(3, 0, false), "t/+": key(0, 0, true) } }), key(1, 1, true));
    let all = json!({ "rooms": { "!a:x": a, "!b:x": { "sessions": { "s": b } } } });
    assert_eq!(house.put(&at(""), &alice, all.clone()).await.ok(), json!({ "count": 3, "etag": "1" }));
    assert_eq!(house.get(&at(""), &alice).await.ok(), all);
    assert_eq!(house.get(&at("/!a:x"), &alice).await.ok(), a);
    assert_eq!(house.get(&at("/!a%3Ax/t%2F%2B"), &alice).await.ok(), key(0, 0, true));

    // The better copy stays, however it comes.
    let mut tries = Vec::new();
    for (worse, better) in [(key(4, 0, false), key(2, 0, false)), (key(2, 5, false), key(9, 9, true))] {
        tries.push((house.put(&at("/!a:x/s"), &alice, worse).await.ok(), "keeps"));
        tries.push((house.put(&at("/!a:x"), &alice, json!({ "sessions": { "s": better } })).await.ok(), "changes"));
    }
    let etags: Vec<_> = tries.iter().map(|(answer, _)| answer["etag"].as_str().unwrap()).collect();
    assert_eq!(etags, ["1", "2", "2", "3"]);
    assert_eq!(house.get(&at("/!a:x/s"), &alice).await.ok(), key(9, 9, true));

    // A stranger chose this room id: the app could never put the keys beside it, and sent the same body without end.
    let long = format!("!{}", "x".repeat(300));
    let mut body = json!({ "rooms": { "!d:x": { "sessions": { "s": key(0, 0, true) } } } });
    body["rooms"][long] = body["rooms"]["!d:x"].clone();
    assert_eq!(house.put(&at(""), &alice, body).await.ok(), json!({ "count": 4, "etag": "4" }));
    assert_eq!(house.delete(&at("/!d:x"), &alice).await.ok(), json!({ "count": 3, "etag": "5" }));

    // A body with one wrong key changes nothing.
    let mut wrong = key(0, 0, true);
    wrong.as_object_mut().unwrap().remove("session_data");
    let body = json!({ "sessions": { "a": key(0, 0, true), "b": wrong } });
    house.put(&at("/!c:x"), &alice, body).await.refused(400, "M_BAD_JSON");
    assert_eq!(house.get(&at("/!c:x"), &alice).await.ok(), json!({ "sessions": {} }));

    assert_eq!(house.delete(&at("/!a:x/s"), &alice).await.ok(), json!({ "count": 2, "etag": "6" }));
    assert_eq!(house.delete(&at("/!b:x"), &alice).await.ok(), json!({ "count": 1, "etag": "7" }));
    assert_eq!(house.delete(&at(""), &alice).await.ok(), json!({ "count": 0, "etag": "8" }));
    assert_eq!(house.get(&at(""), &alice).await.ok(), json!({ "rooms": {} }));
    assert_eq!(house.get("/room_keys/version", &alice).await.ok()["etag"], "8");
}

/// What an app's library does for an account with many keys: it puts 200 in a request, and reads all of them at once. Under
/// the budget of a small board, nothing of it costs more than a batch or a piece.
#[tokio::test]
async fn many_keys_are_put_and_read_in_little_memory() {
    let house = TestServer::start_under("pi-zero-2w").await;
    let alice = house.register("alice").await;
    let version = create(&house, &alice).await;
    let path = format!("/room_keys/keys?version={version}");
    let data = json!({ "ephemeral": "e".repeat(43), "ciphertext": "c".repeat(1_200), "mac": "m".repeat(11) });
    let (puts, rooms, each) = (15, 4, 50);
    for put in 0..puts {
        let mut body = json!({ "rooms": {} });
        for room in 0..rooms {
            for session in 0..each {
                let key = json!({
                    "first_message_index": 0, "forwarded_count": 0, "is_verified": true, "session_data": data,
                });
                let id = format!("{:043}", (put * each + session) * 7919 % 100_003);
                body["rooms"][format!("!room{room}:x")]["sessions"][id] = key;
            }
        }
        assert!(body.to_string().len() > 250_000);
        let kept = house.put(&path, &alice, body).await.ok();
        assert_eq!(kept["count"], (put + 1) * rooms * each);
    }
    let all = house.get(&path, &alice).await;
    assert!(all.bytes.len() > 3_900_000, "{}", all.bytes.len());
    let all = all.ok();
    let counts = all["rooms"].as_object().unwrap().values().map(|room| room["sessions"].as_object().unwrap().len());
    assert!(counts.eq([puts * each; 4]));
    let budget = &house.server().budget;
    let most = |name| budget.account(name).high_water();
    let (bodies, answers) = (most("request_bodies"), most("response_bodies"));
    assert!(bodies < 512 << 10, "a body of 260 KB and a batch: {bodies}");
    assert!(answers <= 96 << 10, "a piece: {answers}");

    house.delete(&format!("/room_keys/version/{version}"), &alice).await.ok();
    house.get(&path, &alice).await.refused(404, "M_NOT_FOUND");
    let house = house.restart().await;
    house.get("/room_keys/version", &alice).await.refused(404, "M_NOT_FOUND");
    assert_ne!(create(&house, &alice).await, version);
    house.stop().await;
}

//! Pushers, and what their gateways are told.

use serde_json::{Value, json};

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::rooms::PATIENCE;
use crate::server::{TestServer, TestUser};

fn pusher(app_id: &str, pushkey: &str) -> Value {
    json!({
        "kind": "http", "app_id": app_id, "pushkey": pushkey, "app_display_name": "App", "device_display_name": "Phone",
        "lang": "en", "data": { "url": "https://push.example/_matrix/push/v1/notify", "format": "event_id_only" },
    })
}

async fn pushkeys(house: &TestServer, user: &TestUser) -> Vec<String> {
    let all = house.get("/pushers", user).await.ok();
    let mut keys: Vec<_> = all["pushers"].as_array().unwrap().iter().map(|one| one["pushkey"].to_string()).collect();
    keys.sort();
    keys
}

#[tokio::test]
async fn pushers_are_set_shown_and_removed() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    assert_eq!(house.get("/pushers", &alice).await.ok(), json!({ "pushers": [] }));
    let mut one = pusher("org.example.app", "key");
    one["profile_tag"] = json!("x");
    house.post("/pushers/set", &alice, one.clone()).await.ok();
    let shown = house.get("/pushers", &alice).await.ok()["pushers"][0].clone();
    for field in ["kind", "app_id", "pushkey", "app_display_name", "device_display_name", "lang", "data", "profile_tag"]
    {
        assert_eq!(shown[field], one[field], "{field}");
    }
    assert_eq!(shown["org.matrix.msc3881.enabled"], true);
    assert_eq!(shown["org.matrix.msc3881.device_id"], alice.device.as_str());

    // MSC3881: switched off and on again, from anywhere.
    one["org.matrix.msc3881.enabled"] = json!(false);
    house.post("/pushers/set", &alice, one.clone()).await.ok();
    let all = house.get("/pushers", &alice).await.ok();
    assert_eq!(
        (all["pushers"].as_array().unwrap().len(), &all["pushers"][0]["org.matrix.msc3881.enabled"]),
        (1, &json!(false))
    );

    house.post("/pushers/set", &alice, pusher("org.example.app", "other")).await.ok();
    assert_eq!(pushkeys(&house, &alice).await, ["\"key\"", "\"other\""]);
    house
        .post("/pushers/set", &alice, json!({ "kind": null, "app_id": "org.example.app", "pushkey": "key" }))
        .await
        .ok();
    assert_eq!(pushkeys(&house, &alice).await, ["\"other\""]);
    house.post("/pushers/set", &alice, json!({ "kind": null, "app_id": "a", "pushkey": "never set" })).await.ok();

    let set = async |change: &dyn Fn(&mut Value)| {
        let mut bad = pusher("a", "b");
        change(&mut bad);
        house.post("/pushers/set", &alice, bad).await
    };
    set(&|bad| bad["app_id"] = json!("x".repeat(65))).await.refused(400, "M_INVALID_PARAM");
    set(&|bad| bad["pushkey"] = json!("x".repeat(513))).await.refused(400, "M_INVALID_PARAM");
    set(&|bad| bad["kind"] = json!("email")).await.refused(400, "M_INVALID_PARAM");
    set(&|bad| bad["data"]["url"] = json!("https://push.example/notify")).await.refused(400, "M_INVALID_PARAM");
    set(&|bad| bad["data"]["url"] = json!("ftp://a/_matrix/push/v1/notify")).await.refused(400, "M_INVALID_PARAM");
    set(&|bad| bad["data"]["fill"] = json!("x".repeat(9000))).await.refused(400, "M_INVALID_PARAM");
    // Without its kind a pusher is not removed: that takes a null.
    set(&|bad| drop(bad.as_object_mut().unwrap().remove("kind"))).await.refused(400, "M_MISSING_PARAM");
    set(&|bad| bad["data"] = json!({})).await.refused(400, "M_MISSING_PARAM");
    set(&|bad| bad["lang"] = Value::Null).await.refused(400, "M_MISSING_PARAM");
    set(&|bad| bad["data"] = json!("url")).await.refused(400, "M_INVALID_PARAM");
    assert_eq!(pushkeys(&house, &alice).await, ["\"other\""]);
}

/// One phone, two people after each other: the first is not told on it any more, unless both are logged in there.
#[tokio::test]
async fn a_pushkey_belongs_to_one_user_unless_it_is_appended() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    house.post("/pushers/set", &alice, pusher("app", "key")).await.ok();
    let mut both = pusher("app", "key");
    both["append"] = json!(true);
    house.post("/pushers/set", &bob, both).await.ok();
    assert_eq!((pushkeys(&house, &alice).await.len(), pushkeys(&house, &bob).await.len()), (1, 1));
    house.post("/pushers/set", &bob, pusher("app", "key")).await.ok();
    assert_eq!((pushkeys(&house, &alice).await.len(), pushkeys(&house, &bob).await.len()), (0, 1));
}

#[tokio::test]
async fn a_pusher_ends_with_its_session() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let login = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "alice" }, "password": "secret alice",
        "device_id": "PHONE",
    });
    let made = house.request("POST", "/login", None, login).await.ok();
    let token = made["access_token"].as_str().unwrap().to_owned();
    let phone = TestUser { token, device: "PHONE".to_owned(), ..alice.clone() };
    house.post("/pushers/set", &alice, pusher("app", "laptop")).await.ok();
    house.post("/pushers/set", &phone, pusher("app", "phone")).await.ok();
    assert_eq!(pushkeys(&house, &alice).await.len(), 2);
    house.post("/logout", &phone, json!({})).await.ok();
    assert_eq!(pushkeys(&house, &alice).await, ["\"laptop\""]);
}

/// A further pusher takes the place of the one that was set longest ago.
#[tokio::test]
async fn a_user_has_so_many_pushers_and_no_more() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    for number in 0..11 {
        house.post("/pushers/set", &alice, pusher("app", &number.to_string())).await.ok();
    }
    let keys = pushkeys(&house, &alice).await;
    assert_eq!(keys.len(), 10);
    assert!(keys.contains(&"\"10\"".to_owned()));
}

/// A gateway over plain HTTP that takes everything: where it is, and what it was told.
async fn gateway() -> (String, Arc<Mutex<Vec<Value>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let told: Arc<Mutex<Vec<Value>>> = Arc::default();
    let log = told.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            let told = loop {
                let mut piece = [0; 4096];
                let read = stream.read(&mut piece).await.unwrap_or(0);
                request.extend_from_slice(&piece[..read]);
                let body = request.windows(4).position(|end| end == b"\r\n\r\n").map(|end| &request[end + 4..]);
                match body.and_then(|body| serde_json::from_slice::<Value>(body).ok()) {
                    Some(told) => break Some(told["notification"].clone()),
                    None if read == 0 => break None,
                    None => {}
                }
            };
            log.lock().unwrap().extend(told);
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (origin, told)
}

async fn until(done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it happens");
}

/// Alice and Bob in a room of theirs.
async fn two(house: &TestServer) -> (TestUser, TestUser, String) {
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let made = house.post("/createRoom", &alice, json!({ "invite": [bob.id], "name": "Kitchen" })).await.ok();
    let room = made["room_id"].as_str().unwrap().to_owned();
    house.post(&format!("/rooms/{room}/join"), &bob, json!({})).await.ok();
    (alice, bob, room)
}

async fn say(house: &TestServer, who: &TestUser, room: &str, text: &str) -> String {
    let path = format!("/rooms/{room}/send/m.room.message/{text}");
    let body = json!({ "msgtype": "m.text", "body": text, "m.mentions": {} });
    house.put(&path, who, body).await.ok()["event_id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_message_reaches_the_gateway_and_a_receipt_its_badge() {
    let (origin, told) = gateway().await;
    let private = vec![origin.clone()];
    let house = TestServer::start_with(|config| config.push.private_urls = private).await;
    let (alice, bob, room) = two(&house).await;
    let mut phone = pusher("org.example.app", "key");
    phone["data"] = json!({ "url": format!("{origin}/_matrix/push/v1/notify") });
    house.post("/pushers/set", &bob, phone).await.ok();
    let event = say(&house, &alice, &room, "hello").await;
    until(|| told.lock().unwrap().len() == 1).await;
    let first = told.lock().unwrap()[0].clone();
    assert_eq!((&first["event_id"], &first["room_name"]), (&json!(event), &json!("Kitchen")));
    assert_eq!((&first["sender_display_name"], &first["counts"]["unread"]), (&json!("alice"), &json!(1)));
    house.post(&format!("/rooms/{room}/receipt/m.read/{event}"), &bob, json!({})).await.ok();
    until(|| told.lock().unwrap().len() == 2).await;
    assert_eq!(told.lock().unwrap()[1]["counts"]["unread"], 0);
    house.stop().await;
}

#[tokio::test]
async fn notifications_are_listed_page_by_page() {
    let house = TestServer::start().await;
    let (alice, bob, room) = two(&house).await;
    let texts = async |path: &str| {
        let page = house.get(path, &bob).await.ok();
        let list = page["notifications"].as_array().unwrap();
        let texts: Vec<String> =
            list.iter().map(|one| one["event"]["content"]["body"].as_str().unwrap_or("?").to_owned()).collect();
        (texts, page)
    };
    assert!(texts("/notifications").await.0.is_empty(), "a join is no notification");
    let mut events = Vec::new();
    for number in 0..5 {
        events.push(say(&house, &alice, &room, &format!("m{number}")).await);
    }
    house.post(&format!("/rooms/{room}/receipt/m.read/{}", events[2]), &bob, json!({})).await.ok();
    let (first, page) = texts("/notifications?limit=3").await;
    assert_eq!(first, ["m4", "m3", "m2"]);
    let one = &page["notifications"][0];
    assert_eq!((&one["room_id"], &one["event"]["event_id"]), (&json!(room), &json!(events[4])));
    assert_eq!(one["actions"], json!(["notify", { "set_tweak": "sound", "value": "default" }]));
    assert!(one["ts"].is_u64());
    let read: Vec<_> = page["notifications"].as_array().unwrap().iter().map(|one| one["read"].clone()).collect();
    assert_eq!(read, [json!(false), json!(false), json!(true)]);
    let next = page["next_token"].as_str().unwrap();
    assert_eq!(texts(&format!("/notifications?limit=3&from={next}")).await.0, ["m1", "m0"]);

    // Own messages are none; a mention is a highlight.
    say(&house, &bob, &room, "own").await;
    let mention = json!({ "msgtype": "m.text", "body": "bob!", "m.mentions": { "user_ids": [bob.id] } });
    house.put(&format!("/rooms/{room}/send/m.room.message/mention"), &alice, mention).await.ok();
    assert_eq!(texts("/notifications?only=highlight").await.0, ["bob!"]);
    house.get("/notifications?from=x", &bob).await.refused(400, "M_INVALID_PARAM");
}

/// Anybody may ask the gateway: nothing of the home network is reached through it, whatever is allowed to people here.
#[tokio::test]
async fn the_gateway_inside_answers_strangers_and_reaches_no_private_address() {
    let (origin, told) = gateway().await;
    let private = vec![origin.clone()];
    let house = TestServer::start_with(|config| config.push.private_urls = private).await;
    let path = "/_matrix/push/v1/notify";
    let found = house.request("GET", path, None, Value::Null).await.ok();
    assert_eq!(found["unifiedpush"]["gateway"], "matrix");
    let notify = |keys: &[&str]| {
        let devices: Vec<_> = keys.iter().map(|key| json!({ "app_id": "a", "pushkey": key })).collect();
        let body = json!({ "notification": { "event_id": "$e", "devices": devices } });
        house.request("POST", path, None, body)
    };
    assert_eq!(
        notify(&["no url", "mailto:a@b.example"]).await.ok()["rejected"],
        json!(["no url", "mailto:a@b.example"])
    );
    // What can never be asked is not tried again and again.
    let (near, plain) = (format!("{origin}/up"), "http://a.example/up");
    assert_eq!(notify(&[&near, plain]).await.ok()["rejected"], json!([near, plain]));
    notify(&["a"; 3]).await.refused(413, "M_TOO_LARGE");
    assert_eq!(told.lock().unwrap().len(), 0);
    for body in [json!({}), json!({ "notification": {} }), json!({ "notification": { "devices": 5 } })] {
        house.request("POST", path, None, body).await.refused(400, "M_BAD_JSON");
    }

    // People here reach it, and without a request to ourselves.
    let (alice, bob, room) = two(&house).await;
    let mut phone = pusher("up", &format!("{origin}/up"));
    phone["data"] = json!({ "url": format!("http://{}{path}", house.address()) });
    house.post("/pushers/set", &bob, phone.clone()).await.ok();
    let event = say(&house, &alice, &room, "hello").await;
    phone["data"] = json!({ "url": format!("https://localhost{path}") });
    house.post("/pushers/set", &bob, phone).await.ok();
    say(&house, &alice, &room, "again").await;
    until(|| !told.lock().unwrap().is_empty()).await;
    let first = told.lock().unwrap()[0].clone();
    assert_eq!((&first["event_id"], first.get("devices")), (&json!(event), None));

    let closed = TestServer::start_with(|config| config.push.gateway = false).await;
    closed.request("GET", path, None, Value::Null).await.refused(404, "M_UNRECOGNIZED");
}

//! Sliding syncs (MSC4186) as apps use them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::lab::random::Stream;
use crate::server::{Reply, TestServer, TestUser};

const UNSTABLE: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
const V4: &str = "/_matrix/client/v4/sync";

fn escaped(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if keep(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") }).collect()
}

async fn room(house: &TestServer, who: &TestUser, more: Value) -> String {
    let mut body = json!({ "preset": "public_chat" });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    house.post("/createRoom", who, body).await.ok()["room_id"].as_str().unwrap().to_owned()
}

async fn say(house: &TestServer, who: &TestUser, room: &str, text: &str) {
    let path = format!("/rooms/{}/send/m.room.message/{}", escaped(room), escaped(&format!("{text} {room}")));
    house.put(&path, who, json!({ "msgtype": "m.text", "body": text })).await.ok();
}

async fn act(house: &TestServer, who: &TestUser, room: &str, verb: &str, body: Value) {
    house.post(&format!("/rooms/{}/{verb}", escaped(room)), who, body).await.ok();
}

async fn ask(house: &TestServer, who: &TestUser, pos: Option<&str>, body: Value) -> Reply {
    let path = pos.map_or_else(|| UNSTABLE.to_owned(), |pos| format!("{UNSTABLE}?pos={pos}&timeout=0"));
    house.post(&path, who, body).await
}

async fn next(house: &TestServer, who: &TestUser, before: &Value, body: &Value) -> Value {
    ask(house, who, before["pos"].as_str(), body.clone()).await.ok()
}

fn top(last: usize, timeline: usize) -> Value {
    json!({ "lists": { "all": { "ranges": [[0, last]], "timeline_limit": timeline, "required_state": [
        ["m.room.create", ""], ["m.room.member", "$LAZY"], ["m.room.member", "$ME"]] } } })
}

fn bodies(room: &Value) -> Vec<&str> {
    let events = room["timeline"].as_array().unwrap().iter();
    events.filter_map(|event| event["content"]["body"].as_str()).collect()
}

fn state(room: &Value) -> Vec<String> {
    let events = room["required_state"].as_array().unwrap().iter();
    let mut keys: Vec<_> = events
        .map(|event| format!("{} {}", event["type"].as_str().unwrap(), event["state_key"].as_str().unwrap()))
        .collect();
    keys.sort();
    keys
}

fn rooms(answer: &Value) -> Vec<&str> {
    answer["rooms"].as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test]
async fn a_window_shows_the_newest_rooms_and_then_what_is_new() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let mut ids = Vec::new();
    for number in 0..5 {
        ids.push(room(&house, &alice, json!({ "name": format!("Room {number}") })).await);
    }
    act(&house, &bob, &ids[1], "join", json!({})).await;
    say(&house, &bob, &ids[1], "one").await;
    let asked = top(1, 2);
    let first = ask(&house, &alice, None, asked.clone()).await.ok();
    assert_eq!(first["lists"]["all"]["count"], 5);
    let mut wanted = [&ids[1][..], &ids[4][..]];
    wanted.sort_unstable();
    assert_eq!(rooms(&first), wanted);
    let share = &first["rooms"][&ids[1]];
    assert_eq!((&share["initial"], &share["name"], &share["limited"]), (&json!(true), &json!("Room 1"), &json!(true)));
    assert_eq!(
        (&share["joined_count"], &share["num_live"], &share["membership"]),
        (&json!(2), &json!(0), &json!("join"))
    );
    assert_eq!(bodies(share), ["one"]);
    assert!(share["prev_batch"].is_string() && share["bump_stamp"].is_u64() && share.get("heroes").is_none());
    let (create, own, other) =
        ("m.room.create ", format!("m.room.member {}", alice.id), format!("m.room.member {}", bob.id));
    assert_eq!(state(share), [create, &own, &other]);

    let none = next(&house, &alice, &first, &asked).await;
    assert_eq!((rooms(&none), &none["lists"]["all"]["count"]), (vec![], &json!(5)));
    say(&house, &bob, &ids[1], "two").await;
    let second = next(&house, &alice, &none, &asked).await;
    assert_eq!(rooms(&second), [&ids[1][..]]);
    let share = &second["rooms"][&ids[1]];
    assert_eq!((bodies(share), &share["num_live"], &share["limited"]), (vec!["two"], &json!(1), &json!(false)));
    assert_eq!((share.get("initial"), share.get("name"), state(share)), (None, None, vec![]), "{share}");
    // A room that was never told comes to the top.
    say(&house, &alice, &ids[0], "up").await;
    let third = next(&house, &alice, &second, &asked).await;
    assert_eq!(rooms(&third), [&ids[0][..]]);
    assert_eq!((&third["rooms"][&ids[0]]["initial"], &third["rooms"][&ids[0]]["num_live"]), (&json!(true), &json!(1)));
    // A larger window tells the rooms that were not told.
    let all = next(&house, &alice, &third, &top(99, 2)).await;
    let mut wanted = [&ids[2][..], &ids[3][..]];
    wanted.sort_unstable();
    assert_eq!(rooms(&all), wanted);
    // The position is a place for `/messages`.
    let pos = all["pos"].as_str().unwrap();
    let page = house.get(&format!("/rooms/{}/messages?dir=b&limit=1&from={pos}", escaped(&ids[0])), &alice).await.ok();
    assert_eq!(page["chunk"][0]["content"]["body"], "up");
    house.stop().await;
}

#[tokio::test]
async fn a_lost_answer_is_told_again_and_an_old_position_is_unknown() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let kitchen = room(&house, &alice, json!({})).await;
    let first = ask(&house, &alice, None, top(19, 5)).await.ok();
    say(&house, &alice, &kitchen, "one").await;
    let cellar = room(&house, &alice, json!({ "name": "Cellar" })).await;
    for _ in 0..3 {
        let again = next(&house, &alice, &first, &top(19, 5)).await;
        assert_eq!(bodies(&again["rooms"][&kitchen]), ["one"]);
        assert_eq!(again["rooms"][&cellar]["initial"], true);
    }
    let second = next(&house, &alice, &first, &top(19, 5)).await;
    say(&house, &alice, &cellar, "two").await;
    let third = next(&house, &alice, &second, &top(19, 5)).await;
    assert_eq!(rooms(&third), [&cellar[..]]);
    assert_eq!(third["rooms"][&cellar].get("initial"), None);
    let house = house.restart().await;
    say(&house, &alice, &kitchen, "three").await;
    let fourth = next(&house, &alice, &third, &top(19, 5)).await;
    assert_eq!(bodies(&fourth["rooms"][&kitchen]), ["three"]);
    assert_eq!(rooms(&fourth), [&kitchen[..]]);
    for pos in ["p1_1_0", "x", "p99999999999_99999999999_0"] {
        ask(&house, &alice, Some(pos), top(19, 5)).await.refused(400, "M_UNKNOWN_POS");
    }
    let mut other = top(19, 5);
    other["conn_id"] = "other".into();
    ask(&house, &alice, fourth["pos"].as_str(), other).await.refused(400, "M_UNKNOWN_POS");
    let bob = house.register("bob").await;
    ask(&house, &bob, fourth["pos"].as_str(), top(19, 5)).await.refused(400, "M_UNKNOWN_POS");
    // Another connection under the same name takes its place.
    ask(&house, &alice, None, top(19, 5)).await.ok();
    ask(&house, &alice, fourth["pos"].as_str(), top(19, 5)).await.refused(400, "M_UNKNOWN_POS");
    house.stop().await;
}

#[tokio::test]
async fn more_of_a_room_is_told_when_more_is_asked() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let kitchen = room(&house, &alice, json!({ "name": "Kitchen", "topic": "food" })).await;
    for number in 0..6 {
        say(&house, &alice, &kitchen, &number.to_string()).await;
    }
    let first = ask(&house, &alice, None, top(19, 1)).await.ok();
    assert_eq!(bodies(&first["rooms"][&kitchen]), ["5"]);
    let mut asked = top(19, 1);
    asked["room_subscriptions"] =
        json!({ &kitchen: { "timeline_limit": 3, "required_state": [["m.room.topic", ""]] } });
    let second = next(&house, &alice, &first, &asked).await;
    let share = &second["rooms"][&kitchen];
    assert_eq!((&share["unstable_expanded_timeline"], bodies(share)), (&json!(true), vec!["3", "4", "5"]));
    assert_eq!((&share["num_live"], share.get("initial")), (&json!(0), None));
    let topics = state(share).into_iter().filter(|key| !key.starts_with("m.room.member"));
    assert_eq!(topics.collect::<Vec<_>>(), ["m.room.topic "]);
    assert_eq!(rooms(&next(&house, &alice, &second, &asked).await), [""; 0]);
    // Less, and the same again: it is all there.
    let third = next(&house, &alice, &second, &top(19, 1)).await;
    assert_eq!(rooms(&third), [""; 0]);
    assert_eq!(rooms(&next(&house, &alice, &third, &asked).await), [""; 0]);
    house.stop().await;
}

#[tokio::test]
async fn invites_and_leaves_are_told_in_both_forms() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let cellar = room(&house, &bob, json!({ "name": "Cellar" })).await;
    act(&house, &bob, &cellar, "invite", json!({ "user_id": alice.id })).await;
    let first = ask(&house, &alice, None, top(19, 5)).await.ok();
    let share = &first["rooms"][&cellar];
    assert_eq!((&share["membership"], share.get("timeline")), (&json!("invite"), None));
    let names = |list: &Value| list.as_array().unwrap().iter().any(|event| event["type"] == "m.room.name");
    assert!(names(&share["invite_state"]));
    // Once.
    assert_eq!(rooms(&next(&house, &alice, &first, &top(19, 5)).await), [""; 0]);
    let body = json!({ "lists": { "all": { "timeline_limit": 5, "required_state": { "include": [{}], "lazy_members": true } } } });
    let v4 = house.post(V4, &alice, body.clone()).await.ok();
    assert!(names(&v4["rooms"][&cellar]["stripped_state"]));
    assert_eq!(v4["rooms"][&cellar]["lists"], json!(["all"]));
    let first = ask(&house, &alice, None, top(19, 5)).await.ok();
    act(&house, &alice, &cellar, "join", json!({})).await;
    let joined = next(&house, &alice, &first, &top(19, 5)).await;
    assert_eq!(
        (&joined["rooms"][&cellar]["initial"], &joined["rooms"][&cellar]["membership"]),
        (&json!(true), &json!("join"))
    );
    act(&house, &alice, &cellar, "leave", json!({})).await;
    say(&house, &bob, &cellar, "secret").await;
    let left = next(&house, &alice, &joined, &top(19, 5)).await;
    let share = &left["rooms"][&cellar];
    assert_eq!((&share["membership"], bodies(share)), (&json!("leave"), vec![]), "{share}");
    assert!(state(share).contains(&format!("m.room.member {}", alice.id)), "{share}");
    let after = next(&house, &alice, &left, &top(19, 5)).await;
    assert_eq!((rooms(&after), &after["lists"]["all"]["count"]), (vec![], &json!(0)));
    house.stop().await;
}

fn num(answer: &Value) -> &str {
    let pos = answer["pos"].as_str().unwrap();
    pos.split('_').next().unwrap()
}

#[tokio::test]
async fn a_message_of_somebody_known_changes_nothing_that_is_remembered() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let kitchen = room(&house, &alice, json!({})).await;
    act(&house, &bob, &kitchen, "join", json!({})).await;
    let mut last = ask(&house, &alice, None, top(19, 5)).await.ok();
    say(&house, &bob, &kitchen, "hello").await;
    last = next(&house, &alice, &last, &top(19, 5)).await;
    let known = num(&last).to_owned();
    for number in 0..3 {
        say(&house, &bob, &kitchen, &number.to_string()).await;
        last = next(&house, &alice, &last, &top(19, 5)).await;
        assert_eq!((bodies(&last["rooms"][&kitchen]), num(&last)), (vec![&number.to_string()[..]], &known[..]));
        assert_eq!(state(&last["rooms"][&kitchen]), [""; 0]);
    }
    house.stop().await;
}

#[tokio::test]
async fn a_request_waits_for_news_and_not_longer() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let kitchen = room(&house, &alice, json!({})).await;
    act(&house, &bob, &kitchen, "join", json!({})).await;
    let first = ask(&house, &alice, None, top(19, 5)).await.ok();
    let pos = first["pos"].as_str().unwrap();
    let path = format!("{UNSTABLE}?pos={pos}&timeout=200");
    let began = std::time::Instant::now();
    let none = house.post(&path, &alice, top(19, 5)).await.ok();
    assert!(began.elapsed().as_millis() >= 200 && rooms(&none).is_empty());
    let path = format!("{UNSTABLE}?pos={}&timeout=60000", none["pos"].as_str().unwrap());
    let wait = house.post(&path, &alice, top(19, 5));
    let talk = async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        // What is no news for this connection ends no wait.
        let direct = format!("/user/{}/account_data/m.x", escaped(&alice.id));
        house.put(&direct, &alice, json!({})).await.ok();
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        say(&house, &bob, &kitchen, "now").await;
    };
    let (answer, ()) = tokio::join!(wait, talk);
    let answer = answer.ok();
    assert_eq!(bodies(&answer["rooms"][&kitchen]), ["now"]);
    // A session that ends is told so at once.
    let path = format!("{UNSTABLE}?pos={}&timeout=60000", answer["pos"].as_str().unwrap());
    let wait = house.post(&path, &alice, top(19, 5));
    let end = async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        house.post("/logout", &alice, json!({})).await.ok();
    };
    let (answer, ()) = tokio::join!(wait, end);
    answer.refused(401, "M_UNKNOWN_TOKEN");
    house.stop().await;
}

#[tokio::test]
async fn lists_have_the_rooms_that_their_filters_want() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let plain = room(&house, &alice, json!({ "name": "plain" })).await;
    let secret = json!([{ "type": "m.room.encryption", "content": { "algorithm": "m.megolm.v1.aes-sha2" } }]);
    let secret = room(&house, &alice, json!({ "initial_state": secret })).await;
    let space = room(&house, &alice, json!({ "creation_content": { "type": "m.space" } })).await;
    let child = format!("/rooms/{}/state/m.space.child/{}", escaped(&space), escaped(&plain));
    house.put(&child, &alice, json!({ "via": [house.name()] })).await.ok();
    let invite = room(&house, &bob, json!({ "name": "invite" })).await;
    act(&house, &bob, &invite, "invite", json!({ "user_id": alice.id })).await;
    let tag = format!("/user/{}/rooms/{}/tags/m.favourite", escaped(&alice.id), escaped(&plain));
    house.put(&tag, &alice, json!({ "order": 0.5 })).await.ok();
    let direct = format!("/user/{}/account_data/m.direct", escaped(&alice.id));
    house.put(&direct, &alice, json!({ &bob.id: [secret, "!none:here"] })).await.ok();
    let list =
        |filters: Value| json!({ "ranges": [[0, 9]], "timeline_limit": 0, "required_state": [], "filters": filters });
    for (filters, wanted) in [
        (json!({}), vec![&plain, &secret, &space, &invite]),
        (json!({ "is_dm": true }), vec![&secret]),
        (json!({ "is_dm": false }), vec![&plain, &space, &invite]),
        (json!({ "is_encrypted": true }), vec![&secret]),
        (json!({ "is_encrypted": false }), vec![&plain, &space, &invite]),
        (json!({ "is_invite": true }), vec![&invite]),
        (json!({ "is_invited": false }), vec![&plain, &secret, &space]),
        (json!({ "room_types": ["m.space"] }), vec![&space]),
        (json!({ "room_types": [null] }), vec![&plain, &secret, &invite]),
        (json!({ "not_room_types": ["m.space"], "room_types": ["m.space", null] }), vec![&plain, &secret, &invite]),
        (json!({ "tags": ["m.favourite", "u.x"] }), vec![&plain]),
        (json!({ "not_tags": ["m.favourite"] }), vec![&secret, &space, &invite]),
        (json!({ "spaces": [space] }), vec![&plain]),
        (json!({ "spaces": [space], "not_tags": ["m.favourite"] }), vec![]),
        (json!({ "future": 7 }), vec![&plain, &secret, &space, &invite]),
    ] {
        let answer = ask(&house, &alice, None, json!({ "lists": { "a": list(filters.clone()) } })).await.ok();
        let mut wanted: Vec<&str> = wanted.into_iter().map(String::as_str).collect();
        wanted.sort_unstable();
        assert_eq!(rooms(&answer), wanted, "{filters}");
        assert_eq!(answer["lists"]["a"]["count"], wanted.len(), "{filters}");
    }
    for filters in [json!({ "is_dm": 5 }), json!({ "tags": "x" }), json!({ "room_types": [5] }), json!([])] {
        ask(&house, &alice, None, json!({ "lists": { "a": list(filters) } })).await.refused(400, "M_BAD_JSON");
    }
    // The tag goes, and a room comes into the window though nothing happened in it.
    let body =
        json!({ "lists": { "a": list(json!({ "tags": ["m.favourite"] })), "b": list(json!({ "is_dm": true })) } });
    let first = ask(&house, &alice, None, body.clone()).await.ok();
    assert_eq!((&first["lists"]["a"]["count"], &first["rooms"][&secret]["is_dm"]), (&json!(1), &json!(true)));
    house.delete(&tag, &alice).await.ok();
    house.put(&direct, &alice, json!({ &bob.id: [secret, space] })).await.ok();
    let second = next(&house, &alice, &first, &body).await;
    assert_eq!((&second["lists"]["a"]["count"], &second["lists"]["b"]["count"]), (&json!(0), &json!(2)));
    assert_eq!((rooms(&second), &second["rooms"][&space]["is_dm"]), (vec![&space[..]], &json!(true)));
    house.stop().await;
}

#[tokio::test]
async fn the_accepted_form_has_all_in_the_body() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let kitchen = room(&house, &alice, json!({ "name": "Kitchen", "topic": "food" })).await;
    let body = |pos: Option<&str>| {
        json!({ "pos": pos, "timeout": 0, "conn_id": "main", "set_presence": "offline", "lists": { "all": {
            "range": [0, 9], "timeline_limit": 1, "required_state": {
                "include": [{}], "exclude": [{ "type": "m.room.topic" }], "lazy_members": true } } } })
    };
    let first = house.post(V4, &alice, body(None)).await.ok();
    let share = &first["rooms"][&kitchen];
    let told = state(share);
    assert!(told.contains(&"m.room.create ".to_owned()) && !told.contains(&"m.room.topic ".to_owned()), "{told:?}");
    assert_eq!(share.get("notification_count"), None);
    let name = format!("/rooms/{}/state/m.room.name/", escaped(&kitchen));
    house.put(&name, &alice, json!({ "name": "" })).await.ok();
    let second = house.post(V4, &alice, body(first["pos"].as_str())).await.ok();
    let share = &second["rooms"][&kitchen];
    assert_eq!((&share["name"], state(share)), (&Value::Null, vec!["m.room.name ".to_owned()]));
    assert!(share["heroes"].is_array());
    house.post(V4, &alice, body(Some("p7"))).await.refused(400, "M_UNKNOWN_POS");
    let with = |key: &str, value: Value| {
        let mut body = body(None);
        body[key] = value;
        body
    };
    house.post(V4, &alice, with("set_presence", json!("asleep"))).await.refused(400, "M_INVALID_PARAM");
    house.post(V4, &alice, with("conn_id", json!("x".repeat(300)))).await.refused(400, "M_INVALID_PARAM");
    house.post(V4, &alice, with("lists", json!([]))).await.refused(400, "M_BAD_JSON");
    house
        .post(V4, &alice, with("lists", json!({ "a": { "required_state": [] } })))
        .await
        .refused(400, "M_MISSING_PARAM");
    let list = json!({ "timeline_limit": 1, "required_state": [] });
    let many: serde_json::Map<_, _> = (0..101).map(|number| (number.to_string(), list.clone())).collect();
    house.post(V4, &alice, with("lists", many.into())).await.refused(400, "M_INVALID_PARAM");
    house.post(V4, &alice, with("room_subscriptions", json!({ "!none:here": list, "no room": list }))).await.ok();
    house.post(V4, &alice, json!(5)).await.refused(400, "M_BAD_JSON");
    house.stop().await;
}

#[tokio::test]
async fn a_device_has_so_many_connections_and_none_after_its_end() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    room(&house, &alice, json!({})).await;
    let asked = |name: usize| {
        let mut body = top(9, 1);
        body["conn_id"] = name.to_string().into();
        body
    };
    let mut answers = Vec::new();
    for name in 0..9 {
        answers.push(ask(&house, &alice, None, asked(name)).await.ok());
    }
    let unknown = ask(&house, &alice, answers[0]["pos"].as_str(), asked(0)).await;
    unknown.refused(400, "M_UNKNOWN_POS");
    for (name, answer) in answers.iter().enumerate().skip(1) {
        next(&house, &alice, answer, &asked(name)).await;
    }
    house.post("/logout", &alice, json!({})).await.ok();
    let login = json!({ "type": "m.login.password", "device_id": alice.device,
        "identifier": { "type": "m.id.user", "user": alice.id }, "password": "secret alice" });
    let again = house.request("POST", "/_matrix/client/v3/login", None, login).await.ok();
    let token = again["access_token"].as_str().unwrap().to_owned();
    let alice = TestUser { token, ..alice };
    ask(&house, &alice, answers[8]["pos"].as_str(), asked(8)).await.refused(400, "M_UNKNOWN_POS");
    house.stop().await;
}

// ---- what an app puts together ---------------------------------------------------------------------------------------

/// What an app knows of a room.
#[derive(Default)]
struct Share {
    membership: String,
    name: Option<String>,
    is_dm: bool,
    joined: u64,
    state: BTreeMap<(String, String), String>,
    timeline: Vec<String>,
}

/// An app that puts together what answers tell.
struct App {
    lazy: bool,
    pos: Option<String>,
    rooms: BTreeMap<String, Share>,
}

impl App {
    fn asked(&self, last: usize, timeline: usize, subscribed: Option<(&str, usize)>) -> Value {
        let state = match self.lazy {
            true => json!([["*", "*"], ["m.room.member", "$LAZY"]]),
            false => json!([["*", "*"]]),
        };
        let mut body = json!({ "conn_id": self.lazy.to_string(), "lists": { "all": {
            "ranges": [[0, last]], "timeline_limit": timeline, "required_state": state } } });
        if let Some((room, timeline)) = subscribed {
            body["room_subscriptions"] = json!({ room: { "timeline_limit": timeline, "required_state": state } });
        }
        body
    }

    fn apply(&mut self, answer: &Value) {
        self.pos = answer["pos"].as_str().map(str::to_owned);
        for (id, told) in answer["rooms"].as_object().unwrap() {
            let share = self.rooms.entry(id.clone()).or_default();
            if told["initial"] == true {
                *share = Share::default();
            }
            share.membership = told["membership"].as_str().unwrap().to_owned();
            if let Some(name) = told.get("name") {
                share.name = name.as_str().map(str::to_owned);
            }
            if let Some(is_dm) = told["is_dm"].as_bool() {
                share.is_dm = is_dm;
            }
            share.joined = told["joined_count"].as_u64().unwrap_or(share.joined);
            if told["limited"] == true && self.lazy {
                share.state.retain(|(kind, _), _| kind != "m.room.member");
            }
            let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
            for event in told["required_state"].as_array().into_iter().flatten() {
                share.state.insert((text(event, "type"), text(event, "state_key")), text(event, "event_id"));
            }
            if told["limited"] == true || told["unstable_expanded_timeline"] == true {
                share.timeline.clear();
            }
            for event in told["timeline"].as_array().into_iter().flatten() {
                let event_id = text(event, "event_id");
                assert!(!share.timeline.contains(&event_id), "{event_id} twice in {id}: {told}");
                share.timeline.push(event_id);
                let sender = ("m.room.member".to_owned(), text(event, "sender"));
                assert!(share.state.contains_key(&sender), "{sender:?} is known in {id}: {told}");
            }
        }
    }
}

/// Apps lose answers, change what they ask for, and the server is started again; in the end they know what version 3 tells.
#[tokio::test]
async fn what_apps_put_together_is_what_there_is() {
    for seed in 0..3 {
        let mut house = TestServer::start().await;
        let people = [house.register("alice").await, house.register("bob").await, house.register("carol").await];
        let [alice, bob, carol] = &people;
        let mut random = Stream::new(seed, "sliding", 0);
        let mut ids = Vec::new();
        for number in 0..6 {
            let id = room(&house, bob, json!({ "name": format!("Room {number}") })).await;
            if number < 5 {
                act(&house, alice, &id, "join", json!({})).await;
            }
            ids.push(id);
        }
        let app = |lazy| App { lazy, pos: None, rooms: BTreeMap::new() };
        let mut apps = [app(true), app(false)];
        for step in 0..120 {
            let id = random.pick(&ids).clone();
            let path = |rest: &str| format!("/rooms/{}/{rest}", escaped(&id));
            // Whoever may not do this does not.
            let done = match random.below(16) {
                0..=7 => {
                    let path = path(&format!("send/m.room.message/{seed}.{step}"));
                    house
                        .put(&path, random.pick(&people), json!({ "msgtype": "m.text", "body": step.to_string() }))
                        .await
                }
                8 => {
                    let name = if random.chance(0.5) { format!("Name {step}") } else { String::new() };
                    house.put(&path("state/m.room.name/"), bob, json!({ "name": name })).await
                }
                9 => house.put(&path("state/m.room.topic/"), bob, json!({ "topic": step.to_string() })).await,
                10 => house.post(&path("join"), carol, json!({})).await,
                11 => house.post(&path("leave"), carol, json!({})).await,
                12 => house.post(&path("invite"), bob, json!({ "user_id": alice.id })).await,
                13 => house.post(&path("join"), alice, json!({})).await,
                14 if random.chance(0.5) => house.post(&path("leave"), alice, json!({})).await,
                14 => house.post(&path("kick"), bob, json!({ "user_id": alice.id })).await,
                _ => {
                    let direct = format!("/user/{}/account_data/m.direct", escaped(&alice.id));
                    house.put(&direct, alice, json!({ &bob.id: [id] })).await
                }
            };
            assert!(done.status < 500, "{}", done.json());
            for app in &mut apps {
                if !random.chance(0.4) {
                    continue;
                }
                let (last, timeline) = (*random.pick(&[0, 2, 99]), *random.pick(&[0, 1, 3, 10]));
                let room = random.pick(&ids).clone();
                let subscribed = random.chance(0.4).then_some((&room[..], *random.pick(&[1, 5, 20])));
                let answer = ask(&house, alice, app.pos.as_deref(), app.asked(last, timeline, subscribed)).await.ok();
                if random.chance(0.7) {
                    app.apply(&answer);
                }
            }
            if random.chance(0.02) {
                house = house.restart().await;
            }
        }
        let filter = escaped(&json!({ "room": { "timeline": { "limit": 10 } } }).to_string());
        let whole = house.get(&format!("/sync?filter={filter}"), alice).await.ok();
        let direct = house.get(&format!("/user/{}/account_data/m.direct", escaped(&alice.id)), alice).await.json();
        for app in &mut apps {
            for _ in 0..3 {
                let answer = ask(&house, alice, app.pos.as_deref(), app.asked(99, 10, None)).await.ok();
                app.apply(&answer);
            }
            let answer = ask(&house, alice, app.pos.as_deref(), app.asked(99, 10, None)).await.ok();
            assert_eq!(rooms(&answer), [""; 0], "seed {seed}: all was told");
            let of = |membership: &str| -> Vec<&str> {
                let rooms = app.rooms.iter().filter(|(_, share)| share.membership == membership);
                rooms.map(|(id, _)| id.as_str()).collect()
            };
            let listed = |section: &str| -> Vec<&str> {
                let rooms = whole["rooms"][section].as_object();
                rooms.map(|rooms| rooms.keys().map(String::as_str).collect()).unwrap_or_default()
            };
            assert_eq!((of("join"), of("invite")), (listed("join"), listed("invite")), "seed {seed}");
            for id in listed("join") {
                let share = &app.rooms[id];
                let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
                let events = house.get(&format!("/rooms/{}/state", escaped(id)), alice).await.ok();
                let events = events.as_array().unwrap();
                let all: BTreeMap<_, _> = events
                    .iter()
                    .map(|event| ((text(event, "type"), text(event, "state_key")), text(event, "event_id")))
                    .collect();
                let is_told = |kind: &str| !app.lazy || kind != "m.room.member";
                let wanted: BTreeMap<_, _> = all.iter().filter(|((kind, _), _)| is_told(kind)).collect();
                let known: BTreeMap<_, _> = share.state.iter().filter(|((kind, _), _)| is_told(kind)).collect();
                assert_eq!(known, wanted, "seed {seed}, {id}");
                for (key, event) in &share.state {
                    assert_eq!(all.get(key), Some(event), "seed {seed}, {id}: {key:?}");
                }
                let newest = whole["rooms"]["join"][id]["timeline"]["events"].as_array().unwrap();
                let newest: Vec<_> = newest.iter().map(|event| text(event, "event_id")).collect();
                assert!(share.timeline.ends_with(&newest), "seed {seed}, {id}: {:?} and {newest:?}", share.timeline);
                let find = |kind: &str| events.iter().find(|event| event["type"] == kind);
                let name = find("m.room.name").and_then(|event| event["content"]["name"].as_str());
                assert_eq!(share.name.as_deref(), name.filter(|name| !name.is_empty()), "seed {seed}, {id}");
                let joined = events.iter().filter(|event| event["content"]["membership"] == "join").count();
                assert_eq!(share.joined, joined as u64, "seed {seed}, {id}");
                let is_dm = direct[&bob.id].as_array().is_some_and(|rooms| rooms.iter().any(|room| room == id));
                assert_eq!(share.is_dm, is_dm, "seed {seed}, {id}");
            }
        }
        house.stop().await;
    }
}

/// An answer that an app gets for an invite posts a notification each time.
#[tokio::test]
async fn a_pending_invite_is_told_once() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let cellar = room(&house, &bob, json!({})).await;
    act(&house, &bob, &cellar, "invite", json!({ "user_id": alice.id })).await;
    let first = ask(&house, &alice, None, top(19, 1)).await.ok();
    assert_eq!(rooms(&first), [&cellar[..]]);
    let kitchen = room(&house, &alice, json!({})).await;
    let second = next(&house, &alice, &first, &top(19, 1)).await;
    assert_eq!(rooms(&second), [&kitchen[..]]);
    assert_eq!(rooms(&next(&house, &alice, &second, &top(29, 1)).await), [""; 0]);
    house.stop().await;
}

#[tokio::test]
async fn spaces_are_read_once_whatever_lists_name_them() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let kitchen = room(&house, &alice, json!({})).await;
    let mut spaces = Vec::new();
    let mut child_event = String::new();
    for child in [Some(&kitchen), Some(&kitchen), None] {
        let space = room(&house, &alice, json!({ "creation_content": { "type": "m.space" } })).await;
        if let Some(child) = child {
            let path = format!("/rooms/{}/state/m.space.child/{}", escaped(&space), escaped(child));
            let put = house.put(&path, &alice, json!({ "via": ["here.test"] })).await.ok();
            child_event = put["event_id"].as_str().unwrap().to_owned();
        }
        spaces.push(space);
    }
    let list = |spaces: &[&String]| json!({ "ranges": [[0, 9]], "timeline_limit": 1, "required_state": [], "filters": { "spaces": spaces } });
    let [one, other, none] = [&spaces[0], &spaces[1], &spaces[2]];
    let lists = json!({ "a": list(&[one, one, none]), "b": list(&[other]), "c": list(&[none]) });
    let asked = json!({ "lists": lists });
    let answer = ask(&house, &alice, None, asked.clone()).await.ok();
    assert_eq!(["a", "b", "c"].map(|name| answer["lists"][name]["count"].as_u64()), [Some(1), Some(1), Some(0)]);
    assert_eq!(rooms(&answer), [&kitchen[..]]);
    // A child that is redacted is none any more.
    let answer = next(&house, &alice, &answer, &asked).await;
    let path = format!("/rooms/{}/redact/{}/1", escaped(other), escaped(&child_event));
    house.put(&path, &alice, json!({})).await.ok();
    let answer = next(&house, &alice, &answer, &asked).await;
    assert_eq!(["a", "b", "c"].map(|name| answer["lists"][name]["count"].as_u64()), [Some(1), Some(0), Some(0)]);
    let lists = json!({ "a": list(&[one; 20]), "b": list(&[one; 13]) });
    ask(&house, &alice, None, json!({ "lists": lists })).await.refused(400, "M_INVALID_PARAM");
    let filters = json!({ "tags": vec!["u.x"; 257] });
    let lists = json!({ "a": { "ranges": [[0, 9]], "timeline_limit": 1, "filters": filters } });
    ask(&house, &alice, None, json!({ "lists": lists })).await.refused(400, "M_INVALID_PARAM");
    house.stop().await;
}

fn encrypted() -> Value {
    json!({ "lists": { "all": { "ranges": [[0, 19]], "timeline_limit": 1, "filters": { "is_encrypted": true } } } })
}

/// A room that no window shows keeps its news for the answer that does, whatever a subscription tells meanwhile.
#[tokio::test]
async fn news_wait_for_their_window_beside_a_subscription_to_a_room_left() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let kitchen = room(&house, &alice, json!({})).await;
    let cellar = room(&house, &bob, json!({})).await;
    let first = ask(&house, &alice, None, top(19, 5)).await.ok();
    say(&house, &alice, &kitchen, "one").await;
    act(&house, &alice, &cellar, "join", json!({})).await;
    act(&house, &alice, &cellar, "leave", json!({})).await;
    let mut asked = encrypted();
    asked["room_subscriptions"] = json!({ &cellar: { "timeline_limit": 1, "required_state": null } });
    let second = next(&house, &alice, &first, &asked).await;
    assert_eq!(rooms(&second), [&cellar[..]]);
    let third = next(&house, &alice, &second, &top(19, 5)).await;
    assert_eq!(bodies(&third["rooms"][&kitchen]), ["one"]);
    house.stop().await;
}

#[tokio::test]
async fn a_direct_chat_is_told_as_one_though_no_window_showed_it_when_it_became_one() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let kitchen = room(&house, &alice, json!({})).await;
    let first = ask(&house, &alice, None, top(19, 5)).await.ok();
    assert_eq!(first["rooms"][&kitchen].get("is_dm"), None);
    let path = format!("/user/{}/account_data/m.direct", escaped(&alice.id));
    house.put(&path, &alice, json!({ "@bob:here.test": [kitchen] })).await.ok();
    let second = next(&house, &alice, &first, &encrypted()).await;
    say(&house, &alice, &kitchen, "one").await;
    let third = next(&house, &alice, &second, &top(19, 5)).await;
    assert_eq!(third["rooms"][&kitchen]["is_dm"], true);
    house.stop().await;
}

/// A room that is opened, closed and opened again: only while it is open are members asked for.
#[tokio::test]
async fn a_member_who_changed_while_none_was_asked_for_is_told_again() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let kitchen = room(&house, &alice, json!({})).await;
    act(&house, &bob, &kitchen, "join", json!({})).await;
    let closed = json!({ "lists": { "all": { "ranges": [[0, 19]], "timeline_limit": 5, "required_state": [] } } });
    let mut open = closed.clone();
    open["room_subscriptions"] =
        json!({ &kitchen: { "timeline_limit": 5, "required_state": [["m.room.member", "$LAZY"]] } });
    let first = ask(&house, &alice, None, open.clone()).await.ok();
    say(&house, &bob, &kitchen, "one").await;
    let second = next(&house, &alice, &first, &open).await;
    let path = format!("/rooms/{}/state/m.room.member/{}", escaped(&kitchen), escaped(&bob.id));
    house.put(&path, &bob, json!({ "membership": "join", "displayname": "B" })).await.ok();
    let third = next(&house, &alice, &second, &closed).await;
    assert_eq!(state(&third["rooms"][&kitchen]), [""; 0]);
    say(&house, &bob, &kitchen, "two").await;
    let fourth = next(&house, &alice, &third, &open).await;
    assert!(state(&fourth["rooms"][&kitchen]).contains(&format!("m.room.member {}", bob.id)), "{fourth}");
    house.stop().await;
}

/// A receipt set on one device left the count of the other's room list as it was until the next message came.
#[tokio::test]
async fn what_was_read_elsewhere_is_not_counted_any_more() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let kitchen = room(&house, &alice, json!({})).await;
    act(&house, &bob, &kitchen, "join", json!({})).await;
    let first = ask(&house, &alice, None, top(0, 1)).await.ok();
    say(&house, &bob, &kitchen, "alice?").await;
    let second = next(&house, &alice, &first, &top(0, 1)).await;
    let share = &second["rooms"][&kitchen];
    assert_eq!(share["notification_count"], 1, "{share}");
    let event = share["timeline"][0]["event_id"].as_str().unwrap().to_owned();
    for kind in ["m.read", "m.read.private"] {
        act(&house, &bob, &kitchen, &format!("receipt/{kind}/{}", escaped(&event)), json!({})).await;
    }
    let others = next(&house, &alice, &second, &top(0, 1)).await;
    assert_eq!(rooms(&others), [""; 0], "receipts of others change no count");
    act(&house, &alice, &kitchen, &format!("receipt/m.read.private/{}", escaped(&event)), json!({})).await;
    let read = next(&house, &alice, &second, &top(0, 1)).await;
    let share = &read["rooms"][&kitchen];
    assert_eq!((&share["notification_count"], &share["timeline"]), (&json!(0), &json!([])), "{share}");
    assert_eq!(rooms(&next(&house, &alice, &read, &top(0, 1)).await), [""; 0]);
    // One below the window is told when it comes in, and keeps nobody waiting now.
    room(&house, &alice, json!({})).await;
    let newer = next(&house, &alice, &read, &top(0, 1)).await;
    say(&house, &bob, &kitchen, "again").await;
    let again = next(&house, &alice, &newer, &top(0, 1)).await;
    assert_eq!(again["rooms"][&kitchen]["notification_count"], 1);
}

//! Sliding syncs (MSC4186) as apps use them.

use serde_json::{Value, json};

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

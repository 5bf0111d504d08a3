//! Guests, looking into rooms, and the calls of version 1 of the API.

use serde_json::{Value, json};
use snug::base::{Clock, Random};

use crate::rooms::{create, eventually, initial, q, say, set};
use crate::server::{TestServer, TestUser};

const WORLD: &str = "world_readable";

async fn open_room(house: &TestServer, who: &TestUser, guests: &str) -> String {
    let state = [
        initial("m.room.history_visibility", json!({ "history_visibility": WORLD })),
        initial("m.room.guest_access", json!({ "guest_access": guests })),
    ];
    create(house, who, json!({ "preset": "public_chat", "name": "open", "initial_state": state })).await
}

async fn guest(house: &TestServer) -> TestUser {
    let made = house.request("POST", "/register?kind=guest", None, json!({})).await.ok();
    let text = |key: &str| made[key].as_str().unwrap().to_owned();
    TestUser { id: text("user_id"), token: text("access_token"), device: text("device_id") }
}

#[tokio::test]
async fn guests_look_around_and_are_let_in_where_they_may() {
    let shut = TestServer::start().await;
    shut.request("POST", "/register?kind=guest", None, json!({})).await.refused(403, "M_GUEST_ACCESS_FORBIDDEN");
    shut.stop().await;
    let house =
        TestServer::start_with(|config| (config.apps.guests, config.apps.calls.turn.guests) = (true, false)).await;
    let stranger = guest(&house).await;
    house.get("/voip/turnServer", &stranger).await.refused(403, "M_GUEST_ACCESS_FORBIDDEN");
    house.stop().await;
    let house =
        TestServer::start_with(|config| (config.apps.guests, config.apps.calls.turn.guests) = (true, true)).await;
    let alice = house.register("alice").await;
    let guest = guest(&house).await;
    house.get("/voip/turnServer", &guest).await.ok();
    let (open, closed) = (open_room(&house, &alice, "can_join").await, open_room(&house, &alice, "forbidden").await);
    let private = create(&house, &alice, json!({ "preset": "private_chat" })).await;
    say(&house, &alice, &open, "hello").await;
    assert_eq!(house.get("/account/whoami", &guest).await.ok()["is_guest"], true);
    assert_eq!(house.get("/account/whoami", &alice).await.ok()["is_guest"], false);
    for (method, path) in [
        ("POST", "/createRoom".to_owned()),
        ("POST", "/account/password".to_owned()),
        ("GET", "/joined_rooms".to_owned()),
        ("POST", format!("/rooms/{}/invite", q(&open))),
        ("PUT", format!("/profile/{}/avatar_url", q(&guest.id))),
        ("GET", "/pushrules/".to_owned()),
    ] {
        house.request(method, &path, Some(&guest.token), json!({})).await.refused(403, "M_GUEST_ACCESS_FORBIDDEN");
    }
    house.put(&format!("/profile/{}/displayname", q(&guest.id)), &guest, json!({ "displayname": "Guest" })).await.ok();
    house.get("/publicRooms", &guest).await.ok();
    house.get("/sync?timeout=0", &guest).await.ok();

    // Looking in without being in.
    let snapshot = house.get(&format!("/rooms/{}/initialSync", q(&open)), &guest).await.ok();
    assert!(snapshot.get("membership").is_none() && snapshot["visibility"] == "private");
    let chunk = snapshot["messages"]["chunk"].as_array().unwrap();
    assert_eq!(chunk.last().unwrap()["content"]["body"], "hello");
    assert_eq!(chunk.last().unwrap()["room_id"], open.as_str());
    assert!(snapshot["state"].as_array().unwrap().iter().any(|event| event["type"] == "m.room.name"));
    for path in ["state", "members", "messages?dir=b", "aliases"] {
        house.get(&format!("/rooms/{}/{path}", q(&open)), &guest).await.ok();
        house.get(&format!("/rooms/{}/{path}", q(&private)), &guest).await.refused(403, "M_FORBIDDEN");
    }
    house.get(&format!("/rooms/{}/initialSync", q(&private)), &guest).await.refused(403, "M_FORBIDDEN");
    house.get("/events?timeout=0", &guest).await.refused(400, "M_MISSING_PARAM");
    let from = snapshot["messages"]["end"].as_str().unwrap().to_owned();
    let watched = format!("/events?room_id={}&from={from}&timeout=20000", q(&open));
    let (seen, ()) = tokio::join!(house.get(&watched, &guest), say(&house, &alice, &open, "now"));
    let seen = seen.ok();
    assert_eq!(seen["chunk"][0]["content"]["body"], "now");
    let id = seen["chunk"][0]["event_id"].as_str().unwrap();
    let later = format!("/events?room_id={}&from={}&timeout=0", q(&open), seen["end"].as_str().unwrap());
    assert_eq!(house.get(&later, &guest).await.ok()["chunk"], json!([]));
    assert_eq!(house.get(&format!("/events/{}", q(id)), &alice).await.ok()["content"]["body"], "now");
    house.get(&format!("/events?room_id={}&timeout=0", q(&private)), &guest).await.refused(403, "M_FORBIDDEN");

    // Coming in, and having to leave.
    house.post(&format!("/join/{}", q(&closed)), &guest, json!({})).await.refused(403, "M_GUEST_ACCESS_FORBIDDEN");
    house.post(&format!("/join/{}", q(&private)), &guest, json!({})).await.refused(403, "M_FORBIDDEN");
    let member = format!("/rooms/{}/state/m.room.member/{}", q(&closed), q(&guest.id));
    house.put(&member, &guest, json!({ "membership": "join" })).await.refused(403, "M_GUEST_ACCESS_FORBIDDEN");
    house.post(&format!("/rooms/{}/join", q(&open)), &guest, json!({})).await.ok();
    say(&house, &guest, &open, "I am in").await;
    set(&house, &alice, &open, "m.room.guest_access", json!({ "guest_access": "forbidden" })).await;
    let path = format!("/rooms/{}/state/m.room.member/{}", q(&open), q(&guest.id));
    eventually("the guest is out", async || {
        (house.get(&path, &alice).await.ok()["membership"] == "leave").then_some(())
    })
    .await;

    // The account becomes an ordinary one.
    let name = guest.id[1..].split(':').next().unwrap();
    let auth = json!({ "type": "m.login.dummy" });
    let body = |name: &str, token: &str| json!({ "username": name, "password": "long enough", "auth": auth, "guest_access_token": token });
    house.request("POST", "/register", None, body("other", &guest.token)).await.refused(403, "M_FORBIDDEN");
    house.request("POST", "/register", None, body(name, &alice.token)).await.refused(403, "M_FORBIDDEN");
    let made = house.request("POST", "/register", None, body(name, &guest.token)).await.ok();
    assert_eq!(made["user_id"], guest.id.as_str());
    house.get("/joined_rooms", &guest).await.ok();
    house.request("POST", "/register", None, body(name, &guest.token)).await.refused(403, "M_FORBIDDEN");
    house.stop().await;
}

#[tokio::test]
async fn an_old_bot_reads_its_rooms() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let room = create(&house, &alice, json!({ "preset": "public_chat", "name": "room" })).await;
    create(&house, &alice, json!({ "preset": "private_chat", "invite": [bob.id] })).await;
    house.post(&format!("/join/{}", q(&room)), &bob, json!({})).await.ok();
    let tag = format!("/user/{}/rooms/{}/tags/u.work", q(&bob.id), q(&room));
    house.put(&tag, &bob, json!({ "order": 0.5 })).await.ok();
    say(&house, &alice, &room, "before").await;
    let all = house.get("/initialSync?limit=3", &bob).await.ok();
    let rooms = all["rooms"].as_array().unwrap();
    assert_eq!(rooms.len(), 2);
    let of = |membership: &str| rooms.iter().find(|room| room["membership"] == membership).unwrap();
    let (joined, invited) = (of("join"), of("invite"));
    assert_eq!(joined["messages"]["chunk"].as_array().unwrap().len(), 3);
    assert_eq!(joined["messages"]["chunk"][2]["content"]["body"], "before");
    assert!(joined["account_data"].as_array().unwrap().iter().any(|data| data["type"] == "m.tag"));
    assert_eq!((&invited["inviter"], &invited["invite"]["type"]), (&json!(alice.id), &json!("m.room.member")));
    let ignored = format!("/user/{}/account_data/m.ignored_user_list", q(&bob.id));
    house.put(&ignored, &bob, json!({ "ignored_users": { &alice.id: {} } })).await.ok();
    assert_eq!(house.get("/initialSync", &bob).await.ok()["rooms"].as_array().unwrap().len(), 1, "a hidden invite");
    house.put(&ignored, &bob, json!({ "ignored_users": {} })).await.ok();
    let mut from = house.get("/initialSync", &bob).await.ok()["end"].as_str().unwrap().to_owned();
    let mut heard: Vec<Value> = Vec::new();
    for nth in 0..3 {
        say(&house, &alice, &room, &format!("m{nth}")).await;
        let page = house.get(&format!("/events?from={from}&timeout=20000"), &bob).await.ok();
        from = page["end"].as_str().unwrap().to_owned();
        heard.extend(page["chunk"].as_array().unwrap().iter().map(|event| event["content"]["body"].clone()));
    }
    assert_eq!(heard, ["m0", "m1", "m2"]);
    house.get("/events?from=x&timeout=0", &bob).await.refused(400, "M_INVALID_PARAM");
    house.get("/events/$nothing", &bob).await.refused(404, "M_NOT_FOUND");
    house.stop().await;
}

/// Guests who never came back had their places for ever, so that one day there were none.
#[tokio::test]
async fn who_does_not_come_back_makes_room_for_another_guest() {
    let clock = Clock::simulated(1_700_000_000_000);
    let change = |config: &mut snug::config::Config| {
        config.apps.guests = true;
        config.guests_unused_days = Some(30);
    };
    let house = TestServer::start_at(clock.clone(), Random::seeded(1), change).await;
    let alice = house.register("alice").await;
    let room = open_room(&house, &alice, "can_join").await;
    let (gone, stays) = (guest(&house).await, guest(&house).await);
    for who in [&gone, &stays] {
        house.post(&format!("/rooms/{}/join", q(&room)), who, json!({})).await.ok();
    }
    let delayed = format!("/rooms/{}/send/m.room.message/x?org.matrix.msc4140.delay=1000", q(&room));
    let body = json!({ "msgtype": "m.text", "body": "later" });
    house.put(&delayed, &gone, body).await.refused(403, "M_GUEST_ACCESS_FORBIDDEN");
    for _ in 0..3 {
        clock.advance(std::time::Duration::from_secs(15 * 24 * 3600));
        house.get("/sync?timeout=0", &stays).await.ok();
    }
    eventually("the guest has left", async || {
        let state = house.get(&format!("/rooms/{}/joined_members", q(&room)), &alice).await.ok();
        let joined = state["joined"].as_object().unwrap();
        (joined.contains_key(&stays.id) && !joined.contains_key(&gone.id)).then_some(())
    })
    .await;
    house.get("/account/whoami", &gone).await.refused(401, "M_UNKNOWN_TOKEN");
    house.get("/account/whoami", &stays).await.ok();
    house.get("/account/whoami", &alice).await.ok();
}

//! What the server tells its users, each in a room of their own.

use serde_json::{Value, json};

use crate::rooms::eventually;
use crate::server::{TestServer, TestUser};

/// The one room that somebody is invited to or in, as a first sync shows it.
async fn room_of(house: &TestServer, who: &TestUser, list: &str) -> (String, Value) {
    let synced = house.get("/sync", who).await.ok();
    let rooms = synced["rooms"][list].as_object().unwrap_or_else(|| panic!("nothing in {list}: {synced}"));
    assert_eq!(rooms.len(), 1, "{synced}");
    rooms.iter().map(|(id, room)| (id.clone(), room.clone())).next().unwrap()
}

async fn tell(house: &TestServer, who: &TestUser, text: &str) {
    let user_id: ruma::OwnedUserId = who.id.as_str().try_into().unwrap();
    house.server().notices.tell(&user_id, text).await.unwrap();
}

#[tokio::test]
async fn each_user_has_one_room_of_notices() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    tell(&house, &alice, "The first").await;
    let (room, invite) = room_of(&house, &alice, "invite").await;
    let stripped = invite["invite_state"]["events"].as_array().unwrap();
    assert!(stripped.iter().any(|event| event["content"]["name"] == "Server notices"), "{invite}");
    let tags = house.get(&format!("/user/{}/rooms/{room}/tags", alice.id), &alice).await.ok();
    assert_eq!(tags, json!({ "tags": { "m.server_notice": {} } }));

    let code = "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM";
    house.post(&format!("/rooms/{room}/leave"), &alice, json!({})).await.refused(403, code);
    let path = format!("/rooms/{room}/state/m.room.member/{}", alice.id);
    house.put(&path, &alice, json!({ "membership": "leave" })).await.refused(403, code);

    house.post(&format!("/rooms/{room}/join"), &alice, json!({})).await.ok();
    let messages = async || {
        let page = house.get(&format!("/rooms/{room}/messages?dir=b&limit=50"), &alice).await.ok();
        let bodies = page["chunk"].as_array().unwrap().iter().filter(|event| event["type"] == "m.room.message");
        bodies.map(|event| (event["sender"].clone(), event["content"]["body"].clone())).collect::<Vec<_>>()
    };
    let from = json!("@notices:localhost");
    assert_eq!(messages().await, [(from.clone(), json!("The first"))]);
    let path = format!("/rooms/{room}/send/m.room.message/1");
    house.put(&path, &alice, json!({ "msgtype": "m.text", "body": "Hm" })).await.refused(403, "M_FORBIDDEN");

    // Who left it is invited again, to the same room.
    house.post(&format!("/rooms/{room}/leave"), &alice, json!({})).await.ok();
    tell(&house, &alice, "The second").await;
    assert_eq!(room_of(&house, &alice, "invite").await.0, room);
    house.post(&format!("/rooms/{room}/join"), &alice, json!({})).await.ok();
    tell(&house, &alice, "The third").await;
    let told = messages().await;
    assert_eq!((told.len(), &told[0].1), (3, &json!("The third")));
}

#[tokio::test]
async fn nobody_else_is_the_account_of_notices() {
    let house = TestServer::start_with(|config| config.notices.user = "house".to_owned()).await;
    let body = json!({ "username": "house", "password": "eight or more", "auth": { "type": "m.login.dummy" } });
    house.request("POST", "/register", None, body).await.refused(400, "M_USER_IN_USE");
    let available = house.request("GET", "/register/available?username=House", None, Value::Null).await;
    available.refused(400, "M_USER_IN_USE");
    house.stop().await;

    // A person has it since before the setting: the notices do not speak in their name.
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    house.register("house").await;
    let mut down = house.down().await;
    down.change(|config| config.notices.user = "house".to_owned());
    let house = down.up().await;
    let user_id: ruma::OwnedUserId = alice.id.as_str().try_into().unwrap();
    let refused = house.server().notices.tell(&user_id, "Hello").await.unwrap_err();
    assert!(refused.to_string().contains("notices.user"), "{refused}");
}

#[tokio::test]
async fn administrators_are_told_and_may_be_joined_at_once() {
    let house = TestServer::start_with(|config| config.notices.join = true).await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    assert_eq!(house.server().notices.tell_administrators("Nobody hears").await, 0);
    let user_id: ruma::OwnedUserId = alice.id.as_str().try_into().unwrap();
    house.server().users.set_admin(&user_id, true).await.unwrap();
    assert_eq!(house.server().notices.tell_administrators("A report").await, 1);
    let (_, room) = room_of(&house, &alice, "join").await;
    let timeline = room["timeline"]["events"].as_array().unwrap();
    assert_eq!(timeline.last().unwrap()["content"]["body"], "A report");
    // Who takes no invites is told all the same.
    let rules = json!({ "default_action": "block" });
    house.put(&format!("/user/{}/account_data/m.invite_permission_config", bob.id), &bob, rules).await.ok();
    let synced = house.get("/sync", &bob).await.ok();
    assert!(synced["rooms"]["invite"].as_object().is_none_or(|rooms| rooms.is_empty()), "{synced}");
    tell(&house, &bob, "Even so").await;
    room_of(&house, &bob, "join").await;
}

#[tokio::test]
async fn administrators_are_told_of_reports() {
    let house = TestServer::start_with(|config| config.notices.join = true).await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let user_id: ruma::OwnedUserId = alice.id.as_str().try_into().unwrap();
    house.server().users.set_admin(&user_id, true).await.unwrap();
    let path = format!("/users/{}/report", alice.id);
    house.post(&path, &bob, json!({ "reason": "writes too much" })).await.ok();
    let said = eventually("a notice of the report", async || {
        let synced = house.get("/sync", &alice).await.ok();
        let room = synced["rooms"]["join"].as_object()?.values().next()?.clone();
        let last = room["timeline"]["events"].as_array()?.last()?["content"]["body"].as_str()?.to_owned();
        last.contains("reported").then_some(last)
    })
    .await;
    let wanted = format!("{} reported the user {}, saying: writes too much", bob.id, alice.id);
    assert!(said.starts_with(&wanted) && said.contains("`snug reports`"), "{said}");
}

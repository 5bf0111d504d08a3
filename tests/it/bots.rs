//! Accounts with rates of their own, bots, and accounts whose words reach nobody.

use std::path::Path;

use serde_json::{Value, json};

use crate::commands::{good, run};
use crate::rooms::eventually;
use crate::server::{Folder, TestServer, TestUser};

const V1: &str = "/_synapse/admin/v1";

async fn people(house: &TestServer) -> [TestUser; 3] {
    let people = [house.register("alice").await, house.register("bob").await, house.register("carol").await];
    let alice: ruma::OwnedUserId = people[0].id.as_str().try_into().unwrap();
    house.server().users.set_admin(&alice, true).await.unwrap();
    people
}

async fn public_room(house: &TestServer, who: &TestUser) -> String {
    let made = house.post("/createRoom", who, json!({ "preset": "public_chat" })).await.ok();
    made["room_id"].as_str().unwrap().to_owned()
}

/// The texts of the newest messages in a room, and its members' events, as somebody sees them.
async fn seen(house: &TestServer, who: &TestUser, room: &str) -> Vec<String> {
    let page = house.get(&format!("/rooms/{room}/messages?dir=b&limit=100"), who).await.ok();
    let events = page["chunk"].as_array().unwrap().iter();
    events.filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)).collect()
}

/// How many of `many` messages are taken before one is refused for the rate.
async fn burst(house: &TestServer, who: &TestUser, room: &str, name: &str, many: usize) -> usize {
    for number in 0..many {
        let path = format!("/rooms/{room}/send/m.room.message/{name}{number}");
        let sent = house.put(&path, who, json!({ "msgtype": "m.text", "body": "x" })).await;
        if sent.status == 429 {
            return number;
        }
        sent.ok();
    }
    many
}

#[tokio::test]
async fn a_rate_of_ones_own_holds_at_once() {
    let set = snug::http::Rate { per_second: 0.001, burst: 3.0, ..snug::client::rates::SEND };
    let house = TestServer::start_with(|config| {
        config.rate_limits = true;
        config.rates = vec![set];
    })
    .await;
    let [alice, bob, _] = people(&house).await;
    let room = public_room(&house, &alice).await;
    house.post(&format!("/join/{room}"), &bob, json!({})).await.ok();
    assert_eq!(burst(&house, &bob, &room, "a", 10).await, 3);

    let path = format!("{V1}/users/{}/override_ratelimit", bob.id);
    house.get(&path, &bob).await.refused(403, "M_FORBIDDEN");
    assert_eq!(house.get(&path, &alice).await.ok(), json!({}));
    for wrong in [json!({ "messages_per_second": -1 }), json!({ "burst_count": "many" })] {
        house.post(&path, &alice, wrong).await.refused(400, "M_INVALID_PARAM");
    }
    let own = json!({ "messages_per_second": 0, "burst_count": 0 });
    assert_eq!(house.post(&path, &alice, own.clone()).await.ok(), own);
    assert_eq!(burst(&house, &bob, &room, "b", 10).await, 10);
    assert_eq!(house.get(&path, &alice).await.ok(), own);
    house.delete(&path, &alice).await.ok();
    assert_eq!(burst(&house, &bob, &room, "c", 10).await, 0);
    let own = json!({ "messages_per_second": 1000, "burst_count": 8 });
    house.post(&path, &alice, own).await.ok();
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    assert_eq!(burst(&house, &bob, &room, "d", 3).await, 3);

    let server = bob.id.split_once(':').unwrap().1;
    house.get(&format!("{V1}/users/@nobody:{server}/override_ratelimit"), &alice).await.refused(404, "M_NOT_FOUND");
    house.get(&format!("{V1}/users/@a:elsewhere/override_ratelimit"), &alice).await.refused(400, "M_UNKNOWN");
}

#[tokio::test]
async fn a_shadow_banned_account_speaks_to_nobody() {
    let house = TestServer::start().await;
    let [alice, bob, carol] = people(&house).await;
    let room = public_room(&house, &alice).await;
    house.post(&format!("/join/{room}"), &bob, json!({})).await.ok();
    let own_room = public_room(&house, &bob).await;
    let say = async |text: &str| {
        let path = format!("/rooms/{room}/send/m.room.message/{}", text.replace(' ', "-"));
        house.put(&path, &bob, json!({ "msgtype": "m.text", "body": text })).await
    };
    say("hello").await.ok();
    let path = format!("{V1}/users/{}/shadow_ban", bob.id);
    house.post(&path, &bob, json!({})).await.refused(403, "M_FORBIDDEN");
    house.post(&path, &alice, json!({})).await.ok();
    let shown = house.get(&format!("/_synapse/admin/v2/users/{}", bob.id), &alice).await.ok();
    assert_eq!(shown["shadow_banned"], true);

    // What would have been sent has an answer, and what the rules refuse is refused.
    let answer = say("buy this").await.ok();
    assert!(answer["event_id"].as_str().unwrap().starts_with('$'));
    house
        .get(&format!("/rooms/{room}/event/{}", answer["event_id"].as_str().unwrap()), &alice)
        .await
        .refused(404, "M_NOT_FOUND");
    house
        .put(&format!("/rooms/{room}/state/m.room.name"), &bob, json!({ "name": "x" }))
        .await
        .refused(403, "M_FORBIDDEN");
    house.put(&format!("/rooms/{own_room}/state/m.room.topic"), &bob, json!({ "topic": "spam" })).await.ok();
    house.get(&format!("/rooms/{own_room}/state/m.room.topic"), &bob).await.refused(404, "M_NOT_FOUND");
    house.post(&format!("/rooms/{own_room}/invite"), &bob, json!({ "user_id": carol.id })).await.ok();
    house.post("/createRoom", &bob, json!({ "invite": [carol.id] })).await.ok();
    house.put(&format!("/profile/{}/displayname", bob.id), &bob, json!({ "displayname": "SPAM" })).await.ok();
    house.put(&format!("/rooms/{room}/typing/{}", bob.id), &bob, json!({ "typing": true })).await.ok();
    let message = json!({ "messages": { &carol.id: { "*": { "spam": true } } } });
    house.put("/sendToDevice/m.spam/1", &bob, message).await.ok();
    let sync = house.get("/sync", &carol).await.ok();
    assert!(sync["rooms"]["invite"].is_null() && sync["to_device"]["events"] == json!([]), "{sync}");
    assert_eq!(seen(&house, &alice, &room).await, ["hello"]);

    // It joins and leaves, and says nothing by that.
    house.post(&format!("/rooms/{room}/leave"), &bob, json!({ "reason": "spam" })).await.ok();
    let member = house.get(&format!("/rooms/{room}/state/m.room.member/{}", bob.id), &alice).await.ok();
    assert_eq!(member, json!({ "membership": "leave" }));
    house.post(&format!("/join/{room}"), &bob, json!({ "reason": "spam", "spam": 1 })).await.ok();
    let member = house.get(&format!("/rooms/{room}/state/m.room.member/{}", bob.id), &alice).await.ok();
    assert!(member.get("reason").is_none() && member.get("spam").is_none(), "{member}");

    house.delete(&path, &alice).await.ok();
    say("sorry").await.ok();
    assert_eq!(seen(&house, &alice, &room).await, ["sorry", "hello"]);
}

fn token_in(said: &str) -> String {
    said.lines().last().unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_is_made_with_a_token() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let folder = Folder::new();
    let data = house.data_dir().to_str().unwrap().to_owned();
    let snug = |arguments: &[&str], stdin: &str| {
        let all: Vec<_> = arguments.iter().copied().chain(["--data-dir", &data]).collect();
        good(Path::new(folder.path()), &all, stdin)
    };
    let said = snug(&["user", "add", "warden", "--bot"], "");
    assert!(
        said.starts_with("@warden:localhost was made, for a bot. Its access token, which is not shown again:"),
        "{said}"
    );
    let token = token_in(&said);
    let who = house.request("GET", "/account/whoami", Some(&token), Value::Null).await.ok();
    assert_eq!(who, json!({ "user_id": "@warden:localhost", "device_id": "BOT", "is_guest": false }));
    assert_eq!(snug(&["user", "limit", "warden"], ""), "No rate limits @warden:localhost.\n");
    let listed = snug(&["user", "list"], "");
    assert!(listed.lines().any(|line| line.starts_with("@warden:localhost") && line.contains(" bot ")), "{listed}");

    let other = token_in(&snug(&["user", "token", "@warden:localhost"], ""));
    house.request("GET", "/account/whoami", Some(&token), Value::Null).await.refused(401, "M_UNKNOWN_TOKEN");
    house.request("GET", "/account/whoami", Some(&other), Value::Null).await.ok();
    let all = ["user", "token", "alice", "--data-dir", &data];
    let refused = String::from_utf8_lossy(&run(folder.path(), &all, "").stderr).into_owned();
    assert!(refused.contains("@alice:localhost is not a bot's account"), "{refused}");

    assert_eq!(snug(&["user", "limit", "alice"], ""), "@alice:localhost has the rates that everybody has.\n");
    let said = snug(&["user", "limit", "alice", "--messages-per-second", "2", "--burst", "5"], "");
    assert_eq!(said, "@alice:localhost may send 2 events a second, and 5 at once.\n");
    assert_eq!(snug(&["user", "limit", "alice", "--none"], ""), "No rate limits @alice:localhost.\n");
    assert_eq!(
        snug(&["user", "limit", "alice", "--default"], ""),
        "@alice:localhost has the rates that everybody has.\n"
    );
    house.get("/account/whoami", &alice).await.ok();
}

/// Who keeps the films of the family could have more room only when everybody had.
#[tokio::test(flavor = "multi_thread")]
async fn an_account_may_have_a_quota_of_its_own() {
    let house = TestServer::start_with(|config| config.account_upload_bytes_max = Some(1500)).await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let upload = async |house: &TestServer, who: &TestUser, bytes: usize| {
        let bearer = format!("Bearer {}", who.token);
        house.send("POST", "/_matrix/media/v3/upload", &[("authorization", &bearer)], vec![0; bytes]).await
    };
    upload(&house, &alice, 1024).await.ok();
    let folder = Folder::new();
    let data = house.data_dir().to_str().unwrap().to_owned();
    let snug = |arguments: &[&str]| {
        let all: Vec<_> = ["user", "quota"].iter().chain(arguments).copied().chain(["--data-dir", &data]).collect();
        let done = run(Path::new(folder.path()), &all, "");
        let said = if done.status.success() { done.stdout } else { done.stderr };
        String::from_utf8_lossy(&said).into_owned()
    };
    let files = "The files of @alice:localhost take 1.0 KiB";
    assert_eq!(snug(&["alice"]), format!("{files}, and may take 1.5 KiB, which is the usual.\n"));
    upload(&house, &alice, 500).await.refused(403, "M_RESOURCE_LIMIT_EXCEEDED");
    assert_eq!(
        snug(&["alice", "2", "KiB"]),
        format!("{files}, and may take 2.0 KiB, which was set for this account; the usual is 1.5 KiB.\n")
    );
    // At once, for this account alone, and after a restart.
    upload(&house, &bob, 1501).await.refused(403, "M_RESOURCE_LIMIT_EXCEEDED");
    let refused = upload(&house, &alice, 1025).await.refused(403, "M_RESOURCE_LIMIT_EXCEEDED");
    assert!(refused["error"].as_str().unwrap().contains("2.0 KiB your account may keep"), "{refused}");
    let house = house.restart().await;
    upload(&house, &alice, 500).await.ok();
    assert_eq!(
        snug(&["alice", "unlimited"]),
        "The files of @alice:localhost take 1.5 KiB, and may take what there is room for.\n"
    );
    upload(&house, &alice, 9000).await.ok();
    let said = snug(&["alice", "default"]);
    assert!(
        said.contains("take 10.3 KiB, and may take 1.5 KiB, which is the usual.\nNothing more can be uploaded"),
        "{said}"
    );
    upload(&house, &alice, 1).await.refused(403, "M_RESOURCE_LIMIT_EXCEEDED");
    for (wrong, why) in [
        (&["alice", "much"][..], "\"much\" is not a size such as \"2 GiB\""),
        (&["alice", "2", "GB"], "\"2 GB\" is not a size"),
        (&["nobody", "2 GiB"], "nobody: no such account"),
    ] {
        let said = snug(wrong);
        assert!(said.contains(why), "{said}");
    }
    // Files are counted as long as they are there, and what was set goes with the account.
    let id: &ruma::UserId = alice.id.as_str().try_into().unwrap();
    house.server().users.set_quota(id, Some(7)).await.unwrap();
    house.server().users.close(id, true).await.unwrap();
    assert_eq!(house.server().users.account(id).await.unwrap().unwrap().quota, None);
    assert!(house.server().users.set_quota(id, Some(7)).await.is_err());
}

/// The rooms of somebody in the next sync that has this many, waiting for it.
async fn rooms_of(house: &TestServer, who: &TestUser, many: usize) -> Vec<String> {
    eventually(&format!("{} is in {many} rooms", who.id), async || {
        let joined = house.get("/joined_rooms", who).await.ok();
        let joined: Vec<String> = serde_json::from_value(joined["joined_rooms"].clone()).unwrap();
        (joined.len() >= many).then_some(joined)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn new_people_join_the_rooms_that_are_named() {
    let house = TestServer::start_with(|config| {
        config.rooms.auto_join = vec!["#welcome:localhost".try_into().unwrap()];
    })
    .await;
    let alice = house.register("alice").await;
    let welcome = rooms_of(&house, &alice, 1).await;
    let named = house.get("/directory/room/%23welcome:localhost", &alice).await.ok();
    assert_eq!(named["room_id"], welcome[0]);
    let bob = house.register("bob").await;
    assert_eq!(rooms_of(&house, &bob, 1).await, welcome);
    // A room that was closed meanwhile: an administrator who is in it invites.
    let id: ruma::OwnedUserId = alice.id.as_str().try_into().unwrap();
    house.server().users.set_admin(&id, true).await.unwrap();
    let rule = format!("/rooms/{}/state/m.room.join_rules", welcome[0]);
    house.put(&rule, &alice, json!({ "join_rule": "invite" })).await.ok();
    let carol = house.register("carol").await;
    assert_eq!(rooms_of(&house, &carol, 1).await, welcome);
}

#[tokio::test(flavor = "multi_thread")]
async fn invites_are_accepted_for_people_here() {
    let pair = crate::server::Pair::start_with(|config| {
        config.rooms.auto_accept_invites = snug::room::AutoAccept::Direct;
        config.rooms.auto_accept_only_local = false;
    })
    .await;
    let (alice, bob) = (pair.one.register("alice").await, pair.two.register("bob").await);
    let direct = json!({ "preset": "trusted_private_chat", "is_direct": true, "invite": [&bob.id] });
    let room = pair.one.post("/createRoom", &alice, direct).await.ok()["room_id"].as_str().unwrap().to_owned();
    assert_eq!(rooms_of(&pair.two, &bob, 1).await, [room.clone()]);
    let noted = eventually("the chat is noted as a direct one", async || {
        let read = pair.two.get(&format!("/user/{}/account_data/m.direct", bob.id), &bob).await;
        (read.status == 200).then(|| read.ok())
    })
    .await;
    assert_eq!(noted, json!({ &alice.id: [room] }));
    // One to a room that is no direct chat waits.
    pair.one.post("/createRoom", &alice, json!({ "invite": [&bob.id] })).await.ok();
    let sync = pair.two.get("/sync", &bob).await.ok();
    assert_eq!(sync["rooms"]["invite"].as_object().map(serde_json::Map::len), Some(1), "{sync}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operator_says_who_may() {
    let pair = crate::server::Pair::start_with(|config| {
        config.policies.create_rooms = snug::room::Who::Users(vec!["@alice:*".to_owned()]);
        config.policies.invited_from_outside = snug::room::Who::Administrators;
    })
    .await;
    let (alice, bob) = (pair.one.register("alice").await, pair.two.register("bob").await);
    let refused = pair.two.post("/createRoom", &bob, json!({})).await.refused(403, "M_FORBIDDEN");
    assert_eq!(refused["error"], "This server does not let you create rooms; its administrators can say who may");
    let room = public_room(&pair.one, &alice).await;
    let invite = format!("/rooms/{room}/invite");
    pair.one.post(&invite, &alice, json!({ "user_id": bob.id })).await.refused(403, "M_FORBIDDEN");
    let id: ruma::OwnedUserId = bob.id.as_str().try_into().unwrap();
    pair.two.server().users.set_admin(&id, true).await.unwrap();
    pair.one.post(&invite, &alice, json!({ "user_id": bob.id })).await.ok();
    pair.two.post("/createRoom", &bob, json!({})).await.ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_has_what_somebody_said_redacted() {
    let house = TestServer::start().await;
    let [alice, bob, _] = people(&house).await;
    let room = public_room(&house, &alice).await;
    house.post(&format!("/join/{room}"), &bob, json!({})).await.ok();
    assert_eq!(burst(&house, &bob, &room, "a", 25).await, 25);
    let path = format!("{V1}/user/{}/redact", bob.id);
    house.post(&path, &bob, json!({ "rooms": [] })).await.refused(403, "M_FORBIDDEN");
    house.post(&path, &alice, json!({ "rooms": [], "limit": -1 })).await.refused(400, "M_UNKNOWN");
    let asked = house.post(&path, &alice, json!({ "rooms": [], "reason": "spam" })).await.ok();
    let status = format!("{V1}/user/redact_status/{}", asked["redact_id"].as_str().unwrap());
    let done = eventually("all is redacted", async || {
        let said = house.get(&status, &alice).await.ok();
        assert!(said["status"] == "complete" || said["status"] == "active", "{said}");
        (said["status"] == "complete").then_some(said)
    })
    .await;
    assert_eq!(done["failed_redactions"], json!({}));
    assert_eq!(seen(&house, &alice, &room).await, [] as [&str; 0]);
    house.get(&format!("{V1}/user/redact_status/none"), &alice).await.refused(404, "M_NOT_FOUND");
}

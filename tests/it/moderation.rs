//! Accounts that are locked or suspended, and what administrators see of others.

use serde_json::{Value, json};

use crate::server::{TestServer, TestUser};

const LOCK: &str = "/_matrix/client/v1/admin/lock/";
const SUSPEND: &str = "/_matrix/client/v1/admin/suspend/";
const UNSTABLE: &str = "/_matrix/client/unstable/uk.timedout.msc4323/admin/suspend/";

/// An administrator and two others.
async fn people(house: &TestServer) -> [TestUser; 3] {
    let people = [house.register("alice").await, house.register("bob").await, house.register("carol").await];
    let alice: ruma::OwnedUserId = people[0].id.as_str().try_into().unwrap();
    house.server().users.set_admin(&alice, true).await.unwrap();
    people
}

async fn room(house: &TestServer, who: &TestUser) -> String {
    let made = house.post("/createRoom", who, json!({ "preset": "public_chat" })).await.ok();
    made["room_id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_locked_account_may_only_log_out() {
    let house = TestServer::start().await;
    let [alice, bob, _] = people(&house).await;
    let path = format!("{LOCK}{}", bob.id);
    assert_eq!(house.get(&path, &alice).await.ok(), json!({ "locked": false }));
    let since = house.get("/sync", &bob).await.ok()["next_batch"].as_str().unwrap().to_owned();
    // A poll that waits hears of it at once.
    let poll_path = format!("/sync?timeout=60000&since={since}");
    let poll = house.get(&poll_path, &bob);
    let lock = async {
        tokio::task::yield_now().await;
        house.put(&path, &alice, json!({ "locked": true })).await.ok()
    };
    let (poll, locked) = tokio::join!(poll, lock);
    assert_eq!(locked, json!({ "locked": true }));
    let answer = poll.refused(401, "M_USER_LOCKED");
    assert_eq!(answer["soft_logout"], true);
    assert_eq!(house.get(&path, &alice).await.ok(), json!({ "locked": true }));
    for request in ["/sync", "/capabilities", "/account/whoami", "/joined_rooms"] {
        house.get(request, &bob).await.refused(401, "M_USER_LOCKED");
    }
    let body = json!({ "type": "m.login.password", "user": "bob", "password": "secret bob" });
    house.request("POST", "/login", None, body.clone()).await.refused(401, "M_USER_LOCKED");
    house.put(&path, &alice, json!({ "locked": false })).await.ok();
    house.get("/account/whoami", &bob).await.ok();
    house.put(&path, &alice, json!({ "locked": true })).await.ok();
    house.post("/logout", &bob, json!({})).await.ok();
    house.get("/account/whoami", &bob).await.refused(401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn a_suspended_account_may_read_and_leave() {
    let house = TestServer::start().await;
    let [alice, bob, carol] = people(&house).await;
    let (own, other, third) = (room(&house, &bob).await, room(&house, &alice).await, room(&house, &carol).await);
    house.post(&format!("/join/{other}"), &bob, json!({})).await.ok();
    let text = json!({ "msgtype": "m.text", "body": "Hm" });
    let send = |who, room: &str, txn: &str| {
        let (house, path, text) = (&house, format!("/rooms/{room}/send/m.room.message/{txn}"), text.clone());
        async move { house.put(&path, who, text).await }
    };
    let event = |sent: Value| sent["event_id"].as_str().unwrap().to_owned();
    let (mine, hers) = (event(send(&bob, &other, "1").await.ok()), event(send(&alice, &other, "1").await.ok()));
    let also_mine = event(send(&bob, &other, "2").await.ok());
    house.put(&format!("{UNSTABLE}{}", bob.id), &alice, json!({ "suspended": true })).await.ok();
    assert_eq!(house.get(&format!("{SUSPEND}{}", bob.id), &alice).await.ok(), json!({ "suspended": true }));

    let code = "M_USER_SUSPENDED";
    send(&bob, &other, "3").await.refused(403, code);
    house.put(&format!("/rooms/{own}/state/m.room.name/"), &bob, json!({ "name": "x" })).await.refused(403, code);
    house.post(&format!("/join/{third}"), &bob, json!({})).await.refused(403, code);
    house.post(&format!("/rooms/{third}/join"), &bob, json!({})).await.refused(403, code);
    house.post(&format!("/knock/{third}"), &bob, json!({})).await.refused(403, code);
    let invite = json!({ "user_id": carol.id });
    house.post(&format!("/rooms/{own}/invite"), &bob, invite.clone()).await.refused(403, code);
    house.post(&format!("/rooms/{own}/ban"), &bob, invite).await.refused(403, code);
    house.post("/createRoom", &bob, json!({})).await.refused(403, code);
    let name = format!("/profile/{}/displayname", bob.id);
    house.put(&name, &bob, json!({ "displayname": "Bobby" })).await.refused(403, code);
    house.delete(&name, &bob).await.refused(403, code);
    let member = format!("/rooms/{third}/state/m.room.member/{}", bob.id);
    house.put(&member, &bob, json!({ "membership": "join" })).await.refused(403, code);
    house.put(&format!("/rooms/{other}/redact/{hers}/4"), &bob, json!({})).await.refused(403, code);
    let redaction = format!("/rooms/{other}/send/m.room.redaction/5");
    house.put(&redaction, &bob, json!({ "redacts": hers })).await.refused(403, code);

    house.get("/sync", &bob).await.ok();
    house.get(&format!("/rooms/{other}/messages?dir=b"), &bob).await.ok();
    house.put(&format!("/rooms/{other}/redact/{mine}/6"), &bob, json!({})).await.ok();
    house.put(&format!("/rooms/{other}/redact/{also_mine}/7"), &bob, json!({})).await.ok();
    house.post(&format!("/rooms/{other}/leave"), &bob, json!({})).await.ok();
    let member = format!("/rooms/{own}/state/m.room.member/{}", bob.id);
    house.put(&member, &bob, json!({ "membership": "leave" })).await.ok();
    let body = json!({ "type": "m.login.password", "user": "bob", "password": "secret bob" });
    house.request("POST", "/login", None, body).await.ok();
    house.put(&format!("{SUSPEND}{}", bob.id), &alice, json!({ "suspended": false })).await.ok();
    house.post(&format!("/join/{third}"), &bob, json!({})).await.ok();
}

#[tokio::test]
async fn only_administrators_moderate_and_not_each_other() {
    let house = TestServer::start().await;
    let [alice, bob, carol] = people(&house).await;
    let carol_id: ruma::OwnedUserId = carol.id.as_str().try_into().unwrap();
    house.server().users.set_admin(&carol_id, true).await.unwrap();
    for (base, field) in [(LOCK, "locked"), (SUSPEND, "suspended")] {
        let ask = |who: &TestUser, of: &str| {
            let (house, path, who) = (&house, format!("{base}{of}"), who.clone());
            async move { house.get(&path, &who).await }
        };
        let set = |who: &TestUser, of: &str| {
            let (house, path, who) = (&house, format!("{base}{of}"), who.clone());
            async move { house.put(&path, &who, json!({ field: true })).await }
        };
        ask(&bob, "@nobody:localhost").await.refused(403, "M_FORBIDDEN");
        set(&bob, &alice.id).await.refused(403, "M_FORBIDDEN");
        ask(&alice, "@nobody:localhost").await.refused(404, "M_NOT_FOUND");
        set(&alice, "@bob:elsewhere.example").await.refused(400, "M_INVALID_PARAM");
        set(&alice, &carol.id).await.refused(403, "M_FORBIDDEN");
        ask(&alice, &carol.id).await.refused(403, "M_FORBIDDEN");
        set(&alice, &alice.id).await.refused(403, "M_FORBIDDEN");
        assert_eq!(ask(&alice, &alice.id).await.ok(), json!({ field: false }));
    }
    let capabilities = async |who: &TestUser| house.get("/capabilities", who).await.ok()["capabilities"].clone();
    assert_eq!(capabilities(&alice).await["m.account_moderation"], json!({ "lock": true, "suspend": true }));
    assert!(capabilities(&bob).await.get("m.account_moderation").is_none());
}

#[tokio::test]
async fn administrators_and_oneself_see_where_devices_were() {
    let house = TestServer::start().await;
    let [alice, bob, carol] = people(&house).await;
    let path = format!("/admin/whois/{}", bob.id);
    for who in [&alice, &bob] {
        let seen = house.get(&path, who).await.ok();
        assert_eq!(seen["user_id"], json!(bob.id));
        let connection = &seen["devices"][&bob.device]["sessions"][0]["connections"][0];
        assert_eq!(connection["ip"], "127.0.0.1");
        assert!(connection["last_seen"].as_u64().unwrap() > 0);
    }
    house.get(&path, &carol).await.refused(403, "M_FORBIDDEN");
    house.get("/admin/whois/@nobody:localhost", &alice).await.refused(404, "M_NOT_FOUND");
}

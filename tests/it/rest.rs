//! Smaller things that apps ask for: reports, invite permissions, account data that goes, redactions and what follows from
//! them, other users' profiles in a sync.

use serde_json::{Value, json};

use crate::rooms::{create, eventually, q};
use crate::server::{Pair, TestServer, TestUser};

async fn sync(house: &TestServer, who: &TestUser, query: &str) -> Value {
    house.get(&format!("/sync?{query}"), who).await.ok()
}

async fn since(house: &TestServer, who: &TestUser, before: &Value, more: &str) -> Value {
    sync(house, who, &format!("since={}{more}", before["next_batch"].as_str().unwrap())).await
}

async fn say(house: &TestServer, who: &TestUser, room: &str, txn: &str, content: Value) -> String {
    let sent = house.put(&format!("/rooms/{}/send/m.room.message/{txn}", q(room)), who, content).await.ok();
    sent["event_id"].as_str().unwrap().to_owned()
}

async fn text(house: &TestServer, who: &TestUser, room: &str, text: &str) -> String {
    say(house, who, room, &q(text), json!({ "msgtype": "m.text", "body": text })).await
}

async fn event(house: &TestServer, who: &TestUser, room: &str, id: &str) -> Value {
    house.get(&format!("/rooms/{}/event/{}", q(room), q(id)), who).await.ok()
}

#[tokio::test]
async fn what_is_reported_waits_for_the_administrator() {
    let house = TestServer::start().await;
    let (alice, bob, eve) = (house.register("alice").await, house.register("bob").await, house.register("eve").await);
    let room = create(&house, &alice, json!({ "invite": [&bob.id] })).await;
    house.post(&format!("/join/{}", q(&room)), &bob, json!({})).await.ok();
    let spam = text(&house, &alice, &room, "buy this").await;
    let of_event = format!("/rooms/{}/report/{}", q(&room), q(&spam));
    house.post(&of_event, &bob, json!({ "reason": "spam", "score": -100 })).await.ok();
    house.post(&of_event, &bob, json!({})).await.ok();
    house.post(&of_event, &bob, json!({ "reason": 5 })).await.refused(400, "M_BAD_JSON");
    house.post(&of_event, &eve, json!({ "reason": "curious" })).await.refused(404, "M_NOT_FOUND");
    house.post(&format!("/rooms/{}/report/%24no", q(&room)), &bob, json!({})).await.refused(404, "M_NOT_FOUND");
    let of_room = format!("/rooms/{}/report", q(&room));
    house.post(&of_room, &eve, json!({ "reason": "heard bad things" })).await.ok();
    house.post(&of_room, &eve, json!({})).await.refused(400, "M_BAD_JSON");
    house.post("/rooms/!no:x/report", &eve, json!({ "reason": "" })).await.refused(404, "M_NOT_FOUND");
    let of_user = |id: &str| format!("/users/{}/report", q(id));
    house.post(&of_user(&alice.id), &eve, json!({ "reason": "rude" })).await.ok();
    house.post(&of_user("@nobody:elsewhere.example"), &eve, json!({ "reason": "rude" })).await.ok();
    house.post(&of_user(&alice.id), &eve, json!({ "reason": "x".repeat(1_001) })).await.refused(400, "M_BAD_JSON");
    house.stop().await;
}

#[tokio::test]
async fn who_takes_no_invites_gets_none() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let rules = |kind: &str| format!("/user/{}/account_data/{kind}", q(&bob.id));
    let room = create(&house, &alice, json!({})).await;
    let invite = format!("/rooms/{}/invite", q(&room));
    let stable = rules("m.invite_permission_config");
    house.put(&stable, &bob, json!({ "default_action": "block" })).await.ok();
    house.post(&invite, &alice, json!({ "user_id": bob.id })).await.refused(403, "M_INVITE_BLOCKED");
    let state = format!("/rooms/{}/state/m.room.member/{}", q(&room), q(&bob.id));
    house.put(&state, &alice, json!({ "membership": "invite" })).await.refused(403, "M_INVITE_BLOCKED");
    let created = house.post("/createRoom", &alice, json!({ "invite": [bob.id] })).await;
    created.refused(403, "M_INVITE_BLOCKED");
    house.put(&stable, &bob, json!({})).await.ok();
    let finer = rules("org.matrix.msc4155.invite_permission_config");
    house.put(&finer, &bob, json!({ "blocked_users": ["@a*:*"] })).await.ok();
    let code = "ORG.MATRIX.MSC4155.M_INVITE_BLOCKED";
    house.post(&invite, &alice, json!({ "user_id": bob.id })).await.refused(403, code);

    // An invite that is ignored is one for the inviter, and none for the invited user's apps.
    house.put(&finer, &bob, json!({ "ignored_servers": ["*"] })).await.ok();
    house.post(&invite, &alice, json!({ "user_id": bob.id, "reason": "please" })).await.ok();
    assert!(sync(&house, &bob, "").await["rooms"].get("invite").is_none());
    let sliding = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
    let lists = json!({ "lists": { "a": { "ranges": [[0, 9]], "timeline_limit": 1, "required_state": [] } } });
    assert_eq!(house.post(sliding, &bob, lists).await.ok()["rooms"], json!({}));
    house.delete(&format!("/_matrix/client/unstable/org.matrix.msc3391{}", finer), &bob).await.ok();
    assert!(sync(&house, &bob, "").await["rooms"]["invite"][&room].is_object());
    house.stop().await;
}

#[tokio::test]
async fn another_server_is_told_that_its_invite_is_blocked() {
    let pair = Pair::start().await;
    let (anna, bob) = (pair.one.register("anna").await, pair.two.register("bob").await);
    let rules = format!("/user/{}/account_data/m.invite_permission_config", q(&bob.id));
    pair.two.put(&rules, &bob, json!({ "default_action": "block" })).await.ok();
    let room = create(&pair.one, &anna, json!({})).await;
    let invited = pair.one.post(&format!("/rooms/{}/invite", q(&room)), &anna, json!({ "user_id": bob.id })).await;
    invited.refused(403, "M_INVITE_BLOCKED");
    pair.two.put(&rules, &bob, json!({})).await.ok();
    pair.one.post(&format!("/rooms/{}/invite", q(&room)), &anna, json!({ "user_id": bob.id })).await.ok();
    eventually("the invite comes", async || {
        sync(&pair.two, &bob, "").await["rooms"]["invite"][&room].is_object().then_some(())
    })
    .await;
    pair.one.stop().await;
    pair.two.stop().await;
}

#[tokio::test]
async fn account_data_can_be_removed() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let room = create(&house, &alice, json!({})).await;
    let global = format!("/user/{}/account_data/org.x", q(&alice.id));
    let in_room = format!("/user/{}/rooms/{}/account_data/org.y", q(&alice.id), q(&room));
    let gone = |path: &str| format!("/_matrix/client/unstable/org.matrix.msc3391{path}");
    for path in [&global, &in_room] {
        house.delete(&gone(path), &alice).await.ok();
        house.put(path, &alice, json!({ "a": 1 })).await.ok();
    }
    let first = sync(&house, &alice, "").await;
    for path in [&global, &in_room] {
        house.delete(&gone(path), &alice).await.ok();
        house.get(path, &alice).await.refused(404, "M_NOT_FOUND");
    }
    let next = since(&house, &alice, &first, "").await;
    assert_eq!(next["account_data"]["events"], json!([{ "type": "org.x", "content": {} }]));
    let of_room = &next["rooms"]["join"][&room]["account_data"]["events"];
    assert_eq!(of_room, &json!([{ "type": "org.y", "content": {} }]));
    assert!(!sync(&house, &alice, "").await.to_string().contains("org.x"), "who knows nothing hears nothing of it");
    // To set an empty object is the same, and apps wait until a sync shows what they set, also where there was nothing.
    for path in [&global, &in_room] {
        house.put(path, &alice, json!({ "a": 2 })).await.ok();
        let set = sync(&house, &alice, "").await;
        for _ in 0..2 {
            house.put(path, &alice, json!({})).await.ok();
            house.get(path, &alice).await.refused(404, "M_NOT_FOUND");
        }
        let next = since(&house, &alice, &set, "").await.to_string();
        assert_eq!(next.matches("org.x").count() + next.matches("org.y").count(), 1, "{next}");
    }
    for kind in ["m.fully_read", "m.push_rules"] {
        let path = gone(&format!("/user/{}/account_data/{kind}", q(&alice.id)));
        house.delete(&path, &alice).await.refused(405, "M_BAD_JSON");
    }

    // What was set for a device goes with it, and the others hear of that.
    let login = json!({ "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "alice" },
        "password": "secret alice", "device_id": "PHONE" });
    let phone = house.request("POST", "/_matrix/client/v3/login", None, login).await.ok();
    let kind = "m.local_notification_settings.PHONE";
    house
        .put(&format!("/user/{}/account_data/{kind}", q(&alice.id)), &alice, json!({ "is_silenced": true }))
        .await
        .ok();
    let first = sync(&house, &alice, "").await;
    house.request("POST", "/_matrix/client/v3/logout", phone["access_token"].as_str(), json!({})).await.ok();
    let next = since(&house, &alice, &first, "").await;
    assert_eq!(next["account_data"]["events"], json!([{ "type": kind, "content": {} }]));
    house.stop().await;
}

#[tokio::test]
async fn the_read_marker_goes_back_when_it_is_told_to() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let room = create(&house, &alice, json!({})).await;
    let (old, new) = (text(&house, &alice, &room, "old").await, text(&house, &alice, &room, "new").await);
    let markers = format!("/rooms/{}/read_markers", q(&room));
    let path = format!("/user/{}/rooms/{}/account_data/m.fully_read", q(&alice.id), q(&room));
    let at = async || house.get(&path, &alice).await.ok()["event_id"].as_str().unwrap().to_owned();
    house.post(&markers, &alice, json!({ "m.fully_read": new, "m.read": new })).await.ok();
    house.post(&markers, &alice, json!({ "m.fully_read": old })).await.ok();
    assert_eq!(at().await, new);
    house.post(&markers, &alice, json!({ "m.fully_read": old, "com.beeper.allow_backward": true })).await.ok();
    assert_eq!(at().await, old);
    let receipt = |kind: &str| format!("/rooms/{}/receipt/{kind}/{}", q(&room), q(&new));
    house.post(&receipt("m.fully_read"), &alice, json!({ "allow_backward": true })).await.ok();
    assert_eq!(at().await, new);
    let refused = house.post(&receipt("m.read"), &alice, json!({ "allow_backward": true })).await;
    refused.refused(400, "M_INVALID_PARAM");
    house.stop().await;
}

#[tokio::test]
async fn a_redaction_takes_what_relates_to_the_event_along_and_no_longer_counts() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let room = create(&house, &alice, json!({ "invite": [&bob.id] })).await;
    house.post(&format!("/join/{}", q(&room)), &bob, json!({})).await.ok();
    let first = text(&house, &alice, &room, "first").await;
    let relates =
        |rel: &str| json!({ "body": rel, "m.relates_to": { "rel_type": rel, "event_id": first, "key": "x" } });
    let mine = say(&house, &alice, &room, "a", relates("m.reference")).await;
    let named = say(&house, &alice, &room, "b", relates("org.named")).await;
    let other = say(&house, &alice, &room, "c", relates("org.other")).await;
    let theirs = say(&house, &bob, &room, "d", relates("m.reference")).await;
    let second = text(&house, &alice, &room, "second").await;
    let unread =
        async |who: &TestUser| sync(&house, who, "").await["rooms"]["join"][&room]["unread_notifications"].clone();
    assert_eq!(unread(&bob).await["notification_count"], 1, "their own event was read up to");

    // As a message whose content names the event (MSC4169), whatever the room's version.
    let path = format!("/rooms/{}/send/m.room.redaction/r1", q(&room));
    let by = house.put(&path, &alice, json!({ "redacts": second, "reason": "no" })).await.ok()["event_id"].clone();
    let shown = event(&house, &bob, &room, &second).await;
    assert_eq!(shown["unsigned"]["redacted_because"]["event_id"], by);
    assert_eq!(unread(&bob).await["notification_count"], 0);
    let all = sync(&house, &bob, "").await;
    assert_eq!(all["rooms"]["join"][&room]["org.matrix.msc2654.unread_count"], 0);
    text(&house, &alice, &room, "third").await;
    assert_eq!(unread(&bob).await["notification_count"], 1);

    let path = format!("/rooms/{}/redact/{}/r2", q(&room), q(&first));
    let with = json!({ "org.matrix.msc3912.with_relations": ["m.reference", "org.named"] });
    house.put(&path, &bob, with.clone()).await.refused(403, "M_FORBIDDEN");
    house.put(&path, &alice, with).await.ok();
    for (id, is_gone) in [(&first, true), (&mine, true), (&named, true), (&other, false), (&theirs, true)] {
        let content = event(&house, &alice, &room, id).await["content"].clone();
        assert_eq!(content.get("body").is_none(), is_gone, "{content}");
    }
    house.stop().await;
}

#[tokio::test]
async fn state_is_told_as_of_the_end_of_a_timeline() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let room = create(&house, &alice, json!({ "preset": "public_chat" })).await;
    let topic = async |topic: &str| {
        let path = format!("/rooms/{}/state/m.room.topic", q(&room));
        house.put(&path, &alice, json!({ "topic": topic })).await.ok();
    };
    let topics = |list: &Value| -> Vec<String> {
        let topics = list["events"].as_array().unwrap().iter().filter_map(|event| event["content"]["topic"].as_str());
        topics.map(str::to_owned).collect()
    };
    topic("one").await;
    for (query, name) in [
        ("use_state_after=true", "state_after"),
        ("org.matrix.msc4222.use_state_after=true", "org.matrix.msc4222.state_after"),
    ] {
        let first = sync(&house, &alice, query).await;
        let told = &first["rooms"]["join"][&room];
        assert_eq!((topics(&told[name]).len(), told.get("state")), (1, None), "{told}");
        topic(&format!("{name} a")).await;
        topic(&format!("{name} b")).await;
        let next = since(&house, &alice, &first, &format!("&{query}")).await;
        let told = &next["rooms"]["join"][&room];
        assert_eq!(topics(&told["timeline"]).len(), 2, "{told}");
        assert_eq!((topics(&told[name]), told.get("state")), (vec![format!("{name} b")], None));
        // In a gap.
        for number in 0..12 {
            text(&house, &alice, &room, &format!("{name} {number}")).await;
        }
        topic(&format!("{name} c")).await;
        let last = since(&house, &alice, &next, &format!("&{query}")).await;
        let told = &last["rooms"]["join"][&room];
        assert_eq!((&told["timeline"]["limited"], topics(&told[name])), (&json!(true), vec![format!("{name} c")]));
        let quiet = since(&house, &alice, &last, &format!("&{query}")).await;
        assert!(quiet["rooms"]["join"].get(&room).is_none());
        // A join brings all of it, a leave what it was at the end.
        let before = sync(&house, &bob, query).await;
        house.post(&format!("/join/{}", q(&room)), &bob, json!({})).await.ok();
        let joined = since(&house, &bob, &before, &format!("&{query}")).await;
        let told = &joined["rooms"]["join"][&room];
        assert_eq!(topics(&told[name]), vec![format!("{name} c")]);
        house.post(&format!("/rooms/{}/leave", q(&room)), &bob, json!({})).await.ok();
        topic("not for those outside").await;
        let left = since(&house, &bob, &joined, &format!("&{query}")).await;
        let told = &left["rooms"]["leave"][&room];
        let own = told[name]["events"].as_array().unwrap().iter().find(|event| event["state_key"] == bob.id.as_str());
        assert_eq!(own.unwrap()["content"]["membership"], "leave", "{told}");
        assert!(topics(&told[name]).is_empty() && told.get("state").is_none());
    }
    let plain = sync(&house, &alice, "use_state_after=false").await;
    assert!(plain["rooms"]["join"][&room].get("state").is_some());
    house.stop().await;
}

#[tokio::test]
async fn profiles_of_others_come_with_a_sync_that_asks_for_them() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let room = create(&house, &alice, json!({ "preset": "public_chat" })).await;
    house.post(&format!("/join/{}", q(&room)), &bob, json!({})).await.ok();
    let filter = |name: &str| format!("&filter={}", q(&json!({ name: { "ids": ["m.status"] } }).to_string()));
    let set = async |who: &TestUser, field: &str, value: Value| {
        house.put(&format!("/profile/{}/{field}", q(&who.id)), who, json!({ field: value })).await.ok();
    };
    let plain = sync(&house, &alice, "").await;
    set(&bob, "m.status", json!({ "text": "out" })).await;
    set(&bob, "m.tz", json!("UTC")).await;
    for (asked, name) in
        [("profile_fields", "users"), ("org.matrix.msc4429.profile_fields", "org.matrix.msc4429.users")]
    {
        let told = since(&house, &alice, &plain, &filter(asked)).await;
        let wanted = json!({ &bob.id: { "profile_updates": { "m.status": { "text": "out" } } } });
        assert_eq!(told[name], wanted);
        assert!(since(&house, &alice, &told, &filter(asked)).await.get(name).is_none());
        let all = sync(&house, &alice, &format!("timeout=0{}", filter(asked))).await;
        assert_eq!(all[name], wanted);
    }
    let told = since(&house, &alice, &plain, "").await;
    assert!(told.get("users").is_none() && told.get("org.matrix.msc4429.users").is_none());
    // A long poll is woken.
    let query = format!("since={}&timeout=20000{}", told["next_batch"].as_str().unwrap(), filter("profile_fields"));
    let path = format!("/profile/{}/m.status", q(&bob.id));
    let (told, _) = tokio::join!(sync(&house, &alice, &query), async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        house.delete(&path, &bob).await.ok()
    });
    assert_eq!(told["users"], json!({ &bob.id: { "profile_updates": { "m.status": null } } }));
    house.stop().await;
}

#[tokio::test]
async fn a_new_name_is_shown_where_it_is_wanted() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let rooms = [create(&house, &alice, json!({})).await, create(&house, &alice, json!({})).await];
    let member = |room: &str| format!("/rooms/{}/state/m.room.member/{}", q(room), q(&alice.id));
    let name = async |room: &str| house.get(&member(room), &alice).await.ok()["displayname"].clone();
    house.put(&member(&rooms[1]), &alice, json!({ "membership": "join", "displayname": "Ali", "org.x": 1 })).await.ok();
    let path = |more: &str| format!("/profile/{}/displayname{more}", q(&alice.id));
    house.put(&path("?propagate_to=some"), &alice, json!({ "displayname": "A" })).await.refused(400, "M_INVALID_PARAM");
    house.put(&path("?propagate_to=none"), &alice, json!({ "displayname": "alice" })).await.ok();
    let unchanged = path("?computer.gingershaped.msc4466.propagate_to=unchanged");
    house.put(&unchanged, &alice, json!({ "displayname": "Alice" })).await.ok();
    eventually("the first room has it", async || (name(&rooms[0]).await == "Alice").then_some(())).await;
    assert_eq!(name(&rooms[1]).await, "Ali");
    house.put(&path("?propagate_to=none"), &alice, json!({ "displayname": "Hidden" })).await.ok();
    house.put(&path(""), &alice, json!({ "displayname": "All" })).await.ok();
    for room in &rooms {
        eventually("all rooms have it", async || (name(room).await == "All").then_some(())).await;
    }
    house.stop().await;
}

#[tokio::test]
async fn rooms_that_are_left_are_forgotten_where_the_owner_says_so() {
    let house = TestServer::start_with(|config| config.rooms.forget_left = true).await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let told = house.get("/capabilities", &alice).await.ok()["capabilities"]["m.forget_forced_upon_leave"].clone();
    assert_eq!(told, json!({ "enabled": true }));
    let room = create(&house, &alice, json!({ "preset": "public_chat" })).await;
    house.post(&format!("/join/{}", q(&room)), &bob, json!({})).await.ok();
    let before = sync(&house, &bob, "").await;
    house.post(&format!("/rooms/{}/kick", q(&room)), &alice, json!({ "user_id": bob.id })).await.ok();
    assert!(since(&house, &bob, &before, "").await["rooms"]["leave"][&room].is_object(), "the apps learn of it");
    let left = format!("filter={}", q(&json!({ "room": { "include_leave": true } }).to_string()));
    assert_eq!(sync(&house, &bob, &left).await["rooms"], json!({}));
    house.get(&format!("/rooms/{}/messages?dir=b", q(&room)), &bob).await.refused(403, "M_FORBIDDEN");
    house.stop().await;
}

/// On the server of whoever bans, and on the others.
#[tokio::test]
async fn a_ban_takes_what_the_user_wrote_along() {
    let pair = Pair::start().await;
    let (anna, bad) = (pair.one.register("anna").await, pair.two.register("bad").await);
    let carol = pair.two.register("carol").await;
    let room = create(&pair.one, &anna, json!({ "preset": "public_chat" })).await;
    for who in [&bad, &carol] {
        pair.two.post(&format!("/join/{}?via={}", q(&room), pair.one.name()), who, json!({})).await.ok();
    }
    let spam = text(&pair.two, &bad, &room, "spam").await;
    let path = format!("/rooms/{}/event/{}", q(&room), q(&spam));
    eventually("the text arrives", async || (pair.one.get(&path, &anna).await.status == 200).then_some(())).await;
    let ban = json!({ "user_id": bad.id, "reason": "enough", "org.matrix.msc4293.redact_events": true });
    pair.one.post(&format!("/rooms/{}/ban", q(&room)), &anna, ban).await.ok();
    for (house, who) in [(&pair.one, &anna), (&pair.two, &carol)] {
        let shown = eventually("the text goes", async || {
            let shown = event(house, who, &room, &spam).await;
            (shown["content"] == json!({})).then_some(shown)
        });
        let because = shown.await["unsigned"]["redacted_because"].clone();
        assert_eq!((&because["type"], &because["content"]["reason"]), (&json!("m.room.member"), &json!("enough")));
    }
    pair.one.stop().await;
    pair.two.stop().await;
}

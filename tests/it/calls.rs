//! Presence, delayed and sticky events, and what calls need of a server.

use std::time::Duration;

use serde_json::{Value, json};
use snug::base::{Clock, Random};
use snug::client::{LiveKit, PresenceMode, TurnLogin};

use crate::rooms::{create, eventually, q};
use crate::server::{Pair, TestServer, TestUser};

const DELAYED: &str = "/_matrix/client/unstable/org.matrix.msc4140";

async fn shared_room(house: &TestServer, alice: &TestUser, bob: &TestUser) -> String {
    let room = create(house, alice, json!({ "preset": "public_chat" })).await;
    house.post(&format!("/join/{}", q(&room)), bob, json!({})).await.ok();
    room
}

async fn sync(house: &TestServer, who: &TestUser, query: &str) -> Value {
    house.get(&format!("/sync?{query}"), who).await.ok()
}

fn presence<'a>(answer: &'a Value, of: &TestUser) -> Option<&'a Value> {
    let events = answer["presence"]["events"].as_array()?;
    events.iter().find(|event| event["sender"] == of.id).map(|event| &event["content"])
}

#[tokio::test]
async fn people_who_share_a_room_see_who_is_there() {
    let house = TestServer::start().await;
    let (alice, bob, eve) = (house.register("alice").await, house.register("bob").await, house.register("eve").await);
    shared_room(&house, &alice, &bob).await;
    let status = |of: &TestUser| format!("/presence/{}/status", q(&of.id));
    assert_eq!(house.get(&status(&bob), &alice).await.ok(), json!({ "presence": "offline" }));
    house.get(&status(&bob), &eve).await.refused(403, "M_FORBIDDEN");
    house.put(&status(&bob), &alice, json!({ "presence": "online" })).await.refused(403, "M_FORBIDDEN");
    house.put(&status(&bob), &bob, json!({ "presence": "asleep" })).await.refused(400, "M_INVALID_PARAM");

    // One's own presence is told in the first sync.
    let first = sync(&house, &alice, "").await;
    assert_eq!(presence(&first, &alice).unwrap()["presence"], "online");
    assert!(presence(&first, &bob).is_none());
    let since = first["next_batch"].as_str().unwrap().to_owned();
    let query = format!("since={since}&timeout=20000");
    let waiting = sync(&house, &alice, &query);
    let setting = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let body = json!({ "presence": "unavailable", "status_msg": "in the garden" });
        house.put(&status(&bob), &bob, body).await.ok();
    };
    let (told, ()) = tokio::join!(waiting, setting);
    let of_bob = presence(&told, &bob).unwrap();
    assert_eq!((&of_bob["presence"], &of_bob["status_msg"]), (&json!("unavailable"), &json!("in the garden")));
    assert!(of_bob.get("currently_active").is_none());
    let since = told["next_batch"].as_str().unwrap();
    let none = json!({ "presence": { "types": [] } }).to_string();
    house
        .put(&status(&bob), &bob, json!({ "presence": "org.matrix.msc3026.busy", "status_msg": "in a call" }))
        .await
        .ok();
    assert!(presence(&sync(&house, &alice, &format!("since={since}&filter={}", q(&none))).await, &bob).is_none());
    let told = sync(&house, &alice, &format!("since={since}")).await;
    assert_eq!(presence(&told, &bob).unwrap()["presence"], "org.matrix.msc3026.busy");
    assert!(presence(&sync(&house, &eve, "").await, &bob).is_none());

    // The message is there after a restart, and who shares a room from now on is told.
    let house = house.restart().await;
    let shown = house.get(&status(&bob), &alice).await.ok();
    assert_eq!(shown, json!({ "presence": "offline", "status_msg": "in a call" }));
    sync(&house, &bob, "").await;
    let begun = sync(&house, &eve, "set_presence=offline").await;
    let room = create(&house, &bob, json!({ "preset": "public_chat" })).await;
    house.post(&format!("/join/{}", q(&room)), &eve, json!({})).await.ok();
    let told =
        sync(&house, &eve, &format!("set_presence=offline&since={}", begun["next_batch"].as_str().unwrap())).await;
    assert_eq!(presence(&told, &bob).unwrap()["presence"], "online");
    assert_eq!(house.get(&status(&eve), &bob).await.ok(), json!({ "presence": "offline" }));
    house.stop().await;
}

#[tokio::test]
async fn without_presence_everybody_is_offline() {
    let house = TestServer::start_with(|config| config.apps.presence = PresenceMode::Off).await;
    let alice = house.register("alice").await;
    let path = format!("/presence/{}/status", q(&alice.id));
    house.put(&path, &alice, json!({ "presence": "online" })).await.ok();
    assert_eq!(house.get(&path, &alice).await.ok(), json!({ "presence": "offline" }));
    assert_eq!(sync(&house, &alice, "").await["presence"], json!({ "events": [] }));
    house.stop().await;
}

#[tokio::test]
async fn an_event_is_sent_when_its_time_has_come() {
    // Later than all files, whose times a start takes for known to have passed.
    let clock = Clock::simulated(Clock::real().now_ms() + 86_400_000);
    let house = TestServer::start_at(clock.clone(), Random::os(), |_| {}).await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let room = shared_room(&house, &alice, &bob).await;
    let send = |txn: &str, delay: u64| {
        let path = format!("/rooms/{}/send/m.room.message/{txn}?org.matrix.msc4140.delay={delay}", q(&room));
        let (house, alice) = (&house, &alice);
        async move { house.put(&path, alice, json!({ "msgtype": "m.text", "body": "later" })).await }
    };
    let id = |sent: Value| sent["delay_id"].as_str().unwrap().to_owned();
    send("a", 0).await.refused(400, "M_INVALID_PARAM");
    send("a", 100_000_000).await.refused(403, "M_FORBIDDEN");
    let long = id(send("a", 3_600_000).await.ok());
    assert_eq!(id(send("a", 3_600_000).await.ok()), long, "the same request again");
    let list = house.get(&format!("{DELAYED}/delayed_events"), &alice).await.ok();
    assert_eq!(list["delayed_events"].as_array().unwrap().len(), 1);
    assert_eq!(list["delayed_events"][0]["delay_id"], long);
    let one = format!("{DELAYED}/delayed_events/{long}");
    assert_eq!(house.get(&one, &alice).await.ok()["delay_ms"], 3_600_000);
    house.get(&one, &bob).await.refused(404, "M_NOT_FOUND");
    house.post(&format!("{one}/cancel"), &bob, json!({})).await.refused(404, "M_NOT_FOUND");

    // It outlives a restart; an app is sent its own id beside it, and nobody else.
    let state = format!("/rooms/{}/state/org.example.call/x?org.matrix.msc4140.delay=1500", q(&room));
    let soon = id(house.put(&state, &alice, json!({ "left": true })).await.ok());
    let house = house.restart().await;
    let path = format!("/rooms/{}/state/org.example.call/x", q(&room));
    house.get(&path, &alice).await.refused(404, "M_NOT_FOUND");
    clock.advance(Duration::from_millis(1500));
    eventually("it is sent", async || {
        clock.advance(Duration::from_millis(50));
        (house.get(&path, &alice).await.status == 200).then_some(())
    })
    .await;
    // That it is over is written once it is sent.
    let over = async |id: &str, who: &TestUser| {
        eventually("it is over", async || {
            clock.advance(Duration::from_millis(50));
            let ended = house.get(&format!("{DELAYED}/delayed_events/{id}"), who).await.ok();
            ended["finalised_ts"].as_u64().is_some().then_some(ended)
        })
        .await
    };
    let ended = over(&soon, &alice).await;
    let event = ended["event_id"].as_str().unwrap();
    assert!(ended.get("error").is_none());
    let event = format!("/rooms/{}/event/{}", q(&room), q(event));
    let shown = house.get(&event, &alice).await.ok();
    assert_eq!(shown["unsigned"]["org.matrix.msc4140.delay_id"], soon);
    assert!(house.get(&event, &bob).await.ok()["unsigned"].get("org.matrix.msc4140.delay_id").is_none());

    // Restarted without an access token by whoever knows the id, sent at once, and over then.
    let act = |action: &str| (format!("{one}/{action}"), json!({}));
    let (path, body) = act("restart");
    house.request("POST", &path, None, body).await.ok();
    house.post(&one, &alice, json!({ "action": "send" })).await.ok();
    let (path, body) = act("send");
    house.post(&path, &alice, body).await.ok();
    for action in ["cancel", "restart"] {
        let (path, body) = act(action);
        house.post(&path, &alice, body).await.refused(409, "M_UNKNOWN");
    }
    house.post(&one, &alice, json!({ "action": "x" })).await.refused(400, "M_INVALID_PARAM");

    // What the room refuses then is told to who asks.
    let body = json!({ "delay_ms": 300, "state_key": "", "content": { "name": "no" } });
    let path = format!("{DELAYED}/rooms/{}/delayed_event/m.room.name/t", q(&room));
    let refused = id(house.put(&path, &bob, body).await.ok());
    clock.advance(Duration::from_millis(300));
    let ended = over(&refused, &bob).await;
    assert_eq!(ended["error"]["errcode"], "M_FORBIDDEN");
    assert_eq!(house.get("/_matrix/client/v1/delayed_events", &bob).await.ok(), json!({ "delayed_events": [] }));
    house.stop().await;
}

#[tokio::test]
async fn a_sticky_event_is_told_to_who_comes_later() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let room = create(&house, &alice, json!({ "preset": "public_chat" })).await;
    let path = |query: &str, txn: &str| format!("/rooms/{}/send/org.example.member/{txn}{query}", q(&room));
    let query = "?org.matrix.msc4354.sticky_duration_ms=600000";
    let sent = house.put(&path(query, "a"), &alice, json!({ "here": true })).await.ok();
    let over = "?org.matrix.msc4354.sticky_duration_ms=3600001";
    house.put(&path(over, "b"), &alice, json!({})).await.refused(400, "M_INVALID_PARAM");
    for number in 0..15 {
        house.put(&path("", &format!("n{number}")), &alice, json!({ "n": number })).await.ok();
    }
    house.post(&format!("/join/{}", q(&room)), &bob, json!({})).await.ok();
    let told = sync(&house, &bob, "").await;
    let sticky = &told["rooms"]["join"][room.as_str()]["msc4354_sticky"]["events"];
    assert_eq!((sticky.as_array().unwrap().len(), &sticky[0]["event_id"]), (1, &sent["event_id"]));
    assert_eq!(sticky[0]["msc4354_sticky"]["duration_ms"], 600_000);
    let left = sticky[0]["unsigned"]["msc4354_sticky_duration_ttl_ms"].as_u64().unwrap();
    assert!((500_000..=600_000).contains(&left));
    // Told once; and not beside the timeline that has it.
    let since = told["next_batch"].as_str().unwrap();
    house.put(&path(query, "c"), &alice, json!({ "here": false })).await.ok();
    let told = sync(&house, &bob, &format!("since={since}")).await;
    let share = &told["rooms"]["join"][room.as_str()];
    assert_eq!(share["timeline"]["events"].as_array().unwrap().len(), 1);
    assert!(share.get("msc4354_sticky").is_none());
    let filter = json!({ "room": { "timeline": { "types": ["m.room.message"] } } }).to_string();
    let told = sync(&house, &bob, &format!("since={since}&filter={}", q(&filter))).await;
    let share = &told["rooms"]["join"][room.as_str()];
    assert_eq!(share["msc4354_sticky"]["events"].as_array().unwrap().len(), 1);
    // The same in a sliding sync, with a token of its own.
    let sliding = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync";
    let ask = |since: Option<String>| {
        let extension = json!({ "enabled": true, "since": since });
        house.post(sliding, &bob, json!({ "extensions": { "org.matrix.msc4354.sticky_events": extension } }))
    };
    let told = ask(None).await.ok();
    let extension = &told["extensions"]["org.matrix.msc4354.sticky_events"];
    assert_eq!(extension["rooms"][room.as_str()]["events"].as_array().unwrap().len(), 2);
    let told = ask(extension["next_batch"].as_str().map(str::to_owned)).await.ok();
    assert_eq!(told["extensions"]["org.matrix.msc4354.sticky_events"]["rooms"], json!({}));
    let redact = format!("/rooms/{}/redact/{}/r", q(&room), q(sent["event_id"].as_str().unwrap()));
    house.put(&redact, &alice, json!({})).await.ok();
    let told = sync(&house, &bob, "").await;
    let share = &told["rooms"]["join"][room.as_str()];
    assert!(share.get("msc4354_sticky").is_none(), "{share}");
    house.stop().await;
}

#[tokio::test]
async fn apps_find_what_carries_their_calls() {
    let bare = TestServer::start().await;
    let alice = bare.register("alice").await;
    assert_eq!(bare.get("/voip/turnServer", &alice).await.ok(), json!({}));
    let transports = "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports";
    bare.get(transports, &alice).await.refused(404, "M_NOT_FOUND");
    bare.stop().await;

    let house = TestServer::start_with(|config| {
        config.apps.public_url = Some("https://home.example".to_owned());
        let calls = &mut config.apps.calls;
        calls.turn.uris = vec!["turn:turn.example:3478".to_owned()];
        (calls.turn.login, calls.turn.ttl_s) = (TurnLogin::Secret("north".to_owned()), 86_400);
        let (key, secret) = ("APIkey".to_owned(), "secret".to_owned());
        calls.livekit = Some(LiveKit { url: "wss://sfu.example".to_owned(), key, secret });
    })
    .await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let turn = house.get("/voip/turnServer", &alice).await.ok();
    assert!(turn["username"].as_str().unwrap().ends_with(":@alice:localhost"));
    assert_eq!((&turn["uris"][0], &turn["ttl"]), (&json!("turn:turn.example:3478"), &json!(86400)));
    let service = json!({ "type": "livekit", "livekit_service_url": "https://home.example/_snug/livekit" });
    assert_eq!(house.get(transports, &alice).await.ok(), json!({ "rtc_transports": [service] }));
    let known = house.request("GET", "/.well-known/matrix/client", None, json!({})).await.ok();
    assert_eq!(known["org.matrix.msc4143.rtc_foci"], json!([service]));

    let room = create(&house, &alice, json!({})).await;
    let token = house.post(&format!("/user/{}/openid/request_token", q(&alice.id)), &alice, json!({})).await.ok();
    house
        .post(&format!("/user/{}/openid/request_token", q(&alice.id)), &bob, json!({}))
        .await
        .refused(403, "M_FORBIDDEN");
    let access = token["access_token"].as_str().unwrap();
    let info = |token: &str| format!("/_matrix/federation/v1/openid/userinfo?access_token={token}");
    assert_eq!(house.request("GET", &info(access), None, json!({})).await.ok(), json!({ "sub": alice.id }));
    house.request("GET", &info("x"), None, json!({})).await.refused(401, "M_UNKNOWN_TOKEN");

    let asked = json!({ "room": room, "openid_token": token, "device_id": alice.device });
    let given = house.request("POST", "/_snug/livekit/sfu/get", None, asked.clone()).await.ok();
    assert!(given["url"] == "wss://sfu.example" && given["jwt"].as_str().unwrap().split('.').count() == 3);
    let member = json!({ "id": "xyz", "claimed_device_id": alice.device, "claimed_user_id": alice.id });
    let newer = json!({ "room_id": room, "slot_id": "m.call#ROOM", "openid_token": token, "member": member });
    house.request("POST", "/_snug/livekit/get_token", None, newer).await.ok();
    let of_bob = house.post(&format!("/user/{}/openid/request_token", q(&bob.id)), &bob, json!({})).await.ok();
    let outside = json!({ "room": room, "openid_token": of_bob, "device_id": "B" });
    house.request("POST", "/_snug/livekit/sfu/get", None, outside).await.refused(401, "M_UNAUTHORIZED");
    let mut delayed = asked;
    delayed["delay_id"] = "x".into();
    house.request("POST", "/_snug/livekit/sfu/get", None, delayed).await.refused(404, "M_NOT_FOUND");
    let asked = json!({ "room_id": room, "slot_id": "m.call#ROOM", "member": member });
    let path = "/_matrix/client/v1/rtc/livekit/get_token";
    assert_eq!(house.post(path, &alice, asked.clone()).await.ok()["url"], "wss://sfu.example");
    house.post(path, &bob, asked).await.refused(401, "M_UNAUTHORIZED");
    house.stop().await;
}

/// Two servers that tell each other who is there; one of them has a media server.
#[tokio::test(flavor = "multi_thread")]
async fn people_of_two_servers_see_each_other_and_meet_in_a_call() {
    let pair = Pair::start_with(|config| {
        config.apps.presence = PresenceMode::All;
        let (key, secret) = ("APIkey".to_owned(), "secret".to_owned());
        let livekit = LiveKit { url: "wss://sfu.example".to_owned(), key, secret };
        config.apps.calls.livekit = (config.server_name == "one.load.test").then_some(livekit);
    })
    .await;
    let (one, two) = (&pair.one, &pair.two);
    let (alice, bob) = (one.register("alice").await, two.register("bob").await);
    let room = create(one, &alice, json!({ "preset": "public_chat" })).await;
    // Before the other server comes into the room, which is sent what is sticky.
    let query = "?org.matrix.msc4354.sticky_duration_ms=600000";
    let sent = one.put(&format!("/rooms/{}/send/org.example.member/s{query}", q(&room)), &alice, json!({})).await.ok();
    let plain = json!({ "msgtype": "m.text", "body": "x" });
    for number in 0..3 {
        let path = format!("/rooms/{}/send/m.room.message/{number}", q(&room));
        one.put(&path, &alice, plain.clone()).await.ok();
    }
    two.post(&format!("/join/{}?via={}", q(&room), one.name()), &bob, json!({})).await.ok();
    let is_sticky = |told: &Value| {
        let share = &told["rooms"]["join"][room.as_str()];
        let parts = [&share["msc4354_sticky"]["events"], &share["timeline"]["events"]];
        parts
            .iter()
            .filter_map(|events| events.as_array())
            .flatten()
            .any(|event| event["event_id"] == sent["event_id"] && event["msc4354_sticky"]["duration_ms"] == 600_000)
    };
    eventually("the sticky event comes", async || {
        is_sticky(&sync(two, &bob, "set_presence=offline").await).then_some(())
    })
    .await;
    sync(one, &alice, "").await;
    let body = json!({ "presence": "unavailable", "status_msg": "far away" });
    two.put(&format!("/presence/{}/status", q(&bob.id)), &bob, body).await.ok();
    let path = format!("/presence/{}/status", q(&bob.id));
    let shown = eventually("it is told who is there", async || {
        let shown = one.get(&path, &alice).await.ok();
        (shown["presence"] == "unavailable").then_some(shown)
    })
    .await;
    assert_eq!((&shown["presence"], &shown["status_msg"]), (&json!("unavailable"), &json!("far away")));
    assert_eq!(presence(&sync(one, &alice, "").await, &bob).unwrap()["status_msg"], "far away");

    let member = json!({ "id": "xyz", "claimed_device_id": bob.device });
    let asked = json!({ "server_name": one.name(), "room_id": room, "slot_id": "m.call#ROOM", "member": member });
    let path = "/_matrix/client/v1/rtc/livekit/get_token";
    let given = two.post(path, &bob, asked).await.ok();
    assert!(given["url"] == "wss://sfu.example" && given["jwt"].as_str().unwrap().split('.').count() == 3);
    let own = json!({ "room_id": room, "slot_id": "m.call#ROOM", "member": member });
    two.post(path, &bob, own).await.refused(404, "M_NOT_FOUND");
    let token = two.post(&format!("/user/{}/openid/request_token", q(&bob.id)), &bob, json!({})).await.ok();
    let asked = json!({ "room": room, "openid_token": token, "device_id": bob.device });
    one.request("POST", "/_snug/livekit/sfu/get", None, asked.clone()).await.ok();
    // Whose server is in the room is not in it by that.
    let eve = two.register("eve").await;
    let of_eve = two.post(&format!("/user/{}/openid/request_token", q(&eve.id)), &eve, json!({})).await.ok();
    let outside = json!({ "room": room, "openid_token": of_eve, "device_id": eve.device });
    one.request("POST", "/_snug/livekit/sfu/get", None, outside).await.refused(401, "M_UNAUTHORIZED");
    let mut forged = asked.clone();
    forged["openid_token"]["access_token"] = "x".into();
    one.request("POST", "/_snug/livekit/sfu/get", None, forged).await.refused(401, "M_UNAUTHORIZED");
    let mut elsewhere = asked;
    elsewhere["room"] = "!nowhere:one.load.test".into();
    one.request("POST", "/_snug/livekit/sfu/get", None, elsewhere).await.refused(401, "M_UNAUTHORIZED");
    pair.one.stop().await;
    pair.two.stop().await;
}

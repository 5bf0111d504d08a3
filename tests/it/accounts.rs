//! Accounts, sessions, devices, and what people keep here.

use serde_json::{Value, json};
use snug::base::Clock;

use crate::server::{TestServer, TestUser};

#[tokio::test]
async fn what_the_server_is() {
    let house = TestServer::start().await;
    let versions = house.request("GET", "/_matrix/client/versions", None, Value::Null).await.ok();
    assert!(versions["versions"].as_array().unwrap().contains(&json!("v1.11")));
    let alice = house.register("alice").await;
    let capabilities = house.get("/capabilities", &alice).await.ok();
    assert_eq!(capabilities["capabilities"]["m.change_password"]["enabled"], true);
    assert_eq!(house.get("/voip/turnServer", &alice).await.ok(), json!({}));
    assert_eq!(house.get("/thirdparty/protocols", &alice).await.ok(), json!({}));
    assert_eq!(house.get("/thirdparty/user/irc?nick=a", &alice).await.ok(), json!([]));
    house.get("/thirdparty/protocol/irc", &alice).await.refused(404, "M_NOT_FOUND");
    house.request("GET", "/capabilities", None, Value::Null).await.refused(401, "M_MISSING_TOKEN");
    house.request("GET", "/capabilities", Some("nonsense"), Value::Null).await.refused(401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn registering_in_stages() {
    let house = TestServer::start().await;
    let register = |body: Value| house.request("POST", "/register", None, body);
    let asked = register(json!({ "username": "bob", "password": "a secret" })).await;
    assert_eq!(asked.status, 401);
    let asked = asked.json();
    assert_eq!(asked["flows"], json!([{ "stages": ["m.login.dummy"] }]));
    let auth = json!({ "type": "m.login.dummy", "session": asked["session"] });
    let made = register(json!({ "username": "bob", "password": "a secret", "auth": auth, "device_id": "PHONE" })).await;
    let made = made.ok();
    assert_eq!((&made["user_id"], &made["device_id"]), (&json!("@bob:localhost"), &json!("PHONE")));

    // The answer was lost and the request is sent again: it used to be M_USER_IN_USE, with no way to the account.
    let again = json!({ "username": "bob", "password": "a secret", "auth": auth, "device_id": "PHONE" });
    let same = register(again.clone()).await.ok();
    assert_eq!((&same["user_id"], &same["device_id"]), (&made["user_id"], &made["device_id"]));
    house.request("GET", "/account/whoami", same["access_token"].as_str(), Value::Null).await.ok();
    let mut stranger = again.clone();
    stranger["password"] = json!("another secret");
    register(stranger).await.refused(403, "M_FORBIDDEN");
    let mut second = again;
    second["username"] = json!("bobby");
    assert_eq!(register(second).await.status, 401, "a session makes one account");

    register(json!({ "username": "bob", "password": "x" })).await.refused(400, "M_USER_IN_USE");
    register(json!({ "username": "bert", "password": "x" })).await.refused(400, "M_WEAK_PASSWORD");
    register(json!({ "username": "B b", "password": "x" })).await.refused(400, "M_INVALID_USERNAME");
    let guest = house.request("POST", "/register?kind=guest", None, json!({})).await;
    guest.refused(403, "M_GUEST_ACCESS_FORBIDDEN");
    let available = |name: &str| {
        let (house, path) = (&house, format!("/register/available?username={name}"));
        async move { house.request("GET", &path, None, Value::Null).await }
    };
    assert_eq!(available("carol").await.ok(), json!({ "available": true }));
    available("bob").await.refused(400, "M_USER_IN_USE");
}

/// The account was made before its device was looked at: the name was taken, and its owner had no session.
#[tokio::test]
async fn a_registration_with_a_bad_device_makes_no_account() {
    let house = TestServer::start().await;
    let register = |mut body: Value| {
        body["username"] = json!("bob");
        body["password"] = json!("a secret");
        body["auth"] = json!({ "type": "m.login.dummy" });
        house.request("POST", "/register", None, body)
    };
    register(json!({ "device_id": "" })).await.refused(400, "M_INVALID_PARAM");
    register(json!({ "device_id": "D\0" })).await.refused(400, "M_INVALID_PARAM");
    let name = "x".repeat(10_000);
    register(json!({ "initial_device_display_name": name })).await.refused(413, "M_TOO_LARGE");
    assert_eq!(register(json!({ "device_id": "PHONE" })).await.ok()["user_id"], "@bob:localhost");
}

#[tokio::test]
async fn registering_with_a_token() {
    let house = TestServer::start_with(|config| {
        config.apps.registration = snug::client::Registration::Token;
        config.apps.registration_tokens = vec!["friend".to_owned()];
    })
    .await;
    let register = |token: &str| {
        let auth = json!({ "type": "m.login.registration_token", "token": token });
        house.request(
            "POST",
            "/register",
            None,
            json!({ "username": "bob", "password": "eight or more", "auth": auth }),
        )
    };
    let wrong = register("foe").await;
    assert_eq!(wrong.status, 401);
    assert_eq!(wrong.json()["errcode"], "M_FORBIDDEN");
    assert_eq!(register("friend").await.ok()["user_id"], "@bob:localhost");
    let validity = |token: &str| {
        let path = format!("/_matrix/client/v1/register/m.login.registration_token/validity?token={token}");
        let house = &house;
        async move { house.request("GET", &path, None, Value::Null).await }
    };
    assert_eq!(validity("friend").await.ok(), json!({ "valid": true }));
    assert_eq!(validity("foe").await.ok(), json!({ "valid": false }));
}

#[tokio::test]
async fn logging_in_and_out() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let login = |user: &str, password: &str, device: &str| {
        let body = json!({
            "type": "m.login.password", "identifier": { "type": "m.id.user", "user": user },
            "password": password, "device_id": device, "initial_device_display_name": "A laptop",
        });
        house.request("POST", "/login", None, body)
    };
    assert_eq!(house.request("GET", "/login", None, Value::Null).await.ok()["flows"][0]["type"], "m.login.password");
    login("alice", "wrong", "X").await.refused(403, "M_FORBIDDEN");
    login("nobody", "secret alice", "X").await.refused(403, "M_FORBIDDEN");
    let first = login("alice", "secret alice", "LAPTOP").await.ok();
    let whoami = house.request("GET", "/account/whoami", first["access_token"].as_str(), Value::Null).await.ok();
    assert_eq!(whoami, json!({ "user_id": alice.id, "device_id": "LAPTOP", "is_guest": false }));

    // The same device again: its old token ends, its name stays.
    let second = login("@alice:localhost", "secret alice", "LAPTOP").await.ok();
    let old = house.request("GET", "/account/whoami", first["access_token"].as_str(), Value::Null).await;
    old.refused(401, "M_UNKNOWN_TOKEN");
    let devices = house.get("/devices", &alice).await.ok();
    assert_eq!(devices["devices"].as_array().unwrap().len(), 2);

    let laptop = TestUser { token: second["access_token"].as_str().unwrap().to_owned(), ..alice.clone() };
    house.post("/logout", &laptop, Value::Null).await.ok();
    house.get("/account/whoami", &laptop).await.refused(401, "M_UNKNOWN_TOKEN");
    house.get("/devices/LAPTOP", &alice).await.refused(404, "M_NOT_FOUND");
    house.post("/logout/all", &alice, Value::Null).await.ok();
    house.get("/account/whoami", &alice).await.refused(401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn devices_are_named_and_removed_with_the_password() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let path = format!("/devices/{}", alice.device);
    house.put(&path, &alice, json!({ "display_name": "My phone" })).await.ok();
    assert_eq!(house.get(&path, &alice).await.ok()["display_name"], "My phone");
    let asked = house.delete(&path, &alice).await;
    assert_eq!(asked.status, 401);
    let session = asked.json()["session"].clone();
    let auth = |password: &str| {
        let identifier = json!({ "type": "m.id.user", "user": "alice" });
        json!({ "auth": {
            "type": "m.login.password", "identifier": identifier, "password": password, "session": session,
        }})
    };
    let wrong = house.request("DELETE", &path, Some(&alice.token), auth("wrong")).await;
    assert_eq!((wrong.status, wrong.json()["errcode"].clone()), (401, json!("M_FORBIDDEN")));
    house.request("DELETE", &path, Some(&alice.token), auth("secret alice")).await.ok();
    house.get("/devices", &alice).await.refused(401, "M_UNKNOWN_TOKEN");
}

/// A session that was begun to delete one device deleted any other, and a request that was sent again was asked for the
/// password once more.
#[tokio::test]
async fn a_session_deletes_the_devices_it_was_begun_for() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let asked = house.post("/delete_devices", &alice, json!({ "devices": ["A", "B"] })).await.json();
    let auth = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "alice" }, "password": "secret alice",
        "session": asked["session"],
    });
    let delete = |devices: Value| house.post("/delete_devices", &alice, json!({ "devices": devices, "auth": auth }));
    assert_eq!(delete(json!(["C"])).await.status, 401);
    delete(json!(["B", "A"])).await.ok();
    delete(json!(["A", "B"])).await.ok();
    assert_eq!(delete(json!(["A", "C"])).await.status, 401);
}

#[tokio::test]
async fn a_new_password_ends_the_other_sessions() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let body = json!({ "type": "m.login.password", "user": "alice", "password": "secret alice" });
    let other = house.request("POST", "/login", None, body).await.ok();
    let auth = json!({ "type": "m.login.password", "password": "secret alice", "user": "alice" });
    house.post("/account/password", &alice, json!({ "new_password": "short" })).await.refused(400, "M_WEAK_PASSWORD");
    house.post("/account/password", &alice, json!({ "new_password": "much better", "auth": auth })).await.ok();
    house.get("/account/whoami", &alice).await.ok();
    let gone = house.request("GET", "/account/whoami", other["access_token"].as_str(), Value::Null).await;
    gone.refused(401, "M_UNKNOWN_TOKEN");
    let body = json!({ "type": "m.login.password", "user": "alice", "password": "much better" });
    house.request("POST", "/login", None, body).await.ok();
}

#[tokio::test]
async fn a_deactivated_account_is_closed_for_good() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let auth = json!({ "type": "m.login.password", "password": "secret alice", "user": "alice" });
    house.post("/account/deactivate", &alice, json!({ "auth": auth })).await.ok();
    house.get("/account/whoami", &alice).await.refused(401, "M_UNKNOWN_TOKEN");
    let body = json!({ "type": "m.login.password", "user": "alice", "password": "secret alice" });
    house.request("POST", "/login", None, body).await.refused(403, "M_USER_DEACTIVATED");
    let body = json!({ "username": "alice", "password": "eight or more", "auth": { "type": "m.login.dummy" } });
    house.request("POST", "/register", None, body).await.refused(400, "M_USER_IN_USE");
}

#[tokio::test]
async fn who_asked_for_erasure_is_not_read_by_those_who_come_later() {
    let house = TestServer::start().await;
    let (alice, bob, carol) =
        (house.register("alice").await, house.register("bob").await, house.register("carol").await);
    let room = house.post("/createRoom", &alice, json!({ "preset": "public_chat" })).await.ok();
    let room = room["room_id"].as_str().unwrap().to_owned();
    house.post(&format!("/join/{room}"), &bob, json!({})).await.ok();
    let message = json!({ "msgtype": "m.text", "body": "mine" });
    let said = house.put(&format!("/rooms/{room}/send/m.room.message/1"), &alice, message).await.ok();
    let event = format!("/rooms/{room}/event/{}", said["event_id"].as_str().unwrap());
    let auth = json!({ "type": "m.login.password", "password": "secret alice", "user": "alice" });
    house.post("/account/deactivate", &alice, json!({ "auth": auth, "erase": true })).await.ok();
    house.post(&format!("/join/{room}"), &carol, json!({})).await.ok();
    assert_eq!(house.get(&event, &bob).await.ok()["content"]["body"], "mine");
    assert_eq!(house.get(&event, &carol).await.ok()["content"], json!({}));
}

#[tokio::test]
async fn profiles() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let name = "/profile/@alice:localhost/displayname";
    assert_eq!(house.get(name, &bob).await.ok(), json!({ "displayname": "alice" }));
    house.put(name, &alice, json!({ "displayname": "Alice A." })).await.ok();
    house.put(name, &bob, json!({ "displayname": "Mallory" })).await.refused(403, "M_FORBIDDEN");
    house.put("/profile/@alice:localhost/m.tz", &alice, json!({ "m.tz": "Europe/Berlin" })).await.ok();
    let whole = house.request("GET", "/profile/@alice:localhost", None, Value::Null).await.ok();
    assert_eq!(whole, json!({ "displayname": "Alice A.", "m.tz": "Europe/Berlin" }));
    house.delete("/profile/@alice:localhost/m.tz", &alice).await.ok();
    house.get("/profile/@alice:localhost/m.tz", &bob).await.refused(404, "M_NOT_FOUND");
    house.get("/profile/@nobody:localhost", &bob).await.refused(404, "M_NOT_FOUND");
    house.get("/profile/nonsense", &bob).await.refused(400, "M_INVALID_PARAM");
    let search = async || house.post("/user_directory/search", &bob, json!({ "search_term": "ALICE" })).await.ok();
    assert_eq!(search().await["results"], json!([]), "nobody may look through all accounts");
    house.post("/createRoom", &alice, json!({ "preset": "public_chat" })).await.ok();
    assert_eq!(search().await["results"][0]["display_name"], "Alice A.");
}

#[tokio::test]
async fn account_data_and_filters() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let path = "/user/@alice:localhost/account_data/org.example";
    house.get(path, &alice).await.refused(404, "M_NOT_FOUND");
    house.put(path, &alice, json!({ "a": 1 })).await.ok();
    assert_eq!(house.get(path, &alice).await.ok(), json!({ "a": 1 }));
    house.get(path, &bob).await.refused(403, "M_FORBIDDEN");
    house.put(path, &alice, json!([])).await.refused(400, "M_BAD_JSON");
    let managed = "/user/@alice:localhost/account_data/m.push_rules";
    house.put(managed, &alice, json!({})).await.refused(405, "M_BAD_JSON");
    assert!(house.get(managed, &alice).await.ok()["global"]["override"].is_array());

    let filter = json!({ "room": { "timeline": { "limit": 5 } } });
    let number = house.post("/user/@alice:localhost/filter", &alice, filter.clone()).await.ok()["filter_id"].clone();
    let kept = house.get(&format!("/user/@alice:localhost/filter/{}", number.as_str().unwrap()), &alice).await;
    assert_eq!(kept.ok(), filter);
    house.get("/user/@alice:localhost/filter/99", &alice).await.refused(404, "M_NOT_FOUND");
    let wrong = json!({ "room": { "timeline": { "limit": "five" } } });
    house.post("/user/@alice:localhost/filter", &alice, wrong).await.refused(400, "M_BAD_JSON");
}

#[tokio::test]
async fn tags() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let room = house.post("/createRoom", &alice, json!({})).await.ok()["room_id"].as_str().unwrap().to_owned();
    let path = format!("/user/@alice:localhost/rooms/{room}/tags");
    assert_eq!(house.get(&path, &alice).await.ok(), json!({ "tags": {} }));
    house.put(&format!("{path}/m.favourite"), &alice, json!({ "order": 0.5 })).await.ok();
    assert_eq!(house.get(&path, &alice).await.ok(), json!({ "tags": { "m.favourite": { "order": 0.5 } } }));
    house.delete(&format!("{path}/m.favourite"), &alice).await.ok();
    assert_eq!(house.get(&path, &alice).await.ok(), json!({ "tags": {} }));
}

/// An app that makes a room of low priority a favourite asks for both at once, and the favourite was lost.
#[tokio::test]
async fn two_changes_of_tags_at_once_are_both_kept() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    for _ in 0..10 {
        let room = house.post("/createRoom", &alice, json!({})).await.ok()["room_id"].as_str().unwrap().to_owned();
        let path = format!("/user/@alice:localhost/rooms/{room}/tags");
        let (low, favourite) = (format!("{path}/m.lowpriority"), format!("{path}/m.favourite"));
        house.put(&low, &alice, json!({})).await.ok();
        let (put, deleted) =
            tokio::join!(house.put(&favourite, &alice, json!({ "order": 1 })), house.delete(&low, &alice));
        put.ok();
        deleted.ok();
        assert_eq!(house.get(&path, &alice).await.ok(), json!({ "tags": { "m.favourite": { "order": 1 } } }));
    }
    // What an app put there that is no tags stands in nobody's way.
    let room = house.post("/createRoom", &alice, json!({})).await.ok()["room_id"].as_str().unwrap().to_owned();
    let of_room = format!("/user/@alice:localhost/rooms/{room}");
    for (kind, wrong) in [
        ("m.tag", json!({ "tags": 1 })),
        ("m.tag", json!({ "tags": { "u.work": 1 } })),
        ("m.direct", json!({ "@bob:localhost": "!room" })),
        ("m.direct", json!({ "@bob:localhost": [1] })),
        ("m.ignored_user_list", json!({ "ignored_users": ["@bob:localhost"] })),
    ] {
        let path = format!("{of_room}/account_data/{kind}");
        house.put(&path, &alice, wrong).await.refused(400, "M_BAD_JSON");
        house.get(&path, &alice).await.refused(404, "M_NOT_FOUND");
    }
    house.put(&format!("{of_room}/tags/u.work"), &alice, json!({})).await.ok();
    assert_eq!(house.get(&format!("{of_room}/tags"), &alice).await.ok(), json!({ "tags": { "u.work": {} } }));
}

#[tokio::test]
async fn push_rules() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let all = house.get("/pushrules/", &alice).await.ok();
    assert_eq!(all["global"]["override"][0]["rule_id"], ".m.rule.master");
    for kind in ["override", "content", "room", "sender", "underride"] {
        assert!(all["global"][kind].is_array(), "{kind} is there, with or without rules");
    }
    let rule = "/pushrules/global/content/cats";
    house.put(rule, &alice, json!({ "actions": ["notify"], "pattern": "cat*" })).await.ok();
    let kept = house.get(rule, &alice).await.ok();
    assert_eq!((&kept["pattern"], &kept["enabled"]), (&json!("cat*"), &json!(true)));
    house.put(&format!("{rule}/enabled"), &alice, json!({ "enabled": false })).await.ok();
    assert_eq!(house.get(&format!("{rule}/enabled"), &alice).await.ok(), json!({ "enabled": false }));
    house.put(&format!("{rule}/actions"), &alice, json!({ "actions": [] })).await.ok();
    assert_eq!(house.get(&format!("{rule}/actions"), &alice).await.ok(), json!({ "actions": [] }));
    house.delete(rule, &alice).await.ok();
    house.get(rule, &alice).await.refused(404, "M_NOT_FOUND");
    house.delete("/pushrules/global/override/.m.rule.master", &alice).await.refused(400, "M_INVALID_PARAM");
    house.put("/pushrules/global/content/dogs", &alice, json!({ "actions": [] })).await.refused(400, "M_MISSING_PARAM");
    house.put("/pushrules/global/nonsense/x", &alice, json!({ "actions": [] })).await.refused(404, "M_NOT_FOUND");
    house.get("/pushrules/global/nonsense/x", &alice).await.refused(404, "M_NOT_FOUND");
    // Both ended the server once: a rule beside itself, and the first put behind the last.
    let cats = json!({ "actions": [], "pattern": "cat*" });
    house.put("/pushrules/global/content/x?after=x", &alice, cats.clone()).await.refused(400, "M_INVALID_PARAM");
    for id in ["b", "a"] {
        house.put(&format!("/pushrules/global/content/{id}"), &alice, cats.clone()).await.ok();
    }
    house.put("/pushrules/global/content/a?after=b", &alice, cats.clone()).await.ok();
    house.put("/pushrules/global/content/a?before=y", &alice, cats).await.refused(404, "M_NOT_FOUND");
    let kept = house.get("/pushrules/", &alice).await.ok();
    let ids: Vec<_> = kept["global"]["content"].as_array().unwrap().iter().map(|rule| &rule["rule_id"]).collect();
    assert_eq!(ids, ["b", "a", ".m.rule.contains_user_name"]);
    let of_sync = house.get("/user/@alice:localhost/account_data/m.push_rules", &alice).await.ok();
    assert_eq!(of_sync, kept, "as changed");
}

/// A house behind a proxy that adds the caller's address, and limits, on a clock that stands still: a slow machine's requests would
/// earn more.
async fn behind_a_proxy(profile: &str) -> TestServer {
    TestServer::start_under_at(profile, Clock::simulated(1_700_000_000_000), |config| {
        config.rate_limits = true;
        config.trusted_proxies = vec![[127, 0, 0, 1].into()];
    })
    .await
}

async fn log_in(house: &TestServer, from: &str, name: &str, password: &str) -> u16 {
    let body = json!({ "type": "m.login.password", "password": password,
        "identifier": { "type": "m.id.user", "user": name } });
    let headers = [("x-forwarded-for", from)];
    house.send("POST", "/login", &headers, body.to_string().into_bytes()).await.status
}

async fn asks(house: &TestServer, from: &str, who: &TestUser, method: &str, path: &str, body: Value) -> u16 {
    let token = format!("Bearer {}", who.token);
    let headers = [("x-forwarded-for", from), ("authorization", token.as_str())];
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    house.send(method, path, &headers, body).await.status
}

/// Ten wrong passwords of a stranger, and the person could neither log in nor change the password nor end a stolen device's
/// session.
#[tokio::test]
async fn wrong_passwords_of_strangers_lock_nobody_out() {
    for profile in ["pi-zero-2w", "pi-3"] {
        let house = behind_a_proxy(profile).await;
        let alice = house.register("alice").await;
        let (home, away) = ("198.51.100.7", "192.0.2.1");
        assert_eq!(asks(&house, home, &alice, "GET", "/account/whoami", Value::Null).await, 200);
        let mut guesses = Vec::new();
        for n in 0..14 {
            guesses.push(log_in(&house, &format!("203.0.{n}.9"), "alice", "a guess").await);
        }
        assert_eq!((guesses[0], guesses[9], guesses[13]), (403, 403, 429), "from however many addresses: {guesses:?}");
        assert_eq!(log_in(&house, away, "alice", "secret alice").await, 429, "where she never was");
        assert_eq!(log_in(&house, home, "alice", "secret alice").await, 200);
        let auth = |password: &str| {
            json!({ "type": "m.login.password", "password": password,
            "identifier": { "type": "m.id.user", "user": "alice" } })
        };
        // Her session, wherever she is.
        let gone = json!({ "devices": ["STOLEN"], "auth": auth("secret alice") });
        assert_eq!(asks(&house, away, &alice, "POST", "/delete_devices", gone).await, 200);
        let new = json!({ "new_password": "another one", "logout_devices": false, "auth": auth("secret alice") });
        assert_eq!(asks(&house, away, &alice, "POST", "/account/password", new).await, 200);
        // A session that guesses is stopped too.
        let mut guesses = Vec::new();
        for _ in 0..12 {
            let new = json!({ "new_password": "never set", "auth": auth("a guess") });
            guesses.push(asks(&house, home, &alice, "POST", "/account/password", new).await);
        }
        assert_eq!((guesses[0], guesses[11]), (401, 429), "{guesses:?}");
        assert_eq!(log_in(&house, home, "alice", "another one").await, 200, "the log-in counts apart");
        house.stop().await;
    }
}

/// The right password used up the tries as a wrong one did.
#[tokio::test]
async fn right_passwords_do_not_count() {
    let house = behind_a_proxy("pi-3").await;
    house.register("alice").await;
    for n in 0..15 {
        assert_eq!(log_in(&house, "203.0.113.9", "alice", "secret alice").await, 200, "{n}");
    }
}

/// Behind a proxy that adds a line of its own the caller chose the address it was counted under.
#[tokio::test]
async fn the_proxys_line_counts() {
    let house = behind_a_proxy("pi-3").await;
    house.register("alice").await;
    let mut seen = Vec::new();
    for n in 0..14 {
        let body = json!({ "type": "m.login.password", "password": "a guess",
            "identifier": { "type": "m.id.user", "user": format!("nobody{n}") } });
        let made_up = format!("203.0.{n}.9");
        let headers = [("x-forwarded-for", made_up.as_str()), ("x-forwarded-for", "198.51.100.1")];
        seen.push(house.send("POST", "/login", &headers, body.to_string().into_bytes()).await.status);
    }
    assert_eq!((seen[0], seen[13]), (403, 429), "{seen:?}");
}

/// Five looks at whether a name is free, and no account could be made from that address; ten at the page of the first
/// account, and no password could be tried.
#[tokio::test]
async fn reading_uses_up_no_allowance_of_writing() {
    let house = behind_a_proxy("pi-3").await;
    let headers = [("x-forwarded-for", "203.0.113.9")];
    for n in 0..20 {
        for (path, expected) in [
            (format!("/_matrix/client/v3/register/available?username=name{n}"), 200),
            (
                format!("/_matrix/client/v1/register/m.login.registration_token/validity?token={n}"),
                if n < 5 { 200 } else { 429 },
            ),
            (format!("/_snug/first/{n}"), 403),
        ] {
            assert_eq!(house.send("GET", &path, &headers, Vec::new()).await.status, expected, "{path}");
        }
    }
    let register = |name: &str| {
        let body = json!({ "username": name, "password": "a long secret", "auth": { "type": "m.login.dummy" } });
        let headers = &headers;
        let house = &house;
        async move { house.send("POST", "/_matrix/client/v3/register", headers, body.to_string().into_bytes()).await.status }
    };
    let mut made = Vec::new();
    for n in 0..6 {
        made.push(register(&format!("name{n}")).await);
    }
    assert_eq!(made, [200, 200, 200, 200, 200, 429]);
    assert_eq!(log_in(&house, "203.0.113.9", "name0", "a guess").await, 403);
    house.stop().await;
}

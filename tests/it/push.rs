//! Pushers, and what their gateways are told.

use serde_json::{Value, json};

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
    for number in 0..33 {
        house.post("/pushers/set", &alice, pusher("app", &number.to_string())).await.ok();
    }
    let keys = pushkeys(&house, &alice).await;
    assert_eq!(keys.len(), 32);
    assert!(keys.contains(&"\"32\"".to_owned()));
}

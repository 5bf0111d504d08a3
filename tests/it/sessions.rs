//! Sessions beyond a password and a token: tokens for another device's login, and access tokens that are refreshed.

use std::time::Duration;

use serde_json::{Value, json};
use snug::base::{Clock, Random};

use crate::server::TestServer;

#[tokio::test]
async fn a_session_lets_another_device_log_in() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let flows = house.request("GET", "/login", None, Value::Null).await.ok();
    let flow = json!({ "type": "m.login.token", "get_login_token": true });
    assert!(flows["flows"].as_array().unwrap().contains(&flow));
    let capabilities = house.get("/capabilities", &alice).await.ok();
    assert_eq!(capabilities["capabilities"]["m.get_login_token"]["enabled"], true);

    let path = "/_matrix/client/v1/login/get_token";
    let asked = house.post(path, &alice, json!({})).await;
    assert_eq!(asked.status, 401);
    let asked = asked.json();
    let auth = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "alice" },
        "password": "secret alice", "session": asked["session"],
    });
    let made = house.post(path, &alice, json!({ "auth": auth })).await.ok();
    assert_eq!(made["expires_in_ms"], 120_000);
    // The password is asked for each time.
    let again = json!({ "auth": { "session": asked["session"] } });
    assert_eq!(house.post(path, &alice, again).await.status, 401);

    let login = |token: &Value| {
        let body = json!({ "type": "m.login.token", "token": token, "device_id": "TABLET" });
        house.request("POST", "/login", None, body)
    };
    let session = login(&made["login_token"]).await.ok();
    assert_eq!((&session["user_id"], &session["device_id"]), (&json!(alice.id), &json!("TABLET")));
    house.request("GET", "/account/whoami", session["access_token"].as_str(), Value::Null).await.ok();
    login(&made["login_token"]).await.refused(403, "M_FORBIDDEN");
    login(&json!("nonsense")).await.refused(403, "M_FORBIDDEN");
    login(&Value::Null).await.refused(400, "M_MISSING_PARAM");
}

#[tokio::test]
async fn an_access_token_ends_and_is_refreshed() {
    let clock = Clock::simulated(1_700_000_000_000);
    let lifetime = |config: &mut snug::config::Config| config.apps.access_token_lifetime_ms = 60_000;
    let house = TestServer::start_at(clock.clone(), Random::os(), lifetime).await;
    let alice = house.register("alice").await;
    let body = json!({
        "type": "m.login.password", "user": "alice", "password": "secret alice", "refresh_token": true,
        "device_id": "PHONE",
    });
    let first = house.request("POST", "/login", None, body).await.ok();
    assert_eq!(first["expires_in_ms"], 60_000);
    let whoami = async |session: &Value| {
        house.request("GET", "/account/whoami", session["access_token"].as_str(), Value::Null).await
    };
    let refresh = |session: &Value| {
        let body = json!({ "refresh_token": session["refresh_token"] });
        house.request("POST", "/refresh", None, body)
    };
    assert_eq!(whoami(&first).await.ok()["device_id"], "PHONE");
    clock.advance(Duration::from_secs(60));
    let ended = whoami(&first).await.refused(401, "M_UNKNOWN_TOKEN");
    assert_eq!(ended["soft_logout"], true);
    let second = refresh(&first).await.ok();
    let lost = refresh(&first).await.ok();
    whoami(&second).await.refused(401, "M_UNKNOWN_TOKEN");
    assert_eq!(whoami(&lost).await.ok()["device_id"], "PHONE");
    refresh(&first).await.refused(401, "M_UNKNOWN_TOKEN");
    refresh(&lost).await.ok();
    house.request("POST", "/refresh", None, json!({})).await.refused(400, "M_BAD_JSON");

    // A session that did not ask to refresh lasts, and has no refresh token.
    whoami(&json!({ "access_token": alice.token })).await.ok();
    let body = json!({
        "username": "bob", "password": "eight or more", "auth": { "type": "m.login.dummy" }, "refresh_token": true,
    });
    let bob = house.request("POST", "/register", None, body).await.ok();
    refresh(&bob).await.ok();
}

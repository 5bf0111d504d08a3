//! Terms that are agreed to: at registration, in a browser, and before anything is sent. And whom to ask about a server.

use serde_json::{Value, json};
use snug::base::{Clock, Random};
use snug::client::{Contact, Policy, PolicyPlace, PolicyText, Registration, Terms};
use snug::config::Config;
use std::time::Duration;

use crate::rooms::eventually;
use crate::server::{Folder, Reply, TestServer, TestUser};

fn terms(version: &str, file: Option<&Folder>) -> Terms {
    let text = |language: &str, name: &str, place| PolicyText { language: language.into(), name: name.into(), place };
    let url = PolicyPlace::Url("https://example.org/privacy".to_owned());
    let mut texts = vec![text("en", "Privacy & more", url)];
    if let Some(folder) = file {
        let path = folder.path().join("privacy.txt");
        std::fs::write(&path, "We keep <nothing>.\n\nAnd say so.").unwrap();
        texts.push(text("de", "Datenschutz", PolicyPlace::File(path)));
    }
    let policy = Policy { id: "privacy_policy".to_owned(), version: version.to_owned(), texts };
    Terms { policies: vec![policy], required_to_send: true, notice: false }
}

fn html(reply: &Reply) -> String {
    assert!(reply.headers["content-type"].to_str().unwrap().starts_with("text/html"), "{reply:?}");
    String::from_utf8_lossy(&reply.bytes).into_owned()
}

async fn page(house: &TestServer, path: &str) -> (u16, String) {
    let reply = house.send("GET", path, &[], Vec::new()).await;
    (reply.status, html(&reply))
}

async fn form(house: &TestServer, path: &str, form: &str) -> (u16, String) {
    let kind = [("content-type", "application/x-www-form-urlencoded")];
    let reply = house.send("POST", path, &kind, form.as_bytes().to_vec()).await;
    (reply.status, html(&reply))
}

async fn say(house: &TestServer, who: &TestUser, room: &str, txn: &str) -> Reply {
    let path = format!("/rooms/{room}/send/m.room.message/{txn}");
    house.put(&path, who, json!({ "msgtype": "m.text", "body": "Hm" })).await
}

/// A field of the form on a page.
fn hidden<'a>(page: &'a str, name: &str) -> &'a str {
    let at = page.find(&format!("name=\"{name}\" value=\"")).unwrap_or_else(|| panic!("no {name} in {page}"));
    page[at..].split('"').nth(3).unwrap()
}

#[tokio::test]
async fn whoever_registers_agrees() {
    let folder = Folder::new();
    let house = TestServer::start_with(|config: &mut Config| config.apps.terms = terms("1", Some(&folder))).await;
    let register = |auth: Value| {
        let body = json!({ "username": "bob", "password": "eight or more", "auth": auth });
        house.request("POST", "/register", None, body)
    };
    let asked = register(Value::Null).await;
    assert_eq!(asked.status, 401);
    let asked = asked.json();
    assert_eq!(asked["flows"], json!([{ "stages": ["m.login.terms", "m.login.dummy"] }]));
    let policy = &asked["params"]["m.login.terms"]["policies"]["privacy_policy"];
    assert_eq!(policy["version"], "1");
    assert_eq!(policy["en"], json!({ "name": "Privacy & more", "url": "https://example.org/privacy" }));
    let url = policy["de"]["url"].as_str().unwrap();
    let (status, text) = page(&house, url.strip_prefix("http://localhost").unwrap()).await;
    assert!(status == 200 && text.contains("We keep &lt;nothing&gt;.</p><p>And say so."), "{text}");
    assert_eq!(page(&house, "/_snug/terms/privacy_policy/en").await.0, 404, "it is elsewhere");

    let session = &asked["session"];
    let half = register(json!({ "type": "m.login.terms", "session": session })).await;
    assert_eq!((half.status, &half.json()["completed"]), (401, &json!(["m.login.terms"])));
    let made = register(json!({ "type": "m.login.dummy", "session": session })).await.ok();
    let text = |field: &str| made[field].as_str().unwrap().to_owned();
    let bob = TestUser { id: text("user_id"), token: text("access_token"), device: text("device_id") };
    house.post("/createRoom", &bob, json!({})).await.ok();
}

#[tokio::test]
async fn a_new_version_is_agreed_to_before_anything_is_sent() {
    let house = TestServer::start().await;
    let (alice, bob, bot) = (house.register("alice").await, house.register("bob").await, house.register("bot").await);
    let made = house.post("/createRoom", &alice, json!({ "preset": "public_chat" })).await.ok();
    let room = made["room_id"].as_str().unwrap().to_owned();
    say(&house, &alice, &room, "1").await.ok();
    let mut down = house.down().await;
    down.change(|config| config.apps.terms = terms("2", None));
    let house = down.up().await;

    let code = "M_CONSENT_NOT_GIVEN";
    let refused = say(&house, &alice, &room, "2").await.refused(403, code);
    house.post("/createRoom", &alice, json!({})).await.refused(403, code);
    house.post(&format!("/join/{room}"), &bob, json!({})).await.refused(403, code);
    house.post(&format!("/rooms/{room}/invite"), &alice, json!({ "user_id": bob.id })).await.refused(403, code);
    house.get("/sync", &alice).await.ok();
    // A bot cannot read what it would agree to: it was silent from the day on which the operator set terms.
    house.post("/createRoom", &bot, json!({})).await.refused(403, code);
    let bot_id: ruma::OwnedUserId = bot.id.as_str().try_into().unwrap();
    house.server().users.set_bot(&bot_id, true).await.unwrap();
    house.post("/createRoom", &bot, json!({})).await.ok();
    // The notices of this server may be joined, to read what it wants.
    let bob_id: ruma::OwnedUserId = bob.id.as_str().try_into().unwrap();
    house.server().notices.tell(&bob_id, "There are new terms").await.unwrap();
    let synced = house.get("/sync", &bob).await.ok();
    let notices = synced["rooms"]["invite"].as_object().unwrap().keys().next().unwrap().clone();
    house.post(&format!("/rooms/{notices}/join"), &bob, json!({})).await.ok();

    let path = refused["consent_uri"].as_str().unwrap().strip_prefix("http://localhost").unwrap().to_owned();
    let (status, shown) = page(&house, &path).await;
    assert!(status == 200 && shown.contains("Privacy &amp; more") && shown.contains("@alice:localhost"), "{shown}");
    let [u, h, v] = ["u", "h", "v"].map(|name| hidden(&shown, name));
    assert_eq!(form(&house, "/_snug/terms", &format!("u=bob&h={h}&v={v}")).await.0, 403, "the link is alice's");
    let (_, again) = form(&house, "/_snug/terms", &format!("u={u}&h={h}&v=0")).await;
    assert!(again.contains("I agree"), "of other versions: {again}");
    say(&house, &alice, &room, "3").await.refused(403, code);
    let (status, agreed) = form(&house, "/_snug/terms", &format!("u={u}&h={h}&v={v}")).await;
    assert!(status == 200 && agreed.contains("You have agreed"), "{agreed}");
    say(&house, &alice, &room, "4").await.ok();
    assert!(page(&house, &path).await.1.contains("You have agreed"));
    // Leaving needs no consent.
    house.post(&format!("/rooms/{notices}/leave"), &bob, json!({})).await.ok();
}

#[tokio::test]
async fn a_registration_goes_on_in_a_browser() {
    let house = TestServer::start_with(|config| {
        config.apps.terms = terms("1", None);
        config.apps.registration = Registration::Token;
        config.apps.registration_tokens = vec!["friend".to_owned()];
    })
    .await;
    let register = |auth: Value| {
        let body = json!({ "username": "bob", "password": "eight or more", "auth": auth });
        house.request("POST", "/register", None, body)
    };
    let asked = register(Value::Null).await.json();
    assert_eq!(asked["flows"], json!([{ "stages": ["m.login.registration_token", "m.login.terms"] }]));
    let session = asked["session"].as_str().unwrap();
    let of = |stage: &str| format!("/_matrix/client/v3/auth/{stage}/fallback/web?session={session}");
    let token = of("m.login.registration_token");
    assert!(page(&house, &token).await.1.contains("name=\"token\""));
    assert!(form(&house, &token, "token=foe").await.1.contains("not valid"));
    assert!(register(json!({ "session": session })).await.json()["completed"] == json!([]));
    let (_, done) = form(&house, &token, "token=friend").await;
    assert!(done.contains("window.onAuthDone()"), "{done}");
    let (_, terms) = page(&house, &of("m.login.terms")).await;
    assert!(terms.contains("https://example.org/privacy") && terms.contains("I agree"), "{terms}");
    form(&house, &of("m.login.terms"), "").await;
    assert_eq!(register(json!({ "session": session })).await.ok()["user_id"], "@bob:localhost");

    assert_eq!(page(&house, &of("m.login.password")).await.0, 404);
    assert_eq!(page(&house, &of("m.login.dummy")).await.0, 404, "this session does not ask for it");
    let other = "/_matrix/client/v3/auth/m.login.terms/fallback/web";
    assert_eq!(page(&house, &format!("{other}?session=nonsense")).await.0, 404);
    assert_eq!(page(&house, other).await.0, 400);
    // A session for something else is not one of a registration.
    house.stop().await;
}

#[tokio::test]
async fn whoever_knows_no_step_clicks_and_logs_in_on_a_page() {
    let house = TestServer::start().await;
    let register = |auth: Value| {
        let body = json!({ "username": "bob", "password": "eight or more", "auth": auth });
        house.request("POST", "/register", None, body)
    };
    let asked = register(Value::Null).await.json();
    let session = asked["session"].as_str().unwrap();
    let step = format!("/_matrix/client/v3/auth/m.login.dummy/fallback/web?session={session}");
    assert!(page(&house, &step).await.1.contains("Go on"));
    assert!(form(&house, &step, "").await.1.contains("window.onAuthDone()"));
    assert_eq!(register(json!({ "session": session })).await.ok()["user_id"], "@bob:localhost");

    let reply = house.send("GET", "/_matrix/static/client/login/?device_id=D", &[], Vec::new()).await;
    let policy = reply.headers["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.contains("default-src 'none'; connect-src 'self';"), "{policy}");
    assert!(html(&reply).contains("window.matrixLogin.onLogin(response)"));
    house.stop().await;
}

#[tokio::test]
async fn a_server_says_whom_to_ask() {
    let house = TestServer::start().await;
    let path = "/.well-known/matrix/support";
    house.request("GET", path, None, Value::Null).await.refused(404, "M_NOT_FOUND");
    house.stop().await;
    let house = TestServer::start_with(|config| {
        let role = "m.role.admin".to_owned();
        let matrix_id = Some("@alice:localhost".to_owned());
        config.apps.support.contacts = vec![Contact { role, matrix_id, email_address: None }];
    })
    .await;
    let support = house.request("GET", path, None, Value::Null).await.ok();
    assert_eq!(support, json!({ "contacts": [{ "role": "m.role.admin", "matrix_id": "@alice:localhost" }] }));
}

/// Somebody with an app that does not show why nothing is sent never learnt of new terms.
#[tokio::test]
async fn who_has_not_agreed_to_new_terms_is_told_once() {
    let clock = Clock::simulated(1_700_000_000_000);
    let house = TestServer::start_at(clock.clone(), Random::seeded(1), |_| {}).await;
    let alice = house.register("alice").await;
    let told = async |house: &TestServer, who: &TestUser| {
        let synced = house.get("/sync", who).await.ok();
        let rooms = synced["rooms"]["invite"].as_object().cloned().unwrap_or_default();
        let Some(room) = rooms.keys().next().cloned() else { return Vec::new() };
        house.post(&format!("/rooms/{room}/join"), who, json!({})).await.ok();
        let messages = house.get(&format!("/rooms/{room}/messages?dir=b&limit=100"), who).await.ok();
        let bodies = messages["chunk"].as_array().unwrap().iter().filter_map(|event| event["content"]["body"].as_str());
        bodies.map(ToOwned::to_owned).collect::<Vec<_>>()
    };
    let mut house = house;
    // The second start has the same terms.
    for _ in 0..2 {
        let mut down = house.down().await;
        down.change(|config| config.apps.terms = Terms { notice: true, ..terms("2", None) });
        house = down.up().await;
        let digest = Terms { notice: true, ..terms("2", None) }.digest();
        eventually("all are told", async || {
            clock.advance(Duration::from_secs(1));
            house.server().users.told_of_terms(digest).await.unwrap().is_none().then_some(())
        })
        .await;
    }
    let bodies = told(&house, &alice).await;
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    assert!(bodies[0].contains("https://localhost/_snug/terms?u=alice&h="), "{bodies:?}");
    // Accounts that the operator made later were not told, and what they sent was refused.
    let new = snug::user::New { localpart: "mum".into(), password: Some("eight or more".into()), ..Default::default() };
    let id = house.server().users.create(new).await.unwrap().to_string();
    let login = async || {
        let who = json!({ "type": "m.id.user", "user": "mum" });
        let login = json!({ "type": "m.login.password", "identifier": who, "password": "eight or more" });
        let made = house.request("POST", "/login", None, login).await.ok();
        let text = |field: &str| made[field].as_str().unwrap().to_owned();
        TestUser { id: id.clone(), token: text("access_token"), device: text("device_id") }
    };
    let mum = login().await;
    let bodies = told(&house, &mum).await;
    assert!(bodies.len() == 1 && bodies[0].contains("/_snug/terms?u=mum&h="), "{bodies:?}");
    // The second app is in the room already, where nothing is new.
    let again = login().await;
    let synced = house.get("/sync", &again).await.ok();
    let rooms = synced["rooms"]["join"].as_object().unwrap();
    let events = rooms.values().flat_map(|room| room["timeline"]["events"].as_array().unwrap());
    assert_eq!(events.filter(|event| event["type"] == "m.room.message").count(), 1);
}

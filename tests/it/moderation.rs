//! Accounts that are locked or suspended, and what administrators see of others.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use snug::base::{Clock, Random};

use crate::rooms::eventually;
use crate::server::{TestServer, TestUser, answer_each};

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

/// What a bot was told of a report: path, body, and what this server answered with the token that came with it.
type Told = (String, Value, Vec<(u16, Value)>);

/// What the server answers to somebody with a token.
async fn ask(house: SocketAddr, path: &str, token: &str) -> (u16, Value) {
    let stream = tokio::net::TcpStream::connect(house).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get(format!("/_matrix/client/v3{path}")).header("host", "localhost");
    let request = request.header("authorization", format!("Bearer {token}")).body(Full::<Bytes>::default()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

/// A bot that takes reports as Draupnir and Mjolnir do: it asks the server who that is, and for the event.
#[derive(Clone, Default)]
struct Bot {
    house: Arc<Mutex<Option<SocketAddr>>>,
    /// More that it tries with the token.
    tries: Arc<Mutex<Vec<String>>>,
    status: Arc<Mutex<u16>>,
    told: Arc<Mutex<Vec<Told>>>,
    tokens: Arc<Mutex<Vec<String>>>,
}

impl Bot {
    async fn listen(&self, address: &str) -> String {
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let this = self.clone();
        answer_each(listener, move |request| {
            let this = this.clone();
            async move { this.answer(request).await }
        });
        url
    }

    async fn answer(&self, request: hyper::Request<Incoming>) -> hyper::Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        assert_eq!(request.method(), "POST");
        let token = request.headers()["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let house = self.house.lock().unwrap().unwrap();
        let mut replies = Vec::new();
        let asked = path.strip_prefix("/api/1/report/").unwrap();
        let (room, event) = asked.split_once('/').unwrap();
        let mut paths = vec!["/account/whoami".to_owned(), format!("/rooms/{room}/event/{event}")];
        paths.extend(self.tries.lock().unwrap().clone());
        for path in paths {
            replies.push(ask(house, &path, &token).await);
        }
        self.tokens.lock().unwrap().push(token);
        self.told.lock().unwrap().push((path, body, replies));
        hyper::Response::builder().status(*self.status.lock().unwrap()).body(Full::new(Bytes::from("{}"))).unwrap()
    }

    async fn told(&self, count: usize) -> Vec<Told> {
        eventually("the bot is told", async || {
            let mut told = self.told.lock().unwrap();
            (told.len() >= count).then(|| std::mem::take(&mut *told))
        })
        .await
    }
}

/// What `snug workers` is told of one of them.
async fn worker(house: &TestServer, name: &str) -> Value {
    let stream = tokio::net::UnixStream::connect(house.data_dir().join(snug::serve::SOCKET)).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = hyper::Request::get("/workers").header("host", "local").body(Full::<Bytes>::default()).unwrap();
    let body = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    let listed: Value = serde_json::from_slice(&body).unwrap();
    let found = listed["workers"].as_array().unwrap().iter().find(|worker| worker["name"] == name).cloned();
    found.unwrap_or_else(|| panic!("no worker {name} in {listed}"))
}

/// What others have a proxy rewrite towards their bot is a setting, and nobody's own token leaves the server.
#[tokio::test]
async fn reports_of_events_are_passed_on_to_a_bot() {
    let bot = Bot::default();
    *bot.status.lock().unwrap() = 200;
    let url = bot.listen("127.0.0.1:0").await;
    let clock = Clock::simulated(1_700_000_000_000);
    let house = TestServer::start_at(clock.clone(), Random::seeded(7), |config| {
        config.moderation.reports_to = Some(url.clone());
    })
    .await;
    *bot.house.lock().unwrap() = Some(house.address());
    let [alice, bob, _] = people(&house).await;
    let room = room(&house, &alice).await;
    house.post(&format!("/join/{room}"), &bob, json!({})).await.ok();
    let say = async |text: &str| {
        let path = format!("/rooms/{room}/send/m.room.message/{text}");
        let sent = house.put(&path, &alice, json!({ "msgtype": "m.text", "body": text })).await.ok();
        sent["event_id"].as_str().unwrap().to_owned()
    };
    let (rude, other) = (say("rude").await, say("other").await);
    *bot.tries.lock().unwrap() = vec![
        format!("/rooms/{room}/event/{other}"),
        "/sync".to_owned(),
        format!("/rooms/{room}/messages?dir=b"),
        "/profile/@alice:localhost/displayname".to_owned(),
    ];
    // Of rooms and users a bot is not told.
    house.post(&format!("/users/{}/report", alice.id), &bob, json!({ "reason": "user" })).await.ok();
    house.post(&format!("/rooms/{room}/report"), &bob, json!({ "reason": "room" })).await.ok();
    let report = async |event: &str, reason: &str| {
        let path = format!("/rooms/{room}/report/{event}");
        house.post(&path, &bob, json!({ "reason": reason, "score": -50 })).await.ok();
    };
    report(&rude, "it is rude").await;
    let told = bot.told(1).await;
    let (path, body, replies) = &told[0];
    let decoded = percent_encoding::percent_decode_str(path).decode_utf8().unwrap();
    assert_eq!(decoded, format!("/api/1/report/{room}/{rude}"));
    assert_eq!(*body, json!({ "reason": "it is rude", "score": -50 }));
    assert_eq!((replies[0].0, &replies[0].1["user_id"]), (200, &json!(bob.id)));
    assert_eq!((replies[1].0, &replies[1].1["content"]["body"]), (200, &json!("rude")));
    assert!(replies[2..5].iter().all(|(status, _)| *status == 401), "{replies:?}");
    let token = bot.tokens.lock().unwrap()[0].clone();
    assert_ne!(token, bob.token);
    // It ends with the request.
    let ended = async || house.request("GET", "/account/whoami", Some(&token), Value::Null).await.status;
    while ended().await != 401 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // One that the bot does not take is told again, five times, and holds nothing up.
    *bot.status.lock().unwrap() = 503;
    report(&rude, "again").await;
    assert_eq!(bot.told(1).await[0].1["reason"], "again");
    // The worker is at it while the bot is told, and idle once it has noted what came of it and when it tries again.
    let settled = async || {
        eventually("the worker has noted what came of it", async || {
            (worker(&house, "reports").await["doing"] == "idle").then_some(())
        })
        .await;
    };
    for times in 1..5 {
        settled().await;
        report(&other, &format!("later {times}")).await;
        let told = bot.told(1).await;
        assert!(told.iter().all(|(_, body, _)| body["reason"] != "again"), "a new report brings no old one: {told:?}");
        settled().await;
        clock.advance(Duration::from_secs(3600));
        let told = bot.told(1).await;
        assert_eq!(told[0].1["reason"], "again");
        // All that is owed is told in one round.
        settled().await;
        bot.told.lock().unwrap().clear();
    }
    *bot.status.lock().unwrap() = 200;
    clock.advance(Duration::from_secs(3600));
    let told = bot.told(1).await;
    settled().await;
    let rest = std::mem::take(&mut *bot.told.lock().unwrap());
    let mut reasons: Vec<_> = told.iter().chain(&rest).map(|(_, body, _)| body["reason"].clone()).collect();
    reasons.sort_by_key(ToString::to_string);
    assert!(!reasons.contains(&json!("again")) && reasons.contains(&json!("later 4")), "{reasons:?}");
}

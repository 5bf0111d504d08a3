//! Application services: what they may ask, what is kept for them, and what they are told, over kills of either side.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use serde_json::{Value, json};
use snug::base::{Clock, Random};
use snug::config::Config;

use crate::rooms::PATIENCE;
use crate::server::{Reply, TestServer, TestUser, answer_each};

/// What was asked of the service: method, target, token, body.
pub type Asked = (String, String, Option<String>, Value);

/// A service that keeps what it is told, and answers as it is set.
#[derive(Clone)]
pub struct Service {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    status: Arc<Mutex<u16>>,
    /// What it answers to a target that begins so.
    answers: Arc<Mutex<Vec<(String, Value)>>>,
    /// It knows the paths from before alone.
    is_old: Arc<AtomicBool>,
}

impl Service {
    pub async fn start() -> Service {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let service = Service {
            url,
            asked: Arc::default(),
            status: Arc::new(Mutex::new(200)),
            answers: Arc::default(),
            is_old: Arc::default(),
        };
        let this = service.clone();
        answer_each(listener, move |request| {
            let this = this.clone();
            async move { this.answer(request).await }
        });
        service
    }

    async fn answer(&self, request: hyper::Request<Incoming>) -> hyper::Response<Full<Bytes>> {
        let (method, target) = (request.method().to_string(), request.uri().to_string());
        let token = request.headers().get("authorization").and_then(|token| Some(token.to_str().ok()?.to_owned()));
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let answers = self.answers.lock().unwrap().clone();
        let found =
            answers.iter().find(|(path, _)| target.starts_with(path.as_str())).map(|(_, answer)| answer.clone());
        let is_old_path = self.is_old.load(Relaxed) && target.starts_with("/transactions/");
        let is_missing = self.is_old.load(Relaxed) && target.starts_with("/_matrix/app/");
        let is_known = is_old_path
            || !is_missing && (found.is_some() || target.contains("/transactions/") || target.contains("/ping"));
        let status = if is_known { *self.status.lock().unwrap() } else { 404 };
        self.asked.lock().unwrap().push((method, target, token, body));
        let text = match is_known {
            true => found.unwrap_or(json!({})),
            false if is_missing => json!({ "errcode": "M_UNRECOGNIZED" }),
            false => json!({ "errcode": "M_NOT_FOUND" }),
        };
        hyper::Response::builder().status(status).body(Full::new(Bytes::from(text.to_string()))).unwrap()
    }

    pub fn knows_only_old_paths(&self) {
        self.is_old.store(true, Relaxed);
    }

    fn set_status(&self, status: u16) {
        *self.status.lock().unwrap() = status;
    }

    pub fn answers(&self, path: &str, answer: Value) {
        self.answers.lock().unwrap().push((path.to_owned(), answer));
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The transactions that came: id and body.
    pub fn transactions(&self) -> Vec<(String, Value)> {
        let is_one = |(method, target, token, body): Asked| {
            let id = target.strip_prefix("/_matrix/app/v1/transactions/")?.to_owned();
            assert_eq!((method.as_str(), token.as_deref()), ("PUT", Some("Bearer hs")));
            Some((id, body))
        };
        self.asked().into_iter().filter_map(is_one).collect()
    }

    /// The bodies of messages that it was told, each transaction once.
    fn bodies(&self) -> Vec<String> {
        let mut seen = Vec::new();
        let mut bodies = Vec::new();
        for (id, body) in self.transactions() {
            if seen.contains(&id) {
                continue;
            }
            seen.push(id);
            let events = body["events"].as_array().unwrap().clone();
            bodies.extend(events.iter().filter_map(|event| Some(event["content"]["body"].as_str()?.to_owned())));
        }
        bodies
    }

    pub async fn until<T>(&self, what: &str, find: impl Fn(&Service) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(found) = find(self) {
                return found;
            }
            assert!(began.elapsed() < PATIENCE, "never: {what}; asked: {:?}", self.asked());
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    pub async fn hears(&self, body: &str) {
        self.until(body, |service| service.bodies().iter().any(|one| one == body).then_some(())).await;
    }

    pub fn file(&self, more: &str) -> String {
        format!(
            "id: irc\nurl: {}\nas_token: as\nhs_token: hs\nsender_localpart: ircbot\nprotocols: [irc]\nnamespaces:\n  users:\n  - \
             exclusive: true\n    regex: '@irc_.*'\n  aliases:\n  - exclusive: true\n    regex: '#irc_.*'\n{more}",
            self.url
        )
    }
}

/// A server with the service registered.
pub async fn house_with(service: &Service, more: &str) -> TestServer {
    TestServer::start_with(registered(service, more)).await
}

fn registered(service: &Service, more: &str) -> impl FnOnce(&mut Config) + use<> {
    let file = service.file(more);
    move |config| {
        let path = config.data_dir.with_file_name("irc.yaml");
        std::fs::write(&path, file).unwrap();
        config.appservices = vec![path];
    }
}

/// The service itself, with its own token.
pub fn bot() -> TestUser {
    TestUser { id: "@ircbot:localhost".to_owned(), token: "as".to_owned(), device: String::new() }
}

pub async fn ghost(house: &TestServer, name: &str) -> String {
    let body = json!({ "type": "m.login.application_service", "username": name, "inhibit_login": true });
    let made = house.post("/register", &bot(), body).await.ok();
    assert!(made.get("access_token").is_none());
    made["user_id"].as_str().unwrap().to_owned()
}

pub async fn make_room(house: &TestServer, who: &TestUser) -> String {
    let made = house.post("/createRoom", who, json!({ "preset": "public_chat" })).await.ok();
    made["room_id"].as_str().unwrap().to_owned()
}

pub async fn say(house: &TestServer, who: &TestUser, room: &str, text: &str) -> Reply {
    let path = format!("/rooms/{room}/send/m.room.message/{}", text.replace(' ', "-"));
    house.put(&path, who, json!({ "msgtype": "m.text", "body": text })).await
}

#[tokio::test]
async fn a_service_is_who_it_says_to_be_within_its_namespace() {
    let service = Service::start().await;
    let house = house_with(&service, "").await;
    let (alice, bot) = (house.register("alice").await, bot());
    assert_eq!(house.get("/account/whoami", &bot).await.ok(), json!({ "user_id": bot.id, "is_guest": false }));
    house.get("/account/whoami?user_id=@irc_x:localhost", &bot).await.refused(403, "M_FORBIDDEN");
    let ghost = ghost(&house, "irc_X").await;
    assert_eq!(ghost, "@irc_X:localhost", "a historical id");
    let as_ghost = format!("user_id={ghost}");
    assert_eq!(house.get(&format!("/account/whoami?{as_ghost}"), &bot).await.ok()["user_id"], ghost.as_str());
    house.get("/account/whoami?user_id=@alice:localhost", &bot).await.refused(403, "M_FORBIDDEN");
    // No token of anybody else's making is who the service was just now.
    for token in ["irc%00@irc_X:localhost%00", "irc%FF@irc_X:localhost%FF", "irc%00@ircbot:localhost%00"] {
        let path = format!("/account/whoami?access_token={token}");
        house.request("GET", &path, None, json!({})).await.refused(401, "M_UNKNOWN_TOKEN");
    }
    // Another's token is no service's: the parameter means nothing.
    assert_eq!(house.get(&format!("/account/whoami?{as_ghost}"), &alice).await.ok()["user_id"], alice.id.as_str());

    let register = |name: &str, service: bool| {
        let mut body = json!({ "username": name, "password": "a long password" });
        if service {
            body["type"] = "m.login.application_service".into();
        }
        body
    };
    house.post("/register", &bot, register("bob", true)).await.refused(400, "M_EXCLUSIVE");
    house.post("/register", &bot, register("irc_X", true)).await.refused(400, "M_USER_IN_USE");
    house.post("/register", &alice, register("irc_y", true)).await.refused(401, "M_UNKNOWN_TOKEN");
    house.request("POST", "/register", None, register("irc_y", true)).await.refused(401, "M_MISSING_TOKEN");
    house.request("POST", "/register", None, register("irc_y", false)).await.refused(400, "M_EXCLUSIVE");
    house.request("GET", "/register/available?username=irc_y", None, json!({})).await.refused(400, "M_EXCLUSIVE");

    let login = |user: &str| json!({ "type": "m.login.application_service", "identifier": { "type": "m.id.user", "user": user } });
    let session = house.post("/login", &bot, login("irc_X")).await.ok();
    assert_eq!(session["user_id"], ghost.as_str());
    house.post("/login", &bot, login("alice")).await.refused(403, "M_EXCLUSIVE");
    house.post("/login", &alice, login("irc_X")).await.refused(401, "M_UNKNOWN_TOKEN");
    let flows = house.request("GET", "/login", None, json!({})).await.ok();
    assert!(flows["flows"].as_array().unwrap().contains(&json!({ "type": "m.login.application_service" })));
}

#[tokio::test]
async fn a_service_makes_devices_and_needs_no_password() {
    let service = Service::start().await;
    let house = house_with(&service, "").await;
    let (ghost, bot) = (ghost(&house, "irc_a").await, bot());
    let path = format!("/devices/PHONE?user_id={ghost}");
    assert_eq!(house.put(&path, &bot, json!({ "display_name": "x" })).await.status, 201);
    assert_eq!(house.put(&path, &bot, json!({ "display_name": "y" })).await.status, 200);
    let who = |device: &str, name: &str| format!("/account/whoami?user_id={ghost}&{name}={device}");
    for name in ["device_id", "org.matrix.msc3202.device_id"] {
        assert_eq!(house.get(&who("PHONE", name), &bot).await.ok()["device_id"], "PHONE");
        house.get(&who("OTHER", name), &bot).await.refused(400, "M_UNKNOWN_DEVICE");
    }
    let keys = json!({ "one_time_keys": { "signed_curve25519:A": { "key": "x", "signatures": {} } } });
    house.post(&format!("/keys/upload?user_id={ghost}"), &bot, keys.clone()).await.refused(400, "M_MISSING_PARAM");
    house.post(&format!("/keys/upload?user_id={ghost}&device_id=PHONE"), &bot, keys).await.ok();
    assert_eq!(house.delete(&path, &bot).await.status, 200);
    house.get(&who("PHONE", "device_id"), &bot).await.refused(400, "M_UNKNOWN_DEVICE");
}

#[tokio::test]
async fn events_say_the_time_that_a_service_wants() {
    let service = Service::start().await;
    let house = house_with(&service, "").await;
    let (alice, bot) = (house.register("alice").await, bot());
    let (ghost, room) = (ghost(&house, "irc_a").await, make_room(&house, &alice).await);
    let member = json!({ "membership": "join" });
    let join = format!("/rooms/{room}/state/m.room.member/{ghost}?user_id={ghost}&ts=1000");
    house.put(&join, &bot, member).await.ok();
    let text = json!({ "msgtype": "m.text", "body": "old" });
    let send = format!("/rooms/{room}/send/m.room.message/1?user_id={ghost}&ts=2000");
    let sent = house.put(&send, &bot, text.clone()).await.ok();
    assert_eq!(house.put(&send, &bot, text.clone()).await.ok(), sent, "a transaction id without a device");
    let at =
        async |id: &str| house.get(&format!("/rooms/{room}/event/{id}"), &alice).await.ok()["origin_server_ts"].clone();
    assert_eq!(at(sent["event_id"].as_str().unwrap()).await, 2000);
    let member = house.get(&format!("/rooms/{room}/state"), &alice).await.ok();
    let joined = member.as_array().unwrap().iter().find(|event| event["state_key"] == ghost.as_str()).unwrap().clone();
    assert_eq!((&joined["origin_server_ts"], &joined["content"]["displayname"]), (&json!(1000), &json!("irc_a")));
    house
        .put(&send.replace("ts=2000", "ts=-1").replace("/1?", "/2?"), &bot, text.clone())
        .await
        .refused(400, "M_INVALID_PARAM");
    let own = format!("/rooms/{room}/send/m.room.message/3?ts=5");
    let sent = house.put(&own, &alice, text).await.ok();
    assert_ne!(at(sent["event_id"].as_str().unwrap()).await, 5, "of others it is ignored");
}

#[tokio::test]
async fn aliases_of_a_service_are_its_own_and_it_is_asked_for_unknown_ones() {
    let service = Service::start().await;
    // The clock stands still: what it said is remembered for seconds.
    let clock = Clock::simulated(1_700_000_000_000);
    let house = TestServer::start_at(clock, Random::os(), registered(&service, "")).await;
    let (alice, bot) = (house.register("alice").await, bot());
    let room = make_room(&house, &alice).await;
    let target = json!({ "room_id": room });
    house.put("/directory/room/%23irc_a:localhost", &alice, target.clone()).await.refused(400, "M_EXCLUSIVE");
    let named = json!({ "room_alias_name": "irc_a" });
    house.post("/createRoom", &alice, named).await.refused(400, "M_EXCLUSIVE");
    house.post(&format!("/join/{room}"), &bot, json!({})).await.ok();
    house.put("/directory/room/%23other:localhost", &bot, target.clone()).await.refused(400, "M_EXCLUSIVE");
    house.put("/directory/room/%23irc_a:localhost", &bot, target).await.ok();
    house.get("/directory/room/%23irc_a:localhost", &alice).await.ok();
    house.delete("/directory/room/%23irc_a:localhost", &alice).await.refused(400, "M_EXCLUSIVE");
    house.get("/directory/room/%23irc_none:localhost", &alice).await.refused(404, "M_NOT_FOUND");
    let asked = service.asked();
    assert!(asked.iter().any(|(method, target, ..)| {
        (method.as_str(), target.as_str()) == ("GET", "/_matrix/app/v1/rooms/%23irc_none%3Alocalhost")
    }));
    let users = |asked: Vec<Asked>| asked.iter().filter(|(_, target, ..)| target.contains("/users/")).count();
    house.get("/profile/@irc_none:localhost", &alice).await.refused(404, "M_NOT_FOUND");
    house.get("/profile/@irc_none:localhost", &alice).await.refused(404, "M_NOT_FOUND");
    house.get("/profile/@none:localhost", &alice).await.refused(404, "M_NOT_FOUND");
    assert_eq!(users(service.asked()), 1, "not again at once, and nobody else's");
}

#[tokio::test]
async fn other_networks_are_looked_up_at_the_service() {
    let service = Service::start().await;
    let instance = json!({ "network_id": "lib", "desc": "Libera", "fields": {} });
    let told =
        json!({ "user_fields": [], "location_fields": [], "field_types": {}, "instances": [instance], "icon": "x" });
    service.answers("/_matrix/app/v1/thirdparty/protocol/irc", told);
    let user = json!({ "userid": "@irc_b:localhost", "protocol": "irc", "fields": {} });
    service.answers("/_matrix/app/v1/thirdparty/user/irc?nick=b", json!([user, { "nonsense": true }]));
    let house = house_with(&service, "").await;
    let (alice, bot) = (house.register("alice").await, bot());
    let all = house.get("/thirdparty/protocols", &alice).await.ok();
    assert_eq!(all["irc"]["instances"][0]["instance_id"], "irc|lib");
    house.get("/thirdparty/protocol/irc", &alice).await.ok();
    house.get("/thirdparty/protocol/none", &alice).await.refused(404, "M_NOT_FOUND");
    assert_eq!(house.get("/thirdparty/user/irc?nick=b", &alice).await.ok(), json!([user]));
    assert_eq!(house.get("/thirdparty/location/irc?x=y", &alice).await.ok(), json!([]));
    house.get("/thirdparty/user", &alice).await.refused(400, "M_MISSING_PARAM");

    let room = make_room(&house, &alice).await;
    let path = format!("/directory/list/appservice/lib/{room}");
    house.put(&path, &alice, json!({ "visibility": "public" })).await.refused(401, "M_UNKNOWN_TOKEN");
    house.put(&path, &bot, json!({ "visibility": "public" })).await.ok();
    let rooms = async |query: &str| {
        let page = house.get(&format!("/publicRooms{query}"), &alice).await.ok();
        page["chunk"].as_array().unwrap().iter().filter(|room_of| room_of["room_id"] == room.as_str()).count()
    };
    assert_eq!((rooms("").await, rooms("?third_party_instance_id=irc%7Clib").await), (0, 1));
    assert_eq!(rooms("?include_all_networks=true").await, 1);
    house.put(&path, &bot, json!({ "visibility": "private" })).await.ok();
    assert_eq!(rooms("?third_party_instance_id=irc%7Clib").await, 0);
}

#[tokio::test]
async fn a_ping_says_what_is_wrong() {
    let service = Service::start().await;
    let house = house_with(&service, "").await;
    let (alice, bot, path) = (house.register("alice").await, bot(), "/_matrix/client/v1/appservice/irc/ping");
    house.post(path, &alice, json!({})).await.refused(401, "M_UNKNOWN_TOKEN");
    house.post("/_matrix/client/v1/appservice/other/ping", &bot, json!({})).await.refused(403, "M_FORBIDDEN");
    assert!(house.post(path, &bot, json!({ "transaction_id": "meow" })).await.ok()["duration_ms"].is_u64());
    let (_, _, token, body) = service.asked().into_iter().find(|(_, target, ..)| target.contains("/ping")).unwrap();
    assert_eq!((token.as_deref(), body), (Some("Bearer hs"), json!({ "transaction_id": "meow" })));
    service.set_status(403);
    let refused = house.post(path, &bot, json!({})).await.refused(502, "M_BAD_STATUS");
    assert_eq!((&refused["status"], &refused["body"]), (&json!(403), &json!("{}")));
    assert!(refused["error"].as_str().unwrap().contains("snug.query_token"));
}

#[tokio::test]
async fn a_service_is_told_its_rooms_in_order_and_nothing_else_over_ends_of_both() {
    let service = Service::start().await;
    let house = house_with(&service, "").await;
    let (alice, bot) = (house.register("alice").await, bot());
    let (room, other) = (make_room(&house, &alice).await, make_room(&house, &alice).await);
    let ghost = ghost(&house, "irc_a").await;
    say(&house, &alice, &room, "before anybody came").await.ok();
    house.post(&format!("/join/{room}?user_id={ghost}"), &bot, json!({})).await.ok();
    say(&house, &alice, &room, "one").await.ok();
    say(&house, &alice, &other, "elsewhere").await.ok();
    say(&house, &alice, &room, "two").await.ok();
    service.hears("two").await;
    assert_eq!(service.bodies(), ["one", "two"]);
    // Each event said that whoever reads it had left the room.
    let told = service.transactions().into_iter().flat_map(|(_, body)| body["events"].as_array().unwrap().clone());
    assert!(told.into_iter().all(|event| event["unsigned"]["membership"].is_null()));

    // It is away: what was tried comes again under the same id, and then the rest.
    service.set_status(500);
    say(&house, &alice, &room, "three").await.ok();
    let failed = service
        .until("a try", |service| {
            service.transactions().last().filter(|(_, body)| body["events"][0]["content"]["body"] == "three").cloned()
        })
        .await;
    say(&house, &alice, &room, "four").await.ok();
    let house = house.down().await.up().await;
    service.set_status(200);
    service.hears("four").await;
    assert_eq!(service.bodies(), ["one", "two", "three", "four"]);
    let again = service.transactions().into_iter().rfind(|(id, _)| *id == failed.0).unwrap();
    let events = |body: &Value| {
        body["events"].as_array().unwrap().iter().map(|event| event["event_id"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(events(&again.1), events(&failed.1), "the same content under the same id");

    // More than one transaction holds, while the server was down and up.
    for number in 0..130 {
        say(&house, &alice, &room, &format!("many {number}")).await.ok();
    }
    service.hears("many 129").await;
    assert_eq!(service.bodies().len(), 134);
    assert!(service.transactions().iter().all(|(_, body)| body["events"].as_array().unwrap().len() <= 100));

    // Until the last of its users left, and that too.
    house.post(&format!("/rooms/{room}/leave?user_id={ghost}"), &bot, json!({})).await.ok();
    say(&house, &alice, &room, "alone again").await.ok();
    house.post(&format!("/rooms/{other}/invite"), &alice, json!({ "user_id": ghost })).await.ok();
    let invite = service.until("the invite", |service| {
        let all = service.transactions();
        let mut events = all.iter().flat_map(|(_, body)| body["events"].as_array().unwrap());
        events.find(|event| event["room_id"] == other.as_str() && event["content"]["membership"] == "invite").cloned()
    });
    let state = invite.await["unsigned"]["invite_room_state"].clone();
    assert!(state.as_array().unwrap().iter().any(|event| event["type"] == "m.room.create"), "{state}");
    assert_eq!(service.bodies().len(), 134);
}

#[tokio::test]
async fn a_service_is_told_of_typing_receipts_and_messages_to_devices() {
    let service = Service::start().await;
    let house = house_with(&service, "receive_ephemeral: true\norg.matrix.msc3202: true\n").await;
    let (alice, bot) = (house.register("alice").await, bot());
    let (room, ghost) = (make_room(&house, &alice).await, ghost(&house, "irc_a").await);
    house.post(&format!("/join/{room}?user_id={ghost}"), &bot, json!({})).await.ok();
    house.put(&format!("/devices/PHONE?user_id={ghost}"), &bot, json!({})).await;
    let said = say(&house, &alice, &room, "hello").await.ok();
    service.hears("hello").await;
    house
        .put(&format!("/rooms/{room}/typing/{}", alice.id), &alice, json!({ "typing": true, "timeout": 120_000 }))
        .await
        .ok();
    let told = async |kind: &str| {
        service
            .until(kind, |service| {
                let all = service.transactions();
                let mut events = all.iter().flat_map(|(_, body)| body["ephemeral"].as_array().into_iter().flatten());
                events.find(|event| event["type"] == kind).cloned()
            })
            .await
    };
    let typing = told("m.typing").await;
    assert_eq!((&typing["room_id"], &typing["content"]["user_ids"]), (&json!(room), &json!([alice.id])));
    let id = said["event_id"].as_str().unwrap().to_owned();
    house.post(&format!("/rooms/{room}/receipt/m.read/{id}"), &alice, json!({})).await.ok();
    let receipt = told("m.receipt").await;
    assert!(receipt["content"][&id]["m.read"][&alice.id]["ts"].is_u64(), "{receipt}");

    let message = json!({ "messages": { &ghost: { "PHONE": { "secret": 7 } } } });
    house.put("/sendToDevice/m.test/1", &alice, message).await.ok();
    let find = |service: &Service| {
        let all = service.transactions();
        let mut found = all.iter().flat_map(|(_, body)| body["to_device"].as_array().into_iter().flatten());
        found.next().cloned()
    };
    let message = service.until("a message to a device", find).await;
    assert_eq!((&message["to_user_id"], &message["to_device_id"]), (&json!(ghost), &json!("PHONE")));
    assert_eq!((&message["type"], &message["content"]), (&json!("m.test"), &json!({ "secret": 7 })));
    say(&house, &alice, &room, "later").await.ok();
    service.hears("later").await;
    let count = service.transactions().iter().filter(|(_, body)| body["to_device"].is_array()).count();
    assert_eq!(count, 1, "told once");
}

/// What a service answers beside its status means nothing. One with a long answer was sent the same transaction for ever.
#[tokio::test]
async fn a_service_that_answers_at_length_has_taken_its_transaction() {
    let service = Service::start().await;
    service.answers("/_matrix/app/v1/transactions/", json!({ "page": "x".repeat(200_000) }));
    let house = house_with(&service, "").await;
    let (alice, bot) = (house.register("alice").await, bot());
    let room = make_room(&house, &bot).await;
    house.post(&format!("/join/{room}"), &alice, json!({})).await.ok();
    say(&house, &alice, &room, "one").await.ok();
    service.hears("one").await;
    say(&house, &alice, &room, "two").await.ok();
    service.hears("two").await;
    let mut ids: Vec<_> = service.transactions().into_iter().map(|(id, _)| id).collect();
    let all = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), all, "each once");
    // One that does not take it, at length, is sent it again.
    service.set_status(500);
    say(&house, &alice, &room, "three").await.ok();
    let count = |service: &Service| {
        service.transactions().iter().filter(|(_, body)| body.to_string().contains("three")).count()
    };
    service.until("three twice", |service| (count(service) >= 2).then_some(())).await;
}

//! The Nth grant of memory is refused, for N = 1, 2, … until an operation asks for no more. Whatever is refused is answered as
//! that (429, 503 or 507 with a code and a sentence), nothing of it is kept, the same once more works, and in the end every byte
//! is back in its account.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use snug::budget::Budget;
use snug::store::tables::room::{self, event, timeline};
use tokio::net::TcpStream;

use crate::net::Net;
use crate::rooms::{PATIENCE, bodies, create, eventually, join, no_doubles, q, say, scrolled, sees_text, set, texts};
use crate::server::{TestServer, TestUser};

/// More grants than any operation here takes.
const GRANTS_MAX: u64 = 300;

/// A request and what it says of itself when it goes wrong.
struct Ask {
    method: &'static str,
    path: String,
    body: Vec<u8>,
}

impl Ask {
    fn json(method: &'static str, path: &str, body: Value) -> Ask {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        Ask { method, path: format!("/_matrix/client/v3{path}"), body }
    }
}

/// What came of a request: an answer, or none at all because the connection ended or the answer was cut short.
enum Outcome {
    Answered(u16, Vec<u8>),
    Cut(String),
}

/// One request on a connection that is there before any grant is refused.
async fn outcome(server: &TestServer, who: &TestUser, refuse: u64, ask: &Ask) -> Outcome {
    let stream = TcpStream::connect(server.address()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = |method: &str, path: &str, body: Vec<u8>| {
        let builder = hyper::Request::builder().method(method).uri(path).header("host", "localhost");
        let builder = builder.header("authorization", format!("Bearer {}", who.token));
        builder.body(Full::<bytes::Bytes>::from(body)).unwrap()
    };
    let known = sender.send_request(request("GET", "/_matrix/client/versions", Vec::new())).await.unwrap();
    known.into_body().collect().await.unwrap();
    sender.ready().await.unwrap();
    server.server().budget.refuse_nth(refuse);
    let response = match sender.send_request(request(ask.method, &ask.path, ask.body.clone())).await {
        Ok(response) => response,
        Err(error) => return Outcome::Cut(error.to_string()),
    };
    let status = response.status().as_u16();
    match response.into_body().collect().await {
        Ok(body) => Outcome::Answered(status, body.to_bytes().to_vec()),
        Err(error) => Outcome::Cut(format!("after {status}: {error}")),
    }
}

/// Runs an operation with the Nth grant of `refusing` refused, for every N until none is. `ask` is given N, so that each try is about
/// something of its own; the answer of each second try, which must be good, goes to `then`.
async fn each_grant_refused(
    net: &Net,
    what: &str,
    (asked, who): (&TestServer, &TestUser),
    refusing: &TestServer,
    mut ask: impl AsyncFnMut(u64) -> Ask,
    mut then: impl AsyncFnMut(u64, Vec<u8>),
) {
    for nth in 1..GRANTS_MAX {
        let ask = ask(nth).await;
        let budget = &refusing.server().budget;
        let is_same = std::ptr::eq(asked, refusing);
        if !is_same {
            budget.refuse_nth(nth);
        }
        let outcome = outcome(asked, who, if is_same { nth } else { 0 }, &ask).await;
        let was_refused = !budget.refusal_pending();
        budget.refuse_nth(0);
        let why = format!("{what}: {} {} with grant {nth} refused", ask.method, ask.path);
        let good = match outcome {
            Outcome::Answered(200, body) => Some(body),
            Outcome::Answered(status, body) => {
                check_refusal(&why, status, &body, is_same);
                None
            }
            Outcome::Cut(error) => panic!("{why}: no answer: {error}"),
        };
        assert!(was_refused || good.is_some(), "{why}: nothing was refused, and it failed");
        let body = match good {
            Some(body) => body,
            None => once_more(net, asked, who, &ask, &why).await,
        };
        then(nth, body).await;
        if !was_refused {
            assert!(nth > 1, "{what}: takes no grant at all");
            return;
        }
    }
    panic!("{what}: takes more than {GRANTS_MAX} grants");
}

/// The answer once the pauses after a failure are over. What goes on in the background may fail once more meanwhile.
async fn once_more(net: &Net, asked: &TestServer, who: &TestUser, ask: &Ask, why: &str) -> Vec<u8> {
    let mut said = String::new();
    for _ in 0..20 {
        net.time.clock.advance(Duration::from_secs(120));
        said = match outcome(asked, who, 0, ask).await {
            Outcome::Answered(200, body) => return body,
            Outcome::Answered(502, body) => String::from_utf8_lossy(&body).into_owned(),
            Outcome::Answered(status, body) => {
                panic!("{why}, and once more: {status} {}", String::from_utf8_lossy(&body))
            }
            Outcome::Cut(error) => panic!("{why}, and once more: {error}"),
        };
    }
    panic!("{why}, and twenty times more: {said}")
}

fn check_refusal(why: &str, status: u16, body: &[u8], is_own: bool) {
    let text = String::from_utf8_lossy(body);
    let said: Value = serde_json::from_slice(body).unwrap_or_else(|error| panic!("{why}: {status} {error}: {text}"));
    // Another server's want of memory is its failure.
    let fits = if is_own { [429, 503, 507].contains(&status) } else { [429, 502, 503, 504, 507].contains(&status) };
    assert!(fits, "{why}: {status} {text}");
    assert!(
        said["errcode"].is_string() && said["error"].as_str().is_some_and(|error| !error.is_empty()),
        "{why}: {text}"
    );
}

/// Every byte is back where it came from, once the server is stopped.
async fn all_is_back(servers: Vec<TestServer>) {
    for server in servers {
        let budget: Budget = server.server().budget.clone();
        server.stop().await;
        eventually("all grants are given back", async || {
            let kept: Vec<_> = budget.accounts().iter().filter(|account| account.used() > 0).collect();
            kept.is_empty().then_some(())
        })
        .await;
    }
}

/// No request, whatever is refused while it is answered, is half done.
#[tokio::test(flavor = "multi_thread")]
async fn apps_are_refused_in_order() {
    let net = Net::start(1, 1).await;
    let server = &net.servers[0];
    let alice = server.register("alice").await;
    let room = create(server, &alice, json!({ "preset": "public_chat" })).await;
    let at = (server, &alice);
    let nothing = async |_, _| {};

    let mut said = Vec::new();
    let send = |nth: u64| format!("/rooms/{}/send/m.room.message/t{nth}", q(&room));
    let message = |nth: u64| json!({ "msgtype": "m.text", "body": format!("{nth:03}") });
    each_grant_refused(
        &net,
        "a message",
        at,
        server,
        async |nth| Ask::json("PUT", &send(nth), message(nth)),
        async |nth, _| said.push(format!("{nth:03}")),
    )
    .await;
    let page = server.get(&format!("/rooms/{}/messages?dir=b&limit=100", q(&room)), &alice).await.ok();
    let mut events = page["chunk"].as_array().unwrap().clone();
    events.reverse();
    no_doubles(&events);
    assert_eq!(bodies(&events), said, "each is there once, in the order of the good answers");

    let topic = |nth: u64| json!({ "topic": format!("{nth}") });
    let path = format!("/rooms/{}/state/m.room.topic", q(&room));
    each_grant_refused(
        &net,
        "state",
        at,
        server,
        async |nth| Ask::json("PUT", &path, topic(nth)),
        async |nth, _| {
            let now = server.get(&path, &alice).await.ok();
            assert_eq!(now["topic"], format!("{nth}"));
        },
    )
    .await;

    let whole = async |_: u64, body: Vec<u8>| {
        let sync: Value = serde_json::from_slice(&body).unwrap();
        let events = sync["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap();
        assert!(!events.is_empty() && sync["next_batch"].is_string(), "{sync}");
    };
    let since = server.get("/sync", &alice).await.ok()["next_batch"].as_str().unwrap().to_owned();
    say(server, &alice, &room, "news").await;
    let first = async |_| Ask::json("GET", "/sync?timeout=0", Value::Null);
    each_grant_refused(&net, "a first sync", at, server, first, whole).await;
    let later = async |_| Ask::json("GET", &format!("/sync?timeout=0&since={since}"), Value::Null);
    each_grant_refused(&net, "a later sync", at, server, later, whole).await;
    let members = async |_| Ask::json("GET", &format!("/rooms/{}/members", q(&room)), Value::Null);
    each_grant_refused(&net, "the members", at, server, members, nothing).await;

    let file: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    let upload = async |_| Ask { method: "POST", path: "/_matrix/media/v3/upload".into(), body: file.clone() };
    let mut uri = String::new();
    each_grant_refused(&net, "an upload", at, server, upload, async |_, body| {
        let made: Value = serde_json::from_slice(&body).unwrap();
        uri = made["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned();
    })
    .await;
    let path = format!("/_matrix/client/v1/media/download/{uri}");
    let download = async |_| Ask { method: "GET", path: path.clone(), body: Vec::new() };
    each_grant_refused(&net, "a download", at, server, download, async |_, body| assert!(body == file)).await;

    let keys = async |nth: u64| {
        let key = json!({ "key": "one", "signatures": {} });
        let key = json!({ "signed_curve25519:A": key, format!("signed_curve25519:B{nth}"): key });
        Ask::json("POST", "/keys/upload", json!({ "one_time_keys": key }))
    };
    each_grant_refused(&net, "one-time keys", at, server, keys, async |nth, body| {
        let counts: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(counts["one_time_key_counts"]["signed_curve25519"], nth + 1, "each is there once");
    })
    .await;
    let query = async |_| Ask::json("POST", "/keys/query", json!({ "device_keys": { &alice.id: [] } }));
    each_grant_refused(&net, "a key query", at, server, query, nothing).await;

    let rooms = async |nth: u64| Ask::json("POST", "/createRoom", json!({ "name": format!("{nth}") }));
    each_grant_refused(&net, "a new room", at, server, rooms, nothing).await;
    let login = async |_| {
        let user = json!({ "type": "m.id.user", "user": "alice" });
        Ask::json(
            "POST",
            "/login",
            json!({ "type": "m.login.password", "identifier": user, "password": "secret alice" }),
        )
    };
    each_grant_refused(&net, "a login", at, server, login, nothing).await;
    all_is_back(net.servers).await;
}

/// A small room is joined while either of the two servers is out of memory for a moment.
#[tokio::test(flavor = "multi_thread")]
async fn joins_are_refused_in_order() {
    let net = Net::start(2, 2).await;
    let [one, two] = &net.servers[..] else { panic!("there are two servers") };
    let (alice, bob) = (one.register("alice").await, two.register("bob").await);
    for refusing in [two, one] {
        let mut room = String::new();
        let join = async |_| {
            room = create(one, &alice, json!({ "preset": "public_chat", "name": "a room" })).await;
            say(one, &alice, &room, "before").await;
            Ask::json("POST", &format!("/join/{}?via={}", q(&room), one.name()), json!({}))
        };
        each_grant_refused(
            &net,
            &format!("a join, {} refusing", refusing.name()),
            (two, &bob),
            refusing,
            join,
            async |nth, body| {
                let joined: Value = serde_json::from_slice(&body).unwrap();
                let room = joined["room_id"].as_str().unwrap();
                say(two, &bob, room, &format!("{nth}")).await;
                sees_text(one, &alice, room, &format!("{nth}")).await;
            },
        )
        .await;
    }
    all_is_back(net.servers).await;
}

/// What another server sends arrives, whatever is refused while it is taken in.
#[tokio::test(flavor = "multi_thread")]
async fn transactions_are_refused_in_order() {
    let net = Net::start(2, 3).await;
    let [one, two] = &net.servers[..] else { panic!("there are two servers") };
    let (alice, bob) = (one.register("alice").await, two.register("bob").await);
    let room = create(one, &alice, json!({ "preset": "public_chat" })).await;
    join(two, &bob, &room, one).await.ok();
    let mut said = Vec::new();
    for nth in 1..GRANTS_MAX {
        let budget = &two.server().budget;
        budget.refuse_nth(nth);
        said.push(format!("{nth:03}"));
        set(one, &alice, &room, "m.room.topic", json!({ "topic": nth.to_string() })).await;
        let id = send(one, &alice, &room, &format!("{nth:03}")).await;
        assert!(arrives_soon(&net, two, &room, &id, || false).await, "grant {nth} refused: a message does not arrive");
        let was_refused = !budget.refusal_pending();
        budget.refuse_nth(0);
        if !was_refused {
            break;
        }
    }
    assert!(said.len() < GRANTS_MAX as usize - 1, "a transaction takes no end of grants");
    assert_eq!(texts(two, &bob, &room).await, said);
    all_is_back(net.servers).await;
}

/// A message of somebody; answers its id.
async fn send(server: &TestServer, who: &TestUser, room: &str, text: &str) -> String {
    let path = format!("/rooms/{}/send/m.room.message/{}", q(room), q(text));
    let sent = server.put(&path, who, json!({ "msgtype": "m.text", "body": text })).await.ok();
    sent["event_id"].as_str().unwrap().to_owned()
}

/// Whether an event is the newest of the room before long. Looked for in the store: a question of an app would take grants too. It
/// may be given up after some minutes of the servers when `may_fail` says so.
async fn arrives_soon(net: &Net, server: &TestServer, room: &str, id: &str, may_fail: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    for look in 1.. {
        if newest(server, room) == id {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
        // Over what is under way, and over pauses after a failure. On a slow machine what is under way would never be done by its
        // time if that went on.
        if look < 100 || look % 300 == 0 {
            net.time.clock.advance(Duration::from_secs(if look < 100 { 2 } else { 600 }));
        } else if may_fail() || began.elapsed() > PATIENCE {
            break;
        }
    }
    false
}

fn newest(server: &TestServer, room: &str) -> String {
    let read = server.server().store.read().unwrap();
    let num = room::num(&read, room).unwrap().unwrap();
    let (_, event) = timeline::at_or_before(&read, num, i64::MAX).unwrap().unwrap();
    event::ids(&read, &[event]).unwrap().remove(0)
}

/// A gap is filled from another server, whatever is refused meanwhile: one server is cut off from the author of what a third one's
/// message follows.
#[tokio::test(flavor = "multi_thread")]
async fn gaps_are_filled_in_the_end() {
    let net = Net::start(3, 4).await;
    let [zero, one, two] = &net.servers[..] else { panic!("there are three servers") };
    let (alice, bob, carol) = (zero.register("alice").await, one.register("bob").await, two.register("carol").await);
    let room = create(zero, &alice, json!({ "preset": "public_chat" })).await;
    join(one, &bob, &room, zero).await.ok();
    join(two, &carol, &room, zero).await.ok();
    say(two, &carol, &room, "all are here").await;
    sees_text(one, &bob, &room, "all are here").await;
    // What zero says reaches two by way of one.
    net.wire(0, 2).cut();
    let mut said = Vec::new();
    for nth in 1..GRANTS_MAX {
        let budget = &two.server().budget;
        for text in [format!("{nth}a"), format!("{nth}b"), format!("{nth}c")] {
            say(zero, &alice, &room, &text).await;
            sees_text(one, &bob, &room, &text).await;
            said.push(text);
        }
        budget.refuse_nth(nth);
        let id = send(one, &bob, &room, &format!("{nth}d")).await;
        said.push(format!("{nth}d"));
        if !arrives_soon(&net, two, &room, &id, || !budget.refusal_pending()).await {
            // What the gap needs did not fit the memory set aside for it, and its event was given up alone.
            assert!(!budget.refusal_pending(), "nothing was refused, and a gap was not filled");
            let id = send(one, &bob, &room, &format!("{nth}e")).await;
            said.push(format!("{nth}e"));
            let arrives = arrives_soon(&net, two, &room, &id, || false).await;
            assert!(arrives, "grant {nth} refused: the next event does not arrive");
        }
        let was_refused = !budget.refusal_pending();
        budget.refuse_nth(0);
        if !was_refused {
            break;
        }
    }
    assert!(said.len() < 4 * (GRANTS_MAX as usize - 1), "a gap takes no end of grants");
    // What was not fetched then is when somebody scrolls back.
    let events = scrolled(two, &carol, &room).await;
    no_doubles(&events);
    let found = bodies(&events);
    assert!(said.iter().all(|text| found.contains(&text.as_str())), "{found:?}");
    all_is_back(net.servers).await;
}

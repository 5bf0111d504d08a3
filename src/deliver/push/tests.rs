//! The worker for push gateways against gateways on the loopback.

use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use ruma::{OwnedRoomId, OwnedUserId, RoomId};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::base::{Doing, Random, StopWatch};
use crate::matrix::sign;
use crate::remote::RemoteOptions;
use crate::room::testing::{House, house, sending};
use crate::room::{Marker, Sending};
use crate::store::schema::{PUSHER, PUSHER_KEY, PUSHER_RETRY, PUSHER_STATUS};

/// A gateway or an endpoint over plain HTTP: what it was told, and how it answers.
#[derive(Clone)]
struct Gateway {
    origin: String,
    told: Arc<Mutex<Vec<Value>>>,
    status: Arc<Mutex<u16>>,
    /// In its next answer.
    rejected: Arc<Mutex<Vec<String>>>,
    /// Bytes behind its answer.
    padding: Arc<AtomicUsize>,
    /// It takes no longer ones.
    bytes_max: Arc<AtomicUsize>,
    retry_after: Arc<Mutex<Option<u64>>>,
    /// It answers nobody yet, and so many wait for it.
    holds: Arc<AtomicBool>,
    asking: Arc<AtomicUsize>,
    /// Requests so far.
    asked: Arc<AtomicUsize>,
}

impl Gateway {
    async fn start() -> Gateway {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = Gateway {
            origin: format!("http://{}", listener.local_addr().unwrap()),
            told: Arc::default(),
            status: Arc::new(Mutex::new(200)),
            rejected: Arc::default(),
            padding: Arc::default(),
            bytes_max: Arc::new(AtomicUsize::new(usize::MAX)),
            retry_after: Arc::default(),
            holds: Arc::default(),
            asking: Arc::default(),
            asked: Arc::default(),
        };
        let this = gateway.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let this = this.clone();
                let service = service_fn(move |request: http::Request<Incoming>| {
                    let this = this.clone();
                    async move {
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        this.asking.fetch_add(1, Ordering::SeqCst);
                        while this.holds.load(Ordering::SeqCst) {
                            tokio::time::sleep(Duration::from_millis(2)).await;
                        }
                        this.asking.fetch_sub(1, Ordering::SeqCst);
                        this.asked.fetch_add(1, Ordering::SeqCst);
                        let status = match body.len() > this.bytes_max.load(Ordering::SeqCst) {
                            true => 413,
                            false => *this.status.lock().unwrap(),
                        };
                        if status == 200 {
                            let told: Value = serde_json::from_slice(&body).unwrap();
                            this.told.lock().unwrap().push(told["notification"].clone());
                        }
                        let mut text =
                            json!({ "rejected": mem::take(&mut *this.rejected.lock().unwrap()) }).to_string();
                        text.push_str(&" ".repeat(this.padding.load(Ordering::SeqCst)));
                        let mut answer = http::Response::builder().status(status);
                        if let Some(seconds) = *this.retry_after.lock().unwrap() {
                            answer = answer.header("retry-after", seconds);
                        }
                        Ok::<_, Infallible>(answer.body(Full::new(Bytes::from(text))).unwrap())
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        gateway
    }

    fn url(&self) -> String {
        format!("{}/_matrix/push/v1/notify", self.origin)
    }

    fn answers(&self, status: u16) {
        *self.status.lock().unwrap() = status;
    }

    fn told(&self) -> Vec<Value> {
        self.told.lock().unwrap().clone()
    }

    fn bodies(&self) -> Vec<String> {
        let told = self.told();
        told.iter().filter_map(|told| Some(told["content"]["body"].as_str()?.to_owned())).collect()
    }

    fn badges(&self) -> Vec<u64> {
        self.told().iter().filter_map(|told| told["counts"]["unread"].as_u64()).collect()
    }
}

/// Anna and Ben in a room, and the worker.
struct Lab {
    house: House,
    anna: OwnedUserId,
    ben: OwnedUserId,
    room: OwnedRoomId,
    running: Option<(Pushes, JoinHandle<()>)>,
    private: Vec<String>,
    worker: Worker,
}

const OWN: &str = "https://home.example";

impl Lab {
    async fn new(gateways: &[&Gateway]) -> Lab {
        let house = house();
        let (anna, ben) = (house.user("anna").await, house.user("ben").await);
        let room = house.public_room(&anna).await;
        house.join(&ben, &room).await.unwrap();
        let private = gateways.iter().map(|gateway| gateway.origin.clone()).collect();
        let worker = Worker::new("push", &house.clock);
        let mut lab = Lab { house, anna, ben, room, running: None, private, worker };
        lab.start();
        lab
    }

    fn start(&mut self) {
        let (budget, clock, store) = (Budget::for_tests(), self.house.clock.clone(), self.house.store.clone());
        let key = Arc::new(sign::Key::from_seed("a_test", [7; 32]));
        let options = RemoteOptions::new(self.house.server.clone(), key);
        let remote = Remote::new(options, clock.clone(), Random::seeded(3), &budget, store.clone()).unwrap();
        let options = PushOptions { requests_max: 4, own: vec![OWN.to_owned()], private: self.private.clone() };
        let pushes = Pushes::new(store, remote, Arc::new(self.house.rooms.clone()), clock, &budget, options);
        let (running, worker) = (pushes.clone(), self.worker.clone());
        let running = tokio::spawn(async move { running.run(&worker).await });
        self.running = Some((pushes, running));
    }

    async fn stop(&mut self) {
        let (pushes, running) = self.running.take().unwrap();
        pushes.stop();
        running.await.unwrap();
    }

    async fn set(&self, user: &OwnedUserId, url: &str, pushkey: &str, change: impl FnOnce(&mut Pusher)) {
        let num = self.house.user_num(user);
        let mut pusher = Pusher {
            app_id: "app".into(),
            pushkey: pushkey.into(),
            app_display_name: "App".into(),
            device_display_name: "Phone".into(),
            profile_tag: None,
            lang: "en".into(),
            url: url.into(),
            data: RawValue::from_string(json!({ "url": url }).to_string()).unwrap(),
            device_id: "PHONE".into(),
            enabled: true,
            without_badge: false,
            set_ms: self.house.clock.now_ms(),
        };
        change(&mut pusher);
        let job = move |w: &mut Write<'_>| {
            let key = Key::of(w, num, &pusher.app_id, &pusher.pushkey);
            pusher::put(w, &key, &pusher)
        };
        self.house.store.write(job).await.unwrap();
    }

    async fn say(&self, text: &str) -> ruma::OwnedEventId {
        self.house.say(&self.anna, &self.room, text).await
    }

    async fn read(&self, event: &ruma::EventId) {
        let marker = Marker { kind: "m.read".into(), event_id: event.to_owned(), thread: None, allow_backward: false };
        self.house.rooms.set_receipt(&self.ben, &self.room, marker).await.unwrap();
    }

    /// Somebody else in the room, with a pusher.
    async fn joined(&self, name: &str, gateway: &Gateway) -> OwnedUserId {
        let user = self.house.user(name).await;
        self.house.join(&user, &self.room).await.unwrap();
        self.set(&user, &gateway.url(), name, |_| {}).await;
        user
    }

    /// Rows of all tables about pushers.
    fn rows(&self) -> usize {
        let (read, mut rows) = (self.house.read(), 0);
        for table in [&PUSHER, &PUSHER_KEY, &PUSHER_STATUS, &PUSHER_RETRY] {
            let count = &mut |_: &[u8], _: &[u8]| {
                rows += 1;
                Ok(ControlFlow::Continue(()))
            };
            read.range(table, &[], None, false, count).unwrap();
        }
        rows
    }
}

/// Of a test with a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(180);

/// Lets tasks and sockets go on until `done`. The simulated time stands still meanwhile.
async fn until(done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it happens");
}

/// Until the worker has done all that is due by now: what it has under way is not cut off since the machine is busy.
async fn idle(lab: &Lab) {
    let begun = StopWatch::start();
    let waits = || {
        let status = lab.worker.status();
        let sleeps = status.next_ms.is_some_and(|next| next > lab.house.clock.now_ms());
        // One that began to sleep as time passed sleeps for longer than it says.
        status.doing == Doing::Idle && (sleeps || begun.elapsed() > Duration::from_secs(2))
    };
    tokio::time::sleep(Duration::from_millis(2)).await;
    until(waits).await;
}

/// Likewise, while the simulated time goes on.
async fn in_time(lab: &Lab, done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            idle(lab).await;
            lab.house.clock.advance(Duration::from_secs(1));
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it happens");
}

/// Long enough for what should not happen.
async fn a_while() {
    tokio::time::sleep(Duration::from_millis(150)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_told_at_once_and_the_badge_when_it_is_read() {
    let gateway = Gateway::start().await;
    let lab = Lab::new(&[&gateway]).await;
    lab.say("before there was a pusher").await;
    lab.set(&lab.ben, &gateway.url(), "phone", |_| {}).await;
    let hello = lab.say("hello").await;
    // Without any time passing.
    until(|| gateway.bodies() == ["hello"]).await;
    let told = gateway.told().remove(0);
    assert_eq!((&told["event_id"], &told["room_id"]), (&json!(hello), &json!(lab.room)));
    assert_eq!((&told["sender"], &told["type"]), (&json!(lab.anna), &json!("m.room.message")));
    assert_eq!((&told["prio"], &told["counts"]), (&json!("high"), &json!({ "unread": 1 })));
    assert_eq!(told["devices"][0]["tweaks"], json!({ "sound": "default" }));
    lab.read(&hello).await;
    until(|| gateway.badges() == [1, 0]).await;
    assert!(gateway.told()[1].get("event_id").is_none());

    // Own messages ring nobody; MSC4076: an app that counts for itself is told no counts.
    lab.set(&lab.anna, &gateway.url(), "anna", |_| {}).await;
    lab.set(&lab.ben, &gateway.url(), "phone", |pusher| pusher.without_badge = true).await;
    let second = lab.say("second").await;
    until(|| gateway.bodies().len() == 2).await;
    lab.read(&second).await;
    a_while().await;
    let told = gateway.told();
    assert_eq!((told.len(), told[2].get("counts")), (3, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_gateway_is_tried_again_after_a_restart_and_told_of_what_nobody_read() {
    let (gateway, well) = (Gateway::start().await, Gateway::start().await);
    let mut lab = Lab::new(&[&gateway, &well]).await;
    lab.set(&lab.ben, &gateway.url(), "phone", |_| {}).await;
    lab.set(&lab.ben, &well.url(), "tablet", |_| {}).await;
    gateway.answers(503);
    let mut said = Vec::new();
    for number in 0..4 {
        said.push(lab.say(&number.to_string()).await);
    }
    until(|| well.bodies() == ["0", "1", "2", "3"]).await;
    // Two pushers with their keys and positions, and when one is tried again.
    let rows = 7;
    until(|| lab.rows() == rows).await;
    for number in 4..40 {
        said.push(lab.say(&number.to_string()).await);
    }
    until(|| well.bodies().len() == 40).await;
    assert_eq!(lab.rows(), rows, "what waits is no row");

    lab.stop().await;
    lab.start();
    let redaction = Sending { redacts: Some(said[38].clone()), ..sending("m.room.redaction", None, json!({})) };
    lab.house.rooms.send(&lab.anna, &lab.room, redaction).await.unwrap();
    lab.read(&said[36]).await;
    gateway.answers(200);
    in_time(&lab, || gateway.bodies().len() == 2).await;
    a_while().await;
    assert_eq!(gateway.bodies(), ["37", "39"], "neither what was read meanwhile nor what was redacted");
    assert_eq!(well.bodies().len(), 40, "and nobody is told twice");
    lab.stop().await;
    assert_eq!(lab.rows(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_was_dead_for_a_day_is_told_what_comes_from_then_on() {
    let gateway = Gateway::start().await;
    let lab = Lab::new(&[&gateway]).await;
    lab.set(&lab.ben, &gateway.url(), "phone", |_| {}).await;
    gateway.answers(503);
    lab.say("old").await;
    let key = Key::of(&lab.house.read(), lab.house.user_num(&lab.ben), "app", "phone");
    let status = || pusher::status(&lab.house.read(), &key).unwrap().unwrap();
    until(|| status().failures == 1).await;
    let begun = status().reached;
    while status().reached == begun {
        let before = status().failures;
        idle(&lab).await;
        lab.house.clock.advance(Duration::from_secs(4 * 3600));
        in_time(&lab, || status().failures > before).await;
    }
    assert_eq!(status().failures, 7, "after four hours each, and the first");
    gateway.answers(200);
    lab.say("new").await;
    lab.house.clock.advance(Duration::from_secs(3600));
    in_time(&lab, || gateway.bodies() == ["new"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pusher_ends_when_its_gateway_rejects_it_and_is_silent_while_it_is_off() {
    let gateway = Gateway::start().await;
    let lab = Lab::new(&[&gateway]).await;
    lab.set(&lab.ben, &gateway.url(), "phone", |pusher| pusher.enabled = false).await;
    lab.say("nobody hears it").await;
    a_while().await;
    lab.set(&lab.ben, &gateway.url(), "phone", |_| {}).await;
    lab.say("on again").await;
    until(|| gateway.bodies() == ["on again"]).await;
    gateway.rejected.lock().unwrap().push("another's".into());
    lab.say("still there").await;
    until(|| gateway.bodies().len() == 2).await;
    gateway.rejected.lock().unwrap().push("phone".into());
    lab.say("rejected").await;
    until(|| lab.rows() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_is_asked_itself_where_the_gateway_is_our_own() {
    let endpoint = Gateway::start().await;
    let lab = Lab::new(&[&endpoint]).await;
    let own = format!("{OWN}/_matrix/push/v1/notify");
    lab.set(&lab.ben, &own, &format!("{}/up", endpoint.origin), |_| {}).await;
    lab.set(&lab.ben, &own, "no url", |_| {}).await;
    lab.say("hello").await;
    until(|| endpoint.bodies() == ["hello"]).await;
    assert!(endpoint.told()[0].get("devices").is_none());
    until(|| lab.rows() == 3).await;
    // A failure is one, however long the page about it.
    endpoint.padding.store(5_000, Ordering::SeqCst);
    endpoint.answers(502);
    lab.say("again").await;
    until(|| lab.rows() == 4).await;
    endpoint.answers(200);
    in_time(&lab, || endpoint.bodies() == ["hello", "again"]).await;
    endpoint.answers(410);
    lab.say("gone").await;
    until(|| lab.rows() == 0).await;
}

/// Any user may name a gateway: none leads to a machine of the home network that the operator did not name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_at_a_private_address_is_not_asked() {
    let gateway = Gateway::start().await;
    let lab = Lab::new(&[]).await;
    lab.set(&lab.ben, &gateway.url(), "phone", |_| {}).await;
    lab.say("hello").await;
    until(|| lab.rows() == 4).await;
    assert_eq!(gateway.told(), [] as [Value; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invites_ring_here_and_from_elsewhere() {
    let gateway = Gateway::start().await;
    let lab = Lab::new(&[&gateway]).await;
    lab.set(&lab.ben, &gateway.url(), "phone", |_| {}).await;
    let room = lab.house.public_room(&lab.anna).await;
    lab.house.rooms.invite(&lab.anna, &room, &lab.ben, None).await.unwrap();
    until(|| gateway.told().len() == 1).await;
    let outside = RoomId::parse("!there:other.example").unwrap();
    let stripped = json!([
        { "type": "m.room.name", "state_key": "", "sender": "@cleo:other.example", "content": { "name": "Garden" } },
        { "type": "m.room.member", "state_key": lab.ben, "sender": "@cleo:other.example",
          "content": { "membership": "invite" }, "origin_server_ts": 5, "event_id": "$there" },
    ]);
    lab.house.invited_outside(&lab.ben, &outside, stripped).await;
    until(|| gateway.told().len() == 2).await;
    let told = gateway.told();
    for told in &told {
        assert_eq!((&told["type"], &told["membership"]), (&json!("m.room.member"), &json!("invite")));
        assert_eq!((&told["user_is_target"], &told["prio"]), (&json!(true), &json!("high")));
    }
    // Apps ring for nothing without an event's id.
    assert_eq!((&told[0]["event_id"].is_string(), &told[1]["event_id"]), (&true, &json!("$there")));
    assert_eq!(told[1]["room_name"], "Garden");
    assert_eq!(gateway.badges(), [1, 2]);
}

/// A user's own gateways, however slow they are, keep nobody else's phone waiting.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_gateways_of_one_user_leave_places_to_others() {
    let (slow, quick) = (Gateway::start().await, Gateway::start().await);
    let lab = Lab::new(&[&slow, &quick]).await;
    for phone in ["a", "b", "c", "d", "e"] {
        lab.set(&lab.ben, &slow.url(), phone, |_| {}).await;
    }
    lab.joined("cleo", &quick).await;
    slow.holds.store(true, Ordering::SeqCst);
    for text in ["0", "1", "2"] {
        lab.say(text).await;
    }
    until(|| quick.bodies() == ["0", "1", "2"]).await;
    let asking = || slow.asking.load(Ordering::SeqCst);
    until(|| asking() > 1).await;
    a_while().await;
    assert_eq!(asking(), 2);
    slow.holds.store(false, Ordering::SeqCst);
    until(|| slow.bodies().len() == 15).await;
}

/// Nor do those of many users, once it is known that they are slow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_gateways_have_half_of_the_places() {
    let (slow, quick) = (Gateway::start().await, Gateway::start().await);
    let lab = Lab::new(&[&slow, &quick]).await;
    for name in ["dora", "emil", "finn", "gero"] {
        lab.joined(name, &slow).await;
    }
    slow.holds.store(true, Ordering::SeqCst);
    lab.say("0").await;
    until(|| slow.asking.load(Ordering::SeqCst) == 4).await;
    lab.house.clock.advance(Duration::from_secs(4));
    slow.holds.store(false, Ordering::SeqCst);
    until(|| slow.bodies().len() == 4).await;
    idle(&lab).await;
    lab.joined("cleo", &quick).await;
    slow.holds.store(true, Ordering::SeqCst);
    for text in ["1", "2"] {
        lab.say(text).await;
    }
    until(|| quick.bodies() == ["1", "2"]).await;
    let asking = || slow.asking.load(Ordering::SeqCst);
    until(|| asking() > 1).await;
    a_while().await;
    assert_eq!(asking(), 2);
    slow.holds.store(false, Ordering::SeqCst);
    until(|| slow.bodies().len() == 12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_behind_many_that_notify_no_more_is_told() {
    let gateway = Gateway::start().await;
    let lab = Lab::new(&[&gateway]).await;
    lab.set(&lab.ben, &gateway.url(), "phone", |_| {}).await;
    gateway.answers(503);
    let mut spam = Vec::new();
    for number in 0..SKIPS_MAX + 8 {
        spam.push(lab.say(&number.to_string()).await);
    }
    for event in spam {
        let redaction = Sending { redacts: Some(event), ..sending("m.room.redaction", None, json!({})) };
        lab.house.rooms.send(&lab.anna, &lab.room, redaction).await.unwrap();
    }
    lab.say("are you home?").await;
    gateway.answers(200);
    in_time(&lab, || gateway.bodies() == ["are you home?"]).await;
}

/// Apps know events by their ids, but each repetition wakes a phone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_gateway_took_is_told_once_whatever_it_answers() {
    let gateway = Gateway::start().await;
    let lab = Lab::new(&[&gateway]).await;
    lab.set(&lab.ben, &gateway.url(), "phone", |_| {}).await;
    gateway.padding.store(ANSWER_BYTES_MAX as usize, Ordering::SeqCst);
    lab.say("0").await;
    lab.say("1").await;
    until(|| gateway.bodies() == ["0", "1"]).await;
    idle(&lab).await;
    assert_eq!(lab.rows(), 3, "it does not fail");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_gateway_never_takes_keeps_nothing_back() {
    let gateway = Gateway::start().await;
    let lab = Lab::new(&[&gateway]).await;
    lab.set(&lab.ben, &gateway.url(), "phone", |_| {}).await;
    gateway.bytes_max.store(1_000, Ordering::SeqCst);
    let long = lab.say(&"x".repeat(2_000)).await;
    lab.say("short").await;
    until(|| gateway.bodies() == ["short"]).await;
    assert_eq!((&gateway.told()[0]["event_id"], gateway.told()[0].get("content")), (&json!(long), None));
    gateway.answers(400);
    let asked = || gateway.asked.load(Ordering::SeqCst);
    let before = asked();
    lab.say("not even that").await;
    until(|| asked() == before + 2).await;
    idle(&lab).await;
    assert_eq!(lab.rows(), 3, "it does not fail");
    gateway.answers(200);
    lab.say("after it").await;
    until(|| gateway.bodies() == ["short", "after it"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_rejection_removes_no_pusher_that_was_set_since() {
    let gateway = Gateway::start().await;
    let lab = Lab::new(&[&gateway]).await;
    lab.set(&lab.ben, &gateway.url(), "phone", |_| {}).await;
    gateway.holds.store(true, Ordering::SeqCst);
    gateway.rejected.lock().unwrap().push("phone".into());
    lab.say("rejected").await;
    until(|| gateway.asking.load(Ordering::SeqCst) == 1).await;
    lab.house.clock.advance(Duration::from_millis(5));
    lab.set(&lab.ben, &gateway.url(), "phone", |pusher| pusher.lang = "de".into()).await;
    gateway.holds.store(false, Ordering::SeqCst);
    lab.say("known").await;
    until(|| gateway.bodies() == ["rejected", "rejected", "known"]).await;
    idle(&lab).await;
    assert_eq!(lab.rows(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_asks_for_a_pause_gets_it() {
    let gateway = Gateway::start().await;
    let lab = Lab::new(&[&gateway]).await;
    lab.set(&lab.ben, &gateway.url(), "phone", |_| {}).await;
    gateway.answers(429);
    *gateway.retry_after.lock().unwrap() = Some(600);
    lab.say("0").await;
    until(|| lab.rows() == 4).await;
    // Nor is it asked for others meanwhile.
    gateway.answers(200);
    lab.joined("cleo", &gateway).await;
    lab.say("1").await;
    until(|| lab.rows() == 8).await;
    for _ in 0..5 {
        lab.house.clock.advance(Duration::from_secs(50));
        a_while().await;
    }
    assert!(gateway.bodies().is_empty());
    lab.house.clock.advance(Duration::from_secs(360));
    in_time(&lab, || gateway.bodies().len() == 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_row_of_one_user_silences_nobody_else() {
    let gateway = Gateway::start().await;
    let mut lab = Lab::new(&[&gateway]).await;
    lab.set(&lab.ben, &gateway.url(), "phone", |_| {}).await;
    lab.stop().await;
    let damaged = [&lab.house.user_num(&lab.anna).to_key()[..], &[7; 16]].concat();
    lab.house.store.write(move |w| w.put(&PUSHER, &damaged, b"?")).await.unwrap();
    lab.start();
    a_while().await;
    lab.say("hello").await;
    until(|| gateway.bodies() == ["hello"]).await;
}

/// An app that sets its pusher at each start still shows the badge from before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_badge_is_taken_back_from_a_pusher_that_was_set_again() {
    let gateway = Gateway::start().await;
    let mut lab = Lab::new(&[&gateway]).await;
    lab.set(&lab.ben, &gateway.url(), "phone", |_| {}).await;
    let hello = lab.say("hello").await;
    until(|| gateway.badges() == [1]).await;
    lab.stop().await;
    lab.set(&lab.ben, &gateway.url(), "phone", |_| {}).await;
    lab.start();
    lab.read(&hello).await;
    until(|| gateway.badges() == [1, 0]).await;
    assert_eq!(gateway.bodies(), ["hello"]);
}

#[test]
fn only_a_well_formed_answer_rejects() {
    assert!(rejects(br#"{"rejected":["a","b"]}"#, "b"));
    for answer in [&b"{}"[..], b"", b"[]", br#"{"rejected":"b"}"#, br#"{"rejected":["a"]}"#, b"<html>"] {
        assert!(!rejects(answer, "b"));
    }
}

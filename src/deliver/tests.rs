//! The sender against peers on the loopback.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use super::federation::destinations;
use super::*;
use crate::base::{Doing, Random, StopWatch, Worker};
use crate::budget::Budget;
use crate::feed::Feed;
use crate::remote::Whence;
use crate::remote::tests::{Behaviour, Lab, Us, name, peer, us, whole};
use crate::store::tables::server;
use crate::store::tables::server::outbox::{self, Outbound};
use crate::store::{self, Position};

type Seen = Arc<Mutex<Vec<Value>>>;

/// A peer that keeps the transactions it gets, a repeated one only once, and answers with the status it is set to.
async fn recorder(lab: &Lab, name: &str) -> (SocketAddr, Seen, Arc<Mutex<u16>>) {
    let (seen, status) = (Seen::default(), Arc::new(Mutex::new(200)));
    let (log, answer) = (seen.clone(), status.clone());
    let known = Mutex::new(std::collections::HashSet::new());
    let behaviour: Behaviour = Arc::new(move |request, body| {
        assert!(request.uri().path().starts_with("/_matrix/federation/v1/send/"));
        let status = *answer.lock().unwrap();
        if status == 200 && known.lock().unwrap().insert(request.uri().path().to_owned()) {
            log.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
        }
        whole(status, &json!({ "pdus": {} }))
    });
    (peer(lab, name, behaviour).await, seen, status)
}

fn sender(us: &Us, feed: &Feed) -> Sender {
    sender_with(us, feed, 1000)
}

fn sender_with(us: &Us, feed: &Feed, lagging_max: usize) -> Sender {
    let options = SenderOptions { workers_max: 4, transaction_bytes_max: 64 * 1024, lagging_max };
    let budget = Budget::for_tests();
    let (store, remote, clock) = (us.store.clone(), us.remote.clone(), us.clock.clone());
    Sender::new(store, remote, feed.clone(), clock, Random::seeded(5), &budget, options)
}

async fn post(us: &Us, to: &[&str], marks: std::ops::Range<u32>) {
    let to: Vec<String> = to.iter().map(|name| name.to_string()).collect();
    us.store
        .write(move |write| {
            for mark in marks {
                let at = write.next_position();
                let json = json!({ "edu_type": "m.test", "content": { "mark": mark } }).to_string().into_bytes();
                outbox::post(write, at, &Outbound::Edu { to: to.clone(), json })?;
            }
            write.announce(store::Change { outbound: true, ..Default::default() });
            Ok::<_, store::Error>(())
        })
        .await
        .unwrap();
}

fn marks(seen: &Seen) -> Vec<u64> {
    let seen = seen.lock().unwrap();
    let edus = seen.iter().flat_map(|transaction| transaction["edus"].as_array().unwrap().clone());
    edus.map(|edu| edu["content"]["mark"].as_u64().unwrap()).collect()
}

/// Of a test with a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(180);

/// Lets tasks and sockets go on until `done`. The simulated time stands still meanwhile.
async fn until(done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it happens");
}

/// Like `until`, while the simulated time goes on.
async fn in_time(us: &Us, running: &Running, done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            running.pass(us, Duration::from_secs(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it happens");
}

/// Positions of the rows that are still in the log.
fn log_of(us: &Us) -> Vec<Position> {
    let mut rows = Vec::new();
    let read = us.store.read().unwrap();
    outbox::list_after(&read, Position(0), &mut |at, _| {
        rows.push(at);
        Ok(std::ops::ControlFlow::Continue(()))
    })
    .unwrap();
    rows
}

/// A sender at work.
struct Running {
    worker: Worker,
    task: tokio::task::JoinHandle<()>,
}

fn run(us: &Us, sender: &Sender) -> Running {
    let (sender, worker) = (sender.clone(), Worker::new("sender", &us.clock));
    let of_task = worker.clone();
    Running { worker, task: tokio::spawn(async move { sender.run(&of_task).await }) }
}

impl Running {
    /// Lets simulated time pass once the sender has done all that is due by now: a request is never cut off since the
    /// machine is busy.
    async fn pass(&self, us: &Us, length: Duration) {
        let begun = StopWatch::start();
        let waiting = async {
            loop {
                tokio::time::sleep(Duration::from_millis(2)).await;
                let status = self.worker.status();
                let sleeps = status.next_ms.is_some_and(|next| next > us.clock.now_ms());
                // One that began to sleep as time passed sleeps for longer than it says.
                if status.doing == Doing::Idle && (sleeps || begun.elapsed() > Duration::from_secs(2)) {
                    break;
                }
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("a request ends");
        us.clock.advance(length);
    }

    async fn ended(self) {
        self.task.await.unwrap();
    }
}

const DEAD: [&str; 10] = [
    "dead-0.example",
    "dead-1.example",
    "dead-2.example",
    "dead-3.example",
    "dead-4.example",
    "dead-5.example",
    "dead-6.example",
    "dead-7.example",
    "dead-8.example",
    "dead-9.example",
];

/// Servers that answer 502 until told otherwise, one that works, and us.
struct Graveyard {
    us: Us,
    feed: Feed,
    dead: Vec<(Seen, Arc<Mutex<u16>>)>,
    well: Seen,
}

impl Graveyard {
    async fn new() -> Graveyard {
        let lab = Lab::new();
        let (mut dead, mut peers) = (Vec::new(), Vec::new());
        for name in DEAD {
            let (at, seen, status) = recorder(&lab, name).await;
            *status.lock().unwrap() = 502;
            dead.push((seen, status));
            peers.push((name, at));
        }
        let (at, well, _) = recorder(&lab, "well.example").await;
        peers.push(("well.example", at));
        let us = us(&lab, &peers, &[]);
        let feed = Feed::new(us.clock.clone(), &us.store).unwrap();
        Graveyard { us, feed, dead, well }
    }

    fn wake(&self, nth: usize) {
        *self.dead[nth].1.lock().unwrap() = 200;
    }
}

/// Unreachable servers filled the table of lagging servers; a server that began to lag later was not noted until one of
/// them was forgotten, two weeks later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dead_keep_nobody_waiting_and_each_has_its_turn() {
    let yard = Graveyard::new().await;
    let us = &yard.us;
    let sender = sender_with(us, &yard.feed, 3);
    let running = run(us, &sender);
    post(us, &DEAD, 0..2).await;
    until(|| sender.lagging() == 10).await;
    post(us, &["well.example"], 2..3).await;
    in_time(us, &running, || marks(&yard.well) == [2]).await;

    // Later rows for a server without a place reach it too, in order, and once.
    post(us, &["dead-8.example", "well.example"], 3..5).await;
    in_time(us, &running, || marks(&yard.well) == [2, 3, 4]).await;
    yard.wake(8);
    in_time(us, &running, || marks(&yard.dead[8].0).len() >= 4).await;
    assert_eq!(marks(&yard.dead[8].0), [0, 1, 3, 4]);

    // A server that contacts us gets its transaction without waiting for its turn.
    yard.wake(4);
    us.remote.backoff().flush().await.unwrap();
    us.remote.backoff().failure(&name(DEAD[4]), Whence::Nowhere, Some(3_600_000));
    us.remote.backoff().heard_from(&name(DEAD[4])).await;
    in_time(us, &running, || marks(&yard.dead[4].0) == [0, 1]).await;

    (0..10).for_each(|nth| yard.wake(nth));
    in_time(us, &running, || sender.lagging() == 0).await;
    assert!(yard.dead.iter().enumerate().all(|(nth, (seen, _))| nth == 8 || marks(seen) == [0, 1]));
    sender.stop();
    running.ended().await;
    assert_eq!(log_of(us), []);
}

/// Positions beyond the bound were not read at a start with a smaller one, and the rows they still needed were dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_with_fewer_places_forgets_nobody() {
    let yard = Graveyard::new().await;
    let us = &yard.us;
    let sender = sender_with(us, &yard.feed, 100);
    let running = run(us, &sender);
    post(us, &DEAD, 0..3).await;
    until(|| sender.lagging() == 10).await;
    sender.stop();
    running.ended().await;
    let before = log_of(us);
    assert_eq!(before.len(), 3);

    let sender = sender_with(us, &yard.feed, 2);
    let running = run(us, &sender);
    (0..2).for_each(|nth| yard.wake(nth));
    post(us, &["well.example"], 3..6).await;
    in_time(us, &running, || marks(&yard.well).len() == 3 && sender.lagging() == 8).await;
    // Servers with a place have everything, and are written down; the others need the oldest rows.
    for _ in 0..10 {
        running.pass(us, Duration::from_secs(25)).await;
    }
    assert_eq!(log_of(us)[..3], before[..]);
    sender.stop();
    running.ended().await;
    assert_eq!(log_of(us)[..3], before[..]);

    let sender = sender_with(us, &yard.feed, 2);
    let running = run(us, &sender);
    (0..10).for_each(|nth| yard.wake(nth));
    in_time(us, &running, || yard.dead.iter().all(|(seen, _)| marks(seen).len() >= 3) && sender.lagging() == 0).await;
    assert!(yard.dead.iter().all(|(seen, _)| marks(seen) == [0, 1, 2]));
    sender.stop();
    running.ended().await;
    assert_eq!(log_of(us), []);
}

/// Servers that contact us and cannot be reached counted as working each time they did, came before all that do work,
/// and took all workers.
#[tokio::test]
async fn who_is_heard_from_is_tried_at_once_and_stays_doubtful_until_it_takes_something() {
    let yard = Graveyard::new().await;
    let us = &yard.us;
    post(us, &DEAD[..2], 0..1).await;
    let account = Budget::for_tests().account("outbound");
    let mut book = destinations::Destinations::load(us.store.clone(), account, 1).await.unwrap();
    book.dispatch(us.remote.server_name(), 1000).await.unwrap();
    let (here, aside) = match book.lagging.contains_key(&name(DEAD[0])) {
        true => (name(DEAD[0]), name(DEAD[1])),
        false => (name(DEAD[1]), name(DEAD[0])),
    };
    let lag = book.lagging.get_mut(&here).unwrap();
    (lag.doubtful, lag.due_ms) = (true, 3_600_000);
    book.take_back(here.clone(), 2000).await.unwrap();
    assert_eq!((book.lagging[&here].doubtful, book.lagging[&here].due_ms), (true, 2000));
    book.take_back(aside.clone(), 3000).await.unwrap();
    assert_eq!((book.lagging[&aside].doubtful, book.lagging[&aside].due_ms), (true, 3000));
}

/// Rows for servers without a place are dropped after two weeks like all others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_has_an_end_for_those_without_a_place_too() {
    let yard = Graveyard::new().await;
    let us = &yard.us;
    let sender = sender_with(us, &yard.feed, 2);
    let running = run(us, &sender);
    post(us, &DEAD, 0..3).await;
    until(|| sender.lagging() == 10).await;
    for _ in 0..13 * 24 {
        running.pass(us, Duration::from_secs(3600)).await;
    }
    us.remote.backoff().flush().await.unwrap();
    assert_eq!(sender.lagging(), 10);
    assert_eq!(log_of(us).len(), 3);
    for _ in 0..48 {
        running.pass(us, Duration::from_secs(3600)).await;
    }
    in_time(us, &running, || sender.lagging() == 0).await;
    sender.stop();
    running.ended().await;
    assert_eq!(log_of(us), []);
    let read = us.store.read().unwrap();
    assert!(DEAD.iter().all(|dead| server::cursor(&read, &name(dead)).unwrap().is_none()));
}

/// A peer that keeps the transactions to which `judge` gives 200, by the marks in them; and how often it was asked.
async fn judging(
    lab: &Lab,
    name: &str,
    judge: impl Fn(&[u64]) -> u16 + Send + Sync + 'static,
) -> (SocketAddr, Seen, Arc<AtomicU64>) {
    let (seen, asked) = (Seen::default(), Arc::new(AtomicU64::new(0)));
    let (log, count) = (seen.clone(), asked.clone());
    let behaviour: Behaviour = Arc::new(move |_, body| {
        count.fetch_add(1, Ordering::Relaxed);
        let one = Seen::new(Mutex::new(vec![serde_json::from_slice(&body).unwrap()]));
        let status = judge(&marks(&one));
        if status == 200 {
            log.lock().unwrap().append(&mut one.lock().unwrap());
        }
        whole(status, &json!({}))
    });
    (peer(lab, name, behaviour).await, seen, asked)
}

/// After one 4xx, of the server or of a proxy before it, all rows noted for that server were skipped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_a_server_refuses_is_left_out() {
    let lab = Lab::new();
    let (bad_at, bad, _) = judging(&lab, "bad.example", |marks| if marks.contains(&70) { 400 } else { 200 }).await;
    let (short_at, short, _) = judging(&lab, "short.example", |marks| if marks.len() > 30 { 413 } else { 200 }).await;
    let moved = Arc::new(AtomicBool::new(true));
    let is_moved = moved.clone();
    let judge = move |_: &[u64]| if is_moved.load(Ordering::Relaxed) { 421 } else { 200 };
    let (moved_at, late, _) = judging(&lab, "moved.example", judge).await;
    let us = us(&lab, &[("bad.example", bad_at), ("short.example", short_at), ("moved.example", moved_at)], &[]);
    let feed = Feed::new(us.clock.clone(), &us.store).unwrap();
    let sender = sender(&us, &feed);
    let running = run(&us, &sender);
    post(&us, &["bad.example", "short.example", "moved.example"], 0..150).await;
    in_time(&us, &running, || marks(&bad).len() == 149 && marks(&short).len() == 150).await;
    assert_eq!(marks(&bad), (0..150).filter(|mark| *mark != 70).collect::<Vec<u64>>());
    assert_eq!(marks(&short), (0..150).collect::<Vec<u64>>());
    moved.store(false, Ordering::Relaxed);
    in_time(&us, &running, || marks(&late).len() == 150 && sender.lagging() == 0).await;
    assert_eq!(marks(&late), (0..150).collect::<Vec<u64>>());
    sender.stop();
    running.ended().await;
}

/// A device key nested 100 deep was refused nowhere and could not be signed: all rows behind it waited for two weeks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_signed_holds_nothing_up() {
    let lab = Lab::new();
    let (at, seen, asked) = judging(&lab, "peer.example", |_| 200).await;
    let us = us(&lab, &[("peer.example", at)], &[]);
    let feed = Feed::new(us.clock.clone(), &us.store).unwrap();
    let sender = sender(&us, &feed);
    post(&us, &["peer.example"], 0..10).await;
    let deep = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    for odd in [deep.as_str(), "\"\\ud800\"", "1e999"] {
        let json = format!("{{\"edu_type\":\"m.test\",\"content\":{odd}}}").into_bytes();
        let post = move |write: &mut store::Write| {
            let at = write.next_position();
            outbox::post(write, at, &Outbound::Edu { to: vec!["peer.example".to_owned()], json })
        };
        us.store.write(post).await.unwrap();
    }
    post(&us, &["peer.example"], 10..20).await;
    let running = run(&us, &sender);
    in_time(&us, &running, || marks(&seen).len() == 20 && sender.lagging() == 0).await;
    assert_eq!(marks(&seen), (0..20).collect::<Vec<u64>>());
    assert!(asked.load(Ordering::Relaxed) < 20, "what cannot be signed is not sent");
    sender.stop();
    running.ended().await;
}

/// A name that now serves a website answers with 404. It was asked every second for two weeks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_no_homeserver_any_more_is_asked_ever_more_rarely() {
    let lab = Lab::new();
    let (gone_at, _, gone) = judging(&lab, "gone.example", |_| 404).await;
    let (picky_at, _, picky) = judging(&lab, "picky.example", |_| 400).await;
    let us = us(&lab, &[("gone.example", gone_at), ("picky.example", picky_at)], &[]);
    let feed = Feed::new(us.clock.clone(), &us.store).unwrap();
    let sender = sender(&us, &feed);
    let running = run(&us, &sender);
    post(&us, &["gone.example", "picky.example"], 0..64).await;
    for _ in 0..6 * 60 {
        running.pass(&us, Duration::from_secs(60)).await;
    }
    // One more attempt after a second, then after 10 s, doubled until six hours are over: a dozen failures. Halving 64
    // items makes seven requests of one.
    let (gone, picky) = (gone.load(Ordering::Relaxed), picky.load(Ordering::Relaxed));
    assert!((3..=14).contains(&gone), "{gone}");
    assert!((7..=14 * 7).contains(&picky), "{picky}");
    assert_eq!(sender.lagging(), 2);
    sender.stop();
    running.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_server_gets_what_is_for_it_once_and_in_order() {
    let lab = Lab::new();
    let (one_at, one, _) = recorder(&lab, "one.example").await;
    let (two_at, two, _) = recorder(&lab, "two.example").await;
    let us = us(&lab, &[("one.example", one_at), ("two.example", two_at)], &[]);
    let feed = Feed::new(us.clock.clone(), &us.store).unwrap();
    let sender = sender(&us, &feed);
    let running = run(&us, &sender);
    post(&us, &["one.example", "two.example"], 0..150).await;
    post(&us, &["two.example", "us.example"], 150..160).await;
    until(|| marks(&one).len() >= 150 && marks(&two).len() >= 160).await;
    assert_eq!(marks(&one), (0..150).collect::<Vec<u64>>());
    assert_eq!(marks(&two), (0..160).collect::<Vec<u64>>());
    assert!(one.lock().unwrap().iter().all(|transaction| transaction["edus"].as_array().unwrap().len() <= 100));
    until(|| sender.lagging() == 0).await;
    sender.stop();
    running.ended().await;
    let mut left = 0;
    let read = us.store.read().unwrap();
    outbox::list_after(&read, Position(0), &mut |_, _| {
        left += 1;
        Ok(std::ops::ControlFlow::Continue(()))
    })
    .unwrap();
    assert_eq!(left, 0, "what everybody has is dropped");
    assert_eq!(server::reader(&read).unwrap(), Some(Position(160)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_down_gets_the_rest_after_a_restart() {
    let lab = Lab::new();
    let (at, seen, status) = recorder(&lab, "one.example").await;
    *status.lock().unwrap() = 502;
    let us = us(&lab, &[("one.example", at)], &[]);
    let feed = Feed::new(us.clock.clone(), &us.store).unwrap();
    let first = sender(&us, &feed);
    let running = run(&us, &first);
    post(&us, &["one.example"], 0..5).await;
    until(|| first.lagging() == 1).await;
    first.stop();
    running.ended().await;
    post(&us, &["one.example"], 5..7).await;
    *status.lock().unwrap() = 200;
    us.clock.advance(Duration::from_secs(60));
    let second = sender(&us, &feed);
    let running = run(&us, &second);
    until(|| marks(&seen).len() == 7).await;
    assert_eq!(marks(&seen), (0..7).collect::<Vec<u64>>());
    second.stop();
    running.ended().await;
}

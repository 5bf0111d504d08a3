//! The sender against peers on the loopback.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};

use super::*;
use crate::{
    base::Random,
    budget::Budget,
    feed::Feed,
    remote::tests::{Behaviour, Lab, Us, peer, us, whole},
    store::{
        self, Position,
        tables::{
            outbox::{self, Outbound},
            server,
        },
    },
};

type Seen = Arc<Mutex<Vec<Value>>>;

/// A peer that keeps the transactions it is sent, and answers with the status it is set to.
async fn recorder(lab: &Lab, name: &str) -> (SocketAddr, Seen, Arc<Mutex<u16>>) {
    let (seen, status) = (Seen::default(), Arc::new(Mutex::new(200)));
    let (log, answer) = (seen.clone(), status.clone());
    let behaviour: Behaviour = Arc::new(move |request, body| {
        assert!(request.uri().path().starts_with("/_matrix/federation/v1/send/"));
        let status = *answer.lock().unwrap();
        if status == 200 {
            log.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
        }
        whole(status, &json!({ "pdus": {} }))
    });
    (peer(lab, name, behaviour).await, seen, status)
}

fn sender(us: &Us, feed: &Feed) -> Sender {
    let options = SenderOptions { workers_max: 4, transaction_bytes_max: 64 * 1024 };
    let budget = Budget::for_tests();
    let (store, remote, clock) = (us.store.clone(), us.remote.clone(), us.clock.clone());
    Sender::new(store, remote, feed.clone(), clock, Random::seeded(5), &budget, options)
}

async fn post(us: &Us, feed: &Feed, to: &[&str], marks: std::ops::Range<u32>) {
    let to: Vec<String> = to.iter().map(|name| name.to_string()).collect();
    let (_, changes) = us
        .store
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
    feed.publish(&changes);
}

fn marks(seen: &Seen) -> Vec<u64> {
    let seen = seen.lock().unwrap();
    let edus = seen.iter().flat_map(|transaction| transaction["edus"].as_array().unwrap().clone());
    edus.map(|edu| edu["content"]["mark"].as_u64().unwrap()).collect()
}

/// Lets tasks and sockets go on until `done`. The simulated time stands still meanwhile.
async fn until(done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect("it happens");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_server_gets_what_is_for_it_once_and_in_order() {
    let lab = Lab::new();
    let (one_at, one, _) = recorder(&lab, "one.example").await;
    let (two_at, two, _) = recorder(&lab, "two.example").await;
    let us = us(&lab, &[("one.example", one_at), ("two.example", two_at)], &[]);
    let feed = Feed::new(us.clock.clone());
    let sender = sender(&us, &feed);
    let running = tokio::spawn({
        let sender = sender.clone();
        async move { sender.run().await }
    });
    post(&us, &feed, &["one.example", "two.example"], 0..150).await;
    post(&us, &feed, &["two.example", "us.example"], 150..160).await;
    until(|| marks(&one).len() >= 150 && marks(&two).len() >= 160).await;
    assert_eq!(marks(&one), (0..150).collect::<Vec<u64>>());
    assert_eq!(marks(&two), (0..160).collect::<Vec<u64>>());
    assert!(one.lock().unwrap().iter().all(|transaction| transaction["edus"].as_array().unwrap().len() <= 100));
    until(|| sender.lagging() == 0).await;
    sender.stop();
    running.await.unwrap();
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
    let feed = Feed::new(us.clock.clone());
    let first = sender(&us, &feed);
    let running = tokio::spawn({
        let sender = first.clone();
        async move { sender.run().await }
    });
    post(&us, &feed, &["one.example"], 0..5).await;
    until(|| first.lagging() == 1).await;
    first.stop();
    running.await.unwrap();
    post(&us, &feed, &["one.example"], 5..7).await;
    *status.lock().unwrap() = 200;
    us.clock.advance(Duration::from_secs(60));
    let second = sender(&us, &feed);
    let running = tokio::spawn({
        let sender = second.clone();
        async move { sender.run().await }
    });
    until(|| marks(&seen).len() == 7).await;
    assert_eq!(marks(&seen), (0..7).collect::<Vec<u64>>());
    second.stop();
    running.await.unwrap();
}

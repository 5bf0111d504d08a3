//! Two servers, one of which cannot be reached.

use std::time::Duration;

use serde_json::json;
use snug::base::{Clock, Random};

use crate::rooms::{
    PATIENCE, bodies, create, eventually, invite, is_invited, join, no_doubles, numbered, q, same_state, say, say_all,
    scrolled, sees_text, set,
};
use crate::server::{Pair, TestServer};

/// Anybody may claim to be any server; each claim makes this one look for that server's key, so only a few are looked into.
#[tokio::test]
async fn unknown_servers_are_looked_up_only_so_often() {
    // The clock stands still, or a slow machine's requests would earn others.
    let house = TestServer::start_at(Clock::simulated(1_700_000_000_000), Random::os(), |config| {
        config.rate_limits = true;
        config.federation.enabled = true;
    })
    .await;
    let mut seen = Vec::new();
    for port in 1000..1040 {
        let claim = format!(
            "X-Matrix origin=\"127.0.0.1:{port}\",destination=\"{}\",key=\"ed25519:a\",sig=\"{}\"",
            house.name(),
            "A".repeat(86)
        );
        let path = "/_matrix/federation/v1/event/%24x";
        seen.push(house.send("GET", path, &[("authorization", &claim)], Vec::new()).await.status);
    }
    assert_eq!((seen[0], seen[39]), (401, 429), "{seen:?}");
    assert!(seen.iter().filter(|status| **status == 401).count() < 30, "{seen:?}");
}

/// Two addresses that named silent servers kept every server whose key was not here waiting for ten seconds at a time.
#[tokio::test]
async fn naming_silent_servers_holds_nobody_up() {
    for profile in ["pi-zero-2w", "pi-3"] {
        let clock = Clock::simulated(1_700_000_000_000);
        let house = TestServer::start_under_at(profile, clock.clone(), |config| {
            config.rate_limits = true;
            config.federation.enabled = true;
            config.federation.allow_private_addresses = true;
            config.trusted_proxies = vec![[127, 0, 0, 1].into()];
        })
        .await;
        // They accept, and say nothing.
        let mut silent = Vec::new();
        for _ in 0..house.server().budget.size("outbound_connections_max") / 4 {
            silent.push(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let house = std::sync::Arc::new(house);
        let ask = |from: String, port: u16| {
            let house = house.clone();
            async move {
                let claim = format!(
                    "X-Matrix origin=\"127.0.0.1:{port}\",destination=\"{}\",key=\"ed25519:a\",sig=\"{}\"",
                    house.name(),
                    "A".repeat(86)
                );
                let headers = [("authorization", claim.as_str()), ("x-forwarded-for", from.as_str())];
                house.send("GET", "/_matrix/federation/v1/event/%24x", &headers, Vec::new()).await.status
            }
        };
        let mut crowd = Vec::new();
        for (n, listener) in silent.iter().enumerate() {
            crowd.push(tokio::spawn(ask(format!("203.0.{n}.1"), listener.local_addr().unwrap().port())));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        // Less than four seconds pass for the server until it has its answer, however long this machine takes.
        let passing = async {
            for _ in 0..39 {
                tokio::time::sleep(Duration::from_millis(50)).await;
                clock.advance(Duration::from_millis(100));
            }
            tokio::time::sleep(PATIENCE).await;
        };
        tokio::select! {
            status = ask("198.51.100.1".to_owned(), crate::server::free_port()) => {
                assert_eq!(status, 401, "it was looked for, and is not there");
            }
            () = passing => panic!("the silent ones hold it up"),
        }
        eventually("the silent ones are given up", async || {
            clock.advance(Duration::from_secs(1));
            crowd.iter().all(|asking| asking.is_finished()).then_some(())
        })
        .await;
        for asking in crowd {
            assert_eq!(asking.await.unwrap(), 401);
        }
    }
}

/// While the line was down the app of somebody who scrolled back was told that the room begins there, and remembered it.
#[tokio::test(flavor = "multi_thread")]
async fn history_does_not_begin_where_nobody_can_be_asked() {
    let Pair { one, two, wire, certificates: _certificates } = Pair::start().await;
    let (alice, bob) = (one.register("alice").await, two.register("bob").await);
    let room = create(&one, &alice, json!({ "preset": "public_chat" })).await;
    say_all(&one, &alice, &room, 0..10).await;
    join(&two, &bob, &room, &one).await.ok();
    say(&two, &bob, &room, "here").await;
    sees_text(&one, &alice, &room, "here").await;
    wire.cut();
    let path = format!("/rooms/{}/messages?dir=b&limit=20", q(&room));
    let page = two.get(&path, &bob).await.ok();
    assert_eq!(bodies(page["chunk"].as_array().unwrap()), ["here"]);
    let end = page["end"].as_str().expect("there is more, only not now").to_owned();
    for _ in 0..2 {
        two.get(&format!("{path}&from={end}"), &bob).await.refused(502, "M_UNKNOWN");
    }
    wire.mend();
    eventually("the line is there again", async || {
        let page = two.get(&format!("{path}&from={end}"), &bob).await;
        (page.status == 200).then(|| assert!(bodies(page.json()["chunk"].as_array().unwrap()).contains(&"009")))
    })
    .await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_down_catches_up() {
    let Pair { one, two, wire: _wire, certificates: _certificates } = Pair::start().await;
    let (alice, bob, carol) = (one.register("alice").await, two.register("bob").await, one.register("carol").await);
    let room = create(&one, &alice, json!({ "preset": "public_chat" })).await;
    join(&two, &bob, &room, &one).await.ok();
    say(&two, &bob, &room, "000").await;
    sees_text(&one, &alice, &room, "000").await;
    let two = two.down().await;
    say_all(&one, &alice, &room, 1..60).await;
    one.post(&format!("/join/{}", q(&room)), &carol, json!({})).await.ok();
    set(&one, &alice, &room, "m.room.topic", json!({ "topic": "while you were out" })).await;
    say_all(&one, &carol, &room, 60..120).await;
    let private = create(&one, &alice, json!({ "preset": "private_chat" })).await;
    let unreachable = one.post(&format!("/rooms/{}/invite", q(&private)), &alice, json!({ "user_id": bob.id })).await;
    assert!(unreachable.status >= 400, "an invite that nobody signs is none");
    let one = one.restart().await;
    say(&one, &alice, &room, "120").await;

    let two = two.up().await;
    sees_text(&two, &bob, &room, "120").await;
    same_state((&one, &alice), (&two, &bob), &room).await;
    let theirs = scrolled(&two, &bob, &room).await;
    no_doubles(&theirs);
    assert_eq!(bodies(&theirs), numbered(0..121));
    say(&two, &bob, &room, "121").await;
    sees_text(&one, &alice, &room, "121").await;
    invite(&one, &alice, &private, &bob).await;
    is_invited(&two, &bob, &private).await;
    one.stop().await;
    two.stop().await;
}

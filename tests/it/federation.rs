//! Two servers that talk: invites, joins, messages both ways, leaving, and what one is told of the other.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::house::{House, Pair, Person};

/// Percent-encodes a path segment.
pub fn q(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { (byte as char).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

pub async fn create(house: &House, who: &Person, options: Value) -> String {
    house.post("/createRoom", who, options).await.ok()["room_id"].as_str().unwrap().to_owned()
}

pub async fn say(house: &House, who: &Person, room: &str, text: &str) {
    let path = format!("/rooms/{}/send/m.room.message/{}", q(room), q(text));
    house.put(&path, who, json!({ "msgtype": "m.text", "body": text })).await.ok();
}

/// Looks until `found` gives something; what travels between servers takes its time.
pub async fn eventually<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = found().await {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub async fn membership(house: &House, who: &Person, room: &str, of: &Person) -> Option<String> {
    let reply = house.get(&format!("/rooms/{}/state/m.room.member/{}", q(room), q(&of.id)), who).await;
    (reply.status == 200).then(|| reply.json()["membership"].as_str().unwrap().to_owned())
}

pub async fn sees_membership(house: &House, who: &Person, room: &str, of: &Person, wanted: &str) {
    eventually(&format!("{} sees {} as {wanted}", who.id, of.id), async || {
        membership(house, who, room, of).await.filter(|is| is == wanted)
    })
    .await;
}

pub async fn texts(house: &House, who: &Person, room: &str) -> Vec<String> {
    let page = house.get(&format!("/rooms/{}/messages?dir=b&limit=100", q(room)), who).await.ok();
    let events = page["chunk"].as_array().unwrap().iter().rev();
    events.filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)).collect()
}

pub async fn sees_text(house: &House, who: &Person, room: &str, text: &str) {
    eventually(&format!("{} sees {text:?}", who.id), async || {
        texts(house, who, room).await.contains(&text.to_owned()).then_some(())
    })
    .await;
}

pub async fn is_invited(house: &House, who: &Person, room: &str) {
    eventually(&format!("{} is invited", who.id), async || {
        let answer = house.get("/sync", who).await.ok();
        let state = answer["rooms"]["invite"][room]["invite_state"]["events"].as_array()?.clone();
        let own = state.iter().any(|event| event["type"] == "m.room.member" && event["state_key"] == who.id.as_str());
        assert!(own, "the invite itself is shown: {state:?}");
        Some(())
    })
    .await;
}

pub async fn same_state(one: (&House, &Person), other: (&House, &Person), room: &str) {
    let ids = async |(house, who): (&House, &Person)| {
        let state = house.get(&format!("/rooms/{}/state", q(room)), who).await.ok();
        let mut ids: Vec<String> =
            state.as_array().unwrap().iter().map(|event| event["event_id"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids
    };
    eventually("both hold the same state", async || (ids(one).await == ids(other).await).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invited_user_joins_chats_and_leaves() {
    let pair = Pair::start().await;
    let (one, two) = (&pair.one, &pair.two);
    let (alice, bob) = (one.register("alice").await, two.register("bob").await);
    let room = create(one, &alice, json!({ "preset": "private_chat", "name": "us two" })).await;
    say(one, &alice, &room, "before").await;
    one.post(&format!("/rooms/{}/invite", q(&room)), &alice, json!({ "user_id": bob.id })).await.ok();
    is_invited(two, &bob, &room).await;
    two.post(&format!("/join/{}", q(&room)), &bob, json!({})).await.ok();
    sees_membership(one, &alice, &room, &bob, "join").await;
    same_state((one, &alice), (two, &bob), &room).await;
    say(one, &alice, &room, "from one").await;
    sees_text(two, &bob, &room, "from one").await;
    say(two, &bob, &room, "from two").await;
    sees_text(one, &alice, &room, "from two").await;
    two.post(&format!("/rooms/{}/leave", q(&room)), &bob, json!({})).await.ok();
    sees_membership(one, &alice, &room, &bob, "leave").await;
    pair.one.stop().await;
    pair.two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_room_is_found_and_joined_in_every_version() {
    let pair = Pair::start().await;
    let (one, two) = (&pair.one, &pair.two);
    let (alice, bob) = (one.register("alice").await, two.register("bob").await);
    for version in ["6", "9", "10", "11", "12"] {
        let options =
            json!({ "preset": "public_chat", "room_version": version, "room_alias_name": format!("v{version}") });
        let room = create(one, &alice, options).await;
        let alias = format!("#v{version}:{}", one.name());
        let joined = two.post(&format!("/join/{}", q(&alias)), &bob, json!({})).await.ok();
        assert_eq!(joined["room_id"], room.as_str());
        same_state((one, &alice), (two, &bob), &room).await;
        say(two, &bob, &room, "hello").await;
        sees_text(one, &alice, &room, "hello").await;
        let topic = format!("/rooms/{}/state/m.room.topic", q(&room));
        one.put(&topic, &alice, json!({ "topic": "t" })).await.ok();
        eventually("the topic arrives", async || (two.get(&topic, &bob).await.status == 200).then_some(())).await;
        same_state((one, &alice), (two, &bob), &room).await;
    }
    pair.one.stop().await;
    pair.two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_is_declined_and_a_member_is_put_out() {
    let pair = Pair::start().await;
    let (one, two) = (&pair.one, &pair.two);
    let (alice, bob) = (one.register("alice").await, two.register("bob").await);
    let room = create(one, &alice, json!({ "preset": "private_chat", "invite": [bob.id] })).await;
    is_invited(two, &bob, &room).await;
    two.post(&format!("/rooms/{}/leave", q(&room)), &bob, json!({})).await.ok();
    sees_membership(one, &alice, &room, &bob, "leave").await;
    one.post(&format!("/rooms/{}/invite", q(&room)), &alice, json!({ "user_id": bob.id })).await.ok();
    is_invited(two, &bob, &room).await;
    two.post(&format!("/join/{}", q(&room)), &bob, json!({})).await.ok();
    sees_membership(one, &alice, &room, &bob, "join").await;
    one.post(&format!("/rooms/{}/kick", q(&room)), &alice, json!({ "user_id": bob.id })).await.ok();
    eventually("bob is out", async || {
        let rooms = two.get("/joined_rooms", &bob).await.ok();
        rooms["joined_rooms"].as_array().unwrap().is_empty().then_some(())
    })
    .await;
    // Without an invite there is no way back in.
    let refused = two.post(&format!("/join/{}", q(&room)), &bob, json!({})).await;
    assert_eq!(refused.status, 403, "{}", refused.json());
    pair.one.stop().await;
    pair.two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invite_taken_back_is_gone_on_the_other_side_too() {
    let pair = Pair::start().await;
    let (one, two) = (&pair.one, &pair.two);
    let (alice, bob) = (one.register("alice").await, two.register("bob").await);
    let room = create(one, &alice, json!({ "preset": "private_chat", "invite": [bob.id] })).await;
    is_invited(two, &bob, &room).await;
    one.post(&format!("/rooms/{}/kick", q(&room)), &alice, json!({ "user_id": bob.id })).await.ok();
    eventually("the invite is gone", async || {
        let answer = two.get("/sync", &bob).await.ok();
        answer["rooms"]["invite"][&room].is_null().then_some(())
    })
    .await;
    pair.one.stop().await;
    pair.two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn profiles_and_names_are_told() {
    let pair = Pair::start().await;
    let (one, two) = (&pair.one, &pair.two);
    let (alice, bob) = (one.register("alice").await, two.register("bob").await);
    one.put(&format!("/profile/{}/displayname", q(&alice.id)), &alice, json!({ "displayname": "Alice" })).await.ok();
    let profile = two.get(&format!("/profile/{}", q(&alice.id)), &bob).await.ok();
    assert_eq!(profile["displayname"], "Alice");
    let room =
        create(one, &alice, json!({ "preset": "public_chat", "room_alias_name": "here", "visibility": "public" }))
            .await;
    let found = two.get(&format!("/directory/room/{}", q(&format!("#here:{}", one.name()))), &bob).await.ok();
    assert_eq!(found["room_id"], room.as_str());
    let list = two.get(&format!("/publicRooms?server={}", q(one.name())), &bob).await.ok();
    assert_eq!(list["chunk"][0]["room_id"], room.as_str());
    pair.one.stop().await;
    pair.two.stop().await;
}

/// Anybody may claim to be any server; each claim makes this one look for that server's key, so only a few are looked into.
#[tokio::test]
async fn strangers_are_looked_up_only_so_often() {
    let house = House::start_with(|config| {
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
async fn who_names_silent_servers_holds_nobody_up() {
    for profile in ["pi-zero-2w", "pi-3"] {
        let house = House::start_under_with(profile, |config| {
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
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        let begun = std::time::Instant::now();
        let status = ask("198.51.100.1".to_owned(), crate::house::free_port()).await;
        let took = begun.elapsed();
        assert_eq!(status, 401, "it was looked for, and is not there");
        assert!(took < std::time::Duration::from_secs(4), "{took:?}");
        for asking in crowd {
            assert_eq!(asking.await.unwrap(), 401);
        }
    }
}

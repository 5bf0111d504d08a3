//! Spaces over two servers, rooms seen from outside, and jumping to a date.

use serde_json::{Value, json};

use crate::rooms::{create, eventually, join, q, say, say_all, set};
use crate::server::{Pair, TestServer, TestUser};

async fn put_in(house: &TestServer, who: &TestUser, space: &str, child: &str, via: &str) {
    let path = format!("/rooms/{}/state/m.space.child/{}", q(space), q(child));
    house.put(&path, who, json!({ "via": [via] })).await.ok();
}

async fn space(house: &TestServer, who: &TestUser, name: &str) -> String {
    // In version 11 a room's id names a server that can be asked about it.
    let options = json!({ "preset": "public_chat", "name": name, "creation_content": { "type": "m.space" }, "room_version": "11" });
    create(house, who, options).await
}

fn hierarchy(room: &str) -> String {
    format!("/_matrix/client/v1/rooms/{}/hierarchy", q(room))
}

fn names(page: &Value) -> Vec<&str> {
    page["rooms"].as_array().unwrap().iter().map(|room| room["name"].as_str().unwrap_or("-")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_space_goes_on_at_another_server() {
    let pair = Pair::start().await;
    let (one, two) = (&pair.one, &pair.two);
    let (alice, bob) = (one.register("alice").await, two.register("bob").await);
    let top = space(one, &alice, "top").await;
    let inner = space(two, &bob, "inner").await;
    let open = create(two, &bob, json!({ "preset": "public_chat", "name": "open" })).await;
    let shut = create(two, &bob, json!({ "preset": "private_chat", "name": "shut" })).await;
    let restricted = create(two, &bob, json!({ "preset": "private_chat", "name": "restricted" })).await;
    let allow = json!([{ "type": "m.room_membership", "room_id": inner }]);
    set(two, &bob, &restricted, "m.room.join_rules", json!({ "join_rule": "restricted", "allow": allow })).await;
    put_in(one, &alice, &top, &inner, two.name()).await;
    put_in(one, &alice, &top, "!nowhere:nowhere.invalid", "nowhere.invalid").await;
    for child in [&open, &shut, &restricted, &top] {
        put_in(two, &bob, &inner, child, two.name()).await;
    }
    let page = one.get(&hierarchy(&top), &alice).await.ok();
    assert_eq!(names(&page), ["top", "inner", "open"]);
    assert_eq!(page["rooms"][1]["children_state"].as_array().unwrap().len(), 4);
    assert_eq!(page["rooms"][1]["children_state"][0]["content"]["via"], json!([two.name()]));
    // The other way round, as somebody who is in nothing there.
    let carol = two.register("carol").await;
    assert_eq!(names(&two.get(&hierarchy(&top), &carol).await.ok()), ["top", "inner", "open"]);
    // One page after the other, with what was told before.
    let mut found = Vec::new();
    let mut from = String::new();
    loop {
        let page = one.get(&format!("{}?limit=1{from}", hierarchy(&top)), &alice).await.ok();
        found.extend(names(&page).into_iter().map(str::to_owned));
        let Some(next) = page["next_batch"].as_str() else { break };
        from = format!("&from={next}");
    }
    assert_eq!(found, ["top", "inner", "open"]);
    one.get(&format!("{}?limit=0", hierarchy(&top)), &alice).await.refused(400, "M_INVALID_PARAM");
    one.get(&format!("{}?from=x", hierarchy(&top)), &alice).await.refused(400, "M_INVALID_PARAM");
    one.get(&format!("{}?suggested_only=true{from}", hierarchy(&top)), &alice).await.refused(400, "M_INVALID_PARAM");
    one.get(&hierarchy(&shut), &alice).await.refused(403, "M_FORBIDDEN");

    // Who is in the space that a restricted room names may see the room.
    join(one, &alice, &inner, two).await.ok();
    eventually("the restricted room is shown", async || {
        let page =
            one.get(&format!("/_matrix/client/v1/room_summary/{}?via={}", q(&restricted), two.name()), &alice).await;
        (page.status == 200).then_some(())
    })
    .await;
    for path in [
        format!("/_matrix/client/v1/room_summary/{}?via={}", q(&open), two.name()),
        format!("/_matrix/client/unstable/im.nheko.summary/summary/{}?via={}", q(&open), two.name()),
        format!("/_matrix/client/unstable/im.nheko.summary/rooms/{}/summary?via={}", q(&open), two.name()),
    ] {
        let summary = one.get(&path, &alice).await.ok();
        assert_eq!((&summary["name"], &summary["membership"]), (&json!("open"), &json!("leave")));
        assert!(summary["room_version"].is_string() && summary["num_joined_members"] == 1);
        // Apps from before the release of the specification look there.
        let old = &summary["im.nheko.summary.room_version"];
        assert_eq!(old.as_str(), summary["room_version"].as_str().filter(|_| path.contains("nheko")));
    }
    let path = format!("/_matrix/client/v1/room_summary/{}?via={}", q(&shut), two.name());
    one.get(&path, &alice).await.refused(404, "M_NOT_FOUND");
    let path = format!("/_matrix/client/v1/room_summary/{}", q(&top));
    assert_eq!(one.request("GET", &path, None, Value::Null).await.ok()["name"], "top");
    let path = format!("/_matrix/client/v1/room_summary/{}", q("!other:nowhere.invalid"));
    one.request("GET", &path, None, Value::Null).await.refused(401, "M_MISSING_TOKEN");

    let mutual =
        async |other: &str| one.get(&format!("/_matrix/client/v1/mutual_rooms?user_id={}", q(other)), &alice).await;
    eventually("both are known to be in the space", async || {
        (mutual(&bob.id).await.ok()["joined"] == json!([inner])).then_some(())
    })
    .await;
    mutual(&alice.id).await.refused(400, "M_INVALID_PARAM");
    mutual("bob").await.refused(400, "M_INVALID_PARAM");
    pair.one.stop().await;
    pair.two.stop().await;
}

/// The answer was once only what is here, which for whoever came late is the day of their coming.
#[tokio::test(flavor = "multi_thread")]
async fn a_date_before_one_came_is_asked_of_the_others() {
    let pair = Pair::start().await;
    let (one, two) = (&pair.one, &pair.two);
    let (alice, bob) = (one.register("alice").await, two.register("bob").await);
    let room = create(one, &alice, json!({ "preset": "public_chat" })).await;
    say_all(one, &alice, &room, 0..30).await;
    let messages = one.get(&format!("/rooms/{}/messages?dir=b&limit=20", q(&room)), &alice).await.ok();
    let wanted = messages["chunk"].as_array().unwrap().last().unwrap().clone();
    join(two, &bob, &room, one).await.ok();
    say(one, &alice, &room, "after").await;
    let path =
        |ts: &Value, dir: &str| format!("/_matrix/client/v1/rooms/{}/timestamp_to_event?ts={ts}&dir={dir}", q(&room));
    for dir in ["f", "b"] {
        let found = two.get(&path(&wanted["origin_server_ts"], dir), &bob).await.ok();
        assert_eq!(found["origin_server_ts"], wanted["origin_server_ts"]);
        let id = found["event_id"].as_str().unwrap();
        two.get(&format!("/rooms/{}/context/{}", q(&room), q(id)), &bob).await.ok();
    }
    two.get(&path(&json!(1), "b"), &bob).await.refused(404, "M_NOT_FOUND");
    one.get(&path(&json!(9_999_999_999_999_u64), "f"), &alice).await.refused(404, "M_NOT_FOUND");
    one.get(&path(&json!(-1), "f"), &alice).await.refused(400, "M_INVALID_PARAM");
    let carol = one.register("carol").await;
    one.get(&path(&json!(1), "f"), &carol).await.refused(403, "M_FORBIDDEN");
    pair.one.stop().await;
    pair.two.stop().await;
}

/// A token says where a walk is and what for; the server remembers no walk.
#[tokio::test]
async fn a_walk_goes_on_after_a_restart() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let top = space(&house, &alice, "top").await;
    for name in ["a", "b", "c"] {
        let room = create(&house, &alice, json!({ "preset": "public_chat", "name": name })).await;
        put_in(&house, &alice, &top, &room, house.name()).await;
    }
    let first = house.get(&format!("{}?limit=2", hierarchy(&top)), &alice).await.ok();
    let next = first["next_batch"].as_str().unwrap().to_owned();
    let house = house.restart().await;
    let rest = house.get(&format!("{}?from={}", hierarchy(&top), q(&next)), &alice).await.ok();
    let mut all = [names(&first), names(&rest)].concat();
    all[1..].sort_unstable();
    assert_eq!(all, ["top", "a", "b", "c"]);
    assert!(rest.get("next_batch").is_none());
    // Another's, and one that never was.
    house.post(&format!("/join/{}", q(&top)), &bob, json!({})).await;
    for from in [q(&next), "h2_0".to_owned(), "h99999999999999999999_0".to_owned()] {
        house.get(&format!("{}?from={from}", hierarchy(&top)), &bob).await.refused(400, "M_INVALID_PARAM");
    }
    house.stop().await;
}

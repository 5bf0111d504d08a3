//! Searching in rooms, over HTTP.

use serde_json::{Value, json};

use crate::rooms::{create, say};
use crate::server::{TestServer, TestUser};

async fn search(house: &TestServer, who: &TestUser, events: Value, batch: &str) -> Value {
    let body = json!({ "search_categories": { "room_events": events } });
    let answer = house.post(&format!("/search?next_batch={batch}"), who, body).await.ok();
    answer["search_categories"]["room_events"].clone()
}

/// What the Complement suite asks of a search, and more messages than the index waits for.
#[tokio::test]
async fn people_search_their_rooms() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let room = create(&house, &alice, json!({ "preset": "private_chat", "name": "Cellar", "topic": "wine" })).await;
    for n in 0..300 {
        say(&house, &alice, &room, &format!("Message number {n}")).await;
    }
    let filter = json!({ "limit": 10, "rooms": [room] });
    let events = json!({ "search_term": "message", "order_by": "recent", "keys": ["content.body"], "filter": filter });
    let (mut batch, mut numbers) = (String::new(), Vec::new());
    for _ in 0..3 {
        let page = search(&house, &alice, events.clone(), &batch).await;
        assert_eq!(page["count"], 300);
        let results = page["results"].as_array().unwrap().iter();
        numbers.extend(results.map(|result| result["result"]["content"]["body"].as_str().unwrap().to_owned()));
        batch = page["next_batch"].as_str().unwrap().to_owned();
    }
    assert_eq!(numbers, (270..300).rev().map(|n| format!("Message number {n}")).collect::<Vec<_>>());
    let found = search(&house, &alice, json!({ "search_term": "Message 17" }), "").await;
    assert_eq!((&found["count"], &found["highlights"]), (&json!(1), &json!(["message", "17"])));
    for (term, count) in [("cellar", 1), ("WINE", 1), ("beer", 0)] {
        assert_eq!(search(&house, &alice, json!({ "search_term": term }), "").await["count"], count, "{term}");
    }
    assert_eq!(search(&house, &bob, json!({ "search_term": "message" }), "").await["count"], 0);

    // The words are there after a restart, and the worker is idle.
    let house = house.restart().await;
    assert_eq!(search(&house, &alice, json!({ "search_term": "number" }), "").await["count"], 300);

    let refused = async |body: Value, batch: &str, code: &str| {
        house.post(&format!("/search?next_batch={batch}"), &alice, body).await.refused(400, code);
    };
    refused(json!({ "search_categories": {} }), "", "M_BAD_JSON").await;
    refused(json!({}), "", "M_BAD_JSON").await;
    let events = json!({ "search_categories": { "room_events": { "search_term": "x" } } });
    refused(events, "nonsense", "M_INVALID_PARAM").await;
    house.stop().await;
}

#[tokio::test]
async fn a_server_may_have_no_search() {
    let house = TestServer::start_with(|config| config.search.enabled = false).await;
    let alice = house.register("alice").await;
    let body = json!({ "search_categories": { "room_events": { "search_term": "x" } } });
    house.post("/search", &alice, body).await.refused(400, "M_UNKNOWN");
    house.stop().await;
}

//! Two servers and the people on them: invite, join, chat both ways, leave, across a restart.

use std::time::Duration;

use serde_json::{Value, json};

use crate::house::{House, Pair, Person};

/// Waits until somebody's answer shows what is looked for; other servers are told in the background, and one that was away
/// is asked again after ten seconds only.
async fn until(what: &str, mut look: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if look().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never came: {what}");
}

async fn say(house: &House, who: &Person, room: &str, text: &str) {
    let path = format!("/rooms/{room}/send/m.room.message/{text}");
    house.put(&path, who, json!({ "msgtype": "m.text", "body": text })).await.ok();
}

async fn sees(house: &House, who: &Person, room: &str, text: &str) {
    until(text, async || {
        let page = house.get(&format!("/rooms/{room}/messages?dir=b&limit=50"), who).await;
        let page: Value = if page.status == 200 { page.json() } else { Value::Null };
        page["chunk"].as_array().is_some_and(|events| events.iter().any(|event| event["content"]["body"] == text))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_households_chat() {
    let pair = Pair::start().await;
    let (alice, bob) = (pair.one.register("alice").await, pair.two.register("bob").await);
    let options = json!({ "preset": "private_chat", "name": "Two houses", "invite": [bob.id] });
    let made = pair.one.post("/createRoom", &alice, options).await.ok();
    let room = made["room_id"].as_str().unwrap().to_owned();

    until("the invitation", async || {
        let sync = pair.two.get("/sync?timeout=0", &bob).await.ok();
        !sync["rooms"]["invite"][&room].is_null()
    })
    .await;
    pair.two.post(&format!("/join/{room}?via={}", pair.one.name()), &bob, json!({})).await.ok();
    say(&pair.one, &alice, &room, "from-one").await;
    sees(&pair.two, &bob, &room, "from-one").await;
    say(&pair.two, &bob, &room, "from-two").await;
    sees(&pair.one, &alice, &room, "from-two").await;

    let members = pair.one.get(&format!("/rooms/{room}/joined_members"), &alice).await.ok();
    assert_eq!(members["joined"].as_object().unwrap().len(), 2, "{members}");

    // What is sent while the other is away is there when it comes back.
    let Pair { one, two, wire: _wire, lab } = pair;
    say(&one, &alice, &room, "before").await;
    let two = two.restart().await;
    say(&one, &alice, &room, "after").await;
    sees(&two, &bob, &room, "after").await;

    two.post(&format!("/rooms/{room}/leave"), &bob, json!({})).await.ok();
    until("the leaving", async || {
        let members = one.get(&format!("/rooms/{room}/joined_members"), &alice).await.ok();
        members["joined"].as_object().is_some_and(|joined| joined.len() == 1)
    })
    .await;
    drop(lab);
}

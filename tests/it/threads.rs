//! Subscriptions to threads.

use serde_json::{Value, json};

use crate::rooms::{create, q};
use crate::server::{TestServer, TestUser};

const LIST: &str = "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions?dir=b";

async fn say(house: &TestServer, who: &TestUser, room: &str, txn: &str, thread: Option<&str>) -> String {
    let mut content = json!({ "msgtype": "m.text", "body": txn });
    if let Some(root) = thread {
        content["m.relates_to"] = json!({ "rel_type": "m.thread", "event_id": root });
    }
    let sent = house.put(&format!("/rooms/{}/send/m.room.message/{txn}", q(room)), who, content).await.ok();
    sent["event_id"].as_str().unwrap().to_owned()
}

fn path(room: &str, root: &str) -> String {
    format!("/_matrix/client/unstable/io.element.msc4306/rooms/{}/thread/{}/subscription", q(room), q(root))
}

#[tokio::test]
async fn a_thread_is_followed_until_its_user_says_no() {
    let house = TestServer::start().await;
    let (alice, bob, eve) = (house.register("alice").await, house.register("bob").await, house.register("eve").await);
    let room = create(&house, &alice, json!({ "preset": "public_chat" })).await;
    house.post(&format!("/join/{}", q(&room)), &bob, json!({})).await.ok();
    let root = say(&house, &alice, &room, "root", None).await;
    let other = say(&house, &alice, &room, "other", None).await;
    let first = say(&house, &alice, &room, "first", Some(&root)).await;
    let thread = path(&room, &root);

    house.get(&thread, &bob).await.refused(404, "M_NOT_FOUND");
    house.delete(&thread, &bob).await.ok();
    for (who, root) in [(&eve, root.as_str()), (&bob, "$nothing")] {
        house.put(&path(&room, root), who, json!({})).await.refused(404, "M_NOT_FOUND");
    }
    for (cause, code) in [(&other, "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD"), (&root, "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD")]
    {
        house.put(&thread, &bob, json!({ "automatic": cause })).await.refused(400, code);
    }
    house.put(&thread, &bob, json!({ "automatic": "$nothing" })).await.refused(404, "M_NOT_FOUND");
    let stable = thread.replace("unstable/io.element.msc4306", "v1");
    house.put(&stable, &bob, json!({ "automatic": other })).await.refused(400, "M_NOT_IN_THREAD");
    house.get(&thread, &bob).await.refused(404, "M_NOT_FOUND");

    // Of the two kinds of subscription the user's own is the stronger one.
    for (body, automatic) in
        [(json!({ "automatic": first }), true), (json!({}), false), (json!({ "automatic": first }), false)]
    {
        house.put(&thread, &bob, body).await.ok();
        assert_eq!(house.get(&thread, &bob).await.ok(), json!({ "automatic": automatic }));
    }
    house.get(&thread, &alice).await.refused(404, "M_NOT_FOUND");

    // What was there when the user unsubscribed subscribes nobody any more; what came later does.
    house.delete(&thread, &bob).await.ok();
    house.get(&thread, &bob).await.refused(404, "M_NOT_FOUND");
    let again = house.put(&thread, &bob, json!({ "automatic": first })).await;
    again.refused(409, "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION");
    let second = say(&house, &alice, &room, "second", Some(&root)).await;
    house.put(&thread, &bob, json!({ "automatic": second })).await.ok();
    assert_eq!(house.get(&thread, &bob).await.ok(), json!({ "automatic": true }));
    house.delete(&thread, &bob).await.ok();
    house.put(&thread, &bob, json!({})).await.ok();
    house.stop().await;
}

#[tokio::test]
async fn changes_of_threads_are_listed_latest_first() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let room = create(&house, &alice, json!({})).await;
    assert_eq!(house.get(LIST, &alice).await.ok(), json!({}));
    house
        .get("/_matrix/client/unstable/io.element.msc4308/thread_subscriptions", &alice)
        .await
        .refused(400, "M_MISSING_PARAM");
    for wrong in ["&limit=0", "&from=x", "&to=x"] {
        house.get(&format!("{LIST}{wrong}"), &alice).await.refused(400, "M_INVALID_PARAM");
    }
    let mut roots = Vec::new();
    for nth in 0..5 {
        let root = say(&house, &alice, &room, &format!("root{nth}"), None).await;
        house.put(&path(&room, &root), &alice, json!({})).await.ok();
        roots.push(root);
    }
    let before = house.get("/sync?timeout=0", &alice).await.ok()["next_batch"].as_str().unwrap().to_owned();
    house.delete(&path(&room, &roots[0]), &alice).await.ok();
    let names = |part: &Value| -> Vec<String> {
        part.pointer(&format!("/{}", room.replace('/', "~1")))
            .map(|threads| threads.as_object().unwrap().keys().cloned().collect())
            .unwrap_or_default()
    };
    let (mut from, mut pages, mut found) = (String::new(), 0, Vec::new());
    loop {
        let page = house.get(&format!("{LIST}&limit=2{from}"), &alice).await.ok();
        let (on, off) = (names(&page["subscribed"]), names(&page["unsubscribed"]));
        assert_eq!(off.len(), usize::from(pages == 0));
        found.extend(on.into_iter().chain(off));
        pages += 1;
        let Some(end) = page["end"].as_str() else { break };
        from = format!("&from={end}");
    }
    found.sort();
    let mut all = roots.clone();
    all.sort();
    assert_eq!((pages, found), (3, all));
    let since = house.get(&format!("{LIST}&to={before}"), &alice).await.ok();
    assert_eq!((names(&since["unsubscribed"]), since.get("subscribed")), (vec![roots[0].clone()], None));
    assert!(since["unsubscribed"][&room][&roots[0]]["bump_stamp"].is_u64());
    house.stop().await;
}

const KIND: &str = "/pushrules/global/postcontent";

/// The rules about threads hold for those whose apps know subscriptions: others would hear of no thread any more.
#[tokio::test]
async fn threads_that_are_not_followed_are_silent() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let room = create(&house, &alice, json!({ "preset": "public_chat" })).await;
    house.post(&format!("/join/{}", q(&room)), &bob, json!({})).await.ok();
    let one = say(&house, &alice, &room, "one", None).await;
    let two = say(&house, &alice, &room, "two", None).await;
    let counts = async || {
        let sync = house.get("/sync?timeout=0", &bob).await.ok();
        sync["rooms"]["join"][&room]["unread_notifications"]["notification_count"].as_u64().unwrap()
    };
    let before = counts().await;
    say(&house, &alice, &room, "before", Some(&one)).await;
    assert_eq!(counts().await, before + 1);
    house.put(&path(&room, &two), &bob, json!({})).await.ok();
    say(&house, &alice, &room, "silent", Some(&one)).await;
    assert_eq!(counts().await, before + 1);
    say(&house, &alice, &room, "loud", Some(&two)).await;
    assert_eq!(counts().await, before + 2);
    say(&house, &alice, &room, "beside", None).await;
    assert_eq!(counts().await, before + 3);

    let rule = format!("{KIND}/.io.element.msc4306.rule.unsubscribed_thread");
    let shown = house.get(&rule, &bob).await.ok();
    assert_eq!((&shown["enabled"], &shown["actions"]), (&json!(true), &json!([])));
    let condition = json!([{ "kind": "io.element.msc4306.thread_subscription", "subscribed": false }]);
    assert_eq!(shown["conditions"], condition);
    house.put(&format!("{rule}/enabled"), &bob, json!({ "enabled": false })).await.ok();
    assert_eq!(house.get(&format!("{rule}/enabled"), &bob).await.ok(), json!({ "enabled": false }));
    let all = house.get("/pushrules/", &bob).await.ok();
    assert_eq!(all["global"]["postcontent"].as_array().unwrap().len(), 2);
    say(&house, &alice, &room, "again", Some(&one)).await;
    assert_eq!(counts().await, before + 4, "the rule is off");
    let own = json!({ "actions": [], "conditions": [] });
    house.put(&format!("{KIND}/mine"), &bob, own).await.refused(400, "M_INVALID_PARAM");
    house.stop().await;
}

//! Two servers: history that is fetched later, redactions, forks.

use serde_json::{Value, json};

use crate::rooms::{
    bodies, create, eventually, initial, join, leave, membership, no_doubles, numbered, q, same_state, say, say_all,
    scrolled, sees_membership, sees_text, set, state, texts,
};
use crate::server::Pair;

#[tokio::test(flavor = "multi_thread")]
async fn a_late_joiner_scrolls_back_to_the_beginning() {
    let pair = Pair::start().await;
    let (one, two) = (&pair.one, &pair.two);
    let (alice, bob) = (one.register("alice").await, two.register("bob").await);
    let room = create(one, &alice, json!({ "preset": "public_chat", "name": "first" })).await;
    say_all(one, &alice, &room, 0..70).await;
    set(one, &alice, &room, "m.room.name", json!({ "name": "second" })).await;
    say_all(one, &alice, &room, 70..150).await;
    join(two, &bob, &room, one).await.ok();
    say(two, &bob, &room, "150").await;
    sees_text(one, &alice, &room, "150").await;

    let (theirs, ours) = (scrolled(two, &bob, &room).await, scrolled(one, &alice, &room).await);
    no_doubles(&theirs);
    assert_eq!(bodies(&theirs), numbered(0..151));
    let ids = |events: &[Value]| events.iter().map(|event| event["event_id"].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&theirs), ids(&ours), "both servers tell the same story");
    assert_eq!(theirs[0]["type"], "m.room.create");
    // And once more, now that it is all here.
    assert_eq!(ids(&scrolled(two, &bob, &room).await), ids(&ours));

    // Of a room that shows history only to members nothing from before is told.
    let hidden = initial("m.room.history_visibility", json!({ "history_visibility": "joined" }));
    let room = create(one, &alice, json!({ "preset": "public_chat", "initial_state": [hidden] })).await;
    say_all(one, &alice, &room, 0..30).await;
    join(two, &bob, &room, one).await.ok();
    say(one, &alice, &room, "030").await;
    sees_text(two, &bob, &room, "030").await;
    assert_eq!(bodies(&scrolled(two, &bob, &room).await), ["030"]);
    pair.one.stop().await;
    pair.two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_returning_member_finds_what_went_on() {
    let pair = Pair::start().await;
    let (one, two) = (&pair.one, &pair.two);
    let (alice, bob, carol) = (one.register("alice").await, two.register("bob").await, one.register("carol").await);
    let room = create(one, &alice, json!({ "preset": "public_chat", "name": "before" })).await;
    say_all(one, &alice, &room, 0..10).await;
    join(two, &bob, &room, one).await.ok();
    say_all(two, &bob, &room, 10..20).await;
    sees_text(one, &alice, &room, "019").await;
    let told = two.get("/sync", &bob).await.ok()["next_batch"].as_str().unwrap().to_owned();
    leave(two, &bob, &room).await;
    sees_membership(one, &alice, &room, &bob, "leave").await;

    say_all(one, &alice, &room, 20..70).await;
    set(one, &alice, &room, "m.room.name", json!({ "name": "meanwhile" })).await;
    one.post(&format!("/join/{}", q(&room)), &carol, json!({})).await.ok();
    say_all(one, &carol, &room, 70..140).await;
    set(one, &alice, &room, "m.room.topic", json!({ "topic": "new" })).await;
    leave(one, &carol, &room).await;
    say_all(one, &alice, &room, 140..150).await;

    join(two, &bob, &room, one).await.ok();
    sees_membership(one, &alice, &room, &bob, "join").await;
    same_state((one, &alice), (two, &bob), &room).await;
    assert_eq!(state(two, &bob, &room, "m.room.name").await["name"], "meanwhile");
    // An app that was told of the time before learns that something is missing in between.
    let news = two.get(&format!("/sync?since={told}"), &bob).await.ok()["rooms"]["join"][&room].clone();
    assert_eq!(news["timeline"]["limited"], true, "{news}");
    let shown = news["timeline"]["events"].as_array().unwrap();
    assert_eq!((shown.len(), shown[0]["state_key"].as_str()), (1, Some(&*bob.id)), "the joining: {news}");
    let from = news["timeline"]["prev_batch"].as_str().unwrap();
    let page = two.get(&format!("/rooms/{}/messages?dir=b&limit=5&from={from}", q(&room)), &bob).await.ok();
    assert_eq!(bodies(page["chunk"].as_array().unwrap()), ["149", "148", "147", "146", "145"]);
    say(two, &bob, &room, "150").await;
    sees_text(one, &alice, &room, "150").await;
    say(one, &alice, &room, "151").await;
    sees_text(two, &bob, &room, "151").await;
    let theirs = scrolled(two, &bob, &room).await;
    no_doubles(&theirs);
    assert_eq!(bodies(&theirs), numbered(0..152));
    assert_eq!(bodies(&scrolled(one, &alice, &room).await), numbered(0..152));
    pair.one.stop().await;
    pair.two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_redacted_is_gone_on_both_sides() {
    let pair = Pair::start().await;
    let (one, two) = (&pair.one, &pair.two);
    let (alice, bob) = (one.register("alice").await, two.register("bob").await);
    for version in ["10", "11", "12"] {
        let room = create(one, &alice, json!({ "preset": "public_chat", "room_version": version })).await;
        join(two, &bob, &room, one).await.ok();
        for text in ["mine", "bad", "kept"] {
            say(two, &bob, &room, text).await;
        }
        sees_text(one, &alice, &room, "kept").await;
        let id_of = async |text: &str| {
            let page = scrolled(two, &bob, &room).await;
            let event = page.iter().find(|event| event["content"]["body"] == text).unwrap();
            event["event_id"].as_str().unwrap().to_owned()
        };
        let (mine, bad) = (id_of("mine").await, id_of("bad").await);
        let redact = |id: &str| format!("/rooms/{}/redact/{}/{}", q(&room), q(id), q(id));
        two.put(&redact(&mine), &bob, json!({})).await.ok();
        one.put(&redact(&bad), &alice, json!({ "reason": "rude" })).await.ok();
        for (house, who) in [(one, &alice), (two, &bob)] {
            eventually("both are gone", async || (texts(house, who, &room).await == ["kept"]).then_some(())).await;
            let event = house.get(&format!("/rooms/{}/event/{}", q(&room), q(&bad)), who).await.ok();
            assert_eq!(event["content"], json!({}), "{event}");
            assert_eq!(event["unsigned"]["redacted_because"]["content"]["reason"], "rude", "{event}");
        }
        // A member takes nothing of others back; only what is one's own.
        say(one, &alice, &room, "of alice").await;
        sees_text(two, &bob, &room, "of alice").await;
        let hers = id_of("of alice").await;
        two.put(&redact(&hers), &bob, json!({})).await.refused(403, "M_FORBIDDEN");
    }
    pair.one.stop().await;
    pair.two.stop().await;
}

/// Both go on while they cannot reach each other; afterwards they agree, on the state and on what was said.
#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_was_in_two_parts_becomes_one() {
    let Pair { one, two, wire, certificates: _certificates } = Pair::start().await;
    let (alice, bob) = (one.register("alice").await, two.register("bob").await);
    let (carol, dave) = (one.register("carol").await, two.register("dave").await);
    let room = create(&one, &alice, json!({ "preset": "public_chat" })).await;
    for who in [&bob, &dave] {
        join(&two, who, &room, &one).await.ok();
    }
    one.post(&format!("/join/{}", q(&room)), &carol, json!({})).await.ok();
    sees_membership(&two, &bob, &room, &carol, "join").await;
    let mut powers = state(&one, &alice, &room, "m.room.power_levels").await;
    powers["users"][&bob.id] = 50.into();
    set(&one, &alice, &room, "m.room.power_levels", powers).await;
    eventually("the powers arrive", async || {
        (state(&two, &bob, &room, "m.room.power_levels").await["users"][&bob.id] == 50).then_some(())
    })
    .await;
    sees_membership(&one, &alice, &room, &dave, "join").await;

    wire.cut();
    say_all(&one, &alice, &room, 0..15).await;
    say_all(&two, &bob, &room, 15..30).await;
    set(&one, &alice, &room, "m.room.topic", json!({ "topic": "of alice" })).await;
    set(&two, &bob, &room, "m.room.topic", json!({ "topic": "of bob" })).await;
    one.post(&format!("/rooms/{}/ban", q(&room)), &alice, json!({ "user_id": dave.id })).await.ok();
    say(&two, &dave, &room, "am I here?").await;
    two.post(&format!("/rooms/{}/kick", q(&room)), &bob, json!({ "user_id": carol.id })).await.ok();
    set(&two, &bob, &room, "m.room.name", json!({ "name": "named by bob" })).await;
    wire.mend();

    same_state((&one, &alice), (&two, &bob), &room).await;
    say(&one, &alice, &room, "together").await;
    say(&two, &bob, &room, "again").await;
    sees_text(&two, &bob, &room, "together").await;
    sees_text(&one, &alice, &room, "again").await;
    same_state((&one, &alice), (&two, &bob), &room).await;
    assert_eq!(membership(&one, &alice, &room, &dave).await.as_deref(), Some("ban"));
    assert_eq!(state(&one, &alice, &room, "m.room.name").await["name"], "named by bob");
    for (house, who) in [(&one, &alice), (&two, &bob)] {
        let events = scrolled(house, who, &room).await;
        no_doubles(&events);
        let mut said = bodies(&events);
        said.retain(|text| text.len() == 3);
        said.sort_unstable();
        assert_eq!(said, numbered(0..30));
    }
    one.stop().await;
    two.stop().await;
}

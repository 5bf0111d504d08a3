//! Two servers over longer times: knocking, restricted rooms, scrolling back, going and coming again, being cut off.

use serde_json::{Value, json};

use crate::federation::{
    create, eventually, is_invited, membership, q, same_state, say, sees_membership, sees_text, texts,
};
use crate::house::{House, Pair, Person};

/// A state event of a new room.
fn initial(kind: &str, content: Value) -> Value {
    json!({ "type": kind, "state_key": "", "content": content })
}

async fn set(house: &House, who: &Person, room: &str, kind: &str, content: Value) {
    house.put(&format!("/rooms/{}/state/{kind}", q(room)), who, content).await.ok();
}

async fn state(house: &House, who: &Person, room: &str, kind: &str) -> Value {
    house.get(&format!("/rooms/{}/state/{kind}", q(room)), who).await.ok()
}

async fn join(house: &House, who: &Person, room: &str, via: &House) -> crate::house::Reply {
    house.post(&format!("/join/{}?via={}", q(room), via.name()), who, json!({})).await
}

async fn leave(house: &House, who: &Person, room: &str) {
    house.post(&format!("/rooms/{}/leave", q(room)), who, json!({})).await.ok();
}

async fn invite(house: &House, who: &Person, room: &str, whom: &Person) {
    house.post(&format!("/rooms/{}/invite", q(room)), who, json!({ "user_id": whom.id })).await.ok();
}

/// Everything a person sees who scrolls back from the end to where there is no more: oldest first.
async fn scrolled(house: &House, who: &Person, room: &str) -> Vec<Value> {
    let (mut events, mut from) = (Vec::new(), String::new());
    for _ in 0..200 {
        let page = house.get(&format!("/rooms/{}/messages?dir=b&limit=20{from}", q(room)), who).await.ok();
        events.extend(page["chunk"].as_array().unwrap().iter().cloned());
        match page["end"].as_str() {
            Some(end) => from = format!("&from={end}"),
            None => {
                events.reverse();
                return events;
            }
        }
    }
    panic!("scrolling back has no end");
}

fn bodies(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

fn no_doubles(events: &[Value]) {
    let mut ids: Vec<&str> = events.iter().map(|event| event["event_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    let all = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), all, "no event is shown twice");
}

fn numbered(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|nth| format!("{nth:03}")).collect()
}

async fn say_all(house: &House, who: &Person, room: &str, range: std::ops::Range<usize>) {
    for text in numbered(range) {
        say(house, who, room, &text).await;
    }
}

/// The entry of a room in one of the lists of a first sync.
async fn listed(house: &House, who: &Person, list: &str, room: &str) -> Value {
    house.get("/sync", who).await.ok()["rooms"][list][room].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_knocks_is_let_in_or_not() {
    let pair = Pair::start().await;
    let (one, two) = (&pair.one, &pair.two);
    let (alice, bob, carol) = (one.register("alice").await, two.register("bob").await, two.register("carol").await);
    for version in ["7", "10", "12"] {
        let rules = initial("m.room.join_rules", json!({ "join_rule": "knock" }));
        let options =
            json!({ "preset": "private_chat", "name": "Club", "room_version": version, "initial_state": [rules] });
        let room = create(one, &alice, options).await;
        assert_eq!(join(two, &bob, &room, one).await.status, 403, "nobody walks in");
        let knock = format!("/knock/{}?via={}", q(&room), one.name());
        for who in [&bob, &carol] {
            let answer = two.post(&knock, who, json!({ "reason": "it is me" })).await.ok();
            assert_eq!(answer["room_id"], room.as_str());
            sees_membership(one, &alice, &room, who, "knock").await;
        }
        let shown = state(one, &alice, &room, &format!("m.room.member/{}", q(&bob.id))).await;
        assert_eq!(shown["reason"], "it is me");
        let stripped = listed(two, &bob, "knock", &room).await;
        let events = stripped["knock_state"]["events"].as_array().unwrap();
        assert!(events.iter().any(|event| event["content"]["name"] == "Club"), "{stripped}");
        assert!(events.iter().any(|event| event["state_key"] == bob.id.as_str()), "{stripped}");

        invite(one, &alice, &room, &bob).await;
        is_invited(two, &bob, &room).await;
        assert!(listed(two, &bob, "knock", &room).await.is_null());
        join(two, &bob, &room, one).await.ok();
        sees_membership(one, &alice, &room, &bob, "join").await;
        same_state((one, &alice), (two, &bob), &room).await;
        say(two, &bob, &room, "thank you").await;
        sees_text(one, &alice, &room, "thank you").await;

        // Carol is not wanted, and knocks again, and thinks better of it.
        one.post(&format!("/rooms/{}/kick", q(&room)), &alice, json!({ "user_id": carol.id })).await.ok();
        eventually("the knock is over", async || listed(two, &carol, "knock", &room).await.is_null().then_some(()))
            .await;
        two.post(&knock, &carol, json!({})).await.ok();
        sees_membership(one, &alice, &room, &carol, "knock").await;
        assert!(!listed(two, &carol, "knock", &room).await.is_null());
        leave(two, &carol, &room).await;
        sees_membership(one, &alice, &room, &carol, "leave").await;
        assert!(listed(two, &carol, "knock", &room).await.is_null());
        same_state((one, &alice), (two, &bob), &room).await;
    }
    let closed = create(one, &alice, json!({ "preset": "private_chat" })).await;
    let refused = two.post(&format!("/knock/{}?via={}", q(&closed), one.name()), &bob, json!({})).await;
    refused.refused(403, "M_FORBIDDEN");
    pair.one.stop().await;
    pair.two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restricted_room_takes_members_of_another() {
    let pair = Pair::start().await;
    let (one, two) = (&pair.one, &pair.two);
    let (alice, bob, carol) = (one.register("alice").await, two.register("bob").await, two.register("carol").await);
    for version in ["8", "9", "10", "11", "12"] {
        let club = create(one, &alice, json!({ "preset": "public_chat", "room_version": version })).await;
        let allow = json!([{ "type": "m.room_membership", "room_id": club }]);
        let rules = initial("m.room.join_rules", json!({ "join_rule": "restricted", "allow": allow }));
        let options = json!({ "preset": "private_chat", "room_version": version, "initial_state": [rules] });
        let room = create(one, &alice, options).await;

        join(two, &bob, &room, one).await.refused(403, "M_FORBIDDEN");
        assert_eq!(membership(one, &alice, &room, &bob).await, None);
        join(two, &bob, &club, one).await.ok();
        sees_membership(one, &alice, &club, &bob, "join").await;
        join(two, &bob, &room, one).await.ok();
        sees_membership(one, &alice, &room, &bob, "join").await;
        let own = state(one, &alice, &room, &format!("m.room.member/{}", q(&bob.id))).await;
        assert_eq!(own["join_authorised_via_users_server"], alice.id.as_str());
        same_state((one, &alice), (two, &bob), &room).await;

        // The second one of that server is let in by the first.
        join(two, &carol, &room, one).await.refused(403, "M_FORBIDDEN");
        join(two, &carol, &club, one).await.ok();
        join(two, &carol, &room, one).await.ok();
        sees_membership(one, &alice, &room, &carol, "join").await;
        let own = state(one, &alice, &room, &format!("m.room.member/{}", q(&carol.id))).await;
        assert_eq!(own["join_authorised_via_users_server"], bob.id.as_str());
        same_state((one, &alice), (two, &bob), &room).await;
        say(two, &carol, &room, "in").await;
        sees_text(one, &alice, &room, "in").await;

        // Who left the other room stays in this one, and has no way back once out.
        leave(two, &carol, &club).await;
        sees_membership(one, &alice, &club, &carol, "leave").await;
        leave(two, &carol, &room).await;
        sees_membership(one, &alice, &room, &carol, "leave").await;
        join(two, &carol, &room, one).await.refused(403, "M_FORBIDDEN");
    }
    pair.one.stop().await;
    pair.two.stop().await;
}

/// Where nobody of the server may let others in, somebody of another server does; they were refused.
#[tokio::test(flavor = "multi_thread")]
async fn who_nobody_here_may_let_in_is_let_in_elsewhere() {
    let pair = Pair::start().await;
    let (one, two) = (&pair.one, &pair.two);
    let (alice, bob, carol) = (one.register("alice").await, two.register("bob").await, two.register("carol").await);
    for version in ["8", "10", "12"] {
        let club = create(one, &alice, json!({ "preset": "public_chat", "room_version": version })).await;
        let allow = json!([{ "type": "m.room_membership", "room_id": club }]);
        let rules = initial("m.room.join_rules", json!({ "join_rule": "restricted", "allow": allow }));
        let options = json!({
            "preset": "private_chat", "room_version": version, "initial_state": [rules],
            "power_level_content_override": { "invite": 50 },
        });
        let room = create(one, &alice, options).await;
        join(two, &bob, &club, one).await.ok();
        join(two, &bob, &room, one).await.ok();
        let walk_in = async || two.post(&format!("/rooms/{}/join", q(&room)), &carol, json!({})).await;
        walk_in().await.refused(403, "M_FORBIDDEN");
        join(two, &carol, &club, one).await.ok();
        sees_membership(one, &alice, &club, &carol, "join").await;
        walk_in().await.ok();
        sees_membership(one, &alice, &room, &carol, "join").await;
        let own = state(two, &bob, &room, &format!("m.room.member/{}", q(&carol.id))).await;
        assert_eq!(own["join_authorised_via_users_server"], alice.id.as_str());
        same_state((one, &alice), (two, &carol), &room).await;
        say(two, &carol, &room, "in").await;
        sees_text(one, &alice, &room, "in").await;
    }
    pair.one.stop().await;
    pair.two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_late_scrolls_back_to_the_beginning() {
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
async fn who_left_and_comes_again_finds_what_went_on() {
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
async fn an_invite_is_refused_even_when_nobody_can_be_told() {
    let Pair { one, two, wire, lab: _lab } = Pair::start().await;
    let (alice, bob) = (one.register("alice").await, two.register("bob").await);
    let room = create(&one, &alice, json!({ "preset": "private_chat", "invite": [bob.id] })).await;
    is_invited(&two, &bob, &room).await;
    wire.cut();
    leave(&two, &bob, &room).await;
    assert!(listed(&two, &bob, "invite", &room).await.is_null());
    wire.mend();
    one.stop().await;
    two.stop().await;
}

/// While the line was down the app of somebody who scrolled back was told that the room begins there, and remembered it.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_to_ask_is_no_beginning_of_a_room() {
    let Pair { one, two, wire, lab: _lab } = Pair::start().await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_the_room_shuts_out_is_not_heard() {
    let pair = Pair::start().await;
    let (one, two) = (&pair.one, &pair.two);
    let (alice, bob, carol) = (one.register("alice").await, two.register("bob").await, two.register("carol").await);
    let room = create(one, &alice, json!({ "preset": "public_chat" })).await;
    join(two, &bob, &room, one).await.ok();
    say(two, &bob, &room, "heard").await;
    sees_text(one, &alice, &room, "heard").await;
    let denied = json!({ "allow": ["*"], "deny": [two.name()], "allow_ip_literals": true });
    set(one, &alice, &room, "m.room.server_acl", denied).await;
    eventually("the list arrives", async || {
        let list = two.get(&format!("/rooms/{}/state/m.room.server_acl", q(&room)), &bob).await;
        (list.status == 200).then_some(())
    })
    .await;
    two.put(&format!("/rooms/{}/send/m.room.message/x", q(&room)), &bob, json!({ "body": "unheard" })).await;
    // A message elsewhere, sent later, shows that the other one has arrived.
    let other = create(one, &alice, json!({ "preset": "public_chat" })).await;
    join(two, &bob, &other, one).await.ok();
    say(two, &bob, &other, "later").await;
    sees_text(one, &alice, &other, "later").await;
    assert_eq!(texts(one, &alice, &room).await, ["heard"]);
    // Those of the server that are not inside cannot come in through it.
    let knock = create(one, &alice, json!({ "preset": "public_chat" })).await;
    let denied = json!({ "allow": ["*"], "deny": ["two.*"], "allow_ip_literals": true });
    set(one, &alice, &knock, "m.room.server_acl", denied).await;
    join(two, &carol, &knock, one).await.refused(403, "M_FORBIDDEN");

    set(one, &alice, &room, "m.room.server_acl", json!({ "allow": ["*"], "allow_ip_literals": true })).await;
    eventually("the list arrives", async || {
        let list = state(two, &bob, &room, "m.room.server_acl").await;
        list["deny"].is_null().then_some(())
    })
    .await;
    say(two, &bob, &room, "heard again").await;
    sees_text(one, &alice, &room, "heard again").await;
    pair.one.stop().await;
    pair.two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_was_down_catches_up() {
    let Pair { one, two, wire: _wire, lab: _lab } = Pair::start().await;
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

/// Both go on while they cannot reach each other; afterwards they agree, on the state and on what was said.
#[tokio::test(flavor = "multi_thread")]
async fn a_room_that_was_in_two_parts_becomes_one() {
    let Pair { one, two, wire, lab: _lab } = Pair::start().await;
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

//! Two servers: invites, joins, knocks, leaves, restricted rooms, names.

use serde_json::json;

use crate::rooms::{
    create, eventually, initial, invite, is_invited, join, leave, listed, membership, q, same_state, say,
    sees_membership, sees_text, set, state, texts,
};
use crate::server::Pair;

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
    // Most ids of version 3 could be of version 4 by their looks, and not all of any one room.
    let versions = ["2", "3", "3", "3", "3", "4", "6", "9", "10", "11", "12"];
    for (number, version) in versions.into_iter().enumerate() {
        let options =
            json!({ "preset": "public_chat", "room_version": version, "room_alias_name": format!("r{number}") });
        let room = create(one, &alice, options).await;
        let alias = format!("#r{number}:{}", one.name());
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

#[tokio::test(flavor = "multi_thread")]
async fn a_knock_is_accepted_or_declined() {
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
async fn restricted_join_through_another_server() {
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
async fn an_invite_is_refused_even_when_nobody_can_be_told() {
    let Pair { one, two, wire, certificates: _certificates } = Pair::start().await;
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
async fn two_servers_chat() {
    let pair = Pair::start().await;
    let (alice, bob) = (pair.one.register("alice").await, pair.two.register("bob").await);
    let options = json!({ "preset": "private_chat", "name": "Two houses", "invite": [bob.id] });
    let made = pair.one.post("/createRoom", &alice, options).await.ok();
    let room = made["room_id"].as_str().unwrap().to_owned();

    eventually("the invitation", async || {
        let sync = pair.two.get("/sync?timeout=0", &bob).await.ok();
        (!sync["rooms"]["invite"][&room].is_null()).then_some(())
    })
    .await;
    pair.two.post(&format!("/join/{room}?via={}", pair.one.name()), &bob, json!({})).await.ok();
    say(&pair.one, &alice, &room, "from-one").await;
    sees_text(&pair.two, &bob, &room, "from-one").await;
    say(&pair.two, &bob, &room, "from-two").await;
    sees_text(&pair.one, &alice, &room, "from-two").await;

    let members = pair.one.get(&format!("/rooms/{room}/joined_members"), &alice).await.ok();
    assert_eq!(members["joined"].as_object().unwrap().len(), 2, "{members}");

    // What is sent while the other is away is there when it comes back.
    let Pair { one, two, wire: _wire, certificates } = pair;
    say(&one, &alice, &room, "before").await;
    let two = two.restart().await;
    say(&one, &alice, &room, "after").await;
    sees_text(&two, &bob, &room, "after").await;

    two.post(&format!("/rooms/{room}/leave"), &bob, json!({})).await.ok();
    eventually("the leaving", async || {
        let members = one.get(&format!("/rooms/{room}/joined_members"), &alice).await.ok();
        members["joined"].as_object().is_some_and(|joined| joined.len() == 1).then_some(())
    })
    .await;
    drop(certificates);
}

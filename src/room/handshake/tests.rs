//! Invites from other servers.

use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId, RoomId};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::*;
use crate::matrix::{Event, version};
use crate::room::handshake::invite;
use crate::room::handshake::out_of_band::{self};
use crate::room::testing::*;
use crate::room::*;
use crate::store::tables::room::user_room;
use crate::store::tables::room::{self, member};
use crate::store::{self, WriteError};

#[tokio::test]
async fn an_invite_from_outside_is_kept_and_dropped() {
    let house = house();
    let anna = house.user("anna").await;
    let room = RoomId::parse("!far:away.example").unwrap();
    let stripped = b"[{}]".to_vec();
    out_of_band::record(&house.rooms, &anna, &room, "11", Membership::Invite, stripped.clone()).await.unwrap();
    let (user, num) = (house.user_num(&anna), house.room_num(&room));
    let mine = user_room::mine(&house.read(), user, num).unwrap().unwrap();
    assert!(mine.outside && mine.membership == Membership::Invite);
    assert_eq!(user_room::stripped(&house.read(), user, num).unwrap(), Some(stripped));
    out_of_band::end(&house.rooms, &anna, &room, None, None).await.unwrap();
    let mine = user_room::mine(&house.read(), user, num).unwrap().unwrap();
    assert!(mine.membership == Membership::Leave && user_room::stripped(&house.read(), user, num).unwrap().is_none());
}

/// Rooms nobody here is in were never forgotten again, and anybody may invite anybody to as many as he likes.
#[tokio::test]
async fn invites_from_outside_are_bounded() {
    let house = house();
    let anna = house.user("anna").await;
    let invite = async |n: usize, server: &str| {
        let room: OwnedRoomId = format!("!r{n}:{server}").try_into().unwrap();
        let sender = format!("@bob:{server}");
        let own = json!([{ "type": "m.room.member", "state_key": anna, "sender": sender, "content": {} }]);
        let stripped = serde_json::to_vec(&own).unwrap();
        out_of_band::record(&house.rooms, &anna, &room, "11", Membership::Invite, stripped).await.unwrap();
    };
    let known = |membership: Membership| {
        let (read, mut rooms) = (house.read(), Vec::new());
        user_room::list_mine(&read, house.user_num(&anna), None, &mut |num, mine| {
            if mine.membership == membership {
                rooms.push(room::get_of(&read, num)?.id);
            }
            Ok(std::ops::ControlFlow::Continue(()))
        })
        .unwrap();
        rooms
    };
    for n in 0..3 {
        invite(n, "friend.example").await;
    }
    for n in 0..1000 {
        invite(n, "busy.example").await;
    }
    let (open, over) = (known(Membership::Invite), known(Membership::Leave));
    assert!((125..=150).contains(&open.len()), "{}", open.len());
    assert!(over.len() <= 225, "{}", over.len());
    assert!((0..3).all(|n| open.contains(&format!("!r{n}:friend.example"))), "the one in a thousand stays");
    assert!(open.contains(&"!r999:busy.example".to_owned()));
    let mut rooms = 0;
    room::list(&house.read(), &mut |_, _| {
        rooms += 1;
        Ok(std::ops::ControlFlow::Continue(()))
    })
    .unwrap();
    assert_eq!(rooms, open.len() + over.len(), "nothing of a room stays behind the last invite");
    // A room that was forgotten may be heard of again.
    invite(0, "busy.example").await;
    assert!(known(Membership::Invite).contains(&"!r0:busy.example".to_owned()));
}

/// Any server that knew a room's id put its own invite in the place of a friend's, and any that the invite named ended it.
#[tokio::test]
async fn an_invite_is_its_senders() {
    let house = house();
    let anna = house.user("anna").await;
    let room = RoomId::parse("!far:evil.example").unwrap();
    let invite = async |sender: &str, name: &str| {
        let own = json!([
            { "type": "m.room.name", "state_key": "", "sender": "@x:evil.example", "content": { "name": name } },
            { "type": "m.room.member", "state_key": anna, "sender": sender, "content": {} },
        ]);
        let stripped = serde_json::to_vec(&own).unwrap();
        out_of_band::record(&house.rooms, &anna, &room, "11", Membership::Invite, stripped).await.unwrap();
    };
    let shown = || {
        let (user, num) = (house.user_num(&anna), house.room_num(&room));
        let stripped = user_room::stripped(&house.read(), user, num).unwrap()?;
        Some(serde_json::from_slice::<Value>(&stripped).unwrap()[0]["content"]["name"].as_str().unwrap().to_owned())
    };
    invite("@bob:friend.example", "first").await;
    invite("@eve:evil.example", "forged").await;
    assert_eq!(shown().as_deref(), Some("first"));
    invite("@rob:friend.example", "again").await;
    assert_eq!(shown().as_deref(), Some("again"), "its server may");
    // The room's own server is named in what came with it.
    let leave = async |sender: &str| {
        let server = sender.split_once(':').unwrap().1;
        let (server, key) = (OwnedServerName::try_from(server).unwrap(), sign::Key::from_seed("1", [9; 32]));
        let draft = json!({
            "type": "m.room.member", "state_key": anna, "sender": sender, "room_id": room,
            "content": { "membership": "leave" }, "prev_events": ["$x"], "auth_events": ["$y"], "depth": 9,
            "origin_server_ts": START_MS,
        });
        let version = version::get("11").unwrap();
        let event = crate::matrix::draft::sign_new(version, draft.to_string().as_bytes(), &server, &key).unwrap();
        let event = RawValue::from_string(String::from_utf8(event.to_federation().to_vec()).unwrap()).unwrap();
        invite::end(&house.rooms, &server, &room, event).await
    };
    for other in ["@eve:evil.example", "@bob:friend.example", "@eve:nowhere.example"] {
        assert!(matches!(leave(other).await, Err(Error::NotFound)), "{other}");
    }
    let by_its_sender = leave("@rob:friend.example").await;
    assert!(!matches!(by_its_sender, Err(Error::NotFound)), "refused for its signature, which nobody can check here");
    let by = |id: &str| Some(OwnedUserId::try_from(id).unwrap());
    out_of_band::end(&house.rooms, &anna, &room, by("@eve:evil.example"), None).await.unwrap();
    assert_eq!(shown().as_deref(), Some("again"));
    out_of_band::end(&house.rooms, &anna, &room, by("@rob:friend.example"), None).await.unwrap();
    assert_eq!(shown(), None);
    // Over, it stands in nobody's way; and who was asked ends what they like.
    invite("@eve:evil.example", "new").await;
    out_of_band::end(&house.rooms, &anna, &room, None, None).await.unwrap();
    assert_eq!(shown(), None);
}

/// Two hundred invites were for everybody: a stranger with many names took them all.
#[tokio::test]
async fn strangers_push_out_no_invite_of_a_server_known_here() {
    let house = house();
    let anna = house.user("anna").await;
    let ours = house.public_room(&anna).await;
    let num = house.room_num(&ours);
    let shared = house.store.write(move |w| member::put_server(w, num, "known.example", 1, Position(1)));
    shared.await.map_err(|failed: WriteError<store::Error>| failed.into_inner()).unwrap();
    let invite = async |n: usize, server: &str| {
        let room: OwnedRoomId = format!("!r{n}:{server}").try_into().unwrap();
        let own =
            json!([{ "type": "m.room.member", "state_key": anna, "sender": format!("@b:{server}"), "content": {} }]);
        let stripped = serde_json::to_vec(&own).unwrap();
        out_of_band::record(&house.rooms, &anna, &room, "11", Membership::Invite, stripped).await.unwrap();
    };
    for n in 0..40 {
        invite(n, "known.example").await;
    }
    invite(0, "once.example").await;
    for n in 0..300 {
        invite(n, &format!("s{n}.evil.example")).await;
    }
    let mut open = Vec::new();
    let read = house.read();
    user_room::list_mine(&read, house.user_num(&anna), None, &mut |num, mine| {
        if mine.membership == Membership::Invite {
            open.push(room::get_of(&read, num)?.id);
        }
        Ok(std::ops::ControlFlow::Continue(()))
    })
    .unwrap();
    assert!((0..40).all(|n| open.contains(&format!("!r{n}:known.example"))));
    assert!(open.contains(&"!r0:once.example".to_owned()) && open.contains(&"!r299:s299.evil.example".to_owned()));
    assert!(!open.contains(&"!r0:s0.evil.example".to_owned()) && open.len() <= 200, "{}", open.len());
}

/// The specification's list of what an ACL governs has the invites in it; they were signed all the same.
#[tokio::test]
async fn an_invite_of_a_denied_server_is_refused() {
    let house = house();
    let anna = house.user("anna").await;
    let room = house.public_room(&anna).await;
    let acl = json!({ "allow": ["*"], "deny": ["bad.example"], "allow_ip_literals": false });
    house.send(&anna, &room, "m.room.server_acl", Some(""), acl).await.unwrap();
    let denied = async |server: &str| {
        let (server, key) = (OwnedServerName::try_from(server).unwrap(), sign::Key::from_seed("1", [9; 32]));
        let draft = json!({
            "type": "m.room.member", "state_key": anna, "sender": format!("@bob:{server}"), "room_id": room,
            "content": { "membership": "invite" }, "prev_events": ["$x"], "auth_events": ["$y"], "depth": 9,
            "origin_server_ts": START_MS,
        });
        let version = version::get(&house.row(&room).version).unwrap();
        let event = crate::matrix::draft::sign_new(version, draft.to_string().as_bytes(), &server, &key).unwrap();
        let event = RawValue::from_string(String::from_utf8(event.to_federation().to_vec()).unwrap()).unwrap();
        let invitation = Invitation { room: room.clone(), version: version.id.to_owned(), event, stripped: Vec::new() };
        let refused = house.rooms.receive_invite(&server, None, invitation).await;
        matches!(refused, Err(Error::Forbidden(why)) if why.contains("server ACL"))
    };
    assert!(denied("bad.example").await);
    assert!(!denied("good.example").await, "refused for its signature, which nobody can check here");
}

/// One malformed event in the stripped state made the invite itself unreadable.
#[test]
fn odd_stripped_events_are_left_out_alone() {
    let own = br#"{"content":{},"origin_server_ts":7,"room_id":"!r","sender":"@a:x","state_key":"@b:y","type":"m.room.member"}"#;
    let own = Event::from_stored(version::get("12").unwrap(), own.to_vec(), "$e".try_into().unwrap()).unwrap();
    let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
    let event = |kind: &str, content: &str| {
        format!(r#"{{"type":"{kind}","sender":"@a:x","state_key":"","content":{content},"more":{}}}"#, nested(2_000))
    };
    let deep = format!(r#"{{"x":{}}}"#, nested(700));
    let state = [
        "7".to_owned(),
        event("m.room.name", &deep),
        event("m.room.topic", &format!(r#"{{"x":{}}}"#, nested(2_000))),
        event("m.room.avatar", r#"{"x":"\ud800"}"#),
        event("m.room.create", "[]"),
        event("m.room.join_rules", r#"{ "b" : 1, "a" : 1.5 }"#),
        // Whole events, as servers send them since MSC4311, keep their time.
        r#"{"type":"m.room.create","sender":"@a:x","state_key":"","content":{},"origin_server_ts":5,"depth":1}"#
            .to_owned(),
        r#"{"type":"m.room.tombstone","sender":"@a:x","state_key":"","content":{},"origin_server_ts":"5"}"#.to_owned(),
        r#"{"type":"m.room.member","sender":"@a:x","state_key":"@b:y","content":{"n":1}}"#.to_owned(),
    ];
    let state = state.map(|text| RawValue::from_string(text).unwrap());
    let kept = String::from_utf8(strip(&state, &own)).unwrap();
    let expected = [
        format!(r#"{{"content":{deep},"sender":"@a:x","state_key":"","type":"m.room.name"}}"#),
        r#"{"content":{"a":1.5,"b":1},"sender":"@a:x","state_key":"","type":"m.room.join_rules"}"#.to_owned(),
        r#"{"content":{},"origin_server_ts":5,"sender":"@a:x","state_key":"","type":"m.room.create"}"#.to_owned(),
        r#"{"content":{},"sender":"@a:x","state_key":"","type":"m.room.tombstone"}"#.to_owned(),
        r#"{"content":{},"event_id":"$e","origin_server_ts":7,"sender":"@a:x","state_key":"@b:y","type":"m.room.member"}"#.to_owned(),
    ];
    assert_eq!(kept, format!("[{}]", expected.join(",")));
}

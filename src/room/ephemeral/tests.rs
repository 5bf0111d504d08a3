//! Receipts and typing.

use std::time::Duration;

use ruma::{OwnedEventId, OwnedUserId};
use serde_json::{Value, json};

use crate::base::testing::settled;
use crate::room::testing::*;
use crate::room::*;
use crate::store::tables::room::event_row;
use crate::store::tables::room::{member, receipt};
use crate::store::tables::server::outbox::Outbound;
use crate::store::tables::user::{self};
use crate::store::{self, WriteError};

#[tokio::test]
async fn receipts_only_go_forward_and_reach_other_servers() {
    let house = house();
    let anna = house.user("anna").await;
    let room = house.public_room(&anna).await;
    let (one, two) = (house.say(&anna, &room, "one").await, house.say(&anna, &room, "two").await);
    let num = house.room_num(&room);
    house.store.write(move |w| member::count_server(w, num, "away.example", 1, Position(1))).await.unwrap();
    let marker = |kind: &str, id: &OwnedEventId| Marker {
        kind: kind.to_owned(),
        event_id: id.clone(),
        thread: None,
        allow_backward: false,
    };
    for (kind, id) in [("m.read", &two), ("m.read", &one), ("m.read.private", &two), ("m.fully_read", &one)] {
        house.rooms.set_receipt(&anna, &room, marker(kind, id)).await.unwrap();
    }
    let whose = |kind| receipt::Whose { user: house.user_num(&anna), kind, thread: String::new() };
    let read = receipt::get(&house.read(), num, &whose(receipt::Kind::Read)).unwrap().unwrap();
    assert_eq!(read.event_id, two);
    let outbox = house.outbox();
    let [Outbound::RoomEdu { json, .. }] = outbox.as_slice() else { panic!("one receipt goes out: {outbox:?}") };
    let edu: Value = serde_json::from_slice(json).unwrap();
    assert_eq!(edu["content"][room.as_str()]["m.read"][anna.as_str()]["event_ids"], json!([two]));
    assert!(house.rooms.set_receipt(&anna, &room, marker("m.nothing", &one)).await.is_err());
    let strange = ruma::EventId::parse("$nowhere").unwrap();
    assert!(matches!(house.rooms.set_receipt(&anna, &room, marker("m.read", &strange)).await, Err(Error::NotFound)));
}

#[tokio::test]
async fn typing_ends_by_itself() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let room = house.public_room(&anna).await;
    house.join(&ben, &room).await.unwrap();
    let (num, typing) = (house.room_num(&room), &house.rooms.0.typing);
    let start = typing.serial();
    house.rooms.set_typing(&anna, &room, Some(Duration::from_secs(30))).await.unwrap();
    assert_eq!(typing.changed(num, start), Some(vec![house.user_num(&anna)]));
    let seen = typing.serial();
    house.rooms.set_typing(&anna, &room, Some(Duration::from_secs(30))).await.unwrap();
    assert_eq!(typing.changed(num, seen), None, "still typing is no news");
    let waiter = house.feed.register(house.user_num(&ben));
    house.clock.pass(Duration::from_secs(31)).await;
    settled().await;
    assert_eq!(typing.changed(num, seen), Some(Vec::new()));
    assert!(waiter.wait(house.clock.instant() + Duration::from_secs(1)).await, "who is in the room is woken");
    assert!(is_forbidden(house.rooms.set_typing(&house.user("cleo").await, &room, None).await));
}

/// Other servers forget who types: Synapse after a minute. They were told once, and never that it had ended by itself.
#[tokio::test]
async fn other_servers_hear_again_who_types_and_when_it_ends() {
    let house = house();
    let anna = house.user("anna").await;
    let room = house.public_room(&anna).await;
    let num = house.room_num(&room);
    house.store.write(move |w| member::count_server(w, num, "away.example", 1, Position(1))).await.unwrap();
    house.rooms.set_typing(&anna, &room, Some(Duration::from_secs(60))).await.unwrap();
    let told = || {
        let typing = |row: Outbound| match row {
            Outbound::RoomEdu { json, .. } => {
                serde_json::from_slice::<Value>(&json).unwrap()["content"]["typing"].as_bool()
            }
            _ => None,
        };
        house.outbox().into_iter().filter_map(typing).collect::<Vec<_>>()
    };
    assert_eq!(told(), [true]);
    for _ in 0..400 {
        house.clock.pass(Duration::from_secs(1)).await;
        settled().await;
        if told().contains(&false) {
            break;
        }
    }
    assert_eq!(told(), [true, true, true, false]);
}

/// Each receipt of a message was a commit of its own, and threads were any text, as many as somebody liked.
#[tokio::test]
async fn receipts_of_other_servers_are_bounded() {
    let house = house();
    let anna = house.user("anna").await;
    let room = house.public_room(&anna).await;
    let num = house.room_num(&room);
    let bob: OwnedUserId = "@bob:away.example".try_into().unwrap();
    let name = bob.clone();
    let joined = house.store.write(move |w| {
        let bob = user::intern(w, name.as_str())?;
        member::set(w, num, bob, None, Some((event_row::Membership::Join, crate::store::EventNum(1))))
    });
    joined.await.map_err(|failed: WriteError<store::Error>| failed.into_inner()).unwrap();
    let mut threads = Vec::new();
    for n in 0..110 {
        threads.push(house.say(&anna, &room, &n.to_string()).await);
    }
    let last = threads.last().unwrap().clone();
    let receive = async |threads: &[&str]| {
        for thread in threads {
            let receipt = json!({ "data": { "ts": 1, "thread_id": thread }, "event_ids": [last] });
            let content = json!({ room.as_str(): { "m.read": { bob.as_str(): receipt } } });
            let raw = serde_json::value::to_raw_value(&content).unwrap();
            house.rooms.receipt_received(bob.server_name(), &raw).await.unwrap();
        }
    };
    let kept = || {
        let mut kept = Vec::new();
        receipt::list_newest(&house.read(), num, Position(0), Position(i64::MAX as u64), &mut |whose, _| {
            kept.push(whose.thread);
            Ok(std::ops::ControlFlow::Continue(()))
        })
        .unwrap();
        kept
    };
    receive(&["any text", "$nothing", "main"]).await;
    assert_eq!(kept(), ["main"]);
    // A receipt may overtake its event, which another server sends.
    let coming = async |ts: u64| {
        let receipt = json!({ "data": { "ts": ts, "thread_id": "main" }, "event_ids": [format!("$coming{ts}")] });
        let content = json!({ room.as_str(): { "m.read": { bob.as_str(): receipt } } });
        let raw = serde_json::value::to_raw_value(&content).unwrap();
        house.rooms.receipt_received(bob.server_name(), &raw).await.unwrap();
        let whose = receipt::Whose { user: house.user_num(&bob), kind: receipt::Kind::Read, thread: "main".into() };
        receipt::get(&house.read(), num, &whose).unwrap().unwrap().event_id
    };
    assert_eq!(coming(1).await, last.as_str(), "it is no newer");
    assert_eq!((coming(3).await, coming(2).await), ("$coming3".to_owned(), "$coming3".to_owned()));
    receive(&threads.iter().map(|id| id.as_str()).collect::<Vec<_>>()).await;
    let kept = kept();
    assert_eq!(kept.len(), 100);
    assert!(kept.contains(&last.to_string()) && !kept.contains(&"main".to_owned()), "the oldest went");
    let marker = |thread: &str| Marker {
        kind: "m.read".into(),
        event_id: last.clone(),
        thread: Some(thread.to_owned()),
        allow_backward: false,
    };
    assert!(house.rooms.set_receipt(&anna, &room, marker("any text")).await.is_err());
    assert!(house.rooms.set_receipt(&anna, &room, marker("")).await.is_err(), "a thread has a name");
    let fully_read = Marker { kind: "m.fully_read".into(), ..marker("main") };
    assert!(house.rooms.set_receipt(&anna, &room, fully_read).await.is_err(), "that is for the whole room");
    // A thread from before our time in the room is one that our people's apps show.
    assert!(house.rooms.set_receipt(&anna, &room, marker("$older")).await.is_err(), "nobody spoke of it");
    let answer = json!({ "body": "a", "m.relates_to": { "rel_type": "m.thread", "event_id": "$older" } });
    house.send(&anna, &room, "m.room.message", None, answer).await.unwrap();
    house.rooms.set_receipt(&anna, &room, marker("$older")).await.unwrap();
}

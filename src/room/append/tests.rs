//! What follows from events: redactions and unread counts.

use std::time::Duration;

use ruma::OwnedEventId;
use serde_json::{Value, json};

use crate::room::append::unread;
use crate::room::send;
use crate::room::state::known;
use crate::room::testing::*;
use crate::room::*;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::Membership;
use crate::store::{EventNum, Get, StateKeyNum};

#[tokio::test]
async fn redactions_take_content_out_whichever_comes_first() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    for version in ["2", "6", "11", "12"] {
        house.clock.advance(Duration::from_millis(1));
        let create =
            Create { preset: Some(Preset::Public), room_version: Some(version.to_owned()), ..Create::default() };
        let room = house.rooms.create(&anna, create).await.unwrap();
        house.join(&ben, &room).await.unwrap();
        let said = house.say(&anna, &room, "secret").await;
        let bens = house.say(&ben, &room, "mine").await;
        let redaction = |target: &OwnedEventId| Sending {
            redacts: Some(target.clone()),
            ..sending("m.room.redaction", None, json!({ "reason": "oops" }))
        };
        assert!(is_forbidden(house.rooms.send(&ben, &room, redaction(&said)).await), "{version}");
        house.rooms.send(&ben, &room, redaction(&bens)).await.unwrap();
        let by = house.rooms.send(&anna, &room, redaction(&said)).await.unwrap();
        for gone in [&said, &bens] {
            assert_eq!(house.event(gone).content(), "{}");
        }
        let read = house.read();
        let row = event::row_of(&read, event::num(&read, said.as_str()).unwrap().unwrap()).unwrap();
        assert!(row.flags.redacted && row.redacted_by == event::num(&read, by.as_str()).unwrap());
        assert_eq!(house.event(&by).redacts(), Some(&*said));
    }
}

#[tokio::test]
async fn a_redaction_waits_for_its_target() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let room = house.public_room(&anna).await;
    house.join(&ben, &room).await.unwrap();
    let read = house.read();
    let known_room = known(&read, room.as_str()).unwrap();
    let new = |kind: &str, content: Value, redacts| send::New {
        kind: kind.to_owned(),
        state_key: None,
        sender: anna.clone(),
        content,
        redacts,
        sticky_ms: None,
        ts: None,
    };
    let target =
        send::build(&house.rooms, &read, &known_room, new("m.room.message", json!({ "body": "x" }), None)).unwrap();
    let id = target.event.id().to_owned();
    let redaction =
        send::build(&house.rooms, &read, &known_room, new("m.room.redaction", json!({}), Some(id.clone()))).unwrap();
    // Somebody without the right to had theirs pushed in front of hers, which was forgotten.
    let other = send::New { sender: ben.clone(), ..new("m.room.redaction", json!({}), Some(id.clone())) };
    let other = send::build(&house.rooms, &read, &known_room, other).unwrap();
    let by = redaction.event.id().to_owned();
    let guard = house.rooms.lock(known_room.num).await;
    for event in [redaction.event, other.event, target.event] {
        house.rooms.append_locked(&guard, append::new_event::Append::next(known_room.num, event)).await.unwrap();
    }
    assert_eq!(house.event(&id).content(), "{}");
    let read = house.read();
    let row = event::row_of(&read, event::num(&read, id.as_str()).unwrap().unwrap()).unwrap();
    assert_eq!(row.redacted_by, event::num(&read, by.as_str()).unwrap());
    assert_eq!(house.row(&room).extremities.len(), 3, "all follow the same event");
    drop(guard);
    house.say(&anna, &room, "merge").await;
    assert_eq!(house.row(&room).extremities.len(), 1);
}

#[tokio::test]
async fn unread_counts_follow_push_rules_receipts_and_ones_own_words() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let room = house.public_room(&anna).await;
    house.join(&ben, &room).await.unwrap();
    house.say(&anna, &room, "one").await;
    let two = house.say(&anna, &room, "two").await;
    let mention = json!({ "msgtype": "m.text", "body": "ben", "m.mentions": { "user_ids": [ben] } });
    house.send(&anna, &room, "m.room.message", None, mention).await.unwrap();
    assert_eq!(house.unread(&room, &ben), (3, 1));
    let marker = |id: &OwnedEventId| Marker {
        kind: "m.read".to_owned(),
        event_id: id.clone(),
        thread: None,
        allow_backward: false,
    };
    house.rooms.set_receipt(&ben, &room, marker(&two)).await.unwrap();
    assert_eq!(house.unread(&room, &ben), (1, 1));
    house.say(&ben, &room, "I am here").await;
    assert_eq!(house.unread(&room, &ben), (0, 0));
    assert_eq!(house.unread(&room, &anna), (1, 0));
}

/// Whoever came into a public room could ring the phone of everybody in it.
#[tokio::test]
async fn nobody_is_called_in_a_public_room() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let create = Create { preset: Some(Preset::Private), invite: vec![ben.clone()], ..Create::default() };
    let room = house.rooms.create(&anna, create).await.unwrap();
    house.join(&ben, &room).await.unwrap();
    let call = json!({ "call_id": "1", "version": "1", "lifetime": 60_000, "offer": { "type": "offer", "sdp": "" } });
    let rang = house.send(&anna, &room, "m.call.invite", None, call.clone()).await.unwrap();
    assert_eq!(house.unread(&room, &ben), (1, 0));
    let rings = || {
        let (event, num) = (house.event(&rang), house.user_num(&ben));
        unread::judge(&house.read(), &house.rooms.0.rules, house.room_num(&room), &event, num).unwrap().notify
    };
    assert!(rings());
    let open = json!({ "join_rule": "public" });
    house.send(&anna, &room, "m.room.join_rules", Some(""), open).await.unwrap();
    let refused = house.send(&anna, &room, "m.call.invite", None, call).await;
    assert!(matches!(refused, Err(Error::Forbidden(_))));
    assert!(!rings(), "one of another server");
    house.send(&anna, &room, "m.call.hangup", None, json!({ "call_id": "1", "version": "1" })).await.unwrap();
}

/// The count of a membership that other forks took away stood when its user came back.
#[tokio::test]
async fn a_membership_that_vanishes_takes_its_unread_count_along() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let room = house.public_room(&anna).await;
    house.join(&ben, &room).await.unwrap();
    house.say(&anna, &room, "one").await;
    assert_eq!(house.unread(&room, &ben), (1, 0));
    let (here, num) = (house.rooms.here(), house.room_num(&room));
    let key = StateKeyNum::of_member(house.user_num(&ben));
    let vanish = move |w: &mut Write<'_>| {
        let mut row = tables::room::get_of(w, num)?;
        let at = w.next_position();
        append::current_state::set_present_state(w, &here, num, &mut row, &[(key, None)], at)?;
        tables::room::put(w, num, &row)
    };
    house.store.write(vanish).await.unwrap();
    assert_eq!(house.unread(&room, &ben), (0, 0));
}

/// The other users of this server who were in a room that one of them joined through another server were not told of it,
/// and a sync that looked only where something was noted left the room out for good.
#[tokio::test]
async fn rooms_of_users_who_did_not_join_themselves_are_announced() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let room = house.public_room(&anna).await;
    let (num, ben) = (house.room_num(&room), house.user_num(&ben));
    let begun = house.read().position().unwrap();
    assert_eq!(house.feed.rooms_changed(ben, begun, begun), Some(vec![]));
    let waiter = house.feed.register(ben);
    let build = move |w: &mut Write<'_>| {
        let at = w.next_position();
        append::members::build_own_rooms(w, num, vec![(ben, Membership::Join, EventNum(1))], at)
    };
    house.store.write(build).await.unwrap();
    let now = house.read().position().unwrap();
    assert_eq!(house.feed.rooms_changed(ben, begun, now), None, "more changed than what stands in rooms");
    assert!(waiter.wait(Duration::ZERO).await);
}

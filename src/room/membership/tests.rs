//! Memberships of local users in rooms we hold.

use std::time::Duration;

use serde_json::json;

use crate::room::membership::profile;
use crate::room::testing::*;
use crate::room::*;
use crate::store::tables::room::user_room;
use crate::store::tables::user::{self};
use crate::store::{self, WriteError};

#[tokio::test]
async fn coming_and_going() {
    let house = house();
    let (anna, ben, cleo) = (house.user("anna").await, house.user("ben").await, house.user("cleo").await);
    let rooms = &house.rooms;
    house.clock.advance(Duration::from_millis(1));
    let room = rooms.create(&anna, Create::default()).await.unwrap();
    assert!(is_forbidden(house.join(&ben, &room).await), "private");
    rooms.invite(&anna, &room, &ben, Some("do".to_owned())).await.unwrap();
    assert_eq!(house.state(&room, "m.room.member", ben.as_str()).unwrap()["reason"], "do");
    house.join(&ben, &room).await.unwrap();
    house.join(&ben, &room).await.unwrap();
    assert_eq!(rooms.joined_rooms(&ben).await.unwrap(), [room.clone()]);
    assert!(is_forbidden(rooms.kick(&ben, &room, &anna, None, None).await));
    assert!(is_forbidden(rooms.kick(&anna, &room, &cleo, None, None).await), "not in the room");
    rooms.kick(&anna, &room, &ben, None, None).await.unwrap();
    assert!(is_forbidden(house.send(&ben, &room, "m.room.message", None, json!({})).await));
    rooms.ban(&anna, &room, &ben, Some("enough".to_owned()), None).await.unwrap();
    assert!(is_forbidden(rooms.invite(&anna, &room, &ben, None).await));
    rooms.unban(&anna, &room, &ben, None).await.unwrap();
    assert!(is_forbidden(rooms.unban(&anna, &room, &ben, None).await));
    assert!(is_forbidden(rooms.leave(&cleo, &room, None).await));
    rooms.leave(&anna, &room, None).await.unwrap();
    rooms.leave(&anna, &room, None).await.unwrap();
    assert_eq!(house.row(&room).status, crate::store::tables::room::Status::Left);
    rooms.forget(&anna, &room).await.unwrap();
    let mine = user_room::mine(&house.read(), house.user_num(&anna), house.room_num(&room)).unwrap().unwrap();
    assert!(mine.forgotten && mine.left_at.is_some() && mine.before == Some(Membership::Join));
}

#[tokio::test]
async fn knocking_and_rooms_that_let_people_in_from_others() {
    let house = house();
    let (anna, ben, cleo) = (house.user("anna").await, house.user("ben").await, house.user("cleo").await);
    let rooms = &house.rooms;
    let lounge = house.public_room(&anna).await;
    let room = house.public_room(&anna).await;
    let rules = json!({ "join_rule": "knock_restricted", "allow": [
        { "type": "m.room_membership", "room_id": lounge }, { "type": "else" }, 3,
    ] });
    house.send(&anna, &room, "m.room.join_rules", Some(""), rules).await.unwrap();
    assert!(is_forbidden(house.join(&ben, &room).await), "not in the lounge");
    rooms.knock(&ben, &room, Vec::new(), Some("please".to_owned())).await.unwrap();
    assert_eq!(house.membership(&room, &ben), Some(Membership::Knock));
    rooms.leave(&ben, &room, None).await.unwrap();
    house.join(&cleo, &lounge).await.unwrap();
    house.join(&cleo, &room).await.unwrap();
    let content = house.state(&room, "m.room.member", cleo.as_str()).unwrap();
    assert_eq!(content["join_authorised_via_users_server"], anna.as_str());
}

/// A change of name walked through a list of rooms made before, and joined whoever had left one of them, or was put out,
/// again.
#[tokio::test]
async fn a_new_name_brings_nobody_back() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let [stays, left, put_out] =
        [house.public_room(&anna).await, house.public_room(&anna).await, house.public_room(&anna).await];
    for room in [&stays, &left, &put_out] {
        house.join(&ben, room).await.unwrap();
    }
    house.rooms.leave(&ben, &left, None).await.unwrap();
    house.rooms.kick(&anna, &put_out, &ben, None, None).await.unwrap();
    let num = house.user_num(&ben);
    let named = move |w: &mut Write<'_>| user::set_profile_field(w, num, "displayname", Some(&json!("Benjamin")));
    house.store.write(named).await.map_err(|failed: WriteError<store::Error>| failed.into_inner()).unwrap();
    for room in [&stays, &left, &put_out] {
        profile::renew_in(&house.rooms, &ben, room).await.unwrap();
    }
    assert_eq!(house.state(&stays, "m.room.member", ben.as_str()).unwrap()["displayname"], "Benjamin");
    for room in [&left, &put_out] {
        assert_eq!(house.membership(room, &ben), Some(Membership::Leave));
        assert!(house.state(room, "m.room.member", ben.as_str()).unwrap().get("displayname").is_none());
    }
    // Of a room nobody here is in any more there is nothing to say, and nobody is asked.
    house.rooms.leave(&anna, &stays, None).await.unwrap();
    house.rooms.leave(&ben, &stays, None).await.unwrap();
    profile::renew_in(&house.rooms, &ben, &stays).await.unwrap();
    assert_eq!(house.membership(&stays, &ben), Some(Membership::Leave));
}

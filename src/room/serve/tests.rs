//! What other servers get.

use ruma::{OwnedServerName, UserId};
use serde_json::Value;

use crate::room::state::known;
use crate::room::testing::*;
use crate::room::*;
use crate::store::Get;
use crate::store::tables::room::event;
use crate::store::tables::room::member;
use crate::store::tables::user::{self};

/// "Is ben in that room?" was answered to anybody who asked to put him out.
#[tokio::test]
async fn strangers_do_not_learn_who_is_in_a_room() {
    let house = house();
    let (anna, ben, carl) = (house.user("anna").await, house.user("ben").await, house.user("carl").await);
    let room = house.public_room(&anna).await;
    let why = async |done: Result<()>| done.unwrap_err().to_string();
    let refused = why(house.rooms.kick(&carl, &room, &ben, None, None).await).await;
    house.join(&ben, &room).await.unwrap();
    assert_eq!(why(house.rooms.kick(&carl, &room, &ben, None, None).await).await, refused);
    house.rooms.ban(&anna, &room, &ben, None, None).await.unwrap();
    assert_eq!(why(house.rooms.unban(&carl, &room, &ben, None).await).await, refused);
    house.rooms.unban(&anna, &room, &ben, None).await.unwrap();
}

/// Whoever was in the room has the messages anyway; nobody else is given what an erased user said.
#[tokio::test]
async fn who_came_later_is_given_the_events_of_an_erased_user_redacted() {
    let house = house();
    let (anna, ben, cleo) = (house.user("anna").await, house.user("ben").await, house.user("cleo").await);
    let room = house.public_room(&anna).await;
    house.join(&ben, &room).await.unwrap();
    let said = house.say(&anna, &room, "mine").await;
    house.join(&cleo, &room).await.unwrap();
    let num = house.room_num(&room);
    let (then, now) = (Position(1), house.read().position().unwrap());
    for (server, since) in [("early.example", then), ("late.example", now)] {
        house.store.write(move |w| member::count_server(w, num, server, 1, since)).await.unwrap();
    }
    let seen = async |user: &UserId| {
        let reader =
            Reader { user: house.user_num(user), user_id: user.to_owned(), device: "D".to_owned(), sees_all: false };
        let event: Value = serde_json::from_slice(&house.rooms.event(&reader, &room, &said).await.unwrap()).unwrap();
        event["content"]["body"] == "mine"
    };
    let given = |server: &str| {
        let (read, server) = (house.read(), OwnedServerName::try_from(server).unwrap());
        let row = event::row_of(&read, event::num(&read, said.as_str()).unwrap().unwrap()).unwrap();
        let room = known(&read, room.as_str()).unwrap();
        crate::room::state::server_access::may_see_event(&read, &room, &row, &server).unwrap()
    };
    assert!(seen(&ben).await && seen(&cleo).await && given("early.example") && given("late.example"));
    let who = house.user_num(&anna);
    house.store.write(move |w| user::set_erased(w, who)).await.unwrap();
    assert!(seen(&ben).await && given("early.example"));
    assert!(!seen(&cleo).await && !given("late.example"));
}

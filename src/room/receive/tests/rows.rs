//! The rows that an event changes, by table: every one of them is written for every message there ever is.
//!
//! A line is as `store::RowCounts` prints it: each table, with how many rows are put and removed where that is not one put.
//! A change that makes a line longer makes every message dearer.

use super::*;
use crate::room::testing::sending;
use crate::store::RowCounts;

/// Sends a text as an app does, and answers which rows that changed.
async fn rows_of_a_message(house: &House, sender: &UserId, room: &RoomId, text: &str) -> RowCounts {
    house.store.take_counted();
    let mut message = sending("m.room.message", None, json!({ "msgtype": "m.text", "body": text }));
    message.txn = Some(("PHONE".to_owned(), format!("m1700000000.{text}")));
    house.rooms.send(sender, room, message).await.unwrap();
    house.store.take_counted()
}

async fn people(house: &House, room: &RoomId, count: usize) -> Vec<OwnedUserId> {
    let mut all = Vec::new();
    for n in 0..count {
        let user = house.user(&format!("user{n}")).await;
        house.join(&user, room).await.unwrap();
        all.push(user);
    }
    all
}

/// The tables, and a bound for the bytes of the keys and values.
fn check(rows: RowCounts, expected: &str, bytes_max: usize) {
    assert_eq!(rows.to_string(), expected);
    assert!(rows.bytes() <= bytes_max, "{}", rows.bytes());
}

#[tokio::test]
async fn a_message_in_a_room_of_one_changes_these_rows_and_no_others() {
    let house = crate::room::testing::house();
    let anna = house.user("anna").await;
    let room = house.public_room(&anna).await;
    rows_of_a_message(&house, &anna, &room, "the first").await;
    let again = rows_of_a_message(&house, &anna, &room, "again").await;
    check(again, "event event_body event_id_recent meta+2 room timeline txn_event txn_id", 450);
}

/// The index of words follows by itself, some hundreds of messages at a time.
#[tokio::test]
async fn a_message_changes_no_more_rows_while_there_is_an_index_of_words() {
    let house = crate::room::testing::house();
    let anna = house.user("anna").await;
    let room = house.public_room(&anna).await;
    house.rooms.index_all().await;
    rows_of_a_message(&house, &anna, &room, "the first").await;
    let again = rows_of_a_message(&house, &anna, &room, "again").await;
    check(again, "event event_body event_id_recent meta+2 room timeline txn_event txn_id", 450);
}

#[tokio::test]
async fn a_message_in_a_room_of_eight_changes_these_rows_and_no_others() {
    let house = crate::room::testing::house();
    let anna = house.user("anna").await;
    let room = house.public_room(&anna).await;
    let others = people(&house, &room, 7).await;
    // More than an unread count keeps places of, and one of them reads nothing.
    for (n, sender) in others[1..].iter().chain([&anna]).cycle().take(140).enumerate() {
        rows_of_a_message(&house, sender, &room, &format!("hello {n}")).await;
    }
    let again = rows_of_a_message(&house, &anna, &room, "again").await;
    check(again, "event event_body event_id_recent meta+2 room timeline txn_event txn_id unread+2", 620);
    let another = rows_of_a_message(&house, &others[3], &room, "another").await;
    check(another, "event event_body event_id_recent meta+2 room timeline txn_event txn_id unread+2", 620);
}

#[tokio::test]
async fn a_message_to_and_from_another_server_changes_these_rows_and_no_others() {
    let world = World::new().await;
    people(&world.house, &world.room, 7).await;
    rows_of_a_message(&world.house, &world.anna, &world.room, "the first").await;
    let again = rows_of_a_message(&world.house, &world.anna, &world.room, "again").await;
    check(again, "event event_body event_id_recent meta+2 outbox room timeline txn_event txn_id unread", 480);
    let mut line = world.line();
    world.receive(&[world.say(&mut line, "the first from far away")]).await;
    world.house.store.take_counted();
    assert_eq!(world.receive(&[world.say(&mut line, "from far away")]).await, [Ok(())]);
    let received = world.house.store.take_counted();
    check(received, "event event_body event_id_recent meta+2 room timeline unread", 460);
}

#[tokio::test]
async fn a_membership_in_a_room_of_hundreds_changes_these_rows_and_no_others() {
    let world = World::new().await;
    let mut line = world.line();
    let join = |line: &mut Line, n: usize| {
        let user = OwnedUserId::try_from(format!("@user{n}:far.example")).unwrap();
        world.join(line, &user)
    };
    let joins: Vec<_> = (0..300).map(|n| join(&mut line, n)).collect();
    for joins in joins.chunks(50) {
        assert!(world.receive(joins).await.iter().all(Result::is_ok));
    }
    world.house.store.take_counted();
    assert_eq!(world.receive(&[join(&mut line, 300)]).await, [Ok(())]);
    let rows = world.house.store.take_counted();
    let tables = "current_state event event_body event_id_recent member meta+2 room room_server state_log state_name+3 \
                  state_node+3 timeline user_id user_num";
    check(rows, tables, 600);
}

/// Every message walks the list of people here, which another server's administrator could make as long as they liked.
#[tokio::test]
async fn only_those_with_an_account_are_listed_as_people_here() {
    let world = World::new().await;
    let power = json!({ "users": { (world.bob.as_str()): 100 } });
    world.house.send(&world.anna, &world.room, "m.room.power_levels", Some(""), power).await.unwrap();
    let ben = world.house.user("ben").await;
    let mut line = world.line();
    let ghost = OwnedUserId::try_from(format!("@nobody:{}", world.house.server)).unwrap();
    for (user, lists) in [(&ghost, false), (&ben, true)] {
        for membership in ["invite", "leave"] {
            let content = json!({ "membership": membership });
            let event = world.make(&mut line, &world.bob, "m.room.member", Some(user.as_str()), content);
            world.house.store.take_counted();
            assert_eq!(world.receive(&[event]).await, [Ok(())]);
            let rows = world.house.store.take_counted().to_string();
            assert_eq!(rows.contains("room_local") && rows.contains("user_room"), lists, "{user}: {rows}");
        }
    }
}

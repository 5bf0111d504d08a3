use serde_json::json;

use super::*;
use crate::room::Sending;
use crate::room::testing::{house, sending};
use crate::store::schema::{
    EVENT, EVENT_BODY, EVENT_ID_RECENT, NETWORK_ROOM, PURGE, REDACTED_AGE, SEARCH, SEARCH_GONE, SEARCH_LATE,
    SEARCH_STALE, TABLES,
};
use crate::store::tables::room::search;
use crate::store::{Get, Store, Table};

fn count(store: &Store, table: &Table) -> u64 {
    let mut rows = 0;
    let counted = store.read().unwrap().range(table, &[], None, false, &mut |_, _| {
        rows += 1;
        Ok(std::ops::ControlFlow::Continue(()))
    });
    counted.unwrap();
    rows
}

/// A room that everybody has left goes with all its rows, and the room beside it stays as it is.
#[tokio::test]
async fn a_room_that_nobody_is_in_goes_and_others_stay() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let (gone, stays) = (house.public_room(&anna).await, house.public_room(&anna).await);
    for room in [&gone, &stays] {
        house.join(&ben, room).await.unwrap();
        for n in 0..30 {
            house
                .send(&ben, room, "m.room.message", None, json!({ "msgtype": "m.text", "body": n.to_string() }))
                .await
                .unwrap();
        }
    }
    house.rooms.set_redacted_kept(Some(7));
    for room in [&gone, &stays] {
        let said = house.say(&ben, room, "rude").await;
        let redaction = Sending { redacts: Some(said), ..sending("m.room.redaction", None, json!({})) };
        house.rooms.send(&ben, room, redaction).await.unwrap();
        house.rooms.set_public_in("bridge|irc", room, true).await.unwrap();
    }
    let worker = Worker::new("purge", &house.clock);
    assert!(matches!(house.rooms.purge(&gone).await, Err(Error::Forbidden(_))));
    for who in [&anna, &ben] {
        house.rooms.leave(who, &gone, None).await.unwrap();
    }
    let before: Vec<u64> = TABLES.iter().map(|table| count(&house.store, table)).collect();
    assert_eq!(house.rooms.purge_left(true).await.unwrap(), 0, "nobody has forgotten it");
    house.rooms.forget(&anna, &gone).await.unwrap();
    house.rooms.forget(&ben, &gone).await.unwrap();
    assert_eq!(house.rooms.purge_left(true).await.unwrap(), 1);
    assert!(house.rooms.is_purging(&gone).await.unwrap());
    house.ticking(house.rooms.purge_begun(&worker)).await.unwrap();
    assert!(!house.rooms.is_known(&gone).await.unwrap() && house.rooms.is_known(&stays).await.unwrap());
    let after: Vec<u64> = TABLES.iter().map(|table| count(&house.store, table)).collect();
    let of = |table: &Table| {
        let at = TABLES.iter().position(|known| known.name == table.name).unwrap();
        (before[at], after[at])
    };
    for table in [&EVENT, &EVENT_BODY, &EVENT_ID_RECENT] {
        let (was, is) = of(table);
        assert!(is * 2 <= was && is >= 30, "{}: {was} {is}", table.name);
    }
    assert_eq!(count(&house.store, &PURGE), 0);
    assert_eq!([&NETWORK_ROOM, &REDACTED_AGE].map(|table| count(&house.store, table)), [1, 1]);
    house.send(&anna, &stays, "m.room.message", None, json!({ "msgtype": "m.text", "body": "on" })).await.unwrap();
    // Nothing of it is in a table that names rooms first.
    assert_eq!(house.rooms.purging().await.unwrap().len(), 0);
}

#[tokio::test]
async fn the_database_is_made_smaller_when_asked_and_has_all_it_had() {
    let house = crate::room::testing::house();
    let anna = house.user("anna").await;
    let room = house.public_room(&anna).await;
    for n in 0..50 {
        let text = json!({ "msgtype": "m.text", "body": format!("message {n}") });
        house.send(&anna, &room, "m.room.message", None, text).await.unwrap();
    }
    // The store's own rows have the place in its journal, when there is one.
    let counts = || TABLES[1..].iter().map(|table| count(&house.store, table)).collect::<Vec<u64>>();
    let before = counts();
    let worker = Worker::new("space", &house.clock);
    house.rooms.make_space();
    house.rooms.make_space();
    assert!(house.rooms.space().is_under_way);
    house.ticking(house.rooms.make_small(&worker)).await.unwrap();
    assert_eq!(counts(), before);
    house.send(&anna, &room, "m.room.message", None, json!({ "msgtype": "m.text", "body": "on" })).await.unwrap();
}

/// How many chunks of the index have words of a room, and are there at all.
fn words_of(store: &Store, num: RoomNum) -> (usize, u64) {
    let (mut of_room, mut all) = (0, 0);
    let counted = store.read().unwrap().range(&SEARCH, &[], None, false, &mut |_, _| {
        all += 1;
        Ok(std::ops::ControlFlow::Continue(()))
    });
    counted.unwrap();
    search::each(&store.read().unwrap(), &mut |posting| of_room += usize::from(posting.room == num)).unwrap();
    (of_room, all)
}

/// What was said in a room could still be looked up by its hash, word by word.
#[tokio::test]
async fn the_words_of_a_room_go_with_it() {
    let house = house();
    let anna = house.user("anna").await;
    let rooms = [house.public_room(&anna).await, house.public_room(&anna).await];
    for room in &rooms {
        house.say(&anna, room, "what was said here").await;
    }
    house.rooms.index_all().await;
    let nums = rooms.clone().map(|room| room::num(&house.store.read().unwrap(), room.as_str()).unwrap().unwrap());
    let [one, two] = nums.map(|num| words_of(&house.store, num).0);
    assert!(one >= 4 && one == two);
    let worker = Worker::new("purge", &house.clock);
    house.rooms.leave(&anna, &rooms[0], None).await.unwrap();
    house.rooms.purge(&rooms[0]).await.unwrap();
    house.ticking(house.rooms.purge_begun(&worker)).await.unwrap();
    assert_eq!(count(&house.store, &SEARCH_STALE), 1);
    house.ticking(house.rooms.forget_words(&worker)).await.unwrap();
    assert_eq!(nums.map(|num| words_of(&house.store, num).0), [0, two]);
    assert_eq!(count(&house.store, &SEARCH_STALE), 0);
}

/// When old messages went their words stayed, and the index kept growing.
#[tokio::test]
async fn the_words_of_old_messages_go_with_them() {
    let house = house();
    let anna = house.user("anna").await;
    let (room, other) = (house.public_room(&anna).await, house.public_room(&anna).await);
    house.say(&anna, &other, "elsewhere").await;
    for n in 0..600 {
        house.say(&anna, &room, &format!("apples{n} pears{n} plums{n} everywhere")).await;
    }
    let asked = house.say(&anna, &room, "a question").await;
    house.rooms.index_all().await;
    house.clock.advance(Duration::from_secs(40 * 24 * 60 * 60));
    let answer = json!({ "msgtype": "m.text", "body": "an answer everywhere", "m.relates_to": { "rel_type": "m.thread", "event_id": asked } });
    house.send(&anna, &room, "m.room.message", None, answer).await.unwrap();
    house.rooms.index_all().await;
    let num = |room: &ruma::RoomId| room::num(&house.store.read().unwrap(), room.as_str()).unwrap().unwrap();
    let (before, elsewhere) = (words_of(&house.store, num(&room)), words_of(&house.store, num(&other)).0);
    assert!(before.0 > 2400 && before.1 > 10, "{before:?}");

    let worker = Worker::new("purge", &house.clock);
    let reach = Reach::before(house.clock.now_ms() - 1000);
    let gone = house.ticking(house.rooms.purge_room_history(num(&room), reach)).await.unwrap();
    assert_eq!(gone.0, 600);
    assert_eq!(words_of(&house.store, num(&room)), before, "they are next");
    house.ticking(house.rooms.forget_words(&worker)).await.unwrap();
    let after = words_of(&house.store, num(&room));
    assert!(after.0 < 12 && after.1 < 6, "{after:?} of {before:?}");
    assert_eq!(words_of(&house.store, num(&other)).0, elsewhere);
    assert_eq!([&SEARCH_STALE, &SEARCH_GONE, &SEARCH_LATE].map(|table| count(&house.store, table)), [0; 3]);
    // What is not in the index yet goes with its message.
    house.say(&anna, &room, "late").await;
    let late = Reach::before(house.clock.now_ms() + 1000);
    house.say(&anna, &room, "last").await;
    house.ticking(house.rooms.purge_room_history(num(&room), late)).await.unwrap();
    house.rooms.index_all().await;
    house.ticking(house.rooms.forget_words(&worker)).await.unwrap();
    assert!(words_of(&house.store, num(&room)).0 < after.0);
}

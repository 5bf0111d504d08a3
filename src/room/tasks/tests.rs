use serde_json::json;

use super::*;
use crate::budget::Budget;
use crate::room::testing::{House, house, house_on};
use crate::room::{Create, Joining, TaskStage};

fn purging(close: Close) -> Close {
    Close { purge: true, ..close }
}

/// Does what waits, until all tasks are over.
async fn done(house: &House) {
    let (tasks, purge) = (Worker::new("tasks", &house.clock), Worker::new("purge", &house.clock));
    let work = async {
        while house.rooms.do_tasks(&tasks).await.unwrap().is_some() {
            house.rooms.purge_begun(&purge).await.unwrap();
        }
    };
    house.ticking(work).await;
}

/// People leave first, one of them in a room that another server knows nothing of, and come into the new room.
#[tokio::test]
async fn people_leave_a_room_that_is_closed_and_come_into_another() {
    let house = house();
    let (anna, ben, cleo) = (house.user("anna").await, house.user("ben").await, house.user("cleo").await);
    let create = Create {
        room_alias_name: Some("old".to_owned()),
        preset: crate::room::Preset::of("public_chat"),
        ..Create::default()
    };
    let room = house.rooms.create(&anna, create).await.unwrap();
    house.join(&ben, &room).await.unwrap();
    house.rooms.invite(&anna, &room, &cleo, None).await.unwrap();
    let close = purging(Close {
        new_room_by: Some(cleo.to_string()),
        new_room_name: Some("Elsewhere".to_owned()),
        message: Some("It was closed.".to_owned()),
        ..Close::default()
    });
    let name = house.rooms.close(&room, Some(&cleo), close.clone()).await.unwrap();
    let again = house.rooms.close(&room, Some(&cleo), close).await;
    assert!(matches!(again, Err(Error::Bad { .. })), "it is being closed");
    done(&house).await;
    let task = house.rooms.task(&name).await.unwrap().unwrap();
    let closed = task.closing().unwrap();
    assert_eq!((task.stage, task.error.clone()), (TaskStage::Done, None));
    let mut kicked = closed.kicked.clone();
    kicked.sort();
    assert_eq!((kicked, closed.failed.len()), (vec![anna.to_string(), ben.to_string(), cleo.to_string()], 0));
    assert_eq!(closed.aliases, ["#old:home.example"]);
    let new: OwnedRoomId = closed.new_room_id.as_deref().unwrap().try_into().unwrap();
    for who in [&anna, &ben, &cleo] {
        assert_eq!(house.rooms.joined_rooms(who).await.unwrap(), [new.clone()]);
    }
    assert!(!house.rooms.is_known(&room).await.unwrap());
    let resolved = house.rooms.resolve_here(ruma::room_alias_id!("#old:home.example")).await.unwrap();
    assert_eq!(resolved.room_id, new);
    assert_eq!(house.rooms.closings(&room, 9).await.unwrap().len(), 1);
    assert!(house.rooms.task("0").await.unwrap().is_none());
    // A day later it is forgotten.
    house.clock.advance(Duration::from_millis(KEPT_MS + 1));
    house.rooms.forget_old().await.unwrap();
    assert!(house.rooms.task(&name).await.unwrap().is_none());
}

/// The power goes between two steps: the next start goes on, and nobody is told anything twice.
#[tokio::test]
async fn a_start_goes_on_with_a_room_that_is_closed() {
    let store = crate::store::Store::in_memory();
    let house = house_on(Budget::for_tests(), store.clone());
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let room = house.public_room(&anna).await;
    house.join(&ben, &room).await.unwrap();
    let name = house.rooms.close(&room, None, purging(Close::default())).await.unwrap();
    let worker = Worker::new("tasks", &house.clock);
    house.rooms.do_tasks(&worker).await.unwrap();
    assert!(matches!(house.rooms.task(&name).await.unwrap().unwrap().stage, TaskStage::Telling { .. }));
    drop(house);
    let house = house_on(Budget::for_tests(), store);
    done(&house).await;
    assert_eq!(house.rooms.task(&name).await.unwrap().unwrap().stage, TaskStage::Done);
    assert!(!house.rooms.is_known(&room).await.unwrap());
    assert!(house.rooms.joined_rooms(&ben).await.unwrap().is_empty());
}

/// Nobody comes into a blocked room by any of the ways, and who is inside may go.
#[tokio::test]
async fn nobody_comes_into_a_blocked_room() {
    let house = house();
    let (anna, ben, cleo) = (house.user("anna").await, house.user("ben").await, house.user("cleo").await);
    let room = house.public_room(&anna).await;
    house.join(&ben, &room).await.unwrap();
    house.rooms.block(&room, Some(&anna)).await.unwrap();
    assert_eq!(house.rooms.blocked(&room).await.unwrap().unwrap().by, anna.to_string());
    let is_blocked = |done: Result<()>| matches!(done, Err(Error::Forbidden(why)) if why.contains("blocked"));
    assert!(is_blocked(house.rooms.join(&cleo, &room, Joining::default()).await));
    assert!(is_blocked(house.rooms.invite(&anna, &room, &cleo, None).await));
    assert!(is_blocked(house.rooms.invite(&anna, &room, ruma::user_id!("@zoe:elsewhere"), None).await));
    assert!(is_blocked(house.rooms.knock(&cleo, &room, Vec::new(), None).await));
    assert!(is_blocked(house.rooms.set_alias(&anna, ruma::room_alias_id!("#in:home.example"), &room).await));
    house
        .send(&ben, &room, "m.room.message", None, json!({ "msgtype": "m.text", "body": "still here" }))
        .await
        .unwrap();
    house.rooms.leave(&ben, &room, None).await.unwrap();
    // Also one that is not known here.
    let other = ruma::room_id!("!other:elsewhere");
    house.rooms.block(other, Some(&anna)).await.unwrap();
    assert!(is_blocked(house.rooms.join(&cleo, other, Joining::default()).await));
    house.rooms.block(&room, None).await.unwrap();
    house.join(&cleo, &room).await.unwrap();
}

/// Old messages of other servers' people alone, or of all, up to an event.
#[tokio::test]
async fn history_goes_up_to_an_event() {
    let house = house();
    let anna = house.user("anna").await;
    let room = house.public_room(&anna).await;
    let mut said = Vec::new();
    for nth in 0..5 {
        said.push(house.say(&anna, &room, &nth.to_string()).await);
    }
    let has = |id: &EventId| event::num(&house.store.read().unwrap(), id.as_str()).unwrap().is_some();
    let begin = async |own| house.rooms.begin_purge_history(&room, &anna, None, Some(&said[3]), own).await.unwrap();
    let name = begin(false).await;
    done(&house).await;
    assert_eq!(house.rooms.task(&name).await.unwrap().unwrap().stage, TaskStage::Done);
    assert!(said.iter().all(|id| has(id)), "all of them were said here");
    begin(true).await;
    done(&house).await;
    assert_eq!(said.iter().map(|id| has(id)).collect::<Vec<_>>(), [false, false, false, true, true]);
    let nowhere = house.rooms.begin_purge_history(&room, &anna, None, Some(ruma::event_id!("$nowhere")), true).await;
    assert!(matches!(nowhere, Err(Error::NotFound)));
}

/// Old messages of all rooms are one task, with which a start goes on behind the rooms that are done; one such task at a time.
#[tokio::test]
async fn old_messages_of_all_rooms_go_also_after_a_restart() {
    let store = crate::store::Store::in_memory();
    let house = house_on(Budget::for_tests(), store.clone());
    let anna = house.user("anna").await;
    let mut said = Vec::new();
    for nth in 0..ROOMS_A_STEP + 3 {
        let room = house.public_room(&anna).await;
        if nth == 0 || nth == ROOMS_A_STEP + 2 {
            said.push(house.say(&anna, &room, "old").await);
            house.say(&anna, &room, "the newest stays").await;
        }
    }
    house.clock.advance(Duration::from_millis(40 * DAY_MS));
    let name = house.rooms.begin_purge_by_age(None, None, 30).await.unwrap();
    let again = house.rooms.begin_purge_by_age(None, None, 30).await;
    assert!(matches!(again, Err(Error::Bad { message, .. }) if message.contains("all rooms")));
    let worker = Worker::new("tasks", &house.clock);
    house.ticking(house.rooms.do_tasks(&worker)).await.unwrap();
    let task = house.rooms.task(&name).await.unwrap().unwrap();
    assert_eq!((task.stage, task.gone.events), (TaskStage::Waiting, 1));
    drop(house);
    let house = house_on(Budget::for_tests(), store);
    done(&house).await;
    let task = house.rooms.task_over(&name).await.unwrap();
    assert_eq!((task.stage, task.error, task.gone.events), (TaskStage::Done, None, 2));
    let has = |id: &EventId| event::num(&house.store.read().unwrap(), id.as_str()).unwrap().is_some();
    assert!(said.iter().all(|id| !has(id)));
}

/// Tasks that began in one millisecond were listed as chance had it.
#[tokio::test]
async fn tasks_are_listed_as_they_began_also_within_a_millisecond() {
    let house = house();
    let anna = house.user("anna").await;
    let room: OwnedRoomId = "!unknown:elsewhere.example".try_into().unwrap();
    let mut names = Vec::new();
    for _ in 0..9 {
        names.push(house.rooms.note_closed(&room, &anna).await.unwrap());
    }
    assert_eq!(house.rooms.closings(&room, 9).await.unwrap(), names);
}

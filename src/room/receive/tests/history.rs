//! Backfilling.

use super::*;

#[tokio::test]
async fn history_from_before_our_own_is_fetched_and_stands_below() {
    let world = World::new().await;
    let mut line = world.line();
    // A gap that stays, as after a join: below it our history begins anew.
    let said: Vec<_> = (0..30).map(|n| world.say(&mut line, &format!("{n}"))).collect();
    let topic = world.make(&mut line, &world.bob, "m.room.message", None, json!({ "body": "x" }));
    let joined = world.join(&mut line, <&UserId>::try_from("@carol:far.example").unwrap());
    let last = world.say(&mut line, "last");
    world.peer.with(|book| book.keeps_events = true);
    assert_eq!(world.receive(&[last.clone()]).await, [Ok(())]);
    assert!(world.row(&joined).unwrap().flags.outlier && world.row(&topic).is_none());
    let num = world.house.room_num(&world.room);
    let order = world.row(&last).unwrap().order.unwrap();
    let latest = last.clone();
    let only_last = world.house.store.clone();
    only_last
        .write(move |w| {
            // As if all we had were the event we got.
            let row = event::row_of(w, event::num(w, last.id().as_str())?.unwrap())?;
            let mut orders = Vec::new();
            crate::store::tables::room::timeline::backward(w, num, i64::MIN, order - 1, &mut |order, _| {
                orders.push(order);
                Ok(std::ops::ControlFlow::Continue(()))
            })?;
            orders.into_iter().try_for_each(|order| crate::store::tables::room::timeline::remove(w, num, order))?;
            Ok::<_, crate::store::Error>(row)
        })
        .await
        .unwrap();
    assert_eq!(world.inbox.backfill(num, Gap::Beginning, 20).await.unwrap(), 20);
    assert_eq!(world.inbox.backfill(num, Gap::Beginning, 100).await.unwrap(), 12);
    assert_eq!(world.inbox.backfill(num, Gap::Beginning, 100).await.unwrap(), 0, "it meets what is here");
    let orders: Vec<i64> = said.iter().map(|event| world.row(event).unwrap().order.unwrap()).collect();
    assert!(orders.is_sorted() && orders.iter().all(|order| *order < 0));
    let joined = world.row(&joined).unwrap();
    let before = state_tree::get(&world.house.read(), joined.before.unwrap(), joined.state_key.unwrap()).unwrap();
    assert_eq!(before, None, "before she joined she was not in the room");
    // A state worked out backwards is not for another server to build upon.
    assert!(said.iter().all(|event| world.row(event).unwrap().flags.guessed));
    let (rooms, from) = (&world.house.rooms, far());
    assert!(matches!(rooms.serve_state(&from, &world.room, said[5].id(), true).await, Err(Error::NotFound)));
    assert!(rooms.serve_state(&from, &world.room, latest.id(), true).await.is_ok());
    world.check_state();
}

/// The events of a time without members here, or too many to be fetched at once, were put before everything, and
/// scrolling back stopped short of the beginning.
#[tokio::test]
async fn what_is_missing_in_the_middle_is_fetched_into_its_place() {
    let world = World::new().await;
    let mut line = world.line();
    let near = world.say(&mut line, "near");
    assert_eq!(world.receive(&[near.clone()]).await, [Ok(())]);
    assert!(world.house.row(&world.room).holes.is_empty());
    let said: Vec<_> = (0..30).map(|n| world.say(&mut line, &format!("{n}"))).collect();
    let joined = world.join(&mut line, <&UserId>::try_from("@carol:far.example").unwrap());
    let last = world.say(&mut line, "last");
    world.peer.with(|book| book.keeps_events = true);
    assert_eq!(world.receive(&[last.clone()]).await, [Ok(())]);
    world.house.say(&world.anna, &world.room, "after").await;
    let holes = world.house.row(&world.room).holes;
    let [hole] = holes[..] else { panic!("{holes:?}") };
    let order = |event: &Event| world.row(event).unwrap().order.unwrap();
    assert!(order(&near) < hole.bottom && hole.next == order(&last));

    let num = world.house.room_num(&world.room);
    let gap = Gap::Hole(hole.bottom);
    assert_eq!(world.inbox.backfill(num, gap, 20).await.unwrap(), 20);
    assert_eq!(world.house.row(&world.room).holes, [crate::store::tables::room::Hole { next: hole.next - 20, ..hole }]);
    assert_eq!(world.inbox.backfill(num, gap, 100).await.unwrap(), 11);
    assert_eq!(world.inbox.backfill(num, gap, 100).await.unwrap(), 0, "it meets what is here");
    assert_eq!(world.house.row(&world.room).holes, []);
    let mut orders = vec![order(&near)];
    orders.extend(said.iter().chain([&joined, &last]).map(|event| order(event)));
    assert!(orders.is_sorted() && orders[0] > 0, "{orders:?}");
    let guessed = |event: &Event| world.row(event).unwrap().flags.guessed;
    assert!(said.iter().all(|event| guessed(event)) && !guessed(&near) && !guessed(&last));
    world.check_state();
}

/// The walk through a batch ended where the first branch of the history left it. The events of the other branches were
/// never requested again: those just below them were here.
#[tokio::test]
async fn every_branch_of_a_batch_is_placed() {
    let world = World::new().await;
    let mut line = world.line();
    let near = world.say(&mut line, "near");
    assert_eq!(world.receive(&[near]).await, [Ok(())]);
    let base: Vec<_> = (0..10).map(|n| world.say(&mut line, &format!("{n}"))).collect();
    let mut other = line.clone();
    let sides = [world.say(&mut line, "left"), world.say(&mut other, "right")];
    line.heads = sides.to_vec();
    let merged = world.say(&mut line, "merged");
    let last = world.say(&mut line, "last");
    world.peer.with(|book| book.keeps_events = true);
    assert_eq!(world.receive(&[last]).await, [Ok(())]);
    let gap = Gap::Hole(world.house.row(&world.room).holes[0].bottom);
    let num = world.house.room_num(&world.room);
    // One of them is named from both sides.
    assert_eq!(world.inbox.backfill(num, gap, 5).await.unwrap(), 4);
    let order = |event: &Event| world.row(event).and_then(|row| row.order);
    assert!(sides.iter().chain([&merged]).all(|event| order(event).is_some()));
    assert_eq!(world.inbox.backfill(num, gap, 100).await.unwrap(), 9);
    assert!(base.iter().map(|event| order(event).unwrap()).is_sorted());
    world.check_state();
}

/// A hundred events, so large that only twenty-five fit into an answer, could never be had, and scrolling back ended
/// above them.
#[tokio::test]
async fn where_an_answer_would_be_too_large_fewer_are_asked_for() {
    let world = World::new().await;
    let mut line = world.line();
    let near = world.say(&mut line, "near");
    assert_eq!(world.receive(&[near]).await, [Ok(())]);
    for n in 0..30 {
        world.say(&mut line, &format!("{n}"));
    }
    let last = world.say(&mut line, "last");
    world.peer.with(|book| (book.keeps_events, book.most) = (true, Some(7)));
    assert_eq!(world.receive(&[last]).await, [Ok(())]);
    let gap = Gap::Hole(world.house.row(&world.room).holes[0].bottom);
    let num = world.house.room_num(&world.room);
    assert_eq!(world.inbox.backfill(num, gap, 100).await.unwrap(), 6);
    // The same for the events between an event and our own.
    world.house.say(&world.anna, &world.room, "meanwhile").await;
    let mut line = world.line();
    let events: Vec<_> = (0..12).map(|n| world.say(&mut line, &format!("more {n}"))).collect();
    world.peer.with(|book| book.keeps_events = false);
    assert_eq!(world.receive(&events[11..]).await, [Ok(())]);
    assert!(events.iter().all(|event| world.row(event).is_some_and(|row| row.order.is_some())));
    world.check_state();
}

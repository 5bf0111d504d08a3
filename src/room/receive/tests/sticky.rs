//! Sticky events (MSC4354), and servers that come into the room after them.

use super::*;
use crate::room::Sending;
use crate::room::append::sticky::SENT_MAX;
use crate::room::testing::sending;
use crate::store::EventNum;
use crate::store::tables::room::sticky;
use crate::store::tables::server::outbox::Outbound;

async fn told(world: &World, sticky_ms: Option<u64>) -> EventNum {
    let sending = Sending { sticky_ms, ..sending("org.example.member", None, json!({})) };
    let id = world.house.rooms.send(&world.anna, &world.room, sending).await.unwrap();
    event::num(&world.house.read(), id.as_str()).unwrap().unwrap()
}

fn sent(world: &World) -> Vec<(EventNum, String)> {
    let rows = world.house.outbox().into_iter();
    rows.filter_map(|row| match row {
        Outbound::EventTo { event, to, .. } => Some((event, to)),
        _ => None,
    })
    .collect()
}

#[tokio::test]
async fn a_server_that_comes_later_is_sent_what_is_still_sticky_once() {
    let world = World::new().await;
    let mut line = world.line();
    let bob = world.bob.clone();
    let left = world.make(&mut line, &bob, "m.room.member", Some(bob.as_str()), json!({ "membership": "leave" }));
    assert_eq!(world.receive(&[left]).await, [Ok(())]);
    told(&world, Some(60_000)).await;
    world.house.clock.advance(Duration::from_secs(61));
    let (one, _, two) = (told(&world, Some(60_000)).await, told(&world, None).await, told(&world, Some(60_000)).await);
    assert_eq!(sent(&world), []);
    let mut line = world.line();
    let back = world.join(&mut line, &bob);
    assert_eq!(world.receive(&[back]).await, [Ok(())]);
    let both = [(one, "far.example".to_owned()), (two, "far.example".to_owned())];
    assert_eq!(sent(&world), both);
    // Others of that server, and what bob tells of himself, change nothing.
    let carol = world.join(&mut line, <&UserId>::try_from("@carol:far.example").unwrap());
    let renamed = json!({ "membership": "join", "displayname": "Bob" });
    let renamed = world.make(&mut line, &bob, "m.room.member", Some(bob.as_str()), renamed);
    assert_eq!(world.receive(&[carol, renamed]).await, [Ok(()), Ok(())]);
    assert_eq!(sent(&world), both);
}

#[tokio::test]
async fn what_a_new_server_is_sent_is_bounded() {
    let world = World::new().await;
    let mut line = world.line();
    let bob = world.bob.clone();
    let left = world.make(&mut line, &bob, "m.room.member", Some(bob.as_str()), json!({ "membership": "leave" }));
    assert_eq!(world.receive(&[left]).await, [Ok(())]);
    let mut all = Vec::new();
    for _ in 0..=SENT_MAX {
        all.push(told(&world, Some(60_000)).await);
    }
    let back = world.join(&mut world.line(), &bob);
    assert_eq!(world.receive(&[back]).await, [Ok(())]);
    let sent: Vec<EventNum> = sent(&world).into_iter().map(|(event, _)| event).collect();
    assert_eq!(sent, all[1..], "the newest");
}

/// A sticky event of another server.
fn said(world: &World, line: &mut Line) -> Arc<Event> {
    let draft =
        Draft { sticky_ms: Some(60_000), ..world.unsigned(line, &world.bob, "org.example.member", None, json!({})) };
    let event = Arc::new(draft.build(line.heads[0].version(), &far(), &world.key).unwrap());
    world.peer.with(|book| book.events.insert(event.id().to_owned(), (event.clone(), line.state.clone())));
    line.heads = vec![event.clone()];
    event
}

/// The events of which the room's members are told.
fn told_of(world: &World) -> Vec<EventNum> {
    let (read, mut told) = (world.house.read(), Vec::new());
    let room = known(&read, world.room.as_str()).unwrap().num;
    sticky::each(&read, room, 0, &mut |one| {
        told.push(one.event);
        Ok(std::ops::ControlFlow::Continue(()))
    })
    .unwrap();
    told
}

async fn member(world: &World, sender: &UserId, membership: &str) {
    let content = json!({ "membership": membership });
    if sender == world.bob {
        let join = world.make(&mut world.line(), sender, "m.room.member", Some(sender.as_str()), content);
        assert_eq!(world.receive(&[join]).await, [Ok(())]);
    } else {
        let bob = Some(world.bob.as_str());
        world.house.send(sender, &world.room, "m.room.member", bob, content).await.unwrap();
    }
}

/// Servers that heard of a ban before the event never told of it, others did, and so it stayed when the ban was taken back.
#[tokio::test]
async fn a_sticky_event_that_was_soft_failed_is_told_when_its_sender_is_back() {
    let world = World::new().await;
    let (bob, anna) = (world.bob.clone(), world.anna.clone());
    let mut line = world.line();
    member(&world, &anna, "ban").await;
    let event = said(&world, &mut line);
    assert_eq!(world.receive(&[event.clone()]).await, [Ok(())]);
    assert!(world.row(&event).unwrap().flags.soft_failed);
    member(&world, &anna, "leave").await;
    assert_eq!(told_of(&world), []);
    member(&world, &bob, "join").await;
    let row = world.row(&event).unwrap();
    let num = event::num(&world.house.read(), event.id().as_str()).unwrap().unwrap();
    assert!(!row.flags.soft_failed && row.order.is_some());
    assert_eq!(told_of(&world), [num]);
    let (_, rooms) = synced(&world.house, &anna, None, json!({})).await;
    assert!(rooms["join"][world.room.as_str()]["timeline"].to_string().contains(event.id().as_str()));
    world.check_state();
    // One that is over stays out.
    let mut line = world.line();
    member(&world, &anna, "ban").await;
    let event = said(&world, &mut line);
    assert_eq!(world.receive(&[event.clone()]).await, [Ok(())]);
    world.house.clock.advance(Duration::from_secs(61));
    member(&world, &anna, "leave").await;
    member(&world, &bob, "join").await;
    assert!(world.row(&event).unwrap().flags.soft_failed);
}

#[tokio::test]
async fn nobody_is_told_what_is_sticky_of_who_left_until_they_are_back() {
    let world = World::new().await;
    let bob = world.bob.clone();
    let event = said(&world, &mut world.line());
    assert_eq!(world.receive(&[event.clone()]).await, [Ok(())]);
    let all = told_of(&world);
    let order = world.row(&event).unwrap().order;
    assert_eq!(all.len(), 1);
    for _ in 0..2 {
        member(&world, &bob, "leave").await;
        assert_eq!(told_of(&world), []);
        member(&world, &bob, "join").await;
        assert_eq!((told_of(&world), world.row(&event).unwrap().order), (all.clone(), order));
    }
}

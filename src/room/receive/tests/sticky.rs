//! Sticky events (MSC4354), and servers that come into the room after them.

use super::*;
use crate::room::Sending;
use crate::room::append::sticky::SENT_MAX;
use crate::room::testing::sending;
use crate::store::EventNum;
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

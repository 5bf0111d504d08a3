//! Events one after the other.

use super::*;

#[tokio::test]
async fn events_in_order_are_taken_a_few_to_a_commit_and_nobody_is_asked() {
    let world = World::new().await;
    let mut line = world.line();
    let events: Vec<_> = (0..20).map(|n| world.say(&mut line, &format!("{n}"))).collect();
    let before = world.house.read().position().unwrap();
    assert!(world.receive(&events).await.iter().all(Result::is_ok));
    assert_eq!(world.house.timeline(&world.room, 20), vec!["m.room.message"; 20]);
    assert_eq!(world.house.row(&world.room).extremities.len(), 1);
    assert_eq!(world.house.read().position().unwrap().0 - before.0, 20);
    assert!(world.peer.asked().is_empty());
    // Once more: nothing.
    assert!(world.receive(&events).await.iter().all(Result::is_ok));
    assert_eq!(world.house.read().position().unwrap().0 - before.0, 20);
    // Anna goes on from there.
    world.house.say(&world.anna, &world.room, "hello").await;
    world.check_state();
}

/// A full disk was answered like a refusal by the rules: with 200, and the event was lost.
#[tokio::test]
async fn what_we_fail_at_ourselves_may_be_sent_again() {
    let world = World::new().await;
    let mut line = world.line();
    // A database that cannot be written to does not mean that the event is a bad one.
    let next = world.say(&mut line, "next");
    world.house.store.close().await;
    let failed = world.inbox.receive(&far(), &world.room, vec![raw(&next)], world.late()).await.unwrap_err();
    assert!(matches!(failed, Error::Store(_)) && failed.is_passing());
}

/// Apps blank the target of a redaction they see, whether or not its sender may redact it.
#[tokio::test]
async fn a_redaction_without_effect_is_withheld_from_apps() {
    let world = World::new().await;
    let annas = world.house.say(&world.anna, &world.room, "not to be blanked").await;
    let elsewhere = world.house.public_room(&world.anna).await;
    let elsewhere = world.house.say(&world.anna, &elsewhere, "in another room").await;
    let (first, _) = synced(&world.house, &world.anna, None, json!({})).await;
    let mut line = world.line();
    let bobs = world.say(&mut line, "a slip");
    let mut events = vec![bobs.clone()];
    for target in [annas.as_str(), elsewhere.as_str(), "$unknown", bobs.id().as_str(), bobs.id().as_str()] {
        let content = json!({ "redacts": target });
        events.push(world.make(&mut line, &world.bob, "m.room.redaction", None, content));
    }
    assert_eq!(world.receive(&events).await, vec![Ok(()); 6]);
    let (_, rooms) = synced(&world.house, &world.anna, Some(first), json!({})).await;
    let told = rooms["join"][world.room.as_str()]["timeline"]["events"].as_array().unwrap();
    let told: Vec<_> = told.iter().map(|event| event["event_id"].as_str().unwrap()).collect();
    assert_eq!(told, [events[0].id().as_str(), events[4].id().as_str(), events[5].id().as_str()]);
    let user = world.house.user_num(&world.anna);
    let reader = crate::room::Reader { user, user_id: world.anna.clone(), device: "D".to_owned(), sees_all: false };
    for (event, shown) in [(&events[1], false), (&events[4], true)] {
        assert_eq!(world.house.rooms.event(&reader, &world.room, event.id()).await.is_ok(), shown);
    }
}

/// Rooms up to version 10 contain types and state keys of 255 characters in more bytes, since Synapse let them in. What
/// cannot be read at all is missing for ever in what follows it; so such an event is taken, and rejected as by others.
#[tokio::test]
async fn an_old_rooms_event_with_too_long_a_type_is_kept_and_rejected() {
    for (version, kept) in [("10", true), ("11", false)] {
        let world = World::of(Budget::for_tests(), Some(version)).await;
        let mut line = world.line();
        let draft = world.unsigned(&line, &world.bob, &"\u{e9}".repeat(200), None, json!({}));
        let version = line.heads[0].version();
        let text = draft.template(version).to_string();
        let long = crate::matrix::draft::sign_new(version, text.as_bytes(), &far(), &world.key);
        assert_eq!(long.is_ok(), kept);
        let Ok(long) = long.map(Arc::new) else { continue };
        world.peer.with(|book| book.events.insert(long.id().to_owned(), (long.clone(), line.state.clone())));
        line.heads = vec![long.clone()];
        let after = world.say(&mut line, "after it");
        let taken = world.receive(&[long.clone(), after.clone()]).await;
        assert!(taken[0].as_ref().unwrap_err().to_string().contains("255 bytes") && taken[1].is_ok(), "{taken:?}");
        assert!(world.row(&long).unwrap().flags.rejected && world.row(&after).unwrap().order.is_some());
        assert!(!world.peer.asked().contains(&"state_ids"));
    }
}

/// A transaction with one event that was nested 120 deep was refused with all the others in it.
#[tokio::test]
async fn an_odd_event_leaves_those_beside_it_alone() {
    let world = World::new().await;
    let mut line = world.line();
    let nested =
        |levels| (0..levels).fold(json!(1), |inner, _| Value::Object([("a".to_owned(), inner)].into_iter().collect()));
    let first = world.say(&mut line, "first");
    let deep = json!({ "body": "deep", "x": nested(700) });
    let deep = world.make(&mut line, &world.bob, "m.room.message", None, deep);
    let member = json!({ "membership": "join", "displayname": "Bob", "x": nested(120) });
    let member = world.make(&mut line, &world.bob, "m.room.member", Some(world.bob.as_str()), member);
    let last = world.say(&mut line, "last");
    let honest = String::from_utf8(last.to_federation().to_vec()).unwrap();
    let odd = |body: &str| {
        let text = honest.replace("\"last\"", body);
        assert_ne!(text, honest);
        RawValue::from_string(text).unwrap()
    };
    let too_deep = format!("{}1{}", "[".repeat(2_000), "]".repeat(2_000));
    let too_large = format!("\"{}\"", "x".repeat(70_000));
    let mut pdus = vec![odd(&too_deep), raw(&first), odd("1.5"), raw(&deep), odd(&too_large), odd("\"\\ud800\"")];
    pdus.extend([raw(&member), RawValue::from_string("[[]]".to_owned()).unwrap(), raw(&last)]);
    assert_eq!(world.receive_raw(pdus).await, vec![Ok(()); 4]);
    for event in [&first, &deep, &member, &last] {
        assert_eq!(world.house.event(event.id()).to_federation(), event.to_federation());
        let told = world.house.rooms.event_for(&far(), event.id()).await.unwrap();
        assert_eq!(told, event.to_federation());
    }
    world.check_state();
    // It is valid state like any other, and is removed like any other.
    world.house.rooms.ban(&world.anna, &world.room, &world.bob, None, None).await.unwrap();
    world.check_state();
}

/// In versions 1 and 2 a sender chooses its event's id. An event that named the id of another, which was here as
/// rejected, got that one's columns: a message made its sender's power levels count.
#[tokio::test]
async fn an_event_does_not_take_the_place_of_another_with_its_id() {
    let world = World::of(Budget::for_tests(), Some("2")).await;
    let line = world.line();
    let build = |draft: Draft| Arc::new(draft.build(line.heads[0].version(), &far(), &world.key).unwrap());
    let levels = json!({ "users": { world.bob.as_str(): 100 } });
    let mut levels = world.unsigned(&line, &world.bob, "m.room.power_levels", Some(""), levels);
    levels.opaque_id = "y".to_owned();
    let levels = build(levels);
    world.peer.with(|book| book.events.insert(levels.id().to_owned(), (levels.clone(), State::new())));
    let mut citing = world.unsigned(&line, &world.bob, "m.room.message", None, json!({ "body": "one" }));
    citing.auth_events.push(levels.id().to_owned());
    assert!(world.receive(&[build(citing)]).await[0].is_err());
    let row = world.row(&levels).unwrap();
    assert!(row.flags.rejected && row.flags.outlier);
    let mut taking = world.unsigned(&line, &world.bob, "m.room.message", None, json!({ "body": "two" }));
    taking.opaque_id = "y".to_owned();
    let taking = build(taking);
    assert_eq!(taking.id(), levels.id());
    let outcome = &world.receive(&[taking]).await[0];
    assert!(
        outcome.as_ref().is_err_and(|why| why.to_string().contains("another event has this event ID")),
        "{outcome:?}"
    );
    assert_eq!(world.row(&levels).unwrap(), row);
    assert!(world.house.state(&world.room, "m.room.power_levels", "").unwrap()["users"][world.bob.as_str()].is_null());
    world.check_state();
}

/// Answers in a thread that began before our time in the room, and edits of messages from then, were related to
/// nothing, since their targets came after them.
#[tokio::test]
async fn what_is_about_an_older_event_is_found_when_that_is_fetched() {
    let world = World::new().await;
    let mut line = world.line();
    let root = world.say(&mut line, "root");
    (0..10).for_each(|n| drop(world.say(&mut line, &format!("{n}"))));
    let answer = |line: &mut Line, rel: &str| {
        let content = json!({ "body": "x", "m.relates_to": { "rel_type": rel, "event_id": root.id() } });
        world.make(line, &world.bob, "m.room.message", None, content)
    };
    let [first, second, edit] = ["m.thread", "m.thread", "m.replace"].map(|rel| answer(&mut line, rel));
    world.peer.with(|book| book.keeps_events = true);
    assert_eq!(world.receive(&[first.clone(), second.clone(), edit.clone()]).await, [Ok(()), Ok(()), Ok(())]);
    // One of them is redacted before the root comes.
    let redaction = json!({ "redacts": first.id() });
    let redaction = world.make(&mut line, &world.bob, "m.room.redaction", None, redaction);
    assert_eq!(world.receive(&[redaction]).await, [Ok(())]);
    assert!(world.row(&first).unwrap().flags.redacted);

    let holes = world.house.row(&world.room).holes;
    let [hole] = holes[..] else { panic!("{holes:?}") };
    let (num, gap) = (world.house.room_num(&world.room), Gap::Hole(hole.bottom));
    world.peer.with(|book| book.is_away = true);
    assert!(world.inbox.backfill(num, gap, 4).await.is_err(), "nobody can say that there is no more");
    world.peer.with(|book| book.is_away = false);
    assert_eq!(world.inbox.backfill(num, gap, 4).await.unwrap(), 4);
    assert!(world.row(&root).is_none());
    assert_eq!(world.inbox.backfill(num, gap, 100).await.unwrap(), 7);
    let read = world.house.read();
    let (root, mut related) = (event::num(&read, root.id().as_str()).unwrap().unwrap(), Vec::new());
    relation::list(&read, num, root, None, &mut |rel, order, num| {
        related.push((rel, order, event::id_of(&read, num)?));
        Ok(std::ops::ControlFlow::Continue(()))
    })
    .unwrap();
    let of = |rel, event: &Event| (rel, world.row(event).unwrap().order.unwrap(), event.id().to_string());
    assert_eq!(related, [of(Rel::REPLACE, &edit), of(Rel::THREAD, &second)]);
}

/// A followed event that could not be had came in the end, and stood beside its followers as an extremity. The state it
/// had set was resolved with the state that replaced it.
#[tokio::test]
async fn an_event_that_comes_after_its_followers_is_no_end() {
    let world = World::new().await;
    let levels = json!({ "users": { world.bob.as_str(): 50 } });
    world.house.send(&world.anna, &world.room, "m.room.power_levels", Some(""), levels).await.unwrap();
    let mut line = world.line();
    let topic = |line: &mut Line, topic: &str, ts: u64| {
        world.ts.set(START_MS + ts);
        world.make(line, &world.bob, "m.room.topic", Some(""), json!({ "topic": topic }))
    };
    let first = topic(&mut line, "first", 1000);
    assert_eq!(world.receive(&[first]).await, [Ok(())]);
    let missing = topic(&mut line, "missing", 3000);
    let last = topic(&mut line, "last", 2000);
    world.peer.with(|book| book.keeps_events = true);
    assert_eq!(world.receive(&[last.clone()]).await, [Ok(())]);
    assert_eq!(world.house.row(&world.room).extremities.len(), 2);
    assert_eq!(world.topic().as_deref(), Some("last"));
    assert_eq!(world.receive(&[missing.clone()]).await, [Ok(())]);
    assert!(world.row(&missing).unwrap().order.is_some());
    let num = event::num(&world.house.read(), last.id().as_str()).unwrap().unwrap();
    assert_eq!(world.house.row(&world.room).extremities, [num]);
    assert_eq!(world.topic().as_deref(), Some("last"));
    world.check_state();
    // It counts once: the next of its kind is an extremity like any other.
    world.house.say(&world.anna, &world.room, "hello").await;
    assert_eq!(world.house.row(&world.room).extremities.len(), 1);
    assert!(
        !event::is_followed(&world.house.read(), world.house.room_num(&world.room), missing.id().as_str()).unwrap()
    );
}

/// An event that leads to many others made us store everything its server sent.
#[tokio::test]
async fn what_is_fetched_from_a_server_counts_as_sent() {
    let world = World::new().await;
    let mut line = world.line();
    let events: Vec<_> = (0..100).map(|n| world.say(&mut line, &format!("{n} {}", "x".repeat(200)))).collect();
    // As many bytes as thirty of them have; a room may have twice that.
    world.house.rooms.set_hourly_bytes_max(30 * events[50].to_federation().len() as u64);
    assert!(world.house.rooms.check_intake(&far()).is_ok());
    assert_eq!(world.receive(&events[40..41]).await, [Ok(())]);
    assert!(world.house.rooms.check_intake(&far()).is_err(), "it is put off");
    assert!(world.house.rooms.check_intake("calm.example".try_into().unwrap()).is_ok());
    let gap = vec![raw(&events[99])];
    let put_off = world.inbox.receive(&far(), &world.room, gap, world.late()).await.unwrap_err();
    assert!(matches!(&put_off, Error::Refused(refused) if refused.retry_after_ms > 0) && put_off.is_passing());
}

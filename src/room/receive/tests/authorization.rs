//! Which events are kept, shown, refused.

use super::*;

#[tokio::test]
async fn forged_events_are_refused_and_tampered_ones_redacted() {
    let world = World::new().await;
    let line = world.line();
    let thief = Key::from_seed("1", [1; 32]);
    let content = json!({ "msgtype": "m.text", "body": "send me money" });
    let forged = world.draft(&line, &world.bob, "m.room.message", None, content.clone(), &thief);
    assert!(world.receive(&[forged.clone()]).await[0].as_ref().unwrap_err().to_string().contains("signature"));
    assert!(world.row(&forged).is_none());

    let honest = world.draft(&line, &world.bob, "m.room.message", None, content, &world.key);
    let mut told: Value = serde_json::from_slice(honest.to_federation()).unwrap();
    told["content"]["body"] = "keep your money".into();
    assert_eq!(world.receive_raw(vec![RawValue::from_string(told.to_string()).unwrap()]).await, [Ok(())]);
    assert_eq!(world.house.event(honest.id()).content(), "{}");

    // Of another room, and not an event at all.
    told["room_id"] = "!elsewhere".into();
    let strange = ["[]", "{}", "3", &told.to_string()].map(|text| RawValue::from_string(text.to_owned()).unwrap());
    assert_eq!(world.receive_raw(strange.into()).await, []);
}

#[tokio::test]
async fn what_the_rules_forbid_is_kept_as_rejected() {
    let world = World::new().await;
    let mut line = world.line();
    let mut forked = line.clone();
    let levels = json!({ "users": { world.bob.as_str(): 100 } });
    let coup = world.make(&mut forked, &world.bob, "m.room.power_levels", Some(""), levels);
    assert!(matches!(world.receive(&[coup.clone()]).await[0], Err(NotTaken::Refused(_))));
    assert!(world.row(&coup).unwrap().flags.rejected);
    assert!(world.house.row(&world.room).extremities.len() == 1 && world.row(&coup).unwrap().order.is_none());
    // An event that cites it is rejected too; one that only follows it is not.
    let news = world.make(&mut forked, &world.bob, "m.room.name", Some(""), json!({ "name": "Bob's" }));
    assert!(world.receive(&[news.clone()]).await[0].is_err());
    assert!(world.row(&news).unwrap().flags.rejected);
    line.heads = vec![coup];
    let talk = world.say(&mut line, "as if nothing had been");
    assert_eq!(world.receive(&[talk.clone()]).await, [Ok(())]);
    assert_eq!(world.row(&talk).unwrap().flags, Flags::default());
    // The event behind the rejected one was an extremity for ever.
    assert_eq!(world.house.row(&world.room).extremities.len(), 1);
    // An event that cites one it does not need, and another create event.
    let mut odd = line.clone();
    let key = ("m.room.member".to_owned(), world.bob.to_string());
    odd.state.insert(key, odd.state[&("m.room.join_rules".to_owned(), String::new())].clone());
    let odd = world.say(&mut odd, "odd");
    assert!(world.receive(&[odd]).await[0].is_err());
    world.check_state();
}

#[tokio::test]
async fn what_is_allowed_there_but_not_now_is_kept_and_not_shown() {
    let world = World::new().await;
    let mut line = world.line();
    world.house.rooms.ban(&world.anna, &world.room, &world.bob, None, None).await.unwrap();
    let late = world.say(&mut line, "I was never told");
    assert_eq!(world.receive(&[late.clone()]).await, [Ok(())]);
    let row = world.row(&late).unwrap();
    assert!(row.flags.soft_failed && row.order.is_none() && row.before.is_some());
    assert_eq!(world.house.row(&world.room).extremities.len(), 1);
    // A display name he sets on that branch does not undo the ban.
    let name = json!({ "membership": "join", "displayname": "Bob" });
    let name = world.make(&mut line, &world.bob, "m.room.member", Some(world.bob.as_str()), name);
    assert_eq!(world.receive(&[name]).await, [Ok(())]);
    assert_eq!(world.house.membership(&world.room, &world.bob), Some(Membership::Ban));
    world.check_state();
}

#[tokio::test]
async fn a_denied_server_is_not_listened_to() {
    let world = World::new().await;
    let mut line = world.line();
    let acl = json!({ "allow": ["*"], "deny": ["far.*"] });
    world.house.send(&world.anna, &world.room, "m.room.server_acl", Some(""), acl).await.unwrap();
    let event = world.say(&mut line, "let me in");
    assert!(world.receive(&[event.clone()]).await[0].is_err());
    assert!(world.row(&event).is_none());
}

#[tokio::test]
async fn a_member_event_handed_in_is_told_to_everybody() {
    let world = World::new().await;
    let mut line = world.line();
    world.house.say(&world.anna, &world.room, "meanwhile").await;
    let carol: &UserId = "@carol:far.example".try_into().unwrap();
    let join = world.join(&mut line, carol);
    let before = world.house.outbox().len();
    let accepted = world.inbox.accept(&far(), (*join).clone(), true).await.unwrap();
    let stored = state::event::stored(&world.house.read(), join.id().as_str()).unwrap();
    assert_eq!(stored.map(|(num, _)| num), Some(accepted));
    assert_eq!(world.house.outbox().len(), before + 1);
    assert_eq!(world.house.row(&world.room).extremities.len(), 2);
    let banned = json!({ "membership": "ban" });
    let no = world.make(&mut line, carol, "m.room.member", Some(world.anna.as_str()), banned);
    assert!(world.inbox.accept(&far(), (*no).clone(), true).await.is_err());
    assert_eq!(world.house.outbox().len(), before + 1);
    world.check_state();
}

/// The second time, an event that was soft-failed passed for accepted, and its sender was let in.
#[tokio::test]
async fn a_member_event_handed_in_again_is_judged_by_the_present() {
    let world = World::new().await;
    let mut line = world.line();
    let user = |name: &str| OwnedUserId::try_from(format!("@{name}:far.example")).unwrap();
    let (carol, dave) = (user("carol"), user("dave"));
    let joined = world.join(&mut line, &dave);
    for _ in 0..2 {
        world.inbox.accept(&far(), (*joined).clone(), true).await.unwrap();
    }
    world.house.rooms.ban(&world.anna, &world.room, &carol, None, None).await.unwrap();
    world.house.rooms.ban(&world.anna, &world.room, &dave, None, None).await.unwrap();
    let late = world.join(&mut line, &carol);
    for _ in 0..2 {
        assert!(world.inbox.accept(&far(), (*late).clone(), true).await.is_err());
        assert!(world.inbox.accept(&far(), (*joined).clone(), true).await.is_err());
    }
    assert!(world.row(&late).unwrap().flags.soft_failed);
}

/// A room full of rejected events was walked to its beginning for one question.
#[tokio::test]
async fn rejected_events_are_passed_by_up_to_a_point() {
    let world = World::new().await;
    let mut line = world.line();
    let mut events = Vec::new();
    for n in 0..230 {
        // The rules are asked about the same state each time.
        let mut forked = line.clone();
        let levels = json!({ "users": { world.bob.as_str(): 100 }, "n": n });
        events.push(world.make(&mut forked, &world.bob, "m.room.power_levels", Some(""), levels));
        line.heads = forked.heads;
    }
    for batch in events.chunks(50) {
        assert!(world.receive(batch).await.iter().all(Result::is_err));
    }
    let found = async |from: &Arc<Event>| {
        let from = vec![from.id().to_owned()];
        let mut served =
            world.house.rooms.serve_backfill(&far(), &world.room, from, 10, "{\"pdus\":[".into()).await.unwrap();
        let mut out = Vec::new();
        while served.chunks.next(&mut out).unwrap() {}
        serde_json::from_slice::<Value>(&out).unwrap()["pdus"].as_array().unwrap().len()
    };
    assert!(found(&events[100]).await > 0);
    assert_eq!(found(&events[229]).await, 0);
}

/// A state event that was replaced by a later one, with a rejected event between them, stood beside it as if they were
/// two extremities, and won when its clock was ahead.
#[tokio::test]
async fn what_an_event_follows_behind_a_rejected_one_is_replaced() {
    let world = World::new().await;
    let mut line = world.line();
    let named = |name: &str| json!({ "membership": "join", "displayname": name });
    let bob = world.bob.clone();
    let first = world.make(&mut line, &bob, "m.room.member", Some(bob.as_str()), named("first"));
    assert_eq!(world.receive(&[first]).await, [Ok(())]);
    let mut refused = line.clone();
    let levels = json!({ "users": { bob.as_str(): 100 } });
    let rejected = world.make(&mut refused, &bob, "m.room.power_levels", Some(""), levels);
    assert!(world.receive(&[rejected]).await[0].is_err());
    line.heads = refused.heads;
    world.ts.set(START_MS - 1_000_000);
    let second = world.make(&mut line, &bob, "m.room.member", Some(bob.as_str()), named("second"));
    assert_eq!(world.receive(&[second]).await, [Ok(())]);
    assert_eq!(world.house.row(&world.room).extremities.len(), 1);
    assert_eq!(world.house.state(&world.room, "m.room.member", bob.as_str()).unwrap()["displayname"], "second");
    world.check_state();
}

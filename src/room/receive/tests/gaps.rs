//! Gaps, and the state before them.

use super::*;
use crate::base::testing::settled;

#[tokio::test]
async fn a_gap_is_filled_in_rounds() {
    let world = World::new().await;
    let mut line = world.line();
    let events: Vec<_> = (0..50).map(|n| world.say(&mut line, &format!("{n}"))).collect();
    assert_eq!(world.receive(&events[49..]).await, [Ok(())]);
    assert_eq!(world.peer.asked(), ["missing_events"; 3]);
    assert!(events.iter().all(|event| world.row(event).is_some_and(|row| row.order.is_some())));
    assert_eq!(world.house.row(&world.room).extremities.len(), 1);
    world.check_state();
}

/// Two slow servers had all the memory for gaps, and all other servers' transactions were put off, with the typing and
/// the keys in them, for as long as that went on.
#[tokio::test]
async fn memory_for_a_gap_is_waited_for_and_in_the_end_one_event_goes_without() {
    let text = include_str!("../../../../memory-budgets/pi-zero-2w.toml").replace("wait_ms = 30000", "wait_ms = 20");
    let world = World::within(Budget::from_profile(Profile::parse("small", &text).unwrap())).await;
    let mut line = world.line();
    let direct = world.say(&mut line.clone(), "direct");
    let events: Vec<_> = (0..10).map(|n| world.say(&mut line, &format!("{n}"))).collect();
    let gaps = world.house.rooms.0.parts.budget.account("gaps");
    let (clock, began) = (world.house.clock.clone(), world.house.clock.instant());
    let receive = |until: Duration| {
        let (inbox, room) = (world.inbox.clone(), world.room.clone());
        let pdus = vec![raw(&events[9]), raw(&direct)];
        tokio::spawn(async move { inbox.receive(&far(), &room, pdus, until).await.unwrap() })
    };
    let all = gaps.try_take(gaps.limit()).unwrap();
    let receiving = receive(began + TIME_MAX);
    while !receiving.is_finished() {
        clock.pass(Duration::from_secs(5)).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let outcomes: Vec<_> = receiving.await.unwrap().into_iter().map(|(_, outcome)| outcome.is_ok()).collect();
    assert_eq!(outcomes, [false, true], "only the event with the gap");
    assert!(clock.instant() >= began + TIME_MAX);
    let receiving = receive(clock.instant() + TIME_MAX);
    settled().await;
    drop(all);
    while !receiving.is_finished() {
        clock.pass(Duration::from_millis(500)).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(receiving.await.unwrap().iter().all(|(_, outcome)| outcome.is_ok()));
    assert!(events.iter().all(|event| world.row(event).is_some()));
    assert_eq!(gaps.used(), 0);
}

/// A server that stalls in one room held both places for gaps, the other one for a gap in another room.
#[tokio::test]
async fn a_server_fills_one_gap_at_a_time() {
    let world = World::new().await;
    let mut line = world.line();
    world.join(&mut line, <&UserId>::try_from("@carol:far.example").unwrap());
    let last = world.say(&mut line, "after the gap");
    let senders = world.house.rooms.0.gap_senders.clone();
    let (inbox, room, late) = (world.inbox.clone(), world.room.clone(), world.late());
    let receive = |from: &str| {
        let (inbox, room, pdus) = (inbox.clone(), room.clone(), vec![raw(&last)]);
        let from = OwnedServerName::try_from(from).unwrap();
        tokio::spawn(async move { inbox.receive(&from, &room, pdus, late).await.unwrap() })
    };
    // As if it were filling one in another room.
    let turn = senders.try_take("far.example").unwrap();
    let strangers = senders.try_take("").unwrap();
    let waiting = [receive("far.example"), receive("elsewhere.example")];
    settled().await;
    assert!(waiting.iter().all(|one| !one.is_finished()) && world.peer.asked().is_empty());
    drop((turn, strangers));
    for one in waiting {
        assert!(one.await.unwrap()[0].1.is_ok());
    }
}

/// A server that waited for a room where another server stalls had no gap filled in any other room, and a room waited
/// with it.
#[tokio::test]
async fn whoever_waits_for_one_turn_keeps_no_other() {
    let world = World::new().await;
    let mut line = world.line();
    world.join(&mut line, <&UserId>::try_from("@carol:far.example").unwrap());
    let last = world.say(&mut line, "after the gap");
    let (rooms, num) = (world.house.rooms.clone(), state::num_of(&world.house.rooms, &world.room).await.unwrap());
    let (senders, gaps) = (&rooms.0.gap_senders, &rooms.0.gaps);
    let stalling = gaps.lock(num).await;
    let waiting = tokio::spawn({
        let (inbox, room, pdus, late) = (world.inbox.clone(), world.room.clone(), vec![raw(&last)], world.late());
        async move { inbox.receive(&far(), &room, pdus, late).await.unwrap() }
    });
    settled().await;
    assert!(!waiting.is_finished() && world.peer.asked().is_empty());
    // As if one of its gaps in another room were filled now.
    let elsewhere = senders.try_take("far.example").expect("it waits for the room alone");
    drop(stalling);
    settled().await;
    assert!(!waiting.is_finished());
    let others = tokio::time::timeout(Duration::from_secs(60), gaps.lock(num)).await;
    drop(others.expect("gaps of others in this room go on"));
    drop(elsewhere);
    assert!(waiting.await.unwrap()[0].1.is_ok());
}

/// A gap that needs more memory than its account has will not get it later either.
#[tokio::test]
async fn an_event_that_needs_too_much_memory_is_refused_for_good() {
    let world = World::within(with_gaps("pi-zero-2w", 8 * 1024)).await;
    assert_eq!(world.house.rooms.0.parts.budget.account("gaps").limit(), 8 * 1024);
    let mut line = world.line();
    let events: Vec<_> = (0..50).map(|n| world.say(&mut line, &format!("{n}"))).collect();
    assert!(world.receive(&events[49..]).await[0].is_err());
    assert_eq!(world.house.rooms.0.parts.budget.account("gaps").used(), 0);
}

#[tokio::test]
async fn where_a_gap_stays_the_senders_server_says_what_the_state_was() {
    for members in [3, 80] {
        let world = World::new().await;
        let mut line = world.line();
        world.house.send(&world.anna, &world.room, "m.room.topic", Some(""), json!({ "topic": "here" })).await.unwrap();
        for n in 0..members {
            world.join(&mut line, <&UserId>::try_from(format!("@m{n}:far.example").as_str()).unwrap());
        }
        let last = world.say(&mut line, "after the gap");
        world.peer.with(|book| book.keeps_events = true);
        assert_eq!(world.receive(&[last.clone()]).await, [Ok(())]);
        let row = world.row(&last).unwrap();
        assert!(!row.flags.soft_failed && !row.flags.rejected && row.order.is_some());
        let asked = world.peer.asked();
        assert_eq!(asked[..2], ["missing_events", "state_ids"]);
        assert_eq!(asked.contains(&"state"), members > 60, "{asked:?}");
        let new = <&UserId>::try_from("@m2:far.example").unwrap();
        assert_eq!(world.house.membership(&world.room, new), Some(Membership::Join));
        assert_eq!(world.topic().as_deref(), Some("here"), "what happened here is not forgotten");
        assert_eq!(world.house.row(&world.room).extremities.len(), 2);
        assert_eq!(world.house.row(&world.room).joined, 2 + members);
        world.check_state();
        // The next event of ours follows both.
        world.house.say(&world.anna, &world.room, "hello").await;
        assert_eq!(world.house.row(&world.room).extremities.len(), 1);
        world.check_state();
    }
}

#[tokio::test]
async fn a_sync_tells_of_a_gap_that_stays() {
    // The events before and after a gap stood side by side, `limited` was false, and users who had joined in it were
    // not counted.
    let world = World::new().await;
    let filter = || json!({ "room": { "state": { "lazy_load_members": true } } });
    world.house.say(&world.anna, &world.room, "before the gap").await;
    let (first, _) = synced(&world.house, &world.anna, None, filter()).await;
    let mut line = world.line();
    world.join(&mut line, <&UserId>::try_from("@carol:far.example").unwrap());
    world.say(&mut line, "in the gap");
    let last = world.say(&mut line, "after the gap");
    world.peer.with(|book| book.keeps_events = true);
    assert_eq!(world.receive(&[last.clone()]).await, [Ok(())]);
    let order = world.row(&last).unwrap().order.unwrap();
    for since in [Some(first), None] {
        let (_, rooms) = synced(&world.house, &world.anna, since, filter()).await;
        let share = &rooms["join"][world.room.as_str()];
        let told = share["timeline"]["events"].as_array().unwrap();
        assert_eq!(told.iter().map(|event| &event["content"]["body"]).collect::<Vec<_>>(), ["after the gap"]);
        assert_eq!(share["timeline"]["limited"], true);
        assert_eq!(share["timeline"]["prev_batch"], format!("t{}", order - 1));
        assert_eq!(share["summary"]["m.joined_member_count"], 3);
        assert!(share["state"].to_string().contains("@carol:far.example"), "a change of members is told");
    }
    // The events that follow are whole again.
    let (now, _) = synced(&world.house, &world.anna, None, filter()).await;
    let next = world.say(&mut line, "and on");
    assert_eq!(world.receive(&[next]).await, [Ok(())]);
    let (_, rooms) = synced(&world.house, &world.anna, Some(now), filter()).await;
    assert_eq!(rooms["join"][world.room.as_str()]["timeline"]["limited"], false);
}

#[tokio::test]
async fn what_cannot_be_had_is_refused_and_leaves_nothing() {
    let world = World::new().await;
    let mut line = world.line();
    let carol: &UserId = "@carol:far.example".try_into().unwrap();
    let lost = world.join(&mut line, carol);
    let last = world.make(&mut line, carol, "m.room.message", None, json!({ "body": "after the gap" }));
    world.peer.with(|book| {
        book.keeps_events = true;
        book.events.remove(lost.id());
    });
    assert!(world.receive(&[last.clone()]).await[0].is_err());
    assert!(world.row(&last).is_none() && world.row(&lost).is_none());
    // It comes in the end.
    assert!(world.receive(&[lost, last.clone()]).await.iter().all(Result::is_ok));
    assert!(world.row(&last).is_some());
}

/// One event whose keys cannot be had any more, its server being gone, made every state refused that held it: the room
/// stood still for good.
#[tokio::test]
async fn what_of_a_state_cannot_be_vouched_for_is_left_out() {
    for members in [3, 80] {
        let world = World::new().await;
        let mut line = world.line();
        let gone: &UserId = "@gone:dead.example".try_into().unwrap();
        let join = json!({ "membership": "join" });
        let forgotten = Key::from_seed("1", [1; 32]);
        let dead = world.draft(&line, gone, "m.room.member", Some(gone.as_str()), join, &forgotten);
        line.state.insert(("m.room.member".to_owned(), gone.to_string()), dead.clone());
        line.heads = vec![dead.clone()];
        world.peer.with(|book| book.events.insert(dead.id().to_owned(), (dead.clone(), State::new())));
        // Another event, which is not given out any more.
        let lost = world.join(&mut line, <&UserId>::try_from("@lost:far.example").unwrap());
        for n in 0..members {
            world.join(&mut line, <&UserId>::try_from(format!("@m{n}:far.example").as_str()).unwrap());
        }
        let last = world.say(&mut line, "after the gap");
        world.peer.with(|book| {
            book.keeps_events = true;
            book.events.remove(lost.id());
        });
        assert_eq!(world.receive(&[last.clone()]).await, [Ok(())]);
        assert_eq!(world.row(&last).unwrap().flags, Flags::default());
        assert_eq!(world.house.row(&world.room).joined, 2 + members + u64::from(members == 80));
        assert_eq!(world.house.membership(&world.room, gone), None);
        assert_eq!(world.house.rooms.0.parts.budget.account("gaps").used(), 0);
        world.check_state();
    }
}

/// An event that was left out must not be the reason to reject another for good.
#[tokio::test]
async fn a_state_that_is_not_whole_rejects_nothing() {
    let world = World::new().await;
    let levels = |bob: u64| json!({ "users": { world.bob.as_str(): bob } });
    world.house.send(&world.anna, &world.room, "m.room.power_levels", Some(""), levels(50)).await.unwrap();
    let mut old = world.line();
    world.house.send(&world.anna, &world.room, "m.room.power_levels", Some(""), levels(0)).await.unwrap();
    let mut line = world.line();
    let lost = world.make(&mut line, &world.bob, "m.room.power_levels", Some(""), levels(50));
    world.say(&mut line, "between");
    old.heads = line.heads.clone();
    let last = world.make(&mut old, &world.bob, "m.room.topic", Some(""), json!({ "topic": "as I may" }));
    world.peer.with(|book| {
        book.keeps_events = true;
        book.events.insert(last.id().to_owned(), (last.clone(), line.state.clone()));
        book.events.remove(lost.id());
    });
    assert!(world.receive(&[last.clone()]).await[0].is_err());
    assert!(world.row(&last).is_none());
}

/// Sixty invited users joined while we were away: each join alone cites an event that had to be fetched as well, more
/// than is fetched singly, so the room was stuck.
#[tokio::test]
async fn a_state_that_cites_too_much_is_fetched_whole() {
    let small = with_gaps("pi-zero-2w", 128 * 1024);
    for (members, budget) in [(55, Budget::for_tests()), (120, small)] {
        let world = World::within(budget).await;
        let levels = json!({ "users": { world.bob.as_str(): 50 }, "invite": 50 });
        world.house.send(&world.anna, &world.room, "m.room.power_levels", Some(""), levels).await.unwrap();
        let mut line = world.line();
        for n in 0..members {
            let user = OwnedUserId::try_from(format!("@m{n}:far.example")).unwrap();
            let invite = json!({ "membership": "invite" });
            world.make(&mut line, &world.bob, "m.room.member", Some(user.as_str()), invite);
            world.join(&mut line, &user);
        }
        let last = world.say(&mut line, "after the gap");
        world.peer.with(|book| book.keeps_events = true);
        assert_eq!(world.receive(&[last.clone()]).await, [Ok(())]);
        let asked = world.peer.asked();
        assert!(asked.contains(&"state"), "{asked:?}");
        assert_eq!(world.house.row(&world.room).joined, 2 + members);
        let gaps = world.house.rooms.0.parts.budget.account("gaps");
        assert_eq!(gaps.used(), 0);
        // More than fits the memory of one gap: the answer is read more than once.
        let reads = asked.iter().filter(|asked| **asked == "state").count();
        assert_eq!(reads > 1, gaps.limit() <= 128 * 1024, "{reads}");
        world.check_state();
    }
}

/// The keys that a state may differ in were paid for before it was known how many there are: more than a gap may have,
/// under half of the profiles. Every later event of that server was refused.
#[tokio::test]
async fn the_state_before_a_gap_is_had_under_every_profile() {
    for name in Profile::names() {
        let world = World::within(Budget::from_profile(Profile::get(name).unwrap())).await;
        let mut line = world.line();
        for n in 0..3 {
            world.join(&mut line, <&UserId>::try_from(format!("@m{n}:far.example").as_str()).unwrap());
        }
        let last = world.say(&mut line, "after the gap");
        world.peer.with(|book| book.keeps_events = true);
        assert_eq!(world.receive(&[last.clone()]).await, [Ok(())], "{name}");
        assert!(world.peer.asked().contains(&"state_ids"));
        assert_eq!(world.house.row(&world.room).joined, 5);
        assert_eq!(world.house.rooms.0.parts.budget.account("gaps").used(), 0);
    }
}

/// Each new name cites the one before, so that the chain of what a message stands on grows without the room: users who
/// had changed theirs often were locked out for ever.
#[tokio::test]
async fn a_user_who_was_renamed_often_is_listened_to() {
    for (names, budget) in [(250, Budget::for_tests()), (250, with_gaps("pi-zero-2w", 160 * 1024))] {
        let world = World::within(budget).await;
        let mut line = world.line();
        for n in 0..names {
            let name = json!({ "membership": "join", "displayname": format!("Bob {n}") });
            world.make(&mut line, &world.bob, "m.room.member", Some(world.bob.as_str()), name);
        }
        let last = world.say(&mut line, "it is still me");
        world.peer.with(|book| book.keeps_events = true);
        assert_eq!(world.receive(&[last.clone()]).await, [Ok(())]);
        let row = world.row(&last).unwrap();
        assert!(!row.flags.soft_failed && !row.flags.rejected && row.order.is_some());
        let asked = world.peer.asked();
        let count = |what: &str| asked.iter().filter(|asked| **asked == what).count();
        assert!(count("event") < 20 && count("state") == 0, "{asked:?}");
        let gaps = world.house.rooms.0.parts.budget.account("gaps");
        assert_eq!(count("event_auth") > 1, gaps.limit() <= 160 * 1024, "it is read more than once: {asked:?}");
        assert_eq!(gaps.used(), 0);
        world.check_state();
    }
}

/// A server that knew little of what was missing was asked for more of it, round after round.
#[tokio::test]
async fn a_server_that_gives_few_events_is_not_asked_for_those_before() {
    let world = World::new().await;
    let mut line = world.line();
    let events: Vec<_> = (0..30).map(|n| world.say(&mut line, &format!("{n}"))).collect();
    world.peer.with(|book| book.gives = Some(1));
    assert_eq!(world.receive(&events[29..]).await, [Ok(())]);
    assert_eq!(world.peer.asked(), ["missing_events", "event", "state_ids"]);
    assert!(!world.row(&events[28]).unwrap().flags.outlier && world.row(&events[27]).unwrap().flags.outlier);
}

/// The state before a gap was asked for by the event behind it alone, whose state another server need not have.
#[tokio::test]
async fn the_state_behind_a_gap_is_the_one_after_the_event_before() {
    let world = World::new().await;
    let mut line = world.line();
    let carol: &UserId = "@carol:far.example".try_into().unwrap();
    world.say(&mut line, "in the gap");
    let before = world.join(&mut line, carol);
    let events = [world.say(&mut line, "one"), world.say(&mut line, "two")];
    world.peer.with(|book| book.gives = Some(1));
    assert_eq!(world.receive(&events[1..]).await, [Ok(())]);
    assert_eq!(world.peer.asked(), ["missing_events", "event", "state_ids"]);
    assert_eq!(world.peer.with(|book| book.states_of.clone()), [before.id()]);
    assert!(events.iter().all(|event| world.row(event).unwrap().flags == Flags::default()));
    assert_eq!(world.house.membership(&world.room, carol), Some(Membership::Join), "with its own change");
    world.check_state();
}

/// Nobody has one event any more. Each of those that cite it took one of the few states that are fetched for a gap, so that those
/// who had nothing to do with it were refused as well, and whoever built upon them after that.
#[tokio::test]
async fn an_auth_event_that_nobody_has_fails_only_what_cites_it() {
    let world = World::new().await;
    let carol: &UserId = "@carol:far.example".try_into().unwrap();
    let mut line = world.line();
    let join = world.join(&mut line, carol);
    assert_eq!(world.receive(&[join]).await, [Ok(())]);
    let mut line = world.line();
    let names = ["A", "B", "C", "D", "E"].map(|name| {
        let content = json!({ "membership": "join", "displayname": name });
        world.make(&mut line, &world.bob, "m.room.member", Some(world.bob.as_str()), content)
    });
    let of_bob = world.say(&mut line, "it is me");
    let say = |line: &mut Line, text: &str| world.make(line, carol, "m.room.message", None, json!({ "body": text }));
    let first = say(&mut line, "one");
    world.peer.with(|book| book.events.remove(names[1].id()));
    assert_eq!(world.receive(&[first.clone()]).await, [Ok(())]);
    assert_eq!(world.row(&first).unwrap().flags, Flags::default());
    assert_eq!(world.peer.asked(), ["missing_events", "event", "state_ids"]);
    assert!(names.iter().chain([&of_bob]).all(|event| world.row(event).is_none()));
    assert_eq!(world.house.membership(&world.room, &world.bob), Some(Membership::Join));
    world.check_state();
    let second = say(&mut line, "two");
    let again = world.say(&mut line, "and me again");
    let third = say(&mut line, "three");
    assert_eq!(world.receive(&[second]).await, [Ok(())]);
    assert!(world.receive(&[again.clone()]).await[0].is_err());
    assert_eq!(world.receive(&[third.clone()]).await, [Ok(())]);
    assert!(world.row(&again).is_none() && world.row(&third).unwrap().order.is_some());
    assert_eq!(world.house.membership(&world.room, &world.bob), Some(Membership::Join));
    assert_eq!(world.house.rooms.0.parts.budget.account("gaps").used(), 0);
    world.check_state();
}

/// An event behind one that nobody can read was let in with whatever state its server told.
#[tokio::test]
async fn behind_an_event_that_cannot_be_read_no_state_is_asked_for() {
    let world = World::new().await;
    let mut line = world.line();
    world.say(&mut line, "odd");
    let last = world.say(&mut line, "after it");
    world.peer.with(|book| book.is_odd = true);
    assert!(world.receive(&[last.clone()]).await[0].is_err());
    assert_eq!(world.peer.asked(), ["missing_events"]);
    assert!(world.row(&last).is_none());
    // It comes with the next one that can be reached.
    world.peer.with(|book| book.is_odd = false);
    let next = world.say(&mut line, "next");
    assert_eq!(world.receive(&[next]).await, [Ok(())]);
    assert!(world.row(&last).is_some_and(|row| row.order.is_some()));
}

/// Behind a gap, in which a user had been renamed often, nothing of the user was taken from a server that gives out no auth
/// chain by itself, though it gives the same with the state.
#[tokio::test]
async fn an_auth_chain_that_is_not_given_out_comes_with_the_state() {
    let world = World::new().await;
    let mut line = world.line();
    for n in 0..100 {
        let name = json!({ "membership": "join", "displayname": format!("Bob {n}") });
        world.make(&mut line, &world.bob, "m.room.member", Some(world.bob.as_str()), name);
    }
    let last = world.say(&mut line, "it is still me");
    world.peer.with(|book| (book.keeps_events, book.keeps_chains) = (true, true));
    assert_eq!(world.receive(&[last.clone()]).await, [Ok(())]);
    let row = world.row(&last).unwrap();
    assert!(!row.flags.soft_failed && !row.flags.rejected && row.order.is_some());
    assert!(world.peer.asked().contains(&"state"));
    world.check_state();
}

/// A server could hold a room's gaps, and the transaction's memory, for hours by sending nothing more; it need not even
/// be in the room.
#[tokio::test]
async fn a_server_that_stalls_is_waited_for_minutes_and_a_stranger_for_less() {
    let world = World::new().await;
    let mut line = world.line();
    world.join(&mut line, <&UserId>::try_from("@carol:far.example").unwrap());
    let last = world.say(&mut line, "after the gap");
    world.peer.with(|book| (book.keeps_events, book.stalls) = (true, true));
    let clock = world.house.clock.clone();
    let began = clock.instant();
    let (inbox, room, pdus, late) = (world.inbox.clone(), world.room.clone(), vec![raw(&last)], world.late());
    let receiving = tokio::spawn(async move { inbox.receive(&far(), &room, pdus, late).await.unwrap() });
    while !receiving.is_finished() {
        clock.pass(Duration::from_millis(500)).await;
    }
    let outcome = receiving.await.unwrap().remove(0).1;
    assert!(matches!(outcome, Err(NotTaken::Unjudged(_))), "nothing is known against it: {outcome:?}");
    assert!(clock.instant() - began < Duration::from_secs(300));
    assert_eq!(world.house.rooms.0.parts.budget.account("gaps").used(), 0);
    // A server that is not in the room cannot make us request a whole state.
    world.peer.with(|book| book.stalls = false);
    world.peer.asked();
    let stranger = OwnedServerName::try_from("elsewhere.example").unwrap();
    let outcome = world.inbox.receive(&stranger, &world.room, vec![raw(&last)], world.late()).await.unwrap();
    assert!(outcome[0].1.is_err());
    assert_eq!(world.peer.asked(), ["missing_events"]);
    assert_eq!(world.receive(&[last]).await, [Ok(())]);
}

//! Forks, and rooms with many members.

use super::*;

#[tokio::test]
async fn a_fork_comes_out_the_same_in_whatever_order_it_is_received() {
    let mut seen = Vec::new();
    for order in [[0, 1, 2, 3], [0, 2, 1, 3], [2, 0, 3, 1], [2, 3, 0, 1]] {
        let world = World::new().await;
        let levels = json!({ "users": { world.bob.as_str(): 50 }, "events": {} });
        world.house.send(&world.anna, &world.room, "m.room.power_levels", Some(""), levels).await.unwrap();
        let (mut one, carol) = (world.line(), "@carol:far.example");
        let mut two = one.clone();
        let topic = |text: &str| json!({ "topic": text });
        let events = [
            world.make(&mut one, &world.bob, "m.room.topic", Some(""), topic("one")),
            world.join(&mut one, <&UserId>::try_from(carol).unwrap()),
            world.make(&mut two, &world.bob, "m.room.topic", Some(""), topic("two")),
            world.make(&mut two, &world.bob, "m.room.name", Some(""), json!({ "name": "Two" })),
        ];
        for at in order {
            assert_eq!(world.receive(&[events[at].clone()]).await, [Ok(())]);
            world.check_state();
        }
        let row = world.house.row(&world.room);
        assert_eq!(row.extremities.len(), 2);
        assert_eq!(row.joined, 3);
        let name = world.house.state(&world.room, "m.room.name", "").unwrap();
        assert_eq!(name["name"], "Two");
        seen.push(world.topic());
        // Both sides grow on, in one go.
        let more = [world.say(&mut one, "a"), world.say(&mut two, "b"), world.say(&mut one, "c")];
        assert!(world.receive(&more).await.iter().all(Result::is_ok));
        assert_eq!(world.house.row(&world.room).extremities.len(), 2);
        // An event that follows both sees the resolved state.
        let mut both = world.line();
        let last = world.say(&mut both, "both");
        assert_eq!(world.receive(&[last.clone()]).await, [Ok(())]);
        assert_eq!(world.row(&last).unwrap().before, row.state);
        assert_eq!(world.house.row(&world.room).extremities.len(), 1);
    }
    // The later one of two that nothing else tells apart.
    assert!(seen.iter().all(|topic| topic.as_deref() == Some("two")), "{seen:?}");
}

/// A fork that lasts as long as the far server does not hear of us, with state of every kind on both sides.
#[tokio::test]
async fn on_a_long_fork_the_state_is_what_its_ends_resolve_to() {
    let world = World::new().await;
    let levels = json!({ "users": { world.bob.as_str(): 50 } });
    world.house.send(&world.anna, &world.room, "m.room.power_levels", Some(""), levels).await.unwrap();
    let mut line = world.line();
    let user = |n: usize| OwnedUserId::try_from(format!("@m{n}:far.example")).unwrap();
    let member = |line: &mut Line, by: &UserId, of: &UserId, membership: &str| {
        world.make(line, by, "m.room.member", Some(of.as_str()), json!({ "membership": membership }))
    };
    world.house.send(&world.anna, &world.room, "m.room.topic", Some(""), json!({ "topic": "anna's" })).await.unwrap();
    world.house.say(&world.anna, &world.room, "meanwhile").await;
    let mut most = 0;
    for n in 8..80 {
        let event = match n % 8 {
            0 => world.make(&mut line, &world.bob, "m.room.name", Some(""), json!({ "name": n })),
            1 => world.make(&mut line, &world.bob, "org.example.note", Some(&n.to_string()), json!({})),
            2 => world.say(&mut line, "hello"),
            // A user who joined is kicked: this may take power away, so that everything is looked at.
            3 if n > 12 => member(&mut line, &world.bob, &user(n + 2 - 8), "leave"),
            4 => member(&mut line, &user(n - 4), &user(n - 4), "join"),
            7 if n > 40 => world.make(&mut line, &world.bob, "m.room.topic", Some(""), json!({ "topic": n })),
            _ => world.join(&mut line, &user(n)),
        };
        assert_eq!(world.receive(&[event.clone()]).await, [Ok(())]);
        assert!(!world.row(&event).unwrap().flags.soft_failed, "{n}");
        let read = world.house.read();
        let room = known(&read, world.room.as_str()).unwrap();
        assert_eq!(room.row.extremities.len(), 2);
        assert_eq!(fork::resolve_ends(&read, &room, &world.inbox.means()).unwrap(), [], "event {n}");
        most = most.max(room.row.joined);
    }
    assert!(most > 20, "{most}");
    world.check_state();
    let before = world.house.row(&world.room).state;
    world.house.say(&world.anna, &world.room, "both").await;
    let row = world.house.row(&world.room);
    assert_eq!((row.extremities.len(), row.state), (1, before));
}

/// State on the other side of a long fork is found when an event follows both.
#[tokio::test]
async fn where_a_long_fork_ends_its_sides_are_resolved() {
    let world = World::new().await;
    let levels = json!({ "users": { world.bob.as_str(): 50, "@carol:far.example": 50 } });
    world.house.send(&world.anna, &world.room, "m.room.power_levels", Some(""), levels).await.unwrap();
    let carol: &UserId = "@carol:far.example".try_into().unwrap();
    let mut line = world.line();
    let joined = world.join(&mut line, carol);
    assert_eq!(world.receive(&[joined]).await, [Ok(())]);
    let mut other = line.clone();
    // On one side carol leaves, among many; on the other she changes the topic afterwards.
    let mut events: Vec<_> =
        (0..40).map(|n| world.join(&mut line, &OwnedUserId::try_from(format!("@m{n}:far.example")).unwrap())).collect();
    events.push(world.make(&mut line, carol, "m.room.member", Some(carol.as_str()), json!({ "membership": "leave" })));
    let topic = world.make(&mut other, carol, "m.room.topic", Some(""), json!({ "topic": "carol's" }));
    assert_eq!(world.receive(&[topic]).await, [Ok(())]);
    assert!(world.receive(&events).await.iter().all(Result::is_ok));
    assert_eq!(world.house.membership(&world.room, carol), Some(Membership::Leave));
    assert_eq!(world.topic().as_deref(), Some("carol's"), "as it stood");
    world.house.say(&world.anna, &world.room, "both").await;
    assert_eq!(world.topic(), None, "she had left");
    assert_eq!(world.house.row(&world.room).extremities.len(), 1);
    world.check_state();
}

/// No event is lost because the sides of a fork have grown too different to be resolved at once, or at all.
#[tokio::test]
async fn no_fork_is_too_long() {
    let text = include_str!("../../../../memory-budgets/pi-zero-2w.toml");
    let text = text.replace("state_conflicts_max = 2000", "state_conflicts_max = 20");
    let world = World::within(Budget::from_profile(Profile::parse("small", &text).unwrap())).await;
    assert_eq!(world.inbox.means().conflicts_max, 20);
    let mut line = world.line();
    world.house.say(&world.anna, &world.room, "meanwhile").await;
    let mut other = world.line();
    let user = |side: &str, n: u32| OwnedUserId::try_from(format!("@{side}{n}:far.example")).unwrap();
    for n in 0..120 {
        let events = [world.join(&mut line, &user("a", n)), world.join(&mut other, &user("b", n))];
        assert_eq!(world.receive(&events).await, [Ok(()), Ok(())], "{n}");
    }
    assert_eq!(world.house.row(&world.room).joined, 242);
    assert_eq!(world.house.row(&world.room).extremities.len(), 2);
    // A ban looks at both sides, as far as that can be done.
    let ban = json!({ "membership": "ban" });
    let banned = user("a", 5);
    world.house.send(&world.anna, &world.room, "m.room.member", Some(banned.as_str()), ban).await.unwrap();
    assert_eq!(world.house.row(&world.room).extremities.len(), 1);
    assert_eq!(world.house.row(&world.room).joined, 241);
    // Theirs, which follows the same two extremities and tells the state.
    line.state.extend(other.state.clone());
    line.heads.extend(other.heads.clone());
    let last = world.say(&mut line, "we met");
    assert_eq!(world.receive(&[last.clone()]).await, [Ok(())]);
    assert!(!world.row(&last).unwrap().flags.soft_failed);
    assert_eq!(world.house.row(&world.room).joined, 241);
    world.check_state();
}

/// BIG-ROOMS: a change of membership costs the same in a large room as in a small one, and on a fork as without.
/// The printed figures show it.
#[tokio::test]
async fn a_thousand_changes_in_a_small_and_in_a_large_room_with_a_fork_and_without() {
    const CHANGES: usize = 1000;
    for members in [1000, 40_000] {
        let world = World::new().await;
        world.house.clock.advance(Duration::from_secs(1));
        crowd(&world, members).await;
        for forked in [false, true] {
            let mut line = world.line_of_few();
            // On a fork each change stands beside anna's branch.
            if forked {
                world.house.say(&world.anna, &world.room, "meanwhile").await;
            }
            let events: Vec<_> = (0..CHANGES)
                .map(|n| {
                    let user = OwnedUserId::try_from(format!("@new{forked}{}:far.example", n / 2)).unwrap();
                    let membership = if n % 2 == 0 { "join" } else { "leave" };
                    let content = json!({ "membership": membership });
                    world.make(&mut line, &user, "m.room.member", Some(user.as_str()), content)
                })
                .collect();
            let began = crate::base::StopWatch::start();
            for batch in events.chunks(50) {
                let outcomes = world.receive(batch).await;
                assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
            }
            println!("{members} members, forked: {forked}: {:?} a change", began.elapsed() / CHANGES as u32);
            assert_eq!(world.house.row(&world.room).extremities.len(), 1 + usize::from(forked));
        }
        assert_eq!(world.house.rooms.0.parts.budget.account("state_resolution").used(), 0);
        assert_eq!(world.house.row(&world.room).joined, u64::from(members) + 2);
    }
}

/// Puts members into the room without their events ever having been on a wire.
async fn crowd(world: &World, members: u32) {
    let version = world.line_of_few().heads[0].version();
    let num = world.house.room_num(&world.room);
    let line = world.line_of_few();
    let joins = json!({ "membership": "join" });
    let template = world.draft(&line, &world.bob, "m.room.member", Some(world.bob.as_str()), joins, &world.key);
    let text = String::from_utf8(template.to_federation().to_vec()).unwrap();
    for start in (0..members).step_by(1000) {
        let (here, text) = (world.house.rooms.here(), text.clone());
        let job = move |w: &mut Write<'_>| {
            let mut changes = Vec::new();
            for n in start..start + 1000 {
                let text = text.replace("bob", &format!("crowd{n}"));
                let id = OwnedEventId::try_from(format!("$crowd{n}")).unwrap();
                let event = Event::from_stored(version, text.into_bytes(), id).unwrap();
                let row = crate::room::append::row_of(w, num, &event)?;
                let row = Row { flags: Flags { outlier: true, ..Flags::default() }, ..row };
                let (event, row) = event::insert(w, row, event.to_federation())?;
                changes.push((row.state_key.unwrap(), Some(event)));
            }
            let mut room = crate::store::tables::room::get_of(w, num)?;
            let at = w.next_position();
            crate::room::append::current_state::set_present_state(w, &here, num, &mut room, &changes, at)?;
            crate::store::tables::room::put(w, num, &room)?;
            Ok(())
        };
        world.house.rooms.write(job).await.unwrap();
    }
}

impl World {
    /// As [`World::line`], with the state that events of others cite: no members but anna and bob.
    fn line_of_few(&self) -> Line {
        let read = self.house.read();
        let room = known(&read, self.room.as_str()).unwrap();
        let view = room.view(&read);
        let kinds = ["m.room.create", "m.room.power_levels", "m.room.join_rules"].map(|kind| (kind, ""));
        let members = [&self.anna, &self.bob].map(|user| ("m.room.member", user.as_str()));
        let mut state = State::new();
        for (kind, key) in kinds.into_iter().chain(members) {
            let event = view.event(kind, key).unwrap().unwrap();
            state.insert((kind.to_owned(), key.to_owned()), Arc::new(event));
        }
        let heads: Vec<Arc<Event>> =
            room.row.extremities.iter().map(|num| Arc::new(load(&read, room.version, *num).unwrap())).collect();
        Line { heads, state }
    }
}

/// One server wrote as much as the line carried. Events over a room's share of an hour are left out, and none of them
/// is lost: they are a gap like any other.
#[tokio::test]
async fn what_is_too_much_for_a_room_at_once_is_fetched_later() {
    let world = World::new().await;
    let mut line = world.line();
    // A room may have twice that.
    world.house.rooms.set_hourly_bytes_max(5_000);
    let events: Vec<_> = (0..40).map(|n| world.say(&mut line, &format!("{n} {}", "x".repeat(200)))).collect();
    let taken = world.receive(&events[..20]).await;
    assert_eq!(taken, vec![Ok(()); 20]);
    let (one, more) = (world.receive(&events[20..21]).await, world.receive(&events[20..30]).await);
    for refused in one.iter().chain(&more) {
        assert!(refused.as_ref().unwrap_err().to_string().contains("the event is fetched later"), "{refused:?}");
    }
    let known = world.receive(&events[..20]).await;
    assert_eq!(known, vec![Ok(()); 20], "what is here already is as it was");
    // Local users write on.
    world.house.say(&world.anna, &world.room, "unmoved").await;
    world.house.clock.advance(Duration::from_secs(3600));
    world.house.rooms.set_hourly_bytes_max(1 << 20);
    world.house.clock.advance(Duration::from_secs(3600));
    assert_eq!(world.receive(&events[39..]).await, [Ok(())]);
    assert!(events.iter().all(|event| world.row(event).is_some_and(|row| row.order.is_some())));
}

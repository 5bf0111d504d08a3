//! One homeserver, and a far server whose events it receives; the wire between them is a table.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, UserId};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::backfill::Gap;
use super::fetch::{Fetched, KeyName, Pieces};
use super::*;
use crate::budget::{Budget, Profile};
use crate::client::synced;
use crate::matrix::sign::{Key, PublicKey};
use crate::matrix::{Draft, auth};
use crate::remote::Failed;
use crate::room::state::event::load;
use crate::room::state::known;
use crate::room::state::{self, fork};
use crate::room::tests::{House, START_MS, house_within};
use crate::room::{Create, Preset};
use crate::store::tables::room::current_state;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::{Flags, Membership, Row};
use crate::store::tables::room::relation::{self, Rel};
use crate::store::tables::room::{member, state_tree};

type State = BTreeMap<(String, String), Arc<Event>>;

/// The answers of other servers.
#[derive(Clone, Default)]
struct Peer(Arc<Mutex<Book>>);

#[derive(Default)]
struct Book {
    keys: HashMap<(String, String), PublicKey>,
    events: HashMap<OwnedEventId, (Arc<Event>, State)>,
    asked: Vec<&'static str>,
    keeps_events: bool,
    /// An answer with a state stalls.
    stalls: bool,
    /// More events than this at once are too large an answer.
    most: Option<usize>,
    /// The server cannot be reached.
    is_away: bool,
}

impl Book {
    fn cited(&self, event: &Event) -> Vec<Arc<Event>> {
        event.auth_events().filter_map(|id| self.events.get(id)).map(|(event, _)| event.clone()).collect()
    }

    /// Events and all that they stand on, in the order of their ids, which is none.
    fn chain(&self, mut open: Vec<Arc<Event>>) -> Vec<Vec<u8>> {
        let mut all: BTreeMap<OwnedEventId, Arc<Event>> = BTreeMap::new();
        while let Some(event) = open.pop() {
            if !all.contains_key(event.id()) {
                open.extend(self.cited(&event));
                all.insert(event.id().to_owned(), event);
            }
        }
        all.into_values().map(|event| event.to_federation().to_vec()).collect()
    }
}

impl Peer {
    fn with<T>(&self, look: impl FnOnce(&mut Book) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    fn check_size(&self, limit: usize) -> Result<(), Failed> {
        match self.with(|book| book.most.is_some_and(|most| limit > most)) {
            true => Err(Failed::TooLarge { max_bytes: 1 }),
            false => Ok(()),
        }
    }

    fn asked(&self) -> Vec<&'static str> {
        self.with(|book| std::mem::take(&mut book.asked))
    }
}

fn raw(event: &Event) -> Box<RawValue> {
    RawValue::from_string(String::from_utf8(event.to_federation().to_vec()).unwrap()).unwrap()
}

fn absent() -> Failed {
    Failed::Status {
        status: 404,
        errcode: "M_NOT_FOUND".into(),
        message: "no".into(),
        retry_after_ms: None,
        room_version: None,
    }
}

impl Fetch for Peer {
    async fn keys(&self, _: Vec<KeyName>, _: u64) -> Result<()> {
        Ok(())
    }
    fn key(&self, server: &str, key_id: &str, _: u64) -> Option<PublicKey> {
        self.with(|book| book.keys.get(&(server.to_owned(), key_id.to_owned())).cloned())
    }
    async fn missing_events(
        &self,
        _: &ServerName,
        _: &RoomId,
        earliest: &[OwnedEventId],
        latest: &[OwnedEventId],
        limit: usize,
    ) -> Result<Fetched, Failed> {
        self.check_size(limit)?;
        self.with(|book| {
            book.asked.push("missing_events");
            if book.keeps_events {
                return Ok(Fetched::for_tests(&[]));
            }
            let (mut found, mut open) = (Vec::new(), latest.to_vec());
            let mut seen: Vec<OwnedEventId> = earliest.to_vec();
            while found.len() < limit
                && let Some(id) = open.pop()
            {
                let Some((event, _)) = book.events.get(&id) else { continue };
                for prev in event.prev_events() {
                    if !seen.iter().any(|id| id == prev) {
                        seen.push(prev.to_owned());
                        open.push(prev.to_owned());
                        found.extend(book.events.get(prev).map(|(event, _)| raw(event)));
                    }
                }
            }
            Ok(Fetched::for_tests(&found))
        })
    }
    async fn event(&self, _: &ServerName, id: &ruma::EventId) -> Result<Box<RawValue>, Failed> {
        self.with(|book| {
            book.asked.push("event");
            book.events.get(id).map(|(event, _)| raw(event)).ok_or_else(absent)
        })
    }
    async fn state_ids(&self, _: &ServerName, _: &RoomId, id: &ruma::EventId, out: Pieces) -> Result<(), Failed> {
        if self.with(|book| book.stalls) {
            return std::future::pending().await;
        }
        let ids = self.with(|book| {
            book.asked.push("state_ids");
            let ids = |(_, state): &(_, State)| {
                state.values().map(|event| json!(event.id()).to_string().into_bytes()).collect::<Vec<_>>()
            };
            book.events.get(id).map(ids)
        });
        for piece in ids.ok_or_else(absent)?.chunks(3) {
            let _ = out.send(piece.to_vec()).await;
        }
        Ok(())
    }
    async fn state(&self, _: &ServerName, _: &RoomId, id: &ruma::EventId, out: Pieces) -> Result<(), Failed> {
        let pieces = self.with(|book| {
            book.asked.push("state");
            let state = book.events.get(id).map(|(_, state)| state.clone())?;
            Some(book.chain(state.into_values().collect()))
        });
        for piece in pieces.ok_or_else(absent)?.chunks(10) {
            let _ = out.send(piece.to_vec()).await;
        }
        Ok(())
    }
    async fn event_auth(&self, _: &ServerName, _: &RoomId, id: &ruma::EventId, out: Pieces) -> Result<(), Failed> {
        let pieces = self.with(|book| {
            book.asked.push("event_auth");
            let (event, _) = book.events.get(id)?;
            Some(book.chain(book.cited(event)))
        });
        for piece in pieces.ok_or_else(absent)?.chunks(10) {
            let _ = out.send(piece.to_vec()).await;
        }
        Ok(())
    }
    async fn backfill(
        &self,
        _: &ServerName,
        _: &RoomId,
        from: &[OwnedEventId],
        limit: usize,
    ) -> Result<Fetched, Failed> {
        self.check_size(limit)?;
        self.with(|book| {
            book.asked.push("backfill");
            if book.is_away {
                return Err(Failed::Timeout);
            }
            let (mut found, mut open) = (Vec::new(), from.to_vec());
            while found.len() < limit && !open.is_empty() {
                let id = open.remove(0);
                let Some((event, _)) = book.events.get(&id) else { continue };
                open.extend(event.prev_events().map(ToOwned::to_owned));
                found.push(raw(event));
            }
            Ok(Fetched::for_tests(&found))
        })
    }
}

/// A branch of the room's history as some server sees it.
#[derive(Clone)]
struct Line {
    heads: Vec<Arc<Event>>,
    state: State,
}

struct World {
    house: House,
    inbox: Inbox<Peer>,
    peer: Peer,
    key: Key,
    anna: OwnedUserId,
    bob: OwnedUserId,
    room: OwnedRoomId,
    ts: std::cell::Cell<u64>,
}

fn far() -> OwnedServerName {
    "far.example".try_into().unwrap()
}

impl World {
    /// A public room of anna's, which bob from far away has joined.
    async fn new() -> World {
        World::within(Budget::for_tests()).await
    }

    async fn within(budget: Budget) -> World {
        World::of(budget, None).await
    }

    async fn of(budget: Budget, version: Option<&str>) -> World {
        let house = house_within(budget);
        let anna = house.user("anna").await;
        house.clock.advance(Duration::from_millis(1));
        let room_version = version.map(str::to_owned);
        let create = Create { preset: Some(Preset::Public), room_version, ..Create::default() };
        let room = house.rooms.create(&anna, create).await.unwrap();
        let (peer, key) = (Peer::default(), Key::from_seed("1", [9; 32]));
        peer.with(|book| {
            book.keys.insert(("far.example".into(), key.id().into()), key.public());
            book.keys
                .insert(("home.example".into(), house.rooms.0.parts.key.id().into()), house.rooms.0.parts.key.public());
        });
        let inbox = Inbox { rooms: house.rooms.clone(), fetch: peer.clone() };
        let bob = "@bob:far.example".try_into().unwrap();
        let ts = std::cell::Cell::new(START_MS);
        let world = World { house, inbox, peer, key, anna, bob, room, ts };
        let mut line = world.line();
        let join = world.join(&mut line, &world.bob.clone());
        assert_eq!(world.receive(&[join]).await, [Ok(())]);
        assert_eq!(world.house.membership(&world.room, &world.bob), Some(Membership::Join));
        world
    }

    /// The room's present history here, which the far server then knows too.
    fn line(&self) -> Line {
        let read = self.house.read();
        let room = known(&read, self.room.as_str()).unwrap();
        let mut state = State::new();
        current_state::list_state(&read, room.num, None, Default::default(), &mut |_, _, num| {
            let event = Arc::new(load(&read, room.version, num)?);
            state.insert((event.kind().to_owned(), event.state_key().unwrap().to_owned()), event);
            Ok(std::ops::ControlFlow::Continue(()))
        })
        .unwrap();
        let heads: Vec<Arc<Event>> =
            room.row.extremities.iter().map(|num| Arc::new(load(&read, room.version, *num).unwrap())).collect();
        self.peer.with(|book| {
            for event in state.values().chain(&heads) {
                book.events.entry(event.id().to_owned()).or_insert_with(|| (event.clone(), State::new()));
            }
        });
        Line { heads, state }
    }

    fn make(&self, line: &mut Line, sender: &UserId, kind: &str, key: Option<&str>, content: Value) -> Arc<Event> {
        let event = self.draft(line, sender, kind, key, content, &self.key);
        self.peer.with(|book| book.events.insert(event.id().to_owned(), (event.clone(), line.state.clone())));
        if let Some(key) = key {
            line.state.insert((kind.to_owned(), key.to_owned()), event.clone());
        }
        line.heads = vec![event.clone()];
        event
    }

    fn draft(
        &self,
        line: &Line,
        sender: &UserId,
        kind: &str,
        key: Option<&str>,
        content: Value,
        sign: &Key,
    ) -> Arc<Event> {
        let draft = self.unsigned(line, sender, kind, key, content);
        Arc::new(draft.build(line.heads[0].version(), &sender.server_name().to_owned(), sign).unwrap())
    }

    fn unsigned(&self, line: &Line, sender: &UserId, kind: &str, key: Option<&str>, content: Value) -> Draft {
        let version = line.heads[0].version();
        let text = crate::matrix::json::canonical_value(&content, crate::matrix::json::Mode::Lenient).unwrap();
        let text = String::from_utf8(text).unwrap();
        let types = auth::auth_types_for_event(version, kind, sender, key, &text).unwrap();
        let cited = types.iter().filter_map(|(kind, key)| line.state.get(&((*kind).to_owned(), key.to_string())));
        self.ts.set(self.ts.get() + 1);
        Draft {
            kind: kind.to_owned(),
            state_key: key.map(str::to_owned),
            sender: sender.to_owned(),
            room_id: Some(self.room.clone()),
            content,
            prev_events: line.heads.iter().map(|event| event.id().to_owned()).collect(),
            auth_events: cited.map(|event| event.id().to_owned()).collect(),
            depth: line.heads.iter().map(|event| event.depth()).max().unwrap() + 1,
            origin_server_ts: self.ts.get(),
            redacts: None,
            opaque_id: self.ts.get().to_string(),
            reference_hashes: Vec::new(),
        }
    }

    fn join(&self, line: &mut Line, user: &UserId) -> Arc<Event> {
        self.make(line, user, "m.room.member", Some(user.as_str()), json!({ "membership": "join" }))
    }

    fn say(&self, line: &mut Line, text: &str) -> Arc<Event> {
        self.make(line, &self.bob, "m.room.message", None, json!({ "msgtype": "m.text", "body": text }))
    }

    async fn receive(&self, events: &[Arc<Event>]) -> Vec<Result<(), String>> {
        self.receive_raw(events.iter().map(|event| raw(event)).collect()).await
    }

    async fn receive_raw(&self, pdus: Vec<Box<RawValue>>) -> Vec<Result<(), String>> {
        let outcomes = self.inbox.receive(&far(), &self.room, pdus, self.late()).await.unwrap();
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    /// The deadline of waiting for other servers.
    fn late(&self) -> Duration {
        self.house.clock.instant() + TIME_MAX
    }

    fn row(&self, event: &Event) -> Option<Row> {
        state::event::stored(&self.house.read(), event.id().as_str()).unwrap().map(|(_, row)| row)
    }

    fn topic(&self) -> Option<String> {
        let topic = self.house.state(&self.room, "m.room.topic", "")?;
        topic["topic"].as_str().map(str::to_owned)
    }

    /// The room's rows agree with its tree.
    fn check_state(&self) {
        let read = self.house.read();
        let room = known(&read, self.room.as_str()).unwrap();
        let mut entries = Vec::new();
        assert!(state_tree::page(&read, room.row.state.unwrap(), None, 100_000, &mut entries).unwrap());
        let mut count = 0;
        current_state::list_state(&read, room.num, None, Default::default(), &mut |_, _, num| {
            count += 1;
            let key = event::row_of(&read, num)?.state_key.unwrap();
            assert!(entries.iter().any(|entry| entry.key == key && entry.event == num));
            Ok(std::ops::ControlFlow::Continue(()))
        })
        .unwrap();
        assert_eq!(count, entries.len());
        let mut joined = 0;
        member::list(&read, room.num, Membership::Join, None, &mut |_, _| {
            joined += 1;
            Ok(std::ops::ControlFlow::Continue(()))
        })
        .unwrap();
        assert_eq!(joined, room.row.joined);
    }
}

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

/// Two slow servers had all the memory for gaps, and all other servers' transactions were put off, with the typing and
/// the keys in them, for as long as that went on.
#[tokio::test]
async fn memory_for_a_gap_is_waited_for_and_in_the_end_one_event_goes_without() {
    let text = include_str!("../../../memory-budgets/pi-zero-2w.toml").replace("wait_ms = 30000", "wait_ms = 20");
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
        clock.advance(Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let outcomes: Vec<_> = receiving.await.unwrap().into_iter().map(|(_, outcome)| outcome.is_ok()).collect();
    assert_eq!(outcomes, [false, true], "only the event with the gap");
    assert!(clock.instant() >= began + TIME_MAX);
    let receiving = receive(clock.instant() + TIME_MAX);
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(all);
    while !receiving.is_finished() {
        clock.advance(Duration::from_millis(500));
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
    tokio::time::sleep(Duration::from_millis(50)).await;
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
    let pause = || tokio::time::sleep(Duration::from_millis(50));
    pause().await;
    assert!(!waiting.is_finished() && world.peer.asked().is_empty());
    // As if one of its gaps in another room were filled now.
    let elsewhere = senders.try_take("far.example").expect("it waits for the room alone");
    drop(stalling);
    pause().await;
    assert!(!waiting.is_finished());
    let others = tokio::time::timeout(Duration::from_secs(5), gaps.lock(num)).await;
    drop(others.expect("gaps of others in this room go on"));
    drop(elsewhere);
    assert!(waiting.await.unwrap()[0].1.is_ok());
}

/// A shipped profile with so much for gaps: less than a profile may have.
fn with_gaps(name: &str, bytes: u64) -> Budget {
    let mut profile = Profile::get(name).unwrap();
    profile.accounts.iter_mut().find(|row| row.name == "gaps").unwrap().bytes = bytes;
    Budget::from_profile(profile)
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
    let reader = crate::room::Reader { user, user_id: world.anna.clone(), device: "D".to_owned() };
    for (event, shown) in [(&events[1], false), (&events[4], true)] {
        assert_eq!(world.house.rooms.event(&reader, &world.room, event.id()).await.is_ok(), shown);
    }
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
    let mut line = world.line();
    let mut old = line.clone();
    let again = json!({ "membership": "join", "displayname": "Bob" });
    let lost = world.make(&mut line, &world.bob, "m.room.member", Some(world.bob.as_str()), again);
    let between = world.say(&mut line, "between");
    old.heads = line.heads.clone();
    let last = world.say(&mut old, "as I was");
    world.peer.with(|book| {
        book.keeps_events = true;
        book.events.insert(last.id().to_owned(), (last.clone(), line.state.clone()));
        book.events.remove(lost.id());
    });
    assert!(world.receive(&[last.clone()]).await[0].is_err());
    assert!(world.row(&last).is_none());
    assert!(world.receive(&[lost, between, last.clone()]).await.iter().all(Result::is_ok));
    assert_eq!(world.row(&last).unwrap().flags, Flags::default());
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
        assert!(taken[0].as_ref().unwrap_err().contains("255 bytes") && taken[1].is_ok(), "{taken:?}");
        assert!(world.row(&long).unwrap().flags.rejected && world.row(&after).unwrap().order.is_some());
        assert!(!world.peer.asked().contains(&"state_ids"));
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
        clock.advance(Duration::from_millis(500));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(receiving.await.unwrap()[0].1.is_err());
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

#[tokio::test]
async fn forged_events_are_refused_and_tampered_ones_redacted() {
    let world = World::new().await;
    let line = world.line();
    let thief = Key::from_seed("1", [1; 32]);
    let content = json!({ "msgtype": "m.text", "body": "send me money" });
    let forged = world.draft(&line, &world.bob, "m.room.message", None, content.clone(), &thief);
    assert!(world.receive(&[forged.clone()]).await[0].as_ref().unwrap_err().contains("signature"));
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
    world.house.rooms.ban(&world.anna, &world.room, &world.bob, None).await.unwrap();
    world.check_state();
}

#[tokio::test]
async fn what_the_rules_forbid_is_kept_as_rejected() {
    let world = World::new().await;
    let mut line = world.line();
    let mut forked = line.clone();
    let levels = json!({ "users": { world.bob.as_str(): 100 } });
    let coup = world.make(&mut forked, &world.bob, "m.room.power_levels", Some(""), levels);
    assert!(world.receive(&[coup.clone()]).await[0].is_err());
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
    world.house.rooms.ban(&world.anna, &world.room, &world.bob, None).await.unwrap();
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
    world.house.rooms.ban(&world.anna, &world.room, &carol, None).await.unwrap();
    world.house.rooms.ban(&world.anna, &world.room, &dave, None).await.unwrap();
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
    assert!(outcome.as_ref().is_err_and(|why| why.contains("another event has this event ID")), "{outcome:?}");
    assert_eq!(world.row(&levels).unwrap(), row);
    assert!(world.house.state(&world.room, "m.room.power_levels", "").unwrap()["users"][world.bob.as_str()].is_null());
    world.check_state();
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
    let text = include_str!("../../../memory-budgets/pi-zero-2w.toml");
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
        assert!(refused.as_ref().unwrap_err().contains("the event is fetched later"), "{refused:?}");
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

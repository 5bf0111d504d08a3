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
use crate::room::testing::{House, START_MS, house_within};
use crate::room::{Create, Preset};
use crate::store::tables::room::current_state;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::{Flags, Membership, Row};
use crate::store::tables::room::relation::{self, Rel};
use crate::store::tables::room::{member, state_tree};

mod authorization;
mod forks;
mod gaps;
mod history;
mod order;
mod policy;
mod rows;
mod sticky;

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
    /// It gives out no auth chain of an event.
    keeps_chains: bool,
    /// It gives out so many missing events at most.
    gives: Option<usize>,
    /// An answer with a state stalls.
    stalls: bool,
    /// More events than this at once are too large an answer.
    most: Option<usize>,
    /// The server cannot be reached.
    is_away: bool,
    /// The missing events that it gives cannot be read.
    is_odd: bool,
    /// The events whose states it was asked for.
    states_of: Vec<OwnedEventId>,
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
            if book.is_odd {
                let odd = RawValue::from_string("{\"content\":{\"a\":1.5}}".to_owned()).unwrap();
                return Ok(Fetched::for_tests(&[odd]));
            }
            if book.keeps_events {
                return Ok(Fetched::for_tests(&[]));
            }
            let (mut found, mut open) = (Vec::new(), latest.to_vec());
            let mut seen: Vec<OwnedEventId> = earliest.to_vec();
            let limit = limit.min(book.gives.unwrap_or(limit));
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
            book.states_of.push(id.to_owned());
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
            if book.keeps_chains {
                return None;
            }
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
        World::in_house(house_within(budget), version).await
    }

    async fn in_house(house: House, version: Option<&str>) -> World {
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
            sticky_ms: None,
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

    async fn receive(&self, events: &[Arc<Event>]) -> Vec<Result<(), NotTaken>> {
        self.receive_raw(events.iter().map(|event| raw(event)).collect()).await
    }

    async fn receive_raw(&self, pdus: Vec<Box<RawValue>>) -> Vec<Result<(), NotTaken>> {
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

/// A shipped profile with so much for gaps: less than a profile may have.
fn with_gaps(name: &str, bytes: u64) -> Budget {
    let mut profile = Profile::get(name).unwrap();
    profile.accounts.iter_mut().find(|row| row.name == "gaps").unwrap().bytes = bytes;
    Budget::from_profile(profile)
}

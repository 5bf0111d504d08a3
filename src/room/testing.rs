//! A server's rooms for tests, and what people do in them.

use std::sync::Arc;
use std::time::Duration;

use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, UserId};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::state::event::load;
use super::state::known;
use super::*;
use crate::base::{Clock, Random};
use crate::matrix::{Event, version};
use crate::remote::{Remote, RemoteOptions};
use crate::room::handshake::out_of_band::{self, Leave};
use crate::store::tables::room::event;
use crate::store::tables::room::{self, timeline, unread};
use crate::store::tables::server::outbox::{self, Outbound};
use crate::store::tables::user::{self, Account};
use crate::store::{self, UserNum, WriteError};

/// When the simulated clock begins.
pub(crate) const START_MS: u64 = 1_700_000_000_000;

/// A server named `home.example` with a database in memory, a clock that stands still, and nobody in it yet.
pub(crate) struct House {
    pub rooms: Rooms,
    pub store: Store,
    pub feed: Feed,
    pub clock: Clock,
    pub server: OwnedServerName,
}

pub(crate) fn house() -> House {
    house_within(Budget::for_tests())
}

pub(crate) fn house_within(budget: Budget) -> House {
    house_on(budget, Store::in_memory())
}

pub(crate) fn house_on(budget: Budget, store: Store) -> House {
    house_that(budget, store, |_| {})
}

/// With other ways to other servers.
pub(crate) fn house_that(budget: Budget, store: Store, change: impl FnOnce(&mut RemoteOptions)) -> House {
    let server = OwnedServerName::try_from("home.example").unwrap();
    let key = Arc::new(sign::Key::from_seed("a_test", [7; 32]));
    let clock = Clock::simulated(START_MS);
    let feed = Feed::new(clock.clone(), &store).unwrap();
    let mut options = RemoteOptions::new(server.clone(), key.clone());
    change(&mut options);
    let remote = Remote::new(options, clock.clone(), Random::seeded(3), &budget, store.clone()).unwrap();
    let rooms = Rooms::new(Parts {
        store: store.clone(),
        feed: feed.clone(),
        clock: clock.clone(),
        random: Random::seeded(2),
        budget,
        remote,
        server: server.clone(),
        key,
        scratch: std::env::temp_dir(),
    });
    House { rooms, store, feed, clock, server }
}

impl House {
    /// Does something while the clock goes on.
    pub async fn ticking<T>(&self, work: impl Future<Output = T>) -> T {
        let ticks = async {
            loop {
                self.clock.pass(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            done = work => done,
            () = ticks => unreachable!("it ticks for ever"),
        }
    }

    /// Somebody with an account here.
    pub async fn user(&self, name: &str) -> OwnedUserId {
        let id = OwnedUserId::try_from(format!("@{name}:{}", self.server)).unwrap();
        let user_id = id.clone();
        let made = self.store.write(move |w| {
            let num = user::intern(w, user_id.as_str())?;
            user::set_account(w, num, &Account::new(START_MS, false, None))
        });
        made.await.map_err(|failed: WriteError<store::Error>| failed.into_inner()).unwrap();
        id
    }

    /// A room of the default version that anybody may join.
    pub async fn public_room(&self, creator: &UserId) -> OwnedRoomId {
        self.clock.advance(Duration::from_millis(1));
        self.rooms.create(creator, Create { preset: Some(Preset::Public), ..Create::default() }).await.unwrap()
    }

    pub async fn join(&self, user: &UserId, room: &RoomId) -> Result<()> {
        self.rooms.join(user, room, Joining::default()).await
    }

    /// Says a text.
    pub async fn say(&self, user: &UserId, room: &RoomId, text: &str) -> OwnedEventId {
        let content = json!({ "msgtype": "m.text", "body": text });
        self.send(user, room, "m.room.message", None, content).await.unwrap()
    }

    pub async fn send(
        &self,
        user: &UserId,
        room: &RoomId,
        kind: &str,
        state_key: Option<&str>,
        content: Value,
    ) -> Result<OwnedEventId> {
        self.rooms.send(user, room, sending(kind, state_key, content)).await
    }

    /// An invite from another server to a room without members here.
    pub async fn invited_outside(&self, user: &UserId, room: &RoomId, stripped: Value) {
        let stripped = stripped.to_string().into_bytes();
        out_of_band::record(&self.rooms, user, room, "11", Membership::Invite, stripped).await.unwrap();
    }

    /// Ends such an invite: by an event of the server named, or by the user with a content that nobody was told. Answers
    /// the event's id.
    pub async fn leave_outside(
        &self,
        user: &UserId,
        room: &RoomId,
        by: Option<&str>,
        event: Value,
    ) -> Option<OwnedEventId> {
        let (leave, id) = match by {
            Some(server) => {
                let (server, key) = (server.try_into().unwrap(), sign::Key::from_seed("1", [9; 32]));
                let (version, event) = (version::get("11").unwrap(), event.to_string());
                let event = crate::matrix::draft::sign_new(version, event.as_bytes(), &server, &key).unwrap();
                (Leave::of(&event), Some(event.id().to_owned()))
            }
            None => (Leave::unsent(&self.rooms, user, event.as_object().unwrap()), None),
        };
        out_of_band::end(&self.rooms, user, room, None, Some(leave)).await.unwrap();
        id
    }

    pub fn read(&self) -> Read {
        self.store.read().unwrap()
    }

    pub fn room_num(&self, room: &RoomId) -> RoomNum {
        room::num(&self.read(), room.as_str()).unwrap().unwrap()
    }

    pub fn user_num(&self, user: &UserId) -> UserNum {
        user::num(&self.read(), user.as_str()).unwrap().unwrap()
    }

    pub fn row(&self, room: &RoomId) -> crate::store::tables::room::Room {
        room::get_of(&self.read(), self.room_num(room)).unwrap()
    }

    /// An event of the store.
    pub fn event(&self, id: &ruma::EventId) -> Event {
        let read = self.read();
        let num = event::num(&read, id.as_str()).unwrap().expect("the event is stored");
        let row = event::row_of(&read, num).unwrap();
        let room = room::get_of(&read, row.room).unwrap();
        load(&read, version::get(&room.version).unwrap(), num).unwrap()
    }

    /// The content of a room's present state event.
    pub fn state(&self, room: &RoomId, kind: &str, state_key: &str) -> Option<Value> {
        let read = self.read();
        let event = known(&read, room.as_str()).unwrap().view(&read).event(kind, state_key).unwrap()?;
        Some(serde_json::from_str(event.content()).unwrap())
    }

    pub fn membership(&self, room: &RoomId, user: &UserId) -> Option<Membership> {
        let read = self.read();
        let room = known(&read, room.as_str()).unwrap();
        room.view(&read).member(user).unwrap().map(|(membership, _)| membership)
    }

    /// Types in the timeline's order, the last `max` of them.
    pub fn timeline(&self, room: &RoomId, max: usize) -> Vec<String> {
        let read = self.read();
        let row = known(&read, room.as_str()).unwrap();
        let mut kinds = Vec::new();
        timeline::backward(&read, row.num, i64::MIN, i64::MAX - 1, &mut |_, num| {
            kinds.push(load(&read, row.version, num)?.kind().to_owned());
            Ok(match kinds.len() < max {
                true => std::ops::ControlFlow::Continue(()),
                false => std::ops::ControlFlow::Break(()),
            })
        })
        .unwrap();
        kinds.reverse();
        kinds
    }

    pub fn unread(&self, room: &RoomId, user: &UserId) -> (u64, u64) {
        let unread = unread::get(&self.read(), self.user_num(user), self.room_num(room)).unwrap();
        (unread.notifications, unread.highlights)
    }

    /// What waits for other servers.
    pub fn outbox(&self) -> Vec<Outbound> {
        let mut rows = Vec::new();
        outbox::list_after(&self.read(), Position(0), &mut |_, row| {
            rows.push(row);
            Ok(std::ops::ControlFlow::Continue(()))
        })
        .unwrap();
        rows
    }
}

pub(crate) fn sending(kind: &str, state_key: Option<&str>, content: Value) -> Sending {
    Sending {
        kind: kind.to_owned(),
        state_key: state_key.map(str::to_owned),
        content: RawValue::from_string(content.to_string()).unwrap(),
        redacts: None,
        sticky_ms: None,
        ts: None,
        txn: None,
        paid: None,
    }
}

/// Whether the rules forbid it.
pub(crate) fn is_forbidden<T: std::fmt::Debug>(done: Result<T>) -> bool {
    match done {
        Err(Error::Forbidden(_)) => true,
        Err(Error::Reject(reject)) => reject.kind == crate::matrix::Kind::Auth,
        _ => false,
    }
}

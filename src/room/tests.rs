//! A house for rooms to be tested in, and what people do in it.

use std::sync::Arc;
use std::time::Duration;

use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId, UserId};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::state::event::load;
use super::state::known;
use super::*;
use crate::base::{Clock, Random};
use crate::matrix::{Event, version};
use crate::remote::{Remote, RemoteOptions};
use crate::room::create::StateDraft;
use crate::room::handshake::invite;
use crate::room::handshake::out_of_band::{self, Leave};
use crate::room::membership::profile;
use crate::room::send;
use crate::store::tables::room::event;
use crate::store::tables::room::{self, member, receipt, timeline, unread};
use crate::store::tables::room::{event_row, user_room};
use crate::store::tables::server::outbox::{self, Outbound};
use crate::store::tables::user::{self, Account, Standing};
use crate::store::{self, Get, UserNum, WriteError};

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
    let feed = Feed::new(clock.clone());
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
    /// Somebody with an account here.
    pub async fn user(&self, name: &str) -> OwnedUserId {
        let id = OwnedUserId::try_from(format!("@{name}:{}", self.server)).unwrap();
        let user_id = id.clone();
        let made = self.store.write(move |w| {
            let num = user::intern(w, user_id.as_str())?;
            let account =
                Account { created_ms: START_MS, standing: Standing::Active, admin: false, password_hash: None };
            user::set_account(w, num, &account)
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
        txn: None,
    }
}

fn is_forbidden<T: std::fmt::Debug>(done: Result<T>) -> bool {
    match done {
        Err(Error::Forbidden(_)) => true,
        Err(Error::Reject(reject)) => reject.kind == crate::matrix::Kind::Auth,
        _ => false,
    }
}

#[tokio::test]
async fn a_room_of_every_version_can_be_made_and_spoken_in() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let old = Create { room_version: Some("1".to_owned()), ..Create::default() };
    let refused = house.rooms.create(&anna, old).await;
    assert!(
        matches!(refused, Err(Error::Bad { errcode: "M_UNSUPPORTED_ROOM_VERSION", .. })),
        "it could not be resolved"
    );
    for version in version::offered() {
        for preset in [Preset::Private, Preset::TrustedPrivate, Preset::Public] {
            house.clock.advance(Duration::from_millis(1));
            let create = Create {
                preset: Some(preset),
                room_version: Some(version.id.to_owned()),
                name: Some("Parlour".to_owned()),
                topic: Some("Tea".to_owned()),
                invite: vec![ben.clone()],
                is_direct: true,
                ..Create::default()
            };
            let room = house.rooms.create(&anna, create).await.unwrap();
            assert_eq!(room.as_str().contains(':'), version.id != "12");
            assert_eq!(house.membership(&room, &ben), Some(Membership::Invite));
            house.join(&ben, &room).await.unwrap();
            house.say(&ben, &room, "hello").await;
            let may = house.send(&ben, &room, "m.room.name", Some(""), json!({ "name": "Ben's" })).await;
            assert_eq!(may.is_ok(), preset == Preset::TrustedPrivate, "version {} {preset:?}", version.id);
            let row = house.row(&room);
            assert_eq!((row.joined, row.invited, row.extremities.len()), (2, 0, 1));
            let order = house.timeline(&room, 100);
            assert_eq!(&order[..4], ["m.room.create", "m.room.member", "m.room.power_levels", "m.room.join_rules"]);
        }
    }
    assert!(house.outbox().is_empty(), "nobody else is in these rooms");
    let unknown = Create { room_version: Some("99".to_owned()), ..Create::default() };
    let refused = house.rooms.create(&anna, unknown).await;
    assert!(matches!(refused, Err(Error::Bad { errcode: "M_UNSUPPORTED_ROOM_VERSION", .. })));
}

#[tokio::test]
async fn what_an_app_asks_of_a_new_room_is_in_it() {
    let house = house();
    let anna = house.user("anna").await;
    let mut levels = Map::new();
    levels.insert("events_default".into(), 10.into());
    let create = Create {
        public: true,
        room_version: Some("11".to_owned()),
        room_alias_name: Some("parlour".to_owned()),
        initial_state: vec![
            StateDraft {
                kind: "m.room.encryption".into(),
                state_key: String::new(),
                content: json!({ "algorithm": "m.megolm.v1.aes-sha2" }),
            },
            StateDraft {
                kind: "m.room.history_visibility".into(),
                state_key: String::new(),
                content: json!({ "history_visibility": "joined" }),
            },
        ],
        power_level_content_override: levels,
        creation_content: json!({ "m.federate": false }).as_object().unwrap().clone(),
        ..Create::default()
    };
    let room = house.rooms.create(&anna, create.clone()).await.unwrap();
    assert_eq!(house.state(&room, "m.room.create", "").unwrap()["m.federate"], false);
    assert_eq!(house.state(&room, "m.room.power_levels", "").unwrap()["events_default"], 10);
    assert_eq!(house.state(&room, "m.room.history_visibility", "").unwrap()["history_visibility"], "joined");
    assert!(house.state(&room, "m.room.encryption", "").is_some());
    assert_eq!(house.state(&room, "m.room.canonical_alias", "").unwrap()["alias"], "#parlour:home.example");
    let alias = <&ruma::RoomAliasId>::try_from("#parlour:home.example").unwrap();
    let resolved = house.rooms.resolve_here(alias).await.unwrap();
    assert_eq!((resolved.room_id, resolved.servers), (room, vec![house.server.clone()]));
    let page = house.rooms.public_rooms(PublicQuery::default()).await.unwrap();
    assert_eq!((page.chunk.len(), page.total_room_count_estimate), (1, 1));
    let shown: Value = serde_json::from_str(page.chunk[0].get()).unwrap();
    assert_eq!(shown["canonical_alias"], "#parlour:home.example");
    let again = house.rooms.create(&anna, create).await;
    assert!(matches!(again, Err(Error::Taken)), "the alias is in use: {again:?}");
}

#[tokio::test]
async fn a_repeated_send_has_the_first_ones_answer_and_state_that_is_so_already_stays() {
    let house = house();
    let anna = house.user("anna").await;
    let room = house.public_room(&anna).await;
    let mut message = sending("m.room.message", None, json!({ "body": "x" }));
    message.txn = Some(("PHONE".to_owned(), "1".to_owned()));
    let first = house.rooms.send(&anna, &room, message.clone()).await.unwrap();
    assert_eq!(house.rooms.send(&anna, &room, message.clone()).await.unwrap(), first);
    message.txn = Some(("LAPTOP".to_owned(), "1".to_owned()));
    assert_ne!(house.rooms.send(&anna, &room, message).await.unwrap(), first);
    // An id used again on another path is another request: a redaction was taken for the message and not done.
    let mut redaction = sending("m.room.redaction", None, json!({}));
    redaction.txn = Some(("PHONE".to_owned(), "1".to_owned()));
    redaction.redacts = Some(first.clone());
    let redacted = house.rooms.send(&anna, &room, redaction.clone()).await.unwrap();
    assert_ne!(redacted, first);
    assert_eq!(house.rooms.send(&anna, &room, redaction).await.unwrap(), redacted);
    let name = json!({ "name": "Parlour" });
    let one = house.send(&anna, &room, "m.room.name", Some(""), name.clone()).await.unwrap();
    assert_eq!(house.send(&anna, &room, "m.room.name", Some(""), name).await.unwrap(), one);
}

#[tokio::test]
async fn events_that_may_not_be_sent_leave_nothing() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let room = house.public_room(&anna).await;
    let before = house.row(&room);
    assert!(is_forbidden(house.send(&ben, &room, "m.room.message", None, json!({})).await));
    let again = house.send(&anna, &room, "m.room.create", Some(""), json!({})).await;
    assert!(matches!(again, Err(Error::Bad { errcode: "M_BAD_JSON", .. })));
    let large = json!({ "body": "x".repeat(66_000) });
    assert!(matches!(house.send(&anna, &room, "m.room.message", None, large).await, Err(Error::TooLarge)));
    let kind = "x".repeat(256);
    assert!(matches!(house.send(&anna, &room, &kind, None, json!({})).await, Err(Error::TooLarge)));
    let float = json!({ "body": 1.5 });
    assert!(matches!(house.send(&anna, &room, "m.room.message", None, float).await, Err(Error::Reject(_))));
    let alias = json!({ "alias": "#nowhere:home.example" });
    let refused = house.send(&anna, &room, "m.room.canonical_alias", Some(""), alias).await;
    assert!(matches!(refused, Err(Error::Bad { errcode: "M_BAD_ALIAS", .. })));
    let nowhere = RoomId::parse("!nowhere:home.example").unwrap();
    assert!(is_forbidden(house.send(&anna, &nowhere, "m.room.message", None, json!({})).await));
    assert_eq!(house.row(&room), before);
}

#[tokio::test]
async fn an_empty_alias_is_none_and_public_rooms_say_nothing_of_guests() {
    let house = house();
    let anna = house.user("anna").await;
    let room = house.public_room(&anna).await;
    house.send(&anna, &room, "m.room.canonical_alias", Some(""), json!({ "alias": "" })).await.unwrap();
    assert_eq!(house.state(&room, "m.room.guest_access", ""), None);
}

#[tokio::test]
async fn coming_and_going() {
    let house = house();
    let (anna, ben, cleo) = (house.user("anna").await, house.user("ben").await, house.user("cleo").await);
    let rooms = &house.rooms;
    house.clock.advance(Duration::from_millis(1));
    let room = rooms.create(&anna, Create::default()).await.unwrap();
    assert!(is_forbidden(house.join(&ben, &room).await), "private");
    rooms.invite(&anna, &room, &ben, Some("do".to_owned())).await.unwrap();
    assert_eq!(house.state(&room, "m.room.member", ben.as_str()).unwrap()["reason"], "do");
    house.join(&ben, &room).await.unwrap();
    house.join(&ben, &room).await.unwrap();
    assert_eq!(rooms.joined_rooms(&ben).await.unwrap(), [room.clone()]);
    assert!(is_forbidden(rooms.kick(&ben, &room, &anna, None).await));
    assert!(is_forbidden(rooms.kick(&anna, &room, &cleo, None).await), "not in the room");
    rooms.kick(&anna, &room, &ben, None).await.unwrap();
    assert!(is_forbidden(house.send(&ben, &room, "m.room.message", None, json!({})).await));
    rooms.ban(&anna, &room, &ben, Some("enough".to_owned())).await.unwrap();
    assert!(is_forbidden(rooms.invite(&anna, &room, &ben, None).await));
    rooms.unban(&anna, &room, &ben, None).await.unwrap();
    assert!(is_forbidden(rooms.unban(&anna, &room, &ben, None).await));
    assert!(is_forbidden(rooms.leave(&cleo, &room, None).await));
    rooms.leave(&anna, &room, None).await.unwrap();
    rooms.leave(&anna, &room, None).await.unwrap();
    assert_eq!(house.row(&room).status, crate::store::tables::room::Status::Left);
    rooms.forget(&anna, &room).await.unwrap();
    let mine = user_room::mine(&house.read(), house.user_num(&anna), house.room_num(&room)).unwrap().unwrap();
    assert!(mine.forgotten && mine.left_at.is_some() && mine.before == Some(Membership::Join));
}

#[tokio::test]
async fn knocking_and_rooms_that_let_people_in_from_others() {
    let house = house();
    let (anna, ben, cleo) = (house.user("anna").await, house.user("ben").await, house.user("cleo").await);
    let rooms = &house.rooms;
    let lounge = house.public_room(&anna).await;
    let room = house.public_room(&anna).await;
    let rules = json!({ "join_rule": "knock_restricted", "allow": [
        { "type": "m.room_membership", "room_id": lounge }, { "type": "else" }, 3,
    ] });
    house.send(&anna, &room, "m.room.join_rules", Some(""), rules).await.unwrap();
    assert!(is_forbidden(house.join(&ben, &room).await), "not in the lounge");
    rooms.knock(&ben, &room, Vec::new(), Some("please".to_owned())).await.unwrap();
    assert_eq!(house.membership(&room, &ben), Some(Membership::Knock));
    rooms.leave(&ben, &room, None).await.unwrap();
    house.join(&cleo, &lounge).await.unwrap();
    house.join(&cleo, &room).await.unwrap();
    let content = house.state(&room, "m.room.member", cleo.as_str()).unwrap();
    assert_eq!(content["join_authorised_via_users_server"], anna.as_str());
}

#[tokio::test]
async fn redactions_take_content_out_whichever_comes_first() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    for version in ["2", "6", "11", "12"] {
        house.clock.advance(Duration::from_millis(1));
        let create =
            Create { preset: Some(Preset::Public), room_version: Some(version.to_owned()), ..Create::default() };
        let room = house.rooms.create(&anna, create).await.unwrap();
        house.join(&ben, &room).await.unwrap();
        let said = house.say(&anna, &room, "secret").await;
        let bens = house.say(&ben, &room, "mine").await;
        let redaction = |target: &OwnedEventId| Sending {
            redacts: Some(target.clone()),
            ..sending("m.room.redaction", None, json!({ "reason": "oops" }))
        };
        assert!(is_forbidden(house.rooms.send(&ben, &room, redaction(&said)).await), "{version}");
        house.rooms.send(&ben, &room, redaction(&bens)).await.unwrap();
        let by = house.rooms.send(&anna, &room, redaction(&said)).await.unwrap();
        for gone in [&said, &bens] {
            assert_eq!(house.event(gone).content(), "{}");
        }
        let read = house.read();
        let row = event::row_of(&read, event::num(&read, said.as_str()).unwrap().unwrap()).unwrap();
        assert!(row.flags.redacted && row.redacted_by == event::num(&read, by.as_str()).unwrap());
        assert_eq!(house.event(&by).redacts(), Some(&*said));
    }
}

/// A moderator who reads of an event elsewhere need not wait until it is here.
#[tokio::test]
async fn a_moderator_redacts_what_has_not_come_yet() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let room = house.public_room(&anna).await;
    house.join(&ben, &room).await.unwrap();
    let to_come = OwnedEventId::try_from(format!("${}", "A".repeat(43))).unwrap();
    let redaction =
        || Sending { redacts: Some(to_come.clone()), ..sending("m.room.redaction", None, json!({ "reason": "spam" })) };
    assert!(matches!(house.rooms.send(&ben, &room, redaction()).await, Err(Error::NotFound)));
    let by = house.rooms.send(&anna, &room, redaction()).await.unwrap();
    assert_eq!(house.event(&by).redacts(), Some(&*to_come));
}

/// Nothing that was sent from here was taken by anybody any more, and nobody here could change that.
#[tokio::test]
async fn nobody_here_locks_this_server_out() {
    let house = house();
    let anna = house.user("anna").await;
    let room = house.public_room(&anna).await;
    let refused = |done: Result<OwnedEventId>, why: &str| match done {
        Err(error) => assert!(error.to_string().contains(why), "{error}"),
        Ok(_) => panic!("it was sent"),
    };
    let set = async |acl: Value| house.send(&anna, &room, "m.room.server_acl", Some(""), acl).await;
    for acl in [
        json!({}),
        json!({ "allow": ["elsewhere.example"] }),
        json!({ "allow": ["*"], "deny": ["home.*"] }),
        json!({ "allow": "*" }),
    ] {
        refused(set(acl).await, "denies home.example");
    }
    let only = set(json!({ "allow": ["*"], "deny": ["bad.example"] })).await.unwrap();
    let redaction = Sending { redacts: Some(only), ..sending("m.room.redaction", None, json!({})) };
    refused(house.rooms.send(&anna, &room, redaction).await, "deny every server");
    let acl = StateDraft {
        kind: "m.room.server_acl".into(),
        state_key: String::new(),
        content: json!({ "allow": ["elsewhere.example"] }),
    };
    let create = Create { initial_state: vec![acl], ..Create::default() };
    assert!(house.rooms.create(&anna, create).await.is_err());
}

#[tokio::test]
async fn a_redaction_waits_for_its_target() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let room = house.public_room(&anna).await;
    house.join(&ben, &room).await.unwrap();
    let read = house.read();
    let known_room = known(&read, room.as_str()).unwrap();
    let new = |kind: &str, content: Value, redacts| send::New {
        kind: kind.to_owned(),
        state_key: None,
        sender: anna.clone(),
        content,
        redacts,
    };
    let target =
        send::build(&house.rooms, &read, &known_room, new("m.room.message", json!({ "body": "x" }), None)).unwrap();
    let id = target.event.id().to_owned();
    let redaction =
        send::build(&house.rooms, &read, &known_room, new("m.room.redaction", json!({}), Some(id.clone()))).unwrap();
    // Somebody without the right to had theirs pushed in front of hers, which was forgotten.
    let other = send::New { sender: ben.clone(), ..new("m.room.redaction", json!({}), Some(id.clone())) };
    let other = send::build(&house.rooms, &read, &known_room, other).unwrap();
    let by = redaction.event.id().to_owned();
    let guard = house.rooms.lock(known_room.num).await;
    for event in [redaction.event, other.event, target.event] {
        house.rooms.append_locked(&guard, append::new_event::Append::next(known_room.num, event)).await.unwrap();
    }
    assert_eq!(house.event(&id).content(), "{}");
    let read = house.read();
    let row = event::row_of(&read, event::num(&read, id.as_str()).unwrap().unwrap()).unwrap();
    assert_eq!(row.redacted_by, event::num(&read, by.as_str()).unwrap());
    assert_eq!(house.row(&room).extremities.len(), 3, "all follow the same event");
    drop(guard);
    house.say(&anna, &room, "merge").await;
    assert_eq!(house.row(&room).extremities.len(), 1);
}

#[tokio::test]
async fn unread_counts_follow_push_rules_receipts_and_ones_own_words() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let room = house.public_room(&anna).await;
    house.join(&ben, &room).await.unwrap();
    house.say(&anna, &room, "one").await;
    let two = house.say(&anna, &room, "two").await;
    let mention = json!({ "msgtype": "m.text", "body": "ben", "m.mentions": { "user_ids": [ben] } });
    house.send(&anna, &room, "m.room.message", None, mention).await.unwrap();
    assert_eq!(house.unread(&room, &ben), (3, 1));
    let marker = |id: &OwnedEventId| Marker { kind: "m.read".to_owned(), event_id: id.clone(), thread: None };
    house.rooms.set_receipt(&ben, &room, marker(&two)).await.unwrap();
    assert_eq!(house.unread(&room, &ben), (1, 1));
    house.say(&ben, &room, "I am here").await;
    assert_eq!(house.unread(&room, &ben), (0, 0));
    assert_eq!(house.unread(&room, &anna), (1, 0));
}

#[tokio::test]
async fn receipts_only_go_forward_and_reach_other_servers() {
    let house = house();
    let anna = house.user("anna").await;
    let room = house.public_room(&anna).await;
    let (one, two) = (house.say(&anna, &room, "one").await, house.say(&anna, &room, "two").await);
    let num = house.room_num(&room);
    house.store.write(move |w| member::count_server(w, num, "away.example", 1, Position(1))).await.unwrap();
    let marker = |kind: &str, id: &OwnedEventId| Marker { kind: kind.to_owned(), event_id: id.clone(), thread: None };
    for (kind, id) in [("m.read", &two), ("m.read", &one), ("m.read.private", &two), ("m.fully_read", &one)] {
        house.rooms.set_receipt(&anna, &room, marker(kind, id)).await.unwrap();
    }
    let whose = |kind| receipt::Whose { user: house.user_num(&anna), kind, thread: String::new() };
    let read = receipt::get(&house.read(), num, &whose(receipt::Kind::Read)).unwrap().unwrap();
    assert_eq!(read.event_id, two);
    let outbox = house.outbox();
    let [Outbound::RoomEdu { json, .. }] = outbox.as_slice() else { panic!("one receipt goes out: {outbox:?}") };
    let edu: Value = serde_json::from_slice(json).unwrap();
    assert_eq!(edu["content"][room.as_str()]["m.read"][anna.as_str()]["event_ids"], json!([two]));
    assert!(house.rooms.set_receipt(&anna, &room, marker("m.nothing", &one)).await.is_err());
    let strange = ruma::EventId::parse("$nowhere").unwrap();
    assert!(matches!(house.rooms.set_receipt(&anna, &room, marker("m.read", &strange)).await, Err(Error::NotFound)));
}

#[tokio::test]
async fn typing_ends_by_itself() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let room = house.public_room(&anna).await;
    house.join(&ben, &room).await.unwrap();
    let (num, typing) = (house.room_num(&room), &house.rooms.0.typing);
    let start = typing.serial();
    house.rooms.set_typing(&anna, &room, Some(Duration::from_secs(30))).await.unwrap();
    assert_eq!(typing.changed(num, start), Some(vec![house.user_num(&anna)]));
    let seen = typing.serial();
    house.rooms.set_typing(&anna, &room, Some(Duration::from_secs(30))).await.unwrap();
    assert_eq!(typing.changed(num, seen), None, "still typing is no news");
    let waiter = house.feed.register(house.user_num(&ben));
    // The watcher may still be on its way to sleep: the clock moves until it woke.
    for _ in 0..100 {
        house.clock.advance(Duration::from_secs(31));
        tokio::time::sleep(Duration::from_millis(2)).await;
        if typing.serial() != seen {
            break;
        }
    }
    assert_eq!(typing.changed(num, seen), Some(Vec::new()));
    assert!(waiter.wait(house.clock.instant() + Duration::from_secs(1)).await, "who is in the room is woken");
    assert!(is_forbidden(house.rooms.set_typing(&house.user("cleo").await, &room, None).await));
}

/// Other servers forget who types: Synapse after a minute. They were told once, and never that it had ended by itself.
#[tokio::test]
async fn other_servers_hear_again_who_types_and_when_it_ends() {
    let house = house();
    let anna = house.user("anna").await;
    let room = house.public_room(&anna).await;
    let num = house.room_num(&room);
    house.store.write(move |w| member::count_server(w, num, "away.example", 1, Position(1))).await.unwrap();
    house.rooms.set_typing(&anna, &room, Some(Duration::from_secs(60))).await.unwrap();
    let told = || {
        let typing = |row: Outbound| match row {
            Outbound::RoomEdu { json, .. } => {
                serde_json::from_slice::<Value>(&json).unwrap()["content"]["typing"].as_bool()
            }
            _ => None,
        };
        house.outbox().into_iter().filter_map(typing).collect::<Vec<_>>()
    };
    assert_eq!(told(), [true]);
    for _ in 0..400 {
        house.clock.advance(Duration::from_secs(1));
        tokio::time::sleep(Duration::from_millis(2)).await;
        if told().contains(&false) {
            break;
        }
    }
    assert_eq!(told(), [true, true, true, false]);
}

/// Each receipt of a message was a commit of its own, and threads were any text, as many as somebody liked.
#[tokio::test]
async fn receipts_of_other_servers_are_bounded() {
    let house = house();
    let anna = house.user("anna").await;
    let room = house.public_room(&anna).await;
    let num = house.room_num(&room);
    let bob: OwnedUserId = "@bob:away.example".try_into().unwrap();
    let name = bob.clone();
    let joined = house.store.write(move |w| {
        let bob = user::intern(w, name.as_str())?;
        member::set(w, num, bob, None, Some((event_row::Membership::Join, crate::store::EventNum(1))))
    });
    joined.await.map_err(|failed: WriteError<store::Error>| failed.into_inner()).unwrap();
    let mut threads = Vec::new();
    for n in 0..110 {
        threads.push(house.say(&anna, &room, &n.to_string()).await);
    }
    let last = threads.last().unwrap().clone();
    let receive = async |threads: &[&str]| {
        for thread in threads {
            let receipt = json!({ "data": { "ts": 1, "thread_id": thread }, "event_ids": [last] });
            let content = json!({ room.as_str(): { "m.read": { bob.as_str(): receipt } } });
            let raw = serde_json::value::to_raw_value(&content).unwrap();
            house.rooms.receipt_received(bob.server_name(), &raw).await.unwrap();
        }
    };
    let kept = || {
        let mut kept = Vec::new();
        receipt::list_newest(&house.read(), num, Position(0), Position(i64::MAX as u64), &mut |whose, _| {
            kept.push(whose.thread);
            Ok(std::ops::ControlFlow::Continue(()))
        })
        .unwrap();
        kept
    };
    receive(&["any text", "$nothing", "main"]).await;
    assert_eq!(kept(), ["main"]);
    // A receipt may overtake its event, which another server sends.
    let coming = async |ts: u64| {
        let receipt = json!({ "data": { "ts": ts, "thread_id": "main" }, "event_ids": [format!("$coming{ts}")] });
        let content = json!({ room.as_str(): { "m.read": { bob.as_str(): receipt } } });
        let raw = serde_json::value::to_raw_value(&content).unwrap();
        house.rooms.receipt_received(bob.server_name(), &raw).await.unwrap();
        let whose = receipt::Whose { user: house.user_num(&bob), kind: receipt::Kind::Read, thread: "main".into() };
        receipt::get(&house.read(), num, &whose).unwrap().unwrap().event_id
    };
    assert_eq!(coming(1).await, last.as_str(), "it is no newer");
    assert_eq!((coming(3).await, coming(2).await), ("$coming3".to_owned(), "$coming3".to_owned()));
    receive(&threads.iter().map(|id| id.as_str()).collect::<Vec<_>>()).await;
    let kept = kept();
    assert_eq!(kept.len(), 100);
    assert!(kept.contains(&last.to_string()) && !kept.contains(&"main".to_owned()), "the oldest went");
    let marker =
        |thread: &str| Marker { kind: "m.read".into(), event_id: last.clone(), thread: Some(thread.to_owned()) };
    assert!(house.rooms.set_receipt(&anna, &room, marker("any text")).await.is_err());
    assert!(house.rooms.set_receipt(&anna, &room, marker("")).await.is_err(), "a thread has a name");
    let fully_read = Marker { kind: "m.fully_read".into(), ..marker("main") };
    assert!(house.rooms.set_receipt(&anna, &room, fully_read).await.is_err(), "that is for the whole room");
    // A thread from before our time in the room is one that our people's apps show.
    assert!(house.rooms.set_receipt(&anna, &room, marker("$older")).await.is_err(), "nobody spoke of it");
    let answer = json!({ "body": "a", "m.relates_to": { "rel_type": "m.thread", "event_id": "$older" } });
    house.send(&anna, &room, "m.room.message", None, answer).await.unwrap();
    house.rooms.set_receipt(&anna, &room, marker("$older")).await.unwrap();
}

#[tokio::test]
async fn aliases_and_the_public_list() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let rooms = &house.rooms;
    let mut made = Vec::new();
    for name in ["Cellar", "Attic", "Kitchen"] {
        let room = house.public_room(&anna).await;
        house.send(&anna, &room, "m.room.name", Some(""), json!({ "name": name })).await.unwrap();
        rooms.set_public(&anna, &room, true, false).await.unwrap();
        made.push(room);
    }
    assert!(is_forbidden(rooms.set_public(&ben, &made[0], false, false).await));
    house.join(&ben, &made[1]).await.unwrap();
    let name = |one: &RawValue| serde_json::from_str::<Value>(one.get()).unwrap()["name"].clone();
    let names = |page: &PublicPage| page.chunk.iter().map(|one| name(one)).collect::<Vec<_>>();
    let query = PublicQuery { limit: Some(2), ..PublicQuery::default() };
    let first = rooms.public_rooms(query.clone()).await.unwrap();
    assert_eq!(names(&first), ["Attic", "Cellar"], "most members first");
    assert!(first.prev_batch.is_none());
    let second = rooms.public_rooms(PublicQuery { since: first.next_batch.clone(), ..query.clone() }).await.unwrap();
    assert_eq!((names(&second), second.next_batch), (vec![json!("Kitchen")], None));
    let back = rooms.public_rooms(PublicQuery { since: second.prev_batch, ..query }).await.unwrap();
    assert_eq!(names(&back), names(&first));
    let search = PublicQuery { search: Some("KITCH".to_owned()), ..PublicQuery::default() };
    assert_eq!(names(&rooms.public_rooms(search).await.unwrap()), ["Kitchen"]);
    let alias = ruma::RoomAliasId::parse("#a:home.example").unwrap();
    rooms.set_alias(&ben, &alias, &made[1]).await.unwrap();
    assert!(matches!(rooms.set_alias(&anna, &alias, &made[0]).await, Err(Error::Taken)));
    assert!(is_forbidden(rooms.set_alias(&ben, &ruma::RoomAliasId::parse("#b:home.example").unwrap(), &made[0]).await));
    assert_eq!(rooms.aliases(&anna, &made[1]).await.unwrap(), ["#a:home.example"]);
    rooms.remove_alias(&anna, &alias, false).await.unwrap();
    assert!(matches!(rooms.resolve_here(&alias).await, Err(Error::NotFound)));
    let listed = rooms.overview(None, 2).await.unwrap();
    assert!(listed[0].events >= 6 && listed[0].bytes > 1000 && listed[0].name.as_deref() == Some("Cellar"));
}

#[tokio::test]
async fn an_invite_from_outside_is_kept_and_dropped() {
    let house = house();
    let anna = house.user("anna").await;
    let room = RoomId::parse("!far:away.example").unwrap();
    let stripped = b"[{}]".to_vec();
    out_of_band::record(&house.rooms, &anna, &room, "11", Membership::Invite, stripped.clone()).await.unwrap();
    let (user, num) = (house.user_num(&anna), house.room_num(&room));
    let mine = user_room::mine(&house.read(), user, num).unwrap().unwrap();
    assert!(mine.outside && mine.membership == Membership::Invite);
    assert_eq!(user_room::stripped(&house.read(), user, num).unwrap(), Some(stripped));
    out_of_band::end(&house.rooms, &anna, &room, None, None).await.unwrap();
    let mine = user_room::mine(&house.read(), user, num).unwrap().unwrap();
    assert!(mine.membership == Membership::Leave && user_room::stripped(&house.read(), user, num).unwrap().is_none());
}

/// Rooms nobody here is in were never forgotten again, and anybody may invite anybody to as many as he likes.
#[tokio::test]
async fn invites_from_outside_are_bounded() {
    let house = house();
    let anna = house.user("anna").await;
    let invite = async |n: usize, server: &str| {
        let room: OwnedRoomId = format!("!r{n}:{server}").try_into().unwrap();
        let sender = format!("@bob:{server}");
        let own = json!([{ "type": "m.room.member", "state_key": anna, "sender": sender, "content": {} }]);
        let stripped = serde_json::to_vec(&own).unwrap();
        out_of_band::record(&house.rooms, &anna, &room, "11", Membership::Invite, stripped).await.unwrap();
    };
    let known = |membership: Membership| {
        let (read, mut rooms) = (house.read(), Vec::new());
        user_room::list_mine(&read, house.user_num(&anna), None, &mut |num, mine| {
            if mine.membership == membership {
                rooms.push(room::get_of(&read, num)?.id);
            }
            Ok(std::ops::ControlFlow::Continue(()))
        })
        .unwrap();
        rooms
    };
    for n in 0..3 {
        invite(n, "friend.example").await;
    }
    for n in 0..1000 {
        invite(n, "busy.example").await;
    }
    let (open, over) = (known(Membership::Invite), known(Membership::Leave));
    assert!((125..=150).contains(&open.len()), "{}", open.len());
    assert!(over.len() <= 225, "{}", over.len());
    assert!((0..3).all(|n| open.contains(&format!("!r{n}:friend.example"))), "the one in a thousand stays");
    assert!(open.contains(&"!r999:busy.example".to_owned()));
    let mut rooms = 0;
    room::list(&house.read(), &mut |_, _| {
        rooms += 1;
        Ok(std::ops::ControlFlow::Continue(()))
    })
    .unwrap();
    assert_eq!(rooms, open.len() + over.len(), "nothing of a room stays behind the last invite");
    // A room that was forgotten may be heard of again.
    invite(0, "busy.example").await;
    assert!(known(Membership::Invite).contains(&"!r0:busy.example".to_owned()));
}

/// Any server that knew a room's id put its own invite in the place of a friend's, and any that the invite named ended it.
#[tokio::test]
async fn an_invite_is_its_senders() {
    let house = house();
    let anna = house.user("anna").await;
    let room = RoomId::parse("!far:evil.example").unwrap();
    let invite = async |sender: &str, name: &str| {
        let own = json!([
            { "type": "m.room.name", "state_key": "", "sender": "@x:evil.example", "content": { "name": name } },
            { "type": "m.room.member", "state_key": anna, "sender": sender, "content": {} },
        ]);
        let stripped = serde_json::to_vec(&own).unwrap();
        out_of_band::record(&house.rooms, &anna, &room, "11", Membership::Invite, stripped).await.unwrap();
    };
    let shown = || {
        let (user, num) = (house.user_num(&anna), house.room_num(&room));
        let stripped = user_room::stripped(&house.read(), user, num).unwrap()?;
        Some(serde_json::from_slice::<Value>(&stripped).unwrap()[0]["content"]["name"].as_str().unwrap().to_owned())
    };
    invite("@bob:friend.example", "first").await;
    invite("@eve:evil.example", "forged").await;
    assert_eq!(shown().as_deref(), Some("first"));
    invite("@rob:friend.example", "again").await;
    assert_eq!(shown().as_deref(), Some("again"), "its server may");
    // The room's own server is named in what came with it.
    let leave = async |sender: &str| {
        let server = sender.split_once(':').unwrap().1;
        let (server, key) = (OwnedServerName::try_from(server).unwrap(), sign::Key::from_seed("1", [9; 32]));
        let draft = json!({
            "type": "m.room.member", "state_key": anna, "sender": sender, "room_id": room,
            "content": { "membership": "leave" }, "prev_events": ["$x"], "auth_events": ["$y"], "depth": 9,
            "origin_server_ts": START_MS,
        });
        let version = version::get("11").unwrap();
        let event = crate::matrix::draft::sign_new(version, draft.to_string().as_bytes(), &server, &key).unwrap();
        let event = RawValue::from_string(String::from_utf8(event.to_federation().to_vec()).unwrap()).unwrap();
        invite::end(&house.rooms, &server, &room, event).await
    };
    for other in ["@eve:evil.example", "@bob:friend.example", "@eve:nowhere.example"] {
        assert!(matches!(leave(other).await, Err(Error::NotFound)), "{other}");
    }
    let by_its_sender = leave("@rob:friend.example").await;
    assert!(!matches!(by_its_sender, Err(Error::NotFound)), "refused for its signature, which nobody can check here");
    let by = |id: &str| Some(OwnedUserId::try_from(id).unwrap());
    out_of_band::end(&house.rooms, &anna, &room, by("@eve:evil.example"), None).await.unwrap();
    assert_eq!(shown().as_deref(), Some("again"));
    out_of_band::end(&house.rooms, &anna, &room, by("@rob:friend.example"), None).await.unwrap();
    assert_eq!(shown(), None);
    // Over, it stands in nobody's way; and who was asked ends what they like.
    invite("@eve:evil.example", "new").await;
    out_of_band::end(&house.rooms, &anna, &room, None, None).await.unwrap();
    assert_eq!(shown(), None);
}

/// Two hundred invites were for everybody: a stranger with many names took them all.
#[tokio::test]
async fn strangers_push_out_no_invite_of_a_server_known_here() {
    let house = house();
    let anna = house.user("anna").await;
    let ours = house.public_room(&anna).await;
    let num = house.room_num(&ours);
    let shared = house.store.write(move |w| member::put_server(w, num, "known.example", 1, Position(1)));
    shared.await.map_err(|failed: WriteError<store::Error>| failed.into_inner()).unwrap();
    let invite = async |n: usize, server: &str| {
        let room: OwnedRoomId = format!("!r{n}:{server}").try_into().unwrap();
        let own =
            json!([{ "type": "m.room.member", "state_key": anna, "sender": format!("@b:{server}"), "content": {} }]);
        let stripped = serde_json::to_vec(&own).unwrap();
        out_of_band::record(&house.rooms, &anna, &room, "11", Membership::Invite, stripped).await.unwrap();
    };
    for n in 0..40 {
        invite(n, "known.example").await;
    }
    invite(0, "once.example").await;
    for n in 0..300 {
        invite(n, &format!("s{n}.evil.example")).await;
    }
    let mut open = Vec::new();
    let read = house.read();
    user_room::list_mine(&read, house.user_num(&anna), None, &mut |num, mine| {
        if mine.membership == Membership::Invite {
            open.push(room::get_of(&read, num)?.id);
        }
        Ok(std::ops::ControlFlow::Continue(()))
    })
    .unwrap();
    assert!((0..40).all(|n| open.contains(&format!("!r{n}:known.example"))));
    assert!(open.contains(&"!r0:once.example".to_owned()) && open.contains(&"!r299:s299.evil.example".to_owned()));
    assert!(!open.contains(&"!r0:s0.evil.example".to_owned()) && open.len() <= 200, "{}", open.len());
}

/// The specification's list of what an ACL governs has the invites in it; they were signed all the same.
#[tokio::test]
async fn an_invite_of_a_denied_server_is_refused() {
    let house = house();
    let anna = house.user("anna").await;
    let room = house.public_room(&anna).await;
    let acl = json!({ "allow": ["*"], "deny": ["bad.example"], "allow_ip_literals": false });
    house.send(&anna, &room, "m.room.server_acl", Some(""), acl).await.unwrap();
    let denied = async |server: &str| {
        let (server, key) = (OwnedServerName::try_from(server).unwrap(), sign::Key::from_seed("1", [9; 32]));
        let draft = json!({
            "type": "m.room.member", "state_key": anna, "sender": format!("@bob:{server}"), "room_id": room,
            "content": { "membership": "invite" }, "prev_events": ["$x"], "auth_events": ["$y"], "depth": 9,
            "origin_server_ts": START_MS,
        });
        let version = version::get(&house.row(&room).version).unwrap();
        let event = crate::matrix::draft::sign_new(version, draft.to_string().as_bytes(), &server, &key).unwrap();
        let event = RawValue::from_string(String::from_utf8(event.to_federation().to_vec()).unwrap()).unwrap();
        let invitation = Invitation { room: room.clone(), version: version.id.to_owned(), event, stripped: Vec::new() };
        let refused = house.rooms.receive_invite(&server, None, invitation).await;
        matches!(refused, Err(Error::Forbidden(why)) if why.contains("server ACL"))
    };
    assert!(denied("bad.example").await);
    assert!(!denied("good.example").await, "refused for its signature, which nobody can check here");
}

#[tokio::test]
async fn an_event_built_before_others_came_follows_what_it_was_built_upon() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let room = house.public_room(&anna).await;
    let invite = send::New::state("m.room.member", ben.as_str(), &anna, json!({ "membership": "invite" }));
    let built = invite::build_for_others(&house.rooms, &room, invite).await.unwrap();
    house.say(&anna, &room, "meanwhile").await;
    invite::append_built(&house.rooms, built).await.unwrap();
    assert_eq!(house.membership(&room, &ben), Some(Membership::Invite));
    assert_eq!(house.row(&room).extremities.len(), 2);
    let after = house.say(&anna, &room, "after").await;
    assert_eq!(house.event(&after).prev_events().count(), 2);
}

#[tokio::test]
async fn an_upgraded_room_goes_on_elsewhere() {
    let house = house();
    let (anna, ben, cleo) = (house.user("anna").await, house.user("ben").await, house.user("cleo").await);
    let rooms = &house.rooms;
    for (from, to) in [("10", "11"), ("11", "12"), ("12", "12")] {
        house.clock.advance(Duration::from_millis(1));
        let create = Create {
            preset: Some(Preset::Public),
            public: true,
            room_version: Some(from.to_owned()),
            room_alias_name: Some(format!("parlour{from}")),
            topic: Some("Tea".to_owned()),
            creation_content: json!({ "type": "org.example.kind" }).as_object().unwrap().clone(),
            ..Create::default()
        };
        let old = rooms.create(&anna, create).await.unwrap();
        house.join(&ben, &old).await.unwrap();
        rooms.ban(&anna, &old, &cleo, Some("noise".to_owned())).await.unwrap();
        assert!(is_forbidden(rooms.upgrade(&ben, &old, to, Vec::new()).await));
        house.clock.advance(Duration::from_millis(1));
        let new = rooms.upgrade(&anna, &old, to, Vec::new()).await.unwrap();
        let created = house.state(&new, "m.room.create", "").unwrap();
        assert_eq!((&created["predecessor"]["room_id"], &created["type"]), (&json!(old), &json!("org.example.kind")));
        assert_eq!(created["predecessor"].get("event_id").is_some(), to != "12");
        assert_eq!(
            (rooms.predecessor(&new).await.unwrap(), rooms.predecessor(&old).await.unwrap()),
            (Some(old.clone()), None)
        );
        assert_eq!(house.state(&old, "m.room.tombstone", "").unwrap()["replacement_room"], new.as_str());
        assert_eq!(house.state(&new, "m.room.topic", "").unwrap()["topic"], "Tea");
        assert_eq!(house.membership(&new, &cleo), Some(Membership::Ban));
        assert!(
            is_forbidden(house.send(&ben, &old, "m.room.message", None, json!({})).await),
            "the old room is closed"
        );
        let alias = ruma::RoomAliasId::parse(format!("#parlour{from}:home.example")).unwrap();
        assert_eq!(rooms.resolve_here(&alias).await.unwrap().room_id, new);
        assert_eq!(house.state(&new, "m.room.canonical_alias", "").unwrap()["alias"], alias.as_str());
        assert!(rooms.is_public(&new).await.unwrap() && !rooms.is_public(&old).await.unwrap());
        house.join(&ben, &new).await.unwrap();
        rooms.remove_alias(&anna, &alias, false).await.unwrap();
        assert_eq!(house.state(&new, "m.room.canonical_alias", "").unwrap(), json!({}), "it is not named any more");
        let levels = json!({ "users": { &anna: 100 } });
        let named = house.send(&anna, &new, "m.room.power_levels", Some(""), levels).await;
        assert_eq!(matches!(named, Err(Error::Bad { errcode: "M_BAD_JSON", .. })), to == "12", "{named:?}");
    }
}

/// Old creators got level 100 in a new room in which others had 50.
#[tokio::test]
async fn no_level_is_made_up_for_creators_who_are_none_any_more() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let create = Create {
        preset: Some(Preset::Public),
        room_version: Some("12".to_owned()),
        power_level_content_override: json!({ "users": { &ben: 100 }, "events": { "m.room.tombstone": 100 } })
            .as_object()
            .unwrap()
            .clone(),
        ..Create::default()
    };
    let old = house.rooms.create(&anna, create).await.unwrap();
    house.join(&ben, &old).await.unwrap();
    let new = house.rooms.upgrade(&ben, &old, "12", Vec::new()).await.unwrap();
    assert_eq!(house.state(&new, "m.room.power_levels", "").unwrap()["users"], json!({}));
}

/// A change of name walked through a list of rooms made before, and joined whoever had left one of them, or was put out,
/// again.
#[tokio::test]
async fn a_new_name_brings_nobody_back() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let [stays, left, put_out] =
        [house.public_room(&anna).await, house.public_room(&anna).await, house.public_room(&anna).await];
    for room in [&stays, &left, &put_out] {
        house.join(&ben, room).await.unwrap();
    }
    house.rooms.leave(&ben, &left, None).await.unwrap();
    house.rooms.kick(&anna, &put_out, &ben, None).await.unwrap();
    let num = house.user_num(&ben);
    let named = move |w: &mut Write<'_>| user::set_profile_field(w, num, "displayname", Some(&json!("Benjamin")));
    house.store.write(named).await.map_err(|failed: WriteError<store::Error>| failed.into_inner()).unwrap();
    for room in [&stays, &left, &put_out] {
        profile::renew_in(&house.rooms, &ben, room).await.unwrap();
    }
    assert_eq!(house.state(&stays, "m.room.member", ben.as_str()).unwrap()["displayname"], "Benjamin");
    for room in [&left, &put_out] {
        assert_eq!(house.membership(room, &ben), Some(Membership::Leave));
        assert!(house.state(room, "m.room.member", ben.as_str()).unwrap().get("displayname").is_none());
    }
    // Of a room nobody here is in any more there is nothing to say, and nobody is asked.
    house.rooms.leave(&anna, &stays, None).await.unwrap();
    house.rooms.leave(&ben, &stays, None).await.unwrap();
    profile::renew_in(&house.rooms, &ben, &stays).await.unwrap();
    assert_eq!(house.membership(&stays, &ben), Some(Membership::Leave));
}

/// "Is ben in that room?" was answered to anybody who asked to put him out.
#[tokio::test]
async fn strangers_do_not_learn_who_is_in_a_room() {
    let house = house();
    let (anna, ben, carl) = (house.user("anna").await, house.user("ben").await, house.user("carl").await);
    let room = house.public_room(&anna).await;
    let why = async |done: Result<()>| done.unwrap_err().to_string();
    let refused = why(house.rooms.kick(&carl, &room, &ben, None).await).await;
    house.join(&ben, &room).await.unwrap();
    assert_eq!(why(house.rooms.kick(&carl, &room, &ben, None).await).await, refused);
    house.rooms.ban(&anna, &room, &ben, None).await.unwrap();
    assert_eq!(why(house.rooms.unban(&carl, &room, &ben, None).await).await, refused);
    house.rooms.unban(&anna, &room, &ben, None).await.unwrap();
}

/// Whoever was in the room has the messages anyway; nobody else is given what an erased user said.
#[tokio::test]
async fn who_came_later_is_given_the_events_of_an_erased_user_redacted() {
    let house = house();
    let (anna, ben, cleo) = (house.user("anna").await, house.user("ben").await, house.user("cleo").await);
    let room = house.public_room(&anna).await;
    house.join(&ben, &room).await.unwrap();
    let said = house.say(&anna, &room, "mine").await;
    house.join(&cleo, &room).await.unwrap();
    let num = house.room_num(&room);
    let (then, now) = (Position(1), house.read().position().unwrap());
    for (server, since) in [("early.example", then), ("late.example", now)] {
        house.store.write(move |w| member::count_server(w, num, server, 1, since)).await.unwrap();
    }
    let seen = async |user: &UserId| {
        let reader = Reader { user: house.user_num(user), user_id: user.to_owned(), device: "D".to_owned() };
        let event: Value = serde_json::from_slice(&house.rooms.event(&reader, &room, &said).await.unwrap()).unwrap();
        event["content"]["body"] == "mine"
    };
    let given = |server: &str| {
        let (read, server) = (house.read(), OwnedServerName::try_from(server).unwrap());
        let row = event::row_of(&read, event::num(&read, said.as_str()).unwrap().unwrap()).unwrap();
        let room = known(&read, room.as_str()).unwrap();
        super::state::server_access::may_see_event(&read, &room, &row, &server).unwrap()
    };
    assert!(seen(&ben).await && seen(&cleo).await && given("early.example") && given("late.example"));
    let who = house.user_num(&anna);
    house.store.write(move |w| user::set_erased(w, who)).await.unwrap();
    assert!(seen(&ben).await && given("early.example"));
    assert!(!seen(&cleo).await && !given("late.example"));
}

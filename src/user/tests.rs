//! Rules about keys and sessions that no request shows, tested at the lowest floor.

use std::sync::Arc;
use std::time::Duration;

use ruma::{OwnedServerName, OwnedUserId};
use serde_json::{Value, json};

use super::*;
use crate::matrix::sign::{self, Key};
use crate::remote::RemoteOptions;
use crate::store::tables::room::event_row::{Flags, Id, Kind, Membership, Row};
use crate::store::tables::room::{self, Status, current_state, event, member, state_tree, user_room};
use crate::store::tables::user;
use crate::store::{BodyNum, RoomNum, Write};
use crate::user::device::keys;

const HOME: [u8; 4] = [127, 0, 0, 1];

pub(super) struct Town {
    pub(super) users: Users,
    pub(super) clock: Clock,
}

pub(super) fn town() -> Town {
    town_within(Budget::for_tests())
}

pub(super) fn town_within(budget: Budget) -> Town {
    town_that(budget, |_| {})
}

pub(super) fn town_that(budget: Budget, change: impl FnOnce(&mut RemoteOptions)) -> Town {
    town_on(Store::in_memory(), budget, change)
}

pub(super) fn town_on(store: Store, budget: Budget, change: impl FnOnce(&mut RemoteOptions)) -> Town {
    let server: OwnedServerName = "here.test".try_into().unwrap();
    let (clock, random) = (Clock::simulated(1_000_000), Random::seeded(1));
    let mut options = RemoteOptions::new(server.clone(), Arc::new(Key::from_seed("1", [1; 32])));
    change(&mut options);
    let remote = Remote::new(options, clock.clone(), random.clone(), &budget, store.clone()).unwrap();
    let feed = Feed::new(clock.clone(), &store).unwrap();
    let users = Users::new(Parts { store, feed, clock: clock.clone(), random, budget, remote, server });
    Town { users, clock }
}

impl Town {
    pub(super) async fn person(&self, name: &str) -> Requester {
        let new = New { localpart: name.to_owned(), ..New::default() };
        let user_id = self.users.create(new).await.unwrap();
        let login = Login { device_id: Some("DEVICE".to_owned()), ..Login::default() };
        let session = self.users.login(&user_id, login).await.unwrap();
        self.users.requester(&session.access_token, [127, 0, 0, 1].into()).await.unwrap()
    }
}

/// A room with one member of another server, called `name`.
pub(super) fn room_with(w: &mut Write<'_>, id: &str, far: &str, name: &str, rule: &str) -> Result<RoomNum, Error> {
    let num = room::intern(w, id, "12")?;
    let user = user::intern(w, far)?;
    let member = ("m.room.member", far, json!({ "membership": "join", "displayname": name }));
    for (kind, key, content) in [member, ("m.room.join_rules", "", json!({ "join_rule": rule }))] {
        let state_key = state_tree::intern_key(w, kind, key)?;
        let row = Row {
            room: num,
            body: BodyNum(0),
            id: Id::Named(format!("${kind}{id}")),
            kind: Kind::of(kind),
            state_key: Some(state_key),
            sender: user,
            member: (kind == "m.room.member").then_some((Membership::Join, user)),
            flags: Flags::default(),
            depth: 1,
            origin_server_ts: 1,
            auth: Vec::new(),
            before: None,
            order: Some(1),
            redacted_by: None,
        };
        let event = json!({ "auth_events": [], "content": content, "depth": 1, "origin_server_ts": 1,
            "prev_events": [], "room_id": id, "sender": far, "state_key": key, "type": kind });
        let (event, _) = event::insert(w, row, event.to_string().as_bytes())?;
        current_state::set_state(w, num, Kind::of(kind), state_key, Some(event))?;
        if kind == "m.room.member" {
            member::set(w, num, user, None, Some((Membership::Join, event)))?;
        }
    }
    let mut row = room::get_of(w, num)?;
    (row.status, row.joined) = (Status::Resident, 2);
    room::put(w, num, &row)?;
    Ok(num)
}

/// A cross-signing key of a user, signed by `by` when given.
fn cross_key(user: &Requester, usage: &str, key: &Key, by: Option<&Key>) -> Value {
    let public = key.public().to_base64();
    let bare = json!({
        "user_id": user.user_id, "usage": [usage], "keys": { format!("ed25519:{public}"): public },
    });
    match by {
        Some(by) => signed(bare, &user.user_id, &by.public().to_base64(), by),
        None => bare,
    }
}

fn signed(mut object: Value, by_id: &OwnedUserId, key_name: &str, by: &Key) -> Value {
    let message = sign::json_message(object.to_string().as_bytes()).unwrap();
    object["signatures"][by_id.as_str()][format!("ed25519:{key_name}")] = by.sign_base64(&message).into();
    object
}

fn keys(value: Value) -> CrossKeys {
    serde_json::from_value(value).unwrap()
}

async fn queried(town: &Town, viewer: &Requester, user: &Requester) -> Value {
    let wanted = [(user.user_id.clone(), Vec::new())].into();
    let answered = town.users.keys_query(Viewer::Local(viewer.user_num), wanted, None).await.unwrap();
    serde_json::from_slice(&answered.into_json().0).unwrap()
}

/// A session that was in use was found without reading, so its end has to be heard of.
#[tokio::test]
async fn a_token_that_has_ended_is_refused_at_once() {
    let town = town();
    let anna = town.person("anna").await;
    let login = async |device: &str| {
        let login = Login { device_id: Some(device.to_owned()), ..Login::default() };
        town.users.login(&anna.user_id, login).await.unwrap().access_token
    };
    let ask = async |token: &str| town.users.requester(token, [127, 0, 0, 1].into()).await;
    let is_over = async |token: &str| matches!(ask(token).await, Err(Error::UnknownToken));
    let (phone, tablet, laptop) = (login("PHONE").await, login("TABLET").await, login("LAPTOP").await);
    for token in [&phone, &tablet, &laptop, &phone] {
        ask(token).await.unwrap();
    }
    let again = login("PHONE").await;
    assert!(is_over(&phone).await, "the device has another token");
    let on_phone = ask(&again).await.unwrap();
    assert!(!on_phone.is_admin);
    town.users.set_admin(&anna.user_id, true).await.unwrap();
    assert!(ask(&again).await.unwrap().is_admin);
    town.users.logout(&on_phone).await.unwrap();
    assert!(is_over(&again).await && ask(&tablet).await.is_ok());
    town.users.logout_all(&anna.user_id, Some("LAPTOP")).await.unwrap();
    assert!(is_over(&tablet).await && ask(&laptop).await.is_ok());
    town.users.close(&anna.user_id, false).await.unwrap();
    assert!(is_over(&laptop).await);
}

#[tokio::test]
async fn only_replacing_cross_signing_keys_has_to_be_proved() {
    let town = town();
    let alice = town.person("alice").await;
    let (master, own, other) =
        (Key::from_seed("1", [2; 32]), Key::from_seed("1", [3; 32]), Key::from_seed("1", [4; 32]));
    let upload = |master: &Key| {
        keys(json!({
            "master_key": cross_key(&alice, "master", master, None),
            "self_signing_key": cross_key(&alice, "self_signing", &own, Some(master)),
        }))
    };
    assert_eq!(town.users.would_upload(&alice, &upload(&master)).await.unwrap(), CrossUpload::First);
    town.users.upload_cross_keys(&alice, upload(&master), false).await.unwrap();
    assert_eq!(town.users.would_upload(&alice, &upload(&master)).await.unwrap(), CrossUpload::Same);
    assert_eq!(town.users.would_upload(&alice, &upload(&other)).await.unwrap(), CrossUpload::Replaces);
    // Who asked when there were none yet, and comes after others were uploaded, has to prove it too.
    assert!(!town.users.upload_cross_keys(&alice, upload(&other), false).await.unwrap());
    assert_eq!(town.users.would_upload(&alice, &upload(&master)).await.unwrap(), CrossUpload::Same);

    let foreign = json!({ "self_signing_key": cross_key(&alice, "self_signing", &own, Some(&other)) });
    let refused = town.users.upload_cross_keys(&alice, keys(foreign), true).await.unwrap_err();
    assert!(matches!(refused, Error::Bad { errcode: "M_INVALID_SIGNATURE", .. }), "{refused}");
    let wrong_use = json!({ "master_key": cross_key(&alice, "self_signing", &other, None) });
    assert!(town.users.upload_cross_keys(&alice, keys(wrong_use), true).await.is_err());
}

#[tokio::test]
async fn signatures_are_checked_and_shown_to_whom_they_concern() {
    let town = town();
    let (alice, bob, carol) = (town.person("alice").await, town.person("bob").await, town.person("carol").await);
    let (alices, bobs, bobs_user) =
        (Key::from_seed("1", [2; 32]), Key::from_seed("1", [3; 32]), Key::from_seed("1", [4; 32]));
    let master = cross_key(&alice, "master", &alices, None);
    town.users.upload_cross_keys(&alice, keys(json!({ "master_key": &master })), false).await.unwrap();
    let of_bob = json!({
        "master_key": cross_key(&bob, "master", &bobs, None),
        "user_signing_key": cross_key(&bob, "user_signing", &bobs_user, Some(&bobs)),
    });
    town.users.upload_cross_keys(&bob, keys(of_bob), false).await.unwrap();

    let (id, by) = (alices.public().to_base64(), bobs_user.public().to_base64());
    let upload = async |object: Value| {
        let signed = [(alice.user_id.clone(), [(id.clone(), object)].into())].into();
        town.users.upload_signatures(&bob, signed).await.unwrap()
    };
    let good = signed(master.clone(), &bob.user_id, &by, &bobs_user);
    let wrong = signed(master.clone(), &bob.user_id, &by, &alices);
    assert_eq!(upload(wrong).await[alice.user_id.as_str()][&id]["errcode"], "M_INVALID_SIGNATURE");
    assert_eq!(upload(good).await, json!({}));

    let place = format!("/master_keys/{}/signatures/{}", alice.user_id, bob.user_id);
    assert!(queried(&town, &bob, &alice).await.pointer(&place).is_some());
    assert!(queried(&town, &carol, &alice).await.pointer(&place).is_none(), "whom one trusts is one's own affair");
    let bobs_keys = queried(&town, &alice, &bob).await;
    assert_eq!(bobs_keys["user_signing_keys"], json!({}), "user-signing keys are shown to their user only");
}

/// Master keys of a remote user can be made up: the rows for those that a local user signed stayed for ever.
#[tokio::test]
async fn few_keys_of_somebody_elsewhere_can_be_signed() {
    let town = town();
    let alice = town.person("alice").await;
    let (master, own) = (Key::from_seed("1", [2; 32]), Key::from_seed("1", [3; 32]));
    let upload = json!({
        "master_key": cross_key(&alice, "master", &master, None),
        "user_signing_key": cross_key(&alice, "user_signing", &own, Some(&master)),
    });
    town.users.upload_cross_keys(&alice, keys(upload), false).await.unwrap();
    let far: OwnedUserId = "@far:far.test".try_into().unwrap();
    let by = own.public().to_base64();
    let made_up = |n: u8| {
        let public = Key::from_seed("1", [n; 32]).public().to_base64();
        let bare = json!({ "user_id": far, "usage": ["master"], "keys": { format!("ed25519:{public}"): public } });
        (public, signed(bare, &alice.user_id, &by, &own))
    };
    let upload = async |numbers: std::ops::Range<u8>| {
        let signed = [(far.clone(), numbers.map(made_up).collect())].into();
        let failures = town.users.upload_signatures(&alice, signed).await.unwrap();
        failures.get(far.as_str()).and_then(Value::as_object).map_or(0, |failed| failed.len())
    };
    assert_eq!(upload(10..40).await, 0);
    assert_eq!(upload(40..50).await, 8, "there is place for two more");
    assert_eq!(upload(10..20).await, 0, "what is signed may be signed again");
}

/// The log of device changes was walked from its beginning for every 128 users in the answer.
#[tokio::test]
async fn all_who_changed_devices_are_told_of_once() {
    use crate::base::Chunks;
    use crate::store::tables::room::event_row::Membership;
    use crate::store::tables::room::{self, member};
    use crate::store::tables::user::{self, device};
    let town = town();
    let alice = town.person("alice").await;
    let who = alice.user_num;
    let joined = town.users.write(move |w| {
        let room = room::intern(w, "!room:here.test", "12")?;
        let mine = user_room::Mine::joined(Position(1));
        user_room::set_mine(w, who, room, &mine)?;
        for n in 0..600 {
            let far = user::intern(w, &format!("@{n}:far.test"))?;
            // Every second one shares the room.
            if n % 2 == 0 {
                member::set(w, room, far, None, Some((Membership::Join, crate::store::EventNum(1))))?;
            }
            device::changed(w, far)?;
        }
        Ok(())
    });
    joined.await.unwrap();
    let read = Arc::new(town.users.0.parts.store.read().unwrap());
    let now = crate::store::Get::position(&*read).unwrap();
    let own = town.users.own(read, &alice, Some(Position(0)), now, now);
    assert!(own.any(|_| true).unwrap());
    let mut told = crate::base::written(move |pen| async move {
        pen.text("{");
        pen.text("\"changed\":[");
        own.write_changed_devices(&pen).await?;
        pen.text("],\"left\":[");
        own.write_left_devices(&pen).await?;
        pen.text("]");
        pen.text("}");
        Ok(())
    });
    let mut out = Vec::new();
    while told.next(&mut out).unwrap() {}
    let told: Value = serde_json::from_slice(&out).unwrap();
    let mut changed: Vec<_> = told["changed"].as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect();
    changed.sort_unstable();
    let all = changed.len();
    changed.dedup();
    assert_eq!((all, changed.len(), told["left"].as_array().unwrap().len()), (300, 300, 0));
}

/// To-device messages for remote users stayed in the outbox for ever on a server without federation.
#[tokio::test]
async fn nothing_is_kept_for_others_where_there_are_none() {
    use crate::store::tables::server::outbox;
    for (enabled, kept) in [(true, 1), (false, 0)] {
        let town = town_that(Budget::for_tests(), |options| options.enabled = enabled);
        let alice = town.person("alice").await;
        let messages = serde_json::from_value(json!({ "@far:far.test": { "*": { "secret": 1 } } })).unwrap();
        town.users.send_to_device(&alice, "com.example", Txn::whole("1"), messages).await.unwrap();
        let mut rows = 0;
        outbox::list_after(&town.users.0.parts.store.read().unwrap(), Position(0), &mut |_, _| {
            rows += 1;
            Ok(std::ops::ControlFlow::Continue(()))
        })
        .unwrap();
        assert_eq!(rows, kept);
    }
}

#[tokio::test]
async fn a_session_of_stages_is_for_one_operation_one_user_and_a_while() {
    let town = town();
    let (alice, bob) = (town.person("alice").await, town.person("bob").await);
    let stages: &[Stage] = &[Stage::Dummy, Stage::RegistrationToken];
    let tokens = ["good".to_owned()];
    let demand = |operation, user| UiaRequest { operation, target: Target::default(), user, stages, tokens: &tokens };
    let session = |progress: Progress| match progress {
        Progress::Ask(ask) | Progress::Wrong(ask) => {
            (ask["session"].as_str().unwrap().to_owned(), ask["completed"].clone())
        }
        Progress::Done => panic!("nothing has been proved"),
    };
    let dummy = |session: &str| json!({ "type": "m.login.dummy", "session": session });
    let token = |session: &str| json!({ "type": "m.login.registration_token", "token": "good", "session": session });
    let authenticate = async |demand: UiaRequest<'_>, auth: Option<Value>| {
        town.users.authenticate(demand, HOME.into(), auth.as_ref()).await.unwrap()
    };

    let one = &*alice.user_id;
    let (id, _) = session(authenticate(demand("x", Some(one)), None).await);
    let (same, completed) = session(authenticate(demand("x", Some(one)), Some(dummy(&id))).await);
    assert_eq!((&same, completed), (&id, json!(["m.login.dummy"])));
    // A session that was begun to delete one device deleted any other.
    let elsewhere = UiaRequest { target: Target::of(["DEVICE"]), ..demand("x", Some(one)) };
    for other in [demand("y", Some(one)), demand("x", Some(&*bob.user_id)), demand("x", None), elsewhere] {
        let (new, completed) = session(authenticate(other, Some(token(&id))).await);
        assert_eq!((new != id, completed), (true, json!([])));
    }
    assert_eq!(authenticate(demand("x", Some(one)), Some(token(&id))).await, Progress::Done);
    assert_eq!(
        authenticate(demand("x", Some(one)), Some(token(&id))).await,
        Progress::Done,
        "the answer may have been lost"
    );
    let (new, _) = session(authenticate(demand("x", Some(one)), None).await);

    session(authenticate(demand("x", Some(one)), Some(dummy(&new))).await);
    town.clock.advance(Duration::from_secs(3600));
    let (late, completed) = session(authenticate(demand("x", Some(one)), Some(token(&new))).await);
    assert_eq!((late != new, completed), (true, json!([])));
}

/// A hundred clients a second that began to register ended all sessions: local users had no time to change a password,
/// and other clients none to register.
#[tokio::test]
async fn strangers_end_no_sessions_but_their_own() {
    let town = town();
    let (alice, bob) = (town.person("alice").await, town.person("bob").await);
    let demand =
        |user| UiaRequest { operation: "x", target: Target::default(), user, stages: &[Stage::Dummy], tokens: &[] };
    let begin =
        async |user, from: [u8; 4]| match town.users.authenticate(demand(user), from.into(), None).await.unwrap() {
            Progress::Ask(ask) => ask["session"].as_str().unwrap().to_owned(),
            Progress::Done | Progress::Wrong(_) => panic!("nothing has been proved"),
        };
    let (bobs, own) = (begin(Some(&*bob.user_id), HOME).await, begin(Some(&*alice.user_id), HOME).await);
    let (first, other) = (begin(None, [192, 0, 2, 1]).await, begin(None, [203, 0, 113, 1]).await);
    for n in 0..=255 {
        begin(None, [192, 0, 2, n]).await;
        begin(Some(&*bob.user_id), HOME).await;
    }
    let dummy = |session: &str| json!({ "type": "m.login.dummy", "session": session });
    let authenticate = async |user, session: &str| {
        town.users.authenticate(demand(user), HOME.into(), Some(&dummy(session))).await.unwrap()
    };
    assert!(matches!(authenticate(None, &first).await, Progress::Ask(_)));
    assert_eq!(authenticate(None, &other).await, Progress::Done);
    assert!(matches!(authenticate(Some(&*bob.user_id), &bobs).await, Progress::Ask(_)));
    assert!(matches!(authenticate(None, &own).await, Progress::Ask(_)), "it is of somebody else");
    assert_eq!(authenticate(Some(&*alice.user_id), &own).await, Progress::Done);
    assert!(town.users.0.sessions.lock().len() <= 512);
}

#[tokio::test]
async fn proving_to_be_somebody_else_is_refused_outright() {
    let town = town();
    let (alice, bob) = (town.person("alice").await, town.person("bob").await);
    let (user, target) = (Some(&*alice.user_id), Target::default());
    let demand = || UiaRequest { operation: "x", target, user, stages: &[Stage::Password], tokens: &[] };
    for (named, refused) in [(&bob.user_id, true), (&alice.user_id, false)] {
        let auth = json!({ "type": "m.login.password", "password": "wrong",
            "identifier": { "type": "m.id.user", "user": named } });
        let proved = town.users.authenticate(demand(), HOME.into(), Some(&auth)).await;
        assert_eq!(matches!(proved, Err(Error::Forbidden(_))), refused, "{proved:?}");
    }
}

#[tokio::test]
async fn a_device_has_a_handful_of_fallback_keys() {
    let town = town();
    let alice = town.person("alice").await;
    let upload = |algorithms: std::ops::Range<usize>| {
        let keys: serde_json::Map<String, Value> =
            algorithms.map(|n| (format!("made_up_{n}:A"), json!({ "key": "abc", "signatures": {} }))).collect();
        let upload = serde_json::from_value(json!({ "fallback_keys": keys })).unwrap();
        town.users.upload_keys(&alice, upload)
    };
    upload(0..keys::FALLBACK_KEYS_MAX).await.unwrap();
    upload(1..3).await.unwrap();
    assert!(matches!(upload(15..17).await, Err(Error::TooLarge(_))));
    assert!(matches!(upload(100..100_000 / 100).await, Err(Error::TooLarge(_))));
}

/// A profile field of 64 KiB of small objects took six megabytes in memory for every request of the profile.
#[tokio::test]
async fn what_is_kept_is_small_when_it_is_read_too() {
    let town = town();
    let alice = town.person("alice").await;
    let set = async |value: Value| town.users.set_profile_field(&alice.user_id, "org.x", Some(value)).await;
    assert!(matches!(set(json!(vec![json!({ "": 0 }); 1000])).await, Err(Error::Bad { .. })));
    set(json!("x".repeat(60_000))).await.unwrap();
    let keep = async |kind: &str, value: Value| {
        let content = serde_json::value::to_raw_value(&value).unwrap();
        town.users.set_account_data(alice.user_num, None, kind, content).await
    };
    let many = json!({ "tags": { "x": { "x": vec![json!({ "": 0 }); 1000] } } });
    assert!(matches!(keep("m.tag", many.clone()).await, Err(Error::TooLarge(_))));
    keep("org.x", many).await.unwrap();
    keep("m.direct", json!({ "@bob:far.test": vec!["!abcdefghijklmnopqr:far.test"; 2000] })).await.unwrap();
    assert!(matches!(keep("org.x", json!({ "x": "x".repeat(64 << 10) })).await, Err(Error::TooLarge(_))));
}

#[tokio::test]
async fn a_user_with_many_devices_loses_the_one_not_heard_of_for_longest() {
    let town = town();
    let alice = town.person("alice").await;
    for n in 0..device::DEVICES_MAX {
        town.clock.advance(Duration::from_secs(1));
        let login = Login { device_id: Some(format!("D{n}")), ..Login::default() };
        town.users.login(&alice.user_id, login).await.unwrap();
    }
    assert_eq!(town.users.devices(alice.user_num).await.unwrap().len(), device::DEVICES_MAX);
    let gone = town.users.device(alice.user_num, "DEVICE").await.unwrap_err();
    assert!(matches!(gone, Error::NotFound("device")));
}

#[tokio::test]
async fn the_first_account_takes_the_code_of_the_log() {
    let town = town();
    let code = town.users.setup_code().await.unwrap().unwrap();
    assert_eq!(town.users.setup_code().await.unwrap().as_deref(), Some(&*code), "it stays the same until it is used");
    assert!(town.users.create_first("wrong", "owner", "a secret").await.is_err());
    let spaced = format!("{} {}", code[..4].to_lowercase(), &code[4..]);
    let owner = town.users.create_first(&spaced, "owner", "a secret").await.unwrap();
    assert!(town.users.account(&owner).await.unwrap().unwrap().admin);
    assert_eq!(town.users.setup_code().await.unwrap(), None);
    assert!(town.users.create_first(&code, "second", "a secret").await.is_err());
    town.users.check_password(&owner, "a secret").await.unwrap();
    assert!(town.users.check_password(&owner, "Secret").await.is_err());
}

#[tokio::test]
async fn messages_for_one_server_are_cut_into_units() {
    let town = town();
    let alice = town.person("alice").await;
    let there: OwnedUserId = "@bob:there.test".try_into().unwrap();
    let content = || serde_json::value::to_raw_value(&json!({ "x": "y".repeat(10_000) })).unwrap();
    let devices: std::collections::BTreeMap<_, _> = (0..20).map(|n| (format!("D{n}"), content())).collect();
    for _ in 0..2 {
        let messages: Messages = [(there.clone(), devices.clone())].into();
        town.users.send_to_device(&alice, "m.x", Txn::whole("txn"), messages).await.unwrap();
    }
    let mut units = 0;
    let get = town.users.0.parts.store.read().unwrap();
    crate::store::tables::server::outbox::list_after(&get, Position(0), &mut |_, row| {
        let crate::store::tables::server::outbox::Outbound::Edu { to, json } = row else {
            panic!("only units were sent")
        };
        assert_eq!((to, json.len() < 64 << 10), (vec!["there.test".to_owned()], true));
        units += 1;
        Ok(std::ops::ControlFlow::Continue(()))
    })
    .unwrap();
    assert_eq!(units, 5, "four devices a unit, and the repeated transaction sent nothing");
}

/// The parts of one long request pushed out the names of the requests before it, whose repetition was sent again.
#[tokio::test]
async fn a_long_request_is_known_by_its_last_part_and_forgets_no_other() {
    let town = town();
    let alice = town.person("alice").await;
    let sent = async |txn: Txn| {
        let messages = serde_json::from_str::<Messages>(r#"{"@bob:there.test":{"D":{"a":1}}}"#).unwrap();
        let count = || {
            let (mut count, get) = (0, town.users.0.parts.store.read().unwrap());
            crate::store::tables::server::outbox::list_after(&get, Position(0), &mut |_, _| {
                count += 1;
                Ok(std::ops::ControlFlow::Continue(()))
            })
            .unwrap();
            count
        };
        let before: usize = count();
        town.users.send_to_device(&alice, "m.x", txn, messages).await.unwrap();
        count() - before
    };
    assert_eq!(sent(Txn::whole("short")).await, 1);
    for long in ["a", "b"] {
        for part in 0..50 {
            assert_eq!(sent(Txn { id: long.to_owned(), part: Some(part) }).await, 1, "{long} {part}");
        }
    }
    assert_eq!(sent(Txn::whole("short")).await, 0);
    // Repeated, each goes on where it ended.
    for (part, count) in [(0, 0), (20, 0), (49, 0), (50, 1), (50, 0)] {
        assert_eq!(sent(Txn { id: "a".to_owned(), part: Some(part) }).await, count, "{part}");
    }
}

/// An app's to-device message for a remote user, nested 200 deep, was a panic in the writer.
#[tokio::test]
async fn a_message_for_another_server_is_as_deep_as_its_app_likes() {
    let town = town();
    let alice = town.person("alice").await;
    let nested = |levels: usize| format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels));
    let send = async |txn: &str, levels: usize| {
        let content = serde_json::value::RawValue::from_string(nested(levels)).unwrap();
        let devices = std::collections::BTreeMap::from([("D".to_owned(), content)]);
        let messages: Messages = [("@bob:there.test".try_into().unwrap(), devices)].into();
        town.users.send_to_device(&alice, "m.x", Txn::whole(txn), messages).await
    };
    send("a", 200).await.unwrap();
    send("b", 800).await.unwrap();
    assert!(send("c", 2_000).await.is_err());
    let (mut sent, get) = (Vec::new(), town.users.0.parts.store.read().unwrap());
    crate::store::tables::server::outbox::list_after(&get, Position(0), &mut |_, row| {
        let crate::store::tables::server::outbox::Outbound::Edu { json, .. } = row else {
            panic!("only units were sent")
        };
        sent.push(String::from_utf8(json).unwrap());
        Ok(std::ops::ControlFlow::Continue(()))
    })
    .unwrap();
    assert!(sent.len() == 2 && sent[0].contains(&nested(200)) && sent[1].contains(&nested(800)));
    // A message that cannot be signed blocked all messages for that server.
    let odd = |text: &str| {
        serde_json::from_str::<Messages>(&format!(r#"{{"@bob:there.test":{{"D":{{"a":{text}}}}}}}"#)).unwrap()
    };
    let refused = town.users.send_to_device(&alice, "m.x", Txn::whole("d"), odd(r#""\ud800""#)).await;
    assert!(matches!(refused, Err(Error::Bad { errcode: "M_BAD_JSON", .. })), "{refused:?}");
    town.users.send_to_device(&alice, "m.x", Txn::whole("e"), odd("1.5")).await.unwrap();
    let no_object = serde_json::from_str::<Messages>(r#"{"@bob:there.test":{"D":"text"}}"#).unwrap();
    let refused = town.users.send_to_device(&alice, "m.x", Txn::whole("f"), no_object).await;
    assert!(matches!(refused, Err(Error::Bad { errcode: "M_BAD_JSON", .. })), "{refused:?}");
}

/// A transaction was repeated because its answer was lost, and encrypted messages reached the device twice.
#[tokio::test]
async fn a_repeated_message_to_devices_is_delivered_once() {
    let town = town();
    let alice = town.person("alice").await;
    let waiting = || {
        let (mut found, get) = (Vec::new(), town.users.0.parts.store.read().unwrap());
        let all = (Position(0), Position(i64::MAX as u64));
        crate::store::tables::user::to_device::each(&get, alice.user_num, "DEVICE", all.0, all.1, &mut |_, message| {
            found.push(serde_json::from_slice::<Value>(message).unwrap()["content"]["n"].as_u64().unwrap());
            Ok(std::ops::ControlFlow::Continue(()))
        })
        .unwrap();
        found
    };
    let receive = async |server: &str, id: Option<&str>, n: u32| {
        let server: OwnedServerName = server.try_into().unwrap();
        let mut content = json!({
            "sender": format!("@bob:{server}"), "type": "m.x",
            "messages": { alice.user_id.as_str(): { "*": { "n": n } } },
        });
        if let Some(id) = id {
            content["message_id"] = id.into();
        }
        let raw = serde_json::value::to_raw_value(&content).unwrap();
        town.users.to_device_received(&server, &raw).await.unwrap();
    };
    receive("one.test", Some("a"), 1).await;
    receive("one.test", Some("b"), 2).await;
    receive("one.test", Some("a"), 1).await;
    receive("two.test", Some("a"), 3).await;
    receive("one.test", None, 4).await;
    receive("one.test", None, 4).await;
    assert_eq!(waiting(), [1, 2, 3, 4, 4]);
}

/// Any sender of many messages emptied the queue of a sleeping device: the keys from users in the same room were lost.
#[tokio::test]
async fn what_friends_sent_to_a_sleeping_device_stays() {
    use crate::store::tables::room::event_row::Membership;
    use crate::store::tables::room::{self, member};
    use crate::store::tables::user::{self, to_device};
    let town = town();
    let (alice, bob) = (town.person("alice").await, town.person("bob").await);
    let who = alice.user_num;
    let joined = town.users.write(move |w| {
        let room = room::intern(w, "!room:here.test", "12")?;
        let mine = user_room::Mine::joined(Position(1));
        user_room::set_mine(w, who, room, &mine)?;
        let friend = user::intern(w, "@friend:big.test")?;
        member::set(w, room, friend, None, Some((Membership::Join, crate::store::EventNum(1))))?;
        Ok(member::put_server(w, room, "big.test", 1, Position(1))?)
    });
    joined.await.unwrap();
    let receive = async |sender: &str, n: usize, bytes: usize| {
        let server: OwnedServerName = sender.split_once(':').unwrap().1.try_into().unwrap();
        let messages = json!({ alice.user_id.as_str(): { "DEVICE": { "n": n, "text": "x".repeat(bytes) } } });
        let id = format!("{n} of {sender}");
        let content = json!({ "sender": sender, "type": "m.x", "message_id": id, "messages": messages });
        let raw = serde_json::value::to_raw_value(&content).unwrap();
        town.users.to_device_received(&server, &raw).await.unwrap();
    };
    let text = serde_json::value::to_raw_value(&json!({ "n": 0 })).unwrap();
    let messages: Messages = [(alice.user_id.clone(), [("DEVICE".to_owned(), text)].into())].into();
    town.users.send_to_device(&bob, "m.x", Txn::whole("1"), messages).await.unwrap();
    for sender in ["@friend:big.test", "@beside:big.test", "@once:far.test", "@eve:a.evil.test"] {
        receive(sender, 0, 10).await;
    }
    for n in 1..300 {
        receive("@eve:a.evil.test", n, 60_000).await;
        receive(&format!("@eve{n}:b{n}.evil.test"), n, 60_000).await;
        receive("@spam:big.test", n, 60_000).await;
    }
    let (mut left, mut bytes) = (Vec::new(), 0);
    let get = town.users.0.parts.store.read().unwrap();
    to_device::each(&get, who, "DEVICE", Position(0), Position(i64::MAX as u64), &mut |_, message| {
        bytes += message.len();
        let one: Value = serde_json::from_slice(message).unwrap();
        left.push((one["sender"].as_str().unwrap().to_owned(), one["content"]["n"].as_u64().unwrap()));
        Ok(std::ops::ControlFlow::Continue(()))
    })
    .unwrap();
    let has = |sender: &str, n| left.contains(&(sender.to_owned(), n));
    for sender in [bob.user_id.as_str(), "@friend:big.test", "@beside:big.test", "@once:far.test"] {
        assert!(has(sender, 0), "{sender}");
    }
    assert!(has("@spam:big.test", 299) && !has("@spam:big.test", 1) && !has("@eve:a.evil.test", 0));
    assert!(bytes <= 4 << 20, "two shares of an eighth: {bytes}");
}

/// Half a megabyte to each of a hundred devices was one write of fifty megabytes.
#[tokio::test]
async fn messages_to_devices_are_short_and_so_are_their_copies() {
    let town = town();
    let alice = town.person("alice").await;
    let content = |bytes: usize| serde_json::value::to_raw_value(&json!({ "x": "x".repeat(bytes) })).unwrap();
    let to = |devices: usize, bytes| -> Messages {
        let devices = (0..devices).map(|n| (format!("D{n}"), content(bytes)));
        [(alice.user_id.clone(), devices.chain([("*".to_owned(), content(10))]).collect())].into()
    };
    let waiting = || {
        let (mut lengths, get) = (Vec::new(), town.users.0.parts.store.read().unwrap());
        let all = (Position(0), Position(i64::MAX as u64));
        crate::store::tables::user::to_device::each(&get, alice.user_num, "DEVICE", all.0, all.1, &mut |_, message| {
            lengths.push(message.len());
            Ok(std::ops::ControlFlow::Continue(()))
        })
        .unwrap();
        lengths.len()
    };
    for n in 0..40 {
        let login = Login { device_id: Some(format!("D{n}")), ..Login::default() };
        town.users.login(&alice.user_id, login).await.unwrap();
    }
    let send = async |messages| town.users.send_to_device(&alice, "m.x", Txn::whole("txn"), messages).await;
    assert!(matches!(send(to(1, 64 << 10)).await, Err(Error::TooLarge(_))));
    assert!(matches!(send(to(40, 60 << 10)).await, Err(Error::TooLarge(_))));
    assert_eq!(waiting(), 0);
    send(to(30, 60 << 10)).await.unwrap();
    assert_eq!(waiting(), 1);
    // Too long or malformed messages from another server are skipped, and the rest is delivered.
    let (far, receive) = ("far.test", async |messages: Value| {
        let content = json!({ "sender": "@bob:far.test", "type": "m.x", "messages": messages });
        let raw = serde_json::value::to_raw_value(&content).unwrap();
        town.users.to_device_received("far.test".try_into().unwrap(), &raw).await
    });
    let (long, short) = (json!({ "x": "x".repeat(64 << 10) }), json!({ "x": "x".repeat(60 << 10) }));
    receive(json!({ alice.user_id.as_str(): { "DEVICE": long, "D1": 1 }, format!("@eve:{far}"): 7 })).await.unwrap();
    for no_object in [json!("text"), json!([1]), json!(null), json!(7)] {
        receive(json!({ alice.user_id.as_str(): { "DEVICE": no_object } })).await.unwrap();
    }
    receive(json!({ alice.user_id.as_str(): [] })).await.unwrap();
    receive(json!({ alice.user_id.as_str(): { "*": short } })).await.unwrap();
    assert!(receive(json!([])).await.is_err());
    assert_eq!(waiting(), 1);
    receive(json!({ alice.user_id.as_str(): { "DEVICE": short } })).await.unwrap();
    assert_eq!(waiting(), 2);
}

#[tokio::test]
async fn a_token_from_the_future_takes_no_messages_away() {
    // After a backup was restored, an app's newer token dropped messages that had not been delivered.
    let town = town();
    let alice = town.person("alice").await;
    let content = serde_json::value::to_raw_value(&json!({ "secret": 1 })).unwrap();
    let messages: Messages = [(alice.user_id.clone(), [(alice.device_id.clone(), content)].into())].into();
    town.users.send_to_device(&alice, "m.x", Txn::whole("txn"), messages).await.unwrap();
    let waiting = || {
        let get = town.users.0.parts.store.read().unwrap();
        let mut waiting = 0;
        crate::store::tables::user::to_device::each(
            &get,
            alice.user_num,
            &alice.device_id,
            Position(0),
            Position(u64::MAX >> 1),
            &mut |_, _| {
                waiting += 1;
                Ok(std::ops::ControlFlow::Continue(()))
            },
        )
        .unwrap();
        waiting
    };
    let arrived =
        async |upto, of| town.users.to_device_arrived(alice.user_num, &alice.device_id, upto, of).await.unwrap();
    let now = crate::store::Get::position(&town.users.0.parts.store.read().unwrap()).unwrap();
    arrived(Position(1_000_000), Position(1_000_000)).await;
    arrived(now, Position(1_000_000)).await;
    assert_eq!(waiting(), 1);
    arrived(now, now).await;
    assert_eq!(waiting(), 0);
}

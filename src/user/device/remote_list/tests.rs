//! What is kept of another server's user, followed and shown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ruma::OwnedServerName;

use super::*;
use crate::budget::Budget;
use crate::remote::tests::{Behaviour, Lab, peer, whole};
use crate::store::tables::room::event_row::{Flags, Id, Kind, Membership, Row};
use crate::store::tables::room::{self, event, member, state_tree, timeline, user_room};
use crate::store::{BodyNum, EventNum, RoomNum, StateKeyNum};
use crate::user::Requester;
use crate::user::device::key_answer::ANSWER_BYTES;
use crate::user::device::key_query::Viewer;
use crate::user::tests::{Town, town_that};

const BOB: &str = "@bob:far.test";

fn device(id: &str) -> Value {
    json!({ "user_id": BOB, "device_id": id, "keys": { format!("ed25519:{id}"): "abc" } })
}

/// Bob's server: it counts what it is asked, and can be gone.
#[derive(Default)]
struct Far {
    queries: AtomicUsize,
    lists: AtomicUsize,
    gone: AtomicBool,
}

impl Far {
    fn asked(&self) -> (usize, usize) {
        (self.queries.load(Ordering::Relaxed), self.lists.load(Ordering::Relaxed))
    }
}

async fn far(lab: &Lab) -> (Arc<Far>, String) {
    let far = Arc::new(Far::default());
    let its = far.clone();
    let behaviour: Behaviour = Arc::new(move |request, _| {
        if its.gone.load(Ordering::Relaxed) {
            return whole(500, &json!({ "errcode": "M_UNKNOWN", "error": "gone" }));
        }
        if request.uri().path().contains("/user/devices/") {
            its.lists.fetch_add(1, Ordering::Relaxed);
            let devices = json!([
                { "device_id": "D1", "keys": device("D1"), "device_display_name": "Phone" },
                { "device_id": "D2", "keys": device("D2") },
            ]);
            return whole(200, &json!({ "user_id": BOB, "stream_id": 5, "devices": devices }));
        }
        its.queries.fetch_add(1, Ordering::Relaxed);
        whole(200, &json!({ "device_keys": { BOB: { "D1": device("D1") } } }))
    });
    let address = peer(lab, "far.test", behaviour).await;
    (far, address.to_string())
}

fn town_with(lab: &Lab, budget: Budget, address: String) -> Town {
    town_that(budget, |options| {
        options.overrides = vec![("far.test".to_owned(), address)];
        options.extra_ca_pem = Some(lab.pem.clone().into_bytes());
    })
}

/// Puts a local user and Bob into a room.
async fn share_room(town: &Town, anna: &Requester) -> UserNum {
    share_room_with(town, anna, vec![BOB.to_owned()]).await[0]
}

async fn share_room_with(town: &Town, anna: &Requester, others: Vec<String>) -> Vec<UserNum> {
    let who = anna.user_num;
    let shared = town.users.write(move |w| {
        let room = room::intern(w, "!room:here.test", "12")?;
        let at = w.next_position();
        let mine = user_room::Mine::joined(at);
        user_room::set_mine(w, who, room, &mine)?;
        let mut nums = Vec::new();
        for other in others {
            let num = user::intern(w, &other)?;
            join(w, room, num, EventNum(1 + nums.len() as u32), Some(at))?;
            nums.push(num);
        }
        member::put_server(w, room, "here.test", 1, at)?;
        member::put_server(w, room, "far.test", 1, at)?;
        Ok(nums)
    });
    shared.await.unwrap()
}

/// The membership of another server's user, with an event that came at a position or with a state.
fn join(w: &mut Write<'_>, room: RoomNum, num: UserNum, event: EventNum, at: Option<Position>) -> Result<(), Error> {
    let row = Row {
        room,
        body: BodyNum(0),
        id: Id::Named(format!("$joined{}", event.0)),
        kind: Kind::MEMBER,
        state_key: None,
        sender: num,
        member: Some((Membership::Join, num)),
        flags: Flags::default(),
        depth: 1,
        origin_server_ts: 1,
        auth: Vec::new(),
        before: None,
        order: at.map(|at| at.0 as i64),
        redacted_by: None,
    };
    event::put_row(w, event, &row)?;
    let before = member::get(w, room, num)?.map(|(membership, _)| membership);
    Ok(member::set(w, room, num, before, Some((Membership::Join, event)))?)
}

/// Bob's devices, and the servers that failed, as an app is told.
async fn queried(town: &Town, anna: &Requester) -> (Vec<String>, Value) {
    let wanted = [(BOB.try_into().unwrap(), Vec::new())].into();
    let answered = town.users.keys_query(Viewer::Local(anna.user_num), wanted, None).await.unwrap();
    let answer: Value = serde_json::from_slice(&answered.into_json().0).unwrap();
    let devices = answer["device_keys"][BOB].as_object().map(|devices| devices.keys().cloned().collect());
    (devices.unwrap_or_default(), answer)
}

async fn told(town: &Town, news: News, content: Value) {
    let far: OwnedServerName = "far.test".try_into().unwrap();
    town.users.devices_changed_elsewhere(&far, news, &to_raw_value(&content).unwrap()).await.unwrap();
}

fn update(id: &str, stream_id: u64, prev: u64) -> Value {
    json!({ "user_id": BOB, "device_id": id, "device_display_name": "New", "keys": device(id),
        "stream_id": stream_id, "prev_id": [prev] })
}

/// Each query asked the other server, so that nothing could be encrypted while it was gone.
#[tokio::test]
async fn a_list_is_kept_and_follows_what_its_server_tells() {
    let lab = Lab::new();
    let (far, address) = far(&lab).await;
    let town = town_with(&lab, Budget::for_tests(), address);
    let anna = town.person("anna").await;
    let bob = share_room(&town, &anna).await;
    for _ in 0..2 {
        assert_eq!((queried(&town, &anna).await.0, far.asked()), (vec!["D1".to_owned()], (1, 0)));
    }
    // An update was missed: the list is asked for again, and from then on it is followed.
    told(&town, News::Device, update("D2", 5, 4)).await;
    let (devices, answer) = queried(&town, &anna).await;
    assert_eq!((devices, far.asked()), (vec!["D1".to_owned(), "D2".to_owned()], (1, 1)));
    assert_eq!(answer["device_keys"][BOB]["D1"]["unsigned"]["device_display_name"], "Phone");
    told(&town, News::Device, update("D3", 6, 5)).await;
    let gone = json!({ "user_id": BOB, "device_id": "D1", "deleted": true, "stream_id": 7, "prev_id": [6] });
    told(&town, News::Device, gone).await;
    let master = json!({ "user_id": BOB, "usage": ["master"], "keys": { "ed25519:m": "m" } });
    told(&town, News::SigningKeys, json!({ "user_id": BOB, "master_key": master })).await;
    far.gone.store(true, Ordering::Relaxed);
    let (devices, answer) = queried(&town, &anna).await;
    assert_eq!((devices, far.asked()), (vec!["D2".to_owned(), "D3".to_owned()], (1, 1)));
    assert_eq!(answer["device_keys"][BOB]["D3"]["unsigned"]["device_display_name"], "New");
    assert_eq!((&answer["master_keys"][BOB], &answer["failures"]), (&master, &json!({})));
    // A gap, and the server is gone: what is kept, and the failure named.
    told(&town, News::Device, update("D4", 9, 8)).await;
    let (devices, answer) = queried(&town, &anna).await;
    assert_eq!(devices, ["D2", "D3", "D4"]);
    assert!(answer["failures"]["far.test"].is_object());
    far.gone.store(false, Ordering::Relaxed);
    let (devices, _) = queried(&town, &anna).await;
    assert_eq!((devices, far.asked()), (vec!["D1".to_owned(), "D2".to_owned()], (1, 2)));
    // Nobody tells of the devices of a user who shares no room.
    let left = move |w: &mut Write<'_>| {
        let room = room::intern(w, "!room:here.test", "12")?;
        Ok(member::set(w, room, bob, Some(Membership::Join), None)?)
    };
    town.users.write(left).await.unwrap();
    for asked in [3, 4] {
        queried(&town, &anna).await;
        assert_eq!(far.asked().0 + far.asked().1, asked + 1);
    }
}

/// One user whom a server did not know cost all its other users their keys, and every list with a gap was a request.
#[tokio::test]
async fn one_user_unknown_elsewhere_costs_no_other_its_keys() {
    let lab = Lab::new();
    let (lists, queries) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (lists.clone(), queries.clone());
    let behaviour: Behaviour = Arc::new(move |request, body| {
        if request.uri().path().contains("/user/devices/") {
            counts.0.fetch_add(1, Ordering::Relaxed);
            return whole(404, &json!({ "errcode": "M_NOT_FOUND", "error": "Who?" }));
        }
        counts.1.fetch_add(1, Ordering::Relaxed);
        let asked: Value = serde_json::from_slice(&body).unwrap();
        let users = asked["device_keys"].as_object().unwrap().keys();
        let told: BTreeMap<_, _> = users.map(|user| (user.clone(), json!({ "D1": device("D1") }))).collect();
        whole(200, &json!({ "device_keys": told }))
    });
    let address = peer(&lab, "far.test", behaviour).await.to_string();
    let town = town_with(&lab, Budget::for_tests(), address);
    let anna = town.person("anna").await;
    let others: Vec<String> = (0..9).map(|n| format!("@user{n}:far.test")).collect();
    share_room_with(&town, &anna, others.clone()).await;
    let wanted = || others.iter().map(|user| (user.as_str().try_into().unwrap(), Vec::new())).collect();
    let query = async || {
        let answered = town.users.keys_query(Viewer::Local(anna.user_num), wanted(), None).await.unwrap();
        serde_json::from_slice::<Value>(&answered.into_json().0).unwrap()
    };
    assert_eq!(query().await["device_keys"].as_object().unwrap().len(), 9);
    assert_eq!((lists.load(Ordering::Relaxed), queries.load(Ordering::Relaxed)), (0, 1));
    for user in &others {
        let update =
            json!({ "user_id": user, "device_id": "D2", "keys": device("D2"), "stream_id": 9, "prev_id": [8] });
        told(&town, News::Device, update).await;
    }
    let answer = query().await;
    assert!(others.iter().all(|user| answer["device_keys"][user]["D1"].is_object()), "{answer}");
    assert_eq!(answer["failures"], json!({}));
    // Four alone, which are asked for again as others are, and the rest together.
    assert_eq!((lists.load(Ordering::Relaxed), queries.load(Ordering::Relaxed)), (4, 1 + 1 + 4));
}

/// Where memory ended in the middle, an app took the devices before it for all there are.
#[tokio::test]
async fn a_list_without_memory_for_all_of_it_is_left_out_whole() {
    let lab = Lab::new();
    let devices: BTreeMap<_, _> = (0..50).map(|n| (format!("D{n}"), device(&format!("D{n}")))).collect();
    let behaviour: Behaviour = Arc::new(move |_, _| whole(200, &json!({ "device_keys": { BOB: devices } })));
    let address = peer(&lab, "far.test", behaviour).await.to_string();
    let budget = Budget::for_tests();
    let town = town_with(&lab, budget.clone(), address);
    let anna = town.person("anna").await;
    let account = budget.account("response_bodies");
    let rest = account.try_take(account.limit() - account.used() - ANSWER_BYTES - 8 * 1024).unwrap();
    let (devices, answer) = queried(&town, &anna).await;
    assert!(devices.is_empty() && answer["device_keys"][BOB].is_null(), "{answer}");
    assert!(answer["failures"]["far.test"].is_object());
    drop(rest);
    assert_eq!(queried(&town, &anna).await.0.len(), 50);
}

/// Tens of thousands of tiny keys were one long write.
#[tokio::test]
async fn an_answer_with_too_many_devices_is_shown_and_not_kept() {
    let lab = Lab::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let behaviour: Behaviour = Arc::new(move |_, _| {
        count.fetch_add(1, Ordering::Relaxed);
        let devices: BTreeMap<_, _> = (0..LISTED_MAX + 1).map(|n| (format!("D{n}"), json!({}))).collect();
        whole(200, &json!({ "device_keys": { BOB: devices } }))
    });
    let address = peer(&lab, "far.test", behaviour).await.to_string();
    let town = town_with(&lab, Budget::for_tests(), address);
    let anna = town.person("anna").await;
    share_room(&town, &anna).await;
    for times in [1, 2] {
        assert_eq!(queried(&town, &anna).await.0.len(), LISTED_MAX + 1);
        assert_eq!(asked.load(Ordering::Relaxed), times);
    }
}

/// A user who had left and come back while this server was away counted as one who had been there all the time, though
/// nothing told of their devices meanwhile.
#[tokio::test]
async fn a_list_is_not_believed_over_a_gap_in_which_its_user_came_again() {
    let lab = Lab::new();
    let (far, address) = far(&lab).await;
    let town = town_with(&lab, Budget::for_tests(), address);
    let anna = town.person("anna").await;
    let bob = share_room(&town, &anna).await;
    let in_state = |event: u32| {
        move |w: &mut Write<'_>| {
            let room = room::intern(w, "!room:here.test", "12")?;
            join(w, room, bob, EventNum(event), None)?;
            let root = state_tree::set(w, None, &[(StateKeyNum::of_member(bob), Some(EventNum(event)))])?;
            let at = w.next_position();
            timeline::put_state(w, room, at, root)?;
            Ok::<_, Error>(())
        }
    };
    // The state with which the room was joined.
    town.users.write(in_state(2)).await.unwrap();
    for _ in 0..2 {
        queried(&town, &anna).await;
        assert_eq!(far.asked(), (1, 0));
    }
    // A state that was fetched over a gap.
    town.users.write(in_state(3)).await.unwrap();
    for _ in 0..2 {
        queried(&town, &anna).await;
        assert_eq!(far.asked(), (1, 1));
    }
}

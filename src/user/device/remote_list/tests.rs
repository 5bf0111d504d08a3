//! What is kept of another server's user, followed and shown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ruma::OwnedServerName;

use super::*;
use crate::budget::Budget;
use crate::remote::tests::{Behaviour, Lab, peer, whole};
use crate::store::tables::room::event_row::{Flags, Id, Kind, Membership, Row};
use crate::store::tables::room::{self, event, member, user_room};
use crate::store::{BodyNum, EventNum};
use crate::user::Requester;
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

/// Puts a local user and Bob into a room.
async fn share_room(town: &Town, anna: &Requester) -> UserNum {
    let who = anna.user_num;
    let shared = town.users.write(move |w| {
        let room = room::intern(w, "!room:here.test", "12")?;
        let at = w.next_position();
        let mine = user_room::Mine {
            membership: Membership::Join,
            since: at,
            event: None,
            forgotten: false,
            outside: false,
            before: None,
            left_at: None,
        };
        user_room::set_mine(w, who, room, &mine)?;
        let bob = user::intern(w, BOB)?;
        let row = Row {
            room,
            body: BodyNum(0),
            id: Id::Named("$joined".to_owned()),
            kind: Kind::MEMBER,
            state_key: None,
            sender: bob,
            member: Some((Membership::Join, bob)),
            flags: Flags::default(),
            depth: 1,
            origin_server_ts: 1,
            auth: Vec::new(),
            before: None,
            order: Some(at.0 as i64),
            redacted_by: None,
        };
        event::put_row(w, EventNum(1), &row)?;
        member::set(w, room, bob, None, Some((Membership::Join, EventNum(1))))?;
        member::put_server(w, room, "here.test", 1, at)?;
        member::put_server(w, room, "far.test", 1, at)?;
        Ok(bob)
    });
    shared.await.unwrap()
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
    let town = town_that(Budget::for_tests(), |options| {
        options.overrides = vec![("far.test".to_owned(), address)];
        options.extra_ca_pem = Some(lab.pem.clone().into_bytes());
    });
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

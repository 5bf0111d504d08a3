//! Events of local users.

use std::sync::{Arc, mpsc};
use std::task::{Context, Waker};
use std::time::Duration;

use ruma::{OwnedEventId, RoomId};
use serde_json::{Value, json};

use crate::room::create::StateDraft;
use crate::room::handshake::invite;
use crate::room::send;
use crate::room::testing::*;
use crate::room::*;
use crate::store;

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

/// Has the writer wait until what is answered is dropped.
fn busy_writer(house: &House) -> mpsc::Sender<()> {
    let (go_on, held) = mpsc::channel();
    let store = house.store.clone();
    let (begun, begins) = mpsc::channel();
    std::thread::spawn(move || {
        store.write_blocking(move |_| {
            begun.send(()).unwrap();
            let _ = held.recv();
            Ok::<_, store::Error>(())
        })
    });
    begins.recv().unwrap();
    go_on
}

/// The writer, and with it everybody's writes, was busy with contents of megabytes that can be no event.
#[tokio::test]
async fn a_content_too_long_for_an_event_is_refused_without_the_writer() {
    let house = house();
    let anna = house.user("anna").await;
    let room = house.public_room(&anna).await;
    let _busy = busy_writer(&house);
    let long = json!({ "body": "x".repeat(70_000) });
    let refused = tokio::time::timeout(Duration::from_secs(60), house.send(&anna, &room, "m.room.message", None, long));
    let refused = refused.await.expect("no write is waited for").unwrap_err();
    assert!(matches!(refused, Error::TooLarge), "{refused:?}");
}

/// The memory of a content was given back when the app left, while the content waited for the writer.
#[tokio::test]
async fn a_message_is_paid_for_until_it_is_written() {
    let (budget, house) = (Budget::for_tests(), house());
    let anna = house.user("anna").await;
    let room = house.public_room(&anna).await;
    house.say(&anna, &room, "one").await;
    let account = budget.account("request_bodies");
    let busy = busy_writer(&house);
    let mut message = sending("m.room.message", None, json!({ "body": "two" }));
    message.paid = Some(Arc::new(account.try_take(100).unwrap()));
    let mut sent = Box::pin(house.rooms.send(&anna, &room, message));
    assert!(sent.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    drop(sent);
    assert_eq!(account.used(), 100);
    drop(busy);
    house.say(&anna, &room, "three").await;
    assert_eq!(account.used(), 0);
    assert_eq!(house.timeline(&room, 3), ["m.room.message"; 3]);
}

/// A message that was sent already, and one that is not allowed, were answered as if the disk were to blame.
#[tokio::test]
async fn on_a_full_disk_a_repeat_and_a_refusal_are_answered_as_ever() {
    let card = store::MemoryMedium::default();
    let house = house_on(Budget::for_tests(), Store::on_memory(card.clone()));
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let room = house.public_room(&anna).await;
    let mut message = sending("m.room.message", None, json!({ "body": "x" }));
    message.txn = Some(("PHONE".to_owned(), "1".to_owned()));
    let first = house.rooms.send(&anna, &room, message.clone()).await.unwrap();
    card.set_free_bytes(1);
    let more = || house.send(&anna, &room, "m.room.message", None, json!({ "body": "y" }));
    for _ in 0..2 {
        assert!(matches!(more().await, Err(Error::Store(store::Error::Full))));
    }
    assert_eq!(house.rooms.send(&anna, &room, message).await.unwrap(), first);
    assert!(is_forbidden(house.send(&ben, &room, "m.room.message", None, json!({ "body": "z" })).await));
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
async fn an_event_built_before_others_came_follows_what_it_was_built_upon() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let room = house.public_room(&anna).await;
    let invite = send::New::state("m.room.member", ben.as_str(), &anna, json!({ "membership": "invite" }));
    let built = invite::build_for_others(&house.rooms, &room, invite).await.unwrap();
    house.say(&anna, &room, "meanwhile").await;
    super::append_built(&house.rooms, built, None).await.unwrap();
    assert_eq!(house.membership(&room, &ben), Some(Membership::Invite));
    assert_eq!(house.row(&room).extremities.len(), 2);
    let after = house.say(&anna, &room, "after").await;
    assert_eq!(house.event(&after).prev_events().count(), 2);
}

//! Rooms with a policy server: its signature on our events and on others'.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use super::*;
use crate::matrix::sign::event::{is_signed_by, with_signature};
use crate::remote::tests::{Behaviour, Lab, peer, whole};
use crate::room::testing::house_that;
use crate::store::Store;

const KEY_ID: &str = "ed25519:policy_server";

/// The far server, as a policy server that refuses spam.
#[derive(Default)]
struct Judge {
    asked: AtomicUsize,
    /// It knows only the path from before the specification had one.
    is_old: AtomicBool,
    is_gone: AtomicBool,
}

fn policy_key() -> Key {
    Key::from_seed("policy_server", [5; 32])
}

async fn world_with_judge() -> (World, Arc<Judge>, Lab) {
    let (lab, judge) = (Lab::new(), Arc::new(Judge::default()));
    let its = judge.clone();
    let behaviour: Behaviour = Arc::new(move |request, body| {
        if its.is_gone.load(Relaxed) {
            return whole(502, &json!({}));
        }
        let is_stable = request.uri().path() == "/_matrix/policy/v1/sign";
        if is_stable == its.is_old.load(Relaxed) {
            return whole(404, &json!({ "errcode": "M_UNRECOGNIZED", "error": "what?" }));
        }
        its.asked.fetch_add(1, Relaxed);
        if String::from_utf8_lossy(&body).contains("spam") {
            return whole(400, &json!({ "errcode": "M_FORBIDDEN", "error": "This looks like what nobody wants" }));
        }
        let version = crate::matrix::version::get("12").unwrap();
        let event = Event::from_wire(version, &body).unwrap();
        let signature = policy_key().sign_base64(&event.signed_message());
        whole(200, &json!({ "far.example": { KEY_ID: signature } }))
    });
    let address = peer(&lab, "far.example", behaviour).await;
    let house = house_that(Budget::for_tests(), Store::in_memory(), |options| {
        options.overrides = vec![("far.example".to_owned(), address.to_string())];
        options.extra_ca_pem = Some(lab.pem.clone().into_bytes());
    });
    (World::in_house(house, Some("12")).await, judge, lab)
}

fn policy() -> Value {
    json!({ "via": "far.example", "public_keys": { "ed25519": policy_key().public().to_base64() } })
}

fn has_signature(world: &World, event: &ruma::EventId) -> bool {
    is_signed_by(&world.house.event(event), &far(), KEY_ID, &policy_key().public())
}

#[tokio::test]
async fn our_events_are_signed_before_they_go_out() {
    let (world, judge, _lab) = world_with_judge().await;
    let (anna, room) = (&world.anna, &world.room);
    world.house.send(anna, room, "m.room.policy", Some(""), policy()).await.unwrap();
    assert_eq!(judge.asked.load(Relaxed), 0, "its own event is exempt");
    let said = world.house.say(anna, room, "hello").await;
    assert!(judge.asked.load(Relaxed) == 1 && has_signature(&world, &said));
    let sent = world.house.outbox().len();
    let refused = world.house.send(anna, room, "m.room.message", None, json!({ "body": "spam" })).await;
    assert!(matches!(refused, Err(Error::Forbidden(why)) if why == "This looks like what nobody wants"));
    let refused = world.house.send(anna, room, "m.room.topic", Some(""), json!({ "topic": "spam" })).await;
    assert!(matches!(refused, Err(Error::Forbidden(_))), "state too");
    assert_eq!(world.house.outbox().len(), sent);
    judge.is_old.store(true, Relaxed);
    assert!(has_signature(&world, &world.house.say(anna, room, "by the old path").await));
    // Without it nothing is sent, until the room does without it.
    judge.is_gone.store(true, Relaxed);
    let lost = world.house.send(anna, room, "m.room.message", None, json!({ "body": "hello?" })).await;
    assert!(matches!(lost, Err(Error::Remote(_))), "{lost:?}");
    world.house.send(anna, room, "m.room.policy", Some(""), json!({})).await.unwrap();
    let said = world.house.say(anna, room, "free again").await;
    assert!(!has_signature(&world, &said));
}

/// The same transaction twice, while the policy server thinks, is one event.
#[tokio::test]
async fn a_repeat_meanwhile_is_the_same_event() {
    let (world, judge, _lab) = world_with_judge().await;
    world.house.send(&world.anna, &world.room, "m.room.policy", Some(""), policy()).await.unwrap();
    let send = || {
        let sending = crate::room::Sending {
            txn: Some(("PHONE".to_owned(), "t1".to_owned())),
            ..crate::room::testing::sending("m.room.message", None, json!({ "body": "once" }))
        };
        world.house.rooms.send(&world.anna, &world.room, sending)
    };
    let (one, other) = tokio::join!(send(), send());
    assert_eq!(one.unwrap(), other.unwrap());
    assert!(judge.asked.load(Relaxed) >= 1);
    assert_eq!(world.house.timeline(&world.room, 10).iter().filter(|kind| kind.contains("message")).count(), 1);
}

#[tokio::test]
async fn events_of_others_are_signed_or_soft_failed() {
    let (world, judge, _lab) = world_with_judge().await;
    world.house.send(&world.anna, &world.room, "m.room.policy", Some(""), policy()).await.unwrap();
    let mut line = world.line();
    let bare = world.say(&mut line, "hello");
    assert_eq!(world.receive(&[bare.clone()]).await, [Ok(())]);
    assert!(judge.asked.load(Relaxed) == 1 && has_signature(&world, bare.id()));
    assert_eq!(world.row(&bare).unwrap().flags, Flags::default());
    // Signed already: nobody is asked, and several go into one commit.
    let both = [world.say(&mut line, "signed"), world.say(&mut line, "signed too")].map(|event| {
        let signature = policy_key().sign_base64(&event.signed_message());
        Arc::new(with_signature(&event, &far(), KEY_ID, &signature).unwrap())
    });
    assert_eq!(world.receive(&both).await, [Ok(()), Ok(())]);
    assert!(judge.asked.load(Relaxed) == 1 && has_signature(&world, both[0].id()));
    let mut fork = line.clone();
    let spam = world.say(&mut fork, "spam");
    assert_eq!(world.receive(&[spam.clone()]).await, [Ok(())]);
    let row = world.row(&spam).unwrap();
    assert!(row.flags.soft_failed && row.order.is_none());
    assert_eq!(judge.asked.load(Relaxed), 2);
    // A wrong signature counts as none.
    let odd = world.say(&mut line, "spam again");
    let signature = Key::from_seed("policy_server", [6; 32]).sign_base64(&odd.signed_message());
    let odd = Arc::new(with_signature(&odd, &far(), KEY_ID, &signature).unwrap());
    assert_eq!(world.receive(&[odd.clone()]).await, [Ok(())]);
    assert!(world.row(&odd).unwrap().flags.soft_failed);
    world.check_state();
}

/// A room that names a server that is not in it, or no key, uses none.
#[tokio::test]
async fn what_makes_no_policy_server() {
    let (world, judge, _lab) = world_with_judge().await;
    let (anna, room) = (&world.anna, &world.room);
    let key = policy_key().public().to_base64();
    for content in [
        json!({ "via": "else.example", "public_keys": { "ed25519": key } }),
        json!({ "via": "home.example", "public_keys": { "ed25519": key } }),
        json!({ "via": "far.example" }),
        json!({ "via": "far.example", "public_keys": { "ed25519": "short" } }),
        json!({ "via": 7, "public_keys": [] }),
    ] {
        world.house.send(anna, room, "m.room.policy", Some(""), content).await.unwrap();
        world.house.say(anna, room, "spam").await;
    }
    let other = world.house.send(anna, room, "m.room.policy", Some("other"), policy()).await;
    other.unwrap();
    world.house.say(anna, room, "spam").await;
    assert_eq!(judge.asked.load(Relaxed), 0);
    let unstable = json!({ "via": "far.example", "public_key": key });
    world.house.send(anna, room, "m.room.policy", Some(""), json!({})).await.unwrap();
    world.house.send(anna, room, "org.matrix.msc4284.policy", Some(""), unstable).await.unwrap();
    world.house.say(anna, room, "still free: the newer event is there, and names nobody").await;
    assert_eq!(judge.asked.load(Relaxed), 0);
}

//! The rooms of a sync, read back as the JSON it is.

use serde_json::{Value, json};

use super::rooms::TIMELINE_EVENTS;
use super::*;
use crate::base::{Chunks, written};
use crate::room::testing::{House, house};
use crate::room::{Marker, MemberQuery, Paging, Position, RECEIPTS_MAX, Related, Result, Threads, Token};
use crate::store;
use crate::store::tables::room::receipt::{Receipt, Whose};
use crate::store::tables::room::{self, Hole, receipt};
use crate::store::tables::user;
use crate::store::tables::user::account_data;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, UserId};

/// All rooms with news for a user since a token, by list and room.
pub(crate) async fn synced(
    house: &House,
    user: &UserId,
    since: Option<SyncToken>,
    filter: Value,
) -> (SyncToken, Value) {
    let reader =
        Reader { user: house.user_num(user), user_id: user.to_owned(), device: "D".to_owned(), sees_all: false };
    let filter = Arc::new(Filter::parse(filter.to_string().as_bytes()).unwrap());
    let view = house.rooms.sync_view(reader).unwrap();
    let now = view.now;
    let sections = RoomSections::new(view, since, false, filter);
    let mut rooms = json!({ "join": {}, "invite": {}, "knock": {}, "leave": {} });
    for section in Section::ALL {
        let mut after = None;
        while let Some(changed) = sections.next(section, after, &[]).unwrap() {
            after = Some(changed.room.num);
            let (sections, id) = (sections.clone(), changed.id.clone());
            let share = read_back(written(move |pen| async move {
                pen.text("{");
                sections.write(&pen, section, &changed).await?;
                pen.text("}");
                Ok(())
            }));
            rooms[section.as_str()][id] = share;
        }
    }
    (now, rooms)
}

fn read_back(mut chunks: impl Chunks) -> Value {
    let (mut whole, mut more) = (Vec::new(), true);
    while more {
        more = chunks.next(&mut whole).unwrap();
    }
    serde_json::from_slice(&whole).unwrap()
}

/// Type and state key of a list's events, sorted.
fn keys(events: &Value) -> Vec<String> {
    let text = |event: &Value, key: &str| event[key].as_str().unwrap_or("-").to_owned();
    let events = events["events"].as_array().unwrap().iter();
    let mut keys: Vec<_> =
        events.map(|event| format!("{} {}", text(event, "type"), text(event, "state_key"))).collect();
    keys.sort();
    keys
}

fn lazy(limit: usize) -> Value {
    json!({ "room": { "state": { "lazy_load_members": true }, "timeline": { "limit": limit } } })
}

#[tokio::test]
async fn lazy_apps_hear_of_who_came_and_went_in_a_gap() {
    // Only senders' member events were told, so an app went on encrypting for a user whose kick was not in the
    // timeline.
    let house = house();
    let (alice, bob, carol) = (house.user("alice").await, house.user("bob").await, house.user("carol").await);
    let room = house.public_room(&alice).await;
    house.join(&bob, &room).await.unwrap();
    let (first, _) = synced(&house, &alice, None, lazy(2)).await;
    house.join(&carol, &room).await.unwrap();
    house.rooms.leave(&bob, &room, None).await.unwrap();
    for number in 0..3 {
        house.say(&alice, &room, &number.to_string()).await;
    }
    let (_, rooms) = synced(&house, &alice, Some(first), lazy(2)).await;
    let share = &rooms["join"][room.as_str()];
    assert_eq!(share["timeline"]["limited"], true);
    let all = [&alice, &bob, &carol].map(|user| format!("m.room.member {user}"));
    assert_eq!(keys(&share["state"]), all, "the sender and who came and went, each once");
    assert_eq!(share["summary"]["m.joined_member_count"], 2);
}

#[tokio::test]
async fn a_room_whose_name_was_taken_back_is_named_by_its_members() {
    let house = house();
    let (alice, bob) = (house.user("alice").await, house.user("bob").await);
    let room = house.public_room(&alice).await;
    house.send(&alice, &room, "m.room.name", Some(""), json!({ "name": "Cellar" })).await.unwrap();
    let (first, rooms) = synced(&house, &alice, None, lazy(1)).await;
    assert_eq!(rooms["join"][room.as_str()]["summary"].get("m.heroes"), None);
    house.send(&alice, &room, "m.room.name", Some(""), json!({ "name": "" })).await.unwrap();
    house.join(&bob, &room).await.unwrap();
    for number in 0..2 {
        house.say(&alice, &room, &number.to_string()).await;
    }
    let (_, rooms) = synced(&house, &alice, Some(first), lazy(1)).await;
    let share = &rooms["join"][room.as_str()];
    assert_eq!(share["summary"]["m.heroes"], json!([bob]));
    assert!(keys(&share["state"]).contains(&format!("m.room.member {bob}")), "a hero's member event comes along");
}

#[tokio::test]
async fn leaving_and_forgetting_at_once_is_told_to_other_devices() {
    let house = house();
    let alice = house.user("alice").await;
    let room = house.public_room(&alice).await;
    let (first, _) = synced(&house, &alice, None, json!({})).await;
    house.rooms.leave(&alice, &room, None).await.unwrap();
    house.rooms.forget(&alice, &room).await.unwrap();
    let (after, rooms) = synced(&house, &alice, Some(first), json!({})).await;
    assert!(rooms["leave"].get(room.as_str()).is_some(), "{rooms}");
    for since in [Some(after), None] {
        let (_, rooms) = synced(&house, &alice, since, json!({ "room": { "include_leave": true } })).await;
        assert!(rooms["leave"].get(room.as_str()).is_none(), "{rooms}");
    }
}

/// Sets account data of a user, as an app does.
async fn keep(house: &House, user: &UserId, kind: &'static str, content: Value) {
    let num = house.user_num(user);
    let set = move |w: &mut store::Write<'_>| {
        let json = content.to_string();
        account_data::set(w, num, account_data::GLOBAL, kind, json.as_bytes()).map(drop)
    };
    house.store.write(set).await.unwrap();
}

#[tokio::test]
async fn who_is_ignored_is_not_heard_but_for_the_rooms_state() {
    let house = house();
    let (alice, bob) = (house.user("alice").await, house.user("bob").await);
    let room = house.public_room(&alice).await;
    house.join(&bob, &room).await.unwrap();
    let root = house.say(&alice, &room, "root").await;
    let (first, _) = synced(&house, &alice, None, json!({})).await;
    keep(&house, &alice, "m.ignored_user_list", json!({ "ignored_users": { &bob: {}, "@eve:far.example": {} } })).await;
    house.say(&bob, &room, "hey alice").await;
    let reply = json!({ "body": "hey", "m.relates_to": { "rel_type": "m.thread", "event_id": root } });
    house.send(&bob, &room, "m.room.message", None, reply).await.unwrap();
    let profile = json!({ "membership": "join", "displayname": "Bobby" });
    house.send(&bob, &room, "m.room.member", Some(bob.as_str()), profile).await.unwrap();
    let cellar = house.public_room(&bob).await;
    house.rooms.invite(&bob, &cellar, &alice, None).await.unwrap();
    let outside = OwnedRoomId::try_from("!r:far.example").unwrap();
    let own =
        json!({ "type": "m.room.member", "state_key": alice, "sender": bob, "content": { "membership": "invite" } });
    house.invited_outside(&alice, &outside, json!([own])).await;
    // Nothing but this invite has ever named her.
    let eve: OwnedUserId = "@eve:far.example".try_into().unwrap();
    let hers = OwnedRoomId::try_from("!hers:far.example").unwrap();
    let own =
        json!({ "type": "m.room.member", "state_key": alice, "sender": eve, "content": { "membership": "invite" } });
    house.invited_outside(&alice, &hers, json!([own])).await;

    let (_, rooms) = synced(&house, &alice, Some(first), json!({})).await;
    let share = &rooms["join"][room.as_str()];
    assert_eq!(keys(&share["timeline"]), [format!("m.room.member {bob}")]);
    assert_eq!(share["unread_notifications"]["notification_count"], 0);
    assert_eq!(rooms["invite"], json!({}));
    let reader =
        Reader { user: house.user_num(&alice), user_id: alice.clone(), device: "D".to_owned(), sees_all: false };
    let event: Value = serde_json::from_slice(&house.rooms.event(&reader, &room, &root).await.unwrap()).unwrap();
    assert_eq!(event["unsigned"].get("m.relations"), None);

    keep(&house, &alice, "m.ignored_user_list", json!({ "ignored_users": "nobody" })).await;
    let (_, rooms) = synced(&house, &alice, Some(first), json!({})).await;
    assert_eq!(rooms["join"][room.as_str()]["timeline"]["events"].as_array().unwrap().len(), 3);
    assert_eq!(rooms["invite"].as_object().unwrap().len(), 3);
    // The same when she is the only one ignored, and no user of the list is known here.
    keep(&house, &alice, "m.ignored_user_list", json!({ "ignored_users": { "@eve:far.example": {} } })).await;
    let (_, rooms) = synced(&house, &alice, Some(first), json!({})).await;
    assert_eq!(rooms["invite"].as_object().unwrap().len(), 2);
}

#[tokio::test]
async fn what_others_read_in_private_wakes_nobody_else() {
    let house = house();
    let (alice, bob) = (house.user("alice").await, house.user("bob").await);
    let room = house.public_room(&alice).await;
    house.join(&bob, &room).await.unwrap();
    let event = house.say(&bob, &room, "hello").await;
    let (at, _) = synced(&house, &alice, None, json!({})).await;
    let set = async |user: &UserId, kind: &str| {
        let marker = Marker { kind: kind.to_owned(), event_id: event.clone(), thread: None, allow_backward: false };
        house.rooms.set_receipt(user, &room, marker).await.unwrap();
    };
    let has_news = async || synced(&house, &alice, Some(at), json!({})).await.1["join"] != json!({});
    set(&bob, "m.read.private").await;
    set(&bob, "m.fully_read").await;
    assert!(!has_news().await);
    set(&alice, "m.fully_read").await;
    assert!(has_news().await);
}

#[tokio::test]
async fn an_event_says_what_its_reader_was_to_the_room() {
    let house = house();
    let (alice, bob) = (house.user("alice").await, house.user("bob").await);
    let room = house.public_room(&alice).await;
    house.say(&alice, &room, "before").await;
    house.join(&bob, &room).await.unwrap();
    house.say(&alice, &room, "after").await;
    let (_, rooms) = synced(&house, &bob, None, json!({ "room": { "timeline": { "limit": 3 } } })).await;
    let events = rooms["join"][room.as_str()]["timeline"]["events"].as_array().unwrap();
    let was: Vec<_> = events.iter().map(|event| event["unsigned"]["membership"].as_str().unwrap()).collect();
    assert_eq!(was, ["leave", "join", "join"]);
}

/// A complete answer of the rooms, as JSON.
async fn answered(chunks: Result<impl Chunks>) -> Value {
    read_back(chunks.unwrap())
}

#[tokio::test]
async fn threads_are_counted_and_read_by_themselves() {
    let house = house();
    let (alice, bob) = (house.user("alice").await, house.user("bob").await);
    let room = house.public_room(&alice).await;
    house.join(&bob, &room).await.unwrap();
    let relate = async |user: &UserId, rel: &str, to: &OwnedEventId, body: &str| {
        let content = json!({ "msgtype": "m.text", "body": body, "m.relates_to": { "rel_type": rel, "event_id": to } });
        house.send(user, &room, "m.room.message", None, content).await.unwrap()
    };
    let (one, two) = (house.say(&alice, &room, "one").await, house.say(&bob, &room, "two").await);
    relate(&bob, "m.thread", &two, "in two").await;
    let reply = relate(&bob, "m.thread", &one, "in one").await;
    // A reference to a reply is part of the thread.
    let reference = relate(&bob, "m.reference", &reply, "about it").await;

    let reader =
        |user| Reader { user: house.user_num(user), user_id: user.to_owned(), device: "D".to_owned(), sees_all: false };
    let counts = async |split: bool| {
        let filter = json!({ "room": { "timeline": { "unread_thread_notifications": split } } });
        let (_, rooms) = synced(&house, &alice, None, filter).await;
        let share = &rooms["join"][room.as_str()];
        let count = |unread: &Value| unread["notification_count"].as_u64();
        let threads = &share["unread_thread_notifications"];
        let of = |root: &OwnedEventId| count(&threads[root.as_str()]);
        (count(&share["unread_notifications"]).unwrap(), of(&one), of(&two))
    };
    assert_eq!(counts(false).await, (4, None, None));
    assert_eq!(counts(true).await, (1, Some(2), Some(1)));
    let read = async |event: &OwnedEventId, thread: Option<&str>| {
        let thread = thread.map(str::to_owned);
        let marker = Marker { kind: "m.read".to_owned(), event_id: event.clone(), thread, allow_backward: false };
        house.rooms.set_receipt(&alice, &room, marker).await.unwrap();
    };
    read(&reference, Some(one.as_str())).await;
    assert_eq!(counts(true).await, (1, None, Some(1)));
    assert_eq!(counts(false).await, (2, None, None));
    read(&reference, None).await;
    assert_eq!(counts(true).await, (0, None, None));
    // Apps take an object without threads for one that has news of them.
    let (_, rooms) =
        synced(&house, &alice, None, json!({ "room": { "timeline": { "unread_thread_notifications": true } } })).await;
    assert!(rooms["join"][room.as_str()].get("unread_thread_notifications").is_none(), "{rooms}");
    // Of two receipts on one event the sync tells the one that covers more (MSC4102).
    let (_, rooms) = synced(&house, &alice, None, json!({})).await;
    let receipt = &rooms["join"][room.as_str()]["ephemeral"]["events"][0]["content"][reference.as_str()];
    assert_eq!(receipt["m.read"][alice.as_str()].get("thread_id"), None, "{receipt}");

    let related = |recurse, from| Related {
        event_id: one.to_string(),
        rel_type: None,
        kind: None,
        from,
        to: None,
        backwards: true,
        limit: 1,
        recurse,
    };
    let bodies = |page: &Value| {
        let events = page["chunk"].as_array().unwrap().iter();
        events.map(|event| event["content"]["body"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let page = answered(house.rooms.relations(&reader(&alice), &room, related(true, None)).await).await;
    assert_eq!((bodies(&page), &page["recursion_depth"]), (vec!["about it".to_owned()], &json!(3)));
    let from = Token::parse(page["next_batch"].as_str().unwrap());
    let page = answered(house.rooms.relations(&reader(&alice), &room, related(true, from)).await).await;
    assert_eq!((bodies(&page), page.get("next_batch")), (vec!["in one".to_owned()], None));
    let upto = Related { to: from, ..related(true, None) };
    assert_eq!(bodies(&answered(house.rooms.relations(&reader(&alice), &room, upto).await).await), ["about it"]);
    let page = answered(house.rooms.relations(&reader(&alice), &room, related(false, None)).await).await;
    assert_eq!((bodies(&page), page.get("recursion_depth")), (vec!["in one".to_owned()], None));

    let threads = |participated, from, limit| Threads { participated, from, limit };
    let page = answered(house.rooms.threads(&reader(&alice), &room, threads(false, None, 1)).await).await;
    assert_eq!(bodies(&page), ["one"], "the one with the newest reply first");
    assert_eq!(page["chunk"][0]["unsigned"]["m.relations"]["m.thread"]["count"], 1);
    let from = Token::parse(page["next_batch"].as_str().unwrap());
    let page = answered(house.rooms.threads(&reader(&alice), &room, threads(false, from, 1)).await).await;
    assert_eq!((bodies(&page), page.get("next_batch")), (vec!["two".to_owned()], None));
    let page = answered(house.rooms.threads(&reader(&alice), &room, threads(true, None, 5)).await).await;
    assert_eq!(bodies(&page), ["one"], "she took part in her own only");

    let event: Value =
        serde_json::from_slice(&house.rooms.event(&reader(&alice), &room, &reply).await.unwrap()).unwrap();
    assert_eq!(event["unsigned"]["m.relations"]["m.reference"], json!({ "chunk": [{ "event_id": reference }] }));
    let nowhere = house.public_room(&bob).await;
    assert!(house.rooms.event(&reader(&bob), &room, &reply).await.is_ok());
    let private = json!({ "join_rule": "invite" });
    house.send(&bob, &nowhere, "m.room.join_rules", Some(""), private).await.unwrap();
    let hidden = house.say(&bob, &nowhere, "hidden").await;
    let refused = house.rooms.event(&reader(&alice), &nowhere, &hidden).await;
    assert!(matches!(refused, Err(crate::room::Error::NotFound)), "not even that the room is there");
}

/// An event, its edit and the last reply of its thread, 60 KiB each, made one piece of 180 KiB.
#[tokio::test]
async fn beside_a_long_event_there_is_no_room_for_another() {
    let house = house();
    let alice = house.user("alice").await;
    let room = house.public_room(&alice).await;
    let reader =
        Reader { user: house.user_num(&alice), user_id: alice.clone(), device: "D".to_owned(), sees_all: false };
    let root = house.say(&alice, &room, &"x".repeat(60_000)).await;
    let relate = async |rel: &str, bytes: usize| {
        let relates = json!({ "rel_type": rel, "event_id": root });
        let content =
            json!({ "msgtype": "m.text", "body": "y".repeat(bytes), "m.relates_to": relates, "m.new_content": {} });
        house.send(&alice, &room, "m.room.message", None, content).await.unwrap();
        let told = house.rooms.event(&reader, &room, &root).await.unwrap();
        assert!(told.len() < crate::room::ANSWER_BYTES as usize + 1024);
        serde_json::from_slice::<Value>(&told).unwrap()["unsigned"]["m.relations"].clone()
    };
    let relations = relate("m.replace", 30_000).await;
    assert!(relations["m.replace"].is_object(), "{relations}");
    let relations = relate("m.thread", 60_000).await;
    assert!(relations["m.replace"].is_object(), "{relations}");
    assert_eq!(relations["m.thread"], json!({ "count": 1, "current_user_participated": true }));
    assert_eq!(relate("m.replace", 60_000).await.get("m.replace"), None);
}

#[tokio::test]
async fn nobody_who_left_reads_on_in_what_relates_to_older_events() {
    // A banned user saw edits and thread replies in `m.relations` of events from before the ban, however new they were.
    let house = house();
    let (alice, bob) = (house.user("alice").await, house.user("bob").await);
    let room = house.public_room(&alice).await;
    house.join(&bob, &room).await.unwrap();
    let root = house.say(&alice, &room, "root").await;
    let relate = async |rel: &str, body: &str| {
        let relates = json!({ "rel_type": rel, "event_id": root });
        let content = json!({ "msgtype": "m.text", "body": body, "m.relates_to": relates, "m.new_content": {} });
        house.send(&alice, &room, "m.room.message", None, content).await.unwrap();
    };
    relate("m.thread", "open reply").await;
    house.rooms.leave(&bob, &room, None).await.unwrap();
    relate("m.thread", "secret reply").await;
    relate("m.replace", "secret edit").await;
    for (user, told) in [(&alice, true), (&bob, false)] {
        let reader =
            Reader { user: house.user_num(user), user_id: user.clone(), device: "D".to_owned(), sees_all: false };
        let event: Value = serde_json::from_slice(&house.rooms.event(&reader, &room, &root).await.unwrap()).unwrap();
        let relations = &event["unsigned"]["m.relations"];
        assert_eq!(relations["m.replace"].is_object(), told, "{relations}");
        assert_eq!(relations["m.thread"]["count"], if told { 2 } else { 1 });
        let filter = json!({ "room": { "include_leave": true } });
        let (_, rooms) = synced(&house, user, None, filter).await;
        assert_eq!(rooms.to_string().contains("secret"), told);
    }
}

/// An app saw that an invite was gone, and neither by whom nor why.
#[tokio::test]
async fn who_ended_an_invite_from_outside_is_shown_with_the_reason() {
    let house = house();
    let alice = house.user("alice").await;
    let room = OwnedRoomId::try_from("!far:away.example").unwrap();
    let own = json!({ "type": "m.room.member", "state_key": alice, "sender": "@bob:away.example", "content": {} });
    for (by, length) in [("@bob:away.example", 10), ("@bob:away.example", 9_000), (alice.as_str(), 10)] {
        house.invited_outside(&alice, &room, json!([own])).await;
        let (since, rooms) = synced(&house, &alice, None, json!({})).await;
        assert!(rooms["invite"][room.as_str()].is_object());
        let reason = "x".repeat(length);
        let content = json!({ "membership": "leave", "reason": reason });
        let id = match by == alice {
            true => {
                house.leave_outside(&alice, &room, None, content).await;
                None
            }
            false => {
                let event = json!({
                    "type": "m.room.member", "state_key": alice, "sender": by, "room_id": room, "content": content,
                    "prev_events": ["$x"], "auth_events": ["$y"], "depth": 9, "origin_server_ts": 77,
                });
                house.leave_outside(&alice, &room, Some("away.example"), event).await
            }
        };
        let (_, rooms) = synced(&house, &alice, Some(since), json!({})).await;
        let timeline = rooms["leave"][room.as_str()]["timeline"]["events"].as_array().unwrap();
        let [leave] = &timeline[..] else { panic!("{rooms}") };
        assert_eq!((&leave["sender"], &leave["state_key"]), (&json!(by), &json!(alice)));
        assert_eq!((&leave["type"], &leave["content"]["membership"]), (&json!("m.room.member"), &json!("leave")));
        // Others do not choose how much is kept.
        assert_eq!(leave["content"]["reason"], if length > 5_000 { Value::Null } else { json!(reason) });
        assert!(id.is_none_or(|id| leave["event_id"] == id.as_str() && leave["origin_server_ts"] == 77));
        let without = json!({ "room": { "timeline": { "not_types": ["m.room.member"] } } });
        let (_, rooms) = synced(&house, &alice, Some(since), without).await;
        assert_eq!(rooms["leave"][room.as_str()]["timeline"]["events"], json!([]));
    }
}

#[tokio::test]
async fn a_share_comes_in_pieces_whatever_the_room() {
    let house = house();
    let alice = house.user("alice").await;
    let room = house.public_room(&alice).await;
    for number in 0..80 {
        let content = json!({ "note": format!("{number} {}", "long ".repeat(200)) });
        house.send(&alice, &room, "com.example.note", Some(&number.to_string()), content).await.unwrap();
    }
    let reader =
        Reader { user: house.user_num(&alice), user_id: alice.clone(), device: "D".to_owned(), sees_all: false };
    let sections = RoomSections::new(house.rooms.sync_view(reader).unwrap(), None, false, Arc::default());
    let changed = sections.next(Section::Join, None, &[]).unwrap().unwrap();
    assert!(sections.next(Section::Join, Some(changed.room.num), &[]).unwrap().is_none());
    let mut chunks = written(move |pen| async move {
        pen.text("{");
        sections.write(&pen, Section::Join, &changed).await?;
        pen.text("}");
        Ok(())
    });
    let (mut whole, mut pieces, mut more) = (Vec::new(), 0, true);
    while more {
        let mut piece = Vec::new();
        more = chunks.next(&mut piece).unwrap();
        assert!(piece.len() < 20 * 1024, "a piece and one event");
        whole.extend_from_slice(&piece);
        pieces += 1;
    }
    assert!(pieces > 4);
    let share: Value = serde_json::from_slice(&whole).unwrap();
    let count = |part: &str| share[part]["events"].as_array().unwrap().len();
    assert_eq!(count("timeline"), TIMELINE_EVENTS);
    assert!(count("state") >= 70);
    assert_eq!(share["timeline"]["limited"], true);
}

#[test]
fn tokens_come_back_as_they_were() {
    let since = SyncToken { at: Position(7), typing: 1_700_000_000_001, messages: Position(7), presence: 0 };
    assert_eq!(since.to_string(), "s7_1700000000001");
    let behind = SyncToken { messages: Position(3), ..since };
    for since in [since, behind] {
        assert_eq!(SyncToken::parse(&since.to_string()), Some(since));
    }
    assert_eq!(SyncToken::parse("s7_1700000000001_9"), Some(since), "not of the future");
    assert_eq!(Token::parse(&since.to_string()), Some(Token(7)));
    assert_eq!(Token::parse("t-5"), Some(Token(-5)));
    for wrong in ["", "s", "s5", "s5_5_", "s5_5_5_5", "t", "tx", "x5_5", "\u{e9}5"] {
        assert!(SyncToken::parse(wrong).is_none() && Token::parse(wrong).is_none(), "{wrong}");
    }
}

/// In a room with many newer receipts, the reader's own receipt did not fit and no later sync told it: the room stayed
/// unread.
#[tokio::test]
async fn ones_own_receipt_is_told_however_many_others_there_are() {
    let house = house();
    let alice = house.user("alice").await;
    let room = house.public_room(&alice).await;
    let event = house.say(&alice, &room, "read me").await;
    let marker =
        Marker { kind: "m.read.private".to_owned(), event_id: event.clone(), thread: None, allow_backward: false };
    house.rooms.set_receipt(&alice, &room, marker).await.unwrap();
    let (num, id) = (house.room_num(&room), event.to_string());
    let busy = house.store.write(move |w| {
        for n in 0..RECEIPTS_MAX + 10 {
            let user = user::intern(w, &format!("@{n}:far.example"))?;
            let whose = Whose { user, kind: receipt::Kind::Read, thread: String::new() };
            let at = w.next_position();
            receipt::put(w, num, &whose, &Receipt { event_id: id.clone(), ts: 1, at })?;
        }
        Ok(())
    });
    busy.await.map_err(|failed: crate::store::WriteError<store::Error>| failed.into_inner()).unwrap();
    let (_, rooms) = synced(&house, &alice, None, json!({})).await;
    let told = &rooms["join"][room.as_str()]["ephemeral"]["events"][0]["content"][event.as_str()];
    assert_eq!(told["m.read"].as_object().unwrap().len(), RECEIPTS_MAX);
    assert!(told["m.read.private"][alice.as_str()].is_object(), "{told}");
}

/// A room's topic for an app that applies the state of a share and then its timeline.
fn topic(share: &Value) -> Option<&str> {
    let mut events = ["state", "timeline"].iter().flat_map(|part| share[part]["events"].as_array().unwrap());
    events.rfind(|event| event["type"] == "m.room.topic").and_then(|event| event["content"]["topic"].as_str())
}

/// The timeline began before the leave with an old topic, which apps applied over the new one in `state`.
#[tokio::test]
async fn after_coming_back_the_timeline_does_not_undo_the_state() {
    let house = house();
    let (alice, bob) = (house.user("alice").await, house.user("bob").await);
    let room = house.public_room(&alice).await;
    let set = async |kind: &str, content| house.send(&alice, &room, kind, Some(""), content).await.unwrap();
    set("m.room.history_visibility", json!({ "history_visibility": "joined" })).await;
    house.join(&bob, &room).await.unwrap();
    set("m.room.topic", json!({ "topic": "old" })).await;
    house.say(&alice, &room, "seen").await;
    let (first, _) = synced(&house, &bob, None, json!({})).await;
    house.rooms.leave(&bob, &room, None).await.unwrap();
    set("m.room.topic", json!({ "topic": "new" })).await;
    house.join(&bob, &room).await.unwrap();
    house.say(&alice, &room, "welcome back").await;
    for since in [Some(first), None] {
        let (_, rooms) = synced(&house, &bob, since, json!({})).await;
        let share = &rooms["join"][room.as_str()];
        assert_eq!(topic(share), Some("new"), "{share}");
        assert_eq!(share["timeline"]["limited"], true);
        let bodies = share["timeline"].to_string();
        assert!(bodies.contains("seen") && bodies.contains("welcome back"), "what came after the old topic stays");
    }
    // Without the new topic in the way the timeline goes on further back.
    set("m.room.topic", json!({ "topic": "newest" })).await;
    let (_, rooms) = synced(&house, &bob, Some(first), json!({})).await;
    let share = &rooms["join"][room.as_str()];
    assert_eq!(topic(share), Some("newest"));
    assert!(share["timeline"].to_string().contains("\"old\""));
}

#[tokio::test]
async fn a_timeline_is_limited_only_when_it_leaves_wanted_events_out() {
    let house = house();
    let alice = house.user("alice").await;
    let room = house.public_room(&alice).await;
    let filter = || json!({ "room": { "timeline": { "types": ["m.room.message"], "limit": 1 } } });
    let (first, _) = synced(&house, &alice, None, filter()).await;
    house.send(&alice, &room, "m.reaction", None, json!({})).await.unwrap();
    house.say(&alice, &room, "one").await;
    for since in [Some(first), None] {
        let (_, rooms) = synced(&house, &alice, since, filter()).await;
        assert_eq!(rooms["join"][room.as_str()]["timeline"]["limited"], false, "{since:?}");
    }
    house.say(&alice, &room, "two").await;
    let (_, rooms) = synced(&house, &alice, Some(first), filter()).await;
    assert_eq!(rooms["join"][room.as_str()]["timeline"]["limited"], true);
}

/// An app that had part of the timeline from a preview put the two together as if nothing were between them.
#[tokio::test]
async fn a_room_that_is_new_to_an_app_which_knows_others_is_limited() {
    let house = house();
    let (alice, bob) = (house.user("alice").await, house.user("bob").await);
    let room = house.public_room(&alice).await;
    let (first, _) = synced(&house, &bob, None, json!({})).await;
    house.join(&bob, &room).await.unwrap();
    for (since, limited) in [(Some(first), true), (None, false)] {
        let (_, rooms) = synced(&house, &bob, since, json!({})).await;
        assert_eq!(rooms["join"][room.as_str()]["timeline"]["limited"], limited);
    }
}

/// A first sync of a new room gives a place before its first event: there were no members there.
#[tokio::test]
async fn where_a_timeline_begins_with_the_room_there_is_its_creator() {
    let house = house();
    let (alice, bob) = (house.user("alice").await, house.user("bob").await);
    let room = house.public_room(&alice).await;
    let (_, rooms) = synced(&house, &alice, None, json!({})).await;
    let prev_batch = rooms["join"][room.as_str()]["timeline"]["prev_batch"].as_str().and_then(Token::parse);
    house.join(&bob, &room).await.unwrap();
    let reader =
        Reader { user: house.user_num(&alice), user_id: alice.clone(), device: "D".to_owned(), sees_all: false };
    for (at, members) in [(prev_batch, vec![&alice]), (None, vec![&alice, &bob])] {
        let query = MemberQuery { at, ..MemberQuery::default() };
        let found = answered(house.rooms.members(&reader, &room, query).await).await;
        let found = keys(&json!({ "events": found["chunk"] }));
        assert_eq!(found, members.iter().map(|member| format!("m.room.member {member}")).collect::<Vec<_>>());
    }
}

/// An app that filtered for pictures took the page with the only picture for the room's beginning.
#[tokio::test]
async fn only_a_page_without_events_is_the_last() {
    let house = house();
    let alice = house.user("alice").await;
    let room = house.public_room(&alice).await;
    house.say(&alice, &room, "one").await;
    let reader =
        Reader { user: house.user_num(&alice), user_id: alice.clone(), device: "D".to_owned(), sees_all: false };
    for backwards in [true, false] {
        let (mut from, mut seen) = (None, 0);
        for is_last in [false, true] {
            let paging = Paging { from, to: None, backwards, limit: 100, filter: Default::default() };
            let page = answered(house.rooms.messages(&reader, &room, paging, || false).await).await;
            seen += page["chunk"].as_array().unwrap().len();
            from = page["end"].as_str().and_then(Token::parse);
            assert_eq!((from.is_none(), page["chunk"] == json!([])), (is_last, is_last), "{page}");
        }
        assert_eq!(seen, 6, "{backwards}");
    }
}

#[tokio::test]
async fn a_room_without_wanted_news_is_not_listed_and_wakes_no_app() {
    let house = house();
    let (alice, bob) = (house.user("alice").await, house.user("bob").await);
    let room = house.public_room(&alice).await;
    house.join(&bob, &room).await.unwrap();
    let only = json!({ "types": ["m.room.message"] });
    let none = json!({ "not_types": ["*"] });
    let filter = || json!({ "room": { "timeline": only, "state": { "types": ["m.room.topic"] }, "ephemeral": none, "account_data": none } });
    let listed = async |since: SyncToken| {
        let reader =
            Reader { user: house.user_num(&alice), user_id: alice.clone(), device: "D".to_owned(), sees_all: false };
        let parsed = Arc::new(Filter::parse(filter().to_string().as_bytes()).unwrap());
        let any =
            RoomSections::new(house.rooms.sync_view(reader).unwrap(), Some(since), false, parsed).any(&[]).unwrap();
        let (now, rooms) = synced(&house, &alice, Some(since), filter()).await;
        assert_eq!(rooms["join"].get(room.as_str()).is_some(), any);
        (now, any)
    };
    let (first, _) = synced(&house, &alice, None, filter()).await;
    let event = house.send(&bob, &room, "m.reaction", None, json!({})).await.unwrap();
    let marker = || Marker { kind: "m.read".to_owned(), event_id: event.clone(), thread: None, allow_backward: false };
    house.rooms.set_receipt(&bob, &room, marker()).await.unwrap();
    house.rooms.set_typing(&bob, &room, Some(Duration::from_secs(5))).await.unwrap();
    let fully_read = Marker { kind: "m.fully_read".to_owned(), ..marker() };
    house.rooms.set_receipt(&alice, &room, fully_read).await.unwrap();
    house.send(&alice, &room, "m.room.name", Some(""), json!({ "name": "Cellar" })).await.unwrap();
    let (second, any) = listed(first).await;
    assert!(!any);
    house.send(&alice, &room, "m.room.topic", Some(""), json!({ "topic": "soup" })).await.unwrap();
    let (third, any) = listed(second).await;
    assert!(any, "the state filter wants it");
    house.say(&bob, &room, "hello").await;
    assert!(listed(third).await.1);
    // What an ignored user says is no news either.
    keep(&house, &alice, "m.ignored_user_list", json!({ "ignored_users": { &bob: {} } })).await;
    let (fourth, _) = synced(&house, &alice, None, filter()).await;
    house.say(&bob, &room, "hello?").await;
    assert!(!listed(fourth).await.1);
}

/// A poll that waited on past the event behind a gap, which its app does not see, never told that there was a gap.
#[tokio::test]
async fn a_gap_is_told_though_what_comes_behind_it_is_not_seen() {
    let house = house();
    let (alice, bob) = (house.user("alice").await, house.user("bob").await);
    let room = house.public_room(&alice).await;
    house.join(&bob, &room).await.unwrap();
    keep(&house, &alice, "m.ignored_user_list", json!({ "ignored_users": { &bob: {} } })).await;
    let (first, _) = synced(&house, &alice, None, json!({})).await;
    for text in ["not here", "behind the gap"] {
        house.say(&bob, &room, text).await;
    }
    let mut row = house.row(&room);
    let next = row.latest.0 as i64;
    row.holes.push(Hole { bottom: next - 1, next });
    let num = house.room_num(&room);
    house.store.write(move |w| room::put(w, num, &row)).await.unwrap();
    let (second, rooms) = synced(&house, &alice, Some(first), json!({})).await;
    let timeline = &rooms["join"][room.as_str()]["timeline"];
    assert_eq!((&timeline["limited"], &timeline["events"]), (&json!(true), &json!([])));
    let (_, rooms) = synced(&house, &alice, Some(second), json!({})).await;
    assert_eq!(rooms["join"], json!({}), "it is told once");
}

#[tokio::test]
async fn before_the_create_event_its_reader_was_in_no_room() {
    let house = house();
    let alice = house.user("alice").await;
    let room = house.public_room(&alice).await;
    let (_, rooms) = synced(&house, &alice, None, json!({ "room": { "timeline": { "limit": 50 } } })).await;
    let events = rooms["join"][room.as_str()]["timeline"]["events"].as_array().unwrap();
    let was: Vec<_> = events.iter().map(|event| event["unsigned"]["membership"].as_str()).collect();
    assert_eq!(was[..2], [Some("leave"), Some("join")]);
    assert!(was.iter().all(Option::is_some), "{was:?}");
}

/// Whatever came last was shown as the edit: of another type, without new content, of an edit.
#[tokio::test]
async fn an_edit_is_shown_when_it_is_a_valid_one() {
    let house = house();
    let alice = house.user("alice").await;
    let room = house.public_room(&alice).await;
    let reader =
        Reader { user: house.user_num(&alice), user_id: alice.clone(), device: "D".to_owned(), sees_all: false };
    let relate = async |rel: &str, to: &ruma::EventId, kind: &str, more: Value| {
        let mut content = json!({ "body": "x", "m.relates_to": { "rel_type": rel, "event_id": to } });
        content.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        house.send(&alice, &room, kind, None, content).await
    };
    let relations = async |id: &ruma::EventId| {
        let event = house.rooms.event(&reader, &room, id).await.unwrap();
        serde_json::from_slice::<Value>(&event).unwrap()["unsigned"]["m.relations"].clone()
    };
    let (new, message) = (json!({ "m.new_content": { "body": "y" } }), "m.room.message");
    let root = house.say(&alice, &room, "root").await;
    for (kind, more) in [(message, json!({})), (message, json!({ "m.new_content": 1 })), ("m.other", new.clone())] {
        relate("m.replace", &root, kind, more).await.unwrap();
        assert_eq!(relations(&root).await, Value::Null);
    }
    let edit = relate("m.replace", &root, message, new.clone()).await.unwrap();
    relate("m.replace", &root, message, json!({})).await.unwrap();
    relate("m.replace", &edit, message, new.clone()).await.unwrap();
    assert_eq!(relations(&root).await["m.replace"]["event_id"], json!(edit));
    assert_eq!(relations(&edit).await, Value::Null, "an edit is not edited");

    let reply = relate("m.thread", &root, message, json!({})).await.unwrap();
    let better = relate("m.replace", &reply, message, new).await.unwrap();
    let latest = &relations(&root).await["m.thread"]["latest_event"];
    assert_eq!(latest["event_id"], json!(reply));
    assert_eq!(latest["unsigned"]["m.relations"]["m.replace"]["event_id"], json!(better));
}

#[tokio::test]
async fn relations_that_break_the_rules_are_refused() {
    let house = house();
    let alice = house.user("alice").await;
    let (room, other) = (house.public_room(&alice).await, house.public_room(&alice).await);
    let relate = async |room: &ruma::RoomId, rel: &str, to: &ruma::EventId| {
        let content = json!({ "m.relates_to": { "rel_type": rel, "event_id": to, "key": "x" } });
        house.send(&alice, room, "m.x", None, content).await
    };
    let root = house.say(&alice, &room, "root").await;
    let reply = relate(&room, "m.thread", &root).await.unwrap();
    let refused = async |room: &ruma::RoomId, rel: &str, to: &ruma::EventId, wanted: &str| {
        let refused = relate(room, rel, to).await;
        assert!(matches!(&refused, Err(crate::room::Error::Bad { errcode, .. }) if *errcode == wanted), "{refused:?}");
    };
    refused(&room, "m.thread", &reply, "M_UNKNOWN").await;
    refused(&other, "m.reference", &root, "M_UNKNOWN").await;
    relate(&room, "m.annotation", &root).await.unwrap();
    refused(&room, "m.annotation", &root, "M_DUPLICATE_ANNOTATION").await;
    relate(&room, "m.annotation", &reply).await.unwrap();
}

//! Searches, read back as the JSON they are.

use ruma::{OwnedEventId, OwnedRoomId, RoomId, UserId};
use serde_json::{Value, json};

use super::*;
use crate::room::testing::{House, house, sending};
use crate::room::words::keep::SearchOptions;
use crate::room::{Create, Preset};
use crate::store::tables::room::search;
use crate::store::tables::user::account_data;

fn asked(term: &str) -> SearchQuery {
    SearchQuery {
        term: term.to_owned(),
        keys: Key::ALL.to_vec(),
        filter: Events::default(),
        limit: 10,
        by_rank: false,
        context: None,
        include_state: false,
        by_room: false,
        by_sender: false,
        batch: None,
    }
}

async fn find(house: &House, user: &UserId, query: SearchQuery) -> Value {
    let reader =
        Reader { user: house.user_num(user), user_id: user.to_owned(), device: "D".to_owned(), sees_all: false };
    let mut chunks = house.rooms.search(&reader, query).await.unwrap();
    let (mut whole, mut more) = (Vec::new(), true);
    while more {
        more = chunks.next(&mut whole).unwrap();
    }
    let answer: Value = serde_json::from_slice(&whole).unwrap();
    answer["search_categories"]["room_events"].clone()
}

/// The texts of the results.
fn texts(answer: &Value) -> Vec<&str> {
    fn text(result: &Value) -> &str {
        let content = &result["result"]["content"];
        ["body", "name", "topic"].iter().find_map(|key| content[*key].as_str()).unwrap()
    }
    answer["results"].as_array().unwrap().iter().map(text).collect()
}

async fn redact(house: &House, user: &UserId, room: &RoomId, id: &OwnedEventId) {
    let mut redaction = sending("m.room.redaction", None, json!({ "redacts": id }));
    redaction.redacts = Some(id.clone());
    house.rooms.send(user, room, redaction).await.unwrap();
}

async fn room(house: &House, user: &UserId, name: &str) -> OwnedRoomId {
    let create = Create { preset: Some(Preset::Public), name: Some(name.to_owned()), ..Create::default() };
    house.rooms.create(user, create).await.unwrap()
}

fn only(rooms: &[&RoomId]) -> Events {
    Events { rooms: Some(rooms.iter().map(|room| room.to_string()).collect()), ..Events::default() }
}

/// Each step is asked before and after the index has the events.
#[tokio::test]
async fn messages_are_found_at_once_and_later_and_redacted_ones_never() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    house.rooms.index_all().await;
    let garden = room(&house, &anna, "The Garden").await;
    let secret = room(&house, &ben, "Secret garden").await;
    house.say(&ben, &secret, "tulips, but not for Anna").await;
    let first = house.say(&anna, &garden, "Tulips and roses").await;
    house.say(&anna, &garden, "More TULIPS than roses").await;
    let filler = async |count: usize| {
        for n in 0..count {
            house.say(&anna, &garden, &format!("filler number {n}")).await;
        }
    };
    let check = async || {
        let answer = find(&house, &anna, asked("tulips roses")).await;
        assert_eq!(texts(&answer), ["More TULIPS than roses", "Tulips and roses"]);
        assert_eq!((&answer["count"], answer["next_batch"].is_null()), (&json!(2), true));
        assert_eq!(answer["highlights"], json!(["tulips", "roses"]));
        assert_eq!(texts(&find(&house, &anna, asked("garden")).await), ["The Garden"]);
        assert_eq!(texts(&find(&house, &anna, asked("tulips -more")).await), ["Tulips and roses"]);
        assert_eq!(texts(&find(&house, &anna, asked("\"and roses\"")).await), ["Tulips and roses"]);
        assert_eq!(texts(&find(&house, &ben, asked("tulips")).await), ["tulips, but not for Anna"]);
        for nothing in ["roses anna", "", "unheard"] {
            let answer = find(&house, &anna, asked(nothing)).await;
            assert_eq!((texts(&answer).len(), &answer["count"]), (0, &json!(0)), "{nothing}");
        }
    };
    check().await;
    filler(300).await;
    house.rooms.index_all().await;
    let status = search::status::get(&house.read()).unwrap().unwrap();
    assert!(status.segments.iter().map(|segment| segment.events).sum::<u64>() > 280, "{status:?}");
    check().await;

    // Words of an event that is in the index, and of one that is not yet.
    let last = house.say(&anna, &garden, "tulips roses, the last").await;
    redact(&house, &anna, &garden, &first).await;
    redact(&house, &anna, &garden, &last).await;
    let answer = find(&house, &anna, asked("tulips roses")).await;
    assert_eq!(texts(&answer), ["More TULIPS than roses"]);
    house.rooms.index_all().await;
    let answer = find(&house, &anna, asked("tulips roses")).await;
    assert_eq!((texts(&answer), &answer["count"]), (vec!["More TULIPS than roses"], &json!(1)));
    assert!(search::first_gone(&house.read()).unwrap().is_none());
}

#[tokio::test]
async fn only_what_the_user_may_see_is_found() {
    let house = house();
    let (anna, ben, eve) = (house.user("anna").await, house.user("ben").await, house.user("eve").await);
    let garden = room(&house, &anna, "Garden").await;
    let history = json!({ "history_visibility": "joined" });
    house.send(&anna, &garden, "m.room.history_visibility", Some(""), history).await.unwrap();
    house.say(&anna, &garden, "a rose before").await;
    house.join(&ben, &garden).await.unwrap();
    house.join(&eve, &garden).await.unwrap();
    house.say(&eve, &garden, "a rose of hers").await;
    house.say(&anna, &garden, "a rose between").await;
    house.rooms.leave(&ben, &garden, None).await.unwrap();
    house.say(&anna, &garden, "a rose after").await;
    let check = async || {
        // Ben asked for word after word, and by the count knew what was said before he came and after he left.
        for by_rank in [false, true] {
            for limit in [1, 10] {
                let asked = |term| SearchQuery { by_rank, limit, ..asked(term) };
                assert_eq!(find(&house, &ben, asked("rose")).await["count"], 2);
                assert_eq!(find(&house, &anna, asked("rose")).await["count"], 4);
                for unseen in ["before", "after"] {
                    let answer = find(&house, &ben, asked(unseen)).await;
                    assert_eq!((&answer["count"], &answer["highlights"]), (&json!(0), &json!([unseen])));
                }
            }
        }
        let first = find(&house, &ben, SearchQuery { limit: 1, ..asked("rose") }).await;
        let batch = Batch::parse(first["next_batch"].as_str().unwrap());
        let second = find(&house, &ben, SearchQuery { limit: 1, batch, ..asked("rose") }).await;
        assert_eq!((texts(&second), &second["count"]), (vec!["a rose of hers"], &json!(2)));
        assert_eq!(texts(&find(&house, &ben, asked("rose")).await), ["a rose between", "a rose of hers"]);
        assert_eq!(texts(&find(&house, &anna, asked("rose")).await).len(), 4);
        let ours =
            SearchQuery { filter: Events { not_senders: vec![eve.to_string()], ..only(&[&garden]) }, ..asked("rose") };
        assert_eq!(texts(&find(&house, &anna, ours).await), ["a rose after", "a rose between", "a rose before"]);
        let names = find(&house, &anna, SearchQuery { keys: vec![Key::Name], ..asked("rose") }).await;
        assert_eq!((texts(&names), &names["count"]), (vec![], &json!(0)));
        let elsewhere = SearchQuery {
            filter: Events { not_rooms: vec![garden.to_string()], ..Events::default() },
            ..asked("rose")
        };
        assert_eq!(texts(&find(&house, &anna, elsewhere).await), [""; 0]);
    };
    check().await;
    // What was there before the index is taken in too.
    house.rooms.index_all().await;
    assert_eq!(search::status::get(&house.read()).unwrap().unwrap().low.0, 1);
    check().await;

    let num = house.user_num(&ben);
    let list = json!({ "ignored_users": { (eve.as_str()): {} } }).to_string();
    let ignore = move |w: &mut crate::store::Write<'_>| {
        account_data::set(w, num, account_data::GLOBAL, "m.ignored_user_list", list.as_bytes()).map(drop)
    };
    house.store.write(ignore).await.unwrap();
    assert_eq!(texts(&find(&house, &ben, asked("rose")).await), ["a rose between"]);
    house.rooms.forget(&ben, &garden).await.unwrap();
    assert_eq!(texts(&find(&house, &ben, asked("rose")).await), [""; 0]);
}

#[tokio::test]
async fn pages_go_from_the_newest_to_the_oldest() {
    let house = house();
    let anna = house.user("anna").await;
    house.rooms.index_all().await;
    let rooms = [room(&house, &anna, "one").await, room(&house, &anna, "two").await];
    for n in 0..25 {
        house.say(&anna, &rooms[n % 2], &format!("message {n}")).await;
        if n == 15 {
            for _ in 0..260 {
                house.say(&anna, &rooms[0], "filler").await;
            }
            house.rooms.index_all().await;
        }
    }
    let (mut all, mut batch, mut pages) = (Vec::new(), None, 0);
    loop {
        let answer = find(&house, &anna, SearchQuery { batch, by_room: true, ..asked("message") }).await;
        assert_eq!(answer["count"], 25);
        all.extend(texts(&answer).into_iter().map(str::to_owned));
        pages += 1;
        let Some(next) = answer["next_batch"].as_str() else { break };
        batch = Some(Batch::parse(next).unwrap());
    }
    let expected: Vec<_> = (0..25).rev().map(|n| format!("message {n}")).collect();
    assert_eq!((all, pages), (expected, 3));

    // A group goes on by itself.
    let first = find(&house, &anna, SearchQuery { by_room: true, ..asked("message") }).await;
    let group = &first["groups"]["room_id"][rooms[1].as_str()];
    assert_eq!((group["results"].as_array().unwrap().len(), &group["order"]), (5, &json!(1)));
    let batch = Batch::parse(group["next_batch"].as_str().unwrap());
    let more = find(&house, &anna, SearchQuery { batch, ..asked("message") }).await;
    assert_eq!(
        texts(&more),
        ["message 13", "message 11", "message 9", "message 7", "message 5", "message 3", "message 1"]
    );
    for wrong in ["", "b", "b1_2_3", "b1_2_3_4_5", "x1_2_3_4", "b1_2_3_-4"] {
        assert_eq!(Batch::parse(wrong), None, "{wrong}");
    }
}

#[tokio::test]
async fn results_come_with_context_profiles_state_and_groups() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let garden = room(&house, &anna, "Garden").await;
    house.join(&ben, &garden).await.unwrap();
    for n in 1..=7 {
        house.say(if n % 2 == 0 { &anna } else { &ben }, &garden, &format!("number {n}")).await;
    }
    let context = Some(Context { before: 2, after: 2, profiles: true });
    let query = SearchQuery {
        context,
        include_state: true,
        by_sender: true,
        by_room: true,
        by_rank: true,
        ..asked("number 4")
    };
    let answer = find(&house, &anna, query).await;
    let found = &answer["results"][0];
    let bodies = |events: &Value| -> Vec<String> {
        events.as_array().unwrap().iter().map(|event| event["content"]["body"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        (&found["result"]["content"]["body"], &found["result"]["room_id"]),
        (&json!("number 4"), &json!(garden))
    );
    assert!(found["rank"].as_f64().unwrap() > 0.0);
    assert_eq!(bodies(&found["context"]["events_before"]), ["number 3", "number 2"]);
    assert_eq!(bodies(&found["context"]["events_after"]), ["number 5", "number 6"]);
    assert!(found["context"]["start"].is_string() && found["context"]["end"].is_string());
    let profiles = found["context"]["profile_info"].as_object().unwrap();
    assert_eq!(profiles.keys().collect::<Vec<_>>(), [anna.as_str(), ben.as_str()]);
    let state = answer["state"][garden.as_str()].as_array().unwrap();
    assert!(state.iter().any(|event| event["type"] == "m.room.create"));
    let id = &found["result"]["event_id"];
    assert_eq!(answer["groups"]["sender"][anna.as_str()], json!({ "order": 1, "results": [id] }));
    assert_eq!(answer["groups"]["room_id"][garden.as_str()], json!({ "order": 1, "results": [id] }));
    assert!(answer["next_batch"].is_null());
}

#[tokio::test]
async fn what_fits_best_comes_first_by_rank() {
    let house = house();
    let anna = house.user("anna").await;
    let garden = room(&house, &anna, "Garden").await;
    house.say(&anna, &garden, "red roses").await;
    house.say(&anna, &garden, "roses that are red, and many other things that grow there").await;
    let query = SearchQuery { by_rank: true, limit: 1, ..asked("red roses") };
    let answer = find(&house, &anna, query).await;
    assert_eq!((texts(&answer), &answer["count"]), (vec!["red roses"], &json!(2)));
}

#[tokio::test]
async fn an_upgraded_room_is_searched_with_the_one_before_it() {
    let house = house();
    let anna = house.user("anna").await;
    let old = room(&house, &anna, "Garden").await;
    house.say(&anna, &old, "roses before").await;
    let new = house.rooms.upgrade(&anna, &old, "12", Vec::new()).await.unwrap();
    house.say(&anna, &new, "roses after").await;
    let found = find(&house, &anna, SearchQuery { filter: only(&[&new]), ..asked("roses") }).await;
    assert_eq!(texts(&found), ["roses after", "roses before"]);
    let found = find(&house, &anna, SearchQuery { filter: only(&[&old]), ..asked("roses") }).await;
    assert_eq!(texts(&found), ["roses before"]);
}

#[tokio::test]
async fn a_search_that_is_switched_off_has_no_index() {
    let house = house();
    let anna = house.user("anna").await;
    let garden = room(&house, &anna, "Garden").await;
    for n in 0..300 {
        house.say(&anna, &garden, &format!("number {n}")).await;
    }
    house.rooms.index_all().await;
    assert!(search::status::get(&house.read()).unwrap().unwrap().bytes() > 1_000);
    // The next start has the other setting.
    let again = crate::room::testing::house_on(crate::budget::Budget::for_tests(), house.store.clone());
    again.rooms.set_search(SearchOptions { enabled: false, ..SearchOptions::default() });
    again.rooms.index_all().await;
    assert!(search::status::get(&again.read()).unwrap().is_none());
    let reader = Reader { user: again.user_num(&anna), user_id: anna, device: "D".to_owned(), sees_all: false };
    let refused = again.rooms.search(&reader, asked("number")).await.err().unwrap();
    assert!(matches!(refused, Error::Bad { errcode: "M_UNKNOWN", .. }));
}

/// The figures of an ordinary room: what the index takes, and what it writes for each message in all.
#[tokio::test]
async fn the_index_is_small_and_cheap_to_write() {
    let house = house();
    let anna = house.user("anna").await;
    house.rooms.index_all().await;
    let garden = room(&house, &anna, "Garden").await;
    let random = crate::base::Random::seeded(3);
    // Few words are frequent and many are rare, as in a language.
    let word = || format!("w{}", (random.below(40) * random.below(40) * random.below(40)) as u32);
    let (mut written, messages) = (0, 3_000);
    for n in 0..messages {
        let text: Vec<_> = (0..2 + random.below(16)).map(|_| word()).collect();
        house.say(&anna, &garden, &text.join(" ")).await;
        if n % 300 == 299 {
            house.store.take_counted();
            house.rooms.index_all().await;
            written += house.store.take_counted().bytes();
        }
    }
    let bytes = search::status::get(&house.read()).unwrap().unwrap().bytes();
    let row = house.row(&garden);
    assert!(bytes < row.bytes / 10, "{bytes} of {}", row.bytes);
    assert!(written < 300 * messages, "{} bytes for each message", written / messages);
}

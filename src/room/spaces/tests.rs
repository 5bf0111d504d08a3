//! Hierarchies and summaries of rooms here.

use ruma::{OwnedRoomId, ServerName, UserId};
use serde_json::{Value, json};

use super::*;
use crate::room::testing::{House, house, is_forbidden};
use crate::room::{Create, Preset};

fn read_back(mut chunks: impl Chunks) -> Value {
    let (mut whole, mut more) = (Vec::new(), true);
    while more {
        more = chunks.next(&mut whole).unwrap();
    }
    serde_json::from_slice(&whole).unwrap()
}

async fn room(house: &House, by: &UserId, preset: Preset, name: &str, is_space: bool) -> OwnedRoomId {
    house.clock.advance(Duration::from_millis(1));
    let mut create = Create { preset: Some(preset), ..Create::default() };
    create.name = Some(name.to_owned());
    if is_space {
        create.creation_content = json!({ "type": "m.space" }).as_object().unwrap().clone();
    }
    house.rooms.create(by, create).await.unwrap()
}

async fn put_in(house: &House, by: &UserId, space: &OwnedRoomId, child: &OwnedRoomId, more: Value) {
    let mut content = json!({ "via": [house.server] });
    content.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    house.clock.advance(Duration::from_millis(1));
    house.send(by, space, "m.space.child", Some(child.as_str()), content).await.unwrap();
}

async fn page(house: &House, who: &UserId, room: &OwnedRoomId, query: HierarchyQuery) -> Value {
    read_back(house.rooms.hierarchy(who, room, query, || true).await.unwrap())
}

fn names(page: &Value) -> Vec<&str> {
    page["rooms"].as_array().unwrap().iter().map(|room| room["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_tree_is_read_in_order_and_a_loop_ends() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let top = room(&house, &anna, Preset::Public, "top", true).await;
    let inner = room(&house, &anna, Preset::Public, "inner", true).await;
    let mut leaves = Vec::new();
    for name in ["a", "b", "c", "d"] {
        leaves.push(room(&house, &anna, Preset::Public, name, false).await);
    }
    let hidden = room(&house, &anna, Preset::Private, "hidden", false).await;
    put_in(&house, &anna, &top, &leaves[0], json!({})).await;
    put_in(&house, &anna, &top, &hidden, json!({})).await;
    put_in(&house, &anna, &top, &inner, json!({ "order": "b" })).await;
    put_in(&house, &anna, &top, &leaves[1], json!({ "order": "a", "suggested": true })).await;
    put_in(&house, &anna, &top, &leaves[2], json!({ "order": "a\u{1}" })).await;
    put_in(&house, &anna, &inner, &leaves[3], json!({ "suggested": true })).await;
    put_in(&house, &anna, &inner, &top, json!({})).await;
    put_in(&house, &anna, &inner, &leaves[0], json!({})).await;
    house.send(&anna, &top, "m.space.child", Some("!gone:home.example"), json!({})).await.unwrap();

    let all = page(&house, &ben, &top, HierarchyQuery::default()).await;
    assert_eq!(names(&all), ["top", "b", "inner", "d", "a", "c"]);
    let own = page(&house, &anna, &top, HierarchyQuery::default()).await;
    assert_eq!(names(&own), ["top", "b", "inner", "d", "a", "hidden", "c"]);
    assert_eq!(all["rooms"][0]["children_state"].as_array().unwrap().len(), 5);
    assert_eq!(all["rooms"][0]["children_state"][0]["state_key"], leaves[1].as_str());
    assert!(all["rooms"][0]["children_state"][0]["origin_server_ts"].is_u64());
    assert_eq!(all["rooms"][1]["children_state"], json!([]));
    assert_eq!(all["rooms"][0]["room_type"], "m.space");
    assert!(all.get("next_batch").is_none());

    let shallow = HierarchyQuery { max_depth: Some(1), ..HierarchyQuery::default() };
    assert_eq!(names(&page(&house, &ben, &top, shallow).await), ["top", "b", "inner", "a", "c"]);
    let suggested = HierarchyQuery { suggested_only: true, ..HierarchyQuery::default() };
    let some = page(&house, &ben, &top, suggested).await;
    assert_eq!(names(&some), ["top", "b"]);
    assert_eq!(some["rooms"][0]["children_state"].as_array().unwrap().len(), 1);

    let (mut from, mut found) = (None, Vec::new());
    loop {
        let query = HierarchyQuery { limit: Some(2), from: from.clone(), ..HierarchyQuery::default() };
        let one = page(&house, &ben, &top, query).await;
        assert!(one["rooms"].as_array().unwrap().len() <= 2);
        found.extend(names(&one).into_iter().map(str::to_owned));
        let Some(next) = one["next_batch"].as_str() else { break };
        from = Some(next.to_owned());
    }
    assert_eq!(found, names(&all));
    let other = HierarchyQuery { max_depth: Some(3), from, ..HierarchyQuery::default() };
    let refused = house.rooms.hierarchy(&ben, &top, other, || true).await;
    assert!(matches!(refused.err(), Some(Error::Bad { errcode: "M_INVALID_PARAM", .. })));
    assert!(is_forbidden(house.rooms.hierarchy(&ben, &hidden, HierarchyQuery::default(), || true).await.map(drop)));
    let nowhere = RoomId::parse("!nowhere:home.example").unwrap();
    assert!(is_forbidden(house.rooms.hierarchy(&ben, &nowhere, HierarchyQuery::default(), || true).await.map(drop)));
}

#[tokio::test]
async fn a_thousand_rooms_come_page_by_page() {
    let house = house();
    let anna = house.user("anna").await;
    let top = room(&house, &anna, Preset::Public, "top", true).await;
    for nth in 0..1_010 {
        let id = OwnedRoomId::try_from(format!("!{nth:04}:home.example")).unwrap();
        house.send(&anna, &top, "m.space.child", Some(id.as_str()), json!({ "via": ["home.example"] })).await.unwrap();
    }
    let last = room(&house, &anna, Preset::Public, "last", false).await;
    put_in(&house, &anna, &top, &last, json!({ "order": "a" })).await;
    let all = page(&house, &anna, &top, HierarchyQuery::default()).await;
    let children = all["rooms"][0]["children_state"].as_array().unwrap();
    assert_eq!(children.len(), children::CHILDREN_MAX);
    let asked = Asked {
        user: anna.clone(),
        room_id: top.clone(),
        max_depth: None,
        suggested_only: false,
        sees_all: false,
        us: house.server.clone(),
        via: Vec::new(),
    };
    let mut walk = Walk::new(asked, 900, PAGE_MAX, HashSet::new());
    assert!(matches!(walk.go_on(&house.read(), house.clock.now_ms()).unwrap(), Step::Done));
    assert_eq!(walk.next(), None);
    // Those taken out again are read too, and only so many.
    let read = house.read();
    let num = house.room_num(&top);
    assert_eq!(children::child_events(&read, num, true, 30).unwrap(), (Vec::new(), 30));
    // Besides that 96 KiB while the children are put in order.
    assert!(walk.held() as u64 + 96 * 1024 <= WALK_BYTES, "{}", walk.held());
    // The same time and no order: by their ids.
    let ids: Vec<_> = children.iter().map(|child| child["state_key"].as_str().unwrap()).collect();
    assert!(ids.is_sorted() || ids[0] == last.as_str());
}

#[tokio::test]
async fn a_room_is_shown_to_those_who_may_come_in() {
    let house = house();
    let (anna, ben, cleo) = (house.user("anna").await, house.user("ben").await, house.user("cleo").await);
    let space = room(&house, &anna, Preset::Public, "space", true).await;
    let inside = room(&house, &anna, Preset::Private, "inside", false).await;
    let rule = json!({ "join_rule": "restricted", "allow": [{ "type": "m.room_membership", "room_id": space }] });
    house.send(&anna, &inside, "m.room.join_rules", Some(""), rule).await.unwrap();
    house.join(&ben, &space).await.unwrap();
    let seen =
        async |who: Option<&UserId>, room: &RoomId| house.rooms.summary(who, room, Vec::new(), || true).await.ok();
    let summary = serde_json::to_value(seen(Some(&ben), &inside).await.unwrap()).unwrap();
    assert_eq!(summary["allowed_room_ids"], json!([space]));
    assert_eq!((&summary["membership"], &summary["join_rule"]), (&json!("leave"), &json!("restricted")));
    assert!(summary["room_version"].is_string());
    assert!(seen(Some(&cleo), &inside).await.is_none() && seen(None, &inside).await.is_none());
    assert!(seen(None, &space).await.unwrap().membership.is_none());
    house.rooms.invite(&anna, &inside, &cleo, Default::default()).await.unwrap();
    assert_eq!(seen(Some(&cleo), &inside).await.unwrap().membership, Some("invite"));
    // A room of which nothing is known but an invite from elsewhere.
    let far = RoomId::parse("!far:away.example").unwrap();
    assert!(seen(Some(&ben), &far).await.is_none());

    let served = async |origin: &str, room: &RoomId| {
        let origin = <&ServerName>::try_from(origin).unwrap();
        house.rooms.serve_hierarchy(origin, room, false).await.map(read_back)
    };
    put_in(&house, &anna, &space, &inside, json!({})).await;
    let told = served("away.example", &space).await.unwrap();
    assert_eq!(told["room"]["name"], "space");
    assert_eq!(told["room"]["children_state"][0]["state_key"], inside.as_str());
    assert_eq!((&told["children"], &told["inaccessible_children"]), (&json!([]), &json!([inside])));
    assert!(matches!(served("away.example", &inside).await, Err(Error::NotFound)));
    let told = served("home.example", &space).await.unwrap();
    assert_eq!((&told["children"][0]["name"], &told["inaccessible_children"]), (&json!("inside"), &json!([])));
}

#[tokio::test]
async fn rooms_that_two_share_are_told_in_pages() {
    let house = house();
    let (anna, ben) = (house.user("anna").await, house.user("ben").await);
    let mut shared = Vec::new();
    for nth in 0..MUTUAL_MAX + 5 {
        let one = house.public_room(&anna).await;
        if nth % 20 != 3 {
            house.join(&ben, &one).await.unwrap();
            shared.push(one.to_string());
        }
    }
    let (first, count, next) = house.rooms.mutual_rooms(&anna, ben.as_str(), None).await.unwrap();
    assert_eq!((first, count, next), (shared.clone(), shared.len() as u64, None));
    let (none, count, _) = house.rooms.mutual_rooms(&anna, "@nobody:home.example", None).await.unwrap();
    assert_eq!((none.len(), count), (0, 0));
    for nth in 0..10 {
        let one = house.public_room(&ben).await;
        house.join(&anna, &one).await.unwrap();
        shared.push(format!("{one}"));
        assert!(nth < 10);
    }
    let (mut first, count, next) = house.rooms.mutual_rooms(&anna, ben.as_str(), None).await.unwrap();
    assert_eq!((first.len(), count), (MUTUAL_MAX, shared.len() as u64));
    let (second, _, last) = house.rooms.mutual_rooms(&anna, ben.as_str(), next.as_deref()).await.unwrap();
    first.extend(second);
    assert_eq!((first, last), (shared, None));
    assert!(house.rooms.mutual_rooms(&anna, ben.as_str(), Some("x")).await.is_err());
}

/// A server that joined a space told more of its rooms from then on, and was not asked for minutes: what it had refused before was
/// kept.
#[tokio::test]
async fn a_server_is_asked_again_once_it_is_in_the_space() {
    let house = house();
    let anna = house.user("anna").await;
    let space = room(&house, &anna, Preset::Public, "space", true).await;
    let content = json!({ "via": ["far.example"] });
    house.send(&anna, &space, "m.space.child", Some("!child:far.example"), content).await.unwrap();
    let walk = |now_ms| {
        let us = house.server.clone();
        let (user, room_id) = (anna.clone(), space.clone());
        let asked =
            Asked { user, room_id, max_depth: None, suggested_only: false, sees_all: false, us, via: Vec::new() };
        match Walk::new(asked, 0, 10, HashSet::new()).go_on(&house.read(), now_ms).unwrap() {
            Step::Ask(name, ..) => Some(name),
            Step::Done => None,
        }
    };
    let name = walk(1_000).expect("nothing is known of the child");
    let nothing = told::Told { at_ms: 1_000, text: Vec::new() };
    house.rooms.write(move |w| Ok(told::put(w, &[(name, nothing)])?)).await.unwrap();
    assert!(walk(2_000).is_none(), "it was asked just now");
    let num = house.room_num(&space);
    let came = house.rooms.write(move |w| {
        let at = w.next_position();
        Ok(crate::store::tables::room::member::put_server(w, num, "far.example", 1, at)?)
    });
    came.await.unwrap();
    assert!(walk(2_000).is_some_and(|again| again != name));
}

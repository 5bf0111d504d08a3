//! New rooms and upgrades.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::matrix::version;
use crate::room::create::StateDraft;
use crate::room::testing::*;
use crate::room::*;

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
            // Element Call has everybody in a call say so by such a state event.
            let own = format!("_{ben}_DEVICE_m.call");
            let may = house.send(&ben, &room, "org.matrix.msc3401.call.member", Some(&own), json!({})).await;
            assert_eq!(may.is_ok(), preset != Preset::Public, "version {} {preset:?}", version.id);
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
        rooms.ban(&anna, &old, &cleo, Some("noise".to_owned()), None).await.unwrap();
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

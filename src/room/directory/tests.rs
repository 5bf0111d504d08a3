//! Aliases and the public list.

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::room::testing::*;
use crate::room::*;

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
    assert_eq!(rooms.aliases(Some(&anna), &made[1]).await.unwrap(), ["#a:home.example"]);
    rooms.remove_alias(&anna, &alias, false).await.unwrap();
    assert!(matches!(rooms.resolve_here(&alias).await, Err(Error::NotFound)));
    let listed = rooms.overview(None, 2).await.unwrap();
    assert!(listed[0].events >= 6 && listed[0].bytes > 1000 && listed[0].name.as_deref() == Some("Cellar"));
}

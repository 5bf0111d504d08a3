//! Synapse's administration API, as the tools made for Synapse call it.

use ring::hmac;
use serde_json::{Value, json};

use crate::server::{TestServer, TestUser};

const USERS: &str = "/_synapse/admin/v2/users";
const V1: &str = "/_synapse/admin/v1";

/// An administrator and three others.
async fn people(house: &TestServer) -> [TestUser; 4] {
    let people = [
        house.register("alice").await,
        house.register("bob").await,
        house.register("carol").await,
        house.register("dave").await,
    ];
    let alice: ruma::OwnedUserId = people[0].id.as_str().try_into().unwrap();
    house.server().users.set_admin(&alice, true).await.unwrap();
    people
}

fn names(answer: &Value) -> Vec<String> {
    let names = answer["users"].as_array().unwrap().iter();
    names.map(|user| user["name"].as_str().unwrap().split(':').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn users_are_listed_filtered_ordered_and_paged() {
    let house = TestServer::start().await;
    let [alice, bob, carol, _] = people(&house).await;
    house.get(USERS, &bob).await.refused(403, "M_FORBIDDEN");
    house.request("GET", USERS, None, json!({})).await.refused(401, "M_MISSING_TOKEN");

    let all = house.get(USERS, &alice).await.ok();
    assert_eq!(
        (names(&all), &all["total"], &all["next_token"]),
        (vec!["@alice".into(), "@bob".into(), "@carol".into(), "@dave".into()], &json!(4), &Value::Null)
    );
    let page = house.get(&format!("{USERS}?from=1&limit=2"), &alice).await.ok();
    assert_eq!((names(&page), &page["next_token"]), (vec!["@bob".into(), "@carol".into()], &json!("3")));
    let back = house.get(&format!("{USERS}?dir=b&limit=1"), &alice).await.ok();
    assert_eq!(names(&back), ["@dave"]);
    house.get(&format!("{USERS}?order_by=shoe_size"), &alice).await.refused(400, "M_INVALID_PARAM");

    house.put(&format!("{USERS}/{}", bob.id), &alice, json!({ "displayname": "Robert" })).await.ok();
    assert_eq!(names(&house.get(&format!("{USERS}?name=robe"), &alice).await.ok()), ["@bob"]);
    assert_eq!(names(&house.get(&format!("{USERS}?admins=true"), &alice).await.ok()), ["@alice"]);
    let ordered = house.get(&format!("{USERS}?order_by=displayname&dir=b"), &alice).await.ok();
    assert_eq!(names(&ordered), ["@dave", "@carol", "@alice", "@bob"], "capital letters come first, as bytes do");

    house.post(&format!("{V1}/deactivate/{}", carol.id), &alice, json!({ "erase": true })).await.ok();
    assert_eq!(names(&house.get(USERS, &alice).await.ok()), ["@alice", "@bob", "@dave"]);
    let with = house.get(&format!("{USERS}?deactivated=true"), &alice).await.ok();
    assert_eq!(names(&with).len(), 4);
    assert_eq!(names(&house.get("/_synapse/admin/v3/users?deactivated=true", &alice).await.ok()), ["@carol"]);
    let gone = house.get(&format!("{USERS}/{}", carol.id), &alice).await.ok();
    assert_eq!((&gone["deactivated"], &gone["erased"]), (&json!(true), &json!(true)));
    let again = house.put(&format!("{USERS}/{}", carol.id), &alice, json!({ "deactivated": false })).await;
    again.refused(400, "M_UNKNOWN");
}

#[tokio::test]
async fn accounts_are_made_changed_and_closed() {
    let house = TestServer::start().await;
    let [alice, bob, ..] = people(&house).await;
    let server = bob.id.split_once(':').unwrap().1;
    let erin = format!("{USERS}/@erin:{server}");
    house.get(&erin, &alice).await.refused(404, "M_NOT_FOUND");
    let made = house.put(&erin, &alice, json!({ "password": "secret erin", "displayname": "Erin" })).await;
    assert_eq!(made.status, 201);
    let made = house.get(&erin, &alice).await.ok();
    assert_eq!(
        (&made["displayname"], &made["admin"], &made["is_guest"]),
        (&json!("Erin"), &json!(false), &json!(false))
    );
    house
        .put(&erin, &alice, json!({ "threepids": [{ "medium": "email", "address": "e@x" }] }))
        .await
        .refused(400, "M_UNKNOWN");
    house.put(&format!("{USERS}/@x:elsewhere"), &alice, json!({})).await.refused(400, "M_UNKNOWN");

    // A new password ends the sessions.
    house.get("/account/whoami", &bob).await.ok();
    let reset = format!("{V1}/reset_password/{}", bob.id);
    house.post(&reset, &alice, json!({ "new_password": "another secret" })).await.ok();
    house.get("/account/whoami", &bob).await.refused(401, "M_UNKNOWN_TOKEN");

    let admin = format!("{V1}/users/{}/admin", bob.id);
    assert_eq!(house.get(&admin, &alice).await.ok(), json!({ "admin": false }));
    house.put(&admin, &alice, json!({ "admin": true })).await.ok();
    assert_eq!(house.get(&admin, &alice).await.ok(), json!({ "admin": true }));
    let own = format!("{V1}/users/{}/admin", alice.id);
    house.put(&own, &alice, json!({ "admin": false })).await.refused(400, "M_UNKNOWN");
    let own = format!("{V1}/suspend/{}", alice.id);
    house.put(&own, &alice, json!({ "suspend": true })).await.refused(403, "M_FORBIDDEN");
    let own = format!("{USERS}/{}", alice.id);
    house.put(&own, &alice, json!({ "suspended": true })).await.refused(400, "M_UNKNOWN");

    // As the user: a device that the user sees.
    let token = house.post(&format!("{V1}/users/{}/login", bob.id), &alice, json!({})).await.ok();
    let as_bob = TestUser { token: token["access_token"].as_str().unwrap().to_owned(), ..bob.clone() };
    assert_eq!(house.get("/account/whoami", &as_bob).await.ok()["user_id"], bob.id.as_str());
    let devices = house.get(&format!("{USERS}/{}/devices", bob.id), &alice).await.ok();
    assert_eq!(devices["total"], 1);
    let device = devices["devices"][0]["device_id"].as_str().unwrap().to_owned();
    house.request("DELETE", &format!("{USERS}/{}/devices/{device}", bob.id), Some(&alice.token), json!({})).await.ok();
    house.get("/account/whoami", &as_bob).await.refused(401, "M_UNKNOWN_TOKEN");
}

#[tokio::test]
async fn accounts_are_made_with_the_shared_secret() {
    let house = TestServer::start().await;
    let mac = |nonce: &str, name: &str, role: &str| {
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"shared");
        let text = format!("{nonce}\0{name}\0a long password\0{role}");
        hmac::sign(&key, text.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let path = format!("{V1}/register");
    let nonce = async || house.request("GET", &path, None, json!({})).await.ok()["nonce"].as_str().unwrap().to_owned();
    let body = |nonce: &str, name: &str, mac: String| json!({ "nonce": nonce, "username": name, "password": "a long password", "admin": true, "mac": mac });
    let first = nonce().await;
    let wrong = body(&first, "root", mac(&first, "root", "notadmin"));
    house.request("POST", &path, None, wrong).await.refused(403, "M_UNKNOWN");
    // A nonce is good once, whatever came of it.
    let spent = body(&first, "root", mac(&first, "root", "admin"));
    house.request("POST", &path, None, spent).await.refused(400, "M_UNKNOWN");
    let second = nonce().await;
    let made = house.request("POST", &path, None, body(&second, "root", mac(&second, "root", "admin"))).await.ok();
    let root = TestUser { token: made["access_token"].as_str().unwrap().to_owned(), ..house.register("x").await };
    house.get(USERS, &root).await.ok();
}

#[tokio::test]
async fn rooms_are_listed_and_described() {
    let house = TestServer::start().await;
    let [alice, bob, carol, _] = people(&house).await;
    let make = async |who: &TestUser, body: Value| {
        house.post("/createRoom", who, body).await.ok()["room_id"].as_str().unwrap().to_owned()
    };
    let garden =
        make(&bob, json!({ "name": "Garden", "preset": "public_chat", "visibility": "public", "topic": "Roses" }))
            .await;
    let attic = make(&carol, json!({ "name": "attic" })).await;
    house.post(&format!("/join/{garden}"), &carol, json!({})).await.ok();

    house.get(&format!("{V1}/rooms"), &bob).await.refused(403, "M_FORBIDDEN");
    let all = house.get(&format!("{V1}/rooms"), &alice).await.ok();
    let listed: Vec<_> =
        all["rooms"].as_array().unwrap().iter().map(|room| room["room_id"].as_str().unwrap()).collect();
    assert_eq!((listed, &all["total_rooms"]), (vec![attic.as_str(), garden.as_str()], &json!(2)));
    let largest = house.get(&format!("{V1}/rooms?order_by=joined_members&limit=1"), &alice).await.ok();
    assert_eq!((&largest["rooms"][0]["room_id"], &largest["next_batch"]), (&json!(garden), &json!(1)));
    let found = house.get(&format!("{V1}/rooms?search_term=gard"), &alice).await.ok();
    assert_eq!((&found["rooms"][0]["room_id"], &found["total_rooms"]), (&json!(garden), &json!(1)));

    let room = house.get(&format!("{V1}/rooms/{garden}"), &alice).await.ok();
    for (field, value) in [
        ("name", json!("Garden")),
        ("topic", json!("Roses")),
        ("joined_members", json!(2)),
        ("joined_local_members", json!(2)),
        ("public", json!(true)),
        ("join_rules", json!("public")),
        ("creator", json!(bob.id)),
        ("federatable", json!(true)),
        ("tombstoned", json!(false)),
        ("encryption", Value::Null),
        ("history_visibility", json!("shared")),
        ("joined_local_devices", json!(2)),
    ] {
        assert_eq!(room[field], value, "{field}");
    }
    let members = house.get(&format!("{V1}/rooms/{garden}/members"), &alice).await.ok();
    assert_eq!(members, json!({ "members": [bob.id, carol.id], "total": 2 }));
    assert_eq!(house.get(&format!("{V1}/rooms/{garden}/forward_extremities"), &alice).await.ok()["count"], 1);
    house.get(&format!("{V1}/rooms/!nowhere:x"), &alice).await.refused(404, "M_NOT_FOUND");

    let joined = house.get(&format!("{V1}/users/{}/joined_rooms", carol.id), &alice).await.ok();
    assert_eq!(joined, json!({ "joined_rooms": [garden, attic], "total": 2 }));
    house.post(&format!("/rooms/{garden}/leave"), &carol, json!({})).await.ok();
    let memberships = house.get(&format!("{V1}/users/{}/memberships", carol.id), &alice).await.ok();
    assert_eq!(memberships, json!({ "memberships": { garden.as_str(): "leave", attic.as_str(): "join" } }));
    house.post(&format!("{V1}/join/{garden}"), &alice, json!({ "user_id": carol.id })).await.ok();
    assert_eq!(house.get(&format!("{V1}/rooms/{garden}"), &alice).await.ok()["joined_members"], 2);
}

#[tokio::test]
async fn reports_account_data_and_notices() {
    let house = TestServer::start().await;
    let [alice, bob, carol, _] = people(&house).await;
    let room = house.post("/createRoom", &bob, json!({ "preset": "public_chat" })).await.ok();
    let room = room["room_id"].as_str().unwrap().to_owned();
    house.post(&format!("/join/{room}"), &carol, json!({})).await.ok();
    let said = json!({ "msgtype": "m.text", "body": "buy now" });
    let sent = house.put(&format!("/rooms/{room}/send/m.room.message/1"), &bob, said).await.ok();
    let event = sent["event_id"].as_str().unwrap();
    house.post(&format!("/rooms/{room}/report/{event}"), &carol, json!({ "reason": "spam", "score": -50 })).await.ok();
    house.post(&format!("/_matrix/client/v3/users/{}/report", bob.id), &carol, json!({ "reason": "rude" })).await.ok();
    let reports = house.get(&format!("{V1}/event_reports"), &alice).await.ok();
    assert_eq!(reports["total"], 1);
    let report = &reports["event_reports"][0];
    assert_eq!(
        (&report["event_id"], &report["user_id"], &report["sender"]),
        (&json!(event), &json!(carol.id), &json!(bob.id))
    );
    let of_users = house.get(&format!("{V1}/user_reports"), &alice).await.ok();
    assert_eq!((&of_users["total"], &of_users["user_reports"][0]["target_user_id"]), (&json!(1), &json!(bob.id)));
    let one = format!("{V1}/event_reports/{}", report["id"]);
    assert_eq!(house.get(&one, &alice).await.ok()["event_json"]["content"]["body"], "buy now");
    house.request("DELETE", &one, Some(&alice.token), json!({})).await.ok();
    house.get(&one, &alice).await.refused(404, "M_NOT_FOUND");

    house.put(&format!("/user/{}/account_data/m.test", bob.id), &bob, json!({ "a": 1 })).await.ok();
    house.put(&format!("/user/{}/rooms/{room}/account_data/m.test", bob.id), &bob, json!({ "b": 2 })).await.ok();
    let data = house.get(&format!("{V1}/users/{}/accountdata", bob.id), &alice).await.ok();
    let data = &data["account_data"];
    assert_eq!((&data["global"]["m.test"], &data["rooms"][&room]["m.test"]), (&json!({ "a": 1 }), &json!({ "b": 2 })));

    let notice = json!({ "user_id": bob.id, "content": { "msgtype": "m.text", "body": "Hello" } });
    assert!(house.post(&format!("{V1}/send_server_notice"), &alice, notice).await.ok()["event_id"].is_string());
}

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

/// A list took all of the account in the two smallest budgets, of which the socket for commands has a part: every list was refused.
#[tokio::test]
async fn lists_have_every_row_under_the_smallest_budgets() {
    for profile in ["router-32", "pi-zero-2w"] {
        let house = TestServer::start_under(profile).await;
        let [alice, bob, ..] = people(&house).await;
        let server = bob.id.split_once(':').unwrap().1.to_owned();
        let name = "n".repeat(1000);
        for number in 0..120 {
            let user = format!("{USERS}/@user{number:03}:{server}");
            house.put(&user, &alice, json!({ "displayname": name })).await;
        }
        let all = format!("{USERS}?limit=1000");
        let (one, two) = tokio::join!(house.get(&all, &alice), house.get(&all, &alice));
        let (one, two) = (one.ok(), two.ok());
        assert_eq!((names(&one).len(), &one["total"], &one["next_token"]), (124, &json!(124), &Value::Null));
        assert_eq!(names(&two), names(&one));
        assert!(one.to_string().len() > 120_000, "more than the account has");
        let page = house.get(&format!("{USERS}?from=100&limit=20"), &alice).await.ok();
        assert_eq!((names(&page).len(), &page["next_token"]), (20, &json!("120")));
        let bots = house.get(&format!("{USERS}?not_user_type="), &alice).await.ok();
        assert_eq!(bots["total"], 0);
        for list in [
            "rooms",
            "event_reports",
            "user_reports",
            "federation/destinations",
            "registration_tokens",
            "statistics/users/media",
            "scheduled_tasks",
        ] {
            house.get(&format!("{V1}/{list}"), &alice).await.ok();
        }
        let accounts = house.server().budget.accounts();
        let admin = accounts.iter().find(|account| account.name() == "admin").unwrap();
        assert!(admin.high_water() <= 128 * 1024, "{} bytes", admin.high_water());
        house.stop().await;
    }
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

/// Waits until a task is over.
async fn complete(house: &TestServer, status: &str, who: &TestUser) {
    let is_over = async || (house.get(status, who).await.ok()["status"] == "complete").then_some(());
    crate::rooms::eventually("the task is over", is_over).await;
}

/// A room with three people, of whom `bob` made it.
async fn full_room(house: &TestServer, [_, bob, carol, dave]: &[TestUser; 4], alias: &str) -> String {
    let room = json!({ "name": "Garden", "preset": "public_chat", "room_alias_name": alias });
    let room = house.post("/createRoom", bob, room).await.ok()["room_id"].as_str().unwrap().to_owned();
    for who in [carol, dave] {
        house.post(&format!("/join/{room}"), who, json!({})).await.ok();
    }
    room
}

#[tokio::test]
async fn rooms_are_deleted_and_blocked() {
    let house = TestServer::start().await;
    let people = people(&house).await;
    let [alice, bob, carol, _] = &people;
    let room = full_room(&house, &people, "garden").await;
    let v2 = format!("/_synapse/admin/v2/rooms/{room}");
    let delete = async |path: &str, body: Value| house.request("DELETE", path, Some(&alice.token), body).await;
    house.request("DELETE", &v2, Some(&bob.token), json!({})).await.refused(403, "M_FORBIDDEN");
    delete(&v2, json!({ "force_purge": true })).await.refused(400, "M_UNKNOWN");
    delete(&v2, json!({ "purge": 3 })).await.refused(400, "M_BAD_JSON");
    delete(&v2, json!({ "new_room_user_id": "@nobody:elsewhere" })).await.refused(400, "M_UNKNOWN");
    house.get(&format!("{v2}/delete_status"), alice).await.refused(404, "M_NOT_FOUND");
    let body = json!({ "new_room_user_id": alice.id, "room_name": "Closed", "message": "The garden is closed.", "block": true });
    let begun = delete(&v2, body).await.ok();
    let id = begun["delete_id"].as_str().unwrap();
    let status = format!("/_synapse/admin/v2/rooms/delete_status/{id}");
    complete(&house, &status, alice).await;
    let ended = house.get(&status, alice).await.ok();
    let shut = &ended["shutdown_room"];
    assert_eq!(shut["kicked_users"].as_array().unwrap().len(), 3);
    assert_eq!((&shut["failed_to_kick_users"], &ended["room_id"]), (&json!([]), &json!(room)));
    let by_room = house.get(&format!("{v2}/delete_status"), alice).await.ok();
    assert_eq!(by_room["results"], json!([ended]));
    house.get(&format!("{V1}/rooms/{room}"), alice).await.refused(404, "M_NOT_FOUND");
    let new = shut["new_room_id"].as_str().unwrap();
    assert_eq!(house.get("/joined_rooms", carol).await.ok()["joined_rooms"], json!([new]));
    let said = house.get(&format!("/rooms/{new}/messages?dir=b&limit=50"), carol).await.ok();
    let said = said["chunk"].as_array().unwrap();
    assert!(said.iter().any(|event| event["content"]["body"] == "The garden is closed."), "{said:?}");

    // It is blocked, until it is not.
    let block = format!("{V1}/rooms/{room}/block");
    assert_eq!(house.get(&block, alice).await.ok(), json!({ "block": true, "user_id": alice.id }));
    house.post(&format!("/join/{room}"), carol, json!({})).await.refused(403, "M_FORBIDDEN");
    assert_eq!(house.put(&block, alice, json!({ "block": false })).await.ok(), json!({ "block": false }));
    assert_eq!(house.get(&block, alice).await.ok(), json!({ "block": false }));

    // The first version answers when it is done, and blocks a room that nobody knows.
    let room = full_room(&house, &people, "yard").await;
    let done = delete(&format!("{V1}/rooms/{room}"), json!({})).await.ok();
    assert_eq!((done["kicked_users"].as_array().unwrap().len(), &done["new_room_id"]), (3, &Value::Null));
    let unknown = format!("{V1}/rooms/!unknown:elsewhere");
    delete(&unknown, json!({})).await.refused(404, "M_NOT_FOUND");
    delete(&unknown, json!({ "block": true })).await.ok();
    assert_eq!(house.get(&format!("{unknown}/block"), alice).await.ok()["block"], true);
    let unknown = unknown.replace("/v1/", "/v2/");
    let id = delete(&unknown, json!({ "block": true })).await.ok()["delete_id"].as_str().unwrap().to_owned();
    let status = house.get(&format!("/_synapse/admin/v2/rooms/delete_status/{id}"), alice).await.ok();
    assert_eq!(status["status"], "complete");
    let tasks = house.get(&format!("{V1}/scheduled_tasks?resource_id=!unknown:elsewhere"), alice).await.ok();
    let tasks = tasks["scheduled_tasks"].as_array().unwrap();
    assert_eq!((tasks.len(), &tasks[1]["id"], &tasks[1]["status"]), (2, &json!(id), &json!("complete")));
}

#[tokio::test]
async fn administrators_look_into_rooms_that_they_are_not_in() {
    let house = TestServer::start().await;
    let people = people(&house).await;
    let [alice, bob, carol, dave] = &people;
    let made = json!({ "preset": "private_chat", "creation_content": { "type": "m.space" } });
    let room = house.post("/createRoom", bob, made).await.ok()["room_id"].as_str().unwrap().to_owned();
    let child = house.post("/createRoom", bob, json!({ "name": "Child" })).await.ok();
    let child = child["room_id"].as_str().unwrap().to_owned();
    house.put(&format!("/rooms/{room}/state/m.space.child/{child}"), bob, json!({ "via": ["x"] })).await.ok();
    let said = json!({ "msgtype": "m.text", "body": "secret" });
    let sent = house.put(&format!("/rooms/{room}/send/m.room.message/1"), bob, said).await.ok();
    let event = sent["event_id"].as_str().unwrap();
    let of = |what: &str| format!("{V1}/rooms/{room}/{what}");
    for what in ["state", "messages", "hierarchy", "timestamp_to_event?ts=1"] {
        house.get(&of(what), carol).await.refused(403, "M_FORBIDDEN");
        house.get(&format!("{V1}/rooms/!nowhere:x/{what}"), alice).await.refused(404, "M_NOT_FOUND");
    }
    house.get(&format!("/rooms/{room}/state"), alice).await.refused(403, "M_FORBIDDEN");
    let state = house.get(&of("state"), alice).await.ok();
    assert!(state["state"].as_array().unwrap().iter().any(|event| event["type"] == "m.room.create"));
    let named = house.get(&of("state?type=m.room.member"), alice).await.ok();
    assert_eq!(named["state"].as_array().unwrap().len(), 1);
    let page = house.get(&of("messages?dir=b&limit=1"), alice).await.ok();
    assert_eq!(page["chunk"][0]["content"]["body"], "secret");
    let context = house.get(&of(&format!("context/{event}")), alice).await.ok();
    assert_eq!(context["event"]["event_id"], event);
    let near = house.get(&of("timestamp_to_event?ts=9999999999999&dir=b"), alice).await.ok();
    assert_eq!(near["event_id"], event);
    let tree = house.get(&of("hierarchy"), alice).await.ok();
    assert_eq!((&tree["rooms"][0]["room_id"], &tree["rooms"][1]["name"]), (&json!(room), &json!("Child")));
    let fetched = house.get(&format!("{V1}/fetch_event/{event}"), alice).await.ok();
    assert_eq!((&fetched["event"]["event_id"], &fetched["event"]["sender"]), (&json!(event), &json!(bob.id)));
    assert!(fetched["event"]["signatures"].is_object());

    // Power for who is not in the room: an invite comes with it.
    house.post(&format!("{V1}/rooms/{room}/make_room_admin"), alice, json!({ "user_id": dave.id })).await.ok();
    house.post(&format!("/join/{room}"), dave, json!({})).await.ok();
    house.put(&format!("/rooms/{room}/state/m.room.name"), dave, json!({ "name": "Taken over" })).await.ok();

    // History: what Bob wrote goes, since he is of this server, only when that is wished.
    let purge = format!("{V1}/purge_history/{room}");
    house.post(&purge, alice, json!({})).await.refused(400, "M_BAD_JSON");
    let said = json!({ "msgtype": "m.text", "body": "later" });
    let later = house.put(&format!("/rooms/{room}/send/m.room.message/2"), bob, said).await.ok();
    let later = later["event_id"].as_str().unwrap().to_owned();
    let begun = house.post(&format!("{purge}/{later}"), alice, json!({ "delete_local_events": true })).await.ok();
    let status = format!("{V1}/purge_history_status/{}", begun["purge_id"].as_str().unwrap());
    complete(&house, &status, alice).await;
    house.get(&format!("{V1}/fetch_event/{event}"), alice).await.refused(404, "M_NOT_FOUND");
    house.get(&format!("{V1}/fetch_event/{later}"), alice).await.ok();
    house.get(&format!("{V1}/purge_history_status/nothing"), alice).await.refused(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn files_are_listed_withheld_and_deleted() {
    let house = TestServer::start_with(|config| config.media.local_unused_days = Some(10_000)).await;
    let people = people(&house).await;
    let [alice, bob, carol, _] = &people;
    let upload = async |who: &TestUser, bytes: Vec<u8>| {
        let bearer = format!("Bearer {}", who.token);
        let headers = [("authorization", bearer.as_str()), ("content-type", "image/png")];
        let made = house.send("POST", "/_matrix/media/v3/upload?filename=a.png", &headers, bytes).await.ok();
        made["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned()
    };
    let (one, two) = (upload(bob, vec![1; 10]).await, upload(bob, vec![2; 2000]).await);
    let same = upload(carol, vec![2; 2000]).await;
    let media_id = |path: &str| path.split_once('/').unwrap().1.to_owned();
    let download = |path: &str| format!("/_matrix/client/v1/media/download/{path}");
    let list = format!("{V1}/users/{}/media", bob.id);
    house.get(&list, bob).await.refused(403, "M_FORBIDDEN");
    let all = house.get(&format!("{list}?order_by=media_length"), alice).await.ok();
    assert_eq!(
        (&all["total"], &all["media"][0]["media_id"], &all["media"][1]["media_length"]),
        (&json!(2), &json!(media_id(&one)), &json!(2000))
    );
    let page = house.get(&format!("{list}?limit=1&order_by=media_length&dir=b"), alice).await.ok();
    assert_eq!((&page["media"][0]["media_id"], &page["next_token"]), (&json!(media_id(&two)), &json!(1)));
    let info = house.get(&format!("{V1}/media/{two}"), alice).await.ok();
    assert_eq!((&info["media_info"]["user_id"], &info["media_info"]["upload_name"]), (&json!(bob.id), &json!("a.png")));

    // The same bytes are withheld, whoever uploaded them; a protected file is not.
    house.post(&format!("{V1}/media/quarantine/{two}"), alice, json!({})).await.ok();
    for path in [&two, &same] {
        house.get(&download(path), bob).await.refused(404, "M_NOT_FOUND");
    }
    let again = upload(carol, vec![2; 2000]).await;
    house.get(&download(&again), carol).await.refused(404, "M_NOT_FOUND");
    assert_eq!(
        house.get(&format!("{V1}/media/{two}"), alice).await.ok()["media_info"]["quarantined_by"],
        alice.id.as_str()
    );
    house.post(&format!("{V1}/media/unquarantine/{two}"), alice, json!({})).await.ok();
    house.get(&download(&two), bob).await;
    house.post(&format!("{V1}/media/protect/{}", media_id(&one)), alice, json!({})).await.ok();
    house.post(&format!("{V1}/media/quarantine/{one}"), alice, json!({})).await.refused(403, "M_FORBIDDEN");
    let many = house.post(&format!("{V1}/user/{}/media/quarantine", bob.id), alice, json!({})).await.ok();
    assert_eq!(many["num_quarantined"], 1);
    house.post(&format!("{V1}/media/unquarantine/{two}"), alice, json!({})).await.ok();
    house.post(&format!("{V1}/media/unprotect/{}", media_id(&one)), alice, json!({})).await.ok();

    // What a room names.
    let room = full_room(&house, &people, "pictures").await;
    for (txn, url) in [&one, &"elsewhere/abc".to_owned()].into_iter().enumerate() {
        let content = json!({ "msgtype": "m.image", "body": "a", "url": format!("mxc://{url}") });
        house.put(&format!("/rooms/{room}/send/m.room.message/{txn}"), bob, content).await.ok();
    }
    let named = house.get(&format!("{V1}/room/{room}/media"), alice).await.ok();
    assert_eq!(named, json!({ "local": [format!("mxc://{one}")], "remote": ["mxc://elsewhere/abc"] }));
    let many = house.post(&format!("{V1}/room/{room}/media/quarantine"), alice, json!({})).await.ok();
    assert_eq!(many["num_quarantined"], 2);
    house.get(&download(&one), bob).await.refused(404, "M_NOT_FOUND");
    house.get(&download("elsewhere/abc"), bob).await.refused(404, "M_NOT_FOUND");

    // Deleting.
    house.delete(&format!("{V1}/media/elsewhere/abc"), alice).await.refused(400, "M_UNKNOWN");
    let gone = house.delete(&format!("{V1}/media/{one}"), alice).await.ok();
    assert_eq!(gone, json!({ "deleted_media": [media_id(&one)], "total": 1 }));
    house.delete(&format!("{V1}/media/{one}"), alice).await.refused(404, "M_NOT_FOUND");
    let gone = house.delete(&list, alice).await.ok();
    assert_eq!(gone["deleted_media"], json!([media_id(&two)]));
    assert_eq!(house.get(&list, alice).await.ok()["total"], 0);
    house.post(&format!("{V1}/media/delete"), alice, json!({})).await.refused(400, "M_MISSING_PARAM");
    let purged = house.post(&format!("{V1}/purge_media_cache?before_ts=9999999999999"), alice, json!({})).await.ok();
    assert_eq!(purged, json!({ "deleted": 0 }));
}

#[tokio::test]
async fn registration_tokens_are_made_and_used_up() {
    let house = TestServer::start_with(|config| {
        config.apps.registration = snug::client::Registration::Token;
        config.apps.registration_tokens = vec!["config".to_owned()];
    })
    .await;
    let register = async |name: &str, token: &str| {
        let body = json!({ "username": name, "password": "a long password" });
        let asked = house.request("POST", "/register", None, body.clone()).await;
        let mut body = body;
        body["auth"] =
            json!({ "type": "m.login.registration_token", "token": token, "session": asked.json()["session"] });
        house.request("POST", "/register", None, body).await
    };
    let alice = register("alice", "config").await.ok();
    let id: ruma::OwnedUserId = alice["user_id"].as_str().unwrap().try_into().unwrap();
    house.server().users.set_admin(&id, true).await.unwrap();
    let alice = TestUser {
        id: id.to_string(),
        token: alice["access_token"].as_str().unwrap().to_owned(),
        device: String::new(),
    };
    let tokens = format!("{V1}/registration_tokens");
    let made = house.post(&format!("{tokens}/new"), &alice, json!({ "token": "abc", "uses_allowed": 1 })).await.ok();
    let shown = json!({ "token": "abc", "uses_allowed": 1, "pending": 0, "completed": 0, "expiry_time": null });
    assert_eq!(made, shown);
    house.post(&format!("{tokens}/new"), &alice, json!({ "token": "abc" })).await.refused(400, "M_INVALID_PARAM");
    house.post(&format!("{tokens}/new"), &alice, json!({ "token": "a b" })).await.refused(400, "M_INVALID_PARAM");
    house.post(&format!("{tokens}/new"), &alice, json!({ "expiry_time": 1 })).await.refused(400, "M_INVALID_PARAM");
    let other = house.post(&format!("{tokens}/new"), &alice, json!({ "length": 20 })).await.ok();
    assert_eq!(other["token"].as_str().unwrap().len(), 20);
    let valid = async || {
        let path = "/_matrix/client/v1/register/m.login.registration_token/validity?token=abc";
        house.request("GET", path, None, json!({})).await.ok()["valid"].clone()
    };
    assert_eq!(valid().await, true);
    register("bob", "abc").await.ok();
    assert_eq!(valid().await, false);
    register("carol", "abc").await.refused(401, "M_FORBIDDEN");
    assert_eq!(house.get(&format!("{tokens}/abc"), &alice).await.ok()["completed"], 1);
    let list = house.get(&format!("{tokens}?valid=false"), &alice).await.ok();
    assert_eq!(list["registration_tokens"].as_array().unwrap().len(), 1);
    let more = house.put(&format!("{tokens}/abc"), &alice, json!({ "uses_allowed": null })).await.ok();
    assert_eq!((&more["uses_allowed"], &more["completed"]), (&Value::Null, &json!(1)));
    register("carol", "abc").await.ok();
    house.delete(&format!("{tokens}/abc"), &alice).await.ok();
    house.get(&format!("{tokens}/abc"), &alice).await.refused(404, "M_NOT_FOUND");
    register("dave", "abc").await.refused(401, "M_FORBIDDEN");

    // Federation and the background of a server that is alone.
    let path = format!("{V1}/federation/destinations");
    assert_eq!(house.get(&path, &alice).await.ok(), json!({ "destinations": [], "total": 0 }));
    house.get(&format!("{path}/elsewhere"), &alice).await.refused(404, "M_NOT_FOUND");
    assert_eq!(house.get(&format!("{V1}/background_updates/enabled"), &alice).await.ok(), json!({ "enabled": true }));
}

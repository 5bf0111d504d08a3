//! Application services, row by row: what the specification's API and the open proposals that bridges use have, and no story shows.

use std::time::Duration;

use serde_json::{Value, json};
use snug::client::rates::SEND;
use snug::http::Rate;
use snug::matrix::sign::Key;

use crate::appservices::{Asked, Service, bot, ghost, house_with, make_room, say};
use crate::devices::{cross_keys, device_keys};
use crate::server::{TestServer, TestUser};

async fn ghost_with_phone(house: &TestServer, name: &str) -> String {
    let ghost = ghost(house, name).await;
    assert_eq!(house.put(&format!("/devices/PHONE?user_id={ghost}"), &bot(), json!({})).await.status, 201);
    ghost
}

/// What bridges look for before they use it.
#[tokio::test]
async fn versions_name_what_bridges_ask_for() {
    let house = TestServer::start_with(|config| config.rooms.redacted_kept_days = Some(7)).await;
    let versions = house.request("GET", "/_matrix/client/versions", None, Value::Null).await.ok();
    for flag in [
        "fi.mau.msc2659.stable",
        "fi.mau.msc2815",
        "com.beeper.msc4169",
        "com.beeper.msc4446",
        "org.matrix.msc3916.stable",
        "uk.half-shot.msc2666.query_mutual_rooms",
        "uk.half-shot.msc2666.query_mutual_rooms.stable",
        "uk.tcpip.msc4133",
        "uk.tcpip.msc4133.stable",
        "uk.timedout.msc4323",
    ] {
        assert_eq!(versions["unstable_features"][flag], true, "{flag}");
    }
    assert!(versions["versions"].as_array().unwrap().contains(&json!("v1.11")));
}

/// MSC3983 and MSC3984: keys that a service keeps itself.
#[tokio::test]
async fn a_service_is_asked_for_keys_of_its_users() {
    let service = Service::start().await;
    let house = house_with(&service, "").await;
    let (alice, bot) = (house.register("alice").await, bot());
    let ghost = ghost_with_phone(&house, "irc_a").await;
    let key = json!({ "signed_curve25519:A": { "key": "x", "signatures": {} } });
    service.answers(
        "/_matrix/app/unstable/org.matrix.msc3983/keys/claim",
        json!({ &ghost: { "AWAY": key }, "@alice:localhost": { "X": key } }),
    );
    let device = json!({ "user_id": ghost, "device_id": "AWAY", "algorithms": [], "keys": {}, "signatures": {} });
    service.answers(
        "/_matrix/app/unstable/org.matrix.msc3984/keys/query",
        json!({ "device_keys": { &ghost: { "AWAY": device }, "@alice:localhost": { "X": device } } }),
    );
    let asked = json!({ "device_keys": { &ghost: [] } });
    let known = house.post("/keys/query", &alice, asked).await.ok();
    assert_eq!(known["device_keys"], json!({ &ghost: { "AWAY": device } }), "and of nobody else");
    // What the server has itself, it gives.
    house
        .post(&format!("/keys/upload?user_id={ghost}&device_id=PHONE"), &bot, json!({ "one_time_keys": key }))
        .await
        .ok();
    let claims = json!({ "one_time_keys": { &ghost: { "AWAY": "signed_curve25519", "PHONE": "signed_curve25519" } } });
    let claimed = house.post("/keys/claim", &alice, claims).await.ok();
    assert_eq!(claimed["one_time_keys"], json!({ &ghost: { "AWAY": key, "PHONE": key } }));
    let bodies: Vec<_> = service.asked().into_iter().filter(|(_, target, ..)| target.contains("msc398")).collect();
    assert!(bodies.iter().all(|(method, _, token, _)| method == "POST" && token.as_deref() == Some("Bearer hs")));
    assert_eq!(bodies[0].3, json!({ &ghost: [] }));
    assert_eq!(bodies[1].3[&ghost]["AWAY"], json!(["signed_curve25519"]));
}

/// MSC2409, MSC4203 and MSC3202 under the names from before, which older frameworks alone know.
#[tokio::test]
async fn transactions_have_the_names_from_before_too() {
    let service = Service::start().await;
    let house = house_with(&service, "de.sorunome.msc2409.push_ephemeral: true\norg.matrix.msc3202: true\n").await;
    let (alice, bot) = (house.register("alice").await, bot());
    let room = make_room(&house, &alice).await;
    let ghost = ghost_with_phone(&house, "irc_a").await;
    house.post(&format!("/join/{room}?user_id={ghost}"), &bot, json!({})).await.ok();
    let keys = json!({ "one_time_keys": { "signed_curve25519:A": { "key": "x", "signatures": {} } } });
    house.post(&format!("/keys/upload?user_id={ghost}&device_id=PHONE"), &bot, keys).await.ok();
    let find = |name: &'static str, fits: &'static (dyn Fn(&Value) -> bool + Sync)| {
        move |service: &Service| {
            let mut all = service.transactions().into_iter().map(|(_, body)| body[name].clone());
            all.find(|found| !found.is_null() && fits(found))
        }
    };
    house
        .put(&format!("/rooms/{room}/typing/{}", alice.id), &alice, json!({ "typing": true, "timeout": 120_000 }))
        .await
        .ok();
    let typing = service.until("typing", find("de.sorunome.msc2409.ephemeral", &|list| !list[0].is_null())).await;
    assert_eq!((&typing[0]["type"], &typing[0]["room_id"]), (&json!("m.typing"), &json!(room)));
    assert!(service.transactions().iter().all(|(_, body)| body["ephemeral"].is_null()), "it did not ask for that name");
    let message = json!({ "messages": { &ghost: { "PHONE": { "secret": 7 } } } });
    house.put("/sendToDevice/m.test/1", &alice, message).await.ok();
    let told = service.until("a message", find("de.sorunome.msc2409.to_device", &|list| !list[0].is_null())).await;
    assert_eq!((&told[0]["to_device_id"], &told[0]["sender"]), (&json!("PHONE"), &json!(alice.id)));
    say(&house, &alice, &room, "count").await.ok();
    service.hears("count").await;
    for names in [
        ["device_one_time_keys_count", "org.matrix.msc3202.device_one_time_keys_count"],
        ["org.matrix.msc3202.device_one_time_key_counts", "device_one_time_keys_count"],
    ] {
        for name in names {
            let counted =
                service.until(name, find(name, &|counts| counts.to_string().contains("\"signed_curve25519\":1"))).await;
            assert_eq!(counted[&ghost]["PHONE"], json!({ "signed_curve25519": 1 }), "{name}");
        }
    }
    for name in ["device_unused_fallback_key_types", "org.matrix.msc3202.device_unused_fallback_key_types"] {
        let unused = service.until(name, find(name, &|_| true)).await;
        assert_eq!(unused[&ghost]["PHONE"], json!([]), "{name}");
    }
    let alices = device_keys(&alice, &alice.device, &Key::from_seed("1", [9; 32]));
    house.post("/keys/upload", &alice, json!({ "device_keys": alices })).await.ok();
    for name in ["device_lists", "org.matrix.msc3202.device_lists"] {
        let lists = service.until(name, find(name, &|lists| lists["changed"].to_string().contains("@alice:"))).await;
        assert_eq!(lists["left"], json!([]), "{name}");
    }
}

/// MSC4190: what people prove with their password a registration proves.
#[tokio::test]
async fn devices_and_cross_signing_keys_need_no_password_of_a_service() {
    let service = Service::start().await;
    let house = house_with(&service, "io.element.msc4190: true\n").await;
    let bot = bot();
    let ghost = ghost_with_phone(&house, "irc_a").await;
    house.put(&format!("/devices/TABLET?user_id={ghost}"), &bot, json!({})).await;
    let devices = async || {
        let listed = house.get(&format!("/devices?user_id={ghost}"), &bot).await.ok();
        let mut ids: Vec<_> =
            listed["devices"].as_array().unwrap().iter().map(|device| device["device_id"].to_string()).collect();
        ids.sort();
        ids
    };
    assert_eq!(devices().await, ["\"PHONE\"", "\"TABLET\""]);
    let keys = |seed: u8| {
        let who = TestUser { id: ghost.clone(), token: String::new(), device: "PHONE".to_owned() };
        cross_keys(&who, &Key::from_seed("1", [seed; 32]), &Key::from_seed("1", [seed + 1; 32]))
    };
    let path = format!("/keys/device_signing/upload?user_id={ghost}&device_id=PHONE");
    house.post(&path, &bot, keys(1)).await.ok();
    // Not even for others in their place.
    house.post(&path, &bot, keys(3)).await.ok();
    house.post(&format!("/delete_devices?user_id={ghost}"), &bot, json!({ "devices": ["TABLET"] })).await.ok();
    assert_eq!(devices().await, ["\"PHONE\""]);
}

/// MSC4133, MSC4169, MSC4491 and MSC2815, as a ghost.
#[tokio::test]
async fn a_ghost_has_fields_redacts_invites_with_a_reason_and_reads_what_was_redacted() {
    let service = Service::start().await;
    let house = house_with(&service, "").await;
    house.server().rooms.set_redacted_kept(Some(7));
    let (alice, bot) = (house.register("alice").await, bot());
    let ghost = ghost(&house, "irc_a").await;
    for base in ["/_matrix/client/unstable/uk.tcpip.msc4133/profile", "/_matrix/client/v3/profile"] {
        let field = format!("{base}/{ghost}/com.beeper.bridge.id?user_id={ghost}");
        house.put(&field, &bot, json!({ "com.beeper.bridge.id": "a!b" })).await.ok();
        assert_eq!(house.get(&field, &alice).await.ok(), json!({ "com.beeper.bridge.id": "a!b" }), "{base}");
        house.delete(&field, &bot).await.ok();
        house.get(&field, &alice).await.refused(404, "M_NOT_FOUND");
    }
    let wanted = json!({
        "preset": "private_chat", "invite": [alice.id], "uk.timedout.msc4491.invite_reason": "A bridge wants you here",
    });
    let made = house.post(&format!("/createRoom?user_id={ghost}"), &bot, wanted).await.ok();
    let room = made["room_id"].as_str().unwrap();
    let member = house.get(&format!("/rooms/{room}/state/m.room.member/{}?user_id={ghost}", alice.id), &bot).await.ok();
    assert_eq!(member["reason"], "A bridge wants you here");

    let send = |kind: &str, txn: &str| format!("/rooms/{room}/send/{kind}/{txn}?user_id={ghost}&ts=1000");
    let said = house.put(&send("m.room.message", "1"), &bot, json!({ "msgtype": "m.text", "body": "oops" })).await.ok();
    let said = said["event_id"].as_str().unwrap();
    let redaction = json!({ "redacts": said, "reason": "gone there" });
    let redacts = house.put(&send("m.room.redaction", "2"), &bot, redaction).await.ok();
    let event =
        async |id: &str, more: &str| house.get(&format!("/rooms/{room}/event/{id}?user_id={ghost}{more}"), &bot).await;
    let redaction = event(redacts["event_id"].as_str().unwrap(), "").await.ok();
    assert_eq!((&redaction["origin_server_ts"], &redaction["sender"]), (&json!(1000), &json!(ghost)));
    assert!(event(said, "").await.ok()["content"].as_object().unwrap().is_empty());
    let before = event(said, "&fi.mau.msc2815.include_unredacted_content=true").await.ok();
    assert_eq!(before["content"]["body"], "oops");
}

/// A service that knows the paths from before alone, and one that looks for the token in the query.
#[tokio::test]
async fn older_services_are_told_where_they_listen() {
    let service = Service::start().await;
    service.knows_only_old_paths();
    let house = house_with(&service, "snug.query_token: true\n").await;
    let (alice, bot) = (house.register("alice").await, bot());
    let room = make_room(&house, &bot).await;
    house.post(&format!("/join/{room}"), &alice, json!({})).await.ok();
    say(&house, &alice, &room, "old").await.ok();
    let told = service
        .until("a transaction at the old path", |service| {
            let asked = service.asked();
            let is_it = |(_, target, _, body): &&(String, String, Option<String>, Value)| {
                target.starts_with("/transactions/") && body.to_string().contains("\"old\"")
            };
            asked.iter().find(is_it).map(|(method, target, token, _)| (method.clone(), target.clone(), token.clone()))
        })
        .await;
    assert_eq!(told.0, "PUT");
    assert!(told.1.ends_with("?access_token=hs"), "{}", told.1);
    assert_eq!(told.2.as_deref(), Some("Bearer hs"));
    // From then on it is not asked at the other first.
    let before = service.asked().len();
    say(&house, &alice, &room, "older").await.ok();
    let is_told = |(_, _, _, body): &Asked| body.to_string().contains("\"older\"");
    service.until("once", |service| service.asked()[before..].iter().any(is_told).then_some(())).await;
    // Whatever else it is asked takes this way.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(service.asked()[before..].iter().all(|(_, target, ..)| !target.contains("/_matrix/app/v1/transactions")));
    house.get("/profile/@irc_none:localhost", &alice).await.refused(404, "M_NOT_FOUND");
    house.get("/directory/room/%23irc_none:localhost", &alice).await.refused(404, "M_NOT_FOUND");
    let asked = service.asked();
    for path in ["/users/%40irc_none%3Alocalhost", "/rooms/%23irc_none%3Alocalhost"] {
        assert!(
            asked.iter().any(|(method, target, ..)| method == "GET" && target.starts_with(path)),
            "{path}: {asked:?}"
        );
    }
}

/// Rates hold for a service's users unless its registration says otherwise; for itself never.
#[tokio::test]
async fn rates_hold_where_the_registration_says_nothing() {
    for (more, limited) in [("", true), ("rate_limited: true\n", true), ("rate_limited: false\n", false)] {
        let service = Service::start().await;
        let file = service.file(more);
        let house = TestServer::start_with(|config| {
            let path = config.data_dir.with_file_name("irc.yaml");
            std::fs::write(&path, file).unwrap();
            config.appservices = vec![path];
            config.rate_limits = true;
            config.rates = vec![Rate { per_second: 0.001, burst: 5.0, ..SEND }];
        })
        .await;
        let ghost = ghost(&house, "irc_a").await;
        let room = make_room(&house, &bot()).await;
        house.post(&format!("/join/{room}?user_id={ghost}"), &bot(), json!({})).await.ok();
        let mut refused = [0, 0];
        for n in 0..12 {
            for (at, who) in ["@ircbot:localhost", &ghost].iter().enumerate() {
                let path = format!("/rooms/{room}/send/m.room.message/{at}-{n}?user_id={who}");
                let sent = house.put(&path, &bot(), json!({ "msgtype": "m.text", "body": "x" })).await;
                refused[at] += usize::from(sent.status == 429);
            }
        }
        assert_eq!((refused[0], refused[1] > 0), (0, limited), "{more}");
    }
}

/// Networks from their other end: where an alias or a user of Matrix is there.
#[tokio::test]
async fn what_is_known_in_matrix_is_looked_up_elsewhere() {
    let service = Service::start().await;
    let place = json!({ "alias": "#irc_x:localhost", "protocol": "irc", "fields": { "channel": "#x" } });
    let user = json!({ "userid": "@irc_b:localhost", "protocol": "irc", "fields": { "nick": "b" } });
    service.answers("/_matrix/app/v1/thirdparty/location?alias=", json!([place]));
    service.answers("/_matrix/app/v1/thirdparty/user?userid=", json!([user]));
    let house = house_with(&service, "").await;
    let alice = house.register("alice").await;
    assert_eq!(house.get("/thirdparty/location?alias=%23irc_x:localhost", &alice).await.ok(), json!([place]));
    assert_eq!(house.get("/thirdparty/user?userid=@irc_b:localhost", &alice).await.ok(), json!([user]));
}

/// An administrator could give somebody a name of a bridge, which could then do and read everything there; and the administration API
/// said of no account that a bridge has it.
#[tokio::test]
async fn names_of_a_service_are_given_to_nobody_else() {
    let house = house_with(&Service::start().await, "").await;
    let alice = house.register("alice").await;
    let administrator: ruma::OwnedUserId = alice.id.as_str().try_into().unwrap();
    house.server().users.set_admin(&administrator, true).await.unwrap();
    let ghost = ghost(&house, "irc_a").await;
    let of = |user: &str| format!("/_synapse/admin/v2/users/{user}");
    let service = async |user: &str| house.get(&of(user), &alice).await.ok()["appservice_id"].clone();
    assert_eq!(service(&ghost).await, "irc");
    assert_eq!(service("@ircbot:localhost").await, "irc");
    assert_eq!(service(&alice.id).await, json!(null));
    house.put(&of("@irc_b:localhost"), &alice, json!({ "password": "long enough" })).await.refused(400, "M_EXCLUSIVE");
    let free = "/_synapse/admin/v1/username_available?username=irc_b";
    house.get(free, &alice).await.refused(400, "M_EXCLUSIVE");
    let made = house.put(&of("@bert:localhost"), &alice, json!({ "password": "long enough" })).await;
    assert_eq!(made.status, 201);
}

//! Backups of a whole server, and a server that is restored from one.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use snug::backup::{Media, Order, Source};
use snug::base::Random;
use snug::config::{Config, Overrides};
use snug::serve::restore::restore;

use crate::commands::{good, run};
use crate::server::{Folder, TestServer, TestUser};

fn empty(folder: &Path) {
    std::fs::remove_dir_all(folder).unwrap();
    std::fs::create_dir(folder).unwrap();
}

/// On a thread of its own, since it blocks.
fn bring_back(folder: &Path, from: &Path) -> Result<String, String> {
    std::thread::scope(|threads| threads.spawn(|| brought_back(folder, from)).join().unwrap())
}

fn brought_back(folder: &Path, from: &Path) -> Result<String, String> {
    let overrides =
        Overrides { data_dir: Some(folder.to_owned()), budget: Some("pi-5".to_owned()), ..Default::default() };
    let config = Config::load(&overrides).unwrap();
    let source = Source { path: from.to_owned(), stamp: None, key: None, piece_bytes_max: 2 << 20 };
    restore(&config, &source, &mut |_| ()).map_err(|failed| failed.to_string())
}

async fn upload_keys(house: &TestServer, who: &TestUser, id: &str) {
    let device = json!({
        "user_id": who.id, "device_id": who.device, "algorithms": ["m.olm.v1"], "keys": {}, "signatures": {},
    });
    let key = |id: &str| json!({ format!("signed_curve25519:{id}"): { "key": id, "signatures": {} } });
    let body = json!({ "device_keys": device, "one_time_keys": key(id), "fallback_keys": key("F") });
    house.post("/keys/upload", who, body).await.ok();
}

async fn sync(house: &TestServer, who: &TestUser, since: Option<&Value>) -> Value {
    let since = since.map_or(String::new(), |since| format!("&since={}", since.as_str().unwrap()));
    house.get(&format!("/sync?timeout=0{since}"), who).await.ok()
}

async fn say(house: &TestServer, who: &TestUser, room: &str, text: &str) {
    let path = format!("/rooms/{room}/send/m.room.message/{}", Random::os().token(8));
    house.put(&path, who, json!({ "msgtype": "m.text", "body": text })).await.ok();
}

/// A server is set back to an old backup: sessions from before work, and nothing that was handed out since comes back.
#[tokio::test]
async fn a_restored_server_does_no_harm_with_what_it_forgot() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let room = house.post("/createRoom", &alice, json!({ "invite": [bob.id], "preset": "private_chat" })).await.ok();
    let room = room["room_id"].as_str().unwrap().to_owned();
    house.post(&format!("/join/{room}"), &bob, json!({})).await.ok();
    upload_keys(&house, &alice, "old").await;
    say(&house, &alice, &room, "before").await;
    let uploaded = house
        .send(
            "POST",
            "/_matrix/media/v3/upload",
            &[("authorization", &format!("Bearer {}", alice.token))],
            b"a picture".to_vec(),
        )
        .await
        .ok();
    let named = <&ruma::UserId>::try_from(alice.id.as_str()).unwrap();
    house.server().users.set_quota(named, Some(7 << 30)).await.unwrap();
    let begun = sync(&house, &bob, None).await["next_batch"].clone();

    let target = Folder::new();
    let order = Order { target: target.path().join("to"), media: Media::Own, ..Order::default() };
    let said = house.server().backups.make(order).await.unwrap();
    assert!(said.contains("is whole"), "{said}");

    // What the backup does not know.
    let carol = house.register("carol").await;
    say(&house, &alice, &room, "lost").await;
    let to_bob = json!({ "messages": { &bob.id: { "*": { "n": 1 } } } });
    house.put("/sendToDevice/m.test/1", &alice, to_bob.clone()).await.ok();
    let claim = json!({ "one_time_keys": { &alice.id: { &alice.device: "signed_curve25519" } } });
    let claimed = house.post("/keys/claim", &bob, claim.clone()).await.ok();
    assert!(claimed.to_string().contains("signed_curve25519:old"), "{claimed}");
    let later = sync(&house, &bob, Some(&begun)).await["next_batch"].clone();

    let house = house
        .restart_after(|folder| {
            let refused = bring_back(folder, &target.path().join("to")).unwrap_err();
            assert!(refused.contains("not empty"), "{refused}");
            empty(folder);
            let said = bring_back(folder, &target.path().join("to")).unwrap();
            assert!(said.contains("One-time keys are gone") && said.contains("is what localhost was"), "{said}");
        })
        .await;

    house.get("/account/whoami", &alice).await.ok();
    house.get("/account/whoami", &carol).await.refused(401, "M_UNKNOWN_TOKEN");
    let media = uploaded["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap();
    let token = [("authorization", &*format!("Bearer {}", bob.token))];
    let file = house.send("GET", &format!("/_matrix/client/v1/media/download/{media}"), &token, Vec::new()).await;
    assert_eq!(file.bytes, b"a picture");

    assert_eq!(house.server().users.account(named).await.unwrap().unwrap().quota, Some(7 << 30));

    // The key that was handed out is not handed out again, and the app hears that it has none.
    let claimed = house.post("/keys/claim", &bob, claim).await.ok();
    assert!(!claimed.to_string().contains(":old"), "{claimed}");
    let told = sync(&house, &alice, None).await;
    assert_eq!(told["device_unused_fallback_key_types"], json!([]));
    assert_eq!(told["device_one_time_keys_count"]["signed_curve25519"], 0);

    // A token of the lost time: everything is told anew, with whose devices may be others.
    let told = sync(&house, &bob, Some(&later)).await;
    let events = &told["rooms"]["join"][&room]["state"]["events"];
    assert!(events.as_array().is_some_and(|events| events.len() > 3), "{told}");
    assert!(told["device_lists"]["changed"].to_string().contains(&alice.id), "{told}");
    let now = told["next_batch"].clone();
    say(&house, &alice, &room, "after").await;
    house.put("/sendToDevice/m.test/2", &alice, to_bob).await.ok();
    let told = sync(&house, &bob, Some(&now)).await;
    assert!(told["rooms"]["join"][&room]["timeline"].to_string().contains("after"), "{told}");
    assert_eq!(told["to_device"]["events"].as_array().unwrap().len(), 1, "{told}");

    // One of before the backup goes on where it was.
    let told = sync(&house, &bob, Some(&begun)).await;
    let timeline = told["rooms"]["join"][&room]["timeline"].to_string();
    assert!(timeline.contains("after") && !timeline.contains("lost") && !timeline.contains("before"), "{told}");
    let status = house.server().backups.status().unwrap();
    assert!(status.noted.restored_ms.is_some() && status.noted.made_ms.is_none());
    // And it can be backed up again.
    let order = Order { target: target.path().join("to"), ..Order::default() };
    house.server().backups.make(order).await.unwrap();
    house.stop().await;
}

/// A backup and a restore of the program itself, each killed at random moments: what is there then is whole, or nothing.
#[test]
fn a_backup_and_a_restore_that_are_killed_leave_nothing_half() {
    let folder = Folder::new();
    let (data, to, back) = (folder.path().join("data"), folder.path().join("to"), folder.path().join("back"));
    let data_dir = data.to_str().unwrap();
    good(folder.path(), &["user", "add", "alice", "--admin", "--data-dir", data_dir], "a password\n");
    // Something to copy: files of people, and rows that refer to nothing.
    for n in 0..40u8 {
        let name = format!("{n:02}");
        std::fs::write(data.join(format!("old-{name}.key")), vec![n; 2_000]).unwrap();
    }
    let random = Random::seeded(11);
    let killed = |arguments: &[&str], ms: u64| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_snug"))
            .current_dir(folder.path())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(ms));
        let _ = child.kill();
        child.wait().unwrap().success()
    };
    let to_arg = to.to_str().unwrap();
    for _ in 0..12 {
        killed(&["backup", to_arg, "--data-dir", data_dir], random.below(700));
        // Whatever is listed is whole.
        if to.is_dir() && run(folder.path(), &["backup", "list", to_arg], "").status.success() {
            good(folder.path(), &["backup", "verify", to_arg, "--data-dir", data_dir], "");
        }
    }
    let said = good(folder.path(), &["backup", to_arg, "--data-dir", data_dir], "");
    assert!(said.contains("is whole"), "{said}");
    good(folder.path(), &["backup", "verify", to_arg, "--data-dir", data_dir], "");

    let back_dir = back.to_str().unwrap();
    for _ in 0..12 {
        killed(&["restore", to_arg, "--data-dir", back_dir], random.below(500));
        let is_there = back.join("database").exists();
        let listed = run(folder.path(), &["user", "list", "--data-dir", back_dir], "");
        let said = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert_eq!(listed.status.success(), said.contains("@alice:localhost"), "{said}");
        if is_there {
            assert!(listed.status.success());
            std::fs::remove_dir_all(&back).unwrap();
        }
    }
    if !back.join("database").exists() {
        let done = run(folder.path(), &["restore", to_arg, "--data-dir", back_dir], "");
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success() || said.contains("not empty"), "{said}");
    }
    assert!(good(folder.path(), &["user", "list", "--data-dir", back_dir], "").contains("@alice:localhost"));
    assert_eq!(std::fs::read(back.join("old-07.key")).unwrap(), vec![7; 2_000]);
    assert!(!back.join("restoring").exists());
}

//! The most that each account held in a fixed load, one request after the other, under each profile: compared with `tests/peaks.tsv`,
//! so that a change that costs memory shows in its diff.
//!
//! `SNUG_PEAKS=write cargo test --test it peaks` writes the table anew.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use snug::budget::Profile;

use crate::lab::picture;
use crate::rooms::{create, q, set};
use crate::server::TestServer;

/// Between the table and a run: a tenth, or so many bytes where that is more.
const SLACK_BYTES: u64 = 4096;

/// How many connections are there at once depends on when the server sees that one has ended.
const LEFT_OUT: &[&str] = &["admin", "connections"];

/// Bytes of each account, under each profile in the order of [`Profile::names`].
type Table = BTreeMap<String, Vec<u64>>;

/// Tries: an answer may give its bytes back a moment after the next began, so the least of some tries counts.
const TRIES_MAX: usize = 6;

#[tokio::test(flavor = "multi_thread")]
async fn accounts_hold_what_they_held() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peaks.tsv");
    let writes = std::env::var("SNUG_PEAKS").is_ok_and(|what| what == "write");
    let known = read(&std::fs::read_to_string(path).unwrap());
    let mut found = measured().await;
    for _ in 1..TRIES_MAX {
        if !writes && differences(&known, &found).is_empty() {
            break;
        }
        for (account, again) in measured().await {
            let least = found.entry(account).or_insert_with(|| again.clone());
            least.iter_mut().zip(again).for_each(|(least, again)| *least = again.min(*least));
        }
    }
    if writes {
        return std::fs::write(path, written(&found)).unwrap();
    }
    let wrong = differences(&known, &found);
    assert!(wrong.is_empty(), "{}\nas it should be? SNUG_PEAKS=write cargo test --test it peaks", wrong.join("\n"));
}

async fn measured() -> Table {
    let mut found = Table::new();
    for name in Profile::names() {
        let server = TestServer::start_under(name).await;
        load(&server).await;
        let accounts = server.server().budget.accounts();
        for account in accounts.iter().filter(|account| !LEFT_OUT.contains(&account.name())) {
            found.entry(account.name().to_owned()).or_default().push(account.high_water());
        }
        server.stop().await;
    }
    found
}

/// What people do, one thing after the other: nothing here depends on who comes first.
async fn load(server: &TestServer) {
    let (alice, bob) = (server.register("alice").await, server.register("bob").await);
    let room = create(server, &alice, json!({ "preset": "public_chat" })).await;
    server.post(&format!("/join/{}", q(&room)), &bob, json!({})).await.ok();
    for nth in 0..30 {
        let body = json!({ "msgtype": "m.text", "body": "a line of text ".repeat(nth) });
        server.put(&format!("/rooms/{}/send/m.room.message/{nth}", q(&room)), &alice, body).await.ok();
        set(server, &alice, &room, "m.room.topic", json!({ "topic": format!("topic {nth}") })).await;
    }
    let large = json!({ "msgtype": "m.text", "body": "x".repeat(50_000) });
    server.put(&format!("/rooms/{}/send/m.room.message/large", q(&room)), &alice, large).await.ok();
    let first = server.get("/sync?timeout=0", &bob).await.ok();
    server.get(&format!("/sync?timeout=0&since={}", first["next_batch"].as_str().unwrap()), &bob).await.ok();
    server.get(&format!("/rooms/{}/messages?dir=b&limit=100", q(&room)), &bob).await.ok();
    server.get(&format!("/rooms/{}/state", q(&room)), &bob).await.ok();
    let key = |nth| json!({ "key": format!("{nth:043}"), "signatures": {} });
    let keys: serde_json::Map<String, Value> =
        (0..50).map(|nth| (format!("signed_curve25519:{nth}"), key(nth))).collect();
    server.post("/keys/upload", &alice, json!({ "one_time_keys": keys })).await.ok();
    server.post("/keys/query", &bob, json!({ "device_keys": { &alice.id: [] } })).await.ok();
    let message = json!({ "messages": { &bob.id: { "*": { "text": "x".repeat(5_000) } } } });
    server.put("/sendToDevice/m.test/1", &alice, message).await.ok();
    server.get("/sync?timeout=0", &bob).await.ok();
    let bearer = format!("Bearer {}", alice.token);
    let headers = [("authorization", bearer.as_str())];
    let made = server.send("POST", "/_matrix/media/v3/upload", &headers, vec![7; 300_000]).await.ok();
    let uri = made["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned();
    let file = server.get(&format!("/_matrix/client/v1/media/download/{uri}"), &bob).await;
    assert_eq!((file.status, file.bytes.len()), (200, 300_000));
    let headers = [("authorization", bearer.as_str()), ("content-type", "image/jpeg")];
    let made = server.send("POST", "/_matrix/media/v3/upload", &headers, picture::jpeg(2000, 1500, 1)).await.ok();
    let uri = made["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned();
    let path = format!("/_matrix/client/v1/media/thumbnail/{uri}?width=800&height=600");
    assert_eq!(picture::size(&server.get(&path, &bob).await.bytes), (800, 600));
    let user = json!({ "type": "m.id.user", "user": "bob" });
    let login = json!({ "type": "m.login.password", "identifier": user, "password": "secret bob" });
    server.request("POST", "/login", None, login).await.ok();
}

fn written(table: &Table) -> String {
    let mut text = format!("account\t{}\n", Profile::names().collect::<Vec<_>>().join("\t"));
    for (account, peaks) in table {
        let peaks: Vec<String> = peaks.iter().map(u64::to_string).collect();
        text += &format!("{account}\t{}\n", peaks.join("\t"));
    }
    text
}

fn read(text: &str) -> Table {
    let row = |line: &str| {
        let mut fields = line.split('\t');
        let account = fields.next().unwrap_or_default().to_owned();
        (account, fields.map(|field| field.parse().expect("a number of bytes")).collect())
    };
    text.lines().skip(1).map(row).collect()
}

fn differences(known: &Table, found: &Table) -> Vec<String> {
    let mut wrong = Vec::new();
    let accounts: std::collections::BTreeSet<_> = known.keys().chain(found.keys()).collect();
    for account in accounts {
        let (Some(known), Some(found)) = (known.get(account), found.get(account)) else {
            wrong.push(format!("{account} is not in both"));
            continue;
        };
        for ((name, known), found) in Profile::names().zip(known).zip(found) {
            if known.abs_diff(*found) > (known / 10).max(SLACK_BYTES) {
                wrong.push(format!("{account} under {name}: {found} bytes at most, the table says {known}"));
            }
        }
    }
    wrong
}

#[test]
fn a_difference_is_seen() {
    let table = |bytes: u64| Table::from([("bodies".to_owned(), vec![bytes; Profile::names().count()])]);
    assert!(differences(&table(100_000), &table(105_000)).is_empty());
    assert!(!differences(&table(100_000), &table(120_000)).is_empty());
    assert!(!differences(&table(100_000), &Table::new()).is_empty());
    assert_eq!(read(&written(&table(7))), table(7));
}

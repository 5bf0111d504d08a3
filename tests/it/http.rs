//! What every path has in common: unknown ones, wrong methods, other origins, old HTTP; and that a server can stop.

use serde_json::Value;

use crate::rooms::eventually;
use crate::server::{Pair, TestServer};

#[tokio::test]
async fn old_http_is_answered() {
    let house = TestServer::start().await;
    let answer = house.raw("GET /_matrix/client/versions HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\"versions\""), "{answer}");
    house.stop().await;
}

#[tokio::test]
async fn unknown_paths_and_methods() {
    let house = TestServer::start().await;
    let ask = async |method, path| house.request(method, path, None, Value::Null).await;
    ask("GET", "/_matrix/client/v3/nothing").await.refused(404, "M_UNRECOGNIZED");
    ask("GET", "/_matrix/nothing").await.refused(404, "M_UNRECOGNIZED");
    ask("POST", "/_matrix/client/versions").await.refused(405, "M_UNRECOGNIZED");
    ask("PUT", "/_matrix/key/v2/server").await.refused(405, "M_UNRECOGNIZED");
}

#[tokio::test]
async fn other_origins_may_ask() {
    let house = TestServer::start().await;
    let reply =
        house.send("OPTIONS", "/_matrix/client/v3/sync", &[("origin", "https://app.example")], Vec::new()).await;
    assert!((200..300).contains(&reply.status), "{}", reply.status);
    assert_eq!(reply.headers["access-control-allow-origin"], "*");
    assert!(reply.headers["access-control-allow-headers"].to_str().unwrap().contains("Authorization"));
    let reply = house.request("GET", "/_matrix/client/versions", None, Value::Null).await;
    assert_eq!(reply.headers["access-control-allow-origin"], "*");
}

#[tokio::test]
async fn a_server_starts_again_with_the_same_key() {
    let house = TestServer::start().await;
    let keys = async |house: &TestServer| {
        house.request("GET", "/_matrix/key/v2/server", None, Value::Null).await.ok()["verify_keys"].clone()
    };
    let before = keys(&house).await;
    let house = house.restart().await;
    assert_eq!(keys(&house).await, before);
}

/// Each is a notary for the other, which takes a name, a connection, a certificate and a signature.
#[tokio::test]
async fn two_servers_find_each_other() {
    let pair = Pair::start().await;
    let path = format!("/_matrix/key/v2/query/{}", pair.two.name());
    let answer = pair.one.request("GET", &path, None, Value::Null).await.ok();
    let said = &answer["server_keys"][0];
    assert_eq!(said["server_name"], pair.two.name(), "{answer}");
    assert_eq!(said["signatures"].as_object().unwrap().len(), 2, "{answer}");
    pair.one.stop().await;
    pair.two.stop().await;
}

#[tokio::test]
async fn a_large_body_is_refused_before_it_is_read() {
    let house = TestServer::start_under("pi-zero-2w").await;
    let body = vec![b' '; 600 * 1024];
    house.send("POST", "/_matrix/client/v3/login", &[], body).await.refused(413, "M_TOO_LARGE");
    let bodies = house.server().budget.account("request_bodies");
    eventually("nothing of it is paid for", async || (bodies.used() == 0).then_some(())).await;
}

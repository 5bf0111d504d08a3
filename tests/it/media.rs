//! Files.

use serde_json::json;

use crate::server::{Pair, TestServer, TestUser};

async fn upload(house: &TestServer, who: &TestUser, kind: &str, bytes: &[u8]) -> String {
    let bearer = format!("Bearer {}", who.token);
    let headers = [("authorization", bearer.as_str()), ("content-type", kind)];
    let made = house.send("POST", "/_matrix/media/v3/upload?filename=a%20b.png", &headers, bytes.to_vec()).await.ok();
    made["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned()
}

#[tokio::test]
async fn a_file_comes_back_as_it_was() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let bytes: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
    let id = upload(&house, &alice, "image/png", &bytes).await;
    let path = format!("/_matrix/client/v1/media/download/{id}");
    let whole = house.get(&path, &alice).await;
    assert_eq!((whole.status, whole.bytes == bytes), (200, true));
    assert_eq!(whole.headers["content-type"], "image/png");
    assert_eq!(whole.headers["content-disposition"], "inline; filename=\"a b.png\"");
    assert!(whole.headers["content-security-policy"].to_str().unwrap().starts_with("sandbox"));
    let bearer = format!("Bearer {}", alice.token);
    let part = [("authorization", bearer.as_str()), ("range", "bytes=1000-1999")];
    let part = house.send("GET", &path, &part, Vec::new()).await;
    assert_eq!((part.status, &part.bytes[..]), (206, &bytes[1000..2000]));
    let known = [("authorization", bearer.as_str()), ("if-none-match", whole.headers["etag"].to_str().unwrap())];
    assert_eq!(house.send("GET", &path, &known, Vec::new()).await.status, 304);

    house.send("GET", &path, &[], Vec::new()).await.refused(401, "M_MISSING_TOKEN");
    let old = house.send("GET", &format!("/_matrix/media/v3/download/{id}"), &[], Vec::new()).await;
    assert_eq!((old.status, old.bytes.len()), (200, bytes.len()));
    let small = format!("/_matrix/client/v1/media/thumbnail/{id}?width=10&height=10");
    assert_eq!(house.get(&small, &alice).await.bytes.len(), bytes.len());
    house.get("/_matrix/client/v1/media/download/localhost/nothing", &alice).await.refused(404, "M_NOT_FOUND");
}

#[tokio::test]
async fn a_page_is_offered_to_be_saved_and_has_no_smaller_image() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let id = upload(&house, &alice, "text/html", b"<script>").await;
    let page = house.get(&format!("/_matrix/client/v1/media/download/{id}/x.html"), &alice).await;
    assert_eq!(page.headers["content-disposition"], "attachment; filename=x.html");
    let small = format!("/_matrix/client/v1/media/thumbnail/{id}?width=10&height=10");
    house.get(&small, &alice).await.refused(400, "M_UNKNOWN");
}

#[tokio::test]
async fn too_large_a_file_is_refused() {
    let house = TestServer::start_with(|config| config.upload_bytes_max = 1000).await;
    let alice = house.register("alice").await;
    let config = house.get("/_matrix/client/v1/media/config", &alice).await.ok();
    assert_eq!(config, json!({ "m.upload.size": 1000 }));
    let bearer = format!("Bearer {}", alice.token);
    let headers = [("authorization", bearer.as_str())];
    house.send("POST", "/_matrix/media/v3/upload", &headers, vec![0; 1001]).await.refused(413, "M_TOO_LARGE");
    house.send("POST", "/_matrix/media/v3/upload", &headers, vec![0; 1000]).await.ok();
}

/// One account could fill the disk up to where nobody could upload any more.
#[tokio::test]
async fn an_account_has_a_share_for_its_files() {
    let house = TestServer::start_with(|config| config.account_upload_bytes_max = Some(1500)).await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let send = async |house: &TestServer, who: &TestUser, bytes: usize| {
        let bearer = format!("Bearer {}", who.token);
        house.send("POST", "/_matrix/media/v3/upload", &[("authorization", &bearer)], vec![0; bytes]).await
    };
    send(&house, &alice, 1000).await.ok();
    let refused = send(&house, &alice, 501).await.refused(403, "M_RESOURCE_LIMIT_EXCEEDED");
    assert!(refused["error"].as_str().unwrap().contains("1.5 KiB an account may keep"), "{refused}");
    send(&house, &bob, 1500).await.ok();
    // It is counted in the database.
    let house = house.restart().await;
    send(&house, &alice, 501).await.refused(403, "M_RESOURCE_LIMIT_EXCEEDED");
    send(&house, &alice, 500).await.ok();
    send(&house, &alice, 1).await.refused(403, "M_RESOURCE_LIMIT_EXCEEDED");
    let incoming = std::fs::read_dir(house.data_dir().join("media/incoming")).unwrap().count();
    assert_eq!(incoming, 0, "what was refused leaves nothing");
    let names = [alice.id, bob.id].map(|id| id.parse().unwrap());
    assert_eq!(house.server().users.uploaded_by(names.to_vec()).await.unwrap(), [1500, 1500]);
}

#[tokio::test]
async fn a_promised_file_is_waited_for() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let made = house.post("/_matrix/media/v1/create", &alice, json!({})).await.ok();
    let id = made["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned();
    let path = format!("/_matrix/client/v1/media/download/{id}");
    house.get(&format!("{path}?timeout_ms=1"), &bob).await.refused(504, "M_NOT_YET_UPLOADED");
    let put = |who: &TestUser| {
        let bearer = format!("Bearer {}", who.token);
        let (house, path) = (&house, format!("/_matrix/media/v3/upload/{id}"));
        async move { house.send("PUT", &path, &[("authorization", &bearer)], b"late".to_vec()).await }
    };
    put(&bob).await.refused(403, "M_FORBIDDEN");
    let (got, done) = tokio::join!(house.get(&path, &bob), put(&alice));
    done.ok();
    assert_eq!(got.bytes, b"late");
    put(&alice).await.refused(409, "M_CANNOT_OVERWRITE_MEDIA");
}

#[tokio::test]
async fn another_servers_file() {
    let pair = Pair::start().await;
    let (alice, bob) = (pair.one.register("alice").await, pair.two.register("bob").await);
    let bytes: Vec<u8> = (0..300_000u32).map(|n| (n % 253) as u8).collect();
    let id = upload(&pair.two, &bob, "video/mp4", &bytes).await;
    let got = pair.one.get(&format!("/_matrix/client/v1/media/download/{id}"), &alice).await;
    assert_eq!((got.status, got.bytes == bytes), (200, true));
    assert_eq!(got.headers["content-type"], "video/mp4");
    let gone = pair.one.get(&format!("/_matrix/client/v1/media/download/{}x", id), &alice).await;
    gone.refused(404, "M_NOT_FOUND");
}

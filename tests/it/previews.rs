//! Previews of links, from web servers on the loopback.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::lab::picture;
use crate::server::{TestServer, TestUser};

/// A web server that answers each path with a head and a body, and counts.
struct Site {
    url: String,
    asked: Arc<AtomicUsize>,
}

/// One without a robots.txt.
async fn site() -> Site {
    site_with(|_| None).await
}

/// One that answers otherwise where `other` says so: the whole answer, after which the connection ends or goes on in silence.
async fn site_with(other: impl Fn(&str) -> Option<(Vec<u8>, bool)> + Send + Sync + 'static) -> Site {
    let other = Arc::new(other);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (count, other) = (count.clone(), other.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => break,
                    }
                }
                let head = String::from_utf8_lossy(&head).into_owned();
                count.fetch_add(1, Ordering::Relaxed);
                assert!(head.to_lowercase().contains("user-agent: snug/"), "{head}");
                let path = head.split(' ').nth(1).unwrap_or_default();
                if let Some((answer, ends)) = other(path) {
                    let _ = stream.write_all(&answer).await;
                    return if ends { drop(stream) } else { std::future::pending::<()>().await };
                }
                let (status, kind, body) = answer(path);
                let length = body.len();
                let head = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
                );
                let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
            });
        }
    });
    Site { url, asked }
}

fn answer(path: &str) -> (&'static str, &'static str, Vec<u8>) {
    let page = |text: &str| ("200 OK", "text/html; charset=utf-8", text.as_bytes().to_vec());
    match path {
        "/page" => page(
            "<html><head><meta property=og:title content='A &amp; B'><meta property=og:image content='a/picture.jpg'>\
             <meta name=description content=words></head><body>",
        ),
        "/plain" => page("<title>Plain</title><body><script>no</script>Some words"),
        "/without" => page("<title>No picture</title><meta property=og:image content='/gone.jpg'>"),
        "/endless" => page(&format!("<title>Long</title><body>{}", "word ".repeat(1_000_000))),
        "/a/picture.jpg" => ("200 OK", "image/jpeg", picture::jpeg(1600, 800, 1)),
        "/moved" => ("302 Found\r\nlocation: plain", "text/plain", Vec::new()),
        "/home" => ("302 Found\r\nlocation: http://192.168.1.1/", "text/plain", Vec::new()),
        "/file" => ("200 OK", "application/pdf", vec![7; 100]),
        _ => ("404 Not Found", "text/html", Vec::new()),
    }
}

async fn preview(house: &TestServer, who: &TestUser, url: &str) -> crate::server::Reply {
    house.get(&format!("/_matrix/client/v1/media/preview_url?url={}", crate::rooms::q(url)), who).await
}

#[tokio::test]
async fn a_page_says_what_it_is_about() {
    let site = site().await;
    let house = TestServer::start_with(|config| config.previews.allow_private = true).await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let url = format!("{}/page", site.url);
    let shown = preview(&house, &alice, &format!("{url}#part")).await.ok();
    let uri = shown["og:image"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned();
    let size = shown["matrix:image:size"].as_u64().unwrap();
    let wanted = json!({
        "og:title": "A & B", "og:description": "words", "og:image": format!("mxc://{uri}"), "og:image:type": "image/jpeg",
        "og:image:width": 800, "og:image:height": 400, "matrix:image:size": size
    });
    assert_eq!(shown, wanted);
    let file = house.get(&format!("/_matrix/client/v1/media/download/{uri}"), &bob).await;
    assert_eq!((file.bytes.len() as u64, picture::size(&file.bytes)), (size, (800, 400)));
    // The page and its picture were asked for once, for all and on every path, and robots.txt before.
    assert_eq!(preview(&house, &bob, &url).await.ok(), wanted);
    let old = format!("/_matrix/media/v3/preview_url?url={}&ts=1", crate::rooms::q(&url));
    assert_eq!(house.get(&old, &bob).await.ok(), wanted);
    assert_eq!(site.asked.load(Ordering::Relaxed), 3);
    let incoming = std::fs::read_dir(house.data_dir().join("media/incoming")).unwrap().count();
    assert_eq!(incoming, 0);

    let picture = preview(&house, &alice, &format!("{}/a/picture.jpg", site.url)).await.ok();
    assert_eq!((&picture["og:title"], &picture["og:image:width"]), (&json!("picture.jpg"), &json!(800)));
    let plain = preview(&house, &alice, &format!("{}/plain", site.url)).await.ok();
    assert_eq!(plain, json!({ "og:title": "Plain", "og:description": "Some words" }));
    let without = preview(&house, &alice, &format!("{}/without", site.url)).await.ok();
    assert_eq!(without, json!({ "og:title": "No picture" }));
    let endless = preview(&house, &alice, &format!("{}/endless", site.url)).await.ok();
    assert_eq!(endless["og:title"], "Long");
    assert_eq!(preview(&house, &alice, &format!("{}/file", site.url)).await.ok(), json!({}));
    preview(&house, &alice, &format!("{}/nothing", site.url)).await.refused(502, "M_UNKNOWN");
    let asked = site.asked.load(Ordering::Relaxed);
    preview(&house, &bob, &format!("{}/nothing", site.url)).await.refused(502, "M_UNKNOWN");
    assert_eq!(site.asked.load(Ordering::Relaxed), asked, "what failed is not tried again at once");
}

#[tokio::test]
async fn the_home_network_is_not_asked() {
    let site = site().await;
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    for url in [format!("{}/page", site.url), "http://192.168.1.1/".to_owned(), "https://[::1]/".to_owned()] {
        preview(&house, &alice, &url).await.refused(403, "M_FORBIDDEN");
    }
    assert_eq!(site.asked.load(Ordering::Relaxed), 0);
    for url in ["", "ftp://example.org/", "nothing", "https://user:secret@example.org/"] {
        preview(&house, &alice, url).await.refused(400, "M_INVALID_PARAM");
    }
    house.get("/_matrix/client/v1/media/preview_url", &alice).await.refused(400, "M_MISSING_PARAM");
    let can = house.get("/capabilities", &alice).await.ok();
    assert_eq!(can["capabilities"]["io.element.msc4452.preview_url"], json!({ "enabled": true }));
}

/// A wiki in the home network had no previews, whatever its owner wanted.
#[tokio::test]
async fn hosts_of_the_home_network_are_asked_when_they_are_named() {
    let site = site().await;
    let house = TestServer::start_with(|config| config.previews.private_hosts = vec!["127.0.0.1".to_owned()]).await;
    let alice = house.register("alice").await;
    let shown = preview(&house, &alice, &format!("{}/page", site.url)).await.ok();
    assert_eq!((&shown["og:title"], &shown["og:image:width"]), (&json!("A & B"), &json!(800)));
    let moved = preview(&house, &alice, &format!("{}/moved", site.url)).await.ok();
    assert_eq!(moved["og:title"], "Plain");
    // Not others, and not by a redirect.
    preview(&house, &alice, "http://127.0.0.2/").await.refused(403, "M_FORBIDDEN");
    preview(&house, &alice, &format!("{}/home", site.url)).await.refused(403, "M_FORBIDDEN");
}

#[tokio::test]
async fn previews_can_be_off_or_leave_sites_out() {
    let house = TestServer::start_with(|config| config.previews.enabled = false).await;
    let alice = house.register("alice").await;
    preview(&house, &alice, "https://example.org/").await.refused(403, "M_FORBIDDEN");
    let can: Value = house.get("/capabilities", &alice).await.ok();
    assert_eq!(can["capabilities"]["m.preview_url"], json!({ "enabled": false }));
    let house = TestServer::start_with(|config| config.previews.deny = vec!["example.org".to_owned()]).await;
    let alice = house.register("alice").await;
    let why = preview(&house, &alice, "https://www.example.org/").await.refused(403, "M_FORBIDDEN");
    assert!(why["error"].as_str().unwrap().contains("administrator"), "{why}");
}

/// A site at home that the operator names is asked, and nothing that it leads to.
#[tokio::test]
async fn sites_of_the_home_network_are_asked_when_they_are_named() {
    let site = site().await;
    let house = TestServer::start_with(|config| config.previews.private_hosts = vec!["127.0.0.1".to_owned()]).await;
    let alice = house.register("alice").await;
    let shown = preview(&house, &alice, &format!("{}/page", site.url)).await.ok();
    assert_eq!((&shown["og:title"], &shown["og:image:width"]), (&json!("A & B"), &json!(800)));
    preview(&house, &alice, &format!("{}/home", site.url)).await.refused(403, "M_FORBIDDEN");
    let other = site.url.replace("127.0.0.1", "localhost");
    preview(&house, &alice, &format!("{other}/page")).await.refused(403, "M_FORBIDDEN");
}

/// What a site says in its robots.txt was not asked for.
#[tokio::test]
async fn pages_that_a_site_asks_programs_not_to_read_have_no_preview() {
    let answer =
        |text: &str| Some((format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n{text}").into_bytes(), true));
    let moved = |to: &str| {
        Some((format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\n\r\n").into_bytes(), true))
    };
    let site = site_with(move |path| match path {
        "/robots.txt" => moved("/moved-robots"),
        "/moved-robots" => answer(
            "User-agent: *\nDisallow: /\n\nUser-agent: snug\nDisallow: /page\nDisallow: /a/ # its pictures\nAllow: /page?x=*\n",
        ),
        "/to-page" => moved("/page"),
        "/page?x=1" => answer("<title>Open</title><meta property=og:image content=/a/picture.jpg>")
            .map(|(page, _)| (String::from_utf8(page).unwrap().replace("text/plain", "text/html").into_bytes(), true)),
        _ => None,
    })
    .await;
    let house = TestServer::start_with(|config| config.previews.allow_private = true).await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let asked = || site.asked.load(Ordering::Relaxed);
    let why = preview(&house, &alice, &format!("{}/page", site.url)).await.refused(403, "M_FORBIDDEN");
    assert!(why["error"].as_str().unwrap().contains("robots.txt"), "{why}");
    assert_eq!(asked(), 2, "only what it says was read");
    preview(&house, &bob, &format!("{}/page", site.url)).await.refused(403, "M_FORBIDDEN");
    preview(&house, &alice, &format!("{}/a/picture.jpg", site.url)).await.refused(403, "M_FORBIDDEN");
    assert_eq!(asked(), 2, "and kept");
    assert_eq!(preview(&house, &alice, &format!("{}/plain", site.url)).await.ok()["og:title"], "Plain");
    preview(&house, &alice, &format!("{}/to-page", site.url)).await.refused(403, "M_FORBIDDEN");
    assert_eq!(asked(), 4, "a redirect leads to no page that is forbidden");
    let open = preview(&house, &alice, &format!("{}/page?x=1", site.url)).await.ok();
    assert_eq!(
        (&open["og:title"], &open["og:image:width"]),
        (&json!("Open"), &json!(800)),
        "a page names its picture to be shown"
    );

    let house = TestServer::start_with(|config| {
        config.previews.allow_private = true;
        config.previews.robots_txt = false;
    })
    .await;
    let alice = house.register("alice").await;
    let before = asked();
    assert_eq!(preview(&house, &alice, &format!("{}/page", site.url)).await.ok()["og:title"], "A & B");
    assert_eq!(asked(), before + 2, "it is not even asked for");
}

/// One that does not end, or comes as slowly as it likes, costs so many bytes and so much time.
#[tokio::test]
async fn a_hostile_robots_txt_costs_little() {
    let head = "HTTP/1.1 200 OK\r\n\r\n";
    let long = site_with(move |path| {
        let whole =
            || format!("{head}user-agent: *\ndisallow: /page\ndisallow: /{}", "x".repeat(100 << 20)).into_bytes();
        (path == "/robots.txt").then(|| (whole(), true))
    })
    .await;
    let groups = site_with(move |path| {
        let whole = || {
            format!("{head}{}", "user-agent: *\ndisallow: /b\nuser-agent: x\nallow: /\n".repeat(1_000_000)).into_bytes()
        };
        (path == "/robots.txt").then(|| (whole(), true))
    })
    .await;
    let slow =
        site_with(move |path| (path == "/robots.txt").then(|| (format!("{head}user-agent").into_bytes(), false))).await;
    let failing = site_with(|path| {
        (path == "/robots.txt").then(|| (b"HTTP/1.1 503 x\r\ncontent-length: 0\r\n\r\n".to_vec(), true))
    })
    .await;
    let endless = site_with(|path| {
        let moved = || b"HTTP/1.1 301 x\r\nlocation: /robots.txt\r\ncontent-length: 0\r\n\r\n".to_vec();
        (path == "/robots.txt").then(|| (moved(), true))
    })
    .await;
    let house = TestServer::start_with(|config| config.previews.allow_private = true).await;
    let alice = house.register("alice").await;
    let ask = async |site: &Site, path: &str| preview(&house, &alice, &format!("{}{path}", site.url)).await;
    ask(&long, "/page").await.refused(403, "M_FORBIDDEN");
    assert_eq!(ask(&long, "/plain").await.ok()["og:title"], "Plain");
    assert_eq!(ask(&groups, "/plain").await.ok()["og:title"], "Plain");
    ask(&slow, "/plain").await.refused(502, "M_UNKNOWN");
    ask(&failing, "/plain").await.refused(502, "M_UNKNOWN");
    assert_eq!(failing.asked.load(Ordering::Relaxed), 1);
    assert_eq!(ask(&endless, "/plain").await.ok()["og:title"], "Plain");
    assert_eq!(endless.asked.load(Ordering::Relaxed), 7, "it, five redirects, and the page");
}

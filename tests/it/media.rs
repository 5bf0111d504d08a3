//! Files.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use snug::config::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::commands::good;
use crate::lab::certificates::Certificates;
use crate::lab::picture;
use crate::lab::render::Rendered;
use crate::lab::resident::{Dials, Resident, media_bytes};
use crate::lab::room::{self as made, RESIDENT};
use crate::rooms::eventually;
use crate::scanner::{Lab, scanned_by};
use crate::server::{Folder, Pair, TestServer, TestUser};

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

    let etag = whole.headers["etag"].to_str().unwrap();
    for (of, status, length) in [(etag, 206, 1000), ("\"other\"", 200, bytes.len())] {
        let part = [("authorization", bearer.as_str()), ("range", "bytes=-1000"), ("if-range", of)];
        let part = house.send("GET", &path, &part, Vec::new()).await;
        assert_eq!((part.status, part.bytes.len()), (status, length), "{of}");
    }
    let beyond = [("authorization", bearer.as_str()), ("range", "bytes=200000-")];
    let beyond = house.send("GET", &path, &beyond, Vec::new()).await;
    assert_eq!((beyond.status, beyond.headers["content-range"].to_str().unwrap()), (416, "bytes */200000"));

    house.send("GET", &path, &[], Vec::new()).await.refused(401, "M_MISSING_TOKEN");
    for old in ["/_matrix/media/v3/download", "/_matrix/media/r0/thumbnail"] {
        let old = format!("{old}/{id}?width=10&height=10");
        house.send("GET", &old, &[], Vec::new()).await.refused(404, "M_NOT_FOUND");
    }
    let small = format!("/_matrix/client/v1/media/thumbnail/{id}?width=10&height=10");
    assert_eq!(house.get(&small, &alice).await.bytes.len(), bytes.len());
    house.get("/_matrix/client/v1/media/download/localhost/nothing", &alice).await.refused(404, "M_NOT_FOUND");
}

/// What was uploaded before downloads were authenticated stays where old apps look for it.
#[tokio::test]
async fn the_old_paths_have_what_was_there_before_they_were_frozen() {
    let house = TestServer::start_with(|config| config.media.authenticated = false).await;
    let alice = house.register("alice").await;
    let id = upload(&house, &alice, "image/png", b"x").await;
    for old in ["/_matrix/media/v3/download", "/_matrix/media/r0/thumbnail"] {
        let old = house.send("GET", &format!("{old}/{id}?width=10&height=10"), &[], Vec::new()).await;
        assert_eq!((old.status, &old.bytes[..]), (200, &b"x"[..]));
    }
}

#[tokio::test]
async fn a_picture_is_made_smaller_once() {
    let house = TestServer::start().await;
    let (alice, bob) = (house.register("alice").await, house.register("bob").await);
    let file = picture::jpeg(1000, 500, 1);
    let id = upload(&house, &alice, "image/jpeg", &file).await;
    let small = |size: &str| format!("/_matrix/client/v1/media/thumbnail/{id}?{size}");
    for (asked, size) in [
        ("width=32&height=32&method=crop", (32, 32)),
        ("width=90&height=90&method=crop", (96, 96)),
        ("width=100&height=100&method=crop", (320, 160)),
        ("width=32&height=32&method=scale", (320, 160)),
        ("width=700&height=10&method=scale", (800, 400)),
        ("width=5000&height=5000&animated=true", (800, 400)),
    ] {
        let made = house.get(&small(asked), &bob).await;
        assert_eq!((made.status, picture::size(&made.bytes)), (200, size), "{asked}");
        assert_eq!(made.headers["content-type"], "image/jpeg");
        assert_ne!(made.headers["etag"].to_str().unwrap(), "");
    }
    let thumbnails = house.data_dir().join("media/thumbnails");
    let made = |folder: &std::path::Path| {
        let folders = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        folders.map(|folder| std::fs::read_dir(folder).unwrap().count()).sum::<usize>()
    };
    assert_eq!(made(&thumbnails), 4, "of four shapes one file each");
    assert_eq!(std::fs::read_dir(house.data_dir().join("media/incoming")).unwrap().count(), 0);
    // Many who ask at once have it made once, and all get it.
    let paths: Vec<String> = (0..8).map(|_| small("width=640&height=480")).collect();
    let asked: Vec<_> = paths.iter().map(|path| house.get(path, &bob)).collect();
    for asked in asked {
        assert_eq!(picture::size(&asked.await.bytes), (640, 320));
    }
    // After a restart it is there.
    let house = house.restart().await;
    let again = house.get(&small("width=640&height=480"), &alice).await;
    assert_eq!((picture::size(&again.bytes), made(&thumbnails)), ((640, 320), 5));
    house.get(&small("width=640&height=0"), &alice).await.refused(400, "M_MISSING_PARAM");
}

#[tokio::test]
async fn what_cannot_be_made_smaller_is_shown_as_it_is() {
    let house = TestServer::start_under("router-32").await;
    let alice = house.register("alice").await;
    let mut cut_off = picture::jpeg(1000, 500, 1);
    cut_off.truncate(20_000);
    let mut bomb = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\x75\x30\0\0\x75\x30\x08\x02\0\0\0\0\0\0\0".to_vec();
    bomb.extend(b"\0\0\0\x02IDAT\x78\x9c\0\0\0\0");
    let lossless = b"RIFF\x20\0\0\0WEBPVP8L\x14\0\0\0\x2f\xff\xff\xff\xff\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    for (kind, file) in [
        ("image/jpeg", cut_off),
        ("image/png", bomb),
        ("image/webp", lossless.to_vec()),
        ("image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec()),
        ("video/mp4", vec![7; 1000]),
        ("image/png", Vec::new()),
    ] {
        let id = upload(&house, &alice, kind, &file).await;
        for _ in 0..2 {
            let path = format!("/_matrix/client/v1/media/thumbnail/{id}?width=32&height=32&method=crop");
            let got = house.get(&path, &alice).await;
            assert_eq!((got.status, got.headers["content-type"].to_str().unwrap()), (200, kind));
            assert!(got.bytes == file, "{kind}");
        }
    }
    let pictures = house.server().budget.account("pictures");
    eventually("all is paid back", async || (pictures.used() == 0).then_some(())).await;
    assert_eq!(pictures.refusals(), 0);
}

#[tokio::test]
async fn another_server_gets_a_smaller_picture() {
    let pair = Pair::start().await;
    let (alice, bob) = (pair.one.register("alice").await, pair.two.register("bob").await);
    let id = upload(&pair.two, &bob, "image/jpeg", &picture::jpeg(1000, 500, 1)).await;
    let path = format!("/_matrix/client/v1/media/thumbnail/{id}?width=320&height=240&method=scale");
    let got = pair.one.get(&path, &alice).await;
    assert_eq!((got.status, picture::size(&got.bytes)), (200, (320, 160)));
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

/// A restart between the two halves of an upload lost it, and the message that names it stayed.
#[tokio::test]
async fn a_promised_file_may_come_after_a_restart() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let made = house.post("/_matrix/media/v1/create", &alice, json!({})).await.ok();
    let id = made["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned();
    let house = house.restart().await;
    let bearer = format!("Bearer {}", alice.token);
    let headers = [("authorization", bearer.as_str())];
    house.send("PUT", &format!("/_matrix/media/v3/upload/{id}"), &headers, b"late".to_vec()).await.ok();
    assert_eq!(house.get(&format!("/_matrix/client/v1/media/download/{id}"), &alice).await.bytes, b"late");
    for _ in 0..16 {
        house.post("/_matrix/media/v1/create", &alice, json!({})).await.ok();
    }
    house.post("/_matrix/media/v1/create", &alice, json!({})).await.refused(429, "M_LIMIT_EXCEEDED");
}

#[tokio::test]
async fn another_servers_file_is_kept() {
    let pair = Pair::start().await;
    let (alice, bob) = (pair.one.register("alice").await, pair.two.register("bob").await);
    let bytes: Vec<u8> = (0..300_000u32).map(|n| (n % 253) as u8).collect();
    let id = upload(&pair.two, &bob, "video/mp4", &bytes).await;
    let path = format!("/_matrix/client/v1/media/download/{id}");
    let got = pair.one.get(&path, &alice).await;
    assert_eq!((got.status, got.bytes == bytes), (200, true));
    assert_eq!(got.headers["content-type"], "video/mp4");
    let gone = pair.one.get(&format!("/_matrix/client/v1/media/download/{}x", id), &alice).await;
    gone.refused(404, "M_NOT_FOUND");

    // Its server is gone, and this one was started again: it is on the disk.
    eventually("the file is kept", async || {
        (pair.one.server().media.usage().await.unwrap().remote_bytes == 300_000).then_some(())
    })
    .await;
    pair.two.stop().await;
    let house = pair.one.restart().await;
    let bearer = format!("Bearer {}", alice.token);
    let part = [("authorization", bearer.as_str()), ("range", "bytes=1000-1999")];
    let part = house.send("GET", &path, &part, Vec::new()).await;
    assert_eq!((part.status, &part.bytes[..]), (206, &bytes[1000..2000]));
    assert_eq!(part.headers["etag"], got.headers["etag"]);
    let usage = house.server().media.usage().await.unwrap();
    assert_eq!((usage.local_bytes, usage.remote_bytes, usage.disk_bytes), (0, 300_000, 300_000));
    // Of two days, since the last one may just have begun.
    assert_eq!(house.server().media.remove_remote(2).await.unwrap(), (0, 0));
    assert_eq!(house.server().media.remove_remote(0).await.unwrap(), (1, 300_000));
    assert_eq!(house.server().media.usage().await.unwrap().disk_bytes, 0);
    assert_ne!(house.get(&path, &alice).await.status, 200);
}

/// A server with another one that serves files at the pace it is told to.
struct Visit {
    resident: Resident,
    house: TestServer,
    _folder: Folder,
}

impl Visit {
    async fn start(dials: Dials, settings: impl FnOnce(&mut Config)) -> Visit {
        let folder = Folder::new();
        let certificates = Certificates::get(folder.path()).unwrap();
        let ca_file = certificates.ca_file.clone();
        let rendered = Rendered::get(folder.path(), &made::Dials::xs()).unwrap();
        let resident = Resident::start("127.0.0.1:0", certificates, vec![rendered], dials).unwrap();
        let address = resident.address;
        let change = |config: &mut Config| {
            config.server_name = "joiner.load.test".try_into().unwrap();
            config.federation.enabled = true;
            config.federation.extra_ca_file = Some(ca_file);
            config.federation.allow_private_addresses = true;
            config.federation.overrides = vec![(RESIDENT.to_owned(), address.to_string())];
            settings(config);
        };
        let house = TestServer::start_under_with("pi-zero-2w", change).await;
        resident.meet("joiner.load.test", &format!("http://{}", house.address())).unwrap();
        Visit { resident, house, _folder: folder }
    }

    fn dial(&self, change: impl FnOnce(&mut Dials)) {
        change(&mut self.resident.shared.dials.lock().unwrap());
    }

    fn asked(&self) -> u64 {
        self.resident.shared.calls("media")
    }

    /// The files that have not got their place.
    fn staged(&self) -> usize {
        std::fs::read_dir(self.house.data_dir().join("media/incoming")).map_or(0, Iterator::count)
    }
}

fn file(bytes: u64) -> String {
    format!("/_matrix/client/v1/media/download/{RESIDENT}/bytes{bytes}")
}

/// Where the settings give files out to anybody, those of other servers too: apps of before access tokens for files saw none.
#[tokio::test]
async fn where_no_token_is_asked_for_others_files_need_none_either() {
    let old = |bytes: u64, more: &str| format!("/_matrix/media/v3/download/{RESIDENT}/bytes{bytes}{more}");
    let visit = Visit::start(Dials::default(), |_| {}).await;
    let refused = visit.house.send("GET", &old(5_000, ""), &[], Vec::new()).await;
    assert_eq!((refused.status, visit.asked()), (404, 0));
    visit.house.stop().await;

    let visit = Visit::start(Dials::default(), |config| config.media.authenticated = false).await;
    let get = async |path: String| visit.house.send("GET", &path, &[], Vec::new()).await;
    assert_eq!(get(old(5_000, "?allow_remote=false")).await.status, 404);
    assert_eq!(visit.asked(), 0);
    for path in [old(5_000, ""), old(5_000, "/name.bin"), old(5_000, "?allow_remote=false")] {
        let got = get(path.clone()).await;
        assert_eq!((got.status, got.bytes), (200, media_bytes(0, 5_000)), "{path}");
        eventually("the file is kept", async || (visit.staged() == 0).then_some(())).await;
    }
    assert_eq!(visit.asked(), 1);
    visit.house.stop().await;
}

#[tokio::test]
async fn many_who_ask_for_one_file_cost_one_transfer() {
    const BYTES: u64 = 3_000_000;
    let visit = Visit::start(Dials { hang_at_percent: Some(50), ..Dials::default() }, |_| {}).await;
    let alice = visit.house.register("alice").await;
    let (path, whole) = (file(BYTES), media_bytes(0, BYTES));
    let ask = async || visit.house.get(&path, &alice).await;
    let part = async |range: &'static str| {
        let bearer = format!("Bearer {}", alice.token);
        visit.house.send("GET", &path, &[("authorization", &bearer), ("range", range)], Vec::new()).await
    };
    // As many as all have memory at once: who waits for it might be the one whose answer is waited for.
    let (five, first, last) = tokio::join!(
        async { tokio::join!(ask(), ask(), ask(), ask(), ask()) },
        async {
            let first = part("bytes=10-19").await;
            // The rest comes once its beginning was answered.
            visit.dial(|dials| dials.hang_at_percent = None);
            first
        },
        part("bytes=-10"),
    );
    for one in [five.0, five.1, five.2, five.3, five.4] {
        assert_eq!((one.status, one.bytes.len(), one.bytes == whole), (200, whole.len(), true));
    }
    assert_eq!((first.status, &first.bytes[..]), (206, &whole[10..20]));
    assert_eq!(
        first.headers["content-range"], "bytes 10-19/*",
        "its length was not known when its beginning was there"
    );
    assert_eq!((last.status, &last.bytes[..]), (206, &whole[whole.len() - 10..]));
    assert_eq!(last.headers["content-range"], format!("bytes {}-{}/{BYTES}", BYTES - 10, BYTES - 1));
    assert_eq!(visit.asked(), 1);
    assert_eq!((ask().await.bytes == whole, visit.asked(), visit.staged()), (true, 1, 0));
    let media = visit.house.server().budget.account("media");
    eventually("all is paid back", async || (media.used() == 0).then_some(())).await;
    assert_eq!(visit.resident.shared.stats.forged.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_transfer_that_breaks_off_is_begun_again_and_at_last_given_up() {
    const BYTES: u64 = 1_000_000;
    let visit = Visit::start(Dials { cut_at_percent: Some(60), cuts: 2, ..Dials::default() }, |_| {}).await;
    let alice = visit.house.register("alice").await;
    let got = visit.house.get(&file(BYTES), &alice).await;
    assert_eq!((got.status, got.bytes == media_bytes(0, BYTES), visit.asked()), (200, true, 3));
    visit.dial(|dials| dials.cuts = 0);
    let path = file(BYTES + 1);
    let token = &alice.token;
    let asking =
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\nconnection: close\r\n\r\n");
    let broken = visit.house.raw(&asking).await;
    assert!(broken.starts_with("HTTP/1.1 200") && !broken.ends_with("0\r\n\r\n"), "half of it is no whole answer");
    assert_eq!((visit.staged(), visit.asked()), (0, 6));
    visit.dial(|dials| dials.cut_at_percent = None);
    assert_eq!(visit.house.get(&path, &alice).await.bytes, media_bytes(0, BYTES + 1));
}

/// Five uploads that came as slowly as is allowed had all the memory for files of the smallest board, and nobody saw a picture.
#[tokio::test]
async fn slow_uploads_keep_nobody_from_files() {
    let house = TestServer::start_under("router-32").await;
    let alice = house.register("alice").await;
    let id = upload(&house, &alice, "text/plain", b"shown").await;
    let (mut slow, incoming) = (Vec::new(), house.data_dir().join("media/incoming"));
    for _ in 0..8 {
        let mut stream = TcpStream::connect(house.address()).await.unwrap();
        let head = "POST /_matrix/media/v3/upload HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\nconnection: close";
        let begun = format!("{head}\r\nauthorization: Bearer {}\r\n\r\nabc", alice.token);
        stream.write_all(begun.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    let media = house.server().budget.account("media");
    eventually("all have begun, and hold nothing", async || {
        let files = std::fs::read_dir(&incoming).unwrap().flatten();
        let begun = files.filter(|file| file.metadata().is_ok_and(|file| file.len() == 3)).count();
        (begun == slow.len() && media.used() == 0).then_some(())
    })
    .await;
    let shown = house.get(&format!("/_matrix/client/v1/media/download/{id}"), &alice).await;
    assert_eq!((shown.status, &shown.bytes[..]), (200, &b"shown"[..]));
    let long = vec![7; 300_000];
    let other = upload(&house, &alice, "text/plain", &long).await;
    assert_eq!(house.get(&format!("/_matrix/client/v1/media/download/{other}"), &alice).await.bytes, long);
    for mut stream in slow {
        stream.write_all(b"def").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let id =
            answer.split("mxc://").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_else(|| panic!("{answer}"));
        assert_eq!(house.get(&format!("/_matrix/client/v1/media/download/{id}"), &alice).await.bytes, b"abcdef");
    }
    assert_eq!(media.used(), 0);
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_had_when_it_is_small() {
    let visit = Visit::start(Dials::default(), |config| config.media.remote_bytes_max = Some(100 << 20)).await;
    let alice = visit.house.register("alice").await;
    let media = visit.house.server().budget.account("media");
    for (bytes, kept) in [(400_000, 400_000), (20 << 20, 0)] {
        // Half of it comes, and goes away again who asked.
        visit.dial(|dials| dials.hang_at_percent = Some(50));
        let (path, token) = (file(bytes), &alice.token);
        let asking = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n\r\n");
        let mut stream = TcpStream::connect(visit.house.address()).await.unwrap();
        stream.write_all(asking.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        assert_eq!(visit.staged(), 1);
        let read = media.used();
        drop(stream);
        eventually("nobody reads it any more", async || (media.used() < read).then_some(())).await;
        visit.dial(|dials| dials.hang_at_percent = None);
        eventually(&format!("of {bytes} bytes {kept} are kept"), async || {
            let usage = visit.house.server().media.usage().await.unwrap().remote_bytes;
            (usage == kept && visit.staged() == 0).then_some(())
        })
        .await;
        visit.house.server().media.remove_remote(0).await.unwrap();
    }
}

/// Before it is scanned nobody gets anything of a file, so who asked for a large one had it only by asking on and on.
#[tokio::test]
async fn what_has_to_be_scanned_comes_also_when_nobody_waits_for_it() {
    const BYTES: u64 = 20 << 20;
    let lab = Lab::default();
    let (port, _task) = lab.open("127.0.0.1:0").await;
    let visit = Visit::start(Dials::default(), |config| {
        config.media.remote_bytes_max = Some(100 << 20);
        scanned_by(config, &format!("clamd://127.0.0.1:{port}"));
    })
    .await;
    let alice = visit.house.register("alice").await;
    visit.dial(|dials| dials.bytes_per_second = 8 << 20);
    let path = file(BYTES);
    let asking = tokio::time::timeout(Duration::from_millis(400), visit.house.get(&path, &alice));
    assert!(asking.await.is_err(), "it takes longer");
    eventually("it is scanned", async || (lab.count() > 0).then_some(())).await;
    assert_eq!(visit.house.get(&path, &alice).await.bytes, media_bytes(0, BYTES));
    assert_eq!((visit.asked(), lab.count()), (1, 1));
}

#[tokio::test]
async fn kept_files_have_a_bound_and_larger_ones_pass_through() {
    let visit = Visit::start(Dials::default(), |config| config.media.remote_bytes_max = Some(1_000_000)).await;
    let alice = visit.house.register("alice").await;
    let usage = async || visit.house.server().media.usage().await.unwrap();
    for bytes in [200_000, 200_001, 200_002, 200_003, 200_004, 200_005] {
        assert_eq!(visit.house.get(&file(bytes), &alice).await.bytes.len() as u64, bytes);
    }
    // The rows go first, and then the files.
    let now = eventually("what is too much is gone", async || {
        let now = usage().await;
        (now.remote_bytes <= 1_000_000 && now.disk_bytes == now.remote_bytes).then_some(now)
    })
    .await;
    assert!((800_000..=1_000_000).contains(&now.remote_bytes), "{now:?}");
    let asked = visit.asked();
    for _ in 0..2 {
        assert_eq!(visit.house.get(&file(300_000), &alice).await.bytes, media_bytes(0, 300_000));
    }
    assert_eq!((visit.asked() - asked, usage().await.remote_bytes), (2, now.remote_bytes));
}

/// The length is known from the beginning: a range to wherever the file ends begins to come at once.
#[tokio::test]
async fn a_server_that_knows_the_old_path_alone_is_asked_there() {
    const BYTES: u64 = 1_000_000;
    let visit = Visit::start(Dials { bytes_per_second: 2_000_000, ..Dials::default() }, |_| {}).await;
    let alice = visit.house.register("alice").await;
    let path = format!("/_matrix/client/v1/media/download/{RESIDENT}/old{BYTES}");
    let part = async |range: &'static str| {
        let bearer = format!("Bearer {}", alice.token);
        visit.house.send("GET", &path, &[("authorization", &bearer), ("range", range)], Vec::new()).await
    };
    let (whole, rest, beyond) =
        tokio::join!(visit.house.get(&path, &alice), part("bytes=999000-"), part("bytes=1000000-"));
    assert_eq!((whole.status, whole.bytes == media_bytes(0, BYTES)), (200, true));
    assert_eq!(whole.headers["content-length"], "1000000");
    assert_eq!((rest.status, rest.bytes == media_bytes(999_000, 1000)), (206, true));
    assert_eq!(rest.headers["content-range"], "bytes 999000-999999/1000000");
    assert_eq!((beyond.status, beyond.headers["content-range"].to_str().unwrap()), (416, "bytes */1000000"));
}

#[tokio::test]
async fn a_file_that_is_said_to_be_at_home_is_not_fetched() {
    let visit = Visit::start(Dials::default(), |_| {}).await;
    let alice = visit.house.register("alice").await;
    for to in ["127.0.0.1:1", "[::1]:1", "192.168.0.1"] {
        let path = format!("/_matrix/client/v1/media/download/{RESIDENT}/moved{to}");
        let refused = visit.house.get(&path, &alice).await.refused(502, "M_UNKNOWN");
        assert!(refused["error"].as_str().unwrap().contains("private address"), "{refused}");
    }
}

/// With the program itself, against a server that runs.
#[tokio::test]
async fn the_operator_sees_what_files_take_and_removes_them() {
    let visit = Visit::start(Dials::default(), |_| {}).await;
    let alice = visit.house.register("alice").await;
    let id = upload(&visit.house, &alice, "image/png", &[7; 5000]).await;
    visit.house.get(&file(30_000), &alice).await;
    let data_dir = visit.house.data_dir().to_owned();
    let snug = async |words: &[&str]| {
        let folder = data_dir.clone();
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let run = move || {
            let folder = folder.as_path();
            let mut all: Vec<&str> = words.iter().map(String::as_str).collect();
            all.extend(["--data-dir", folder.to_str().unwrap()]);
            good(folder, &all, "")
        };
        tokio::task::spawn_blocking(run).await.unwrap()
    };
    let said = snug(&["media"]).await;
    assert!(said.contains("files of accounts here      4.9 KiB\n") && said.contains(&alice.id), "{said}");
    assert!(said.contains("kept of other servers       29.3 KiB of "), "{said}");
    assert_eq!(snug(&["media", "remove-remote", "--unused-days", "2"]).await, "There is no such file.\n");
    assert_eq!(snug(&["media", "remove-remote"]).await, "1 file was removed; it took 29.3 KiB.\n");
    let uri = format!("mxc://{id}");
    assert_eq!(snug(&["media", "remove", &uri]).await, format!("{uri} is removed.\n"));
    let gone = visit.house.get(&format!("/_matrix/client/v1/media/download/{id}"), &alice).await;
    gone.refused(404, "M_NOT_FOUND");
    assert!(snug(&["media"]).await.contains("on the disk                 0"), "nothing is left");
}

/// A picture of another server that nobody had seen whole was asked for anew each time its thumbnail was.
#[tokio::test]
async fn another_servers_thumbnail_is_kept() {
    let pair = Pair::start().await;
    let (alice, bob) = (pair.one.register("alice").await, pair.two.register("bob").await);
    let id = upload(&pair.two, &bob, "image/jpeg", &picture::jpeg(1000, 500, 1)).await;
    let small = |query: &str| format!("/_matrix/client/v1/media/thumbnail/{id}?{query}");
    let first = pair.one.get(&small("width=300&height=200"), &alice).await;
    assert_eq!((first.status, picture::size(&first.bytes)), (200, (320, 160)));
    eventually("it is kept", async || (pair.one.server().media.usage().await.unwrap().remote_bytes > 0).then_some(()))
        .await;
    // Its server is gone: in this shape it is here, in no other.
    pair.two.stop().await;
    for query in ["width=300&height=200&method=scale", "width=320&height=240"] {
        let again = pair.one.get(&small(query), &alice).await;
        assert_eq!((again.status, again.bytes == first.bytes), (200, true), "{query}");
        assert_eq!(again.headers["content-type"], "image/jpeg");
    }
    assert_ne!(pair.one.get(&small("width=640&height=480"), &alice).await.status, 200);
    let (server, media_id) = id.split_once('/').unwrap();
    // It goes with the file, also where that was never here.
    let media = &pair.one.server().media;
    assert!(media.remove(server.try_into().unwrap(), media_id).await.unwrap());
    assert_ne!(pair.one.get(&small("width=300&height=200"), &alice).await.status, 200);
}

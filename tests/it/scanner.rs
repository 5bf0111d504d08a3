//! Files that wait until a scanner has called them clean.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use snug::admin::Reload;
use snug::base::{Clock, Random};
use snug::config::Config;
use snug::remote::scanner::Scanner;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::lab::picture;
use crate::rooms::eventually;
use crate::server::{Pair, Reply, TestServer, TestUser};

/// A scanner that speaks as clamd does, and ICAP. Harmful is what has that word in it.
#[derive(Clone, Default)]
pub struct Lab {
    /// What it was sent, file by file.
    files: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Lab {
    pub async fn open(&self, address: &str) -> (u16, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind(address).await.unwrap();
        let (port, this) = (listener.local_addr().unwrap().port(), self.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let this = this.clone();
                tokio::spawn(async move { this.serve(stream).await });
            }
        });
        (port, task)
    }

    async fn serve(&self, mut stream: TcpStream) {
        let mut first = [0; 10];
        stream.read_exact(&mut first[..9]).await.unwrap();
        // It says nothing of its database.
        if &first[..9] == b"zVERSION\0" || first.starts_with(b"OPTIONS") {
            return;
        }
        stream.read_exact(&mut first[9..]).await.unwrap();
        let mut file = Vec::new();
        let is_icap = first.starts_with(b"RESPMOD");
        if is_icap {
            let mut head = first.to_vec();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            assert!(head.contains("Allow: 204\r\n"), "{head}");
            let body: usize = head.split("res-body=").nth(1).unwrap().lines().next().unwrap().parse().unwrap();
            let mut inside = vec![0; body];
            stream.read_exact(&mut inside).await.unwrap();
            assert!(inside.ends_with(b"\r\n\r\n") && inside.starts_with(b"GET "));
            loop {
                let mut line = Vec::new();
                while !line.ends_with(b"\r\n") {
                    line.push(stream.read_u8().await.unwrap());
                }
                let length = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
                let mut piece = vec![0; length + 2];
                stream.read_exact(&mut piece).await.unwrap();
                if length == 0 {
                    break;
                }
                file.extend_from_slice(&piece[..length]);
            }
        } else {
            assert_eq!(&first, b"zINSTREAM\0");
            loop {
                let length = stream.read_u32().await.unwrap() as usize;
                let mut piece = vec![0; length];
                stream.read_exact(&mut piece).await.unwrap();
                if length == 0 {
                    break;
                }
                file.extend_from_slice(&piece);
            }
        }
        let is_harmful = file.windows(7).any(|word| word == b"HARMFUL");
        let answer: &[u8] = match (is_icap, is_harmful) {
            (false, false) => b"stream: OK\0",
            (false, true) => b"stream: Test-Thing FOUND\0",
            (true, false) => b"ICAP/1.0 204 Unmodified\r\nConnection: close\r\n\r\n",
            (true, true) => {
                b"ICAP/1.0 200 OK\r\nX-Infection-Found: Type=0; Resolution=2; Threat=Test-Thing;\r\n\
                  Encapsulated: res-hdr=0, res-body=26\r\n\r\nHTTP/1.1 403 Forbidden\r\n\r\n0\r\n\r\n"
            }
        };
        // Of a few words it sees whether it is there.
        if !file.starts_with(b"Snug asks") {
            self.files.lock().unwrap().push(file);
        }
        stream.write_all(answer).await.unwrap();
        let _ = stream.shutdown().await;
    }

    pub fn count(&self) -> usize {
        self.files.lock().unwrap().len()
    }
}

async fn upload(house: &TestServer, who: &TestUser, kind: &str, bytes: &[u8]) -> String {
    let bearer = format!("Bearer {}", who.token);
    let headers = [("authorization", bearer.as_str()), ("content-type", kind)];
    let made = house.send("POST", "/_matrix/media/v3/upload", &headers, bytes.to_vec()).await.ok();
    made["content_uri"].as_str().unwrap().strip_prefix("mxc://").unwrap().to_owned()
}

async fn download(house: &TestServer, who: &TestUser, id: &str) -> Reply {
    house.get(&format!("/_matrix/client/v1/media/download/{id}?timeout_ms=60000"), who).await
}

pub fn scanned_by(config: &mut Config, scanner: &str) {
    config.media.scan.scanner = Some(Scanner::parse(scanner).unwrap());
}

async fn administrator(house: &TestServer) -> TestUser {
    let alice = house.register("alice").await;
    let id: ruma::OwnedUserId = alice.id.as_str().try_into().unwrap();
    house.server().users.set_admin(&id, true).await.unwrap();
    alice
}

/// What the server told an administrator in the room of notices.
async fn notices(house: &TestServer, who: &TestUser) -> Vec<String> {
    let room = eventually("an invite to the notices", async || {
        let synced = house.get("/sync", who).await.ok();
        synced["rooms"]["invite"].as_object().and_then(|rooms| rooms.keys().next().cloned())
    })
    .await;
    house.post(&format!("/join/{room}"), who, json!({})).await.ok();
    // What is told is said after the invite.
    eventually("something is told", async || {
        let page = house.get(&format!("/rooms/{room}/messages?dir=b&limit=50"), who).await.ok();
        let bodies = page["chunk"].as_array().unwrap().iter().filter_map(|event| event["content"]["body"].as_str());
        let bodies: Vec<_> = bodies.map(ToOwned::to_owned).collect();
        (!bodies.is_empty()).then_some(bodies)
    })
    .await
}

#[tokio::test]
async fn a_file_is_given_out_once_it_was_called_clean() {
    for speaks in ["clamd://127.0.0.1:PORT", "icap://127.0.0.1:PORT/avscan"] {
        let lab = Lab::default();
        let (port, task) = lab.open("127.0.0.1:0").await;
        let scanner = speaks.replace("PORT", &port.to_string());
        let house = TestServer::start_with(|config| {
            scanned_by(config, &scanner);
            config.apps.synapse_admin_api = true;
        })
        .await;
        let alice = administrator(&house).await;
        let bytes: Vec<u8> = (0..100_001u32).map(|n| (n % 251) as u8).collect();
        let clean = upload(&house, &alice, "image/png", &bytes).await;
        let got = download(&house, &alice, &clean).await;
        assert_eq!((got.status, got.bytes == bytes), (200, true), "{speaks}");
        assert!(lab.files.lock().unwrap()[0] == bytes, "{speaks}: whole, and in order");
        // Once, whoever asks.
        for _ in 0..3 {
            assert_eq!(download(&house, &alice, &clean).await.status, 200);
        }
        assert_eq!(lab.count(), 1);

        let mut bad = picture::jpeg(1000, 500, 1);
        bad.extend_from_slice(b"HARMFUL");
        let harmful = upload(&house, &alice, "image/jpeg", &bad).await;
        download(&house, &alice, &harmful).await.refused(404, "M_NOT_FOUND");
        let small = format!("/_matrix/client/v1/media/thumbnail/{harmful}?width=32&height=32&method=crop");
        house.get(&small, &alice).await.refused(404, "M_NOT_FOUND");
        let told = notices(&house, &alice).await;
        assert!(told[0].contains("Test-Thing") && told[0].contains(&harmful), "{told:?}");
        assert_eq!(lab.count(), 2);
        // Its bytes are withheld under every name, and nobody has to be asked again.
        let again = upload(&house, &alice, "image/jpeg", &bad).await;
        download(&house, &alice, &again).await.refused(404, "M_NOT_FOUND");

        // What was said is kept: nobody is there to ask.
        task.abort();
        let house = house.restart().await;
        assert_eq!(download(&house, &alice, &clean).await.status, 200);
        download(&house, &alice, &harmful).await.refused(404, "M_NOT_FOUND");
        // An administrator may know better.
        let path = format!("/_synapse/admin/v1/media/unquarantine/{harmful}");
        house.post(&path, &alice, json!({})).await.ok();
        assert_eq!(download(&house, &alice, &harmful).await.bytes, bad);
        assert!(house.get(&small, &alice).await.status == 200);
        assert_eq!(lab.count(), 2);
    }
}

/// Without a scanner nobody gets a file that was not judged, unless the owner says so.
#[tokio::test]
async fn files_wait_for_a_scanner_that_is_away() {
    let lab = Lab::default();
    let port = crate::server::free_port();
    let clock = Clock::simulated(1_700_000_000_000);
    let scanner = format!("clamd://127.0.0.1:{port}");
    let house = TestServer::start_at(clock.clone(), Random::seeded(3), |config| scanned_by(config, &scanner)).await;
    let alice = house.register("alice").await;
    let id = upload(&house, &alice, "text/plain", b"waits").await;
    let refused: Value = download(&house, &alice, &id).await.refused(504, "M_NOT_YET_UPLOADED");
    assert!(refused["error"].as_str().unwrap().contains("virus scanner") && refused["retry_after_ms"].is_u64());
    assert!(house.server().media.scanner_away().is_some());
    let (_, _task) = lab.open(&format!("127.0.0.1:{port}")).await;
    clock.advance(Duration::from_secs(11));
    assert_eq!(download(&house, &alice, &id).await.bytes, b"waits");
    assert!(house.server().media.scanner_away().is_none());

    let nobody = format!("clamd://127.0.0.1:{}", crate::server::free_port());
    let house = TestServer::start_with(|config| {
        scanned_by(config, &nobody);
        config.media.scan.gives_out_unscanned = true;
    })
    .await;
    let alice = house.register("alice").await;
    let id = upload(&house, &alice, "text/plain", b"given").await;
    assert_eq!(download(&house, &alice, &id).await.bytes, b"given");
}

/// Setting a scanner took a restart, and files were given out meanwhile.
#[tokio::test]
async fn a_scanner_counts_once_the_settings_were_read_again() {
    let house = TestServer::start().await;
    let alice = house.register("alice").await;
    let id = upload(&house, &alice, "text/plain", b"waits").await;
    assert_eq!(download(&house, &alice, &id).await.status, 200);
    let metrics = async || house.raw("GET /_snug/metrics HTTP/1.0\r\n\r\n").await;
    assert!(!metrics().await.contains("snug_scanner_there"));

    let reloader = house.server().reloader();
    let file = house.data_dir().join("snug.toml");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    reloader.config.lock().overrides.config = Some(file.clone());
    let nobody = format!("clamd://127.0.0.1:{}", crate::server::free_port());
    write(&format!("[media]\nscanner = {nobody:?}\n"));
    let reloaded = reloader.reload().await.unwrap();
    assert!(reloaded.changed.contains(&"media.scanner"), "{:?}", reloaded.changed);
    download(&house, &alice, &id).await.refused(504, "M_NOT_YET_UPLOADED");
    assert!(metrics().await.contains("snug_scanner_there 0"));
    let health = house.raw("GET /_snug/health HTTP/1.0\r\n\r\n").await;
    assert!(health.contains("scanner"), "{health}");

    let lab = Lab::default();
    let (port, _task) = lab.open("127.0.0.1:0").await;
    write(&format!("[media]\nscanner = \"clamd://127.0.0.1:{port}\"\n"));
    let _ = reloader.reload().await.unwrap();
    assert_eq!(download(&house, &alice, &id).await.bytes, b"waits");
    assert!(metrics().await.contains("snug_files_scanned_total{verdict=\"clean\"} 1"));
    write("");
    let _ = reloader.reload().await.unwrap();
    assert!(!house.server().media.is_scanned());
    drop(reloader);
    house.stop().await;
}

/// Files of other servers are not passed on as they come.
#[tokio::test]
async fn files_of_other_servers_are_scanned_too() {
    let lab = Lab::default();
    let (port, _task) = lab.open("127.0.0.1:0").await;
    let scanner = format!("clamd://127.0.0.1:{port}");
    let pair = Pair::start_with(|config| {
        if config.server_name.as_str() == "one.load.test" {
            scanned_by(config, &scanner);
            config.media.remote_bytes_max = Some(1 << 20);
        }
    })
    .await;
    let (anna, bert) = (pair.one.register("anna").await, pair.two.register("bert").await);
    let clean = upload(&pair.two, &bert, "text/plain", &[b'a'; 50_000]).await;
    assert_eq!(download(&pair.one, &anna, &clean).await.bytes, [b'a'; 50_000]);
    assert_eq!(lab.count(), 1);
    let harmful = upload(&pair.two, &bert, "text/plain", b"it is HARMFUL").await;
    for _ in 0..2 {
        download(&pair.one, &anna, &harmful).await.refused(404, "M_NOT_FOUND");
    }
    assert_eq!(lab.count(), 2);
    // A smaller picture of theirs is a file of its own.
    let picture = upload(&pair.two, &bert, "image/jpeg", &picture::jpeg(1000, 500, 1)).await;
    let small = format!("/_matrix/client/v1/media/thumbnail/{picture}?width=32&height=32&method=crop");
    let got: Reply = pair.one.get(&small, &anna).await;
    assert_eq!((got.status, picture::size(&got.bytes), lab.count()), (200, (32, 32), 3));
    // What is too large to be kept cannot be scanned.
    let large = upload(&pair.two, &bert, "text/plain", &vec![b'b'; 300 << 10]).await;
    let refused: Value = download(&pair.one, &anna, &large).await.refused(413, "M_TOO_LARGE");
    assert!(refused["error"].is_string());
    // Another server gets no file of ours that was not called clean.
    let ours = upload(&pair.one, &anna, "text/plain", b"ours is HARMFUL").await;
    download(&pair.two, &bert, &ours).await.refused(404, "M_NOT_FOUND");
}

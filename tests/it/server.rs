//! A whole server in the test's own process, on a loopback port; and two of them that know each other.
//!
//! `TestServer::start().await`, then `house.register("alice").await`, then `house.get(path, &alice)` and its neighbours. What an
//! answer must be is said by the caller: [`Reply::ok`] insists on 200, [`Reply::refused`] on a status and an errcode.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use snug::base::{Clock, Random};
use snug::budget::{Budget, Profile};
use snug::client::{Options, Registration};
use snug::config::Config;
use snug::serve::Server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::lab::certificates::Certificates;
use crate::rooms::eventually;
use crate::wire::Wire;

/// A running server with a folder of its own.
pub struct TestServer {
    server: Server,
    config: Config,
    profile: Profile,
    source: Source,
    _folder: Option<Folder>,
}

/// Where its time and its randomness come from.
#[derive(Clone)]
struct Source {
    clock: Clock,
    random: Random,
}

impl Source {
    fn real() -> Source {
        Source { clock: Clock::real(), random: Random::os() }
    }
}

/// Somebody with an account and a session.
#[derive(Debug, Clone)]
pub struct TestUser {
    pub id: String,
    pub token: String,
    pub device: String,
}

/// What was answered.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    pub bytes: Vec<u8>,
    asked: String,
}

/// A server that is not running, with all that is on its disk.
pub struct Down {
    config: Config,
    profile: Profile,
    source: Source,
    folder: Option<Folder>,
}

impl Down {
    /// Changes its settings.
    pub fn change(&mut self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config);
    }

    /// Starts it at the addresses it had.
    pub async fn up(self) -> TestServer {
        TestServer::run(self.config, self.profile, self.source, self.folder).await
    }
}

/// Gone on drop.
pub struct Folder(PathBuf);

impl Folder {
    /// A new one: what a run that was killed left under the name of this process is not taken.
    pub fn new() -> Folder {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        loop {
            let name = format!("snug-house-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            match std::fs::create_dir(&path) {
                Ok(()) => return Folder(path),
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists, "{}: {error}", path.display())
                }
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl TestServer {
    /// An ordinary server called `localhost` with open registration and no rate limits.
    pub async fn start() -> TestServer {
        TestServer::start_with(|_| {}).await
    }

    /// The same with other settings.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> TestServer {
        let folder = Folder::new();
        let mut config = settings(folder.path());
        change(&mut config);
        TestServer::run(config, Profile::get("pi-5").unwrap(), Source::real(), Some(folder)).await
    }

    /// The same with a clock and randomness of the test's.
    pub async fn start_at(clock: Clock, random: Random, change: impl FnOnce(&mut Config)) -> TestServer {
        let folder = Folder::new();
        let mut config = settings(folder.path());
        change(&mut config);
        let source = Source { clock, random };
        TestServer::run(config, Profile::get("pi-5").unwrap(), source, Some(folder)).await
    }

    /// The same under a profile, for tests of what is refused.
    pub async fn start_under(profile: &str) -> TestServer {
        let folder = Folder::new();
        TestServer::run(settings(folder.path()), Profile::get(profile).unwrap(), Source::real(), Some(folder)).await
    }

    /// Under a profile and with other settings.
    pub async fn start_under_with(profile: &str, change: impl FnOnce(&mut Config)) -> TestServer {
        let folder = Folder::new();
        let mut config = settings(folder.path());
        change(&mut config);
        TestServer::run(config, Profile::get(profile).unwrap(), Source::real(), Some(folder)).await
    }

    /// Under a profile, with other settings, and with a clock of the test's: one that stands still gives no allowance back, however
    /// long the requests take.
    pub async fn start_under_at(profile: &str, clock: Clock, change: impl FnOnce(&mut Config)) -> TestServer {
        let folder = Folder::new();
        let mut config = settings(folder.path());
        change(&mut config);
        let source = Source { clock, random: Random::os() };
        TestServer::run(config, Profile::get(profile).unwrap(), source, Some(folder)).await
    }

    async fn run(config: Config, profile: Profile, source: Source, folder: Option<Folder>) -> TestServer {
        let Source { clock, random } = source.clone();
        // A thread of an earlier run may be reading the database to the end of what nobody waits for any more.
        let mut server = eventually("no other run has the database", async || {
            let budget = Budget::from_profile(profile.clone());
            match Server::build(&config, clock.clone(), random.clone(), budget).await {
                Ok(server) => Some(server),
                Err(error) if error.to_string().contains("in use") => None,
                Err(error) => panic!("{error}"),
            }
        })
        .await;
        server.open().await.unwrap();
        TestServer { server, config, profile, source, _folder: folder }
    }

    /// Stops it in order and starts it again on what is on disk, at the same addresses.
    pub async fn restart(self) -> TestServer {
        self.restart_after(|_| {}).await
    }

    /// The same; while it is stopped, `meanwhile` is given its data folder.
    pub async fn restart_after(mut self, meanwhile: impl FnOnce(&Path)) -> TestServer {
        self.config.listen = vec![self.address()];
        let TestServer { server, config, profile, source, _folder } = self;
        server.stop().await;
        meanwhile(&config.data_dir);
        TestServer::run(config, profile, source, _folder).await
    }

    pub fn data_dir(&self) -> &Path {
        &self.config.data_dir
    }

    pub async fn stop(self) {
        self.server.stop().await;
    }

    /// Stops it in order, for as long as the test wants.
    pub async fn down(mut self) -> Down {
        self.config.listen = vec![self.address()];
        let TestServer { server, config, profile, source, _folder } = self;
        server.stop().await;
        Down { config, profile, source, folder: _folder }
    }

    /// The parts, for what no request shows.
    pub fn server(&self) -> &Server {
        &self.server
    }

    pub fn name(&self) -> &str {
        self.config.server_name.as_str()
    }

    /// Where apps connect.
    pub fn address(&self) -> SocketAddr {
        self.server.addresses().iter().find(|open| !open.federation).unwrap().address
    }

    /// A new account with a session; the password is `secret NAME`.
    pub async fn register(&self, name: &str) -> TestUser {
        let body = json!({
            "username": name, "password": format!("secret {name}"), "auth": { "type": "m.login.dummy" },
        });
        let made = self.request("POST", "/_matrix/client/v3/register", None, body).await.ok();
        let text = |field: &str| made[field].as_str().unwrap_or_else(|| panic!("{field} in {made}")).to_owned();
        TestUser { id: text("user_id"), token: text("access_token"), device: text("device_id") }
    }

    pub async fn get(&self, path: &str, who: &TestUser) -> Reply {
        self.request("GET", path, Some(&who.token), Value::Null).await
    }

    pub async fn post(&self, path: &str, who: &TestUser, body: Value) -> Reply {
        self.request("POST", path, Some(&who.token), body).await
    }

    pub async fn put(&self, path: &str, who: &TestUser, body: Value) -> Reply {
        self.request("PUT", path, Some(&who.token), body).await
    }

    pub async fn delete(&self, path: &str, who: &TestUser) -> Reply {
        self.request("DELETE", path, Some(&who.token), Value::Null).await
    }

    /// One request over a connection of its own. `Value::Null` is no body; a path without `/_` is below
    /// `/_matrix/client/v3`.
    pub async fn request(&self, method: &str, path: &str, token: Option<&str>, body: Value) -> Reply {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let authorization = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = authorization.iter().map(|value| ("authorization", value.as_str())).collect();
        self.send(method, path, &headers, body).await
    }

    /// One request with headers and body as given.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Reply {
        let path = if path.starts_with("/_") || path.starts_with("/.") {
            path.to_owned()
        } else {
            format!("/_matrix/client/v3{path}")
        };
        let stream = TcpStream::connect(self.address()).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = hyper::Request::builder().method(method).uri(&path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = sender.send_request(request.body(Full::<bytes::Bytes>::from(body)).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap_or_else(|error| panic!("{method} {path}: {error}")).to_bytes().to_vec();
        Reply { status: head.status.as_u16(), headers: head.headers, bytes, asked: format!("{method} {path}") }
    }

    /// Bytes as they are on a socket; answers everything until the server hangs up.
    pub async fn raw(&self, bytes: &str) -> String {
        let mut stream = TcpStream::connect(self.address()).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        // A server that has answered may have hung up already.
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Reply {
    pub fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.bytes);
        serde_json::from_slice(&self.bytes).unwrap_or_else(|error| panic!("{}: {error}: {text}", self.asked))
    }

    /// The answer of a request that must have worked.
    #[track_caller]
    pub fn ok(self) -> Value {
        let text = String::from_utf8_lossy(&self.bytes);
        assert_eq!(self.status, 200, "{}: {text}", self.asked);
        self.json()
    }

    /// The answer of a request that must have been refused so.
    #[track_caller]
    pub fn refused(self, status: u16, errcode: &str) -> Value {
        let answer = self.json();
        assert_eq!((self.status, answer["errcode"].as_str()), (status, Some(errcode)), "{}: {answer}", self.asked);
        answer
    }
}

/// Two servers, `one.load.test` and `two.load.test`, that reach each other over TLS.
pub struct Pair {
    pub one: TestServer,
    pub two: TestServer,
    /// What they reach each other over.
    pub wire: Wire,
    /// The certificates; keep it as long as the servers.
    pub certificates: Folder,
}

impl Pair {
    pub async fn start() -> Pair {
        Pair::start_with(|_| {}).await
    }

    /// Both with other settings.
    pub async fn start_with(change: impl Fn(&mut Config)) -> Pair {
        let folder = Folder::new();
        let certificates = Certificates::get(folder.path()).unwrap();
        let ports = [free_port(), free_port()];
        let wire = Wire::new(Clock::real(), Random::os());
        let ends = [wire.lead_to(ports[0]).await, wire.lead_to(ports[1]).await];
        let names = ["one.load.test", "two.load.test"];
        let change = &change;
        let house = async |nth: usize| {
            TestServer::start_with(|config| {
                let other = 1 - nth;
                federates(config, names[nth], ports[nth], &[(names[other], ends[other])], &certificates);
                change(config);
            })
            .await
        };
        let (one, two) = (house(0).await, house(1).await);
        Pair { one, two, wire, certificates: folder }
    }
}

/// Settings of a server that others reach at `port`, and that finds others where `reach` says.
pub fn federates(config: &mut Config, name: &str, port: u16, reach: &[(&str, u16)], certificates: &Certificates) {
    config.server_name = name.try_into().unwrap();
    let federation = &mut config.federation;
    federation.enabled = true;
    federation.listen = vec![SocketAddr::from(([127, 0, 0, 1], port))];
    federation.tls_certificate = Some(certificates.certificate_file.clone());
    federation.tls_private_key = Some(certificates.key_file.clone());
    federation.extra_ca_file = Some(certificates.ca_file.clone());
    federation.allow_private_addresses = true;
    federation.overrides = reach.iter().map(|(name, port)| ((*name).to_owned(), format!("127.0.0.1:{port}"))).collect();
}

fn settings(folder: &Path) -> Config {
    let mut config = Config {
        data_dir: folder.join("data"),
        // A port of its own also while it is stopped: one that the system chooses would be another test's by then.
        listen: vec![SocketAddr::from(([127, 0, 0, 1], free_port()))],
        apps: Options {
            registration: Registration::Open,
            synapse_admin_api: true,
            registration_shared_secret: Some("shared".to_owned()),
            ..Options::default()
        },
        rate_limits: false,
        log: "warn".to_owned(),
        ..Config::default()
    };
    config.federation.listen = Vec::new();
    config
}

/// A port nobody listens on now, below those that connections of others come from. Whoever listens on it in between makes the
/// test fail, not pass.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let mut ports = std::iter::repeat_with(|| {
        let next = NEXT.fetch_add(1, Ordering::Relaxed) + std::process::id().wrapping_mul(97);
        10_000 + (next % 20_000) as u16
    });
    ports.find(|port| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// A service or bot of the test's own: every request that comes is answered by `answer`, as long as the test runs.
pub fn answer_each<F, A>(listener: tokio::net::TcpListener, answer: F)
where
    F: Fn(hyper::Request<hyper::body::Incoming>) -> A + Clone + Send + 'static,
    A: Future<Output = hyper::Response<http_body_util::Full<bytes::Bytes>>> + Send + 'static,
{
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = hyper::service::service_fn(move |request| {
                let answered = answer(request);
                async move { Ok::<_, std::convert::Infallible>(answered.await) }
            });
            let stream = hyper_util::rt::TokioIo::new(stream);
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(stream, service));
        }
    });
}

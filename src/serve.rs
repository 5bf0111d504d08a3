//! The boot sequence, and the shutdown sequence in reverse.
//!
//! [`Server::build`] makes every part once, bottom to top; [`Server::open`] lets requests in and starts what works by itself;
//! [`Server::stop`] takes it all down, top to bottom. [`run`] is that for a process of its own.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use crate::admin::{self, Admin};
use crate::base::{Clock, Random};
use crate::budget::{self, Budget, Grant, Profile};
use crate::client::{self, Client};
use crate::config::{self, Config, FILE_NAME};
use crate::deliver::{Sender, SenderOptions};
use crate::federation::{self, Federation, OldKey};
use crate::feed::Feed;
use crate::http::{Door, Limits, Listener, Router, tls::Certificate};
use crate::matrix::sign;
use crate::media::{self, Media};
use crate::remote::{self, Remote, RemoteOptions};
use crate::room::{self, Rooms, admission::Policy};
use crate::store::{Store, StoreOptions};
use crate::user::{self, Users};

/// How long answers under way may take once the server is told to stop. A sync that waits is cut off; the app asks again.
const GRACE: Duration = Duration::from_secs(3);
/// Connections to one other server at once.
const PER_HOST_MAX: usize = 2;

/// File systems round times.
const CLOCK_SLACK_MS: u64 = 5_000;

/// Files and folders in the data folder.
const DATABASE: &str = "database";
const SCRATCH: &str = "scratch";
const MEDIA: &str = "media";
const SIGNING_KEY: &str = "signing.key";
const OLD_SIGNING_KEYS: &str = "old-signing-keys";
/// Where the commands find the running server.
pub const SOCKET: &str = "admin.sock";

/// Why the server cannot start: a sentence for the operator.
#[derive(Debug)]
pub struct Failed(String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

fn failed(what: impl fmt::Display, why: impl fmt::Display) -> Failed {
    Failed(format!("{what}: {why}"))
}

/// Runs the server until it is told to stop by SIGINT or SIGTERM. `command` is how this program was called, for advice.
pub fn run(config: Config, command: &str) -> Result<(), Failed> {
    budget::meter::keep_nothing_back();
    log_to_stderr(&config);
    let budget = Budget::from_profile(profile(&config)?);
    let runtime = runtime(&budget)?;
    let done = runtime.block_on(async {
        let first = first_file(&config)?;
        let mut server = Server::build(&config, Clock::real(), Random::os(), budget).await?;
        // Before the ports are open, so that nobody who saw them open can miss with a signal.
        let (mut interrupt, mut terminate) = (on(SignalKind::interrupt())?, on(SignalKind::terminate())?);
        server.open().await?;
        greet(&server, first.as_deref(), command).await;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping");
        server.stop().await;
        tracing::info!("stopped");
        Ok(())
    });
    // Everything is on disk; a thread that still computes something for nobody is not waited for.
    runtime.shutdown_timeout(GRACE);
    done
}

fn on(kind: SignalKind) -> Result<tokio::signal::unix::Signal, Failed> {
    signal(kind).map_err(|error| failed("signals", error))
}

/// Threads and stacks as the profile has them.
pub fn runtime(budget: &Budget) -> Result<tokio::runtime::Runtime, Failed> {
    // One size for both kinds of threads; of a stack only what is touched counts.
    let stack = budget.size("worker_stack").max(budget.size("blocking_stack")) as usize;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(budget.size("worker_threads").max(1) as usize)
        .max_blocking_threads(budget.size("blocking_threads").max(1) as usize)
        .thread_stack_size(stack)
        .thread_name("snug")
        .enable_all()
        .build()
        .map_err(|error| failed("threads", error))
}

/// The profile that was named, or the one that fits the machine.
pub fn profile(config: &Config) -> Result<Profile, Failed> {
    match &config.budget {
        Some(name) => {
            let profile = Profile::named(name).map_err(|error| Failed(error.to_string()))?;
            tracing::info!("memory budget {} ({})", profile.name, budget::human(profile.total));
            Ok(profile)
        }
        None => {
            let choice = budget::choose();
            tracing::info!("{}", choice.why);
            Ok(choice.profile)
        }
    }
}

fn log_to_stderr(config: &Config) {
    use std::io::IsTerminal;
    use tracing_subscriber::{filter::Targets, layer::SubscriberExt, util::SubscriberInitExt};
    let filter: Targets = config.log.parse().expect("the config checked it");
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    // A second server in one process (tests) logs to the first one's log.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
}

/// Every part of the house.
pub struct Server {
    pub clock: Clock,
    pub random: Random,
    pub budget: Budget,
    pub store: Store,
    pub feed: Feed,
    pub remote: Remote,
    pub rooms: Rooms,
    pub users: Users,
    pub media: Media,
    pub sender: Sender,
    config: Config,
    router: Arc<Router>,
    /// The commands', behind the socket in the data folder.
    local: Arc<Router>,
    door: Arc<Door>,
    client_certificate: Option<Arc<Certificate>>,
    federation_certificate: Option<Arc<Certificate>>,
    /// Addresses that are open, with the ports the system chose.
    open: Vec<Open>,
    /// Pays for what the database holds by itself, as long as it is open.
    _database: Grant,
    accepting: Vec<JoinHandle<()>>,
    /// Work that can be cut off anywhere: what it has stored by then is where the next start goes on.
    endless: Vec<JoinHandle<()>>,
    /// Work that ends when it is told to.
    working: Vec<JoinHandle<()>>,
}

/// An open address.
#[derive(Debug, Clone, Copy)]
pub struct Open {
    pub address: SocketAddr,
    pub tls: bool,
    pub federation: bool,
}

impl Server {
    /// Makes every part, bottom to top. Nothing listens and nothing works by itself yet.
    pub async fn build(config: &Config, clock: Clock, random: Random, budget: Budget) -> Result<Server, Failed> {
        let config = config.clone();
        let folder = &config.data_dir;
        make_folders(folder)?;
        remember_time(folder, &clock);
        let (store, _database) = open_store(folder, &budget)?;
        let key = Arc::new(signing_key(folder, &random)?);
        let old_keys = old_signing_keys(folder)?;
        let server_name = config.server_name.clone();
        let federation_certificate =
            certificate(&config.federation.tls_certificate, &config.federation.tls_private_key)?;
        let client_certificate = certificate(&config.client.tls_certificate, &config.client.tls_private_key)?;

        let feed = Feed::new(clock.clone());
        let remote = remote(&config, &key, &clock, &random, &budget, &store)?;
        let rooms = Rooms::new(room::Parts {
            store: store.clone(),
            feed: feed.clone(),
            clock: clock.clone(),
            random: random.clone(),
            budget: budget.clone(),
            remote: remote.clone(),
            server: server_name.clone(),
            key: key.clone(),
            scratch: folder.join(SCRATCH),
        });
        rooms.set_admission(match config.rooms.admission {
            config::Admission::Allow => Policy::Allow,
            config::Admission::Ask => Policy::Ask,
            config::Admission::Refuse => Policy::Refuse,
        });
        let users = Users::new(user::Parts {
            store: store.clone(),
            feed: feed.clone(),
            clock: clock.clone(),
            random: random.clone(),
            budget: budget.clone(),
            remote: remote.clone(),
            server: server_name.clone(),
        });
        let media = Media::new(media::Parts {
            store: store.clone(),
            clock: clock.clone(),
            random: random.clone(),
            budget: budget.clone(),
            remote: remote.clone(),
            server: server_name.clone(),
            folder: folder.join(MEDIA),
            upload_bytes_max: config.upload_bytes_max,
        });
        let sender = Sender::new(
            store.clone(),
            remote.clone(),
            feed.clone(),
            clock.clone(),
            random.clone(),
            &budget,
            SenderOptions::for_connections(connections_max(&budget), &budget),
        );

        let mut router = Router::new();
        let client = Arc::new(Client {
            rooms: rooms.clone(),
            users: users.clone(),
            media: media.clone(),
            feed: feed.clone(),
            clock: clock.clone(),
            random: random.clone(),
            budget: budget.clone(),
            options: client::Options {
                server_name: server_name.clone(),
                registration: registration(&config),
                public_url: config.public_url.clone(),
                federation_name: config.federation.name.clone(),
                upload_bytes_max: config.upload_bytes_max,
            },
        });
        client::routes::routes(&mut router, &client);
        if config.federation.enabled {
            let federation = Arc::new(Federation {
                rooms: rooms.clone(),
                users: users.clone(),
                media: media.clone(),
                remote: remote.clone(),
                clock: clock.clone(),
                budget: budget.clone(),
                answers: budget.account("response_bodies"),
                server_name,
                key,
                old_keys,
                scratch: folder.join(SCRATCH),
                transactions: Default::default(),
                well_known_server: config.federation.name.clone(),
            });
            federation::routes::routes(&mut router, &federation);
        }

        let admin = Arc::new(Admin {
            users: users.clone(),
            rooms: rooms.clone(),
            sender: sender.clone(),
            budget: budget.clone(),
        });
        admin::first_routes(&mut router, &admin);
        let mut local = Router::new();
        admin::routes(&mut local, &admin);

        let limits = if config.rate_limits { Limits::new(clock.clone()) } else { Limits::off(clock.clone()) };
        let door = Door::new(clock.clone(), &budget, Arc::new(limits), config.trusted_proxies.clone());
        Ok(Server {
            clock,
            random,
            budget,
            store,
            feed,
            remote,
            rooms,
            users,
            media,
            sender,
            config,
            router: Arc::new(router),
            local: Arc::new(local),
            door,
            client_certificate,
            federation_certificate,
            open: Vec::new(),
            _database,
            accepting: Vec::new(),
            endless: Vec::new(),
            working: Vec::new(),
        })
    }

    /// Starts what works by itself, then opens the ports.
    pub async fn open(&mut self) -> Result<(), Failed> {
        self.work();
        self.open_local()?;
        let (client, federation) = (self.client_certificate.clone(), self.federation_certificate.clone());
        for address in self.config.listen.clone() {
            self.listen(address, client.as_ref(), false).await?;
        }
        if self.config.federation.enabled && federation.is_some() {
            for address in self.config.federation.listen.clone() {
                self.listen(address, federation.as_ref(), true).await?;
            }
        }
        Ok(())
    }

    /// Opens the socket for the commands. Only who holds the database gets here, so a socket that is there already is an
    /// earlier run's.
    pub fn open_local(&mut self) -> Result<(), Failed> {
        let path = self.config.data_dir.join(SOCKET);
        let wrong = |error: std::io::Error| failed(path.display(), error);
        let _ = std::fs::remove_file(&path);
        let socket = tokio::net::UnixListener::bind(&path).map_err(wrong)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(wrong)?;
        let listener = Listener::unix(socket);
        self.accepting.push(tokio::spawn(self.door.clone().serve(listener, self.local.clone())));
        Ok(())
    }

    async fn listen(
        &mut self,
        address: SocketAddr,
        certificate: Option<&Arc<Certificate>>,
        federation: bool,
    ) -> Result<(), Failed> {
        let mut listener = bind(address).await?;
        if let Some(certificate) = certificate {
            let config = certificate.server_config().map_err(|error| Failed(error.to_string()))?;
            listener = listener.with_tls(config);
        }
        let address = listener.address().unwrap_or(address);
        let open = Open { address, tls: certificate.is_some(), federation };
        let what = if federation { "servers" } else { "apps" };
        tracing::info!("listening for {what} on {address}{}", if open.tls { " with TLS" } else { "" });
        self.open.push(open);
        self.accepting.push(tokio::spawn(self.door.clone().serve(listener, self.router.clone())));
        Ok(())
    }

    /// What goes on without being asked.
    fn work(&mut self) {
        let (remote, sender) = (self.remote.clone(), self.sender.clone());
        self.working.push(tokio::spawn(async move { remote.run().await }));
        let rooms = self.rooms.clone();
        self.endless.push(tokio::spawn(async move { rooms.keep_swept().await }));
        if self.config.federation.enabled {
            self.working.push(tokio::spawn(async move { sender.run().await }));
            let rooms = self.rooms.clone();
            self.endless.push(tokio::spawn(async move { rooms.resume_joins().await }));
        }
        for certificate in [&self.client_certificate, &self.federation_certificate].into_iter().flatten() {
            self.endless.push(tokio::spawn(certificate.clone().keep_current(self.clock.clone())));
        }
    }

    /// Takes everything down in reverse. Afterwards all that was answered is on disk.
    pub async fn stop(self) {
        self.door.close(GRACE).await;
        for task in self.accepting {
            let _ = task.await;
        }
        let _ = std::fs::remove_file(self.config.data_dir.join(SOCKET));
        self.rooms.stop_joins().await;
        for task in self.endless {
            task.abort();
            let _ = task.await;
        }
        self.sender.stop();
        self.remote.stop();
        for task in self.working {
            let _ = task.await;
        }
        self.store.close().await;
    }

    pub fn addresses(&self) -> &[Open] {
        &self.open
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// All paths, for tests that need no socket.
    pub fn router(&self) -> &Arc<Router> {
        &self.router
    }
}

fn registration(config: &Config) -> client::Registration {
    match config.registration {
        config::Registration::Open => client::Registration::Open,
        config::Registration::Closed => client::Registration::Closed,
        config::Registration::Token => client::Registration::Token(config.registration_tokens.clone()),
    }
}

fn connections_max(budget: &Budget) -> usize {
    budget.size("outbound_connections_max").max(1) as usize
}

fn remote(
    config: &Config,
    key: &Arc<sign::Key>,
    clock: &Clock,
    random: &Random,
    budget: &Budget,
    store: &Store,
) -> Result<Remote, Failed> {
    let settings = &config.federation;
    let mut options = RemoteOptions::new(config.server_name.clone(), key.clone());
    options.limits = remote::Limits { connections_max: connections_max(budget), per_host_max: PER_HOST_MAX };
    options.overrides = settings.overrides.clone();
    options.notaries = settings.notaries.clone();
    options.allow_private = settings.allow_private_addresses;
    options.enabled = settings.enabled;
    if let Some(file) = &settings.extra_ca_file {
        let pem = std::fs::read(file).map_err(|error| failed(file.display(), error))?;
        options.extra_ca_pem = Some(pem);
    }
    Remote::new(options, clock.clone(), random.clone(), budget, store.clone()).map_err(Failed)
}

pub fn certificate(chain: &Option<PathBuf>, key: &Option<PathBuf>) -> Result<Option<Arc<Certificate>>, Failed> {
    let (Some(chain), Some(key)) = (chain, key) else { return Ok(None) };
    Certificate::read(chain, key).map(Some).map_err(|error| Failed(error.to_string()))
}

/// Binds an address. `[::]` becomes `0.0.0.0` on a machine without IPv6.
async fn bind(address: SocketAddr) -> Result<Listener, Failed> {
    let error = match Listener::tcp(address).await {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    if address.ip() == IpAddr::from([0u16; 8]) && error.kind() != std::io::ErrorKind::AddrInUse {
        let plain = SocketAddr::new(IpAddr::from([0; 4]), address.port());
        if let Ok(listener) = Listener::tcp(plain).await {
            return Ok(listener);
        }
    }
    let hint = match error.kind() {
        std::io::ErrorKind::AddrInUse => " (is another server running?)",
        std::io::ErrorKind::PermissionDenied => " (ports below 1024 need the capability CAP_NET_BIND_SERVICE)",
        _ => "",
    };
    Err(failed(format_args!("cannot listen on {address}"), format_args!("{error}{hint}")))
}

/// Nobody else on the machine may read what is in there.
fn make_folders(folder: &Path) -> Result<(), Failed> {
    let scratch = folder.join(SCRATCH);
    // What an earlier run left: its readers are gone.
    let _ = std::fs::remove_dir_all(&scratch);
    for folder in [folder, &scratch, &folder.join(MEDIA)] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(|error| failed(folder.display(), error))?;
    }
    Ok(())
}

/// A board without a clock battery wakes up in the past. It is at least as late as when the database was last written.
fn remember_time(folder: &Path, clock: &Clock) {
    let written = std::fs::metadata(folder.join(DATABASE)).and_then(|found| found.modified()).ok();
    let Some(since) = written.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok()) else { return };
    let written_ms = since.as_millis() as u64;
    if written_ms > clock.read_ms() + CLOCK_SLACK_MS {
        tracing::warn!("the clock stands before the last time this server ran: is the date right?");
    }
    clock.remember_ms(written_ms);
}

fn open_store(folder: &Path, budget: &Budget) -> Result<(Store, Grant), Failed> {
    let cache = budget.account("database_cache");
    let grant = cache.try_take(cache.limit()).map_err(|refused| failed("the database's memory", refused))?;
    let path = folder.join(DATABASE);
    let mut options = StoreOptions::new(&path);
    options.cache_bytes = budget.size("redb_cache") as usize;
    options.queue_jobs = budget.size("write_queue_jobs") as usize;
    options.stack_bytes = budget.size("writer_stack") as usize;
    let store = Store::open(options).map_err(|error| failed(path.display(), error))?;
    Ok((store, grant))
}

/// The key every event and request of this server is signed with; made at the first start.
fn signing_key(folder: &Path, random: &Random) -> Result<sign::Key, Failed> {
    if let Some(key) = known_signing_key(folder)? {
        return Ok(key);
    }
    let file = folder.join(SIGNING_KEY);
    let mut seed = [0; 32];
    random.fill(&mut seed);
    let key = sign::Key::from_seed(&format!("a_{}", random.token(4)), seed);
    write_secret(&file, &key.to_file()).map_err(|error| failed(file.display(), error))?;
    Ok(key)
}

/// The signing key of a data folder, when there is one.
pub fn known_signing_key(folder: &Path) -> Result<Option<sign::Key>, Failed> {
    let file = folder.join(SIGNING_KEY);
    match std::fs::read_to_string(&file) {
        Ok(text) => sign::Key::parse(&text).map(Some).map_err(|error| failed(file.display(), error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(file.display(), error)),
    }
}

/// Written beside and moved, so that a power cut leaves no half of a key.
fn write_secret(file: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let beside = file.with_extension("new");
    let mut made = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    made.write_all(text.as_bytes())?;
    made.sync_all()?;
    std::fs::rename(&beside, file)
}

/// Keys this server signed with before, one on a line: `ed25519:NAME PUBLIC_KEY EXPIRED_MS`.
pub fn old_signing_keys(folder: &Path) -> Result<Vec<OldKey>, Failed> {
    let file = folder.join(OLD_SIGNING_KEYS);
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(file.display(), error)),
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .map(|(at, line)| {
            old_signing_key(line).ok_or_else(|| {
                let wrong = "a line must be `ed25519:NAME PUBLIC_KEY EXPIRED_MS`";
                failed(format_args!("{}:{}", file.display(), at + 1), wrong)
            })
        })
        .collect()
}

fn old_signing_key(line: &str) -> Option<OldKey> {
    let mut words = line.split_whitespace();
    let (id, public, expired_ms) = (words.next()?, words.next()?, words.next()?);
    let public = sign::PublicKey::from_base64(public.trim_end_matches('='))?;
    id.strip_prefix("ed25519:").filter(|name| !name.is_empty())?;
    Some(OldKey { id: id.to_owned(), public, expired_ms: expired_ms.parse().ok()? })
}

/// At the very first start: a short config file in the data folder. Answers where it was written.
fn first_file(config: &Config) -> Result<Option<PathBuf>, Failed> {
    let file = config.data_dir.join(FILE_NAME);
    if config.file.is_some() || file.exists() {
        return Ok(None);
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.data_dir)
        .map_err(|error| failed(config.data_dir.display(), error))?;
    write_secret(&file, &config.first_file()).map_err(|error| failed(file.display(), error))?;
    Ok(Some(file))
}

/// What a person at the terminal wants to know.
async fn greet(server: &Server, first: Option<&Path>, command: &str) {
    let url = public_url(server);
    println!("Snug is open at {url} as {}", server.config.server_name);
    if let Some(file) = first {
        println!("Settings: {}", file.display());
    }
    match server.users.setup_code().await {
        Ok(Some(code)) => {
            println!(
                "\nThere is no account yet. Make the first one, an administrator's, with this link, which works once:\n\n    \
                 {url}{}{code}\n\nor with this command:\n\n    {command} user add NAME --admin\n",
                admin::FIRST_PATH
            );
        }
        Ok(None) => {}
        Err(error) => tracing::error!("the accounts cannot be read: {error}"),
    }
}

/// Where a browser on this machine, or anywhere when that is known, reaches the server.
fn public_url(server: &Server) -> String {
    if let Some(url) = &server.config.public_url {
        return url.clone();
    }
    let Some(open) = server.open.iter().find(|open| !open.federation) else { return "no address".to_owned() };
    let scheme = if open.tls { "https" } else { "http" };
    let ip = open.address.ip();
    let host = if ip.is_loopback() || ip.is_unspecified() { "localhost".to_owned() } else { ip.to_string() };
    format!("{scheme}://{host}:{}", open.address.port())
}

//! The boot sequence, and the shutdown sequence in reverse.
//!
//! [`Server::build`] makes every part once, bottom to top. [`Server::open`] starts the background work and lets
//! requests in. [`Server::stop`] takes everything down, top to bottom. [`run`] does all of it for a process of its own.
//! The data folder is in `serve/folder.rs`.

mod addresses;
mod database;
mod findings;
mod folder;
mod calls;
mod certificates;
pub mod compact;
mod greet;
mod home;
pub mod log;
mod metrics;
pub mod ports;
mod push;
mod reload;
pub mod restore;
mod restored;
mod run;
mod systemd;
pub mod services;

use std::fmt;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ruma::OwnedUserId;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::{self, Admin};
use crate::backup::{self, Backups};
use crate::base::{Clock, Lane, Live, Random, Worker, Workers, detached, read_small};
use crate::budget::{self, Budget, Grant, Granted, Profile};
use crate::certificates::{Certificates, Source};
use crate::client::{self, Client};
use crate::config::{self, Config, Previews};
use crate::deliver::push::Pushes;
use crate::deliver::services::ServiceSender;
use crate::deliver::{Sender, SenderOptions};
use crate::federation::gateway::{self, Gateway};
use crate::federation::{self, Federation};
use crate::feed::Feed;
use crate::flow::{self, NoticeOptions, Notices};
use crate::http::{HttpServer, Limits, Listener, Router, tls::Certificate};
use crate::matrix::sign;
use crate::mdns::Responder;
use crate::media::{self, Media};
use crate::relay::Relay;
use crate::remote::{self, Remote, RemoteOptions};
use crate::room::{self, Rooms};
use crate::store::{self, Store, Survey, TableFound};
use crate::user::{self, Users};
use crate::web::Folders;

pub use self::addresses::{first_account, is_only_here, let_in, urls};
pub use self::folder::{
    CERTIFICATES, SOCKET, check_database, check_owner, has_data, has_database, kept, known_signing_key,
    old_signing_keys, open_files, other_owner, user_name,
};
use self::folder::{DATABASE, MEDIA, SCRATCH};
use database::{open_store, open_when_free, store_options};
use ports::bind;
pub use reload::Reloader;
pub use run::run;

/// The time for answers in progress after the signal to stop. Waiting syncs answer at once.
const GRACE: Duration = Duration::from_secs(3);
/// Connections to one other server at the same time: one for each lane of joins, and one for everything else.
const PER_HOST_MAX: usize = 3;
/// A file of roots: those of a whole system have some 220 KiB.
const ROOTS_BYTES_MAX: u64 = 1 << 20;

/// Why the server cannot start: a sentence for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Failed(String);

fn failed(what: impl fmt::Display, why: impl fmt::Display) -> Failed {
    Failed(format!("{what}: {why}"))
}

/// The async runtime, with the threads and stacks of the profile.
pub fn runtime(budget: &Budget) -> Result<tokio::runtime::Runtime, Failed> {
    // One size for both kinds of threads: of a stack, only the touched pages take memory.
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

/// The profile that the settings name, or else the one that fits the machine.
pub fn profile(config: &Config) -> Result<Profile, Failed> {
    match &config.budget {
        Some(name) => {
            let profile = Profile::named(name).map_err(|error| failed("budget", error))?;
            let (total, granted) = (budget::human(profile.total), Granted::now());
            tracing::info!("memory budget {} ({total}), as it was chosen; {granted}", profile.name);
            Ok(profile)
        }
        None => {
            let choice = budget::choose();
            tracing::info!("{}", choice.why);
            Ok(choice.profile)
        }
    }
}

/// All parts of the running server.
pub struct Server {
    pub clock: Clock,
    pub random: Random,
    pub budget: Budget,
    pub store: Store,
    pub feed: Feed,
    pub remote: Remote,
    pub rooms: Rooms,
    pub users: Users,
    pub notices: Notices,
    pub media: Media,
    pub sender: Sender,
    pub pushes: Pushes,
    /// Tells application services.
    pub told: ServiceSender,
    registrations: Arc<services::Files>,
    pub backups: Backups,
    workers: Workers,
    config: Config,
    router: Arc<Router>,
    /// The routes of the commands, on the socket in the data folder.
    local: Arc<Router>,
    door: Arc<HttpServer>,
    reloader: Arc<Reloader>,
    /// The routes of plain addresses beside those with a certificate of our own.
    plain: Arc<Router>,
    certificates: Certificates,
    /// The relay for calls, once its ports are open.
    relay: Option<Relay>,
    responder: Option<Arc<Responder>>,
    client_certificate: Option<Arc<Certificate>>,
    federation_certificate: Option<Arc<Certificate>>,
    /// Plain addresses that are open beside those with a certificate.
    open_plain: Vec<SocketAddr>,
    /// The open addresses, with the ports that the system chose.
    open: Vec<Open>,
    /// The same for people, once all are open.
    reached: Arc<OnceLock<admin::Addresses>>,
    /// Pays for the memory that the open database takes by itself.
    _database: Grant,
    accepting: Vec<JoinHandle<()>>,
    /// Set when workers must not be restarted any more.
    stopping: watch::Sender<bool>,
    /// Work that can be aborted anywhere: the next start goes on from what it has stored.
    endless: Vec<JoinHandle<()>>,
    /// Work that ends by itself when told to stop.
    working: Vec<JoinHandle<()>>,
}

/// An open address.
#[derive(Debug, Clone, Copy)]
pub struct Open {
    pub address: SocketAddr,
    pub tls: bool,
    pub federation: bool,
}

/// A worker's work, to be begun again after a panic.
type Work = Box<dyn FnMut(Worker) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

impl Server {
    /// Makes every part, bottom to top. No port is open and no background work runs yet.
    pub async fn build(config: &Config, clock: Clock, random: Random, budget: Budget) -> Result<Server, Failed> {
        let config = config.clone();
        let folder = &config.data_dir;
        folder::finish_restore(folder)?;
        folder::make(folder)?;
        check_database(folder)?;
        if config.trust_clock {
            clock.trust();
        }
        folder::remember_time(folder, &clock);
        let (store, _database) = open_when_free(folder, &budget, &clock).await?;
        folder::remember_time_kept(&store, &clock);
        folder::empty_scratch(folder)?;
        // Accounts that cannot be read count as accounts. `check_name` reports the error.
        let accounts = store.read().and_then(|read| crate::store::tables::user::count_up_to(&read, 1));
        let accounts = accounts.map_or(true, |count| count > 0);
        let key = Arc::new(folder::signing_key(folder, accounts, &random)?);
        let old_keys = old_signing_keys(folder)?;
        let server_name = config.server_name.clone();
        let feed = Feed::new(clock.clone(), &store).map_err(|error| failed("database", error))?;
        let remote = remote(&config, &key, &clock, &random, &budget, &store)?;
        let certificates = certificates::of(&config, &clock, &random, &budget, &remote)?;
        let pair = &config.federation;
        let federation_certificate =
            certificates::chosen((&pair.tls_certificate, &pair.tls_private_key), &certificates)
                .map_err(|error| failed("federation.tls_certificate and federation.tls_private_key", error))?;
        let pair = &config.client;
        let client_certificate = certificates::chosen((&pair.tls_certificate, &pair.tls_private_key), &certificates)
            .map_err(|error| failed("client.tls_certificate and client.tls_private_key", error))?;
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
        rooms.set_admission(config.rooms.admission);
        rooms.set_policies(config.policies.clone());
        remote.barred().set_denied(config.federation.denied_servers.clone());
        rooms.set_policy_lists(config.moderation.policy_lists.clone());
        rooms.set_auto_accept(config.rooms.auto_accept_invites, config.rooms.auto_accept_only_local);
        rooms.set_forgets_left_rooms(config.rooms.forget_left);
        rooms.set_redacted_kept(config.rooms.redacted_kept_days);
        rooms.set_purges_left_rooms(config.rooms.purge_left);
        rooms.set_history_days(config.rooms.history_days, config.rooms.retention_days_min);
        rooms.set_search(config.search);
        rooms.set_hourly_bytes_max(config.federation.hourly_bytes_max);
        let users = Users::new(user::Parts {
            store: store.clone(),
            feed: feed.clone(),
            clock: clock.clone(),
            random: random.clone(),
            budget: budget.clone(),
            remote: remote.clone(),
            server: server_name.clone(),
        });
        users.set_reports_to(config.moderation.reports_to.clone());
        users.set_presence_mode(config.apps.presence);
        users.set_calls(config.apps.calls.clone());
        if config.apps.calls.livekit.is_some() {
            rooms.watch_calls(Arc::new(calls::AtLiveKit(users.clone())));
        }
        check_name(&store, &config)?;
        restored::say(&store, &clock);
        let media = Media::new(media::Parts {
            store: store.clone(),
            clock: clock.clone(),
            random: random.clone(),
            budget: budget.clone(),
            remote: remote.clone(),
            server: server_name.clone(),
            folder: folder.join(MEDIA),
            options: media::Options {
                upload_bytes_max: config.upload_bytes_max,
                account_bytes_max: config.account_upload_bytes_max,
                ..config.media.clone()
            },
        });
        let Previews { enabled, deny, private_hosts, robots_txt, allow_private } = config.previews.clone();
        media.set_previews(media::PreviewOptions { enabled, deny, private_hosts, robots_txt, allow_private });
        let sender = Sender::new(
            store.clone(),
            remote.clone(),
            feed.clone(),
            clock.clone(),
            random.clone(),
            &budget,
            SenderOptions::for_connections(connections_max(&budget), &budget),
        );
        let pushes = Pushes::new(
            store.clone(),
            remote.clone(),
            Arc::new(rooms.clone()),
            clock.clone(),
            &budget,
            push::options(&config, connections_max(&budget)),
        );

        let told = ServiceSender::new(
            store.clone(),
            &remote,
            &feed,
            Arc::new(services::Facts { rooms: rooms.clone(), users: users.clone() }),
            (clock.clone(), random.clone()),
            &budget,
            SenderOptions::for_connections(connections_max(&budget), &budget).transaction_bytes_max,
        );
        let registrations = services::Files::new(&config, &users);
        if registrations.is_any() {
            registrations.load_and_say().await;
        }

        let backups = Backups::new(backup_parts(&config, &store, &clock, &random, &budget), config.backup.clone());
        users.set_welcomes(!config.rooms.auto_join.is_empty());
        let notices = Notices::new(users.clone(), rooms.clone(), notice_options(&config));
        findings::tell_of_harmful_files(&media, &notices);
        let mut router = Router::new();
        let folders = Folders::new(&budget);
        folders.set(config.web.clone());
        router.set_fallback(Box::new(folders.clone()));
        let client = Arc::new(Client {
            rooms: rooms.clone(),
            users: users.clone(),
            notices: notices.clone(),
            media: media.clone(),
            feed: feed.clone(),
            clock: clock.clone(),
            random: random.clone(),
            budget: budget.clone(),
            settings: Live::new(config.apps.clone()),
            looks: Lane::new(clock.clone(), budget.size("blocking_threads") as usize),
            scratch: folder.join(SCRATCH),
            nonces: client::Nonces::default(),
        });
        client::routes::routes(&mut router, &client);
        let mut at_federation = None;
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
                lookups: federation::Lookups::new(clock.clone(), connections_max(&budget)),
                postage: federation::postage::Postage::new(clock.clone(), config.rate_limits),
                senders: Default::default(),
                transactions: Default::default(),
                well_known_server: Live::new(config.federation.name.clone()),
            });
            federation::routes::routes(&mut router, &federation);
            at_federation = Some(federation);
        }

        if config.push.gateway {
            gateway::routes(&mut router, &Arc::new(Gateway::new(remote.clone(), clock.clone())));
        }

        let (workers, reached) = (Workers::default(), Arc::new(OnceLock::new()));
        let limits = if config.rate_limits { Limits::new(clock.clone()) } else { Limits::off(clock.clone()) };
        limits.set_rates(config.rates.clone());
        let limits = Arc::new(limits);
        let door = HttpServer::new(clock.clone(), &budget, limits.clone(), config.trusted_proxies.clone());
        let in_use = [("client", &client_certificate), ("federation", &federation_certificate)];
        let in_use = in_use.iter().filter_map(|(name, found)| Some((*name, found.as_ref()?.clone())));
        let in_use: Vec<_> = in_use.collect();
        let gauges = metrics::gauges(metrics::Watched {
            folder,
            store: &store,
            feed: &feed,
            remote: &remote,
            media: &media,
            door: &door,
            certificates: in_use.clone(),
        });
        let admin = Arc::new(Admin {
            users: users.clone(),
            rooms: rooms.clone(),
            media: media.clone(),
            notices: notices.clone(),
            backups: backups.clone(),
            sender: sender.clone(),
            remote: remote.clone(),
            told: told.clone(),
            registrations: registrations.clone(),
            budget: budget.clone(),
            clock: clock.clone(),
            random: random.clone(),
            workers: workers.clone(),
            settings: Live::new(admin_settings(&config)),
            database: folder.join(DATABASE),
            page: Arc::new(admin::Desk::new(
                config.page.enabled.then(|| config.page.path.clone()),
                client::rates::PASSWORDS,
            )),
            addresses: reached.clone(),
            sources: findings::sources(&clock, &store, &remote, &rooms, &media),
            gauges,
            tally: router.tally().clone(),
            log: log::last_lines,
            reload: OnceLock::new(),
            denying: tokio::sync::Mutex::new(()),
            certificates: certificates.clone(),
            shown: shown(&config, &client_certificate, &federation_certificate),
        });
        admin::page_routes(&mut router, &admin);
        let mut plain = Router::new();
        admin::plain_routes(&mut plain, &admin);
        let mut local = Router::new();
        admin::routes(&mut local, &admin);
        let reloader = Arc::new(Reloader {
            config: parking_lot::Mutex::new(config.clone()),
            client,
            federation: at_federation,
            admin: admin.clone(),
            media: media.clone(),
            door: door.clone(),
            limits,
            auto_join: Arc::new(Live::new(config.rooms.auto_join.clone())),
            folders,
            certificates: in_use.into_iter().map(|(_, certificate)| certificate).collect(),
            relay: OnceLock::new(),
            turn: tokio::sync::Mutex::default(),
        });
        let reload: std::sync::Weak<dyn admin::Reload> = Arc::downgrade(&(reloader.clone() as Arc<dyn admin::Reload>));
        // Set once: the server has just been made.
        let _ = admin.reload.set(reload);

        Ok(Server {
            clock,
            random,
            budget,
            store,
            feed,
            remote,
            rooms,
            users,
            notices,
            media,
            sender,
            pushes,
            told,
            registrations,
            backups,
            workers,
            config,
            router: Arc::new(router),
            local: Arc::new(local),
            plain: Arc::new(plain),
            certificates,
            open_plain: Vec::new(),
            door,
            reloader,
            relay: None,
            responder: None,
            client_certificate,
            federation_certificate,
            open: Vec::new(),
            reached,
            _database,
            accepting: Vec::new(),
            stopping: watch::Sender::new(false),
            endless: Vec::new(),
            working: Vec::new(),
        })
    }

    /// Starts the background work, then opens the ports.
    pub async fn open(&mut self) -> Result<(), Failed> {
        self.work();
        self.open_local()?;
        self.open_relay().await?;
        let (client, federation) = (self.client_certificate.clone(), self.federation_certificate.clone());
        for address in self.config.listen.clone() {
            let certificate = certificates::spoken(address, client.as_ref());
            self.listen(address, certificate, false).await?;
        }
        if self.config.federation.enabled && federation.is_some() {
            for address in self.config.federation.listen.clone() {
                self.listen(address, federation.as_ref(), true).await?;
            }
        }
        if self.certificates.source() != Source::Files {
            self.listen_plainly().await;
        }
        self.note_addresses();
        self.announce();
        Ok(())
    }

    /// Opens the plain addresses. One that cannot be opened is no reason not to start: an authority can ask by TLS.
    async fn listen_plainly(&mut self) {
        for address in self.config.certificates.plain_listen.clone() {
            match bind(address).await {
                Ok(listener) => {
                    let address = listener.address().unwrap_or(address);
                    tracing::info!(
                        "listening on {address} without TLS, for certificates and to lead browsers to HTTPS"
                    );
                    self.open_plain.push(address);
                    self.accepting.push(tokio::spawn(self.door.clone().serve(listener, self.plain.clone())));
                }
                Err(error) => tracing::warn!("plain_listen: {error}"),
            }
        }
        self.certificates.note_port_80(!self.open_plain.is_empty());
    }

    /// Notes where the open sockets are reached.
    fn note_addresses(&self) {
        let of = |federation: bool| {
            let sockets = self.open.iter().filter(|open| open.federation == federation);
            sockets.map(|open| open.address).collect::<Vec<_>>()
        };
        let apps = of(false);
        let urls = addresses::urls(&self.config, &apps, self.client_certificate.as_deref());
        let plain = addresses::plain_urls(&self.open_plain);
        let secure = self.open.iter().find(|open| open.tls && !open.federation).map(|open| open.address.port());
        // Set once: a server is opened once.
        let services::RunsAs { uid, gids, .. } = services::RunsAs::this();
        let _ = self.reached.set(admin::Addresses { apps, servers: of(true), urls, plain, secure, uid, gids });
    }

    /// Opens the socket for the commands. This process holds the database by now, so a socket that exists already is
    /// left from an earlier run.
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
        let setting = if federation { "federation.listen" } else { "listen" };
        let mut listener = bind(address).await.map_err(|error| failed(setting, error))?;
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

    /// Starts the background work.
    fn work(&mut self) {
        let (clock, text_bytes) = (self.clock.clone(), self.budget.profile().fixed("text"));
        self.endless.push(self.worker("memory meter", move |worker| {
            let clock = clock.clone();
            async move { budget::meter::keep_text_within(&worker, clock, text_bytes).await }
        }));
        let remote = self.remote.clone();
        self.working.push(self.worker("known servers", move |worker| {
            let remote = remote.clone();
            async move { remote.run(&worker).await }
        }));
        let rooms = self.rooms.clone();
        self.endless.push(self.worker("state sweep", move |worker| {
            let rooms = rooms.clone();
            async move { rooms.keep_swept(&worker).await }
        }));
        let rooms = self.rooms.clone();
        self.endless.push(self.worker("purge", move |worker| {
            let rooms = rooms.clone();
            async move { rooms.keep_purged(&worker).await }
        }));
        let rooms = self.rooms.clone();
        self.endless.push(self.worker("space", move |worker| {
            let rooms = rooms.clone();
            async move { rooms.keep_small(&worker).await }
        }));
        let rooms = self.rooms.clone();
        self.endless.push(self.worker("rooms closed", move |worker| {
            let rooms = rooms.clone();
            async move { rooms.keep_tasks(&worker).await }
        }));
        let rooms = self.rooms.clone();
        self.endless.push(self.worker("redactions", move |worker| {
            let rooms = rooms.clone();
            async move { rooms.redact_noted(&worker).await }
        }));
        let rooms = self.rooms.clone();
        self.endless.push(self.worker("policy lists", move |worker| {
            let rooms = rooms.clone();
            async move { rooms.keep_policy_lists(&worker).await }
        }));
        let users = self.users.clone();
        self.endless.push(self.worker("reports", move |worker| {
            let users = users.clone();
            async move { users.keep_reports_told(&worker).await }
        }));
        let rooms = self.rooms.clone();
        self.endless.push(self.worker("user redactions", move |worker| {
            let rooms = rooms.clone();
            async move { rooms.redact_asked(&worker).await }
        }));
        let rooms = self.rooms.clone();
        self.endless.push(self.worker("search index", move |worker| {
            let rooms = rooms.clone();
            async move { rooms.keep_indexed(&worker).await }
        }));
        let users = self.users.clone();
        self.endless.push(self.worker("deleted backups", move |worker| {
            let users = users.clone();
            async move { users.keep_backups_swept(&worker).await }
        }));
        let rooms = self.rooms.clone();
        self.endless.push(self.worker("delayed events", move |worker| {
            let rooms = rooms.clone();
            async move { rooms.keep_delayed(&worker).await }
        }));
        let rooms = self.rooms.clone();
        self.endless.push(self.worker("counts of days", move |worker| {
            let rooms = rooms.clone();
            async move { rooms.keep_days(&worker).await }
        }));
        let users = self.users.clone();
        self.endless.push(self.worker("presence", move |worker| {
            let users = users.clone();
            async move { users.keep_presence(&worker).await }
        }));
        let media = self.media.clone();
        self.endless.push(self.worker("media", move |worker| {
            let media = media.clone();
            async move { media.keep_tidy(&worker).await }
        }));
        let rooms = self.rooms.clone();
        self.endless.push(self.worker("guests", move |worker| {
            let rooms = rooms.clone();
            async move { rooms.let_guests_go(&worker).await }
        }));
        let (users, rooms, clock) = (self.users.clone(), self.rooms.clone(), self.clock.clone());
        let named = self.reloader.auto_join.clone();
        self.endless.push(self.worker("new people", move |worker| {
            let (users, rooms, named, clock) = (users.clone(), rooms.clone(), named.clone(), clock.clone());
            async move { flow::welcome(&users, &rooms, &named, &clock, &worker).await }
        }));
        let (users, rooms, clock) = (self.users.clone(), self.rooms.clone(), self.clock.clone());
        self.endless.push(self.worker("invites", move |worker| {
            let (users, rooms, clock) = (users.clone(), rooms.clone(), clock.clone());
            async move { flow::accept_invites(&users, &rooms, &clock, &worker).await }
        }));
        if let Some(terms) = new_terms(&self.config) {
            let (users, notices, clock) = (self.users.clone(), self.notices.clone(), self.clock.clone());
            self.endless.push(self.worker("new terms", move |worker| {
                let (users, notices, terms, clock) = (users.clone(), notices.clone(), terms.clone(), clock.clone());
                async move { flow::tell_of_terms(&users, &notices, &terms, &clock, &worker).await }
            }));
        }
        if let Some(days) = self.config.guests_unused_days {
            let (users, rooms, clock) = (self.users.clone(), self.rooms.clone(), self.clock.clone());
            self.endless.push(self.worker("unused guests", move |worker| {
                let (users, rooms, clock) = (users.clone(), rooms.clone(), clock.clone());
                async move { flow::keep_guests(&users, &rooms, days, &clock, &worker).await }
            }));
        }
        let told = self.told.clone();
        self.working.push(self.worker("application services", move |worker| {
            let told = told.clone();
            async move { told.run(&worker).await }
        }));
        let (files, clock) = (self.registrations.clone(), self.clock.clone());
        self.endless.push(self.worker("registrations", move |worker| {
            let (files, clock) = (files.clone(), clock.clone());
            async move { files.keep_current(&worker, &clock).await }
        }));
        let pushes = self.pushes.clone();
        self.working.push(self.worker("push notifications", move |worker| {
            let pushes = pushes.clone();
            async move { pushes.run(&worker).await }
        }));
        if self.config.backup.target.is_some() {
            let (backups, notices) = (self.backups.clone(), self.notices.clone());
            self.endless.push(self.worker("backup", move |worker| {
                let (backups, notices) = (backups.clone(), notices.clone());
                async move {
                    let tell = |text: String| {
                        let notices = notices.clone();
                        async move {
                            notices.tell_administrators(&text).await;
                        }
                    };
                    backups.keep(&worker, tell).await
                }
            }));
        }
        if self.config.federation.enabled {
            let sender = self.sender.clone();
            self.working.push(self.worker("federation sender", move |worker| {
                let sender = sender.clone();
                async move { sender.run(&worker).await }
            }));
            let rooms = self.rooms.clone();
            self.endless.push(self.worker("interrupted joins", move |worker| {
                let rooms = rooms.clone();
                async move { rooms.resume_joins(&worker).await }
            }));
        }
        let certificates =
            [("client certificate", &self.client_certificate), ("server certificate", &self.federation_certificate)];
        let certificates = certificates.map(|(name, certificate)| (name, certificate.clone()));
        for (name, certificate) in certificates {
            let certificate = certificate.filter(|certificate| certificate.file().is_some());
            let (Some(certificate), clock) = (certificate, self.clock.clone()) else { continue };
            self.endless.push(self.worker(name, move |worker| {
                let (certificate, clock) = (certificate.clone(), clock.clone());
                async move { certificate.keep_current(&worker, clock).await }
            }));
        }
        if self.certificates.source() != Source::Files {
            let own = self.certificates.clone();
            self.endless.push(self.worker("own certificate", move |worker| {
                let own = own.clone();
                async move { own.keep(&worker).await }
            }));
        }
        let shown = shown(&self.config, &self.client_certificate, &self.federation_certificate);
        if !shown.is_empty() {
            let (own, notices, clock) = (self.certificates.clone(), self.notices.clone(), self.clock.clone());
            let folder = self.config.data_dir.clone();
            self.endless.push(self.worker("certificates' ends", move |worker| {
                let (shown, own, notices) = (shown.clone(), own.clone(), notices.clone());
                certificates::watch(shown, own, notices, clock.clone(), folder.clone(), worker)
            }));
        }
    }

    /// A listed task that starts its work again after a panic.
    fn worker<F: Future<Output = ()> + Send + 'static>(
        &self,
        name: &'static str,
        mut work: impl FnMut(Worker) -> F + Send + 'static,
    ) -> JoinHandle<()> {
        self.keep(name, Box::new(move |worker| Box::pin(work(worker))))
    }

    fn keep(&self, name: &'static str, mut work: Work) -> JoinHandle<()> {
        let (worker, mut stopping) = (self.workers.add(name, &self.clock), self.stopping.subscribe());
        detached(async move {
            let stopped = async move {
                let _ = stopping.wait_for(|stopping| *stopping).await;
            };
            worker.keep_going(stopped, || work(worker.clone())).await
        })
    }

    /// Takes everything down in reverse. Afterwards everything that was confirmed to a client is on disk.
    pub async fn stop(self) {
        self.responder.iter().for_each(|responder| responder.leave());
        self.relay.iter().for_each(Relay::stop);
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
        if let Err(failed) = self.media.write_touched().await {
            tracing::warn!("which files were asked for lately is lost: {failed}");
        }
        if let Err(failed) = self.rooms.write_policy_hits().await {
            tracing::warn!("whom the policy lists kept out lately is lost: {failed}");
        }
        if let Err(failed) = self.rooms.write_days().await {
            tracing::warn!("what today brought is lost: {failed}");
        }
        self.stopping.send_replace(true);
        self.sender.stop();
        self.pushes.stop();
        self.told.stop();
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

    /// Reads the settings again.
    pub fn reloader(&self) -> Arc<Reloader> {
        self.reloader.clone()
    }

    /// The routes of all paths, for tests that need no socket.
    pub fn router(&self) -> &Arc<Router> {
        &self.router
    }
}

fn admin_settings(config: &Config) -> admin::AdminSettings {
    let config::Metrics { enabled, allow, token } = config.metrics.clone();
    admin::AdminSettings {
        public_url: config.apps.public_url.clone(),
        is_registration_open: config.apps.registration != client::Registration::Closed,
        metrics: admin::MetricsOptions { enabled, allow, token },
    }
}

/// The certificates in use, and for whom.
fn shown(
    config: &Config,
    client: &Option<Arc<Certificate>>,
    federation: &Option<Arc<Certificate>>,
) -> Vec<(&'static str, Arc<Certificate>)> {
    let federation = federation.as_ref().filter(|_| config.federation.enabled);
    match (client, federation) {
        (Some(one), Some(other)) if Arc::ptr_eq(one, other) => vec![("The certificate", one.clone())],
        _ => {
            let client = client.as_ref().map(|certificate| ("The certificate for apps", certificate.clone()));
            let servers = federation.map(|certificate| ("The certificate for other servers", certificate.clone()));
            client.into_iter().chain(servers).collect()
        }
    }
}

/// The terms that people are told of; none without any, and where the operator wants nobody told.
fn new_terms(config: &Config) -> Option<flow::NewTerms> {
    let terms = &config.apps.terms;
    let base = match &config.apps.public_url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => format!("https://{}", config.server_name),
    };
    let (digest, page) = (terms.digest(), format!("{base}{}", client::TERMS_PATH));
    let new = flow::NewTerms { digest, page, required_to_send: terms.required_to_send };
    Some(new).filter(|_| terms.notice && !terms.is_empty())
}

/// Of a server that is built, and of none that runs: the same folder.
fn backup_parts(config: &Config, store: &Store, clock: &Clock, random: &Random, budget: &Budget) -> backup::Parts {
    let folder = std::path::absolute(&config.data_dir).unwrap_or_else(|_| config.data_dir.clone());
    let is_outside = |file: &std::path::PathBuf| std::path::absolute(file).is_ok_and(|file| !file.starts_with(&folder));
    backup::Parts {
        store: store.clone(),
        clock: clock.clone(),
        random: random.clone(),
        budget: budget.clone(),
        server: config.server_name.to_string(),
        media: folder.join(MEDIA),
        scratch: folder.join(SCRATCH),
        config_outside: config.file.clone().filter(is_outside),
        folder,
    }
}

fn notice_options(config: &Config) -> NoticeOptions {
    let config::Notices { user, name, avatar, room_name, join } = config.notices.clone();
    NoticeOptions { user, name, avatar, room_name, join }
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
    options.friends = friends(config)?;
    options.notaries = settings.notaries.clone();
    options.allow_private = settings.allow_private_addresses;
    options.enabled = settings.enabled;
    if let Some(file) = &settings.extra_ca_file {
        let wrong = |error| failed(format_args!("federation.extra_ca_file: {}", file.display()), error);
        let pem = roots(file).map_err(wrong)?;
        options.extra_ca_pem = Some(pem);
    }
    Remote::new(options, clock.clone(), random.clone(), budget, store.clone())
        .map_err(|error| failed("federation.extra_ca_file", error))
}

/// Roots in PEM, out of a file that the config names.
pub fn roots(file: &Path) -> std::io::Result<Vec<u8>> {
    read_small(file, ROOTS_BYTES_MAX)
}

/// The roots of servers that have an authority of their own.
pub fn friends(config: &Config) -> Result<Vec<(String, Vec<u8>)>, Failed> {
    let read = |(name, file): &(String, std::path::PathBuf)| {
        let wrong = |error| failed(format_args!("federation.overrides: the root of {name}: {}", file.display()), error);
        Ok((name.clone(), roots(file).map_err(wrong)?))
    };
    config.federation.roots.iter().map(read).collect()
}

/// Makes a new signing key for a stopped server, on purpose. Answers the id of the key.
pub fn new_signing_key(config: &Config) -> Result<String, Failed> {
    let folder = &config.data_dir;
    check_owner(folder)?;
    // The database is held open meanwhile, so that no server starts with the old key.
    let (store, _grant) = open_store(folder, &Budget::from_profile(profile(config)?))?;
    let made = folder::new_signing_key(folder, &Clock::real(), &Random::os());
    store.close_blocking();
    Ok(made?.id().to_owned())
}

/// Makes an empty database for a server that has lost its own, on purpose.
pub fn new_database(config: &Config) -> Result<(), Failed> {
    check_owner(&config.data_dir)?;
    let (store, _grant) = open_store(&config.data_dir, &Budget::from_profile(profile(config)?))?;
    store.close_blocking();
    Ok(())
}

/// Refuses to start with another name than the accounts have.
fn check_name(store: &Store, config: &Config) -> Result<(), Failed> {
    let oldest = match oldest_account(store) {
        Ok(oldest) => oldest,
        // A damaged page is no reason to stop the server: the rest can be used.
        Err(error) => {
            tracing::error!(
                "the accounts cannot be read, so it is unknown whether they belong to {}: {error}",
                config.server_name
            );
            return Ok(());
        }
    };
    let (Some(user_id), now) = (oldest, &config.server_name) else { return Ok(()) };
    let was = user_id.server_name();
    if was == now {
        return Ok(());
    }
    let folder = config.data_dir.display();
    Err(Failed(format!(
        "the server name is {now}, but the data in {folder} is {was}'s: it has accounts such as {user_id}, and a server cannot be \
         renamed. Set server_name = \"{was}\" again, or begin a new server with an empty data folder"
    )))
}

fn oldest_account(store: &Store) -> store::Result<Option<OwnedUserId>> {
    use crate::store::tables::user;
    let (read, mut oldest) = (store.read()?, None);
    user::accounts_after(&read, None, &mut |num, _| {
        oldest = Some(num);
        Ok(std::ops::ControlFlow::Break(()))
    })?;
    let Some(num) = oldest else { return Ok(None) };
    Ok(OwnedUserId::try_from(user::id_of(&read, num)?).ok())
}

/// Opens the database of a stopped server as its start would, and refuses what that refuses.
pub fn check_start(config: &Config) -> Result<(), Failed> {
    folder::check_owner(&config.data_dir)?;
    let (store, _grant) = open_store(&config.data_dir, &Budget::from_profile(profile(config)?))?;
    let checked = check_name(&store, config);
    store.close_blocking();
    checked
}

/// Reads everything in the database of a stopped server. `say` is called for each table. Changes nothing in the file.
pub fn survey(config: &Config, say: &mut dyn FnMut(&TableFound)) -> Result<Survey, Failed> {
    let path = config.data_dir.join(DATABASE);
    folder::check_owner(&config.data_dir)?;
    let options = store_options(&path, &Budget::from_profile(profile(config)?));
    Store::survey(options, say).map_err(|error| failed(path.display(), error))
}

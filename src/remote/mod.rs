//! Talking to other servers.
//!
//! Owns: finding other servers, connections to them, signed requests, their signing keys, and their backoff; requests to
//! what is no homeserver. Never: rooms, users, or the meaning of an answer. Nothing here trusts a peer with memory: every answer has a cap in bytes,
//! on the `outbound` account, and a time.
//!
//! Read `request.rs` first (a signed request with a small answer), then `stream.rs` (a large one), `reach.rs` (one
//! attempt to reach a server), `connect.rs`, `resolve.rs` (with `lookup.rs`, `dns.rs`, `well_known.rs`), `backoff.rs`,
//! `outage.rs`, `keys.rs`, `circle.rs`, `barred.rs`, `examine.rs`. `json_stream.rs` cuts a large answer into events; `web.rs` asks any URL.

mod address;
mod backoff;
mod barred;
mod circle;
mod connect;
mod contact;
pub mod json_stream;
mod keys;
mod outage;
mod reach;
pub mod scanner;
mod request;
mod resolve;
mod stream;
mod eviction;
mod examine;
#[cfg(test)]
pub(crate) mod tests;
mod dns;
mod lookup;
pub mod service;
pub mod unified_push;
pub mod web;
mod well_known;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ruma::{OwnedServerName, ServerName};
use tokio::sync::{Notify, Semaphore};

pub use self::address::is_private;
pub use self::backoff::{Backoff, Reached, pause_ms};
pub use self::barred::{Barred, By, Deed, Named};
pub use self::connect::Limits;
pub use self::contact::Whence;
pub use self::examine::{MYSELF, Step, Verdict};
pub use self::keys::{Keys, Known};
pub use self::request::{Answer, ENCODED, Failed, Options, Urgency, encode};
pub use self::stream::{Body, StreamLimits};
pub use crate::store::tables::server::Standing;
use crate::{
    base::{Clock, Random, Worker},
    budget::{Account, Budget},
    matrix::sign,
    store::Store,
};

/// How Snug names itself to other servers.
pub const USER_AGENT: &str = concat!("Snug/", env!("CARGO_PKG_VERSION"));
/// How often idle connections are closed and backoffs written down.
const TIDY: Duration = Duration::from_secs(30);

/// The values that `serve` passes in.
pub struct RemoteOptions {
    pub server_name: OwnedServerName,
    pub key: Arc<sign::Key>,
    /// `(server name, "address:port" or a delegated server name)`: for closed networks without DNS.
    pub overrides: Vec<(String, String)>,
    /// Roots of servers with an authority of their own, in PEM, by the servers' names.
    pub friends: Vec<(String, Vec<u8>)>,
    /// Certificates of a closed network's authority, trusted besides the usual roots.
    pub extra_ca_pem: Option<Vec<u8>>,
    /// Asked for the keys of servers that cannot be asked themselves.
    pub notaries: Vec<OwnedServerName>,
    pub limits: Limits,
    /// Bounds the DNS cache and the delegations kept: about 1 KiB an entry.
    pub names_max: usize,
    /// Whether requests may go to addresses of a home or company network.
    pub allow_private: bool,
    /// No server is asked when this is off.
    pub enabled: bool,
}

impl RemoteOptions {
    /// An ordinary server with the profile's smallest bounds.
    pub fn new(server_name: OwnedServerName, key: Arc<sign::Key>) -> RemoteOptions {
        RemoteOptions {
            server_name,
            key,
            overrides: Vec::new(),
            friends: Vec::new(),
            extra_ca_pem: None,
            notaries: Vec::new(),
            limits: Limits { connections_max: 12, per_host_max: 3 },
            names_max: 256,
            allow_private: true,
            enabled: true,
        }
    }
}

impl RemoteOptions {
    /// The host that a server's certificate is for: its name, or the one that an override leads to.
    fn shown_by(&self, server: &str) -> String {
        let delegate = self.overrides.iter().find(|(name, to)| {
            let is_address = to.parse::<std::net::SocketAddr>().is_ok() || to.parse::<std::net::IpAddr>().is_ok();
            name.eq_ignore_ascii_case(server) && !is_address
        });
        let name = delegate.map_or(server, |(_, to)| to);
        let host = <&ServerName>::try_from(name).map_or(name, |name| name.host());
        host.trim_start_matches('[').trim_end_matches(']').to_owned()
    }
}

/// The way to other servers. Cheap to clone.
#[derive(Clone)]
pub struct Remote(Arc<Inner>);

struct Inner {
    server_name: OwnedServerName,
    key: Arc<sign::Key>,
    resolver: resolve::Resolver,
    dialer: connect::Dialer,
    web: web::Web,
    services: service::Services,
    /// Of one probe of the Internet.
    probing: Arc<Semaphore>,
    pool: connect::Pool,
    account: Account,
    backoff: Backoff,
    barred: Arc<Barred>,
    circle: Arc<circle::Circle>,
    keys: keys::Book,
    store: Store,
    /// When the stored data about other servers is to be swept.
    due: Arc<eviction::Due>,
    notaries: Vec<OwnedServerName>,
    enabled: bool,
    clock: Clock,
    stopped: AtomicBool,
    stop: Notify,
}

impl Remote {
    /// An error is a sentence about the settings (the CA file).
    pub fn new(
        options: RemoteOptions,
        clock: Clock,
        random: Random,
        budget: &Budget,
        store: Store,
    ) -> Result<Remote, String> {
        let roots = connect::roots(options.extra_ca_pem.as_deref())?;
        let dialer = connect::Dialer::new(roots, budget.account("outbound"), clock.clone());
        let friends: Vec<_> = options.friends.iter().map(|(name, pem)| (options.shown_by(name), pem.clone())).collect();
        let dialer = dialer.with_friends(&friends)?;
        let dns = Arc::new(dns::Dns::new(options.names_max as u64));
        let web = web::Web::new(dns.clone(), dialer.clone(), clock.clone());
        let allow_private = options.allow_private;
        let world = well_known::World { dns, web: web.clone(), allow_private, random: random.clone() };
        Ok(Remote::with_lookup(Box::new(world), options, dialer, web, (clock, random), store, budget))
    }

    fn with_lookup(
        lookup: Box<dyn lookup::Lookup>,
        options: RemoteOptions,
        dialer: connect::Dialer,
        web: web::Web,
        (clock, random): (Clock, Random),
        store: Store,
        budget: &Budget,
    ) -> Remote {
        let account = budget.account("outbound");
        let resolver =
            resolve::Resolver::new(lookup, &options.overrides, options.names_max, clock.clone(), random.clone())
                .allowing_private(options.allow_private);
        let due = Arc::<eviction::Due>::default();
        let circle = Arc::new(circle::Circle::new(store.clone(), clock.clone()));
        let backoff = Backoff::new(store.clone(), clock.clone(), random, due.clone(), circle.clone());
        let barred = Arc::new(Barred::new(store.clone(), clock.clone(), options.server_name.clone()));
        Remote(Arc::new(Inner {
            pool: connect::Pool::new(account.clone(), options.limits, clock.clone()),
            services: service::Services::new(web.clone(), clock.clone()),
            web: web.during_outages_of(backoff.clone()),
            dialer,
            probing: Arc::new(Semaphore::new(1)),
            backoff,
            barred,
            circle,
            keys: keys::Book::new(&options.key, budget.account("signing_keys"), store.clone()),
            store,
            due,
            notaries: options.notaries,
            enabled: options.enabled,
            server_name: options.server_name,
            key: options.key,
            resolver,
            account,
            clock,
            stopped: AtomicBool::new(false),
            stop: Notify::new(),
        }))
    }

    pub fn server_name(&self) -> &ServerName {
        &self.0.server_name
    }

    /// This server's own signing key.
    pub fn key(&self) -> &sign::Key {
        &self.0.key
    }

    /// Other servers' signing keys.
    pub fn keys(&self) -> Keys {
        Keys::new(self.clone())
    }

    /// The backoff of other servers.
    pub fn backoff(&self) -> &Backoff {
        &self.0.backoff
    }

    /// With whom this server has no dealings.
    pub fn barred(&self) -> &Arc<Barred> {
        &self.0.barred
    }

    /// Where a server is reached, by the specification's steps: the host its certificate must be for, and its addresses.
    pub async fn locate(&self, server: &ServerName) -> Result<(String, Vec<std::net::SocketAddr>), Failed> {
        let contact = contact::Contact::default();
        let target = self.0.resolver.resolve(server, self.owner_of(server).await, &contact).await?;
        Ok((target.host, target.addresses))
    }

    /// Requests to any URL.
    pub fn web(&self) -> &web::Web {
        &self.0.web
    }

    /// Application services.
    pub fn app_services(&self) -> &service::Services {
        &self.0.services
    }

    /// Whether this server talks to other servers at all.
    pub fn is_enabled(&self) -> bool {
        self.0.enabled
    }

    pub fn is_me(&self, server: &ServerName) -> bool {
        *server == *self.0.server_name
    }

    /// Until [`Remote::stop`], now and then closes idle connections, writes backoffs down, renews keys that are in use
    /// and forgets servers long not seen.
    pub async fn run(&self, worker: &Worker) {
        while !self.0.stopped.load(Ordering::Acquire) {
            worker.idle_for(TIDY);
            tokio::select! {
                () = self.0.clock.sleep(TIDY) => {}
                () = self.0.stop.notified() => {}
            }
            self.0.pool.tidy();
            worker.works_on("writing down which servers fail");
            if let Err(error) = self.0.backoff.flush().await {
                tracing::warn!(%error, "the failures of other servers could not be stored");
                worker.failed(error);
            }
            let keys = self.keys();
            worker.works_on("renewing signing keys");
            tokio::select! {
                renewed = keys.renew() => match renewed {
                    Ok(servers) => worker.done(servers),
                    Err(error) => {
                        tracing::warn!(%error, "signing keys could not be renewed");
                        worker.failed(error);
                    }
                },
                () = self.0.stop.notified() => {}
            }
            if !self.0.stopped.load(Ordering::Acquire) {
                self.sweep_if_due(worker).await;
            }
        }
    }

    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::Release);
        self.0.stop.notify_one();
    }
}

//! The operator's endpoints: those behind `snug user`, `snug rooms`, `snug media`, `snug reports`, `snug moderation`, `snug notice`,
//! `snug backup`, `snug budget` and `snug workers`, and the pages for a browser.
//!
//! The commands speak HTTP with JSON over a socket in the data folder. A process that may open the socket may do
//! everything. The pages are on the ordinary ports; the one that makes the first account needs the code in the log.
//! Read `users.rs`, `rooms.rs`, `media.rs`, `reports.rs`, `moderation.rs`, `notices.rs`, `budget.rs`, `workers.rs`, `findings.rs`, `metrics.rs` with `openmetrics.rs`,
//! `reload.rs`, `addresses.rs`, `certificates.rs`, then `pages/`.

mod addresses;
mod backup;
mod budget;
mod certificates;
mod error;
mod examine;
mod findings;
mod media;
mod metrics;
mod moderation;
mod notices;
mod openmetrics;
mod pages;
mod purge;
mod reload;
mod reports;
mod rooms;
mod servers;
mod services;
mod users;
mod workers;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};

use serde::Serialize;

use crate::backup::Backups;
use crate::base::{Clock, Live, Random, Workers};
use crate::budget::Budget;
use crate::certificates::Certificates;
use crate::deliver::Sender;
use crate::deliver::services::ServiceSender;
use crate::flow::Notices;
use crate::http::tls::Certificate;
use crate::http::{ErrorResponse, Response, Router, StatusCode, Tally};
use crate::media::Media;
use crate::remote::Remote;
use crate::room::Rooms;
use crate::user::Users;

pub use addresses::{Addresses, listen_line};
pub use findings::{Finding, Severity, Source, findings};
pub use metrics::{Gauges, HEALTH_PATH, METRICS_PATH, MetricsOptions};
pub use openmetrics::Text as MetricsText;
pub use pages::{Desk, FIRST_PATH};
pub use reload::{Reload, Reloaded, Setting};
pub use services::{Registered, Registrations, Reloading};

/// Rows of one answer. The command line asks for the following pages.
const PAGE_ROWS: usize = 100;
/// Memory for one page: its rows and its text.
const PAGE_BYTES: u64 = 32 * 1024;

/// The settings that the operator's pages show and keep; they change without a restart.
#[derive(Debug, Clone, Default)]
pub struct AdminSettings {
    /// Where apps reach this server from outside, as the config says it.
    pub public_url: Option<String>,
    /// Whether people may make accounts by themselves, with a token or without.
    pub is_registration_open: bool,
    /// Who may watch the server.
    pub metrics: MetricsOptions,
}

/// The parts that the handlers use.
pub struct Admin {
    pub users: Users,
    pub rooms: Rooms,
    pub media: Media,
    pub notices: Notices,
    pub backups: Backups,
    pub sender: Sender,
    pub remote: Remote,
    pub told: ServiceSender,
    pub registrations: Arc<dyn Registrations>,
    pub budget: Budget,
    pub clock: Clock,
    pub random: Random,
    pub workers: Workers,
    pub settings: Live<AdminSettings>,
    /// The database's file, beside which its journal is.
    pub database: PathBuf,
    /// The administrators' page.
    pub page: Arc<Desk>,
    /// Set once the ports are open.
    pub addresses: Arc<OnceLock<Addresses>>,
    /// What the parts that are not named here have to say of their faults.
    pub sources: Vec<Source>,
    /// What they have to tell those who watch the server.
    pub gauges: Vec<Gauges>,
    /// How often each route was asked.
    pub tally: Tally,
    /// The last lines of the log, oldest first.
    pub log: fn() -> Vec<String>,
    /// Reads the settings again; set once the server is whole.
    pub reload: OnceLock<Weak<dyn Reload>>,
    /// One change of the denied servers at a time: each reads the list and writes it.
    pub denying: tokio::sync::Mutex<()>,
    /// What the server gets or makes by itself.
    pub certificates: Certificates,
    /// What is shown, and to whom: "The certificate for apps".
    pub shown: Vec<(&'static str, Arc<Certificate>)>,
}

/// The routes of the commands, for the socket in the data folder.
pub fn routes(router: &mut Router, admin: &Arc<Admin>) {
    let mut routes = router.surface(admin);
    routes
        .get("/users", users::list)
        .post("/users", users::add)
        .get("/users/{user}", users::show)
        .post("/users/{user}/password", users::password)
        .post("/users/{user}/link", users::link)
        .post("/users/{user}/admin", users::admin)
        .post("/users/{user}/restrict", users::restrict)
        .get("/users/{user}/limit", users::limit)
        .post("/users/{user}/limit", users::set_limit)
        .get("/users/{user}/quota", users::quota)
        .post("/users/{user}/quota", users::set_quota)
        .post("/users/{user}/token", users::token)
        .post("/users/{user}/deactivate", users::deactivate)
        .post("/notices", notices::one)
        .post("/notices/all", notices::all)
        .get("/rooms", rooms::list)
        .post("/rooms/{room}/allow", rooms::allow)
        .post("/rooms/{room}/cancel", rooms::cancel)
        .post("/rooms/{room}/purge", purge::room)
        .get("/purge", purge::list)
        .post("/purge/left", purge::left)
        .post("/purge/history", purge::history)
        .post("/purge/space", purge::space)
        .post("/purge/devices", purge::devices)
        .get("/disk", purge::disk)
        .get("/reports", reports::list)
        .post("/reports/{number}/remove", reports::remove)
        .get("/servers/denied", servers::denied)
        .post("/servers/{server}/deny", servers::set)
        .get("/moderation", moderation::lists)
        .get("/moderation/hits", moderation::hits)
        .get("/moderation/rules/{list}", moderation::rules)
        .get("/media", media::usage)
        .post("/media/remove-remote", media::remove_remote)
        .post("/media/{server}/{media_id}/remove", media::remove)
        .get("/appservices", services::list)
        .post("/appservices/reload", services::reload)
        .get("/backup", backup::status)
        .post("/backup", backup::make)
        .post("/backup/cancel", backup::cancel)
        .get("/budget", budget::table)
        .get("/workers", workers::list)
        .get("/findings", findings::list)
        .post("/reload", reload::reload)
        .post("/examine", examine::examine)
        .get("/certificates", certificates::show)
        .get("/server", addresses::server);
}

/// The routes of the pages, for the ordinary ports.
pub fn page_routes(router: &mut Router, admin: &Arc<Admin>) {
    router.surface(admin).get(METRICS_PATH, metrics::metrics).get(HEALTH_PATH, metrics::health);
    pages::routes(router, admin);
    certificate_routes(router, admin);
}

/// The routes of addresses that speak plain HTTP beside those that do not: what must be there without a certificate. A
/// browser that asks for anything else is led to HTTPS.
pub fn plain_routes(router: &mut Router, admin: &Arc<Admin>) {
    certificate_routes(router, admin);
    router.surface(admin).get("/", certificates::to_https).get("/{*path}", certificates::to_https);
}

fn certificate_routes(router: &mut Router, admin: &Arc<Admin>) {
    use pages::certificate;
    let file = |kind: &str| format!("{}{kind}", certificate::PATH);
    router
        .surface(admin)
        .get("/.well-known/acme-challenge/{token}", certificates::challenge)
        .get(&file(""), certificate::show)
        .get(&file(".pem"), certificate::pem)
        .get(&file(".crt"), certificate::der)
        .get(&file(".mobileconfig"), certificate::profile);
}

/// The answer with a page of rows. Its grant is held until it is sent.
async fn page(admin: &Admin, value: &impl Serialize) -> Result<Response, ErrorResponse> {
    let grant = admin.budget.account("admin").take(PAGE_BYTES).await?;
    let text = serde_json::to_vec(value).map_err(ErrorResponse::internal)?;
    Ok(Response::charged(StatusCode::OK, "application/json", text, grant))
}

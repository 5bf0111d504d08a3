//! `GET /_snug/metrics` and `GET /_snug/health`: for those who watch the server.
//!
//! Metrics say how much is done and by what, never for whom: no name of a user, room or server stands in them. They are
//! given to callers on this machine, to networks that the settings name, and to whoever has the token; a request that
//! came through a proxy is no request of the machine that the proxy runs on, so it needs the token. Health is for
//! everybody, in one word and one sentence; the findings are for those who may read the metrics.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::findings::{Finding, Severity, findings};
use super::openmetrics::{CONTENT_TYPE, Text};
use super::{Admin, error::Error};
use crate::base::{Doing, written};
use crate::budget::{Granted, meter};
use crate::http::{BOUNDS_MS, CLASSES, ErrorResponse, Network, Rate, Request, Response, StatusCode};

pub const METRICS_PATH: &str = "/_snug/metrics";
pub const HEALTH_PATH: &str = "/_snug/health";

/// Looks at the health, by address. A monitor asks a few times a minute, and a home may have several.
const HEALTH: Rate = Rate { name: "health", per_second: 1.0, burst: 60.0 };
/// Tokens tried, by address: each may be a guess.
const TOKENS: Rate = Rate { name: "metrics tokens", per_second: 1.0, burst: 20.0 };
/// What a request has when a proxy has passed it on.
const PASSED_ON: [&str; 4] = ["x-forwarded-for", "forwarded", "x-real-ip", "via"];
/// Memory of an answer: a piece of it, and its list of routes (about 400, with 100 bytes each).
const ANSWER_BYTES: u64 = 96 * 1024;

/// Who may read the metrics.
#[derive(Debug, Clone, Default)]
pub struct MetricsOptions {
    pub enabled: bool,
    pub allow: Vec<Network>,
    /// Read from anywhere with `Authorization: Bearer`.
    pub token: Option<String>,
}

/// What a part that is not named here has to tell. It writes whole families.
pub type Gauges = Box<dyn Fn(&mut Text) + Send + Sync>;

/// `GET /_snug/metrics`: everything that is counted, as OpenMetrics text. 403 for whoever may not read it, 404 when it is
/// switched off. Bounded by the table of routes, the accounts and the workers; streamed.
pub async fn metrics(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    if !admin.settings.get().metrics.enabled {
        return Err(ErrorResponse::unrecognized().into());
    }
    if !may_read(&admin, &request)? {
        let why = "Metrics are given to this machine, and to those whom [metrics] in the config file names";
        return Err(ErrorResponse::new(StatusCode::FORBIDDEN, "M_FORBIDDEN", why).into());
    }
    let grant = admin.budget.account("response_bodies").take(ANSWER_BYTES).await?;
    let found = findings(&admin).await;
    let chunks = written(move |pen| async move {
        let mut text = Text::default();
        write_server(&admin, &mut text);
        write_findings(&found, &mut text);
        for gauges in &admin.gauges {
            gauges(&mut text);
        }
        write_accounts(&admin, &mut text);
        write_workers(&admin, &mut text);
        let flush = |text: &mut Text| {
            let bytes = std::mem::take(&mut text.out).into_bytes();
            pen.with(|out| out.extend_from_slice(&bytes));
        };
        flush(&mut text);
        pen.pause().await;
        let routes = admin.tally.list();
        text.counter("snug_http_requests", "Answers by route and class of status");
        for (template, method, counts) in &routes {
            for (class, count) in CLASSES.iter().zip(counts.classes()).filter(|(_, count)| *count > 0) {
                text.total(&[("method", method), ("route", template), ("status", class)], count);
            }
            flush(&mut text);
            pen.pause().await;
        }
        text.histogram(
            "snug_http_request_seconds",
            "Time until the head of an answer; a sync that waits for news takes as long as it waits",
        );
        for (template, method, counts) in &routes {
            let (within, seconds) = counts.times();
            text.buckets(&[("method", method), ("route", template)], &BOUNDS_MS, &within, seconds);
            flush(&mut text);
            pen.pause().await;
        }
        text.out.push_str("# EOF\n");
        flush(&mut text);
        Ok(())
    });
    Ok(Response::stream(grant, chunks).header("content-type", CONTENT_TYPE))
}

/// `GET /_snug/health`: 200 while the server can do what it is for, else 503; a line of text, and the findings below it
/// for those who may read them.
pub async fn health(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    request.limit(&HEALTH)?;
    let found = findings(&admin).await;
    let worst = found.first().map(|finding| finding.severity);
    let (status, line) = match worst {
        Some(Severity::Down) => {
            (StatusCode::SERVICE_UNAVAILABLE, "down: this server cannot store anything at the moment")
        }
        Some(Severity::Warning) => (StatusCode::OK, "ok: this server works; its owner should look at something"),
        _ => (StatusCode::OK, "ok: this server works"),
    };
    let mut text = format!("{line}\n");
    if admin.settings.get().metrics.enabled && may_read(&admin, &request)? {
        for Finding { severity, about, sentence } in &found {
            let severity = word(*severity);
            text.push_str(&format!("{severity}: {about}: {sentence}\n"));
        }
    }
    let answer = Response::bytes(status, "text/plain; charset=utf-8", text);
    Ok(answer.header("cache-control", "no-store"))
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Note => "note",
        Severity::Warning => "warning",
        Severity::Down => "down",
    }
}

/// Whether the caller may see what is inside. An error when it tried too many tokens.
fn may_read(admin: &Admin, request: &Request) -> Result<bool, ErrorResponse> {
    let MetricsOptions { allow, token, .. } = &admin.settings.get().metrics;
    if let (Some(token), Some(given)) = (token, request.header("authorization")) {
        request.limit(&TOKENS)?;
        let given = given.strip_prefix("Bearer ").unwrap_or_default();
        // Hashes: how long a comparison takes says nothing about the token.
        return Ok(Sha256::digest(given) == Sha256::digest(token));
    }
    let is_passed_on = PASSED_ON.iter().any(|name| request.headers().contains_key(*name));
    let ip = request.peer().ip;
    Ok(!is_passed_on && allow.iter().any(|network| network.contains(ip)))
}

fn write_server(admin: &Admin, text: &mut Text) {
    let (resident, profile) = (meter::resident(), admin.budget.profile());
    text.gauge("snug_build_info", "The version, and the memory profile in use")
        .is(&[("version", env!("CARGO_PKG_VERSION")), ("profile", &profile.name)], 1);
    text.gauge("process_resident_memory_bytes", "Resident memory").is(&[], resident.now_bytes);
    text.gauge("snug_resident_memory_high_water_bytes", "The most resident memory so far")
        .is(&[], resident.high_water_bytes);
    text.gauge("snug_memory_limit_bytes", "What the profile lets the server take").is(&[], profile.total);
    text.gauge("snug_heap_bytes", "What is allocated").is(&[], meter::live_bytes());
    if let Some(bytes) = Granted::now().limit_bytes() {
        text.gauge("snug_memory_granted_bytes", "What the kernel grants this process").is(&[], bytes);
    }
    if let Some(bytes) = meter::disk_written_bytes() {
        text.counter("snug_disk_written_bytes", "Bytes that this process had written to the disk").total(&[], bytes);
    }
    text.gauge("snug_joins_running", "Joins of rooms under way").is(&[], admin.rooms.joins().len());
    let (sent, received) = admin.rooms.appended();
    text.counter("snug_events_sent", "Events of people here").total(&[], sent);
    text.counter("snug_events_received", "Events of other servers that were stored").total(&[], received);
    text.gauge("snug_servers_lagging", "Servers that do not have everything yet").is(&[], admin.sender.lagging());
}

fn write_findings(found: &[Finding], text: &mut Text) {
    text.gauge("snug_findings", "What is not all right, by what it is about");
    for (at, finding) in found.iter().enumerate() {
        let same = |other: &&Finding| other.about == finding.about && other.severity == finding.severity;
        // Each pair of labels once.
        if found[..at].iter().find(same).is_none() {
            let count = found.iter().filter(same).count();
            text.is(&[("about", finding.about), ("severity", word(finding.severity))], count);
        }
    }
}

fn write_accounts(admin: &Admin, text: &mut Text) {
    let accounts = admin.budget.accounts();
    text.gauge("snug_account_used_bytes", "What is in use of a memory or disk account");
    for account in accounts {
        text.is(&[("account", account.name())], account.used());
    }
    text.gauge("snug_account_limit_bytes", "What the account has");
    for account in accounts {
        text.is(&[("account", account.name())], account.limit());
    }
    text.gauge("snug_account_high_water_bytes", "The most that was ever in use of it");
    for account in accounts {
        text.is(&[("account", account.name())], account.high_water());
    }
    text.counter("snug_account_refusals", "How often somebody got nothing of it");
    for account in accounts {
        text.total(&[("account", account.name())], account.refusals());
    }
}

fn write_workers(admin: &Admin, text: &mut Text) {
    let workers = admin.workers.list();
    text.gauge("snug_worker_busy", "Whether a background worker has something to do");
    for worker in &workers {
        text.is(&[("worker", worker.name)], u8::from(matches!(worker.doing, Doing::Working(_))));
    }
    text.counter("snug_worker_done", "Units of work: of the federation sender a transaction that another server took");
    for worker in &workers {
        text.total(&[("worker", worker.name)], worker.done);
    }
    text.gauge("snug_worker_failures", "Errors since anything was last done");
    for worker in &workers {
        text.is(&[("worker", worker.name)], worker.failures);
    }
    text.counter("snug_worker_restarts", "Restarts after a fault of the program");
    for worker in &workers {
        text.total(&[("worker", worker.name)], worker.restarts);
    }
}

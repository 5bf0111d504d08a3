//! Home: how the server is, and what it takes.

use std::cmp::Reverse;
use std::path::Path;
use std::sync::Arc;

use askama::Template;

use super::frame::{Frame, Pieces, Visit, coded, sentence};
use super::share::Share;
use super::{address_for_apps, days, is_only_here, qr};
use crate::admin::findings::{self, Severity};
use crate::admin::{Admin, error::Error};
use crate::base::{blocking, sort_few_by};
use crate::budget::{Card, Granted, human, meter};
use crate::http::{ErrorResponse, Response};

/// Findings on the page, the worst first; each is a few hundred characters.
const FINDINGS_SHOWN: usize = 20;

#[derive(Template)]
#[template(path = "home.html")]
struct Home {
    frame: Frame,
    findings: String,
    memory: String,
    accounts: String,
    has_refused: bool,
    disk: String,
    days: String,
    /// Of this server, for apps.
    address: String,
    is_only_here: bool,
    qr: String,
}

/// `GET /`
pub async fn show(visit: Visit) -> Result<Response, Error> {
    let frame = visit.frame("home", "Home").live("home");
    let (admin, address) = (&visit.admin, address_for_apps(&visit.admin, &visit.request).url);
    let page = Home {
        frame,
        findings: findings(admin).await?,
        memory: memory(admin)?,
        accounts: accounts(admin)?,
        has_refused: admin.budget.accounts().iter().any(|account| account.refusals() > 0),
        disk: disk(admin).await?,
        days: days::pictures(admin).await?,
        is_only_here: is_only_here(&address),
        qr: qr::svg(&address, "The address as a QR code"),
        address,
    };
    visit.page(&page).await
}

/// What changes while somebody looks.
pub async fn pieces(admin: &Arc<Admin>) -> Result<Pieces, Error> {
    Ok(Pieces::from([
        ("findings", findings(admin).await?),
        ("memory", memory(admin)?),
        ("accounts", accounts(admin)?),
        ("disk", disk(admin).await?),
    ]))
}

#[derive(Template)]
#[template(path = "findings.html")]
struct Findings<'a> {
    root: &'a str,
    /// Of the sign: nothing when all is well.
    class: &'static str,
    headline: String,
    server: String,
    rows: Vec<FindingRow>,
}

struct FindingRow {
    class: &'static str,
    /// HTML.
    sentence: String,
    /// Where more of it is: below the root, and what that is called.
    more: Option<(&'static str, &'static str)>,
}

/// The page of this page's own that has to do with a finding.
fn more(about: &str) -> Option<(&'static str, &'static str)> {
    match about {
        "reports" => Some(("reports/", "Reports")),
        "backup" | "restored" => Some(("backups/", "Backups")),
        "servers" | "internet" => Some(("servers/", "Servers")),
        "workers" => Some(("workers", "Workers")),
        "program" | "database" => Some(("log", "Log")),
        _ => None,
    }
}

fn class(severity: Severity) -> &'static str {
    match severity {
        Severity::Note => "fine",
        Severity::Warning => "look",
        Severity::Down => "wrong",
    }
}

/// Whether everything is all right, and a sentence for each thing that is not.
async fn findings(admin: &Arc<Admin>) -> Result<String, Error> {
    let found = findings::findings(admin).await;
    let worst = found.iter().map(|finding| finding.severity).max();
    let to_do = found.iter().filter(|finding| finding.severity > Severity::Note).count();
    let headline = match (worst, to_do) {
        (Some(Severity::Down), _) => "Something is wrong".to_owned(),
        (_, 0) => "Everything is all right".to_owned(),
        (_, 1) => "One thing needs a look".to_owned(),
        (_, many) => format!("{many} things need a look"),
    };
    let rows = found.into_iter().take(FINDINGS_SHOWN);
    let page = Findings {
        root: admin.page.root(),
        class: worst.filter(|worst| *worst > Severity::Note).map_or("", class),
        headline,
        server: admin.users.server().to_string(),
        rows: rows
            .map(|finding| FindingRow {
                class: class(finding.severity),
                sentence: coded(&sentence(&finding.sentence)),
                more: more(finding.about),
            })
            .collect(),
    };
    Ok(page.render().map_err(ErrorResponse::internal)?)
}

#[derive(Template)]
#[template(path = "memory.html")]
struct Memory {
    profile: String,
    total: String,
    now: Share,
    high: Share,
    warning: Option<String>,
    /// More than there should be.
    is_over: bool,
}

fn memory(admin: &Admin) -> Result<String, Error> {
    let (profile, resident) = (admin.budget.profile(), meter::resident());
    let page = Memory {
        profile: profile.name.clone(),
        total: human(profile.total),
        now: Share::new(resident.now_bytes, profile.total),
        high: Share::new(resident.high_water_bytes, profile.total),
        is_over: resident.now_bytes > profile.total,
        warning: Granted::now().warning(profile),
    };
    Ok(page.render().map_err(ErrorResponse::internal)?)
}

#[derive(Template)]
#[template(path = "accounts.html")]
struct Accounts {
    rows: Vec<Row>,
}

struct Row {
    name: String,
    limit: String,
    used: Share,
    high: Share,
    refusals: u64,
}

/// The accounts, those that refused something first, then the fullest.
fn accounts(admin: &Admin) -> Result<String, Error> {
    let mut accounts: Vec<_> = admin.budget.accounts().iter().filter(|account| account.limit() > 0).collect();
    let fullness = |used: u64, limit: u64| u128::from(used) * 1000 / u128::from(limit.max(1));
    sort_few_by(&mut accounts, |account| {
        (account.refusals() == 0, Reverse(fullness(account.high_water(), account.limit())))
    });
    let rows = accounts.into_iter().map(|account| Row {
        name: account.name().replace('_', " "),
        limit: human(account.limit()),
        used: Share::new(account.used(), account.limit()),
        high: Share::new(account.high_water(), account.limit()),
        refusals: account.refusals(),
    });
    Ok(Accounts { rows: rows.collect() }.render().map_err(ErrorResponse::internal)?)
}

#[derive(Template)]
#[template(path = "disk.html")]
struct Disk {
    total: String,
    free: Share,
    database: Share,
    media: Share,
    other: Share,
    /// Where the parts end in the picture.
    until_media: u32,
    until_other: u32,
}

async fn disk(admin: &Admin) -> Result<String, Error> {
    let media = admin.media.usage().await?.disk_bytes;
    let database = admin.database.clone();
    let (card, database) = blocking(move || {
        let journal = database.with_extension("journal");
        let card = database.parent().map(Card::at).transpose();
        (card, file_bytes(&database) + file_bytes(&journal))
    })
    .await;
    let card = card.map_err(ErrorResponse::internal)?.unwrap_or(Card { total_bytes: 0, free_bytes: 0 });
    let total = card.total_bytes.max(1);
    // What a file system keeps for root counts as taken by others.
    let other = total.saturating_sub(card.free_bytes).saturating_sub(database).saturating_sub(media);
    let page = Disk {
        total: human(card.total_bytes),
        free: Share::new(card.free_bytes, total),
        database: Share::new(database, total),
        media: Share::new(media, total),
        other: Share::new(other, total),
        until_media: Share::new(database + media, total).width(),
        until_other: Share::new(database + media + other, total).width(),
    };
    Ok(page.render().map_err(ErrorResponse::internal)?)
}

fn file_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |file| file.len())
}

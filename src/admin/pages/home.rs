//! Home: how the server is, and what it takes.

use std::cmp::Reverse;
use std::path::Path;
use std::sync::Arc;

use askama::Template;

use super::frame::{Frame, Visit};
use super::live::Pieces;
use super::share::Share;
use crate::admin::{Admin, error::Error};
use crate::base::blocking;
use crate::budget::{Card, Granted, human, meter};
use crate::http::{ErrorResponse, Response};

#[derive(Template)]
#[template(path = "home.html")]
struct Home {
    frame: Frame,
    memory: String,
    accounts: String,
    has_refused: bool,
    disk: String,
}

/// `GET /`
pub async fn show(visit: Visit) -> Result<Response, Error> {
    let frame = visit.frame("home", "Home").live("home");
    let (memory, accounts, disk) = (memory(&visit.admin)?, accounts(&visit.admin)?, disk(&visit.admin).await?);
    let has_refused = visit.admin.budget.accounts().iter().any(|account| account.refusals() > 0);
    visit.page(&Home { frame, memory, accounts, has_refused, disk }).await
}

/// What changes while somebody looks.
pub async fn pieces(admin: &Arc<Admin>) -> Result<Pieces, Error> {
    Ok(Pieces::from([("memory", memory(admin)?), ("accounts", accounts(admin)?), ("disk", disk(admin).await?)]))
}

#[derive(Template)]
#[template(path = "memory.html")]
struct Memory {
    profile: String,
    total: String,
    now: Share,
    high: Share,
    warning: Option<String>,
}

fn memory(admin: &Admin) -> Result<String, Error> {
    let (profile, resident) = (admin.budget.profile(), meter::resident());
    let page = Memory {
        profile: profile.name.clone(),
        total: human(profile.total),
        now: Share::new(resident.now_bytes, profile.total),
        high: Share::new(resident.high_water_bytes, profile.total),
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
    accounts.sort_by_key(|account| (account.refusals() == 0, Reverse(fullness(account.high_water(), account.limit()))));
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

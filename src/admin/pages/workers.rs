//! Workers: what the server does in the background.

use std::sync::Arc;

use askama::Template;

use super::frame::{Frame, Pieces, Visit};
use super::people::ago;
use super::rooms::grouped;
use crate::admin::{Admin, error::Error};
use crate::base::{Doing, Status, bounded, span};
use crate::http::{ErrorResponse, Response};

/// Of what a worker says of itself; there are some twenty workers.
const TEXT_CHARS_MAX: usize = 160;

#[derive(Template)]
#[template(path = "workers.html")]
struct Page {
    frame: Frame,
    workers: String,
}

#[derive(Template)]
#[template(path = "worker_list.html")]
struct List {
    rows: Vec<Row>,
}

struct Row {
    name: &'static str,
    about: String,
    error: Option<String>,
    badge: &'static str,
    class: &'static str,
}

/// `GET workers`
pub async fn show(visit: Visit) -> Result<Response, Error> {
    let page = Page { frame: visit.frame("workers", "Workers").live("workers"), workers: list(&visit.admin)? };
    visit.page(&page).await
}

/// What changes while somebody looks.
pub fn pieces(admin: &Arc<Admin>) -> Result<Pieces, Error> {
    Ok(Pieces::from([("workers", list(admin)?)]))
}

fn list(admin: &Admin) -> Result<String, Error> {
    let now_ms = admin.clock.now_ms();
    let rows = admin.workers.list().into_iter().map(|worker| row(worker, now_ms)).collect();
    Ok(List { rows }.render().map_err(ErrorResponse::internal)?)
}

fn row(worker: Status, now_ms: u64) -> Row {
    let (badge, class, on) = match worker.doing {
        Doing::Idle => ("waits", "soft", None),
        Doing::Working(on) => ("works", "", Some(bounded(on, TEXT_CHARS_MAX))),
        Doing::Panicked => ("failed", "wrong", None),
        Doing::Ended => ("done", "soft", None),
    };
    let mut about = on.unwrap_or_default();
    let mut add = |text: String| {
        if !about.is_empty() {
            about.push_str(" · ");
        }
        about.push_str(&text);
    };
    if worker.done > 0 {
        add(format!("{} done since the start", grouped(worker.done)));
    }
    match worker.next_ms {
        Some(next_ms) if next_ms > now_ms => add(format!("again in {}", span(next_ms - now_ms))),
        _ => {}
    }
    if worker.restarts > 0 {
        add(format!("started again {} times", grouped(worker.restarts.into())));
    }
    let error = worker.error.map(|(at_ms, text)| format!("{}: {}", ago(at_ms, now_ms), bounded(text, TEXT_CHARS_MAX)));
    Row { name: worker.name, about, error, badge, class }
}

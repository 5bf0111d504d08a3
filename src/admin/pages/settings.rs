//! Settings: what the config file says, and what each of them means.

use std::path::Path;

use askama::Template;

use super::frame::{Form, Frame, Pages, Visit, coded};
use super::rooms::many;
use crate::admin::{
    Setting,
    error::Error,
    reload::{reloaded, whole},
};
use crate::base::bounded;
use crate::http::{ErrorResponse, Response};

/// Of a value as the file has it.
const VALUE_CHARS_MAX: usize = 400;

pub fn routes(pages: &mut Pages<'_>) {
    pages.show("settings/", show).act("settings/", reload).show("settings/in/{section}", section);
}

#[derive(Template)]
#[template(path = "settings.html")]
struct Page {
    frame: Frame,
    file: Option<String>,
    sections: Vec<Section>,
    /// What reading them again has changed.
    changed: Option<String>,
    restart: Vec<&'static str>,
}

struct Section {
    key: &'static str,
    title: &'static str,
    about: String,
}

/// What a section is about, where its name does not say it.
fn title(key: &str) -> &'static str {
    match key {
        "general" => "Names, addresses, accounts",
        "client" => "HTTPS for apps",
        "page" => "This page",
        "metrics" => "Who may watch the server",
        "federation" => "Other servers",
        "acme" => "Certificates from an authority",
        "rooms" => "Rooms and their history",
        "search" => "Search in messages",
        "media" => "Pictures and files",
        "previews" => "Previews of links",
        "push" => "Notifications to phones",
        "calls" => "Calls",
        "turn" => "The relay for calls",
        "rtc" => "Group calls",
        "home" => "The home network",
        "notices" => "Notices to people here",
        "terms" => "Terms of use",
        "backup" => "Backups",
        "support" => "Whom to ask",
        _ => "",
    }
}

/// The section of a setting; those outside of any are `general`.
fn section_of(name: &'static str) -> &'static str {
    name.rsplit_once('.').map_or("general", |(section, _)| section)
}

/// `GET settings/`
pub async fn show(visit: Visit) -> Result<Response, Error> {
    page(&visit, None, Vec::new()).await
}

async fn page(visit: &Visit, changed: Option<String>, restart: Vec<&'static str>) -> Result<Response, Error> {
    let (file, settings) = whole(&visit.admin)?.settings();
    let mut sections: Vec<(&'static str, u64, u64)> = Vec::new();
    for setting in &settings {
        let (key, is_set) = (section_of(setting.name), u64::from(setting.written.is_some()));
        match sections.iter_mut().find(|(known, ..)| *known == key) {
            Some((_, all, set)) => (*all, *set) = (*all + 1, *set + is_set),
            None => sections.push((key, 1, is_set)),
        }
    }
    let sections = sections.into_iter().map(|(key, all, set)| {
        let set = match set {
            0 => "all as they come".to_owned(),
            set => format!("{set} in the file"),
        };
        Section { key, title: title(key), about: format!("{}, {set}", many(all, "setting")) }
    });
    let page = Page {
        frame: visit.frame("settings", "Settings"),
        file: file.map(shown),
        sections: sections.collect(),
        changed,
        restart,
    };
    visit.page(&page).await
}

fn shown(file: impl AsRef<Path>) -> String {
    bounded(file.as_ref().display(), 255)
}

/// `POST settings/`: reads the file again. An error is a sentence about the file; then nothing has changed.
pub async fn reload(visit: Visit, _: Form) -> Result<Response, Error> {
    let done = reloaded(&visit.admin).await?;
    tracing::info!("{} had the settings read again on the page", visit.user_id);
    let changed = match done.changed.as_slice() {
        [] => "The file was read again. Nothing has changed that is in force without a restart.".to_owned(),
        changed => format!("The file was read again. In force now: {}.", changed.join(", ")),
    };
    page(&visit, Some(changed), done.restart).await
}

#[derive(Template)]
#[template(path = "settings_section.html")]
struct SectionPage {
    frame: Frame,
    title: &'static str,
    key: &'static str,
    file: Option<String>,
    rows: Vec<Row>,
}

struct Row {
    name: &'static str,
    /// As the file has it.
    value: Option<String>,
    otherwise: Option<&'static str>,
    example: &'static str,
    /// HTML.
    doc: String,
    is_live: bool,
}

/// `GET settings/in/{section}`
pub async fn section(visit: Visit) -> Result<Response, Error> {
    let wanted = visit.request.param("section");
    let (file, settings) = whole(&visit.admin)?.settings();
    let mut settings = settings.into_iter().filter(|setting| section_of(setting.name) == wanted).peekable();
    let Some(key) = settings.peek().map(|setting| section_of(setting.name)) else {
        return Err(ErrorResponse::not_found("there are no such settings").into());
    };
    let rows = settings.map(|setting| {
        let Setting { name, written, default, example, doc, is_live } = setting;
        let name = name.rsplit_once('.').map_or(name, |(_, name)| name);
        let value = written.map(|text| bounded(text, VALUE_CHARS_MAX));
        Row { name, value, otherwise: default, example, doc: coded(doc), is_live }
    });
    let rows = rows.collect();
    visit
        .page(&SectionPage {
            frame: visit.frame("settings", format!("Settings: {key}")),
            title: title(key),
            key,
            file: file.map(shown),
            rows,
        })
        .await
}

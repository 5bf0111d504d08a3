//! Settings: what the config file says, and what each of them means.

use std::path::Path;

use askama::Template;

use super::frame::{Form, Frame, Pages, Visit, coded, sentence};
use super::rooms::many;
use crate::admin::{
    Setting,
    error::Error,
    reload::{reloaded, whole},
};
use crate::base::{blocking, bounded};
use crate::http::page::Input;
use crate::http::{ErrorResponse, Response, StatusCode};

/// Of a value as the file has it.
const VALUE_CHARS_MAX: usize = 400;

pub fn routes(pages: &mut Pages<'_>) {
    pages
        .show("settings/", show)
        .act("settings/", reload)
        .show("settings/in/{section}", section)
        .show("settings/of/{name}", ask)
        .act("settings/of/{name}", change);
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
        "policies" => "Who may do what",
        "moderation" => "Lists of whom to keep out",
        "rates" => "How often",
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

/// The page that changes a setting, below the root.
fn path(name: &str) -> String {
    format!("settings/of/{name}")
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
    /// It is in the file, and not in force yet.
    waits: bool,
    /// Of the page that changes it, below the root.
    change: Option<String>,
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
        let Setting { name: whole, written, default, example, doc, is_live, input, waits, .. } = setting;
        let name = whole.rsplit_once('.').map_or(whole, |(_, name)| name);
        let change = input.map(|_| path(whole));
        let value = written.map(|text| bounded(text, VALUE_CHARS_MAX));
        Row { name, value, otherwise: default, example, doc: coded(doc), is_live, waits, change }
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

#[derive(Template)]
#[template(path = "setting.html")]
struct Change {
    frame: Frame,
    path: String,
    section: &'static str,
    title: &'static str,
    name: &'static str,
    /// HTML.
    doc: String,
    file: Option<String>,
    field: Field,
    typed: String,
    is_written: bool,
    otherwise: Option<String>,
    is_live: bool,
    removes: bool,
    /// Why the server cannot write into the file.
    closed: Option<String>,
    wrong: Option<String>,
}

impl Change {
    /// A number of a rate, as typed.
    fn rate(&self, at: usize) -> &str {
        self.typed.split_whitespace().nth(at).unwrap_or_default()
    }
}

/// The field of the form.
enum Field {
    /// Words, and the one that is so.
    Words(Vec<(&'static str, &'static str)>),
    Line {
        is_number: bool,
    },
    /// Texts, or one of the words.
    Lines(&'static [&'static str]),
    /// In two fields.
    Rate,
}

impl Field {
    fn new(input: Input) -> Field {
        match input {
            Input::Flag => Field::Words(vec![("true", "Yes"), ("false", "No")]),
            Input::Choice(known) => Field::Words(known.iter().map(|word| (*word, *word)).collect()),
            Input::Number => Field::Line { is_number: true },
            Input::Line => Field::Line { is_number: false },
            Input::List => Field::Lines(&[]),
            Input::WordOrList(words) => Field::Lines(words),
            Input::Rate => Field::Rate,
        }
    }
}

/// The setting that a page is about, and how it is asked for.
fn wanted(visit: &Visit) -> Result<(Option<String>, Setting, Input), Error> {
    let name = visit.request.param("name");
    let (file, settings) = whole(&visit.admin)?.settings();
    let found = settings.into_iter().find(|setting| setting.name == name);
    let Some(setting) = found else { return Err(ErrorResponse::not_found("there is no such setting").into()) };
    let Some(input) = setting.input else {
        return Err(ErrorResponse::forbidden(format!("{name} is changed in the config file alone")).into());
    };
    Ok((file.map(shown), setting, input))
}

async fn form(visit: &Visit, typed: Option<String>, wrong: Option<String>) -> Result<Change, Error> {
    let whole = whole(&visit.admin)?;
    let closed = blocking(move || whole.closed()).await;
    let (file, setting, input) = wanted(visit)?;
    let section = section_of(setting.name);
    let name = setting.name.rsplit_once('.').map_or(setting.name, |(_, name)| name);
    Ok(Change {
        frame: visit.frame("settings", setting.name),
        path: path(setting.name),
        section,
        title: Some(title(section)).filter(|title| !title.is_empty()).unwrap_or(section),
        name,
        doc: coded(setting.doc),
        file,
        field: Field::new(input),
        typed: typed.unwrap_or(setting.typed),
        is_written: setting.written.is_some(),
        otherwise: setting.default.map(ToOwned::to_owned),
        is_live: setting.is_live,
        removes: setting.removes,
        closed,
        wrong,
    })
}

/// `GET settings/of/{name}`: the form of a setting that may be changed here. 403 for any other.
pub async fn ask(visit: Visit) -> Result<Response, Error> {
    let page = form(&visit, None, None).await?;
    visit.page(&page).await
}

/// `POST settings/of/{name}`: writes the field `value` into the file, or takes the setting out, by the field `what`. 400 and the
/// form again when it cannot be; then nothing has changed.
pub async fn change(visit: Visit, sent: Form) -> Result<Response, Error> {
    let (_, setting, _) = wanted(&visit)?;
    let name = setting.name;
    let typed = match sent.text("what").as_str() {
        "unset" => None,
        "set" if matches!(setting.input, Some(Input::Rate)) => {
            Some(format!("{} {}", sent.text("value"), sent.text("burst")))
        }
        "set" => Some(sent.text("value")),
        _ => return Err(ErrorResponse::invalid_param("this page has no such button").into()),
    };
    let done = match whole(&visit.admin)?.change(name, typed.as_deref()).await {
        Ok(done) => done,
        Err(wrong) => {
            let page = form(&visit, typed, Some(coded(&sentence(&wrong)))).await?;
            return Ok(visit.page(&page).await?.with_status(StatusCode::BAD_REQUEST));
        }
    };
    tracing::info!("{} changed the setting {name} on the page", visit.user_id);
    let said = if done.restart.contains(&name) { "setting-restart" } else { "setting-live" };
    Ok(visit.done(&format!("settings/in/{}", section_of(name)), said))
}

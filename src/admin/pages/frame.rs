//! The frame of the administrators' page: who is signed in, the navigation, the forms, and errors as pages.
//!
//! A page is a file: a handler that takes a [`Visit`], a template that extends `templates/frame.html`, and facts from the
//! parts below. A handler of a form takes the [`Form`] too, whose token is right by then. Nothing of a page is kept: what a
//! form did is said by a word in the address of the page that the browser goes to next ([`Visit::done`]).
//!
//! Bounded: a page is written into [`PAGE_BYTES`] of the account `admin`, and what would be longer is an error; lists are
//! [`LIST_ROWS`] rows and a link to the next.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use askama::{DynTemplate, Template};
use bytes::Bytes;
use parking_lot::Mutex;
use ruma::{OwnedRoomId, OwnedUserId};
use subtle::ConstantTimeEq;

use crate::admin::{Admin, error::Error};
use crate::http::page::{MARK, escaped, field, trouble};
use crate::http::{AttemptRates, ErrorResponse, Method, Request, Response, Router, Routes, StatusCode};
use crate::user::form_token;

/// The longest page: twenty rows with two names of 255 bytes and one of eighty letters, of which each may be five bytes in
/// HTML, are 50 KiB, and the frame is 6. The smallest budgets have room for
/// one while it is written and for one command; others wait for the moment that takes.
pub const PAGE_BYTES: usize = 56 * 1024;
/// The rows of a list on one page. What others named is cut to [`NAME_CHARS_MAX`] letters there.
pub const LIST_ROWS: usize = 20;
pub const NAME_CHARS_MAX: usize = 80;
/// The longest form: two passwords and a reason, percent-encoded.
const FORM_BYTES_MAX: u64 = 8 * 1024;
/// The cookie of a session, and the one before there is a session.
pub const SESSION: &str = "snug_page";
pub const BEFORE: &str = "snug_form";

const STYLE: &str = concat!(include_str!("../../http/page/colors.css"), include_str!("page.css"));
/// Copy buttons, as on every page, and what changes by itself.
const SCRIPT: &str = concat!(include_str!("../../http/page/copy.js"), include_str!("page.js"));
/// What the address of the style sheet ends with, so that a browser that has kept an older one asks again.
const STAMP: u32 = stamp(STYLE.as_bytes(), stamp(SCRIPT.as_bytes(), 0x811c_9dc5));

/// FNV-1a.
const fn stamp(text: &[u8], mut hash: u32) -> u32 {
    let mut at = 0;
    while at < text.len() {
        hash = (hash ^ text[at] as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    hash
}

/// What the page is built from.
pub struct Desk {
    /// The path of the page, with a slash at both ends. None: there is no page.
    pub path: Option<String>,
    /// How often a password may be tried: as at the log-in of an app.
    pub passwords: AttemptRates,
    /// How many look at a page that changes by itself.
    pub(super) watching: AtomicUsize,
    /// What was removed last.
    pub(super) removal: Mutex<Option<Removal>>,
}

impl Desk {
    pub fn new(path: Option<String>, passwords: AttemptRates) -> Desk {
        Desk { path, passwords, watching: AtomicUsize::new(0), removal: Mutex::default() }
    }

    /// The path of the page; of a server without one the usual one, which nothing leads to.
    pub fn root(&self) -> &str {
        self.path.as_deref().unwrap_or("/_snug/")
    }

    /// A place among those who look at a page that changes by itself; none when there are `most` already.
    pub(super) fn watch(self: &Arc<Self>, most: usize) -> Option<Watching> {
        let more = |count: usize| (count < most).then_some(count + 1);
        self.watching.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more).ok()?;
        Some(Watching(self.clone()))
    }
}

/// What was removed last since the start, to say what that gave back.
#[derive(Debug, Clone)]
pub(super) struct Removal {
    /// The room; none for all that nobody here was in.
    pub room_id: Option<OwnedRoomId>,
    pub name: String,
    /// Of the database, before.
    pub before_bytes: u64,
}

/// Given back by drop.
pub(super) struct Watching(Arc<Desk>);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.watching.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An entry of the navigation.
pub struct Section {
    /// What a page says that belongs to it.
    pub key: &'static str,
    pub label: &'static str,
    /// Below the root.
    pub path: &'static str,
    /// The lines of its sign, in a square of 24.
    lines: &'static str,
}

impl Section {
    pub fn icon(&self) -> String {
        format!("<svg class=\"icon\" viewBox=\"0 0 24 24\" aria-hidden=\"true\"><path d=\"{}\"/></svg>", self.lines)
    }
}

/// The navigation, most used first: a phone's bar has the first [`TABS`], the others are in its menu.
const SECTIONS: &[Section] = &[
    Section {
        key: "home",
        label: "Home",
        path: "",
        lines: "M4 11.2 12 4l8 7.2V19a1.5 1.5 0 0 1-1.5 1.5h-13A1.5 1.5 0 0 1 4 19zM9.5 20.5V14h5v6.5",
    },
    Section {
        key: "people",
        label: "People",
        path: "people/",
        lines: "M9 11a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7zM2.5 20c.4-3.6 3-5.5 6.5-5.5s6.1 1.9 6.5 5.5M16 4.3a3.5 3.5 0 0 1 0 6.4M18 14.8c2 .7 3.2 2.5 3.5 5.2",
    },
    Section {
        key: "rooms",
        label: "Rooms",
        path: "rooms/",
        lines: "M4 5.5A1.5 1.5 0 0 1 5.5 4h13A1.5 1.5 0 0 1 20 5.5v9a1.5 1.5 0 0 1-1.5 1.5H11l-5 4v-4h-.5A1.5 1.5 0 0 1 4 14.5zM8 8.5h8M8 11.8h5",
    },
    Section {
        key: "reports",
        label: "Reports",
        path: "reports/",
        lines: "M5.5 21V4M5.5 4.5c4-2 7.5 2 13 0v9c-5.5 2-9-2-13 0",
    },
    Section {
        key: "servers",
        label: "Servers",
        path: "servers/",
        lines: "M12 20.5a8.5 8.5 0 1 0 0-17 8.5 8.5 0 0 0 0 17zM3.5 12h17M12 3.5c2.4 2.4 3.6 5.2 3.6 8.5s-1.2 6.1-3.6 8.5c-2.4-2.4-3.6-5.2-3.6-8.5s1.2-6.1 3.6-8.5z",
    },
    Section {
        key: "backups",
        label: "Backups",
        path: "backups/",
        lines: "M4 5.5h16v4H4zM5.5 9.5V18A1.5 1.5 0 0 0 7 19.5h10a1.5 1.5 0 0 0 1.5-1.5V9.5M12 12v4.5M9.8 14.4 12 16.6l2.2-2.2",
    },
    Section {
        key: "settings",
        label: "Settings",
        path: "settings/",
        lines: "M4 7h9M17 7h3M15 9a2 2 0 1 0 0-4 2 2 0 0 0 0 4zM4 17h3M11 17h9M9 19a2 2 0 1 0 0-4 2 2 0 0 0 0 4z",
    },
    Section { key: "workers", label: "Workers", path: "workers", lines: "M12 21a9 9 0 1 0-9-9M12 7v5l3.5 2M3 17v-5h5" },
    Section { key: "log", label: "Log", path: "log", lines: "M6 3.5h12v17H6zM9 8h6M9 12h6M9 16h3" },
];
const TABS: usize = 4;

/// What the frame shows; every template has one as `frame`.
pub struct Frame {
    pub root: String,
    pub title: String,
    pub section: &'static str,
    pub server: String,
    pub user: String,
    /// For the hidden field `token` of every form.
    pub token: String,
    /// The part of the page that changes by itself, see `live.rs`.
    pub live: Option<&'static str>,
    /// What was just done.
    pub said: Option<&'static str>,
    pub mark: &'static str,
    pub stamp: u32,
    pub sections: &'static [Section],
}

impl Frame {
    /// The page has pieces that change by themselves, by this name in `live.rs`.
    pub fn live(mut self, part: &'static str) -> Frame {
        self.live = Some(part);
        self
    }

    pub fn tabs(&self) -> &'static [Section] {
        &self.sections[..self.sections.len().min(TABS)]
    }

    pub fn menu(&self) -> &'static [Section] {
        &self.sections[self.sections.len().min(TABS)..]
    }

    pub fn is_in_menu(&self) -> bool {
        self.menu().iter().any(|section| section.key == self.section)
    }
}

/// Pieces of a page that change by themselves, by the ids of their elements, see `live.rs`.
pub type Pieces = BTreeMap<&'static str, String>;

/// Somebody who is signed in.
#[derive(Clone)]
pub struct Visitor {
    pub admin: Arc<Admin>,
    pub user_id: OwnedUserId,
    /// The token of the session's forms.
    pub token: String,
}

/// A request of somebody who is signed in.
pub struct Visit {
    pub request: Request,
    visitor: Visitor,
}

impl Deref for Visit {
    type Target = Visitor;

    fn deref(&self) -> &Visitor {
        &self.visitor
    }
}

/// What a browser sent with a form, whose token was right.
pub struct Form(Bytes);

impl Form {
    /// A field, without blanks around it; empty when it is not there.
    pub fn text(&self, name: &str) -> String {
        self.exact(name).trim().to_owned()
    }

    /// A field as it was typed: a password.
    pub fn exact(&self, name: &str) -> String {
        field(&self.0, name)
    }

    /// Whether a box was ticked.
    pub fn is_ticked(&self, name: &str) -> bool {
        !self.exact(name).is_empty()
    }
}

impl Visit {
    /// The frame for a page of a section. It says what the last form did, when the address does.
    pub fn frame(&self, section: &'static str, title: impl Into<String>) -> Frame {
        let said = self.request.query("done").and_then(|word| said(&word));
        Frame { said, ..self.visitor.frame(section, title.into()) }
    }
}

impl Visitor {
    fn frame(&self, section: &'static str, title: String) -> Frame {
        Frame {
            root: self.root().to_owned(),
            title,
            section,
            server: self.admin.users.server().to_string(),
            user: self.user_id.localpart().to_owned(),
            token: self.token.clone(),
            live: None,
            said: None,
            mark: MARK,
            stamp: STAMP,
            sections: SECTIONS,
        }
    }

    pub fn root(&self) -> &str {
        self.admin.page.root()
    }

    /// A page. Its memory is given back when it has been sent.
    pub async fn page(&self, template: &(dyn DynTemplate + Sync)) -> Result<Response, Error> {
        let mut grant = self.admin.budget.account("admin").take(PAGE_BYTES as u64).await?;
        let mut sheet = Sheet(String::with_capacity(PAGE_BYTES));
        if template.dyn_render_into(&mut sheet).is_err() {
            return Err(ErrorResponse::internal("a page is longer than a page may be").into());
        }
        // While it is on its way it takes what it is, not what it might have been.
        let mut page = sheet.0.into_bytes();
        page.shrink_to_fit();
        grant.shrink((PAGE_BYTES - page.len()) as u64);
        Ok(headed(Response::charged(StatusCode::OK, HTML, page, grant)))
    }

    /// Leads the browser to another page, below the root.
    pub fn go(&self, to: &str) -> Response {
        see(&format!("{}{to}", self.root()))
    }

    /// Leads the browser to a page that says what was done, by a word of [`SAID`].
    pub fn done(&self, to: &str, word: &str) -> Response {
        debug_assert!(said(word).is_some(), "{word} has a sentence");
        self.go(&format!("{to}?done={word}"))
    }

    /// The page that says why something did not work.
    async fn trouble(&self, failed: ErrorResponse) -> Response {
        let title = match failed.status {
            StatusCode::NOT_FOUND => "Not found",
            _ => "That did not work",
        };
        let page = Trouble { frame: self.frame("", title.to_owned()), message: sentence(&failed.message) };
        match self.page(&page).await {
            Ok(page) => page.with_status(failed.status),
            Err(failed) => trouble(self.admin.users.server().as_str(), &failed.into()),
        }
    }
}

#[derive(Template)]
#[template(path = "trouble.html")]
struct Trouble {
    frame: Frame,
    message: String,
}

/// What forms did, by the word in the address of the page that says it. The address may be anybody's, so it has no text.
const SAID: &[(&str, &str)] = &[
    ("make-admin", "This account is an administrator's now."),
    ("unmake-admin", "This account is not an administrator's any more."),
    ("lock", "This account is locked: its apps can do nothing until you unlock it."),
    ("unlock", "This account is not locked any more."),
    ("redact", "The message is removed: apps and other servers show that it was there, and not what it said."),
    ("suspend", "This account is suspended: it can read, and not write."),
    ("unsuspend", "This account is not suspended any more."),
    ("quota", "What the files of this account may take is changed, for the next upload on."),
    ("end-session", "That app is logged out."),
    ("end-sessions", "All apps are logged out."),
    ("closed", "The account is closed."),
    ("allow-room", "This room may be joined whatever its size: who asked can try again."),
    ("disallow-room", "This room may not be joined when it is large."),
    ("cancel-join", "The join ends, and what it had stored is removed."),
    (
        "block-room",
        "This room is blocked: nobody here comes into it, and a join that was under way ends. Who is in it stays.",
    ),
    ("unblock-room", "This room is not blocked any more."),
    ("deny-server", "Nothing is exchanged with this server any more."),
    ("let-server", "This server is let in again, and what waits for it is sent."),
    ("remove-room", "It is being removed."),
    ("remove-report", "The report is removed."),
    ("backup-now", "A backup is being made."),
    ("cancel-backup", "The backup ends. A folder keeps what is written, and the next one goes on with it."),
    ("setting-live", "The config file says so now, and it is in force."),
    ("setting-restart", "The config file says so now. It is in force with the next start of the server."),
    ("try-now", "What waits for this server is sent now."),
];

fn said(word: &str) -> Option<&'static str> {
    SAID.iter().find(|(known, _)| *known == word).map(|(_, sentence)| *sentence)
}

/// A text that takes no more than it was given room for.
struct Sheet(String);

impl fmt::Write for Sheet {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > self.0.capacity() {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

const HTML: &str = "text/html; charset=utf-8";

/// A page of the frame runs the one script, has the one style sheet, loads nothing of others, and nobody may frame it.
fn headed(response: Response) -> Response {
    response
        .header(
            "content-security-policy",
            "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
             form-action 'self'; frame-ancestors 'none'",
        )
        .header("x-content-type-options", "nosniff")
        .header("x-frame-options", "DENY")
        .header("referrer-policy", "no-referrer")
        .header("cache-control", "no-store")
}

/// Leads a browser on with GET.
pub fn see(to: &str) -> Response {
    Response::empty(StatusCode::SEE_OTHER).header("location", to).header("cache-control", "no-store")
}

/// With a capital letter and a full stop.
pub fn sentence(text: &str) -> String {
    let mut rest = text.chars();
    let first: String = rest.next().into_iter().flat_map(char::to_uppercase).collect();
    let end = if text.ends_with(['.', '!', '?']) { "" } else { "." };
    format!("{first}{}{end}", rest.as_str())
}

/// A plain text as HTML, in which what stands between backticks is code.
pub fn coded(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 32);
    let last = text.matches('`').count();
    for (at, part) in text.split('`').enumerate() {
        match at % 2 == 1 {
            true if at < last => out.push_str(&format!("<code>{}</code>", escaped(part))),
            true => out.push_str(&format!("`{}", escaped(part))),
            false => out.push_str(&escaped(part)),
        }
    }
    out
}

/// Registers pages below the root.
pub struct Pages<'a> {
    routes: Routes<'a, Admin>,
    root: String,
}

impl<'a> Pages<'a> {
    pub fn new(router: &'a mut Router, admin: &Arc<Admin>) -> Pages<'a> {
        Pages { routes: router.surface(admin), root: admin.page.root().to_owned() }
    }

    /// A page for whoever is signed in; others are led to the sign-in, and back when they were there.
    pub fn show<F, Fut>(&mut self, path: &str, handler: F) -> &mut Self
    where
        F: Fn(Visit) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Response, Error>> + Send + 'static,
    {
        self.add(Method::GET, path, Arc::new(move |visit| Box::pin(handler(visit))))
    }

    /// What a form does, for whoever is signed in and sends the token of the session's forms.
    pub fn act<F, Fut>(&mut self, path: &str, handler: F) -> &mut Self
    where
        F: Fn(Visit, Form) -> Fut + Send + Sync + Clone + 'static,
        Fut: Future<Output = Result<Response, Error>> + Send + 'static,
    {
        let acted = move |mut visit: Visit| -> Answering {
            let handler = handler.clone();
            Box::pin(async move {
                let form = form(&mut visit).await?;
                handler(visit, form).await
            })
        };
        self.add(Method::POST, path, Arc::new(acted))
    }

    fn add(&mut self, method: Method, path: &str, handler: Handler) -> &mut Self {
        let template = format!("{}{path}", self.root);
        self.routes.add(method, &template, move |admin, request| {
            let handler = handler.clone();
            async move { Ok::<_, Error>(answered(admin, request, handler).await) }
        });
        self
    }

    /// The routes for what needs nobody signed in.
    pub fn open(&mut self) -> (&mut Routes<'a, Admin>, &str) {
        (&mut self.routes, &self.root)
    }
}

type Answering = Pin<Box<dyn Future<Output = Result<Response, Error>> + Send>>;

type Handler = Arc<dyn Fn(Visit) -> Answering + Send + Sync>;

/// A handler's answer, or the page that says why there is none; for who is not signed in the way there.
async fn answered(admin: Arc<Admin>, request: Request, handler: Handler) -> Response {
    let visitor = match visitor(admin, &request).await {
        Ok(visitor) => visitor,
        Err(elsewhere) => return elsewhere,
    };
    match handler(Visit { request, visitor: visitor.clone() }).await {
        Ok(answer) => answer,
        Err(failed) => visitor.trouble(failed.into()).await,
    }
}

/// Who sends a request, or the answer to who is not signed in.
async fn visitor(admin: Arc<Admin>, request: &Request) -> Result<Visitor, Response> {
    let Some(secret) = request.cookie(SESSION) else { return Err(to_sign_in(&admin, request)) };
    match admin.users.page_visitor(secret).await {
        Ok(Some(user_id)) => {
            request.note_guest(user_id.as_str());
            Ok(Visitor { token: form_token(secret), admin, user_id })
        }
        Ok(None) => Err(to_sign_in(&admin, request)),
        Err(failed) => Err(trouble(admin.users.server().as_str(), &Error::from(failed).into())),
    }
}

fn to_sign_in(admin: &Admin, request: &Request) -> Response {
    let root = admin.page.root();
    let below = request.path().strip_prefix(root).filter(|below| !below.is_empty() && is_way(below));
    match below {
        Some(below) => see(&format!("{root}sign-in?next={below}")),
        None => see(&format!("{root}sign-in")),
    }
}

/// Whether a text is a path below the root, and needs no encoding in a query.
pub fn is_way(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_.~@:!".contains(&byte);
    text.len() <= 300 && text.bytes().all(is_plain) && !text.starts_with('/') && !text.contains("..")
}

/// The form of a request, when its token is that of the session and no page of another site made the browser send it.
async fn form(visit: &mut Visit) -> Result<Form, Error> {
    let body = visit.request.bytes(FORM_BYTES_MAX).await?;
    let form = Form(body);
    match is_same(&form.exact("token"), &visit.token) && !visit.request.is_cross_site() {
        true => Ok(form),
        false => Err(forged().into()),
    }
}

/// The form of a request of somebody who is not signed in, with a token that follows from the cookie [`BEFORE`].
pub async fn form_before(request: &mut Request) -> Result<Form, Error> {
    let form = Form(request.bytes(FORM_BYTES_MAX).await?);
    let token = request.cookie(BEFORE).map(form_token);
    match token.is_some_and(|token| is_same(&token, &form.exact("token"))) && !request.is_cross_site() {
        true => Ok(form),
        false => Err(forged().into()),
    }
}

fn is_same(one: &str, other: &str) -> bool {
    one.as_bytes().ct_eq(other.as_bytes()).into()
}

fn forged() -> ErrorResponse {
    ErrorResponse::forbidden(
        "This form is from another sign-in, or from another page. Nothing was changed. Go back, load the page again, and send it once more",
    )
}

/// `Set-Cookie` of a cookie for the page alone. `age_s` 0 takes it away.
pub fn cookie(admin: &Admin, request: &Request, name: &str, value: &str, age_s: u64) -> String {
    let path = admin.page.root().trim_end_matches('/');
    let secure = if request.peer().tls { "; Secure" } else { "" };
    format!("{name}={value}; Path={path}; Max-Age={age_s}; HttpOnly; SameSite=Strict{secure}")
}

/// `GET page.css`, `page.js`, `mark.svg`.
pub async fn style(_: Arc<Admin>, _: Request) -> Result<Response, Error> {
    Ok(kept("text/css; charset=utf-8", STYLE))
}

pub async fn script(_: Arc<Admin>, _: Request) -> Result<Response, Error> {
    Ok(kept("text/javascript; charset=utf-8", SCRIPT))
}

pub async fn mark(_: Arc<Admin>, _: Request) -> Result<Response, Error> {
    Ok(kept("image/svg+xml", MARK))
}

/// A file of the program. Its address changes with it.
fn kept(kind: &'static str, text: &'static str) -> Response {
    Response::bytes(StatusCode::OK, kind, text)
        .header("cache-control", "public, max-age=31536000, immutable")
        .header("x-content-type-options", "nosniff")
        .header("content-security-policy", "default-src 'none'")
}

/// Any other path below the root.
pub async fn nowhere(_: Visit) -> Result<Response, Error> {
    Err(ErrorResponse::not_found("There is no page at this address. The navigation has all there are").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_in_a_sentence_is_code_and_nothing_in_it_is_html() {
        assert_eq!(coded("`snug rooms` & <b>"), "<code>snug rooms</code> &amp; &lt;b&gt;");
        assert_eq!(coded("a `b <i>`, `c`"), "a <code>b &lt;i&gt;</code>, <code>c</code>");
        assert_eq!((coded("one ` alone").as_str(), coded("").as_str()), ("one ` alone", ""));
    }
}

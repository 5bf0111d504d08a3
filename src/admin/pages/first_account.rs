//! The page that makes the first account.
//!
//! Its link has a code that is printed while there is no account. The code is removed when the first account is made.

use std::sync::Arc;

use super::{address_for_apps, copied, is_only_here, listen_line, log_in_steps, or_trouble};
use crate::admin::{Admin, error::Error};
use crate::http::page::{escaped, field, page};
use crate::http::{Rate, Request, Response, StatusCode};
use crate::user::{self, PASSWORD_CHARS_MIN, check_new_password};

/// The path of the page, without the code that follows.
pub const FIRST_PATH: &str = "/_snug/first/";

/// The longest form: a name and two passwords, percent-encoded.
const FORM_BYTES_MAX: u64 = 4096;
/// Views of the page, by address.
const SHOWN: Rate = Rate { name: "first account pages", per_second: 1.0, burst: 60.0 };
/// Forms sent, by address: each may be a guess at the code.
const MADE: Rate = Rate { name: "first account forms", per_second: 0.2, burst: 10.0 };

/// What was typed, and what is wrong with it, field by field.
#[derive(Default)]
struct Form {
    name: String,
    wrong_name: Option<String>,
    wrong_password: Option<String>,
    wrong_again: Option<String>,
}

/// `GET /_snug/first/{code}`: the form. 403 when the code is not the server's, 410 when there is an account, 429
/// after too many tries.
pub async fn show(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    Ok(or_trouble(&admin, shown(&admin, &request).await))
}

async fn shown(admin: &Admin, request: &Request) -> Result<Response, Error> {
    if let Some(busy) = busy(admin, request, &SHOWN) {
        return Ok(busy);
    }
    match closed(admin, request).await? {
        Some(closed) => Ok(closed),
        None => Ok(form(server(admin), &Form::default())),
    }
}

/// `POST /_snug/first/{code}`: makes the account. The body is a form as browsers send it. 400 and the form again when
/// something is wrong with it, 403 when the code is not the server's, 410 when there is an account, 429
/// after too many tries.
pub async fn make(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    Ok(or_trouble(&admin, made(&admin, &mut request).await))
}

async fn made(admin: &Admin, request: &mut Request) -> Result<Response, Error> {
    if let Some(busy) = busy(admin, request, &MADE) {
        return Ok(busy);
    }
    let body = request.bytes(FORM_BYTES_MAX).await?;
    if let Some(closed) = closed(admin, request).await? {
        return Ok(closed);
    }
    let password = field(&body, "password");
    let mut typed = Form { name: field(&body, "name").trim().to_owned(), ..Form::default() };
    let localpart = localpart(&typed.name, server(admin));
    typed.wrong_name = admin.users.new_id(&localpart).err().map(|wrong| wrong.to_string());
    typed.wrong_password = check_new_password(&password).err().map(|wrong| wrong.to_string());
    if typed.wrong_password.is_none() && password != field(&body, "again") {
        typed.wrong_again = Some("The two passwords are not the same".to_owned());
    }
    if typed.is_wrong() {
        return Ok(form(server(admin), &typed));
    }
    match admin.users.create_first(request.param("code"), &localpart, &password).await {
        Ok(user_id) => {
            tracing::info!("the first account was made: {user_id}");
            Ok(done(admin, request, user_id.as_str(), user_id.localpart()))
        }
        // Another request was faster.
        Err(user::Error::Forbidden(_)) => Ok(used(admin, request)),
        Err(user::Error::Bad { message, .. }) => {
            Ok(form(server(admin), &Form { wrong_password: Some(message), ..typed }))
        }
        Err(failed) => Err(failed.into()),
    }
}

/// The page for too many tries in a short time.
fn busy(admin: &Admin, request: &Request, rate: &Rate) -> Option<Response> {
    request.limit(rate).err()?;
    let body = "<h1>One moment, please</h1><p class=\"lead\">These were many tries in a short time. Wait a minute, then load this page \
                again.</p>";
    Some(page("One moment, please", server(admin), body).with_status(StatusCode::TOO_MANY_REQUESTS))
}

/// The page for a link that makes no account: one that was used, or that never was the server's.
async fn closed(admin: &Admin, request: &Request) -> Result<Option<Response>, Error> {
    if admin.users.count_up_to(1).await? > 0 {
        return Ok(Some(used(admin, request)));
    }
    Ok(match admin.users.is_setup_code(request.param("code")).await? {
        true => None,
        false => Some(unknown(server(admin))),
    })
}

fn server(admin: &Admin) -> &str {
    admin.users.server().as_str()
}

/// The part of the name that may be chosen. The whole name may be typed too, and capitals are made small.
fn localpart(typed: &str, server: &str) -> String {
    let name = typed.strip_prefix('@').unwrap_or(typed);
    let name = name.strip_suffix(server).and_then(|rest| rest.strip_suffix(':')).unwrap_or(name);
    name.to_lowercase()
}

impl Form {
    fn is_wrong(&self) -> bool {
        self.wrong_name.is_some() || self.wrong_password.is_some() || self.wrong_again.is_some()
    }
}

fn form(server: &str, typed: &Form) -> Response {
    let trying_out = if server == "localhost" { TRYING_OUT } else { "" };
    // The first field with a mistake has the focus, or the first of all.
    let at_name = typed.wrong_name.is_some() || !typed.is_wrong();
    let fields = [
        name_field(server, typed, at_name),
        password_field("password", "Password", &typed.wrong_password, !at_name && typed.wrong_password.is_some()),
        password_field("again", "The same password again", &typed.wrong_again, !at_name && typed.wrong_again.is_some()),
    ];
    let body = format!(
        "<h1>Make the first account</h1><p class=\"lead\">It will be the administrator of <strong>{}</strong>. More accounts can be \
made later.</p>{trying_out}<form method=\"post\">{}<button>Make the account</button></form>",
        escaped(server),
        fields.concat()
    );
    let (title, status) = match typed.is_wrong() {
        true => ("Not made yet: the first account", StatusCode::BAD_REQUEST),
        false => ("The first account", StatusCode::OK),
    };
    page(&format!("{title} of {server}"), server, &body).with_status(status)
}

const TRYING_OUT: &str = "<p class=\"note\"><strong>The name localhost is for trying things out.</strong> No other server can find it. \
For a name of your own, set <code>server_name</code> in the config file and start Snug again before you make an account.</p>";

/// The field stands between `@` and the server's name, so that the whole name is in view.
fn name_field(server: &str, typed: &Form, focus: bool) -> String {
    let (class, said) = mistake("name", &typed.wrong_name);
    let attributes = attributes("name", "server name-hint", &typed.wrong_name, focus);
    let (server, name) = (escaped(server), escaped(&typed.name));
    format!(
        "<label for=\"name\" id=\"name-label\">User name</label><label for=\"name\" class=\"whole {class}\"><span class=\"typed\">\
<span aria-hidden=\"true\">@</span><input id=\"name\" name=\"name\" value=\"{name}\" placeholder=\"anna\" required maxlength=\"255\" \
aria-labelledby=\"name-label\" autocomplete=\"username\" autocapitalize=\"none\" autocorrect=\"off\" spellcheck=\"false\"{attributes}>\
</span><span id=\"server\">:{server}</span></label>{said}<p class=\"hint\" id=\"name-hint\">This whole line becomes your Matrix name. \
It is for ever: no part of it can be changed later.</p>"
    )
}

fn password_field(id: &str, label: &str, wrong: &Option<String>, focus: bool) -> String {
    let (class, said) = mistake(id, wrong);
    let attributes = attributes(id, "password-hint", wrong, focus);
    let hint = match id {
        "password" => format!("<p class=\"hint\" id=\"password-hint\">At least {PASSWORD_CHARS_MIN} characters.</p>"),
        _ => String::new(),
    };
    format!(
        "<label for=\"{id}\">{label}</label><input id=\"{id}\" name=\"{id}\" type=\"password\" class=\"{class}\" required \
minlength=\"{PASSWORD_CHARS_MIN}\" autocomplete=\"new-password\"{attributes}>{said}{hint}"
    )
}

/// `hints` are the ids of the texts that describe the field.
fn attributes(id: &str, hints: &str, wrong: &Option<String>, focus: bool) -> String {
    let focus = if focus { " autofocus" } else { "" };
    match wrong {
        None => format!(" aria-describedby=\"{hints}\"{focus}"),
        Some(_) => format!(" aria-invalid=\"true\" aria-describedby=\"{id}-wrong {hints}\"{focus}"),
    }
}

/// The class of a field with a mistake, and the sentence below it.
fn mistake(id: &str, wrong: &Option<String>) -> (&'static str, String) {
    let Some(wrong) = wrong else { return ("", String::new()) };
    let mut rest = wrong.chars();
    let first: String = rest.next().into_iter().flat_map(char::to_uppercase).collect();
    let sentence = escaped(&format!("{first}{}.", rest.as_str()));
    ("bad", format!("<p class=\"wrong\" id=\"{id}-wrong\" role=\"alert\">{sentence}</p>"))
}

fn done(admin: &Admin, request: &Request, user_id: &str, localpart: &str) -> Response {
    let address = address_for_apps(admin, request);
    let body = format!(
        "<p class=\"works\">The account is made</p><h1>Welcome, {}</h1><p class=\"lead\">This is your Matrix name. Others find you \
by it.</p><p class=\"name\">{}</p>{}{}{}",
        escaped(localpart),
        escaped(user_id),
        log_in_steps(&address, Some(localpart)),
        elsewhere(admin, &address.url),
        more_people(admin)
    );
    page(&format!("{user_id} is made"), server(admin), &body)
}

/// Where the server is looked after, and how others get an account.
fn more_people(admin: &Admin) -> String {
    match &admin.page.path {
        Some(path) => format!(
            "<h2>More people, and everything else</h2><p class=\"lead\">With the same name and password you look after this server \
with a browser: add people, see how it is, and what it needs.</p><p><a href=\"{path}\">Look after this server</a></p>"
        ),
        None => "<h2>More people</h2><p class=\"lead\">Their accounts are made in the terminal, with <code>snug user add NAME</code>.</p>"
            .to_owned(),
    }
}

/// What other devices take, when the address of the browser works on this machine only.
fn elsewhere(admin: &Admin, address: &str) -> String {
    if !is_only_here(address) {
        return String::new();
    }
    let urls = admin.addresses.get().map(|known| &known.urls[..]).unwrap_or_default();
    let head = "<div class=\"note\"><strong>That address works on this machine only.</strong>";
    match urls.iter().find(|url| !is_only_here(url)) {
        Some(url) => format!("{head} On other devices of your network enter:{}</div>", copied("elsewhere", url)),
        None => format!(
            "{head} To let other devices in, write {} into the config file and start Snug again.</div>",
            listen_line(admin)
        ),
    }
}

fn used(admin: &Admin, request: &Request) -> Response {
    let address = address_for_apps(admin, request);
    let body = format!(
        "<h1>This link was used</h1><p class=\"lead\">The server has an account already. More are made in the terminal, with \
<code>snug user add NAME</code>.</p>{}",
        log_in_steps(&address, None)
    );
    page("This link was used", server(admin), &body).with_status(StatusCode::GONE)
}

fn unknown(server: &str) -> Response {
    let body = "<h1>This link is not the right one</h1><p class=\"lead\">Part of it may be missing. The whole link stands in the terminal \
                where Snug was started, and in its log; <code>snug check</code> prints it again.</p>";
    page("This link is not the right one", server, body).with_status(StatusCode::FORBIDDEN)
}

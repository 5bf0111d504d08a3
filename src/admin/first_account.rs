//! The page that makes the first account.
//!
//! Its link has a code that is printed and logged while there is no account. The code is removed when the first account
//! is made. The page loads nothing from other servers.

use std::sync::Arc;

use super::{Admin, error::Error};
use crate::http::{Rate, Request, Response, StatusCode};
use crate::user::PASSWORD_CHARS_MIN;

/// The path of the page, without the code that follows.
pub const FIRST_PATH: &str = "/_snug/first/";

/// The longest form: a name and two passwords, percent-encoded.
const FORM_BYTES_MAX: u64 = 4096;
/// Views of the page, by address.
const SHOWN: Rate = Rate { name: "first account pages", per_second: 1.0, burst: 60.0 };
/// Forms sent, by address: each may be a guess at the code.
const MADE: Rate = Rate { name: "first account forms", per_second: 0.2, burst: 10.0 };

const HEAD: &str = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>Snug</title><style>\
body{font:1.1rem/1.5 system-ui,sans-serif;max-width:26rem;margin:8vh auto;padding:0 1rem;color:#222;background:#fdfcf8}\
label{display:block;margin-top:1rem}input{font:inherit;width:100%;box-sizing:border-box;padding:.4rem;border:1px solid #999;border-radius:.3rem}\
button{font:inherit;margin-top:1.5rem;padding:.5rem 1.2rem;border:0;border-radius:.3rem;background:#2b5d4b;color:#fff}\
.wrong{color:#a11;font-weight:600}code{background:#eee;padding:.1rem .3rem;border-radius:.2rem}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#1c1c1a}code{background:#333}.wrong{color:#f88}}\
</style></head><body>";

/// `GET /_snug/first/{code}`
pub async fn show(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    request.limit(&SHOWN)?;
    if admin.users.count_up_to(1).await? > 0 {
        return Ok(gone());
    }
    Ok(form("", ""))
}

/// `POST /_snug/first/{code}`. The body is a form as browsers send it.
pub async fn make(admin: Arc<Admin>, mut request: Request) -> Result<Response, Error> {
    request.limit(&MADE)?;
    let body = request.bytes(FORM_BYTES_MAX).await?;
    let field = |name: &str| {
        let found = form_urlencoded::parse(&body).find(|(key, _)| key == name);
        found.map(|(_, value)| value.into_owned()).unwrap_or_default()
    };
    let (name, password, again) = (field("name"), field("password"), field("again"));
    let name = name.trim().trim_start_matches('@').to_lowercase();
    if admin.users.count_up_to(1).await? > 0 {
        return Ok(gone());
    }
    if password != again {
        return Ok(form(&name, "The two passwords are not the same."));
    }
    match admin.users.create_first(request.param("code"), &name, &password).await {
        Ok(user_id) => {
            tracing::info!("the first account was made: {user_id}");
            Ok(done(user_id.as_str(), request.header("host").unwrap_or("localhost:8008")))
        }
        // No memory, or an error of the store: not reported as a mistake in the form.
        Err(failed @ (crate::user::Error::Refused(_) | crate::user::Error::Store(_))) => Err(failed.into()),
        Err(failed) => Ok(form(&name, &format!("{failed}."))),
    }
}

fn form(name: &str, wrong: &str) -> Response {
    let wrong = if wrong.is_empty() { String::new() } else { format!("<p class=\"wrong\">{}</p>", escaped(wrong)) };
    let name = escaped(name);
    page(&format!(
        "<h1>The first account</h1><p>It will be an administrator's.</p>{wrong}<form method=\"post\">\
<label>User name<input name=\"name\" value=\"{name}\" required autofocus autocomplete=\"username\" autocapitalize=\"none\"></label>\
<label>Password<input name=\"password\" type=\"password\" required minlength=\"{PASSWORD_CHARS_MIN}\" autocomplete=\"new-password\"></label>\
<label>The same again<input name=\"again\" type=\"password\" required autocomplete=\"new-password\"></label>\
<button>Make the account</button></form>"
    ))
}

fn done(user_id: &str, host: &str) -> Response {
    let (user_id, host) = (escaped(user_id), escaped(host));
    page(&format!(
        "<h1>Done</h1><p>Your Matrix name is <code>{user_id}</code>.</p><p>Open any Matrix app, choose to sign in on another \
server, and give it the address of this one: <code>{host}</code>.</p><p>More accounts: <code>snug user add NAME</code>.</p>"
    ))
}

fn gone() -> Response {
    page("<h1>This link was used</h1><p>The server has an account already. More are made with <code>snug user add NAME</code>.</p>")
        .with_status(StatusCode::GONE)
}

fn page(body: &str) -> Response {
    Response::html(format!("{HEAD}{body}</body></html>"))
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

//! The pages for a browser: the front page, and the page that makes the first account.
//!
//! One template, one style sheet and one script. A page loads nothing, and works without the script, which is for the
//! button that copies an address. Every text of others is escaped. Bounded: a page is below 16 KiB, since a name typed
//! into a form and the host of a request are cut or refused before they are shown.

mod first_account;
mod front;

use std::net::IpAddr;

use super::Admin;
use crate::http::{Request, Response};
use crate::matrix::id;

pub use first_account::{FIRST_PATH, make, show};
pub use front::front;

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("copy.js");
const MARK: &str = include_str!("mark.svg");

/// A whole page. `body` is HTML; `title` and `server` are plain text.
fn page(title: &str, server: &str, body: &str) -> Response {
    let (title, server, version) = (escaped(title), escaped(server), env!("CARGO_PKG_VERSION"));
    let icon = MARK.replace('#', "%23").replace('"', "'");
    let page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">\
<meta name=\"robots\" content=\"noindex\"><link rel=\"icon\" href=\"data:image/svg+xml,{icon}\"><title>{title}</title><style>{STYLE}</style></head><body>\
<header>{MARK}<div>Snug <span>on {server}</span></div></header><main>{body}</main>\
<footer><span>Snug {version}, a Matrix homeserver</span></footer><script>{SCRIPT}</script></body></html>"
    );
    Response::html(page, STYLE, SCRIPT)
}

/// The address of this server for an app: the public one when there is one, else the one that the browser has used.
fn address_for_apps(admin: &Admin, request: &Request) -> String {
    // Not an address of this machine: a request without a host may come from anywhere.
    let first = || format!("https://{}", admin.users.server());
    match &admin.public_url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => request.origin().unwrap_or_else(first),
    }
}

/// The three steps from no app to being logged in. `user` is the name to log in with, when it is known.
fn log_in_steps(address: &str, user: Option<&str>) -> String {
    let name = match user {
        Some(user) => format!(
            "Your user name is <strong>{}</strong>; the password is the one you have just chosen.",
            escaped(user)
        ),
        None => "With your user name and your password.".to_owned(),
    };
    let scheme = match address.strip_prefix("http://") {
        Some(_) => "<p class=\"hint\">The <code>http://</code> is part of it: without it an app tries https.</p>",
        None => "",
    };
    format!(
        "<h2>Log in with an app</h2><ol><li><strong>Get a Matrix app</strong><p class=\"lead\">For example Element, \
FluffyChat or Cinny, on a phone or a computer.</p></li><li><strong>Enter this server&#39;s address</strong><p class=\"lead\">The \
app may offer another server first, such as matrix.org. Change that to:</p>{}{scheme}</li><li><strong>Log in</strong>\
<p class=\"lead\">{name}</p></li></ol>",
        copied("address", address)
    )
}

/// An address with a button that copies it. The script shows the button.
fn copied(id: &str, address: &str) -> String {
    let address = escaped(address);
    format!(
        "<div class=\"address\"><code id=\"{id}\">{address}</code><button type=\"button\" data-copy=\"{id}\" hidden>\
<span aria-live=\"polite\">Copy</span></button></div>"
    )
}

/// Whether an address leads to the very machine that uses it.
fn is_only_here(address: &str) -> bool {
    let (host, _port) = id::split_port(address.split_once("://").map_or(address, |(_, host)| host));
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.ends_with(".localhost") || bare.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// What to write into the config file, so that other machines get in, in HTML.
fn listen_line(admin: &Admin) -> String {
    let port = admin.addresses.get().and_then(|known| known.apps.first()).map_or(8008, |socket| socket.port());
    format!("<code>{}</code>", escaped(&super::listen_line(port)))
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

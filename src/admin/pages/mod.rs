//! The pages for a browser: the front page, the page that makes the first account, and those where administrators look
//! after the server.
//!
//! What anybody may see is a card, whose template is `http/page/`; such a page is below 16 KiB, since a name typed into a
//! form and the host of a request are cut or refused before they are shown. What administrators see stands in the frame of
//! `frame.rs`, a file for each page, with templates that escape every text. Read `frame.rs`, `home.rs`, then the others.

mod backups;
mod days;
pub mod certificate;
mod first_account;
mod frame;
mod front;
mod home;
mod link;
mod live;
mod log;
mod people;
mod qr;
mod reports;
mod rooms;
mod servers;
mod settings;
mod share;
mod sign_in;
mod workers;

use std::net::{IpAddr, SocketAddr};

use super::{Admin, addresses::PASSWORD_PATH, error::Error};
use crate::http::page::{escaped, trouble};
use crate::http::{Request, Response, Router};
use crate::matrix::id;

use frame::Pages;

pub use first_account::FIRST_PATH;
pub use frame::Desk;

/// The routes of all pages.
pub fn routes(router: &mut Router, admin: &std::sync::Arc<Admin>) {
    let template = format!("{FIRST_PATH}{{code}}");
    let password = format!("{PASSWORD_PATH}{{code}}");
    router
        .surface(admin)
        .get("/", front::front)
        .get(&template, first_account::show)
        .post(&template, first_account::make)
        .get(&password, link::show)
        .post(&password, link::set);
    if admin.page.path.is_none() {
        return;
    }
    let mut pages = Pages::new(router, admin);
    let (open, root) = pages.open();
    open.get(&format!("{root}page.css"), frame::style)
        .get(&format!("{root}page.js"), frame::script)
        .get(&format!("{root}mark.svg"), frame::mark)
        .get(&format!("{root}sign-in"), sign_in::show)
        .post(&format!("{root}sign-in"), sign_in::sign_in);
    pages.act("sign-out", sign_in::sign_out).show("live/{part}", live::events).show("", home::show);
    people::routes(&mut pages);
    rooms::routes(&mut pages);
    reports::routes(&mut pages);
    servers::routes(&mut pages);
    backups::routes(&mut pages);
    settings::routes(&mut pages);
    pages.show("workers", workers::show).show("log", log::show);
    pages.show("{*rest}", frame::nowhere);
}

/// The address of this server for an app.
struct Address {
    url: String,
    /// The browser came through a proxy that does not say whether it encrypts: `https` is what most do.
    is_guess: bool,
}

/// The public address when there is one, else the one that the browser has used.
fn address_for_apps(admin: &Admin, request: &Request) -> Address {
    let certain = |url: String| Address { url, is_guess: false };
    if let Some(url) = &admin.settings.get().public_url {
        return certain(url.trim_end_matches('/').to_owned());
    }
    // Not an address of this machine: a request without a host may come from anywhere.
    let Some(url) = request.origin() else { return certain(format!("https://{}", admin.users.server())) };
    let ports = admin.addresses.get().map(|known| known.apps.iter().map(SocketAddr::port).collect::<Vec<_>>());
    match (url.strip_prefix("http://"), ports) {
        (Some(host), Some(ports)) if is_of_a_proxy(host, &ports) => {
            Address { url: format!("https://{host}"), is_guess: true }
        }
        _ => certain(url),
    }
}

/// Whether a host, as the browser named it, is that of a proxy: a name on the Internet without a port, where this server
/// does not listen on port 80.
fn is_of_a_proxy(host: &str, ports: &[u16]) -> bool {
    const AT_HOME: [&str; 6] = [".local", ".localhost", ".lan", ".home", ".internal", ".home.arpa"];
    let (name, port) = id::split_port(host);
    let is_ip = name.starts_with('[') || name.parse::<IpAddr>().is_ok();
    let is_at_home = !name.contains('.') || AT_HOME.iter().any(|end| name.ends_with(end));
    port.is_none() && !is_ip && !is_at_home && !ports.contains(&80)
}

/// The page in place of an error that only an app can read.
fn or_trouble(admin: &Admin, shown: Result<Response, Error>) -> Response {
    shown.unwrap_or_else(|failed| trouble(admin.users.server().as_str(), &failed.into()))
}

/// The three steps from no app to being logged in. `user` is the name to log in with, when it is known.
fn log_in_steps(address: &Address, user: Option<&str>) -> String {
    let name = match user {
        Some(user) => format!(
            "Your user name is <strong>{}</strong>; the password is the one you have just chosen.",
            escaped(user)
        ),
        None => "With your user name and your password.".to_owned(),
    };
    let scheme = match address.url.starts_with("http://") {
        true => "<p class=\"hint\">The <code>http://</code> is part of it: without it an app tries https.</p>",
        false if address.is_guess => GUESS,
        false => "",
    };
    format!(
        "<h2>Log in with an app</h2><ol><li><strong>Get a Matrix app</strong><p class=\"lead\">For example Element, \
FluffyChat or Cinny, on a phone or a computer.</p></li><li><strong>Enter this server&#39;s address</strong><p class=\"lead\">The \
app may offer another server first, such as matrix.org. Change that to:</p>{}{scheme}</li><li><strong>Log in</strong>\
<p class=\"lead\">{name}</p></li></ol>",
        copied("address", &address.url)
    )
}

const GUESS: &str = "<p class=\"hint\">The <code>https://</code> is a guess, since the proxy before this server does not say. Its owner makes \
it certain with <code>public_url</code> in the config file.</p>";

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Behind a proxy with TLS that is not told to the server, the page said `http://`.
    #[test]
    fn a_name_on_the_internet_without_a_port_is_that_of_a_proxy() {
        for host in ["m.example.org", "example.org"] {
            assert!(is_of_a_proxy(host, &[8008]), "{host}");
        }
        let others = [
            "m.example.org:8008",
            "192.168.1.20",
            "[fd00::2]",
            "nas",
            "nas.local",
            "nas.lan",
            "nas.home.arpa",
            "localhost",
        ];
        for host in others {
            assert!(!is_of_a_proxy(host, &[8008]), "{host}");
        }
        assert!(!is_of_a_proxy("m.example.org", &[8008, 80]));
    }
}

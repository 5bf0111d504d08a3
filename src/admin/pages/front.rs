//! The front page: what this is, that it works, and how to log in.

use std::sync::Arc;

use super::{address_for_apps, is_only_here, listen_line, log_in_steps, or_trouble};
use crate::admin::{Admin, error::Error};
use crate::http::page::{escaped, page};
use crate::http::{Request, Response};

/// `GET /`. Says to everybody what the endpoints of the API say too, and not who has an account.
pub async fn front(admin: Arc<Admin>, request: Request) -> Result<Response, Error> {
    Ok(or_trouble(&admin, shown(&admin, &request).await))
}

async fn shown(admin: &Admin, request: &Request) -> Result<Response, Error> {
    let server = admin.users.server().as_str();
    let has_accounts = admin.users.count_up_to(1).await? > 0;
    let address = address_for_apps(admin, request);
    let here = if is_only_here(&address.url) { &only_here(admin) } else { "" };
    let body = format!(
        "<p class=\"works\">It works</p><h1>{}</h1><p class=\"lead\">This is a Matrix homeserver: it keeps the chats of the \
people who have an account here.</p>{}{}{here}{}",
        escaped(server),
        if has_accounts { "" } else { NO_ACCOUNT },
        log_in_steps(&address, None),
        if has_accounts { accounts(admin) } else { String::new() }
    ) + &looked_after(admin);
    Ok(page(&format!("{server} runs Snug"), server, &body))
}

const NO_ACCOUNT: &str = "<p class=\"note\"><strong>There is no account yet.</strong> Open the link that Snug printed when it started; it \
makes the first one. <code>snug check</code> prints it again.</p>";

/// How somebody gets an account.
fn accounts(admin: &Admin) -> String {
    let how = match admin.settings.get().is_registration_open {
        true => "Choose in the app to make one, at the same address.",
        false => {
            "Accounts are made by the owner of this server, with <code>snug user add NAME</code>. Ask for one, and you get a user \
             name and a password."
        }
    };
    format!("<h2>No account yet?</h2><p class=\"lead\">{how}</p>")
}

/// Where administrators sign in.
fn looked_after(admin: &Admin) -> String {
    let Some(path) = &admin.page.path else { return String::new() };
    format!("<p class=\"hint\">Administrators <a href=\"{path}\">look after this server</a> with a browser.</p>")
}

fn only_here(admin: &Admin) -> String {
    format!(
        "<p class=\"note\"><strong>This address works on this machine only.</strong> Other devices take the address that this \
machine has in the network: <code>snug check</code> prints it. They get in when the config file has the line \
{}.</p>",
        listen_line(admin)
    )
}

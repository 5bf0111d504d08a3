//! The message on the terminal when the server has started.

use std::io::Write as _;
use std::path::Path;

use super::Server;
use crate::admin;

/// Prints the message for the operator at the terminal. A closed terminal or pipe is no error: the server runs all the
/// same.
pub async fn greet(server: &Server, first: Option<&Path>, command: &str) {
    let text = greeting(server, first, command).await;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

async fn greeting(server: &Server, first: Option<&Path>, command: &str) -> String {
    let url = public_url(server);
    let mut text = format!("Snug is open at {url} as {}\n", server.config.server_name);
    if let Some(file) = first {
        text += &format!("Settings: {}\n", file.display());
    }
    match server.users.setup_code().await {
        Ok(Some(code)) => {
            if server.config.server_name == "localhost" {
                text.push_str(
                    "\nThe name localhost is for trying things out. It becomes part of every account's name and cannot be changed \
                     after the first one:\nset server_name first if other servers shall find this one.\n",
                );
            }
            text += &format!(
                "\nThere is no account yet. Make the first one, an administrator's, with this link, which works once:\n\n    \
                 {url}{}{code}\n\nor with this command:\n\n    {command} user add NAME --admin\n\n",
                admin::FIRST_PATH
            );
        }
        Ok(None) => {}
        Err(error) => tracing::error!("the accounts cannot be read: {error}"),
    }
    text
}

/// The URL for a browser: the public one when it is known, else one that works on this machine.
fn public_url(server: &Server) -> String {
    if let Some(url) = &server.config.apps.public_url {
        return url.clone();
    }
    let Some(open) = server.open.iter().find(|open| !open.federation) else { return "no address".to_owned() };
    let scheme = if open.tls { "https" } else { "http" };
    let ip = open.address.ip();
    let host = if ip.is_loopback() || ip.is_unspecified() { "localhost".to_owned() } else { ip.to_string() };
    format!("{scheme}://{host}:{}", open.address.port())
}

//! Where the running server is reached, and as whom it runs: for `snug check`, and for the page of the first account.

use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::json;

use super::{Admin, error::Error};
use crate::http::{Request, Response};

/// The open addresses, as they were at the start.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    /// The sockets for apps, and those for other servers.
    pub apps: Vec<SocketAddr>,
    pub servers: Vec<SocketAddr>,
    /// What a browser or an app takes, those for other machines first.
    pub urls: Vec<String>,
    /// Where plain HTTP is spoken beside HTTPS, as browsers take it, and the port for apps that speaks HTTPS.
    pub plain: Vec<String>,
    pub secure: Option<u16>,
    /// The server's own user and groups, by number: a service manager may have given it more than its user has.
    pub uid: u32,
    pub gids: Vec<u32>,
}

/// The path of the page where somebody chooses a password, without the code that follows.
pub const PASSWORD_PATH: &str = "/_snug/password/";

/// The line of the config file that lets the machines of the network in.
pub fn listen_line(port: u16) -> String {
    format!("listen = [\"[::]:{port}\"]")
}

/// `GET /server`: its name, the sockets it has open, its user and groups, and the code of the first account's link while
/// there is none.
pub async fn server(admin: Arc<Admin>, _: Request) -> Result<Response, Error> {
    let known = admin.addresses.get().cloned().unwrap_or_default();
    let (name, first) = (admin.users.server(), admin.users.setup_code().await?);
    Ok(Response::json(&json!({
        "server_name": name,
        "apps": known.apps,
        "servers": known.servers,
        "plain": known.plain,
        "first": first,
        "uid": known.uid,
        "gids": known.gids,
    })))
}

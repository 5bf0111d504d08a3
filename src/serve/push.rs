//! How the worker for push gateways is joined to the rooms and the settings.

use crate::config::Config;
use crate::deliver::push::{Notices, PushOptions, Waiting};
use crate::matrix::push::notice::Notice;
use crate::room::{self, RoomNum, Rooms};
use crate::store::{self, Read, UserNum};

impl Notices for Rooms {
    fn notice(&self, get: &Read, user: UserNum, waiting: Waiting) -> store::Result<Option<Notice>> {
        let of = match waiting.invite {
            true => room::Waiting::Invite,
            // Places from before our own history are below zero, and nothing there waits.
            false => room::Waiting::Event(i64::try_from(waiting.at.0).unwrap_or(i64::MAX)),
        };
        Rooms::notice(self, get, user, waiting.room, of)
    }

    fn is_invite_hidden(&self, get: &Read, user: UserNum, room: RoomNum) -> store::Result<bool> {
        Rooms::is_invite_hidden(self, get, user, room)
    }
}

/// Half of the connections to other servers may be to gateways too, within the same account of memory.
pub fn options(config: &Config, connections_max: usize) -> PushOptions {
    PushOptions {
        requests_max: (connections_max / 2).clamp(2, 16),
        own: if config.push.gateway { own_urls(config) } else { Vec::new() },
        private: config.push.private_urls.clone(),
    }
}

/// Where an app may have been told that this server is: by the public URL, the server's name, or on this machine.
fn own_urls(config: &Config) -> Vec<String> {
    let scheme = if config.client.tls_certificate.is_some() { "https" } else { "http" };
    let ports = config.listen.iter().map(|socket| socket.port());
    let here =
        ports.flat_map(|port| ["localhost", "127.0.0.1", "[::1]"].map(|host| format!("{scheme}://{host}:{port}")));
    let named = std::iter::once(format!("https://{}", config.server_name));
    config.apps.public_url.iter().cloned().chain(named).chain(here).collect()
}

//! Being found on the home network: what is told there, and whether.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Server, addresses};
use crate::config::Config;
use crate::mdns::{LABEL_BYTES_MAX, Names, Responder};

/// The first-minute text waits so long for a name to be found free.
pub(super) const PATIENCE: Duration = Duration::from_millis(1500);
const NAME: &str = "snug";

impl Server {
    /// Begins to answer on the home network, when other machines get in at all.
    pub(super) fn announce(&mut self) {
        let sockets: Vec<SocketAddr> =
            self.open.iter().filter(|open| !open.federation).map(|open| open.address).collect();
        let Some(reached) = sockets.iter().find(|socket| !socket.ip().is_loopback()) else { return };
        if !self.config.home.announce {
            return;
        }
        let names = Names::new(&name(&self.config), self.config.server_name.as_str(), "/", reached.port());
        let responder = Responder::new(names, self.clock.clone(), addresses::home_networks);
        self.responder = Some(responder.clone());
        self.endless.push(self.worker("home network", move |worker| {
            let responder = responder.clone();
            async move { responder.run(&worker).await }
        }));
    }

    /// The URL under which machines of the home network find this one, if they do.
    pub async fn home_url(&self) -> Option<String> {
        let name = self.responder.as_ref()?.found_as(PATIENCE).await?;
        let open = self.open.iter().find(|open| !open.federation && !open.address.ip().is_loopback())?;
        Some(addresses::url(if open.tls { "https" } else { "http" }, &name, open.address.port()))
    }
}

fn name(config: &Config) -> String {
    // Names that are no label are found under none.
    let is_label = |name: &&str| !name.contains('.') && (1..=LABEL_BYTES_MAX).contains(&name.len());
    let own = || config.server_name.host().strip_suffix(".local").filter(is_label);
    config.home.name.clone().or_else(|| own().map(ToOwned::to_owned)).unwrap_or_else(|| NAME.to_owned())
}

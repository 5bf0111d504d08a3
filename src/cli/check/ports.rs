//! `snug check`: the ports, and the addresses under which apps reach the server.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::Value;

use super::report::Report;
use crate::config::Config;
use crate::http::from_here;
use crate::serve;

const CONNECT: Duration = Duration::from_secs(3);

/// What the running server says of its open ports.
pub struct InUse {
    apps: Vec<SocketAddr>,
    servers: Vec<SocketAddr>,
    /// The code in the link of the first account, while there is none.
    first: Option<String>,
}

/// The addresses of the config: those for apps, then those for other servers.
fn configured(config: &Config) -> impl Iterator<Item = &SocketAddr> {
    let servers = match config.serves_federation() {
        true => &config.federation.listen[..],
        false => &[],
    };
    config.listen.iter().chain(servers)
}

/// A stopped server must find its ports free.
pub fn free(config: &Config, report: &mut Report) {
    for address in configured(config) {
        match is_free(*address, &|address| TcpListener::bind(address).map(drop)) {
            Ok(free) => report.good(free),
            Err(taken) => report.bad(taken),
        }
    }
    reached(config, &config.listen, report);
}

/// Whether an address can be opened, as the server would do it.
fn is_free(address: SocketAddr, open: &dyn Fn(SocketAddr) -> std::io::Result<()>) -> Result<String, String> {
    let Err(error) = open(address) else { return Ok(format!("{address} is free.")) };
    match serve::ports::instead(address, &error).map(|plain| (plain, open(plain))) {
        Some((plain, Ok(()))) => {
            Ok(format!("{plain} is free; {address} means the same on this machine, which has no IPv6."))
        }
        Some((plain, Err(other))) if other.kind() == ErrorKind::AddrInUse => {
            Err(format!("{plain} is in use by another program, and {address} cannot be opened: {error}."))
        }
        _ if error.kind() == ErrorKind::AddrInUse => Err(format!("{address} is in use by another program.")),
        _ => Err(format!("{address} cannot be opened: {error}.")),
    }
}

/// A running server must answer on its ports. They may be others than those of the config.
pub fn in_use(config: &Config, in_use: &InUse, report: &mut Report) {
    for address in in_use.apps.iter().chain(&in_use.servers) {
        match TcpStream::connect_timeout(&from_here(*address), CONNECT) {
            Ok(_) => report.good(format!("{address} is open.")),
            Err(error) => report.bad(format!("{address} does not answer: {error}.")),
        }
    }
    for address in configured(config).filter(|address| !in_use.has(address)) {
        report.bad(format!(
            "The config says {address}, and the server does not listen there: it was started with other settings."
        ));
    }
    let urls = reached(config, &in_use.apps, report);
    if let Some(code) = &in_use.first {
        report.note(serve::first_account(&urls, code).trim());
    }
}

impl InUse {
    /// Reads the answer of `/server`.
    pub fn of(said: &Value) -> InUse {
        let sockets = |said: &Value| -> Vec<SocketAddr> {
            said.as_array().into_iter().flatten().filter_map(|text| text.as_str()?.parse().ok()).collect()
        };
        let first = said["first"].as_str().map(str::to_owned);
        InUse { apps: sockets(&said["apps"]), servers: sockets(&said["servers"]), first }
    }

    /// Whether an address of the config is open. Its port may be 0, which any port is, and `[::]` may have become
    /// `0.0.0.0`.
    fn has(&self, address: &SocketAddr) -> bool {
        let is_same = |open: &SocketAddr| {
            let everywhere = open.ip().is_unspecified() && address.ip().is_unspecified();
            (open.ip() == address.ip() || everywhere) && (address.port() == 0 || open.port() == address.port())
        };
        self.apps.iter().chain(&self.servers).any(is_same)
    }
}

/// Says where apps reach the server. Answers the addresses.
fn reached(config: &Config, apps: &[SocketAddr], report: &mut Report) -> Vec<String> {
    let certificate = super::certificates::for_apps(config);
    let urls = serve::urls(config, apps, certificate.as_deref());
    let listed = urls.join(", ");
    if serve::is_only_here(config, apps) {
        report.note(format!("Only this machine reaches it, at {listed}. {}", serve::let_in(config, apps)));
    } else {
        report.good(format!("Apps reach it at {listed}."));
    }
    urls
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[::]` was reported as wrong on a machine without IPv6, where the server starts.
    #[test]
    fn everywhere_is_ipv4_alone_on_a_machine_without_ipv6() {
        let without_six = |address: SocketAddr| match address.is_ipv6() {
            true => Err(std::io::Error::from(ErrorKind::Unsupported)),
            false => Ok(()),
        };
        let said = is_free("[::]:8008".parse().unwrap(), &without_six).unwrap();
        assert!(said.contains("0.0.0.0:8008 is free") && said.contains("no IPv6"), "{said}");
        assert!(is_free("[fd00::1]:8008".parse().unwrap(), &without_six).is_err());
        let taken = |_| Err(std::io::Error::from(ErrorKind::AddrInUse));
        let said = is_free("[::]:8008".parse().unwrap(), &taken).unwrap_err();
        assert_eq!(said, "[::]:8008 is in use by another program.");
    }
}

//! The addresses under which this machine is reached, for people: the greeting, `snug check`, the page of the first
//! account.
//!
//! The system's tables are read line by line and no further than a megabyte; at most [`ADDRESSES_MAX`] addresses are
//! kept.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ruma::ServerName;

use crate::admin;
use crate::base::sort_few_by;
use crate::config::{Config, FILE_NAME};
use crate::http::tls::Certificate;
use crate::mdns::{NETWORKS_MAX, Network};

/// More than a home's machine has.
const ADDRESSES_MAX: usize = 8;
const TABLE_BYTES_MAX: u64 = 1 << 20;
const LINE_BYTES_MAX: u64 = 512;

/// Interfaces to guests inside this machine: containers and virtual machines.
const GUESTS: [&str; 8] = ["docker", "br-", "veth", "virbr", "podman", "cni", "lxc", "flannel"];

/// Flags of an IPv6 address (`linux/if_addr.h`): temporary, a failed test for duplicates, deprecated, not yet tested.
const UNFIT: u8 = 0x01 | 0x08 | 0x20 | 0x40;

/// The URLs under which apps and browsers reach the server: the public one, those for other machines, those for this
/// one. `apps` are the sockets. With a certificate only what it is for is listed, as long as there is something.
pub fn urls(config: &Config, apps: &[SocketAddr], certificate: Option<&Certificate>) -> Vec<String> {
    let public = config.apps.public_url.iter().map(|url| url.trim_end_matches('/').to_owned());
    public.chain(of_sockets(apps, certificate, &config.server_name)).collect()
}

fn of_sockets(apps: &[SocketAddr], certificate: Option<&Certificate>, name: &ServerName) -> Vec<String> {
    let Some(certificate) = certificate else { return plain_urls(apps) };
    // Beside a certificate of our own, what only this machine reaches is plain.
    let (plain, apps): (Vec<_>, Vec<_>) =
        apps.iter().partition(|socket| certificate.file().is_none() && socket.ip().is_loopback());
    let mut hosts = hosts(&apps, of_this_machine);
    if let Some(socket) = apps.iter().find(|socket| !socket.ip().is_loopback()) {
        hosts.insert(0, (name.host().to_owned(), socket.port()));
    }
    let is_for = |host: &str| certificate.is_for(host.trim_start_matches('[').trim_end_matches(']'));
    if hosts.iter().any(|(host, _)| is_for(host)) {
        hosts.retain(|(host, _)| is_for(host));
    } else {
        hosts.retain(|(host, _)| host != name.host());
    }
    let mut urls = written("https", hosts);
    urls.extend(plain_urls(&plain));
    urls
}

/// The URLs of sockets that speak plain HTTP.
pub fn plain_urls(sockets: &[SocketAddr]) -> Vec<String> {
    written("http", hosts(sockets, of_this_machine))
}

/// Whether only programs on this machine can connect, and no proxy is known that lets others in.
pub fn is_only_here(config: &Config, apps: &[SocketAddr]) -> bool {
    config.apps.public_url.is_none() && apps.iter().all(|socket| socket.ip().is_loopback())
}

/// How other machines get in: the line of the config file, and where it is.
pub fn let_in(config: &Config, apps: &[SocketAddr]) -> String {
    let file = config.file.clone().unwrap_or_else(|| config.data_dir.join(FILE_NAME));
    let port = apps.first().map_or(8008, SocketAddr::port);
    let (line, file) = (admin::listen_line(port), file.display());
    format!("To let other machines of your network in, write {line} into {file} and start Snug again.")
}

/// One URL a line, with a path behind each.
pub fn listed(urls: &[String], path: &str) -> String {
    let line = |url: &String| {
        let here = if urls.len() > 1 && is_here(url) { "    (on this machine)" } else { "" };
        format!("    {url}{path}{here}\n")
    };
    urls.iter().map(line).collect()
}

pub fn is_here(url: &str) -> bool {
    url.contains("://localhost") || url.contains("://127.")
}

/// The links to the page of the first account.
pub fn first_account(urls: &[String], code: &str) -> String {
    let these = if urls.len() > 1 { "one of these links" } else { "this link" };
    let links = listed(urls, &format!("{}{code}", admin::FIRST_PATH));
    format!("There is no account yet. Make the first one, an administrator's, with {these} (it works once):\n\n{links}")
}

/// The private networks that this machine is in, guests inside it aside.
pub fn home_networks() -> Vec<Network> {
    let table = |name: &str| File::open(format!("/proc/net/{name}")).map(BufReader::new);
    let routes = table("route").map(routes).unwrap_or_default();
    let addresses = table("fib_trie").map(|table| v4(table, |ip| is_home(ip, &routes))).unwrap_or_default();
    let network = |ip: Ipv4Addr| {
        let route = route(ip, &routes)?;
        let v6 = table("if_inet6").map(v6_of_home).unwrap_or_default();
        let v6 = v6.into_iter().find(|(_, interface)| *interface == route.interface).map(|(ip, _)| ip);
        Some(Network { ip, mask: route.mask, v6 })
    };
    addresses.into_iter().filter_map(network).take(NETWORKS_MAX).collect()
}

fn is_home(ip: Ipv4Addr, routes: &[Route]) -> bool {
    (ip.is_private() || ip.is_link_local()) && !is_guests(interface(ip, routes).unwrap_or_default())
}

/// The URL of a host and a port.
pub fn url(scheme: &str, host: &str, port: u16) -> String {
    match (scheme, port) {
        ("http", 80) | ("https", 443) => format!("{scheme}://{host}"),
        _ => format!("{scheme}://{host}:{port}"),
    }
}

fn written(scheme: &str, hosts: Vec<(String, u16)>) -> Vec<String> {
    let mut urls = Vec::new();
    for (host, port) in hosts {
        let url = url(scheme, &host, port);
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    urls
}

/// Hosts and ports under which sockets are reached: those for other machines, then those for this one.
fn hosts(sockets: &[SocketAddr], machine: impl Fn() -> Vec<IpAddr>) -> Vec<(String, u16)> {
    let (mut hosts, mut here) = (Vec::new(), Vec::new());
    for socket in sockets {
        let (ip, port) = (socket.ip(), socket.port());
        if ip.is_unspecified() {
            let fits = |ip: &IpAddr| ip.is_ipv4() || socket.is_ipv6();
            hosts.extend(machine().into_iter().filter(fits).map(|ip| (host(ip), port)));
            here.push(("localhost".to_owned(), port));
        } else if ip == IpAddr::from([127, 0, 0, 1]) || ip == Ipv6Addr::LOCALHOST {
            here.push(("localhost".to_owned(), port));
        } else {
            let list = if ip.is_loopback() { &mut here } else { &mut hosts };
            list.push((host(ip), port));
        }
    }
    hosts.extend(here);
    hosts
}

fn host(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// The addresses of this machine that another one can use, IPv4 first. Empty where the system has no such tables.
pub fn of_this_machine() -> Vec<IpAddr> {
    let table = |name: &str| File::open(format!("/proc/net/{name}")).map(BufReader::new);
    let routes = table("route").map(routes).unwrap_or_default();
    let v4 = table("fib_trie").map(|table| local_v4(table, &routes)).unwrap_or_default();
    let v6 = table("if_inet6").map(local_v6).unwrap_or_default();
    let all = v4.into_iter().map(IpAddr::V4).chain(v6.into_iter().map(IpAddr::V6));
    all.take(ADDRESSES_MAX).collect()
}

/// The lines of a table, each no longer than [`LINE_BYTES_MAX`]. A longer one ends the table.
fn lines(table: impl Read) -> impl Iterator<Item = String> {
    let mut table = BufReader::new(table.take(TABLE_BYTES_MAX));
    std::iter::from_fn(move || {
        let mut line = String::new();
        let read = table.by_ref().take(LINE_BYTES_MAX).read_line(&mut line).ok()?;
        (read > 0 && line.ends_with('\n')).then_some(line)
    })
}

/// A network and the interface that leads to it.
struct Route {
    interface: String,
    network: u32,
    mask: u32,
}

/// Reads `/proc/net/route`: interface, network, gateway, flags, three counters, mask; the numbers in hexadecimal, as
/// they lie in memory.
fn routes(table: impl Read) -> Vec<Route> {
    let number = |word: &str| u32::from_str_radix(word, 16).ok().map(u32::from_be);
    let route = |line: String| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (network, mask) = (number(words.get(1)?)?, number(words.get(7)?)?);
        Some(Route { interface: words.first()?.chars().take(16).collect(), network, mask })
    };
    lines(table).filter_map(route).take(64).collect()
}

/// Reads `/proc/net/fib_trie`: an address in a line, and below it whether it is this machine's (`/32 host LOCAL`).
fn local_v4(table: impl Read, routes: &[Route]) -> Vec<Ipv4Addr> {
    let mut found = v4(table, |address| is_reachable(address, routes));
    sort_few_by(&mut found, |address| !is_uplink(*address, routes));
    found
}

fn v4(table: impl Read, is_wanted: impl Fn(Ipv4Addr) -> bool) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut last = None;
    for line in lines(table) {
        let line = line.trim();
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse().ok();
        } else if line == "/32 host LOCAL"
            && let Some(address) = last.take()
            && is_wanted(address)
            && !found.contains(&address)
            && found.len() < ADDRESSES_MAX
        {
            found.push(address);
        }
    }
    found
}

fn is_reachable(address: Ipv4Addr, routes: &[Route]) -> bool {
    let interface = interface(address, routes).unwrap_or_default();
    !address.is_loopback() && !address.is_link_local() && !is_guests(interface)
}

/// Whether the interface of an address leads to the Internet too.
fn is_uplink(address: Ipv4Addr, routes: &[Route]) -> bool {
    let mine = interface(address, routes);
    mine.is_some() && routes.iter().any(|route| route.mask == 0 && Some(route.interface.as_str()) == mine)
}

/// The interface of the smallest network that an address is in.
fn interface(address: Ipv4Addr, routes: &[Route]) -> Option<&str> {
    route(address, routes).map(|route| route.interface.as_str())
}

/// The smallest network that an address is in.
fn route(address: Ipv4Addr, routes: &[Route]) -> Option<&Route> {
    let inside = |route: &&Route| route.mask != 0 && u32::from(address) & route.mask == route.network;
    routes.iter().filter(inside).max_by_key(|route| route.mask)
}

fn is_guests(interface: &str) -> bool {
    GUESTS.iter().any(|guests| interface.starts_with(guests))
}

/// Reads `/proc/net/if_inet6`: address, index, length of the prefix, scope, flags, interface.
fn local_v6(table: impl Read) -> Vec<Ipv6Addr> {
    v6(table).map(|(address, _)| address).take(ADDRESSES_MAX).collect()
}

/// Those that a home gives itself, with their interfaces.
fn v6_of_home(table: impl Read) -> Vec<(Ipv6Addr, String)> {
    v6(table).filter(|(address, _)| address.is_unique_local()).take(ADDRESSES_MAX).collect()
}

fn v6(table: impl Read) -> impl Iterator<Item = (Ipv6Addr, String)> {
    let address = |line: String| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let address = Ipv6Addr::from(u128::from_str_radix(words.first()?, 16).ok()?);
        let flags = u8::from_str_radix(words.get(4)?, 16).ok()?;
        let unfit = address.is_loopback() || address.is_unicast_link_local() || flags & UNFIT != 0;
        let interface: String = words.get(5)?.chars().take(16).collect();
        (!unfit && !is_guests(&interface)).then_some((address, interface))
    };
    lines(table).filter_map(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTE: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
         wlan0\t00000000\t0101A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
         docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
         eth1\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
         wlan0\t0001A8C0\t00000000\t0001\t0\t0\t600\t00FFFFFF\t0\t0\t0\n";

    fn trie(addresses: &[&str]) -> String {
        let one = |address: &&str| format!("        |-- {address}\n           /32 host LOCAL\n");
        "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n".to_owned()
            + &addresses.iter().map(one).collect::<String>()
            + "        |-- 192.168.1.255\n           /32 link BROADCAST\nLocal:\n"
            + &addresses.iter().map(one).collect::<String>()
    }

    /// The order: first the way to the Internet, which the other machines of a home are on too.
    #[test]
    fn addresses_that_other_machines_can_use_are_found() {
        let routes = routes(ROUTE.as_bytes());
        let trie = trie(&["10.0.0.5", "127.0.0.1", "169.254.3.4", "172.17.0.1", "192.168.1.20"]);
        assert_eq!(local_v4(trie.as_bytes(), &routes), [[192, 168, 1, 20].into(), Ipv4Addr::from([10, 0, 0, 5])]);
        let v6 = "00000000000000000000000000000001 01 80 10 80       lo\n\
             fd000000000000000000000000000002 02 40 00 80    wlan0\n\
             20010db8000000000000000000000003 02 40 00 01    wlan0\n\
             fe8000000000000000fc00fffe000001 02 40 20 80    wlan0\n\
             fd170000000000000000000000000001 03 40 00 80  docker0\n";
        assert_eq!(local_v6(v6.as_bytes()), ["fd00::2".parse::<Ipv6Addr>().unwrap()]);
    }

    #[test]
    fn tables_without_an_end_and_broken_ones_are_left() {
        assert_eq!(lines(std::io::repeat(b'x')).count(), 0);
        assert!(lines(std::io::repeat(b'\n')).count() as u64 <= TABLE_BYTES_MAX);
        let many: Vec<String> = (0..250).map(|n| format!("10.1.1.{n}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(local_v4(trie(&many).as_bytes(), &[]).len(), ADDRESSES_MAX);
        for broken in ["", "|-- x\n/32 host LOCAL\n", "\u{e4} b c\n", "1 2 3 4 5 6 7 8 9\n"] {
            let routes = routes(broken.as_bytes());
            assert!(local_v4(broken.as_bytes(), &routes).is_empty() && local_v6(broken.as_bytes()).is_empty());
        }
    }

    fn reached(sockets: &[&str]) -> Vec<String> {
        let sockets: Vec<SocketAddr> = sockets.iter().map(|text| text.parse().unwrap()).collect();
        let machine = || vec![IpAddr::from([192, 168, 1, 20]), "fd00::2".parse().unwrap()];
        written("http", hosts(&sockets, machine))
    }

    #[test]
    fn sockets_become_urls() {
        assert_eq!(reached(&["127.0.0.1:8008"]), ["http://localhost:8008"]);
        assert_eq!(reached(&["127.0.0.1:1", "[::1]:1"]), ["http://localhost:1"]);
        assert_eq!(reached(&["127.0.0.2:80"]), ["http://127.0.0.2"]);
        let mixed = reached(&["127.0.0.1:1", "[fd00::9]:2", "10.0.0.5:3"]);
        assert_eq!(mixed, ["http://[fd00::9]:2", "http://10.0.0.5:3", "http://localhost:1"]);
        let all = reached(&["[::]:8008"]);
        assert_eq!(all, ["http://192.168.1.20:8008", "http://[fd00::2]:8008", "http://localhost:8008"]);
        assert_eq!(reached(&["0.0.0.0:8008"]), ["http://192.168.1.20:8008", "http://localhost:8008"]);
    }

    #[test]
    fn with_a_certificate_only_its_names_are_said() {
        let made = rcgen::generate_simple_self_signed(vec!["example.org".to_owned()]).unwrap();
        let folder = std::env::temp_dir().join(format!("snug-addresses-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (chain, key) = (folder.join("chain.pem"), folder.join("key.pem"));
        std::fs::write(&chain, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let certificate = Certificate::read(&chain, &key).unwrap();
        let urls = |name: &str| {
            of_sockets(
                &["192.168.1.20:443".parse().unwrap()],
                Some(&certificate),
                <&ServerName>::try_from(name).unwrap(),
            )
        };
        assert_eq!(urls("example.org"), ["https://example.org"]);
        assert_eq!(urls("other.example"), ["https://192.168.1.20"]);
        let _ = std::fs::remove_dir_all(&folder);
    }
}

//! Server name to address: the server-server API's "Resolving server names", step by step.
//!
//! The steps do their look-ups (addresses, services, the well-known file) through [`Lookup`], so they are tested
//! without a network. DNS answers are cached by the one DNS client behind the real `Lookup`; delegations are cached
//! here. Both caches are bounded by a number of entries from the profile.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use parking_lot::Mutex;
use ruma::ServerName;
use rustls::pki_types;

use super::address::is_private;
use super::contact::Contact;
use super::dns::ADDRESSES_MAX;
use super::dns::kept_out;
use super::lookup::{Lookup, Miss, Service, WellKnown};
use crate::base::{Clock, Owner, Random, Shares};

/// The port of a server that names none.
pub const DEFAULT_PORT: u16 = 8448;
const SERVICES_MAX: usize = 4;

const MINUTE_MS: u64 = 60_000;
const HOUR_MS: u64 = 60 * MINUTE_MS;
/// Bounds the specification suggests for keeping a delegation.
const DELEGATION_MS_MIN: u64 = 5 * MINUTE_MS;
const DELEGATION_MS_MAX: u64 = 48 * HOUR_MS;
const DELEGATION_MS_DEFAULT: u64 = 24 * HOUR_MS;
/// A server with a definite answer that it has no well-known file is asked again after an hour.
const ABSENT_MS: u64 = HOUR_MS;
/// A silence may be our own fault (no Internet just now), so it is believed for a short time only.
const SILENT_MS: u64 = 5 * MINUTE_MS;

/// The addresses to connect to, and the names to use there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// In the order to try; at least one, at most [`ADDRESSES_MAX`].
    pub addresses: Vec<SocketAddr>,
    /// The name its certificate must carry, also sent as SNI when it is a name.
    pub tls_name: pki_types::ServerName<'static>,
    /// The `Host` header.
    pub host: String,
}

/// An operator's override for one server.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Override {
    Address(SocketAddr),
    /// Taken as the `m.server` of a well-known file.
    Delegate(String),
}

pub struct Resolver {
    lookup: Box<dyn Lookup>,
    overrides: HashMap<String, Override>,
    delegations: Mutex<Shares<String, Delegation>>,
    allow_private: bool,
    clock: Clock,
    random: Random,
}

#[derive(Clone)]
struct Delegation {
    /// `None`: no well-known file, go on with the name itself.
    server: Option<String>,
    until_ms: u64,
    failures: u32,
    /// The web server was silent and nothing was known: true only if the server answers where this leads.
    guessed: bool,
}

impl Resolver {
    /// `overrides` are `(server name, "1.2.3.4:8448" or a delegated server name)`; `entries_max` bounds the delegations
    /// kept, about 200 bytes each: half of them for known servers, half for unknown ones.
    pub fn new(
        lookup: Box<dyn Lookup>,
        overrides: &[(String, String)],
        entries_max: usize,
        clock: Clock,
        random: Random,
    ) -> Resolver {
        let overrides = overrides.iter().map(|(name, to)| (name.to_ascii_lowercase(), parse_override(to))).collect();
        let half = entries_max.max(16) / 2;
        let delegations = Mutex::new(Shares::new(half, half));
        Resolver { lookup, overrides, delegations, allow_private: true, clock, random }
    }

    /// Whether requests may go to names with addresses of a home or company network; the operator's overrides always
    /// may.
    pub fn allowing_private(mut self, allowed: bool) -> Resolver {
        self.allow_private = allowed;
        self
    }

    fn literal(&self, server: &ServerName, allow_private: bool) -> Option<Result<Target, Miss>> {
        let found = literal(server)?;
        let private = |target: &Target| target.addresses.iter().any(|address| is_private(address.ip()));
        match &found {
            Ok(target) if !allow_private && private(target) => Some(Err(kept_out(server.host()))),
            _ => Some(found),
        }
    }

    /// The steps, in the specification's order. The result is remembered on the share of `owner`.
    pub async fn resolve(&self, server: &ServerName, owner: Owner<String>, contact: &Contact) -> Result<Target, Miss> {
        match self.overrides.get(&server.as_str().to_ascii_lowercase()) {
            Some(Override::Address(address)) => return fixed(server, *address),
            Some(Override::Delegate(to)) => return self.delegated(to, true).await,
            None => {}
        }
        if let Some(target) = self.literal(server, self.allow_private) {
            return target;
        }
        if let Some(port) = server.port() {
            return self.named(server.host(), port, server.as_str(), self.allow_private).await;
        }
        match self.delegation(server.host(), owner, contact).await? {
            Some(to) => self.delegated(&to, self.allow_private).await,
            None => self.by_service(server.host(), self.allow_private).await,
        }
    }

    /// Step 3.1 to 3.5: the same look-ups for the name the well-known file, or the operator, gives.
    async fn delegated(&self, to: &str, allow_private: bool) -> Result<Target, Miss> {
        let to: &ServerName =
            to.try_into().map_err(|_| Miss::Absent(format!("delegates to {to:?}, which is not a server name")))?;
        if let Some(target) = self.literal(to, allow_private) {
            return target;
        }
        match to.port() {
            Some(port) => self.named(to.host(), port, to.as_str(), allow_private).await,
            None => self.by_service(to.host(), allow_private).await,
        }
    }

    /// A host with a known port.
    async fn named(&self, host: &str, port: u16, header: &str, allow_private: bool) -> Result<Target, Miss> {
        let found = self.lookup.addresses(host, allow_private).await?;
        let mut addresses: Vec<SocketAddr> = found.into_iter().map(|ip| (ip, port).into()).collect();
        order_families(&mut addresses);
        target(addresses, host, header.to_owned())
    }

    /// SRV `_matrix-fed._tcp`, then the deprecated `_matrix._tcp`, then port 8448. The certificate is for the host itself,
    /// never for a service's host.
    async fn by_service(&self, host: &str, allow_private: bool) -> Result<Target, Miss> {
        for prefix in ["_matrix-fed._tcp.", "_matrix._tcp."] {
            let services = match self.lookup.services(&format!("{prefix}{host}")).await {
                Ok(services) if !services.is_empty() => services,
                Ok(_) | Err(Miss::Absent(_)) => continue,
                // Some routers never answer SRV queries; the look-up of addresses below shows whether the network is
                // there.
                Err(Miss::Silent(_)) => break,
            };
            let addresses = self.service_addresses(services, allow_private).await?;
            return target(addresses, host, host.to_owned());
        }
        self.named(host, DEFAULT_PORT, host, allow_private).await
    }

    async fn service_addresses(&self, services: Vec<Service>, allow_private: bool) -> Result<Vec<SocketAddr>, Miss> {
        let mut addresses = Vec::new();
        let mut miss = Miss::Absent("its SRV record says that the service does not exist".into());
        for service in order_services(services, || self.random.u64()) {
            match self.lookup.addresses(&service.host, allow_private).await {
                Ok(found) => {
                    let mut some: Vec<SocketAddr> = found.into_iter().map(|ip| (ip, service.port).into()).collect();
                    order_families(&mut some);
                    addresses.extend(some);
                }
                Err(found) => miss = found,
            }
        }
        if addresses.is_empty() { Err(miss) } else { Ok(addresses) }
    }

    /// The cached delegation of a host, fetched anew when it is too old. A silence never removes a known delegation.
    async fn delegation(&self, host: &str, owner: Owner<String>, contact: &Contact) -> Result<Option<String>, Miss> {
        let now = self.clock.now_ms();
        let known = self.delegations.lock().get(host).map(|known| known.clone());
        if let Some(known) = known.as_ref().filter(|known| known.until_ms > now) {
            return Ok(known.server.clone());
        }
        let answer = self.lookup.well_known(host, contact).await;
        let fresh = next_delegation(answer, known, now);
        let server = fresh.server.clone();
        self.delegations.lock().put(owner, host.to_owned(), fresh);
        Ok(server)
    }

    /// Reached without DNS: by an override with an address, or by an address literal.
    pub fn is_fixed(&self, server: &ServerName) -> bool {
        match self.overrides.get(&server.as_str().to_ascii_lowercase()) {
            Some(to) => matches!(to, Override::Address(_)),
            None => server.is_ip_literal(),
        }
    }

    /// Where the operator's settings lead a server.
    pub fn override_of(&self, server: &ServerName) -> Option<String> {
        self.overrides.get(&server.as_str().to_ascii_lowercase()).map(|to| match to {
            Override::Address(address) => address.to_string(),
            Override::Delegate(to) => to.clone(),
        })
    }

    /// The look-ups themselves, past what is kept.
    pub fn lookup(&self) -> &dyn Lookup {
        &*self.lookup
    }

    /// Has the delegation of a server fetched anew when it is next needed.
    pub fn forget(&self, server: &ServerName) {
        self.delegations.lock().remove(server.host());
    }

    /// Whether the name server answers.
    pub async fn has_name_server(&self) -> bool {
        self.lookup.has_name_server().await
    }

    /// The server's address stopped answering: the delegation is soon fetched again, and kept if that finds nothing. A
    /// guess was wrong, and is forgotten.
    pub fn forget_later(&self, server: &ServerName) {
        let now = self.clock.now_ms();
        let mut delegations = self.delegations.lock();
        if delegations.peek(server.host()).is_some_and(|known| known.guessed) {
            delegations.remove(server.host());
        } else if let Some(known) = delegations.get(server.host()) {
            known.until_ms = known.until_ms.min(now + SILENT_MS);
        }
    }
}

/// The delegation to remember after asking for a well-known file.
fn next_delegation(answer: Result<WellKnown, Miss>, known: Option<Delegation>, now_ms: u64) -> Delegation {
    let failures = known.as_ref().map_or(0, |known| known.failures);
    match answer.and_then(check_name) {
        Ok(found) => {
            let keep_ms = found.max_age_ms.unwrap_or(DELEGATION_MS_DEFAULT).clamp(DELEGATION_MS_MIN, DELEGATION_MS_MAX);
            Delegation { server: Some(found.server), until_ms: now_ms + keep_ms, failures: 0, guessed: false }
        }
        // A working delegation outlives three refusals: a restarting web server does not mean that the server moved.
        Err(Miss::Absent(_)) => Delegation {
            server: known.and_then(|known| known.server).filter(|_| failures < 3),
            until_ms: now_ms + if failures < 3 { SILENT_MS } else { ABSENT_MS },
            failures: failures.saturating_add(1),
            guessed: false,
        },
        Err(Miss::Silent(_)) => {
            let guessed = known.as_ref().is_none_or(|known| known.guessed);
            let server = known.and_then(|known| known.server);
            Delegation { server, until_ms: now_ms + SILENT_MS, failures, guessed }
        }
    }
}

/// A file that names no server counts as absent: the specification goes on to the next step.
fn check_name(found: WellKnown) -> Result<WellKnown, Miss> {
    match <&ServerName>::try_from(found.server.as_str()) {
        Ok(_) => Ok(found),
        Err(_) => Err(Miss::Absent(format!("delegates to {:?}, which is not a server name", found.server))),
    }
}

fn parse_override(to: &str) -> Override {
    match to.parse::<SocketAddr>() {
        Ok(address) => Override::Address(address),
        Err(_) => match to.parse::<IpAddr>() {
            Ok(ip) => Override::Address((ip, DEFAULT_PORT).into()),
            Err(_) => Override::Delegate(to.to_owned()),
        },
    }
}

/// The operator gave an address: the server still has to prove its name.
fn fixed(server: &ServerName, address: SocketAddr) -> Result<Target, Miss> {
    target(vec![address], server.host(), server.as_str().to_owned())
}

/// Step 1: an address literal needs no lookup at all.
fn literal(server: &ServerName) -> Option<Result<Target, Miss>> {
    let ip: IpAddr = server.host().trim_start_matches('[').trim_end_matches(']').parse().ok()?;
    let address = (ip, server.port().unwrap_or(DEFAULT_PORT)).into();
    Some(target(vec![address], server.host(), server.as_str().to_owned()))
}

pub fn target(mut addresses: Vec<SocketAddr>, tls_host: &str, host: String) -> Result<Target, Miss> {
    addresses.truncate(ADDRESSES_MAX);
    if addresses.is_empty() {
        return Err(Miss::Absent(format!("{tls_host} has no address")));
    }
    let bare = tls_host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let tls_name = pki_types::ServerName::try_from(bare)
        .map_err(|_| Miss::Absent(format!("{tls_host} is not a valid name for a certificate")))?;
    Ok(Target { addresses, tls_name, host })
}

/// IPv6 first, then alternating, so that a board without a working IPv6 route loses one attempt and not all of them.
pub fn order_families(addresses: &mut Vec<SocketAddr>) {
    let (six, four): (Vec<_>, Vec<_>) = addresses.drain(..).partition(SocketAddr::is_ipv6);
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    loop {
        let pair = [six.next(), four.next()];
        if pair == [None, None] {
            return;
        }
        addresses.extend(pair.into_iter().flatten());
    }
}

/// RFC 2782: by priority, within one priority at random in proportion to weight. "." means "no such service".
fn order_services(mut services: Vec<Service>, mut random: impl FnMut() -> u64) -> Vec<Service> {
    services.retain(|service| !matches!(service.host.as_str(), "" | "."));
    services.sort_by_cached_key(|service| {
        let draw = (random() >> 32) * (u64::from(service.weight) + 1);
        (service.priority, std::cmp::Reverse(draw))
    });
    services.truncate(SERVICES_MAX);
    services
}

/// The lifetime that the headers of a well-known answer give: that of `Cache-Control`, else the time between `Date` (or
/// now) and `Expires`. An unreadable date counts as past (RFC 9111, section 5.3).
pub(super) fn kept_ms(headers: &http::HeaderMap, now_ms: u64) -> Option<u64> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let date = |text: &str| {
        let date = httpdate::parse_http_date(text.trim()).ok()?;
        Some(date.duration_since(std::time::UNIX_EPOCH).ok()?.as_millis() as u64)
    };
    let by_date = || {
        let expires = text("expires")?;
        let sent = text("date").and_then(date).unwrap_or(now_ms);
        Some(date(expires).map_or(0, |expires| expires.saturating_sub(sent)))
    };
    text("cache-control").and_then(max_age_ms).or_else(by_date)
}

/// `Cache-Control: max-age`, zero for `no-store` and `no-cache`.
pub fn max_age_ms(cache_control: &str) -> Option<u64> {
    let parts = || cache_control.split(',').map(|part| part.trim().to_ascii_lowercase());
    if parts().any(|part| part == "no-store" || part == "no-cache") {
        return Some(0);
    }
    let seconds = parts().find_map(|part| part.strip_prefix("max-age=")?.trim_matches('"').parse::<u64>().ok())?;
    Some(seconds.saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::lookup::Boxed;
    use std::sync::Arc;

    /// A small made-up Internet.
    #[derive(Default)]
    struct World {
        addresses: HashMap<&'static str, Vec<IpAddr>>,
        services: HashMap<&'static str, Vec<Service>>,
        well_known: HashMap<&'static str, Result<WellKnown, Miss>>,
        asked: Arc<Mutex<Vec<String>>>,
    }

    impl World {
        fn note<T>(&self, what: &str, name: &str, found: Option<T>) -> Result<T, Miss> {
            self.asked.lock().push(format!("{what} {name}"));
            found.ok_or(Miss::Absent(name.into()))
        }
    }

    impl Lookup for World {
        fn addresses<'a>(&'a self, host: &'a str, allow_private: bool) -> Boxed<'a, Result<Vec<IpAddr>, Miss>> {
            Box::pin(async move {
                let found = self.note("A", host, self.addresses.get(host).cloned())?;
                match host.ends_with(".lan") && !allow_private {
                    true => Err(kept_out(host)),
                    false => Ok(found),
                }
            })
        }
        fn services<'a>(&'a self, name: &'a str) -> Boxed<'a, Result<Vec<Service>, Miss>> {
            Box::pin(async move { self.note("SRV", name, self.services.get(name).cloned()) })
        }
        fn well_known<'a>(&'a self, host: &'a str, _: &'a Contact) -> Boxed<'a, Result<WellKnown, Miss>> {
            Box::pin(async move { self.note("WK", host, self.well_known.get(host).cloned())? })
        }
        fn has_name_server(&self) -> Boxed<'_, bool> {
            Box::pin(async { true })
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn delegate(to: &str) -> Result<WellKnown, Miss> {
        Ok(WellKnown { server: to.into(), max_age_ms: None })
    }

    fn service(host: &str, port: u16) -> Vec<Service> {
        vec![Service { priority: 10, weight: 5, host: host.into(), port }]
    }

    fn world() -> World {
        let mut world = World::default();
        for (host, addresses) in [
            ("plain.example", vec![ip("192.0.2.1"), ip("2001:db8::1")]),
            ("hs.example", vec![ip("192.0.2.2")]),
            ("srv-host.example", vec![ip("192.0.2.3")]),
            ("old-host.example", vec![ip("192.0.2.4")]),
            ("nas.lan", vec![ip("10.0.0.7")]),
        ] {
            world.addresses.insert(host, addresses);
        }
        world.services.insert("_matrix-fed._tcp.srv.example", service("srv-host.example", 1111));
        world.services.insert("_matrix._tcp.srv.example", service("old-host.example", 2222));
        world.services.insert("_matrix._tcp.old.example", service("old-host.example", 3333));
        world.well_known.insert("wk-port.example", delegate("hs.example:4444"));
        world.well_known.insert("wk-ip.example", delegate("192.0.2.9"));
        world.well_known.insert("wk-ip6.example", delegate("[2001:db8::9]:5555"));
        world.well_known.insert("wk-srv.example", delegate("srv.example"));
        world.well_known.insert("wk-plain.example", delegate("hs.example"));
        world.well_known.insert("wk-bad.example", delegate("not a name"));
        world
    }

    fn stranger() -> Owner<String> {
        Owner::Stranger(String::new())
    }

    fn resolver(world: World) -> Resolver {
        let overrides = [
            ("lan.example".to_owned(), "10.0.0.5:9999".to_owned()),
            ("lan2.example".to_owned(), "hs.example:7777".to_owned()),
            ("lan3.example".to_owned(), "nas.lan:7777".to_owned()),
            ("lan4.example".to_owned(), "nas.lan".to_owned()),
        ];
        Resolver::new(Box::new(world), &overrides, 16, Clock::simulated(1_000_000), Random::seeded(7))
    }

    async fn check(server: &str, addresses: &[&str], tls: &str, host: &str) {
        let server: &ServerName = server.try_into().unwrap();
        let found = resolver(world())
            .resolve(server, stranger(), &Contact::default())
            .await
            .unwrap_or_else(|miss| panic!("{server}: {miss:?}"));
        let expected: Vec<SocketAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        assert_eq!(found.addresses, expected, "{server}");
        assert_eq!(found.tls_name.to_str(), tls, "{server}");
        assert_eq!(found.host, host, "{server}");
    }

    #[tokio::test]
    async fn the_steps_of_the_specification() {
        check("1.2.3.4", &["1.2.3.4:8448"], "1.2.3.4", "1.2.3.4").await;
        check("1.2.3.4:80", &["1.2.3.4:80"], "1.2.3.4", "1.2.3.4:80").await;
        check("[2001:db8::5]", &["[2001:db8::5]:8448"], "2001:db8::5", "[2001:db8::5]").await;
        check("plain.example:77", &["[2001:db8::1]:77", "192.0.2.1:77"], "plain.example", "plain.example:77").await;
        check("wk-ip.example", &["192.0.2.9:8448"], "192.0.2.9", "192.0.2.9").await;
        check("wk-ip6.example", &["[2001:db8::9]:5555"], "2001:db8::9", "[2001:db8::9]:5555").await;
        check("wk-port.example", &["192.0.2.2:4444"], "hs.example", "hs.example:4444").await;
        check("wk-srv.example", &["192.0.2.3:1111"], "srv.example", "srv.example").await;
        check("wk-plain.example", &["192.0.2.2:8448"], "hs.example", "hs.example").await;
        check("srv.example", &["192.0.2.3:1111"], "srv.example", "srv.example").await;
        check("old.example", &["192.0.2.4:3333"], "old.example", "old.example").await;
        check("plain.example", &["[2001:db8::1]:8448", "192.0.2.1:8448"], "plain.example", "plain.example").await;
    }

    /// Behind a NAT64 or a 6to4 router `64:ff9b::a00:1` led to the neighbour 10.0.0.1.
    #[test]
    fn what_leads_into_a_network_is_private() {
        let private = [
            "0.0.0.0 0.1.2.3 10.1.2.3 100.64.0.1 100.127.255.255 127.0.0.1 169.254.1.1 172.16.0.1 172.31.255.255",
            "192.0.0.1 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1",
            "224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255",
            ":: ::1 ::10.0.0.1 ::ffff:192.168.1.1 ::ffff:0:10.0.0.1 ::ffff:127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::7f00:1",
            "64:ff9b:1::8.8.8.8 64:ff9b:1:2:3:4:5:6 64:ff9b:0:1::8.8.8.8 2002:a00:1::1 2002:7f00:1:: 2002:c0a8:101::1",
            "2001:0:a00:1::f7f7:f7f7 2001:0:808:808::f5ff:fffe 2001:2::1 2001:10::1 2001:20::1 2001:db8::1 3fff::1",
            "100::1 5f00::1 fc00::1 fd00::1 fe80::1 febf::1 fec0::1 feff::1 ff02::1 2a00::5efe:10.0.0.1",
            "2a00::200:5efe:192.168.1.1",
        ];
        let public = [
            "1.1.1.1 8.8.8.8 100.63.0.1 100.128.0.1 172.15.0.1 172.32.0.1 192.0.1.1 192.167.1.1 198.17.0.1 198.20.0.1",
            "223.255.255.255 2001:4860::8888 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::1 2001:0:808:808::f7f7:f7f7",
            "2001:200::1 2a00::1 2a00::5efe:8.8.8.8 2606:4700::1111 3ffe::1",
        ];
        for (texts, wanted) in [(&private[..], true), (&public[..], false)] {
            for text in texts.iter().flat_map(|texts| texts.split(' ')) {
                assert_eq!(is_private(ip(text)), wanted, "{text}");
            }
        }
    }

    #[tokio::test]
    async fn private_addresses_are_for_those_who_allow_them() {
        let is_found = async |server: &str, allowed| {
            let server: &ServerName = server.try_into().unwrap();
            resolver(world()).allowing_private(allowed).resolve(server, stranger(), &Contact::default()).await.is_ok()
        };
        assert!(!is_found("10.0.0.1:8448", false).await);
        assert!(is_found("10.0.0.1:8448", true).await);
        for server in ["[64:ff9b::a00:1]:8448", "[2002:a00:1::1]", "[::ffff:10.0.0.1]"] {
            assert!(!is_found(server, false).await && is_found(server, true).await, "{server}");
        }
        // A delegation to such an address, too.
        let mut world = world();
        world.well_known.insert("sly.example", delegate("[64:ff9b::a00:1]:8448"));
        let sly: &ServerName = "sly.example".try_into().unwrap();
        assert!(resolver(world).allowing_private(false).resolve(sly, stranger(), &Contact::default()).await.is_err());
        for server in ["lan.example", "lan3.example", "lan4.example"] {
            assert!(is_found(server, false).await, "the operator named {server}");
        }
        assert!(!is_found("nas.lan:7777", false).await && is_found("nas.lan:7777", true).await);
    }

    #[tokio::test]
    async fn overrides_come_first_and_keep_the_name() {
        check("lan.example", &["10.0.0.5:9999"], "lan.example", "lan.example").await;
        check("lan2.example", &["192.0.2.2:7777"], "hs.example", "hs.example:7777").await;
    }

    #[tokio::test]
    async fn a_delegation_is_kept_and_a_bad_one_refused() {
        let world = world();
        let asked = world.asked.clone();
        let resolver = resolver(world);
        for _ in 0..3 {
            resolver.resolve("wk-port.example".try_into().unwrap(), stranger(), &Contact::default()).await.unwrap();
        }
        assert_eq!(asked.lock().iter().filter(|ask| ask.starts_with("WK")).count(), 1);
        assert!(matches!(
            resolver.resolve("wk-bad.example".try_into().unwrap(), stranger(), &Contact::default()).await,
            Err(Miss::Absent(_))
        ));
    }

    /// Made-up server names pushed a known server's delegation out of the cache. It was looked up again, and not found
    /// while its website was down.
    #[tokio::test]
    async fn strangers_push_out_no_delegation_of_a_server_known_here() {
        let world = world();
        let asked = world.asked.clone();
        let resolver = resolver(world);
        let known = || Owner::Known("wk-port.example".to_owned());
        resolver.resolve("wk-port.example".try_into().unwrap(), known(), &Contact::default()).await.unwrap();
        for n in 0..100 {
            let name = format!("s{n}.evil.example");
            let _ = resolver
                .resolve((&*name).try_into().unwrap(), Owner::Stranger("evil.example".to_owned()), &Contact::default())
                .await;
        }
        resolver.resolve("wk-port.example".try_into().unwrap(), known(), &Contact::default()).await.unwrap();
        assert_eq!(asked.lock().iter().filter(|ask| *ask == "WK wk-port.example").count(), 1);
        assert!(resolver.delegations.lock().len() <= 16);
    }

    #[test]
    fn a_silence_prolongs_what_was_known() {
        let known = next_delegation(delegate("a.example"), None, 0);
        assert_eq!(known.until_ms, DELEGATION_MS_DEFAULT);
        let later = next_delegation(Err(Miss::Silent(String::new())), Some(known), 1);
        assert_eq!((later.server.as_deref(), later.until_ms), (Some("a.example"), 1 + SILENT_MS));
        let mut gone = later;
        for _ in 0..4 {
            gone = next_delegation(Err(Miss::Absent(String::new())), Some(gone), 2);
        }
        assert_eq!((gone.server, gone.until_ms), (None, 2 + ABSENT_MS));
    }

    #[test]
    fn headers_bound_the_keeping() {
        let age = |text| max_age_ms(text);
        assert_eq!(age("public, max-age=600"), Some(600_000));
        assert_eq!(age("no-store"), Some(0));
        assert_eq!(age("public"), None);
        let kept = |pairs: &[(&'static str, &str)]| {
            let headers = pairs.iter().map(|(name, value)| {
                (http::HeaderName::from_static(name), http::HeaderValue::from_str(value).unwrap())
            });
            kept_ms(&headers.collect(), 784_111_777_000)
        };
        let expires = ("expires", "Sun, 06 Nov 1994 09:49:37 GMT");
        assert_eq!(kept(&[expires]), Some(HOUR_MS));
        assert_eq!(kept(&[expires, ("date", "Sun, 06 Nov 1994 09:19:37 GMT")]), Some(HOUR_MS / 2));
        assert_eq!(kept(&[expires, ("cache-control", "max-age=60")]), Some(MINUTE_MS));
        assert_eq!(kept(&[("expires", "0")]), Some(0));
        assert_eq!(kept(&[]), None);
        let found = Ok(WellKnown { server: "a".into(), max_age_ms: Some(1) });
        assert_eq!(next_delegation(found, None, 0).until_ms, DELEGATION_MS_MIN);
    }

    #[test]
    fn any_bytes_are_a_delegation_or_none() {
        let seeds: [&[u8]; 4] = [b"b.example:8448", b"[::1]:80", b"1.2.3.4", b"a..b:99999"];
        crate::base::any_bytes::any_bytes(&seeds, |bytes| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            parse_override(&text);
            if let Ok(found) = check_name(WellKnown { server: text, max_age_ms: Some(1) }) {
                let server = <&ServerName>::try_from(found.server.as_str()).expect("a name that was checked");
                literal(server);
                let _ = target(vec![([127, 0, 0, 1], 1).into()], server.host(), found.server.clone());
            }
        });
    }
}

//! Being found on the home network: a small responder of multicast DNS (RFC 6762) that says where this server's name of the
//! house, such as `snug.local`, is, and that it serves Matrix and a page (RFC 6763).
//!
//! It speaks on private networks only: it joins the group on the interfaces that have an address of one, answers nobody
//! whose own address is outside of these networks, and says no other addresses than those. It asks nothing but whether its
//! name is free, and keeps nothing of what others say.
//!
//! Bounds: one socket and one buffer of a message; [`ANSWERS_RATE`] answers a second; a look at the networks each
//! [`LOOK`], so that an idle house does not wake the board.

mod message;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::sync::watch;

use crate::base::{Clock, Worker};
use message::{ANY, Asked, HTTP, Heard, MATRIX, MESSAGE_BYTES_MAX, Writing, hear};

const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
const PORT: u16 = 5353;
/// How often it is looked for networks that have come or gone; sooner while there are none.
const LOOK: Duration = Duration::from_secs(60);
const LOOK_FIRST: Duration = Duration::from_secs(5);
/// Three questions whether the name is free, a quarter of a second apart (RFC 6762, section 8.1).
const PROBES: usize = 3;
const PROBE: Duration = Duration::from_millis(250);
/// After so many rivals in a row names are asked for slowly (RFC 6762, section 8.1): one who lies says it each time.
const RIVALS_MAX: u32 = 15;
const RIVALS_PAUSE: Duration = Duration::from_secs(5);
const ANNOUNCE: Duration = Duration::from_secs(1);
/// After a rival has shown up, the name is not changed again for so long: who wants to, could make us change it for ever.
const SETTLED: Duration = Duration::from_secs(60);
const ANSWERS_RATE: u32 = 20;
/// Numbers tried behind the name.
const NUMBERS_MAX: u32 = 99;
/// Of one part of a name, as DNS has it.
pub const LABEL_BYTES_MAX: usize = 63;
/// Networks of one machine.
pub const NETWORKS_MAX: usize = 8;

/// A private network that this machine is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub ip: Ipv4Addr,
    pub mask: u32,
    /// The same interface's unique local address of IPv6.
    pub v6: Option<std::net::Ipv6Addr>,
}

impl Network {
    fn has(&self, ip: Ipv4Addr) -> bool {
        u32::from(ip) & self.mask == u32::from(self.ip) & self.mask
    }

    fn addresses(&self) -> Vec<IpAddr> {
        [Some(IpAddr::V4(self.ip)), self.v6.map(IpAddr::V6)].into_iter().flatten().collect()
    }
}

/// What is told.
#[derive(Debug, Clone)]
pub struct Names {
    /// As wished for, and the number behind it when others have it.
    wished: String,
    number: u32,
    host: String,
    instance: String,
    pub server_name: String,
    /// Of the page.
    pub path: String,
    pub port: u16,
}

impl Names {
    /// `host` is a label, without `.local`.
    pub fn new(host: &str, server_name: &str, path: &str, port: u16) -> Names {
        Names {
            wished: host.to_owned(),
            number: 1,
            host: label(host, ""),
            instance: instance(server_name, ""),
            server_name: server_name.to_owned(),
            path: path.to_owned(),
            port,
        }
    }

    fn host(&self) -> [&str; 2] {
        [&self.host, "local"]
    }

    fn services(&self) -> [&'static [&'static str]; 2] {
        [MATRIX, HTTP]
    }

    /// Another name, since somebody has this one.
    fn next(&mut self) {
        self.number = if self.number < NUMBERS_MAX { self.number + 1 } else { 2 };
        self.host = label(&self.wished, &format!("-{}", self.number));
        self.instance = instance(&self.server_name, &format!(" ({})", self.number));
    }
}

/// What people see in a list.
fn instance(server_name: &str, behind: &str) -> String {
    label(&format!("Snug on {server_name}"), behind)
}

/// A text as a label, with something short behind it.
fn label(text: &str, behind: &str) -> String {
    let mut label = text.to_owned();
    while label.len() + behind.len() > LABEL_BYTES_MAX {
        label.pop();
    }
    label + behind
}

/// The responder.
pub struct Responder {
    clock: Clock,
    names: Mutex<Names>,
    /// Where this machine's private networks are.
    look: fn() -> Vec<Network>,
    open: Mutex<Option<(Arc<UdpSocket>, Vec<Network>)>>,
    /// The name under which it is found, once that is known to be free.
    found_as: watch::Sender<Option<String>>,
}

impl Responder {
    pub fn new(names: Names, clock: Clock, look: fn() -> Vec<Network>) -> Arc<Responder> {
        let found_as = watch::channel(None).0;
        Arc::new(Responder { clock, names: Mutex::new(names), look, open: Mutex::default(), found_as })
    }

    /// The name under which machines of the home network find this one: at once when it is known, or within `patience`.
    pub async fn found_as(&self, patience: Duration) -> Option<String> {
        let mut told = self.found_as.subscribe();
        let known = async { told.wait_for(Option::is_some).await.ok().and_then(|name| name.clone()) };
        self.clock.timeout(patience, known).await.flatten()
    }

    /// Answers for ever; run as a worker. A unit is an answer.
    pub async fn run(self: Arc<Self>, worker: &Worker) {
        for round in 0u64.. {
            let networks = (self.look)();
            if !networks.is_empty() {
                match self.open(&networks) {
                    Ok(socket) => self.serve(worker, socket, networks).await,
                    Err(error) => worker.failed(format_args!("port {PORT} for multicast DNS: {error}")),
                }
            }
            *self.open.lock() = None;
            self.found_as.send_replace(None);
            let pause = if round < 12 { LOOK_FIRST } else { LOOK };
            worker.idle_for(pause);
            self.clock.sleep(pause).await;
        }
    }

    fn open(&self, networks: &[Network]) -> io::Result<Arc<UdpSocket>> {
        let socket = shared_socket()?;
        // One that cannot be joined does not hold the others up; none at all is an error.
        let joined: Vec<io::Result<()>> = networks.iter().map(|of| socket.join_multicast_v4(&GROUP, &of.ip)).collect();
        if joined.iter().all(Result::is_err) {
            joined.into_iter().collect::<io::Result<()>>()?;
        }
        let socket = Arc::new(UdpSocket::from_std(socket)?);
        *self.open.lock() = Some((socket.clone(), networks.to_vec()));
        Ok(socket)
    }

    /// Finds a free name, says it, and answers, until the networks are others.
    async fn serve(&self, worker: &Worker, socket: Arc<UdpSocket>, networks: Vec<Network>) {
        let mut socket = Speaking { socket, networks, second: 0, answers: 0 };
        self.settle(&mut socket).await;
        let (mut look_at, mut settled) = (self.clock.instant() + LOOK, self.clock.instant());
        loop {
            let now = self.clock.instant();
            if now >= look_at {
                if (self.look)() != socket.networks {
                    return;
                }
                look_at = now + LOOK;
            }
            worker.idle_for(look_at.saturating_sub(now));
            let Some((heard, from)) = self.next(&mut socket, look_at.saturating_sub(now)).await else { continue };
            match heard {
                Heard::Asked(asked) => worker.done(u64::from(self.reply(&mut socket, &asked, from))),
                Heard::Wanted(_) => {
                    // The name is ours: who asks for it is told so.
                    let asked = Asked { host: true, kind: ANY, ..Asked::default() };
                    worker.done(u64::from(self.reply(&mut socket, &asked, from)));
                }
                Heard::Taken(_) if self.clock.instant() >= settled + SETTLED => {
                    self.names.lock().next();
                    self.settle(&mut socket).await;
                    settled = self.clock.instant();
                }
                Heard::Taken(_) | Heard::Nothing => {}
            }
        }
    }

    /// Asks for the name until one is free, and says that it is taken now.
    async fn settle(&self, socket: &mut Speaking) {
        self.found_as.send_replace(None);
        let (mut asked, mut rivals) = (0, 0u32);
        while asked < PROBES {
            let names = self.names.lock().clone();
            socket.say_to_all(|of| Writing::probe(&names, &of.addresses()));
            asked += 1;
            let until = self.clock.instant() + PROBE;
            while let Some(left) = until.checked_sub(self.clock.instant()).filter(|left| !left.is_zero()) {
                let Some((heard, from)) = self.next(socket, left).await else { break };
                let loses = match heard {
                    Heard::Taken(_) => true,
                    // Both want it at once: who has the later address has it (RFC 6762, section 8.2).
                    Heard::Wanted(other) => socket.network_of(from).is_some_and(|of| other > of.ip),
                    _ => false,
                };
                if loses {
                    self.names.lock().next();
                    (asked, rivals) = (0, rivals.saturating_add(1));
                    break;
                }
            }
            if asked == 0 && rivals >= RIVALS_MAX {
                self.clock.sleep(RIVALS_PAUSE).await;
            }
        }
        let names = self.names.lock().clone();
        for again in 0..2 {
            if again > 0 {
                self.clock.sleep(ANNOUNCE).await;
            }
            socket.say_to_all(|of| Writing::answer(&Asked::all(), &names, &of.addresses(), u32::MAX, false));
            let name = format!("{}.local", names.host);
            if self.found_as.send_replace(Some(name.clone())).is_none() {
                tracing::info!("found on the home network as {name}");
            }
        }
    }

    /// The next message of another, within some time.
    async fn next(&self, socket: &mut Speaking, patience: Duration) -> Option<(Heard, SocketAddrV4)> {
        let mut bytes = [0; MESSAGE_BYTES_MAX];
        let arrived = self.clock.timeout(patience, socket.socket.recv_from(&mut bytes)).await?;
        let (length, from) = match arrived {
            Ok((length, SocketAddr::V4(from))) => (length, from),
            Ok(_) => return None,
            Err(_) => {
                self.clock.sleep(PROBE).await;
                return None;
            }
        };
        socket.network_of(from)?;
        let heard = hear(bytes.get(..length)?, &self.names.lock());
        (!is_echo(heard, *from.ip(), &socket.networks) && heard != Heard::Nothing).then_some((heard, from))
    }

    /// Whether it was answered.
    fn reply(&self, socket: &mut Speaking, asked: &Asked, from: SocketAddrV4) -> bool {
        let Some(network) = socket.network_of(from).cloned() else { return false };
        if !socket.may_answer(self.clock.instant()) {
            return false;
        }
        let legacy = from.port() != PORT;
        let answer = Writing::answer(asked, &self.names.lock(), &network.addresses(), u32::MAX, legacy);
        let to = if legacy || asked.alone { from } else { SocketAddrV4::new(GROUP, PORT) };
        socket.send(&network, &answer, to)
    }

    /// Takes its leave: others forget the name at once.
    pub fn leave(&self) {
        let Some((socket, networks)) = self.open.lock().take() else { return };
        let names = self.names.lock().clone();
        let socket = Speaking { socket, networks, second: 0, answers: 0 };
        socket.say_to_all(|of| Writing::answer(&Asked::all(), &names, &of.addresses(), 0, false));
    }
}

/// Whether what looks like a rival is none: another responder of this machine, we ourselves, or who repeats what we said
/// from one network to another, as some routers do. Programs on this machine may ask.
fn is_echo(heard: Heard, from: Ipv4Addr, networks: &[Network]) -> bool {
    let claimed = match heard {
        Heard::Taken(claimed) => claimed,
        Heard::Wanted(wanted) => Some(wanted),
        Heard::Asked(_) | Heard::Nothing => return false,
    };
    networks.iter().any(|of| of.ip == from || claimed == Some(of.ip))
}

/// An open socket and where it speaks.
struct Speaking {
    socket: Arc<UdpSocket>,
    networks: Vec<Network>,
    second: u64,
    answers: u32,
}

impl Speaking {
    fn network_of(&self, from: SocketAddrV4) -> Option<&Network> {
        self.networks.iter().find(|of| of.has(*from.ip()))
    }

    fn may_answer(&mut self, now: Duration) -> bool {
        if self.second != now.as_secs() {
            (self.second, self.answers) = (now.as_secs(), 0);
        }
        self.answers += 1;
        self.answers <= ANSWERS_RATE
    }

    fn say_to_all(&self, message: impl Fn(&Network) -> Vec<u8>) {
        for network in &self.networks {
            self.send(network, &message(network), SocketAddrV4::new(GROUP, PORT));
        }
    }

    fn send(&self, network: &Network, message: &[u8], to: SocketAddrV4) -> bool {
        let by = rustix::net::sockopt::set_ip_multicast_if(&*self.socket, &network.ip);
        by.is_ok() && self.socket.try_send_to(message, to.into()).is_ok()
    }
}

/// Bound to the port of multicast DNS, which other responders of this machine may have too.
fn shared_socket() -> io::Result<std::net::UdpSocket> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, PORT))?;
    let socket = std::net::UdpSocket::from(socket);
    socket.set_multicast_ttl_v4(255)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name was cut when it was written and whole when it was looked for, so that with a number behind it it was the same
    /// on the wire as before.
    #[test]
    fn a_long_name_with_a_number_is_another_one() {
        let mut names = Names::new(&"a".repeat(LABEL_BYTES_MAX), "here.test", "/", 8008);
        let first = names.host()[0].to_owned();
        names.next();
        assert_eq!((first.len(), names.host()[0].len()), (LABEL_BYTES_MAX, LABEL_BYTES_MAX));
        assert!(names.host()[0].ends_with("a-2"), "{}", names.host()[0]);
        names.wished = "a".repeat(100);
        names.next();
        assert_eq!(names.host()[0], format!("{}-3", "a".repeat(61)));
    }

    #[test]
    fn who_repeats_our_words_is_no_rival() {
        let network = |ip: [u8; 4]| Network { ip: ip.into(), mask: 0xffff_ff00, v6: None };
        let networks = [network([192, 168, 1, 5]), network([192, 168, 2, 5])];
        let (mine, router, other) = ([192, 168, 1, 5].into(), [192, 168, 2, 1].into(), [192, 168, 1, 9].into());
        assert!(is_echo(Heard::Taken(Some(mine)), router, &networks));
        assert!(is_echo(Heard::Wanted(mine), router, &networks));
        assert!(is_echo(Heard::Taken(None), mine, &networks));
        assert!(!is_echo(Heard::Taken(Some(other)), other, &networks));
        assert!(!is_echo(Heard::Taken(None), other, &networks) && !is_echo(Heard::Wanted(other), router, &networks));
        assert!(!is_echo(Heard::Asked(Asked::all()), mine, &networks), "programs here may ask");
    }
}

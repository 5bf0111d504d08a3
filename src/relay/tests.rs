//! The relay as its clients see it, over sockets of this machine. The private addresses here are not refused, which the
//! tests of that set.

use std::sync::atomic::Ordering as Order;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use super::message::{Arrived, Class, Key, Message, Writer, attribute, method, read, write_channel};
use super::*;
use crate::budget::Budget;

/// As `remote` says it, short.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            ip.is_private() || ip.is_link_local() || ip.is_multicast() || ip.is_broadcast() || ip.octets()[0] == 100
        }
        IpAddr::V6(_) => false,
    }
}

const NAME: &str = "9999999999:@anna:here.test";

fn relay(options: Options, is_private: fn(IpAddr) -> bool) -> Relay {
    relay_by(Clock::real(), options, is_private)
}

fn relay_by(clock: Clock, options: Options, is_private: fn(IpAddr) -> bool) -> Relay {
    let budget = Budget::for_tests();
    Relay::new(Parts {
        clock,
        random: Random::seeded(1),
        account: budget.account("relay"),
        realm: "here.test".to_owned(),
        login: Live::new(Login::Secret("north".to_owned())),
        is_private,
        options,
    })
}

fn key() -> Key {
    let secret = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"north");
    use base64::Engine;
    let password = base64::engine::general_purpose::STANDARD.encode(hmac::sign(&secret, NAME.as_bytes()));
    Key::of(NAME, "here.test", &password)
}

/// A client over UDP that has a nonce.
struct Phone {
    socket: UdpSocket,
    to: SocketAddr,
    nonce: String,
    serial: u8,
}

/// The class of an answer, its error, and the addresses in it.
type Answer = (Class, u16, Option<SocketAddr>, Option<SocketAddr>);

fn answer(message: &Message<'_>) -> Answer {
    let error = message.get(attribute::ERROR_CODE).map_or(0, |value| u16::from(value[2]) * 100 + u16::from(value[3]));
    let address = |number| message.address(number);
    (message.class, error, address(attribute::XOR_RELAYED_ADDRESS), address(attribute::XOR_MAPPED_ADDRESS))
}

impl Phone {
    async fn at(to: SocketAddr) -> Phone {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut phone = Phone { socket, to, nonce: String::new(), serial: 0 };
        let mut out = [0; 256];
        let asks = Writer::new(&mut out, Class::Request, method::ALLOCATE, [9; 12])
            .number(attribute::REQUESTED_TRANSPORT, 17 << 24);
        let length = asks.finish().unwrap();
        phone.socket.send_to(&out[..length], to).await.unwrap();
        let bytes = phone.hear().await;
        let Some(Arrived::Message(message)) = read(&bytes) else { panic!("{bytes:?}") };
        assert_eq!(answer(&message).1, 401);
        assert_eq!(message.text(attribute::REALM), Some("here.test"));
        phone.nonce = message.text(attribute::NONCE).unwrap().to_owned();
        phone
    }

    async fn hear(&self) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        let length = self.socket.recv_from(&mut bytes).await.unwrap().0;
        bytes.truncate(length);
        bytes
    }

    async fn ask(&mut self, method: u16, with: impl for<'b> FnOnce(Writer<'b>) -> Writer<'b>) -> Answer {
        self.serial += 1;
        let mut out = [0; 1024];
        let asks = with(Writer::new(&mut out, Class::Request, method, [self.serial; 12]))
            .attribute(attribute::USERNAME, NAME.as_bytes())
            .attribute(attribute::REALM, b"here.test")
            .attribute(attribute::NONCE, self.nonce.as_bytes());
        let length = asks.signed(&key()).finish().unwrap();
        self.socket.send_to(&out[..length], self.to).await.unwrap();
        let bytes = self.hear().await;
        let Some(Arrived::Message(message)) = read(&bytes) else { panic!("{bytes:?}") };
        if message.class == Class::Success {
            assert!(message.is_signed_with(&key()) && message.is_intact());
        }
        answer(&message)
    }

    async fn allocate(&mut self) -> SocketAddr {
        let (class, error, relayed, mapped) =
            self.ask(method::ALLOCATE, |asks| asks.number(attribute::REQUESTED_TRANSPORT, 17 << 24)).await;
        assert_eq!((class, error, mapped), (Class::Success, 0, self.socket.local_addr().ok()));
        relayed.unwrap()
    }

    async fn permit(&mut self, peer: &str) -> u16 {
        let peer: SocketAddr = peer.parse().unwrap();
        self.ask(method::CREATE_PERMISSION, |asks| asks.address(attribute::XOR_PEER_ADDRESS, peer)).await.1
    }

    async fn bind(&mut self, number: u16, peer: SocketAddr) -> u16 {
        let number = u32::from(number) << 16;
        let bind = self.ask(method::CHANNEL_BIND, |asks| {
            asks.number(attribute::CHANNEL_NUMBER, number).address(attribute::XOR_PEER_ADDRESS, peer)
        });
        bind.await.1
    }

    async fn send(&self, peer: SocketAddr, data: &[u8]) {
        let mut out = [0; 2048];
        let sends = Writer::new(&mut out, Class::Indication, method::SEND, [1; 12])
            .address(attribute::XOR_PEER_ADDRESS, peer)
            .attribute(attribute::DATA, data);
        let length = sends.plain().unwrap();
        self.socket.send_to(&out[..length], self.to).await.unwrap();
    }
}

async fn open(relay: &Relay) -> SocketAddr {
    relay.serve_udp("127.0.0.1:0".parse().unwrap()).await.unwrap().0
}

fn ports() -> Options {
    Options { ports: 20_000..=60_000, ..Options::default() }
}

#[tokio::test]
async fn two_phones_talk_through_their_allocations() {
    let relay = relay(ports(), is_private);
    let to = open(&relay).await;
    let (mut anna, mut ben) = (Phone::at(to).await, Phone::at(to).await);
    let (annas, bens) = (anna.allocate().await, ben.allocate().await);
    assert_eq!(relay.allocations(), 2);
    // Of the permission alone, then with a channel on one side.
    assert_eq!(anna.permit(&bens.to_string()).await, 0);
    assert_eq!(ben.permit(&annas.to_string()).await, 0);
    anna.send(bens, b"hello").await;
    let heard = ben.hear().await;
    let Some(Arrived::Message(message)) = read(&heard) else { panic!("{heard:?}") };
    assert_eq!((message.class, message.method), (Class::Indication, method::DATA));
    assert_eq!(message.get(attribute::DATA), Some(&b"hello"[..]));
    assert_eq!(message.address(attribute::XOR_PEER_ADDRESS), Some(annas));
    assert_eq!(ben.bind(0x4001, annas).await, 0);
    anna.send(bens, b"again").await;
    let heard = ben.hear().await;
    assert!(matches!(read(&heard), Some(Arrived::Channel(0x4001, b"again"))), "{heard:?}");
    // Time is up when asked for none.
    assert_eq!(ben.ask(method::REFRESH, |asks| asks.number(attribute::LIFETIME, 0)).await.0, Class::Success);
    assert_eq!(relay.allocations(), 1);
    assert_eq!(ben.ask(method::REFRESH, |asks| asks.number(attribute::LIFETIME, 600)).await.1, 437);
    relay.stop();
}

#[tokio::test]
async fn nothing_is_relayed_into_this_machine_or_the_home() {
    let relay = relay(ports(), is_private);
    let to = open(&relay).await;
    let mut phone = Phone::at(to).await;
    let relayed = phone.allocate().await;
    for peer in
        ["192.168.1.1:80", "10.0.0.1:80", "169.254.1.1:1", "100.64.0.1:1", "224.0.0.251:5353", "255.255.255.255:1"]
    {
        assert_eq!(phone.permit(peer).await, 403, "{peer}");
    }
    assert_eq!(phone.permit("[2001:4860::1]:1").await, 443);
    let is_here = |ip: &str| answer::is_of_this_machine(ip.parse().unwrap());
    assert!(is_here("127.0.0.9") && is_here("0.0.0.0") && !is_here("192.88.100.1") && !is_here("224.0.0.251"));
    assert_eq!(phone.permit("192.88.100.1:9").await, 0, "public ones are what it is for");
    // This machine's addresses stand for other allocations, and a socket of another program hears nothing.
    let victim = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = victim.local_addr().unwrap();
    assert_eq!(phone.permit(&address.to_string()).await, 0);
    phone.send(address, b"into this machine").await;
    // To itself: what it sent before would have come first.
    phone.send(relayed, b"to itself").await;
    phone.hear().await;
    assert!(victim.try_recv_from(&mut [0; 64]).is_err());
    // A setting lets it into the home.
    let open_relay = super::tests::relay(Options { home_peers: true, ..ports() }, is_private);
    let to = open(&open_relay).await;
    let mut phone = Phone::at(to).await;
    phone.allocate().await;
    assert_eq!(phone.permit("192.168.251.7:80").await, 0);
    assert_eq!(phone.permit("224.0.0.251:5353").await, 403);
}

#[tokio::test]
async fn who_asks_wrongly_is_told_why() {
    let relay = relay(ports(), is_private);
    let to = open(&relay).await;
    let mut phone = Phone::at(to).await;
    assert_eq!(phone.ask(method::REFRESH, |asks| asks).await.1, 437);
    assert_eq!(phone.ask(method::ALLOCATE, |asks| asks).await.1, 400);
    assert_eq!(phone.ask(method::ALLOCATE, |asks| asks.number(attribute::REQUESTED_TRANSPORT, 6 << 24)).await.1, 442);
    let udp = 17 << 24;
    let wrong = phone.ask(method::ALLOCATE, |asks| {
        asks.number(attribute::REQUESTED_TRANSPORT, udp).number(attribute::REQUESTED_ADDRESS_FAMILY, 2 << 24)
    });
    assert_eq!(wrong.await.1, 440, "no address of IPv6 on the way to this client");
    let unknown =
        phone.ask(method::ALLOCATE, |asks| asks.number(attribute::REQUESTED_TRANSPORT, udp).number(0x7777, 1));
    assert_eq!(unknown.await.1, 420);
    phone.allocate().await;
    let twice = phone.ask(method::ALLOCATE, |asks| asks.number(attribute::REQUESTED_TRANSPORT, udp));
    assert_eq!(twice.await.1, 437);
    phone.nonce = "1.abc".to_owned();
    assert_eq!(phone.ask(method::REFRESH, |asks| asks).await.1, 438);
}

/// The numbers of RFC 5766, which coturn's clients take any of; RFC 8656 left those up to 0x4fff.
#[tokio::test]
async fn channels_have_the_numbers_of_both_standards() {
    let relay = relay(ports(), is_private);
    let to = open(&relay).await;
    let (mut anna, mut ben) = (Phone::at(to).await, Phone::at(to).await);
    let (annas, bens) = (anna.allocate().await, ben.allocate().await);
    assert_eq!(ben.bind(0x7ffe, annas).await, 0);
    assert_eq!(anna.bind(0x5877, bens).await, 0);
    for (number, peer, error) in [
        (0x3fff, "192.88.100.1:9", 400),
        (0x7fff, "192.88.100.1:9", 400),
        (0x5877, "192.88.100.1:9", 400),
        (0x5878, "192.168.1.1:80", 403),
    ] {
        assert_eq!(anna.bind(number, peer.parse().unwrap()).await, error, "{number:#x} for {peer}");
    }
    let mut out = [0; 64];
    let length = write_channel(&mut out, 0x5877, b"hello", false).unwrap();
    anna.socket.send_to(&out[..length], to).await.unwrap();
    let heard = ben.hear().await;
    assert!(matches!(read(&heard), Some(Arrived::Channel(0x7ffe, b"hello"))), "{heard:?}");
    relay.stop();
}

/// A client with all its channels was told that its request was wrong, and asked again in other words for ever.
#[tokio::test]
async fn one_channel_too_many_is_for_want_of_room() {
    let relay = relay(ports(), is_private);
    let to = open(&relay).await;
    let mut phone = Phone::at(to).await;
    phone.allocate().await;
    for count in 0..=table::CHANNELS_MAX as u16 {
        let peer = SocketAddr::new([192, 88, 100, 1].into(), 1000 + count);
        let error = if usize::from(count) < table::CHANNELS_MAX { 0 } else { 508 };
        assert_eq!(phone.bind(0x4000 + count, peer).await, error, "{count}");
    }
    relay.stop();
}

/// A secret that has got out was good until the next start, whatever the settings said.
#[tokio::test]
async fn another_secret_is_in_force_at_once() {
    let relay = relay(ports(), is_private);
    let to = open(&relay).await;
    let mut phone = Phone::at(to).await;
    phone.allocate().await;
    relay.set_login(Login::Secret("south".to_owned()));
    assert_eq!(phone.permit("192.88.100.1:9").await, 401);
    relay.set_login(Login::Secret("north".to_owned()));
    assert_eq!(phone.permit("192.88.100.1:9").await, 0);
    relay.stop();
}

/// A user has some allocations, and all together what the account pays for.
#[tokio::test]
async fn allocations_are_bounded_and_give_back_what_they_took() {
    let relay = relay(ports(), is_private);
    let to = open(&relay).await;
    let mut phones = Vec::new();
    for _ in 0..table::USER_ALLOCATIONS_MAX {
        let mut phone = Phone::at(to).await;
        phone.allocate().await;
        phones.push(phone);
    }
    let mut more = Phone::at(to).await;
    let asked = more.ask(method::ALLOCATE, |asks| asks.number(attribute::REQUESTED_TRANSPORT, 17 << 24));
    assert_eq!(asked.await.1, 486);
    let taken = relay.0.taken.load(Order::Relaxed);
    assert_eq!(taken, u64::from(table::USER_ALLOCATIONS_MAX) * table::ALLOCATION_BYTES);
    let limit = relay.0.parts.account.limit();
    let rest = relay.0.charge(limit - taken).unwrap();
    assert!(relay.0.charge(1).is_none());
    drop(rest);
    for mut phone in phones {
        phone.ask(method::REFRESH, |asks| asks.number(attribute::LIFETIME, 0)).await;
    }
    while relay.0.taken.load(Order::Relaxed) > 0 {
        tokio::task::yield_now().await;
    }
    more.allocate().await;
}

#[tokio::test]
async fn a_stream_is_answered_in_order_and_ends_with_rubbish() {
    let relay = relay(ports(), is_private);
    let (to, _) = relay.serve_tcp("127.0.0.1:0".parse().unwrap(), None).await.unwrap();
    let mut stream = TcpStream::connect(to).await.unwrap();
    let mut out = [0; 64];
    let length = Writer::new(&mut out, Class::Request, method::BINDING, [3; 12]).finish().unwrap();
    // Two requests, the second one in two parts.
    stream.write_all(&[&out[..length], &out[..7]].concat()).await.unwrap();
    let mut heard = [0; 40];
    stream.read_exact(&mut heard).await.unwrap();
    stream.write_all(&out[7..length]).await.unwrap();
    let mut again = [0; 40];
    stream.read_exact(&mut again).await.unwrap();
    assert_eq!(heard, again);
    let Some(Arrived::Message(message)) = read(&heard) else { panic!("{heard:?}") };
    assert_eq!(answer(&message).3, stream.local_addr().ok());
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(stream.read(&mut heard).await.unwrap_or(0), 0, "closed");
    while relay.0.taken.load(Order::Relaxed) > 0 || relay.0.unproven.lock().count() > 0 {
        tokio::task::yield_now().await;
    }
}

/// Strangers may be forged: a network of them gets some answers a second.
#[tokio::test]
async fn strangers_are_answered_in_bounds() {
    // Within one moment, however long the machine takes over it.
    let relay = relay_by(Clock::simulated(1_000_000), ports(), is_private);
    let answered = (0..1000).filter(|n: &u32| relay.0.answers_stranger(IpAddr::from([198, 51, 100, *n as u8]))).count();
    assert!((40..=80).contains(&answered), "{answered}");
    let others = (0..40u8).filter(|n| relay.0.answers_stranger(IpAddr::from([203, 0, *n, 1]))).count();
    assert!(others >= 36, "{others} of 40 networks");
}

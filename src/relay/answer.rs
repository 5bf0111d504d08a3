//! What is asked of the relay: an address seen, an allocation, more time for it, permissions, channels.

use std::borrow::Cow;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use parking_lot::Mutex;
use ring::hmac;
use subtle::ConstantTimeEq;
use tokio::sync::Notify;

use super::message::{Class, Key, MESSAGE_BYTES_MAX, Message, USERNAME_BYTES_MAX, Writer, attribute, method};
use super::table::{ALLOCATION_BYTES, Allocation, Client, Full, Place, State, Unbound};
use super::way::Way;
use super::{Inner, Login};

const LIFETIME_S: u32 = 600;
const LIFETIME_S_MAX: u32 = 3600;
/// How long a nonce may be used.
const NONCE_S: u64 = 3600;
/// The times of nonces are counted from here, so that none is less than how long it may be used.
const NONCE_BASE_S: u64 = NONCE_S;
/// Peers named in one request for permissions.
const PEERS_MAX: usize = 16;
/// Ports tried for an allocation.
const PORT_TRIES: u16 = 64;
/// The channels of RFC 5766. RFC 8656 has those up to 0x4fff alone; older clients, coturn's tools among them, take any of these.
const CHANNELS: std::ops::RangeInclusive<u16> = 0x4000..=0x7ffe;
const UDP: u32 = 17 << 24;
/// What a request may have that must be understood.
const KNOWN: &[u16] = &[
    attribute::USERNAME,
    attribute::MESSAGE_INTEGRITY,
    attribute::CHANNEL_NUMBER,
    attribute::LIFETIME,
    attribute::XOR_PEER_ADDRESS,
    attribute::REALM,
    attribute::NONCE,
    attribute::REQUESTED_ADDRESS_FAMILY,
    attribute::EVEN_PORT,
    attribute::REQUESTED_TRANSPORT,
    attribute::RESERVATION_TOKEN,
];

/// An error as it is answered: code and reason.
type No = (u16, &'static str);

const BAD: No = (400, "Bad Request");
const UNPROVEN: No = (401, "Unauthorized");
const FORBIDDEN: No = (403, "Forbidden");
const UNKNOWN: No = (420, "Unknown Attribute");
const MISMATCH: No = (437, "Allocation Mismatch");
const STALE: No = (438, "Stale Nonce");
const FAMILY: No = (440, "Address Family not Supported");
const OTHER_LOGIN: No = (441, "Wrong Credentials");
const TRANSPORT: No = (442, "Unsupported Transport Protocol");
const OTHER_FAMILY: No = (443, "Peer Address Family Mismatch");
const QUOTA: No = (486, "Allocation Quota Reached");
const CAPACITY: No = (508, "Insufficient Capacity");

/// Who asks.
struct Caller<'a> {
    username: &'a str,
    /// Whose name that is: without the time of its end. Where all have the same name, where they are.
    user: Cow<'a, str>,
    key: Key,
}

impl Inner {
    /// Answers a request, or not at all. Never waits.
    pub(super) fn answer(self: &Arc<Inner>, request: &Message<'_>, client: Client, way: &Way) {
        let ip = client.1.ip();
        if !request.is_intact() {
            return;
        }
        let mut out = [0; MESSAGE_BYTES_MAX / 2];
        let transaction = request.transaction();
        if request.method == method::BINDING {
            if self.answers_stranger(ip) {
                let answer = Writer::new(&mut out, Class::Success, request.method, transaction);
                let answer = answer.address(attribute::XOR_MAPPED_ADDRESS, seen(client.1)).finish();
                answer.into_iter().for_each(|length| way.send(&out[..length]));
            }
            return;
        }
        let caller = match self.caller(request, ip) {
            Ok(caller) => caller,
            Err(no) => {
                if self.answers_stranger(ip) {
                    self.refuse_stranger(request, no, ip, way);
                }
                return;
            }
        };
        let done = self.obey(request, &caller, client, way);
        let class = if done.is_ok() { Class::Success } else { Class::Error };
        let mut answer = Writer::new(&mut out, class, request.method, transaction);
        answer = match done {
            Ok(Done::Allocated(relayed, lifetime_s)) => answer
                .address(attribute::XOR_RELAYED_ADDRESS, relayed)
                .number(attribute::LIFETIME, lifetime_s)
                .address(attribute::XOR_MAPPED_ADDRESS, seen(client.1)),
            Ok(Done::Lasts(lifetime_s)) => answer.number(attribute::LIFETIME, lifetime_s),
            Ok(Done::Nothing) => answer,
            Err(no) => refusal(answer, no, request),
        };
        if let Some(length) = answer.signed(&caller.key).finish() {
            way.send(&out[..length]);
        }
    }

    /// Says how to log in.
    fn refuse_stranger(&self, request: &Message<'_>, no: No, ip: IpAddr, way: &Way) {
        let mut out = [0; 512];
        let mut answer = Writer::new(&mut out, Class::Error, request.method, request.transaction());
        answer = refusal(answer, no, request);
        if no == UNPROVEN || no == STALE {
            answer = answer
                .attribute(attribute::REALM, self.parts.realm.as_bytes())
                .attribute(attribute::NONCE, self.nonce(ip).as_bytes());
        }
        if let Some(length) = answer.finish() {
            way.send(&out[..length]);
        }
    }

    /// Who signed the request (RFC 8489, section 9.2.4).
    fn caller<'a>(&self, request: &Message<'a>, ip: IpAddr) -> Result<Caller<'a>, No> {
        if !request.is_signed() {
            return Err(UNPROVEN);
        }
        let text = |number| request.text(number).ok_or(BAD);
        let (username, realm, nonce) = (text(attribute::USERNAME)?, text(attribute::REALM)?, text(attribute::NONCE)?);
        if username.len() > USERNAME_BYTES_MAX {
            return Err(BAD);
        }
        if !self.is_nonce(nonce, ip) {
            return Err(STALE);
        }
        let (user, password) = self.password(username, ip).ok_or(UNPROVEN)?;
        let key = Key::of(username, &self.parts.realm, &password);
        let is_right = realm == self.parts.realm && request.is_signed_with(&key);
        if is_right { Ok(Caller { username, user, key }) } else { Err(UNPROVEN) }
    }

    /// Whose name this is, and the password with it; none when it has ended.
    fn password<'a>(&self, username: &'a str, ip: IpAddr) -> Option<(Cow<'a, str>, String)> {
        let login = self.parts.login.get();
        match &*login {
            Login::Fixed { username: known, password } => {
                (username == known).then(|| (Cow::Owned(household(ip)), password.clone()))
            }
            Login::Secret(secret) => {
                let (until_s, user) = username.split_once(':').unwrap_or((username, ""));
                let is_over = until_s.parse::<u64>().ok()? < self.parts.clock.now_ms() / 1000;
                let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
                let password = || STANDARD.encode(hmac::sign(&key, username.as_bytes()));
                (!is_over).then(|| (Cow::Borrowed(user), password()))
            }
        }
    }

    /// A text that only we can have made, for this address, with the time of its end in it. So none is remembered.
    fn nonce(&self, ip: IpAddr) -> String {
        let until_s = self.parts.clock.instant().as_secs() + NONCE_S + NONCE_BASE_S;
        format!("{until_s:x}.{}", self.nonce_tag(until_s, ip))
    }

    fn is_nonce(&self, nonce: &str, ip: IpAddr) -> bool {
        let Some((until_s, tag)) = nonce.split_once('.') else { return false };
        let Ok(until_s) = u64::from_str_radix(until_s, 16) else { return false };
        let made = self.nonce_tag(until_s, ip);
        let is_ours = bool::from(made.as_bytes().ct_eq(tag.as_bytes()));
        is_ours && self.parts.clock.instant().as_secs() + NONCE_BASE_S < until_s
    }

    fn nonce_tag(&self, until_s: u64, ip: IpAddr) -> String {
        let mut made = hmac::Context::with_key(&self.key);
        made.update(b"nonce");
        made.update(&until_s.to_be_bytes());
        match ip.to_canonical() {
            IpAddr::V4(ip) => made.update(&ip.octets()),
            IpAddr::V6(ip) => made.update(&ip.octets()),
        }
        URL_SAFE_NO_PAD.encode(&made.sign().as_ref()[..12])
    }

    /// Does what somebody asks who has logged in.
    fn obey(
        self: &Arc<Inner>,
        request: &Message<'_>,
        caller: &Caller<'_>,
        client: Client,
        way: &Way,
    ) -> Result<Done, No> {
        if request.unknown(KNOWN).next().is_some() {
            return Err(UNKNOWN);
        }
        let now = self.parts.clock.instant();
        let known = self.table.lock().by_client.get(&client).cloned();
        if request.method == method::ALLOCATE {
            return match known {
                Some(known) if known.transaction == request.transaction() => {
                    let left = known.state().until.saturating_sub(now);
                    Ok(Done::Allocated(known.relayed, left.as_secs() as u32))
                }
                Some(_) => Err(MISMATCH),
                None => self.allocate(request, caller, client, way, now),
            };
        }
        let allocation = known.ok_or(MISMATCH)?;
        if *allocation.username != *caller.username {
            return Err(OTHER_LOGIN);
        }
        match request.method {
            method::REFRESH => {
                let lifetime_s = match request.number(attribute::LIFETIME) {
                    Some(0) => 0,
                    asked => lifetime_s(asked),
                };
                allocation.state().until = now + Duration::from_secs(lifetime_s.into());
                if lifetime_s == 0 {
                    self.table.lock().remove(&allocation);
                }
                allocation.shortened.notify_one();
                Ok(Done::Lasts(lifetime_s))
            }
            method::CREATE_PERMISSION => {
                let mut peers = request.addresses(attribute::XOR_PEER_ADDRESS).take(PEERS_MAX + 1).peekable();
                peers.peek().ok_or(BAD)?;
                for (count, peer) in peers.enumerate() {
                    let ip = peer.ok_or(BAD)?.ip();
                    let place = self.place(&allocation, ip)?;
                    if count == PEERS_MAX || !allocation.state().permit(ip, place, now) {
                        return Err(CAPACITY);
                    }
                }
                Ok(Done::Nothing)
            }
            method::CHANNEL_BIND => {
                let peer = request.address(attribute::XOR_PEER_ADDRESS).ok_or(BAD)?;
                let number = request.number(attribute::CHANNEL_NUMBER).ok_or(BAD)? >> 16;
                let number = u16::try_from(number).ok().filter(|number| CHANNELS.contains(number)).ok_or(BAD)?;
                let place = self.place(&allocation, peer.ip())?;
                let mut state = allocation.state();
                state.bind(number, peer, now).map_err(|why| match why {
                    Unbound::Taken => BAD,
                    Unbound::Full => CAPACITY,
                })?;
                if state.permit(peer.ip(), place, now) { Ok(Done::Nothing) } else { Err(CAPACITY) }
            }
            _ => Err(BAD),
        }
    }

    fn allocate(
        self: &Arc<Inner>,
        request: &Message<'_>,
        caller: &Caller<'_>,
        client: Client,
        way: &Way,
        now: Duration,
    ) -> Result<Done, No> {
        if request.number(attribute::REQUESTED_TRANSPORT).ok_or(BAD)? != UDP {
            return Err(TRANSPORT);
        }
        // The next port beside it, or one set aside before: for apps of before 2010.
        let even = request.get(attribute::EVEN_PORT).map(|value| value.first().copied().unwrap_or_default());
        if request.get(attribute::RESERVATION_TOKEN).is_some() || even.is_some_and(|even| even & 0x80 != 0) {
            return Err(CAPACITY);
        }
        let is_v6 = match request.get(attribute::REQUESTED_ADDRESS_FAMILY).map(<[u8]>::first) {
            None | Some(Some(1)) => false,
            Some(Some(2)) => true,
            _ => return Err(FAMILY),
        };
        let seen_at = self.relayed_ip(is_v6, client.1).ok_or(FAMILY)?;
        let bucket = {
            let table = self.table.lock();
            table.has_place(&client, &caller.user, way.is_stream()).map_err(no_place)?;
            table.bucket_of(&caller.user)
        };
        let charge = self.charge(ALLOCATION_BYTES).ok_or(CAPACITY)?;
        let socket = self.socket(is_v6, even.is_some()).ok_or(CAPACITY)?;
        let port = socket.local_addr().map_err(|_| CAPACITY)?.port();
        let lifetime_s = lifetime_s(request.number(attribute::LIFETIME));
        let allocation = Arc::new(Allocation {
            client,
            way: way.clone(),
            username: caller.username.into(),
            user: Arc::from(&*caller.user),
            bucket,
            socket,
            relayed: SocketAddr::new(seen_at, port),
            transaction: request.transaction(),
            state: Mutex::new(State::lasting(now + Duration::from_secs(lifetime_s.into()))),
            shortened: Notify::new(),
            _charge: charge,
        });
        self.table.lock().put(allocation.clone()).map_err(no_place)?;
        tracing::debug!(user = %caller.user, relayed = %allocation.relayed, "an allocation of the relay");
        let answer = Done::Allocated(allocation.relayed, lifetime_s);
        tokio::spawn(self.clone().carry(allocation));
        Ok(answer)
    }

    /// The address under which peers reach a port here: as the settings say, or else that of this machine on the way to the
    /// client.
    fn relayed_ip(&self, is_v6: bool, client: SocketAddr) -> Option<IpAddr> {
        let told = self.parts.options.external_addresses.iter().find(|ip| ip.is_ipv6() == is_v6);
        told.copied().or_else(|| {
            let client = seen(client);
            (client.is_ipv6() == is_v6).then(|| towards(client)).flatten()
        })
    }

    /// A socket on a free port of the range.
    fn socket(&self, is_v6: bool, is_even: bool) -> Option<tokio::net::UdpSocket> {
        let (first, last) = (*self.parts.options.ports.start(), *self.parts.options.ports.end());
        let count = u64::from(last.saturating_sub(first)) + 1;
        let begin = self.parts.random.u64() % count;
        let everywhere = if is_v6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        let ports = (0..count).map(|step| first + ((begin + step) % count) as u16);
        let mut ports = ports.filter(|port| !is_even || port % 2 == 0).take(PORT_TRIES.into());
        let socket = ports.find_map(|port| UdpSocket::bind((everywhere, port)).ok())?;
        socket.set_nonblocking(true).ok()?;
        tokio::net::UdpSocket::from_std(socket).ok()
    }

    /// Whether an allocation may have to do with an address, and what that is.
    pub(super) fn place(&self, allocation: &Allocation, ip: IpAddr) -> Result<Place, No> {
        if ip.is_ipv6() != allocation.relayed.is_ipv6() {
            return Err(OTHER_FAMILY);
        }
        if matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some()) {
            return Err(FORBIDDEN);
        }
        if ip == allocation.relayed.ip()
            || self.parts.options.external_addresses.contains(&ip)
            || is_of_this_machine(ip)
        {
            return Ok(Place::Here);
        }
        let is_fine = !(self.parts.is_private)(ip) || self.parts.options.home_peers && is_of_a_home(ip);
        if is_fine { Ok(Place::Outside) } else { Err(FORBIDDEN) }
    }
}

/// What was done, as it is answered.
enum Done {
    Allocated(SocketAddr, u32),
    Lasts(u32),
    /// That is said by the success itself.
    Nothing,
}

fn no_place(full: Full) -> No {
    match full {
        Full::Client => MISMATCH,
        Full::User => QUOTA,
    }
}

fn lifetime_s(asked: Option<u32>) -> u32 {
    asked.unwrap_or(LIFETIME_S).clamp(LIFETIME_S, LIFETIME_S_MAX)
}

fn refusal<'b>(answer: Writer<'b>, no: No, request: &Message<'_>) -> Writer<'b> {
    let answer = answer.error(no.0, no.1);
    if no != UNKNOWN {
        return answer;
    }
    let mut numbers = [0; 16];
    let mut length = 0;
    for (place, number) in numbers.chunks_exact_mut(2).zip(request.unknown(KNOWN)) {
        place.copy_from_slice(&number.to_be_bytes());
        length += 2;
    }
    answer.attribute(attribute::UNKNOWN_ATTRIBUTES, &numbers[..length])
}

/// Who cannot be told apart by a name is by the network at home: an address of IPv4, a /64 of IPv6.
fn household(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => {
            let [a, b, c, d, ..] = ip.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).to_string()
        }
    }
}

/// A client's address without the form that a socket for both families gives it.
fn seen(client: SocketAddr) -> SocketAddr {
    SocketAddr::new(client.ip().to_canonical(), client.port())
}

/// The address of this machine on the way to another. Nothing is sent.
fn towards(other: SocketAddr) -> Option<IpAddr> {
    let any = if other.is_ipv6() { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(other).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Only an address of this machine can be bound to, and those of groups. Unspecified and loopback addresses count, whichever
/// they are; and so does any for which the system cannot tell, as when no more files can be opened: data for this machine
/// goes into no socket.
pub(super) fn is_of_this_machine(ip: IpAddr) -> bool {
    if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return false;
    }
    let is_foreign =
        |error: std::io::Error| matches!(error.kind(), ErrorKind::AddrNotAvailable | ErrorKind::InvalidInput);
    ip.is_unspecified() || ip.is_loopback() || !UdpSocket::bind((ip, 0)).is_err_and(is_foreign)
}

/// RFC 1918, link-local, unique local, and those of a VPN such as Tailscale (RFC 6598).
fn is_of_a_home(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local() || matches!(ip.octets(), [100, 64..=127, ..]),
        IpAddr::V6(ip) => ip.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With one name for everybody a second call found the limits of one person used up by the first.
    #[test]
    fn who_share_a_name_are_told_apart_by_where_they_are() {
        let household = |ip: &str| household(ip.parse().unwrap());
        assert_eq!(household("2001:db8:1:2:3::4"), household("2001:db8:1:2:ffff::9"));
        assert_ne!(household("2001:db8:1:2::4"), household("2001:db8:1:3::4"));
        assert_eq!(household("::ffff:192.0.2.7"), household("192.0.2.7"));
        assert_ne!(household("192.0.2.7"), household("192.0.2.8"));
    }
}

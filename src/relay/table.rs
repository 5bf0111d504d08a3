//! Who has an allocation, and what may pass through it: permissions and channels (RFC 8656, sections 8 to 12).
//!
//! Bounds: [`PERMISSIONS_MAX`] and [`CHANNELS_MAX`] of an allocation, [`USER_ALLOCATIONS_MAX`] of a user; in all what the
//! account pays for.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::net::UdpSocket;
use tokio::sync::Notify;

use super::Charge;
use super::way::Way;

/// Peers that may send to an allocation: an app names those that the other side may be at, some ten of each.
pub const PERMISSIONS_MAX: usize = 48;
/// Peers with a number of their own.
pub const CHANNELS_MAX: usize = 32;
/// Allocations of one user: a call asks for one on each network of a phone and each way to the relay, and two devices
/// may ring.
pub const USER_ALLOCATIONS_MAX: u32 = 16;
/// Of them those in streams, which are dear.
pub const USER_STREAMS_MAX: u32 = 4;
/// An allocation: 48 permissions and 32 channels of 56 bytes, socket, task, timer, entries in three tables, rounded up.
pub const ALLOCATION_BYTES: u64 = 8 * 1024;
const PERMISSION: Duration = Duration::from_secs(300);
const CHANNEL: Duration = Duration::from_secs(600);

/// A client: the socket it came to, and its address there.
pub type Client = (u16, SocketAddr);

#[derive(Default)]
pub struct Table {
    pub by_client: HashMap<Client, Arc<Allocation>>,
    /// By relayed port and whether it is one of IPv6.
    pub by_port: HashMap<(bool, u16), Arc<Allocation>>,
    pub users: HashMap<Arc<str>, User>,
}

pub struct User {
    pub allocations: u32,
    pub streams: u32,
    pub bucket: Arc<Bucket>,
}

impl Table {
    /// False when the client has one already, or the user all that one may have.
    pub fn has_place(&self, client: &Client, user: &str, is_stream: bool) -> Result<(), Full> {
        if self.by_client.contains_key(client) {
            return Err(Full::Client);
        }
        match self.users.get(user) {
            Some(known) if known.allocations >= USER_ALLOCATIONS_MAX => Err(Full::User),
            Some(known) if is_stream && known.streams >= USER_STREAMS_MAX => Err(Full::User),
            _ => Ok(()),
        }
    }

    /// What counts the bytes of a user; of one without an allocation a new one.
    pub fn bucket_of(&self, user: &str) -> Arc<Bucket> {
        self.users.get(user).map(|user| user.bucket.clone()).unwrap_or_default()
    }

    pub fn put(&mut self, allocation: Arc<Allocation>) -> Result<(), Full> {
        let is_stream = allocation.way.is_stream();
        self.has_place(&allocation.client, &allocation.user, is_stream)?;
        let new = || User { allocations: 0, streams: 0, bucket: allocation.bucket.clone() };
        let user = self.users.entry(allocation.user.clone()).or_insert_with(new);
        user.allocations += 1;
        user.streams += u32::from(is_stream);
        self.by_port.insert(allocation.port(), allocation.clone());
        self.by_client.insert(allocation.client, allocation);
        Ok(())
    }

    /// Takes out this allocation, and no later one of the same client.
    pub fn remove(&mut self, allocation: &Arc<Allocation>) {
        let is_it = |found: Option<&Arc<Allocation>>| found.is_some_and(|found| Arc::ptr_eq(found, allocation));
        if !is_it(self.by_client.get(&allocation.client)) {
            return;
        }
        self.by_client.remove(&allocation.client);
        if is_it(self.by_port.get(&allocation.port())) {
            self.by_port.remove(&allocation.port());
        }
        if let Some(user) = self.users.get_mut(&allocation.user) {
            user.allocations -= 1;
            user.streams -= u32::from(allocation.way.is_stream());
            if user.allocations == 0 {
                self.users.remove(&allocation.user);
            }
        }
    }
}

/// Why there is no place for an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    Client,
    User,
}

/// Why a peer gets no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unbound {
    /// The number or the peer belongs to another.
    Taken,
    /// There are too many.
    Full,
}

/// A port here through which a client sends and receives.
pub struct Allocation {
    pub client: Client,
    pub way: Way,
    /// The whole user name of the credentials, which later requests must have too.
    pub username: Box<str>,
    /// Whose they are.
    pub user: Arc<str>,
    pub bucket: Arc<Bucket>,
    pub socket: UdpSocket,
    /// As peers see it.
    pub relayed: SocketAddr,
    /// Of the request that made it: a repeat gets the same answer.
    pub transaction: [u8; 12],
    pub state: Mutex<State>,
    /// The end has come nearer.
    pub shortened: Notify,
    pub _charge: Charge,
}

#[derive(Default)]
pub struct State {
    /// On the clock that only moves forward, as all times here.
    pub until: Duration,
    permissions: Vec<Permission>,
    channels: Vec<Channel>,
}

#[derive(Clone, Copy)]
struct Permission {
    ip: IpAddr,
    is_own: bool,
    until: Duration,
}

#[derive(Clone, Copy)]
struct Channel {
    number: u16,
    peer: SocketAddr,
    until: Duration,
}

/// Where a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Outside,
    /// Another allocation of this relay. Nothing else on this machine is reached through it.
    Here,
}

impl Allocation {
    pub fn port(&self) -> (bool, u16) {
        (self.relayed.is_ipv6(), self.relayed.port())
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl State {
    pub fn lasting(until: Duration) -> State {
        State { until, ..State::default() }
    }

    /// False when there are too many.
    pub fn permit(&mut self, ip: IpAddr, place: Place, now: Duration) -> bool {
        let permission = Permission { ip, is_own: place == Place::Here, until: now + PERMISSION };
        self.permissions.retain(|known| known.until > now && known.ip != ip);
        let has_room = self.permissions.len() < PERMISSIONS_MAX;
        if has_room {
            self.permissions.push(permission);
        }
        has_room
    }

    /// Whether data may pass to and from there.
    pub fn permitted(&self, ip: IpAddr, now: Duration) -> Option<Place> {
        let found = self.permissions.iter().find(|known| known.ip == ip && known.until > now)?;
        Some(if found.is_own { Place::Here } else { Place::Outside })
    }

    /// Gives a peer a number.
    pub fn bind(&mut self, number: u16, peer: SocketAddr, now: Duration) -> Result<(), Unbound> {
        self.channels.retain(|known| known.until > now);
        let channel = Channel { number, peer, until: now + CHANNEL };
        if let Some(known) = self.channels.iter_mut().find(|known| known.number == number || known.peer == peer) {
            if known.number != number || known.peer != peer {
                return Err(Unbound::Taken);
            }
            *known = channel;
            return Ok(());
        }
        if self.channels.len() >= CHANNELS_MAX {
            return Err(Unbound::Full);
        }
        self.channels.push(channel);
        Ok(())
    }

    pub fn peer_of(&self, number: u16, now: Duration) -> Option<SocketAddr> {
        self.channels.iter().find(|known| known.number == number && known.until > now).map(|known| known.peer)
    }

    pub fn channel_of(&self, peer: SocketAddr, now: Duration) -> Option<u16> {
        self.channels.iter().find(|known| known.peer == peer && known.until > now).map(|known| known.number)
    }
}

/// Counts what passes in a second: a leaky bucket that holds one second of it.
#[derive(Default)]
pub struct Bucket(Mutex<Level>);

#[derive(Default)]
struct Level {
    used: u64,
    at: Duration,
}

impl Bucket {
    /// Whether so much more may pass now, of `rate` in a second.
    pub fn take(&self, amount: u64, rate: u64, now: Duration) -> bool {
        let mut level = self.0.lock();
        let passed_ms = now.saturating_sub(level.at).as_millis().min(1_000) as u64;
        let leaked = rate.saturating_mul(passed_ms) / 1_000;
        // Less than a whole unit has leaked since: the time stays, so that it adds up.
        if leaked > 0 {
            level.used = level.used.saturating_sub(leaked);
            level.at = now;
        }
        let fits = level.used.saturating_add(amount) <= rate;
        if fits {
            level.used += amount;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn permissions_and_channels_end_and_are_bounded() {
        let mut state = State::default();
        let peer: SocketAddr = "192.0.2.1:9".parse().unwrap();
        assert!(state.permit(peer.ip(), Place::Outside, at(0)));
        assert_eq!(state.permitted(peer.ip(), at(299)), Some(Place::Outside));
        assert_eq!(state.permitted(peer.ip(), at(300)), None);
        assert_eq!((state.bind(0x4000, peer, at(0)), state.bind(0x4000, peer, at(500))), (Ok(()), Ok(())));
        let other: SocketAddr = "192.0.2.1:8".parse().unwrap();
        let both = (state.bind(0x4001, peer, at(500)), state.bind(0x4000, other, at(500)));
        assert_eq!(both, (Err(Unbound::Taken), Err(Unbound::Taken)));
        assert_eq!((state.peer_of(0x4000, at(1_099)), state.channel_of(peer, at(1_099))), (Some(peer), Some(0x4000)));
        assert_eq!((state.peer_of(0x4000, at(1_100)), state.channel_of(peer, at(1_100))), (None, None));
        let given = (0..200u32).filter(|n| state.permit(IpAddr::from(n.to_be_bytes()), Place::Here, at(2_000))).count();
        assert_eq!(given, PERMISSIONS_MAX);
        assert!(state.permit(IpAddr::from([0, 0, 0, 1]), Place::Here, at(2_001)), "a known one is renewed");
        let bind = |n: u16| state.bind(0x4000 + n, SocketAddr::new(peer.ip(), 1000 + n), at(2_000));
        let bound: Vec<_> = (0..200).map(bind).collect();
        assert!(bound[..CHANNELS_MAX].iter().all(Result::is_ok));
        assert!(bound[CHANNELS_MAX..].iter().all(|bound| *bound == Err(Unbound::Full)));
    }

    #[test]
    fn a_bucket_lets_its_rate_through() {
        let bucket = Bucket::default();
        assert!(bucket.take(1_000, 1_000, at(1)) && !bucket.take(1, 1_000, at(1)));
        let passed = (0..4_000).filter(|ms| bucket.take(1, 1_000, at(1) + Duration::from_micros(ms * 500))).count();
        assert!((1_990..=2_001).contains(&passed), "{passed} in two seconds");
        assert!(
            bucket.take(1_000, 1_000, at(60)) && !bucket.take(1, 1_000, at(60)),
            "no more than a second of it is saved"
        );
    }
}

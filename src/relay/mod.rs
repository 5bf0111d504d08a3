//! A relay for calls: STUN and TURN (RFC 8489, RFC 8656) over UDP, TCP and TLS, for two phones that cannot reach each other.
//!
//! People log in with the names and passwords that `/voip/turnServer` gives out (`user/calls/turn.rs`). What is relayed goes
//! to public addresses only, and never to this machine, but for other allocations of this relay, which are handed their
//! bytes without a socket in between; to the home network only when the operator says so.
//!
//! Bounds: each allocation and each stream is paid from the account `relay`, of which all together never take more than its
//! bytes; the number of allocations of a user, and of what each may send to, is in `table.rs`. Bytes in a second are bounded
//! for a user and for all. Data that finds no room is dropped. Answers to strangers are bounded by network, since the sender
//! of a datagram may be forged.
//!
//! `message.rs` is what goes over the wire; `table.rs` what is remembered; `answer.rs` what is asked of the relay; `carry.rs`
//! what passes through; `sockets.rs` where it comes in; `way.rs` how it goes back.

mod answer;
mod carry;
pub mod message;
mod sockets;
mod table;
mod way;

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use parking_lot::Mutex;
use ring::hmac;
use tokio::sync::watch;

use crate::base::{Clock, Live, Random};
use crate::budget::{Account, Grant};

use table::{Bucket, Table};

pub use sockets::Stream;

/// Networks whose unproven callers are counted apart; others share their buckets by a keyed hash.
const STRANGERS: usize = 256;
/// Answers a second to the strangers of a network: a page of calls asks for some ten. Each is at most 160 bytes, so that a
/// forged sender is sent 6 KiB a second.
const STRANGERS_RATE: u64 = 40;

/// The settings.
#[derive(Debug, Clone)]
pub struct Options {
    /// For UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// For TLS.
    pub listen_tls: Vec<SocketAddr>,
    /// The addresses that peers see, where this machine does not have them itself.
    pub external_addresses: Vec<IpAddr>,
    pub ports: RangeInclusive<u16>,
    /// Whether what is relayed may go to addresses of the home network.
    pub home_peers: bool,
    /// In a second, counted on each way in.
    pub bytes_max: u64,
    pub user_bytes_max: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listen: Vec::new(),
            listen_tls: Vec::new(),
            external_addresses: Vec::new(),
            ports: 49_152..=49_407,
            home_peers: false,
            bytes_max: 8 << 20,
            user_bytes_max: 2 << 20,
        }
    }
}

/// How people log in.
#[derive(Clone)]
pub enum Login {
    /// The password of `UNIX_SECONDS:USER` is made with it, and ends then.
    Secret(String),
    Fixed {
        username: String,
        password: String,
    },
}

/// What the relay needs.
pub struct Parts {
    pub clock: Clock,
    pub random: Random,
    pub account: Account,
    /// What credentials are made for: the server's name.
    pub realm: String,
    pub login: Live<Login>,
    /// Whether an address has a meaning only inside some network.
    pub is_private: fn(IpAddr) -> bool,
    pub options: Options,
}

/// The relay. Cheap to clone.
#[derive(Clone)]
pub struct Relay(Arc<Inner>);

struct Inner {
    parts: Parts,
    table: Mutex<Table>,
    /// What allocations and streams have taken of the account together.
    taken: AtomicU64,
    /// Streams in which nobody has logged in.
    unproven: Mutex<sockets::Strangers>,
    /// Makes nonces, and spreads strangers over buckets.
    key: hmac::Key,
    strangers: Box<[Bucket]>,
    all: Bucket,
    listeners: AtomicU16,
    stopping: watch::Sender<bool>,
}

impl Relay {
    pub fn new(parts: Parts) -> Relay {
        let mut key = [0; 32];
        parts.random.fill(&mut key);
        Relay(Arc::new(Inner {
            parts,
            table: Mutex::default(),
            taken: AtomicU64::new(0),
            unproven: Mutex::default(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            strangers: (0..STRANGERS).map(|_| Bucket::default()).collect(),
            all: Bucket::default(),
            listeners: AtomicU16::new(0),
            stopping: watch::Sender::new(false),
        }))
    }

    /// Ends all that is relayed.
    pub fn stop(&self) {
        self.0.stopping.send_replace(true);
    }

    /// Has people log in otherwise from now on. What goes on under names from before ends when it asks for more time.
    pub fn set_login(&self, login: Login) {
        self.0.parts.login.set(login);
    }

    /// How many allocations there are.
    pub fn allocations(&self) -> usize {
        self.0.table.lock().by_client.len()
    }
}

/// Bytes of the account, and of what the relay may have in all.
struct Charge {
    relay: Arc<Inner>,
    _grant: Grant,
    bytes: u64,
}

impl Inner {
    /// None when there is no memory. Never waits: who calls tries another way.
    fn charge(self: &Arc<Inner>, bytes: u64) -> Option<Charge> {
        // The account may be within a larger one, whose bytes are not all for us.
        let limit = self.parts.account.limit();
        let is_room = |taken: u64| taken.checked_add(bytes).filter(|taken| *taken <= limit);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_room).ok()?;
        match self.parts.account.try_take(bytes) {
            Ok(grant) => Some(Charge { relay: self.clone(), _grant: grant, bytes }),
            Err(_) => {
                self.taken.fetch_sub(bytes, Ordering::Relaxed);
                None
            }
        }
    }

    /// Whether an unproven caller may have an answer.
    fn answers_stranger(&self, ip: IpAddr) -> bool {
        let now = self.parts.clock.instant();
        let hash = hmac::sign(&self.key, &network(ip));
        let at = hash.as_ref().first().map_or(0, |byte| usize::from(*byte)) % STRANGERS;
        self.strangers[at].take(1, STRANGERS_RATE, now)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.relay.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// One stranger: a /24 of IPv4, a /64 of IPv6.
fn network(ip: IpAddr) -> [u8; 9] {
    let mut network = [0; 9];
    match ip.to_canonical() {
        IpAddr::V4(ip) => network[..3].copy_from_slice(&ip.octets()[..3]),
        IpAddr::V6(ip) => {
            network[8] = 6;
            network[..8].copy_from_slice(&ip.octets()[..8]);
        }
    }
    network
}

#[cfg(test)]
mod tests;

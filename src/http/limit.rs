//! Rate limits: how often one caller may ask.
//!
//! Token buckets in a bounded table. When it is full, the stranger with most buckets loses its least recently used one
//! first, which at worst gives that caller a full bucket again; buckets of accounts stand apart. Size limits live with
//! the bodies, in `request.rs`.

use parking_lot::Mutex;

use super::ErrorResponse;
use crate::base::shares::{neighbourhood, network};
use crate::base::{Clock, Owner, Shares};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

/// Buckets of accounts, and of all other callers, each about 60 bytes.
const ACCOUNTS_MAX: usize = 512;
const STRANGERS_MAX: usize = 1280;

/// The kind of request; each kind has a bucket of its own for every caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Wrong passwords: by address, by user, by an address where the user was lately, and by session.
    Login,
    /// Password attempts, right or wrong, counted by the same keys: each is a hash.
    Password,
    /// New accounts, by address.
    Register,
    /// Questions about the requirements of registration, by address.
    Registering,
    /// Events sent, by user.
    Send,
    /// Data stored for a user beside events, by user: receipts, typing, account data, keys. Each is a commit of its
    /// own.
    Note,
    /// Joins of rooms on other servers, by user.
    Join,
    /// Invitations, by user, and by the server that brings them.
    Invite,
    /// Uploads, by user.
    Upload,
    /// Requests signed in another server's name, by address, before the signature is checked.
    Claim,
    /// Requests of another server, by its name.
    Federation,
    /// Requests that make us ask another server, by user: directories, profiles, keys.
    Ask,
    /// Unauthenticated requests that make us look for the server they name, by address.
    Stranger,
}

impl Limit {
    /// Requests per second in the long run, and how many at once.
    fn rate(self) -> (f64, f64) {
        match self {
            Self::Login => (0.2, 10.0),
            Self::Password => (1.0, 60.0),
            Self::Register => (0.1, 5.0),
            Self::Registering => (0.5, 30.0),
            Self::Send | Self::Note => (50.0, 500.0),
            Self::Join => (0.2, 20.0),
            Self::Invite => (1.0, 100.0),
            Self::Upload => (2.0, 50.0),
            Self::Claim => (100.0, 400.0),
            Self::Federation => (50.0, 200.0),
            Self::Ask => (10.0, 100.0),
            Self::Stranger => (0.1, 10.0),
        }
    }
}

/// The buckets of all callers.
pub struct Limits {
    clock: Clock,
    hasher: RandomState,
    /// Nothing when the owner switched limits off.
    buckets: Option<Mutex<Shares<u64, Bucket>>>,
}

struct Bucket {
    tokens: f64,
    at_ms: u64,
}

/// A caller as a keyed hash: a collision makes two callers share a bucket and does no other harm.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    owner: Owner<u64>,
    who: u64,
}

/// A password attempt, counted as a wrong one until it is forgiven.
#[must_use]
pub struct Try {
    limits: Arc<Limits>,
    keys: Vec<u64>,
}

impl Try {
    /// The password was right, or was not checked.
    pub fn forgive(self) {
        self.keys.iter().for_each(|key| self.limits.give_back(Limit::Login, *key));
    }
}

impl Limits {
    pub fn new(clock: Clock) -> Self {
        let buckets = Some(Mutex::new(Shares::new(ACCOUNTS_MAX, STRANGERS_MAX)));
        Self { clock, hasher: RandomState::new(), buckets }
    }

    /// Lets everything pass.
    pub fn off(clock: Clock) -> Self {
        Self { clock, hasher: RandomState::new(), buckets: None }
    }

    /// By address; an IPv6 caller is its /64, the block one customer gets.
    pub fn take_ip(&self, limit: Limit, ip: IpAddr) -> Result<(), ErrorResponse> {
        self.take(limit, self.address(ip))
    }

    pub fn take_name(&self, limit: Limit, who: &str) -> Result<(), ErrorResponse> {
        let caller = match limit {
            // An unauthenticated login may name any user.
            Limit::Login | Limit::Password => self.stranger(who),
            _ if who.starts_with('@') => self.known(who),
            _ => Caller {
                owner: Owner::Stranger(self.hasher.hash_one(neighbourhood(who))),
                who: self.hasher.hash_one(who),
            },
        };
        self.take(limit, caller)
    }

    /// Counts a password attempt as a wrong one for each of these callers, to be forgiven when it was right. Attempts
    /// under way count too, or very many could be made at once.
    pub(super) fn attempt(self: &Arc<Self>, callers: &[Caller]) -> Result<Try, ErrorResponse> {
        let mut attempt = Try { limits: self.clone(), keys: Vec::new() };
        for caller in callers {
            let taken = self.take(Limit::Login, *caller);
            if let Err(refused) = taken.and_then(|()| {
                attempt.keys.push(self.key(Limit::Login, *caller));
                self.take(Limit::Password, *caller)
            }) {
                attempt.forgive();
                return Err(refused);
            }
        }
        Ok(attempt)
    }

    pub(super) fn address(&self, ip: IpAddr) -> Caller {
        let who = match ip.to_canonical() {
            IpAddr::V4(v4) => u64::from(v4.to_bits()),
            IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
        };
        Caller { owner: Owner::Stranger(self.hasher.hash_one(network(ip))), who: self.hasher.hash_one(who) }
    }

    /// A name that any caller may give.
    pub(super) fn stranger(&self, who: &str) -> Caller {
        let who = self.hasher.hash_one(who);
        Caller { owner: Owner::Stranger(who), who }
    }

    /// The name of a user or server that has authenticated.
    pub(super) fn known(&self, who: &str) -> Caller {
        let who = self.hasher.hash_one(who);
        Caller { owner: Owner::Known(who), who }
    }

    /// A user at an address that lately showed one of the user's tokens.
    pub(super) fn pair(&self, ip: IpAddr, who: &str) -> Caller {
        let who = self.hasher.hash_one((self.address(ip).who, who));
        Caller { owner: Owner::Known(who), who }
    }

    fn key(&self, limit: Limit, caller: Caller) -> u64 {
        self.hasher.hash_one((limit, caller.who))
    }

    fn give_back(&self, limit: Limit, key: u64) {
        let Some(buckets) = &self.buckets else { return };
        let mut buckets = buckets.lock();
        if let Some(bucket) = buckets.get(&key) {
            bucket.tokens = (bucket.tokens + 1.0).min(limit.rate().1);
        }
    }

    fn take(&self, limit: Limit, caller: Caller) -> Result<(), ErrorResponse> {
        let Some(buckets) = &self.buckets else { return Ok(()) };
        let (per_s, burst) = limit.rate();
        let now = self.clock.instant().as_millis() as u64;
        let mut buckets = buckets.lock();
        let bucket = buckets.get_or_put(caller.owner, self.key(limit, caller), || Bucket { tokens: burst, at_ms: now });
        let earned = now.saturating_sub(bucket.at_ms) as f64 / 1000.0 * per_s;
        bucket.tokens = (bucket.tokens + earned).min(burst);
        bucket.at_ms = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err(ErrorResponse::limit_exceeded(((1.0 - bucket.tokens) / per_s * 1000.0).ceil() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_passes_then_time_must() {
        let clock = Clock::simulated(0);
        let limits = Limits::new(clock.clone());
        for _ in 0..10 {
            limits.take_name(Limit::Login, "@a:b").unwrap();
        }
        let refused = limits.take_name(Limit::Login, "@a:b").unwrap_err();
        assert_eq!(refused.extra["retry_after_ms"], 5000);
        limits.take_name(Limit::Login, "@other:b").unwrap();
        limits.take_name(Limit::Send, "@a:b").unwrap();
        clock.advance(Duration::from_secs(5));
        limits.take_name(Limit::Login, "@a:b").unwrap();
        limits.take_name(Limit::Login, "@a:b").unwrap_err();
    }

    /// A caller with a network of addresses refilled all buckets, its own included, by asking from 2,048 of them.
    #[test]
    fn addresses_without_number_push_out_their_own() {
        let limits = Limits::new(Clock::simulated(0));
        let (other, first) = ("203.0.113.7".parse().unwrap(), "2001:db8:9::1".parse().unwrap());
        for _ in 0..5 {
            limits.take_ip(Limit::Register, other).unwrap();
            limits.take_ip(Limit::Register, first).unwrap();
        }
        for _ in 0..500 {
            limits.take_name(Limit::Send, "@anna:here").unwrap();
        }
        for n in 0..5000 {
            limits.take_ip(Limit::Claim, format!("2001:db8:9:{n:x}::1").parse().unwrap()).unwrap();
            limits.take_name(Limit::Federation, &format!("s{n}.evil.example")).unwrap();
        }
        assert!(limits.take_ip(Limit::Register, other).is_err());
        assert!(limits.take_name(Limit::Send, "@anna:here").is_err());
        assert!(limits.take_ip(Limit::Register, first).is_ok(), "its own was forgotten");
        let kept = limits.buckets.as_ref().map(|all| all.lock().len());
        assert!(kept.is_some_and(|kept| kept <= ACCOUNTS_MAX + STRANGERS_MAX), "{kept:?}");
    }

    /// Ten wrong passwords from other addresses locked a user out.
    #[test]
    fn what_was_right_does_not_count() {
        let clock = Clock::simulated(0);
        let limits = Arc::new(Limits::new(clock.clone()));
        let (ip, name) = (limits.address([1, 2, 3, 4].into()), limits.stranger("@a:b"));
        for _ in 0..50 {
            limits.attempt(&[ip, name]).unwrap().forgive();
        }
        let under_way: Vec<_> = (0..10).map(|_| limits.attempt(&[ip, name]).unwrap()).collect();
        assert!(limits.attempt(&[name]).is_err(), "those under way count");
        drop(under_way);
        let other = limits.address([1, 2, 3, 5].into());
        assert!((0..20).all(|_| limits.attempt(&[other, name]).is_err()));
        // Attempts refused for the name were not counted for the address.
        assert!((0..10).all(|_| limits.attempt(&[other]).is_ok()));
        assert!(limits.attempt(&[other]).is_err());
    }

    #[test]
    fn right_ones_are_hashes_too() {
        let limits = Arc::new(Limits::new(Clock::simulated(0)));
        let who = limits.stranger("@a:b");
        let right = |_| limits.attempt(&[who]).map(Try::forgive).is_ok();
        assert!((0..60).all(right) && !right(0));
    }

    #[test]
    fn neighbours_in_one_v6_network_share() {
        let limits = Limits::new(Clock::simulated(0));
        for n in 0..5 {
            limits.take_ip(Limit::Register, format!("2001:db8::{n}").parse().unwrap()).unwrap();
        }
        limits.take_ip(Limit::Register, "2001:db8::ffff".parse().unwrap()).unwrap_err();
        limits.take_ip(Limit::Register, "2001:db8:0:1::1".parse().unwrap()).unwrap();
    }
}

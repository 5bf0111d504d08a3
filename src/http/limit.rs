//! How often one caller may ask.
//!
//! Token buckets in a bounded table: the least recently seen caller is forgotten first, which at worst gives it a full
//! bucket again. Size limits live with the bodies, in `request.rs`.

use super::Answer;
use crate::base::Clock;
use lru::LruCache;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};

/// Callers remembered, each about 60 bytes.
const CALLERS_MAX: NonZeroUsize = NonZeroUsize::new(2048).unwrap();

/// What is being asked for; each kind has a bucket of its own for every caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Password and token logins, by address and by user.
    Login,
    /// New accounts, by address.
    Register,
    /// Asking what a new account takes, by address.
    Registering,
    /// Events sent, by user.
    Send,
    /// What is kept of a user beside events, by user: receipts, typing, account data, keys. Each is a commit of its own.
    Note,
    /// Joins of rooms on other servers, by user.
    Join,
    /// Invitations, by user, and by the server that brings them.
    Invite,
    /// Uploads, by user.
    Upload,
    /// Requests in another server's name, by address, before it is known whether it made them.
    Claim,
    /// Requests of another server, by its name.
    Federation,
    /// What makes us ask another server, by user: directories, profiles, keys.
    Ask,
    /// What makes us look for a server that is named by somebody who has shown nothing yet, by address.
    Stranger,
}

impl Limit {
    /// Requests per second in the long run, and how many at once.
    fn rate(self) -> (f64, f64) {
        match self {
            Self::Login => (0.2, 10.0),
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
    buckets: Option<Mutex<LruCache<u64, Bucket>>>,
}

struct Bucket {
    tokens: f64,
    at_ms: u64,
}

impl Limits {
    pub fn new(clock: Clock) -> Self {
        Self { clock, hasher: RandomState::new(), buckets: Some(Mutex::new(LruCache::new(CALLERS_MAX))) }
    }

    /// Lets everything pass.
    pub fn off(clock: Clock) -> Self {
        Self { clock, hasher: RandomState::new(), buckets: None }
    }

    /// By address; an IPv6 caller is its /64, which is what one customer gets.
    pub fn take_ip(&self, limit: Limit, ip: IpAddr) -> Result<(), Answer> {
        let who = match ip.to_canonical() {
            IpAddr::V4(v4) => u64::from(v4.to_bits()),
            IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
        };
        self.take(limit, self.hasher.hash_one((limit, who)))
    }

    pub fn take_name(&self, limit: Limit, who: &str) -> Result<(), Answer> {
        self.take(limit, self.hasher.hash_one((limit, who)))
    }

    /// Callers are told apart by a keyed hash; a collision makes two share a bucket and nothing worse.
    fn take(&self, limit: Limit, caller: u64) -> Result<(), Answer> {
        let Some(buckets) = &self.buckets else { return Ok(()) };
        let (per_s, burst) = limit.rate();
        let now = self.clock.instant().as_millis() as u64;
        let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.get_or_insert_mut(caller, || Bucket { tokens: burst, at_ms: now });
        let earned = now.saturating_sub(bucket.at_ms) as f64 / 1000.0 * per_s;
        bucket.tokens = (bucket.tokens + earned).min(burst);
        bucket.at_ms = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err(Answer::limit_exceeded(((1.0 - bucket.tokens) / per_s * 1000.0).ceil() as u64))
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

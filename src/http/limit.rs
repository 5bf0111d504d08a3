//! How often one caller may ask.
//!
//! Token buckets in a bounded table: of whichever stranger has most of them the least recently used is forgotten first, which
//! at worst gives it a full bucket again; those of accounts stand apart. Size limits live with the bodies, in `request.rs`.

use super::Answer;
use crate::base::shares::{neighbourhood, network};
use crate::base::{Clock, Owner, Shares};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// Buckets of accounts and of everybody else, each about 60 bytes.
const ACCOUNTS_MAX: usize = 512;
const STRANGERS_MAX: usize = 1280;

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
    buckets: Option<Mutex<Shares<u64, Bucket>>>,
}

struct Bucket {
    tokens: f64,
    at_ms: u64,
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

    /// By address; an IPv6 caller is its /64, which is what one customer gets.
    pub fn take_ip(&self, limit: Limit, ip: IpAddr) -> Result<(), Answer> {
        let who = match ip.to_canonical() {
            IpAddr::V4(v4) => u64::from(v4.to_bits()),
            IpAddr::V6(v6) => (v6.to_bits() >> 64) as u64,
        };
        self.take(limit, Owner::Stranger(self.hasher.hash_one(network(ip))), self.hasher.hash_one((limit, who)))
    }

    pub fn take_name(&self, limit: Limit, who: &str) -> Result<(), Answer> {
        let owner = match limit {
            // Whoever tries to log in names whom they like.
            Limit::Login => Owner::Stranger(self.hasher.hash_one(who)),
            _ if who.starts_with('@') => Owner::Known(self.hasher.hash_one(who)),
            _ => Owner::Stranger(self.hasher.hash_one(neighbourhood(who))),
        };
        self.take(limit, owner, self.hasher.hash_one((limit, who)))
    }

    /// Callers are told apart by a keyed hash; a collision makes two share a bucket and nothing worse.
    fn take(&self, limit: Limit, owner: Owner<u64>, caller: u64) -> Result<(), Answer> {
        let Some(buckets) = &self.buckets else { return Ok(()) };
        let (per_s, burst) = limit.rate();
        let now = self.clock.instant().as_millis() as u64;
        let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let bucket = buckets.get_or_put(owner, caller, || Bucket { tokens: burst, at_ms: now });
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

    /// Whoever had a network of addresses made everybody's buckets full again, and their own, by asking from 2,048 of them.
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
        let kept = limits.buckets.as_ref().map(|all| all.lock().unwrap().len());
        assert!(kept.is_some_and(|kept| kept <= ACCOUNTS_MAX + STRANGERS_MAX), "{kept:?}");
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

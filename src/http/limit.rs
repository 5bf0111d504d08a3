//! Rate limits: how often one caller may ask.
//!
//! Token buckets in a bounded table. When it is full, the stranger with most buckets loses its least recently used one
//! first, which at worst gives that caller a full bucket again; buckets of accounts stand apart. Size limits live with
//! the bodies, in `request.rs`.

use parking_lot::Mutex;

use super::ErrorResponse;
use crate::base::shares::{neighbourhood, network};
use crate::base::{Clock, Live, Owner, Shares};
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;

/// Buckets of accounts, and of all other callers, each about 60 bytes.
const ACCOUNTS_MAX: usize = 512;
const STRANGERS_MAX: usize = 1280;

/// How often one caller may do one thing. Every caller has a bucket of its own for each name, so a name stands for one
/// rate in the whole server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    pub name: &'static str,
    /// Requests per second in the long run.
    pub per_second: f64,
    /// Requests at once.
    pub burst: f64,
}

/// How often one caller may try a secret.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttemptRates {
    /// Wrong attempts.
    pub wrong: Rate,
    /// Attempts right or wrong: each one costs a hash.
    pub all: Rate,
}

/// The buckets of all callers.
pub struct Limits {
    clock: Clock,
    hasher: RandomState,
    /// Rates that the owner has set, a handful: each holds instead of the one of its name.
    set: Live<Vec<Rate>>,
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
    wrong: Rate,
    keys: Vec<u64>,
}

impl Try {
    /// The password was right, or was not checked.
    pub fn forgive(self) {
        self.keys.iter().for_each(|key| self.limits.give_back(&self.wrong, *key));
    }
}

impl Limits {
    pub fn new(clock: Clock) -> Self {
        let buckets = Some(Mutex::new(Shares::new(ACCOUNTS_MAX, STRANGERS_MAX)));
        Self { clock, hasher: RandomState::new(), set: Live::default(), buckets }
    }

    /// Rates that hold from now on instead of those of their names.
    pub fn set_rates(&self, rates: Vec<Rate>) {
        self.set.set(rates);
    }

    fn in_force(&self, rate: &Rate) -> Rate {
        self.set.get().iter().find(|set| set.name == rate.name).copied().unwrap_or(*rate)
    }

    /// Lets everything pass.
    pub fn off(clock: Clock) -> Self {
        Self { clock, hasher: RandomState::new(), set: Live::default(), buckets: None }
    }

    /// By address; an IPv6 caller is its /64, the block one customer gets.
    pub fn take_ip(&self, rate: &Rate, ip: IpAddr) -> Result<(), ErrorResponse> {
        self.take(&self.in_force(rate), self.address(ip))
    }

    /// By the name of a user whose access token the request has shown.
    pub fn take_user(&self, rate: &Rate, user: &str) -> Result<(), ErrorResponse> {
        self.take(&self.in_force(rate), self.known(user))
    }

    /// As [`Limits::take_user`], at a rate that is this user's own.
    pub fn take_user_at(&self, own: &Rate, user: &str) -> Result<(), ErrorResponse> {
        self.take(own, self.known(user))
    }

    /// By the name of another server that has signed the request.
    pub fn take_server(&self, rate: &Rate, server: &str) -> Result<(), ErrorResponse> {
        let owner = Owner::Stranger(self.hasher.hash_one(neighbourhood(server)));
        self.take(&self.in_force(rate), Caller { owner, who: self.hasher.hash_one(server) })
    }

    /// Counts a password attempt as a wrong one for each of these callers, to be forgiven when it was right. Attempts
    /// under way count too, or very many could be made at once.
    pub(super) fn attempt(self: &Arc<Self>, rates: &AttemptRates, callers: &[Caller]) -> Result<Try, ErrorResponse> {
        let (wrong, all) = (self.in_force(&rates.wrong), self.in_force(&rates.all));
        let mut attempt = Try { limits: self.clone(), wrong, keys: Vec::new() };
        for caller in callers {
            let taken = self.take(&wrong, *caller);
            if let Err(refused) = taken.and_then(|()| {
                attempt.keys.push(self.key(&wrong, *caller));
                self.take(&all, *caller)
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

    fn key(&self, rate: &Rate, caller: Caller) -> u64 {
        self.hasher.hash_one((rate.name, caller.who))
    }

    fn give_back(&self, rate: &Rate, key: u64) {
        let Some(buckets) = &self.buckets else { return };
        let mut buckets = buckets.lock();
        if let Some(bucket) = buckets.get(&key) {
            bucket.tokens = (bucket.tokens + 1.0).min(rate.burst);
        }
    }

    fn take(&self, rate: &Rate, caller: Caller) -> Result<(), ErrorResponse> {
        let Some(buckets) = &self.buckets else { return Ok(()) };
        let Rate { per_second, burst, .. } = *rate;
        let now = self.clock.instant().as_millis() as u64;
        let mut buckets = buckets.lock();
        let bucket = buckets.get_or_put(caller.owner, self.key(rate, caller), || Bucket { tokens: burst, at_ms: now });
        let earned = now.saturating_sub(bucket.at_ms) as f64 / 1000.0 * per_second;
        bucket.tokens = (bucket.tokens + earned).min(burst);
        bucket.at_ms = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err(ErrorResponse::limit_exceeded(((1.0 - bucket.tokens) / per_second * 1000.0).ceil() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SLOW: Rate = Rate { name: "slow", per_second: 0.1, burst: 5.0 };
    const FAST: Rate = Rate { name: "fast", per_second: 50.0, burst: 500.0 };
    const PASSWORDS: AttemptRates = AttemptRates {
        wrong: Rate { name: "wrong", per_second: 0.2, burst: 10.0 },
        all: Rate { name: "all", per_second: 1.0, burst: 60.0 },
    };

    #[test]
    fn a_burst_passes_then_time_must() {
        let clock = Clock::simulated(0);
        let limits = Limits::new(clock.clone());
        for _ in 0..5 {
            limits.take_user(&SLOW, "@a:b").unwrap();
        }
        let refused = limits.take_user(&SLOW, "@a:b").unwrap_err();
        assert_eq!(refused.extra["retry_after_ms"], 10000);
        limits.take_user(&SLOW, "@other:b").unwrap();
        limits.take_user(&FAST, "@a:b").unwrap();
        clock.advance(Duration::from_secs(10));
        limits.take_user(&SLOW, "@a:b").unwrap();
        limits.take_user(&SLOW, "@a:b").unwrap_err();
    }

    #[test]
    fn a_rate_that_is_set_holds_at_once() {
        let clock = Clock::simulated(0);
        let limits = Limits::new(clock.clone());
        let times = |rate: &Rate| (0..1000).take_while(|_| limits.take_user(rate, "@a:b").is_ok()).count();
        assert_eq!(times(&SLOW), 5);
        limits.set_rates(vec![Rate { per_second: 2.0, burst: 20.0, ..SLOW }]);
        clock.advance(Duration::from_secs(2));
        assert_eq!((times(&SLOW), times(&FAST)), (4, 500));
        clock.advance(Duration::from_secs(100));
        assert_eq!(times(&SLOW), 20);
        limits.set_rates(Vec::new());
        clock.advance(Duration::from_secs(100));
        assert_eq!(times(&SLOW), 5);
        // One's own goes before both.
        let own = Rate { per_second: 100.0, burst: 50.0, ..SLOW };
        clock.advance(Duration::from_secs(1));
        assert_eq!((0..1000).take_while(|_| limits.take_user_at(&own, "@a:b").is_ok()).count(), 50);
    }

    /// A caller with a network of addresses refilled all buckets, its own included, by asking from 2,048 of them.
    #[test]
    fn addresses_without_number_push_out_their_own() {
        let limits = Limits::new(Clock::simulated(0));
        let (other, first) = ("203.0.113.7".parse().unwrap(), "2001:db8:9::1".parse().unwrap());
        for _ in 0..5 {
            limits.take_ip(&SLOW, other).unwrap();
            limits.take_ip(&SLOW, first).unwrap();
        }
        for _ in 0..500 {
            limits.take_user(&FAST, "@anna:here").unwrap();
        }
        for n in 0..5000 {
            limits.take_ip(&FAST, format!("2001:db8:9:{n:x}::1").parse().unwrap()).unwrap();
            limits.take_server(&FAST, &format!("s{n}.evil.example")).unwrap();
        }
        assert!(limits.take_ip(&SLOW, other).is_err());
        assert!(limits.take_user(&FAST, "@anna:here").is_err());
        assert!(limits.take_ip(&SLOW, first).is_ok(), "its own was forgotten");
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
            limits.attempt(&PASSWORDS, &[ip, name]).unwrap().forgive();
        }
        let under_way: Vec<_> = (0..10).map(|_| limits.attempt(&PASSWORDS, &[ip, name]).unwrap()).collect();
        assert!(limits.attempt(&PASSWORDS, &[name]).is_err(), "those under way count");
        drop(under_way);
        let other = limits.address([1, 2, 3, 5].into());
        assert!((0..20).all(|_| limits.attempt(&PASSWORDS, &[other, name]).is_err()));
        // Attempts refused for the name were not counted for the address.
        assert!((0..10).all(|_| limits.attempt(&PASSWORDS, &[other]).is_ok()));
        assert!(limits.attempt(&PASSWORDS, &[other]).is_err());
    }

    #[test]
    fn right_ones_are_hashes_too() {
        let limits = Arc::new(Limits::new(Clock::simulated(0)));
        let who = limits.stranger("@a:b");
        let right = |_| limits.attempt(&PASSWORDS, &[who]).map(Try::forgive).is_ok();
        assert!((0..60).all(right) && !right(0));
    }

    #[test]
    fn neighbours_in_one_v6_network_share() {
        let limits = Limits::new(Clock::simulated(0));
        for n in 0..5 {
            limits.take_ip(&SLOW, format!("2001:db8::{n}").parse().unwrap()).unwrap();
        }
        limits.take_ip(&SLOW, "2001:db8::ffff".parse().unwrap()).unwrap_err();
        limits.take_ip(&SLOW, "2001:db8:0:1::1".parse().unwrap()).unwrap();
    }
}

//! Addresses that lately showed a good token, and the user each token belongs to.
//!
//! Such an address is not a stranger: it has places for connections of its own (`connection_limits.rs`), and wrong
//! passwords from other addresses do not count against its user there (`limit.rs`). Bounded: [`SEEN_MAX`] pairs of an
//! address and a user, [`OF_USER_MAX`] of one user. The pair not seen for longest goes first, so that no user pushes
//! out others by using many addresses.

use parking_lot::{Mutex, MutexGuard};

use super::caller::Caller;
use crate::base::Clock;
use lru::LruCache;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::num::NonZeroUsize;

/// Pairs remembered, each about 80 bytes.
const SEEN_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
const OF_USER_MAX: usize = 16;
/// An address may belong to another customer a day later.
const SEEN_MS: u64 = 24 * 3_600_000;

pub struct Guests {
    clock: Clock,
    hasher: RandomState,
    /// When a user, by a keyed hash, was last seen at an address.
    seen: Mutex<LruCache<(Caller, u64), u64>>,
}

impl Guests {
    pub fn new(clock: Clock) -> Self {
        Self { clock, hasher: RandomState::new(), seen: Mutex::new(LruCache::new(SEEN_MAX)) }
    }

    /// A good token of `user` was shown at `ip`. Returns whether the two had not been seen together lately.
    pub fn note(&self, ip: IpAddr, user: &str) -> bool {
        let (pair, now) = (self.pair(ip, user), self.now_ms());
        let mut seen = self.lock();
        if let Some(at) = seen.get_mut(&pair) {
            return std::mem::replace(at, now) + SEEN_MS <= now;
        }
        // The pair not seen for longest comes first.
        let of_user = seen.iter().rev().filter(|((_, user), _)| *user == pair.1).map(|(pair, _)| *pair);
        let of_user: Vec<_> = of_user.take(OF_USER_MAX).collect();
        if of_user.len() == OF_USER_MAX {
            seen.pop(&of_user[0]);
        }
        seen.put(pair, now);
        true
    }

    /// Whether this user was at this address lately.
    pub fn is_of(&self, ip: IpAddr, user: &str) -> bool {
        let pair = self.pair(ip, user);
        self.lock().peek(&pair).is_some_and(|at| at + SEEN_MS > self.now_ms())
    }

    /// Whether any local user was at this address lately.
    pub(super) fn has(&self, caller: Caller) -> bool {
        let now = self.now_ms();
        self.lock().iter().any(|((known, _), at)| *known == caller && at + SEEN_MS > now)
    }

    fn pair(&self, ip: IpAddr, user: &str) -> (Caller, u64) {
        (Caller::of(ip), self.hasher.hash_one(user))
    }

    fn now_ms(&self) -> u64 {
        self.clock.instant().as_millis() as u64
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<(Caller, u64), u64>> {
        self.seen.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_a_guest_for_a_day() {
        let clock = Clock::simulated(0);
        let guests = Guests::new(clock.clone());
        assert!(guests.note(ip("2001:db8::1"), "@a:b"));
        assert!(!guests.note(ip("2001:db8::2"), "@a:b"), "a network of one customer is one address");
        assert!(guests.is_of(ip("2001:db8::9"), "@a:b") && !guests.is_of(ip("2001:db8::9"), "@c:b"));
        assert!(guests.has(Caller::of(ip("2001:db8::9"))) && !guests.has(Caller::of(ip("203.0.113.1"))));
        clock.advance(Duration::from_millis(SEEN_MS));
        assert!(!guests.is_of(ip("2001:db8::1"), "@a:b") && !guests.has(Caller::of(ip("2001:db8::1"))));
        assert!(guests.note(ip("2001:db8::1"), "@a:b"));
    }

    #[test]
    fn who_has_very_many_addresses_pushes_out_their_own() {
        let guests = Guests::new(Clock::simulated(0));
        guests.note(ip("203.0.113.1"), "@a:b");
        for n in 0..3000u32 {
            guests.note(IpAddr::from((0x0a00_0000 + n).to_be_bytes()), "@mallory:b");
        }
        assert!(guests.is_of(ip("203.0.113.1"), "@a:b"));
        assert_eq!(guests.lock().len(), 1 + OF_USER_MAX);
    }
}

//! Who holds how many of the places for connections.
//!
//! One address may not take all of them: a stranger gets a quarter, the household (addresses of the board's own networks) three
//! quarters, a proxy the owner trusts as many as there are. Whoever is at the limit gets a new place only for an idle one
//! of their own. Bounded by the connections themselves.

use super::watch::Watch;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// The places, counted in the bytes their connections are charged.
pub struct Places {
    total_bytes: u64,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    by_caller: HashMap<Caller, Vec<One>>,
    next: u64,
}

/// One connection of a caller.
struct One {
    id: u64,
    bytes: u64,
    watch: Arc<Watch>,
    leave: Arc<Notify>,
    /// Told to go, so that another of the same caller's could come.
    leaving: bool,
}

/// An address; of IPv6 its /64, which is what one customer gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Caller {
    V4(u32),
    V6(u64),
}

/// How much of all places one caller may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    Quarter,
    ThreeQuarters,
    All,
}

/// A place, until it is dropped.
pub struct Place {
    places: Arc<Places>,
    caller: Caller,
    id: u64,
    /// What the caller may hold in all, in bytes.
    limit: u64,
    leave: Arc<Notify>,
}

impl Places {
    pub fn new(total_bytes: u64) -> Arc<Self> {
        Arc::new(Self { total_bytes, held: Mutex::default() })
    }

    /// A place for one more connection of `ip`, charged `bytes`. At its limit, the caller's connection that has been idle
    /// longest, and for `idle_min` at least, is told to go; without one there is no place.
    pub fn enter(
        self: &Arc<Self>,
        ip: IpAddr,
        share: Share,
        bytes: u64,
        watch: &Arc<Watch>,
        idle_min: Duration,
    ) -> Option<Place> {
        let caller = Caller::of(ip);
        let limit = share.of(self.total_bytes).max(bytes);
        let mut held = self.lock();
        let id = held.next;
        let own = held.by_caller.entry(caller).or_default();
        let used: u64 = own.iter().filter(|one| !one.leaving).map(|one| one.bytes).sum();
        if used + bytes > limit {
            let idle = own.iter_mut().filter(|one| !one.leaving && one.watch.idle() >= Some(idle_min));
            let longest = idle.max_by_key(|one| one.watch.idle())?;
            longest.leaving = true;
            longest.leave.notify_one();
        }
        let leave = Arc::new(Notify::new());
        own.push(One { id, bytes, watch: watch.clone(), leave: leave.clone(), leaving: false });
        held.next += 1;
        Some(Place { places: self.clone(), caller, id, limit, leave })
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Whether the connection may be charged `bytes` more: only while half of what its caller may hold stays for others of
    /// theirs.
    pub fn may_hold(&self, bytes: u64) -> bool {
        let held = self.places.lock();
        let own = held.by_caller.get(&self.caller).map_or(&[][..], Vec::as_slice);
        own.iter().map(|one| one.bytes).sum::<u64>() + bytes <= self.limit / 2
    }

    /// Counts `bytes` more for the connection, until it ends.
    pub fn hold(&self, bytes: u64) {
        let mut held = self.places.lock();
        let own = held.by_caller.get_mut(&self.caller).into_iter().flatten();
        own.filter(|one| one.id == self.id).for_each(|one| one.bytes += bytes);
    }

    /// Ends when the place is needed for another connection of the same caller.
    pub async fn wanted_back(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.lock();
        if let Some(own) = held.by_caller.get_mut(&self.caller) {
            own.retain(|one| one.id != self.id);
            if own.is_empty() {
                held.by_caller.remove(&self.caller);
            }
        }
    }
}

impl Caller {
    fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.to_bits()),
            IpAddr::V6(v6) => Self::V6((v6.to_bits() >> 64) as u64),
        }
    }
}

impl Share {
    /// Of a caller that reached us at our address `here`.
    pub fn of_caller(ip: IpAddr, here: Option<IpAddr>, trusted_proxies: &[IpAddr]) -> Self {
        let ip = ip.to_canonical();
        let own_network = match ip {
            IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
        };
        if trusted_proxies.contains(&ip) {
            Self::All
        } else if own_network || here.is_some_and(|here| Caller::of(here) == Caller::of(ip)) {
            Self::ThreeQuarters
        } else {
            Self::Quarter
        }
    }

    fn of(self, total: u64) -> u64 {
        match self {
            Self::Quarter => total / 4,
            Self::ThreeQuarters => total / 4 * 3,
            Self::All => u64::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Clock;

    const IDLE: Duration = Duration::from_secs(2);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_leaves_most_places_to_others() {
        let (clock, places) = (Clock::simulated(0), Places::new(160));
        let enter = |from: &str| places.enter(ip(from), Share::Quarter, 10, &Watch::new(clock.clone()), IDLE);
        let held: Vec<_> = (0..4).map(|n| enter(&format!("2001:db8::{n}")).unwrap()).collect();
        assert!(enter("2001:db8::99").is_none(), "a network of one customer is one caller");
        let _other = enter("2001:db8:0:1::1").unwrap();
        let _v4 = enter("203.0.113.1").unwrap();
        drop(held);
        assert!(enter("2001:db8::99").is_some());
    }

    #[test]
    fn what_a_connection_holds_more_counts_for_its_caller() {
        let (clock, places) = (Clock::simulated(0), Places::new(400));
        let enter = || places.enter(ip("203.0.113.1"), Share::Quarter, 10, &Watch::new(clock.clone()), IDLE);
        let (one, two) = (enter().unwrap(), enter().unwrap());
        assert!(one.may_hold(30) && !one.may_hold(31));
        one.hold(30);
        assert!(!two.may_hold(1));
        let rest: Vec<_> = std::iter::from_fn(enter).collect();
        assert_eq!(rest.len(), 5, "half of the share is left for plain connections");
        drop((one, rest));
        assert!(two.may_hold(30));
    }

    #[tokio::test]
    async fn who_is_at_the_limit_gives_up_what_is_idle() {
        let (clock, places) = (Clock::simulated(0), Places::new(80));
        let from = ip("203.0.113.1");
        let enter = |watch: &Arc<Watch>| places.enter(from, Share::Quarter, 10, watch, IDLE);
        let new = || enter(&Watch::new(clock.clone()));
        let working = Watch::new(clock.clone());
        let (busy, idle) = (enter(&working).unwrap(), new().unwrap());
        let _active = working.begin();
        assert!(new().is_none(), "nothing has been idle for long");
        clock.advance(IDLE);
        let _third = new().unwrap();
        idle.wanted_back().await;
        assert!(new().is_none(), "the third has just come");
        drop((busy, idle));
        assert_eq!(places.lock().by_caller.values().map(Vec::len).sum::<usize>(), 1);
    }

    #[test]
    fn the_household_has_more_than_strangers() {
        let (here, proxy) = (Some(ip("2001:db8::5")), [ip("192.168.1.9")]);
        let share = |from: &str| Share::of_caller(ip(from), here, &proxy);
        for own in ["127.0.0.1", "192.168.1.7", "::ffff:10.0.0.1", "fe80::1", "fd00::1", "::1", "2001:db8::77"] {
            assert_eq!(share(own), Share::ThreeQuarters, "{own}");
        }
        for stranger in ["203.0.113.1", "2001:db8:0:1::1", "::ffff:203.0.113.1"] {
            assert_eq!(share(stranger), Share::Quarter, "{stranger}");
        }
        assert_eq!(share("192.168.1.9"), Share::All);
    }
}

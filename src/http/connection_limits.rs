//! How the places for connections are shared out, and which connection gives way when there are too few.
//!
//! Callers have a [`Standing`]: the household (addresses of the board's own networks), guests (addresses that lately
//! showed a good token), and strangers (all others). Strangers may hold half of all places, and with the guests three
//! quarters: the rest is the household's. One address, one network of a provider, and requests that wait for something
//! new have their own bounds within that ([`Standing::share`] and those beside it).
//!
//! A caller at a bound gets the place of another connection within that bound. Idle or hardly moving connections go
//! first, then those of a lower standing, then those of the caller that holds most ([`Held::choose`]). No connection
//! gives way to a lower standing, except for the small part that is reserved for those. A proxy the owner trusts may
//! hold all places, and each of its connections counts for the caller that is answered on it. Bounded by the
//! connections themselves.

use parking_lot::{Mutex, MutexGuard};

use super::caller::Caller;
use super::guests::Guests;
use super::peer_watch::{Doing, PeerWatch};
use crate::base::Clock;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// A connection without a request for so long gives way to any other: a handshake and a head take a few round trips.
/// With the pause between two looks of a waiting listener (`listen/mod.rs`) it is less than two seconds.
const FRESH: Duration = Duration::from_millis(1500);
/// A request that has been answered for so long may give way to a caller that holds less.
const LONG: Duration = Duration::from_secs(5);
/// Strangers and guests each keep this part of all places, in eighths, even when better known callers need it.
const LEFT_TO_LESS_KNOWN: u64 = 1;
/// The most that requests waiting for something new may hold of all places, in eighths: all of them, and those from
/// outside.
const WAITING_MAX: u64 = 6;
const WAITING_OUTSIDE_MAX: u64 = 4;

/// The places, counted in the bytes their connections are charged.
pub struct Places {
    total_bytes: u64,
    held: Mutex<Held>,
    guests: Guests,
}

#[derive(Default)]
struct Held {
    all: BTreeMap<u64, One>,
    next: u64,
}

/// One connection.
struct One {
    who: Who,
    /// The caller now answered on a proxy's connection.
    lent: Option<Who>,
    bytes: u64,
    watch: Arc<PeerWatch>,
    leave: Arc<Notify>,
    /// Told to go, to make room for another.
    leaving: bool,
}

/// A caller with its standing, which bounds what it may hold.
#[derive(Debug, Clone, Copy)]
struct Who {
    caller: Caller,
    standing: Standing,
    is_proxy: bool,
}

/// How well a caller is known, from least to most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Standing {
    Stranger,
    /// Lately showed a good token.
    Guest,
    /// In one of the board's own networks.
    Household,
}

type Group = (Standing, Caller);

/// Where a connection comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Outside,
    Household,
    /// A proxy the owner trusts.
    Proxy,
}

/// A place, until it is dropped.
pub struct Place {
    places: Arc<Places>,
    id: u64,
    leave: Arc<Notify>,
}

impl Places {
    pub fn new(clock: Clock, total_bytes: u64) -> Arc<Self> {
        Arc::new(Self { total_bytes, held: Mutex::default(), guests: Guests::new(clock) })
    }

    /// A place for one more connection of `ip`, charged `bytes`. At a bound, only if another connection can be told to
    /// go.
    pub fn enter(self: &Arc<Self>, ip: IpAddr, origin: Origin, bytes: u64, watch: &Arc<PeerWatch>) -> Option<Place> {
        let who = self.who(ip, origin);
        let mut held = self.lock();
        if !held.admit(who, bytes, self.total_bytes) {
            return None;
        }
        let (id, leave) = (held.next, Arc::new(Notify::new()));
        let one = One { who, lent: None, bytes, watch: watch.clone(), leave: leave.clone(), leaving: false };
        held.all.insert(id, one);
        held.next += 1;
        Some(Place { places: self.clone(), id, leave })
    }

    /// The connection of `watch`, a proxy's, now answers a request of `ip`. Returns whether `ip` may hold one more.
    pub fn lend(&self, watch: &PeerWatch, ip: IpAddr, origin: Origin) -> bool {
        let who = self.who(ip, origin);
        let mut held = self.lock();
        let Some(one) = watch.seat().and_then(|id| held.all.get_mut(&id)) else { return true };
        // Not counted while this is decided.
        one.lent = None;
        let bytes = std::mem::take(&mut one.bytes);
        let may = held.admit(who, bytes, self.total_bytes);
        if let Some(one) = watch.seat().and_then(|id| held.all.get_mut(&id)) {
            (one.bytes, one.lent) = (bytes, may.then_some(who));
        }
        may
    }

    /// A listener waits for `bytes` while all is taken: tells connections that give way to any caller to go, one at a
    /// time.
    pub fn press(&self, bytes: u64) {
        let mut held = self.lock();
        let leaving: u64 = held.all.values().filter(|one| one.leaving).map(|one| one.bytes).sum();
        if leaving < bytes {
            held.dismiss(self.total_bytes, None, |_| true);
        }
    }

    /// From here on the request of `watch` waits for something new. When too many do, the group with most of them has
    /// its longest waiting request answered. Not before that one has waited a little: an answered client asks again at
    /// once.
    pub fn waits(&self, watch: &PeerWatch) {
        watch.wait();
        let mut held = self.lock();
        for (most, best) in [(WAITING_OUTSIDE_MAX, Standing::Guest), (WAITING_MAX, Standing::Household)] {
            let waits = |one: &One| one.who().standing <= best && matches!(one.watch.doing(), Doing::Waits(_));
            if held.used(waits) <= eighths(self.total_bytes, most) {
                continue;
            }
            let groups = held.groups(waits);
            let has_waited = |one: &One| waits(one) && one.watch.doing().measure() >= FRESH.as_millis() as u64;
            let waiting = held.all.iter().filter(|(_, one)| !one.leaving && has_waited(one));
            let longest = waiting.max_by_key(|(_, one)| {
                let who = one.who();
                (Reverse(who.standing), groups.get(&who.group()), one.watch.doing().measure())
            });
            let longest = longest.map(|(id, _)| *id);
            longest.into_iter().for_each(|id| held.tell(id));
        }
    }

    /// A good token of `user` was shown at `ip`.
    pub fn note_guest(&self, ip: IpAddr, user: &str) {
        if !self.guests.note(ip, user) {
            return;
        }
        let caller = Caller::of(ip);
        for one in self.lock().all.values_mut() {
            for who in [Some(&mut one.who), one.lent.as_mut()].into_iter().flatten() {
                if who.caller == caller {
                    who.standing = who.standing.max(Standing::Guest);
                }
            }
        }
    }

    /// Whether `user` was seen at `ip` lately.
    pub fn is_guest(&self, ip: IpAddr, user: &str) -> bool {
        self.guests.is_of(ip, user)
    }

    fn who(&self, ip: IpAddr, origin: Origin) -> Who {
        let caller = Caller::of(ip);
        let standing = match origin {
            Origin::Household | Origin::Proxy => Standing::Household,
            Origin::Outside if self.guests.has(caller) => Standing::Guest,
            Origin::Outside => Standing::Stranger,
        };
        Who { caller, standing, is_proxy: origin == Origin::Proxy }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock()
    }
}

impl Held {
    /// Whether `who` may hold `bytes` more, after telling others to go if necessary. The narrowest bound is checked
    /// first: a connection that gives way there frees its bytes in the wider bounds too.
    fn admit(&mut self, who: Who, bytes: u64, total: u64) -> bool {
        if who.is_proxy {
            return true;
        }
        let most = |part: u64| eighths(total, part).max(bytes);
        let is_same = |one: &One| !one.who().is_proxy && one.who().caller == who.caller;
        let is_near = |one: &One| !one.who().is_proxy && one.who().group() == who.group();
        let is_alike = |one: &One| one.who().standing == who.standing;
        // A newcomer also counts among all of its standing or lower: up to the guests, and up to the household.
        let mut wider = Standing::ALL.into_iter().filter(|best| *best >= who.standing);
        self.make_room(who, bytes, total, most(who.standing.share()), is_same)
            && self.make_room(who, bytes, total, most(who.standing.network_share()), is_near)
            && self.make_room(who, bytes, total, most(who.standing.share_alone()), is_alike)
            && wider.all(|best| {
                let is_no_better = |one: &One| one.who().standing <= best;
                self.make_room(who, bytes, total, most(best.share_of_all()), is_no_better)
            })
    }

    /// Whether the connections of a kind stay within `limit` with `bytes` more, after telling some of them to go if
    /// necessary.
    fn make_room(&mut self, who: Who, bytes: u64, total: u64, limit: u64, of: impl Fn(&One) -> bool) -> bool {
        // Each round ends one connection.
        while self.used(&of) + bytes > limit {
            if !self.dismiss(total, Some((who, bytes)), &of) {
                return false;
            }
        }
        true
    }

    fn used(&self, of: impl Fn(&One) -> bool) -> u64 {
        self.all.values().filter(|one| !one.leaving && of(one)).map(|one| one.bytes).sum()
    }

    /// The bytes each group of callers holds of a kind.
    fn groups(&self, of: impl Fn(&One) -> bool) -> HashMap<Group, u64> {
        let mut groups = HashMap::new();
        for one in self.all.values().filter(|one| !one.leaving && of(one)) {
            *groups.entry(one.who().group()).or_default() += one.bytes;
        }
        groups
    }

    /// Tells one connection to go, if one gives way.
    fn dismiss(&mut self, total: u64, new: Option<(Who, u64)>, of: impl Fn(&One) -> bool) -> bool {
        let chosen = self.choose(total, new, of);
        chosen.into_iter().for_each(|id| self.tell(id));
        chosen.is_some()
    }

    /// The connection that gives way first to a newcomer; without `new`, nothing is known of the newcomer.
    fn choose(&self, total: u64, new: Option<(Who, u64)>, of: impl Fn(&One) -> bool) -> Option<u64> {
        let may_spare =
            |standing| self.used(|one: &One| one.who().standing == standing) > eighths(total, LEFT_TO_LESS_KNOWN);
        let spared = [may_spare(Standing::Stranger), may_spare(Standing::Guest)];
        let groups = self.groups(|_| true);
        let held_by = |who: Who| groups.get(&who.group()).copied().unwrap_or(0);
        let least = eighths(total, LEFT_TO_LESS_KNOWN);
        let is_due =
            new.is_some_and(|(who, bytes)| self.used(|one| one.who().standing == who.standing) + bytes <= least);
        let theirs = new.map_or(0, |(who, bytes)| held_by(who) + bytes);
        let candidates = self.all.iter().filter(|(_, one)| !one.leaving && of(one)).filter_map(|(id, one)| {
            let (who, doing) = (one.who(), one.watch.doing());
            let is_better_known = new.is_some_and(|(new, _)| who.standing > new.standing);
            // A connection that became a guest's after it was let in may have filled the part reserved for strangers.
            let leaves_it = is_due && who.standing == Standing::Guest && doing.waits_for(FRESH);
            if is_better_known && !leaves_it {
                return None;
            }
            let is_less_known = new.is_some_and(|(new, _)| who.standing < new.standing);
            let is_own = new.is_some_and(|(new, _)| who.caller == new.caller);
            let gives_way = is_better_known
                || doing.lingers(FRESH)
                || is_less_known && spared.get(who.standing as usize) == Some(&true)
                || doing.lasts(LONG) && held_by(who) > theirs
                // A group with very many new connections leaves a place to the first of another network.
                || new.is_some() && matches!(doing, Doing::Idle(_)) && held_by(who) > theirs
                || doing.lasts(LONG) && is_own && matches!(doing, Doing::Waits(_));
            let order = (doing.lingers(FRESH), Reverse(who.standing), doing.rank(), held_by(who), doing.measure());
            gives_way.then_some((*id, order))
        });
        candidates.max_by_key(|(_, order)| *order).map(|(id, _)| id)
    }

    fn tell(&mut self, id: u64) {
        if let Some(one) = self.all.get_mut(&id) {
            one.leaving = true;
            one.leave.notify_one();
        }
    }
}

impl Who {
    /// The callers it shares a bound with.
    fn group(self) -> Group {
        (self.standing, self.caller.network())
    }
}

impl One {
    /// The caller it counts for.
    fn who(&self) -> Who {
        self.lent.filter(|_| self.watch.idle().is_none()).unwrap_or(self.who)
    }
}

impl Place {
    /// Whether the connection may be charged `bytes` more: only while half of its caller's share stays free for that
    /// caller's other connections, and no connection has to go for it.
    pub fn may_hold(&self, bytes: u64) -> bool {
        let (held, total) = (self.places.lock(), self.places.total_bytes);
        let Some(one) = held.all.get(&self.id) else { return false };
        let who = one.who;
        if who.is_proxy {
            return true;
        }
        let own: u64 = held.all.values().filter(|one| one.who.caller == who.caller).map(|one| one.bytes).sum();
        let all = held.used(|one| one.who().standing <= who.standing);
        own + bytes <= eighths(total, who.standing.share()) / 2
            && all + bytes <= eighths(total, who.standing.share_of_all())
    }

    /// Counts `bytes` more for the connection, until it ends.
    pub fn hold(&self, bytes: u64) {
        if let Some(one) = self.places.lock().all.get_mut(&self.id) {
            one.bytes += bytes;
        }
    }

    /// Notes the connection's place on its watch, for [`Places::lend`].
    pub fn mark(&self, watch: &PeerWatch) {
        watch.sit(self.id);
    }

    /// Ends when the place is needed for another connection.
    pub async fn wanted_back(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().all.remove(&self.id);
    }
}

/// In eighths of all places. Of the smallest profile's 23 an eighth is nearly three.
impl Standing {
    const ALL: [Self; 3] = [Self::Stranger, Self::Guest, Self::Household];

    /// What one address may hold.
    fn share(self) -> u64 {
        match self {
            Self::Stranger => 2,
            Self::Guest => 4,
            Self::Household => 6,
        }
    }

    /// What the addresses of one provider's network may hold together: more than one address, so that a neighbour finds
    /// some.
    fn network_share(self) -> u64 {
        match self {
            Self::Stranger => 3,
            Self::Guest => 4,
            Self::Household => 8,
        }
    }

    /// What all of this standing may hold together: guests leave some of their part to strangers.
    fn share_alone(self) -> u64 {
        match self {
            Self::Stranger => 4,
            Self::Guest => 5,
            Self::Household => 8,
        }
    }

    /// What all of this standing and the lower ones may hold together. The part that the household cannot lose is also
    /// what listeners hold ready for the next connection.
    fn share_of_all(self) -> u64 {
        match self {
            Self::Stranger => 4,
            Self::Guest => 6,
            Self::Household => 8,
        }
    }
}

impl Origin {
    /// The origin of a caller that reached us at our address `here`. A public IPv4 network may be a hosting provider's,
    /// shared with strangers: there only our own address counts as household.
    pub fn of(ip: IpAddr, here: Option<IpAddr>, trusted_proxies: &[IpAddr]) -> Self {
        let ip = ip.to_canonical();
        if trusted_proxies.contains(&ip) {
            Self::Proxy
        } else if is_own_network(ip) || here.is_some_and(|here| Caller::of(here) == Caller::of(ip)) {
            Self::Household
        } else {
            Self::Outside
        }
    }
}

fn eighths(total: u64, part: u64) -> u64 {
    total * part / 8
}

fn is_own_network(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Budget, Profile};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Addresses of as many networks.
    fn far(n: usize) -> String {
        format!("203.{}.{}.7", n / 250, n % 250)
    }

    /// Places of a profile, each as large as a connection with TLS.
    struct Hall {
        clock: Clock,
        places: Arc<Places>,
        bytes: u64,
        /// As many as there are.
        all: usize,
    }

    struct Guest {
        place: Place,
        watch: Arc<PeerWatch>,
    }

    impl Hall {
        fn of(profile: &str) -> Hall {
            let budget = Budget::from_profile(Profile::get(profile).unwrap());
            let (total, bytes) = (budget.account("connections").limit(), budget.profile().connection_bytes(true));
            let clock = Clock::simulated(0);
            Hall { places: Places::new(clock.clone(), total), clock, bytes, all: (total / bytes) as usize }
        }

        fn each(test: impl Fn(&Hall)) {
            ["pi-zero-2w", "pi-3", "pi-4-2g"].into_iter().for_each(|profile| test(&Hall::of(profile)));
        }

        fn enter(&self, from: &str, origin: Origin) -> Option<Guest> {
            let watch = PeerWatch::new(self.clock.clone());
            let place = self.places.enter(ip(from), origin, self.bytes, &watch)?;
            place.mark(&watch);
            Some(Guest { place, watch })
        }

        fn outside(&self, from: &str) -> Option<Guest> {
            self.enter(from, Origin::Outside)
        }

        /// Opens as many connections as are let in.
        fn fill(&self, from: impl Fn(usize) -> String, origin: Origin) -> Vec<Guest> {
            (0..2 * self.all).filter_map(|n| self.enter(&from(n), origin)).collect()
        }

        fn pass(&self, ms: u64) {
            self.clock.advance(Duration::from_millis(ms));
        }
    }

    impl Guest {
        fn is_leaving(&self) -> bool {
            self.place.places.lock().all[&self.place.id].leaving
        }
    }

    fn leaving(guests: &[Guest]) -> usize {
        guests.iter().filter(|guest| guest.is_leaving()).count()
    }

    /// Four addresses took all places.
    #[test]
    fn strangers_leave_half_to_who_is_known() {
        Hall::each(|hall| {
            let held = hall.fill(far, Origin::Outside);
            assert!(held.len() <= hall.all / 2 && held.len() + 2 > hall.all / 2, "{} of {}", held.len(), hall.all);
            hall.places.note_guest(ip("198.51.100.1"), "@a:b");
            let guests = hall.fill(|_| "198.51.100.1".to_owned(), Origin::Outside);
            assert!(guests.len() + 2 > hall.all / 2, "one address of a guest has as much as all strangers");
            let enter = |n: usize| hall.enter(&format!("192.168.1.{}", n % 250), Origin::Household).unwrap();
            let family: Vec<_> = (0..hall.all / 4).map(enter).collect();
            assert!(leaving(&guests) == 0 && leaving(&family) == 0);
        });
    }

    /// Beside guests, strangers took the household's part too, and the next connections waited for seconds.
    #[test]
    fn strangers_and_guests_leave_a_quarter_whoever_comes_last() {
        Hall::each(|hall| {
            (0..8).for_each(|n| hall.places.note_guest(ip(&far(n)), "@a:b"));
            let guests = hall.fill(|n| far(n % 8), Origin::Outside);
            assert!(guests.len() <= hall.all * 5 / 8);
            let strangers = hall.fill(|n| far(100 + n), Origin::Outside);
            assert!(guests.len() + strangers.len() <= hall.all * 3 / 4);
            assert!(strangers.len() + 1 >= hall.all / 8 && leaving(&guests) == 0, "{}", strangers.len());
        });
    }

    #[test]
    fn who_becomes_a_guest_inside_leaves_what_is_strangers() {
        Hall::each(|hall| {
            let mut polls = Vec::new();
            for n in 0..2 * hall.all {
                let Some(guest) = hall.outside(&far(n)) else { continue };
                hall.places.note_guest(ip(&far(n)), &format!("@u{n}:b"));
                let active = guest.watch.begin();
                hall.places.waits(&guest.watch);
                polls.push((guest, active));
            }
            hall.pass(2000);
            assert!(hall.outside("198.51.100.1").is_some());
            assert_eq!(polls.iter().filter(|(guest, _)| guest.is_leaving()).count(), 1);
        });
    }

    #[test]
    fn one_address_and_one_providers_network_leave_some_to_others() {
        Hall::each(|hall| {
            let one = hall.fill(|_| "203.0.113.1".to_owned(), Origin::Outside);
            assert_eq!(one.len(), hall.all / 4, "an address");
            let near = hall.fill(|n| format!("203.0.113.{}", 2 + n % 250), Origin::Outside);
            let most = hall.all * 3 / 8;
            assert!((most - 1..=most).contains(&(one.len() + near.len())), "its network");
            drop((one, near));
            let v6 = hall.fill(|n| format!("2001:db8:1:{n:x}::1"), Origin::Outside);
            assert!((most - 1..=most).contains(&v6.len()), "a /48 with a /64 for each");
            assert!(hall.outside("2001:db8:2::1").is_some());
        });
    }

    #[test]
    fn who_is_known_takes_a_strangers_place() {
        Hall::each(|hall| {
            let strangers = hall.fill(far, Origin::Outside);
            let working: Vec<_> = strangers.iter().map(|one| one.watch.begin()).collect();
            for n in 0..4 {
                hall.places.note_guest(ip(&format!("198.51.{n}.1")), "@a:b");
            }
            let guests = hall.fill(|n| format!("198.51.{}.1", n % 4), Origin::Outside);
            assert!(guests.len() + 2 > hall.all * 3 / 4 - hall.all / 8, "{} of {}", guests.len(), hall.all);
            let left = strangers.len() - leaving(&strangers);
            assert!(left > 0 && left <= hall.all / 8 + 1, "strangers keep some: {left}");
            drop(working);
        });
    }

    /// Idle connections and heads sent byte by byte kept others waiting without a limit.
    #[test]
    fn idle_ones_give_way_within_two_seconds() {
        Hall::each(|hall| {
            let idle = hall.fill(far, Origin::Outside);
            assert!(hall.outside("198.51.100.1").is_none(), "all have just come");
            hall.pass(1500);
            let _new = hall.outside("198.51.100.1").unwrap();
            assert_eq!(leaving(&idle), 1);
            // The first connection with a request in work stays.
            let busy = idle.iter().find(|one| !one.is_leaving()).unwrap();
            let _active = busy.watch.begin();
            let more: Vec<_> = (0..hall.all).filter_map(|n| hall.outside(&far(2 * hall.all + n))).collect();
            assert!(!more.is_empty() && !busy.is_leaving());
        });
    }

    #[test]
    fn a_flood_of_new_ones_leaves_a_place_to_who_has_none() {
        Hall::each(|hall| {
            for round in 0..5 {
                let flood = hall.fill(|n| far(n % 3), Origin::Outside);
                let _new = hall.outside(&far(1000 + round)).unwrap();
                assert_eq!(leaving(&flood), 1);
            }
        });
    }

    /// A stranger that reads or sends a byte a second is worth less than a waiting connection.
    #[test]
    fn the_slowest_gives_way() {
        Hall::each(|hall| {
            let readers = hall.fill(far, Origin::Outside);
            let held: Vec<_> = readers.iter().map(|one| (one.watch.begin(), one.watch.ticket())).collect();
            for _ in 0..30 {
                for (n, one) in readers.iter().enumerate() {
                    one.watch.moved(if n == 1 { 1 } else { 500 });
                }
                hall.pass(100);
            }
            let _new = hall.outside("198.51.100.1").unwrap();
            assert!(readers[1].is_leaving() && leaving(&readers) == 1);
            drop(held);
        });
    }

    #[test]
    fn fast_ones_give_way_to_who_has_less() {
        let hall = Hall::of("pi-zero-2w");
        let readers = hall.fill(|n| format!("203.0.{}.7", n % 3), Origin::Outside);
        let held: Vec<_> = readers.iter().map(|one| (one.watch.begin(), one.watch.ticket())).collect();
        let pass = || {
            for _ in 0..60 {
                readers.iter().for_each(|one| one.watch.moved(5000));
                hall.pass(100);
            }
        };
        assert!(hall.outside("198.51.100.1").is_none());
        pass();
        let _first = hall.outside("198.51.100.1").unwrap();
        assert_eq!(leaving(&readers), 1);
        assert!(hall.outside("203.0.1.8").is_none(), "that network has its part");
        drop(held);
    }

    /// On an open server any caller can have an account and a waiting app.
    #[test]
    fn requests_that_wait_leave_places_to_others() {
        Hall::each(|hall| {
            let polls: Vec<_> = (0..hall.all * 3 / 4)
                .filter_map(|n| {
                    let from = far(n);
                    hall.places.note_guest(ip(&from), &format!("@u{n}:b"));
                    let guest = hall.outside(&from)?;
                    let active = guest.watch.begin();
                    hall.places.waits(&guest.watch);
                    hall.pass(1500);
                    Some((guest, active))
                })
                .collect();
            let waiting = polls.iter().filter(|(guest, _)| !guest.is_leaving()).count();
            assert!(waiting <= hall.all / 2 + 1, "{waiting} of {}", hall.all);
            hall.places.note_guest(ip("198.51.100.1"), "@a:b");
            let held: Vec<_> = (0..3).map(|_| hall.outside("198.51.100.1").unwrap()).collect();
            assert_eq!(leaving(&held), 0);
        });
    }

    #[test]
    fn who_is_at_the_bound_gives_up_what_is_theirs() {
        let hall = Hall::of("pi-zero-2w");
        let from = "203.0.113.1";
        let (working, idle) = (hall.outside(from).unwrap(), hall.outside(from).unwrap());
        let polls: Vec<_> = (0..3).map(|_| hall.outside(from).unwrap()).collect();
        let _active: Vec<_> = polls.iter().chain([&working]).map(|one| one.watch.begin()).collect();
        polls.iter().for_each(|one| hall.places.waits(&one.watch));
        assert!(hall.outside(from).is_none(), "nothing has been idle for long");
        hall.pass(1500);
        let _new = hall.outside(from).unwrap();
        assert!(idle.is_leaving());
        hall.pass(3500);
        let _busy = _new.watch.begin();
        let _newer = hall.outside(from).unwrap();
        assert_eq!((leaving(&polls), working.is_leaving()), (1, false), "what waited longest is told to come again");
    }

    /// A listener that has no memory for the next connection cannot know its origin.
    #[test]
    fn one_after_the_other_goes_while_somebody_waits() {
        let hall = Hall::of("pi-zero-2w");
        let family: Vec<_> = (0..8).map(|_| hall.enter("192.168.1.2", Origin::Household).unwrap()).collect();
        let strangers = hall.fill(far, Origin::Outside);
        hall.places.press(hall.bytes);
        assert_eq!(leaving(&strangers), 0, "all have just come");
        hall.pass(1500);
        hall.places.press(hall.bytes);
        hall.places.press(hall.bytes);
        assert_eq!((leaving(&strangers), leaving(&family)), (1, 0));
    }

    #[test]
    fn what_a_connection_holds_more_counts_for_its_caller() {
        let (clock, total) = (Clock::simulated(0), 400);
        let places = Places::new(clock.clone(), total);
        let enter = || places.enter(ip("203.0.113.1"), Origin::Outside, 10, &PeerWatch::new(clock.clone()));
        let (one, two) = (enter().unwrap(), enter().unwrap());
        assert!(one.may_hold(30) && !one.may_hold(31));
        one.hold(30);
        assert!(!two.may_hold(1));
        let rest: Vec<_> = std::iter::from_fn(enter).collect();
        assert_eq!(rest.len(), 5, "half of the share is left for plain connections");
        drop((one, rest));
        assert!(two.may_hold(30));
    }

    /// Behind a proxy all callers have the same address.
    #[test]
    fn a_proxys_connection_counts_for_who_is_answered() {
        Hall::each(|hall| {
            let proxied: Vec<_> = (0..hall.all).map(|_| hall.enter("127.0.0.1", Origin::Proxy).unwrap()).collect();
            let lend = |one: &Guest, from: &str| hall.places.lend(&one.watch, ip(from), Origin::Outside);
            let active: Vec<_> = proxied.iter().map(|one| one.watch.begin()).collect();
            let served = proxied.iter().filter(|one| lend(one, "203.0.113.1")).count();
            assert_eq!(served, hall.all / 4);
            drop(active);
            let _active: Vec<_> = proxied.iter().map(|one| one.watch.begin()).collect();
            assert!(lend(&proxied[0], "203.0.113.1"), "what was answered counts no more");
            assert_eq!(leaving(&proxied), 0);
        });
    }

    #[test]
    fn a_place_is_given_back() {
        let hall = Hall::of("pi-zero-2w");
        let held = hall.fill(far, Origin::Outside);
        drop(held);
        assert!(hall.places.lock().all.is_empty() && hall.outside("203.0.113.1").is_some());
    }

    #[test]
    fn the_household_is_told_from_strangers() {
        let (here, proxy) = (Some(ip("2001:db8::5")), [ip("192.168.1.9")]);
        let origin = |from: &str| Origin::of(ip(from), here, &proxy);
        for own in ["127.0.0.1", "192.168.1.7", "::ffff:10.0.0.1", "fe80::1", "fd00::1", "::1", "2001:db8::77"] {
            assert_eq!(origin(own), Origin::Household, "{own}");
        }
        for stranger in ["203.0.113.1", "2001:db8:0:1::1", "::ffff:203.0.113.1"] {
            assert_eq!(origin(stranger), Origin::Outside, "{stranger}");
        }
        assert_eq!(origin("192.168.1.9"), Origin::Proxy);
    }
}

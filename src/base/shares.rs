//! Bounded tables that others fill: the owner with most entries loses its own oldest first, and unknown owners displace
//! only each other.
//!
//! [`of_the_busiest`] is the rule, also for tables that lie elsewhere. [`Shares`] is a table in memory that follows it,
//! with one share for known owners and one for all others. [`neighbourhood`] and [`network`] define one unknown owner:
//! names below a domain and addresses within a network cost their owner nothing.

use std::borrow::Borrow;
use std::cmp::Reverse;
use std::collections::hash_map::RandomState;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasher, Hash};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One part in this many of a share is given up at once, so that not every new entry needs a search of the whole table.
const PART_GIVEN_UP: usize = 16;

/// One entry of a table, for [`of_the_busiest`].
#[derive(Debug, Clone)]
pub struct Held<K> {
    /// A hash of its owner.
    pub owner: u32,
    /// A hash of the person it is from, among the owner's people, where those are told apart.
    pub within: u32,
    /// Lower is older.
    pub age: u64,
    pub weight: u32,
    pub key: K,
}

/// The entries to give up so that `surplus` is freed: repeatedly the oldest of the owner with most; within an owner,
/// the oldest of the person with most. Of equals, the one whose oldest entry is older. In time linear in the list but
/// for a sort.
pub fn of_the_busiest<K: Clone>(mut held: Vec<Held<K>>, surplus: u64) -> Vec<K> {
    held.sort_unstable_by_key(|one| (one.owner, one.within, Reverse(one.age)));
    // The remaining entries of each person; the last of them is the oldest.
    let mut people: Vec<(usize, usize)> = Vec::new();
    let mut owners: Vec<BinaryHeap<(u64, Reverse<u64>, usize)>> = Vec::new();
    let mut start = 0;
    for of_owner in held.chunk_by(|one, next| one.owner == next.owner) {
        let mut heap = BinaryHeap::new();
        for own in of_owner.chunk_by(|one, next| one.within == next.within) {
            let weight = own.iter().map(|one| u64::from(one.weight)).sum();
            heap.push((weight, Reverse(own[own.len() - 1].age), people.len()));
            people.push((start, start + own.len()));
            start += own.len();
        }
        owners.push(heap);
    }
    let whole = |heap: &BinaryHeap<(u64, _, _)>| heap.iter().map(|(weight, ..)| weight).sum::<u64>();
    let next = |heap: &BinaryHeap<(u64, Reverse<u64>, usize)>| heap.peek().map(|(_, age, _)| *age);
    let mut busiest: BinaryHeap<(u64, Reverse<u64>, usize)> =
        owners.iter().enumerate().filter_map(|(at, heap)| Some((whole(heap), next(heap)?, at))).collect();
    let (mut given_up, mut freed) = (Vec::new(), 0);
    while freed < surplus
        && let Some((of_owner, _, at)) = busiest.pop()
        && let Some((own, _, person)) = owners[at].pop()
    {
        let (start, end) = &mut people[person];
        *end -= 1;
        let oldest = &held[*end];
        let weight = u64::from(oldest.weight);
        freed += weight;
        given_up.push(oldest.key.clone());
        if end > start {
            owners[at].push((own - weight, Reverse(held[*end - 1].age), person));
        }
        if let Some(age) = next(&owners[at]) {
            busiest.push((of_owner - weight, age, at));
        }
    }
    given_up
}

/// The owner of an entry, in one of the two shares.
#[derive(Debug, Clone, Copy)]
pub enum Owner<O> {
    Known(O),
    Stranger(O),
}

impl<O> Owner<O> {
    pub fn new(is_known: bool, owner: O) -> Owner<O> {
        if is_known { Owner::Known(owner) } else { Owner::Stranger(owner) }
    }
}

/// A table with a number of places for known owners and another for unknown ones. A full share gives up a sixteenth by
/// [`of_the_busiest`]; the oldest entry is the one unused for longest. An entry takes 24 bytes beside its key and
/// value, and the table's slack.
pub struct Shares<K, V> {
    entries: HashMap<K, Entry<V>>,
    known: Share,
    strangers: Share,
    uses: u64,
    hasher: RandomState,
}

struct Share {
    len: usize,
    most: usize,
}

struct Entry<V> {
    owner: u32,
    is_known: bool,
    used: u64,
    value: V,
}

impl<K: Hash + Eq + Clone, V> Shares<K, V> {
    pub fn new(known_max: usize, strangers_max: usize) -> Shares<K, V> {
        let share = |most: usize| Share { len: 0, most: most.max(1) };
        Shares {
            entries: HashMap::new(),
            known: share(known_max),
            strangers: share(strangers_max),
            uses: 0,
            hasher: RandomState::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn contains<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.entries.contains_key(key)
    }

    /// An entry, which is the youngest of its owner's from now on.
    pub fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let entry = self.entries.get_mut(key)?;
        self.uses += 1;
        entry.used = self.uses;
        Some(&mut entry.value)
    }

    /// An entry, which stays as old as it is.
    pub fn peek<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// Puts an entry on its owner's share, in the place of one with the same key. Answers the old value.
    pub fn put(&mut self, owner: Owner<impl Hash>, key: K, value: V) -> Option<V> {
        let before = self.remove(&key);
        let (is_known, owner) = match &owner {
            Owner::Known(owner) => (true, self.hasher.hash_one(owner)),
            Owner::Stranger(owner) => (false, self.hasher.hash_one(owner)),
        };
        let owner = owner as u32;
        let share = self.share(is_known);
        if share.len >= share.most {
            self.give_up(is_known, owner);
        }
        self.share(is_known).len += 1;
        self.uses += 1;
        self.entries.insert(key, Entry { owner, is_known, used: self.uses, value });
        before
    }

    /// The entry of a key, which is put on its owner's share when it is not there.
    pub fn get_or_put(&mut self, owner: Owner<impl Hash>, key: K, new: impl FnOnce() -> V) -> &mut V {
        if !self.contains(&key) {
            self.put(owner, key.clone(), new());
        }
        self.get(&key).expect("it is there or was just put")
    }

    pub fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let entry = self.entries.remove(key)?;
        self.share(entry.is_known).len -= 1;
        Some(entry.value)
    }

    /// The entries, and whether their owners are known; in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, bool, &V)> {
        self.entries.iter().map(|(key, entry)| (key, entry.is_known, &entry.value))
    }

    /// Keeps the entries for which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &V) -> bool) {
        let (known, strangers) = (&mut self.known, &mut self.strangers);
        self.entries.retain(|key, entry| {
            let is_kept = keep(key, &entry.value);
            if !is_kept {
                let share = if entry.is_known { &mut *known } else { &mut *strangers };
                share.len -= 1;
            }
            is_kept
        });
    }

    pub fn clear(&mut self) {
        (self.known.len, self.strangers.len) = (0, 0);
        self.entries.clear();
    }

    /// Takes everything out, the least lately used first.
    pub fn drain(&mut self) -> Vec<(K, V)> {
        (self.known.len, self.strangers.len) = (0, 0);
        let mut all: Vec<_> = self.entries.drain().collect();
        all.sort_unstable_by_key(|(_, entry)| entry.used);
        all.into_iter().map(|(key, entry)| (key, entry.value)).collect()
    }

    fn share(&mut self, is_known: bool) -> &mut Share {
        if is_known { &mut self.known } else { &mut self.strangers }
    }

    /// Makes room in a share for one more of `newcomer`, which counts already: an owner with as many as others loses
    /// its own.
    fn give_up(&mut self, is_known: bool, newcomer: u32) {
        let count = (self.share(is_known).most / PART_GIVEN_UP).max(1);
        let own = self.entries.iter().filter(|(_, entry)| entry.is_known == is_known);
        let held = |owner, age, key| Held { owner, within: 0, age, weight: 1, key };
        let mut all: Vec<_> = own.map(|(key, entry)| held(entry.owner, entry.used, Some(key))).collect();
        all.push(held(newcomer, u64::MAX, None));
        let keys: Vec<K> = of_the_busiest(all, count as u64).into_iter().flatten().cloned().collect();
        keys.iter().for_each(|key| drop(self.remove(key)));
    }
}

/// The part of a server's name that costs something: the last two words of its host, or its address's network.
pub fn neighbourhood(server: &str) -> String {
    let port = server.rfind(':').filter(|at| server[at + 1..].bytes().all(|byte| byte.is_ascii_digit()));
    let host = port.map_or(server, |at| &server[..at]);
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = literal.parse::<IpAddr>() {
        return network(ip).to_string();
    }
    let mut dots = host.rmatch_indices('.').map(|(at, _)| at);
    dots.nth(1).map_or(host, |at| &host[at + 1..]).to_ascii_lowercase()
}

/// The network of an address that one customer may have to themselves: /24 of IPv4, /48 of IPv6.
pub fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & (u32::MAX << 8)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 80)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Random;

    #[test]
    fn the_busiest_loses_its_oldest() {
        let held = |owner, within, age, weight| Held { owner, within, age, weight, key: age };
        let few = vec![held(1, 0, 1, 1), held(2, 0, 2, 1), held(2, 0, 3, 1), held(2, 0, 4, 1), held(3, 0, 5, 1)];
        for (surplus, gone) in [(0, &[][..]), (1, &[2]), (2, &[2, 3]), (3, &[2, 3, 1]), (9, &[2, 3, 1, 4, 5])] {
            assert_eq!(of_the_busiest(few.clone(), surplus), gone, "{surplus}");
        }
        // By weight, and within the owner that has most, the person that has most.
        let heavy = vec![held(1, 0, 1, 9), held(2, 1, 2, 1), held(2, 2, 3, 4), held(2, 2, 4, 4), held(2, 1, 5, 2)];
        assert_eq!(of_the_busiest(heavy, 10), [3, 1]);
        assert!(of_the_busiest(Vec::<Held<u8>>::new(), 5).is_empty());
    }

    #[test]
    fn strangers_push_out_strangers_and_the_busiest_itself() {
        let mut all = Shares::new(4, 32);
        all.put(Owner::Known("friend"), "f".to_owned(), 0);
        all.put(Owner::Stranger("once"), "o".to_owned(), 0);
        for n in 0..1000 {
            all.put(Owner::Stranger("busy"), n.to_string(), n);
        }
        assert!(all.contains("f") && all.contains("o"));
        assert!(!all.contains("0") && all.contains("999") && all.len() <= 33);
        assert_eq!(all.get("999").map(|n| *n), Some(999));
        // An owner that changes sides is counted once.
        all.put(Owner::Known("busy"), "999".to_owned(), 1);
        all.retain(|key, _| key == "999");
        assert_eq!((all.len(), all.known.len, all.strangers.len), (1, 1, 0));
    }

    /// Against a plain model, for entries put by any owner in any order: no share is longer than its bound, counts are
    /// right, no owner of a share with fewer entries than another lost one for it, and the other share never changes.
    #[test]
    fn any_order_of_puts_keeps_the_rule() {
        let random = Random::seeded(7);
        for most in [1, 2, 15, 16, 40] {
            let mut all = Shares::new(most, 2 * most);
            for step in 0..3000_u64 {
                let roll = random.u64();
                let (is_known, owner, key) = (roll.is_multiple_of(3), roll >> 8 & 7, roll >> 16 & 127);
                let key = key + if is_known { 1000 } else { 0 };
                let before = counts(&all);
                let _ = match roll >> 32 & 7 {
                    0 => all.remove(&key),
                    1 => all.get(&key).copied(),
                    _ => all.put(Owner::new(is_known, owner), key, step),
                };
                let after = counts(&all);
                let sum = |is_known| after.iter().filter(|(who, _)| who.0 == is_known).map(|(_, count)| count).sum();
                assert_eq!((all.known.len, all.strangers.len), (sum(true), sum(false)));
                assert!(all.known.len <= most && all.strangers.len <= 2 * most);
                for (who, count) in &before {
                    let left = after.get(who).copied().unwrap_or(0);
                    if left + 1 < *count {
                        let longest = after.iter().filter(|(other, _)| other.0 == who.0).map(|(_, count)| *count).max();
                        assert!(longest <= Some(left + 2), "{who:?} lost more than whoever has most");
                    }
                    assert!(who.0 == is_known || left == *count, "the other share stays");
                }
            }
        }
    }

    fn counts(all: &Shares<u64, u64>) -> HashMap<(bool, u32), usize> {
        let mut counts = HashMap::new();
        all.entries.values().for_each(|entry| *counts.entry((entry.is_known, entry.owner)).or_default() += 1);
        counts
    }

    #[test]
    fn what_one_stranger_is() {
        for (server, one) in [
            ("evil.example", "evil.example"),
            ("a.b.Evil.example:8448", "evil.example"),
            ("localhost", "localhost"),
            ("localhost:1", "localhost"),
            ("1.2.3.4", "1.2.3.0"),
            ("1.2.3.9:80", "1.2.3.0"),
            ("[2001:db8:1:2::3]:8448", "2001:db8:1::"),
            ("[2001:db8:1:9::3]", "2001:db8:1::"),
            ("", ""),
        ] {
            assert_eq!(neighbourhood(server), one, "{server}");
        }
    }
}

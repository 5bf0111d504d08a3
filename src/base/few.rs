//! Short lists, with code that exists once.
//!
//! The standard library's sort is some five KB of code for each type and each order, and collecting into a sorted map sorts first. Where lists
//! are short or seldom sorted, their places are sorted instead, all by one and the same sort, and what is collected is put in piece by piece.

use std::cmp::Ordering;

/// Sorts a list, stably. Takes twelve bytes for each entry meanwhile, and two calls through pointers for each comparison.
pub fn sort_few<T>(list: &mut [T], order: impl Fn(&T, &T) -> Ordering) {
    let places = sorted(list.len(), &|one, other| order(&list[one], &list[other]));
    rearrange(places, &mut |one, other| list.swap(one, other));
}

/// [`sort_few`] by a key that is made anew for each comparison.
pub fn sort_few_by<T, K: Ord>(list: &mut [T], key: impl Fn(&T) -> K) {
    sort_few(list, |one, other| key(one).cmp(&key(other)));
}

/// `all`, one after the other, in a map or a set: as collecting does, for few.
pub fn gathered<T, C: Default + Extend<T>>(all: impl IntoIterator<Item = T>) -> C {
    let mut made = C::default();
    made.extend(all);
    made
}

/// Which entry comes first, which second, and so on.
fn sorted(len: usize, order: &dyn Fn(usize, usize) -> Ordering) -> Vec<usize> {
    let mut places: Vec<usize> = (0..len).collect();
    places.sort_by(|one, other| order(*one, *other));
    places
}

/// Brings each entry to its place: `places` says which entry comes there.
fn rearrange(mut places: Vec<usize>, swap: &mut dyn FnMut(usize, usize)) {
    for first in 0..places.len() {
        let mut at = first;
        loop {
            let from = std::mem::replace(&mut places[at], at);
            if from == first {
                break;
            }
            swap(at, from);
            at = from;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn sorts_as_the_standard_library_does() {
        let mut seed = 7_u64;
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            seed >> 33
        };
        for len in 0..200 {
            let mut list: Vec<(u64, usize)> = (0..len).map(|at| (next() % 20, at)).collect();
            let mut expected = list.clone();
            expected.sort_by_key(|(key, _)| *key);
            sort_few_by(&mut list, |(key, _)| *key);
            assert_eq!(list, expected);
            expected.sort_by(|one, other| other.cmp(one));
            sort_few(&mut list, |one, other| other.cmp(one));
            assert_eq!(list, expected);
        }
    }

    #[test]
    fn gathers_as_collecting_does() {
        let all = [(3, "c"), (1, "a"), (3, "d")];
        assert_eq!(gathered::<_, BTreeMap<_, _>>(all), BTreeMap::from(all));
    }
}

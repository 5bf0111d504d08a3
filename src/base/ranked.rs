//! A page out of the middle of a list in any order, in bounded memory.

use std::collections::BinaryHeap;

/// Keys held at once. A page that begins at rank `r` takes `r / HELD_MAX` walks over the list.
const HELD_MAX: usize = 256;

/// What [`ranked`] found.
#[derive(Debug, PartialEq, Eq)]
pub struct Ranked<K> {
    /// The keys of the page, in order.
    pub page: Vec<K>,
    /// Of the whole list.
    pub total: usize,
}

/// The keys that have the ranks `from..from + most` among those that `each` visits, in their order. `each` is called one or
/// several times and visits the same keys every time; no two may be equal. `most` is at most 256.
pub fn ranked<K: Ord + Clone, E>(
    from: usize,
    most: usize,
    each: &mut dyn FnMut(&mut dyn FnMut(K)) -> Result<(), E>,
) -> Result<Ranked<K>, E> {
    let (most, mut skipped, mut last, mut total) = (most.min(HELD_MAX), 0, None::<K>, None);
    loop {
        // Either the rest of the way and the page, or a part of the way.
        let way = from - skipped;
        let held_max = if way + most <= HELD_MAX { way + most } else { way.min(HELD_MAX) };
        let (mut held, mut count) = (BinaryHeap::with_capacity(held_max + 1), 0);
        each(&mut |key| {
            count += 1;
            if last.as_ref().is_some_and(|last| key <= *last) {
                return;
            }
            held.push(key);
            if held.len() > held_max {
                held.pop();
            }
        })?;
        let total = *total.get_or_insert(count);
        let mut held = held.into_sorted_vec();
        if way + most <= HELD_MAX || held.len() < held_max || from >= total {
            let page = if way < held.len() && from < total { held.split_off(way) } else { Vec::new() };
            return Ok(Ranked { page, total });
        }
        skipped += held.len();
        last = held.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    #[test]
    fn every_page_of_a_list_in_no_order_is_found() {
        let list: Vec<u64> = (0..2_000).map(|n| n * 7_919 % 2_003).collect();
        let mut sorted = list.clone();
        sorted.sort_unstable();
        for (from, most) in
            [(0, 10), (0, 0), (200, 100), (255, 1), (256, 5), (1_000, 256), (1_990, 100), (2_000, 5), (9_999, 5)]
        {
            let each = &mut |visit: &mut dyn FnMut(u64)| {
                list.iter().for_each(|n| visit(*n));
                Ok::<_, Infallible>(())
            };
            let found = ranked(from, most, each).unwrap();
            let wanted: Vec<u64> = sorted.iter().skip(from).take(most).copied().collect();
            assert_eq!((found.page, found.total), (wanted, 2_000), "{from} {most}");
        }
    }
}

//! A page out of the middle of a list in any order, in bounded memory.
//!
//! A page at the beginning takes one walk over the list. For one further down a sample of the list is put in order, and in another walk it
//! is counted how many keys lie between each two of it; so the page's place is known to some hundredth of the list, and this is done again
//! between the two keys where it is. The last page of 100,000 rows takes five walks, of a million six.

use std::collections::BinaryHeap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

/// Places held at once, 48 bytes each: 24 KiB; with the counts between them 26.
const PLACES_MAX: usize = 512;
/// Bytes of a text by which places are told apart.
const TEXT_BYTES: usize = 32;
/// Where a row stands: by a number, then by the beginning of a text, then by the row's own number. As small for a text that somebody
/// else chose as for any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    number: u64,
    text: [u8; TEXT_BYTES],
    row: u64,
}

impl Place {
    pub fn new(number: u64, text: &str, row: u64) -> Place {
        let (mut begins, bytes) = ([0; TEXT_BYTES], text.as_bytes());
        let many = bytes.len().min(TEXT_BYTES);
        begins[..many].copy_from_slice(&bytes[..many]);
        Place { number, text: begins, row }
    }

    /// The place in the list read from its end. Done twice it is the same place again.
    fn turned(self) -> Place {
        Place { number: !self.number, text: self.text.map(|byte| !byte), row: !self.row }
    }
}

/// The rows at the ranks `from..from + most` among those that `each` visits, in order or backwards; and how many there are. `most` is
/// at most 512.
pub fn rows_ranked<E>(
    from: usize,
    most: usize,
    backwards: bool,
    each: &mut dyn FnMut(&mut dyn FnMut(Place)) -> Result<(), E>,
) -> Result<Ranked<u64>, E> {
    let turned = |place: Place| if backwards { place.turned() } else { place };
    let each = &mut |visit: &mut dyn FnMut(Place)| each(&mut |place| visit(turned(place)));
    let Ranked { page, total } = ranked_of(PLACES_MAX, from, most, each)?;
    Ok(Ranked { page: page.into_iter().map(|place| turned(place).row).collect(), total })
}

/// Keys held at once by [`ranked`], which are as long as what they are made of: a server's name, or an id, has 255 bytes at most, and
/// so these take 28 KiB at most, with what is between them.
const HELD_MAX: usize = 96;

/// What [`ranked`] found.
#[derive(Debug, PartialEq, Eq)]
pub struct Ranked<K> {
    /// The keys of the page, in order.
    pub page: Vec<K>,
    /// Of the whole list.
    pub total: usize,
}

/// The keys that have the ranks `from..from + most` among those that `each` visits, in their order. `each` is called one or
/// several times and visits the same keys every time; no two may be equal. `most` is at most 96.
pub fn ranked<K: Ord + Clone, E>(
    from: usize,
    most: usize,
    each: &mut dyn FnMut(&mut dyn FnMut(K)) -> Result<(), E>,
) -> Result<Ranked<K>, E> {
    ranked_of(HELD_MAX, from, most, each)
}

fn ranked_of<K: Ord + Clone, E>(
    many: usize,
    from: usize,
    most: usize,
    each: &mut dyn FnMut(&mut dyn FnMut(K)) -> Result<(), E>,
) -> Result<Ranked<K>, E> {
    // The page begins behind `skipped` keys, the last of which is `after`, and at the latest with `before`.
    let (most, mut skipped, mut total) = (most.min(many), 0, None);
    let (mut after, mut before) = (None::<K>, None::<K>);
    let between = |key: &K, after: &Option<K>, before: &Option<K>| {
        after.as_ref().is_none_or(|after| key > after) && before.as_ref().is_none_or(|before| key < before)
    };
    loop {
        let way = from - skipped;
        if way + most <= many {
            let (mut page, visited) = first_of(way + most, &mut |visit| {
                each(&mut |key| visit(if between(&key, &after, &None) { Some(key) } else { None }))
            })?;
            let total = total.unwrap_or(visited);
            page.drain(..if from < total { way.min(page.len()) } else { page.len() });
            return Ok(Ranked { page, total });
        }
        let (mut sample, mut visited) = (Sample::new(many), 0);
        each(&mut |key| {
            visited += 1;
            if between(&key, &after, &before) {
                sample.offer(key);
            }
        })?;
        let total = *total.get_or_insert(visited);
        if from >= total {
            return Ok(Ranked { page: Vec::new(), total });
        }
        let (all, mut held) = (sample.seen == sample.held.len(), sample.held);
        held.sort_unstable();
        if all {
            // Each rank is known.
            after = held.into_iter().nth(way - 1);
            skipped = from;
            continue;
        }
        // Between each two of the sample: how many there are, with the second.
        let mut counts = vec![0u32; held.len() + 1];
        each(&mut |key| {
            if between(&key, &after, &before) {
                counts[held.partition_point(|of| *of < key)] += 1;
            }
        })?;
        let mut passed = 0;
        for (key, count) in held.into_iter().zip(counts) {
            let ranks = passed + count as usize;
            if ranks > way {
                before = Some(key);
                break;
            }
            (passed, after) = (ranks, Some(key));
        }
        skipped += passed;
    }
}

/// The smallest keys of those that are visited, at most so many, in order; and how many were visited, those that were none included.
fn first_of<K: Ord, E>(
    many: usize,
    each: &mut dyn FnMut(&mut dyn FnMut(Option<K>)) -> Result<(), E>,
) -> Result<(Vec<K>, usize), E> {
    let (mut held, mut visited) = (BinaryHeap::with_capacity(many + 1), 0);
    each(&mut |key| {
        visited += 1;
        held.extend(key);
        if held.len() > many {
            held.pop();
        }
    })?;
    // In place: there are never two copies.
    Ok((held.into_sorted_vec(), visited))
}

/// Some of the keys that are offered, each with the same chance.
struct Sample<K> {
    held: Vec<K>,
    most: usize,
    seen: usize,
    /// Never the same twice, so that nobody can name rows in an order that makes it a bad one.
    chance: u64,
}

impl<K> Sample<K> {
    fn new(most: usize) -> Sample<K> {
        let chance = RandomState::new().hash_one(most) | 1;
        Sample { held: Vec::with_capacity(most), most, seen: 0, chance }
    }

    fn offer(&mut self, key: K) {
        self.seen += 1;
        if self.held.len() < self.most {
            self.held.push(key);
            return;
        }
        // A shift register (Marsaglia): what is found does not depend on it, only how soon.
        self.chance ^= self.chance << 13;
        self.chance ^= self.chance >> 7;
        self.chance ^= self.chance << 17;
        if let Some(place) = self.held.get_mut((self.chance % self.seen as u64) as usize) {
            *place = key;
        }
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
            [(0, 10), (0, 0), (200, 90), (95, 1), (96, 5), (1_000, 96), (1_990, 90), (2_000, 5), (9_999, 5)]
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

    /// A bridge has 100,000 users, and an administrator's tool goes to the last page of them: that took two hundred walks over all.
    #[test]
    fn a_page_at_the_end_of_a_long_list_takes_few_walks() {
        let many = 100_000;
        for (from, most) in [(0, 500), (600, 500), (50_000, 100), (99_500, 500), (200_000, 10)] {
            let mut walks = 0;
            let found = rows_ranked(from, most, false, &mut |visit| {
                walks += 1;
                (0..many).for_each(|row| visit(Place::new(row * 7_919 % many, "", row)));
                Ok::<_, Infallible>(())
            });
            let found = found.unwrap();
            let ranks: Vec<_> = found.page.iter().map(|row| (row * 7_919 % many) as usize).collect();
            let wanted: Vec<_> = (from..from + most).filter(|rank| *rank < many as usize).collect();
            assert_eq!((ranks, found.total), (wanted, many as usize));
            // Five at most but for a sample that is far from what it stands for.
            assert!(walks <= 15, "{walks} walks for {from}");
        }
    }

    #[test]
    fn rows_stand_by_number_then_text_then_their_own_number() {
        let text = |row: u64| ["b", "a", "a long text that goes on and on, and on", ""][row as usize % 4];
        let place = |row: u64| Place::new(row / 700, text(row), row);
        let mut sorted: Vec<u64> = (0..2_000).collect();
        sorted.sort_by_key(|row| (row / 700, text(*row), *row));
        for backwards in [false, true] {
            for (from, most) in [(0, 10), (0, 512), (500, 500), (1_024, 512), (1_990, 100), (2_000, 5)] {
                let found = rows_ranked(from, most, backwards, &mut |visit| {
                    (0..2_000).for_each(|row| visit(place(row)));
                    Ok::<_, Infallible>(())
                });
                let found = found.unwrap();
                let wanted: Vec<u64> = match backwards {
                    false => sorted.iter().skip(from).take(most).copied().collect(),
                    true => sorted.iter().rev().skip(from).take(most).copied().collect(),
                };
                assert_eq!((found.page, found.total), (wanted, 2_000), "{from} {most} {backwards}");
            }
        }
    }
}

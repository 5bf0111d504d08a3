//! A page out of the middle of a list in any order, in bounded memory.

use std::collections::BinaryHeap;

/// Places held at once, 48 bytes each: 24 KiB. A page that begins at rank `r` takes `r / PLACES_MAX` walks over the list.
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
/// so these take 28 KiB at most.
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
    let (most, mut skipped, mut last, mut total) = (most.min(many), 0, None::<K>, None);
    loop {
        // Either the rest of the way and the page, or a part of the way.
        let way = from - skipped;
        let held_max = if way + most <= many { way + most } else { way.min(many) };
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
        if way + most <= many || held.len() < held_max || from >= total {
            // In place: there are never two copies.
            held.drain(..if from < total { way.min(held.len()) } else { held.len() });
            return Ok(Ranked { page: held, total });
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

//! Sets of event numbers.

use std::collections::BTreeMap;

use crate::store::EventNum;

/// Event numbers as bits: a chunk of 256 where there are any. Neighbouring numbers cost a bit each, a single number a
/// chunk.
#[derive(Default)]
pub struct EventSet {
    chunks: BTreeMap<u32, [u64; 4]>,
}

/// A chunk's bits and key and its part of the map's nodes.
pub const CHUNK_BYTES: u64 = 56;

impl EventSet {
    /// The number of chunks in use.
    pub fn chunks(&self) -> usize {
        self.chunks.len()
    }

    pub fn insert(&mut self, event: EventNum) {
        let (chunk, word, bit) = place(event.0);
        self.chunks.entry(chunk).or_default()[word] |= bit;
    }

    pub fn has(&self, event: EventNum) -> bool {
        let (chunk, word, bit) = place(event.0);
        self.chunks.get(&chunk).is_some_and(|words| words[word] & bit != 0)
    }

    /// Takes the largest out.
    pub fn pop_last(&mut self) -> Option<EventNum> {
        let mut entry = self.chunks.last_entry()?;
        let words = entry.get_mut();
        let word = words.iter().rposition(|word| *word != 0).expect("a chunk that is kept has a number");
        let bit = words[word].ilog2();
        words[word] &= !(1 << bit);
        let number = *entry.key() << 8 | (word as u32) << 6 | bit;
        if entry.get().iter().all(|word| *word == 0) {
            entry.remove();
        }
        Some(EventNum(number))
    }

    /// Takes the smallest out.
    pub fn pop_first(&mut self) -> Option<EventNum> {
        let mut entry = self.chunks.first_entry()?;
        let words = entry.get_mut();
        let word = words.iter().position(|word| *word != 0).expect("a chunk that is kept has a number");
        let bit = words[word].trailing_zeros();
        words[word] &= !(1 << bit);
        let number = *entry.key() << 8 | (word as u32) << 6 | bit;
        if entry.get().iter().all(|word| *word == 0) {
            entry.remove();
        }
        Some(EventNum(number))
    }

    /// The largest below a number, or of all.
    pub fn last_below(&self, below: Option<EventNum>) -> Option<EventNum> {
        let end = match below {
            None => u32::MAX,
            Some(below) => below.0.checked_sub(1)?,
        };
        let (chunk, word, bit) = place(end);
        // In the chunk of the end itself, bits after the end do not count.
        let upto = |at: usize, bits: u64| match at.cmp(&word) {
            std::cmp::Ordering::Less => bits,
            std::cmp::Ordering::Equal => bits & (bit | (bit - 1)),
            std::cmp::Ordering::Greater => 0,
        };
        self.chunks.range(..=chunk).rev().find_map(|(key, words)| {
            let bits = |at: usize| if *key == chunk { upto(at, words[at]) } else { words[at] };
            let at = (0..4).rev().find(|at| bits(*at) != 0)?;
            Some(EventNum(*key << 8 | (at as u32) << 6 | bits(at).ilog2()))
        })
    }

    /// The smallest from a number on.
    pub fn first_from(&self, from: EventNum) -> Option<EventNum> {
        let (chunk, word, bit) = place(from.0);
        let since = |at: usize, bits: u64| match at.cmp(&word) {
            std::cmp::Ordering::Less => 0,
            std::cmp::Ordering::Equal => bits & !(bit - 1),
            std::cmp::Ordering::Greater => bits,
        };
        self.chunks.range(chunk..).find_map(|(key, words)| {
            let bits = |at: usize| if *key == chunk { since(at, words[at]) } else { words[at] };
            let at = (0..4).find(|at| bits(*at) != 0)?;
            Some(EventNum(*key << 8 | (at as u32) << 6 | bits(at).trailing_zeros()))
        })
    }
}

/// A number's chunk, the word in it, and the bit in the word.
fn place(number: u32) -> (u32, usize, u64) {
    (number >> 8, (number >> 6 & 3) as usize, 1 << (number & 63))
}

/// The smallest of the numbers it is offered, as many as fit in a number of chunks.
pub struct Smallest {
    set: EventSet,
    chunks_max: usize,
    after: Option<EventNum>,
    /// Chunks from this one on do not fit.
    end: u32,
}

impl Smallest {
    /// Of the numbers behind `after`. One chunk at least.
    pub fn behind(after: Option<EventNum>, chunks_max: usize) -> Smallest {
        Smallest { set: EventSet::default(), chunks_max: chunks_max.max(1), after, end: u32::MAX }
    }

    pub fn offer(&mut self, event: EventNum) {
        if place(event.0).0 >= self.end || self.after.is_some_and(|after| event <= after) {
            return;
        }
        self.set.insert(event);
        if self.set.chunks() > self.chunks_max
            && let Some((chunk, _)) = self.set.chunks.pop_last()
        {
            self.end = chunk;
        }
    }

    /// Whether all that was offered behind the start did fit.
    pub fn is_all(&self) -> bool {
        self.end == u32::MAX
    }

    pub fn pop_first(&mut self) -> Option<EventNum> {
        self.set.pop_first()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::base::Random;

    #[test]
    fn a_set_answers_as_a_plain_one_does() {
        let random = Random::seeded(3);
        for spread in [40, 5_000, 1 << 30] {
            let (mut set, mut plain) = (EventSet::default(), BTreeSet::new());
            for _ in 0..500 {
                let event = EventNum(random.below(spread) as u32);
                set.insert(event);
                plain.insert(event);
                let asked = EventNum(random.below(spread) as u32);
                assert_eq!(set.has(asked), plain.contains(&asked));
                assert_eq!(set.first_from(asked), plain.range(asked..).next().copied());
                assert_eq!(set.last_below(Some(asked)), plain.range(..asked).next_back().copied());
                match random.below(8) {
                    0 => assert_eq!(set.pop_first(), plain.pop_first()),
                    1 => assert_eq!(set.pop_last(), plain.pop_last()),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn the_smallest_that_fit_are_taken_and_the_others_the_next_time() {
        let random = Random::seeded(5);
        for (spread, chunks_max) in [(60, 1), (3_000, 3), (1 << 31, 1), (1 << 31, 7), (100_000, 1_000)] {
            let all: Vec<EventNum> = (0..300).map(|_| EventNum(random.below(spread) as u32)).collect();
            let (mut found, mut after, mut times) = (Vec::new(), None, 0);
            loop {
                let mut smallest = Smallest::behind(after, chunks_max);
                all.iter().for_each(|event| smallest.offer(*event));
                assert!(smallest.set.chunks() <= chunks_max);
                let is_all = smallest.is_all();
                while let Some(event) = smallest.pop_first() {
                    found.push(event);
                    after = Some(event);
                }
                times += 1;
                if is_all {
                    break;
                }
            }
            assert!(found.iter().copied().eq(all.iter().copied().collect::<BTreeSet<_>>()), "{spread} {chunks_max}");
            assert_eq!(times == 1, chunks_max == 1_000 || spread == 60, "{spread} {chunks_max}: {times}");
        }
    }
}

//! Numbers that look random and are the same every time.
//!
//! Every purpose (and often every user or event) has a stream of its own, named by words and a number, so that turning one
//! dial leaves everything that does not depend on it as it was.

use sha2::{Digest, Sha256};

/// SplitMix64. Good enough to shuffle with, and five lines.
#[derive(Clone)]
pub struct Stream(u64);

impl Stream {
    /// The stream for the `index`th thing of one purpose.
    pub fn new(seed: u64, purpose: &str, index: u64) -> Stream {
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        for byte in purpose.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        let mut stream = Stream(seed ^ hash.rotate_left(17) ^ index.wrapping_mul(0xd6e8_feb8_6659_fd93));
        stream.next();
        stream.next();
        stream
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Evenly in 0 ≤ x < 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Evenly in 0 ≤ x < `n`; `n` must not be zero.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "a choice needs something to choose from");
        (self.unit() * n as f64) as usize
    }

    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// How many successes before the first failure, with the given mean.
    pub fn geometric(&mut self, mean: f64) -> u32 {
        let again = mean / (1.0 + mean);
        let mut count = 0;
        // The end is certain; the bound keeps an odd dial from turning into a hang.
        while count < 1000 && self.chance(again) {
            count += 1;
        }
        count
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i + 1));
        }
    }

    /// Letters and digits, lower case when `lower`.
    pub fn token(&mut self, chars: usize, lower: bool) -> String {
        const ALL: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
        let from = if lower { &ALL[..36] } else { ALL };
        (0..chars).map(|_| char::from(*self.pick(from))).collect()
    }
}

/// 32 bytes for a key, from words and a number.
pub fn key_seed(seed: u64, purpose: &str, index: u64) -> [u8; 32] {
    Sha256::digest(format!("snug load generator key {seed} {purpose} {index}")).into()
}

/// Zipf over `n` ranks with the first rank's share fixed: how a few servers hold most people.
pub struct Zipf {
    /// Running sums of the shares, the last one 1.
    sums: Vec<f64>,
}

impl Zipf {
    pub fn new(n: usize, exponent: f64, first_share: f64) -> Zipf {
        let tail: f64 = (2..=n).map(|rank| (rank as f64).powf(-exponent)).sum();
        let mut sum = if n == 1 { 1.0 } else { first_share };
        let mut sums = vec![sum];
        for rank in 2..=n {
            sum += (1.0 - first_share) * (rank as f64).powf(-exponent) / tail;
            sums.push(sum);
        }
        Zipf { sums }
    }

    pub fn pick(&self, stream: &mut Stream) -> usize {
        let at = stream.unit();
        self.sums.partition_point(|&sum| sum <= at).min(self.sums.len() - 1)
    }
}

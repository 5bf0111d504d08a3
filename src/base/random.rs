//! Randomness that is passed in: the operating system's, or a seeded stream for tests.

use std::sync::Arc;

use parking_lot::Mutex;

/// A source of random bytes. Cloning gives the same source.
#[derive(Clone)]
pub struct Random(Arc<Source>);

enum Source {
    System,
    /// A splitmix64 stream: repeatable, and not for anything that must be secret.
    Seeded(Mutex<u64>),
}

const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

impl Random {
    /// The operating system's randomness, fit for keys and tokens.
    pub fn os() -> Self {
        Random(Arc::new(Source::System))
    }

    /// The same bytes for the same seed; for tests and generated rooms only.
    pub fn seeded(seed: u64) -> Self {
        Random(Arc::new(Source::Seeded(Mutex::new(seed))))
    }

    pub fn fill(&self, out: &mut [u8]) {
        match &*self.0 {
            // A machine without randomness cannot make keys or tokens: continuing would be worse than stopping.
            Source::System => getrandom::fill(out).expect("the operating system gives random bytes"),
            Source::Seeded(state) => {
                let mut state = state.lock();
                for chunk in out.chunks_mut(8) {
                    chunk.copy_from_slice(&splitmix(&mut state).to_le_bytes()[..chunk.len()]);
                }
            }
        }
    }

    pub fn u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A number below `bound`, which must not be zero. The bias is below 2⁻³² for bounds below 2³².
    pub fn below(&self, bound: u64) -> u64 {
        ((u128::from(self.u64()) * u128::from(bound)) >> 64) as u64
    }

    /// `chars` letters and digits, each worth 5.95 bits.
    pub fn token(&self, chars: usize) -> String {
        let mut out = String::with_capacity(chars);
        let mut bytes = [0; 32];
        while out.len() < chars {
            self.fill(&mut bytes);
            // Values from 248 on are skipped, so that every letter is equally likely.
            let letters = bytes.iter().filter(|byte| **byte < 248).map(|byte| LETTERS[*byte as usize % 62] as char);
            out.extend(letters.take(chars - out.len()));
        }
        out
    }
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeded_streams_repeat() {
        assert_eq!(Random::seeded(7).token(40), Random::seeded(7).token(40));
        assert_ne!(Random::seeded(7).token(40), Random::seeded(8).token(40));
        assert_eq!(Random::os().token(43).len(), 43);
    }

    #[test]
    fn below_stays_below() {
        let random = Random::seeded(1);
        assert!((0..1000).all(|_| random.below(10) < 10));
    }
}

//! Many signatures under one key, each checked by itself, for a fraction of the price.
//!
//! An Ed25519 signature (R, s) is good when R is the encoding of `[s]B - [k]A` (RFC 8032, section 5.1.7, the equation
//! without cofactor). Nearly all of the cost is 253 doublings. With the multiples of A and B by 2^32, 2^64, … at hand,
//! both scalars fall into eight pieces of 32 bits that share 32 doublings. Nothing else changes: it is the same point,
//! to the last bit of torsion. So the same signatures pass as when ed25519-dalek checks them one by one, and servers
//! agree on a room's events. The usual batches, random sums of equations, do not have that property.
//!
//! Variable time: everything here is public.

use std::sync::LazyLock;

use curve25519_dalek::constants::ED25519_BASEPOINT_POINT;
use curve25519_dalek::edwards::EdwardsPoint;
use curve25519_dalek::traits::Identity;

/// Pieces of a scalar, and the bits of one.
const PIECES: usize = 8;
const PIECE_BITS: usize = 32;
/// Digits of a piece: a negative lowest one can carry out at the top.
const DIGITS: usize = PIECE_BITS + 1;
/// Odd multiples of each power: up to 15 times a key's, up to 63 times the base point's, whose table all share.
const KEY_POINTS: usize = 8;
const BASE_POINTS: usize = 32;

/// The odd multiples of a point and of its products with 2^32, 2^64, …
struct Multiples<const POINTS: usize>(Box<[[EdwardsPoint; POINTS]; PIECES]>);

/// A key's multiples. Making them takes as long as a few checks.
pub struct Comb(Multiples<KEY_POINTS>);

/// Bytes of memory a comb takes.
pub const COMB_BYTES: u64 = size_of::<[[EdwardsPoint; KEY_POINTS]; PIECES]>() as u64;

static BASE: LazyLock<Multiples<BASE_POINTS>> = LazyLock::new(|| Multiples::of(&ED25519_BASEPOINT_POINT));

impl Comb {
    pub fn new(key: &EdwardsPoint) -> Comb {
        Comb(Multiples::of(key))
    }

    /// `[s]B - [k]A` for the key A; scalars as little-endian integers, which need not be reduced.
    pub fn base_minus_key(&self, s: &[u8; 32], k: &[u8; 32]) -> EdwardsPoint {
        let mut places = [[0; 2 * PIECES]; DIGITS];
        digits::<7>(s, |piece, at, digit| places[at][piece] = digit);
        digits::<5>(k, |piece, at, digit| places[at][PIECES + piece] = -digit);
        let base = &*BASE;
        let mut sum = None;
        for place in places.iter().rev() {
            if let Some(sum) = &mut sum {
                *sum = *sum + *sum;
            }
            let mut left = u128::from_le_bytes(place.map(|digit| digit as u8));
            while left != 0 {
                let at = left.trailing_zeros() as usize / 8;
                left &= !(0xff << (at * 8));
                let sum = sum.get_or_insert_with(EdwardsPoint::identity);
                match at.checked_sub(PIECES) {
                    None => base.add(sum, at, place[at]),
                    Some(piece) => self.0.add(sum, piece, place[at]),
                }
            }
        }
        sum.unwrap_or_else(EdwardsPoint::identity)
    }
}

impl<const POINTS: usize> Multiples<POINTS> {
    fn of(point: &EdwardsPoint) -> Self {
        let mut table = Box::new([[EdwardsPoint::identity(); POINTS]; PIECES]);
        let mut power = *point;
        for piece in table.iter_mut() {
            let twice = power + power;
            piece[0] = power;
            for at in 1..POINTS {
                piece[at] = piece[at - 1] + twice;
            }
            for _ in 0..PIECE_BITS {
                power = power + power;
            }
        }
        Multiples(table)
    }

    /// Adds `digit` times the piece's power; the digit is odd and within the table.
    fn add(&self, sum: &mut EdwardsPoint, piece: usize, digit: i8) {
        let multiple = &self.0[piece][digit.unsigned_abs() as usize / 2];
        *sum = if digit > 0 { *sum + multiple } else { *sum - multiple };
    }
}

/// Each piece as a sum of odd signed digits below 2^(WIDTH-1) times powers of two, at least WIDTH places apart.
fn digits<const WIDTH: u32>(scalar: &[u8; 32], mut put: impl FnMut(usize, usize, i8)) {
    for (piece, bytes) in scalar.chunks_exact(PIECE_BITS / 8).enumerate() {
        let mut left = i64::from(u32::from_le_bytes(bytes.try_into().expect("pieces are of four bytes")));
        let mut at = 0;
        while left != 0 {
            let zeros = left.trailing_zeros();
            (left, at) = (left >> zeros, at + zeros as usize);
            let low = left & ((1 << WIDTH) - 1);
            let digit = if low >> (WIDTH - 1) == 0 { low } else { low - (1 << WIDTH) };
            put(piece, at, digit as i8);
            left -= digit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use curve25519_dalek::constants::EIGHT_TORSION;
    use curve25519_dalek::scalar::Scalar;

    fn scalars() -> Vec<[u8; 32]> {
        let mut list = vec![[0; 32], Scalar::ONE.to_bytes(), (-Scalar::ONE).to_bytes()];
        list.extend([[0xff; 32], [0x80; 32], [0x7f; 32]].map(|bytes| Scalar::from_bytes_mod_order(bytes).to_bytes()));
        let mut next = Scalar::from(7u64);
        for _ in 0..40 {
            next = next * next + Scalar::from(11u64);
            list.push(next.to_bytes());
        }
        list
    }

    #[test]
    fn digits_are_odd_small_and_sum_up() {
        fn check<const WIDTH: u32>() {
            for scalar in scalars().into_iter().chain([[0xff; 32]]) {
                let mut sums = [0; PIECES];
                digits::<WIDTH>(&scalar, |piece, at, digit| {
                    assert!(at < DIGITS && digit % 2 != 0 && digit.unsigned_abs() >> (WIDTH - 1) == 0);
                    sums[piece] += i64::from(digit) << at;
                });
                assert_eq!(sums.map(|sum| (sum as u32).to_le_bytes()).concat(), scalar);
                assert!(sums.iter().all(|sum| *sum >= 0 && *sum >> 32 == 0));
            }
        }
        check::<5>();
        check::<7>();
    }

    #[test]
    fn it_is_the_point_dalek_comes_to() {
        let keys = [ED25519_BASEPOINT_POINT, EdwardsPoint::identity()]
            .into_iter()
            .chain([3u64, 1 << 63].map(|n| EdwardsPoint::mul_base(&Scalar::from(n))))
            .flat_map(|point| EIGHT_TORSION.map(|torsion| point + torsion));
        let scalars = scalars();
        for (turn, key) in keys.enumerate() {
            let comb = Comb::new(&key);
            for (at, s) in scalars.iter().enumerate() {
                let k = &scalars[(at * 7 + turn) % scalars.len()];
                let [s_of, k_of] = [s, k].map(|bytes| Scalar::from_canonical_bytes(*bytes).unwrap());
                let expected = EdwardsPoint::vartime_double_scalar_mul_basepoint(&k_of, &-key, &s_of);
                assert_eq!(comb.base_minus_key(s, k).compress(), expected.compress());
            }
        }
    }
}

//! JPEG (ITU T.81): baseline, extended sequential and progressive, eight bits, in; baseline out.
//!
//! A picture is made smaller in the transform: of the eight by eight frequencies of a block only the lowest one, two or four
//! each way are turned into pixels, which is both an eighth of the work and the right low-pass filter. A sequential picture
//! passes through one row of blocks. A progressive one must be held until its last scan: of each block the frequencies that
//! are wanted, and a bit for each of the others, since later scans depend on which of them are not zero. Twelve megapixels of
//! a phone are 2.7 MiB then at an eighth, and 4.3 at a quarter, where 36 would be needed for all.
//!
//! Reading order: this file, `decode.rs` (the file), `scan.rs` (its blocks), `huffman.rs` (their bits), `encode.rs` (out).

mod decode;
mod encode;
mod huffman;
mod scan;

pub(super) use encode::encode;

use super::exif::Orientation;
use super::input::Input;
use huffman::Table;
use scan::Scan;

/// The place of each coefficient as it comes in the file: row times eight and column.
#[rustfmt::skip]
const ZIGZAG: [u8; 64] = [
     0,  1,  8, 16,  9,  2,  3, 10, 17, 24, 32, 25, 18, 11,  4,  5,
    12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13,  6,  7, 14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51,
    58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// What the frequency `k` of `size` adds to the pixel `x`: by the lowest frequencies of eight alone the block is made at
/// `size` pixels, with the same brightness.
fn basis(size: usize) -> [[f32; 8]; 8] {
    let mut table = [[0.0; 8]; 8];
    for (x, row) in table.iter_mut().enumerate().take(size) {
        for (k, value) in row.iter_mut().enumerate().take(size) {
            let angle = (2 * x + 1) as f64 * k as f64 * std::f64::consts::PI / (2 * size) as f64;
            let first = if k == 0 { std::f64::consts::FRAC_1_SQRT_2 } else { 1.0 };
            *value = (0.5 * first * angle.cos()) as f32;
        }
    }
    table
}

/// A picture whose size is known and whose blocks are still to be read.
pub(super) struct Decoder<'a> {
    input: Input<'a>,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) orientation: Orientation,
    progressive: bool,
    components: Vec<Component>,
    /// Blocks of the largest component in a unit, across and down.
    h_max: u32,
    v_max: u32,
    units_wide: u32,
    units_high: u32,
    restart_every: u32,
    dc: [Option<Table>; 4],
    ac: [Option<Table>; 4],
    quantities: [Option<[f32; 64]>; 4],
    /// The transform that Adobe's segment names.
    adobe: Option<u8>,
    /// The first scan.
    first: Scan,
}

struct Component {
    id: u8,
    /// Blocks in a unit.
    h: u32,
    v: u32,
    quantity: u8,
    /// Blocks that hold something, across and down.
    blocks_wide: u32,
    blocks_high: u32,
    /// Blocks in a row of units.
    stride: u32,
}

//! A picture made smaller row by row, as its rows come.
//!
//! Large pictures are averaged in blocks first, which costs an addition for each pixel; what remains, between two and four
//! times the size each way, goes through a cubic filter as wide as a pixel of the result. That is what Pillow does with a reducing gap of two,
//! and so what other servers' thumbnails look like. Held are a row of the picture and five or so of the result.

use super::Failed;

/// A block is averaged as long as so many times the size of the result is left, across and down.
const GAP: u32 = 2;
/// What is left then is less than twice the gap, and a weight each for four times that and two at the ends.
const WEIGHTS_MAX: u64 = 4 * 2 * GAP as u64 + 2;

/// The part of a picture that is wanted, in its own pixels, and how large it becomes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Wanted {
    pub left: f32,
    pub top: f32,
    pub wide: f32,
    pub high: f32,
    pub width: u32,
    pub height: u32,
}

/// Takes rows of `channels` bytes a pixel (three; four with alpha) and makes those of the result.
pub(super) struct Shrinker {
    channels: usize,
    width: u32,
    /// Blocks of so many pixels are averaged first, across and down. They may differ as much as the sides of a picture do: one
    /// pixel wide and 32 million high, it would otherwise have 32 million weights.
    block: (u32, u32),
    /// Sums of the blocks, and the rows in them.
    sums: Vec<u32>,
    summed: u32,
    /// A row after averaging, as numbers, with colours times alpha.
    line: Vec<f32>,
    across: Vec<Weights>,
    down: Vec<Weights>,
    /// Rows of the averaged picture that have come.
    come: u32,
    /// Rows of the result that are being added up: the first's number, and their sums.
    first: u32,
    open: std::collections::VecDeque<Vec<f32>>,
    out: Vec<u8>,
}

/// What a pixel of the result is made of.
struct Weights {
    first: u32,
    weights: Vec<f32>,
}

impl Shrinker {
    /// For a picture of this size.
    pub(super) fn new(channels: usize, width: u32, height: u32, wanted: &Wanted) -> Shrinker {
        let block = block(wanted);
        let (small_width, small_height) = (width.div_ceil(block.0), height.div_ceil(block.1));
        let (part_wide, part_high) = (block.0 as f32, block.1 as f32);
        Shrinker {
            channels,
            width,
            block,
            sums: vec![0; if block != (1, 1) { small_width as usize * channels } else { 0 }],
            summed: 0,
            line: vec![0.0; small_width as usize * channels],
            across: weights(small_width, wanted.left / part_wide, wanted.wide / part_wide, wanted.width),
            down: weights(small_height, wanted.top / part_high, wanted.high / part_high, wanted.height),
            come: 0,
            first: 0,
            open: Default::default(),
            out: Vec::with_capacity(bytes_out(channels, wanted) as usize),
        }
    }

    /// The most it holds, for the account.
    pub(super) fn bytes(channels: usize, width: u32, wanted: &Wanted) -> u64 {
        let small = u64::from(width.div_ceil(block(wanted).0)) * channels as u64;
        // As many rows as overlap, which are five.
        let weights = u64::from(wanted.width + wanted.height) * (32 + 4 * WEIGHTS_MAX);
        8 * small + weights + 7 * u64::from(wanted.width) * channels as u64 * 4 + bytes_out(channels, wanted)
    }

    pub(super) fn row(&mut self, pixels: &[u8]) -> Result<(), Failed> {
        if self.come as usize >= self.row_end() {
            return Ok(());
        }
        if self.block == (1, 1) {
            for (number, byte) in self.line.iter_mut().zip(pixels) {
                *number = f32::from(*byte);
            }
            premultiply(&mut self.line, pixels, self.channels);
            return self.line_done();
        }
        let across = self.block.0 as usize;
        let (sums, channels) = (&mut self.sums, self.channels);
        match channels {
            4 => {
                for (x, pixel) in pixels.as_chunks::<4>().0.iter().enumerate() {
                    let sum = &mut sums[x / across * 4..][..4];
                    let alpha = u32::from(pixel[3]);
                    // Colours times alpha.
                    (0..3).for_each(|part| sum[part] += u32::from(pixel[part]) * alpha / 255);
                    sum[3] += alpha;
                }
            }
            _ => {
                for (x, pixels) in pixels.chunks(3 * across).enumerate() {
                    let sum = &mut sums[3 * x..][..3];
                    for pixel in pixels.as_chunks::<3>().0 {
                        (0..3).for_each(|part| sum[part] += u32::from(pixel[part]));
                    }
                }
            }
        }
        self.summed += 1;
        if self.summed == self.block.1 { self.average() } else { Ok(()) }
    }

    /// The rows of the result, `channels` bytes a pixel.
    pub(super) fn finish(mut self) -> Result<Vec<u8>, Failed> {
        if self.summed > 0 {
            self.average()?;
        }
        match self.first as usize == self.down.len() {
            true => Ok(self.out),
            false => Err(Failed::Broken("it has fewer rows than it says")),
        }
    }

    /// Rows behind this one are not wanted.
    fn row_end(&self) -> usize {
        self.down.last().map_or(0, |last| last.first as usize + last.weights.len())
    }

    fn average(&mut self) -> Result<(), Failed> {
        let (across, rows, width) = (self.block.0, self.summed, self.width);
        for (x, (numbers, sums)) in
            self.line.chunks_mut(self.channels).zip(self.sums.chunks_mut(self.channels)).enumerate()
        {
            let columns = across.min(width - x as u32 * across);
            let share = 1.0 / (columns * rows) as f32;
            for (number, sum) in numbers.iter_mut().zip(sums) {
                *number = *sum as f32 * share;
                *sum = 0;
            }
        }
        self.summed = 0;
        self.line_done()
    }

    /// Adds a row of the averaged picture to those of the result that it is part of.
    fn line_done(&mut self) -> Result<(), Failed> {
        let (row, length) = (self.come, self.across.len() * self.channels);
        self.come += 1;
        while self.down.get(self.first as usize + self.open.len()).is_some_and(|weights| weights.first <= row) {
            self.open.push_back(vec![0.0; length]);
        }
        if self.open.is_empty() {
            return Ok(());
        }
        let mut narrow = vec![0.0; length];
        for (weights, pixel) in self.across.iter().zip(narrow.chunks_mut(self.channels)) {
            let from = &self.line[weights.first as usize * self.channels..];
            for (weight, numbers) in weights.weights.iter().zip(from.chunks(self.channels)) {
                pixel.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += weight * number);
            }
        }
        for (weights, sums) in self.down[self.first as usize..].iter().zip(&mut self.open) {
            let Some(weight) = weights.weights.get((row - weights.first) as usize) else { continue };
            sums.iter_mut().zip(&narrow).for_each(|(sum, number)| *sum += weight * number);
        }
        while let Some(weights) = self.down.get(self.first as usize)
            && weights.first as usize + weights.weights.len() <= row as usize + 1
            && let Some(sums) = self.open.pop_front()
        {
            self.first += 1;
            self.write(&sums);
        }
        Ok(())
    }

    fn write(&mut self, sums: &[f32]) {
        let byte = |value: f32| (value + 0.5) as u8;
        match self.channels {
            4 => {
                for pixel in sums.as_chunks::<4>().0 {
                    let alpha = pixel[3].clamp(0.0, 255.0);
                    let share = if alpha < 0.5 { 0.0 } else { 255.0 / alpha };
                    let colour = [pixel[0] * share, pixel[1] * share, pixel[2] * share, alpha];
                    self.out.extend(colour.map(byte));
                }
            }
            _ => self.out.extend(sums.iter().map(|value| byte(*value))),
        }
    }
}

fn bytes_out(channels: usize, wanted: &Wanted) -> u64 {
    u64::from(wanted.width) * u64::from(wanted.height) * channels as u64
}

/// The pixels of a block across and down. Its sum fits 32 bits: it is at most half of a picture, whose 2^25 pixels
/// (`PIXELS_MAX`) have 255 each.
fn block(wanted: &Wanted) -> (u32, u32) {
    let of = |from: f32, to: u32| ((from / to as f32) as u32 / GAP).max(1);
    (of(wanted.wide, wanted.width), of(wanted.high, wanted.height))
}

/// Numbers of colours become colours times alpha.
fn premultiply(line: &mut [f32], pixels: &[u8], channels: usize) {
    if channels == 4 {
        for (numbers, pixel) in line.as_chunks_mut::<4>().0.iter_mut().zip(pixels.as_chunks::<4>().0) {
            let share = f32::from(pixel[3]) / 255.0;
            numbers[..3].iter_mut().for_each(|number| *number *= share);
        }
    }
}

/// For `count` pixels out of the part `from .. from + length` of a line of `all`: a cubic as wide as the result's pixels.
fn weights(all: u32, from: f32, length: f32, count: u32) -> Vec<Weights> {
    let step = length / count as f32;
    let wide = step.max(1.0);
    let one = |nth: u32| {
        let middle = from + (nth as f32 + 0.5) * step;
        let first = (middle - 2.0 * wide).floor().clamp(0.0, (all - 1) as f32) as u32;
        let end = (middle + 2.0 * wide).ceil().clamp(first as f32 + 1.0, all as f32) as u32;
        let weight = |at: u32| cubic((at as f32 + 0.5 - middle) / wide);
        let mut weights: Vec<f32> = (first..end).map(weight).collect();
        let (sum, count): (f32, f32) = (weights.iter().sum(), weights.len() as f32);
        match sum.abs() < 1e-3 {
            true => weights.fill(1.0 / count),
            false => weights.iter_mut().for_each(|weight| *weight /= sum),
        }
        Weights { first, weights }
    };
    (0..count).map(one).collect()
}

/// Catmull and Rom's.
fn cubic(x: f32) -> f32 {
    let x = x.abs();
    match x {
        _ if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        _ if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(width: u32, height: u32, to: (u32, u32)) -> Wanted {
        let (wide, high) = (width as f32, height as f32);
        Wanted { left: 0.0, top: 0.0, wide, high, width: to.0, height: to.1 }
    }

    #[test]
    fn one_colour_stays_that_colour_at_every_size() {
        for (width, height, to) in [
            (1, 1, (1, 1)),
            (100, 70, (10, 7)),
            (1001, 3, (99, 1)),
            (33, 50, (33, 50)),
            (64, 900, (5, 70)),
            (1, 70_000, (1, 240)),
            (70_000, 2, (320, 1)),
        ] {
            let wanted = whole(width, height, to);
            for channels in [3usize, 4] {
                let pixel = &[10, 200, 255, 128][..channels];
                let mut shrinker = Shrinker::new(channels, width, height, &wanted);
                for _ in 0..height {
                    shrinker.row(&pixel.repeat(width as usize)).unwrap();
                }
                let out = shrinker.finish().unwrap();
                assert_eq!(out.len(), (to.0 * to.1) as usize * channels);
                let is_near = |pixel: &[u8], found: &[u8]| pixel.iter().zip(found).all(|(a, b)| a.abs_diff(*b) <= 1);
                assert!(out.chunks(channels).all(|found| is_near(pixel, found)), "{width} {height} {out:?}");
            }
        }
    }

    /// One pixel wide and 32 million high had half a gigabyte of weights, out of a file of some kilobytes.
    #[test]
    fn no_shape_takes_more_than_is_charged() {
        for (width, height, to) in [
            (1, 1 << 25, (1, 240)),
            (1 << 25, 1, (320, 1)),
            (1, 65_535, (1, 600)),
            (65_535, 500, (800, 6)),
            (4000, 3000, (640, 480)),
            (3, 1279, (1, 320)),
        ] {
            let wanted = whole(width, height, to);
            let shrinker = Shrinker::new(3, width, height, &wanted);
            let weights = |all: &[Weights]| all.iter().map(|one| one.weights.capacity() as u64).max().unwrap();
            let most = weights(&shrinker.across).max(weights(&shrinker.down));
            assert!(most <= WEIGHTS_MAX, "{width} {height} {most}");
        }
    }

    #[test]
    fn the_wanted_part_alone_is_seen() {
        // The left third is red, the middle green, the right blue.
        let row: Vec<u8> = (0..90).flat_map(|x| [[255, 0, 0], [0, 255, 0], [0, 0, 255]][x / 30]).collect();
        let wanted = Wanted { left: 40.0, top: 0.0, wide: 10.0, high: 10.0, width: 10, height: 10 };
        let mut shrinker = Shrinker::new(3, 90, 10, &wanted);
        (0..10).for_each(|_| shrinker.row(&row).unwrap());
        assert!(shrinker.finish().unwrap().as_chunks::<3>().0.iter().all(|pixel| *pixel == [0, 255, 0]));
    }
}

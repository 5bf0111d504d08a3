//! PNG (third edition), in and out.
//!
//! In: a row at a time, whatever its colours and depth; one that is interlaced is held whole. Only what makes pixels is read:
//! IHDR, PLTE, tRNS and IDAT, and eXIf for how it is turned. Out: eight bits, with or without alpha.

use std::io::{self, Write};

use miniz_oxide::deflate::core::{
    CompressorOxide, TDEFLFlush, TDEFLStatus, compress, create_comp_flags_from_zip_params,
};
use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZError, MZFlush, MZStatus};

use super::Failed;
use super::exif::{self, Orientation, orientation};
use super::input::Input;

pub(super) const SIGNATURE: &[u8; 8] = b"\x89PNG\r\n\x1a\n";
/// The window and tables of inflate.
const INFLATE_BYTES: u64 = 48 << 10;
/// The dictionary and hashes of deflate, and what it has ready.
const DEFLATE_BYTES: u64 = 512 << 10;

/// The time is looked at whenever so much was unpacked, each row counted as that much more.
const LOOK_EVERY_BYTES: usize = 64 << 10;
const ROW_COSTS: usize = 64;

/// A picture whose size is known and whose rows are still to be read.
pub(super) struct Decoder<'a> {
    input: Input<'a>,
    pub width: u32,
    pub height: u32,
    pub orientation: Orientation,
    /// Whether the file says that it moves.
    pub animated: bool,
    depth: u8,
    colours: Colours,
    interlaced: bool,
    palette: Vec<[u8; 4]>,
    /// The colour that is transparent, in the picture's own numbers.
    hole: Option<[u16; 3]>,
    /// Bytes left in the present IDAT.
    left: u32,
    /// What was unpacked since the time was looked at.
    unpacked: usize,
    /// Made when there is something to unpack.
    inflate: Option<Box<InflateState>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Colours {
    Grey,
    Rgb,
    Palette,
    GreyAlpha,
    Rgba,
}

impl<'a> Decoder<'a> {
    /// Reads up to the first row. Behind the signature.
    pub(super) fn open(mut input: Input<'a>) -> Result<Decoder<'a>, Failed> {
        let (length, name) = (u32::from_be_bytes(input.array()?), input.array::<4>()?);
        if length != 13 || name != *b"IHDR" {
            return Err(Failed::Broken("a PNG has no head"));
        }
        let (width, height) = (u32::from_be_bytes(input.array()?), u32::from_be_bytes(input.array()?));
        let [depth, colours, _, _, interlaced] = input.array()?;
        input.skip(4)?;
        let colours = match (colours, depth) {
            (0, 1 | 2 | 4 | 8 | 16) => Colours::Grey,
            (2, 8 | 16) => Colours::Rgb,
            (3, 1 | 2 | 4 | 8) => Colours::Palette,
            (4, 8 | 16) => Colours::GreyAlpha,
            (6, 8 | 16) => Colours::Rgba,
            _ => return Err(Failed::Broken("a PNG has colours that there are not")),
        };
        if width == 0 || height == 0 || width > i32::MAX as u32 || height > i32::MAX as u32 || interlaced > 1 {
            return Err(Failed::Broken("a PNG has a wrong head"));
        }
        let (orientation, interlaced) = (Orientation::default(), interlaced == 1);
        let mut decoder = Decoder {
            input,
            width,
            height,
            orientation,
            animated: false,
            depth,
            colours,
            interlaced,
            palette: Vec::new(),
            hole: None,
            left: 0,
            unpacked: 0,
            inflate: None,
        };
        while !decoder.chunk()? {}
        Ok(decoder)
    }

    pub(super) fn channels(&self) -> usize {
        let alpha = match self.colours {
            Colours::GreyAlpha | Colours::Rgba => true,
            Colours::Palette => self.palette.iter().any(|entry| entry[3] < 255),
            Colours::Grey | Colours::Rgb => self.hole.is_some(),
        };
        if alpha { 4 } else { 3 }
    }

    /// Bytes that decoding holds.
    pub(super) fn bytes(&self) -> u64 {
        let (raw, shown) = (self.raw_bytes(self.width), u64::from(self.width) * self.channels() as u64);
        let whole = if self.interlaced { shown * u64::from(self.height) } else { 0 };
        Input::BYTES + INFLATE_BYTES + 2 * raw + shown + whole
    }

    /// Reads one chunk up to its end; true when it is the first with pixels, which is left unread.
    fn chunk(&mut self) -> Result<bool, Failed> {
        let (length, name) = (u32::from_be_bytes(self.input.array()?), self.input.array::<4>()?);
        match &name {
            b"IDAT" => {
                self.left = length;
                return Ok(true);
            }
            b"PLTE" if length <= 768 => {
                for _ in 0..length / 3 {
                    let [r, g, b] = self.input.array()?;
                    self.palette.push([r, g, b, 255]);
                }
                self.palette.truncate(256);
                self.input.skip(u64::from(length % 3))?;
            }
            b"tRNS" if length <= 256 => {
                let mut bytes = vec![0; length as usize];
                self.input.fill(&mut bytes)?;
                let number =
                    |nth: usize| bytes.get(2 * nth..2 * nth + 2).map(|two| u16::from_be_bytes([two[0], two[1]]));
                match self.colours {
                    Colours::Palette => {
                        self.palette.iter_mut().zip(&bytes).for_each(|(entry, alpha)| entry[3] = *alpha)
                    }
                    Colours::Grey => self.hole = number(0).map(|grey| [grey; 3]),
                    Colours::Rgb => self.hole = number(0).zip(number(1)).zip(number(2)).map(|((r, g), b)| [r, g, b]),
                    _ => {}
                }
            }
            b"eXIf" => {
                self.orientation = orientation(&self.input.beginning(length.into(), exif::BYTES_MAX)?);
            }
            b"acTL" => {
                self.animated = true;
                self.input.skip(u64::from(length))?;
            }
            b"IEND" => return Err(Failed::Broken("a PNG has no pixels")),
            _ => self.input.skip(u64::from(length))?,
        }
        self.input.skip(4)?;
        Ok(false)
    }

    /// Samples of a pixel.
    fn samples(&self) -> u64 {
        match self.colours {
            Colours::Grey | Colours::Palette => 1,
            Colours::GreyAlpha => 2,
            Colours::Rgb => 3,
            Colours::Rgba => 4,
        }
    }

    /// Bytes of a row of so many pixels, without the byte for its filter.
    fn raw_bytes(&self, width: u32) -> u64 {
        (u64::from(width) * self.samples() * u64::from(self.depth)).div_ceil(8)
    }

    /// Gives each row.
    pub(super) fn rows(mut self, sink: &mut dyn FnMut(&[u8]) -> Result<(), Failed>) -> Result<(), Failed> {
        if self.interlaced {
            return self.rows_interlaced(sink);
        }
        let channels = self.channels();
        let mut shown = vec![0; self.width as usize * channels];
        let mut raw = Raw::new(self.raw_bytes(self.width) as usize);
        for _ in 0..self.height {
            self.raw_row(&mut raw)?;
            self.show(&raw.row, channels, shown.chunks_exact_mut(channels));
            sink(&shown)?;
        }
        Ok(())
    }

    /// Adam's seven passes, each a small picture whose pixels lie apart in the large one.
    fn rows_interlaced(mut self, sink: &mut dyn FnMut(&[u8]) -> Result<(), Failed>) -> Result<(), Failed> {
        const PASSES: [[u32; 4]; 7] =
            [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];
        let (channels, wide) = (self.channels(), self.width as usize);
        let mut whole = vec![0; wide * channels * self.height as usize];
        for [left, top, across, down] in PASSES {
            let width = self.width.saturating_sub(left).div_ceil(across);
            let height = self.height.saturating_sub(top).div_ceil(down);
            if width == 0 {
                continue;
            }
            let mut raw = Raw::new(self.raw_bytes(width) as usize);
            for row in 0..height {
                self.raw_row(&mut raw)?;
                let line = &mut whole[(top + row * down) as usize * wide * channels..][..wide * channels];
                let places = line.chunks_exact_mut(channels).skip(left as usize).step_by(across as usize);
                self.show(&raw.row, channels, places);
            }
        }
        whole.chunks(wide * channels).try_for_each(sink)
    }

    /// The next row, its filter undone.
    fn raw_row(&mut self, raw: &mut Raw) -> Result<(), Failed> {
        // One read of the file may unpack to millions of short rows.
        self.unpacked += raw.row.len() + ROW_COSTS;
        if self.unpacked >= LOOK_EVERY_BYTES {
            self.unpacked = 0;
            self.input.check()?;
        }
        std::mem::swap(&mut raw.row, &mut raw.before);
        let mut filter = [0];
        self.inflate(&mut filter)?;
        self.inflate(&mut raw.row)?;
        let pixel = (self.samples() * u64::from(self.depth)).div_ceil(8) as usize;
        unfilter(filter[0], pixel, &mut raw.row, &raw.before)
    }

    fn inflate(&mut self, mut into: &mut [u8]) -> Result<(), Failed> {
        while !into.is_empty() {
            let state = self.inflate.get_or_insert_with(|| InflateState::new_boxed(DataFormat::Zlib));
            let some = if self.left > 0 { self.input.some()? } else { &[] };
            let done = inflate(state, &some[..some.len().min(self.left as usize)], into, MZFlush::None);
            self.input.used(done.bytes_consumed);
            self.left -= done.bytes_consumed as u32;
            into = &mut into[done.bytes_written..];
            let is_stuck = done.bytes_consumed + done.bytes_written == 0;
            match done.status {
                Ok(MZStatus::StreamEnd) if !into.is_empty() => return Err(Failed::Broken("a PNG's pixels end early")),
                // Only when nothing is left in there of what was read before.
                Ok(_) | Err(MZError::Buf) if is_stuck && self.left == 0 => self.next_part()?,
                Ok(_) | Err(MZError::Buf) if !is_stuck => {}
                _ => return Err(Failed::Broken("a PNG's pixels cannot be unpacked")),
            }
        }
        Ok(())
    }

    /// The next chunk with pixels, which follows at once.
    fn next_part(&mut self) -> Result<(), Failed> {
        self.input.skip(4)?;
        self.left = u32::from_be_bytes(self.input.array()?);
        match self.input.array::<4>()? == *b"IDAT" {
            true => Ok(()),
            false => Err(Failed::Broken("a PNG has fewer rows than it says")),
        }
    }

    /// The pixels of a row, each at its place.
    fn show<'p>(&self, row: &[u8], channels: usize, places: impl Iterator<Item = &'p mut [u8]>) {
        let sample = |nth: usize| match self.depth {
            8 => u16::from(row[nth]),
            16 => u16::from_be_bytes([row[2 * nth], row[2 * nth + 1]]),
            depth => {
                let (depth, at) = (usize::from(depth), nth * usize::from(depth));
                u16::from(row[at / 8]) >> (8 - depth - at % 8) & ((1 << depth) - 1)
            }
        };
        let byte = |sample: u16| match self.depth {
            8 => sample as u8,
            16 => (sample >> 8) as u8,
            depth => (sample * (255 / ((1 << depth) - 1))) as u8,
        };
        for (x, place) in places.enumerate() {
            let pixel = match self.colours {
                Colours::Palette => *self.palette.get(usize::from(sample(x))).unwrap_or(&[0, 0, 0, 255]),
                Colours::Grey => {
                    let grey = sample(x);
                    let alpha = if self.hole.is_some_and(|hole| hole[0] == grey) { 0 } else { 255 };
                    [byte(grey), byte(grey), byte(grey), alpha]
                }
                Colours::GreyAlpha => {
                    let grey = byte(sample(2 * x));
                    [grey, grey, grey, byte(sample(2 * x + 1))]
                }
                Colours::Rgb => {
                    let rgb = [sample(3 * x), sample(3 * x + 1), sample(3 * x + 2)];
                    let [r, g, b] = rgb.map(byte);
                    [r, g, b, if self.hole == Some(rgb) { 0 } else { 255 }]
                }
                Colours::Rgba => [0, 1, 2, 3].map(|part| byte(sample(4 * x + part))),
            };
            place.copy_from_slice(&pixel[..channels]);
        }
    }
}

struct Raw {
    row: Vec<u8>,
    before: Vec<u8>,
}

impl Raw {
    fn new(bytes: usize) -> Raw {
        Raw { row: vec![0; bytes], before: vec![0; bytes] }
    }
}

fn unfilter(filter: u8, pixel: usize, row: &mut [u8], before: &[u8]) -> Result<(), Failed> {
    match filter {
        0 => {}
        1 => (pixel..row.len()).for_each(|at| row[at] = row[at].wrapping_add(row[at - pixel])),
        2 => row.iter_mut().zip(before).for_each(|(byte, up)| *byte = byte.wrapping_add(*up)),
        3 => {
            for at in 0..row.len() {
                let left = if at < pixel { 0 } else { row[at - pixel] };
                row[at] = row[at].wrapping_add(((u16::from(left) + u16::from(before[at])) / 2) as u8);
            }
        }
        4 => {
            for at in 0..row.len() {
                let (left, corner) = if at < pixel { (0, 0) } else { (row[at - pixel], before[at - pixel]) };
                row[at] = row[at].wrapping_add(paeth(left, before[at], corner));
            }
        }
        _ => return Err(Failed::Broken("a PNG has a filter that there is not")),
    }
    Ok(())
}

fn paeth(left: u8, up: u8, corner: u8) -> u8 {
    let [a, b, c] = [left, up, corner].map(i16::from);
    let (to_left, to_up, to_corner) = ((b - c).abs(), (a - c).abs(), (a + b - 2 * c).abs());
    match (to_left <= to_up && to_left <= to_corner, to_up <= to_corner) {
        (true, _) => left,
        (false, true) => up,
        (false, false) => corner,
    }
}

/// Bytes that [`encode`] holds.
pub(super) const ENCODER_BYTES: u64 = DEFLATE_BYTES;

/// Writes a picture of `channels` bytes a pixel, three or four.
pub(super) fn encode(pixels: &[u8], width: u32, height: u32, channels: usize, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(SIGNATURE)?;
    let colours = if channels == 4 { 6 } else { 2 };
    let [w, h] = [width.to_be_bytes(), height.to_be_bytes()];
    chunk(out, b"IHDR", &[&w[..], &h, &[8, colours, 0, 0, 0]].concat())?;
    // Level 6 with zlib's head, as most programs have it.
    let mut packer = Box::new(CompressorOxide::new(create_comp_flags_from_zip_params(6, 1, 0)));
    let mut ready = vec![0; 32 << 10];
    let mut filled = 0;
    let length = width as usize * channels;
    let (mut best, mut trial) = (vec![0; length + 1], vec![0; length + 1]);
    for (y, row) in pixels.chunks_exact(length).enumerate() {
        let before = if y > 0 { &pixels[(y - 1) * length..][..length] } else { &[] };
        filter(row, before, channels, &mut best, &mut trial);
        let flush = if y + 1 == height as usize { TDEFLFlush::Finish } else { TDEFLFlush::None };
        let mut rest = &best[..];
        loop {
            let (status, used, made) = compress(&mut packer, rest, &mut ready[filled..], flush);
            rest = &rest[used..];
            filled += made;
            if filled == ready.len() || (status == TDEFLStatus::Done && filled > 0) {
                chunk(out, b"IDAT", &ready[..filled])?;
                filled = 0;
            }
            match status {
                TDEFLStatus::Done => break,
                TDEFLStatus::Okay if rest.is_empty() && flush == TDEFLFlush::None => break,
                TDEFLStatus::Okay => {}
                _ => return Err(io::Error::other("a PNG cannot be packed")),
            }
        }
    }
    chunk(out, b"IEND", &[])
}

/// Puts into `best` the filter of the five whose bytes lie nearest to zero, and the row under it.
fn filter(row: &[u8], before: &[u8], pixel: usize, best: &mut Vec<u8>, trial: &mut Vec<u8>) {
    let mut least = u64::MAX;
    for kind in 0..5u8 {
        trial[0] = kind;
        for (at, byte) in row.iter().enumerate() {
            let left = if at < pixel { 0 } else { row[at - pixel] };
            let up = before.get(at).copied().unwrap_or(0);
            let corner = if at < pixel { 0 } else { before.get(at - pixel).copied().unwrap_or(0) };
            let guess = match kind {
                0 => 0,
                1 => left,
                2 => up,
                3 => ((u16::from(left) + u16::from(up)) / 2) as u8,
                _ => paeth(left, up, corner),
            };
            trial[at + 1] = byte.wrapping_sub(guess);
        }
        let sum = trial[1..].iter().map(|byte| u64::from((*byte as i8).unsigned_abs())).sum();
        if sum < least {
            least = sum;
            std::mem::swap(best, trial);
        }
    }
}

fn chunk(out: &mut dyn Write, name: &[u8; 4], data: &[u8]) -> io::Result<()> {
    out.write_all(&(data.len() as u32).to_be_bytes())?;
    out.write_all(name)?;
    out.write_all(data)?;
    let sum = name.iter().chain(data).fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| sum >> 1 ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
    });
    out.write_all(&(!sum).to_be_bytes())
}

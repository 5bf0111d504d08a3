//! Pictures made smaller: JPEG, PNG, GIF and lossy WebP in, JPEG and PNG out.
//!
//! These are bytes of strangers, and on a small board a camera's picture is larger than all memory. So the decoders are the
//! server's own where that is what makes them small: each says from a file's head what it will hold, and gives a row at a time to
//! `shrink.rs`. A picture is never there as a whole, but for the kinds whose parts depend on later ones (progressive JPEG,
//! interlaced PNG and GIF) or whose decoder needs it (WebP), which is charged before. Whatever a decoder does it ends: by
//! its bounds, by the time, or when nobody waits any more.
//!
//! Reading order: this file, `input.rs`, `shrink.rs`, then the kinds; `exif.rs` says which way is up.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::base::Deadline;

mod exif;
mod gif;
mod input;
mod jpeg;
mod png;
mod shrink;
#[cfg(test)]
pub(super) mod tests;
mod webp;

use exif::Orientation;
use input::Input;
use shrink::{Shrinker, Wanted};

/// More pixels are not looked at: 32 megapixels, as other servers have it.
const PIXELS_MAX: u64 = 32 << 20;
/// The longest that one picture is worked on.
pub(super) const TIME_MAX: Duration = Duration::from_secs(15);
/// What [`Picture::open`] holds: a piece of the file, tables, the beginning of a segment.
pub(super) const HEAD_BYTES: u64 = 40 << 10;

/// The forms that thumbnails come in. Whatever is asked for is answered with one of these, so that a file has few.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Shape {
    Crop32,
    Crop96,
    Scale320,
    Scale640,
    Scale800,
}

impl Shape {
    const SCALES: [Shape; 3] = [Shape::Scale320, Shape::Scale640, Shape::Scale800];

    /// The smallest that has what is asked for; the largest when none has.
    pub(super) fn of(width: u32, height: u32, crop: bool) -> Shape {
        match crop {
            true if width <= 32 && height <= 32 => Shape::Crop32,
            true if width <= 96 && height <= 96 => Shape::Crop96,
            _ => {
                let covers = |shape: &Shape| width <= shape.bounds().0 && height <= shape.bounds().1;
                Shape::SCALES.into_iter().find(covers).unwrap_or(Shape::Scale800)
            }
        }
    }

    /// Its part of a file name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Shape::Crop32 => "32-crop",
            Shape::Crop96 => "96-crop",
            Shape::Scale320 => "320-scale",
            Shape::Scale640 => "640-scale",
            Shape::Scale800 => "800-scale",
        }
    }

    pub(super) const ALL: [Shape; 5] =
        [Shape::Crop32, Shape::Crop96, Shape::Scale320, Shape::Scale640, Shape::Scale800];

    pub(super) fn is_crop(self) -> bool {
        matches!(self, Shape::Crop32 | Shape::Crop96)
    }

    /// The next smaller one of its kind.
    fn smaller(self) -> Option<Shape> {
        match self {
            Shape::Crop32 | Shape::Scale320 => None,
            Shape::Crop96 => Some(Shape::Crop32),
            Shape::Scale640 => Some(Shape::Scale320),
            Shape::Scale800 => Some(Shape::Scale640),
        }
    }

    pub(super) fn bounds(self) -> (u32, u32) {
        match self {
            Shape::Crop32 => (32, 32),
            Shape::Crop96 => (96, 96),
            Shape::Scale320 => (320, 240),
            Shape::Scale640 => (640, 480),
            Shape::Scale800 => (800, 600),
        }
    }

    /// What becomes of a picture of this size, never larger than it is.
    fn wanted(self, width: u32, height: u32) -> Wanted {
        let (wide, high) = (width as f32, height as f32);
        let (most_wide, most_high) = self.bounds();
        if self.is_crop() {
            let (to_width, to_height) = (width.min(most_wide), height.min(most_high));
            let share = (to_width as f32 / wide).max(to_height as f32 / high);
            let (part_wide, part_high) = ((to_width as f32 / share).min(wide), (to_height as f32 / share).min(high));
            let (left, top) = ((wide - part_wide) / 2.0, (high - part_high) / 2.0);
            return Wanted { left, top, wide: part_wide, high: part_high, width: to_width, height: to_height };
        }
        let share = (most_wide as f32 / wide).min(most_high as f32 / high).min(1.0);
        let to = |length: f32, most: u32| ((length * share).round() as u32).clamp(1, most);
        Wanted { left: 0.0, top: 0.0, wide, high, width: to(wide, most_wide), height: to(high, most_high) }
    }
}

/// Why there is no smaller picture.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    /// No kind of picture that is decoded here.
    #[error("{0}")]
    Unknown(&'static str),
    #[error("the picture is broken: {0}")]
    Broken(&'static str),
    #[error("the picture has too many pixels")]
    TooManyPixels,
    #[error("the picture takes too long")]
    TooLong,
    /// Nobody waits for it any more.
    #[error("nobody waits for the picture")]
    Cancelled,
    #[error("a picture cannot be read or written: {0}")]
    Io(#[from] io::Error),
}

/// What work on a picture is held by: the time, and who waits for it.
pub(super) struct Leash {
    until: Deadline,
    cancelled: Arc<AtomicBool>,
}

/// Whoever waits for a picture; when it is dropped the work ends.
#[derive(Default)]
pub(super) struct Waiting(Arc<AtomicBool>);

impl Waiting {
    /// A leash for work that begins now.
    pub(super) fn leash(&self) -> Leash {
        self.leash_for(TIME_MAX)
    }

    pub(super) fn leash_for(&self, time: Duration) -> Leash {
        Leash { until: Deadline::after(time), cancelled: self.0.clone() }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Leash {
    fn check(&self) -> Result<(), Failed> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(Failed::Cancelled);
        }
        if self.until.left().is_zero() { Err(Failed::TooLong) } else { Ok(()) }
    }
}

/// A picture whose head has been read.
pub(super) struct Picture<'a>(Kind<'a>);

enum Kind<'a> {
    Jpeg(Box<jpeg::Decoder<'a>>),
    Png(png::Decoder<'a>),
    Gif(gif::Decoder<'a>),
    Webp(webp::Decoder<'a>),
}

/// A smaller picture that was written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Made {
    pub content_type: &'static str,
    pub width: u32,
    pub height: u32,
}

impl<'a> Picture<'a> {
    /// Reads a picture's head. Holds at most [`HEAD_BYTES`].
    pub(super) fn open(from: &'a mut dyn Read, leash: &'a Leash) -> Result<Picture<'a>, Failed> {
        let mut input = Input::new(from, leash);
        let kind = match input.array::<2>()? {
            [0xff, 0xd8] => Kind::Jpeg(Box::new(jpeg::Decoder::open(input)?)),
            two => match [two, input.array()?].concat().as_slice() {
                b"\x89PNG" if input.array::<4>()? == png::SIGNATURE[4..] => Kind::Png(png::Decoder::open(input)?),
                b"GIF8" if matches!(&input.array::<2>()?, b"7a" | b"9a") => Kind::Gif(gif::Decoder::open(input)?),
                b"RIFF" if input.array::<8>()?.ends_with(b"WEBP") => Kind::Webp(webp::Decoder::open(input)?),
                _ => return Err(Failed::Unknown("no picture that is decoded here")),
            },
        };
        let picture = Picture(kind);
        let (width, height) = picture.size();
        match u64::from(width) * u64::from(height) > PIXELS_MAX {
            true => Err(Failed::TooManyPixels),
            false => Ok(picture),
        }
    }

    /// As it is stored, in pixels.
    fn size(&self) -> (u32, u32) {
        match &self.0 {
            Kind::Jpeg(of) => (of.width, of.height),
            Kind::Png(of) => (of.width, of.height),
            Kind::Gif(of) => (of.width, of.height),
            Kind::Webp(of) => (of.width, of.height),
        }
    }

    /// As a person sees it, in pixels.
    pub(super) fn upright_size(&self) -> (u32, u32) {
        let (width, height) = self.size();
        if self.orientation().transposed { (height, width) } else { (width, height) }
    }

    /// Whether it may move: a GIF nearly always does, or is so small that it does not matter.
    pub(super) fn is_animated(&self) -> bool {
        match &self.0 {
            Kind::Jpeg(_) => false,
            Kind::Png(of) => of.animated,
            Kind::Gif(_) => true,
            Kind::Webp(of) => of.animated,
        }
    }

    /// Whether a picture in this shape would have the same pixels.
    pub(super) fn fits(&self, shape: Shape) -> bool {
        let (width, height) = self.upright_size();
        let wanted = shape.wanted(width, height);
        (wanted.width, wanted.height) == (width, height) && self.orientation() == Orientation::default()
    }

    fn orientation(&self) -> Orientation {
        match &self.0 {
            Kind::Jpeg(of) => of.orientation,
            Kind::Png(of) => of.orientation,
            Kind::Gif(_) => Orientation::default(),
            Kind::Webp(of) => of.orientation,
        }
    }

    fn channels(&self) -> usize {
        match &self.0 {
            Kind::Png(of) => of.channels(),
            Kind::Gif(of) => of.channels(),
            Kind::Jpeg(_) | Kind::Webp(_) => 3,
        }
    }

    fn becomes_png(&self) -> bool {
        self.channels() == 4 || matches!(self.0, Kind::Png(_))
    }

    /// The shape nearest to the wanted one that can be made with this memory, and what making it holds.
    pub(super) fn affordable(&self, mut shape: Shape, bytes_max: u64) -> Option<(Shape, u64)> {
        loop {
            let bytes = self.bytes(shape);
            if bytes <= bytes_max {
                return Some((shape, bytes));
            }
            shape = shape.smaller()?;
        }
    }

    /// What making a shape holds, in bytes.
    fn bytes(&self, shape: Shape) -> u64 {
        let (mut wanted, channels) = (self.wanted(shape), self.channels());
        let (decoder, width) = match &self.0 {
            Kind::Jpeg(of) => {
                let scale = jpeg_scale(&wanted);
                wanted = of_scaled(&wanted, (of.width, of.height), of.scaled(scale));
                (of.bytes(scale), of.scaled(scale).0)
            }
            Kind::Png(of) => (of.bytes(), of.width),
            Kind::Gif(of) => (of.bytes(), of.width),
            Kind::Webp(of) => (of.bytes(), of.width),
        };
        let pixels = u64::from(wanted.width) * u64::from(wanted.height) * channels as u64;
        let turned = if self.orientation() == Orientation::default() { 0 } else { pixels };
        // The decoder is gone before the result is packed.
        let encoder = if self.becomes_png() { png::ENCODER_BYTES } else { 16 << 10 };
        (decoder + Shrinker::bytes(channels, width, &wanted)).max(pixels + encoder) + turned
    }

    /// What is wanted of the picture as it is stored.
    fn wanted(&self, shape: Shape) -> Wanted {
        let (width, height) = self.upright_size();
        let Wanted { left, top, wide, high, width, height } = shape.wanted(width, height);
        match self.orientation().transposed {
            false => Wanted { left, top, wide, high, width, height },
            true => Wanted { left: top, top: left, wide: high, high: wide, width: height, height: width },
        }
    }

    /// Writes the picture in a shape: PNG where the picture is one or has alpha, else JPEG. Nothing but pixels goes into it.
    pub(super) fn make(self, shape: Shape, out: &mut dyn Write) -> Result<Made, Failed> {
        let (wanted, channels, orientation) = (self.wanted(shape), self.channels(), self.orientation());
        let is_png = self.becomes_png();
        let (width, height) = self.size();
        let pixels = match self.0 {
            Kind::Jpeg(of) => {
                let scale = jpeg_scale(&wanted);
                let small = of.scaled(scale);
                let wanted = of_scaled(&wanted, (width, height), small);
                let mut shrinker = Shrinker::new(channels, small.0, small.1, &wanted);
                of.rows(scale, &mut |row| shrinker.row(row))?;
                shrinker.finish()?
            }
            Kind::Png(of) => shrunk(channels, width, height, &wanted, |sink| of.rows(sink))?,
            Kind::Gif(of) => shrunk(channels, width, height, &wanted, |sink| of.rows(sink))?,
            Kind::Webp(of) => shrunk(channels, width, height, &wanted, |sink| of.rows(sink))?,
        };
        let (pixels, width, height) = upright(pixels, channels, wanted.width, wanted.height, orientation);
        match is_png {
            true => png::encode(&pixels, width, height, channels, out)?,
            false => jpeg::encode(&pixels, width, height, out)?,
        }
        Ok(Made { content_type: if is_png { "image/png" } else { "image/jpeg" }, width, height })
    }
}

fn shrunk(
    channels: usize,
    width: u32,
    height: u32,
    wanted: &Wanted,
    rows: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<(), Failed>) -> Result<(), Failed>,
) -> Result<Vec<u8>, Failed> {
    let mut shrinker = Shrinker::new(channels, width, height, wanted);
    rows(&mut |row| shrinker.row(row))?;
    shrinker.finish()
}

/// The fewest eighths of a JPEG that still have all the pixels wanted.
fn jpeg_scale(wanted: &Wanted) -> u32 {
    let enough = |scale: &u32| {
        let share = *scale as f32 / 8.0;
        wanted.wide * share >= wanted.width as f32 && wanted.high * share >= wanted.height as f32
    };
    [1, 2, 4].into_iter().find(enough).unwrap_or(8)
}

/// What is wanted of a picture in pixels of a smaller one of it.
fn of_scaled(wanted: &Wanted, from: (u32, u32), to: (u32, u32)) -> Wanted {
    let (across, down) = (to.0 as f32 / from.0 as f32, to.1 as f32 / from.1 as f32);
    let Wanted { left, top, wide, high, width, height } = *wanted;
    Wanted { left: left * across, top: top * down, wide: wide * across, high: high * down, width, height }
}

/// Turns a picture as it was stored to how it is seen.
fn upright(pixels: Vec<u8>, channels: usize, width: u32, height: u32, how: Orientation) -> (Vec<u8>, u32, u32) {
    if how == Orientation::default() {
        return (pixels, width, height);
    }
    let (to_width, to_height) = if how.transposed { (height, width) } else { (width, height) };
    let mut turned = Vec::with_capacity(pixels.len());
    for y in 0..to_height {
        for x in 0..to_width {
            let x = if how.mirrored { to_width - 1 - x } else { x };
            let y = if how.upended { to_height - 1 - y } else { y };
            let (x, y) = if how.transposed { (y, x) } else { (x, y) };
            let at = (y as usize * width as usize + x as usize) * channels;
            turned.extend_from_slice(&pixels[at..at + channels]);
        }
    }
    (turned, to_width, to_height)
}

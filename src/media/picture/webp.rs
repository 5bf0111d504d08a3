//! WebP: the still picture of a lossy file, or a moving one's first frame.
//!
//! The container (RIFF) is read here, and the decoder is given one frame without what surrounds it. Lossless pictures and
//! lossless alpha are not decoded: their tables of codes may take a thousand times what the file has, on the word of the file.
//! Those are mostly small, as stickers are, and are shown as they are.

use std::io::Cursor;

use image_webp::WebPDecoder;

use super::Failed;
use super::exif::{self, Orientation, orientation};
use super::input::Input;

/// A picture whose size is known and whose pixels are still to be read.
pub(super) struct Decoder<'a> {
    input: Input<'a>,
    pub width: u32,
    pub height: u32,
    pub orientation: Orientation,
    pub animated: bool,
    /// Bytes of the frame, of which the first ten have been read.
    frame_bytes: u32,
    frame_head: [u8; 10],
}

impl<'a> Decoder<'a> {
    /// Reads up to the first frame. Behind the twelve bytes that say it is a WebP.
    pub(super) fn open(mut input: Input<'a>) -> Result<Decoder<'a>, Failed> {
        let (mut animated, mut turned, mut whole) = (false, Orientation::default(), None);
        loop {
            let (name, length) = (input.array::<4>()?, u32::from_le_bytes(input.array()?));
            match &name {
                b"VP8 " if length >= 10 => {
                    let head = input.array::<10>()?;
                    let [.., w0, w1, h0, h1] = head;
                    let size = |low, high| u32::from(u16::from_le_bytes([low, high]) & 0x3fff);
                    let (width, height) = (size(w0, w1), size(h0, h1));
                    // A frame that is a part of a moving picture would have to be set among nothing.
                    if width == 0 || height == 0 || whole.is_some_and(|whole| whole != (width, height)) {
                        return Err(Failed::Unknown("a WebP whose first frame is not all of it"));
                    }
                    return Ok(Decoder {
                        input,
                        width,
                        height,
                        orientation: turned,
                        animated,
                        frame_bytes: length,
                        frame_head: head,
                    });
                }
                b"VP8L" | b"ALPH" => return Err(Failed::Unknown("a WebP without loss")),
                b"VP8X" if length == 10 => {
                    let [flags, _, _, _, w0, w1, w2, h0, h1, h2] = input.array()?;
                    let size = |a, b, c| u32::from_le_bytes([a, b, c, 0]) + 1;
                    (animated, whole) = (flags & 2 != 0, Some((size(w0, w1, w2), size(h0, h1, h2))));
                }
                // Its frame follows as chunks of its own.
                b"ANMF" if length > 16 => input.skip(16)?,
                b"EXIF" => {
                    let bytes = input.beginning(length.into(), exif::BYTES_MAX)?;
                    input.skip(u64::from(length % 2))?;
                    turned = orientation(bytes.strip_prefix(b"Exif\0\0").unwrap_or(&bytes));
                }
                _ => input.skip(u64::from(length) + u64::from(length % 2))?,
            }
        }
    }

    /// Bytes that decoding holds: the frame as it came, read out of that into a buffer that doubles, and in its partitions; its
    /// planes in whole blocks of sixteen pixels, with what is noted of each block, 64 bytes; and the pixels.
    pub(super) fn bytes(&self) -> u64 {
        let (wide, high) = (u64::from(self.width.div_ceil(16)) * 16, u64::from(self.height.div_ceil(16)) * 16);
        let pixels = u64::from(self.width) * u64::from(self.height);
        Input::BYTES + 4 * u64::from(self.frame_bytes) + wide * high * 3 / 2 + wide * high / 4 + 3 * pixels + 64 * wide
    }

    /// Gives each row, three bytes a pixel.
    pub(super) fn rows(mut self, sink: &mut dyn FnMut(&[u8]) -> Result<(), Failed>) -> Result<(), Failed> {
        // A file with this frame alone.
        let length = self.frame_bytes as usize;
        let mut file = Vec::with_capacity(20 + length + 1);
        file.extend_from_slice(b"RIFF");
        file.extend_from_slice(&(self.frame_bytes + self.frame_bytes % 2 + 12).to_le_bytes());
        file.extend_from_slice(b"WEBPVP8 ");
        file.extend_from_slice(&self.frame_bytes.to_le_bytes());
        file.extend_from_slice(&self.frame_head);
        file.resize(20 + length, 0);
        self.input.fill(&mut file[30..])?;
        file.resize(20 + length + length % 2, 0);
        let broken = |_| Failed::Broken("a WebP cannot be decoded");
        let mut decoder = WebPDecoder::new(Cursor::new(file)).map_err(broken)?;
        if decoder.dimensions() != (self.width, self.height) || decoder.has_alpha() {
            return Err(Failed::Broken("a WebP says two sizes"));
        }
        let mut pixels = vec![0; 3 * self.width as usize * self.height as usize];
        decoder.read_image(&mut pixels).map_err(broken)?;
        drop(decoder);
        self.input.check()?;
        pixels.chunks(3 * self.width as usize).try_for_each(sink)
    }
}

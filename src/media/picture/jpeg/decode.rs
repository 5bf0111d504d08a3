//! A file's segments, and pixels out of its blocks.

use super::super::Failed;
use super::super::exif::{self, Orientation, orientation};
use super::super::input::Input;
use super::huffman::{Bits, Table};
use super::scan::{Scan, Store};
use super::{Component, Decoder, ZIGZAG, basis};

const COMPONENTS_MAX: usize = 4;
/// So much of a segment is read. Eight tables of codes have 2.2 KB.
const SEGMENT_BYTES_MAX: usize = exif::BYTES_MAX;

enum Next {
    Scan(Scan),
    End,
}

impl<'a> Decoder<'a> {
    /// Reads up to the first scan. Behind the two bytes that say it is a JPEG.
    pub(in super::super) fn open(input: Input<'a>) -> Result<Decoder<'a>, Failed> {
        let mut decoder = Decoder {
            input,
            width: 0,
            height: 0,
            orientation: Orientation::default(),
            progressive: false,
            components: Vec::new(),
            h_max: 1,
            v_max: 1,
            units_wide: 0,
            units_high: 0,
            restart_every: 0,
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            quantities: [None; 4],
            adobe: None,
            first: Scan::default(),
        };
        let marker = decoder.marker()?;
        match decoder.segments(marker)? {
            Next::Scan(scan) => decoder.first = scan,
            Next::End => return Err(Failed::Broken("it has no scan")),
        }
        Ok(decoder)
    }

    /// Whether it passes through in one scan, or is held.
    fn is_held(&self) -> bool {
        self.progressive || self.first.components.len() < self.components.len()
    }

    /// The size at `scale` eighths.
    pub(in super::super) fn scaled(&self, scale: u32) -> (u32, u32) {
        ((self.width * scale).div_ceil(8), (self.height * scale).div_ceil(8))
    }

    /// Bytes that decoding at `scale` eighths holds.
    pub(in super::super) fn bytes(&self, scale: u32) -> u64 {
        let scale = u64::from(scale);
        let row = |c: &Component| u64::from(c.stride * c.v) * scale * scale;
        let held = |c: &Component| u64::from(c.stride) * u64::from(self.units_high * c.v) * (8 + 2 * scale * scale);
        let rows: u64 = self.components.iter().map(row).sum();
        let held = if self.is_held() { self.components.iter().map(held).sum() } else { 0 };
        // Tables: eight of codes with 1.5 KiB each, four of quantities with a quarter, a segment.
        Input::BYTES + rows + held + u64::from(self.width) * 3 + (18 << 10)
    }

    /// Gives each row of the picture at `scale` eighths (1, 2, 4 or 8), three bytes a pixel.
    pub(in super::super) fn rows(
        mut self,
        scale: u32,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), Failed>,
    ) -> Result<(), Failed> {
        let first = std::mem::take(&mut self.first);
        let mut painter = Painter::new(&self, scale as usize);
        if !self.is_held_by(&first) {
            return self.stream(&first, &mut painter, sink);
        }
        let mut store = Store::new(&self, scale as usize);
        let mut scan = first;
        loop {
            let marker = self.read_scan(&scan, &mut store)?;
            match marker.map(|marker| self.segments(marker)).transpose()? {
                Some(Next::Scan(next)) => scan = next,
                Some(Next::End) | None => break,
            }
        }
        for row in 0..self.units_high {
            self.input.check()?;
            for (nth, component) in self.components.iter().enumerate() {
                for block in store.row(nth, component, row) {
                    painter.paint(&self, nth, block.x, block.y, &block.coefficients);
                }
            }
            painter.show(&self, row, sink)?;
        }
        Ok(())
    }

    fn is_held_by(&self, first: &Scan) -> bool {
        self.progressive || first.components.len() < self.components.len()
    }

    /// One scan with all components: a row of units at a time.
    fn stream(
        &mut self,
        scan: &Scan,
        painter: &mut Painter,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), Failed>,
    ) -> Result<(), Failed> {
        let (mut bits, mut before) = (Bits::default(), [0i32; COMPONENTS_MAX]);
        let mut until_restart = self.restart_every;
        for row in 0..self.units_high {
            self.input.check()?;
            for unit in 0..self.units_wide {
                if self.restart_every > 0 {
                    if until_restart == 0 {
                        bits.restart(&mut self.input)?;
                        before = [0; COMPONENTS_MAX];
                        until_restart = self.restart_every;
                    }
                    until_restart -= 1;
                }
                for part in &scan.components {
                    let (h, v) = (self.components[part.nth].h, self.components[part.nth].v);
                    for block in 0..h * v {
                        let mut coefficients = [0i32; 64];
                        self.block(&mut bits, part, &mut before[part.nth], |k, value| {
                            coefficients[usize::from(ZIGZAG[k])] = value;
                        })?;
                        painter.paint(self, part.nth, unit * h + block % h, block / h, &coefficients);
                    }
                }
            }
            painter.show(self, row, sink)?;
        }
        Ok(())
    }

    /// The next marker's code.
    fn marker(&mut self) -> Result<u8, Failed> {
        while self.input.byte()? != 0xff {}
        loop {
            match self.input.byte()? {
                0xff => {}
                0 => while self.input.byte()? != 0xff {},
                marker => return Ok(marker),
            }
        }
    }

    /// Reads segments up to and with the head of a scan, beginning with the one of `marker`.
    fn segments(&mut self, mut marker: u8) -> Result<Next, Failed> {
        loop {
            self.input.check()?;
            match marker {
                0xd9 => return Ok(Next::End),
                0x01 | 0xd0..=0xd8 => {}
                _ => {
                    let length = usize::from(self.input.u16_be()?);
                    let Some(length) = length.checked_sub(2) else {
                        return Err(Failed::Broken("a segment has no length"));
                    };
                    if let Some(scan) = self.segment(marker, length)? {
                        return Ok(Next::Scan(scan));
                    }
                }
            }
            marker = match self.marker() {
                Ok(marker) => marker,
                // Without its end a picture may still be whole.
                Err(Failed::Broken(_)) if self.width > 0 => return Ok(Next::End),
                Err(failed) => return Err(failed),
            };
        }
    }

    fn segment(&mut self, marker: u8, length: usize) -> Result<Option<Scan>, Failed> {
        let wanted = matches!(marker, 0xc0..=0xc2 | 0xc4 | 0xda | 0xdb | 0xdd | 0xe1 | 0xee);
        match marker {
            0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => return Err(Failed::Unknown("a JPEG of a rare kind")),
            _ if !wanted => return self.input.skip(length as u64).map(|()| None),
            _ => {}
        }
        let bytes = self.input.beginning(length as u64, SEGMENT_BYTES_MAX)?;
        match marker {
            0xc0..=0xc2 => self.frame(marker == 0xc2, &bytes)?,
            0xc4 => self.codes(&bytes)?,
            0xdb => self.quantities(&bytes)?,
            0xdd if bytes.len() >= 2 => self.restart_every = u32::from(u16::from_be_bytes([bytes[0], bytes[1]])),
            0xe1 => {
                if let Some(exif) = bytes.strip_prefix(b"Exif\0\0") {
                    self.orientation = orientation(exif);
                }
            }
            0xee if bytes.starts_with(b"Adobe") => self.adobe = bytes.get(11).copied(),
            0xda => return Scan::read(self, &bytes).map(Some),
            _ => {}
        }
        Ok(None)
    }

    fn frame(&mut self, progressive: bool, bytes: &[u8]) -> Result<(), Failed> {
        if self.width > 0 {
            return Err(Failed::Broken("it has two heads"));
        }
        let [bits, h0, h1, w0, w1, count, parts @ ..] = bytes else {
            return Err(Failed::Broken("its head is too short"));
        };
        if *bits != 8 {
            return Err(Failed::Unknown("a JPEG of twelve bits"));
        }
        let (width, height) = (u16::from_be_bytes([*w0, *w1]), u16::from_be_bytes([*h0, *h1]));
        if width == 0 || height == 0 {
            return Err(Failed::Unknown("a JPEG that does not say its size"));
        }
        if !matches!(count, 1 | 3 | 4) || parts.len() < 3 * usize::from(*count) {
            return Err(Failed::Unknown("a JPEG of rare colours"));
        }
        let one = *count == 1;
        for part in parts.chunks_exact(3).take(usize::from(*count)) {
            // Alone, a component has one block in a unit whatever it says.
            let (h, v) = if one { (1, 1) } else { (u32::from(part[1] >> 4), u32::from(part[1] & 15)) };
            if !matches!(h, 1 | 2 | 4) || !matches!(v, 1 | 2 | 4) || part[2] > 3 {
                return Err(Failed::Unknown("a JPEG with a rare share of colours"));
            }
            let (id, quantity) = (part[0], part[2]);
            self.components.push(Component { id, h, v, quantity, blocks_wide: 0, blocks_high: 0, stride: 0 });
        }
        (self.progressive, self.width, self.height) = (progressive, u32::from(width), u32::from(height));
        self.h_max = self.components.iter().map(|c| c.h).max().unwrap_or(1);
        self.v_max = self.components.iter().map(|c| c.v).max().unwrap_or(1);
        self.units_wide = self.width.div_ceil(8 * self.h_max);
        self.units_high = self.height.div_ceil(8 * self.v_max);
        for c in &mut self.components {
            c.blocks_wide = (self.width * c.h).div_ceil(self.h_max).div_ceil(8);
            c.blocks_high = (self.height * c.v).div_ceil(self.v_max).div_ceil(8);
            c.stride = self.units_wide * c.h;
        }
        Ok(())
    }

    fn codes(&mut self, mut bytes: &[u8]) -> Result<(), Failed> {
        while let Some((head, rest)) = bytes.split_first_chunk::<17>() {
            let counts: &[u8; 16] = head.last_chunk().expect("seventeen bytes end in sixteen");
            let count: usize = counts.iter().map(|count| usize::from(*count)).sum();
            let Some((values, rest)) = rest.split_at_checked(count) else {
                return Err(Failed::Broken("a table of codes is cut off"));
            };
            let tables = if head[0] >> 4 == 0 { &mut self.dc } else { &mut self.ac };
            let table = tables.get_mut(usize::from(head[0] & 15)).ok_or(Failed::Broken("a table has no place"))?;
            *table = Some(Table::new(counts, values.to_vec())?);
            bytes = rest;
        }
        Ok(())
    }

    fn quantities(&mut self, mut bytes: &[u8]) -> Result<(), Failed> {
        while let Some((head, rest)) = bytes.split_first() {
            let wide = head >> 4 != 0;
            let Some((values, rest)) = rest.split_at_checked(if wide { 128 } else { 64 }) else {
                return Err(Failed::Broken("a table of quantities is cut off"));
            };
            let table =
                self.quantities.get_mut(usize::from(head & 15)).ok_or(Failed::Broken("a table has no place"))?;
            let table = table.insert([0.0; 64]);
            for (k, place) in ZIGZAG.iter().enumerate() {
                let value =
                    if wide { u16::from_be_bytes([values[2 * k], values[2 * k + 1]]) } else { values[k].into() };
                table[usize::from(*place)] = f32::from(value);
            }
            bytes = rest;
        }
        Ok(())
    }

    /// The component that a scan names.
    pub(super) fn component(&self, id: u8) -> Option<usize> {
        self.components.iter().position(|component| component.id == id)
    }
}

/// Makes pixels of one row of units.
struct Painter {
    scale: usize,
    basis: [[f32; 8]; 8],
    /// For each component its pixels: `v * scale` rows of `stride * scale`.
    planes: Vec<Vec<u8>>,
    row: Vec<u8>,
}

impl Painter {
    fn new(decoder: &Decoder<'_>, scale: usize) -> Painter {
        let plane = |c: &Component| vec![0; (c.stride * c.v) as usize * scale * scale];
        let planes = decoder.components.iter().map(plane).collect();
        let row = vec![0; 3 * decoder.scaled(scale as u32).0 as usize];
        Painter { scale, basis: basis(scale), planes, row }
    }

    /// One block, at its place in the row of units. `coefficients` by row and column.
    fn paint(&mut self, decoder: &Decoder<'_>, nth: usize, x: u32, y: u32, coefficients: &[i32; 64]) {
        let (scale, component) = (self.scale, &decoder.components[nth]);
        let Some(quantities) = &decoder.quantities[usize::from(component.quantity)] else { return };
        let stride = component.stride as usize * scale;
        let first = y as usize * scale * stride + x as usize * scale;
        let plane = &mut self.planes[nth];
        // Nearly all blocks of a smooth part have a brightness alone.
        let is_flat = (0..scale * scale).all(|at| at == 0 || coefficients[at / scale * 8 + at % scale] == 0);
        if is_flat {
            let value = shade(coefficients[0] as f32 * quantities[0] / 8.0);
            (0..scale).for_each(|line| plane[first + line * stride..][..scale].fill(value));
            return;
        }
        let mut half = [[0f32; 8]; 8];
        for u in 0..scale {
            for v in 0..scale {
                let value = coefficients[8 * v + u];
                if value != 0 {
                    let value = value as f32 * quantities[8 * v + u];
                    (0..scale).for_each(|line| half[line][u] += self.basis[line][v] * value);
                }
            }
        }
        for (line, half) in half.iter().enumerate().take(scale) {
            let out = &mut plane[first + line * stride..][..scale];
            for (out, basis) in out.iter_mut().zip(&self.basis) {
                *out = shade(half.iter().zip(basis).map(|(a, b)| a * b).sum());
            }
        }
    }

    /// Gives on the pixels of a row of units.
    fn show(
        &mut self,
        decoder: &Decoder<'_>,
        unit: u32,
        sink: &mut dyn FnMut(&[u8]) -> Result<(), Failed>,
    ) -> Result<(), Failed> {
        let lines = decoder.v_max * self.scale as u32;
        let left = decoder.scaled(self.scale as u32).1.saturating_sub(unit * lines);
        for line in 0..lines.min(left) {
            let planes: Vec<Line<'_>> = decoder
                .components
                .iter()
                .zip(&self.planes)
                .map(|(component, plane)| {
                    let stride = component.stride as usize * self.scale;
                    let from = (line * component.v / decoder.v_max) as usize * stride;
                    let shift = (decoder.h_max / component.h).ilog2();
                    Line { pixels: &plane[from..from + stride], shift }
                })
                .collect();
            colour(decoder, &planes, &mut self.row);
            sink(&self.row)?;
        }
        Ok(())
    }
}

/// A row of one component.
struct Line<'a> {
    pixels: &'a [u8],
    /// A pixel of it covers so many of the picture, as a power of two.
    shift: u32,
}

impl Line<'_> {
    #[inline]
    fn at(&self, x: usize) -> u8 {
        self.pixels[x >> self.shift]
    }
}

/// A number around zero as a brightness.
fn shade(value: f32) -> u8 {
    (value + 128.5) as u8
}

fn colour(decoder: &Decoder<'_>, lines: &[Line<'_>], row: &mut [u8]) {
    let ids: Vec<u8> = decoder.components.iter().map(|component| component.id).collect();
    let pixels = row.as_chunks_mut::<3>().0.iter_mut().enumerate();
    match lines {
        [grey] => pixels.for_each(|(x, pixel)| *pixel = [grey.at(x); 3]),
        [a, b, c] if decoder.adobe == Some(0) || (decoder.adobe.is_none() && ids == *b"RGB") => {
            pixels.for_each(|(x, pixel)| *pixel = [a.at(x), b.at(x), c.at(x)]);
        }
        [y, cb, cr] => pixels.for_each(|(x, pixel)| *pixel = rgb(y.at(x), cb.at(x), cr.at(x))),
        [a, b, c, k] => pixels.for_each(|(x, pixel)| {
            let (mut ink, mut black) = ([a.at(x), b.at(x), c.at(x)], k.at(x));
            match decoder.adobe {
                Some(2) => ink = rgb(ink[0], ink[1], ink[2]).map(|value| 255 - value),
                Some(_) => {}
                // Adobe writes them the other way round.
                None => (ink, black) = (ink.map(|value| 255 - value), 255 - black),
            }
            *pixel = ink.map(|value| (u16::from(value) * u16::from(black) / 255) as u8);
        }),
        _ => {}
    }
}

#[inline]
fn rgb(y: u8, cb: u8, cr: u8) -> [u8; 3] {
    // Sixteen bits behind the point.
    let (y, cb, cr) = ((i32::from(y) << 16) + (1 << 15), i32::from(cb) - 128, i32::from(cr) - 128);
    let value = |sum: i32| (sum >> 16).clamp(0, 255) as u8;
    [value(y + 91_881 * cr), value(y - 22_554 * cb - 46_802 * cr), value(y + 116_130 * cb)]
}

//! Baseline JPEG out, with the tables of ITU T.81's annex K, and half of the colours' points each way.

use std::io::{self, Write};

use super::{ZIGZAG, basis};

/// As other servers' thumbnails have it.
const QUALITY: u32 = 80;

#[rustfmt::skip]
const LIGHT: [u8; 64] = [
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29, 51, 87, 80, 62,
    18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
];
#[rustfmt::skip]
const COLOUR: [u8; 64] = [
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99, 47, 66, 99, 99, 99, 99, 99, 99,
    99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
];

/// The codes: how many of each length, and their values in order.
struct Codes {
    counts: [u8; 16],
    values: &'static [u8],
}

const DC_LIGHT: Codes =
    Codes { counts: [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], values: &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11] };
const DC_COLOUR: Codes =
    Codes { counts: [0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0], values: &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11] };
#[rustfmt::skip]
const AC_LIGHT: Codes = Codes {
    counts: [0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 0x7d],
    values: &[
        0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07, 0x22, 0x71, 0x14, 0x32, 0x81, 0x91, 0xa1, 0x08,
        0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52, 0xd1, 0xf0, 0x24, 0x33, 0x62, 0x72, 0x82, 0x09, 0x0a, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x25, 0x26, 0x27, 0x28,
        0x29, 0x2a, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59,
        0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89,
        0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6,
        0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe1, 0xe2,
        0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
    ],
};
#[rustfmt::skip]
const AC_COLOUR: Codes = Codes {
    counts: [0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 0x77],
    values: &[
        0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71, 0x13, 0x22, 0x32, 0x81, 0x08, 0x14, 0x42, 0x91,
        0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33, 0x52, 0xf0, 0x15, 0x62, 0x72, 0xd1, 0x0a, 0x16, 0x24, 0x34, 0xe1, 0x25, 0xf1, 0x17, 0x18, 0x19, 0x1a, 0x26,
        0x27, 0x28, 0x29, 0x2a, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58,
        0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87,
        0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4,
        0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda,
        0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8, 0xf9, 0xfa,
    ],
};

/// Writes a picture of three bytes a pixel. Holds tables alone.
pub(in super::super) fn encode(pixels: &[u8], width: u32, height: u32, out: &mut dyn Write) -> io::Result<()> {
    let (light, colour) = (quantities(&LIGHT), quantities(&COLOUR));
    head(width, height, &light, &colour, out)?;
    let mut bits = Bits { out, held: 0, count: 0 };
    let light = Kind { quantities: light, dc: DC_LIGHT.table(), ac: AC_LIGHT.table() };
    let colour = Kind { quantities: colour, dc: DC_COLOUR.table(), ac: AC_COLOUR.table() };
    let (basis, mut before) = (basis(8), [0i32; 3]);
    let (wide, high) = (width as usize, height as usize);
    for top in (0..high).step_by(16) {
        for left in (0..wide).step_by(16) {
            // Sixteen by sixteen pixels; past the edge the last one goes on.
            let mut unit = [[[0f32; 3]; 16]; 16];
            for (y, line) in unit.iter_mut().enumerate() {
                for (x, pixel) in line.iter_mut().enumerate() {
                    let at = 3 * ((top + y).min(high - 1) * wide + (left + x).min(wide - 1));
                    *pixel = ycc(pixels[at], pixels[at + 1], pixels[at + 2]);
                }
            }
            for nth in 0..4 {
                let block = block(|x, y| unit[nth / 2 * 8 + y][nth % 2 * 8 + x][0]);
                bits.block(&block, &light, &basis, &mut before[0])?;
            }
            for part in [1, 2] {
                let sum = |x: usize, y: usize| {
                    let (x, y) = (2 * x, 2 * y);
                    unit[y][x][part] + unit[y][x + 1][part] + unit[y + 1][x][part] + unit[y + 1][x + 1][part]
                };
                bits.block(&block(|x, y| sum(x, y) / 4.0), &colour, &basis, &mut before[part])?;
            }
        }
    }
    bits.finish()?;
    out.write_all(&[0xff, 0xd9])
}

fn head(width: u32, height: u32, light: &[u8; 64], colour: &[u8; 64], out: &mut dyn Write) -> io::Result<()> {
    out.write_all(b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0")?;
    for (place, table) in [(0, light), (1, colour)] {
        out.write_all(&[0xff, 0xdb, 0, 67, place])?;
        out.write_all(&ZIGZAG.map(|natural| table[usize::from(natural)]))?;
    }
    let [h1, h0] = (height as u16).to_be_bytes();
    let [w1, w0] = (width as u16).to_be_bytes();
    out.write_all(&[0xff, 0xc0, 0, 17, 8, h1, h0, w1, w0, 3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1])?;
    for (place, codes) in [(0, &DC_LIGHT), (0x10, &AC_LIGHT), (1, &DC_COLOUR), (0x11, &AC_COLOUR)] {
        let [high, low] = (19 + codes.values.len() as u16).to_be_bytes();
        out.write_all(&[0xff, 0xc4, high, low, place])?;
        out.write_all(&codes.counts)?;
        out.write_all(codes.values)?;
    }
    out.write_all(&[0xff, 0xda, 0, 12, 3, 1, 0, 2, 0x11, 3, 0x11, 0, 63, 0])
}

fn quantities(table: &[u8; 64]) -> [u8; 64] {
    table.map(|value| ((u32::from(value) * (200 - 2 * QUALITY) + 50) / 100).clamp(1, 255) as u8)
}

fn ycc(r: u8, g: u8, b: u8) -> [f32; 3] {
    let (r, g, b) = (f32::from(r), f32::from(g), f32::from(b));
    [
        0.299 * r + 0.587 * g + 0.114 * b - 128.0,
        -0.168_736 * r - 0.331_264 * g + 0.5 * b,
        0.5 * r - 0.418_688 * g - 0.081_312 * b,
    ]
}

fn block(of: impl Fn(usize, usize) -> f32) -> [[f32; 8]; 8] {
    std::array::from_fn(|y| std::array::from_fn(|x| of(x, y)))
}

/// The tables of one kind of component.
struct Kind {
    quantities: [u8; 64],
    dc: [(u16, u8); 256],
    ac: [(u16, u8); 256],
}

impl Codes {
    /// The code and its length for each value.
    fn table(&self) -> [(u16, u8); 256] {
        let mut table = [(0, 0); 256];
        let (mut code, mut values) = (0u32, self.values.iter());
        for (length, count) in (1u8..).zip(self.counts) {
            for value in values.by_ref().take(usize::from(count)) {
                table[usize::from(*value)] = (code as u16, length);
                code += 1;
            }
            code <<= 1;
        }
        table
    }
}

struct Bits<'a> {
    out: &'a mut dyn Write,
    held: u64,
    count: u32,
}

impl Bits<'_> {
    fn put(&mut self, bits: u32, count: u32) -> io::Result<()> {
        self.held = self.held << count | u64::from(bits & ((1 << count) - 1));
        self.count += count;
        while self.count >= 8 {
            self.count -= 8;
            let byte = (self.held >> self.count) as u8;
            self.out.write_all(&[byte])?;
            if byte == 0xff {
                self.out.write_all(&[0])?;
            }
        }
        Ok(())
    }

    /// The last byte is filled with ones.
    fn finish(&mut self) -> io::Result<()> {
        self.put(0x7f, 7)
    }

    fn code(&mut self, (code, length): (u16, u8)) -> io::Result<()> {
        self.put(u32::from(code), u32::from(length))
    }

    /// A number in as many bits as it needs.
    fn number(&mut self, value: i32, size: u32) -> io::Result<()> {
        let bits = if value < 0 { value + (1 << size) - 1 } else { value };
        self.put(bits as u32, size)
    }

    fn block(
        &mut self,
        pixels: &[[f32; 8]; 8],
        kind: &Kind,
        basis: &[[f32; 8]; 8],
        before: &mut i32,
    ) -> io::Result<()> {
        let mut half = [[0f32; 8]; 8];
        for (v, half) in half.iter_mut().enumerate() {
            for (line, pixels) in pixels.iter().enumerate() {
                let share = basis[line][v];
                half.iter_mut().zip(pixels).for_each(|(sum, pixel)| *sum += share * pixel);
            }
        }
        let coefficient = |natural: u8| {
            let (v, u) = (usize::from(natural) / 8, usize::from(natural) % 8);
            let sum: f32 = half[v].iter().zip(basis).map(|(value, basis)| value * basis[u]).sum();
            (sum / f32::from(kind.quantities[usize::from(natural)])).round() as i32
        };
        let coefficients = ZIGZAG.map(coefficient);
        let difference = coefficients[0] - *before;
        *before = coefficients[0];
        let size = size(difference);
        self.code(kind.dc[size as usize])?;
        self.number(difference, size)?;
        let mut zeros = 0;
        for value in &coefficients[1..] {
            if *value == 0 {
                zeros += 1;
                continue;
            }
            while zeros > 15 {
                self.code(kind.ac[0xf0])?;
                zeros -= 16;
            }
            // Eight bits in make no more than ten bits of a coefficient.
            let value = (*value).clamp(-1023, 1023);
            let size = self::size(value);
            self.code(kind.ac[zeros << 4 | size as usize])?;
            self.number(value, size)?;
            zeros = 0;
        }
        if zeros > 0 { self.code(kind.ac[0]) } else { Ok(()) }
    }
}

/// Bits that a number needs.
fn size(value: i32) -> u32 {
    32 - value.unsigned_abs().leading_zeros()
}

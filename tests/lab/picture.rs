//! Pictures of any size: a JPEG whose blocks are noise around shades, at about the bytes of a camera's.

use super::random::Stream;

/// A baseline JPEG in colours, with half as many points of colour each way. Its tables of codes give every symbol eight bits.
pub fn jpeg(width: u16, height: u16, seed: u64) -> Vec<u8> {
    let (w, h) = (width.to_be_bytes(), height.to_be_bytes());
    let mut file = vec![0xff, 0xd8, 0xff, 0xdb, 0, 67, 0];
    file.extend([6; 64]);
    file.extend([0xff, 0xc0, 0, 17, 8, h[0], h[1], w[0], w[1], 3, 1, 0x22, 0, 2, 0x11, 0, 3, 0x11, 0]);
    for class in [0x00, 0x10] {
        file.extend([0xff, 0xc4, 0x01, 0x12, class, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0, 0, 0, 0, 0, 0, 0]);
        file.extend(0..255);
    }
    file.extend([0xff, 0xda, 0, 12, 3, 1, 0, 2, 0, 3, 0, 0, 63, 0]);
    let (mut random, mut bits) = (Stream::new(seed, "picture", 0), Bits::default());
    let mut shades = [0i32; 3];
    for _ in 0..usize::from(width).div_ceil(16) * usize::from(height).div_ceil(16) {
        for part in [0, 0, 0, 0, 1, 2] {
            // A step of the shade, back towards the middle when it has gone far.
            let step = random.below(15) as i32 - 7 - shades[part].signum() * i32::from(shades[part].abs() > 60) * 7;
            shades[part] += step;
            bits.number(0, step);
            for _ in 0..if part == 0 { 6 } else { 1 } {
                bits.number(0, random.below(7) as i32 + 1);
            }
            bits.put(0, 8);
        }
    }
    bits.put(0x7f, 7);
    file.extend(bits.bytes);
    file.extend([0xff, 0xd9]);
    file
}

/// What a PNG's or JPEG's head says of its size.
pub fn size(file: &[u8]) -> (u32, u32) {
    if file.starts_with(b"\x89PNG") {
        let number = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().expect("four bytes"));
        return (number(16), number(20));
    }
    let mut at = 2;
    while file[at + 1] != 0xc0 {
        at += 2 + usize::from(u16::from_be_bytes([file[at + 2], file[at + 3]]));
    }
    let number = |at: usize| u32::from(u16::from_be_bytes([file[at], file[at + 1]]));
    (number(at + 7), number(at + 5))
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    held: u64,
    count: u32,
}

impl Bits {
    fn put(&mut self, bits: u32, count: u32) {
        self.held = self.held << count | u64::from(bits) & ((1 << count) - 1);
        self.count += count;
        while self.count >= 8 {
            self.count -= 8;
            self.bytes.push((self.held >> self.count) as u8);
            if self.bytes.last() == Some(&0xff) {
                self.bytes.push(0);
            }
        }
    }

    /// So many zeros, and a number behind them.
    fn number(&mut self, zeros: u32, value: i32) {
        let size = 32 - value.unsigned_abs().leading_zeros();
        self.put(zeros << 4 | size, 8);
        self.put(if value < 0 { value + (1 << size) - 1 } else { value } as u32, size);
    }
}

//! The first frame of a GIF (89a), a row at a time; one that is interlaced is held whole.

use super::Failed;
use super::input::Input;

/// A code has twelve bits at most.
const CODES_MAX: usize = 4096;
/// Tables of codes, palettes, a row of each.
const BYTES: u64 = 3 * CODES_MAX as u64 + 4096;

/// A picture whose size is known and whose first frame is still to be read.
pub(super) struct Decoder<'a> {
    input: Input<'a>,
    pub width: u32,
    pub height: u32,
    /// The frame within the picture.
    left: u32,
    top: u32,
    wide: u32,
    high: u32,
    interlaced: bool,
    palette: Vec<[u8; 3]>,
    hole: Option<u8>,
}

impl<'a> Decoder<'a> {
    /// Reads up to the first frame's pixels. Behind the six bytes that say it is a GIF.
    pub(super) fn open(mut input: Input<'a>) -> Result<Decoder<'a>, Failed> {
        let (width, height) = (u32::from(input.u16_le()?), u32::from(input.u16_le()?));
        let [flags, _, _] = input.array()?;
        if width == 0 || height == 0 {
            return Err(Failed::Broken("a GIF has no size"));
        }
        let mut palette = colours(&mut input, flags)?;
        let mut hole = None;
        loop {
            match input.byte()? {
                b'!' => {
                    let is_control = input.byte()? == 0xf9;
                    let mut length = input.byte()?;
                    if is_control && length == 4 {
                        let [flags, _, _, index] = input.array()?;
                        hole = (flags & 1 == 1).then_some(index);
                        length = input.byte()?;
                    }
                    while length > 0 {
                        input.skip(u64::from(length))?;
                        length = input.byte()?;
                    }
                }
                b',' => break,
                0 => {}
                _ => return Err(Failed::Broken("a GIF has no frame")),
            }
        }
        let [left, top] = [u32::from(input.u16_le()?), u32::from(input.u16_le()?)];
        let [wide, high] = [u32::from(input.u16_le()?), u32::from(input.u16_le()?)];
        let flags = input.byte()?;
        let own = colours(&mut input, flags)?;
        if !own.is_empty() {
            palette = own;
        }
        if wide == 0 || high == 0 || left + wide > width || top + high > height || palette.is_empty() {
            return Err(Failed::Broken("a GIF has a wrong frame"));
        }
        let interlaced = flags & 0x40 != 0;
        Ok(Decoder { input, width, height, left, top, wide, high, interlaced, palette, hole })
    }

    pub(super) fn channels(&self) -> usize {
        let is_whole = (self.wide, self.high) == (self.width, self.height);
        if self.hole.is_some() || !is_whole { 4 } else { 3 }
    }

    /// Bytes that decoding holds.
    pub(super) fn bytes(&self) -> u64 {
        let whole = if self.interlaced { u64::from(self.wide) * u64::from(self.high) } else { 0 };
        Input::BYTES + BYTES + whole + 5 * u64::from(self.width)
    }

    /// Gives each row.
    pub(super) fn rows(mut self, sink: &mut dyn FnMut(&[u8]) -> Result<(), Failed>) -> Result<(), Failed> {
        let (channels, wide, high) = (self.channels(), self.wide as usize, self.high);
        let mut shown = vec![0; self.width as usize * channels];
        let clear = shown.clone();
        (0..self.top).try_for_each(|_| sink(&clear))?;
        let mut codes = Codes::new(self.input.byte()?)?;
        let mut whole = vec![0; if self.interlaced { wide * high as usize } else { 0 }];
        let mut indices = vec![0; wide];
        if self.interlaced {
            for (first, step) in [(0, 8), (4, 8), (2, 4), (1, 2)] {
                for row in (first..high as usize).step_by(step) {
                    codes.fill(&mut self.input, &mut whole[row * wide..][..wide])?;
                }
            }
        }
        for row in 0..high as usize {
            let indices = match self.interlaced {
                true => &whole[row * wide..][..wide],
                false => {
                    codes.fill(&mut self.input, &mut indices)?;
                    &indices[..]
                }
            };
            let places = shown.chunks_exact_mut(channels).skip(self.left as usize);
            for (place, index) in places.zip(indices) {
                let [r, g, b] = *self.palette.get(usize::from(*index)).unwrap_or(&[0; 3]);
                let alpha = if self.hole == Some(*index) { 0 } else { 255 };
                place.copy_from_slice(&[r, g, b, alpha][..channels]);
            }
            sink(&shown)?;
        }
        (self.top + high..self.height).try_for_each(|_| sink(&clear))
    }
}

/// The palette that the flags announce.
fn colours(input: &mut Input<'_>, flags: u8) -> Result<Vec<[u8; 3]>, Failed> {
    let count = if flags & 0x80 != 0 { 2 << (flags & 7) } else { 0 };
    (0..count).map(|_| input.array()).collect()
}

/// Lempel, Ziv and Welch's codes: each stands for that of another and one more byte.
struct Codes {
    start_bits: u32,
    bits: u32,
    before: Vec<u16>,
    last: Vec<u8>,
    next: usize,
    previous: Option<u16>,
    /// What a code stood for that did not fit into the row, last byte first.
    waiting: Vec<u8>,
    held: u32,
    count: u32,
    /// Bytes left in the block.
    left: u8,
}

impl Codes {
    fn new(start_bits: u8) -> Result<Codes, Failed> {
        if !(1..=11).contains(&start_bits) {
            return Err(Failed::Broken("a GIF has codes that there are not"));
        }
        let start_bits = u32::from(start_bits);
        let codes = Codes {
            start_bits,
            bits: start_bits + 1,
            before: vec![0; CODES_MAX],
            last: (0..CODES_MAX).map(|code| code as u8).collect(),
            next: (1 << start_bits) + 2,
            previous: None,
            waiting: Vec::with_capacity(CODES_MAX),
            held: 0,
            count: 0,
            left: 0,
        };
        Ok(codes)
    }

    /// The next indices; behind the end of the codes the rest stays as it was.
    fn fill(&mut self, input: &mut Input<'_>, row: &mut [u8]) -> Result<(), Failed> {
        let mut at = 0;
        loop {
            while at < row.len()
                && let Some(index) = self.waiting.pop()
            {
                row[at] = index;
                at += 1;
            }
            if at == row.len() {
                return Ok(());
            }
            self.expand(input)?;
        }
    }

    /// Reads a code, and puts what it stands for into `waiting`.
    fn expand(&mut self, input: &mut Input<'_>) -> Result<(), Failed> {
        let clear = 1u16 << self.start_bits;
        let code = self.code(input)?;
        if code == clear {
            (self.bits, self.next, self.previous) = (self.start_bits + 1, usize::from(clear) + 2, None);
            return Ok(());
        }
        if code == clear + 1 || usize::from(code) > self.next {
            return Err(Failed::Broken("a GIF's pixels end early"));
        }
        let first = |codes: &Codes, mut code: u16| {
            while code >= clear {
                code = codes.before[usize::from(code)];
            }
            code as u8
        };
        match self.previous {
            None if code > clear => return Err(Failed::Broken("a GIF has a code for nothing")),
            None => {}
            Some(previous) if self.next < CODES_MAX => {
                // A code for what is being made now is the one before, and its own first byte again.
                let is_new = usize::from(code) == self.next;
                let byte = first(self, if is_new { previous } else { code });
                (self.before[self.next], self.last[self.next]) = (previous, byte);
                self.next += 1;
                if self.next == 1 << self.bits && self.bits < 12 {
                    self.bits += 1;
                }
            }
            Some(_) if usize::from(code) >= self.next => return Err(Failed::Broken("a GIF has a code for nothing")),
            Some(_) => {}
        }
        self.previous = Some(code);
        let mut code = code;
        while code >= clear {
            self.waiting.push(self.last[usize::from(code)]);
            code = self.before[usize::from(code)];
        }
        self.waiting.push(code as u8);
        Ok(())
    }

    fn code(&mut self, input: &mut Input<'_>) -> Result<u16, Failed> {
        while self.count < self.bits {
            while self.left == 0 {
                self.left = input.byte()?;
                if self.left == 0 {
                    return Err(Failed::Broken("a GIF's pixels end early"));
                }
            }
            self.held |= u32::from(input.byte()?) << self.count;
            self.left -= 1;
            self.count += 8;
        }
        let code = self.held & ((1 << self.bits) - 1);
        self.held >>= self.bits;
        self.count -= self.bits;
        Ok(code as u16)
    }
}

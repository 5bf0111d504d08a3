//! The blocks of a scan: read one after the other, or gathered over many scans.

use super::super::Failed;
use super::huffman::Bits;
use super::{Component, Decoder, ZIGZAG};

/// The head of a scan.
#[derive(Default)]
pub(super) struct Scan {
    pub(super) components: Vec<Part>,
    /// Which coefficients it has, in the order of the file, first and last.
    first: usize,
    last: usize,
    /// Whether it makes coefficients finer that an earlier scan began.
    refines: bool,
    /// By how many bits its values are to be moved up.
    shift: u32,
}

/// A component in a scan, with its tables.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) nth: usize,
    dc: usize,
    ac: usize,
}

impl Scan {
    pub(super) fn read(decoder: &Decoder<'_>, bytes: &[u8]) -> Result<Scan, Failed> {
        let broken = || Failed::Broken("the head of a scan is wrong");
        let (count, rest) = bytes.split_first().ok_or_else(broken)?;
        let (parts, rest) = rest.split_at_checked(2 * usize::from(*count)).ok_or_else(broken)?;
        let [first, last, bits, ..] = rest else { return Err(broken()) };
        let mut scan = Scan {
            components: Vec::with_capacity(parts.len() / 2),
            first: usize::from(*first),
            last: usize::from(*last),
            refines: bits >> 4 != 0,
            shift: u32::from(bits & 15),
        };
        for part in parts.chunks_exact(2) {
            let nth = decoder.component(part[0]).ok_or_else(broken)?;
            let (dc, ac) = (usize::from(part[1] >> 4), usize::from(part[1] & 15));
            if scan.components.iter().any(|known| known.nth == nth) || dc > 3 || ac > 3 {
                return Err(broken());
            }
            scan.components.push(Part { nth, dc, ac });
        }
        match decoder.progressive {
            false => (scan.first, scan.last, scan.refines, scan.shift) = (0, 63, false, 0),
            true => {
                let is_alone = scan.components.len() == 1;
                let in_order = scan.first <= scan.last && scan.last <= 63 && scan.shift <= 13;
                // The brightness comes in scans of its own, and everything else a component at a time.
                if !in_order || (scan.first == 0) != (scan.last == 0) || (scan.first > 0 && !is_alone) {
                    return Err(broken());
                }
            }
        }
        match scan.components.is_empty() {
            true => Err(broken()),
            false => Ok(scan),
        }
    }
}

impl Decoder<'_> {
    /// One block of a sequential scan: gives each coefficient that is not zero, by its place in the file.
    #[inline]
    pub(super) fn block(
        &mut self,
        bits: &mut Bits,
        part: &Part,
        before: &mut i32,
        mut put: impl FnMut(usize, i32),
    ) -> Result<(), Failed> {
        const NO_TABLE: Failed = Failed::Broken("a table of codes is missing");
        let (dc, ac) = (self.dc[part.dc].as_ref().ok_or(NO_TABLE)?, self.ac[part.ac].as_ref().ok_or(NO_TABLE)?);
        let input = &mut self.input;
        let size = u32::from(bits.value(input, dc)?).min(16);
        *before = before.wrapping_add(bits.signed(input, size)?);
        put(0, coefficient(*before));
        let mut k = 1;
        while k < 64 {
            let code = bits.value(input, ac)?;
            let (zeros, size) = (usize::from(code >> 4), u32::from(code & 15));
            match (zeros, size) {
                (15, 0) => k += 16,
                (_, 0) => break,
                _ => {
                    k += zeros;
                    if k > 63 {
                        return Err(Failed::Broken("a block has more than 64 coefficients"));
                    }
                    put(k, bits.signed(input, size)?);
                    k += 1;
                }
            }
        }
        Ok(())
    }

    /// Reads a scan into the store. Answers the marker behind it, unless the file ends there.
    pub(super) fn read_scan(&mut self, scan: &Scan, store: &mut Store) -> Result<Option<u8>, Failed> {
        let mut run = Run { bits: Bits::default(), before: [0; 4], ended: 0 };
        let mut until_restart = self.restart_every;
        // Alone, a component comes block by block and without those that only fill its units.
        let alone = match &scan.components[..] {
            [part] => Some((self.components[part.nth].blocks_wide, self.components[part.nth].blocks_high)),
            _ => None,
        };
        let (wide, high) = alone.unwrap_or((self.units_wide, self.units_high));
        for y in 0..high {
            self.input.check()?;
            for x in 0..wide {
                if self.restart_every > 0 {
                    if until_restart == 0 {
                        run.bits.restart(&mut self.input)?;
                        (run.before, run.ended) = ([0; 4], 0);
                        until_restart = self.restart_every;
                    }
                    until_restart -= 1;
                }
                for part in &scan.components {
                    let stride = self.components[part.nth].stride;
                    let (h, v) = (self.components[part.nth].h, self.components[part.nth].v);
                    if alone.is_some() {
                        let mut block = store.block(part.nth, (y * stride + x) as usize);
                        self.add(&mut run, scan, part, &mut block)?;
                        continue;
                    }
                    for nth in 0..h * v {
                        let at = (y * v + nth / h) * stride + x * h + nth % h;
                        let mut block = store.block(part.nth, at as usize);
                        self.add(&mut run, scan, part, &mut block)?;
                    }
                }
            }
        }
        match run.bits.end(&mut self.input) {
            Ok(marker) => Ok(Some(marker)),
            Err(Failed::Broken(_)) => Ok(None),
            Err(failed) => Err(failed),
        }
    }

    /// What a scan says of one block.
    fn add(&mut self, run: &mut Run, scan: &Scan, part: &Part, block: &mut Block<'_>) -> Result<(), Failed> {
        if !self.progressive {
            let mut before = run.before[part.nth];
            let done = self.block(&mut run.bits, part, &mut before, |k, value| block.put(k, value));
            run.before[part.nth] = before;
            return done;
        }
        match (scan.first, scan.refines) {
            (0, false) => {
                let table = self.dc[part.dc].as_ref().ok_or(Failed::Broken("a table of codes is missing"))?;
                let size = u32::from(run.bits.value(&mut self.input, table)?).min(16);
                let before = &mut run.before[part.nth];
                *before = before.wrapping_add(run.bits.signed(&mut self.input, size)?);
                block.put(0, before.wrapping_shl(scan.shift));
                Ok(())
            }
            (0, true) => {
                if run.bits.bit(&mut self.input)? {
                    block.put(0, block.get(0) | 1 << scan.shift);
                }
                Ok(())
            }
            (_, false) => self.begin(run, scan, part, block),
            (_, true) => self.refine(run, scan, part, block),
        }
    }

    /// The first bits of some coefficients.
    fn begin(&mut self, run: &mut Run, scan: &Scan, part: &Part, block: &mut Block<'_>) -> Result<(), Failed> {
        if run.ended > 0 {
            run.ended -= 1;
            return Ok(());
        }
        let table = self.ac[part.ac].as_ref().ok_or(Failed::Broken("a table of codes is missing"))?;
        let input = &mut self.input;
        let mut k = scan.first;
        while k <= scan.last {
            let code = run.bits.value(input, table)?;
            let (zeros, size) = (u32::from(code >> 4), u32::from(code & 15));
            match (zeros, size) {
                (15, 0) => k += 16,
                (_, 0) => {
                    run.ended = (1 << zeros) + run.bits.bits(input, zeros)? - 1;
                    break;
                }
                _ => {
                    k += zeros as usize;
                    if k > 63 {
                        return Err(Failed::Broken("a block has more than 64 coefficients"));
                    }
                    block.put(k, run.bits.signed(input, size)?.wrapping_shl(scan.shift));
                    k += 1;
                }
            }
        }
        Ok(())
    }

    /// One more bit of some coefficients, and those that are no longer zero by it.
    fn refine(&mut self, run: &mut Run, scan: &Scan, part: &Part, block: &mut Block<'_>) -> Result<(), Failed> {
        let table = self.ac[part.ac].as_ref().ok_or(Failed::Broken("a table of codes is missing"))?;
        let input = &mut self.input;
        let step = 1 << scan.shift;
        let mut k = scan.first;
        while run.ended == 0 && k <= scan.last {
            let code = run.bits.value(input, table)?;
            let (mut zeros, size) = (u32::from(code >> 4), code & 15);
            let mut new = 0;
            if size > 0 {
                new = if run.bits.bit(input)? { step } else { -step };
            } else if zeros < 15 {
                run.ended = (1 << zeros) + run.bits.bits(input, zeros)?;
                break;
            }
            while k <= scan.last {
                let at = k;
                k += 1;
                if block.is_set(at) {
                    if run.bits.bit(input)? {
                        block.grow(at, step);
                    }
                } else if zeros == 0 {
                    if new != 0 {
                        block.put(at, new);
                    }
                    break;
                } else {
                    zeros -= 1;
                }
            }
        }
        if run.ended > 0 {
            for at in k..=scan.last {
                if block.is_set(at) && run.bits.bit(input)? {
                    block.grow(at, step);
                }
            }
            run.ended -= 1;
        }
        Ok(())
    }
}

/// Where a scan stands.
struct Run {
    bits: Bits,
    /// The brightness of the block before, by component.
    before: [i32; 4],
    /// Blocks to come that have nothing in this scan.
    ended: u32,
}

/// The coefficients of a picture that are wanted at a scale, and which of the others are not zero. Its size is in
/// [`Decoder::bytes`].
pub(super) struct Store {
    scale: usize,
    /// The place in a block for each coefficient in the order of the file; 255 where it is not kept.
    places: [u8; 64],
    values: Vec<Vec<i16>>,
    set: Vec<Vec<u64>>,
}

/// One block in the store.
struct Block<'a> {
    places: &'a [u8; 64],
    values: &'a mut [i16],
    set: &'a mut u64,
}

/// A block with its place in a row of units.
pub(super) struct Placed {
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) coefficients: [i32; 64],
}

impl Store {
    pub(super) fn new(decoder: &Decoder<'_>, scale: usize) -> Store {
        let place = |natural: u8| match (usize::from(natural) / 8, usize::from(natural) % 8) {
            (row, column) if row < scale && column < scale => (row * scale + column) as u8,
            _ => 255,
        };
        let blocks = |c: &Component| c.stride as usize * (decoder.units_high * c.v) as usize;
        Store {
            scale,
            places: ZIGZAG.map(place),
            values: decoder.components.iter().map(|c| vec![0; blocks(c) * scale * scale]).collect(),
            set: decoder.components.iter().map(|c| vec![0; blocks(c)]).collect(),
        }
    }

    fn block(&mut self, component: usize, at: usize) -> Block<'_> {
        let length = self.scale * self.scale;
        Block {
            places: &self.places,
            values: &mut self.values[component][at * length..][..length],
            set: &mut self.set[component][at],
        }
    }

    /// The blocks of a component in a row of units.
    pub(super) fn row<'a>(
        &'a self,
        nth: usize,
        component: &'a Component,
        row: u32,
    ) -> impl Iterator<Item = Placed> + 'a {
        let (scale, stride) = (self.scale, component.stride);
        (0..component.v * stride).map(move |at| {
            let block = (row * component.v * stride + at) as usize;
            let mut coefficients = [0; 64];
            let values = &self.values[nth][block * scale * scale..][..scale * scale];
            for (at, value) in values.iter().enumerate() {
                coefficients[at / scale * 8 + at % scale] = i32::from(*value);
            }
            Placed { x: at % stride, y: at / stride, coefficients }
        })
    }
}

impl Block<'_> {
    fn put(&mut self, k: usize, value: i32) {
        if value != 0 {
            *self.set |= 1 << k;
        }
        if let Some(place) = self.values.get_mut(usize::from(self.places[k])) {
            *place = coefficient(value) as i16;
        }
    }

    fn get(&self, k: usize) -> i32 {
        self.values.get(usize::from(self.places[k])).map_or(0, |value| i32::from(*value))
    }

    fn is_set(&self, k: usize) -> bool {
        *self.set & 1 << k != 0
    }

    /// Away from zero, by a step that it does not have yet.
    fn grow(&mut self, k: usize, step: i32) {
        let value = self.get(k);
        if value != 0 && value & step == 0 {
            self.put(k, if value > 0 { value + step } else { value - step });
        }
    }
}

/// Within what a coefficient may be.
fn coefficient(value: i32) -> i32 {
    value.clamp(-32_767, 32_767)
}

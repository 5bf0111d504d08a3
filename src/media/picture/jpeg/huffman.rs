//! The bits of a scan, and the codes they make.

use super::super::Failed;
use super::super::input::Input;

/// Codes up to this length are looked up at once.
const FAST_BITS: u32 = 9;
/// Bits past the end of a scan that may be asked for: a table may look ahead, but nothing may live on them.
const PADDING_BITS_MAX: u32 = 128;

/// A table of codes: sixteen lengths at most, 256 values at most.
#[derive(Clone)]
pub(super) struct Table {
    /// For the next nine bits: length times 256 and value; 0 for a longer code.
    fast: Vec<u16>,
    /// For each length the first code that is longer, as if it had sixteen bits.
    end: [u32; 17],
    /// For each length: the place of its first value, less its first code.
    offset: [i32; 17],
    values: Vec<u8>,
}

impl Table {
    /// From the number of codes of each length, and the values in order.
    pub(super) fn new(counts: &[u8; 16], values: Vec<u8>) -> Result<Table, Failed> {
        if values.len() > 256 {
            return Err(Failed::Broken("a table of codes has more than there are bytes"));
        }
        let mut table = Table { fast: vec![0; 1 << FAST_BITS], end: [0; 17], offset: [0; 17], values };
        let (mut code, mut place) = (0u32, 0usize);
        for length in 1..=16u32 {
            let count = u32::from(counts[length as usize - 1]);
            if code + count > 1 << length {
                return Err(Failed::Broken("a table of codes does not add up"));
            }
            table.offset[length as usize] = place as i32 - code as i32;
            for code in code..code + count {
                if length <= FAST_BITS
                    && let Some(value) = table.values.get(place)
                {
                    let entry = (length as u16) << 8 | u16::from(*value);
                    let first = (code << (FAST_BITS - length)) as usize;
                    table.fast[first..first + (1 << (FAST_BITS - length))].fill(entry);
                }
                place += 1;
            }
            code += count;
            table.end[length as usize] = code << (16 - length);
            code <<= 1;
        }
        Ok(table)
    }
}

/// The bits of one scan, up to the next marker.
#[derive(Default)]
pub(super) struct Bits {
    held: u64,
    count: u32,
    /// The marker that ended the bits.
    marker: Option<u8>,
    padding: u32,
}

impl Bits {
    #[inline]
    fn need(&mut self, input: &mut Input<'_>, count: u32) -> Result<(), Failed> {
        if self.count < count { self.refill(input) } else { Ok(()) }
    }

    fn refill(&mut self, input: &mut Input<'_>) -> Result<(), Failed> {
        while self.count <= 48 {
            let byte = match self.marker {
                Some(_) => self.pad()?,
                None => match input.byte()? {
                    0xff => self.stuffed(input)?,
                    byte => byte,
                },
            };
            self.held = self.held << 8 | u64::from(byte);
            self.count += 8;
        }
        Ok(())
    }

    /// What stands behind 0xff: a zero if it is a byte of the scan, else the marker that ends it.
    fn stuffed(&mut self, input: &mut Input<'_>) -> Result<u8, Failed> {
        loop {
            match input.byte()? {
                0 => return Ok(0xff),
                0xff => {}
                marker => {
                    self.marker = Some(marker);
                    return self.pad();
                }
            }
        }
    }

    fn pad(&mut self) -> Result<u8, Failed> {
        self.padding += 8;
        match self.padding > PADDING_BITS_MAX {
            true => Err(Failed::Broken("a scan ends early")),
            false => Ok(0),
        }
    }

    /// The next bits, sixteen at most.
    #[inline]
    pub(super) fn bits(&mut self, input: &mut Input<'_>, count: u32) -> Result<u32, Failed> {
        self.need(input, count)?;
        self.count -= count;
        Ok((self.held >> self.count) as u32 & ((1 << count) - 1))
    }

    #[inline]
    pub(super) fn bit(&mut self, input: &mut Input<'_>) -> Result<bool, Failed> {
        Ok(self.bits(input, 1)? == 1)
    }

    /// The next code's value.
    #[inline]
    pub(super) fn value(&mut self, input: &mut Input<'_>, table: &Table) -> Result<u8, Failed> {
        self.need(input, 16)?;
        let next = (self.held >> (self.count - 16)) as u32 & 0xffff;
        let entry = table.fast[(next >> (16 - FAST_BITS)) as usize];
        if entry != 0 {
            self.count -= u32::from(entry >> 8);
            return Ok(entry as u8);
        }
        for length in 1..=16usize {
            if next < table.end[length] {
                let place = (next >> (16 - length)) as i32 + table.offset[length];
                self.count -= length as u32;
                let value = usize::try_from(place).ok().and_then(|place| table.values.get(place));
                return value.copied().ok_or(Failed::Broken("a code has no value"));
            }
        }
        Err(Failed::Broken("a code is in no table"))
    }

    /// A number of `count` bits, sixteen at most, the first of which says its sign.
    #[inline]
    pub(super) fn signed(&mut self, input: &mut Input<'_>, count: u32) -> Result<i32, Failed> {
        if count == 0 {
            return Ok(0);
        }
        let value = self.bits(input, count)? as i32;
        Ok(if value < 1 << (count - 1) { value - (1 << count) + 1 } else { value })
    }

    /// Goes on behind a restart marker. Whatever stands before it is passed over.
    pub(super) fn restart(&mut self, input: &mut Input<'_>) -> Result<(), Failed> {
        let marker = self.end(input)?;
        match marker {
            0xd0..=0xd7 => Ok(*self = Bits::default()),
            _ => Err(Failed::Broken("a restart marker is missing")),
        }
    }

    /// The marker behind the scan.
    pub(super) fn end(&mut self, input: &mut Input<'_>) -> Result<u8, Failed> {
        (self.held, self.count, self.padding) = (0, 0, 0);
        loop {
            if let Some(marker) = self.marker.take() {
                return Ok(marker);
            }
            if input.byte()? == 0xff {
                self.stuffed(input)?;
                self.padding = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_256_values_at_most() {
        let mut counts = [0; 16];
        (counts[14], counts[15]) = (128, 128);
        assert!(Table::new(&counts, vec![0; 256]).is_ok());
        counts[15] = 129;
        assert!(Table::new(&counts, vec![0; 257]).is_err());
    }
}

//! How rows are packed: little varints, lengths before bytes, nothing named.
//!
//! A row that does not unpack means that our own data is wrong, so every reader here answers `None` and the table's
//! file turns that into `Error::Corrupt` with the table and key.

/// Appends an unsigned number, seven bits a byte, low bits first (LEB128). At most ten bytes.
pub fn put_u64(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Appends a signed number: zigzag, then as an unsigned one, so that small negatives stay small.
pub fn put_i64(out: &mut Vec<u8>, number: i64) {
    put_u64(out, ((number << 1) ^ (number >> 63)) as u64);
}

/// Appends a length and the bytes.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_u64(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Reads a packed row from front to back.
#[derive(Clone, Copy)]
pub struct Unpack<'a> {
    rest: &'a [u8],
}

impl<'a> Unpack<'a> {
    pub fn new(row: &'a [u8]) -> Self {
        Self { rest: row }
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub fn u8(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    pub fn u64(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    pub fn u32(&mut self) -> Option<u32> {
        u32::try_from(self.u64()?).ok()
    }

    pub fn i64(&mut self) -> Option<i64> {
        let zigzag = self.u64()?;
        Some((zigzag >> 1) as i64 ^ -((zigzag & 1) as i64))
    }

    pub fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        if length > self.rest.len() {
            return None;
        }
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        Some(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u64()?).ok()?;
        self.take(length)
    }

    pub fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_back() {
        for number in [0i64, 1, -1, 63, -64, 64, i64::MAX, i64::MIN, 1_700_000_000_000] {
            let mut row = Vec::new();
            put_i64(&mut row, number);
            put_u64(&mut row, number as u64);
            let mut unpack = Unpack::new(&row);
            assert_eq!(unpack.i64(), Some(number));
            assert_eq!(unpack.u64(), Some(number as u64));
            assert!(unpack.is_empty());
        }
    }

    #[test]
    fn a_cut_row_is_none_and_never_a_panic() {
        let mut row = Vec::new();
        put_bytes(&mut row, b"hello");
        for cut in 0..row.len() {
            assert_eq!(Unpack::new(&row[..cut]).bytes(), None);
        }
        assert_eq!(Unpack::new(&[0x80; 11]).u64(), None);
    }

    #[test]
    fn any_bytes_unpack_or_do_not() {
        crate::base::any_bytes::any_bytes(&[b"\x05\x03abc\xff\x01", b"\x00"], |bytes| {
            let mut unpack = Unpack::new(bytes);
            while !unpack.is_empty() {
                let mut copies = [unpack; 4];
                let _ = (copies[0].i64(), copies[1].bytes(), copies[2].text(), copies[3].take(1 << 40));
                if unpack.u64().is_none() {
                    break;
                }
            }
        });
    }
}

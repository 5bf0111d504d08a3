//! Keys that sort in the order of the values they encode.
//!
//! Numbers are big-endian. Text is either the last part of a key, as it is, or ended with a zero byte (identifiers
//! and event types with a zero byte inside are escaped, so that no two keys coincide).

use super::num::Position;

/// Puts a key together part by part.
///
/// ```
/// # use snug::store::Key;
/// let key = Key::new().u32(7).text("m.room.member").raw(b"@a:b");
/// assert_eq!(key.as_slice(), b"\0\0\0\x07m.room.member\0@a:b");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Key(Vec<u8>);

impl Key {
    pub fn new() -> Self {
        Key(Vec::with_capacity(32))
    }

    pub fn u8(mut self, number: u8) -> Self {
        self.0.push(number);
        self
    }

    pub fn u16(mut self, number: u16) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub fn u32(mut self, number: u32) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    pub fn u64(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    /// A signed number; negative ones sort first.
    pub fn i64(self, number: i64) -> Self {
        self.u64((number as u64) ^ (1 << 63))
    }

    pub fn position(self, position: Position) -> Self {
        self.u64(position.0)
    }

    /// Text with more parts to follow: ended by a zero byte; zero bytes inside become `0x01 0x01`, ones `0x01 0x02`.
    pub fn text(mut self, text: &str) -> Self {
        for byte in text.bytes() {
            match byte {
                0 | 1 => self.0.extend_from_slice(&[1, byte + 1]),
                _ => self.0.push(byte),
            }
        }
        self.0.push(0);
        self
    }

    /// The last part, as it is.
    pub fn raw(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.0.extend_from_slice(bytes.as_ref());
        self
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

impl std::ops::Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Takes a key apart in the order it was put together. Every step is `None` when the key is too short.
pub struct Parts<'k>(pub &'k [u8]);

impl<'k> Parts<'k> {
    pub fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|bytes| bytes[0])
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    pub fn i64(&mut self) -> Option<i64> {
        self.u64().map(|number| (number ^ (1 << 63)) as i64)
    }

    pub fn position(&mut self) -> Option<Position> {
        self.u64().map(Position)
    }

    pub fn text(&mut self) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let (text, rest) = (&self.0[..end], &self.0[end + 1..]);
        self.0 = rest;
        let mut plain = Vec::with_capacity(text.len());
        let mut bytes = text.iter();
        while let Some(byte) = bytes.next() {
            plain.push(if *byte == 1 { bytes.next()?.checked_sub(1)? } else { *byte });
        }
        String::from_utf8(plain).ok()
    }

    /// The remaining bytes.
    pub fn rest(self) -> &'k [u8] {
        self.0
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (bytes, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*bytes)
    }
}

/// The first key after every key that starts with `prefix`; `None` when there is none, which is the end of the table.
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut after = prefix[..=last].to_vec();
    after[last] += 1;
    Some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_the_order_and_come_apart_again() {
        let numbers = [i64::MIN, -5, -1, 0, 1, 7, i64::MAX];
        let keys: Vec<_> = numbers.iter().map(|number| Key::new().i64(*number).into_vec()).collect();
        assert!(keys.is_sorted());
        let key = Key::new().u32(9).text("a\0b\u{1}c").i64(-3).raw("rest");
        let mut parts = Parts(&key);
        assert_eq!(parts.u32(), Some(9));
        assert_eq!(parts.text().as_deref(), Some("a\0b\u{1}c"));
        assert_eq!(parts.i64(), Some(-3));
        assert_eq!(parts.rest(), b"rest");
        assert_eq!(Parts(b"abc").u32(), None);
        assert_eq!(Parts(b"abc").text(), None);
    }

    #[test]
    fn no_two_texts_coincide() {
        assert_ne!(Key::new().text("a").text("b"), Key::new().text("a\0b").text(""));
    }

    #[test]
    fn the_end_of_a_prefix() {
        assert_eq!(after_prefix(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(after_prefix(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(after_prefix(b"\xff"), None);
        assert_eq!(after_prefix(b""), None);
    }

    #[test]
    fn any_bytes_come_apart_or_do_not() {
        let key = Key::new().u32(9).text("a\0b\u{1}c").i64(-3).raw("rest").into_vec();
        crate::base::any_bytes::any_bytes(&[&key], |bytes| {
            let mut parts = Parts(bytes);
            let _ = (parts.u32(), parts.text(), parts.i64(), Parts(bytes).text());
        });
    }
}

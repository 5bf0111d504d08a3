//! Bytes as hexadecimal digits.

/// The bytes that a text of hexadecimal digits stands for; none for any other text.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let byte = |pair: &[u8]| match *pair {
        [high, low] => Some((digit(high)? << 4 | digit(low)?) as u8),
        _ => None,
    };
    text.as_bytes().chunks(2).map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_digits_in_pairs_are_bytes() {
        assert_eq!(unhex("00ffA5"), Some(vec![0, 255, 0xa5]));
        assert_eq!(unhex(""), Some(Vec::new()));
        for wrong in ["0", "000", "+1", "0x", "é", "g0"] {
            assert_eq!(unhex(wrong), None, "{wrong}");
        }
    }
}

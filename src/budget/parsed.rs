//! The memory that JSON takes once it is parsed into values.

/// Bytes serde_json keeps for one object with at least one field: a B-tree leaf with room for eleven.
const OBJECT_BYTES: u64 = 640;
/// Bytes it keeps for any other value, list growth included.
const VALUE_BYTES: u64 = 64;

/// An upper bound on the parsed form of `text`, and on the error when it cannot be parsed. A value of one byte becomes one
/// of 32, and `{"a":0}` a tree's leaf of 640, so the bound counts the brackets and commas in the text, without parsing it.
pub fn parsed_bytes_max(text: &[u8]) -> u64 {
    let nodes = text.iter().map(|byte| match byte {
        b'{' => OBJECT_BYTES,
        b',' | b'[' => VALUE_BYTES,
        _ => 0,
    });
    text.len() as u64 + VALUE_BYTES + nodes.sum::<u64>() + quoted_bytes_max(text)
}

/// What a parser's error about `text` may take beyond as many bytes as the text has. It quotes a string that was not
/// wanted as Rust writes it, where a byte of DEL is six, in a buffer that doubles. Nothing for most texts.
pub fn quoted_bytes_max(text: &[u8]) -> u64 {
    let lengthen = |char: &char| *char >= '\x7f' && char.escape_debug().len() > char.len_utf8();
    let strange = text.utf8_chunks().flat_map(|chunk| chunk.valid().chars()).filter(lengthen);
    strange.map(|char| 2 * char.escape_debug().len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Holds `quoted_bytes_max` against what serde_json makes of each of some characters.
    #[test]
    fn an_error_is_no_longer_than_what_is_paid_for_it() {
        for char in [
            "a",
            "\x7f",
            "\u{80}",
            "ä",
            "\u{ad}",
            "\u{300}",
            "\u{e31}",
            "\u{200b}",
            "漢",
            "😀",
            "\u{fe0f}",
            "\u{e0001}",
        ] {
            let text = format!("\"{}\"", char.repeat(100));
            let quoted = serde_json::from_str::<u32>(&text).unwrap_err().to_string().len() as u64;
            let rest = "invalid type: string , expected u32 at line 1 column 1000".len() as u64;
            let most = quoted_bytes_max(text.as_bytes());
            assert!(quoted <= text.len() as u64 + rest + most, "{char:?}: {quoted} {most}");
            assert_eq!(most == 0, quoted <= text.len() as u64 + rest, "{char:?}: {quoted} {most}");
        }
        assert_eq!(quoted_bytes_max(b"\xff{\"a\":\"\x7f\"}"), 12);
    }
}

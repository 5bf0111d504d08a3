//! The memory that JSON takes once it is parsed into values.

/// Bytes serde_json keeps for one object with at least one field: a B-tree leaf with room for eleven.
const OBJECT_BYTES: u64 = 640;
/// Bytes it keeps for any other value, list growth included.
const VALUE_BYTES: u64 = 64;

/// An upper bound on the parsed form of `text`. A value of one byte becomes one of 32, and `{"a":0}` a tree's leaf of
/// 640, so the bound counts the brackets and commas in the text, without parsing it.
pub fn parsed_bytes_max(text: &[u8]) -> u64 {
    let nodes = text.iter().map(|byte| match byte {
        b'{' => OBJECT_BYTES,
        b',' | b'[' => VALUE_BYTES,
        _ => 0,
    });
    text.len() as u64 + VALUE_BYTES + nodes.sum::<u64>()
}

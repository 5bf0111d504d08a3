//! An event's JSON as it is stored: without what the event's row can restore, compressed under the shipped dictionary.
//!
//! The first byte says how the rest is to be read, so that a later dictionary or a later trick can live beside the old
//! ones. What is left out is restored exactly, byte for byte: `encode` compares before it trusts itself, and stores
//! the whole event where the comparison fails.

use std::cell::RefCell;
use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use sha2::{Digest, Sha256};
use zstd::dict::{DecoderDictionary, EncoderDictionary};

use super::pack::{Unpack, put_u64};

/// The dictionary of encodings 1…; trained by the test below on generated events, never changed once released.
const DICTIONARY_1: &[u8] = include_bytes!("../../dictionary-1.zstd");

/// Low bits of the first byte: which dictionary. Zero is plain, uncompressed bytes.
const PLAIN: u8 = 0;
const UNDER_DICTIONARY_1: u8 = 1;
const DICTIONARY_MASK: u8 = 0x0f;
/// `auth_events` was emptied: its ids stand in the row's auth edges, in the same order.
const WITHOUT_AUTH: u8 = 0x10;
/// `hashes` was taken out: it is the SHA-256 of the rest and is computed again.
const WITHOUT_HASHES: u8 = 0x20;

/// Every zstd frame begins with these, so no stored one does.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// No stored event is longer; a length in a row beyond it is corruption (the specification's limit is 65,536 bytes).
pub const BODY_BYTES_MAX: usize = 128 * 1024;

/// The `(name, value)` spans of a JSON object's top level, without building anything. The input is our own canonical
/// JSON, so it is not validated; a malformed one ends the iteration early.
pub fn fields(object: &[u8]) -> Fields<'_> {
    Fields { object, at: 1 }
}

/// See [`fields`].
#[derive(Clone)]
pub struct Fields<'a> {
    object: &'a [u8],
    at: usize,
}

/// One field: its name without the quotes (escapes untouched), its value as JSON, and where the value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    pub name: &'a [u8],
    pub value: &'a [u8],
    /// Offset of the name's opening quote.
    pub start: usize,
    /// Offset of the value's first byte.
    pub value_start: usize,
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        while matches!(self.object.get(self.at)?, b' ' | b'\n' | b'\r' | b'\t' | b',') {
            self.at += 1;
        }
        if self.object[self.at] != b'"' {
            return None;
        }
        let start = self.at;
        let name_end = string_end(self.object, start)?;
        let mut value_start = name_end;
        while matches!(self.object.get(value_start)?, b' ' | b'\n' | b'\r' | b'\t' | b':') {
            value_start += 1;
        }
        let value_end = value_end(self.object, value_start)?;
        self.at = value_end;
        Some(Field {
            name: &self.object[start + 1..name_end - 1],
            value: &self.object[value_start..value_end],
            start,
            value_start,
        })
    }
}

/// A top-level field's value.
pub fn field<'a>(object: &'a [u8], name: &str) -> Option<&'a [u8]> {
    fields(object).find(|field| field.name == name.as_bytes()).map(|field| field.value)
}

/// A top-level field's value when it is a string without escapes, or one that had to be unescaped.
pub fn text<'a>(object: &'a [u8], name: &str) -> Option<std::borrow::Cow<'a, str>> {
    let value = field(object, name)?;
    let inner = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if !inner.contains(&b'\\') {
        return std::str::from_utf8(inner).ok().map(std::borrow::Cow::Borrowed);
    }
    serde_json::from_slice::<String>(value).ok().map(std::borrow::Cow::Owned)
}

/// The strings of a JSON array of strings, quotes and escapes untouched; `None` at anything else in it.
fn strings(array: &[u8]) -> Option<Vec<&[u8]>> {
    let mut rest = array.strip_prefix(b"[")?;
    let mut found = Vec::new();
    while let [b'"', ..] = rest {
        let end = string_end(rest, 0)?;
        found.push(&rest[1..end - 1]);
        rest = &rest[end..];
        rest = rest.strip_prefix(b",").unwrap_or(rest);
    }
    (rest == b"]").then_some(found)
}

/// Where the string that opens at `at` ends, past its closing quote.
fn string_end(json: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        at += memchr::memchr2(b'"', b'\\', json.get(at..)?)?;
        if json[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

fn value_end(json: &[u8], at: usize) -> Option<usize> {
    match json.get(at)? {
        b'"' => string_end(json, at),
        b'{' | b'[' => {
            let mut depth = 0usize;
            let mut at = at;
            loop {
                match json.get(at)? {
                    b'"' => {
                        at = string_end(json, at)?;
                        continue;
                    }
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => depth -= 1,
                    _ => {}
                }
                at += 1;
                if depth == 0 {
                    return Some(at);
                }
            }
        }
        _ => {
            let length =
                json[at..].iter().position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t'));
            Some(at + length.unwrap_or(json.len() - at))
        }
    }
}

/// Packs an event's canonical JSON for the body table.
///
/// `auth_ids` are the ids the row's auth edges lead back to, in the row's order; an event whose `auth_events` is
/// anything else (rooms of version 1 and 2, an edge we do not hold) keeps its own list.
pub fn encode<S: AsRef<str>>(canonical: &[u8], auth_ids: &[S]) -> Vec<u8> {
    let (kept, left_out) = leave_out(canonical, auth_ids);
    let mut stored = Vec::with_capacity(kept.len() / 2 + 16);
    stored.push(UNDER_DICTIONARY_1 | left_out);
    put_u64(&mut stored, kept.len() as u64);
    match compress(&kept) {
        Some(frame) if stored.len() + frame.len() < kept.len() => stored.extend_from_slice(&frame),
        _ => {
            stored.clear();
            stored.push(PLAIN | left_out);
            stored.extend_from_slice(&kept);
        }
    }
    stored
}

/// Whether [`decode`] will ask for the auth events' ids: the caller need not look them up otherwise.
pub fn wants_auth_ids(stored: &[u8]) -> bool {
    stored.first().is_some_and(|first| first & WITHOUT_AUTH != 0)
}

/// Unpacks what [`encode`] made, exactly. `None` when the bytes are not ours.
pub fn decode<S: AsRef<str>>(stored: &[u8], auth_ids: &[S]) -> Option<Vec<u8>> {
    let (&first, rest) = stored.split_first()?;
    let kept = match first & DICTIONARY_MASK {
        PLAIN => rest.to_vec(),
        UNDER_DICTIONARY_1 => {
            let mut unpack = Unpack::new(rest);
            let length = usize::try_from(unpack.u64()?).ok().filter(|length| *length <= BODY_BYTES_MAX)?;
            decompress(unpack.rest(), length)?
        }
        _ => return None,
    };
    restore(kept, first, auth_ids)
}

fn leave_out<S: AsRef<str>>(canonical: &[u8], auth_ids: &[S]) -> (Vec<u8>, u8) {
    let (mut auth, mut hashes) = (None, None);
    for field in fields(canonical) {
        match field.name {
            b"auth_events" => auth = Some(field),
            b"hashes" => hashes = Some(field),
            _ => {}
        }
    }
    let auth = auth.filter(|auth| is_list_of(auth.value, auth_ids));
    let mut left_out = 0;
    let mut kept = Vec::with_capacity(canonical.len());
    let mut from = 0;
    if let Some(auth) = auth {
        kept.extend_from_slice(&canonical[..auth.value_start]);
        kept.extend_from_slice(b"[]");
        from = auth.value_start + auth.value.len();
        left_out |= WITHOUT_AUTH;
    }
    // `auth_events` sorts before `hashes`, so one pass forwards is enough; and `hashes` is never the first field of a
    // real event, nor the last, so the comma behind it goes with it.
    if let Some(hashes) = hashes
        && hashes.start >= from
        && canonical.get(hashes.value_start + hashes.value.len()) == Some(&b',')
        && hashes_value(canonical).as_deref() == Some(hashes.value)
    {
        kept.extend_from_slice(&canonical[from..hashes.start]);
        from = hashes.value_start + hashes.value.len() + 1;
        left_out |= WITHOUT_HASHES;
    }
    kept.extend_from_slice(&canonical[from..]);
    (kept, left_out)
}

fn is_list_of<S: AsRef<str>>(array: &[u8], ids: &[S]) -> bool {
    !ids.is_empty()
        && strings(array).is_some_and(|found| {
            found.len() == ids.len() && found.iter().zip(ids).all(|(found, id)| *found == id.as_ref().as_bytes())
        })
}

fn restore<S: AsRef<str>>(mut event: Vec<u8>, first: u8, auth_ids: &[S]) -> Option<Vec<u8>> {
    if first & WITHOUT_AUTH != 0 {
        let auth = fields(&event).find(|field| field.name == b"auth_events")?;
        let (start, end) = (auth.value_start, auth.value_start + auth.value.len());
        let mut whole = Vec::with_capacity(event.len() + auth_ids.len() * 48 + 64);
        whole.extend_from_slice(&event[..start]);
        whole.push(b'[');
        for (at, id) in auth_ids.iter().enumerate() {
            if at > 0 {
                whole.push(b',');
            }
            whole.push(b'"');
            whole.extend_from_slice(id.as_ref().as_bytes());
            whole.push(b'"');
        }
        whole.push(b']');
        whole.extend_from_slice(&event[end..]);
        event = whole;
    }
    if first & WITHOUT_HASHES != 0 {
        let hashes = hashes_value(&event)?;
        let at = fields(&event).find(|field| field.name > &b"hashes"[..])?.start;
        let mut field = b"\"hashes\":".to_vec();
        field.extend_from_slice(&hashes);
        field.push(b',');
        event.splice(at..at, field);
    }
    Some(event)
}

/// What `hashes` must be for this event: the SHA-256 over everything but `hashes`, `signatures` and `unsigned`.
/// The event may or may not have its `hashes` field; `None` when nothing sensible can be said about it.
fn hashes_value(event: &[u8]) -> Option<Vec<u8>> {
    let mut sha = Sha256::new();
    let mut first = true;
    sha.update(b"{");
    for field in fields(event) {
        if matches!(field.name, b"hashes" | b"signatures" | b"unsigned") {
            continue;
        }
        if !first {
            sha.update(b",");
        }
        first = false;
        sha.update(&event[field.start..field.value_start + field.value.len()]);
    }
    sha.update(b"}");
    let mut value = b"{\"sha256\":\"".to_vec();
    value.extend_from_slice(STANDARD_NO_PAD.encode(sha.finalize()).as_bytes());
    value.extend_from_slice(b"\"}");
    (!first).then_some(value)
}

fn compress(bytes: &[u8]) -> Option<Vec<u8>> {
    static DICTIONARY: OnceLock<EncoderDictionary<'static>> = OnceLock::new();
    thread_local! {
        static COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    }
    COMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            let dictionary = DICTIONARY.get_or_init(|| EncoderDictionary::copy(DICTIONARY_1, 1));
            let mut compressor = zstd::bulk::Compressor::with_prepared_dictionary(dictionary).ok()?;
            // The row has its own length, and there is one dictionary: neither is worth bytes in each frame.
            compressor.include_contentsize(false).ok()?;
            compressor.include_dictid(false).ok()?;
            compressor.include_checksum(false).ok()?;
            *slot = Some(compressor);
        }
        let frame = slot.as_mut()?.compress(bytes).ok()?;
        frame.strip_prefix(&ZSTD_MAGIC).map(<[u8]>::to_vec)
    })
}

fn decompress(frame: &[u8], length: usize) -> Option<Vec<u8>> {
    static DICTIONARY: OnceLock<DecoderDictionary<'static>> = OnceLock::new();
    thread_local! {
        static DECOMPRESSOR: RefCell<Option<(zstd::bulk::Decompressor<'static>, Vec<u8>)>> = const { RefCell::new(None) };
    }
    DECOMPRESSOR.with_borrow_mut(|slot| {
        if slot.is_none() {
            let dictionary = DICTIONARY.get_or_init(|| DecoderDictionary::copy(DICTIONARY_1));
            let decompressor = zstd::bulk::Decompressor::with_prepared_dictionary(dictionary).ok()?;
            *slot = Some((decompressor, Vec::new()));
        }
        let (decompressor, whole) = slot.as_mut()?;
        whole.clear();
        whole.extend_from_slice(&ZSTD_MAGIC);
        whole.extend_from_slice(frame);
        let plain = decompressor.decompress(whole, length).ok()?;
        // Kept for the next frame unless an unusually long one stretched it.
        if whole.capacity() > 16 * 1024 {
            *whole = Vec::new();
        }
        (plain.len() == length).then_some(plain)
    })
}

#[cfg(test)]
mod tests;

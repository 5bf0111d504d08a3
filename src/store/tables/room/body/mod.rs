//! An event's JSON as it is stored: without the parts that the event's row has already, random bytes as bytes, the rest
//! compressed under the shipped dictionary.
//!
//! Canonical JSON has no control characters, so each of them can stand for something else here: the sender's id, the
//! auth events' ids, the next sixty-four bytes as a signature. A control character is restored to exactly the bytes it
//! replaced; text that differs from the row's values stays as it is. The first byte is the form of the rest, so that a
//! later dictionary or encoding can coexist with this one.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use memchr::memmem;
use sha2::{Digest, Sha256};

use crate::store::row_encoding::{Unpack, put_u64};

mod block;

/// Low bits of the first byte: the bytes as they came; the shortened text; the shortened text under the dictionary.
const WHOLE: u8 = 0;
const SHORT: u8 = 1;
const UNDER_DICTIONARY_1: u8 = 2;
const FORM_MASK: u8 = 0x07;
/// High bits: how many times 32 raw bytes stand in front of the text. The highest value says that a number follows.
const RAW_SHIFT: u8 = 3;
const RAW_MORE: u8 = 31;
const RAW_UNIT: usize = 32;

/// The meaning of a control character in the shortened text. On disk: never renumber.
mod word {
    /// The server of the sender, without quotes.
    pub const SERVER: u8 = 1;
    /// Strings, with their quotes.
    pub const SENDER: u8 = 2;
    pub const TARGET: u8 = 3;
    pub const ROOM: u8 = 4;
    /// Numbers.
    pub const DEPTH: u8 = 5;
    pub const TIME: u8 = 6;
    /// The list of the auth events' ids.
    pub const AUTH: u8 = 7;
    /// The object with the event's own hash, which is computed again.
    pub const HASHES: u8 = 8;
    /// The next 32 raw bytes, URL-safe: the part of an event id after its `$`.
    pub const HASH: u8 = 9;
    /// The next 64 raw bytes as a string.
    pub const SIGNATURE: u8 = 10;
    pub const END: u8 = 0x20;
}

/// No stored event is longer; a length in a row beyond it is corruption (the specification's limit is 65,536 bytes).
pub const BODY_BYTES_MAX: usize = 128 * 1024;
/// A server's name shorter than this is not worth a control character.
const SERVER_BYTES_MIN: usize = 4;

/// The contents of an event's row, in words. The same when packing and when unpacking.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    pub room_id: &'a str,
    pub sender: &'a str,
    /// The user of a membership. Empty for other events.
    pub target: &'a str,
    pub depth: u64,
    /// Unix milliseconds.
    pub origin_server_ts: u64,
    /// The ids of the row's auth events, in the row's order; empty when one of them is not stored.
    pub auth: &'a [&'a str],
}

/// The parts of [`Known`] that an event needs when it is unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wants(u32);

impl Wants {
    pub const ALL: Wants = Wants(u32::MAX);

    pub fn room_id(self) -> bool {
        self.any(&[word::ROOM])
    }
    pub fn sender(self) -> bool {
        self.any(&[word::SENDER, word::SERVER])
    }
    pub fn target(self) -> bool {
        self.any(&[word::TARGET])
    }
    pub fn auth(self) -> bool {
        self.any(&[word::AUTH])
    }

    /// Those of them that [`Opened::restore_shown`] needs.
    pub fn of_shown(self) -> Wants {
        Wants(self.0 & !(1 << word::ROOM | 1 << word::AUTH))
    }

    fn any(self, words: &[u8]) -> bool {
        words.iter().any(|word| self.0 & 1 << word != 0)
    }
}

/// Packs an event's canonical JSON for the body table. `intact`: the content hash in it was found right; otherwise the
/// hash is computed here.
pub fn encode(canonical: &[u8], known: &Known<'_>, intact: bool) -> Vec<u8> {
    let mut stored = Vec::with_capacity(canonical.len() / 2 + 64);
    if canonical.iter().fold(false, |found, byte| found | (*byte < word::END)) {
        stored.push(WHOLE);
        stored.extend_from_slice(canonical);
        return stored;
    }
    let mut short = Short { known, server: None, text: Vec::with_capacity(canonical.len()), raw: Vec::new() };
    short.event(canonical, intact);
    let Short { text, raw, .. } = short;
    let block = block::compress(&text).filter(|block| block.len() + 1 < text.len());
    let form = if block.is_some() { UNDER_DICTIONARY_1 } else { SHORT };
    let units = raw.len() / RAW_UNIT;
    stored.push(form | (units.min(RAW_MORE.into()) as u8) << RAW_SHIFT);
    if units >= RAW_MORE.into() {
        put_u64(&mut stored, units as u64);
    }
    stored.extend_from_slice(&raw);
    match block {
        Some(block) => {
            put_u64(&mut stored, text.len() as u64);
            stored.extend_from_slice(&block);
        }
        None => stored.extend_from_slice(&text),
    }
    stored
}

/// A stored event, decompressed.
pub struct Opened<'a> {
    form: u8,
    raw: &'a [u8],
    text: Vec<u8>,
}

/// Takes the result of [`encode`] apart. `None` when the bytes are not ours.
pub fn open(stored: &[u8]) -> Option<Opened<'_>> {
    let mut unpack = Unpack::new(stored);
    let first = unpack.u8()?;
    let form = first & FORM_MASK;
    if form == WHOLE {
        return Some(Opened { form, raw: &[], text: unpack.rest().to_vec() });
    }
    let units = match first >> RAW_SHIFT {
        RAW_MORE => usize::try_from(unpack.u64()?).ok().filter(|units| *units <= BODY_BYTES_MAX)?,
        units => units.into(),
    };
    let raw = unpack.take(units * RAW_UNIT)?;
    let text = match form {
        SHORT => unpack.rest().to_vec(),
        UNDER_DICTIONARY_1 => {
            let length = usize::try_from(unpack.u64()?).ok().filter(|length| *length <= BODY_BYTES_MAX)?;
            block::decompress(unpack.rest(), length)?
        }
        _ => return None,
    };
    Some(Opened { form, raw, text })
}

/// [`open`] and [`Opened::restore`] for a caller that has everything at hand.
pub fn decode(stored: &[u8], known: &Known<'_>) -> Option<Vec<u8>> {
    open(stored)?.restore(known)
}

impl Opened<'_> {
    /// The values needed to restore it; the caller need not look the rest up.
    pub fn wants(&self) -> Wants {
        match self.form {
            WHOLE => Wants(0),
            _ => Wants(self.text.iter().filter(|byte| **byte < word::END).fold(0, |all, word| all | 1 << word)),
        }
    }

    /// The event's canonical JSON, exactly. `None` when the bytes are not ours.
    pub fn restore(self, known: &Known<'_>) -> Option<Vec<u8>> {
        self.written(known, true)
    }

    /// The same with nothing in the room's id, the list of auth events, the hashes and the signatures, and without
    /// computing them: for reading the members that apps are shown. `known` needs no room and no auth events.
    pub fn restore_shown(self, known: &Known<'_>) -> Option<Vec<u8>> {
        self.written(known, false)
    }

    fn written(self, known: &Known<'_>, is_whole: bool) -> Option<Vec<u8>> {
        if self.form == WHOLE {
            return Some(self.text);
        }
        let mut raw = self.raw;
        let mut out = Vec::with_capacity(self.text.len() + raw.len() * 3 / 2 + known.auth.len() * 48 + 320);
        let mut hash_at = None;
        let mut from = 0;
        for (at, word) in self.text.iter().copied().enumerate().filter(|(_, byte)| *byte < word::END) {
            out.extend_from_slice(&self.text[from..at]);
            from = at + 1;
            match word {
                word::SERVER => out.extend_from_slice(server_of(known.sender).as_bytes()),
                word::SENDER => quote(&mut out, known.sender),
                word::TARGET => quote(&mut out, known.target),
                word::ROOM if !is_whole => out.extend_from_slice(b"\"\""),
                word::ROOM => quote(&mut out, known.room_id),
                word::DEPTH => out.extend_from_slice(decimal(known.depth, &mut [0; 20])),
                word::TIME => out.extend_from_slice(decimal(known.origin_server_ts, &mut [0; 20])),
                word::AUTH if !is_whole => out.extend_from_slice(b"[]"),
                word::HASHES if !is_whole => out.extend_from_slice(b"{}"),
                word::SIGNATURE if !is_whole => {
                    (_, raw) = raw.split_first_chunk::<64>()?;
                    out.extend_from_slice(b"\"\"");
                }
                word::AUTH => put_list(&mut out, known.auth),
                word::HASHES => {
                    out.extend_from_slice(HASHES_HEAD);
                    hash_at = Some(out.len());
                    out.extend_from_slice(&[b'A'; HASH_CHARS]);
                    out.extend_from_slice(HASHES_TAIL);
                }
                word::HASH => {
                    let (hash, rest) = raw.split_first_chunk::<32>()?;
                    raw = rest;
                    append_base64(&mut out, hash, HASH_CHARS, &URL_SAFE_NO_PAD);
                }
                word::SIGNATURE => {
                    let (signature, rest) = raw.split_first_chunk::<64>()?;
                    raw = rest;
                    out.push(b'"');
                    append_base64(&mut out, signature, SIGNATURE_CHARS, &STANDARD_NO_PAD);
                    out.push(b'"');
                }
                _ => return None,
            }
            // Our own rows never come near this limit; other bytes are not expanded.
            if out.len() > BODY_BYTES_MAX {
                return None;
            }
        }
        out.extend_from_slice(&self.text[from..]);
        if let Some(at) = hash_at {
            let hash = content_hash(&out);
            STANDARD_NO_PAD.encode_slice(hash, &mut out[at..at + HASH_CHARS]).ok()?;
        }
        raw.is_empty().then_some(out)
    }
}

/// Characters of 32 and of 64 bytes in unpadded base64.
const HASH_CHARS: usize = 43;
const SIGNATURE_CHARS: usize = 86;
const HASHES_HEAD: &[u8] = b"{\"sha256\":\"";
const HASHES_TAIL: &[u8] = b"\"}";

/// An event on its way to its shortened text.
struct Short<'a> {
    known: &'a Known<'a>,
    /// Looks for the sender's server, when its name is long enough.
    server: Option<memmem::Finder<'a>>,
    text: Vec<u8>,
    raw: Vec<u8>,
}

impl Short<'_> {
    fn event(&mut self, canonical: &[u8], intact: bool) {
        let server = server_of(self.known.sender);
        self.server = (server.len() >= SERVER_BYTES_MIN).then(|| memmem::Finder::new(server));
        let (mut from, mut has_hashes) = (0, false);
        for field in fields(canonical) {
            self.text.extend_from_slice(&canonical[from..field.value_start]);
            from = field.value_start + field.value.len();
            let is_hashes = field.name == b"hashes" && !std::mem::replace(&mut has_hashes, true);
            if is_hashes && is_own_hash(field.value, canonical, intact) {
                self.text.push(word::HASHES);
            } else {
                self.field(&field);
            }
        }
        // All of it when it is no object.
        self.text.extend_from_slice(&canonical[from..]);
    }

    fn field(&mut self, field: &Field<'_>) {
        let (known, value) = (self.known, field.value);
        let word = match field.name {
            b"auth_events" if is_list_of(value, known.auth) => word::AUTH,
            b"depth" if value == decimal(known.depth, &mut [0; 20]) => word::DEPTH,
            b"origin_server_ts" if value == decimal(known.origin_server_ts, &mut [0; 20]) => word::TIME,
            b"room_id" if is_quoted(value, known.room_id) => word::ROOM,
            b"sender" | b"state_key" if is_quoted(value, known.sender) => word::SENDER,
            b"state_key" if is_quoted(value, known.target) => word::TARGET,
            b"signatures" => return self.signatures(value),
            _ => return self.value(value),
        };
        self.text.push(word);
    }

    /// A value with the sender's server and event ids in it.
    fn value(&mut self, value: &[u8]) {
        let Some(server) = self.server.take() else { return self.ids(value) };
        let mut from = 0;
        for at in server.find_iter(value) {
            self.ids(&value[from..at]);
            self.text.push(word::SERVER);
            from = at + server.needle().len();
        }
        self.ids(&value[from..]);
        self.server = Some(server);
    }

    fn ids(&mut self, value: &[u8]) {
        let mut from = 0;
        for at in memchr::memchr_iter(b'$', value) {
            let mut hash = [0; 33];
            if let Some(chars) = value.get(at + 1..at + 1 + HASH_CHARS)
                && at >= from
                && URL_SAFE_NO_PAD.decode_slice(chars, &mut hash) == Ok(32)
            {
                self.text.extend_from_slice(&value[from..=at]);
                self.text.push(word::HASH);
                self.raw.extend_from_slice(&hash[..32]);
                from = at + 1 + HASH_CHARS;
            }
        }
        self.text.extend_from_slice(&value[from..]);
    }

    fn signatures(&mut self, value: &[u8]) {
        let mut from = 0;
        while let Some(at) = memchr::memchr(b'"', &value[from..]).map(|at| from + at)
            && let Some(end) = string_end(value, at)
        {
            let mut signature = [0; 66];
            let string = &value[at + 1..end - 1];
            if string.len() == SIGNATURE_CHARS && STANDARD_NO_PAD.decode_slice(string, &mut signature) == Ok(64) {
                self.text.extend_from_slice(&value[from..at]);
                self.text.push(word::SIGNATURE);
                self.raw.extend_from_slice(&signature[..64]);
            } else {
                self.value(&value[from..end]);
            }
            from = end;
        }
        self.text.extend_from_slice(&value[from..]);
    }
}

fn server_of(user_id: &str) -> &str {
    user_id.split_once(':').map_or("", |(_, server)| server)
}

fn is_quoted(value: &[u8], text: &str) -> bool {
    let inner = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
    !text.is_empty() && inner == Some(text.as_bytes())
}

fn quote(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

/// A number as canonical JSON writes it.
fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}

fn append_base64(out: &mut Vec<u8>, bytes: &[u8], chars: usize, engine: &impl base64::Engine) {
    let start = out.len();
    out.resize(start + chars, 0);
    engine.encode_slice(bytes, &mut out[start..]).expect("the length is that of these bytes in base64");
}

fn is_list_of(array: &[u8], ids: &[&str]) -> bool {
    let mut rest = array;
    for (at, id) in ids.iter().enumerate() {
        let opening: &[u8] = if at == 0 { b"[\"" } else { b",\"" };
        let after = rest.strip_prefix(opening).and_then(|rest| rest.strip_prefix(id.as_bytes()));
        let Some(after) = after.and_then(|rest| rest.strip_prefix(b"\"")) else { return false };
        rest = after;
    }
    !ids.is_empty() && rest == b"]"
}

fn put_list(out: &mut Vec<u8>, ids: &[&str]) {
    out.push(b'[');
    for (at, id) in ids.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        quote(out, id);
    }
    out.push(b']');
}

/// Whether `hashes` holds the event's own hash and nothing else, written the one way it is restored.
fn is_own_hash(hashes: &[u8], event: &[u8], intact: bool) -> bool {
    let text = hashes.strip_prefix(HASHES_HEAD).and_then(|rest| rest.strip_suffix(HASHES_TAIL));
    let mut hash = [0; 33];
    text.is_some_and(|text| text.len() == HASH_CHARS && STANDARD_NO_PAD.decode_slice(text, &mut hash) == Ok(32))
        && (intact || hash[..32] == content_hash(event))
}

/// The SHA-256 over everything but `hashes`, `signatures` and `unsigned`.
fn content_hash(event: &[u8]) -> [u8; 32] {
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
    sha.finalize().into()
}

// ------------------------------------------------------------------------------------------------------------ fields

/// The `(name, value)` spans of a JSON object's top level, without building anything. The input is our own canonical
/// JSON, so it is not validated; a malformed one ends the iteration early.
fn fields(object: &[u8]) -> Fields<'_> {
    Fields { object, at: 1 }
}

struct Fields<'a> {
    object: &'a [u8],
    at: usize,
}

/// One field: its name without the quotes (escapes untouched), its value as JSON, and where the value stands.
struct Field<'a> {
    name: &'a [u8],
    value: &'a [u8],
    /// Offset of the name's opening quote.
    start: usize,
    /// Offset of the value's first byte.
    value_start: usize,
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

#[cfg(test)]
mod tests;

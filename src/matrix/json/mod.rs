//! Canonical JSON (specification appendix "Canonical JSON"): one pass from any JSON text, no tree.
//!
//! [`Canon`] copies a text into its canonical form, sorting an object's members only where they do not come sorted
//! already. The functions below it read canonical text in place: they trust its shape, never panic on a wrong one, and
//! find nothing in it instead.

use super::Reject;
pub use read::{integer, members, skip_string, text, unescape};
use std::cmp::Ordering;

pub mod partial;
pub mod read;

/// The depth limit of any text that is read here, in objects and arrays. Each level costs a bit, and an object twelve
/// bytes more: nothing recurses.
pub const DEPTH_MAX: u32 = 10_000;
/// The same limit for one event, or for other JSON that apps get beside other data: eight hundred levels in a member of
/// the content. Synapse takes about as many: Python's parser ends at a thousand, less the frames on the stack already.
/// JSON that Synapse could not read must not be passed on to it from here, among other events.
pub const EVENT_DEPTH_MAX: u32 = 802;
const INTEGER_MAX: i64 = (1 << 53) - 1;
/// Sorting an object copies all its content, once for each level above that is out of order too. This many bytes are
/// copied for any text: more than the largest event takes with all its levels out of order. For a long text, this many
/// times its length.
const MOVED_BYTES_MAX: u64 = 64 << 20;
const MOVED_TIMES_MAX: u64 = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Room versions 6 and later: integers within ±(2^53−1), no fraction, no exponent.
    Strict,
    /// Anything JSON allows. Numbers that are whole are written as integers, others in their shortest form.
    Lenient,
}

/// One member of the outermost object, as places in [`Canon::bytes`]: `"key":value` is `start..end`.
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    start: u32,
    /// Of the key, before its closing quote.
    key_end: u32,
    end: u32,
    key_escaped: bool,
}

impl Slot {
    pub fn key<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.start as usize + 1..self.key_end as usize]
    }
    pub fn value<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.key_end as usize + 2..self.end as usize]
    }
    /// Where the value stands.
    pub fn value_range(&self) -> (u32, u32) {
        (self.key_end + 2, self.end)
    }
}

/// The writer, with buffers that are used again and again. Holds at most the input's size twice, and some bytes for each
/// member of an object that is open.
#[derive(Default)]
pub struct Canon {
    out: Vec<u8>,
    slots: Vec<Slot>,
    scratch: Vec<u8>,
    levels: Levels,
    /// The objects round the innermost one.
    open: Vec<Open>,
}

/// The open levels: a bit for each, set for an object, the innermost in the lowest place. At most [`DEPTH_MAX`] of
/// them.
#[derive(Default)]
struct Levels {
    bits: u64,
    /// The levels outside of those, 64 together.
    outer: Vec<u64>,
    depth: u32,
    /// The greatest depth so far.
    deepest: u32,
}

impl Levels {
    fn clear(&mut self) {
        self.outer.clear();
        (self.bits, self.depth, self.deepest) = (0, 0, 0);
    }

    fn push(&mut self, is_object: bool) -> Result<(), Reject> {
        if self.depth > 0 && self.depth.is_multiple_of(64) {
            self.outer.push(self.bits);
        }
        self.bits = self.bits << 1 | u64::from(is_object);
        self.depth += 1;
        self.deepest = self.deepest.max(self.depth);
        if self.depth > DEPTH_MAX { Err(Reject::json("the JSON is nested too deeply")) } else { Ok(()) }
    }

    fn pop(&mut self) {
        self.depth -= 1;
        self.bits >>= 1;
        if self.depth.is_multiple_of(64) {
            self.bits = self.outer.pop().unwrap_or_default();
        }
    }

    /// Whether the innermost level is an object; none when no level is open.
    fn innermost(&self) -> Option<bool> {
        (self.depth > 0).then_some(self.bits & 1 == 1)
    }
}

/// An object that is being written.
#[derive(Clone, Copy, Default)]
struct Open {
    /// Where its members begin among [`Canon::slots`].
    base: u32,
    /// Where its text begins, behind the brace.
    begin: u32,
    /// Whether its keys came in order so far.
    sorted: bool,
}

/// A member that is read and left out.
struct Dropped {
    /// The end of the text before it.
    before: usize,
    mode: Mode,
    deepest: u32,
}

impl Canon {
    pub fn new() -> Canon {
        Canon::default()
    }

    /// Rewrites `raw`, any JSON value. Members of the outermost object named in `drop` are read (leniently) and left out.
    pub fn read(&mut self, raw: &[u8], mode: Mode, drop: &[&str]) -> Result<(), Reject> {
        let text = std::str::from_utf8(raw).map_err(|_| Reject::json("not UTF-8"))?;
        self.out.clear();
        self.slots.clear();
        self.levels.clear();
        self.open.clear();
        if raw.len() > u32::MAX as usize / 8 {
            return Err(Reject::too_large("the JSON text is too large"));
        }
        self.out.reserve(raw.len());
        let moves_left = MOVED_BYTES_MAX.max(raw.len() as u64 * MOVED_TIMES_MAX);
        let (object, dropped) = (Open::default(), None);
        let mut pass = Pass { input: text.as_bytes(), at: 0, mode, drop, object, dropped, moves_left, to: self };
        pass.value()?;
        if pass.token().is_some() { Err(Reject::json("there is text after the JSON value")) } else { Ok(()) }
    }

    /// The depth of the text read last, left-out members aside.
    pub fn deepest(&self) -> u32 {
        self.levels.deepest
    }

    /// The canonical form of the text read last.
    pub fn bytes(&self) -> &[u8] {
        &self.out
    }

    /// The outermost object's members in canonical order; empty when it is not an object.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub fn members(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.slots.iter().map(|s| (s.key(&self.out), s.value(&self.out)))
    }
}

/// Canonical form of any JSON text.
pub fn canonical(raw: &[u8], mode: Mode) -> Result<Vec<u8>, Reject> {
    let mut canon = Canon::new();
    canon.read(raw, mode, &[])?;
    Ok(canon.out)
}

/// The same for JSON that apps get beside other data: no deeper than an event.
pub fn canonical_shown(raw: &[u8], mode: Mode) -> Result<Vec<u8>, Reject> {
    let mut canon = Canon::new();
    canon.read(raw, mode, &[])?;
    if canon.deepest() > EVENT_DEPTH_MAX { Err(Reject::json("the JSON is nested too deeply")) } else { Ok(canon.out) }
}

/// Canonical form of a value of our own making or already parsed.
pub fn canonical_value(value: &serde_json::Value, mode: Mode) -> Result<Vec<u8>, Reject> {
    canonical(value.to_string().as_bytes(), mode)
}

struct Pass<'a> {
    input: &'a [u8],
    at: usize,
    mode: Mode,
    drop: &'a [&'a str],
    /// The innermost object.
    object: Open,
    dropped: Option<Dropped>,
    /// Bytes that may still be copied for the sake of order.
    moves_left: u64,
    to: &'a mut Canon,
}

/// Whether a byte can be copied as it is inside a string.
fn is_plain(byte: u8) -> bool {
    byte >= 0x20 && byte != b'"' && byte != b'\\'
}

/// The number of plain bytes in front; eight at a time, since most of the reading time is spent here.
fn plain_len(bytes: &[u8]) -> usize {
    const fn each(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    // The high bit of each byte below `n`, and of nothing in front of the first of them.
    let below = |eight: u64, n: u8| eight.wrapping_sub(each(n)) & !eight & each(0x80);
    let (eights, rest) = bytes.as_chunks::<8>();
    for (at, eight) in eights.iter().enumerate() {
        let eight = u64::from_le_bytes(*eight);
        let stops = below(eight, 0x20) | below(eight ^ each(b'"'), 1) | below(eight ^ each(b'\\'), 1);
        if stops != 0 {
            return at * 8 + stops.trailing_zeros() as usize / 8;
        }
    }
    eights.len() * 8 + rest.iter().position(|byte| !is_plain(*byte)).unwrap_or(rest.len())
}

impl Pass<'_> {
    /// A value, with all its content.
    fn value(&mut self) -> Result<(), Reject> {
        // Whether the innermost open level is an object.
        let mut inside = None;
        loop {
            match self.token() {
                Some(b'"') => drop(self.string()?),
                Some(b'{') if self.open_object()? => {
                    inside = Some(true);
                    continue;
                }
                Some(b'[') if self.open_array()? => {
                    inside = Some(false);
                    continue;
                }
                Some(b'{' | b'[') => {}
                _ => self.scalar()?,
            }
            loop {
                let Some(in_object) = inside else { return Ok(()) };
                if self.go_on(in_object)? {
                    break;
                }
                inside = self.to.levels.innermost();
            }
        }
    }

    fn scalar(&mut self) -> Result<(), Reject> {
        match self.peek() {
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            _ => Err(Reject::json("not a JSON value")),
        }
    }

    /// After a value in an object or array: moves to the next value (true), or closes the level that ends here (false).
    #[inline(always)]
    fn go_on(&mut self, in_object: bool) -> Result<bool, Reject> {
        if in_object {
            self.end_member();
        }
        match self.token() {
            Some(b',') => {
                self.at += 1;
                if in_object {
                    self.key()?;
                } else {
                    self.to.out.push(b',');
                }
                Ok(true)
            }
            Some(b'}') if in_object => self.close_object().map(|()| false),
            Some(b']') if !in_object => {
                self.close_array();
                Ok(false)
            }
            _ if in_object => Err(Reject::json("expected , or } in an object")),
            _ => Err(Reject::json("expected , or ] in an array")),
        }
    }

    /// Answers whether the object has a member; if so, moves to the first member's value.
    #[inline(always)]
    fn open_object(&mut self) -> Result<bool, Reject> {
        self.to.levels.push(true)?;
        self.at += 1;
        self.to.out.push(b'{');
        self.to.open.push(self.object);
        self.object = Open { base: self.to.slots.len() as u32, begin: self.to.out.len() as u32, sorted: true };
        if self.token() == Some(b'}') {
            self.close_object()?;
            return Ok(false);
        }
        self.key()?;
        Ok(true)
    }

    #[inline(always)]
    fn close_object(&mut self) -> Result<(), Reject> {
        let Open { base, begin, sorted } = self.object;
        self.at += 1;
        if !sorted {
            self.sort(base as usize, begin as usize)?;
        }
        self.to.out.push(b'}');
        self.to.levels.pop();
        self.object = self.to.open.pop().unwrap_or_default();
        if self.to.levels.depth > 0 {
            self.to.slots.truncate(base as usize);
        }
        Ok(())
    }

    /// Answers whether the array has an item.
    fn open_array(&mut self) -> Result<bool, Reject> {
        self.to.levels.push(false)?;
        self.at += 1;
        self.to.out.push(b'[');
        if self.token() == Some(b']') {
            self.close_array();
            return Ok(false);
        }
        Ok(true)
    }

    fn close_array(&mut self) {
        self.at += 1;
        self.to.out.push(b']');
        self.to.levels.pop();
    }

    /// The key of a member and the colon; the member ends in [`Pass::end_member`].
    #[inline(always)]
    fn key(&mut self) -> Result<(), Reject> {
        if self.token() != Some(b'"') {
            return Err(Reject::json("expected a key"));
        }
        let (base, before) = (self.object.base as usize, self.to.out.len());
        if self.to.slots.len() > base {
            self.to.out.push(b',');
        }
        let start = self.to.out.len();
        let key_escaped = self.string()?;
        let key_end = self.to.out.len() - 1;
        if self.token() != Some(b':') {
            return Err(Reject::json("expected : after a key"));
        }
        self.at += 1;
        self.to.out.push(b':');
        if self.to.levels.depth == 1 && self.drop.iter().any(|d| d.as_bytes() == &self.to.out[start + 1..key_end]) {
            let mode = std::mem::replace(&mut self.mode, Mode::Lenient);
            self.dropped = Some(Dropped { before, mode, deepest: self.to.levels.deepest });
            return Ok(());
        }
        self.to.slots.push(Slot { start: start as u32, key_end: key_end as u32, end: 0, key_escaped });
        if self.object.sorted
            && let [.., last, new] = &self.to.slots[base..]
        {
            self.object.sorted = compare(&self.to.out, last, new) == Ordering::Less;
        }
        Ok(())
    }

    fn end_member(&mut self) {
        if self.to.levels.depth == 1
            && let Some(dropped) = self.dropped.take()
        {
            self.mode = dropped.mode;
            self.to.levels.deepest = dropped.deepest;
            self.to.out.truncate(dropped.before);
            return;
        }
        let end = self.to.out.len() as u32;
        if let Some(slot) = self.to.slots.last_mut() {
            slot.end = end;
        }
    }

    /// Puts the members of one object, written from `begin` on, in order; of members with the same key the last stays, as
    /// every usual parser has it.
    fn sort(&mut self, base: usize, begin: usize) -> Result<(), Reject> {
        let Canon { out, slots, scratch, .. } = &mut *self.to;
        let moves_left = self.moves_left.checked_sub((out.len() - begin) as u64);
        self.moves_left = moves_left.ok_or_else(|| Reject::json("keys are out of order on too many levels"))?;
        slots[base..].sort_by(|a, b| compare(out, a, b)); // stable: equal keys stay in their order
        scratch.clear();
        let mut kept = base;
        for i in base..slots.len() {
            let slot = slots[i];
            if slots.get(i + 1).is_some_and(|next| compare(out, &slot, next) == Ordering::Equal) {
                continue;
            }
            if kept > base {
                scratch.push(b',');
            }
            let start = (begin + scratch.len()) as u32;
            scratch.extend_from_slice(&out[slot.start as usize..slot.end as usize]);
            let shift = |x: u32| x - slot.start + start;
            slots[kept] = Slot { start, key_end: shift(slot.key_end), end: shift(slot.end), ..slot };
            kept += 1;
        }
        slots.truncate(kept);
        out.truncate(begin);
        out.extend_from_slice(scratch);
        Ok(())
    }

    /// Copies a string; true if the copy holds escapes.
    fn string(&mut self) -> Result<bool, Reject> {
        let inside = self.at + 1;
        let run = plain_len(&self.input[inside..]);
        let end = inside + run;
        if self.input.get(end) == Some(&b'"') {
            self.to.out.extend_from_slice(&self.input[self.at..=end]);
            self.at = end + 1;
            return Ok(false);
        }
        self.odd_string()
    }

    fn odd_string(&mut self) -> Result<bool, Reject> {
        self.at += 1;
        self.to.out.push(b'"');
        let mut escaped = false;
        loop {
            let run = plain_len(&self.input[self.at..]);
            let end = self.input.get(self.at + run).ok_or_else(|| Reject::json("a string has no end"))?;
            self.to.out.extend_from_slice(&self.input[self.at..self.at + run]);
            self.at += run + 1;
            match end {
                b'"' => break,
                b'\\' => escaped |= self.escape()?,
                _ => return Err(Reject::json("control character in a string")),
            }
        }
        self.to.out.push(b'"');
        Ok(escaped)
    }

    fn escape(&mut self) -> Result<bool, Reject> {
        let sign = self.peek().ok_or_else(|| Reject::json("a string has no end"))?;
        self.at += 1;
        let c = match sign {
            b'"' | b'\\' => sign as char,
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => self.unicode()?,
            _ => return Err(Reject::json("unknown escape in a string")),
        };
        Ok(write_char(&mut self.to.out, c))
    }

    fn unicode(&mut self) -> Result<char, Reject> {
        let lone = || Reject::json("half a surrogate pair in a string");
        let first = self.hex4()?;
        if !(0xD800..0xE000).contains(&first) {
            return char::from_u32(first).ok_or_else(lone);
        }
        if first >= 0xDC00 || self.input.get(self.at..self.at + 2) != Some(b"\\u") {
            return Err(lone());
        }
        self.at += 2;
        let second = self.hex4()?;
        if !(0xDC00..0xE000).contains(&second) {
            return Err(lone());
        }
        char::from_u32(0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)).ok_or_else(lone)
    }

    fn hex4(&mut self) -> Result<u32, Reject> {
        let digits = self.input.get(self.at..self.at + 4).ok_or_else(|| Reject::json("a string has no end"))?;
        self.at += 4;
        digits.iter().try_fold(0, |n, d| {
            (*d as char).to_digit(16).map(|d| n * 16 + d).ok_or_else(|| Reject::json("wrong \\u escape"))
        })
    }

    fn number(&mut self) -> Result<(), Reject> {
        let start = self.at;
        let wrong = || Reject::json("not a JSON number");
        let negative = self.peek() == Some(b'-');
        self.at += negative as usize;
        let digits = self.digits();
        if digits == 0 || (digits > 1 && self.input[self.at - digits] == b'0') {
            return Err(wrong());
        }
        let whole = self.at;
        if self.peek() == Some(b'.') {
            self.at += 1;
            if self.digits() == 0 {
                return Err(wrong());
            }
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            self.at += matches!(self.peek(), Some(b'+' | b'-')) as usize;
            if self.digits() == 0 {
                return Err(wrong());
            }
        }
        let text = std::str::from_utf8(&self.input[start..self.at]).map_err(|_| wrong())?;
        if self.at == whole { self.integer(text) } else { self.float(text) }
    }

    fn integer(&mut self, text: &str) -> Result<(), Reject> {
        let short = text.len() <= 18;
        let fits = short && text.parse::<i64>().is_ok_and(|n| (-INTEGER_MAX..=INTEGER_MAX).contains(&n));
        if self.mode == Mode::Strict && !fits {
            return Err(Reject::json("integer beyond 2^53 - 1"));
        }
        self.to.out.extend_from_slice(if text == "-0" { b"0" } else { text.as_bytes() });
        Ok(())
    }

    /// Servers sign the text they send: Python's `1.0` and `1e-05` stay as they are. Only an integer written like the
    /// specification's `1e10` becomes an integer.
    fn float(&mut self, text: &str) -> Result<(), Reject> {
        if self.mode == Mode::Strict {
            return Err(Reject::json("a number with fraction or exponent"));
        }
        let number: f64 = text.parse().map_err(|_| Reject::json("not a JSON number"))?;
        if !number.is_finite() {
            return Err(Reject::json("number out of range"));
        }
        let exponent = text.split_once(['e', 'E']).map(|(_, exponent)| exponent);
        let is_integer = exponent.is_some_and(|exponent| !exponent.starts_with(['+', '-'])) && !text.contains('.');
        if is_integer && number.abs() <= INTEGER_MAX as f64 {
            self.to.out.extend_from_slice((number as i64).to_string().as_bytes());
        } else {
            self.to.out.extend_from_slice(text.as_bytes());
        }
        Ok(())
    }

    fn digits(&mut self) -> usize {
        let n = self.input[self.at..].iter().take_while(|b| b.is_ascii_digit()).count();
        self.at += n;
        n
    }

    fn word(&mut self, word: &'static [u8]) -> Result<(), Reject> {
        if !self.input[self.at..].starts_with(word) {
            return Err(Reject::json("not a JSON value"));
        }
        self.at += word.len();
        self.to.out.extend_from_slice(word);
        Ok(())
    }

    /// The next byte that is not blank.
    fn token(&mut self) -> Option<u8> {
        loop {
            let byte = *self.input.get(self.at)?;
            if byte > b' ' || !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.input.get(self.at).copied()
    }
}

/// Keys sort by Unicode code point, which is the order of their UTF-8 once unescaped.
fn compare(out: &[u8], a: &Slot, b: &Slot) -> Ordering {
    if a.key_escaped || b.key_escaped {
        unescape(a.key(out)).cmp(unescape(b.key(out)))
    } else {
        a.key(out).cmp(b.key(out))
    }
}

/// Writes one character of a string; true if it had to be escaped.
fn write_char(out: &mut Vec<u8>, c: char) -> bool {
    let short = match c {
        '"' => b'"',
        '\\' => b'\\',
        '\u{8}' => b'b',
        '\u{c}' => b'f',
        '\n' => b'n',
        '\r' => b'r',
        '\t' => b't',
        c if (c as u32) < 0x20 => {
            const HEX: &[u8; 16] = b"0123456789abcdef";
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', b'0' + (c as u8 >> 4), HEX[c as usize & 15]]);
            return true;
        }
        c => {
            out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            return false;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
    true
}

/// Appends `text` as a JSON string, quotes included, in canonical form.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    if plain_len(text.as_bytes()) == text.len() {
        out.extend_from_slice(text.as_bytes());
    } else {
        for c in text.chars() {
            write_char(out, c);
        }
    }
    out.push(b'"');
}

// ---- Reading canonical text in place ----

/// Whether a JSON text is nested more than `most` levels deep.
pub fn is_deeper_than(text: &[u8], most: u32) -> bool {
    let (mut depth, mut at) = (0u32, 0);
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => {
                let Some(length) = skip_string(&text[at..]) else { return false };
                at += length;
                continue;
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > most {
            return true;
        }
        at += 1;
    }
    false
}

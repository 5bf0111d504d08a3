//! JSON that others wrote, read in place.

use std::borrow::Cow;
use std::ops::Range;

use super::plain_len;

/// The members of a canonical object, in order: key without quotes and still escaped, and the value's text.
pub fn members(object: &[u8]) -> Members<'_> {
    Members { rest: object.strip_prefix(b"{").unwrap_or(b"") }
}

pub struct Members<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Members<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.rest.iter().position(|b| *b == b'"')?;
        let rest = &self.rest[start..];
        let key_end = skip_string(rest)?;
        let value = rest.get(key_end + 1..)?;
        let end = skip_value(value)?;
        self.rest = &value[end..];
        Some((&rest[1..key_end - 1], &value[..end]))
    }
}

/// The items of a canonical array.
pub fn items(array: &[u8]) -> Items<'_> {
    Items { rest: array.strip_prefix(b"[").unwrap_or(b"]") }
}

#[derive(Clone)]
pub struct Items<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Items<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest.strip_prefix(b",").unwrap_or(self.rest);
        if rest.first().is_none_or(|b| *b == b']') {
            return None;
        }
        let end = skip_value(rest)?;
        self.rest = &rest[end..];
        Some(&rest[..end])
    }
}

/// The value under `key` of a canonical object. `key` must need no escapes.
pub fn get<'a>(object: &'a [u8], key: &str) -> Option<&'a [u8]> {
    members(object).find(|(k, _)| *k == key.as_bytes()).map(|(_, v)| v)
}

/// The place of the value of a top-level member, in an object from elsewhere: any order, but without blanks between its
/// tokens. `key` must need no escapes. None when there is no such member or the text has another form.
pub fn compact_member(object: &[u8], key: &str) -> Option<Range<usize>> {
    let (mut at, mut found) = (1, None);
    if object.first() != Some(&b'{') {
        return None;
    }
    loop {
        let rest = object.get(at..).filter(|rest| rest.first() == Some(&b'"'))?;
        let key_end = skip_string(rest)?;
        let value = rest.get(key_end..)?.strip_prefix(b":").filter(|value| !value.starts_with(b" "))?;
        let start = at + key_end + 1;
        at = start + skip_value(value)?;
        if &rest[1..key_end - 1] == key.as_bytes() && found.replace(start..at).is_some() {
            return None;
        }
        match object.get(at)? {
            b',' => at += 1,
            b'}' if at + 1 == object.len() => return found,
            _ => return None,
        }
    }
}

/// The value under a path of keys.
pub fn get_path<'a>(object: &'a [u8], path: &[&str]) -> Option<&'a [u8]> {
    path.iter().try_fold(object, |at, key| get(at, key))
}

/// A canonical string's text; none when the value is something else.
pub fn text(value: &[u8]) -> Option<Cow<'_, str>> {
    let inner = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if !inner.contains(&b'\\') {
        return std::str::from_utf8(inner).ok().map(Cow::Borrowed);
    }
    String::from_utf8(unescape(inner).collect()).ok().map(Cow::Owned)
}

/// A canonical string under `key`.
pub fn get_text<'a>(object: &'a [u8], key: &str) -> Option<Cow<'a, str>> {
    get(object, key).and_then(text)
}

/// The keys of a path as filters and push rules write it: dots between, `\.` for a dot in a key and `\\` for a backslash;
/// before anything else a backslash is itself.
pub fn dot_path(path: &str) -> Vec<String> {
    let mut keys = vec![String::new()];
    let mut chars = path.chars().peekable();
    while let Some(c) = chars.next() {
        let last = keys.last_mut().expect("there is always a last key");
        match c {
            '.' => keys.push(String::new()),
            '\\' if matches!(chars.peek(), Some('.' | '\\')) => last.extend(chars.next()),
            c => last.push(c),
        }
    }
    keys
}

/// A canonical integer; none when it is something else or beyond 64 bits.
pub fn integer(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// The bytes of a canonical string's inside without its escapes. Canonical text escapes nothing beyond ASCII.
pub fn unescape(inner: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let mut rest = inner.iter().copied();
    std::iter::from_fn(move || {
        let b = rest.next()?;
        if b != b'\\' {
            return Some(b);
        }
        Some(match rest.next()? {
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                let mut hex = |_| rest.next().and_then(|d| (d as char).to_digit(16)).unwrap_or(0) as u8;
                (0..4).map(&mut hex).fold(0u8, |n, d| n.wrapping_shl(4) | d)
            }
            other => other,
        })
    })
}

/// Where the value at the start of `text` ends; none where no value starts.
pub fn skip_value(text: &[u8]) -> Option<usize> {
    match text.first()? {
        b'"' => skip_string(text),
        b'{' | b'[' => skip_nested(text),
        b',' | b'}' | b']' => None,
        _ => Some(text.iter().position(|b| matches!(b, b',' | b'}' | b']')).unwrap_or(text.len())),
    }
}

fn skip_nested(text: &[u8]) -> Option<usize> {
    let (mut depth, mut at) = (0usize, 0);
    loop {
        match text.get(at)? {
            b'"' => {
                at += skip_string(&text[at..])?;
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

/// Past the closing quote of the string at the start of `text`.
pub fn skip_string(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        at += plain_len(text.get(at..)?);
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

//! JSON written two ways: canonical, for hashing and signing, and as careless servers send it.

use super::random::Stream;
use std::borrow::Cow;

pub type Text = Cow<'static, str>;

/// A value small enough to hold in memory; a map keeps the order it was written in.
#[derive(Clone, Debug)]
pub enum Json {
    Null,
    Bool(bool),
    Int(i64),
    Text(Text),
    List(Vec<Json>),
    Map(Vec<(Text, Json)>),
}

impl From<&'static str> for Json {
    fn from(text: &'static str) -> Json {
        Json::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Json {
    fn from(text: String) -> Json {
        Json::Text(Cow::Owned(text))
    }
}

impl From<i64> for Json {
    fn from(number: i64) -> Json {
        Json::Int(number)
    }
}

impl From<bool> for Json {
    fn from(yes: bool) -> Json {
        Json::Bool(yes)
    }
}

impl From<Vec<Json>> for Json {
    fn from(list: Vec<Json>) -> Json {
        Json::List(list)
    }
}

/// A map from pairs whose keys are known when this is compiled.
pub fn map<const N: usize>(pairs: [(&'static str, Json); N]) -> Json {
    Json::Map(pairs.into_iter().map(|(key, value)| (Cow::Borrowed(key), value)).collect())
}

impl Json {
    /// Adds a pair; the key must be new.
    pub fn set(&mut self, key: impl Into<Text>, value: impl Into<Json>) {
        let Json::Map(pairs) = self else { panic!("only a map has keys") };
        pairs.push((key.into(), value.into()));
    }

    pub fn get(&self, key: &str) -> Option<&Json> {
        let Json::Map(pairs) = self else { return None };
        pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Keys sorted by code point, no white space, the shortest escapes.
    pub fn write_canonical(&self, out: &mut Vec<u8>) {
        match self {
            Json::Null => out.extend_from_slice(b"null"),
            Json::Bool(yes) => out.extend_from_slice(if *yes { b"true" } else { b"false" }),
            Json::Int(number) => out.extend_from_slice(number.to_string().as_bytes()),
            Json::Text(text) => write_text(text, out),
            Json::List(list) => {
                out.push(b'[');
                for (i, item) in list.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    item.write_canonical(out);
                }
                out.push(b']');
            }
            Json::Map(pairs) => {
                let mut order: Vec<&(Text, Json)> = pairs.iter().collect();
                order.sort_unstable_by(|a, b| a.0.cmp(&b.0));
                out.push(b'{');
                for (i, (key, value)) in order.into_iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    write_text(key, out);
                    out.push(b':');
                    value.write_canonical(out);
                }
                out.push(b'}');
            }
        }
    }

    pub fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256);
        self.write_canonical(&mut out);
        out
    }

    /// The same value with keys in another order and, when `manners` says so, spaces and needless escapes.
    pub fn write_careless(&self, manners: &mut Manners, out: &mut Vec<u8>) {
        match self {
            Json::Text(text) if manners.escape_all => write_text_escaped(text, out),
            Json::List(list) => {
                out.push(b'[');
                for (i, item) in list.iter().enumerate() {
                    if i > 0 {
                        out.extend_from_slice(manners.comma());
                    }
                    item.write_careless(manners, out);
                }
                out.push(b']');
            }
            Json::Map(pairs) => {
                let start = manners.stream.below(pairs.len().max(1));
                out.push(b'{');
                for i in 0..pairs.len() {
                    if i > 0 {
                        out.extend_from_slice(manners.comma());
                    }
                    let (key, value) = &pairs[(start + i) % pairs.len()];
                    write_text(key, out);
                    out.extend_from_slice(manners.colon());
                    value.write_careless(manners, out);
                }
                out.push(b'}');
            }
            plain => plain.write_canonical(out),
        }
    }
}

/// How one event is written for the wire.
pub struct Manners {
    pub stream: Stream,
    pub spaces: bool,
    pub escape_all: bool,
}

impl Manners {
    pub fn new(mut stream: Stream) -> Manners {
        let spaces = stream.chance(0.02);
        let escape_all = stream.chance(0.05);
        Manners { stream, spaces, escape_all }
    }

    pub fn comma(&self) -> &'static [u8] {
        if self.spaces { b" ,\n " } else { b"," }
    }

    pub fn colon(&self) -> &'static [u8] {
        if self.spaces { b" :\t" } else { b":" }
    }
}

/// A string as canonical JSON has it: two-character escapes where they exist, `\u00xx` for other control characters.
pub fn write_text(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut done = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&bytes[done..at]);
        done = at + 1;
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x09 => out.extend_from_slice(b"\\t"),
            0x0a => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            0x0d => out.extend_from_slice(b"\\r"),
            other => out.extend_from_slice(format!("\\u{other:04x}").as_bytes()),
        }
    }
    out.extend_from_slice(&bytes[done..]);
    out.push(b'"');
}

/// Legal, and what no canonical writer does: everything beyond ASCII as `\u` pairs, solidus escaped.
fn write_text_escaped(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for c in text.chars() {
        match c {
            '/' => out.extend_from_slice(b"\\/"),
            '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
            ' '..='~' => out.push(c as u8),
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    out.extend_from_slice(format!("\\u{unit:04X}").as_bytes());
                }
            }
        }
    }
    out.push(b'"');
}

//! JSON that need not be JSON: a tree of raw texts, and the many ways in which it is made odd.
//!
//! A tree is written as it stands, so that it can hold what no careful writer lets through: numbers that are none, halves of
//! surrogate pairs, bytes that are not UTF-8, a key twice.

use super::lab::json::write_text;
use super::lab::random::Stream;
use serde_json::Value;

#[derive(Clone, Debug, PartialEq)]
pub enum Tree {
    /// A text, a number or a word, as it is written.
    Raw(Vec<u8>),
    List(Vec<Tree>),
    /// Keys are written as they stand, quotes included.
    Map(Vec<(Vec<u8>, Tree)>),
}

/// Values that readers trip over.
const ODD: &[&str] = &[
    "null",
    "true",
    "false",
    "0",
    "-1",
    "1",
    "-0",
    "1.5",
    "1e3",
    "1E400",
    "-1e-400",
    "9007199254740991",
    "9007199254740992",
    "-9007199254740992",
    "2147483648",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775808",
    "-9223372036854775809",
    "18446744073709551615",
    "18446744073709551616",
    "340282366920938463463374607431768211456",
    "[]",
    "{}",
    "[[]]",
    "[{}]",
    "{\"\":null}",
    "{\"\":{\"\":{}}}",
    "[null]",
    "\"\"",
    "\" \"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"\\udc00\\ud800\"",
    "\"\\ud83d\\ude00\"",
    "\"\\uFFFF\"",
    "\"*\"",
    "\".\"",
    "\"..\"",
    "\"/\"",
    "\"@:\"",
    "\"!:\"",
    "\"#:\"",
    "\"$\"",
    "\"@\"",
    "\"!\"",
    "\"$a:b\"",
    "\"@a:b\"",
    "\"!a:b\"",
    "\"@a\"",
    "\"m.room.member\"",
    "\"m.room.create\"",
    "\"m.room.power_levels\"",
    "\"join\"",
    "\"leave\"",
    "\"ban\"",
    "\"invite\"",
    "\"knock\"",
    "\"restricted\"",
    "\"100\"",
    "\" 100\"",
    "\"1e2\"",
    "\"-1\"",
    "\"ed25519:\"",
    "\"ed25519:1\"",
    "\"mxc://\"",
    "\"mxc://a/b\"",
    "\"signed_curve25519:A\"",
    "\"127.0.0.1\"",
    "\"[::1]:8448\"",
    "\"a:99999\"",
    "\"\u{202e}\"",
    "\"\u{fdfa}\"",
    "\"e\u{301}\"",
];

/// What is no JSON.
const NO_JSON: &[&str] =
    &["NaN", "Infinity", "-", "01", "0x10", "1.", ".5", "\"\\x\"", "\"\n\"", "\"\u{0}\"", "\"a", "", "nul", "[1,]"];

/// Keys that mean something somewhere.
const KEYS: &[&str] = &[
    "type",
    "content",
    "state_key",
    "sender",
    "room_id",
    "event_id",
    "depth",
    "prev_events",
    "auth_events",
    "hashes",
    "signatures",
    "unsigned",
    "origin",
    "origin_server_ts",
    "redacts",
    "membership",
    "displayname",
    "avatar_url",
    "third_party_invite",
    "join_authorised_via_users_server",
    "m.relates_to",
    "m.new_content",
    "rel_type",
    "users",
    "events",
    "users_default",
    "events_default",
    "state_default",
    "notifications",
    "allow",
    "join_rule",
    "creator",
    "additional_creators",
    "room_version",
    "predecessor",
    "m.federate",
    "auth",
    "session",
    "user",
    "password",
    "device_id",
    "limit",
    "since",
    "filter",
    "room",
    "timeline",
    "types",
    "not_types",
    "rooms",
    "lazy_load_members",
    "conditions",
    "actions",
    "pattern",
    "pdus",
    "edus",
    "edu_type",
    "deleted",
    "keys",
    "device_keys",
    "one_time_keys",
    "fallback_keys",
    "algorithms",
    "usage",
    "valid_until_ts",
    "verify_keys",
    "old_verify_keys",
    "",
    "__proto__",
    "prev_state",
    "age",
    "age_ts",
    "replaces_state",
    "prev_content",
    "invite_room_state",
    "knock_room_state",
    "members_omitted",
    "servers_in_room",
    "thread_id",
    "m.mentions",
    "room_ids",
    "user_ids",
    "body",
    "msgtype",
    "via",
    "deny",
    "allow_ip_literals",
];

const DEPTHS: &[usize] = &[3, 20, 63, 90, 98, 99, 100, 101, 127, 128, 129, 200, 500, 799, 800, 3000];
const LENGTHS: &[usize] = &[16, 127, 128, 254, 255, 256, 257, 512, 1024, 4096, 65_535, 70_000];

impl Tree {
    pub fn text(text: &str) -> Tree {
        Tree::Raw(quoted(text))
    }

    pub fn number(number: impl std::fmt::Display) -> Tree {
        Tree::Raw(number.to_string().into_bytes())
    }

    pub fn list(items: impl IntoIterator<Item = Tree>) -> Tree {
        Tree::List(items.into_iter().collect())
    }

    pub fn map<const N: usize>(pairs: [(&str, Tree); N]) -> Tree {
        Tree::Map(pairs.into_iter().map(|(key, value)| (quoted(key), value)).collect())
    }

    /// A value with `<names>` in its texts replaced; `<<name>>` as a whole text becomes a bare number or word.
    pub fn filled(value: &Value, fill: &mut dyn FnMut(&str) -> String) -> Tree {
        match value {
            Value::String(text) => match text.strip_prefix("<<").and_then(|rest| rest.strip_suffix(">>")) {
                Some(name) => Tree::Raw(fill(name).into_bytes()),
                None => Tree::text(&fill_text(text, fill)),
            },
            Value::Array(list) => Tree::list(list.iter().map(|item| Tree::filled(item, fill))),
            Value::Object(map) => Tree::Map(
                map.iter().map(|(key, value)| (quoted(&fill_text(key, fill)), Tree::filled(value, fill))).collect(),
            ),
            plain => Tree::Raw(plain.to_string().into_bytes()),
        }
    }

    pub fn of(value: &Value) -> Tree {
        match value {
            Value::String(text) => Tree::text(text),
            Value::Array(list) => Tree::list(list.iter().map(Tree::of)),
            Value::Object(map) => Tree::Map(map.iter().map(|(key, value)| (quoted(key), Tree::of(value))).collect()),
            plain => Tree::Raw(plain.to_string().into_bytes()),
        }
    }

    pub fn get(&self, key: &str) -> Option<&Tree> {
        let Tree::Map(pairs) = self else { return None };
        pairs.iter().rev().find(|(name, _)| *name == quoted(key)).map(|(_, value)| value)
    }

    /// Adds a pair or replaces it; what is no map stays as it is.
    pub fn set(&mut self, key: &str, value: Tree) {
        if let Tree::Map(pairs) = self {
            let key = quoted(key);
            pairs.retain(|(name, _)| *name != key);
            pairs.push((key, value));
        }
    }

    pub fn without(&self, keys: &[&str]) -> Tree {
        let Tree::Map(pairs) = self else { return self.clone() };
        let gone: Vec<Vec<u8>> = keys.iter().map(|key| quoted(key)).collect();
        Tree::Map(pairs.iter().filter(|(key, _)| !gone.contains(key)).cloned().collect())
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out, false);
        out
    }

    /// The canonical form, as far as there is one: keys in order, the last of two alike.
    pub fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out, true);
        out
    }

    fn write(&self, out: &mut Vec<u8>, canonical: bool) {
        match self {
            Tree::Raw(raw) => out.extend_from_slice(raw),
            Tree::List(list) => {
                out.push(b'[');
                for (at, item) in list.iter().enumerate() {
                    out.extend_from_slice(if at > 0 { b"," } else { b"" });
                    item.write(out, canonical);
                }
                out.push(b']');
            }
            Tree::Map(pairs) => {
                let mut order: Vec<&(Vec<u8>, Tree)> = pairs.iter().collect();
                if canonical {
                    order.reverse();
                    order.sort_by(|a, b| a.0.cmp(&b.0));
                    order.dedup_by(|later, first| later.0 == first.0);
                }
                out.push(b'{');
                for (at, (key, value)) in order.into_iter().enumerate() {
                    out.extend_from_slice(if at > 0 { b"," } else { b"" });
                    out.extend_from_slice(key);
                    out.push(b':');
                    value.write(out, canonical);
                }
                out.push(b'}');
            }
        }
    }

    fn count(&self) -> usize {
        1 + match self {
            Tree::Raw(_) => 0,
            Tree::List(list) => list.iter().map(Tree::count).sum(),
            Tree::Map(pairs) => pairs.iter().map(|(_, value)| value.count()).sum(),
        }
    }

    /// The node with a number, counted in the order they are written.
    fn node(&mut self, number: usize) -> &mut Tree {
        if number == 0 {
            return self;
        }
        let mut left = number - 1;
        let below: Vec<&mut Tree> = match self {
            Tree::Raw(_) => Vec::new(),
            Tree::List(list) => list.iter_mut().collect(),
            Tree::Map(pairs) => pairs.iter_mut().map(|(_, value)| value).collect(),
        };
        for child in below {
            let count = child.count();
            if left < count {
                return child.node(left);
            }
            left -= count;
        }
        unreachable!("a node has a number below the count")
    }

    /// Makes one thing odd. `near`: texts that mean something in the same request.
    pub fn make_odd(&mut self, random: &mut Stream, near: &[String]) {
        let count = self.count();
        let donor = self.node(random.below(count)).clone();
        // Leaves and their parents are where the meaning is; the top is one node of many.
        let at = if count > 1 && random.chance(0.95) { 1 + random.below(count - 1) } else { 0 };
        let node = self.node(at);
        match random.below(14) {
            0..=2 => *node = odd_value(random),
            3 => *node = donor,
            4 if !near.is_empty() => *node = Tree::text(random.pick::<String>(near)),
            5 => *node = Tree::List(vec![std::mem::replace(node, Tree::Raw(Vec::new()))]),
            6 => *node = nested(random),
            7 => *node = Tree::Raw(quoted(&long_text(random))),
            8 => *node = Tree::List(vec![node.clone(); *random.pick(&[2, 20, 51, 101, 1001])]),
            9 => node.retype(),
            _ => node.tweak(random),
        }
    }

    /// A number becomes a text and a text that is one a number.
    fn retype(&mut self) {
        if let Tree::Raw(raw) = self {
            *raw = match raw.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")) {
                Some(inner) => inner.to_vec(),
                None => [b"\"", raw.as_slice(), b"\""].concat(),
            };
        }
    }

    fn tweak(&mut self, random: &mut Stream) {
        match self {
            Tree::Raw(raw) => tweak_raw(raw, random),
            Tree::List(list) if list.is_empty() => list.push(odd_value(random)),
            Tree::List(list) => {
                let at = random.below(list.len());
                match random.below(3) {
                    0 => drop(list.remove(at)),
                    1 => list.push(list[at].clone()),
                    _ => list.insert(at, odd_value(random)),
                }
            }
            Tree::Map(pairs) => {
                let key =
                    if random.chance(0.8) { quoted(random.pick::<&str>(KEYS)) } else { quoted(&long_text(random)) };
                if pairs.is_empty() || random.chance(0.25) {
                    return pairs.push((key, odd_value(random)));
                }
                let at = random.below(pairs.len());
                match random.below(5) {
                    0 | 1 => drop(pairs.remove(at)),
                    2 => pairs.push((pairs[at].0.clone(), odd_value(random))),
                    3 => pairs[at].0 = key,
                    _ => {
                        let other = random.below(pairs.len());
                        pairs[at].1 = pairs[other].1.clone();
                    }
                }
            }
        }
    }
}

pub fn odd_value(random: &mut Stream) -> Tree {
    match random.below(40) {
        0 if random.chance(0.3) => Tree::Raw(b"\"\xff\xfe\"".to_vec()),
        0 if random.chance(0.3) => Tree::Raw(b"\"\xed\xa0\x80\"".to_vec()),
        0 => Tree::Raw(random.pick(NO_JSON).as_bytes().to_vec()),
        2 => nested(random),
        3 => Tree::Raw(quoted(&long_text(random))),
        4 => Tree::list((0..random.below(300)).map(Tree::number)),
        5 => Tree::Map((0..random.below(300)).map(|n| (quoted(&n.to_string()), Tree::Raw(b"0".to_vec()))).collect()),
        _ => Tree::Raw(random.pick(ODD).as_bytes().to_vec()),
    }
}

fn nested(random: &mut Stream) -> Tree {
    let depth = *random.pick(DEPTHS);
    let (open, close) = *random.pick(&[("[", "]"), ("{\"a\":", "}"), ("[{\"\":", "}]")]);
    Tree::Raw(format!("{}0{}", open.repeat(depth), close.repeat(depth)).into_bytes())
}

pub fn long_text(random: &mut Stream) -> String {
    random.pick(&["a", "A", "\u{e9}", "\u{1f600}", "%", ".", "/", "*", "m.", "1"]).repeat(*random.pick(LENGTHS))
}

pub fn quoted(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + 2);
    write_text(text, &mut out);
    out
}

fn fill_text(text: &str, fill: &mut dyn FnMut(&str) -> String) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, behind)) = rest.split_once('<') {
        out += before;
        let Some((name, after)) = behind.split_once('>') else { return out + "<" + behind };
        out += &fill(name);
        rest = after;
    }
    out + rest
}

/// One change to a text or a number; seldom one that leaves no JSON.
fn tweak_raw(raw: &mut Vec<u8>, random: &mut Stream) {
    let text = String::from_utf8_lossy(raw).into_owned();
    *raw = match serde_json::from_slice::<String>(raw) {
        Ok(inner) => quoted(&tweak_text(&inner, random)),
        Err(_) => tweak_text(&text, random).into_bytes(),
    };
    if serde_json::from_slice::<serde::de::IgnoredAny>(raw).is_err() && random.chance(0.9) {
        *raw = quoted(&text);
    }
}

/// A text that was good once.
pub fn tweak_text(text: &str, random: &mut Stream) -> String {
    let chars: Vec<char> = text.chars().collect();
    let at = random.below(chars.len() + 1);
    let (before, behind): (String, String) = (chars[..at].iter().collect(), chars[at..].iter().collect());
    match random.below(16) {
        0 => before,
        1 => behind,
        2 => {
            before
                + *random.pick(&[
                    "\u{0}",
                    "\\u0000",
                    " ",
                    "\n",
                    "%00",
                    "/",
                    ":",
                    "\u{1f600}",
                    "\\ud800",
                    "_",
                    "-",
                    "~",
                    "9",
                    "\"",
                ])
                + &behind
        }
        3 => text.to_uppercase(),
        4 => text.repeat(2),
        5 => text.replace(':', ""),
        6 => text.replace(|c: char| c.is_ascii_digit(), "9"),
        7 => text.replace(|c: char| c.is_ascii_digit(), "0"),
        8 => text.replacen(|c: char| c.is_ascii_digit(), &random.next().to_string(), 1),
        9 => format!("-{text}"),
        10 => {
            random.pick(&["@", "!", "#", "$", "+", "mxc://", "ed25519:"]).to_string()
                + text.trim_start_matches(['@', '!', '#', '$'])
        }
        11 => text.split(':').next().unwrap_or_default().to_owned() + ":" + &"a".repeat(random.below(300)),
        12 => text.split(':').next().unwrap_or_default().to_owned() + &"b".repeat(random.below(300)),
        13 => chars.iter().rev().collect(),
        14 => text.split(['_', '~', '-', '.']).rev().collect::<Vec<_>>().join("_"),
        _ => before + &behind.chars().skip(1).collect::<String>(),
    }
}

/// Damage to a body as a whole.
pub fn damage(bytes: &mut Vec<u8>, random: &mut Stream) {
    let at = random.below(bytes.len() + 1);
    match random.below(9) {
        0 => bytes.truncate(at),
        1 if at < bytes.len() => bytes[at] = random.next() as u8,
        2 => bytes.insert(at, random.next() as u8),
        3 => bytes.splice(0..0, *b"\xef\xbb\xbf").for_each(drop),
        4 => bytes.extend_from_slice(b"}"),
        5 => bytes.extend_from_within(..),
        6 => bytes.splice(0..0, b" \n\t".repeat(300)).for_each(drop),
        7 => *bytes = b"[".repeat(*random.pick(&[200, 20_000])),
        _ => bytes.clear(),
    }
}

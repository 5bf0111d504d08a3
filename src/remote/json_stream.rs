//! A large JSON answer, taken apart while it arrives: one array element at a time.
//!
//! `send_join`, `/state` and a notary's answer have one shape: an object whose long members are arrays. The tokeniser
//! knows exactly that much JSON. It finds where values end and leaves their content to the caller: an element may still
//! be malformed, but it is never larger than the limits say. A larger element is skipped and those beside it are not:
//! one item must not spoil the whole answer. Memory is one element (only when it straddles two frames) and the names of
//! the top-level keys.

use std::ops::Range;

use memchr::memchr2;

/// The most that a remote server may send us.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The whole body, in bytes.
    pub body_bytes_max: u64,
    /// One element or one top-level value. Canonical events end at 65,536 bytes; escapes and `unsigned` make the wire
    /// form longer.
    pub item_bytes_max: usize,
}

impl Limits {
    /// The limits for events, with a cap on the whole body.
    pub fn events(body_bytes_max: u64) -> Limits {
        Limits { body_bytes_max, item_bytes_max: 256 * 1024 }
    }
}

/// Nesting of objects and arrays. It is only counted, so this bounds no memory: it rejects bodies that are no answer at
/// all. The depth of a single event is limited where the event is read.
const DEPTH_MAX: u32 = 10_000;
/// A larger value is skipped up to this size. One value that is larger still is not part of any room.
const PASSED_BYTES_MAX: usize = 16 << 20;
/// The most top-level keys. The specification names seven; the rest is room for experiments.
const KEYS_MAX: usize = 64;
/// One top-level key, in bytes as written.
const KEY_BYTES_MAX: usize = 256;

/// A piece of the body, borrowed until the sink returns.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Item<'a> {
    /// An element of the top-level array `array`: an event, or a string with its quotes.
    Element { array: &'a str, raw: &'a [u8] },
    /// A top-level value that is not an array: `event`, `members_omitted`, `origin`.
    Value { key: &'a str, raw: &'a [u8] },
    /// An element of the array `key`, or the value under it, that exceeds the size limit.
    TooLarge { key: &'a str },
}

/// Why the body is not the expected answer, and after how many bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the answer is malformed after {at} bytes: {why}")]
pub struct Malformed {
    pub at: u64,
    pub why: &'static str,
}

/// The tokeniser: takes frames as they come and gives out items as they are complete.
pub struct Events {
    limits: Limits,
    /// Bytes of earlier frames.
    before: u64,
    step: Step,
    scan: Scan,
    /// The beginning of an item whose end is in a later frame.
    held: Vec<u8>,
    /// The bytes of the item so far. Once it is larger than the limit, none of it is held.
    item_bytes: usize,
    key: String,
    keys_seen: Vec<String>,
}

/// Where in the outermost object we are. The `In` steps have a value under way in `scan`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Open,
    KeyOrEnd,
    Key,
    InKey,
    Colon,
    Value,
    InValue,
    AfterValue,
    ElementOrEnd,
    Element,
    InElement,
    AfterElement,
    Done,
}

impl Events {
    pub fn new(limits: Limits) -> Events {
        Events {
            limits,
            before: 0,
            step: Step::Open,
            scan: Scan::default(),
            held: Vec::new(),
            item_bytes: 0,
            key: String::new(),
            keys_seen: Vec::new(),
        }
    }

    /// Bytes taken so far.
    pub fn bytes(&self) -> u64 {
        self.before
    }

    /// The names of the top-level members so far, in their order. For an empty array only its name is given.
    pub fn keys(&self) -> &[String] {
        &self.keys_seen
    }

    /// Takes the next frame, of any size, and calls `sink` for every item that ends in it.
    pub fn feed<E: From<Malformed>>(
        &mut self,
        frame: &[u8],
        sink: &mut impl FnMut(Item<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.before + frame.len() as u64 > self.limits.body_bytes_max {
            return Err(self.malformed(0, "it is larger than allowed").into());
        }
        let mut at = 0;
        while at < frame.len() {
            at = match self.step {
                Step::InKey | Step::InValue | Step::InElement => self.inside(frame, at, sink)?,
                _ if frame[at].is_ascii_whitespace() => at + 1,
                _ => self.between(frame, at)?,
            };
        }
        self.before += frame.len() as u64;
        Ok(())
    }

    /// Says whether the body was whole.
    pub fn finish(&self) -> Result<(), Malformed> {
        if self.step == Step::Done { Ok(()) } else { Err(self.malformed(0, "it ends too early")) }
    }

    /// One byte of punctuation between items, or the first of an item (which is then left to `inside`).
    fn between(&mut self, frame: &[u8], at: usize) -> Result<usize, Malformed> {
        let byte = frame[at];
        self.step = match (self.step, byte) {
            (Step::Open, b'{') => Step::KeyOrEnd,
            (Step::KeyOrEnd, b'}') | (Step::AfterValue, b'}') => Step::Done,
            (Step::KeyOrEnd | Step::Key, b'"') => return Ok(self.begin(Step::InKey, at)),
            (Step::Colon, b':') => Step::Value,
            (Step::Value, b'[') => Step::ElementOrEnd,
            (Step::ElementOrEnd, b']') | (Step::AfterElement, b']') => Step::AfterValue,
            (Step::AfterValue, b',') => Step::Key,
            (Step::AfterElement, b',') => Step::Element,
            (Step::Value, byte) if starts_value(byte) => return Ok(self.begin(Step::InValue, at)),
            (Step::ElementOrEnd | Step::Element, byte) if starts_value(byte) => {
                return Ok(self.begin(Step::InElement, at));
            }
            _ => return Err(self.malformed(at, "it is not the JSON object expected")),
        };
        Ok(at + 1)
    }

    fn begin(&mut self, step: Step, at: usize) -> usize {
        self.step = step;
        self.scan = Scan::default();
        self.held.clear();
        self.item_bytes = 0;
        at
    }

    /// Goes on inside an item from `at`; hands it over when its end is in this frame, else holds the bytes so far.
    fn inside<E: From<Malformed>>(
        &mut self,
        frame: &[u8],
        at: usize,
        sink: &mut impl FnMut(Item<'_>) -> Result<(), E>,
    ) -> Result<usize, E> {
        let found = self.scan.find_end(&frame[at..]).map_err(|why| self.malformed(at, why))?;
        let end = at + found.unwrap_or(frame.len() - at);
        self.item_bytes += end - at;
        match self.step {
            Step::InKey if self.item_bytes > KEY_BYTES_MAX => {
                return Err(self.malformed(at, "a key is longer than allowed").into());
            }
            _ if self.item_bytes > PASSED_BYTES_MAX => {
                return Err(self.malformed(at, "one item is larger than a room").into());
            }
            _ => {}
        }
        if self.is_too_large() {
            // Its memory too: the items behind it are small again.
            self.held = Vec::new();
        }
        if found.is_none() {
            if !self.is_too_large() {
                self.held.extend_from_slice(&frame[at..]);
            }
            return Ok(end);
        }
        if self.held.is_empty() {
            self.complete(&frame[at..end], at, sink)?;
        } else {
            // Taken out for the call, since the item borrows it, and put back to keep its capacity.
            let mut held = std::mem::take(&mut self.held);
            held.extend_from_slice(&frame[at..end]);
            self.complete(&held, at, sink)?;
            held.clear();
            self.held = held;
        }
        Ok(end)
    }

    fn is_too_large(&self) -> bool {
        self.item_bytes > self.limits.item_bytes_max
    }

    fn complete<E: From<Malformed>>(
        &mut self,
        raw: &[u8],
        at: usize,
        sink: &mut impl FnMut(Item<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.step == Step::InKey {
            self.learn_key(raw, at)?;
            self.step = Step::Colon;
            return Ok(());
        }
        let is_element = self.step == Step::InElement;
        sink(match is_element {
            _ if self.is_too_large() => Item::TooLarge { key: &self.key },
            true => Item::Element { array: &self.key, raw },
            false => Item::Value { key: &self.key, raw },
        })?;
        self.step = if is_element { Step::AfterElement } else { Step::AfterValue };
        Ok(())
    }

    /// Two members of one name would let two readers see two different answers.
    fn learn_key(&mut self, raw: &[u8], at: usize) -> Result<(), Malformed> {
        let key: String = serde_json::from_slice(raw).map_err(|_| self.malformed(at, "a key is not a string"))?;
        if self.keys_seen.contains(&key) {
            return Err(self.malformed(at, "a key is there twice"));
        }
        if self.keys_seen.len() == KEYS_MAX {
            return Err(self.malformed(at, "it has too many keys"));
        }
        self.keys_seen.push(key.clone());
        self.key = key;
        Ok(())
    }

    fn malformed(&self, at: usize, why: &'static str) -> Malformed {
        Malformed { at: self.before + at as u64, why }
    }
}

fn starts_value(byte: u8) -> bool {
    matches!(byte, b'{' | b'[' | b'"' | b'-' | b'0'..=b'9' | b't' | b'f' | b'n')
}

/// Where the elements of the arrays named stand in an answer that is here as a whole; the first `most` of them.
pub fn places(text: &[u8], arrays: &[&str], most: usize) -> Result<Vec<Range<usize>>, Malformed> {
    let mut found = Vec::new();
    let mut events = Events::new(Limits::events(text.len() as u64));
    events.feed::<Malformed>(text, &mut |item| {
        if let Item::Element { array, raw } = item
            && arrays.contains(&array)
            && found.len() < most
        {
            // In a body in one piece, an item is a slice of that body.
            let start = raw.as_ptr() as usize - text.as_ptr() as usize;
            found.push(start..start + raw.len());
        }
        Ok(())
    })?;
    events.finish()?;
    Ok(found)
}

/// Finds the end of one value, over as many frames as it takes.
#[derive(Default)]
struct Scan {
    started: bool,
    scalar: bool,
    in_string: bool,
    escaped: bool,
    depth: u32,
}

impl Scan {
    /// The length of the value's remainder in `bytes`, or `None` when it goes on in the next frame.
    fn find_end(&mut self, bytes: &[u8]) -> Result<Option<usize>, &'static str> {
        if !self.started {
            self.started = true;
            self.scalar = !matches!(bytes[0], b'{' | b'[' | b'"');
        }
        if self.scalar {
            return Ok(bytes.iter().position(|byte| matches!(byte, b',' | b']' | b'}') || byte.is_ascii_whitespace()));
        }
        let mut at = 0;
        while at < bytes.len() {
            if self.in_string {
                let Some(skipped) = self.skip_string(&bytes[at..]) else { return Ok(None) };
                at += skipped;
            } else {
                at += 1;
                match bytes[at - 1] {
                    b'"' => self.in_string = true,
                    b'{' | b'[' => self.depth += 1,
                    b'}' | b']' => self.depth = self.depth.checked_sub(1).ok_or("its brackets do not match")?,
                    _ => continue,
                }
                if self.depth > DEPTH_MAX {
                    return Err("it is nested too deeply");
                }
            }
            if self.depth == 0 && !self.in_string {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }

    /// To behind the closing quote; `None` when the quote is not in these bytes.
    fn skip_string(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        if std::mem::take(&mut self.escaped) {
            at = 1;
        }
        loop {
            at += memchr2(b'"', b'\\', bytes.get(at..)?)?;
            if bytes[at] == b'"' {
                self.in_string = false;
                return Some(at + 1);
            }
            if at + 1 == bytes.len() {
                self.escaped = true;
                return None;
            }
            at += 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    type Seen = Vec<(String, bool, Vec<u8>)>;

    fn run(frames: &[&[u8]], limits: Limits) -> Result<Seen, Malformed> {
        let mut events = Events::new(limits);
        let mut seen = Vec::new();
        for frame in frames {
            events.feed::<Malformed>(frame, &mut |item| {
                seen.push(match item {
                    Item::Element { array, raw } => (array.to_owned(), true, raw.to_vec()),
                    Item::Value { key, raw } => (key.to_owned(), false, raw.to_vec()),
                    Item::TooLarge { key } => (key.to_owned(), true, b"too large".to_vec()),
                });
                Ok(())
            })?;
        }
        events.finish()?;
        Ok(seen)
    }

    fn whole(body: &[u8]) -> Result<Seen, Malformed> {
        run(&[body], Limits::events(1 << 30))
    }

    struct Dice(u64);
    impl Dice {
        fn below(&mut self, n: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 33) % n
        }
        fn text(&mut self) -> String {
            const PARTS: [&str; 10] = ["a", "\"", "\\", "\\\"", "é", "😀", "\n", "]}", "{[", "member"];
            (0..self.below(6)).map(|_| PARTS[self.below(10) as usize]).collect()
        }
        fn value(&mut self, depth: u32) -> Value {
            match self.below(if depth == 0 { 5 } else { 7 }) {
                0 => Value::Null,
                1 => json!(self.below(2) == 1),
                2 => json!(self.below(1 << 40) as i64 - (1 << 39)),
                3 | 4 => json!(self.text()),
                5 => (0..self.below(4)).map(|_| self.value(depth - 1)).collect(),
                _ => Value::Object(
                    (0..self.below(4)).map(|n| (format!("{n}{}", self.text()), self.value(depth - 1))).collect(),
                ),
            }
        }
    }

    fn expected(document: &Value) -> Vec<(String, bool, Value)> {
        let mut list = Vec::new();
        for (key, value) in document.as_object().unwrap() {
            match value {
                Value::Array(elements) => list.extend(elements.iter().map(|e| (key.clone(), true, e.clone()))),
                other => list.push((key.clone(), false, other.clone())),
            }
        }
        list
    }

    #[test]
    fn any_split_gives_what_a_parser_gives_on_the_whole() {
        let mut dice = Dice(7);
        for round in 0..300 {
            let document =
                Value::Object((0..dice.below(5)).map(|n| (format!("{n}{}", dice.text()), dice.value(4))).collect());
            let body =
                if round % 2 == 0 { serde_json::to_vec(&document) } else { serde_json::to_vec_pretty(&document) }
                    .unwrap();
            let want = expected(&document);
            for _ in 0..8 {
                let mut frames = Vec::new();
                let mut rest: &[u8] = &body;
                while !rest.is_empty() {
                    let (frame, later) = rest.split_at((1 + dice.below(40) as usize).min(rest.len()));
                    frames.push(frame);
                    rest = later;
                }
                let got = run(&frames, Limits::events(1 << 20)).unwrap();
                let got: Vec<_> =
                    got.into_iter().map(|(k, e, raw)| (k, e, serde_json::from_slice::<Value>(&raw).unwrap())).collect();
                assert_eq!(got, want);
            }
        }
    }

    #[test]
    fn every_single_split_point_is_the_same() {
        let body = br#" { "event" : {"a":"\\\"}"}, "state":[{"x":[1,2,{"y":"]"}]} , "s" , -1.5e3,[] ] ,"members_omitted": true , "empty":[]} "#;
        let want = whole(body).unwrap();
        assert_eq!(want.len(), 6);
        for at in 0..body.len() {
            assert_eq!(run(&[&body[..at], &body[at..]], Limits::events(4096)).unwrap(), want);
        }
        let bytes: Vec<&[u8]> = body.chunks(1).collect();
        assert_eq!(run(&bytes, Limits::events(4096)).unwrap(), want);
    }

    #[test]
    fn what_is_not_such_an_object_is_refused() {
        for body in [
            "",
            "[]",
            "{",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{\"a\":[1,]}",
            "{\"a\":[1",
            "{} {}",
            "{\"a\":]}",
            "nonsense",
            "{\"a\":[,1]}",
            "{a:1}",
        ] {
            assert!(whole(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn limits_hold() {
        let limits = Limits { body_bytes_max: 1000, item_bytes_max: 50 };
        let why = |body: &[u8]| run(&body.chunks(7).collect::<Vec<_>>(), limits).unwrap_err().why;
        assert_eq!(why(format!("{{\"a\":[{}1]}}", "1,".repeat(600)).as_bytes()), "it is larger than allowed");
        assert_eq!(why(br#"{"a":1,"\u0061":2}"#), "a key is there twice");
        assert_eq!(why(format!("{{\"{}\":1}}", "k".repeat(300)).as_bytes()), "a key is longer than allowed");
        let many: String = (0..70).map(|n| format!("\"{n}\":1,")).collect();
        assert_eq!(why(format!("{{{many}\"z\":1}}").as_bytes()), "it has too many keys");
    }

    /// A member event nested 120 deep, or one item of a megabyte, made an answer of 40,000 events unusable.
    #[test]
    fn an_odd_item_leaves_those_beside_it_alone() {
        let nested = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        let long = format!("\"{}\"", "x".repeat(300 * 1024));
        let body = |levels| format!(r#"{{"a":[1,{},{long},2],"b":{long},"c":3}}"#, nested(levels));
        let want = |deep: &str| -> Seen {
            let seen = [("a", true, "1"), ("a", true, deep), ("a", true, "too large"), ("a", true, "2")];
            let all = seen.into_iter().chain([("b", true, "too large"), ("c", false, "3")]);
            all.map(|(key, is_element, raw)| (key.to_owned(), is_element, raw.as_bytes().to_vec())).collect()
        };
        let limits = Limits::events(1 << 30);
        for levels in [120, 700, DEPTH_MAX as usize] {
            let body = body(levels);
            for size in [1000, 77 * 1024, body.len()] {
                let frames: Vec<_> = body.as_bytes().chunks(size).collect();
                assert!(run(&frames, limits).unwrap() == want(&nested(levels)), "{levels} levels in frames of {size}");
            }
        }
        let malformed = run(&[body(DEPTH_MAX as usize + 1).as_bytes()], limits).unwrap_err();
        assert_eq!(malformed.why, "it is nested too deeply");
        let endless = format!("{{\"a\":[\"{}", "x".repeat(PASSED_BYTES_MAX));
        let frames: Vec<_> = endless.as_bytes().chunks(64 * 1024).collect();
        assert_eq!(run(&frames, limits).unwrap_err().why, "one item is larger than a room");
    }

    #[test]
    fn the_places_of_elements() {
        let text = br#" {"events": [ {"a": 1} , 7,"x"], "other":[3], "pdus":[4, 5]}"#;
        let found = |most| -> Vec<&str> {
            let places = places(text, &["events", "pdus"], most).unwrap();
            places.into_iter().map(|place| std::str::from_utf8(&text[place]).unwrap()).collect()
        };
        assert_eq!(found(9), ["{\"a\": 1}", "7", "\"x\"", "4", "5"]);
        assert_eq!(found(2), ["{\"a\": 1}", "7"]);
        assert!(places(b"[]", &["pdus"], 1).is_err() && places(b"{\"pdus\":[1", &["pdus"], 1).is_err());
    }

    #[test]
    fn any_bytes_are_an_answer_in_any_pieces() {
        let seed: &[u8] =
            br#"{"state":[{"a":[1,"]}"]},"x"],"event":{"b":"\\\""},"members_omitted":true,"servers":[],"n":-1.5}"#;
        crate::base::any_bytes::any_bytes(&[seed, b"[1]", b"{}"], |bytes| {
            let limits = Limits { body_bytes_max: 1 << 20, item_bytes_max: 1 << 10 };
            let at_once = run(&[bytes], limits).map_err(|malformed| malformed.why);
            let (front, back) = bytes.split_at(bytes.len() / 2);
            assert_eq!(run(&[front, back], limits).map_err(|malformed| malformed.why), at_once);
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(run(&single, limits).map_err(|malformed| malformed.why), at_once);
            // What a parser of the whole takes is taken, but for bounds of ours and for doubled keys.
            let bounds =
                ["a key is longer", "one item is larger", "a key is there twice", "it has too many", "it is nested"];
            if matches!(serde_json::from_slice(bytes), Ok(Value::Object(_)))
                && let Err(why) = at_once
            {
                assert!(bounds.iter().any(|bound| why.starts_with(bound)), "{why}");
            }
            let _ = places(bytes, &["state", "servers"], 10);
        });
    }
}

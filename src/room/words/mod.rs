//! The words of events, for the search (client-server API, "Server Side Search"), and the index that knows them.
//!
//! A word is what Unicode takes for one (UAX #29), cut further where it has a dot or a low line inside, so that parts of addresses
//! are found. It is folded: compatibility forms, case and the accents of Latin, Greek and Cyrillic make no difference.
//! Scripts without spaces have a word for each character: what stands without a space between in a search is looked for as
//! it stands there.

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation;

use crate::base::fold;
use crate::matrix::json;
use crate::store::Get;
use crate::store::tables::room::event_row::{Kind, Row};

pub mod keep;

/// Different words of one event that are in the index: more than a text of 20 KB has.
pub const WORDS_MAX: usize = 2_048;
/// A word is cut at this length: longer ones are no words of a language.
const WORD_BYTES_MAX: usize = 64;

/// A text that can be searched, as the specification names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Body,
    Name,
    Topic,
}

impl Key {
    pub const ALL: [Key; 3] = [Key::Body, Key::Name, Key::Topic];

    pub fn of(name: &str) -> Option<Key> {
        match name {
            "content.body" => Some(Key::Body),
            "content.name" => Some(Key::Name),
            "content.topic" => Some(Key::Topic),
            _ => None,
        }
    }

    /// What an event can be found by.
    pub fn of_row(row: &Row) -> Option<Key> {
        match (row.kind, row.state_key) {
            (Kind::MESSAGE, None) => Some(Key::Body),
            (Kind::NAME, Some(_)) => Some(Key::Name),
            (Kind::TOPIC, Some(_)) => Some(Key::Topic),
            _ => None,
        }
    }

    /// Shows the texts in an event's content. Their form may be anything.
    pub fn texts(self, content: &[u8], show: &mut dyn FnMut(&str)) {
        let name = match self {
            Key::Body => "body",
            Key::Name => "name",
            Key::Topic => "topic",
        };
        if let Some(text) = json::read::get_text(content, name) {
            show(&text);
        }
        if self == Key::Topic
            && let Some(texts) = json::read::get_path(content, &["m.topic", "m.text"])
        {
            for text in json::read::items(texts) {
                let is_plain = json::read::get_text(text, "mimetype").is_none_or(|kind| kind == "text/plain");
                if let Some(body) = json::read::get_text(text, "body").filter(|_| is_plain) {
                    show(&body);
                }
            }
        }
    }
}

/// Shows the words of a text, folded, each with its place.
pub fn each(text: &str, show: &mut dyn FnMut(&str, Range<usize>)) {
    let mut folded = String::new();
    for (start, word) in text.unicode_word_indices() {
        let mut at = start;
        for part in word.split(['.', '_', ':']) {
            folded.clear();
            fold(part, WORD_BYTES_MAX, &mut folded);
            if !folded.is_empty() {
                show(&folded, at..at + part.len());
            }
            at += part.len() + 1;
        }
    }
}

/// The hash under which a folded word stands in the index.
pub fn hash(get: &impl Get, word: &str) -> u32 {
    let [a, b, c, d, ..] = get.hash128(&[word.as_bytes()]);
    u32::from_be_bytes([a, b, c, d])
}

/// The hashes of an event's words, sorted: the first [`WORDS_MAX`] different ones. 32 KiB at most on the way.
pub fn hashes(get: &impl Get, key: Key, content: &[u8]) -> Vec<u32> {
    let mut all: Vec<u32> = Vec::new();
    key.texts(content, &mut |text| {
        each(text, &mut |word, _| {
            if all.len() == 4 * WORDS_MAX {
                all.sort_unstable();
                all.dedup();
            }
            if all.len() < 4 * WORDS_MAX {
                all.push(hash(get, word));
            }
        });
    });
    all.sort_unstable();
    all.dedup();
    all.truncate(WORDS_MAX);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        let mut words = Vec::new();
        each(text, &mut |word, place| {
            assert!(text.is_char_boundary(place.start) && text.is_char_boundary(place.end));
            words.push(word.to_owned());
        });
        words
    }

    #[test]
    fn words_are_folded_and_cut() {
        for (text, expected) in [
            ("Hello, World!", &["hello", "world"][..]),
            ("Ça va, ÉLAN? Straße STRASSE", &["ca", "va", "elan", "strasse", "strasse"]),
            ("don't don’t", &["don't", "don't"]),
            ("ﬁne ＡＢＣ １２", &["fine", "abc", "12"]),
            ("see https://example.org/a_page.html", &["see", "https", "example", "org", "a", "page", "html"]),
            ("ΟΔΥΣΣΕΥΣ ὀδυσσεύς", &["οδυσσευσ", "οδυσσευσ"]),
            ("会议 hi", &["会", "议", "hi"]),
            ("Ёлка мой", &["елка", "мои"]),
            ("İstanbul", &["istanbul"]),
            ("हिन्दी", &["हिन्दी"]),
            ("👋 🏳️‍🌈 -- ...", &[]),
        ] {
            assert_eq!(words(text), expected, "{text}");
        }
        assert_eq!(words(&"x".repeat(500)), ["x".repeat(WORD_BYTES_MAX)]);
    }

    #[test]
    fn texts_of_events() {
        let check = |key: Key, content: &str, expected: &[&str]| {
            let mut texts = Vec::new();
            key.texts(content.as_bytes(), &mut |text| texts.push(text.to_owned()));
            assert_eq!(texts, expected, "{content}");
        };
        check(Key::Body, r#"{"body":"hi \"you\"","name":"no"}"#, &["hi \"you\""]);
        check(Key::Body, r#"{"body":5}"#, &[]);
        check(Key::Body, "[]", &[]);
        check(Key::Name, r#"{"name":"A room"}"#, &["A room"]);
        let topic =
            r#"{"m.topic":{"m.text":[{"body":"<b>x</b>","mimetype":"text/html"},{"body":"plain"}]},"topic":"old"}"#;
        check(Key::Topic, topic, &["old", "plain"]);
        check(Key::Topic, r#"{"m.topic":{"m.text":7}}"#, &[]);
    }

    #[test]
    fn any_bytes_have_words_or_none() {
        crate::base::any_bytes::any_bytes(&["Ça va_x.y 会议 ﬁ e\u{301}\u{301}".as_bytes(), &[0xff; 9]], |bytes| {
            words(&String::from_utf8_lossy(bytes));
            Key::ALL.iter().for_each(|key| key.texts(bytes, &mut |text| drop(words(text))));
        });
    }
}

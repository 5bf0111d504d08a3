//! What a user looks for: words, each of which an event must have.
//!
//! `"two words"` and what stands without a space between (`e-mail`, `会议`) must stand in the text as it stands there. `-word`
//! must not be in it.

use std::ops::Range;

use crate::room::words::{self, Key};
use crate::store::Get;

/// Words that are looked for; further ones are left out. Each holds a chunk of the index.
const WORDS_MAX: usize = 16;

pub struct Terms {
    /// Words in a row; most have one.
    phrases: Vec<Vec<String>>,
    /// How many of them are wanted; the rest must not be there.
    wanted: usize,
    /// As the user wrote them, in small letters.
    shown: Vec<String>,
}

impl Terms {
    pub fn parse(term: &str) -> Terms {
        let mut terms = Terms { phrases: Vec::new(), wanted: 0, shown: Vec::new() };
        let (mut unwanted, mut left) = (Vec::new(), WORDS_MAX);
        for (nth, part) in term.split('"').enumerate() {
            let pieces: Vec<&str> = if nth % 2 == 1 { vec![part] } else { part.split_whitespace().collect() };
            for piece in pieces {
                let is_wanted = nth % 2 == 1 || !piece.starts_with('-');
                let mut phrase = Vec::new();
                words::each(piece, &mut |word, place| {
                    if left > 0 {
                        left -= 1;
                        phrase.push(word.to_owned());
                        if is_wanted {
                            terms.shown.push(piece[place].to_lowercase());
                        }
                    }
                });
                match (phrase.is_empty(), is_wanted) {
                    (true, _) => {}
                    (false, true) => terms.phrases.push(phrase),
                    (false, false) => unwanted.push(phrase),
                }
            }
        }
        terms.wanted = terms.phrases.len();
        terms.phrases.append(&mut unwanted);
        terms
    }

    /// Whether nothing is looked for.
    pub fn is_empty(&self) -> bool {
        self.wanted == 0
    }

    /// Under which words of the index an event must be.
    pub fn hashes(&self, get: &impl Get) -> Vec<u32> {
        let words = self.phrases[..self.wanted].iter().flatten();
        let mut hashes: Vec<_> = words.map(|word| words::hash(get, word)).collect();
        hashes.sort_unstable();
        hashes.dedup();
        hashes
    }

    /// How well an event's content fits; none when it does not.
    pub fn fits(&self, key: Key, content: &[u8]) -> Option<f64> {
        let mut seen = Seen { terms: self, masks: vec![0; self.phrases.len() + 1], counts: Vec::new(), words: 0 };
        seen.counts = vec![0; self.phrases.len() + 1];
        key.texts(content, &mut |text| {
            seen.masks.fill(0);
            words::each(text, &mut |word, _| seen.word(word));
        });
        seen.score()
    }

    /// The words to be shown marked: those the user wrote.
    pub fn shown(&self) -> &[String] {
        &self.shown
    }

    /// The forms that the wanted words have in an event's content, in small letters.
    pub fn forms(&self, key: Key, content: &[u8], show: &mut dyn FnMut(String)) {
        key.texts(content, &mut |text| {
            words::each(text, &mut |word, place: Range<usize>| {
                if self.phrases[..self.wanted].iter().flatten().any(|wanted| wanted == word) {
                    show(text[place].to_lowercase());
                }
            });
        });
    }
}

/// What has been seen of a text. Each phrase has a mask: bit n says that its words up to the nth have just passed.
struct Seen<'t> {
    terms: &'t Terms,
    /// One more than there are phrases: the last is for all wanted ones in a row.
    masks: Vec<u32>,
    counts: Vec<u32>,
    words: u32,
}

impl Seen<'_> {
    fn word(&mut self, word: &str) {
        self.words += 1;
        let terms = self.terms;
        for (nth, phrase) in terms.phrases.iter().enumerate() {
            self.pass(nth, phrase.len(), phrase.iter().map(|wanted| wanted == word));
        }
        let all = || terms.phrases[..terms.wanted].iter().flatten();
        self.pass(terms.phrases.len(), all().count(), all().map(|wanted| wanted == word));
    }

    fn pass(&mut self, nth: usize, length: usize, is: impl Iterator<Item = bool>) {
        let fitting = is.enumerate().fold(0u32, |bits, (at, is)| bits | u32::from(is) << at);
        let mask = (self.masks[nth] << 1 | 1) & fitting;
        self.masks[nth] = mask;
        self.counts[nth] += u32::from(length > 0 && mask >> (length - 1) & 1 == 1);
    }

    /// Between 0 and 2. More of the words, in a shorter text, fit better; all of them in a row, best.
    fn score(&self) -> Option<f64> {
        let (phrases, in_a_row) = self.counts.split_at(self.terms.phrases.len());
        let (wanted, unwanted) = phrases.split_at(self.terms.wanted);
        if wanted.contains(&0) || unwanted.iter().any(|count| *count > 0) {
            return None;
        }
        let often = |count: &u32| f64::from(*count) / (f64::from(*count) + 0.5);
        let mean = wanted.iter().map(often).sum::<f64>() / wanted.len().max(1) as f64;
        let length = 1.0 + f64::from(self.words).ln_1p() / 4.0;
        let row = if in_a_row.iter().any(|count| *count > 0) { 2.0 } else { 1.0 };
        Some(mean * row / length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(term: &str, body: &str) -> Option<f64> {
        let content = serde_json::json!({ "body": body }).to_string();
        Terms::parse(term).fits(Key::Body, content.as_bytes())
    }

    #[test]
    fn what_fits() {
        for (term, body, fits) in [
            ("hello", "Hello, world", true),
            ("hello world", "world says hello", true),
            ("hello mars", "Hello, world", false),
            ("\"hello world\"", "hello, world!", true),
            ("\"hello world\"", "world, hello world", true),
            ("\"hello world\"", "hello big world", false),
            ("e-mail", "an e mail", true),
            ("e-mail", "mail e", false),
            ("会议", "明天的会议", true),
            ("会议", "议会", false),
            ("hello -world", "hello, world", false),
            ("hello -world", "hello, moon", true),
            ("cafe", "un Café", true),
            ("a \"b c", "b c a", true),
        ] {
            assert_eq!(score(term, body).is_some(), fits, "{term}: {body}");
        }
        for nothing in ["", "\"\"", "- --", "-hello", "…"] {
            assert!(Terms::parse(nothing).is_empty(), "{nothing}");
        }
    }

    #[test]
    fn what_fits_better() {
        let better = |term, one, other| assert!(score(term, one) > score(term, other), "{one} / {other}");
        better("hello", "hello", "hello and much more than that");
        better("hello world", "hello world today", "world today hello");
        better("hello", "hello hello there", "hello oh there");
    }

    #[test]
    fn any_bytes_are_terms() {
        crate::base::any_bytes::any_bytes(&[b"\"a b\" -c e-mail", "会 \"".as_bytes()], |bytes| {
            let terms = Terms::parse(&String::from_utf8_lossy(bytes));
            assert!(terms.shown().len() <= WORDS_MAX);
            terms.fits(Key::Body, br#"{"body":"a b e mail"}"#);
        });
    }
}

//! Whether a text holds a pattern as words of its own (client-server API, "Conditions for Rules").
//!
//! The matching is not ruma's: that goes one call deeper for each word, so a long text of a remote user would end the stack,
//! and it makes a regular expression of a pattern, which panics when the pattern is too large.

use std::collections::HashMap;

/// The most characters of a pattern. A longer one matches nothing: it would be held against each place of a text of 64 KiB.
const PATTERN_CHARS_MAX: usize = 255;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Char(char),
    /// `?`: any one character.
    One,
    /// `*`: any characters, or none.
    Any,
}

/// Whether the glob `pattern` stands in `text` between word boundaries, whatever the case.
pub fn matches_glob(text: &str, pattern: &str) -> bool {
    (has_wildcards(pattern) || holds(text, pattern)) && matches(text, lower_case(pattern).map(glob_part), false)
}

/// Whether the glob `pattern` is the whole of `text`, whatever the case.
pub fn matches_whole(text: &str, pattern: &str) -> bool {
    if !has_wildcards(pattern) && pattern.len() <= PATTERN_CHARS_MAX {
        return !pattern.is_empty() && lower_case(text).eq(lower_case(pattern));
    }
    matches(text, lower_case(pattern).map(glob_part), true)
}

/// Whether `words` stand in `text` as they are, between word boundaries, whatever the case.
pub fn contains(text: &str, words: &str) -> bool {
    holds(text, words) && matches(text, lower_case(words).map(Part::Char), false)
}

fn has_wildcards(pattern: &str) -> bool {
    pattern.contains(['?', '*'])
}

/// Whether the words stand anywhere in the text, whatever the case: for nearly every message they do not, and then
/// nothing else is looked at.
fn holds(text: &str, words: &str) -> bool {
    let lower = |text| lower_case(text).collect::<String>();
    lower(text).contains(&lower(words))
}

fn glob_part(c: char) -> Part {
    match c {
        '?' => Part::One,
        '*' => Part::Any,
        c => Part::Char(c),
    }
}

fn lower_case(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(char::to_lowercase)
}

/// Goes through the text once with the set of places in the pattern that have been reached. A character costs the same
/// few steps whatever the pattern is: users choose those, and they are matched where an event is stored.
fn matches(text: &str, pattern: impl Iterator<Item = Part>, whole: bool) -> bool {
    let mut pattern: Vec<Part> = pattern.take(PATTERN_CHARS_MAX + 1).collect();
    if pattern.is_empty() || pattern.len() > PATTERN_CHARS_MAX {
        return false;
    }
    pattern.dedup_by(|next, before| *next == Part::Any && *before == Part::Any);
    let (one, any) = (Places::of(&pattern, Part::One), Places::of(&pattern, Part::Any));
    let mut wanted: HashMap<char, Places> = HashMap::new();
    for part in &pattern {
        if let Part::Char(c) = part {
            wanted.entry(*c).or_insert_with(|| Places::of(&pattern, *part));
        }
    }
    let mut reached = Places::default();
    let (mut before, mut chars) = (None, lower_case(text));
    loop {
        let here = chars.next();
        if if whole { before.is_none() } else { is_boundary(before, here) } {
            reached.add(0);
        }
        // A `*` may match nothing, and no two stand beside each other.
        reached = reached.or(reached.and(any).next());
        if reached.has(pattern.len()) && if whole { here.is_none() } else { is_boundary(before, here) } {
            return true;
        }
        let Some(c) = here else { return false };
        let step = wanted.get(&c).map_or(one, |places| places.or(one));
        reached = reached.and(step).next().or(reached.and(any));
        before = here;
    }
}

/// A set of places in a pattern, its end included.
#[derive(Clone, Copy, Default)]
struct Places([u64; 4]);

impl Places {
    fn of(pattern: &[Part], wanted: Part) -> Places {
        let mut places = Places::default();
        pattern.iter().enumerate().filter(|(_, part)| **part == wanted).for_each(|(at, _)| places.add(at));
        places
    }

    fn add(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }

    fn has(self, at: usize) -> bool {
        self.0[at / 64] & (1 << (at % 64)) != 0
    }

    fn and(self, other: Places) -> Places {
        Places(std::array::from_fn(|at| self.0[at] & other.0[at]))
    }

    fn or(self, other: Places) -> Places {
        Places(std::array::from_fn(|at| self.0[at] | other.0[at]))
    }

    /// Each place's next one.
    fn next(self) -> Places {
        let carried = |at: usize| if at == 0 { 0 } else { self.0[at - 1] >> 63 };
        Places(std::array::from_fn(|at| self.0[at] << 1 | carried(at)))
    }
}

/// The start and the end of the text, and both sides of any character that is not in `[A-Za-z0-9_]`.
fn is_boundary(before: Option<char>, after: Option<char>) -> bool {
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    !(is_word(before) && is_word(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_alone_whatever_their_case() {
        for (text, words, found) in [
            ("hello anna", "anna", true),
            ("ANNA: hello", "Anna", true),
            ("hello annabel", "anna", false),
            ("annabel and anna", "anna", true),
            ("joanna", "anna", false),
            ("an_anna", "anna", false),
            ("hello anna b.!", "Anna B.", true),
            ("你好安娜吗", "安娜", true),
            ("any text", "", false),
            ("", "anna", false),
            ("who is * here", "*", true),
            ("anything", "a*g", false),
            ("anna-anna", "anna-anna", true),
            ("ein Gruß von ÄNNE", "änne", true),
        ] {
            assert_eq!(contains(text, words), found, "{words} in {text}");
        }
        for (text, whole, is_it) in
            [("M.Text", "m.text", true), ("m.texts", "m.text", false), ("Ä", "ä", true), ("", "", false)]
        {
            assert_eq!(matches_whole(text, whole), is_it, "{whole} for {text}");
        }
    }

    /// Such a pattern once cost its length for each place that was reached: minutes of the writer's time for one event.
    #[test]
    fn a_pattern_of_wildcards_ends_and_a_whole_value_is_matched_whole() {
        let pattern = format!("{}x", "?".repeat(254));
        assert!(!matches_glob(&"a b ".repeat(16_000), &pattern));
        assert!(matches_glob(&format!("{}x", "a".repeat(254)), &pattern));
        assert!(!matches_glob("a", &"?".repeat(256)));
        for (text, pattern, found) in [
            ("m.room.message", "m.room.*", true),
            ("m.room.message", "M.ROOM.MESSAGE", true),
            ("m.room.message", "room", false),
            ("m.room.message", "m.room", false),
            ("aaab", "*a*b", true),
            ("aaab", "*a*c", false),
            ("", "*", true),
            ("ab", "a?", true),
            ("abc", "a?", false),
        ] {
            assert_eq!(matches_whole(text, pattern), found, "{pattern} for {text}");
        }
    }

    #[test]
    fn wildcards_stand_for_any_characters() {
        for (text, pattern, found) in [
            ("the cake is", "cake*", true),
            ("the cakes are", "cake", false),
            ("the cakes are", "cake*", true),
            ("the cakes are", "cake?", true),
            ("the cake", "cake?", false),
            ("a pancake", "*cake", true),
            ("lunch time", "l?nc*t?me", true),
            ("", "*", true),
            ("x", "**?**", true),
        ] {
            assert_eq!(matches_glob(text, pattern), found, "{pattern} in {text}");
        }
    }

    /// Such texts took one call for each word, and such patterns a regular expression that could not be made.
    #[test]
    fn no_text_and_no_pattern_is_too_much() {
        assert!(!contains(&"ab ".repeat(22_000), "a"));
        assert!(!matches_glob(&"ab ".repeat(22_000), &format!("{}x", "?".repeat(200))));
        assert!(!matches_glob(&"a".repeat(5_000), &"?".repeat(60_000)));
        assert!(!matches_glob(&"a".repeat(5_000), &format!("{}b", "*a".repeat(100))));
    }
}

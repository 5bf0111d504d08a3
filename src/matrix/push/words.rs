//! Whether a text holds a pattern as words of its own (client-server API, "Conditions for Rules").
//!
//! The matching is not ruma's: that goes one call deeper for each word, so a long text of a remote user would end the stack,
//! and it makes a regular expression of a pattern, which panics when the pattern is too large.

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
    let part = |c| match c {
        '?' => Part::One,
        '*' => Part::Any,
        c => Part::Char(c),
    };
    matches(text, lower_case(pattern).map(part))
}

/// Whether `words` stand in `text` as they are, between word boundaries, whatever the case.
pub fn contains(text: &str, words: &str) -> bool {
    matches(text, lower_case(words).map(Part::Char))
}

fn lower_case(text: &str) -> impl Iterator<Item = char> {
    text.chars().flat_map(char::to_lowercase)
}

/// Goes through the text once with the places in the pattern that have been reached: few, unless the pattern is all wildcards.
fn matches(text: &str, pattern: impl Iterator<Item = Part>) -> bool {
    let mut pattern: Vec<Part> = pattern.take(PATTERN_CHARS_MAX + 1).collect();
    if pattern.is_empty() || pattern.len() > PATTERN_CHARS_MAX {
        return false;
    }
    pattern.dedup_by(|next, before| *next == Part::Any && *before == Part::Any);
    let (mut reached, mut next): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    let (mut before, mut chars) = (None, lower_case(text));
    loop {
        let here = chars.next();
        if is_boundary(before, here) {
            reach(&pattern, &mut reached, 0);
            if reached.contains(&pattern.len()) {
                return true;
            }
        }
        let Some(c) = here else { return false };
        for &at in &reached {
            match pattern.get(at) {
                Some(Part::Any) => reach(&pattern, &mut next, at),
                Some(Part::One) => reach(&pattern, &mut next, at + 1),
                Some(Part::Char(wanted)) if *wanted == c => reach(&pattern, &mut next, at + 1),
                _ => {}
            }
        }
        reached.clear();
        std::mem::swap(&mut reached, &mut next);
        before = here;
    }
}

/// Notes that the pattern is matched up to `at`; a `*` may match nothing.
fn reach(pattern: &[Part], reached: &mut Vec<usize>, at: usize) {
    for at in at..=pattern.len() {
        if !reached.contains(&at) {
            reached.push(at);
        }
        if pattern.get(at) != Some(&Part::Any) {
            return;
        }
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
        ] {
            assert_eq!(contains(text, words), found, "{words} in {text}");
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

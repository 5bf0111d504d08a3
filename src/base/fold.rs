//! Words in the one form in which they are compared.

use icu_normalizer::DecomposingNormalizerBorrowed;

/// Appends a text in lower case and without the accents that people leave out when they search; as much of it as begins within
/// so many bytes.
pub fn fold(text: &str, bytes_max: usize, out: &mut String) {
    if text.is_ascii() {
        out.extend(text.bytes().take(bytes_max).map(|byte| char::from(byte.to_ascii_lowercase())));
        return;
    }
    let begin = out.len();
    let decomposed = DecomposingNormalizerBorrowed::new_nfkd().normalize_iter(text.chars());
    for char in decomposed.flat_map(char::to_lowercase) {
        match char {
            // Accents of Latin, Greek and Cyrillic; in other scripts marks make other words.
            '\u{300}'..='\u{36f}' => {}
            'ß' => out.push_str("ss"),
            'ς' => out.push('σ'),
            '’' => out.push('\''),
            _ => out.push(char),
        }
        if out.len() - begin >= bytes_max {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_has_one_form() {
        let folded = |text: &str, most| {
            let mut out = "-".to_owned();
            fold(text, most, &mut out);
            out
        };
        for (text, form) in [("René", "-rene"), ("STRASSE", "-strasse"), ("Straße", "-strasse"), ("①", "-1"), ("", "-")]
        {
            assert_eq!(folded(text, 100), form, "{text}");
        }
        assert_eq!((folded("abcdef", 3), folded("éééééé", 3)), ("-abc".to_owned(), "-eee".to_owned()));
    }
}

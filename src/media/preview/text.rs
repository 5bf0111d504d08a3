//! Bytes of a page as text: encodings, entities, spaces.

/// How a page's bytes are meant. Encodings of many bytes a character but UTF-8 are not known: their tables are larger than the
/// rest of the previews, and one page of a hundred has them. Of those what is ASCII is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Encoding {
    #[default]
    Utf8,
    /// windows-1252, which browsers also read where ISO 8859-1 is said.
    Western,
    /// windows-1251.
    Cyrillic,
    Other,
}

/// windows-1252 from 0x80 to 0x9f; what has no character there is left out.
const WESTERN: &str = "€\0‚ƒ„…†‡ˆ‰Š‹Œ\0Ž\0\0‘’“”•–—˜™š›œ\0žŸ";
/// windows-1251 from 0x80 to 0xbf; behind it stand А to я.
const CYRILLIC: &str = "ЂЃ‚ѓ„…†‡€‰Љ‹ЊЌЋЏђ‘’“”•–—\0™љ›њќћџ\u{a0}ЎўЈ¤Ґ¦§Ё©Є«¬\u{ad}®Ї°±Ііґµ¶·ё№є»јЅѕї";

impl Encoding {
    /// By the name that a page or an answer gives.
    pub(super) fn named(name: &[u8]) -> Option<Encoding> {
        let name = name.trim_ascii().to_ascii_lowercase();
        Some(match name.as_slice() {
            b"" => return None,
            b"utf-8" | b"utf8" | b"us-ascii" | b"ascii" => Encoding::Utf8,
            b"iso-8859-1" | b"iso8859-1" | b"iso-8859-15" | b"latin1" | b"windows-1252" | b"cp1252" => {
                Encoding::Western
            }
            b"windows-1251" | b"cp1251" => Encoding::Cyrillic,
            _ => Encoding::Other,
        })
    }

    /// By the parameter of a content type.
    pub(super) fn of_content_type(content_type: &str) -> Option<Encoding> {
        let parameters = content_type.split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
        let mut named = parameters.filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
        Encoding::named(named.next()?.1.trim().trim_matches(['"', '\'']).as_bytes())
    }

    pub(super) fn text(self, bytes: &[u8]) -> String {
        let one =
            |byte: u8, first: u8, table: &str| table.chars().nth(usize::from(byte - first)).filter(|c| *c != '\0');
        let single = |of: &dyn Fn(u8) -> Option<char>| {
            bytes.iter().filter_map(|byte| if *byte < 0x80 { Some(char::from(*byte)) } else { of(*byte) }).collect()
        };
        match self {
            // A text that was cut off may end within a character.
            Encoding::Utf8 => String::from_utf8_lossy(bytes).trim_end_matches('\u{fffd}').to_owned(),
            Encoding::Western => single(&|byte| match byte {
                0x80..0xa0 => one(byte, 0x80, WESTERN),
                _ => Some(char::from(byte)),
            }),
            Encoding::Cyrillic => single(&|byte| match byte {
                0x80..0xc0 => one(byte, 0x80, CYRILLIC),
                _ => char::from_u32(u32::from('А') + u32::from(byte - 0xc0)),
            }),
            // The second byte of a character may be one of ASCII: it goes with the first.
            Encoding::Other => {
                let (mut text, mut rest) = (String::new(), bytes.iter());
                while let Some(byte) = rest.next() {
                    if byte.is_ascii() {
                        text.push(char::from(*byte));
                    } else {
                        rest.next();
                    }
                }
                text
            }
        }
    }
}

/// The entities that pages have in their titles, by name.
const ENTITIES: [(&str, char); 46] = [
    ("amp", '&'),
    ("lt", '<'),
    ("gt", '>'),
    ("quot", '"'),
    ("apos", '\''),
    ("nbsp", ' '),
    ("mdash", '—'),
    ("ndash", '–'),
    ("hellip", '…'),
    ("rsquo", '’'),
    ("lsquo", '‘'),
    ("rdquo", '”'),
    ("ldquo", '“'),
    ("bdquo", '„'),
    ("sbquo", '‚'),
    ("laquo", '«'),
    ("raquo", '»'),
    ("lsaquo", '‹'),
    ("rsaquo", '›'),
    ("bull", '•'),
    ("middot", '·'),
    ("copy", '©'),
    ("reg", '®'),
    ("trade", '™'),
    ("euro", '€'),
    ("pound", '£'),
    ("deg", '°'),
    ("times", '×'),
    ("auml", 'ä'),
    ("ouml", 'ö'),
    ("uuml", 'ü'),
    ("Auml", 'Ä'),
    ("Ouml", 'Ö'),
    ("Uuml", 'Ü'),
    ("szlig", 'ß'),
    ("eacute", 'é'),
    ("egrave", 'è'),
    ("ecirc", 'ê'),
    ("agrave", 'à'),
    ("aacute", 'á'),
    ("acirc", 'â'),
    ("ccedil", 'ç'),
    ("iacute", 'í'),
    ("oacute", 'ó'),
    ("uacute", 'ú'),
    ("ntilde", 'ñ'),
];
const ENTITY_BYTES_MAX: usize = 12;

/// A text with its entities expanded, runs of spaces as one, and nothing that controls a terminal or turns a line around.
pub(super) fn clean(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(character) = rest.chars().next() {
        let (shown, length) = match character {
            '&' => entity(rest).unwrap_or(('&', 1)),
            _ => (character, character.len_utf8()),
        };
        rest = &rest[length..];
        match shown {
            _ if shown.is_whitespace() => {
                if !out.is_empty() && !out.ends_with(' ') {
                    out.push(' ');
                }
            }
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {}
            _ if shown.is_control() => {}
            _ => out.push(shown),
        }
    }
    out.truncate(out.trim_end().len());
    out
}

/// The character of the entity that a text begins with, and the entity's length.
fn entity(text: &str) -> Option<(char, usize)> {
    let end = text.bytes().take(ENTITY_BYTES_MAX).position(|byte| byte == b';')?;
    let name = text.get(1..end)?;
    let number = match name.strip_prefix('#') {
        None => None,
        Some(number) => match number.strip_prefix(['x', 'X']) {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => number.parse().ok(),
        },
    };
    let by_name = || ENTITIES.iter().find(|(known, _)| *known == name).map(|(_, character)| *character);
    Some((number.and_then(char::from_u32).or_else(by_name)?, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_clean() {
        for (text, wanted) in [
            ("a  b\n\tc ", "a b c"),
            ("&amp;amp; &#65;&#x42; &nbsp; &bogus; & &;", "&amp; AB &bogus; & &;"),
            ("x\u{202e}y\u{1b}[0m", "xy[0m"),
            ("&#xd800; &#99999999999;", "&#xd800; &#99999999999;"),
            ("", ""),
        ] {
            assert_eq!(clean(text), wanted, "{text}");
        }
        assert_eq!((WESTERN.chars().count(), CYRILLIC.chars().count()), (32, 64));
    }
}

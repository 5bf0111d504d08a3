//! What a web page says about itself: Open Graph, its title, its description, out of a stream of pieces.
//!
//! No tree is made and no entity is expanded where it is not wanted. Held are the tag that is being read, and the texts that
//! were found, each with a bound; a tag that is longer is passed over. The texts are bytes until the end, when the encoding is
//! known. HTML, "Parsing"; ogp.me.

use super::text::{Encoding, clean};

/// A longer tag is passed over: pictures are written into some.
const TAG_BYTES_MAX: usize = 8 << 10;
/// A longer text is cut off: a title, a description, an address.
const TEXT_BYTES_MAX: usize = 2 << 10;
/// Of the words of the page itself, which are a description where it has none.
const WORDS_BYTES_MAX: usize = 1 << 10;
/// Properties that are kept: one of each kind.
const PROPERTIES_MAX: usize = KNOWN.len();
/// Of all of them. What is shown of a page are four, none of them as long as one may be.
const PROPERTIES_BYTES_MAX: usize = 18 << 10;

/// What is kept at most: the tag, its parts, and the texts. 38.3 KiB.
pub(super) const BYTES: u64 =
    (2 * TAG_BYTES_MAX + PROPERTIES_BYTES_MAX + (PROPERTIES_MAX + 2) * 64 + TEXT_BYTES_MAX + WORDS_BYTES_MAX) as u64;

/// Properties whose values are kept. Of each the first counts.
const KNOWN: [&str; 19] = [
    "og:title",
    "og:description",
    "og:image",
    "og:image:url",
    "og:image:secure_url",
    "og:image:alt",
    "og:url",
    "og:type",
    "og:site_name",
    "og:locale",
    "og:video",
    "og:audio",
    "twitter:title",
    "twitter:description",
    "twitter:image",
    "description",
    "robots",
    "article:published_time",
    "image_src",
];

/// What lies in these is text, and ends with their own end alone.
const RAW: [&str; 7] = ["script", "style", "iframe", "noembed", "noframes", "xmp", "textarea"];
/// The words in these are not what the page is about.
const ASIDE: [&str; 11] =
    ["nav", "header", "footer", "aside", "form", "button", "select", "svg", "noscript", "template", "menu"];

/// A page on its way.
pub(super) struct Page {
    state: State,
    tag: Vec<u8>,
    properties: Vec<(&'static str, Vec<u8>)>,
    title: Option<Vec<u8>>,
    encoding: Option<Encoding>,
    words: Vec<u8>,
    in_body: bool,
    /// Elements of [`ASIDE`] that are open.
    aside: u32,
}

enum State {
    Text,
    /// In a tag; within quotes, if these are.
    Tag {
        quote: Option<u8>,
        too_long: bool,
    },
    /// In a comment; so many dashes were the last bytes.
    Comment {
        dashes: u32,
    },
    /// In an element whose content is text: its name, and how much of `</name` was just read.
    Raw {
        name: &'static str,
        matched: usize,
    },
    Title {
        matched: usize,
    },
}

/// What a page says, as text.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Facts {
    /// `og:` properties by name.
    pub properties: Vec<(&'static str, String)>,
    /// The address of its picture, as it is given.
    pub picture: Option<String>,
}

impl Page {
    /// `encoding`: what the answer's head says, if it does.
    pub(super) fn new(encoding: Option<Encoding>) -> Page {
        Page {
            state: State::Text,
            tag: Vec::new(),
            properties: Vec::new(),
            title: None,
            encoding,
            words: Vec::new(),
            in_body: false,
            aside: 0,
        }
    }

    /// Reads on. False when no more is needed.
    pub(super) fn read(&mut self, piece: &[u8]) -> bool {
        for byte in piece {
            self.byte(*byte);
        }
        let has = |name: &str| self.properties.iter().any(|(known, _)| *known == name);
        let is_known = has("og:title") && has("og:image") && has("og:description");
        !(self.in_body && (is_known || self.words.len() >= WORDS_BYTES_MAX))
    }

    fn byte(&mut self, byte: u8) {
        match &mut self.state {
            State::Text if byte == b'<' => {
                self.tag.clear();
                self.state = State::Tag { quote: None, too_long: false };
            }
            State::Text => self.word(byte),
            State::Comment { dashes } => match byte {
                b'-' => *dashes += 1,
                b'>' if *dashes >= 2 => self.state = State::Text,
                _ => *dashes = 0,
            },
            State::Raw { name, matched } => {
                if is_end(name, matched, byte) {
                    self.state = State::Tag { quote: None, too_long: true };
                }
            }
            State::Title { matched } => {
                let is_end = is_end("title", matched, byte);
                let title = self.title.get_or_insert_default();
                if title.len() < TEXT_BYTES_MAX {
                    title.push(byte);
                }
                if is_end {
                    if title.last() == Some(&byte) && title.len() < TEXT_BYTES_MAX {
                        title.truncate(title.len() - "</title".len());
                    }
                    self.state = State::Tag { quote: None, too_long: true };
                }
            }
            State::Tag { quote, too_long } => {
                match (*quote, byte) {
                    (Some(open), byte) if byte == open => *quote = None,
                    (Some(_), _) => {}
                    (None, b'>') => return self.tag_done(),
                    (None, b'"' | b'\'') if ends_in_equals(&self.tag) => *quote = Some(byte),
                    // No tag, but a text with a bracket.
                    (None, _) if self.tag.is_empty() && !*too_long && !begins_tag(byte) => {
                        self.state = State::Text;
                        self.word(b'<');
                        return self.word(byte);
                    }
                    _ => {}
                }
                if self.tag.len() < TAG_BYTES_MAX {
                    self.tag.push(byte);
                } else {
                    // Its quotes are still followed; what is kept is its end.
                    *too_long = true;
                    self.tag.clear();
                    self.tag.push(byte);
                }
                if self.tag == b"!--" {
                    // Those of its beginning count: `<!-->` is a whole one.
                    self.state = State::Comment { dashes: 2 };
                }
            }
        }
    }

    fn tag_done(&mut self) {
        let too_long = matches!(self.state, State::Tag { too_long: true, .. });
        self.state = State::Text;
        let tag = std::mem::take(&mut self.tag);
        if !too_long {
            self.element(&tag);
        }
        self.tag = tag;
        // Elements stand between words.
        self.word(b' ');
    }

    fn element(&mut self, tag: &[u8]) {
        let (tag, is_end) = tag.strip_prefix(b"/").map_or((tag, false), |rest| (rest, true));
        let length = tag.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
        let (name, rest) = tag.split_at(length);
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        if ASIDE.into_iter().any(is) {
            let is_closed = tag.ends_with(b"/");
            self.aside = if is_end { self.aside.saturating_sub(1) } else { self.aside + u32::from(!is_closed) };
        }
        if is_end {
            return;
        }
        match () {
            () if is("body") => self.in_body = true,
            () if is("meta") => self.meta(rest),
            () if is("link") => self.link(rest),
            // One of a drawing is no title.
            () if is("title") && self.title.is_none() && self.aside == 0 => self.state = State::Title { matched: 0 },
            () => {
                if let Some(name) = RAW.into_iter().find(|raw| is(raw)) {
                    self.state = State::Raw { name, matched: 0 };
                }
            }
        }
    }

    fn meta(&mut self, attributes: &[u8]) {
        let (mut name, mut content) = (None, None);
        for (attribute, value) in Attributes(attributes) {
            match attribute.to_ascii_lowercase().as_slice() {
                b"property" | b"name" | b"itemprop" => name = name.or(Some(value)),
                b"content" => content = Some(value),
                b"charset" => self.encoding = self.encoding.or(Encoding::named(value)),
                _ => {}
            }
        }
        let Some(content) = content else { return };
        match name {
            Some(name) => self.keep(name, content),
            // http-equiv="content-type" content="text/html; charset=…"
            None => {
                self.encoding = self.encoding.or_else(|| Encoding::of_content_type(&String::from_utf8_lossy(content)))
            }
        }
    }

    fn link(&mut self, attributes: &[u8]) {
        let (mut is_picture, mut address) = (false, None);
        for (attribute, value) in Attributes(attributes) {
            match attribute.to_ascii_lowercase().as_slice() {
                b"rel" => is_picture = value.eq_ignore_ascii_case(b"image_src"),
                b"href" => address = Some(value),
                _ => {}
            }
        }
        if let (true, Some(address)) = (is_picture, address) {
            self.keep(b"image_src", address);
        }
    }

    fn keep(&mut self, name: &[u8], content: &[u8]) {
        let known = KNOWN.into_iter().find(|known| name.eq_ignore_ascii_case(known.as_bytes()));
        let Some(known) = known else { return };
        let is_new = self.properties.iter().all(|(other, _)| *other != known);
        let content = &content[..content.len().min(TEXT_BYTES_MAX)];
        let bytes: usize = self.properties.iter().map(|(_, text)| text.len()).sum();
        if is_new && !content.trim_ascii().is_empty() && bytes + content.len() <= PROPERTIES_BYTES_MAX {
            self.properties.push((known, content.to_vec()));
        }
    }

    /// A byte of the page's own text.
    fn word(&mut self, byte: u8) {
        if !self.in_body || self.aside > 0 || self.words.len() >= WORDS_BYTES_MAX {
            return;
        }
        let byte = if byte.is_ascii_whitespace() { b' ' } else { byte };
        if byte != b' ' || self.words.last().is_some_and(|last| *last != b' ') {
            self.words.push(byte);
        }
    }

    /// What the page said. `hides_text`: the answer's head forbids to show a part of it.
    pub(super) fn facts(mut self, hides_text: bool) -> Facts {
        let encoding = self.encoding.unwrap_or_default();
        let mut take = |names: &[&str]| {
            let found = names.iter().find_map(|name| {
                let at = self.properties.iter().position(|(known, _)| known == name)?;
                Some(self.properties.swap_remove(at).1)
            });
            found.map(|bytes| clean(&encoding.text(&bytes))).filter(|text| !text.is_empty())
        };
        let robots = take(&["robots"]).unwrap_or_default();
        let hides_text = hides_text || forbids_text(&robots);
        let title = take(&["og:title", "twitter:title"]);
        let description = take(&["og:description", "twitter:description", "description"]);
        let picture = take(&["og:image", "og:image:secure_url", "og:image:url", "twitter:image", "image_src"]);
        let own = |bytes: &[u8]| Some(clean(&encoding.text(bytes))).filter(|text| !text.is_empty());
        let title = title.or_else(|| own(self.title.as_deref()?));
        let description = description.or_else(|| own(&self.words));
        let mut facts = Facts::default();
        facts.properties.extend(title.map(|title| ("og:title", title)));
        if !hides_text {
            facts.properties.extend(description.map(|description| ("og:description", description)));
            facts.picture = picture;
        }
        for (name, bytes) in &self.properties {
            let is_shown = name.starts_with("og:") && *name != "og:description" && !name.starts_with("og:image");
            if is_shown && let Some(text) = own(bytes) {
                facts.properties.push((*name, text));
            }
        }
        facts
    }
}

/// Whether a list of words for robots forbids to show texts of the page.
pub(super) fn forbids_text(robots: &str) -> bool {
    let words = robots.split([',', ' ', ':']).map(str::trim);
    words.into_iter().any(|word| word.eq_ignore_ascii_case("nosnippet") || word.eq_ignore_ascii_case("none"))
}

/// Whether `byte` completes `</name`.
fn is_end(name: &str, matched: &mut usize, byte: u8) -> bool {
    let wanted = match *matched {
        0 => b'<',
        1 => b'/',
        at => name.as_bytes()[at - 2],
    };
    *matched = match byte.to_ascii_lowercase() == wanted {
        true => *matched + 1,
        false => usize::from(byte == b'<'),
    };
    *matched == name.len() + 2
}

fn begins_tag(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'/' | b'!' | b'?')
}

fn ends_in_equals(tag: &[u8]) -> bool {
    tag.trim_ascii_end().last() == Some(&b'=')
}

/// Names and values of a tag's attributes.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let is_between = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'/';
        let start = self.0.iter().position(|byte| !is_between(byte))?;
        let rest = &self.0[start..];
        let end =
            rest.iter().skip(1).position(|byte| is_between(byte) || *byte == b'=').map_or(rest.len(), |at| at + 1);
        let (name, rest) = rest.split_at(end);
        let Some(rest) = rest.trim_ascii_start().strip_prefix(b"=") else {
            self.0 = rest;
            return Some((name, &[]));
        };
        let rest = rest.trim_ascii_start();
        let (value, rest) = match rest.first() {
            Some(quote @ (b'"' | b'\'')) => {
                let end = rest[1..].iter().position(|byte| byte == quote).map_or(rest.len(), |at| at + 1);
                (&rest[1..end], rest.get(end + 1..).unwrap_or_default())
            }
            _ => rest.split_at(rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len())),
        };
        self.0 = rest;
        Some((name, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(page: &str) -> Facts {
        let mut whole = Page::new(None);
        whole.read(page.as_bytes());
        let whole = whole.facts(false);
        // In pieces of a byte it says the same.
        let mut pieces = Page::new(None);
        for byte in page.bytes() {
            pieces.read(&[byte]);
        }
        assert_eq!(pieces.facts(false), whole, "{page}");
        whole
    }

    fn says(page: &str, wanted: &[(&str, &str)], picture: Option<&str>) {
        let facts = facts(page);
        let found: Vec<_> = facts.properties.iter().map(|(name, text)| (*name, text.as_str())).collect();
        assert_eq!((&found[..], facts.picture.as_deref()), (wanted, picture), "{page}");
    }

    #[test]
    fn pages_say_what_they_are_about() {
        says(
            "<!doctype html><html><head><meta property=\"og:title\" content=\"A &amp; B\"><meta content='x &lt; y' property=og:description>\
             <meta property='og:image' content=/a.png /><meta property=og:site_name content=Site><title>not this</title></head>",
            &[("og:title", "A & B"), ("og:description", "x < y"), ("og:site_name", "Site")],
            Some("/a.png"),
        );
        says(
            "<html><head><TITLE>\n Much\t room </TITLE><meta name=description content=\"\"></head><body><header>menu</header>\
             <h1>Hello,</h1>\n<p>it&#39;s <b>me</b> &mdash; 1 < 2<script>if (a < b) \"</scrip\" </script><style>p{}</style>. <!-- no > -- this --><!-->, <!--->dear<!-- no --> End",
            &[("og:title", "Much room"), ("og:description", "Hello, it's me \u{2014} 1 < 2 . , dear End")],
            None,
        );
        says("<meta name=twitter:title content=T><meta name=twitter:image content=i>", &[("og:title", "T")], Some("i"));
        says("<link rel=image_src href='p'><title>a</title>", &[("og:title", "a")], Some("p"));
        says("<meta property=og:title content=a><meta property=og:title content=b>", &[("og:title", "a")], None);
        says("<svg><title>drawing</title></svg><title>page</title>", &[("og:title", "page")], None);
        says("", &[], None);
        says("<title>cut o", &[("og:title", "cut o")], None);
        says(
            "<meta name=robots content='noindex, nosnippet'><title>t</title><meta name=description content=d>",
            &[("og:title", "t")],
            None,
        );
        let long = format!("<a href=\"{}>\" x='y'><title>t</title>", "data".repeat(TAG_BYTES_MAX));
        says(&long, &[("og:title", "t")], None);
        says("<p don't><title>it's</title>", &[("og:title", "it's")], None);
    }

    #[test]
    fn other_alphabets() {
        let of = |page: &[u8], encoding: Option<Encoding>| {
            let mut read = Page::new(encoding);
            read.read(page);
            read.facts(false).properties[0].1.clone()
        };
        assert_eq!(of(b"<meta charset=iso-8859-1><title>\xe4\x80</title>", None), "\u{e4}\u{20ac}");
        assert_eq!(
            of(
                b"<meta http-equiv=content-type content='text/html; charset=windows-1251'><title>\xcf\xf0</title>",
                None
            ),
            "Пр"
        );
        assert_eq!(of("<title>ä</title>".as_bytes(), Encoding::of_content_type("text/html;charset=UTF-8")), "ä");
        assert_eq!(
            of(b"<meta charset=shift_jis><title>a\x83\x41b</title>", None),
            "ab",
            "what is not known is left out"
        );
    }

    #[test]
    fn any_bytes_are_a_page() {
        let seeds: [&[u8]; 3] = [
            b"<!doctype html><html><head><meta charset='utf-8'><meta property=\"og:title\" content='a&amp;b'><title>x</title></head><body><p>y</p>",
            b"<script>a</script><!-- b --><link rel=image_src href=c><svg/><meta name=robots content=none>",
            "<title>&auml;&#x1f600;&#0;&#xffffffff;&bogus;</title><meta content=é name=description>".as_bytes(),
        ];
        crate::base::any_bytes::any_bytes(&seeds, |bytes| {
            let mut page = Page::new(Encoding::of_content_type(&String::from_utf8_lossy(bytes)));
            for piece in bytes.chunks(7) {
                page.read(piece);
            }
            assert!(page.tag.len() <= TAG_BYTES_MAX && page.words.len() <= WORDS_BYTES_MAX);
            assert!(page.properties.iter().map(|(_, text)| text.len()).sum::<usize>() <= PROPERTIES_BYTES_MAX);
            for (_, text) in page.facts(false).properties {
                assert!(text.len() <= 4 * TEXT_BYTES_MAX && !text.contains(char::is_control), "{text:?}");
            }
        });
    }
}

//! robots.txt: which of its pages a site asks programs not to read.
//!
//! A file is read line by line for one page. Of each group that may count the best match so far is held, so a file of any length
//! and any number of groups is judged without being held. The rules themselves are kept for the site's next pages where
//! they are few. RFC 9309; a name in brackets is its section.

use crate::remote::USER_AGENT;

/// No more of a file is read (2.5: at least 500 KiB).
pub(super) const FILE_BYTES_MAX: u64 = 512 << 10;
/// A longer line is passed over: no link that is shown has a path as long.
const LINE_BYTES_MAX: usize = 2 << 10;
/// Rules of one site that are kept.
const RULES_BYTES_MAX: usize = 4 << 10;
/// `remote/web` asks no longer URL, and a path takes no more than its URL: what is decoded gets shorter.
const PATH_BYTES_MAX: usize = 8 << 10;
/// Beside its pattern.
const RULE_BYTES: usize = size_of::<Rule>() + 16;

/// What reading a file holds at most: a line and its pattern, which takes up to three bytes for one, the path, the rules of both groups.
pub(super) const BYTES: u64 = (4 * LINE_BYTES_MAX + PATH_BYTES_MAX + 2 * RULES_BYTES_MAX) as u64;

/// Any number of characters, and the end of the path. No byte becomes one of these.
const ANY: char = '\u{e000}';
const END: char = '\u{e001}';

/// What a site asks of programs like this one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rules(Vec<Rule>);

#[derive(Debug, Clone, PartialEq)]
struct Rule {
    allows: bool,
    pattern: Box<str>,
}

impl Rules {
    /// Of a site without any.
    pub(super) const NONE: Rules = Rules(Vec::new());

    /// Whether they leave a page to programs. `path`: as [`plain`] makes it.
    pub(super) fn allow(&self, path: &str) -> bool {
        let mut best = Best::default();
        for rule in &self.0 {
            best.look(rule.allows, &rule.pattern, path);
        }
        best.allows()
    }

    /// What they take.
    pub(super) fn bytes(&self) -> usize {
        self.0.iter().map(|rule| RULE_BYTES + rule.pattern.len()).sum()
    }
}

/// The path of a URL with its query, as it is compared.
pub(super) fn path(url: &url::Url) -> String {
    match url.query() {
        Some(query) => plain(format!("{}?{query}", url.path()).as_bytes(), false),
        None => plain(url.path().as_bytes(), false),
    }
}

/// The rule that matched with the most characters (2.2.2).
#[derive(Default)]
struct Best(Option<(usize, bool)>);

impl Best {
    fn look(&mut self, allows: bool, pattern: &str, path: &str) {
        if matches(pattern, path) {
            // The one that allows is the greater of two as long.
            self.0 = self.0.max(Some((pattern.chars().count(), allows)));
        }
    }

    fn allows(&self) -> bool {
        self.0.is_none_or(|(_, allows)| allows)
    }
}

/// A group, with all others for the same programs.
struct Group {
    is_there: bool,
    best: Best,
    /// None when they are too many.
    rules: Option<Rules>,
    bytes: usize,
}

impl Group {
    fn new() -> Group {
        Group { is_there: false, best: Best::default(), rules: Some(Rules::NONE), bytes: 0 }
    }

    fn add(&mut self, allows: bool, pattern: &str, path: &str) {
        self.best.look(allows, pattern, path);
        self.bytes += RULE_BYTES + pattern.len();
        match &mut self.rules {
            Some(rules) if self.bytes <= RULES_BYTES_MAX => rules.0.push(Rule { allows, pattern: pattern.into() }),
            rules => *rules = None,
        }
    }
}

/// Reads a file for one page.
pub(super) struct Reader<'a> {
    path: &'a str,
    /// For this program by its name, and for all that have none.
    ours: Group,
    all: Group,
    /// Which of them the group of this line is.
    of_ours: bool,
    of_all: bool,
    /// The group has had a rule: the next name begins another.
    has_rule: bool,
    line: Vec<u8>,
    too_long: bool,
    lines: u64,
}

impl<'a> Reader<'a> {
    pub(super) fn new(path: &'a str) -> Reader<'a> {
        Reader {
            path,
            ours: Group::new(),
            all: Group::new(),
            of_ours: false,
            of_all: false,
            has_rule: false,
            line: Vec::new(),
            too_long: false,
            lines: 0,
        }
    }

    pub(super) fn read(&mut self, piece: &[u8]) {
        for byte in piece {
            match byte {
                b'\n' | b'\r' => self.line_done(),
                _ if self.line.len() < LINE_BYTES_MAX => self.line.push(*byte),
                // What it is about stands at its beginning.
                _ => self.too_long = true,
            }
        }
    }

    /// The file was read to its end: the last line needs no end of its own. Whether the page is left to programs, and the
    /// rules when they are few.
    pub(super) fn end(mut self) -> (bool, Option<Rules>) {
        self.line_done();
        self.cut()
    }

    /// The same of a file that is longer: what was read of its last line is none.
    pub(super) fn cut(self) -> (bool, Option<Rules>) {
        // Whoever is named has nothing to do with the rules for all others (2.2.1).
        let group = if self.ours.is_there { self.ours } else { self.all };
        (group.best.allows(), group.rules)
    }

    fn line_done(&mut self) {
        let line = std::mem::take(&mut self.line);
        self.line_read(&line);
        self.line = line;
        self.line.clear();
        self.too_long = false;
        self.lines += 1;
    }

    fn line_read(&mut self, line: &[u8]) {
        let line = line.strip_prefix(b"\xef\xbb\xbf").filter(|_| self.lines == 0).unwrap_or(line);
        let line = line.split(|byte| *byte == b'#').next().unwrap_or_default();
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return };
        let (key, value) = (line[..colon].trim_ascii(), line[colon + 1..].trim_ascii());
        let is = |name: &str| key.eq_ignore_ascii_case(name.as_bytes());
        if is("user-agent") {
            self.name(value);
        } else if is("allow") || is("disallow") {
            self.has_rule = true;
            if !value.is_empty() && !self.too_long && (self.of_ours || self.of_all) {
                let pattern = plain(value, true);
                for group in [self.of_ours.then_some(&mut self.ours), self.of_all.then_some(&mut self.all)] {
                    group.into_iter().for_each(|group| group.add(is("allow"), &pattern, self.path));
                }
            }
        }
    }

    fn name(&mut self, value: &[u8]) {
        if std::mem::take(&mut self.has_rule) {
            (self.of_ours, self.of_all) = (false, false);
        }
        // A version after it means nothing.
        let length = value.iter().take_while(|byte| byte.is_ascii_alphabetic() || matches!(byte, b'-' | b'_')).count();
        let own = USER_AGENT.split('/').next().unwrap_or_default();
        if value.split(u8::is_ascii_whitespace).next() == Some(b"*") {
            (self.of_all, self.all.is_there) = (true, true);
        } else if value[..length].eq_ignore_ascii_case(own.as_bytes()) {
            (self.of_ours, self.ours.is_there) = (true, true);
        }
    }
}

/// A path or a pattern as it is compared (2.2.2): each octet a character, however it was written. What is special in a
/// pattern (2.2.3) is [`ANY`] and [`END`].
fn plain(text: &[u8], is_pattern: bool) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        plain.push(match byte {
            b'*' if is_pattern => ANY,
            b'$' if is_pattern && rest.is_empty() => END,
            b'%' => match octet(rest) {
                Some(octet) => {
                    rest = &rest[2..];
                    octet as char
                }
                None => '%',
            },
            byte => *byte as char,
        });
    }
    plain
}

fn octet(digits: &[u8]) -> Option<u8> {
    let digit = |at: usize| (*digits.get(at)? as char).to_digit(16);
    Some((digit(0)? << 4 | digit(1)?) as u8)
}

/// Whether a pattern matches the beginning of a path. Each search goes on where the one before ended, and the search of
/// `str` is linear: the work is at most that of reading both.
fn matches(pattern: &str, path: &str) -> bool {
    let (pattern, to_end) = pattern.strip_suffix(END).map_or((pattern, false), |pattern| (pattern, true));
    let Some((first, others)) = pattern.split_once(ANY) else {
        return if to_end { path == pattern } else { path.starts_with(pattern) };
    };
    let Some(mut rest) = path.strip_prefix(first) else { return false };
    let mut others = others.split(ANY).peekable();
    while let Some(part) = others.next() {
        if to_end && others.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(path: &str) -> url::Url {
        url::Url::parse(&format!("https://example.com{path}")).unwrap()
    }

    /// Whether a file leaves a page to us: read at once, in pieces of a byte, and by the rules that were kept.
    fn allows(file: &str, page: &str) -> bool {
        let path = path(&url(page));
        let (mut whole, mut pieces) = (Reader::new(&path), Reader::new(&path));
        whole.read(file.as_bytes());
        file.bytes().for_each(|byte| pieces.read(&[byte]));
        let (allows, rules) = whole.end();
        assert_eq!((allows, rules.clone()), pieces.end(), "{file}");
        assert!(rules.is_none_or(|rules| rules.allow(&path) == allows), "{file} {page}");
        allows
    }

    fn all(rules: &str) -> String {
        format!("User-agent: *\n{rules}")
    }

    /// The examples of RFC 9309, with the names of ours.
    #[test]
    fn the_examples_of_the_standard() {
        // 5.1
        let simple = "User-Agent: *\nDisallow: *.gif$\nDisallow: /example/\nAllow: /publications/\n\nUser-Agent: foobot\n\
                      Disallow:/\nAllow:/example/page.html\nAllow:/example/allowed.gif\n\nUser-Agent: barbot\n\
                      User-Agent: snug\nDisallow: /example/page.html\n\nUser-Agent: quxbot\n\nEOF";
        assert!(!allows(simple, "/example/page.html"));
        assert!(allows(simple, "/example/other.gif") && allows(simple, "/"), "the rules for all are not for us");
        let to_all = simple.replace("snug", "bazbot");
        assert!(!allows(&to_all, "/example/page.html") && !allows(&to_all, "/a.gif") && allows(&to_all, "/a.gifs"));
        assert!(allows(&to_all, "/publications/a"));
        let to_foobot = simple.replace("foobot", "Snug");
        assert!(allows(&to_foobot, "/example/page.html") && allows(&to_foobot, "/example/allowed.gif"));
        assert!(!allows(&to_foobot, "/example/"));
        assert!(allows(&simple.replace("snug", "x").replace("quxbot", "snug"), "/example/"), "a group without rules");
        // 5.2
        let longest = "User-Agent: snug\nAllow: /example/page/\nDisallow: /example/page/disallowed.gif\n";
        assert!(!allows(longest, "/example/page/disallowed.gif") && allows(longest, "/example/page/"));
        // 2.2.1
        let merged = "user-agent: SNUG\ndisallow: /foo\ndisallow: /bar\nuser-agent: barbot\ndisallow: /baz\nuser-agent: Snug\ndisallow: /zoo";
        for (page, is) in [("/foo", false), ("/bar", false), ("/baz", true), ("/zoo", false)] {
            assert_eq!(allows(merged, page), is, "{page}");
        }
        assert!(allows("User-agent: examplebot\nDisallow: /", "/"), "no group is ours");
        assert!(allows("Disallow: /", "/"), "no group at all");
        // 2.2.3
        assert!(!allows(&all("Disallow: / # all"), "/a"));
        assert!(!allows(&all("Allow: /this/path/exactly$\nDisallow: /"), "/this/path/exactly/not"));
        assert!(allows(&all("Allow: /this/path/exactly$\nDisallow: /"), "/this/path/exactly"));
        let inner = all("Disallow: /this/*/exactly");
        assert!(!allows(&inner, "/this/path/exactly") && !allows(&inner, "/this/a/b/exactly/x"));
        assert!(allows(&inner, "/this/exactly"));
        let star = all("Disallow: /path/file-with-a-%2A.html");
        assert!(!allows(&star, "/path/file-with-a-*.html") && allows(&star, "/path/file-with-a-b.html"));
        let dollar = all("Disallow: /path/foo-%24");
        assert!(!allows(&dollar, "/path/foo-$") && allows(&dollar, "/path/foo-"));
    }

    /// The table of 2.2.2.
    #[test]
    fn octets_are_the_same_however_they_are_written() {
        for (rule, page) in [
            ("/foo/bar?baz=quz", "/foo/bar?baz=quz"),
            ("/foo/bar?baz=https://foo.bar", "/foo/bar?baz=https%3A%2F%2Ffoo.bar"),
            ("/foo/bar?baz=https%3a%2f%2Ffoo.bar", "/foo/bar?baz=https://foo.bar"),
            ("/foo/bar/\u{30c4}", "/foo/bar/%E3%83%84"),
            ("/foo/bar/%e3%83%84", "/foo/bar/\u{30c4}"),
            ("/foo/bar/%62%61%7A", "/foo/bar/baz"),
            ("/a b|\"", "/a b|\""),
            ("/100%", "/100%"),
            ("/%zz%4", "/%zz%4"),
        ] {
            assert!(!allows(&all(&format!("Disallow: {rule}$")), page), "{rule}");
        }
        assert!(allows(&all("Disallow: /Foo"), "/foo"), "a path has its case");
        // Half a character of UTF-8 is no character that stands for any.
        assert!(allows(&all("Disallow: /\u{e000}x"), "/abcx"));
        assert!(!allows(&all("Disallow: /\u{e000}x"), "/%ee%80%80x"));
    }

    #[test]
    fn the_longest_rule_counts_and_of_two_the_one_that_allows() {
        assert!(allows(&all("Disallow: /a\nAllow: /a"), "/a") && allows(&all("Allow: /a\nDisallow: /a"), "/a"));
        assert!(!allows(&all("Allow: /\nDisallow: /a"), "/a") && allows(&all("Disallow: /\nAllow: /a"), "/a"));
        assert!(!allows(&all("Allow: /page\nDisallow: /*.htm"), "/page.htm"));
        assert!(allows(&all("Allow: /$\nDisallow: /"), "/") && !allows(&all("Allow: /$\nDisallow: /"), "/page"));
        assert!(
            allows(&all("Disallow:"), "/") && allows(&all("Disallow: $"), "/") && !allows(&all("Disallow: *"), "/")
        );
        assert!(!allows(&all("Disallow: /**a***b*$"), "/xaxbx") && allows(&all("Disallow: /*a*a$"), "/a"));
        assert!(!allows(&all("Disallow: /*.php$"), "/a.php.php") && allows(&all("Disallow: /*.php$"), "/a.php?a"));
        assert!(allows(&all("Disallow: page"), "/page"), "a path begins with a slash");
    }

    #[test]
    fn lines_are_read_as_they_come() {
        assert!(!allows("\u{feff}USER-AGENT : *\rDISALLOW:/", "/"));
        assert!(!allows("user-agent: a\r\n\r\nSitemap: x\r\nuser-agent: *\r\nCrawl-delay: 1\r\ndisallow: /\r\n", "/"));
        assert!(!allows("user-agent: Snug/1.0 # we\ndisallow: /", "/"));
        assert!(allows("user-agent: Snuggle\ndisallow: /", "/") && allows("user-agent: *bot\ndisallow: /", "/"));
        assert!(allows("<!doctype html><html>\nuser-agent\n:\n::\n", "/"));
        // A name that is too long is nobody's, and a rule that is too long matches nothing.
        let long = "x".repeat(LINE_BYTES_MAX);
        assert!(allows(&format!("user-agent: a{long}\ndisallow: /\n"), "/"));
        assert!(!allows(&format!("user-agent: *\ndisallow: /{long}\ndisallow: /b"), "/b"));
        assert!(allows(&format!("user-agent: *\nallow: /{long}\nuser-agent: b\ndisallow: /b"), "/b"));
    }

    /// However much comes: what is held is bounded, and what it says counts to the end.
    #[test]
    fn long_files_are_judged_and_not_held() {
        let path = path(&url("/page"));
        let mut reader = Reader::new(&path);
        reader.read(b"user-agent: *\ndisallow: /a\n");
        let line = vec![b'x'; 64 << 10];
        for _ in 0..100 {
            reader.read(&line);
        }
        assert_eq!(reader.line.len(), LINE_BYTES_MAX);
        for at in 0..20_000 {
            reader.read(format!("\nuser-agent: bot{at}\ndisallow: /\nuser-agent: *\ndisallow: /{at}").as_bytes());
        }
        assert!(reader.all.rules.is_none() && reader.line.capacity() <= LINE_BYTES_MAX);
        reader.read(b"\ndisallow: /pa");
        assert!(reader.cut().0, "a line without its end");
        let (mut reader, mut rules) = (Reader::new(&path), all(""));
        for at in 0..10_000 {
            rules += &format!("disallow: /{at}\n");
        }
        reader.read(rules.as_bytes());
        reader.read(b"disallow: /page");
        assert_eq!(reader.end(), (false, None));
        // Rules that would take long if each were tried at each place.
        let slow = format!("disallow: /*{}b*{}b\n", "a".repeat(900), "a".repeat(900));
        let (path, mut reader) = (plain(&[b'/'].into_iter().chain([b'a'; 2000]).collect::<Vec<_>>(), false), None);
        let reader = reader.get_or_insert(Reader::new(&path));
        reader.read(b"user-agent: *\n");
        for _ in 0..FILE_BYTES_MAX / slow.len() as u64 {
            reader.read(slow.as_bytes());
        }
        assert!(reader.all.best.allows());
    }

    #[test]
    fn any_bytes_are_a_file() {
        let seeds: [&[u8]; 3] = [
            b"User-agent: *\nDisallow: /*a$\nAllow: /%41\n\nUser-agent: snug\r\nDisallow: /",
            b"\xef\xbb\xbfuser-agent:snug/1\rdisallow:*\xff%\xe3%8\n#",
            b"allow: /\nuser-agent: b\nuser-agent: *\ndisallow:/$*$",
        ];
        let path = path(&url("/a/%ff$*?b"));
        crate::base::any_bytes::any_bytes(&seeds, |bytes| {
            let mut reader = Reader::new(&path);
            bytes.chunks(5).for_each(|piece| reader.read(piece));
            let (allows, rules) = reader.end();
            assert!(rules.is_none_or(|rules| rules.allow(&path) == allows && rules.bytes() <= RULES_BYTES_MAX));
        });
    }
}

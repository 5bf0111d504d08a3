//! The list of a backup: what is in it, each thing with its SHA-256. A backup without its whole list is none.
//!
//! Lines of text: a head, a line for each thing, and an end with a SHA-256 of all lines before. Somebody else may have written
//! it: nothing in it names a place on the disk that this file does not allow.

use std::io::{self, BufRead, BufReader, Read};

use sha2::{Digest, Sha256};

use super::{Error, Media};

const FIRST: &str = "snug backup 1";
/// Longer lines are not ours: a name of 200 letters, a hash, numbers.
pub const LINE_BYTES_MAX: usize = 512;
/// A file of the data folder, such as a key.
pub const FILE_BYTES_MAX: u64 = 256 << 10;
/// Names in the data folder that are no such files.
pub const NO_FILES: [&str; 6] = ["database", "media", "scratch", "restoring", "verified", "admin"];

/// What a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A small file of the data folder.
    File,
    /// A piece of the database's rows.
    Rows,
    /// A media file.
    Media,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::File => "files",
            Kind::Rows => "rows",
            Kind::Media => "media",
        }
    }
}

/// One thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: Kind,
    /// A file's path in the data folder; a piece's number; of a media file nothing.
    pub name: String,
    /// SHA-256 of what it is, before it was packed or sealed.
    pub hash: [u8; 32],
    pub bytes: u64,
}

impl Entry {
    pub fn line(&self) -> String {
        let name = if self.name.is_empty() { "-" } else { &self.name };
        format!("{} {name} {} {}\n", self.kind.name(), hex(&self.hash), self.bytes)
    }

    pub fn parse(line: &str) -> Option<Entry> {
        let mut words = line.split(' ');
        let (kind, name, hash, bytes) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let kind = [Kind::File, Kind::Rows, Kind::Media].into_iter().find(|known| known.name() == kind)?;
        let name = if name == "-" { "" } else { name };
        let fits = match kind {
            Kind::File => is_file_name(name),
            Kind::Rows => name.len() >= 6 && name.bytes().all(|byte| byte.is_ascii_digit()),
            Kind::Media => name.is_empty(),
        };
        let entry = Entry { kind, name: name.to_owned(), hash: unhex(hash)?, bytes: bytes.parse().ok()? };
        (fits && words.next().is_none()).then_some(entry)
    }
}

/// Whether a path in the data folder may be in a backup: plain names, none that the server has another meaning for.
pub fn is_file_name(name: &str) -> bool {
    let is_plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-@+=".contains(&byte))
    };
    let first = name.split(['/', '.']).next().unwrap_or_default();
    name.len() <= 200 && name.split('/').count() <= 3 && name.split('/').all(is_plain) && !NO_FILES.contains(&first)
}

/// The beginning of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub server: String,
    pub made_ms: u64,
    /// The version of the program that made it.
    pub program: String,
    /// The format of the rows.
    pub format: u32,
    pub media: Media,
    /// Rows in all.
    pub rows: u64,
    /// The key of the names of sealed things.
    pub names: Option<[u8; 32]>,
}

impl Head {
    pub fn text(&self) -> String {
        let names = self.names.map_or("-".to_owned(), |key| hex(&key));
        format!(
            "{FIRST}\nserver {}\nmade {}\nprogram {}\nformat {}\nmedia {}\nrows {}\nnames {names}\n",
            self.server,
            self.made_ms,
            self.program,
            self.format,
            self.media.name(),
            self.rows
        )
    }

    pub fn parse(text: &str) -> Result<Head, Error> {
        let mut lines = text.lines();
        match lines.next() {
            Some(FIRST) => {}
            Some(other) if other.starts_with("snug backup ") => {
                return Err(Error::Bad("it was made by a newer version of Snug".to_owned()));
            }
            _ => return Err(Error::Bad("this is no backup of Snug".to_owned())),
        }
        let mut word = |name: &str| {
            let line = lines.next().and_then(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.ok_or_else(|| Error::Bad("the head of its list is damaged".to_owned()))
        };
        let damaged = || Error::Bad("the head of its list is damaged".to_owned());
        // It is shown: nothing in it may tell a terminal what to do.
        let server = Some(word("server")?).filter(|name| name.bytes().all(|byte| byte.is_ascii_graphic()));
        let server = server.ok_or_else(damaged)?.to_owned();
        let made_ms = word("made")?.parse().map_err(|_| damaged())?;
        let program = word("program")?.to_owned();
        let format = word("format")?.parse().map_err(|_| damaged())?;
        let media = Media::named(word("media")?).ok_or_else(damaged)?;
        let rows = word("rows")?.parse().map_err(|_| damaged())?;
        let names = match word("names")? {
            "-" => None,
            key => Some(unhex(key).ok_or_else(damaged)?),
        };
        Ok(Head { server, made_ms, program, format, media, rows, names })
    }
}

/// The lines of [`Head::text`].
const HEAD_LINES: usize = 8;

/// The end of a list.
pub fn end_line(entries: u64, hash: Sha256) -> String {
    format!("end {entries} {}\n", hex(&hash.finalize()))
}

/// Reads a list line by line.
pub struct Lines<R> {
    input: BufReader<R>,
    hash: Sha256,
    entries: u64,
}

impl<R: Read> Lines<R> {
    /// Begins with the head.
    pub fn begin(input: R) -> Result<(Lines<R>, Head), Error> {
        let mut lines = Lines { input: BufReader::with_capacity(4096, input), hash: Sha256::new(), entries: 0 };
        let mut head = String::new();
        for _ in 0..HEAD_LINES {
            let line = lines.line()?;
            lines.hash.update(line.as_bytes());
            head.push_str(&line);
        }
        Ok((lines, Head::parse(&head)?))
    }

    fn line(&mut self) -> Result<String, Error> {
        let mut line = Vec::new();
        self.input.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Err(Error::Bad("its list is not whole".to_owned()));
        }
        String::from_utf8(line).map_err(|_| Error::Bad("its list is damaged".to_owned()))
    }

    /// The next thing; none behind the last, once it is known that no line is missing.
    pub fn next(&mut self) -> Result<Option<Entry>, Error> {
        let line = self.line()?;
        if line.starts_with("end ") {
            let is_right = line == end_line(self.entries, self.hash.clone());
            let is_over = self.input.fill_buf()?.is_empty();
            return match is_right && is_over {
                true => Ok(None),
                false => Err(Error::Bad("its list is damaged".to_owned())),
            };
        }
        self.hash.update(line.as_bytes());
        self.entries += 1;
        let entry = Entry::parse(line.trim_end_matches('\n'));
        entry.map(Some).ok_or_else(|| Error::Bad("its list is damaged".to_owned()))
    }
}

pub fn hex(bytes: &[u8]) -> String {
    crate::store::tables::hex(bytes)
}

pub fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits = text.as_bytes();
    if digits.len() != 64 || digits.iter().any(|digit| !matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// The SHA-256 of a file's bytes, and how many they are.
pub fn hash_of(input: &mut dyn Read) -> io::Result<([u8; 32], u64)> {
    let (mut hash, mut bytes, mut piece) = (Sha256::new(), 0, vec![0; 16 << 10]);
    loop {
        match input.read(&mut piece)? {
            0 => return Ok((hash.finalize().into(), bytes)),
            read => {
                hash.update(&piece[..read]);
                bytes += read as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            server: "example.org".to_owned(),
            made_ms: 1_764_462_317_000,
            program: "0.1.0".to_owned(),
            format: 3,
            media: Media::Own,
            rows: 7,
            names: Some([7; 32]),
        }
    }

    fn list() -> String {
        let entry = |kind, name: &str| Entry { kind, name: name.to_owned(), hash: [1; 32], bytes: 5 };
        let mut text = head().text();
        text += &entry(Kind::File, "signing.key").line();
        text += &entry(Kind::Rows, "000001").line();
        text += &entry(Kind::Media, "").line();
        let hash = Sha256::new().chain_update(&text);
        text + &end_line(3, hash)
    }

    fn read(text: &[u8]) -> Result<(Head, u64), Error> {
        let (mut lines, head) = Lines::begin(text)?;
        while lines.next()?.is_some() {}
        Ok((head, lines.entries))
    }

    #[test]
    fn a_list_comes_back_and_no_damaged_one_does() {
        let text = list();
        assert_eq!(read(text.as_bytes()).unwrap(), (head(), 3));
        for at in 0..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[at] ^= 1;
            assert!(read(&wrong).is_err(), "{at}");
            assert!(read(&text.as_bytes()[..at]).is_err(), "{at}");
        }
        assert!(read(format!("{text}x").as_bytes()).is_err());
        assert!(Head::parse(&Head { server: "a\u{1b}[2J".to_owned(), ..head() }.text()).is_err());
        assert!(read(&[b'a'; 10_000]).is_err());
    }

    /// A backup that somebody else made may name any file.
    #[test]
    fn no_name_leads_out_of_the_folder() {
        for name in ["snug.toml", "old-signing-keys", "acme/account.key"] {
            assert!(is_file_name(name), "{name}");
        }
        let wrong = [
            "",
            "..",
            "../a",
            "a/../b",
            "/etc/passwd",
            "a//b",
            ".ssh",
            "a/.b",
            "a\\b",
            "a b",
            "database",
            "database.journal",
            "media/ab",
            "scratch",
            "restoring/a",
            "admin.sock",
            "a/b/c/d",
            "a\0",
        ];
        for name in wrong {
            assert!(!is_file_name(name), "{name:?}");
            assert_eq!(Entry::parse(&format!("files {name} {} 1", "0".repeat(64))), None, "{name:?}");
        }
    }
}

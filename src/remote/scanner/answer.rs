//! What scanners say.

use super::{MARK, NAME_CHARS_MAX, ScanFailed, Scanned, Scanner};
use crate::base::bounded;

/// What the beginning of an answer says.
pub(super) enum Said {
    Judged(Result<Scanned, ScanFailed>),
    /// The file is given back as it was, from this byte of the answer on. That may begin before all of it was looked at, and ends early
    /// when something is found: c-icap keeps whoever waits in patience so.
    GivesBack(usize),
}

/// Counts the bytes of what comes in chunks (RFC 9112, section 7.1).
#[derive(Default)]
pub(super) struct GivenBack {
    pub(super) bytes: u64,
    /// Of the chunk that comes now: what its size says so far, and then what is still to come.
    left: u64,
    at: Chunk,
}

#[derive(Default, PartialEq, Eq)]
enum Chunk {
    #[default]
    Size,
    /// The rest of the line with the size.
    Line,
    /// The bytes, and the end of their line.
    Bytes,
    Over,
}

impl GivenBack {
    pub(super) fn is_over(&self) -> bool {
        self.at == Chunk::Over
    }

    pub(super) fn take(&mut self, mut piece: &[u8]) {
        while let Some((&byte, rest)) = piece.split_first() {
            if self.at == Chunk::Bytes && self.left > 0 {
                let now = self.left.min(piece.len() as u64);
                self.left -= now;
                self.bytes = self.bytes.saturating_add(now);
                piece = &piece[now as usize..];
                continue;
            }
            match self.at {
                Chunk::Size | Chunk::Line if byte == b'\n' => {
                    self.at = if self.left == 0 { Chunk::Over } else { Chunk::Bytes };
                }
                Chunk::Size => match (byte as char).to_digit(16) {
                    Some(digit) => self.left = self.left.saturating_mul(16).saturating_add(digit.into()),
                    None => self.at = Chunk::Line,
                },
                Chunk::Bytes if byte == b'\n' => self.at = Chunk::Size,
                Chunk::Line | Chunk::Bytes => {}
                Chunk::Over => return,
            }
            piece = rest;
        }
    }
}

/// What an answer says as far as it is there; none while more of it is needed.
pub(super) fn said(scanner: &Scanner, answer: &[u8], ended: bool) -> Option<Said> {
    match scanner {
        Scanner::Icap { .. } => icap_said(answer),
        _ => clamd_said(answer, ended).map(Said::Judged),
    }
}

/// `stream: OK`, `stream: NAME FOUND`, or an error.
pub(super) fn clamd_said(answer: &[u8], ended: bool) -> Option<Result<Scanned, ScanFailed>> {
    let end = answer.iter().position(|byte| matches!(byte, 0 | b'\n')).or_else(|| ended.then_some(answer.len()))?;
    if end == 0 {
        return None;
    }
    let line = String::from_utf8_lossy(&answer[..end]);
    let line = line.trim();
    let said = line.strip_prefix("stream:").unwrap_or(line).trim();
    Some(match said.strip_suffix("FOUND") {
        _ if said == "OK" => Ok(Scanned::Clean),
        Some(name) => Ok(Scanned::Infected(name_of(name))),
        None => Err(ScanFailed::Unjudged(format!("says: {}", bounded(said, NAME_CHARS_MAX)))),
    })
}

/// 204 is a file that may pass as it is. 200 has the file in it, which is the same when it has our header, or what stands in its
/// place. 100 says nothing, as often as it comes.
pub(super) fn icap_said(mut answer: &[u8]) -> Option<Said> {
    let all = answer.len();
    let (end, head, status) = loop {
        let end = memchr::memmem::find(answer, b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&answer[..end]);
        let first = head.lines().next().and_then(|line| line.strip_prefix("ICAP/1."));
        match first.and_then(|line| line.split(' ').nth(1)?.parse::<u16>().ok()) {
            Some(100) => answer = &answer[end + 4..],
            status => break (end, head, status),
        }
    };
    let header = |wanted: &str| header_of(&head, wanted);
    // `Type=0; Resolution=2; Threat=NAME;`
    let threat = header("x-infection-found").map(|found| {
        let named = found.split(';').find_map(|part| part.trim().strip_prefix("Threat="));
        named.unwrap_or(found)
    });
    if let Some(name) = threat.or_else(|| header("x-virus-id")) {
        return Some(Said::Judged(Ok(Scanned::Infected(name_of(name)))));
    }
    Some(Said::Judged(match status {
        Some(204) => Ok(Scanned::Clean),
        Some(200) => {
            // The head of what stands there now, behind that of the request if it has one.
            let rest = &answer[end + 4..];
            let inside_end = memchr::memmem::find(rest, b"\r\n\r\n")?;
            let inside = String::from_utf8_lossy(&rest[..inside_end]);
            let is_same = inside.lines().any(|line| line.to_ascii_lowercase().starts_with(MARK));
            let is_ok = inside.lines().next().and_then(|line| line.split(' ').nth(1)) == Some("200");
            if is_same && is_ok {
                return Some(Said::GivesBack(all - (rest.len() - inside_end - 4)));
            }
            Ok(Scanned::Infected(header("x-violations-found").map_or_else(|| "blocked".to_owned(), name_of)))
        }
        Some(status) => Err(ScanFailed::Unjudged(format!("answers with ICAP status {status}"))),
        None => Err(ScanFailed::Unjudged("does not speak ICAP".to_owned())),
    }))
}

fn header_of<'a>(head: &'a str, wanted: &str) -> Option<&'a str> {
    let found = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    found.filter(|(name, _)| name.trim().eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim()).next()
}

/// What stands for a scanner's database in its answer: `ClamAV 1.4.3/27800/Mon Oct 27 …`, or the header `ISTag`. None while more is
/// needed, `Some(None)` when it does not say.
pub(super) fn edition_said(scanner: &Scanner, answer: &[u8], ended: bool) -> Option<Option<String>> {
    if let Scanner::Icap { .. } = scanner {
        let Some(end) = memchr::memmem::find(answer, b"\r\n\r\n") else { return ended.then_some(None) };
        let head = String::from_utf8_lossy(&answer[..end]);
        let is_well = head.starts_with("ICAP/1.") && head.split(' ').nth(1) == Some("200");
        return Some(header_of(&head, "istag").filter(|_| is_well).map(str::to_owned));
    }
    let end = answer.iter().position(|byte| matches!(byte, 0 | b'\n')).or_else(|| ended.then_some(answer.len()))?;
    let line = String::from_utf8_lossy(&answer[..end]).trim().to_owned();
    // Without a database it names itself alone.
    Some((line.starts_with("ClamAV ") && line.contains('/')).then_some(line))
}

/// A scanner's name for something, fit for a log and a message.
fn name_of(text: &str) -> String {
    let plain: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    match bounded(plain, NAME_CHARS_MAX) {
        name if name.is_empty() => "something harmful".to_owned(),
        name => name,
    }
}

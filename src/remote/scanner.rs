//! Scanners that say whether a file is harmful: a server of ICAP (RFC 3507, `RESPMOD`), which c-icap and most products for companies
//! are, or ClamAV's own daemon, by its `INSTREAM` command.
//!
//! The file goes there as it is read, a piece at a time, while the answer is awaited: a scanner may answer before it has all of it.
//! What it answers is read up to [`ANSWER_BYTES_MAX`]; of a file that it gives back only the bytes are counted. The address is the
//! owner's, so it may be at home or on this machine, and there is no TLS on the way.

use std::fmt;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::Remote;
use super::lookup::Miss;
use crate::base::{Clock, blocking, bounded};

/// The memory of a scan: a piece, the answer, and the connection.
pub const SCAN_BYTES: u64 = 28 << 10;
const PIECE_BYTES: usize = 16 << 10;
/// The heads of an answer, or ClamAV's line.
const ANSWER_BYTES_MAX: usize = 8 << 10;
const CONNECT: Duration = Duration::from_secs(10);
/// The longest that a scan may take: a gigabyte on a slow board.
const TIME_MAX: Duration = Duration::from_secs(600);
/// The longest silence, while nothing can be sent and no answer comes.
const STALL: Duration = Duration::from_secs(120);
/// Of what it found.
const NAME_CHARS_MAX: usize = 100;
/// A header of the file as it is sent, which what a scanner puts in its place does not have.
const MARK: &str = "x-snug-unchanged";
const ICAP_PORT: u16 = 1344;
const CLAMD_PORT: u16 = 3310;

/// Where a scanner is, and what it speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scanner {
    Icap {
        host: String,
        port: u16,
        /// The service, without the slash before it.
        service: String,
    },
    Clamd {
        host: String,
        port: u16,
    },
    ClamdSocket(PathBuf),
}

impl Scanner {
    /// Reads `icap://host:port/service`, `clamd://host:port` or `clamd:/path/of/the.socket`.
    pub fn parse(text: &str) -> Result<Scanner, String> {
        let wrong = || {
            format!(
                "{text:?} is no scanner: write \"clamd:/run/clamav/clamd.ctl\", \"clamd://127.0.0.1:{CLAMD_PORT}\" or \
                 \"icap://127.0.0.1:{ICAP_PORT}/avscan\""
            )
        };
        let place = |place: &str, usual: u16| {
            let (host, port) = match place.rsplit_once(':') {
                Some((host, port)) if !host.ends_with(':') && (!host.contains(':') || host.ends_with(']')) => {
                    (host, port.parse().map_err(|_| wrong())?)
                }
                _ => (place, usual),
            };
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let fits = |c: char| c.is_ascii_alphanumeric() || ".:-_".contains(c);
            match !host.is_empty() && host.chars().all(fits) {
                true => Ok((host.to_owned(), port)),
                false => Err(wrong()),
            }
        };
        if let Some(rest) = text.strip_prefix("icap://") {
            let (at, service) = rest.split_once('/').ok_or_else(wrong)?;
            let (host, port) = place(at, ICAP_PORT)?;
            let fits = !service.is_empty() && service.bytes().all(|b| b.is_ascii_graphic());
            return if fits { Ok(Scanner::Icap { host, port, service: service.to_owned() }) } else { Err(wrong()) };
        }
        let Some(rest) = text.strip_prefix("clamd:") else { return Err(wrong()) };
        match rest.strip_prefix("//") {
            Some(path) if path.starts_with('/') => Ok(Scanner::ClamdSocket(path.into())),
            Some(at) => place(at, CLAMD_PORT).map(|(host, port)| Scanner::Clamd { host, port }),
            None if rest.starts_with('/') => Ok(Scanner::ClamdSocket(rest.into())),
            None => Err(wrong()),
        }
    }
}

impl fmt::Display for Scanner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scanner::Icap { host, port, service } => write!(f, "icap://{}:{port}/{service}", bracketed(host)),
            Scanner::Clamd { host, port } => write!(f, "clamd://{}:{port}", bracketed(host)),
            Scanner::ClamdSocket(path) => write!(f, "clamd:{}", path.display()),
        }
    }
}

/// A host as it stands before a port.
fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// What a scanner says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scanned {
    Clean,
    /// With the scanner's name for what is in it.
    Infected(String),
}

/// Why it says nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ScanFailed {
    /// It is not there.
    #[error("the scanner cannot be reached: {0}")]
    Away(String),
    /// It does not judge this file.
    #[error("the scanner {0}")]
    Unjudged(String),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Remote {
    /// Has a file judged. The caller pays [`SCAN_BYTES`].
    pub async fn scan(&self, scanner: &Scanner, file: Arc<File>, bytes: u64) -> Result<Scanned, ScanFailed> {
        let clock = &self.0.clock;
        let away = |why: &dyn fmt::Display| ScanFailed::Away(format!("{scanner}: {why}"));
        let stream: Box<dyn Stream> = match scanner {
            Scanner::ClamdSocket(path) => {
                let connected = clock.timeout(CONNECT, UnixStream::connect(path)).await;
                let connected = connected.ok_or_else(|| away(&"no sign of it"))?;
                Box::new(connected.map_err(|error| away(&error))?)
            }
            Scanner::Icap { host, port, .. } | Scanner::Clamd { host, port } => {
                Box::new(self.connect_to_scanner(host, *port).await.map_err(|why| away(&why))?)
            }
        };
        let judged = judge(scanner, stream, file, bytes, clock);
        clock.timeout(TIME_MAX, judged).await.unwrap_or(Err(ScanFailed::Unjudged("did not end in time".to_owned())))
    }

    async fn connect_to_scanner(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let clock = &self.0.clock;
        let addresses = match host.parse() {
            Ok(ip) => vec![ip],
            Err(_) => self.0.web.addresses_of(host).await.map_err(|miss| match miss {
                Miss::Absent(why) | Miss::Silent(why) => why,
            })?,
        };
        let mut last = "it has no address".to_owned();
        for ip in addresses.into_iter().take(super::dns::ADDRESSES_MAX) {
            match clock.timeout(CONNECT, TcpStream::connect(SocketAddr::new(ip, port))).await {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(error)) => last = error.to_string(),
                None => last = "no sign of it".to_owned(),
            }
        }
        Err(last)
    }
}

async fn judge(
    scanner: &Scanner,
    stream: Box<dyn Stream>,
    file: Arc<File>,
    bytes: u64,
    clock: &Clock,
) -> Result<Scanned, ScanFailed> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut answer = Vec::new();
    let mut sending = std::pin::pin!(send(scanner, &mut writer, file, bytes, clock));
    let (mut is_sent, mut ended, mut piece) = (false, false, [0; 1024]);
    // The file as it comes back, once that has begun.
    let mut back: Option<GivenBack> = None;
    loop {
        match &back {
            Some(back) if back.is_over() => {
                return Ok(match back.bytes == bytes {
                    true => Scanned::Clean,
                    false => Scanned::Infected("blocked".to_owned()),
                });
            }
            Some(_) if ended => {
                return Err(ScanFailed::Unjudged("breaks off the file that it gives back".to_owned()));
            }
            Some(_) => {}
            None => match said(scanner, &answer, ended) {
                Some(Said::Judged(said)) => return said,
                // There is nothing to come back.
                Some(Said::GivesBack(_)) if bytes == 0 => return Ok(Scanned::Clean),
                Some(Said::GivesBack(from)) => {
                    let mut begun = GivenBack::default();
                    begun.take(&answer[from..]);
                    answer = Vec::new();
                    back = Some(begun);
                    continue;
                }
                None if ended || answer.len() >= ANSWER_BYTES_MAX => {
                    return Err(ScanFailed::Unjudged("answers nothing usable".to_owned()));
                }
                None => {}
            },
        }
        tokio::select! {
            read = clock.timeout(STALL, reader.read(&mut piece)) => match read {
                Some(Ok(0)) | Some(Err(_)) => ended = true,
                Some(Ok(length)) => match &mut back {
                    Some(back) => back.take(&piece[..length]),
                    None => answer.extend_from_slice(&piece[..length]),
                },
                None if is_sent => return Err(ScanFailed::Unjudged("does not answer".to_owned())),
                // What sends has a patience of its own.
                None => {}
            },
            // One that wants no more of it says why: what it answers is read all the same.
            sent = &mut sending, if !is_sent => match sent {
                Err(Unsent::Here(error)) => return Err(ScanFailed::Unjudged(format!("was not asked: the file cannot be read: {error}"))),
                Err(Unsent::Stalled) => return Err(ScanFailed::Unjudged("takes no more of the file".to_owned())),
                Err(Unsent::There) | Ok(()) => is_sent = true,
            },
        }
    }
}

/// Why a file could not be sent whole.
enum Unsent {
    /// It cannot be read here.
    Here(std::io::Error),
    There,
    Stalled,
}

async fn send(
    scanner: &Scanner,
    to: &mut (dyn AsyncWrite + Send + Unpin),
    file: Arc<File>,
    bytes: u64,
    clock: &Clock,
) -> Result<(), Unsent> {
    let is_icap = matches!(scanner, Scanner::Icap { .. });
    let begin = match scanner {
        Scanner::Icap { host, port, service } => icap_head(host, *port, service, bytes),
        _ => b"zINSTREAM\0".to_vec(),
    };
    write(to, &begin, clock).await?;
    let (mut at, mut buffer) = (0, Vec::with_capacity(PIECE_BYTES + 16));
    while at < bytes {
        let (file, length) = (file.clone(), (bytes - at).min(PIECE_BYTES as u64) as usize);
        let mut piece = std::mem::take(&mut buffer);
        let read = blocking(move || {
            piece.clear();
            match is_icap {
                true => piece.extend_from_slice(format!("{length:x}\r\n").as_bytes()),
                false => piece.extend_from_slice(&(length as u32).to_be_bytes()),
            }
            let start = piece.len();
            piece.resize(start + length, 0);
            file.read_exact_at(&mut piece[start..], at)?;
            if is_icap {
                piece.extend_from_slice(b"\r\n");
            }
            Ok::<_, std::io::Error>(piece)
        });
        buffer = read.await.map_err(Unsent::Here)?;
        write(to, &buffer, clock).await?;
        at += length as u64;
    }
    write(to, if is_icap { b"0\r\n\r\n" } else { &[0; 4] }, clock).await
}

async fn write(to: &mut (dyn AsyncWrite + Send + Unpin), bytes: &[u8], clock: &Clock) -> Result<(), Unsent> {
    match clock.timeout(STALL, to.write_all(bytes)).await {
        Some(Ok(())) => Ok(()),
        Some(Err(_)) => Err(Unsent::There),
        None => Err(Unsent::Stalled),
    }
}

/// The heads of a `RESPMOD` about a file as if it had been downloaded. Its name and its type are for nobody else: the bytes are judged.
fn icap_head(host: &str, port: u16, service: &str, bytes: u64) -> Vec<u8> {
    let host = bracketed(host);
    let asked = "GET http://media.invalid/file HTTP/1.1\r\nHost: media.invalid\r\n\r\n";
    let answered = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {bytes}\r\n{MARK}: 1\r\n\r\n"
    );
    let (body, all) = (asked.len(), asked.len() + answered.len());
    format!(
        "RESPMOD icap://{host}:{port}/{service} ICAP/1.0\r\nHost: {host}:{port}\r\nUser-Agent: {}\r\nAllow: 204\r\n\
         Connection: close\r\nEncapsulated: req-hdr=0, res-hdr={body}, res-body={all}\r\n\r\n{asked}{answered}",
        super::USER_AGENT
    )
    .into_bytes()
}

/// What the beginning of an answer says.
enum Said {
    Judged(Result<Scanned, ScanFailed>),
    /// The file is given back as it was, from this byte of the answer on. That may begin before all of it was looked at, and ends early
    /// when something is found: c-icap keeps whoever waits in patience so.
    GivesBack(usize),
}

/// Counts the bytes of what comes in chunks (RFC 9112, section 7.1).
#[derive(Default)]
struct GivenBack {
    bytes: u64,
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
    fn is_over(&self) -> bool {
        self.at == Chunk::Over
    }

    fn take(&mut self, mut piece: &[u8]) {
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
fn said(scanner: &Scanner, answer: &[u8], ended: bool) -> Option<Said> {
    match scanner {
        Scanner::Icap { .. } => icap_said(answer),
        _ => clamd_said(answer, ended).map(Said::Judged),
    }
}

/// `stream: OK`, `stream: NAME FOUND`, or an error.
fn clamd_said(answer: &[u8], ended: bool) -> Option<Result<Scanned, ScanFailed>> {
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
fn icap_said(mut answer: &[u8]) -> Option<Said> {
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
    let header = |wanted: &str| {
        let found = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        found.filter(|(name, _)| name.trim().eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim()).next()
    };
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

/// A scanner's name for something, fit for a log and a message.
fn name_of(text: &str) -> String {
    let plain: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    match bounded(plain, NAME_CHARS_MAX) {
        name if name.is_empty() => "something harmful".to_owned(),
        name => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scanners_are_named() {
        let icap = |host: &str, port| Scanner::Icap { host: host.to_owned(), port, service: "avscan".to_owned() };
        for (text, scanner) in [
            ("icap://127.0.0.1:1345/avscan", Some(icap("127.0.0.1", 1345))),
            ("icap://[::1]/avscan", Some(icap("::1", 1344))),
            ("icap://scan.lan/avscan", Some(icap("scan.lan", 1344))),
            ("icap://127.0.0.1:1344", None),
            ("icap://127.0.0.1:x/avscan", None),
            ("icap://a b/avscan", None),
            ("clamd://nas.lan", Some(Scanner::Clamd { host: "nas.lan".to_owned(), port: 3310 })),
            ("clamd:/run/clamav/clamd.ctl", Some(Scanner::ClamdSocket("/run/clamav/clamd.ctl".into()))),
            ("clamd:///run/clamav/clamd.ctl", Some(Scanner::ClamdSocket("/run/clamav/clamd.ctl".into()))),
            ("clamd:x", None),
            ("http://127.0.0.1", None),
        ] {
            assert_eq!(Scanner::parse(text).ok(), scanner, "{text}");
            if let Some(scanner) = scanner {
                assert_eq!(
                    Scanner::parse(&scanner.to_string()),
                    Ok(scanner.clone()).map_err(|(): ()| String::new()),
                    "{scanner}"
                );
            }
        }
    }

    fn verdict(said: Option<Result<Scanned, ScanFailed>>) -> String {
        match said {
            None => "more".to_owned(),
            Some(Ok(Scanned::Clean)) => "clean".to_owned(),
            Some(Ok(Scanned::Infected(name))) => format!("infected: {name}"),
            Some(Err(failed)) => failed.to_string(),
        }
    }

    #[test]
    fn what_a_scanner_says_is_understood() {
        for (answer, says) in [
            (&b"stream: OK\0"[..], "clean"),
            (b"stream: Win.Test.EICAR_HDB-1 FOUND\0", "infected: Win.Test.EICAR_HDB-1"),
            (b"INSTREAM size limit exceeded. ERROR\0", "the scanner says: INSTREAM size limit exceeded. ERROR"),
            (b"stream: O", "more"),
            (b"", "more"),
        ] {
            assert_eq!(verdict(clamd_said(answer, false)), says);
        }
        assert_eq!(verdict(clamd_said(b"stream: OK", true)), "clean");
        let page = "HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\n\r\n";
        let same = format!("HTTP/1.0 200 OK\r\n{MARK}: 1\r\n\r\n");
        for (answer, says) in [
            ("ICAP/1.0 204 Unmodified\r\nServer: C-ICAP\r\n\r\n".to_owned(), "clean"),
            (
                format!("ICAP/1.0 200 OK\r\nX-Infection-Found: Type=0; Resolution=2; Threat=Eicar-Test;\r\n\r\n{page}"),
                "infected: Eicar-Test",
            ),
            ("ICAP/1.0 200 OK\r\nx-virus-id: Eicar\r\n\r\n".to_owned(), "infected: Eicar"),
            (format!("ICAP/1.0 200 OK\r\nISTag: x\r\n\r\n{page}"), "infected: blocked"),
            (format!("ICAP/1.0 200 OK\r\nISTag: x\r\n\r\n{same}"), "as it was"),
            ("ICAP/1.0 200 OK\r\n\r\nHTTP/1.1 200 OK\r\nX: y\r\n\r\n".to_owned(), "infected: blocked"),
            ("ICAP/1.0 200 OK\r\nISTag: x\r\n\r\nHTTP/1.1 2".to_owned(), "more"),
            ("ICAP/1.0 100 Continue\r\n\r\nICAP/1.0 204 x\r\n\r\n".to_owned(), "clean"),
            ("ICAP/1.0 100 Continue\r\n\r\n".repeat(300), "more"),
            ("ICAP/1.0 404 ICAP Service not found\r\n\r\n".to_owned(), "the scanner answers with ICAP status 404"),
            ("HTTP/1.1 200 OK\r\n\r\n".to_owned(), "the scanner does not speak ICAP"),
            ("ICAP/1.0 204 Unmodi".to_owned(), "more"),
        ] {
            let said = match icap_said(answer.as_bytes()) {
                Some(Said::GivesBack(from)) if from == answer.len() => "as it was".to_owned(),
                Some(Said::GivesBack(from)) => format!("from {from} on"),
                Some(Said::Judged(said)) => verdict(Some(said)),
                None => verdict(None),
            };
            assert_eq!(said, says, "{answer}");
        }
    }

    /// c-icap begins to give a large file back before it has looked at all of it, and ends early when it finds something: the
    /// beginning alone was taken for its word.
    #[tokio::test]
    async fn a_file_that_is_given_back_is_clean_when_all_of_it_came() {
        let path = std::env::temp_dir().join(format!("snug-given-back-{}", std::process::id()));
        std::fs::write(&path, [b'x'; 100]).unwrap();
        let scanner = Scanner::Icap { host: "127.0.0.1".to_owned(), port: 1344, service: "avscan".to_owned() };
        let heads = format!("ICAP/1.0 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n{MARK}: 1\r\n\r\n");
        let half = "x".repeat(50);
        for (given, says) in [
            (format!("{heads}32\r\n{half}\r\n32;a=b\r\n{half}\r\n0\r\n\r\n"), "clean"),
            (format!("{heads}5\r\nxxxxx\r\n0\r\n\r\n"), "infected: blocked"),
            (format!("{heads}32\r\n{half}\r\n32\r\nxx"), "the scanner breaks off the file that it gives back"),
        ] {
            let (here, mut there) = tokio::io::duplex(64 << 10);
            there.write_all(given.as_bytes()).await.unwrap();
            there.shutdown().await.unwrap();
            let (file, clock) = (Arc::new(File::open(&path).unwrap()), Clock::simulated(1_000_000));
            let said = judge(&scanner, Box::new(here), file, 100, &clock).await;
            assert_eq!(verdict(Some(said)), says, "{given}");
        }
        let _ = std::fs::remove_file(&path);
    }

    #[test]
    fn any_bytes_are_an_answer_or_none() {
        let icap: &[u8] =
            b"ICAP/1.0 200 OK\r\nX-Infection-Found: Type=0; Threat=\xc3\xa4;\r\n\r\nHTTP/1.1 403 x\r\n\r\n";
        let again: &[u8] = b"ICAP/1.0 100 Continue\r\n\r\nICAP/1.0 204 x\r\n\r\n";
        crate::base::any_bytes::any_bytes(&[icap, again, b"stream: A FOUND\0"], |bytes| {
            let _ = (icap_said(bytes), clamd_said(bytes, true), clamd_said(bytes, false));
            GivenBack::default().take(bytes);
        });
    }
}

//! Scanners that say whether a file is harmful: a server of ICAP (RFC 3507, `RESPMOD`), which c-icap and most products for companies
//! are, or ClamAV's own daemon, by its `INSTREAM` command.
//!
//! The file goes there as it is read, a piece at a time, while the answer is awaited: a scanner may answer before it has all of it.
//! What it answers is read up to [`ANSWER_BYTES_MAX`]; of a file that it gives back only the bytes are counted. The address is the
//! owner's, so it may be at home or on this machine, and there is no TLS on the way.
//!
//! Reading order: this file (which scanners, and what is asked of them), `exchange.rs` (one connection), `answer.rs` (what is said).

use std::fmt;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::Remote;
use super::lookup::Miss;

mod answer;
mod exchange;
#[cfg(test)]
mod tests;

/// The memory of a scan: a piece, the answer, and the connection.
pub const SCAN_BYTES: u64 = 28 << 10;
/// The memory of what asks only whether the scanner answers, or for its database: the answer, and the connection.
pub const PROBE_BYTES: u64 = 12 << 10;
const PIECE_BYTES: usize = 16 << 10;
/// The heads of an answer, or ClamAV's line.
const ANSWER_BYTES_MAX: usize = 8 << 10;
const CONNECT: Duration = Duration::from_secs(10);
/// The longest that a scan may take: a gigabyte on a slow board.
const TIME_MAX: Duration = Duration::from_secs(600);
/// The longest silence, while nothing can be sent and no answer comes.
const STALL: Duration = Duration::from_secs(120);
/// A scanner that does not judge [`PROBE`] in so long judges nothing.
const PROBE_TIME: Duration = Duration::from_secs(10);
/// What is sent to see whether a scanner judges anything.
const PROBE: &[u8] = b"Snug asks whether its scanner is there.\n";
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

/// What is sent to be judged.
#[derive(Clone)]
enum Content {
    File(Arc<File>, u64),
    Text(&'static [u8]),
}

impl Content {
    fn bytes(&self) -> u64 {
        match self {
            Content::File(_, bytes) => *bytes,
            Content::Text(text) => text.len() as u64,
        }
    }

    /// Blocking.
    fn read_at(&self, into: &mut [u8], at: u64) -> std::io::Result<()> {
        match self {
            Content::File(file, _) => file.read_exact_at(into, at),
            Content::Text(text) => {
                let from = at as usize;
                let part = text.get(from..from + into.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
                into.copy_from_slice(part);
                Ok(())
            }
        }
    }
}

/// How often the scanner took or said something: whoever waits for a scan sees by it whether it goes on.
#[derive(Default)]
pub struct Signs(AtomicU64);

impl Signs {
    fn one_more(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Remote {
    /// Has a file judged. The caller pays [`SCAN_BYTES`].
    pub async fn scan(
        &self,
        scanner: &Scanner,
        file: Arc<File>,
        bytes: u64,
        signs: &Signs,
    ) -> Result<Scanned, ScanFailed> {
        let stream = self.scanner_stream(scanner).await?;
        let judged = exchange::judge(scanner, stream, Content::File(file, bytes), signs, &self.0.clock);
        let judged = self.0.clock.timeout(TIME_MAX, judged).await;
        judged.unwrap_or(Err(ScanFailed::Unjudged("did not end in time".to_owned())))
    }

    /// Whether a scanner judges anything now: it is sent a few words. The caller pays [`PROBE_BYTES`]. The error says what it is
    /// that it does not.
    pub async fn probe_scanner(&self, scanner: &Scanner) -> Result<(), String> {
        let signs = Signs::default();
        let probe = async {
            let stream = self.scanner_stream(scanner).await?;
            exchange::judge(scanner, stream, Content::Text(PROBE), &signs, &self.0.clock).await
        };
        match self.0.clock.timeout(PROBE_TIME, probe).await {
            Some(Ok(_)) => Ok(()),
            Some(Err(ScanFailed::Away(why))) => Err(why),
            Some(Err(ScanFailed::Unjudged(what))) => Err(format!("{scanner}: it {what}")),
            None => Err(format!("{scanner}: it does not answer")),
        }
    }

    /// What stands for the database that a scanner judges by; none when it does not say, or is not there. Another one is a newer one.
    /// The caller pays [`PROBE_BYTES`].
    pub async fn scanner_edition(&self, scanner: &Scanner) -> Option<u64> {
        let asked = async {
            let stream = self.scanner_stream(scanner).await.ok()?;
            exchange::edition(scanner, stream, &self.0.clock).await
        };
        self.0.clock.timeout(PROBE_TIME, asked).await.flatten()
    }

    async fn scanner_stream(&self, scanner: &Scanner) -> Result<Box<dyn Stream>, ScanFailed> {
        let away = |why: &dyn fmt::Display| ScanFailed::Away(format!("{scanner}: {why}"));
        Ok(match scanner {
            Scanner::ClamdSocket(path) => {
                let connected = self.0.clock.timeout(CONNECT, UnixStream::connect(path)).await;
                let connected = connected.ok_or_else(|| away(&"no sign of it"))?;
                Box::new(connected.map_err(|error| away(&error))?)
            }
            Scanner::Icap { host, port, .. } | Scanner::Clamd { host, port } => {
                Box::new(self.connect_to_scanner(host, *port).await.map_err(|why| away(&why))?)
            }
        })
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

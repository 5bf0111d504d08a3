//! The transfer of a file from another server, piece by piece.
//!
//! Server-server API, "Content Repository": the answer is `multipart/mixed`, first a JSON object, then the file, or the
//! URL that it is at. Servers from before that are asked on the old unauthenticated path.

use std::time::Duration;

use bytes::Bytes;
use memchr::memmem;
use ruma::http_headers::ContentDisposition;
use ruma::{OwnedServerName, ServerName};

use super::elsewhere::{Held, Share};
use super::picture::Shape;
use super::{About, Error, Media};
use crate::budget::Grant;
use crate::remote::web::{WebAnswer, WebFailed, WebLimits, WebRequest};
use crate::remote::{self, Failed, StreamLimits, encode};

/// The memory of a file that is passed through: two pieces on their way, and a little.
pub(super) const PASSING_BYTES: u64 = 40 << 10;
/// The most that is taken of one file, kept or passed through.
const BYTES_MAX: u64 = 2 << 30;
/// For all of a file that a third server has.
const WEB_TIME: Duration = Duration::from_secs(15 * 60);
/// Headers of both parts together.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// So much is read of what follows the file: a boundary's rest.
const BEHIND_BYTES_MAX: usize = 4 << 10;
const FIRST_TIMEOUT: Duration = Duration::from_secs(60);

/// The smaller image that is wanted.
#[derive(Debug, Clone)]
pub struct Scaled {
    pub width: u32,
    pub height: u32,
    /// Cut to the shape instead of fitted into it.
    pub crop: bool,
}

/// The transfer of a file from another server.
pub(super) struct Incoming {
    pub(super) about: About,
    /// The file's length, where it is said. A transfer that ends with another is an error.
    length: Option<u64>,
    /// The most bytes the file can have, where that is known.
    at_most: Option<u64>,
    received: u64,
    source: Source,
}

enum Source {
    Plain(Box<remote::Body>),
    Part(Box<Part>),
    /// A third server that the file was said to be at.
    Web(Box<WebAnswer>),
}

impl Incoming {
    fn new(about: About, length: Option<u64>, at_most: Option<u64>, source: Source) -> Incoming {
        Incoming { about: about.short(), length, at_most: length.or(at_most), received: 0, source }
    }

    pub(super) fn length(&self) -> Option<u64> {
        self.length
    }

    pub(super) fn at_most(&self) -> Option<u64> {
        self.at_most
    }

    /// The next piece; none at the end. A file cut off is an error, never an end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failed> {
        let piece = match &mut self.source {
            Source::Plain(body) => body.next().await?,
            Source::Part(part) => part.next().await?,
            Source::Web(answer) => answer.next().await.map_err(elsewhere)?,
        };
        self.received += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        let is_wrong = |length: u64| self.received > length || piece.is_none() && self.received < length;
        match self.length.is_some_and(is_wrong) {
            true => Err(Failed::BadAnswer("the file has not the length it was said to have".to_owned())),
            false => Ok(piece),
        }
    }
}

/// A file that is passed through, for one reader.
pub struct Fetched {
    pub content_type: Option<String>,
    pub name: Option<String>,
    incoming: Incoming,
    grant: Option<Grant>,
    /// Held as long as it goes on.
    _share: Share,
}

impl Fetched {
    fn new(mut incoming: Incoming, held: Held) -> Fetched {
        let About { content_type, name } = std::mem::take(&mut incoming.about);
        Fetched { content_type, name, incoming, grant: Some(held.grant), _share: held.share }
    }

    /// Pays for the transfer; to be kept as long as the transfer goes on.
    pub fn take_grant(&mut self) -> Option<Grant> {
        self.grant.take()
    }

    /// The next piece; none at the end. A file cut off is an error, never an end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failed> {
        self.incoming.next().await
    }
}

impl Media {
    /// Fetches a file, or a smaller image of it, from the server that has it, for one reader. Nothing is kept.
    pub(super) async fn fetch(
        &self,
        server: &ServerName,
        media_id: &str,
        shape: Option<Shape>,
    ) -> Result<Fetched, Error> {
        let of = server.to_owned();
        let _asking = self.turn_to_ask(&of).await?;
        let held = self.take_elsewhere(&of, PASSING_BYTES).await?;
        Ok(Fetched::new(self.incoming(server, media_id, shape).await?, held))
    }

    /// Passes a transfer through that has begun.
    pub(super) async fn pass(&self, server: &OwnedServerName, incoming: Incoming) -> Result<Fetched, Error> {
        Ok(Fetched::new(incoming, self.take_elsewhere(server, PASSING_BYTES).await?))
    }

    /// Begins the transfer of a file, or of a smaller image of it, from the server that has it.
    pub(super) async fn incoming(
        &self,
        server: &ServerName,
        media_id: &str,
        shape: Option<Shape>,
    ) -> Result<Incoming, Error> {
        let (what, query) = match shape {
            None => ("download", "?timeout_ms=20000".to_owned()),
            Some(shape) => {
                let ((width, height), method) = (shape.bounds(), if shape.is_crop() { "crop" } else { "scale" });
                ("thumbnail", format!("?timeout_ms=20000&width={width}&height={height}&method={method}"))
            }
        };
        let id = encode(media_id);
        let target = format!("/_matrix/federation/v1/media/{what}/{id}{query}");
        match self.stream(server, &target).await {
            Ok(body) => match Part::open(body).await? {
                Opening::Here(incoming) => Ok(*incoming),
                Opening::At { url, about } => self.of_web(url, about).await,
            },
            Err(failed) if is_unknown_there(&failed) => {
                let target = format!(
                    "/_matrix/media/v3/{what}/{}/{id}{query}&allow_remote=false&allow_redirect=false",
                    encode(server.as_str())
                );
                let body = self.stream(server, &target).await?;
                let about = about(|name| body.header(name));
                let length = body.length();
                Ok(Incoming::new(about, length, None, Source::Plain(Box::new(body))))
            }
            Err(failed) => Err(failed.into()),
        }
    }

    /// A file that its server says to be at some URL. Nothing there is told who asks, and no private address is asked.
    async fn of_web(&self, url: String, said: About) -> Result<Incoming, Error> {
        let limits = WebLimits { time: WEB_TIME, body_bytes_max: BYTES_MAX, ..WebLimits::default() };
        // The time is for all of it, and no time to say nothing in.
        let asked =
            self.0.parts.clock.timeout(FIRST_TIMEOUT, self.0.parts.remote.web().ask(WebRequest::get(url), limits));
        let answer = asked.await.unwrap_or(Err(WebFailed::Timeout)).map_err(elsewhere)?;
        if answer.status != 200 {
            let (status, message) = (answer.status, "redirects to where the file is not".to_owned());
            let (errcode, retry_after_ms, room_version) = (String::new(), None, None);
            return Err(Failed::Status { status, errcode, message, retry_after_ms, room_version }.into());
        }
        let found = about(|name| answer.headers.get(name).and_then(|value| value.to_str().ok()));
        let about = About { content_type: found.content_type.or(said.content_type), name: found.name.or(said.name) };
        let length = answer.headers.get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Incoming::new(about, length, None, Source::Web(Box::new(answer))))
    }

    async fn stream(&self, server: &ServerName, target: &str) -> Result<remote::Body, Failed> {
        let pace = StreamLimits { first: FIRST_TIMEOUT, ..StreamLimits::patient(BYTES_MAX) };
        self.0.parts.remote.stream(server, http::Method::GET, target, None, pace).await
    }
}

/// What the headers of an answer say about a file.
fn about<'a>(header: impl Fn(&str) -> Option<&'a str>) -> About {
    About {
        content_type: header("content-type").map(ToOwned::to_owned),
        name: header("content-disposition").and_then(file_name),
    }
}

fn elsewhere(failed: WebFailed) -> Failed {
    match failed {
        WebFailed::Refused(refused) => Failed::Refused(refused),
        WebFailed::TooLarge { max_bytes } => Failed::TooLarge { max_bytes },
        WebFailed::Timeout => Failed::Timeout,
        other => Failed::BadAnswer(format!("redirects to a third one, which is {other}")),
    }
}

/// The server does not know the path, as opposed to the file.
fn is_unknown_there(failed: &Failed) -> bool {
    matches!(failed, Failed::Status { status: 400 | 401 | 404 | 405 | 501, errcode, .. }
        if errcode != "M_NOT_FOUND" && errcode != "M_NOT_YET_UPLOADED")
}

/// What a `multipart/mixed` body begins with.
enum Opening {
    Here(Box<Incoming>),
    /// The file is somewhere else.
    At {
        url: String,
        about: About,
    },
}

/// The second part of a `multipart/mixed` body.
struct Part {
    body: remote::Body,
    buffer: Vec<u8>,
    /// The delimiter that ends the part: line break, two dashes, the boundary.
    delimiter: Vec<u8>,
    done: bool,
}

impl Part {
    /// Reads up to the second part. The boundary is the first line, whatever the header calls it.
    async fn open(mut body: remote::Body) -> Result<Opening, Failed> {
        let bad = |what: &str| Failed::BadAnswer(format!("the file does not come in the specified form: {what}"));
        let mut buffer = Vec::new();
        loop {
            let Some(piece) = body.next().await? else { return Err(bad("it ends early")) };
            buffer.extend_from_slice(&piece);
            match head(&buffer) {
                Some(Head { delimiter, headers, length }) => {
                    let header =
                        |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
                    let about = about(header);
                    if let Some(url) = header("location") {
                        return Ok(Opening::At { url: url.to_owned(), about });
                    }
                    let stated = header("content-length").and_then(|length| length.parse().ok());
                    let at_most = body.length().map(|all| all.saturating_sub(length as u64));
                    buffer.drain(..length);
                    let part = Part { body, buffer, delimiter, done: false };
                    let incoming = Incoming::new(about, stated, at_most, Source::Part(Box::new(part)));
                    return Ok(Opening::Here(Box::new(incoming)));
                }
                None if buffer.len() > HEAD_BYTES_MAX + piece.len() => return Err(bad("its head is too long")),
                None => {}
            }
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Failed> {
        while !self.done {
            if let Some(end) = memmem::find(&self.buffer, &self.delimiter) {
                self.done = true;
                self.buffer.truncate(end);
                // Read to its end, so that the connection can be used again; one that has no end is closed.
                let mut behind = 0;
                while behind <= BEHIND_BYTES_MAX
                    && let Some(piece) = self.body.next().await?
                {
                    behind += piece.len();
                }
                break;
            }
            // The delimiter may have begun in the last bytes.
            let sure = self.buffer.len().saturating_sub(self.delimiter.len() - 1);
            if sure > 0 {
                let rest = self.buffer.split_off(sure);
                return Ok(Some(std::mem::replace(&mut self.buffer, rest).into()));
            }
            match self.body.next().await? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None => return Err(Failed::BadAnswer("the transfer of the file broke off".to_owned())),
            }
        }
        let last = std::mem::take(&mut self.buffer);
        Ok((!last.is_empty()).then(|| last.into()))
    }
}

/// The text before the file.
struct Head {
    delimiter: Vec<u8>,
    /// Of the second part; names in lower case.
    headers: Vec<(String, String)>,
    /// Bytes up to the file.
    length: usize,
}

/// Takes the beginning of a body apart; none while it is incomplete.
fn head(bytes: &[u8]) -> Option<Head> {
    let start = if bytes.starts_with(b"--") { 0 } else { memmem::find(bytes, b"\r\n--")? + 2 };
    let line_end = start + memmem::find(&bytes[start..], b"\r\n")?;
    let boundary = bytes[start..line_end].trim_ascii_end();
    let delimiter = [b"\r\n", boundary].concat();
    let second = line_end + memmem::find(&bytes[line_end..], &delimiter)? + delimiter.len();
    // The rest of the boundary's line, then headers up to an empty line.
    let headers_at = second + memmem::find(&bytes[second..], b"\r\n")?;
    let end = headers_at + memmem::find(&bytes[headers_at..], b"\r\n\r\n")?;
    let text = String::from_utf8_lossy(&bytes[headers_at..end]).into_owned();
    let headers = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Some(Head { delimiter, headers, length: end + 4 })
}

/// The file name in a `Content-Disposition`.
fn file_name(disposition: &str) -> Option<String> {
    let found: ContentDisposition = disposition.parse().ok()?;
    found.filename.filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_an_answer_is_read_when_it_is_all_there() {
        let whole = b"--abc\r\nContent-Type: application/json\r\n\r\n{}\r\n--abc\r\nContent-Type: image/png\r\n\
            Content-Disposition: inline; filename=\"a b.png\"\r\n\r\nDATA\r\n--abc--\r\n";
        let at = memmem::find(whole, b"DATA").unwrap();
        for cut in 0..at {
            assert!(head(&whole[..cut]).is_none(), "{cut}");
        }
        let found = head(whole).unwrap();
        assert_eq!((found.length, &found.delimiter[..]), (at, &b"\r\n--abc"[..]));
        assert_eq!(found.headers[0], ("content-type".to_owned(), "image/png".to_owned()));
        assert_eq!(file_name(&found.headers[1].1).as_deref(), Some("a b.png"));
    }

    /// A name with a `;` in quotes was cut there.
    #[test]
    fn file_names() {
        for (disposition, name) in [
            ("attachment; filename=x.txt", Some("x.txt")),
            ("inline; filename*=utf-8''%C3%A4.txt; filename=a.txt", Some("ä.txt")),
            ("inline; filename=\"a; b.txt\"", Some("a; b.txt")),
            ("inline; filename=\"a \\\"b\\\"; filename=c.txt\"; x=y", Some("a \"b\"; filename=c.txt")),
            ("inline; filename=\"a.txt\"; filename*=UTF-8''%E2%82%AC%3B.txt", Some("€;.txt")),
            ("inline; x=\"y;z\"; FileName = a.txt", Some("a.txt")),
            ("inline; filename=\"never closed", Some("never closed")),
            ("inline; filename*=utf-8''%ff%zz%4", Some("\u{fffd}%zz%4")),
            ("inline; filename*=latin-1''%ff; filename=a.txt", Some("a.txt")),
            ("inline; filename=", None),
            ("inline; =;=;\\;\"", None),
            ("", None),
            ("inline", None),
            ("inline; filename=\"\"", None),
        ] {
            assert_eq!(file_name(disposition).as_deref(), name, "{disposition}");
        }
    }

    #[test]
    fn any_bytes_are_the_head_of_a_file_or_none() {
        let whole: &[u8] = b"--abc\r\nContent-Type: application/json\r\n\r\n{}\r\n--abc\r\nContent-Type: image/png\r\n\
            Content-Disposition: inline; filename*=utf-8''a%20b.png; filename=\"a \\\"b.png\"\r\n\r\nDATA\r\n--abc--\r\n";
        let name: &[u8] = b"attachment; filename*=utf-8'en'a%c3%a4%2; filename=\"x\"";
        crate::base::any_bytes::any_bytes(&[whole, name], |bytes| {
            if let Some(head) = head(bytes) {
                assert!(head.length <= bytes.len() && head.delimiter.starts_with(b"\r\n--"));
            }
            let _ = file_name(&String::from_utf8_lossy(bytes));
        });
    }
}

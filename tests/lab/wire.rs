//! Just enough HTTP/1.1 over blocking sockets, with and without TLS, for a resident server and for clients of the one under test.
//!
//! Written by hand so that a bench controls every byte and every pause, and so that its own cost is small and known.

use super::event::Key;
use super::event::canonical_value;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

pub trait Pipe: Read + Write + Send {}
impl<T: Read + Write + Send> Pipe for T {}

const HEAD_LINES_MAX: usize = 200;
const REQUEST_BODY_MAX: u64 = 64 << 20;

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_owned())
}

/// A request as a server reads it.
pub struct Request {
    pub method: String,
    /// Path and query as sent.
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// Path segments, percent-decoded.
    pub fn segments(&self) -> Vec<String> {
        let path = self.target.split('?').next().unwrap_or_default();
        path.split('/').skip(1).map(percent_decode).collect()
    }

    pub fn query(&self, name: &str) -> Option<String> {
        self.query_all(name).next()
    }

    pub fn query_all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = String> + 'a {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        query.split('&').filter_map(move |pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key == name).then(|| percent_decode(&value.replace('+', " ")))
        })
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }
}

fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

pub fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Escapes everything that could mean something in a path or query.
pub fn percent_encode(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Lines of a head up to the empty one; `None` at a clean end of the connection.
fn read_head(from: &mut impl BufRead) -> io::Result<Option<(String, Vec<(String, String)>)>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let first = line.trim_end().to_owned();
    let mut headers = Vec::new();
    for _ in 0..HEAD_LINES_MAX {
        line.clear();
        if from.read_line(&mut line)? == 0 {
            return Err(bad("the connection ended within a head"));
        }
        let text = line.trim_end();
        if text.is_empty() {
            return Ok(Some((first, headers)));
        }
        if let Some((name, value)) = text.split_once(':') {
            headers.push((name.trim().to_owned(), value.trim().to_owned()));
        }
    }
    Err(bad("too many header lines"))
}

pub fn read_request(from: &mut BufReader<Box<dyn Pipe>>) -> io::Result<Option<Request>> {
    let Some((first, headers)) = read_head(from)? else { return Ok(None) };
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut body = Vec::new();
    let mut reader = BodyReader::new(&headers, false)?;
    while reader.read_some(from, &mut |piece| body.extend_from_slice(piece))? {
        if body.len() as u64 > REQUEST_BODY_MAX {
            return Err(bad("request body too large"));
        }
    }
    Ok(Some(Request { method, target, headers, body }))
}

pub fn write_json(to: &mut dyn Write, status: u16, body: &Value) -> io::Result<()> {
    let body = body.to_string();
    write!(
        to,
        "HTTP/1.1 {status} .\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    to.flush()
}

/// Takes a body off a connection by its framing.
enum BodyReader {
    Sized(u64),
    Chunked,
    UntilClose,
    Done,
}

impl BodyReader {
    fn new(headers: &[(String, String)], of_response: bool) -> io::Result<BodyReader> {
        if header(headers, "transfer-encoding").is_some_and(|coding| coding.to_ascii_lowercase().contains("chunked")) {
            return Ok(BodyReader::Chunked);
        }
        match header(headers, "content-length") {
            Some(length) => Ok(BodyReader::Sized(length.parse().map_err(|_| bad("content-length is not a number"))?)),
            None if of_response => Ok(BodyReader::UntilClose),
            None => Ok(BodyReader::Done),
        }
    }

    /// Hands on the next piece; false at the end.
    fn read_some(&mut self, from: &mut impl BufRead, piece: &mut dyn FnMut(&[u8])) -> io::Result<bool> {
        match self {
            BodyReader::Done | BodyReader::Sized(0) => Ok(false),
            BodyReader::Sized(left) => {
                let buffer = from.fill_buf()?;
                let take = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                if take == 0 {
                    return Err(bad("the connection ended within a body"));
                }
                piece(&buffer[..take]);
                from.consume(take);
                *left -= take as u64;
                Ok(true)
            }
            BodyReader::UntilClose => {
                let buffer = from.fill_buf()?;
                let take = buffer.len();
                piece(buffer);
                from.consume(take);
                Ok(take > 0)
            }
            BodyReader::Chunked => {
                let mut line = String::new();
                from.read_line(&mut line)?;
                let size = line.trim_end().split(';').next().unwrap_or_default();
                let mut left = u64::from_str_radix(size, 16).map_err(|_| bad("a chunk's size is not a number"))?;
                let last = left == 0;
                while left > 0 {
                    let buffer = from.fill_buf()?;
                    let take = buffer.len().min(left as usize);
                    if take == 0 {
                        return Err(bad("the connection ended within a chunk"));
                    }
                    piece(&buffer[..take]);
                    from.consume(take);
                    left -= take as u64;
                }
                line.clear();
                from.read_line(&mut line)?;
                if last {
                    *self = BodyReader::Done;
                }
                Ok(!last)
            }
        }
    }
}

/// Where a server listens and how to speak to it.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    /// Sent as `Host`, and the name in the certificate.
    pub host: String,
    pub tls: Option<Arc<ClientConfig>>,
}

/// A keep-alive connection that is made when first needed and again when it broke.
pub struct Client {
    target: Target,
    timeout: Duration,
    pipe: Option<BufReader<Box<dyn Pipe>>>,
}

pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The JSON of a good answer, or what went wrong in words.
    pub fn good(self, what: &str) -> io::Result<Value> {
        if self.status == 200 {
            return Ok(self.json());
        }
        let text: String = String::from_utf8_lossy(&self.body).chars().take(300).collect();
        Err(io::Error::other(format!("{what}: status {}: {text}", self.status)))
    }
}

/// The answer to a request that was written by hand, and whether the connection can be used again. `bodiless`: what was asked
/// has none, whatever the head says.
pub fn read_answer(pipe: &mut impl BufRead, bodiless: bool, bytes_max: usize) -> io::Result<(Answer, bool)> {
    let (status, headers) = loop {
        let (first, headers) = read_head(pipe)?.ok_or_else(|| bad("the connection was closed"))?;
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| bad("no status"))?;
        if status != 100 {
            break (status, headers);
        }
    };
    let mut body = Vec::new();
    let bodiless = bodiless || status == 204 || status == 304;
    let mut reader = if bodiless { BodyReader::Done } else { BodyReader::new(&headers, true)? };
    while reader.read_some(pipe, &mut |piece| body.extend_from_slice(piece))? {
        if body.len() > bytes_max {
            return Err(bad("the answer is too long"));
        }
    }
    let close = header(&headers, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    Ok((Answer { status, headers, body }, !close && !matches!(reader, BodyReader::UntilClose)))
}

impl Client {
    pub fn new(target: Target) -> Client {
        Client { target, timeout: Duration::from_secs(300), pipe: None }
    }

    pub fn with_timeout(self, timeout: Duration) -> Client {
        Client { timeout, ..self }
    }

    fn connect(&self) -> io::Result<BufReader<Box<dyn Pipe>>> {
        let socket = TcpStream::connect_timeout(&self.target.address, Duration::from_secs(60))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(self.timeout))?;
        socket.set_write_timeout(Some(self.timeout))?;
        let pipe: Box<dyn Pipe> = match &self.target.tls {
            None => Box::new(socket),
            Some(config) => {
                let name = self.target.host.split(':').next().unwrap_or_default().to_owned();
                let name = ServerName::try_from(name).map_err(io::Error::other)?;
                Box::new(StreamOwned::new(
                    ClientConnection::new(config.clone(), name).map_err(io::Error::other)?,
                    socket,
                ))
            }
        };
        Ok(BufReader::with_capacity(64 << 10, pipe))
    }

    /// One request; the body is handed on in pieces as it comes. A kept connection that turns out closed is tried once anew.
    pub fn stream(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
        piece: &mut dyn FnMut(&[u8]),
    ) -> io::Result<(u16, Vec<(String, String)>)> {
        let kept = self.pipe.is_some();
        match self.attempt(method, path, headers, body, piece) {
            Err(error)
                if kept && error.kind() != io::ErrorKind::WouldBlock && error.kind() != io::ErrorKind::TimedOut =>
            {
                self.pipe = None;
                self.attempt(method, path, headers, body, piece)
            }
            result => result,
        }
    }

    fn attempt(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&[u8]>,
        piece: &mut dyn FnMut(&[u8]),
    ) -> io::Result<(u16, Vec<(String, String)>)> {
        let mut pipe = match self.pipe.take() {
            Some(pipe) => pipe,
            None => self.connect()?,
        };
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n", self.target.host);
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some(body) = body {
            head += &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        }
        head += "\r\n";
        let mut message = head.into_bytes();
        message.extend_from_slice(body.unwrap_or_default());
        pipe.get_mut().write_all(&message)?;
        pipe.get_mut().flush()?;
        let (first, headers) = read_head(&mut pipe)?.ok_or_else(|| bad("the connection was closed"))?;
        let status = first.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| bad("no status"))?;
        let mut reader = BodyReader::new(&headers, true)?;
        while reader.read_some(&mut pipe, piece)? {}
        let close = header(&headers, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        if !close && !matches!(reader, BodyReader::UntilClose) {
            self.pipe = Some(pipe);
        }
        Ok((status, headers))
    }

    pub fn call(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> io::Result<Answer> {
        let mut out = Vec::new();
        let body = body.map(|value| value.to_string().into_bytes());
        let (status, headers) =
            self.stream(method, path, headers, body.as_deref(), &mut |piece| out.extend_from_slice(piece))?;
        Ok(Answer { status, headers, body: out })
    }

    /// A request between servers, signed as `X-Matrix`.
    pub fn signed(&mut self, key: &Key, method: &str, path: &str, body: Option<&Value>) -> io::Result<Answer> {
        let authorization = x_matrix(key, &self.target.host, method, path, body);
        self.call(method, path, &[("authorization", &authorization)], body)
    }
}

/// Server-server API, "Request authentication".
pub fn x_matrix(key: &Key, destination: &str, method: &str, path: &str, body: Option<&Value>) -> String {
    let signature = key.sign(&request_bytes(&key.server, destination, method, path, body));
    format!("X-Matrix origin=\"{}\",destination=\"{destination}\",key=\"{}\",sig=\"{signature}\"", key.server, key.id)
}

pub fn request_bytes(origin: &str, destination: &str, method: &str, path: &str, body: Option<&Value>) -> Vec<u8> {
    let mut request = serde_json::json!({
        "method": method, "uri": path, "origin": origin, "destination": destination,
    });
    if let Some(body) = body {
        request["content"] = body.clone();
    }
    canonical_value(&request)
}

/// The fields of an `X-Matrix` header.
pub fn parse_x_matrix(header: &str) -> Option<std::collections::HashMap<String, String>> {
    let fields = header.strip_prefix("X-Matrix ")?;
    let pair = |field: &str| {
        let (name, value) = field.split_once('=')?;
        Some((name.trim().to_ascii_lowercase(), value.trim().trim_matches('"').to_owned()))
    };
    fields.split(',').map(pair).collect()
}

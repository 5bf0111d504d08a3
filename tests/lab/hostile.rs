//! Answers to `send_join` that no honest server gives. Each is endless or as large as it can be; the server under test must stay
//! within its memory, join nothing it cannot check, and leave nothing behind.

use super::resident::{Live, buffered};
use super::wire::Pipe;
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::thread;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One string of 1 GiB within the first event.
    GiantBody,
    /// Ten million times `{}` where events should be.
    TinyEvents,
    /// Brackets a hundred thousand deep.
    DeepNesting,
    /// A million well-formed events with ids of their own, signed by nobody, naming the room's create event.
    Flood,
    /// The room as it is, without the first half of its auth chain.
    MissingAuth,
    /// One byte each second.
    Drip,
    /// The connection is closed in the middle of a string.
    Cut,
    /// A page of HTML with status 200.
    WrongType,
    /// A header line that does not end.
    EndlessHeader,
    /// Header lines without end.
    ManyHeaders,
    /// `state` twice.
    RepeatedField,
    /// Chunks of one byte, with long extensions.
    SillyChunks,
    /// Well-formed but for its end: after the last event comes white space without end.
    EndlessSpace,
}

pub const ALL: [Mode; 13] = [
    Mode::GiantBody,
    Mode::TinyEvents,
    Mode::DeepNesting,
    Mode::Flood,
    Mode::MissingAuth,
    Mode::Drip,
    Mode::Cut,
    Mode::WrongType,
    Mode::EndlessHeader,
    Mode::ManyHeaders,
    Mode::RepeatedField,
    Mode::SillyChunks,
    Mode::EndlessSpace,
];

/// How much "without end" is: enough to break any cap a hundred times over, and an end for a test that would not.
const ENDLESS_BYTES: u64 = 4 << 30;

type Out = BufReader<Box<dyn Pipe>>;

pub fn answer(mode: &Mode, live: &Live, head: String, out: &mut Out) -> io::Result<()> {
    let mut out = buffered(out);
    match mode {
        Mode::WrongType => {
            let page = "<!doctype html><title>Welcome</title>".repeat(1000);
            return write!(
                out,
                "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\n\r\n{page}",
                page.len()
            )
            .and_then(|()| out.flush());
        }
        Mode::EndlessHeader => {
            write!(out, "HTTP/1.1 200 OK\r\nx-long: ")?;
            return repeat(&mut out, b"aaaaaaaaaaaaaaaa", ENDLESS_BYTES);
        }
        Mode::ManyHeaders => {
            write!(out, "HTTP/1.1 200 OK\r\n")?;
            return repeat(&mut out, b"x-another: one of many\r\n", ENDLESS_BYTES);
        }
        Mode::SillyChunks => {
            write!(out, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")?;
            let chunk = format!("1;{}\r\n \r\n", "x".repeat(4000));
            return repeat(&mut out, chunk.as_bytes(), ENDLESS_BYTES);
        }
        _ => {}
    }
    // Without a length, so that nothing can be refused by looking at it.
    write!(out, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{head}")?;
    body(mode, live, &mut out)?;
    out.flush()?;
    Err(io::Error::other("the end of the body is the end of the connection"))
}

fn body(mode: &Mode, live: &Live, out: &mut impl Write) -> io::Result<()> {
    let segments = live.rendered.segments;
    match mode {
        Mode::GiantBody => {
            out.write_all(b"[{\"type\":\"m.room.member\",\"content\":{\"membership\":\"join\",\"x\":\"")?;
            repeat(out, b"0123456789abcdef", 1 << 30)?;
            out.write_all(b"\"}}],\"auth_chain\":[]}")
        }
        Mode::TinyEvents => {
            out.write_all(b"[{}")?;
            repeat(out, b",{}", 3 * 10_000_000)?;
            out.write_all(b"],\"auth_chain\":[]}")
        }
        Mode::DeepNesting => {
            out.write_all(b"[{\"content\":")?;
            repeat(out, b"{\"a\":[", 6 * 100_000)?;
            out.write_all(b"1")?;
            repeat(out, b"]}", 2 * 100_000)?;
            out.write_all(b"}],\"auth_chain\":[]}")
        }
        Mode::Flood => flood(live, out),
        Mode::MissingAuth => {
            copy(live, (segments.state, segments.chain), out)?;
            out.write_all(b",\"auth_chain\":[")?;
            let half = live.rendered.room.rows.len() as u32 / 2;
            let rows = live.rendered.room.chain_only().into_iter().filter(|&row| row >= half);
            for (i, row) in rows.enumerate() {
                out.write_all(if i > 0 { b"," } else { b"" })?;
                out.write_all(&live.rendered.event(row)?)?;
            }
            out.write_all(b"]}")
        }
        Mode::Drip => loop {
            out.write_all(b" ")?;
            out.flush()?;
            thread::sleep(Duration::from_secs(1));
        },
        Mode::Cut => {
            let middle = segments.state + (segments.chain - segments.state) / 2;
            copy(live, (segments.state, middle), out)
        }
        Mode::RepeatedField => {
            copy(live, (segments.state, segments.chain), out)?;
            out.write_all(b",\"state\":")?;
            copy(live, (segments.state, segments.chain), out)?;
            out.write_all(b",\"auth_chain\":")?;
            copy(live, (segments.chain, segments.partial_state), out)?;
            out.write_all(b"}")
        }
        Mode::EndlessSpace => {
            copy(live, (segments.state, segments.chain), out)?;
            out.write_all(b",\"auth_chain\":")?;
            copy(live, (segments.chain, segments.partial_state), out)?;
            repeat(out, b"                ", ENDLESS_BYTES)
        }
        Mode::WrongType | Mode::EndlessHeader | Mode::ManyHeaders | Mode::SillyChunks => {
            unreachable!("answered before")
        }
    }
}

fn repeat(out: &mut impl Write, piece: &[u8], bytes: u64) -> io::Result<()> {
    let block = piece.repeat((64 << 10) / piece.len());
    let mut left = bytes;
    while left > 0 {
        let take = left.min(block.len() as u64);
        out.write_all(&block[..take as usize])?;
        left -= take;
    }
    Ok(())
}

fn copy(live: &Live, (from, to): (u64, u64), out: &mut impl Write) -> io::Result<()> {
    let mut file = live.rendered.body()?;
    file.seek(SeekFrom::Start(from))?;
    io::copy(&mut file.take(to - from), out).map(|_| ())
}

/// Ids differ because contents do; nobody's signature is on them.
fn flood(live: &Live, out: &mut impl Write) -> io::Result<()> {
    let create = super::render::id(&live.rendered.room, live.create);
    let room_id = live.room_id();
    out.write_all(b"[")?;
    for number in 0..1_000_000 {
        let comma = if number > 0 { "," } else { "" };
        write!(
            out,
            "{comma}{{\"type\":\"m.room.member\",\"room_id\":\"{room_id}\",\"sender\":\"@u{number}:s{}.flood.load.test\",\
             \"state_key\":\"@u{number}:s{}.flood.load.test\",\"content\":{{\"membership\":\"join\"}},\"depth\":{number},\
             \"origin_server_ts\":1700000000000,\"prev_events\":[],\"auth_events\":[\"{create}\"],\
             \"hashes\":{{\"sha256\":\"47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU\"}},\
             \"signatures\":{{\"s{}.flood.load.test\":{{\"ed25519:1\":\"{}\"}}}}}}",
            number % 100_000,
            number % 100_000,
            number % 100_000,
            "A".repeat(86),
        )?;
    }
    out.write_all(b"],\"auth_chain\":[]}")
}

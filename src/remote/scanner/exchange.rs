//! One connection to a scanner: a file on its way there while the answer is read, or a question about its database.

use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::answer::{GivenBack, Said, edition_said, said};
use super::{
    ANSWER_BYTES_MAX, Content, MARK, PIECE_BYTES, STALL, ScanFailed, Scanned, Scanner, Signs, Stream, bracketed,
};
use crate::base::{Clock, blocking};

/// Sends what is to be judged, and reads what the scanner says of it.
pub(super) async fn judge(
    scanner: &Scanner,
    stream: Box<dyn Stream>,
    content: Content,
    signs: &Signs,
    clock: &Clock,
) -> Result<Scanned, ScanFailed> {
    let bytes = content.bytes();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut answer = Vec::new();
    let mut sending = std::pin::pin!(send(scanner, &mut writer, content, signs, clock));
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
                Some(Ok(length)) => {
                    signs.one_more();
                    match &mut back {
                        Some(back) => back.take(&piece[..length]),
                        None => answer.extend_from_slice(&piece[..length]),
                    }
                }
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
    content: Content,
    signs: &Signs,
    clock: &Clock,
) -> Result<(), Unsent> {
    let bytes = content.bytes();
    let is_icap = matches!(scanner, Scanner::Icap { .. });
    let begin = match scanner {
        Scanner::Icap { host, port, service } => icap_head(host, *port, service, bytes),
        _ => b"zINSTREAM\0".to_vec(),
    };
    write(to, &begin, clock).await?;
    let (mut at, mut buffer) = (0, Vec::with_capacity(bytes.min(PIECE_BYTES as u64) as usize + 16));
    while at < bytes {
        let (content, length) = (content.clone(), (bytes - at).min(PIECE_BYTES as u64) as usize);
        let mut piece = std::mem::take(&mut buffer);
        let read = blocking(move || {
            piece.clear();
            match is_icap {
                true => piece.extend_from_slice(format!("{length:x}\r\n").as_bytes()),
                false => piece.extend_from_slice(&(length as u32).to_be_bytes()),
            }
            let start = piece.len();
            piece.resize(start + length, 0);
            content.read_at(&mut piece[start..], at)?;
            if is_icap {
                piece.extend_from_slice(b"\r\n");
            }
            Ok::<_, std::io::Error>(piece)
        });
        buffer = read.await.map_err(Unsent::Here)?;
        write(to, &buffer, clock).await?;
        signs.one_more();
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
        super::super::USER_AGENT
    )
    .into_bytes()
}

/// Asks for the database: clamd by its command `VERSION`, a server of ICAP by `OPTIONS` for its service (RFC 3507, sections 4.7 and
/// 4.10), whose `ISTag` changes with it.
pub(super) async fn edition(scanner: &Scanner, mut stream: Box<dyn Stream>, clock: &Clock) -> Option<u64> {
    let question = match scanner {
        Scanner::Icap { host, port, service } => {
            let host = bracketed(host);
            format!(
                "OPTIONS icap://{host}:{port}/{service} ICAP/1.0\r\nHost: {host}:{port}\r\nUser-Agent: {}\r\n\
                 Connection: close\r\n\r\n",
                super::super::USER_AGENT
            )
            .into_bytes()
        }
        _ => b"zVERSION\0".to_vec(),
    };
    write(&mut *stream, &question, clock).await.ok()?;
    let (mut answer, mut piece, mut ended) = (Vec::new(), [0; 1024], false);
    while !ended && answer.len() < ANSWER_BYTES_MAX {
        let length = clock.timeout(STALL, stream.read(&mut piece)).await?.unwrap_or(0);
        ended = length == 0;
        answer.extend_from_slice(&piece[..length]);
        if let Some(said) = edition_said(scanner, &answer, ended) {
            // With the address: another scanner has another database.
            let sum = Sha256::digest(format!("{scanner} {}", said?));
            return sum.first_chunk().map(|first| u64::from_be_bytes(*first));
        }
    }
    None
}

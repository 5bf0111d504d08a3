//! Files for other servers: GET media/download and media/thumbnail.
//!
//! Server-server API, "Content Repository": `multipart/mixed`, first an empty JSON object, then the file.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use ruma::http_headers::{ContentDisposition, ContentDispositionType};

use super::{Error, Federation, auth};
use crate::base::{ChunkError, Chunks};
use crate::http::{self, ErrorResponse, Request, Response, StatusCode};
use crate::media::{Opened, Scaled, Share};

const PIECE_BYTES: u64 = 16 << 10;
const PATIENCE_MAX: Duration = Duration::from_secs(60);
const PATIENCE_DEFAULT_MS: u64 = 20_000;

/// `GET /media/download/{media_id}`
pub async fn download(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    auth::origin(&federation, &mut request).await?;
    let opened = open(&federation, &request).await?;
    Ok(answer(opened))
}

/// `GET /media/thumbnail/{media_id}`: the image made smaller, or itself, which may be larger than asked for.
///
/// 400 `M_MISSING_PARAM` without `width` or `height`; 400 `M_UNKNOWN` when the file is no image.
pub async fn thumbnail(federation: Arc<Federation>, mut request: Request) -> Result<Response, Error> {
    auth::origin(&federation, &mut request).await?;
    let opened = open(&federation, &request).await?;
    if !opened.is_seen() {
        return Err(ErrorResponse::bad("M_UNKNOWN", "This server makes no thumbnails for this type of file").into());
    }
    let size = |name: &str| {
        let size: Option<u32> = request.query_as(name)?;
        size.filter(|size| *size > 0).ok_or_else(|| ErrorResponse::missing_param(name))
    };
    let crop = request.query("method").is_some_and(|method| method == "crop");
    let scaled = Scaled { width: size("width")?, height: size("height")?, crop };
    let animated = request.query("animated").is_some_and(|animated| animated == "true");
    Ok(answer(federation.media.thumbnail(opened, &scaled, animated).await?))
}

async fn open(federation: &Federation, request: &Request) -> Result<Opened, Error> {
    let ms = request.query_as("timeout_ms")?.unwrap_or(PATIENCE_DEFAULT_MS);
    let patience = Duration::from_millis(ms).min(PATIENCE_MAX);
    Ok(federation.media.open_outside(request.param("media_id"), patience).await?)
}

fn answer(opened: Opened) -> Response {
    // No file contains its own hash, so the boundary ends nothing too early.
    let Opened { file, bytes, content_type, name, grant, share, hash: boundary, .. } = opened;
    // The uploader's texts go into a head made of lines: only those without a line end may pass.
    let fit = |text: String| text.bytes().all(|byte| (b' '..=b'~').contains(&byte)).then_some(text);
    let content_type = content_type.and_then(fit).unwrap_or_else(|| "application/octet-stream".to_owned());
    let disposition = ContentDisposition::new(ContentDispositionType::Attachment).with_filename(name);
    let head = format!(
        "--{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--{boundary}\r\n\
         Content-Type: {content_type}\r\nContent-Disposition: {disposition}\r\n\r\n"
    );
    let pieces = Pieces { head: Some(head), file, left: bytes, tail: format!("\r\n--{boundary}--\r\n"), _share: share };
    let body = http::stream(grant, pieces);
    Response::of(StatusCode::OK, &format!("multipart/mixed; boundary={boundary}"), body)
}

struct Pieces {
    head: Option<String>,
    file: File,
    left: u64,
    tail: String,
    _share: Option<Share>,
}

impl Chunks for Pieces {
    fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, ChunkError> {
        if let Some(head) = self.head.take() {
            out.extend_from_slice(head.as_bytes());
        }
        let now = self.left.min(PIECE_BYTES);
        let start = out.len();
        out.resize(start + now as usize, 0);
        self.file.read_exact(&mut out[start..])?;
        self.left -= now;
        if self.left == 0 {
            out.extend_from_slice(self.tail.as_bytes());
        }
        Ok(self.left > 0)
    }
}

//! A file of a folder as an answer: type, caching, ranges, and the form that a builder has compressed already.

use std::fs::{File, Metadata};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, UNIX_EPOCH};

use super::kinds::{is_lasting, kind};
use crate::base::blocking;
use crate::budget::Account;
use crate::http::file::{Part, part_of};
use crate::http::{self, ErrorResponse, Request, Response, StatusCode};

/// Memory of one answer: a piece that is read, and one that is sent.
const ANSWER_BYTES: u64 = 2 * 64 * 1024;

/// A compressed form that lies beside the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Brotli,
    Gzip,
}

impl Encoding {
    /// Those that the caller takes, the best first. None for a part of a file: its bytes are those of the file itself.
    pub fn accepted(request: &Request) -> Vec<Encoding> {
        if request.header("range").is_some() {
            return Vec::new();
        }
        let header = request.header("accept-encoding").unwrap_or_default();
        let takes = |name: &str| {
            header.split(',').any(|one| {
                let mut words = one.split(';').map(str::trim);
                let is_named = words.next().is_some_and(|word| word.eq_ignore_ascii_case(name));
                // Only a weight of zero is a no.
                let zero = |word: &str| word.strip_prefix("q=").is_some_and(|q| q.trim_matches(['0', '.']).is_empty());
                is_named && !words.any(zero)
            })
        };
        [(Encoding::Brotli, "br"), (Encoding::Gzip, "gzip")]
            .into_iter()
            .filter_map(|(encoding, name)| takes(name).then_some(encoding))
            .collect()
    }

    pub fn ending(self) -> &'static str {
        match self {
            Encoding::Brotli => ".br",
            Encoding::Gzip => ".gz",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Encoding::Brotli => "br",
            Encoding::Gzip => "gzip",
        }
    }
}

/// A file that was found.
pub struct Opened {
    pub file: File,
    pub found: Metadata,
    /// Its name, and the folders before it. Of a compressed form, the name of the file itself.
    pub name: String,
    pub steps: Vec<String>,
    pub encoding: Option<Encoding>,
}

impl Opened {
    /// Changes whenever the content may have.
    fn etag(&self) -> String {
        let ending = self.encoding.map_or("", Encoding::name);
        format!("\"{:x}-{:x}-{:x}{ending}\"", self.found.len(), self.found.mtime(), self.found.mtime_nsec())
    }

    fn modified(&self) -> Option<String> {
        let seconds = u64::try_from(self.found.mtime()).ok()?;
        Some(httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds)))
    }
}

/// The file, a part of it, or that the caller has it already.
pub async fn answer(request: &Request, opened: Opened, account: &Account) -> Response {
    let (etag, modified, bytes) = (opened.etag(), opened.modified(), opened.found.len());
    let described = |response| described(response, &opened, &etag, modified.as_deref());
    if is_known(request, &etag, modified.as_deref()) {
        return described(Response::empty(StatusCode::NOT_MODIFIED));
    }
    let range = request.header("range").filter(|_| request.header("if-range").is_none_or(|known| known == etag));
    let (status, from, len) = match range.map(|range| part_of(range, bytes)) {
        None | Some(Part::All) => (StatusCode::OK, 0, bytes),
        Some(Part::Range(from, len)) => (StatusCode::PARTIAL_CONTENT, from, len),
        Some(Part::Beyond) => {
            let response = described(Response::empty(StatusCode::RANGE_NOT_SATISFIABLE));
            return response.header("content-range", &format!("bytes */{bytes}"));
        }
    };
    let grant = match account.take(ANSWER_BYTES).await {
        Ok(grant) => grant,
        Err(refused) => return ErrorResponse::from(refused).into_response(),
    };
    let file = match opened.file.try_clone() {
        Ok(file) => blocking(move || {
            let mut file = file;
            file.seek(SeekFrom::Start(from)).map(|_| file)
        }),
        Err(failed) => return unreadable(&failed),
    };
    let file = match file.await {
        Ok(file) => file,
        Err(failed) => return unreadable(&failed),
    };
    let response = described(Response::of(status, kind(&opened.name), http::file(grant, file, len, None)));
    match status {
        StatusCode::PARTIAL_CONTENT => {
            response.header("content-range", &format!("bytes {from}-{}/{bytes}", from + len - 1))
        }
        _ => response,
    }
}

fn unreadable(failed: &std::io::Error) -> Response {
    ErrorResponse::internal(format_args!("a file for the web cannot be read: {failed}")).into_response()
}

fn described(response: Response, opened: &Opened, etag: &str, modified: Option<&str>) -> Response {
    let caching = match is_lasting(&opened.name, opened.steps.last()) {
        true => "public, max-age=31536000, immutable",
        // Kept, and asked for again each time: that is a short answer.
        false => "no-cache",
    };
    let mut response = response
        .header("etag", etag)
        .header("cache-control", caching)
        .header("accept-ranges", "bytes")
        .header("vary", "accept-encoding")
        .header("x-content-type-options", "nosniff")
        // A page of somebody else's may not show this one inside itself and have it clicked.
        .header("x-frame-options", "SAMEORIGIN")
        .header("content-security-policy", "frame-ancestors 'self'");
    if let Some(modified) = modified {
        response = response.header("last-modified", modified);
    }
    match opened.encoding {
        Some(encoding) => response.header("content-encoding", encoding.name()),
        None => response,
    }
}

/// Whether the caller has this very content.
fn is_known(request: &Request, etag: &str, modified: Option<&str>) -> bool {
    match request.header("if-none-match") {
        Some(known) => {
            known.split(',').any(|one| matches!(one.trim(), "*") || one.trim().trim_start_matches("W/") == etag)
        }
        None => modified.is_some() && request.header("if-modified-since") == modified,
    }
}

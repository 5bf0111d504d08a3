//! A file as an answer: its name, its type, and the part of it that was asked for.

use ruma::http_headers::{ContentDisposition, ContentDispositionType};

use crate::http::Response;

/// The types a browser may show in place, as the specification lists them; the rest is offered for download.
const SHOWN: [&str; 26] = [
    "text/css",
    "text/plain",
    "text/csv",
    "application/json",
    "application/ld+json",
    "image/jpeg",
    "image/gif",
    "image/png",
    "image/apng",
    "image/webp",
    "image/avif",
    "video/mp4",
    "video/webm",
    "video/ogg",
    "video/quicktime",
    "audio/mp4",
    "audio/webm",
    "audio/aac",
    "audio/mpeg",
    "audio/ogg",
    "audio/wave",
    "audio/wav",
    "audio/x-wav",
    "audio/x-pn-wav",
    "audio/flac",
    "audio/x-flac",
];

/// The part a `Range` header asks for.
#[derive(Debug, PartialEq)]
pub enum Part {
    /// No range this server understands, so everything.
    All,
    /// From where, and how many bytes.
    Range(u64, u64),
    Beyond,
}

/// One range of bytes; several at once are answered with everything, as HTTP allows.
pub fn part_of(range: &str, bytes: u64) -> Part {
    let Some((from, to)) = range.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Part::All;
    };
    let (from, to) = (from.trim(), to.trim());
    let (first, last) = match (from.parse::<u64>(), to.parse::<u64>()) {
        (Ok(first), Ok(last)) if last >= first => (first, last),
        (Ok(first), Err(_)) if to.is_empty() => (first, u64::MAX),
        (Err(_), Ok(last)) if from.is_empty() => (bytes.saturating_sub(last), u64::MAX),
        _ => return Part::All,
    };
    if first >= bytes {
        return Part::Beyond;
    }
    Part::Range(first, last.min(bytes - 1) - first + 1)
}

/// Limits what a browser does with an untrusted file: show harmless kinds, run nothing.
pub fn described(response: Response, content_type: Option<&str>, name: Option<&str>) -> Response {
    let content_type = content_type.unwrap_or(UNKNOWN_TYPE);
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let how = match SHOWN.contains(&essence.as_str()) {
        true => ContentDispositionType::Inline,
        false => ContentDispositionType::Attachment,
    };
    let name = name.filter(|name| !name.is_empty()).map(ToOwned::to_owned);
    let disposition = ContentDisposition::new(how).with_filename(name);
    response
        // An invalid header value is left out, and the type set above stays.
        .header("content-type", content_type)
        .header("content-disposition", &disposition.to_string())
        .header(
            "content-security-policy",
            "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; \
             style-src 'unsafe-inline'; media-src 'self'; object-src 'self';",
        )
        .header("cross-origin-resource-policy", "cross-origin")
        .header("x-content-type-options", "nosniff")
}

pub const UNKNOWN_TYPE: &str = "application/octet-stream";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_are_a_part_of_a_file_or_all_of_it() {
        crate::base::any_bytes::any_bytes(&[b"bytes=0-499", b"bytes=-5", b"bytes=7-", b"image/png; a=b"], |bytes| {
            let text = String::from_utf8_lossy(bytes);
            for length in [0, 1, 500, u64::MAX] {
                if let Part::Range(from, count) = part_of(&text, length) {
                    assert!(
                        count > 0 && from.checked_add(count).is_some_and(|end| end <= length),
                        "{text} of {length}"
                    );
                }
            }
            described(Response::ok(), Some(&text), Some(&text));
        });
    }
}

//! What a file is, by its name.

/// The type of a file; what is unknown is bytes that a browser saves.
pub fn kind(name: &str) -> &'static str {
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending).to_ascii_lowercase();
    match ending.as_str() {
        "html" | "htm" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "json" | "map" => "application/json",
        "webmanifest" => "application/manifest+json",
        "wasm" => "application/wasm",
        "txt" | "md" => "text/plain; charset=utf-8",
        "xml" => "application/xml",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "avif" => "image/avif",
        "ico" => "image/x-icon",
        "woff" => "font/woff",
        "woff2" => "font/woff2",
        "ttf" => "font/ttf",
        "otf" => "font/otf",
        "mp3" => "audio/mpeg",
        "ogg" | "oga" | "opus" => "audio/ogg",
        "wav" => "audio/wav",
        "mp4" => "video/mp4",
        "webm" => "video/webm",
        "pdf" => "application/pdf",
        _ => crate::http::file::UNKNOWN_TYPE,
    }
}

/// Whether a file of that name never changes, since the name of it or of its folder has a hash of the content, as web
/// builders write them: `bundle.3f8a9c2b.js`, `bundles/0f9d1c…/init.js`, `index-BX3kd9Za.js`. In doubt it may change.
pub fn is_lasting(name: &str, folder: Option<&String>) -> bool {
    let parts = name.split(['.', '-', '_']).rev().skip(1);
    parts.chain(folder.map(String::as_str)).any(is_hash)
}

fn is_hash(part: &str) -> bool {
    let has = |is: fn(&u8) -> bool| part.bytes().any(|byte| is(&byte));
    let is_hex = part.len() >= 16 && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    // Shorter ones might be a date or a word: they have a digit and a letter.
    let is_short_hex = part.len() >= 8
        && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        && has(u8::is_ascii_digit)
        && has(u8::is_ascii_alphabetic);
    let is_base64 = part.len() == 8
        && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && has(u8::is_ascii_digit)
        && has(u8::is_ascii_lowercase)
        && has(u8::is_ascii_uppercase);
    is_hex || is_short_hex || is_base64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hashed_names_last() {
        let folder = |name: &str| Some(name.to_owned());
        for name in ["bundle.3f8a9c2b.js", "index-BX3kd9Za.css", "a.0f9d1c0f9d1c0f9d1c0f.woff2"] {
            assert!(is_lasting(name, None), "{name}");
        }
        assert!(is_lasting("init.js", folder("54c5c07b89bbbb8d6f02").as_ref()));
        for name in ["index.html", "config.json", "version-20261130.txt", "deadbeef.js", "a.3f8a9c2b", "Releases.js"] {
            assert!(!is_lasting(name, folder("static").as_ref()), "{name}");
        }
        assert_eq!(kind("a.B.JS"), "text/javascript; charset=utf-8");
        assert_eq!(kind("README"), "application/octet-stream");
    }
}

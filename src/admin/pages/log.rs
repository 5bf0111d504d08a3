//! The log's last lines.

use askama::Template;

use super::frame::{Frame, Visit};
use crate::admin::error::Error;
use crate::http::Response;

/// Bytes of HTML for the lines: the frame is 6 KiB of the page's 56. A line has some hundred and fifty.
const LINES_BYTES: usize = 40 * 1024;
/// Beside each line.
const TAGS_BYTES: usize = 40;

#[derive(Template)]
#[template(path = "log.html")]
struct Page {
    frame: Frame,
    /// Newest first.
    lines: Vec<Line>,
    only_warnings: bool,
}

struct Line {
    text: String,
    class: &'static str,
}

/// `GET log?only=warnings`
pub async fn show(visit: Visit) -> Result<Response, Error> {
    let only_warnings = visit.request.query("only").is_some_and(|only| only == "warnings");
    let lines = shown((visit.admin.log)(), only_warnings);
    visit.page(&Page { frame: visit.frame("log", "Log"), lines, only_warnings }).await
}

/// The newest lines that fit, newest first.
fn shown(kept: Vec<String>, only_warnings: bool) -> Vec<Line> {
    let mut bytes = 0;
    let lines = kept.into_iter().rev().map(|text| Line { class: class(&text), text });
    let lines = lines.filter(|line| !only_warnings || matches!(line.class, "look" | "wrong"));
    let fitting = lines.take_while(|line| {
        // A sign of HTML is five bytes.
        let signs = line.text.bytes().filter(|byte| b"<>&\"'".contains(byte)).count();
        bytes += line.text.len() + 4 * signs + TAGS_BYTES;
        bytes <= LINES_BYTES
    });
    fitting.collect()
}

/// By the level, which is the second word.
fn class(line: &str) -> &'static str {
    match line.split_ascii_whitespace().nth(1) {
        Some("ERROR") => "wrong",
        Some("WARN") => "look",
        Some("DEBUG" | "TRACE") => "soft",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_fit_the_page_whatever_they_say() {
        let kept = |text: &str| (0..200).map(|number| format!("2026-01-01T00:00:00Z {text} {number}")).collect();
        let lines = shown(kept("INFO  x"), false);
        assert_eq!((lines.len(), lines[0].class), (200, ""));
        assert!(lines[0].text.ends_with(" 199"));
        assert_eq!(shown(kept("INFO  x"), true).len(), 0);
        assert_eq!(shown(kept("WARN  x"), true)[0].class, "look");
        let lines = shown(kept(&format!("ERROR {}", "\"".repeat(400))), false);
        assert!(lines.len() < 25 && lines[0].class == "wrong", "{}", lines.len());
    }
}

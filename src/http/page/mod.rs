//! The pages for a browser: one template, one style sheet and one script.
//!
//! A page loads nothing, and works without the script, which is for the button that copies an address. Whoever makes a
//! page escapes every text of others.

use super::{ErrorResponse, Response};

const STYLE: &str = concat!(include_str!("colors.css"), include_str!("style.css"));
const SCRIPT: &str = include_str!("copy.js");
/// The mark, as a picture that stands in a page.
pub const MARK: &str = include_str!("mark.svg");

/// The template of a page, without what is said on it.
pub const BYTES: u64 = 16 * 1024;

/// How a page asks for a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Yes or no.
    Flag,
    /// One of these words.
    Choice(&'static [&'static str]),
    Number,
    /// A line of text, also for sizes such as `50 MiB`.
    Line,
    /// Texts, each on a line.
    List,
    /// One of these words, or texts, each on a line.
    WordOrList(&'static [&'static str]),
    /// So many a second, and so many at once: two numbers.
    Rate,
}

/// A whole page. `body` is HTML; `title` and `server` are plain text.
pub fn page(title: &str, server: &str, body: &str) -> Response {
    page_that(title, server, body, SCRIPT)
}

/// The same with another script than the usual one.
pub fn page_that(title: &str, server: &str, body: &str, script: &str) -> Response {
    Response::html(whole(title, server, body, script), STYLE, script)
}

/// The same, and its script may ask this server.
pub fn page_that_asks(title: &str, server: &str, body: &str, script: &str) -> Response {
    Response::html_asking(whole(title, server, body, script), STYLE, script)
}

fn whole(title: &str, server: &str, body: &str, script: &str) -> String {
    let (title, server, version) = (escaped(title), escaped(server), env!("CARGO_PKG_VERSION"));
    let icon = MARK.replace('#', "%23").replace('"', "'");
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" content=\"light dark\">\
<meta name=\"robots\" content=\"noindex\"><link rel=\"icon\" href=\"data:image/svg+xml,{icon}\"><title>{title}</title><style>{STYLE}</style></head><body>\
<header>{MARK}<div>Snug <span>on {server}</span></div></header><main>{body}</main>\
<footer><span>Snug {version}, a Matrix homeserver</span></footer><script>{script}</script></body></html>"
    )
}

/// The page in place of an error that only an app can read.
pub fn trouble(server: &str, failed: &ErrorResponse) -> Response {
    let body = format!("<h1>That did not work</h1><p class=\"lead\">{}</p>", escaped(&failed.message));
    page("That did not work", server, &body).with_status(failed.status)
}

/// A field of a form as browsers send it, decoded; empty when it is not there.
pub fn field(body: &[u8], name: &str) -> String {
    let found = form_urlencoded::parse(body).find(|(key, _)| key == name);
    found.map(|(_, value)| value.into_owned()).unwrap_or_default()
}

/// A plain text as HTML, with its empty lines between paragraphs.
pub fn paragraphs(text: &str) -> String {
    let mut out = String::new();
    for paragraph in text.replace("\r\n", "\n").split("\n\n").map(str::trim).filter(|paragraph| !paragraph.is_empty()) {
        out.push_str("<p>");
        out.push_str(&escaped(paragraph).replace('\n', "<br>"));
        out.push_str("</p>");
    }
    out
}

pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_shown_as_it_is() {
        assert_eq!(paragraphs("a <b>\r\nc\n\n\n\nd & e\n"), "<p>a &lt;b&gt;<br>c</p><p>d &amp; e</p>");
    }
}

//! `[page]`: the administrators' page for a browser.

use super::setting::{Setting, setting};

/// `[page]`: the administrators' page for a browser.
#[derive(Debug, Clone, Default)]
pub struct Page {
    pub enabled: bool,
    /// Begins and ends with a slash.
    pub path: String,
}

pub const SETTINGS: &[Setting] = &[
    setting(
        "page.enabled",
        "true",
        "Whether administrators may look after this server with a browser, at the path below. They sign in with their account; \
         to others the page says nothing of the server.",
        |config, given| Ok(config.page.enabled = given.flag()?),
    ),
    setting(
        "page.path",
        r#""/_snug/""#,
        "The path of that page, at each address in `listen`. A proxy must pass on what is below it.",
        |config, given| Ok(config.page.path = path(given.text()?)?),
    ),
];

/// Below these is what apps and administrators' tools ask.
const TAKEN: [&str; 2] = ["_matrix", "_synapse"];

/// A path of plain characters that no endpoint for apps is below.
fn path(text: &str) -> Result<String, String> {
    let bare = text.trim_matches('/');
    let is_plain = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b == b'~')
    };
    let is_taken = |part: &str| TAKEN.contains(&part);
    if !text.starts_with('/') || bare.len() > 100 || !bare.split('/').all(is_plain) || bare.split('/').any(is_taken) {
        return Err(format!("{text:?} is not a path of its own such as \"/_snug/\""));
    }
    Ok(format!("/{bare}/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_a_slash_at_both_ends_and_nothing_odd_between() {
        for (text, kept) in [("/_snug/", "/_snug/"), ("/my/server", "/my/server/")] {
            assert_eq!(path(text).unwrap(), kept);
        }
        for wrong in ["", "/", "snug", "/a b/", "/a//b/", "/_matrix/x/", "/_synapse/", "/{x}/", "/../", "/a?b"] {
            path(wrong).unwrap_err();
        }
    }
}

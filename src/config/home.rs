//! `[home]`: being found on the home network.

use super::setting::{Setting, optional, setting};
use crate::http::page::Input;

/// The settings.
#[derive(Debug, Clone, Default)]
pub struct Home {
    pub announce: bool,
    /// The name that is wished for, without `.local`.
    pub name: Option<String>,
}

pub const SETTINGS: &[Setting] = &[
    setting(
        "home.announce",
        "true",
        "Whether machines of the home network find this server as snug.local, with no name in the DNS and no Internet (multicast \
         DNS). Only on private networks, and when listen lets other machines in.",
        |config, given| Ok(config.home.announce = given.flag()?),
    )
    .on_page(Input::Flag),
    optional(
        "home.name",
        r#""snug""#,
        "The name there, without .local. When not set: the first part of a server name that ends in .local, or else snug. \
         A second server of the same name is found as snug-2.local.",
        |config, given| {
            let text = given.text()?;
            let is_fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            match !text.is_empty() && text.len() <= 50 && text.chars().all(is_fine) && !text.starts_with('-') {
                true => Ok(config.home.name = Some(text.to_owned())),
                false => Err(format!("{text:?} is not one of small letters, digits and hyphens, at most 50")),
            }
        },
    ),
];

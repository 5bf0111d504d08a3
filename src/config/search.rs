//! `[search]`: full-text search in rooms.

use super::setting::{Setting, setting};
use crate::http::page::Input;

pub const SETTINGS: &[Setting] = &[
    setting(
        "search.enabled",
        "true",
        "Whether people can search the messages, names and topics of their rooms, as far as those are not encrypted. The index \
         takes about a tenth of the space of the messages. Once this is false, the index is removed.",
        |config, given| Ok(config.search.enabled = given.flag()?),
    )
    .on_page(Input::Flag),
    setting(
        "search.index_bytes_max",
        r#""256 MiB""#,
        "The space that the index of words may take in the database. When it is used up, the oldest messages are no longer found. A \
         million messages take about 30 MiB.",
        |config, given| Ok(config.search.bytes_max = given.bytes()?),
    )
    .on_page(Input::Line),
];

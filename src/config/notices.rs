//! `[notices]`: how this server tells its users something.

use super::setting::{Setting, optional, setting};
use crate::http::page::Input;

/// `[notices]`: how this server tells its users something.
#[derive(Debug, Clone, Default)]
pub struct Notices {
    pub user: String,
    pub name: String,
    pub avatar: Option<String>,
    pub room_name: String,
    pub join: bool,
}

pub const SETTINGS: &[Setting] = &[
    setting(
        "notices.user",
        r#""notices""#,
        "The account that notices of this server come from, which is made with the first of them: what `snug notice` says, and \
         what administrators are told. Nobody can log in with it. Without the colon and the server's name.",
        |config, given| match given.text()? {
            text if text.is_empty() || text.starts_with('@') || text.contains(':') => {
                Err(format!("{text:?} must be the part before the colon, such as \"notices\""))
            }
            text => Ok(config.notices.user = text.to_lowercase()),
        },
    ),
    setting("notices.name", r#""Server notices""#, "The name of that account, as people see it.", |config, given| {
        Ok(config.notices.name = given.text()?.to_owned())
    })
    .on_page(Input::Line),
    optional(
        "notices.avatar",
        r#""mxc://example.org/abc""#,
        "Its picture, and that of the rooms: a file that was uploaded to this server.",
        |config, given| match given.text()? {
            text if text.starts_with("mxc://") => Ok(config.notices.avatar = Some(text.to_owned())),
            text => Err(format!("{text:?} is not the address of an uploaded file, such as \"mxc://example.org/abc\"")),
        },
    ),
    setting(
        "notices.room_name",
        r#""Server notices""#,
        "The name of the room that each user has for notices. A changed name is that of rooms made from then on.",
        |config, given| Ok(config.notices.room_name = given.text()?.to_owned()),
    )
    .on_page(Input::Line)
    .live(),
    setting(
        "notices.join",
        "false",
        "Whether users are put into that room. Otherwise they are invited to it; that invite cannot be declined.",
        |config, given| Ok(config.notices.join = given.flag()?),
    )
    .on_page(Input::Flag)
    .live(),
];

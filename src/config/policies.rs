//! `[policies]`: what people of this server may do in rooms, whatever the rooms say.

use super::given::Given;
use super::setting::{Setting, setting};
use crate::http::page::Input;
use crate::room::Who;

/// How the page asks.
const WHO: Input = Input::WordOrList(&["everybody", "administrators"]);

pub const SETTINGS: &[Setting] = &[
    setting(
        "policies.create_rooms",
        r#""everybody""#,
        "Who may create rooms: \"everybody\", \"administrators\", or these users and the administrators, by patterns: \
         [\"@staff-*:example.org\", \"!@staff-new:example.org\"]. A pattern with ! names who may not. Users of bridges may, but for \
         those whom such a pattern names. The same holds for the others here.",
        |config, given| Ok(config.policies.create_rooms = who(given)?),
    )
    .on_page(WHO)
    .live(),
    setting(
        "policies.publish_rooms",
        r#""everybody""#,
        "Who may list rooms in the public directory of this server.",
        |config, given| Ok(config.policies.publish_rooms = who(given)?),
    )
    .on_page(WHO)
    .live(),
    setting(
        "policies.publish_aliases",
        r#""everybody""#,
        "Who may give rooms addresses of this server, such as #tea:example.org.",
        |config, given| Ok(config.policies.publish_aliases = who(given)?),
    )
    .on_page(WHO)
    .live(),
    setting(
        "policies.encrypt_rooms",
        r#""everybody""#,
        "Who may make rooms encrypted. Most apps make direct chats so: who may not cannot begin one with them.",
        |config, given| Ok(config.policies.encrypt_rooms = who(given)?),
    )
    .on_page(WHO)
    .live(),
    setting("policies.invite", r#""everybody""#, "Who may invite others, from here or from elsewhere.", |config, given| {
        Ok(config.policies.invite = who(given)?)
    })
    .on_page(WHO)
    .live(),
    setting(
        "policies.invited_from_outside",
        r#""everybody""#,
        "Who may be invited by people of other servers.",
        |config, given| Ok(config.policies.invited_from_outside = who(given)?),
    )
    .on_page(WHO)
    .live(),
    setting(
        "policies.join_remote_rooms",
        r#""everybody""#,
        "Who may join, or ask to join, rooms that nobody of this server is in.",
        |config, given| Ok(config.policies.join_remote_rooms = who(given)?),
    )
    .on_page(WHO)
    .live(),
];

fn who(given: &Given<'_>) -> Result<Who, String> {
    let wrong =
        "must be \"everybody\", \"administrators\" or a list of users such as [\"@anna:example.org\", \"@staff-*:*\"]";
    if given.value.as_str().is_some() {
        let known = [("everybody", false), ("administrators", true)];
        return match given.one_of(&known).map_err(|_| wrong.to_owned())? {
            false => Ok(Who::Everybody),
            true => Ok(Who::Administrators),
        };
    }
    let patterns = given.texts().map_err(|_| wrong.to_owned())?;
    let fits = |pattern: &str| {
        let pattern = pattern.strip_prefix('!').unwrap_or(pattern);
        pattern.starts_with(['@', '*']) && pattern.len() <= 255
    };
    match patterns.iter().find(|pattern| !fits(pattern)) {
        Some(pattern) => Err(format!("{pattern:?} is no pattern of users, which begins with @ or *")),
        None => Ok(Who::Users(patterns.into_iter().map(str::to_owned).collect())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use std::path::Path;

    #[test]
    fn whom_a_rule_lets_is_a_word_or_a_list() {
        let read = |value: &str| {
            let text = format!("[policies]\ncreate_rooms = {value}");
            Config::parse(&text, Path::new("x/snug.toml")).map(|config| config.policies.create_rooms)
        };
        assert_eq!(read("\"everybody\"").unwrap(), Who::Everybody);
        assert_eq!(read("\"administrators\"").unwrap(), Who::Administrators);
        let some = read("[\"@a*:x\", \"!*:y\"]").unwrap();
        assert_eq!(some, Who::Users(vec!["@a*:x".to_owned(), "!*:y".to_owned()]));
        assert_eq!(read("[]").unwrap(), Who::Users(Vec::new()));
        for (value, error) in
            [("\"nobody\"", "must be \"everybody\""), ("true", "must be"), ("[\"anna\"]", "no pattern of users")]
        {
            assert!(read(value).unwrap_err().to_string().contains(error));
        }
    }
}

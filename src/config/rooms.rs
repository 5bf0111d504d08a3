//! `[rooms]`: which rooms of other servers users may join, what becomes of rooms they leave, and the version of new ones.

use ruma::OwnedRoomOrAliasId;

use super::setting::{Setting, setting};
use crate::client;
use crate::http::page::Input;
use crate::room::{AutoAccept, Policy};

/// `[rooms]`: see above.
#[derive(Debug, Clone, Default)]
pub struct Rooms {
    pub admission: Policy,
    pub forget_left: bool,
    pub redacted_kept_days: Option<u32>,
    pub history_days: Option<u32>,
    pub retention_days_min: Option<u32>,
    /// Rooms that new people join.
    pub auto_join: Vec<OwnedRoomOrAliasId>,
    pub auto_accept_invites: AutoAccept,
    /// Only invites of people here are accepted so.
    pub auto_accept_only_local: bool,
    /// A room that everybody here has left and forgotten is removed.
    pub purge_left: bool,
}

pub const SETTINGS: &[Setting] = &[
    setting(
        "rooms.admission",
        r#""allow""#,
        "What happens when somebody joins a room of another server that is too large for this machine by its estimate: \"allow\" \
             (try, as long as it fits the disk), \"ask\" (until you allow it with `snug rooms allow ROOM`) or \"refuse\".",
        |config, given| {
            let known = [("allow", Policy::Allow), ("ask", Policy::Ask), ("refuse", Policy::Refuse)];
            Ok(config.rooms.admission = given.one_of(&known)?)
        },
    )
    .on_page(Input::Choice(&["allow", "ask", "refuse"]))
    .live(),
    setting(
        "rooms.forget_left",
        "false",
        "Whether a room that somebody leaves, or is removed from, is forgotten at once: no app of theirs shows it or its history any \
             more. Otherwise that is for each of them to say.",
        |config, given| Ok(config.rooms.forget_left = given.flag()?),
    )
    .on_page(Input::Flag)
    .live(),
    setting(
        "rooms.redacted_kept_days",
        "0",
        "For how many days those who may delete messages in a room, and the administrators of this server in their rooms, can \
         still see what a message said that was deleted; some apps have a button for it. With 0 a deleted message is gone at once.",
        |config, given| Ok(config.rooms.redacted_kept_days = given.days()?),
    )
    .on_page(Input::Number)
    .live(),
    setting(
        "rooms.history_days",
        "0",
        "Messages older than so many days are removed for good, in all rooms that people here are in; what a room needs to go on \
         stays, such as names and members. They go once a day. With 0 they stay.",
        |config, given| Ok(config.rooms.history_days = given.days()?),
    )
    .on_page_with_care(Input::Number)
    .live(),
    setting(
        "rooms.retention_days_min",
        "0",
        "Whether a room may say itself how long its messages live (m.room.retention), but for no less than so many days, and no \
         more than history_days where that is set. With 0 what rooms say does not count.",
        |config, given| Ok(config.rooms.retention_days_min = given.days()?),
    )
    .on_page_with_care(Input::Number)
    .live(),
    setting(
        "rooms.purge_left",
        "false",
        "Whether a room is removed for good, with all its messages, once everybody here has left and forgotten it; together with \
         forget_left as soon as the last one leaves. Otherwise `snug purge left` does so.",
        |config, given| Ok(config.rooms.purge_left = given.flag()?),
    )
    .on_page_with_care(Input::Flag)
    .live(),
    setting(
        "rooms.auto_join",
        "[]",
        "Rooms that new people join by themselves, by address or ID: [\"#welcome:example.org\"]. An address of this server that leads \
         nowhere becomes an open room, an administrator's; to a room that is not open an administrator who is in it invites them. Guests, \
         bots and bridges' users join none.",
        |config, given| {
            let room = |text: &str| {
                let known = OwnedRoomOrAliasId::try_from(text);
                known.map_err(|_| format!("{text:?} is neither an address such as \"#welcome:example.org\" nor a room ID"))
            };
            Ok(config.rooms.auto_join = given.texts()?.into_iter().map(room).collect::<Result<_, _>>()?)
        },
    )
    .on_page(Input::List)
    .live(),
    setting(
        "rooms.auto_accept_invites",
        r#""off""#,
        "Which invites of people here are accepted for them at once: \"off\", \"direct\" (to chats that the inviting app calls \
         direct) or \"all\". A large room of another server goes the way of rooms.admission all the same. For guests and bridges' users \
         none is.",
        |config, given| {
            let known = [("off", AutoAccept::Off), ("direct", AutoAccept::Direct), ("all", AutoAccept::All)];
            Ok(config.rooms.auto_accept_invites = given.one_of(&known)?)
        },
    )
    .on_page(Input::Choice(&["off", "direct", "all"]))
    .live(),
    setting(
        "rooms.auto_accept_only_local",
        "true",
        "Whether only invites from people of this server are accepted so.",
        |config, given| Ok(config.rooms.auto_accept_only_local = given.flag()?),
    )
    .on_page(Input::Flag)
    .live(),
    setting(
        "rooms.default_version",
        r#""12""#,
        "The version of a new room when the app names none. An older one, such as \"11\", lets people of servers in that \
         have not been brought up to date for long.",
        |config, given| {
            let wanted = given.text()?;
            let version = client::room_version(wanted);
            let none = || format!("this server creates no rooms of version {wanted:?}");
            Ok(config.apps.room_version = Some(version.ok_or_else(none)?))
        },
    )
    .on_page(Input::Line)
    .live(),
];

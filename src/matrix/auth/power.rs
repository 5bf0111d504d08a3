//! Power levels: reading them, asking them, and the rules for changing them.

use super::{Create, Subject, need};
use crate::matrix::Reject;
use crate::matrix::json;
use crate::matrix::version::RoomVersion;
use ruma::UserId;

/// A creator's level in version 12: above every number that can be written down.
pub const INFINITE: i64 = i64::MAX;
const CREATOR_DEFAULT: i64 = 100;

/// The levels with a name of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    UsersDefault,
    EventsDefault,
    StateDefault,
    Ban,
    Redact,
    Kick,
    Invite,
}

impl Named {
    pub const ALL: [Named; 7] = [
        Named::UsersDefault,
        Named::EventsDefault,
        Named::StateDefault,
        Named::Ban,
        Named::Redact,
        Named::Kick,
        Named::Invite,
    ];

    pub fn key(self) -> &'static str {
        match self {
            Named::UsersDefault => "users_default",
            Named::EventsDefault => "events_default",
            Named::StateDefault => "state_default",
            Named::Ban => "ban",
            Named::Redact => "redact",
            Named::Kick => "kick",
            Named::Invite => "invite",
        }
    }

    /// The level when the event does not set it, or there is no event.
    pub fn default(self) -> i64 {
        match self {
            Named::UsersDefault | Named::EventsDefault | Named::Invite => 0,
            Named::StateDefault | Named::Ban | Named::Redact | Named::Kick => 50,
        }
    }
}

/// A list of levels by name, sorted.
type Levels = Vec<(Box<str>, i64)>;

/// The content of an `m.room.power_levels` event, read once. About 40 bytes per entry beside the names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PowerLevels {
    named: [Option<i64>; 7],
    events: Levels,
    notifications: Levels,
    users: Levels,
}

impl PowerLevels {
    /// From canonical content. Refuses the values that the rules refuse in a new event: a level that is no number (or,
    /// before version 10, no string of one), a user id that is none.
    pub fn parse(version: &RoomVersion, content: &str) -> Result<PowerLevels, Reject> {
        let mut levels = PowerLevels::default();
        for (key, value) in json::read::members(content.as_bytes()) {
            match key {
                b"events" => levels.events = parse_list(version, value, "events")?,
                b"notifications" => levels.notifications = parse_list(version, value, "notifications")?,
                b"users" => levels.users = parse_list(version, value, "users")?,
                _ => {
                    if let Some(named) = Named::ALL.into_iter().find(|n| n.key().as_bytes() == key) {
                        levels.named[named as usize] = Some(parse_level(version, value, named.key())?);
                    }
                }
            }
        }
        let valid = levels.users.iter().all(|(id, _)| <&UserId>::try_from(&**id).is_ok());
        need(valid, "users in the power levels contains a key that is not a user ID")?;
        Ok(levels)
    }

    pub fn named(&self, named: Named) -> i64 {
        self.named[named as usize].unwrap_or(named.default())
    }
    /// A user's level as written; creators of version 12 rooms stand above it ([`Powers::user`]).
    pub fn user(&self, user: &UserId) -> i64 {
        find(&self.users, user.as_str()).unwrap_or(self.named(Named::UsersDefault))
    }
    pub fn event(&self, kind: &str, is_state: bool) -> i64 {
        let default = if is_state { Named::StateDefault } else { Named::EventsDefault };
        find(&self.events, kind).unwrap_or(self.named(default))
    }
    /// The level for `@room` and the like; 50 when the event does not set it.
    pub fn notification(&self, key: &str) -> i64 {
        find(&self.notifications, key).unwrap_or(50)
    }
    /// Users with a level of their own, sorted by id.
    pub fn users(&self) -> impl Iterator<Item = (&str, i64)> {
        self.users.iter().map(|(id, level)| (&**id, *level))
    }
    /// Memory held, for the account that pays for it.
    pub fn weight(&self) -> usize {
        let lists = [&self.events, &self.notifications, &self.users];
        size_of::<PowerLevels>() + lists.into_iter().flatten().map(|(key, _)| key.len() + 40).sum::<usize>()
    }
}

/// The permissions in one state: the power levels and the creators together.
#[derive(Clone, Copy)]
pub struct Powers<'a> {
    version: &'a RoomVersion,
    create: &'a Create,
    levels: Option<&'a PowerLevels>,
}

impl<'a> Powers<'a> {
    pub fn new(version: &'a RoomVersion, create: &'a Create, levels: Option<&'a PowerLevels>) -> Powers<'a> {
        Powers { version, create, levels }
    }

    pub fn user(&self, user: &UserId) -> i64 {
        if self.version.creators_infinite && self.create.is_creator(user) {
            return INFINITE;
        }
        match self.levels {
            Some(levels) => levels.user(user),
            None if self.create.is_creator(user) => CREATOR_DEFAULT,
            None => Named::UsersDefault.default(),
        }
    }
    pub fn named(&self, named: Named) -> i64 {
        self.levels.map_or(named.default(), |l| l.named(named))
    }
    pub fn event(&self, kind: &str, is_state: bool) -> i64 {
        let default = if is_state { Named::StateDefault } else { Named::EventsDefault };
        self.levels.map_or(default.default(), |l| l.event(kind, is_state))
    }
    pub fn notification(&self, key: &str) -> i64 {
        self.levels.map_or(50, |l| l.notification(key))
    }
}

/// The rule "If type is m.room.power_levels".
pub(super) fn check_change(
    version: &RoomVersion,
    event: &Subject<'_>,
    powers: &Powers<'_>,
    level: i64,
) -> Result<(), Reject> {
    let new = PowerLevels::parse(version, event.content)?;
    if version.creators_infinite {
        let named = powers.create.creators.iter().any(|c| find(&new.users, c.as_str()).is_some());
        need(!named, "the power levels contain a creator of the room")?;
    }
    let Some(old) = powers.levels else { return Ok(()) };
    for named in Named::ALL {
        let (was, is) = (old.named[named as usize], new.named[named as usize]);
        if was != is && (old.named(named) > level || new.named(named) > level) {
            return Err(Reject::auth(format!("the sender may not change the level of {}", named.key())));
        }
    }
    check_lists("events", &old.events, &new.events, level, |_, was| was > level)?;
    if version.guards_notification_levels {
        check_lists("notifications", &old.notifications, &new.notifications, level, |_, was| was > level)?;
    }
    // A user of the same level cannot be lowered, except by themselves.
    check_lists("users", &old.users, &new.users, level, |id, was| id != event.sender && was >= level)
}

/// Every entry that is added, changed or removed must be within the sender's reach, before and after. Both lists are sorted.
fn check_lists(
    name: &str,
    old: &Levels,
    new: &Levels,
    level: i64,
    guarded: impl Fn(&str, i64) -> bool,
) -> Result<(), Reject> {
    let refuse = |key: &str| Err(Reject::auth(format!("the sender may not change the level of {key} in {name}")));
    for (key, was) in old {
        let is = find(new, key);
        if is != Some(*was) && (guarded(key, *was) || is.is_some_and(|is| is > level)) {
            return refuse(key);
        }
    }
    for (key, is) in new {
        if *is > level && find(old, key) != Some(*is) {
            return refuse(key);
        }
    }
    Ok(())
}

fn find(levels: &Levels, key: &str) -> Option<i64> {
    levels.binary_search_by(|(k, _)| (**k).cmp(key)).ok().map(|at| levels[at].1)
}

fn parse_list(version: &RoomVersion, value: &[u8], name: &str) -> Result<Levels, Reject> {
    if value.first() != Some(&b'{') {
        return Err(Reject::auth(format!("{name} in the power levels is not an object")));
    }
    let entry = |(key, value): (&[u8], &[u8])| {
        let quoted = [b"\"", key, b"\""].concat();
        let key = json::read::text(&quoted).ok_or_else(|| Reject::auth("malformed key"))?;
        Ok((Box::from(&*key), parse_level(version, value, &key)?))
    };
    // Canonical order is the order of the unescaped keys, so the list comes sorted.
    json::read::members(value).map(entry).collect()
}

fn parse_level(version: &RoomVersion, value: &[u8], name: &str) -> Result<i64, Reject> {
    let level = match value.first() {
        Some(b'"') if !version.integer_levels => json::read::text(value).and_then(|text| level_in_text(&text)),
        Some(b'-' | b'0'..=b'9') => json::read::integer(value).or_else(|| truncated(version, value)),
        _ => None,
    };
    let reachable = level.filter(|l| l.unsigned_abs() < 1 << 53);
    reachable.ok_or_else(|| Reject::auth(format!("the level of {name} is no integer")))
}

/// Before version 10 a string of a number counts, with blanks round it and a sign before it.
fn level_in_text(text: &str) -> Option<i64> {
    let text = text.trim();
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) { None } else { text.parse().ok() }
}

/// Before canonical JSON was required, floats could be sent, and were truncated.
fn truncated(version: &RoomVersion, value: &[u8]) -> Option<i64> {
    if version.strict_json {
        return None;
    }
    let number: f64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    number.is_finite().then_some(number as i64)
}

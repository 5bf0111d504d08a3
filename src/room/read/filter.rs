//! The filter of a sync or of a page of events (client-server API, "Filtering").

use std::borrow::Cow;

use ruma::{RoomId, UserId};
use serde::Deserialize;

use super::event_json;
use crate::matrix::json;
use crate::store::tables::room::event;
use crate::store::tables::room::event_row::Row;
use crate::store::tables::user;
use crate::store::{Get, Result};

/// The most memory a parsed filter may take: several hundred ids of users or rooms.
const FILTER_BYTES_MAX: u64 = 32 * 1024;
/// The cost of one text in a list, beside its letters.
const TEXT_BYTES: u64 = 40;

/// A sync filter, as an app sends or has saved it. Its length is bounded where it comes in.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Filter {
    pub event_fields: Option<Vec<String>>,
    pub event_format: Option<Shape>,
    pub presence: Events,
    pub account_data: Events,
    pub room: InRoom,
    /// Fields of other users' profiles that the app wants told (MSC4429).
    pub profile_fields: Option<ProfileFields>,
    #[serde(rename = "org.matrix.msc4429.profile_fields")]
    pub unstable_profile_fields: Option<ProfileFields>,
}

/// The profile fields that are wanted.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ProfileFields {
    pub ids: Vec<String>,
}

/// How events are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    Client,
    Federation,
}

/// The part of a filter that is about rooms.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct InRoom {
    pub rooms: Option<Vec<String>>,
    pub not_rooms: Vec<String>,
    pub include_leave: bool,
    pub account_data: Events,
    pub ephemeral: Events,
    pub state: Events,
    pub timeline: Events,
}

/// A filter of events. A field that is absent lets everything through.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Events {
    pub limit: Option<u64>,
    pub types: Option<Vec<String>>,
    pub not_types: Vec<String>,
    pub senders: Option<Vec<String>>,
    pub not_senders: Vec<String>,
    pub rooms: Option<Vec<String>>,
    pub not_rooms: Vec<String>,
    pub contains_url: Option<bool>,
    pub lazy_load_members: bool,
    pub unread_thread_notifications: bool,
    /// How an event relates to another (MSC3874); one that relates to none is of no such type.
    #[serde(rename = "org.matrix.msc3874.rel_types")]
    pub rel_types: Option<Vec<String>>,
    #[serde(rename = "org.matrix.msc3874.not_rel_types")]
    pub not_rel_types: Vec<String>,
}

impl Events {
    /// Events of one type.
    pub fn of_type(kind: String) -> Events {
        Events { types: Some(vec![kind]), ..Events::default() }
    }
}

impl Filter {
    /// Reads a filter; `None` when it is none, or one that takes too much memory.
    pub fn parse(json: &[u8]) -> Option<Filter> {
        // A list would be taken for the fields in their order.
        let filter: Filter = serde_json::from_slice(json).ok().filter(|_| json.trim_ascii_start().starts_with(b"{"))?;
        let InRoom { rooms, not_rooms, account_data, ephemeral, state, timeline, .. } = &filter.room;
        let events = [&filter.presence, &filter.account_data, account_data, ephemeral, state, timeline];
        let has_ids =
            events.iter().all(|events| events.has_ids()) && are_rooms(rooms.iter().flatten().chain(not_rooms));
        (has_ids && filter.bytes() <= FILTER_BYTES_MAX).then_some(filter)
    }

    /// The memory a filter takes, the paths of its fields included.
    pub fn bytes(&self) -> u64 {
        let InRoom { rooms, not_rooms, account_data, ephemeral, state, timeline, .. } = &self.room;
        let events = [&self.presence, &self.account_data, account_data, ephemeral, state, timeline];
        let lists = events.iter().flat_map(|events| events.lists()).chain([rooms.as_deref(), Some(&not_rooms[..])]);
        let paths = self.fields();
        let profiles = [&self.profile_fields, &self.unstable_profile_fields];
        let profiles = profiles.into_iter().flatten().flat_map(|fields| fields.ids.iter());
        let texts = lists.flatten().flatten().chain(self.event_fields.iter().flatten()).chain(paths.iter().flatten());
        texts.chain(profiles).map(|text| text.len() as u64 + TEXT_BYTES).sum()
    }

    /// The paths of `event_fields`.
    pub fn fields(&self) -> Vec<Vec<String>> {
        self.event_fields.iter().flatten().map(|path| json::read::dot_path(path)).collect()
    }

    /// The profile fields that are wanted, and the name under which they are told.
    pub fn profiles(&self) -> Option<(&'static str, &[String])> {
        let stable = self.profile_fields.as_ref().map(|fields| ("users", &fields.ids[..]));
        let unstable =
            self.unstable_profile_fields.as_ref().map(|fields| ("org.matrix.msc4429.users", &fields.ids[..]));
        stable.or(unstable).filter(|(_, ids)| !ids.is_empty())
    }

    pub fn is_federation(&self) -> bool {
        self.event_format == Some(Shape::Federation)
    }
}

impl InRoom {
    /// Whether anything of the room is wanted.
    pub fn wants_room(&self, room_id: &str) -> bool {
        listed(self.rooms.as_deref(), &self.not_rooms, room_id)
    }
}

impl Events {
    /// Reads the filter of one list of events; `None` when it is none, or one that takes too much memory.
    pub fn parse(json: &[u8]) -> Option<Events> {
        let events: Events = serde_json::from_slice(json).ok()?;
        let texts = events.lists().into_iter().flatten().flatten();
        let bytes: u64 = texts.map(|text| text.len() as u64 + TEXT_BYTES).sum();
        (events.has_ids() && bytes <= FILTER_BYTES_MAX).then_some(events)
    }

    /// Whether all ids in the filter are well-formed user or room ids.
    fn has_ids(&self) -> bool {
        let Events { senders, not_senders, rooms, not_rooms, .. } = self;
        senders.iter().flatten().chain(not_senders).all(|id| UserId::parse(id).is_ok())
            && are_rooms(rooms.iter().flatten().chain(not_rooms))
    }

    fn lists(&self) -> [Option<&[String]>; 8] {
        let Events { types, not_types, senders, not_senders, rooms, not_rooms, rel_types, not_rel_types, .. } = self;
        let wanted = [types, senders, rooms, rel_types].map(Option::as_deref);
        let not = [not_types, not_senders, not_rooms, not_rel_types].map(|list| Some(&list[..]));
        let ([a, b, c, d], [e, f, g, h]) = (wanted, not);
        [a, b, c, d, e, f, g, h]
    }

    pub fn wants_room(&self, room_id: &str) -> bool {
        listed(self.rooms.as_deref(), &self.not_rooms, room_id)
    }

    /// The filter as it is for one room: nothing is wanted of a room that it leaves out.
    pub fn of_room(&self, room_id: &str) -> Cow<'_, Events> {
        match self.wants_room(room_id) {
            true => Cow::Borrowed(self),
            false => Cow::Owned(Events { types: Some(Vec::new()), ..Events::default() }),
        }
    }

    /// Whether no event at all is wanted.
    pub fn wants_nothing(&self) -> bool {
        self.types.as_ref().is_some_and(Vec::is_empty)
    }

    pub fn wants_type(&self, kind: &str) -> bool {
        let is = |pattern: &String| matches(pattern, kind);
        !self.not_types.iter().any(is) && self.types.as_ref().is_none_or(|types| types.iter().any(is))
    }

    /// Whether an event is wanted that is here only as apps are shown it, in JSON.
    pub fn wants_shown(&self, event: &[u8]) -> bool {
        let text = |key: &str| json::read::get_text(event, key).unwrap_or_default();
        self.wants_type(&text("type"))
            && listed(self.senders.as_deref(), &self.not_senders, &text("sender"))
            && self.wants_content(event)
    }

    /// Whether the filter asks about the content of events.
    fn reads_content(&self) -> bool {
        self.contains_url.is_some() || self.rel_types.is_some() || !self.not_rel_types.is_empty()
    }

    fn wants_content(&self, event: &[u8]) -> bool {
        let text_at = |path: &[&str]| json::read::get_path(event, path).and_then(json::read::text);
        let has_url = || text_at(&["content", "url"]).is_some();
        let wants_relation = || {
            let rel_type = text_at(&["content", "m.relates_to", "rel_type"]);
            let is = |list: &[String]| rel_type.as_ref().is_some_and(|rel_type| list.iter().any(|one| one == rel_type));
            self.rel_types.as_deref().is_none_or(is) && !is(&self.not_rel_types)
        };
        self.contains_url.is_none_or(|wanted| has_url() == wanted)
            && ((self.rel_types.is_none() && self.not_rel_types.is_empty()) || wants_relation())
    }

    /// Whether an event is wanted. Reads no more of it than the filter asks about.
    pub fn wants(&self, get: &impl Get, row: &Row) -> Result<bool> {
        if (self.types.is_some() || !self.not_types.is_empty()) && !self.wants_type(&event_json::kind(get, row)?) {
            return Ok(false);
        }
        if (self.senders.is_some() || !self.not_senders.is_empty())
            && !listed(self.senders.as_deref(), &self.not_senders, &user::id_of(get, row.sender)?)
        {
            return Ok(false);
        }
        Ok(!self.reads_content() || self.wants_content(&event::shown(get, row)?))
    }

    /// The number of events asked for, within bounds.
    pub fn limit(&self, default: usize, most: usize) -> usize {
        self.limit.map_or(default, |limit| usize::try_from(limit).unwrap_or(most)).min(most)
    }
}

fn are_rooms<'a>(mut ids: impl Iterator<Item = &'a String>) -> bool {
    ids.all(|id| RoomId::parse(id).is_ok())
}

fn listed(only: Option<&[String]>, not: &[String], one: &str) -> bool {
    !not.iter().any(|other| other == one) && only.is_none_or(|only| only.iter().any(|other| other == one))
}

/// Whether a text fits a pattern, in which `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        if let Some(between) = last.replace(part) {
            let Some((_, after)) = rest.split_once(between) else { return false };
            rest = after;
        }
    }
    last.map_or(rest.is_empty(), |last| rest.ends_with(last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, fits) in [
            ("m.room.message", "m.room.message", true),
            ("m.room.message", "m.room.messages", false),
            ("m.room.*", "m.room.name", true),
            ("*", "", true),
            ("*.name", "m.room.name", true),
            ("m.*.na*", "m.room.name", true),
            ("m.*.x*", "m.room.name", false),
            ("a*a", "a", false),
            ("**", "anything", true),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn relations_are_wanted_or_not() {
        let events = [
            (r#"{"content":{"m.relates_to":{"rel_type":"m.thread","event_id":"$a"}}}"#, [true, false, false]),
            (r#"{"content":{"m.relates_to":{"rel_type":"m.reference"}}}"#, [false, true, false]),
            (r#"{"content":{"m.relates_to":{"m.in_reply_to":{}},"url":"mxc://a/b"}}"#, [false, true, true]),
            (r#"{"content":{"m.relates_to":5}}"#, [false, true, false]),
        ];
        let filters = [
            r#"{"org.matrix.msc3874.rel_types":["m.thread"]}"#,
            r#"{"org.matrix.msc3874.not_rel_types":["m.thread","m.annotation"]}"#,
            r#"{"org.matrix.msc3874.not_rel_types":["m.thread"],"contains_url":true}"#,
        ];
        for (event, wanted) in events {
            let found = filters.map(|filter| Events::parse(filter.as_bytes()).unwrap().wants_shown(event.as_bytes()));
            assert_eq!(found, wanted, "{event}");
        }
    }

    #[test]
    fn filters_as_apps_send_them() {
        let filter = Filter::parse(
            br#"{"event_fields":["content.body"],"presence":{"not_types":["*"]},"room":{"timeline":{"limit":20,
            "unread_thread_notifications":true,"types":["m.room.*"],"not_types":["m.room.name"]},
            "state":{"lazy_load_members":true},"include_leave":true,"not_rooms":["!no:x"]}}"#,
        )
        .unwrap();
        assert!(filter.room.state.lazy_load_members && filter.room.include_leave);
        assert_eq!(filter.room.timeline.limit(10, 100), 20);
        assert!(filter.room.timeline.wants_type("m.room.topic") && !filter.room.timeline.wants_type("m.room.name"));
        assert!(!filter.room.timeline.wants_type("m.reaction"));
        assert!(filter.room.wants_room("!a:x") && !filter.room.wants_room("!no:x"));
        assert_eq!(filter.fields(), [["content", "body"]]);
        assert_eq!(filter.bytes(), (1 + 12 + 7 + 4 + 8 + 11 + 5) + 7 * TEXT_BYTES);
        for (filter, fine) in [
            (
                r#" {"room":{"timeline":{"limit":5,"types":null}},"event_fields":["type"],"event_format":"client"}"#,
                true,
            ),
            (r#"{"room":{"timeline":{"not_types":null}}}"#, false),
            (r#"{"room":{"state":{"lazy_load_members":"yes"}}}"#, false),
            (r#"{"room":{"account_data":null}}"#, false),
            (r#"{"room":{"include_leave":null}}"#, false),
            (r#"{"room":{"rooms":["no room"]}}"#, false),
            (r#"{"room":{"timeline":{"senders":["nobody"]}}}"#, false),
            (r#"{"presence":"none"}"#, false),
            (r#"{"event_format":"other"}"#, false),
            (r#"{"room":5}"#, false),
            ("[]", false),
        ] {
            assert_eq!(Filter::parse(filter.as_bytes()).is_some(), fine, "{filter}");
        }
        // A filter of 16 KiB became 200 KiB in memory, held without a grant for as long as the sync waited.
        let types = vec!["a"; 1000];
        let many = serde_json::json!({ "room": { "timeline": { "types": types } } }).to_string();
        assert!(Filter::parse(many.as_bytes()).is_none());
        assert!(Events::parse(serde_json::json!({ "types": types }).to_string().as_bytes()).is_none());
        assert!(Filter::parse(format!(r#"{{"event_fields":["{}"]}}"#, ".".repeat(1000)).as_bytes()).is_none());
        assert_eq!(Events::default().limit(10, 100), 10);
    }

    #[test]
    fn any_bytes_are_a_filter_or_none() {
        let seed: &[u8] = br#"{"room":{"timeline":{"limit":10,"types":["m.*"],"not_senders":["@a:b"],"contains_url":true},
            "rooms":["!a:b"],"include_leave":true},"event_fields":["content.body","a\\.b"],"event_format":"federation"}"#;
        crate::base::any_bytes::any_bytes(&[seed, br#"{"types":["*a*b*"],"limit":-1}"#], |bytes| {
            if let Some(filter) = Filter::parse(bytes) {
                let _ = (filter.bytes(), filter.fields(), filter.is_federation());
            }
            if let Some(events) = Events::parse(bytes) {
                let _ = (events.wants_room("!a:b"), events.wants_type("m.room.message"), events.limit(10, 100));
            }
        });
    }
}

//! Which push rule matches an event for one user (client-server API, "Push Rules").
//!
//! The rules are ruma's, and their matching but for words in a text (`words.rs`). An event is flattened once ([`Flat`]) and asked
//! for each local member; a plain message costs some microseconds a member.

mod defaults;
pub mod notice;
mod words;

pub use defaults::default_rules;

use super::auth::{INFINITE, Powers};
use super::event::Event;
use super::json;
use ruma::power_levels::NotificationPowerLevels;
use ruma::push::{
    Action, AnyPushRuleRef, FlattenedJson, PushCondition, PushConditionPowerLevelsCtx, PushConditionRoomCtx, Ruleset,
};
use ruma::room_version_rules::{AuthorizationRules, RoomPowerLevelsRules};
use ruma::serde::Raw;
use ruma::{Int, OwnedRoomId, OwnedUserId, UInt, UserId};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

/// Keys in the path of a member that a rule can name. Flattening recurses this far.
const PATH_KEYS_MAX: usize = 50;
/// Members and items that are flattened, and the length of their paths together. Each has its whole path: one long key
/// round thousands of members, all within 64 KiB, would be a hundred megabytes.
const MEMBERS_MAX: usize = 4000;
const PATHS_BYTES_MAX: usize = 128 * 1024;

/// An event made ready for matching.
pub struct Flat {
    flat: FlattenedJson,
    sender: OwnedUserId,
}

impl Flat {
    pub fn new(event: &Event) -> Flat {
        let text = String::from_utf8(Matchable::text(event.to_federation())).unwrap_or_default();
        Flat { flat: flattened(text), sender: event.sender().to_owned() }
    }
}

/// A text that cannot be parsed, such as one with half of a surrogate pair, has no members: no rule about them matches.
fn flattened(text: String) -> FlattenedJson {
    let is_json = serde_json::from_str::<serde_json::Value>(&text).is_ok();
    let raw = Some(text).filter(|_| is_json).and_then(|text| Raw::<()>::from_json_string(text).ok());
    FlattenedJson::from_raw(&raw.unwrap_or_else(|| Raw::from_json(RawValue::NULL.to_owned())))
}

/// The members of an event that rules can match, within the bounds above: the event's author chose its depth and width,
/// and ruma's flattening takes all members and panics where it cannot.
struct Matchable {
    out: Vec<u8>,
    members_left: usize,
    paths_left: usize,
}

impl Matchable {
    /// `event`: canonical JSON. The members that most rules ask for come first, so that they always have their place.
    fn text(event: &[u8]) -> Vec<u8> {
        let out = Vec::with_capacity(event.len());
        let mut matchable = Matchable { out, members_left: MEMBERS_MAX, paths_left: PATHS_BYTES_MAX };
        let rank = |key: &[u8]| match key {
            b"type" | b"sender" | b"room_id" | b"state_key" => 0,
            b"content" => 1,
            _ => 2,
        };
        let of = |wanted| json::read::members(event).filter(move |(key, _)| rank(key) == wanted);
        matchable.object(&mut of(0).chain(of(1)).chain(of(2)), 1, 0);
        matchable.out
    }

    /// `keys`: the number of keys in the path to one of the members; `path`: the length of the path to the object.
    fn object<'a>(&mut self, members: &mut dyn Iterator<Item = (&'a [u8], &'a [u8])>, keys: usize, path: usize) {
        self.out.push(b'{');
        let first = self.out.len();
        for (key, value) in members {
            let path = path + key.len() + 1;
            if keys > PATH_KEYS_MAX || self.members_left == 0 || path > self.paths_left {
                continue;
            }
            self.members_left -= 1;
            self.paths_left -= path;
            self.out.extend_from_slice(if self.out.len() > first { b",\"" } else { b"\"" });
            self.out.extend_from_slice(key);
            self.out.extend_from_slice(b"\":");
            match value.first() {
                Some(b'{') => self.object(&mut json::read::members(value), keys + 1, path),
                Some(b'[') => self.array(value),
                _ => self.out.extend_from_slice(value),
            }
        }
        self.out.push(b'}');
    }

    /// Rules look for a text or number in an array, and for nothing else.
    fn array(&mut self, array: &[u8]) {
        self.out.push(b'[');
        let first = self.out.len();
        for item in json::read::items(array).filter(|item| !matches!(item.first(), Some(b'{' | b'['))) {
            let Some(left) = self.members_left.checked_sub(1) else { break };
            self.members_left = left;
            self.out.extend_from_slice(if self.out.len() > first { b"," } else { b"" });
            self.out.extend_from_slice(item);
        }
        self.out.push(b']');
    }
}

/// The room as the rules see it, the same for all its members.
pub struct Room {
    pub room_id: OwnedRoomId,
    /// Joined members.
    pub member_count: u64,
}

impl Room {
    pub fn new(event: &Event, member_count: u64) -> Room {
        Room { room_id: event.room_id().to_owned(), member_count }
    }
}

/// What is looked up when a rule asks for it; for most events none does.
pub trait Lookup {
    /// The member's name in the room.
    fn display_name(&self) -> String;
    /// What [`levels`] says of the event.
    fn levels(&self) -> Levels;
    /// Whether the member is subscribed to the thread that the event is in (MSC4306); none when it is in no thread, or the
    /// member's apps know no subscriptions.
    fn is_subscribed(&self) -> Option<bool>;
}

/// The sender's level and the level for `@room`.
pub type Levels = PushConditionPowerLevelsCtx;

/// The levels that rules ask for: only the sender's and that for `@room`.
pub fn levels(event: &Event, powers: Option<&Powers<'_>>) -> Levels {
    let number = |level: i64| if level == INFINITE { Int::MAX } else { Int::new_saturating(level) };
    let sender = powers.map_or(Int::default(), |p| number(p.user(event.sender())));
    let mut notifications = NotificationPowerLevels::new();
    notifications.room = number(powers.map_or(50, |p| p.notification("room")));
    let rules = RoomPowerLevelsRules::new(&AuthorizationRules::V1, []);
    let users = BTreeMap::from([(event.sender().to_owned(), sender)]);
    PushConditionPowerLevelsCtx::new(users, Int::default(), notifications, rules)
}

/// The outcome of the matching rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    pub notify: bool,
    pub highlight: bool,
    pub sound: Option<String>,
}

/// The outcome of the rules of `user` for an event. Own events never notify.
pub fn evaluate(rules: &Ruleset, flat: &Flat, room: &Room, user: &UserId, lookup: &dyn Lookup) -> Outcome {
    match actions(rules, flat, room, user, lookup) {
        Some(actions) => outcome(actions),
        None => Outcome::default(),
    }
}

/// The actions of the matching rule, if one matches.
fn actions<'r>(
    rules: &'r Ruleset,
    flat: &Flat,
    room: &Room,
    user: &UserId,
    lookup: &dyn Lookup,
) -> Option<&'r [Action]> {
    if flat.sender == user {
        return None;
    }
    let count = UInt::new_saturating(room.member_count);
    let context = PushConditionRoomCtx::new(room.room_id.clone(), count, user.to_owned(), String::new());
    let rule = rules.iter().find(|rule| applies(*rule, &flat.flat, &context, lookup));
    rule.map(|rule| rule.actions())
}

/// The member of an event in which patterns are words.
const BODY: &str = "content.body";

/// Whether a rule matches. The old rules about mentions are for events that do not say themselves who is mentioned.
fn applies(
    rule: AnyPushRuleRef<'_>,
    flat: &FlattenedJson,
    context: &PushConditionRoomCtx,
    lookup: &dyn Lookup,
) -> bool {
    if !rule.enabled() || (defaults::is_for_events_without_mentions(rule.rule_id()) && flat.contains_mentions()) {
        return false;
    }
    match rule {
        AnyPushRuleRef::Override(rule) | AnyPushRuleRef::PostContent(rule) | AnyPushRuleRef::Underride(rule) => {
            rule.conditions.iter().all(|condition| holds(condition, flat, context, lookup))
        }
        AnyPushRuleRef::Content(rule) => {
            flat.get_str(BODY).is_some_and(|body| words::matches_glob(body, &rule.pattern))
        }
        rule => at_once(rule.applies(flat, context)),
    }
}

fn holds(condition: &PushCondition, flat: &FlattenedJson, context: &PushConditionRoomCtx, lookup: &dyn Lookup) -> bool {
    match condition {
        #[expect(deprecated, reason = "for events without `m.mentions`, and users' own rules")]
        PushCondition::ContainsDisplayName => {
            flat.get_str(BODY).is_some_and(|body| words::contains(body, &lookup.display_name()))
        }
        PushCondition::SenderNotificationPermission(_) => {
            at_once(condition.applies(flat, &context.clone().with_power_levels(lookup.levels())))
        }
        PushCondition::EventMatch(wanted) if wanted.key == BODY => {
            flat.get_str(BODY).is_some_and(|body| words::matches_glob(body, &wanted.pattern))
        }
        PushCondition::ThreadSubscription(wanted) => lookup.is_subscribed() == Some(wanted.subscribed),
        // The room's id is no member of the event.
        PushCondition::EventMatch(wanted) if wanted.key != "room_id" => {
            flat.get_str(&wanted.key).is_some_and(|value| words::matches_whole(value, &wanted.pattern))
        }
        other => at_once(other.applies(flat, context)),
    }
}

/// Asynchronous only for thread subscriptions, which are not asked in this way: it is ready at once.
fn at_once(matching: impl Future<Output = bool>) -> bool {
    match pin!(matching).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(matches) => matches,
        Poll::Pending => false,
    }
}

/// A longer name of a sound counts as none: a rule may hold any text, and outcomes are kept by the hundred.
const SOUND_BYTES_MAX: usize = 255;

/// The outcome of a list of actions.
pub fn outcome(actions: &[Action]) -> Outcome {
    let mut outcome = Outcome::default();
    for action in actions {
        outcome.notify |= action.should_notify();
        outcome.highlight |= action.is_highlight();
        let sound = action.sound().map(|sound| sound.as_str()).filter(|sound| sound.len() <= SOUND_BYTES_MAX);
        outcome.sound = sound.map(str::to_owned).or(outcome.sound);
    }
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::auth::{Create, PowerLevels};
    use crate::matrix::{tests::ruma as oracle, version};
    use serde_json::{Value, json};

    /// The levels, and whether Bea is subscribed to the event's thread.
    struct Bea(Levels, Option<bool>);

    impl Lookup for Bea {
        fn display_name(&self) -> String {
            "Bea".to_owned()
        }

        fn levels(&self) -> Levels {
            self.0.clone()
        }

        fn is_subscribed(&self) -> Option<bool> {
            self.1
        }
    }

    fn ask(members: u64, kind: &str, content: Value) -> Outcome {
        ask_in(None, members, kind, content)
    }

    /// The same in a thread, to which the user is subscribed or not.
    fn ask_in(thread: Option<bool>, members: u64, kind: &str, content: Value) -> Outcome {
        let version = version::get("12").unwrap();
        let value = json!({ "type": kind, "sender": "@a:x", "room_id": "!r", "content": content });
        let event = oracle::event(version, "$e", &value);
        let create = Create {
            id: "$r".try_into().unwrap(),
            sender: "@c:x".try_into().unwrap(),
            federate: true,
            creators: vec![],
        };
        let levels = PowerLevels::parse(version, r#"{"users":{"@a:x":20},"notifications":{"room":20}}"#).unwrap();
        let powers = Powers::new(version, &create, Some(&levels));
        let user = <&UserId>::try_from("@b:x").unwrap();
        let room = Room::new(&event, members);
        let bea = Bea(super::levels(&event, Some(&powers)), thread);
        evaluate(&default_rules(user), &Flat::new(&event), &room, user, &bea)
    }

    fn said(body: &str) -> Value {
        json!({ "msgtype": "m.text", "body": body, "m.mentions": {} })
    }

    #[test]
    fn the_default_rules() {
        let sound = Some("default".to_owned());
        let plain = Outcome { notify: true, ..Outcome::default() };
        assert_eq!(ask(5, "m.room.message", said("hi")), plain);
        assert_eq!(ask(2, "m.room.message", said("hi")), Outcome { sound: sound.clone(), ..plain.clone() });
        let mention = json!({ "msgtype": "m.text", "body": "x", "m.mentions": { "user_ids": ["@b:x"] } });
        assert_eq!(ask(5, "m.room.message", mention), Outcome { notify: true, highlight: true, sound });
        let all = json!({ "msgtype": "m.text", "body": "@room x", "m.mentions": { "room": true } });
        assert!(ask(5, "m.room.message", all).highlight);
        let ringing = Outcome { notify: true, highlight: false, sound: Some("ring".to_owned()) };
        for mentions in [json!({ "user_ids": ["@b:x"] }), json!({ "room": true })] {
            assert_eq!(ask(5, "org.matrix.msc4075.rtc.invite", json!({ "m.mentions": mentions })), ringing);
        }
        assert_eq!(ask(5, "org.matrix.msc4075.rtc.invite", json!({ "m.mentions": {} })), Outcome::default());
        assert_eq!(ask(5, "m.reaction", json!({})), Outcome::default());
        assert_eq!(ask(5, "m.room.member", json!({ "membership": "join" })), Outcome::default());
        assert_eq!(ask(5, "m.room.encrypted", json!({ "algorithm": "x" })), plain);
    }

    /// Mentions come before the rules about threads, and those before what a room is set to.
    #[test]
    fn threads_notify_those_who_are_subscribed() {
        let sound = Some("default".to_owned());
        let loud = Outcome { notify: true, highlight: false, sound: sound.clone() };
        assert_eq!(ask_in(Some(true), 5, "m.room.message", said("hi")), loud);
        assert_eq!(ask_in(Some(true), 5, "m.room.encrypted", json!({ "algorithm": "x" })), loud);
        assert_eq!(ask_in(Some(false), 5, "m.room.message", said("hi")), Outcome::default());
        assert_eq!(ask_in(Some(false), 2, "m.room.message", said("hi")), Outcome::default());
        assert!(ask_in(None, 5, "m.room.message", said("hi")).notify);
        let mention = json!({ "msgtype": "m.text", "body": "x", "m.mentions": { "user_ids": ["@b:x"] } });
        assert!(ask_in(Some(false), 5, "m.room.message", mention).highlight);
        assert_eq!(ask_in(Some(true), 5, "m.reaction", json!({})), Outcome::default());
    }

    /// Matching once parsed events of any depth, with a panic beyond 128 levels; and one long key round thousands of
    /// members became a hundred megabytes.
    #[test]
    fn what_is_matched_of_an_odd_event_is_bounded() {
        let mention = r#""m.mentions":{"user_ids":["@b:x",["deep"],{"a":0}]}"#;
        let deep = format!("{}1{}", r#"{"a":"#.repeat(790), "}".repeat(790));
        let wide: String = (0..5000).map(|n| format!("\"{n}\":0,")).collect();
        let long = format!("{{\"{}\":{{{wide}\"z\":0}}}}", "k".repeat(20_000));
        for odd in [deep, long] {
            let content = format!(r#"{{"body":"x",{mention},"odd":{odd}}}"#);
            let event = format!(
                r#"{{"content":{content},"room_id":"!r","sender":"@a:x","type":"m.room.message","unknown":{odd}}}"#
            );
            let text = Matchable::text(event.as_bytes());
            let read: Value = serde_json::from_slice(&text).unwrap();
            assert_eq!(read["content"]["m.mentions"]["user_ids"], json!(["@b:x"]));
            let version = version::get("12").unwrap();
            let event = Event::from_stored(version, event.into_bytes(), "$e".try_into().unwrap()).unwrap();
            let user = <&UserId>::try_from("@b:x").unwrap();
            let outcome = evaluate(
                &default_rules(user),
                &Flat::new(&event),
                &Room::new(&event, 5),
                user,
                &Bea(levels(&event, None), None),
            );
            assert!(outcome.notify && outcome.highlight);
        }
        let long = format!("{{\"content\":{{\"{}\":{{{wide}\"z\":0}}}}}}", "k".repeat(20_000));
        assert!(Matchable::text(long.as_bytes()).len() < 20_200, "six paths of that length are all there is room for");
    }

    #[test]
    fn old_mentions_highlight_in_events_that_do_not_say_who_is_mentioned() {
        let plain = |body: &str| json!({ "msgtype": "m.text", "body": body });
        for (body, highlight) in [("hello bea", true), ("hello b", true), ("@room look", true), ("hello beat", false)] {
            assert_eq!(ask(5, "m.room.message", plain(body)).highlight, highlight, "{body}");
            assert!(!ask(5, "m.room.message", said(body)).highlight, "{body}: the event says that nobody is mentioned");
        }
        let notice = json!({ "msgtype": "m.notice", "body": "hello bea" });
        assert_eq!(ask(5, "m.room.message", notice), Outcome::default());
    }

    /// A rule of the user's own looks for a name whatever the event says.
    #[test]
    fn a_users_own_rule_may_look_for_the_display_name() {
        let user = <&UserId>::try_from("@b:x").unwrap();
        let mut rules = serde_json::to_value(default_rules(user)).unwrap();
        let own = json!({ "rule_id": "mine", "conditions": [{ "kind": "contains_display_name" }],
            "actions": ["notify", { "set_tweak": "highlight" }], "default": false, "enabled": true });
        rules["override"].as_array_mut().unwrap().insert(1, own);
        let rules: Ruleset = serde_json::from_value(rules).unwrap();
        for (body, highlight) in [("hello bea", true), ("hello beat", false)] {
            let value = json!({ "type": "m.room.message", "sender": "@a:x", "room_id": "!r", "content": said(body) });
            let event = oracle::event(version::get("12").unwrap(), "$e", &value);
            let bea = Bea(levels(&event, None), None);
            let outcome = evaluate(&rules, &Flat::new(&event), &Room::new(&event, 5), user, &bea);
            assert_eq!(outcome.highlight, highlight, "{body}");
        }
    }

    /// A rule of one user with such a pattern panicked whenever somebody spoke in a room of that user.
    #[test]
    fn a_pattern_that_is_too_long_matches_nothing() {
        let user = <&UserId>::try_from("@b:x").unwrap();
        let mut rules = serde_json::to_value(default_rules(user)).unwrap();
        let pattern = "?".repeat(60_000);
        rules["content"] =
            json!([{ "rule_id": "x", "pattern": pattern, "actions": [], "default": false, "enabled": true }]);
        let rules: Ruleset = serde_json::from_value(rules).unwrap();
        let value = json!({ "type": "m.room.message", "sender": "@a:x", "room_id": "!r", "content": said("hi") });
        let event = oracle::event(version::get("12").unwrap(), "$e", &value);
        assert!(
            evaluate(&rules, &Flat::new(&event), &Room::new(&event, 5), user, &Bea(levels(&event, None), None)).notify
        );
    }

    #[test]
    fn own_events_do_not_notify() {
        let version = version::get("12").unwrap();
        let value = json!({ "type": "m.room.message", "sender": "@b:x", "room_id": "!r", "content": said("hi") });
        let event = oracle::event(version, "$e", &value);
        let user = <&UserId>::try_from("@b:x").unwrap();
        let outcome = evaluate(
            &default_rules(user),
            &Flat::new(&event),
            &Room::new(&event, 2),
            user,
            &Bea(levels(&event, None), None),
        );
        assert_eq!(outcome, Outcome::default());
    }

    /// Half of a surrogate pair, in an event of a damaged page, was a panic.
    #[test]
    fn a_text_that_cannot_be_parsed_has_no_members() {
        for text in [r#"{"a":"\ud800"}"#, r#"{"\ud800":1}"#, r#"{"a":1e999}"#, "{", ""] {
            assert!(super::flattened(text.to_owned()).get("a").is_none(), "{text}");
        }
        assert_eq!(super::flattened(r#"{"a":"\ud83d\ude00"}"#.to_owned()).get_str("a"), Some("\u{1f600}"));
    }
}

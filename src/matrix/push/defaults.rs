//! The rules a user starts with.
//!
//! The specification's, those about polls (MSC3930) and invites to calls (MSC4075), and the one that phones switch on which decrypt everything before they
//! judge it (MSC4028). And those that look for names in a text, which the specification had until version 1.17 (MSC4210): they are
//! for events that do not say themselves who is mentioned (`m.mentions`), as old apps and bridges send them. As Synapse has
//! them, and in the places they had.

use ruma::UserId;
use ruma::power_levels::NotificationPowerLevelsKey;
use ruma::push::{
    Action, ConditionalPushRule, ConditionalPushRuleInit, EventMatchConditionData, EventPropertyIsConditionData,
    HighlightTweakValue, PatternedPushRuleInit, PushCondition, RoomMemberCountConditionData, RoomMemberCountIs,
    Ruleset, SenderNotificationPermissionConditionData, SoundTweakValue, Tweak,
};
use ruma::uint;

const CONTAINS_DISPLAY_NAME: &str = ".m.rule.contains_display_name";
const CONTAINS_USER_NAME: &str = ".m.rule.contains_user_name";
const ROOM_NOTIF: &str = ".m.rule.roomnotif";
const ENCRYPTED_EVENT: &str = ".org.matrix.msc4028.encrypted_event";

/// The rules a new user starts with.
pub fn default_rules(user: &UserId) -> Ruleset {
    let mut rules = Ruleset::server_default(user);
    // Behind the one that switches everything off.
    let behind_master = rules.override_.len().min(1);
    rules.override_.shift_insert(behind_master, encrypted_event());
    for (kind, mention) in [("me", ".m.rule.is_user_mention"), ("room", ".m.rule.is_room_mention")] {
        if let Some(place) = rules.override_.get_index_of(mention) {
            let invite = invite_to_call(kind, &rules.override_[place].conditions);
            let by_name = if kind == "me" { contains_display_name() } else { room_notif() };
            rules.override_.shift_insert(place + 1, by_name);
            rules.override_.shift_insert(place, invite);
        }
    }
    let user_name = PatternedPushRuleInit {
        actions: mention_of_the_user(),
        default: true,
        enabled: true,
        rule_id: CONTAINS_USER_NAME.to_owned(),
        pattern: user.localpart().to_owned(),
    };
    rules.content.insert(user_name.into());
    rules.override_.insert(poll("poll_response", "response", false, vec![]));
    for event in ["start", "end"] {
        let sound = Action::SetTweak(Tweak::Sound(SoundTweakValue::Default));
        rules.underride.insert(poll(&format!("poll_{event}_one_to_one"), event, true, vec![Action::Notify, sound]));
        rules.underride.insert(poll(&format!("poll_{event}"), event, false, vec![Action::Notify]));
    }
    rules
}

/// A rule about events of polls, in rooms of two or in all.
fn poll(name: &str, event: &str, of_two: bool, actions: Vec<Action>) -> ConditionalPushRule {
    let mut conditions = Vec::new();
    if of_two {
        conditions.push(RoomMemberCountConditionData::new(RoomMemberCountIs::from(uint!(2))).into());
    }
    // As Synapse has it: apps of before there was `event_property_is` know this kind of condition.
    let kind = format!("org.matrix.msc3381.poll.{event}");
    conditions.push(EventMatchConditionData::new("type".to_owned(), kind).into());
    default_rule(&format!(".org.matrix.msc3930.rule.{name}"), conditions, actions)
}

fn is_of_type(kind: &str) -> PushCondition {
    EventPropertyIsConditionData::new("type".to_owned(), kind.to_owned().into()).into()
}

/// A mention that invites to a call rings (MSC4075): before the rule for other such mentions, whose conditions it has too.
fn invite_to_call(whom: &str, mention: &[PushCondition]) -> ConditionalPushRule {
    let kind = EventMatchConditionData::new("type".to_owned(), "org.matrix.msc4075.rtc.invite".to_owned());
    let conditions = std::iter::once(kind.into()).chain(mention.iter().cloned()).collect();
    let ring = Action::SetTweak(Tweak::Sound(SoundTweakValue::from("ring")));
    default_rule(&format!(".org.matrix.msc4075.rule.rtc.invite_for_{whom}"), conditions, vec![Action::Notify, ring])
}

/// Off until an app switches it on.
fn encrypted_event() -> ConditionalPushRule {
    let mut rule = default_rule(ENCRYPTED_EVENT, vec![is_of_type("m.room.encrypted")], vec![Action::Notify]);
    rule.enabled = false;
    rule
}

/// Whether a rule is only for events that do not say themselves who is mentioned.
pub fn is_for_events_without_mentions(rule_id: &str) -> bool {
    matches!(rule_id, CONTAINS_DISPLAY_NAME | CONTAINS_USER_NAME | ROOM_NOTIF)
}

fn contains_display_name() -> ConditionalPushRule {
    #[expect(deprecated, reason = "for events without `m.mentions`")]
    let conditions = vec![PushCondition::ContainsDisplayName];
    default_rule(CONTAINS_DISPLAY_NAME, conditions, mention_of_the_user())
}

fn room_notif() -> ConditionalPushRule {
    let permission = SenderNotificationPermissionConditionData::new(NotificationPowerLevelsKey::Room);
    let body = EventMatchConditionData::new("content.body".to_owned(), "@room".to_owned());
    let actions = vec![Action::Notify, Action::SetTweak(Tweak::Highlight(HighlightTweakValue::Yes))];
    default_rule(ROOM_NOTIF, vec![permission.into(), body.into()], actions)
}

fn mention_of_the_user() -> Vec<Action> {
    let sound = Action::SetTweak(Tweak::Sound(SoundTweakValue::Default));
    vec![Action::Notify, sound, Action::SetTweak(Tweak::Highlight(HighlightTweakValue::Yes))]
}

fn default_rule(id: &str, conditions: Vec<PushCondition>, actions: Vec<Action>) -> ConditionalPushRule {
    ConditionalPushRuleInit { actions, default: true, enabled: true, rule_id: id.to_owned(), conditions }.into()
}

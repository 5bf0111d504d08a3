//! The rules a user starts with.
//!
//! The specification's, and those about mentions that it had before events said themselves who is mentioned (`m.mentions`,
//! version 1.7): old apps and bridges send no `m.mentions`. As other servers do, and in the places they had.

use ruma::UserId;
use ruma::power_levels::NotificationPowerLevelsKey;
use ruma::push::{
    Action, ConditionalPushRule, ConditionalPushRuleInit, EventMatchConditionData, HighlightTweakValue,
    PatternedPushRuleInit, PushCondition, Ruleset, SenderNotificationPermissionConditionData, SoundTweakValue, Tweak,
};

const CONTAINS_DISPLAY_NAME: &str = ".m.rule.contains_display_name";
const CONTAINS_USER_NAME: &str = ".m.rule.contains_user_name";
const ROOM_NOTIF: &str = ".m.rule.roomnotif";

/// The rules a new user starts with.
pub fn default_rules(user: &UserId) -> Ruleset {
    let mut rules = Ruleset::server_default(user);
    for rule in std::mem::take(&mut rules.override_) {
        let follower = match rule.rule_id.as_str() {
            ".m.rule.is_user_mention" => Some(contains_display_name()),
            ".m.rule.is_room_mention" => Some(room_notif()),
            _ => None,
        };
        rules.override_.insert(rule);
        rules.override_.extend(follower);
    }
    let user_name = PatternedPushRuleInit {
        actions: mention_of_the_user(),
        default: true,
        enabled: true,
        rule_id: CONTAINS_USER_NAME.to_owned(),
        pattern: user.localpart().to_owned(),
    };
    rules.content.insert(user_name.into());
    rules
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

fn default_rule(id: &str, conditions: Vec<PushCondition>, actions: Vec<Action>) -> ConditionalPushRule {
    ConditionalPushRuleInit { actions, default: true, enabled: true, rule_id: id.to_owned(), conditions }.into()
}

fn mention_of_the_user() -> Vec<Action> {
    let sound = Action::SetTweak(Tweak::Sound(SoundTweakValue::Default));
    vec![Action::Notify, sound, Action::SetTweak(Tweak::Highlight(HighlightTweakValue::Yes))]
}
